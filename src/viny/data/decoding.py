"""Decoding one image or mask file: any mode and orientation in; a square of uint8 out, or a reason why not.

A file is read once: what is hashed is what is decoded. Nothing here knows about packs.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from viny.data.masks import IGNORE, deflated, value_name
from viny.data.room import Room
from viny.runtime.errors import InputError

P, T = ParamSpec("P"), TypeVar("T")
RESAMPLING = {"antialias": Image.Resampling.BILINEAR, "nearest": Image.Resampling.NEAREST}
# No others: Pillow would hand EPS to Ghostscript, and would read containers that point to other files.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF")
BARS = (124, 116, 104)  # colour of a padded image's bars: ImageNet's mean, which normalisation makes zero
MIN_SIDE = 4  # pixels; anything less is no picture, and a crop of it may have no pixels at all
MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 1 << 26  # a small file may claim any size; Pillow's own limit is 89 million
MAX_BYTES = 1 << 30  # of a file, since it is read whole
# Memory that decoding takes, bytes a pixel of a file, measured with Pillow 13.0: at most 37 for 16-bit colours, 13
# for JPEG.
PER_PIXEL, PER_JPEG_PIXEL = 40, 16
SOME = 1 << 18  # samples of an image that say how bright most of it is
HASH = 16  # bytes kept of a sha256
GREY = 32  # side of the picture that a perceptual hash is made from, pixels

_ORIENTATION = 0x0112  # EXIF
TURNS = {  # what turns a picture upright, by EXIF orientation; 1 needs nothing
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
LYING = (5, 6, 7, 8)  # orientations that swap height and width
_BACK = {6: 8, 8: 6}  # what undoes a turn; the others undo themselves

# Values of 16-bit images that become white: of all that a folder holds, the least that covers its greatest value.
# Cameras and microscopes write 10, 12 or 14 bits into 16.
WHITES = tuple((1 << bits) - 1 for bits in (8, 10, 12, 14, 16))
_WHITE_IS_ZERO, _SIGNED = 0, 2  # of TIFF's tags 262 and 339
_PLANAR = 2  # of tag 284: a channel after the other
_REDUCED = 1  # bit of TIFF's tag 254: a page that is a smaller copy of another


_FILES, _PIXELS = Room(MAX_BYTES), Room(MAX_PIXELS * PER_PIXEL)
MEMORY = _FILES.size + _PIXELS.size  # bytes: what all threads together decode with at most


def _in_turn(read: Callable[P, T]) -> Callable[P, T]:
    """Let `read`, whose first argument is a file, wait while others read large ones."""

    @wraps(read)
    def waiting(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            size = os.stat(args[0]).st_size  # type: ignore[arg-type]
        except OSError:
            size = 0  # `read` will say what is wrong
        with _FILES.taken(size):
            return read(*args, **kwargs)

    return waiting


def _memory_for(image: Image.Image) -> int:
    width, height = image.size
    return width * height * (PER_JPEG_PIXEL if image.format == "JPEG" else PER_PIXEL)


class BadFileError(InputError):
    """A file that cannot be used; `reason` says why and what to do, without the file's path."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded image."""

    pixels: np.ndarray  # uint8 [3, S, S]
    shape: tuple[int, int]  # height and width of the original, upright, pixels
    grey: np.ndarray  # uint8 [GREY, GREY]
    file: bytes  # the first HASH bytes of the sha256 of the file's bytes


@dataclass(frozen=True, slots=True)
class Mask:
    """A decoded mask."""

    pixels: np.ndarray  # uint8 [S, S], class indices, or IGNORE
    shape: tuple[int, int]  # height and width of the original, turned as asked, pixels
    only: int | None  # the only class in the original; None if it shows several
    own: bytes = b""  # the mask at its own size, turned as asked, see `viny.data.masks.deflated`; if asked for
    own_sha256: bytes = b""  # the first HASH bytes of the sha256 of its pixels


def short_sha256(data: bytes | np.ndarray) -> bytes:
    """The first HASH bytes of the sha256 of some bytes or of a C-contiguous array."""
    return hashlib.sha256(data).digest()[:HASH]


