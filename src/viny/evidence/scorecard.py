"""The scorecard: the paper's numbers and its claims in words, held against a study.

A claim is a tested predicate over cells. It needs the structure of the paper's grid (some pre-training, an
intermediate task, several label sizes), not its sizes, so any study can test it, and so can the paper's own numbers.

Three verdicts, for claims and numbers alike:

reproduced: a claim's every comparison has its 95 % t interval on the claim's side (intersection-union test, Berger
1982: no correction is needed). A number is no more than a point away, and Welch's t test does not tell the two apart.

contradicted: a claim's mean over all comparisons has its interval wholly on the other side, or one comparison has it
there after Bonferroni's correction over all of them; without the correction, a true claim over many comparisons would
often be contradicted by chance. A number that Welch's t test (two-sided, 5 %) tells from the paper's.

not testable with this study: anything else, with the reason.

Metrics are fractions in [0, 1] in frames and CSV, percent or percentage points in Markdown.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from viny.errors import InputError
from viny.evidence.tables import GROUP, KEYS, read_metrics, to_markdown, write_csv
from viny.files import atomic_path

PAPER = Path(__file__).with_name("paper.csv")
REPRODUCED, CONTRADICTED, UNTESTABLE = "reproduced", "contradicted", "not testable with this study"
VERDICTS = (REPRODUCED, CONTRADICTED, UNTESTABLE)
PROTOCOLS = ("paper", "sound")  # the first that can tell is the one that a verdict is about
LEVEL = 0.95
POINT = 0.01  # the largest distance of a number that counts as reproduced
SHARE = 0.1  # the same for a variance, as a part of the paper's value
TASK = "intel"  # version 1 has no other
CLASSIFICATION = ("intel", "pets_classes")  # of version 2
SPATIAL = ("pets_spatial",)
REGIMES = {"none": "pre-trained", "intel": "CLS-Intel", "pets_classes": "CLS-Pets", "pets_spatial": "Spatial"}
GEOMETRY = ["within_image_variance", "across_image_variance", "probe_paper", "probe_accuracy", "within_share"]
ROUNDING = {"within_image_variance": 0.005, "across_image_variance": 0.005, "probe_paper": 0.0005}  # of Table 2
NAMES = {"accuracy": "pixel accuracy", "miou": "mIoU", "probe_paper": "patch probe, training accuracy"}
INCOMPARABLE = "the study's model, data or lengths differ from the paper's"
ONE_SEED = "one seed has no spread"

COLUMNS = [
    *("kind", "key", "table", "what", "value_is", "unit", "paper", "paper_spread", "paper_low", "paper_high"),
    *("ours_paper", "ours_paper_sd", "ours_paper_low", "ours_paper_high", "n_paper"),
    *("ours_sound", "ours_sound_sd", "ours_sound_low", "ours_sound_high", "n_sound"),
    *("protocol", "difference", "standard_errors", "verdict", "reason"),
    *("under_paper", "under_sound", "paper_verdict", "paper_reason"),
]

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
    """What a claim's test says.

    The estimate is of the comparison that decides: the one with the lowest interval, or where the claim is
    contradicted, what contradicts it. It is positive where the claim holds; `low` and `high` end its 95 % interval
    and are NaN where there is none. `n` is the number of seeds, `comparisons` how many there were.
    """

    estimate: float
    low: float
    high: float
    n: int
    verdict: str
    reason: str
    comparisons: int


class Evidence(ABC):
    """Cells that claims are tested on; `keys` says which there are."""

    keys: list[Key]
    tasks: Sequence[str]  # that stand for the one of version 1
    classification: Sequence[str]  # that stand for those of version 2
    spatial: Sequence[str]
    without: str  # why there is no interval where there is none
    noise: str  # what leaves a comparison undecided

    @abstractmethod
    def intervals(self, comparisons: Sequence[Comparison], level: float) -> tuple[np.ndarray, ...]:
        """Estimates, their t intervals' ends, and the numbers of seeds.

        Args:
            comparisons: [K], of cells that there are.
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
        """Numbers of pre-training images with mIoU under a task, `least` or more."""
        return sorted({p for measure, p, t, _ in self.keys if (measure, t) == ("miou", task) and p >= least})

    def labels(self, pretrain_size: int, task: str) -> list[int]:
        """Label sizes with mIoU at a number of pre-training images under a task."""
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

        Where the paper's tasks are missing, all classification tasks of the study stand for them. Where one is there,
        others (such as those that differ from it in one thing each) do not count: the paper says nothing of them.

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
        # A cell's noise is in both x and y of a seed, so x is taken from the other seeds (cross-fitting); else
        # the two would go together where there is nothing but noise.
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

    Intervals have the degrees of freedom of Welch (1947) and Satterthwaite (1946).
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
        """Intervals of estimates [K] that change with the means as `design` [K, cells] says."""
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
        # By the delta method. What harm and gain owe to the noise that they share cannot be taken out of means alone:
        # about the mean variance of a gain over the variance of the gains, which the paper's spreads make small.
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


@dataclass(frozen=True)
class Claim:
    """A claim of the paper in words, and its test."""

    key: str
    words: str
    source: str
    estimate_is: str  # what the estimate is, positive where the claim holds
    unit: str
    test: Callable[[Evidence], Outcome]


