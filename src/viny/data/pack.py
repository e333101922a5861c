"""Packs: a data set decoded and resized once into memory-mapped uint8 arrays, whose bytes are checked before use.

A pack is a folder with images.npy [N, 3, S, S] and shapes.npy [N, 2] (height and width of the originals);
labels.npy [N], parts.npy [N] (0 train, 1 test) and masks.npy [N, S, S] if the source has them; of mask files also
own_masks.bin, each at its own size (see `viny.data.masks.deflated`), and own_masks.npy [N, 2], where in it a mask
begins and how long it is; large.npy [N, 3, T, T], the images at a multiple of their size, if the model is to see tiles
of them; files.sums [N, 16] and images.phash [N] for the search for duplicates; a names.txt and a
contents.txt (hashes of the files that it was made from); and a manifest.json that holds only what the content
determines. `viny.data.packing` makes packs.

images.npy, masks.npy and large.npy are large, so a hash of each row is kept beside them (images.sums.npy, ...,
uint8 [N, 16], the first bytes of the sha256 of the row's bytes), and `Pack.rows` checks each row the first time
it is read. Their hash in the manifest is made from these row hashes. So is that of own_masks.npy, whose row hashes,
own_masks.sums.npy, are of the masks themselves, however well they were compressed. All other files are small and are
hashed whole whenever a pack is opened; the manifest's own hash covers everything else in it.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from viny.data.decoding import HASH, short_sha256
from viny.data.masks import inflated
from viny.runtime.errors import InputError
from viny.runtime.files import array_sha256, digest, open_file, read_json
from viny.runtime.processes import unfinished

FORMAT = 2
TRAIN, TEST = 0, 1  # values of parts.npy
BY_ROW = ("images", "masks", "large", "own_masks")  # arrays with a hash per row
BLOCK = 256  # rows read at a time

# Type and shape of each array, for N rows and images of side S; T is a multiple of it.
ARRAYS: dict[str, tuple[str, tuple[str | int, ...]]] = {
    "images": ("|u1", ("N", 3, "S", "S")),
    "masks": ("|u1", ("N", "S", "S")),
    "images.sums": ("|u1", ("N", HASH)),
    "masks.sums": ("|u1", ("N", HASH)),
    "large": ("|u1", ("N", 3, "T", "T")),
    "large.sums": ("|u1", ("N", HASH)),
    "own_masks": ("<i8", ("N", 2)),
    "own_masks.sums": ("|u1", ("N", HASH)),
    "files.sums": ("|u1", ("N", HASH)),
    "images.phash": ("<u8", ("N",)),
    "shapes": ("<i4", ("N", 2)),
    "labels": ("<i4", ("N",)),
    "parts": ("|u1", ("N",)),
}
CONTENTS = "contents.txt"
TEXTS = ("names.txt", CONTENTS)
OWN_MASKS = "own_masks.bin"
FILES = (*TEXTS, OWN_MASKS)  # that a pack may have besides its arrays
NEEDED = ("images", "images.sums", "files.sums", "images.phash", "shapes")


@dataclass
class Pack:
    """An opened pack; arrays are read-only. `images` and `masks` are memory maps: read their rows with `rows`."""

    folder: Path
    manifest: dict[str, Any]
    images: np.ndarray
    shapes: np.ndarray
    labels: np.ndarray | None = None
    parts: np.ndarray | None = None
    masks: np.ndarray | None = None
    name_lines: bytes = b""  # what names.txt holds
    file_sums: np.ndarray | None = None  # uint8 [N, 16], hashes of the files' bytes
    phash: np.ndarray | None = None  # uint64 [N], see `viny.data.decoding.perceptual_hashes`
    sums: dict[str, np.ndarray] = field(default_factory=dict)  # hashes of the rows of images and masks
    large: np.ndarray | None = None  # uint8 [N, 3, T, T]
    own_masks: np.ndarray | None = None  # int64 [N, 2]: begin and length of each in own_masks.bin; read by `own_mask`
    _checked: dict[str, np.ndarray] = field(default_factory=dict, repr=False)  # bool [N]: rows checked so far

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def names(self) -> list[str]:
        """Paths of the images below the source's folder; empty for synthetic ones. Decoded late: few jobs need them."""
        return self.name_lines.decode("utf-8").split("\n")[:-1]

    @property
    def sha256(self) -> str:
        return self.manifest["sha256"]

    def rows(self, name: str, indices: np.ndarray) -> np.ndarray:
        """Rows of an array, in memory, each checked against its hash the first time it is read.

        Args:
            name: 'images', 'masks', 'large' or 'labels'.
            indices: [M], whole numbers from 0 to N - 1, in any order, with or without repeats.

        Returns:
            [M, ...], a copy.

        Raises:
            InputError: there is no such row, or its bytes are not those that were packed.
        """
        array = {"images": self.images, "masks": self.masks, "large": self.large, "labels": self.labels}[name]
        if array is None:
            raise InputError(f"{self.folder}: source '{self.manifest['source']}' has no {name}; use one that does")
        indices = np.asarray(indices)
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(array):
            raise InputError(
                f"{self.folder}: has rows 0 to {len(array) - 1} of {name}, but {indices.min()} to {indices.max()} "
                "are wanted; delete the split that lists them and run again"
            )
        out = np.empty((len(indices), *array.shape[1:]), array.dtype)
        order = np.argsort(indices, kind="stable")  # so that the disk is read in one direction
        for start in range(0, len(order), BLOCK):
            here = order[start : start + BLOCK]
            block = array[indices[here]]
            self._check(name, indices[here], block)
            out[here] = block
            _let_go(array)
        return out

    def own_mask(self, row: int) -> np.ndarray:
        """A mask at its image's own size, uint8 [H, W] as `shapes` has them: class indices, or IGNORE.

        Raises:
            InputError: the pack has none, or its bytes are not those that were packed.
        """
        if self.own_masks is None:
            raise InputError(f"{self.folder}: has no masks at their own size; {_again(self.folder)}")
        (begin, length), file = self.own_masks[row].tolist(), self.folder / OWN_MASKS
        try:
            with open_file(file) as f:
                f.seek(begin)
                mask = inflated(f.read(length), *self.shapes[row].tolist())
        except (OSError, ValueError) as error:
            raise InputError(f"{file}: the mask of image {self.name(row)}: {error}; {_again(self.folder)}") from error
        if short_sha256(mask) != self.sums["own_masks"][row].tobytes():
            raise InputError(
                f"{file}: the mask of image {self.name(row)} is damaged: its bytes are not those that were packed; "
                f"{_again(self.folder)}"
            )
        return mask

    def _check(self, name: str, rows: np.ndarray, block: np.ndarray) -> None:
        """Check these rows' bytes [M, ...] against their hashes, unless that was done before."""
        if name not in self.sums:
            return  # a small array, checked when the pack was opened
        checked = self._checked.setdefault(name, np.zeros(len(self), bool))
        for at in np.flatnonzero(~checked[rows]):
            row = int(rows[at])
            if short_sha256(np.ascontiguousarray(block[at])) != self.sums[name][row].tobytes():
                raise InputError(
                    f"{self.folder / name}.npy: row {row}, of image {self.name(row)}, is damaged: its bytes are not "
                    f"those that were packed; {_again(self.folder)}"
                )
            checked[row] = True

    def name(self, row: int) -> str:
        """What an image is called in messages and tables: its path below the source's folder, or its number."""
        return self.names[row] if self.names else f"{self.manifest['source']} {row}"


