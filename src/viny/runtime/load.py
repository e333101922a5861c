"""How much other work kept a process from computing: its own threads' waits for a core, as the kernel counts them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

QUIET = 0.9  # of the cores; below this, other work is worth a word


def time_run() -> tuple[int, int]:
    """Nanoseconds that this process's threads ran, and waited for a core; 0 if the kernel does not count."""
    ran = waited = 0
    for file in Path("/proc/self/task").glob("*/schedstat"):
        try:
            fields = file.read_text(encoding="ascii").split()
        except OSError:
            continue  # the thread has ended
        ran, waited = ran + int(fields[0]), waited + int(fields[1])
    return ran, waited


def share_of_cores(before: tuple[int, int] = (0, 0)) -> float:
    """Share of the time since `before` (see `time_run`; else of the process) in which threads that could run did."""
    ran, waited = (now - then for now, then in zip(time_run(), before, strict=True))
    return ran / (ran + waited) if ran > 0 and waited > 0 else 1.0


def share_in(provenance: Mapping[str, Any]) -> float:
    """The share of the cores that a finished job had, by its provenance; 1 where that does not say, as on a GPU.

    Its seconds times this are about those that it takes on a quiet machine.
    """
    share = provenance.get("share_of_cores")
    return float(share) if type(share) in (int, float) and 0 < share <= 1 else 1.0


def busy(share: float) -> str:
    """What other work had, in words; empty if it was hardly any."""
    return f"while other work had {100 * (1 - share):.0f} % of the cores" if share < QUIET else ""