def everywhere(evidence: Evidence, comparisons: Sequence[Comparison], needs: str) -> Outcome:
    """Test that every comparison is positive.

    An intersection-union test (Berger 1982): reproduced only if every comparison's 95 % interval lies above zero.
    Contradicted if the interval of their mean lies below zero, or that of one of them at the level that Bonferroni's
    correction asks for; so a true claim is contradicted in 5 % of studies at most.

    Args:
        evidence: the cells.
        comparisons: those of cells that are not there are left out.
        needs: what the study would need, if none is left, for the reason.
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
    """Place of the lowest interval; of the lowest estimate where there are no intervals."""
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


def _mix(*terms: tuple[float, Weights]) -> dict[Key, float]:
    """A weighted sum of weighted sums."""
    out: dict[Key, float] = {}
    for factor, weights in terms:
        for key, weight in weights.items():
            out[key] = out.get(key, 0.0) + factor * weight
    return out


def _miou(pretrain_size: int, task: str, labels: int) -> Weights:
    return {("miou", pretrain_size, task, labels): 1.0}


def _gain(size: int, labels: int, task: str = "none") -> dict[Key, float]:
    """mIoU after pre-training (and a task) minus that from a random start."""
    return _mix((1, _miou(size, task, labels)), (-1, _miou(0, "none", labels)))


def _harm(size: int, labels: int, task: str) -> dict[Key, float]:
    """What a task costs: mIoU without it minus mIoU with it."""
    return _mix((1, _miou(size, "none", labels)), (-1, _miou(size, task, labels)))


def _trend(sizes: Sequence[int], degree: int) -> np.ndarray:
    """Weights [len(sizes)] that give a least-squares polynomial's leading coefficient in log2 of the size."""
    return np.linalg.pinv(np.vander(np.log2(sizes), degree + 1))[0]


def _words(size: int, labels: int | None = None, task: str = "none", part: str = "") -> str:
    """A cell in words."""
    words = [_images(size)]
    words += [task] if task != "none" else []
    words += [f"{labels:,} labels"] if labels else []
    return ", ".join([*words, *([part] if part else [])])


def _images(size: int) -> str:
    return f"{size:,} pre-training images" if size else "no pre-training"


def _pretraining_helps(evidence: Evidence, last: bool = False) -> Outcome:
    """At every label size, or at each number of pre-training images' `last` one."""
    comparisons = []
    for p in evidence.sizes(least=1):
        labels = [n for n in evidence.labels(p, "none") if n in evidence.labels(0, "none")]
        comparisons += [Comparison(_words(p, n), _gain(p, n)) for n in labels[-1 if last else 0 :]]
    return everywhere(evidence, comparisons, "cells with and without pre-training at one label size")


def _pretraining_monotone(evidence: Evidence) -> Outcome:
    comparisons = [
        Comparison(
            f"{few:,} to {many:,} pre-training images, {n:,} labels",
            _mix((1, _miou(many, "none", n)), (-1, _miou(few, "none", n))),
        )
        for few, many in pairwise(evidence.sizes(least=1))
        for n in evidence.labels(few, "none")
    ]
    return everywhere(evidence, comparisons, "two numbers of pre-training images beside none")


def _returns(sizes: Sequence[int], cell: Callable[[int], Weights], where: str, of: str, per: int) -> list[Comparison]:
    """That the gain per `per` images is lower above each inner size than below it, and that there is a gain at all."""
    if len(sizes) < 3:
        return []

    def gain(few: int, many: int) -> dict[Key, float]:
        return _mix((per / (many - few), cell(many)), (-per / (many - few), cell(few)))

    return [
        Comparison(f"{where}, there is a gain", gain(sizes[0], sizes[-1])),
        *(
            Comparison(f"{where}, around {b:,} {of}", _mix((1, gain(a, b)), (-1, gain(b, c))))
            for a, b, c in zip(sizes, sizes[1:], sizes[2:], strict=False)
        ),
    ]


def _returns_by_doubling(sizes: Sequence[int], cell: Callable[[int], Weights], where: str) -> list[Comparison]:
    """That the gain per doubling falls with each further doubling, and that there is a gain at all.

    The fall is minus twice the quadratic coefficient in log2 of the size.
    """
    if len(sizes) < 3:
        return []
    doublings = np.log2(sizes[-1] / sizes[0])
    return [
        Comparison(
            f"{where}, there is a gain", _mix((1 / doublings, cell(sizes[-1])), (-1 / doublings, cell(sizes[0])))
        ),
        Comparison(where, _mix(*zip(-2 * _trend(sizes, 2), map(cell, sizes), strict=True))),
    ]


def _pretraining_diminishes(evidence: Evidence, doubling: bool) -> Outcome:
    comparisons: list[Comparison] = []
    for n in sorted({n for p in evidence.sizes() for n in evidence.labels(p, "none")}):
        sizes = [p for p in evidence.sizes(least=int(doubling)) if n in evidence.labels(p, "none")]
        where, cell = f"{n:,} labels", partial(_miou, task="none", labels=n)
        if doubling:
            comparisons += _returns_by_doubling(sizes, cell, where)
        else:
            comparisons += _returns(sizes, cell, where, "pre-training images", 10_000)
    needs = "three numbers of pre-training images, " + ("none of them zero" if doubling else "one of which may be zero")
    return everywhere(evidence, comparisons, needs)


def _regimes(evidence: Evidence) -> list[tuple[int, str]]:
    """Pre-train sizes and tasks that curves over labels are drawn for."""
    return [(p, task) for task in ("none", *evidence.tasks) for p in evidence.sizes(task)]


