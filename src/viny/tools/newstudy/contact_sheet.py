"""A sheet of images with their masks laid over them, as training sees them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from viny.data.masks import BACKGROUNDS, IGNORE
from viny.data.survey import percent
from viny.evidence.figures import kit
from viny.evidence.figures.tint import ALPHA, tinted
from viny.runtime.files import atomic_path

COLUMNS = 4
SIDE = 256  # smallest side of a drawn image, pixels
LETTERS = 24  # of an image's name, at most


@kit.in_style
def contact_sheet(
    images: np.ndarray,
    masks: np.ndarray,
    names: Sequence[str],
    classes: Sequence[str],
    shares: np.ndarray,
    title: str,
) -> Figure:
    """Images under translucent class colours; the background is left as it is, ignored areas are striped grey.

    Args:
        images: uint8 [N, 3, S, S].
        masks: uint8 [N, S, S], class indices or IGNORE.
        names: of the images.
        classes: names; if there are many, the legend has those with the largest shares.
        shares: each class's share of all pixels, then that of pixels without a class, bars aside: float [C + 1].
        title: the first line.
    """
    colours = kit.class_colours(len(classes))
    clear = [at for at, name in enumerate(classes) if name in BACKGROUNDS]
    rows = math.ceil(len(images) / COLUMNS)
    shown = kit.shown_classes(shares[:-1])
    handles = [
        Patch(
            facecolor="none" if at in clear else (colours[at], 0.5 + ALPHA / 2),
            edgecolor=kit.GREY,
            label=f"{classes[at]}{' (clear)' if at in clear else ''} {percent(shares[at])}",
        )
        for at in shown
    ]
    if (masks == IGNORE).any():
        label = f"ignored {percent(shares[-1])}" if shares[-1] else "bars, ignored"
        handles.append(Patch(facecolor=kit.NO_CLASS, edgecolor="#555555", hatch="////", label=label))
    figure, panels = kit.image_grid(rows, min(COLUMNS, len(images)), above=0.5 + 0.1 * rows)
    for axes in panels.flat[len(images) :]:
        axes.remove()
    for axes, image, mask, name in zip(panels.flat, images, masks, names, strict=False):
        scale = max(1, math.ceil(SIDE / len(mask)))
        large = (array.repeat(scale, 0).repeat(scale, 1) for array in (image.transpose(1, 2, 0), mask))
        axes.imshow(tinted(*large, colours, clear))
        # Text in dollar signs would be taken for a formula.
        short = name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…"
        axes.set_title(short, size=5, pad=2, parse_math=False)
    legend = kit.legend(figure, handles, title, most=5)
    for text in (*legend.get_texts(), legend.get_title()):
        text.set_parse_math(False)
    if len(shown) < len(classes):
        kit.add_note(figure, f"{len(classes)} classes; the legend has the {len(shown)} with most pixels.")
    return figure


def write_contact_sheet(path: Path, figure: Figure) -> None:
    """Write it as PNG, 300 dots per inch, whole or not at all."""
    with mpl.style.context(kit.STYLE, after_reset=True), atomic_path(path) as tmp:
        figure.savefig(tmp, format="png", dpi=300)
