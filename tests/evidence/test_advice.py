"""Advice: simulated studies whose truth is known, exact oracles for what it computes itself, and the command."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

pytest.importorskip("jsonschema")

from viny.cli import main
from viny.evidence import verdicts
from viny.evidence.advice import proposals
from viny.evidence.advice.advice import Advice, as_dict, as_text
from viny.evidence.advice.adviser import advise
from viny.evidence.advice.proposals import expected
from viny.evidence.statistics.crossed import Runs
from viny.evidence.verdicts import seeds_needed
from viny.runtime.errors import InputError
from viny.runtime.files import write_json
from viny.study.config import merge, resolve
from viny.study.grid import Cell, cells
from viny.study.layout import metrics_file, trainings
from viny.study.reading import read_config
from viny.study.saved import write_study

TINY = Path(__file__).parents[1] / "tiny.yaml"
LONG = {"pretrain": {"epochs": 4000, "milestones": []}}  # so many steps that longer training is not advised
SECONDS = {"pretrain": 100.0, "intermediate": 10.0, "finetune": 1.0}  # of each made-up training
Truth = Callable[[Cell], float]


def settings(**changes: Any) -> dict[str, Any]:
    return resolve(merge(read_config(TINY), changes))


def confusions(rng: np.random.Generator, images: int, noise: float) -> np.ndarray:
    """Two classes; `noise` is the share of each image's pixels, about half, that a model gets wrong by luck."""
    wrong = np.clip(rng.normal(0.5, noise, (images, 2)), 0, 1) * 50
    out = np.empty((images, 2, 2))
    out[:, [0, 1], [0, 1]], out[:, [0, 1], [1, 0]] = 50 - wrong, wrong
    return out.round().astype(np.int32)


def folders_of(root: Path, config: dict[str, Any]) -> list[tuple[str, Path]]:
    """Stage and folder of each training of a study."""
    return [(training.stage, training.folder(root)) for training in trainings(cells(config))]


def make(
    root: Path,
    truth: Truth,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    grid: dict[str, Any] | None = None,
    images: int = 500,
    noise: float = 0.001,
    ious: Callable[[Cell], dict[str, float | None]] = lambda cell: {},
    classes: Callable[[Cell], dict[str, list[str]]] = lambda cell: {},
    curve: Sequence[float] = (1.0,) * 20,
    **changes: Any,
) -> dict[str, Any]:
    """A study's folder with made results: metrics, confusion matrices, curves, costs."""
    data = {"segmentation": {"test_size": images}, "synthetic": {"segmentation": 5000, "unlabelled": 5000}}
    config = settings(**merge(data | {"grid": {"seeds": list(seeds), **(grid or {})}}, changes))
    write_study(root, config)
    for cell in cells(config):
        # What is easy or hard about an image is so for all seeds of a cell.
        rng = np.random.default_rng([cell.pretrain_size, len(cell.intermediate), cell.finetune_size])
        path = metrics_file(root, cell)
        value = {"study": config["study"], "protocol": "sound", "note": config["note"], "cell": cell.as_dict()}
        metrics = {"miou": truth(cell), "pixel_accuracy": 0.7, **ious(cell)}
        value |= {
            "classes": classes(cell),
            "metrics": metrics,
            "miou_is": "dataset",
            "test_images": images,
            "provenance": {},
        }
        write_json(path, value)
        np.savez(path.with_suffix(".npz"), confusion=confusions(rng, images, noise), indices=np.arange(images))
    for stage, folder in folders_of(root, config):
        write_json(folder / "run.json", {"training_seconds": SECONDS[stage], "image_passes": 1000})
        pd.DataFrame({"epoch": range(1, len(curve) + 1), "loss": curve}).to_csv(folder / "curve.csv", index=False)
    return config


def part(advice: Advice, key: str) -> list[dict[str, Any]]:
    return next(section["items"] for section in as_dict(advice)["sections"] if section["key"] == key)


def said(advice: Advice, key: str) -> str:
    return " ".join(item["text"] for item in part(advice, key))


def scatter(spread: float, seed: int = 0) -> Truth:
    """Noise of each cell and seed, the same whenever asked."""

    def noise(cell: Cell) -> float:
        key = [cell.pretrain_size, len(cell.intermediate), cell.finetune_size, cell.seed, seed]
        return spread * np.random.default_rng(key).normal()

    return noise


def steps(pretraining: float = 0.0, task: float = 0.0, spread: float = 0.001, seed: int = 0) -> Truth:
    """Effects of pre-training and of a task, and two points per doubling of the labels."""
    noise = scatter(spread, seed)

    def truth(cell: Cell) -> float:
        gained = pretraining * (cell.pretrain_size > 0) + task * (cell.intermediate != "none")
        return 0.4 + 0.02 * np.log2(cell.finetune_size) + gained + noise(cell)

    return truth


# Verdicts


