"""What one file does not say is decided from its folder: once, and the same in packs, `viny init` and `viny check`."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from viny.data.conventions import Conventions, Heads, _encoding, decide, read_head, said
from viny.data.decoding import WHITES, BadFileError, decode, decode_mask, mask_values
from viny.data.masks import mask_coding
from viny.data.pack import open_pack
from viny.data.packing import build_pack, describe
from viny.runtime.errors import InputError
from viny.study.config import resolve
from viny.study.inventory import folder_report
from viny.tools.newstudy.look import Inspection, Request, inspect

BACK = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpose that makes what an orientation undoes
BINARY = {0: 0, 1: 1}
RED, BLACK, BLUE = (255, 0, 0), (0, 0, 0), (0, 0, 255)
GENERATED = settings(
    max_examples=25, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder on a machine without a GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    return tmp_path


def empty(*folders: str) -> None:
    for folder in folders:
        for path in Path(folder).iterdir():
            path.unlink()


def files(folder: str) -> list[Path]:
    return sorted(Path(folder).iterdir())


def read(values: Sequence[int] = (0, 1), colours: bool = False, **more: Any) -> Conventions:
    return decide(Heads.read(files("images"), files("masks")), values, colours, **more)


def exif(turn: int) -> Image.Exif:
    out = Image.Exif()
    out[0x0112] = turn
    return out


def scene(height: int = 24, width: int = 36) -> np.ndarray:
    """A mask of 0 and 1, upright, that no turn leaves as it is."""
    mask = np.zeros((height, width), np.uint8)
    mask[2 : height // 3, 2 : width // 2] = 1
    return mask


def as_stored(upright: Image.Image, turn: int) -> Image.Image:
    """The pixels that an orientation makes upright."""
    return upright if turn == 1 else upright.transpose(Image.Transpose(BACK[turn]))


def photograph(path: Path, turn: int, mask: np.ndarray) -> None:
    """A photograph stored turned: bright where the mask, upright, is 1."""
    pixels = np.repeat((mask * 200 + 20)[..., None], 3, axis=2)
    as_stored(Image.fromarray(pixels), turn).save(path, exif=exif(turn), quality=95)


def study(**segmentation: Any) -> dict[str, Any]:
    return resolve(
        {
            "study": "own",
            "model": {"image_size": 24, "patch_size": 6},
            "grid": {"pretrain_sizes": [0], "intermediates": ["none"], "finetune_sizes": [4], "seeds": [0]},
            "segmentation": {
                **{"source": "folder", "images": "images", "masks": "masks", "classes": 2, "test_size": 2},
                **segmentation,
            },
        }
    )


def packed(tmp_path: Path, number: int = 0, threads: int = 2, **segmentation: Any) -> Any:
    from viny.study.specs import pack_spec

    folder = tmp_path / f"pack{number}"
    folder.mkdir()
    build_pack(pack_spec(study(**segmentation), "segmentation"), folder, threads)
    return open_pack(folder / "manifest.json")


def looked(**more: Any) -> Inspection:
    return inspect(Request("own", Path("images"), Path("masks"), **more))


def tiff(pixels: np.ndarray, photometric: int = 1, **tags: int) -> bytes:
    """An uncompressed TIFF of one page, [H, W] or [H, W, C], with any tags, written by hand: t339=2 is tag 339."""
    height, width, count = (*pixels.shape, 1)[:3]
    data = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    entries = {256: (4, [width]), 257: (4, [height]), 258: (3, [8 * pixels.itemsize] * count), 259: (3, [1])}
    entries |= {262: (3, [photometric]), 273: (4, [0]), 277: (3, [count]), 278: (4, [height]), 279: (4, [len(data)])}
    entries |= {int(tag[1:]): (3, [value]) for tag, value in tags.items()}
    behind = 8 + 2 + 12 * len(entries) + 4
    extra = b"".join(struct.pack(f"<{len(v)}H", *v) for _, v in entries.values() if len(v) > 2)
    entries[273] = (4, [behind + len(extra)])
    out, at = struct.pack("<2sHIH", b"II", 42, 8, len(entries)), behind
    for tag, (kind, values) in sorted(entries.items()):
        out += struct.pack("<HHI", tag, kind, len(values))
        if len(values) > 2:
            out, at = out + struct.pack("<I", at), at + 2 * len(values)
        else:
            out += struct.pack("<I", values[0]) if kind == 4 else struct.pack("<HH", *[*values, 0][:2])
    return out + struct.pack("<I", 0) + extra + data


def planar(channel: np.ndarray) -> bytes:
    """A TIFF of three equal channels, one after the other."""
    data = bytearray(tiff(np.dstack([channel] * 3), 2, t284=2))
    count = channel.size * channel.itemsize
    starts, lengths = len(data), len(data) + 12
    whole = int.from_bytes(data[data.index(struct.pack("<HHI", 273, 4, 1)) + 8 :][:4], "little")
    for tag, at in ((273, starts), (279, lengths)):
        entry = data.index(struct.pack("<HHI", tag, 4, 1))
        data[entry : entry + 12] = struct.pack("<HHII", tag, 4, 3, at)
    data += struct.pack("<6I", *(whole + i * count for i in range(3)), *[count] * 3)
    data[whole : whole + 3 * count] = channel.tobytes() * 3
    return bytes(data)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(pixels: np.ndarray, kind: int, before: bytes = b"") -> bytes:
    """A PNG of a colour type, written by hand, with chunks before its pixels, [H, W] or [H, W, C]."""
    height, width = pixels.shape[:2]
    head = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(pixels.dtype.newbyteorder(">")).tobytes() for row in pixels)
    body = chunk(b"IHDR", head) + before + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def deep_png(pixels: np.ndarray, before: bytes = b"") -> bytes:
    """A PNG with 16 bits a channel, of [H, W] greys or [H, W, C], which Pillow cannot write."""
    count = (*pixels.shape, 1)[2]
    return png(pixels.astype(np.uint16), {1: 0, 2: 4, 3: 2, 4: 6}[count], before)


# EXIF orientation


@GENERATED
@given(
    turns=st.lists(st.integers(1, 8), min_size=1, max_size=6).filter(lambda turns: max(turns) > 4),
    stored=st.booleans(),
    threads=st.integers(1, 3),
)
def test_one_lying_photograph_proves_what_all_masks_lie_on(turns: list[int], stored: bool, threads: int) -> None:
    empty("images", "masks")
    for i, turn in enumerate(turns):
        photograph(Path(f"images/{i}.png"), turn, scene())
        as_stored(Image.fromarray(scene()), turn if stored else 1).save(f"masks/{i}.png")
    found = read(threads=threads)
    for image, mask, turn in zip(files("images"), files("masks"), found.turns, strict=True):
        classes = decode_mask(mask, 24, BINARY, turn=turn)
        picture = decode(image, 24, "nearest", classes.shape)
        assert classes.shape == (24, 36)
        assert np.array_equal(picture.pixels[0] > 120, classes.pixels == 1)
    about = found.about["turned"]
    assert about["assumed"] == 0
    assert (about["images"], about["by_size"]) == (sum(t > 1 for t in turns), sum(t > 4 for t in turns))
    assert about["lie_on"] == ("stored" if stored else "shown")
    # Neither the order of the files nor the number of threads counts.
    heads = Heads.read(files("images")[::-1], files("masks")[::-1], 1)
    assert decide(heads, BINARY) == Conventions(None, found.turns[::-1], found.about)


@pytest.mark.parametrize(("turn", "sides"), [(3, (24, 36)), (2, (24, 36)), (6, (30, 30))])
def test_where_no_size_tells_it_is_said(tmp_path: Path, turn: int, sides: tuple[int, int]) -> None:
    for i in range(10):
        photograph(Path(f"images/{i}.jpg"), turn if i < 7 else 1, scene(*sides))
        Image.fromarray(scene(*sides)).save(f"masks/{i}.png")
    (line,) = said(read().about)
    assert line.startswith("7 images are turned upright by their EXIF orientation; no size tells whether masks lie on")
    assert "that masks lie on upright images is assumed for 7 pairs" in line
    assert line in looked().notes
    assert f"segmentation: {line}" in folder_report(study())
    assert line in describe(packed(tmp_path).manifest)


def test_contradicting_sizes_are_refused_with_two_files_unless_each_size_tells(tmp_path: Path) -> None:
    for i, (turn, stored) in enumerate([(6, True), (8, False), (1, False), (6, True)]):
        photograph(Path(f"images/{i}.jpg"), turn, scene())
        as_stored(Image.fromarray(scene()), turn if stored else 1).save(f"masks/{i}.png")
    assert read().turns == [6, 1, 1, 6]
    assert "others on images as stored, each as its size says" in said(read().about)[0]
    photograph(Path("images/4.jpg"), 3, scene())
    Image.fromarray(scene()).save("masks/4.png")
    words = r"masks/0\.png: fits its image only as stored, but masks/1\.png only upright, and for others .* export"
    for ask in (read, lambda: packed(tmp_path), looked, lambda: folder_report(study())):
        with pytest.raises(InputError, match=words):
            ask()


@pytest.mark.parametrize("kind", ["png", "tif"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_a_mask_may_be_turned_by_its_own_orientation(kind: str, turn: int) -> None:
    """A tool that keeps EXIF data in the masks stores and turns both alike; TIFFs are turned by Pillow itself."""
    for i, each in enumerate((turn, 6)):
        photograph(Path(f"images/{i}.jpg"), each, scene())
        as_stored(Image.fromarray(scene()), each).save(f"masks/{i}.{kind}", exif=exif(each))
    found = read()
    for mask, by in zip(files("masks"), found.turns, strict=True):
        assert np.array_equal(decode_mask(mask, 36, BINARY, turn=by, fit="stretch").pixels, decode_upright(scene()))
    assert found.about["turned"]["masks"] == 1 + (turn > 1)


def decode_upright(mask: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(mask).resize((36, 36), Image.Resampling.NEAREST))


@pytest.mark.parametrize("turn", range(2, 9))
@pytest.mark.parametrize("kind", ["png", "tif"])
def test_the_pixels_as_stored_can_be_asked_for(kind: str, turn: int) -> None:
    """Whatever a mask's own orientation says, and whether Pillow has followed it."""
    stored = scene()
    Image.fromarray(stored).save(f"masks/m.{kind}", exif=exif(turn))
    assert read_head(Path(f"masks/m.{kind}")).shape == stored.shape
    assert read_head(Path(f"masks/m.{kind}")).turn == turn
    assert np.array_equal(decode_mask(Path(f"masks/m.{kind}"), 36, BINARY, turn=1).pixels, decode_upright(stored))
    Image.fromarray(stored).save("images/m.png", exif=exif(turn))
    upright = ImageOps.exif_transpose(Image.open("images/m.png"))
    found = decode_mask(Path(f"masks/m.{kind}"), 36, BINARY, turn=turn)
    assert found.shape == (upright.height, upright.width)
    assert np.array_equal(found.pixels, decode_upright(np.asarray(upright)))


