"""Index lists: nested, fixed, disjoint, the paper's own, and refused when they are not what they were."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from viny.data.pack import TEST, TRAIN, Pack
from viny.data.splits import (
    finetune_split,
    permutation,
    pretrain_split,
    read_split,
    task_split,
    torch_permutation,
    write_split,
)
from viny.runtime.errors import InputError
from viny.runtime.files import write_json, write_sealed

SOUND = {"split_seed": 42, "subsets": "shared", "test_set": "fixed", "test_size": 20}


def empty_pack(count: int, sha256: str = "a" * 64, parts: np.ndarray | None = None) -> Pack:
    """A pack without pixels: splits need its length, its hash and its parts."""
    nothing = np.empty((count, 0), np.uint8)
    return Pack(Path("packs/made-up"), {"sha256": sha256, "source": "pets"}, nothing, nothing, None, parts, None)


def test_permutation_is_one() -> None:
    for count in (0, 1, 2, 500):
        found = permutation(count, "a", 0)
        assert found.dtype == np.int64
        assert sorted(found.tolist()) == list(range(count))
    assert permutation(500, "a", 0).tolist() != list(range(500))


def test_permutation_is_the_same_everywhere() -> None:
    # It is made from hashes, so that no machine or library version can give another one.
    assert permutation(10, "a", 0)[:4].tolist() == [7, 4, 0, 2]


def test_permutation_depends_on_every_key() -> None:
    keys = [("a", 0), ("a", 1), ("b", 0), ("a", 0, 0), ("a",)]
    assert len({tuple(permutation(100, *key)) for key in keys}) == len(keys)


def test_more_images_keep_the_order_of_the_fewer() -> None:
    few, many = permutation(100, "a", 0), permutation(250, "a", 0)
    assert [i for i in many if i < 100] == few.tolist()


def test_permutation_mixes_evenly() -> None:
    # The first half holds about as many low indices as high ones: 500 of 1000, standard deviation 16.
    low = sum(int(i) < 1000 for i in permutation(2000, "pretrain", 42)[:1000])
    assert abs(low - 500) < 80


def test_pretraining_subsets_nest() -> None:
    pack = empty_pack(100)
    small, large = (pretrain_split(pack, n, 0, 42, "shared")["train"] for n in (30, 80))
    assert large[:30].tolist() == small.tolist()
    assert len(set(large.tolist())) == 80
    other_seed = pretrain_split(pack, 30, 1, 42, "shared")["train"]
    assert other_seed.tolist() == small.tolist()
    own = [pretrain_split(pack, 30, seed, 42, "per_seed")["train"].tolist() for seed in (0, 1)]
    assert own[0] != own[1]
    assert pretrain_split(pack, 30, 0, 43, "shared")["train"].tolist() != small.tolist()
    assert len(pretrain_split(pack, 100, 0, 42, "shared")["test"]) == 0


def test_nobody_trains_on_held_out_images() -> None:
    """Whatever the size and the seed; sizes still nest, and other splits have other ones."""
    pack = empty_pack(100)
    for subsets in ("shared", "per_seed"):
        found = {
            (size, seed): pretrain_split(pack, size, seed, 42, subsets, held_out=20)
            for size in (5, 30, 80)
            for seed in (0, 1, 2)
        }
        tests = [split["test"].tolist() for split in found.values()]
        assert all(test == tests[0] for test in tests)
        assert len(set(tests[0])) == 20
        for (size, seed), split in found.items():
            assert len(set(split["train"].tolist())) == size
            assert not set(split["train"].tolist()) & set(tests[0])
            assert split["train"].tolist() == found[80, seed]["train"][:size].tolist()
        # The images that are left keep their order.
        before = pretrain_split(pack, 100, 1, 42, subsets)["train"].tolist()
        assert found[80, 1]["train"].tolist() == [i for i in before if i not in tests[0]]
    assert pretrain_split(pack, 5, 0, 43, "shared", held_out=20)["test"].tolist() != tests[0]
    with pytest.raises(InputError, match=r"grid\.pretrain_sizes: 81 and pretrain\.held_out 20 do not fit 100 images"):
        pretrain_split(pack, 81, 0, 42, "shared", held_out=20)


def test_moving_test_set_is_the_papers() -> None:
    """What the published code does: random_split([n, 1000, rest]) of the joined 7,349 images, seed 42."""
    pack = empty_pack(7349)
    for size in (250, 6000):
        found = finetune_split(pack, size, 0, 42, "shared", "moving", 1000)
        lengths = [size, 1000, 7349 - size - 1000]
        generator = torch.Generator().manual_seed(42)
        train, test, _ = torch.utils.data.random_split(range(7349), lengths, generator)
        assert found["train"].tolist() == list(train.indices)
        assert found["test"].tolist() == list(test.indices)


def test_moving_test_set_moves_into_larger_training_sets() -> None:
    pack = empty_pack(7349)
    small, large = (finetune_split(pack, n, 0, 42, "shared", "moving", 1000) for n in (250, 6000))
    assert large["train"][:250].tolist() == small["train"].tolist()
    assert set(small["test"]) <= set(large["train"])  # the quirk: sizes are not tested on the same images
    assert not set(large["test"]) & set(large["train"])


def test_fixed_test_set_is_fixed_and_never_trained_on() -> None:
    pack = empty_pack(100)
    found = {
        (n, seed, subsets): finetune_split(pack, n, seed, **SOUND | {"subsets": subsets})
        for n in (5, 40, 80)
        for seed in (0, 1)
        for subsets in ("shared", "per_seed")
    }
    test = found[5, 0, "shared"]["test"].tolist()
    assert len(set(test)) == 20
    for (n, _, _), split in found.items():
        assert split["test"].tolist() == test
        assert len(set(split["train"].tolist())) == n
        assert not set(split["train"].tolist()) & set(test)
    for seed in (0, 1):
        for subsets in ("shared", "per_seed"):
            small, large = found[5, seed, subsets]["train"], found[80, seed, subsets]["train"]
            assert large[:5].tolist() == small.tolist()
    assert found[40, 0, "shared"]["train"].tolist() == found[40, 1, "shared"]["train"].tolist()
    assert found[40, 0, "per_seed"]["train"].tolist() != found[40, 1, "per_seed"]["train"].tolist()
    assert finetune_split(pack, 5, 0, **SOUND | {"split_seed": 43})["test"].tolist() != test


def test_sizes_beyond_the_data_name_the_key() -> None:
    pack = empty_pack(100)
    assert len(finetune_split(pack, 80, 0, **SOUND)["train"]) == 80
    for test_set in ("fixed", "moving"):
        with pytest.raises(InputError, match=r"grid\.finetune_sizes: 81 .*segmentation\.test_size 20.* 100"):
            finetune_split(pack, 81, 0, **SOUND | {"test_set": test_set})
    with pytest.raises(InputError, match=r"grid\.pretrain_sizes: 101 .* 100 images"):
        pretrain_split(pack, 101, 0, 42, "shared")


def test_task_pools() -> None:
    parts = np.array([TRAIN] * 60 + [TEST] * 40, np.uint8)
    pack = empty_pack(100, parts=parts)
    tested = finetune_split(pack, 5, 0, **SOUND)["test"]
    rest = {"split_seed": 42, "test_size": 20}
    sound = task_split(pack, True, "training", "fixed", **rest)
    # Everything that is not tested on: no label of a test image is ever learned from.
    assert set(sound["train"].tolist()) == set(range(100)) - set(tested.tolist())
    assert sound["test"].tolist() == tested.tolist()
    for other in ((True, "official", "fixed"), (False, "training", "fixed"), (True, "official", "moving")):
        official = task_split(pack, *other, **rest)
        assert official["train"].tolist() == list(range(60))
        assert official["test"].tolist() == list(range(60, 100))


@pytest.mark.parametrize("on_segmentation_data", [True, False])
def test_a_tasks_sizes_nest_in_its_training_part(on_segmentation_data: bool) -> None:
    pack = empty_pack(100, parts=np.array([TRAIN] * 60 + [TEST] * 40, np.uint8))
    rest = {"pool": "training", "test_set": "fixed", "split_seed": 42, "test_size": 20}
    whole = task_split(pack, on_segmentation_data, **rest)
    small, large = (task_split(pack, on_segmentation_data, **rest, size=n) for n in (10, 50))
    assert small["test"].tolist() == large["test"].tolist() == whole["test"].tolist()
    assert len(set(large["train"].tolist())) == 50 and set(large["train"]) < set(whole["train"])
    assert large["train"][:10].tolist() == small["train"].tolist()
    assert (
        task_split(pack, on_segmentation_data, **rest | {"split_seed": 1}, size=10)["train"].tolist()
        != small["train"].tolist()
    )
    count = len(whole["train"])
    assert set(task_split(pack, on_segmentation_data, **rest, size=count)["train"]) == set(whole["train"])
    with pytest.raises(InputError, match=rf"intermediate\.<task>\.images: {count + 1} is more than .* {count} images"):
        task_split(pack, on_segmentation_data, **rest, size=count + 1)


def test_a_source_without_parts_is_refused() -> None:
    with pytest.raises(InputError, match="no train and test parts"):
        task_split(empty_pack(100), False, "training", "fixed", 42, 20)


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, Path, Pack, dict[str, np.ndarray]]:
    pack = empty_pack(100)
    split = finetune_split(pack, 30, 0, **SOUND)
    record, indices = tmp_path / "split.json", tmp_path / "split.npz"
    write_split(record, indices, split, {"spec": {"size": 30}, "pack_sha256": pack.sha256})
    return record, indices, pack, split


def test_round_trip(written: tuple[Path, Path, Pack, dict[str, np.ndarray]]) -> None:
    record, indices, pack, split = written
    found = read_split(record, indices, pack)
    assert found.keys() == split.keys()
    assert all(np.array_equal(found[k], split[k]) for k in split)


def test_writing_twice_gives_the_same_bytes(
    written: tuple[Path, Path, Pack, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    record, indices, pack, split = written
    about = {"spec": {"size": 30}, "pack_sha256": pack.sha256}
    again = tmp_path / "again" / record.name
    write_split(again, again.with_suffix(".npz"), split, about)
    assert again.read_bytes() == record.read_bytes()
    assert again.with_suffix(".npz").read_bytes() == indices.read_bytes()


def test_tampered_indices_are_refused(written: tuple[Path, Path, Pack, dict[str, np.ndarray]]) -> None:
    record, indices, pack, split = written
    other = split["train"].copy()
    other[0], other[1] = other[1], other[0]  # the order counts, too
    np.savez(indices, train=other, test=split["test"])
    with pytest.raises(InputError, match=r"split\.npz: 'train' is not what"):
        read_split(record, indices, pack)


def test_damaged_files_are_refused(written: tuple[Path, Path, Pack, dict[str, np.ndarray]]) -> None:
    record, indices, pack, _ = written
    indices.write_bytes(indices.read_bytes()[:100])
    with pytest.raises(InputError, match=r"split\.npz: no readable"):
        read_split(record, indices, pack)
    indices.unlink()
    with pytest.raises(InputError, match=r"split\.npz"):
        read_split(record, indices, pack)
    record.write_text("{")
    with pytest.raises(InputError, match=r"split\.json: not valid JSON"):
        read_split(record, indices, pack)
    record.unlink()
    with pytest.raises(InputError, match=r"split\.json: no such file"):
        read_split(record, indices, pack)


def test_another_pack_is_refused(written: tuple[Path, Path, Pack, dict[str, np.ndarray]]) -> None:
    record, indices, _, _ = written
    with pytest.raises(InputError, match="another pack"):
        read_split(record, indices, empty_pack(100, sha256="b" * 64))


@pytest.mark.parametrize("seed", [0, 42, 2**31, 2**32 + 5, -3])
@pytest.mark.parametrize("count", [0, 1, 2, 50, 7_349])
def test_torch_permutation_is_pytorchs(count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    found = torch_permutation(count, seed)
    assert found.dtype == np.int64 and found.tolist() == torch.randperm(count, generator=generator).tolist()


def test_torch_permutation_leaves_the_global_generator_alone() -> None:
    before = np.random.get_state()[1].tolist()
    torch_permutation(50, 42)
    assert np.random.get_state()[1].tolist() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("pack_sha256"), "'pack_sha256' is missing"),
        (lambda r: r.pop("parts"), "'parts' is missing"),
        (lambda r: r["parts"].pop("test"), "'parts' does not hold train and test"),
        (lambda r: r["parts"].update(other={}), "'parts' does not hold train and test"),
        (lambda r: r["parts"].update(train=3), r"'parts\.train' is 3, expected a mapping"),
        (lambda r: r["parts"]["test"].update(sha256=None), r"'parts\.test\.sha256' is None, expected text"),
    ],
)
def test_a_record_without_what_it_needs_is_refused(
    written: tuple[Path, Path, Pack, dict[str, np.ndarray]], change: Callable[[dict], object], message: str
) -> None:
    record, indices, pack, _ = written
    value = json.loads(record.read_text())
    change(value)
    write_json(record, value)
    with pytest.raises(InputError, match=r"split\.json: (changed since it was written|not a split record)"):
        read_split(record, indices, pack)
    write_sealed(record, value)
    with pytest.raises(InputError, match=rf"split\.json: not a split record: {message}; delete it and rerun"):
        read_split(record, indices, pack)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([0, 1, 100], [2], "'train' names rows beyond the pack's, 0 to 99"),
        ([0, 1], [-1], "'test' names rows beyond"),
        ([0, 1, 0], [2], "'train' names a row twice"),
        ([0, 1, 2], [2, 3, 0], r"2 rows, such as 0, are in both 'train' and 'test'"),
        ([[0, 1]], [2], r"'train' is int64 \[1, 2\], expected int64 \[M\]"),
        ([0.0, 1.0], [2], r"'train' is float64 \[2\]"),
    ],
)
def test_lists_that_no_split_has_are_refused(tmp_path: Path, train: list, test: list, message: str) -> None:
    """Even if the record has their hashes."""
    pack, record, indices = empty_pack(100), tmp_path / "split.json", tmp_path / "split.npz"
    write_split(record, indices, {"train": np.array(train), "test": np.array(test)}, {"pack_sha256": pack.sha256})
    with pytest.raises(InputError, match=rf"split\.npz: {message}"):
        read_split(record, indices, pack)
