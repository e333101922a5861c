"""The report's answer about arms: which is best, what was compared, and whether images or steps bought the gain."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from viny.evidence.report.words import percent
from viny.evidence.statistics.arm_pages import BEST, BOUGHT, COMPARED_AS, difference, rate_in_words
from viny.evidence.statistics.arms import COMPARED, Arms, time_in_words
from viny.runtime.units import capital

ANSWERS = ("published against own pre-training", "SimMIM on top of a start")  # of the question, besides the best


def arms_answer(decisions: pd.DataFrame, arms: Arms) -> dict[str, Any]:
    """The question that arms answer, with what was found.

    Args:
        decisions: tables/arm_decisions.csv.
        arms: the study's.

    Returns:
        The `question`; of the `best` arm with the most and with the fewest labels its name, mIoU, interval and how far
        others are, `further`; `sentences` that answer the question; all that was `compared`; what more images `bought`;
        and the line, `alone`, before what follows about the first arm.
    """
    kinds = decisions["kind"]
    several = len({start for start, _ in arms.order}) > 1
    return {
        "question": "Should I pre-train, or take published weights?" if several else "Which arm is best?",
        "best": [_best(row) for row in decisions[kinds == BEST].to_dict("records")],
        "sentences": decisions.loc[kinds.isin(ANSWERS), "sentence"].tolist(),
        "compared": decisions.loc[~kinds.isin([BEST, BOUGHT]), "sentence"].tolist(),
        "bought": decisions.loc[kinds == BOUGHT, "sentence"].tolist(),
        "alone": f"All that follows is about one arm, {arms.words(*arms.base, 0)}, with and without pre-training and "
        "tasks; times and versions are those of all.",
    }


def _best(row: Mapping[str, Any]) -> dict[str, str]:
    interval = "no interval" if math.isnan(row["low"]) else f"{percent(row['low'])} to {percent(row['high'])}"
    shown = {"labels": f"{int(row['what']):,}", "value": percent(row["mean"]), "interval": interval}
    return shown | {
        "name": capital(row["name"]),
        "further": row["reason"] if isinstance(row["reason"], str) else "",
    }


def cell_words(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is shown on demand of a cell besides its mean: its differences, its rate and its hours.

    Args:
        row: of tables/arms.csv.
    """
    told = [(COMPARED_AS[name], difference(row, name)) for name in COMPARED]
    told.append(("Tuned rate", rate_in_words(row)))
    told.append(("Time a model", "" if pd.isna(row["hours"]) else f"{time_in_words(row['hours'])} on {row['device']}"))
    return [(name, text) for name, text in told if text]
