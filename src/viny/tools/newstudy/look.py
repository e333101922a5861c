"""A look at a user's own folders before a study is written for them."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from viny.data.conventions import LOOKED_AT, Heads, decide, said, spread
from viny.data.decoding import values_by_alpha
from viny.data.folders import check_missing, check_some, composed, few, list_below, same_files
from viny.data.masks import IGNORE, value_name
from viny.data.pack import TEST, TRAIN
from viny.data.pairs import Pairs, guess_suffix, pair
from viny.data.parts import BY_FOLDERS, Groups, own_split, split_by_file, split_by_folders
from viny.data.sources import Listing, beside, kept_split, list_folder, pooled_split
from viny.data.survey import (
    LEAST,
    PIXELS,
    Coding,
    Looked,
    Values,
    check_labels,
    find_coding,
    look_at_pairs,
    read_values,
)
from viny.data.unusable import by_reason, unusable
from viny.runtime.errors import InputError
from viny.runtime.gpus import visible_gpus
from viny.tools.newstudy.budgets import BUDGETS, Budget, held_out_of
from viny.tools.newstudy.sequences import Found, find_sequences

SHOWN = 6  # images on the contact sheet
FIT = "stretch"  # of every source: it scored higher than bars at any aspect ratio, see benchmarks/NOTES.md
PATCHES = 8  # per side, as in ViNy
ENLARGED = 0.75  # of the model's side; smaller images would be enlarged too much
RARE = 5  # masks; a class in fewer is called rare
DARK = 64  # of 255: images with no brighter sample may have been made with another range in mind
MOST = 65535  # the greatest value of a mask that may be a class
SPLIT_SEED = 42  # the default of studies
SECONDS = 5.0  # of reading masks for their values; a dialogue may have to read them twice
LOST = 0.1  # of a class's masks: the most in which packing may leave no pixel of it


@dataclass(frozen=True)
class Request:
    """What a user says about a new study; what is left out is guessed.

    Attributes:
        name: of the study.
        images, masks: folders.
        unlabelled: folder of images to pre-train on; that of `images` for these, without the test images.
        tasks: folder of class folders, by name of the intermediate task.
        spatial: whether the majority class of each patch is a task too.
        classes, ignore: what mask values mean, see `viny.data.survey.find_coding`.
        mask_suffix: see `viny.data.pairs.pair`; None: guessed.
        split: file with lines of image,part, or `folders.BY_FOLDERS`; None: the latter if there are such folders.
        group: as `segmentation.group`; empty for none; None: by the images' names, if neighbours look alike.
        budget: name of one; None: by whether there is a GPU.
        image_size, patch_size: pixels; 0: from the budget, less for small images.
        sequences, values: groups that the images' names suggest, and what masks hold, if that was looked at before.
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
    group: str | None = None
    budget: str | None = None
    image_size: int = 0
    patch_size: int = 0
    sequences: Found | None = None
    values: Values | None = None


@dataclass(frozen=True)
class Inspection:
    """What is in the folders.

    Attributes:
        wanted: the request, with the mask suffix, the budget, the split, the group, the sequences and the values filled
            in.
        pairs: images with their masks.
        train, test: images of each part; `test` is 0 if neither a file nor folders give it.
        grouped: images for the test in whole groups; 0 without groups, or if a split is given.
        groups: of the test images; 0 without groups.
        shapes: heights and widths of the images, int [N, 2].
        model: image_size, patch_size and, unless they are ViNy's, the other dimensions.
        values, coding: of the masks that were read.
        looked: pairs among them whose pixels were looked at.
        sampled: how many these are.
        on_labelled: whether pre-training is on the labelled images, without their masks.
        unlabelled: how many images there are to pre-train on; if it is on the labelled ones, those that are not for the
            test.
        bad_unlabelled: how many of these probably cannot be opened.
        unusable: how many other images cannot be used, by their headers or their masks'.
        missing: how many images and masks are links that lead to no file.
        tasks: images of each task.
        notes: what a user should know, one sentence each.
        about_groups: the same of groups that images' names suggest; empty if they suggest none, or others are wanted.
    """

    wanted: Request
    pairs: int
    train: int
    test: int
    grouped: int
    groups: int
    shapes: np.ndarray
    model: dict[str, int]
    values: Values
    coding: Coding
    looked: Looked
    sampled: int
    on_labelled: bool
    unlabelled: int
    bad_unlabelled: int
    unusable: int
    missing: int
    tasks: dict[str, Listing]
    notes: list[str]
    about_groups: str

    @property
    def budget(self) -> Budget:
        return BUDGETS[self.wanted.budget or "small"]

    @property
    def held_out(self) -> int:
        """Images to hold out for the test, if neither a file nor folders give them."""
        return 0 if self.test else self.grouped or self.test_size

    @property
    def test_size(self) -> int:
        """How many images to ask for as the test; whole groups may have more."""
        return 0 if self.test else held_out_of(self.train)


