"""How masks encode classes: values, colours, and pixels without a class."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def mask_coding(classes: int | Mapping[str, str], ignore: Sequence[int | str]) -> dict[str, Any]:
    """How mask files encode classes.

    Args:
        classes: how many there are, for values from 0 up; or the name of each value, or of each colour '#rrggbb'.
            Values with the same name are one class. Classes are numbered in the order of their lowest values.
        ignore: values or colours without a class.

    Returns:
        mask_classes: the names. mask_values: the class index of each value, keyed by the value as text; IGNORE for
        values without a class. colours: whether values are colours, written as the numbers that their digits spell.
    """
    if isinstance(classes, int):
        classes = {str(value): f"class_{value}" for value in range(classes)}
    colours = any(key.startswith("#") for key in classes)

    named = {value_number(key): name for key, name in classes.items()}
    names = list(dict.fromkeys(named[value] for value in sorted(named)))
    values = {str(value): names.index(named[value]) for value in sorted(named)}
    values |= {str(value_number(value)): IGNORE for value in ignore}
    return {"mask_classes": names, "mask_values": values, "colours": colours}


# Names, as letters and digits alone, that data sets give to pixels without a class. Not other, rest, background or
# border, which are as often classes like any other.
VOID = re.compile(
    r"(?:(?:void|ignored?|unlabell?ed|unannotated|unclassified|unknown|undefined|invalid|dontcare|dontknow|"
    r"donotcare|none|nodata|noclass|nolabel|notlabell?ed|notannotated)(?:pixels?|areas?|regions?|labels?|class)?)?"
)


def is_void(name: str) -> bool:
    """Whether a name is one that data sets give to pixels without a class, such as 'void', 'Unlabelled' or '-'."""
    return VOID.fullmatch("".join(filter(str.isalnum, name.casefold()))) is not None


IGNORE = 255  # in packed masks: a pixel without a class, neither learnt from nor counted
MAX_CLASSES = 255  # of a mask, 0 to 254
BACKGROUNDS = ("background", "ground")  # the sources' names for the class that is not an object


def value_number(name: int | str) -> int:
    """The number of a mask value in a study file: the value itself, or the six hex digits of a colour '#rrggbb'."""
    return int(name.removeprefix("#"), 16) if isinstance(name, str) and name.startswith("#") else int(name)


def value_name(value: int, colours: bool) -> int | str:
    """A mask value as study files write it, see `value_number`."""
    return f"#{value:06x}" if colours else value


def deflated(mask: np.ndarray) -> bytes:
    """A mask, uint8 [H, W], in few bytes and without loss: each row's difference from the one above, by zlib."""
    return zlib.compress(np.diff(mask, axis=0, prepend=np.uint8(0)))


def inflated(data: bytes, height: int, width: int) -> np.ndarray:
    """The mask that `deflated` was given, uint8 [height, width].

    Raises:
        ValueError: the bytes are not those of a mask of this size.
    """
    try:
        rows = zlib.decompressobj().decompress(data, height * width + 1)  # no more, whatever the bytes say
    except zlib.error as error:
        raise ValueError(str(error)) from error
    return np.cumsum(np.frombuffer(rows, np.uint8).reshape(height, width), axis=0, dtype=np.uint8)