def _labels_help(evidence: Evidence) -> Outcome:
    comparisons = [
        Comparison(
            f"{_words(p, task=task)}, {few:,} to {many:,} labels",
            _mix((1, _miou(p, task, many)), (-1, _miou(p, task, few))),
        )
        for p, task in _regimes(evidence)
        for few, many in pairwise(evidence.labels(p, task))
    ]
    return everywhere(evidence, comparisons, "two label sizes")


def _labels_diminish(evidence: Evidence, doubling: bool) -> Outcome:
    comparisons: list[Comparison] = []
    for p, task in _regimes(evidence):
        where, labels, cell = _words(p, task=task), evidence.labels(p, task), partial(_miou, p, task)
        if doubling:
            comparisons += _returns_by_doubling(labels, cell, where)
        else:
            comparisons += _returns(labels, cell, where, "labels", 1000)
    return everywhere(evidence, comparisons, "three label sizes")


def _against_labels(
    evidence: Evidence, sizes: Iterable[int], tasks: Iterable[str], what: Callable[[int, int, str], Weights]
) -> list[Comparison]:
    """That `what` falls with each doubling of labels, and is there at the fewest, for each pre-train size and task.

    What is there at the fewest is spread over the doublings, so that both are per doubling.
    """
    comparisons = []
    for p in sizes:
        for task in tasks:
            labels = [
                n
                for n in evidence.labels(p, task)
                if all(key in evidence.keys for key in what(p, n, task))  # nothing is known of the others
            ]
            if len(labels) > 1:
                where, doublings = _words(p, task=task), np.log2(labels[-1] / labels[0])
                terms = zip(-_trend(labels, 1), (what(p, n, task) for n in labels), strict=True)
                start = _mix((1 / doublings, what(p, labels[0], task)))
                comparisons.append(Comparison(f"{where}, there is one at {labels[0]:,} labels", start))
                comparisons.append(Comparison(where, _mix(*terms)))
    return comparisons


def _worth_less_with_labels(evidence: Evidence) -> Outcome:
    comparisons = _against_labels(evidence, evidence.sizes(least=1), ["none"], _gain)
    return everywhere(evidence, comparisons, "cells with and without pre-training at two label sizes")


def _task_cells(evidence: Evidence, tasks: Iterable[str]) -> list[tuple[int, int, str]]:
    """Pre-train size above zero, label size and task of the cells with one of the tasks."""
    return [(p, n, task) for task in tasks for p in evidence.sizes(task, least=1) for n in evidence.labels(p, task)]


NEEDS_TASK = "pre-trained cells with and without a classification task"


def _classification_hurts(evidence: Evidence) -> Outcome:
    comparisons = [Comparison(_words(*cell), _harm(*cell)) for cell in _task_cells(evidence, evidence.tasks)]
    return everywhere(evidence, comparisons, NEEDS_TASK)


def _harm_shrinks(evidence: Evidence) -> Outcome:
    comparisons = _against_labels(evidence, evidence.sizes(least=1), evidence.tasks, _harm)
    return everywhere(evidence, comparisons, f"{NEEDS_TASK} at two label sizes")


def _harm_follows_gain(evidence: Evidence) -> Outcome:
    pairs = [
        (Comparison(_words(*cell), _gain(*cell[:2])), Comparison(_words(*cell), _harm(*cell)))
        for cell in _task_cells(evidence, evidence.tasks)
    ]
    pairs = [(x, y) for x, y in pairs if evidence.has(x) and evidence.has(y)]
    count = len(pairs)
    if count < 3:
        reason = f"needs {NEEDS_TASK} and cells without pre-training, at three sizes or more"
        return Outcome(np.nan, np.nan, np.nan, 0, UNTESTABLE, reason, 0)
    estimate, low, high, n = evidence.slope([x for x, _ in pairs], [y for _, y in pairs])
    over = f"slope over {count} cells"
    if low > 0:
        return Outcome(estimate, low, high, n, REPRODUCED, f"{over} is above zero", count)
    if high < 0:
        return Outcome(estimate, low, high, n, CONTRADICTED, f"{over} is below zero", count)
    reason = f"{over} is undecided with {evidence.noise}" if np.isfinite(low) else evidence.without
    return Outcome(estimate, low, high, n, UNTESTABLE, reason, count)


def _gain_survives(evidence: Evidence) -> Outcome:
    comparisons = [Comparison(_words(*cell), _gain(*cell)) for cell in _task_cells(evidence, evidence.tasks)]
    return everywhere(evidence, comparisons, f"{NEEDS_TASK}, and cells with neither")


def _geometry_changes(evidence: Evidence, measure: str, sign: int, spatial: bool = False) -> Outcome:
    """Whether each task moves a measure of the encoder up (sign 1) or down (-1) from the pre-trained one's."""
    comparisons = [
        Comparison(_words(p, task=task), {(measure, p, task, 0): sign, (measure, p, "none", 0): -sign})
        for task in (evidence.spatial if spatial else evidence.classification)
        for p in sorted({p for m, p, *_ in evidence.keys if m == measure and p})
    ]
    kind = "spatial" if spatial else "classification"
    return everywhere(evidence, comparisons, f"the geometry of pre-trained encoders with and without a {kind} task")


def _spatial_does_not_hurt(evidence: Evidence) -> Outcome:
    comparisons = []
    for p, n, task in _task_cells(evidence, evidence.spatial):
        keeps = _mix((-1, _harm(p, n, task)))
        comparisons.append(Comparison(_words(p, n, task, "loss below 1 point"), keeps, POINT))
        for other in evidence.classification:
            better = _mix((1, _miou(p, task, n)), (-1, _miou(p, other, n)))
            comparisons.append(Comparison(_words(p, n, task, f"better than {other}"), better))
    both = any(c.offset == 0 and evidence.has(c) for c in comparisons)
    needs = "pre-trained cells with a spatial task, with a classification task and with none"
    return everywhere(evidence, comparisons if both else [], needs)


