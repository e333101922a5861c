"""The report's table of mIoU: every mean with its intervals, its seeds and their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
from scipy import stats

from viny.evidence.report.words import percent
from viny.evidence.statistics.crossed import LEVEL, Runs
from viny.evidence.tables import GROUP, in_order
from viny.study.grid import Cell
from viny.study.layout import chain, metrics_file

# The intervals to choose from, by the key of their column in `means`.
INTERVALS = {
    "both": "95 %, over seeds and test images",
    "seeds": "95 %, over seeds alone",
    "error": "standard error over seeds",
}


def means(runs: Runs) -> pd.DataFrame:
    """Mean mIoU with the ends of its intervals.

    Args:
        runs: of a study's mIoU.

    Returns:
        One row per (pretrain_size, intermediate, finetune_size) with n, mean, low_both, high_both, low_seeds,
        high_seeds, low_error, high_error, all fractions; NaN where there is one seed. `images` says whether the noise
        of the test images is known; if not, the first interval is the second.
    """
    found = runs.contrasts(np.eye(len(runs.keys)))
    quantile = stats.t.ppf((1 + LEVEL) / 2, np.maximum(found.n - 1, 1))
    reach = {"seeds": quantile * found.se_seeds, "error": found.se_seeds}
    table = pd.DataFrame(list(runs.keys), columns=GROUP).assign(n=found.n, mean=found.mean)
    table = table.assign(low_both=found.low, high_both=found.high)
    for name, half in reach.items():
        table = table.assign(**{f"low_{name}": found.mean - half, f"high_{name}": found.mean + half})
    return in_order(table.assign(images=np.isfinite(found.se_images)))


def miou_table(runs: Runs) -> dict[str, Any]:
    """The table in the template's form: `labels`, `rows`, and `intervals` to choose from.

    A row is a kind of pre-training and a task; its cells are None where the study has none.
    """
    table = means(runs)
    labels = sorted(table["finetune_size"].unique())
    rows = []
    for (size, task), mine in table.groupby(["pretrain_size", "intermediate"], sort=False):
        cells = {row["finetune_size"]: row for row in mine.to_dict("records")}
        start = f"{size:,} images" if size else "random start"
        title = {"start": start, "task": "no task" if task == "none" else task}
        rows.append(title | {"cells": [_cell(cells[n], runs) if n in cells else None for n in labels]})
    return {
        "labels": [f"{n:,}" for n in labels],
        "rows": rows,
        "intervals": INTERVALS,
        "images": bool(table["images"].all()),
    }


def _cell(row: dict[str, Any], runs: Runs) -> dict[str, Any]:
    """A mean with what is shown on demand: its intervals, and each seed with links from the study's folder."""
    key = tuple(row[name] for name in GROUP)
    seeds = []
    for seed, value in zip(runs.seeds, runs.values[:, runs.place[key]], strict=True):
        if np.isfinite(value):
            cell = Cell(*key, seed)
            folder = chain(cell)[-1].folder(Path())
            links = {"metrics": metrics_file(Path(), cell).as_posix(), "weights": f"{folder.as_posix()}/"}
            seeds.append({"seed": seed, "value": percent(value, 2)} | {k: quote(v) for k, v in links.items()})
    return {
        "mean": percent(row["mean"]),
        "intervals": {name: _interval(row, name) for name in INTERVALS},
        "seeds": seeds,
    }


def _interval(row: dict[str, Any], name: str) -> str:
    low, high = row[f"low_{name}"], row[f"high_{name}"]
    if pd.isna(low):
        return "one seed"
    return f"±{percent((high - low) / 2, 2)}" if name == "error" else f"{percent(low)} to {percent(high)}"
