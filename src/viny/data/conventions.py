"""How the files of one data set are to be read where a single file does not say: decided once, from all of them.

Which value of a 16-bit image is white, whether masks lie on photographs as stored or as shown, what a palette's
indices mean, what transparent pixels of masks are. Packing, `viny init` and `viny check` ask here and say the same.
What is decided depends on the files alone, not on their order or on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import median_high
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from viny.data.decoding import (
    LYING,
    WHITES,
    BadFileError,
    bits_per_sample,
    further_channels,
    further_pages,
    is_lossy,
    mask_values,
    open_picture,
    orientation,
    palette_of,
    raw_mode,
    sample_range,
    values_by_alpha,
    white_is_zero,
)
from viny.data.masks import value_name
from viny.runtime.errors import InputError

JPEGS = (".jpg", ".jpeg")
DARK = 32  # of 255: 16-bit images whose samples stay below this are nearly black
LOOKED_AT = 200  # files whose pixels `viny init` and `viny check` read

T = TypeVar("T")
R = TypeVar("R")


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` items, evenly spaced, in order."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def each(call: Callable[[T], R], items: Sequence[T], what: str, unit: str, threads: int | None = None) -> list[R]:
    """What `call` returns for each item, in threads: Pillow decodes outside Python's lock.

    Args:
        call: a function of one item.
        items: in the order of the results.
        what, unit: for a progress bar, which a terminal shows after a second.
        threads: None: as many as Python thinks fit.
    """
    with ThreadPoolExecutor(threads) as pool:
        try:
            bar = tqdm(total=len(items), desc=what, unit=unit, disable=None, leave=False, delay=1)
            with bar:
                found = []
                for result in pool.map(call, items):
                    found.append(result)
                    bar.update()
                return found
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@dataclass(frozen=True, slots=True)
class Head:
    """What a picture's header says.

    Attributes:
        mode: Pillow's.
        shape: height and width as stored, pixels.
        turn: EXIF orientation, 1 to 8.
        bits: of a sample, if more than 8, else 0.
        step: between the levels of a grey of 2 or 4 bits, which are read as 0 to 255, else 1.
        pages: further pages or frames, thumbnails aside.
        channels: those that are not read, beyond red, green, blue and alpha.
        alpha: whether some pixels may be transparent.
        white_is_zero: whether it is a TIFF of greys whose 0 means white.
        palette: its colours, three bytes each.
        lossy: whether it is a JPEG or a lossy WebP, whatever its name.
    """

    mode: str
    shape: tuple[int, int]
    turn: int
    bits: int
    step: int
    pages: int
    channels: int
    alpha: bool
    white_is_zero: bool
    palette: bytes | None
    lossy: bool

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width once turned by its own orientation."""
        return turned(self.shape, self.turn)


def turned(shape: tuple[int, int], turn: int) -> tuple[int, int]:
    """Height and width of a picture turned by an EXIF orientation."""
    return shape[::-1] if turn in LYING else shape


def read_head(path: Path) -> Head | None:
    """A picture's header; None if it cannot be read, which decoding then explains."""
    try:
        if not path.is_file():  # a pipe would block for ever
            return None
        with open_picture(path, None, "image") as image:
            width, height = image.size
            # Pillow would decode a whole PNG to look for EXIF data behind its pixels, where next to none have any.
            turn = orientation(image, image.format != "PNG" or _has_late_chunks(path))
            lies = image.format == "TIFF" and turn in LYING  # Pillow says a TIFF's size as it is once loaded
            raw = raw_mode(image)
            return Head(
                mode=image.mode,
                shape=(width, height) if lies else (height, width),
                turn=turn,
                bits=bits_per_sample(image),
                step=85 if raw.startswith("L;2") else 17 if raw.startswith("L;4") else 1,
                pages=further_pages(image),
                channels=further_channels(image),
                alpha=image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info,
                white_is_zero=white_is_zero(image),
                palette=palette_of(image) if image.mode == "P" else None,
                lossy=is_lossy(path, image),
            )
    except Exception:  # each decoder raises its own errors
        return None


def _has_late_chunks(path: Path) -> bool:
    """Whether a PNG has text or EXIF data behind its pixels."""
    with open(path, "rb") as f:
        f.seek(8)
        pixels = False
        while len(start := f.read(8)) == 8:
            name = start[4:]
            if pixels and name in (b"eXIf", b"iTXt", b"zTXt", b"tEXt"):
                return True
            pixels = pixels or name == b"IDAT"
            f.seek(int.from_bytes(start[:4], "big") + 4, 1)
    return False


