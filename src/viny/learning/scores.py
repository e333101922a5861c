"""What predictions are scored by: confusion matrices, and the intersection over union that they give."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from viny.data.masks import IGNORE

if TYPE_CHECKING:
    from torch import Tensor


def confusion_matrices(truth: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """Confusion matrices, one per image.

    Args:
        truth: integer [B, H, W], each in 0 to classes - 1, or IGNORE for a pixel that does not count.
        predicted: likewise, but always a class.
        classes: C.

    Returns:
        int64 [B, C, C]; entry [b, t, p] counts pixels of class t that were predicted p.
    """
    import torch  # here, so that what reads confusion matrices need not load it

    b, bins = len(truth), classes**2 + 1  # the last of an image's bins is for the pixels that do not count
    kind = torch.int32 if b * bins < 1 << 31 else torch.int64
    code = torch.where(truth == IGNORE, bins - 1, truth.to(kind) * classes + predicted.to(kind))
    code += torch.arange(0, b * bins, bins, dtype=kind, device=truth.device).view(b, 1, 1)
    counts = torch.bincount(code.flatten(), minlength=b * bins).view(b, bins)
    return counts[:, :-1].reshape(b, classes, classes)


def iou(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union of each class.

    Args:
        confusion: [..., C, C], true class first.

    Returns:
        float [..., C]; NaN where no pixel is truly of a class.
    """
    hit = np.diagonal(confusion, axis1=-2, axis2=-1).astype(float)
    truth = confusion.sum(-1)
    union = truth + confusion.sum(-2) - hit
    return np.divide(hit, union, out=np.full(hit.shape, np.nan), where=truth > 0)


def mean_iou_dataset(confusion: np.ndarray, classes: list[int]) -> float:
    """The field's mIoU: from one confusion matrix over all images; classes that no mask has are left out."""
    values = iou(confusion.sum(0))[classes]
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
