"""A study's settings: checked against the schema and each other, and completed with defaults."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from viny.runtime.errors import InputError
from viny.study.arms import BUILT_IN_VARIANTS, SECTIONS, SHARED, lineages
from viny.study.checks import OWN_MASKS, check_arms, check_mask_values, did_you_mean, faults_across, validate
from viny.study.grid import RANDOM, STUDY
from viny.study.protocols import BUILT_IN_TASKS, PROTOCOLS, RESERVED
from viny.study.reading import SHORT, check_extent

SCHEMA = Path(__file__).with_name("schema.yaml")

ARM_KEYS = ("starts", "variants", "lineages")  # of a grid; a study without arms has none of them
SOURCE_FOLDERS = {"imagenet": "imagenet", "intel": "intel", "pets": "", "segmentation": "", "synthetic": ""}


def usual_path(data_root: str, source: str) -> str:
    """Where the images of a source are, unless a study says it."""
    return (Path(data_root) / SOURCE_FOLDERS[source]).as_posix()


def merge(*settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings on top of each other, later ones above; mappings merge, everything else is replaced."""
    out: dict[str, Any] = {}
    for over in settings:
        for key, value in over.items():
            both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
            out[key] = merge(out[key], value) if both else copy.deepcopy(value)
    return out


def resolve(raw: Mapping[str, Any], schema_path: str | Path = SCHEMA) -> dict[str, Any]:
    """Check a study's settings and complete them.

    Args:
        raw: what the study file and the command line say.
        schema_path: the JSON schema (YAML).

    Returns:
        A new mapping with every default, every switch, every task of the grid and every path filled in. `variants`
        holds, for each in the grid, the sections that it may change, resolved; `starts` those in the grid.

    Raises:
        InputError: names the key, what it holds, and what is allowed.
    """
    check_extent(raw)
    schema = _read_schema(Path(schema_path))
    config = raw = _unshared(raw)
    validate(config, schema)
    config = copy.deepcopy(config)
    _fill_defaults(config, schema, schema)
    config["switches"] = PROTOCOLS[config["protocol"]] | config["switches"]
    task_schema = schema["$defs"]["task"]
    for name in RESERVED:
        if name in config["intermediate"]:
            raise InputError(f"intermediate.{name}: a task may not be called '{name}'; choose another name")
    tasks: dict[str, Any] = {}
    wanted = [(name, "grid.intermediates") for name in config["grid"]["intermediates"] if name != "none"]
    for name, where in wanted:  # and those that they come after
        if name in tasks:
            continue
        # The schema's defaults are filled in already; a built-in task's own come between them and the user's.
        task = _described(name, raw.get("intermediate", {}), where, ())
        _fill_defaults(task, task_schema, schema)
        tasks[name] = task
        if "after" in task:
            wanted.append((task["after"], f"intermediate.{name}.after"))
    config["intermediate"] = tasks
    _fill_folders(config)
    for section in (config["segmentation"], config["pretrain"], *tasks.values()):
        if section is config["pretrain"] and section["source"] == "segmentation":
            section["path"] = config["segmentation"]["path"]
        elif "path" not in section:
            section["path"] = usual_path(config["data_root"], section["source"])
    if config["pretrain"]["pack_size"] == 0:
        config["pretrain"]["pack_size"] = least_pack_size(
            config["model"]["image_size"], config["pretrain"]["crop_scale"]
        )
    _resolve_arms(config, raw, schema_path, [*faults_across(config)])
    check_arms(config)
    return config


