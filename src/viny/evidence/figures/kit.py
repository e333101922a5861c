"""The drawing kit for all figures: no pyplot, so that no state is shared; 4.6 inches wide, letters of 8 points.

That is readable at the full width of a phone's page, and printed as one column of a paper.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec
from weakref import WeakKeyDictionary

import matplotlib as mpl
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import hsv_to_rgb, to_hex
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import AutoMinorLocator, Formatter, LogLocator, MaxNLocator, NullFormatter

from viny.evidence.figures import NOTHING
from viny.runtime.files import atomic_path

STYLE = Path(__file__).with_name("viny.mplstyle")
WIDTH = 4.6  # inches
MAX_SIDE = 1.5  # inches, of an image
# For areas, and half as strong over pictures: Okabe and Ito's palette without its black, then one by one the colour,
# neither dark nor pale, that is farthest from those before it (CIEDE2000), also with each colour vision (Machado 2009).
# The first eight are told apart with any colour vision; some are too faint for lines on white.
CLASS_COLOURS = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#BBDDAA", "#00FFFF", "#8877FF"),
    *("#886644", "#CC0088", "#FFBBCC", "#AAAA66", "#9922FF", "#337766", "#99FF88", "#669944", "#00CCAA", "#CC3322"),
)
NO_CLASS = "#B3B3B3"  # of pixels that masks ignore
# For lines and markers: after Tol's muted scheme, darkened to a contrast of 3:1 or more on white
LINE_COLOURS = ("#332288", "#CC6677", "#117733", "#2F94C9", "#882255", "#8A7A20", "#AA4499")
RANDOM_START = "#000000"
GREY = "#6E6E6E"  # of what is beside the point
LINES = ("-", "--", "-.", ":")
MARKERS = "osD^vPX*<>ph"
POINTS = 8  # of letters
LETTERS = 70  # of these that fit across a figure
DIGIT, LINE, APART = 0.071, 0.13, 0.06  # inches: width of a digit, height of a line, least gap between two labels
LEGEND_CLASSES = 16  # the most that a legend names
TITLE = 28  # letters that fit above half the width
MINUS = "\N{MINUS SIGN}"
BARS = "bars: 95 % interval"
FEW_POWERS = 200  # the largest value of a logarithmic axis, by its smallest, for ticks between powers of ten

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


def save(figure: Figure, stem: Path) -> None:
    """Write stem.pdf and stem.png (200 dots per inch) whole or not at all; equal figures give equal files.

    The PNG, which the report shows, is without the study's note: the report says that once. Where nothing is drawn, it
    holds the reason as `NOTHING`, and the report says that in place of the figure.
    """
    stem = Path(stem)
    png = {NOTHING: _said[figure]} if figure in _said else {}
    with mpl.style.context(STYLE, after_reset=True):
        for kind, metadata in (("pdf", {"CreationDate": None}), ("png", png)):
            # not with_suffix, which would cut a name at its last dot
            with (
                atomic_path(stem.with_name(f"{stem.name}.{kind}")) as tmp,
                _without_note(figure) if kind == "png" else nullcontext(),
            ):
                figure.savefig(tmp, format=kind, metadata=metadata)


# Panels


def new_figure(height: float, layout: str | None = "constrained") -> Figure:
    figure = Figure(figsize=(WIDTH, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def panels(count: int, columns: int, height: float = 2.2, sharey: bool = True) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, at most `columns` per row; height is in inches per row."""
    columns = min(count, columns)
    rows = -(-count // columns)
    figure = new_figure(height * rows + 0.5)  # room for the figure's legend
    panels = figure.subplots(rows, columns, sharey=sharey, squeeze=False).ravel()
    for axes in panels[count:]:
        axes.remove()
    return figure, list(panels[:count])


def image_grid(
    rows: int, columns: int, beside: float = 0.0, above: float = 0.4, tall: float = 1.0
) -> tuple[Figure, np.ndarray]:
    """A figure of images and its axes [rows, columns].

    Args:
        rows, columns: of images.
        beside, above: room for words, inches.
        tall: height of an image by its width.
    """
    side = min((WIDTH - beside - 0.1) / columns, MAX_SIDE)
    figure = new_figure(side * tall * rows + above, layout="compressed")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat:
        bare(axes)
    return figure, panels


def bare(axes: Axes) -> None:
    """Leave nothing of axes but what is drawn, an image."""
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)


def say(text: str, note: str) -> Figure:
    """A figure that says in words why there is nothing to draw."""
    figure = new_figure(1.0)
    _said[figure] = text
    axes = figure.subplots()
    axes.set_axis_off()
    axes.text(0.5, 0.5, textwrap.fill(text, LETTERS - 6), ha="center", va="center")
    add_note(figure, note)
    return figure


_said: WeakKeyDictionary[Figure, str] = WeakKeyDictionary()  # of each figure without anything drawn: why


def add_note(figure: Figure, *lines: str) -> None:
    """Print lines under a figure, wrapped to its width, which grows to fit; the last is the study's note."""
    # The layout makes room for this label; it would not for free text.
    label = figure.supxlabel("", x=0.01, ha="left", size=8, color=GREY, parse_math=False)
    _under[figure] = label, figure.get_figheight(), lines
    _print_under(figure, lines)


