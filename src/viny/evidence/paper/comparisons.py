"""The comparisons of cells that claims consist of, and the evidence that they are tested on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy import stats

from viny.evidence.paper.facts import CLASSIFICATION, SPATIAL, TASK
from viny.evidence.tables import GROUP

REPRODUCED, CONTRADICTED, UNTESTABLE = "reproduced", "contradicted", "not testable with this study"
VERDICTS = (REPRODUCED, CONTRADICTED, UNTESTABLE)
LEVEL = 0.95
POINT = 0.01  # the largest distance at which a number counts as reproduced
POINTS = "fraction"  # of mIoU, accuracy or variance: percentage points in Markdown
ONE_SEED = "one seed has no spread"

Key = tuple[str, int, str, int]  # measure, pre-training images, intermediate task, labels (0: of the encoder)
Weights = Mapping[Key, float]


@dataclass(frozen=True)
class Comparison:
    """A weighted sum of cells, plus `offset`, that is positive where the claim holds."""

    label: str
    weights: Weights
    offset: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """The outcome of a claim's test.

    The estimate is that of the deciding comparison: the one with the lowest interval or, if the claim is contradicted,
    what contradicts it. It is positive where the claim holds; `low` and `high` are the ends of its 95 % interval, NaN
    if there is none. `n` is the number of seeds, `comparisons` the number of comparisons.
    """

    estimate: float
    low: float
    high: float
    n: int
    verdict: str
    reason: str
    comparisons: int


class Evidence(ABC):
    """Cells that claims are tested on; `keys` lists them."""

    keys: list[Key]
    tasks: Sequence[str]  # that stand for the task of version 1
    classification: Sequence[str]  # that stand for those of version 2
    spatial: Sequence[str]
    without: str  # why there is no interval, if there is none
    noise: str  # what leaves a comparison undecided

    @abstractmethod
    def intervals(self, comparisons: Sequence[Comparison], level: float) -> tuple[np.ndarray, ...]:
        """Estimates, the ends of their t intervals, and the numbers of seeds.

        Args:
            comparisons: [K], of cells that all exist.
            level: of the intervals.

        Returns:
            estimate, low, high, n: each [K]; NaN where not defined.
        """

    @abstractmethod
    def slope(self, x: Sequence[Comparison], y: Sequence[Comparison]) -> tuple[float, float, float, int]:
        """Slope of y on x over pairs of comparisons, free of the noise that both share.

        Args:
            x: [K], K >= 3.
            y: [K].

        Returns:
            estimate, ends of the 95 % t interval, number of seeds; NaN where not defined.
        """

    def sizes(self, task: str = "none", least: int = 0) -> list[int]:
        """Numbers of pre-training images, `least` or more, for which a task has mIoU."""
        return sorted({p for measure, p, t, _ in self.keys if (measure, t) == ("miou", task) and p >= least})

    def labels(self, pretrain_size: int, task: str) -> list[int]:
        """Label sizes for which a task has mIoU at a number of pre-training images."""
        return sorted({n for m, p, t, n in self.keys if (m, p, t) == ("miou", pretrain_size, task)})

    def has(self, comparison: Comparison) -> bool:
        return all(key in self.keys for key in comparison.weights)

    def _design(self, comparisons: Sequence[Comparison]) -> tuple[np.ndarray, np.ndarray]:
        """Weights [K, cells] and offsets [K]."""
        place = {key: i for i, key in enumerate(self.keys)}
        design = np.zeros((len(comparisons), len(place)))
        for row, comparison in zip(design, comparisons, strict=True):
            for key, weight in comparison.weights.items():
                row[place[key]] += weight
        return design, np.array([c.offset for c in comparisons])


@dataclass(frozen=True)
class Cells(Evidence):
    """A study's cells, seed by seed; a comparison is paired by seed, over the seeds that have all of its cells."""

    keys: list[Key]
    values: np.ndarray  # [seeds, cells], NaN where there is none
    tasks: Sequence[str] = (TASK,)
    classification: Sequence[str] = CLASSIFICATION
    spatial: Sequence[str] = SPATIAL
    without: str = field(default=ONE_SEED, init=False)

    @property
    def noise(self) -> str:
        seeds = np.isfinite(self.values).sum(0)
        least, most = seeds.min(), seeds.max()
        return f"{most} seeds" if least == most else f"{least} to {most} seeds"

    @classmethod
    def of(cls, tidy: pd.DataFrame, spatial: Collection[str] = SPATIAL) -> Cells:
        """Cells of a tidy frame.

        If the paper's tasks are missing, all of the study's classification tasks stand in for them. If one is there,
        others (such as those that differ from it in one thing each) do not count: the paper says nothing about them.

        Args:
            tidy: measure, `KEYS`, value.
            spatial: tasks whose target is each patch.
        """
        wide = tidy.pivot(index="seed", columns=["measure", *GROUP], values="value")
        keys = [(str(m), int(p), str(t), int(n)) for m, p, t, n in wide.columns]
        found = sorted(set(tidy["intermediate"]) - {"none"})
        here = [task for task in found if task not in spatial]
        classification = [task for task in CLASSIFICATION if task in here] or here
        tasks = [TASK] if TASK in here else classification
        return cls(keys, wide.to_numpy(float), tasks, classification, [task for task in found if task in spatial])

    def _per_seed(self, comparisons: Sequence[Comparison]) -> np.ndarray:
        """Values [seeds, K] of comparisons, NaN where a seed lacks a cell."""
        design, offsets = self._design(comparisons)
        absent = np.isnan(self.values).astype(float) @ (design != 0).T > 0
        return np.where(absent, np.nan, np.nan_to_num(self.values) @ design.T + offsets)

    def intervals(self, comparisons: Sequence[Comparison], level: float) -> tuple[np.ndarray, ...]:
        values = self._per_seed(comparisons)
        n = np.isfinite(values).sum(0)
        mean = np.divide(np.nansum(values, 0), n, out=np.full(len(n), np.nan), where=n > 0)
        squares = np.nansum((values - mean) ** 2, 0)
        variance = np.divide(squares, n - 1, out=np.full(len(n), np.nan), where=n > 1)
        half = stats.t.ppf((1 + level) / 2, np.maximum(n - 1, 1)) * np.sqrt(variance / np.maximum(n, 1))
        return mean, mean - half, mean + half, n

    def slope(self, x: Sequence[Comparison], y: Sequence[Comparison]) -> tuple[float, float, float, int]:
        # A cell's noise is in both x and y of a seed, so x is taken from the other seeds (cross-fitting); otherwise
        # noise alone would make the two correlate.
        both = np.stack([self._per_seed(x), self._per_seed(y)])
        mine, own = both[:, np.isfinite(both).all((0, 2))]  # [seeds, K]
        n = len(mine)
        if n < 2:
            return np.nan, np.nan, np.nan, n
        others = (mine.sum(0) - mine) / (n - 1)
        others -= others.mean(1, keepdims=True)
        spread = (others**2).sum(1)
        if not spread.all():
            return np.nan, np.nan, np.nan, n
        slopes = (others * own).sum(1) / spread
        low, high = slopes.mean() + stats.t.ppf([(1 - LEVEL) / 2, (1 + LEVEL) / 2], n - 1) * stats.sem(slopes)
        return float(slopes.mean()), float(low), float(high), n


