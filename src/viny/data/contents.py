"""What is in a data set's files: a hash of each, remembered so that only files that may have changed are read again."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from viny.data.decoding import HASH
from viny.data.folders import few
from viny.data.sources import Listing
from viny.runtime.files import atomic_path, digest

FOLDER = ".contents"  # of the memories, in the store of packs
THREADS = 8  # that read files: most of the time goes into waiting for a disk or a file server
CHUNK = 32  # files that a thread reads at a time
SETTLED = 2_000_000_000  # ns; a file may change again within one tick of a file system's clock
LONG = (200_000_000, 5000)  # bytes and files; reading more than either is worth a line


@dataclass(frozen=True)
class Contents:
    """The files of a data set.

    Attributes:
        names: paths below the data set's folder: images, masks, then lists of images.
        hashes: uint8 [N, HASH], the first bytes of the sha256 of each file's bytes; zeros if it cannot be read.
        states: int64 [N, 4], each file's size, times of its last change of content and of anything (ns), and inode.
    """

    names: Sequence[str]
    hashes: np.ndarray
    states: np.ndarray

    @cached_property
    def text(self) -> str:
        """A line for each file: the hash and the name."""
        return "".join(f"{row.hex()}  {name}\n" for row, name in zip(map(bytes, self.hashes), self.names, strict=True))

    @cached_property
    def sha256(self) -> str:
        """Hex sha256 of `text`."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def read_contents(listing: Listing, spec: Mapping[str, Any], store: Path | None, remember: bool = True) -> Contents:
    """Hash the files of a data set.

    A file whose size, times and inode are those remembered is not read again. Its time of change counts besides its
    time of modification, which a copying tool may set back.

    Args:
        listing: the data set's images, masks and lists.
        spec: what its pack is made from, see `viny.study.specs.pack_spec`.
        store: folder of packs, below which hashes are remembered; None to read every file.
        remember: whether to write what was read there, too.
    """
    files = [*listing.images, *listing.masks, *listing.lists]
    names = _names(files, spec["path"])
    now = time.time_ns()
    states = _states(files)
    memory = None if store is None else store / FOLDER / f"{_memory_key(spec)}.npz"
    hashes, known = _recall(memory, names, states)
    unknown = np.flatnonzero(~known & (states[:, 0] >= 0))
    if len(unknown):
        _read(files, unknown, int(states[unknown, 0].sum()), spec["path"], hashes)
    if memory is not None and remember and (len(unknown) or not memory.is_file()):
        _remember(memory, names, np.where((states[:, 2] < now - SETTLED)[:, None], states, -1), hashes)
    return Contents(names, hashes, states)


def untouched(listing: Listing, contents: Contents) -> bool:
    """Whether no file has changed since `read_contents` looked at it."""
    return np.array_equal(_states([*listing.images, *listing.masks, *listing.lists]), contents.states)


def differences(packed: str, now: Contents) -> str:
    """Which files of a data set differ from those that were packed, in words; empty if none does.

    Args:
        packed: `Contents.text` of the files that were packed.
        now: the files that are there now.
    """
    before = {line[2 * HASH + 2 :]: line[: 2 * HASH] for line in packed.splitlines()}
    after = dict(zip(now.names, (row.hex() for row in map(bytes, now.hashes)), strict=True))
    kinds = {
        "changed": [name for name, found in after.items() if before.get(name, found) != found],
        "new": [name for name in after if name not in before],
        "gone": [name for name in before if name not in after],
    }
    return "; ".join(f"{len(names):,} {kind} ({few(names)})" for kind, names in kinds.items() if names)


def _memory_key(spec: Mapping[str, Any]) -> str:
    """Name of the memory of a use of a folder: uses with other files would make each other forget."""
    places = {key: os.path.abspath(spec[key]) for key in ("path", "masks", "split") if spec.get(key)}
    return digest({"source": spec["source"], "holds": spec.get("holds", ""), **places})[:16]


