"""Making packs: decode, stretch, write, hash; shared between studies through a store."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from viny.data.pack import verify_pack
from viny.data.sources import Listing, fetch_pets, list_source
from viny.errors import InputError
from viny.files import array_sha256, atomic_path, digest, write_json

FORMAT = 1
RESAMPLING = {"antialias": Image.Resampling.BILINEAR, "nearest": Image.Resampling.NEAREST}
ASPECT = (
    "stretched to a square; shapes.npy keeps the original height and width, and random crops are drawn in "
    "the original's geometry"
)


def decode(path: Path, size: int, resize: str) -> tuple[np.ndarray, tuple[int, int]]:
    """Read one image, stretched to a square.

    JPEGs are decoded at 1/2, 1/4 or 1/8 scale where that still leaves at least the pixels that are wanted, so
    that the antialiased resize after it has the last word; for nearest neighbour at full scale always.

    Args:
        path: the image file.
        size: side wanted, pixels (S).
        resize: 'antialias' or 'nearest'.

    Returns:
        uint8 [3, S, S], and height and width of the original in pixels.

    Raises:
        InputError: the file cannot be read as an image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            if resize == "antialias":
                image.draft("RGB", (size, size))
            image = image.convert("RGB").resize((size, size), RESAMPLING[resize])
            return np.asarray(image).transpose(2, 0, 1), (height, width)
    except FileNotFoundError as error:
        raise InputError(f"{path}: listed image is missing; restore it or remove it from the list") from error
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as an image ({error}); replace or remove it") from error


def decode_mask(path: Path, size: int, values: Mapping[int, int]) -> np.ndarray:
    """Read one mask of class values, stretched to a square by nearest neighbour: uint8 [S, S].

    Args:
        path: a single-channel image.
        size: side wanted, pixels (S).
        values: class index of each value that the file may hold.

    Raises:
        InputError: unreadable, or with a value that is not in `values`.
    """
    try:
        with Image.open(path) as image:
            raw = np.asarray(image.resize((size, size), Image.Resampling.NEAREST))
    except FileNotFoundError as error:
        raise InputError(f"{path}: mask is missing; restore it or remove its image from the list") from error
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a mask ({error}); replace or remove it") from error
    if raw.ndim != 2:
        raise InputError(f"{path}: expected one channel of class values, got shape {raw.shape}")
    unknown = sorted(set(np.unique(raw).tolist()) - set(values))
    if unknown:
        raise InputError(f"{path}: unknown mask values {unknown[:8]}; expected {sorted(values)}")
    table = np.zeros(256, np.uint8)
    table[list(values)] = list(values.values())
    return table[raw]


