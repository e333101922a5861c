"""Figures of a study, without pyplot, so that no state is shared; mIoU in percent, losses as logged.

Every figure is 6.5 inches wide. Its layout is fixed when it is made, so that each save gives equal bytes.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import ParamSpec

import matplotlib as mpl
import matplotlib.style  # not imported by matplotlib itself
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap, hsv_to_rgb, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from viny.errors import InputError
from viny.evidence.tables import paired_differences, summarise
from viny.files import atomic_path
from viny.settings import IGNORE

STYLE = Path(__file__).with_name("viny.mplstyle")
WIDTH = 6.5  # inches
MAX_HEIGHT = 8.5  # inches, of image grids: what a page holds
MIN_SIDE = 1.05  # inches, of an image
# Okabe and Ito's palette, told apart with any colour vision
CLASS_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
NO_CLASS = "#B3B3B3"  # of pixels that masks ignore
LEGEND_LETTERS = 105  # of a legend's size, beside each other in the width of a figure; each entry has 7 for its mark
LEGEND_CLASSES = 16  # that a legend names at most
STAGES = {"pretrain": "Pre-training", "intermediate": "Intermediate task", "finetune": "Fine-tuning"}
TITLE = 36  # letters above half the width
MAX_LEGEND = 10  # entries beside one panel

P = ParamSpec("P")


def _figure(make: Callable[P, Figure]) -> Callable[P, Figure]:
    """Run `make` under the project's style alone, then fix the layout it comes to."""

    @wraps(make)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.style.context(STYLE, after_reset=True):
            figure = make(*args, **kwargs)
            figure.draw_without_rendering()
            # Layout starts from the layout before, so a second draw could move things by a hair.
            figure.set_layout_engine("none")
        return figure

    return styled


@_figure
def miou_curves(frame: pd.DataFrame, note: str = "") -> Figure:
    """mIoU against fine-tune size: a panel per intermediate task, 'none' first; a line per pre-train size.

    Args:
        frame: what `tables.read_metrics` returns; mIoU as a fraction.
        note: printed under the figure.
    """
    summary = summarise(frame)
    colours = _colours(frame["pretrain_size"])
    tasks = _tasks(frame)
    figure, panels = _panels(len(tasks), columns=2)
    for axes, task in zip(panels, tasks, strict=True):
        mine = summary[summary["intermediate"] == task]
        for size, line in mine.groupby("pretrain_size"):
            _errorbar(
                axes, line["finetune_size"], 100 * line["miou_mean"], 100 * line["miou_sd"],
                color=colours[size], label=f"{size}", **_task_style(task, tasks),
            )  # fmt: skip
        axes.set_title(textwrap.fill(_task_title(task), TITLE))
    _size_axis(panels, frame["finetune_size"])
    _label(panels, "mIoU (%)")
    _size_legend(figure, colours)
    several = summary["miou_sd"].notna().any()
    bars = "error bars: standard deviation over seeds" if several else "no error bars"
    _note(figure, f"{_seeds(summary['n'])} ({bars}).", note)
    return figure


@_figure
def miou_difference(frame: pd.DataFrame, note: str = "") -> Figure:
    """What each intermediate task adds to mIoU, paired by seed, in percentage points.

    A panel per task, a line per pre-train size: mean and standard error; small points are single seeds.

    Args:
        frame: what `tables.read_metrics` returns; mIoU as a fraction.
        note: printed under the figure.
    """
    tasks = [task for task in _tasks(frame) if task != "none"]
    if not tasks:
        return _words("This study has no intermediate task, so there is no difference to show.", note)
    pairs = paired_differences(frame)
    if pairs.empty:
        return _words("No seed was run both with and without an intermediate task.", note)
    pairs["points"] = 100 * pairs["difference"]
    colours = _colours(frame["pretrain_size"])
    figure, panels = _panels(len(tasks), columns=2)
    for axes, task in zip(panels, tasks, strict=True):
        axes.axhline(0, color="black", linewidth=0.8, zorder=1, label="_zero")
        for size, mine in pairs[pairs["intermediate"] == task].groupby("pretrain_size"):
            shift = _aside(size, colours)
            stats = mine.groupby("finetune_size")["points"].agg(["mean", "sem"])
            _errorbar(
                axes, shift * stats.index, stats["mean"], stats["sem"],
                color=colours[size], label=f"{size}", **_task_style(task, tasks),
            )  # fmt: skip
            axes.plot(
                1.012 * shift * mine["finetune_size"], mine["points"], linestyle="", marker=".",
                markersize=4, markeredgewidth=0, color=colours[size], alpha=0.7, label="_seeds",
            )  # fmt: skip
        axes.set_title(textwrap.fill(_task_title(task), TITLE))
    _size_axis(panels, frame["finetune_size"])
    _label(panels, "mIoU difference\n(percentage points)")
    paired = set(pairs["pretrain_size"])
    _size_legend(figure, {size: colour for size, colour in colours.items() if size in paired})
    counts = pairs.groupby(["intermediate", "pretrain_size", "finetune_size"]).size()
    bars = "error bars: standard error; small points: single seeds" if counts.max() > 1 else "no error bars"
    _note(figure, f"With the task minus without, paired by seed. {_seeds(counts)} ({bars}).", note)
    return figure


