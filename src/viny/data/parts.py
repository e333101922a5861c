"""Which of a user's images are for training and which for testing: by a file, by their folders, or by chance."""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from viny.data.folders import composed, few, name_below, stem_below
from viny.runtime.errors import InputError

PARTS = {"train": 0, "test": 1}  # as in parts.npy; 'none' leaves an image out
BY_FOLDERS = "folders"  # as a split: the names of the images' own folders say it
PART_FOLDERS = re.compile(
    r"(?:(?P<train>train(?:ing|val)?)|(?P<val>val(?:id(?:ation)?)?|dev)|(?P<test>test(?:ing)?))"
    r"(?:[-_. ]?(?:set|data|split|images?|imgs?|masks?|labels?|\d+))?",
    re.IGNORECASE,
)


def part_of(name: str) -> str | None:
    """The part, train, val or test, that a folder's name such as 'Training', 'valid' or 'test2017' means, if any."""
    match = PART_FOLDERS.fullmatch(name)
    return match.lastgroup if match else None


def parts_of(names: Iterable[str]) -> list[str | None]:
    """The part that the folders in each image's path mean: train, val or test; None if none is named so.

    Args:
        names: paths below the images' folder, with '/'.
    """
    known: dict[str, str | None] = {}
    for above in {name.rpartition("/")[0] for name in names}:
        known[above] = next((part for folder in above.split("/") if (part := part_of(folder))), None)
    return [known[name.rpartition("/")[0]] for name in names]


def own_split(names: Sequence[str]) -> dict[str, int]:
    """How many images are in folders for training, validation and testing, if that is a split; otherwise empty.

    'none' counts images in no such folder.
    """
    found = Counter(part or "none" for part in parts_of(names))
    whole = found["train"] and (found["val"] or found["test"])
    return {part: found[part] for part in ("train", "val", "test", "none") if found[part]} if whole else {}


def split_in_names(names: Iterable[str]) -> dict[str, int]:
    """How many images have names that begin with train, val or test, as train_01.jpg, if that is a split of all."""
    found: Counter[str] = Counter()
    for start, count in Counter(re.split("[-_. ]", name.rpartition("/")[2], maxsplit=1)[0] for name in names).items():
        found[part_of(start) or "none"] += count
    whole = found["train"] and (found["val"] or found["test"]) and not found["none"]
    return {part: found[part] for part in ("train", "val", "test") if found[part]} if whole else {}


def split_by_folders(names: Sequence[str], folder: Path) -> tuple[list[int | None], dict[str, int]]:
    """Each image's part by its folder's name, as the data's author split them.

    Validation images are the test part if there are no test images. Otherwise they are left out, as the author neither
    trained nor tested on them.

    Args:
        names: the images' paths below their folder.
        folder: for messages.

    Returns:
        TRAIN or TEST for each image, None for one that is left out; and `own_split`.

    Raises:
        InputError: there are no such folders, or an image is in none of them.
    """
    counts = own_split(names)
    if not counts:
        raise InputError(
            f"{folder}: split: {BY_FOLDERS} needs images in subfolders train and val or test; found none in one of "
            "them; give a file with lines image,part"
        )
    parts = parts_of(names)
    if "none" in counts:
        outside = [name for name, part in zip(names, parts, strict=True) if part is None]
        raise InputError(
            f"{folder}: split: {BY_FOLDERS}, but {len(outside)} of {len(names)} images are in no folder called train, "
            f"val or test: {few(outside)}; move them, or give a file with lines image,part"
        )
    code = {"train": PARTS["train"], "test" if "test" in counts else "val": PARTS["test"]}
    return [code.get(part or "") for part in parts], counts


def read_split_file(path: Path) -> dict[str, str]:
    """Which part each image is in, from lines of 'image,part', where part is train, test or none.

    Raises:
        InputError: unreadable, a malformed line, or an image listed twice.
    """
    out: dict[str, str] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as f:
            rows = list(csv.reader(f))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a split file ({error}); expected lines of image,part") from error
    for number, row in enumerate(rows, 1):
        cells = [cell.strip() for cell in row]
        if not any(cells) or (number == 1 and cells[1:] == ["part"]):
            continue
        if len(cells) != 2 or cells[1] not in (*PARTS, "none"):
            raise InputError(f"{path}, line {number}: expected image,part with part train, test or none, got {row}")
        if cells[0] in out:
            raise InputError(f"{path}, line {number}: '{cells[0]}' is listed twice; keep one line")
        out[cells[0]] = cells[1]
    return out


def split_by_file(path: Path, images: Sequence[Path], folder: Path, others: Iterable[Path] = ()) -> list[int | None]:
    """Each image's part by a split file, which names images by path below their folder or by name, extension optional.

    Args:
        path: the split file.
        images: all images to split.
        folder: the folder that their paths are below.
        others: images that the file may name too.

    Returns:
        TRAIN or TEST for each image; None for one that is left out.

    Raises:
        InputError: an image is not named, or a name matches no image.
    """
    said = read_split_file(path)
    uses: dict[str, list[Path]] = defaultdict(list)
    for image in (*images, *others):
        names = map(composed, (name_below(image, folder), stem_below(image, folder), image.name, image.stem))
        for name in dict.fromkeys(names):
            uses[name].append(image)
    part: dict[Path, str] = {}
    unknown = [name for name in said if composed(name) not in uses]
    if unknown:
        raise InputError(f"{path}: {len(unknown)} names match no image below {folder}: {few(unknown)}; correct them")
    for name, value in said.items():
        meant = uses[composed(name)]
        if len(meant) > 1:
            raise InputError(f"{path}: '{name}' may be {few(meant)}; give the path below {folder}")
        if part.setdefault(meant[0], value) != value:
            raise InputError(f"{path}: names {meant[0]} twice, with two parts; keep one line")
    lacking = [name_below(image, folder) for image in images if image not in part]
    if lacking:
        raise InputError(
            f"{path}: does not name {len(lacking)} of {len(images)} images: {few(lacking)}; add them, with part none "
            "to leave them out"
        )
    return [PARTS.get(part[image]) for image in images]


def rank(name: str, *keys: int | str) -> bytes:
    """A key that orders names at random, the same on every machine and whatever other names there are."""
    return hashlib.blake2b(":".join(map(str, (*keys, composed(name)))).encode(), digest_size=16).digest()


def hold_out(names: Sequence[str], labels: Sequence[int], share: float) -> list[int]:
    """Part of each image, TRAIN or TEST: the given share of every class is held out, by the hash of the names.

    Raises:
        InputError: a class has only one image.
    """
    parts = [PARTS["train"]] * len(names)
    by_class: dict[int, list[int]] = defaultdict(list)
    for at, label in enumerate(labels):
        by_class[label].append(at)
    for rows in by_class.values():
        if len(rows) < 2:
            raise InputError(f"{names[rows[0]]}: is the only image of its class; add images or remove the class")
        count = min(len(rows) - 1, max(1, round(share * len(rows))))
        for at in sorted(rows, key=lambda i: rank(names[i], "held out"))[:count]:
            parts[at] = PARTS["test"]
    return parts
