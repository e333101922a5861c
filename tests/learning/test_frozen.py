"""A head on fixed tokens: the head learns as it would on the images, and the encoder stays the parent's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_study import Study
from torch import Tensor

from viny.data.augment import Draws, flip, normalise, to_float
from viny.data.pack import Pack
from viny.learning import batches as batches_module
from viny.learning import stack as stack_module
from viny.learning.batches import Batches, LabelledAugmentation, mask_batches
from viny.learning.frozen import TokenBatches
from viny.learning.machine import Machine
from viny.learning.objectives import FrozenSegmentation, Segmentation
from viny.learning.run import Run, epoch_order
from viny.learning.settings import ModelSettings, TrainSettings
from viny.learning.stack import train_runs
from viny.learning.train import fit
from viny.learning.weights import load_segmentation, load_weights, new_encoder, weights_beside
from viny.runtime.errors import TrainingError
from viny.runtime.seeds import generator
from viny.study import specs
from viny.study.grid import Cell

CPU = torch.device("cpu")
MACHINE = Machine(CPU, "float32")
SETTINGS = TrainSettings(
    epochs=3, batch_size=8, optimizer="adamw", lr=2e-2, weight_decay=0.01, milestones=(2,), gamma=0.5
)
ROWS = np.array([3, 20, 7, 11, 29, 0, 14, 15, 16, 2, 9, 28])


def made(
    pack: Pack, tiny: ModelSettings, kind: type[Segmentation] = FrozenSegmentation, once: bool = False
) -> tuple[Segmentation, Batches]:
    """A model and batches of images, whose contrast is drawn unless that is of no use."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        objective = kind(new_encoder(vars(tiny), 0), 3)
    draws = Draws.make(len(ROWS), 0.3, generator(0, "frozen")) if once else None
    return objective, mask_batches(pack, ROWS, LabelledAugmentation(0.3, True, draws), CPU)


def run_of(objective: Segmentation, batches: Any, path: Path) -> Run:
    return Run(objective, batches, len(ROWS), SETTINGS, 0, "finetune", path / "curve.csv")


