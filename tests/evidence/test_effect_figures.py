"""Figures of effects and returns: what they draw, what they say, and that nothing is clipped."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from viny.evidence.figures import effects as effect_figures
from viny.evidence.figures import kit
from viny.evidence.statistics import costs as cost_tables
from viny.evidence.statistics.effects import effects, overall
from viny.evidence.statistics.fits import fits, fitted_miou
from viny.evidence.statistics.gains import marginal_gains
from viny.evidence.statistics.transfer import transfer
from viny.evidence.tables import KEYS

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
    return frame.assign(miou=miou, pixel_accuracy=0.7, cell=names)


def costs(frame: pd.DataFrame, device: str = "cpu") -> pd.DataFrame:
    spent = frame["finetune_size"] + frame["pretrain_size"] + 100 * (frame["intermediate"] != "none")
    chain = {
        name: {"seconds": float(s), "operations": 1e9 * s, "device": device}
        for name, s in zip(frame["cell"], spent, strict=True)
    }
    return cost_tables.costs(frame, chain)


def words(figure: Figure) -> str:
    """Everything a figure says outside its ticks and legends."""
    texts = [*figure.texts, figure._supxlabel]
    for axes in figure.axes:
        texts += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
    return "\n".join(text.get_text() for text in texts if text)


def labelled(axes: Axes, label: str) -> list[Line2D]:
    """Lines with a label, including those of error bars."""
    lines = [line for line in axes.lines if line.get_label() == label]
    return lines + [bars.lines[0] for bars in axes.containers if bars.get_label() == label]


def test_the_forest_has_every_cell_its_seeds_and_the_clustered_mean() -> None:
    frame = study(("a",))
    figure = effect_figures.effects(frame.sample(frac=1, random_state=0), NOTE)
    (axes,) = figure.axes
    ticks = [tick.get_text() for tick in axes.get_yticklabels()]
    assert len(ticks) == 3 * (1 + 5 + 1) + 1
    assert ticks[:2] == ["no pre-training", "250 labels"]
    assert (ticks[7], ticks[-1]) == ("pre-trained on 50", "mean of all cells")
    table, means = effects(frame), overall(frame)
    cells = labelled(axes, "_cell")
    assert [line.get_xdata()[0] for line in cells] == pytest.approx(list(100 * table["mean"]))
    assert [ticks[int(line.get_ydata()[0])] for line in cells[:5]] == [f"{n:,} labels" for n in LABELS]
    bar = next(c for c in axes.containers if c.get_label() == "_cell").lines[2][0].get_segments()[0]
    assert bar[:, 0] == pytest.approx([100 * table["low"][0], 100 * table["high"][0]])
    raw = labelled(axes, "_seeds")
    assert sum(len(line.get_xdata()) for line in raw) == 45
    (last,) = labelled(axes, "_all")
    assert last.get_xdata()[0] == pytest.approx(100 * means["mean"].iloc[-1])
    drawn = next(c for c in axes.containers if c.get_label() == "_all").lines[2][0].get_segments()[0]
    assert drawn[:, 0] == pytest.approx([100 * means["low"].iloc[-1], 100 * means["high"].iloc[-1]])
    assert any(set(line.get_xdata()) == {0} for line in axes.lines)
    said = words(figure)
    for part in ("percentage points", "95 % t interval", "clustered by encoder", "mean over 3 seeds", NOTE.strip()):
        assert part in said.replace("\n", " ")


def test_a_wide_interval_does_not_hide_the_points() -> None:
    frame = study(("a",), seeds=2)
    figure = effect_figures.effects(frame)
    low, high = figure.axes[0].get_xlim()
    raw = np.concatenate([line.get_xdata() for line in labelled(figure.axes[0], "_seeds")])
    assert low < raw.min()
    assert high > raw.max()
    assert high - low < 10 * np.abs(raw).max()
    assert "reach beyond a panel are cut" in words(figure).replace("\n", " ")
    assert "are cut" not in words(effect_figures.effects(study(("a",)))).replace("\n", " ")


def test_one_seed_draws_no_bars_and_says_so() -> None:
    frame = study(("a",), seeds=1)
    for figure in (effect_figures.effects(frame), effect_figures.returns(frame), effect_figures.transfer(frame)):
        assert not any(c.has_xerr or c.has_yerr for axes in figure.axes for c in axes.containers)
        assert "one seed" in words(figure).lower()
        assert "no bars" in words(figure)


def test_a_task_that_lacks_cells_keeps_the_rows_of_the_others() -> None:
    frame = study(("a", "b"))
    frame = frame[(frame["intermediate"] != "b") | (frame["pretrain_size"] == 50)]
    left, right = effect_figures.effects(frame).axes
    assert left.get_ylim() == right.get_ylim()
    assert [len(labelled(axes, "_cell")) for axes in (left, right)] == [15, 5]
    rows = [line.get_ydata()[0] for line in labelled(left, "_cell")]
    assert [line.get_ydata()[0] for line in labelled(right, "_cell")] == rows[5:10]


def test_returns_show_means_fits_and_gains() -> None:
    frame = study(("a",))
    figure = effect_figures.returns(frame, NOTE)
    assert len(figure.axes) == 4
    left, right = figure.axes[:2]
    forms, doublings = fits(frame), marginal_gains(frame)
    best = forms[forms["best"] & (forms["intermediate"] == "none")]
    drawn = [line for line in left.lines if line.get_label().startswith("_fit")]
    assert [line.get_label() for line in drawn] == [f"_fit {model}" for model in best["model"]]
    assert drawn[0].get_ydata()[-1] == pytest.approx(100 * fitted_miou(best.iloc[0], [4000])[0])
    means = frame[frame["intermediate"] == "none"].groupby(["pretrain_size", "finetune_size"])["miou"].mean()
    data = np.concatenate([c.lines[0].get_ydata() for c in left.containers])
    assert data == pytest.approx(100 * means.to_numpy())
    steps = doublings[(doublings["along"] == "labels") & (doublings["intermediate"] == "none")]
    data = np.concatenate([c.lines[0].get_ydata() for c in right.containers])
    assert data == pytest.approx(100 * steps["mean"].to_numpy(float))
    first = steps.iloc[0]
    bar = right.containers[0].lines[2][0].get_segments()[0][:, 1]
    assert bar == pytest.approx([100 * first["low"], 100 * first["high"]])
    assert "mIoU (%)" in words(figure)
    assert "gain per doubling" in words(figure)


def test_a_curve_without_an_identified_form_has_no_line() -> None:
    frame = study(())
    figure = effect_figures.returns(frame[frame["finetune_size"] <= 1000])
    assert not any(line.get_label().startswith("_fit") for axes in figure.axes for line in axes.lines)
    assert "no form of the curves is identified" in words(figure).replace("\n", " ")


def test_transfer_marks_what_lies_outside_of_the_curve() -> None:
    frame = study(("a",))
    table = transfer(frame)
    figure = effect_figures.transfer(frame, NOTE)
    left, right = figure.axes
    assert (left.get_xscale(), left.get_yscale()) == ("log", "log")
    for axes, task in ((left, "none"), (right, "a")):
        mine = table[table["intermediate"] == task]
        for kind, marker in (("beyond", "^"), ("below", "v"), ("", "o")):
            lines = labelled(axes, f"_{kind or 'inside'}")
            expected = mine.loc[mine["censored"] == kind, "labels_worth"]
            found = np.concatenate([line.get_ydata() for line in lines]) if lines else []
            assert list(found) == pytest.approx(list(expected))
            assert {line.get_marker() for line in lines} <= {marker}
            assert {line.get_markerfacecolor() == "white" for line in lines} <= {bool(kind)}
    assert set(table["censored"]) == {"", "beyond", "below"}  # so that each kind was drawn
    (identity,) = labelled(left, "_identity")
    assert list(identity.get_xdata()) == list(identity.get_ydata())


def test_cost_has_a_panel_for_operations_and_one_a_device() -> None:
    frame = study(("a", "b"))
    table = costs(frame)
    figure = effect_figures.cost(table, NOTE)
    assert [axes.get_xlabel() for axes in figure.axes] == ["operations (FLOP)", "seconds on cpu"]
    assert {axes.get_xscale() for axes in figure.axes} == {"log"}
    for axes, by, front in zip(figure.axes, ("operations", "seconds"), ("front", "front_seconds"), strict=True):
        best = table[table[front]].sort_values(by)
        (line,) = labelled(axes, "_front")
        assert list(line.get_xdata()) == list(best[by])
        assert list(line.get_ydata()) == pytest.approx(list(100 * best["miou"]))
        assert len(labelled(axes, "_cell")) == len(table)
        assert {text.get_text() for text in axes.texts} <= {str(n) for n in best["finetune_size"]}
    table.loc[table["pretrain_size"] == 50, "device"] = "cuda"
    assert [axes.get_xlabel() for axes in effect_figures.cost(table).axes][1:] == ["seconds on cpu", "seconds on cuda"]


def test_nothing_to_draw_is_said_in_words() -> None:
    none = study(())
    apart = study(("a",)).assign(seed=lambda f: f["seed"] + 9 * (f["intermediate"] == "a"))
    pretrained = none[none["pretrain_size"] > 0]
    free = costs(none).assign(operations=0.0, seconds=0.0)
    said = {
        "no intermediate task": effect_figures.effects(none, "Mind this."),
        "No seed was run both": effect_figures.effects(apart, "Mind this."),
        "no mIoU": effect_figures.returns(none.assign(miou=np.nan), "Mind this."),
        "takes a random start": effect_figures.transfer(pretrained, "Mind this."),
        "No costs are known": effect_figures.cost(pd.DataFrame(columns=cost_tables.COSTS), "Mind this."),
        "No cell of this study has a cost": effect_figures.cost(free, "Mind this."),
    }
    for part, figure in said.items():
        assert part in words(figure)
        assert "Mind this." in words(figure)


def make_all(tasks: tuple[str, ...]) -> dict[str, Callable[[], Figure]]:
    frame = study(tasks)
    return {
        "effects": lambda: effect_figures.effects(frame, NOTE),
        "returns": lambda: effect_figures.returns(frame, NOTE),
        "transfer": lambda: effect_figures.transfer(frame, NOTE),
        "cost": lambda: effect_figures.cost(costs(frame), NOTE),
    }


@pytest.mark.parametrize("name", ["effects", "returns", "transfer", "cost"])
@pytest.mark.parametrize("tasks", [("a",), ("intel", "intel_shuffled_labels", "pets_classes", "d" * 20, "e")])
def test_figures_fit_their_page_and_give_equal_files(tmp_path: Path, name: str, tasks: tuple[str, ...]) -> None:
    before = dict(mpl.rcParams)
    make = make_all(tasks)[name]
    figure = make()
    page, inside = figure.bbox, figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    assert inside.x0 >= page.x0
    assert inside.x1 <= page.x1
    assert inside.y0 >= page.y0
    assert inside.y1 <= page.y1
    boxes = [axes.title.get_window_extent() for axes in figure.axes if axes.get_title()]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert figure.get_figwidth() == kit.WIDTH
    assert figure.get_figheight() < 11
    assert dict(mpl.rcParams) == before
    if len(tasks) == 1:
        kit.save(figure, tmp_path / "a")
        kit.save(make(), tmp_path / "anew")
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "anew.png").read_bytes()