@dataclass(frozen=True)
class Heads:
    """Headers of a data set's images and masks, in order; `masks` is empty if there are none."""

    images: list[Path]
    masks: list[Path]
    of_images: list[Head | None]
    of_masks: list[Head | None]

    @classmethod
    def read(cls, images: Sequence[Path], masks: Sequence[Path] = (), threads: int | None = None) -> Heads:
        """Read them."""
        files = [*images, *masks]
        shared: dict[Head | None, Head | None] = {}  # most headers of a folder are alike

        def read(path: Path) -> Head | None:
            head = read_head(path)
            return shared.setdefault(head, head)

        found = each(read, files, "read headers", "file", threads)
        return cls(list(images), list(masks), found[: len(images)], found[len(images) :])

    def shapes(self) -> np.ndarray:
        """Heights and widths of the upright images whose header can be read, int [N, 2], pixels."""
        return np.array([head.upright for head in self.of_images if head], int).reshape(-1, 2)

    def palettes(self) -> list[tuple[Path, bytes]]:
        """The palettes of those masks that have one."""
        return [(path, head.palette) for path, head in self.known_masks() if head.palette is not None]

    def known_masks(self) -> list[tuple[Path, Head]]:
        """Masks whose header can be read."""
        return [(path, head) for path, head in zip(self.masks, self.of_masks, strict=True) if head]


@dataclass(frozen=True)
class Conventions:
    """How the files of a data set are read.

    Attributes:
        white: the value of 16-bit images that becomes white; None if there are none.
        turns: by which EXIF orientation each mask is turned, see `viny.data.decoding.decode_mask`.
        about: the same for a manifest, with counts; see `said`.
    """

    white: int | None = None
    turns: list[int] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)


def decide(
    heads: Heads,
    values: Collection[int] = (),
    colours: bool = False,
    most: int | None = None,
    threads: int | None = None,
    also: Collection[Path] = (),
) -> Conventions:
    """Decide how a data set's files are to be read.

    Args:
        heads: of all its files.
        values: those that masks may hold, for colours as numbers, see `viny.data.masks.value_number`.
        colours: whether they are colours.
        most: of how many 16-bit images, and masks with transparency, pixels are read, evenly spaced; None: of all.
        threads: that read them.
        also: images whose pixels are read in any case, if they have 16 bits.

    Raises:
        InputError: the files contradict each other; names two of them, and says what to do.
    """
    white, depth = _depth(heads, most, threads, also)
    turns, turning = _turns(heads)
    about = depth | turning | _pages(heads)
    if heads.masks:
        if few := sum(head.step > 1 for _, head in heads.known_masks()):
            about["few_bits"] = {"masks": few}
        if not colours:
            about |= _palettes(heads, values)
            _check_encodings(heads, values, threads)
        # Names that say so are told of with the names.
        blurred = [path for path, head in heads.known_masks() if head.lossy and path.suffix.lower() not in JPEGS]
        if blurred:
            about["lossy"] = {"masks": len(blurred), "first": blurred[0].name}
        about |= _white_is_zero(heads) | _transparency(heads, values, colours, most, threads)
    return Conventions(white, turns, about)


def _depth(
    heads: Heads, most: int | None, threads: int | None, also: Collection[Path]
) -> tuple[int | None, dict[str, Any]]:
    """Which value of 16-bit images is white."""
    deep = [(path, head.bits) for path, head in zip(heads.images, heads.of_images, strict=True) if head and head.bits]
    if not deep:
        return None, {}

    def read(path: Path) -> tuple[int, int, int] | None:
        try:
            return sample_range(path)
        except BadFileError:  # packing says why
            return None

    paths = [path for path, _ in deep]
    picked = {*also, *(paths if most is None else spread(paths, most))}
    looked = [path for path in paths if path in picked]
    ranges = [found for found in each(read, looked, "read 16-bit images", "image", threads) if found]
    greatest = max((high for _, high, _ in ranges), default=WHITES[-1])
    stated = max((bits for _, bits in deep if bits < 16), default=0)
    white = next(value for value in WHITES if value >= max(greatest, (1 << stated) - 1))
    least = min((low for low, _, _ in ranges), default=0)
    typical = median_high([most for _, _, most in ranges] or [greatest])
    about = {"images": len(deep), "looked_at": len(looked), "least": least, "greatest": greatest, "white": white}
    about["typical"] = typical
    return white, {"sixteen_bit": about}


