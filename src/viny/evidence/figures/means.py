"""What the figures draw of a study's runs: means and their 95 % intervals, all from `crossed.Runs`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from viny.evidence.statistics.crossed import Estimates, Runs
from viny.evidence.tables import GROUP

MEANS = ["mean", "low", "high", "se", "n"]

Cell = tuple[int, str, int]


def of_cells(runs: Runs) -> pd.DataFrame:
    """mIoU of each cell: `GROUP` and `MEANS`, fractions."""
    return _table(list(runs.keys), runs.contrasts(np.eye(len(runs.keys))))


def of_tasks(runs: Runs) -> pd.DataFrame:
    """What the task changes in each cell that has a twin without it, paired by seed: `GROUP` and `MEANS`."""
    cells = pairs(runs)
    table = _table(cells, runs.contrasts(differences(runs, cells)))
    return table[table["n"] > 0].reset_index(drop=True)


def mean_of_tasks(runs: Runs, cells: Sequence[Cell]) -> dict[str, float]:
    """The mean of what the task changes in some cells: `MEANS`."""
    found = runs.mean_of(differences(runs, cells)).at()
    return {name: found[name] for name in MEANS}


def pairs(runs: Runs) -> list[Cell]:
    """The cells with a task whose twin without it was run too."""
    return [key for key in runs.keys if key[1] != "none" and (key[0], "none", key[2]) in runs.place]


def differences(runs: Runs, cells: Sequence[Cell]) -> np.ndarray:
    """Weights [K, C]: each cell minus its twin without the task."""
    return runs.weights(*({key: 1.0, (key[0], "none", key[2]): -1.0} for key in cells))


def seed_by_seed(runs: Runs, cells: Sequence[Cell]) -> np.ndarray:
    """What the task changes in each cell, [K, S], fractions; NaN where a seed lacks one of the two."""
    return runs.per_seed(differences(runs, cells)).T


def _table(cells: Sequence[Cell], found: Estimates) -> pd.DataFrame:
    table = pd.DataFrame(cells, columns=GROUP)
    return table.assign(**{name: getattr(found, name) for name in MEANS})
