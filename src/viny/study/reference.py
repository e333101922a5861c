"""The reference of all settings, made from the schema: `python -m viny.study.reference docs/config.md`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from viny.runtime.files import write_text
from viny.study.arms import BUILT_IN_VARIANTS
from viny.study.config import SCHEMA
from viny.study.protocols import BUILT_IN_TASKS, PROTOCOLS

HEAD = """\
# Every key of a study

Made from [`src/viny/study/schema.yaml`](../src/viny/study/schema.yaml) by
`python -m viny.study.reference docs/config.md`; change the schema, not this file.

A study is a YAML file that holds only what differs from the defaults. `grid.seeds` is `grid: {seeds: [0, 1]}`.
Unknown keys, keys given twice and values that do not fit are refused by name. `viny check <study> --show` prints a
study with every default filled in. `viny check a.yaml b.yaml` lays `b.yaml` over `a.yaml`: mappings merge, everything
else is replaced. `snakemake --configfile a.yaml b.yaml` does the same; `--config data_root=<folder>` sets a single key,
`--config 'grid={seeds: [3]}'` one in a section.
"""
BAR = r"\|"
END = r"(?!\n)"  # of patterns, since $ also matches before a trailing newline
WORDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "`true` or `false`"}


def config_reference(schema_path: str | Path = SCHEMA) -> str:
    """Every key of a study, the built-in tasks and the protocols, as Markdown.

    Args:
        schema_path: the JSON schema (YAML) of studies.

    Returns:
        A section for each part of a study, in the schema's order; a row for each key.
    """
    schema = yaml.safe_load(Path(schema_path).read_text(encoding="utf-8"))
    parts = {key: _resolved(node, schema) for key, node in schema["properties"].items()}
    plain = {key: node for key, node in parts.items() if not _is_section(node)}
    lines = [HEAD, "## The study itself", "", *_keys("", plain, schema)]
    for name, node in parts.items():
        if not _is_section(node):
            continue
        lines += ["", f"## `{name}`", "", _prose(node), ""]
        if name == "switches":
            lines += _switches(node["properties"], schema)
        elif "properties" in node:
            lines += _keys(f"{name}.", node["properties"], schema)
        else:
            lines += _named(name, _resolved(node["additionalProperties"], schema), schema)
    return "\n".join(lines) + "\n"


def _is_section(node: Mapping[str, Any]) -> bool:
    return "properties" in node or "propertyNames" in node


def _resolved(node: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """A node together with the definition that it refers to; `is` names the definition."""
    if "$ref" not in node:
        return dict(node)
    target: Any = schema
    for part in node["$ref"].removeprefix("#/").split("/"):
        target = target[part]
    return {**target, **node, "is": node["$ref"].rpartition("/")[2]}


def _table(heading: Sequence[str], rows: Iterator[Sequence[str]]) -> list[str]:
    """Lines of a table; bars in a cell are escaped."""
    lines = [f"| {' | '.join(cell.replace('|', BAR) for cell in row)} |" for row in (heading, *rows)]
    return [lines[0], f"|{'---|' * len(heading)}", *lines[1:]]


def _keys(prefix: str, properties: Mapping[str, Any], schema: Mapping[str, Any]) -> list[str]:
    def rows() -> Iterator[Sequence[str]]:
        for key, node in properties.items():
            node = _resolved(node, schema)
            required = prefix == "" and key in schema["required"]
            default = "required" if required else _value(node["default"]) if "default" in node else ""
            yield f"`{prefix}{key}`", _prose(node), _allowed(node, schema), default

    return _table(("key", "what", "values", "default"), rows())


def _switches(properties: Mapping[str, Any], schema: Mapping[str, Any]) -> list[str]:
    def rows() -> Iterator[Sequence[str]]:
        for key, node in properties.items():
            set_by = [_value(PROTOCOLS[name][key]) for name in ("sound", "paper")]
            yield f"`switches.{key}`", _prose(node), _allowed(node, schema), *set_by

    heading = ("key", "what", "values", "under `sound`", "under `paper`")
    return [*_table(heading, rows()), "", "Why there are two protocols: [protocols.md](protocols.md)."]


def _named(section: str, one: Mapping[str, Any], schema: Mapping[str, Any]) -> list[str]:
    """A section whose entries have names of the user's."""
    built_in = {"intermediate": BUILT_IN_TASKS, "variants": BUILT_IN_VARIANTS}.get(section, {})
    rows = (
        (f"`{name}`", ", ".join(f"`{key}: {_text(value)}`" for key, value in said.items()))
        for name, said in built_in.items()
    )
    what = {"intermediate": "task"}.get(section, section.removesuffix("s"))
    lines = [_prose(one), "", *_keys(f"{section}.<{what}>.", one["properties"], schema)]
    if not built_in:
        return lines
    return [
        *lines,
        "",
        f"### Built-in {what}s",
        "",
        "A grid may name these without describing them; settings not listed here have the defaults above."
        if section == "intermediate"
        else "A grid may name these without describing them, and `study`, which differs in nothing.",
        "",
        *_table((what, "settings"), rows),
    ]


def _prose(node: Mapping[str, Any]) -> str:
    """A description, escaped where Markdown would take <name> for HTML."""
    return node["description"].replace("<", r"\<")


def _allowed(node: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """Which values a key takes, in words."""
    if node.get("is") == "path":
        return "path"
    if "enum" in node:
        return ", ".join(_value(value) for value in node["enum"])
    kinds = node["type"] if isinstance(node["type"], list) else [node["type"]]
    return "; or ".join(_kind(kind, node, schema) for kind in kinds)


def _kind(kind: str, node: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    if kind == "array":
        inner = _allowed(_resolved(node["items"], schema), schema)
        return f"list of: {inner}" + (f"; at least {node['minItems']}" if node.get("minItems") else "")
    if kind == "object":
        least = node.get("minProperties")
        return f"mapping of at least {least} entries" if least else "mapping"
    out = WORDS[kind]
    if kind in ("integer", "number"):
        bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
        limits = [f"{sign} {node[rule]:g}" for rule, sign in bounds.items() if rule in node]
        out += f" {', '.join(limits)}" if limits else ""
    if kind == "string" and "pattern" in node:
        out += f" that matches `{node['pattern'].removesuffix(END)}`"
    return out


def _value(value: Any) -> str:
    return f"`{_text(value)}`"


def _text(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m viny.study.reference docs/config.md")
    write_text(Path(sys.argv[1]), config_reference())