# What the mask of a turned image lies on: see `_turns`.
SHOWN, UPRIGHT, STORED, EITHER = "shown", "upright", "stored", "either"


def _turns(heads: Heads) -> tuple[list[int], dict[str, Any]]:
    """By which orientation each mask is turned, so that all lie on upright images.

    A mask may lie on the image as it is shown, once both are turned by their own orientation; on the upright image,
    whatever the mask's own orientation says; or on the image as stored, so that it is turned as the image is. Sizes
    of pairs that lie on their side tell these apart. One of them holds for all pairs.
    """
    turns = [1] * len(heads.masks)
    asked: dict[int, dict[str, int]] = {}  # turns of those that have any, by what the mask may lie on
    for at, (image, mask) in enumerate(zip(heads.of_images, heads.of_masks, strict=False)):
        if image and mask and (image.turn, mask.turn) != (1, 1):
            asked[at] = {SHOWN: mask.turn, UPRIGHT: 1, STORED: image.turn}
    if not asked:
        return turns, {}

    def fits(at: int, turn: int) -> bool:
        return turned(heads.of_masks[at].shape, turn) == heads.of_images[at].upright

    fitting = {at: {way for way, turn in ways.items() if fits(at, turn)} for at, ways in asked.items()}
    fitting = {at: ways for at, ways in fitting.items() if ways}  # packing names those that fit in no way
    left = [way for way in (SHOWN, UPRIGHT, STORED) if all(way in ways for ways in fitting.values())]
    open_ = sum(len({asked[at][way] for way in left}) > 1 for at in asked)
    if not left and any(len({asked[at][way] for way in ways}) > 1 for at, ways in fitting.items()):
        stored = next((at for at, ways in fitting.items() if ways == {STORED}), None)
        first = next(at for at, ways in fitting.items() if SHOWN not in ways) if stored is None else stored
        other = next(at for at, ways in fitting.items() if (STORED if first == stored else UPRIGHT) not in ways)
        raise InputError(
            f"{heads.masks[first]}: fits its image only {_place(fitting[first])}, but {heads.masks[other]} only "
            f"{_place(fitting[other])}, and for others that EXIF turns sizes do not tell; export all masks again in "
            "one way, or turn the images upright for good and remove their EXIF orientation"
        )
    chosen = left[0] if left else EITHER
    for at, ways in asked.items():
        turns[at] = ways[chosen if left else min(fitting.get(at, {SHOWN}))]
    about = {
        "images": sum(heads.of_images[at].turn != 1 for at in asked),
        "masks": sum(heads.of_masks[at].turn != 1 for at in asked),
        "lie_on": chosen,
        "by_size": sum(len(ways) < 3 for ways in fitting.values()),
        "assumed": open_,
    }
    return turns, {"turned": about}


def _place(ways: Collection[str]) -> str:
    """How a mask fits its image if it fits only in these ways."""
    if ways == {STORED}:
        return "as stored"
    return "upright" if UPRIGHT in ways else "turned by its own EXIF orientation"


def _pages(heads: Heads) -> dict[str, Any]:
    """Pages and channels that are not read."""
    about = {}
    pages = sum(bool(head and head.pages) for head in heads.of_images)
    masks = sum(bool(head and head.pages) for head in heads.of_masks)
    channels = sum(bool(head and head.channels) for head in heads.of_images)
    of_masks = sum(bool(head and head.channels) for head in heads.of_masks)
    if pages or masks:
        about["further_pages"] = {"images": pages, "masks": masks}
    if channels or of_masks:
        about["further_channels"] = {"images": channels, "masks": of_masks}
    return about


