"""The comparisons of cells that claims consist of, and the evidence that they are tested on."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from viny.evidence.paper.facts import CLASSIFICATION, SPATIAL, TASK
from viny.evidence.paper.words import Found
from viny.evidence.statistics.crossed import LEVEL, Estimates, Runs, estimates, square_root
from viny.evidence.tables import GROUP
from viny.evidence.verdicts import MARGIN

POINT = MARGIN
POINTS = "fraction"  # of mIoU, accuracy or variance: percentage points in Markdown
POWER = 0.8  # how often as many seeds as are needed decide a claim
MOST_SEEDS = 10_000

Key = tuple[str, int, str, int]  # measure, pre-training images, intermediate task, labels (0: of the encoder)
Weights = Mapping[Key, float]
ONE: Key = ("one", 0, "none", 0)  # a cell whose value is 1 in every seed


@dataclass(frozen=True)
class Comparison:
    """A weighted sum of cells that is positive where the claim holds."""

    label: str
    weights: Weights


@dataclass(frozen=True)
class Outcome:
    """The outcome of a claim's test.

    Attributes:
        found: what the study, or the table, says.
        reason: what that rests on, or what is missing.
        estimate: the mean over the comparisons, or what the claim is about; positive where the claim holds.
        low, high: the ends of its 95 % interval; NaN if there is none.
        n: number of seeds.
        comparisons: number of comparisons.
        favour: how many of them are decided in favour.
        chance: of an undecided claim, that twice the seeds decide it; NaN if unknown.
        needed: how many seeds would decide it in four studies out of five, if the estimates are the truth; NaN where it
            is decided, or no number of seeds would.
    """

    found: Found
    reason: str
    estimate: float = np.nan
    low: float = np.nan
    high: float = np.nan
    n: int = 0
    comparisons: int = 0
    favour: int = 0
    chance: float = np.nan
    needed: float = np.nan


def untestable(needs: str) -> Outcome:
    return Outcome(Found.UNTESTABLE, f"needs {needs}")


class Evidence(ABC):
    """Cells that claims are tested on; `keys` lists them."""

    keys: Sequence[Key]
    tasks: Sequence[str]  # that stand for the task of version 1
    classification: Sequence[str]  # that stand for those of version 2
    spatial: Sequence[str]
    epochs: tuple[int, int]  # of pre-training and of fine-tuning
    without: str  # why there is no interval, if there is none
    spreadless: Found  # what a claim is that has no interval
    noise: str  # what leaves a comparison undecided

    @abstractmethod
    def contrasts(self, design: np.ndarray, level: float = LEVEL) -> Estimates:
        """Weighted sums of cells, rows of weights [K, cells], with their intervals."""

    @abstractmethod
    def mean(self, comparisons: Sequence[Comparison]) -> Estimates:
        """The mean of some comparisons, [1]."""

    @abstractmethod
    def chance(self, comparisons: Sequence[Comparison]) -> float:
        """The chance that twice the seeds decide the mean of some comparisons, either way; NaN if unknown."""

    @abstractmethod
    def slope(self, x: Sequence[Comparison], y: Sequence[Comparison], groups: Sequence[int]) -> Estimates:
        """Slope of y on x within groups, free of the noise that both share; [1].

        Args:
            x: [K].
            y: [K].
            groups: [K], of which each has its own intercept.
        """

    def needed(self, found: Mapping[str, Any]) -> float:
        """How many seeds would decide an estimate, see `seeds_needed`."""
        return seeds_needed(found["mean"], found["se"], found["df"], found["n"])

    def decided(self, kind: str, what: Collection[Any], wanted: str) -> tuple[Found, float] | None:
        """What is decided of a study's effects, see `viny.evidence.verdicts.decide`; None: nothing was.

        Args:
            kind: of the effects.
            what: the sizes or tasks that they are of.
            wanted: the verdict that supports the claim, 'up' or 'down'.

        Returns:
            AVERAGE where each effect has that verdict, AGAINST where one has the opposite, UNDECIDED where one is,
            SMALL where all are; PARTLY where some have that verdict and the others are small. And the chance that twice
            the seeds decide what is not.
        """
        return None

    def sizes(self, task: str = "none", least: int = 0) -> list[int]:
        """Numbers of pre-training images, `least` or more, for which a task has mIoU."""
        return sorted({p for measure, p, t, _ in self.keys if (measure, t) == ("miou", task) and p >= least})

    def labels(self, pretrain_size: int, task: str) -> list[int]:
        """Label sizes for which a task has mIoU at a number of pre-training images."""
        return sorted({n for m, p, t, n in self.keys if (m, p, t) == ("miou", pretrain_size, task)})

    def has(self, weights: Weights) -> bool:
        return all(key in self.keys for key in weights)

    def intervals(self, comparisons: Sequence[Comparison], level: float = LEVEL) -> Estimates:
        """Each comparison with its interval; they have cells that all exist."""
        return self.contrasts(self.design(comparisons), level)

    def design(self, comparisons: Sequence[Comparison]) -> np.ndarray:
        """Weights [K, cells]."""
        place = {key: i for i, key in enumerate(self.keys)}
        rows = np.zeros((len(comparisons), len(place)))
        for row, comparison in zip(rows, comparisons, strict=True):
            for key, weight in comparison.weights.items():
                row[place[key]] += weight
        return rows


@dataclass(frozen=True)
class Cells(Evidence):
    """A study's cells, seed by seed; a comparison is paired by seed, over the seeds that have all of its cells.

    The keys of `runs` are those of cells, see `Key`. Test images count where they are known.
    """

    runs: Runs
    tasks: Sequence[str] = (TASK,)
    classification: Sequence[str] = CLASSIFICATION
    spatial: Sequence[str] = SPATIAL
    epochs: tuple[int, int] = (1, 1)
    decisions: Sequence[Any] = ()
    without: str = field(default="one seed has no spread", init=False)
    spreadless: Found = field(default=Found.UNDECIDED, init=False)

    @property
    def keys(self) -> Sequence[Key]:  # type: ignore[override]
        return self.runs.keys  # type: ignore[return-value]

    @property
    def noise(self) -> str:  # type: ignore[override]
        seeds = np.isfinite(self.runs.values).sum(0)[[key != ONE for key in self.keys]]
        least, most = seeds.min(), seeds.max()
        return f"{most} seeds" if least == most else f"{least} to {most} seeds"

    @classmethod
    def of(
        cls,
        miou: Runs,
        encoders: pd.DataFrame | None = None,
        spatial: Collection[str] = SPATIAL,
        epochs: tuple[int, int] = (1, 1),
        decisions: Sequence[Any] = (),
    ) -> Cells:
        """Cells of a study.

        If the paper's tasks are missing, all of the study's classification tasks stand in for them. If one is there,
        others (such as those that differ from it in one thing each) do not count: the paper says nothing about them.

        Args:
            miou: as `crossed.read_runs` returns it.
            encoders: measures of encoders: measure, pretrain_size, intermediate, seed, value.
            spatial: tasks whose target is each patch.
            epochs: of pre-training and of fine-tuning.
            decisions: what `viny.evidence.verdicts.decide` says of `miou`.
        """
        runs = _with_encoders(miou, encoders)
        found = sorted({task for _, _, task, _ in runs.keys} - {"none"})  # type: ignore[misc]
        here = [task for task in found if task not in spatial]
        classification = [task for task in CLASSIFICATION if task in here] or here
        tasks = [TASK] if TASK in here else classification
        return cls(runs, tasks, classification, [task for task in found if task in spatial], epochs, decisions)

    def contrasts(self, design: np.ndarray, level: float = LEVEL) -> Estimates:
        return self.runs.contrasts(design, level)

    def mean(self, comparisons: Sequence[Comparison]) -> Estimates:
        return self.runs.mean_of(self.design(comparisons))

    def chance(self, comparisons: Sequence[Comparison]) -> float:
        weights = self.design(comparisons).mean(0, keepdims=True)
        n = int(np.isfinite(self.runs.per_seed(weights)).sum())
        return self.runs.chance(weights, 2 * n)

    def decided(self, kind: str, what: Collection[Any], wanted: str) -> tuple[Found, float] | None:
        ours = [decision for decision in self.decisions if decision.kind == kind and decision.what in what]
        verdicts = {decision.verdict for decision in ours}
        if not ours:
            return None
        if ({"up", "down"} - {wanted}) & verdicts:
            return Found.AGAINST, np.nan
        if "undecided" in verdicts:
            return Found.UNDECIDED, min(decision.chance for decision in ours if decision.verdict == "undecided")
        if verdicts == {wanted}:
            return Found.AVERAGE, np.nan
        return (Found.SMALL if verdicts == {"small"} else Found.PARTLY), np.nan

    def slope(self, x: Sequence[Comparison], y: Sequence[Comparison], groups: Sequence[int]) -> Estimates:
        # A cell's noise is in both x and y. That of seeds makes no slope, as x is taken from the other seeds (cross-
        # fitting), though it draws one towards 0; that of the test images, which all seeds share, is subtracted by its
        # moments (Fuller 1987).
        of_x, of_y = self.design(x), self.design(y)
        both = np.stack([self.runs.per_seed(of_x), self.runs.per_seed(of_y)])
        whole = np.isfinite(both).all((0, 2))
        (mine, own), n, centre = both[:, whole], int(whole.sum()), _centring(groups)  # [seeds, K]
        if n < 2:
            return _nothing(n)
        moved = self._moved(whole)
        by_x, by_y = centre @ of_x @ moved, centre @ of_y @ moved  # [K, images]
        others = (mine.sum(0) - mine) / (n - 1) @ centre
        spread = (others**2).sum(1) - (by_x**2).sum()
        if not (spread > 0).all():
            return _nothing(n)
        slopes = ((others * own).sum(1) - (by_x * by_y).sum()) / spread
        slope = slopes.mean()
        # Test images by the delta method, at the means.
        centred, outcome = mine.mean(0) @ centre, own.mean(0) @ centre
        gradient = (centred @ of_y + (outcome - 2 * slope * centred) @ of_x) / spread.mean()
        images, pictures = ((gradient @ moved) ** 2).sum(), np.array(self.runs.pictures or moved.shape[-1])
        return estimates(np.array([slope]), np.array([slopes.var(ddof=1) / n]), images, np.array(n), pictures)

    def _moved(self, seeds: np.ndarray) -> np.ndarray:
        """How far each test image moves the mean of each cell over some seeds, [cells, images]; 0 where unknown."""
        if self.runs.covariance is not None:
            return square_root(self.runs.covariance)
        if self.runs.moved is None:
            return np.zeros((len(self.keys), 1))
        return np.nan_to_num(self.runs.moved[seeds]).mean(0)


def _with_encoders(miou: Runs, encoders: pd.DataFrame | None) -> Runs:
    """Cells with mIoU, measures of encoders, whose draw of images is not known, and `ONE`."""
    keys: list[Key] = [("miou", *key) for key in miou.keys]  # type: ignore[misc]
    parts = [pd.DataFrame(miou.values, list(miou.seeds), pd.MultiIndex.from_tuples(keys) if keys else None)]
    if encoders is not None and len(encoders):
        columns = ["measure", *GROUP]
        wide = encoders.assign(finetune_size=0).pivot(index="seed", columns=columns, values="value")
        parts.append(wide)
        keys += [(str(m), int(p), str(t), int(n)) for m, p, t, n in wide.columns]
    table = pd.concat([part.set_axis(range(part.shape[1]), axis=1) for part in parts], axis=1).sort_index()
    values = np.column_stack([table.to_numpy(float), np.ones(len(table))])
    moved = tested = None
    if miou.moved is not None:
        seeds, images = len(table), miou.moved.shape[-1]
        row = table.index.get_indexer(list(miou.seeds))
        moved = np.full((seeds, len(keys) + 1, images), np.nan)
        moved[row, : len(miou.keys)] = miou.moved
        moved[:, -1] = 0
        known = np.ones((len(miou.keys), images), bool) if miou.tested is None else miou.tested
        tested = np.vstack([known, np.zeros((len(keys) + 1 - len(known), images), bool)])
    return Runs([*keys, ONE], [int(seed) for seed in table.index], values, moved, tested)


@dataclass(frozen=True)
class Means(Evidence):
    """Published means with their spread, the standard deviation of independent runs.

    Intervals use the degrees of freedom of Welch (1947) and Satterthwaite (1946).
    """

    keys: Sequence[Key]
    means: np.ndarray  # [cells]
    spread: np.ndarray  # [cells], NaN where none is given
    runs: np.ndarray  # [cells], NaN where it is not known
    tasks: Sequence[str] = (TASK,)
    classification: Sequence[str] = CLASSIFICATION
    spatial: Sequence[str] = SPATIAL
    epochs: tuple[int, int] = (1, 1)
    without: str = field(default="a value without a spread", init=False)
    spreadless: Found = field(default=Found.SPREADLESS, init=False)

    @classmethod
    def of(cls, frame: pd.DataFrame, **about: Any) -> Means:
        """Means of a frame: measure, pretrain_size, intermediate, finetune_size, mean, spread, runs."""
        keys = [(r.measure, r.pretrain_size, r.intermediate, r.finetune_size) for r in frame.itertuples()]
        columns = (frame[name].to_numpy(float) for name in ("mean", "spread", "runs"))
        mean, spread, runs = (np.append(column, one) for column, one in zip(columns, (1, 0, np.inf), strict=True))
        return cls([*keys, ONE], mean, spread, runs, **about)

    @property
    def noise(self) -> str:  # type: ignore[override]
        runs = self.runs[np.isfinite(self.runs)].astype(int)
        return f"{runs.min()} runs" if runs.min() == runs.max() else f"{runs.min()} to {runs.max()} runs"

    def _interval(self, estimate: np.ndarray, design: np.ndarray, level: float = LEVEL) -> Estimates:
        """Intervals of estimates [K], whose derivatives by the means are `design` [K, cells]."""
        # A cell without weight must not spread its NaN.
        parts = np.where(design != 0, design**2 * self.spread**2 / self.runs, 0.0)
        variance = parts.sum(1)
        runs = np.where(design != 0, np.nan_to_num(self.runs, nan=1, posinf=np.inf), np.inf).min(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            freedom = variance**2 / np.where(design != 0, parts**2 / (self.runs - 1), 0.0).sum(1)
            freedom = np.where(variance == 0, runs - 1, freedom)
            se = np.sqrt(variance)
            half = stats.t.ppf((1 + level) / 2, freedom) * se
            p = np.where(se == 0, (estimate == 0).astype(float), 2 * stats.t.sf(np.abs(estimate) / se, freedom))
        nothing = np.full(len(se), np.nan)
        n = np.where(np.isinf(runs), 1, runs).astype(int)
        return Estimates(estimate, estimate - half, estimate + half, se, se, nothing, freedom, n, p)

    def contrasts(self, design: np.ndarray, level: float = LEVEL) -> Estimates:
        return self._interval(design @ self.means, design, level)

    def mean(self, comparisons: Sequence[Comparison]) -> Estimates:
        design = self.design(comparisons).mean(0, keepdims=True)
        return self._interval(design @ self.means, design)

    def chance(self, comparisons: Sequence[Comparison]) -> float:
        return np.nan  # seeds are asked for instead, see `Outcome.needed`

    def slope(self, x: Sequence[Comparison], y: Sequence[Comparison], groups: Sequence[int]) -> Estimates:
        # By the delta method. The noise that harm and gain share cannot be removed from means alone. It comes to about
        # the mean variance of a gain over the variance of the gains, which is small with the paper's spreads.
        of_x, of_y, centre = self.design(x), self.design(y), _centring(groups)
        centred, outcome = centre @ of_x @ self.means, centre @ of_y @ self.means
        spread = centred @ centred
        if not spread:
            return _nothing(0)
        return self._interval(
            np.array([centred @ outcome / spread]), _gradient_of_slope(centred, outcome, of_x, of_y)[None]
        )


def _centring(groups: Sequence[int]) -> np.ndarray:
    """The matrix [K, K] that takes each group's mean from its values."""
    same = np.equal.outer(groups, groups)
    return np.eye(len(same)) - same / same.sum(1)