def _resolve_arms(config: dict[str, Any], raw: Mapping[str, Any], schema_path: str | Path, faults: list[str]) -> None:
    """Complete the starts and variants of the grid; a study without any keeps no keys about them.

    Raises:
        InputError: there are faults of the study already, or variants have some; all are told at once.
    """
    grid = config["grid"]
    given = {"starts": config.pop("starts", {}), "variants": config.pop("variants", {})}
    known = {"starts": {RANDOM}, "variants": {STUDY, *BUILT_IN_VARIANTS}}
    grid.pop("lineages", None)
    for axis, usual in (("starts", RANDOM), ("variants", STUDY)):
        for name in grid.get(axis, ()):
            if name not in known[axis] and name not in given[axis]:
                names = sorted({*known[axis], *given[axis]})
                raise InputError(
                    f"grid.{axis}: none is called '{name}'{did_you_mean(name, names)}; known are {', '.join(names)}; "
                    f"describe your own under {axis}.{name}"
                )
        if usual in given[axis]:
            raise InputError(f"{axis}.{usual}: this name is taken; choose another")
        if grid.get(axis) == [usual]:
            del grid[axis]
    starts = {name: given["starts"][name] for name in grid.get("starts", ()) if name != RANDOM}
    if starts:
        config["starts"] = starts
    for name, start in starts.items():
        _check_limits(f"starts.{name}", start.get("grid", {}), config)
    plain = {key: value for key, value in raw.items() if key not in ("starts", "variants")}
    plain["grid"] = {key: value for key, value in raw.get("grid", {}).items() if key not in ARM_KEYS}
    variants = {}
    for name in grid.get("variants", ()):
        if name != STUDY:
            own = merge(BUILT_IN_VARIANTS.get(name, {}), given["variants"].get(name, {}))
            try:
                variants[name] = _variant(name, own, config, plain, schema_path)
            except InputError as error:
                own_faults = str(error).splitlines()
                faults += [line for line in own_faults if line.removeprefix(f"variants.{name}: ") not in faults]
    if faults:
        raise InputError("\n".join(faults))
    if variants:
        config["variants"] = variants
        for one in variants.values():
            one["intermediate"] = {**config["intermediate"], **one["intermediate"]}
    if found := lineages(config):
        grid["lineages"] = found


def _variant(
    name: str, own: Mapping[str, Any], config: Mapping[str, Any], plain: Mapping[str, Any], schema_path: str | Path
) -> dict[str, Any]:
    """The sections that a variant may change, resolved, and the axes that it shortens.

    Args:
        name: of the variant.
        own: what it changes.
        config: the resolved study.
        plain: what the study's file says, without variants.
        schema_path: the JSON schema.
    """
    limits = own.get("grid", {})
    # The label sizes that it leaves out need not fit what it changes.
    labels = {key: value for key, value in limits.items() if key == "finetune_sizes"}
    differs = {**own, "grid": labels}
    try:
        found = resolve(merge(plain, differs), schema_path)
    except InputError as error:
        raise InputError("\n".join(f"variants.{name}: {line}" for line in str(error).splitlines())) from error

    def shared(section: str, mine: Mapping[str, Any], theirs: Mapping[str, Any], keys: tuple[str, ...]) -> None:
        for key in keys:
            if mine.get(key) != theirs.get(key):
                raise InputError(
                    f"variants.{name}.{section}.{key}: is one for all arms, which share images and test; "
                    "leave it out, or make it another study"
                )

    for section in ("model", "switches", "pretrain"):
        shared(section, found[section], config[section], SHARED[section])
    for task, settings in found["intermediate"].items():
        known = config["intermediate"].setdefault(task, settings)  # one that only variants have
        shared(f"intermediate.{task}", settings, known, SHARED["task"])
    _check_limits(f"variants.{name}", limits, config)
    sections = {section: found[section] for section in SECTIONS if section in found}
    return {**sections, **({"grid": limits} if limits else {})}


def _check_limits(where: str, limits: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Refuse axes of a start or a variant that hold more than the grid's."""
    for axis, values in limits.items():
        usual = config["grid"].get(axis, [RANDOM] if axis == "starts" else [STUDY])
        extra = [value for value in values if value not in usual]
        if extra:
            raise InputError(f"{where}.grid.{axis}: {extra[0]} is not in grid.{axis}; it may only leave values out")


def typed(given: Mapping[str, Any], schema_path: str | Path = SCHEMA) -> dict[str, Any]:
    """Settings whose numbers and switches may be texts, as Snakemake hands on what is nested in its --config.

    A text becomes what YAML makes of it where the schema expects that; everything else stays as it is.

    Args:
        given: settings, of which any may be missing.
        schema_path: the JSON schema (YAML).
    """
    schema = _read_schema(Path(schema_path))
    return {key: _typed(value, schema["properties"].get(key, {}), schema) for key, value in given.items()}


def _typed(value: Any, node: Mapping[str, Any], root: Mapping[str, Any]) -> Any:
    node = _deref(node, root)
    if isinstance(value, Mapping):
        known, others = node.get("properties", {}), node.get("additionalProperties") or {}
        return {key: _typed(inner, known.get(key, others), root) for key, inner in value.items()}
    if isinstance(value, list):
        return [_typed(inner, node.get("items", {}), root) for inner in value]
    if not isinstance(value, str):
        return value
    try:
        read = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):  # a date that does not exist, for one
        return value
    kind = {bool: ("boolean",), int: ("integer", "number"), float: ("number",)}.get(type(read), ())
    expected = node.get("type", ())
    return read if {*kind} & {*([expected] if isinstance(expected, str) else expected)} else value


