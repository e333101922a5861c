"""References: a U-Net trained and evaluated beside the cells, the constant answer, and what is said of both."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import jaccard_score
from tiny_study import Study

from viny.data.pack import open_pack
from viny.data.splits import read_split
from viny.evidence import reference
from viny.evidence.constant import commonest
from viny.evidence.statistics.crossed import Score, influence
from viny.evidence.statistics.references import CONSTANT, UNET, references_table
from viny.runtime.errors import TrainingError
from viny.runtime.signals import Stopped
from viny.study import specs
from viny.study.config import merge, resolve
from viny.study.grid import Cell, Reference, references
from viny.study.reading import read_config

TINY = read_config(Path(__file__).parents[1] / "tiny.yaml")
ONE = Reference(16, 1)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(tmp_path_factory.mktemp("references"), resolve(merge(TINY, {"references": True})))


def trained(study: Study, leaf: str, threads: int = 1, **changes: Any) -> tuple[dict[str, Any], Path]:
    """The record of a reference, and the folder of its files."""
    inputs = study.finetune_inputs(Cell(0, "none", ONE.finetune_size, ONE.seed))
    folder = study.root / leaf
    spec = merge(specs.reference_spec(study.config, ONE), changes)
    files = dict(zip(("manifest", "split", "indices"), inputs, strict=True))
    ends = {"weights": "safetensors", "confusion": "npz", "curve": "csv"}
    files |= {name: folder / f"record.{end}" for name, end in ends.items()}
    reference.train_reference(
        spec, **files, record=folder / "record.json", checkpoints=folder / "checkpoints", threads=threads
    )
    return json.loads((folder / "record.json").read_text()), folder


@pytest.fixture(scope="module")
def undisturbed(study: Study) -> tuple[dict[str, Any], Path]:
    return trained(study, "undisturbed")


def pixels(study: Study, part: str) -> np.ndarray:
    """The masks of a part of the reference's split."""
    manifest, split, indices = study.finetune_inputs(Cell(0, "none", ONE.finetune_size, ONE.seed))
    pack = open_pack(manifest)
    return pack.rows("masks", read_split(split, indices, pack)[part])


def test_each_label_size_and_seed_has_one(study: Study) -> None:
    assert references(study.config) == [Reference(n, seed) for n in (8, 16) for seed in (0, 1)]
    assert references(merge(study.config, {"references": False})) == []
    assert Reference.parse(ONE.name) == ONE and Reference.parse("unet_fine-8_seed-x") is None


def test_it_trains_as_the_fine_tunings_do_but_for_its_rate(study: Study) -> None:
    mine = specs.reference_spec(study.config, ONE)
    theirs = specs.finetune_spec(study.config, Cell(0, "none", 16, 1))
    assert mine["train"] == theirs["train"] | {"lr": mine["train"]["lr"]}
    assert mine["switches"]["augmentation"] == theirs["augmentation"] and mine["contrast"] == theirs["contrast"]


def test_its_images_come_in_the_order_and_with_the_draws_of_a_fine_tuning(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[Any]] = {}

    def spy(run: Any, machine: Any) -> Any:
        seen[type(run).__name__] = [
            (step.positions.tolist(), run.draws(step).get_state().tolist()) for step in run.steps()
        ]
        raise TrainingError("seen; enough")

    monkeypatch.setattr("viny.learning.stages.fit", spy)
    monkeypatch.setattr(reference, "fit", spy)
    with pytest.raises(TrainingError, match="seen; enough"):
        study.finetune(Cell(0, "none", ONE.finetune_size, ONE.seed), None, "spied")
    with pytest.raises(TrainingError, match="references: false"):
        trained(study, "spied-reference")
    assert len(seen["Run"]) == 6  # 3 epochs of 16 images, 8 a step
    assert seen["Run"] == seen["ReferenceRun"]


