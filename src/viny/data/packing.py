"""Making packs: decode, resize, write, hash; studies share packs through a store."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from viny.data.contents import read_contents, untouched
from viny.data.conventions import Heads, decide, said
from viny.data.decoding import GREY, BadFileError, decode, decode_mask, perceptual_hashes, short_sha256, small_grey
from viny.data.masks import BACKGROUNDS
from viny.data.pack import (
    ARRAYS,
    BY_ROW,
    CONTENTS,
    FILES,
    FORMAT,
    OWN_MASKS,
    manifest_sha256,
    rows_sha256,
    stored_at,
    verify_pack,
)
from viny.data.sources import Listing, fetch_pets, list_source
from viny.runtime.errors import InputError
from viny.runtime.files import array_sha256, digest, folder_beside, read_json, write_json, write_text
from viny.runtime.processes import remove_leftovers, unfinished
from viny.runtime.provenance import Provenance

T = TypeVar("T")
ASPECTS = {
    "stretch": "stretched to a square; shapes.npy keeps the original height and width, and random crops are drawn in "
    "the original's geometry",
    "crop": "the centre square",
    "pad": "the whole picture in a square with bars, which masks ignore",
}
CHUNK = 64  # images per thread at a time
SHOWN = 10  # bad files that an error lists
AGAIN = "give the same command again once nothing writes there"
OTHER_STORE = "set pack_store to a folder on another disk"
FULL = (errno.ENOSPC, errno.EDQUOT)  # a full disk, a full quota


def _size(count: int) -> str:
    """A number of bytes, for a message."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"