def squared(image: Image.Image, size: int, fit: str, resampling: Image.Resampling, bars: int | tuple) -> Image.Image:
    """Make a picture of any aspect ratio square.

    Args:
        image: of any size.
        size: side of the square, pixels.
        fit: 'stretch', the whole picture, its aspect ratio lost; 'crop', the centre square; 'pad', the whole picture
            with bars on two sides.
        resampling: one of Pillow's filters.
        bars: value of the bars.
    """
    width, height = image.size
    if fit == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return image.resize((size, size), resampling, box=(left, top, left + side, top + side))
    if fit == "stretch":
        return image.resize((size, size), resampling)
    inner = inner_box(height, width, size)
    out = Image.new(image.mode, (size, size), bars)
    out.paste(image.resize((inner[2] - inner[0], inner[3] - inner[1]), resampling), inner)
    return out


def inner_box(height: int, width: int, size: int) -> tuple[int, int, int, int]:
    """Where a picture is in a square of side `size` under fit 'pad': left, top, right, bottom, pixels."""
    longer = max(height, width)
    w, h = (max(1, round(side * size / longer)) for side in (width, height))
    left, top = (size - w) // 2, (size - h) // 2
    return left, top, left + w, top + h


@_in_turn
def decode(
    path: Path,
    size: int,
    resize: str,
    mask_shape: tuple[int, int] | None = None,
    fit: str = "stretch",
    white: int | None = None,
) -> Picture:
    """Read one image as an upright RGB square.

    JPEGs are decoded at 1/2, 1/4 or 1/8 scale if that still leaves at least the pixels wanted, so that the
    antialiased resize has the last word; for nearest neighbour, always at full scale. Transparent pixels are
    laid on white, 16 bits are scaled to 8, only the first page or frame is used, and the EXIF orientation is
    applied.

    Args:
        path: the image file.
        size: side of the square, pixels (S).
        resize: 'antialias' or 'nearest'.
        mask_shape: height and width of its mask, if it has one, which must be those of the upright image.
        fit: how it becomes a square, see `squared`.
        white: the value of 16-bit images that becomes white; None: 65,535, and an image that comes nowhere near it is
            refused, since its range is not known.

    Raises:
        BadFileError: the file cannot be read as an image, or does not fit its mask.
    """
    data = _read(path, "image")
    try:
        with open_picture(path, data, "image") as image, _PIXELS.taken(_memory_for(image)):
            width, height = image.size  # before draft mode makes it smaller
            if resize == "antialias":
                image.draft("RGB", (size, size))
            samples = _wide(path, data, image)
            image.load()
            turn = orientation(image)
            upright = (width, height) if turn in LYING else (height, width)
            if mask_shape is not None and mask_shape != upright:
                expected = f"{upright[0]} x {upright[1]} pixels (height x width)"
                found = f"{mask_shape[0]} x {mask_shape[1]}"
                raise BadFileError(path, f"is {expected}, but its mask {found}; they must be the same size")
            image = _rgb(path, image, samples, white)
            if turn in TURNS:
                image = image.transpose(TURNS[turn])
            square = squared(image, size, fit, RESAMPLING[resize], BARS)
            # From the antialiased square, which is small; nearest neighbour's would alias.
            grey = _grey(square if resize == "antialias" else image)
            return Picture(np.asarray(square).transpose(2, 0, 1), upright, grey, short_sha256(data))
    except (BadFileError, MemoryError):
        raise
    except Exception as error:  # each decoder raises its own errors, even IndexError, struct.error, zlib.error
        raise BadFileError(path, _unreadable("image", error)) from error


