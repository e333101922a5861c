"""Packs: what is read from each layout, what decides their content, what is shared, what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from viny.data import pack as pack_module
from viny.data import packing
from viny.data.decoding import decode, decode_mask
from viny.data.pack import TEST, TRAIN, Pack, open_pack, verify_pack
from viny.data.packing import build_pack, pack_into_store
from viny.data.sources import list_imagenet, list_intel, list_pets, list_source
from viny.learning import batches
from viny.learning.batches import PackSubset
from viny.runtime.errors import InputError

PET_VALUES = {1: 0, 2: 1, 3: 2}


def picture(path: Path, seed: int, width: int = 40, height: int = 30) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def imagenet_at(root: Path) -> Path:
    for i, name in enumerate(("n01/a.png", "n01/b.JPEG", "n02/c.jpg")):
        picture(root / name, i)
    (root / "n01" / ".hidden.png").write_bytes(b"")
    (root / "n01" / "notes.txt").write_text("not an image")
    return root


def intel_at(root: Path) -> Path:
    for part, count in (("seg_train", 2), ("seg_test", 1)):
        for label, name in enumerate(("forest", "sea")):
            for i in range(count):
                picture(root / part / part / name / f"{i}.png", 10 * label + i)
    return root


def pets_at(root: Path) -> Path:
    """Three pets; the trimap of the last is all background."""
    base = root / "oxford-iiit-pet"
    (base / "annotations" / "trimaps").mkdir(parents=True)
    names = ["Abyssinian_1", "basset_hound_7", "Abyssinian_2"]
    for i, name in enumerate(names):
        picture(base / "images" / f"{name}.jpg", i)
        mask = np.full((30, 40), 2, np.uint8)
        if i < 2:
            mask[8:20, 10:30], mask[10:18, 12:28] = 3, 1
        Image.fromarray(mask).save(base / "annotations" / "trimaps" / f"{name}.png")
    lines = [f"{name} {1 + ('hound' in name)} 1 1" for name in names]
    (base / "annotations" / "trainval.txt").write_text("# name class\n" + "\n".join(lines[:2]) + "\n\n")
    (base / "annotations" / "test.txt").write_text(lines[2] + "\n")
    return root


LAYOUTS = {"imagenet": imagenet_at, "intel": intel_at, "pets": pets_at}


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Pack]:
    """Packs a source at a path."""
    number = 0

    def make(source: str, path: Path, threads: int = 1, resize: str = "antialias") -> Pack:
        nonlocal number
        number += 1
        folder = tmp_path / f"built-{number}"
        folder.mkdir()
        build_pack({"source": source, "path": str(path), "size": 16, "resize": resize}, folder, threads)
        return open_pack(folder / "manifest.json")

    return make


# Layouts


@pytest.mark.parametrize("below", ["", "train"])
def test_imagenet_layouts(tmp_path: Path, build: Callable[..., Pack], below: str) -> None:
    imagenet_at(tmp_path / "data" / below)
    pack = build("imagenet", tmp_path / "data")
    assert pack.images.shape == (3, 3, 16, 16) and pack.images.dtype == np.uint8
    assert pack.shapes.tolist() == [[30, 40]] * 3  # height, width
    assert pack.labels.tolist() == [0, 0, 1]
    assert pack.parts.tolist() == [TRAIN] * 3
    assert pack.masks is None
    assert pack.manifest["classes"] == ["n01", "n02"]
    names = (pack.folder / "names.txt").read_text().split()
    assert names == [str(Path(below, name)) for name in ("n01/a.png", "n01/b.JPEG", "n02/c.jpg")]


def test_intel_layout(tmp_path: Path, build: Callable[..., Pack]) -> None:
    pack = build("intel", intel_at(tmp_path / "intel"))
    assert pack.labels.tolist() == [0, 0, 1, 1, 0, 1]
    assert pack.parts.tolist() == [TRAIN] * 4 + [TEST] * 2
    assert pack.manifest["classes"] == ["forest", "sea"]
    assert "border_class" not in pack.manifest


def test_pets_layout(tmp_path: Path, build: Callable[..., Pack]) -> None:
    pack = build("pets", pets_at(tmp_path), resize="nearest")
    assert pack.masks.shape == (3, 16, 16)
    assert pack.parts.tolist() == [TRAIN, TRAIN, TEST]
    assert pack.labels.tolist() == [0, 1, 0]  # the list counts from 1
    assert pack.manifest["classes"] == ["Abyssinian", "basset_hound"]
    assert pack.manifest["mask_classes"] == ["pet", "background", "border"]
    assert pack.manifest["border_class"] == 2
    assert pack.manifest["masks_of_one_class"] == 1
    # 1, 2, 3 in the files are 0, 1, 2 here: pet in the middle, background in the corner.
    assert set(np.unique(pack.masks[0])) == {0, 1, 2}
    assert (pack.masks[0, 7, 8], pack.masks[0, 0, 0]) == (0, 1)
    assert set(np.unique(pack.masks[2])) == {1}


@pytest.mark.parametrize("resize", ["antialias", "nearest"])
def test_images_are_stretched_as_asked(tmp_path: Path, build: Callable[..., Pack], resize: str) -> None:
    imagenet_at(tmp_path / "data")
    pack = build("imagenet", tmp_path / "data", resize=resize)
    with Image.open(tmp_path / "data" / "n01" / "a.png") as image:
        raw = np.asarray(image)
    if resize == "nearest":
        rows, columns = (((np.arange(16) + 0.5) * n / 16).astype(int) for n in (30, 40))
        expected = raw[rows][:, columns].transpose(2, 0, 1)
        assert np.array_equal(pack.images[0], expected)
    else:
        # Antialiasing averages: noise loses contrast, and its mean stays.
        assert pack.images[0].std() < 0.7 * raw.std()
        assert abs(pack.images[0].mean() - raw.mean()) < 4


def test_grey_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    for mode, fill in (("L", 100), ("RGBA", (100, 100, 100, 255)), ("P", 3), ("CMYK", (9, 9, 9, 9))):
        path = tmp_path / (f"{mode}.tif" if mode == "CMYK" else f"{mode}.png")
        Image.new(mode, (20, 10), fill).save(path)
        picture = decode(path, 16, "antialias")
        assert picture.pixels.shape == (3, 16, 16) and picture.shape == (10, 20)


# Content


@pytest.mark.parametrize("source", sorted(LAYOUTS))
def test_content_does_not_depend_on_place_or_threads(tmp_path: Path, build: Callable[..., Pack], source: str) -> None:
    first = LAYOUTS[source](tmp_path / "here")
    shutil.copytree(first, tmp_path / "over" / "there")
    packs = [build(source, first), build(source, tmp_path / "over" / "there", threads=3)]
    texts = [(pack.folder / "manifest.json").read_text() for pack in packs]
    assert texts[0] == texts[1]
    assert str(tmp_path) not in texts[0]
    names = [(pack.folder / "names.txt").read_text() for pack in packs]
    assert names[0] == names[1]


def test_content_decides_the_hash(tmp_path: Path, build: Callable[..., Pack]) -> None:
    root = imagenet_at(tmp_path / "data")
    first = build("imagenet", root)
    picture(root / "n02" / "c.jpg", seed=99)
    assert build("imagenet", root).sha256 != first.sha256


def synthetic_spec(**over: Any) -> dict[str, Any]:
    spec = {"source": "synthetic", "size": 24, "resize": "antialias", "seed": 0}
    return {**spec, "stream": "segmentation", "count": 10, **over}


def test_synthetic_pack(pack: Pack) -> None:
    assert len(pack) == 30
    assert pack.images.shape == (30, 3, 24, 24)
    assert set(np.unique(pack.masks)) == {0, 1, 2}
    assert pack.manifest["mask_classes"] == ["object", "ground", "border"]
    assert pack.manifest["border_class"] == 2
    assert pack.parts.tolist() == [TRAIN] * 24 + [TEST] * 6
    assert len(pack.manifest["classes"]) == 7
    assert pack.labels.max() < 7
    verify_pack(pack.folder / "manifest.json")


def test_synthetic_packs_repeat(tmp_path: Path) -> None:
    hashes = []
    for i, over in enumerate(({}, {}, {"seed": 1}, {"stream": "unlabelled"})):
        folder = tmp_path / str(i)
        folder.mkdir()
        hashes.append(build_pack(synthetic_spec(**over), folder, threads=1 + i % 2)["sha256"])
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


def test_scenes_hold_out_every_class(synthetic_pack: Callable[..., Pack]) -> None:
    pack = synthetic_pack("scenes", 30)
    for part in (TRAIN, TEST):
        assert set(pack.labels[pack.parts == part]) == set(range(6))


def test_arrays_cannot_be_written_to(pack: Pack) -> None:
    with pytest.raises(ValueError, match="read-only"):
        pack.images[0] = 0


# Scaled decoding


def test_reduced_jpeg_is_near_the_full_one(tmp_path: Path) -> None:
    """Decoding a JPEG at half scale and resizing is almost the same as resizing all of it."""
    y, x = np.mgrid[0:375, 0:500].astype(float)
    smooth = np.stack([x / 500, y / 375, (x + y) / 875], axis=2)
    texture = 0.25 * np.sin(x / 5)[..., None] * np.cos(y / 7)[..., None]
    noise = np.random.default_rng(0).normal(0, 0.05, (375, 500, 3))
    pixels = (np.clip(smooth * 0.7 + 0.15 + texture + noise, 0, 1) * 255).astype(np.uint8)
    path = tmp_path / "photo.jpg"
    Image.fromarray(pixels).save(path, quality=90)
    picture = decode(path, 128, "antialias")
    with Image.open(path) as image:
        full = np.asarray(image.convert("RGB").resize((128, 128), Image.Resampling.BILINEAR))
        nearest = np.asarray(image.convert("RGB").resize((128, 128), Image.Resampling.NEAREST))
    gap = np.abs(picture.pixels.astype(int) - full.transpose(2, 0, 1))
    assert 0 < gap.mean() < 3  # not 0: the shortcut was taken
    assert picture.shape == (375, 500)  # of the original, not of the reduced one
    # Nearest neighbour means pixels of the original, so it is not taken there.
    assert np.array_equal(decode(path, 128, "nearest").pixels, nearest.transpose(2, 0, 1))


# Store


@pytest.fixture
def place(tmp_path: Path) -> Callable[[str], Path]:
    return lambda study: tmp_path / "results" / study / "packs" / "segmentation" / "manifest.json"


def test_packing_again_leaves_a_study_as_old_as_it_was(tmp_path: Path, place: Callable[[str], Path]) -> None:
    """Or all that was trained on the pack would be older than it."""
    folder = pack_into_store(synthetic_spec(), tmp_path / "packs", place("one"), 1)
    os.utime(place("one"), (1e9, 1e9))
    shutil.rmtree(folder)
    assert pack_into_store(synthetic_spec(), tmp_path / "packs", place("one"), 1) == folder
    assert place("one").stat().st_mtime == 1e9
    assert len(open_pack(place("one"))) == 10


def test_studies_share_packs(tmp_path: Path, place: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    spec, store = synthetic_spec(), tmp_path / "packs"
    folder = pack_into_store(spec, store, place("one"), 1)

    def refuse(*_: Any) -> None:
        raise AssertionError("packed twice")

    monkeypatch.setattr(packing, "build_pack", refuse)
    assert pack_into_store(dict(reversed(spec.items())), store, place("two"), 2) == folder
    assert pack_into_store(spec, store, place("one"), 1) == folder  # a rerun, over its own files
    packs = [open_pack(place(study)) for study in ("one", "two")]
    assert packs[0].sha256 == packs[1].sha256
    assert packs[0].folder == packs[1].folder == folder.resolve()
    assert not place("two").is_symlink()  # the manifest is a copy, so that it has a time of its own
    with pytest.raises(AssertionError, match="packed twice"):
        pack_into_store(synthetic_spec(seed=1), store, place("one"), 1)


def test_store_and_results_can_move_together(tmp_path: Path, place: Callable[[str], Path]) -> None:
    pack_into_store(synthetic_spec(), tmp_path / "packs", place("one"), 1)
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.move(tmp_path / "packs", moved / "packs")
    shutil.move(tmp_path / "results", moved / "results")
    assert len(open_pack(moved / place("one").relative_to(tmp_path))) == 10


def test_an_interrupted_packing_leaves_nothing(
    tmp_path: Path, place: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(spec: Any, folder: Path, threads: int) -> None:
        (folder / "images.npy").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(packing, "build_pack", fail)
        pack_into_store(synthetic_spec(), tmp_path / "packs", place("one"), 1)
    assert list((tmp_path / "packs").iterdir()) == []
    assert not place("one").exists()
    pack_into_store(synthetic_spec(), tmp_path / "packs", place("one"), 1)
    verify_pack(place("one"))


def test_two_jobs_may_make_the_same_pack(
    tmp_path: Path, place: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, store = synthetic_spec(), tmp_path / "packs"
    other: list[Path] = []

    def late(*arguments: Any) -> Any:
        made = build_pack(*arguments)
        if not other:  # the second job starts and ends between the first one's packing and its renaming
            other.append(Path())
            other[0] = pack_into_store(spec, store, place("two"), 1)
        return made

    monkeypatch.setattr(packing, "build_pack", late)
    assert pack_into_store(spec, store, place("one"), 1) == other[0]
    assert [p.name for p in store.iterdir()] == [other[0].name]
    for study in ("one", "two"):
        verify_pack(place(study))


def test_a_damaged_pack_is_packed_anew(
    tmp_path: Path, place: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pack_into_store(synthetic_spec(), tmp_path / "packs", place("one"), 1)
    flip_last_byte(folder / "masks.npy")
    assert pack_into_store(synthetic_spec(), tmp_path / "packs", place("two"), 1) == folder
    assert re.search(
        r"is damaged and will be packed again \(.*masks\.npy: row 9, of image synthetic 9", capsys.readouterr().out
    )
    for study in ("one", "two"):  # what was linked to the damaged pack is whole again too
        verify_pack(place(study))
    assert [p.name for p in (tmp_path / "packs").iterdir()] == [folder.name]


# Damage


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.fixture
def copied(pack: Pack, tmp_path: Path) -> Path:
    """A pack of one's own, to damage; gives its folder."""
    return Path(shutil.copytree(pack.folder, tmp_path / "copy"))


