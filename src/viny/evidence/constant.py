"""The answer that takes no model: every pixel of the class that is the commonest in the training masks."""

from __future__ import annotations

from typing import Any

import numpy as np

from viny.data.masks import IGNORE
from viny.data.pack import BLOCK, Pack
from viny.evidence.metrics import summarise


def commonest(pack: Pack, rows: np.ndarray) -> int:
    """The class that most pixels of some masks have; of several, the one listed first.

    Args:
        pack: with masks.
        rows: [M], of these masks.

    Raises:
        InputError: a damaged row.
    """
    counts = np.zeros(IGNORE + 1, np.int64)
    for start in range(0, len(rows), BLOCK):
        counts += np.bincount(pack.rows("masks", rows[start : start + BLOCK]).ravel(), minlength=IGNORE + 1)
    return int(counts[: len(pack.manifest["mask_classes"])].argmax())


def constant_answer(matrices: np.ndarray, answer: int) -> np.ndarray:
    """Confusion matrices [N, C, C] of one class everywhere, from those of any other prediction for the same images."""
    found = np.zeros_like(matrices)
    found[..., answer] = matrices.sum(-1)
    return found


def with_miou(matrices: np.ndarray, names: list[str], border: int | None, kind: str) -> dict[str, Any]:
    """All metrics of confusion matrices [N, C, C], as fractions; `miou` is that of the study's kind.

    Args:
        matrices: true class first.
        names: of the classes.
        border: see `metrics.summarise`.
        kind: dataset or per_image.
    """
    found = summarise(matrices, names, border)
    return found | {"miou": found[f"miou_{kind}"]}
