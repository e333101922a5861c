"""The one training loop of all stages."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from viny.errors import InputError
from viny.files import atomic_path
from viny.learning.batches import BatchMaker
from viny.learning.checkpoint import Checkpoints, Progress
from viny.processes import Stopped, on_stop
from viny.seeds import generator
from viny.settings import TrainSettings

LEAST_SHARD = 8  # images for which a thread of its own is worth while
LOOK = 10.0  # seconds between two looks at the losses within an epoch, and between two lines in a log
CURVE_COLUMNS = ("epoch", "loss", "lr", "images_per_second", "seconds")


class TrainingError(RuntimeError):
    """Training cannot go on: the message says at which stage, epoch and rate, and what to try."""


@dataclass(frozen=True)
class Machine:
    """Where and in which precision a job computes."""

    device: torch.device
    precision: str  # float32 or bfloat16

    @classmethod
    def choose(cls, device: str, precision: str, threads: int) -> Machine:
        """Turn 'auto' into what this machine does best, and set PyTorch's thread count.

        Raises:
            InputError: a GPU is asked for and there is none.
        """
        torch.set_num_threads(threads)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        elif device == "cuda" and not torch.cuda.is_available():
            raise InputError("compute.device: 'cuda', but PyTorch finds no GPU here; use auto or cpu")
        if precision == "auto":
            precision = "bfloat16" if computes_in_bfloat16(device) else "float32"
        return cls(torch.device(device), precision)

    @contextmanager
    def autocast(self) -> Iterator[None]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            yield

    @property
    def fused_attention(self) -> bool:
        # Measured for 64 tokens: on a CPU one head after the other is a tenth faster in float32, and twice as
        # fast in bfloat16, as PyTorch's fused kernel.
        return self.device.type == "cuda"


def computes_in_bfloat16(device: str) -> bool:
    """Whether matrix products in bfloat16 are native, not emulated."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return any(flag is not None and flag() for flag in flags)


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

    What is random in a step is a function of (seed, stage, epoch, step) alone, so a run that was stopped at
    any step and goes on ends where an undisturbed one does. SIGTERM, SIGINT and SIGHUP end the step under way
    and write a checkpoint.

    Args:
        objective: a module with `loss(batch)`.
        batches: makes the batch of some positions in the training list.
        count: length of the training list.
        settings: epochs, optimiser, rates.
        machine: device and precision.
        seed: of the run.
        stage: name of the stage, for the draws and for messages.
        curve_path: CSV to write, a row an epoch.
        checkpoints: of this run; None for none.

    Returns:
        The curve, the seconds that training took, and the earlier attempts.

    Raises:
        TrainingError: the loss or the weights became NaN or infinite.
        Stopped: a signal came.
    """
    objective.to(machine.device).train()
    objective.encoder.set_fused_attention(machine.fused_attention)
    optimizer = make_optimizer(objective, settings, machine.device)
    progress = checkpoints.load(objective, optimizer) if checkpoints else Progress()
    watch = _Watch(objective, optimizer, settings, stage, progress, checkpoints)
    steps = math.ceil(count / settings.batch_size)
    report = _Report(stage, settings.epochs, progress.epoch + len(progress.losses) / steps)
    with on_stop(watch.stop), report, Gradients(objective, machine, settings.batch_size) as gradients:
        while progress.epoch < settings.epochs:
            epoch, started, done_before = progress.epoch, time.monotonic(), len(progress.losses)
            for group in optimizer.param_groups:
                group["lr"] = rate(settings, epoch)
            order = _order(count, settings.batch_size, seed, stage, epoch)
            for step in range(done_before, len(order)):
                draws = generator(seed, stage, epoch, step)
                loss = _step(gradients, batches, optimizer, order[step], draws)
                progress.losses.append(loss * len(order[step]))
                if (total := watch.after_step()) is not None:
                    seen = sum(map(len, order[: step + 1]))
                    here = seen - sum(map(len, order[:done_before]))
                    report.within(epoch, step + 1, steps, total / seen, here / (time.monotonic() - started))
            loss = watch.finite() / count  # the epoch's one wait for the device
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
    """Keeps a run safe between its steps: stop signals, checkpoints, losses that are numbers."""

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
        """Do what is due; give the summed loss of the epoch so far where it was looked at. Else a step costs little."""
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
        """Summed loss of the epoch so far, once it and the weights are known to be numbers.

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
    """A progress bar on a terminal; in a log a line now and then, and at the end."""

    def __init__(self, stage: str, epochs: int, done: float) -> None:
        self.stage, self.epochs, self.first = stage, epochs, done
        self._began = self._shown = time.monotonic()
        self._bar = tqdm(total=epochs, initial=int(done), desc=stage, unit="epoch", mininterval=1.0, disable=None)

    def __enter__(self) -> None:
        self._bar.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)

    def show(self, row: dict[str, float]) -> None:
        self._bar.set_postfix(loss=f"{row['loss']:.4f}", images=f"{row['images_per_second']:.0f}/s")
        self._bar.update()
        if time.monotonic() - self._shown > LOOK or row["epoch"] == self.epochs:
            self._say(row["epoch"], f"epoch {row['epoch']}/{self.epochs}", row["loss"], row["images_per_second"])

    def within(self, epoch: int, step: int, steps: int, loss: float, rate: float) -> None:
        """Tell of a long epoch: epochs done, steps done of it, mean loss of these, images a second."""
        if time.monotonic() - self._shown > LOOK:
            where = f"epoch {epoch + 1}/{self.epochs}, step {step}/{steps}"
            self._say(epoch + step / steps, where, loss, rate)

    def _say(self, done: float, where: str, loss: float, rate: float) -> None:
        if not self._bar.disable:
            return
        self._shown = time.monotonic()
        # A run that goes on after the last step of all has nothing left to do.
        left = (self._shown - self._began) / (done - self.first) * (self.epochs - done) if done > self.first else 0.0
        print(f"{self.stage}: {where}, loss {loss:.4f}, {rate:.0f} images/s, {left:.0f} s left", flush=True)


