"""Frames of one film, slices of one patient, tiles of one scan: found by the names of images, and by how they look."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from viny.data.conventions import each, spread
from viny.data.decoding import BadFileError, decode, perceptual_hashes, small_grey
from viny.data.folders import few
from viny.data.parts import BY_FOLDER, Groups

NUMBERED = r"(.*\D)\d+$"  # film_0001, patient3_slice12, scene/000123
TILED = r"(.*?\D)\d+\D{1,3}\d+$"  # scan-a_3_4, scan-a_x0_y512
LEAST = 3  # groups, and images of a typical one
MATCHED = 0.8  # share of the images that a pattern must match
GRID = 0.7  # share of the places of a grid that have a tile
PAIRS = 60  # neighbours that are compared, of 8 or more
ALIKE = 0.75  # chance that two neighbours look more alike than images of two groups; 0.5 if groups mean nothing
SIDE = 64  # pixels


@dataclass(frozen=True)
class Found:
    """Groups that the names of images suggest.

    Attributes:
        pattern: as `segmentation.group`.
        alike: the chance that neighbours within a group look more alike than images of two groups; NaN if unknown.
        said: what was seen, in words.
    """

    pattern: str
    alike: float
    said: str

    @property
    def decided(self) -> bool:
        """Whether groups are kept together unless somebody says otherwise; tiles of a scan need not look alike."""
        return self.pattern == TILED or self.alike >= ALIKE


def find_sequences(names: Sequence[str], images: Sequence[Path]) -> Found | None:
    """The groups that images' names suggest, and whether neighbours in them look alike; None if names suggest none.

    A common beginning and a number suggest a group, if there are several such beginnings: a camera's counter has one.
    So do folders. But classes are numbered too, so pictures decide. Two last numbers that fill a grid in most groups
    are those of tiles, whatever the pictures show.

    Args:
        names: paths below the images' folder, with '/'.
        images: the files.
    """
    tried: list[Found] = []
    for pattern in (TILED, NUMBERED, BY_FOLDER):
        groups = Groups.read(names, pattern).of
        members: dict[str, list[int]] = defaultdict(list)
        for at, group in enumerate(groups):
            members[group].append(at)
        several = {group: rows for group, rows in members.items() if len(rows) > 1}
        if len(several) < LEAST or np.median([len(rows) for rows in several.values()]) < LEAST:
            continue
        if sum(map(len, several.values())) < MATCHED * len(names) or (
            pattern == TILED and not _is_grid(names, several)
        ):
            continue
        ordered = {group: sorted(rows, key=lambda row: _numbers(names[row])) for group, rows in several.items()}
        alike = _alike(images, ordered)
        sizes = sorted({len(rows) for rows in several.values()})
        ends = " to ".join(dict.fromkeys(map(str, (sizes[0], sizes[-1]))))
        shown = few(group.rstrip("/_-. ") or "the folder itself" for group in sorted(several))
        said = f"by their names images are in {len(several):,} groups of {ends} ({shown}), "
        said += "numbered as the tiles of a scan are" if pattern == TILED else _words(alike)
        tried.append(Found(pattern, alike, said))
        if tried[-1].decided:
            return tried[-1]
    return tried[0] if tried else None


def _words(alike: float) -> str:
    if np.isnan(alike):
        return "too few to tell whether neighbours look alike"
    if alike >= ALIKE:
        return "whose neighbours look alike, as the frames of a film do"
    return "whose neighbours look hardly more alike than others"


def _numbers(name: str) -> list[tuple[int, int | str]]:
    """A key by which frame2 comes before frame10."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", name) if part]


def _is_grid(names: Sequence[str], members: dict[str, list[int]]) -> bool:
    """Whether the last two numbers of most groups' names fill a grid."""
    filled = 0
    for rows in members.values():
        last = [tuple(map(int, re.findall(r"\d+", names[row].rpartition(".")[0])[-2:])) for row in rows]
        a, b = (len({two[at] for two in last}) for at in (0, 1))
        filled += min(a, b) > 1 and len(set(last)) >= GRID * a * b
    return 2 * filled > len(members)


def _alike(images: Sequence[Path], ordered: dict[str, list[int]]) -> float:
    """The chance that hashes of neighbours within groups differ in fewer bits than those of images of two groups."""
    pairs = spread([(group, *two) for group, rows in ordered.items() for two in pairwise(rows)], PAIRS)
    rows = sorted({row for _, *two in pairs for row in two})
    group_of = {row: group for group, *two in pairs for row in two}

    def grey(path: Path) -> np.ndarray | None:
        try:
            return small_grey(decode(path, SIDE, "antialias").pixels)
        except BadFileError:
            return None

    greys = each(grey, [images[row] for row in rows], "compare images", "image")
    known = {row: one for row, one in zip(rows, greys, strict=True) if one is not None}
    if not known:
        return float("nan")
    found = perceptual_hashes(np.stack(list(known.values()))).tolist()
    hashes = {row: value for row, value in zip(known, found, strict=True) if value}  # 0: nearly constant

    def bits(one: int, two: int) -> int:
        return (hashes[one] ^ hashes[two]).bit_count()

    near = np.array([bits(one, two) for _, one, two in pairs if one in hashes and two in hashes])
    far = np.array([bits(a, b) for a in hashes for b in hashes if a < b and group_of[a] != group_of[b]])
    if len(near) < 8 or not len(far):
        return float("nan")
    return float(((near[:, None] < far).mean() + (near[:, None] <= far).mean()) / 2)
