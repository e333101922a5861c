"""`viny init`: what it finds in real folders, and that the study it writes is valid and packs to the truth."""

from __future__ import annotations

import io
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from patience import PATIENCE
from PIL import Image, ImageFilter

from viny.cli import main
from viny.data.masks import IGNORE, is_void, mask_coding
from viny.data.pack import open_pack
from viny.data.packing import build_pack
from viny.data.splits import finetune_split, pretrain_split
from viny.data.survey import CLOSER, LARGE, CloseUp, Looked
from viny.runtime.errors import InputError
from viny.study.checks import check_sizes
from viny.study.config import merge, resolve
from viny.study.inventory import count_images
from viny.study.reading import read_config
from viny.study.specs import finetune_split_spec, pack_spec, pretrain_split_spec
from viny.tools.newstudy import look
from viny.tools.newstudy.budgets import held_out_of, ladder
from viny.tools.newstudy.class_lists import parse_classes, read_classes
from viny.tools.newstudy.contact_sheet import contact_sheet
from viny.tools.newstudy.dialogue import init, sides_in_words, study_name
from viny.tools.newstudy.look import Request, inspect
from viny.tools.newstudy.study_file import images_of, study_text
from viny.tools.terminal import say

SIDE = 32  # pixels
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
GROUND = {0: "ground", 255: "object"}
NAMED = {0: ["background", "object"], 100: ["class_100", "class_255"]}
LFS = "a Git LFS pointer instead of the file itself; run 'git lfs pull'"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder on a machine without a GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path


