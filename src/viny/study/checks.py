"""Checks of a study's settings against the schema, each other and the data."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from viny.data.masks import MAX_CLASSES, value_number
from viny.data.parts import group_pattern
from viny.data.synthetic import MIN_SIZE
from viny.learning.settings import ModelSettings, moved_milestones
from viny.runtime.errors import InputError
from viny.study.arms import model_of, pretrain_packs, settings_of, task_chain
from viny.study.grid import AXES, STUDY, Arm, Cell, arms, cells, pretrain_pack
from viny.study.reading import SHORT

# More than any study needs. A job's settings are one argument of its command, which Linux limits to 128 KiB, and
# a few lines of YAML with aliases can stand for billions of values, or for one that contains itself.
MAX_CELLS = 100_000
MAX_PACK_SIZE = 2**15  # pixels
MAX_MASK_VALUE = 2**16 - 1
LAST_MILESTONE = 0.9  # of the epochs, where one is proposed
OWN_MASKS = ("images", "masks", "classes")  # segmentation keys that source folder needs


def check_mask_values(classes: int | Mapping[str, str], ignore: list[int | str]) -> None:
    """Refuse a segmentation's classes and ignored values if they do not fit each other."""
    values = [str(value) for value in (range(classes) if isinstance(classes, int) else classes)]
    kinds = {value.startswith("#") for value in (*values, *map(str, ignore))}
    if len(kinds) > 1:
        raise InputError(
            "segmentation.classes: values and colours are mixed; use only mask values or only colours '#rrggbb'"
        )
    numbers = {value_number(value) for value in values}
    if len(numbers) < len(values):
        raise InputError("segmentation.classes: a value is given twice, written in two ways; keep one of them")
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


