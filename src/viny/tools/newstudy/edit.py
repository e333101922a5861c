"""A study file with other values, in place: comments, order and everything that does not change stay as they are."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import yaml

from viny.runtime.errors import InputError
from viny.study.changes import flow
from viny.study.config import merge
from viny.study.reading import parse_config

KeyPath = tuple[str, ...]  # of a key: its section, then the key


def nested(changes: Mapping[KeyPath, Any]) -> dict[str, Any]:
    """Values by path as mappings in each other, as a study file has them."""
    found: dict[str, Any] = {}
    for path, value in changes.items():
        for key in reversed(path):
            value = {key: value}
        found = merge(found, value)
    return found


def edited(text: str, changes: Mapping[KeyPath, Any]) -> str:
    """The text of a study file with some values changed, and keys that it lacks added to their sections.

    Args:
        text: YAML or JSON.
        changes: values or lists of them, by path.

    Raises:
        InputError: the values stand elsewhere too, by an anchor or a merge, so that more than they would change.
    """
    before = parse_config(text)
    wanted = merge(before, nested(changes))
    try:
        json.loads(text)
    except ValueError:
        pass
    else:
        return json.dumps(wanted, indent=2, ensure_ascii=False) + "\n"
    try:
        for path, value in changes.items():
            text = _with(text, path, value)
        after = parse_config(text)
    except (_SharedError, yaml.YAMLError, ValueError):
        after = None
    if after != wanted:
        lines = "; ".join(f"{'.'.join(path)}: {value}" for path, value in changes.items())
        raise InputError(f"its sections share values by anchors (&, *, <<), so it must be edited by hand: {lines}")
    return text


class _SharedError(Exception):
    """A section is another one's, by an alias."""


def _with(text: str, path: KeyPath, value: Any) -> str:
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    for at, key in enumerate(path):
        found = [(k, v) for k, v in node.value if isinstance(k, yaml.ScalarNode) and k.value == key]
        if not found:
            return _with_more(text, node, path[at:], value)
        ((name, inner),) = found
        if inner.start_mark.index < name.end_mark.index:
            raise _SharedError
        node = inner
        if at + 1 < len(path) and not isinstance(node, yaml.MappingNode):
            raise _SharedError
    if isinstance(node, yaml.SequenceNode) and not node.flow_style:
        return _with_items(text, node, value)
    start, end = node.start_mark.index, node.end_mark.index
    new = flow(value)
    if comments := re.findall(r"#.*", text[start:end]):  # numbers have none of their own
        indent = " " * (node.start_mark.column + 2)
        new = "[ " + f"\n{indent}".join([*comments, new[1:]])
    return text[:start] + new + text[end:]


def _with_items(text: str, node: yaml.SequenceNode, values: list[Any]) -> str:
    """A list of one item a line with other items, each in the place of an old one, whose comment stays."""
    items = node.value
    indent = " " * node.start_mark.column
    more = "".join(f"\n{indent}- {flow(value)}" for value in values[len(items) :])
    line_end = _line_end(text, _end(items[-1]))
    text = text[:line_end] + more + text[line_end:]
    for at in reversed(range(len(items))):
        start, end = items[at].start_mark.index, items[at].end_mark.index
        if at < len(values):
            text = text[:start] + flow(values[at]) + text[end:]
            continue
        dash, rest = text.rindex("-", 0, start), _line_end(text, end)
        comment = text[end:rest].strip()
        begin = text.rindex("\n", 0, dash) if not comment else dash
        text = text[:begin] + comment + text[rest:]
    return text


def _with_more(text: str, parent: yaml.MappingNode, path: KeyPath, value: Any) -> str:
    """A mapping with a further key, as the last one of a block and the first one in braces."""
    if parent.flow_style:
        inside = flow(value)
        for key in reversed(path):
            inside = f"{key}: {inside}" if key == path[0] else f"{{{key}: {inside}}}"
        brace = text.index("{", parent.start_mark.index) + 1
        return text[:brace] + inside + (", " if parent.value else "") + text[brace:]
    indent = parent.value[0][0].start_mark.column
    lines = [f"{' ' * (indent + 2 * at)}{key}:" for at, key in enumerate(path)]
    lines[-1] += f" {flow(value)}"
    end = _line_end(text, _end(parent))
    space = "\n" if indent == 0 and len(path) > 1 and "\n\n" in text else ""
    return text[:end] + space + "\n" + "\n".join(lines) + text[end:]


def _end(node: yaml.Node) -> int:
    """Where the last word of a value ends; a block's own mark is after the empty lines and comments behind it."""
    if isinstance(node, yaml.ScalarNode) or getattr(node, "flow_style", False) or not node.value:
        return node.end_mark.index
    last = node.value[-1]
    key, inner = last if isinstance(last, tuple) else (None, last)
    if key is not None and inner.start_mark.index < key.end_mark.index:
        return key.end_mark.index  # an alias stands behind it, on the same line
    return max(_end(inner), key.end_mark.index if key is not None else 0)


def _line_end(text: str, index: int) -> int:
    """The end of the line that the text before an index ends on, comment included."""
    index = len(text[:index].rstrip())
    found = text.find("\n", index)
    return len(text) if found < 0 else found
