"""A user's own folders: which images and masks they hold, which belong together, and how they are split.

Only names are read here, no pixels.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from viny.runtime.errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
ENDINGS = frozenset(suffix[1:] for suffix in IMAGE_SUFFIXES)
# Endings of pictures and scans that are not read: whoever has such files expects them to be used.
PICTURES = re.compile(
    "hei[cf]|hif|avif|jxl|jp2|j2k|jp[xf]|gif|jfif|jpe|svg|ps[db]|xcf|ai|eps|pdf|ico|pcx|tga|dds|p[pgbnf]m|exr|hdr|"
    "raw|ne[fw]|nrw|cr[23w]|arw|sr[2w]|dng|orf|rw[2l]|raf|pef|x3f|3fr|iiq|dcm|dicom|nii|mh[ad]|nrrd|np[yz]|h5|hdf5|mat|"
    "fits?|czi|lif|nd2|lsm|svs|ndpi|mrxs|scn|vsi|oif|zarr|mp4|m4v|mov|avi|mkv|webm"
)
# Folders that systems and programs leave beside a user's files, often with small copies of them.
SYSTEM = frozenset(
    ("@eadir", "@tmp", "@recycle", "#recycle", "#snapshot", "__macosx", "$recycle.bin", "lost+found", "__pycache__")
) | {"system volume information"}
STORES = frozenset((".git", ".dvc", ".datalad", ".hg", ".svn"))  # their files are other files' contents or history
SMALL_COPIES = re.compile(r"(?:.*[-_. ])?thumb(?:nail)?s?", re.IGNORECASE)
PARTS = {"train": 0, "test": 1}  # as in parts.npy; 'none' leaves an image out
BY_FOLDERS = "folders"  # as a split: the names of the images' own folders say it
PART_FOLDERS = re.compile(
    r"(?:(?P<train>train(?:ing|val)?)|(?P<val>val(?:id(?:ation)?)?|dev)|(?P<test>test(?:ing)?))"
    r"(?:[-_. ]?(?:set|data|split|images?|imgs?|masks?|labels?|\d+))?",
    re.IGNORECASE,
)
# Folders, within each part's, for images and for masks, as some tools export them.
IMAGE_FOLDERS = frozenset(("images", "image", "imgs", "img", "img_dir", "jpegimages", "rgb"))
MASK_FOLDERS = frozenset(
    ("masks", "mask", "labels", "label", "annotations", "ann_dir", "segmentationclass", "gt", "groundtruth")
)
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


def composed(name: str) -> str:
    """A name in Unicode's composed form: macOS may write é as e and an accent, other systems as one character."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


@dataclass
class Found:
    """What a folder and its subfolders hold.

    Attributes:
        folder: the folder.
        images: its image files, in the order of their paths.
        names: their paths below it, with '/' on every system.
        missing: links to images that lead to no file, such as those of git-annex and DVC before the content is fetched.
        passed_over: how many other files there are, by their ending in lower case; '' for none.
        hidden: how many files have names that begin with a dot.
        unseen: hidden folders and those of the system, which are not entered.
        again: links to folders that are listed already.
        small: how many images have names, or lie in folders with names, as thumbnails have.
        subfolders: folders directly in it that were not entered, if only the folder itself was listed.
    """

    folder: Path
    images: list[Path] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    missing: list[Path] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    hidden: int = 0
    unseen: list[Path] = field(default_factory=list)
    again: int = 0
    small: int = 0
    subfolders: list[Path] = field(default_factory=list)

    @property
    def pictures(self) -> dict[str, int]:
        """How many files are pictures of formats that are not read, by ending."""
        return {ending: count for ending, count in sorted(self.passed_over.items()) if PICTURES.fullmatch(ending)}

    def report(self) -> list[str]:
        """What was passed over, and what was taken that may not be meant, one line each; nothing if there is none."""
        lines = []
        if self.missing:
            lines.append(
                f"{self.folder}: {len(self.missing)} links that lead nowhere, left out: "
                f"{few(path.name for path in self.missing)}"
            )
        if pictures := self.pictures:
            lines.append(
                f"{self.folder}: {sum(pictures.values())} files have formats that are not read and are passed over: "
                f"{_counts(pictures)}; convert them to JPEG or PNG"
            )
        others = {ending: n for ending, n in sorted(self.passed_over.items()) if not PICTURES.fullmatch(ending)}
        said = [_counts(others)] * bool(others)
        said += [f"{self.hidden} hidden"] * bool(self.hidden)
        said += [f"folder {_with_count(path)}" for path in self.unseen[:SHOWN]]
        said += [f"{len(self.unseen) - SHOWN} more such folders"] * (len(self.unseen) > SHOWN)
        said += [f"{self.again} links to folders listed already"] * bool(self.again)
        if said:
            lines.append(f"{self.folder}: passed over besides: {', '.join(said)}")
        if self.small:
            lines.append(
                f"{self.folder}: {self.small} images are named as thumbnails, or lie in folders that are, and are "
                "taken like the others; move them away if they are small copies"
            )
        return lines


