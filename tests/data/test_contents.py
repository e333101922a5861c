"""Hashes of a data set's files: what is read, what is remembered, and which files are said to differ."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from viny.data import contents
from viny.data.contents import FOLDER, Contents, differences, read_contents, untouched
from viny.data.pack import open_pack
from viny.data.packing import build_pack, pack_into_store
from viny.data.sources import Listing
from viny.runtime.errors import InputError
from viny.study.config import resolve
from viny.study.inventory import count_images, read_files, with_listings
from viny.study.specs import pack_spec

LONG_AGO = 2_000_000_000  # ns before now, after which a file's times are believed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with 12 images below it, and masks elsewhere."""
    for i in range(12):
        for name in ("data/images", "masks"):
            path = tmp_path / name / f"{i % 3}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{name} {i}".encode())
    return tmp_path


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files written just now are taken to be older than the file system's clock can be wrong."""
    monkeypatch.setattr(contents, "SETTLED", -LONG_AGO)


def listing(folder: Path) -> Listing:
    images, masks = (sorted((folder / name).rglob("*.png")) for name in ("data/images", "masks"))
    return Listing(images, masks=masks)


def spec(folder: Path) -> dict[str, Any]:
    return {"source": "folder", "holds": "masks", "path": str(folder / "data"), "masks": str(folder / "masks")}


def look(folder: Path) -> Contents:
    return read_contents(listing(folder), spec(folder), folder / "packs")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many files each call has read."""
    found: list[int] = []
    read = contents._read

    def note(files: Any, rows: np.ndarray, *more: Any) -> None:
        found.append(len(rows))
        read(files, rows, *more)

    monkeypatch.setattr(contents, "_read", note)
    return found


def test_names_and_hashes_are_those_of_the_files(folder: Path) -> None:
    found = look(folder)
    assert found.names[0] == "images/0/0.png" and found.names[-1] == "../masks/2/8.png"
    for name, row in zip(found.names, found.hashes, strict=True):
        data = (folder / "data" / name).read_bytes()
        assert row.tobytes() == hashlib.sha256(data).digest()[: len(row)]
    assert found.sha256 == hashlib.sha256(found.text.encode()).hexdigest()
    assert found.sha256 == read_contents(listing(folder), spec(folder), None).sha256


def test_a_list_in_the_folder_where_one_works_has_a_name_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `--split split.csv` gives it: a path without a folder."""
    monkeypatch.chdir(folder)
    Path("split.csv").write_text("image,part\n")
    files = listing(folder)
    here = Listing(files.images, masks=files.masks, lists=[Path("split.csv")])
    assert read_contents(here, spec(folder), None).names[-1] == "../split.csv"


@pytest.mark.usefixtures("settled")
def test_only_files_that_may_have_changed_are_read_again(folder: Path, reads: list[int]) -> None:
    first = look(folder)
    assert reads == [24]
    assert look(folder).sha256 == first.sha256
    assert reads == [24]
    mask = folder / "masks" / "0" / "0.png"
    about = mask.stat()
    mask.write_bytes(b"MASKS 0")  # of the same size, and with the same time of modification
    os.utime(mask, ns=(about.st_atime_ns, about.st_mtime_ns))
    changed = look(folder)
    assert reads == [24, 1] and changed.sha256 != first.sha256
    (folder / "data" / "images" / "0" / "new.png").write_bytes(b"new")  # the others keep their places in memory
    assert look(folder).sha256 != changed.sha256
    assert reads == [24, 1, 1]
    os.rename(folder / "data", folder / "moved")
    os.rename(folder / "moved", folder / "data")
    assert look(folder).names == [n for n in look(folder).names]
    assert reads == [24, 1, 1]


def test_a_file_that_has_just_been_written_is_read_again(folder: Path, reads: list[int]) -> None:
    look(folder)
    look(folder)
    assert reads == [24, 24]  # a second write within one tick of the clock would leave size and times as they are


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("damage", ["cut", "empty", "other", "text"])
def test_a_damaged_memory_is_no_memory(folder: Path, reads: list[int], damage: str) -> None:
    right = look(folder).sha256
    (memory,) = (folder / "packs" / FOLDER).iterdir()
    data = memory.read_bytes()
    if damage == "other":
        with open(memory, "wb") as f:
            np.savez(f, names=np.zeros(3, np.uint8), states=np.zeros((2, 4)), hashes=np.zeros((1, 1)))
    else:
        memory.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "text": b"no archive at all"}[damage])
    assert look(folder).sha256 == right
    assert reads == [24, 24]
    assert look(folder).sha256 == right
    assert reads == [24, 24]


