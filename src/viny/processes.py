"""Who is at work: claims on a piece of work that outlive no process, and orderly stops at a signal.

A claim is a small file that says which process on which machine does a piece of work. It needs nothing of the
file system but that a hard link or a rename is whole or not at all, so it works on network file systems too.
"""

from __future__ import annotations

import ctypes
import glob
import hashlib
import json
import os
import platform
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

BEAT = 30.0  # seconds between the signs of life that a claim's holder gives
SILENCE = 600.0  # seconds without one after which a holder on another machine counts as dead
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def place() -> str:
    """This machine, its boot and its process namespace, as 'host-boot-namespace' of 8 hex digits each."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    boot = _read("/proc/sys/kernel/random/boot_id")
    return "-".join(map(_short, (platform.node(), boot, namespace)))


def _started(pid: int) -> str:
    """Start of a process in the kernel's ticks, so that a reused number is not mistaken for it."""
    stat = _read(f"/proc/{pid}/stat")
    return stat.rpartition(")")[2].split()[19] if stat else ""


@dataclass(frozen=True)
class Owner:
    """A process, told apart from all others on all machines that share a folder."""

    host: str
    place: str
    pid: int
    started: str

    @classmethod
    def me(cls) -> Owner:
        return cls(platform.node(), place(), os.getpid(), _started(os.getpid()))

    def state(self) -> str:
        """'alive', 'dead', or 'elsewhere' where this process cannot tell."""
        mine, theirs = place().split("-"), self.place.split("-")
        if mine[0] != theirs[0]:
            return "elsewhere"
        if mine[1] != theirs[1]:
            return "dead"  # the machine has started anew since
        if mine[2] != theirs[2]:
            return "elsewhere"
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return "dead"
        except PermissionError:
            pass
        return "alive" if _started(self.pid) == self.started else "dead"

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def process_tag() -> str:
    """This process as a part of a file name."""
    return f"{place()}-{os.getpid()}"


def tag_is_dead(tag: str) -> bool:
    """Whether a tag is of a process that surely lives no more."""
    where, _, pid = tag.rpartition("-")
    if where.count("-") != 2 or not pid.isdecimal():
        return False
    return Owner("", where, int(pid), _started(int(pid))).state() == "dead"


def unfinished(path: Path) -> Path:
    """A name beside `path` for what this process has not finished; what killed processes left there is removed."""
    head, tail = f".{path.name}.", f".tmp{path.suffix}"
    for left in path.parent.glob(f"{glob.escape(head)}*{glob.escape(tail)}"):
        if tag_is_dead(left.name.removeprefix(head).removesuffix(tail)):
            left.unlink(missing_ok=True)
    return path.with_name(f"{head}{process_tag()}{tail}")


class Claim:
    """A claim on a piece of work, held from `acquire` to `release` or to the end of the process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._owner = Owner.me()
        self._done = threading.Event()
        self._held = False

    def holder(self) -> Owner | None:
        """Who holds the claim now; None if nobody who is alive does."""
        try:
            owner = Owner(**json.loads(self.path.read_text(encoding="utf-8")))
            silent = _now(self.path.parent) - self.path.stat().st_mtime
            state = owner.state()
        except (OSError, ValueError, TypeError, IndexError):
            return None
        if state == "dead" or (state == "elsewhere" and silent > SILENCE):
            return None
        return owner

    def acquire(self) -> Owner | None:
        """Take the claim; returns None when it is ours, else who holds it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        name, aside = unfinished(self.path), unfinished(self.path.with_suffix(".stale"))
        name.write_text(json.dumps(asdict(self._owner)), encoding="utf-8")
        try:
            for _ in range(5):
                try:
                    _link(name, self.path)
                except FileExistsError:
                    holder = self.holder()
                    if holder is not None:
                        return holder
                    self._clear_stale(aside)
                else:
                    self._held = True
                    threading.Thread(target=self._beat, daemon=True).start()
                    return None
            return self.holder() or self._owner
        finally:
            name.unlink(missing_ok=True)

    def _clear_stale(self, aside: Path) -> None:
        """Remove a dead process's claim, unless another process was quicker and holds it by now."""
        try:
            os.rename(self.path, aside)
        except FileNotFoundError:
            return
        if Claim(aside).holder() is not None:
            with suppress(FileExistsError):
                _link(aside, self.path)
        aside.unlink()

    def _beat(self) -> None:
        while not self._done.wait(BEAT):
            with suppress(OSError):  # the folder is away for a moment, or for good; the work itself will say so
                os.utime(self.path)

    def release(self) -> None:
        self._done.set()
        if self._held:
            self._held = False
            self.path.unlink(missing_ok=True)


def _link(source: str | Path, path: Path) -> None:
    """Give a file a second name, whole, or raise FileExistsError where the name is taken."""
    try:
        os.link(source, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: whole all the same, but for a crash between two calls
        with open(source, encoding="utf-8") as f:
            text = f.read()
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        with os.fdopen(handle, "w", encoding="utf-8") as f:
            f.write(text)


def _now(folder: Path) -> float:
    """The file server's clock, seconds."""
    with tempfile.TemporaryFile(dir=folder) as f:
        return os.fstat(f.fileno()).st_mtime


@contextmanager
def claimed(path: Path, what: str, poll: float = 1.0) -> Iterator[bool]:
    """Hold a claim in a block, after waiting for whoever has it.

    Args:
        path: the claim's file.
        what: the work, for what is said while waiting.
        poll: seconds between two looks.

    Yields:
        Whether there was another holder to wait for: its work may be done.
    """
    claim = Claim(path)
    waited, said = False, 0.0
    while (holder := claim.acquire()) is not None:
        if not waited or time.monotonic() - said > 60:
            print(f"{what}: waiting for {holder}, which is at it", flush=True)
            said = time.monotonic()
        waited = True
        time.sleep(poll)
    try:
        yield waited
    finally:
        claim.release()


class Stopped(BaseException):
    """A signal has asked the process to end; `signal` is its number. No error, so `except Exception` lets it pass."""

    def __init__(self, number: int, where: str = "") -> None:
        self.signal = number
        super().__init__(f"stopped by {signal.Signals(number).name}" + (f" {where}" if where else ""))


@contextmanager
def on_stop(handle: Callable[[int], None]) -> Iterator[None]:
    """Call `handle` with the number of a stop signal that arrives in the block; a signal that is ignored stays so.

    Only a process's main thread may set handlers; elsewhere the block runs as it is.
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
    """End the process at once, as `on_stop` may want it where nothing needs saving.

    Nothing is cleaned up: an exception raised by a signal handler can get lost in a destructor, and what a
    process leaves unfinished, the next one removes.
    """
    os.write(2, f"viny: stopped by {signal.Signals(number).name}\n".encode())
    os._exit(128 + number)


def end_with_parent(parent: int) -> None:
    """Have the kernel send SIGTERM to this process when its parent dies, so that no job outlives its driver.

    Args:
        parent: process id of the parent; nothing happens if it is another one, as inside some containers.
    """
    if os.getppid() != parent:
        return
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(1, signal.SIGTERM, 0, 0, 0)  # PR_SET_PDEATHSIG
    except (OSError, AttributeError):
        return  # not Linux; a job then ends by itself
    if os.getppid() != parent:  # it died in between
        os.kill(os.getpid(), signal.SIGTERM)
