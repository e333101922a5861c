"""The report's table of mIoU: every mean with its intervals, its seeds and their files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
from scipy import stats

from viny.evidence.report.words import percent
from viny.evidence.statistics.arms import KEY, Arms, Key
from viny.evidence.statistics.crossed import LEVEL, Runs
from viny.evidence.tables import GROUP, in_order
from viny.runtime.units import capital
from viny.study.grid import Cell
from viny.study.layout import chain, metrics_file

# The intervals to choose from, by the key of their column in `means`.
INTERVALS = {
    "both": "95 %, over seeds and {drawn}",
    "seeds": "95 %, over seeds alone",
    "error": "standard error over seeds",
}


def means(runs: Runs, by: Sequence[str] = GROUP) -> pd.DataFrame:
    """Mean mIoU with the ends of its intervals.

    Args:
        runs: of a study's mIoU.
        by: what its keys hold.

    Returns:
        One row per (pretrain_size, intermediate, finetune_size) with n, mean, low_both, high_both, low_seeds,
        high_seeds, low_error, high_error, all fractions; NaN where there is one seed. `images` says whether the noise
        of the test images is known; if not, the first interval is the second.
    """
    found = runs.contrasts(np.eye(len(runs.keys)))
    quantile = stats.t.ppf((1 + LEVEL) / 2, np.maximum(found.n - 1, 1))
    reach = {"seeds": quantile * found.se_seeds, "error": found.se_seeds}
    table = pd.DataFrame(list(runs.keys), columns=[*by]).assign(n=found.n, mean=found.mean)
    table = table.assign(low_both=found.low, high_both=found.high)
    for name, half in reach.items():
        table = table.assign(**{f"low_{name}": found.mean - half, f"high_{name}": found.mean + half})
    return in_order(table.assign(images=np.isfinite(found.se_images)))


def miou_table(runs: Runs) -> dict[str, Any]:
    """The table in the template's form: `labels`, `rows`, and `intervals` to choose from.

    A row is a kind of pre-training and a task, if there is any; its cells are None where the study has none.
    """
    without = "no task" if any(key[1] != "none" for key in runs.keys) else ""

    def title(size: int, task: str) -> dict[str, str]:
        return {"start": f"{size:,} images" if size else "random start", "task": without if task == "none" else task}

    return _table(runs, means(runs), GROUP, title, lambda key, seed: Cell(*key, seed))


def arms_table(
    runs: Runs, arms: Arms, cells: Iterable[Cell], more: Mapping[Key, Sequence[tuple[str, str]]]
) -> dict[str, Any]:
    """As `miou_table`, of all arms: a row is an arm, a number of pre-training images and a task.

    Args:
        runs: all cells, keyed by `arms.KEY`.
        arms: what they are of.
        cells: the study's.
        more: what else is shown of a cell on demand, as names with texts.
    """
    several = len({key[3] for key in runs.keys}) > 1

    def title(start: str, variant: str, size: int, task: str) -> dict[str, str]:
        said = [arms.variant(variant), "" if not several else "no task" if task == "none" else f"task {task}"]
        return {"start": capital(arms.words(start, arms.base[1], size)), "task": ", ".join(filter(None, said))}

    place = {key: i for i, key in enumerate(arms.sorted(runs.keys))}
    table = means(runs, KEY)
    order = table[KEY].apply(tuple, axis=1).map(place).sort_values().index
    by_key = {(cell.start, cell.variant, *_group(cell), cell.seed): cell for cell in cells}
    return _table(runs, table.loc[order], KEY, title, lambda key, seed: by_key[(*key, seed)], more)


def _group(cell: Cell) -> tuple[int, str, int]:
    return cell.pretrain_size, cell.intermediate, cell.finetune_size


def _table(
    runs: Runs,
    table: pd.DataFrame,
    by: Sequence[str],
    title: Callable[..., dict[str, str]],
    cell: Callable[[Any, int], Cell],
    more: Mapping[Any, Sequence[tuple[str, str]]] | None = None,
) -> dict[str, Any]:
    labels = sorted(table["finetune_size"].unique())
    # With one seed there is none to choose from.
    intervals = {name: text.format(drawn=runs.drawn) for name, text in INTERVALS.items() if table["n"].max() > 1}
    rows = []
    for key, mine in table.groupby([*by[:-1]], sort=False):
        cells = {row["finetune_size"]: row for row in mine.to_dict("records")}
        shown = [_cell(cells[n], runs, (*key, n), cell, more or {}, intervals) if n in cells else None for n in labels]
        rows.append(title(*key) | {"cells": shown})
    return {
        "labels": [f"{n:,}" for n in labels],
        "rows": rows,
        "intervals": intervals,
        "images": bool(table["images"].all()),
    }


def _cell(
    row: dict[str, Any],
    runs: Runs,
    key: Any,
    cell: Callable[[Any, int], Cell],
    more: Mapping[Any, Sequence[tuple[str, str]]],
    intervals: Iterable[str],
) -> dict[str, Any]:
    """A mean with what is shown on demand: its intervals, and each seed with links from the study's folder."""
    seeds = []
    for seed, value in zip(runs.seeds, runs.values[:, runs.place[key]], strict=True):
        if np.isfinite(value):
            one = cell(key, seed)
            folder = chain(one)[-1].folder(Path())
            links = {"metrics": metrics_file(Path(), one).as_posix(), "weights": f"{folder.as_posix()}/"}
            seeds.append({"seed": seed, "value": percent(value, 2)} | {k: quote(v) for k, v in links.items()})
    return {
        "mean": percent(row["mean"]),
        "intervals": {name: _interval(row, name) for name in intervals},
        "more": more.get(key, ()),
        "seeds": seeds,
    }


def _interval(row: dict[str, Any], name: str) -> str:
    low, high = row[f"low_{name}"], row[f"high_{name}"]
    return f"±{percent((high - low) / 2, 2)}" if name == "error" and not pd.isna(low) else ends(low, high)


def ends(low: float, high: float) -> str:
    """An interval of fractions in percent, or why there is none."""
    return "one seed" if pd.isna(low) else f"{percent(low)} to {percent(high)}"