def test_its_record_holds_what_its_matrices_give(study: Study, undisturbed: tuple[dict[str, Any], Path]) -> None:
    record, folder = undisturbed
    with np.load(folder / "record.npz") as f:
        confusion = f["confusion"]
    truth = pixels(study, "test").reshape(len(confusion), -1)
    for image, matrix in zip(truth, confusion, strict=True):
        assert matrix.sum(1).tolist() == np.bincount(image, minlength=len(matrix)).tolist()
    hits = np.diagonal(confusion.sum(0))
    union = confusion.sum((0, 1)) + confusion.sum((0, 2)) - hits
    assert record["metrics"]["miou"] == pytest.approx((hits / union).mean())
    assert len(pd.read_csv(folder / "record.csv")) == 3
    assert not (folder / "checkpoints").exists()
    assert record["provenance"]["image_passes"] == 48


def test_the_constant_answer_is_the_commonest_class_of_the_training_masks(
    study: Study, undisturbed: tuple[dict[str, Any], Path]
) -> None:
    constant, train, test = undisturbed[0]["constant"], pixels(study, "train"), pixels(study, "test").ravel()
    assert constant["index"] == np.bincount(train.ravel(), minlength=256)[:255].argmax()
    expected = jaccard_score(test, np.full_like(test, constant["index"]), average="macro", labels=np.unique(test))
    assert constant["metrics"]["miou"] == pytest.approx(expected)


def test_pixels_without_a_class_are_never_the_commonest() -> None:
    masks = np.array([[[255, 255, 255, 1, 1, 0]]], np.uint8)
    pack = SimpleNamespace(manifest={"mask_classes": ["a", "b"]}, rows=lambda name, rows: masks)
    assert commonest(pack, np.arange(1)) == 1


