"""The training loop that all stages share."""

from __future__ import annotations

import csv
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from viny.learning.batches import BatchMaker
from viny.learning.checkpoint import Checkpoints, Progress
from viny.learning.gradients import Gradients
from viny.learning.machine import Machine
from viny.learning.progress import ProgressReport, ProgressWriter
from viny.learning.settings import TrainSettings
from viny.runtime.errors import TrainingError
from viny.runtime.files import atomic_path
from viny.runtime.seeds import generator
from viny.runtime.signals import Stopped, on_stop

LOOK = 10.0  # seconds between checks of the losses within an epoch, and between progress reports
CURVE_COLUMNS = ("epoch", "loss", "lr", "images_per_second", "seconds")


def make_optimizer(model: nn.Module, settings: TrainSettings, device: torch.device) -> torch.optim.Optimizer:
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    return kind(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True)


def rate(settings: TrainSettings, epoch: int) -> float:
    """Learning rate of an epoch, counted from 0, under MultiStepLR."""
    return settings.lr * settings.gamma ** sum(m <= epoch for m in settings.milestones)


def fit(
    objective: nn.Module,
    batches: BatchMaker,
    count: int,
    settings: TrainSettings,
    machine: Machine,
    seed: int,
    stage: str,
    curve_path: Path,
    checkpoints: Checkpoints | None = None,
) -> Progress:
    """Train an objective in place, from its newest checkpoint if it has one.

    The random draws of a step depend on (seed, stage, epoch, step) alone, so a run that is stopped at any step
    and resumed ends where an undisturbed one does. On SIGTERM, SIGINT or SIGHUP, the current step is finished
    and a checkpoint written. Progress is kept beside the checkpoints, see `viny.learning.progress`.

    Args:
        objective: a module with `loss(batch)`.
        batches: makes the batch for given positions in the training list.
        count: length of the training list.
        settings: epochs, optimiser, rates.
        machine: device and precision.
        seed: the run's.
        stage: the stage's name, for random draws and messages.
        curve_path: CSV to write, one row per epoch.
        checkpoints: this run's; None to keep none.

    Returns:
        The curve, the seconds spent training, and the earlier attempts.

    Raises:
        TrainingError: the loss or the weights became NaN or infinite.
        Stopped: a signal arrived.
    """
    objective.to(machine.device).train()
    objective.encoder.set_fused_attention(machine.fused_attention)
    optimizer = make_optimizer(objective, settings, machine.device)
    progress = checkpoints.load(objective, optimizer) if checkpoints else Progress()
    watch = _Watch(objective, optimizer, settings, stage, progress, checkpoints)
    steps = math.ceil(count / settings.batch_size)
    report = _Report(stage, settings.epochs, steps, progress, checkpoints)
    with on_stop(watch.stop), report, Gradients(objective, machine, settings.batch_size) as gradients:
        while progress.epoch < settings.epochs:
            epoch, started, done_before = progress.epoch, time.monotonic(), len(progress.losses)
            for group in optimizer.param_groups:
                group["lr"] = rate(settings, epoch)
            order = epoch_order(count, settings.batch_size, seed, stage, epoch)
            for step in range(done_before, len(order)):
                draws = generator(seed, stage, epoch, step)
                loss = _step(gradients, batches, optimizer, order[step], draws)
                progress.losses.append(loss * len(order[step]))
                if (total := watch.after_step()) is not None:
                    seen = sum(map(len, order[: step + 1]))
                    here = seen - sum(map(len, order[:done_before]))
                    report.within(total / seen, here / (time.monotonic() - started))
            loss = watch.finite() / count  # the epoch's only wait for the device
            images = sum(map(len, order[done_before:]))
            row = {
                "epoch": epoch + 1,
                "loss": loss,
                "lr": rate(settings, epoch),
                "images_per_second": images / (time.monotonic() - started) if images else 0.0,
                "seconds": watch.seconds,
            }
            progress.curve.append(row)
            progress.epoch, progress.losses = epoch + 1, []
            report.show(row)
    progress.seconds = watch.seconds
    _write_curve(curve_path, progress.curve)
    return progress


