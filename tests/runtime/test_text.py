"""Text from files is text wherever it is shown."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pandas as pd
import pytest

from viny.evidence.tables import to_markdown, write_csv
from viny.runtime.text import Short, cell_text, markdown, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, Größe ✓\tand\nlines", "plain, Größe ✓\tand\nlines"),
        ("\x1b]0;title\x07\x1b[2J", r"\x1b]0;title\x07\x1b[2J"),
        ("over\rwritten\b\x7f", r"over\rwritten\x08\x7f"),
        ("\x9b31m", r"\x9b31m"),  # one byte does in Latin-1 what two do elsewhere
        ("exe\u202egnp.txt\u2066", r"exe\u202egnp.txt\u2066"),
        ("half \udc80", r"half \udc80"),
    ],
)
def test_what_a_terminal_would_obey_is_written_out(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert visible(shown) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("p < 0.05, a & b, [1, 2] of *3*", "p < 0.05, a & b, [1, 2] of *3*"),
        ("<script>alert(1)</script>", r"\<script>alert(1)\</script>"),
        ("a|b\n| c", r"a\|b \| c"),
        ("[here](javascript:x) ![x](http://y)", r"[here]\(javascript:x) ![x]\(http://y)"),
        ("[here][1] [1]: http://y", r"[here]\[1] [1]\: http://y"),
        ("&lt;b&gt; &#60;b", r"\&lt;b\&gt; \&#60;b"),
        (r"\<b>", r"\\\<b>"),  # an escape of theirs does not undo ours
    ],
)
def test_no_cell_tag_or_link_begins_in_markdown(text: str, shown: str) -> None:
    assert markdown(text) == shown
    table = to_markdown(pd.DataFrame({"words": [text], "n": [1]}))
    assert len(table.splitlines()) == 3
    assert shown in table


def test_a_cell_begins_no_formula_and_numbers_stay_numbers(tmp_path: Path) -> None:
    words = [
        "=HYPERLINK(1)",
        "+cmd|' /C calc'!A0",
        "-x",
        "@SUM(1)",
        "\t=1",
        "＝1+x",
        "'ok",
        "plain",
        "-0.5",
        "+1.2 ± 0.3",
    ]
    table = pd.DataFrame({"=head": words, "x": -0.5})
    write_csv(table, tmp_path / "a.csv")
    rows = list(csv.reader(io.StringIO((tmp_path / "a.csv").read_text(encoding="utf-8"))))
    assert rows[0] == ["'=head", "x"]
    assert [row[0] for row in rows[1:]] == [*(f"'{word}" for word in words[:6]), *words[6:]]
    assert {row[1] for row in rows[1:]} == {"-0.5"}
    assert (pd.read_csv(tmp_path / "a.csv")["x"] == -0.5).all()
    assert cell_text("") == ""


def test_a_value_of_any_size_is_shown_in_short() -> None:
    huge = 1 << 20_000  # Python refuses to write it out
    assert Short().repr(huge) == "<a whole number of 20,001 bits>"
    assert Short().repr({huge: [-huge, {huge}]}).count("<a whole number") == 3
    assert Short().repr(123) == "123"
