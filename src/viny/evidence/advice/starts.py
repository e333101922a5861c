"""Which arm of a study is best, in the words of its tables: where encoders start, and the variants that train them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from viny.evidence.advice.advice import Item
from viny.evidence.advice.facts import Facts
from viny.evidence.statistics.arm_pages import BEST, BOUGHT, arm_decisions
from viny.evidence.statistics.arms import KEY, Arms, arms_table
from viny.evidence.statistics.costs import arm_costs
from viny.evidence.statistics.crossed import crossed
from viny.evidence.verdicts import bare
from viny.runtime.errors import InputError
from viny.runtime.units import capital
from viny.study.grid import Cell, has_arms
from viny.study.specs import statistics_spec


def arm_items(facts: Facts) -> list[Item]:
    """Which arm is best, and what all else is about; nothing for a study without arms.

    Raises:
        InputError: a damaged file.
    """
    if not has_arms(facts.study):
        return []
    about, there = Arms.of(statistics_spec(facts.study)), facts.current
    runs = crossed(facts.arm_scores)
    try:
        spent = arm_costs(facts.root, there, about.tuned)
    except InputError:  # a training that is not there any more
        spent = None
    table = arms_table(runs, about, spent)
    said = arm_decisions(runs, about, table)
    items = []
    for row in said[said["kind"].isin([BEST, BOUGHT])].to_dict("records"):
        data = {"kind": row["kind"], "labels": row["what"]}
        if row["kind"] == BEST:
            data["model"] = _model(table[table["finetune_size"] == int(row["what"])], about, there)
        items.append(Item(row["sentence"], data, _brief(row)))
    first = about.words(*about.base, 0)
    but = ", but for the comparison with simple models," if facts.references else ""
    alone = f"All that follows{but} is about one arm alone, {first}, with and without pre-training and tasks."
    return [*items, Item(alone, {"start": about.base[0], "variant": about.base[1]})]


def _model(rows: pd.DataFrame, arms: Arms, there: Sequence[Cell]) -> str:
    """The cell with the highest mean of these rows of the table of arms, its first seed, as other commands take it."""
    key = arms.cell(*rows.loc[rows["miou"].idxmax(), KEY])
    return min((cell.seed, cell.name) for cell in there if tuple(getattr(cell, name) for name in KEY) == key)[1]


def _brief(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The best arm in few words; empty for other rows."""
    if row["kind"] != BEST:
        return ()
    interval = "one seed" if math.isnan(row["low"]) else f"{bare(row['low'])} to {bare(row['high'])}"
    further = str(row["reason"]).partition(". ")[0].partition(":")[0].rstrip(".")
    said = f"{capital(row['name'])} with {int(row['what']):,} labels: {bare(row['mean'])} % ({interval})."
    return (f"{said} {further}.", said) if further else (said,)
