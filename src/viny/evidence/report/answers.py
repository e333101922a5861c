"""The report's answers: what was decided of each effect, in the words of the table of decisions."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pandas as pd

from viny.evidence.report.words import capitalised, points
from viny.evidence.statistics.crossed import Runs

# Each question, with the kinds of decisions that answer it, and why a study may have none.
QUESTIONS = (
    ("How much does pre-training buy?", ("pre-training",), "The study compares no pre-training with a random start."),
    ("How fast do returns diminish?", ("images", "labels"), "The study has one number of images and of labels."),
    ("Does the task hurt?", ("task",), "The study has no intermediate task."),
)
EACH = ("task",)  # kinds of which every decision is shown; of the others that of the largest size


def answers(decisions: pd.DataFrame, runs: Runs) -> list[dict[str, Any]]:
    """The three questions with what was decided.

    Args:
        decisions: tables/decisions.csv.
        runs: the study's mIoU, for the doublings before the last one.

    Returns:
        For each question its `question`, `effects` and, if there are none, why it has no answer, `missing`. Of each
        effect its number in points, interval, name, words and the doublings `before` it.
    """
    found = []
    for question, kinds, missing in QUESTIONS:
        shown = []
        for kind in kinds:
            rows = decisions[decisions["kind"] == kind]
            if kind not in EACH:
                largest = pd.to_numeric(rows["what"], errors="coerce").sort_values(kind="stable").index
                rows = rows.loc[largest[-1:]]
            shown += [_shown(row) | {"before": _before(kind, row["what"], runs)} for row in rows.to_dict("records")]
        found.append({"question": question, "effects": shown, "missing": missing})
    return found


def _shown(row: dict[str, Any]) -> dict[str, str]:
    numbers = {"value": points(row["mean"]), "interval": _interval(row["low"], row["high"])}
    return numbers | {"name": capitalised(row["name"]), "words": row["words"]}


def _interval(low: float, high: float) -> str:
    return "no interval" if math.isnan(low) else f"{points(low)} to {points(high)}"


def _before(kind: str, what: str, runs: Runs) -> str:
    """The doubling before the last one, in numbers; empty if there is none."""
    if kind == "labels":
        curves = [sorted(key for key in runs.keys if key[:2] == (int(what), "none"))]
    elif kind == "images":
        labels = dict.fromkeys(key[2] for key in runs.keys)
        curves = [sorted(key for key in runs.keys if key[0] and key[1:] == ("none", n)) for n in labels]
    else:
        return ""
    at = 2 if kind == "labels" else 0
    steps = sorted({step for curve in curves for step in pairwise(key[at] for key in curve)})[:-1]
    if not steps:
        return ""
    few, many = steps[-1]
    weights = []
    for curve in curves:
        ends = {key[at]: key for key in curve if key[at] in (few, many)}
        if len(ends) == 2:
            weights.append({ends[many]: 1 / math.log2(many / few), ends[few]: -1 / math.log2(many / few)})
    found = runs.mean_of(runs.weights(*weights)).at()
    return f"Before that, from {few:,} to {many:,}: {points(found['mean'])} ({_interval(found['low'], found['high'])})"
