"""Who is at work: claims on a piece of work that outlive no process, and orderly stops at a signal.

A claim is a small file that says which process on which machine does a piece of work. It needs nothing of the
file system but that a hard link or a rename is whole or not at all, so it works on network file systems too.
"""

from __future__ import annotations

import ctypes
import glob
import hashlib
import itertools
import json
import os
import platform
import re
import shutil
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
SILENCE = 180.0  # seconds without one after which a holder on another machine counts as dead; NFS shows one 60 s late
UNFINISHED = 10.0  # seconds after which a claim that names nobody is a crash's leftover, no longer being written
_numbers = itertools.count()
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


def _process(pid: int) -> tuple[str, str]:
    """A process's state letter and its start in the kernel's ticks; empty where the kernel does not show it."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (fields[0], fields[19]) if fields else ("", "")


@dataclass(frozen=True)
class Owner:
    """A process, told apart from all others on all machines that share a folder."""

    host: str
    place: str
    pid: int
    started: str

    @classmethod
    def me(cls) -> Owner:
        return cls(platform.node(), place(), os.getpid(), _process(os.getpid())[1])

    @classmethod
    def parse(cls, text: str) -> Owner:
        """Read what `asdict` wrote; ValueError for anything else."""
        value = json.loads(text)
        kinds = {"host": str, "place": str, "pid": int, "started": str}
        if not isinstance(value, dict) or {k: type(v) for k, v in value.items()} != kinds:
            raise ValueError("not an owner")
        owner = cls(**value)
        if owner.pid <= 0 or owner.place.count("-") != 2:
            raise ValueError("no process of any machine")
        return owner

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
        except OverflowError:
            return "dead"  # no process has such a number
        state, started = _process(self.pid)
        if state in ("Z", "X"):
            return "dead"  # its parent has not asked for its exit code, which keeps its number in use
        # A kernel that hides the processes of others, or has no /proc, leaves only the number to go by.
        return "dead" if started and self.started and started != self.started else "alive"

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" if self.pid else "a process that its claim does not tell"


NOBODY_KNOWN = Owner("", "", 0, "")  # holds a claim that cannot be read


def process_tag() -> str:
    """This process and a number of its own, as a part of a file name: another at every call."""
    return f"{place()}-{os.getpid()}-{next(_numbers)}"


def tag_is_dead(tag: str) -> bool:
    """Whether a tag is of a process that surely lives no more."""
    found = re.fullmatch(r"(\w+-\w+-\w+)-(\d+)-\d+", tag)
    return found is not None and Owner("", found[1], int(found[2]), "").state() == "dead"


def unfinished(path: Path) -> Path:
    """A name beside `path` for what this process has not finished; what killed processes left there is removed."""
    remove_leftovers(path.parent, path.name)
    return path.with_name(f".{path.name}.{process_tag()}.tmp{path.suffix}")


def remove_leftovers(folder: Path, name: str | None = None) -> list[Path]:
    """Remove the files and folders that killed processes left unfinished in `folder`, of one name or of all."""
    removed = []
    for left in folder.glob(f".{glob.escape(name) if name else '*'}.*.tmp*"):
        tag = left.name.rpartition(".tmp")[0].rpartition(".")[2]
        if tag_is_dead(tag):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
            removed.append(left)
    return removed


class Claim:
    """A claim on a piece of work, held from `acquire` to `release` or to the end of the process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._owner = Owner.me()
        self._content = json.dumps(asdict(self._owner)).encode()
        self._done = threading.Event()
        self._held = False

    def holder(self) -> Owner | None:
        """Who holds the claim now; None if nobody who is alive does."""
        return self._look()[0]

    def _look(self) -> tuple[Owner | None, bytes | None]:
        """Who holds the claim, and the content that says so; None for no claim, also for one we may not read."""
        try:
            content = self.path.read_bytes()
            silent = _now(self.path.parent) - self.path.stat().st_mtime
        except FileNotFoundError:
            return None, None
        except OSError:  # what we may not read may well be held
            return NOBODY_KNOWN, None
        try:
            owner = Owner.parse(content.decode())
        except ValueError:
            # Without hard links a claim is empty for a moment before it says whose it is.
            return (NOBODY_KNOWN if silent < UNFINISHED else None), content
        state = owner.state()
        return (None if state == "dead" or (state == "elsewhere" and silent > SILENCE) else owner), content

    def acquire(self) -> Owner | None:
        """Take the claim; returns None when it is ours, else who holds it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        name = unfinished(self.path)
        try:
            name.write_bytes(self._content)
            other: Owner | None = None
            for _ in range(5):
                if _link(name, self.path):
                    self._held, self._done = True, threading.Event()
                    threading.Thread(target=self._beat, args=(self._done,), daemon=True).start()
                    self._sweep()
                    return None
                holder, content = self._look()
                if holder is not None:
                    return holder
                if content is not None:
                    other = self._clear_stale(content)
            return other or self.holder() or NOBODY_KNOWN
        finally:
            name.unlink(missing_ok=True)

    def _right(self, word: str) -> Path:
        return self.path.with_name(f".{self.path.name.lstrip('.')}.{word}")

    def _sweep(self) -> None:
        """Remove what a process left that was killed while it removed a dead claim; safe for who holds the claim."""
        for left in self.path.parent.glob(self._right("[0-9a-f]" * 8).name):
            if Claim(left).holder() is None:
                left.unlink(missing_ok=True)

    def _clear_stale(self, content: bytes) -> Owner | None:
        """Remove a dead process's claim; returns who else is removing it.

        Of all who find the same dead claim, one at a time has the right to remove it, and only while it is
        still there: who comes late would else remove the claim of somebody alive.
        """
        word = hashlib.sha256(content).hexdigest()[:8]
        right = Claim(self._right(word))
        other = right.acquire()
        if other is not None:
            time.sleep(0.02)
            return other
        try:
            if self._look() == (None, content):
                self.path.unlink(missing_ok=True)
        finally:
            right.release()
        return None

    def _is_ours(self) -> bool:
        try:
            return self.path.read_bytes() == self._content
        except OSError:
            return False

    def _beat(self, done: threading.Event) -> None:
        while not done.wait(BEAT):
            with suppress(OSError):  # the folder is away for a moment, or for good; the work itself will say so
                if self._is_ours():
                    os.utime(self.path)

    def release(self) -> None:
        """Give the claim back; after too long a silence it may be another's by now, and stays that."""
        self._done.set()
        if self._held:
            self._held = False
            if self._is_ours():
                self.path.unlink(missing_ok=True)


def _link(source: Path, path: Path) -> bool:
    """Give a file a second name, whole; whether the name was free."""
    try:
        os.link(source, path)
    except FileExistsError:
        # A network file system may report its own success, repeated, as a failure.
        try:
            return os.path.samefile(source, path)
        except OSError:
            return False  # given back meanwhile
    except OSError:  # a file system without hard links
        return _copy(source, path)
    return True


def _copy(source: Path, path: Path) -> bool:
    """`_link` by a copy, which is empty for a moment; whether the name was free."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(source.read_bytes())
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


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