def _gradient_of_slope(x: np.ndarray, y: np.ndarray, of_x: np.ndarray, of_y: np.ndarray) -> np.ndarray:
    """Derivatives [cells] of the least-squares slope of y on x, both centred [K], by the cells' means."""
    spread = x @ x
    return (x @ of_y + (y - 2 * (x @ y / spread) * x) @ of_x) / spread


def _nothing(n: int) -> Estimates:
    nothing = np.full(1, np.nan)
    return Estimates(nothing, nothing, nothing, nothing, nothing, nothing, nothing, np.array([n]), nothing)


def seeds_needed(estimate: float, se: float, df: float, n: int) -> float:
    """The fewest seeds whose 95 % t interval excludes 0 in four studies of five, if the estimates are the truth.

    Args:
        estimate: what is to be told from 0.
        se: its standard error with n seeds.
        df: the degrees of freedom of se; they grow with n - 1.
        n: seeds.

    Returns:
        Seeds in all, 2 or more; NaN if more than `MOST_SEEDS`.
    """
    if not (np.isfinite(se) and estimate and n > 1):
        return np.nan

    def enough(seeds: int) -> bool:
        freedom = df / (n - 1) * (seeds - 1)
        effect = min(abs(estimate) / se * math.sqrt(seeds / n), 50) if se else 50  # beyond, the power is 1
        return stats.nct.sf(stats.t.ppf((1 + LEVEL) / 2, freedom), freedom, effect) >= POWER

    found = bisect_left(range(MOST_SEEDS + 1), True, lo=2, key=enough)
    return float(found) if found <= MOST_SEEDS else np.nan


