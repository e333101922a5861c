"""Processes: telling them apart across machines, and clearing up what killed ones left unfinished."""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import os
import platform
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

_numbers = itertools.count()


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def place() -> str:
    """This machine, its boot and its process namespace, as 'host-boot-namespace', 8 hex digits each."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    boot = _read("/proc/sys/kernel/random/boot_id")
    return "-".join(map(_short, (platform.node(), boot, namespace)))


def _process(pid: int) -> tuple[str, str]:
    """A process's state letter and its start time in kernel ticks; empty if the kernel does not show them."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (fields[0], fields[19]) if fields else ("", "")


@dataclass(frozen=True)
class Owner:
    """A process, distinct from all others on all machines that share a folder."""

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
        try:
            value = json.loads(text)
        except RecursionError as error:
            raise ValueError("not an owner") from error
        kinds = {"host": str, "place": str, "pid": int, "started": str}
        if not isinstance(value, dict) or {k: type(v) for k, v in value.items()} != kinds:
            raise ValueError("not an owner")
        owner = cls(**value)
        if owner.pid <= 0 or owner.place.count("-") != 2:
            raise ValueError("no process of any machine")
        return owner

    def state(self) -> str:
        """'alive', 'dead', or 'elsewhere' if this process cannot tell."""
        mine, theirs = place().split("-"), self.place.split("-")
        if mine[0] != theirs[0]:
            return "elsewhere"
        if mine[1] != theirs[1]:
            return "dead"  # the machine has rebooted since
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
            return "dead"  # its number stays in use until its parent asks for its exit code
        # If the kernel hides other users' processes, or there is no /proc, the number is all there is to go by.
        return "dead" if started and self.started and started != self.started else "alive"

    def age(self) -> float:
        """Seconds since it began; 0 if this process cannot tell."""
        up = _read("/proc/uptime").split()
        if not up or not self.started.isdecimal() or self.place != place():
            return 0.0
        return max(0.0, float(up[0]) - int(self.started) / os.sysconf("SC_CLK_TCK"))

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" if self.pid else "a process that its claim does not name"


def process_tag() -> str:
    """A part of a file name that names this process and is new at every call."""
    return f"{place()}-{os.getpid()}-{next(_numbers)}"


def tag_is_dead(tag: str) -> bool:
    """Whether a tag's process is certainly dead."""
    found = re.fullmatch(r"(\w+-\w+-\w+)-(\d+)-\d+", tag)
    return found is not None and Owner("", found[1], int(found[2]), "").state() == "dead"


def unfinished(path: Path) -> Path:
    """A name beside `path` for this process's unfinished work; what killed processes left there is removed."""
    remove_leftovers(path.parent, path.name)
    return path.with_name(f".{path.name}.{process_tag()}.tmp{path.suffix}")


def remove_leftovers(folder: Path, name: str | None = None) -> list[Path]:
    """Remove the files and folders that killed processes left unfinished in `folder`, under one name or any."""
    removed = []
    for left in folder.glob(f".{glob.escape(name) if name else '*'}.*.tmp*"):
        tag = left.name.rpartition(".tmp")[0].rpartition(".")[2]
        if tag_is_dead(tag):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
            removed.append(left)
    return removed