@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize("once", [True, False])
def test_the_head_learns_as_on_images(
    once: bool, fits: bool, pack: Pack, tiny: ModelSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop over images of its own, whose optimiser has the head alone."""
    objective, images = made(pack, tiny, once=once)
    batches = TokenBatches(objective, images, len(ROWS), once, MACHINE)
    with monkeypatch.context() as small:
        if not fits:
            small.setattr(batches_module, "IN_MEMORY", 0)
        curve = fit(run_of(objective, batches, tmp_path), MACHINE).curve

    plain, images = made(pack, tiny, Segmentation, once)
    optimizer = torch.optim.AdamW(plain.head.parameters(), lr=SETTINGS.lr, weight_decay=SETTINGS.weight_decay)
    losses = []
    for epoch in range(SETTINGS.epochs):
        optimizer.param_groups[0]["lr"] = SETTINGS.lr * (0.5 if epoch >= 2 else 1)
        total = 0.0
        for number, positions in enumerate(epoch_order(len(ROWS), SETTINGS.batch_size, 0, "finetune", epoch)):
            drawn = images.draw(positions, generator(0, "finetune", epoch, number))
            if not once:
                drawn["contrast"] = torch.ones(len(positions))
            optimizer.zero_grad()
            loss = plain.loss(images.of(positions, drawn))
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(positions)
        losses.append(total / len(ROWS))
    assert [row["loss"] for row in curve] == pytest.approx(losses, rel=1e-5)
    assert losses[-1] < losses[0]
    for name in ("head.weight", "head.bias"):
        assert torch.allclose(objective.state_dict()[name], plain.state_dict()[name], atol=1e-5)


def test_tokens_are_those_of_each_image_and_its_mirror_image(pack: Pack, tiny: ModelSettings) -> None:
    objective, images = made(pack, tiny)
    batches = TokenBatches(objective, images, len(ROWS), False, MACHINE)
    seen = set()
    for step in range(4):
        positions = torch.tensor([5, 0, 11])
        tokens, masks = batches(positions, generator(0, step))
        flips = images.draw(positions, generator(0, step))["flips"]
        rows = ROWS[positions.numpy()]
        shown = flip(normalise(to_float(torch.from_numpy(pack.images[rows]))), flips)
        assert torch.allclose(tokens, objective.encoder.encode(shown, False), atol=1e-5)
        assert torch.equal(masks, flip(torch.from_numpy(pack.masks[rows]), flips))
        seen |= set(flips.tolist())
    assert seen == {True, False}


def test_the_encoder_is_asked_once(
    pack: Pack, tiny: ModelSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = 0
    encode = FrozenSegmentation.tokens

    def counting(self: FrozenSegmentation, images: Tensor) -> Tensor:
        nonlocal shown
        shown += len(images)
        return encode(self, images)

    monkeypatch.setattr(FrozenSegmentation, "tokens", counting)
    objective, images = made(pack, tiny)
    fit(run_of(objective, TokenBatches(objective, images, len(ROWS), False, MACHINE), tmp_path), MACHINE)
    assert shown == 2 * len(ROWS)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("protocol", ["sound", "paper"])
def test_a_frozen_cell_is_a_whole_model_with_its_parents_encoder(
    protocol: str, precision: str, made_study: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    config = made_study(protocol)
    config["compute"]["precision"] = precision
    study, cell = Study(tmp_path, config), Cell(24, "none", 16, 0)
    parent = study.pretrain()
    spec = specs.finetune_spec(config, cell) | {"encoder": "frozen"}
    record = study.train(spec, study.finetune_inputs(cell), parent, "finetune")
    tensors, before = (load_weights(weights_beside(path))[0] for path in (record, parent))
    encoder = [name for name in tensors if name.startswith("encoder.")]
    assert encoder and all(torch.equal(tensors[name], before[name]) for name in encoder)
    model, about = load_segmentation(record)
    assert about["spec"]["encoder"] == "frozen"
    assert about["parameters"] == sum(p.numel() for p in model.parameters())
    assert 0 < study.evaluate(cell, record)["metrics"]["miou"] < 1


def test_a_killed_frozen_training_ends_the_same(
    made_study: Callable[[str], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, steps = Run.look, 0

    def killed(self: Run, save: bool | None = None) -> None:
        nonlocal steps
        look(self, save)
        steps += 1
        if steps == 3:
            raise TrainingError("killed")

    hashes = []
    for name in ("killed", "whole"):
        study = Study(tmp_path / name, made_study("sound"), checkpoint_minutes=0)
        cell = Cell(0, "none", 16, 0)
        given = specs.finetune_spec(study.config, cell) | {"encoder": "frozen"}, study.finetune_inputs(cell), None
        if name == "killed":
            with monkeypatch.context() as killing, pytest.raises(TrainingError, match="killed"):
                killing.setattr(Run, "look", killed)
                study.train(*given, "finetune")
        record = study.train(*given, "finetune")
        hashes.append(json.loads(record.read_text())["weights_sha256"])
    assert hashes[0] == hashes[1] and steps == 3


def test_on_a_gpu_a_frozen_run_is_trained_by_itself(
    pack: Pack, tiny: ModelSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is not taken into a stack of trained encoders either, whose losses are of images."""

    def frozen() -> Run:
        objective, images = made(pack, tiny)
        return run_of(objective, TokenBatches(objective, images, len(ROWS), False, MACHINE), tmp_path)

    alone, stacked = frozen(), frozen()
    fit(alone, MACHINE)
    train_runs([stacked], MACHINE)
    assert "step by step: it knows no loss of FrozenSegmentation" in capsys.readouterr().out
    assert all(
        torch.equal(a, b) for a, b in zip(alone.objective.parameters(), stacked.objective.parameters(), strict=True)
    )

    trained = run_of(*made(pack, tiny, Segmentation), tmp_path)
    engine = stack_module.Engine([trained], MACHINE)
    engine.start()
    engine.dismiss(trained)
    assert not engine.seat(frozen())
    with pytest.raises(stack_module.UnsoundError, match="FrozenSegmentation"):
        stack_module.Engine([trained, frozen()], MACHINE)
