"""How masks tell classes: values, colours, and pixels without a class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def mask_coding(classes: int | Mapping[str, str], ignore: Sequence[int | str]) -> dict[str, Any]:
    """How mask files tell classes.

    Args:
        classes: how many there are, being the values from 0; or the name of each value, or of each colour '#rrggbb'.
            Values of one name are one class. Classes are counted in the order of their least values.
        ignore: values or colours without a class.

    Returns:
        mask_classes: their names. mask_values: the index of each value, IGNORE for those without a class, by the value
        as text. colours: whether values are colours, written as the numbers that their digits are.
    """
    if isinstance(classes, int):
        classes = {str(value): f"class_{value}" for value in range(classes)}
    colours = any(key.startswith("#") for key in classes)

    named = {value_number(key): name for key, name in classes.items()}
    names = list(dict.fromkeys(named[value] for value in sorted(named)))
    values = {str(value): names.index(named[value]) for value in sorted(named)}
    values |= {str(value_number(value)): IGNORE for value in ignore}
    return {"mask_classes": names, "mask_values": values, "colours": colours}


IGNORE = 255  # in packed masks: a pixel without a class, from which nothing is learnt and nothing counted
MAX_CLASSES = 255  # of a mask, 0 to 254
BACKGROUNDS = ("background", "ground")  # what the sources call the class that is no object


def value_number(name: int | str) -> int:
    """The number that stands for a mask value of a study file: itself, or the six digits of a colour '#rrggbb'."""
    return int(name.removeprefix("#"), 16) if isinstance(name, str) and name.startswith("#") else int(name)


def value_name(value: int, colours: bool) -> int | str:
    """A mask value as study files have it, see `value_number`."""
    return f"#{value:06x}" if colours else value
