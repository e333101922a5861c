"""Bad input: each kind is read correctly or refused with one reason, and never silently becomes other numbers."""

from __future__ import annotations

import contextlib
import copy
import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from viny.data import packing, sources
from viny.data.decoding import BadFileError, decode, decode_mask
from viny.data.pack import Pack, manifest_sha256, open_pack, verify_pack
from viny.data.packing import build_pack, describe, pack_into_store
from viny.data.sources import list_imagenet, list_pets
from viny.data.splits import finetune_split, read_split, write_split
from viny.runtime.errors import InputError
from viny.runtime.files import array_sha256, write_sealed
from viny.runtime.processes import place, process_tag

VALUES = {1: 0, 2: 1, 3: 2}
HEIGHT, WIDTH = 30, 40
GENERATED = settings(
    max_examples=60, derandomize=True, deadline=60_000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def noise(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def expect(pixels: np.ndarray, size: int = 16) -> np.ndarray:
    """What packing should make of an upright RGB picture [H, W, 3]."""
    square = Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(square).transpose(2, 0, 1)


def trimap(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    mask = np.full((height, width), 2, np.uint8)
    mask[8:20, 10:30], mask[10:18, 12:28] = 3, 1
    return mask


def pets_at(root: Path, count: int = 6) -> Path:
    """Pets as torchvision lays them out; the trimap of the last shows nothing but background."""
    base = root / "oxford-iiit-pet"
    (base / "annotations" / "trimaps").mkdir(parents=True)
    (base / "images").mkdir()
    for i in range(count):
        Image.fromarray(noise(seed=i)).save(base / "images" / f"cat_{i}.jpg")
        mask = trimap() if i < count - 1 else np.full((HEIGHT, WIDTH), 2, np.uint8)
        Image.fromarray(mask).save(base / "annotations" / "trimaps" / f"cat_{i}.png")
    lines = [f"cat_{i} 1 1 1\n" for i in range(count)]
    (base / "annotations" / "trainval.txt").write_text("".join(lines[: count - 1]))
    (base / "annotations" / "test.txt").write_text(lines[-1])
    return root


def image_of(root: Path, i: int) -> Path:
    return root / "oxford-iiit-pet" / "images" / f"cat_{i}.jpg"


def mask_of(root: Path, i: int) -> Path:
    return root / "oxford-iiit-pet" / "annotations" / "trimaps" / f"cat_{i}.png"


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return pets_at(tmp_path / "data")


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Pack]:
    """Packs the pets at a path."""
    number = 0

    def make(path: Path, **over: Any) -> Pack:
        nonlocal number
        number += 1
        folder = tmp_path / f"built-{number}"
        folder.mkdir()
        spec = {"source": "pets", "path": str(path), "size": 16, "resize": "antialias", **over}
        build_pack(spec, folder, threads=2)
        verify_pack(folder / "manifest.json")
        return open_pack(folder / "manifest.json")

    return make


# Images as they come


def test_sixteen_bit_greys_are_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.tile(np.linspace(0, 65535, WIDTH).astype(np.uint16), (HEIGHT, 1))
    wanted = expect(np.repeat(np.rint(ramp / 257).astype(np.uint8)[..., None], 3, axis=2)).astype(int)
    Image.fromarray(ramp).save(tmp_path / "grey.png")
    Image.fromarray(ramp).save(tmp_path / "grey.tif")
    big = Image.frombytes("I;16B", (WIDTH, HEIGHT), ramp.astype(">u2").tobytes())
    big.save(tmp_path / "big.tif")
    with Image.open(tmp_path / "big.tif") as image:
        assert image.mode == "I;16B"
    for name in ("grey.png", "grey.tif", "big.tif"):
        assert np.abs(decode(tmp_path / name, 16, "antialias").pixels - wanted).max() <= 1


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(noise()).convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path)
    assert np.array_equal(decode(path, 16, "antialias").pixels, expect(np.asarray(image.convert("RGB"))))


def test_transparent_pixels_are_laid_on_white(tmp_path: Path) -> None:
    alpha = np.zeros((HEIGHT, WIDTH), np.uint8)
    alpha[:, 20:] = 255
    pixels = noise()
    wanted = pixels.copy()
    wanted[:, :20] = 255
    rgba = Image.fromarray(np.dstack([pixels, alpha]))
    rgba.save(tmp_path / "rgba.png")
    rgba.save(tmp_path / "rgba.webp", lossless=True, exact=True)
    for name in ("rgba.png", "rgba.webp"):
        assert np.array_equal(decode(tmp_path / name, 16, "antialias").pixels, expect(wanted))
    grey = np.full((HEIGHT, WIDTH), 90, np.uint8)
    Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)]).save(tmp_path / "la.png")
    level = np.where(alpha[..., None] > 0, 90, 255).astype(np.uint8).repeat(3, axis=2)
    assert np.array_equal(decode(tmp_path / "la.png", 16, "antialias").pixels, expect(level))
    palette = Image.fromarray((alpha // 255).astype(np.uint8), "P")
    palette.putpalette([10, 20, 30, 90, 90, 90])
    palette.save(tmp_path / "p.png", transparency=0)
    palette.save(tmp_path / "p.gif", transparency=0)
    for name in ("p.png", "p.gif"):
        assert np.array_equal(decode(tmp_path / name, 16, "antialias").pixels, expect(level))


@pytest.mark.parametrize("kind", ["jpg", "png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_made_upright(tmp_path: Path, orientation: int, kind: str) -> None:
    """As Pillow's own `exif_transpose`; JPEGs are large enough to be decoded at a reduced scale."""
    height, width = (300, 200) if kind == "jpg" else (HEIGHT, WIDTH)
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([255 * x / width, 255 * y / height, 0 * x + 60], axis=2).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{kind}"
    Image.fromarray(pixels).save(path, exif=exif)
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    picture = decode(path, 16, "antialias")
    assert picture.shape == upright.shape[:2] == ((width, height) if orientation > 4 else (height, width))
    assert np.abs(picture.pixels.astype(int) - expect(upright)).max() <= (6 if kind == "jpg" else 0)
    assert np.array_equal(decode(path, 16, "nearest").pixels.shape, (3, 16, 16))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_broken_exif_block_costs_only_the_orientation(tmp_path: Path) -> None:
    Image.fromarray(noise()).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(range(20)))
    assert decode(tmp_path / "a.jpg", 16, "antialias").shape == (HEIGHT, WIDTH)


def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "lime")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    for kind in ("gif", "webp", "tif"):
        pixels = decode(tmp_path / f"a.{kind}", 16, "antialias").pixels
        assert pixels.reshape(3, -1).T.tolist() == [[255, 0, 0]] * 256


def refused(tmp_path: Path, name: str, make: Callable[[Path], Any]) -> str:
    """The reason why a file is refused as an image."""
    path = tmp_path / name
    make(path)
    with pytest.raises(BadFileError) as caught:
        decode(path, 16, "antialias")
    assert str(caught.value) == f"{path}: {caught.value.reason}"
    assert str(tmp_path) not in caught.value.reason and " at 0x" not in caught.value.reason
    return caught.value.reason


def saved(image: Image.Image, **options: Any) -> Callable[[Path], None]:
    return lambda path: image.save(path, **options)


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("f.tif", saved(Image.new("F", (9, 9))), "32 bits per sample, in a range that the file does not state"),
        ("i.tif", saved(Image.new("I", (9, 9))), "32 bits per sample"),
        ("small.png", saved(Image.new("RGB", (3, 50))), r"3 x 50 pixels; a side needs at least 4"),
        ("empty.png", lambda path: path.write_bytes(b""), "the file is empty"),
        ("text.jpg", lambda path: path.write_text("hello"), "none of the formats JPEG, PNG"),
        ("folder.png", lambda path: path.mkdir(), "it is a folder"),
        ("pipe.png", lambda path: os.mkfifo(path), "it is not a regular file"),
        ("gone.png", lambda path: None, "listed image is missing"),
        ("dangling.png", lambda path: path.symlink_to("nowhere"), "listed image is missing"),
        ("a.eps", saved(Image.new("RGB", (9, 9))), "none of the formats JPEG"),
        ("a.ppm", saved(Image.new("RGB", (9, 9))), "none of the formats JPEG"),
        ("eps.jpg", saved(Image.new("RGB", (9, 9)), format="EPS"), "none of the formats JPEG"),
    ],
)
def test_a_refused_image_has_one_reason(tmp_path: Path, name: str, make: Callable[[Path], Any], reason: str) -> None:
    assert re.search(reason, refused(tmp_path, name, make))


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "gif", "bmp", "tif"])
def test_truncated_images_are_refused(tmp_path: Path, kind: str) -> None:
    Image.fromarray(noise()).save(tmp_path / f"whole.{kind}")
    data = (tmp_path / f"whole.{kind}").read_bytes()
    for share in (0.1, 0.5, 0.9):
        cut = data[: int(len(data) * share)]
        reason = refused(tmp_path, f"cut.{kind}", lambda path, cut=cut: path.write_bytes(cut))
        assert re.search(r"cannot be read as an image \(.+\); replace or remove it", reason)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 60_000])
