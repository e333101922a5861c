"""What sets a study apart from the paper's, table by table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from viny.learning.settings import TRAIN_KEYS
from viny.study.config import resolve
from viny.study.grid import RANDOM, arms

# Version 2 of the paper trains its three tasks for 20 epochs without MixUp; those on Pets are built in so.
VERSION_2 = {"mixup": 0.0, "epochs": 20, "milestones": []}
REGIMES: dict[str, Any] = {
    "1": {"intermediates": ["none", "intel"], "intel": {}},
    "2": {"intermediates": ["none", "intel", "pets_classes", "pets_spatial"], "intel": VERSION_2},
}
REGIMES |= {"A2": REGIMES["1"], "A3": REGIMES["1"]}
TABLES = ("1", "A2", "A3", "2")

OF_IMAGES = ("source", "fit", "all_background")
OF_PRETRAINING = ("source", "mask_ratio", "crop_scale", *TRAIN_KEYS)
OF_TASK = ("source", "target", "labels", "pooling", "keep_class_token", "mixup", "contrast", *TRAIN_KEYS)
OF_TASK += ("after", "images")
# What absent keys stand for.
USUAL = {"architecture": "viny", "encoder": "trained", "budget": "epochs", "after": "none", "images": "all"}
# Table 2 is of encoders before their fine-tuning, so what only the fine-tuning or its evaluation uses does not matter.
ENCODER_SWITCHES = ("resize", "class_token", "subsets", "test_set", "pets_pool")
SIZES = {"pretrain_sizes": "pre-training images", "finetune_sizes": "labels"}


@cache
def _paper(table: str) -> dict[str, Any]:
    regime = REGIMES[table]
    grid = {"intermediates": regime["intermediates"]}
    return resolve({"study": "paper", "protocol": "paper", "grid": grid, "intermediate": {"intel": regime["intel"]}})


def differences_from_paper(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """What sets a study apart from the paper's, one phrase per key that differs.

    What a study lacks, such as a task or a size, is no difference: the rows about it are missing.

    Args:
        config: resolved settings, as the study's first arm has them.

    Returns:
        By table of the paper ('1', 'A2', 'A3', and '2' of version 2) what differs from the regime of that table; and
        'sizes', what of the grid lies outside the paper's. A table's numbers can be compared if its list is empty, a
        claim if those of its tables and 'sizes' are.
    """
    found = {table: list(_of_table(config, table)) for table in TABLES}
    return found | {"sizes": list(_of_sizes(config))}


def _of_table(config: Mapping[str, Any], table: str) -> Iterator[str]:
    paper = _paper(table)
    if (start := arms(config)[0].start) != RANDOM:
        yield f"grid.starts begins with {start}, the paper's only start is random"
    yield from _of_section(config, paper, "model", sorted(config["model"]))
    switches = ENCODER_SWITCHES if table == "2" else sorted(config["switches"])
    yield from _of_section(config, paper, "switches", switches)
    yield from _of_section(config, paper, "segmentation", OF_IMAGES)
    if table != "2":
        yield from _of_section(config, paper, "segmentation", ["test_size"])
        if config["split_seed"] != paper["split_seed"]:
            yield f"split_seed is {config['split_seed']}, the paper's {paper['split_seed']}"
        yield from _of_section(config, paper, "finetune", ["contrast", *TRAIN_KEYS, "encoder"])
        if rates := config.get("tune", {}).get("lr"):
            yield f"tune.lr is {rates}, the paper's rate is one for all"
    if table != "1" and max(config["grid"]["pretrain_sizes"]) > 0:
        yield from _of_section(config, paper, "pretrain", [*OF_PRETRAINING, "budget"])
    if table in ("A3", "2") and config["intermediate"]:
        wanted = {"A3": ["intel"], "2": list(paper["intermediate"])}[table]
        own = [task for task in wanted if task in config["intermediate"]]
        for task in own:
            theirs, mine = paper["intermediate"][task], config["intermediate"][task]
            yield from _of_keys(mine, theirs, f"intermediate.{task}", OF_TASK)
        if not own:
            others = ", ".join(config["intermediate"])
            yield f"grid.intermediates holds {others}, the paper's {', '.join(wanted)}"


def _of_section(config: Any, paper: Any, name: str, keys: Any) -> Iterator[str]:
    return _of_keys(config[name], paper[name], name, keys)


def _of_keys(mine: Mapping[str, Any], theirs: Mapping[str, Any], where: str, keys: Any) -> Iterator[str]:
    for key in keys:
        unused = key == "gamma" and not mine.get("milestones") and not theirs.get("milestones")
        own, other = (settings.get(key, USUAL.get(key)) for settings in (mine, theirs))
        if own != other and not unused:
            yield f"{where}.{key} is {own}, the paper's {other}"


def _of_sizes(config: Mapping[str, Any]) -> Iterator[str]:
    for key, of in SIZES.items():
        theirs = sorted(size for size in _paper("1")["grid"][key] if size)
        outside = [size for size in config["grid"][key] if size and not theirs[0] <= size <= theirs[-1]]
        if outside:
            sizes = ", ".join(f"{size:,}" for size in outside)
            yield f"grid.{key} holds {sizes}; the paper has {theirs[0]:,} to {theirs[-1]:,} {of}"
