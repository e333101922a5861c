"""Checkpoints: a stopped run ends like an undisturbed one, and goes on only from its own, whole checkpoints."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_study import Study

from viny.learning import checkpoint, stages, train
from viny.learning.checkpoint import Checkpoints, Progress
from viny.learning.optimizer import Adam
from viny.learning.settings import TrainSettings
from viny.learning.weights import weights_beside
from viny.runtime.errors import TrainingError
from viny.runtime.files import file_sha256
from viny.runtime.signals import Stopped
from viny.study.grid import Cell

STAGES = ("pretrain", "scenes", "spatial", "finetune")
CELL = Cell(24, "scenes", 16, 0)


class CrashError(Exception):
    """The process is gone."""


def run(study: Study, stage: str) -> Path:
    """Run one stage from a random start; returns its record."""
    if stage == "pretrain":
        return study.pretrain()
    if stage == "finetune":
        return study.finetune(CELL, None)
    return study.intermediate(stage, None)


def folder_of(study: Study, stage: str) -> Path:
    leaf = stage if stage in ("pretrain", "finetune") else f"intermediate-{stage}"
    return study.root / "checkpoints" / leaf


@pytest.fixture(scope="module")
def configured(made_study: Callable[[str], dict[str, Any]]) -> Callable[[str, str], dict[str, Any]]:
    def make(protocol: str, precision: str) -> dict[str, Any]:
        config = made_study(protocol)
        config["compute"]["precision"] = precision
        config["finetune"]["optimizer"] = "adam" if protocol == "paper" else "adamw"
        return config

    return make


@pytest.fixture(scope="module")
def reference(
    tmp_path_factory: pytest.TempPathFactory, configured: Callable[[str, str], dict[str, Any]]
) -> Callable[..., tuple[str, list[float], Path]]:
    """Hash of the weights and losses of an undisturbed run, made once, and its study's folder."""
    made: dict[tuple[str, str, str], tuple[str, list[float], Path]] = {}

    def make(stage: str, protocol: str = "sound", precision: str = "float32") -> tuple[str, list[float], Path]:
        key = (stage, protocol, precision)
        if key not in made:
            study = Study(tmp_path_factory.mktemp("reference"), configured(protocol, precision))
            record = run(study, stage)
            made[key] = file_sha256(weights_beside(record)), losses(record), study.root
        return made[key]

    return make


@pytest.fixture
def study(tmp_path: Path, configured: Callable[[str, str], dict[str, Any]]) -> Study:
    return Study(tmp_path, configured("sound", "float32"), checkpoint_minutes=0)


def losses(record: Path) -> list[float]:
    with open(record.with_name("curve.csv"), encoding="utf-8", newline="") as f:
        return [float(row["loss"]) for row in csv.DictReader(f)]


@pytest.fixture
def crash_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], list[int]]:
    """Let that many more steps pass, then crash; None for no crash. Returns a list that counts the steps."""
    step = train._step
    left: list[int | None] = [None]
    counted = [0]

    def counting(*arguments: Any) -> Any:
        if left[0] == 0:
            raise CrashError
        if left[0] is not None:
            left[0] -= 1
        counted[0] += 1
        return step(*arguments)

    monkeypatch.setattr(train, "_step", counting)

    def set_up(steps: int | None) -> list[int]:
        left[0], counted[0] = steps, 0
        return counted

    return set_up


