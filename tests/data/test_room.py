"""Huge images are decoded one after another, whatever the number of threads."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from patience import PATIENCE
from PIL import Image

from viny.data import decoding
from viny.data.room import Room
from viny.study.workload import PACK_MB


def held_together(room: Room, counts: list[int]) -> int:
    """The most bytes that threads, one for each count, hold at a time."""
    lock, held, most = threading.Lock(), 0, 0

    def hold(count: int) -> None:
        nonlocal held, most
        with room.taken(count):
            with lock:
                held += count
                most = max(most, held)
            time.sleep(0.01)
            with lock:
                held -= count

    with ThreadPoolExecutor(len(counts)) as pool:
        list(pool.map(hold, counts))
    return most


def test_threads_hold_no_more_than_there_is() -> None:
    assert held_together(Room(100), [60, 60, 30, 10, 40, 90, 100]) <= 100


def test_small_requests_are_served_together() -> None:
    room, all_hold = Room(100), threading.Barrier(5)

    def hold(count: int) -> None:
        with room.taken(count):
            all_hold.wait(PATIENCE)

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(hold, [10] * 5))


def test_more_than_there_is_gets_all() -> None:
    room = Room(10)
    with room.taken(1000):
        pass
    with room.taken(10):  # none was lost
        pass


def test_a_failure_gives_back_what_it_held() -> None:
    room = Room(10)
    with pytest.raises(ValueError, match="x"), room.taken(10):
        raise ValueError("x")
    with room.taken(10):
        pass


def test_a_thread_does_not_wait_for_itself() -> None:
    room = Room(10)
    with room.taken(10), room.taken(10):
        pass


@pytest.mark.parametrize("kind", ["png", "webp", "jpg", "tif"])
def test_pictures_that_do_not_fit_beside_each_other_are_decoded_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = tmp_path / f"a.{kind}"
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(path)
    per_pixel = decoding.PER_JPEG_PIXEL if kind == "jpg" else decoding.PER_PIXEL
    monkeypatch.setattr(decoding, "_PIXELS", Room(40 * 60 * per_pixel))
    real, at_once, most = decoding.orientation, 0, 0
    lock = threading.Lock()

    def counted(image: Image.Image) -> int:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.02)
        with lock:
            at_once -= 1
        return real(image)

    monkeypatch.setattr(decoding, "orientation", counted)
    with ThreadPoolExecutor(4) as pool:
        pictures = list(pool.map(lambda _: decoding.decode(path, 8, "antialias"), range(4)))
    assert len(pictures) == 4
    assert most == 1


def test_a_packing_job_asks_for_what_decoding_takes() -> None:
    largest = decoding.MAX_PIXELS * 37  # bytes, measured: a PNG of 16-bit colours with transparency
    assert 1e6 * PACK_MB > decoding.MEMORY > largest + decoding.MAX_BYTES
