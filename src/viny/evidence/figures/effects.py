"""Figures of effects and returns, mIoU in percent."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FuncFormatter, NullLocator

from viny.evidence.figures import kit, means
from viny.evidence.figures.study import NO_PAIR, NO_TASK
from viny.evidence.statistics.crossed import Runs
from viny.evidence.statistics.fits import fitted_miou
from viny.evidence.tables import GROUP

ROW = 0.17  # inches per row of a forest plot
HEIGHT = 1.4  # inches, of a panel's axis at the least
FARTHEST = 4  # a forest plot reaches at most this many times as far as its farthest raw point


@kit.in_style
def effects(runs: Runs, decisions: pd.DataFrame, note: str = "") -> Figure:
    """Forest plot of what each intermediate task changes: a panel per task, a row per cell, with 95 % intervals.

    Single seeds are small points below the mean of their cell. Diamonds are means over cells: one below each pre-train
    size and, at the bottom, one over all cells with pre-training. What is decided of a task stands below its name.

    Args:
        runs: the study's.
        decisions: what `effects.decisions_table` returns.
        note: printed under the figure.
    """
    if all(key[1] == "none" for key in runs.keys):
        return kit.say(NO_TASK, note)
    table = means.of_tasks(runs)
    if table.empty:
        return kit.say(NO_PAIR, note)
    tasks = kit.tasks_in_order(table["intermediate"])
    styles = kit.size_styles(key[0] for key in runs.keys)
    rows = _forest_rows(table)
    titles = _titles(tasks, decisions)
    height = ROW * (len(rows) + max(title.count("\n") for title in titles)) + 0.75
    figure, panels = kit.panels(len(tasks), columns=2, height=height, sharey=False)
    cells = list(table[GROUP].itertuples(index=False, name=None))
    points = dict(zip(cells, 100 * means.seed_by_seed(runs, cells), strict=True))
    low, high, cut = _reach(table, points)
    for axes, task, title in zip(panels, tasks, titles, strict=True):
        axes.axvline(0, color="black", linewidth=0.8, zorder=1, label="_zero")
        _forest(axes, rows, table[table["intermediate"] == task], points, runs, styles)
        axes.set_title(title)
        axes.set_xlim(low, high)
        kit.fine_ticks(axes.xaxis, most=9 if len(tasks) == 1 else 6)
        axes.grid(True, axis="x", which="minor", linewidth=0.25)
        axes.set_xlabel("mIoU difference\n(percentage points)")
        if not axes.get_subplotspec().is_first_col():
            axes.tick_params(axis="y", labelleft=False)
    several = bool(table["n"].max() > 1)
    marks = [("o", "mean of a cell"), ("D", "mean over cells"), *([(".", "single seeds")] * several)]
    handles = [Line2D([], [], color=kit.GREY, linestyle="", marker=mark, label=words) for mark, words in marks]
    kit.legend(figure, handles, kit.seeds_in_words(table["n"]))
    kit.add_note(figure, "Intervals that reach beyond a panel are cut." if cut else "", note)
    return figure


def _titles(tasks: Sequence[str], decisions: pd.DataFrame) -> list[str]:
    """The name of each task, and below it what is decided of it."""
    decided = decisions[decisions["kind"] == "task"].set_index("what")["words"]
    width = kit.TITLE if len(tasks) > 1 else 2 * kit.TITLE
    lines = [[kit.task_title(task), textwrap.fill(decided.get(task, ""), width)] for task in tasks]
    return ["\n".join(filter(None, pair)) for pair in lines]


def _reach(table: pd.DataFrame, points: Mapping[Any, np.ndarray]) -> tuple[float, float, bool]:
    """Ends of the axis, in points, with zero and all seeds in it; and whether it cuts an interval."""
    raw = np.concatenate(list(points.values()))
    raw = raw[np.isfinite(raw)]
    low, high = np.nanmin([*raw, *100 * table["low"], 0]), np.nanmax([*raw, *100 * table["high"], 0])
    most = FARTHEST * np.abs(raw).max() or 1.0
    left, right = max(low, -most), min(high, most)
    margin = 0.05 * (right - left) or most
    return left - margin, right + margin, bool(low < left or high > right)


def _forest_rows(cells: pd.DataFrame) -> list[tuple[str, int, int]]:
    """Rows from the top: (kind, pre-train size, labels); the kinds are head, cell, mean and all."""
    rows: list[tuple[str, int, int]] = []
    for size, mine in cells.groupby("pretrain_size"):
        labels = sorted(mine["finetune_size"].unique())
        rows += [("head", size, 0), *(("cell", size, n) for n in labels)]
        rows += [("mean", size, 0)] if len(labels) > 1 else []
    return [*rows, ("all", 0, 0)] if cells.loc[cells["pretrain_size"] > 0, "pretrain_size"].nunique() > 1 else rows


def _forest(
    axes: Axes,
    rows: list[tuple[str, int, int]],
    table: pd.DataFrame,
    points: Mapping[Any, np.ndarray],
    runs: Runs,
    styles: Mapping[int, Mapping[str, Any]],
) -> None:
    """Draw the rows of one task."""
    by_cell = table.set_index(GROUP)
    cells = list(by_cell.index)
    for y, (kind, size, labels) in enumerate(rows):
        colour = "black" if kind == "all" else styles[size]["color"]
        mine = {
            "head": [],
            "cell": [cell for cell in cells if cell[0] == size and cell[2] == labels],
            "mean": [cell for cell in cells if cell[0] == size],
            "all": [cell for cell in cells if cell[0] > 0],
        }[kind]
        if not mine:
            continue
        if kind == "cell":
            row = by_cell.loc[mine[0]]
            raw = points[mine[0]]
            axes.plot(  # below the bar, which would hide them
                raw, np.full(len(raw), y + 0.36), linestyle="", marker=".", markersize=4.2, markeredgewidth=0,
                color=colour, label="_seeds",
            )  # fmt: skip
        else:
            row = means.mean_of_tasks(runs, mine)
        mean, low, high = (100 * row[k] for k in ("mean", "low", "high"))
        bar = None if np.isnan(low) else [[mean - low], [high - mean]]
        style = {"marker": "o", "markersize": 3.2} if kind == "cell" else {"marker": "D", "markersize": 4}
        axes.errorbar([mean], [y], xerr=bar, color=colour, elinewidth=0.9, capsize=1.5, label=f"_{kind}", **style)
    axes.set_yticks(range(len(rows)), [_row_in_words(*row) for row in rows])
    axes.set_ylim(len(rows) - 0.3, -0.7)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    for (kind, *_), tick in zip(rows, axes.get_yticklabels(), strict=True):
        if kind in ("head", "all"):
            tick.set_weight("bold")


def _row_in_words(kind: str, size: int, labels: int) -> str:
    if kind == "head":
        return f"pre-trained, {size:,}" if size else "random start"
    return {"cell": f"{labels:,} labels", "mean": "mean", "all": "all pre-trained"}[kind]


@kit.in_style
def returns(runs: Runs, forms: pd.DataFrame, gains: pd.DataFrame, note: str = "") -> Figure:
    """Diminishing returns of labels: a row of two panels per intermediate task, with 95 % intervals.

    Left: mIoU against labels, with the curve that the fitted forms give together; right: the gain per doubling.

    Args:
        runs: the study's.
        forms: what `fits.fits` returns.
        gains: what `gains.marginal_gains` returns.
        note: printed under the figure.
    """
    table = means.of_cells(runs)
    if table.empty:
        return kit.say("This study has no mIoU to show.", note)
    gains = gains[(gains["along"] == "labels") & (gains["n"] > 0)]
    if gains.empty:
        return kit.say("What labels bring takes a seed with two numbers of labels.", note)
    tasks, styles = kit.tasks_in_order(table["intermediate"]), kit.size_styles(table["pretrain_size"])
    every = table["finetune_size"].unique()
    figure = kit.new_figure(2.1 * len(tasks) + 0.5)
    grid = figure.subplots(len(tasks), 2, sharey="col", squeeze=False)
    for (left, right), task in zip(grid, tasks, strict=True):
        right.axhline(0, color="black", linewidth=0.8, zorder=1, label="_zero")
        for size, stats in table[table["intermediate"] == task].groupby("pretrain_size"):
            shift, style = kit.aside(size, styles, every), styles[size] | {"linestyle": ""}
            labels = stats["finetune_size"].to_numpy(float)
            kit.bars(left, shift * labels, stats, label="_mean", **style)
            x = np.geomspace(labels.min(), labels.max(), 60)
            mine = forms[(forms["intermediate"] == task) & (forms["pretrain_size"] == size)]
            if (y := _curve(mine, x)) is not None:
                left.plot(shift * x, 100 * y, color=style["color"], linewidth=0.9, label="_fit")
            steps = gains[(gains["intermediate"] == task) & (gains["pretrain_size"] == size)]
            if len(steps):
                middle = np.sqrt(steps["smaller"].to_numpy(float) * steps["larger"].to_numpy(float))
                kit.bars(right, shift * middle, steps, label="_gain", **styles[size])
        left.set_ylabel("mIoU (%)")
        right.set_ylabel("Points per doubling")
        left.set_title(textwrap.fill("no task" if task == "none" else f"task: {task}", kit.TITLE))
        right.set_title("gain per doubling")
        kit.fine_ticks(left.yaxis)
        kit.fine_ticks(right.yaxis)
    kit.size_axis(list(grid.flat), every)
    for axes in grid[:-1].flat:  # the last row has it for all
        axes.set_xlabel("")
    kit.size_legend(figure, styles, kit.seeds_in_words(table["n"]))
    kit.add_note(figure, note)
    return figure


def _curve(forms: pd.DataFrame, labels: np.ndarray) -> np.ndarray | None:
    """mIoU at some numbers of labels by all forms of a curve, weighted; None where none is identified."""
    weights = forms["weight"].fillna(0).to_numpy(float)  # the average itself has none
    if not weights.sum() > 0:
        return None
    used = [fit for fit, weight in zip(forms.to_dict("records"), weights, strict=True) if weight > 0]
    return np.average([fitted_miou(fit, labels) for fit in used], axis=0, weights=weights[weights > 0])


@kit.in_style
def transfer(table: pd.DataFrame, runs: Runs, note: str = "") -> Figure:
    """Labels that pre-training is worth against labels used, both logarithmic: a panel per intermediate task.

    Censored values are open arrows: up if mIoU lies beyond the random start's curve, down if it lies below.

    Args:
        table: what `transfer.transfer` returns.
        runs: the study's.
        note: printed under the figure.
    """
    table = table.dropna(subset="labels_worth") if len(table) else table
    start = sorted({key[2] for key in runs.keys if key[:2] == (0, "none")})
    if table.empty or len(start) < 2:
        return kit.say(
            "What pre-training is worth in labels takes a random start at two sizes or more, "
            "and cells with pre-training or an intermediate task.", note
        )  # fmt: skip
    tasks = kit.tasks_in_order(table["intermediate"])
    styles, sizes = kit.size_styles(table["pretrain_size"]), sorted(table["finetune_size"].unique())
    figure, panels = kit.panels(len(tasks), kit.columns_for(len(sizes), len(styles)))
    ends = np.array([start[0], start[-1]], float)
    for axes, task in zip(panels, tasks, strict=True):
        axes.axhspan(*ends, color="#f2f2f2", zorder=0, linewidth=0)
        axes.plot([sizes[0], sizes[-1]], [sizes[0], sizes[-1]], color="black", linewidth=0.8, zorder=1, label="_same")
        for size, mine in table[table["intermediate"] == task].groupby("pretrain_size"):
            _worth_points(axes, mine, kit.aside(size, styles, sizes), styles[size], ends)
        axes.set_title(kit.task_title(task))
    kit.size_axis(panels, sizes)
    for axes in panels:
        low, high = min(ends[0], sizes[0]) / 1.3, max(ends[1], sizes[-1]) * 1.3
        axes.set_yscale("log")
        at = HEIGHT * np.log(start) / np.log(high / low)
        axes.set_yticks(start, kit.lined_up(start, at, [kit.LINE] * len(start)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylim(low, high)
    kit.label_rows(panels, "Worth in labels\nof a random start")
    bars = kit.BARS if table[["low", "high"]].notna().any(axis=None) else "no bars"
    marks = {size: {key: style[key] for key in ("color", "marker")} for size, style in styles.items()}
    kit.size_legend(figure, {size: style | {"ls": ""} for size, style in marks.items()}, bars)
    kit.add_note(figure, note)
    return figure


def _worth_points(axes: Axes, rows: pd.DataFrame, shift: float, style: Mapping[str, Any], ends: np.ndarray) -> None:
    x, y = shift * rows["finetune_size"].to_numpy(float), rows["labels_worth"].to_numpy(float)
    censored = rows["censored"].fillna("").to_numpy(str)
    low, high = (rows[end].to_numpy(float) * rows["finetune_size"].to_numpy(float) for end in ("low", "high"))
    some = ~(np.isnan(low) & np.isnan(high))
    low, high = np.where(np.isnan(low), ends[0], low), np.where(np.isnan(high), ends[1], high)
    axes.vlines(x[some], low[some], high[some], color=style["color"], linewidth=0.9)
    for kind, mark in (("", style["marker"]), ("beyond", "^"), ("below", "v")):
        here = censored == kind
        if here.any():
            axes.plot(
                x[here], y[here], linestyle="", marker=mark, color=style["color"],
                markerfacecolor="white" if kind else style["color"],
                markersize=5 if kind else 4, label=f"_{kind or 'inside'}",
            )  # fmt: skip


@kit.in_style
def cost(table: pd.DataFrame, runs: Runs, note: str = "") -> Figure:
    """mIoU against operations, and against seconds on each device, both logarithmic, with the Pareto front.

    Colour is the pre-train size, open for a random start; the marker is the task; numbers at the front are labels.

    Args:
        table: what `costs.costs` returns; mIoU as a fraction.
        runs: the study's; bars are 95 % intervals.
        note: printed under the figure.
    """
    if table.empty:
        return kit.say("No costs are known of this study's cells.", note)
    table = table.merge(means.of_cells(runs)[[*GROUP, "mean", "low", "high"]], on=GROUP)
    timed = table[table["seconds"] > 0]
    operations, seconds = EngFormatter(), FuncFormatter(lambda value, _: f"{value:,g}")
    plans = [("operations", "front", table[table["operations"] > 0], "Operations (FLOP)", operations)]
    plans += [
        ("seconds", "front_seconds", mine, f"Seconds on {name}", seconds) for name, mine in timed.groupby("device")
    ]
    plans = [plan for plan in plans if len(plan[2])]
    if not plans:
        return kit.say("No cell of this study has a cost above zero.", note)
    styles, tasks = kit.size_styles(table["pretrain_size"]), kit.tasks_in_order(table["intermediate"])
    markers = {task: kit.MARKERS[i % len(kit.MARKERS)] for i, task in enumerate(tasks)}
    figure, panels = kit.panels(len(plans), columns=1, height=2.5)
    for axes, (by, front, rows, label, form) in zip(panels, plans, strict=True):
        best = rows[rows[front].astype(bool)].sort_values(by)
        axes.step(best[by], 100 * best["mean"], where="post", color=kit.GREY, linewidth=0.9, zorder=1, label="_front")
        for (size, task), mine in rows.groupby(["pretrain_size", "intermediate"]):
            colour = styles[size]["color"]
            kit.bars(
                axes, mine[by], mine, color=colour, capsize=0, linestyle="", marker=markers[task], markersize=4,
                markerfacecolor=colour if size else "white", label="_cell",
            )  # fmt: skip
        axes.set_xscale("log")
        axes.margins(x=0.08, y=0.08)
        kit.log_ticks(axes.xaxis, form)
        _label_front(axes, best[by], 100 * best["mean"], best["finetune_size"])
        axes.set_xlabel("\n".join(textwrap.wrap(label, 50)))
        kit.fine_ticks(axes.yaxis)
        axes.set_ylabel("mIoU (%)")
    handles = [
        Line2D([], [], color=style["color"], marker="o", ls="", label=kit.start_title(size),
               markerfacecolor=style["color"] if size else "white")
        for size, style in styles.items()
    ]  # fmt: skip
    if tasks != ["none"]:
        handles += [
            Line2D([], [], color=kit.GREY, marker=mark, ls="", label="no task" if task == "none" else task)
            for task, mark in markers.items()
        ]
    handles.append(Line2D([], [], color=kit.GREY, label="Pareto front"))
    kit.legend(figure, handles, f"{kit.seeds_in_words(table['n'])}; numbers: labels", most=3)
    kit.add_note(figure, note)
    return figure


def _label_front(axes: Axes, x: pd.Series, y: pd.Series, labels: pd.Series) -> None:
    """Numbers beside the points of a front, where there is room."""
    last = -np.inf
    for at, label in zip(zip(x, y, strict=True), labels, strict=True):
        place = axes.transData.transform(at)[0] / axes.get_figure().dpi
        if place - last > 0.3:  # inches
            axes.annotate(f"{label}", at, (-4, 4), textcoords="offset points", ha="right")
            last = place
