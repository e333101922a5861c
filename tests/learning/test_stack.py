"""Stacks: runs that are trained together end where each would by itself, whoever comes, goes or fails beside it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viny.data.augment import Draws
from viny.data.pack import Pack
from viny.learning import engine as engine_module
from viny.learning import stack as stack_module
from viny.learning.batches import Batches, LabelledAugmentation, class_batches, mask_batches, simmim_batches
from viny.learning.checkpoint import Checkpoints
from viny.learning.engine import Engine
from viny.learning.machine import Machine
from viny.learning.objectives import Classification, PatchClassification, Segmentation, SimMIM
from viny.learning.optimizer import Adam
from viny.learning.run import Run
from viny.learning.settings import ModelSettings, TrainSettings
from viny.learning.stack import SharedClock, train_together
from viny.learning.stacked import Gelu
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
    seconds: float = 0.0

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
        self.outcome, self.seconds = error or "trained", self.run.finish().seconds

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

    def guests(self, room: int, clock: SharedClock) -> list[Visitor]:
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
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between any two batches of steps, of which a few are queued."""
    monkeypatch.setattr(stack_module, "POLL", -1.0)
    monkeypatch.setattr(engine_module, "AHEAD", 0.0)


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
        model: ModelSettings | None = None,
    ) -> Run:
        objective, batches = made(kind, pack, model or tiny, seed, count)
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
    fit(run, machine)
    return run.objective.state_dict(), list(read_rows(run.curve_path))


def read_rows(path: Path) -> Iterator[dict[str, float]]:
    names, *rows = path.read_text(encoding="utf-8").splitlines()
    for row in rows:
        yield dict(zip(names.split(","), map(float, row.split(",")), strict=True))


