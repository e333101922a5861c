"""Which image a mask belongs to, by their names."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from viny.data.folders import SHOWN, Found, check_missing, check_some, composed, few, list_below
from viny.data.parts import for_images, for_masks, of_either, part_of
from viny.runtime.errors import InputError

# Folders, within each part's, for images and for masks, as some tools export them.
IMAGE_FOLDERS = frozenset(("images", "image", "imgs", "img", "img_dir", "jpegimages", "rgb"))
MASK_FOLDERS = frozenset(
    ("masks", "mask", "labels", "label", "annotations", "ann_dir", "segmentationclass", "gt", "groundtruth")
)


@dataclass(frozen=True)
class Pairs:
    """Images and their masks, in the same order, and whatever has no partner.

    Attributes:
        images, masks: those that belong together.
        names: the images' paths below their folder.
        images_without_mask, masks_without_image: the rest.
        several: masks without an image whose name fits several images, or is that of several masks.
        elsewhere: masks in another subfolder than their images, joined by name alone.
        other_case: masks that were joined although capital and small letters of their names differ.
        found: what is in the folders.
    """

    images: list[Path]
    masks: list[Path]
    names: list[str]
    images_without_mask: list[Path]
    masks_without_image: list[Path]
    several: list[Path]
    elsewhere: list[Path]
    other_case: list[Path]
    found: list[Found]

    def report(self) -> list[str]:
        """What did not match, and what was passed over, one line each; nothing if there is none."""
        further = _further(self)
        lines = []
        for files, said in (
            (self.images_without_mask, "images without a mask, left out"),
            (self.masks_without_image, "masks without an image"),
            (self.several, "of these masks, with a name that several images or masks have, so that none is matched"),
            (further, "of these masks, with more added to the name of an image that has a mask, and not read"),
            (self.elsewhere, "masks matched by name alone, as image and mask are in subfolders of different names"),
            (self.other_case, "masks matched although capital and small letters differ"),
        ):
            if files:
                lines.append(f"{said}: {len(files)} ({few(path.name for path in files)})")
        blurred = [path.name for path in self.masks if path.suffix.lower() in (".jpg", ".jpeg")]
        if blurred:
            lines.append(
                f"masks saved as JPEG, which blurs values; export them as PNG: {len(blurred)} ({few(blurred)})"
            )
        return lines + [line for one in self.found for line in one.report()]


def _further(pairs: Pairs) -> list[Path]:
    """Masks without an image whose names begin with that of an image with a mask, as when each object has a mask."""
    known = {composed(path.stem) for path in pairs.images}
    several = set(pairs.several)
    rest = [(path, composed(path.stem)) for path in pairs.masks_without_image if path not in several]
    return [
        path for path, stem in rest if any(stem[:at] in known and not stem[at].isalnum() for at in range(1, len(stem)))
    ]


def _in_two(images: Path, masks: Path, mask_suffix: str) -> tuple[dict[Path, str], dict[Path, str], list[Found]]:
    """The images, and the masks, of one folder or two, each with the name by which they are matched."""
    if not (os.path.isdir(images) and os.path.isdir(masks) and os.path.samefile(images, masks)):
        found = [list_below(images), list_below(masks)]
        return _apart(found[0], masks), _apart(found[1], images), found
    one = list_below(images)
    names = dict(zip(one.images, map(composed, one.names), strict=True))
    image_files, mask_files = {}, {}
    for path, name in names.items():  # <part>/images/x.jpg and <part>/masks/x.png, or images_<part> and masks_<part>
        *above, last = name.split("/")
        for kind, files in (("images", image_files), ("masks", mask_files)):
            at = [i for i, folder in enumerate(above) if _holds(folder) == kind]
            if len(at) == 1:
                here = [of_either(above[at[0]])] if part_of(above[at[0]]) else []
                files[path] = "/".join([*above[: at[0]], *here, *above[at[0] + 1 :], last])
    apart = not image_files.keys() & mask_files.keys() and len(image_files) + len(mask_files) == len(names)
    if image_files and mask_files and apart:
        return image_files, mask_files, [one]
    if not mask_suffix:
        raise InputError(
            f"{images}: images and masks are in one folder; set segmentation.mask_suffix to what tells a mask's "
            "name from its image's, such as _mask, or put them in subfolders images and masks"
        )
    suffix = composed(mask_suffix)
    mask_files = {path: name for path, name in names.items() if name.rpartition(".")[0].endswith(suffix)}
    return {path: name for path, name in names.items() if path not in mask_files}, mask_files, [one]


@lru_cache(maxsize=1 << 16)
def _holds(folder: str) -> str:
    """'images' or 'masks' if a folder's name says so; otherwise empty."""
    for kind, known in (("images", IMAGE_FOLDERS), ("masks", MASK_FOLDERS)):
        if folder.lower() in known:
            return kind
    if not part_of(folder):
        return ""
    return "masks" if for_masks(folder) else "images" if for_images(folder) else ""