def _palettes(heads: Heads, values: Collection[int]) -> dict[str, Any]:
    """Refuse palettes in which a class's index has another colour; count the others."""
    with_palette = heads.palettes()
    if clash := palettes_clash(with_palette, values):
        first, other, index, one, two = clash
        raise InputError(
            f"{first}: its palette's colour {index} is {one}, but {two} in {other}: an index is not one class in all "
            "masks; name classes by their colours, '#rrggbb', or, if indices do mean classes, save all masks as grey "
            "levels: Image.fromarray(np.asarray(Image.open(old))).save(new)"
        )
    if not with_palette:
        return {}
    # Grey palettes beside grey masks: an index and a grey level must put classes in the same order.
    greys = [path for path, head in heads.known_masks() if head.palette is None and head.mode in ("1", "L")]
    for palette, path in _distinct(with_palette).items() if greys else ():
        entries = [palette[3 * v : 3 * v + 3] for v in sorted(values) if 3 * v < len(palette)]
        levels = [entry[0] for entry in entries]
        if all(len(set(entry)) == 1 for entry in entries) and levels != sorted(levels):
            raise InputError(
                f"{path}: a palette puts its grey levels in another order than {greys[0]}, which has none; save all "
                "masks as grey levels: Image.open(old).convert('L').save(new)"
            )
    clear = sum(head.alpha for _, head in heads.known_masks() if head.palette is not None)
    without = len(heads.known_masks()) - len(with_palette)
    return {"palettes": {"masks": len(with_palette), "without": without, "transparent": clear}}


Clash = tuple[Path, Path, int, str, str]


def palettes_clash(masks: Sequence[tuple[Path, bytes]], values: Collection[int]) -> Clash | None:
    """Two masks that show an index in two colours: their paths, the index, its colours; None if there are none.

    Args:
        masks: palettes, three bytes a colour.
        values: indices that count.
    """
    if _clash((path, palette, values) for palette, path in _distinct(masks).items()) is None:
        return None

    def read(path: Path) -> set[int]:
        try:
            return set(mask_values(path, False).tolist()) & set(values)
        except BadFileError:  # packing says why
            return set()

    used = each(read, [path for path, _ in masks], "read palette masks", "mask")  # what no pixel has says nothing
    return _clash((path, palette, mine) for (path, palette), mine in zip(masks, used, strict=True))


def _distinct(masks: Iterable[tuple[Path, bytes]]) -> dict[bytes, Path]:
    """Each palette, with the first mask that has it."""
    found: dict[bytes, Path] = {}
    for path, palette in masks:
        found.setdefault(palette, path)
    return found


def _clash(masks: Iterable[tuple[Path, bytes, Collection[int]]]) -> Clash | None:
    """The same, of masks with the indices that count in each."""
    known: dict[int, tuple[bytes, Path]] = {}
    for path, palette, values in masks:
        for value in sorted(values):
            colour = palette[3 * value : 3 * value + 3]
            before, first = known.setdefault(value, (colour, path)) if len(colour) == 3 else (colour, path)
            if before != colour:
                return first, path, value, f"#{before.hex()}", f"#{colour.hex()}"
    return None


@dataclass
class _Encoding:
    """Masks that are encoded alike; `meant` is what each of their values, as read, may be in other encodings."""

    name: str
    remedy: str
    paths: list[Path] = field(default_factory=list)
    meant: dict[int, int] = field(default_factory=dict)


def _encoding(head: Head) -> tuple[str, str, Callable[[int], int]]:
    """A mask's encoding, how to save it in another, and what its values may be there."""
    as_shown = "Image.open(old).convert('L').save(new)"
    if (palette := head.palette) is not None:
        return "a palette", as_shown, lambda v: palette[3 * v] if _is_grey(palette, v) else v
    if head.mode == "1":
        return "one bit", as_shown, lambda v: 255 * v
    if head.step > 1:
        remedy = f"Image.open(old).point(lambda v: v // {head.step}).save(new)"
        return ("2" if head.step == 85 else "4") + " bits per grey level", remedy, lambda v: v // head.step
    if head.bits and head.mode.startswith("I"):  # colours of 16 bits are read as 8
        remedy = "Image.fromarray((np.asarray(Image.open(old)) // 257).astype(np.uint8)).save(new)"
        return "16 bits", remedy, lambda v: v if v % 257 else v // 257
    return "8 bits", "", lambda v: v


def _is_grey(palette: bytes, index: int) -> bool:
    return len(colour := palette[3 * index : 3 * index + 3]) == 3 and len(set(colour)) == 1