SMALL = ["shapes", "labels", "parts", "images.sums", "masks.sums", "files.sums", "images.phash"]


@pytest.mark.parametrize("name", SMALL)
def test_a_flipped_bit_of_a_small_array_keeps_the_pack_shut(copied: Path, name: str) -> None:
    verify_pack(copied / "manifest.json")
    flip_last_byte(copied / f"{name}.npy")
    with pytest.raises(InputError, match=rf"{re.escape(name)}\.npy: content differs .*delete .* and run again"):
        open_pack(copied / "manifest.json")


@pytest.mark.parametrize("name", ["images", "masks"])
def test_a_flipped_bit_of_a_row_is_found_when_it_is_first_read(copied: Path, name: str, pack: Pack) -> None:
    flip_last_byte(copied / f"{name}.npy")
    damaged = open_pack(copied / "manifest.json")
    others = np.array([28, 0, 7, 7])
    assert np.array_equal(damaged.rows(name, others), getattr(pack, name)[others])
    message = rf"{name}\.npy: row 29, of image synthetic 29, is damaged.*delete {copied} and run again"
    for _ in range(2):  # even if the first error was caught
        with pytest.raises(InputError, match=message):
            damaged.rows(name, np.array([3, 29]))
    with pytest.raises(InputError, match=message):
        verify_pack(copied / "manifest.json")