class _Watch:
    """Looks after a run between its steps: stop signals, checkpoints, losses that are not finite."""

    def __init__(
        self,
        objective: nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: TrainSettings,
        stage: str,
        progress: Progress,
        checkpoints: Checkpoints | None,
    ) -> None:
        self.objective, self.optimizer, self.settings = objective, optimizer, settings
        self.stage, self.progress, self.checkpoints = stage, progress, checkpoints
        self._before, self._began = progress.seconds, time.monotonic()
        self._looked = self._began
        self._signal = 0

    @property
    def seconds(self) -> float:
        return self._before + time.monotonic() - self._began

    def stop(self, number: int) -> None:
        self._signal = self._signal or number

    def after_step(self) -> float | None:
        """Do what is due. Returns the epoch's summed loss so far if it was checked; if not, this costs little."""
        if self._signal:
            self._save_and_stop()
        total = None
        if self.checkpoints and self.checkpoints.due:
            total = self.finite()
            self._save()
        elif time.monotonic() - self._looked > LOOK:
            total = self.finite()
        return total

    def _save(self) -> Path | None:
        assert self.checkpoints is not None
        spent = self.seconds
        saved = replace(self.progress, seconds=spent)
        return self.checkpoints.save(self.objective, self.optimizer, saved)

    def _save_and_stop(self) -> None:
        where = f"in epoch {self.progress.epoch + 1} of {self.settings.epochs}"
        if self.checkpoints is None:
            raise Stopped(self._signal, f"{where}; without a folder for checkpoints its work is lost")
        self.finite()
        path = self._save()
        kept = f"the next run goes on from {path}" if path else "no checkpoint could be written"
        raise Stopped(self._signal, f"{where}, step {len(self.progress.losses)}; {kept}")

    def finite(self) -> float:
        """The epoch's summed loss so far, once it and the weights are known to be finite.

        Raises:
            TrainingError: they are not.
        """
        self._looked = time.monotonic()
        losses = self.progress.losses
        total = float(torch.stack(losses).sum()) if losses else 0.0
        weights = torch.stack([p.isfinite().all() for p in self.objective.parameters()]).all()
        if math.isfinite(total) and bool(weights):
            return total
        each = torch.stack(losses).cpu()
        bad = (~each.isfinite()).nonzero().flatten().tolist()
        what = f"the loss became {float(each[bad[0]])}" if bad else "the weights became NaN or infinite"
        step = bad[0] + 1 if bad else len(losses)
        kept = self.checkpoints.newest() if self.checkpoints else None
        raise TrainingError(
            f"{self.stage}: {what} in epoch {self.progress.epoch + 1} of {self.settings.epochs}, step {step}, at rate "
            f"{rate(self.settings, self.progress.epoch):g}; lower {self.stage}.lr or check the images"
            + (f". The last good checkpoint is {kept}" if kept else "")
        )


class _Report:
    """Shows a run's progress: a bar on a terminal, a line in a log now and then, a file beside its checkpoints."""

    def __init__(
        self, stage: str, epochs: int, steps: int, progress: Progress, checkpoints: Checkpoints | None
    ) -> None:
        self.stage, self.epochs, self.steps, self.progress = stage, epochs, steps, progress
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
    def _left(self) -> float:
        done = self._done - self._first
        # A run resumed after its very last step has nothing left to do.
        return (time.monotonic() - self._began) / done * (self.epochs - self._done) if done > 0 else 0.0

    def show(self, row: dict[str, float]) -> None:
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
            speed = f"{self._rate:.0f} images/s, {self._left:.0f} s left"
            print(f"{self.stage}: {where}, loss {self._loss:.4f}, {speed}", flush=True)
        self._write()

    def _write(self) -> None:
        if self._writer is not None:
            left = None if self._rate is None else self._left
            step = len(self.progress.losses)
            report = ProgressReport(self._done, self.epochs, step, self.steps, self._loss, self._rate, left)
            self._writer.write(report)


def epoch_order(count: int, batch_size: int, seed: int, stage: str, epoch: int) -> tuple[Tensor, ...]:
    order = torch.randperm(count, generator=generator(seed, stage, epoch, "order"))
    return order.split(batch_size)


def _step(
    gradients: Gradients,
    batches: BatchMaker,
    optimizer: torch.optim.Optimizer,
    positions: Tensor,
    draws: torch.Generator,
) -> Tensor:
    loss = gradients.compute(batches(positions, draws))
    optimizer.step()
    return loss


def _write_curve(path: Path, rows: list[dict[str, float]]) -> None:
    with atomic_path(path) as tmp, open(tmp, "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, CURVE_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
