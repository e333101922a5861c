"""Pictures under translucent class colours, the same wherever masks are shown over images."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from PIL import Image, ImageColor

from viny.data.masks import IGNORE

ALPHA = 0.5  # of a class's colour
OUTLINE = 1 / 512  # of the longer side, the width of the lines between areas
LEAST = 1 / 100  # of the longer side: whoever looks finds a spot of this size
STRIPES = 1 / 40  # of the longer side, of ignored areas
GREYS = (90, 215)  # levels of the stripes


def tinted(
    image: np.ndarray, mask: np.ndarray, colours: Sequence[str], clear: Collection[int] = (), striped: bool = True
) -> np.ndarray:
    """An image under the colours of its mask's classes, with a black line around each area.

    Args:
        image: uint8 [H, W, 3].
        mask: uint8 [H, W], class indices or IGNORE.
        colours: '#rrggbb' of each class.
        clear: classes that are not coloured, such as the background.
        striped: whether areas of IGNORE are striped grey; otherwise the image shows through.

    Returns:
        uint8 [H, W, 3].
    """
    under, shown = Image.fromarray(image), np.isin(mask, [at for at in range(len(colours)) if at not in clear])
    over = Image.fromarray(mask)
    over.putpalette([level for colour in colours for level in ImageColor.getrgb(colour)])
    # Pillow blends bytes: photographs of many megapixels take little memory.
    blended = Image.blend(under, over.convert("RGB"), ALPHA)
    out = np.array(Image.composite(blended, under, Image.fromarray(shown)))
    longer = max(mask.shape)
    if striped:
        y, x = np.nonzero(mask == IGNORE)
        grey = np.array(GREYS)[(x + y) // max(1, round(STRIPES * longer)) % 2]
        out[y, x] = 0.4 * out[y, x] + 0.6 * grey[:, None]
    out[_edges(mask)] = 0
    return out


def seen(mask: np.ndarray, classes: int) -> np.ndarray:
    """Of which classes colour is to be seen beside the outlines, bool [classes]; mask as in `tinted`."""
    coloured = np.bincount(mask[~_edges(mask)], minlength=256)[:classes]
    return coloured >= max(1, (LEAST * max(mask.shape)) ** 2)


def _edges(mask: np.ndarray) -> np.ndarray:
    """The pixels of outlines, bool [H, W]: those with another value a line's width above or to the left."""
    width = max(1, round(OUTLINE * max(mask.shape)))
    edge = np.zeros(mask.shape, bool)
    for by in range(1, width + 1):
        edge[by:] |= mask[by:] != mask[:-by]
        edge[:, by:] |= mask[:, by:] != mask[:, :-by]
    return edge
