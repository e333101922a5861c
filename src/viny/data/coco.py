"""COCO annotations, instance or panoptic, as masks of class values.

The format: https://cocodataset.org/#format-data. Object numbers are ignored: only a pixel's category counts.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from viny.data.folders import few, images_below, name_below
from viny.data.masks import BACKGROUNDS, IGNORE, MAX_CLASSES
from viny.runtime.errors import InputError
from viny.runtime.files import folder_beside, write_text

LEGEND = "classes.csv"  # lines of value,name beside the masks
NAME = 40  # characters of a class's name, at most


@dataclass(frozen=True)
class Converted:
    """What came of converting COCO annotations.

    Attributes:
        masks: how many were written.
        classes: name of each mask value except 255, which is no class.
        notes: what was left out, one sentence each.
    """

    masks: int
    classes: dict[int, str]
    notes: list[str]


def convert(annotations: Path, images: Path, out: Path, pngs: Path | None = None, replace: bool = False) -> Converted:
    """Write a mask for each image that COCO annotations list, as grey PNGs of class values, with a legend.

    Instances: 0 is background, and where objects overlap, the later one is on top; crowds are ignored, except for
    objects drawn in them. Panoptic: pixels without a category are ignored, and so are crowds. Categories get values
    from 1 up, in the order of their ids; those without annotations get none.

    Args:
        annotations: the JSON file.
        images: folder of images; listed images that are not in it are left out.
        out: folder for the masks.
        pngs: folder of a panoptic file's PNGs; None: the one beside the JSON file, with its name.
        replace: whether masks that this function wrote there before may be replaced.

    Raises:
        InputError: no such annotations, something wrong in them, or a folder in the way.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        if not (out / LEGEND).is_file():
            raise InputError(
                f"{out}: already exists and was not written from COCO annotations; name another folder (--masks)"
            )
        if not replace:
            raise InputError(
                f"{out}: holds masks already; use them with --masks {out} --classes-file {out / LEGEND} instead of "
                "--coco, or write them again with --force"
            )
    source = _Source.read(annotations, images, pngs)
    out.parent.mkdir(parents=True, exist_ok=True)
    with folder_beside(out) as tmp:
        written = source.write(tmp)
        write_text(tmp / LEGEND, "".join(f"{value},{name}\n" for value, name in source.classes.items()))
        if out.exists():
            shutil.rmtree(out)
        os.replace(tmp, out)
    return Converted(written, source.classes, source.notes)


def _fault(path: Path, what: str) -> InputError:
    return InputError(f"{path}: {what}; expected COCO annotations for instance or panoptic segmentation")