def test_a_flipped_bit_is_found_however_batches_are_read(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flip_last_byte(copied / "images.npy")
    damaged = open_pack(copied / "manifest.json")
    with pytest.raises(InputError, match=r"images\.npy: row 29"):
        PackSubset(damaged, "images", np.array([4, 29]), torch.device("cpu"))
    monkeypatch.setattr(batches, "IN_MEMORY", 0)
    streamed = PackSubset(damaged, "images", np.array([4, 29]), torch.device("cpu"))
    assert np.array_equal(streamed[torch.tensor([0, 0])][1], damaged.images[4])
    with pytest.raises(InputError, match=r"images\.npy: row 29"):
        streamed[torch.tensor([0, 1])]


def test_a_row_is_hashed_once(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_pack(pack.folder / "manifest.json")
    first = opened.rows("images", np.array([5, 2, 5]))

    def refuse(_: Any) -> bytes:
        raise AssertionError("hashed again")

    monkeypatch.setattr(pack_module, "short_sha256", refuse)
    assert np.array_equal(opened.rows("images", np.array([5, 2, 5])), first)
    with pytest.raises(AssertionError, match="hashed again"):
        opened.rows("images", np.array([6]))


@pytest.mark.parametrize("row", [-1, 30])
def test_rows_beyond_the_pack_are_refused(pack: Pack, row: int) -> None:
    with pytest.raises(InputError, match=rf"has rows 0 to 29 of masks, but {min(row, 3)} to {max(row, 3)}"):
        pack.rows("masks", np.array([3, row]))


def test_flipped_bits_of_names_and_manifest_are_found(tmp_path: Path, build: Callable[..., Pack]) -> None:
    built = build("imagenet", imagenet_at(tmp_path / "data"))
    manifest, names = built.folder / "manifest.json", built.folder / "names.txt"
    assert built.names == ["n01/a.png", "n01/b.JPEG", "n02/c.jpg"]
    flip_last_byte(names)
    with pytest.raises(InputError, match=r"names\.txt: content differs"):
        open_pack(manifest)
    names.unlink()
    with pytest.raises(InputError, match=r"names\.txt: No such file"):
        open_pack(manifest)
    text = manifest.read_text()
    manifest.write_text(text.replace('"n02"', '"n03"'))
    with pytest.raises(InputError, match=r"manifest\.json: changed since it was written"):
        open_pack(manifest)
    manifest.write_text(text.replace('"format": 2', '"format": 1'))
    with pytest.raises(InputError, match=r"manifest\.json: not a pack manifest of format 2"):
        open_pack(manifest)


def test_wrong_shapes_and_types_are_refused(copied: Path) -> None:
    labels = np.load(copied / "labels.npy")
    for wrong in (labels[:-1], labels.astype(np.int64)):
        np.save(copied / "labels.npy", wrong)
        with pytest.raises(InputError, match=r"labels\.npy: holds .* says <i4 \[30\].*run again"):
            open_pack(copied / "manifest.json")


@pytest.mark.parametrize("kept", [None, 0, 4, 200])
def test_missing_and_truncated_arrays_are_refused(copied: Path, kept: int | None) -> None:
    path = copied / "masks.npy"
    data = path.read_bytes()
    path.unlink()
    if kept is not None:
        path.write_bytes(data[:kept])
    with pytest.raises(InputError, match=r"masks\.npy: .*run again to repack it"):
        open_pack(copied / "manifest.json")


def test_a_missing_or_broken_manifest_is_refused(copied: Path) -> None:
    (copied / "manifest.json").write_text("{'format': 1}")
    with pytest.raises(InputError, match=r"manifest\.json: not valid JSON"):
        open_pack(copied / "manifest.json")
    (copied / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"manifest\.json: no such file"):
        open_pack(copied / "manifest.json")


# Sources at fault


@pytest.mark.parametrize("name", ["n01/a.png", "n01/b.JPEG"])
@pytest.mark.parametrize("resize", ["antialias", "nearest"])
def test_a_truncated_image_is_named(tmp_path: Path, build: Callable[..., Pack], name: str, resize: str) -> None:
    path = imagenet_at(tmp_path / "data") / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=rf"{path.name}: cannot be read as an image .*replace or remove"):
        build("imagenet", tmp_path / "data", threads=2, resize=resize)


def test_an_image_that_is_none_is_named(tmp_path: Path, build: Callable[..., Pack]) -> None:
    (imagenet_at(tmp_path / "data") / "n02" / "d.png").write_text("hello")
    with pytest.raises(InputError, match=r"d\.png: cannot be read as an image"):
        build("imagenet", tmp_path / "data")


def trimap(root: Path) -> Path:
    return root / "oxford-iiit-pet" / "annotations" / "trimaps" / "basset_hound_7.png"


def test_a_missing_mask_or_image_is_named(tmp_path: Path, build: Callable[..., Pack]) -> None:
    trimap(pets_at(tmp_path)).unlink()
    with pytest.raises(InputError, match=r"basset_hound_7\.png: mask is missing"):
        build("pets", tmp_path)
    (tmp_path / "oxford-iiit-pet" / "images" / "Abyssinian_1.jpg").unlink()
    with pytest.raises(InputError, match=r"Abyssinian_1\.jpg: listed image is missing"):
        build("pets", tmp_path)


@pytest.mark.parametrize("value", [0, 4, 255])
def test_an_unknown_mask_value_is_named(tmp_path: Path, build: Callable[..., Pack], value: int) -> None:
    path = trimap(pets_at(tmp_path))
    with Image.open(path) as image:
        mask = np.array(image)
    mask[:10] = value
    Image.fromarray(mask).save(path)
    expected = rf"basset_hound_7\.png: unknown mask values {value}; expected 1, 2, 3;"
    with pytest.raises(InputError, match=expected):
        build("pets", tmp_path)


def test_a_mask_must_have_one_channel(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (1, 1, 2)).save(tmp_path / "colour.png")
    with pytest.raises(InputError, match=r"colour\.png: expected one channel"):
        decode_mask(tmp_path / "colour.png", 8, PET_VALUES)
    (tmp_path / "broken.png").write_bytes((tmp_path / "colour.png").read_bytes()[:40])
    with pytest.raises(InputError, match=r"broken\.png: cannot be read as a mask"):
        decode_mask(tmp_path / "broken.png", 8, PET_VALUES)


@pytest.mark.parametrize(
    ("source", "lacking", "expected"),
    [
        ("imagenet", "", "ILSVRC2012_img_train.tar"),
        ("intel", "seg_train/seg_train", "puneet6060/intel-image-classification"),
        ("pets", "oxford-iiit-pet/annotations/trainval.txt", "segmentation.download"),
    ],
)
def test_missing_data_say_what_is_expected(tmp_path: Path, source: str, lacking: str, expected: str) -> None:
    root = tmp_path / "nowhere"
    with pytest.raises(InputError) as caught:
        list_source({"source": source, "path": root})
    message = str(caught.value)
    assert message.startswith(f"{root / lacking}: not found")
    assert expected in message


def test_empty_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="expects class folders"):
        list_imagenet(tmp_path / "empty")
    root = imagenet_at(tmp_path / "data")
    (root / "n03").mkdir()
    with pytest.raises(InputError, match=r"n03: class folder without images"):
        list_imagenet(root)


