"""Users' folders as they are found: what is passed over, what cannot be listed, names that nearly match, own splits."""

from __future__ import annotations

import os
import socket
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from viny.cli import main
from viny.data.coco import LEGEND
from viny.data.folders import images_below, list_below
from viny.data.pack import TEST, TRAIN
from viny.data.packing import build_pack, describe
from viny.data.pairs import pair
from viny.data.parts import (
    BY_FOLDERS,
    contradicting,
    own_split,
    part_of,
    parts_among,
    parts_of,
    rank,
    split_by_file,
    split_by_folders,
)
from viny.data.sources import Listing, list_imagenet, list_source
from viny.runtime.errors import InputError
from viny.study.config import resolve
from viny.study.inventory import count_images, folder_report
from viny.study.specs import pack_spec
from viny.tools.newstudy.look import Request, inspect
from viny.tools.newstudy.study_file import study_text

ACCENT = "caf\N{LATIN SMALL LETTER E WITH ACUTE}"
APART = unicodedata.normalize("NFD", ACCENT)  # as macOS may write it


def touch(root: Path, *names: str) -> Path:
    """Files that nobody opens, by their paths below a folder."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def drawn(root: Path, *names: str) -> Path:
    """Images that can be read: masks of values 0 and 1 if the path holds 'mask', else pictures."""
    for at, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(at).integers(0, 2, (16, 16), np.uint8)
        Image.fromarray(pixels if "mask" in name else np.stack([255 * pixels] * 3, 2)).save(path)
    return root


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def study(**changes: Any) -> dict[str, Any]:
    segmentation = {"source": "folder", "images": "images", "masks": "masks", "classes": 2, "test_size": 2}
    raw: dict[str, Any] = {
        "study": "own",
        "model": {"image_size": 16, "patch_size": 4},
        "grid": {"pretrain_sizes": [0], "intermediates": ["none"], "finetune_sizes": [4], "seeds": [0]},
    }
    raw["segmentation"] = segmentation | changes.pop("segmentation", {})
    for task in changes.get("intermediate", {}):
        raw["grid"]["intermediates"].append(task)
    if "pretrain" in changes:
        raw["grid"]["pretrain_sizes"] = [0, 2]
    return resolve(raw | changes)


# What is passed over


def test_files_that_are_no_images_are_counted_by_their_ending(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.HEIC", "deep/c.heic", "d.dcm", "notes.txt", "README", "x.jpg.part", ".DS_Store")
    found = list_below(tmp_path)
    assert names(found.images) == ["a.jpg"]
    assert found.passed_over == {"heic": 2, "dcm": 1, "txt": 1, "": 1, "part": 1}
    assert found.pictures == {"dcm": 1, "heic": 2}
    first, second = found.report()
    assert "3 files have formats that are not read and are passed over: 1 .dcm, 2 .heic; convert" in first
    assert "1 without an ending, 1 .part, 1 .txt, 1 hidden" in second


def test_an_ending_never_brings_odd_characters_into_a_line(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.\x1b[2J", "c.x\ny", f"d.{'e' * 200}")
    os.close(os.open(os.fsencode(tmp_path) + b"/f.\xff\xfe", os.O_CREAT | os.O_WRONLY))
    (tmp_path / ".\x1bhidden").mkdir()
    assert list_below(tmp_path).passed_over == {"": 4}
    assert all(line.isprintable() for line in list_below(tmp_path).report())


def test_a_folder_of_unread_formats_alone_says_so(tmp_path: Path) -> None:
    touch(tmp_path, "a.heic", "b.heic")
    with pytest.raises(InputError, match=r"no images in it or below.*, found 2 \.heic; convert them"):
        images_below(tmp_path)


def test_hidden_and_system_folders_are_not_entered_but_counted(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", ".old/b.jpg", ".old/deep/c.png", "@eaDir/a.jpg/SYNO_THUMB.jpg", "__MACOSX/._a.jpg")
    touch(tmp_path, ".git/annex/x.jpg", "Thumbs.db")
    found = list_below(tmp_path)
    assert names(found.images) == ["a.jpg"]
    (line,) = found.report()
    assert "1 .db, folder .git, folder .old (2 images), folder @eaDir (1 images), folder __MACOSX" in line


def test_thumbnails_are_taken_and_said(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "thumbs/a.jpg", "Thumbnails/a.jpg", "b_thumb.jpg", "thumbtack.jpg")
    found = list_below(tmp_path)
    assert (len(found.images), found.small) == (5, 3)
    assert "3 images are named as thumbnails, or lie in folders that are" in found.report()[0]


def test_what_is_no_file_is_no_image(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "folder.jpg/b.png")
    os.mkfifo(tmp_path / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as one:
        place = os.open(tmp_path, os.O_RDONLY)  # the path of a socket may have about 100 characters
        one.bind(f"/proc/self/fd/{place}/socket.jpg")
        os.close(place)
    found = list_below(tmp_path)
    assert found.names == ["a.jpg", "folder.jpg/b.png"]
    assert found.passed_over == {"jpg": 2}


# Links and folders that cannot be listed


def test_a_folder_is_listed_once_by_its_own_path(tmp_path: Path) -> None:
    touch(tmp_path / "data", "real/a.jpg", "real/deep/b.jpg")
    touch(tmp_path / "away", "c.jpg")
    for name, target in (("aa", "real"), ("zz", "real/deep"), ("up", "."), ("m1", "../away"), ("m2", "../away")):
        (tmp_path / "data" / name).symlink_to(target)
    found = list_below(tmp_path / "data")
    assert found.names == ["m1/c.jpg", "real/a.jpg", "real/deep/b.jpg"]
    assert found.again == 4
    assert "4 links to folders listed already" in found.report()[0]


def test_links_to_no_file_are_named_and_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    (tmp_path / "gone.jpg").symlink_to(".annex/gone")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "folder").symlink_to(".annex/folder")  # no ending: it may have been a folder of images
    (tmp_path / "gone.txt").symlink_to("nowhere")
    found = list_below(tmp_path)
    assert names(found.missing) == ["folder", "gone.jpg", "loop.jpg"]
    assert len(found.images) == 3
    with pytest.raises(InputError, match=r"3 of 6 files are links .*gone\.jpg.*fetch .* or set on_bad_image: skip"):
        images_below(tmp_path)


@pytest.mark.parametrize("where", ["images", "masks", "more", "kinds/a"])
def test_links_to_no_file_end_in_a_sentence_or_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, where: str
) -> None:
    monkeypatch.chdir(tmp_path)
    drawn(
        tmp_path,
        *(f"{folder}/{i}.png" for folder in ("images", "masks", "more", "kinds/a", "kinds/b") for i in range(12)),
    )
    (tmp_path / where / "3.png").unlink()
    (tmp_path / where / "3.png").symlink_to("../.annex/SHA256-3")
    wanted = Request("s", Path("images"), Path("masks"), unlabelled=Path("more"), tasks={"kinds": Path("kinds")})
    found = inspect(wanted)
    assert any("links that lead nowhere, left out: 3.png" in note for note in found.notes)
    text = study_text(found)
    assert "on_bad_image: skip" in text
    Path("studies").mkdir()
    Path("studies/s.yaml").write_text(text, encoding="utf-8")
    assert main(["check", "studies/s.yaml"]) == 0
    assert "links that lead nowhere, left out: 3.png" in capsys.readouterr().out
    name = {"more": "pretrain", "kinds/a": "kinds"}.get(where, "segmentation")
    config = resolve({**study(), **yaml.safe_load(text)})
    (tmp_path / "pack").mkdir()
    manifest = build_pack(pack_spec(config, name), tmp_path / "pack", threads=1)
    assert manifest["skipped"][0]["reason"] == "a link that leads nowhere"
    assert "3.png" in describe(manifest)
    Path("studies/s.yaml").write_text(text.replace("on_bad_image: skip", "on_bad_image: error"), encoding="utf-8")
    assert main(["check", "studies/s.yaml"]) == 2
    said = capsys.readouterr().err
    assert f"{where}/3.png" in said and "on_bad_image: skip" in said


def test_more_links_to_no_file_than_files_are_never_skipped(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    for i in range(2):
        (tmp_path / f"{i}.jpg").symlink_to("nowhere")
    spec = {"source": "folder", "path": str(tmp_path), "holds": "images", "on_bad_image": "skip"}
    with pytest.raises(InputError, match=r"2 of 3 files are links .*more than half"):
        list_source(spec)


@pytest.mark.parametrize("where", ["images", "masks"])
def test_links_to_no_file_are_counted_in_each_folder_by_itself(tmp_path: Path, where: str) -> None:
    touch(tmp_path, *(f"{folder}/{i}.png" for folder in ("images", "masks") for i in range(10)))
    for i in range(6):
        (tmp_path / where / f"{i}.png").unlink()
        (tmp_path / where / f"{i}.png").symlink_to("nowhere")
    with pytest.raises(InputError, match=rf"{where}: 6 of 10 files are links .*more than half"):
        pair(tmp_path / "images", tmp_path / "masks", skip_missing=True)
    (tmp_path / where / "5.png").unlink()
    touch(tmp_path, f"{where}/5.png")
    assert len(pair(tmp_path / "images", tmp_path / "masks", skip_missing=True).images) == 5


def test_the_list_of_classes_that_viny_writes_is_not_called_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", LEGEND)
    assert list_below(tmp_path).report() == []
    touch(tmp_path, "other.csv")
    assert "1 .csv" in list_below(tmp_path).report()[0]


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), OSError(40, "Too many levels"), OSError(5, "I/O")]
)
def test_folders_that_cannot_be_listed_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, error: OSError
) -> None:
    monkeypatch.chdir(tmp_path)
    drawn(
        tmp_path,
        *(f"{folder}/{i}.png" for folder in ("images/shut", "masks/shut", "kinds/a", "kinds/b") for i in range(9)),
    )
    Path("s.yaml").write_text(
        "study: s\ngrid: {pretrain_sizes: [0], intermediates: [none], finetune_sizes: [4], seeds: [0]}\n"
        "segmentation: {source: folder, images: images, masks: masks, classes: 2, test_size: 2}\n",
        encoding="utf-8",
    )
    assert main(["check", "s.yaml"]) == 0
    real = os.scandir

    def scandir(path: Any = ".") -> Any:
        if os.fspath(path).endswith(("shut", "kinds/a")):
            raise error
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    for call in (
        lambda: images_below(Path("images")),
        lambda: pair(Path("images"), Path("masks")),
        lambda: list_imagenet(Path("kinds")),
    ):
        with pytest.raises(InputError, match=r"(shut|kinds/a): cannot be listed \("):
            call()
    capsys.readouterr()
    for command in (
        ["check", "s.yaml"],
        ["plan", "s.yaml", "--rate", "500"],
        ["init", "t", "--images", "images", "--masks", "masks"],
    ):
        assert main(command) == 2
        assert "shut: cannot be listed" in capsys.readouterr().err


def test_a_folder_that_vanishes_while_it_is_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jpg", "gone/b.jpg")
    real = os.scandir

    def scandir(path: Any = ".") -> Any:
        if os.fspath(path).endswith("gone"):
            raise FileNotFoundError(2, "No such file or directory", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match=r"gone: cannot be listed \(No such file"):
        list_below(tmp_path)


def test_a_path_longer_than_the_system_allows_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        list_below(tmp_path / ("x" * 300))
    place = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):  # 5,000 characters
        os.mkdir("d" * 250, dir_fd=place)
        deeper = os.open("d" * 250, os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = deeper
    os.close(place)
    with pytest.raises(InputError, match="cannot be listed"):
        list_below(tmp_path)


@pytest.mark.parametrize("name", [b"a\xff.jpg", b"a\n.jpg", b"\x1b[31m.jpg", "a\u2028.jpg".encode()])
def test_names_that_cannot_be_written_down_are_refused(tmp_path: Path, name: bytes) -> None:
    for folder, make in ((b"/", None), (b"/links/", ".annex/none")):
        where = os.fsencode(tmp_path) + b"/" + str(len(folder)).encode()
        os.makedirs(where)
        if make:
            os.symlink(make, where + b"/" + name)
        else:
            os.close(os.open(where + b"/" + name, os.O_CREAT | os.O_WRONLY))
        with pytest.raises(InputError, match="control characters or is not UTF-8; rename it"):
            list_below(Path(os.fsdecode(where)))


# Names that nearly match


def test_accents_in_either_encoding_match(tmp_path: Path) -> None:
    touch(tmp_path, f"images/{ACCENT}/1.jpg", f"images/{APART}2.jpg", f"masks/{APART}/1.png", f"masks/{ACCENT}2.png")
    pairs = pair(tmp_path / "images", tmp_path / "masks")
    assert (names(pairs.masks), pairs.report()) == (["1.png", f"{ACCENT}2.png"], [])
    touch(tmp_path, f"m2/{APART}/1_m\u00e4sk.png", f"m2/{ACCENT}2_ma\u0308sk.png")
    assert len(pair(tmp_path / "images", tmp_path / "m2", "_m\u00e4sk").images) == 2
    (tmp_path / "split.csv").write_text(f"{APART}/1.jpg,train\n{ACCENT}2,test\n", encoding="utf-8")
    assert split_by_file(tmp_path / "split.csv", pairs.images, tmp_path / "images") == [TRAIN, TEST]


def test_two_files_that_only_encode_accents_differently_are_refused_in_escapes(tmp_path: Path) -> None:
    touch(tmp_path, f"images/{ACCENT}.jpg", f"images/{APART}.jpg", "images/b.jpg", f"masks/{ACCENT}.png")
    with pytest.raises(InputError, match=r"is the mask of .*cafe\\u0301\.jpg.* or .*caf\\xe9\.jpg"):
        pair(tmp_path / "images", tmp_path / "masks")
    touch(tmp_path / "kinds", f"{ACCENT}/1.jpg", f"{APART}/1.jpg")
    with pytest.raises(InputError, match=r"two folders are called .* with accents encoded differently"):
        list_source(
            {"source": "folder", "path": str(tmp_path / "kinds"), "holds": "classes", "held_out": 0.2, "split": ""}
        )


def test_the_order_of_images_is_the_same_whichever_system_wrote_their_names() -> None:
    assert rank(ACCENT, "x") == rank(APART, "x") != rank("cafe", "x")


def test_capital_letters_matter_only_if_nothing_else_fits(tmp_path: Path) -> None:
    touch(tmp_path, "images/IMG_1.JPG", "images/IMG_2.JPG", "images/X.jpg", "images/x.jpg")
    touch(tmp_path, "masks/img_1.png", "masks/img_2_MASK.png", "masks/x.png", "masks/X.png")
    pairs = pair(tmp_path / "images", tmp_path / "masks")
    assert dict(zip(names(pairs.images), names(pairs.masks), strict=True)) == {
        "IMG_1.JPG": "img_1.png",
        "X.jpg": "X.png",
        "x.jpg": "x.png",
    }
    assert "masks matched although capital and small letters differ: 1 (img_1.png)" in pairs.report()
    assert names(pair(tmp_path / "images", tmp_path / "masks", "_mask").masks) == ["img_2_MASK.png"]


def test_a_name_in_several_folders_matches_none_of_them(tmp_path: Path) -> None:
    touch(
        tmp_path, "images/a/1.jpg", "images/b/1.jpg", "images/b/2.jpg", "masks/a/1.png", "masks/c/1.png", "masks/2.png"
    )
    pairs = pair(tmp_path / "images", tmp_path / "masks")
    assert [path.parent.name for path in pairs.masks] == ["a", "masks"]  # masks/c/1.png is nobody's, b/1.jpg has none
    assert names(pairs.several) == ["1.png"] and names(pairs.images_without_mask) == ["1.jpg"]
    assert (
        "of these masks, with a name that several images or masks have, so that none is matched: 1 (1.png)"
        in pairs.report()
    )
    touch(tmp_path, "flat/1.png")
    with pytest.raises(InputError, match="each name is that of several images or masks; give both folders the same"):
        pair(tmp_path / "images", tmp_path / "flat")


def test_a_match_by_name_alone_between_other_folders_is_said(tmp_path: Path) -> None:
    touch(tmp_path, *(f"images/p1/{i}.jpg" for i in range(3)), *(f"masks/p2/{i}.png" for i in range(3)))
    (line,) = pair(tmp_path / "images", tmp_path / "masks").report()
    assert line.startswith(
        "masks matched by name alone, as image and mask are in subfolders of different names: 3 (0.png"
    )


def test_several_masks_of_one_image_are_said_and_never_half_guessed(tmp_path: Path) -> None:
    touch(tmp_path, *(f"images/{n}.jpg" for n in "abcd"))
    touch(tmp_path, *(f"masks/{n}_{what}.png" for n in "abcd" for what in ("ids", "colour")))
    with pytest.raises(InputError, match=r"to one of _(colour|ids) \(4 masks\), _(colour|ids) \(4 masks\)"):
        pair(tmp_path / "images", tmp_path / "masks")
    pairs = pair(tmp_path / "images", tmp_path / "masks", "_ids")
    assert (
        "of these masks, with more added to the name of an image that has a mask, and not read: 4" in pairs.report()[1]
    )


# The author's own split


PARTED = ("train", "test")
PARTS = {
    "train": (
        "train",
        "Training",
        "trainval",
        "train2017",
        "TRAIN_images",
        "seg_train",
        "1_train",
        "imagesTr",
        "segTrain",
        "train-val",
    ),
    "val": ("val", "valid", "Validation", "val2017", "dev", "labels_val", "imagesVal", "eval", "Evaluation"),
    "test": ("test", "testing", "test_set", "labelsTs", "holdout", "held_out", "hold-out", "test-dev2017"),
    "pred": ("pred", "seg_pred", "predict", "unlabeled2017", "unlabelled", "train_unlabelled"),
    None: ("trains", "validated", "contest", "tested", "images", "", "strain", "datasets", "train_test", "Trier"),
}


@pytest.mark.parametrize(("part", "name"), [(part, name) for part, every in PARTS.items() for name in every])
def test_folders_are_called_by_their_part(name: str, part: str | None) -> None:
    assert part_of(name) == part


def test_folders_are_parts_only_beside_their_partners() -> None:
    assert parts_among(["seg_train", "seg_test", "seg_pred"]) == {
        "seg_train": "train",
        "seg_test": "test",
        "seg_pred": "pred",
    }
    assert parts_among(["train_a", "train_b", "val"]) == {"train_a": "train", "train_b": "train", "val": "val"}
    assert set(parts_among(["train", "val", "bus", "train station"])) == {"train", "val"}
    for classes in (
        ["train", "bus"],
        ["train station", "test tube", "car"],
        ["train_station", "test_tube"],
        ["eval", "test"],
    ):
        assert parts_among(classes) == {}


@pytest.mark.parametrize(
    ("folders", "parts"),
    [
        ("seg_train seg_test", "train test"),
        ("imagesTr imagesTs", "train test"),
        ("1_train 2_val", "train val"),
        ("train eval pred", "train val pred"),
        ("seg_train/seg_train seg_test/seg_test", "train test"),
        ("training/train training/val training/test", "train val test"),  # the outer level does not split
        ("train/a/val train/b/train", "val train"),
        ("train/train train/val test", "train val test"),  # the author's validation part is within the one for training
        ("a/train b/val", "train val"),
        ("train/car train/train val/car val/train", "train train val val"),  # a class called train
        ("train bus", "- -"),
        ("train/train train/test test/train test/test", "train - - test"),
        ("train/test test/train", "- -"),
    ],
)
def test_the_innermost_level_that_splits_decides(folders: str, parts: str) -> None:
    names = [f"{folder}/1.jpg" for folder in folders.split()]
    assert [part or "-" for part in parts_of(names)] == parts.split()
    assert bool(contradicting(names)) == ("train/test test/train" in folders)


def test_levels_that_contradict_are_said_and_refused_as_a_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = [f"{outer}/{inner}/{outer}{inner}{i}" for outer in PARTED for inner in PARTED for i in range(3)]
    drawn(tmp_path, *(f"images/{file}.png" for file in files), *(f"masks/{file}.png" for file in files))
    found = inspect(Request("s", Path("images"), Path("masks")))
    assert found.wanted.split is None
    assert any("name different parts (test/train, train/test), so which images" in note for note in found.notes)
    assert any("name different parts (test/train, train/test)" in line for line in folder_report(study()))
    with pytest.raises(InputError, match="within folders name different parts: test/train, train/test; give"):
        count_images(study(segmentation={"split": BY_FOLDERS, "test_size": 0}), tmp_path)


def test_parts_with_other_words_around_them_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = [f"{part}/{part}{i}" for part in ("train_rome", "test_oslo") for i in range(4)]
    drawn(tmp_path, *(f"images/{file}.png" for file in files), *(f"masks/{file}.png" for file in files))
    assert any("have names of parts (test_oslo, train_rome), but no two" in line for line in folder_report(study()))


def test_images_for_prediction_are_counted_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = [f"seg_{part}/{part}{i}" for part in ("train", "test", "pred") for i in range(4)]
    drawn(tmp_path, *(f"images/{file}.png" for file in files), *(f"masks/{file}.png" for file in files))
    config = study(segmentation={"split": BY_FOLDERS, "test_size": 0})
    listing = list_source(pack_spec(config, "segmentation"))
    assert (listing.parts.count(TRAIN), listing.parts.count(TEST), listing.left_out) == (4, 4, {"pred": 4})
    assert "; 4 images in pred are left out" in listing.kept


def test_validation_images_are_tested_on_or_left_out() -> None:
    two = ["train/a.jpg", "train/b.jpg", "Val/c.jpg"]
    assert split_by_folders(two, Path()) == ([TRAIN, TRAIN, TEST], {"train": 2, "val": 1})
    three = [*two, "city/test/d.jpg"]
    assert split_by_folders(three, Path())[0] == [TRAIN, TRAIN, None, TEST]
    assert own_split(three) == {"train": 2, "val": 1, "test": 1}
    for none in (["train/a.jpg", "b.jpg"], ["val/a.jpg", "test/b.jpg"], ["a.jpg"], ["train.jpg", "test.jpg"]):
        assert own_split(none) == {}
        with pytest.raises(InputError, match="needs images in subfolders train and val or test"):
            split_by_folders(none, Path())
    with pytest.raises(InputError, match=r"1 of 4 images are in no folder called train, val or test: e\.jpg"):
        split_by_folders([*two, "e.jpg"], Path())


LAYOUTS: dict[str, tuple[str, str, str, str]] = {  # images, masks, and where each is below them
    "mmsegmentation": ("img_dir", "mask_dir", "{part}/{i}.png", "{part}/{i}.png"),
    "by part": ("data", "data", "{part}/images/{i}.png", "{part}/masks/{i}.png"),
    "one folder": ("data", "data", "{part}/{i}.png", "{part}/{i}_mask.png"),
    "named for part and kind": ("data", "data", "images_{part}/{i}.png", "masks_{part}/{i}.png"),
    "named in two folders": ("images", "masks", "{part}-images/{i}.png", "{part}-masks/{i}.png"),
    "flat masks": ("images", "masks", "{part}/{part}{i}.png", "{part}{i}.png"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("parts", [{"train": 12, "valid": 5}, {"Training": 12, "val": 3, "test": 4}])
def test_init_keeps_the_authors_split(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    layout: str,
    parts: dict[str, int],
) -> None:
    monkeypatch.chdir(tmp_path)
    images, masks, image, mask = LAYOUTS[layout]
    for part, count in parts.items():
        for i in range(count):
            drawn(tmp_path, f"{images}/{image.format(part=part, i=i)}", f"{masks}/{mask.format(part=part, i=i)}")
    found = inspect(Request("s", Path(images), Path(masks)))
    held = parts.get("test", parts.get("valid"))
    assert any("the author's split is kept (train 12, val" in note for note in found.notes)
    text = study_text(found)
    assert (
        f"split: {BY_FOLDERS} # by the folders train, val and test, as the author did; the test part has {held}" in text
    )
    config = resolve(yaml.safe_load(text))
    listing = list_source(pack_spec(config, "segmentation"))
    assert (listing.parts.count(TRAIN), listing.parts.count(TEST)) == (12, held)
    wrong = [p for p, code in zip(listing.images, listing.parts, strict=True) if ("rain" in str(p)) != (code == TRAIN)]
    assert not wrong
    assert count_images(config, tmp_path).given == (12, held)
    said = "\n".join(folder_report(config))
    assert f"12 for training, {held} held out" in said and "the author's split is kept" in said
    if "test" in parts:
        assert "3 images in val are left out, neither trained nor tested on" in said
        (tmp_path / "pack").mkdir()
        manifest = build_pack(pack_spec(config, "segmentation"), tmp_path / "pack", threads=1)
        assert (manifest["count"], manifest["left_out"]) == (16, {"val": 3})
        assert "images in no part that is used: val 3" in describe(manifest)


def test_a_study_that_names_no_split_pools_the_folders_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = [f"{part}/{part}{i}" for part, count in (("train", 6), ("val", 3)) for i in range(count)]
    drawn(tmp_path, *(f"images/{file}.png" for file in files), *(f"masks/{file}.png" for file in files))
    config = study()
    assert list_source(pack_spec(config, "segmentation")).parts == []
    (line,) = [line for line in folder_report(config) if "author" in line]
    assert "(train 6, val 3), which this study pools and splits anew; segmentation.split: folders keeps it" in line
    assert line in count_images(config, tmp_path).notes  # which a plan and a run print
    kept = study(segmentation={"split": BY_FOLDERS, "test_size": 0})
    assert count_images(kept, tmp_path).notes == ()
    drawn(tmp_path, "images/extra.png", "masks/extra.png")
    assert any("with 1 images in neither" in line for line in folder_report(config))
    with pytest.raises(InputError, match="1 of 10 images are in no folder called train"):
        count_images(study(segmentation={"split": BY_FOLDERS, "test_size": 0}), tmp_path)
    (tmp_path / "split.csv").write_text(
        "".join(f"{p.stem},train\n" for p in images_below(Path("images"))[1:]) + "extra,test\n"
    )
    assert not any("author" in line for line in folder_report(study(segmentation={"split": "split.csv"})))


@pytest.mark.parametrize("place", ["", "images", "ImageSets/Segmentation"])
def test_lists_of_the_authors_split_are_not_passed_over_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    drawn(tmp_path, *(f"{folder}/{i}.png" for folder in ("images", "masks") for i in range(12)))
    touch(tmp_path, f"{place}/train.txt".lstrip("/"))
    assert not any("lists" in line for line in folder_report(study()))
    touch(tmp_path, f"{place}/val.txt".lstrip("/"))
    said = [line for line in folder_report(study()) if "lists that look like the author's split are not used" in line]
    assert len(said) == 1 and "val.txt; split takes one file with lines image,part" in said[0]
    assert said[0] in count_images(study(), tmp_path).notes
    assert any("lists that look like" in note for note in inspect(Request("s", Path("images"), Path("masks"))).notes)
    (tmp_path / "split.csv").write_text("".join(f"{i},{'test' if i < 3 else 'train'}\n" for i in range(12)))
    assert not any("lists" in line for line in folder_report(study(segmentation={"split": "split.csv"})))


def test_names_that_begin_like_a_split_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = [f"{part}_{i}.png" for part, count in (("train", 6), ("val", 3)) for i in range(count)]
    drawn(tmp_path, *(f"{folder}/{file}" for folder in ("images", "masks") for file in files))
    assert any("names begin like their author's split (train 6, val 3)" in line for line in folder_report(study()))
    drawn(tmp_path, "images/other.png", "masks/other.png")
    assert not any("author" in line for line in folder_report(study()))


def test_a_part_beside_the_folder_that_is_named_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    drawn(
        tmp_path,
        *(f"{part}/{kind}/{i}.png" for part in ("train", "val") for kind in ("images", "masks") for i in range(6)),
    )
    config = study(segmentation={"images": "train/images", "masks": "train/masks"})
    assert any("not what lies beside it" in line and "val/images" in line for line in folder_report(config))


@pytest.mark.parametrize(
    ("used", "beside"), [("images_train", "images_val"), ("imagesTr", "imagesTs"), ("a_train", "a_dev")]
)
def test_a_part_beside_the_one_that_is_used_is_said_whatever_else_its_name_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used: str, beside: str
) -> None:
    monkeypatch.chdir(tmp_path)
    masks = [name.replace("images", "labels").replace("a_", "a_masks_") for name in (used, beside)]
    drawn(tmp_path, *(f"{folder}/{i}.png" for folder in (used, beside, *masks) for i in range(6)))
    lines = folder_report(study(segmentation={"images": used, "masks": masks[0], "ignore": [255]}))
    (line,) = [line for line in lines if "not what lies beside it" in line]
    assert line.count(f"/{beside};") == 1 and masks[1] not in line and masks[0] not in line


@pytest.mark.parametrize("split", ["", BY_FOLDERS])
def test_parts_of_class_folders_are_kept_or_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    monkeypatch.chdir(tmp_path)
    drawn(tmp_path, *(f"images/{i}.png" for i in range(6)), *(f"masks/{i}.png" for i in range(6)))
    for part, count in (("train", 4), ("val", 2), ("test", 3)):
        drawn(tmp_path, *(f"kinds/{part}/{kind}/{i}.jpg" for kind in ("sea", "wood") for i in range(count)))
    drawn(tmp_path, "kinds/more/x.jpg", "kinds/y.jpg", "kinds/.hidden/z.jpg")
    config = study(intermediate={"kinds": {"source": "folder", "path": "kinds"} | ({"split": split} if split else {})})
    listing = list_source(pack_spec(config, "kinds"))
    assert (listing.parts.count(TRAIN), listing.parts.count(TEST)) == (8, 6)
    assert listing.left_out == {"val": 4, "more": 1}
    said = "\n".join(folder_report(config))
    for words in (
        "kinds/val: 4 images, neither trained nor tested on, as train and test are used",
        "kinds/more: 1 images",
        "1 images are in no class folder, left out: y.jpg",
        "folder .hidden (1 images)",
    ):
        assert words in said
    (tmp_path / "kinds" / "test").rename(tmp_path / "aside")
    listing = list_source(pack_spec(config, "kinds"))
    assert listing.parts.count(TEST) == 4 and listing.left_out == {"more": 1}
    touch(tmp_path, "kinds/test/1.jpg", "kinds/test/2.jpg")  # a test part whose classes nobody tells
    listing = list_source(pack_spec(config, "kinds"))
    assert listing.parts.count(TEST) == 4 and listing.left_out == {"test": 2, "more": 1}


def test_a_known_data_set_that_is_there_but_broken_is_not_passed_over(tmp_path: Path) -> None:
    config = study(pretrain={"source": "imagenet", "path": str(tmp_path)})
    assert count_images(_without_own(config), tmp_path).packed["pretrain"] is None
    touch(tmp_path, "train/n01/a.JPEG", "train/n01/b.heic", "train/n02/a.JPEG", "train/n02/deeper/c.JPEG")
    said = [line for line in folder_report(_without_own(config)) if line.startswith("pretrain")]
    assert "pretrain" in said[0] and "folders in a class folder are left out: deeper" in said[0]
    assert "1 files have formats that are not read and are passed over: 1 .heic" in said[1]
    (tmp_path / "train/n01/gone.JPEG").symlink_to("nowhere")
    with pytest.raises(InputError, match=r"1 of 3 files are links that lead nowhere"):
        count_images(_without_own(config), tmp_path)


def _without_own(config: dict[str, Any]) -> dict[str, Any]:
    """The same settings with labelled images that the project makes."""
    synthetic = resolve({"study": "own", "segmentation": {"source": "synthetic"}})
    return config | {"segmentation": synthetic["segmentation"], "synthetic": synthetic["synthetic"]}


@pytest.mark.parametrize("tops", [["val", "test"], ["train"], ["train", "train2"], ["seg_train", "seg_pred"]])
def test_parts_alone_are_never_taken_for_classes(tmp_path: Path, tops: list[str]) -> None:
    touch(tmp_path, *(f"{top}/{kind}/{i}.jpg" for top in tops for kind in ("sea", "wood") for i in range(3)))
    spec = {"source": "folder", "path": str(tmp_path), "holds": "classes", "held_out": 0.2, "split": ""}
    with pytest.raises(InputError, match="expected folders train and test, or train and val, of class folders"):
        list_source(spec)


def classes_of(path: Path, split: str = "") -> Listing:
    return list_source({"source": "folder", "path": str(path), "holds": "classes", "held_out": 0.2, "split": split})


@pytest.mark.parametrize("layout", ["seg_{}", "seg_{0}/seg_{0}", "{}/images", "images_{}", "{}_data/{}", "1-{}"])
def test_parts_of_class_folders_may_have_other_words_in_their_names(tmp_path: Path, layout: str) -> None:
    folder = layout.replace("{}", "{0}")
    for part, count in (("train", 3), ("test", 2), ("pred", 1)):
        touch(tmp_path, *(f"{folder.format(part)}/{kind}/{i}.jpg" for kind in ("sea", "wood") for i in range(count)))
    listing = classes_of(tmp_path)
    assert (listing.classes, listing.parts.count(TRAIN), listing.parts.count(TEST)) == (["sea", "wood"], 6, 4)
    assert list(listing.left_out.values()) == [2]
    assert any("pred" in note and "2 images, neither trained nor tested on" in note for note in listing.notes)


def test_classes_called_as_parts_are_classes(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{kind}/{i}.jpg" for kind in ("train station", "test tube", "train", "bus") for i in range(5)))
    listing = classes_of(tmp_path)
    assert listing.classes == ["bus", "test tube", "train", "train station"]
    assert (listing.notes, listing.kept) == ([], "")
    touch(tmp_path, *(f"test/{i}.jpg" for i in range(5)))
    (note,) = classes_of(tmp_path).notes
    assert "test, train are taken for classes, as no class folders are in them" in note


def test_parts_within_class_folders_are_kept_or_said(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("val", 2), ("test", 1)):
        touch(tmp_path, *(f"{kind}/{part}/{i}.jpg" for kind in ("sea", "wood") for i in range(count)))
    for split in ("", BY_FOLDERS):
        listing = classes_of(tmp_path, split)
        assert (listing.parts.count(TRAIN), listing.parts.count(TEST), listing.left_out) == (6, 2, {"val": 4})
        assert "the author's split is kept (train 6, val 4, test 2)" in listing.report()[0]
    (tmp_path / "sea" / "test" / "0.jpg").unlink()
    listing = classes_of(tmp_path)
    assert len(listing.parts) == 11
    assert any("do not give every image a part and every class both parts" in note for note in listing.notes)
    with pytest.raises(InputError, match="expected folders train and test"):
        classes_of(tmp_path, BY_FOLDERS)


def test_parts_within_parts_of_class_folders_are_said(tmp_path: Path) -> None:
    for part in ("train/{}/train", "train/{}/val", "test/{}"):
        touch(tmp_path, *(f"{part.format(kind)}/{i}.jpg" for kind in ("sea", "wood") for i in range(2)))
    listing = classes_of(tmp_path)
    assert (listing.parts.count(TRAIN), listing.parts.count(TEST)) == (8, 4)
    (note,) = listing.notes
    assert "look like another split (train 4, val 4), which is not used, as train, test are parts already" in note


def test_a_split_file_may_divide_what_lies_in_parts(tmp_path: Path) -> None:
    files = [
        f"{part}/{kind}/{part}{kind}{i}" for part in ("train", "val") for kind in ("sea", "wood") for i in range(3)
    ]
    touch(tmp_path / "kinds", *(f"{file}.jpg" for file in files))
    (tmp_path / "split.csv").write_text("".join(f"{f},{'test' if f.endswith('0') else 'train'}\n" for f in files))
    spec = {"path": str(tmp_path / "kinds"), "holds": "classes", "held_out": 0.2, "split": str(tmp_path / "split.csv")}
    listing = list_source({"source": "folder", **spec})
    assert listing.classes == ["sea", "wood"]
    assert (listing.parts.count(TRAIN), listing.parts.count(TEST)) == (8, 4)


def test_labelled_images_among_the_unlabelled_ones_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    drawn(tmp_path, *(f"all/{p}/{p}{i}.png" for p in ("train", "test") for i in range(6)))
    drawn(tmp_path, *(f"masks/{p}/{p}{i}.png" for p in ("train", "test") for i in range(6)))
    segmentation = {"images": "all", "split": BY_FOLDERS, "test_size": 0}
    config = study(segmentation=segmentation, pretrain={"source": "folder", "path": "all"})
    assert any("12 labelled images, 6 for the test, are among its images" in line for line in folder_report(config))


def test_listing_asks_the_system_about_folders_not_about_each_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, *(f"{folder}/{i}.jpg" for folder in "abc" for i in range(100)))
    asked: list[Any] = []
    real = os.stat
    monkeypatch.setattr(os, "stat", lambda path, *a, **k: (asked.append(path), real(path, *a, **k))[1])
    assert len(list_below(tmp_path).images) == 300
    assert len(asked) <= 6