def picture(seed: int, height: int = SIDE, width: int = SIDE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def truth(seed: int, classes: int = 2, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """Class indices [H, W]: a rectangle of each class but 0, none hiding another."""
    mask = np.zeros((height, width), np.uint8)
    rows = np.linspace(0, height, classes + 1).astype(int)
    for at in range(1, classes):
        mask[rows[at] : rows[at + 1], 2 + seed % 7 : width - 3] = at
    return mask


def made(
    root: Path,
    save: Callable[[np.ndarray, Path], Any],
    classes: int = 2,
    count: int = 12,
    kind: str = "png",
    suffix: str = "",
) -> list[np.ndarray]:
    """Images and masks below a folder, in folders of their own; gives the truth in the order of the images' paths."""
    for at in range(count):
        sub = ("", "a/", "a/b/")[at % 3]
        for name in ("images", "masks"):
            (root / name / sub).mkdir(parents=True, exist_ok=True)
        picture(at).save(root / "images" / f"{sub}i{at:02d}.{('jpg', 'png', 'webp', 'tif', 'bmp')[at % 5]}")
        save(truth(at, classes), root / "masks" / f"{sub}i{at:02d}{suffix}.{kind}")
    places = [f"{('', 'a/', 'a/b/')[at % 3]}i{at:02d}" for at in range(count)]
    return [truth(at, classes) for at in sorted(range(count), key=places.__getitem__)]


def grey(values: list[int]) -> Callable[[np.ndarray, Path], None]:
    return lambda mask, path: Image.fromarray(np.array(values, np.uint8)[mask]).save(path)


def study(name: str = "mine") -> dict[str, Any]:
    return resolve(read_config(Path("studies", f"{name}.yaml")))


def run(*arguments: str) -> int:
    return main(["init", "mine", "--images", "images", "--masks", "masks", *arguments])


def packed(tmp_path: Path, config: dict[str, Any], name: str = "segmentation") -> Any:
    folder = tmp_path / f"pack-{name}"
    folder.mkdir()
    build_pack(pack_spec(config, name), folder, threads=1)
    return open_pack(folder / "manifest.json")


def as_rgb(mask: np.ndarray, path: Path) -> None:
    Image.fromarray(np.repeat(255 * mask[..., None], 3, 2)).save(path)


def as_colours(mask: np.ndarray, path: Path) -> None:
    Image.fromarray(np.array([(0, 0, 0), (200, 30, 30), (30, 30, 200)], np.uint8)[mask]).save(path)


def as_palette(mask: np.ndarray, path: Path) -> None:
    image = Image.fromarray(mask)
    image.putpalette([value for i in range(256) for value in (255 - i, (i * 77) % 256, 90)])
    image.save(path)


def one_bit(mask: np.ndarray, path: Path) -> None:
    Image.fromarray(255 * mask).convert("1").save(path)


def mixed(mask: np.ndarray, path: Path) -> None:
    grey([0, 1] if "0" in path.stem else [0, 255])(mask, path)


# Masks as they come: the study that is written packs to what they show


@pytest.mark.parametrize(
    ("save", "kind", "classes"),
    [
        (grey([0, 255]), "png", {"0": "background", "255": "object"}),
        (grey([0, 255]), "bmp", {"0": "background", "255": "object"}),
        (grey([0, 1]), "tif", {"0": "background", "1": "object"}),
        (one_bit, "png", {"0": "background", "1": "object"}),
        (as_palette, "png", {"0": "background", "1": "object"}),
        (as_rgb, "png", {"0": "background", "255": "object"}),
        (lambda mask, path: Image.fromarray(255 * mask).save(path, lossless=True), "webp", None),
        (mixed, "png", {"0": "background", "1": "object", "255": "object"}),
    ],
    ids=["0/255", "bmp", "0/1 tif", "1 bit", "palette", "grey as RGB", "webp", "0/1 and 0/255"],
)
def test_binary_masks_of_any_kind_pack_to_the_truth(tmp_path: Path, save: Any, kind: str, classes: Any) -> None:
    wanted = made(tmp_path, save, kind=kind)
    text = study_text(inspect(Request("mine", Path("images"), Path("masks"))))
    Path("mine.yaml").write_text(text, encoding="utf-8")
    config = resolve(read_config("mine.yaml"))
    if classes:
        assert config["segmentation"]["classes"] == classes
    assert config["model"]["image_size"] == SIDE and config["segmentation"]["ignore"] == []
    pack = packed(tmp_path, config)
    assert pack.manifest["mask_classes"] == ["background", "object"]
    assert np.array_equal(pack.rows("masks", np.arange(len(wanted))), np.stack(wanted))


def test_eleven_palette_classes_and_255_pack_to_the_truth_with_255_ignored(tmp_path: Path) -> None:
    def save(mask: np.ndarray, path: Path) -> None:
        mask = mask.copy()
        mask[:, 0] = 255
        as_palette(mask, path)

    wanted = np.stack(made(tmp_path, save, classes=11))
    wanted[:, :, 0] = IGNORE
    assert run() == 0
    config = study()
    assert config["segmentation"]["ignore"] == [255]
    assert list(config["segmentation"]["classes"]) == [str(value) for value in range(11)]
    assert np.array_equal(packed(tmp_path, config).rows("masks", np.arange(len(wanted))), wanted)


def test_colour_masks_get_a_class_a_colour(tmp_path: Path) -> None:
    wanted = made(tmp_path, as_colours, classes=3)
    as_rgb(np.zeros((SIDE, SIDE), np.uint8), tmp_path / "masks" / "i00.png")  # black alone could be grey
    found = inspect(Request("mine", Path("images"), Path("masks")))
    assert found.coding.classes == {"#000000": "class_000000", "#1e1ec8": "class_1e1ec8", "#c81e1e": "class_c81e1e"}
    Path("mine.yaml").write_text(study_text(found), encoding="utf-8")
    masks = packed(tmp_path, resolve(read_config("mine.yaml"))).rows("masks", np.arange(len(wanted)))
    wanted[8][:] = 0  # those of a/ and a/b/ come before i00
    assert np.array_equal(masks, np.array([0, 2, 1], np.uint8)[np.stack(wanted)])


def test_grey_levels_with_gaps_are_classes_also_255(tmp_path: Path) -> None:
    made(tmp_path, grey([0, 128, 255]), classes=3)
    coding = inspect(Request("mine", Path("images"), Path("masks"))).coding
    assert list(coding.classes) == [0, 128, 255] and coding.ignore == []


@pytest.mark.parametrize("smooth", [False, True], ids=["jpeg", "smoothed png"])
def test_masks_that_were_compressed_or_smoothed_are_refused_with_advice(
    tmp_path: Path, smooth: bool, capsys: pytest.CaptureFixture
) -> None:
    def save(mask: np.ndarray, path: Path) -> None:
        image = Image.fromarray(255 * mask).resize((64, 64))
        (image.filter(ImageFilter.GaussianBlur(1)) if smooth else image).save(path)

    made(tmp_path, save, kind="png" if smooth else "jpg")
    for file in (tmp_path / "images").rglob("*.*"):
        picture(1, 64, 64).save(file)
    assert run() == 2
    said = capsys.readouterr().err
    assert "expected one value per class" in said and "point(lambda v: 255 * (v > 127))" in said
    assert ("JPEG" in said) is not smooth
    assert not Path("studies").exists()


def test_many_classes_in_each_mask_are_not_taken_for_smoothed_edges(tmp_path: Path) -> None:
    made(tmp_path, lambda mask, path: Image.fromarray(np.arange(SIDE**2).reshape(mask.shape).astype(np.uint8) % 38)
         .save(path))  # fmt: skip
    found = inspect(Request("mine", Path("images"), Path("masks")))
    assert len(found.coding.classes) == 38
    assert any("if values number objects" in note for note in found.notes)


def test_values_that_no_class_can_have_are_refused_with_file_and_remedy(tmp_path: Path) -> None:
    def save(mask: np.ndarray, path: Path) -> None:
        Image.fromarray(np.array([0, 1, 70_000], np.int32)[mask]).save(path)

    made(tmp_path, save, 3, kind="tif")
    with pytest.raises(
        InputError, match=r"i\d\d.tif: holds the value 70,000, as do 12 of the 12 .* 0 to 65,535"
    ) as error:
        inspect(Request("mine", Path("images"), Path("masks")))
    mended = tmp_path / "mended.png"
    code = str(error.value).partition("no class: ")[2]
    exec(code, {"np": np, "Image": Image, "old": next((tmp_path / "masks").rglob("i00.tif")), "new": mended})
    assert set(np.unique(np.asarray(Image.open(mended)))) == {0, 1, 255}


def test_a_1_is_a_named_255_only_where_a_pixel_has_one_bit(tmp_path: Path) -> None:
    def save(mask: np.ndarray, path: Path) -> None:
        seen = mask * (1 if "i04" in path.name else 255)
        picture = Image.fromarray(seen.astype(np.uint8))
        (picture.convert("1") if "i05" in path.name else picture).save(path)

    made(tmp_path, save)
    wanted = Request("mine", Path("images"), Path("masks"), classes=GROUND)
    with pytest.raises(InputError, match=r"values without a name: 1 \(in 1 masks: i04.png\).* add 1=object to"):
        inspect(wanted)
    found = inspect(replace(wanted, classes=GROUND | {1: "object"}))
    assert not found.looked.refused and found.coding.names == ["ground", "object"]
    grey([0, 255])(truth(4), next((tmp_path / "masks").rglob("i04.png")))
    assert not inspect(wanted).looked.refused  # the one-bit mask's 1 is 255


@pytest.mark.parametrize("beneath", [0, 255])
@pytest.mark.parametrize("clear", [0, 100], ids=["transparent", "partly"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("classes", [{}, GROUND], ids=["guessed", "named"])
def test_masks_in_the_alpha_channel_are_said_to_be_there(
    tmp_path: Path, beneath: int, clear: int, mode: str, classes: dict[int | str, str]
) -> None:
    def save(mask: np.ndarray, path: Path) -> None:
        picture = Image.new(mode[:-1], mask.shape[::-1], (beneath,) * len(mode[:-1]))
        picture.putalpha(Image.fromarray(np.array([clear, 255], np.uint8)[mask]))
        picture.save(path)

    made(tmp_path, save)
    with pytest.raises(InputError, match=r"what they show is in their alpha channel, .*getchannel\('A'\)") as error:
        inspect(Request("mine", Path("images"), Path("masks"), classes=classes))
    code = str(error.value).partition("make masks of that: ")[2]
    for old in list((tmp_path / "masks").rglob("*.png")):
        exec(code, {"Image": Image, "old": old, "new": old})
    assert inspect(Request("mine", Path("images"), Path("masks"))).coding.names == NAMED[clear]


def test_more_values_than_classes_can_be_are_refused(tmp_path: Path) -> None:
    def save(mask: np.ndarray, path: Path) -> None:
        ramp = np.arange(SIDE, dtype=np.uint16) + np.uint16(30 * int(path.stem[1:]))
        Image.fromarray(mask + ramp).save(path)

    made(tmp_path, save)
    with pytest.raises(InputError, match=r"hold 36\d values .* may number objects"):
        inspect(Request("mine", Path("images"), Path("masks")))


# Names of files


def test_a_suffix_is_found_and_what_does_not_match_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    made(tmp_path, grey([0, 255]), count=20, suffix="_mask")
    (tmp_path / "masks" / "i03_mask.png").unlink()
    picture(0).save(tmp_path / "images" / "a[bold]b.png")
    assert run() == 0
    said = capsys.readouterr().out
    assert "a[bold]b.png" in said
    assert "masks' names end in _mask" in said and re.search(r"without a mask.*i03\.tif", said)
    assert study()["segmentation"]["mask_suffix"] == "_mask"
    assert "\x1b" not in said  # plain, as the output is not a terminal


def test_images_and_masks_may_stand_in_one_folder(tmp_path: Path) -> None:
    for at in range(25):  # i1 begins i10, and i1_seg does not belong to it
        picture(at).save(tmp_path / f"i{at}.jpg")
        grey([0, 255])(truth(at), tmp_path / f"i{at}_seg.png")
    found = inspect(Request("mine", tmp_path, tmp_path))
    assert found.pairs == 25 and found.wanted.mask_suffix == "_seg"


def test_names_that_begin_one_another_are_no_suffix_where_each_image_has_its_mask(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for at in range(10):  # x, xx, xxx, ...
        picture(at).save(tmp_path / "images" / f"{'x' * (at + 1)}.png")
        grey([0, 255])(truth(at), tmp_path / "masks" / f"{'x' * (at + 1)}.png")
    found = inspect(Request("mine", Path("images"), Path("masks")))
    assert found.wanted.mask_suffix == "" and found.pairs == 10


def test_a_file_that_is_no_image_is_said_and_skipped(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    made(tmp_path, grey([0, 255]), count=20)
    (tmp_path / "images" / "i00.jpg").write_text("no image")
    assert run() == 0
    assert "1 of 20 images cannot be opened: i00.jpg: " in capsys.readouterr().out
    config = study()
    assert config["on_bad_image"] == "skip"
    assert max(config["grid"]["finetune_sizes"]) + config["segmentation"]["test_size"] <= 19
    assert len(packed(tmp_path, config)) == 19


def test_the_first_names_are_said_for_each_reason_whether_the_header_or_the_rest_is_bad(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    made(tmp_path, grey([0, 255]), count=20)
    for name in ("i01.png", "i16.png"):
        file = next((tmp_path / "images").rglob(name))
        file.write_bytes(file.read_bytes()[:-500])
    for name in ("i06.png", "i11.png"):
        next((tmp_path / "masks").rglob(name)).write_text(POINTER)
    assert run() == 0
    out = capsys.readouterr().out
    assert re.search(rf"2 of 20 masks cannot be opened: (a/b/i11.png, i06.png|i06.png, a/b/i11.png): {LFS}", out)
    assert re.search(
        r"2 of 20 pairs cannot be used and are skipped: i(01|16)\.png.* cannot be read as an image \(", out
    )
    assert len(packed(tmp_path, study())) == 16


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_where_nothing_can_be_opened_names_and_the_reason_are_said(tmp_path: Path, kind: str) -> None:
    made(tmp_path, grey([0, 255]))
    for file in (tmp_path / kind).rglob("*.*"):
        file.write_text(POINTER)
    with pytest.raises(InputError, match=f"{kind}: none of the 12 {kind} can be opened: .*i.* and 7 more: {LFS}"):
        inspect(Request("mine", Path("images"), Path("masks")))


def test_one_mask_with_its_images_name_does_not_hide_the_suffix_of_the_others(tmp_path: Path) -> None:
    made(tmp_path, grey([0, 255]), suffix="_mask")
    grey([0, 255])(truth(0), tmp_path / "masks" / "i00.png")
    found = inspect(Request("mine", Path("images"), Path("masks")))
    assert (found.wanted.mask_suffix, found.pairs) == ("_mask", 12)


def test_what_lies_beside_the_images_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    made(tmp_path, grey([0, 255]))
    for at in range(20):
        for name in (f"u{at}.jpg", f"thumbs/u{at}.jpg", f"@eaDir/u{at}.jpg", f".old/u{at}.jpg"):
            (tmp_path / "more" / name).parent.mkdir(parents=True, exist_ok=True)
            picture(at).save(tmp_path / "more" / name)
        (tmp_path / "more" / f"h{at}.HEIC").write_bytes(b"ftypheic")
        (tmp_path / "images" / f"x{at}.dng").write_bytes(b"raw")
    for part, count in (("train", 9), ("val", 4), ("test", 5)):
        for kind in "ab":
            (tmp_path / "kinds" / part / kind).mkdir(parents=True)
            for at in range(count):
                picture(at).save(tmp_path / "kinds" / part / kind / f"{at}.png")
    flags = ["--unlabelled", "more", "--task", "kinds=kinds"]
    assert run(*flags) == 0
    said = [capsys.readouterr().out]
    assert main(["check", "studies/mine.yaml"]) == 0
    said.append(capsys.readouterr().out)
    for text in said:
        assert "20 .heic" in text and "20 .dng" in text
        assert "folder .old (20 images)" in text and "folder @eaDir (20 images)" in text
        assert "20 images are named as thumbnails" in text
        assert "kinds/val: 8 images, neither trained nor tested on" in text
    assert study()["pretrain"]["epochs"] and "40 unlabelled" in said[0]
    manifest = packed(tmp_path, study(), "pretrain").manifest
    assert (manifest["count"], manifest["passed_over"]) == (40, {"heic": 20})
    assert packed(tmp_path, study(), "kinds").manifest["left_out"] == {"val": 8}


def test_mostly_bad_pairs_are_refused(tmp_path: Path) -> None:
    made(tmp_path, grey([0, 255]))
    for file in (tmp_path / "images").rglob("*.*"):
        picture(0, 20, 50).save(file)
    with pytest.raises(InputError, match=r"12 of 12 images .* are bad.*\n.*its mask 32 x 32"):
        inspect(Request("mine", Path("images"), Path("masks")))


# What the user says


def test_classes_can_be_named_and_others_are_not_taken_in_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    made(tmp_path, grey([0, 1, 7]), classes=3)
    assert run("--classes", "0=ground,1=low road") == 2
    assert "values without a name: 7 (in 12 masks)" in capsys.readouterr().err
    assert run("--classes", "0=ground,1=low road", "--ignore", "7") == 0
    section = study()["segmentation"]
    assert section["classes"] == {"0": "ground", "1": "low road"} and section["ignore"] == [7]


@pytest.mark.parametrize(("by", "name"), [("flag", "void"), ("flag", "-"), ("file", "un-labeled"), ("study", "Void")])
def test_names_of_pixels_without_a_class_are_ignored_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture, name: str, by: str
) -> None:
    made(tmp_path, grey([0, 4, 11]), classes=3)
    (tmp_path / "c.csv").write_text(f"0,ground\n4,road\n11,{name}\n")
    if by == "study":  # explicit: what it means stays, and is said
        assert run("--classes", "0=ground,4=road,11=rest") == 0
        path = tmp_path / "studies" / "mine.yaml"
        path.write_text(path.read_text().replace("rest", name))
        capsys.readouterr()
        assert main(["check", str(path)]) == 0
        assert "looks like pixels without a class, but is learnt" in capsys.readouterr().out
        assert set(study()["segmentation"]["classes"]) == {"0", "4", "11"}
        return
    assert run(*(["--classes", f"0=ground,4=road,11={name}"] if by == "flag" else ["--classes-file", "c.csv"])) == 0
    section, said = study()["segmentation"], capsys.readouterr().out
    assert section["classes"] == {"0": "ground", "4": "road"} and section["ignore"] == [11]
    assert f"11 '{name}': looks like pixels without a class" in said and "--classes 11=rest" in said
    looked = packed(tmp_path, study())
    assert set(np.unique(looked.masks).tolist()) == {0, 1, IGNORE}


@pytest.mark.parametrize("where", ["masks", "."])
def test_a_list_of_classes_beside_the_masks_is_said_and_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, where: str
) -> None:
    made(tmp_path, grey([0, 4, 11]), classes=3)
    (tmp_path / "classes.txt").write_text("the ground, a road and the rest\n")  # names no values, and is passed over
    listed = tmp_path / where / "classes.csv"
    listed.write_text("0,ground\n4,road\n11,void\n")
    assert run() == 0
    assert f"--classes-file {listed.relative_to(tmp_path)} takes its names" in capsys.readouterr().out
    named = {0: "ground", 4: "road"}
    assert study()["segmentation"]["classes"] != named
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    reply = answers("named", "images", "masks", "", "", "", "", "")  # the last three: the list, void and minutes
    init({}, rate=1000, reply=reply)
    assert any(str(listed.relative_to(tmp_path)) in question for question in reply.asked)
    section = yaml.safe_load((tmp_path / "studies" / "named.yaml").read_text())["segmentation"]
    assert section["classes"] == named and section["ignore"] == [11]
    init({}, rate=1000, reply=answers("unnamed", "images", "masks", "", "", "none", "", "", "", ""))
    capsys.readouterr()
    section = yaml.safe_load((tmp_path / "studies" / "unnamed.yaml").read_text())["segmentation"]
    assert len(section["classes"]) == 3
    assert run("--force", "--classes-file", str(listed)) == 0
    assert "takes its names" not in capsys.readouterr().out


def test_a_name_that_is_taken_is_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path, grey([0, 255]), classes=2)
    assert run() == 0
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    reply = answers("mine", "other", "images", "masks", "", "", "", "", "")
    init({}, rate=1000, reply=reply)
    assert (tmp_path / "studies" / "other.yaml").is_file()


@pytest.mark.parametrize("name", ["VOID", "ignore", "Ignored", "unlabelled", "don't care", "no data", "void area", "-"])
def test_names_for_no_class_are_known(name: str) -> None:
    assert is_void(name)


@pytest.mark.parametrize("name", ["background", "other", "border", "rest", "valid", "ignorance", "unknown animal"])
def test_names_of_classes_are_not_taken_for_none(name: str) -> None:
    assert not is_void(name)


def test_of_two_classes_none_is_ignored_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    made(tmp_path, grey([0, 255]))
    assert run("--classes", "0=none,255=crack") == 0
    assert study()["segmentation"]["classes"] == {"0": "none", "255": "crack"}
    assert "kept as a class, since two are needed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("value,name\n0,a (b)\n#ff00FF, c\n".replace("0,a", "#000000,a"), {"#000000": "a (b)", "#ff00ff": "c"}),
        ("0,ground\r\n255,object\r\n", {0: "ground", 255: "object"}),
        (
            "\ufeffvalue, name\n\n0,ground\n# a comment\n1,low road\n2,low road\n",
            {0: "ground", 1: "low road", 2: "low road"},
        ),
        ("Pixel Value, Class\n0, background\n1, cat\n2, dog\n", {0: "background", 1: "cat", 2: "dog"}),
        (
            "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:255,0,0::\nlow road:0,128,0:a,b:sit\n",
            {"#000000": "background", "#ff0000": "cat", "#008000": "low road"},
        ),
        ("name,r,g,b\nurban_land,0,255,255\nwater, 0, 0, 255\n", {"#00ffff": "urban_land", "#0000ff": "water"}),
    ],
    ids=["colours", "windows", "byte order mark and comment", "Roboflow", "CVAT", "name,r,g,b"],
)
def test_classes_can_be_named_in_a_file(tmp_path: Path, text: str, wanted: dict[int | str, str]) -> None:
    (tmp_path / "c.csv").write_bytes(text.encode())
    assert read_classes(tmp_path / "c.csv") == wanted


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("background\ncat\n", "line 1: 'background' is not a value and its name"),
        ("id,name\n0,a\n1,b\n", "line 1: 'id,name' is not"),
        ("0,a\n1;b\n", "line 2: '1;b' is not"),
        ("0,0,0,background\n255,0,0,cat\n", "line 1: '0,0,0,background' is not"),
        ("0,a,255,0,0\n1,b,0,0,0\n", "line 1: '0,a,255,0,0' is not"),
        ("filename, cat, dog\nx.jpg, 1, 0\n", "line 1: 'filename, cat, dog' is not"),
        ("0,a\n-1,b\n", "line 2: '-1,b' is not"),
        ("0,a\n1,\n", "line 2: '1' has no name"),
        ("0,a\n0,b\n", "line 2: the value 0 is given twice"),
        ("0,a\n#ff0000,b\n", "values and colours are mixed"),
        ("0,a\n#ff00,b\n", "line 2: '#ff00,b' is not"),
        ("0,a\n1,b\x1b[2J\n", "line 2: the name 'b\\x1b[2J' cannot be a class's"),
        ("0,a\n1,b\u202ec\n", "cannot be a class's"),
        ("0,a\n1,<b>\n", "line 2: the name '<b>' cannot be a class's"),
        ("0,a\n", "names 1 values; expected two or more"),
        ("", "names 0 values"),
        ("cat:255,0,0::\ndog:0,256,0::\n", "line 2: 'dog:0,256,0::' is no name with red, green and blue"),
        ("cat:255,0,0::\ndog\n", "line 2: 'dog' is no name with"),
        ("cat:255,0,0::\ndog:255,0,0::\n", "line 2: the value #ff0000 is given twice"),
        ("name,r,g,b\na,0,0,0\nb,0,0\n", "line 3: 'b,0,0' is no name with"),
        ("{\"0\": \"a\"}", "line 1:"),
        ("x" * (1 << 20) + "y", "larger than a list of classes"),
    ],
)  # fmt: skip
def test_a_list_of_classes_that_is_none_is_refused_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "c.csv").write_text(text)
    with pytest.raises(InputError) as caught:
        read_classes(tmp_path / "c.csv")
    assert said in str(caught.value) and str(tmp_path / "c.csv") in str(caught.value)


