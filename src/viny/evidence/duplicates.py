"""Training images among the test images: the same file, or a picture that looks the same.

A model scores too well on a test image that it was trained on. Nothing is removed and nothing fails: a table
lists the pairs, and the reader judges.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from viny.data.pack import Pack, open_pack
from viny.data.splits import read_split
from viny.evidence.summary import Summary
from viny.runtime.files import atomic_path, write_text
from viny.runtime.text import cell_text
from viny.study.layout import pack_manifest, searched_packs, searched_splits, split_record, summarised

COLUMNS = ("role", "image", "test_image", "kind", "distance")
BLOCK = 1 << 22  # pairs compared at a time: 32 MB of differences


@dataclass(frozen=True)
class Pairs:
    """Pairs of one role: rows of its pack, rows of the segmentation pack, and how alike they are."""

    rows: np.ndarray  # int64 [M]
    tests: np.ndarray  # int64 [M]
    distances: np.ndarray  # int64 [M], differing bits of 64; 0 for exact pairs
    exact: np.ndarray  # bool [M]


def find_pairs(train: Pack, rows: np.ndarray, test: Pack, tests: np.ndarray, distance: int) -> Pairs:
    """Every pair of a training and a test image that are the same file or look the same.

    Args:
        train: pack of the training images.
        rows: [M], rows of that pack.
        test: pack of the test images.
        tests: [T], rows of that pack.
        distance: largest number of differing bits between the perceptual hashes of images that look the same.

    Returns:
        Exact pairs (the same bytes of a file or, for synthetic images, of a picture), then near ones, each in order
        of row and test. An image in both lists is paired with itself. Nearly constant pictures have no perceptual
        hash and appear only in exact pairs.
    """
    same_rows, same_tests = _same_files(train.file_sums[rows], test.file_sums[tests])
    near_rows, near_tests, near = _near(train.phash[rows], test.phash[tests], distance)
    # Exact pairs look the same too; list them once.
    known = np.isin(near_rows * len(tests) + near_tests, same_rows * len(tests) + same_tests)
    near_rows, near_tests, near = near_rows[~known], near_tests[~known], near[~known]
    return Pairs(
        rows=np.concatenate([rows[same_rows], rows[near_rows]]),
        tests=np.concatenate([tests[same_tests], tests[near_tests]]),
        distances=np.concatenate([np.zeros(len(same_rows), np.int64), near]),
        exact=np.arange(len(same_rows) + len(near_rows)) < len(same_rows),
    )


def _same_files(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions, in both lists of hashes (uint8 [M, 16], [T, 16]), of every equal pair."""
    places: dict[bytes, list[int]] = {}
    for j, value in enumerate(right):
        places.setdefault(value.tobytes(), []).append(j)
    keys = np.ascontiguousarray(left).view("V16")[:, 0]
    wanted = np.ascontiguousarray(right).view("V16")[:, 0]
    candidates = np.flatnonzero(np.isin(_words(keys), _words(wanted)))  # by the first half of the hash
    found = [(i, j) for i in candidates.tolist() for j in places.get(keys[i].tobytes(), [])]
    pairs = np.array(found, np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _words(keys: np.ndarray) -> np.ndarray:
    """The first 8 bytes of hashes (16 bytes [M]) as uint64 [M]."""
    return keys.view(np.uint64).reshape(-1, 2)[:, 0]


def _near(left: np.ndarray, right: np.ndarray, distance: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions, in both lists of perceptual hashes (uint64 [M], [T]), of every near pair, and their distances."""
    mine, theirs = np.flatnonzero(left), np.flatnonzero(right)  # a hash of 0 means nearly constant
    values, others = left[mine], right[theirs]
    step = max(1, BLOCK // max(1, len(others)))
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for start in range(0, len(values), step):
        bits = np.bitwise_count(values[start : start + step, None] ^ others[None])  # uint8
        at = np.flatnonzero(bits <= distance)  # in one dimension, in a third of the time
        i, j = np.divmod(at, max(1, len(others)))
        found.append((mine[start + i], theirs[j], bits.ravel()[at].astype(np.int64)))
    if not found:
        return (np.empty(0, np.int64),) * 3
    i, j, bits = (np.concatenate(column) for column in zip(*found, strict=True))
    return i, j, bits


def _among(rows: np.ndarray, tests: np.ndarray, splits: Iterable[Mapping[str, np.ndarray]]) -> np.ndarray:
    """bool [M]: whether some split trains on the first image of a pair and tests on the second."""
    found = np.zeros(len(rows), bool)
    for split in splits:
        found |= np.isin(rows, split["train"]) & np.isin(tests, split["test"])
    return found


def write_duplicates(spec: Mapping[str, Any], *, root: Path, out: Path, record: Path) -> None:
    """Look for training images among the test images.

    The roles are 'pretrain', the whole pre-training pack; each intermediate task, the images it trains on; and
    'finetune'. With a fixed test set, 'finetune' is the pool that all labelled images are taken from; with a moving
    one, it is the images that a cell trains on, compared with that cell's own test images.

    Args:
        spec: see `viny.study.specs.duplicates_spec`.
        root: the study's folder.
        out: folder that holds tables/, with duplicates.csv (one pair per line) and duplicates.md (their counts).
        record: JSON file to write, what was read and written.

    Raises:
        InputError: a pack or a split is missing or damaged.
    """
    summary, records = Summary("duplicates", spec, root), [split_record(root, *one) for one in searched_splits(spec)]
    manifests = {name: pack_manifest(root, name) for name in searched_packs(spec)}
    summary.reads(*manifests.values(), *records, *(path.with_suffix(".npz") for path in records))
    packs = {name: open_pack(path) for name, path in manifests.items()}
    test = packs["segmentation"]
    finetune, tasks = [], {}
    for (part, subset), path in zip(searched_splits(spec), records, strict=True):
        split = read_split(path, path.with_suffix(".npz"), test if part == "finetune" else packs[subset])
        if part == "finetune":
            finetune.append(split)
        else:
            tasks[subset] = split["train"]
    tests = _union(split["test"] for split in finetune)
    unlabelled = [name for name in packs if name != "segmentation" and name not in spec["tasks"]]
    searched = {name: (packs[name], np.arange(len(packs[name]))) for name in unlabelled}
    searched |= {name: (packs[name], rows) for name, rows in tasks.items()}
    fixed = all(np.array_equal(split["test"], tests) for split in finetune)
    pool = np.setdiff1d(np.arange(len(test)), tests) if fixed else _union(split["train"] for split in finetune)
    searched["finetune"] = (test, pool)
    lines, counts = [], []
    for role, (pack, rows) in searched.items():
        pairs = find_pairs(pack, rows, test, tests, spec["distance"])
        keep = np.ones(len(pairs.rows), bool)
        if role == "finetune" and not fixed:  # one size may be tested on what another trains on
            keep = _among(pairs.rows, pairs.tests, finetune)
        for i in np.flatnonzero(keep).tolist():
            names = pack.name(int(pairs.rows[i])), test.name(int(pairs.tests[i]))
            lines.append((role, *map(cell_text, names), "exact" if pairs.exact[i] else "near", int(pairs.distances[i])))
        exact, near = (np.unique(pairs.tests[keep & kind]) for kind in (pairs.exact, ~pairs.exact))
        pair_counts = int((keep & pairs.exact).sum()), int((keep & ~pairs.exact).sum())
        counts.append((role, len(rows), *pair_counts, len(np.union1d(exact, near))))
    table, page = (out / made for made in summarised("duplicates", spec))
    with atomic_path(table) as tmp, open(tmp, "w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(lines)
    text = _markdown(spec, counts, len(tests))
    write_text(page, text)
    summary.write(record, [table, page])
    print(text)


def _union(lists: Iterable[np.ndarray]) -> np.ndarray:
    return np.unique(np.concatenate(list(lists)))


def _markdown(spec: Mapping[str, Any], counts: list[tuple[str, int, int, int, int]], tests: int) -> str:
    head = "| role | training images | exact pairs | near pairs | test images concerned |\n|:--|--:|--:|--:|--:|\n"
    body = "".join(f"| {role} | {' | '.join(f'{n:,}' for n in numbers)} |\n" for role, *numbers in counts)
    return (
        f"# Training images among the test images\n\nStudy {spec['study']}, {tests:,} test images. Exact: the same "
        f"bytes. Near: perceptual hashes of 64 bits differ in at most {spec['distance']}, which is a hint and no "
        f"proof. duplicates.csv names the pairs.\n\n{head}{body}"
    )