def test_a_stopped_one_goes_on_to_the_same_bits(
    study: Study, undisturbed: tuple[dict[str, Any], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, step = [], reference.ReferenceRun.took

    def stop(self: Any, *taken: Any) -> None:
        step(self, *taken)
        steps.append(taken)
        if len(steps) == 3:
            self.stop(15)

    with monkeypatch.context() as patched:
        patched.setattr(reference.ReferenceRun, "took", stop)
        with pytest.raises(Stopped):
            trained(study, "stopped")
    assert not (study.root / "stopped" / "record.json").exists()
    record, folder = trained(study, "stopped")
    expected, whole = undisturbed
    assert (record["metrics"], record["final_loss"]) == (expected["metrics"], expected["final_loss"])
    assert len(record["provenance"]["earlier_attempts"]) == 1
    with np.load(folder / "record.npz") as mine, np.load(whole / "record.npz") as theirs:
        assert np.array_equal(mine["confusion"], theirs["confusion"])


def test_it_hardly_depends_on_the_number_of_threads(study: Study, undisturbed: tuple[dict[str, Any], Path]) -> None:
    record, _ = trained(study, "two-threads", threads=2, train={"batch_size": 16})
    single, _ = trained(study, "one-thread", train={"batch_size": 16})
    assert record["final_loss"] == pytest.approx(single["final_loss"], rel=1e-4)


# The table


def scores(means: dict[Any, float], noise: float = 0.02, seeds: int = 4) -> dict[tuple[int, Any], Score]:
    """Scores of made models on 60 images of two classes, of which about a share is right, by seed and key."""
    rng, truth = np.random.default_rng(3), np.random.default_rng(1).integers(30, 70, 60)
    found = {}
    for seed in range(seeds):
        for key, mean in means.items():
            share = np.clip(mean + noise * rng.standard_normal() + 0.02 * rng.standard_normal(60), 0, 1)
            right = np.stack([(share * truth).round(), (share * (100 - truth)).round()], 1).astype(int)
            all_of = np.stack([truth, 100 - truth], 1)
            confusion = np.stack(
                [[[r[0], t[0] - r[0]], [t[1] - r[1], r[1]]] for r, t in zip(right, all_of, strict=True)]
            )
            total = confusion.sum(0)
            hit = np.diagonal(total)
            miou = float((hit / (total.sum(0) + total.sum(1) - hit)).mean())
            found[seed, key] = Score(miou, influence(confusion, "dataset"), np.arange(60))
    return found


def table(cells: dict[Any, float], others: dict[Any, float], **how: Any) -> pd.DataFrame:
    every = scores({**cells, **others}, **how)
    mine, theirs = ({place: one for place, one in every.items() if (place[1] in of)} for of in (cells, others))
    about = {key: {488_035} if key[0] == UNET else {"ground"} for key in others}
    return references_table(mine, theirs, about)


CELLS = {(0, "none", 8): 0.70, (24, "none", 8): 0.74, (24, "scenes", 8): 0.72, (24, "none", 16): 0.9}


@pytest.mark.parametrize(
    ("share", "verdict", "words"),
    [(0.9, "down", "is the one to use"), (0.5, "up", "worth its while"), (0.74, "undecided", "cannot be told")],
)
def test_a_row_says_which_is_better_and_by_how_much(share: float, verdict: str, words: str) -> None:
    row = table(CELLS, {(UNET, 8): share}).iloc[0]
    assert row["verdict"] == verdict and words in row["sentence"]
    assert "0.49 M parameters" in row["sentence"] and "best of 3 cells" in row["sentence"]
    assert row["best"] == "24 pre-training images"
    assert row["lead_low"] < row["lead"] < row["lead_high"]


def test_numbers_are_means_over_seeds_of_what_each_model_reaches() -> None:
    others = {(UNET, 8): 0.8, (CONSTANT, 8): 0.4}
    every = scores({**CELLS, **others})
    mean = {key: np.mean([every[seed, key].miou for seed in range(4)]) for key in {**CELLS, **others}}
    found = table(CELLS, others).set_index("reference")
    best = max(mean[key] for key in CELLS if key[2] == 8)
    for kind in (UNET, CONSTANT):
        assert found.loc[kind, "mean"] == pytest.approx(mean[kind, 8])
        assert found.loc[kind, "lead"] == pytest.approx(best - mean[kind, 8])
        assert found.loc[kind, "n"] == 4
    assert found.loc[CONSTANT, "sentence"].startswith("With 8 labels every pixel called ground gives")


def test_the_best_of_many_has_to_be_clear_for_one_that_was_picked() -> None:
    """Of many equal cells the best one looks better than a reference that is as good as they."""
    cells = {(size, "none", 8): 0.7 for size in range(30)}
    row = table(cells, {(UNET, 8): 0.7}, noise=0.05).iloc[0]
    assert row["lead"] > 0.02 and row["verdict"] == "undecided"
    one = table({(0, "none", 8): 0.7}, {(UNET, 8): 0.9}).iloc[0]  # a loss needs no such correction
    many = table({(size, "none", 8): 0.7 for size in range(30)}, {(UNET, 8): 0.9}).iloc[0]
    assert one["verdict"] == many["verdict"] == "down"


def test_a_loss_that_is_clear_for_the_best_cell_is_no_draw() -> None:
    """However many cells there are: the best looks better than it is, so that its loss needs no correction."""
    lost = []
    for share in np.linspace(0.71, 0.8, 19):
        for cells in ({(0, "none", 8): 0.7}, {(size, "none", 8): 0.7 for size in range(12)}):
            row = table(cells, {(UNET, 8): share}, noise=0.02).iloc[0]
            assert (row["verdict"] == "down") == (row["lead_high"] < 0)
            assert "cannot be told" not in row["answer"] or row["lead_high"] > 0
            lost.append(row["verdict"] == "down")
    assert {True, False} == {*lost}


def test_the_u_net_says_what_a_doubling_of_its_own_labels_brought() -> None:
    mine = {**CELLS, (24, "none", 32): 0.9}
    others = {(CONSTANT, 8): 0.4, (CONSTANT, 32): 0.4, (UNET, 8): 0.7, (UNET, 32): 0.9}
    every = scores({**mine, **others})
    gains = [(every[seed, (UNET, 32)].miou - every[seed, (UNET, 8)].miou) / 2 for seed in range(4)]  # two doublings
    found = table(mine, others).set_index(["reference", "finetune_size"])
    last = found.loc[UNET, 32]
    assert last["gain"] == pytest.approx(np.mean(gains)) and last["gain_low"] < last["gain"] < last["gain_high"]
    assert last["gain_words"].startswith("A doubling between 8 and 32 labels with the U-Net helps: +")
    assert found["gain"].count() == 1
    assert table(mine, {(UNET, 8): 0.7})["gain_words"].isna().all()  # of one size no doubling is known


def test_one_seed_tells_no_verdict() -> None:
    row = table(CELLS, {(UNET, 8): 0.9}, seeds=1).iloc[0]
    assert row["verdict"] == "undecided" and "one seed, no interval" in row["sentence"]
