"""Class maps at an image's own size, from a model's scores for the square that was made of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from viny.data.decoding import inner_box
from viny.data.masks import IGNORE

AT_ONCE = 1 << 22  # scores of the larger image that are held at a time, in float32


def greatest(scores: Tensor, dim: int = 1) -> Tensor:
    """The first of the classes with the greatest score, uint8 [B, H, W]; `dim` is that of the classes."""
    return scores.max(dim).indices.to(torch.uint8)  # the same as `argmax`, which takes ten times as long on a CPU


@torch.inference_mode()
def class_map(scores: Tensor, height: int, width: int, fit: str) -> np.ndarray:
    """The class of each pixel of an image, from scores for the square that was made of it.

    The scores are interpolated at the centres of the image's pixels, bilinearly, and then the greatest is taken: so
    edges of objects run between the pixels that the model saw. Interpolated are the scores, not the probabilities, as
    is usual for segmentation (Long, Shelhamer and Darrell 2015).

    Args:
        scores: float [C, T, T], C at most 255.
        height, width: of the image, upright, pixels.
        fit: how it became a square: 'stretch', 'crop' or 'pad', see `viny.data.decoding.squared`.

    Returns:
        uint8 [height, width]; IGNORE outside of a centre crop, where nothing was predicted.
    """
    classes, side, _ = scores.shape
    if height == width == side:
        return greatest(scores, 0).cpu().numpy()
    left, top, right, bottom = inner_box(height, width, side) if fit == "pad" else (0, 0, side, side)
    shown = (min(height, width),) * 2 if fit == "crop" else (height, width)
    rows, seen_rows = _places(height, shown[0], top, bottom, side)
    columns, seen_columns = _places(width, shown[1], left, right, side)
    out = np.full((height, width), IGNORE, np.uint8)
    x = torch.from_numpy(columns).to(scores.device)
    some = max(1, AT_ONCE // (classes * width))
    for start in range(0, height, some):
        y = torch.from_numpy(rows[start : start + some]).to(scores.device)
        grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], -1)
        larger = F.grid_sample(scores[None].float(), grid[None], padding_mode="border", align_corners=False)[0]
        out[start : start + some] = greatest(larger, 0).cpu().numpy()
    out[~seen_rows], out[:, ~seen_columns] = IGNORE, IGNORE
    return out


def _places(length: int, shown: int, start: int, stop: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the centres of an image's rows or columns lie in a square, and which of them it shows.

    Args:
        length: rows or columns of the image.
        shown: the middle ones, that the square shows from `start` to `stop`.
        side: of the square, pixels.

    Returns:
        float32 [length], -1 to 1 from edge to edge of the square, as `grid_sample` takes them, and no nearer to
        `start` and `stop` than the centre of a pixel, so that no bar's score is mixed in; and bool [length].
    """
    centres = (np.arange(length) + 0.5 - (length - shown) / 2) / shown  # 0 to 1 of what is shown
    places = (start + centres * (stop - start)).clip(start + 0.5, stop - 0.5)
    return (2 * places / side - 1).astype(np.float32), (centres >= 0) & (centres < 1)


@torch.inference_mode()
def tiled(score: Callable[[np.ndarray], Tensor], images: np.ndarray, side: int) -> Tensor:
    """Scores of images larger than the model's: the mean of those of tiles and of those of the whole image.

    Tiles overlap by half, and their scores are averaged with weights that fall linearly from a tile's centre to its
    edges, so that no seams are seen. Tiles alone would show objects larger than they were in training and without what
    is around them; the whole image, made as small as a tile by averaging pixels, has both right.

    Args:
        score: class scores, float [N, C, S, S], of tiles, uint8 [N, 3, S, S].
        images: uint8 [B, 3, T, T]; T = n S.
        side: of a tile, pixels (S).

    Returns:
        float [B, C, T, T]. With T = S, what `score` gives.
    """
    if images.shape[-1] == side:
        return score(images)
    count = images.shape[-1] // side
    starts = np.linspace(0, (count - 1) * side, 2 * count - 1).round().astype(int).tolist()
    ramp = 1 - (2 * (torch.arange(side) + 0.5) / side - 1).abs()
    window, found = ramp[:, None] * ramp, []
    small = images.reshape(len(images), 3, side, count, side, count).mean((3, 5)).round().astype(np.uint8)
    for image, whole in zip(images, score(small).float(), strict=True):
        total, weight = torch.zeros(()), torch.zeros(image.shape[1:])
        for top in starts:  # a row of tiles at a time
            rows = slice(top, top + side)
            scores = score(np.stack([image[:, rows, left : left + side] for left in starts])).float()
            window, weight = window.to(scores.device), weight.to(scores.device)
            if not total.dim():
                total = scores.new_zeros((scores.shape[1], *image.shape[1:]))
            for left, tile in zip(starts, scores, strict=True):
                total[:, rows, left : left + side] += window * tile
                weight[rows, left : left + side] += window
        larger = F.interpolate(whole[None], image.shape[1:], mode="bilinear")[0]
        found.append(total.div_(weight).add_(larger).div_(2))
    return torch.stack(found)
