"""The study file that fits what was found, each setting with a comment."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from viny.data.pack import TRAIN
from viny.data.parts import BY_FOLDERS
from viny.data.survey import (
    percent,
)
from viny.learning.settings import ModelSettings
from viny.runtime.errors import InputError
from viny.runtime.files import write_text
from viny.runtime.gpus import visible_gpus
from viny.study.checks import check_sizes
from viny.study.config import resolve
from viny.study.grid import cells
from viny.study.inventory import Images
from viny.study.unanswered import unanswered
from viny.tools.newstudy.budgets import ladder, training_lines
from viny.tools.newstudy.look import FIT, Inspection
from viny.tools.terminal import unanswered_lines

SPATIAL = "spatial"  # name of the task on the segmentation's own masks
MODEL = {
    "image_size": "pixels",
    "patch_size": "pixels; divides image_size",
    "dim": "width of a token",
    "depth": "blocks",
    "heads": "a block",
    "head_dim": "width of a head",
    "mlp_dim": "hidden width of a block's MLP",
}


def sizes(found: Inspection) -> dict[str, list[int]]:
    """The grid of a study that fits what was found.

    Raises:
        InputError: too few labelled images.
    """
    room = found.train - found.held_out
    if room < 4 or found.test + found.held_out < 2:
        raise InputError(
            f"{found.wanted.images}: {found.pairs} images with masks, of which {max(room, 0)} are left to train on; "
            "expected ten or more"
        )
    room = min(room, found.budget.labelled)
    labels = ladder(room, 4 if room >= 64 else 3 if room >= 16 else 2)
    usable = min(found.unlabelled - found.bad_unlabelled, found.budget.unlabelled)
    pretrain = [0, *(ladder(usable, 2) if usable >= 400 else [usable] if usable > 0 else [])]
    # Without pre-training a study is short, and more seeds say more.
    seeds = list(range(5 if len(pretrain) == 1 and room < 500 else 3))
    return {"pretrain_sizes": pretrain, "finetune_sizes": labels, "seeds": seeds}


def _path(path: Path) -> str:
    """A path, relative to the working folder if it is below it, otherwise absolute."""
    absolute = Path(os.path.abspath(path))
    return (absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute).as_posix()


def study_text(found: Inspection) -> str:
    """The study file: settings that fit what was found, checked, each with a comment.

    Raises:
        InputError: too few images, or the study is not valid.
    """
    body = "\n".join(_body(found)) + "\n"
    config = resolve(yaml.safe_load(body))
    check_sizes(config, {"pretrain": found.unlabelled, "segmentation": found.pairs})
    made = ["# Made by viny init; viny plan tells the hours.", "# Every key, its unit and its default: docs/config.md"]
    return "\n".join([*about(config, images_of(found)), *made, body])


def _section(name: str, about: str, rows: Sequence[tuple[Any, Any, str]], indent: str = "") -> list[str]:
    """Lines of a mapping: key, value and comment of each row."""
    return [f"{indent}{name}:{_said(about)}", *(f"{indent}  {_yaml(k)}: {_yaml(v)}{_said(c)}" for k, v, c in rows)]


def _said(comment: str) -> str:
    return f" # {comment}" if comment else ""


def _yaml(value: Any) -> str:
    """A value as one line of YAML."""
    text = yaml.safe_dump([value], default_flow_style=True, width=math.inf, allow_unicode=True, sort_keys=False)
    return text.strip()[1:-1]


def _body(found: Inspection) -> list[str]:
    wanted, budget, grid = found.wanted, found.budget, sizes(found)
    spatial = [SPATIAL] if wanted.spatial else []
    if {*spatial} & {*found.tasks}:
        raise InputError(f"--task {SPATIAL}: --spatial's task has that name too; choose another")
    model = ModelSettings(**found.model)
    of = f" of {found.unlabelled:,}" * bool(found.unlabelled)
    what = f"images{of} with masks" if found.on_labelled else f"unlabelled images{of}"
    rows = [
        ("pretrain_sizes", grid["pretrain_sizes"], f"{what}; 0 is a random start"),
        ("intermediates", ["none", *found.tasks, *spatial], "tasks between pre-training and fine-tuning"),
        ("finetune_sizes", grid["finetune_sizes"], f"labelled images of {found.train - found.held_out:,} to train on"),
        ("seeds", grid["seeds"], "each repeats every cell; their spread is the uncertainty"),
    ]
    lines = [f"study: {_yaml(wanted.name)} # {budget.said}"]
    if found.looked.refused or found.bad_unlabelled or found.unusable or found.missing:
        lines.append("on_bad_image: skip # some files cannot be used; packing lists them")
    counts = [len(values) for _, values, _ in rows]
    lines += ["", *_section("grid", cells_in_words(counts), rows), ""]
    side = model.image_size // model.patch_size
    rows = [(key, value, MODEL[key]) for key, value in found.model.items()]
    lines += [*_section("model", f"{side} x {side} patches of {model.patch_size} pixels", rows), ""]
    if wanted.unlabelled:
        rows = [("source", "folder", ""), ("path", _path(wanted.unlabelled), f"{found.unlabelled:,} images")]
        if found.on_labelled:
            rows = [("source", "segmentation", "the images with masks: without these, and without the test images")]
        rows += training_lines(*budget.pretrain, max(grid["pretrain_sizes"]), 1, 0.8)
        lines += [*_section("pretrain", "SimMIM", [*rows, ("lr", budget.lr, "learning rate")]), ""]
    if found.tasks or spatial:
        lines.append("intermediate:")
    for name, listing in found.tasks.items():
        rows = [("source", "folder", ""), ("path", _path(wanted.tasks[name]), f"{len(listing.images):,} images")]
        rows += training_lines(*budget.task, listing.parts.count(TRAIN), 2, 0.8)
        lines += _section(name, f"{len(listing.classes)} classes, of each of which a part is held out", rows, "  ")
    if spatial:
        rows = [("source", "segmentation", ""), ("target", "patch", ""), ("mixup", 0.0, "")]
        rows += [*training_lines(*budget.task, found.train - found.held_out, 2, 0.8), ("lr", 0.0005, "learning rate")]
        lines += _section(SPATIAL, "each patch's majority class, from the masks of all training images", rows, "  ")
    if found.tasks or spatial:
        lines.append("")
    lines += [*_segmentation(found), ""]
    lines += _section("finetune", "", training_lines(*budget.finetune, max(grid["finetune_sizes"]), 10, 0.7, 0.9))
    if not visible_gpus():
        lines += ["", *_section("compute", "", [("train_threads", 1, "trainings run side by side")])]
    return lines


def _segmentation(found: Inspection) -> list[str]:
    wanted, coding, looked = found.wanted, found.coding, found.looked
    ends = np.quantile(found.shapes[:, 1] / found.shapes[:, 0], (0.05, 0.95))
    aspects = " to ".join(dict.fromkeys(f"{aspect:.2g}" for aspect in ends))
    rows = [("source", "folder", ""), ("images", _path(wanted.images), f"{found.pairs:,} of them with masks")]
    rows += [("masks", _path(wanted.masks), "")]
    if wanted.mask_suffix:
        rows.append(("mask_suffix", wanted.mask_suffix, "between an image's name and its mask's ending"))
    lines = _section("segmentation", "", rows)
    shares = {name: share for name, share in zip(coding.names, looked.shares, strict=False)}
    rows = [(value, name, f"{percent(shares[name])} of the pixels looked at") for value, name in coding.classes.items()]
    lines += _section("classes", "mask value: name; values of one name are one class", rows, "  ")
    rows = [("fit", FIT, f"whole, to squares; width / height is {aspects}")]
    if coding.ignore:
        rows.append(("ignore", coding.ignore, "values without a class: nothing is learnt there and nothing counted"))
    if wanted.group:
        rows.append(("group", wanted.group, "images with the same are all for training or all for testing"))
    if wanted.split:
        by_folders = wanted.split == Path(BY_FOLDERS)
        split = BY_FOLDERS if by_folders else _path(wanted.split)
        whose = "by the folders train, val and test, as the author did; the" if by_folders else "its"
        rows += [
            ("split", split, f"{whose} test part has {found.test:,} images"),
            ("test_size", 0, "all of it"),
        ]
    else:
        whole = f", in whole groups: {found.held_out}" if wanted.group else ""
        rows.append(
            ("test_size", found.test_size, f"images, held out from all training{whole}; every evaluation uses them")
        )
    return lines + _section("", "", rows)[1:]


def cells_in_words(counts: Sequence[int]) -> str:
    """The arithmetic of a grid whose axes have so many values."""
    return f"{' x '.join(map(str, counts))} = {math.prod(counts)} cells"


def about(config: Mapping[str, Any], images: Images) -> list[str]:
    """Comments on what a study asks, its arithmetic, and what it cannot answer."""
    grid = config["grid"]
    starts, seeds, tasks = (len(grid[key]) for key in ("pretrain_sizes", "seeds", "intermediates"))
    asked, stages = [], []
    if max(grid["pretrain_sizes"]):
        kind = "of the labelled" if config["pretrain"]["source"] == "segmentation" else "unlabelled"
        asked.append(f"pre-training on {max(grid['pretrain_sizes']):,} {kind} images")
        stages.append(("pre-training", seeds, sum(grid["pretrain_sizes"]), config["pretrain"]["epochs"]))
    for name, task in config["intermediate"].items():
        asked.append(f"the task {name}")
        stages.append((name, starts * seeds, images.trained[name] or 0, task["epochs"]))
    asked.append(f"{min(grid['finetune_sizes']):,} to {max(grid['finetune_sizes']):,} labelled images")
    stages.append(("fine-tuning", starts * seeds * tasks, sum(grid["finetune_sizes"]), config["finetune"]["epochs"]))
    total = sum(a * b * c for _, a, b, c in stages)
    sums = [f"# {name} {a} x {b:,} x {c} = {many(a * b * c)}" for name, a, b, c in stages]
    return [
        f"# What {', '.join(asked[:-1])}{' and ' if asked[1:] else ''}{asked[-1]} are worth.",
        f"# {len(cells(config))} cells; about {many(total)} image passes, as trainings x images x epochs:",
        *sums,
        *(f"# {line}" for line in unanswered_lines(unanswered(config, images))),
    ]


def many(count: float) -> str:
    """A count for people: 336,000 or '2.7 million'."""
    return f"{count / 1e6:.3g} million" if count >= 1e6 else f"{count:,.0f}"


def steps_in_words(section: Mapping[str, Any], images: int) -> str:
    """How long a training is."""
    return f"{section['epochs'] * math.ceil(images / section['batch_size']):,} steps with {images:,} images"


def images_of(found: Inspection) -> Images:
    """What `count_images` says of a study of what was found, without another look."""
    tested, room = found.test + found.held_out, found.train - found.held_out
    trained = {name: listing.parts.count(TRAIN) for name, listing in found.tasks.items()}
    packed = {name: len(listing.images) for name, listing in found.tasks.items()}
    if found.wanted.spatial:
        trained[SPATIAL], packed[SPATIAL] = room, found.pairs
    held_out = {name: packed[name] - trained[name] for name in trained}
    unlabelled = {"pretrain": found.unlabelled - found.bad_unlabelled or None}
    given = (found.train, found.test) if found.test else None
    packed |= {"pretrain": found.pairs} if found.on_labelled else unlabelled
    packed["segmentation"] = found.pairs
    return Images(packed, unlabelled, trained, held_out, room, tested, given, groups=found.groups)


def write(found: Inspection, study: Path, sheet: Path, text: str) -> None:
    """Write the study file and its contact sheet."""
    from viny.tools.newstudy.contact_sheet import (  # takes seconds, which no question should wait for
        contact_sheet,
        write_contact_sheet,
    )

    title = f"{found.wanted.name}: {len(found.looked.images)} of {found.pairs:,} images, each bare and under its mask"
    figure = contact_sheet(found.looked, found.coding.names, title)
    write_contact_sheet(sheet, figure)
    write_text(study, text)
