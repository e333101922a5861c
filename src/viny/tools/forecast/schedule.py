"""How jobs share cores and GPUs, and how long all of them take."""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from viny.runtime.gpus import SHORT_JOBS, visible_gpus
from viny.study.graph import PRIORITIES, TRAININGS, Job, Key
from viny.study.workload import stack_of

SNAKEMAKE = 5.0  # seconds per run: from the command to the first job, and after the last


def makespan(
    some: list[Job],
    seconds: Mapping[Key, float],
    cores: int,
    threads: Callable[[Job], int],
    places: int | None = None,
    short: int | None = None,
) -> float:
    """Seconds from the first job's start to the last one's end, as a greedy scheduler runs them.

    Whenever a job ends, those whose inputs exist start in order of priority while cores are free
    (list scheduling, Graham 1969, doi 10.1137/0117039).

    Args:
        some: in an order in which they could run; whatever else they need exists.
        seconds: of each.
        cores: to share out.
        threads: cores that a job takes; never more than there are.
        places: on GPUs, one for each job that computes on a GPU; None if there are no GPUs.
        short: places of their own for those of these jobs that do not train; None if they share the others'.
    """
    order = {job.key: (-PRIORITIES.get(job.stage, 0), at) for at, job in enumerate(some)}
    by_key = {job.key: job for job in some}
    waits = {job.key: sum(key in by_key for key in job.needs) for job in some}
    readers: dict[Key, list[Key]] = {}
    for job in some:
        for key in job.needs:
            readers.setdefault(key, []).append(job.key)
    ready = [(order[key], key) for key, n in waits.items() if n == 0]
    heapq.heapify(ready)
    running: list[tuple[float, Key]] = []
    free = [cores, cores if places is None else places, short or 0]
    now = 0.0

    def takes(key: Key) -> list[int]:
        job = by_key[key]
        apart = short is not None and job.stage not in TRAININGS
        return [min(cores, threads(job)), int(job.work is not None and not apart), int(job.work is not None and apart)]

    while ready or running:
        put_off = []
        while ready and (free[0] > 0 or (short is not None and free[1] > 0)):
            entry = heapq.heappop(ready)
            wanted = takes(entry[1])
            if any(n > have for n, have in zip(wanted, free, strict=True)):
                put_off.append(entry)
                continue
            free = [have - n for n, have in zip(wanted, free, strict=True)]
            heapq.heappush(running, (now + seconds[entry[1]], entry[1]))
        for entry in put_off:
            heapq.heappush(ready, entry)
        now, done = heapq.heappop(running)
        free = [have + n for n, have in zip(takes(done), free, strict=True)]
        for key in readers.get(done, []):
            waits[key] -= 1
            if waits[key] == 0:
                heapq.heappush(ready, (order[key], key))
    return now


@dataclass(frozen=True)
class Resources:
    """Where a study will run: cores, and GPUs, of which a training takes one or a share of one.

    Trainings that one process runs at once (`stack` above 1) are taken to run one after the other, each at the rate of
    all of them together. They take no cores, and evaluations have places of their own.
    """

    cores: int
    gpus: int
    jobs_per_gpu: int
    train_threads: int
    stack: int = 1

    @classmethod
    def of(cls, config: Mapping[str, Any], cores: int | None, gpus: int | None) -> Resources:
        """This machine, except for what is given.

        Args:
            config: resolved settings.
            cores: None for all that this process may use.
            gpus: None for those of this machine, or for 0 if the study computes on CPUs.
        """
        compute = config["compute"]
        found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if gpus is None:
            gpus = 0 if compute["device"] == "cpu" else len(visible_gpus())
        stack = stack_of(config) if gpus else 1
        return cls(cores or found, gpus, compute["jobs_per_gpu"], compute["train_threads"], stack)

    def device(self, config: Mapping[str, Any]) -> str:
        """What trainings compute on, as `rates_seen` takes it."""
        return "cuda" if self.gpus else config["compute"]["device"]

    @property
    def places(self) -> int | None:
        return self.gpus * self.jobs_per_gpu if self.gpus else None

    @property
    def beside(self) -> int:
        """Trainings that run side by side, if there are that many."""
        by_cores = max(1, self.cores // self.train_threads) if self.stack == 1 else self.places or 1
        return by_cores if self.places is None else min(by_cores, self.places)

    def threads(self, job: Job, config: Mapping[str, Any]) -> int:
        if self.stack > 1 and job.stage in TRAININGS:
            return 0
        return config["compute"]["pack_threads"] if job.stage == "pack" else self.train_threads if job.work else 1

    def hours(self, some: list[Job], seconds: Mapping[Key, float], config: Mapping[str, Any]) -> float:
        """Wall-clock hours of some jobs; zero for none."""
        short = self.gpus * SHORT_JOBS if self.stack > 1 else None
        spent = makespan(some, seconds, self.cores, lambda job: self.threads(job, config), self.places, short)
        return (spent + SNAKEMAKE) / 3600 if some else 0.0


def most_beside(all_jobs: Iterable[Job]) -> int:
    """Trainings that could run side by side: as many as the widest stage has."""
    widths: dict[str, int] = {}
    for job in all_jobs:
        if job.stage in TRAININGS:
            widths[job.stage] = widths.get(job.stage, 0) + 1
    return max(widths.values(), default=1)
