"""Rates scored by short trainings, and the fine-tuning that takes the best of them."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_study import Study

from viny.commands.stages import parser
from viny.data.pack import open_pack
from viny.data.splits import read_split
from viny.evidence.metrics import summarise
from viny.learning import train as train_module
from viny.learning import tuning
from viny.learning.leader import Leader
from viny.learning.rates import chosen_rate, content_sha256
from viny.learning.run import Run
from viny.learning.scores import confusion_matrices
from viny.learning.stages import Files, TrainingJob, train
from viny.learning.tuning import divided, shortened, tune
from viny.learning.weights import load_weights, weights_beside
from viny.runtime.errors import InputError, TrainingError
from viny.runtime.files import read_sealed, write_sealed
from viny.runtime.stacks import Work
from viny.study import specs
from viny.study.grid import Cell

CELL = Cell(0, "none", 16, 0)
RATES = [1e-4, 5e-3, 2e-2]


@dataclass
class Tuned(Study):
    """A study whose rates are tuned."""

    def spec(self, stage: str = "finetune", seed: int = 0, **more: Any) -> dict[str, Any]:
        found = specs.finetune_spec(self.config, replace(CELL, seed=seed))
        return {**found, "stage": stage, "tune": {"lr": RATES, "share": 0.5, "validation": 0.25}, **more}

    def files(self, seed: int = 0) -> dict[str, Path]:
        return dict(zip(("manifest", "split", "indices"), self.finetune_inputs(replace(CELL, seed=seed)), strict=True))

    def tune(self, seed: int = 0, **more: Any) -> Path:
        record = self.root / "tuning" / f"{seed}.json"
        folder = self.root / "checkpoints" / f"tune-{seed}"
        tune(
            self.spec("tune", seed, **more),
            **self.files(seed),
            record=record,
            checkpoints=folder,
            checkpoint_minutes=self.checkpoint_minutes,
        )
        assert not folder.exists()
        return record

    def fit(self, leaf: str, tuned: list[Path] | None = None, **more: Any) -> Path:
        names = {"weights": "model.safetensors", "record": "model.json", "curve": "curve.csv", "run": "run.json"}
        outputs = {name: self.root / leaf / file for name, file in names.items()}
        train(self.spec(**more), **self.files(), **outputs, tuned=tuned)
        return outputs["record"]


@pytest.fixture
def study(tmp_path: Path, made_study: Callable[[str], dict[str, Any]]) -> Tuned:
    return Tuned(tmp_path, made_study("sound"))


def content(record: Path) -> dict[str, Any]:
    """What a tuning says but for the time that it took."""
    value = json.loads(record.read_text())
    value.pop("provenance"), value.pop("sha256")
    for rate in value["rates"]:
        assert rate.pop("seconds") > 0
    return value


# Scores


@pytest.mark.parametrize(("count", "share", "kept"), [(16, 0.25, 4), (10, 0.25, 3), (2, 0.25, 1), (3, 0.9, 2)])
def test_validation_images_are_a_share_of_the_training_images(count: int, share: float, kept: int) -> None:
    images = np.arange(100, 100 + count)
    train_on, validate = divided(images, share, seed=0)
    assert len(validate) == kept
    assert sorted([*train_on, *validate]) == images.tolist()
    if count == 16:
        assert divided(images, share, seed=1)[1].tolist() != validate.tolist()
    with pytest.raises(InputError, match="1 labelled images are too few"):
        divided(images[:1], share, seed=0)


def test_short_trainings_keep_the_shape_of_the_schedule() -> None:
    whole = {"epochs": 40, "milestones": [20, 36], "lr": 1.0, "batch_size": 8}
    assert shortened(whole, 0.25, 0.1) == {"epochs": 10, "milestones": [5, 9], "lr": 0.1, "batch_size": 8}
    assert shortened(whole, 0.01, 0.1) == {"epochs": 1, "milestones": [], "lr": 0.1, "batch_size": 8}


def test_a_tuning_scores_each_rate_on_images_that_it_does_not_train_on(
    study: Tuned, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[tuple[TrainingJob, float, np.ndarray]] = []
    scored = tuning._scored

    def spy(job: TrainingJob, lr: float, validation: np.ndarray) -> Any:
        jobs.append((job, lr, validation))
        return scored(job, lr, validation)

    monkeypatch.setattr(tuning, "_scored", spy)
    record = json.loads(study.tune().read_text())
    pack = open_pack(study.pack("segmentation"))
    split = read_split(study.files()["split"], study.files()["indices"], pack)
    assert record["spec"] == study.spec("tune")
    assert [rate["lr"] for rate in record["rates"]] == RATES
    for (job, lr, validation), rate in zip(jobs, record["rates"], strict=True):
        trained = job.batches.subsets["images"].indices
        assert len(trained) == 12 and len(validation) == 4
        assert sorted([*trained, *validation]) == sorted(split["train"])
        assert job.settings.lr == lr and job.settings.epochs == 2
        assert (rate["validation_images"], rate["epochs"], rate["image_passes"]) == (4, 2, 24)
        assert not rate["diverged"]
        # As an evaluation would score the model on these images.
        images = job.batches.subsets["images"].pack.images[validation]
        mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
        shown = (torch.from_numpy(images) / 255 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
        guess = job.objective(shown).argmax(1)
        matrices = confusion_matrices(torch.from_numpy(pack.masks[validation]), guess, 3).numpy()
        assert rate["miou"] == pytest.approx(summarise(matrices, pack.manifest["mask_classes"], None)["miou_dataset"])
    # The same start, images and draws: only the rate differs.
    first, *others = [job.new_run() for job, _, _ in jobs]
    for other in others:
        assert [s.positions.tolist() for s in other.steps()] == [s.positions.tolist() for s in first.steps()]
        for a, b in zip(first.steps(), other.steps(), strict=True):
            assert torch.equal(torch.rand(4, generator=first.draws(a)), torch.rand(4, generator=other.draws(b)))
    assert record["parent_sha256"] is None and record["pack_sha256"] == pack.sha256
    assert {len(set(jobs[at][0].record["split_sha256"] for at in range(3)))} == {1}


def test_a_tuning_repeats_and_another_seed_has_another(study: Tuned, tmp_path: Path) -> None:
    first, other = study.tune(0), study.tune(1)
    again = Tuned(tmp_path / "again", study.config).tune(0)
    assert content(first) == content(again) != content(other)
    records = [read_sealed(path, "a tuning") for path in (first, again, other)]
    assert content_sha256(records[0]) == content_sha256(records[1]) != content_sha256(records[2])


@pytest.mark.parametrize("encoder", ["trained", "frozen"])
def test_a_tuning_that_is_killed_at_every_step_ends_the_same(
    encoder: str, study: Tuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {} if encoder == "trained" else {"encoder": encoder}
    expected = study.tune(**more)
    killed = Tuned(tmp_path / "killed", study.config, checkpoint_minutes=0)
    look, taken, crashes = Run.look, 0, 0

    class CrashError(Exception):
        pass

    def looking(self: Run, save: bool | None = None) -> None:
        nonlocal taken
        look(self, save)
        taken += 1
        raise CrashError

    monkeypatch.setattr(Run, "look", looking)
    for _ in range(50):
        try:
            record = killed.tune(**more)
            break
        except CrashError:
            crashes += 1
    assert crashes == taken == 4 * len(RATES)  # two steps in each of two epochs, none of them twice
    assert content(record) == content(expected)


@pytest.fixture
def diverging(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let the loss become NaN at rates from a given one on."""

    def set_up(least: float) -> None:
        step = train_module._step

        def spoilt(gradients: Any, batches: Any, optimizer: Any, *rest: Any) -> Any:
            loss = step(gradients, batches, optimizer, *rest)
            return loss * math.nan if optimizer.lr >= least else loss

        monkeypatch.setattr(train_module, "_step", spoilt)

    return set_up


