"""A look at a user's own images and masks before packing: sizes, values, and what the values seem to mean."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from viny.data.conventions import each, palettes_clash, read_head, spread
from viny.data.decoding import (
    BadFileError,
    Mask,
    Picture,
    decode,
    decode_mask,
    filling_values,
    inner_box,
    mask_values,
)
from viny.data.folders import few
from viny.data.masks import IGNORE, MAX_CLASSES, is_void, mask_coding, value_name, value_number
from viny.runtime.errors import InputError

PIXELS = 400e6  # of all masks opened together: fewer masks if they are large
LEAST = 20  # masks opened, however large they are
MANY = 40  # values in a typical mask; labels have fewer
SMOOTH = (20, 8)  # values in all masks, and in a typical one, above which edges may have been smoothed
FILLED = 0.8  # share of the pixels that are then black or white
LIGHT = 200  # smoothed edges of white have greys above this
LARGE = 448  # pixels, the side of images that are shown
CLEAR = 16  # of these pixels: a class that fills a square of this side is seen at a glance
CLOSE_UPS = 6  # of the other classes, at most
CLOSER = 4  # times, as close-ups enlarge
NEAR = 64  # grey levels: values this near to each other do not survive a lossy format


def percent(share: float) -> str:
    """A share of pixels as people read it: '12 %', '0.3 %', '< 0.1 %'."""
    if share >= 0.1:
        return f"{100 * share:.0f} %"
    return f"{100 * share:.1f} %" if share >= 0.001 or share == 0 else "< 0.1 %"


@dataclass(frozen=True)
class Values:
    """The values in masks.

    Attributes:
        of: the values in each readable mask, ascending.
        colours: whether they are colours, as the numbers that their digits spell.
        unreadable: why the other masks cannot be read.
        said: why they are colours, if palettes say so.
    """

    of: dict[Path, list[int]]
    colours: bool
    unreadable: list[BadFileError]
    said: list[str] = field(default_factory=list)

    def masks(self) -> dict[int, int]:
        """How many masks hold each value, by value, ascending."""
        return dict(sorted(Counter(value for values in self.of.values() for value in values).items()))


def _values_of(path: Path, colours: bool) -> list[int] | BadFileError:
    try:
        return mask_values(path, colours).tolist()
    except BadFileError as error:
        return error


def read_values(
    masks: Sequence[Path], colours: bool | None = None, palettes: Sequence[tuple[Path, bytes]] = ()
) -> Values:
    """Read the values in masks.

    Args:
        masks: files.
        colours: whether values are colours; None: in all masks if in any, or if palettes give an index two colours.
        palettes: of all masks that have one, see `viny.data.conventions.Heads`.

    Raises:
        InputError: no mask can be read.
    """
    found = each(lambda path: _values_of(path, bool(colours)), masks, "look at masks", "mask")
    whole = {path: values for path, values in zip(masks, found, strict=True) if isinstance(values, list)}
    refused = [error for error in found if not isinstance(error, list)]
    if colours is None and any(isinstance(_values_of(error.path, True), list) for error in refused):
        return read_values(masks, True)
    if not whole:
        raise InputError(f"{refused[0]}; no mask can be read")
    values = Values(whole if colours else _bits_as_shown(whole), bool(colours), refused)
    if colours is None and (clash := palettes_clash(palettes, values.masks())):
        said = f"palettes differ from mask to mask ({clash[0].name}, {clash[1].name}), so colours count, not indices"
        return replace(read_values(masks, True), said=[said])
    return values


def _bits_as_shown(of: dict[Path, list[int]]) -> dict[Path, list[int]]:
    """A set bit is 255, as in decoding, if other masks hold 255 and none of them holds 1."""
    if not {1, IGNORE} <= set().union(*of.values()):
        return of
    bits = {path for path, held in of.items() if 1 in held and (head := read_head(path)) and head.mode == "1"}
    if any(1 in held for path, held in of.items() if path not in bits):
        return of
    return {path: [IGNORE if path in bits and v == 1 else v for v in held] for path, held in of.items()}


def check_labels(values: Values, folder: Path) -> None:
    """Refuse masks whose values look like those of a photograph or of smoothed edges, not like labels.

    Raises:
        InputError: they do.
    """
    found, typical = values.masks(), statistics.median(map(len, values.of.values()))
    lossy = [path for path in values.of if (head := read_head(path)) and head.lossy]
    near = not values.colours and max(found) - min(found) < NEAR
    if not (
        len(found) > MAX_CLASSES
        or typical > MANY
        or (lossy and (len(found) > 2 or near))
        or (len(found) > SMOOTH[0] and typical > SMOOTH[1] and _is_smoothed(values))
    ):
        return
    why = "edges may have been smoothed, or values may number objects instead of classes"
    if values.said:
        why = f"{values.said[0]}; if indices do mean classes, save all masks as grey levels. Else {why}"
    if lossy:
        why = f"{len(lossy)} are JPEG or lossy WebP ({few(path.name for path in lossy)}), which change values at edges"
    shown = ", ".join(str(value_name(value, values.colours)) for value in list(found)[:8])
    shown += ", ..." if len(found) > 8 else ""
    remedy = "Export the masks again as PNG, without smoothing"
    if lossy and near:
        remedy += ", from what they were drawn in: values so near to each other cannot be told apart again"
    elif all(value % 0x010101 == 0 for value in found) if values.colours else not near:
        remedy += (
            ". To make masks black and white in Pillow: Image.open(old).convert('L').point(lambda v: 255 * (v > 127))"
            ".save(new), where new ends in .png and is in another folder"
        )
    raise InputError(
        f"{folder}: {len(values.of)} masks hold {len(found):,} values ({shown}), a typical one {typical:.0f}; "
        f"expected one value per class: {why}. {remedy}"
    )


def _is_smoothed(values: Values) -> bool:
    """Whether masks are mostly 0 and 255, with greys in between."""
    if values.colours or not any(LIGHT < value < IGNORE for value in values.masks()):
        return False
    every = {value: value for value in range(IGNORE)} | {IGNORE: IGNORE}
    counts = np.zeros(256, int)
    for path in spread(list(values.of), LEAST):
        try:
            counts += np.bincount(decode_mask(path, 256, every).pixels.ravel(), minlength=256)
        except BadFileError:  # nothing but 255
            counts[IGNORE] += 256**2
    return counts[[0, 255]].sum() > FILLED * counts.sum()


def _thin(values: Values, classes: Sequence[int]) -> list[str]:
    """A sentence if half of the values that would be classes are nowhere more than a line, as smoothed edges are."""
    if len(classes) <= 3:
        return []
    filling: set[int] = set()
    masks = spread(list(values.of), LEAST)
    for path in masks:
        with suppress(BadFileError):  # changed since
            filling |= set(filling_values(path, values.colours).tolist())
    held = {value for path in masks for value in values.of[path]}
    thin = [value for value in classes if value in held - filling]
    if 2 * len(thin) < len(classes):
        return []
    shown = few(str(value_name(value, values.colours)) for value in thin)
    return [
        f"{len(thin)} of {len(classes)} values are nowhere 3 pixels wide ({shown}): edges may have been smoothed; if "
        "so, export the masks again without smoothing, or --ignore these values"
    ]


@dataclass(frozen=True)
class Coding:
    """What mask values mean.

    Attributes:
        classes: the name of each value or colour, as in `segmentation.classes`.
        ignore: values or colours without a class.
        said: how that was found, one sentence each.
        void: of the ignored ones, those that are so because of the names that they were given.
    """

    classes: dict[int | str, str]
    ignore: list[int | str]
    said: list[str] = field(default_factory=list)
    void: dict[int | str, str] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Names of the classes, in the order of their indices."""
        return self._table()["mask_classes"]

    @property
    def indices(self) -> dict[int, int]:
        """Class index, or IGNORE, of each value."""
        return {int(value): index for value, index in self._table()["mask_values"].items()}

    def _table(self) -> dict:
        return mask_coding({str(value): name for value, name in self.classes.items()}, self.ignore)


