"""The time left of a run, as told every few seconds while a simulated one goes on, alone or beside other work."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("jsonschema")

from viny.study.config import resolve
from viny.study.graph import Job, Key, jobs
from viny.study.inventory import count_images
from viny.study.reading import read_config
from viny.tools.forecast.rates import operations_a_pass
from viny.tools.status import time_left
from viny.tools.status.running import Running

TINY = Path(__file__).parents[1] / "tiny.yaml"
BEGUN = 1.8e9  # any time
LOOK = 5.0  # seconds between looks
SPEED = dict.fromkeys(("pretrain", "intermediate", "finetune"), 3e5)  # operations a second of a job alone on a core
SLOTS = 2
FIRST_STEPS = 6.0  # seconds until a training has its first report


@dataclass
class Active:
    job: Job
    since: float
    done: float = 0.0  # passes
    cores: float = 0.0  # seconds times the share of the cores


def simulated(
    root: Path, monkeypatch: pytest.MonkeyPatch, share: Callable[[float], float]
) -> list[tuple[float, float]]:
    """Seconds left as told and in truth, every few seconds from the first that is told.

    Args:
        share: of the cores that other work leaves, at so many seconds from the beginning.
    """
    config = resolve(read_config(TINY))
    images = count_images(config, root)
    every = jobs(config, images)
    waiting = [job for job in every if job.stage in SPEED]
    active: list[Active] = []
    done: set[Key] = set()
    told, now, step = [], 0.0, 1.0
    while waiting or active:
        for job in list(waiting):
            if len(active) < SLOTS and all(key in done for key in job.needs if key[0] in SPEED):
                active.append(Active(job, now))
                waiting.remove(job)
        for one in list(active):
            one.done += step * passes_a_second(one.job) * share(now)
            one.cores += step * share(now)
            if one.done >= one.job.work.passes:
                leave(root, one, now + step)
                active.remove(one)
                done.add(one.job.key)
        now += step
        if now % LOOK == 0 and (active or waiting):
            monkeypatch.setattr(time_left.time, "time", lambda at=BEGUN + now: at)
            running = [seen(one, now, share(now - step)) for one in active]
            left = [*waiting, *(one.job for one in active)]
            found = time_left.seconds_left(config, images, root, every, left, running, {}, BEGUN)
            if found is not None:
                told.append((now, found))
    return [(found, now - at) for at, found in told]


def passes_a_second(job: Job) -> float:
    return SPEED[job.stage] / operations_a_pass(job)


def seen(one: Active, now: float, share: float) -> Running:
    """What a running training says of itself."""
    epochs, lasted = one.job.spec["train"]["epochs"], now - one.since
    if lasted < FIRST_STEPS:
        return Running(one.job, 0, epochs, None, None, None, 0.0, "", None, lasted)
    pace, rate = one.done / lasted, passes_a_second(one.job) * share
    left = (one.job.work.passes - one.done) / pace
    return Running(one.job, epochs * one.done / one.job.work.passes, epochs, 0.5, rate, left, 0.0, "", pace, lasted)


def leave(root: Path, one: Active, ended: float) -> None:
    """What a finished training leaves for who asks how fast it was."""
    for output in one.job.outputs:
        (root / output).parent.mkdir(parents=True, exist_ok=True)
        (root / output).touch()
    took = ended - one.since
    about = {"image_passes": one.job.work.passes, "training_seconds": took - 1, "share_of_cores": one.cores / took}
    record = {**about, "threads": 1, "device": "cpu", "host": "here", "earlier_attempts": []}
    (root / one.job.outputs[3]).write_text(json.dumps(record))
    (root / one.job.outputs[1]).write_text(json.dumps({"spec": {**one.job.spec}}))
    benchmark = one.job.benchmark(root)
    benchmark.parent.mkdir(parents=True, exist_ok=True)
    benchmark.write_text(json.dumps({"s": took}) + "\n")
    os.utime(benchmark, (BEGUN + ended,) * 2)


def test_at_a_constant_rate_it_is_right_and_falls_with_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = simulated(tmp_path, monkeypatch, lambda at: 1.0)
    assert len(rows) > 100
    for told, truth in rows:
        assert told == pytest.approx(truth, abs=0.03 * truth + LOOK)


@pytest.mark.parametrize(
    "share",
    [
        lambda at: 0.5 if 100 <= at < 140 else 1.0,  # as the first fine-tunings begin
        lambda at: 0.5 if at % 60 < 30 else 1.0,
        lambda at: 0.25 if 200 <= at < 320 else 1.0,
    ],
    ids=["once", "on and off", "heavy"],
)
def test_other_work_for_a_while_does_not_make_it_jump(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: Callable[[float], float]
) -> None:
    rows = [(told, truth) for told, truth in simulated(tmp_path, monkeypatch, share) if truth > 60]
    for (before, _), (after, _) in pairwise(rows):
        assert 0.75 < after / before < 1.35  # by the last minutes' rate of one job it doubles and halves
    assert all(0.8 < told / truth < 1.6 for told, truth in rows)