def test_decompression_bombs_are_refused(tmp_path: Path, side: int) -> None:
    def claim(path: Path) -> None:
        header = b"BM" + bytes(8) + (54).to_bytes(4, "little") + (40).to_bytes(4, "little")
        sides = side.to_bytes(4, "little") * 2
        path.write_bytes(header + sides + b"\x01\0\x18\0" + bytes(24))

    assert re.search(r"89,478,485|exceeds limit", refused(tmp_path, "bomb.bmp", claim))


def test_unreadable_files_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(noise()).save(tmp_path / "a.png")

    def deny(_: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", deny)
    with pytest.raises(BadFileError, match=r"a\.png: .*\(Permission denied\); check its permissions"):
        decode(tmp_path / "a.png", 16, "antialias")


# Masks


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (lambda: Image.fromarray(trimap(30, 41)), r"is 30 x 40 pixels \(height x width\), but its mask 30 x 41"),
        (lambda: Image.fromarray(noise()), "expected one channel of class values, got colours"),
        (lambda: Image.fromarray(trimap() * 80), "unknown mask values 80, 160, 240; expected 1, 2, 3"),
        (lambda: Image.fromarray(trimap().astype(np.uint16) + 300), "unknown mask values 301, 302, 303"),
        (lambda: Image.fromarray(trimap() > 1), "unknown mask values 0;"),
    ],
)
def test_masks_that_do_not_fit_are_refused(
    pets: Path, build: Callable[..., Pack], mask: Callable[[], Image.Image], reason: str
) -> None:
    mask().save(mask_of(pets, 2))
    with pytest.raises(InputError, match=reason):
        build(pets)
    skipped = build(pets, on_bad_image="skip").manifest["skipped"]
    assert len(skipped) == 1 and skipped[0]["image"] == "oxford-iiit-pet/images/cat_2.jpg"
    assert re.search(reason, skipped[0]["reason"])


