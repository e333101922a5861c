"""Where images come from: each source lists its images with their classes, masks and official split.

A source reads only names; pixels are read once, by `viny.data.packing`.
"""

from __future__ import annotations

import os
import platform
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from viny.data.folders import (
    IMAGE_SUFFIXES,
    check_name,
    hold_out,
    images_below,
    name_below,
    pair,
    split_by_file,
)
from viny.data.pack import TEST, TRAIN
from viny.runtime.errors import InputError


@dataclass
class Listing:
    """Images of one data set, in an order that is the same on every machine.

    `labels`, `parts` (TRAIN or TEST, the official split) and `masks` are empty if a source has none. `mask_values`
    maps a value in a mask file to a class index or IGNORE, and `colours` says whether the values are colours.
    `masks_without_image` counts masks whose image is not listed, `images_without_mask` images that are not listed
    because they have no mask; both are noted but are not faults. `lists` are the files that say which images there
    are and in which part.
    """

    images: list[Path]
    classes: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)
    masks: list[Path] = field(default_factory=list)
    mask_classes: list[str] = field(default_factory=list)
    mask_values: dict[int, int] = field(default_factory=dict)
    colours: bool = False
    masks_without_image: int = 0
    images_without_mask: int = 0
    lists: list[Path] = field(default_factory=list)


HOW_TO_GET = {
    "imagenet": (
        "class folders of images, <path>/train/<wnid>/*.JPEG or <path>/<class>/*.jpg. ImageNet-1K needs an "
        "account at image-net.org: fetch ILSVRC2012_img_train.tar, then unpack it with "
        "torchvision.datasets.imagenet.parse_train_archive"
    ),
    "intel": (
        "<path>/seg_train/seg_train/<class>/*.jpg and <path>/seg_test/seg_test/<class>/*.jpg, as in the archive "
        "of the Kaggle data set puneet6060/intel-image-classification"
    ),
    "pets": (
        "<path>/oxford-iiit-pet/images/*.jpg and <path>/oxford-iiit-pet/annotations/{trainval.txt,test.txt,"
        "trimaps/*.png}; set segmentation.download to true to fetch it (800 MB), or unpack images.tar.gz and "
        "annotations.tar.gz of the Oxford-IIIT Pet data set there"
    ),
}


def _missing(source: str, path: Path, lacking: Path) -> InputError:
    return InputError(f"{lacking}: not found. Source '{source}' at {path} expects {HOW_TO_GET[source]}.")


def _subfolders(folder: Path) -> list[Path]:
    found = sorted(Path(e.path) for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))
    for sub in found:
        check_name(sub.name, folder)
    return found


def _images_in(folder: Path) -> list[Path]:
    found = [
        Path(e.path)
        for e in os.scandir(folder)
        if e.name.lower().endswith(IMAGE_SUFFIXES) and not e.name.startswith(".")
    ]
    for path in found:
        check_name(path.name, folder)
    return sorted(found)


def _class_folders(folder: Path, source: str, path: Path) -> tuple[list[Path], list[str], list[int]]:
    if not folder.is_dir():
        raise _missing(source, path, folder)
    images: list[Path] = []
    labels: list[int] = []
    classes = _subfolders(folder)
    for label, sub in enumerate(classes):
        found = _images_in(sub)
        if not found:
            raise InputError(f"{sub}: class folder without images; remove it or fill it")
        images += found
        labels += [label] * len(found)
    if not images:
        raise _missing(source, path, folder / "<class>")
    return images, [c.name for c in classes], labels


def list_imagenet(path: Path) -> Listing:
    """Class folders in `path`/train (torchvision's ImageNet), or directly in `path` (an ImageFolder)."""
    folder = path / "train" if (path / "train").is_dir() else path
    images, classes, labels = _class_folders(folder, "imagenet", path)
    return Listing(images, classes, labels, [TRAIN] * len(images))


