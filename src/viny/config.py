"""A study's settings: read, checked against the schema and against each other, completed with defaults."""

from __future__ import annotations

import copy
import difflib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from viny.data.synthetic import MIN_SIZE
from viny.errors import InputError
from viny.settings import ModelSettings

SCHEMA = Path(__file__).parents[2] / "workflow" / "schemas" / "config.schema.yaml"

# What each protocol sets; a study's `switches` override single entries.
PROTOCOLS: dict[str, dict[str, Any]] = {
    "paper": {
        "segmentation_loss": "pixel_softmax",
        "test_set": "moving",
        "augmentation": "frozen",
        "augment_test": True,
        "resize": "nearest",
        "normalise_finetune": False,
        "miou": "per_image",
        "pets_pool": "official",
        "subsets": "shared",
        "class_token": "intermediate",
    },
    "sound": {
        "segmentation_loss": "class_softmax",
        "test_set": "fixed",
        "augmentation": "fresh",
        "augment_test": False,
        "resize": "antialias",
        "normalise_finetune": True,
        "miou": "dataset",
        "pets_pool": "training",
        "subsets": "shared",
        "class_token": "intermediate",
    },
}

# Tasks that a grid may name without describing them. The two on Pets follow version 2 of the paper.
BUILT_IN_TASKS: dict[str, dict[str, Any]] = {
    "intel": {"source": "intel"},
    "scenes": {"source": "synthetic"},
    "pets_classes": {
        "source": "pets",
        "target": "image",
        "mixup": 0.0,
        "epochs": 20,
        "optimizer": "adamw",
        "lr": 1e-3,
        "milestones": [],
    },
    "pets_spatial": {
        "source": "pets",
        "target": "patch",
        "mixup": 0.0,
        "epochs": 20,
        "optimizer": "adam",
        "lr": 5e-4,
        "milestones": [],
    },
}

# Names that a task may not have: 'none' is the absence of one, the others are packs of other stages.
RESERVED = ("none", "pretrain", "segmentation")

SOURCE_FOLDERS = {"imagenet": "imagenet", "intel": "intel", "pets": "", "synthetic": ""}


def read_config(path: str | Path) -> dict[str, Any]:
    """Parse a study file (YAML).

    Raises:
        InputError: missing, not YAML, or not a mapping.
    """
    try:
        value = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such study file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a mapping of keys to values, got {type(value).__name__}")
    return value


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `over` on top; mappings merge, everything else is replaced."""
    out = copy.deepcopy(dict(base))
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
        A new mapping with every default, every switch, every task of the grid and every path filled in.

    Raises:
        InputError: names the key, what it holds, and what is allowed.
    """
    schema = yaml.safe_load(Path(schema_path).read_text(encoding="utf-8"))
    config = copy.deepcopy(dict(raw))
    _validate(config, schema)
    _fill_defaults(config, schema, schema)
    config["switches"] = PROTOCOLS[config["protocol"]] | config["switches"]
    task_schema = schema["$defs"]["task"]
    for name in RESERVED:
        if name in config["intermediate"]:
            raise InputError(f"intermediate.{name}: a task may not be called '{name}'; choose another name")
    tasks = {}
    for name in config["grid"]["intermediates"]:
        if name == "none":
            continue
        if name not in BUILT_IN_TASKS and name not in config["intermediate"]:
            known = sorted({"none", *BUILT_IN_TASKS, *config["intermediate"]})
            raise InputError(
                f"grid.intermediates: no task is called '{name}'{_did_you_mean(name, known)}; "
                f"known are {', '.join(known)}; describe your own under intermediate.{name}"
            )
        # The schema's defaults were filled in already; a built-in's own come between them and the user's.
        own = raw.get("intermediate", {}).get(name, {})
        task = merge(BUILT_IN_TASKS.get(name, {}), own)
        _fill_defaults(task, task_schema, schema)
        tasks[name] = task
    config["intermediate"] = tasks
    for section in (config["pretrain"], config["segmentation"], *tasks.values()):
        folder = Path(config["data_root"]) / SOURCE_FOLDERS[section["source"]]
        section.setdefault("path", folder.as_posix())
    if config["pretrain"]["pack_size"] == 0:
        config["pretrain"]["pack_size"] = least_pack_size(
            config["model"]["image_size"], config["pretrain"]["crop_scale"]
        )
    _check_across(config)
    return config


def least_pack_size(image_size: int, crop_scale: float) -> int:
    """Least side, a multiple of 8, whose crops of `crop_scale` of the area have image_size**2 pixels."""
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


def _did_you_mean(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def _validate(config: dict[str, Any], schema: Mapping[str, Any]) -> None:
    import jsonschema  # here, so that jobs, which get checked settings, need not have it

    # Draft 2020-12 takes 100.0 for an integer and NaN for a number; training can use neither.
    base = jsonschema.Draft202012Validator
    types = base.TYPE_CHECKER.redefine_many(
        {
            "integer": lambda _, v: isinstance(v, int) and not isinstance(v, bool),
            "number": lambda _, v: isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v),
        }
    )
    validator = jsonschema.validators.extend(base, type_checker=types)(schema)
    errors = sorted(validator.iter_errors(config), key=lambda e: [str(p) for p in e.absolute_path])
    if errors:
        raise InputError("\n".join(dict.fromkeys(_explain(e) for e in errors)))


