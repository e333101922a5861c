"""Figures of a study's results: mIoU in percent, losses as logged."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from viny.data.masks import IGNORE
from viny.evidence.figures import kit
from viny.evidence.tables import paired_differences, summarise
from viny.runtime.errors import InputError

STAGES = {"pretrain": "Pre-training", "intermediate": "Intermediate task", "finetune": "Fine-tuning"}


@kit.in_style
def miou_curves(frame: pd.DataFrame, note: str = "") -> Figure:
    """mIoU against fine-tune size: a panel per intermediate task, 'none' first; a line per pre-train size.

    Args:
        frame: what `tables.read_metrics` returns; mIoU as a fraction.
        note: printed under the figure.
    """
    summary = summarise(frame)
    colours = kit.colours_of(frame["pretrain_size"])
    tasks = kit.tasks_in_order(frame)
    figure, panels = kit.panels(len(tasks), columns=2)
    for axes, task in zip(panels, tasks, strict=True):
        mine = summary[summary["intermediate"] == task]
        for size, line in mine.groupby("pretrain_size"):
            kit.errorbar(
                axes, line["finetune_size"], 100 * line["miou_mean"], 100 * line["miou_sd"],
                color=colours[size], label=f"{size}", **kit.task_style(task, tasks),
            )  # fmt: skip
        axes.set_title(textwrap.fill(kit.task_title(task), kit.TITLE))
    kit.size_axis(panels, frame["finetune_size"])
    kit.label_rows(panels, "mIoU (%)")
    kit.size_legend(figure, colours)
    several = summary["miou_sd"].notna().any()
    bars = "error bars: standard deviation over seeds" if several else "no error bars"
    kit.add_note(figure, f"{kit.seeds_in_words(summary['n'])} ({bars}).", note)
    return figure


@kit.in_style
def miou_difference(frame: pd.DataFrame, note: str = "") -> Figure:
    """What each intermediate task adds to mIoU, paired by seed, in percentage points.

    A panel per task, a line per pre-train size: mean and standard error; small points are single seeds.

    Args:
        frame: what `tables.read_metrics` returns; mIoU as a fraction.
        note: printed under the figure.
    """
    tasks = [task for task in kit.tasks_in_order(frame) if task != "none"]
    if not tasks:
        return kit.say("This study has no intermediate task, so there is no difference to show.", note)
    pairs = paired_differences(frame)
    if pairs.empty:
        return kit.say("No seed was run both with and without an intermediate task.", note)
    pairs["points"] = 100 * pairs["difference"]
    colours = kit.colours_of(frame["pretrain_size"])
    figure, panels = kit.panels(len(tasks), columns=2)
    for axes, task in zip(panels, tasks, strict=True):
        axes.axhline(0, color="black", linewidth=0.8, zorder=1, label="_zero")
        for size, mine in pairs[pairs["intermediate"] == task].groupby("pretrain_size"):
            shift = kit.aside(size, colours)
            stats = mine.groupby("finetune_size")["points"].agg(["mean", "sem"])
            kit.errorbar(
                axes, shift * stats.index, stats["mean"], stats["sem"],
                color=colours[size], label=f"{size}", **kit.task_style(task, tasks),
            )  # fmt: skip
            axes.plot(
                1.012 * shift * mine["finetune_size"], mine["points"], linestyle="", marker=".",
                markersize=4, markeredgewidth=0, color=colours[size], alpha=0.7, label="_seeds",
            )  # fmt: skip
        axes.set_title(textwrap.fill(kit.task_title(task), kit.TITLE))
    kit.size_axis(panels, frame["finetune_size"])
    kit.label_rows(panels, "mIoU difference\n(percentage points)")
    paired = set(pairs["pretrain_size"])
    kit.size_legend(figure, {size: colour for size, colour in colours.items() if size in paired})
    counts = pairs.groupby(["intermediate", "pretrain_size", "finetune_size"]).size()
    bars = "error bars: standard error; small points: single seeds" if counts.max() > 1 else "no error bars"
    kit.add_note(figure, f"With the task minus without, paired by seed. {kit.seeds_in_words(counts)} ({bars}).", note)
    return figure


@kit.in_style
def learning_curves(curves: list[tuple[str, str, Path]], note: str = "") -> Figure:
    """Training loss against epoch: a panel per stage, a thin line per run.

    Runs that differ only in their seed share colour and legend entry. If a panel has more than
    `MAX_LEGEND` such groups, colour stands for one size only and the line style for the task.

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
    tasks = kit.tasks_in_order(runs)
    stages = [stage for stage in STAGES if (runs["stage"] == stage).any()]
    figure, panels = kit.panels(len(stages), columns=1, height=2.1, sharey=False)
    for axes, stage in zip(panels, stages, strict=True):
        mine = runs[runs["stage"] == stage].sort_values(["pre", "fine", "size", "group"])
        several = mine["group"].nunique() > kit.MAX_LEGEND
        by = next(k for k in ("size", "fine", "pre", "group") if mine[k].nunique() > 1 or k == "group")
        by = by if several else "group"
        colours = dict(zip(mine[by].unique(), kit.ramp(mine[by].nunique()), strict=True))
        for run in mine.itertuples():
            curve = _read_curve(run.path)
            axes.plot(
                curve["epoch"], curve["loss"], linewidth=0.7, color=colours[getattr(run, by)],
                linestyle=kit.task_style(run.intermediate, tasks)["linestyle"], label=run.group,
                marker="." if len(curve) == 1 else "",  # a single epoch makes no line
            )  # fmt: skip
        axes.set(title=STAGES[stage], xlabel="Epoch", ylabel="Training loss")
        axes.xaxis.get_major_locator().set_params(integer=True)
        _run_legend(axes, mine, colours, by, tasks)
    kit.add_note(figure, "One thin line a run; runs under one legend entry look the same.", note)
    return figure


