"""Where images come from: each source lists its images with their classes, masks and official split.

A source reads only names; pixels are read once, by `viny.data.packing`.
"""

from __future__ import annotations

import os
import platform
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from viny.data.folders import (
    Found,
    check_missing,
    check_name,
    check_some,
    composed,
    few,
    list_below,
    name_below,
    together,
)
from viny.data.pack import TEST, TRAIN
from viny.data.pairs import IMAGE_FOLDERS, Pairs, pair
from viny.data.parts import (
    BY_FOLDERS,
    Groups,
    contradicting,
    for_masks,
    hold_out,
    only_parts,
    own_split,
    part_of,
    parts_among,
    parts_of,
    split_by_file,
    split_by_folders,
    split_in_names,
    unpartnered,
)
from viny.runtime.errors import InputError


@dataclass
class Listing:
    """Images of one data set, in an order that is the same on every machine.

    `labels`, `parts` (TRAIN or TEST, the official split) and `masks` are empty if a source has none. `mask_values`
    maps a value in a mask file to a class index or IGNORE, and `colours` says whether the values are colours.
    `masks_without_image` counts masks whose image is not listed, `images_without_mask` images that are not listed
    because they have no mask; both are noted but are not faults. `lists` are the files that say which images there
    are and in which part. `found` says what else is in the folders, `missing` names links to images that are not there,
    `left_out` counts images by the author's parts that are not used, and `kept` says which split of the author's is
    kept, if any, and `notes` what else a user should know, a sentence each.
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
    found: list[Found] = field(default_factory=list)
    pairs: Pairs | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    kept: str = ""
    notes: list[str] = field(default_factory=list)

    def images_in(self, part: int) -> list[Path]:
        """The images of one part, TRAIN or TEST."""
        return [image for image, other in zip(self.images, self.parts, strict=True) if other == part]

    @property
    def missing(self) -> list[Path]:
        return [path for one in self.found for path in one.missing]

    def report(self) -> list[str]:
        """What was left out, passed over or does not match, one line each; nothing if there is none."""
        more = self.pairs.report() if self.pairs else [line for one in self.found for line in one.report()]
        return [self.kept] * bool(self.kept) + self.notes + more

    def passed_over(self) -> dict[str, int]:
        """How many files have formats of pictures that are not read, by ending."""
        total: Counter[str] = Counter()
        for one in self.found:
            total.update(one.pictures)
        return dict(sorted(total.items()))


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


LISTS = ("", "ImageSets", "ImageSets/Segmentation", "splits", "split", "lists", "meta")  # folders of lists of parts
INTEL = {"seg_train": TRAIN, "seg_test": TEST}  # folders of its parts


class MissingError(InputError):
    """A known data set is not where it should be."""


def _missing(source: str, path: Path, lacking: Path) -> MissingError:
    return MissingError(f"{lacking}: not found. Source '{source}' at {path} expects {HOW_TO_GET[source]}.")


def _subfolders(folder: Path) -> Found:
    """What is directly in a folder of class folders; two that are one in Unicode's composed form are refused."""
    found = list_below(folder, deep=False)
    names = [composed(sub.name) for sub in found.subfolders]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{folder}: two folders are called {few(twice)}, with accents encoded differently; join them")
    return found


def _class_folders(folder: Path, source: str, path: Path) -> Listing:
    """A known data set's class folders, whose images lie directly in them."""
    if not os.path.isdir(folder):
        raise _missing(source, path, folder)
    out, found = Listing([]), [_subfolders(folder)]
    for label, sub in enumerate(found[0].subfolders):
        found.append(list_below(sub, deep=False))
        if not found[-1].images and not found[-1].missing:
            raise InputError(f"{sub}: class folder without images; remove it or fill it")
        if nested := found[-1].subfolders:
            out.notes.append(f"{sub}: folders in a class folder are left out: {few(inner.name for inner in nested)}")
        out.classes.append(composed(sub.name))
        out.images += found[-1].images
        out.labels += [label] * len(found[-1].images)
    if not out.classes:
        raise _missing(source, path, folder / "<class>")
    out.found = [together(folder, found)]
    return out


def list_imagenet(path: Path) -> Listing:
    """Class folders in `path`/train (torchvision's ImageNet), or directly in `path` (an ImageFolder)."""
    out = _class_folders(path / "train" if os.path.isdir(path / "train") else path, "imagenet", path)
    out.parts = [TRAIN] * len(out.images)
    return out


