"""Which images a cell trains and tests on: index lists that are nested, hashed and the same on every machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from viny.data.pack import TEST, TRAIN, Pack, open_pack
from viny.data.parts import rank
from viny.runtime.errors import InputError
from viny.runtime.files import array_sha256, atomic_path, digest, file_sha256, load_arrays, read_sealed, write_sealed
from viny.runtime.provenance import Provenance

LISTS = ("train", "test")  # in every split


def permutation(count: int, *keys: int | str) -> np.ndarray:
    """A permutation of range(count) that depends on `keys` alone: int64 [count].

    Indices are sorted by a hash of (keys, index), so it is the same with any library version, and a larger
    data set keeps the order of a smaller one.
    """
    prefix = ":".join(map(str, keys))
    hashed = [hashlib.blake2b(f"{prefix}:{i}".encode(), digest_size=16).digest() for i in range(count)]
    return np.array(sorted(range(count), key=hashed.__getitem__), dtype=np.int64)


def _order(pack: Pack, *keys: int | str) -> np.ndarray:
    """A permutation of a pack's rows; by name for a user's own folders, so that new files leave the others in order."""
    if pack.manifest["source"] != "folder":
        return permutation(len(pack), *keys)
    return np.array(sorted(range(len(pack)), key=lambda row: rank(pack.names[row], *keys)), np.int64)


def torch_permutation(count: int, seed: int) -> np.ndarray:
    """The permutation that `torch.utils.data.random_split` cuts with a generator seeded at `seed`: int64 [count]."""
    # PyTorch's own shuffle, from the same generator: loading PyTorch would take longer than all else that a split does.
    draws = np.random.RandomState(seed % 2**32)._bit_generator.random_raw(max(0, count - 1))
    order = list(range(count))
    for here, draw in enumerate(draws.tolist()):
        there = here + draw % (count - here)
        order[here], order[there] = order[there], order[here]
    return np.array(order, np.int64)


def pretrain_split(
    pack: Pack,
    size: int,
    seed: int,
    split_seed: int,
    subsets: str,
    held_out: int = 0,
    spared: int | None = None,
    given: bool = False,
) -> dict[str, np.ndarray]:
    """Unlabelled images for pre-training: a prefix of one permutation, without the held-out images.

    The `held_out` images, by which the loss on images that nobody trains on is measured, depend on `split_seed` alone:
    they are the same for all sizes and seeds. If the pack is of the labelled images, `spared` of them, or with `given`
    those of the test part, are the study's test images, and nobody pre-trains on these.

    Raises:
        InputError: `size` and `held_out` do not fit the data.
    """
    draw = ["pretrain", split_seed] + ([seed] if subsets == "per_seed" else [])
    order, never, test = _order(pack, *draw), np.empty(0, np.int64), np.empty(0, np.int64)
    if spared is not None:
        never, _ = _fixed_test_set(pack, split_seed, spared, given)
        order = order[~np.isin(order, never)]
    if size > len(order):
        raise InputError(f"grid.pretrain_sizes: {size} is larger than the data, {len(order)} images{_left_out(pack)}")
    if size + held_out > len(order):
        raise InputError(
            f"grid.pretrain_sizes: {size} and pretrain.held_out {held_out} do not fit {len(order)} images"
            f"{_left_out(pack) or '; lower either'}"
        )
    if held_out:
        others = _order(pack, "held_out", split_seed)
        test = np.sort(others[~np.isin(others, never)][:held_out])
        order = order[~np.isin(order, test)]
    return {"train": order[:size], "test": test}


def finetune_split(
    pack: Pack,
    size: int,
    seed: int,
    split_seed: int,
    subsets: str,
    test_set: str,
    test_size: int,
    given: bool = False,
) -> dict[str, np.ndarray]:
    """Labelled images for fine-tuning and testing.

    'fixed': the test set is the end of one permutation of all images and never changes; training takes a
    prefix of the rest. 'moving': the paper's random_split, whose test set follows the training images. With `given`,
    the pack's own parts say which images are for training and which for testing; `test_size` of the latter are used,
    or all if it is 0.

    Raises:
        InputError: `size` and `test_size` do not fit the data.
    """
    if not given and size + test_size > len(pack):
        raise InputError(
            f"grid.finetune_sizes: {size} and segmentation.test_size {test_size} do not fit {len(pack)} images"
            f"{_left_out(pack)}"
        )
    if test_set == "moving":
        order = torch_permutation(len(pack), split_seed)
        return {"train": order[:size], "test": order[size : size + test_size]}
    test, pool = _fixed_test_set(pack, split_seed, test_size, given)
    if size > len(pool):
        raise InputError(
            f"grid.finetune_sizes: {size} is larger than the training part, {len(pool)} images{_left_out(pack)}"
        )
    if subsets == "per_seed":
        pool = pool[permutation(len(pool), "finetune", split_seed, seed)]
    return {"train": pool[:size], "test": test}


def _fixed_test_set(pack: Pack, split_seed: int, test_size: int, given: bool) -> tuple[np.ndarray, np.ndarray]:
    order = _order(pack, "segmentation", split_seed)
    if given:
        test, pool = (order[pack.parts[order] == part] for part in (TEST, TRAIN))
        if test_size > len(test) or len(test) == 0:
            raise InputError(
                f"segmentation.test_size: {test_size} is larger than the test part, {len(test)} images{_left_out(pack)}"
            )
        return np.sort(test[: test_size or len(test)]), pool
    return np.sort(order[len(pack) - test_size :]), order[: len(pack) - test_size]


def _left_out(pack: Pack) -> str:
    """Why a pack may hold fewer images than its data set, for an error about sizes."""
    if not (left := len(pack.manifest.get("skipped", []))):
        return ""
    return f" (packing left {left:,} out that cannot be used, and its log says why); mend these, or take a smaller size"


def task_split(
    pack: Pack,
    on_segmentation_data: bool,
    pool: str = "official",
    test_set: str = "fixed",
    split_seed: int = 0,
    test_size: int = 0,
    given: bool = False,
    size: int | None = None,
) -> dict[str, np.ndarray]:
    """Images for an intermediate task: the official split, or, for a task on the segmentation data under
    pool 'training', everything but the fixed test set.

    `pool`, `test_set`, `test_size` and `given` matter only to the latter. Of the training images, `size` are taken: the
    first of one permutation by `split_seed`, so that sizes nest; all of them if it is None.

    Raises:
        InputError: the pack has no such parts, or fewer training images than `size`.
    """
    if on_segmentation_data and pool == "training" and test_set == "fixed":
        test, rest = _fixed_test_set(pack, split_seed, test_size, given)
        split = {"train": np.sort(rest), "test": test}
    else:
        split = _official_parts(pack)
    if size is None:
        return split
    if size > len(split["train"]):
        raise InputError(
            f"intermediate.<task>.images: {size} is more than the task's training part, {len(split['train'])} images"
        )
    order = _order(pack, "task", split_seed)
    return {**split, "train": order[np.isin(order, split["train"])][:size]}


def _official_parts(pack: Pack) -> dict[str, np.ndarray]:
    if pack.parts is None:
        raise InputError(f"{pack.folder}: source '{pack.manifest['source']}' has no train and test parts")
    split = {part: np.flatnonzero(pack.parts == code) for part, code in (("train", TRAIN), ("test", TEST))}
    for part, indices in split.items():
        if len(indices) == 0:
            raise InputError(
                f"{pack.folder}: no image of the {part} part in this pack of source '{pack.manifest['source']}'; an "
                "intermediate task needs both; mend the data set, or use another source"
            )
    return split


def cut(spec: Mapping[str, Any], *, manifest: Path, record: Path, indices: Path) -> None:
    """Write the index lists of one subset and its test set.

    Args:
        spec: see `viny.study.specs.split_spec`.
        manifest: the pack's manifest.
        record: JSON file to write, the split's record.
        indices: npz file to write, the index lists.

    Raises:
        InputError: the pack is missing or damaged, or has too few images.
    """
    provenance = Provenance()
    pack = open_pack(manifest)
    wanted = {key: value for key, value in spec.items() if key not in ("code", "kind")}
    make = {"pretrain": pretrain_split, "finetune": finetune_split, "task": task_split}[spec["kind"]]
    write_split(record, indices, make(pack, **wanted), {"spec": dict(spec), "pack_sha256": pack.sha256})
    # Only in the log: a split's record is the same on every machine.
    hashes = {"spec": digest(dict(spec)), "pack": pack.sha256}
    print(json.dumps(provenance.finish(seed=spec.get("seed"), hashes=hashes), sort_keys=True))


def write_split(record_path: Path, indices_path: Path, split: dict[str, np.ndarray], about: dict[str, Any]) -> None:
    """Write index lists (npz) and a small record of their hashes and the file's (JSON)."""
    with atomic_path(indices_path) as tmp, open(tmp, "wb") as f:
        np.savez(f, **split)
    parts = {k: {"count": len(v), "sha256": array_sha256(v)} for k, v in split.items()}
    write_sealed(record_path, {**about, "parts": parts, "outputs": {indices_path.name: file_sha256(indices_path)}})