class UnnamedError(InputError):
    """Masks hold values that the given names leave out."""


def find_coding(values: Values, classes: Mapping[int | str, str], ignore: Sequence[int | str], folder: Path) -> Coding:
    """Take what the user says about mask values, and guess the rest.

    Two values, one of them 0, are background and object. 255 is not a class if it comes with indices, at least two
    of them consecutive. Values whose given names mean pixels without a class, see `viny.data.masks.is_void`, are
    ignored where two classes are left.

    Args:
        values: the values in the masks.
        classes: names given by the user; if there are none, every value is a class.
        ignore: values without a class, given by the user.
        folder: the masks' folder, for messages.

    Raises:
        UnnamedError: a value that the names leave out.
        InputError: fewer than two classes.
    """
    found, said, ignore = values.masks(), [], list(ignore)
    named, dropped = {value_number(value) for value in classes}, {value_number(value) for value in ignore}
    left = [value for value in found if value not in named | dropped]
    others = [value for value in found if value != IGNORE and value not in dropped]
    # Grey levels have gaps between them.
    are_indices = any(b == a + 1 for a, b in pairwise(others))
    two_ways = set(found) == {0, 1, IGNORE} and not any({1, IGNORE} <= set(held) for held in values.of.values())
    if IGNORE in left and not values.colours and (classes or (are_indices and not two_ways)):
        ignore.append(IGNORE)
        left.remove(IGNORE)
        said.append("255 is taken to mean 'no class'; if it is a class, name it with --classes")
    if classes:
        # In a file with one bit per pixel, 1 stands for 255, as in decoding.
        unknown = [value for value in left if not (value == 1 and IGNORE in named)]
        if unknown:
            shown = few(f"{value_name(value, values.colours)} (in {found[value]} masks)" for value in unknown)
            raise UnnamedError(f"{folder}: values without a name: {shown}; name them with --classes, or --ignore them")
        there = {*found} | ({IGNORE} if 1 in found else set())
        if absent := [f"{value} '{name}'" for value, name in classes.items() if value_number(value) not in there]:
            said.append(f"named, but in none of the {len(values.of):,} masks looked at: {few(absent)}")
        return _without_void(dict(classes), ignore, said)
    said += _thin(values, left)
    keys = [value_name(value, values.colours) for value in left]
    if two_ways and len(left) == 3:
        said.append("some masks hold 0 and 1, others 0 and 255; 1 and 255 are taken to be one class")
        names = ["background", "object", "object"]
    elif len(left) == 2 and left[0] == 0:
        names = ["background", "object"]
    else:
        names = [f"class_{str(key).lstrip('#')}" for key in keys]
    if len(left) < 2:
        only = few(map(str, keys)) or "ignored values"
        raise InputError(f"{folder}: {len(values.of)} masks hold no class but {only}; expected two or more")
    return Coding(dict(zip(keys, names, strict=True)), ignore, said)


