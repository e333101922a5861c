"""What differs between two JSON values, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from viny.runtime.text import Short

SHORT = Short()  # how values are shown
SHORT.maxstring = 100  # characters


def differences(expected: Any, found: Any, key: str = "") -> Iterator[str]:
    """What differs between two JSON values.

    Args:
        expected: a JSON value.
        found: likewise; a boolean never equals a number.
        key: of both values; empty for whole files.

    Yields:
        A phrase for each key that differs, in the order of the keys; mappings are compared key by key.
    """
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        for name in sorted({*expected, *found}, key=str):
            inner = f"{key}.{name}" if key else str(name)
            if name not in found:
                yield f"{inner}: expected {SHORT.repr(expected[name])}, found no such key"
            elif name not in expected:
                yield f"{inner}: expected no such key, found {SHORT.repr(found[name])}"
            else:
                yield from differences(expected[name], found[name], inner)
    elif expected != found or isinstance(expected, bool) != isinstance(found, bool):
        place = f"{key}: " if key else ""
        yield f"{place}expected {SHORT.repr(expected)}, found {SHORT.repr(found)}"
