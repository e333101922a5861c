"""Text from files as it may be shown: nothing in it moves a terminal's cursor, opens a tag or begins a formula."""

from __future__ import annotations

import re
import reprlib

# All that a terminal obeys rather than shows, except tab and line feed; what turns the order of letters around; the
# other line breaks; and halves of characters, which cannot be written.
HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
MARKUP = re.compile(r"[|\\]|<(?=[A-Za-z/!?])|&(?=#?\w+;)|(?<=\])[(\[:]")
# What a spreadsheet takes for the beginning of a formula, unless the whole is a number, perhaps with its spread.
FORMULA = re.compile(r"(?![-+]?\d[\d.,eE%± +-]*$)[=+@\t\r\uff1d\uff0b\uff0d\uff20-]")


def visible(text: str) -> str:
    """Text with its control characters written out, as `\\x1b` or `\\u202e`."""
    return HIDDEN.sub(lambda found: ascii(found[0])[1:-1], text)


def markdown(text: str) -> str:
    """Text as a word or cell of a Markdown page: one line in which no cell, tag or link begins or ends."""
    return MARKUP.sub(lambda found: "\\" + found[0], visible(" ".join(text.split())))


def cell_text(text: str) -> str:
    """Text as a cell of a CSV file: with an apostrophe before it if a spreadsheet would take it for a formula."""
    return f"'{text}" if FORMULA.match(text) else text


class Short(reprlib.Repr):
    """Values in few characters, whatever they are: Python refuses to write out whole numbers of thousands of digits."""

    def repr_int(self, x: int, level: int) -> str:
        bits = x.bit_length()
        return super().repr_int(x, level) if bits < 10_000 else f"<a whole number of {bits:,} bits>"
