"""A study's settings: read, checked against the schema and against each other, completed with defaults."""

from __future__ import annotations

import copy
import difflib
import functools
import math
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from viny.data.synthetic import MIN_SIZE
from viny.errors import InputError
from viny.settings import MAX_CLASSES, TRAIN_KEYS, ModelSettings, value_number

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

# Tasks that a grid may name without describing them. The two on Pets follow version 2 of the paper; the three after
# intel differ from it in one thing each.
BUILT_IN_TASKS: dict[str, dict[str, Any]] = {
    "intel": {"source": "intel"},
    "intel_mean": {"like": "intel", "pooling": "mean"},
    "intel_kept": {"like": "intel", "keep_class_token": True},
    "intel_shuffled": {"like": "intel", "labels": "shuffled"},
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

# More than any study needs. A job's settings are one argument of its command, which Linux holds to 128 KiB, and
# a few lines of YAML with aliases can stand for billions of values, or for one that holds itself.
MAX_CELLS = 100_000
MAX_DEPTH = 16  # mappings and lists within each other
MAX_ENTRIES = 1000  # of a mapping or list
MAX_VALUES = 10_000  # in all
MAX_TEXT = 2000  # characters
MAX_NUMBER = 2**53  # beyond it not every integer is a float, and JSON readers may round
MAX_PACK_SIZE = 2**15  # pixels
MAX_MASK_VALUE = 2**16 - 1

SOURCE_FOLDERS = {"imagenet": "imagenet", "intel": "intel", "pets": "", "segmentation": "", "synthetic": ""}
OWN_MASKS = ("images", "masks", "classes")  # keys of the segmentation that source folder needs


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxdict, _SHORT.maxlist, _SHORT.maxstring, _SHORT.maxother = 2, 8, 8, 200, 200


class _StudyLoader(yaml.SafeLoader):
    """YAML's safe loader, but a key that a mapping has twice is a fault.

    YAML forbids it and PyYAML lets the last one win, so two settings would be mixed in silence. A key of a
    merged mapping (`<<`) may be given anew, as always.
    """

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {_SHORT.repr(key.value)} stands twice; keep one of them", key.start_mark
                    )
                seen.add((key.tag, key.value))
        super().flatten_mapping(node)
        # Merged keys come first, the mapping's own last; without this, merges of merges grow without bound.
        last = {}
        for key, value in node.value:
            last[(key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key)] = (key, value)
        node.value = list(last.values())


def read_config(path: str | Path) -> dict[str, Any]:
    """Parse a study file (YAML).

    Raises:
        InputError: missing, not YAML, a key twice, not a mapping, or of absurd extent.
    """
    try:
        value = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_StudyLoader)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such study file") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error}); expected a study file") from error
    except Exception as error:  # beside its own errors, PyYAML lets those of int, date and recursion through
        raise InputError(f"{path}: not valid YAML: {error or type(error).__name__}") from error
    try:
        check_extent(value)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return value