def inspect(wanted: Request) -> Inspection:
    """Look at a user's folders, and choose what depends on the images.

    Raises:
        InputError: a folder is missing or empty, names do not match, or the masks are not masks.
    """
    notes: list[str] = []
    suffix = _suffix(wanted) if wanted.mask_suffix is None else wanted.mask_suffix
    if suffix and wanted.mask_suffix is None:
        notes.append(f"masks' names end in {suffix}")
    pairs = pair(wanted.images, wanted.masks, suffix, skip_missing=True)
    notes += pairs.report()
    missing = sum(len(one.missing) for one in pairs.found)
    count = len(pairs.images)
    heads = Heads.read(pairs.images, pairs.masks)
    shapes = heads.shapes()
    if not len(shapes) or not heads.known_masks():
        all_bad = unusable(heads)
        what, folder, bad = "images", wanted.images, all_bad.images
        if len(shapes):
            what, folder, bad = "masks", wanted.masks, all_bad.masks
        raise InputError(f"{folder}: none of the {count:,} {what} can be opened: {by_reason(bad, folder)}")
    budget = wanted.budget or ("medium" if visible_gpus() else "small")
    counts = own_split(pairs.names)
    split = Path(BY_FOLDERS) if wanted.split is None and counts and "none" not in counts else wanted.split
    wanted = replace(wanted, mask_suffix=suffix, budget=budget, split=split)
    given = str(split or "")
    kept = kept_split(pairs.names, given)
    notes += [kept] * bool(kept) + pooled_split(pairs.names, given) + beside(wanted.images, given)
    model = model_for(wanted, shapes)

    opened = max(LEAST, min(LOOKED_AT, int(PIXELS / shapes.prod(1).mean())))
    values = wanted.values or _values(pairs.masks, opened, heads, wanted)
    wanted = replace(wanted, values=values)
    check_labels(values, wanted.masks)
    _check_values(values, heads, wanted)
    coding = find_coding(values, wanted.classes, wanted.ignore, wanted.masks)
    masks_read = {*values.of, *(error.path for error in values.unreadable)}
    picked = spread([at for at, mask in enumerate(pairs.masks) if mask in masks_read], opened)
    read = decide(heads, coding.indices, values.colours, LOOKED_AT, also={pairs.images[at] for at in picked})
    sample = [(pairs.images[at], pairs.masks[at], read.turns[at]) for at in picked]
    looked = look_at_pairs(sample, values, coding, model["image_size"], FIT, SHOWN, read.white)
    notes += values.said + said(read.about) + coding.said + _about_classes(looked, values, coding, model, shapes)
    if looked.brightest < DARK:
        notes.append(f"images are dark: their brightest sample is {looked.brightest} of 255; check the range")
    useless = unusable(heads, read.turns)
    if useless.said:
        notes.append(f"{useless.said}. They are skipped")
    known = useless.images | useless.masks | useless.sizes
    refused = (*values.unreadable, *looked.refused)
    if others := {error.path: error.reason for error in refused if error.path not in known}:
        notes.append(f"{len(others)} of {len(masks_read)} pairs cannot be used and are skipped: {by_reason(others)}")
    parts = [TRAIN] * count
    if wanted.split == Path(BY_FOLDERS):
        parts, _ = split_by_folders(pairs.names, wanted.images)
    elif wanted.split:
        parts = split_by_file(wanted.split, pairs.images, wanted.images, pairs.images_without_mask)
    shares = ((looked.refused, len(sample)), (values.unreadable, len(masks_read)))
    bad = max(useless.pairs, *(_in_all(len(some), of, count) for some, of in shares))

    if len(masks_read) < count:
        notes.append(
            f"{count - len(masks_read):,} masks were not read, for lack of time: a value found only there stops "
            "packing, which names it"
        )
    on_labelled = _is_folder_of(pairs, wanted)
    unlabelled, bad_unlabelled, absent = (0, 0, 0) if on_labelled else _unlabelled(wanted.unlabelled, pairs, notes)
    missing += absent
    lost = useless.pairs
    tasks = {}
    for name, folder in wanted.tasks.items():
        spec = {"path": str(folder), "holds": "classes", "held_out": 0.2, "split": "", "on_bad_image": "skip"}
        tasks[name] = list_folder(spec)
        notes += tasks[name].report()
        if both := same_files(pairs.images, tasks[name].images):
            notes.append(f"{name}: {len(both)} labelled images, some for the test, are among its images")
        missing += len(tasks[name].missing)
        shown = Heads.read(spread(tasks[name].images, LOOKED_AT))
        if (of_task := unusable(shown)).said:
            notes.append(f"{name}: {of_task.said}. They are skipped")
            lost += of_task.pairs
        notes += [f"{name}, of {len(shown.images)} looked at: {line}" for line in said(decide(shown).about)]
    train, test = parts.count(TRAIN) - bad, parts.count(TEST)
    grouped = tested_groups = 0
    if wanted.group is None:
        sequences = None if split else find_sequences(pairs.names, pairs.images)
        decided = sequences and sequences.decided and _can_part(pairs.names, sequences.pattern, held_out_of(train))
        wanted = replace(wanted, group=sequences.pattern if sequences and decided else "", sequences=sequences)
    about_groups = ""
    if (sequences := wanted.sequences) and wanted.group in ("", sequences.pattern):
        advice = "each group is kept together; --group none splits image by image"
        if not wanted.group:
            advice = f"they are split image by image; --group '{sequences.pattern}' keeps each group together"
        about_groups = f"{sequences.said}: {advice}"
    if wanted.group:
        groups = Groups.read(pairs.names, wanted.group)
        groups.check(wanted.group)
        divided = parts if split else groups.parts(held_out_of(train), SPLIT_SEED)
        tested_groups = len(groups.within(divided, TEST))
        if not split:
            grouped = divided.count(TEST)
            notes.append(
                f"of {groups.said()}, {tested_groups} groups with {grouped} images are for the test: intervals are "
                "over groups, not images"
            )
    room = train - (0 if test else grouped or held_out_of(train))
    if on_labelled:
        unlabelled = max(0, room)
    notes += _about_pretraining(pairs, on_labelled, unlabelled, room)
    return Inspection(
        wanted=wanted,
        pairs=count,
        train=train,
        test=test,
        grouped=grouped,
        groups=tested_groups,
        shapes=shapes,
        model=model,
        values=values,
        coding=coding,
        looked=looked,
        sampled=len(sample),
        on_labelled=on_labelled,
        unlabelled=unlabelled,
        bad_unlabelled=bad_unlabelled,
        unusable=lost,
        missing=missing,
        tasks=tasks,
        notes=notes,
        about_groups=about_groups,
    )


