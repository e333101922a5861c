"""Verdicts on mIoU differences: each effect, its uncertainty over seeds and over test images, and what it lacks.

Numbers are fractions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from tqdm import tqdm

from viny.evidence.metrics import iou
from viny.evidence.statistics.effects import ALPHA, LEVEL, counted, describe, overall, read_confusion

ASSURANCE = 0.8  # how often the advised seeds narrow an interval to the target
MOST_SEEDS = 20  # beyond this, more seeds are not advised

WORDS = {
    "pre-training": {"up": "worth it", "down": "costs"},
    "labels": {"up": "helped", "down": "hurt"},
    "task": {"up": "helped", "down": "hurt"},
}
UNKNOWN = "cannot be told"


@dataclass(eq=False)
class Effect:
    """A mean mIoU difference over cells, paired within seeds, with its uncertainty; fractions.

    Attributes:
        kind: 'pre-training', 'labels' or 'task'.
        name: the effect in words.
        what: the size or the task.
        table: one row per cell: pretrain_size, finetune_size and what `effects.describe` gives.
        mean, se, low, high, p_sign_flip, p_least, clusters: as in `effects.overall`; NaN where there is no interval.
        seeds: mean number of encoders per pre-train size.
        df: Satterthwaite's degrees of freedom.
        se_images: standard error over draws of the test images; NaN where unknown.
        why: why there is no interval.
        p, p_holm: p of Student's t test of the mean, before and after Holm's correction over effects of its kind.
        flips_holm: p of the sign flips after Holm's correction.
        family: how many effects these corrections cover.
        verdict: 'up', 'down', 'small' or 'unknown'.
        reason: what the verdict rests on, or what it lacks.
        lacks: 'seeds' or test 'images', whichever leaves more unknown; empty where enough is known.
    """

    kind: str
    name: str
    what: int | str
    table: pd.DataFrame
    mean: float
    se: float
    low: float
    high: float
    p_sign_flip: float
    p_least: float
    clusters: int
    seeds: float
    df: float
    se_images: float
    why: str
    p: float
    p_holm: float = np.nan
    flips_holm: float = np.nan
    family: int = 1
    verdict: str = "unknown"
    reason: str = ""
    lacks: str = ""

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2

    @property
    def half_images(self) -> float:
        return stats.norm.ppf((1 + LEVEL) / 2) * self.se_images

    def told(self, over: str) -> str:
        """Mean, interval and what the verdict rests on; `over` is the word for its cells."""
        where = f"on average over {counted(len(self.table), over)}"
        if math.isnan(self.low):
            return f"{in_points(self.mean)} points {where} ({self.why})"
        return f"{in_points(self.mean)} points ({span(self.low, self.high)}) {where}; {self.reason}"

    def words(self, target: float) -> str:
        if self.verdict == "unknown":
            return UNKNOWN
        if self.verdict == "small":
            return f"under {target_words(target)} either way"
        little = max(abs(self.low), abs(self.high)) <= target / 100
        return WORDS[self.kind][self.verdict] + (f", by under {target_words(target)}" if little else "")

    def as_dict(self, target: float) -> dict[str, Any]:
        names = ("kind", "what", "mean", "se", "low", "high", "df", "se_images", "clusters", "p", "p_holm")
        names += ("p_sign_flip", "p_least", "flips_holm", "reason")
        return {name: getattr(self, name) for name in names} | {"verdict": self.words(target)}


class TestImages:
    """The noise from the draw of a study's test images, from the confusion matrices of each cell."""

    __test__ = False  # tells pytest that this is not a test

    def __init__(self, folder: Path, frame: pd.DataFrame) -> None:
        kind = str(frame["miou_is"].iloc[0])
        self.found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for name in tqdm(frame["cell"], "confusion matrices", leave=False, disable=None, delay=2):
            path = folder / f"{name}.npz"
            if path.is_file():
                confusion, indices = read_confusion(path)
                self.found[name] = influence(confusion, kind), indices

    def se(self, weights: Mapping[str, float]) -> float:
        """Standard error of a weighted sum of cells' mIoU over draws of the test images; NaN where unknown."""
        if any(name not in self.found for name in weights):
            return np.nan
        most = max(int(self.found[name][1].max()) for name in weights) + 1
        total, used = np.zeros(most), np.zeros(most, bool)
        for name, weight in weights.items():
            values, indices = self.found[name]
            np.add.at(total, indices, weight * values)
            used[indices] = True
        n = used.sum()
        return float(np.sqrt(n / (n - 1) * (total**2).sum())) if n > 1 else np.nan


