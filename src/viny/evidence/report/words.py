"""Numbers and names as the report writes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup, escape

from viny.evidence.verdicts import in_points
from viny.runtime.text import visible

# A hyphen before a number, and after no letter or digit but the e of 1e-06: neither pre-0 nor 2024-01.
HYPHEN = re.compile(r"(?:(?<![\w.)-])|(?<=\de))-(?=[\d.])")
SOURCES = {"imagenet": "ImageNet images", "pets": "Oxford-IIIT Pet images", "synthetic": "synthetic images"}


def percent(value: float, places: int = 1) -> str:
    """A fraction in percent."""
    return words(f"{100 * value:.{places}f}")


def points(value: float) -> str:
    """A difference of fractions in percentage points, with its sign."""
    return words(in_points(value))


def words(text: str) -> str:
    """Text that may be shown, with minus signs for the hyphens of negative numbers."""
    return HYPHEN.sub("−", visible(str(text)))


def code(text: str) -> Markup:
    """Text with what stands between backticks as code, to be pasted as it is, and all else as `words`.

    Each word of code is an element of its own, so that lines break between words and not within a flag or a name.
    """
    parts = visible(text).split("`")
    return Markup("").join(_code(part) if at % 2 else escape(words(part)) for at, part in enumerate(parts))


def _code(text: str) -> Markup:
    words_of_it = (Markup("<i>{}</i>").format(one) for one in text.split(" "))
    return Markup("<code>{}</code>").format(Markup(" ").join(words_of_it))


def images_of(section: Mapping[str, Any]) -> str:
    """What to call a section's images: by the data set or, if they are the user's own, by their folder."""
    source = section["source"]
    if source == "folder":
        return f"images of {section.get('images', section['path'])}"
    return SOURCES.get(source, f"{source} images")
