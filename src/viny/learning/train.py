"""The one training loop of all stages."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from viny.errors import InputError
from viny.files import atomic_path
from viny.learning.batches import BatchMaker
from viny.seeds import generator
from viny.settings import TrainSettings

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
        # Measured for 64 tokens: on a CPU the fused kernel wins in float32 by a tenth and loses in
        # bfloat16 by a factor of 2.5.
        return self.device.type == "cuda" or self.precision == "float32"


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
) -> list[dict[str, float]]:
    """Train an objective in place.

    What is random in a step is a function of (seed, stage, epoch, step) alone.

    Args:
        objective: a module with `loss(batch)`.
        batches: makes the batch of some positions in the training list.
        count: length of the training list.
        settings: epochs, optimiser, rates.
        machine: device and precision.
        seed: of the run.
        stage: name of the stage, for the draws and for messages.
        curve_path: CSV to write, a row an epoch.

    Returns:
        The rows of the curve.

    Raises:
        TrainingError: the loss became NaN or infinite.
    """
    objective.to(machine.device).train()
    objective.encoder.set_fused_attention(machine.fused_attention)
    optimizer = make_optimizer(objective, settings, machine.device)
    rows: list[dict[str, float]] = []
    began = time.monotonic()
    shown = began
    bar = tqdm(range(settings.epochs), desc=stage, unit="epoch", mininterval=1.0, disable=None)
    for epoch in bar:
        start = time.monotonic()
        for group in optimizer.param_groups:
            group["lr"] = rate(settings, epoch)
        losses = [
            _step(objective, batches, optimizer, machine, positions, generator(seed, stage, epoch, step))
            * len(positions)
            for step, positions in enumerate(_order(count, settings.batch_size, seed, stage, epoch))
        ]
        loss = float(torch.stack(losses).sum()) / count  # the epoch's one wait for the device
        if not math.isfinite(loss):
            raise TrainingError(
                f"{stage}: the loss became {loss} in epoch {epoch + 1} of {settings.epochs} at rate "
                f"{rate(settings, epoch):g}; lower {stage}.lr or check the images"
            )
        now = time.monotonic()
        row = {
            "epoch": epoch + 1,
            "loss": loss,
            "lr": rate(settings, epoch),
            "images_per_second": count / (now - start),
            "seconds": now - began,
        }
        rows.append(row)
        bar.set_postfix(loss=f"{loss:.4f}", images=f"{row['images_per_second']:.0f}/s")
        if bar.disable and (now - shown > 10 or epoch + 1 == settings.epochs):
            shown = now
            left = (now - began) / (epoch + 1) * (settings.epochs - epoch - 1)
            print(
                f"{stage}: epoch {epoch + 1}/{settings.epochs}, loss {loss:.4f}, "
                f"{row['images_per_second']:.0f} images/s, {left:.0f} s left",
                flush=True,
            )
    _write_curve(curve_path, rows)
    return rows


def _order(count: int, batch_size: int, seed: int, stage: str, epoch: int) -> tuple[Tensor, ...]:
    order = torch.randperm(count, generator=generator(seed, stage, epoch, "order"))
    return order.split(batch_size)


def _step(
    objective: nn.Module,
    batches: BatchMaker,
    optimizer: torch.optim.Optimizer,
    machine: Machine,
    positions: Tensor,
    draws: torch.Generator,
) -> Tensor:
    batch = batches(positions, draws)
    with machine.autocast():
        loss = objective.loss(batch)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


def _write_curve(path: Path, rows: list[dict[str, float]]) -> None:
    with atomic_path(path) as tmp, open(tmp, "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, CURVE_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
