"""The training loop: rates, repeatability, order, failure, and the batches it is given."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from viny.data.augment import Draws, denormalise, flip, to_float
from viny.data.pack import Pack
from viny.learning import batches as batches_module
from viny.learning import gradients as gradients_module
from viny.learning import machine as machine_module
from viny.learning import run as run_module
from viny.learning.batches import LabelledAugmentation, PackSubset, class_batches, mask_batches, simmim_batches
from viny.learning.gradients import Gradients
from viny.learning.machine import Machine
from viny.learning.objectives import Classification, Segmentation, SimMIM
from viny.learning.optimizer import Adam
from viny.learning.run import CURVE_COLUMNS, Run, rate
from viny.learning.settings import ModelSettings, TrainSettings
from viny.learning.train import fit
from viny.learning.weights import new_encoder
from viny.runtime.errors import InputError, TrainingError
from viny.runtime.seeds import derive, generator

CPU = torch.device("cpu")
SETTINGS = TrainSettings(
    epochs=3, batch_size=8, optimizer="adamw", lr=2e-3, weight_decay=0.01, milestones=(2,), gamma=0.5
)
SUBSET = np.array([3, 20, 7, 11, 29, 0, 14, 15, 16, 2, 9, 28])


def objective_and_batches(
    kind: str, pack: Pack, tiny: ModelSettings, seed: int, device: torch.device
) -> tuple[nn.Module, Any]:
    encoder = new_encoder(vars(tiny), seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "simmim":
            made = simmim_batches(pack, SUBSET, tiny.image_size, tiny.patches, 0.5, 0.67, device)
            return SimMIM(encoder), made
        if kind == "classes":
            augmentation = LabelledAugmentation(0.3, normalised=True)
            return Classification(encoder, 7), class_batches(pack, SUBSET, 7, augmentation, 0.1, device)
        augmentation = LabelledAugmentation(0.3, normalised=False)
        return Segmentation(encoder, 3), mask_batches(pack, SUBSET, augmentation, device)


@pytest.fixture
def train(pack: Pack, tiny: ModelSettings, tmp_path: Path) -> Callable[..., tuple[dict[str, Tensor], Any]]:
    """Trains a tiny model; gives its weights and its curve."""

    def run(
        kind: str = "masks",
        seed: int = 0,
        settings: TrainSettings = SETTINGS,
        precision: str = "float32",
        wrap: Callable[[Any], Any] = lambda make: make,
        device: torch.device = CPU,
    ) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
        objective, make = objective_and_batches(kind, pack, tiny, seed, device)
        objective.to(device)
        one = Run(objective, wrap(make), len(SUBSET), settings, seed, "finetune", tmp_path / "curve.csv")
        rows = fit(one, Machine(device, precision)).curve
        return objective.state_dict(), rows

    return run


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[k], b[k]) for k in a)


# Rates


@pytest.mark.parametrize(("milestones", "gamma"), [((50, 85), 0.1), ((70, 90, 95), 0.5), ((), 0.1), ((1,), 1)])
def test_rate_is_multisteplrs(milestones: tuple[int, ...], gamma: float) -> None:
    settings = replace(SETTINGS, epochs=100, lr=2e-3, milestones=milestones, gamma=gamma)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=settings.lr)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(milestones), gamma)
    for epoch in range(100):
        assert rate(settings, epoch) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        scheduler.step()


def test_rate_reaches_the_optimiser(train: Callable[..., Any]) -> None:
    """After a milestone that all but stops training, the weights no longer move."""
    still = replace(SETTINGS, weight_decay=0, milestones=(1,), gamma=1e-9)
    one, _ = train(settings=replace(still, epochs=1, milestones=()))
    three, rows = train(settings=still)
    more, _ = train(settings=replace(still, milestones=()))
    assert all((one[k] - three[k]).abs().max() < 1e-6 for k in one)
    assert max(float((one[k] - more[k]).abs().max()) for k in one) > 1e-4
    assert [row["lr"] for row in rows] == pytest.approx([2e-3, 2e-12, 2e-12])


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_optimiser_is_pytorchs_to_the_bit(name: str, kind: type) -> None:
    settings = replace(SETTINGS, optimizer=name, lr=0.03, weight_decay=0.07)
    torch.manual_seed(0)
    ours, theirs = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3)), nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    theirs.load_state_dict(ours.state_dict())
    one = Adam(ours, settings)
    other = kind(theirs.parameters(), lr=0.03, weight_decay=0.07, fused=True)
    for step in range(7):
        x = torch.randn(4, 5)
        for model in (ours, theirs):
            model.zero_grad()
            # The second layer's bias has no gradient at first: it must not decay either.
            y = model[0](x) @ model[1].weight.t() if step < 3 else model(x)
            y.square().mean().backward()
        one.lr = other.param_groups[0]["lr"] = 0.03 / (1 + step)
        one.step()
        other.step()
        if step == 4:  # a state that went through a checkpoint
            resumed = Adam(ours, settings)
            resumed.load({place: {k: v.clone() for k, v in values.items()} for place, values in one.state.items()})
            one = resumed
    assert same(ours.state_dict(), theirs.state_dict())
    state = other.state_dict()["state"]
    assert one.state.keys() == state.keys()
    assert all(torch.equal(one.state[place][key], state[place][key]) for place in state for key in state[place])


def test_training_on_a_cpu_loads_no_compiler() -> None:
    code = (
        "import sys, torch, pathlib; from torch import nn; from viny.learning.optimizer import Adam; "
        "from viny.learning.settings import TrainSettings; import viny.learning.stages; model = nn.Linear(2, 2); "
        "one = Adam(model, TrainSettings(1, 1, 'adamw', 1e-3, 0.0, (), 0.1)); "
        "model(torch.ones(1, 2)).sum().backward(); one.step(); assert 'torch._dynamo' not in sys.modules, 'slow'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Repeatability


@pytest.mark.parametrize("kind", ["simmim", "classes", "masks"])
def test_a_seed_fixes_every_bit(train: Callable[..., Any], kind: str) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    first, curve = train(kind)
    # The global generators are now in another state, which must not affect training.
    torch.manual_seed(2)
    torch.rand(7)
    np.random.seed(2)
    second, again = train(kind)
    assert same(first, second)
    assert [row["loss"] for row in curve] == [row["loss"] for row in again]
    other, _ = train(kind, seed=1)
    assert not same(first, other)


def test_training_leaves_the_global_generator_alone(train: Callable[..., Any]) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train("classes")
    assert torch.equal(torch.rand(3), expected)


def test_a_seed_matters_to_start_and_to_draws(tiny: ModelSettings) -> None:
    first, again, other = (new_encoder(vars(tiny), seed).state_dict() for seed in (0, 0, 1))
    assert same(first, again)
    assert not torch.equal(first["pos_embed"], other["pos_embed"])


def test_seeds_are_named() -> None:
    names = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 0), (0, "a", "order"), (0, "a", 0, 1), (0, "a", 1, 0)]
    found = [derive(*name) for name in names]
    assert len(set(found)) == len(names)
    assert all(0 <= seed < 1 << 63 for seed in found)
    assert torch.equal(torch.rand(3, generator=generator(4, "x", 2)), torch.rand(3, generator=generator(4, "x", 2)))


# Order


def test_every_image_is_seen_once_an_epoch(train: Callable[..., Any]) -> None:
    seen: list[list[int]] = []

    def spy(make: Any) -> Any:
        def wrapped(positions: Tensor, draws: torch.Generator) -> Any:
            seen.append(positions.tolist())
            return make(positions, draws)

        return wrapped

    train(wrap=spy)
    assert [len(batch) for batch in seen] == [8, 4] * 3  # the last, smaller batch is not dropped
    epochs = [seen[i] + seen[i + 1] for i in (0, 2, 4)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3  # shuffled anew


class Count(nn.Module):
    """Its loss is the mean position of a batch."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.encoder = new_encoder(vars(settings), 0)
        self.weight = nn.Parameter(torch.zeros(()))

    def loss(self, positions: Tensor) -> Tensor:
        return positions.float().mean() + 0 * self.weight


