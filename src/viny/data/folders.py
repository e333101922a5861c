"""A user's own folders: which images and masks they hold, which belong together, and how they are split.

Only names are read here, no pixels.
"""

from __future__ import annotations

import csv
import hashlib
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from viny.runtime.errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
PARTS = {"train": 0, "test": 1}  # as in parts.npy; 'none' leaves an image out
SHOWN = 5  # names that a message lists


def check_name(name: str, where: Path) -> None:
    """Refuse a name that would break a list of names, a log, or a terminal."""
    if name.isprintable():
        return
    # Cc are control characters, Cs bytes that are not UTF-8, Zl and Zp separate lines.
    if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name):
        raise InputError(f"{where}: the name {name!a} has control characters or is not UTF-8; rename it")


def few(names: Iterable[object]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(str, names[:SHOWN])) + more


def images_below(folder: Path) -> list[Path]:
    """Every image file in a folder and its subfolders, in the order of their paths; hidden ones are left out.

    Raises:
        InputError: no such folder, no images in it, or a name that cannot be written down.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected a folder of images ({', '.join(IMAGE_SUFFIXES)})")
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()  # a link may lead back up
    todo = [folder]
    while todo:
        here = todo.pop()
        about = here.stat()
        if (about.st_dev, about.st_ino) in seen:
            continue
        seen.add((about.st_dev, about.st_ino))
        for entry in os.scandir(here):
            if entry.name.startswith("."):  # also '._<name>', which macOS leaves beside files
                continue
            if entry.is_dir():
                check_name(entry.name, here)
                todo.append(Path(entry.path))
            elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                check_name(entry.name, here)
                found.append(Path(entry.path))
    if not found:
        raise InputError(f"{folder}: no images in it or below; expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    return sorted(found, key=lambda path: name_below(path, folder))


def name_below(path: Path, folder: Path) -> str:
    """A file's path below a folder, with '/' on every system."""
    return path.relative_to(folder).as_posix()


def stem_below(path: Path, folder: Path) -> str:
    """The same without the file's extension."""
    return path.relative_to(folder).with_suffix("").as_posix()


@dataclass(frozen=True)
class Pairs:
    """Images and their masks, in the same order, and whatever has no partner."""

    images: list[Path]
    masks: list[Path]
    images_without_mask: list[Path]
    masks_without_image: list[Path]

    def report(self) -> list[str]:
        """What did not match, one line each; nothing if everything did."""
        lines = []
        for files, said in (
            (self.images_without_mask, "images without a mask, left out"),
            (self.masks_without_image, "masks without an image"),
        ):
            if files:
                lines.append(f"{said}: {len(files)} ({few(path.name for path in files)})")
        blurred = [path.name for path in self.masks if path.suffix.lower() in (".jpg", ".jpeg")]
        if blurred:
            lines.append(
                f"masks saved as JPEG, which blurs values; export them as PNG: {len(blurred)} ({few(blurred)})"
            )
        return lines


