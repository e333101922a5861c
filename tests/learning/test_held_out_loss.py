"""SimMIM's loss on held-out images: when it is measured, with which weights, and that it changes nothing else."""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_study import Study
from torch import Tensor

from viny.data.augment import central_squares, crop_resize_flip, normalise, to_float
from viny.data.pack import Pack, open_pack
from viny.data.splits import read_split
from viny.learning import engine as engine_module
from viny.learning import stack as stack_module
from viny.learning import stages as stages_module
from viny.learning.batches import simmim_batches
from viny.learning.checkpoint import Checkpoints
from viny.learning.machine import Machine
from viny.learning.model import patchify
from viny.learning.objectives import SimMIM
from viny.learning.run import CURVE_COLUMNS, HELD_OUT, Run
from viny.learning.settings import ModelSettings, TrainSettings, measured_epochs
from viny.learning.stack import train_runs
from viny.learning.train import fit
from viny.learning.weights import load_weights, new_encoder, weights_beside
from viny.runtime.errors import InputError, TrainingError
from viny.study import specs
from viny.tools.verify.trainings import _check_curve

CPU = torch.device("cpu")
MACHINE = Machine(CPU, "float32")
SETTINGS = TrainSettings(
    epochs=12, batch_size=8, optimizer="adamw", lr=2e-3, weight_decay=0.01, milestones=(3, 8), gamma=0.5
)


@pytest.mark.parametrize(
    ("epochs", "milestones", "expected"),
    [
        (100, (50, 85), {10, 20, 30, 40, 50, 60, 70, 80, 85, 90, 100}),
        (12, (3, 8), {1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12}),
        (25, (), {2, 5, 8, 10, 12, 15, 18, 20, 22, 25}),
        (1, (1, 7), {1}),
        (2, (0,), {1, 2}),
    ],
)
def test_it_is_measured_at_milestones_tenths_and_the_end(
    epochs: int, milestones: tuple[int, ...], expected: set[int]
) -> None:
    assert measured_epochs(epochs, milestones) == expected


def test_central_squares_are_square_and_in_the_middle() -> None:
    boxes = central_squares(torch.tensor([[40, 40], [30, 60], [90, 60]]))
    assert torch.allclose(boxes, torch.tensor([[0, 0, 1, 1], [0, 0.25, 1, 0.5], [1 / 6, 0, 2 / 3, 1]]))


# From files to files