def test_one_unknown_value_between_known_ones_is_found(tmp_path: Path) -> None:
    mask = trimap()
    mask[0, 0] = 2
    Image.fromarray(mask).save(tmp_path / "m.png")
    assert decode_mask(tmp_path / "m.png", 8, {1: 0, 2: 1, 3: 2}).only is None
    with pytest.raises(BadFileError, match="unknown mask values 2; expected 1, 3;"):
        decode_mask(tmp_path / "m.png", 8, {1: 0, 3: 2})


def test_a_mask_drawn_on_the_stored_image_is_turned_with_it(pets: Path, build: Callable[..., Pack]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = noise(seed=9)
    for i in (0, 1):
        Image.fromarray(pixels).save(image_of(pets, i), exif=exif, format="PNG")
    Image.fromarray(np.rot90(trimap(), -1).copy()).save(mask_of(pets, 1))  # fits the upright picture
    pack = build(pets)
    for i in (0, 1):
        assert np.array_equal(pack.images[i], expect(np.rot90(pixels, -1).copy()))
    assert np.array_equal(pack.masks[0], pack.masks[1])
    assert pack.shapes[:2].tolist() == [[40, 30], [40, 30]]
    assert pack.manifest["conventions"]["turned"] == {
        **{"images": 2, "masks": 0, "lie_on": "either", "by_size": 2, "assumed": 0}
    }
    assert "2 images are turned upright by their EXIF orientation; some masks lie on" in describe(pack.manifest)


def test_masks_of_background_are_counted_and_can_be_skipped(pets: Path, build: Callable[..., Pack]) -> None:
    kept, skipped = build(pets), build(pets, all_background="skip")
    assert (len(kept), len(skipped)) == (6, 5)
    for pack in (kept, skipped):
        assert pack.manifest["all_background"] == 1
        assert "1 masks that show nothing but background" in describe(pack.manifest)
    assert kept.manifest["skipped"] == []
    assert skipped.manifest["skipped"] == [
        {
            "image": "oxford-iiit-pet/images/cat_5.jpg",
            "file": "oxford-iiit-pet/annotations/trimaps/cat_5.png",
            "reason": "the mask shows nothing but background",
        }
    ]
    for i in range(5):
        Image.fromarray(np.full((HEIGHT, WIDTH), 2, np.uint8)).save(mask_of(pets, i))
    with pytest.raises(InputError, match=r"no images are left; set segmentation\.all_background: keep"):
        build(pets, all_background="skip")


# Bad files of a data set


def spoil(root: Path, *numbers: int) -> None:
    for i in numbers:
        image_of(root, i).write_bytes(b"spoiled")


def test_all_bad_files_are_listed_at_once(tmp_path: Path, build: Callable[..., Pack]) -> None:
    root = pets_at(tmp_path / "many", 14)
    spoil(root, *range(1, 13))
    with pytest.raises(InputError) as caught:
        build(root)
    lines = str(caught.value).splitlines()
    assert lines[0] == (
        f"{root}: 12 of 14 images are bad; fix or remove them, or set on_bad_image: skip to leave them out"
    )
    assert [re.search(r"cat_(\d+)\.jpg: cannot be read", line)[1] for line in lines[1:11]] == list(
        map(str, range(1, 11))
    )
    assert lines[11:] == ["  and 2 more"]
    with pytest.raises(InputError, match=r"12 of 14 images are bad; more than half: on_bad_image: skip does not go"):
        build(root, on_bad_image="skip")


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_skipped_images_leave_the_others_as_they_are(
    pets: Path, build: Callable[..., Pack], monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    whole = build(pets)
    monkeypatch.setattr(packing, "CHUNK", chunk)
    spoil(pets, 0)
    mask_of(pets, 3).unlink()
    some = build(pets, on_bad_image="skip")
    kept = [1, 2, 4, 5]
    assert some.manifest["count"] == len(some) == 4
    for name in ("images", "masks", "labels"):
        assert np.array_equal(some.rows(name, np.arange(4)), whole.rows(name, np.array(kept)))
    for name in ("shapes", "parts", "file_sums", "phash"):
        assert np.array_equal(getattr(some, name), getattr(whole, name)[kept])
    assert some.names == [whole.names[i] for i in kept]
    reasons = [(left["image"][-9:], left["file"][-9:], left["reason"]) for left in some.manifest["skipped"]]
    assert reasons[0][:2] == ("cat_0.jpg", "cat_0.jpg") and "none of the formats" in reasons[0][2]
    assert reasons[1] == (
        "cat_3.jpg",
        "cat_3.png",
        "mask is missing; restore it or remove its image from the list",
    )
    assert "skipped oxford-iiit-pet/images/cat_0.jpg" in describe(some.manifest)


def test_nothing_to_skip_gives_the_same_arrays(pets: Path, build: Callable[..., Pack]) -> None:
    assert build(pets).sha256 == build(pets, on_bad_image="skip", all_background="keep").sha256


# Names and lists


def trainval(root: Path) -> Path:
    return root / "oxford-iiit-pet" / "annotations" / "trainval.txt"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("../../etc/passwd 1", r"trainval\.txt, line 6: '\.\./\.\./etc/passwd' is a path"),
        ("/etc/passwd 1", r"line 6: '/etc/passwd' is a path"),
        ("a\\b 1", r"line 6: 'a\\b' is a path"),
        ("cat_2 1", r"trainval\.txt, line 6: 'cat_2' is in trainval\.txt, line 3, too"),
        ("cat_5 1", r"test\.txt, line 1: 'cat_5' is in trainval\.txt, line 6, too"),
        ("cat_9 0", r"line 6: class 0; classes are counted from 1"),
        ("cat_9 -3", r"line 6: class -3"),
        ("cat_9 99999999", r"name class 99999999, but only 7 images"),
        ("cat\x07 1", r"the name 'cat\\x07' has control characters"),
        ("cat_9 one", r"line 6: expected '<name> <class> \.\.\.', got 'cat_9 one'"),
    ],
)
def test_a_bad_line_of_a_list_is_named(pets: Path, line: str, message: str) -> None:
    with open(trainval(pets), "a", encoding="utf-8") as f:
        f.write(line + "\n")
    with pytest.raises(InputError, match=message):
        list_pets(pets)