@_figure
def learning_curves(curves: list[tuple[str, str, Path]], note: str = "") -> Figure:
    """Training loss against epoch: a panel a stage, a thin line a run.

    Runs that differ only in their seed share colour and legend entry. Where a panel has more than
    `MAX_LEGEND` such groups, colour stands for one size only and the line style for the task.

    Args:
        curves: (stage, label, CSV file) of each run. Stages are the keys of `STAGES`. Labels are like
            'pre-0_mid-none_fine-250_seed-0', 'size-2000_seed-0' or 'scenes/size-2000_seed-0'. Columns
            used are epoch and loss.
        note: printed under the figure.

    Raises:
        InputError: an unknown stage, or a file that is no learning curve.
    """
    if not curves:
        return _words("This study has no learning curves.", note)
    runs = pd.DataFrame([{"stage": s, "path": p, **_parse(label)} for s, label, p in curves])
    unknown = sorted(set(runs["stage"]) - set(STAGES))
    if unknown:
        raise InputError(f"unknown stage '{unknown[0]}' of a learning curve; known are {', '.join(STAGES)}")
    tasks = _tasks(runs)
    stages = [stage for stage in STAGES if (runs["stage"] == stage).any()]
    figure, panels = _panels(len(stages), columns=1, height=2.1, sharey=False)
    for axes, stage in zip(panels, stages, strict=True):
        mine = runs[runs["stage"] == stage].sort_values(["pre", "fine", "size", "group"])
        several = mine["group"].nunique() > MAX_LEGEND
        by = next(k for k in ("size", "fine", "pre", "group") if mine[k].nunique() > 1 or k == "group")
        by = by if several else "group"
        colours = dict(zip(mine[by].unique(), _ramp(mine[by].nunique()), strict=True))
        for run in mine.itertuples():
            curve = _read_curve(run.path)
            axes.plot(
                curve["epoch"], curve["loss"], linewidth=0.7, color=colours[getattr(run, by)],
                linestyle=_task_style(run.intermediate, tasks)["linestyle"], label=run.group,
                marker="." if len(curve) == 1 else "",  # a single epoch is no line
            )  # fmt: skip
        axes.set(title=STAGES[stage], xlabel="Epoch", ylabel="Training loss")
        axes.xaxis.get_major_locator().set_params(integer=True)
        _run_legend(axes, mine, colours, by, tasks)
    _note(figure, "One thin line a run; runs under one legend entry look the same.", note)
    return figure


@_figure
def reconstructions(original: np.ndarray, masked: np.ndarray, reconstruction: np.ndarray, note: str = "") -> Figure:
    """Rows of original, masked and reconstructed image.

    Args:
        original, masked, reconstruction: [N, H, W, 3] floats in [0, 1]; what is outside is clipped.
        note: printed under the figure.
    """
    figure, panels = _image_grid(len(original), ["Original", "Masked", "Reconstruction"])
    for row, images in zip(panels, zip(original, masked, reconstruction, strict=True), strict=True):
        for axes, image in zip(row, images, strict=True):
            axes.imshow(np.clip(image, 0, 1))
    _note(figure, note)
    return figure


