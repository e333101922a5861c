"""The report's answer about arms: which is best, what was compared, and whether images or steps bought the gain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from viny.evidence.statistics.arm_pages import BEST, BOUGHT, COMPARED_AS, difference
from viny.evidence.statistics.arms import COMPARED, Arms


def arms_answer(decisions: pd.DataFrame, arms: Arms) -> dict[str, Any]:
    """The question that arms answer, with what was found.

    Args:
        decisions: tables/arm_decisions.csv.
        arms: the study's.

    Returns:
        The `question`, its answer in `sentences`, all that was `compared`, what more images `bought`, and the heading
        `base` with a line, `alone`, for what follows about the first arm.
    """
    kinds = decisions["kind"]
    starts = {start for start, _ in arms.order}
    base = arms.words(*arms.base, 0)
    return {
        "question": "Should I pre-train, or take published weights?" if len(starts) > 1 else "Which arm is best?",
        "sentences": decisions.loc[kinds == BEST, "sentence"].tolist(),
        "compared": decisions.loc[~kinds.isin([BEST, BOUGHT]), "sentence"].tolist(),
        "bought": decisions.loc[kinds == BOUGHT, "sentence"].tolist(),
        "base": "The first arm alone",
        "alone": f"All that follows is about the first arm, which starts from {base}.",
    }


def cell_words(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is shown on demand of a cell besides its mean: its differences, its rate and its hours.

    Args:
        row: of tables/arms.csv.
    """
    told = [(COMPARED_AS[name], difference(row, name)) for name in COMPARED]
    told.append(("Tuned rate", "" if pd.isna(row["rate"]) else f"{row['rate']:g}"))
    told.append(("Hours a model", "" if pd.isna(row["hours"]) else f"{row['hours']:.3g} on {row['device']}"))
    return [(name, text) for name, text in told if text]