def _harm_is_erasure(evidence: Evidence) -> Outcome:
    comparisons = []
    for p, n, task in _task_cells(evidence, evidence.tasks):
        halved = _mix((1, _harm(p, n, task)), (-2, _harm(0, n, task)))
        if all(key in evidence.keys for key in halved):
            comparisons.append(Comparison(_words(p, n, task, "there is a loss"), _harm(p, n, task)))
            comparisons.append(Comparison(_words(p, n, task, "loss more than twice that of a random start"), halved))
    return everywhere(evidence, comparisons, "cells with the task and without pre-training, which the paper omits")


POINTS = "fraction"  # of mIoU, accuracy or variance: percentage points in Markdown
CLAIMS = [
    Claim(
        "pretraining_helps",
        "Pre-training helps at every label size.",
        "abstract and section 4",
        "mIoU with pre-training minus without",
        POINTS,
        _pretraining_helps,
    ),
    Claim(
        "pretraining_monotone",
        "More pre-training images help more.",
        "section 4",
        "mIoU with more images minus with fewer",
        POINTS,
        _pretraining_monotone,
    ),
    Claim(
        "pretraining_diminishes",
        "The returns of pre-training images diminish: each further image buys less.",
        "abstract and section 4",
        "gain per 10,000 images below a size minus that above it",
        "fraction per 10,000 images",
        partial(_pretraining_diminishes, doubling=False),
    ),
    Claim(
        "pretraining_diminishes_by_doubling",
        "The returns of pre-training images diminish even by doublings (a stronger reading).",
        "abstract and section 4",
        "fall of the gain per doubling with each further doubling",
        "fraction per doubling",
        partial(_pretraining_diminishes, doubling=True),
    ),
    Claim(
        "labels_help",
        "More labels always help.",
        "abstract and section 4",
        "mIoU with more labels minus with fewer",
        POINTS,
        _labels_help,
    ),
    Claim(
        "labels_diminish",
        "The returns of labels diminish: each further label buys less.",
        "abstract and section 4",
        "gain per 1,000 labels below a size minus that above it",
        "fraction per 1,000 labels",
        partial(_labels_diminish, doubling=False),
    ),
    Claim(
        "labels_diminish_by_doubling",
        "The returns of labels diminish even by doublings (a stronger reading).",
        "abstract and section 4",
        "fall of the gain per doubling with each further doubling",
        "fraction per doubling",
        partial(_labels_diminish, doubling=True),
    ),
    Claim(
        "pretraining_worth_less_with_labels",
        "Pre-training is worth less the more labels there are.",
        "section 4",
        "fall of pre-training's gain per doubling of labels",
        "fraction per doubling",
        _worth_less_with_labels,
    ),
    Claim(
        "pretraining_leads_at_most_labels",
        "Labels cannot make up for pre-training: it leads at the most labels too.",
        "section 4",
        "mIoU with pre-training minus without, at the largest label size",
        POINTS,
        partial(_pretraining_helps, last=True),
    ),
    Claim(
        "classification_hurts_everywhere",
        "The intermediate classification hurts at every pre-train and label size.",
        "sections 3 and 4",
        "mIoU without the task minus with it",
        POINTS,
        _classification_hurts,
    ),
    Claim(
        "harm_shrinks_with_labels",
        "Its harm shrinks with labels.",
        "section 4",
        "fall of the harm per doubling of labels",
        "fraction per doubling",
        _harm_shrinks,
    ),
    Claim(
        "harm_follows_gain",
        "Its harm is larger where pre-training helps more.",
        "section 4 and abstract v2",
        "slope of the harm against pre-training's gain over cells",
        "points of harm per point of gain",
        _harm_follows_gain,
    ),
    Claim(
        "gain_survives_classification",
        "Even after the intermediate classification, pre-training leaves a gain.",
        "Tables 1 and A3",
        "mIoU with pre-training and the task minus with neither",
        POINTS,
        _gain_survives,
    ),
    Claim(
        "classification_raises_across_variance",
        "Classification raises the variance across images.",
        "Table 2 of v2",
        "log2 of the variance with the task over that without",
        "log2 of a ratio",
        partial(_geometry_changes, measure="log2_across", sign=1),
    ),
    Claim(
        "classification_lowers_within_share",
        "Classification collapses spatial structure: the within-image share of variance falls.",
        "abstract and Table 2 of v2",
        "within share without the task minus with it",
        POINTS,
        partial(_geometry_changes, measure="within_share", sign=-1),
    ),
    Claim(
        "classification_lowers_probe",
        "Classification lowers the patch probe.",
        "Table 2 of v2",
        "probe accuracy without the task minus with it",
        POINTS,
        partial(_geometry_changes, measure="probe", sign=-1),
    ),
    Claim(
        "spatial_raises_probe",
        "Spatial supervision raises the patch probe.",
        "Table 2 of v2",
        "probe accuracy with the task minus without it",
        POINTS,
        partial(_geometry_changes, measure="probe", sign=1, spatial=True),
    ),
    Claim(
        "spatial_does_not_hurt",
        "Spatial supervision does not hurt downstream where classification does.",
        "v2, the regimes of Table 2",
        "mIoU with spatial supervision minus with classification; or minus without any task, plus 1 point",
        POINTS,
        _spatial_does_not_hurt,
    ),
    Claim(
        "harm_is_erasure",
        "The loss comes from erasing pre-training and not from a bad start.",
        "section 4 and abstract v2",
        "harm after pre-training; or harm after pre-training minus twice that after none",
        POINTS,
        _harm_is_erasure,
    ),
]


