"""A sheet of images, each beside itself with its mask laid over it, and close-ups of what is too small to be seen."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from viny.data.masks import BACKGROUNDS, IGNORE
from viny.data.survey import CLOSE_UPS, Looked, percent
from viny.evidence.figures import kit
from viny.evidence.figures.tint import ALPHA, tinted
from viny.runtime.files import atomic_path

PAIRS = 2  # in a row
LETTERS, FEWER = 48, 18  # of an image's name above it, and above a close-up, at most
LETTER = 5  # points, 7 pixels where the sheet is 1,200 wide
COLUMNS = math.lcm(2 * PAIRS, CLOSE_UPS)  # of the grid that both kinds of rows fit


@kit.in_style
def contact_sheet(looked: Looked, classes: Sequence[str], title: str) -> Figure:
    """Each image bare, and beside it under translucent class colours, in its own shape; below, close-ups of both.

    The background is left as it is, ignored areas are striped grey.

    Args:
        looked: the images, with their masks.
        classes: names; if there are many, the legend has those with the largest shares.
        title: the first line.
    """
    colours = kit.class_colours(len(classes))
    clear = [at for at, name in enumerate(classes) if name in BACKGROUNDS]
    rows = math.ceil(len(looked.images) / PAIRS)
    tall, pieces = statistics.median(looked.aspects), looked.close_ups
    heights = [kit.WIDTH / (2 * PAIRS) * tall] * rows + [kit.WIDTH / CLOSE_UPS * tall] * 2 * bool(pieces)
    figure = kit.new_figure(0.35 + 0.1 * rows + 0.25 * bool(pieces) + sum(heights))
    grid = figure.add_gridspec(len(heights), COLUMNS, height_ratios=heights)

    def show(row: int, column: int, beside: int, image: np.ndarray, aspect: float) -> Axes:
        wide = COLUMNS // beside
        axes = figure.add_subplot(grid[row, column * wide : (column + 1) * wide])
        kit.bare(axes)
        axes.imshow(image, aspect=aspect, interpolation="antialiased")
        return axes

    shown_pairs = zip(looked.images, looked.masks, looked.names, looked.aspects, strict=True)
    for at, (pixels, mask, name, aspect) in enumerate(shown_pairs):
        row, column = divmod(at, PAIRS)
        image = pixels.transpose(1, 2, 0)
        bare = show(row, 2 * column, 2 * PAIRS, image, aspect)
        show(row, 2 * column + 1, 2 * PAIRS, tinted(image, mask, colours, clear), aspect)
        # Text in dollar signs would be taken for a formula.
        bare.set_title(_short(name, LETTERS), size=LETTER, pad=2, loc="left", parse_math=False)
    for at, piece in enumerate(pieces):
        image = piece.image.transpose(1, 2, 0)
        bare = show(rows, at, CLOSE_UPS, image, piece.aspect)
        show(rows + 1, at, CLOSE_UPS, tinted(image, piece.mask, colours, clear), piece.aspect)
        about = f"{_short(classes[piece.index], FEWER)}\n{_short(piece.name, FEWER)}"
        bare.set_title(about, size=LETTER, pad=2, parse_math=False)
    if pieces:
        title += "\nbelow, closer: classes that are too thin or too rare to be seen above"
    shown = _legend(figure, looked, classes, colours, clear, title)
    if shown < len(classes):
        kit.add_note(figure, f"{len(classes)} classes; the legend has the {shown} with most pixels.")
    return figure


def _legend(
    figure: Figure, looked: Looked, classes: Sequence[str], colours: Sequence[str], clear: Sequence[int], title: str
) -> int:
    """Draw the legend; returns how many classes it names."""
    shares = looked.shares
    # also those that have no pixel at this size
    shown = kit.shown_classes(np.maximum(shares[:-1], np.finfo(float).tiny))
    handles = [
        Patch(
            facecolor="none" if at in clear else (colours[at], 0.5 + ALPHA / 2),
            edgecolor=kit.GREY,
            label=f"{classes[at]}{' (clear)' if at in clear else ''} {percent(shares[at])}",
        )
        for at in shown
    ]
    if (looked.masks == IGNORE).any():
        label = f"ignored {percent(shares[-1])}" if shares[-1] else "bars, ignored"
        handles.append(Patch(facecolor=kit.NO_CLASS, edgecolor="#555555", hatch="////", label=label))
    legend = kit.legend(figure, handles, title, size=LETTER)
    for text in (*legend.get_texts(), legend.get_title()):
        text.set_parse_math(False)
    return len(shown)


def _short(name: str, letters: int) -> str:
    return name if len(name) <= letters else f"{name[: letters - 1]}…"


def write_contact_sheet(path: Path, figure: Figure) -> None:
    """Write it as PNG, 400 dots per inch, whole or not at all."""
    with mpl.style.context(kit.STYLE, after_reset=True), atomic_path(path) as tmp:
        figure.savefig(tmp, format="png", dpi=400)