def _check_encodings(heads: Heads, values: Collection[int], threads: int | None) -> None:
    """Refuse masks in two encodings whose values agree only if those of one are read in another way.

    A mask of the grey levels 0, 128 and 255, say, beside a palette of these levels, whose indices are 0, 1 and 2.

    Raises:
        InputError: there are some; names two of them.
    """
    known = [(path, *_encoding(head)) for path, head in heads.known_masks() if not head.white_is_zero]
    found = {name: _Encoding(name, remedy) for _, name, remedy, _ in known}
    if len(found) < 2:
        return
    for path, name, _, _ in known:
        found[name].paths.append(path)
    meaning = {path: meant for path, _, _, meant in known}

    def read(path: Path) -> dict[int, int]:
        try:
            held = mask_values(path, False).tolist()
        except BadFileError:  # packing says why
            return {}
        return {value: meaning[path](value) for value in held if value and value in values}

    for one in found.values():
        for meant in each(read, spread(one.paths, LOOKED_AT), "read masks", "mask", threads):
            one.meant |= meant
    classes = values if isinstance(values, Mapping) else {value: value for value in values}
    for one, other in combinations(found.values(), 2):
        agree = len(one.meant.keys() & other.meant.keys())
        pairs = [(a, b) for a in one.meant for b in other.meant if classes[a] != classes[b]]
        for reads in (
            [one.meant[a] == b for a, b in pairs],
            [a == other.meant[b] for a, b in pairs],
            [one.meant[a] == other.meant[b] for a, b in pairs],
        ):
            if sum(reads) > agree:
                a, b = next(pair for pair, same in zip(pairs, reads, strict=True) if same)
                again = one if one.remedy else other
                raise InputError(
                    f"{one.paths[0]}: a mask of {one.name}, where {a} seems to be what is {b} in {other.paths[0]}, of "
                    f"{other.name}; save all masks in one encoding: those of {again.name} with {again.remedy}"
                )


def _white_is_zero(heads: Heads) -> dict[str, Any]:
    """Masks whose white is 0 are read as they are shown, with their values turned over."""
    over = [path for path, head in heads.known_masks() if head.white_is_zero]
    others = [path for path, head in heads.known_masks() if not head.white_is_zero and head.mode != "1"]
    wide = [path for path, head in heads.known_masks() if head.white_is_zero and head.mode != "1"]
    if wide and others:
        raise InputError(
            f"{wide[0]}: a TIFF whose 0 means white, while it means black in {others[0]}: whether its values or what "
            "it shows count is not known; save all masks in one way, best as PNG"
        )
    return {"white_is_zero": {"masks": len(over)}} if over else {}


def _transparency(
    heads: Heads, values: Collection[int], colours: bool, most: int | None, threads: int | None
) -> dict[str, Any]:
    """Masks with transparent pixels: what is beneath them counts only where nothing else tells otherwise."""
    clear, opaque = [], False
    for path, head in heads.known_masks():
        # A transparent index of a palette is a value like any other.
        if head.alpha and (colours or head.mode != "P"):
            clear.append(path)
        else:
            opaque = True

    def read(path: Path) -> tuple[set[int], set[int], bool] | None:
        try:
            hidden, shown, partly = values_by_alpha(path, colours)
        except BadFileError:  # packing says why
            return None
        return set(hidden.tolist()), set(shown.tolist()), partly

    clear = clear if most is None else spread(clear, most)
    found = {
        path: one for path, one in zip(clear, each(read, clear, "read masks", "mask", threads), strict=True) if one
    }
    shown = set(values) if opaque else set().union(*(one[1] for one in found.values()))
    for path, (hidden, _, _) in found.items():
        if both := sorted(hidden & shown - {0}):
            raise InputError(
                f"{path}: has transparent pixels over {value_name(both[0], colours)}, which opaque pixels show too: "
                "whether they were erased is not known; put masks on the colour that transparent pixels stand for: "
                "Image.alpha_composite(Image.new('RGBA', old.size, '#000000'), old.convert('RGBA')).convert('RGB')"
                ".save(new)"
            )
    if not isinstance(values, Mapping):
        values = {value: value for value in values}
    grounds: dict[int, Path] = {}
    for path, one in found.items():
        for value in one[0] & values.keys():
            grounds.setdefault(value, path)
    if len({values[value] for value in grounds}) > 1 and all(len(one[0]) < 2 for one in found.values()):
        (value, path), (second, other) = sorted(grounds.items())[:2]
        raise InputError(
            f"{path}: all that is transparent lies over {value_name(value, colours)}, but in {other} over "
            f"{value_name(second, colours)}: whether these are one class is not known; give both values one name, or "
            "put all masks on one colour: Image.alpha_composite(Image.new('RGBA', old.size, '#000000'), "
            "old.convert('RGBA')).convert('RGB').save(new)"
        )
    beneath = sorted(set().union(*(one[0] for one in found.values())))
    about = {
        "masks": sum(bool(one[0]) for one in found.values()),
        "partly": sum(one[2] for one in found.values()),
        "looked_at": len(clear),
        "beneath": [value_name(value, colours) for value in beneath],
    }
    return {"transparent": about} if about["masks"] or about["partly"] else {}


