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
from viny.evidence.token_metrics import REFERENCES
from viny.runtime.errors import InputError
from viny.runtime.files import load_arrays
from viny.study.grid import KINDS

MAX_REGIMES = 8  # lines or columns that can be told apart: two starts and the six built-in tasks on real images
RANDOM_COLOUR = "#000000"
REGIME_COLOURS = (*kit.CLASS_COLOURS[:6], "#6A3D9A")  # yellow is too faint for lines on white
STYLES = ("-", "--", "-.", ":")
MAX_EXAMPLES = 2  # images of heat maps that fit on a page
MARKERS = "os^DvPX*<>"  # of tasks
AT_REFERENCE = "#D55E00"  # the frame around a reference patch

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
    figure, panels = kit.panels(len(SHOWN), columns=2, height=1.75, sharey=False)
    for axes, metric in zip(panels, SHOWN, strict=True):
        scale = 100 if metric in SHARES else 1
        for regime in chosen:
            mine = frame[frame["regime"] == regime].assign(value=scale * frame[metric])
            if mine["seed"].nunique() > 1:
                for _, run in mine.groupby("seed"):
                    axes.plot(
                        run["layer"], run["value"], linewidth=0.4, alpha=0.6, label="_seed",
                        color=styles[regime]["color"],
                    )  # fmt: skip
            mean = mine.groupby("layer")["value"].mean()
            axes.plot(mean.index, mean, label=regime, **styles[regime])
        if metric == "probe_accuracy":
            for majority in frame["probe_majority"].dropna().unique():
                axes.axhline(100 * majority, color="grey", linewidth=0.8, linestyle=":", zorder=1, label="_majority")
        axes.set_title(METRICS[metric])
        axes.yaxis.set_major_locator(_ticks())
        _layer_axis(axes, frame)
    _regime_legend(figure, chosen, styles)
    seeds = frame.groupby("regime")["seed"].nunique()
    lines = "one seed" if seeds.max() == 1 else "thick: mean over seeds; thin: single seeds"
    kit.add_note(
        figure,
        f"Patch tokens of held-out images; 'in': embedding with positions, 'out': after the final LayerNorm ({lines}). "
        f"Dotted: share of the majority class. {left_out}".strip(),
        note,
    )
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
    figure, panels = kit.panels(2, columns=2)
    titles = {"similarity": "Patch tokens", "similarity_centred": "Patch tokens minus their mean"}
    for axes, (key, title) in zip(panels, titles.items(), strict=True):
        axes.axhline(0, color="black", linewidth=0.8, zorder=1, label="_zero")
        for regime in chosen:
            mine = [arrays[i] for i in frame.index[frame["regime"] == regime]]
            values = np.array([each[key][-1] for each in mine])  # [seeds, distances]
            distance = mine[0]["distance"]
            if len(values) > 1:
                axes.plot(distance, values.T, linewidth=0.4, alpha=0.6, color=styles[regime]["color"], label="_seed")
            axes.plot(distance, values.mean(axis=0), marker="o", label=regime, **styles[regime])
        axes.set(title=title, xlabel="Manhattan distance (patches)")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.yaxis.set_major_locator(_ticks())
    kit.label_rows(panels, "Cosine similarity")
    _regime_legend(figure, chosen, styles)
    seeds = frame.groupby("regime")["seed"].nunique()
    lines = "one seed" if seeds.max() == 1 else "thick: mean over seeds; thin: single seeds"
    kit.add_note(
        figure, f"Pairs of patches of the same held-out image, output tokens ({lines}). {left_out}".strip(), note
    )
    return figure