def _array(folder: Path, name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    path = folder / f"{name}.npy"
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    # A full disk is an error here; met later, by a write to the memory map, it kills the process.
    if hasattr(os, "posix_fallocate"):
        try:
            with open(path, "r+b") as f:
                os.posix_fallocate(f.fileno(), 0, path.stat().st_size)
        except OSError as error:
            error.filename = str(path)
            raise
    return array


def _fill(count: int, threads: int, work: Callable[[int], None], what: str) -> None:
    """Run `work` for every index on `threads` threads; Pillow decodes and resizes outside Python's lock."""
    bar = tqdm(total=count, desc=what, unit="image", mininterval=1.0, disable=None)
    with ThreadPoolExecutor(threads) as pool, bar:
        chunk = 64
        starts = range(0, count, chunk)

        def run(start: int) -> int:
            stop = min(start + chunk, count)
            for i in range(start, stop):
                work(i)
            return stop - start

        try:
            for done in pool.map(run, starts):
                bar.update(done)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _pack_files(listing: Listing, spec: Mapping[str, Any], folder: Path, threads: int) -> dict[str, Any]:
    count, size = len(listing.images), spec["size"]
    arrays = {
        "images": _array(folder, "images", (count, 3, size, size), np.uint8),
        "shapes": _array(folder, "shapes", (count, 2), np.int32),
    }
    if listing.masks:
        arrays["masks"] = _array(folder, "masks", (count, size, size), np.uint8)
    if listing.labels:
        arrays["labels"] = _array(folder, "labels", (count,), np.int32)
        arrays["labels"][:] = listing.labels
    if listing.parts:
        arrays["parts"] = _array(folder, "parts", (count,), np.uint8)
        arrays["parts"][:] = listing.parts

    def work(i: int) -> None:
        arrays["images"][i], arrays["shapes"][i] = decode(listing.images[i], size, spec["resize"])
        if listing.masks:
            arrays["masks"][i] = decode_mask(listing.masks[i], size, listing.mask_values)

    _fill(count, threads, work, f"pack {spec['source']}")
    base = Path(spec["path"])
    names = [os.path.relpath(p, base) for p in listing.images]
    (folder / "names.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    return {"arrays": arrays, "classes": listing.classes, "mask_classes": listing.mask_classes}


def _pack_synthetic(spec: Mapping[str, Any], folder: Path, threads: int) -> dict[str, Any]:
    from viny.data.synthetic import KINDS, SCENES, SEGMENTATION_CLASSES, render

    count, size, stream = spec["count"], spec["size"], spec["stream"]
    scenes = stream == "scenes"
    arrays = {
        "images": _array(folder, "images", (count, 3, size, size), np.uint8),
        "shapes": _array(folder, "shapes", (count, 2), np.int32),
        "masks": _array(folder, "masks", (count, size, size), np.uint8),
        "labels": _array(folder, "labels", (count,), np.int32),
        "parts": _array(folder, "parts", (count,), np.uint8),
    }

    def work(i: int) -> None:
        image, mask, scene, kind = render(stream, i, size, spec["seed"])
        arrays["images"][i], arrays["masks"][i], arrays["shapes"][i] = image, mask, (size, size)
        arrays["labels"][i] = scene if scenes else kind
        # One in five is held out, in runs that take every class.
        arrays["parts"][i] = i * 5 // count == 4

    _fill(count, threads, work, f"make {stream}")
    return {
        "arrays": arrays,
        "classes": list(SCENES if scenes else KINDS),
        "mask_classes": list(SEGMENTATION_CLASSES),
    }


def build_pack(spec: Mapping[str, Any], folder: Path, threads: int) -> dict[str, Any]:
    """Pack one data set into an empty folder.

    Args:
        spec: source, path, size, resize; for the synthetic source seed, stream, count.
        folder: an existing folder to fill.
        threads: workers.

    Returns:
        The manifest, as written to `folder`/manifest.json.

    Raises:
        InputError: the data are missing or damaged; see `viny.data.sources`.
    """
    if spec["source"] == "synthetic":
        made = _pack_synthetic(spec, folder, threads)
    else:
        if spec["source"] == "pets" and spec.get("download"):
            fetch_pets(Path(spec["path"]))
        made = _pack_files(list_source(spec["source"], spec["path"]), spec, folder, threads)
    about = {}
    for name, array in made["arrays"].items():
        array.flush()
        about[name] = {"dtype": array.dtype.str, "shape": list(array.shape), "sha256": array_sha256(array)}
    manifest = {
        "format": FORMAT,
        "source": spec["source"],
        "count": len(made["arrays"]["images"]),
        "resolution": spec["size"],
        "resize": {"antialias": "bilinear with antialiasing", "nearest": "nearest neighbour"}[spec["resize"]],
        "aspect": ASPECT,
        "classes": made["classes"],
        "mask_classes": made["mask_classes"],
        "arrays": about,
    }
    if made["mask_classes"]:
        manifest["border_class"] = made["mask_classes"].index("border")
        manifest["masks_of_one_class"] = _count_uniform(made["arrays"]["masks"])
    manifest["sha256"] = digest(about)
    write_json(folder / "manifest.json", manifest)
    return manifest


def _count_uniform(masks: np.ndarray) -> int:
    """Masks that show a single class; Pets has some that are all background."""
    return sum(int(m.min() == m.max()) for m in masks)


def pack_into_store(spec: Mapping[str, Any], store: Path, manifest_path: Path, threads: int) -> Path:
    """Make sure that the store holds a pack, and link it beside a study's manifest.

    The store is keyed by what the pack is made from, so studies share packs. A pack appears under its name
    only when it is complete; two jobs that make the same one at the same time both succeed.

    Args:
        spec: see `build_pack`.
        store: folder of all packs.
        manifest_path: the study's copy of the manifest; images.npy beside it becomes a link into the store.
        threads: workers.

    Returns:
        The pack's folder.
    """
    folder = store / f"{spec['source']}-{spec['size']}-{digest(spec)[:12]}"
    if (folder / "manifest.json").is_file():
        verify_pack(folder / "manifest.json")
    else:
        store.mkdir(parents=True, exist_ok=True)
        tmp = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=store))
        try:
            build_pack(spec, tmp, threads)
            os.chmod(tmp, 0o755)
            try:
                os.rename(tmp, folder)
            except OSError:
                if not (folder / "manifest.json").is_file():
                    raise
        finally:
            shutil.rmtree(tmp, ignore_errors=True)
    manifest_path.parent.mkdir(parents=True, exist_ok=True)
    link = manifest_path.parent / "images.npy"
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.relpath(folder / "images.npy", link.parent))
    with atomic_path(manifest_path) as copy:
        copy.write_text((folder / "manifest.json").read_text(encoding="utf-8"), encoding="utf-8")
    return folder


def describe(manifest: Mapping[str, Any]) -> str:
    """One line for a log."""
    return json.dumps({k: manifest[k] for k in ("source", "count", "resolution", "resize", "sha256")})