# Of each figure: the label under it, its height without any, in inches, and the lines.
_under: WeakKeyDictionary[Figure, tuple[Text, float, tuple[str, ...]]] = WeakKeyDictionary()


def _print_under(figure: Figure, lines: Sequence[str]) -> None:
    """Write lines into the label of a figure, and give the figure the height that they need."""
    label, height, _ = _under[figure]
    label.set_text("")
    figure.set_figheight(height)
    if not any(lines):
        return
    for width in range(100, 20, -2):  # matplotlib's own wrapping takes dollar signs for formulas
        label.set_text("\n".join(textwrap.fill(line, width) for line in filter(None, lines)))
        extent = label.get_window_extent()
        if extent.x1 <= 0.99 * figure.bbox.x1:
            break
    figure.set_figheight(height + extent.height / figure.dpi)


@contextmanager
def _without_note(figure: Figure) -> Iterator[None]:
    """A figure without the study's note, meanwhile."""
    if figure not in _under:
        yield
        return
    *others, _ = lines = _under[figure][2]
    _print_under(figure, others)
    try:
        yield
    finally:
        _print_under(figure, lines)


# Words


def number(value: float, digits: int = 2, sign: bool = False) -> str:
    """A number with a true minus sign."""
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", MINUS)


def seeds_in_words(counts: pd.Series) -> str:
    """What a point is the mean of, and what its bars are, in words."""
    least, most = counts.min(), counts.max()
    if most == 1:
        return "one seed, no bars"
    return f"mean over {least if least == most else f'{least} to {most}'} seeds; {BARS}"


def tasks_in_order(tasks: Iterable[str]) -> list[str]:
    """Intermediate tasks, each once, 'none' first where it is there."""
    return sorted(set(tasks), key=lambda task: (task != "none", task))


def start_title(size: int) -> str:
    """Where encoders begin, in a legend."""
    return f"{size:,} images" if size else "random start"


def task_title(task: str) -> str:
    """A panel's title."""
    return textwrap.fill("No intermediate task" if task == "none" else f"Intermediate task: {task}", TITLE)


# Colours, lines and markers


def class_colours(count: int) -> list[str]:
    """A colour for each class: the first eight are told apart with any colour vision, the first twenty by most."""
    out = list(CLASS_COLOURS[:count])
    for at in range(len(out), count):  # hues a golden angle apart, in three shades
        shade = (0.85, 0.45, 0.65)[at % 3], (0.85, 0.95, 0.55)[at % 3]
        out.append(to_hex(hsv_to_rgb((at * 0.618034 % 1, *shade))).upper())
    return out


def shown_classes(counts: np.ndarray) -> list[int]:
    """Classes that a legend names, in their order: those that occur or, if these are many, the most frequent.

    Args:
        counts: pixels of each class [C].
    """
    most = np.argsort(-counts, kind="stable")[:LEGEND_CLASSES]
    return sorted(int(at) for at in most if counts[at])


def ramp(count: int) -> list[str]:
    """Colours in order, dark to light, each with a contrast of 3:1 or more on white."""
    places = [0.4] if count == 1 else np.linspace(0.15, 0.62, count)
    return [to_hex(colour) for colour in mpl.colormaps["plasma"](places)]


def size_styles(sizes: Iterable[int]) -> dict[int, dict[str, Any]]:
    """Colour, marker and line of each pre-train size, smallest first; the random start is black and dashed."""
    unique = sorted(set(sizes))
    some = [size for size in unique if size]
    colours = dict(zip(some, ramp(len(some)), strict=True)) | {0: RANDOM_START}
    return {
        size: {
            "color": colours[size],
            "marker": MARKERS[(some.index(size) + 1) % len(MARKERS)] if size else "o",
            "linestyle": "-" if size else "--",
        }
        for size in unique
    }


def task_lines(tasks: Iterable[str]) -> dict[str, str]:
    """A line style for each task: 'none' is solid, the others are broken in different ways."""
    ordered = tasks_in_order(["none", *tasks])
    return {task: LINES[1 + (i - 1) % 3] if i else "-" for i, task in enumerate(ordered)}


# Axes and legends


def size_axis(panels: Sequence[Axes], sizes: Iterable[int]) -> None:
    """A log axis whose ticks are the numbers of labels themselves; a number without room stands one line lower."""
    ticks = sorted(set(sizes))
    margin = 1.25 if len(ticks) > 1 else 1.5
    for axes in panels:
        axes.set_xscale("log")
        beside = axes.get_subplotspec().get_gridspec().ncols  # panels in a row
        inches = WIDTH / beside - 0.6
        at = inches * np.log(ticks) / np.log(margin**2 * ticks[-1] / ticks[0])
        axes.set_xticks(ticks, lined_up(ticks, at, [DIGIT * len(str(tick)) for tick in ticks], lines=2))
        axes.minorticks_off()
        axes.set_xlim(ticks[0] / margin, ticks[-1] * margin)
        axes.set_xlabel("Labelled images")