@contextmanager
def _full_disk_is_input(where: Path, way_out: str = OTHER_STORE) -> Iterator[None]:
    """Turn a full-disk error into one that names the place and says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise InputError(f"{where}: {error.strerror} while packing; free some space, or {way_out}") from error


class Arrays:
    """The arrays of a pack being made: writable maps of files whose disk blocks are reserved.

    Args:
        folder: an empty folder.
        count: rows (N).
        size: side of an image, pixels (S).
        optional: those of 'labels', 'parts', 'masks', 'own_masks' and 'large' that it is to have.
        tiles: how many times S the side T of a row of 'large' is.

    Raises:
        InputError: the disk has no room for them.
    """

    def __init__(self, folder: Path, count: int, size: int, optional: list[str], tiles: int = 1) -> None:
        names = ["images", "images.sums", "files.sums", "images.phash", "shapes", *optional]
        names += [f"{name}.sums" for name in BY_ROW if name in optional]
        sides = {"N": count, "S": size, "T": tiles * size}
        shapes = {name: tuple(sides.get(side, side) for side in ARRAYS[name][1]) for name in names}
        needed = sum(int(np.prod(shapes[name])) * np.dtype(ARRAYS[name][0]).itemsize for name in names)
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise InputError(
                f"{folder.parent}: a pack of {count} images needs {_size(needed)}, but only {_size(free)} is free "
                f"there; free some space, or {OTHER_STORE}"
            )
        self._folder, self._maps = folder, {}
        self._own = 0  # bytes of own masks written so far
        for name in names:
            self._maps[name] = self._create(name, shapes[name])
        # Plain views: indexing a numpy.memmap costs more than hashing a small row.
        self._views = {name: np.asarray(array) for name, array in self._maps.items()}

    def _create(self, name: str, shape: tuple[int, ...]) -> np.memmap:
        path = self._folder / f"{name}.npy"
        array = np.lib.format.open_memmap(path, mode="w+", dtype=ARRAYS[name][0], shape=shape)
        # A map of a file with holes kills the process (SIGBUS) if the disk is full when a hole is written to.
        if hasattr(os, "posix_fallocate"):
            try:
                with open(path, "r+b") as f:
                    os.posix_fallocate(f.fileno(), 0, array.offset + array.nbytes)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                    raise  # these say that the file system cannot reserve space, not that it is full
        return array

    def __getitem__(self, name: str) -> np.ndarray:
        return self._views[name]

    def __contains__(self, name: str) -> bool:
        return name in self._views

    def put(self, name: str, row: int, value: np.ndarray) -> bytes:
        """Write one row of images, masks or large images and its hash; returns the hash."""
        value = np.ascontiguousarray(value)
        self._views[name][row] = value
        found = short_sha256(value)
        self._views[f"{name}.sums"][row] = np.frombuffer(found, np.uint8)
        return found

    def append_own(self, rows: Sequence[int], masks: Sequence[bytes]) -> None:
        """Write masks at their own size, see `viny.data.masks.deflated`, behind those that are written; b"": none."""
        with open(self._folder / OWN_MASKS, "ab") as f:
            for row, mask in zip(rows, masks, strict=True):
                self._views["own_masks"][row] = self._own, len(mask)
                self._own += f.write(mask)

    def keep(self, rows: np.ndarray) -> None:
        """Move these rows [M], ascending, to the front and cut the files off after them."""
        self._views = {}
        for name in list(self._maps):
            array = self._maps.pop(name)
            for start in range(0, len(rows), CHUNK):  # rows only move forwards, so none is overwritten before it moves
                block = array[rows[start : start + CHUNK]]
                array[start : start + len(block)] = block
            array.flush()
            path, shape = self._folder / f"{name}.npy", (len(rows), *array.shape[1:])
            header = io.BytesIO()
            about = {"descr": array.dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(header, about)
            assert header.tell() == array.offset  # headers leave room for a longer first dimension
            row_size = array.nbytes // len(array)
            del array
            with open(path, "r+b") as f:
                f.write(header.getvalue())
                f.truncate(header.tell() + len(rows) * row_size)
            self._maps[name] = np.load(path, mmap_mode="r+")
        self._views = {name: np.asarray(array) for name, array in self._maps.items()}

    def finish(self) -> dict[str, dict[str, Any]]:
        """Write everything to disk; returns type, shape and hash of each array, as the manifest gives them."""
        about = {}
        for name, array in self._maps.items():
            array.flush()
            if name in BY_ROW:
                sha256 = rows_sha256(array.dtype.str, array.shape, self._views[f"{name}.sums"])
            else:
                sha256 = array_sha256(array)
            about[name] = {"dtype": array.dtype.str, "shape": list(array.shape), "sha256": sha256}
        return about


def _fill(
    count: int, threads: int, work: Callable[[range], T], what: str, then: Callable[[range, T], None] | None = None
) -> None:
    """Run `work` on all indices, a chunk at a time; Pillow decodes and resizes outside Python's lock.

    `then` is given each chunk and what `work` returned for it, in order and in this thread.
    """
    bar = tqdm(total=count, desc=what, unit="image", mininterval=1.0, disable=None)
    with ThreadPoolExecutor(threads) as pool, bar:
        chunks = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
        try:
            for chunk, made in zip(chunks, pool.map(work, chunks), strict=True):
                if then is not None:
                    then(chunk, made)
                bar.update(len(chunk))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def pack_files(
    listing: Listing, spec: Mapping[str, Any], folder: Path, threads: int
) -> tuple[Arrays, list[str], dict[str, Any]]:
    """Pack a listed data set; returns its arrays, the names of its images, and the rest of its manifest."""
    count, size = len(listing.images), spec["size"]
    fit = spec.get("fit", "stretch")
    judged = spec.get("masks_judged", {})  # without masks of its own
    optional = [name for name in ("labels", "parts") if getattr(listing, name)]
    with_masks, tiles = bool(listing.masks) and not judged, spec.get("tiles", 1)
    more = ["masks", "own_masks"] * with_masks + ["large"] * (tiles > 1)
    arrays = Arrays(folder, count, size, [*optional, *more], tiles)
    for name in ("labels", "parts"):
        if name in arrays:
            arrays[name][:] = getattr(listing, name)
    background = next((listing.mask_classes.index(name) for name in BACKGROUNDS if name in listing.mask_classes), None)
    refused: dict[int, BadFileError] = {}
    blank: set[int] = set()  # images whose mask is all background
    heads = Heads.read(listing.images, listing.masks, threads)
    found = decide(heads, listing.mask_values, listing.colours, threads=threads)

    def pack_one(i: int) -> tuple[np.ndarray, bytes]:
        mask = None
        if listing.masks:
            side, how = judged.get("size", size), judged.get("fit", fit)
            values, turn = listing.mask_values, found.turns[i]
            mask = decode_mask(listing.masks[i], side, values, listing.colours, how, turn, own=with_masks)
        path, shape = listing.images[i], mask.shape if mask else None
        picture = decode(path, size, spec["resize"], shape, fit, found.white)
        arrays.put("images", i, picture.pixels)
        if tiles > 1:
            arrays.put("large", i, decode(path, tiles * size, spec["resize"], shape, fit, found.white).pixels)
        arrays["files.sums"][i] = np.frombuffer(picture.file, np.uint8)
        arrays["shapes"][i] = picture.shape
        if mask:
            if with_masks:
                arrays.put("masks", i, mask.pixels)
                arrays["own_masks.sums"][i] = np.frombuffer(mask.own_sha256, np.uint8)
            if background is not None and mask.only == background:
                blank.add(i)
        return picture.grey, mask.own if mask else b""

    def work(chunk: range) -> list[bytes]:
        greys, own = np.zeros((len(chunk), GREY, GREY), np.uint8), [b""] * len(chunk)
        for at, i in enumerate(chunk):
            try:
                greys[at], own[at] = pack_one(i)
            except BadFileError as error:
                refused[i] = error
        arrays["images.phash"][chunk.start : chunk.stop] = perceptual_hashes(greys)
        return own

    _fill(count, threads, work, f"pack {spec['source']}", arrays.append_own if with_masks else None)
    if refused:
        _tolerate(refused, count, spec)
    base = Path(spec["path"])
    names = [os.path.relpath(path, base) for path in listing.images]
    left_out = {i: {"file": os.path.relpath(e.path, base), "reason": e.reason} for i, e in refused.items()}
    if spec.get("all_background") == "skip":
        reason = {"reason": "the mask shows nothing but background"}
        left_out |= {i: {"file": os.path.relpath(listing.masks[i], base), **reason} for i in blank}
    absent = [os.path.relpath(path, base) for path in listing.missing]
    skipped = [{"image": name, "file": name, "reason": "a link that leads nowhere"} for name in absent]
    about: dict[str, Any] = {"tiles": tiles} if tiles > 1 else {}
    about |= {"skipped": skipped + [{"image": names[i], **left_out[i]} for i in sorted(left_out)]}
    about["conventions"] = found.about
    # Only what might have been packed: other files come and go.
    for key, counts in (("passed_over", listing.passed_over()), ("left_out", listing.left_out)):
        if counts:
            about[key] = counts
    if listing.masks:
        about["masks_without_image"] = listing.masks_without_image
        if spec["source"] == "folder":
            about["images_without_mask"] = listing.images_without_mask
        if background is not None:
            about["all_background"] = len(blank)
    if left_out:
        kept = np.array([i for i in range(count) if i not in left_out], np.int64)
        if len(kept) == 0:
            raise InputError(f"{spec['path']}: no images are left; set segmentation.all_background: keep")
        arrays.keep(kept)
        names = [names[i] for i in kept]
    return arrays, names, {"classes": listing.classes, "mask_classes": listing.mask_classes, **about}


def _tolerate(refused: Mapping[int, BadFileError], count: int, spec: Mapping[str, Any]) -> None:
    """Raise an error for bad files, unless the study skips them and most files are good."""
    skip = spec.get("on_bad_image", "error") == "skip"
    if skip and 2 * len(refused) <= count:
        return
    shown = [f"  {refused[i]}" for i in sorted(refused)[:SHOWN]]
    if len(refused) > SHOWN:
        shown.append(f"  and {len(refused) - SHOWN} more")
    way_out = "fix or remove them, or set on_bad_image: skip to leave them out"
    if skip:
        way_out = "more than half: on_bad_image: skip does not go that far; check the folder and the source"
    raise InputError("\n".join([f"{spec['path']}: {len(refused)} of {count} images are bad; {way_out}", *shown]))


def _pack_synthetic(spec: Mapping[str, Any], folder: Path, threads: int) -> tuple[Arrays, list[str], dict[str, Any]]:
    from viny.data.synthetic import KINDS, SCENES, SEGMENTATION_CLASSES, is_held_out, render

    count, size, stream = spec["count"], spec["size"], spec["stream"]
    scenes = stream == "scenes"
    arrays = Arrays(folder, count, size, ["labels", "parts", "masks"])

    def work(chunk: range) -> None:
        greys = np.zeros((len(chunk), GREY, GREY), np.uint8)
        for at, i in enumerate(chunk):
            image, mask, scene, kind = render(stream, i, size, spec["seed"])
            # There is no file, so the picture's own bytes tell it from others.
            arrays["files.sums"][i] = np.frombuffer(arrays.put("images", i, image), np.uint8)
            arrays.put("masks", i, mask)
            arrays["shapes"][i] = (size, size)
            arrays["labels"][i] = scene if scenes else kind
            arrays["parts"][i] = is_held_out(i, count)
            greys[at] = small_grey(image)
        arrays["images.phash"][chunk.start : chunk.stop] = perceptual_hashes(greys)

    _fill(count, threads, work, f"make {stream}")
    return arrays, [], {"classes": list(SCENES if scenes else KINDS), "mask_classes": list(SEGMENTATION_CLASSES)}


def build_pack(spec: Mapping[str, Any], folder: Path, threads: int) -> dict[str, Any]:
    """Pack one data set into an empty folder.

    Args:
        spec: source, path, size, resize, and for files on_bad_image and all_background, see
            `viny.study.specs.pack_spec`; for the synthetic source seed, stream, count. With masks_judged (size, fit),
            the pack has the images that a pack of these with masks has, and no masks.
        folder: an existing folder to fill, in the store of packs.
        threads: workers.

    Returns:
        The manifest, as written to `folder`/manifest.json.

    Raises:
        InputError: data are missing (see `viny.data.sources`), files are bad or changed meanwhile, or the disk is full.
    """
    with _full_disk_is_input(folder.parent):
        return _build(spec, folder, threads)


def _build(spec: Mapping[str, Any], folder: Path, threads: int) -> dict[str, Any]:
    files = None
    if spec["source"] == "synthetic":
        arrays, names, more = _pack_synthetic(spec, folder, threads)
    else:
        if spec["source"] == "pets" and spec.get("download"):
            fetch_pets(Path(spec["path"]))
        listing = list_source(spec)
        files = read_contents(listing, spec, folder.parent)
        if spec.get("listing", files.sha256) != files.sha256:
            raise InputError(f"{spec['path']}: files in it changed after the run had begun; {AGAIN}")
        arrays, names, more = pack_files(listing, spec, folder, threads)
        if not untouched(listing, files):
            raise InputError(f"{spec['path']}: files in it changed while they were packed; {AGAIN}")
    manifest = {
        "format": FORMAT,
        "source": spec["source"],
        "count": len(arrays["images"]),
        "resolution": spec["size"],
        "resize": {"antialias": "bilinear with antialiasing", "nearest": "nearest neighbour"}[spec["resize"]],
        "aspect": ASPECTS[spec.get("fit", "stretch")],
        "fit": spec.get("fit", "stretch"),
        "arrays": arrays.finish(),
        **more,
    }
    if names:
        text = "".join(f"{name}\n" for name in names).encode()
        (folder / "names.txt").write_bytes(text)
        manifest["names_sha256"] = hashlib.sha256(text).hexdigest()
    if "masks" in arrays:
        if spec["source"] != "folder" and "border" in manifest["mask_classes"]:  # a user's own border is a class
            manifest["border_class"] = manifest["mask_classes"].index("border")
        manifest["masks_of_one_class"] = _count_uniform(arrays["masks"])
    if files is not None:
        (folder / CONTENTS).write_text(files.text, encoding="utf-8")
        manifest["contents"] = files.sha256
    manifest["sha256"] = manifest_sha256(manifest)
    write_json(folder / "manifest.json", manifest)
    return manifest


def _count_uniform(masks: np.ndarray) -> int:
    """How many packed masks show a single class."""
    return sum(int(m.min() == m.max()) for m in masks)


def _fault(folder: Path) -> str | None:
    """What is wrong with the pack in a folder; None if it is whole."""
    try:
        verify_pack(folder / "manifest.json")
    except InputError as error:
        return str(error)
    return None


def pack(spec: Mapping[str, Any], *, store: Path, manifest: Path, threads: int = 1) -> None:
    """Decode a data set once into memory-mapped arrays.

    Args:
        spec: see `viny.study.specs.pack_spec`.
        store: folder of all packs.
        manifest: JSON file to write, the study's copy of the pack's manifest.
        threads: CPU threads.

    Raises:
        InputError: as `build_pack`.
    """
    provenance = Provenance()
    folder = pack_into_store(spec, store, manifest, threads)
    made = read_json(manifest, "a pack manifest")
    print(f"{folder}: {describe(made)}")
    # Only in the log: a manifest holds nothing but what the images determine.
    hashes = {"spec": digest(dict(spec)), "pack": made["sha256"]}
    print(json.dumps(provenance.finish(threads=threads, hashes=hashes), sort_keys=True))


def pack_into_store(spec: Mapping[str, Any], store: Path, manifest_path: Path, threads: int) -> Path:
    """Make sure that the store holds a whole pack, and link it beside a study's manifest.

    The store is keyed by what a pack is made from, so studies share packs. An existing pack is first checked
    against its manifest, and packed again if it is damaged. A pack appears under its name only when it is
    complete; if two jobs make the same one at the same time, both succeed.

    Args:
        spec: see `build_pack`.
        store: folder of all packs.
        manifest_path: the study's copy of the manifest; the files of the pack are linked beside it.
        threads: workers.

    Returns:
        The pack's folder.

    Raises:
        InputError: as `build_pack`.
    """
    folder = stored_at(spec, store)
    fault = _fault(folder) if os.path.lexists(folder) else "not packed before"
    if fault is not None:
        if os.path.lexists(folder):
            print(f"{folder}: is damaged and will be packed again ({fault})", flush=True)
        with _full_disk_is_input(store):
            try:
                store.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                if error.errno in FULL:
                    raise
                raise InputError(f"{store}: no folder can be made there ({error.strerror}); {OTHER_STORE}") from error
            if not os.access(store, os.W_OK | os.X_OK):
                raise InputError(f"{store}: no pack can be written there (read-only, or not yours); {OTHER_STORE}")
            for left in remove_leftovers(store):
                print(f"{left}: left behind by a killed packing job; removed", flush=True)
        with _full_disk_is_input(store), folder_beside(folder) as tmp:
            build_pack(spec, tmp, threads)
            os.chmod(tmp, 0o755)
            _put_in_place(tmp, folder)
    with _full_disk_is_input(manifest_path.parent, "run the study in a folder on another disk"):
        manifest_path.parent.mkdir(parents=True, exist_ok=True)
        _link(folder, manifest_path.parent)
        text = (folder / "manifest.json").read_text(encoding="utf-8")
        if not (manifest_path.is_file() and manifest_path.read_text(encoding="utf-8") == text):
            write_text(manifest_path, text)  # else nothing has changed, and what was made from it is not older
    return folder


def _link(folder: Path, beside: Path) -> None:
    """Link each file of a stored pack into a study's folder, so that a copy with links followed has them all."""
    beside = beside.resolve()  # `results` may itself be a link, to another disk
    for old in beside.iterdir():
        if old.suffix == ".npy" or old.name in FILES:
            old.unlink()
    for file in folder.iterdir():
        if file.suffix == ".npy" or file.name in FILES:
            (beside / file.name).symlink_to(os.path.relpath(file, beside))