def sample_range(path: Path) -> tuple[int, int, int]:
    """The least and the greatest sample of a 16-bit image, and the one that 99 of 100 do not pass, alpha aside.

    Raises:
        BadFileError: as `decode`.
    """
    data = _read(path, "image")
    try:
        with open_picture(path, data, "image") as image:
            samples = _wide(path, data, image)
            if samples is None:
                raise BadFileError(path, "changed while it was read; run again")
            levels = samples if samples.ndim == 2 else _apart(samples)[0]
            some = levels.ravel()[:: max(1, levels.size // SOME)]
            return int(levels.min()), int(levels.max()), int(np.percentile(some, 99, method="lower"))
    except (BadFileError, MemoryError):
        raise
    except Exception as error:  # as in `decode`
        raise BadFileError(path, _unreadable("image", error)) from error


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A loaded picture, its samples if they have 16 bits a channel, and the turn that Pillow has given it."""

    image: Image.Image
    samples: np.ndarray | None  # uint16 [H, W, C]
    turned: int


def _values(path: Path, loaded: _Loaded, colours: bool) -> np.ndarray:
    """Every pixel's value in a loaded mask, [H, W], whole numbers below 2**24; a colour is its six hex digits."""
    image, wide = loaded.image, loaded.samples
    if wide is not None and wide.ndim == 3:
        levels, alpha = _apart(wide)
        # The same 8 bits twice, or 8 bits in 16: anything else is more than a colour of 8 bits.
        if (levels == levels // 257 * 257).all():
            levels = levels // 257
        elif levels.max() > 255:
            raise BadFileError(path, "16 bits per channel that are not 8 bits made wider; export it with 8 bits")
        image = Image.fromarray(np.concatenate([levels, alpha >> 8], axis=2).astype(np.uint8))
    if colours:
        if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
            raise BadFileError(path, f"expected colours with 8 bits per channel, got mode {image.mode}; replace it")
        if image.mode == "P" and (last := int(np.asarray(image).max())) >= (known := len(palette_of(image)) // 3):
            raise BadFileError(path, f"has pixels of colour {last} of a palette of {known}; export it again")
        rgb = np.asarray(image.convert("RGB")).astype(np.uint32)
        return rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
    if image.mode in ("RGB", "RGBA", "LA"):
        channels = np.asarray(image)[..., : 3 if image.mode != "LA" else 1]
        if not (channels == channels[..., :1]).all():
            raise BadFileError(
                path,
                "expected one channel of class values, got colours; replace it, or, with source folder, name the "
                "classes by their colours, '#rrggbb'",
            )
        return channels[..., 0]
    if image.mode not in ("1", "L", "P", "I") and not image.mode.startswith("I;16"):
        raise BadFileError(path, f"expected one channel of class values, got mode {image.mode}; replace it")
    if wide is not None and white_is_zero(image):  # as Pillow does with fewer bits
        return 65535 - wide
    raw = np.asarray(image)
    if image.mode == "I" and raw.min() < 0:
        raise BadFileError(path, f"has values below 0, the least {raw.min()}; save what is below 0 as 255, in 8 bits")
    return raw.astype(np.uint8) if image.mode == "1" else raw


def palette_of(image: Image.Image) -> bytes:
    """The colours of a palette image, three bytes each."""
    order, data = image.palette.getdata()  # as in the file, until the image is loaded: 'RGB', 'BGRX', 'RGB;L', ...
    one = Image.new("P", (1, 1))
    one.putpalette(data, order)
    return bytes(one.getpalette("RGB")[: 3 * (len(data) // len(order.partition(";")[0]))])


@_in_turn
def mask_values(path: Path, colours: bool) -> np.ndarray:
    """The values in a mask file, ascending, colours as the numbers that their six hex digits spell: int64 [M].

    Raises:
        BadFileError: unreadable, or colours where values are expected.
    """
    with _whole(path, "mask") as loaded:
        return np.unique(_values(path, loaded, colours)).astype(np.int64)


@_in_turn
def filling_values(path: Path, colours: bool) -> np.ndarray:
    """Those values of a mask that fill a square of 3 x 3 pixels somewhere, as `mask_values` gives them.

    Raises:
        BadFileError: as `mask_values`.
    """
    with _whole(path, "mask") as loaded:
        raw = _values(path, loaded, colours)
        right, down = raw[:, 1:] == raw[:, :-1], raw[1:] == raw[:-1]
        rows, column = right[:, 1:] & right[:, :-1], (down[1:] & down[:-1])[:, 1:-1]
        return np.unique(raw[1:-1, 1:-1][rows[:-2] & rows[1:-1] & rows[2:] & column]).astype(np.int64)


@_in_turn
def values_by_alpha(path: Path, colours: bool) -> tuple[np.ndarray, np.ndarray, bool]:
    """The values that a mask hides beneath transparent pixels and those that it shows, as `mask_values` gives them.

    Returns:
        hidden: int64 [M], where alpha is 0.
        shown: int64 [K], elsewhere.
        partly: whether some pixels are neither transparent nor opaque.

    Raises:
        BadFileError: as `mask_values`.
    """
    with _whole(path, "mask") as loaded:
        raw, image = _values(path, loaded, colours), loaded.image
        alpha = np.asarray((image if image.mode in ("RGBA", "LA") else image.convert("RGBA")).getchannel("A"))
        hidden, shown = (np.unique(raw[where]).astype(np.int64) for where in (alpha == 0, alpha > 0))
        return hidden, shown, bool(((alpha > 0) & (alpha < 255)).any())


@_in_turn
def upright(path: Path, white: int | None = None) -> Image.Image:
    """A whole image as people see it, RGB, made by the same steps as `decode`'s square.

    Raises:
        BadFileError: as `decode`.
    """
    with _whole(path, "image") as loaded:
        turn, whole = orientation(loaded.image), _rgb(path, loaded.image, loaded.samples, white)
        return whole.transpose(TURNS[turn]) if turn in TURNS else whole


@contextmanager
def _whole(path: Path, what: str) -> Iterator[_Loaded]:
    """A loaded picture; `what` is 'image' or 'mask'. Whatever goes wrong with it becomes a `BadFileError`."""
    data = _read(path, what)
    try:
        with open_picture(path, data, what) as image, _PIXELS.taken(_memory_for(image)):
            if what == "mask" and (pages := further_pages(image)):
                raise BadFileError(path, f"has {pages} further pages or frames; export it as a single picture")
            before = image.tag_v2.get(_ORIENTATION, 1) if image.format == "TIFF" else 1
            samples = _wide(path, data, image)
            image.load()
            if what == "mask" and (further_channels(image) or _has_fourth_unnamed(image)):
                raise BadFileError(path, "has channels besides grey, colours and transparency; export it without them")
            # Pillow turns TIFFs upright while it loads them, and nothing else.
            yield _Loaded(image, samples, before if before in TURNS and orientation(image) == 1 else 1)
    except (BadFileError, MemoryError):
        raise
    except Exception as error:  # as in `decode`
        raise BadFileError(path, _unreadable(what, error)) from error


def _indices(path: Path, raw: np.ndarray, values: Mapping[int, int], colours: bool) -> np.ndarray:
    """Class indices, uint8, of mask values; both [H, W].

    Raises:
        BadFileError: an unknown value.
    """
    known = np.array(sorted(values))
    table = np.array([values[value] for value in known.tolist()], np.uint8)
    if raw.dtype == np.uint8:  # a table is faster than a search
        wide, of_a_byte = np.full(256, -1, np.int16), known < 256
        wide[known[of_a_byte]] = table[of_a_byte]
        found = wide[raw]
        if found.min() >= 0:
            return found.astype(np.uint8)
    else:
        at = np.searchsorted(known, raw).clip(max=len(known) - 1)
        if (known[at] == raw).all():
            return table[at]
    unknown = sorted(set(np.unique(raw).tolist()) - set(values))
    shown = ([str(value_name(value, colours)) for value in some] for some in (known.tolist()[:12], unknown[:8]))
    expected, found = map(", ".join, shown)
    said = f"unknown mask values {found}; expected {expected}{', ...' if len(known) > 12 else ''}"
    if len(unknown) > 8:
        said += f"; {len(unknown)} values are unknown, as in a picture that was compressed like a photograph"
    raise BadFileError(path, f"{said}; replace it, or, with source folder, name or ignore them")


@_in_turn
def decode_mask(
    path: Path,
    size: int,
    values: Mapping[int, int],
    colours: bool = False,
    fit: str = "stretch",
    turn: int | None = None,
    own: bool = False,
) -> Mask:
    """Read one mask of class values as a square, by nearest neighbour.

    Args:
        path: an image with one channel, a palette (whose indices count), equal channels, or colours.
        size: side of the square, pixels (S).
        values: class index, or IGNORE, of each value that the file may hold; for colours see
            `viny.data.masks.value_number`. In a file with one bit per pixel, set pixels are 255 if 255 is known and
            1 is not.
        colours: whether values are colours.
        fit: how it becomes a square, see `squared`; bars are ignored.
        turn: the EXIF orientation by which the pixels as stored are turned, whatever the file's own says; None: they
            are left as they are loaded.
        own: whether to return the mask at its own size too.

    Raises:
        BadFileError: unreadable, of several pages, with a value that is not in `values`, or with no pixel that has a
            class.
    """
    with _whole(path, "mask") as loaded:
        if loaded.image.mode == "1" and not colours and 255 in values and 1 not in values:
            values = {1: values[255], **values}
        indices = _indices(path, _values(path, loaded, colours), values, colours)
        only = int(indices[0, 0]) if indices.min() == indices.max() else None
        picture = Image.fromarray(indices)
        if turn is not None and turn != loaded.turned:
            for step in (_BACK.get(loaded.turned, loaded.turned), turn):
                picture = picture.transpose(TURNS[step]) if step in TURNS else picture
        shape = (picture.height, picture.width)
        pixels = np.asarray(squared(picture, size, fit, Image.Resampling.NEAREST, 0))
        if fit == "pad":
            left, top, right, bottom = inner_box(*shape, size)
            inside = np.zeros((size, size), bool)
            inside[top:bottom, left:right] = True
            pixels = np.where(inside, pixels, np.uint8(IGNORE))
        if only == IGNORE or (pixels == IGNORE).all():
            raise BadFileError(path, f"no pixel has a class at {size} x {size} pixels; remove it and its image")
        if not own:
            return Mask(pixels, shape, only)
        upright = np.ascontiguousarray(picture)
        return Mask(pixels, shape, only, deflated(upright), short_sha256(upright))


def _read(path: Path, what: str) -> bytes:
    """A file's bytes; `what` is 'image' or 'mask'."""
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):  # a pipe would block for ever
            kind = "a folder" if stat.S_ISDIR(about.st_mode) else "not a regular file"
            raise BadFileError(path, f"cannot be read as {_a(what)} (it is {kind}); replace or remove it")
        if about.st_size > MAX_BYTES:
            raise BadFileError(path, f"cannot be read as {_a(what)} (larger than 1 GiB); replace or remove it")
        data = path.read_bytes()
    except FileNotFoundError as error:
        if what == "mask":
            raise BadFileError(path, "mask is missing; restore it or remove its image from the list") from error
        raise BadFileError(path, "listed image is missing; restore it or remove it from the list") from error
    except OSError as error:
        reason = f"cannot be read as {_a(what)} ({error.strerror}); check its permissions and its disk"
        raise BadFileError(path, reason) from error
    if not data:
        raise BadFileError(path, f"cannot be read as {_a(what)} (the file is empty); replace or remove it")
    return data


def _a(what: str) -> str:
    return "an image" if what == "image" else "a mask"


def _unreadable(what: str, error: Exception) -> str:
    said = str(error) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):  # its text is just a memory address
        said = f"none of the formats {', '.join(FORMATS)}, or its header is damaged"
    return f"cannot be read as {_a(what)} ({said}); replace or remove it"


def open_picture(path: Path, data: bytes | None, what: str) -> Image.Image:
    """A picture whose header has been read and whose size is workable, at its first page that is no reduced copy.

    Args:
        path: the file.
        data: its bytes; None: they are read from the file as they are needed.
        what: 'image' or 'mask'.

    Raises:
        BadFileError: of no workable size. Whatever Pillow raises if the header cannot be read.
    """
    image = Image.open(path if data is None else io.BytesIO(data), formats=FORMATS)
    if image.format == "TIFF" and image.tag_v2.get(254, 0) & _REDUCED:
        image.seek(next((page for page, whole in enumerate(_tiff_pages(image)) if whole), 0))
    width, height = image.size
    if width * height > MAX_PIXELS:
        reason = f"{width} x {height} pixels are more than {MAX_PIXELS:,}"
        raise BadFileError(path, f"cannot be read as {_a(what)} ({reason}); replace or remove it")
    if min(width, height) < MIN_SIDE:
        reason = f"{width} x {height} pixels; a side needs at least {MIN_SIDE}"
        raise BadFileError(path, f"cannot be read as {_a(what)} ({reason}); replace or remove it")
    return image


def _tiff_pages(image: Image.Image) -> list[bool]:
    """For each page of a TIFF whether it is more than a reduced copy of another; stays at the page it is at."""
    here, pages = image.tell(), []
    for page in range(image.n_frames):
        image.seek(page)
        pages.append(not image.tag_v2.get(254, 0) & _REDUCED and image.tag_v2.get(255) != 2)
    image.seek(here)
    return pages


def further_pages(image: Image.Image) -> int:
    """Pages or frames of an opened picture besides the one that is read; thumbnails and previews do not count."""
    if image.format == "MPO" or not getattr(image, "is_animated", False):  # what phones add to a JPEG is no picture
        return 0
    return sum(_tiff_pages(image)) - 1 if image.format == "TIFF" else image.n_frames - 1


def further_channels(image: Image.Image) -> int:
    """Channels of an opened picture that are not read, beyond grey or red, green and blue, and alpha."""
    stated = image.tag_v2.get(277, 1) if image.format == "TIFF" else 0
    return max(0, stated - len(image.getbands()))


def orientation(image: Image.Image, whole: bool = True) -> int:
    """A picture's EXIF orientation, 1 to 8; 1, upright, if its EXIF data are missing or unreadable.

    Args:
        image: opened; of a PNG everything is loaded, unless `whole` is false.
        whole: whether to look for EXIF data behind the pixels too.
    """
    try:
        exif = image.getexif() if whole else Image.Image.getexif(image)
        found = exif.get(_ORIENTATION, 1)
    except Exception:  # many real files have a broken EXIF block but whole pixels
        return 1
    return found if found in TURNS else 1


def is_lossy(path: Path, image: Image.Image) -> bool:
    """Whether an opened picture's pixels were changed to make its file small: JPEG or lossy WebP, by any name."""
    if image.format != "WEBP":
        return image.format in ("JPEG", "MPO") or image.info.get("compression") in ("jpeg", "tiff_jpeg")
    with open(path, "rb") as f:
        f.seek(12)
        while len(start := f.read(8)) == 8:
            if start[:4] in (b"VP8 ", b"VP8L"):
                return start[:4] == b"VP8 "
            size = int.from_bytes(start[4:], "little")
            f.seek(size + size % 2, 1)
    return False


def raw_mode(image: Image.Image) -> str:
    """How the samples of an opened picture lie in its file, in Pillow's words: 'RGB;16B', 'L;I'."""
    if not image.tile:
        return image.mode
    args = image.tile[0].args
    return str(args[0] if isinstance(args, tuple) else args)


def _is_grey_16(image: Image.Image) -> bool:
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")


def bits_per_sample(image: Image.Image) -> int:
    """Bits of a sample of an opened picture that has more than 8 and at most 16; else 0."""
    apart = image.format == "TIFF" and image.tag_v2.get(284) == _PLANAR and image.tag_v2.get(258, (1,))[0] == 16
    if not _is_grey_16(image) and not apart and (";16" not in raw_mode(image) or image.mode == "I"):  # signed are I
        return 0
    return min(16, max(9, image.tag_v2.get(258, (16,))[0])) if image.format == "TIFF" else 16


def white_is_zero(image: Image.Image) -> bool:
    """Whether an opened picture is a TIFF of greys whose 0 means white."""
    return image.format == "TIFF" and image.tag_v2.get(262) == _WHITE_IS_ZERO


def _wide(path: Path, data: bytes, image: Image.Image) -> np.ndarray | None:
    """The samples of an opened picture with 16 bits a channel, uint16 [H, W] or [H, W, C]; None if it has fewer.

    Raises:
        BadFileError: 16 bits a channel in a form that cannot be read.
    """
    if image.format == "TIFF" and image.tag_v2.get(339, (1,))[0] == _SIGNED and image.mode == "L":
        if np.asarray(image).max() > 127:
            raise BadFileError(path, "signed 8-bit samples below 0; convert it to 0 to 255")
        return None
    # Pillow takes only the first letter of a raw mode there, so that 'RGB;16L' and 'L;I' are read as 8 plain bits.
    if image.format == "TIFF" and image.tag_v2.get(284) == _PLANAR and _is_misread_apart(image):
        raise BadFileError(
            path,
            "a TIFF whose channels lie one after the other (PlanarConfiguration 2); save it with PlanarConfiguration "
            "1, or as PNG",
        )
    if not bits_per_sample(image):
        return None
    if _is_grey_16(image):
        return np.asarray(image).astype(np.uint16)
    # Pillow keeps the high byte of each sample. Told the other byte order, it keeps the low one.
    mode, _, order = raw_mode(image).partition(";16")
    if mode not in ("RGB", "RGBA", "RGBX", "LA"):
        raise BadFileError(path, f"16 bits per channel in mode {mode}; convert it to RGB or to 8 bits")
    if mode == "LA":
        pairs = _bytes_as(path, data, "RGBA").astype(np.uint16)
        return pairs[..., ::2] << 8 | pairs[..., 1::2]
    if order == "N":
        order = "L" if sys.byteorder == "little" else "B"
    high, low = (_bytes_as(path, data, f"{mode};16{end}") for end in (order, "LB".replace(order, "")))
    return high.astype(np.uint16) << 8 | low


def _is_misread_apart(image: Image.Image) -> bool:
    """Whether a single letter does not tell how the samples of an opened TIFF lie."""
    if len(image.getbands()) == 1 and image.tile[0].codec_name == "libtiff":  # which knows
        return False
    plain = image.tag_v2.get(258, (1,))[0] == (1 if image.mode == "1" else 8) and image.tag_v2.get(266, 1) == 1
    return not plain or white_is_zero(image)


def _bytes_as(path: Path, data: bytes, raw: str) -> np.ndarray:
    """A picture's pixels, uint8 [H, W, C], with its samples taken for those of another raw mode."""
    with open_picture(path, data, "image") as image:
        image.tile = [
            tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw) for tile in image.tile
        ]
        return np.asarray(image)


def _apart(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The grey or coloured channels of samples [H, W, C], and the alpha channel, if there is one, behind them."""
    count = samples.shape[2] - (samples.shape[2] in (2, 4))
    return samples[..., :count], samples[..., count:]


def _eight_bits(samples: np.ndarray, white: int) -> np.ndarray:
    """16-bit samples as bytes: `white` becomes 255."""
    return ((samples.astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8)


def _white(path: Path, greatest: int, white: int | None) -> int:
    """Which value of 16-bit samples becomes white, see `decode`."""
    if white is None and 0 < greatest <= WHITES[-2]:
        reason = f"16 bits per sample that reach {greatest:,} of 65,535, so their range is not known"
        raise BadFileError(path, f"cannot be read as an image ({reason}); convert it to 8 bits")
    if greatest > (white or WHITES[-1]):
        reason = f"16 bits per sample that reach {greatest:,}, where {white:,} is white in the images that were packed"
        raise BadFileError(path, f"cannot be read as an image ({reason}); convert it to 8 bits")
    return white or WHITES[-1]


def _has_fourth_unnamed(image: Image.Image) -> bool:
    """Whether a loaded picture is a TIFF with a fourth channel that it does not call transparency, and not opaque."""
    unnamed = image.format == "TIFF" and image.mode == "RGBA" and 338 not in image.tag_v2
    return unnamed and image.getextrema()[3] != (255, 255)


def _rgb(path: Path, image: Image.Image, samples: np.ndarray | None, white: int | None) -> Image.Image:
    """A loaded image of any mode as RGB."""
    unnamed = _has_fourth_unnamed(image)
    if samples is not None:
        clear = image.info.get("transparency")  # the one value or colour that is transparent
        if samples.ndim == 2:
            grey = _eight_bits(samples, _white(path, int(samples.max()), white))
            grey = 255 - grey if white_is_zero(image) else grey
            return Image.fromarray(grey if clear is None else np.where(samples == clear, 255, grey)).convert("RGB")
        levels, alpha = _apart(samples)
        white = _white(path, int(levels.max()), white)
        opaque = white if alpha.size and alpha.max() <= white else WHITES[-1]  # some programs always use all 16 bits
        if clear is not None:
            alpha = np.where((levels == clear).all(2, keepdims=True), 0, opaque)
        image = Image.fromarray(np.concatenate([_eight_bits(levels, white), _eight_bits(alpha, opaque)], axis=2))
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I", "F"):
        signed = image.format == "TIFF" and image.tag_v2.get(258, (32,))[0] == 16
        bits = "signed 16 bits" if signed else "32 bits"
        reason = f"{bits} per sample, in a range that the file does not state; convert it to 8 or unsigned 16 bits"
        raise BadFileError(path, f"cannot be read as an image ({reason})")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if unnamed:
            raise BadFileError(path, "has a fourth channel that it does not call transparency; save it with three")
        if image.getextrema()[3] == (0, 0):
            raise BadFileError(path, "shows nothing: every pixel is transparent; remove its alpha channel")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _grey(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L").resize((GREY, GREY), Image.Resampling.BOX))


def small_grey(pixels: np.ndarray) -> np.ndarray:
    """The grey picture that a perceptual hash is made from, uint8 [GREY, GREY], of pixels uint8 [3, S, S]."""
    return _grey(Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))))


def _cosines() -> np.ndarray:
    """The 8 lowest rows of the DCT-II over GREY points, in whole multiples of 2**-15: float64 [8, GREY]."""
    k, n = np.arange(8)[:, None], np.arange(GREY)[None]
    return np.rint(np.cos(np.pi * k * (2 * n + 1) / (2 * GREY)) * (1 << 15))


_COSINES = _cosines()
# The smallest standard deviation of the GREY x GREY picture, in grey levels, at which its hash means anything.
_LEAST_CONTRAST = 4


def perceptual_hashes(greys: np.ndarray) -> np.ndarray:
    """64-bit hashes that differ in few bits between pictures that look the same: uint64 [N].

    The pHash of Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010): each of
    the 8 x 8 lowest DCT coefficients gives one bit, which says whether it is above their median; row by row,
    highest bit first. 0, which no other picture has, stands for a nearly constant picture, whose bits would be
    noise.

    Args:
        greys: uint8 [N, GREY, GREY].
    """
    x = greys.astype(np.float64)
    # Sums of whole numbers below 2**53 are exact in any order, so the bits are the same on every machine. Products
    # of small matrices stay in this thread; one large product would wake the BLAS library's own threads.
    low = (_COSINES @ x @ _COSINES.T).reshape(len(x), 64)
    x = x.reshape(len(x), -1)
    middle = np.partition(low, (31, 32), axis=1)[:, 31:33]
    bits = 2 * low > middle.sum(1, keepdims=True)  # above the median
    found = np.packbits(bits, axis=1).view(">u8")[:, 0].astype(np.uint64)
    total, squares = x.sum(1), np.einsum("ij,ij->i", x, x)
    found[squares * x.shape[1] - total * total < (_LEAST_CONTRAST * x.shape[1]) ** 2] = 0
    return found