def rows_of(record: Path) -> list[dict[str, str]]:
    with open(record.with_name("curve.csv"), encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


@pytest.fixture
def config(made_study: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    value = made_study("sound")
    value["pretrain"] |= {"held_out": 6, "epochs": 12, "milestones": [3, 8]}
    return value


def test_the_last_one_is_of_the_weights_that_are_written(config: dict[str, Any], tmp_path: Path) -> None:
    study = Study(tmp_path, config)
    record = study.pretrain(size=20)
    about, rows = json.loads(record.read_text()), rows_of(record)
    assert tuple(rows[0]) == (*CURVE_COLUMNS, HELD_OUT)
    assert {int(row["epoch"]) for row in rows if row[HELD_OUT]} == measured_epochs(SETTINGS.epochs, SETTINGS.milestones)
    assert about["held_out_loss"] == float(rows[-1][HELD_OUT])
    assert about["held_out_images"] == 6

    curve = record.with_name("curve.csv")
    _check_curve(curve, about)
    with pytest.raises(InputError, match=r"expected the last loss on held-out images to be 0\.5, as the record has it"):
        _check_curve(curve, about | {"held_out_loss": 0.5})

    pack = open_pack(study.pack("pretrain"))
    test = read_split(*(tmp_path / "splits" / f"pretrain.{suffix}" for suffix in ("json", "npz")), pack)["test"]
    model = SimMIM(new_encoder(config["model"], 0), about["spec"]["class_token"])
    model.load_state_dict(load_weights(weights_beside(record))[0])
    boxes = central_squares(torch.from_numpy(np.asarray(pack.shapes)[test]))
    images = to_float(torch.from_numpy(pack.images[test]))
    shown = normalise(crop_resize_flip(images, boxes, torch.zeros(6, dtype=torch.bool), 24))
    losses = []
    for draw in range(300):  # whatever the masks
        mask = torch.rand(6, 16, generator=torch.Generator().manual_seed(draw)).argsort(1) < 8
        with torch.no_grad():
            losses.append(float((model.predict(shown, mask) - patchify(shown, 6)).abs()[mask].mean()))
    assert abs(about["held_out_loss"] - np.mean(losses)) < 4 * np.std(losses)


def test_all_sizes_and_seeds_are_measured_by_the_same(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[int], Tensor]] = []

    def spy(objective: Any, batches: Any, pack: Any, indices: Any, masks: Tensor, machine: Any) -> float:
        seen.append((indices.tolist(), masks))
        return 1.0

    monkeypatch.setattr(stages_module, "held_out_loss", spy)
    for size, seed in ((8, 0), (24, 0), (24, 1)):
        Study(tmp_path / f"{size}-{seed}", config).pretrain(size, seed)
    assert len({tuple(rows) for rows, _ in seen}) == 1
    assert all(torch.equal(masks, seen[0][1]) for _, masks in seen)
    assert seen[0][1].shape == (6, 16) and (seen[0][1].sum(1) == 8).all()
    assert len({tuple(row) for row in seen[0][1].int().tolist()}) > 1


def test_a_split_that_holds_nothing_out_is_refused(config: dict[str, Any], tmp_path: Path) -> None:
    study = Study(tmp_path, config)
    split_spec = {**specs.pretrain_split_spec(config, 8, 0)}
    split_spec.pop("held_out")
    inputs = study.pack("pretrain"), *study.split("pretrain", split_spec, study.pack("pretrain"))
    with pytest.raises(InputError, match=r"pretrain\.json: holds out 0 images, pretrain\.held_out says 6"):
        study.train(specs.pretrain_spec(config, 8, 0), inputs, None, "pretrain")


# A run, by itself and in a stack


@pytest.fixture
def new_run(pack: Pack, tiny: ModelSettings, tmp_path: Path) -> Callable[..., Run]:
    """A run of SimMIM in float64, measured by a number that every weight has a part in."""

    def make(
        seed: int = 0,
        count: int = 20,
        settings: TrainSettings = SETTINGS,
        measured: bool = True,
        checkpoints: Checkpoints | None = None,
        wait: float = 0.0,
    ) -> Run:
        rows = np.random.default_rng(seed).permutation(len(pack))[:count]
        batches = simmim_batches(pack, rows, tiny.image_size, tiny.patches, 0.5, 0.67, CPU)
        made = batches.make
        batches = replace(
            batches,
            make=lambda read, drawn: tuple(x.double() if x.is_floating_point() else x for x in made(read, drawn)),
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            objective = SimMIM(new_encoder(vars(tiny), seed)).double()

        def weighed() -> float:
            time.sleep(wait)
            return sum(float(p.detach().abs().sum()) for p in objective.parameters())

        path = tmp_path / f"{seed}.csv"
        held_out = weighed if measured else None
        return Run(objective, batches, count, settings, seed, "pretrain", path, checkpoints, None, held_out)

    return make


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "float", lambda x: x if x.dtype == torch.float64 else x.to(torch.float32))


def curve_of(run: Run) -> dict[int, float]:
    """By epoch."""
    return {row["epoch"]: row[HELD_OUT] for row in run.progress.curve if row[HELD_OUT] is not None}


def weighed_at(new_run: Callable[..., Run], **given: Any) -> Iterator[float]:
    """What the weights weigh after each epoch, by runs that end there."""
    for epochs in range(1, SETTINGS.epochs + 1):
        run = new_run(settings=replace(SETTINGS, epochs=epochs), measured=False, **given)
        fit(run, MACHINE)
        yield sum(float(p.detach().abs().sum()) for p in run.objective.parameters())


def test_it_changes_no_weight(new_run: Callable[..., Run]) -> None:
    measured, plain = new_run(), new_run(measured=False)
    fit(measured, MACHINE)
    fit(plain, MACHINE)
    pairs = zip(measured.objective.parameters(), plain.objective.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert HELD_OUT not in plain.progress.curve[0]
    assert tuple(plain.curve_path.read_text().splitlines()[0].split(",")) == CURVE_COLUMNS


@pytest.mark.parametrize("ahead", [0.0, 60.0])
def test_each_is_of_the_weights_after_its_epoch(
    ahead: float, new_run: Callable[..., Run], double: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a stack too, whose steps are queued ahead, beside runs with other numbers of steps."""
    monkeypatch.setattr(engine_module, "AHEAD", ahead)
    monkeypatch.setattr(stack_module, "POLL", 1e9)
    members = [{"seed": 0, "count": 20}, {"seed": 1, "count": 8}, {"seed": 2, "count": 13}]
    alone = [new_run(**member) for member in members]
    for run in alone:
        fit(run, MACHINE)
    due = measured_epochs(SETTINGS.epochs, SETTINGS.milestones)
    assert curve_of(alone[0]) == {at: x for at, x in enumerate(weighed_at(new_run, **members[0]), 1) if at in due}
    stacked = [new_run(**member) for member in members]
    train_runs(stacked, MACHINE)
    for one, other in zip(stacked, alone, strict=True):
        assert curve_of(one) == pytest.approx(curve_of(other), rel=1e-11)
        pairs = zip(one.objective.parameters(), other.objective.parameters(), strict=True)
        assert all(torch.allclose(a, b, rtol=0, atol=1e-11) for a, b in pairs)


class CrashError(Exception):
    """The process is gone."""


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("in_a_stack", [False, True])
def test_a_run_that_crashes_at_each_measurement_ends_the_same(
    where: str,
    in_a_stack: bool,
    new_run: Callable[..., Run],
    double: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stack_module, "POLL", -1.0)
    expected = new_run()
    fit(expected, MACHINE)
    measure, crashed = Run.measure, set()

    def crashing(self: Run) -> None:
        due = self.progress.epoch if self.unmeasured else 0
        if due and where == "before" and due not in crashed:
            crashed.add(due)
            raise CrashError
        measure(self)
        if due and where == "after" and due not in crashed:
            crashed.add(due)
            raise CrashError

    monkeypatch.setattr(Run, "measure", crashing)
    for _ in range(50):
        run = new_run(checkpoints=Checkpoints(tmp_path / "c", {"test": "c"}, 0.0))
        try:
            if in_a_stack:
                train_runs([run], MACHINE)
            else:
                fit(run, MACHINE)
            break
        except CrashError:
            pass
    assert crashed == measured_epochs(SETTINGS.epochs, SETTINGS.milestones)
    assert curve_of(run) == pytest.approx(curve_of(expected), rel=1e-11)
    assert [row["loss"] for row in run.progress.curve] == pytest.approx(
        [row["loss"] for row in expected.progress.curve], rel=1e-11
    )


@pytest.mark.parametrize("in_a_stack", [False, True])
def test_its_time_is_not_time_of_training(in_a_stack: bool, new_run: Callable[..., Run], double: None) -> None:
    run = new_run(settings=replace(SETTINGS, epochs=4, milestones=()), wait=0.5)
    began = time.monotonic()
    train_runs([run], MACHINE) if in_a_stack else fit(run, MACHINE)
    took = time.monotonic() - began
    assert took > 2.0
    seconds = run.finish().seconds
    assert seconds < took - 1.9
    assert sum(20 / row["images_per_second"] for row in run.progress.curve) <= seconds
    assert run.stacked < 1.5


def test_a_loss_that_is_no_number_ends_the_run(new_run: Callable[..., Run]) -> None:
    run = new_run()
    run.held_out = lambda: math.nan
    with pytest.raises(TrainingError, match="the loss on held-out images became nan after epoch 1 of 12"):
        fit(run, MACHINE)