@cache
def _paper() -> pd.DataFrame:
    return pd.read_csv(PAPER, dtype={"table": str})


def paper_facts() -> pd.DataFrame:
    """The paper's numbers.

    Returns:
        A row a number: table ('1', 'A2', 'A3'; '2' of version 2), pretrain_size, intermediate, finetune_size (0 in
        Table 2, whose encoders are not fine-tuned), metric (accuracy, miou; within_image_variance,
        across_image_variance, probe_paper), mean and spread (fractions; variances as they are), runs. Table 2 has no
        spread and no runs.
    """
    return _paper().copy()


def _paper_evidence() -> Means:
    """The paper's numbers as claims are tested on them."""
    facts = paper_facts().rename(columns={"metric": "measure"})
    facts["measure"] = facts["measure"].replace({"probe_paper": "probe"})
    encoders = facts[facts["table"] == "2"].pivot(index=GROUP, columns="measure", values="mean").reset_index()
    within, across = encoders["within_image_variance"], encoders["across_image_variance"]
    encoders = encoders.assign(log2_across=np.log2(across), within_share=within / (within + across))
    derived = encoders.melt(GROUP, ["log2_across", "within_share"], "measure", "mean")
    facts = pd.concat([facts, derived], ignore_index=True)
    keys = [(r.measure, r.pretrain_size, r.intermediate, r.finetune_size) for r in facts.itertuples()]
    return Means(keys, *(facts[name].to_numpy(float) for name in ("mean", "spread", "runs")))


def claims_on_paper() -> pd.DataFrame:
    """Which of its claims the paper's own numbers support.

    The paper does not define its ±; it is taken as the standard deviation of 3 independent runs.

    Returns:
        A row a claim: key, words, source, estimate_is, unit, estimate, low, high, verdict, reason.
    """
    evidence = _paper_evidence()
    rows = []
    for claim in CLAIMS:
        outcome = claim.test(evidence)
        rows.append(
            {name: getattr(claim, name) for name in ("key", "words", "source", "estimate_is", "unit")}
            | {name: getattr(outcome, name) for name in ("estimate", "low", "high", "verdict", "reason")}
        )
    return pd.DataFrame(rows)


def scorecard(
    frames: Mapping[str, pd.DataFrame],
    geometry: Mapping[str, pd.DataFrame] | None = None,
    comparable: bool | str = True,
    spatial: Collection[str] = SPATIAL,
) -> pd.DataFrame:
    """Hold a study against the paper: its claims in words, then its numbers.

    Numbers are compared under the paper's definitions, under both protocols: mIoU averaged over images where the frame
    has it, and the probe's training accuracy. Claims are tested on the mIoU at the head of the protocol's tables, and
    on the probe that it stands for: held out under 'sound', training accuracy under 'paper'. A verdict is about
    protocol 'paper' where that study can tell, else about 'sound'.

    The paper does not define its ±; it is taken as the standard deviation of 3 runs. Table 2 has one encoder without
    one; it is held against the interval that one more encoder of the study would lie in (95 %), and its rounding.

    Args:
        frames: what `tables.read_metrics` returns, by protocol ('paper', 'sound'); one or both.
        geometry: what `geometry.read_geometry` returns, or its rows of the output layer alone, by protocol.
        comparable: whether numbers can be held against the paper's: False or the reason where model, data or lengths
            differ. Claims are tested all the same.
        spatial: tasks whose target is each patch; they stand for version 2's spatial supervision.

    Returns:
        `COLUMNS`, a row a claim and a row a number. kind is 'claim' or 'number'; table is the paper's table or section;
        unit is of all values. Of a number, `paper` and `ours_*` are means over runs with their standard deviation
        (ddof = 1) and, of ours, the mean's 95 % t interval; `standard_errors` is the difference (ours minus the
        paper's) over the root of the sum of both squared standard errors. Of a claim they are the estimate and its
        95 % interval, positive where the claim holds. `protocol` says which of ours `verdict`, `reason` and
        `difference` are about; `under_paper` and `under_sound` are the verdicts of each, empty where not given.
        `paper_verdict` says whether the paper's own numbers support its claim.

    Raises:
        InputError: no frame, an unknown protocol, a frame of another one, a missing column or a cell given twice.
    """
    geometry = geometry or {}
    if not frames:
        raise InputError("no frames given for the scorecard; pass the metrics of one study at least")
    for name in (*frames, *geometry):
        if name not in PROTOCOLS:
            raise InputError(f"unknown protocol '{name}' of the scorecard; known are {', '.join(PROTOCOLS)}")
        if name not in frames:
            raise InputError(f"geometry of protocol '{name}' has no metrics beside it; pass that study's frame too")
    given = [name for name in PROTOCOLS if name in frames]
    tidy = {name: _tidy(frames[name], geometry.get(name), name) for name in given}
    rows = [*_claim_rows(tidy, spatial), *_number_rows(tidy, comparable)]
    table = pd.DataFrame(rows, columns=COLUMNS)
    words = [c for c in COLUMNS if c in ("protocol", "under_paper", "under_sound", "paper_verdict", "paper_reason")]
    counts = {name: "Int64" for name in ("n_paper", "n_sound")}
    return table.astype(counts | dict.fromkeys(words, object)).fillna(dict.fromkeys(words, ""))