@pytest.mark.parametrize(
    ("effect", "spread", "pretraining", "task"),
    [
        (0.05, 0.003, "helps", "helps"),
        (-0.05, 0.003, "hurts", "hurts"),
        (0.004, 0.0002, "helps, by under 1 point", "helps, by under 1 point"),
        (0.0, 0.03, "cannot be told to help or hurt", "cannot be told to help or hurt"),
        (0.0, 0.001, "changes mIoU by under 1 point either way", "changes mIoU by under 1 point either way"),
    ],
    ids=["gain", "loss", "small gain", "noise", "nothing"],
)
def test_the_verdict_is_the_truth(tmp_path: Path, effect: float, spread: float, pretraining: str, task: str) -> None:
    make(tmp_path, steps(effect, effect, spread, seed=1), seeds=range(4))
    advice = advise(tmp_path)
    assert part(advice, "pretraining")[0]["words"] == pretraining
    row = part(advice, "tasks")[0]
    assert row["words"] == task
    summary = said(advice, "summary")
    assert f"Pre-training on 24 images {pretraining}: " in summary
    number = f"{100 * row['mean']:+.2f} points ({100 * row['low']:+.2f} to {100 * row['high']:+.2f})"
    assert f"The task scenes {task}: {number}" in summary
    both = [part(advice, "pretraining")[0], row]
    assert all(abs(row["mean"] - effect) < 2 * spread + 1e-12 for row in both)
    assert all(row["low"] < row["mean"] < row["high"] for row in both)
    asked = {row["question"] for row in part(advice, "next") if "question" in row}
    assert ("the task scenes" in asked) == ("cannot be told" in task)


# Noise of the test images


def test_a_sign_that_other_test_images_may_turn_is_not_named(tmp_path: Path) -> None:
    make(tmp_path, steps(0.03, 0.03, 0.001), images=12, noise=0.3, seeds=range(4))
    advice = advise(tmp_path)
    effect = part(advice, "tasks")[0]
    assert effect["low"] < 0 < effect["high"]
    assert effect["verdict"] == "undecided"
    assert "the draw of the test images leaves more unknown" in effect["text"]
    changes = [row["change"] for row in part(advice, "next") if "change" in row]
    assert any(re.fullmatch(r"`segmentation.test_size: \d{2,}`", change) for change in changes)
    assert not any("grid.seeds" in change for change in changes)
    assert "more of those, not more seeds" in said(advice, "next")
    few = r"Only 12 test images: by their draw alone a single mIoU is uncertain by ±\d+\.\d\d points"
    assert re.search(few, said(advice, "warnings"))