def test_lists_that_are_empty_or_no_text_are_refused(pets: Path) -> None:
    trainval(pets).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"trainval\.txt: cannot be read as a list of images"):
        list_pets(pets)
    for name in ("trainval.txt", "test.txt"):
        (trainval(pets).parent / name).write_text("# nothing\n")
    with pytest.raises(InputError, match="list no images; restore them"):
        list_pets(pets)


def test_masks_without_an_image_are_a_note(pets: Path, build: Callable[..., Pack]) -> None:
    for name in ("spare_1.png", "._cat_1.png", "._spare.png", "notes.mat"):
        shutil.copy(mask_of(pets, 0), mask_of(pets, 0).with_name(name))
    pack = build(pets)
    assert len(pack) == 6 and pack.manifest["masks_without_image"] == 1
    assert "1 masks whose image is not listed" in describe(pack.manifest)


@pytest.mark.parametrize("name", ["a\nb.png", "a\x1b[2J.png", "a\u2028b.png", os.fsdecode(b"a\xffb.png")])
def test_names_with_control_characters_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / name).write_bytes(b"")
    with pytest.raises(InputError, match=r"class: the name '.*' has control characters or is not UTF-8") as caught:
        list_imagenet(tmp_path)
    assert str(caught.value).isprintable()