def _tidy(frame: pd.DataFrame, geometry: pd.DataFrame | None, protocol: str) -> pd.DataFrame:
    """A study's measures in one tidy frame: measure, `KEYS`, value; those of encoders have finetune_size 0."""
    _need(frame, [*KEYS, "miou", "pixel_accuracy"], f"the metrics of protocol '{protocol}'", protocol)
    as_paper = "miou_per_image" if "miou_per_image" in frame else "miou"
    cells = frame[KEYS].assign(miou=frame["miou"], number_miou=frame[as_paper], number_accuracy=frame["pixel_accuracy"])
    parts = [cells.melt(KEYS, var_name="measure")]
    if geometry is not None:
        name = f"the geometry of protocol '{protocol}'"
        if "layer_name" in geometry:
            geometry = geometry[geometry["layer_name"] == "output"]
        if geometry.empty:  # taken for 'not measured', it would hide a mistake
            raise InputError(f"{name} hold no row of the output layer; pass all layers, or leave the protocol out")
        _need(geometry, ["kind", *KEYS, *GEOMETRY], name, protocol, ["kind", *KEYS])
        encoders = geometry[geometry["kind"] != "finetuned"]
        across = encoders["across_image_variance"]
        measures = encoders[KEYS].assign(
            finetune_size=0,
            log2_across=np.log2(across.where(across > 0)),
            within_share=encoders["within_share"],
            probe=encoders["probe_paper" if protocol == "paper" else "probe_accuracy"],
            **{f"number_{metric}": encoders[metric] for metric in ROUNDING},
        )
        _need(measures, KEYS, name, protocol)
        parts.append(measures.melt(KEYS, var_name="measure"))
    return pd.concat(parts, ignore_index=True).dropna(subset="value")


def _need(
    frame: pd.DataFrame, columns: Sequence[str], name: str, protocol: str, keys: Sequence[str] = tuple(KEYS)
) -> None:
    """Refuse a frame that lacks columns, is of another protocol or several studies, or holds a row twice."""
    missing = [column for column in columns if column not in frame]
    if missing:
        raise InputError(f"{name} lack column '{missing[0]}'; pass the frame as it was read, with all of its columns")
    if "protocol" in frame and (frame["protocol"] != protocol).any():
        found = ", ".join(sorted(set(frame["protocol"])))
        raise InputError(f"{name} are of protocol {found}; pass each study's frame under its own protocol")
    if "study" in frame and frame["study"].nunique() > 1:
        found = ", ".join(sorted(set(frame["study"])))
        raise InputError(f"{name} are of several studies ({found}); pass one study a protocol")
    twice = frame.duplicated(list(keys))
    if twice.any():
        key = ", ".join(f"{name} {value}" for name, value in frame.loc[twice, list(keys)].iloc[0].items())
        raise InputError(f"{name} hold a row more than once: {key}; keep one of each")


def _claim_rows(tidy: Mapping[str, pd.DataFrame], spatial: Collection[str]) -> list[dict[str, Any]]:
    """A row a claim; protocols in the order of `PROTOCOLS`."""
    evidence = {name: Cells.of(frame[~_is_number(frame)], spatial) for name, frame in tidy.items()}
    published = claims_on_paper().set_index("key")
    rows = []
    for claim in CLAIMS:
        outcomes = {name: claim.test(cells) for name, cells in evidence.items()}
        head = next((name for name, outcome in outcomes.items() if outcome.comparisons), next(iter(outcomes)))
        paper = published.loc[claim.key]
        row: dict[str, Any] = {
            **{"kind": "claim", "key": claim.key, "table": claim.source, "unit": claim.unit},
            **{"what": claim.words, "value_is": claim.estimate_is},
            **{"paper": paper["estimate"], "paper_low": paper["low"], "paper_high": paper["high"]},
            **{"paper_verdict": paper["verdict"], "paper_reason": paper["reason"]},
            **{"protocol": head, "verdict": outcomes[head].verdict, "reason": outcomes[head].reason},
        }
        for name, outcome in outcomes.items():
            row |= {
                f"ours_{name}": outcome.estimate,
                f"ours_{name}_low": outcome.low,
                f"ours_{name}_high": outcome.high,
            }
            row |= {f"n_{name}": outcome.n, f"under_{name}": outcome.verdict}
        rows.append(row)
    return rows


def _is_number(tidy: pd.DataFrame) -> pd.Series:
    return tidy["measure"].str.startswith("number_")


def _number_rows(tidy: Mapping[str, pd.DataFrame], comparable: bool | str) -> list[dict[str, Any]]:
    """A row a number of the paper; protocols in the order of `PROTOCOLS`."""
    numbers = {name: frame[_is_number(frame)] for name, frame in tidy.items()}
    observed = {
        name: frame.groupby(["measure", *GROUP])["value"].agg(["mean", "std", "count"]).to_dict("index")
        for name, frame in numbers.items()
    }
    rows = []
    for fact in paper_facts().itertuples(index=False):
        cell = (int(fact.pretrain_size), str(fact.intermediate), int(fact.finetune_size))
        found = {name: table.get((f"number_{fact.metric}", *cell)) for name, table in observed.items()}
        head = next((name for name, ours in found.items() if ours), next(iter(found)))
        judged = {
            name: _judge(fact, ours, comparable, "" if ours else _absent(numbers[name], fact))
            for name, ours in found.items()
        }
        variance = fact.metric.endswith("variance")
        row: dict[str, Any] = {
            **{"kind": "number", "table": f"Table {fact.table}{' of v2' if fact.table == '2' else ''}"},
            "key": "/".join(map(str, (fact.table, *cell, fact.metric))),
            **{"what": _number_words(fact), "value_is": "mean over runs"},
            **{"unit": "variance" if variance else POINTS, "paper": fact.mean, "paper_spread": fact.spread},
            **{"protocol": head, **judged[head]},
        }
        for name, ours in found.items():
            row[f"under_{name}"] = judged[name]["verdict"]
            if ours:
                mean, sd, n = ours["mean"], ours["std"], int(ours["count"])
                half = stats.t.ppf((1 + LEVEL) / 2, n - 1) * sd / np.sqrt(n)
                row |= {f"ours_{name}": mean, f"ours_{name}_sd": sd, f"n_{name}": n}
                row |= {f"ours_{name}_low": mean - half, f"ours_{name}_high": mean + half}
        rows.append(row)
    return rows