def _values(masks: Sequence[Path], first: int, heads: Heads, wanted: Request) -> Values:
    """The values in masks: in all of them, or in as many, evenly spaced, as `SECONDS` are enough for.

    Args:
        masks: files.
        first: how many are read in any case.
        heads: of the data set.
        wanted: says whether values are colours.
    """
    colours = any(isinstance(value, str) for value in (*wanted.classes, *wanted.ignore)) or None
    palettes = [] if wanted.classes else heads.palettes()
    begun = time.monotonic()
    values = read_values(spread(masks, first), colours, palettes)
    enough = int(first * SECONDS / max(1e-9, time.monotonic() - begun))
    return read_values(spread(masks, enough), colours, palettes) if min(enough, len(masks)) > first else values


def _is_folder_of(pairs: Pairs, wanted: Request) -> bool:
    """Whether the folder of images to pre-train on holds the labelled images, and nothing else that is pre-trained on:
    it is that of the images, or has the same files."""
    folder = wanted.unlabelled
    if folder is None or not os.path.isdir(folder):
        return False
    if os.path.samefile(folder, wanted.images):
        return True
    files = list_below(folder).images
    return len(files) == len(pairs.images) == len(same_files(pairs.images, files))


def _about_pretraining(pairs: Pairs, on_labelled: bool, unlabelled: int, room: int) -> list[str]:
    """What else could be pre-trained on, in a line."""
    others = len(pairs.images_without_mask)
    if on_labelled and others:
        return [
            f"pre-training is on images with masks: the {others:,} without are left out; --unlabelled with a folder of "
            "those alone takes them instead"
        ]
    if unlabelled:
        return []
    if others:
        return ["images without a mask can be pre-trained on: --unlabelled with a folder of them"]
    return [
        f"no pre-training: --unlabelled same pre-trains on the {room:,} images with masks that are not for the test, "
        "without their masks"
    ]