@given(st.one_of(st.binary(max_size=60), st.from_regex(r"([#0-9a-f,: ]{0,9}\n){1,4}").map(str.encode)))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_list_of_classes_is_read_or_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "c.csv").write_bytes(data)
    with suppress(InputError):
        found = read_classes(tmp_path / "c.csv")
        assert len(found) >= 2 and len({type(value) for value in found}) == 1
        assert all(name.isprintable() and "," not in name for name in found.values())


def test_a_list_of_classes_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("0,a\n1,b\n", encoding="utf-16")
    for path in (tmp_path / "c.csv", tmp_path / "none.csv", tmp_path):
        with pytest.raises(InputError, match=r"cannot be read .*expected lines of value,name"):
            read_classes(path)


@pytest.mark.parametrize("text", ["0=a", "0=a,1", "0=a,x=b", "0=a,0=b", "0=a,1="])
def test_classes_written_wrongly_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--classes|expected a mask value"):
        parse_classes(text)


def test_nothing_is_overwritten_without_force(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    made(tmp_path, grey([0, 255]))
    Path("studies").mkdir()
    Path("studies/mine.png").write_text("own", encoding="utf-8")
    assert run() == 2
    assert "studies/mine.png: there already" in capsys.readouterr().err
    assert Path("studies/mine.png").read_text(encoding="utf-8") == "own" and not Path("studies/mine.yaml").exists()
    assert run("--force") == 0
    with Image.open("studies/mine.png") as image:
        assert image.width > 500


@pytest.mark.parametrize("name", ["a/b", "../x", "", "none\n"])
def test_a_name_that_no_study_may_have_is_refused(tmp_path: Path, name: str) -> None:
    made(tmp_path, grey([0, 255]))
    assert main(["init", name, "--images", "images", "--masks", "masks"]) == 2
    assert not Path("studies").exists()


def test_without_flags_and_terminal_the_flags_are_named(capsys: pytest.CaptureFixture) -> None:
    assert main(["init", "--masks", "masks"]) == 2
    assert "needs a NAME, --images;" in capsys.readouterr().err


# The study


def test_every_setting_has_a_comment_and_the_arithmetic_is_right(tmp_path: Path) -> None:
    made(tmp_path, grey([0, 255]), count=40)
    (tmp_path / "more").mkdir()
    picture(0, 12, 12).save(tmp_path / "more" / "u0.png")
    for at in range(1, 420):
        (tmp_path / "more" / f"u{at}.png").symlink_to("u0.png")
    for at in range(30):
        (tmp_path / f"kinds/{at % 3}").mkdir(parents=True, exist_ok=True)
        picture(at).save(tmp_path / f"kinds/{at % 3}/{at}.jpg")
    assert run("--unlabelled", "more", "--task", "kinds=kinds", "--spatial") == 0
    text = Path("studies/mine.yaml").read_text(encoding="utf-8")
    config = study()
    grid, tasks = config["grid"], config["intermediate"]
    assert grid["intermediates"] == ["none", "kinds", "spatial"]
    assert (tasks["kinds"]["source"], tasks["spatial"]["source"], tasks["spatial"]["target"]) == (
        "folder",
        "segmentation",
        "patch",
    )
    sections = ("grid", "model", "pretrain", "finetune")
    for section in sections:
        lines = re.search(rf"^{section}:.*\n((  .*\n)+)", text, re.MULTILINE)[1].splitlines()
        assert all(" # " in line or line.strip() == "source: folder" for line in lines), section
    starts, seeds = len(grid["pretrain_sizes"]), len(grid["seeds"])
    count = seeds * sum(grid["pretrain_sizes"]) * config["pretrain"]["epochs"]
    count += starts * seeds * (24 * tasks["kinds"]["epochs"] + 24 * tasks["spatial"]["epochs"])
    count += starts * seeds * 3 * sum(grid["finetune_sizes"]) * config["finetune"]["epochs"]
    assert f"about {count / 1e6:.3g} million image passes" in text
    assert grid["pretrain_sizes"] == [0, 210, 420]
    assert len(packed(tmp_path, config, "pretrain")) == 420
    assert len(packed(tmp_path, config, "kinds").manifest["classes"]) == 3


def test_without_unlabelled_images_the_file_says_what_it_cannot_tell(tmp_path: Path) -> None:
    made(tmp_path, grey([0, 255]))
    text = study_text(inspect(Request("mine", Path("images"), Path("masks"))))
    assert "pretrain_sizes: [0]" in text
    assert re.search(
        r"^# Is pre-training worth it\? +no pre-training +pretrain.source: add images$", text, re.MULTILINE
    )
    assert re.search(r"^# Does a task help\? +no intermediate task ", text, re.MULTILINE)


@pytest.mark.parametrize("count", [10, 11, 17, 30, 50, 99, 200, 737, 7349, 123_456])
def test_sizes_fit_any_number_of_images(count: int) -> None:
    held_out = held_out_of(count)
    assert 0.1 * count <= held_out <= 0.4 * count or held_out == 1000
    assert held_out >= 30 or count < 75
    for steps in (2, 3, 4):
        room = count - held_out
        if room >> (steps - 1) >= 8:
            got = ladder(room, steps)
            assert 0.88 * room <= got[-1] <= room
            assert all(b == 2 * a for a, b in pairwise(got)) and len(got) == steps


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    made(tmp_path, grey([0, 255]), count=5)
    with pytest.raises(InputError, match=r"5 images with masks.*expected ten or more"):
        study_text(inspect(Request("mine", Path("images"), Path("masks"))))


def test_a_split_file_is_passed_on_and_its_training_part_is_what_sizes_fit(tmp_path: Path) -> None:
    made(tmp_path, grey([0, 255]), count=30)
    lines = [f"i{at:02d},{'test' if at < 20 else 'train'}\n" for at in range(30)]
    (tmp_path / "split.csv").write_text("".join(lines))
    found = inspect(Request("mine", Path("images"), Path("masks"), split=Path("split.csv")))
    assert (found.train, found.test) == (10, 20)
    Path("mine.yaml").write_text(study_text(found), encoding="utf-8")
    config = resolve(read_config("mine.yaml"))
    assert config["segmentation"]["test_size"] == 0 and max(config["grid"]["finetune_sizes"]) == 10


def test_masks_among_the_unlabelled_images_are_refused(tmp_path: Path) -> None:
    made(tmp_path, grey([0, 255]))
    with pytest.raises(InputError, match="12 masks are in or below it"):
        inspect(Request("mine", Path("images"), Path("masks"), unlabelled=tmp_path))


def test_labelled_images_among_the_unlabelled_ones_are_said(tmp_path: Path) -> None:
    made(tmp_path, grey([0, 255]))
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "images").symlink_to(tmp_path / "images")
    picture(99).save(tmp_path / "all" / "other.png")
    found = inspect(Request("mine", Path("images"), Path("masks"), unlabelled=Path("all")))
    assert any(note.startswith("12 labelled images, some for the test") for note in found.notes)
    assert (found.on_labelled, found.unlabelled) == (False, 13)


