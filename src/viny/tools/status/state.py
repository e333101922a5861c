"""How far a study has got: which jobs are done, running, failed or waiting, from the files they leave and hold."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from viny.runtime.claims import Claim
from viny.runtime.slurm import active_jobs, job_name
from viny.study.graph import SUMMARIES, TRAINS, Job, Key, jobs
from viny.study.grid import cells
from viny.study.inventory import changed_files, count_images, read_files, with_listings
from viny.study.saved import saved_study, study_file
from viny.study.todo import CODE, DAMAGED, JsonCache, explain, to_do, what_to_do
from viny.tools.status.running import Failed, Running, done_in_checkpoints, epochs_of, share_done, state_of
from viny.tools.status.time_left import seconds_left

ASK = 20.0  # seconds between queries to Slurm


@dataclass(frozen=True)
class Status:
    """A study's state at one moment.

    Attributes:
        study: its name.
        cells: how many it has, and how many of them are evaluated.
        stages: how many jobs are done, out of date, running, failed and waiting, by stage.
        running: the running jobs.
        failed: the failed jobs, in the order of their stages.
        passes: image passes of all trainings, those done, and those of the latter that only checkpoints hold.
        outdated: how many cells were evaluated from data or weights other than those there now.
        seconds_left: at the rates of this study's own jobs; None before there are any, or while nothing runs.
        holder: who is running the study, in words; empty if nobody is.
        slurm: its jobs in Slurm's queue, in words; empty if there are none.
        why: what is out of date and why, a line each: files that changed, then results.
        of_other_code: whether cells are there, and all that is out of date was made with other code or sums such
            results up, so that what they say holds.
    """

    study: str
    cells: tuple[int, int]
    stages: dict[str, Counter[str]]
    running: list[Running]
    failed: list[Failed]
    passes: tuple[int, int, int]
    outdated: int
    seconds_left: float | None
    holder: str
    slurm: str
    why: list[str] = field(default_factory=list)
    of_other_code: bool = False

    @property
    def done(self) -> bool:
        return all(set(counts) == {"done"} for counts in self.stages.values())

    @property
    def alive(self) -> bool:
        return bool(self.holder or self.slurm)

    @property
    def well(self) -> bool:
        """Whether everything is done, or running without a failure."""
        return self.done or (self.alive and not self.failed)

    def as_dict(self) -> dict[str, Any]:
        return {
            "study": self.study,
            "cells": self.cells[0],
            "cells_done": self.cells[1],
            "cells_out_of_date": self.outdated,
            "stages": {stage: dict(counts) for stage, counts in self.stages.items()},
            "running": [one.as_dict() for one in self.running],
            "failed": [
                {"stage": one.job.stage, "job": one.job.name, "said": one.said, "log": str(one.log)}
                for one in self.failed
            ],
            "image_passes": self.passes[0],
            "image_passes_done": self.passes[1],
            "image_passes_in_checkpoints": self.passes[2],
            "seconds_left": self.seconds_left,
            "run_by": self.holder or None,
            "slurm": self.slurm or None,
            "out_of_date": self.why,
            "done": self.done,
        }


class Watcher:
    """Reads a study's state, as often as asked.

    Args:
        root: the study's folder, results/<study>.

    Raises:
        InputError: it holds no study, or no longer has its settings.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._records = JsonCache()
        self._slurm, self._asked = "", -ASK
        path = study_file(root)
        self._read(path.stat().st_mtime if path.is_file() else 0.0)  # reading reports what is wrong with the folder

    def _read(self, begun: float) -> None:
        self.begun = begun  # each run rewrites the study's file
        config = saved_study(self.root)  # completed, as an older version may have known fewer keys
        self.images = count_images(config, self.root)
        files = read_files(config, self.images, self.root, remember=False)
        self.changed = changed_files(config, self.root, files)
        self.config = with_listings(config, self.root, files)
        self.jobs = jobs(self.config, self.images)

    def look(self) -> Status:
        """The current state."""
        root = self.root
        holder = Claim(root / ".claim").holder()
        begun = study_file(root).stat().st_mtime
        if begun != self.begun:
            self._read(begun)
        running, failed = [], []
        slurm = self._queue()
        alive = holder is not None or bool(slurm)
        todo = what_to_do(self.config, self.images, root, records=self._records)
        why = [*(f"{name}: {what}" for name, what in self.changed.items()), *explain(todo.stale)]
        left = to_do(self.jobs, root, {*todo.stale, *self._older_sums()}) if alive else todo.left
        keys = {job.key for job in left}
        done = [job for job in self.jobs if job.key not in keys]
        outdated = {job.key for job in left if job.is_done(root)}
        for job in left:
            if job.key in outdated:
                continue  # it has not begun again: its old outputs would be gone
            found = state_of(job, root, alive, begun, bool(slurm))
            if isinstance(found, Running):
                running.append(found)
            elif found is not None:
                failed.append(found)
        states = {one.job.key: "running" for one in running} | {one.job.key: "failed" for one in failed}
        stages: dict[str, Counter[str]] = {}
        for job in self.jobs:
            waits = "out of date" if job.key in outdated else "waiting"
            state = states.get(job.key, waits if job.key in keys else "done")
            stages.setdefault(job.stage, Counter())[state] += 1
        return Status(
            study=self.config["study"],
            cells=(len(cells(self.config)), stages["evaluate"]["done"]),
            stages=stages,
            running=running,
            failed=failed,
            passes=self._passes(done, left, running),
            outdated=stages["evaluate"]["out of date"],
            seconds_left=self._seconds_left(left, running, begun),
            holder=str(holder) if holder is not None else "",
            slurm=slurm,
            why=why,
            of_other_code=self._of_other_code(todo.stale, stages["evaluate"]),
        )

    def _of_other_code(self, stale: Mapping[Key, str], evaluated: Counter[str]) -> bool:
        there = evaluated["done"] + evaluated["out of date"]
        made = [reason for (stage, _), reason in stale.items() if stage not in SUMMARIES]
        return bool(there and made) and not self.changed and {*made} == {CODE} and DAMAGED not in stale.values()

    def _queue(self) -> str:
        """The last run's jobs in Slurm's queue; asked only now and then, as others use Slurm too."""
        try:
            name = job_name(self.root)
        except OSError:
            return ""
        if time.monotonic() - self._asked >= ASK:
            self._asked = time.monotonic()
            states = Counter(line.split()[-1] for line in active_jobs(name))
            self._slurm = ", ".join(f"{n} {state.lower()}" for state, n in states.most_common())
        return self._slurm

    def _older_sums(self) -> set[Key]:
        """Summaries older than this run, though it has redone jobs that they are made from."""

        def is_new(job: Job) -> bool:
            try:
                return (self.root / job.outputs[0]).stat().st_mtime >= self.begun
            except OSError:
                return False

        new = {job.key for job in self.jobs if is_new(job)}
        return {
            job.key
            for job in self.jobs
            if job.stage in SUMMARIES and job.key not in new and new.intersection(job.needs)
        }

    def _kept(self, left: Iterable[Job], running: Iterable[Running]) -> dict[Key, float]:
        """The shares done of trainings that are not running and will resume from a checkpoint."""
        keys = {job.key for job in left}
        idle = keys - {one.job.key for one in running}
        # A training whose pack or parent weights are still to be made starts from scratch.
        able = [job for job in left if job.stage in TRAINS and job.key in idle and not keys.intersection(job.needs)]
        return {job.key: sum(done_in_checkpoints(job, self.root)) / epochs_of(job) for job in able}

    def _passes(self, done: Iterable[Job], left: list[Job], running: list[Running]) -> tuple[int, int, int]:
        trainings = {job.key: job.work.passes for job in self.jobs if job.stage in TRAINS}
        part = sum(share_done(one) * trainings[one.job.key] for one in running if one.job.key in trainings)
        kept = sum(share * trainings[key] for key, share in self._kept(left, running).items())
        whole = sum(trainings.get(job.key, 0) for job in done)
        return sum(trainings.values()), round(whole + part + kept), round(kept)

    def _seconds_left(self, left: list[Job], running: list[Running], begun: float) -> float | None:
        if not running:
            return 0.0 if not left else None
        kept = self._kept(left, running)
        return seconds_left(self.config, self.images, self.root, self.jobs, left, running, kept, begun)
