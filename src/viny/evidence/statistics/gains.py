"""Marginal gains: what a doubling of images or labels brings."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from viny.evidence.statistics.crossed import Runs, step
from viny.evidence.statistics.effects import points
from viny.evidence.tables import in_order

ESTIMATE = ["n", "points", "mean", "sd", "se_seeds", "se_images", "se", "df", "low", "high"]
GAINS = ["along", "intermediate", "pretrain_size", "finetune_size", "smaller", "larger", "per", *ESTIMATE, "why"]


def marginal_gains(runs: Runs) -> pd.DataFrame:
    """What each doubling of the labels, or of the pre-training images, adds to mIoU, paired within seeds.

    Args:
        runs: a study's mIoU, see `crossed.read_runs`.

    Returns:
        One row per pair of consecutive sizes of each curve. `along` is 'labels', where finetune_size is
        empty, or 'pre-training images', where pretrain_size is empty; smaller and larger are the two sizes.
        per is 'doubling', where the difference is divided by log2(larger / smaller), or 'step', the plain
        difference from no pre-training to some. n seeds, points (each seed's gain), mean, sd (ddof=1), se_seeds,
        se_images and se with its df, low and high (95 % interval over seeds and test images) describe the gain, a
        fraction; why there is no interval, in words.
    """
    rows, weights = [], []
    for along, size, fixed in (("labels", 2, 0), ("pre-training images", 0, 2)):
        curves: dict[tuple[str, int], list[Any]] = {}
        for key in sorted(runs.keys):
            curves.setdefault((key[1], key[fixed]), []).append(key)
        for (task, value), cells in curves.items():
            for few, many in pairwise(cells):
                smaller, larger = few[size], many[size]
                row = {"along": along, "intermediate": task, "smaller": smaller, "larger": larger}
                row |= {"pretrain_size" if fixed == 0 else "finetune_size": value}
                rows.append(row | {"per": "doubling" if smaller else "step"})
                weights.append(step(few, many, float(np.log2(larger / smaller)) if smaller else 1.0))
    if not rows:
        return pd.DataFrame(columns=GAINS)
    each = runs.weights(*weights)
    found = pd.DataFrame(vars(runs.contrasts(each))).drop(columns="p")
    values = [pd.Series(column, runs.seeds).dropna() for column in runs.per_seed(each).T]
    table = (
        pd.DataFrame(rows).join(found).assign(points=[points(v) for v in values], sd=[v.std(ddof=1) for v in values])
    )
    table["why"] = [_without(row) for row in table.to_dict("records")]
    table = in_order(table.reindex(columns=GAINS)).sort_values("along", kind="stable", ignore_index=True)
    return table.astype(dict.fromkeys(["pretrain_size", "finetune_size", "smaller", "larger"], "Int64"))


def _without(row: Mapping[str, Any]) -> str:
    """Why a gain has no interval; empty if it has one."""
    return {0: "no seed has both sizes", 1: "one seed has no spread"}.get(row["n"], "")