def _number_words(fact: Any) -> str:
    name = NAMES.get(fact.metric, fact.metric.replace("_image_variance", "-image variance"))
    if fact.table == "2":
        return f"{name}, {REGIMES[fact.intermediate]}"
    return f"{name}, {_words(fact.pretrain_size, fact.finetune_size, fact.intermediate)}"


def _absent(numbers: pd.DataFrame, fact: Any) -> str:
    """Which of a fact's keys the study does not have."""
    mine = numbers[numbers["measure"] == f"number_{fact.metric}"]
    if fact.table == "2" and mine.empty:
        return "the geometry was not measured"
    kind = "encoder" if fact.table == "2" else "cell"
    parts = [
        ("pretrain_size", f"{kind} of {_images(fact.pretrain_size)}" if fact.pretrain_size else f"{kind} without any"),
        ("intermediate", f"{kind} with task {fact.intermediate}"),
        ("finetune_size", f"{kind} of {fact.finetune_size:,} labels"),
    ]
    for key, words in parts:
        if not (mine[key] == getattr(fact, key)).any():
            return f"no {words}"
    return f"no {kind} with all of {_words(fact.pretrain_size, fact.finetune_size, fact.intermediate)}"


def _judge(fact: Any, ours: Mapping[str, float] | None, comparable: bool | str, absent: str) -> dict[str, Any]:
    """Difference, standard errors, verdict and reason of a number.

    Args:
        fact: a row of `paper_facts`.
        ours: mean, std (ddof = 1; NaN for one seed), count; None where the study has no such cell.
        comparable: as for `scorecard`.
        absent: why `ours` is None.
    """
    if comparable is not True:
        return {"verdict": UNTESTABLE, "reason": comparable or INCOMPARABLE}
    if ours is None:
        return {"verdict": UNTESTABLE, "reason": absent}
    mean, sd, n = ours["mean"], ours["std"], int(ours["count"])
    difference = mean - fact.mean
    if n < 2:
        return {"difference": difference, "verdict": UNTESTABLE, "reason": ONE_SEED}
    allowed, beyond = POINT, difference
    if np.isnan(fact.spread):  # one encoder, whose spread is taken to be ours
        error = sd * np.sqrt(1 / n + 1)
        # Printed with few digits: what rounding explains is no difference.
        beyond = np.sign(difference) * max(abs(difference) - ROUNDING[fact.metric], 0.0)
        p = 2 * stats.t.sf(abs(beyond) / error, n - 1) if error else float(not beyond)
        if fact.metric.endswith("variance"):
            allowed = SHARE * fact.mean
    else:
        error = np.hypot(sd / np.sqrt(n), fact.spread / np.sqrt(fact.runs))
        p = stats.ttest_ind_from_stats(mean, sd, n, fact.mean, fact.spread, fact.runs, equal_var=False).pvalue
    variance = fact.metric.endswith("variance")
    apart = f"{abs(difference):.2g}" if variance else f"{100 * abs(difference):.2f} points"
    margin = f"{100 * SHARE:.0f} % of it" if variance else "1 point"
    side = "above" if difference > 0 else "below"
    if p < 1 - LEVEL:
        verdict, reason = CONTRADICTED, f"{apart} {side}, more than noise explains (p = {p:.2g})"
    elif abs(beyond) <= allowed:
        verdict, reason = REPRODUCED, f"{apart} {side}: no more than {margin}, and noise explains it (p = {p:.2g})"
    else:
        verdict, reason = UNTESTABLE, f"{apart} {side}: more than {margin}, but noise may explain it (p = {p:.2g})"
    errors = difference / error if error else np.nan
    return {"difference": difference, "standard_errors": errors, "verdict": verdict, "reason": reason}


def write_scorecard(
    metric_paths_by_protocol: Mapping[str, Iterable[str | Path]],
    geometry_by_protocol: Mapping[str, pd.DataFrame] | None,
    out_dir: str | Path,
    comparable: bool | str = True,
    spatial: Collection[str] = SPATIAL,
) -> None:
    """Write scorecard.csv and scorecard.md.

    Args:
        metric_paths_by_protocol: JSON files of one study's cells, by protocol.
        geometry_by_protocol: see `scorecard`.
        out_dir: folder for both; made where it is not there.
        comparable: see `scorecard`.
        spatial: see `scorecard`.

    Raises:
        InputError: as `tables.read_metrics` and `scorecard`.
    """
    frames = {name: read_metrics(paths) for name, paths in metric_paths_by_protocol.items()}
    table = scorecard(frames, geometry_by_protocol, comparable, spatial)
    about = {
        f"{column}_{name}": frames[name][column].iloc[0]
        for name in PROTOCOLS
        if name in frames
        for column in ("study", "note")
    }
    write_csv(table.assign(**about), Path(out_dir) / "scorecard.csv")
    with atomic_path(Path(out_dir) / "scorecard.md") as tmp:
        tmp.write_text(_markdown(table, frames), encoding="utf-8")


