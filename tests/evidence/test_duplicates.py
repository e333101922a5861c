"""The search for training images among the test images: hashes, pairs, and the tables of a study."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from viny.data.decoding import GREY, decode, perceptual_hashes
from viny.data.pack import Pack, open_pack
from viny.data.packing import build_pack
from viny.data.splits import write_split
from viny.evidence import duplicates
from viny.evidence.duplicates import find_pairs, write_duplicates
from viny.study.layout import pack_manifest, split_record


def photo(seed: int, height: int = 90, width: int = 120) -> Image.Image:
    """A smooth picture with some detail."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    fine = np.asarray(coarse).astype(int) + rng.integers(-12, 13, (height, width, 3))
    return Image.fromarray(np.clip(fine, 0, 255).astype(np.uint8))


# Hashes


def greys(count: int) -> np.ndarray:
    pictures = [np.asarray(photo(seed).convert("L").resize((GREY, GREY))) for seed in range(count)]
    noise = np.random.default_rng(0).integers(0, 256, (count, GREY, GREY), np.uint8)
    return np.concatenate([np.stack(pictures), noise])


def test_hashes_are_those_of_imagehash() -> None:
    imagehash = pytest.importorskip("imagehash")
    pictures = greys(40)
    for grey, found in zip(pictures, perceptual_hashes(pictures), strict=True):
        expected = np.packbits(imagehash.phash(Image.fromarray(grey)).hash).view(">u8")[0]
        assert int(found) == int(expected)


def test_a_batch_gives_what_single_pictures_give() -> None:
    pictures = greys(9)
    single = np.concatenate([perceptual_hashes(p[None]) for p in pictures])
    assert np.array_equal(perceptual_hashes(pictures), single)
    assert len(set(single.tolist())) == len(pictures)


@pytest.mark.parametrize("spread", [0, 1, 5])
def test_nearly_constant_pictures_have_no_hash(spread: int) -> None:
    flat = 100 + np.random.default_rng(0).integers(-spread, spread + 1, (3, GREY, GREY))
    assert perceptual_hashes(flat.astype(np.uint8)).tolist() == [0, 0, 0]
    ramp = np.tile(np.arange(0, 64, 2, dtype=np.uint8), (1, GREY, 1))
    assert perceptual_hashes(ramp)[0] != 0


def hash_of(image: Image.Image, path: Path, **options: Any) -> int:
    image.save(path, **options)
    return int(perceptual_hashes(decode(path, 64, "antialias").grey[None])[0])


def test_re_encoded_pictures_look_the_same_and_others_do_not(tmp_path: Path) -> None:
    first = photo(0)
    own = hash_of(first, tmp_path / "a.png")
    others = [
        hash_of(first, tmp_path / "a.jpg", quality=60),
        hash_of(first.resize((90, 68)), tmp_path / "small.png"),
        hash_of(ImageEnhance.Brightness(first).enhance(0.9), tmp_path / "dark.png"),
    ]
    assert all((own ^ other).bit_count() <= 4 for other in others)
    assert all((own ^ hash_of(photo(seed), tmp_path / "b.png")).bit_count() > 8 for seed in range(1, 8))


# Pairs


def made_up(phash: list[int], files: list[int]) -> Pack:
    """A pack without pixels."""
    count = len(phash)
    sums = np.zeros((count, 16), np.uint8)
    sums[:, 15] = files  # two hashes may start alike
    nothing = np.empty((count, 0), np.uint8)
    return Pack(
        Path("made-up"),
        {"sha256": "a" * 64, "source": "pets"},
        nothing,
        nothing,
        name_lines="".join(f"{i}.jpg\n" for i in range(count)).encode(),
        file_sums=sums,
        phash=np.array(phash, np.uint64),
    )


def pairs_of(found: duplicates.Pairs) -> list[tuple[int, int, int, bool]]:
    columns = (found.rows, found.tests, found.distances, found.exact)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_pairs() -> None:
    top, far = 1 << 63, 0xFFFFFF
    train = made_up([top + 0b11111, top, 0, 0, far], files=[1, 2, 3, 4, 5])
    test = made_up([top, 0, 0, far], files=[9, 3, 8, 5])
    found = find_pairs(train, np.arange(5), test, np.arange(4), 4)
    # 2 and 4 are one file with tests 1 and 3; 0 differs in five bits; nearly constant ones are not near others.
    assert pairs_of(found) == [(2, 1, 0, True), (4, 3, 0, True), (1, 0, 0, False)]
    wider = find_pairs(train, np.array([0, 3]), test, np.array([3, 0]), 5)
    assert pairs_of(wider) == [(0, 0, 5, False)]


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_pairs_are_those_of_a_plain_search(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(duplicates, "BLOCK", block)
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 256, 60).tolist()  # 8 bits, so that many are near each other; some are 0
    files = rng.integers(0, 30, 60).tolist()
    train, test = made_up(hashes[:40], files[:40]), made_up(hashes[40:], files[40:])
    rows, tests = rng.permutation(40)[:30], rng.permutation(20)
    expected = set()
    for i in rows.tolist():
        for j in tests.tolist():
            exact = files[i] == files[40 + j]
            distance = (hashes[i] ^ hashes[40 + j]).bit_count()
            if exact:
                expected.add((i, j, 0, True))
            elif hashes[i] and hashes[40 + j] and distance <= 2:
                expected.add((i, j, distance, False))
    found = pairs_of(find_pairs(train, rows, test, tests, 2))
    assert len(found) == len(set(found)) and set(found) == expected
    assert {exact for *_, exact in found} == {True, False}


