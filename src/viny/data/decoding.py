"""Decoding one image or mask file: any mode and orientation in; a square of uint8 out, or a reason why not.

A file is read once: what is hashed is what is decoded. Nothing here knows about packs.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from viny.data.masks import IGNORE, value_name
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
HASH = 16  # bytes kept of a sha256
GREY = 32  # side of the picture that a perceptual hash is made from, pixels

_ORIENTATION = 0x0112  # EXIF
_TURNS = {  # what turns a picture upright, by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


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
    unrotated: bool  # whether an EXIF orientation was ignored because the mask fits without it


@dataclass(frozen=True, slots=True)
class Mask:
    """A decoded mask."""

    pixels: np.ndarray  # uint8 [S, S], class indices, or IGNORE
    shape: tuple[int, int]  # height and width of the original, pixels
    only: int | None  # the only class in the original; None if it shows several


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
    path: Path, size: int, resize: str, mask_shape: tuple[int, int] | None = None, fit: str = "stretch"
) -> Picture:
    """Read one image as an upright RGB square.

    JPEGs are decoded at 1/2, 1/4 or 1/8 scale if that still leaves at least the pixels wanted, so that the
    antialiased resize has the last word; for nearest neighbour, always at full scale. Transparent pixels are
    laid on white, 16-bit greys are scaled to 8 bits, only the first frame of an animation is used, and the EXIF
    orientation is applied.

    Args:
        path: the image file.
        size: side of the square, pixels (S).
        resize: 'antialias' or 'nearest'.
        mask_shape: height and width of its mask, if it has one. It must fit the upright image; if it fits the
            image as stored instead, the mask was drawn on that, and the orientation is ignored.
        fit: how it becomes a square, see `squared`.

    Raises:
        BadFileError: the file cannot be read as an image, or does not fit its mask.
    """
    data = _read(path, "image")
    try:
        with _open(path, data, "image") as image, _PIXELS.taken(_memory_for(image)):
            width, height = image.size  # before draft mode makes it smaller
            if resize == "antialias":
                image.draft("RGB", (size, size))
            image.load()
            turn = _turn(image)
            upright = (width, height) if turn in _LYING else (height, width)
            unrotated = False
            if mask_shape is not None and mask_shape != upright:
                if mask_shape != (height, width):
                    expected = f"{upright[0]} x {upright[1]} pixels (height x width)"
                    found = f"{mask_shape[0]} x {mask_shape[1]}"
                    raise BadFileError(path, f"is {expected}, but its mask {found}; they must be the same size")
                turn, upright, unrotated = None, mask_shape, True
            image = _rgb(path, image)
            if turn is not None:
                image = image.transpose(turn)
            square = squared(image, size, fit, RESAMPLING[resize], BARS)
            # From the antialiased square, which is small; nearest neighbour's would alias.
            grey = _grey(square if resize == "antialias" else image)
            return Picture(np.asarray(square).transpose(2, 0, 1), upright, grey, short_sha256(data), unrotated)
    except (BadFileError, MemoryError):
        raise
    except Exception as error:  # each decoder raises its own errors, even IndexError, struct.error, zlib.error
        raise BadFileError(path, _unreadable("image", error)) from error


def _values(path: Path, image: Image.Image, colours: bool) -> np.ndarray:
    """Every pixel's value in a loaded mask, [H, W], whole numbers below 2**24; a colour is its six hex digits."""
    if colours:
        if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
            raise BadFileError(path, f"expected colours with 8 bits per channel, got mode {image.mode}; replace it")
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
    raw = np.asarray(image)
    return raw.astype(np.uint8) if image.mode == "1" else raw


@_in_turn
def mask_values(path: Path, colours: bool) -> np.ndarray:
    """The values in a mask file, ascending, colours as the numbers that their six hex digits spell: int64 [M].

    Raises:
        BadFileError: unreadable, or colours where values are expected.
    """
    with _whole(path, "mask") as image:
        return np.unique(_values(path, image, colours)).astype(np.int64)


@_in_turn
def upright(path: Path) -> Image.Image:
    """A whole image as people see it, RGB, made by the same steps as `decode`'s square.

    Raises:
        BadFileError: as `decode`.
    """
    with _whole(path, "image") as image:
        turn, whole = _turn(image), _rgb(path, image)
        return whole if turn is None else whole.transpose(turn)


@contextmanager
def _whole(path: Path, what: str) -> Iterator[Image.Image]:
    """A loaded picture; `what` is 'image' or 'mask'. Whatever goes wrong with it becomes a `BadFileError`."""
    data = _read(path, what)
    try:
        with _open(path, data, what) as image, _PIXELS.taken(_memory_for(image)):
            image.load()
            yield image
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
def decode_mask(path: Path, size: int, values: Mapping[int, int], colours: bool = False, fit: str = "stretch") -> Mask:
    """Read one mask of class values as a square, by nearest neighbour.

    Args:
        path: an image with one channel, a palette (whose indices count), equal channels, or colours.
        size: side of the square, pixels (S).
        values: class index, or IGNORE, of each value that the file may hold; for colours see
            `viny.data.masks.value_number`. In a file with one bit per pixel, set pixels are 255 if 255 is known and
            1 is not.
        colours: whether values are colours.
        fit: how it becomes a square, see `squared`; bars are ignored.

    Raises:
        BadFileError: unreadable, with a value that is not in `values`, or with no pixel that has a class.
    """
    with _whole(path, "mask") as image:
        if image.mode == "1" and not colours and 255 in values and 1 not in values:
            values = {1: values[255], **values}
        raw = _values(path, image, colours)
        indices = _indices(path, raw, values, colours)
        only = int(indices[0, 0]) if indices.min() == indices.max() else None
        pixels = np.asarray(squared(Image.fromarray(indices), size, fit, Image.Resampling.NEAREST, 0))
        if fit == "pad":
            left, top, right, bottom = inner_box(*raw.shape, size)
            inside = np.zeros((size, size), bool)
            inside[top:bottom, left:right] = True
            pixels = np.where(inside, pixels, np.uint8(IGNORE))
        if only == IGNORE or (pixels == IGNORE).all():
            raise BadFileError(path, f"no pixel has a class at {size} x {size} pixels; remove it and its image")
        return Mask(pixels, raw.shape, only)


_LYING = (  # turns that swap height and width
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)


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


def _open(path: Path, data: bytes, what: str) -> Image.Image:
    """A picture whose header has been read and whose size is workable."""
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    width, height = image.size
    if width * height > MAX_PIXELS:
        reason = f"{width} x {height} pixels are more than {MAX_PIXELS:,}"
        raise BadFileError(path, f"cannot be read as {_a(what)} ({reason}); replace or remove it")
    if min(width, height) < MIN_SIDE:
        reason = f"{width} x {height} pixels; a side needs at least {MIN_SIDE}"
        raise BadFileError(path, f"cannot be read as {_a(what)} ({reason}); replace or remove it")
    return image


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What turns a loaded image upright; None if it already is, or if its EXIF data are missing or unreadable."""
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # many real files have a broken EXIF block but whole pixels
        return None


def _rgb(path: Path, image: Image.Image) -> Image.Image:
    """A loaded image of any mode as RGB."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        wide = np.asarray(image).astype(np.uint32)  # 65,535 becomes 255; `convert` would clip
        return Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        reason = "32 bits per sample, in a range that the file does not state; convert it to 8 or 16 bits"
        raise BadFileError(path, f"cannot be read as an image ({reason})")
    if image.has_transparency_data:
        image = image.convert("RGBA")
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
