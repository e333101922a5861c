"""Packs: a data set decoded and resized once into memory-mapped uint8 arrays.

A pack is a folder with images.npy [N, 3, S, S] and shapes.npy [N, 2] (height and width of the originals),
where the source has them labels.npy [N], parts.npy [N] (0 train, 1 test) and masks.npy [N, S, S], a
names.txt, and a manifest.json that holds nothing but what the content determines. `viny.data.packing`
makes them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from viny.errors import InputError
from viny.files import array_sha256, read_json

TRAIN, TEST = 0, 1  # values of parts.npy


@dataclass
class Pack:
    """An opened pack; arrays are read-only memory maps."""

    folder: Path
    manifest: dict[str, Any]
    images: np.ndarray
    shapes: np.ndarray
    labels: np.ndarray | None
    parts: np.ndarray | None
    masks: np.ndarray | None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def sha256(self) -> str:
        return self.manifest["sha256"]


def open_pack(manifest_path: str | Path) -> Pack:
    """Open a pack by its manifest; the arrays stand beside it or beside what its images.npy links to.

    Raises:
        InputError: a file is missing, or an array is not what the manifest says.
    """
    manifest_path = Path(manifest_path)
    manifest = read_json(manifest_path, "a pack manifest")
    folder = Path(os.path.realpath(manifest_path.parent / "images.npy")).parent
    arrays: dict[str, np.ndarray] = {}
    for name, about in manifest["arrays"].items():
        file = folder / f"{name}.npy"
        try:
            array = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(
                f"{file}: {error}; {manifest_path} says it is {about['dtype']} {about['shape']}; "
                f"delete {manifest_path} and rerun to pack again"
            ) from error
        if list(array.shape) != about["shape"] or array.dtype.str != about["dtype"]:
            raise InputError(
                f"{file}: holds {array.dtype.str} {list(array.shape)}, but {manifest_path} says "
                f"{about['dtype']} {about['shape']}; delete both and rerun to pack again"
            )
        arrays[name] = array
    optional = {name: arrays.get(name) for name in ("labels", "parts", "masks")}
    return Pack(folder, manifest, arrays["images"], arrays["shapes"], **optional)


def verify_pack(manifest_path: str | Path) -> None:
    """Recompute the hash of every array.

    Raises:
        InputError: names the array whose bytes are not those of the manifest.
    """
    pack = open_pack(manifest_path)
    for name, about in pack.manifest["arrays"].items():
        found = array_sha256(np.load(pack.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False))
        if found != about["sha256"]:
            raise InputError(
                f"{pack.folder / name}.npy: content differs from {manifest_path} (sha256 {found[:12]}, expected "
                f"{about['sha256'][:12]}); delete {pack.folder} and rerun to pack again"
            )
