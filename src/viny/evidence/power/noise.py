"""How cells share their noise, so that it can be foretold for a grid that nobody has run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.optimize import nnls

Key = tuple[int, str, int]  # pre-training images, intermediate task, labels
Factors = tuple[int, ...]  # places in a key
EVERY: Factors = (0, 1, 2)  # noise of a cell alone
TINY = 1e-9


@dataclass(frozen=True)
class Shared:
    """Variance components of cells, crossed by pre-train size, task and labels (Searle, Casella and McCulloch 1992).

    Attributes:
        parts: the variance that cells share which are equal in these factors; () is shared by all.
    """

    parts: Mapping[Factors, float]

    @classmethod
    def fitted(cls, covariance: np.ndarray, keys: Sequence[Key]) -> Shared:
        """The components that come closest to a covariance, by least squares and none below zero.

        Args:
            covariance: [C, C]; NaN where unknown.
            keys: of the C cells. Factors that the cells do not tell apart count as those that share least.
        """
        found: dict[Factors, np.ndarray] = {}
        for factors in (some for count in (3, 2, 1, 0) for some in combinations(EVERY, count)):
            design = _equal(keys, factors)
            if not any(np.array_equal(design, other) for other in found.values()):
                found[factors] = design
        known = np.isfinite(covariance)
        parts, _ = nnls(np.stack([design[known] for design in found.values()], 1).astype(float), covariance[known])
        least = TINY * parts.max(initial=0)  # what rounding leaves
        return cls({factors: float(part) for factors, part in zip(found, parts, strict=True) if part > least})

    @property
    def variance(self) -> float:
        """Of one cell."""
        return sum(self.parts.values())

    def covariance(self, keys: Sequence[Key]) -> np.ndarray:
        """[C, C] of any cells."""
        return sum((part * _equal(keys, of) for of, part in self.parts.items()), np.zeros((len(keys), len(keys))))

    def scaled(self, factor: float) -> Shared:
        return Shared({factors: factor * part for factors, part in self.parts.items()})

    @property
    def difference(self) -> float:
        """Variance of a difference between two cells that are unlike in all."""
        return 2 * (self.variance - self.parts.get((), 0.0))


def _equal(keys: Sequence[Key], factors: Factors) -> np.ndarray:
    """Which pairs of cells are equal in some factors, [C, C]."""
    same = np.ones((len(keys), len(keys)), bool)
    for place in factors:
        values = np.array([str(key[place]) for key in keys])
        same &= values[:, None] == values
    return same