def test_a_rate_that_diverges_is_noted(
    study: Tuned, diverging: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    diverging(2e-2)
    record = json.loads(study.tune().read_text())
    assert [rate["diverged"] for rate in record["rates"]] == [False, False, True]
    assert record["rates"][2]["miou"] is None and record["rates"][0]["miou"] > 0
    assert "tune: the loss became nan in epoch 1 of 2, step 1, at rate 0.02" in capsys.readouterr().out
    assert chosen_rate(study.spec(), [study.root / "tuning" / "0.json"], record["pack_sha256"])["lr"] < 2e-2


def test_rates_that_all_diverge_are_an_error(study: Tuned, diverging: Callable[[float], None]) -> None:
    diverging(0.0)
    with pytest.raises(TrainingError, match=r"the loss diverged at every rate, 0\.0001, 0\.005, 0\.02; put lower"):
        study.tune()
    assert not (study.root / "tuning").exists()


# The fine-tuning


@pytest.fixture
def tunings(study: Tuned) -> list[Path]:
    return [study.tune(seed) for seed in (0, 1)]


def scores(path: Path, *mious: float | None, **more: Any) -> Path:
    """Give a tuning other scores."""
    record = json.loads(path.read_text())
    for rate, miou in zip(record["rates"], mious, strict=True):
        rate |= {"miou": miou, "diverged": miou is None}
    write_sealed(path, {**record, **more})
    return path


@pytest.mark.parametrize(
    ("first", "second", "best"),
    [
        ((0.1, 0.2, 0.3), (0.1, 0.2, 0.3), 2e-2),
        ((0.1, 0.4, 0.3), (0.1, 0.2, 0.5), 2e-2),
        ((0.3, 0.3, 0.2), (0.3, 0.3, 0.2), 1e-4),  # a tie
        ((0.1, 0.2, None), (0.1, 0.2, 0.39), 5e-3),  # as 0
    ],
)
def test_the_rate_with_the_best_mean_is_taken(
    first: tuple[float, ...],
    second: tuple[float, ...],
    best: float,
    study: Tuned,
    tunings: list[Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = [scores(path, *mious) for path, mious in zip(tunings, (first, second), strict=True)]
    capsys.readouterr()
    record = json.loads(study.fit("tuned", files).read_text())
    fixed = copy.deepcopy(study)
    fixed.config["finetune"]["lr"] = best
    spec = {key: value for key, value in fixed.spec().items() if key != "tune"}
    plain = study.train(spec, study.finetune_inputs(CELL), None, "plain")
    weights = [load_weights(weights_beside(path))[0] for path in (study.root / "tuned" / "model.json", plain)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert record["spec"] == study.spec()
    assert record["tuned"]["lr"] == best
    means = [((a or 0) + (b or 0)) / 2 for a, b in zip(first, second, strict=True)]
    assert record["tuned"]["rates"] == pytest.approx(dict(zip(map(str, RATES), means, strict=True)))
    assert record["tuned"]["tunings"] == [content_sha256(read_sealed(path, "a tuning")) for path in files]
    assert "tuned" not in json.loads(plain.read_text())
    said = f"finetune: rate {best:g}, by mIoU on validation images, mean of 2 seeds: 0.0001 {100 * means[0]:.2f} %"
    assert said in capsys.readouterr().out


def test_a_model_says_the_same_however_long_its_tunings_took(study: Tuned, tunings: list[Path]) -> None:
    hashes = []
    for leaf, seconds in (("one", 1.0), ("two", 2.0)):
        for path in tunings:
            record = json.loads(path.read_text())
            for rate in record["rates"]:
                rate["seconds"] = seconds
            write_sealed(path, record)
        hashes.append(json.loads(study.fit(leaf, tunings).read_text())["weights_sha256"])
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(stage="finetune"), "0.json: is of stage 'finetune', not a tuning; give --tuned"),
        (
            lambda r: r["spec"]["cell"].update(finetune_size=8),
            "of another fine-tuning: cell.finetune_size: expected 16",
        ),
        (lambda r: r["spec"].update(contrast=0.1), "another fine-tuning: contrast: expected 0.3, found 0.1"),
        (lambda r: r["spec"]["tune"].update(share=0.1), "another fine-tuning: tune.share: expected 0.5, found 0.1"),
        (lambda r: r["rates"].pop(), "has not the rates"),
        (lambda r: r.update(pack_sha256="a"), "was scored on other images"),
        (lambda r: r["spec"]["cell"].update(seed=1), "is of seed 1, as is"),
        (lambda r: r.pop("rates"), "not a tuning: 'rates' is missing"),
    ],
)
def test_tunings_of_something_else_are_refused(
    change: Callable[[dict[str, Any]], object], message: str, study: Tuned, tunings: list[Path]
) -> None:
    record = json.loads(tunings[0].read_text())
    change(record)
    write_sealed(tunings[0], record)
    with pytest.raises(InputError) as found:
        study.fit("tuned", tunings)
    assert message in str(found.value)


def test_tunings_are_neither_missing_nor_needless(study: Tuned, tunings: list[Path]) -> None:
    with pytest.raises(InputError, match=r"--tuned: .* rate is chosen \(tune\.lr\), but no file is given"):
        study.fit("tuned")
    pack = open_pack(study.pack("segmentation"))
    spec = {key: value for key, value in study.spec().items() if key != "tune"}
    with pytest.raises(InputError, match="settings choose no rate; leave --tuned out"):
        chosen_rate(spec, tunings, pack.sha256)
    tunings[1].unlink()
    with pytest.raises(InputError, match=r"1\.json"):
        study.fit("tuned", tunings)


def test_the_command_takes_several_tunings() -> None:
    needed = ("manifest", "split", "indices", "weights", "record", "curve", "run")
    given = [part for name in needed for part in (f"--{name}", "x")]
    found = parser("finetune").parse_args(["--spec", "{}", *given, "--tuned", "a.json", "b.json"])
    assert found.tuned == [Path("a.json"), Path("b.json")]
    assert parser("finetune").parse_args(["--spec", "{}", *given]).tuned is None


def test_a_job_that_leads_a_stack_takes_the_tuned_rate(study: Tuned, tunings: list[Path]) -> None:
    files = [scores(path, 0.1, 0.3, 0.2) for path in tunings]
    root = study.root / "led"
    names = {"weights": "model.safetensors", "record": "model.json", "curve": "curve.csv", "run": "run.json"}
    arguments = {name: str(path) for name, path in study.files().items()}
    arguments |= {name: str(root / file) for name, file in names.items()} | {"parent": None, "checkpoints": None}
    work = Work(study.spec(), {**arguments, "tuned": list(map(str, files)), "checkpoint_minutes": 5.0, "threads": 1})

    class Desk:
        size, alone = 1, True

        def take(self, room: int) -> list[Any]:
            return []

        def stop_taking(self) -> None:
            pass

    Leader(Desk(), work).train()
    record = json.loads((root / "model.json").read_text())
    assert record["tuned"]["lr"] == 5e-3
    rows = (root / "curve.csv").read_text().splitlines()
    assert float(rows[1].split(",")[2]) == 5e-3


def test_a_rate_that_was_scored_is_not_scored_again_for_other_settings(study: Tuned, tmp_path: Path) -> None:
    """What an earlier job with other settings left in the folder is of no use."""
    folder = study.root / "checkpoints" / "tune-0"
    given = study.files()
    found = []
    for contrast in (0.3, 0.1):
        inputs = Files(**given)
        tuning._tune(study.spec("tune", contrast=contrast), inputs, tmp_path / f"{contrast}.json", folder, 5.0, 1)
        found.append(content(tmp_path / f"{contrast}.json"))
    whole = Tuned(tmp_path / "whole", study.config).tune(contrast=0.1)
    assert found[1] == content(whole) and found[0]["rates"] != found[1]["rates"]