def everywhere(
    evidence: Evidence,
    comparisons: Sequence[Comparison],
    needs: str,
    given: Sequence[Comparison] = (),
    decided: tuple[Found, float] | None = None,
) -> Outcome:
    """Test that every comparison is positive.

    It holds if every comparison, and each of those given, has its 95 % interval above zero, an intersection-union test
    (Berger 1982). It is contradicted if the mean of the comparisons has its interval below zero; so a true claim is
    contradicted in 2.5 % of studies at most, in 5 % where something else is `given`, whose mean may be against it too.
    It does not hold everywhere if one comparison's interval lies below zero at the level that Bonferroni's correction
    requires, and holds on average if that of the mean lies above zero.

    Args:
        evidence: the cells.
        comparisons: those with missing cells are left out.
        needs: what the study would need; the reason given if no comparison is left.
        given: further comparisons without which the others mean nothing, such as that there is a gain to begin with;
            they have to be positive too, but are counted apart and are no part of the mean.
        decided: what is decided of the mean, see `Evidence.decided`; None: the mean's own interval decides.
    """
    comparisons = [c for c in comparisons if evidence.has(c.weights)]
    given = [c for c in given if evidence.has(c.weights)]
    if not comparisons:
        return untestable(needs)
    every, count = [*comparisons, *given], len(comparisons)
    found, mean = evidence.intervals(every), evidence.mean(comparisons).at()
    favour, against = int((found.low[:count] > 0).sum()), int((found.high[:count] < 0).sum())
    score = f"{favour} of {count} in favour" + (f", {against} against" if against else "")
    if given:
        score += f"; what that needs holds in {int((found.low[count:] > 0).sum())} of {len(given)}"
    base = evidence.mean(given).at() if given else {"low": np.inf, "high": np.inf, "mean": 1.0}
    if decided is not None:
        average, chance = decided
    else:
        up, down = mean["low"] > 0 and base["low"] > 0, mean["high"] < 0 or base["high"] < 0
        average, chance = Found.AVERAGE if up else Found.AGAINST if down else Found.UNDECIDED, np.nan
    level = 1 - (1 - LEVEL) / len(every)
    worst = evidence.intervals(every, level).high < 0
    weakest = int(np.nanargmin(found.low)) if np.isfinite(found.low).any() else 0
    needed = np.nan
    if (found.low > 0).all() and (decided is None or average is Found.AVERAGE):
        what, why = Found.HOLDS, f"weakest: {every[weakest].label}"
    elif average is Found.AGAINST:
        what, why = Found.AGAINST, "their mean is against it" if len(every) > 1 else every[0].label
    elif average is Found.PARTLY:
        what, why = Found.PARTLY, "some of it is under 1 point either way"
    elif worst.any():
        label = every[int(np.flatnonzero(worst)[np.argmin(found.high[worst])])].label
        what, why = Found.PARTLY, f"against it even after Bonferroni's correction: {label}"
    elif average is Found.AVERAGE:
        what, why = Found.AVERAGE, f"weakest: {every[weakest].label}"
        open_ = ~(found.low > 0)
        parts = [found.at(int(i)) for i in np.flatnonzero(open_)]
        if all(part["mean"] > 0 for part in parts):
            needed = max(evidence.needed(part) for part in parts)
    elif average is Found.SMALL:
        what, why = Found.SMALL, ""
    elif not np.isfinite(mean["low"]):
        if not found.n.any():
            return Outcome(Found.UNTESTABLE, "no seed has all the cells of a comparison", comparisons=count)
        n = int(found.n.max())
        return Outcome(evidence.spreadless, evidence.without, mean["mean"], n=n, comparisons=count)
    else:
        what, why = Found.UNDECIDED, f"{evidence.noise} leave their mean undecided"
        chance = evidence.chance(comparisons) if decided is None else chance
        needed = evidence.needed(mean)
    reason = "; ".join(filter(None, [score, why, _more(chance)]))
    numbers = mean["mean"], mean["low"], mean["high"], mean["n"]
    return Outcome(what, reason, *numbers, count, favour, chance, needed)


