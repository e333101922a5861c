"""Claims on pieces of work; a claim ends with the process that holds it.

A claim is a small file that says which process on which machine is doing a piece of work. All it needs from the
file system is that a hard link or a rename happens whole or not at all, so it works on network file systems too.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType

from viny.runtime.files import NOT_WRITABLE, open_file
from viny.runtime.processes import Owner, unfinished

BEAT = 30.0  # seconds between a holder's signs of life
SILENCE = 180.0  # seconds without one until a holder on another machine counts as dead; NFS may show one 60 s late
UNFINISHED = 10.0  # seconds after which a claim that names nobody is left over from a crash, not still being written


NOBODY_KNOWN = Owner("", "", 0, "")  # the holder of a claim that cannot be read


class Claim:
    """A claim on a piece of work, held from `acquire` to `release` or to the end of the process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._owner = Owner.me()
        self._content = json.dumps(asdict(self._owner)).encode()
        self._done = threading.Event()
        self._held = False

    def holder(self) -> Owner | None:
        """Who holds the claim now; None if no living process does."""
        return self._look()[0]

    def _look(self) -> tuple[Owner | None, bytes | None]:
        """Who holds the claim, and its content; the content is None if there is no claim or we may not read it."""
        try:
            with open_file(self.path) as f:
                content, beat = f.read(), os.fstat(f.fileno()).st_mtime
        except FileNotFoundError:
            return None, None
        except OSError:  # a claim that we may not read may well be held
            return NOBODY_KNOWN, None
        try:
            owner, allowed = Owner.parse(content.decode()), SILENCE
        except ValueError:
            # Without hard links, a claim is empty for a moment before it says whose it is.
            owner, allowed = NOBODY_KNOWN, UNFINISHED
        state = owner.state() if owner.pid else "elsewhere"
        if state == "elsewhere":
            try:
                silent = _now(self.path.parent) - beat  # costs a file, so only asked where it matters
            except FileNotFoundError:
                return None, None
            except OSError:
                return NOBODY_KNOWN, None
            state = "dead" if silent > allowed else "alive"
        return (None if state == "dead" else owner), content

    def acquire(self) -> Owner | None:
        """Take the claim; returns None if it is ours now, else its holder."""
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
            with suppress(OSError):
                name.unlink()

    def _right(self, word: str) -> Path:
        return self.path.with_name(f".{self.path.name.lstrip('.')}.{word}")

    def _sweep(self) -> None:
        """Remove what a process left when it was killed while removing a dead claim; safe for the claim's holder."""
        for left in self.path.parent.glob(self._right("[0-9a-f]" * 8).name):
            if Claim(left).holder() is None:
                left.unlink(missing_ok=True)

    def _clear_stale(self, content: bytes) -> Owner | None:
        """Remove a dead process's claim; returns who else is removing it, if anybody.

        Several processes may find the same dead claim. Only one at a time has the right to remove it, and only
        while it is still there: a latecomer would otherwise remove the claim of a living process.
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
            with suppress(OSError):  # the folder is gone, for a moment or for good; the work itself will say so
                if self._is_ours():
                    os.utime(self.path)

    def release(self) -> None:
        """Give the claim up; if somebody else took it over after too long a silence, it stays theirs."""
        self._done.set()
        if self._held:
            self._held = False
            if self._is_ours():
                self.path.unlink(missing_ok=True)


def _link(source: Path, path: Path) -> bool:
    """Give a file a second name, whole or not at all; returns whether the name was free."""
    try:
        os.link(source, path)
    except FileExistsError:
        # A network file system may repeat a request that succeeded and report the repeat as a failure.
        try:
            return os.path.samefile(source, path)
        except OSError:
            return False  # given up in the meantime
    except OSError:  # a file system without hard links
        return _copy(source, path)
    return True


def _copy(source: Path, path: Path) -> bool:
    """`_link` by copying, so that the file is empty for a moment; returns whether the name was free."""
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
    """The file server's clock, seconds; this machine's where nothing may be written."""
    try:
        with tempfile.TemporaryFile(dir=folder) as f:
            return os.fstat(f.fileno()).st_mtime
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        return time.time()


def claim_beside(folder: Path) -> Path:
    """The claim on the work that keeps its checkpoints in `folder`."""
    return folder.with_name(f"{folder.name}.claim")


# Claims that blocks around this one hold, by their absolute paths, and whether each was waited for.
_around: ContextVar[Mapping[Path, bool]] = ContextVar("_around", default=MappingProxyType({}))


@contextmanager
def claimed(path: Path, what: str, poll: float = 1.0) -> Iterator[bool]:
    """Hold a claim for the length of a block, after waiting for whoever has it.

    Within a block that holds the same claim, nothing is done, and the outer block's answer is given.

    Args:
        path: the claim's file.
        what: the work, as named in the message while waiting.
        poll: seconds between looks.

    Yields:
        Whether we waited for another holder, who may have done the work.
    """
    if (before := _around.get().get(path.absolute())) is not None:
        yield before
        return
    claim = Claim(path)
    waited, said = False, 0.0
    while (holder := claim.acquire()) is not None:
        if not waited or time.monotonic() - said > 60:
            print(f"{what}: waiting for {holder}, which is working on it", flush=True)
            said = time.monotonic()
        waited = True
        time.sleep(poll)
    inside = _around.set({**_around.get(), path.absolute(): waited})
    try:
        yield waited
    finally:
        _around.reset(inside)
        claim.release()