def _names(files: Iterable[Path], base: str) -> list[str]:
    """Paths below a folder, with '/' on every system; much faster than a call of relpath for each."""
    below: dict[str, str] = {}
    names = []
    for file in map(os.fspath, files):
        folder, name = os.path.split(file)
        if folder not in below:
            relative = Path(os.path.relpath(folder or ".", base)).as_posix()
            below[folder] = "" if relative == "." else f"{relative}/"
        names.append(below[folder] + name)
    return names


def _states(files: Sequence[Path]) -> np.ndarray:
    """Int64 [N, 4], see `Contents.states`; -1 for what is no regular file, such as a link that leads nowhere."""
    states = np.full((len(files), 4), -1, np.int64)
    for at, file in enumerate(files):
        try:
            about = os.stat(file)
        except OSError:
            continue
        if stat.S_ISREG(about.st_mode):
            inode = about.st_ino & (2**63 - 1)  # some file systems use all 64 bits
            states[at] = about.st_size, about.st_mtime_ns, about.st_ctime_ns, inode
    return states


def _recall(memory: Path | None, names: Sequence[str], states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Remembered hashes [N, HASH], zeros where there are none, and for which files they still hold [N]."""
    hashes, known = np.zeros((len(names), HASH), np.uint8), np.zeros(len(names), bool)
    if memory is None or not memory.is_file():
        return hashes, known
    try:
        with np.load(memory, allow_pickle=False) as kept:
            old_names = bytes(kept["names"]).decode().split("\n")[:-1]
            old_states, old_hashes = kept["states"], kept["hashes"]
        right = old_states.shape == (len(old_names), 4) and old_hashes.shape == (len(old_names), HASH)
        if not right or old_states.dtype != np.int64 or old_hashes.dtype != np.uint8:
            return hashes, known
    except Exception:  # damaged in any of many ways: the files are read again
        return hashes, known
    if list(names) == old_names:
        mine = rows = np.arange(len(names))
    else:
        at = {name: row for row, name in enumerate(old_names)}
        pairs = [(row, at[name]) for row, name in enumerate(names) if name in at]
        mine, rows = np.array(pairs, np.int64).reshape(-1, 2).T
    same = (states[mine] == old_states[rows]).all(axis=1) & (states[mine, 0] >= 0)
    hashes[mine[same]], known[mine[same]] = old_hashes[rows[same]], True
    return hashes, known


def _read(files: Sequence[Path], rows: np.ndarray, size: int, where: str, hashes: np.ndarray) -> None:
    """Hash the files of these rows [M], of `size` bytes in all, into `hashes`."""

    def work(chunk: np.ndarray) -> int:
        read = 0
        for row in chunk:
            try:
                with open(files[row], "rb") as f:
                    found = hashlib.file_digest(f, "sha256").digest()[:HASH]
                    read += f.tell()
            except OSError:
                continue  # zeros say so; whoever uses the file has the reason
            hashes[row] = np.frombuffer(found, np.uint8)
        return read

    if size > LONG[0] or len(rows) > LONG[1]:
        said = f"{where}: reading {len(rows):,} files ({size / 1e9:.1f} GB) that are new or may have changed"
        print(said, file=sys.stderr, flush=True)
    bar = tqdm(total=size, desc=f"read {where}", unit="B", unit_scale=True, delay=1.0, disable=None)
    with ThreadPoolExecutor(THREADS) as pool, bar:
        try:
            for done in pool.map(work, np.array_split(rows, max(1, len(rows) // CHUNK))):
                bar.update(done)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _remember(memory: Path, names: Sequence[str], states: np.ndarray, hashes: np.ndarray) -> None:
    """Write a memory; if that fails, the next call reads the files again, which is slower but as right."""
    text = np.frombuffer("".join(f"{name}\n" for name in names).encode(), np.uint8)
    try:
        with atomic_path(memory) as tmp, open(tmp, "wb") as f:
            np.savez(f, names=text, states=states, hashes=hashes)
    except OSError as error:
        print(f"{memory}: could not be written ({error.strerror}); files are read at each start", file=sys.stderr)
