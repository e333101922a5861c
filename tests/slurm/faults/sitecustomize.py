"""Lets a job fail on demand: Python runs this before anything else where its folder is on the path."""

import os
import select
import signal
import sys
import time


def strike() -> None:
    folder = os.environ.get("VINY_TEST_FAULTS", "")
    if "viny" not in sys.orig_argv or "finetune" not in sys.orig_argv or not os.path.isdir(folder):
        return
    for cell in os.listdir(folder):
        if any(f'"name":"{cell}"' in argument for argument in sys.orig_argv):
            path = os.path.join(folder, cell)
            with open(path, encoding="utf-8") as f:
                how = f.read()
            if how == "slow":
                slow_down(path)
            elif how == "memory":
                hoard = b"x" * (2500 * 2**20)
                time.sleep(60)
                del hoard
            else:
                os.write(2, b"viny: a fault that a test has ordered\n")
                os._exit(3)


def slow_down(path: str) -> None:
    """Stand still from this process's first checkpoint on, while a file is there and until a stop signal comes."""
    checkpoints = sys.orig_argv[sys.orig_argv.index("--checkpoints") + 1]
    received, wake = os.pipe()  # a byte for each signal, whatever its handler does
    os.set_blocking(received, False)
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)

    def stopped() -> bool:
        select.select([received], [], [], 0.1)
        try:
            return bool({signal.SIGTERM, signal.SIGINT, signal.SIGHUP} & {*os.read(received, 1024)})
        except BlockingIOError:
            return False

    def halt(*_: object) -> None:
        while os.path.exists(path) and not stopped():
            pass

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        saved = event == "os.rename" and str(arguments[1]).startswith(checkpoints)
        if saved and str(arguments[1]).endswith(".safetensors"):
            signal.setitimer(signal.ITIMER_REAL, 0.05)  # the file is about to be renamed

    signal.signal(signal.SIGALRM, halt)
    sys.addaudithook(watch)


strike()