def test_names_of_other_alphabets_are_taken(tmp_path: Path) -> None:
    for name in ("Wölfe", "猫 と 犬"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}\u00a01.png").write_bytes(b"")
    assert len(list_imagenet(tmp_path).images) == 2


safely_unpacking = pytest.mark.skipif(
    not hasattr(tarfile, "data_filter"), reason="Python before 3.11.4 does not download: it cannot unpack safely"
)


def test_a_python_that_cannot_unpack_safely_does_not_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torchvision = pytest.importorskip("torchvision.datasets")
    monkeypatch.setattr(torchvision, "OxfordIIITPet", lambda *_, **__: pytest.fail("downloaded"))
    monkeypatch.delattr(tarfile, "data_filter", raising=False)
    with pytest.raises(InputError, match=r"cannot unpack archives safely; use 3\.11\.4 or newer, or put"):
        sources.fetch_pets(tmp_path)


@safely_unpacking
@pytest.mark.parametrize("target", ["../outside.txt", "/{root}/outside.txt"])
def test_a_malicious_archive_stays_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    torchvision = pytest.importorskip("torchvision.datasets")
    archive = tmp_path / "images.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo(target.format(root=str(tmp_path)))
        member.size = 4
        tar.addfile(member, io.BytesIO(b"evil"))

    class Fake:
        def __init__(self, root: Path, **_: Any) -> None:
            from torchvision.datasets.utils import extract_archive

            extract_archive(str(archive), str(Path(root) / "inner"))

    monkeypatch.setattr(torchvision, "OxfordIIITPet", Fake)
    before = tarfile.TarFile.extraction_filter
    if target.startswith("/"):  # the filter strips the leading slash: it lands inside
        sources.fetch_pets(tmp_path / "data")
    else:
        with pytest.raises(InputError, match="not safe to unpack"):
            sources.fetch_pets(tmp_path / "data")
    assert not (tmp_path / "outside.txt").exists() and not (tmp_path / "data" / "outside.txt").exists()
    assert tarfile.TarFile.extraction_filter is before


@safely_unpacking
def test_a_download_that_fails_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torchvision = pytest.importorskip("torchvision.datasets")

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr(torchvision, "OxfordIIITPet", fail)
    with pytest.raises(InputError, match=r"cannot be fetched \(File not found or corrupted\.\); try again, or put"):
        sources.fetch_pets(tmp_path)


# Disk and store


SYNTHETIC = {"source": "synthetic", "size": 24, "resize": "antialias", "seed": 0, "stream": "scenes", "count": 12}


def test_a_disk_without_room_is_said_before_packing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 20_000))
    with pytest.raises(
        InputError, match=r"packs: a pack of 12 images needs 0\.0\d MB, but only 0\.02 MB is free.*pack_store"
    ):
        pack_into_store(SYNTHETIC, tmp_path / "packs", tmp_path / "r" / "manifest.json", 1)
    assert list((tmp_path / "packs").iterdir()) == []


def test_a_disk_that_fills_while_packing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        InputError, match=r"packs: No space left on device while packing; free some space, or set pack_store"
    ):
        pack_into_store(SYNTHETIC, tmp_path / "packs", tmp_path / "r" / "manifest.json", 1)
    assert list((tmp_path / "packs").iterdir()) == []
    assert not (tmp_path / "r").exists()


