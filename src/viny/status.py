"""How far a study's run is: what is done, runs, failed or waits, from the files that its jobs leave and hold."""

from __future__ import annotations

import math
import re
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from viny.cells import cells
from viny.config import resolve
from viny.jobs import STAGES, SUMS, TRAININGS, Job, Key, Records, count, jobs, out_of_date, to_do
from viny.plan import Forecast, kind, rates_seen, seconds_of
from viny.processes import Claim, on_stop
from viny.slurm import active_jobs, name_file
from viny.study import read_study, study_file
from viny.terminal import console, duration, short, table

TAIL = 8192  # bytes of a log that are read
STARTING = 120.0  # seconds after its first word that a training may take to claim its work
SHOWN = 20  # failed jobs that are named
NARROW = 120  # columns of a terminal below which a running job gets less of them
ASK = 20.0  # seconds between two questions to Slurm
EPOCH = re.compile(r"epoch (\d+)/(\d+),(?: step (\d+)/(\d+),)? loss (\S+), (\d+) images/s, (\d+) s left")
WENT_ON = re.compile(r"going on from .*: epoch (\d+), ")
CHECKPOINT = re.compile(r"_epoch-(\d+)_step-(\d+)\.safetensors$")


@dataclass(frozen=True)
class Running:
    """How far a job is, as far as its log tells.

    Attributes:
        job: the job.
        epoch: epochs done, also parts of one; None of what has none.
        epochs: in all.
        loss: of the last epoch, or part of one, that the log tells of; None before it does.
        images_per_second: of that epoch.
        seconds_left: as the log said, less what has passed since.
        silent: seconds since its log was written to.
        said: the log's last line.
    """

    job: Job
    epoch: float | None
    epochs: int | None
    loss: float | None
    images_per_second: float | None
    seconds_left: float | None
    silent: float
    said: str

    def as_dict(self) -> dict[str, Any]:
        names = ("epoch", "epochs", "loss", "images_per_second", "seconds_left", "silent", "said")
        return {"stage": self.job.stage, "job": self.job.name, **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True)
class Failed:
    """A job that ended without its outputs: what it said last, and where to read more."""

    job: Job
    said: str
    log: Path


