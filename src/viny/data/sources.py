"""Where images come from: each source lists its images with classes, masks and official split.

A source reads names only; pixels are read once, by `viny.data.pack`.
"""

from __future__ import annotations

import os
import platform
import tarfile
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from viny.data.pack import TEST, TRAIN
from viny.errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


@dataclass
class Listing:
    """Images of one data set, in an order that is the same on every machine.

    `labels` and `parts` (TRAIN or TEST, the official split) are empty where a source has none; `masks`
    likewise. `mask_values` maps a value in a mask file to a class index. `masks_without_image` counts masks
    that no image of the lists has, a note and no fault.
    """

    images: list[Path]
    classes: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)
    masks: list[Path] = field(default_factory=list)
    mask_classes: list[str] = field(default_factory=list)
    mask_values: dict[int, int] = field(default_factory=dict)
    masks_without_image: int = 0


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


def _check_name(name: str, where: Path) -> None:
    """Refuse a name that would break a list of names, a log, or a terminal."""
    if name.isprintable():
        return
    # Cc are control characters, Cs bytes that are no UTF-8, Zl and Zp separate lines.
    if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name):
        raise InputError(f"{where}: the name {name!a} has control characters or is no UTF-8; rename it")


def _subfolders(folder: Path) -> list[Path]:
    found = sorted(Path(e.path) for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))
    for sub in found:
        _check_name(sub.name, folder)
    return found


def _images_in(folder: Path) -> list[Path]:
    found = [
        Path(e.path)
        for e in os.scandir(folder)
        if e.name.lower().endswith(IMAGE_SUFFIXES) and not e.name.startswith(".")
    ]
    for path in found:
        _check_name(path.name, folder)
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
    """Class folders below `path`/train (torchvision's ImageNet), or right below `path` (an ImageFolder)."""
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
        raise InputError(f"{notes}: trainval.txt and test.txt list no image; restore them")
    if max(names) >= len(out.images):
        raise InputError(
            f"{notes}: trainval.txt and test.txt name class {max(names) + 1}, but only {len(out.images)} images; "
            "classes are counted from 1"
        )
    out.classes = [names.get(i, f"class {i}") for i in range(max(names) + 1)]
    trimaps = notes / "trimaps"
    present = os.listdir(trimaps) if trimaps.is_dir() else []
    # macOS leaves '._<name>' beside each file of an archive that it has packed.
    spare = [n for n in present if n.endswith(".png") and not n.startswith("._") and n[:-4] not in listed]
    out.masks_without_image = len(spare)
    return out


def _pets_lines(file: Path) -> Iterator[tuple[int, str, int]]:
    """Line number, image name and class, from 0, of each line of a list of Pets."""
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
        _check_name(stem, file)
        if "/" in stem or "\\" in stem or ".." in stem:
            raise InputError(
                f"{file}, line {number}: '{stem}' is a path; expected the name of a file in images/, without '/', "
                "'\\' and '..'"
            )
        yield number, stem, label


@contextmanager
def _safe_extraction() -> Iterator[None]:
    """Archives unpacked within the block may not write outside their folder; Python before 3.14 lets them.

    Raises:
        InputError: this Python cannot see to that.
    """
    if not hasattr(tarfile, "data_filter"):
        raise InputError(
            f"Python {platform.python_version()} cannot unpack archives safely; use 3.11.4 or newer, or put "
            f"Oxford-IIIT Pet there by hand: expected are {HOW_TO_GET['pets']}"
        )
    before = vars(tarfile.TarFile).get("extraction_filter")
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try:
        yield
    finally:
        tarfile.TarFile.extraction_filter = before


def fetch_pets(path: Path) -> None:
    """Download Oxford-IIIT Pet below `path` with torchvision, unless it is there.

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
            f"{path}: Oxford-IIIT Pet cannot be fetched ({error}); try again, or put it there by hand: expected are "
            f"{HOW_TO_GET['pets']}"
        ) from error


LISTERS = {"imagenet": list_imagenet, "intel": list_intel, "pets": list_pets}


def list_source(source: str, path: str | Path) -> Listing:
    """List the images of a data set on disk.

    Args:
        source: imagenet, intel or pets.
        path: its folder.

    Raises:
        InputError: a file or folder is missing; says which, what is expected, and how to get it.
    """
    return LISTERS[source](Path(path))


def count_images(spec: Mapping[str, Any]) -> int | None:
    """Images that a pack would hold (see `viny.cells.pack_spec`), or None where its source is not on disk yet."""
    if spec["source"] == "synthetic":
        return spec["count"]
    try:
        return len(list_source(spec["source"], spec["path"]).images)
    except InputError:
        return None