def _order(count: int, batch_size: int, seed: int, stage: str, epoch: int) -> tuple[Tensor, ...]:
    order = torch.randperm(count, generator=generator(seed, stage, epoch, "order"))
    return order.split(batch_size)


class _Loss(nn.Module):
    """An objective's loss as a module of its own, which PyTorch can make a CUDA graph of."""

    def __init__(self, objective: nn.Module, machine: Machine) -> None:
        super().__init__()
        self.objective, self.machine = objective, machine

    def forward(self, *batch: Tensor) -> Tensor:
        bfloat16 = self.machine.precision == "bfloat16"
        with torch.autocast(self.machine.device.type, torch.bfloat16, enabled=bfloat16, cache_enabled=False):
            return self.objective.loss(batch)


def capture(objective: nn.Module, machine: Machine, batch: tuple[Tensor, ...]) -> nn.Module | None:
    """A CUDA graph of an objective's forward and backward pass for batches of this shape.

    A small transformer's step is hundreds of short kernels, whose launches take longer than they; a graph launches
    them at once. The graph is held against the loss of the same batch without it, and None is returned, with a
    line that says why, where they differ or no graph can be made.
    """
    plain = _Loss(objective, machine)
    with torch.no_grad():
        expected = float(plain(*batch))
    try:
        graph = torch.cuda.make_graphed_callables(plain, tuple(part.clone() for part in batch), allow_unused_input=True)
        found = float(graph(*batch).detach())
    except RuntimeError as error:
        print(f"no CUDA graph ({error}); each operation is launched by itself", flush=True)
        return None
    if not math.isclose(found, expected, rel_tol=0.01, abs_tol=1e-4):
        print(f"a CUDA graph gives loss {found:g}, not {expected:g}; each operation is launched by itself", flush=True)
        return None
    return graph


class Gradients:
    """Gradients of a batch's loss: on a GPU by a CUDA graph, on a CPU from one shard of the batch a thread.

    The matrix products of a small transformer are too small to be worth sharing out among threads one by one; a
    thread that takes some images through the whole model waits for the others once a step. The loss of every
    objective is a mean over images, so the shards' gradients add up to the batch's, in the same order every time.
    """

    def __init__(self, objective: nn.Module, machine: Machine, batch_size: int) -> None:
        self.objective, self.machine = objective, machine
        self.parameters = list(objective.parameters())
        threads = torch.get_num_threads() if machine.device.type == "cpu" else 1
        self.batch_size = batch_size
        self._graph: nn.Module | None = None
        self._to_capture = machine.device.type == "cuda"
        self.shards = max(1, min(threads, batch_size // LEAST_SHARD))
        self._pool: ThreadPoolExecutor | None = None
        if self.shards > 1:
            # The number of threads within an operation is each thread's own; this one's stays as it is.
            self._pool = ThreadPoolExecutor(self.shards, "shard", torch.set_num_threads, (threads // self.shards,))

    def __enter__(self) -> Gradients:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def compute(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Fill the parameters' gradients; returns the loss, without its graph."""
        if self._pool is None:
            for parameter in self.parameters:
                parameter.grad = None
            if self._to_capture:
                self._to_capture = False
                if len(batch[0]) == self.batch_size:
                    self._graph = capture(self.objective, self.machine, batch)
            if self._graph is not None and len(batch[0]) == self.batch_size:
                loss = self._graph(*batch)
                loss.backward()
                return loss.detach().clone()  # the next step writes where this one's is
            with self.machine.autocast():
                loss = self.objective.loss(batch)
            loss.backward()
            return loss.detach()
        shards = list(zip(*(part.chunk(self.shards) for part in batch), strict=True))
        losses, gradients = zip(*self._pool.map(partial(self._of_shard, count=len(batch[0])), shards), strict=True)
        # None for what the loss does not use, such as the class token where there is none: no decay for it either.
        used = [at for at, gradient in enumerate(gradients[0]) if gradient is not None]
        total = [gradients[0][at] for at in used]
        for other in gradients[1:]:
            torch._foreach_add_(total, [other[at] for at in used])
        for at, gradient in zip(used, total, strict=True):
            self.parameters[at].grad = gradient
        return torch.stack(losses).sum()

    def _of_shard(self, shard: tuple[Tensor, ...], count: int) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        with self.machine.autocast():
            loss = self.objective.loss(shard) * (len(shard[0]) / count)
        return loss.detach(), torch.autograd.grad(loss, self.parameters, allow_unused=True)


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