# The same weights


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("protocol", ["sound", "paper"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_crashes_at_every_step_ends_the_same(
    stage: str,
    protocol: str,
    precision: str,
    tmp_path: Path,
    configured: Callable[[str, str], dict[str, Any]],
    reference: Callable[..., tuple[str, list[float], Path]],
    crash_after: Callable[[int | None], list[int]],
) -> None:
    weights, curve, _ = reference(stage, protocol, precision)
    study = Study(tmp_path, configured(protocol, precision), checkpoint_minutes=0)
    crashes = 0
    for _ in range(100):
        steps = crash_after(1)
        try:
            record = run(study, stage)
        except CrashError:
            crashes += 1
            assert steps[0] == 1
        else:
            break
    assert crashes >= 5  # each but the last step
    assert file_sha256(weights_beside(record)) == weights
    assert losses(record) == curve


def test_steps_that_a_checkpoint_holds_are_not_repeated(
    study: Study,
    reference: Callable[..., tuple[str, list[float], Path]],
    crash_after: Callable[[int | None], list[int]],
) -> None:
    crash_after(4)
    with pytest.raises(CrashError):
        run(study, "finetune")
    steps = crash_after(None)
    record = run(study, "finetune")
    assert steps[0] == 3 * 2 - 4
    assert file_sha256(weights_beside(record)) == reference("finetune")[0]
    told = json.loads(record.with_name("run.json").read_text())
    assert [(a["to_epoch"], a["to_step"]) for a in told["earlier_attempts"]] == [(2, 2)]
    assert told["earlier_attempts"][0]["threads"] == 1


def test_after_success_nothing_is_left(study: Study) -> None:
    run(study, "finetune")
    left = [p for p in (study.root / "checkpoints").rglob("*") if p.is_file()]
    assert left == []


def test_the_last_two_are_kept(study: Study, crash_after: Callable[[int | None], list[int]]) -> None:
    crash_after(5)
    with pytest.raises(CrashError):
        run(study, "finetune")
    names = sorted(p.name.partition("_")[2] for p in folder_of(study, "finetune").glob("*.safetensors"))
    assert names == [f"epoch-00000{e}_step-0000000{s}.safetensors" for e, s in ((2, 2), (3, 1))]


# Stop signals


@pytest.fixture(params=[signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def number(request: pytest.FixtureRequest) -> Iterator[int]:
    """A stop signal that is not ignored; background jobs and processes under nohup ignore theirs."""
    before = signal.signal(request.param, signal.default_int_handler)
    yield request.param
    signal.signal(request.param, before)


def test_a_signal_ends_the_step_and_writes_a_checkpoint(
    number: int,
    study: Study,
    reference: Callable[..., tuple[str, list[float], Path]],
    crash_after: Callable[[int | None], list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study.checkpoint_minutes = 1000
    steps = crash_after(None)
    counting = train._step

    def signalled(*arguments: Any) -> Any:
        if steps[0] == 2:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # an impatient second one changes nothing
        return counting(*arguments)

    monkeypatch.setattr(train, "_step", signalled)
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match=r"epoch 2 of 3, step 1; the next run goes on from .*\.safetensors") as stop:
        run(study, "finetune")
    assert stop.value.signal == number
    assert steps[0] == 3
    assert signal.getsignal(number) is before
    monkeypatch.setattr(train, "_step", counting)
    steps = crash_after(None)
    record = run(study, "finetune")
    assert steps[0] == 3
    assert file_sha256(weights_beside(record)) == reference("finetune")[0]


# Checkpoints that must not be used


def stopped(study: Study, crash_after: Callable[[int | None], list[int]], stage: str = "finetune") -> list[Path]:
    """Crash a run after 3 of 6 steps; returns its checkpoints, newest last."""
    crash_after(3)
    with pytest.raises(CrashError):
        run(study, stage)
    return sorted(folder_of(study, stage).glob("*.safetensors"))


def damage(content: bytes, kind: str, draw: random.Random) -> bytes:
    place = draw.randrange(len(content))
    if kind == "cut":
        return content[:place]
    if kind == "flip":
        return content[:place] + bytes([content[place] ^ (1 << draw.randrange(8))]) + content[place + 1 :]
    if kind == "zero":
        return content[:place] + bytes(len(content) - place)
    return content + b"\0" * 7


@pytest.mark.parametrize("kind", ["cut", "flip", "zero", "longer"])
def test_damaged_checkpoints_are_reported_and_not_used(
    kind: str,
    study: Study,
    reference: Callable[..., tuple[str, list[float], Path]],
    crash_after: Callable[[int | None], list[int]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    older, newer = stopped(study, crash_after)
    sound = newer.read_bytes()
    kept = study.root / "kept"
    shutil.copytree(folder_of(study, "finetune"), kept)
    draw = random.Random(kind)
    for _ in range(12):
        shutil.rmtree(folder_of(study, "finetune"), ignore_errors=True)
        shutil.copytree(kept, folder_of(study, "finetune"))
        newer.write_bytes(damage(sound, kind, draw))
        capsys.readouterr()
        steps = crash_after(None)
        record = run(study, "finetune")
        said = capsys.readouterr().out
        assert f"{newer}: damaged, not used" in said
        assert f"going on from {older.name}" in said
        assert steps[0] == 4
        assert file_sha256(weights_beside(record)) == reference("finetune")[0]


def test_when_all_are_damaged_the_run_starts_anew(
    study: Study,
    reference: Callable[..., tuple[str, list[float], Path]],
    crash_after: Callable[[int | None], list[int]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for path in stopped(study, crash_after):
        path.write_bytes(b"")
    steps = crash_after(None)
    record = run(study, "finetune")
    assert capsys.readouterr().out.count("damaged, not used") == 2
    assert steps[0] == 6
    assert file_sha256(weights_beside(record)) == reference("finetune")[0]


def another_rate(config: dict[str, Any]) -> None:
    config["finetune"]["lr"] = 0.004


def another_model(config: dict[str, Any]) -> None:
    config["model"]["mlp_dim"] = 40


def another_precision(config: dict[str, Any]) -> None:
    config["compute"]["precision"] = "bfloat16"


def another_loss(config: dict[str, Any]) -> None:
    config["switches"]["segmentation_loss"] = "pixel_softmax"


def other_images(config: dict[str, Any]) -> None:
    config["synthetic"]["seed"] = 5


def another_subset(config: dict[str, Any]) -> None:
    config["split_seed"] = 43


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (another_rate, "spec.train.lr (0.001 there, 0.004 here)"),
        (another_model, "spec.model.mlp_dim (32 there, 40 here)"),
        (another_precision, "precision (float32 there, bfloat16 here)"),
        (another_loss, "spec.segmentation_loss (class_softmax there, pixel_softmax here)"),
        (other_images, "pack_sha256"),
        (another_subset, "split_sha256"),
    ],
)
def test_checkpoints_of_other_settings_or_data_are_reported_and_not_used(
    change: Callable[[dict[str, Any]], None],
    key: str,
    study: Study,
    tmp_path: Path,
    crash_after: Callable[[int | None], list[int]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    foreign = stopped(study, crash_after)
    change(study.config)
    other, alone = (Study(tmp_path / name, study.config, checkpoint_minutes=0) for name in ("other", "alone"))
    shutil.copytree(study.root / "checkpoints", other.root / "checkpoints")
    steps = crash_after(None)
    record = run(other, "finetune")
    said = capsys.readouterr().out
    assert said.count("of another run, not used; differs in ") == len(foreign)
    assert key in said
    assert steps[0] == 6
    assert file_sha256(weights_beside(record)) == file_sha256(weights_beside(run(alone, "finetune")))


def test_checkpoints_of_another_cell_or_code_or_parent_are_not_used(
    study: Study, crash_after: Callable[[int | None], list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    parent = run(study, "pretrain")
    stopped(study, crash_after)
    crash_after(None)
    study.finetune(Cell(24, "none", 16, 0), None)
    assert "spec.cell.intermediate (scenes there, none here)" in capsys.readouterr().out
    stopped(study, crash_after)
    crash_after(None)
    study.finetune(CELL, parent)
    assert "differs in parent_sha256" in capsys.readouterr().out
    stopped(study, crash_after)
    steps = crash_after(None)
    inputs = study.finetune_inputs(CELL)
    spec = {**stages_spec(study), "code": "abc"}
    study.train(spec, inputs, None, "finetune")
    assert "spec.code (None there, abc here)" in capsys.readouterr().out
    assert steps[0] == 6


def stages_spec(study: Study) -> dict[str, Any]:
    from viny.study import specs

    return specs.finetune_spec(study.config, CELL)


def test_another_number_of_threads_is_used_but_said(
    study: Study, crash_after: Callable[[int | None], list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    stopped(study, crash_after)
    checkpoints = Checkpoints(folder_of(study, "finetune"), {}, 5, {"threads": 2, "host": "h", "started": "now"})
    about = {"attempts": [{"threads": 1, "host": "h", "started": "then"}], "epoch": 0, "step": 3}
    checkpoints._report(Path("x"), about)
    said = capsys.readouterr().out
    assert "threads was 1 and is 2 now: the last bits of the weights may differ" in said
    assert "host" not in said


# Failures


def test_a_full_disk_costs_a_checkpoint_and_not_the_training(
    study: Study,
    reference: Callable[..., tuple[str, list[float], Path]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "atomic_path", full)
    record = run(study, "finetune")
    assert capsys.readouterr().out.count("could not be written (No space left on device)") == 6
    assert file_sha256(weights_beside(record)) == reference("finetune")[0]


@pytest.mark.parametrize("bad", ["loss", "weights"])
def test_divergence_leaves_the_last_good_checkpoint(
    bad: str, study: Study, monkeypatch: pytest.MonkeyPatch, crash_after: Callable[[int | None], list[int]]
) -> None:
    steps = crash_after(None)
    counting = train._step

    def diverging(gradients: Any, *rest: Any) -> Any:
        loss = counting(gradients, *rest)
        if steps[0] == 4:
            if bad == "loss":
                return loss * float("inf")
            with torch.no_grad():
                gradients.objective.head.bias[0] = float("nan")
        return loss

    monkeypatch.setattr(train, "_step", diverging)
    said = r"^finetune: .* in epoch 2 of 3, step 2, at rate 0\.001; lower finetune\.lr .*last good checkpoint is (.*)$"
    with pytest.raises(TrainingError, match=said) as error:
        run(study, "finetune")
    last = Path(str(error.value).rpartition(" is ")[2])
    assert last.name.endswith("epoch-000002_step-00000001.safetensors")
    assert all(bool(t.isfinite().all()) for t in load_file(last).values())
    assert not (study.root / "finetune" / "model.safetensors").exists()
    # The next run goes on from there, to the same end.
    steps[0] = 3
    with pytest.raises(TrainingError):
        run(study, "finetune")
    assert steps[0] == 4


def test_checkpoint_of_a_model_without_state_is_a_fresh_start(tmp_path: Path) -> None:
    model, settings = torch.nn.Linear(2, 2), TrainSettings(1, 1, "adam", 1e-3, 0.0, (), 0.1)
    assert Checkpoints(tmp_path / "none", {}, 5).load(model, Adam(model, settings)) == Progress()


def test_curve_and_seconds_of_a_stopped_run_cover_all_attempts(
    study: Study, crash_after: Callable[[int | None], list[int]]
) -> None:
    stopped(study, crash_after)
    crash_after(None)
    record = run(study, "finetune")
    with open(record.with_name("curve.csv"), encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))
    seconds = [float(row["seconds"]) for row in rows]
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    assert sorted(seconds) == seconds
    assert json.loads(record.with_name("run.json").read_text())["training_seconds"] >= seconds[-1] - 1e-3  # rounded


def test_default_interval_is_the_schema_s() -> None:
    import yaml

    from viny.study.config import SCHEMA

    schema = yaml.safe_load(SCHEMA.read_text())
    default = schema["properties"]["compute"]["properties"]["checkpoint_minutes"]["default"]
    assert default == stages.CHECKPOINT_MINUTES
