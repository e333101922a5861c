"""Figures of effects and returns, mIoU in percent."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from viny.evidence.figures import kit
from viny.evidence.statistics import effects as paired
from viny.evidence.statistics.fits import fits, fitted_miou
from viny.evidence.statistics.gains import marginal_gains
from viny.evidence.statistics.transfer import transfer as data_transferred
from viny.evidence.tables import GROUP

ROW = 0.145  # inches per row of a forest plot
NARROW = 23  # letters that fit above a third of the width
FARTHEST = 4  # a forest plot reaches at most this many times as far as its farthest raw point
MARKERS = "os^DvPX*<>ph"  # more tasks share a panel here than elsewhere
T_BARS = "bars: 95 % t interval over seeds"


@kit.in_style
def effects(frame: pd.DataFrame, note: str = "") -> Figure:
    """Forest plot of what each intermediate task changes: a panel per task, a row per cell.

    Raw differences are points, shown with their mean and its t interval. The mean over cells with its clustered
    interval is a diamond: one below each pre-train size, and one for all sizes at the bottom.

    Args:
        frame: what `tables.read_metrics` returns; mIoU as a fraction.
        note: printed under the figure.
    """
    tasks = [task for task in kit.tasks_in_order(frame) if task != "none"]
    if not tasks:
        return kit.say("This study has no intermediate task, so there is no effect to show.", note)
    cells, means = paired.effects(frame), paired.overall(frame)
    if cells.empty:
        return kit.say("No seed was run both with and without an intermediate task.", note)
    tasks = [task for task in tasks if task in set(cells["intermediate"])]
    colours = kit.colours_of(frame["pretrain_size"])
    rows = _forest_rows(cells)
    columns = min(len(tasks), 3)
    figure, panels = kit.panels(len(tasks), columns=columns, height=ROW * len(rows) + 0.75, sharey=False)
    points = np.array([point for text in cells["points"] for point in _raw(text)])
    low = min(points.min(), cells["low"].min(), means["low"].min(), 0)
    high = max(points.max(), cells["high"].max(), means["high"].max(), 0)
    reach = FARTHEST * np.abs(points).max() or 0.01
    left, right = max(low, -reach), min(high, reach)
    margin = 0.05 * (right - left) or reach
    for axes, task in zip(panels, tasks, strict=True):
        axes.axvline(0, color="black", linewidth=0.8, zorder=1, label="_zero")
        _forest(axes, rows, cells[cells["intermediate"] == task], means[means["intermediate"] == task], colours)
        axes.set_title(textwrap.fill(kit.task_title(task), kit.TITLE if columns < 3 else NARROW))
        axes.set_xlim(100 * (left - margin), 100 * (right + margin))
        axes.set_xlabel("mIoU difference\n(percentage points)")
        if not axes.get_subplotspec().is_first_col():
            axes.tick_params(axis="y", labelleft=False)
    cut = " Intervals that reach beyond a panel are cut." if low < left or high > right else ""
    kit.add_note(
        figure,
        "With the task minus without, paired by seed. Small points: single seeds; circles: their mean, "
        f"{kit.seeds_in_words(cells['n']).lower()} ({_bars(cells['n'], T_BARS)}); diamonds: mean over cells "
        f"({_bars(means['low'].notna() + 1, 'bars: 95 % bootstrap interval, clustered by encoder')}).{cut}",
        note,
    )
    return figure


def _bars(counts: pd.Series, words: str) -> str:
    return words if counts.max() > 1 else "no bars"


def _raw(points: str) -> list[float]:
    return [float(point.split(":")[1]) for point in points.split()]


def _forest_rows(cells: pd.DataFrame) -> list[tuple[str, int, int]]:
    """Rows from the top: (kind, pre-train size, labels); the kinds are head, cell, mean and all."""
    rows: list[tuple[str, int, int]] = []
    for size, mine in cells.groupby("pretrain_size"):
        labels = sorted(mine["finetune_size"].unique())
        rows += [("head", size, 0), *(("cell", size, n) for n in labels), ("mean", size, 0)]
    return [*rows, ("all", 0, 0)]


def _forest(
    axes: Axes,
    rows: list[tuple[str, int, int]],
    cells: pd.DataFrame,
    means: pd.DataFrame,
    colours: dict[int, tuple[float, ...]],
) -> None:
    """Draw the rows of one task."""
    by_cell = cells.set_index(["pretrain_size", "finetune_size"])
    by_size = means[means["over"] == "one size"].set_index("pretrain_size")
    for y, (kind, size, labels) in enumerate(rows):
        there = {"cell": (size, labels) in by_cell.index, "mean": size in by_size.index, "all": True}
        if not there.get(kind):
            continue
        colour = "black" if kind == "all" else colours[size]
        if kind == "cell":
            row = by_cell.loc[(size, labels)]
            raw = 100 * np.array(_raw(row["points"]))
            axes.plot(  # below the bar, which would hide them
                raw, np.full(len(raw), y + 0.33), linestyle="", marker=".", markersize=4.2, markeredgewidth=0,
                color=colour, label="_seeds",
            )  # fmt: skip
        else:
            row = by_size.loc[size] if kind == "mean" else means[means["over"] == "all sizes"].iloc[0]
        mean, low, high = (100 * row[k] for k in ("mean", "low", "high"))
        bar = None if np.isnan(low) else [[mean - low], [high - mean]]
        style = {"marker": "o", "markersize": 3.2} if kind == "cell" else {"marker": "D", "markersize": 4}
        axes.errorbar([mean], [y], xerr=bar, color=colour, elinewidth=0.9, capsize=1.5, label=f"_{kind}", **style)
    axes.set_yticks(range(len(rows)), [_row_in_words(*row) for row in rows], size=6.5)
    axes.set_ylim(len(rows) - 0.3, -0.7)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    for (kind, *_), tick in zip(rows, axes.get_yticklabels(), strict=True):
        if kind in ("head", "all"):
            tick.set_weight("bold")


def _row_in_words(kind: str, size: int, labels: int) -> str:
    if kind == "head":
        return f"pre-trained on {size:,}" if size else "no pre-training"
    return {"cell": f"{labels:,} labels", "mean": "mean of its cells", "all": "mean of all cells"}[kind]


@kit.in_style
def returns(frame: pd.DataFrame, note: str = "") -> Figure:
    """Diminishing returns of labels: a row of two panels per intermediate task, a colour per pre-train size.

    Left: mIoU against labels with its t interval and the best identified fit; right: the gain per doubling.

    Args:
        frame: what `tables.read_metrics` returns; mIoU as a fraction.
        note: printed under the figure.
    """
    frame = frame.dropna(subset="miou")
    if frame.empty:
        return kit.say("This study has no mIoU to show.", note)
    forms, doublings = fits(frame), marginal_gains(frame)
    doublings = doublings[(doublings["along"] == "labels") & (doublings["n"] > 0)]
    colours, tasks = kit.colours_of(frame["pretrain_size"]), kit.tasks_in_order(frame)
    height = min(2.3, kit.MAX_HEIGHT / len(tasks))
    figure = kit.new_figure(height * len(tasks) + 0.5)
    grid = figure.subplots(len(tasks), 2, sharey="col", squeeze=False)
    for (left, right), task in zip(grid, tasks, strict=True):
        style = kit.task_style(task, tasks)
        right.axhline(0, color="black", linewidth=0.8, zorder=1, label="_zero")
        for size, colour in colours.items():
            mine = (frame["intermediate"] == task) & (frame["pretrain_size"] == size)
            if not mine.any():
                continue
            shift = kit.aside(size, colours)
            stats = frame[mine].groupby("finetune_size")["miou"].apply(lambda v: pd.Series(paired.describe(v)))
            stats = stats.unstack().astype({"mean": float, "low": float, "high": float})
            _bars_of(left, shift * stats.index.to_numpy(float), stats, color=colour, marker=style["marker"])
            chosen = forms[
                (forms["intermediate"] == task) & (forms["pretrain_size"] == size) & forms["best"].astype(bool)
            ]
            for fit in chosen.to_dict("records"):
                labels = np.geomspace(stats.index.min(), stats.index.max(), 60)
                y = 100 * fitted_miou(fit, labels)
                left.plot(labels, y, color=colour, linewidth=0.8, label=f"_fit {fit['model']}")
            steps = doublings[(doublings["intermediate"] == task) & (doublings["pretrain_size"] == size)]
            if len(steps):
                middle = np.sqrt(steps["smaller"].to_numpy(float) * steps["larger"].to_numpy(float))
                _bars_of(right, shift * middle, steps, color=colour, linewidth=0.9, **style)
        left.set_ylabel("mIoU (%)")
        right.set_ylabel("gain per doubling\n(percentage points)")
        left.set_title(textwrap.fill(kit.task_title(task), kit.TITLE))
    kit.size_axis(list(grid.flat), frame["finetune_size"])
    for axes in grid[:-1].flat:  # the last row has it for all
        axes.set_xlabel("")
        axes.tick_params(axis="x", labelbottom=False)
    kit.size_legend(figure, colours)
    counts = frame.groupby(GROUP).size()
    fitted = "no form of the curves is identified"
    if forms["best"].any():
        fitted = "lines on the left: the identified fit that predicts the largest size best, where there is one"
    kit.add_note(
        figure,
        f"{kit.seeds_in_words(counts)} ({_bars(counts, T_BARS)}); {fitted}. Gains stand between their two sizes.",
        note,
    )
    return figure


def _bars_of(axes: Axes, x: np.ndarray, stats: pd.DataFrame, **style: object) -> None:
    """Means in percent with the interval low to high; bars only where there is one."""
    mean = 100 * stats["mean"].to_numpy(float)
    low, high = (100 * stats[end].to_numpy(float) for end in ("low", "high"))
    yerr = None if np.isnan(low).all() else np.stack([mean - low, high - mean])
    axes.errorbar(x, mean, yerr=yerr, elinewidth=0.8, **({"linestyle": ""} | style))


@kit.in_style
def transfer(frame: pd.DataFrame, note: str = "") -> Figure:
    """Labels that pre-training is worth against labels used, both logarithmic: a panel per intermediate task.

    Censored values are open arrows: up if mIoU lies beyond the random start's curve, down if it lies below.

    Args:
        frame: what `tables.read_metrics` returns; mIoU as a fraction.
        note: printed under the figure.
    """
    table = data_transferred(frame)
    table = table.dropna(subset="labels_worth") if len(table) else table
    is_random = (frame["pretrain_size"] == 0) & (frame["intermediate"] == "none") & frame["miou"].notna()
    start = frame.loc[is_random, "finetune_size"]
    if table.empty or start.nunique() < 2:
        return kit.say(
            "What pre-training is worth in labels takes a random start at two sizes or more,\n"
            "and cells with pre-training or an intermediate task.", note
        )  # fmt: skip
    tasks, colours = kit.tasks_in_order(table), kit.colours_of(frame["pretrain_size"])
    figure, panels = kit.panels(len(tasks), columns=2)
    ends = np.array([start.min(), start.max()], float)
    sizes = np.sort(table["finetune_size"].unique()).astype(float)
    for axes, task in zip(panels, tasks, strict=True):
        axes.axhspan(*ends, color="#f2f2f2", zorder=0, linewidth=0)
        axes.plot(sizes[[0, -1]], sizes[[0, -1]], color="black", linewidth=0.8, zorder=1, label="_identity")
        for size, mine in table[table["intermediate"] == task].groupby("pretrain_size"):
            _worth_points(axes, mine, kit.aside(size, colours), colours[size], ends)
        axes.set_title(textwrap.fill(kit.task_title(task), kit.TITLE))
    kit.size_axis(panels, table["finetune_size"])
    ticks = np.sort(start.unique())
    for axes in panels:
        axes.set_yscale("log")
        axes.set_yticks(ticks, [f"{t}" for t in ticks])
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylim(min(ends[0], sizes[0]) / 1.25, max(ends[1], sizes[-1]) * 1.25)
    kit.label_rows(panels, "labels worth\n(of a random start)")
    kit.size_legend(figure, {size: c for size, c in colours.items() if size in set(table["pretrain_size"])})
    bars = "bars: 95 % bootstrap interval over seeds, within the curve" if table["low"].notna().any() else "no bars"
    kit.add_note(
        figure,
        f"{kit.seeds_in_words(table['n'])} ({bars}). Line: worth as many as used; above it, pre-training saves labels. "
        "Open arrows: mIoU beyond (up) or below (down) the random start's curve, whose range is grey.",
        note,
    )
    return figure


def _worth_points(axes: Axes, rows: pd.DataFrame, shift: float, colour: tuple[float, ...], ends: np.ndarray) -> None:
    x, y = shift * rows["finetune_size"].to_numpy(float), rows["labels_worth"].to_numpy(float)
    censored = rows["censored"].to_numpy(str)
    low, high = (rows[end].to_numpy(float) * rows["finetune_size"].to_numpy(float) for end in ("low", "high"))
    some = ~(np.isnan(low) & np.isnan(high))
    low, high = np.where(np.isnan(low), ends[0], low), np.where(np.isnan(high), ends[1], high)
    axes.vlines(x[some], low[some], high[some], color=colour, linewidth=0.8)
    for kind, mark, fill in (("", "o", colour), ("beyond", "^", "white"), ("below", "v", "white")):
        here = censored == kind
        if here.any():
            axes.plot(
                x[here], y[here], linestyle="", marker=mark, color=colour, markerfacecolor=fill,
                markersize=5 if kind else 3.5, label=f"_{kind or 'inside'}",
            )  # fmt: skip


@kit.in_style
def cost(table: pd.DataFrame, note: str = "") -> Figure:
    """mIoU against operations, and against seconds on each device, both logarithmic, with the Pareto front.

    Colour is the pre-train size, the marker the task; numbers at the front are labels.

    Args:
        table: what `costs.costs` returns; mIoU as a fraction.
        note: printed under the figure.
    """
    if table.empty:
        return kit.say("No costs are known of this study's cells.", note)
    timed = table[table["seconds"] > 0]
    plans = [("operations", "front", table[table["operations"] > 0], "operations (FLOP)")]
    plans += [("seconds", "front_seconds", mine, f"seconds on {name}") for name, mine in timed.groupby("device")]
    plans = [plan for plan in plans if len(plan[2])]
    if not plans:
        return kit.say("No cell of this study has a cost above zero.", note)
    colours = kit.colours_of(table["pretrain_size"])
    markers = {task: MARKERS[i % len(MARKERS)] for i, task in enumerate(kit.tasks_in_order(table))}
    figure, panels = kit.panels(len(plans), columns=2, height=2.9)
    for axes, (by, front, rows, label) in zip(panels, plans, strict=True):
        best = rows[rows[front].astype(bool)].sort_values(by)
        axes.step(best[by], 100 * best["miou"], where="post", color="grey", linewidth=0.9, zorder=1, label="_front")
        for row in rows.sort_values("miou").to_dict("records"):
            size, task = row["pretrain_size"], row["intermediate"]
            yerr = None if np.isnan(row["sd"]) else 100 * row["sd"]
            axes.errorbar(
                [row[by]], [100 * row["miou"]], yerr=yerr, color=colours[size], elinewidth=0.6, capsize=0,
                marker=markers[task], markersize=3.6, alpha=1 if row[front] else 0.75,
                label="_cell",
            )  # fmt: skip
        axes.set_xscale("log")
        axes.margins(x=0.12, y=0.08)
        _label_front(axes, best[by], 100 * best["miou"], best["finetune_size"])
        axes.set_xlabel(label)
    kit.label_rows(panels, "mIoU (%)")
    _cost_legend(figure, colours, markers)
    bars = _bars(table["n"], "bars: standard deviation over seeds")
    chain = "Each cell with its whole chain of trainings; numbers: labels, where there is room."
    kit.add_note(figure, f"{kit.seeds_in_words(table['n'])} ({bars}). {chain}", note)
    return figure


def _label_front(axes: Axes, x: pd.Series, y: pd.Series, labels: pd.Series) -> None:
    """Numbers beside the points of a front, where there is room."""
    last = -np.inf
    for at, label in zip(zip(x, y, strict=True), labels, strict=True):
        place = axes.transData.transform(at)[0] / axes.get_figure().dpi
        if place - last > 0.22:  # inches
            axes.annotate(f"{label}", at, (-4, 4), textcoords="offset points", size=5.5, ha="right")
            last = place


def _cost_legend(figure: Figure, colours: dict[int, tuple[float, ...]], markers: dict[str, str]) -> None:
    """Pre-train sizes, tasks and the front in one legend."""
    handles = [Line2D([], [], color=c, marker="o", ls="", label=f"{s} pre-training images") for s, c in colours.items()]
    handles += [
        Line2D([], [], color="grey", marker=m, ls="", label=_task_in_short(task)) for task, m in markers.items()
    ]
    handles.append(Line2D([], [], color="grey", label="Pareto front of the means"))
    figure.legend(handles=handles, loc="outside upper center", ncols=3)


def _task_in_short(task: str) -> str:
    return "no intermediate task" if task == "none" else f"task {task}"
