"""A training run between its steps: where it is, its losses, its curve, its checkpoints, its reports."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from viny.learning.checkpoint import Checkpoints, Progress
from viny.learning.optimizer import Adam
from viny.learning.progress import ProgressReport, ProgressWriter
from viny.learning.settings import TrainSettings, measured_epochs
from viny.runtime.errors import TrainingError
from viny.runtime.files import atomic_path
from viny.runtime.processes import Owner
from viny.runtime.seeds import generator
from viny.runtime.signals import Stopped

LOOK = 10.0  # seconds between checks of the losses within an epoch, and between progress reports
CURVE_COLUMNS = ("epoch", "loss", "lr", "images_per_second", "seconds")
HELD_OUT = "held_out_loss"  # a further column, where images are held out

# (positions in the training list [B], generator of the step) -> what the objective's loss takes
BatchMaker = Callable[[Tensor, torch.Generator], Any]


def rate(settings: TrainSettings, epoch: int) -> float:
    """Learning rate of an epoch, counted from 0, under MultiStepLR."""
    return settings.lr * settings.gamma ** sum(m <= epoch for m in settings.milestones)


@dataclass(frozen=True)
class Step:
    """A step of a run: where it stands, counted from 0, and the positions [B] of its images in the training list."""

    epoch: int
    number: int
    positions: Tensor


class Run:
    """A training run between its steps: where it is, its curve, its checkpoints, its reports.

    The random draws of a step depend on (seed, stage, epoch, step) alone, so a run that is stopped at any step
    and resumed ends where an undisturbed one does. Progress is kept beside the checkpoints, see
    `viny.learning.progress`.

    Args:
        objective: a module with `loss(batch)`, on the device where it is trained.
        batches: makes the batch for given positions in the training list.
        count: length of the training list.
        settings: epochs, optimiser, rates.
        seed: the run's.
        stage: the stage's name, for random draws and messages.
        curve_path: CSV to write, one row per epoch; None: none.
        checkpoints: this run's; None to keep none. The run goes on from the newest.
        owner: the process whose job the run is; None: this one.
        held_out: the loss of the objective, as it is then, on images that it does not train on; None: not measured.
    """

    def __init__(
        self,
        objective: nn.Module,
        batches: BatchMaker,
        count: int,
        settings: TrainSettings,
        seed: int,
        stage: str,
        curve_path: Path | None,
        checkpoints: Checkpoints | None = None,
        owner: Owner | None = None,
        held_out: Callable[[], float] | None = None,
    ) -> None:
        self.objective, self.batches, self.count, self.settings = objective, batches, count, settings
        self.seed, self.stage, self.curve_path, self.checkpoints = seed, stage, curve_path, checkpoints
        self.held_out = held_out
        self.measured = measured_epochs(settings.epochs, settings.milestones) if held_out else set()
        self.optimizer = Adam(objective, settings)
        self.progress = checkpoints.load(objective, self.optimizer) if checkpoints else Progress()
        self.report = _Report(
            stage, settings.epochs, math.ceil(count / settings.batch_size), self.progress, checkpoints, owner
        )
        self._before = self.progress.seconds
        self.use(lambda: time.monotonic())
        self.keep_weights()
        self._looked = time.monotonic()
        self._signal = 0

    def use(self, clock: Callable[[], float]) -> None:
        """Take time from another clock from now on: seconds of the machine, which a stack's runs share."""
        self.clock = clock
        self._began, self._wall = clock(), time.monotonic()
        self._start_epoch(self._began)

    def keep_weights(self) -> None:
        """See from now on by the objective's own weights whether they are finite; an engine says so of those it has."""
        self.sound = self._sound

    @property
    def finished(self) -> bool:
        return self.progress.epoch == self.settings.epochs

    @property
    def epoch_is_over(self) -> bool:
        """Whether the last step of an epoch was taken that is still to be closed."""
        return len(self.progress.losses) == self.report.steps

    @property
    def unmeasured(self) -> bool:
        """Whether the loss on held-out images is to be measured before the next step is taken."""
        return not self.progress.losses and self._lacks(self.progress.epoch)

    def waits(self, step: Step) -> bool:
        """Whether no step after this one may be taken yet, as a loss is to be measured with the weights it leaves."""
        return step.number + 1 == self.report.steps and self._lacks(step.epoch + 1)

    def _lacks(self, epochs: int) -> bool:
        """Whether a loss on held-out images is due after so many epochs and not known."""
        if epochs not in self.measured:
            return False
        curve = self.progress.curve
        return len(curve) < epochs or curve[epochs - 1][HELD_OUT] is None

    @property
    def seconds(self) -> float:
        """Spent training, over all attempts."""
        return self._before + self.clock() - self._began

    @property
    def stacked(self) -> float:
        """How many runs have shared the machine in this attempt, this one included, on average over time."""
        used = self.clock() - self._began
        return max(1.0, (time.monotonic() - self._wall) / used) if used > 0 else 1.0

    @property
    def signal(self) -> int:
        """Number of the stop signal that arrived; 0 for none."""
        return self._signal

    @property
    def to_be_saved(self) -> bool:
        """Whether `look` will write a checkpoint, of the objective and the optimiser as they are then."""
        return bool(self._signal) or (self.checkpoints is not None and self.checkpoints.due)

    def stop(self, number: int) -> None:
        """Note a stop signal; the run stops when it is next looked after."""
        self._signal = self._signal or number

    def steps(self) -> Iterator[Step]:
        """The steps from here to the end. They may be asked for ahead of the run."""
        done = len(self.progress.losses)
        for epoch in range(self.progress.epoch, self.settings.epochs):
            order = epoch_order(self.count, self.settings.batch_size, self.seed, self.stage, epoch)
            for number in range(done, len(order)):
                yield Step(epoch, number, order[number])
            done = 0

    def draws(self, step: Step) -> torch.Generator:
        """The source of a step's draws."""
        return generator(self.seed, self.stage, step.epoch, step.number)

    def _start_epoch(self, now: float) -> None:
        self._epoch_began, self._images, self._noted = now, 0, now

    def took(self, step: Step, loss: Tensor) -> None:
        """Note a step's loss, a scalar, the mean over its images."""
        self.progress.losses.append(loss * len(step.positions))
        self._images += len(step.positions)

    def took_together(self, taken: Sequence[tuple[Step, Tensor]]) -> None:
        """Note steps whose losses arrived together, and close the epochs that end among them.

        Each step counts as long as the others, else epochs of few steps would seem to take no time at all.

        Raises:
            TrainingError: the loss or the weights became NaN or infinite.
        """
        before, now = self._noted, self.clock()
        for number, (step, loss) in enumerate(taken, 1):
            self.took(step, loss)
            self.end_epoch(before + (now - before) * number / len(taken))
        self._noted = now

    def end_epoch(self, now: float | None = None) -> None:
        """Close the epoch if its last step was taken.

        Args:
            now: when that was, by the run's clock; None: just now.

        Raises:
            TrainingError: the loss or the weights became NaN or infinite.
        """
        if not self.epoch_is_over:
            return
        loss = self.finite() / self.count  # the epoch's only wait for the device
        now = self.clock() if now is None else now
        epoch, images, taken = self.progress.epoch, self._images, now - self._epoch_began
        row = {
            "epoch": epoch + 1,
            "loss": loss,
            "lr": rate(self.settings, epoch),
            "images_per_second": images / taken if images and taken > 0 else 0.0,
            "seconds": self._before + now - self._began,
        }
        if self.measured:
            row[HELD_OUT] = None
        self.progress.curve.append(row)
        self.progress.epoch, self.progress.losses = epoch + 1, []
        self._start_epoch(now)
        self.report.show(row)

    def measure(self) -> None:
        """Measure the loss on held-out images if that is due, by the objective's own weights, which are up to date.

        The time that it takes is not time of training.

        Raises:
            TrainingError: that loss is NaN or infinite.
        """
        if not self.unmeasured:
            return
        assert self.held_out is not None
        now, wall = self.clock(), time.monotonic()
        loss = self.held_out()
        epoch = self.progress.epoch
        if not math.isfinite(loss):
            raise TrainingError(
                f"{self.stage}: the loss on held-out images became {loss} after epoch {epoch} of "
                f"{self.settings.epochs}; lower {self.stage}.lr or check the images"
            )
        self.progress.curve[-1][HELD_OUT] = loss
        self._wall += time.monotonic() - wall
        later = self.clock()
        self._began += later - now
        self._start_epoch(later)

    def look(self, save: bool | None = None) -> None:
        """Do what is due between two steps; if nothing is, this costs little.

        Args:
            save: whether a checkpoint may be written: what `to_be_saved` was when the objective was last known to be up
                to date; None: what it is now.

        Raises:
            TrainingError: the loss or the weights became NaN or infinite.
            Stopped: a signal arrived; a checkpoint was written.
        """
        save = self.to_be_saved if save is None else save
        if save and self._signal:
            self.save_and_stop()
        total = None
        if save and self.checkpoints:
            total = self.finite()
            self.save()
        elif time.monotonic() - self._looked > LOOK:
            total = self.finite()
        if total is not None and self._images:
            seen = min(len(self.progress.losses) * self.settings.batch_size, self.count)
            self.report.within(total / seen, self._images / (self.clock() - self._epoch_began))

    def save(self) -> Path | None:
        """Write a checkpoint; returns the file, or None if it could not be written."""
        assert self.checkpoints is not None
        saved = replace(self.progress, seconds=self.seconds)
        return self.checkpoints.save(self.objective, self.optimizer, saved)

    def save_and_stop(self) -> None:
        """Write a checkpoint and raise Stopped, because of the signal that arrived."""
        where = f"in epoch {self.progress.epoch + 1} of {self.settings.epochs}"
        if self.checkpoints is None:
            raise Stopped(self._signal, f"{where}; without a folder for checkpoints its work is lost")
        self.finite()
        path = self.save()
        kept = f"the next run goes on from {path}" if path else "no checkpoint could be written"
        raise Stopped(self._signal, f"{where}, step {len(self.progress.losses)}; {kept}")

    def _sound(self) -> bool:
        return bool(torch.stack([p.isfinite().all() for p in self.objective.parameters()]).all())

    def finite(self) -> float:
        """The epoch's summed loss so far, once it and the weights are known to be finite.

        Raises:
            TrainingError: they are not.
        """
        self._looked = time.monotonic()
        losses = self.progress.losses
        total = float(torch.stack(losses).sum()) if losses else 0.0
        if math.isfinite(total) and self.sound():
            return total
        each = [float(loss) for loss in losses]
        bad = [at for at, loss in enumerate(each) if not math.isfinite(loss)]
        what = f"the loss became {each[bad[0]]}" if bad else "the weights became NaN or infinite"
        epoch, step = self.progress.epoch, bad[0] + 1 if bad else len(losses)
        if not step:  # of an epoch that has just begun: it was the last step of the one before
            epoch, step = epoch - 1, self.report.steps
        kept = self.checkpoints.newest() if self.checkpoints else None
        raise TrainingError(
            f"{self.stage}: {what} in epoch {epoch + 1} of {self.settings.epochs}, step {step}, at rate "
            f"{rate(self.settings, epoch):g}; lower {self.stage}.lr or check the images"
            + (f". The last good checkpoint is {kept}" if kept else "")
        )

    def finish(self) -> Progress:
        """Write the curve of a finished run; returns the curve, the seconds spent and the earlier attempts."""
        self.progress.seconds = self.seconds
        if self.curve_path is not None:
            columns = (*CURVE_COLUMNS, HELD_OUT) if self.measured else CURVE_COLUMNS
            _write_curve(self.curve_path, self.progress.curve, columns)
        return self.progress