# A study


@pytest.fixture
def study(tmp_path: Path) -> Callable[..., tuple[list[dict[str, str]], str]]:
    """Packs eight pets, some of them alike, and unlabelled images with a copy of one; gives the two tables."""

    def make(splits: dict[str, dict[str, list[int]]], **over: Any) -> tuple[list[dict[str, str]], str]:
        base, unlabelled = tmp_path / "data" / "oxford-iiit-pet", tmp_path / "imagenet" / "n01"
        for folder in (base / "images", base / "annotations" / "trimaps", unlabelled):
            folder.mkdir(parents=True)
        for i in range(8):
            # 6 is 0, compressed more; 7 is exactly file 1
            photo({6: 0, 7: 1}.get(i, i)).save(base / "images" / f"cat_{i}.jpg", quality=40 if i == 6 else 90)
            mask = Image.fromarray(np.full((90, 120), 1 + i % 2, np.uint8))
            mask.save(base / "annotations" / "trimaps" / f"cat_{i}.png")
        (base / "annotations" / "trainval.txt").write_text("".join(f"cat_{i} 1\n" for i in range(6)))
        (base / "annotations" / "test.txt").write_text("cat_6 1\ncat_7 1\n")
        photo(3).save(unlabelled / "copy.jpg", quality=90)
        photo(20).save(unlabelled / "other.jpg")
        root = tmp_path / "results"
        sources = {"segmentation": ("pets", "data"), "classes": ("pets", "data"), "pretrain": ("imagenet", "imagenet")}
        for name, (source, folder) in sources.items():
            pack_manifest(root, name).parent.mkdir(parents=True)
            spec = {"source": source, "path": str(tmp_path / folder), "size": 48, "resize": "antialias"}
            build_pack(spec, pack_manifest(root, name).parent, threads=1)
        for name, lists in splits.items():
            part, subset = ("intermediate", name) if name == "classes" else ("finetune", name)
            pack = open_pack(pack_manifest(root, "segmentation"))
            split = {k: np.array(v, np.int64) for k, v in lists.items()}
            record = split_record(root, part, subset)
            write_split(record, record.with_suffix(".npz"), split, {"pack_sha256": pack.sha256})
        sizes = [int(name.split("_")[0].removeprefix("size-")) for name in splits if name != "classes"]
        spec = {"study": "s", "pretrain": True, "tasks": ["classes"], "finetune_sizes": sizes, "seeds": [0]}
        record = tmp_path / "duplicates.json"
        write_duplicates({**spec, "distance": 4, **over}, root=root, out=tmp_path, record=record)
        with open(tmp_path / "tables" / "duplicates.csv", encoding="utf-8", newline="") as f:
            rows = list(csv.DictReader(f))
        return rows, (tmp_path / "tables" / "duplicates.md").read_text()

    return make


def short(rows: list[dict[str, str]]) -> list[tuple[str, str, str, str]]:
    return [(r["role"], Path(r["image"]).stem, Path(r["test_image"]).stem, r["kind"]) for r in rows]


def test_tables_of_a_fixed_test_set(study: Callable[..., tuple[list[dict[str, str]], str]]) -> None:
    rows, text = study(
        {
            "size-2_seed-0": {"train": [0, 2], "test": [3, 6, 7]},
            "size-3_seed-0": {"train": [0, 2, 4], "test": [3, 6, 7]},
            "classes": {"train": [0, 3, 5], "test": [1]},
        }
    )
    assert short(rows) == [
        ("pretrain", "copy", "cat_3", "exact"),
        ("classes", "cat_3", "cat_3", "exact"),  # the task trains on that very image
        ("classes", "cat_0", "cat_6", "near"),
        ("finetune", "cat_1", "cat_7", "exact"),  # of the pool; no size happens to train on it
        ("finetune", "cat_0", "cat_6", "near"),
    ]
    assert all(0 <= int(row["distance"]) <= 4 for row in rows)
    assert "Study s, 3 test images." in text
    assert "| pretrain | 2 | 1 | 0 | 1 |\n| classes | 3 | 1 | 1 | 2 |\n| finetune | 5 | 1 | 1 | 2 |\n" in text


def test_a_moving_test_set_is_compared_within_each_size(
    study: Callable[..., tuple[list[dict[str, str]], str]],
) -> None:
    rows, text = study(
        {
            "size-2_seed-0": {"train": [0, 1], "test": [2, 3]},
            "size-4_seed-0": {"train": [0, 1, 2, 3], "test": [4, 7]},
            "classes": {"train": [5], "test": [0]},
        },
        pretrain=False,
    )
    # 2 and 3 are trained on and tested on, but not by one cell.
    assert short(rows) == [("finetune", "cat_1", "cat_7", "exact")]
    assert "pretrain" not in text
    assert "| classes | 1 | 0 | 0 | 0 |\n| finetune | 4 | 1 | 0 | 1 |\n" in text


@pytest.mark.real_data
def test_pets_have_known_twins(real_data: Path) -> None:
    """keeshond_97 and keeshond_140 are one photograph, compressed twice."""
    images = real_data / "oxford-iiit-pet" / "images"
    names = ("keeshond_97", "keeshond_140", "keeshond_101", "Abyssinian_1")
    pictures = np.stack([decode(images / f"{name}.jpg", 128, "antialias").grey for name in names])
    first, twin, *others = (int(h) for h in perceptual_hashes(pictures))
    assert (first ^ twin).bit_count() <= 4
    assert all((first ^ other).bit_count() > 10 for other in others)
