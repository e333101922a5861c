"""A study file for a user's own folders: what they hold, and settings that fit it, each with a comment."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from viny.cells import cells
from viny.config import check_sizes, resolve
from viny.data.folders import Pairs, few, guess_suffix, images_below, pair, split_by_file
from viny.data.pack import TEST, TRAIN
from viny.data.sources import Listing, list_folder
from viny.data.survey import (
    LEAST,
    LOOKED_AT,
    PIXELS,
    Coding,
    Looked,
    Values,
    check_labels,
    find_coding,
    image_shapes,
    look_at_pairs,
    percent,
    read_values,
    spread,
)
from viny.errors import InputError
from viny.files import atomic_path
from viny.gpus import visible_gpus
from viny.settings import ModelSettings

SHOWN = 16  # images on the contact sheet
ASPECTS = (0.65, 1.55)  # width over height, within which pictures are stretched: 2:3 to 3:2 and what is rounded
PATCHES = 8  # a side, as ViNy has
ENLARGED = 0.75  # of the model's side, below which images would be enlarged too much
TEST_SHARE, TEST_LEAST, TEST_MOST = 0.2, 30, 1000  # held-out images
SPATIAL = "spatial"  # name of the task on the segmentation's own masks
FEW_TESTS = 100  # images
SMALL_VINY = {"dim": 96, "depth": 6, "heads": 6, "head_dim": 32, "mlp_dim": 384}
MOST_EPOCHS = 1000
RARE = 5  # masks below which a class is called so
LOST = 0.1  # of a class's masks, in which no pixel of it is left as packed
FITS = {"stretch": "stretched to squares", "pad": "in squares with bars, which masks ignore"}
MODEL = {
    "image_size": "pixels",
    "patch_size": "pixels; divides image_size",
    "dim": "width of a token",
    "depth": "blocks",
    "heads": "a block",
    "head_dim": "width of a head",
    "mlp_dim": "hidden width of a block's MLP",
}


@dataclass(frozen=True)
class Budget:
    """How large the model and its trainings are.

    Attributes:
        said: in words.
        model: its dimensions; empty for ViNy's.
        image_size: pixels.
        pretrain, task, finetune: steps, on all images, and images a step.
        lr: of pre-training.
        unlabelled, labelled: images that are used at most.
    """

    said: str
    model: Mapping[str, int]
    image_size: int
    pretrain: tuple[int, int]
    task: tuple[int, int]
    finetune: tuple[int, int]
    lr: float
    unlabelled: int
    labelled: int


# Steps: the smaller ViNy's pre-training helped after 11,000 of 32 images (README), the paper's had 35,000 of 128.
BUDGETS = {
    "small": Budget(
        "a smaller ViNy, for a laptop", SMALL_VINY, 64, (10_000, 32), (1_000, 32), (1_500, 16), 0.001, 20_000, 2_000
    ),
    "medium": Budget(
        "ViNy in short trainings, for a GPU", {}, 128, (16_000, 64), (2_000, 64), (2_500, 32), 0.001, 100_000, 8_000
    ),
    "large": Budget(
        "ViNy, for hours of a GPU", {}, 128, (50_000, 128), (5_000, 64), (6_000, 64), 0.0001, 1_000_000, 100_000
    ),
}


@dataclass(frozen=True)
class Wanted:
    """What a user says of a new study; what is left out is guessed.

    Attributes:
        name: of the study.
        images, masks: folders.
        unlabelled: folder of images to pre-train on.
        tasks: folder of class folders by name of the intermediate task.
        spatial: whether the majority class of each patch is a task too.
        classes, ignore: what mask values mean, see `viny.data.survey.find_coding`.
        mask_suffix: see `viny.data.folders.pair`; None: guessed.
        split: file with lines of image,part.
        budget: name of one; None: by what there is.
        image_size, patch_size: pixels; 0: of the budget, less for small images.
    """

    name: str
    images: Path
    masks: Path
    unlabelled: Path | None = None
    tasks: Mapping[str, Path] = field(default_factory=dict)
    spatial: bool = False
    classes: Mapping[int | str, str] = field(default_factory=dict)
    ignore: Sequence[int | str] = ()
    mask_suffix: str | None = None
    split: Path | None = None
    budget: str | None = None
    image_size: int = 0
    patch_size: int = 0


@dataclass(frozen=True)
class Found:
    """What stands in the folders.

    Attributes:
        wanted: with the mask suffix and the budget filled in.
        pairs: images with their masks.
        train, test: images of each part; `test` is 0 where no file says it.
        shapes: heights and widths of images that were looked at, int [N, 2].
        model: image_size, patch_size and, unless they are ViNy's, the other dimensions.
        fit: of the labelled images, and of each task's.
        values, coding, looked: of masks that were looked at.
        unlabelled: how many images.
        bad_unlabelled: of these, that probably cannot be opened.
        tasks: images of each task.
        notes: what a user should know, a sentence each.
    """

    wanted: Wanted
    pairs: int
    train: int
    test: int
    shapes: np.ndarray
    model: dict[str, int]
    fit: dict[str, str]
    values: Values
    coding: Coding
    looked: Looked
    unlabelled: int
    bad_unlabelled: int
    tasks: dict[str, Listing]
    notes: list[str]

    @property
    def budget(self) -> Budget:
        return BUDGETS[self.wanted.budget or "small"]

    @property
    def held_out(self) -> int:
        """Images to hold out for the test, where no file says it."""
        return 0 if self.test else held_out_of(self.train)


def look(wanted: Wanted) -> Found:
    """Look at a user's folders, and choose what depends on the images.

    Raises:
        InputError: a folder is missing or empty, names do not match, or masks are none.
    """
    notes: list[str] = []
    suffix = _suffix(wanted) if wanted.mask_suffix is None else wanted.mask_suffix
    if suffix and wanted.mask_suffix is None:
        notes.append(f"masks' names end in {suffix}")
    pairs = pair(wanted.images, wanted.masks, suffix)
    notes += pairs.report()
    count = len(pairs.images)
    shapes, _ = image_shapes(spread(pairs.images, LOOKED_AT))
    if not len(shapes):
        raise InputError(f"{wanted.images}: none of the images that were looked at can be opened; replace them")
    budget = wanted.budget or ("medium" if visible_gpus() else "small")
    wanted = replace(wanted, mask_suffix=suffix, budget=budget)
    model = _model(wanted, shapes)
    fit = {"segmentation": _fit(shapes)}

    opened = max(LEAST, min(LOOKED_AT, int(PIXELS / shapes.prod(1).mean())))
    sample = list(zip(spread(pairs.images, opened), spread(pairs.masks, opened), strict=True))
    colours = any(isinstance(value, str) for value in (*wanted.classes, *wanted.ignore)) or None
    values = read_values([mask for _, mask in sample], colours)
    check_labels(values, wanted.masks)
    coding = find_coding(values, wanted.classes, wanted.ignore, wanted.masks)
    looked = look_at_pairs(sample, values, coding, model["image_size"], fit["segmentation"], SHOWN)
    notes += coding.said + _about_classes(looked, coding, model)
    if looked.refused:
        notes.append(
            f"{len(looked.refused)} of {len(sample)} pairs cannot be used and are skipped: {looked.refused[0]}"
        )
    parts = [TRAIN] * count
    if wanted.split:
        parts = split_by_file(wanted.split, pairs.images, wanted.images, pairs.images_without_mask)
    bad = _in_all(len(looked.refused), len(sample), count)

    if len(sample) < count:
        notes.append(
            f"{count - len(sample):,} masks were not looked at: a value in them alone stops packing, which names it"
        )
    unlabelled, bad_unlabelled = _unlabelled(wanted.unlabelled, pairs, notes) if wanted.unlabelled else (0, 0)
    if not unlabelled and pairs.images_without_mask:
        notes.append("images without a mask can be pre-trained on: --unlabelled with a folder of them")
    tasks = {}
    for name, folder in wanted.tasks.items():
        tasks[name] = list_folder({"path": str(folder), "holds": "classes", "held_out": 0.2, "split": ""})
        shown, _ = image_shapes(spread(tasks[name].images, LOOKED_AT))
        fit[name] = _fit(shown) if len(shown) else "stretch"
    train, test = parts.count(TRAIN) - bad, parts.count(TEST)
    if 0 < (tested := test or held_out_of(train)) < FEW_TESTS:
        notes.append(
            f"{tested} test images: the luck of their draw hides small effects; {FEW_TESTS} or more are better"
        )
    return Found(
        wanted=wanted,
        pairs=count,
        train=train,
        test=test,
        shapes=shapes,
        model=model,
        fit=fit,
        values=values,
        coding=coding,
        looked=looked,
        unlabelled=unlabelled,
        bad_unlabelled=bad_unlabelled,
        tasks=tasks,
        notes=notes,
    )


def _unlabelled(folder: Path, pairs: Pairs, notes: list[str]) -> tuple[int, int]:
    """How many images there are to pre-train on, and how many of them are probably bad; adds to the notes."""
    files = images_below(folder)
    shown = spread(files, LOOKED_AT)
    unopened = image_shapes(shown)[1]
    if 2 * len(unopened) > len(shown):
        raise InputError(
            f"{folder}: {len(unopened)} of {len(shown)} images that were looked at cannot be opened "
            f"({few(path.name for path in unopened)}); mend or remove them"
        )
    if unopened:
        notes.append(
            f"{len(unopened)} of {len(shown)} unlabelled images cannot be opened and are skipped: "
            f"{few(path.name for path in unopened)}"
        )
    present = _inodes(files)
    if inside := _inodes(pairs.masks) & present:
        raise InputError(
            f"{folder}: {len(inside)} masks stand in it or below and would be unlabelled images; name a folder of "
            "images alone"
        )
    if both := _inodes(pairs.images) & present:
        notes.append(
            f"{len(both)} labelled images, some for the test, are among the unlabelled ones: pre-training sees them, "
            "not their masks; tables/duplicates.md will count them"
        )
    return len(files), _in_all(len(unopened), len(shown), len(files))


def _suffix(wanted: Wanted) -> str:
    """What masks' names have behind those of their images; empty where they are the same, or no guess is good."""
    files = images_below(wanted.images)
    if wanted.images.resolve() != wanted.masks.resolve():
        masks = images_below(wanted.masks)
        known = {path.stem for path in set(files) - set(masks)}
        # A mask's own name counts where it has an image of just that name.
        return "" if any(path.stem in known for path in masks) else guess_suffix(known, (path.stem for path in masks))
    # In one folder the names with something behind another's are the masks'; digits alone make 10 of 1.
    stems = {path.stem for path in files}
    behind = {s: next((s[at:] for at in range(len(s) - 1, 0, -1) if s[:at] in stems), "") for s in stems}
    return guess_suffix(stems, [s for s, rest in behind.items() if rest and not rest.isdigit()])