@dataclass(frozen=True)
class Means(Evidence):
    """Published means with their spread, taken as the standard deviation of independent runs.

    Intervals use the degrees of freedom of Welch (1947) and Satterthwaite (1946).
    """

    keys: list[Key]
    mean: np.ndarray  # [cells]
    spread: np.ndarray  # [cells], NaN where none is given
    runs: np.ndarray  # [cells]
    tasks: Sequence[str] = (TASK,)
    classification: Sequence[str] = CLASSIFICATION
    spatial: Sequence[str] = SPATIAL
    without: str = field(default="the paper gives one value without a spread", init=False)
    noise: str = field(default="3 runs", init=False)

    def _interval(self, estimate: np.ndarray, design: np.ndarray, level: float) -> tuple[np.ndarray, ...]:
        """Intervals of estimates [K], whose derivatives by the means are `design` [K, cells]."""
        # A cell without weight must not spread its NaN.
        parts = np.where(design != 0, design**2 * self.spread**2 / self.runs, 0.0)
        variance = parts.sum(1)
        freedom = variance**2 / np.where(design != 0, parts**2 / (self.runs - 1), 0.0).sum(1)
        half = stats.t.ppf((1 + level) / 2, freedom) * np.sqrt(variance)
        runs = np.where(design != 0, np.nan_to_num(self.runs, nan=1), np.inf).min(1)
        return estimate, estimate - half, estimate + half, runs.astype(int)

    def intervals(self, comparisons: Sequence[Comparison], level: float) -> tuple[np.ndarray, ...]:
        design, offsets = self._design(comparisons)
        return self._interval(design @ self.mean + offsets, design, level)

    def slope(self, x: Sequence[Comparison], y: Sequence[Comparison]) -> tuple[float, float, float, int]:
        # By the delta method. The noise that harm and gain share cannot be removed from means alone. It comes to about
        # the mean variance of a gain over the variance of the gains, which is small with the paper's spreads.
        (of_x, add_x), (of_y, add_y) = self._design(x), self._design(y)
        centred = of_x @ self.mean + add_x
        centred -= centred.mean()
        outcome = of_y @ self.mean + add_y
        outcome -= outcome.mean()
        spread = centred @ centred
        if not spread:
            return np.nan, np.nan, np.nan, 0
        slope = centred @ outcome / spread
        gradient = (centred @ of_y + (outcome - 2 * slope * centred) @ of_x) / spread
        found = self._interval(np.array([slope]), gradient[None], LEVEL)
        estimate, low, high, n = (value[0] for value in found)
        return float(estimate), float(low), float(high), int(n)


