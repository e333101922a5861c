"""The drawing kit for all figures: no pyplot, so that no state is shared; 6.5 inches wide."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import ParamSpec

import matplotlib as mpl
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import hsv_to_rgb, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from viny.runtime.files import atomic_path

STYLE = Path(__file__).with_name("viny.mplstyle")
WIDTH = 6.5  # inches
MAX_HEIGHT = 8.5  # inches, of image grids: what fits on a page
MIN_SIDE = 1.05  # inches, of an image
# Okabe and Ito's palette, told apart with any colour vision
CLASS_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
NO_CLASS = "#B3B3B3"  # of pixels that masks ignore
LEGEND_LETTERS = 105  # in legend size, across a figure; each entry uses 7 for its mark
LEGEND_CLASSES = 16  # the most that a legend names
TITLE = 36  # letters that fit above half the width
MAX_LEGEND = 10  # entries beside one panel

P = ParamSpec("P")


def in_style(make: Callable[P, Figure]) -> Callable[P, Figure]:
    """Run `make` under the project's style alone, then freeze the layout that results."""

    @wraps(make)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.style.context(STYLE, after_reset=True):
            figure = make(*args, **kwargs)
            figure.draw_without_rendering()
            # Each layout starts from the one before, so a second draw could move things slightly.
            figure.set_layout_engine("none")
        return figure

    return styled


def class_colours(count: int) -> list[str]:
    """A colour for each class: the first eight are told apart with any colour vision, further ones by most."""
    out = list(CLASS_COLOURS[:count])
    for at in range(len(out), count):  # hues a golden angle apart, in three shades
        shade = (0.85, 0.45, 0.65)[at % 3], (0.85, 0.95, 0.55)[at % 3]
        out.append(to_hex(hsv_to_rgb((at * 0.618034 % 1, *shade))).upper())
    return out


def shown_classes(counts: np.ndarray) -> list[int]:
    """Classes that a legend names, in their order: all or, if there are many, the most frequent that occur.

    Args:
        counts: pixels of each class [C].
    """
    if len(counts) <= LEGEND_CLASSES:
        return list(range(len(counts)))
    most = np.argsort(-counts, kind="stable")[:LEGEND_CLASSES]
    return sorted(int(at) for at in most if counts[at])


