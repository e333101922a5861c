"""Segmentation metrics, from per-image confusion matrices, and at the images' own size from counts of pixels.

A mean over classes is over those that the true masks have, whatever is predicted: else one stray pixel of a class that
no mask has would put another 0 into the mean. Only the paper's mean over images counts every class in every image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from viny.data.masks import IGNORE
from viny.data.pack import BLOCK, Pack
from viny.learning.scores import iou, mean_iou_dataset
from viny.runtime.text import cell_text


def classes_in(confusion: np.ndarray, names: Sequence[str]) -> dict[str, list[str]]:
    """Which classes the true masks have, by name.

    Args:
        confusion: [N, C, C], true class first.
        names: of the classes.

    Returns:
        averaged: those with a pixel, over which `mean_iou_dataset` is a mean. not_in_test: the others.
    """
    there = confusion.sum((0, 2)) > 0
    return {
        "averaged": [name for name, one in zip(names, there, strict=True) if one],
        "not_in_test": [name for name, one in zip(names, there, strict=True) if not one],
    }


def classes_lacking(pack: Pack, rows: np.ndarray) -> list[str]:
    """Classes of which some of a pack's masks have no pixel, by name.

    Args:
        pack: with masks.
        rows: [M], of these masks; read until every class is found.

    Raises:
        InputError: a damaged row.
    """
    names = pack.manifest["mask_classes"]
    there = np.zeros(len(names), bool)
    for start in range(0, len(rows), BLOCK):
        masks = pack.rows("masks", rows[start : start + BLOCK])
        there |= np.bincount(masks.ravel(), minlength=len(names))[: len(names)] > 0
        if there.all():
            break
    return [name for name, one in zip(names, there, strict=True) if not one]


def without_border(confusion: np.ndarray, border: int) -> np.ndarray:
    """Drop the pixels whose true class is the border; predicting it elsewhere still counts as a miss.

    Args:
        confusion: [..., C, C].
        border: the class to ignore.

    Returns:
        [..., C, C] with an empty row for the border.
    """
    out = confusion.copy()
    out[..., border, :] = 0
    return out


def mean_iou_per_image(confusion: np.ndarray, classes: list[int]) -> float:
    """The paper's mIoU: for each image, the sum of the classes' IoU divided by their number, with classes that the
    image lacks counting 0; then the mean over images.

    Args:
        confusion: [N, C, C].
        classes: those to include.
    """
    return float(np.nan_to_num(iou(confusion)[:, classes]).mean())


def summarise(confusion: np.ndarray, names: list[str], border: int | None) -> dict[str, Any]:
    """All metrics of a test set, as fractions; None where undefined.

    Args:
        confusion: [N, C, C].
        names: of the classes.
        border: the class that the two-class metrics ignore; None for data without one.
    """
    every = list(range(len(names)))
    total = confusion.sum(0)
    out: dict[str, float] = {
        "pixel_accuracy": np.trace(total) / max(1, total.sum()),
        "miou_dataset": mean_iou_dataset(confusion, every),
        "miou_per_image": mean_iou_per_image(confusion, every),
    }
    out |= {f"iou_{name}": value for name, value in zip(names, iou(total), strict=True)}
    if border is not None:
        rest = [c for c in every if c != border]
        reduced = without_border(confusion, border)
        # A pixel predicted as 'border' is in no other class's column, so it counts as missed, not as found.
        out["miou_two_class_dataset"] = mean_iou_dataset(reduced, rest)
        out["miou_two_class_per_image"] = mean_iou_per_image(reduced, rest)
    return {k: (float(v) if np.isfinite(v) else None) for k, v in out.items()}


def miou_of_images(values: np.ndarray) -> np.ndarray:
    """Mean IoU of each image over the classes that it has: [N, C], NaN where it has not, to [N]; NaN without any."""
    there = np.isfinite(values)
    return np.divide(np.nansum(values, 1), there.sum(1), out=np.full(len(values), np.nan), where=there.any(1))


def own_size_counts(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Pixels of one image, by class: those found, those that truly are of it, those predicted to be.

    Args:
        truth: uint8 [H, W], class indices; pixels of IGNORE do not count.
        predicted: likewise; where it is IGNORE nothing was predicted, so that the true class is missed.
        classes: C.

    Returns:
        int64 [3, C].
    """
    counted = truth != IGNORE
    truth, predicted = truth[counted], predicted[counted]
    counts = [np.bincount(some, minlength=256)[:classes] for some in (truth[truth == predicted], truth, predicted)]
    return np.stack(counts)


def own_size_iou(counts: np.ndarray) -> np.ndarray:
    """Intersection over union of each class, from `own_size_counts` [..., 3, C]; NaN where no pixel is truly of it."""
    hit, truth, predicted = np.moveaxis(counts, -2, 0)
    return np.divide(hit, truth + predicted - hit, out=np.full(hit.shape, np.nan), where=truth > 0)


def own_size_summary(counts: np.ndarray) -> dict[str, Any]:
    """mIoU of a test set at the images' own size, over all classes as in `summarise`; None where undefined.

    Args:
        counts: [N, 3, C], of `own_size_counts`.
    """
    total = own_size_iou(counts.sum(0))
    found = {
        "own_size_miou_dataset": np.nanmean(total) if np.isfinite(total).any() else np.nan,
        "own_size_miou_per_image": np.nan_to_num(own_size_iou(counts)).mean(),
    }
    return {key: float(value) if np.isfinite(value) else None for key, value in found.items()}


def image_scores(pack: Pack, rows: np.ndarray, confusion: np.ndarray, own: np.ndarray | None) -> pd.DataFrame:
    """What a model scores on each test image, as fractions.

    Args:
        pack: that holds the images.
        rows: [N], theirs in it.
        confusion: [N, C, C].
        own: [N, 3, C], of `own_size_counts`; None where images have no other size than in the pack.

    Returns:
        A row per image: image (its name below its folder), index (in the pack), height and width (its own, upright,
        pixels), miou and own_size_miou (means over the classes that it has), iou_<class> (NaN where it lacks it).
    """
    values = iou(confusion)
    frame = pd.DataFrame({"image": [cell_text(pack.name(row)) for row in rows.tolist()], "index": rows})
    frame[["height", "width"]] = pack.shapes[rows]
    frame["miou"] = miou_of_images(values)
    if own is not None:
        frame["own_size_miou"] = miou_of_images(own_size_iou(own))
    of_class = pd.DataFrame(values, columns=[f"iou_{name}" for name in pack.manifest["mask_classes"]])
    return pd.concat([frame, of_class], axis=1)


def scores_text(frame: pd.DataFrame) -> str:
    """What `image_scores` returns as CSV."""
    return frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")