def test_epochs_loss_is_the_mean_over_images(tiny: ModelSettings, tmp_path: Path) -> None:
    """Batches of unequal size count by their images."""
    machine = Machine(CPU, "float32")
    rows = fit(Run(Count(tiny), lambda p, _: p, 12, SETTINGS, 0, "count", tmp_path / "c.csv"), machine).curve
    assert [row["loss"] for row in rows] == pytest.approx([5.5] * 3)


def test_a_log_tells_of_a_long_epoch_in_parts(
    tiny: ModelSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_module, "LOOK", -1.0)  # as if every step took long enough to log
    batches: list[Tensor] = []

    def make(positions: Tensor, draws: torch.Generator) -> Tensor:
        batches.append(positions)
        return positions

    fit(Run(Count(tiny), make, 12, SETTINGS, 0, "count", tmp_path / "c.csv"), Machine(CPU, "float32"))
    lines = capsys.readouterr().out.splitlines()
    for epoch in range(3):
        first, second, whole = lines[3 * epoch : 3 * epoch + 3]
        mean = float(batches[2 * epoch].float().mean())  # of the eight images so far
        assert first.startswith(f"count: epoch {epoch + 1}/3, step 1/2, loss {mean:.4f}, ")
        assert second.startswith(f"count: epoch {epoch + 1}/3, step 2/2, loss 5.5000, ")
        assert whole.startswith(f"count: epoch {epoch + 1}/3, loss 5.5000, ")
    assert lines[-1].endswith(", 0 s left")


