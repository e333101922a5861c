"""Numbers in the unit that people would choose."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def duration(seconds: float) -> str:
    """Seconds in the unit that people would choose."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 5970:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 360_000 else f"{seconds / 86_400:.1f} days"


def short(number: float, unit: str = "") -> str:
    """A number with three digits and a prefix: 2,700,000 as 2.70 M."""
    for prefix, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * size:
            value = number / size
            return f"{value:.{max(0, 2 - (value >= 9.995) - (value >= 99.95))}f} {prefix}{unit}"
    return f"{number:.0f} {unit}".strip()


def counted(number: int, what: str) -> str:
    """A number with its noun: 1 seed, 2 seeds, 1,200 cells."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def tested_words(images: Iterable[int], groups: int = 0) -> str:
    """How many test images there are and, where images belong to groups, of how many: '96 test images of 6 groups'.

    Args:
        images: one number, or several if the test set moves.
        groups: 0 in a study without groups.
    """
    many = " or ".join(f"{n:,}" for n in sorted(set(images)))
    return f"{many} test images{f' of {groups:,} groups' if groups else ''}"


def capital(text: str) -> str:
    """A text that begins a sentence."""
    return text[:1].upper() + text[1:]


def listed(values: Iterable[Any], word: str = "or") -> str:
    """Values in words, such as '10, 20 or 1,000'."""
    said = [f"{value:,}" if isinstance(value, int) else str(value) for value in values]
    return said[0] if len(said) == 1 else f"{', '.join(said[:-1])} {word} {said[-1]}"
