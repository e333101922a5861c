"""COCO annotations, instance or panoptic, as masks of class values.

The format: https://cocodataset.org/#format-data. Object numbers are ignored: only a pixel's category counts.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from PIL import Image
from tqdm import tqdm

from viny.data.decoding import FORMATS, MAX_PIXELS
from viny.data.folders import LEGEND, few, images_below, name_below
from viny.data.masks import BACKGROUNDS, IGNORE, MAX_CLASSES
from viny.runtime.errors import InputError
from viny.runtime.files import folder_beside, write_text
from viny.runtime.text import Short

NAME = 40  # characters of a class's name, at most
OUTSIDE = 2  # pixels that an outline may reach outside of its image without a word
FAR = 10  # sides of its image: an outline that reaches further is of no picture
LONG = 1_000_000  # pixels: an outline may be this long, or longer around as many pixels as its image has
WORDS = 60  # characters of a name from the file that a message shows


@dataclass(frozen=True)
class Converted:
    """What came of converting COCO annotations.

    Attributes:
        masks: how many were written.
        classes: name of each mask value except 255, which is no class.
        notes: what was left out or taken in a way that may surprise, one sentence each.
    """

    masks: int
    classes: dict[int, str]
    notes: list[str]


def convert(annotations: Path, images: Path, out: Path, pngs: Path | None = None, replace: bool = False) -> Converted:
    """Write a mask for each image that COCO annotations list, as grey PNGs of class values, with a legend.

    Instances: 0 is background, and where objects overlap, the later one is on top; crowds are ignored, except for
    objects drawn in them. Panoptic: pixels without a category are ignored, and so are crowds. If every outline is
    marked as a crowd, as some tools mark masks drawn by brush, they are objects. Categories get values from 1 up, in
    the order of their ids; those without an object in these images get none. Ids are the same as numbers and as text.

    Args:
        annotations: the JSON file.
        images: folder of images; listed images that are not in it are left out.
        out: folder for the masks.
        pngs: folder of a panoptic file's PNGs; None: the one beside the JSON file, with its name.
        replace: whether masks that this function wrote there before may be replaced.

    Raises:
        InputError: no such annotations, something wrong in them, most of them belong to no image or show nothing, or
            a folder in the way.
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
    source = _Source(annotations, images, pngs)
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


def _shown(value: Any) -> str:
    """A value from the file as a message shows it: short, on one line, without control characters."""
    text = value if isinstance(value, str) and value.isprintable() else Short().repr(value)
    return text if len(text) <= WORDS else f"{text[:WORDS]}..."