def test_a_disk_that_fills_when_the_pack_is_linked_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(packing, "write_text", full)
    with pytest.raises(InputError, match=r"r: No space left on device while packing; .* run the study in a folder"):
        pack_into_store(SYNTHETIC, tmp_path / "packs", tmp_path / "r" / "manifest.json", 1)
    assert not (tmp_path / "r" / "manifest.json").exists()


def test_the_disk_blocks_of_a_pack_are_reserved(tmp_path: Path) -> None:
    arrays = packing.Arrays(tmp_path, 100, 64, ["masks"])
    about = (tmp_path / "images.npy").stat()
    assert about.st_blocks * 512 >= about.st_size > arrays["images"].nbytes


def test_a_file_system_that_cannot_reserve_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unable(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", unable)
    folder = pack_into_store(SYNTHETIC, tmp_path / "packs", tmp_path / "r" / "manifest.json", 1)
    verify_pack(folder / "manifest.json")


def test_what_killed_packers_left_is_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    here, pid = place(), int(gone.stdout)
    left = tmp_path / "packs" / f".pets-16-abc.{here}-{pid}-0.tmp"
    tags = [f"00000000{here[8:]}-{pid}-0", process_tag()]  # of another machine, of this process
    others = [*(f".pets-16-abc.{tag}.tmp" for tag in tags), f"pets.{here}-{pid}-0.tmp"]
    for folder in (left, *(tmp_path / "packs" / name for name in others)):
        folder.mkdir(parents=True)
        (folder / "images.npy").write_bytes(b"half")
    made = pack_into_store(SYNTHETIC, tmp_path / "packs", tmp_path / "r" / "manifest.json", 1)
    assert {p.name for p in (tmp_path / "packs").iterdir()} == {*others, made.name}
    assert f"{left}: left behind by a killed packing job; removed" in capsys.readouterr().out


def test_a_store_that_is_gone_is_said(tmp_path: Path) -> None:
    manifest = tmp_path / "r" / "manifest.json"
    folder = pack_into_store(SYNTHETIC, tmp_path / "packs", manifest, 1)
    shutil.rmtree(folder)
    with pytest.raises(InputError, match=rf"\.npy: .*No such file.*delete {folder} and run again"):
        open_pack(manifest)
    pack_into_store(SYNTHETIC, tmp_path / "packs", manifest, 1)
    verify_pack(manifest)


# Generated


def encoded(kind: str) -> bytes:
    out = io.BytesIO()
    picture = Image.fromarray(trimap() if kind == "MASK" else noise(12, 16))
    picture.save(out, format="PNG" if kind == "MASK" else kind)
    return out.getvalue()


ENCODED = {kind: encoded(kind) for kind in ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "MASK")}


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Bytes of a real file, cut, with bytes changed, or with a piece of another file put in."""
    data = bytearray(ENCODED[draw(st.sampled_from(sorted(ENCODED)))])
    how = draw(st.sampled_from(["truncate", "flip", "splice"]))
    place = st.integers(0, len(data) - 1)
    if how == "truncate":
        return bytes(data[: draw(place)])
    if how == "flip":
        for at in draw(st.lists(place, min_size=1, max_size=6)):
            data[at] ^= draw(st.integers(1, 255))
        return bytes(data)
    other = ENCODED[draw(st.sampled_from(sorted(ENCODED)))]
    start, at = draw(st.integers(0, len(other) - 1)), draw(place)
    data[at : at + draw(st.integers(0, 40))] = other[start : start + draw(st.integers(0, 80))]
    return bytes(data)


@pytest.mark.filterwarnings("ignore")  # Pillow warns about much that is then refused
@settings(GENERATED, max_examples=250)
@given(data=st.one_of(st.binary(max_size=200), damaged()), resize=st.sampled_from(["antialias", "nearest"]))
def test_any_file_is_an_image_or_is_refused(tmp_path: Path, data: bytes, resize: str) -> None:
    path = tmp_path / "any.png"
    path.write_bytes(data)
    try:
        picture = decode(path, 16, resize)
    except BadFileError as error:
        assert error.reason and " at 0x" not in error.reason
        return
    assert picture.pixels.shape == (3, 16, 16) and picture.pixels.dtype == np.uint8
    with Image.open(path) as image:  # Pillow's own reading of the same bytes
        assert sorted(picture.shape) == sorted(image.size)
        if image.mode == "RGB" and image.format != "JPEG" and "transparency" not in image.info:
            method = {"antialias": Image.Resampling.BILINEAR, "nearest": Image.Resampling.NEAREST}[resize]
            upright = ImageOps.exif_transpose(image)
            assert np.array_equal(picture.pixels, np.asarray(upright.resize((16, 16), method)).transpose(2, 0, 1))


@pytest.mark.filterwarnings("ignore")
@settings(GENERATED, max_examples=150)
@given(data=st.one_of(st.binary(max_size=200), damaged()))
def test_any_file_is_a_mask_or_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "any.png"
    path.write_bytes(data)
    try:
        mask = decode_mask(path, 16, VALUES)
    except BadFileError as error:
        assert error.reason
        return
    with Image.open(path) as image:
        raw = np.asarray(image)
    assert set(np.unique(raw).tolist()) <= set(VALUES)
    nearest = np.asarray(Image.fromarray(raw.astype(np.uint8)).resize((16, 16), Image.Resampling.NEAREST))
    assert np.array_equal(mask.pixels, nearest - 1)
    assert (mask.only is not None) == (len(np.unique(raw)) == 1)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of keys to every value within a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(found for key, item in inner for found in places(item, (*at, key)))]


def edited(value: Any, at: tuple[Any, ...], how: str, new: Any) -> Any:
    """A copy with the value at a path removed, replaced or moved to another key."""
    if not at:
        return new
    value = copy.deepcopy(value)
    holder = value
    for key in at[:-1]:
        holder = holder[key]
    old = holder.pop(at[-1])
    if how == "replace":
        if isinstance(holder, list):
            holder.insert(at[-1], new)
        else:
            holder[at[-1]] = new
    elif how == "rename" and isinstance(holder, dict):
        holder[f"{at[-1]}_"] = old
    return value


HOW = st.sampled_from(["remove", "replace", "rename"])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """A pack to damage copies of."""
    folder = tmp_path_factory.mktemp("small")
    build_pack({**SYNTHETIC, "stream": "segmentation"}, folder, threads=1)
    return open_pack(folder / "manifest.json")


def same_or_refused(manifest: Path, original: Pack) -> None:
    """Whatever was done to a pack, its rows are those of the original, or an InputError says why not."""
    try:
        pack = open_pack(manifest)
        rows = {name: pack.rows(name, np.arange(len(pack))) for name in ("images", "masks", "labels")}
    except InputError as error:
        assert str(error)
        return
    for name, found in rows.items():
        assert np.array_equal(found, getattr(original, name))
    for name in ("shapes", "parts", "file_sums", "phash"):
        assert np.array_equal(getattr(pack, name), getattr(original, name))
    assert pack.sha256 == original.sha256


@GENERATED
@given(data=st.data(), how=HOW, new=JSON, resealed=st.booleans())
def test_any_edit_of_a_manifest_is_refused(
    small: Pack, tmp_path: Path, data: st.DataObject, how: str, new: Any, resealed: bool
) -> None:
    """Even if its author has recomputed the manifest's own hash."""
    folder = tmp_path / "pack"
    shutil.copytree(small.folder, folder, dirs_exist_ok=True)
    manifest = json.loads((small.folder / "manifest.json").read_text())
    changed = edited(manifest, data.draw(st.sampled_from(places(manifest))), how, new)
    if resealed and isinstance(changed, dict):
        with contextlib.suppress(ValueError):  # NaN
            changed["sha256"] = manifest_sha256(changed)
    if changed == manifest:
        return
    (folder / "manifest.json").write_text(json.dumps(changed))
    try:
        pack = open_pack(folder / "manifest.json")
        found = pack.rows("images", np.arange(len(pack)))
    except InputError as error:
        assert "manifest" in str(error) or "run again" in str(error)
        return
    # A sealed manifest may say other things about the same arrays, under another hash.
    assert resealed and pack.sha256 != small.sha256
    assert np.array_equal(found, small.images)