def _hold_out_imagenet(out: Listing, path: Path, share: float) -> None:
    """Give the listed images of `path` the parts of a classification task.

    Held out are the images in the class folders of `path`/val, as the data's author split them; without such folders,
    a share of each class.

    Raises:
        InputError: `path`/val has a class that is not in the training part, or a class has only one image.
    """
    val = path / "val"
    if os.path.isdir(path / "train") and os.path.isdir(val) and _subfolders(val).subfolders:
        held_out = _class_folders(val, "imagenet", path)
        if unknown := sorted({*held_out.classes} - {*out.classes}):
            train = path / "train"
            raise InputError(f"{val}: classes that {train} does not have: {few(unknown)}; remove or rename them")
        place = {name: label for label, name in enumerate(out.classes)}
        out.images += held_out.images
        out.labels += [place[held_out.classes[label]] for label in held_out.labels]
        out.parts += [TEST] * len(held_out.images)
        out.found += held_out.found
        out.notes += held_out.notes
        return
    out.parts = hold_out([name_below(image, path) for image in out.images], out.labels, share)
    out.notes.append(f"{path}: has no val/<class>, so {share:.0%} of each class are held out from a task's training")


def list_intel(path: Path) -> Listing:
    """The Kaggle archive's layout: seg_train/seg_train/<class> and seg_test/seg_test/<class>."""
    parts = {(name, code): _class_folders(path / name / name, "intel", path) for name, code in INTEL.items()}
    return _joined(path, parts)


def _joined(path: Path, parts: Mapping[tuple[str, int], Listing]) -> Listing:
    """One listing of several parts, by their folders' names and TRAIN or TEST; they must have the same classes."""
    ((first, _), base), *rest = parts.items()
    out = Listing([], base.classes)
    for (name, _), other in rest:
        if other.classes != base.classes:
            raise InputError(
                f"{path}: {first} has classes {', '.join(base.classes)} but {name} {', '.join(other.classes)}; they "
                "must be the same"
            )
    for (_, code), one in parts.items():
        out.images += one.images
        out.labels += one.labels
        out.parts += [code] * len(one.images)
        out.found += one.found
        out.notes += one.notes
    return out


def list_pets(path: Path) -> Listing:
    """Oxford-IIIT Pet in torchvision's layout: trainval first, then test, each in its list file's order."""
    base = path / "oxford-iiit-pet"
    notes = base / "annotations"
    out = Listing([], mask_classes=["pet", "background", "border"], mask_values={1: 0, 2: 1, 3: 2})
    names: dict[int, str] = {}
    listed: dict[str, str] = {}  # where each image is listed
    for part, file in ((TRAIN, notes / "trainval.txt"), (TEST, notes / "test.txt")):
        if not os.path.isfile(file):
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
    if os.path.isdir(notes / "trimaps"):
        present = list_below(notes / "trimaps", deep=False).names
        out.masks_without_image = sum(n.endswith(".png") and n[:-4] not in listed for n in present)
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


def list_folder(spec: Mapping[str, Any]) -> Listing:
    """A user's own folder: images, images with masks, or images in class folders, as `spec['holds']` says.

    Args:
        spec: see `viny.study.specs.pack_spec`.

    Raises:
        InputError: see `viny.data.folders`.
    """
    path, skip_missing = Path(spec["path"]), spec.get("on_bad_image") == "skip"
    if spec["holds"] == "images":
        found = list_below(path)
        check_some(found)
        check_missing([found], skip_missing)
        return Listing(found.images, found=[found])
    if spec["holds"] == "classes":
        out = _list_classes(path, spec)
        check_missing(out.found, skip_missing)
        return out
    pairs = pair(path, Path(spec["masks"]), spec["mask_suffix"], skip_missing)
    out = Listing(
        pairs.images,
        masks=pairs.masks,
        mask_classes=list(spec["mask_classes"]),
        mask_values={int(value): index for value, index in spec["mask_values"].items()},
        colours=spec["colours"],
        masks_without_image=len(pairs.masks_without_image),
        images_without_mask=len(pairs.images_without_mask),
        found=pairs.found,
        pairs=pairs,
    )
    if spec["split"]:
        _split(out, spec["split"], path, pairs.images_without_mask, pairs.names)
    out.kept = kept_split(pairs.names, spec["split"])
    if group := spec.get("group"):
        groups = Groups.read(pairs.names, group["pattern"])
        groups.check(group["pattern"])
        out.parts = groups.parts(group["test_size"], group["split_seed"])
        tested = len(groups.within(out.parts, TEST))
        out.kept = f"{groups.said()}; {tested:,} of them are for the test, with {out.parts.count(TEST):,} images"
    out.notes += pooled_split(pairs.names, spec["split"]) + beside(path, spec["split"])
    return out


def kept_split(names: Sequence[str], split: str) -> str:
    """A sentence on the author's split, if a study's `split` keeps it; `names` are the images' paths."""
    if split != BY_FOLDERS:
        return ""
    counts = own_split(names)
    kept = "train and test as in their folders"
    if "test" not in counts:
        kept = "train as in its folder, and val as the test part"
    for part, count in _unused(counts).items():
        kept += f"; {count} images in {part} are left out, neither trained nor tested on"
    return f"the author's split is kept ({_listed(counts)}): {kept}"