def test_a_memory_that_cannot_be_written_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right = look(folder).sha256
    (folder / "file").write_bytes(b"")
    found = read_contents(listing(folder), spec(folder), folder / "file")
    assert found.sha256 == right
    assert "could not be written" in capsys.readouterr().err


def test_what_cannot_be_read_has_no_hash_and_is_noticed_once_it_can(folder: Path) -> None:
    image = folder / "data" / "images" / "0" / "0.png"
    image.unlink()
    image.symlink_to("nowhere.png")
    os.mkfifo(folder / "data" / "images" / "0" / "fifo.png")
    before = look(folder)
    assert [name for name, row in zip(before.names, before.hashes, strict=True) if not row.any()] == [
        "images/0/0.png",
        "images/0/fifo.png",
    ]
    (image.parent / "nowhere.png").write_bytes(b"fetched")
    listed = listing(folder)
    listed.images.remove(image.parent / "nowhere.png")
    assert read_contents(listed, spec(folder), folder / "packs").sha256 != before.sha256


def test_the_files_that_differ_are_named(folder: Path) -> None:
    packed = look(folder).text
    assert differences(packed, look(folder)) == ""
    (folder / "masks" / "0" / "0.png").write_bytes(b"MASKS 0")
    (folder / "masks" / "0" / "3.png").unlink()
    (folder / "data" / "images" / "new.png").write_bytes(b"new")
    said = differences(packed, look(folder))
    assert said == "1 changed (../masks/0/0.png); 1 new (images/new.png); 1 gone (../masks/0/3.png)"


def test_many_files_are_read_and_looked_at_quickly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 5,000 files: with a memory, no more than a few microseconds each."""
    monkeypatch.setattr(contents, "SETTLED", -LONG_AGO)
    (tmp_path / "images").mkdir()
    images = [tmp_path / "images" / f"{i}.jpg" for i in range(5000)]
    for i, image in enumerate(images):
        image.write_bytes(str(i).encode())
    one = {"source": "folder", "holds": "images", "path": str(tmp_path / "images")}
    read_contents(Listing(images), one, tmp_path)
    began = time.process_time()
    read_contents(Listing(images), one, tmp_path)
    assert time.process_time() - began < 0.5  # 0.03 s on a quiet machine


@pytest.mark.parametrize("when", ["before", "while"])
def test_a_pack_is_not_made_of_files_that_change_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    from PIL import Image

    (tmp_path / "images").mkdir()
    for i in range(4):
        Image.new("RGB", (16, 16), (i, i, i)).save(tmp_path / "images" / f"{i}.bmp")
    (tmp_path / "pack").mkdir()
    own = {"source": "folder", "holds": "images", "path": str(tmp_path / "images"), "size": 8, "resize": "antialias"}
    listed = Listing(sorted((tmp_path / "images").iterdir()))

    def edit() -> None:
        Image.new("RGB", (16, 16), (99, 9, 9)).save(tmp_path / "images" / "0.bmp")

    if when == "before":
        own["listing"] = read_contents(listed, own, None).sha256
        edit()
    else:
        from viny.data import packing

        pack_files = packing.pack_files

        def slow(*arguments: Any) -> Any:
            edit()
            return pack_files(*arguments)

        monkeypatch.setattr(packing, "pack_files", slow)
    with pytest.raises(InputError, match=r"images: files in it changed (after the run|while they were packed)"):
        build_pack(own, tmp_path / "pack", 1)
    assert not untouched(listed, read_contents(listed, own, None)) or when


def test_clones_that_share_a_store_get_their_own_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a known source, too, whose files have the same names and sizes in both clones."""
    from PIL import Image

    raw = {"study": "s", "pack_store": str(tmp_path / "packs"), "grid": {"intermediates": ["none", "intel"]}}
    made = {}
    for clone in ("one", "other"):
        folder = tmp_path / clone
        for part in ("seg_train", "seg_test"):
            for kind in ("sea", "street"):
                place = folder / "data" / "intel" / part / part / kind
                place.mkdir(parents=True)
                Image.new("RGB", (16, 16), (len(clone), 0, 0)).save(place / "0.bmp")
        monkeypatch.chdir(folder)
        config, root = resolve(raw), folder / "results" / "s"
        images = count_images(config, root)
        config = with_listings(config, root, read_files(config, images))
        manifest = root / "packs" / "intel" / "manifest.json"
        pack_into_store(pack_spec(config, "intel"), tmp_path / "packs", manifest, 1)
        made[clone] = open_pack(manifest)
    assert made["one"].folder != made["other"].folder
    assert [int(pack.rows("images", np.arange(4))[:, 0].max()) for pack in made.values()] == [3, 5]