@pytest.mark.parametrize("folder", ["same", "images", "linked"])
@pytest.mark.parametrize("group", ["none", r"(.*)_\d$"])
def test_the_images_with_masks_are_pretrained_on_without_the_test_images(
    tmp_path: Path, capsys: pytest.CaptureFixture, folder: str, group: str
) -> None:
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for at in range(40):
        picture(at).save(tmp_path / "images" / f"film{at // 4}_{at % 4}.png")
        grey([0, 255])(truth(at), tmp_path / "masks" / f"film{at // 4}_{at % 4}.png")
    (tmp_path / "linked").symlink_to(tmp_path / "images")
    assert run("--unlabelled", folder, "--group", group) == 0
    config = study()
    assert config["pretrain"]["source"] == "segmentation" and config["grid"]["pretrain_sizes"] == [0, 24]
    said = capsys.readouterr().out
    assert said.startswith("mine: 40 images with masks; 24 of them to pre-train on\n")
    assert "no pre-training" not in said and "among the unlabelled" not in said
    images = count_images(config, Path("nowhere"))
    found = inspect(Request("mine", Path("images"), Path("masks"), Path("images"), group=group.removeprefix("none")))
    told = images_of(found)
    for key in ("packed", "unlabelled", "room", "tested", "groups"):
        assert getattr(told, key) == getattr(images, key), key
    assert max(config["grid"]["pretrain_sizes"]) == images.unlabelled["pretrain"]  # all that there are
    assert config["pretrain"]["epochs"] >= 10_000  # of one step each
    packs = {name: packed(tmp_path, config, name) for name in ("pretrain", "segmentation")}
    specs = pretrain_split_spec(config, 24, 0), finetune_split_spec(config, 4, 0)
    own, tuned = (
        cut(packs[name], **{key: value for key, value in spec.items() if key != "kind"})
        for name, cut, spec in zip(packs, (pretrain_split, finetune_split), specs, strict=True)
    )
    seen = {packs["pretrain"].name(i) for i in own["train"]}
    tested = {packs["segmentation"].name(i) for i in tuned["test"]}
    assert (len(seen), len(tested), seen & tested) == (24, 16, set())


