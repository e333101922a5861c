"""Effective data transferred: how many labels pre-training is worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize

from viny.evidence.statistics.effects import (
    LEAST_CLUSTERS,
    LEVEL,
    describe,
)
from viny.evidence.statistics.fits import TINY
from viny.evidence.statistics.gains import resampled
from viny.evidence.tables import (
    GROUP,
    check_cells,
    in_order,
)

TRANSFER = [*GROUP, "miou", "n", "labels_worth", "ratio", "low", "high", "censored", "verdict"]
NOT_TOLD = "what that is in labels cannot be told"


def transfer(frame: pd.DataFrame, resamples: int = 2_000, seed: int = 0) -> pd.DataFrame:
    """Effective data transferred (Hernandez et al. 2021): how many labels is pre-training worth?

    It is worth the labels that a random start (no pre-training, no intermediate task) needs for the same mIoU. They
    come from the curve of its seed means, made monotone (isotonic regression) and piecewise linear in log(labels).

    Args:
        frame: what `tables.read_metrics` returns.
        resamples: bootstrap samples over seeds.
        seed: of the resampling.

    Returns:
        One row per cell that is not a random start: miou, its mean; n seeds; labels_worth, the labels of a random
        start with that mIoU; ratio, labels_worth / finetune_size, below 1 where pre-training hurts; low and high,
        its 95 % bootstrap interval over 3 or more seeds, with an end outside the curve left empty; censored,
        'beyond' if mIoU is above the whole curve, so that labels_worth and ratio are lower bounds, 'below' if it
        is below the whole curve, so that they are upper bounds, otherwise empty; verdict in words. Empty without
        a random start.

    Raises:
        InputError: a cell given more than once, or several studies.
    """
    check_cells(frame)
    columns = ["pretrain_size", "intermediate", "finetune_size"]
    wide = frame.dropna(subset="miou").pivot(index="seed", columns=columns, values="miou")
    is_random = [key[:2] == (0, "none") for key in wide.columns]
    curve, others = wide.loc[:, is_random], wide.loc[:, np.logical_not(is_random)]
    if curve.empty or others.empty:
        return pd.DataFrame(columns=TRANSFER)
    start = np.array([key[2] for key in curve.columns], float)
    order = np.argsort(start)
    start, curve = start[order], curve.iloc[:, order]
    counts = curve.count().to_numpy()
    worth, beyond, below = _labels_worth(start, curve.mean().to_numpy(), others.mean().to_numpy(), counts)
    draws, row_of_draw = resampled(pd.concat([curve, others], axis=1), resamples, seed)
    drawn = [_labels_worth(start, row[: len(start)], row[len(start) :], counts) for row in draws]
    worths = np.array([found[0] for found in drawn])[row_of_draw]
    over, under = (np.array([found[i] for found in drawn])[row_of_draw].mean(0) for i in (1, 2))
    tail = (1 - LEVEL) / 2
    rows = []
    for i, key in enumerate(others.columns):
        row: dict[str, Any] = dict(zip(GROUP, (key[0], key[1], key[2]), strict=True))
        row |= {"miou": others[key].mean(), "n": others[key].count(), "labels_worth": worth[i]}
        row |= {"ratio": worth[i] / key[2], "censored": "beyond" if beyond[i] else "below" if below[i] else ""}
        supported = len(start) > 1 and np.isfinite(draws[:, [*range(len(start)), len(start) + i]]).all()
        low = high = np.nan
        if supported:
            low, high = np.quantile(worths[:, i], [tail, 1 - tail]) / key[2]
            # A quantile cut off at the far end of the curve is not a bound; one at the near end is.
            low, high = np.nan if under[i] > tail else low, np.nan if over[i] > tail else high
        row |= {"low": low, "high": high}
        # The paired difference has an interval of its own; if the cell is censored, the ratio says less.
        same = (0, "none", key[2])
        gain = describe((others[key] - wide[same]).dropna()) if same in wide else {"low": np.nan, "high": np.nan}
        undecided = not (gain["low"] > 0 or gain["high"] < 0)
        rows.append(row | {"verdict": _worth(row, bool(supported), len(start), undecided)})
    return in_order(pd.DataFrame(rows, columns=TRANSFER))


def _labels_worth(
    sizes: np.ndarray, curve: np.ndarray, mious: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels at which a curve [S] reaches mIoUs [M], clipped to its sizes; and which lie beyond or below it."""
    if not np.isfinite(curve).all():
        return (np.full(len(mious), np.nan), *np.zeros((2, len(mious)), bool))
    fitted = optimize.isotonic_regression(curve, weights=weights).x
    rising = fitted + 1e-12 * np.arange(len(fitted))  # so that a flat part has an inverse: its fewest labels
    worth = np.exp(np.interp(mious, rising, np.log(sizes)))
    ends = [mious <= fitted[0] + 1e-9, mious >= fitted[-1] - 1e-9]
    worth = np.select(ends, [sizes[0], sizes[-1]], worth)  # the sizes themselves, free of rounding
    return worth, mious > fitted[-1] + 1e-9, mious < fitted[0] - 1e-9


def _worth(row: Mapping[str, Any], supported: bool, sizes: int, undecided: bool) -> str:
    """A row of `transfer` in words; undecided if its paired difference from a random start may be zero."""
    ratio = f"{row['ratio']:.2g}"
    if sizes < 2:
        return "the random start was run at one size, so there is no curve to compare with"
    if row["censored"] == "beyond":
        words = f"worth at least {ratio} times its labels, beyond the random start's curve"
    elif row["censored"] == "below":
        words = f"worth at most {ratio} times its labels, below the random start's curve"
    else:
        words = f"worth {ratio} times its labels"
    if not supported:
        return f"{words}; fewer than {LEAST_CLUSTERS} seeds give no interval"
    low, high = row["low"], row["high"]
    if (np.isnan(low) and np.isnan(high)) or (undecided and row["censored"]):
        return NOT_TOLD
    # At an end of the curve the clipped interval touches 1 and lies wholly on that side.
    if high < 1 or (high < 1 + TINY and row["censored"] == "below"):
        return f"hurts, {words}"
    if low > 1 or (low > 1 - TINY and row["censored"] == "beyond"):
        return f"helps, {words}"
    ends = f"{low:.2g}" if low == low else "below the curve", f"{high:.2g}" if high == high else "beyond the curve"
    return f"{words} ({ends[0]} to {ends[1]}), help or harm undecided"