def everywhere(evidence: Evidence, comparisons: Sequence[Comparison], needs: str) -> Outcome:
    """Test that every comparison is positive.

    An intersection-union test (Berger 1982): reproduced only if every comparison's 95 % interval lies above zero.
    Contradicted if the interval of their mean lies below zero, or that of one of them at the level that Bonferroni's
    correction requires; so a true claim is contradicted in 5 % of studies at most.

    Args:
        evidence: the cells.
        comparisons: those with missing cells are left out.
        needs: what the study would need; the reason given if no comparison is left.
    """
    comparisons = [c for c in comparisons if evidence.has(c)]
    count = len(comparisons)
    if not count:
        return Outcome(np.nan, np.nan, np.nan, 0, UNTESTABLE, f"needs {needs}", 0)
    estimate, low, high, n = evidence.intervals(comparisons, LEVEL)
    favour, against = int((low > 0).sum()), int((high < 0).sum())
    score = f"{favour} of {count} comparison{'s' * (count > 1)} in its favour, {against} against"
    lowest = _lowest(low, estimate)
    shown = float(estimate[lowest]), float(low[lowest]), float(high[lowest]), int(n[lowest])
    where = comparisons[lowest].label
    if favour == count:
        return Outcome(*shown, REPRODUCED, f"{score}; weakest: {where}", count)
    cause = _contradiction(evidence, comparisons)
    if cause is not None:
        label, *values = cause
        return Outcome(*values, CONTRADICTED, f"{score}; {label}", count)
    if not np.isfinite(low).any():
        reason = "no seed has all the cells of a comparison" if not n.any() else evidence.without
        return Outcome(*shown, UNTESTABLE, reason, count)
    undecided = count - favour - against
    reason = f"{score}; {evidence.noise} leave {undecided} undecided; weakest: {where}"
    return Outcome(*shown, UNTESTABLE, reason, count)


def _lowest(low: np.ndarray, estimate: np.ndarray) -> int:
    """Place of the lowest interval, or of the lowest estimate if there are no intervals."""
    for values in (low, estimate):
        if np.isfinite(values).any():
            return int(np.nanargmin(values))
    return 0


def _contradiction(
    evidence: Evidence, comparisons: Sequence[Comparison]
) -> tuple[str, float, float, float, int] | None:
    """What speaks against all comparisons being positive, as (words, estimate, low, high, n); None if nothing does."""
    count = len(comparisons)
    weights: dict[Key, float] = {}
    for comparison in comparisons:
        for key, weight in comparison.weights.items():
            weights[key] = weights.get(key, 0.0) + weight / count
    mean = Comparison("", weights, sum(c.offset for c in comparisons) / count)
    pooled = [value[0] for value in evidence.intervals([mean], LEVEL)]
    if pooled[2] < 0:
        words = "their mean is against it" if count > 1 else comparisons[0].label
        return words, *map(float, pooled[:3]), int(pooled[3])
    corrected = evidence.intervals(comparisons, 1 - (1 - LEVEL) / count)[2]
    if not (corrected < 0).any():
        return None
    worst = int(np.nanargmin(corrected))
    values = [value[worst] for value in evidence.intervals(comparisons, LEVEL)]
    words = f"against it even after Bonferroni's correction: {comparisons[worst].label}"
    return words, *map(float, values[:3]), int(values[3])