@kit.in_style
def reconstructions(original: np.ndarray, masked: np.ndarray, reconstruction: np.ndarray, note: str = "") -> Figure:
    """Rows of original, masked and reconstructed image.

    Args:
        original, masked, reconstruction: [N, H, W, 3] floats in [0, 1]; values outside are clipped.
        note: printed under the figure.
    """
    figure, panels = kit.image_grid(len(original), ["Original", "Masked", "Reconstruction"])
    for row, images in zip(panels, zip(original, masked, reconstruction, strict=True), strict=True):
        for axes, image in zip(row, images, strict=True):
            axes.imshow(np.clip(image, 0, 1))
    kit.add_note(figure, note)
    return figure


@kit.in_style
def segmentations(
    images: np.ndarray,
    truth: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    classes: Sequence[str],
    note: str = "",
) -> Figure:
    """Rows of image, true segmentation, and the segmentation that each model predicts.

    Args:
        images: [N, H, W, 3] floats in [0, 1].
        truth: [N, H, W] ints, indices into `classes`, or IGNORE, which is grey.
        predictions: the same for each model, by the title of its column; always a class.
        classes: names; a class's colour depends on its index alone.
        note: printed under the figure.
    """
    columns = {"Truth": truth, **predictions}
    for name, labels in columns.items():
        if not (labels[labels != IGNORE] < len(classes)).all() or (labels.size and labels.min() < 0):
            raise ValueError(f"{name} holds a value outside of 0 to {len(classes) - 1}")
    colours = kit.class_colours(len(classes))
    colour_map = ListedColormap(colours).with_extremes(over=kit.NO_CLASS)
    figure, panels = kit.image_grid(len(images), ["Image", *columns])
    for row, image, *labels in zip(panels, images, *columns.values(), strict=True):
        row[0].imshow(np.clip(image, 0, 1))
        for axes, label in zip(row[1:], labels, strict=True):
            # A pixel of IGNORE, 255, lies above the last class, however many there are.
            axes.imshow(label, cmap=colour_map, vmin=-0.5, vmax=len(classes) - 0.5, interpolation="nearest")
    counts = np.bincount(np.concatenate([labels.ravel() for labels in columns.values()]), minlength=IGNORE + 1)
    handles = [Patch(color=colours[at], label=classes[at]) for at in kit.shown_classes(counts[: len(classes)])]
    if counts[IGNORE]:
        handles.append(Patch(color=kit.NO_CLASS, label="ignored"))
    ncols = kit.legend_columns([handle.get_label() for handle in handles], 4)
    figure.legend(handles=handles, loc="outside upper center", ncols=ncols)
    kit.add_note(figure, note)
    return figure


def _parse(label: str) -> dict[str, str | int]:
    """What a run's label says: its group (all but the seed), its task, and its sizes (-1 if not given)."""
    group = re.sub(r"_?seed-\d+$", "", label)
    task = re.search(r"mid-(.+)_fine-|^(.+)/", group)
    sizes = {key: re.search(rf"(?:^|[_/]){key}-(\d+)", group) for key in ("pre", "fine", "size")}
    return {
        "group": group or label,
        "intermediate": next(filter(None, task.groups())) if task else "none",
        **{key: int(found[1]) if found else -1 for key, found in sizes.items()},
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


def _run_legend(axes: Axes, runs: pd.DataFrame, colours: dict, by: str, tasks: list[str]) -> None:
    """A legend right of a panel: its groups, or, where colour stands for a size, the sizes and tasks."""
    styles = {task: kit.task_style(task, tasks)["linestyle"] for task in tasks}
    title = {"pre": "Pre-train size", "fine": "Fine-tune size", "size": "Pre-train size"}.get(by, "Runs")
    if by == "group":
        of = runs.drop_duplicates("group").set_index("group")["intermediate"]
        handles = [Line2D([], [], color=c, ls=styles[of[g]], label=g) for g, c in colours.items()]
    else:
        handles = [Line2D([], [], color=c, label=f"{size}") for size, c in colours.items()]
        mine = [task for task in tasks if task in set(runs["intermediate"])]
        if len(mine) > 1:
            handles += [Line2D([], [], color="grey", ls=styles[t], label=kit.task_title(t)) for t in mine]
    columns = 1 + (len(handles) - 1) // 14
    axes.legend(handles=handles, title=title, loc="upper left", bbox_to_anchor=(1, 1), ncols=columns)
