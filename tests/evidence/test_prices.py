"""Advice at prices: the cheapest mix of a known surface, rounds against an exhaustive search, and the command."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_advice import make, part, said, scatter, steps

from viny.cli import main
from viny.evidence.advice.advice import as_text
from viny.evidence.advice.adviser import advise
from viny.evidence.advice.prices import Wish
from viny.evidence.advice.purchase import ROUND, Mixes, Prices, cheapest, mix_at, mixes, rounds
from viny.evidence.statistics.crossed import Runs
from viny.evidence.statistics.surface import fit_surface, points_of
from viny.runtime.errors import InputError
from viny.runtime.files import write_json
from viny.study.grid import Cell
from viny.study.layout import metrics_file

LABELS = [60, 120, 240, 480]
WISH = Wish(0.63, label=0.5, image=0.001, hour=1.2)


def error(u: float, n: float) -> float:
    return 0.25 + 1.2 * n**-0.4 + 0.08 * (1 + u / 500) ** -0.6


def known(folder: Path, images: list[int], labels: list[int] = LABELS, noise: float = 0.001, **changes: Any) -> None:
    made = scatter(noise)
    grid = {"pretrain_sizes": images, "finetune_sizes": labels, "intermediates": ["none"]}
    make(
        folder,
        lambda c: 1 - error(c.pretrain_size, c.finetune_size) + made(c),
        grid=grid,
        **({"synthetic": {"segmentation": 30, "unlabelled": 30}} | changes),
    )


# The cheapest mix


def prices(**changes: Any) -> Prices:
    about = {"label": 0.5, "image": 0.001, "hour": 1.0, "labels": 480, "images": 4000, "pretrain": 1e-3}
    return Prices(**about | {"finetune": 1e-2, "batch": 64, "pretrain_epochs": 50, "finetune_epochs": 40} | changes)


def test_the_cheapest_mix_is_missed_no_more_often_than_stated() -> None:
    keys = [(u, "none", n) for u in (0, 4000) for n in LABELS]
    truth = np.array([1 - error(u, n) for u, _, n in keys])
    target, missed, stated = 1 - error(4000, 700), [], []
    for seed in range(120):
        rng = np.random.default_rng(seed)
        noise = 0.003 * (np.sqrt(0.3) * rng.normal(size=(3, 1)) + np.sqrt(0.7) * rng.normal(size=(3, len(keys))))
        points = points_of(Runs(keys, range(3), truth + noise), draws=150)
        assert points is not None
        found = mixes(fit_surface(points), prices(), target)
        if (place := cheapest(found, 0.8)) is not None:
            mix = mix_at(found, place)
            missed.append(1 - error(mix.images, mix.labels) < target)
            stated.append(1 - mix.chance)
    assert len(missed) > 80
    assert np.mean(missed) <= np.mean(stated) + 2 * np.sqrt(0.2 * 0.8 / len(missed))


def grid_of(chance: Any, labels: Any, images: Any, data: Any = None) -> Mixes:
    data = np.asarray(labels, float) if data is None else np.asarray(data, float)
    hours = np.full(len(data), 0.01)
    return Mixes(np.array(images, float), np.array(labels, float), None, data, hours, hours, np.array(chance, float))


def test_of_mixes_that_cost_the_same_the_likeliest_is_taken_and_none_where_none_will_do() -> None:
    found = grid_of([0.5, 0.91, 0.95, 0.99], [1, 2, 2, 3], [0, 0, 1, 1])
    assert cheapest(found, 0.9) == 2
    assert cheapest(found, 0.9, np.array([True, True, False, True])) == 1
    assert cheapest(found, 0.995) is None
    assert rounds(found, 0.995)[0] == []


def expected_cost(found: Mixes, path: tuple[int, ...], each: float) -> float:
    """What a plan is expected to cost, term by term; infinite if it shrinks."""
    total, needed, before = 0.0, 1.0, None
    for place in path:
        step = found.data[place] - (0 if before is None else found.data[before])
        grows = before is None or all(axis[place] >= axis[before] for axis in (found.images, found.labels))
        total += needed * (step + found.training[place] + each) if grows else np.inf
        needed, before = 1 - found.chance[place], place
    return total


@pytest.mark.parametrize("seed", range(5))
def test_rounds_are_the_best_of_all_plans_once_the_first_is_given(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, images = (axis.ravel() for axis in np.meshgrid(np.arange(1, 7) * 10, np.arange(1, 4) * 10))
    chance = 1 / (1 + np.exp(-(labels + 0.5 * images - 45 + rng.normal(0, 2)) / 5))
    found = grid_of(chance, labels, images, labels + 0.4 * images)
    end = cheapest(found, 0.9)
    assert end is not None
    path, expected = rounds(found, 0.9)
    each = ROUND * found.cost[end]
    assert found.data[path[0]] <= found.data[end] / 2 and found.chance[path[-1]] >= 0.9
    assert expected == pytest.approx(expected_cost(found, tuple(path), each))
    others = [
        (path[0], *rest)
        for more in (1, 2)
        for rest in itertools.permutations(range(len(labels)), more)
        if found.chance[rest[-1]] >= 0.9
    ]
    assert expected == pytest.approx(min(expected_cost(found, other, each) for other in others))
    assert expected < found.cost[end] * 1.05


# What the advice says


def test_what_a_target_costs_is_said_with_its_risk_and_the_grid_that_measures_it(tmp_path: Path) -> None:
    known(tmp_path, [0, 4000])
    advice = advise(tmp_path, wish=WISH)
    first, *others = part(advice, "prices")
    mix = first["mix"]
    assert mix["images"] == 4000 and 500 <= mix["labels"] <= 700  # it takes 590 after the 4,000 images
    assert 1 - error(mix["images"], mix["labels"]) >= 0.629
    assert mix["chance"] >= 0.9 and first["miou"]["low"] < 1 - error(4000, mix["labels"]) < first["miou"]["high"]
    assert mix["data"] == pytest.approx(0.5 * (mix["labels"] - 480))
    assert mix["cost"] == pytest.approx(mix["data"] + 1.2 * mix["hours"])
    text = as_text(advice, 10_000, long=True)
    assert f"{mix['labels'] - 480:,} more labels than are at hand" in text
    assert "the chance of missing is" in text and "In place of it, without pre-training none does" in text
    plan = next(item for item in others if "rounds" in item)
    labels = [one["labels"] for one in plan["rounds"]]
    assert labels == sorted(labels) and 480 < labels[0] <= (480 + mix["labels"]) / 2 + 1
    assert plan["expected_cost"] <= mix["cost"] * 1.05
    sizes = [60, 120, 240, 480, labels[0]]
    assert plan["grid"] == {"finetune_sizes": sizes}
    assert f"--set 'grid.finetune_sizes={sizes}'" in plan["text"]
    assert "is larger than the data" in plan["check"]  # the study's data set has 20 labelled images
    assert "chances are too sure" not in text


def test_without_prices_the_advice_is_as_before(tmp_path: Path) -> None:
    known(tmp_path, [0, 4000])
    assert "What the target costs" not in as_text(advise(tmp_path), long=True)


def test_dear_hours_are_spared_and_dear_labels_are_replaced(tmp_path: Path) -> None:
    known(tmp_path, [0, 4000])
    hours, labels = (
        part(advise(tmp_path, wish=Wish(0.59, label=label, hour=hour)), "prices")[0]["mix"]
        for label, hour in ((0.001, 1000.0), (10.0, 0.001))
    )
    assert (hours["images"], labels["images"]) == (0, 4000)
    assert hours["labels"] > 2 * labels["labels"]


def test_what_cannot_be_reached_or_foretold_is_said(tmp_path: Path) -> None:
    known(tmp_path / "a", [0, 4000])
    first = part(advise(tmp_path / "a", wish=Wish(0.8, label=1.0)), "prices")[0]
    assert first["mix"] is None and "No mix as far as can be foretold (up to 1,920 labels and 4,000" in first["text"]
    known(tmp_path / "b", [0, 4000], LABELS[:3])
    (only,) = part(advise(tmp_path / "b", wish=WISH), "prices")
    assert "3 label sizes foretell nothing; it takes 4" in only["text"]
    assert "`grid.finetune_sizes: [60, 120, 240, 480]`" in only["text"]
    known(tmp_path / "c", [0, 4000], seeds=[0])
    (only,) = part(advise(tmp_path / "c", wish=WISH), "prices")
    assert "no cell without a task has two seeds" in only["text"]


def test_a_target_that_is_at_hand_is_not_bought(tmp_path: Path) -> None:
    known(tmp_path, [0, 4000])
    advice = advise(tmp_path, wish=Wish(0.55, label=0.5))
    assert part(advice, "prices")[0]["mix"]["cost"] == 0
    assert "all of it at hand" in said(advice, "prices") and "Nothing is to be bought" in said(advice, "prices")


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (Wish(0.0063, label=1), "--reach is 0.63; expected mIoU in percent"),
        (Wish(1.2, label=1), "--reach is 120"),
        (Wish(0.6), "--reach needs a price"),
        (Wish(0.6, label=-1), "--price-label is -1"),
        (Wish(0.6, 0.3, label=1), "--chance is 30"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, wish: Wish, words: str) -> None:
    with pytest.raises(InputError, match=words):
        advise(tmp_path, wish=wish)


def test_the_command_takes_target_and_prices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known(tmp_path, [0, 4000])
    assert main(["advise", str(tmp_path), "--reach", "63", "--price-label", "0.5", "--chance", "80", "--json"]) == 0
    advice = json.loads(capsys.readouterr().out)
    first = next(one["items"] for one in advice["sections"] if one["key"] == "prices")[0]
    assert first["mix"]["chance"] >= 0.8
    assert main(["advise", str(tmp_path), "--price-label", "0.5"]) == 2
    assert "a price needs --reach" in capsys.readouterr().err


# Arms, and the length of pre-training


def arms_study(folder: Path) -> dict[str, Any]:
    """Equal epochs and equal steps, where the steps bring all that there is to be had."""
    made = scatter(0.0005)

    def truth(cell: Cell) -> float:
        steps = 4000 if cell.variant == "equal_steps" else cell.pretrain_size
        return 1 - (0.25 + 1.2 * cell.finetune_size**-0.4 + 0.1 * (1 + steps / 500) ** -0.6)

    grid = {"variants": ["study", "equal_steps"], "pretrain_sizes": [0, 500, 1000, 4000], "finetune_sizes": LABELS}
    return make(folder, lambda c: truth(c) + made(c), grid={**grid, "intermediates": ["none"]})


def test_advice_is_about_the_first_arm_and_steps_are_an_axis_where_variants_vary_them(tmp_path: Path) -> None:
    config = arms_study(tmp_path)
    advice = advise(tmp_path, wish=Wish(0.6, label=0.5, hour=1.0))
    assert as_text(advice, long=True).startswith("Study tiny: 72 of 72 cells, 3 seeds")
    first = part(advice, "prices")[0]
    assert first["mix"]["steps"] is not None
    basis = part(advice, "prices")[-1]
    assert "over 24 cells without a task" in basis["text"]  # 2 of the 4 sizes differ in their steps
    assert any("steps added" in form["form"] for form in basis["forms"])
    metrics_file(tmp_path, Cell(500, "none", 60, 0)).unlink()  # further seeds and finished grids count this arm alone
    changes = {row["change"]: row["new_cells"] for row in part(advise(tmp_path), "next") if "new_cells" in row}
    assert changes["finish the grid (run the workflow again)"] == 1
    assert config["grid"]["variants"] == ["study", "equal_steps"]


def test_the_held_out_loss_says_to_stop_earlier_or_go_on(tmp_path: Path) -> None:
    config = make(tmp_path, steps(0.05), curve=np.linspace(1.0, 0.5, 20))
    (size,) = (size for size in config["grid"]["pretrain_sizes"] if size)
    before = as_text(advise(tmp_path), long=True)
    assert "held-out" not in before and "pretrain.epochs" in before
    rng = np.random.default_rng(0)
    for shape, words in (
        (lambda e: 0.5 + 0.002 * (e - 8) ** 2, "lowest at epoch 8 of 20; stop there"),
        (lambda e: 1 - 0.02 * e, "go on longer"),
    ):
        for folder in tmp_path.glob(f"pretrain/size-{size}_*"):
            curve = pd.read_csv(folder / "curve.csv")
            loss = shape(curve["epoch"]) + rng.normal(0, 1e-4)
            curve.assign(held_out_loss=loss.where(curve["epoch"] % 2 == 0)).to_csv(folder / "curve.csv", index=False)
        text = as_text(advise(tmp_path), 10_000, long=True)
        assert words in text
        assert ("pretrain.epochs" in text) == ("go on" in words)  # no longer training of what is too long already


def test_a_pack_says_what_is_at_hand(tmp_path: Path) -> None:
    known(tmp_path, [0, 4000], pretrain={"source": "folder", "path": str(tmp_path / "none")})
    write_json(tmp_path / "packs" / "pretrain" / "manifest.json", {"count": 5000})
    assert part(advise(tmp_path, wish=WISH), "prices")[-1]["prices"]["images"] == 5000