# Failure, curve, precision


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_divergence_stops_training(train: Callable[..., Any], tmp_path: Path, bad: float) -> None:
    steps = 0

    def spoil(make: Any) -> Any:
        def wrapped(positions: Tensor, draws: torch.Generator) -> Any:
            nonlocal steps
            steps += 1
            images, masks = make(positions, draws)
            return (images * bad if steps == 3 else images), masks  # the first step of the second epoch

        return wrapped

    with pytest.raises(TrainingError, match=r"^finetune: .* epoch 2 of 3, step 1, at rate 0.002; lower finetune\.lr"):
        train(wrap=spoil)
    assert steps == 4  # no epoch is wasted after it
    assert not (tmp_path / "curve.csv").exists()


def test_curve_has_a_row_an_epoch(train: Callable[..., Any], tmp_path: Path) -> None:
    _, rows = train()
    with open(tmp_path / "curve.csv", encoding="utf-8", newline="") as f:
        reader = csv.DictReader(f)
        written = list(reader)
    assert tuple(reader.fieldnames or ()) == CURVE_COLUMNS
    assert CURVE_COLUMNS == ("epoch", "loss", "lr", "images_per_second", "seconds")
    assert [int(row["epoch"]) for row in written] == [1, 2, 3]
    assert [float(row["lr"]) for row in written] == pytest.approx([2e-3, 2e-3, 1e-3])
    assert [float(row["loss"]) for row in written] == [row["loss"] for row in rows]
    seconds = [float(row["seconds"]) for row in written]
    assert sorted(seconds) == seconds and seconds[0] > 0
    assert all(float(row["images_per_second"]) > 0 for row in written)


def test_training_lowers_the_loss(train: Callable[..., Any]) -> None:
    _, rows = train(settings=replace(SETTINGS, epochs=12, lr=5e-3, milestones=()))
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]


@pytest.mark.parametrize("kind", ["simmim", "masks"])
def test_bfloat16_stays_near_float32(train: Callable[..., Any], kind: str) -> None:
    full, curve = train(kind)
    half, other = train(kind, precision="bfloat16")
    assert not same(full, half)  # or the precision had no effect
    assert all(value.dtype == torch.float32 for value in half.values())  # weights are kept whole
    for a, b in zip(curve, other, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=0.03)


def test_machine_takes_what_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Machine.choose("cpu", "bfloat16", 1) == Machine(CPU, "bfloat16")
    assert torch.get_num_threads() == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for native, precision in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(machine_module, "computes_in_bfloat16", lambda _, native=native: native)
        assert Machine.choose("auto", "auto", 1) == Machine(CPU, precision)


# Batches


