"""Statistics of paired effects: what an intermediate task changes, how certain that is, and how much is image noise.

All pairs from one pre-trained encoder, (pretrain_size, seed), share that encoder and the intermediate encoder
trained from it. They form a cluster, the unit that is resampled for intervals and tests. Metrics are fractions in
every frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

from viny.evidence.metrics import iou
from viny.evidence.tables import GROUP, KEYS, in_order, paired_differences
from viny.runtime.errors import InputError
from viny.runtime.files import load_arrays

LEVEL = 0.95  # of every interval
ALPHA = 0.05  # a p value has to be this small
LEAST_CLUSTERS = 3  # a bootstrap of two has only three distinct values, too few for an interval
EXACT = 1 << 16  # up to this many sign flips, all are tried
DRAWS = 20_000  # beyond that, this many are drawn
SPREAD = ["n", "points", "mean", "sd", "se", "low", "high"]
EFFECTS = [*GROUP, *SPREAD, "p_sign_flip", "p_least", "p_holm", "verdict"]
OVERALL = ["intermediate", "over", "pretrain_size", "cells", "pairs", "clusters", "mean", "se", "low", "high"]
OVERALL += ["p_sign_flip", "p_least", "verdict"]
MIOU_KINDS = ["dataset", "per_image"]
NOISE = ["difference", "se_images", "low_images", "high_images"]


def describe(values: pd.Series) -> dict[str, float | int | str]:
    """Mean, spread and t interval of one value per seed.

    Args:
        values: one number per seed, indexed by seed.

    Returns:
        n; points, every value as `seed:value`; mean; sd (ddof=1) and se = sd / sqrt(n) over seeds; low and
        high, Student's 95 % interval. For one seed sd, se, low and high are NaN.
    """
    n, mean, sd = len(values), values.mean(), values.std(ddof=1)
    se = sd / np.sqrt(n)
    reach = stats.t.ppf((1 + LEVEL) / 2, n - 1) * se if n > 1 else np.nan
    points = " ".join(f"{seed}:{value:.6g}" for seed, value in values.sort_index().items())
    return dict(zip(SPREAD, (n, points, mean, sd, se, mean - reach, mean + reach), strict=True))


def sign_flip(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Two-sided sign-flip test that the values are symmetric about 0 (Fisher 1935).

    Args:
        values: [n], independent of each other; the statistic is their sum.
        seed: for the flips drawn when there are more than `EXACT`.

    Returns:
        p, from all 2^n flips or from `DRAWS` of them with the +1 of Phipson and Smyth (2010); and the
        smallest p that n values can give.
    """
    n = len(values)
    if n == 1:
        return 1.0, 1.0  # both flips are equally far from 0; scipy wants two values
    exact = 2**n <= EXACT
    test = stats.permutation_test(
        (values,),
        np.sum,
        permutation_type="samples",
        n_resamples=np.inf if exact else DRAWS,
        vectorized=True,
        batch=1 << 14,
        rng=np.random.default_rng(seed),
    )
    # For drawn flips scipy doubles the smaller tail, so the smallest p is twice one count.
    return float(test.pvalue), min(1.0, 2 / 2**n) if exact else 2 / (DRAWS + 1)


def effects(frame: pd.DataFrame, metric: str = "miou") -> pd.DataFrame:
    """What an intermediate task changes in each cell, paired by seed.

    Args:
        frame: what `tables.read_metrics` returns.
        metric: the metric to compare.

    Returns:
        One row per (pretrain_size, intermediate, finetune_size) with a pair: n pairs; points, every difference
        as `seed:value`; mean, sd (ddof=1), se; low and high of the 95 % t interval; p_sign_flip, exact;
        p_least, the smallest p that n seeds can give; p_holm, Holm's (1979) correction over the rows of the
        table; verdict in words. Differences are fractions, with the task minus without.

    Raises:
        InputError: as for `paired_differences`, or the frame does not have the metric.
    """
    rows = []
    for key, cell in _pairs(frame, metric).groupby(GROUP):
        differences = cell.set_index("seed")["difference"]
        p, least = sign_flip(differences.to_numpy())
        rows.append(dict(zip(GROUP, key, strict=True)) | describe(differences) | {"p_sign_flip": p, "p_least": least})
    table = in_order(pd.DataFrame(rows, columns=EFFECTS[:-2]))
    table["p_holm"] = multipletests(table["p_sign_flip"], ALPHA, method="holm")[1] if rows else pd.Series(dtype=float)
    verdicts = [_verdict(row, len(table)) for row in table.to_dict("records")]
    return table.assign(verdict=pd.Series(verdicts, dtype=str))


