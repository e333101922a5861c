"""The report's answers: what was decided of each effect, in the words of the table of decisions."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from viny.evidence.report.words import capitalised, points

# Each question, with the kinds of decisions that answer it, and why a study may have none.
QUESTIONS = (
    ("How much does pre-training buy?", ("pre-training",), "The study compares no pre-training with a random start."),
    ("How fast do returns diminish?", ("images", "labels"), "The study has one number of images and of labels."),
    ("Does the task hurt?", ("task",), "The study has no intermediate task."),
)
EACH = ("task",)  # kinds of which every decision is shown; of the others that of the largest size


def answers(decisions: pd.DataFrame) -> list[dict[str, Any]]:
    """The three questions with what was decided.

    Args:
        decisions: tables/decisions.csv.

    Returns:
        For each question its `question`, `effects` and, if there are none, why it has no answer, `missing`. Of each
        effect its number in points, interval, name and words, and how a doubling compares with the one `before` it.
    """
    found = []
    for question, kinds, missing in QUESTIONS:
        shown = []
        for kind in kinds:
            rows = decisions[decisions["kind"] == kind]
            if kind not in EACH:
                largest = pd.to_numeric(rows["what"], errors="coerce").sort_values(kind="stable").index
                rows = rows.loc[largest[-1:]]
            shown += [
                _shown(row) | {"before": _before(kind, row["what"], decisions)} for row in rows.to_dict("records")
            ]
        found.append({"question": question, "effects": shown, "missing": missing})
    return found


def _shown(row: dict[str, Any]) -> dict[str, str]:
    numbers = {"value": points(row["mean"]), "interval": _interval(row["low"], row["high"])}
    return numbers | {"name": capitalised(row["name"]), "words": row["words"]}


def _interval(low: float, high: float) -> str:
    return "no interval" if math.isnan(low) else f"{points(low)} to {points(high)}"


def _before(kind: str, what: str, decisions: pd.DataFrame) -> str:
    """How the last doubling compares with the one before it; empty for other effects, or where there is none."""
    rows = decisions[(decisions["kind"] == f"{kind} fall") & (decisions["what"] == what)]
    if rows.empty:
        return ""
    row = _shown(rows.iloc[0].to_dict())
    return f"{row['name']} {row['words']}: {row['value']} ({row['interval']})"