def test_intels_parts_must_have_the_same_classes(tmp_path: Path) -> None:
    root = intel_at(tmp_path)
    picture(root / "seg_test" / "seg_test" / "street" / "0.png", 0)
    with pytest.raises(InputError, match=r"seg_train has classes forest, sea but seg_test forest, sea, street"):
        list_intel(root)


def test_a_broken_line_of_pets_is_named(tmp_path: Path) -> None:
    notes = pets_at(tmp_path) / "oxford-iiit-pet" / "annotations"
    (notes / "test.txt").write_text("# comment\nAbyssinian_2\n")
    with pytest.raises(InputError, match=r"test\.txt, line 2: expected .* got 'Abyssinian_2'"):
        list_pets(tmp_path)


def test_manifest_says_what_the_arrays_are(pack: Pack) -> None:
    manifest = json.loads((pack.folder / "manifest.json").read_text())
    for name, about in manifest["arrays"].items():
        array = np.load(pack.folder / f"{name}.npy")
        assert (list(array.shape), array.dtype.str) == (about["shape"], about["dtype"])
    assert (manifest["count"], manifest["resolution"]) == (30, 24)
    assert not [key for key in manifest if "time" in key or "host" in key]


# Real images


@pytest.mark.real_data
def test_real_pets(real_data: Path) -> None:
    listing = list_pets(real_data)
    assert len(listing.images) == len(listing.masks) == 7349
    assert (listing.parts.count(TRAIN), listing.parts.count(TEST)) == (3680, 3669)
    assert len(listing.classes) == 37 and "saint_bernard" in listing.classes
    # Images and masks belong together, and so do breeds and names.
    for i in (0, 3679, 3680, 7348):
        assert listing.images[i].stem == listing.masks[i].stem
        assert listing.images[i].stem.rsplit("_", 1)[0] == listing.classes[listing.labels[i]]
        mask = decode_mask(listing.masks[i], 64, listing.mask_values)
        picture = decode(listing.images[i], 32, "antialias", mask.shape)
        assert picture.pixels.shape == (3, 32, 32) and min(picture.shape) > 32
        assert set(np.unique(mask.pixels)) == {0, 1, 2} and mask.only is None
    # One of the fourteen trimaps that are all background in the official release.
    blank = next(path for path in listing.masks if path.stem == "saint_bernard_60")
    assert decode_mask(blank, 64, listing.mask_values).only == 1


