"""How long tests wait. A limit is there to end a hang; a machine that is busy is not at fault, so it is long."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE = 240.0  # seconds for what takes a few on a quiet machine


def until(ready: Callable[[], object], what: str, seconds: float = PATIENCE, every: float = 0.01) -> None:
    """Wait until `ready` says so; AssertionError after `seconds`."""
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s"
        time.sleep(every)