def _let_go(array: np.ndarray) -> None:
    """Drop a map's pages from this process, which would else grow to the file's size; the system keeps them cached."""
    pages = getattr(array, "_mmap", None)
    if pages is not None and hasattr(mmap, "MADV_DONTNEED"):
        pages.madvise(mmap.MADV_DONTNEED)


def _again(folder: Path) -> str:
    return f"delete {folder} and run again to repack it"


def stored_at(spec: Mapping[str, Any], store: Path) -> Path:
    """A pack's folder in the store, keyed by what the pack is made from: its settings, and `code` if given."""
    return store / f"{spec['source']}-{spec['size']}-{digest(dict(spec))[:12]}"


def rows_sha256(dtype: str, shape: tuple[int, ...], sums: np.ndarray) -> str:
    """Hex sha256 of an array of that type and shape, from the hashes of its rows (uint8 [N, HASH])."""
    h = hashlib.sha256(f"{dtype}{tuple(shape)}".encode())
    h.update(np.ascontiguousarray(sums).data)
    return h.hexdigest()


def manifest_sha256(manifest: Mapping[str, Any]) -> str:
    """Hex sha256 of everything else that a manifest holds."""
    return digest({key: value for key, value in manifest.items() if key != "sha256"})


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a manifest and check it against its own hash.

    Raises:
        InputError: missing, from another version, or changed.
    """
    manifest = read_json(path, "a pack manifest")
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(
            f"{path}: not a pack manifest of format {FORMAT}; delete it and its images.npy and run again to repack it"
        )
    try:
        found = manifest_sha256(manifest)
    except ValueError as error:  # NaN and infinities, which Python reads but JSON does not have
        raise InputError(f"{path}: not a pack manifest ({error}); delete it and run again") from error
    if manifest.get("sha256") != found:
        raise InputError(f"{path}: changed since it was written (its sha256 differs); delete it and run again")
    return manifest


def _expected(path: Path, manifest: Mapping[str, Any]) -> dict[str, tuple[str, list[int], str]]:
    """Type, shape and hash of each array in a manifest.

    Raises:
        InputError: it does not describe a pack.
    """

    def need(condition: bool, what: str) -> None:
        if not condition:
            raise InputError(f"{path}: not a pack manifest: {what}; delete it and run again")

    sides = {"N": manifest.get("count"), "S": manifest.get("resolution")}
    tiles = manifest.get("tiles", 1)
    for key, value in (("count", sides["N"]), ("resolution", sides["S"]), ("tiles", tiles)):
        need(type(value) is int and value > 0, f"'{key}' is {value!r}, expected a whole number above 0")
    sides["T"] = tiles * sides["S"]
    need(isinstance(manifest.get("source"), str), "'source' is not text")
    for key in ("classes", "mask_classes"):
        words = manifest.get(key)
        need(isinstance(words, list) and all(isinstance(w, str) for w in words), f"'{key}' is not a list of texts")
    arrays = manifest.get("arrays")
    need(isinstance(arrays, dict), "'arrays' is not a mapping")
    out = {}
    for name, about in arrays.items():
        need(name in ARRAYS, f"'arrays' holds {name!r}; known are {', '.join(ARRAYS)}")
        dtype, shape = ARRAYS[name][0], [sides.get(side, side) for side in ARRAYS[name][1]]
        need(isinstance(about, dict), f"'arrays.{name}' is not a mapping")
        said = (about.get("dtype"), about.get("shape"))
        need(said == (dtype, shape), f"'arrays.{name}' is {said}, expected {(dtype, shape)}")
        need(isinstance(about.get("sha256"), str), f"'arrays.{name}.sha256' is not text")
        out[name] = (dtype, shape, about["sha256"])
    lacking = [name for name in NEEDED if name not in out]
    lacking += [sums for name in BY_ROW if name in out and (sums := f"{name}.sums") not in out]
    need(not lacking, f"'arrays' lacks {', '.join(lacking)}")
    for key in ("names_sha256", "contents"):
        need(manifest.get(key) is None or isinstance(manifest[key], str), f"'{key}' is not text")
    return out


def open_pack(manifest_path: str | Path, node_local: bool = False) -> Pack:
    """Open a pack by its manifest; the arrays are beside it, or beside the file that its images.npy links to.

    Small arrays and the names are checked whole against the manifest; rows of images and masks are checked when
    they are read, see `Pack.rows`.

    Args:
        manifest_path: the study's copy of the manifest.
        node_local: whether a copy on this machine's own disk may be used, see `local_copy`.

    Raises:
        InputError: a file is missing, or is not what the manifest says.
    """
    manifest_path = Path(manifest_path)
    manifest = read_manifest(manifest_path)
    folder = Path(os.path.realpath(manifest_path.parent / "images.npy")).parent
    expected = _expected(manifest_path, manifest)
    arrays = {name: _map(folder, name, *about[:2]) for name, about in expected.items()}
    if node_local and (copy := local_copy(folder, manifest["sha256"])) != folder:  # only whole files are copied
        folder = copy
        arrays = {name: _map(folder, name, *about[:2]) for name, about in expected.items()}
    for name, (dtype, shape, sha256) in expected.items():
        if name in BY_ROW:
            found = rows_sha256(dtype, tuple(shape), arrays[f"{name}.sums"])
        else:
            arrays[name] = np.array(arrays[name])  # out of the map, so that what is checked is what is used
            arrays[name].flags.writeable = False
            found = array_sha256(arrays[name])
        if found != sha256:
            file = f"{name}.sums" if name in BY_ROW else name
            raise InputError(f"{folder / file}.npy: content differs from {manifest_path}; {_again(folder)}")
    name_lines = _name_lines(folder, manifest_path, manifest)
    _check_values(folder, manifest, arrays)
    return Pack(
        folder,
        manifest,
        arrays["images"],
        arrays["shapes"],
        labels=arrays.get("labels"),
        parts=arrays.get("parts"),
        masks=arrays.get("masks"),
        name_lines=name_lines,
        file_sums=arrays["files.sums"],
        phash=arrays["images.phash"],
        sums={name: arrays[f"{name}.sums"] for name in BY_ROW if name in arrays},
        large=arrays.get("large"),
        own_masks=arrays.get("own_masks"),
    )


def local_copy(folder: Path, sha256: str) -> Path:
    """A pack's folder on this machine's own disk if the job is told to work there; else the one given.

    A job that streams images from a network file system competes with all others for it. If VINY_NODE_LOCAL
    is 1, the pack is copied once, below $SLURM_TMPDIR or $TMPDIR, for all jobs that see that folder. If there
    is no room for a copy, none is made, and a message says so.
    """
    place = os.environ.get("SLURM_TMPDIR") or os.environ.get("TMPDIR")
    if os.environ.get("VINY_NODE_LOCAL") != "1" or not place:
        return folder
    copy = Path(place) / f"viny-pack-{sha256[:16]}"
    if copy.is_dir():
        return copy
    tmp = unfinished(copy)
    try:
        needed, free = sum(f.stat().st_size for f in folder.iterdir()), shutil.disk_usage(place).free
        if needed > free:
            raise OSError(errno.ENOSPC, f"{needed / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free")
        shutil.copytree(folder, tmp)
        os.rename(tmp, copy)
    except OSError as error:
        shutil.rmtree(tmp, ignore_errors=True)
        if copy.is_dir():
            return copy  # another job was faster
        print(f"{place}: no copy of {folder} could be made ({error.strerror}); images are read in place", flush=True)
        return folder
    return copy


def _map(folder: Path, name: str, dtype: str, shape: list[int]) -> np.ndarray:
    """A read-only map of an array's file, which must be whole: touching a missing page kills the process."""
    file = folder / f"{name}.npy"
    try:
        open_file(file).close()  # refuses a pipe, which would keep us waiting
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except MemoryError:
        raise
    except Exception as error:  # a damaged header can fail in many ways
        # Of what begins like no array, NumPy says how to unpickle it, which nobody should.
        said = "does not begin like an array" if "pickle" in str(error) else str(error)
        raise InputError(f"{file}: {said}; expected {dtype} {shape}; {_again(folder)}") from error
    if not isinstance(array, np.memmap) or list(array.shape) != shape or array.dtype.str != dtype:
        found = f"{array.dtype.str} {list(array.shape)}" if isinstance(array, np.ndarray) else "no array"
        raise InputError(f"{file}: holds {found}, but its manifest says {dtype} {shape}; {_again(folder)}")
    if not array.flags.c_contiguous or file.stat().st_size != array.offset + array.nbytes:
        raise InputError(f"{file}: not the size of {dtype} {shape}; {_again(folder)}")
    return array


