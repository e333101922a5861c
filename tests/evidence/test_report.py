"""The report's words: numbers come with their uncertainty, and an effect is only named if the tests agree on it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from viny.evidence.report import page


@pytest.mark.parametrize(
    ("low", "high", "p", "words"),
    [
        (0.01, 0.03, 0.03, "helps"),
        (-0.03, -0.01, 0.03, "hurts"),
        (0.01, 0.03, 0.06, "may help, by the interval; by the sign flips it cannot be told"),
        (-0.03, -0.01, 0.25, "may hurt, by the interval; by the sign flips it cannot be told"),
        (-0.01, 0.03, 0.03, "cannot be told from no effect"),
        (np.nan, np.nan, 0.25, "cannot be told"),
    ],
)
def test_an_effect_is_named_where_interval_and_test_agree(low: float, high: float, p: float, words: str) -> None:
    assert page._harm({"low": low, "high": high, "p_sign_flip": p}) == words


def test_numbers_in_words() -> None:
    assert page.percent(0.1234) == "12.3"
    assert page.percent(-0.0051, sign=True) == "−0.5"
    assert page.interval({"low": -0.02, "high": 0.015}) == "95 % interval −2.0 to +1.5"
    assert page.interval({"low": np.nan, "high": np.nan}) == "no interval"
    assert page._listed([0, 45000, 100000]) == "0, 45,000 or 100,000"
    assert page._listed(["none"]) == "none"


def test_a_table_knows_its_numbers_and_shows_no_nan() -> None:
    made = page.table(pd.DataFrame({"name": ["a", None], "hours": [1.5, 2.0]}))
    assert [column["number"] for column in made["columns"]] == [False, True]
    assert made["rows"] == [["a", "1.5"], ["", "2.0"]]
