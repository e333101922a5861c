"""Changed settings as a study file and a command line have them."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

from viny.study.arms import SECTIONS
from viny.study.config import SOURCE_FOLDERS, least_pack_size, merge, resolve, usual_path
from viny.study.protocols import PROTOCOLS


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


def changed(config: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Resolved settings with a change, and with what follows from it.

    Raises:
        InputError: as `viny.study.config.resolve`.
    """
    return resolve(merge(as_written(config), change))


def as_written(config: Mapping[str, Any]) -> dict[str, Any]:
    """Resolved settings without those that `resolve` makes of others, so that these can be changed.

    Args:
        config: resolved settings; those of an older version may lack some.

    Returns:
        Settings that resolve to the same.
    """
    written = copy.deepcopy({key: value for key, value in config.items() if key != "listings"})
    model, pretrain, segmentation = (written.get(key, {}) for key in ("model", "pretrain", "segmentation"))
    if {"image_size", "pack_size", "crop_scale"} <= {*model, *pretrain} and pretrain["pack_size"] == least_pack_size(
        model["image_size"], pretrain["crop_scale"]
    ):
        pretrain["pack_size"] = 0
    protocol = PROTOCOLS.get(written.get("protocol", ""), {})
    written["switches"] = _unlike(protocol, written.get("switches", {}))
    for section in (segmentation, pretrain, *written.get("intermediate", {}).values()):
        source = section.get("source")
        derived = [usual_path(written.get("data_root", ""), source)] if source in SOURCE_FOLDERS else []
        derived += [section.get("images")] if section is segmentation else []
        derived += [config["segmentation"].get("path")] if source == "segmentation" else []
        if section.get("path") in derived:
            section.pop("path", None)
    for one in written.get("variants", {}).values():
        for section in SECTIONS:
            if section in one:
                one[section] = _unlike(config.get(section, {}), one[section])
    return written


def _unlike(usual: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """What of some settings differs from the usual ones."""
    found = {}
    for key, value in own.items():
        if isinstance(value, Mapping) and isinstance(usual.get(key), Mapping):
            if inner := _unlike(usual[key], value):
                found[key] = inner
        elif key not in usual or usual[key] != value:
            found[key] = value
    return found
