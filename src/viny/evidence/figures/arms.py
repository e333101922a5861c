"""Figures that compare arms: where encoders start, and the variants that train them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from viny.evidence.figures import kit
from viny.evidence.statistics.arms import Arms
from viny.evidence.statistics.held_out import LOSS
from viny.evidence.tables import ARM
from viny.study.grid import RANDOM, Arm

APART = 0.15  # of the farthest points from their tick, as a share of it or as its logarithm
NEXT = 0.03  # half of the way between two points, if that brings them no farther

BARE = {"color": kit.GREY, "linestyle": "-", "linewidth": 0.8, "zorder": 1}


@kit.in_style
def arms_figure(table: pd.DataFrame, arms: Arms, note: str = "") -> Figure:
    """mIoU against labels, a line per arm, a panel per number of pre-training images and task; 95 % intervals.

    Colour is the start, line and marker are the variant, the base's solid with filled dots. In panels with SimMIM, a
    grey line is the base without it.

    Args:
        table: what `arms.arms_table` returns.
        arms: the study's.
        note: printed under the figure.
    """
    table = table.rename(columns={"miou": "mean"}).dropna(subset="mean")
    if table.empty:
        return kit.say("This study has no mIoU to show.", note)
    labels = table["finetune_size"].unique()
    colours, marks = _colours(arms), _marks(arms)
    titles = dict.fromkeys(table[["intermediate", "pretrain_size"]].itertuples(index=False, name=None))
    titles = sorted(titles, key=lambda one: (one[0] != "none", *one))
    figure, panels = kit.panels(len(titles), kit.columns_for(len(labels), len(arms.order)), height=2.3)
    compared = False
    for axes, (task, size) in zip(panels, titles, strict=True):
        here = table[(table["intermediate"] == task) & (table["pretrain_size"] == size)]
        lines = {arm: here[(here["start"] == arm[0]) & (here["variant"] == arm[1])] for arm in arms.order}
        lines = {arm: line for arm, line in lines.items() if len(line)}
        if size and len(bare := _without_simmim(table, arms, task)) > 1:
            axes.plot(bare["finetune_size"], 100 * bare["mean"], label="_bare", **BARE)
            compared = True
        for ((start, variant), line), shift in zip(lines.items(), _apart(len(lines)), strict=True):
            style = {"color": colours[start], **marks[variant]}
            style |= {} if variant == arms.base[1] else {"markerfacecolor": "white"}
            kit.bars(axes, np.exp(shift) * line["finetune_size"], line, label=f"{start} {variant}", **style)
        images = f"SimMIM on {size:,} images" if size else "Without SimMIM"
        axes.set_title(f"{images}{'' if task == 'none' else f', task {task}'}")
        kit.fine_ticks(axes.yaxis)
    kit.size_axis(panels, labels)
    kit.label_rows(panels, "mIoU (%)")
    handles = [Line2D([], [], color=colour, label=arms.start(start)) for start, colour in colours.items()]
    if len(marks) > 1:
        for variant, mark in marks.items():
            face = {} if variant == arms.base[1] else {"markerfacecolor": "white"}
            handles.append(
                Line2D([], [], color=kit.GREY, label=arms.variant(variant) or "as the study has it", **mark, **face)
            )
    if compared:
        handles.append(Line2D([], [], label=f"without SimMIM: {arms.start(arms.base[0])}", **BARE))
    kit.legend(figure, handles, kit.seeds_in_words(table["n"]), most=3)
    kit.add_note(figure, note)
    return figure


def _without_simmim(table: pd.DataFrame, arms: Arms, task: str) -> pd.DataFrame:
    """The base arm's rows of a task without SimMIM."""
    base = (table["start"] == arms.base[0]) & (table["variant"] == arms.base[1])
    return table[base & (table["intermediate"] == task) & (table["pretrain_size"] == 0)].sort_values("finetune_size")


def _apart(count: int) -> np.ndarray:
    """Places beside a tick that keep points from hiding each other, at most `APART` from it."""
    reach = min(APART, NEXT * (count - 1))
    return np.linspace(-reach, reach, count)


def _colours(arms: Arms) -> dict[str, str]:
    """Of each start, black if it is drawn at random."""
    starts = list(dict.fromkeys(start for start, _ in arms.order))
    others = [start for start in starts if start != RANDOM]
    colours = {start: kit.LINE_COLOURS[i % len(kit.LINE_COLOURS)] for i, start in enumerate(others)}
    return {start: colours.get(start, kit.RANDOM_START) for start in starts}


