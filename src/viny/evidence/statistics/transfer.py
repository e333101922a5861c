"""Effective data transferred: how many labels pre-training is worth."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from viny.evidence.statistics.crossed import ALPHA, LEVEL, Runs, step
from viny.evidence.statistics.fits import TINY
from viny.evidence.tables import GROUP, in_order
from viny.evidence.verdicts import Decision, Question, answer, decide, holm, in_points, p_in_words, told

TRANSFER = [*GROUP, "miou", "n", "labels_worth", "ratio", "low", "high", "censored", "verdict"]
NOT_TOLD = "what that is in labels cannot be told"


def transfer(
    runs: Runs, draws: int = 2_000, seed: int = 0, decisions: Sequence[Decision] | None = None
) -> pd.DataFrame:
    """Effective data transferred (Hernandez et al. 2021): how many labels is pre-training worth?

    It is worth the labels that a random start (no pre-training, no intermediate task) needs for the same mIoU. They
    come from the curve of its seed means, made monotone (isotonic regression) and piecewise linear in log(labels). A
    curve that falls by more than its noise (see `falls`) has no such reading.

    Args:
        runs: a study's mIoU, see `crossed.read_runs`.
        draws: of the cells' means.
        seed: of the draws.
        decisions: what the study decides; None to decide it here.

    Returns:
        One row per cell that is not a random start: miou, its mean; n seeds; labels_worth, the labels of a random
        start with that mIoU; ratio, labels_worth / finetune_size, below 1 where pre-training hurts; low and high,
        its 95 % interval, quantiles of `Runs.draws`, with an end outside the curve left empty; censored, 'beyond' if
        mIoU is above the whole curve, so that labels_worth and ratio are lower bounds, 'below' if it is below the
        whole curve, so that they are upper bounds, otherwise empty; verdict in words, which gives a number of labels
        only where the cell is told from a random start with as many (Holm's correction over the table), and what the
        study decides over all cells is the same (see `verdicts.told`). Empty without a random start;
        no labels_worth where its curve falls.
    """
    start = sorted(key for key in runs.keys if key[:2] == (0, "none"))
    others = [key for key in runs.keys if key[:2] != (0, "none")]
    if not start or not others:
        return pd.DataFrame(columns=TRANSFER)
    sizes, fall = np.array([key[2] for key in start], float), falls(runs, start)
    curve, cells = [runs.place[key] for key in start], [runs.place[key] for key in others]
    means, counts = np.nanmean(runs.values, axis=0), np.isfinite(runs.values).sum(0)
    (worth,), (beyond,), (below,) = _labels_worth(sizes, means[None, curve], means[None, cells], counts[curve])
    drawn = runs.draws(draws, seed).clip(0, 1)
    worths, over, under = _labels_worth(sizes, drawn[:, curve], drawn[:, cells], counts[curve])
    over, under, tail = over.mean(0), under.mean(0), (1 - LEVEL) / 2
    verdicts = _verdicts(runs, others, decide(runs) if decisions is None else decisions)
    rows = []
    for i, key in enumerate(others):
        row: dict[str, Any] = dict(zip(GROUP, key, strict=True)) | {"miou": means[cells[i]], "n": counts[cells[i]]}
        if fall:
            rows.append(row | {"censored": "", "verdict": f"{NOT_TOLD}: {fall}"})
            continue
        row |= {"labels_worth": worth[i], "ratio": worth[i] / key[2]}
        row |= {"censored": "beyond" if beyond[i] else "below" if below[i] else ""}
        supported = len(start) > 1 and np.isfinite(worths[:, i]).all()
        low = high = np.nan
        if supported:
            low, high = np.quantile(worths[:, i], [tail, 1 - tail]) / key[2]
            # A quantile cut off at the far end of the curve is not a bound; one at the near end is.
            low, high = np.nan if under[i] > tail else low, np.nan if over[i] > tail else high
        row |= {"low": low, "high": high}
        rows.append(row | {"verdict": _worth(row, bool(supported), len(start), verdicts.get(key, "undecided"))})
    return in_order(pd.DataFrame(rows, columns=TRANSFER))


def _verdicts(runs: Runs, others: Sequence[Any], decisions: Sequence[Decision]) -> dict[Any, str]:
    """What may be said of cells against a random start with as many labels."""
    there = set(runs.keys)
    asked = [
        Question("cell", key, "", "cell", [key[::2]], [{key: 1.0, (0, "none", key[2]): -1.0}])
        for key in others
        if (0, "none", key[2]) in there
    ]
    over_all = {(decision.kind, decision.what): decision for decision in decisions}
    found = {}
    for one in answer(runs, asked):
        size, task, _ = one.what
        # Pre-training and a task together are no question that the study decides over all cells.
        kind = ("pre-training", size) if task == "none" else ("task by size", f"{task} 0") if not size else None
        found[one.what] = told(one, over_all.get(kind) if kind else None)
    return found


def falls(runs: Runs, curve: Sequence[Hashable]) -> str:
    """Where a curve falls from one size to the next by more than its noise, in words; empty if it does not.

    One-sided t tests of the differences between neighbours, paired within seeds, with Holm's (1979) correction: a
    curve is monotone if none of them is a fall.

    Args:
        runs: a study's mIoU.
        curve: the cells, in the order of their labels.
    """
    if len(curve) < 2:
        return ""
    found = runs.contrasts(runs.weights(*(step(few, many) for few, many in pairwise(curve))))
    tested = np.flatnonzero(np.isfinite(found.p))
    fall = np.where(found.mean < 0, found.p / 2, 1 - found.p / 2)[tested]
    if not len(fall) or (adjusted := holm(fall)).min() > ALPHA:
        return ""
    worst = tested[adjusted.argmin()]
    return (
        f"the random start's curve is not monotone, from {curve[worst][2]:,} to {curve[worst + 1][2]:,} labels it "
        f"changes by {in_points(found.mean[worst])} points ({p_in_words(adjusted.min())} after Holm's correction)"
    )


def _labels_worth(
    sizes: np.ndarray, curves: np.ndarray, mious: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels at which curves [D, S] reach mIoUs [D, M], clipped to their sizes; and which lie beyond or below, [D, M].

    On a flat part it is the fewest labels.
    """
    fitted = _isotonic(curves, weights)[:, None]  # [D, 1, S]
    rise, above = np.diff(fitted), mious[..., None] - fitted[..., :-1]  # [D, M, S - 1]
    share = np.where(rise > TINY, above / np.where(rise > TINY, rise, 1), above > TINY).clip(0, 1)
    worth = np.exp(np.log(sizes[0]) + share @ np.diff(np.log(sizes)))
    worth = np.select([share.min(-1, initial=1) >= 1, share.max(-1, initial=0) <= 0], [sizes[-1], sizes[0]], worth)
    worth = np.where(np.isfinite(fitted).all(-1) & np.isfinite(mious), worth, np.nan)
    return worth, mious > fitted[..., -1] + TINY, mious < fitted[..., 0] - TINY


def _isotonic(curves: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The rising curves [D, S] next to curves [D, S] by weighted least squares, by the formula of maxima of minima.

    `scipy.optimize.isotonic_regression` takes one curve at a time.
    """
    sums, totals = (
        np.concatenate([0 * v[..., :1], v.cumsum(-1)], -1) for v in (curves * weights, weights.astype(float))
    )
    size = curves.shape[1]
    first, last = np.indices((size, size))
    there = last >= first
    means = (sums[:, last + 1] - sums[:, first]) / np.where(there, totals[last + 1] - totals[first], 1)
    least = np.minimum.accumulate(np.where(there, means, np.inf)[..., ::-1], axis=-1)[..., ::-1]
    return np.where(there, least, -np.inf).max(1)


def _worth(row: Mapping[str, Any], supported: bool, sizes: int, verdict: str) -> str:
    """A row of `transfer` in words.

    Args:
        row: of the table.
        supported: whether it has an interval.
        sizes: of the random start's curve.
        verdict: what may be said of its mIoU against that of a random start.
    """
    if sizes < 2:
        return "the random start was run at one size, so there is no curve to compare with"
    if not supported:
        return f"{NOT_TOLD}: one seed gives no interval"
    low, high = row["low"], row["high"]
    if verdict not in ("up", "down") or (np.isnan(low) and np.isnan(high)):
        return NOT_TOLD
    ratio = f"{row['ratio']:.2g}"
    if row["censored"] == "beyond":
        words = f"worth at least {ratio} times its labels, beyond the random start's curve"
    elif row["censored"] == "below":
        words = f"worth at most {ratio} times its labels, below the random start's curve"
    else:
        words = f"worth {ratio} times its labels"
    if row["intermediate"] != "none":  # of both together, which is no answer about the task
        return f"{words}{', pre-training and task together' if row['pretrain_size'] else ''}"
    # At an end of the curve the clipped interval touches 1 and lies wholly on that side.
    if verdict == "down" and (high < 1 or (high < 1 + TINY and row["censored"] == "below")):
        return f"hurts, {words}"
    if verdict == "up" and (low > 1 or (low > 1 - TINY and row["censored"] == "beyond")):
        return f"helps, {words}"
    return NOT_TOLD
