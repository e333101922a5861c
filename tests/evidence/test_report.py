"""The report's words: numbers come with their uncertainty, and an effect is only named if the tests agree on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("jsonschema")

from viny.evidence.report import page
from viny.evidence.summary import Summary
from viny.evidence.tables import write_tables
from viny.runtime.files import write_json
from viny.study.config import resolve
from viny.study.grid import cells
from viny.study.layout import metrics_file, trainings
from viny.study.reading import read_config
from viny.study.specs import report_spec


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


def test_the_setting_says_which_classes_are_absent(tmp_path: Path) -> None:
    config = resolve(read_config(Path(__file__).parents[1] / "tiny.yaml"))
    cells_of_study = cells(config)
    for cell in cells_of_study:
        value = {"study": "tiny", "protocol": "sound", "cell": cell.as_dict(), "miou_is": "dataset", "test_images": 9,
                 "parameters": 7, "metrics": {"miou": 0.5, "pixel_accuracy": 0.7}, "provenance": {},
                 "classes": {"not_in_test": ["<dog>"], "not_in_training": ["yak"]}}  # fmt: skip
        write_json(metrics_file(tmp_path, cell), value)
    write_tables([metrics_file(tmp_path, cell) for cell in cells_of_study], tmp_path / "tables")
    for training in trainings(cells_of_study):
        write_json(training.file(tmp_path, "run"), {})
    spec = report_spec(config)
    said = page._Page(spec, tmp_path, Summary("report", spec, tmp_path)).setting()
    assert "No test mask has a pixel of <dog>: such a class is not in mIoU" in said  # the template escapes it
    assert f"has a pixel of: yak ({len(cells_of_study)} of {len(cells_of_study)} cells)" in said
