"""Uncertainty of mIoU and of its differences, from both of its sources: seeds and test images.

A study is a sample of seeds, each with its own initialisation, subsets and order of images, and every model is tested
on one sample of images. The two are crossed: all models of a seed share its draws, all models share the test images. So
the variance of a weighted sum of cells has a part from each (`Runs.contrasts`): more seeds alone do not make it small.
Where a study says which images belong together (`segmentation.group`), groups stand for images everywhere here.

Every interval, test and figure of a study takes its numbers from here. Values are fractions.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from viny.evidence.metrics import iou
from viny.evidence.tables import GROUP, check_cells
from viny.runtime.errors import InputError
from viny.runtime.files import load_arrays

LEVEL = 0.95  # of every interval
ALPHA = 0.05  # a p value has to be this small
LEAST_SEEDS = 2  # fewer have no spread
BLOCK = 1 << 24  # numbers in a block of image influences, so that many comparisons take little memory


@dataclass(frozen=True)
class Estimates:
    """Weighted sums of cells and their uncertainty, [K] each; NaN where undefined.

    Attributes:
        mean: the estimate.
        low, high: the ends of its interval.
        se: the standard error from both sources.
        se_seeds: the part that further seeds make smaller.
        se_images: the part that only further test images make smaller; NaN where these are not known, and the interval
            is then over seeds alone.
        df: Satterthwaite's (1946) degrees of freedom of se.
        n: number of seeds.
        p: of Student's t test that the sum is 0, two-sided.
    """

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    se: np.ndarray
    se_seeds: np.ndarray
    se_images: np.ndarray
    df: np.ndarray
    n: np.ndarray
    p: np.ndarray

    def at(self, place: int = 0) -> dict[str, float]:
        """One of them, as plain numbers."""
        found = {name: float(getattr(self, name)[place]) for name in self.__dataclass_fields__}
        return found | {"n": int(found["n"])}


def estimates(
    mean: np.ndarray,
    seeds: np.ndarray,
    images: np.ndarray,
    n: np.ndarray,
    pictures: np.ndarray,
    level: float = LEVEL,
    both: np.ndarray | float = 0.0,
) -> Estimates:
    """Intervals and tests from the variances of the two sources; arrays of one shape, or that broadcast to one.

    The variances add up (Cameron, Gelbach and Miller 2011), and the sum has Satterthwaite's (1946) degrees of freedom.

    Args:
        mean: what was estimated.
        seeds: its variance over seeds.
        images: its variance over test images that is not in `seeds` already; NaN where unknown.
        n: number of seeds.
        pictures: number of test images.
        level: of the intervals.
        both: the part of the variance over seeds that the test images account for, as they differ from seed to seed;
            NaN where unknown. Where it is known, an interval is at least as wide as `images` and `both` make it: few
            seeds may happen to agree by more than the test images allow.
    """
    mean, seeds, images, n, pictures, both = np.broadcast_arrays(mean, seeds, images, n, pictures, np.nan_to_num(both))
    enough = n >= LEAST_SEEDS
    seeds = np.where(enough, seeds, np.nan)
    images = np.maximum(images, 0)  # a rounded covariance may give less
    drawn = np.nan_to_num(images)
    variance, few = seeds + drawn, np.maximum(pictures - 1, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        df = variance**2 / (seeds**2 / (n - 1) + drawn**2 / few)
        df = np.where(enough & ~(variance > 0), n - 1, df)
        quantile, least = stats.t.ppf((1 + level) / 2, df), stats.t.ppf((1 + level) / 2, few)
        narrow = (both > 0) & (quantile**2 * variance < least**2 * (drawn + both))
        variance, df = np.where(narrow, drawn + both, variance), np.where(narrow, few, df)
        se = np.sqrt(variance)
        reach = np.where(narrow, least, quantile) * se
        p = 2 * stats.t.sf(np.abs(mean) / se, df)
    p = np.where(enough & (se == 0), np.where(mean == 0, 1.0, 0.0), p)
    return Estimates(mean, mean - reach, mean + reach, se, np.sqrt(seeds), np.sqrt(images), df, n, p)


@dataclass(frozen=True, eq=False)
class Runs:
    """Cells, seed by seed, and how far each test image moves each.

    Attributes:
        keys: of the C cells; for a study's mIoU (pretrain_size, intermediate, finetune_size).
        seeds: S of them.
        values: [S, C], fractions; NaN where a cell was not run.
        moved: [S, C, N], how far each test image, or each group of them in a study with groups, moves that value, see
            `influence`; 0 for those that it was not tested on, NaN where that is not known. None if it is known of no
            cell.
        tested: bool [C, N], which images or groups a cell was tested on; None: all of them.
        covariance: [C, C], in place of `moved`, what the cells' means share over draws of the test images; for made
            studies, whose images are none.
        pictures: number of test images that `covariance` is of.
        of_each: test images in a group, on average; 1 without groups.
    """

    keys: Sequence[Hashable]
    seeds: Sequence[int]
    values: np.ndarray
    moved: np.ndarray | None = None
    tested: np.ndarray | None = None
    covariance: np.ndarray | None = None
    pictures: int = 0
    of_each: float = 1.0

    @property
    def groups(self) -> int:
        """How many groups the test images, the same in all cells, are of; 0 in a study without groups."""
        return 0 if self.moved is None or self.of_each == 1 else self.moved.shape[-1]

    @property
    def drawn(self) -> str:
        """What the test is a sample of, in words."""
        return "groups of test images" if self.groups else "test images"

    @cached_property
    def place(self) -> dict[Hashable, int]:
        """The column of each cell."""
        return {key: i for i, key in enumerate(self.keys)}

    def weights(self, *sums: dict[Hashable, float]) -> np.ndarray:
        """Weighted sums, given by cell, as rows [K, C]."""
        rows = np.zeros((len(sums), len(self.keys)))
        for row, wanted in zip(rows, sums, strict=True):
            for key, weight in wanted.items():
                row[self.place[key]] += weight
        return rows

    def per_seed(self, weights: np.ndarray) -> np.ndarray:
        """Weighted sums [S, K] of each seed; NaN where it lacks one of the cells."""
        absent = np.isnan(self.values).astype(float) @ (weights != 0).T > 0
        return np.where(absent, np.nan, np.nan_to_num(self.values) @ weights.T)

    def contrasts(self, weights: np.ndarray, level: float = LEVEL) -> Estimates:
        """Weighted sums of cells, each over the seeds that have all of its cells, so that differences are paired.

        The variance is two-way cluster-robust (Cameron, Gelbach and Miller 2011): that of the seeds' values over their
        number, plus that of the test images, minus what both of them hold, the images' part that differs from seed to
        seed. In the terms of an analysis of variance: (MS of seeds + MS of images - MS of their crossing) / (seeds x
        images), where the images' MS is taken for no less than that of the crossing. No interval is narrower than the
        test images alone make it.

        Args:
            weights: [K, C].
            level: of the intervals.
        """
        values = self.per_seed(weights)
        n = np.isfinite(values).sum(0)
        mean, score = _centred(values, n)
        images, both, pictures = self._images(weights, np.isfinite(values))
        return estimates(mean, (score**2).sum(0), images, n, pictures, level, both)

    def mean_of(self, weights: np.ndarray, shares: np.ndarray | None = None, level: float = LEVEL) -> Estimates:
        """A weighted sum of several contrasts, each over its own seeds; seeds stay the clusters.

        Where the contrasts have different seeds, those with few of them weigh most in the variance, which then has few
        degrees of freedom, see `_freedom`.

        Args:
            weights: [K, C].
            shares: [K], the weight of each contrast; the same for all unless given.
            level: of the interval.

        Returns:
            One estimate, [1]; n is the number of seeds that any contrast has. Undefined if one has no spread.
        """
        shares = np.full(len(weights), 1 / len(weights)) if shares is None else np.asarray(shares, float)
        values = self.per_seed(weights)
        here = np.isfinite(values)
        n = here.sum(0)
        mean, score = _centred(values, n)
        total = (score @ shares)[:, None]
        images, both, pictures = self._images(weights, here, shares)
        average, over_seeds = np.array([mean @ shares]), (total**2).sum(0)
        found = estimates(average, over_seeds, images, 1 + _freedom(here, shares), pictures, level, both)
        return replace(found, n=here.any(1).sum(keepdims=True))

    def _images(
        self, weights: np.ndarray, here: np.ndarray, shares: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What test images add to the variance over seeds, what of it is theirs, and their number, [K] or [1]."""
        if self.covariance is not None:
            rows = weights if shares is None else (shares @ weights)[None]
            variance = np.einsum("kc,cd,kd->k", rows, self.covariance, rows, optimize=True)
            return variance, np.zeros(1), np.array([self.pictures])
        if self.moved is None:
            return np.array([np.nan]), np.zeros(1), np.array([0])
        if not len(weights):
            return np.zeros(0), np.zeros(0), np.zeros(0, int)
        many = self.moved.shape[-1]
        step = len(weights) if shares is not None else max(1, BLOCK // max(1, len(self.seeds) * many))
        parts = [slice(start, start + step) for start in range(0, len(weights), step)]
        found = [self._image_variance(weights[part], here[:, part], shares) for part in parts]
        alone, both, pictures = (np.concatenate(values) for values in zip(*found, strict=True))
        return alone, both, pictures

    def _image_variance(
        self, weights: np.ndarray, here: np.ndarray, shares: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        assert self.moved is not None
        used = np.flatnonzero((weights != 0).any(0))
        moved = np.einsum("kc,scn->skn", weights[:, used], np.nan_to_num(self.moved[:, used]))
        unknown = np.isnan(self.moved[:, used, 0])  # [S, C]
        unknown = ((unknown.astype(float) @ (weights[:, used] != 0).T > 0) & here).any(0)  # [K]
        tested = np.ones((len(used), moved.shape[-1]), bool) if self.tested is None else self.tested[used]
        tested = (weights[:, used] != 0).astype(float) @ tested > 0  # [K, N]
        mean, apart = _centred_images(moved, here)
        if shares is not None:
            mean, apart = (shares @ mean)[None], np.einsum("k,skn->sn", shares, apart)[:, None]
            unknown, tested = unknown.any(keepdims=True), tested.any(0, keepdims=True)
        pictures = tested.sum(1)
        factor = pictures / np.maximum(pictures - 1, 1)
        both = factor * (apart**2).sum((0, -1))
        variance = factor * (mean**2).sum(-1) - both
        return np.where(unknown, np.nan, variance.clip(0)), np.where(unknown, np.nan, both), pictures

    def draws(self, count: int, seed: int = 0, student: bool = True) -> np.ndarray:
        """Joint draws of the means of all cells, for whatever is no weighted sum of them, [count, C].

        Seeds enter as in Student's t: the seeds' deviations with normal weights, over a spread that is drawn once for
        all cells, each at its quantile for as many seeds as it has; so quantiles of a weighted sum are the ends of its
        t interval (the posterior under Jeffreys' prior, Box and Tiao 1973, section 2.4). Test images enter as normal
        draws with their covariance; where both sources count, quantiles lie up to a seventh farther out than the ends
        of `contrasts`. Cells with one seed are NaN.

        Args:
            count: of draws.
            seed: of the draws.
            student: if false, the spread of the seeds is taken as known, for a standard error of what is drawn.
        """
        rng = np.random.default_rng(seed)
        here = np.isfinite(self.values)
        n = here.sum(0)
        mean, score = _centred(self.values, n)
        most = max(int(n.max(initial=0)), LEAST_SEEDS)
        spread = np.ones((count, 1))
        if student:
            at = stats.chi2.cdf(rng.chisquare(most - 1, count), most - 1)[:, None]
            df, which = np.unique(n.clip(LEAST_SEEDS) - 1, return_inverse=True)
            spread = np.sqrt(stats.chi2.ppf(at, df) / df)[:, which]
        drawn = rng.standard_normal((count, len(self.seeds))) @ score / spread
        of_images = self.image_root()
        if of_images is not None:
            drawn += rng.standard_normal((count, of_images.shape[1])) @ of_images.T
        return np.where(n >= LEAST_SEEDS, mean + drawn, np.nan)

    def image_root(self) -> np.ndarray | None:
        """A root [C, C] of the covariance of all cells' means over test images, without what is in the seeds'."""
        if self.covariance is not None:
            return square_root(self.covariance)
        if self.moved is None:
            return None
        mean, apart = _centred_images(np.nan_to_num(self.moved), np.isfinite(self.values))
        pictures = self.moved.shape[-1] if self.tested is None else max(1, int(self.tested.sum(1).min()))
        covariance = mean @ mean.T - np.einsum("scn,sdn->cd", apart, apart, optimize=True)
        return square_root(covariance * pictures / max(pictures - 1, 1))

    def chance(
        self,
        weights: np.ndarray,
        seeds: int,
        level: float = LEVEL,
        margin: float = 0.0,
        count: int = 1000,
        seed: int = 0,
    ) -> float:
        """The chance that with so many seeds in all, on the same test images, all contrasts are above 0.

        For a single contrast: that it is decided either way, or to be small. The true spread and means are drawn given
        the seeds at hand, then the seeds to come (a predictive probability, Spiegelhalter, Abrams and Myles 2004,
        section 6.5).

        Args:
            weights: [K, C].
            seeds: of the study to come, those at hand included.
            level: of its intervals.
            margin: a single contrast whose 95 % interval lies within it, either way, is decided too.
            count: of draws.
            seed: of the draws.

        Returns:
            A share of the draws; NaN if a contrast has no spread.
        """
        values = self.per_seed(weights)
        whole = np.isfinite(values).all(1)
        values = values[whole]
        n, more = len(values), seeds - len(values)
        if n < LEAST_SEEDS or more < 1:
            return np.nan
        rng = np.random.default_rng(seed)
        mean = values.mean(0)
        apart = values - mean
        spread = np.sqrt(rng.chisquare(n - 1, count) / (n - 1))[:, None]
        truth = mean + rng.standard_normal((count, n)) @ apart / np.sqrt(n * (n - 1)) / spread
        noise = rng.standard_normal((count, more, n)) @ apart / np.sqrt(n - 1) / spread[..., None]
        later = truth[:, None] + noise  # [count, more, K]
        ends = (n * mean + later.sum(1)) / seeds
        squares = ((values - ends[:, None]) ** 2).sum(1) + ((later - ends[:, None]) ** 2).sum(1)
        here = np.repeat(whole[:, None], len(weights), axis=1)
        images, crossed, pictures = self._images(weights, here)
        over_seeds = squares / (seeds - 1) / seeds
        found = estimates(ends, over_seeds, images, np.array(seeds), pictures, level, crossed * n / seeds)
        decided = found.low > 0
        if len(weights) == 1:
            reach = stats.t.ppf((1 + LEVEL) / 2, found.df) * found.se
            decided |= (found.high < 0) | (np.abs(ends) + reach <= margin)
        return float(decided.all(1).mean())


def square_root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric matrix whose square is the given one [C, C], without what rounding made negative.

    Unlike the eigenvectors of equal eigenvalues it is the same on every machine, and with it what is drawn.
    """
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(values.clip(0)) @ vectors.T


def step(few: Hashable, many: Hashable, doublings: float = 1.0) -> dict[Hashable, float]:
    """The difference between two cells, or the gain per doubling, as a weighted sum."""
    return {many: 1 / doublings, few: -1 / doublings}


def _centred(values: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means [K] of values [S, K], and scores [S, K] whose squares add up to the variance of each mean over seeds."""
    few = np.maximum(n, 1)
    here = np.isfinite(values)
    mean = np.where(n > 0, np.nansum(values, 0) / few, np.nan)
    score = np.where(here, values - mean, 0) / np.sqrt(few * np.maximum(few - 1, 1))
    return mean, score


def _centred_images(moved: np.ndarray, here: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `_centred`, of influences [S, K, N] of the seeds that are here [S, K]; 0 for a mean of none."""
    n = here.sum(0)
    few = np.maximum(n, 1)
    moved = np.where(here[..., None], moved, 0)
    mean = moved.sum(0) / few[:, None]
    scale = np.where(n > 1, 1 / np.sqrt(few * np.maximum(few - 1, 1)), 0)
    return mean, np.where(here[..., None], moved - mean, 0) * scale[:, None]


def _freedom(here: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Degrees of freedom of the variance over seeds of a sum of contrasts, [1]; 0 if one of them has no spread.

    Those of a quadratic form in the seeds' values (Satterthwaite 1946, Bell and McCaffrey 2002), if contrasts share
    their noise. With the same seeds in all of them it is one less than their number.

    Args:
        here: [S, K], which seeds each contrast has.
        shares: [K], their weights.
    """
    n = here.sum(0)
    if (n < LEAST_SEEDS).any():
        return np.zeros(1)
    scale = here * shares / np.sqrt(n * (n - 1))
    form = np.diag(scale.sum(1)) - (scale / n) @ here.T
    squares = form @ form.T
    return np.array([np.trace(squares) ** 2 / (squares**2).sum()])


def read_runs(frame: pd.DataFrame, metrics_dir: Path | None, by: Sequence[str] = GROUP) -> Runs:
    """A study's mIoU, seed by seed, with the influence of each test image: `crossed` of `read_scores`."""
    return crossed(read_scores(frame, metrics_dir, by))


def read_scores(
    frame: pd.DataFrame, metrics_dir: Path | None, by: Sequence[str] = GROUP
) -> dict[tuple[int, Hashable], Score]:
    """A study's mIoU, model by model, with the influence of each test image.

    Args:
        frame: what `tables.read_metrics` returns.
        metrics_dir: folder with the confusion matrices of each cell, <cell>.npz; a cell without has no influences.
            None: no cell has.
        by: the columns whose values are a cell's key.

    Returns:
        The scores in the frame's order, by seed and (pretrain_size, intermediate, finetune_size), or what `by` says.

    Raises:
        InputError: cells of several studies, a cell twice, or a damaged file.
    """
    check_cells(frame, [*by, "seed"])
    frame = frame.dropna(subset="miou")
    scores: dict[tuple[int, Hashable], Score] = {}
    for cell in frame.to_dict("records"):
        path = None if metrics_dir is None else metrics_dir / f"{cell['cell']}.npz"
        key = int(cell["seed"]), tuple(cell[name] for name in by)
        scores[key] = Score.read(cell["miou"], cell.get("miou_is", ""), path)
    return scores


@dataclass(frozen=True, eq=False)
class Score:
    """The mIoU of one model.

    Attributes:
        miou: a fraction.
        moved: [N], how far each test image moves it, see `influence`; None if that is not known.
        indices: [N], these images.
        groups: [N], the number of each one's group; None in a study without groups.
    """

    miou: float
    moved: np.ndarray | None = None
    indices: np.ndarray | None = None
    groups: np.ndarray | None = None

    @classmethod
    def read(cls, miou: float, kind: str, path: Path | None) -> Score:
        """A mIoU of a kind, with the influences that the confusion matrices in a file give, if there is one.

        Raises:
            InputError: the file is damaged.
        """
        if path is None or not path.is_file():
            return cls(miou)
        confusion, indices, groups = _read(path)
        return cls(miou, influence(confusion, kind), indices, groups)

    def over_groups(self, group_of: Mapping[int, int]) -> Score:
        """With the groups of images in place of images, by each image's group; one without is its own."""
        if self.moved is None or self.indices is None:
            return self
        return Score(self.miou, *by_group(self.moved, [group_of.get(row, -1 - row) for row in self.indices.tolist()]))


def crossed(scores: Mapping[tuple[int, Hashable], Score]) -> Runs:
    """Runs of the scores of some models.

    Args:
        scores: by seed, and by the key of the cell.

    Returns:
        Cells in the order in which their keys come first.
    """
    group_of: dict[int, int] = {}
    for score in scores.values():
        if score.groups is not None and score.indices is not None:
            group_of |= dict(zip(score.indices.tolist(), score.groups.tolist(), strict=True))
    of_each = 1.0
    if group_of:
        every = {row for score in scores.values() if score.indices is not None for row in score.indices.tolist()}
        of_each = len(every) / len({group_of.get(row, -1 - row) for row in every})
        scores = {key: score.over_groups(group_of) for key, score in scores.items()}
    keys = list(dict.fromkeys(key for _, key in scores))
    seeds = sorted({seed for seed, _ in scores})
    row, column = {seed: i for i, seed in enumerate(seeds)}, {key: i for i, key in enumerate(keys)}
    values = np.full((len(seeds), len(keys)), np.nan)
    places = {(row[seed], column[key]): score for (seed, key), score in scores.items()}
    for here, score in places.items():
        values[here] = score.miou
    known = [score.indices for score in scores.values() if score.indices is not None]
    if not known:
        return Runs(keys, seeds, values)
    every = np.unique(np.concatenate(known))
    moved = np.zeros((len(seeds), len(keys), len(every)))
    tested = np.zeros((len(keys), len(every)), bool)
    for here, score in places.items():
        if score.indices is None:
            moved[here] = np.nan
            continue
        at = np.searchsorted(every, score.indices)
        moved[(*here, at)] = score.moved
        tested[here[1], at] = True
    return Runs(keys, seeds, values, moved, tested, of_each=of_each)


def influence(confusion: np.ndarray, kind: str) -> np.ndarray:
    """How far each test image moves mIoU, linearised as a ratio of sums (Woodruff 1971).

    Args:
        confusion: [N, C, C], true class first.
        kind: 'dataset' or 'per_image', see `viny.evidence.metrics`.

    Returns:
        [N], with sum 0; sqrt(N / (N - 1)) times their norm is the standard error of mIoU over draws of N images.

    Raises:
        InputError: another kind.
    """
    if kind == "per_image":
        values = np.nan_to_num(iou(confusion)).mean(1)
        return (values - values.mean()) / len(values)
    if kind != "dataset":
        raise InputError(f"miou_is is '{kind}'; expected dataset or per_image")
    hit = np.diagonal(confusion, axis1=1, axis2=2).astype(float)
    union = confusion.sum(1) + confusion.sum(2) - hit
    there = confusion.sum((0, 2)) > 0  # as in `metrics.iou`
    hit, union = hit[:, there], union[:, there]
    total = union.sum(0)
    return ((hit - hit.sum(0) / total * union) / total).sum(1) / max(1, there.sum())


def by_group(influences: np.ndarray, groups: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Sums of images' influences [N] over the images of each group, [G], and the groups, ascending [G].

    Images of one film or patient are alike, so their groups are what was drawn: the sums give the variance that is
    robust to clusters (Liang and Zeger 1986).
    """
    found, place = np.unique(np.asarray(groups, np.int64), return_inverse=True)
    return np.bincount(place, influences, len(found)), found


def read_confusion(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Confusion matrices [N, C, C] of a cell's test images, true class first, and the images' indices [N].

    Raises:
        InputError: the file is damaged or holds something else.
    """
    confusion, indices, _ = _read(path)
    return confusion, indices


def _read(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """What `read_confusion` returns, and the number of each image's group [N]; None in a study without groups."""
    arrays = load_arrays(path, "confusion matrices", ("confusion", "indices"), ("groups",))
    confusion, indices, groups = arrays["confusion"], arrays["indices"], arrays.get("groups")
    if {array.dtype.kind for array in arrays.values()} - {"i", "u"}:
        raise InputError(f"{path}: not whole numbers; evaluate its cell again")
    square = confusion.ndim == 3 and confusion.shape[1] == confusion.shape[2]
    if not square or indices.shape != confusion.shape[:1] or (groups is not None and groups.shape != indices.shape):
        raise InputError(
            f"{path}: confusion {confusion.shape}, indices {indices.shape} and groups, if any; "
            "expected [N, C, C], [N] and [N]: evaluate its cell again"
        )
    return confusion, indices, groups