def _unused(counts: Mapping[str, int]) -> dict[str, int]:
    """Those parts of an author's split that are neither trained nor tested on."""
    return {part: counts[part] for part in (*["val"] * ("test" in counts), "pred") if part in counts}


def pooled_split(names: Sequence[str], split: str) -> list[str]:
    """A note on images whose folders or names look like an author's split, if a study's `split` is empty."""
    if split:
        return []
    if unclear := contradicting(names):
        return [
            f"folders within folders name different parts ({few(unclear)}), so which images are for the test is not "
            "clear: this study pools them and splits anew; a file with lines image,part as segmentation.split says it"
        ]
    if counts := own_split(names):
        outside = f", with {counts['none']} images in neither" if "none" in counts else ""
        return [
            f"images lie in folders that look like their author's split ({_listed(counts)}{outside}), which this study "
            f"pools and splits anew; segmentation.split: {BY_FOLDERS} keeps it"
        ]
    if folders := unpartnered(names):
        return [
            f"folders of images have names of parts ({few(folders)}), but no two with the same words around them: this "
            "study pools them and splits anew; a file with lines image,part as segmentation.split says what they are"
        ]
    if counts := split_in_names(names):
        return [
            f"images' names begin like their author's split ({_listed(counts)}), which this study pools and splits "
            "anew; a file with lines image,part as segmentation.split keeps it"
        ]
    return []


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{part} {count}" for part, count in counts.items() if part != "none")


def beside(folder: Path, split: str) -> list[str]:
    """Notes on what of an author's split is not used: its lists, unless `split` is set, and folders beside this one."""
    place = Path(os.path.abspath(folder))
    notes = []
    for near in (place, place.parent):
        for lists in LISTS:
            files = [
                near / lists / f"{part}.{ending}" for part in ("train", "val", "test") for ending in ("txt", "csv")
            ]
            files = [str(file) for file in files if os.path.isfile(file)]
            if len(files) > 1 and not split:
                notes.append(
                    f"lists that look like the author's split are not used: {', '.join(files)}; split takes one "
                    "file with lines image,part"
                )
    return notes + _parts_beside(place)


def _parts_beside(place: Path) -> list[str]:
    """A note on folders for testing that lie beside the one for training; empty if there are none."""
    for above in (place, *place.parents[:2]):
        if part_of(above.name) != "train":
            continue
        try:
            near = list_below(above.parent, deep=False).subfolders
        except InputError:  # where this user may not look
            continue
        # Folders of masks are no parts of the images: labels_val is beside labels_train, not images_train.
        near = [other for other in near if for_masks(other.name) == for_masks(above.name)]
        parts = parts_among(other.name for other in near)
        if above.name not in parts:
            continue
        inside = [(other, other / place.relative_to(above)) for other in near if other.name in parts and other != above]
        others = [str(inner if os.path.isdir(inner) else other) for other, inner in inside]
        return [f"{place} is used, but not what lies beside it: {few(others)}; to use both, name the folder above"]
    return []


def _list_classes(path: Path, spec: Mapping[str, Any]) -> Listing:
    """Class folders and all their subfolders; directly in `path`, or in its train and test folders, or around them."""
    if not os.path.isdir(path):
        raise InputError(f"{path}: no such folder; expected class folders of images, <path>/<class>/**/*.jpg")
    top = _subfolders(path)
    names = [sub.name for sub in top.subfolders]
    known = parts_among(names)
    tops: dict[str, list[Path]] = {}
    for sub in top.subfolders:
        tops.setdefault(known.get(sub.name, "none"), []).append(sub)
    # A part of images without class folders, as a competition's test part, holds no labels.
    inner = {sub: _unwrapped(sub) for part in ("train", "val", "test") for sub in tops.get(part, [])}
    labelled = [p for p in ("test", "val") if any(_subfolders(inner[sub]).subfolders for sub in tops.get(p, []))]
    held_out = next(iter(labelled), None)
    split, others = spec["split"], tops.pop("none", [])
    if not held_out:
        if only_parts(names) or (tops and not others):
            raise _no_parts(path, top)
        out = _classes_below(path, top)
        if split not in ("", BY_FOLDERS):
            _split(out, split, path)
        elif not _split_within(out, path):
            if split:
                raise _no_parts(path, top)
            out.parts = hold_out([name_below(image, path) for image in out.images], out.labels, spec["held_out"])
        if known:
            out.notes.append(f"{path}: {few(known)} are taken for classes, as no class folders are in them")
        out.notes += beside(path, split)
        return out
    used = ("train", held_out) if split in ("", BY_FOLDERS) else ("train", *labelled)
    for part in used:
        if len(tops[part]) > 1:
            raise InputError(f"{path}: {few(tops[part])} all look like the {part} part; keep one of them")
    codes = {part: TRAIN if part == "train" else TEST for part in used}
    out = _joined(path, {(tops[p][0].name, code): _classes_below(inner[tops[p][0]]) for p, code in codes.items()})
    if split not in ("", BY_FOLDERS):
        _split(out, split, path)
    elif counts := own_split([name for one in out.found for name in one.names]):
        out.notes.append(
            f"{path}: folders within the class folders look like another split ({_listed(counts)}), which is not used, "
            f"as {few(tops[part][0].name for part in used)} are parts already"
        )
    for sub in (*(sub for part, subs in tops.items() if part not in used for sub in subs), *others):
        if count := len(list_below(sub).images):
            out.left_out[composed(sub.name)] = count
            kept = " and ".join(tops[part][0].name for part in used)
            out.notes.append(f"{sub}: {count} images, neither trained nor tested on, as {kept} are used")
    out.found.append(top)
    if top.images:
        out.notes.append(_loose(top))
    return out