def influence(confusion: np.ndarray, kind: str) -> np.ndarray:
    """How far each test image moves mIoU, linearised as a ratio of sums (Woodruff 1971).

    Args:
        confusion: [N, C, C], true class first.
        kind: 'dataset' or 'per_image', see `viny.evidence.metrics`.

    Returns:
        [N], with sum 0; sqrt(N / (N - 1)) times their norm is the standard error of mIoU over draws of N images.
    """
    if kind == "per_image":
        values = np.nan_to_num(iou(confusion)).mean(1)
        return (values - values.mean()) / len(values)
    hit = np.diagonal(confusion, axis1=1, axis2=2).astype(float)
    union = confusion.sum(1) + confusion.sum(2) - hit
    there = confusion.sum((0, 2)) > 0  # as in `metrics.iou`
    hit, union = hit[:, there], union[:, there]
    total = union.sum(0)
    return ((hit - hit.sum(0) / total * union) / total).sum(1) / max(1, there.sum())


def seeds_needed(half_width: float, se: float, seeds: float, df: float, times: float = 1.0) -> int | None:
    """The fewest seeds that keep a t interval within a half-width in 4 of 5 studies (Kupper and Hafner 1989).

    If the observed spread alone were used, half of all studies would get a wider interval, so the spread's own
    chi-square quantile is included.

    Args:
        half_width: the target, in the unit of se.
        se: standard error observed with `seeds` seeds.
        seeds: how many gave it.
        df: its degrees of freedom; they grow with seeds - 1.
        times: the true spread to assume, as a multiple of the observed one.

    Returns:
        Seeds in all; None for more than `MOST_SEEDS`.
    """
    for n in range(2, MOST_SEEDS + 1):
        freedom = df / (seeds - 1) * (n - 1)
        unlucky = np.sqrt(stats.chi2.ppf(ASSURANCE, freedom) / freedom)
        if stats.t.ppf((1 + LEVEL) / 2, freedom) * times * se * np.sqrt(seeds / n) * unlucky <= half_width:
            return n
    return None


def spread_interval(df: float) -> tuple[float, float]:
    """The 95 % chi-square interval of the true spread, as multiples of the observed one."""
    tails = stats.chi2.ppf([(1 + LEVEL) / 2, (1 - LEVEL) / 2], df)
    return float(np.sqrt(df / tails[0])), float(np.sqrt(df / tails[1]))


def compare(
    kind: str,
    what: int | str,
    name: str,
    treated: pd.DataFrame,
    base: pd.DataFrame,
    images: TestImages,
    doublings: float = 1.0,
) -> Effect | None:
    """The mean difference between two sets of cells, all of equal weight, by `effects.overall`.

    Args:
        kind, what, name: see `Effect`.
        treated: cells as in `tables.read_metrics`; their task is ignored.
        base: cells to compare them with, matched by pretrain_size, finetune_size and seed.
        images: the noise of the test images.
        doublings: number of doublings to divide the difference by.

    Returns:
        The effect without its verdict; None where no seed has both.
    """
    columns = ["cell", "miou", "intermediate", "pretrain_size", "finetune_size", "seed"]
    on = columns[-3:]
    base, treated = (frame.dropna(subset="miou")[columns] for frame in (base, treated))
    pairs = treated.merge(base, on=on, suffixes=("", "_base"))
    if pairs.empty:
        return None
    frame = pd.concat([base.assign(intermediate="none"), treated.assign(intermediate="other")])
    row = overall(frame).iloc[-1]
    numbers = {key: float(row[key]) / doublings for key in ("mean", "se", "low", "high")}
    where = pairs.groupby(on[:2])["cell"]
    weight = 1 / (where.transform("size") * where.ngroups * doublings)
    weights: dict[str, float] = {}
    for side, sign in (("cell", 1), ("cell_base", -1)):
        for cell, w in zip(pairs[side], weight, strict=True):
            weights[cell] = weights.get(cell, 0.0) + sign * w
    known = not math.isnan(numbers["low"])
    df = _freedom(pairs.assign(difference=pairs["miou"] - pairs["miou_base"])) if known else np.nan
    t = abs(numbers["mean"]) / numbers["se"] if known and numbers["se"] else np.inf
    rows = []
    for key, cell in pairs.groupby(on[:2]):
        differences = (cell["miou"] - cell["miou_base"]).set_axis(cell["seed"]) / doublings
        rows.append(dict(zip(on[:2], key, strict=True)) | describe(differences))
    return Effect(
        kind, name, what, pd.DataFrame(rows), **numbers,
        p_sign_flip=float(row["p_sign_flip"]), p_least=float(row["p_least"]), clusters=int(row["clusters"]),
        seeds=row["clusters"] / pairs["pretrain_size"].nunique(), df=df, se_images=images.se(weights),
        why="" if known else _no_interval(str(row["verdict"]), kind, pairs["seed"].nunique()),
        p=float(2 * stats.t.sf(t, df)) if known and numbers["mean"] else 1.0,
    )  # fmt: skip


