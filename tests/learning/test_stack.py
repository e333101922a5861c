"""Stacks: runs that are trained together end where each would by itself, whoever comes, goes or fails beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from viny.data.augment import Draws
from viny.data.pack import Pack
from viny.learning import stack as stack_module
from viny.learning.batches import Batches, LabelledAugmentation, class_batches, mask_batches, simmim_batches
from viny.learning.checkpoint import Checkpoints
from viny.learning.machine import Machine
from viny.learning.objectives import Classification, PatchClassification, Segmentation, SimMIM
from viny.learning.run import Run
from viny.learning.settings import ModelSettings, TrainSettings
from viny.learning.stack import train_together
from viny.learning.train import fit
from viny.learning.weights import new_encoder
from viny.runtime.errors import TrainingError
from viny.runtime.seeds import generator
from viny.runtime.signals import Stopped

CPU = torch.device("cpu")
MACHINE = Machine(CPU, "float32")
SETTINGS = TrainSettings(
    epochs=3, batch_size=8, optimizer="adamw", lr=2e-3, weight_decay=0.01, milestones=(2,), gamma=0.5
)
KINDS = ("simmim", "simmim_with_class_token", "classes", "classes_by_mean", "patches", "masks", "frozen", "pixels")


def made(kind: str, pack: Pack, tiny: ModelSettings, seed: int, count: int) -> tuple[nn.Module, Batches]:
    """A stage's objective and batches, of `count` images that depend on the seed."""
    subset = np.random.default_rng(seed).permutation(len(pack))[:count]
    encoder = new_encoder(vars(tiny), seed)
    fresh = LabelledAugmentation(0.3, normalised=True)
    frozen = LabelledAugmentation(0.3, False, Draws.make(count, 0.3, generator(seed, "frozen")))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind.startswith("simmim"):
            batches = simmim_batches(pack, subset, tiny.image_size, tiny.patches, 0.5, 0.67, CPU)
            return SimMIM(encoder, kind == "simmim_with_class_token"), batches
        if kind.startswith("classes"):
            pooling = "mean" if kind == "classes_by_mean" else "class_token"
            return Classification(encoder, 7, pooling), class_batches(pack, subset, 7, fresh, 0.1, CPU)
        batches = mask_batches(pack, subset, frozen if kind == "frozen" else fresh, CPU)
        if kind == "patches":
            return PatchClassification(encoder, 3), batches
        return Segmentation(encoder, 3, "pixel_softmax" if kind == "pixels" else "class_softmax"), batches


@dataclass
class Visitor:
    """A run in a stack, and what is to happen to it."""

    run: Run
    gone_after: float = math.inf  # steps
    signal_after: float = math.inf
    outcome: Any = None

    def lines(self) -> AbstractContextManager[object]:
        return nullcontext()

    @property
    def _steps(self) -> int:
        return self.run.progress.epoch * self.run.report.steps + len(self.run.progress.losses)

    def here(self) -> bool:
        return self._steps < self.gone_after

    def stop_signal(self) -> int:
        return 15 if self._steps >= self.signal_after else 0

    def ended(self, error: BaseException | None) -> None:
        assert self.outcome is None
        self.outcome = error or "trained"

    def sent_away(self, why: str) -> None:
        assert self.outcome is None
        self.outcome = f"sent away: {why}"


@dataclass
class House:
    """Lets some visitors in at once, and the others when the first have taken some steps."""

    first: Sequence[Visitor]
    later: list[tuple[int, Visitor]] = field(default_factory=list)
    leave_after: float = math.inf  # steps of the first
    rooms: list[int] = field(default_factory=list)
    _in: bool = False

    def guests(self, room: int, clock: Callable[[], float]) -> list[Visitor]:
        self.rooms.append(room)
        if not self._in:
            self._in = True
            return list(self.first[:room])
        due = [(step, v) for step, v in self.later if step <= self.first[0]._steps][:room]
        self.later = [pair for pair in self.later if pair not in due]
        return [visitor for _, visitor in due]

    def leaving(self, left: float) -> bool:
        return self.first[0]._steps >= self.leave_after


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Objectives stay in float64 where they would round to float32."""
    monkeypatch.setattr(Tensor, "float", lambda x: x if x.dtype == torch.float64 else x.to(torch.float32))


@pytest.fixture(autouse=True)
def look_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack_module, "POLL", -1.0)


@pytest.fixture
def new_run(pack: Pack, tiny: ModelSettings, tmp_path: Path) -> Callable[..., Run]:
    """A run with a seed and a number of images; in float64 if asked."""

    def make(
        kind: str,
        seed: int,
        count: int,
        settings: TrainSettings = SETTINGS,
        precise: bool = False,
        checkpoints: Checkpoints | None = None,
        wrap: Callable[[Any], Any] | None = None,
    ) -> Run:
        objective, batches = made(kind, pack, tiny, seed, count)
        make = batches.make
        if precise:
            objective.double()

            def wide(read: Any, drawn: Any) -> tuple[Tensor, ...]:
                return tuple(x.double() if x.is_floating_point() else x for x in make(read, drawn))

            batches = replace(batches, make=wide)
        if wrap is not None:
            batches = replace(batches, make=wrap(batches.make))
        curve = tmp_path / f"{kind}-{seed}-{count}.csv"
        return Run(objective, batches, count, settings, seed, "finetune", curve, checkpoints)

    return make


def alone(run: Run, machine: Machine = MACHINE) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Weights and curve of a run that is trained by itself."""
    where = run.curve_path.with_suffix(".alone.csv")
    fit(run.objective, run.batches, run.count, run.settings, machine, run.seed, run.stage, where)
    return run.objective.state_dict(), list(read_rows(where))


def read_rows(path: Path) -> Iterator[dict[str, float]]:
    names, *rows = path.read_text(encoding="utf-8").splitlines()
    for row in rows:
        yield dict(zip(names.split(","), map(float, row.split(",")), strict=True))


def farthest(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", ["adamw", "adam"])
def test_runs_end_together_where_each_ends_alone(
    kind: str, optimizer: str, new_run: Callable[..., Run], double: None
) -> None:
    """With unequal numbers of images: batches that are cut short, epochs that end at different steps."""
    settings = replace(SETTINGS, optimizer=optimizer)
    members = [(0, 12), (1, 21), (2, 8), (3, 5)]
    runs = [new_run(kind, *member, settings, precise=True) for member in members]
    visitors = [Visitor(run) for run in runs]
    train_together(House(visitors), MACHINE, most=8)
    assert [visitor.outcome for visitor in visitors] == ["trained"] * 4
    for run, member in zip(runs, members, strict=True):
        run.finish()
        weights, curve = alone(new_run(kind, *member, settings, precise=True))
        assert farthest(run.objective.state_dict(), weights) < 1e-12
        for row, expected in zip(read_rows(run.curve_path), curve, strict=True):
            assert row["loss"] == pytest.approx(expected["loss"], rel=1e-12)
            assert row["lr"] == expected["lr"]