def read_split(record_path: Path, indices_path: Path, pack: Pack) -> dict[str, np.ndarray]:
    """Read index lists and check them against their record and the pack they were cut from.

    Returns:
        'train' and 'test', each int64 [M]: rows of the pack, none twice and none in both lists.

    Raises:
        InputError: damaged, or cut from another pack.
    """
    return lists_of(read_sealed(record_path, "a split record"), record_path, indices_path, pack)


def lists_of(record: Any, record_path: Path, indices_path: Path, pack: Pack) -> dict[str, np.ndarray]:
    """What `read_split` returns, for a record that has been read."""
    if record["pack_sha256"] != pack.sha256:
        raise InputError(f"{record_path}: was cut from another pack than {pack.folder}; delete it and rerun")
    parts = record["parts"]
    if set(parts) != set(LISTS):
        raise InputError(
            f"{record_path}: not a split record: 'parts' does not hold {' and '.join(LISTS)}; delete it and rerun"
        )
    split = load_arrays(indices_path, "index lists", LISTS)
    for name, indices in split.items():
        if array_sha256(indices) != parts[name]["sha256"]:
            raise InputError(f"{indices_path}: '{name}' is not what {record_path} says; delete both and rerun")
    _check_lists(split, len(pack), indices_path)
    return split


def _check_lists(split: dict[str, np.ndarray], count: int, path: Path) -> None:
    """Refuse lists that cannot be a split of a pack of `count` images, even if their hashes are right."""
    again = f"delete {path} and its record and rerun"
    for name, indices in split.items():
        if indices.dtype != np.int64 or indices.ndim != 1:
            raise InputError(f"{path}: '{name}' is {indices.dtype} {list(indices.shape)}, expected int64 [M]; {again}")
        if len(indices) and not 0 <= indices.min() <= indices.max() < count:
            raise InputError(f"{path}: '{name}' names rows beyond the pack's, 0 to {count - 1}; {again}")
        if len(np.unique(indices)) != len(indices):
            raise InputError(f"{path}: '{name}' names a row twice; {again}")
    both = np.intersect1d(split["train"], split["test"])
    if len(both):
        raise InputError(f"{path}: {len(both)} rows, such as {both[0]}, are in both 'train' and 'test'; {again}")