def _can_part(names: Sequence[str], pattern: str, test_size: int) -> bool:
    """Whether groups give a test part and leave at least half of the images to train on."""
    try:
        parts = Groups.read(names, pattern).parts(test_size, SPLIT_SEED)
    except InputError:
        return False
    return 2 * parts.count(TRAIN) >= len(parts)


def _check_values(values: Values, heads: Heads, wanted: Request) -> None:
    """Refuse values that no class can have or that lack a name, and masks whose alpha channel alone shows something.

    Raises:
        InputError: there are such values or masks.
    """
    found = values.masks()
    if not values.colours and (odd := [value for value in found if value > MOST]):
        path = next(path for path, held in values.of.items() if odd[0] in held)
        raise InputError(
            f"{path}: holds the value {odd[0]:,}, as do {found[odd[0]]} of the {len(values.of)} masks looked at; "
            f"expected 0 to {MOST:,}. Save other values as 255, which is no class: a = np.asarray(Image.open(old)); "
            f"Image.fromarray(np.where(a > {MOST}, 255, a).astype(np.uint16)).save(new)"
        )
    named = {*wanted.classes, *wanted.ignore}
    if IGNORE in wanted.classes and 1 not in named and not values.colours:
        # Only where a pixel has one bit does 1 stand for 255.
        wide = {path for path, head in heads.known_masks() if head.mode != "1"}
        if held := [path.name for path, some in values.of.items() if 1 in some and path in wide]:
            name = wanted.classes[IGNORE]
            raise InputError(
                f"{wanted.masks}: values without a name: 1 (in {len(held)} masks: {few(held)}); if it means the same "
                f"as 255, add 1={name} to --classes; else give it another name, or --ignore 1"
            )
    clear = [path for path, head in heads.known_masks() if head.alpha and path in values.of] if len(found) == 1 else []
    for path in clear:
        hidden, shown, partly = values_by_alpha(path, values.colours)
        if partly or (hidden.size and shown.size):
            (only,) = (value_name(value, values.colours) for value in found)
            raise InputError(
                f"{wanted.masks}: masks hold nothing but {only}, and what they show is in their alpha channel, as in "
                f"{path.name}; make masks of that: Image.open(old).convert('RGBA').getchannel('A').save(new)"
            )


def _unlabelled(folder: Path | None, pairs: Pairs, notes: list[str]) -> tuple[int, int, int]:
    """How many images there are to pre-train on, how many of them are probably bad, and how many more are links to no
    file; adds to the notes."""
    if folder is None:
        return 0, 0, 0
    found = list_below(folder)
    check_some(found)
    check_missing([found], skip=True)
    notes += found.report()
    files = found.images
    shown = spread(files, LOOKED_AT)
    heads = Heads.read(shown)
    unopened = unusable(heads).images
    if 2 * len(unopened) > len(shown):
        raise InputError(
            f"{folder}: {len(unopened)} of {len(shown)} images that were looked at cannot be opened: "
            f"{by_reason(unopened, folder)}"
        )
    if unopened:
        notes.append(
            f"{len(unopened)} of {len(shown)} unlabelled images cannot be opened and are skipped: "
            f"{by_reason(unopened, folder)}"
        )
    if inside := same_files(pairs.masks, files):
        raise InputError(
            f"{folder}: {len(inside)} masks are in or below it and would be unlabelled images; name a folder of "
            "images alone"
        )
    if both := same_files(pairs.images, files):
        notes.append(
            f"{len(both)} labelled images, some for the test, are among the unlabelled ones: pre-training sees them, "
            "not their masks; tables/duplicates.md will count them, and a folder of the others alone leaves them out"
        )
    notes += [f"unlabelled, of {len(shown)} looked at: {line}" for line in said(decide(heads).about)]
    return len(files), _in_all(len(unopened), len(shown), len(files)), len(found.missing)