def _counts(endings: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {f'.{ending}' if ending else 'without an ending'}" for ending, count in endings.items())


def _with_count(folder: Path) -> str:
    """A folder's name, with the number of images in it and below."""
    name = folder.name if folder.name.isprintable() else ascii(folder.name)
    if folder.name in STORES:
        return name
    count = sum(_ending(file) in ENDINGS for _, _, files in os.walk(folder) for file in files)
    return f"{name} ({count} images)" if count else name


def _ending(name: str) -> str:
    """What follows the last dot, in lower case."""
    return name.rpartition(".")[2].lower() if "." in name else ""


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be listed ({error.strerror or error}); give the right to read it, or move it away"
        ) from error


def _kind(entry: os.DirEntry[str]) -> str:
    """'folder', 'file', 'missing' for a link that leads to neither, or 'other', such as a pipe."""
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
        return "missing" if entry.is_symlink() else "other"
    except OSError:  # a link to itself, or to where this user may not look
        return "missing"


def list_below(folder: Path, deep: bool = True) -> Found:
    """List the image files in a folder. This is the one function that lists users' folders.

    Hidden files and folders, those of the system, and files that are no images are passed over and counted. Each folder
    is listed once, whatever links lead to it, by its own path if that is below `folder`.

    Args:
        folder: the folder.
        deep: whether its subfolders are listed too, at any depth.

    Raises:
        InputError: no such folder, one that cannot be listed, or a name that cannot be written down.
    """
    if not os.path.isdir(folder):
        raise InputError(f"{folder}: no such folder; expected a folder of images ({', '.join(IMAGE_SUFFIXES)})")
    out = Found(folder)
    found: list[tuple[str, str, str]] = []  # in Unicode's composed form, as it is, and the whole path
    seen: set[tuple[int, int]] = set()
    todo, links = [("", os.fspath(folder))], []
    while todo or links:
        if not todo:  # links come last, in order, so that a folder's own path wins
            links.sort(reverse=True)
            todo.append(links.pop())
        above, here = todo.pop()
        entries = _entries(here)
        try:
            about = os.stat(here)
        except OSError as error:
            raise InputError(f"{here}: cannot be listed ({error.strerror}); has it been moved?") from error
        if about.st_ino:  # some network file systems have none
            if (about.st_dev, about.st_ino) in seen:
                out.again += 1
                continue
            seen.add((about.st_dev, about.st_ino))
        small = bool(SMALL_COPIES.fullmatch(os.path.basename(here)))
        for entry in entries:
            name, kind = entry.name, _kind(entry)
            if name[0] == "." or (kind == "folder" and name.lower() in SYSTEM):  # also '._<name>', left by macOS
                if kind == "folder":
                    out.unseen.append(Path(entry.path))
                else:
                    out.hidden += 1
                continue
            if kind == "folder":
                check_name(name, Path(here))
                if deep:
                    (links if entry.is_symlink() else todo).append((f"{above}{name}/", entry.path))
                else:
                    out.subfolders.append(Path(entry.path))
                continue
            ending = _ending(name)
            if kind == "file" and ending in ENDINGS:
                check_name(name, Path(here))
                below = f"{above}{name}"
                found.append((composed(below), below, entry.path))
                out.small += small or bool(SMALL_COPIES.fullmatch(name.rpartition(".")[0]))
            elif kind == "missing" and (ending in ENDINGS or "." not in name):  # without an ending: perhaps a folder
                check_name(name, Path(here))
                out.missing.append(Path(entry.path))
            else:
                known = ending.isascii() and ending.isalnum() and len(ending) <= 8
                out.passed_over[ending if known else ""] += 1
    found.sort()
    out.names = [below for _, below, _ in found]
    out.images = [Path(path) for _, _, path in found]
    out.subfolders.sort(key=lambda path: composed(path.name))
    for paths in (out.missing, out.unseen):
        paths.sort()
    return out