@pytest.mark.real_data
def test_real_intel(real_data: Path) -> None:
    if not (real_data / "intel").is_dir():
        pytest.skip(f"no Intel images at {real_data}")
    listing = list_intel(real_data / "intel")
    assert (listing.parts.count(TRAIN), listing.parts.count(TEST)) == (14034, 3000)
    assert len(listing.classes) == 6
    assert decode(listing.images[0], 32, "nearest").pixels.shape == (3, 32, 32)


@pytest.mark.real_data
def test_real_imagenet(real_data: Path) -> None:
    if not (real_data / "imagenet").is_dir():
        pytest.skip(f"no ImageNet images at {real_data}")
    listing = list_imagenet(real_data / "imagenet")
    assert 900 < len(listing.classes) <= 1000  # a reduced copy may lack some
    assert all(path.parent.parent.name == "train" for path in listing.images)  # val/ stays out
    assert decode(listing.images[0], 32, "antialias").pixels.shape == (3, 32, 32)


# Copies on a node's own disk


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """Manifest of a pack in a store."""
    spec = {"source": "synthetic", "size": 24, "resize": "antialias", "stream": "segmentation", "seed": 0, "count": 6}
    manifest = tmp_path / "study" / "manifest.json"
    pack_into_store(spec, tmp_path / "store", manifest, 1)
    return manifest


