"""Figures of a study's results: mIoU in percent, losses as logged."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from viny.data.masks import IGNORE
from viny.evidence.figures import kit, means
from viny.evidence.statistics.crossed import Runs
from viny.runtime.errors import InputError
from viny.runtime.text import visible

STAGES = {"pretrain": "Pre-training", "intermediate": "Intermediate task", "finetune": "Fine-tuning"}
BESIDE = 1.05  # inches beside images, for what a row shows
COLUMNS = 5  # images beside one another
BESIDES = {"color": "0.45", "linewidth": 1.1, "marker": "", "zorder": 1}
REFERENCES = {
    "unet": {**BESIDES, "linestyle": "-.", "marker": "x", "markersize": 4.5},
    "constant": {**BESIDES, "linestyle": ":"},
}
BELOW = {**BESIDES, "linestyle": "", "marker": "$\\downarrow$", "markersize": 7}  # what lies below the axis
FAR = 1 / 3  # of the axis, which a constant answer may take below all else
MARGIN = 0.06  # of the axis, above and below
IN_WORDS = {"unet": "U-Net", "constant": "one class everywhere"}
NO_TASK = "This study has no intermediate task, so there is no difference to show."
NO_PAIR = "No seed was run both with and without an intermediate task."


@kit.in_style
def miou_curves(runs: Runs, note: str = "", references: pd.DataFrame | None = None) -> Figure:
    """mIoU against labels: a panel per intermediate task, 'none' first; a line per pre-train size; 95 % intervals.

    Args:
        runs: the study's.
        note: printed under the figure.
        references: what `references.reference_means` returns, grey lines in every panel; none: no such lines. A
            constant answer far below all else is left to the legend, and an interval of theirs may leave the axis,
            which is for the study's cells.
    """
    table = means.of_cells(runs)
    if table.empty:
        return kit.say("This study has no mIoU to show.", note)
    labels, styles = table["finetune_size"].unique(), kit.size_styles(table["pretrain_size"])
    tasks = kit.tasks_in_order(table["intermediate"])
    others = {} if references is None else dict(list(references.groupby("reference")))
    constant = others.get("constant")
    ends = [table["low"], table["high"], table["mean"]]
    ends = pd.concat([*ends, *(line["mean"] for name, line in others.items() if name != "constant")])
    below = constant is not None and ends.min() - constant["mean"].min() > FAR * (ends.max() - constant["mean"].min())
    drawn = {name: line for name, line in others.items() if not (below and name == "constant")}
    places = [*styles, *[math.inf] * ("unet" in drawn)]  # beside one another at a tick
    figure, panels = kit.panels(len(tasks), kit.columns_for(len(labels), len(places)))
    for axes, task in zip(panels, tasks, strict=True):
        for size, line in table[table["intermediate"] == task].groupby("pretrain_size"):
            line = line.sort_values("finetune_size")
            x = kit.aside(size, places, labels) * line["finetune_size"]
            kit.bars(axes, x, line, label=f"{size}", **styles[size])
        for name, line in drawn.items():
            line = line.sort_values("finetune_size")
            x = line["finetune_size"] * (kit.aside(math.inf, places, labels) if name == "unet" else 1)
            kit.bars(axes, x, line, label="_reference", **REFERENCES[name])
        if tasks != ["none"]:
            axes.set_title(kit.task_title(task))
        kit.fine_ticks(axes.yaxis)
    if others:
        low = ends.min() if below or constant is None else min(ends.min(), constant["mean"].min())
        room = MARGIN * (ends.max() - low) or 0.01
        for axes in panels:
            axes.set_ylim(100 * (low - room), 100 * (ends.max() + room))
    kit.size_axis(panels, labels)
    kit.label_rows(panels, "mIoU (%)")
    handles = [Line2D([], [], **REFERENCES[name], label=IN_WORDS[name]) for name in REFERENCES if name in drawn]
    if below:
        reached = dict.fromkeys(f"{100 * miou:.1f}" for miou in (constant["mean"].min(), constant["mean"].max()))
        label = f"{IN_WORDS['constant']}: {' to '.join(reached)} %"
        handles.append(Line2D([], [], **BELOW, label=label))
    kit.size_legend(figure, styles, kit.seeds_in_words(table["n"]), handles)
    kit.add_note(figure, note)
    return figure


@kit.in_style
def miou_difference(runs: Runs, note: str = "") -> Figure:
    """What each intermediate task adds to mIoU, as the paper shows it: mean and standard error over seeds.

    A panel per task, a line per pre-train size, in percentage points, paired by seed; small points are single seeds.

    Args:
        runs: the study's.
        note: printed under the figure.
    """
    tasks = [task for task in kit.tasks_in_order(key[1] for key in runs.keys) if task != "none"]
    if not tasks:
        return kit.say(NO_TASK, note)
    table = means.of_tasks(runs)
    if table.empty:
        return kit.say(NO_PAIR, note)
    labels, styles = [key[2] for key in runs.keys], kit.size_styles(key[0] for key in runs.keys)
    figure, panels = kit.panels(len(tasks), kit.columns_for(len(set(labels)), len(styles)))
    for axes, task in zip(panels, tasks, strict=True):
        axes.axhline(0, color="black", linewidth=0.8, zorder=1, label="_zero")
        for size, line in table[table["intermediate"] == task].groupby("pretrain_size"):
            line = line.sort_values("finetune_size")
            x = kit.aside(size, styles, labels) * line["finetune_size"].to_numpy(float)
            cells = [(size, task, n) for n in line["finetune_size"]]
            raw = means.seed_by_seed(runs, cells)
            # the paper's spread, over seeds alone
            error = pd.DataFrame(raw).sem(axis=1).to_numpy()
            spread = line.assign(low=line["mean"] - error, high=line["mean"] + error)
            kit.bars(axes, x, spread, label=f"{size}", **styles[size])
            axes.plot(
                np.repeat(1.02 * x, raw.shape[1]), 100 * raw.ravel(), linestyle="", marker=".",
                markersize=4, markeredgewidth=0, color=styles[size]["color"], label="_seeds",
            )  # fmt: skip
        axes.set_title(kit.task_title(task))
        kit.fine_ticks(axes.yaxis)
    kit.size_axis(panels, labels)
    several = table["n"].max() > 1
    bars = "± standard error" if several else "one seed"
    kit.label_rows(panels, f"mIoU difference\n(points, {bars})")
    shown = set(table["pretrain_size"])
    kit.size_legend(
        figure,
        {size: style for size, style in styles.items() if size in shown},
        "bars: standard error over seeds; dots: single seeds" if several else "one seed, no bars",
    )
    kit.add_note(figure, note)
    return figure


@kit.in_style
def learning_curves(curves: list[tuple[str, str, Path]], note: str = "") -> Figure:
    """Training loss against epoch: a panel per stage, a thin line per run.

    Colour is the number of labels in fine-tuning and of pre-training images before, the line style the task.

    Args:
        curves: (stage, label, CSV file) of each run. Stages are the keys of `STAGES`. Labels are like
            'pre-0_mid-none_fine-250_seed-0', 'size-2000_seed-0' or 'scenes/size-2000_seed-0'. Columns
            used are epoch and loss.
        note: printed under the figure.

    Raises:
        InputError: an unknown stage, or a file that is not a learning curve.
    """
    if not curves:
        return kit.say("This study has no learning curves.", note)
    runs = pd.DataFrame([{"stage": s, "path": p, **_parse(label)} for s, label, p in curves])
    unknown = sorted(set(runs["stage"]) - set(STAGES))
    if unknown:
        raise InputError(f"unknown stage '{unknown[0]}' of a learning curve; known are {', '.join(STAGES)}")
    lines = kit.task_lines(runs["intermediate"])
    before = runs.loc[runs["stage"] != "finetune", "size"]
    starts = {size: style["color"] for size, style in kit.size_styles(before).items()}
    stages = [stage for stage in STAGES if (runs["stage"] == stage).any()]
    figure, panels = kit.panels(len(stages), columns=1, height=2.0, sharey=False)
    for axes, stage in zip(panels, stages, strict=True):
        mine = runs[runs["stage"] == stage].sort_values(["size", "path"])
        sizes = sorted(mine["size"].unique())
        colours = dict(zip(sizes, kit.ramp(len(sizes)), strict=True)) if stage == "finetune" else starts
        for run in mine.itertuples():
            curve = _read_curve(run.path)
            axes.plot(
                curve["epoch"], curve["loss"], linewidth=0.7, color=colours[run.size],
                linestyle=lines[run.intermediate], label=f"_{run.intermediate} {run.size}",
                marker="." if len(curve) == 1 else "",  # a single epoch makes no line
            )  # fmt: skip
        axes.set(title=STAGES[stage], xlabel="Epoch", ylabel="Training loss")
        axes.xaxis.get_major_locator().set_params(integer=True)
        what = "labels" if stage == "finetune" else "images"
        handles = [Line2D([], [], color=colours[size], label=f"{size:,} {what}") for size in sizes]
        tasks = kit.tasks_in_order(mine["intermediate"])
        if tasks != ["none"]:
            named = {task: "no task" if task == "none" else task for task in tasks}
            handles += [Line2D([], [], color=kit.GREY, ls=lines[task], label=name) for task, name in named.items()]
        axes.legend(
            handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.28), ncols=kit.legend_columns(handles, 3)
        )
    kit.add_note(figure, note)
    return figure


@kit.in_style
def reconstructions(original: np.ndarray, masked: np.ndarray, reconstruction: np.ndarray, note: str = "") -> Figure:
    """Rows of original, masked and reconstructed image.

    Args:
        original, masked, reconstruction: [N, H, W, 3] floats in [0, 1]; values outside are clipped.
        note: printed under the figure.
    """
    titles = ["Original", "Masked", "Reconstruction"]
    figure, panels = kit.image_grid(len(original), len(titles))
    for axes, title in zip(panels[0], titles, strict=True):
        axes.set_title(title)
    for row, images in zip(panels, zip(original, masked, reconstruction, strict=True), strict=True):
        for axes, image in zip(row, images, strict=True):
            axes.imshow(np.clip(image, 0, 1))
    kit.add_note(figure, note)
    return figure


@dataclass(frozen=True)
class Prediction:
    """What a model predicts of some images.

    Attributes:
        title: of its row.
        labels: [N, H, W] class indices.
        miou: [N], of each image, a fraction; None: not shown.
    """

    title: str
    labels: np.ndarray
    miou: np.ndarray | None = None


@kit.in_style
def segmentations(
    images: np.ndarray,
    truth: np.ndarray,
    predictions: Sequence[Prediction],
    classes: Sequence[str],
    note: str = "",
    title: str = "",
    names: Sequence[str] = (),
) -> Figure:
    """A column per image: the image, its true segmentation, and below what each model predicts.

    Args:
        images: [N, H, W, 3] floats in [0, 1].
        truth: [N, H, W] ints, indices into `classes`, or IGNORE, which is grey.
        predictions: of the models; grey where they are IGNORE.
        classes: names; a class's colour depends on its index alone.
        note: printed under the figure.
        title: above the figure.
        names: of the images, above each; none: not shown.
    """
    rows = {"Truth": truth} | {prediction.title: prediction.labels for prediction in predictions}
    for name, labels in rows.items():
        if not (labels[labels != IGNORE] < len(classes)).all() or (labels.size and labels.min() < 0):
            raise ValueError(f"{name} holds a value outside of 0 to {len(classes) - 1}")
    colours = kit.class_colours(len(classes))
    colour_map = ListedColormap(colours).with_extremes(over=kit.NO_CLASS)
    columns = min(len(images), COLUMNS)
    blocks = -(-len(images) // columns)  # of further images, below
    labelled = sum(prediction.miou is not None for prediction in predictions)
    above = 0.4 + (0.2 * labelled + 0.3 * bool(names)) * blocks + 0.15 * bool(title)
    figure, panels = kit.image_grid(blocks * (1 + len(rows)), columns, BESIDE, above)
    values = {prediction.title: prediction.miou for prediction in predictions}
    for i, axes in enumerate(
        panels.reshape(blocks, 1 + len(rows), columns).transpose(0, 2, 1).reshape(-1, 1 + len(rows))
    ):
        if i >= len(images):
            for each in axes:
                each.remove()
            continue
        axes[0].imshow(np.clip(images[i], 0, 1))
        if names:  # text in dollar signs would be taken for a formula
            axes[0].set_title(_in_lines(names[i]), size=6, pad=2, parse_math=False)
        for each, (name, labels) in zip(axes[1:], rows.items(), strict=True):
            # A pixel of IGNORE, 255, lies above the last class, however many there are.
            each.imshow(labels[i], cmap=colour_map, vmin=-0.5, vmax=len(classes) - 0.5, interpolation="nearest")
            if values.get(name) is not None:
                each.set_xlabel(f"{100 * values[name][i]:.0f} %", labelpad=2)
        if i % columns == 0:
            for each, name in zip(axes, ["Image", *rows], strict=True):
                each.set_ylabel(name, rotation=0, ha="right", va="center", multialignment="right")
    counts = np.bincount(np.concatenate([labels.ravel() for labels in rows.values()]), minlength=IGNORE + 1)
    shown = [(colours[at], classes[at]) for at in kit.shown_classes(counts[: len(classes)])]
    shown += [(kit.NO_CLASS, "ignored")] * bool(counts[IGNORE])
    edge = {"edgecolor": kit.GREY, "linewidth": 0.5}  # some classes' colours are faint on white
    kit.legend(figure, [Patch(facecolor=colour, label=name, **edge) for colour, name in shown], title, most=4)
    kit.add_note(figure, note)
    return figure


def _in_lines(name: str, letters: int = 13, lines: int = 3) -> str:
    """An image's name in narrow lines; of a long one, the end."""
    most = letters * lines
    name = visible(name if len(name) <= most else f"…{name[1 - most :]}")
    return "\n".join(name[at : at + letters] for at in range(0, len(name), letters))


def _parse(label: str) -> dict[str, str | int]:
    """What a run's label says: its task, and the number of images that its stage learnt from or began with."""
    task = re.search(r"mid-(.+)_fine-|^(.+)/", label)
    size = re.search(r"(?:^|[_/])(?:fine|size)-(\d+)", label)
    return {
        "intermediate": next(filter(None, task.groups())) if task else "none",
        "size": int(size[1]) if size else -1,
    }


def _read_curve(path: Path) -> pd.DataFrame:
    try:
        curve = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no readable learning curve ({error}); run its stage again") from error
    missing = {"epoch", "loss"} - set(curve.columns)
    if missing:
        raise InputError(f"{path}: no column '{min(missing)}', so no learning curve; run its stage again")
    return curve
