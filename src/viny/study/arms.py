"""Arms: the settings of each start and variant of a study, and which trainings they share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from viny.learning.settings import moved_milestones, timm_model
from viny.runtime.files import canonical_json
from viny.study.grid import RANDOM, STUDY, Arm, arms, pretrain_pack

# Variants that a grid may name without describing them.
BUILT_IN_VARIANTS: dict[str, dict[str, Any]] = {
    "frozen": {"finetune": {"encoder": "frozen"}},
    "equal_steps": {"pretrain": {"budget": "steps"}},
}
SECTIONS = ("model", "switches", "pretrain", "intermediate", "finetune", "tune")  # that a variant may change
# What all arms share: the images, how they are packed and split, and how models are tested.
SHARED = {
    "model": ("image_size",),
    "switches": ("test_set", "augment_test", "resize", "miou", "pets_pool", "subsets"),
    "pretrain": ("held_out",),
    "task": ("source", "path", "split", "held_out", "fit"),
}


def settings_of(config: Mapping[str, Any], arm: Arm) -> dict[str, Any]:
    """A study's resolved settings as an arm has them: those of its variant, with the model of its start."""
    own = config["variants"][arm.variant] if arm.variant != STUDY else {}
    found = {**config, **{section: own[section] for section in SECTIONS if section in own}}
    found["model"] = model_of(found, arm.start)
    return found


def base_alone(config: Mapping[str, Any]) -> dict[str, Any]:
    """A study's resolved settings with its first arm alone, which keeps its name."""
    first = arms(config)[0]
    return {**config, "grid": {**config["grid"], "starts": [first.start], "variants": [first.variant]}}


def model_of(config: Mapping[str, Any], start: str) -> dict[str, Any]:
    """The model of a start: the study's own, or the one that its published weights are for."""
    name = config.get("starts", {}).get(start, {}).get("timm")
    return timm_model(name, config["model"]["image_size"]) if name else config["model"]


def pretrain_packs(config: Mapping[str, Any]) -> dict[str, Arm]:
    """The packs of unlabelled images, each with an arm that pre-trains on it; the study's own is called 'pretrain'."""
    owners = config["grid"].get("lineages", {}).get("owners", {})
    some = [Arm(), *(Arm(variant=owner["pack"]) for owner in owners.values())]
    return {pretrain_pack(arm.variant): arm for arm in some}


def is_published(start: Mapping[str, Any]) -> bool:
    """Whether a described start has weights, so that no seed draws them."""
    return start.get("weights") != RANDOM


def schedule(config: Mapping[str, Any], size: int) -> tuple[int, list[int]]:
    """Epochs and milestones of a pre-training on `size` images.

    Under budget 'steps', every size takes about as many steps as the grid's largest takes in `pretrain.epochs`, to the
    nearest whole epoch, and the milestones keep their shares of the way.
    """
    section = config["pretrain"]
    epochs, milestones = section["epochs"], section["milestones"]
    if section.get("budget", "epochs") == "epochs":
        return epochs, milestones
    steps = {n: math.ceil(n / section["batch_size"]) for n in (size, max(config["grid"]["pretrain_sizes"]))}
    scaled = max(1, round(epochs * steps[max(steps)] / steps[size]))
    return scaled, moved_milestones(milestones, epochs, scaled)


def lineages(config: Mapping[str, Any]) -> dict[str, Any]:
    """What `grid.cells` needs to know of a study's arms besides the axes; empty if there is nothing.

    Args:
        config: resolved settings.

    Returns:
        'published': starts that have weights. 'limits': axes that a start or a variant shortens. 'owners': by variant,
        whose name the untrained encoder ('start') and the pack of unlabelled images ('pack') bear, by size the
        pre-trained encoder ('pretrain'), by task and size that task's ('tasks') and a cell ('cells'); of each task,
        those that come before it and itself ('chains'), and its number of images where it is given ('images').
    """
    starts, tasks = config.get("starts", {}), config["intermediate"]
    if not starts and not config.get("variants") and not any({"after", "images"} & {*task} for task in tasks.values()):
        return {}
    grid = config["grid"]
    variants = grid.get("variants", [STUDY])
    before: dict[str, str] = {}  # the first variant with these settings

    def owner(variant: str, *settings: Any) -> str:
        return before.setdefault(canonical_json(settings), variant)

    owners = {}
    for variant in dict.fromkeys([STUDY, *variants]):
        here = settings_of(config, Arm(variant=variant))
        start = [here["model"], here["switches"]["class_token"]]
        section = {key: v for key, v in here["pretrain"].items() if key not in ("budget", "epochs", "milestones")}
        pretrained = {
            size: [*start, *([size, section, *schedule(here, size)] if size else [])] for size in grid["pretrain_sizes"]
        }
        tuned = [here[section] for section in ("switches", "finetune")] + [here.get("tune", {})]
        if here.get("tune", {}).get("lr"):  # by the scores of all seeds, so that with others the rate may be another
            limit = config["variants"][variant].get("grid", {}) if variant != STUDY else {}
            tuned.append([seed for seed in grid["seeds"] if seed in limit.get("seeds", grid["seeds"])])
        chains = {task: task_chain(here["intermediate"], task) for task in tasks}
        chain = {task: [[one, here["intermediate"][one]] for one in names] for task, names in chains.items()}
        owners[variant] = {
            "start": owner(variant, start),
            "pack": owner(variant, [here["pretrain"][key] for key in ("source", "path", "pack_size")]),
            "chains": chains,
            "images": {task: one["images"] for task, one in here["intermediate"].items() if "images" in one},
            "pretrain": {str(size): owner(variant, settings) for size, settings in pretrained.items()},
            "tasks": {
                task: {str(size): owner(variant, settings, chain[task]) for size, settings in pretrained.items()}
                for task in tasks
            },
            "cells": {
                task: {
                    str(size): owner(variant, settings, chain.get(task, []), tuned)
                    for size, settings in pretrained.items()
                }
                for task in ("none", *tasks)
            },
        }
    limits = {
        axis: {name: given["grid"] for name, given in config.get(axis, {}).items() if given.get("grid")}
        for axis in ("starts", "variants")
    }
    published = [name for name, start in starts.items() if is_published(start)]
    return {"published": published, "limits": limits, "owners": owners}


def task_chain(tasks: Mapping[str, Mapping[str, Any]], name: str) -> list[str]:
    """A task and those before it, the first one first."""
    chain = [name]
    while (before := tasks[chain[0]].get("after")) is not None and before not in chain and before in tasks:
        chain.insert(0, before)
    return chain
