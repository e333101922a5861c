"""Study files (YAML or JSON) read as plain values, before anything is done with them."""

from __future__ import annotations

import functools
import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from viny.runtime.errors import InputError
from viny.runtime.files import open_file
from viny.runtime.text import Short, visible

MAX_BYTES = 10_000_000
MAX_DEPTH = 16  # mappings and lists inside each other
MAX_ENTRIES = 1000  # in a mapping or list
MAX_VALUES = 10_000  # in all
MAX_TEXT = 2000  # characters
MAX_NUMBER = 2**53  # beyond it not every integer is a float, and JSON readers may round
CODE = "__use_yte__"  # asks Snakemake to evaluate the Python in a configuration file


SHORT = Short()
SHORT.maxlevel, SHORT.maxdict, SHORT.maxlist, SHORT.maxstring, SHORT.maxother = 2, 8, 8, 200, 200


class _StudyLoader(yaml.SafeLoader):
    """YAML's safe loader, except that a key given twice in a mapping is an error.

    YAML forbids it but PyYAML lets the last one win, so two settings would be mixed silently. A key of a
    merged mapping (`<<`) may be overridden, as always.
    """

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {SHORT.repr(key.value)} is given twice; keep one of them", key.start_mark
                    )
                seen.add((key.tag, key.value))
        super().flatten_mapping(node)
        # Merged keys come first, the mapping's own last; without this, merges of merges grow without bound.
        last = {}
        for key, value in node.value:
            last[(key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key)] = (key, value)
        node.value = list(last.values())


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping of JSON's keys and values, if no key is given twice."""
    found = dict(pairs)
    for key in found if len(found) < len(pairs) else ():
        if sum(key == other for other, _ in pairs) > 1:
            raise ValueError(f"the key {SHORT.repr(key)} is given twice; keep one of them")
    return found


def _text(path: str | Path) -> str:
    """A study file's text. Of pipes only the shell's `<(...)` is read: another one may never have a writer.

    Raises:
        OSError: not a file.
        InputError: larger than any study.
    """
    from_shell = os.fspath(path).startswith(("/dev/fd/", "/proc/self/fd/"))
    with open(path, "rb") if from_shell else open_file(path) as f:
        data = f.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise InputError(f"{path}: more than {MAX_BYTES:,} bytes; a study file has fewer")
    return data.decode("utf-8-sig").replace("\r\n", "\n")


def parse_config(text: str) -> Any:
    """The value of a study file's text, which nobody has checked yet; errors are those of `json` and `yaml`."""
    try:
        return json.loads(text, object_pairs_hook=_each_once)
    except json.JSONDecodeError:
        return yaml.load(text, Loader=_StudyLoader)


def read_config(path: str | Path) -> dict[str, Any]:
    """Parse a study file (YAML, or JSON, which is tried first, since YAML takes 1e-3 for text).

    Raises:
        InputError: missing, not YAML, with a key given twice or with code, not a mapping, or absurdly large.
    """
    try:
        value = parse_config(_text(path))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such study file") from error
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected a study file") from error
    except RecursionError as error:
        raise InputError(f"{path}: more than {MAX_DEPTH} mappings and lists inside each other") from error
    except Exception as error:  # besides its own errors, PyYAML lets those of int, date and recursion through
        raise InputError(f"{path}: not valid YAML: {error or type(error).__name__}") from error
    try:
        check_extent(value)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return value


def only_data(reader: Callable[..., Any]) -> Callable[..., Any]:
    """A workflow manager's reader of configuration files, made to read them as `read_config` does.

    Args:
        reader: takes a path or a file object, and may evaluate code in it; kept for what is not a path.

    Returns:
        A reader that ends the program with one sentence if a study file is at fault.
    """

    if hasattr(reader, "__wrapped__"):
        return reader  # it is one already

    @functools.wraps(reader)
    def read(file: Any, *arguments: Any, **named: Any) -> Any:
        if not isinstance(file, str | Path):
            return reader(file, *arguments, **named)
        try:
            return read_config(file)
        except InputError as error:
            sys.exit(f"The study's settings are at fault.\n{visible(str(error))}")

    return read


def check_extent(value: Any) -> None:
    """Refuse anything that is not a mapping of plain values, or is absurdly large, before anything walks through it.

    Raises:
        InputError: names the key, what it holds, and what is allowed.
    """
    if not isinstance(value, Mapping):
        raise InputError(f"expected a mapping of keys to values, got {type(value).__name__}")
    todo: list[tuple[str, Any, int]] = [("", value, 0)]
    values = 0
    while todo:  # not by recursion: the depth is in doubt
        where, item, depth = todo.pop()
        values += 1
        if depth > MAX_DEPTH:
            raise InputError(f"{where}: more than {MAX_DEPTH} mappings and lists inside each other; a study has fewer")
        if values > MAX_VALUES:
            raise InputError(f"more than {MAX_VALUES:,} values, counting aliases; a study has fewer")
        if isinstance(item, Mapping | list) and len(item) > MAX_ENTRIES:
            raise InputError(f"{where or 'the study'}: {len(item):,} entries; expected at most {MAX_ENTRIES:,}")
        prefix = f"{where}." if where else ""
        if isinstance(item, Mapping):
            for key, inner in item.items():
                if not where and key == CODE:
                    raise InputError(f"{CODE}: a study file holds settings and no code; take it out, and read the rest")
                if isinstance(key, int) and not isinstance(key, bool) and 0 <= key <= MAX_NUMBER:
                    key = str(key)  # a mask value; `resolve` turns it into text
                if not isinstance(key, str):
                    raise InputError(f"{prefix}{SHORT.repr(key)}: expected text as a key, got {type(key).__name__}")
                _check_text(f"key {prefix}{SHORT.repr(key)}", key)
                todo.append((f"{prefix}{key}", inner, depth + 1))
        elif isinstance(item, list):
            todo += [(f"{prefix}{i}", inner, depth + 1) for i, inner in enumerate(item)]
        elif isinstance(item, str):
            _check_text(where, item)
        elif isinstance(item, int | float):
            if MAX_NUMBER < abs(item) < math.inf:  # the schema reports NaN and infinity
                raise InputError(f"{where}: expected a number of at most 2**53 (about 9e15) in size, got a larger one")
        elif item is not None:
            raise InputError(
                f"{where}: expected text, a number, true, false, a list or a mapping, got {type(item).__name__}; "
                "put text in quotes"
            )


def _check_text(where: str, text: str) -> None:
    if len(text) > MAX_TEXT:
        raise InputError(f"{where}: {len(text):,} characters; expected at most {MAX_TEXT:,}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: holds half a character (a lone surrogate); type it again") from error
