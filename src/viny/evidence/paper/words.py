"""The words for what a comparison with the paper found; no other place has any."""

from __future__ import annotations

import math
from enum import Enum

REPRODUCED, CONTRADICTED, UNDECIDED = "reproduced", "contradicted", "undecided"
UNTESTABLE = "cannot be tested with this grid"
INCOMPARABLE = "cannot be compared"  # a number of a study that differs from the paper's


class Found(Enum):
    """What was found of a claim: the words of a study like the paper's, of any other, and of published means."""

    HOLDS = REPRODUCED, "holds here", "supported"
    AVERAGE = "reproduced on average", "holds here on average", "supported on average"
    PARTLY = "not everywhere", "not everywhere here", CONTRADICTED
    AGAINST = CONTRADICTED, "does not hold here", CONTRADICTED
    SMALL = "under 1 point either way", "under 1 point either way here", "under 1 point either way"
    UNDECIDED = UNDECIDED, "undecided here", "underpowered"
    SPREADLESS = "no interval", "no interval here", "no spread given"
    UNTESTABLE = UNTESTABLE, UNTESTABLE, "not in the table"

    def of_study(self, comparable: bool) -> str:
        return self.value[0 if comparable else 1]

    @property
    def of_table(self) -> str:
        return self.value[2]


CLAIM_WORDS = tuple(found.value[0] for found in Found)
CLAIM_WORDS_HERE = tuple(found.value[1] for found in Found)
AUDIT_WORDS = tuple(dict.fromkeys(found.value[2] for found in Found))
NUMBER_WORDS = (REPRODUCED, CONTRADICTED, UNDECIDED, INCOMPARABLE, UNTESTABLE)
IN_FAVOUR = (*Found.HOLDS.value, *Found.AVERAGE.value)
AGAINST = (CONTRADICTED, Found.PARTLY.value[0])  # of a study that can be compared, or a table: these alone are alarms


def estimate_in_words(unit: str, estimate: float, low: float, high: float) -> str:
    """An estimate with its 95 % interval and its unit; fractions as percentage points. Empty if it is NaN."""
    if math.isnan(estimate):
        return ""
    factor = 100 if unit.startswith("fraction") else 1
    interval = "" if math.isnan(low) else f" ({factor * low:+.2f} to {factor * high:+.2f})"
    return f"{factor * estimate:+.2f}{interval} {unit.replace('fraction', 'points', 1)}"
