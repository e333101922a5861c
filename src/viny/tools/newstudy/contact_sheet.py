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
from viny.runtime.files import atomic_path

COLUMNS = 4
SIDE = 256  # smallest side of a drawn image, pixels
ALPHA = 0.5  # of a class's colour
STRIPE = 6  # pixels, in ignored areas
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
    rgb = np.array([mpl.colors.to_rgb(colour) for colour in colours])
    clear = [at for at, name in enumerate(classes) if name in BACKGROUNDS]
    rows = math.ceil(len(images) / COLUMNS)
    shown = kit.shown_classes(shares[:-1])
    handles = [
        Patch(
            facecolor="none" if at in clear else (*rgb[at], 0.5 + ALPHA / 2),
            edgecolor=kit.GREY,
            label=f"{classes[at]}{' (not coloured)' if at in clear else ''} {percent(shares[at])}",
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
        axes.imshow(_overlay(image, mask, rgb, clear))
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


def _overlay(image: np.ndarray, mask: np.ndarray, rgb: np.ndarray, clear: Sequence[int]) -> np.ndarray:
    """One image [3, S, S] under its mask's colours: floats [k S, k S, 3]."""
    scale = max(1, math.ceil(SIDE / len(mask)))
    mask = mask.repeat(scale, 0).repeat(scale, 1)
    out = image.transpose(1, 2, 0).repeat(scale, 0).repeat(scale, 1) / 255
    coloured = (mask != IGNORE) & ~np.isin(mask, clear)
    out[coloured] = (1 - ALPHA) * out[coloured] + ALPHA * rgb[mask[coloured]]
    y, x = np.indices(mask.shape)
    stripes = np.where((x + y) // STRIPE % 2, 0.85, 0.35)[..., None]
    ignored = mask == IGNORE
    out[ignored] = 0.4 * out[ignored] + 0.6 * np.broadcast_to(stripes, out.shape)[ignored]
    edge = np.zeros(mask.shape, bool)
    edge[1:] |= mask[1:] != mask[:-1]
    edge[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    out[edge] = 0
    return out