def _more(chance: float) -> str:
    return "" if np.isnan(chance) else f"twice the seeds would decide it with a chance of {100 * chance:.0f} %"


def single(evidence: Evidence, found: Estimates, reason: str, tested: Sequence[Comparison] = ()) -> Outcome:
    """The outcome of a claim whose estimate has to be positive; `tested` is what further seeds would decide."""
    one = found.at()
    what = Found.HOLDS if one["low"] > 0 else Found.AGAINST if one["high"] < 0 else Found.UNDECIDED
    chance = needed = np.nan
    if what is Found.UNDECIDED:
        if np.isnan(one["low"]):
            what = evidence.spreadless
            why = evidence.without if one["n"] < 2 else "the cells do not differ by more than noise"
            reason = "; ".join(filter(None, [reason, why]))
        elif tested:
            chance, needed = evidence.chance(tested), evidence.needed(one)
            reason = "; ".join(filter(None, [reason, f"{evidence.noise} leave it undecided"]))
    reason = "; ".join(filter(None, [reason, _more(chance)]))
    numbers = one["mean"], one["low"], one["high"], one["n"]
    return Outcome(what, reason, *numbers, 1, int(what is Found.HOLDS), chance, needed)


def root(evidence: Evidence, start: Weights, step: Weights, grid: np.ndarray) -> tuple[float, float, float]:
    """At which x the sum of `start` and x times `step` is zero, with its 95 % interval (Fieller 1954).

    The interval holds the numbers at which the sum cannot be told from zero.

    Args:
        evidence: the cells.
        start: weights of cells.
        step: weights of cells.
        grid: numbers to look at, rising.

    Returns:
        The number and the ends of its interval; NaN for a sum without a zero there, infinite for an end beyond it.
    """
    fixed, rising = evidence.design([Comparison("", start), Comparison("", step)])
    found = evidence.contrasts(fixed + grid[:, None] * rising)
    turns = np.flatnonzero(np.diff(np.sign(found.mean)))
    if not len(turns):
        return np.nan, np.nan, np.nan
    first = turns[0]
    a, b = found.mean[first : first + 2]
    zero = grid[first] + (grid[first + 1] - grid[first]) * a / (a - b)
    inside = np.flatnonzero((found.low <= 0) & (found.high >= 0))
    if not len(inside):  # narrower than the grid
        return float(zero), float(zero), float(zero)
    low, high = inside[0], inside[-1]
    return (
        float(zero),
        -np.inf if low == 0 else float(grid[low]),
        np.inf if high == len(grid) - 1 else float(grid[high]),
    )