def test_rows_are_the_same_from_memory_and_from_the_map(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    positions = torch.tensor([5, 0, 11, 5])
    held = PackSubset(pack, "images", SUBSET, CPU)
    monkeypatch.setattr(batches_module, "IN_MEMORY", 0)
    mapped = PackSubset(pack, "images", SUBSET, CPU)
    assert held.held is not None and mapped.held is None
    expected = torch.from_numpy(pack.images[SUBSET[[5, 0, 11, 5]]])
    assert torch.equal(held[positions], expected)
    assert torch.equal(mapped[positions], expected)
    assert len(held) == len(mapped) == 12


def test_simmim_batches_crop_and_mask(pack: Pack, tiny: ModelSettings) -> None:
    make = simmim_batches(pack, SUBSET, 12, tiny.patches, 0.5, 0.67, CPU)
    positions = torch.tensor([4, 1, 4])
    images, mask = make(positions, generator(0, "x"))
    assert images.shape == (3, 3, 12, 12)
    assert mask.sum(1).tolist() == [8, 8, 8]
    assert denormalise(images).min() > -1e-5 and denormalise(images).max() < 1 + 1e-5
    again = make(positions, generator(0, "x"))
    assert torch.equal(images, again[0]) and torch.equal(mask, again[1])
    assert not torch.equal(images[0], images[2])  # the same picture, drawn twice
    assert not torch.equal(images, make(positions, generator(1, "x"))[0])


def test_masks_follow_their_images(pack: Pack) -> None:
    augmentation = LabelledAugmentation(0.0, normalised=False)
    make = mask_batches(pack, SUBSET, augmentation, CPU)
    positions = torch.arange(12)
    images, masks = make(positions, generator(0, "x"))
    raw = to_float(torch.from_numpy(pack.images[SUBSET]))
    raw_masks = torch.from_numpy(pack.masks[SUBSET])
    flipped = [bool(torch.allclose(a, b.flip(-1), atol=1e-6)) for a, b in zip(images, raw, strict=True)]
    assert set(flipped) == {True, False}
    torch.testing.assert_close(images, flip(raw, torch.tensor(flipped)))
    assert torch.equal(masks, flip(raw_masks, torch.tensor(flipped)))


def test_frozen_draws_stay_and_fresh_ones_do_not(pack: Pack) -> None:
    positions = torch.tensor([2, 7, 9])
    frozen = Draws.make(12, 0.3, generator(0, "frozen"))
    for draws, constant in ((frozen, True), (None, False)):
        make = mask_batches(pack, SUBSET, LabelledAugmentation(0.3, False, draws), CPU)
        first, second = (make(positions, generator(0, "finetune", epoch))[0] for epoch in (0, 1))
        assert torch.equal(first, second) is constant
    # A frozen draw belongs to an image, wherever it is in a batch.
    make = mask_batches(pack, SUBSET, LabelledAugmentation(0.3, False, frozen), CPU)
    assert torch.equal(make(positions, generator(0, "x"))[0][2], make(torch.tensor([9]), generator(1, "y"))[0][0])


def test_class_batches_name_the_images_classes(pack: Pack) -> None:
    make = class_batches(pack, SUBSET, 7, LabelledAugmentation(0.0, normalised=False), 0.0, CPU)
    positions = torch.tensor([3, 8, 0])
    _, targets = make(positions, generator(0, "x"))
    assert targets.argmax(1).tolist() == pack.labels[SUBSET[[3, 8, 0]]].tolist()
    assert targets.sum(1).tolist() == [1, 1, 1]
    shuffled = class_batches(
        pack, SUBSET, 7, LabelledAugmentation(0.0, normalised=False), 0.0, CPU, generator(0, "labels")
    )
    every = torch.arange(len(SUBSET))
    first, second = (shuffled(every, generator(epoch, "x"))[1].argmax(1) for epoch in (0, 1))
    assert torch.equal(first, second)  # each image keeps its assigned class
    assert sorted(first.tolist()) == sorted(pack.labels[SUBSET].tolist())
    assert first.tolist() != pack.labels[SUBSET].tolist()
    mixed = class_batches(pack, SUBSET, 7, LabelledAugmentation(0.0, normalised=False), 1.0, CPU)
    blended = mixed(torch.arange(12), generator(0, "x"))[1]
    assert ((blended > 0) & (blended < 1)).any()


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what happens without a GPU")
def test_a_missing_gpu_is_said_plainly() -> None:
    with pytest.raises(InputError, match=r"compute\.device: 'cuda'.*use auto or cpu"):
        Machine.choose("cuda", "auto", threads=1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["simmim", "classes", "masks"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_gpu_trains_as_the_cpu_does(train: Callable[..., Any], kind: str, precision: str) -> None:
    """Every draw is made on the CPU, so both see the same crops, masks and blends and differ by rounding."""
    _, here = train(kind)
    _, there = train(kind, precision=precision, device=torch.device("cuda"))
    assert [row["loss"] for row in there] == pytest.approx([row["loss"] for row in here], rel=0.05)


@pytest.mark.parametrize("kind", ["simmim", "classes", "masks"])
@pytest.mark.parametrize("count", [12, 11, 3])
def test_shards_add_up_to_the_batch(
    kind: str, count: int, pack: Pack, tiny: ModelSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, batches = objective_and_batches(kind, pack, tiny, 0, CPU)
    batch = batches(torch.arange(count), generator(0, "shards"))
    machine = Machine(CPU, "float32")
    objective.loss(batch).backward()
    expected = [parameter.grad for parameter in objective.parameters()]
    monkeypatch.setattr(gradients_module, "LEAST_SHARD", 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    with Gradients(objective, machine, batch_size=12) as shared:
        assert shared.shards == 5
        for parameter in objective.parameters():
            parameter.grad = None
        loss = shared.compute(batch)
        found = [parameter.grad for parameter in objective.parameters()]
        again = shared.compute(batch)
    torch.testing.assert_close(loss, objective.loss(batch).detach())
    assert torch.equal(loss, again)
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)  # a gradient of zeros would let the weight decay
        if one is not None:
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_shards_fit_the_threads_and_the_batch(pack: Pack, tiny: ModelSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    objective, _ = objective_and_batches("masks", pack, tiny, 0, CPU)
    for threads, batch_size, shards in [(1, 64, 1), (2, 64, 2), (16, 64, 8), (2, 8, 1), (4, 1, 1)]:
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        with Gradients(objective, Machine(CPU, "float32"), batch_size) as shared:
            assert shared.shards == shards
    with Gradients(objective, Machine(torch.device("cuda"), "float32"), 64) as shared:
        assert shared.shards == 1


@pytest.mark.parametrize("kind", ["simmim", "classes", "masks"])
def test_two_threads_train_as_one(kind: str, train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients_module, "LEAST_SHARD", 4)
    one, _ = train(kind)
    torch.set_num_threads(2)
    try:
        two, _ = train(kind)
        again, _ = train(kind)
    finally:
        torch.set_num_threads(1)
    assert same(two, again)
    assert not same(one, two)  # the sums' order differs, so there really were two
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=2e-3, rtol=0)


def test_shards_threads_update_as_one(pack: Pack, tiny: ModelSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(gradients_module, "LEAST_SHARD", 4)
    trained = []
    for shared in (False, True):
        objective, batches = objective_and_batches("masks", pack, tiny, 0, CPU)
        start = {name: value.clone() for name, value in objective.state_dict().items()}
        optimizer = Adam(objective, SETTINGS)
        with Gradients(objective, Machine(CPU, "float32"), 12) as gradients:
            for _ in range(3):
                gradients.compute(batches(torch.arange(12), generator(0, "shards")))
                optimizer.step(gradients.share) if shared else optimizer.step()
        assert not any(torch.equal(start[name], objective.state_dict()[name]) for name in ("head.weight", "head.bias"))
        trained.append((objective.state_dict(), list(optimizer.state)))
    (one, places), (other, shared_places) = trained
    assert same(one, other)
    assert places == shared_places


def test_a_fault_in_a_shard_is_the_trainings(pack: Pack, tiny: ModelSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    objective, batches = objective_and_batches("masks", pack, tiny, 0, CPU)
    images, masks = batches(torch.arange(12), generator(0, "shards"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(gradients_module, "LEAST_SHARD", 2)
    with Gradients(objective, Machine(CPU, "float32"), 12) as shared, pytest.raises(RuntimeError):
        shared.compute((images[:, :2], masks))