def pair(images: Path, masks: Path, mask_suffix: str = "") -> Pairs:
    """Match images and masks by their names.

    A mask belongs to the image with the same path below its folder, extensions aside; if the folders differ, to the
    image with the same name, if there is only one. `x.jpg.png` is the mask of `x.jpg`.

    Args:
        images: folder of images.
        masks: folder of masks; may be the same folder, or one inside it.
        mask_suffix: what a mask's name has between its image's name and the extension, such as '_mask'.

    Raises:
        InputError: a folder is missing or empty, a mask has two images or an image two masks, or nothing matches.
    """
    if images.is_dir() and masks.is_dir() and images.resolve() == masks.resolve():
        if not mask_suffix:
            raise InputError(
                f"{images}: images and masks are in one folder; set segmentation.mask_suffix to what tells a mask's "
                "name from its image's, such as _mask"
            )
        every = images_below(images)
        mask_files = [path for path in every if path.stem.endswith(mask_suffix)]
        image_files = [path for path in every if not path.stem.endswith(mask_suffix)]
    else:
        image_files, mask_files = _apart(images_below(images), masks), _apart(images_below(masks), images)
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in image_files:
        by_stem[stem_below(path, images)].append(path)
        by_stem[name_below(path, images)].append(path)
    of_image: dict[Path, Path] = {}
    rest = []
    for mask in mask_files:
        stem = stem_below(mask, masks)
        fitting = by_stem.get(stem.removesuffix(mask_suffix), []) if stem.endswith(mask_suffix) else []
        if fitting:
            _join(of_image, fitting, mask)
        else:
            rest.append(mask)
    by_name: dict[str, list[Path]] = defaultdict(list)
    for path in image_files:
        if path not in of_image:
            by_name[path.stem].append(path)
            by_name[path.name].append(path)
    same_name = Counter(mask.stem for mask in rest)
    alone = []
    for mask in rest:
        fitting = by_name.get(mask.stem.removesuffix(mask_suffix), []) if mask.stem.endswith(mask_suffix) else []
        if len(fitting) == 1 and same_name[mask.stem] == 1:
            _join(of_image, fitting, mask)
        else:
            alone.append(mask)
    kept = [path for path in image_files if path in of_image]
    if not kept:
        guess = guess_suffix([path.stem for path in image_files], [path.stem for path in mask_files])
        hint = (
            f"set segmentation.mask_suffix (viny init: --mask-suffix) to {guess}"
            if guess
            else "names must be the same except for their extension"
        )
        raise InputError(
            f"{masks}: none of {len(mask_files)} masks ({few(p.name for p in mask_files)}) has the name of any of "
            f"{len(image_files)} images in {images} ({few(p.name for p in image_files)}); {hint}"
        )
    without = [path for path in image_files if path not in of_image]
    return Pairs(kept, [of_image[path] for path in kept], without, alone)


def _apart(files: list[Path], other: Path) -> list[Path]:
    """The files that are not below another folder, unless all are."""
    resolved = other.resolve()
    apart = [path for path in files if not path.resolve().is_relative_to(resolved)]
    return apart or files


def _join(of_image: dict[Path, Path], fitting: Sequence[Path], mask: Path) -> None:
    if len(fitting) > 1:
        raise InputError(f"{mask}: is the mask of {' or '.join(map(str, fitting))}? Keep one of these, or rename one")
    image = fitting[0]
    if image in of_image:
        raise InputError(f"{image}: has two masks, {of_image[image]} and {mask}; keep one of them")
    of_image[image] = mask


def guess_suffix(images: Iterable[str], masks: Iterable[str]) -> str:
    """What most masks' names add to an image's name; empty if nothing fits most of them."""
    known, masks = set(images), list(masks)
    found: Counter[str] = Counter()
    for mask in masks:
        at = next((i for i in range(len(mask) - 1, 0, -1) if mask[:i] in known), None)
        if at is not None:
            found[mask[at:]] += 1
    suffix, count = found.most_common(1)[0] if found else ("", 0)
    return suffix if 2 * count > len(masks) else ""


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
        names = (name_below(image, folder), stem_below(image, folder), image.name, image.stem)
        for name in dict.fromkeys(names):
            uses[name].append(image)
    part: dict[Path, str] = {}
    unknown = [name for name in said if name not in uses]
    if unknown:
        raise InputError(f"{path}: {len(unknown)} names match no image below {folder}: {few(unknown)}; correct them")
    for name, value in said.items():
        if len(uses[name]) > 1:
            raise InputError(f"{path}: '{name}' may be {few(uses[name])}; give the path below {folder}")
        if part.setdefault(uses[name][0], value) != value:
            raise InputError(f"{path}: names {uses[name][0]} twice, with two parts; keep one line")
    lacking = [name_below(image, folder) for image in images if image not in part]
    if lacking:
        raise InputError(
            f"{path}: does not name {len(lacking)} of {len(images)} images: {few(lacking)}; add them, with part none "
            "to leave them out"
        )
    return [PARTS.get(part[image]) for image in images]


def rank(name: str, *keys: int | str) -> bytes:
    """A key that orders names at random, the same on every machine and whatever other names there are."""
    return hashlib.blake2b(":".join(map(str, (*keys, name))).encode(), digest_size=16).digest()


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
