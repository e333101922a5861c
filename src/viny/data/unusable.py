"""Why files that should be images or masks cannot be opened, in words for `viny check` and `viny init`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from viny.data.conventions import Head, Heads, each, turned
from viny.data.decoding import BadFileError, mask_values, upright
from viny.data.folders import few
from viny.data.foreign import START, foreign

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def why(path: Path, what: str) -> str:
    """Why a file whose header cannot be read is no picture, and what to do; empty if it is one after all.

    Args:
        path: the file.
        what: 'image' or 'mask'.
    """
    start = b""
    try:
        if path.is_file():  # a pipe would block for ever
            with open(path, "rb") as f:
                start = f.read(START)
    except OSError:
        pass  # decoding says why
    if known := foreign(start):
        return known
    try:
        upright(path) if what == "image" else mask_values(path, False)
    except BadFileError as error:
        if start.startswith(TIFF) and "header is damaged" in error.reason:
            return "a damaged TIFF, or one with channels or samples that cannot be read; save it as PNG"
        return error.reason
    return ""


@dataclass(frozen=True)
class Unusable:
    """Files of a data set that their headers show to be of no use.

    Attributes:
        images, masks: those whose header cannot be read, each with the reason.
        sizes: images that have another size than their masks, with both sizes in words.
        pairs: how many images cannot be used, for themselves or for their masks.
        of: how many images there are.
        said: what was found, with the first names for each reason; empty if nothing was.
    """

    images: dict[Path, str]
    masks: dict[Path, str]
    sizes: dict[Path, str]
    pairs: int
    of: int
    said: str


def unusable(heads: Heads, turns: Sequence[int] = ()) -> Unusable:
    """Which images and masks cannot be used, by their headers, and why.

    Args:
        heads: of all of them.
        turns: see `viny.data.conventions.Conventions`; none: sizes are not compared.
    """
    images = _unread("image", heads.images, heads.of_images)
    masks = _unread("mask", heads.masks, heads.of_masks)
    sizes = {}
    lines = zip(heads.images, heads.of_images, heads.of_masks, turns, strict=True) if turns else ()
    for path, image, mask, turn in lines:
        if image and mask and image.upright != turned(mask.shape, turn):
            one, other = ("{} x {}".format(*shape) for shape in (image.upright, turned(mask.shape, turn)))
            sizes[path] = f"is {one} pixels (height x width), but its mask {other}; they must be the same size"
    lost = {*images, *sizes, *(image for image, mask in zip(heads.images, heads.masks, strict=False) if mask in masks)}
    kinds = (("images", images, heads.images), ("masks", masks, heads.masks))
    bad = [(what, some, every) for what, some, every in kinds if some]
    said = []
    if bad:
        counted = " and ".join(f"{len(some):,} of {len(every):,} {what}" for what, some, every in bad)
        said.append(f"{counted} cannot be opened: {'; '.join(by_reason(some, _over(every)) for _, some, every in bad)}")
    if sizes:
        shown = by_reason(sizes, _over(heads.images))
        said.append(f"{len(sizes):,} of {len(heads.images):,} images have another size than their masks: {shown}")
    return Unusable(images, masks, sizes, len(lost), len(heads.images), "; ".join(said))


def _unread(what: str, paths: Sequence[Path], heads: Sequence[Head | None]) -> dict[Path, str]:
    bad = [path for path, head in zip(paths, heads, strict=True) if head is None]
    reasons = each(lambda path: why(path, what), bad, "read files", "file")
    return {path: reason for path, reason in zip(bad, reasons, strict=True) if reason}


def by_reason(files: Mapping[Path, str], folder: Path | None = None) -> str:
    """The first names for each reason, below a folder; None: below the one that holds all of these files."""
    folder = folder or _over(files)
    names: dict[str, list[str]] = {}
    for path, reason in files.items():
        names.setdefault(reason, []).append(os.path.relpath(path, folder))
    return "; ".join(f"{few(some)}: {reason}" for reason, some in names.items())


def _over(files: Iterable[Path]) -> Path:
    """The folder that holds all of them."""
    return Path(os.path.commonpath([os.path.abspath(path.parent) for path in files]))