@GENERATED
@given(
    data=st.data(),
    name=st.sampled_from(["images", "masks", "labels", "shapes", "images.sums", "masks.sums", "images.phash"]),
    how=st.sampled_from(["flip", "truncate", "append", "replace"]),
)
def test_any_edit_of_an_array_is_refused(small: Pack, tmp_path: Path, data: st.DataObject, name: str, how: str) -> None:
    folder = tmp_path / "pack"
    shutil.copytree(small.folder, folder, dirs_exist_ok=True)
    path = folder / f"{name}.npy"
    raw = bytearray(path.read_bytes())
    if how == "flip":
        head = data.draw(st.booleans())  # the header is short, and should be hit too
        at = data.draw(st.integers(0, 127 if head else len(raw) - 1))
        raw[at] ^= data.draw(st.integers(1, 255))
    elif how == "truncate":
        del raw[data.draw(st.integers(0, len(raw) - 1)) :]
    elif how == "append":
        raw += data.draw(st.binary(min_size=1, max_size=20))
    else:
        raw = bytearray(data.draw(st.binary(max_size=300)))
    path.write_bytes(raw)
    same_or_refused(folder / "manifest.json", small)


def write_indices(path: Path, lists: dict[str, Any]) -> None:
    np.savez(path, **lists)