def test_same_is_an_answer_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path, grey([0, 255]), count=40)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    #               images    masks    unlabelled task values minutes
    reply = answers("images", "masks", "same", "", "", "", "")
    init({"name": "mine"}, rate=1000, reply=reply)
    assert "same: those with masks, less the test images" in reply.asked[2]
    assert study()["pretrain"]["source"] == "segmentation" and max(study()["grid"]["pretrain_sizes"]) == 24


def test_of_a_split_file_s_parts_the_training_part_alone_is_pretrained_on(tmp_path: Path) -> None:
    made(tmp_path, grey([0, 255]), count=30)
    part = ["test"] * 12 + ["none"] * 4 + ["train"] * 14
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "split.csv").write_text("".join(f"i{at:02d},{part[at]}\n" for at in range(30)))
    assert run("--unlabelled", "same", "--split", "lists/split.csv") == 0
    config = study()
    there = count_images(config, Path("nowhere")).unlabelled["pretrain"]
    assert config["grid"]["pretrain_sizes"] == [0, there] and there == 14
    fewer = resolve(merge(read_config(Path("studies/mine.yaml")), {"segmentation": {"test_size": 5}}))
    pack = packed(tmp_path, fewer, "pretrain")
    spec = pretrain_split_spec(fewer, 14, 0)
    split = pretrain_split(pack, **{key: value for key, value in spec.items() if key != "kind"})
    assert {Path(pack.name(i)).stem for i in split["train"]} == {f"i{at:02d}" for at in range(16, 30)}
    with pytest.raises(InputError, match="15 is larger than the data, 14 images"):
        pretrain_split(pack, **{key: value for key, value in spec.items() if key not in ("kind", "size")}, size=15)


