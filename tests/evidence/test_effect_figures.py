"""Figures of effects and returns: what they draw, what they say, and that nothing is clipped."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from figure_checks import assert_readable, labelled, words
from matplotlib.figure import Figure

from viny.evidence.figures import effects as effect_figures
from viny.evidence.figures import kit
from viny.evidence.statistics import costs as cost_tables
from viny.evidence.statistics.crossed import Runs, read_runs
from viny.evidence.statistics.effects import decisions_table
from viny.evidence.statistics.fits import MODELS, fits
from viny.evidence.statistics.gains import marginal_gains
from viny.evidence.statistics.transfer import transfer
from viny.evidence.tables import KEYS
from viny.evidence.verdicts import decide

NOTE = "Made up, with $ and _; not comparable with anything. " * 4
LABELS = (250, 500, 1000, 2000, 4000)


def study(tasks: tuple[str, ...], seeds: int = 3, sizes: tuple[int, ...] = (0, 50, 5000)) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = list(product(sizes, ("none", *tasks), LABELS, range(seeds)))
    frame = pd.DataFrame(rows, columns=KEYS)
    gain = 0.04 * np.log2(frame["finetune_size"] / 250) + 0.03 * (frame["pretrain_size"] > 0)
    harm = 0.02 * (frame["intermediate"] != "none")
    miou = 0.4 + gain - harm + 0.005 * rng.normal(size=len(frame))
    names = ["-".join(map(str, key)) for key in frame.itertuples(index=False)]
    return frame.assign(miou=miou, cell=names)


def runs_of(frame: pd.DataFrame) -> Runs:
    return read_runs(frame, None)


def effects_of(frame: pd.DataFrame, note: str = "") -> Figure:
    runs = runs_of(frame)
    return effect_figures.effects(runs, decisions_table(decide(runs)), note)


def returns_of(frame: pd.DataFrame, note: str = "") -> Figure:
    runs = runs_of(frame)
    return effect_figures.returns(runs, fits(runs), marginal_gains(runs), note)


def transfer_of(frame: pd.DataFrame, note: str = "") -> Figure:
    runs = runs_of(frame)
    return effect_figures.transfer(transfer(runs), runs, note)


def costs(frame: pd.DataFrame, device: str = "cpu") -> pd.DataFrame:
    spent = frame["finetune_size"] + frame["pretrain_size"] + 100 * (frame["intermediate"] != "none")
    chain = {
        name: {"seconds": float(s), "operations": 1e9 * s, "device": device}
        for name, s in zip(frame["cell"], spent, strict=True)
    }
    return cost_tables.costs(frame, chain)


def test_the_forest_has_every_cell_its_seeds_and_the_means() -> None:
    frame = study(("a",))
    runs = runs_of(frame)
    figure = effects_of(frame.sample(frac=1, random_state=0), NOTE)
    (axes,) = figure.axes
    ticks = [tick.get_text() for tick in axes.get_yticklabels()]
    assert len(ticks) == 3 * (1 + 5 + 1) + 1
    assert ticks[:2] == ["random start", "250 labels"]
    assert (ticks[7], ticks[-1]) == ("pre-trained, 50", "all pre-trained")
    pairs = [{(p, "a", n): 1.0, (p, "none", n): -1.0} for p in (0, 50, 5000) for n in LABELS]
    expected = runs.contrasts(runs.weights(*pairs))
    cells = labelled(axes, "_cell")
    assert [line.get_xdata()[0] for line in cells] == pytest.approx(list(100 * expected.mean))
    assert [ticks[int(line.get_ydata()[0])] for line in cells[:5]] == [f"{n:,} labels" for n in LABELS]
    bar = next(c for c in axes.containers if c.get_label() == "_cell").lines[2][0].get_segments()[0]
    assert bar[:, 0] == pytest.approx([100 * expected.low[0], 100 * expected.high[0]])
    raw = labelled(axes, "_seeds")
    assert sum(len(line.get_xdata()) for line in raw) == 45
    means = [runs.mean_of(runs.weights(*pairs[start : start + 5])).at() for start in (0, 5, 10)]
    assert [line.get_xdata()[0] for line in labelled(axes, "_mean")] == pytest.approx([100 * m["mean"] for m in means])
    over = runs.mean_of(runs.weights(*pairs[5:])).at()  # a random start is not pooled with pre-trained encoders
    (last,) = labelled(axes, "_all")
    assert last.get_xdata()[0] == pytest.approx(100 * over["mean"])
    drawn = next(c for c in axes.containers if c.get_label() == "_all").lines[2][0].get_segments()[0]
    assert drawn[:, 0] == pytest.approx([100 * over["low"], 100 * over["high"]])
    assert any(set(line.get_xdata()) == {0} for line in axes.lines)
    said = words(figure)
    (decided,) = [decision for decision in decide(runs) if decision.kind == "task"]
    assert (decided.mean, decided.low) == pytest.approx((over["mean"], over["low"]))
    for part in (decided.words, "percentage points", "bars: 95 % interval", "mean over 3 seeds", NOTE.strip()):
        assert part in said
    assert len(axes.get_xticks()) >= 5 and len(axes.get_xticks(minor=True)) > len(axes.get_xticks())


def test_a_wide_interval_does_not_hide_the_points() -> None:
    frame = study(("a",), seeds=2)
    figure = effects_of(frame)
    low, high = figure.axes[0].get_xlim()
    raw = np.concatenate([line.get_xdata() for line in labelled(figure.axes[0], "_seeds")])
    assert low < raw.min()
    assert high > raw.max()
    assert high - low < 10 * np.abs(raw).max()
    assert "reach beyond a panel are cut" in words(figure)
    assert "are cut" not in words(effects_of(study(("a",))))


def test_one_seed_draws_no_bars_and_says_so() -> None:
    frame = study(("a",), seeds=1)
    for figure in (effects_of(frame), returns_of(frame), transfer_of(frame)):
        assert not any(c.has_xerr or c.has_yerr for axes in figure.axes for c in axes.containers)
        assert "no bars" in words(figure)


def test_a_task_that_lacks_cells_keeps_the_rows_of_the_others() -> None:
    frame = study(("a", "b"))
    frame = frame[(frame["intermediate"] != "b") | (frame["pretrain_size"] == 50)]
    left, right = effects_of(frame).axes
    assert left.get_ylim() == right.get_ylim()
    assert [len(labelled(axes, "_cell")) for axes in (left, right)] == [15, 5]
    rows = [line.get_ydata()[0] for line in labelled(left, "_cell")]
    assert [line.get_ydata()[0] for line in labelled(right, "_cell")] == rows[5:10]


def test_returns_show_means_curves_and_gains() -> None:
    frame = study(("a",))
    figure = returns_of(frame, NOTE)
    assert len(figure.axes) == 4
    left, right = figure.axes[:2]
    means = frame[frame["intermediate"] == "none"].groupby(["pretrain_size", "finetune_size"])["miou"].mean()
    data = np.concatenate([line.get_ydata() for line in labelled(left, "_mean")])
    assert data == pytest.approx(100 * means.to_numpy())
    curves = labelled(left, "_fit")
    assert len(curves) == 3
    assert curves[0].get_ydata()[-1] == pytest.approx(100 * means.loc[0, 4000], abs=1)
    doublings = marginal_gains(runs_of(frame))
    steps = doublings[(doublings["along"] == "labels") & (doublings["intermediate"] == "none")]
    data = np.concatenate([line.get_ydata() for line in labelled(right, "_gain")])
    assert data == pytest.approx(100 * steps["mean"].to_numpy(float))
    first = steps.iloc[0]
    bar = next(c for c in right.containers if c.get_label() == "_gain").lines[2][0].get_segments()[0][:, 1]
    assert bar == pytest.approx([100 * first["low"], 100 * first["high"]])
    assert "mIoU (%)" in words(figure)
    assert "gain per doubling" in words(figure)


def test_forms_of_a_curve_are_averaged_by_their_weights() -> None:
    runs = runs_of(study(()))
    forms, gains = fits(runs), marginal_gains(runs)
    models = sorted(MODELS)[:2]
    heights = []
    for share in (0.0, 0.25, 1.0):
        shares = {models[0]: 1 - share, models[1]: share}
        weighted = forms.assign(weight=forms["model"].map(shares).fillna(0.0))
        figure = effect_figures.returns(runs, weighted, gains)
        heights.append(labelled(figure.axes[0], "_fit")[0].get_ydata())
    assert heights[1] == pytest.approx(0.75 * heights[0] + 0.25 * heights[2])
    without = effect_figures.returns(runs, forms.assign(weight=0.0), gains)
    assert not labelled(without.axes[0], "_fit")


def test_transfer_marks_what_lies_outside_of_the_curve() -> None:
    frame = study(("a",))
    table = transfer(runs_of(frame))
    figure = transfer_of(frame, NOTE)
    left, right = figure.axes
    assert (left.get_xscale(), left.get_yscale()) == ("log", "log")
    for axes, task in ((left, "none"), (right, "a")):
        mine = table[table["intermediate"] == task]
        for kind, marks in (("beyond", "^"), ("below", "v"), ("", kit.MARKERS)):
            lines = labelled(axes, f"_{kind or 'inside'}")
            expected = mine.loc[mine["censored"] == kind, "labels_worth"]
            found = np.concatenate([line.get_ydata() for line in lines]) if lines else []
            assert list(found) == pytest.approx(list(expected))
            assert {line.get_marker() for line in lines} <= {*marks}
            assert {line.get_markerfacecolor() == "white" for line in lines} <= {bool(kind)}
    assert set(table["censored"]) == {"", "beyond", "below"}  # so that each kind was drawn
    (same,) = labelled(left, "_same")
    assert list(same.get_xdata()) == list(same.get_ydata())


def test_no_mark_of_transfer_hides_another() -> None:
    frame = study(("a",), sizes=(0, 50, 500, 5000))
    for axes in transfer_of(frame).axes:
        marks = [line for kind in ("inside", "beyond", "below") for line in labelled(axes, f"_{kind}")]
        places = np.concatenate([axes.transData.transform(line.get_xydata()) for line in marks])
        apart = np.linalg.norm(places[:, None] - places[None], axis=-1) * 72 / axes.figure.dpi
        assert apart[~np.eye(len(places), dtype=bool)].min() > 4  # points: the marks' size


def test_cost_has_a_panel_for_operations_and_one_a_device() -> None:
    frame = study(("a", "b"))
    table = costs(frame)
    runs = runs_of(frame)
    figure = effect_figures.cost(table, runs, NOTE)
    assert [axes.get_xlabel() for axes in figure.axes] == ["Operations (FLOP)", "Seconds on cpu"]
    assert {axes.get_xscale() for axes in figure.axes} == {"log"}
    for axes, by, front in zip(figure.axes, ("operations", "seconds"), ("front", "front_seconds"), strict=True):
        best = table[table[front]].sort_values(by)
        (line,) = labelled(axes, "_front")
        assert list(line.get_xdata()) == list(best[by])
        assert list(line.get_ydata()) == pytest.approx(list(100 * best["miou"]))
        drawn = [bars for bars in axes.containers if bars.get_label() == "_cell"]
        assert sum(len(bars.lines[0].get_xdata()) for bars in drawn) == len(table)
        first = drawn[0].lines[2][0].get_segments()[0][:, 1]
        expected = runs.contrasts(runs.weights({(0, "a", 250): 1.0})).at()
        assert list(first) == pytest.approx([100 * expected["low"], 100 * expected["high"]])
        assert {text.get_text() for text in axes.texts} <= {str(n) for n in best["finetune_size"]}
    assert "bars: 95 % interval" in words(figure)
    table.loc[table["pretrain_size"] == 50, "device"] = "cuda"
    labels = [axes.get_xlabel() for axes in effect_figures.cost(table, runs).axes]
    assert labels[1:] == ["Seconds on cpu", "Seconds on cuda"]


@pytest.mark.parametrize("powers", [0.2, 0.7, 1.5, 2, 3, 7])
@pytest.mark.parametrize("least", [0.05, 20, 5e5])
def test_ticks_of_cost_are_plain_numbers_apart_from_each_other(least: float, powers: float) -> None:
    frame = study(("a",))
    table = costs(frame)
    table["seconds"] = np.geomspace(least, least * 10**powers, len(table))
    table["operations"] = 1e9 * table["seconds"]
    figure = effect_figures.cost(table, runs_of(frame))
    assert_readable(figure)
    for axes in figure.axes:
        low, high = axes.get_xlim()
        ticks = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
        said = [text.get_text() for at, text in ticks if low <= at <= high]
        assert 2 <= len(said) <= 12 or powers < 0.5
        assert not any("^" in label for label in said)


def test_nothing_to_draw_is_said_in_words() -> None:
    none = study(())
    apart = study(("a",)).assign(seed=lambda f: f["seed"] + 9 * (f["intermediate"] == "a"))
    pretrained = none[none["pretrain_size"] > 0]
    free = costs(none).assign(operations=0.0, seconds=0.0)
    said = {
        "no intermediate task": effects_of(none, "Mind this."),
        "No seed was run both": effects_of(apart, "Mind this."),
        "no mIoU": returns_of(none.assign(miou=np.nan), "Mind this."),
        "takes a random start": transfer_of(pretrained, "Mind this."),
        "No costs are known": effect_figures.cost(pd.DataFrame(columns=cost_tables.COSTS), runs_of(none), "Mind this."),
        "No cell of this study has a cost": effect_figures.cost(free, runs_of(none), "Mind this."),
    }
    for part, figure in said.items():
        assert part in words(figure)
        assert "Mind this." in words(figure)


def make_all(tasks: tuple[str, ...]) -> dict[str, Callable[[], Figure]]:
    frame = study(tasks)
    return {
        "effects": lambda: effects_of(frame, NOTE),
        "returns": lambda: returns_of(frame, NOTE),
        "transfer": lambda: transfer_of(frame, NOTE),
        "cost": lambda: effect_figures.cost(costs(frame), runs_of(frame), NOTE),
    }


@pytest.mark.parametrize("name", ["effects", "returns", "transfer", "cost"])
@pytest.mark.parametrize("tasks", [("a",), ("intel", "intel_shuffled_labels", "pets_classes", "d" * 20, "e")])
def test_figures_are_readable_and_give_equal_files(tmp_path: Path, name: str, tasks: tuple[str, ...]) -> None:
    before = dict(mpl.rcParams)
    make = make_all(tasks)[name]
    figure = make()
    assert_readable(figure)
    assert dict(mpl.rcParams) == before
    if len(tasks) == 1:
        kit.save(figure, tmp_path / "a")
        kit.save(make(), tmp_path / "anew")
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "anew.png").read_bytes()
