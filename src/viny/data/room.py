"""Memory that threads share: so that some huge images at the same time do not need more of it than one does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Room:
    """A number of bytes; a thread that asks for more than is free waits.

    Args:
        size: bytes; whoever asks for more gets all of them.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._free = size
        self._changed = threading.Condition()
        self._holding = threading.local()

    @contextmanager
    def taken(self, count: int) -> Iterator[None]:
        """Hold bytes for the length of a block; a thread that holds some already waits for no more."""
        if getattr(self._holding, "some", False):
            yield
            return
        count = min(count, self.size)
        with self._changed:
            self._changed.wait_for(lambda: count <= self._free)
            self._free -= count
        self._holding.some = True
        try:
            yield
        finally:
            self._holding.some = False
            with self._changed:
                self._free += count
                self._changed.notify_all()