def _put_in_place(made: Path, folder: Path) -> None:
    """Give a complete pack its name, unless another job has done so; a damaged pack of that name is removed."""
    try:
        os.rename(made, folder)
        return
    except OSError:
        if _fault(folder) is None:
            return
    aside = unfinished(folder.with_name(f"{folder.name}-damaged"))
    try:
        os.rename(folder, aside)  # in one step: whoever has it open keeps what is open
        os.rename(made, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def describe(manifest: Mapping[str, Any]) -> str:
    """A few lines for a log: what the pack is, and what was noticed while making it."""
    lines = [json.dumps({k: manifest[k] for k in ("source", "count", "resolution", "resize", "sha256")})]
    counts = {
        "all_background": "masks that show nothing but background",
        "masks_without_image": "masks whose image is not listed",
        "images_without_mask": "images without a mask, left out",
    }
    lines += [f"{manifest[key]} {text}" for key, text in counts.items() if manifest.get(key)]
    lines += said(manifest.get("conventions", {}))
    for key, text in (
        ("passed_over", "files of formats that are not read"),
        ("left_out", "images in no part that is used"),
    ):
        if manifest.get(key):
            lines.append(f"{text}: {', '.join(f'{name} {count}' for name, count in manifest[key].items())}")
    lines += [f"skipped {left['image']}: {left['file']}: {left['reason']}" for left in manifest.get("skipped", [])]
    return "\n".join(lines)
