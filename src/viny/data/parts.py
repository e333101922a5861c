"""Which of a user's images are for training and which for testing: by a file, by their folders, or by chance."""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from viny.data.folders import composed, few, name_below, stem_below
from viny.runtime.errors import InputError

PARTS = {"train": 0, "test": 1}  # as in parts.npy; 'none' leaves an image out
BY_FOLDER = "folder"  # as a group: the folder that holds an image
ALONE = "\0"  # begins the groups of images that a pattern does not match
LEAST_GROUPS = 2  # in the test part: the spread between groups is the uncertainty
BY_FOLDERS = "folders"  # as a split: the names of the images' own folders say it
# What may stand around the part's word without telling one split from another.
FILLING = r"(?:sub)?sets?|data(?:sets?)?|splits?|images?|imgs?|pictures?|masks?|labels?|annot(?:ation)?s?|gts?|\d+"
PART_WORD = re.compile(
    rf"(?:{FILLING})?(?:(?P<train>tr(?:n|ain(?:ing|val)?)?)|(?P<val>val(?:id(?:ation)?)?|dev|eval(?:uation)?)|"
    r"(?P<test>ts|tst|test(?:ing|dev)?|h[oe]ld-?out)|(?P<pred>pred(?:ict(?:ions?)?)?|unlabell?ed))"
    rf"(?:{FILLING})*",
    re.IGNORECASE,
)
IMAGE_WORD = re.compile("images?|imgs?", re.IGNORECASE)
MASK_WORD = re.compile("masks?|labels?(?!l?ed)|annot(?:ation)?s?|gts?(?![a-z])", re.IGNORECASE)
JOINED = re.compile(r"\b(train|test|h[oe]ld)[-_. ]+(val|dev|out)(?![a-z])", re.IGNORECASE)  # one word, written as two


@lru_cache(maxsize=1 << 16)
def _read(name: str) -> tuple[str, str] | None:
    """The part that a folder's name means, if any, and what else is in the name and tells one split from another."""
    apart = re.sub("(?<=[a-z])(?=[A-Z])", " ", name)  # segTrain
    words = re.split("[-_. ]+", JOINED.sub(r"\1\2", apart))
    matches = [PART_WORD.fullmatch(word) for word in words]
    parts = {match.lastgroup for match in matches if match}
    rest = (word for word, match in zip(words, matches, strict=True) if not match)
    if len(parts) > 1 and "pred" in parts:  # train_unlabelled
        parts = {"pred"}
    if len(parts) != 1:
        return None
    return str(parts.pop()), " ".join(w.lower() for w in rest if not re.fullmatch(FILLING, w, re.IGNORECASE))


def part_of(name: str) -> str | None:
    """The part that a folder's name may mean, such as 'Training', 'seg_train', 'imagesTr' or 'test2017', if any.

    It is train, val, test, or pred for what has no labels. Whether the folder is a part, the folders beside it decide:
    see `parts_among`.
    """
    read = _read(name)
    return read[0] if read else None


def for_masks(name: str) -> bool:
    """Whether a folder's name says that it holds masks, as 'labels_train' and 'masksTs'."""
    return bool(MASK_WORD.search(name))


def for_images(name: str) -> bool:
    """Whether a folder's name says that it holds images, and not masks, as 'images_train' and 'imgsTs'."""
    return bool(IMAGE_WORD.search(name)) and not for_masks(name)


def of_either(name: str) -> str:
    """The name of a part's folder without the words for images or masks: 'train' for 'images_train', 'labels_train'."""
    return re.sub("([-_. ])[-_. ]+", r"\1", IMAGE_WORD.sub("", MASK_WORD.sub("", name))).strip("-_. ")


def only_parts(names: Iterable[str]) -> bool:
    """Whether folders' names are all those of parts, with the same words around, as seg_train and seg_pred."""
    read = list(map(_read, names))
    return bool(read) and None not in read and len({known[1] for known in read if known}) == 1


def parts_among(names: Iterable[str]) -> dict[str, str]:
    """The parts of those folders, of some that lie side by side, that split images as an author would.

    One must be for training and another for validation or testing, with the same words around: seg_train and seg_test
    are parts, 'train station' and 'test tube' are not.

    Args:
        names: all the folders' names.

    Returns:
        Train, val, test or pred, by name; empty if there is no split.
    """
    names = list(names)
    read = {name: known for name in names if (known := _read(name))}
    every = len(read) == len(names) and any(not rest for _, rest in read.values())  # train_a, train_b and val
    groups: dict[str, dict[str, str]] = defaultdict(dict)
    for name, (part, rest) in read.items():
        groups["" if every else rest][name] = part
    out: dict[str, str] = {}
    for group in groups.values():
        if "train" in group.values() and {"val", "test"} & set(group.values()):
            out |= group
    return out