def _pairs(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    if metric not in frame:
        raise InputError(f"metric '{metric}' is not in the table of metrics; name one of its columns")
    return paired_differences(frame, metric)


def _verdict(row: dict[str, float], tests: int) -> str:
    """What a row of `effects` shows; if p cannot reach `ALPHA`, it says so."""
    points = [float(point.split(":")[1]) for point in row["points"].split()]
    n, signs = len(points), np.sign(points)
    if n == 1:
        return "one seed has no spread"
    lower, higher = (signs < 0).sum(), (signs > 0).sum()
    word, count = ("lower", lower) if lower >= higher else ("higher", higher)
    seen = f"{word} in {count} of {n} seeds"
    if row["p_least"] > ALPHA:
        return f"{seen}; {n} seeds cannot reach p < {ALPHA:g} (least {row['p_least']:.2g})"
    if row["p_least"] * tests > ALPHA:
        least = min(1.0, row["p_least"] * tests)
        return f"{seen}; {n} seeds cannot reach p < {ALPHA:g} in one of {tests} cells after Holm (least {least:.2g})"
    if row["p_holm"] <= ALPHA:
        return f"{'lowers' if row['mean'] < 0 else 'raises'} the metric (Holm's p {row['p_holm']:.2g})"
    return f"{seen}; no effect shown (Holm's p {row['p_holm']:.2g})"


def overall(frame: pd.DataFrame, metric: str = "miou", resamples: int = 10_000, seed: int = 0) -> pd.DataFrame:
    """What an intermediate task changes on average over the grid's cells, with the encoder as the unit.

    Every cell has the same weight, whatever its number of seeds. The interval is the rescaled bootstrap of Rao and
    Wu (1988): encoders are drawn within their pre-train size, and deviations are multiplied by sqrt(n / (n - 1)),
    which undoes the bias of the variance when n of n are drawn. Its quantiles are stretched from the normal's to
    Student's (Hesterberg 2015) with Satterthwaite's (1946) degrees of freedom, because a percentile interval from
    3 encoders per size is far too narrow. The test flips the sign of all of an encoder's differences together.

    Args:
        frame: what `tables.read_metrics` returns.
        metric: the metric to compare.
        resamples: bootstrap samples.
        seed: of the resampling.

    Returns:
        One row per (intermediate, pretrain_size), over 'one size', and one per intermediate over 'all sizes',
        where pretrain_size is empty: cells; pairs; clusters, the number of encoders; mean; se, cluster-robust;
        low and high of the 95 % interval; p_sign_flip; p_least; verdict, which gives the reason if there is no
        interval or p cannot be below 0.05. Differences are fractions, with the task minus without.

    Raises:
        InputError: as for `effects`.
    """
    rows = []
    for task, mine in _pairs(frame, metric).groupby("intermediate"):
        parts = [("one size", size, part) for size, part in mine.groupby("pretrain_size")]
        for over, size, part in [*parts, ("all sizes", pd.NA, mine)]:
            row = {"intermediate": task, "over": over, "pretrain_size": size}
            rows.append(row | _average(part, resamples, seed))
    table = pd.DataFrame(rows, columns=OVERALL)
    return table.astype({"pretrain_size": "Int64", "intermediate": str, "over": str, "verdict": str})


def _average(pairs: pd.DataFrame, resamples: int, seed: int) -> dict[str, float | int | str]:
    """The part of a row of `overall` that comes from its pairs."""
    cells = pairs.groupby(["pretrain_size", "finetune_size"])["difference"]
    n = cells.transform("size")
    weight = 1 / (n * cells.ngroups)
    # Inflated cell by cell: a cell with missing seeds has fewer degrees of freedom than its pre-train size.
    inflation = np.sqrt(n / (n - 1).where(n > 1))
    parts = pairs.assign(
        share=weight * pairs["difference"],
        score=weight * inflation * (pairs["difference"] - cells.transform("mean")),
    )
    clusters = parts.groupby(["pretrain_size", "seed"])[["share", "score"]].sum(min_count=1)
    mean = clusters["share"].sum()
    p, least = sign_flip(clusters["share"].to_numpy(), seed)
    sizes = clusters.groupby("pretrain_size")["score"]
    words, interval = [], {"se": np.nan, "low": np.nan, "high": np.nan}
    alone, single = (sizes.size() == 1).sum(), (cells.size() == 1).sum()
    if alone:
        words.append(f"no interval: {counted(alone, 'pre-train size')} with one encoder")
    elif single:
        words.append(f"no interval: {counted(single, 'cell')} with one seed")
    elif len(clusters) < LEAST_CLUSTERS:
        words.append(f"no interval: {len(clusters)} encoders do not support one")
    else:
        interval = cluster_interval([score.to_numpy() for _, score in sizes], mean, resamples, seed)
    if least > ALPHA:
        words.append(f"{counted(len(clusters), 'encoder')} cannot reach p < {ALPHA:g} (least {least:.2g})")
    elif p > ALPHA:
        words.append(f"no effect shown (p {p:.2g})")
    else:
        words.append(f"{'lowers' if mean < 0 else 'raises'} the metric (p {p:.2g})")
    counts = {"cells": cells.ngroups, "pairs": len(pairs), "clusters": len(clusters), "mean": mean}
    return counts | interval | {"p_sign_flip": p, "p_least": least, "verdict": "; ".join(words)}


def counted(count: int, what: str) -> str:
    """A count with its noun: 1 seed, 2 seeds."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def cluster_interval(scores: list[np.ndarray], mean: float, resamples: int, seed: int) -> dict[str, float]:
    """The interval of `overall`, from each cluster's contribution to the deviation of the mean.

    Args:
        scores: one array [clusters] per stratum, of 2 clusters or more, each with sum 0; with n clusters of equal
            weight w they are w sqrt(n / (n - 1)) times the deviations from the stratum's mean.
        mean: the estimate.
        resamples: bootstrap samples.
        seed: of the resampling.

    Returns:
        se, low and high.
    """
    rng = np.random.default_rng(seed)
    variances = np.array([(score**2).sum() for score in scores])
    freedom = np.array([len(score) - 1 for score in scores])
    if not variances.sum() > 0:
        return {"se": 0.0, "low": mean, "high": mean}
    df = variances.sum() ** 2 / (variances**2 / freedom).sum()
    draws = sum(resample_counts(len(score), resamples, rng) @ score for score in scores)
    low, high = stretch(df) * np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"se": float(np.sqrt(variances.sum())), "low": mean + low, "high": mean + high}


def resample_counts(n: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of n units is drawn in samples of n with replacement: int [resamples, n]."""
    return rng.multinomial(n, np.full(n, 1 / n), size=resamples)


def stretch(df: float) -> float:
    """The factor from a normal 95 % interval to Student's with df degrees of freedom (Hesterberg 2015)."""
    return float(stats.t.ppf((1 + LEVEL) / 2, df) / stats.norm.ppf((1 + LEVEL) / 2))


def image_noise(pairs: Sequence[tuple[np.ndarray, np.ndarray]], resamples: int = 2_000, seed: int = 0) -> pd.DataFrame:
    """How much an mIoU difference varies with the draw of test images: a paired bootstrap (Efron 1979).

    Args:
        pairs: (with the task, without), confusion matrices [N, C, C] of each model, true class first; both of the
            same N images in the same order. All pairs with the same N get the same resamples.
        resamples: bootstrap samples.
        seed: of the resampling.

    Returns:
        Two rows per pair: pair, its place in `pairs`; miou_is, 'dataset' or 'per_image' as in `metrics`;
        difference; se_images; low_images and high_images, the 95 % percentile interval. All fractions.

    Raises:
        InputError: the two of a pair differ in shape, or are not confusion matrices.
    """
    drawn: dict[int, np.ndarray] = {}
    models: dict[int, dict[str, tuple[float, np.ndarray]]] = {}  # a model without a task is in several pairs

    def resampled(confusion: np.ndarray) -> dict[str, tuple[float, np.ndarray]]:
        n = len(confusion)
        if n not in drawn:
            drawn[n] = resample_counts(n, resamples, np.random.default_rng(seed)).astype(float)
        if id(confusion) not in models:
            models[id(confusion)] = _resampled_miou(confusion, drawn[n])
        return models[id(confusion)]

    rows = []
    for place, (with_task, without) in enumerate(pairs):
        shape = with_task.shape
        if shape != without.shape or len(shape) != 3 or shape[1] != shape[2] or not len(with_task):
            raise InputError(
                f"pair {place}: confusion matrices of shapes {shape} and {without.shape}; "
                "expected [N, C, C] of the same images for both"
            )
        one, other = resampled(with_task), resampled(without)
        for kind in MIOU_KINDS:
            draws = one[kind][1] - other[kind][1]
            low, high = np.nanquantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            values = (one[kind][0] - other[kind][0], np.nanstd(draws, ddof=1), low, high)
            rows.append({"pair": place, "miou_is": kind} | dict(zip(NOISE, values, strict=True)))
    return pd.DataFrame(rows, columns=["pair", "miou_is", *NOISE])


def _resampled_miou(confusion: np.ndarray, counts: np.ndarray) -> dict[str, tuple[float, np.ndarray]]:
    """Both kinds of mIoU, of all images and of each resample; counts is [resamples, N]."""
    n, classes, _ = confusion.shape
    totals = counts @ confusion.reshape(n, -1).astype(float)
    values = iou(np.concatenate([confusion.sum(0, keepdims=True), totals.reshape(-1, classes, classes)]))
    there = np.isfinite(values)
    of_set = np.where(there, values, 0).sum(1) / np.where(there.any(1), there.sum(1), np.nan)
    of_images = np.nan_to_num(iou(confusion)).mean(1)  # [N]; an absent class counts 0
    return {"dataset": (of_set[0], of_set[1:]), "per_image": (of_images.mean(), counts @ of_images / n)}


def noise_of_images(
    metrics_dir: str | Path, frame: pd.DataFrame, resamples: int = 2_000, seed: int = 0
) -> pd.DataFrame:
    """`image_noise` of every pair of a study, for the main mIoU of its tables.

    Args:
        metrics_dir: folder with the confusion matrices of each cell, <cell>.npz.
        frame: what `tables.read_metrics` returns.
        resamples: bootstrap samples.
        seed: of the resampling.

    Returns:
        One row per pair: `KEYS`, miou_is, difference, se_images, low_images, high_images; fractions.

    Raises:
        InputError: a file is missing, damaged, or of other images than its partner, or does not give the
            mIoU in the frame.
    """
    pairs = _pairs(frame, "miou")
    by_key = frame.set_index(KEYS)
    files: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def load(key: tuple[int, str, int, int]) -> tuple[Path, np.ndarray, np.ndarray]:
        name = by_key.loc[key, "cell"]
        path = Path(metrics_dir) / f"{name}.npz"
        if name not in files:
            files[name] = read_confusion(path)
        return path, *files[name]

    matrices = []
    for key in pairs[KEYS].itertuples(index=False, name=None):
        path, confusion, indices = load(key)
        partner, without, others = load((key[0], "none", *key[2:]))
        if not np.array_equal(indices, others):
            raise InputError(
                f"{path}: is of other test images than {partner}; a pair can only be resampled over the "
                "same images: evaluate both cells on one split"
            )
        matrices.append((confusion, without))
    table = image_noise(matrices, resamples, seed)
    table = pairs[KEYS].join(table[table["miou_is"] == _kind(frame)].set_index("pair"))
    off = (table["difference"] - pairs["difference"]).abs() > 1e-6
    if off.any():
        name = by_key.loc[tuple(pairs.loc[off, KEYS].iloc[0]), "cell"]
        raise InputError(f"{Path(metrics_dir) / name}.npz: gives another mIoU than the table; evaluate the cell again")
    return table[[*KEYS, "miou_is", *NOISE]]


def _kind(frame: pd.DataFrame) -> str:
    kind = str(frame["miou_is"].iloc[0])
    if kind not in MIOU_KINDS:
        raise InputError(f"miou_is is '{kind}'; expected {' or '.join(MIOU_KINDS)}")
    return kind


def read_confusion(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Confusion matrices [N, C, C] and the images' indices [N]."""
    confusion, indices = load_arrays(path, "confusion matrices", ("confusion", "indices")).values()
    if confusion.dtype.kind not in "iu" or indices.dtype.kind not in "iu":
        raise InputError(f"{path}: not whole numbers; evaluate its cell again")
    square = confusion.ndim == 3 and confusion.shape[1] == confusion.shape[2]
    if not square or indices.shape != confusion.shape[:1]:
        raise InputError(
            f"{path}: confusion {confusion.shape} and indices {indices.shape}; "
            "expected [N, C, C] and [N]: evaluate its cell again"
        )
    return confusion, indices