def _suffix(wanted: Request) -> str:
    """What mask names add to their images' names; empty if they are the same or no guess is good."""
    files = list_below(wanted.images)
    if not (os.path.isdir(wanted.masks) and os.path.samefile(wanted.images, wanted.masks)):
        masks = list_below(wanted.masks).images
        known = {composed(path.stem) for path in set(files.images) - set(masks)}
        guess = guess_suffix(known, (path.stem for path in masks))
        # Names that are the same, unless more of them add something.
        same = sum(composed(path.stem) in known for path in masks)
        return guess if guess and 2 * same < len(masks) else ""
    # In one folder, a name that adds something to another name is a mask's; digits alone would make 10 from 1.
    stems = {composed(path.stem) for path in files.images}
    behind = {s: next((s[at:] for at in range(len(s) - 1, 0, -1) if s[:at] in stems), "") for s in stems}
    return guess_suffix(stems, [s for s, rest in behind.items() if rest and not rest.isdigit()])


def model_for(wanted: Request, shapes: np.ndarray) -> dict[str, int]:
    """Dimensions of the model for images of these shapes, int [N, 2]."""
    budget = BUDGETS[wanted.budget or "small"]
    size = wanted.image_size
    if not size:
        # Many more pixels than the images have would be invented.
        size, side = budget.image_size, int(np.median(shapes.min(1)))
        if side < ENLARGED * size:
            size = max(2, side // PATCHES) * PATCHES
        if wanted.patch_size:
            size = max(2, round(size / wanted.patch_size)) * wanted.patch_size
    divisors = [side for side in range(1, size // 2 + 1) if size % side == 0]
    patch = wanted.patch_size or min(divisors or [size], key=lambda side: (abs(size // side - PATCHES), side))
    return {"image_size": size, "patch_size": patch, **budget.model}


def _in_all(bad: int, looked_at: int, count: int) -> int:
    """Bad files to expect among all: twice the share seen, unless all were looked at."""
    return bad if looked_at == count else math.ceil(2 * count * bad / looked_at)


def _about_classes(
    looked: Looked, values: Values, coding: Coding, model: Mapping[str, int], shapes: np.ndarray
) -> list[str]:
    """Classes that are small or rare, one sentence each."""
    side = np.median(shapes.min(1))
    indices = coding.indices
    # In a file with one bit per pixel, a 1 without a name is 255.
    held = Counter(
        index
        for some in values.of.values()
        for index in {indices.get(value, indices.get(IGNORE, IGNORE)) for value in some}
    )
    size, patch = model["image_size"], model["patch_size"]
    notes = []
    if len(coding.names) > 20 and all(name.startswith("class_") for name in coding.names):
        notes.append(f"{len(coding.names)} classes: if values number objects instead, this study does not suit them")
    rare, small = [], []
    of_pixels = zip(coding.names, looked.area, looked.masks_with, looked.lost, strict=True)
    for index, (name, area, shown, lost) in enumerate(of_pixels):
        if held[index] < RARE:
            rare.append(f"{name} (in {held[index]} masks)")
        elif lost > LOST * (shown + lost):
            small.append(f"{name} (lost in {lost} of {shown + lost} masks)")
        elif area < patch**2 / 4:
            small.append(f"{name} (median {area:.0f} pixels)")
    if rare:
        notes.append(f"rare classes, whose IoU will say little: {few(rare)}")
    if small:
        notes.append(
            f"small at {size} x {size} pixels, in patches of {patch} x {patch} pixels: {few(small)}"
            + (f"; --image-size {2 * size} shows more, for some 4 times the time" if side >= 2 * size else "")
        )
    return notes
