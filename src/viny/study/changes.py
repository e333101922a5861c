"""Changed settings as a study file and a command line have them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def keys(change: Mapping[str, Any]) -> dict[str, Any]:
    """A change of nested settings by dotted key."""
    found = {}
    for key, value in change.items():
        inner = keys(value) if isinstance(value, Mapping) else {"": value}
        found |= {f"{key}.{rest}".rstrip("."): one for rest, one in inner.items()}
    return found


def as_keys(change: Mapping[str, Any]) -> str:
    """A change as its lines of a study file."""
    return ", ".join(f"`{key}: {flow(value)}`" for key, value in keys(change).items())


def as_flags(change: Mapping[str, Any]) -> str:
    """A change as arguments of a command."""
    return " ".join(f"--set '{key}={flow(value, ',')}'" for key, value in keys(change).items())


def flow(value: Any, between: str = ", ") -> str:
    """A value in one line of YAML."""
    if isinstance(value, list | tuple):
        return f"[{between.join(flow(one, between) for one in value)}]"
    return value if isinstance(value, str) else json.dumps(value)