def farthest(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", ["adamw", "adam"])
def test_runs_end_together_where_each_ends_alone(
    kind: str, optimizer: str, new_run: Callable[..., Run], double: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With unequal numbers of images: batches that are cut short, epochs that end at different steps."""
    monkeypatch.setattr(engine_module, "AHEAD", 0.1)
    settings = replace(SETTINGS, optimizer=optimizer)
    members = [(0, 12), (1, 21), (2, 8), (3, 5)]
    runs = [new_run(kind, *member, settings, precise=True) for member in members]
    visitors = [Visitor(run) for run in runs]
    train_together(House(visitors), MACHINE, most=8)
    assert [visitor.outcome for visitor in visitors] == ["trained"] * 4
    for run, member in zip(runs, members, strict=True):
        found = list(read_rows(run.curve_path))
        weights, curve = alone(new_run(kind, *member, settings, precise=True))
        assert farthest(run.objective.state_dict(), weights) < 1e-12
        for row, expected in zip(found, curve, strict=True):
            assert row["loss"] == pytest.approx(expected["loss"], rel=1e-12)
            assert row["lr"] == expected["lr"]


@pytest.mark.parametrize("kind", ["simmim_with_class_token", "classes", "masks"])
def test_timms_architecture_is_trained_together_too(
    kind: str, new_run: Callable[..., Run], double: None, tiny: ModelSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = replace(tiny, architecture="timm")
    runs = [new_run(kind, seed, count, precise=True, model=plain) for seed, count in ((0, 12), (1, 9))]
    train_together(House([Visitor(run) for run in runs]), MACHINE, most=2)
    assert "not used" not in capsys.readouterr().out
    for run in runs:
        weights, _ = alone(new_run(kind, run.seed, run.count, precise=True, model=plain))
        assert "encoder.blocks.0.attn.qkv.bias" in weights and "encoder.patch_embed.norm_in.weight" not in weights
        assert farthest(run.objective.state_dict(), weights) < 1e-12


def test_a_compiled_gelu_is_pytorchs_but_for_rounding() -> None:
    """A value less than bfloat16's steps from it, and 1e-6 of its argument; a slope 1.3e-5."""
    x = torch.linspace(-12, 12, 10001).bfloat16()
    results = []
    for function, values in ((Gelu.apply, x), (F.gelu, x.double())):
        values = values.requires_grad_()
        out = function(values)
        results.append((out.detach().double(), torch.autograd.grad(out.sum(), values)[0].double()))
    (value, slope), (exact_value, exact_slope) = results
    assert bool(((value - exact_value).abs() <= 2**-8 * exact_value.abs() + 1.1e-6 * x.detach().double().abs()).all())
    assert bool(((slope - exact_slope).abs() <= 2**-8 * exact_slope.abs() + 1.4e-5).all())
    assert bool(Gelu.apply(torch.tensor([math.nan]).bfloat16()).isnan().all())


@pytest.mark.parametrize(("precision", "weights", "loss"), [("float32", 1e-4, 1e-4), ("bfloat16", 1e-2, 2e-2)])
@pytest.mark.parametrize("kind", ["simmim", "classes", "masks"])
def test_rounding_is_all_that_differs(
    kind: str, precision: str, weights: float, loss: float, new_run: Callable[..., Run]
) -> None:
    machine = Machine(CPU, precision)
    runs = [new_run(kind, seed, 12 + seed) for seed in range(3)]
    train_together(House([Visitor(run) for run in runs]), machine, most=3)
    for run in runs:
        curve = list(read_rows(run.curve_path))
        other, expected = alone(new_run(kind, run.seed, run.count), machine)
        # Adam turns the rounding of a gradient near zero into a step of any size up to the rate: hence the median.
        found = run.objective.state_dict()
        errors = torch.cat([(found[name] - other[name]).abs().flatten() for name in other])
        assert float(errors.quantile(0.9)) < weights
        assert [row["loss"] for row in curve] == pytest.approx([row["loss"] for row in expected], rel=loss)


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """On a CPU, where compiling is tried for the tests alone."""

    def choose(backend: str) -> None:
        monkeypatch.setattr(engine_module, "COMPILER", backend)
        engine_module._compiled.cache_clear()

    monkeypatch.setattr(stack_module, "Engine", partial(Engine, compiled=True))
    yield choose
    engine_module._compiled.cache_clear()


@pytest.mark.filterwarnings("error:Dynamo detected")
@pytest.mark.parametrize(
    ("backend", "kind", "architecture"),
    [
        *(("aot_eager", kind, "viny") for kind in KINDS),
        ("inductor", "masks", "viny"),
        ("aot_eager", "masks", "timm"),
        ("inductor", "simmim", "timm"),
    ],
)
def test_compiled_steps_train_as_plain_ones(
    backend: str,
    kind: str,
    architecture: str,
    compiling: Callable[[str], None],
    new_run: Callable[..., Run],
    tiny: ModelSettings,
    capsys: pytest.CaptureFixture[str],
) -> None:
    compiling(backend)
    settings, model = replace(SETTINGS, epochs=2), replace(tiny, architecture=architecture)
    runs = [new_run(kind, seed, count, settings, model=model) for seed, count in ((0, 12), (1, 9))]
    train_together(House([Visitor(run) for run in runs]), MACHINE, most=2)
    assert "not used" not in capsys.readouterr().out
    for run in runs:
        weights, _ = alone(new_run(kind, run.seed, run.count, settings, model=model))
        errors = torch.cat([(run.objective.state_dict()[name] - weights[name]).abs().flatten() for name in weights])
        assert float(errors.quantile(0.9)) < 1e-4


# Coming and going


def finished(kind: str, new_run: Callable[..., Run], seed: int, count: int) -> dict[str, Tensor]:
    run = new_run(kind, seed, count, precise=True)
    train_together(House([Visitor(run)]), MACHINE, most=1)
    return run.objective.state_dict()


def test_runs_may_come_later_and_take_free_places(
    new_run: Callable[..., Run], double: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    formed: list[int] = []

    class Counted(Engine):
        def start(self) -> None:
            formed.append(len(self.slots))
            super().start()

    monkeypatch.setattr(stack_module, "Engine", Counted)
    long, short, late, later = ((0, 21), (1, 8), (2, 13), (3, 20))
    visitors = {m: Visitor(new_run("masks", *m, precise=True)) for m in (long, short, late, later)}
    house = House([visitors[long], visitors[short]], [(4, visitors[late]), (5, visitors[later])])
    train_together(house, MACHINE, most=3)
    for member, visitor in visitors.items():
        assert visitor.outcome == "trained"
        assert farthest(visitor.run.objective.state_dict(), finished("masks", new_run, *member)) < 1e-12
    assert max(house.rooms) == 3 and min(house.rooms) == 0
    assert formed[0] == 2 and max(formed) == 3


def test_a_place_is_taken_over_without_a_new_engine(
    new_run: Callable[..., Run], double: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newcomer's images are among those that the stack holds."""
    expected = finished("masks", new_run, 3, 11)
    formed = []
    start = Engine.start
    monkeypatch.setattr(Engine, "start", lambda self: (formed.append(1), start(self)))
    first = [Visitor(new_run("masks", 0, 30, precise=True)), Visitor(new_run("masks", 1, 8, precise=True))]
    first.append(Visitor(new_run("masks", 2, 30, precise=True)))
    newcomer = Visitor(new_run("masks", 3, 11, precise=True))
    train_together(House(first, [(6, newcomer)]), MACHINE, most=3)
    assert newcomer.outcome == "trained"
    assert farthest(newcomer.run.objective.state_dict(), expected) < 1e-12
    assert len(formed) == 1


def test_a_run_that_diverges_leaves_alone(new_run: Callable[..., Run], double: None) -> None:
    members = [(0, 12), (1, 13), (2, 9)]
    runs = [new_run("masks", *member, precise=True) for member in members]
    draw, steps = runs[1].batches.draw, 0

    def spoilt(positions: Tensor, draws: torch.Generator) -> dict[str, Tensor]:
        nonlocal steps
        steps += 1
        drawn = draw(positions, draws)
        return drawn | {"contrast": drawn["contrast"] * (math.nan if steps == 3 else 1.0)}

    runs[1].batches = replace(runs[1].batches, draw=spoilt)
    visitors = [Visitor(run) for run in runs]
    train_together(House(visitors), MACHINE, most=3)
    assert isinstance(visitors[1].outcome, TrainingError)
    assert "the loss became nan in epoch 2 of 3, step 1, at rate 0.002" in str(visitors[1].outcome)
    for visitor, member in ((visitors[0], (0, 12)), (visitors[2], (2, 9))):
        assert visitor.outcome == "trained"
        assert farthest(visitor.run.objective.state_dict(), finished("masks", new_run, *member)) < 1e-12


def test_a_run_that_nobody_wants_any_more_is_dropped(new_run: Callable[..., Run], double: None) -> None:
    visitors = [Visitor(new_run("masks", 0, 12, precise=True)), Visitor(new_run("masks", 1, 13), gone_after=2)]
    visitors[1].run = new_run("masks", 1, 13, precise=True)
    train_together(House(visitors), MACHINE, most=2)
    assert visitors[1].outcome == "sent away: "
    assert farthest(visitors[0].run.objective.state_dict(), finished("masks", new_run, 0, 12)) < 1e-12


def checkpoints_at(folder: Path, minutes: float = 60.0) -> Checkpoints:
    return Checkpoints(folder, {"test": folder.name}, minutes)


def test_a_stopped_run_goes_on_in_another_stack_beside_others_at_other_steps(
    new_run: Callable[..., Run], double: None, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, epochs=6, milestones=(2, 4))
    stopped = Visitor(
        new_run("masks", 1, 13, settings, precise=True, checkpoints=checkpoints_at(tmp_path / "one")), signal_after=5
    )
    train_together(House([stopped, Visitor(new_run("masks", 0, 12, precise=True))]), MACHINE, most=2)
    assert isinstance(stopped.outcome, Stopped) and stopped.outcome.signal == 15
    assert "the next run goes on from" in str(stopped.outcome)
    again = Visitor(new_run("masks", 1, 13, settings, precise=True, checkpoints=checkpoints_at(tmp_path / "one")))
    assert again.run.progress.epoch > 0
    fresh = Visitor(new_run("masks", 2, 9, settings, precise=True))
    train_together(House([fresh, again]), MACHINE, most=2)
    for visitor, member in ((again, (1, 13)), (fresh, (2, 9))):
        weights, _ = alone(new_run("masks", *member, settings, precise=True))
        assert farthest(visitor.run.objective.state_dict(), weights) < 1e-12


def test_checkpoints_of_a_stack_and_of_a_run_by_itself_are_the_same(
    new_run: Callable[..., Run], double: None, tmp_path: Path
) -> None:
    """Whichever is written last is where the other goes on."""
    make = partial(new_run, "simmim", 0, 21, precise=True, settings=replace(SETTINGS, epochs=5))
    visitor = Visitor(make(checkpoints=checkpoints_at(tmp_path / "c")), signal_after=4)
    train_together(House([visitor]), MACHINE, most=1)
    halfway = make(checkpoints=checkpoints_at(tmp_path / "c"))
    assert (halfway.progress.epoch, len(halfway.progress.losses)) > (0, 0)
    weights, _ = alone(halfway)
    assert farthest(weights, alone(make())[0]) < 1e-12


def test_every_checkpoint_is_of_the_step_that_it_names(
    new_run: Callable[..., Run], double: None, tmp_path: Path
) -> None:
    """Steps are queued ahead; a checkpoint must not hold weights that are further on than its step."""
    always = checkpoints_at(tmp_path / "c", minutes=0)
    visitors = [Visitor(new_run("masks", 0, 21, precise=True, checkpoints=always))]
    visitors.append(Visitor(new_run("masks", 1, 12, precise=True)))
    train_together(House(visitors), MACHINE, most=2)
    kept = sorted(always.folder.glob("*.safetensors"))
    assert len(kept) == 2
    expected = finished("masks", new_run, 0, 21)
    for path in kept:
        only = tmp_path / path.stem / path.name
        only.parent.mkdir()
        only.write_bytes(path.read_bytes())
        resumed = new_run("masks", 0, 21, precise=True)
        there = Checkpoints(only.parent, always.identity, 60.0)
        resumed.progress = there.load(resumed.objective, resumed.optimizer)
        if not resumed.finished:
            fit(resumed, MACHINE)
        assert farthest(resumed.objective.state_dict(), expected) < 1e-12


def test_a_stack_that_ends_early_saves_everybody(new_run: Callable[..., Run], double: None, tmp_path: Path) -> None:
    runs = [
        new_run("masks", seed, 12, precise=True, checkpoints=checkpoints_at(tmp_path / str(seed))) for seed in (0, 1)
    ]
    visitors = [Visitor(run) for run in runs]
    train_together(House(visitors, leave_after=3), MACHINE, most=2)
    assert [visitor.outcome for visitor in visitors] == ["sent away: "] * 2
    for seed in (0, 1):
        resumed = new_run("masks", seed, 12, precise=True, checkpoints=checkpoints_at(tmp_path / str(seed)))
        assert resumed.progress.epoch > 0
        weights, _ = alone(resumed)
        assert farthest(weights, finished("masks", new_run, seed, 12)) < 1e-12


def test_a_full_memory_halves_the_stack(
    new_run: Callable[..., Run], double: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start = Engine.start

    def small(self: Engine) -> None:
        if len(self.slots) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        start(self)

    monkeypatch.setattr(Engine, "start", small)
    visitors = [Visitor(new_run("masks", seed, 12, precise=True)) for seed in range(5)]
    train_together(House(visitors), MACHINE, most=5)
    assert [visitor.outcome for visitor in visitors] == ["trained"] * 2 + ["sent away: "] * 3
    assert "5 runs at once: the GPU's memory is full; 2 at once from here" in capsys.readouterr().out
    assert farthest(visitors[1].run.objective.state_dict(), finished("masks", new_run, 1, 12)) < 1e-12


def test_a_stack_that_changes_its_size_has_saved_everybody(
    new_run: Callable[..., Run], double: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Making the next engine may take a minute, in which the process may be killed."""
    start, formed = Engine.start, 0

    def killed(self: Engine) -> None:
        nonlocal formed
        formed += 1
        if formed == 2:
            raise KeyboardInterrupt
        start(self)

    monkeypatch.setattr(Engine, "start", killed)
    first = Visitor(new_run("masks", 0, 21, precise=True, checkpoints=checkpoints_at(tmp_path / "c")))
    with pytest.raises(KeyboardInterrupt):
        train_together(House([first], [(4, Visitor(new_run("masks", 1, 12, precise=True)))]), MACHINE, most=2)
    monkeypatch.undo()
    monkeypatch.setattr(Tensor, "float", lambda x: x if x.dtype == torch.float64 else x.to(torch.float32))
    resumed = new_run("masks", 0, 21, precise=True, checkpoints=checkpoints_at(tmp_path / "c"))
    assert (resumed.progress.epoch, len(resumed.progress.losses)) > (0, 0)
    weights, _ = alone(resumed)
    assert farthest(weights, finished("masks", new_run, 0, 21)) < 1e-12


def test_time_is_shared(new_run: Callable[..., Run]) -> None:
    runs = [new_run("masks", seed, 12) for seed in range(3)]
    began = time.monotonic()

    class Shared(House):
        def guests(self, room: int, clock: SharedClock) -> list[Visitor]:
            found = super().guests(room, clock)
            for visitor in found:
                visitor.run.use(clock)
            return found

    visitors = [Visitor(run) for run in runs]
    train_together(Shared(visitors), MACHINE, most=3)
    total = sum(visitor.seconds for visitor in visitors)
    assert 0 < total <= time.monotonic() - began
    for run in runs:
        seconds = [row["seconds"] for row in read_rows(run.curve_path)]
        assert sorted(seconds) == seconds and seconds[0] > 0


# What is checked at the start


@pytest.mark.parametrize("compiled", [True, False])
def test_wrong_gradients_are_noticed(
    compiled: bool, new_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One parameter's gradient of one run is wrong: the stack does without, and says so."""
    gradients = Engine._gradients

    def wrong(self: Engine, now: Any) -> Any:
        losses, found = gradients(self, now)
        if self.compiled or not compiled:
            found["encoder.blocks.1.norm2.weight"][-1] *= 1.5
        return losses, found

    monkeypatch.setattr(Engine, "_gradients", wrong)
    monkeypatch.setattr(engine_module, "_compiled", lambda function: function)
    monkeypatch.setattr(stack_module, "Engine", partial(Engine, compiled=compiled))
    run = new_run("masks", 0, 12)
    visitor = Visitor(run)
    train_together(House([visitor]), MACHINE, most=1)
    assert visitor.outcome == "trained"
    said = capsys.readouterr().out
    what = "compiled kernels not used" if compiled else "the stacked engine not used, step by step"
    assert f"{what}: the gradient of encoder.blocks.1.norm2.weight differs by " in said
    weights, _ = alone(new_run("masks", 0, 12))
    assert farthest(run.objective.state_dict(), weights) < (1e-3 if compiled else 1e-12)


def test_kernels_that_do_not_compile_are_left_out(
    new_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(function: Callable[..., Any]) -> Callable[..., Any]:
        raise OSError("no compiler here")

    monkeypatch.setattr(engine_module, "_compiled", broken)
    monkeypatch.setattr(stack_module, "Engine", partial(Engine, compiled=True))
    visitor = Visitor(new_run("masks", 0, 12))
    train_together(House([visitor]), MACHINE, most=1)
    assert visitor.outcome == "trained"
    assert capsys.readouterr().out.startswith("compiled kernels not used: no compiler here\n")


def test_an_objective_of_ones_own_is_trained_step_by_step(
    new_run: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    """The engine knows its own objectives' losses; what is derived from one may mean something else."""

    class Doubled(Segmentation):
        def loss(self, batch: Any) -> Tensor:
            return 2 * super().loss(batch)

    runs = [new_run("masks", 0, 12) for _ in range(2)]
    for run in runs:
        run.objective.__class__ = Doubled
    visitor = Visitor(runs[0])
    train_together(House([visitor]), MACHINE, most=1)
    assert visitor.outcome == "trained"
    assert "step by step: it knows no loss of Doubled" in capsys.readouterr().out
    assert farthest(runs[0].objective.state_dict(), alone(runs[1])[0]) == 0


def test_images_that_do_not_fit_are_read_step_by_step(
    new_run: Callable[..., Run], double: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("simmim", "masks"):
        runs = [new_run(kind, seed, 12, precise=True) for seed in (0, 1)]
        with monkeypatch.context() as small:
            small.setattr(engine_module, "IN_MEMORY", 0)
            train_together(House([Visitor(run) for run in runs]), MACHINE, most=2)
        assert farthest(runs[1].objective.state_dict(), finished(kind, new_run, 1, 12)) < 1e-12


@pytest.mark.parametrize("wrong", [False, True])
def test_rounding_that_outweighs_a_late_gradient_is_no_fault(
    wrong: bool, new_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that has nearly fitted its images has gradients that bfloat16 hardly knows; wrong ones are noticed."""
    gradients = Engine._gradients

    def scaled(self: Engine, now: Any) -> Any:
        losses, found = gradients(self, now)
        return losses, {name: x * (30 if wrong else 1) for name, x in found.items()}

    settings = replace(SETTINGS, epochs=400, lr=3e-3, weight_decay=0.0, milestones=())
    run = new_run("frozen", 0, 8, settings)
    fit(run, MACHINE)
    run.progress.epoch = 0
    monkeypatch.setattr(Engine, "_gradients", scaled)
    engine = Engine([run], Machine(CPU, "bfloat16"))
    if wrong:
        with pytest.raises(engine_module.UnsoundError):
            engine.start()
    else:
        engine.start()


# Rare moments


def test_what_a_run_gets_back_is_its_own(new_run: Callable[..., Run]) -> None:
    """Its optimiser's state does not change with the stack that goes on, nor keep that in memory."""
    runs = [new_run("masks", seed, 12) for seed in (0, 1)]
    engine = Engine(runs, MACHINE)
    engine.start()
    engine.give_back(runs[0])
    kept = {place: {k: x.clone() for k, x in state.items()} for place, state in runs[0].optimizer.state.items()}
    engine.queue()
    for place, state in runs[0].optimizer.state.items():
        for key, x in state.items():
            assert torch.equal(x, kept[place][key])
            assert x.untyped_storage().nbytes() == x.nbytes


def test_a_newcomer_is_not_blamed_for_who_had_its_place(new_run: Callable[..., Run]) -> None:
    """A run whose weights are NaN leaves, and another takes its place before anything is looked at again."""
    runs = [new_run("masks", *member) for member in ((0, 30), (1, 8), (2, 30))]
    draw = runs[1].batches.draw
    runs[1].batches = replace(
        runs[1].batches, draw=lambda positions, draws: {k: x * math.nan for k, x in draw(positions, draws).items()}
    )
    newcomer = Visitor(new_run("masks", 3, 8))
    visitors = [Visitor(run) for run in runs]
    train_together(House(visitors, [(0, newcomer)]), MACHINE, most=3)
    assert isinstance(visitors[1].outcome, TrainingError)
    assert [visitor.outcome for visitor in (visitors[0], visitors[2], newcomer)] == ["trained"] * 3


def test_a_run_whose_very_last_update_fails_leaves_alone(
    new_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The losses are finite, and its epoch is closed, when its weights turn out not to be."""
    scalars = engine_module.adam_scalars
    monkeypatch.setattr(
        engine_module,
        "adam_scalars",
        lambda settings, rate, step: (math.nan,) * 4 if step == 6 else scalars(settings, rate, step),
    )
    visitors = [Visitor(new_run("masks", 0, 12)), Visitor(new_run("masks", 1, 8))]  # the second takes 3 steps
    train_together(House(visitors), MACHINE, most=2)
    assert visitors[1].outcome == "trained"
    assert "the weights became NaN or infinite in epoch 3 of 3, step 2, at rate 0.001" in str(visitors[0].outcome)


def test_what_becomes_due_while_it_is_looked_at_waits(
    new_run: Callable[..., Run], double: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint's weights would be those of an earlier step."""
    monkeypatch.setattr(stack_module, "LOOK", -1.0)
    asked = 0

    class Flipping(Checkpoints):
        @property
        def due(self) -> bool:
            nonlocal asked
            asked += 1
            return asked % 2 == 0

    checkpoints = Flipping(tmp_path / "c", {"test": "c"}, 60.0)
    train_together(House([Visitor(new_run("masks", 0, 21, precise=True, checkpoints=checkpoints))]), MACHINE, most=1)
    kept = sorted(checkpoints.folder.glob("*.safetensors"))
    assert len(kept) == 2
    kept[-1].unlink()  # the one before, which has steps before it
    resumed = new_run("masks", 0, 21, precise=True, checkpoints=checkpoints_at(tmp_path / "c"))
    assert len(resumed.progress.losses) + resumed.progress.epoch > 0
    weights, _ = alone(resumed)
    assert farthest(weights, finished("masks", new_run, 0, 21)) < 1e-12


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsound(self: Engine) -> None:
        raise engine_module.UnsoundError("other gradients")

    monkeypatch.setattr(Engine, "start", unsound)


def test_without_an_engine_weights_are_looked_at_too(
    new_run: Callable[..., Run], no_engine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, steps = Adam.step, 0

    def spoilt(self: Adam, *given: Any) -> None:
        nonlocal steps
        steps += 1
        step(self, *given)
        if steps == 6:
            with torch.no_grad():
                self.parameters[0].fill_(math.nan)

    monkeypatch.setattr(Adam, "step", spoilt)
    visitor = Visitor(new_run("masks", 0, 12))
    train_together(House([visitor]), MACHINE, most=1)
    assert isinstance(visitor.outcome, TrainingError)


@pytest.mark.parametrize("why", ["nobody waits", "the host leaves"])
def test_without_an_engine_a_run_can_leave(
    why: str, new_run: Callable[..., Run], no_engine: None, tmp_path: Path
) -> None:
    visitor = Visitor(new_run("masks", 0, 12, checkpoints=checkpoints_at(tmp_path / "c")))
    house = House([visitor])
    if why == "nobody waits":
        visitor.gone_after = 3
    else:
        house.leave_after = 3
    train_together(house, MACHINE, most=4)
    assert visitor.outcome == "sent away: "
    assert house.rooms[-1] == 0  # whoever waits is told that there is no place
    assert new_run("masks", 0, 12, checkpoints=checkpoints_at(tmp_path / "c")).progress.epoch == 1


def test_a_signal_that_comes_while_others_are_looked_after_stops_a_run(new_run: Callable[..., Run]) -> None:
    """It is not sent away: its own process is the one that was to stop."""
    visitor = Visitor(new_run("masks", 0, 12))

    class Signalled(House):
        asked = 0

        def leaving(self, left: float) -> bool:
            if not super().leaving(left):
                return False
            self.asked += 1
            if self.asked == 2:  # the first time is before anybody is looked after
                visitor.signal_after = 0
            return True

    train_together(Signalled([visitor], leave_after=2), MACHINE, most=1)
    assert isinstance(visitor.outcome, Stopped)


def test_epochs_of_one_step_take_their_share_of_the_time(
    new_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many of them end when their steps' losses arrive, all at once."""
    monkeypatch.setattr(engine_module, "AHEAD", 60.0)
    run = new_run("masks", 0, 8, replace(SETTINGS, epochs=100))
    train_together(House([Visitor(run)]), MACHINE, most=1)
    rows = list(read_rows(run.curve_path))
    rates = sorted(row["images_per_second"] for row in rows)
    seconds = [row["seconds"] for row in rows]
    overall = 100 * 8 / seconds[-1]
    assert len(rows) == 100 and rates[40] < 20 * overall  # on a CPU, the last ones are there when they are asked for
    assert sorted(set(seconds)) == seconds
    assert sum(8 / rate for rate in rates) == pytest.approx(seconds[-1], rel=0.01)


# On a GPU

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_graph_of_compiled_kernels_trains_as_a_cpu_does(
    kind: str, precision: str, new_run: Callable[..., Run], tiny: ModelSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(torch.device("cuda"), precision)
    members = [(0, 12), (1, 21), (2, 8)]
    model = replace(tiny, head_dim=16)  # as narrow as the attention kernels take
    runs = [new_run(kind, *member, model=model) for member in members]
    for run in runs:
        run.objective.cuda()
        run.optimizer = Adam(run.objective, run.settings)
    train_together(House([Visitor(run) for run in runs]), machine, most=3)
    said = [line for line in capsys.readouterr().out.splitlines() if "not used" in line or "no CUDA graph" in line]
    strict = "the project's attention kernels not used: float32 products without TF32"
    assert set(said) == ({strict} if precision == "float32" else set())
    for run, member in zip(runs, members, strict=True):
        found = [row["loss"] for row in read_rows(run.curve_path)]
        _, curve = alone(new_run(kind, *member, model=model))
        assert found == pytest.approx([row["loss"] for row in curve], rel=0.05)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("kind", ["simmim", "classes", "masks"])
def test_a_graph_takes_the_steps_that_single_launches_take(
    kind: str, new_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(torch.device("cuda"), "float32")
    found = []
    for graph in (True, False):
        runs = [new_run(kind, seed, 12 + seed) for seed in range(2)]
        for run in runs:
            run.objective.cuda()
            run.optimizer = Adam(run.objective, run.settings)
        if not graph:
            monkeypatch.setattr(Engine, "_capture", lambda self: None)
        train_together(House([Visitor(run) for run in runs]), machine, most=2)
        found.append([run.objective.state_dict() for run in runs])
    for graphed, single in zip(*found, strict=True):
        assert farthest(graphed, single) < 5e-3


@pytest.mark.gpu
@needs_gpu
def test_a_run_goes_on_in_the_middle_of_an_epoch_on_a_gpu(new_run: Callable[..., Run], tmp_path: Path) -> None:
    """The losses of the steps before come from a checkpoint."""
    for signal_after in (2, math.inf):
        run = new_run("masks", 0, 30, checkpoints=checkpoints_at(tmp_path / "c"))
        run.objective.cuda()
        run.optimizer = Adam(run.objective, run.settings)
        run.progress = run.report.progress = run.checkpoints.load(run.objective, run.optimizer)
        visitor = Visitor(run, signal_after=signal_after)
        began = len(run.progress.losses)
        train_together(House([visitor]), Machine(torch.device("cuda"), "float32"), most=1)
    assert began > 0 and visitor.outcome == "trained"