def list_intel(path: Path) -> Listing:
    """The Kaggle archive's layout: seg_train/seg_train/<class> and seg_test/seg_test/<class>."""
    images, classes, labels = _class_folders(path / "seg_train" / "seg_train", "intel", path)
    test_images, test_classes, test_labels = _class_folders(path / "seg_test" / "seg_test", "intel", path)
    if classes != test_classes:
        raise InputError(
            f"{path}: seg_train has classes {', '.join(classes)} but seg_test {', '.join(test_classes)}; "
            "they must be the same"
        )
    parts = [TRAIN] * len(images) + [TEST] * len(test_images)
    return Listing(images + test_images, classes, labels + test_labels, parts)


def list_pets(path: Path) -> Listing:
    """Oxford-IIIT Pet in torchvision's layout: trainval first, then test, each in its list file's order."""
    base = path / "oxford-iiit-pet"
    notes = base / "annotations"
    out = Listing([], mask_classes=["pet", "background", "border"], mask_values={1: 0, 2: 1, 3: 2})
    names: dict[int, str] = {}
    listed: dict[str, str] = {}  # where each image is listed
    for part, file in ((TRAIN, notes / "trainval.txt"), (TEST, notes / "test.txt")):
        if not file.is_file():
            raise _missing("pets", path, file)
        out.lists.append(file)
        for number, stem, label in _pets_lines(file):
            if stem in listed:
                raise InputError(f"{file}, line {number}: '{stem}' is in {listed[stem]} too; remove one of them")
            listed[stem] = f"{file.name}, line {number},"
            out.images.append(base / "images" / f"{stem}.jpg")
            out.masks.append(notes / "trimaps" / f"{stem}.png")
            out.labels.append(label)
            out.parts.append(part)
            names[label] = stem.rsplit("_", 1)[0]
    if not out.images:
        raise InputError(f"{notes}: trainval.txt and test.txt list no images; restore them")
    if max(names) >= len(out.images):
        raise InputError(
            f"{notes}: trainval.txt and test.txt name class {max(names) + 1}, but only {len(out.images)} images; "
            "classes are counted from 1"
        )
    out.classes = [names.get(i, f"class {i}") for i in range(max(names) + 1)]
    trimaps = notes / "trimaps"
    present = os.listdir(trimaps) if trimaps.is_dir() else []
    # macOS puts '._<name>' beside each file in the archives it makes.
    spare = [n for n in present if n.endswith(".png") and not n.startswith("._") and n[:-4] not in listed]
    out.masks_without_image = len(spare)
    return out