@dataclass(frozen=True)
class Status:
    """A study's state at one moment.

    Attributes:
        study: its name.
        cells: how many it has, and how many of them are evaluated.
        stages: done, out of date, running, failed and waiting jobs by stage.
        running: jobs that run.
        failed: jobs that failed, in the order of their stages.
        passes: image passes of all trainings, those done, and those of them that only checkpoints hold.
        outdated: cells that were evaluated, but on or after something else than what is there now.
        seconds_left: at the rates of this study's own jobs; None before there are any, or while nothing runs.
        holder: who runs the study, in words; empty if nobody does.
        slurm: what Slurm's queue holds of it, in words; empty for nothing.
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

    @property
    def done(self) -> bool:
        return all(set(counts) == {"done"} for counts in self.stages.values())

    @property
    def alive(self) -> bool:
        return bool(self.holder or self.slurm)

    @property
    def well(self) -> bool:
        """Whether all is done, or runs without a failure."""
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
            "done": self.done,
        }


class Watcher:
    """Reads a study's state, again and again.

    Args:
        root: the study's folder, results/<study>.

    Raises:
        InputError: it holds no study, or not its settings any more.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._records = Records()
        self._slurm, self._asked = "", -ASK
        path = study_file(root)
        self._read(path.stat().st_mtime if path.is_file() else 0.0)  # reading says what is wrong with the folder

    def _read(self, begun: float) -> None:
        self.begun = begun  # each run writes it anew
        self.config = resolve(read_study(self.root))  # an older version may have known fewer keys
        self.images = count(self.config, self.root)
        self.jobs = jobs(self.config, self.images)

    def look(self) -> Status:
        """The state now."""
        root = self.root
        holder = Claim(root / ".claim").holder()
        begun = study_file(root).stat().st_mtime
        if begun != self.begun:
            self._read(begun)
        running, failed = [], []
        slurm = self._queue()
        alive = holder is not None or bool(slurm)
        stale = out_of_date(self.jobs, root, self._records) | (self._older_sums() if alive else set())
        left = to_do(self.jobs, root, stale)
        keys = {job.key for job in left}
        done = [job for job in self.jobs if job.key not in keys]
        outdated = {job.key for job in left if job.is_done(root)}
        for job in left:
            if job.key in outdated:
                continue  # a job that begins again has no outputs any more
            found = _state(job, root, alive, begun, bool(slurm))
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
            seconds_left=self._seconds_left(done, left, running, begun),
            holder=str(holder) if holder is not None else "",
            slurm=slurm,
        )

    def _queue(self) -> str:
        """What Slurm holds of the study's last run; asked now and then, for it is everybody's."""
        if not name_file(self.root).is_file():
            return ""
        if time.monotonic() - self._asked >= ASK:
            self._asked = time.monotonic()
            states = Counter(line.split()[-1] for line in active_jobs(name_file(self.root).read_text().strip()))
            self._slurm = ", ".join(f"{n} {state.lower()}" for state, n in states.most_common())
        return self._slurm

    def _older_sums(self) -> set[Key]:
        """Sums from before this run, though it has done jobs anew that they are made from."""

        def is_new(job: Job) -> bool:
            try:
                return (self.root / job.outputs[0]).stat().st_mtime >= self.begun
            except OSError:
                return False

        new = {job.key for job in self.jobs if is_new(job)}
        return {
            job.key for job in self.jobs if job.stage in SUMS and job.key not in new and new.intersection(job.needs)
        }

    def _kept(self, left: Iterable[Job], running: Iterable[Running]) -> dict[Key, float]:
        """Shares of trainings that do not run, and go on from a checkpoint."""
        keys = {job.key for job in left}
        idle = keys - {one.job.key for one in running}
        # What is learned from a pack or weights still to come begins anew.
        able = [job for job in left if job.stage in TRAININGS and job.key in idle and not keys.intersection(job.needs)]
        return {job.key: sum(_in_checkpoints(job, self.root)) / job.spec["train"]["epochs"] for job in able}

    def _passes(self, done: Iterable[Job], left: list[Job], running: list[Running]) -> tuple[int, int, int]:
        trainings = {job.key: job.work.passes for job in self.jobs if job.stage in TRAININGS}
        part = sum(_share_done(one) * trainings[one.job.key] for one in running if one.job.key in trainings)
        kept = sum(share * trainings[key] for key, share in self._kept(left, running).items())
        whole = sum(trainings.get(job.key, 0) for job in done)
        return sum(trainings.values()), round(whole + part + kept), round(kept)

    def _beside(self, done: Iterable[Job], running: list[Running], begun: float) -> float:
        """Jobs that run side by side: as many as now, or as this run has done so far."""
        recent = [job for job in done if (file := job.benchmark(self.root)).is_file() and file.stat().st_mtime >= begun]
        spent = sum(seconds_of(job, self.root) or 0.0 for job in recent)
        return max(len(running), spent / max(1.0, time.time() - begun))

    def _seconds_left(self, done: list[Job], left: list[Job], running: list[Running], begun: float) -> float | None:
        """Seconds of what is left, shared out among the jobs that run side by side."""
        if not running:
            return 0.0 if not left else None
        seen = rates_seen(self.jobs, self.root, self.config["compute"]["train_threads"], "auto")
        for one in running:  # a stage whose first job still runs tells its rate, too
            if one.images_per_second:
                seen.images.setdefault(kind(one.job), one.images_per_second)
        if not seen.images:
            return None
        forecast = Forecast(self.config, self.images, seen, Path(self.config["pack_store"]))
        now = {one.job.key: one for one in running}
        kept = self._kept(left, running)
        total = 0.0
        for job in left:
            whole = forecast.seconds(job)
            one = now.get(job.key)
            if one is not None and one.seconds_left is not None:
                whole = one.seconds_left
            elif one is not None and job.stage in TRAININGS:
                whole *= 1 - _share_done(one)
            elif one is None:
                whole *= 1 - kept.get(job.key, 0)
            total += whole
        longest = max((one.seconds_left or 0.0 for one in running), default=0.0)
        return max(longest, total / self._beside(done, running, begun))