def test_a_note_says_how_to_pretrain_where_no_images_for_it_are_given(tmp_path: Path) -> None:
    made(tmp_path, grey([0, 255]), count=30)
    wanted = Request("mine", Path("images"), Path("masks"))
    how = "no pre-training: --unlabelled same pre-trains on the 18 images with masks that are not for the test"
    assert sum(how in note for note in inspect(wanted).notes) == 1
    picture(99).save(tmp_path / "images" / "other.png")  # better than the same again
    (said,) = (note for note in inspect(wanted).notes if "--unlabelled" in note)
    assert said == "images without a mask can be pre-trained on: --unlabelled with a folder of them"
    (said,) = (note for note in inspect(replace(wanted, unlabelled=Path("images"))).notes if "--unlabelled" in note)
    assert said.startswith("pre-training is on images with masks: the 1 without are left out")


def test_masks_are_read_for_a_time_and_those_that_are_not_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    made(tmp_path, grey([0, 255]), count=60)
    monkeypatch.setattr(look, "LOOKED_AT", 20)
    assert run() == 0
    said = capsys.readouterr().out
    assert "values in all masks; shares of pixels in 20 as the model sees them:" in said and "not read" not in said
    monkeypatch.setattr(look, "SECONDS", 0.0)
    assert run("--force") == 0
    said = capsys.readouterr().out
    assert "values in 20 of 60 masks; " in said
    assert "40 masks were not read, for lack of time: a value found only there stops packing, which names it" in said


def test_a_class_is_rare_by_all_masks_that_were_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "LOOKED_AT", 20)
    made(tmp_path, grey([0, 4, 11]), classes=3, count=60)
    for at, path in enumerate(sorted((tmp_path / "masks").rglob("*.png"))):
        mask = np.asarray(Image.open(path)).copy()
        mask[mask == 11] = 11 if at % 3 else 4  # in 40 masks, none of which are among the 20 whose pixels are looked at
        mask[:4, :4] = 7 if at in (1, 2, 4) else mask[:4, :4]
        Image.fromarray(mask).save(path)
    found = inspect(Request("mine", Path("images"), Path("masks")))
    assert found.values.masks() == {0: 60, 4: 60, 7: 3, 11: 40} and found.sampled == 20
    (rare,) = (note for note in found.notes if note.startswith("rare"))
    assert rare == "rare classes, whose IoU will say little: class_7 (in 3 masks)"


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ([(160, 240), (160, 240)], "240 x 160 pixels"),
        ([(256, 256), (270, 360), (300, 200)], "200 to 360 pixels wide, 256 to 300 high"),
        ([(160, 240), (200, 240)], "240 pixels wide, 160 to 200 high"),
    ],
)
def test_sizes_of_images_are_those_of_each_side(shapes: list[tuple[int, int]], said: str) -> None:
    assert sides_in_words(np.array(shapes)) == said


def test_of_many_unlabelled_images_few_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path, grey([0, 255]))
    (tmp_path / "more").mkdir()
    picture(0, 12, 12).save(tmp_path / "more" / "u0.png")
    for at in range(1, 900):
        (tmp_path / "more" / f"u{at}.png").symlink_to("u0.png")
    opened: list[Path] = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda path, *a, **k: (opened.append(path), real(path, *a, **k))[1])
    found = inspect(Request("mine", Path("images"), Path("masks"), unlabelled=Path("more")))
    assert found.unlabelled == 900
    assert 100 <= sum("more" in str(path) for path in opened) <= 200


@pytest.mark.parametrize(
    ("height", "width", "flags", "size", "patch"),
    [
        (64, 80, {}, 64, 8),
        (300, 300, {"budget": "medium"}, 128, 16),
        (60, 60, {}, 64, 8),
        (28, 28, {}, 24, 3),
        (40, 120, {}, 40, 5),
        (120, 40, {"image_size": 96}, 96, 12),
        (200, 200, {"patch_size": 16}, 64, 16),
        (200, 200, {"image_size": 50, "patch_size": 10}, 50, 10),
    ],
)
def test_the_model_follows_the_images_which_are_stretched_whatever_their_shape(
    tmp_path: Path, height: int, width: int, flags: dict[str, Any], size: int, patch: int
) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for at in range(10):
        picture(at, height, width).save(tmp_path / "images" / f"{at}.png")
        grey([0, 255])(truth(at, 2, height, width), tmp_path / "masks" / f"{at}.png")
    found = inspect(Request("mine", Path("images"), Path("masks"), **flags))
    assert (found.model["image_size"], found.model["patch_size"]) == (size, patch)
    assert yaml.safe_load(study_text(found))["segmentation"]["fit"] == "stretch"
    assert found.looked.shares.sum() == pytest.approx(1) and found.looked.shares[-1] == 0


def test_a_patch_size_that_does_not_divide_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    made(tmp_path, grey([0, 255]))
    assert run("--image-size", "32", "--patch-size", "5") == 2
    assert "does not divide" in capsys.readouterr().err and not Path("studies").exists()