def _model(wanted: Wanted, shapes: np.ndarray) -> dict[str, int]:
    """Dimensions of the model for images of these shapes, int [N, 2]."""
    budget = BUDGETS[wanted.budget or "small"]
    size = wanted.image_size
    if not size:
        # Many more pixels than the images have would be made up.
        size, side = budget.image_size, int(np.median(shapes.min(1)))
        if side < ENLARGED * size:
            size = max(2, side // PATCHES) * PATCHES
        if wanted.patch_size:
            size = max(2, round(size / wanted.patch_size)) * wanted.patch_size
    divisors = [side for side in range(1, size // 2 + 1) if size % side == 0]
    patch = wanted.patch_size or min(divisors or [size], key=lambda side: (abs(size // side - PATCHES), side))
    return {"image_size": size, "patch_size": patch, **budget.model}


def _fit(shapes: np.ndarray) -> str:
    """How images of these shapes, int [N, 2], become squares."""
    low, high = np.quantile(shapes[:, 1] / shapes[:, 0], (0.05, 0.95))
    return "stretch" if ASPECTS[0] <= low and high <= ASPECTS[1] else "pad"


def _inodes(files: Sequence[Path]) -> set[tuple[int, int]]:
    """What tells files apart, whatever links lead to them."""
    found = (os.stat(path) for path in files if path.exists())
    return {(about.st_dev, about.st_ino) for about in found}


def _in_all(bad: int, looked_at: int, count: int) -> int:
    """Bad files to reckon with where so many of those looked at are bad: twice their share, unless all were."""
    return bad if looked_at == count else math.ceil(2 * count * bad / looked_at)


def _about_classes(looked: Looked, coding: Coding, model: Mapping[str, int]) -> list[str]:
    """Classes that are small or rare, a sentence each."""
    size, patch = model["image_size"], model["patch_size"]
    notes = []
    if len(coding.names) > 20 and all(name.startswith("class_") for name in coding.names):
        notes.append(f"{len(coding.names)} classes: if values number objects instead, this study is none for them")
    rare, small = [], []
    for name, area, shown, lost in zip(coding.names, looked.area, looked.masks_with, looked.lost, strict=True):
        if shown + lost < RARE:
            rare.append(f"{name} (in {shown + lost} masks)")
        elif lost > LOST * (shown + lost):
            small.append(f"{name} (lost in {lost} of {shown + lost} masks)")
        elif area < patch**2 / 4:
            small.append(f"{name} (median {area:.0f} pixels)")
    if rare:
        notes.append(f"rare classes, whose IoU will say little: {few(rare)}")
    if small:
        notes.append(
            f"small at {size} x {size} pixels, with patches of {patch**2}: {few(small)}; --image-size may help"
        )
    return notes


# Sizes and the file


def ladder(count: int, steps: int) -> list[int]:
    """Sizes up to about `count`, each twice the one before, with few digits."""
    base = count >> (steps - 1)
    unit = max(1, 5 * 10 ** (len(str(base)) - 3)) if base >= 100 else 1
    return [base // unit * unit << step for step in range(steps)]


def held_out_of(count: int) -> int:
    """Held-out images of `count` labelled ones: a fifth, 30 at least where that is no more than two fifths."""
    wanted = max(round(TEST_SHARE * count), min(TEST_LEAST, 2 * count // 5))
    return min(TEST_MOST, wanted if wanted < 100 else wanted // 10 * 10)


def sizes(found: Found) -> dict[str, list[int]]:
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
    """A path relative to the working folder where it stands below it, else absolute."""
    absolute = Path(os.path.abspath(path))
    return (absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute).as_posix()


def study_text(found: Found) -> str:
    """The study file: settings that fit what was found, checked, each with a comment.

    Raises:
        InputError: too few images, or no valid study.
    """
    body = "\n".join(_body(found)) + "\n"
    config = resolve(yaml.safe_load(body))
    check_sizes(config, {"pretrain": found.unlabelled, "segmentation": found.pairs})
    return "\n".join(_header(found, config)) + "\n" + body


def _section(name: str, about: str, rows: Sequence[tuple[Any, Any, str]], indent: str = "") -> list[str]:
    """Lines of a mapping: key, value and comment of each row."""
    return [f"{indent}{name}:{_said(about)}", *(f"{indent}  {_yaml(k)}: {_yaml(v)}{_said(c)}" for k, v, c in rows)]


def _said(comment: str) -> str:
    return f" # {comment}" if comment else ""


def _yaml(value: Any) -> str:
    """A value in one line of YAML."""
    text = yaml.safe_dump([value], default_flow_style=True, width=math.inf, allow_unicode=True, sort_keys=False)
    return text.strip()[1:-1]


def _tidy(number: int) -> int:
    """The least number of two digits and noughts that is not below."""
    unit = 10 ** max(0, len(str(number)) - 2)
    return -(-number // unit) * unit


def _training(steps: int, batch: int, images: int, least: int, *falls: float) -> list[tuple[str, Any, str]]:
    """Epochs that make about so many steps with all images, at least `least`; the rate falls at shares of them."""
    a_pass = math.ceil(images / batch)
    epochs = max(least, min(MOST_EPOCHS, _tidy(math.ceil(steps / a_pass))))
    return [
        ("epochs", epochs, f"{epochs * a_pass:,} steps with {images:,} images"),
        ("batch_size", batch, "images a step"),
        ("milestones", sorted({int(share * epochs) for share in falls} - {0, epochs}), "epochs, then the rate falls"),
    ]


def _body(found: Found) -> list[str]:
    wanted, budget, grid = found.wanted, found.budget, sizes(found)
    spatial = [SPATIAL] if wanted.spatial else []
    if {*spatial} & {*found.tasks}:
        raise InputError(f"--task {SPATIAL}: --spatial is called so too; choose another name")
    model = ModelSettings(**found.model)
    kind = "a smaller ViNy" if budget.model else "ViNy"
    rows = [
        (
            "pretrain_sizes",
            grid["pretrain_sizes"],
            f"unlabelled images{f' of {found.unlabelled:,}' * bool(found.unlabelled)}; 0 is a random start",
        ),
        ("intermediates", ["none", *found.tasks, *spatial], "tasks between pre-training and fine-tuning"),
        ("finetune_sizes", grid["finetune_sizes"], f"labelled images of {found.train - found.held_out:,} to train on"),
        ("seeds", grid["seeds"], "each repeats every cell; their spread is the uncertainty"),
    ]
    lines = [f"study: {_yaml(wanted.name)}", f"note: {_yaml(f'{wanted.name}: own images, {kind}.')}"]
    if found.looked.refused or found.bad_unlabelled:
        lines.append("on_bad_image: skip # some files cannot be used; packing lists them")
    counts = [len(values) for _, values, _ in rows]
    lines += ["", *_section("grid", f"{' x '.join(map(str, counts))} = {math.prod(counts)} cells", rows), ""]
    side = model.image_size // model.patch_size
    rows = [(key, value, MODEL[key]) for key, value in found.model.items()]
    lines += [*_section("model", f"{side} x {side} patches", rows), ""]
    if wanted.unlabelled:
        rows = [("source", "folder", ""), ("path", _path(wanted.unlabelled), f"{found.unlabelled:,} images")]
        rows += _training(*budget.pretrain, max(grid["pretrain_sizes"]), 1, 0.8)
        lines += [*_section("pretrain", "SimMIM", [*rows, ("lr", budget.lr, "learning rate")]), ""]
    if found.tasks or spatial:
        lines.append("intermediate:")
    for name, listing in found.tasks.items():
        rows = [("source", "folder", ""), ("path", _path(wanted.tasks[name]), f"{len(listing.images):,} images")]
        rows += [("fit", found.fit[name], FITS[found.fit[name]])]
        rows += _training(*budget.task, listing.parts.count(TRAIN), 2, 0.8)
        lines += _section(name, f"{len(listing.classes)} classes, of each of which a part is held out", rows, "  ")
    if spatial:
        rows = [("source", "segmentation", ""), ("target", "patch", ""), ("mixup", 0.0, "")]
        rows += [*_training(*budget.task, found.train - found.held_out, 2, 0.8), ("lr", 0.0005, "learning rate")]
        lines += _section(SPATIAL, "each patch's majority class, from the masks of all training images", rows, "  ")
    if found.tasks or spatial:
        lines.append("")
    lines += [*_segmentation(found), ""]
    lines += _section("finetune", "", _training(*budget.finetune, max(grid["finetune_sizes"]), 10, 0.7, 0.9))
    if not visible_gpus():
        lines += ["", *_section("compute", "", [("train_threads", 1, "trainings run side by side")])]
    return lines


def _segmentation(found: Found) -> list[str]:
    wanted, coding, looked, fit = found.wanted, found.coding, found.looked, found.fit["segmentation"]
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
    rows = [("fit", fit, f"{FITS[fit]}; width / height is {aspects}")]
    if coding.ignore:
        rows.append(("ignore", coding.ignore, "values without a class: nothing is learnt there and nothing counted"))
    if wanted.split:
        rows += [
            ("split", _path(wanted.split), f"its test part has {found.test:,} images"),
            ("test_size", 0, "all of it"),
        ]
    else:
        rows.append(("test_size", found.held_out, "images, held out from all training; every evaluation uses them"))
    return lines + _section("", "", rows)[1:]


def _header(found: Found, config: Mapping[str, Any]) -> list[str]:
    """What the study asks, what it cannot, and its arithmetic."""
    grid = config["grid"]
    starts, seeds, tasks = (len(grid[key]) for key in ("pretrain_sizes", "seeds", "intermediates"))
    asked, stages = [], []
    if max(grid["pretrain_sizes"]):
        asked.append(f"pre-training on {max(grid['pretrain_sizes']):,} unlabelled images")
        stages.append(("pre-training", seeds, sum(grid["pretrain_sizes"]), config["pretrain"]["epochs"]))
    for name, task in config["intermediate"].items():
        asked.append(f"the task {name}")
        images = found.tasks[name].parts.count(TRAIN) if name in found.tasks else found.train - found.held_out
        stages.append((name, starts * seeds, images, task["epochs"]))
    asked.append(f"{min(grid['finetune_sizes']):,} to {max(grid['finetune_sizes']):,} labelled images")
    stages.append(("fine-tuning", starts * seeds * tasks, sum(grid["finetune_sizes"]), config["finetune"]["epochs"]))
    total = sum(a * b * c for _, a, b, c in stages)
    sums = [f"# {name} {a} x {b:,} x {c} = {many(a * b * c)}" for name, a, b, c in stages]
    return [
        f"# What {', '.join(asked[:-1])}{' and ' if asked[1:] else ''}{asked[-1]} are worth.",
        f"# {len(cells(config))} cells; about {many(total)} image passes, as trainings x images x epochs:",
        *sums,
        "# Made by viny init; viny plan tells the hours.",
        *(f"# {line}" for line in unanswered(found)),
        "# Every key, its unit and its default: docs/config.md",
    ]


def many(count: float) -> str:
    """A count for people: 336,000 or '2.7 million'."""
    return f"{count / 1e6:.3g} million" if count >= 1e6 else f"{count:,.0f}"


def unanswered(found: Found) -> list[str]:
    """What a study of what was found cannot tell, a line each."""
    lines = []
    if not found.unlabelled:
        lines.append(
            "No unlabelled images, so nothing on what pre-training is worth; viny init --unlabelled FOLDER asks it."
        )
    if not found.tasks and not found.wanted.spatial:
        lines.append("No intermediate task, so nothing on whether one helps; --task NAME=FOLDER or --spatial asks it.")
    return lines


def write(found: Found, study: Path, sheet: Path) -> None:
    """Write the study file and its contact sheet.

    Raises:
        InputError: as `study_text`.
    """
    from viny.contact_sheet import (
        contact_sheet,
        write_contact_sheet,
    )  # costs seconds, which no question should wait for

    text = study_text(found)
    looked, size = found.looked, found.model["image_size"]
    title = f"{found.wanted.name}: {len(looked.images)} of {found.pairs:,} images as training sees them, {size} px"
    figure = contact_sheet(looked.images, looked.masks, looked.names, found.coding.names, looked.shares, title)
    write_contact_sheet(sheet, figure)
    with atomic_path(study) as tmp:
        tmp.write_text(text, encoding="utf-8")