def test_a_study_copied_with_links_followed_has_all_of_its_packs(linked: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(linked.parent, tmp_path / "copy")
    shutil.rmtree(tmp_path / "store")
    assert not any(path.is_symlink() for path in copy.iterdir())
    verify_pack(copy / "manifest.json")
    assert open_pack(copy / "manifest.json").folder == copy


def test_packing_again_links_what_was_copied(linked: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(linked.parent, tmp_path / "copy")
    (copy / "leftover.npy").write_bytes(b"of an older pack")
    spec = {"source": "synthetic", "size": 24, "resize": "antialias", "stream": "segmentation", "seed": 0, "count": 6}
    folder = pack_into_store(spec, tmp_path / "store", copy / "manifest.json", 1)
    names = {path.name for path in folder.iterdir()}
    assert {path.name for path in copy.iterdir()} == names
    assert {path.name for path in copy.iterdir() if path.is_symlink()} == names - {"manifest.json"}


def test_a_node_local_copy_is_made_once_and_holds_the_same(
    linked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = open_pack(linked).rows("images", np.arange(6))
    node = tmp_path / "node"
    node.mkdir()
    monkeypatch.setenv("TMPDIR", str(node))
    assert open_pack(linked, node_local=True).folder.parent == tmp_path / "store"  # only if it is asked for
    monkeypatch.setenv("VINY_NODE_LOCAL", "1")
    assert open_pack(linked).folder.parent == tmp_path / "store"  # what reads once has no use for a copy
    first = open_pack(linked, node_local=True)
    assert first.folder.parent == node
    assert np.array_equal(first.rows("images", np.arange(6)), expected)
    written = (first.folder / "images.npy").stat().st_mtime_ns
    assert open_pack(linked, node_local=True).folder == first.folder
    assert (first.folder / "images.npy").stat().st_mtime_ns == written
    assert [p.name for p in node.iterdir()] == [first.folder.name]


def test_a_damaged_node_local_copy_is_not_used_silently(
    linked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path))
    monkeypatch.setenv("VINY_NODE_LOCAL", "1")
    file = open_pack(linked, node_local=True).folder / "images.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"viny-pack-.*images\.npy: row 5"):
        open_pack(linked, node_local=True).rows("images", np.arange(6))


def test_without_room_on_the_node_the_store_serves(
    linked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path))
    monkeypatch.setenv("VINY_NODE_LOCAL", "1")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100})())
    assert open_pack(linked, node_local=True).folder.parent == tmp_path / "store"
    assert "no copy of" in capsys.readouterr().out