def test_a_class_that_is_lost_at_the_packed_size_is_said(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for at in range(10):
        picture(at, 320, 320).save(tmp_path / "images" / f"{at}.png")
        mask = truth(at, 2, 320, 320)
        mask[1::5, 0:4:3] = 2  # between the pixels that nearest neighbour takes, at 64 of 320
        grey([0, 1, 2])(mask, tmp_path / "masks" / f"{at}.png")
    found = inspect(Request("mine", Path("images"), Path("masks")))
    (note,) = [note for note in found.notes if "class_2 (lost in 10 of 10 masks)" in note]
    side = found.model["patch_size"]
    assert f"in patches of {side} x {side} pixels: " in note and "--image-size" in note
    assert found.looked.masks_with.tolist() == [10, 10, 0]


@pytest.mark.parametrize("bad", [30, 200])
def test_unlabelled_files_that_are_no_images_are_left_out_of_the_sizes(tmp_path: Path, bad: int) -> None:
    made(tmp_path, grey([0, 255]))
    (tmp_path / "more").mkdir()
    for at in range(300):
        file = tmp_path / "more" / f"u{at}.png"
        file.touch() if at < bad else picture(at, 8, 8).save(file)
    wanted = Request("mine", Path("images"), Path("masks"), unlabelled=Path("more"))
    if bad > 150:
        with pytest.raises(InputError, match="of 200 images that were looked at cannot be opened"):
            inspect(wanted)
        return
    found = inspect(wanted)
    text = study_text(found)
    (usable,) = resolve(yaml.safe_load(text))["grid"]["pretrain_sizes"][1:]
    assert 200 < usable <= 270 and "on_bad_image: skip" in text


# At the keyboard


class Typed(io.StringIO):
    """What is typed on a terminal."""

    def isatty(self) -> bool:
        return True


def answers(*said: str) -> Callable[[str], str]:
    left = list(said)

    def reply(question: str) -> str:
        if not left:
            raise EOFError
        asked.append(question)
        return left.pop(0)

    asked: list[str] = []
    reply.asked = asked
    return reply


def test_it_asks_for_what_is_not_given_and_enter_takes_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    made(tmp_path, grey([0, 255]))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    #                name              images masks unlabelled task value 0  255 minutes
    reply = answers("bad name", "own", "nowhere", "", "", "", "", "ground", "", "huge", "")
    init({}, reply=reply, rate=100.0)
    config = study("own")
    assert config["segmentation"]["classes"] == {"0": "ground", "255": "object"}
    assert config["segmentation"]["images"] == "images"
    said = capsys.readouterr().out
    assert "no such folder" in said and "expected a number of minutes" in said and "Sized for 20 minutes" in said
    assert all(question.endswith("]: ") for question in reply.asked)
    order = (
        "Name of the study",
        "have masks",
        "their masks",
        "without masks",
        "sub-folder",
        "mask value 0",
        "255",
        "Min",
    )
    left = iter(reply.asked)
    assert all(any(part in question for question in left) for part in order), "in the order that a person thinks"


@pytest.mark.parametrize("word", ["ignore", "void", "none", "-"])
def test_an_answer_can_ignore_a_value_but_not_all_but_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, word: str
) -> None:
    made(tmp_path, grey([0, 4, 11]), classes=3)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    reply = answers("images", "masks", "", "", "ground", word, word, "ground", "road", word, "")
    init({"name": "mine"}, rate=1000, reply=reply)
    section = study()["segmentation"]
    assert section["classes"] == {"0": "ground", "4": "road"} and section["ignore"] == [11]
    assert "expected two classes or more" in capsys.readouterr().out
    assert "or ignore if its pixels have no class" in reply.asked[-2]


@pytest.mark.parametrize(("answer", "ignored"), [("", [11]), ("rest", [])])
def test_a_name_for_no_class_is_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, ignored: list[int]
) -> None:
    made(tmp_path, grey([0, 4, 11]), classes=3)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    reply = answers("images", "masks", "", "", answer, "")
    init({"name": "mine", "classes": {0: "ground", 4: "road", 11: "void"}}, rate=1000, reply=reply)
    section = study()["segmentation"]
    assert section["ignore"] == ignored and section["classes"].get("11") == (answer or None)


def test_answers_that_end_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path, grey([0, 255]))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    with pytest.raises(InputError, match="No study was written"):
        init({}, reply=answers("own", "images"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "masks"]


@pytest.mark.parametrize("listed", [False, True])
def test_the_command_to_go_on_asks_only_for_the_rest_wherever_answers_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: bool
) -> None:
    made(tmp_path, grey([0, 4, 11]), classes=3)
    if listed:  # without the second value
        (tmp_path / "classes.csv").write_text("0,ground\n11,void\n")
    for at in range(4):
        (tmp_path / f"my kinds/{at % 2}").mkdir(parents=True, exist_ok=True)
        picture(at).save(tmp_path / f"my kinds/{at % 2}/{at}.jpg")
    monkeypatch.setattr(sys, "stdin", Typed())
    names = ["classes.csv", "low road", ""] if listed else ["ground", "low road", "ignore"]
    whole = ["own", "images", "masks", "none", "my kinds", "none", *names, "30"]
    init({}, rate=1000, force=True, reply=answers(*whole))
    wanted = Path("studies/own.yaml").read_text()
    assert "low road" in wanted and "my_kinds" in wanted and study("own")["segmentation"]["ignore"] == [11]
    for count in (2, 5, 7, 8, 9):
        with pytest.raises(InputError, match="To go on with these answers") as caught:
            init({}, rate=1000, force=True, reply=answers(*whole[:count]))
        _, asking, *rest = shlex.split(str(caught.value).splitlines()[-1])
        assert asking == "init" and rest[0] == "--ask"
        left = whole[count + (count == 5) :]  # whether there is a further task is asked with the first one
        monkeypatch.setattr(sys, "stdin", typed := Typed("\n".join([*left, ""])))
        Path("studies/own.yaml").unlink()
        assert main(["init", *rest]) == 0
        assert Path("studies/own.yaml").read_text() == wanted and not typed.read(), count


def test_a_list_of_classes_that_does_not_fit_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    made(tmp_path, grey([0, 4, 11]), classes=3)
    (tmp_path / "classes.csv").write_text("0,ground\n4,road\n12,rider\n")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    reply = answers("images", "masks", "", "", "", "car", "")
    init({"name": "mine"}, rate=1000, reply=reply)
    said = capsys.readouterr().out
    assert "values without a name: 11 (in 12 masks)" in said
    assert "named, but in none of the 12 masks looked at: 12 'rider'" in said
    assert [question for question in reply.asked if "mask value 11" in question] == reply.asked[-2:-1]
    assert study()["segmentation"]["classes"] == {"0": "ground", "4": "road", "12": "rider", "11": "car"}


def test_notes_break_at_words_on_a_terminal_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    line = "  note     " + " ".join(f"word-{at} a/path-{at}.png" for at in range(12))
    say(line, hang=11)
    assert capsys.readouterr().out == f"{line}\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    say(line, hang=11)
    first, *others = capsys.readouterr().out.splitlines()
    assert others and all(len(one) <= 60 for one in (first, *others))
    assert all(re.match(r" {11}\S", one) for one in others)
    assert " ".join([first, *(one.strip() for one in others)]) == line


def test_ctrl_c_on_a_terminal_leaves_nothing_but_the_command_to_go_on(tmp_path: Path) -> None:
    made(tmp_path, grey([0, 255]))
    own, terminal = pty.openpty()
    command = [sys.executable, "-m", "viny", "init", "own"]
    process = subprocess.Popen(
        command,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # whoever runs the tests may ignore it
    )
    os.close(terminal)
    said = b""
    until = time.monotonic() + PATIENCE
    while b"images that have masks" not in said and time.monotonic() < until:
        said += os.read(own, 1000)
    # A signal between the question and the wait for its answer only takes effect at the next one.
    while process.poll() is None and time.monotonic() < until:
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    assert b"viny init --ask own" in said + os.read(own, 1000)
    os.close(own)
    assert process.wait(PATIENCE) == 128 + signal.SIGINT
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "masks"]