class _Source:
    """Annotations read from a file, and the images that they belong to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []
        self.classes: dict[int, str] = {}
        self.values: dict[int, int] = {}  # mask value of each category
        self.of_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
        self.files: dict[int, Path] = {}  # by id, of the images that are here
        self.shapes: dict[int, tuple[int, int]] = {}
        self.pngs: dict[str, Path] | None = None  # for panoptic annotations
        self.images = Path()

    @classmethod
    def read(cls, path: Path, images: Path, pngs: Path | None) -> _Source:
        self = cls(path)
        self.images = images
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); expected COCO annotations") from error
        except ValueError as error:
            raise _fault(path, f"not JSON ({error})") from error
        lists = {}
        for key in ("images", "annotations", "categories"):
            lists[key] = value.get(key) if isinstance(value, dict) else None
            if not isinstance(lists[key], list) or not all(isinstance(one, dict) for one in lists[key]):
                raise _fault(path, f"no list of objects '{key}'")
        try:
            panoptic = any("segments_info" in one for one in lists["annotations"])
            for one in lists["annotations"]:
                self.of_image[one["image_id"]].append(one)
            segments = [s for one in lists["annotations"] for s in (one["segments_info"] if panoptic else [one])]
            self._name(lists["categories"], {s["category_id"] for s in segments}, panoptic)
            self._find(lists["images"], panoptic)
        except (KeyError, TypeError, AttributeError) as error:
            raise _fault(path, f"an entry lacks {error}, or its type is wrong") from error
        if panoptic:
            folder = pngs or path.with_suffix("")
            if not folder.is_dir():
                raise InputError(f"{folder}: no such folder; expected the PNGs of {path}; name it with --panoptic")
            self.pngs = _by_name(images_below(folder), folder)
        return self

    def _name(self, categories: Sequence[Mapping[str, Any]], used: set[int], panoptic: bool) -> None:
        """Give values and names to the categories that occur."""
        names = {one["id"]: str(one["name"]) for one in categories}
        if unknown := used - set(names):
            raise _fault(self.path, f"annotations of categories {few(sorted(unknown))}, which it does not list")
        if len(used) >= MAX_CLASSES:
            raise InputError(f"{self.path}: {len(used)} categories; masks hold at most {MAX_CLASSES - 1}; merge some")
        if not used:
            raise _fault(self.path, "no annotations")
        if len(used) < len(names):
            self.notes.append(f"{len(names) - len(used)} of {len(names)} categories have no annotations, so no class")
        if not panoptic:
            self.classes[0] = BACKGROUNDS[0]
        taken: dict[str, str] = {}  # what each name was made from: categories with the same name are one class
        for value, category in enumerate(sorted(used), 1):
            name = re.sub(r"[^\w .()/+-]", "_", names[category]).strip()[:NAME]
            name = name if re.match(r"\w", name) else f"class_{value}"
            if taken.setdefault(name, names[category]) != names[category]:
                name = f"{name[: NAME - 4]}_{value}"
            self.values[category], self.classes[value] = value, name

    def _find(self, listed: Sequence[Mapping[str, Any]], panoptic: bool) -> None:
        """Find the listed images."""
        here = _by_name(images_below(self.images), self.images)
        missing, taken = [], set()
        for one in listed:
            file = _lookup(here, one["file_name"])
            if file is None or (panoptic and one["id"] not in self.of_image):
                missing.append(one["file_name"])
                continue
            if one["id"] in self.files or file in taken:
                raise _fault(self.path, f"the image {one['file_name']} or its id {one['id']} is listed twice")
            taken.add(file)
            self.files[one["id"]], self.shapes[one["id"]] = file, (int(one["height"]), int(one["width"]))
        if not self.files:
            raise InputError(
                f"{self.images}: none of the {len(listed)} images of {self.path} are there ({few(missing)})"
            )
        if missing:
            self.notes.append(f"{len(missing)} listed images are missing or not annotated: {few(missing)}")
        blank = sum(not self.of_image.get(one) for one in self.files)
        if blank:
            self.notes.append(f"{blank} images have no annotations; their masks are all background")

    def write(self, folder: Path) -> int:
        """Write the masks; returns their number."""
        stems = Counter(path.relative_to(self.images).with_suffix("") for path in self.files.values())
        empty, boxes, written = 0, 0, 0
        for image, path in tqdm(self.files.items(), desc="write masks", unit="mask", disable=None, leave=False):
            if self.pngs is None:
                mask, without = self._instances(image)
                boxes += without
            else:
                mask = self._panoptic(image)
            if (mask == IGNORE).all():
                empty += 1
                continue
            name = path.relative_to(self.images)
            alone = stems[name.with_suffix("")] == 1
            to = folder / (name.with_suffix(".png") if alone else name.with_name(f"{name.name}.png"))
            to.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(to)
            written += 1
        if boxes:
            self.notes.append(f"{boxes} annotations have a box but no outline; they are left out")
        if empty:
            self.notes.append(f"{empty} images have no pixel with a category; they are left out")
        if not written:
            raise _fault(self.path, "no image with a category")
        return written

    def _instances(self, image: int) -> tuple[np.ndarray, int]:
        """An image's class values, uint8 [H, W], and how many of its annotations have no outline."""
        mask, without = np.zeros(self.shapes[image], np.uint8), 0
        # Crowds first, so that objects drawn in them stay on top.
        for one in sorted(self.of_image.get(image, []), key=lambda one: not one.get("iscrowd")):
            region = _region(one, *mask.shape, self.path)
            if region is None:
                without += 1
            else:
                mask[region] = IGNORE if one.get("iscrowd") else self.values[one["category_id"]]
        return mask, without

    def _panoptic(self, image: int) -> np.ndarray:
        """An image's class values, uint8 [H, W]."""
        (one, *more) = self.of_image[image]
        if more:
            raise _fault(self.path, f"image {image} has {len(more) + 1} panoptic annotations")
        path = _lookup(self.pngs, one["file_name"])
        if path is None:
            raise InputError(f"{self.path}: the PNG {one['file_name']} is not in its folder; restore it")
        try:
            with Image.open(path, formats=["PNG"]) as png:
                rgb = np.asarray(png.convert("RGB")).astype(np.int64)
        except Exception as error:  # each kind of damage raises its own error
            raise InputError(f"{path}: cannot be read as a PNG ({error}); restore it") from error
        numbers, places = np.unique(rgb @ (1, 256, 65536), return_inverse=True)
        known = {s["id"]: IGNORE if s.get("iscrowd") else self.values[s["category_id"]] for s in one["segments_info"]}
        known[0] = IGNORE
        if strange := [number for number in numbers.tolist() if number not in known]:
            raise InputError(f"{path}: segments {few(strange)}, which {self.path} does not list; restore it")
        return np.array([known[number] for number in numbers.tolist()], np.uint8)[places].reshape(rgb.shape[:2])


def _by_name(files: Iterable[Path], folder: Path) -> dict[str, Path]:
    """Files by their path below a folder, and by their name if it is unique."""
    files = list(files)
    alone = Counter(path.name for path in files)
    found = {path.name: path for path in files if alone[path.name] == 1}
    return found | {name_below(path, folder): path for path in files}


def _lookup(files: Mapping[str, Path], name: str) -> Path | None:
    name = name.replace("\\", "/")
    return files.get(name) or files.get(name.rpartition("/")[2])


def _region(one: Mapping[str, Any], height: int, width: int, path: Path) -> np.ndarray | None:
    """Pixels of an annotation, bool [H, W]; None if it has no outline.

    Raises:
        InputError: its outline is not valid.
    """
    from pycocotools import mask as rle

    outline = one.get("segmentation")
    if not outline:
        return None
    try:
        if isinstance(outline, list):
            # pycocotools would take four numbers as a box.
            polygons = [np.asarray(polygon, float).tolist() for polygon in outline]
            if any(len(p) < 6 or len(p) % 2 or not np.isfinite(p).all() for p in polygons):
                raise ValueError("a polygon with fewer than three points or an odd number of values")
            packed = rle.merge(rle.frPyObjects(polygons, height, width))
        else:
            if [int(side) for side in outline["size"]] != [height, width]:
                raise ValueError(f"size {outline['size']}, but its image is {height} x {width} (height x width)")
            packed = outline
            if isinstance(outline["counts"], list):
                if min(outline["counts"]) < 0 or sum(outline["counts"]) != height * width:
                    raise ValueError("counts that do not sum to its image's pixels")
                packed = rle.frPyObjects(outline, height, width)
        return rle.decode(packed).astype(bool)
    except Exception as error:  # pycocotools raises whatever its C code runs into
        raise _fault(path, f"annotation {one.get('id')}: not a valid outline ({error})") from error