@_figure
def segmentations(
    images: np.ndarray,
    truth: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    classes: Sequence[str],
    note: str = "",
) -> Figure:
    """Rows of image, true segmentation, and the segmentation that each of some models predicts.

    Args:
        images: [N, H, W, 3] floats in [0, 1].
        truth: [N, H, W] ints, indices into `classes`, or IGNORE, which is grey.
        predictions: the same of each model, by the title of its column; always a class.
        classes: names; a class's colour depends on its index alone.
        note: printed under the figure.
    """
    columns = {"Truth": truth, **predictions}
    for name, labels in columns.items():
        if not (labels[labels != IGNORE] < len(classes)).all() or (labels.size and labels.min() < 0):
            raise ValueError(f"{name} holds a value outside of 0 to {len(classes) - 1}")
    colours = class_colours(len(classes))
    colour_map = ListedColormap(colours).with_extremes(over=NO_CLASS)
    figure, panels = _image_grid(len(images), ["Image", *columns])
    for row, image, *labels in zip(panels, images, *columns.values(), strict=True):
        row[0].imshow(np.clip(image, 0, 1))
        for axes, label in zip(row[1:], labels, strict=True):
            # A pixel of IGNORE, 255, lies above the last class whatever their number is.
            axes.imshow(label, cmap=colour_map, vmin=-0.5, vmax=len(classes) - 0.5, interpolation="nearest")
    counts = np.bincount(np.concatenate([labels.ravel() for labels in columns.values()]), minlength=IGNORE + 1)
    handles = [Patch(color=colours[at], label=classes[at]) for at in shown_classes(counts[: len(classes)])]
    if counts[IGNORE]:
        handles.append(Patch(color=NO_CLASS, label="ignored"))
    ncols = legend_columns([handle.get_label() for handle in handles], 4)
    figure.legend(handles=handles, loc="outside upper center", ncols=ncols)
    _note(figure, note)
    return figure


def class_colours(count: int) -> list[str]:
    """A colour for each class: the first eight are told apart with any colour vision, further ones by most."""
    out = list(CLASS_COLOURS[:count])
    for at in range(len(out), count):  # hues a golden angle apart, in three shades
        shade = (0.85, 0.45, 0.65)[at % 3], (0.85, 0.95, 0.55)[at % 3]
        out.append(to_hex(hsv_to_rgb((at * 0.618034 % 1, *shade))).upper())
    return out


def shown_classes(counts: np.ndarray) -> list[int]:
    """Classes that a legend names, in their order: all, or of many the most frequent ones that occur.

    Args:
        counts: pixels of each class [C].
    """
    if len(counts) <= LEGEND_CLASSES:
        return list(range(len(counts)))
    most = np.argsort(-counts, kind="stable")[:LEGEND_CLASSES]
    return sorted(int(at) for at in most if counts[at])


