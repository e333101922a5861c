"""Advice: statements under headings, as text or for JSON."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from viny.runtime.units import counted, tested_words


@dataclass(frozen=True)
class Item:
    """One statement, and the numbers behind it.

    Attributes:
        text: what is said.
        data: the numbers.
        short: the same in few words and in fewer, for the short advice; empty if its first sentence is short enough.
    """

    text: str
    data: dict[str, Any] = field(default_factory=dict)
    short: tuple[str, ...] = ()


@dataclass(frozen=True)
class Line:
    """A line of the short advice.

    Attributes:
        key: 'provisional', 'arms', 'best', 'pre-training', 'labels', 'task', 'not asked', 'classes', 'references',
            'use', 'next', 'warning' or 'note'.
        label: what it is about, in a word or two.
        text: what is said.
    """

    key: str
    label: str
    text: str


@dataclass(frozen=True)
class Section:
    """Statements under a heading."""

    key: str
    heading: str
    items: list[Item]


@dataclass(frozen=True)
class Advice:
    """The advice from a study's results.

    Attributes:
        study: its name.
        note: its note; empty for none.
        cells: how many its grid has.
        evaluated: how many of them were measured on the study's current images.
        seeds: how many the grid has.
        test_images: how many there are; one number unless the test set moves.
        test_groups: how many groups they are of; 0 in a study without groups.
        image_size: side of the images that the model sees, at which mIoU is measured, pixels.
        target: points of mIoU, see `advise`.
        short: the same in few words.
        sections: in reading order; the first is the summary.
    """

    study: str
    note: str
    cells: int
    evaluated: int
    seeds: int
    test_images: list[int]
    test_groups: int
    image_size: int
    target: float
    short: list[Line]
    sections: list[Section]


def as_dict(advice: Advice) -> dict[str, Any]:
    """Advice for JSON: mIoU and its differences are fractions, and undefined values are null.

    Args:
        advice: from `advise`.

    Returns:
        Its attributes; an item's data are beside its text.
    """
    about = {key: getattr(advice, key) for key in Advice.__dataclass_fields__ if key not in ("short", "sections")}
    about["short"] = [vars(line) for line in advice.short]
    sections = [
        {"key": part.key, "heading": part.heading, "items": [{"text": item.text, **item.data} for item in part.items]}
        for part in advice.sections
    ]
    return _plain(about | {"sections": sections})


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if value is pd.NA or (isinstance(value, float) and not math.isfinite(value)) else value


def title(advice: Advice) -> str:
    """The first line of `as_text`."""
    tested = tested_words(advice.test_images, advice.test_groups)
    done = f"{advice.evaluated} of {advice.cells} cells"
    seen = f"at {advice.image_size} x {advice.image_size} pixels"
    return f"Study {advice.study}: {done}, {counted(advice.seeds, 'seed')}, {tested} {seen}"


LONG = "`--long` for all."
WORDS = 150  # of the short advice at most


def room(advice: Advice) -> int:
    """How many words the lines of the short advice may have, between its title and its last line."""
    return WORDS - len(f"{title(advice)} {LONG}".split())


def as_text(advice: Advice, width: int = 100, long: bool = False) -> str:
    """Advice as plain text.

    Args:
        advice: from `advise`.
        width: of a line, in characters.
        long: all sections, in place of `WORDS` words at most.

    Returns:
        Wrapped lines; each heading has a line to itself, after a blank line.
    """
    lines = [title(advice)]
    if not long:
        wrapper = textwrap.TextWrapper(width, "", "  ", break_long_words=False, break_on_hyphens=False)
        said = [wrapper.fill(f"{line.label}: {line.text}") for line in advice.short]
        return "\n".join([*lines, "", *said, "", LONG]) + "\n"
    for section in advice.sections:
        if section.items:
            lines += ["", section.heading]
        for item in section.items:
            first, rest = ("  ", "     ") if "rank" in item.data else ("- ", "  ")
            wrapper = textwrap.TextWrapper(width, first, rest, break_long_words=False, break_on_hyphens=False)
            lines.append(wrapper.fill(item.text))
    return "\n".join(lines) + "\n"