def lined_up(ticks: Sequence[int], at: Sequence[float], extents: Sequence[float], lines: int = 1) -> list[str]:
    """Labels of ticks that do not touch: from the last on, each on the first line with room for it, or empty.

    Args:
        ticks: ascending.
        at, extents: place and extent of each label along the axis, inches.
        lines: beside one another.
    """
    labels, free = [], [np.inf] * lines  # where each line is free, up to here
    for tick, middle, extent in reversed(list(zip(ticks, at, extents, strict=True))):
        line = next((i for i in range(lines) if middle + extent / 2 <= free[i]), None)
        labels.append("" if line is None else "\n" * line + str(tick))
        if line is not None:
            free[line] = middle - extent / 2 - APART
    return labels[::-1]


def aside(size: float, sizes: Iterable[float], ticks: Iterable[int]) -> float:
    """The factor on a log axis that keeps the points of different pre-train sizes beside one another.

    Args:
        size: whose points are moved.
        sizes: those on the axis.
        ticks: the numbers of labels; points stay nearer to theirs than to the next.
    """
    among, at = sorted(set(sizes)), np.log(sorted(set(ticks)))
    step = 0.06 * (at[-1] - at[0] + 0.4)  # wider than a marker
    if len(at) > 1 and len(among) > 1:
        step = min(step, 0.6 * np.diff(at).min() / (len(among) - 1))
    return float(np.exp(step * (among.index(size) - (len(among) - 1) / 2)))


def columns_for(labels: int, sizes: int) -> int:
    """Columns of panels against labels that leave room for the points of every size beside one another."""
    return 2 if labels * sizes <= 12 else 1


def fine_ticks(axis: Any, most: int = 6) -> None:
    """Round ticks, few enough for their labels to fit, with smaller ones in between."""
    axis.set_major_locator(MaxNLocator(nbins=most, steps=[1, 2, 2.5, 4, 5, 10]))
    axis.set_minor_locator(AutoMinorLocator())


def log_ticks(axis: Any, form: Formatter) -> None:
    """Ticks of a logarithmic axis: a few to a power of ten if there are few powers, and none whose labels touch."""
    low, high = axis.get_view_interval()
    some = (1.0, 2.0, 5.0) if high < FEW_POWERS * low else (1.0,)
    axis.set_major_locator(LogLocator(subs=some, numticks=20))
    axis.set_minor_locator(LogLocator(subs=range(1, 10), numticks=99))
    axis.set_major_formatter(form)
    axis.set_minor_formatter(NullFormatter())


def bars(axes: Axes, x: Sequence[float], table: pd.DataFrame, **style: Any) -> None:
    """Means in percent at x, with their interval where there is one.

    Args:
        table: mean, low and high, fractions.
    """
    mean, low, high = (100 * table[column].to_numpy(float) for column in ("mean", "low", "high"))
    yerr = None if np.isnan(low).all() else np.stack([mean - low, high - mean])
    axes.errorbar(np.asarray(x, float), mean, yerr=yerr, elinewidth=0.9, **style)


def label_rows(panels: Iterable[Axes], text: str) -> None:
    for axes in panels:
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel(text)


def legend_columns(handles: Sequence[Line2D | Patch], most: int, letters: int = LETTERS) -> int:
    """Columns of a legend across a figure, each as wide as its longest entry and 6 letters for its mark.

    Args:
        handles: the entries.
        most: columns.
        letters: that fit across the figure.
    """
    lengths = [len(str(handle.get_label())) + 6 for handle in handles]

    def fits(columns: int) -> bool:
        parts = np.array_split(lengths, columns)  # as matplotlib does
        return sum(int(part.max()) for part in parts) <= letters

    possible = [1, *filter(fits, range(2, min(most, len(handles)) + 1))]
    return min(possible, key=lambda columns: (-(-len(handles) // columns), columns))  # the fewest rows


def legend(
    figure: Figure, handles: Sequence[Line2D | Patch], title: str = "", most: int = 8, size: float = POINTS
) -> Legend:
    """One legend above all panels, with as many columns as fit the width; the figure grows for all rows but one.

    Args:
        figure, handles, title: to draw.
        most: columns.
        size: of its letters, points.
    """
    columns = legend_columns(handles, most, int(LETTERS * POINTS / size))
    further = (-(-len(handles) // columns) - 1) * size / POINTS + title.count("\n")
    figure.set_figheight(figure.get_figheight() + 0.155 * further)
    drawn = figure.legend(
        handles=handles, title=title or None, loc="outside upper center", ncols=columns, fontsize=size
    )
    drawn.get_title().set_multialignment("center")
    return drawn


def size_legend(
    figure: Figure, styles: Mapping[int, Mapping[str, Any]], bars: str, others: Sequence[Line2D] = ()
) -> None:
    """One legend of where encoders start for all panels, and of other lines; `bars` says what the bars are."""
    handles = [Line2D([], [], label=start_title(size), **style) for size, style in styles.items()]
    legend(figure, [*handles, *others], f"Pre-training\n({bars})" if any(styles) else bars)
