"""Segmentation metrics, all from per-image confusion matrices.

A mean over classes is over those that the true masks have, whatever is predicted: else one stray pixel of a class that
no mask has would put another 0 into the mean. Only the paper's mean over images counts every class in every image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from viny.data.pack import BLOCK, Pack
from viny.learning.scores import iou, mean_iou_dataset


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