def parts_of(names: Iterable[str]) -> list[str | None]:
    """The part that the folders in each image's path mean: train, val, test or pred; None if there is none, or several.

    Args:
        names: paths below the images' folder, with '/'.
    """
    names = list(names)
    said = _said_by_folders(names)
    known = {above: _decided(parts) for above, parts in said.items()}
    return [known[name.rpartition("/")[0]] for name in names]


def contradicting(names: Iterable[str]) -> list[str]:
    """Folders of images whose paths name two parts, each at a level that splits, as train/test with train/train."""
    return [above for above, parts in _said_by_folders(names).items() if parts and not _decided(parts)]


def _decided(parts: Sequence[str]) -> str | None:
    """What the levels of a path say together, outermost first: the innermost, if it is within what the others say."""
    within = all(outer == parts[-1] or (outer, parts[-1]) == ("train", "val") for outer in parts)
    return parts[-1] if parts and within else None


def _said_by_folders(names: Iterable[str]) -> dict[str, list[str]]:
    """The parts named in each image's folder, outermost first, at the levels that split."""
    paths = {above: above.split("/") for above in dict.fromkeys(name.rpartition("/")[0] for name in names)}
    beside: dict[tuple[str, ...], dict[str, None]] = defaultdict(dict)
    for folders in paths.values():
        for at, folder in enumerate(folders):
            beside[*folders[:at]][folder] = None
    splits = {above: parts_among(level) for above, level in beside.items()}
    said, below = {}, {}
    for above, folders in paths.items():
        at_level = [splits[*folders[:at]].get(folder) for at, folder in enumerate(folders)]
        said[above] = [part for part in at_level if part]
        last = max((at for at, part in enumerate(at_level) if part), default=-1)
        below[above] = folders[last + 1 :]
    # Parts that lie in different folders, as a/train and b/val: those below a split, and, where there is none, all.
    inner = parts_among(dict.fromkeys(f for above, rest in below.items() if said[above] for f in rest))
    whole = parts_among(dict.fromkeys(folder for folders in paths.values() for folder in folders))
    for above, rest in below.items():
        known = inner if said[above] else whole
        said[above] += [known[folder] for folder in rest if folder in known][-1:]
    return said


def own_split(names: Sequence[str]) -> dict[str, int]:
    """How many images are in folders for training, validation and testing, if that is a split; otherwise empty.

    'pred' counts images in folders for prediction, 'none' those in no such folder, or in folders that contradict.
    """
    found = Counter(part or "none" for part in parts_of(names))
    whole = found["train"] and (found["val"] or found["test"])
    return {part: found[part] for part in ("train", "val", "test", "pred", "none") if found[part]} if whole else {}


def unpartnered(names: Iterable[str]) -> list[str]:
    """Folders of images called for training and for testing or validation, with other words around, if all differ."""
    folders = dict.fromkeys(f for name in dict.fromkeys(n.rpartition("/")[0] for n in names) for f in name.split("/"))
    named = {folder: part for folder in folders if (part := part_of(folder))}
    found = set(named.values())
    return list(named) if "train" in found and found & {"val", "test"} else []