def _without_void(classes: dict[int | str, str], ignore: list[int | str], said: list[str]) -> Coding:
    """The coding in which values whose names mean pixels without a class are ignored; says which."""
    void = {value: name for value, name in classes.items() if is_void(name)}
    kept = {value: name for value, name in classes.items() if value not in void}
    shown = few(f"{value} '{name}'" for value, name in void.items())
    if void and len(set(kept.values())) < 2:
        said.append(f"{shown}: a name of pixels without a class, kept as a class, since two are needed")
        return Coding(classes, ignore, said)
    if void:
        said.append(
            f"{shown}: looks like pixels without a class, so it is ignored, neither learnt nor counted; to make it a "
            f"class, give it another name, as --classes {next(iter(void))}=rest"
        )
    return Coding(kept, [*ignore, *(value for value in void if value not in ignore)], said, void)


@dataclass(frozen=True)
class CloseUp:
    """The piece of an image that shows most of a class.

    Attributes:
        index: of the class.
        name: of the image.
        image: the piece, squeezed as the image is, uint8 [3, LARGE, LARGE].
        mask: of the piece, uint8 [LARGE, LARGE], class indices or IGNORE.
        aspect: the image's height by its width.
    """

    index: int
    name: str
    image: np.ndarray
    mask: np.ndarray
    aspect: float


@dataclass(frozen=True)
class Looked:
    """Pairs of image and mask as packing makes them.

    Attributes:
        names: of the images that are kept, which together show as many classes as so many can.
        images: these images, squeezed to squares, uint8 [K, 3, LARGE, LARGE].
        masks: their masks, uint8 [K, LARGE, LARGE], class indices or IGNORE.
        aspects: their heights by their widths: float [K].
        shares: share of the packed pixels, without bars, in each class and, last, in none: float [C + 1].
        masks_with: how many packed masks show each class: int [C].
        area: median number of packed pixels of each class in the masks that show it: float [C], NaN for none.
        lost: in how many masks a class loses all its pixels at the packed size: int [C].
        brightest: the greatest sample in any image, 0 to 255.
        refused: files that packing would refuse.
        close_ups: of classes that are too thin or too rare to be seen in `masks`, in their order, from any image; if
            there are many, of those with most pixels.
    """

    names: list[str]
    images: np.ndarray
    masks: np.ndarray
    aspects: list[float]
    shares: np.ndarray
    masks_with: np.ndarray
    area: np.ndarray
    lost: np.ndarray
    brightest: int
    refused: list[BadFileError]
    close_ups: list[CloseUp]