def check_extent(value: Any) -> None:
    """Refuse what is no mapping of plain values, or is of absurd extent, before anything goes through it.

    Raises:
        InputError: names the key, what it holds, and what is allowed.
    """
    if not isinstance(value, Mapping):
        raise InputError(f"expected a mapping of keys to values, got {type(value).__name__}")
    todo: list[tuple[str, Any, int]] = [("", value, 0)]
    values = 0
    while todo:  # not by recursion: the depth is what is in doubt
        where, item, depth = todo.pop()
        values += 1
        if depth > MAX_DEPTH:
            raise InputError(f"{where}: more than {MAX_DEPTH} mappings and lists within each other; a study has fewer")
        if values > MAX_VALUES:
            raise InputError(f"more than {MAX_VALUES:,} values, aliases counted; a study has fewer")
        if isinstance(item, Mapping | list) and len(item) > MAX_ENTRIES:
            raise InputError(f"{where or 'the study'}: {len(item):,} entries; expected at most {MAX_ENTRIES:,}")
        prefix = f"{where}." if where else ""
        if isinstance(item, Mapping):
            for key, inner in item.items():
                if isinstance(key, int) and not isinstance(key, bool) and 0 <= key <= MAX_NUMBER:
                    key = str(key)  # a mask value; `resolve` makes text of it
                if not isinstance(key, str):
                    raise InputError(f"{prefix}{_SHORT.repr(key)}: expected text as a key, got {type(key).__name__}")
                _check_text(f"key {prefix}{_SHORT.repr(key)}", key)
                todo.append((f"{prefix}{key}", inner, depth + 1))
        elif isinstance(item, list):
            todo += [(f"{prefix}{i}", inner, depth + 1) for i, inner in enumerate(item)]
        elif isinstance(item, str):
            _check_text(where, item)
        elif isinstance(item, int | float):
            if MAX_NUMBER < abs(item) < math.inf:  # the schema tells of NaN and infinity
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
        raise InputError(f"{where}: holds half a character (a lone surrogate); write it anew") from error


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
    check_extent(raw)
    schema = _read_schema(Path(schema_path))
    config = raw = _unshared(raw)
    _validate(config, schema)
    config = copy.deepcopy(config)
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
        # The schema's defaults were filled in already; a built-in's own come between them and the user's.
        task = _described(name, raw.get("intermediate", {}), "grid.intermediates", ())
        _fill_defaults(task, task_schema, schema)
        tasks[name] = task
    config["intermediate"] = tasks
    _fill_folders(config)
    for section in (config["pretrain"], config["segmentation"], *tasks.values()):
        if "path" not in section:
            section["path"] = (Path(config["data_root"]) / SOURCE_FOLDERS[section["source"]]).as_posix()
    if config["pretrain"]["pack_size"] == 0:
        config["pretrain"]["pack_size"] = least_pack_size(
            config["model"]["image_size"], config["pretrain"]["crop_scale"]
        )
    _check_across(config)
    return config


def _fill_folders(config: dict[str, Any]) -> None:
    """Check that sections of source folder say where it is, and that no other does; complete them."""
    segmentation = config["segmentation"]
    if not isinstance(segmentation["ignore"], list):
        segmentation["ignore"] = [segmentation["ignore"]]
    own = segmentation["source"] == "folder"
    for key in OWN_MASKS:
        if own and key not in segmentation:
            raise InputError(f"segmentation.{key}: missing; source folder needs {', '.join(OWN_MASKS)}")
    given = [key for key in (*OWN_MASKS, "split", "mask_suffix", "ignore") if segmentation.get(key)]
    if not own and given:
        raise InputError(f"segmentation.{given[0]}: only for source folder; leave it out, or set source: folder")
    if own:
        if segmentation.setdefault("path", segmentation["images"]) != segmentation["images"]:
            raise InputError("segmentation.path: source folder has images and masks instead; leave it out")
        _check_mask_values(segmentation["classes"], segmentation["ignore"])
    for name in ("pretrain", *(f"intermediate.{task}" for task in config["intermediate"])):
        section = config["intermediate"][name.partition(".")[2]] if "." in name else config[name]
        if section["source"] == "folder" and "path" not in section:
            raise InputError(f"{name}.path: missing; source folder needs it")
        if section["source"] != "folder" and "split" in section:
            raise InputError(f"{name}.split: only for source folder; leave it out, or set source: folder")


def _check_mask_values(classes: int | Mapping[str, str], ignore: list[int | str]) -> None:
    """Refuse classes and ignored values of a segmentation that do not fit each other."""
    values = [str(value) for value in (range(classes) if isinstance(classes, int) else classes)]
    kinds = {value.startswith("#") for value in (*values, *map(str, ignore))}
    if len(kinds) > 1:
        raise InputError(
            "segmentation.classes: values and colours are mixed; name and ignore mask values or colours '#rrggbb'"
        )
    numbers = {value_number(value) for value in values}
    if len(numbers) < len(values):
        raise InputError("segmentation.classes: a value stands in it twice, written in two ways; keep one of them")
    both = {value.lower() for value in values} & {str(value).lower() for value in ignore}
    if both:
        raise InputError(f"segmentation.ignore: {min(both)} is a class too; name it or ignore it")
    if any(not value.startswith("#") and int(value) > MAX_MASK_VALUE for value in (*values, *map(str, ignore))):
        raise InputError(
            f"segmentation.classes: a mask value above {MAX_MASK_VALUE:,}; expected 0 to {MAX_MASK_VALUE:,}"
        )
    names = set(values if isinstance(classes, int) else classes.values())
    if not 2 <= len(names) <= MAX_CLASSES:
        raise InputError(f"segmentation.classes: {len(names)} different classes; expected 2 to {MAX_CLASSES}")