def split_in_names(names: Iterable[str]) -> dict[str, int]:
    """How many images have names that begin with a part, as train_01.jpg, if that is a split of all."""
    found: Counter[str] = Counter()
    for start, count in Counter(re.split("[-_. ]", name.rpartition("/")[2], maxsplit=1)[0] for name in names).items():
        found[part_of(start) or "none"] += count
    whole = found["train"] and (found["val"] or found["test"]) and not found["none"]
    return {part: found[part] for part in ("train", "val", "test", "pred") if found[part]} if whole else {}


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
        InputError: there are no such folders, they contradict each other, or an image is in none of them.
    """
    counts = own_split(names)
    if (not counts or "none" in counts) and (unclear := contradicting(names)):
        raise InputError(
            f"{folder}: split: {BY_FOLDERS}, but folders within folders name different parts: {few(unclear)}; give "
            "a file with lines image,part"
        )
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


def group_pattern(text: str) -> re.Pattern[str] | None:
    """The regular expression of a study's `segmentation.group`; None for BY_FOLDER.

    Raises:
        InputError: it is no regular expression with exactly one group.
    """
    if text == BY_FOLDER:
        return None
    expected = f"expected a regular expression with one group, such as '(.*)_[0-9]+$', or {BY_FOLDER}"
    try:
        pattern = re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(f"segmentation.group: {text!a} cannot be read ({error}); {expected}") from error
    if pattern.groups != 1:
        raise InputError(f"segmentation.group: {text!a} has {pattern.groups} groups; {expected}")
    return pattern


@dataclass(frozen=True)
class Groups:
    """Which images belong together, such as frames of one film.

    Attributes:
        of: the group of each image; that of one that the pattern does not match is its own, and begins with ALONE.
    """

    of: list[str]

    @classmethod
    def read(cls, names: Iterable[str], text: str) -> Groups:
        """The groups of images by their names.

        Args:
            names: paths below the images' folder, with '/'.
            text: `segmentation.group` of a study.

        Raises:
            InputError: see `group_pattern`.
        """
        pattern, of = group_pattern(text), []
        for name in map(composed, names):
            folder, _, last = name.rpartition("/")
            if pattern is None:
                of.append(folder)
                continue
            match = pattern.search(f"{folder}/{last.rpartition('.')[0] or last}" if folder else last.rpartition(".")[0])
            of.append(match[1] if match and match[1] is not None else f"{ALONE}{name}")
        return cls(of)

    @property
    def indices(self) -> np.ndarray:
        """A number for each image's group, int64 [N], from 0 in the order of the groups' names."""
        return np.unique(np.array(self.of), return_inverse=True)[1].astype(np.int64)

    @property
    def unmatched(self) -> int:
        """How many images the pattern does not match."""
        return sum(group.startswith(ALONE) for group in self.of)

    def check(self, text: str) -> None:
        """Refuse a pattern `text` that matches no image at all, so that nothing would be kept together.

        Raises:
            InputError: it does not match any.
        """
        if self.of and self.unmatched == len(self.of):
            name = min(self.of).removeprefix(ALONE)
            raise InputError(
                f"segmentation.group: {text!a} is found in none of the {len(self.of):,} images' names without their "
                f"endings, such as {name.rpartition('.')[0] or name!a}; mend it, or leave it out"
            )

    def said(self) -> str:
        """How many groups there are, in words."""
        sizes = Counter(group for group in self.of if not group.startswith(ALONE))
        ends = " to ".join(map(str, sorted({min(sizes.values(), default=0), max(sizes.values(), default=0)})))
        alone = f", and {self.unmatched:,} that match no group, each by itself" if self.unmatched else ""
        return f"{len(sizes):,} groups of {ends} images{alone}"

    def within(self, parts: Sequence[int], part: int) -> set[str]:
        """The groups that have images in a part, TRAIN or TEST, where `parts` are those of all images."""
        return {group for group, of_image in zip(self.of, parts, strict=True) if of_image == part}

    def parts(self, test_size: int, split_seed: int) -> list[int]:
        """TRAIN or TEST for each image: whole groups for the test, in the order of a hash, until it has enough images.

        Groups larger than that are taken last, the smallest of them first. At least two groups are for the test, and
        one for training.

        Raises:
            InputError: there are too few groups or images.
        """
        sizes = Counter(self.of)
        order = sorted(sizes, key=lambda group: (max(0, sizes[group] - test_size), rank(group, "groups", split_seed)))
        tested: list[str] = []
        count = 0
        for group in order:
            if count >= test_size and len(tested) >= LEAST_GROUPS:
                break
            tested.append(group)
            count += sizes[group]
        if len(tested) == len(order):
            groups = f"{len(order)} group{'s' * (len(order) > 1)}"
            # With so few groups none is left to train on, however small the test part.
            smaller = "" if len(order) <= LEAST_GROUPS else "a smaller segmentation.test_size, "
            raise InputError(
                f"segmentation.group: {len(self.of)} images in {groups} do not give {test_size} test images in "
                f"{LEAST_GROUPS} or more groups and a group to train on; take {smaller}a "
                "pattern with more groups, or none"
            )
        held_out = set(tested)
        return [PARTS["test" if group in held_out else "train"] for group in self.of]


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