def test_masks_at_their_own_size_are_in_the_pack_and_any_damage_to_them_is_found(
    tmp_path: Path, build: Callable[..., Pack], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "CHUNK", 2)
    pets = pets_at(tmp_path) / "oxford-iiit-pet"
    picture(pets / "images" / "basset_hound_7.jpg", 1, width=33, height=52)
    Image.fromarray(np.repeat([1, 2, 3, 1], 13)[:, None].repeat(33, 1).astype(np.uint8)).save(
        pets / "annotations" / "trimaps" / "basset_hound_7.png"
    )
    pack, other = (build("pets", tmp_path, threads) for threads in (1, 3))
    folders = [pack.folder, other.folder]
    for row, name in enumerate(pack.names):
        with Image.open(pets / "annotations" / "trimaps" / f"{Path(name).stem}.png") as trimap:
            assert np.array_equal(pack.own_mask(row), np.asarray(trimap) - 1)
    assert len({pack.own_mask(row).shape for row in range(len(pack))}) > 1
    for file in ("own_masks.bin", "own_masks.npy", "manifest.json"):
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes()
    whole = (folders[0] / "own_masks.bin").read_bytes()
    for damage in (whole[:-10], whole[:30] + bytes([whole[30] ^ 255]) + whole[31:], b""):
        (folders[0] / "own_masks.bin").write_bytes(damage)
        with pytest.raises(InputError, match=r"own_masks\.bin: the mask of image .*; delete"):
            verify_pack(folders[0] / "manifest.json")
    (folders[0] / "own_masks.bin").unlink()
    with pytest.raises(InputError, match=r"own_masks\.bin"):
        verify_pack(folders[0] / "manifest.json")
    places = np.load(folders[1] / "own_masks.npy")
    np.save(folders[1] / "own_masks.npy", places[::-1])
    with pytest.raises(InputError, match="own_masks"):
        verify_pack(folders[1] / "manifest.json")