def legend_columns(labels: Sequence[str], most: int) -> int:
    """Columns of a legend above a figure, so few that the longest label does not run out of it."""
    return max(1, min(most, len(labels), LEGEND_LETTERS // (max(map(len, labels)) + 7)))


def save(figure: Figure, stem: Path) -> None:
    """Write stem.pdf and stem.png (150 dots per inch) whole or not at all; equal figures give equal files."""
    stem = Path(stem)
    with mpl.style.context(STYLE, after_reset=True):
        for kind, metadata in (("pdf", {"CreationDate": None}), ("png", {})):
            # not with_suffix, which would cut a name at its last dot
            with atomic_path(stem.with_name(f"{stem.name}.{kind}")) as tmp:
                figure.savefig(tmp, format=kind, dpi=150, metadata=metadata)


def _new(height: float, layout: str = "constrained") -> Figure:
    figure = Figure(figsize=(WIDTH, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _panels(count: int, columns: int, height: float = 2.6, sharey: bool = True) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, `columns` a row at most; height in inches a row."""
    columns = min(count, columns)
    rows = -(-count // columns)
    figure = _new(height * rows + (0.4 if sharey else 0))  # the figure's legend takes some
    panels = figure.subplots(rows, columns, sharey=sharey, squeeze=False).ravel()
    for axes in panels[count:]:
        axes.remove()
    return figure, list(panels[:count])


def _image_grid(rows: int, titles: list[str]) -> tuple[Figure, np.ndarray]:
    """A figure of images, and its axes [rows, len(titles)]; the titles head the columns."""
    # As large as width and page allow, but no narrower than a title
    side = max(min(WIDTH / len(titles), MAX_HEIGHT / rows), MIN_SIDE)
    figure = _new(side * rows + 0.3, layout="compressed")
    panels = figure.subplots(rows, len(titles), squeeze=False)
    for axes in panels.flat:
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
        axes.spines[:].set_visible(False)
    for axes, title in zip(panels[0], titles, strict=True):
        axes.set_title(title)
    return figure, panels


def _words(text: str, note: str) -> Figure:
    """A figure that says in words why there is nothing to draw."""
    figure = _new(1.2)
    axes = figure.subplots()
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center")
    _note(figure, note)
    return figure


def _note(figure: Figure, *lines: str) -> None:
    """Print lines small under a figure, wrapped at its width, and make the figure taller by them."""
    if not any(lines):
        return
    # The layout makes room for this label, as it would not for free text.
    label = figure.supxlabel("", x=0.01, ha="left", size=7, parse_math=False)
    for width in range(160, 20, -2):  # matplotlib's own wrapping takes dollar signs for formulas
        label.set_text("\n".join(textwrap.fill(line, width) for line in filter(None, lines)))
        extent = label.get_window_extent()
        if extent.x1 <= 0.99 * figure.bbox.x1:
            break
    figure.set_figheight(figure.get_figheight() + extent.height / figure.dpi)


def _seeds(counts: pd.Series) -> str:
    """What a point is the mean of, in words."""
    least, most = counts.min(), counts.max()
    if most == 1:
        return "One seed"
    return f"Mean over {least} seeds" if least == most else f"Mean over {least} to {most} seeds"


def _tasks(frame: pd.DataFrame) -> list[str]:
    """Intermediate tasks of a frame, 'none' first where it is there."""
    return sorted(frame["intermediate"].unique(), key=lambda task: (task != "none", task))


def _task_title(task: str) -> str:
    return "No intermediate task" if task == "none" else f"Intermediate task: {task}"


def _task_style(task: str, tasks: list[str]) -> dict[str, str]:
    """Line and marker of an intermediate task: 'none' is solid, the others are broken in different ways."""
    if task == "none":
        return {"linestyle": "-", "marker": "o"}
    others = [t for t in tasks if t != "none"]
    place = others.index(task)
    return {"linestyle": ("--", "-.", ":")[place % 3], "marker": "s^Dv"[place % 4]}


def _ramp(count: int) -> list[tuple[float, ...]]:
    """Colours in order, dark to light; the lightest of viridis are too faint for thin lines on white."""
    return [tuple(c) for c in mpl.colormaps["viridis"](np.linspace(0, 0.85, count))]


def _colours(sizes: Iterable[int]) -> dict[int, tuple[float, ...]]:
    """A colour for each size, smallest first."""
    unique = sorted(set(sizes))
    return dict(zip(unique, _ramp(len(unique)), strict=True))


def _aside(size: int, colours: Mapping[int, tuple[float, ...]]) -> float:
    """A factor on a logarithmic axis that keeps the bars of different pre-train sizes from hiding one another."""
    return 1.025 ** (list(colours).index(size) - (len(colours) - 1) / 2)


def _errorbar(axes: Axes, x: Sequence, y: pd.Series, error: pd.Series, **style: object) -> None:
    """A line of means; bars only where there is an error, which one seed does not have."""
    yerr = error.to_numpy() if error.notna().any() else None
    axes.errorbar(np.asarray(x), y.to_numpy(), yerr=yerr, elinewidth=0.8, **style)


def _size_axis(panels: list[Axes], sizes: pd.Series) -> None:
    """A log axis whose ticks are the fine-tune sizes themselves."""
    ticks = sorted(sizes.unique())
    for axes in panels:
        axes.set_xscale("log")
        axes.set_xticks(ticks, [str(t) for t in ticks], rotation=45 if len(ticks) > 4 else 0)
        axes.minorticks_off()
        axes.set_xlim(ticks[0] / 1.15, ticks[-1] * 1.15)
        axes.set_xlabel("Fine-tune size (images)")


def _label(panels: list[Axes], text: str) -> None:
    for axes in panels:
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel(text)


def _size_legend(figure: Figure, colours: dict[int, tuple[float, ...]]) -> None:
    """The pre-train sizes' colours, once for all panels."""
    handles = [Line2D([], [], color=colour, label=f"{size}") for size, colour in colours.items()]
    title = "Pre-train size (images)"
    figure.legend(handles=handles, title=title, loc="outside upper center", ncols=min(len(handles), 8))


def _parse(label: str) -> dict[str, str | int]:
    """What a run's label says: its group (all but the seed), its task, and its sizes (-1 where not said)."""
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
    styles = {task: _task_style(task, tasks)["linestyle"] for task in tasks}
    title = {"pre": "Pre-train size", "fine": "Fine-tune size", "size": "Pre-train size"}.get(by, "Runs")
    if by == "group":
        of = runs.drop_duplicates("group").set_index("group")["intermediate"]
        handles = [Line2D([], [], color=c, ls=styles[of[g]], label=g) for g, c in colours.items()]
    else:
        handles = [Line2D([], [], color=c, label=f"{size}") for size, c in colours.items()]
        mine = [task for task in tasks if task in set(runs["intermediate"])]
        if len(mine) > 1:
            handles += [Line2D([], [], color="grey", ls=styles[t], label=_task_title(t)) for t in mine]
    columns = 1 + (len(handles) - 1) // 14
    axes.legend(handles=handles, title=title, loc="upper left", bbox_to_anchor=(1, 1), ncols=columns)