class _Report:
    """Shows a run's progress: a bar on a terminal, a line in a log now and then, a file beside its checkpoints."""

    def __init__(
        self,
        stage: str,
        epochs: int,
        steps: int,
        progress: Progress,
        checkpoints: Checkpoints | None,
        owner: Owner | None,
    ) -> None:
        self.stage, self.epochs, self.steps, self.progress = stage, epochs, steps, progress
        self._owner = owner or Owner.me()
        self._writer = ProgressWriter(checkpoints.folder) if checkpoints else None
        self._first = self._done
        self._began = self._told = time.monotonic()
        self._loss: float | None = progress.curve[-1]["loss"] if progress.curve else None
        self._rate: float | None = None
        self._bar = tqdm(total=epochs, initial=progress.epoch, desc=stage, unit="epoch", mininterval=1.0, disable=None)

    def __enter__(self) -> None:
        self._bar.__enter__()
        self._write()

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        self._bar.__exit__(kind, *error)
        if kind is not None and issubclass(kind, Stopped):
            self._write()  # the same progress as its checkpoint

    @property
    def _done(self) -> float:
        return self.progress.epoch + len(self.progress.losses) / self.steps

    @property
    def left(self) -> float:
        """Seconds until the end, at this attempt's rate so far."""
        done = self._done - self._first
        # A run resumed after its very last step has nothing left to do.
        return (time.monotonic() - self._began) / done * (self.epochs - self._done) if done > 0 else 0.0

    def show(self, row: dict[str, Any]) -> None:
        """Report a finished epoch."""
        self._bar.set_postfix(loss=f"{row['loss']:.4f}", images=f"{row['images_per_second']:.0f}/s")
        self._bar.update()
        self._loss, self._rate = row["loss"], row["images_per_second"]
        if time.monotonic() - self._told > LOOK or self.progress.epoch == self.epochs:
            self._tell(f"epoch {self.progress.epoch}/{self.epochs}")

    def within(self, loss: float, rate: float) -> None:
        """Report in the middle of a long epoch: its mean loss so far, images per second."""
        self._loss, self._rate = loss, rate
        if time.monotonic() - self._told > LOOK:
            self._tell(f"epoch {self.progress.epoch + 1}/{self.epochs}, step {len(self.progress.losses)}/{self.steps}")

    def _tell(self, where: str) -> None:
        self._told = time.monotonic()
        if self._bar.disable:
            speed = f"{self._rate:.0f} images/s, {self.left:.0f} s left"
            print(f"{self.stage}: {where}, loss {self._loss:.4f}, {speed}", flush=True)
        self._write()

    def _write(self) -> None:
        if self._writer is not None:
            left = None if self._rate is None else self.left
            step = len(self.progress.losses)
            place = self._done, self.epochs, step, self.steps
            report = ProgressReport(*place, self._loss, self._rate, left, process=self._owner)
            self._writer.write(report)


def epoch_order(count: int, batch_size: int, seed: int, stage: str, epoch: int) -> tuple[Tensor, ...]:
    order = torch.randperm(count, generator=generator(seed, stage, epoch, "order"))
    return order.split(batch_size)


def _write_curve(path: Path, rows: list[dict[str, Any]], columns: Sequence[str]) -> None:
    with atomic_path(path) as tmp, open(tmp, "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, columns)
        writer.writeheader()
        writer.writerows(rows)