def _no_interval(verdict: str, kind: str, seeds: int) -> str:
    """Why there is no interval, as `effects.overall` puts it; the unit is a seed with its encoder."""
    if seeds == 1:
        return "one seed, no interval"
    return verdict.split(";")[0].replace("encoder", "encoder" if kind == "task" else "seed")


def _freedom(pairs: pd.DataFrame) -> float:
    """Satterthwaite's (1946) degrees of freedom of the mean over cells, with encoders as the unit."""
    cell = pairs.groupby(["pretrain_size", "finetune_size"])["difference"]
    n = cell.transform("size")
    score = (pairs["difference"] - cell.transform("mean")) / np.sqrt(n * (n - 1))
    sums = score.groupby([pairs["pretrain_size"], pairs["seed"]]).sum()
    variance, freedom = sums.pow(2).groupby(level=0).sum(), sums.groupby(level=0).size() - 1
    if not variance.sum() > 0:
        return float(freedom.sum())
    return float(variance.sum() ** 2 / (variance**2 / freedom).sum())


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's (1979) correction of p values [N]; statsmodels' own collects garbage at each call, which takes 0.1 s."""
    order = np.argsort(p)
    steps = np.maximum.accumulate((len(p) - np.arange(len(p))) * np.asarray(p, float)[order]).clip(max=1)
    return steps[np.argsort(order)]


def judge(found: Sequence[Effect], target: float) -> None:
    """Give effects of one kind their verdicts.

    An effect is 'up' or 'down' if three things agree: its 95 % interval over seeds excludes zero; Holm's p over the
    given effects is 0.05 or less for the t test and, where there are enough encoders to reach that, for the sign flips;
    and the noise of the test images does not reach zero. Otherwise it is 'small' if both kinds of interval lie within
    the target.

    Args:
        found: effects of one kind.
        target: in percentage points.
    """
    known = [effect for effect in found if not math.isnan(effect.low)]
    if known:
        adjusted = holm([effect.p for effect in known])
        flipped = holm([effect.p_sign_flip for effect in known])
    for effect in found:
        effect.lacks = "seeds"
        if effect not in known:
            effect.reason = effect.why
            continue
        effect.family = len(known)
        effect.p_holm, effect.flips_holm = (float(values[known.index(effect)]) for values in (adjusted, flipped))
        least = min(1.0, effect.p_least * len(known))
        over = f" after Holm's correction over {len(known)}" if len(known) > 1 else ""
        images = 0.0 if math.isnan(effect.half_images) else effect.half_images
        if effect.low <= 0 <= effect.high:
            effect.reason = "the interval holds zero"
        elif effect.p_holm > ALPHA:
            effect.reason = f"the interval is clear of zero, but p is {effect.p_holm:.2g}{over}"
        elif least <= ALPHA < effect.flips_holm:
            effect.reason = f"the interval is clear of zero, but p by sign flips is {effect.flips_holm:.2g}{over}"
        elif images >= abs(effect.mean):
            effect.lacks = "images"
            effect.reason = f"so on these test images, but their draw alone is ±{bare(images)}: others may turn it"
        else:
            effect.lacks, effect.verdict = "", "up" if effect.mean > 0 else "down"
            effect.reason = f"p {effect.p_holm:.2g} by the t test{over}, "
            if least <= ALPHA:
                effect.reason += f"{effect.flips_holm:.2g} by sign flips"
            else:
                effect.reason += f"which sign flips of {counted(effect.clusters, 'encoder')} cannot confirm "
                effect.reason += f"(least p {least:.2g})"
            continue
        if max(abs(effect.low), abs(effect.high), abs(effect.mean) + images) <= target / 100:
            effect.lacks, effect.verdict = "", "small"
        elif images > effect.half:
            effect.reason += "" if effect.lacks == "images" else f", and the test images' draw adds ±{bare(images)}"
            effect.lacks = "images"


def target_words(points: float) -> str:
    """A target in words."""
    return f"{points:g} point{'' if points == 1 else 's'}"


def in_points(value: float) -> str:
    """A fraction as signed percentage points."""
    return f"{100 * value:+.2f}"


def bare(value: float) -> str:
    """A fraction as percentage points without a sign, for values that have none."""
    return f"{100 * value:.2f}"


def span(low: float, high: float) -> str:
    """An interval of fractions in points."""
    return f"{in_points(low)} to {in_points(high)}"