def _explain(error: Any) -> str:
    """One line for one violation: the key, what it holds, what is allowed."""
    key = ".".join(str(p) for p in error.absolute_path)
    where = f"{key}: " if key else ""
    rule, allowed, got = error.validator, error.validator_value, error.instance
    if rule == "additionalProperties":
        known = sorted(error.schema.get("properties", {}))
        unknown = [k for k in got if k not in known]
        hints = [f"unknown key '{k}'{_did_you_mean(str(k), known)}" for k in unknown]
        return f"{where}{', '.join(hints)}; allowed are {', '.join(known)}"
    said = error.schema.get("description", "")
    if rule == "type" and isinstance(got, str) and re.fullmatch(r"[+-]?\d+[eE][+-]?\d+", got):
        said = f"YAML takes {got} for text; write {got.lower().replace('e', '.0e', 1)}. {said}".strip()
    expected = {
        "type": lambda: f"expected {allowed}",
        "enum": lambda: f"expected one of {', '.join(map(str, allowed))}",
        "minimum": lambda: f"expected at least {allowed}",
        "maximum": lambda: f"expected at most {allowed}",
        "exclusiveMinimum": lambda: f"expected more than {allowed}",
        "exclusiveMaximum": lambda: f"expected less than {allowed}",
        "minItems": lambda: f"expected at least {allowed} entry",
        "uniqueItems": lambda: "expected no entry twice",
        "pattern": lambda: f"expected to match {allowed}",
        "required": lambda: f"missing key: {error.message}",
    }.get(rule, lambda: error.message)()
    return f"{where}{expected}, got {got!r}." + (f" {said}" if said else "")


def _check_across(config: dict[str, Any]) -> None:
    """What a schema cannot say: keys that must fit each other."""
    model = config["model"]
    if model["image_size"] % model["patch_size"]:
        raise InputError(
            f"model.patch_size: {model['patch_size']} does not divide model.image_size, "
            f"{model['image_size']}; choose a divisor"
        )
    switches = config["switches"]
    if switches["test_set"] == "moving":
        on_pets = [n for n, t in config["intermediate"].items() if t["source"] == config["segmentation"]["source"]]
        for key, allowed, matters in (("subsets", "shared", True), ("pets_pool", "official", bool(on_pets))):
            if matters and switches[key] != allowed:
                raise InputError(
                    f"switches.{key}: '{switches[key]}' needs switches.test_set: fixed; with a moving test set "
                    f"use '{allowed}'"
                )
    sections = (config["pretrain"], config["segmentation"], *config["intermediate"].values())
    synthetic = any(section["source"] == "synthetic" for section in sections)
    if synthetic and model["image_size"] < MIN_SIZE:
        raise InputError(
            f"model.image_size: {model['image_size']} is too small for synthetic images; use at least {MIN_SIZE}"
        )
    stages = {"pretrain": config["pretrain"], "finetune": config["finetune"]}
    stages |= {f"intermediate.{name}": task for name, task in config["intermediate"].items()}
    for name, stage in stages.items():
        for milestone in stage["milestones"]:
            if milestone >= stage["epochs"]:
                raise InputError(
                    f"{name}.milestones: {milestone} is not before the last epoch ({name}.epochs is "
                    f"{stage['epochs']}); use values from 1 to {stage['epochs'] - 1}, or [] for none"
                )
    for name, task in config["intermediate"].items():
        if task["target"] == "patch":
            if task["source"] not in ("pets", "synthetic"):
                raise InputError(
                    f"intermediate.{name}.target: 'patch' needs masks, which source '{task['source']}' "
                    "does not have; use source pets or synthetic, or target image"
                )
            if task["mixup"]:
                raise InputError(f"intermediate.{name}.mixup: only for target image; set it to 0")
    masked = int(config["pretrain"]["mask_ratio"] * ModelSettings(**model).patches)
    if masked == 0:
        raise InputError(
            f"pretrain.mask_ratio: {config['pretrain']['mask_ratio']} masks none of the "
            f"{ModelSettings(**model).patches} patches; use a larger share"
        )
    if config["pretrain"]["pack_size"] < model["image_size"]:
        raise InputError(
            f"pretrain.pack_size: {config['pretrain']['pack_size']} is less than model.image_size, "
            f"{model['image_size']}; use 0 to have it chosen"
        )


def check_sizes(config: Mapping[str, Any], counts: Mapping[str, int]) -> None:
    """Refuse grid sizes larger than the data.

    Args:
        config: resolved settings.
        counts: images by role, of 'pretrain' and 'segmentation'; a role left out is not checked.

    Raises:
        InputError: names the key, the size, and what the data allow.
    """
    grid = config["grid"]
    if "pretrain" in counts and max(grid["pretrain_sizes"]) > counts["pretrain"]:
        raise InputError(
            f"grid.pretrain_sizes: {max(grid['pretrain_sizes'])} is larger than the data: "
            f"{config['pretrain']['path']} ({config['pretrain']['source']}) has {counts['pretrain']} images"
        )
    if "segmentation" in counts:
        test = config["segmentation"]["test_size"]
        room = counts["segmentation"] - test
        if max(grid["finetune_sizes"]) > room:
            raise InputError(
                f"grid.finetune_sizes: {max(grid['finetune_sizes'])} is larger than the data: "
                f"{counts['segmentation']} images less segmentation.test_size, {test}, leave {max(room, 0)}"
            )