def _read_lists(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The lists of images, annotations and categories."""
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected COCO annotations") from error
    except RecursionError as error:
        raise _fault(path, "its lists are nested too deeply") from error
    except ValueError as error:
        raise _fault(path, f"not JSON ({error})") from error
    lists = {}
    for key in ("images", "annotations", "categories"):
        lists[key] = value.get(key) if isinstance(value, dict) else None
        if not isinstance(lists[key], list) or not all(isinstance(one, dict) for one in lists[key]):
            raise _fault(path, f"no list of objects '{key}'")
        if not lists[key]:
            raise _fault(path, f"its list '{key}' is empty: no {key}")
    return lists


@dataclass(frozen=True, slots=True)
class _Object:
    """An annotation, or a segment of a panoptic one.

    Attributes:
        name: of it, for messages.
        number: of a panoptic segment in its PNG.
        category: the id of its category.
        outline: polygons or run lengths of an instance; None if it has none.
        crowd: whether it is marked as one.
    """

    name: str
    number: int
    category: str
    outline: Any
    crowd: bool


class _Source:
    """Annotations read from a file, and the images that they belong to."""

    def __init__(self, path: Path, images: Path, pngs: Path | None) -> None:
        self.path, self.images = path, images
        self.notes: list[str] = []
        self.classes: dict[int, str] = {}
        self.values: dict[str, int] = {}  # mask value of each category
        self.files: dict[str, Path] = {}  # by id, of the images that are here
        self.shapes: dict[str, tuple[int, int]] = {}
        self.objects: dict[str, list[_Object]] = defaultdict(list)  # by image
        self.rendered: dict[str, str] = {}  # PNG of each image, for panoptic annotations
        lists = _read_lists(path)
        self.panoptic = any("segments_info" in one for one in lists["annotations"])
        names = self._read_categories(lists["categories"])
        listed = self._find(lists["images"])
        self._join(lists["annotations"], listed, names)
        self._drop_unlabelled(listed)
        self._check_sizes()
        self._name(names)
        self.pngs: _Files | None = None
        if self.panoptic:
            folder = pngs or path.with_suffix("")
            if not folder.is_dir():
                raise InputError(f"{folder}: no such folder; expected the PNGs of {path}; name it with --panoptic")
            self.pngs = _Files(images_below(folder), folder)

    def _id(self, one: Mapping[str, Any], key: str, what: str) -> str:
        """An id as text: 7, 7.0 and "7" are the same."""
        if key not in one:
            raise _fault(self.path, f"{what}: lacks '{key}'")
        value = one[key]
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if isinstance(value, str) and value.strip():
            return value.strip()
        raise _fault(self.path, f"{what}: '{key}' is {_shown(value)}, no id")

    def _read_categories(self, listed: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        """The name of each category, by id."""
        names: dict[str, str] = {}
        for at, one in enumerate(listed):
            key = self._id(one, "id", f"category {at + 1} of its list")
            name = one.get("name")
            if isinstance(name, int) and not isinstance(name, bool):
                name = str(name)
            if not isinstance(name, str) or not name.strip():
                raise _fault(self.path, f"category {_shown(key)}: its 'name' is {_shown(name)}, no text")
            if names.setdefault(key, name) != name:
                raise _fault(
                    self.path, f"category {_shown(key)} has two names, {_shown(names[key])} and {_shown(name)}"
                )
        return names

    def _find(self, listed: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        """Find the listed images; returns the names of all of them by id."""
        here = _Files(images_below(self.images), self.images)
        names: dict[str, str] = {}
        entries: dict[str, Mapping[str, Any]] = {}
        taken: dict[Path, str] = {}
        missing = []
        for at, one in enumerate(listed):
            key = self._id(one, "id", f"image {at + 1} of its list")
            name = one.get("file_name")
            if not isinstance(name, str) or not name.strip():
                raise _fault(self.path, f"image {_shown(key)}: its 'file_name' is {_shown(name)}, no text")
            if key in names:
                raise _fault(
                    self.path, f"the id {_shown(key)} is listed twice, for {_shown(names[key])} and {_shown(name)}"
                )
            names[key] = name
            file = here.find(name, self.path)
            if file is None:
                missing.append(name)
                continue
            if file in taken:
                raise _fault(
                    self.path,
                    f"{name_below(file, self.images)} is listed twice, as {_shown(taken[file])} and {_shown(name)}",
                )
            taken[file] = name
            self.files[key], entries[key] = file, one
        if not self.files:
            elsewhere = [str(file) for name in missing for file in here.of_that_name(name)]
            hint = f"; {few(elsewhere)} has the name, but is in another folder than listed" if elsewhere else ""
            raise InputError(
                f"{self.images}: none of the {len(listed):,} images of {self.path} are there "
                f"({few(map(_shown, missing))}){hint}; give the folder that their file_name starts from"
            )
        if missing:
            self.notes.append(
                f"{len(missing):,} of {len(listed):,} listed images are missing from {self.images}: "
                f"{few(map(_shown, missing))}"
            )
        if spare := [file for file in here.files if file not in taken]:
            self.notes.append(
                f"{len(spare):,} of {len(here.files):,} images in {self.images} are not listed, so get no mask: "
                f"{few(name_below(file, self.images) for file in spare)}"
            )
        for key, one in entries.items():
            self.shapes[key] = self._size(one, f"image {_shown(key)} ({_shown(names[key])})")
        return names

    def _size(self, one: Mapping[str, Any], what: str) -> tuple[int, int]:
        """Height and width of a listed image."""
        sides = []
        for key in ("height", "width"):
            if key not in one:
                raise _fault(self.path, f"{what}: lacks '{key}'")
            value = one[key]
            whole = isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value <= MAX_PIXELS
            if not whole or value != int(value):
                shown = f"the text {_shown(repr(value))}" if isinstance(value, str) else _shown(value)
                raise _fault(self.path, f"{what}: its '{key}' is {shown}, no number of pixels")
            sides.append(int(value))
        return sides[0], sides[1]

    def _join(self, annotations: Sequence[Mapping[str, Any]], listed: Mapping[str, str], known: Iterable[str]) -> None:
        """Give each image its objects."""
        known, seen, strangers, lost, twice = set(known), set(), [], Counter(), 0
        for at, one in enumerate(annotations):
            what = f"annotation {_shown(one['id'])}" if "id" in one else f"annotation {at + 1} of its list"
            image = self._id(one, "image_id", what)
            number = one.get("id")
            if isinstance(number, int | str):
                twice += str(number) in seen
                seen.add(str(number))
            if image not in listed:
                strangers.append(image)
                continue
            if self.panoptic:
                if image in self.rendered:
                    raise _fault(self.path, f"image {_shown(image)} has several panoptic annotations")
                found = self._segments(one, what)
                if not isinstance(one.get("file_name"), str):
                    raise _fault(self.path, f"{what}: its 'file_name' is {_shown(one.get('file_name'))}, no text")
                self.rendered[image] = one["file_name"]
            else:
                found = [self._object(one, what, 0)]
            for thing in found:
                if thing.category not in known:
                    lost[thing.category] += 1
            self.objects[image] += found
        if 2 * len(strangers) > len(annotations):
            raise _fault(
                self.path,
                f"{len(strangers):,} of {len(annotations):,} annotations have an image_id that belongs to no listed "
                f"image ({few(map(_shown, dict.fromkeys(strangers)))}; its images have ids "
                f"{few(map(_shown, listed))}); write it again with the tool that made it",
            )
        if strangers:
            self.notes.append(
                f"{len(strangers):,} of {len(annotations):,} annotations have an image_id that belongs to no listed "
                f"image and are left out: {few(map(_shown, dict.fromkeys(strangers)))}"
            )
        if lost:
            raise _fault(
                self.path,
                f"{lost.total():,} annotations of categories {few(map(_shown, _by_number(lost)))}, which it does not "
                "list; add these to its categories, or remove the annotations",
            )
        if twice:
            self.notes.append(f"{twice:,} annotations have the id of another one; all of them are used")

    def _segments(self, one: Mapping[str, Any], what: str) -> list[_Object]:
        """The segments of a panoptic annotation."""
        segments = one.get("segments_info")
        if not isinstance(segments, list) or not all(isinstance(segment, dict) for segment in segments):
            raise _fault(self.path, f"{what}: no list of objects 'segments_info', which other annotations have")
        found: dict[int, _Object] = {}
        for at, segment in enumerate(segments):
            which = f"{what}, segment {at + 1} of its list"
            number = self._id(segment, "id", which)
            if not re.fullmatch(r"[0-9]{1,8}", number) or not 0 < int(number) < 2**24:
                raise _fault(self.path, f"{which}: its 'id' is {_shown(number)}, no number from 1 to 16777215")
            if int(number) in found:
                raise _fault(self.path, f"{what}: segment {number} is listed twice")
            found[int(number)] = self._object(segment, f"{what}, segment {number}", int(number))
        return list(found.values())

    def _object(self, one: Mapping[str, Any], what: str, number: int) -> _Object:
        crowd = one.get("iscrowd", 0)
        # Text '0' would be true.
        if isinstance(crowd, list | dict) or crowd not in (0, 1, None, "", "0", "1"):
            raise _fault(self.path, f"{what}: its 'iscrowd' is {_shown(crowd)}; 0 or 1 is expected")
        outline = one.get("segmentation")
        if isinstance(outline, list):
            outline = [polygon for polygon in outline if polygon != []]
        outline = None if outline in ([], {}, "", None) else outline
        return _Object(what, number, self._id(one, "category_id", what), outline, crowd in (1, "1"))

    def _has_pixels(self, thing: _Object) -> bool:
        return self.panoptic or thing.outline is not None

    def _drop_unlabelled(self, listed: Mapping[str, str]) -> None:
        """Settle what crowds are, and what images without annotations become."""
        drawn = [thing for things in self.objects.values() for thing in things if self._has_pixels(thing)]
        crowds = sum(thing.crowd for thing in drawn)
        self.crowds_are_objects = bool(drawn) and crowds == len(drawn)
        if self.crowds_are_objects:
            self.notes.append(
                f"all {crowds:,} outlines are marked as crowds (iscrowd 1), as some tools mark what is drawn by "
                "brush: they are taken as objects"
            )
        else:
            here = [thing for key in self.files for thing in self.objects.get(key, ()) if self._has_pixels(thing)]
            if crowds := sum(thing.crowd for thing in here):
                self.notes.append(
                    f"{crowds:,} of {len(here):,} outlines are marked as crowds (iscrowd 1): their pixels are ignored; "
                    "if they are objects, set their iscrowd to 0"
                )
        if self.panoptic:
            bare = [key for key in self.files if key not in self.rendered]
            for key in bare:
                del self.files[key], self.shapes[key]
            if bare:
                self.notes.append(
                    f"{len(bare):,} images are not annotated and left out: {few(_shown(listed[key]) for key in bare)}"
                )
            if not self.files:
                raise _fault(self.path, f"none of its annotations is of an image in {self.images}")
        elif blank := sum(not self.objects.get(key) for key in self.files):
            self.notes.append(
                f"{blank:,} of {len(self.files):,} images have no annotations; their masks are all background"
            )

    def _check_sizes(self) -> None:
        """Compare the images' own sizes with the listed ones."""
        wrong = []
        for key, path in tqdm(self.files.items(), desc="look at images", unit="image", disable=None, leave=False):
            height, width = self.shapes[key]
            try:
                with Image.open(path, formats=FORMATS) as image:
                    own = image.size[::-1]
                    turned = (width, height) == own and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            except Exception:  # packing says what is wrong with such a file
                own, turned = (height, width), False
            if (height, width) != own and not turned:
                wrong.append(f"{name_below(path, self.images)} has {own[0]} x {own[1]}, listed {height} x {width}")
            elif height * width > MAX_PIXELS:
                wrong.append(f"{name_below(path, self.images)} has more than {MAX_PIXELS:,} pixels")
        if wrong:
            raise _fault(
                self.path,
                f"{len(wrong):,} of {len(self.files):,} images have another size than it lists (height x width): "
                f"{few(wrong)}; use the images that were annotated",
            )

    def _name(self, names: Mapping[str, str]) -> None:
        """Give values and names to the categories that have an object in these images."""
        every = Counter(thing.category for key in self.files for thing in self.objects.get(key, ()))
        used = Counter(
            thing.category
            for key in self.files
            for thing in self.objects.get(key, ())
            if self._has_pixels(thing) and not self._is_ignored(thing)
        )
        if not used:
            drawn = any(self._has_pixels(thing) for key in self.files for thing in self.objects.get(key, ()))
            why = "an annotation"
            if every:
                why = "an outline that is not a crowd" if drawn else "an outline, only boxes or nothing"
            raise _fault(
                self.path,
                f"no image in {self.images} has {why} ({every.total():,} annotations there, "
                f"{sum(map(len, self.objects.values())):,} in all): no annotations to make masks from",
            )
        if len(used) >= MAX_CLASSES:
            raise InputError(f"{self.path}: {len(used)} categories; masks hold at most {MAX_CLASSES - 1}; merge some")
        if unused := [key for key in names if key not in every]:
            self.notes.append(
                f"{len(unused)} of {len(names)} categories have no annotations in these images, so no class: "
                f"{few(_shown(names[key]) for key in unused)}"
            )
        if lost := [key for key in every if key not in used]:
            self.notes.append(
                f"{len(lost)} of {len(names)} categories have nothing but crowds or boxes, so no class: "
                f"{few(f'{_shown(names[key])} ({every[key]:,})' for key in lost)}"
            )
        if not self.panoptic:
            self.classes[0] = BACKGROUNDS[0]
        taken: dict[str, str] = {}  # what each name was made from: categories with the same name are one class
        for value, category in enumerate(_by_number(used), 1):
            name = re.sub(r"[^\w .()/+-]", "_", names[category]).strip()[:NAME].strip()
            name = name if re.match(r"\w", name) else f"class_{value}"
            if taken.setdefault(name, names[category]) != names[category]:
                name = f"{name[: NAME - 4]}_{value}"
            self.values[category], self.classes[value] = value, name

    def _is_ignored(self, thing: _Object) -> bool:
        return thing.crowd and not self.crowds_are_objects

    def _value(self, thing: _Object) -> int:
        return IGNORE if self._is_ignored(thing) else self.values[thing.category]

    def write(self, folder: Path) -> int:
        """Write the masks; returns their number."""
        stems = Counter(path.relative_to(self.images).with_suffix("") for path in self.files.values())
        self.counts: Counter[str] = Counter()
        self.nothing: list[str] = []  # objects without a pixel
        written = 0
        for image, path in tqdm(self.files.items(), desc="write masks", unit="mask", disable=None, leave=False):
            mask = self._panoptic(image) if self.panoptic else self._instances(image)
            if (mask == IGNORE).all():
                self.counts["empty"] += 1
                continue
            name = path.relative_to(self.images)
            alone = stems[name.with_suffix("")] == 1
            to = folder / (name.with_suffix(".png") if alone else name.with_name(f"{name.name}.png"))
            to.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(to)
            written += 1
        self._account(written)
        return written

    def _account(self, written: int) -> None:
        """Say what was found while drawing; refuse what cannot be right."""
        drawn, nothing = self.counts["drawn"], len(self.nothing)
        if 2 * nothing > drawn:
            raise _fault(
                self.path,
                f"{nothing:,} of {drawn:,} outlines cover no pixel of their image ({few(self.nothing)}); "
                "coordinates must be pixels of the listed images, from their upper left corner",
            )
        if nothing:
            self.notes.append(f"{nothing:,} of {drawn:,} outlines cover no pixel of their image: {few(self.nothing)}")
        if self.counts["outside"]:
            self.notes.append(
                f"{self.counts['outside']:,} of {drawn:,} outlines reach more than {OUTSIDE} pixels outside of their "
                "image and are cut off there; many may mean that images of another size were annotated"
            )
        if self.counts["boxes"]:
            self.notes.append(f"{self.counts['boxes']:,} annotations have a box but no outline; they are left out")
        if self.counts["empty"]:
            self.notes.append(f"{self.counts['empty']:,} images have no pixel with a category; they are left out")
        if not written:
            raise _fault(self.path, "no image with a category")

    def _instances(self, image: str) -> np.ndarray:
        """An image's class values, uint8 [H, W]."""
        mask = np.zeros(self.shapes[image], np.uint8)
        # Crowds first, so that objects drawn in them stay on top.
        for thing in sorted(self.objects.get(image, []), key=lambda thing: not self._is_ignored(thing)):
            if thing.outline is None:
                self.counts["boxes"] += 1
                continue
            try:
                region, outside = _region(thing.outline, *mask.shape)
            except Exception as error:  # pycocotools raises whatever its C code runs into
                raise _fault(self.path, f"{thing.name}: not a valid outline ({error})") from error
            self.counts["drawn"] += 1
            self.counts["outside"] += outside
            if not region.any():
                self.nothing.append(thing.name)
            mask[region] = self._value(thing)
        return mask

    def _panoptic(self, image: str) -> np.ndarray:
        """An image's class values, uint8 [H, W]."""
        path = self.pngs.find(self.rendered[image], self.path)
        if path is None:
            raise InputError(f"{self.path}: the PNG {_shown(self.rendered[image])} is not in its folder; restore it")
        try:
            with Image.open(path, formats=["PNG"]) as png:
                own = png.size[::-1]
                rgb = np.asarray(png.convert("RGB")).astype(np.int64) if own == self.shapes[image] else None
        except Exception as error:  # each kind of damage raises its own error
            raise InputError(f"{path}: cannot be read as a PNG ({error}); restore it") from error
        if rgb is None:
            listed = "{} x {}".format(*self.shapes[image])
            raise InputError(f"{path}: is {own[0]} x {own[1]} (height x width), but its image {listed}; restore it")
        numbers, places = np.unique(rgb @ (1, 256, 65536), return_inverse=True)
        known = {thing.number: self._value(thing) for thing in self.objects[image]}
        known[0] = IGNORE
        if strange := [number for number in numbers.tolist() if number not in known]:
            raise InputError(f"{path}: segments {few(strange)}, which {self.path} does not list; restore it")
        shown = set(numbers.tolist())
        self.counts["drawn"] += len(self.objects[image])
        self.nothing += [thing.name for thing in self.objects[image] if thing.number not in shown]
        return np.array([known[number] for number in numbers.tolist()], np.uint8)[places].reshape(rgb.shape[:2])


def _by_number(ids: Iterable[str]) -> list[str]:
    """Ids in order: numbers by their size, then text."""
    return sorted(ids, key=lambda key: (0, int(key), key) if re.fullmatch(r"-?[0-9]{1,300}", key) else (1, 0, key))


class _Files:
    """The files of a folder, by the names that annotations give them."""

    def __init__(self, files: Iterable[Path], folder: Path) -> None:
        self.files = list(files)
        self.exact: dict[str, list[Path]] = defaultdict(list)
        self.tails: dict[str, list[Path]] = defaultdict(list)  # by every end of its path: 'a/b.jpg' and 'b.jpg'
        for file in self.files:
            name = unicodedata.normalize("NFC", name_below(file, folder))
            self.exact[name].append(file)
            for tail in _tails(name):
                self.tails[tail].append(file)

    def find(self, name: str, said_by: Path) -> Path | None:
        """The file that is meant; None if there is none.

        Folders at the start may be missing from either name. A file of the same name in another folder is not meant.

        Raises:
            InputError: several may be meant.
        """
        name = _path_of(name)
        found = self.exact.get(name) or self.tails.get(name)
        if not found:
            found = next((self.exact[tail] for tail in _tails(name) if tail in self.exact), [])
            if len(found) == 1 and len(self.tails[_bare(name)]) > 1 and found[0] in self.exact.get(_bare(name), ()):
                found = self.tails[_bare(name)]
        if len(found) > 1:
            raise InputError(
                f"{said_by}: {_shown(name)} may be {' or '.join(map(str, found[:3]))}; list it with its folder, or "
                "rename one"
            )
        return found[0] if found else None

    def of_that_name(self, name: str) -> list[Path]:
        """Files with the same name in any folder."""
        return self.tails.get(_bare(_path_of(name)), [])


def _path_of(name: str) -> str:
    """A listed name as a path with '/', whatever system or server it is from."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name):
        with suppress(ValueError):  # no address after all
            name = unquote(urlsplit(name).path)
    parts = name.replace("\\", "/").split("/")
    return unicodedata.normalize("NFC", "/".join(part for part in parts if part not in ("", ".")))


def _tails(name: str) -> list[str]:
    """Every end of a path, the longest first."""
    parts = name.split("/")
    return ["/".join(parts[at:]) for at in range(len(parts))]


def _bare(name: str) -> str:
    return name.rpartition("/")[2]


def _region(outline: Any, height: int, width: int) -> tuple[np.ndarray, bool]:
    """Pixels of an outline, bool [H, W], and whether it reaches outside of its image.

    Raises:
        ValueError: it is not valid.
    """
    if isinstance(outline, list):
        return _filled(outline, height, width)
    if not isinstance(outline, dict):
        raise ValueError("neither polygons nor run lengths")
    for key in ("size", "counts"):
        if key not in outline:
            raise ValueError(f"run lengths without '{key}'")
    size = outline["size"]
    if not isinstance(size, list) or size != [height, width]:
        raise ValueError(f"size {_shown(size)}, but its image is {height} x {width} (height x width)")
    counts = outline["counts"]
    runs = _run_lengths(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not set(map(type, runs)) <= {int}:
        raise ValueError("counts that are no whole numbers")
    if min(runs, default=0) < 0 or sum(runs) != height * width:
        raise ValueError("counts that do not sum to its image's pixels")
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return inside.reshape(width, height).T, False


def _run_lengths(text: str) -> list[int]:
    """The run lengths that COCO's text stands for: five bits a character, each but the first three as a difference.

    pycocotools would read and write beyond its memory where the text is damaged.
    """
    runs: list[int] = []
    value = shift = 0
    for code in text.encode("ascii"):
        bits = code - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError("counts that are no run lengths")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("counts that end early")
    return runs


def _filled(polygons: Sequence[Any], height: int, width: int) -> tuple[np.ndarray, bool]:
    """Pixels in any of some polygons, bool [H, W], and whether one reaches outside."""
    from pycocotools import mask as rle

    longest, low, high = 0.0, np.zeros(2), np.zeros(2)
    for polygon in polygons:
        if not isinstance(polygon, list) or not set(map(type, polygon)) <= {int, float}:
            raise ValueError("a polygon that is not a list of numbers x1, y1, x2, y2, ...")
        # pycocotools would take four numbers as a box.
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError("a polygon with fewer than three points or an odd number of values")
        points = np.array(polygon, float).reshape(-1, 2)
        if not np.isfinite(points).all():
            raise ValueError("a polygon with values that are no numbers")
        low, high = np.minimum(low, points.min(0)), np.maximum(high, points.max(0) - (width, height))
        longest += np.abs(np.diff(points, axis=0, append=points[:1])).max(1).sum()
    beyond = max(-low.min(), high.max())
    # pycocotools takes memory for each pixel of an outline, wherever it is.
    if beyond > FAR * max(height, width):
        raise ValueError(f"a point {beyond:.3g} pixels outside of its image of {height} x {width} (height x width)")
    if longest > max(LONG, 4 * height * width):
        raise ValueError(f"an outline of {longest:.3g} pixels in an image of {height} x {width}")
    region = rle.decode(rle.merge(rle.frPyObjects(polygons, height, width))).astype(bool)
    return region, beyond > OUTSIDE