def _pets_lines(file: Path) -> Iterator[tuple[int, str, int]]:
    """Line number, image name and class (from 0) of each line of a Pets list."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read as a list of images ({error}); restore it") from error
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            stem, label = line.split()[0], int(line.split()[1]) - 1
        except (IndexError, ValueError) as error:
            raise InputError(f"{file}, line {number}: expected '<name> <class> ...', got {line!r}") from error
        if label < 0:
            raise InputError(f"{file}, line {number}: class {label + 1}; classes are counted from 1")
        check_name(stem, file)
        if "/" in stem or "\\" in stem or ".." in stem:
            raise InputError(
                f"{file}, line {number}: '{stem}' is a path; expected the name of a file in images/, without '/', "
                "'\\' and '..'"
            )
        yield number, stem, label


@contextmanager
def _safe_extraction() -> Iterator[None]:
    """Keep archives unpacked in the block from writing outside their folder; Python before 3.14 lets them.

    Raises:
        InputError: this Python cannot do that.
    """
    if not hasattr(tarfile, "data_filter"):
        raise InputError(
            f"Python {platform.python_version()} cannot unpack archives safely; use 3.11.4 or newer, or put "
            f"Oxford-IIIT Pet there by hand: expected {HOW_TO_GET['pets']}"
        )
    before = vars(tarfile.TarFile).get("extraction_filter")
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try:
        yield
    finally:
        tarfile.TarFile.extraction_filter = before


def fetch_pets(path: Path) -> None:
    """Download Oxford-IIIT Pet to `path` with torchvision, unless it is there already.

    Raises:
        InputError: it cannot be fetched, or its archive would write outside its folder.
    """
    from torchvision.datasets import OxfordIIITPet

    try:
        with _safe_extraction():
            OxfordIIITPet(path, split="trainval", target_types="segmentation", download=True)
    except tarfile.TarError as error:
        raise InputError(
            f"{path}: an archive of Oxford-IIIT Pet is damaged or not safe to unpack ({error}); delete it there and "
            "fetch it again"
        ) from error
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"{path}: Oxford-IIIT Pet cannot be fetched ({error}); try again, or put it there by hand: expected "
            f"{HOW_TO_GET['pets']}"
        ) from error


TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("test", "testing", "val", "valid", "validation")


def list_folder(spec: Mapping[str, Any]) -> Listing:
    """A user's own folder: images, images with masks, or images in class folders, as `spec['holds']` says.

    Args:
        spec: see `viny.study.specs.pack_spec`.

    Raises:
        InputError: see `viny.data.folders`.
    """
    path = Path(spec["path"])
    if spec["holds"] == "images":
        return Listing(images_below(path))
    if spec["holds"] == "classes":
        return _list_classes(path, spec)
    pairs = pair(path, Path(spec["masks"]), spec["mask_suffix"])
    out = Listing(
        pairs.images,
        masks=pairs.masks,
        mask_classes=list(spec["mask_classes"]),
        mask_values={int(value): index for value, index in spec["mask_values"].items()},
        colours=spec["colours"],
        masks_without_image=len(pairs.masks_without_image),
        images_without_mask=len(pairs.images_without_mask),
    )
    if spec["split"]:
        _split(out, spec["split"], path, pairs.images_without_mask)
    return out


def _list_classes(path: Path, spec: Mapping[str, Any]) -> Listing:
    """Class folders and all their subfolders; directly in `path`, or in its train and test folders."""
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; expected class folders of images, <path>/<class>/**/*.jpg")
    tops = {sub.name.lower(): sub for sub in _subfolders(path)}
    train = next((tops[name] for name in TRAIN_FOLDERS if name in tops), None)
    test = next((tops[name] for name in TEST_FOLDERS if name in tops), None)
    if train and test and not spec["split"]:
        mine, other = _classes_below(train), _classes_below(test)
        if mine.classes != other.classes:
            raise InputError(
                f"{path}: {train.name} has classes {', '.join(mine.classes)} but {test.name} "
                f"{', '.join(other.classes)}; they must be the same"
            )
        parts = [TRAIN] * len(mine.images) + [TEST] * len(other.images)
        return Listing(mine.images + other.images, mine.classes, mine.labels + other.labels, parts)
    out = _classes_below(path)
    if spec["split"]:
        _split(out, spec["split"], path)
    else:
        out.parts = hold_out([name_below(image, path) for image in out.images], out.labels, spec["held_out"])
    return out


def _classes_below(path: Path) -> Listing:
    out = Listing([])
    for label, folder in enumerate(_subfolders(path)):
        found = images_below(folder)
        out.images += found
        out.labels += [label] * len(found)
        out.classes.append(folder.name)
    if len(out.classes) < 2:
        raise InputError(f"{path}: {len(out.classes)} class folders; expected two or more, <path>/<class>/**/*.jpg")
    return out


def _split(listing: Listing, file: str, folder: Path, others: Sequence[Path] = ()) -> None:
    """Set the parts of a listing from a split file, and drop images that are in no part."""
    parts = split_by_file(Path(file), listing.images, folder, others)
    listing.lists.append(Path(file))
    kept = [at for at, part in enumerate(parts) if part is not None]
    for name in ("images", "labels", "masks"):
        values = getattr(listing, name)
        setattr(listing, name, [values[at] for at in kept] if values else values)
    listing.parts = [parts[at] for at in kept]
    if len(set(listing.parts)) < 2:
        raise InputError(f"{file}: expected images in both train and test, found only one of them")


LISTERS = {"imagenet": list_imagenet, "intel": list_intel, "pets": list_pets}


def list_source(spec: Mapping[str, Any]) -> Listing:
    """List the images of a data set on disk.

    Args:
        spec: see `viny.study.specs.pack_spec`; for any source but 'synthetic'.

    Raises:
        InputError: a file or folder is missing; says which, what is expected, and how to get it.
    """
    if spec["source"] == "folder":
        return list_folder(spec)
    return LISTERS[spec["source"]](Path(spec["path"]))