def check_some(found: Found) -> None:
    """Refuse a folder without images.

    Raises:
        InputError: there are none.
    """
    if not found.images and not found.missing:
        passed = f", found {_counts(dict(found.passed_over.most_common(SHOWN)))}" if found.passed_over else ""
        convert = "; convert them to JPEG or PNG" if found.pictures else ""
        raise InputError(
            f"{found.folder}: no images in it or below; expected files ending in {', '.join(IMAGE_SUFFIXES)}{passed}"
            f"{convert}"
        )


def check_missing(found: Sequence[Found], skip: bool = False) -> None:
    """Refuse images that are links to no file.

    Args:
        found: what is in the folders.
        skip: whether such links may be left out, up to half of the images.

    Raises:
        InputError: there are such links, or too many.
    """
    missing = [path for one in found for path in one.missing]
    count = len(missing) + sum(len(one.images) for one in found)
    if not missing or (skip and 2 * len(missing) <= count):
        return
    way_out = "more than half, which on_bad_image: skip does not leave out"
    if not skip:
        way_out = "or set on_bad_image: skip to leave them out"
    raise InputError(
        f"{missing[0].parent}: {len(missing)} of {count} files are links that lead nowhere ({few(missing)}); fetch "
        f"their content (git annex get, dvc pull), or remove the links; {way_out}"
    )


def together(folder: Path, found: Sequence[Found]) -> Found:
    """What is in several folders, as if it were in one."""
    out = Found(folder)
    for one in found:
        for name in ("images", "names", "missing", "unseen", "subfolders"):
            getattr(out, name).extend(getattr(one, name))
        out.passed_over.update(one.passed_over)
        out.hidden, out.again, out.small = out.hidden + one.hidden, out.again + one.again, out.small + one.small
    return out


def images_below(folder: Path) -> list[Path]:
    """Every image file in a folder and its subfolders, in the order of their paths.

    Raises:
        InputError: see `list_below`, `check_some` and `check_missing`.
    """
    found = list_below(folder)
    check_some(found)
    check_missing([found])
    return found.images


def same_files(some: Iterable[Path], others: Iterable[Path]) -> list[Path]:
    """Those files that are among others too, whatever links lead to them; not their copies."""
    known = set(map(_identity, others))
    return [path for path in some if _identity(path) in known]


def _identity(path: Path) -> tuple[int, int] | Path:
    try:
        about = os.stat(path)
    except OSError:  # gone since it was listed
        return path
    return about.st_dev, about.st_ino


def name_below(path: Path, folder: Path) -> str:
    """A file's path below a folder, with '/' on every system."""
    return path.relative_to(folder).as_posix()


def stem_below(path: Path, folder: Path) -> str:
    """The same without the file's extension."""
    return path.relative_to(folder).with_suffix("").as_posix()


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
    for path, name in names.items():  # <part>/images/x.jpg and <part>/masks/x.png
        *above, last = name.split("/")
        for kind, files in ((IMAGE_FOLDERS, image_files), (MASK_FOLDERS, mask_files)):
            at = [i for i, folder in enumerate(above) if folder.lower() in kind]
            if len(at) == 1:
                files[path] = "/".join([*above[: at[0]], *above[at[0] + 1 :], last])
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


def pair(images: Path, masks: Path, mask_suffix: str = "", skip_missing: bool = False) -> Pairs:
    """Match images and masks by their names.

    A mask belongs to the image with the same path below its folder, extensions aside; if the folders differ, to the
    image with the same name, if no other image or mask has that name; if that fails, likewise with capital and small
    letters alike. `x.jpg.png` is the mask of `x.jpg`. Names are compared in Unicode's composed form.

    Args:
        images: folder of images.
        masks: folder of masks; may be the same folder, or one inside it.
        mask_suffix: what a mask's name has between its image's name and the extension, such as '_mask'.
        skip_missing: whether links to no file may be left out.

    Raises:
        InputError: a folder is missing or empty, a mask has two images or an image two masks, or nothing matches.
    """
    image_files, mask_files, found = _in_two(images, masks, mask_suffix)
    for one in found:
        check_some(one)
    check_missing(found, skip_missing)
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
    return {path: composed(name) for path, name in every}


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