def test_more_test_images_are_to_be_of_other_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a study with groups, more of the same would not help."""
    monkeypatch.setattr(Runs, "groups", 4)
    monkeypatch.setattr(proposals, "_most_tests", lambda *_: 12)
    make(tmp_path, steps(0.03, 0.03, 0.001), images=12, noise=0.3, seeds=range(4))
    (row,) = [row for row in part(advise(tmp_path), "next") if "more test images" in row.get("change", "")]
    more, groups, every = re.search(
        r"abel ([\d,]+) more test images of (\d+) other groups, for ([\d,]+) in all", row["text"]
    ).groups()
    more, every = (int(number.replace(",", "")) for number in (more, every))
    assert more + 12 == every
    assert int(groups) == math.ceil(4 * every / 12) - 4


def test_a_grid_that_its_images_cannot_fill_is_not_to_be_finished(tmp_path: Path) -> None:
    config = make(tmp_path, steps(0.05), seeds=[0, 1])
    metrics_file(tmp_path, cells(config)[-1]).unlink()
    first = part(advise(tmp_path), "next")[0]
    assert first["change"] == "finish the grid (run the workflow again)"
    write_json(tmp_path / "packs" / "segmentation" / "manifest.json", {"count": 5})
    first = part(advise(tmp_path), "next")[0]
    assert first["change"].startswith("make the grid fit its images, as it cannot be finished: grid.finetune_sizes")
    assert advise(tmp_path).short


# Seeds


def test_small_effects_under_noisy_images_ask_for_images_and_large_spreads_for_both(tmp_path: Path) -> None:
    make(tmp_path / "a", steps(0.0, 0.0, 0.001, seed=2), images=20, noise=0.3)
    row = part(advise(tmp_path / "a"), "tasks")[0]
    assert abs(row["mean"]) + 4.3 * row["se_seeds"] < 0.01  # small, except for the images
    assert row["verdict"] == "undecided"
    assert "the draw of the test images leaves more unknown" in row["text"]
    make(
        tmp_path / "b", lambda cell: 0.5 + 0.02 * (cell.seed - 1) * (cell.intermediate != "none"), images=50, noise=0.3
    )
    advice = advise(tmp_path / "b")
    row = next(row for row in part(advice, "next") if row.get("question") == "the task scenes")
    assert row["half_width"] > row["half_width_images"] > 0.01
    assert "more of those too" in row["text"]
    assert "segmentation.test_size" in said(advice, "next")


def reached(n: int, spread: float, target: float, images: float = 0.0, studies: int = 4000) -> float:
    """How often n seeds narrow the interval of a mean to the target."""
    rng = np.random.default_rng(n)
    over_seeds = spread**2 * rng.chisquare(n - 1, studies) / (n - 1) / n
    variance = over_seeds + images**2
    df = (n - 1) * (variance / over_seeds) ** 2
    return float(np.mean(stats.t.ppf(0.975, df) * np.sqrt(variance) <= target))


@pytest.mark.parametrize("images", [0.0, 0.002])
@pytest.mark.parametrize("spread", [0.005, 0.009, 0.013])
def test_the_seeds_advised_reach_the_target_in_four_of_five_studies_and_no_fewer_do(
    spread: float, images: float
) -> None:
    n = seeds_needed(0.01, spread / np.sqrt(3), images, 3)
    assert n is not None
    assert reached(n, spread, 0.01, images) > 0.78
    assert reached(n - 1, spread, 0.01, images) < 0.82


def test_no_number_of_seeds_makes_up_for_too_few_test_images() -> None:
    assert seeds_needed(0.01, 0.001, 0.004, 3) == 2
    assert seeds_needed(0.01, 0.001, 0.006, 3) is None


def test_a_pilot_study_of_known_spread_is_told_seeds_that_reach_the_target(tmp_path: Path) -> None:
    spread = 0.012

    def truth(cell: Cell) -> float:  # a spread of exactly that around no effect
        return 0.5 + spread * (cell.seed - 1) * (cell.intermediate != "none")

    make(tmp_path, truth, grid={"finetune_sizes": [8, 16]})
    row = next(row for row in part(advise(tmp_path), "next") if row.get("question") == "the task scenes")
    n = row["seeds"]
    assert 4 <= n <= 20
    assert row["seeds_low"] < n
    assert row["seeds_high"] is None
    assert reached(n, spread, 0.01) > 0.75


def test_a_spread_that_no_sensible_number_of_seeds_overcomes_is_said(tmp_path: Path) -> None:
    make(tmp_path, lambda cell: 0.5 + 0.1 * (cell.seed - 1) * (cell.intermediate != "none"))
    advice = advise(tmp_path)
    row = next(row for row in part(advice, "next") if row.get("question") == "the task scenes")
    assert row["seeds"] is None
    assert "more than 20 seeds" in row["text"]
    assert "Seeds are not the way" in row["text"]
    assert not any("the task scenes" in row.get("settles", []) for row in part(advice, "next"))


def test_seeds_that_decide_are_proposed_though_none_narrow_it_to_the_target(tmp_path: Path) -> None:
    """A large effect with a large spread."""
    make(tmp_path, lambda cell: 0.5 + (cell.intermediate != "none") * (0.2 + 0.1 * (cell.seed - 1)))
    advice = advise(tmp_path)
    row = next(row for row in part(advice, "next") if row.get("question") == "the task scenes")
    assert (row["seeds"], row["half_width"] > 0.01) == (None, True)
    assert 4 <= row["seeds_to_decide"] <= 20
    assert f"takes more than 20 seeds; {row['seeds_to_decide']} seeds would decide it with a chance of" in row["text"]
    assert "Seeds are not the way" not in row["text"]
    (more,) = [row for row in part(advice, "next") if "the task scenes" in row.get("settles", [])]
    assert len(more["set"]["grid.seeds"]) == row["seeds_to_decide"]
    assert more["chances"][more["settles"].index("the task scenes")] >= 0.8


@pytest.mark.parametrize("df", [2, 5])
def test_the_interval_of_the_spread_holds_the_true_one(df: int) -> None:
    seen = np.sqrt(np.random.default_rng(5).chisquare(df, 20_000) / df)  # of a true spread of 1
    low, high = verdicts.spread_interval(df + 1)
    assert np.mean((low * seen <= 1) & (high * seen >= 1)) == pytest.approx(0.95, abs=0.01)


# Returns


LABELS = [50, 100, 200, 400, 800]


def saturating(labels: float) -> float:
    return 0.7 - 0.4 / (1 + labels / 150)


def test_the_next_doubling_of_a_known_curve_is_foretold(tmp_path: Path) -> None:
    noise = scatter(0.0005)
    make(tmp_path, lambda c: saturating(c.finetune_size) + noise(c), grid={"finetune_sizes": LABELS}, seeds=range(4))
    row = part(advise(tmp_path, minutes_per_mask=3), "labels")[0]
    truth = saturating(1600) - saturating(800)
    assert row["next"]["from"] == "fit"
    assert row["next"]["mean"] == pytest.approx(truth, abs=0.002)
    assert row["next"]["low"] < truth < row["next"]["high"]
    assert row["measured"]["mean"] == pytest.approx(saturating(800) - saturating(400), abs=0.002)
    assert "foretold by the average of 4 forms" in row["text"]
    plain = next(row for row in part(advise(tmp_path), "labels") if row.get("intermediate") == "none")
    assert "; against the doubling before, it brings less (-" in plain["text"]
    points = 100 * row["next"]["mean"]
    assert f"its 800 masks are 40.0 h, {2400 / points:,.0f} minutes a point" in row["text"]


def test_three_sizes_say_what_they_measured_and_ask_for_a_fourth(tmp_path: Path) -> None:
    make(tmp_path, steps(), grid={"finetune_sizes": [8, 16, 32]})
    advice = advise(tmp_path)
    row = part(advice, "labels")[0]
    assert row["next"]["from"] == "last doubling"
    assert row["measured"]["mean"] == pytest.approx(0.02, abs=0.002)
    assert "no fitted curve can say" in row["text"]
    assert "`grid.finetune_sizes: [8, 16, 32, 64]`" in said(advice, "next")
    write_json(tmp_path / "packs" / "segmentation" / "manifest.json", {"count": 532})  # 500 are test images
    assert "`grid.finetune_sizes: [8, 16, 23, 32]`" in said(advise(tmp_path), "next")


def test_a_doubling_that_may_bring_nothing_is_not_told_and_has_no_price(tmp_path: Path) -> None:
    def truth(cell: Cell) -> float:
        return 0.4 + 0.001 * (cell.finetune_size > 8) + 0.01 * (cell.seed - 1) * (cell.finetune_size > 8)

    make(tmp_path, truth)
    advice = advise(tmp_path, minutes_per_mask=2)
    assert "are 0.5 h; what a point costs cannot be told." in part(advice, "labels")[0]["text"]
    short = next(row["text"] for row in part(advice, "summary") if row.get("question") == "labels")
    said_of_it = "Doubling 8 labels to 16 with a random start cannot be told to help or hurt: "
    assert short.startswith(f"How many more masks? {said_of_it}")
    assert "minutes a point" not in as_text(advice, long=True)


def test_pretraining_worth_twice_the_labels_is_told_in_labels(tmp_path: Path) -> None:
    noise = scatter(0.0005)

    def truth(cell: Cell) -> float:
        labels = cell.finetune_size * (2 if cell.pretrain_size else 1)
        return 0.3 + 0.04 * np.log2(labels) + noise(cell)

    make(tmp_path, truth, grid={"finetune_sizes": [100, 200, 400], "intermediates": ["none"]})
    rows = {row["finetune_size"]: row for row in part(advise(tmp_path), "pretraining") if "finetune_size" in row}
    for labels in (100, 200):
        assert rows[labels]["labels_worth"] == pytest.approx(2 * labels, rel=0.05)
        assert rows[labels]["mean"] == pytest.approx(0.04, abs=0.002)
    assert rows[400]["censored"] == "beyond"
    assert "they do what more than 400 would from a random start" in rows[400]["text"]


def test_what_may_be_nothing_beyond_the_curve_is_not_told_in_labels(tmp_path: Path) -> None:
    def truth(cell: Cell) -> float:
        gained = 0.01 + 0.02 * (cell.seed - 1) if cell.pretrain_size else 0.0
        return 0.3 + 0.04 * np.log2(cell.finetune_size / 100) + gained

    make(tmp_path, truth, grid={"finetune_sizes": [100, 200, 400], "intermediates": ["none"]})
    rows = [row for row in part(advise(tmp_path), "pretraining") if "finetune_size" in row]
    assert any(row["censored"] for row in rows)
    for row in rows:
        assert row["low"] < 0 < row["high"]
        assert row["text"].endswith("; what that is in labels cannot be told.")
        assert row["text"].count(": ") == 1


def test_the_next_doubling_of_images_is_the_last_one_and_called_a_guess(tmp_path: Path) -> None:
    noise = scatter(0.0005)

    def truth(cell: Cell) -> float:
        return 0.4 + 0.01 * np.log2(max(cell.pretrain_size, 1)) + noise(cell)

    make(tmp_path, truth, grid={"pretrain_sizes": [0, 6, 24], "intermediates": ["none"]})
    row = next(row for row in part(advise(tmp_path), "pretraining") if row.get("extrapolated_to"))
    assert row["mean"] == pytest.approx(0.01, abs=0.001)  # for one doubling, where 6 to 24 is two
    assert row["low"] < 0.01 < row["high"]
    assert "For the next, to 48, this is a guess, too high where returns fall" in row["text"]


# What is not asked, or is missing


def test_one_seed_has_no_interval_and_is_told_to_become_three(tmp_path: Path) -> None:
    make(tmp_path, steps(0.1, 0.1), seeds=[5], **LONG)
    advice = advise(tmp_path)
    text = as_text(advice, long=True)
    assert "nan" not in text.lower().replace("finance", "")
    assert "One seed: no interval anywhere" in said(advice, "warnings")
    for key in ("pretraining", "tasks"):
        first = part(advice, key)[0]
        assert (first["verdict"], first["low"]) == ("undecided", None)
        assert "no interval" in first["text"]
    best = part(advice, "summary")[0]
    assert len(best["not_told_from_it"]) == best["others"] == 7
    assert part(advice, "next")[0]["change"] == "`grid.seeds: [5, 0, 1]`"  # before what costs less


def test_missing_cells_are_named_and_come_first(tmp_path: Path) -> None:
    config = make(tmp_path, steps(0.05, 0.05), **LONG)
    gone = [cell for cell in cells(config) if cell.finetune_size == 16 and cell.seed == 2 and cell.pretrain_size]
    for cell in gone:
        metrics_file(tmp_path, cell).unlink()
    advice = advise(tmp_path)
    first = part(advice, "next")[0]
    assert first["change"].startswith("finish the grid")
    assert (first["new_cells"], first["trainings"]) == (len(gone), 0)  # trained, not evaluated
    assert gone[0].name in said(advice, "warnings")
    first_line = "Study tiny: 22 of 24 cells, 3 seeds, 500 test images at 24 x 24 pixels"
    assert as_text(advice, long=True).splitlines()[0] == first_line
    assert part(advice, "pretraining")[0]["verdict"] == "up"


@pytest.mark.parametrize(
    ("grid", "key", "words"),
    [
        ({"pretrain_sizes": [0]}, "pretraining", "Not asked by this study; add `grid.pretrain_sizes: [0, 30]`."),
        (
            {"pretrain_sizes": [24]},
            "pretraining",
            "no random start to compare with; add `grid.pretrain_sizes: [0, 24]`",
        ),
        ({"intermediates": ["none"]}, "tasks", "Not asked by this study; add a task"),
        ({"intermediates": ["scenes"]}, "tasks", "no cell is without a task; add `grid.intermediates: [none, scenes]`"),
        ({"finetune_sizes": [8]}, "labels", "one number of labels; add `grid.finetune_sizes: [8, 16, 32, 64]`"),
    ],
)
def test_what_a_study_does_not_ask_it_is_told_how_to_ask(
    tmp_path: Path, grid: dict[str, Any], key: str, words: str
) -> None:
    make(tmp_path, steps(), grid=grid)
    write_json(tmp_path / "packs" / "pretrain" / "manifest.json", {"count": 30})
    advice = advise(tmp_path)
    assert words in said(advice, key)
    assert words in said(advice, "summary")


def test_a_study_without_evaluated_cells_is_refused(tmp_path: Path) -> None:
    write_study(tmp_path, settings())
    with pytest.raises(InputError, match="none of the 16 cells of study tiny is evaluated; run the workflow first"):
        advise(tmp_path)


def test_a_study_that_lacks_keys_with_defaults_is_advised_on_all_the_same(tmp_path: Path) -> None:
    config = make(tmp_path, steps(0.05, 0.05))
    expected = as_dict(advise(tmp_path))
    for key in ("duplicates", "switches"):  # as an older version would have written it
        del config[key]
    write_study(tmp_path, config)
    assert as_dict(advise(tmp_path)) == expected


def packed(root: Path, config: dict[str, Any], old: Callable[[Cell], bool]) -> None:
    """A segmentation pack, and metrics that come from it or from an older one."""
    manifest = {"sha256": "new", "count": 1000, "mask_classes": ["ground", "pond"]}
    write_json(root / "packs" / "segmentation" / "manifest.json", manifest)
    for cell in cells(config):
        path = metrics_file(root, cell)
        write_json(path, json.loads(path.read_text()) | {"hashes": {"pack": "old" if old(cell) else "new"}})


def test_cells_measured_on_other_images_are_left_out_and_said_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def old(cell: Cell) -> bool:
        return cell.seed == 2 and cell.finetune_size == 16

    def truth(cell: Cell) -> float:
        return 0.9 if old(cell) else steps(0.05)(cell)

    config = make(tmp_path / "a", truth, **LONG)
    packed(tmp_path / "a", config, old)
    advice = advise(tmp_path / "a")
    words = "4 of 24 cells were measured on other images and are left out; run the study again."
    assert part(advice, "summary")[0]["text"] == part(advice, "warnings")[0]["text"] == words
    first = part(advice, "next")[0]
    assert first["change"].startswith("finish the grid")
    assert (first["new_cells"], first["trainings"], first["seconds"]) == (4, 4, 4.0)  # fine-tuned anew
    # All else is as if those cells had never been evaluated.
    make(tmp_path / "b", truth, **LONG)
    packed(tmp_path / "b", config, lambda cell: False)
    for cell in filter(old, cells(config)):
        metrics_file(tmp_path / "b", cell).unlink()
    other = advise(tmp_path / "b")
    assert part(advice, "summary")[1:] == part(other, "summary")
    assert part(advice, "pretraining") == part(other, "pretraining")
    packed(tmp_path / "a", config, lambda cell: True)
    assert main(["advise", str(tmp_path / "a")]) == 2
    assert "nothing current to advise on: all 24 evaluated cells" in capsys.readouterr().err
    (tmp_path / "a" / "packs" / "segmentation" / "manifest.json").unlink()
    assert "left out;" not in as_text(advise(tmp_path / "a"), long=True)


def test_the_best_cell_has_the_name_that_other_commands_take(tmp_path: Path) -> None:
    config = make(tmp_path, steps(0.05, 0.05), seeds=[7, 3, 5])
    row = part(advise(tmp_path), "summary")[0]
    assert row["cell"] == "pre-24_mid-scenes_fine-16_seed-3"
    assert row["cell"] in {cell.name for cell in cells(config)}
    assert f"as `{row['cell']}` (its seeds: 3, 5, 7)." in row["text"]


@pytest.mark.parametrize(
    ("level", "spread", "words"),
    [(0.5, 0.0, "is near"), (0.4, 0.0, "is no better than"), (0.6, 0.3, "cannot be told from"), (0.6, 0.01, None)],
)
def test_a_best_model_no_better_than_a_constant_answer_is_said_to_be(
    tmp_path: Path, level: float, spread: float, words: str | None
) -> None:
    config = make(tmp_path, lambda c: level + spread * (c.seed - 1), grid={"pretrain_sizes": [0]})
    packed(tmp_path, config, lambda cell: False)
    confusion = np.tile(np.array([[5, 5], [25, 65]]), (9, 1, 1))  # nine of ten pixels are of the second class
    for cell in cells(config):
        np.savez(metrics_file(tmp_path, cell).with_suffix(".npz"), confusion=confusion, indices=np.arange(9))
    summary = said(advise(tmp_path), "summary")
    if words is None:
        assert "always answering" not in summary
    else:
        assert f"Even the best model {words} what always answering pond would get (45.0 %)." in summary


# What the next cells cost


def test_longer_trainings_come_first_where_some_are_not_converged(tmp_path: Path) -> None:
    falling = [1.0] * 16 + [0.9, 0.9, 0.8, 0.8]
    make(tmp_path / "short", steps(0.0, 0.0, 0.02))
    row = part(advise(tmp_path / "short"), "next")[0]
    assert row["epochs"] == {"pretrain.epochs": 3334}  # of 3 steps each
    assert row["text"].startswith(
        "1. Train longer, as verdicts may turn, with `pretrain.epochs: 3334`, `pretrain.milestones: [1667]`"
    )
    # What has no pre-training stays: 12 cells with 3 pre-trainings and 3 trainings of the task.
    assert (row["new_cells"], row["trainings"]) == (12, 3 + 3 + 12)
    assert row["seconds"] == pytest.approx(3 * 100 * 3334 / 2 + 3 * 10 + 12)
    config = make(tmp_path / "falling", steps(0.0, 0.0, 0.02), **LONG)
    for stage, folder in folders_of(tmp_path / "falling", config):
        if stage == "finetune":
            pd.DataFrame({"epoch": range(1, 21), "loss": falling}).to_csv(folder / "curve.csv", index=False)
    row = part(advise(tmp_path / "falling"), "next")[0]
    assert row["epochs"] == {"finetune.epochs": 300}  # as `viny check` asks for
    assert (row["new_cells"], row["trainings"], row["seconds"]) == (24, 24, 100 * 24.0)
    for stage, folder in folders_of(tmp_path / "falling", config):
        if stage == "intermediate":
            pd.DataFrame({"epoch": range(1, 21), "loss": falling}).to_csv(folder / "curve.csv", index=False)
    row = part(advise(tmp_path / "falling"), "next")[0]
    assert row["epochs"] == {"finetune.epochs": 300, "intermediate.scenes.epochs": 4}


def test_a_loss_that_is_hardly_there_is_no_reason_to_train_longer(tmp_path: Path) -> None:
    config = make(tmp_path, steps(0.0, 0.0, 0.02), **LONG)
    for first, proposed in ((1.0, False), (0.01, True)):  # falling by 20 % at the end, of 0.003
        loss = [first] + [0.003] * 17 + [0.0024, 0.0024]
        for stage, folder in folders_of(tmp_path, config):
            if stage == "finetune":
                pd.DataFrame({"epoch": range(1, 21), "loss": loss}).to_csv(folder / "curve.csv", index=False)
        assert any("epochs" in row for row in part(advise(tmp_path), "next")) == proposed


def test_a_proposals_cells_and_seconds_are_those_of_its_trainings(tmp_path: Path) -> None:
    make(tmp_path, steps(0.0, 0.0, 0.02), seeds=[0, 1, 2])
    rows = [row for row in part(advise(tmp_path, target=3.0), "next") if "grid.seeds" in row.get("change", "")]
    assert rows
    for row in rows:
        seeds = json.loads(re.search(r"\[.*\]", row["change"])[0])
        more = len(seeds) - 3
        assert seeds == list(range(len(seeds)))
        assert row["new_cells"] == 8 * more
        # A seed is one pre-training, one intermediate training per pre-train size, and one fine-tuning per cell.
        assert row["trainings"] == (1 + 2 + 8) * more
        assert row["seconds"] == pytest.approx((100 + 2 * 10 + 8 * 1) * more)
        if "alone" in row:
            assert row["alone"]["intermediates"] == ["none"]
            assert row["alone"]["seconds"] == pytest.approx((100 + 4 * 1) * more)
    further = next(row for row in part(advise(tmp_path), "next") if "finetune_sizes" in row.get("change", ""))
    # For a size that was not trained, by image passes: 1,000 took a second, and these are 32 or 64, three times.
    assert further["seconds"] == pytest.approx(further["new_cells"] * (32 + 64) / 2 * 3 / 1000)


def test_proposals_stand_in_the_order_of_questions_for_the_time(tmp_path: Path) -> None:
    make(tmp_path, steps(0.0, 0.0, 0.02, seed=1), **LONG)
    rows = [row for row in part(advise(tmp_path), "next") if "rank" in row]
    prices = [row["seconds"] / max(0.01, expected(row)) for row in rows]
    assert len(rows) > 2
    assert prices == sorted(prices)
    assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))


def test_proposals_say_with_what_chance_they_decide_what_is_open(tmp_path: Path) -> None:
    make(tmp_path / "seeds", steps(0.0, -0.02, 0.02, seed=1), **LONG)
    rows = [
        row for row in part(advise(tmp_path / "seeds", target=2.0), "next") if "grid.seeds" in row.get("change", "")
    ]
    assert rows
    for row in rows:
        assert len(row["chances"]) == len(row["settles"])
        for name, chance in zip(row["settles"], row["chances"], strict=True):
            assert f"{name} (decided with a chance of {100 * chance:.0f} %)" in row["text"]
    make(tmp_path / "images", steps(0.03, 0.03, 0.001), images=12, noise=0.3, seeds=range(4))
    (row,) = (row for row in part(advise(tmp_path / "images"), "next") if "test_size" in row.get("change", ""))
    assert row["chances"] and all(0.5 < chance <= 1 for chance in row["chances"])


# Warnings


def test_classes_that_are_rarely_found_stand_in_one_line_worst_first(tmp_path: Path) -> None:
    def ious(cell: Cell) -> dict[str, float | None]:
        few, half = cell.seed == 0 and cell.finetune_size == 8, cell.finetune_size == 8
        third = cell.seed == 0
        found = {"sky": 0.8, "moon": 0.5 * (not few), "wire": 0.0, "pole": 0.3 * (not half), "sign": 0.2 * (not third)}
        return {f"iou_{name}": value for name, value in found.items()} | {"iou_ghost": None}

    make(tmp_path, steps(), ious=ious)
    (row,) = (row for row in part(advise(tmp_path), "warnings") if "hardly ever" in row["text"])
    assert row["hardly_ever_found"] == {"wire": 24, "pole": 12}
    assert row["often_missed"] == {"sign": 8}  # moon, with 4 of 24, is left out
    first, second = row["text"].split(". ")[:2]
    assert first.startswith("2 of 5 classes are hardly ever found")
    assert first.endswith("wire (24, at best 0.0 %); pole (12, at best 30.0 %)")
    assert second.startswith("1 of 5 classes is often missed")
    words = said(advise(tmp_path), "warnings")
    assert "No test mask has a pixel of these classes, so nothing is known of them: ghost. mIoU is a mean over" in words


def test_classes_that_no_mask_of_a_fine_tuning_has_are_said_with_their_cells(tmp_path: Path) -> None:
    make(tmp_path, steps(), classes=lambda cell: {"not_in_training": ["moon"] * (cell.finetune_size == 8)})
    (row,) = (row for row in part(advise(tmp_path), "warnings") if "fine-tuned on" in row["text"])
    assert "a pixel of: moon (in 12 of 24 cells). It cannot be learnt there." in row["text"]
    assert len(row["not_in_training"]["moon"]) == 12 and all(
        "fine-8" in name for name in row["not_in_training"]["moon"]
    )


def test_warnings_come_where_there_is_cause_and_not_else(tmp_path: Path) -> None:
    make(tmp_path / "a", steps(), images=99, curve=[1.0] * 16 + [0.9, 0.9, 0.8, 0.8], pretrain={"epochs": 2},
         switches={"subsets": "shared"})  # fmt: skip
    table = tmp_path / "a" / "tables" / "duplicates.csv"
    table.parent.mkdir()
    table.write_text(
        "role,image,test_image,kind,distance\nfinetune,a,x,near,1\nfinetune,b,x,near,1\npretrain,c,y,exact,0\n"
    )
    text = said(advise(tmp_path / "a"), "warnings")
    assert "Only 99 test images" in text
    assert "1 in pretrain; 1 by their look in finetune" in text
    assert "fine-tuning on 8 labels by 11 %" in text
    assert "Short pre-training: 6 steps on 24 images" in text
    assert "The study's own note: Test study." in text
    assert "same labelled images of a size" in text
    other = {"note": "", "pretrain": {"epochs": 4000, "milestones": []}, "switches": {"subsets": "per_seed"}}
    make(tmp_path / "b", steps(), curve=[1.0] * 18 + [0.96, 0.96], **other)
    assert part(advise(tmp_path / "b"), "warnings") == []


def test_a_task_on_the_segmentations_own_masks_is_said_to_use_labels(tmp_path: Path) -> None:
    task = {"scenes": {"target": "patch", "mixup": 0.0}}
    make(tmp_path, steps(), intermediate=task)
    for name, sha256 in (("scenes", "a"), ("segmentation", "a")):
        write_json(tmp_path / "packs" / name / "manifest.json", {"sha256": sha256, "count": 1000})
    assert "more labels by another name" in said(advise(tmp_path), "tasks")
    write_json(tmp_path / "packs" / "scenes" / "manifest.json", {"sha256": "b"})
    assert "more labels by another name" not in said(advise(tmp_path), "tasks")


# The command


def test_the_command_prints_plain_text_of_100_columns_or_the_same_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path, steps(0.0, 0.05, 0.02))
    assert main(["advise", str(tmp_path), "--minutes-per-mask", "2", "--long"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    assert "\x1b" not in text
    advice = advise(tmp_path, minutes_per_mask=2)
    assert text == as_text(advice, long=True)
    assert main(["advise", str(tmp_path), "--minutes-per-mask", "2", "--json"]) == 0
    value = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert value == json.loads(json.dumps(as_dict(advice)))
    flat = " ".join(text.split())
    for section in value["sections"]:
        assert section["heading"] in text
        for item in section["items"]:
            assert " ".join(item["text"].split()) in flat


def test_settings_may_come_from_study_files_instead(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "results", steps(0.05), seeds=[0, 1])
    (tmp_path / "results" / "study.json").unlink()
    assert main(["advise", str(tmp_path / "results")]) == 2
    assert "study.json: no such file" in capsys.readouterr().err
    assert main(["advise", str(tmp_path / "results"), "--study", str(TINY)]) == 0
    assert "Study tiny: 16 of 16 cells" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["advise", "verify"])
def test_the_file_of_another_study_is_refused(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "results"
    make(root, steps(0.05), seeds=[0, 1])
    other = tmp_path / "other.yaml"
    other.write_text("study: other\n")
    assert main([command, str(root), "--study", str(TINY), str(other)]) == 2
    said = capsys.readouterr().err
    assert f"--study {TINY}, {other}: is study other, but the results in {root} are of study tiny; give" in said


def test_commands_name_the_folder_that_was_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever it was moved to."""
    make(tmp_path / "moved here" / "study", steps(0.05), seeds=[0, 1])
    monkeypatch.chdir(tmp_path)
    assert main(["advise", "moved here/study", "--long"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Try: `viny plan 'moved here/study' --set " in said
    assert main(["advise", "moved here/study"]) == 0
    assert "viny predict --root 'moved here/study' --cell " in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("path", "content", "words"),
    [
        ("finetune/pre-0_mid-none_fine-8_seed-0/run.json", "[]", "run.json: not the provenance of a training"),
        ("finetune/pre-0_mid-none_fine-8_seed-0/run.json", "{}", "run.json: no training_seconds"),
        ("finetune/pre-0_mid-none_fine-8_seed-0/curve.csv", "epoch\n1\n", "curve.csv: no column 'loss'"),
        ("metrics/pre-0_mid-none_fine-8_seed-0.npz", "x", "seed-0.npz: no readable confusion matrices"),
        ("tables/duplicates.csv", "x\n1\n", "duplicates.csv: not a table of duplicates"),
    ],
)
def test_a_damaged_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], path: str, content: str, words: str
) -> None:
    make(tmp_path, steps(), grid={"intermediates": ["none"], "pretrain_sizes": [0]})
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text(content)
    assert main(["advise", str(tmp_path)]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("target", ["0", "-1", "nan", "x"])
def test_a_target_that_is_none_is_refused(tmp_path: Path, target: str) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["advise", str(tmp_path), f"--target={target}"])
    assert exit_.value.code == 2
