"""A user's own folders: what belongs together, masks of every kind, splits, and pixels without a class."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchmetrics.functional as tm
from PIL import Image, ImageOps

from viny.data.decoding import BARS, BadFileError, decode, decode_mask, inner_box, mask_values
from viny.data.folders import images_below
from viny.data.masks import IGNORE, mask_coding, value_number
from viny.data.pack import TEST, TRAIN, Pack, open_pack
from viny.data.packing import build_pack
from viny.data.pairs import guess_suffix, pair
from viny.data.parts import hold_out, split_by_file
from viny.data.sources import list_source
from viny.data.splits import finetune_split, pretrain_split, task_split
from viny.evidence.evaluate import confusion_matrices
from viny.evidence.metrics import iou, summarise
from viny.evidence.token_metrics import linear_probe
from viny.learning.objectives import labelled_cross_entropy, majority_class
from viny.runtime.errors import InputError
from viny.runtime.files import write_json
from viny.study.checks import check_sizes
from viny.study.config import resolve
from viny.study.inventory import count_images, folder_report, read_files, with_listings
from viny.study.specs import pack_spec

STUDY: dict[str, Any] = {
    "study": "own",
    "model": {"image_size": 24, "patch_size": 6},
    "grid": {"pretrain_sizes": [0], "intermediates": ["none"], "finetune_sizes": [4], "seeds": [0]},
    "segmentation": {"source": "folder", "images": "images", "masks": "masks", "classes": 3, "test_size": 2},
}


def study(**changes: Any) -> dict[str, Any]:
    """Resolved settings with some keys replaced, given as section__key."""
    raw = copy.deepcopy(STUDY)
    for name, value in changes.items():
        *sections, key = name.split("__")
        place = raw
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    return resolve(raw)


def picture(path: Path, width: int = 20, height: int = 16, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def mask(path: Path, values: np.ndarray | None = None, width: int = 20, height: int = 16) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if values is None:
        values = np.arange(width * height, dtype=np.uint8).reshape(height, width) % 3
    Image.fromarray(values).save(path)
    return path


def own_data(root: Path, count: int = 12) -> Path:
    """Nested folders of images in all formats, and of masks of values 0 to 2."""
    for i in range(count):
        kind = ("jpg", "png", "tif", "webp", "bmp", "JPEG")[i % 6]
        picture(root / "images" / f"day {i % 3}" / f"im.{i:02d}.{kind}", seed=i)
        mask(root / "masks" / f"day {i % 3}" / f"im.{i:02d}.png")
    return root


# What belongs together


def test_images_of_all_formats_and_depths_are_found_in_one_order(tmp_path: Path) -> None:
    own_data(tmp_path)
    (tmp_path / "images" / "notes.txt").write_text("no image")
    (tmp_path / "images" / ".hidden.png").write_bytes(b"")
    (tmp_path / "images" / "day 0" / "up").symlink_to(tmp_path / "images")  # an endless loop
    found = [path.relative_to(tmp_path / "images").as_posix() for path in images_below(tmp_path / "images")]
    assert len(found) == 12
    assert found == sorted(found)


def test_pairs_are_found_by_path(tmp_path: Path) -> None:
    own_data(tmp_path)
    picture(tmp_path / "images" / "day 1" / "im.00.png", seed=99)  # the name of one in day 0, without a mask
    mask(tmp_path / "masks" / "day 9" / "other.png")
    pairs = pair(tmp_path / "images", tmp_path / "masks")
    assert len(pairs.images) == 12
    for image, its_mask in zip(pairs.images, pairs.masks, strict=True):
        assert image.parent.name == its_mask.parent.name
        assert image.stem == its_mask.stem
    assert pairs.report() == [
        "images without a mask, left out: 1 (im.00.png)",
        "masks without an image: 1 (other.png)",
    ]


def test_masks_saved_as_jpeg_are_told_of_by_their_names(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / "images" / f"{i}.png")
        mask(tmp_path / "masks" / f"{i}.{'png' if i else 'jpg'}")
    said = pair(tmp_path / "images", tmp_path / "masks").report()
    assert said == ["masks saved as JPEG, which blurs values; export them as PNG: 1 (0.jpg)"]


@pytest.mark.parametrize(
    ("image", "its_mask", "suffix"),
    [
        ("images/a/b/x.jpg", "masks/x.png", ""),  # a flat folder of masks
        ("images/x.jpg", "masks/deep/x.png", ""),
        ("images/x.jpg", "masks/x.jpg.png", ""),
        ("images/x.jpg", "masks/x_mask.png", "_mask"),
        ("images/s/x.jpg", "masks/s/x-gt.tif", "-gt"),
        ("all/x.jpg", "all/x_m.png", "_m"),  # one folder
        ("all/x.png", "all/masks/x.png", ""),  # masks within the images' folder
    ],
)
def test_usual_layouts_match(tmp_path: Path, image: str, its_mask: str, suffix: str) -> None:
    picture(tmp_path / image)
    mask(tmp_path / its_mask)
    folders = [tmp_path / name.split("/")[0] for name in (image, its_mask)]
    if "/masks/" in its_mask:
        folders[1] = tmp_path / "all" / "masks"
    pairs = pair(*folders, suffix)
    assert (pairs.images, pairs.masks) == ([tmp_path / image], [tmp_path / its_mask])
    assert pairs.report() == []


def test_what_cannot_be_told_apart_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "x.jpg")
    picture(tmp_path / "images" / "x.png")
    mask(tmp_path / "masks" / "x.png")
    with pytest.raises(InputError, match=r"x\.png: is the mask of .*x\.jpg or .*x\.png\? Keep one"):
        pair(tmp_path / "images", tmp_path / "masks")
    (tmp_path / "images" / "x.png").unlink()
    mask(tmp_path / "masks" / "x.tif")
    with pytest.raises(InputError, match=r"x\.jpg: has two masks"):
        pair(tmp_path / "images", tmp_path / "masks")
    with pytest.raises(InputError, match=r"one folder; set segmentation\.mask_suffix"):
        pair(tmp_path / "images", tmp_path / "images")


def test_one_name_in_two_folders_is_two_images(tmp_path: Path) -> None:
    for day in ("a", "b"):
        picture(tmp_path / "images" / day / "1.jpg")
        mask(tmp_path / "masks" / day / "1.jpg.png")
    pairs = pair(tmp_path / "images", tmp_path / "masks")
    assert [path.parent.name for path in pairs.images] == [path.parent.name for path in pairs.masks] == ["a", "b"]


def test_names_of_two_folders_are_not_joined_by_chance(tmp_path: Path) -> None:
    for day in ("a", "b"):
        picture(tmp_path / "images" / day / "1.jpg")
        mask(tmp_path / "masks" / f"{day}{day}" / "1.png")
    picture(tmp_path / "images" / "2.jpg")
    mask(tmp_path / "masks" / "2.png")
    pairs = pair(tmp_path / "images", tmp_path / "masks")
    assert [path.name for path in pairs.images] == ["2.jpg"]
    assert len(pairs.images_without_mask) == len(pairs.masks_without_image) == 2


def test_a_suffix_that_was_not_told_is_guessed_in_the_message(tmp_path: Path) -> None:
    for i in range(4):
        picture(tmp_path / "images" / f"{i}.jpg")
        mask(tmp_path / "masks" / f"{i}_segmentation.png")
    with pytest.raises(InputError, match=r"none of 4 masks .* set segmentation.mask_suffix .*to _segmentation"):
        pair(tmp_path / "images", tmp_path / "masks")
    assert guess_suffix(["a", "b"], ["c", "d"]) == ""


def test_missing_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such folder; expected a folder of images"):
        images_below(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no images in it or below; expected files ending in"):
        images_below(tmp_path)


# Classes of a mask file

COLOURS = {"#000000": "ground", "#ff0000": "car", "#00ff00": "tree", "#ffff00": "car"}


def coded(path: Path, classes: Any, ignore: Any = (), size: int = 8, fit: str = "stretch") -> np.ndarray:
    coding = mask_coding(classes, ignore)
    values = {int(value): index for value, index in coding["mask_values"].items()}
    return decode_mask(path, size, values, coding["colours"], fit).pixels


def test_masks_of_every_kind_give_the_same_classes(tmp_path: Path) -> None:
    truth = np.random.default_rng(0).integers(0, 2, (8, 8)).astype(np.uint8)
    two = {0: "ground", 255: "object"}
    palette = Image.fromarray(truth * 255).convert("P")
    palette.putpalette(np.random.default_rng(1).integers(0, 256, 768).tolist())
    kinds = {
        "grey.png": Image.fromarray(truth * 255),
        "grey.bmp": Image.fromarray(truth * 255),
        "grey.tif": Image.fromarray(truth * 255),
        "grey.webp": None,
        "rgb.png": Image.fromarray(np.stack([truth * 255] * 3, 2)),
        "rgba.png": Image.fromarray(np.stack([truth * 255] * 3 + [np.full_like(truth, 255)], 2)),
        "la.png": Image.fromarray(truth * 255).convert("LA"),
        "bit.png": Image.fromarray(truth > 0),
        "wide.png": Image.fromarray(truth.astype(np.uint16) * 255),
    }
    for name, image in kinds.items():
        if image is None:
            Image.fromarray(truth * 255).save(tmp_path / name, lossless=True)
        else:
            image.save(tmp_path / name)
        assert np.array_equal(coded(tmp_path / name, {str(k): v for k, v in two.items()}), truth), name
    Image.fromarray(truth, "P").save(tmp_path / "index.png")
    assert np.array_equal(coded(tmp_path / "index.png", 2), truth)


def test_colours_are_classes_with_and_without_a_palette(tmp_path: Path) -> None:
    truth = np.random.default_rng(0).integers(0, 3, (8, 8)).astype(np.uint8)
    # Classes are counted by their least values: #000000 ground, #00ff00 tree, #ff0000 car.
    rgb = np.array([[0, 0, 0], [0, 255, 0], [255, 0, 0]], np.uint8)[truth]
    rgb[0, 0] = [255, 255, 0]  # another colour of cars
    rgb[1, 1] = [255, 255, 255]
    expected = truth.copy()
    expected[0, 0], expected[1, 1] = 2, IGNORE
    Image.fromarray(rgb).save(tmp_path / "rgb.png")
    Image.fromarray(rgb).quantize(16).save(tmp_path / "palette.png")
    for name in ("rgb.png", "palette.png"):
        assert np.array_equal(coded(tmp_path / name, COLOURS, ["#FFFFFF"]), expected), name
    assert mask_coding(COLOURS, [])["mask_classes"] == ["ground", "tree", "car"]
    assert mask_values(tmp_path / "rgb.png", True).tolist() == sorted(
        value_number(c) for c in ("#000000", "#ff0000", "#00ff00", "#ffff00", "#ffffff")
    )


def test_a_mask_may_hold_255_classes_and_an_ignored_value(tmp_path: Path) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "m.png")
    assert np.array_equal(coded(tmp_path / "m.png", 255, [255], size=16), values)


@pytest.mark.parametrize(
    ("make", "classes", "words"),
    [
        (
            lambda p: Image.fromarray(np.full((8, 8), 7, np.uint8)).save(p),
            3,
            "unknown mask values 7; expected 0, 1, 2;",
        ),
        (lambda p: picture(p, 8, 8), 3, "got colours; replace it, or, with source folder, name the classes by"),
        (lambda p: picture(p, 8, 8), COLOURS, "values are unknown, as in a picture that was compressed"),
        (lambda p: Image.fromarray(np.full((8, 8), 9, np.uint8)).save(p), {"0": "a", "1": "b"}, "no pixel has a class"),
        (lambda p: p.write_bytes(b"no image"), 3, "cannot be read as a mask"),
    ],
)
def test_masks_that_cannot_be_used_say_why(tmp_path: Path, make: Callable, classes: Any, words: str) -> None:
    make(tmp_path / "m.png")
    with pytest.raises(BadFileError, match=words):
        coded(tmp_path / "m.png", classes, [9] if isinstance(classes, dict) and "0" in classes else [])


def test_fit_policies_are_those_of_pillow(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", 40, 20)
    with Image.open(path) as image:
        cropped = ImageOps.fit(image, (16, 16), Image.Resampling.BILINEAR)
        padded = ImageOps.pad(image, (16, 16), Image.Resampling.BILINEAR, BARS)
        stretched = image.resize((16, 16), Image.Resampling.BILINEAR)
    for fit, expected in (("crop", cropped), ("pad", padded), ("stretch", stretched)):
        found = decode(path, 16, "antialias", fit=fit).pixels.transpose(1, 2, 0)
        assert np.array_equal(found, np.asarray(expected)), fit


def test_masks_follow_their_images_whatever_the_fit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2, (5, 10)).astype(np.uint8).repeat(4, 0).repeat(4, 1)  # 20 x 40
    Image.fromarray(values).save(tmp_path / "m.png")
    Image.fromarray(np.stack([values * 255] * 3, 2)).save(tmp_path / "i.png")
    for fit in ("stretch", "crop", "pad"):
        classes = coded(tmp_path / "m.png", 2, size=20, fit=fit)
        grey = decode(tmp_path / "i.png", 20, "nearest", fit=fit).pixels[0]
        inside = classes != IGNORE
        assert np.array_equal(classes[inside], grey[inside] // 255), fit
        bars = np.ones((20, 20), bool)
        if fit == "pad":
            left, top, right, bottom = inner_box(20, 40, 20)
            bars[top:bottom, left:right] = False
            assert (bottom - top, right - left) == (10, 20)
        assert np.array_equal(~inside, bars if fit == "pad" else np.zeros_like(bars)), fit


# Listings, packs, splits


def test_a_folder_of_own_data_is_packed_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own_data(tmp_path))
    spec = pack_spec(study(segmentation__ignore=2, segmentation__classes=2), "segmentation")
    (tmp_path / "pack").mkdir()
    manifest = build_pack(spec, tmp_path / "pack", threads=1)
    made = open_pack(tmp_path / "pack" / "manifest.json")
    assert (len(made), manifest["mask_classes"]) == (12, ["class_0", "class_1"])
    assert "border_class" not in manifest
    for row, name in enumerate(made.names):
        its_mask = Path("masks") / Path(name).with_suffix(".png")
        assert np.array_equal(made.rows("masks", [row])[0], coded(its_mask, 2, [2], size=24))
        assert np.array_equal(made.rows("images", [row])[0], decode(Path("images") / name, 24, "antialias").pixels)


def test_an_ignored_object_is_no_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own_data(tmp_path))
    mask(tmp_path / "masks" / "day 0" / "im.00.png", np.zeros((16, 20), np.uint8))
    config = study(segmentation__classes={0: "background", 1: "a", 2: "b"}, segmentation__all_background="skip")
    (tmp_path / "pack").mkdir()
    manifest = build_pack(pack_spec(config, "segmentation"), tmp_path / "pack", threads=1)
    assert manifest["count"] == 11
    assert [left["image"] for left in manifest["skipped"]] == ["day 0/im.00.jpg"]


def test_a_pack_is_another_once_a_file_has_come_gone_or_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own_data(tmp_path))
    config, root = study(), tmp_path / "results"

    def listed(of: dict[str, Any]) -> dict[str, str]:
        return with_listings(of, root, read_files(of, count_images(of, root)))["listings"]

    seen = [listed(config)["segmentation"]]

    def changed() -> bool:
        seen.append(listed(config)["segmentation"])
        return seen[-1] != seen[-2]

    assert not changed()
    (tmp_path / "images" / "day 0" / "im.00.jpg").touch()
    assert not changed()
    of = tmp_path / "masks" / "day 0" / "im.00.png"
    before = of.read_bytes()
    of.write_bytes(bytes([*before[:-1], before[-1] ^ 1]))  # of the same size
    assert changed()
    of.write_bytes(before)
    assert changed()
    assert seen[-1] == seen[0]
    (tmp_path / "images" / "day 0" / "new.jpg").write_bytes((tmp_path / "images" / "day 0" / "im.00.jpg").read_bytes())
    mask(tmp_path / "masks" / "day 0" / "new.png")
    assert changed()
    for name in ("images/day 0/new.jpg", "masks/day 0/new.png"):
        (tmp_path / name).unlink()
    assert changed()
    assert seen[-1] == seen[0]
    # If the folder is gone, what was packed stays.
    gone = study(segmentation__images="gone")
    assert listed(gone)["segmentation"] == ""
    write_json(root / "packs" / "segmentation" / "manifest.json", {"contents": "abc"})
    assert listed(gone)["segmentation"] == "abc"
    assert listed({**config, "segmentation": {**config["segmentation"], "source": "pets"}})["segmentation"] == "abc"


def named_pack(names: list[str], parts: list[int] | None = None) -> Pack:
    nothing = np.empty((len(names), 0), np.uint8)
    lines = "".join(f"{name}\n" for name in names).encode()
    about = {"sha256": "a" * 64, "source": "folder"}
    return Pack(Path("packs/own"), about, nothing, nothing, None, np.array(parts) if parts else None, None, lines)


SOUND = {"split_seed": 42, "subsets": "shared", "test_set": "fixed"}


def test_new_images_leave_the_order_of_the_others() -> None:
    few = [f"{i}.jpg" for i in range(50)]
    many = sorted([*few, *(f"{i}.jpg" for i in range(50, 90))])
    for make in (
        lambda pack: pretrain_split(pack, len(pack), 0, 42, "shared")["train"],
        lambda pack: finetune_split(pack, len(pack) - 1, 0, test_size=1, **SOUND)["train"],
    ):
        before = [few[i] for i in make(named_pack(few))]
        after = [many[i] for i in make(named_pack(many)) if many[i] in before]
        assert after == [name for name in before if name in after]
        assert len(after) >= len(before) - 1


def test_a_split_file_says_what_is_tested() -> None:
    names = [f"{i}.jpg" for i in range(30)]
    parts = [TEST if i % 3 == 0 else TRAIN for i in range(30)]
    made = named_pack(names, parts)
    whole = finetune_split(made, 20, 0, test_size=0, given=True, **SOUND)
    assert whole["test"].tolist() == list(range(0, 30, 3))
    assert sorted(whole["train"]) == [i for i in range(30) if i % 3]
    some = finetune_split(made, 5, 0, test_size=4, given=True, **SOUND)
    assert set(some["test"]) < set(whole["test"])
    assert some["train"].tolist() == whole["train"][:5].tolist()
    task = task_split(made, True, "training", "fixed", 42, 0, given=True)
    assert (sorted(task["train"]), task["test"].tolist()) == (sorted(whole["train"]), whole["test"].tolist())
    with pytest.raises(InputError, match="21 is larger than the training part, 20 images"):
        finetune_split(made, 21, 0, test_size=0, given=True, **SOUND)
    with pytest.raises(InputError, match=r"11 is larger than the test part, 10 images$"):
        finetune_split(made, 5, 0, test_size=11, given=True, **SOUND)
    made.manifest["skipped"] = [{"image": "a.jpg", "file": "a.jpg", "reason": "empty"}]
    left_out = (
        r"training part, 20 images \(packing left 1 out that cannot be used, and its log says why\); mend these, or"
    )
    with pytest.raises(InputError, match=left_out):
        finetune_split(made, 21, 0, test_size=0, given=True, **SOUND)


def test_split_files_name_images_by_path_or_name(tmp_path: Path) -> None:
    images = images_below(own_data(tmp_path) / "images")
    file = tmp_path / "split.csv"
    base = tmp_path / "images"
    lines = ["image,part", "day 0/im.00.jpg,test", "day 1/im.01,train", "im.02.tif,none", "im.03,train"]
    rest = [path for path in images if path.stem not in ("im.00", "im.01", "im.02", "im.03")]
    file.write_text("\n".join([*lines, *(f"{path.name},train" for path in rest)]) + "\n")
    parts = dict(zip([path.stem for path in images], split_by_file(file, images, base), strict=True))
    assert (parts["im.00"], parts["im.01"], parts["im.02"], parts["im.03"]) == (TEST, TRAIN, None, TRAIN)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("im.00,train\n", "does not name 11 of 12 images: .* with part none to leave them out"),
        ("im.00,validation\n", "line 1: expected image,part with part train, test or none"),
        ("im.00,train\nim.00,test\n", "line 2: 'im.00' is listed twice"),
        ("im.00,train\nim.00.jpg,test\n", "names .* twice, with two parts"),
        ("elsewhere,train\n", "1 names match no image below .*: elsewhere"),
        ("im.00,train,x\n", "line 1: expected image,part"),
    ],
)
def test_split_files_that_do_not_fit_are_refused(tmp_path: Path, text: str, words: str) -> None:
    images = images_below(own_data(tmp_path) / "images")
    (tmp_path / "split.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        split_by_file(tmp_path / "split.csv", images, tmp_path / "images")


def test_held_out_images_are_a_share_of_each_class_and_stay() -> None:
    names = [f"{label}/{i}.jpg" for label in range(3) for i in range(10 * (label + 1))]
    labels = [int(name[0]) for name in names]
    parts = hold_out(names, labels, 0.2)
    for label, count in ((0, 2), (1, 4), (2, 6)):
        assert sum(p == TEST for p, at in zip(parts, labels, strict=True) if at == label) == count
    held = {name for name, part in zip(names, parts, strict=True) if part == TEST}
    more = [*(f"0/{name}.jpg" for name in "abcde"), *names]
    again = hold_out(more, [0] * 5 + labels, 0.2)
    still = {name for name, part in zip(more, again, strict=True) if part == TEST}
    assert len(held - still) <= 1  # because a new one is held out in its place
    with pytest.raises(InputError, match=r"a\.jpg: is the only image of its class"):
        hold_out(["a.jpg", "b.jpg", "c.jpg"], [0, 1, 1], 0.2)


@pytest.mark.parametrize("layout", ["plain", "parts", "file"])
def test_class_folders_give_classes_and_parts(tmp_path: Path, layout: str) -> None:
    tops = ["train", "val"] if layout == "parts" else [""]
    for top in tops:
        for label in ("sea", "wood"):
            for i in range(5):
                picture(tmp_path / "data" / top / label / "deeper" / f"{label}{top}{i}.jpg", seed=i)
    changes: dict[str, Any] = {"source": "folder", "path": str(tmp_path / "data")}
    if layout == "file":
        changes["split"] = str(tmp_path / "split.csv")
        names = [f"{label}{i}.jpg,{'test' if i == 4 else 'train'}" for label in ("sea", "wood") for i in range(5)]
        (tmp_path / "split.csv").write_text("\n".join(names))
    config = study(grid__intermediates=["mine"], intermediate__mine=changes)
    listing = list_source(pack_spec(config, "mine"))
    assert listing.classes == ["sea", "wood"]
    assert listing.parts.count(TEST) == {"plain": 2, "parts": 10, "file": 2}[layout]
    for image, label in zip(listing.images, listing.labels, strict=True):
        assert listing.classes[label] in image.parts
    if layout == "file":
        assert all(
            (part == TEST) == ("4" in path.stem) for path, part in zip(listing.images, listing.parts, strict=True)
        )


def test_sizes_are_held_against_own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own_data(tmp_path))
    config = study(grid__finetune_sizes=[11])
    with pytest.raises(InputError, match=r"12 labelled images less segmentation\.test_size, 2, leave 10"):
        check_sizes(config, count_images(config, tmp_path).limits)
    names = [f"im.{i:02d},{'test' if i < 5 else 'train'}" for i in range(12)]
    (tmp_path / "split.csv").write_text("\n".join(names))
    for key, value, words in (
        (
            "grid__finetune_sizes",
            [8],
            r"grid.finetune_sizes: 8 is larger than the train part that segmentation.split \(split.csv\) gives, 7 im",
        ),
        ("segmentation__test_size", 6, "segmentation.test_size: 6 is larger than the test part"),
    ):
        config = study(segmentation__split="split.csv", **{key: value})
        with pytest.raises(InputError, match=words):
            check_sizes(config, count_images(config, tmp_path).limits)
    config = study(segmentation__split="split.csv", segmentation__test_size=0, grid__finetune_sizes=[7])
    check_sizes(config, count_images(config, tmp_path).limits)
    assert folder_report(config) == [
        "segmentation: images: 12 images with masks of 3 classes; 7 for training, 5 held out"
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"segmentation__classes": {0: "a", "#ff0000": "b"}}, "values and colours are mixed"),
        ({"segmentation__classes": {0: "a", 1: "a"}}, "1 different classes; expected 2 to 255"),
        ({"segmentation__classes": {0: "a", "00": "b"}}, "a value is given twice"),
        ({"segmentation__classes": {0: "a", 70000: "b"}}, "a mask value above 65,535"),
        ({"segmentation__classes": {0: "a", 1: "b|c"}}, "segmentation.classes.1: expected to match"),
        ({"segmentation__classes": {0: False, 1: "b"}}, "segmentation.classes.0: expected string"),
        ({"segmentation__classes": 256}, "segmentation.classes: expected at most 255"),
        ({"segmentation__ignore": [2]}, "segmentation.ignore: 2 is a class too"),
        ({"segmentation__path": "elsewhere"}, "segmentation.path: source folder has images and masks instead"),
        ({"segmentation__test_size": 0}, "0 needs segmentation.split"),
        ({"segmentation__source": "pets"}, "segmentation.images: only for source folder"),
        ({"pretrain__source": "folder"}, "pretrain.path: missing; source folder needs it"),
        ({"segmentation__split": "a.csv", "protocol": "paper"}, "leave segmentation.split out"),
        (
            {"grid__intermediates": ["mine"], "intermediate__mine": {"source": "segmentation"}},
            "needs images with classes",
        ),
        ({"grid__intermediates": ["mine"], "intermediate__mine": {"source": "folder"}}, "intermediate.mine.path: miss"),
    ],
)
def test_settings_of_own_data_that_do_not_fit_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        study(**changes)


def test_resolved_settings_of_own_data_resolve_to_themselves() -> None:
    config = study(segmentation__classes={0: "background", 255: "object"}, segmentation__ignore=7)
    assert config["segmentation"]["classes"] == {"0": "background", "255": "object"}
    assert config["segmentation"]["ignore"] == [7]
    assert resolve(config) == config


def test_a_task_may_learn_from_the_masks_of_the_study() -> None:
    spatial = {"source": "segmentation", "target": "patch", "mixup": 0.0}
    config = study(grid__intermediates=["none", "spatial"], intermediate__spatial=spatial)
    assert pack_spec(config, "spatial") == pack_spec(config, "segmentation")


# Pixels without a class


def test_ignored_pixels_teach_nothing() -> None:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 6, 6, generator=g, requires_grad=True)
    targets = torch.randint(0, 4, (3, 6, 6), generator=g, dtype=torch.uint8)
    targets[0, :3] = IGNORE
    targets[2] = IGNORE
    loss = labelled_cross_entropy(logits, targets)
    loss.backward()
    each = F.cross_entropy(logits.detach(), targets.long().where(targets != IGNORE, 0), reduction="none")
    expected = (each * (targets != IGNORE)).sum() / targets.numel()
    torch.testing.assert_close(loss.detach(), expected)
    assert (logits.grad[2] == 0).all()
    assert (logits.grad[0, :, :3] == 0).all()
    assert (logits.grad[1] != 0).all()


def test_the_loss_of_a_batch_is_the_mean_of_its_shards() -> None:
    # The training loop weights shards' losses by their share of the images, whatever masks ignore.
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 6, 6, generator=g)
    targets = torch.randint(0, 3, (4, 6, 6), generator=g)
    targets[0] = IGNORE
    targets[1, 1:] = IGNORE
    parts = [labelled_cross_entropy(x, y) for x, y in zip(logits.chunk(2), targets.chunk(2), strict=True)]
    torch.testing.assert_close(torch.stack(parts).mean(), labelled_cross_entropy(logits, targets))
    whole = targets.where(targets != IGNORE, 0)
    torch.testing.assert_close(labelled_cross_entropy(logits, whole), F.cross_entropy(logits, whole))


def test_a_patchs_class_is_that_of_the_pixels_that_have_one() -> None:
    masks = torch.full((1, 4, 4), IGNORE, dtype=torch.uint8)
    masks[0, 0, 0] = 2  # one pixel of the first patch
    masks[0, 2:, :2] = torch.tensor([[1, 1], [0, IGNORE]], dtype=torch.uint8)
    assert majority_class(masks, 2, 3).tolist() == [[2, IGNORE, 1, IGNORE]]


@pytest.mark.parametrize("classes", [2, 11])
def test_metrics_leave_ignored_pixels_out_as_torchmetrics_does(classes: int) -> None:
    g = torch.Generator().manual_seed(classes)
    truth = torch.randint(0, classes, (4, 12, 12), generator=g)
    guess = torch.randint(0, classes, (4, 12, 12), generator=g)
    truth[torch.rand(truth.shape, generator=g) < 0.3] = IGNORE
    found = confusion_matrices(truth.to(torch.uint8), guess.to(torch.uint8), classes)
    kind = {"task": "multiclass", "num_classes": classes, "ignore_index": IGNORE}
    total = found.sum(0)
    assert torch.equal(total, tm.confusion_matrix(guess, truth, **kind))
    names = [f"c{i}" for i in range(classes)]
    summary = summarise(found.numpy(), names, None)
    expected = tm.jaccard_index(guess, truth, average="macro", **kind)
    assert summary["miou_dataset"] == pytest.approx(float(expected), abs=1e-6)
    assert summary["pixel_accuracy"] == pytest.approx(
        float(tm.accuracy(guess, truth, average="micro", **kind)), abs=1e-6
    )
    assert np.allclose(iou(total.numpy()), [summary[f"iou_{name}"] for name in names])


def test_a_probe_does_not_see_patches_without_a_class() -> None:
    rng = np.random.default_rng(0)
    tokens, classes = rng.normal(size=(6, 9, 4)), rng.integers(0, 2, (6, 9))
    tokens[..., 0] += 6 * classes
    broken, unknown = tokens.copy(), rng.random((6, 9)) < 0.3
    broken[unknown] = 1e3
    hidden = np.where(unknown, IGNORE, classes)
    found = linear_probe(broken, hidden, broken, hidden)
    known = ~unknown.ravel()
    flat = tokens.reshape(1, -1, 4)[:, known], classes.reshape(1, -1)[:, known]
    assert found == linear_probe(*flat, *flat)


def test_a_key_as_a_number_and_as_text_is_refused() -> None:
    with pytest.raises(InputError, match="a key is given both as a number and as text"):
        study(segmentation__classes={0: "a", "0": "b", 1: "c"})
