"""Helpers for files: whole-or-nothing writes, reads that never wait, canonical JSON, content hashes."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import shutil
import stat
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from viny.runtime.errors import InputError
from viny.runtime.processes import unfinished
from viny.runtime.shapes import NUMBERS, Record, check_plain, check_shape
from viny.runtime.signals import leave, on_stop

if TYPE_CHECKING:  # every command loads this module, and few need arrays
    import numpy as np

TAIL = 8192  # bytes read from the end of a log
NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)  # a read-only disk or folder


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it if the block succeeds.

    The data reach the disk before the name does, so a crash leaves either the old file or the new one. Whatever
    killed processes left of the same file is removed.

    Raises:
        OSError: with `path` as its file name.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = unfinished(path)
    try:
        yield tmp
        with open(tmp, "rb") as f:
            os.fsync(f.fileno())
        os.replace(tmp, path)
        _sync_folder(path.parent)
    except OSError as error:
        if error.filename is None or str(error.filename) == str(tmp):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        with suppress(OSError):  # on a read-only disk even what is not there cannot be removed
            tmp.unlink()


@contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """An empty folder beside `path` to fill and rename; if it was not renamed by the end of the block, it is removed.

    A stop signal removes it too.
    """
    tmp = unfinished(path)
    tmp.mkdir()

    def clear(number: int) -> None:
        shutil.rmtree(tmp, ignore_errors=True)
        leave(number)

    try:
        with on_stop(clear):
            yield tmp
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        pass  # some network file systems cannot do this; the rename holds all the same
    finally:
        os.close(handle)


def open_file(path: str | Path) -> BinaryIO:
    """Open a regular file to read its bytes.

    Raises:
        OSError: also for a pipe, which would make its reader wait for a writer, for a folder and for a device.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(handle, "rb")


def last_lines(path: str | Path) -> list[str]:
    """The lines at the end of a log, TAIL bytes of it; the first may be cut.

    Raises:
        OSError: as `open_file`.
    """
    with open_file(path) as f:
        f.seek(max(0, os.fstat(f.fileno()).st_size - TAIL))
        return f.read(TAIL).decode(errors="replace").splitlines()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal strings."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """Hex sha256 of a JSON-able value in canonical form."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def array_sha256(array: np.ndarray, chunk: int = 1 << 24) -> str:
    """Hex sha256 of an array's type, shape and bytes in C order; reads a memory map piece by piece."""
    import numpy as np

    h = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    flat = array.reshape(-1)
    step = max(1, chunk // array.dtype.itemsize)
    for start in range(0, len(flat), step):
        h.update(np.ascontiguousarray(flat[start : start + step]).data)
    return h.hexdigest()


def file_sha256(path: str | Path) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def json_text(value: Any) -> str:
    """A JSON file's content, as `write_json` writes it."""
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"


MAX_ARRAYS = 1 << 32  # bytes when unpacked; confusion matrices of 255 classes and 10,000 images have 2.6e9


def load_arrays(
    path: str | Path, what: str, names: Iterable[str] = (), optional: Iterable[str] = ()
) -> dict[str, np.ndarray]:
    """Read arrays from an npz file, which may hold far more than its own size says.

    Args:
        path: the file.
        what: what it should hold, for the error message.
        names: of the arrays; none for all that there are.
        optional: names of further arrays, which may be missing.

    Raises:
        InputError: missing, damaged, without one of them, or too large to be one of ours.
    """
    import numpy as np

    try:
        with open_file(path) as f:
            with zipfile.ZipFile(f) as members:
                unpacked = sum(member.file_size for member in members.infolist())
            if unpacked > MAX_ARRAYS:
                raise ValueError(f"{unpacked / 1e9:.1f} GB when unpacked, expected at most {MAX_ARRAYS / 1e9:.1f}")
            f.seek(0)
            with np.load(f, allow_pickle=False) as arrays:
                wanted = (*names, *(name for name in optional if name in arrays.files))
                return {name: arrays[name] for name in (wanted or arrays.files)}
    except Exception as error:  # files, zip, compression, headers and keys each have types of their own
        reason = str(error) or type(error).__name__
        raise InputError(f"{path}: no readable {what} ({reason}); delete it and rerun") from error


def write_text(path: str | Path, text: str) -> None:
    """Write a text as UTF-8, whole or not at all; line ends stay as they are."""
    with atomic_path(path) as tmp:
        tmp.write_text(text, encoding="utf-8", newline="")


def write_json(path: str | Path, value: Any) -> None:
    write_text(path, json_text(value))


def seal_of(value: Mapping[str, Any]) -> str:
    """Hex sha256 of everything that a sealed mapping holds besides its own `sha256`."""
    return digest({key: inner for key, inner in value.items() if key != "sha256"})


def write_sealed(path: str | Path, value: Mapping[str, Any]) -> None:
    """Write a mapping as JSON together with `sha256`, the hash of the rest, by which a later change is noticed."""
    write_json(path, {**value, "sha256": seal_of(value)})


def broken_seal(value: Any) -> bool:
    """Whether a JSON value is a sealed mapping that was changed since; those of before there were seals have none."""
    if not isinstance(value, Mapping):
        return False
    try:
        if "sha256" in value:
            return value["sha256"] != seal_of(value)
        # A seal whose own name is damaged still fits the rest.
        hashes = {key: said for key, said in value.items() if isinstance(said, str) and len(said) == 64}
        return any(digest({k: v for k, v in value.items() if k != key}) == said for key, said in hashes.items())
    except ValueError:  # NaN and infinities, which Python reads but JSON does not have
        return True


def read_json(path: str | Path, what: str) -> Any:
    """Parse a JSON file.

    Args:
        path: the file.
        what: what it should be, e.g. "a pack manifest". It is checked to have the shape of that kind, if
            `viny.runtime.shapes` has one.

    Returns:
        The value; each object in it is a `Record`.

    Raises:
        InputError: missing, not JSON, or of another shape.
    """
    try:
        with open_file(path) as f:
            text = f.read().decode()
        value = json.loads(text, object_pairs_hook=functools.partial(Record, f"{path}: not {what}"), **NUMBERS)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # fails at half a character, which nothing can write
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; expected {what}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected {what}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); expected {what}; delete it and rerun") from error
    try:
        check_plain(value)
        check_shape(value, what)
    except InputError as error:
        raise InputError(f"{path}: not {what}: {error}; delete it and rerun") from error
    return value


def read_sealed(path: str | Path, what: str) -> Any:
    """Parse a JSON file that `write_sealed` wrote.

    Args:
        path, what: as for `read_json`.

    Raises:
        InputError: missing, not JSON, or changed since it was written.
    """
    value = read_json(path, what)
    if broken_seal(value):
        raise InputError(f"{path}: changed since it was written (its sha256 differs); delete it and run again")
    return value