def _marks(arms: Arms) -> dict[str, dict[str, str]]:
    """Line and marker of each variant, the base's first."""
    variants = dict.fromkeys([arms.base[1], *(variant for _, variant in arms.order)])
    return {
        variant: {"marker": kit.MARKERS[i % len(kit.MARKERS)], "linestyle": kit.LINES[i % len(kit.LINES)]}
        for i, variant in enumerate(variants)
    }


@kit.in_style
def held_out(
    curves: Mapping[tuple[str, str], Mapping[tuple[int, int], pd.DataFrame]],
    gains: pd.DataFrame,
    arms: Arms,
    note: str = "",
) -> Figure:
    """Left, the loss of pre-training against epochs; right, the last held-out loss against the gain in mIoU.

    Thick lines are the held-out loss, its mean over seeds, in a band from the least to the most; thin ones are the
    training loss. Colour is the number of pre-training images, the line is the arm, the marker the labels.

    Args:
        curves: learning curves by arm, then by pretrain_size and seed.
        gains: the second table of `arms.held_out_tables`.
        arms: the study's.
        note: printed under the figure.
    """
    every = [size for mine in curves.values() for size, _ in mine]
    if not every:
        return kit.say("No pre-training of this study measured the loss on held-out images.", note)
    styles = kit.size_styles(every)
    lines = {arm: kit.LINES[i % len(kit.LINES)] for i, arm in enumerate(curves)}
    figure, (left, right) = kit.panels(2, 2, height=2.5, sharey=False)
    for arm, mine in curves.items():
        for size in sorted({size for size, _ in mine}):
            seeds = [curve.set_index("epoch") for (one, _), curve in mine.items() if one == size]
            _course(left, seeds, color=styles[size]["color"], linestyle=lines[arm])
    left.set(xlabel="Epoch", ylabel="Loss (thin: training)", title="Pre-training")
    left.xaxis.get_major_locator().set_params(integer=True)
    labels = sorted(gains["finetune_size"].unique())
    markers = {n: kit.MARKERS[i % len(kit.MARKERS)] for i, n in enumerate(labels)}
    right.axhline(0, color="black", linewidth=0.8, zorder=1, label="_zero")
    reach = np.ptp(gains["last"]) if len(gains) else 0.0
    for n, aside in zip(labels, _apart(len(labels)), strict=True):
        with_n = gains[gains["finetune_size"] == n]
        for (start, variant), mine in with_n.groupby([*ARM], sort=False):
            x = mine["last"] + aside * reach / 3
            line = lines.get((start, variant), "-")
            right.plot(x, 100 * mine["mean"], color=kit.GREY, linestyle=line, linewidth=0.7, label="_arm")
            for at, (_, one) in zip(x, mine.iterrows(), strict=True):
                style = {"color": styles[one["pretrain_size"]]["color"], "marker": markers[n], "linestyle": ""}
                kit.bars(right, [at], one.to_frame().T.infer_objects(), label="_gain", **style)
    right.set(xlabel="Last held-out loss", ylabel="Gain in mIoU (points)", title="What it brings")
    right.locator_params(axis="x", nbins=5)
    kit.fine_ticks(left.yaxis)
    kit.fine_ticks(right.yaxis)
    handles = [Line2D([], [], color=style["color"], label=f"{size:,} images") for size, style in styles.items()]
    grey = {"color": kit.GREY}
    if len(curves) > 1:
        handles += [Line2D([], [], ls=line, label=Arm(*arm).name, **grey) for arm, line in lines.items()]
    handles += [Line2D([], [], ls="", marker=mark, label=f"{n:,} labels", **grey) for n, mark in markers.items()]
    counts = pd.Series([sum(1 for one, _ in mine if one == size) for mine in curves.values() for size, _ in mine])
    kit.legend(figure, handles, f"{kit.seeds_in_words(counts)}; band: all seeds" if counts.max() > 1 else "", most=3)
    kit.add_note(figure, note)
    return figure


def _course(axes: Axes, seeds: list[pd.DataFrame], **style: Any) -> None:
    """Held-out and training loss of one pre-training's seeds."""
    known = pd.concat([curve[LOSS].dropna() for curve in seeds], axis=1, join="inner")
    if known.shape[1] > 1:
        band = {"color": style["color"], "alpha": 0.15, "linewidth": 0}
        axes.fill_between(known.index, known.min(axis=1), known.max(axis=1), **band)
    one = len(known) == 1  # which makes no line
    axes.plot(known.index, known.mean(axis=1), marker="o" if one else "", label="_held out", **style)
    trained = pd.concat([curve["loss"] for curve in seeds], axis=1, join="inner").mean(axis=1)
    axes.plot(trained.index, trained, linewidth=0.6, alpha=0.6, label="_training", **style)