def test_an_orientation_behind_the_pixels_of_a_png_counts() -> None:
    Image.fromarray(scene()).convert("RGB").save("images/a.png", exif=exif(6))
    data = Path("images/a.png").read_bytes()
    start = data.index(b"eXIf") - 4
    length = 12 + int.from_bytes(data[start : start + 4], "big")
    moved = data[:start] + data[start + length : -12] + data[start : start + length] + data[-12:]
    Path("images/a.png").write_bytes(moved)
    assert moved.index(b"eXIf") > moved.index(b"IDAT")
    assert read_head(Path("images/a.png")).turn == 6
    assert decode(Path("images/a.png"), 16, "antialias").shape == (36, 24)


# 16 bits


def deep(path: str, pixels: np.ndarray) -> None:
    Path(path).write_bytes(deep_png(pixels.astype(np.uint16)) if path.endswith("png") else tiff(pixels.astype("<u2")))


@GENERATED
@given(greatest=st.lists(st.integers(0, 65535), min_size=1, max_size=4), kind=st.sampled_from(["png", "tif"]))
def test_all_16_bit_images_of_a_folder_have_one_scale(greatest: list[int], kind: str) -> None:
    empty("images")
    for i, value in enumerate(greatest):
        deep(f"images/{i}.{kind}", np.linspace(0, value, 64).round().reshape(8, 8))
    found = decide(Heads.read(files("images")))
    assert found.white == min(white for white in WHITES if white >= max(greatest))
    about = found.about["sixteen_bit"]
    assert (about["least"], about["greatest"], about["images"]) == (0, max(greatest), len(greatest))
    for path, value in zip(files("images"), greatest, strict=True):
        pixels = decode(path, 8, "nearest", white=found.white).pixels
        assert pixels.max() == (value * 255 + found.white // 2) // found.white
    assert decide(Heads.read(files("images")[::-1]), threads=1) == found


@pytest.mark.parametrize(("count", "photometric"), [(2, 1), (3, 2), (4, 2)])
def test_16_bit_colours_keep_their_low_bytes(count: int, photometric: int) -> None:
    """Pillow reads the high byte alone: 10 bits would become 4 grey levels."""
    pixels = np.random.default_rng(0).integers(0, 1024, (9, 7, count)).astype(np.uint16)
    pixels[0, 0, 0] = 1023
    if count in (2, 4):
        pixels[..., -1] = 65535
    deep("images/a.png", pixels)
    if count > 2:
        Path("images/b.tif").write_bytes(tiff(pixels, photometric, **({"t338": 2} if count == 4 else {})))
    found = decide(Heads.read(files("images")))
    assert found.about["sixteen_bit"]["white"] == found.white == 1023
    levels = pixels[..., : count - (count in (2, 4))].astype(int)
    wanted = np.broadcast_to((levels * 255 + 511) // 1023, (9, 7, 3)).astype(np.uint8)
    square = np.asarray(Image.fromarray(wanted).resize((7, 7), Image.Resampling.NEAREST)).transpose(2, 0, 1)
    for path in files("images"):
        assert np.array_equal(decode(path, 7, "nearest", white=found.white).pixels, square), path


def test_alpha_of_16_bits_may_use_fewer_too() -> None:
    pixels = np.full((8, 8, 4), 1023, np.uint16)
    pixels[..., :3] = 0
    pixels[:4, :, 3] = 0
    deep("images/a.png", pixels)
    shown = decode(Path("images/a.png"), 8, "nearest", white=1023).pixels
    assert (shown[:, :4] == 255).all() and (shown[:, 4:] == 0).all()


@pytest.mark.parametrize("count", [1, 3])
def test_a_transparent_colour_of_16_bits_is_laid_on_white(count: int) -> None:
    pixels = np.full((8, 8, count) if count > 1 else (8, 8), 1000, np.uint16)
    pixels[:4] = 7
    key = chunk(b"tRNS", struct.pack(f">{count}H", *[7] * count))
    Path("images/a.png").write_bytes(deep_png(pixels, key))
    shown = decode(Path("images/a.png"), 8, "nearest", white=1023).pixels
    assert (shown[:, :4] == 255).all() and (shown[:, 4:] == 249).all()


def test_a_tiff_that_states_12_bits_has_them() -> None:
    data = bytearray(tiff(np.zeros((8, 8), np.uint16), t339=1))
    at = data.index(struct.pack("<HHI", 258, 3, 1)) + 8
    data[at : at + 2] = struct.pack("<H", 12)
    Path("images/a.tif").write_bytes(bytes(data))
    assert decide(Heads.read(files("images"))).white == 4095


def test_16_bit_images_are_said_everywhere_and_packed_bright(tmp_path: Path) -> None:
    for i in range(8):
        deep(f"images/{i}.{('png', 'tif')[i % 2]}", scene().astype(int) * (100 * i + 200))
        Image.fromarray(scene()).save(f"masks/{i}.png")
    line = (
        "8 images have 16 bits per sample, with values from 0 to 900; 1,023 is taken to be white, so that they become "
        "0 to 224 of 255"
    )
    assert line in looked().notes
    assert f"segmentation: {line}" in folder_report(study())
    pack = packed(tmp_path)
    assert line in describe(pack.manifest)
    brightest = pack.images.reshape(8, -1).max(1).tolist()
    assert brightest == [round(255 * (100 * i + 200) / 1023) for i in range(8)]
    assert packed(tmp_path, 1, threads=1).sha256 == pack.sha256
    sampled = decide(Heads.read(files("images")), most=3).about
    assert "to 700 in the 3 looked at" in said(sampled)[0]
    sampled = decide(Heads.read(files("images")), most=3, also=files("images")[-1:]).about
    assert "to 900 in the 4 looked at" in said(sampled)[0]


@pytest.mark.parametrize("each_one", [False, True])
def test_a_hot_pixel_that_makes_all_images_dark_is_said(each_one: bool) -> None:
    for i in range(8):
        pixels = scene().astype(int) * 3000 + 500
        pixels[0, 0] = 65535 if each_one or i == 5 else 0
        deep(f"images/{i}.tif", pixels)
    line = (
        "16-bit images become dark: in half of them 99 % of the samples become at most 14 of 255; if hot pixels or a "
        "few other images set the scale, clip their values or remove them"
    )
    assert line in said(decide(Heads.read(files("images"))).about)
    for i in range(8):
        deep(f"images/{i}.tif", scene().astype(int) * 3000 + 500)
    assert len(said(decide(Heads.read(files("images"))).about)) == 1


def test_scales_that_differ_within_a_study_are_said() -> None:
    Path("more").mkdir()
    for i in range(8):
        deep(f"images/{i}.png", scene().astype(int) * 1000)
        deep(f"more/{i}.png", scene().astype(int) * 3000)
        Image.fromarray(scene()).save(f"masks/{i}.png")
    notes = looked(unlabelled=Path("more")).notes
    assert any("unlabelled, of 8 looked at: 8 images have 16 bits" in note and "4,095" in note for note in notes)
    config = study()
    config["pretrain"] |= {"source": "folder", "path": "more"}
    config["grid"]["pretrain_sizes"] = [0, 8]
    assert (
        "white differs between 16-bit images of one kind (pretrain 4,095, segmentation 1,023): the same value has "
        "another brightness there"
    ) in folder_report(config)


@pytest.mark.parametrize(
    ("make", "white", "reason"),
    [
        (
            lambda: deep_png(scene().astype(np.uint16) * 4000),
            None,
            r"reach 4,000 of 65,535, so their range is not known",
        ),
        (lambda: deep_png(scene().astype(np.uint16) * 4000), 1023, r"reach 4,000, where 1,023 is white in the images"),
        (lambda: tiff(scene().astype("<i2"), t339=2), None, r"signed 16 bits per sample, in a range"),
        (lambda: tiff(scene().astype("<f4"), t339=3), None, r"32 bits per sample, in a range"),
        (lambda: tiff(scene().astype("i1") - 1, t339=2), None, r"signed 8-bit samples below 0"),
        (lambda: tiff(np.dstack([scene()] * 4), 2), None, r"a fourth channel that it does not call transparency"),
        (
            lambda: tiff(np.dstack([scene().astype("<u2") * 4000] * 4), 2),
            4095,
            r"a fourth channel that it does not call transparency",
        ),
        (lambda: planar(scene().astype("<u2") * 65535), None, r"lie one after the other \(PlanarConfiguration 2\)"),
        (lambda: tiff(scene(), 0, t284=2), None, r"lie one after the other \(PlanarConfiguration 2\)"),
    ],
)
def test_a_range_that_is_not_known_is_refused(make: Callable[[], bytes], white: int | None, reason: str) -> None:
    Path("images/a.tif").write_bytes(make())
    with pytest.raises(BadFileError, match=reason):
        decode(Path("images/a.tif"), 16, "antialias", white=white)


def test_an_image_that_is_wholly_transparent_is_refused() -> None:
    Image.fromarray(np.dstack([scene() * 100] * 3 + [scene() * 0])).save("images/a.png")
    with pytest.raises(BadFileError, match="every pixel is transparent; remove its alpha channel"):
        decode(Path("images/a.png"), 16, "antialias")


def test_dark_images_are_said() -> None:
    for i in range(8):
        Image.fromarray(np.dstack([scene()] * 3)).save(f"images/{i}.png")
        Image.fromarray(scene()).save(f"masks/{i}.png")
    assert "images are dark: their brightest sample is 1 of 255; check the range" in looked().notes


def test_channels_one_after_the_other_are_read_from_8_bits_and_refused_in_masks_of_more() -> None:
    Path("masks/a.tif").write_bytes(planar(scene()))
    assert np.array_equal(decode_mask(Path("masks/a.tif"), 36, BINARY).pixels, decode_upright(scene()))
    Path("masks/a.tif").write_bytes(planar(scene().astype("<u2") * 257))
    with pytest.raises(BadFileError, match="PlanarConfiguration 2"):
        decode_mask(Path("masks/a.tif"), 36, BINARY)


# White is zero


@pytest.mark.parametrize("kind", ["<u1", "<u2"])
def test_white_is_zero_is_seen_as_viewers_show_it(kind: str) -> None:
    top = np.iinfo(kind).max
    ramp = np.linspace(0, top, 64).reshape(8, 8).astype(kind)
    Path("images/a.tif").write_bytes(tiff(ramp, photometric=0))
    Path("images/b.tif").write_bytes(tiff(top - ramp, photometric=1))
    found = decide(Heads.read(files("images")))
    over, plain = (decode(path, 8, "nearest", white=found.white).pixels.astype(int) for path in files("images"))
    assert np.abs(over - plain).max() <= 1 and over[0, 0, 0] == 255


def test_masks_whose_white_is_zero_are_said_or_refused_if_others_are_not() -> None:
    for i in range(8):
        Image.fromarray(np.dstack([scene() * 200] * 3)).save(f"images/{i}.png")
        Path(f"masks/{i}.tif").write_bytes(tiff(scene() * 255, photometric=0))
    found = looked()
    assert "8 masks are TIFFs whose 0 means white; their values are read as they are shown" in found.notes
    assert found.looked.shares[0] < found.looked.shares[1]  # 0 is what they show black: the object
    Path("masks/7.tif").write_bytes(tiff(scene() * 255, photometric=1))
    with pytest.raises(InputError, match=r"masks/0\.tif: a TIFF whose 0 means white, while .* in masks/7\.tif"):
        looked()


def test_values_of_16_bits_are_turned_over_too() -> None:
    Path("masks/a.tif").write_bytes(tiff(65535 - scene().astype(np.uint16), photometric=0))
    assert np.array_equal(decode_mask(Path("masks/a.tif"), 36, BINARY).pixels, decode_upright(scene()))


def test_one_bit_masks_are_what_they_show_whatever_their_encoder_says() -> None:
    Image.fromarray(scene() > 0).save("masks/0.tif", compression="group4")
    Image.fromarray(scene() > 0).save("masks/1.tif")
    Image.fromarray(scene() * 255).save("masks/2.png")
    for i in range(3):
        Image.fromarray(np.dstack([scene() * 200] * 3)).save(f"images/{i}.png")
    read((0, 255))
    for path in files("masks"):
        assert np.array_equal(decode_mask(path, 36, {0: 0, 255: 1}).pixels, decode_upright(scene())), path


# Palettes


def palette_mask(path: str, mask: np.ndarray, colours: Sequence[tuple[int, int, int]], **more: Any) -> None:
    image = Image.fromarray(mask)
    image.putpalette([value for colour in colours for value in colour])
    image.save(path, **more)


@GENERATED
@given(orders=st.lists(st.permutations(range(3)), min_size=2, max_size=5), kind=st.sampled_from(["png", "bmp", "tif"]))
def test_palettes_in_any_order_are_the_same_colours(orders: list[list[int]], kind: str) -> None:
    """By colour every file means the same; by index it does only if all orders agree."""
    empty("images", "masks")
    colours = [BLACK, RED, BLUE]
    truth = scene()
    truth[-4:] = 2
    for i, order in enumerate(orders):
        Image.fromarray(np.dstack([truth * 100] * 3)).save(f"images/{i}.png")
        place = np.argsort(order)  # where each colour is in this palette
        palette_mask(f"masks/{i}.{kind}", place.astype(np.uint8)[truth], [colours[at] for at in order])
    coding = mask_coding({"#000000": "a", "#ff0000": "b", "#0000ff": "c"}, [])
    values = {int(value): index for value, index in coding["mask_values"].items()}
    meant = {"#000000": 0, "#ff0000": 1, "#0000ff": 2}
    of_class = [coding["mask_classes"].index("abc"[index]) for index in meant.values()]
    read(values, colours=True)
    for path in files("masks"):
        found = decode_mask(path, 36, values, colours=True).pixels
        assert np.array_equal(found, decode_upright(np.array(of_class, np.uint8)[truth]))
    if len(set(map(tuple, orders))) == 1:
        assert read(range(3)).about["palettes"] == {"masks": len(orders), "without": 0, "transparent": 0}
    else:
        with pytest.raises(InputError, match=r"masks/0\..*: its palette's colour \d is #.*, but #.* in masks/"):
            read(range(3))


@pytest.mark.parametrize("kind", ["png", "bmp", "tif", "gif"])
def test_a_palette_is_read_from_a_header_in_any_format(kind: str) -> None:
    palette_mask(f"masks/a.{kind}", scene(), [(1, 2, 3), (40, 50, 60)])
    assert read_head(Path(f"masks/a.{kind}")).palette[:6] == bytes([1, 2, 3, 40, 50, 60])


def clashing(count: int = 8) -> None:
    for i in range(count):
        Image.fromarray(np.dstack([scene() * 200] * 3)).save(f"images/{i}.png")
        palette_mask(f"masks/{i}.png", scene() if i % 2 else 1 - scene(), [BLACK, RED] if i % 2 else [RED, BLACK])


def test_init_proposes_colours_where_palettes_differ(tmp_path: Path) -> None:
    clashing()
    found = looked()
    assert found.coding.classes == {"#000000": "background", "#ff0000": "object"}
    assert "palettes differ from mask to mask (0.png, 1.png), so colours count, not indices" in found.notes
    pack = packed(tmp_path, classes={"#000000": "background", "#ff0000": "object"})
    assert (pack.masks == pack.masks[0]).all()
    for ask in (lambda: packed(tmp_path, 1), lambda: folder_report(study()), lambda: looked(classes={0: "a", 1: "b"})):
        with pytest.raises(InputError, match="an index is not one class in all masks; name classes by their colours"):
            ask()


def test_classes_that_each_file_numbers_anew_are_noticed() -> None:
    """As a quantiser does: red is 1 where there is no blue, and so is blue where there is no red."""
    palette_mask("masks/0.png", scene(), [BLACK, RED])
    palette_mask("masks/1.png", scene(), [BLACK, BLUE])
    with pytest.raises(InputError, match=r"masks/0\.png: its palette's colour 1 is #ff0000, but #0000ff in masks/1"):
        read()


def test_what_no_pixel_has_says_nothing_about_a_palette() -> None:
    palette_mask("masks/0.png", scene(), [BLACK, RED, BLUE])
    palette_mask("masks/1.png", scene(), [BLACK, RED])  # cut off after what is used
    palette_mask("masks/2.png", scene(), [BLACK, RED, *[BLACK] * 254])
    palette_mask("masks/3.png", scene() * 2, [BLACK, RED, BLUE])
    found = read(range(3))
    assert set(found.about) == {"palettes"}
    assert said(found.about) == ["4 masks have a palette; its indices are their values"]


def test_grey_palettes_beside_grey_masks() -> None:
    Image.fromarray(scene()).save("masks/0.png")
    palette_mask("masks/1.png", scene(), [BLACK, RED])
    assert "1 masks have a palette; its indices are their values; 1 have none" in said(read().about)[0]
    palette_mask("masks/1.png", 1 - scene(), [(255, 255, 255), BLACK])
    with pytest.raises(InputError, match=r"masks/1\.png: a palette puts its grey levels in another order than masks/0"):
        read()


def test_a_pixel_beyond_its_palette_is_refused() -> None:
    Path("masks/a.png").write_bytes(png(scene() * 200, 3, chunk(b"PLTE", bytes([*BLACK, *RED]))))
    assert mask_values(Path("masks/a.png"), False).tolist() == [0, 200]
    with pytest.raises(BadFileError, match="has pixels of colour 200 of a palette of 2; export it again"):
        mask_values(Path("masks/a.png"), True)


def test_greys_of_few_bits_are_said() -> None:
    head = struct.pack(">IIBBBBB", 8, 4, 2, 0, 0, 0, 0)
    rows = zlib.compress(bytes([0, 0b00011011, 0b00011011]) * 4)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    Path("masks/a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    assert mask_values(Path("masks/a.png"), False).tolist() == [0, 85, 170, 255]
    found = decide(Heads.read([], files("masks")), (0, 85, 170, 255))
    assert said(found.about) == [
        "1 masks have 2 or 4 bits per grey level; their values are read as they are shown, stretched to 0 to 255"
    ]


def few_bits(mask: np.ndarray, bits: int) -> bytes:
    """A PNG of grey levels of 2 or 4 bits."""
    head = struct.pack(">IIBBBBB", mask.shape[1], mask.shape[0], bits, 0, 0, 0, 0)
    parts = np.stack([mask[:, i :: 8 // bits] << (8 - bits * (i + 1)) for i in range(8 // bits)]).sum(0)
    rows = b"".join(b"\0" + row.astype(np.uint8).tobytes() for row in parts)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


GREYS = [(0, 0, 0), (128, 128, 128), (255, 255, 255)]
ENCODERS: dict[str, Callable[[str, np.ndarray], Any]] = {
    "indices": lambda path, mask: Image.fromarray(mask).save(path),
    "levels": lambda path, mask: Image.fromarray(np.array([0, 128, 255], np.uint8)[mask]).save(path),
    "palette": lambda path, mask: palette_mask(path, mask, GREYS),
    "2 bits": lambda path, mask: Path(path).write_bytes(few_bits(mask, 2)),
    "4 bits": lambda path, mask: Path(path).write_bytes(few_bits(mask, 4)),
    "16 bits": lambda path, mask: Image.fromarray(mask.astype(np.uint16)).save(path),
    "16 bits wide": lambda path, mask: Image.fromarray(mask.astype(np.uint16) * 257).save(path),
    "16 bits colours": lambda path, mask: Path(path).write_bytes(deep_png(np.dstack([mask.astype("<u2") * 257] * 3))),
}


def both_ways(first: str, second: str) -> np.ndarray:
    """Eight masks, of each encoding in turn."""
    truth = scene()
    truth[-4:] = 2
    for i in range(8):
        Image.fromarray(np.dstack([truth * 100] * 3)).save(f"images/{i}.png")
        ENCODERS[second if i % 2 else first](f"masks/{i}.png", truth)
    return truth


@pytest.mark.parametrize(
    ("first", "second", "rounds"),
    [
        ("palette", "levels", 1),
        ("indices", "2 bits", 1),
        ("4 bits", "indices", 1),
        ("2 bits", "4 bits", 2),  # each has its remedy
        ("indices", "16 bits wide", 1),
    ],
)
def test_one_mask_in_two_encodings_is_refused_with_a_remedy_that_works(first: str, second: str, rounds: int) -> None:
    both_ways(first, second)
    for _ in range(rounds):
        with pytest.raises(InputError, match=r"masks/0\.png: a mask of .* in masks/1\.png, of .* save all") as refused:
            looked()
        values = {value for path in files("masks") for value in mask_values(path, False).tolist()}
        with pytest.raises(InputError, match="in one encoding"):
            folder_report(study(classes={value: f"c{value}" for value in values}))
        of, remedy = str(refused.value).split("those of ")[1].split(" with ")
        for path in (path for path in files("masks") if _encoding(read_head(path))[0] == of):
            exec(remedy, {"Image": Image, "np": np, "old": path, "new": Path("new.png")})
            Path("new.png").rename(path)
    values = {value: index for index, value in enumerate(looked().coding.classes)}
    assert len(values) == 3
    shown = [decode_mask(path, 36, values).pixels for path in files("masks")]
    assert all(np.array_equal(shown[0], one) for one in shown)


@pytest.mark.parametrize(("first", "second"), [("indices", "16 bits"), ("indices", "16 bits colours")])
def test_one_value_in_two_encodings_is_one_class(first: str, second: str) -> None:
    both_ways(first, second)
    assert list(looked().coding.classes) == [0, 1, 2]


def test_two_values_that_the_study_gives_one_name_are_one_class() -> None:
    both_ways("indices", "2 bits")
    named = {0: "a", 1: "b", 85: "b", 2: "c", 170: "c"}
    assert looked(classes=named).coding.names == ["a", "b", "c"]


def test_a_set_bit_is_white_beside_greys_that_hold_white(tmp_path: Path) -> None:
    truth = both_ways("levels", "levels")
    Image.fromarray(truth == 2).save("masks/3.png")
    found = looked()
    assert list(found.coding.classes) == [0, 128, 255] and found.coding.ignore == []
    assert found.looked.masks_with.tolist() == [8, 7, 8]
    pack = packed(tmp_path, classes=found.coding.classes)
    assert ((pack.masks[3] == 2) == (pack.masks[0] == 2)).all()


# Transparency


def layered(path: str, colours: np.ndarray, alpha: np.ndarray) -> None:
    Image.fromarray(np.dstack([colours, alpha])).save(path)


def red() -> np.ndarray:
    return np.dstack([scene() * 255, scene() * 0, scene() * 0])


@pytest.mark.parametrize("elsewhere", [False, True])
def test_what_was_erased_is_not_taken_for_the_object(tmp_path: Path, elsewhere: bool) -> None:
    """Transparent pixels over a colour that opaque ones show, in the same mask or in another."""
    alpha = np.full_like(scene(), 255)
    for i in range(8):
        Image.fromarray(np.dstack([scene() * 200] * 3)).save(f"images/{i}.png")
        layered(f"masks/{i}.png", red(), alpha)
    alpha[:, 6:] = 255 * (scene()[:, 6:] == 0)
    if elsewhere:
        alpha[scene() == 1] = 0
    layered("masks/5.png", red(), alpha)
    named = {"#000000": "ground", "#ff0000": "thing"}
    for ask in (lambda: looked(classes=named), lambda: packed(tmp_path, classes=named)):
        with pytest.raises(InputError, match=r"masks/5\.png: has transparent pixels over #ff0000, which opaque pixels"):
            ask()
    with pytest.raises(InputError, match=r"masks/5\.png: has transparent pixels"):
        folder_report(study(classes=named))


def test_a_transparent_ground_is_the_ground() -> None:
    for i in range(8):
        Image.fromarray(np.dstack([scene() * 200] * 3)).save(f"images/{i}.png")
        layered(f"masks/{i}.png", red(), scene() * 255)
    found = looked()
    assert found.coding.classes == {"#000000": "background", "#ff0000": "object"}
    assert "8 masks have transparent pixels, which count as what is beneath them: #000000" in found.notes
    layered("masks/3.png", red(), scene() * 128)
    assert "1 masks have partly transparent pixels, which count as if they were opaque" in looked().notes


def test_a_transparent_ground_has_one_colour_in_all_masks() -> None:
    for i in range(8):
        Image.fromarray(np.dstack([scene() * 200] * 3)).save(f"images/{i}.png")
        ground = (1 - scene())[..., None] * np.uint8(255 if i % 2 else 0)
        layered(f"masks/{i}.png", red() + ground, scene() * 255)
    with pytest.raises(InputError, match=r"masks/0\.png: all .* lies over #000000, but in masks/1\.png over #ffffff"):
        looked()
    named = {"#000000": "ground", "#ffffff": "ground", "#ff0000": "thing"}
    assert looked(classes=named).coding.names == ["ground", "thing"]


def test_opaque_alpha_needs_no_word_and_a_transparent_index_is_one_like_others() -> None:
    for i in range(4):
        Image.fromarray(np.dstack([scene() * 200] * 3)).save(f"images/{i}.png")
        layered(f"masks/{i}.png", red(), np.full_like(scene(), 255))
    assert read((0, 0xFF0000), True).about == {}
    empty("masks")
    for i in range(4):
        palette_mask(f"masks/{i}.png", scene(), [BLACK, RED], transparency=0)
    assert said(read().about) == [
        "4 masks have a palette; its indices are their values; 4 have transparent ones, which count like others"
    ]
    painted = scene() * (np.arange(36) < 6).astype(np.uint8)
    for i in range(4):  # by colour, what is erased and what is painted are the same red
        palette_mask(f"masks/{i}.png", scene() + painted, [BLACK, RED, RED], transparency=2)
    with pytest.raises(InputError, match=r"masks/0\.png: has transparent pixels over #ff0000"):
        read((0, 0xFF0000), True)


def test_masks_with_16_bits_a_channel_keep_their_values() -> None:
    """Pillow reads the high byte alone, so that 1 would be 0."""
    three = np.dstack([scene().astype(np.uint16)] * 3)
    Path("masks/a.png").write_bytes(deep_png(three))
    Path("masks/b.tif").write_bytes(tiff(three, 2))
    Path("masks/c.png").write_bytes(deep_png(np.dstack([three * 257, three[..., :1] * 0 + 65535])))
    for path in files("masks"):
        assert np.array_equal(decode_mask(path, 36, BINARY).pixels, decode_upright(scene())), path
    Path("masks/d.png").write_bytes(deep_png(three * 1000))
    with pytest.raises(BadFileError, match="16 bits per channel that are not 8 bits made wider"):
        mask_values(Path("masks/d.png"), True)


# Pages and channels


def pages(path: str, *sizes: int, reduced: Sequence[int] = ()) -> None:
    """A TIFF of grey pages, each a shade brighter."""
    from PIL.TiffImagePlugin import AppendingTiffWriter

    with AppendingTiffWriter(path, True) as out:
        for i, size in enumerate(sizes):
            Image.new("L", (size, size), 10 + 50 * i).save(out, format="TIFF", tiffinfo={254: int(i in reduced)})
            out.newFrame()


def test_further_pages_are_said_and_refused_in_masks() -> None:
    pages("images/0.tif", 16, 16, 16)
    Image.new("L", (16, 16), 10).save("images/1.gif", save_all=True, append_images=[Image.new("L", (16, 16), 90)])
    pages("images/2.tif", 16, 8, reduced=[1])
    assert [read_head(path).pages for path in files("images")] == [2, 1, 0]
    assert said(decide(Heads.read(files("images"))).about) == [
        "2 images have further pages or frames; only the first is used"
    ]
    pages("masks/a.tif", 16, 16)
    with pytest.raises(BadFileError, match=r"has 1 further pages or frames; export it as a single picture"):
        mask_values(Path("masks/a.tif"), False)
    pages("masks/a.tif", 16, 8, reduced=[1])
    assert mask_values(Path("masks/a.tif"), False).tolist() == [10]
    heads = Heads.read([], files("masks"))
    assert decide(heads, (10,)).about == {}


def test_a_thumbnail_that_comes_first_is_not_the_picture() -> None:
    pages("images/a.tif", 8, 32, reduced=[0])
    assert read_head(Path("images/a.tif")).shape == (32, 32)
    assert decode(Path("images/a.tif"), 16, "nearest").pixels[0, 0, 0] == 60


def test_channels_that_are_not_read_are_said() -> None:
    Path("images/a.tif").write_bytes(tiff(np.dstack([scene() * 100] * 4), 2, t338=0))
    Path("images/b.tif").write_bytes(tiff(np.dstack([scene() * 100] * 2), 1, t338=0))
    about = decide(Heads.read(files("images"))).about
    assert said(about) == ["2 images have further channels; only grey or red, green and blue are used"]


@pytest.mark.parametrize(("count", "tags"), [(2, {"t338": 0}), (4, {}), (4, {"t338": 0})], ids=["2", "unnamed", "4"])
def test_masks_with_channels_that_could_hold_the_classes_are_refused(count: int, tags: dict[str, int]) -> None:
    layers = [scene()] * (count - 1) + [1 - scene()]
    Path("masks/a.tif").write_bytes(tiff(np.dstack(layers), 1 if count == 2 else 2, **tags))
    for ask in (lambda: mask_values(Path("masks/a.tif"), False), lambda: decode_mask(Path("masks/a.tif"), 36, BINARY)):
        with pytest.raises(BadFileError, match="channels besides grey, colours and transparency; export it without"):
            ask()
    noted = said(decide(Heads.read([], files("masks")), BINARY).about)
    assert noted == ([] if not tags else ["1 masks have further channels; packing refuses them"])


def test_a_fourth_channel_of_a_mask_that_hides_nothing_is_no_matter() -> None:
    Path("masks/a.tif").write_bytes(tiff(np.dstack([scene()] * 3 + [np.full_like(scene(), 255)]), 2))
    assert np.array_equal(decode_mask(Path("masks/a.tif"), 36, BINARY).pixels, decode_upright(scene()))


def test_a_mask_in_the_alpha_channel_is_pointed_out() -> None:
    for i in range(8):
        Image.fromarray(np.dstack([scene() * 200] * 3)).save(f"images/{i}.png")
        layered(f"masks/{i}.png", np.dstack([scene() * 0] * 3), scene() * 255)
    with pytest.raises(InputError, match=r"in their alpha channel, as in .*getchannel\('A'\)\.save\(new\)"):
        looked()


def test_values_below_zero_are_refused() -> None:
    Path("masks/a.tif").write_bytes(tiff(scene().astype("<i2") - 1, t339=2))
    with pytest.raises(BadFileError, match="values below 0, the least -1; save what is below 0 as 255"):
        mask_values(Path("masks/a.tif"), False)


# Lossy masks


def encoded_masks(values: Sequence[int], **how: Any) -> None:
    """Eight masks with a rectangle of each value but the first, named .png whatever they are."""
    mask = np.full((24, 36), values[0], np.uint8)
    for i, value in enumerate(values[1:]):
        mask[3 + 8 * i : 10 + 8 * i, 5:21] = value
    for i in range(8):
        Image.fromarray(np.dstack([scene() * 200] * 3)).save(f"images/{i}.png")
        Image.fromarray(mask).save(f"masks/{i}.png", **how)


@pytest.mark.parametrize(
    ("values", "how", "remedy"),
    [
        ((0, 255), {"format": "JPEG", "quality": 90}, "in Pillow"),
        ((0, 1, 2), {"format": "JPEG", "quality": 75}, "cannot be told apart again"),
        ((0, 255), {"format": "TIFF", "compression": "jpeg"}, "in Pillow"),
        ((0, 255), {"format": "WEBP", "quality": 60}, "as PNG, without smoothing"),
    ],
)
def test_lossy_masks_are_refused_by_their_content_with_a_remedy_that_works(
    values: Sequence[int], how: dict[str, Any], remedy: str
) -> None:
    encoded_masks(values, **how)
    with pytest.raises(InputError, match=r"8 are JPEG or lossy WebP \(0\.png, .*" + remedy):
        looked()
    assert "8 masks are JPEG or lossy WebP inside (0.png), which blurs values; export them as PNG" in said(read().about)


def test_webp_may_keep_every_value() -> None:
    encoded_masks((0, 255), format="WEBP", lossless=True)
    assert list(looked().coding.classes) == [0, 255]
    assert not any(head.lossy for head in Heads.read(files("masks")).of_images)


def test_a_jpeg_of_two_far_values_is_taken_with_a_note() -> None:
    for i in range(8):
        Image.fromarray(np.dstack([scene() * 200] * 3)).save(f"images/{i}.png")
        blocks = np.zeros((24, 36), np.uint8)
        blocks[8:16, 8:24] = 255
        Image.fromarray(blocks).save(f"masks/{i}.png", format="JPEG", quality=100)
    assert any("JPEG or lossy WebP inside (0.png)" in note for note in looked().notes)


@pytest.mark.parametrize("colours", [False, True])
@pytest.mark.parametrize("smooth", [False, True])
def test_values_that_are_lines_everywhere_are_said(colours: bool, smooth: bool) -> None:
    mask = np.zeros((24, 36), np.uint8)
    for i, level in enumerate((60, 120, 180, 240)):
        mask[3:9, 4 + 8 * i : 9 + 8 * i] = level
    picture = Image.fromarray(np.dstack([mask, mask // 2, 255 - mask]) if colours else mask)
    for i in range(8):
        Image.fromarray(np.dstack([scene() * 200] * 3)).save(f"images/{i}.png")
        out = picture.resize((37, 24), Image.Resampling.BILINEAR).resize((36, 24), 0) if smooth else picture
        out.save(f"masks/{i}.png")
    notes = [note for note in looked().notes if "nowhere 3 pixels wide" in note]
    assert len(notes) == smooth
    if smooth:
        assert "edges may have been smoothed; if so, export the masks again without smoothing" in notes[0]


# Any files at all


@GENERATED
@given(st.data())
def test_a_header_is_read_or_not_and_nothing_is_raised(data: st.DataObject) -> None:
    buffer = io.BytesIO()
    kind = data.draw(st.sampled_from(["PNG", "TIFF", "JPEG", "WEBP", "GIF", "BMP"]))
    Image.fromarray(scene()).save(buffer, kind, **({"exif": exif(6)} if kind in ("PNG", "TIFF", "JPEG") else {}))
    content = bytearray(buffer.getvalue())
    for at, byte in data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=6)):
        content[at] = byte
    cut = data.draw(st.integers(0, len(content)))
    Path("images/a").write_bytes(content[:cut])
    head = read_head(Path("images/a"))
    assert head is None or min(head.shape) > 0
    decide(Heads.read([Path("images/a")], [Path("images/a")]), BINARY)