def _fill_folders(config: dict[str, Any]) -> None:
    """Check that sections with source folder say where it is and that no others do; complete them."""
    segmentation = config["segmentation"]
    if not isinstance(segmentation["ignore"], list):
        segmentation["ignore"] = [segmentation["ignore"]]
    own = segmentation["source"] == "folder"
    for key in OWN_MASKS:
        if own and key not in segmentation:
            raise InputError(f"segmentation.{key}: missing; source folder needs {', '.join(OWN_MASKS)}")
    given = [key for key in (*OWN_MASKS, "split", "group", "mask_suffix", "ignore") if segmentation.get(key)]
    if not own and given:
        raise InputError(f"segmentation.{given[0]}: only for source folder; leave it out, or set source: folder")
    if own:
        if segmentation.setdefault("path", segmentation["images"]) != segmentation["images"]:
            raise InputError("segmentation.path: source folder has images and masks instead; leave it out")
        check_mask_values(segmentation["classes"], segmentation["ignore"])
    for name in ("pretrain", *(f"intermediate.{task}" for task in config["intermediate"])):
        section = config["intermediate"][name.partition(".")[2]] if "." in name else config[name]
        if section["source"] == "folder" and "path" not in section:
            raise InputError(f"{name}.path: missing; source folder needs it")
        if section["source"] != "folder" and "split" in section:
            raise InputError(f"{name}.split: only for source folder; leave it out, or set source: folder")


def _described(name: str, own: Mapping[str, Any], where: str, above: tuple[str, ...]) -> dict[str, Any]:
    """What built-in tasks and the user say about a task, and about the one it is like, without defaults.

    Args:
        name: name of the task.
        own: the user's tasks.
        where: the key that names it, for messages.
        above: tasks that are like it, outermost first.
    """
    if name not in BUILT_IN_TASKS and name not in own:
        known = sorted({*BUILT_IN_TASKS, *own} - {*above}) + ["none"] * (not above)
        raise InputError(
            f"{where}: no task is called '{name}'{did_you_mean(name, known)}; "
            f"known are {', '.join(known)}; describe your own under intermediate.{name}"
        )
    if name in above:
        raise InputError(f"{where}: '{name}' is like itself ({' like '.join((*above, name))}); name another task")
    task = merge(BUILT_IN_TASKS.get(name, {}), own.get(name, {}))
    like = task.pop("like", None)
    if like is None:
        return task
    return merge(_described(like, own, f"intermediate.{name}.like", (*above, name)), task)


@functools.cache
def _read_schema(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _unshared(value: Any) -> Any:
    """A copy without shared parts: sections joined by a YAML alias would get each other's defaults."""
    if isinstance(value, Mapping):
        out = {str(key): _unshared(inner) for key, inner in value.items()}
        if len(out) < len(value):
            raise InputError(f"{SHORT.repr(value)}: a key is given both as a number and as text; keep one of them")
        return out
    return [_unshared(inner) for inner in value] if isinstance(value, list) else value


def least_pack_size(image_size: int, crop_scale: float) -> int:
    """The smallest side, a multiple of 8, at which crops of `crop_scale` of the area have image_size**2 pixels."""
    return 8 * math.ceil(image_size / math.sqrt(crop_scale) / 8)


def _deref(node: Mapping[str, Any], root: Mapping[str, Any]) -> dict[str, Any]:
    if "$ref" not in node:
        return dict(node)
    target = root
    for part in node["$ref"].removeprefix("#/").split("/"):
        target = target[part]
    return {**target, **{k: v for k, v in node.items() if k != "$ref"}}


def _fill_defaults(value: dict[str, Any], schema: Mapping[str, Any], root: Mapping[str, Any]) -> None:
    for key, node in schema.get("properties", {}).items():
        node = _deref(node, root)
        if key not in value and "default" in node:
            value[key] = copy.deepcopy(node["default"])
        if isinstance(value.get(key), dict) and "properties" in node:
            _fill_defaults(value[key], node, root)