def look_at_pairs(
    pairs: Iterable[tuple[Path, Path, int]],
    values: Values,
    coding: Coding,
    size: int,
    fit: str,
    keep: int,
    white: int | None = None,
) -> Looked:
    """Decode images with their masks as packing does.

    Args:
        pairs: images, masks and their turns, see `viny.data.conventions.Conventions`.
        values: the values in these masks.
        coding: what they mean.
        size: side of a packed image, pixels (S).
        fit: see `viny.data.decoding.squared`.
        keep: the most images to return (K).
        white: see `viny.data.decoding.decode`.

    Raises:
        InputError: more than half of them are bad.
    """
    pairs, indices, classes = list(pairs), coding.indices, len(coding.names)

    def decoded(pair: tuple[Path, Path, int], side: int, fit: str) -> tuple[Picture, Mask]:
        image, path, turn = pair
        mask = decode_mask(path, side, indices, values.colours, fit, turn)
        return decode(image, side, "antialias", mask.shape, fit, white), mask

    def read(pair: tuple[Path, Path, int]) -> tuple[tuple[Path, Path, int], int, np.ndarray, list[int]] | BadFileError:
        try:
            picture, mask = decoded(pair, size, fit)
        except BadFileError as error:
            return error
        left, top, right, bottom = inner_box(*mask.shape, size) if fit == "pad" else (0, 0, size, size)
        counts = np.bincount(mask.pixels[top:bottom, left:right].ravel(), minlength=256)
        # In a file with one bit per pixel, a 1 without a name is 255.
        held = {indices.get(value, indices.get(IGNORE, IGNORE)) for value in values.of.get(pair[1], ())}
        return pair, int(picture.pixels.max()), counts, [int(index in held) for index in range(classes)]

    found = each(read, pairs, "look at images", "image")
    good = [one for one in found if not isinstance(one, BadFileError)]
    refused = [one for one in found if isinstance(one, BadFileError)]
    if 2 * len(refused) > len(pairs):
        lines = "\n  ".join(map(str, refused[:5]))
        raise InputError(
            f"{len(refused)} of {len(pairs)} images that were looked at are bad; fix these first:\n  {lines}"
        )
    counts = np.array([counts for _, _, counts, _ in good])
    held = np.array([held for *_, held in good])
    mine = counts[:, :classes]
    kept = [good[at][0] for at in _telling(mine > 0, keep)]
    large = [decoded(pair, LARGE, "stretch") for pair in kept]
    most = 2 * mine + held  # a class that packing loses is held all the same
    dim = [index for index in range(classes) if most[:, index].any() and not any(_clear(m, index) for _, m in large)]
    dim = sorted(sorted(dim, key=lambda index: -mine[:, index].sum())[:CLOSE_UPS])
    close_ups = []
    for index in dim:
        pair = good[int(most[:, index].argmax())][0]
        close_ups.append(_close_up(index, pair[0].name, *decoded(pair, CLOSER * LARGE, "stretch")))
    return Looked(
        names=[image.name for image, *_ in kept],
        images=np.stack([picture.pixels for picture, _ in large]),
        masks=np.stack([mask.pixels for _, mask in large]),
        aspects=[mask.shape[0] / mask.shape[1] for _, mask in large],
        shares=np.append(mine.sum(0), counts[:, IGNORE].sum()) / counts.sum(),
        masks_with=(mine > 0).sum(0),
        area=np.array([np.median(column[column > 0]) if column.any() else np.nan for column in mine.T]),
        lost=((held > 0) & (mine == 0)).sum(0),
        brightest=max(most for _, most, *_ in good),
        refused=refused,
        close_ups=close_ups,
    )


def _clear(mask: Mask, index: int) -> bool:
    """Whether a class fills a square of `CLEAR` pixels somewhere."""
    return bool((_in_squares(mask.pixels == index, CLEAR) == CLEAR**2).any())


def _close_up(index: int, name: str, picture: Picture, mask: Mask) -> CloseUp:
    """The square of `LARGE` pixels that shows most of a class; of several, the one amid them."""
    counts = _in_squares(mask.pixels == index, LARGE)
    best = np.argwhere(counts == counts.max())
    top, left = best[np.abs(best - best.mean(0)).sum(1).argmin()]
    rows, columns = slice(top, top + LARGE), slice(left, left + LARGE)
    aspect = mask.shape[0] / mask.shape[1]
    return CloseUp(index, name, picture.pixels[:, rows, columns], mask.pixels[rows, columns], aspect)


def _in_squares(there: np.ndarray, side: int) -> np.ndarray:
    """How many pixels of a picture, bool [H, W], are set in each square: int [H - side + 1, W - side + 1]."""
    above = np.pad(there.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    return above[side:, side:] - above[:-side, side:] - above[side:, :-side] + above[:-side, :-side]


def _telling(shown: np.ndarray, most: int) -> list[int]:
    """Images, in their order, which together show as many classes as so many can; the rest of them evenly spaced.

    Args:
        shown: which classes each image shows, bool [N, C].
        most: how many images.
    """
    kept: list[int] = []
    lacking = shown.any(0)
    while lacking.any() and len(kept) < most:
        kept.append(int((shown & lacking).sum(1).argmax()))
        lacking = lacking & ~shown[kept[-1]]
    others = [at for at in spread(range(len(shown)), most) if at not in kept]
    return sorted([*kept, *spread(others, most - len(kept))])
