"""Figures of the geometry of patch tokens; see `viny.evidence.figures.study` for how figures are made.

Shares are percent; similarities, variances and ranks are plain numbers.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from viny.evidence.figures import kit
from viny.evidence.statistics.crossed import Runs
from viny.evidence.statistics.representations import KEYS, METRICS, SHARES, harm_correlation, regimes
from viny.runtime.errors import InputError
from viny.runtime.files import load_arrays
from viny.study.grid import KINDS

MAX_REGIMES = 8  # lines or rows that can be told apart: two starts and the six built-in tasks on real images
MAX_EXAMPLES = 2  # images of heat maps that fit beside each other
BESIDE = 1.15  # inches beside heat maps, for the regime of a row
SIGNED = "PuOr_r"  # a diverging scale, centred at 0: orange alike, purple opposed, told apart with any colour vision
ALIKE, OPPOSED = "#FDF1E4", "#EFEDF5"  # its ends, faint
AT_REFERENCE = "#008000"  # the frame around a reference patch

# Those of `METRICS` that are drawn layer by layer
SHOWN = (
    "within_image_variance",
    "across_image_variance",
    "within_share",
    "local_minus_distant_centred",
    "morans_i",
    "effective_rank",
    "linear_cka",
    "probe_accuracy",
)

_SHORT = ("back-\nground", "inside", "edge")  # `REFERENCES`, above a narrow column

Arrays = Mapping[str, Any]


def read_arrays(paths: Iterable[str | Path]) -> list[dict[str, Any]]:
    """Read the arrays that `geometry.measure` wrote for several encoders.

    Args:
        paths: npz files, in any order.

    Returns:
        One mapping per encoder: its `representations.KEYS` and name, and the arrays; in the order of `grid.KINDS`,
        sizes, task, seed.

    Raises:
        InputError: a file with something else in it.
    """
    found = []
    for path in paths:
        try:
            arrays = load_arrays(path, "arrays")
            found.append({**arrays, **json.loads(str(arrays["encoder"]))})
            order = (KINDS.index(found[-1]["kind"]), *(found[-1][key] for key in KEYS[1:]))
        except Exception as error:  # zip, header and key errors each have a type of their own
            raise InputError(
                f"{path}: not readable arrays of an encoder's geometry ({error}); delete it and measure again"
            ) from error
        found[-1]["order"] = order
    return sorted(found, key=lambda arrays: arrays["order"])


@kit.in_style
def layers(frame: pd.DataFrame, note: str = "") -> Figure:
    """Metrics against layer: a panel per metric, a line per regime (mean over seeds), thin lines for single seeds.

    Args:
        frame: what `representations.read_geometry` returns.
        note: printed under the figure.
    """
    frame = frame.assign(regime=regimes(frame))
    chosen, left_out = _chosen(frame)
    styles = _styles(chosen)
    figure, panels = kit.panels(len(SHOWN), columns=2, height=1.7, sharey=False)
    for axes, metric in zip(panels, SHOWN, strict=True):
        scale = 100 if metric in SHARES else 1
        for regime in chosen:
            mine = frame[frame["regime"] == regime].assign(value=scale * frame[metric])
            if mine["seed"].nunique() > 1:
                for _, run in mine.groupby("seed"):
                    axes.plot(run["layer"], run["value"], linewidth=0.3, label="_seed", color=styles[regime]["color"])
            mean = mine.groupby("layer")["value"].mean()
            axes.plot(mean.index, mean, label=regime, **styles[regime])
        if metric == "probe_accuracy":
            for majority in frame["probe_majority"].dropna().unique():
                axes.axhline(100 * majority, color=kit.GREY, linewidth=0.8, linestyle=":", zorder=1, label="_majority")
        axes.set_title(textwrap.fill(METRICS[metric], kit.TITLE))
        axes.yaxis.set_major_locator(_ticks())
        _layer_axis(axes, frame)
    _regime_legend(figure, chosen, styles, frame)
    kit.add_note(figure, left_out, note)
    return figure


@kit.in_style
def similarity(arrays: Sequence[Arrays], note: str = "") -> Figure:
    """Cosine similarity of output tokens against Manhattan distance: raw, and minus the mean token.

    A line per regime (mean over seeds), thin lines for single seeds.

    Args:
        arrays: what `read_arrays` returns.
        note: printed under the figure.
    """
    if not arrays:
        return kit.say("No encoder's geometry was measured.", note)
    frame = _frame(arrays)
    chosen, left_out = _chosen(frame)
    styles = _styles(chosen)
    figure, panels = kit.panels(2, columns=2, height=2.6)
    titles = {"similarity": "Patch tokens", "similarity_centred": "Patch tokens\nminus their mean"}
    for axes, (key, title) in zip(panels, titles.items(), strict=True):
        axes.axhspan(0, 2, color=ALIKE, zorder=0, linewidth=0)
        axes.axhspan(-2, 0, color=OPPOSED, zorder=0, linewidth=0)
        axes.axhline(0, color="black", linewidth=0.8, zorder=1, label="_zero")
        for regime in chosen:
            mine = [arrays[i] for i in frame.index[frame["regime"] == regime]]
            values = np.array([each[key][-1] for each in mine])  # [seeds, distances]
            distance = mine[0]["distance"]
            if len(values) > 1:
                axes.plot(distance, values.T, linewidth=0.3, color=styles[regime]["color"], label="_seed")
            axes.plot(distance, values.mean(axis=0), label=regime, markevery=2, **styles[regime])
        axes.set(title=title, xlabel="Manhattan distance (patches)", ylim=(-1, 1))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.yaxis.set_major_locator(_ticks())
    kit.label_rows(panels, "Cosine similarity")
    _regime_legend(figure, chosen, styles, frame)
    kit.add_note(figure, left_out, note)
    return figure


@kit.in_style
def heat_maps(arrays: Sequence[Arrays], note: str = "", centred: bool = False, examples: int = MAX_EXAMPLES) -> Figure:
    """Cosine similarity of every patch to a reference patch: a row per regime, a column per image and reference.

    The colours diverge from 0, so that they tell the sign.

    Args:
        arrays: what `read_arrays` returns; the first seed of each regime is shown.
        note: printed under the figure.
        centred: use tokens minus their mean over all held-out images instead of the tokens as they are.
        examples: images to show at most, each with those `REFERENCES` that any of them has.

    Raises:
        InputError: encoders that were measured on different images.
    """
    if not arrays:
        return kit.say("No encoder's geometry was measured.", note)
    frame = _frame(arrays).drop_duplicates("regime")
    chosen, left_out = _chosen(frame)
    shown = {regime: arrays[frame.index[frame["regime"] == regime][0]] for regime in chosen}
    first = shown[chosen[0]]
    for each in shown.values():
        if not np.array_equal(each["example_rows"], first["example_rows"]):
            raise InputError(
                f"heat maps of {first['name']} and {each['name']} show different images; measure encoders on one split"
            )
    images = first["example_images"][:examples]
    if not len(images):
        return kit.say("No example image was asked for.", note)
    maps = {regime: each["heat_maps_centred" if centred else "heat_maps"] for regime, each in shown.items()}
    side = int(np.sqrt(first["heat_maps"].shape[2]))
    kinds = np.flatnonzero((first["references"][: len(images)] >= 0).any(axis=0))
    if not len(kinds):
        return kit.say("No example image has a patch of one class, or an edge between two.", note)
    columns = [(image, kind) for image in range(len(images)) for kind in kinds]
    figure, panels = kit.image_grid(1 + len(chosen), len(columns), BESIDE, above=1.0)
    drawn = None
    for axes, (image, kind) in zip(panels.T, columns, strict=True):
        place = int(first["references"][image, kind])
        axes[0].imshow(images[image].transpose(1, 2, 0))
        axes[0].set_title(_SHORT[kind])
        if place >= 0:
            axes[0].add_patch(_frame_at(place, side, images.shape[-1] // side))
        for each, regime in zip(axes[1:], chosen, strict=True):
            values = maps[regime][image, kind].reshape(side, side)
            if np.isfinite(values).any():
                drawn = each.imshow(values, cmap=SIGNED, vmin=-1, vmax=1)
                each.add_patch(_frame_at(place, side, 1))
            else:
                each.set_box_aspect(1)
                each.text(0.5, 0.5, "no\nsuch\npatch", ha="center", va="center", transform=each.transAxes)
    for axes, title in zip(panels[:, 0], ["Image", *chosen], strict=True):
        axes.set_ylabel(_narrow(title), rotation=0, ha="right", va="center", multialignment="right")
    if drawn is not None:
        bar = figure.colorbar(drawn, ax=panels.ravel().tolist(), location="bottom", shrink=0.8, aspect=35, pad=0.02)
        bar.set_ticks([-1, -0.5, 0, 0.5, 1])
        bar.set_label(f"Cosine similarity{' of tokens minus their mean' if centred else ''}, seed {first['seed']}")
        bar.outline.set_visible(False)
    kit.add_note(figure, left_out, note)
    return figure


@kit.in_style
def harm(pairs: pd.DataFrame, note: str = "", runs: Runs | None = None) -> Figure:
    """What a task changes in each metric against what it changes in mIoU, in percentage points: a panel per metric.

    A point per cell (mean over seeds), colour for its pre-train size, marker for its task; the rank correlation above.

    Args:
        pairs: what `representations.harm` returns.
        note: printed under the figure.
        runs: see `representations.harm_correlation`.
    """
    if pairs.empty:
        return kit.say("No cell was run both with and without a task whose encoders were measured.", note)
    correlation = harm_correlation(pairs, runs).set_index("metric")
    group = ["intermediate", "pretrain_size", "finetune_size"]
    cells = pairs.groupby(group)[["difference", *METRICS]].mean().reset_index()
    tasks, styles = kit.tasks_in_order(cells["intermediate"]), kit.size_styles(cells["pretrain_size"])
    markers = {task: kit.MARKERS[i % len(kit.MARKERS)] for i, task in enumerate(tasks)}
    figure, panels = kit.panels(len(METRICS), columns=2, height=2.0)
    for axes, (metric, heading) in zip(panels, METRICS.items(), strict=True):
        scale = 100 if metric in SHARES else 1
        axes.axhline(0, color="black", linewidth=0.8, zorder=1)
        axes.axvline(0, color="black", linewidth=0.8, zorder=1)
        for (task, size), mine in cells.groupby(["intermediate", "pretrain_size"]):
            colour = styles[size]["color"]
            axes.plot(
                scale * mine[metric], 100 * mine["difference"], linestyle="", marker=markers[task], markersize=4,
                color=colour, markerfacecolor=colour if size else "white", markeredgewidth=0.8, label="_cell",
            )  # fmt: skip
        heading = textwrap.fill(heading.removesuffix(" (%)"), kit.TITLE)
        axes.set_title(f"{heading}\n{_correlation(correlation.loc[metric])}", size=8)
        axes.set_xlabel("Change (percentage points)" if metric in SHARES else "Change")
        axes.margins(0.08)
        axes.xaxis.set_major_locator(_ticks())
        axes.yaxis.set_major_locator(_ticks())
    kit.label_rows(panels, "mIoU difference\n(points)")
    handles = [
        Line2D([], [], color=style["color"], marker="o", linestyle="", label=kit.start_title(s),
               markerfacecolor=style["color"] if s else "white")
        for s, style in styles.items()
    ]  # fmt: skip
    handles += [Line2D([], [], color=kit.GREY, marker=markers[t], linestyle="", label=t) for t in tasks]
    counts = pairs.groupby(group).size()
    least, most = counts.min(), counts.max()
    seeds = "one seed" if most == 1 else f"mean over {least if least == most else f'{least} to {most}'} seeds"
    kit.legend(
        figure, handles, f"A mark: a cell, {seeds}\nρ: rank correlation with its 95 % interval, Holm's p", most=3
    )
    kit.add_note(figure, note)
    return figure


def _correlation(row: pd.Series) -> str:
    """A rank correlation in a title, or why there is none."""
    if pd.isna(row["rho"]):
        return textwrap.fill(row["verdict"], kit.TITLE + 6)
    interval = "no interval" if pd.isna(row["low"]) else f"{kit.number(row['low'])} to {kit.number(row['high'])}"
    p = "p < 0.001" if row["p_holm"] < 0.001 else f"p = {row['p_holm']:.2g}"
    return f"ρ = {kit.number(row['rho'])} ({interval})\nHolm's {p}"


def _frame(arrays: Sequence[Arrays]) -> pd.DataFrame:
    """The keys of each encoder, one per row, and its regime."""
    frame = pd.DataFrame([{key: each[key] for key in KEYS} for each in arrays])
    return frame.assign(regime=regimes(frame))


def _chosen(frame: pd.DataFrame) -> tuple[list[str], str]:
    """The regimes that a figure shows, and a sentence about those that it leaves out.

    If there are too many: the random start, and the encoders of the largest pre-train size before fine-tuning.
    """
    table = frame.drop_duplicates("regime")
    every = len(table)
    if every > MAX_REGIMES:
        largest = table["pretrain_size"] == table["pretrain_size"].max()
        table = table[(table["kind"] == "random") | (largest & (table["kind"] != "finetuned"))]
    chosen = table["regime"].tolist()[:MAX_REGIMES]
    return chosen, f"{len(chosen)} of {every} regimes are shown." if len(chosen) < every else ""


def _styles(chosen: list[str]) -> dict[str, dict[str, Any]]:
    """Colour, line and marker of each regime: the random start is black."""
    others = [regime for regime in chosen if regime != "random start"]
    styles = {
        regime: {
            "color": kit.LINE_COLOURS[i % len(kit.LINE_COLOURS)],
            "linestyle": kit.LINES[i % len(kit.LINES)],
            "marker": kit.MARKERS[(i + 1) % len(kit.MARKERS)],
        }
        for i, regime in enumerate(others)
    }
    return styles | {"random start": {"color": kit.RANDOM_START, "linestyle": "-", "marker": "o"}}


def _regime_legend(
    figure: Figure, chosen: list[str], styles: Mapping[str, Mapping[str, Any]], frame: pd.DataFrame
) -> None:
    handles = [Line2D([], [], label=regime, **styles[regime]) for regime in chosen]
    several = frame.groupby("regime")["seed"].nunique().max() > 1
    kit.legend(figure, handles, "thick: mean over seeds; thin: single seeds" if several else "one seed", most=2)


def _ticks() -> MaxNLocator:
    """Ticks whose number does not depend on the panel's size in the layout, so that their labels fit."""
    return MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10])


def _layer_axis(axes: Axes, frame: pd.DataFrame) -> None:
    """Ticks at layers, the first and last by name."""
    last = int(frame["layer"].max())
    step = 1 if last <= 6 else 2
    ticks = [0, *range(step, last, step), last]
    if last - ticks[-2] < step:  # it would be too close
        ticks.pop(-2)
    axes.set_xticks(ticks, ["in", *map(str, ticks[1:-1]), "out"])
    axes.set_xlabel("Layer")


def _narrow(title: str) -> str:
    """A title wrapped to the room beside the maps, between words and after underscores."""
    return textwrap.fill(title.replace("_", "_ "), 16).replace("_ ", "_")


def _frame_at(place: int, side: int, pixels: int, shift: float = 0.5) -> Rectangle:
    """A frame around a patch of a picture whose patches are `pixels` wide."""
    row, column = divmod(place, side)
    corner = (column * pixels - shift, row * pixels - shift)
    return Rectangle(corner, pixels, pixels, fill=False, edgecolor=AT_REFERENCE, linewidth=1.0)
