"""A sheet of images, each beside itself with its mask laid over it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from viny.data.masks import BACKGROUNDS, IGNORE
from viny.data.survey import Looked, percent
from viny.evidence.figures import kit
from viny.evidence.figures.tint import ALPHA, tinted
from viny.runtime.files import atomic_path

PAIRS = 2  # in a row
LETTERS = 48  # of an image's name, at most


@kit.in_style
def contact_sheet(looked: Looked, classes: Sequence[str], title: str) -> Figure:
    """Each image bare, and beside it under translucent class colours, in its own shape.

    The background is left as it is, ignored areas are striped grey.

    Args:
        looked: the images, with their masks.
        classes: names; if there are many, the legend has those with the largest shares.
        title: the first line.
    """
    shares = looked.shares
    colours = kit.class_colours(len(classes))
    clear = [at for at, name in enumerate(classes) if name in BACKGROUNDS]
    shown = kit.shown_classes(shares[:-1])
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
    rows = math.ceil(len(looked.images) / PAIRS)
    pairs = min(PAIRS, len(looked.images))
    figure, panels = kit.image_grid(rows, 2 * pairs, above=0.5 + 0.1 * rows, tall=statistics.median(looked.aspects))
    for axes in panels.flat[2 * len(looked.images) :]:
        axes.remove()
    shown_pairs = zip(looked.images, looked.masks, looked.names, looked.aspects, strict=True)
    for at, (pixels, mask, name, aspect) in enumerate(shown_pairs):
        bare, under = panels.flat[2 * at : 2 * at + 2]
        image = pixels.transpose(1, 2, 0)
        bare.imshow(image, aspect=aspect, interpolation="antialiased")
        under.imshow(tinted(image, mask, colours, clear), aspect=aspect, interpolation="antialiased")
        # Text in dollar signs would be taken for a formula.
        short = name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…"
        bare.set_title(short, size=5, pad=2, loc="left", parse_math=False)
    legend = kit.legend(figure, handles, title, most=5)
    for text in (*legend.get_texts(), legend.get_title()):
        text.set_parse_math(False)
    if len(shown) < len(classes):
        kit.add_note(figure, f"{len(classes)} classes; the legend has the {len(shown)} with most pixels.")
    return figure


def write_contact_sheet(path: Path, figure: Figure) -> None:
    """Write it as PNG, 400 dots per inch, whole or not at all."""
    with mpl.style.context(kit.STYLE, after_reset=True), atomic_path(path) as tmp:
        figure.savefig(tmp, format="png", dpi=400)
