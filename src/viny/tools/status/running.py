"""What a job's claim, progress file, checkpoints and last line of log say about it."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from viny.learning.progress import PROGRESS, ProgressReport, read_progress
from viny.learning.settings import tuned_epochs
from viny.runtime.claims import Claim
from viny.runtime.files import last_lines
from viny.runtime.processes import Owner
from viny.study.graph import TRAINS, Job

STARTING = 120.0  # seconds that a training may take from its first log line to claiming its work
SCORE = "lr-*.json"  # among a tuning's checkpoints, of each rate that is scored; a folder for the one that is not
CHECKPOINT = re.compile(r"_epoch-(\d+)_step-(\d+)\.safetensors$")


@dataclass(frozen=True)
class Running:
    """How far a running job has got, as far as it reports it.

    Attributes:
        job: the job.
        epoch: epochs done, including fractions; None if the job has none.
        epochs: in total.
        loss: of the last epoch, or part of one, that was measured; None before that.
        images_per_second: in that epoch; None until this attempt has measured it.
        seconds_left: as the job reported, less the time since then.
        silent: seconds since its log was last written to.
        said: the log's last line.
        pace: image passes per second over this attempt; None until that is known.
        age: seconds since its process began; 0 if that is not known.
    """

    job: Job
    epoch: float | None
    epochs: int | None
    loss: float | None
    images_per_second: float | None
    seconds_left: float | None
    silent: float
    said: str
    pace: float | None = None
    age: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        names = ("epoch", "epochs", "loss", "images_per_second", "seconds_left", "silent", "said")
        return {"stage": self.job.stage, "job": self.job.name, **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True)
class Failed:
    """A job that ended without its outputs: its last words, and where to read more."""

    job: Job
    said: str
    log: Path


def share_done(one: Running) -> float:
    return (one.epoch or 0) / one.epochs if one.epochs else 0.0


def epochs_of(job: Job) -> int:
    """Epochs of a training; of a tuning, those of all its rates."""
    epochs, tune = job.spec["train"]["epochs"], job.spec["tune"] if job.stage == "tune" else None
    return epochs if tune is None else len(tune["lr"]) * tuned_epochs(epochs, tune["share"])


def _scored(job: Job, root: Path) -> int:
    """Epochs of the rates that a running tuning has scored."""
    if job.stage != "tune":
        return 0
    return len(list(job.checkpoints(root).glob(SCORE))) * epochs_of(job) // len(job.spec["tune"]["lr"])


def done_in_checkpoints(job: Job, root: Path) -> tuple[int, float]:
    """Whole epochs done in a training's newest checkpoint, and the share done of the next."""
    steps = math.ceil(job.work.passes / epochs_of(job) / job.spec["train"]["batch_size"])
    found = job.checkpoints(root).glob("*/*.safetensors" if job.stage == "tune" else "*.safetensors")
    names = [CHECKPOINT.search(path.name) for path in found]
    epoch, step = max(((int(m[1]) - 1, int(m[2])) for m in names if m), default=(0, 0))
    return _scored(job, root) + epoch, min(1.0, step / steps)


def state_of(job: Job, root: Path, alive: bool, begun: float, slurm: bool) -> Running | Failed | None:
    """What is known about an unfinished job; None if it is waiting."""
    log = job.log(root)
    holder = Claim(job.claim(root)).holder() if job.stage in TRAINS else None
    try:
        written = log.stat().st_mtime
        said = [line.rstrip() for line in last_lines(log) if line.strip()]
    except OSError:
        return _running(job, root, holder, [], 0.0) if holder else None
    words = _words(said)
    silent = max(0.0, time.time() - written)
    if holder:
        return _running(job, root, holder, words, silent)
    last = words[-1] if words else ""
    if _is_stop(last):
        return None  # not a failure: the next run resumes from there
    if _is_error(last, said):
        return Failed(job, last, log) if not alive or written >= begun else None
    if not alive:
        return Failed(job, f"{last or 'nothing said'} (it ended without a further word)", log)
    if written < begun:
        return None  # written by an earlier run; this one has not reached the job yet
    if job.stage in TRAINS and words and silent > STARTING:
        # Slurm may restart it by itself, on another node.
        return None if slurm else Failed(job, f"{last} (it ended without a further word)", log)
    return _running(job, root, None, words, silent)


def _words(said: Iterable[str]) -> list[str]:
    """What a log says, line by line; an error that spans several lines counts as one."""
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


def _running(job: Job, root: Path, holder: Owner | None, words: list[str], silent: float) -> Running:
    said = words[-1] if words else "starting"
    if job.stage not in TRAINS:
        return Running(job, None, None, None, None, None, silent, said)
    epochs, told, age = epochs_of(job), _told(job, root, holder), holder.age() if holder else 0.0
    if told is None:  # no report yet, or one left by an earlier attempt
        return Running(job, done_in_checkpoints(job, root)[0], epochs, None, None, None, silent, said, age=age)
    left, before, pace = told.seconds_left, _scored(job, root), told.images_per_second
    if left is not None:
        if left > 0 and told.epoch < told.epochs:
            pace = job.work.passes / epochs * (told.epochs - told.epoch) / left
        left = max(0.0, left - max(0.0, time.time() - told.written))  # another machine's clock may be ahead
        if told.images_per_second:
            further = job.work.passes / epochs * max(0, epochs - before - told.epochs)  # at a tuning's other rates
            left += further / told.images_per_second
    done = before + told.epoch
    return Running(job, done, epochs, told.loss, told.images_per_second, left, silent, said, pace, age)


def _told(job: Job, root: Path, holder: Owner | None) -> ProgressReport | None:
    """What the process that holds a training last said of it, or of the rate that a tuning tries; None if nothing."""
    paths = job.checkpoints(root).glob(f"*/{PROGRESS}") if job.stage == "tune" else [job.progress(root)]
    found = [told for path in paths if (told := read_progress(path)) is not None and told.process == holder]
    return max(found, key=lambda told: told.written, default=None)
