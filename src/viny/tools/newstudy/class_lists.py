"""Names of mask values as people give them: in words on the command line, or in a file beside the masks."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from viny.data.masks import MAX_CLASSES, is_void
from viny.runtime.errors import InputError

EXPECTED = "lines of value,name, where value is a mask value or a colour '#rrggbb'"
KINDS = "or Roboflow's _classes.csv, CVAT's labelmap.txt, or a table name,r,g,b"
HEADERS = (("value", "name"), ("pixel value", "class"))  # the second is Roboflow's
COLOURS = ("name", "r", "g", "b")
LABEL = re.compile(r"(.+):([0-9]{1,3}),([0-9]{1,3}),([0-9]{1,3}):[^:]*:[^:]*")  # CVAT's label:color_rgb:parts:actions
NAME = re.compile(r"\w[\w .()/+-]{0,39}")  # as the schema of studies has it
MOST_BYTES = 1 << 20
FILES = ("classes.txt", "classes.csv", "_classes.csv", "labelmap.txt", "class_dict.csv")  # as people and tools call it


def parse_classes(text: str, least: int = 2) -> dict[int | str, str]:
    """Names of mask values from '0=ground,255=object', '#000000=ground,#ff0000=object', or a number of classes.

    Raises:
        InputError: anything else, or fewer than `least` values.
    """
    if text.strip().isdecimal() and 2 <= int(text) <= MAX_CLASSES:
        return {value: f"class_{value}" for value in range(int(text))}
    parts = [part.partition("=")[::2] for part in text.split(",") if part.strip()]
    return _named((("--classes", value, name) for value, name in parts), "--classes", "value=name", least)


def read_classes(path: Path) -> dict[int | str, str]:
    """The same from a file: lines of value,name, Roboflow's _classes.csv, CVAT's labelmap.txt, or name,r,g,b.

    Raises:
        InputError: it cannot be read, or a line is anything else.
    """
    expected = f"{EXPECTED}, {KINDS}"
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"{path}: larger than a list of classes; expected {expected}")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); expected {expected}") from error
    # '#rrggbb' is a colour; CVAT begins with a comment.
    lines = [
        (f"{path}, line {number}", line.strip())
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip() and not re.match(r"\s*#(\s|$)", line)
    ]
    first = tuple(field.strip().lower() for field in lines[0][1].split(",")) if lines else ()
    if first == COLOURS or (lines and LABEL.fullmatch(lines[0][1])):
        found = [_of_colour(where, line, expected) for where, line in lines[first == COLOURS :]]
    else:
        found = [_of_value(where, line, expected) for where, line in lines[first in HEADERS :]]
    return _named(found, str(path), expected)


def beside(masks: Path) -> Path | None:
    """A file in the folder of the masks, or in that around it, which names their values; None if there is none."""
    for path in (folder / name for folder in (masks, masks.parent) for name in FILES):
        if path.is_file():
            with suppress(InputError):  # such a file may hold something else
                read_classes(path)
                return path
    return None


def _of_colour(where: str, line: str, expected: str) -> tuple[str, str, str]:
    """A line that names a colour by its red, green and blue: where it is, '#rrggbb' and the name."""
    label = LABEL.fullmatch(line)
    name, *levels = label.groups() if label else [field.strip() for field in line.rsplit(",", 3)]
    if len(levels) != 3 or not all(re.fullmatch(r"[0-9]{1,3}", level) and int(level) < 256 for level in levels):
        raise InputError(f"{where}: {line!a} is no name with red, green and blue from 0 to 255; expected {expected}")
    return where, "#{:02x}{:02x}{:02x}".format(*map(int, levels)), name


def _of_value(where: str, line: str, expected: str) -> tuple[str, str, str]:
    """A line that names a value: where it is, the value and the name."""
    value, comma, name = line.partition(",")
    if not comma or not _is_value(value) or any(field.strip().isdecimal() for field in name.split(",")):
        raise InputError(f"{where}: {line!a} is not a value and its name; expected {expected}")
    return where, value, name


def _is_value(text: str) -> bool:
    return re.fullmatch(r"#[0-9a-fA-F]{6}|[0-9]{1,5}", text.strip()) is not None


def parse_value(text: str) -> int | str:
    """A mask value or a colour.

    Raises:
        InputError: anything else.
    """
    text = text.strip()
    if not _is_value(text):
        raise InputError(f"{text!a}: expected a mask value, 0 to 65535, or a colour '#rrggbb'")
    return text.lower() if text.startswith("#") else int(text)


def _named(found: Iterable[tuple[str, str, str]], source: str, expected: str, least: int = 2) -> dict[int | str, str]:
    """The name of each value, from places, values and names."""
    named: dict[int | str, str] = {}
    for where, value, name in found:
        name = name.strip()
        if not name:
            raise InputError(f"{where}: {value.strip()!a} has no name; expected {expected}")
        if not (NAME.fullmatch(name) or is_void(name)):
            raise InputError(
                f"{where}: the name {name!a} cannot be a class's; expected up to 40 letters, digits, spaces and "
                "_ . ( ) / + -, the first a letter, a digit or _"
            )
        key = parse_value(value)
        if key in named:
            raise InputError(f"{where}: the value {key} is given twice; keep one of them")
        named[key] = name
    if len(named) < least:
        raise InputError(f"{source}: names {len(named)} values; expected two or more, as {expected}")
    if len({type(key) for key in named}) > 1:
        raise InputError(f"{source}: values and colours are mixed; expected only values, or only colours '#rrggbb'")
    return named
