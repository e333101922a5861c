"""Orderly stops: what a process does on a signal, when its parent dies, and when it is done."""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Stopped(BaseException):
    """A signal asked the process to end; `signal` is its number. Not an error, so `except Exception` lets it pass."""

    def __init__(self, number: int, where: str = "") -> None:
        self.signal, self.where = number, where
        super().__init__(f"stopped by {signal.Signals(number).name}" + (f" {where}" if where else ""))


@contextmanager
def on_stop(handle: Callable[[int], None]) -> Iterator[None]:
    """Call `handle` with the number of any stop signal that arrives in the block; ignored signals stay ignored.

    Only a process's main thread may set handlers; in other threads the block just runs.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def receive(number: int, frame: FrameType | None) -> None:
        handle(number)

    before: dict[int, Any] = {}
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, receive)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def leave(number: int) -> None:
    """End the process at once; a handler for `on_stop` when nothing needs saving.

    Nothing is cleaned up: an exception raised by a signal handler can get lost in a destructor, and the next
    process removes what this one leaves unfinished.
    """
    os.write(2, f"viny: stopped by {signal.Signals(number).name}\n".encode())
    os._exit(128 + number)


def end_with_parent(parent: int) -> None:
    """Have the kernel send SIGTERM to this process when its parent dies, so that no job outlives its driver.

    Args:
        parent: the parent's process id; if the parent is another one, as in some containers, nothing is done.
    """
    if os.getppid() != parent:
        return
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(1, signal.SIGTERM, 0, 0, 0)  # PR_SET_PDEATHSIG
    except (OSError, AttributeError):
        return  # not Linux; the job then runs to its own end
    if os.getppid() != parent:  # it died in the meantime
        os.kill(os.getpid(), signal.SIGTERM)


def end(code: int) -> NoReturn:
    """End the process as `sys.exit` does, but without taking its memory apart, which the system does faster.

    After PyTorch was loaded, that takes longer than a fifth of loading it. Where others look on or still work, such as
    profilers and threads, the process ends as usual.
    """
    monitoring = getattr(sys, "monitoring", None)  # since Python 3.12
    watched = sys.getprofile() or sys.gettrace() or (monitoring and any(map(monitoring.get_tool, range(6))))
    if watched or any(t is not threading.current_thread() and not t.daemon for t in threading.enumerate()):
        raise SystemExit(code)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # of one that is broken, closed, or none
            stream.flush()
    os._exit(code)