@kit.in_style
def heat_maps(arrays: Sequence[Arrays], note: str = "", centred: bool = False, examples: int = MAX_EXAMPLES) -> Figure:
    """Cosine similarity of every patch to a reference patch: a row per image and reference, a column per regime.

    Args:
        arrays: what `read_arrays` returns; the first seed of each regime is shown.
        note: printed under the figure.
        centred: use tokens minus their mean over all held-out images instead of the tokens as they are.
        examples: images to show at most, each with a background, an interior and a boundary reference.

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
    every = np.concatenate([m[: len(images)].ravel() for m in maps.values()])
    least = min(0.0, float(np.nanmin(every))) if np.isfinite(every).any() else 0.0
    side = int(np.sqrt(first["heat_maps"].shape[2]))
    pixels = images.shape[-1] // side
    columns = 1 + len(chosen)
    size = min((kit.WIDTH - 0.9) / columns, (kit.MAX_HEIGHT - 1.2) / (3 * len(images)), 1.3)
    figure = kit.new_figure(size * 3 * len(images) + 0.8, layout="compressed")
    panels = figure.subplots(3 * len(images), columns, squeeze=False)
    drawn = None
    for row, axes_row in enumerate(panels):
        image, kind = divmod(row, len(REFERENCES))
        place = int(first["references"][image, kind])
        axes_row[0].imshow(images[image].transpose(1, 2, 0))
        axes_row[0].set_ylabel(REFERENCES[kind])
        if place >= 0:
            axes_row[0].add_patch(_frame_at(place, side, pixels))
        for axes, regime in zip(axes_row[1:], chosen, strict=True):
            values = maps[regime][image, kind].reshape(side, side)
            if np.isfinite(values).any():
                drawn = axes.imshow(values, cmap="viridis", vmin=least, vmax=1)
                axes.add_patch(_frame_at(place, side, 1, shift=0.5))
            else:
                axes.set_box_aspect(1)
                axes.text(0.5, 0.5, "no such\npatch", ha="center", va="center", transform=axes.transAxes, size=7)
    for axes in panels.flat:
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
        axes.spines[:].set_visible(False)
    for axes, title in zip(panels[0], ["Image", *chosen], strict=True):
        axes.set_title(_narrow(title, size), size=6.5)
    if drawn is not None:
        bar = figure.colorbar(drawn, ax=panels.ravel().tolist(), shrink=0.6, aspect=30, pad=0.02)
        bar.set_label("Cosine similarity" + (" of tokens minus their mean" if centred else ""))
        bar.outline.set_visible(False)
    kit.add_note(
        figure,
        f"Similarity of every patch to the one that is framed, output tokens, seed {first['seed']}. {left_out}".strip(),
        note,
    )
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
    tasks, colours = kit.tasks_in_order(cells), kit.colours_of(cells["pretrain_size"])
    markers = {task: MARKERS[i % len(MARKERS)] for i, task in enumerate(tasks)}
    figure, panels = kit.panels(len(METRICS), columns=2, height=1.6)
    for axes, (metric, heading) in zip(panels, METRICS.items(), strict=True):
        scale = 100 if metric in SHARES else 1
        axes.axhline(0, color="black", linewidth=0.8, zorder=1)
        axes.axvline(0, color="black", linewidth=0.8, zorder=1)
        for (task, size), mine in cells.groupby(["intermediate", "pretrain_size"]):
            axes.plot(
                scale * mine[metric], 100 * mine["difference"], linestyle="", marker=markers[task], markersize=3.5,
                color=colours[size], alpha=0.8, markeredgewidth=0,
            )  # fmt: skip
        axes.set_title(f"{heading.removesuffix(' (%)')}\n{_correlation(correlation.loc[metric])}", size=8)
        axes.set_xlabel("Change (percentage points)" if metric in SHARES else "Change")
        axes.margins(0.08)
        axes.xaxis.set_major_locator(_ticks())
        axes.yaxis.set_major_locator(_ticks())
    kit.label_rows(panels, "mIoU difference\n(percentage points)")
    handles = [
        Line2D([], [], color=c, marker="o", linestyle="", label=f"pre-train size {s}") for s, c in colours.items()
    ]
    handles += [Line2D([], [], color="grey", marker=markers[t], linestyle="", label=t) for t in tasks]
    _legend(figure, handles)
    counts = pairs.groupby(group).size()
    seeds = f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
    kit.add_note(
        figure,
        f"A point is a cell of task, pre-train size and labels: with the task minus without, mean over {seeds} "
        f"seed{'' if seeds == '1' else 's'}. Above: Spearman's rank correlation and its 95 % interval; p from "
        "permutations of tasks and sizes, without a correction for the number of panels.",
        note,
    )
    return figure


def _correlation(row: pd.Series) -> str:
    """A rank correlation in a title, or why there is none."""
    if pd.isna(row["rho"]):
        return textwrap.shorten(row["verdict"], 60)
    interval = "no interval" if pd.isna(row["low"]) else f"{row['low']:.2f} to {row['high']:.2f}"
    return f"ρ = {row['rho']:.2f} ({interval}), p = {row['p']:.2g}".replace("-", "\N{MINUS SIGN}")


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
    """Colour and line of each regime: the random start is black."""
    others = [regime for regime in chosen if regime != "random start"]
    styles = {
        regime: {"color": REGIME_COLOURS[i % len(REGIME_COLOURS)], "linestyle": STYLES[i % len(STYLES)]}
        for i, regime in enumerate(others)
    }
    return styles | {"random start": {"color": RANDOM_COLOUR, "linestyle": "-"}}


def _regime_legend(figure: Figure, chosen: list[str], styles: Mapping[str, Mapping[str, Any]]) -> None:
    handles = [Line2D([], [], label=regime, **styles[regime]) for regime in chosen]
    _legend(figure, handles)


def _ticks() -> MaxNLocator:
    """Ticks whose number does not depend on the panel's size in the layout, so that their labels fit."""
    return MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10])


def _legend(figure: Figure, handles: list[Line2D]) -> None:
    """A legend above all panels, with as many columns as fit the width."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    figure.legend(handles=handles, loc="outside upper center", ncols=max(1, min(len(handles), 110 // (longest + 8))))


def _layer_axis(axes: Axes, frame: pd.DataFrame) -> None:
    """Ticks at layers, the first and last by name."""
    last = int(frame["layer"].max())
    step = 1 if last <= 6 else 2
    ticks = [0, *range(step, last, step), last]
    if last - ticks[-2] < step:  # it would be too close
        ticks.pop(-2)
    axes.set_xticks(ticks, ["in", *map(str, ticks[1:-1]), "out"])
    axes.set_xlabel("Layer")


def _narrow(title: str, width: float) -> str:
    """A title wrapped to a width in inches, between words and after underscores."""
    letters = int(width * 17)  # at 6.5 points
    return textwrap.fill(title.replace("_", "_ "), letters).replace("_ ", "_")


def _frame_at(place: int, side: int, pixels: int, shift: float = 0.5) -> Rectangle:
    """A frame around a patch of a picture whose patches are `pixels` wide."""
    row, column = divmod(place, side)
    corner = (column * pixels - shift, row * pixels - shift)
    return Rectangle(corner, pixels, pixels, fill=False, edgecolor=AT_REFERENCE, linewidth=1.3)