def did_you_mean(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def validate(config: dict[str, Any], schema: Mapping[str, Any]) -> None:
    import jsonschema  # here, so that jobs, whose settings are checked already, need not have it

    # Draft 2020-12 accepts 100.0 as an integer and NaN as a number; training can use neither.
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
    """One line per violation: the key, what it holds, what is allowed."""
    key = ".".join(str(p) for p in error.absolute_path)
    where = f"{key}: " if key else ""
    rule, allowed, got = error.validator, error.validator_value, error.instance
    if rule == "additionalProperties":
        known = sorted(error.schema.get("properties", {}))
        unknown = [k for k in got if k not in known]
        hints = [f"unknown key {k!r}{did_you_mean(k, known)}" for k in unknown]
        return f"{where}{', '.join(hints)}; allowed are {', '.join(known)}"
    said = error.schema.get("description", "")
    power = re.fullmatch(r"([+-]?\d+)(\.\d*)?[eE]([+-]?\d+)", got) if isinstance(got, str) else None
    if rule == "type" and power:  # it wants a point, and the exponent's sign
        said = f"YAML takes {got} for text; write {power[1]}{power[2] or '.0'}e{int(power[3]):+d}. {said}".strip()
    elif rule == "type" and allowed == "string" and type(got) in (int, float):
        said = f'In a study file, text that looks like a number needs quotes: "{got}". {said}'.strip()
    expected = {
        "type": lambda: f"expected {' or '.join([allowed] if isinstance(allowed, str) else allowed)}",
        "enum": lambda: f"expected one of {', '.join(map(str, allowed))}",
        "minimum": lambda: f"expected at least {allowed}",
        "maximum": lambda: f"expected at most {allowed}",
        "exclusiveMinimum": lambda: f"expected more than {allowed}",
        "exclusiveMaximum": lambda: f"expected less than {allowed}",
        "minItems": lambda: f"expected at least {allowed} {'entry' if allowed == 1 else 'entries'}",
        "oneOf": lambda: "expected one of its forms",
        "minProperties": lambda: f"expected at least {allowed} entries",
        "uniqueItems": lambda: "expected no entry twice",
        "pattern": lambda: f"expected to match {allowed}",
        "required": lambda: f"missing key: {error.message}",
    }.get(rule, lambda: error.message)()
    return f"{where}{expected}, got {SHORT.repr(got)}." + (f" {said}" if said else "")


def faults_across(config: Mapping[str, Any]) -> Iterator[str]:
    """What a schema cannot check: keys that do not fit each other, a sentence for each."""
    count = math.prod(len(config["grid"].get(axis, [""])) for axis in AXES)
    if count > MAX_CELLS:
        yield f"grid: {count:,} cells; expected at most {MAX_CELLS:,}; shorten its lists"
        return
    model = config["model"]
    if model["image_size"] % model["patch_size"]:
        yield (
            f"model.patch_size: {model['patch_size']} does not divide model.image_size, "
            f"{model['image_size']}; choose a divisor"
        )
    switches = config["switches"]
    segmentation = config["segmentation"]
    if config["pretrain"]["source"] == "segmentation" and switches["test_set"] != "fixed":
        yield (
            "pretrain.source: 'segmentation' needs switches.test_set: fixed, so that nobody pre-trains on test images"
        )
    if segmentation.get("tiles", 1) > 1 and segmentation["source"] == "synthetic":
        yield "segmentation.tiles: made images have no larger size; leave it out, or take files"
    if "group" in segmentation:
        try:
            group_pattern(segmentation["group"])
        except InputError as error:
            yield str(error)
        if switches["test_set"] == "moving":
            yield "switches.test_set: 'moving' draws test images one by one; leave segmentation.group out"
    if segmentation["test_size"] == 0 and not segmentation.get("split"):
        yield "segmentation.test_size: 0 needs segmentation.split; say how many images are held out"
    if switches["test_set"] == "moving":
        if segmentation.get("split"):
            yield "switches.test_set: 'moving' draws its own test images; leave segmentation.split out"
        on_pets = [
            n for n, t in config["intermediate"].items() if t["source"] in ("segmentation", segmentation["source"])
        ]
        for key, allowed, matters in (("subsets", "shared", True), ("pets_pool", "official", bool(on_pets))):
            if matters and switches[key] != allowed:
                yield (
                    f"switches.{key}: '{switches[key]}' needs switches.test_set: fixed; with a moving test set "
                    f"use '{allowed}'"
                )
    sections = (config["pretrain"], config["segmentation"], *config["intermediate"].values())
    synthetic = any(section["source"] == "synthetic" for section in sections)
    if synthetic and model["image_size"] < MIN_SIZE:
        yield f"model.image_size: {model['image_size']} is too small for synthetic images; use at least {MIN_SIZE}"
    stages = {"pretrain": config["pretrain"], "finetune": config["finetune"]}
    stages |= {f"intermediate.{name}": task for name, task in config["intermediate"].items()}
    for name, stage in stages.items():
        if late := [milestone for milestone in stage["milestones"] if milestone >= stage["epochs"]]:
            yield _late_milestones(name, stage, late)
    tune = config.get("tune", {})
    if tune.get("lr") and tune["validation"] * min(config["grid"]["finetune_sizes"]) < 1:
        yield (
            f"tune.validation: {tune['validation']:g} of {min(config['grid']['finetune_sizes'])} labels leaves no "
            "validation image; use a larger share"
        )
    for name in config["intermediate"]:
        first = task_chain(config["intermediate"], name)[0]
        if config["intermediate"][first].get("after"):
            yield f"intermediate.{name}.after: its tasks come after each other in a circle; let one be first"
    for name, task in config["intermediate"].items():
        if task["source"] == "segmentation" and task["target"] == "image" and segmentation["source"] == "folder":
            yield (
                f"intermediate.{name}.target: '{task['target']}' needs images with classes, which the segmentation's "
                "folder does not have; use target patch, or a source with class folders"
            )
        own = segmentation["source"] == "folder" and not segmentation.get("split")
        if task["source"] == "segmentation" and own and switches["pets_pool"] == "official":
            yield (
                f"intermediate.{name}.source: 'segmentation' under switches.pets_pool: official needs an official "
                "training part, which the segmentation's folder does not have; use pets_pool: training with "
                "switches.test_set: fixed, as protocol sound does, or give segmentation.split"
            )
        if task["target"] != "image":
            if task["source"] not in ("pets", "segmentation", "synthetic"):
                yield (
                    f"intermediate.{name}.target: '{task['target']}' needs masks, which source '{task['source']}' "
                    "does not have; use source segmentation, pets or synthetic, or target image"
                )
            if task["mixup"]:
                yield f"intermediate.{name}.mixup: only for target image; set it to 0"
            for key, usual in (("labels", "own"), ("pooling", "class_token"), ("keep_class_token", False)):
                if task[key] != usual:
                    yield f"intermediate.{name}.{key}: only for target image; leave it out"
        elif task["keep_class_token"] and task["pooling"] == "mean" and switches["class_token"] != "always":
            yield (
                f"intermediate.{name}.keep_class_token: under pooling mean no class token is trained, so there is none "
                "to keep; use pooling class_token"
            )
    masked = int(config["pretrain"]["mask_ratio"] * ModelSettings(**model).patches)
    if masked == 0:
        yield (
            f"pretrain.mask_ratio: {config['pretrain']['mask_ratio']} masks none of the "
            f"{ModelSettings(**model).patches} patches; use a larger share"
        )
    if config["pretrain"]["pack_size"] < model["image_size"]:
        yield (
            f"pretrain.pack_size: {config['pretrain']['pack_size']} is less than model.image_size, "
            f"{model['image_size']}; use 0 to have it chosen for you"
        )
    if config["pretrain"]["pack_size"] > MAX_PACK_SIZE:
        yield (
            f"pretrain.pack_size: {config['pretrain']['pack_size']:.6g} pixels a side, so that crops of "
            f"pretrain.crop_scale {config['pretrain']['crop_scale']:g} keep model.image_size, {model['image_size']}; "
            f"expected at most {MAX_PACK_SIZE}; use a larger crop_scale or a smaller size"
        )


def _late_milestones(name: str, stage: Mapping[str, Any], late: list[int]) -> str:
    """That milestones of a stage come after its end, with some at the same distances that do not."""
    epochs, milestones = stage["epochs"], stage["milestones"]
    fits = moved_milestones(milestones, math.ceil(max(milestones) / LAST_MILESTONE), epochs)
    such = f", such as {fits}" if fits else ""
    values = f"values from 1 to {epochs - 1}{such}, or " if epochs > 1 else ""
    return (
        f"{name}.milestones: {', '.join(map(str, late))} {'is' if len(late) == 1 else 'are'} not before the last epoch "
        f"({name}.epochs is {epochs}); use {values}[] for none"
    )


def check_arms(config: Mapping[str, Any]) -> None:
    """Check that the starts of a study fit its variants."""
    found = arms(config)
    for axis in ("start", "variant"):
        for name in config["grid"].get(f"{axis}s", ()):
            if not any(getattr(arm, axis) == name for arm in found):
                raise InputError(f"grid.{axis}s: '{name}' is in no arm; its own grid, or the others', leave it out")
    for name in config.get("starts", {}):
        try:
            model_of(config, name)
        except InputError as error:
            raise InputError(f"starts.{name}: {error}") from error
    pretrained = [cell.arm for cell in cells(config) if cell.pretrain_size] if config.get("starts") else []
    for arm in dict.fromkeys(pretrained):
        own = settings_of(config, arm)
        ratio, patches = own["pretrain"]["mask_ratio"], ModelSettings(**own["model"]).patches
        if int(ratio * patches) == 0:
            raise InputError(
                f"pretrain.mask_ratio: {ratio} masks none of the {patches} patches of starts.{arm.start}; use a larger "
                "model.image_size"
            )
    for name, variant in config.get("variants", {}).items():
        if variant["model"] == config["model"]:
            continue
        fixed = [start for start in config.get("starts", {}) if Arm(start, name) in found]
        if fixed:
            raise InputError(
                f"variants.{name}.model: start '{fixed[0]}' brings its own model; limit the variant to others, such as "
                f"variants.{name}.grid.starts: [random]"
            )


def check_sizes(config: Mapping[str, Any], counts: Mapping[str, int | None]) -> None:
    """Refuse grid sizes larger than the data, and tasks without images to train or to be tested on.

    Args:
        config: resolved settings.
        counts: images in the packs of unlabelled images and in 'segmentation', in the latter's 'train' and 'test' parts
            if a file gives them, and in those of each task, '<task> trained' and '<task> held_out', see
            `viny.study.inventory.Images.limits`; what is left out or None is not checked.

    Raises:
        InputError: names the key, the size, and what the data allow.
    """
    grid = config["grid"]
    counts = {name: count for name, count in counts.items() if count is not None}
    largest: dict[str, Cell] = {}  # of each pack of unlabelled images, a cell that pre-trains on most of it
    for cell in sorted(cells(config), key=lambda cell: cell.pretrain_size):
        largest[pretrain_pack(cell.shared.pack)] = cell
    for name, arm in pretrain_packs(config).items():
        if name not in counts or name not in largest or not (size := largest[name].pretrain_size):
            continue
        section = settings_of(config, arm)["pretrain"]
        held_out = section.get("held_out", 0)
        if size + held_out > counts[name]:
            more = f", with pretrain.held_out: {held_out}," if held_out else ""
            less = " besides the test images" if section["source"] == "segmentation" else ""
            variant = largest[name].variant
            fits = [n for n in grid["pretrain_sizes"] if n + held_out <= counts[name]] or [0]
            limit = f"; variants.{variant}.grid.pretrain_sizes: {fits} keeps the variant to sizes that fit"
            raise InputError(
                f"grid.pretrain_sizes: {size}{more} is larger than the data: {section['path']} ({section['source']}) "
                f"has {counts[name]} images{less}{limit if variant in config.get('variants', {}) else ''}"
            )
    for variant in grid.get("variants", [STUDY]):
        where = "" if variant == STUDY else f"variants.{variant}."
        for name, task in settings_of(config, Arm(variant=variant))["intermediate"].items():
            few = counts.get(f"{name} trained")
            if few is not None and task.get("images", 0) > few:
                raise InputError(
                    f"{where}intermediate.{name}.images: {task['images']} is more than the {few} training images in "
                    f"{task['path']} ({task['source']})"
                )
    for name, task in config["intermediate"].items():
        for part, words in (("trained", "training"), ("held_out", "held-out")):
            if counts.get(f"{name} {part}") == 0:
                raise InputError(
                    f"intermediate.{name}.source: no {words} images in {task['path']} ({task['source']}); a task needs "
                    "both training and held-out images; add some, or use another source"
                )
    test = config["segmentation"]["test_size"]
    if "train" in counts:
        segmentation = config["segmentation"]
        by = next(f"segmentation.{key} ({segmentation[key]})" for key in ("split", "group") if segmentation.get(key))
        for key, wanted, part in (
            ("grid.finetune_sizes", max(grid["finetune_sizes"]), "train"),
            ("segmentation.test_size", test if segmentation.get("split") else 0, "test"),
        ):
            if wanted > counts[part]:
                raise InputError(
                    f"{key}: {wanted} is larger than the {part} part that {by} gives, {counts[part]} images"
                )
    elif "segmentation" in counts:
        room = counts["segmentation"] - test
        if max(grid["finetune_sizes"]) > room:
            raise InputError(
                f"grid.finetune_sizes: {max(grid['finetune_sizes'])} is larger than the data: "
                f"{counts['segmentation']} labelled images less segmentation.test_size, {test}, leave {max(room, 0)}"
            )