def _share_done(one: Running) -> float:
    return (one.epoch or 0) / one.epochs if one.epochs else 0.0


def _in_checkpoints(job: Job, root: Path) -> tuple[int, float]:
    """Whole epochs of a training that its newest checkpoint holds, and the part of the next one."""
    images = job.work.passes / job.spec["train"]["epochs"]
    steps = math.ceil(images / job.spec["train"]["batch_size"])
    names = [CHECKPOINT.search(path.name) for path in job.checkpoints(root).glob("*.safetensors")]
    epoch, step = max(((int(m[1]) - 1, int(m[2])) for m in names if m), default=(0, 0))
    return epoch, min(1.0, step / steps)


def _state(job: Job, root: Path, alive: bool, begun: float, slurm: bool) -> Running | Failed | None:
    """What is known of a job that is not done; None for one that waits."""
    log = job.log(root)
    held = job.stage in TRAININGS and Claim(job.claim(root)).holder() is not None
    try:
        written = log.stat().st_mtime
        with open(log, "rb") as f:
            f.seek(max(0, log.stat().st_size - TAIL))
            said = [line.rstrip() for line in f.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return _running(job, root, [], 0.0) if held else None
    words = _words(said)
    silent = max(0.0, time.time() - written)
    if held:
        return _running(job, root, words, silent)
    last = words[-1] if words else ""
    if _is_stop(last):
        return None  # in order: the next run goes on from there
    if _is_error(last, said):
        return Failed(job, last, log) if not alive or written >= begun else None
    if not alive:
        return Failed(job, f"{last or 'nothing said'} (it ended without a further word)", log)
    if written < begun:
        return None  # of an earlier run; this one has not come to it yet
    if job.stage in TRAININGS and words and silent > STARTING:
        # Slurm may start it again by itself, on another node.
        return None if slurm else Failed(job, f"{last} (it ended without a further word)", log)
    return _running(job, root, words, silent)


def _words(said: Iterable[str]) -> list[str]:
    """What a log says, a line each; an error of several lines is one."""
    words: list[str] = []
    for line in said:
        if line.startswith("  ") and words and words[-1].startswith("viny: "):
            words[-1] += f" {line.strip()}"
        elif not line.startswith("$ "):
            words.append(line.strip())
    return words


def _is_stop(line: str) -> bool:
    return line.startswith("viny: stopped by ")


def _is_error(last: str, said: list[str]) -> bool:
    return last.startswith("viny: ") or any(line.startswith("Traceback (most recent call last)") for line in said)


def _running(job: Job, root: Path, words: list[str], silent: float) -> Running:
    said = words[-1] if words else "starting"
    if job.stage not in TRAININGS:
        return Running(job, None, None, None, None, None, silent, said)
    epochs = job.spec["train"]["epochs"]
    for line in reversed(words):
        if found := EPOCH.search(line):
            left = max(0.0, float(found[7]) - silent)
            done = int(found[1]) if found[3] is None else int(found[1]) - 1 + int(found[3]) / int(found[4])
            return Running(job, done, epochs, float(found[5]), float(found[6]), left, silent, said)
        if found := WENT_ON.search(line):
            return Running(job, int(found[1]) - 1, epochs, None, None, None, silent, said)
    return Running(job, _in_checkpoints(job, root)[0], epochs, None, None, None, silent, said)


def show(status: Status, width: int | None = None, columns: int | None = None) -> Group:
    """A study's state for people, as rich prints it.

    Args:
        status: of `Watcher.look`.
        width: columns of the progress bar; None for none.
        columns: of the place where it is shown; None for those of standard output.
    """
    total, done, kept = status.passes
    share = done / total if total else 1.0
    who = (
        f"run by {status.holder}"
        if status.holder
        else "nothing runs it"
        if not status.slurm
        else "its snakemake is gone"
    )
    who += f"; Slurm: {status.slurm}" if status.slurm else ""
    left = f", {duration(status.seconds_left)} left" if status.running and status.seconds_left is not None else ""
    if status.running and status.seconds_left is None:
        left = ", time left not known yet"
    old = f", {status.outdated} out of date" if status.outdated else ""
    held = f", of which {100 * kept / done:.0f} % in checkpoints" if kept else ""
    parts: list[Any] = [
        Text(
            f"{status.study}: {status.cells[1]} of {status.cells[0]} cells done{old}; "
            f"{'all done' if status.done else who}"
        ),
        Text(f"{100 * share:.0f} % of {short(total)} image passes of training done{held}{left}"),
    ]
    if width:
        parts.append(ProgressBar(total=max(1, total), completed=done, width=width))
    counts = {stage: status.stages[stage] for stage in STAGES if stage in status.stages and stage not in SUMS}
    counts["sums"] = sum((status.stages[stage] for stage in SUMS if stage in status.stages), Counter())
    some_old = any(one["out of date"] for one in counts.values())
    names = ["done", *(["out of date"] if some_old else []), "running", "failed", "waiting"]
    rows = [[stage, *(str(one[n] or "") for n in names)] for stage, one in counts.items()]
    parts += [Text(""), table(["stage", *names], rows)]
    if status.running:
        parts += [Text("\nRunning:"), _running_table(status.running, (columns or console().width) < NARROW)]
    if status.failed:
        parts.append(Text("\nFailed:"))
        for one in status.failed[:SHOWN]:
            parts.append(Text(f"  {one.job.label}: {one.said[:300]}\n    read {one.log}", style="red"))
        if len(status.failed) > SHOWN:
            parts.append(Text(f"  and {len(status.failed) - SHOWN} more"))
    if not status.done and not status.alive:
        parts.append(Text("\nNot finished, and nothing runs: the same snakemake command goes on from here."))
    return Group(*parts)


def _running_table(running: Iterable[Running], narrow: bool) -> Table:
    def optional(value: float | None, text: str) -> str:
        return "" if value is None else text.format(value)

    rows = []
    for one in running:
        epoch = "" if one.epochs is None else f"{round(one.epoch, 1):g}/{one.epochs}"
        left = "" if one.seconds_left is None else duration(one.seconds_left)
        rate = optional(one.images_per_second, "{:.0f}")
        heard = f"{duration(one.silent)} ago"
        rows.append(
            [one.job.label, epoch, optional(one.loss, "{:.4f}"), rate, left, heard, "" if one.loss else one.said]
        )
    if narrow:
        return table(["job", "epochs", "loss", "img/s", "left"], [row[:5] for row in rows])
    columns = ["job", "epochs done", "loss", "images/s", "left", "log written", "its last line"]
    return table(columns, rows, right=range(1, 6))


def watch(root: Path, seconds: float = 2.0) -> Status:
    """Show a study's state, anew every some seconds, until its run ends or Ctrl-C.

    Args:
        root: the study's folder.
        seconds: between two looks.

    Returns:
        The last state.
    """
    left = threading.Event()
    watcher, out = Watcher(root), console()
    status = watcher.look()

    def shown() -> Group:
        # The terminal writes ^C behind the last line; a full one would go on in the next, and the view with it.
        hint = [Text("\nCtrl-C ends this view; the run goes on.")] if status.alive else []
        return Group(show(status, 60, out.width), *hint)

    with on_stop(lambda number: left.set()), Live(shown(), console=out, auto_refresh=False) as live:
        while status.alive and not left.wait(seconds):
            status = watcher.look()
            live.update(shown(), refresh=True)
    return status
