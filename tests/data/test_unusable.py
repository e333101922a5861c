"""Files that cannot be opened are said before packing, with the reason, and what is said is what packing leaves out."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("jsonschema")

from viny.data.conventions import Heads
from viny.data.pack import open_pack
from viny.data.packing import build_pack
from viny.data.unusable import unusable
from viny.runtime.errors import InputError
from viny.runtime.files import read_json
from viny.study.config import merge, resolve
from viny.study.inventory import folder_report
from viny.study.reading import read_config
from viny.study.specs import pack_spec

TINY = Path(__file__).parents[1] / "tiny.yaml"
SIDE = 24
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
BAD = {
    "nothing": (b"", "the file is empty"),
    "pointer": (POINTER, "run 'git lfs pull'"),
    "heic": (b"\0\0\0\x18ftypheic" + bytes(60), "HEIC or AVIF, whatever its name ends in; convert it"),
    "page": (b"\n<!DOCTYPE html><html></html>", "a web page or XML"),
    "pdf": (b"%PDF-1.7", "a PDF"),
    "tiff": (b"II*\0\x08\0\0\0\0\0\0\0\0\0", "a damaged TIFF, or one with channels"),
    "header": (b"\x89PNG\r\n\x1a\n\0\0", "none of the formats"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dozen images with masks."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for at in range(12):
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[2:12, 2:20] = 1
        Image.new("RGB", (SIDE, SIDE), (at, 0, 0)).save(tmp_path / "images" / f"{at:02d}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{at:02d}.png")
    return tmp_path


def study(folder: Path, **more: Any) -> dict[str, Any]:
    section = {"source": "folder", "images": str(folder / "images"), "masks": str(folder / "masks"), "test_size": 2}
    section["classes"] = {"0": "ground", "1": "cat"}
    return resolve(merge(read_config(TINY), merge({"segmentation": section}, more)))


@pytest.mark.parametrize("kind", ["images", "masks"])
@pytest.mark.parametrize("bad", BAD)
def test_a_file_that_is_no_picture_is_said_with_the_reason(folder: Path, kind: str, bad: str) -> None:
    content, reason = BAD[bad]
    for name in ("03.png", "07.png"):
        (folder / kind / name).write_bytes(content)
    start = f"2 of 12 {kind} cannot be opened: 03.png, 07.png: "
    with pytest.raises(InputError, match=re.escape(start)) as error:
        folder_report(study(folder))
    assert reason in str(error.value) and "set on_bad_image: skip" in str(error.value)
    config = study(folder, on_bad_image="skip")
    (line,) = [line for line in folder_report(config) if "cannot be opened" in line]
    assert line.startswith(f"segmentation: {start}") and reason in line and "only headers were read" in line
    (folder / "pack").mkdir()
    build_pack(pack_spec(config, "segmentation"), folder / "pack", 1)
    skipped = read_json(folder / "pack" / "manifest.json", "a manifest")["skipped"]
    assert sorted(Path(one["image"]).name for one in skipped) == ["03.png", "07.png"]


def test_a_mask_of_another_size_is_said(folder: Path) -> None:
    Image.new("L", (SIDE, SIDE - 1)).save(folder / "masks" / "05.png")
    line = (
        "1 of 12 images have another size than their masks: 05.png: is 24 x 24 pixels (height x width), but its mask "
    )
    with pytest.raises(InputError, match=re.escape(line + "23 x 24")):
        folder_report(study(folder))
    assert any(line in said for said in folder_report(study(folder, on_bad_image="skip")))


def test_more_than_half_stop_a_check_as_they_stop_packing(folder: Path) -> None:
    for at in range(4):
        (folder / "images" / f"{at:02d}.png").write_bytes(b"")
        (folder / "masks" / f"{at + 4:02d}.png").write_bytes(POINTER)
    config = study(folder, on_bad_image="skip")
    with pytest.raises(InputError, match=r"4 of 12 images and 4 of 12 masks cannot be opened: .*more than half"):
        folder_report(config)
    (folder / "pack").mkdir()
    with pytest.raises(InputError, match="8 of 12 images are bad; more than half"):
        build_pack(pack_spec(config, "segmentation"), folder / "pack", 1)


def test_each_pack_is_looked_at(folder: Path) -> None:
    (folder / "more").mkdir()
    for at in range(8):
        Image.new("RGB", (SIDE, SIDE), (0, at, 0)).save(folder / "more" / f"u{at}.png")
    (folder / "more" / "u3.png").write_bytes(POINTER)
    config = study(folder, on_bad_image="skip", pretrain={"source": "folder", "path": str(folder / "more")})
    assert any(line.startswith("pretrain: 1 of 8 images cannot be opened: u3.png: ") for line in folder_report(config))


def test_names_that_recur_are_given_with_their_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for sub in "ab":
        for kind in ("images", "masks"):
            (folder / kind / sub).mkdir()
            (folder / kind / sub / "03.png").write_bytes(b"")
    images = sorted(Path("images").rglob("*.png"))
    masks = sorted((folder / "masks").rglob("*.png"))
    found = unusable(Heads.read(images, masks))
    assert found.pairs == 2 and found.said.count("a/03.png, b/03.png: cannot be read as ") == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_said_and_does_not_block(folder: Path) -> None:
    (folder / "images" / "00.png").unlink()
    os.mkfifo(folder / "images" / "00.png")
    paths = sorted((folder / "images").iterdir())
    found = unusable(Heads.read(paths))
    assert found.pairs == 1 and "not a regular file" in found.said


def test_good_files_are_passed_over_in_silence(folder: Path) -> None:
    paths, masks = (sorted((folder / kind).iterdir()) for kind in ("images", "masks"))
    found = unusable(Heads.read(paths, masks), [1] * 12)
    assert (found.said, found.pairs, found.of) == ("", 0, 12)


@pytest.mark.parametrize("fit", ["stretch", "crop"])
def test_test_images_stay_the_same_where_masks_lose_their_class(folder: Path, fit: str) -> None:
    """What packing leaves out of the labelled images is left out of their pack for pre-training, at another size."""
    for at, row in ((3, 1), (7, 2)):  # a single row with a class: at the size of the model, the first is lost
        mask = np.full((SIDE, SIDE), 9, np.uint8)
        mask[row] = 1
        Image.fromarray(mask).save(folder / "masks" / f"{at:02d}.png")
    wide = Image.new("L", (2 * SIDE, SIDE), 9)
    wide.putpixel((0, 0), 1)  # outside the square in the middle
    wide.save(folder / "masks" / "05.png")
    Image.new("RGB", wide.size).save(folder / "images" / "05.png")
    own = {"ignore": 9, "fit": fit}
    pretrain = {"source": "segmentation", "pack_size": SIDE}
    config = study(folder, segmentation=own, pretrain=pretrain, model={"image_size": 18}, on_bad_image="skip")
    packs = {}
    for name in ("segmentation", "pretrain"):
        (folder / name).mkdir()
        build_pack(pack_spec(config, name), folder / name, 1)
        packs[name] = open_pack(folder / name / "manifest.json")
    assert packs["pretrain"].names == packs["segmentation"].names and 0 < len(packs["pretrain"]) < 12
    assert packs["pretrain"].masks is None