@pytest.fixture(scope="module")
def cut(small: Pack, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("cut")
    split = finetune_split(small, 5, 0, 42, "shared", "fixed", 4)
    write_split(folder / "s.json", folder / "s.npz", split, {"spec": {}, "pack_sha256": small.sha256})
    return folder / "s.json", folder / "s.npz", split


@GENERATED
@given(data=st.data(), how=HOW, new=JSON)
def test_any_edit_of_a_split_record_is_refused(
    small: Pack, cut: tuple[Path, Path, dict[str, np.ndarray]], tmp_path: Path, data: st.DataObject, how: str, new: Any
) -> None:
    record, indices, split = cut
    value = json.loads(record.read_text())
    changed = tmp_path / "s.json"
    changed.write_text(json.dumps(edited(value, data.draw(st.sampled_from(places(value))), how, new)))
    try:
        found = read_split(changed, indices, small)
    except InputError as error:
        assert "s.json" in str(error) or "s.npz" in str(error)
        return
    assert found.keys() == split.keys() and all(np.array_equal(found[k], split[k]) for k in split)


LISTS = st.lists(st.integers(-3, 15), max_size=8)


@GENERATED
@given(train=LISTS, test=LISTS, dtype=st.sampled_from(["i8", "i4", "u8", "f8", "?"]), sealed=st.booleans())
def test_any_index_lists_are_a_split_or_refused(
    small: Pack,
    cut: tuple[Path, Path, dict[str, np.ndarray]],
    tmp_path: Path,
    train: list[int],
    test: list[int],
    dtype: str,
    sealed: bool,
) -> None:
    """Unsealed lists differ from the record; sealed ones have a record of their own, and must still make sense."""
    record, _, split = cut
    with np.errstate(all="ignore"):
        lists = {"train": np.array(train, "i8").astype(dtype), "test": np.array(test, "i8").astype(dtype)}
    write_indices(tmp_path / "s.npz", lists)
    value = json.loads(record.read_text())
    if sealed:
        for name, indices in lists.items():
            value["parts"][name]["sha256"] = array_sha256(indices)
    write_sealed(tmp_path / "s.json", value)
    sound = dtype == "i8" and len({*train, *test}) == len(train + test) and all(0 <= i < 12 for i in train + test)
    same = all(np.array_equal(lists[k], split[k]) for k in split) and dtype == "i8"
    if (sealed and sound) or same:
        found = read_split(tmp_path / "s.json", tmp_path / "s.npz", small)
        assert all(found[k].tolist() == lists[k].tolist() for k in lists)
    else:
        with pytest.raises(InputError, match=r"s\.npz"):
            read_split(tmp_path / "s.json", tmp_path / "s.npz", small)


@GENERATED
@given(data=st.data())
def test_any_damage_of_an_index_file_is_refused(
    small: Pack, cut: tuple[Path, Path, dict[str, np.ndarray]], tmp_path: Path, data: st.DataObject
) -> None:
    record, indices, split = cut
    raw = bytearray(indices.read_bytes())
    if data.draw(st.booleans()):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        del raw[data.draw(st.integers(0, len(raw) - 1)) :]
    (tmp_path / "s.npz").write_bytes(raw)
    try:
        found = read_split(record, tmp_path / "s.npz", small)
    except InputError as error:
        assert "s.npz" in str(error)
        return
    assert all(np.array_equal(found[k], split[k]) for k in split)
