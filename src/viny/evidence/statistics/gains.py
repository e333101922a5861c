"""Marginal gains: what a doubling of images or labels brings."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from viny.evidence.statistics.effects import (
    LEAST_CLUSTERS,
    SPREAD,
    describe,
    resample_counts,
    stretch,
)
from viny.evidence.tables import (
    check_cells,
    in_order,
)

GAINS = ["along", "intermediate", "pretrain_size", "finetune_size", "smaller", "larger", "per", *SPREAD, "verdict"]


def marginal_gains(frame: pd.DataFrame) -> pd.DataFrame:
    """What each doubling of the labels, or of the pre-training images, adds to mIoU, paired within seeds.

    Args:
        frame: what `tables.read_metrics` returns.

    Returns:
        One row per pair of consecutive sizes of each curve. `along` is 'labels', where finetune_size is
        empty, or 'pre-training images', where pretrain_size is empty; smaller and larger are the two sizes.
        per is 'doubling', where the difference is divided by log2(larger / smaller), or 'step', the plain
        difference from no pre-training to some. n seeds, points, mean, sd (ddof=1), se, low and high (95 %
        t interval) describe the gain, a fraction; verdict in words.

    Raises:
        InputError: a cell given more than once, or several studies.
    """
    check_cells(frame)
    axes = {"finetune_size": ("labels", "pretrain_size"), "pretrain_size": ("pre-training images", "finetune_size")}
    rows = []
    for size, (along, fixed) in axes.items():
        for (task, value), curve in frame.groupby(["intermediate", fixed]):
            wide = curve.pivot(index="seed", columns=size, values="miou")
            for smaller, larger in pairwise(wide.columns):
                gains = (wide[larger] - wide[smaller]).dropna()
                if smaller:
                    gains = gains / np.log2(larger / smaller)
                row = {"along": along, "intermediate": task, fixed: value, "smaller": smaller, "larger": larger}
                row |= {"per": "doubling" if smaller else "step", "n": len(gains)}
                if len(gains):
                    row |= describe(gains)
                rows.append(row | {"verdict": _sign(row)})
    table = in_order(pd.DataFrame(rows, columns=GAINS)).sort_values("along", kind="stable", ignore_index=True)
    return table.astype(dict.fromkeys(["pretrain_size", "finetune_size", "smaller", "larger"], "Int64"))


def _sign(row: Mapping[str, Any]) -> str:
    """What an interval says about a gain's sign."""
    if row["n"] == 0:
        return "no seed has both sizes"
    if row["n"] == 1:
        return "one seed has no spread"
    if row["low"] > 0:
        return "gain"
    return "loss" if row["high"] < 0 else "sign undecided"


def resampled(wide: pd.DataFrame, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Seed means under a bootstrap over seeds: the distinct ones, and which of them each sample is.

    As in `effects.overall`: rescaled (Rao and Wu 1988) and stretched to Student's quantiles (Hesterberg
    2015), so that the percentiles of one mean are close to its t interval. Seeds are drawn for all cells
    together, so what the cells of a seed share stays shared.

    Args:
        wide: mIoU [seeds, cells], NaN where a seed was not run.
        resamples: bootstrap samples.
        seed: of the resampling.

    Returns:
        [D, cells], NaN for a cell with fewer than 3 seeds, and [resamples], rows of it; few seeds give few rows.
    """
    values = wide.to_numpy()
    n = np.isfinite(values).sum(0)
    enough = n >= LEAST_CLUSTERS
    reach = np.full(len(n), np.nan)
    reach[enough] = [np.sqrt(k / (k - 1)) * stretch(k - 1) / k for k in n[enough]]
    counts = resample_counts(len(values), resamples, np.random.default_rng(seed))
    counts, row = np.unique(counts, axis=0, return_inverse=True)
    means = wide.mean().to_numpy() + reach * (counts @ wide.sub(wide.mean()).fillna(0).to_numpy())
    return np.clip(means, 0, 1), row