READING = (
    "A claim is reproduced where the 95 % t interval over seeds of every comparison is on its side (an intersection-"
    "union test), contradicted where that of their mean, or of one after Bonferroni's correction, is on the other. "
    "Estimates are of the comparison that decides, positive where the claim holds.\n\nA number is reproduced where it "
    f"is no more than {100 * POINT:.0f} point (of a variance, {100 * SHARE:.0f} %) from the paper's and Welch's t test "
    "does not tell the two apart (5 %), contradicted where it does: by chance, about one in 20 true numbers at most. ± "
    "is a standard deviation over seeds (ddof = 1). The paper does not define its own; it is taken as of 3 runs; "
    "Table 2 of v2 has none. Numbers are mIoU averaged over images, as in the paper. A verdict is about protocol paper "
    "where that study has the cells, else about sound."
)


def _markdown(table: pd.DataFrame, frames: Mapping[str, pd.DataFrame]) -> str:
    """The scorecard as a page: counts, claims, numbers by table."""
    given = [name for name in PROTOCOLS if name in frames]
    parts = ["# Scorecard against the paper", _counts(table)]
    for name in given:
        first = frames[name].iloc[0]
        parts.append(f"Protocol {name}: study {first['study']}. {first['note']}".strip())
    parts.append(READING)
    claims = table[table["kind"] == "claim"]
    parts.append("## Claims")
    words = [f"{what} ({value_is})" for what, value_is in zip(claims["what"], claims["value_is"], strict=True)]
    shown = pd.DataFrame({"Claim (estimate)": words, "Source": claims["table"], "Verdict": claims["verdict"]})
    for name in given:
        shown[f"Estimate, {name}"] = [
            _estimate(*values) for values in _columns(claims, f"ours_{name}", f"ours_{name}_low", f"ours_{name}_high")
        ]
    if len(given) > 1:
        shown["Verdict under sound"] = claims["under_sound"]
    shown["Why"] = claims["reason"]
    shown["The paper's own numbers"] = claims["paper_verdict"]
    shown["Their estimate"] = [_estimate(*values) for values in _columns(claims, "paper", "paper_low", "paper_high")]
    parts.append(to_markdown(shown).strip())
    numbers = table[table["kind"] == "number"]
    for name, rows in numbers.groupby("table", sort=False):
        shown = pd.DataFrame({"What": rows["what"]})
        shown["Paper"] = [_value(*values) for values in _columns(rows, "paper", "paper_spread")]
        for protocol in given:
            values = _columns(rows, f"ours_{protocol}", f"ours_{protocol}_sd")
            shown[f"Ours, {protocol}"] = [_value(*v) for v in values]
            shown[f"Seeds, {protocol}"] = ["" if pd.isna(n) else str(n) for n in rows[f"n_{protocol}"]]
        if len(given) > 1:
            shown["Compared"] = rows["protocol"]
        shown["Difference"] = [
            _signed(unit, value) for unit, value in zip(rows["unit"], rows["difference"], strict=True)
        ]
        shown["Standard errors"] = ["" if pd.isna(x) else f"{x:+.1f}" for x in rows["standard_errors"]]
        shown["Verdict"], shown["Why"] = rows["verdict"], rows["reason"]
        parts += [f"## {name}", to_markdown(shown).strip()]
    return "\n\n".join(parts) + "\n"


def _counts(table: pd.DataFrame) -> str:
    """The opening line: how many of each verdict."""

    def counted(kind: str, words: str) -> str:
        found = table.loc[table["kind"] == kind, "verdict"]
        counts = ", ".join(f"{(found == verdict).sum()} {verdict}" for verdict in VERDICTS)
        return f"{len(found)} {words}: {counts}."

    own = (table["paper_verdict"] == REPRODUCED).sum()
    return f"{counted('claim', 'claims')} The paper's own numbers support {own}. {counted('number', 'numbers')}"


def _columns(table: pd.DataFrame, *names: str) -> Iterable[tuple]:
    """Rows of a unit and some columns."""
    return table[["unit", *names]].itertuples(index=False, name=None)


def _value(unit: str, mean: float, sd: float) -> str:
    """Mean and standard deviation: percent, or as it is of a variance."""
    if pd.isna(mean):
        return ""
    factor, digits = (100, 2) if unit == POINTS else (1, 3)
    spread = "" if pd.isna(sd) else f" ± {factor * sd:.{digits}f}"
    return f"{factor * mean:.{digits}f}{spread}{' %' if unit == POINTS else ''}"


def _signed(unit: str, value: float) -> str:
    if pd.isna(value):
        return ""
    return f"{100 * value:+.2f} points" if unit == POINTS else f"{value:+.3f}"


def _estimate(unit: str, estimate: float, low: float, high: float) -> str:
    """An estimate with its 95 % interval and its unit; fractions as percentage points."""
    if pd.isna(estimate):
        return ""
    factor = 100 if unit.startswith(POINTS) else 1
    interval = "" if pd.isna(low) else f" [{factor * low:+.2f}, {factor * high:+.2f}]"
    return f"{factor * estimate:+.2f}{interval} {unit.replace(POINTS, 'points', 1)}"