def pair(images: Path, masks: Path, mask_suffix: str = "", skip_missing: bool = False) -> Pairs:
    """Match images and masks by their names.

    A mask belongs to the image with the same path below its folder, extensions aside, where `images_train` is the same
    as `labels_train`; if the folders differ, to the image with the same name, if no other image or mask has that name;
    if that fails, likewise with capital and small letters alike. `x.jpg.png` is the mask of `x.jpg`. Names are compared
    in Unicode's composed form.

    Args:
        images: folder of images.
        masks: folder of masks; may be the same folder, or one inside it.
        mask_suffix: what a mask's name has between its image's name and the extension, such as '_mask'.
        skip_missing: whether links to no file may be left out.

    Raises:
        InputError: a folder is missing or empty, a mask has two images or an image two masks, or nothing matches.
    """
    image_files, mask_files, found = _in_two(images, masks, mask_suffix)
    for one in found:  # each by itself: masks that are there do not make up for images that are not
        check_some(one)
        check_missing([one], skip_missing)
    of_image: dict[Path, Path] = {}
    several: set[Path] = set()
    elsewhere, other_case = [], []
    rest = list(mask_files)
    for any_case, any_folder in ((False, False), (False, True), (True, False), (True, True)):
        if not rest:
            break

        def key(name: str, case: bool = any_case, folder: bool = any_folder) -> str:
            name = name.rpartition("/")[2] if folder else name
            return name.casefold() if case else name

        fitting: dict[str, list[Path]] = defaultdict(list)
        for path, name in image_files.items():
            fitting[key(name)].append(path)
            fitting[key(name).rpartition(".")[0]].append(path)
        suffix = key(composed(mask_suffix))
        stems = {path: key(name).rpartition(".")[0] for path, name in mask_files.items()}
        same_name = Counter(stems.values())
        left = []
        for mask in rest:
            stem = stems[mask]
            fits = fitting.get(stem.removesuffix(suffix), []) if stem.endswith(suffix) else []
            certain = len(fits) == 1 and same_name[stem] == 1 and fits[0] not in of_image
            if fits and (certain or not (any_case or any_folder)):
                _join(of_image, fits, mask)
                other_case += [mask] * any_case
                if any_folder:
                    above = image_files[fits[0]].rpartition("/")[0], mask_files[mask].rpartition("/")[0]
                    elsewhere += [mask] * (all(above) and above[0] != above[1])
                continue
            left.append(mask)
            if fits and not any_case:
                several.add(mask)
        rest = left
    kept = [path for path in image_files if path in of_image]
    if not kept:
        hint = _hint([path.stem for path in image_files], [path.stem for path in mask_files], bool(several))
        raise InputError(
            f"{masks}: none of {len(mask_files)} masks ({few(p.name for p in mask_files)}) has the name of any of "
            f"{len(image_files)} images in {images} ({few(p.name for p in image_files)}); {hint}"
        )
    below = dict(zip(found[0].images, found[0].names, strict=True))
    return Pairs(
        kept,
        [of_image[path] for path in kept],
        [below[path] for path in kept],
        [path for path in image_files if path not in of_image],
        rest,
        [mask for mask in rest if mask in several],
        elsewhere,
        other_case,
        found,
    )


def _hint(images: Sequence[str], masks: Sequence[str], several: bool) -> str:
    """What to do if no mask has the name of an image."""
    if several:
        return "each name is that of several images or masks; give both folders the same subfolders"
    if guess := guess_suffix(images, masks):
        return f"set segmentation.mask_suffix (viny init: --mask-suffix) to {guess}"
    if many := suffixes(images, masks).most_common(SHOWN):
        shown = ", ".join(f"{suffix} ({count} masks)" for suffix, count in many)
        return f"set segmentation.mask_suffix (viny init: --mask-suffix) to one of {shown}"
    return "names must be the same except for their extension"


def _apart(found: Found, other: Path) -> dict[Path, str]:
    """The files of a folder that are not below another, unless all are, each with the name by which it is matched."""
    resolved = other.resolve()
    above = {name.rpartition("/")[0] for name in found.names}
    inside = {folder for folder in above if (found.folder / folder).resolve().is_relative_to(resolved)}
    every = zip(found.images, found.names, strict=True)
    if inside < above:
        every = ((path, name) for path, name in every if name.rpartition("/")[0] not in inside)
    return {path: _matched(composed(name)) for path, name in every}


def _matched(name: str) -> str:
    """A path with images_train and labels_train alike."""
    *above, last = name.split("/")
    return "/".join([*(of_either(folder) if _holds(folder) and part_of(folder) else folder for folder in above), last])


def _join(of_image: dict[Path, Path], fitting: Sequence[Path], mask: Path) -> None:
    if len(fitting) > 1:
        raise InputError(f"{mask}: is the mask of {_or(fitting)}? Keep one of these, or rename one")
    image = fitting[0]
    if image in of_image:
        raise InputError(f"{image}: has two masks, {_or([of_image[image], mask], 'and')}; keep one of them")
    of_image[image] = mask


def _or(paths: Sequence[Path], word: str = "or") -> str:
    """Names that can be told apart: those that look alike, since only their encodings of accents differ, in escapes."""
    alike = len({composed(str(path)) for path in paths}) < len(paths)
    return f" {word} ".join(ascii(str(path)) if alike else str(path) for path in paths)


def suffixes(images: Iterable[str], masks: Iterable[str]) -> Counter[str]:
    """How many masks' names add what to an image's name."""
    known = set(map(composed, images))
    found: Counter[str] = Counter()
    for mask in map(composed, masks):
        at = next((i for i in range(len(mask) - 1, 0, -1) if mask[:i] in known), None)
        if at is not None:
            found[mask[at:]] += 1
    return found


def guess_suffix(images: Iterable[str], masks: Iterable[str]) -> str:
    """What most masks' names add to an image's name; empty if nothing fits most of them."""
    masks = list(masks)
    found = suffixes(images, masks)
    suffix, count = found.most_common(1)[0] if found else ("", 0)
    return suffix if 2 * count > len(masks) else ""
