"""Which arm of a study is best, in the words of its tables: where encoders start, and the variants that train them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from viny.evidence.advice.advice import Item
from viny.evidence.statistics.arm_pages import BEST, BOUGHT, arm_decisions
from viny.evidence.statistics.arms import KEY, Arms, arms_table
from viny.evidence.statistics.costs import arm_costs
from viny.evidence.statistics.crossed import read_runs
from viny.evidence.tables import read_metrics, with_arms
from viny.evidence.verdicts import bare
from viny.runtime.errors import InputError
from viny.runtime.units import capital
from viny.study.grid import Cell, cells, has_arms
from viny.study.layout import metrics_file
from viny.study.specs import statistics_spec


def evaluated_cells(root: Path, config: Mapping[str, Any]) -> tuple[list[Cell], list[Cell]]:
    """All cells of a study, of every arm, and those of them that are evaluated."""
    every = cells(config)
    return every, [cell for cell in every if metrics_file(root, cell).is_file()]


def arm_items(root: Path, config: Mapping[str, Any]) -> list[Item]:
    """Which arm is best, and what all else is about; nothing for a study without arms.

    Raises:
        InputError: a damaged file.
    """
    if not has_arms(config):
        return []
    _, there = evaluated_cells(root, config)
    about = Arms.of(statistics_spec(config))
    frame = with_arms(read_metrics([metrics_file(root, cell) for cell in there]))
    runs = read_runs(frame, root / "metrics", by=KEY)
    try:
        spent = arm_costs(root, there, about.tuned)
    except InputError:  # a training that is not there any more
        spent = None
    said = arm_decisions(runs, about, arms_table(runs, about, spent))
    items = [
        Item(row["sentence"], {"kind": row["kind"], "labels": row["what"]} | _brief(row))
        for row in said[said["kind"].isin([BEST, BOUGHT])].to_dict("records")
    ]
    first = about.words(*about.base, 0)
    alone = f"All that follows is about one arm alone, {first}, with and without pre-training and tasks."
    return [*items, Item(alone, {"start": about.base[0], "variant": about.base[1]})]


def _brief(row: Mapping[str, Any]) -> dict[str, str]:
    """The best arm in few words; empty for other rows."""
    if row["kind"] != BEST:
        return {}
    interval = "one seed" if math.isnan(row["low"]) else f"{bare(row['low'])} to {bare(row['high'])}"
    further = str(row["reason"]).partition(". ")[0].partition(":")[0]
    said = f"{capital(row['name'])} with {int(row['what']):,} labels: {bare(row['mean'])} %"
    return {"brief": f"{said} ({interval}). {further}".strip().rstrip(".") + "."}