def legend_columns(labels: Sequence[str], most: int) -> int:
    """Columns of a legend above a figure: few enough for the longest label to fit."""
    return max(1, min(most, len(labels), LEGEND_LETTERS // (max(map(len, labels)) + 7)))


def save(figure: Figure, stem: Path) -> None:
    """Write stem.pdf and stem.png (150 dots per inch) whole or not at all; equal figures give equal files."""
    stem = Path(stem)
    with mpl.style.context(STYLE, after_reset=True):
        for kind, metadata in (("pdf", {"CreationDate": None}), ("png", {})):
            # not with_suffix, which would cut a name at its last dot
            with atomic_path(stem.with_name(f"{stem.name}.{kind}")) as tmp:
                figure.savefig(tmp, format=kind, dpi=150, metadata=metadata)


def new_figure(height: float, layout: str = "constrained") -> Figure:
    figure = Figure(figsize=(WIDTH, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def panels(count: int, columns: int, height: float = 2.6, sharey: bool = True) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, at most `columns` per row; height is in inches per row."""
    columns = min(count, columns)
    rows = -(-count // columns)
    figure = new_figure(height * rows + (0.4 if sharey else 0))  # room for the figure's legend
    panels = figure.subplots(rows, columns, sharey=sharey, squeeze=False).ravel()
    for axes in panels[count:]:
        axes.remove()
    return figure, list(panels[:count])


def image_grid(rows: int, titles: list[str]) -> tuple[Figure, np.ndarray]:
    """A figure of images, and its axes [rows, len(titles)]; the titles head the columns."""
    # As large as width and page allow, but no narrower than a title
    side = max(min(WIDTH / len(titles), MAX_HEIGHT / rows), MIN_SIDE)
    figure = new_figure(side * rows + 0.3, layout="compressed")
    panels = figure.subplots(rows, len(titles), squeeze=False)
    for axes in panels.flat:
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
        axes.spines[:].set_visible(False)
    for axes, title in zip(panels[0], titles, strict=True):
        axes.set_title(title)
    return figure, panels


def say(text: str, note: str) -> Figure:
    """A figure that says in words why there is nothing to draw."""
    figure = new_figure(1.2)
    axes = figure.subplots()
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center")
    add_note(figure, note)
    return figure


def add_note(figure: Figure, *lines: str) -> None:
    """Print lines in small type under a figure, wrapped to its width, and make the figure taller to fit."""
    if not any(lines):
        return
    # The layout makes room for this label; it would not for free text.
    label = figure.supxlabel("", x=0.01, ha="left", size=7, parse_math=False)
    for width in range(160, 20, -2):  # matplotlib's own wrapping takes dollar signs for formulas
        label.set_text("\n".join(textwrap.fill(line, width) for line in filter(None, lines)))
        extent = label.get_window_extent()
        if extent.x1 <= 0.99 * figure.bbox.x1:
            break
    figure.set_figheight(figure.get_figheight() + extent.height / figure.dpi)


def seeds_in_words(counts: pd.Series) -> str:
    """What a point is the mean of, in words."""
    least, most = counts.min(), counts.max()
    if most == 1:
        return "One seed"
    return f"Mean over {least} seeds" if least == most else f"Mean over {least} to {most} seeds"


def tasks_in_order(frame: pd.DataFrame) -> list[str]:
    """Intermediate tasks of a frame, 'none' first where it is there."""
    return sorted(frame["intermediate"].unique(), key=lambda task: (task != "none", task))


def task_title(task: str) -> str:
    return "No intermediate task" if task == "none" else f"Intermediate task: {task}"


def task_style(task: str, tasks: list[str]) -> dict[str, str]:
    """Line and marker of an intermediate task: 'none' is solid, the others are broken in different ways."""
    if task == "none":
        return {"linestyle": "-", "marker": "o"}
    others = [t for t in tasks if t != "none"]
    place = others.index(task)
    return {"linestyle": ("--", "-.", ":")[place % 3], "marker": "s^Dv"[place % 4]}


def ramp(count: int) -> list[tuple[float, ...]]:
    """Colours in order, dark to light; the lightest of viridis are too faint for thin lines on white."""
    return [tuple(c) for c in mpl.colormaps["viridis"](np.linspace(0, 0.85, count))]


def colours_of(sizes: Iterable[int]) -> dict[int, tuple[float, ...]]:
    """A colour for each size, smallest first."""
    unique = sorted(set(sizes))
    return dict(zip(unique, ramp(len(unique)), strict=True))


def aside(size: int, colours: Mapping[int, tuple[float, ...]]) -> float:
    """A factor on a logarithmic axis that keeps the bars of different pre-train sizes from hiding one another."""
    return 1.025 ** (list(colours).index(size) - (len(colours) - 1) / 2)


def errorbar(axes: Axes, x: Sequence, y: pd.Series, error: pd.Series, **style: object) -> None:
    """A line of means; bars only where there is an error, which a single seed does not have."""
    yerr = error.to_numpy() if error.notna().any() else None
    axes.errorbar(np.asarray(x), y.to_numpy(), yerr=yerr, elinewidth=0.8, **style)


def size_axis(panels: list[Axes], sizes: pd.Series) -> None:
    """A log axis whose ticks are the fine-tune sizes themselves."""
    ticks = sorted(sizes.unique())
    for axes in panels:
        axes.set_xscale("log")
        axes.set_xticks(ticks, [str(t) for t in ticks], rotation=45 if len(ticks) > 4 else 0)
        axes.minorticks_off()
        axes.set_xlim(ticks[0] / 1.15, ticks[-1] * 1.15)
        axes.set_xlabel("Fine-tune size (images)")


def label_rows(panels: list[Axes], text: str) -> None:
    for axes in panels:
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel(text)


def size_legend(figure: Figure, colours: dict[int, tuple[float, ...]]) -> None:
    """One legend of the pre-train sizes' colours for all panels."""
    handles = [Line2D([], [], color=colour, label=f"{size}") for size, colour in colours.items()]
    title = "Pre-train size (images)"
    figure.legend(handles=handles, title=title, loc="outside upper center", ncols=min(len(handles), 8))