def _described(name: str, own: Mapping[str, Any], where: str, above: tuple[str, ...]) -> dict[str, Any]:
    """What built-in tasks and the user say of a task, and of the one that it is like, without defaults.

    Args:
        name: of the task.
        own: the user's tasks.
        where: the key that names it, for messages.
        above: tasks that are like it, outermost first.
    """
    if name not in BUILT_IN_TASKS and name not in own:
        known = sorted({*BUILT_IN_TASKS, *own} - {*above}) + ["none"] * (not above)
        raise InputError(
            f"{where}: no task is called '{name}'{_did_you_mean(name, known)}; "
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
    """A copy in which nothing stands twice: sections that a YAML alias makes one would get each other's defaults."""
    if isinstance(value, Mapping):
        out = {str(key): _unshared(inner) for key, inner in value.items()}
        if len(out) < len(value):
            raise InputError(f"{_SHORT.repr(value)}: a key stands in it as a number and as text; keep one of them")
        return out
    return [_unshared(inner) for inner in value] if isinstance(value, list) else value


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
        hints = [f"unknown key {k!r}{_did_you_mean(k, known)}" for k in unknown]
        return f"{where}{', '.join(hints)}; allowed are {', '.join(known)}"
    said = error.schema.get("description", "")
    if rule == "type" and isinstance(got, str) and re.fullmatch(r"[+-]?\d+[eE][+-]?\d+", got):
        said = f"YAML takes {got} for text; write {got.lower().replace('e', '.0e', 1)}. {said}".strip()
    expected = {
        "type": lambda: f"expected {' or '.join([allowed] if isinstance(allowed, str) else allowed)}",
        "enum": lambda: f"expected one of {', '.join(map(str, allowed))}",
        "minimum": lambda: f"expected at least {allowed}",
        "maximum": lambda: f"expected at most {allowed}",
        "exclusiveMinimum": lambda: f"expected more than {allowed}",
        "exclusiveMaximum": lambda: f"expected less than {allowed}",
        "minItems": lambda: f"expected at least {allowed} entry",
        "minProperties": lambda: f"expected at least {allowed} entries",
        "uniqueItems": lambda: "expected no entry twice",
        "pattern": lambda: f"expected to match {allowed}",
        "required": lambda: f"missing key: {error.message}",
    }.get(rule, lambda: error.message)()
    return f"{where}{expected}, got {_SHORT.repr(got)}." + (f" {said}" if said else "")


def _check_across(config: dict[str, Any]) -> None:
    """What a schema cannot say: keys that must fit each other."""
    count = math.prod(len(values) for values in config["grid"].values())
    if count > MAX_CELLS:
        raise InputError(f"grid: {count:,} cells; expected at most {MAX_CELLS:,}; shorten its lists")
    model = config["model"]
    if model["image_size"] % model["patch_size"]:
        raise InputError(
            f"model.patch_size: {model['patch_size']} does not divide model.image_size, "
            f"{model['image_size']}; choose a divisor"
        )
    switches = config["switches"]
    segmentation = config["segmentation"]
    if segmentation["test_size"] == 0 and not segmentation.get("split"):
        raise InputError("segmentation.test_size: 0 needs segmentation.split; say how many images are held out")
    if switches["test_set"] == "moving":
        if segmentation.get("split"):
            raise InputError("switches.test_set: 'moving' draws its own test images; leave segmentation.split out")
        on_pets = [
            n for n, t in config["intermediate"].items() if t["source"] in ("segmentation", segmentation["source"])
        ]
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
        if task["source"] == "segmentation" and task["target"] == "image" and segmentation["source"] == "folder":
            raise InputError(
                f"intermediate.{name}.target: '{task['target']}' needs images with classes, which the segmentation's "
                "folder does not have; use target patch, or class folders of their own"
            )
        if task["target"] != "image":
            if task["source"] not in ("pets", "segmentation", "synthetic"):
                raise InputError(
                    f"intermediate.{name}.target: '{task['target']}' needs masks, which source '{task['source']}' "
                    "does not have; use source segmentation, pets or synthetic, or target image"
                )
            if task["mixup"]:
                raise InputError(f"intermediate.{name}.mixup: only for target image; set it to 0")
            for key, usual in (("labels", "own"), ("pooling", "class_token"), ("keep_class_token", False)):
                if task[key] != usual:
                    raise InputError(f"intermediate.{name}.{key}: only for target image; leave it out")
        elif task["keep_class_token"] and task["pooling"] == "mean" and switches["class_token"] != "always":
            raise InputError(
                f"intermediate.{name}.keep_class_token: under pooling mean no class token is trained that could be "
                "kept; use pooling class_token"
            )
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
    if config["pretrain"]["pack_size"] > MAX_PACK_SIZE:
        raise InputError(
            f"pretrain.pack_size: {config['pretrain']['pack_size']:.6g} pixels a side, of which crops of "
            f"pretrain.crop_scale {config['pretrain']['crop_scale']:g} keep model.image_size, {model['image_size']}; "
            f"expected at most {MAX_PACK_SIZE}; use a larger crop_scale or a smaller size"
        )


def differences_from_paper(config: Mapping[str, Any]) -> list[str]:
    """What sets a study apart from the paper's beside its protocol and its sizes, a phrase a key.

    Numbers of a study for which this is not empty cannot be held against the paper's.
    """
    paper = resolve({"study": "paper"})
    sections = {"model": tuple(sorted(config["model"])), "finetune": ("contrast", *TRAIN_KEYS)}
    sections["pretrain"] = ("source", "mask_ratio", "crop_scale", *TRAIN_KEYS)
    sections["segmentation"] = ("source", "test_size")
    pairs = [(name, keys, config[name], paper[name]) for name, keys in sections.items()]
    if "intel" in config["intermediate"]:
        keys = ("source", "target", "mixup", "contrast", *TRAIN_KEYS)
        pairs.append(("intermediate.intel", keys, config["intermediate"]["intel"], paper["intermediate"]["intel"]))
    return [
        f"{name}.{key} is {mine[key]}, the paper's {theirs[key]}"
        for name, keys, mine, theirs in pairs
        for key in keys
        if mine[key] != theirs[key]
    ]


def check_sizes(config: Mapping[str, Any], counts: Mapping[str, int | None]) -> None:
    """Refuse grid sizes larger than the data.

    Args:
        config: resolved settings.
        counts: images of the packs 'pretrain' and 'segmentation', and of the 'train' and the 'test' part of the latter
            where a file gives them, see `viny.listings.images_here`; what is left out or None is not checked.

    Raises:
        InputError: names the key, the size, and what the data allow.
    """
    grid = config["grid"]
    counts = {name: count for name, count in counts.items() if count is not None}
    if "pretrain" in counts and max(grid["pretrain_sizes"]) > counts["pretrain"]:
        raise InputError(
            f"grid.pretrain_sizes: {max(grid['pretrain_sizes'])} is larger than the data: "
            f"{config['pretrain']['path']} ({config['pretrain']['source']}) has {counts['pretrain']} images"
        )
    test = config["segmentation"]["test_size"]
    if "train" in counts:
        for key, wanted, part in (
            ("grid.finetune_sizes", max(grid["finetune_sizes"]), "train"),
            ("segmentation.test_size", test, "test"),
        ):
            if wanted > counts[part]:
                raise InputError(
                    f"{key}: {wanted} is larger than the {part} part that {config['segmentation']['split']} gives, "
                    f"{counts[part]} images"
                )
    elif "segmentation" in counts:
        room = counts["segmentation"] - test
        if max(grid["finetune_sizes"]) > room:
            raise InputError(
                f"grid.finetune_sizes: {max(grid['finetune_sizes'])} is larger than the data: "
                f"{counts['segmentation']} labelled images less segmentation.test_size, {test}, leave {max(room, 0)}"
            )