def scales(whites: Mapping[str, int | None]) -> list[str]:
    """A sentence if 16-bit images of one study become bytes on different scales; `whites` by what they are for."""
    wide = {name: white for name, white in whites.items() if white is not None}
    if len(set(wide.values())) < 2:
        return []
    shown = ", ".join(f"{name} {white:,}" for name, white in wide.items())
    return [f"white differs between 16-bit images of one kind ({shown}): the same value has another brightness there"]


def said(about: Mapping[str, Any]) -> list[str]:
    """What was decided, one sentence each, for a log, `viny init` and `viny check`."""
    lines = []
    if one := about.get("sixteen_bit"):
        of = "" if one["looked_at"] == one["images"] else f" in the {one['looked_at']} looked at"
        dark, light = (round(255 * one[key] / one["white"]) for key in ("least", "greatest"))
        lines.append(
            f"{one['images']} images have 16 bits per sample, with values from {one['least']:,} to "
            f"{one['greatest']:,}{of}; {one['white']:,} is taken to be white, so that they become {dark} to {light} "
            "of 255"
        )
        typical = round(255 * one.get("typical", one["white"]) / one["white"])
        if typical < DARK:
            lines.append(
                f"16-bit images become dark: in half of them 99 % of the samples become at most {typical} of 255; if "
                "hot pixels or a few other images set the scale, clip their values or remove them"
            )
    if one := about.get("turned"):
        lines.append(_said_of_turns(one))
    if one := about.get("further_pages"):
        if one["images"]:
            lines.append(f"{one['images']} images have further pages or frames; only the first is used")
        if one["masks"]:
            lines.append(f"{one['masks']} masks have further pages or frames; packing refuses them")
    if one := about.get("further_channels"):
        if one["images"]:
            lines.append(f"{one['images']} images have further channels; only grey or red, green and blue are used")
        if one.get("masks"):
            lines.append(f"{one['masks']} masks have further channels; packing refuses them")
    if one := about.get("palettes"):
        mixed = f"; {one['without']} have none, and their values are taken for the same" if one["without"] else ""
        clear = f"; {one['transparent']} have transparent ones, which count like others" if one["transparent"] else ""
        lines.append(f"{one['masks']} masks have a palette; its indices are their values{clear}{mixed}")
    if one := about.get("few_bits"):
        lines.append(
            f"{one['masks']} masks have 2 or 4 bits per grey level; their values are read as they are shown, stretched "
            "to 0 to 255"
        )
    if one := about.get("lossy"):
        lines.append(
            f"{one['masks']} masks are JPEG or lossy WebP inside ({one['first']}), which blurs values; export them as "
            "PNG"
        )
    if one := about.get("white_is_zero"):
        lines.append(f"{one['masks']} masks are TIFFs whose 0 means white; their values are read as they are shown")
    if one := about.get("transparent"):
        if one["masks"]:
            values = ", ".join(map(str, one["beneath"][:8]))
            lines.append(f"{one['masks']} masks have transparent pixels, which count as what is beneath them: {values}")
        if one["partly"]:
            lines.append(f"{one['partly']} masks have partly transparent pixels, which count as if they were opaque")
    return lines


def _said_of_turns(one: Mapping[str, Any]) -> str:
    images, masks = one["images"], one["masks"]
    what = f"{images} images" + (f" and {masks} masks" if masks else "") if images else f"{masks} masks"
    start = f"{what} are turned upright by their EXIF orientation"
    place = {
        SHOWN: "masks lie on upright images",
        UPRIGHT: "masks lie on upright images",
        STORED: "masks lie on images as stored, and are turned with them",
    }.get(one["lie_on"], "some masks lie on upright images, others on images as stored, each as its size says")
    if one["assumed"]:
        return (
            f"{start}; no size tells whether masks lie on upright images or on images as stored: that {place} is "
            f"assumed for {one['assumed']} pairs; look at some of them"
        )
    return f"{start}; {place}, as the sizes of {one['by_size']} show"