def _name_lines(folder: Path, manifest_path: Path, manifest: Mapping[str, Any]) -> bytes:
    file = folder / "names.txt"
    data = _checked_text(file, manifest_path, manifest.get("names_sha256"), "the images' names")
    if data and data.count(b"\n") != manifest["count"]:
        raise InputError(f"{file}: does not hold {manifest['count']} names; {_again(folder)}")
    return data


def _checked_text(file: Path, manifest_path: Path, sha256: str | None, what: str) -> bytes:
    """What a small file of a pack holds, whose hash is in the manifest; nothing if there is none."""
    if sha256 is None:
        return b""
    try:
        with open_file(file) as f:
            data = f.read()
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}; expected {what}; {_again(file.parent)}") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise InputError(f"{file}: content differs from {manifest_path}; {_again(file.parent)}")
    return data


def _check_values(folder: Path, manifest: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Check that labels name classes and parts are parts: a hash cannot tell that a pack was made wrongly."""
    for name, limit in (("labels", len(manifest["classes"])), ("parts", TEST + 1)):
        if name in arrays and not 0 <= arrays[name].min() <= arrays[name].max() < limit:
            raise InputError(f"{folder / name}.npy: holds values beyond 0 to {limit - 1}; {_again(folder)}")


def verify_pack(manifest_path: str | Path) -> None:
    """Check every byte of a pack against its manifest.

    Raises:
        InputError: names the file that differs, and for images and masks the row and the image.
    """
    pack = open_pack(manifest_path)
    _checked_text(pack.folder / CONTENTS, Path(manifest_path), pack.manifest.get("contents"), "the files' hashes")
    blocks = {"images": BLOCK, "masks": BLOCK, "large": max(1, BLOCK // pack.manifest.get("tiles", 1) ** 2)}
    for name, block in blocks.items():
        if name in pack.sums:
            for start in range(0, len(pack), block):
                pack.rows(name, np.arange(start, min(start + block, len(pack))))
    if pack.own_masks is not None:
        for row in range(len(pack)):
            pack.own_mask(row)