def _no_parts(path: Path, top: Found) -> InputError:
    return InputError(
        f"{path}: expected folders train and test, or train and val, of class folders, or class folders alone; "
        f"found {few(sub.name for sub in top.subfolders)}"
    )


def _unwrapped(folder: Path) -> Path:
    """A part's folder, or the folder that is all it holds, as in Kaggle's seg_train/seg_train, or train/images."""
    part = part_of(folder.name)
    while True:
        inside = _subfolders(folder)
        if inside.images or len(inside.subfolders) != 1:
            return folder
        (only,) = inside.subfolders
        if part_of(only.name) != part and only.name.lower() not in IMAGE_FOLDERS:
            return folder
        folder = only


def _split_within(listing: Listing, path: Path) -> bool:
    """Split by folders within the class folders, as <class>/train and <class>/val, if each class has both parts.

    Adds a note if there are such folders that do not split every class.
    """
    names = [name_below(image, path).partition("/")[2] for image in listing.images]
    counts = own_split(names)
    said = _listed(counts) or few(contradicting(names))
    if not said:
        return False
    tested = "test" if "test" in counts else "val"
    have = set(zip(listing.labels, parts_of(names), strict=True))
    if "none" in counts or any(
        (label, part) not in have for label in range(len(listing.classes)) for part in ("train", tested)
    ):
        listing.notes.append(
            f"{path}: folders within the class folders look like their author's split ({said}), but do not "
            "give every image a part and every class both parts: they are pooled and split anew; a file with lines "
            "image,part as split keeps it"
        )
        return False
    listing.kept = kept_split(names, BY_FOLDERS)
    _split(listing, BY_FOLDERS, path, names=names)
    return True


def _loose(top: Found) -> str:
    images = few(image.name for image in top.images)
    return f"{top.folder}: {len(top.images)} images are in no class folder, left out: {images}"


def _classes_below(path: Path, top: Found | None = None) -> Listing:
    """The images in class folders, whatever their part; `top` is what is directly in `path`, if known."""
    top = top or _subfolders(path)
    out, every = Listing([]), [top]
    for label, folder in enumerate(top.subfolders):
        found = list_below(folder)
        check_some(found)
        every.append(found)
        out.images += found.images
        out.labels += [label] * len(found.images)
        out.classes.append(composed(folder.name))
    if len(out.classes) < 2:
        raise InputError(f"{path}: {len(out.classes)} class folders; expected two or more, <path>/<class>/**/*.jpg")
    out.found = [together(path, every)]
    if top.images:
        out.notes.append(_loose(top))
    return out


def _split(listing: Listing, split: str, folder: Path, others: Sequence[Path] = (), names: Sequence[str] = ()) -> None:
    """Set the parts of a listing from a split file or the folders in `names`, and drop images that are in no part."""
    if split == BY_FOLDERS:
        parts, counts = split_by_folders(names, folder)
        listing.left_out |= _unused(counts)
    else:
        parts = split_by_file(Path(split), listing.images, folder, others)
        listing.lists.append(Path(split))
    kept = [at for at, part in enumerate(parts) if part is not None]
    for name in ("images", "labels", "masks"):
        values = getattr(listing, name)
        setattr(listing, name, [values[at] for at in kept] if values else values)
    listing.parts = [parts[at] for at in kept]
    if len(set(listing.parts)) < 2:
        raise InputError(f"{split}: expected images in both train and test, found only one of them")


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
    out = LISTERS[spec["source"]](Path(spec["path"]))
    if "held_out" in spec:
        _hold_out_imagenet(out, Path(spec["path"]), spec["held_out"])
    check_missing(out.found, spec.get("on_bad_image") == "skip")
    return out