# The contact sheet


def looked(
    masks: np.ndarray,
    names: list[str],
    shares: np.ndarray,
    aspect: float = 1.0,
    close_ups: list[CloseUp] | None = None,
) -> Looked:
    """Grey images with these masks."""
    images = np.full((len(masks), 3, *masks.shape[1:]), 100, np.uint8)
    none = np.zeros(len(shares) - 1)
    return Looked(names, images, masks, [aspect] * len(masks), shares, none, none, none, 255, [], close_ups or [])


@pytest.mark.parametrize("classes", [2, 12, 255])
def test_the_contact_sheet_names_classes_and_what_is_ignored(classes: int) -> None:
    names = [f"kind $_{at}" for at in range(classes)]
    masks = np.full((3, 16, 16), IGNORE, np.uint8)
    masks[:, 4:] = np.arange(192).reshape(12, 16) % classes
    shares = np.linspace(1, 2, classes + 1)
    figure = contact_sheet(looked(masks, ["a.png", "$b$.png", "x" * 50], shares / shares.sum()), names, "sheet $")
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts[-1].startswith("ignored")
    shown = [text.rsplit(" ", 2)[0] for text in texts[:-1]]
    assert shown == names[-16:]  # those with most pixels, in order; no name is taken for a formula
    assert len(figure.axes) == 6


@pytest.mark.parametrize("aspect", [9 / 16, 1.0, 2.0])
def test_colours_lie_over_objects_alone_beside_the_bare_image_in_its_shape(aspect: float) -> None:
    mask = np.zeros((1, 320, 320), np.uint8)
    mask[0, 80:240, 80:240] = 1
    mask[0, 280:] = IGNORE
    shares = np.array([0.7, 0.2, 0.1])
    figure = contact_sheet(looked(mask, ["a"], shares, aspect), ["background", "object"], "one")
    bare, drawn = (np.asarray(axes.get_images()[0].get_array()) / 255 for axes in figure.axes)
    assert (bare == 100 / 255).all()
    assert drawn[20, 20] == pytest.approx([100 / 255] * 3)
    orange = np.array([0xE6, 0x9F, 0x00]) / 255
    assert drawn[140, 140] == pytest.approx((100 / 255 + orange) / 2, abs=1 / 255)
    stripes = drawn[290:]
    assert np.ptp(stripes) > 0.2 and np.abs(stripes - stripes[..., :1]).max() < 1e-9  # grey, and not even
    for axes in figure.axes:
        box = axes.get_window_extent()
        assert box.height / box.width == pytest.approx(aspect, rel=0.02)


def test_few_images_on_the_sheet_show_every_class(tmp_path: Path) -> None:
    made(tmp_path, grey([0, 1]), count=40)
    for value, name in ((2, "i07"), (3, "i23")):
        file = next((tmp_path / "masks").rglob(f"{name}.png"))
        mask = np.asarray(Image.open(file)).copy()
        mask[:8] = value
        Image.fromarray(mask).save(file)
    found = inspect(Request("mine", Path("images"), Path("masks")))
    assert len(found.looked.masks) == 6 and {0, 1, 2, 3} <= set(np.unique(found.looked.masks))


def test_classes_too_thin_or_too_rare_to_be_seen_have_close_ups(tmp_path: Path) -> None:
    made(tmp_path, grey([0, 1]), count=40)
    file = next((tmp_path / "masks").rglob("i07.png"))
    mask = np.asarray(Image.open(file)).copy()
    height, width = mask.shape
    mask[:, width // 2] = 2  # a line
    mask[height // 4, 1] = 3  # a spot
    Image.fromarray(mask).save(file)
    found = inspect(Request("mine", Path("images"), Path("masks"))).looked
    assert [piece.index for piece in found.close_ups] == [2, 3]
    line, spot = found.close_ups
    assert {Path(piece.name).stem for piece in found.close_ups} == {"i07"}
    assert (line.mask == 2).any(1).all()  # from top to bottom
    assert np.argwhere(line.mask == 2)[:, 1].mean() == pytest.approx(len(line.mask) / 2, abs=CLOSER * LARGE / width)
    assert (spot.mask == 3).sum() == pytest.approx((CLOSER * LARGE) ** 2 / mask.size, rel=0.1)
    assert spot.image.shape == (3, *spot.mask.shape)


def test_close_ups_are_few_and_those_of_the_commonest(tmp_path: Path) -> None:
    made(tmp_path, grey([0, 1]))
    file = next((tmp_path / "masks").rglob("i07.png"))
    mask = np.asarray(Image.open(file)).copy()
    for value in range(2, 12):  # a dotted line each, the later the longer
        mask[value, : 2 * value : 2] = value
    Image.fromarray(mask).save(file)
    found = inspect(Request("mine", Path("images"), Path("masks"), image_size=max(mask.shape))).looked
    assert [piece.index for piece in found.close_ups] == list(range(6, 12))


def test_close_ups_stand_below_with_their_class_bare_and_under_the_mask() -> None:
    mask = np.zeros((1, 64, 64), np.uint8)
    piece = np.zeros((64, 64), np.uint8)
    piece[20:40] = 1
    one = CloseUp(1, "$b$.png", np.full((3, 64, 64), 100, np.uint8), piece, 0.5)
    figure = contact_sheet(looked(mask, ["a"], np.array([1.0, 0.0, 0.0]), 0.5, [one]), ["floor", "$ pole"], "sheet")
    *_, bare, under = figure.axes
    assert bare.get_title() == "$ pole\n$b$.png"
    assert (np.asarray(bare.get_images()[0].get_array()) == 100).all()
    drawn = np.asarray(under.get_images()[0].get_array())
    assert (drawn[5, 5] != drawn[30, 30]).any() and (drawn[30, 30] != 100).any()
    assert bare.get_window_extent().y0 > under.get_window_extent().y1
    assert figure.axes[0].get_window_extent().y0 > bare.get_window_extent().y1
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["floor 100 %", "$ pole 0.0 %"]
    assert "closer" in legend.get_title().get_text()


def test_the_coding_of_the_study_is_that_of_the_sheet(tmp_path: Path) -> None:
    made(tmp_path, grey([5, 3]))
    found = inspect(Request("mine", Path("images"), Path("masks"), classes={3: "b", 5: "a"}))
    coding = mask_coding({"3": "b", "5": "a"}, [])
    assert found.coding.names == coding["mask_classes"] == ["b", "a"]
    share = np.mean([truth(at) == 0 for at in range(12)])  # value 5, class 'a'
    assert found.looked.shares[1] == pytest.approx(share)
    check_sizes(resolve(yaml.safe_load(study_text(found))), {"segmentation": 12})


def test_a_number_of_classes_names_the_values_from_0() -> None:
    assert parse_classes("3") == {0: "class_0", 1: "class_1", 2: "class_2"}
    with pytest.raises(InputError, match="value=name"):
        parse_classes("1")


@pytest.mark.parametrize("name", ["my pets", "-x", "a/b", "x\n", ""])
def test_a_name_that_no_study_may_have_is_answered_in_words(name: str) -> None:
    with pytest.raises(InputError, match="a study's name has letters, digits, - and _, no spaces"):
        study_name(name)
