"""COCO annotations become masks, compared with known pixels."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as rle

from viny.cli import main
from viny.data.coco import LEGEND, Converted, _region, convert
from viny.data.pack import open_pack
from viny.data.packing import build_pack
from viny.runtime.errors import InputError
from viny.study.config import resolve
from viny.study.reading import read_config
from viny.study.specs import pack_spec
from viny.tools.newstudy.class_lists import read_classes

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
HEIGHT, WIDTH = 20, 30
CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 17, "name": "door: left"}, {"id": 90, "name": "unused"}]


def box(top: int, left: int, bottom: int, right: int) -> list[list[float]]:
    """The polygon whose pixels are [top:bottom, left:right]."""
    return [[left, top, right, top, right, bottom, left, bottom]]


def region(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def counts(mask: np.ndarray) -> list[int]:
    """Run lengths down the columns, starting with those of 0: COCO's uncompressed RLE."""
    flat = mask.T.ravel()
    ends = np.flatnonzero(np.diff(np.concatenate([[0], flat, [2]])))
    return np.diff(np.concatenate([[0], ends])).tolist()


def annotation(image: int, category: int, segmentation: Any, crowd: int = 0, number: int = 1) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "segmentation": segmentation,
        "iscrowd": crowd,
        "bbox": [0, 0, 1, 1],
    }


def images_at(folder: Path, names: list[str]) -> list[dict[str, Any]]:
    for at, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(at).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return [{"id": 100 + at, "file_name": name, "height": HEIGHT, "width": WIDTH} for at, name in enumerate(names)]


def written(path: Path, **lists: Any) -> Path:
    path.write_text(json.dumps({"categories": CATEGORIES} | lists), encoding="utf-8")
    return path


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "L"
        return np.asarray(image)


@pytest.fixture
def instances(tmp_path: Path) -> Path:
    """Three images: overlapping objects, a crowd with an object in it, and nothing."""
    images = images_at(tmp_path / "images", ["a.jpg", "sub/b.png", "c.jpg"])
    compressed = rle.encode(np.asfortranarray(region(0, 0, 10, 30)))
    compressed = {"size": compressed["size"], "counts": compressed["counts"].decode()}
    notes = [
        annotation(100, 17, box(2, 3, 12, 20)),
        annotation(100, 3, {"size": [HEIGHT, WIDTH], "counts": counts(region(8, 10, 16, 28))}),
        annotation(101, 3, box(4, 4, 8, 8) + box(12, 4, 16, 8)),
        annotation(101, 17, compressed, crowd=1),
        annotation(101, 17, []),
    ]
    images.append({"id": 7, "file_name": "gone.jpg", "height": 5, "width": 5})
    return written(tmp_path / "instances.json", images=images, annotations=notes)


def test_instances_are_painted_in_their_order_with_crowds_ignored_below_them(tmp_path: Path, instances: Path) -> None:
    made = convert(instances, tmp_path / "images", tmp_path / "out")
    assert made.classes == {0: "background", 1: "cat", 2: "door_ left"}  # ids 3 and 17; 90 has no annotation
    a = np.zeros((HEIGHT, WIDTH), np.uint8)
    a[2:12, 3:20] = 2
    a[8:16, 10:28] = 1
    assert np.array_equal(read(tmp_path / "out" / "a.png"), a)
    b = np.zeros((HEIGHT, WIDTH), np.uint8)
    b[0:10] = 255
    b[4:8, 4:8] = b[12:16, 4:8] = 1
    assert np.array_equal(read(tmp_path / "out" / "sub" / "b.png"), b)
    assert not read(tmp_path / "out" / "c.png").any()
    assert made.masks == 3
    said = "\n".join(made.notes)
    for part in (
        "1 of 3 categories have no",
        "gone.jpg",
        "1 of 3 images have no annotations",
        "1 annotations have a box",
    ):
        assert part in said
    assert (tmp_path / "out" / LEGEND).read_text() == "0,background\n1,cat\n2,door_ left\n"


def test_images_that_differ_in_their_ending_alone_get_masks_of_their_own(tmp_path: Path) -> None:
    images = images_at(tmp_path / "images", ["a.jpg", "a.png"])
    notes = [annotation(100, 3, box(0, 0, 5, 5)), annotation(101, 17, box(0, 0, 5, 5))]
    convert(written(tmp_path / "i.json", images=images, annotations=notes), tmp_path / "images", tmp_path / "out")
    assert read(tmp_path / "out" / "a.jpg.png").max() == 1 and read(tmp_path / "out" / "a.png.png").max() == 2


def test_panoptic_segments_become_their_categories_and_void_is_ignored(tmp_path: Path) -> None:
    images = images_at(tmp_path / "images", ["a.jpg", "b.jpg"])
    numbers = np.zeros((HEIGHT, WIDTH), np.int64)
    numbers[:10], numbers[10:, :5], numbers[10:, 5:9] = 70_000, 256 * 3 + 1, 5  # all three channels are used
    rgb = np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], -1).astype(np.uint8)
    (tmp_path / "pan").mkdir()
    Image.fromarray(rgb).save(tmp_path / "pan" / "a.png")
    segments = [
        {"id": 70_000, "category_id": 17, "iscrowd": 0},
        {"id": 769, "category_id": 3, "iscrowd": 0},
        {"id": 5, "category_id": 3, "iscrowd": 1},
    ]
    notes = [{"image_id": 100, "file_name": "a.png", "segments_info": segments}]
    made = convert(
        written(tmp_path / "pan.json", images=images, annotations=notes), tmp_path / "images", tmp_path / "out"
    )
    assert made.classes == {1: "cat", 2: "door_ left"} and made.masks == 1
    wanted = np.full((HEIGHT, WIDTH), 255, np.uint8)
    wanted[:10], wanted[10:, :5] = 2, 1
    assert np.array_equal(read(tmp_path / "out" / "a.png"), wanted)
    assert any("not annotated and left out: b.jpg" in note for note in made.notes)
    segments.pop()
    written(tmp_path / "pan.json", images=images, annotations=notes)
    with pytest.raises(InputError, match="segments 5, which"):
        convert(tmp_path / "pan.json", tmp_path / "images", tmp_path / "again")
    with pytest.raises(InputError, match=r"other: no such folder; .*--panoptic"):
        convert(tmp_path / "pan.json", tmp_path / "images", tmp_path / "again", tmp_path / "other")


@pytest.mark.parametrize("count", [254, 255])
def test_as_many_categories_as_masks_can_hold(tmp_path: Path, count: int) -> None:
    images = images_at(tmp_path / "images", ["a.png"])
    categories = [{"id": 10 * at, "name": f"k{at}"} for at in range(count)]
    notes = [annotation(100, one["id"], box(at // 30, at % 30, at // 30 + 1, at % 30 + 1)) for at, one in
             enumerate(categories)]  # fmt: skip
    path = tmp_path / "i.json"
    path.write_text(json.dumps({"categories": categories, "images": images, "annotations": notes}))
    if count > 254:
        with pytest.raises(InputError, match="255 categories; masks hold at most 254"):
            convert(path, tmp_path / "images", tmp_path / "out")
        return
    assert len(convert(path, tmp_path / "images", tmp_path / "out").classes) == 255
    assert read(tmp_path / "out" / "a.png").ravel()[:254].tolist() == list(range(1, 255))


@pytest.mark.parametrize(
    ("outline", "category", "said"),
    [
        ([[1, 1, 5, 5]], 3, "fewer than three points"),
        ([[1, 1, 5, 5, 7, 7, 8]], 3, "odd number"),
        ([[1, 1, 5, 5, None, 7]], 3, "not a valid outline"),
        ([["a"] * 6], 3, "not a valid outline"),
        ({"size": [5, 5], "counts": [25]}, 3, "but its image is 20 x 30"),
        ({"size": [HEIGHT, WIDTH], "counts": [10**9]}, 3, "do not sum"),
        ({"size": [HEIGHT, WIDTH], "counts": [-5, 605]}, 3, "do not sum"),
        ({"size": [HEIGHT, WIDTH], "counts": "ooooooooo"}, 3, "not a valid outline"),
        ("nonsense", 3, "not a valid outline"),
        (box(0, 0, 5, 5), 4, "categories 4, which it does not list"),
    ],
)
def test_annotations_that_are_none_are_refused_and_leave_nothing(
    tmp_path: Path, outline: Any, category: int, said: str
) -> None:
    images = images_at(tmp_path / "images", ["a.jpg", "b.jpg"])
    notes = [annotation(100, 3, box(0, 0, 5, 5)), annotation(101, category, outline, number=77)]
    path = written(tmp_path / "i.json", images=images, annotations=notes)
    with pytest.raises(InputError, match=said) as caught:
        convert(path, tmp_path / "images", tmp_path / "out")
    assert str(path) in str(caught.value)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["i.json", "images"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"images": [], "annotations": [1], "categories": []}'])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, text: str) -> None:
    images_at(tmp_path / "images", ["a.jpg"])
    (tmp_path / "i.json").write_text(text)
    with pytest.raises(InputError, match="expected COCO annotations"):
        convert(tmp_path / "i.json", tmp_path / "images", tmp_path / "out")


@pytest.mark.parametrize("key", ["image_id", "category_id"])
def test_an_annotation_that_lacks_a_key_is_refused(tmp_path: Path, key: str) -> None:
    images = images_at(tmp_path / "images", ["a.jpg"])
    note = annotation(100, 3, box(0, 0, 5, 5))
    del note[key]
    path = written(tmp_path / "i.json", images=images, annotations=[note])
    with pytest.raises(InputError, match=f"lacks '{key}'"):
        convert(path, tmp_path / "images", tmp_path / "out")


def test_masks_are_replaced_when_asked_and_a_users_folder_never(tmp_path: Path, instances: Path) -> None:
    out = tmp_path / "out"
    convert(instances, tmp_path / "images", out)
    (out / "old.png").touch()
    with pytest.raises(InputError, match=r"holds masks already; use them with --masks .* or .* --force"):
        convert(instances, tmp_path / "images", out)
    convert(instances, tmp_path / "images", out, replace=True)
    assert not (out / "old.png").exists() and (out / "a.png").exists()
    with pytest.raises(InputError, match="name another folder"):
        convert(instances, tmp_path / "images", tmp_path / "images", replace=True)
    assert (tmp_path / "images" / "a.jpg").exists()


def test_the_command_makes_masks_and_a_study_that_packs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    images = images_at(tmp_path / "images", [f"i{at:02d}.png" for at in range(12)])
    notes = [annotation(one["id"], (3, 17)[at % 2], box(2, 2, 15, 20)) for at, one in enumerate(images)]
    written(tmp_path / "i.json", images=images, annotations=notes)
    command = ["init", "mine", "--images", "images", "--coco", "i.json"]
    assert main([*command, "--classes", "0=a,1=b"]) == 2
    assert main([*command, "--image-size", "20"]) == 0
    assert "12 masks of i.json" in capsys.readouterr().out
    config = resolve(read_config("studies/mine.yaml"))
    assert config["segmentation"]["masks"] == "data/mine-masks"
    (tmp_path / "pack").mkdir()
    build_pack(pack_spec(config, "segmentation"), tmp_path / "pack", threads=1)
    pack = open_pack(tmp_path / "pack" / "manifest.json")
    assert pack.manifest["mask_classes"] == ["background", "cat", "door_ left"]
    shown = pack.rows("masks", np.arange(12))
    assert [sorted(set(mask.ravel().tolist())) for mask in shown[:2]] == [[0, 1], [0, 2]]


# Joins: ids, names and sizes


def squares(tmp_path: Path, count: int = 4, **changes: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Images with one object each: entries of the lists of images and annotations."""
    images = images_at(tmp_path / "images", [f"{at}.png" for at in range(count)])
    notes = [annotation(one["id"], 3, box(2, 3, 10, 12), number=at) | changes for at, one in enumerate(images)]
    return images, notes


def made_of(tmp_path: Path, images: Any, notes: Any, **more: Any) -> Converted:
    return convert(written(tmp_path / "i.json", images=images, annotations=notes, **more), tmp_path / "images",
                   tmp_path / "out", replace=True)  # fmt: skip


@pytest.mark.parametrize("image_id", [str, float, lambda key: f" {key} "], ids=["text", "float", "spaces"])
@pytest.mark.parametrize("category_id", [int, str, float])
def test_ids_are_the_same_as_numbers_and_as_text(tmp_path: Path, image_id: Any, category_id: Any) -> None:
    images, notes = squares(tmp_path)
    notes = [one | {"image_id": image_id(one["image_id"]), "category_id": category_id(3)} for one in notes]
    made = made_of(tmp_path, images, notes)
    assert made.masks == 4 and made.classes == {0: "background", 1: "cat"}
    assert all(np.array_equal(read(tmp_path / "out" / f"{at}.png"), region(2, 3, 10, 12)) for at in range(4))


def test_annotations_of_no_image_are_counted_and_refused_if_most(tmp_path: Path) -> None:
    images, notes = squares(tmp_path)
    made = made_of(tmp_path, images, [*notes, annotation(999, 3, box(0, 0, 5, 5)), annotation("x", 3, box(0, 0, 5, 5))])
    assert any("2 of 6 annotations have an image_id that belongs to no listed image" in note and "999, x" in note
               for note in made.notes)  # fmt: skip
    stray = [one | {"image_id": one["image_id"] + 1000} for one in notes]
    with pytest.raises(InputError, match=r"4 of 4 annotations have an image_id .*\(1100, .*have ids 100, "):
        made_of(tmp_path, images, stray)
    with pytest.raises(InputError, match="5 of 6 annotations have an image_id"):
        made_of(tmp_path, images, [notes[0], *stray, annotation(7, 3, box(0, 0, 5, 5))])


def test_categories_that_are_not_listed_are_counted(tmp_path: Path) -> None:
    images, notes = squares(tmp_path)
    notes[1]["category_id"] = notes[2]["category_id"] = "9"
    with pytest.raises(InputError, match="2 annotations of categories 9, which it does not list"):
        made_of(tmp_path, images, notes)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("image_id", True, "annotation 0: 'image_id' is True, no id"),
        ("image_id", None, "'image_id' is None, no id"),
        ("image_id", 1.5, "'image_id' is 1.5, no id"),
        ("image_id", [100], "no id"),
        ("category_id", False, "annotation 0: 'category_id' is False, no id"),
        ("category_id", float("nan"), "no id"),
        ("category_id", "", "no id"),
        ("iscrowd", "yes", "annotation 0: its 'iscrowd' is yes; 0 or 1 is expected"),
        ("iscrowd", [0], "'iscrowd' is"),
        ("iscrowd", float("nan"), "'iscrowd' is nan"),
    ],
)
def test_values_that_are_no_ids_or_flags_are_refused_with_the_annotation(
    tmp_path: Path, key: str, value: Any, said: str
) -> None:
    images, notes = squares(tmp_path)
    notes[0][key] = value
    with pytest.raises(InputError, match=re.escape(said)):
        made_of(tmp_path, images, notes)


def test_ids_and_names_that_are_listed_twice(tmp_path: Path) -> None:
    images, notes = squares(tmp_path)
    with pytest.raises(InputError, match=r"the id 100 is listed twice, for 0\.png and 1\.png"):
        made_of(tmp_path, [images[0], images[1] | {"id": "100"}], notes)
    with pytest.raises(InputError, match=r"0\.png is listed twice, as 0\.png and \./0\.png"):
        made_of(tmp_path, [*images, images[0] | {"id": 7, "file_name": "./0.png"}], notes)
    with pytest.raises(InputError, match="category 3 has two names, cat and dog"):
        made_of(tmp_path, images, notes, categories=[{"id": 3, "name": "cat"}, {"id": "3", "name": "dog"}])
    made = made_of(tmp_path, images, [one | {"id": 5} for one in notes])
    assert any("3 annotations have the id of another one; all" in note for note in made.notes)


@pytest.mark.parametrize("name", [7, None, "", ["a.png"]])
def test_an_image_without_a_name_is_refused(tmp_path: Path, name: Any) -> None:
    images, notes = squares(tmp_path)
    images[1]["file_name"] = name
    with pytest.raises(InputError, match=r"image 101: its 'file_name' is .*, no text"):
        made_of(tmp_path, images, notes)


@pytest.mark.parametrize(
    "listed",
    ["{}", "train/{}", "/home/me/set/{}", "a\\b\\{}", "https://host/bucket/{}?sign=1%2F", "./{}", "s3://bucket/x/{}"],
)
def test_names_are_found_whatever_folders_are_before_them(tmp_path: Path, listed: str) -> None:
    images, notes = squares(tmp_path)
    images = [one | {"file_name": listed.format(one["file_name"])} for one in images]
    assert made_of(tmp_path, images, notes).masks == 4


def test_names_are_found_in_either_form_of_unicode(tmp_path: Path) -> None:
    images = images_at(tmp_path / "images", ["Ma\u0308dchen.png"])
    images[0]["file_name"] = "M\u00e4dchen.png"
    assert made_of(tmp_path, images, [annotation(100, 3, box(2, 3, 10, 12))]).masks == 1


def test_a_file_of_that_name_in_another_folder_is_not_taken(tmp_path: Path) -> None:
    images_at(tmp_path / "images", ["val/x.png", "val/y.png", "z.png"])
    size = {"height": HEIGHT, "width": WIDTH}
    listed = [{"id": 100, "file_name": "train/x.png", **size}, {"id": 101, "file_name": "z.png", **size}]
    made = made_of(tmp_path, listed, [annotation(key, 3, box(2, 3, 10, 12)) for key in (100, 101)])
    assert made.masks == 1 and (tmp_path / "out" / "z.png").is_file()
    said = "\n".join(made.notes)
    assert "1 of 2 listed images are missing" in said and "train/x.png" in said
    assert "2 of 3 images in" in said and "val/x.png, val/y.png" in said
    with pytest.raises(InputError, match=r"none of the 1 images .*val/x\.png has the name, but is in another folder"):
        made_of(tmp_path, listed[:1], [annotation(100, 3, box(2, 3, 10, 12))])


def test_a_bare_name_in_several_folders_is_refused_and_a_path_finds_its_own(tmp_path: Path) -> None:
    images = images_at(tmp_path / "images", ["a/x.png", "b/x.png"])
    notes = [annotation(100, 3, box(0, 0, 5, 5)), annotation(101, 17, box(0, 0, 5, 5))]
    for folders in ("", "set/"):
        listed = [one | {"file_name": folders + one["file_name"]} for one in images]
        made_of(tmp_path, listed, notes)
        assert [read(tmp_path / "out" / name / "x.png").max() for name in "ab"] == [1, 2]
    images[0]["file_name"] = "x.png"
    with pytest.raises(InputError, match=r"x\.png may be .*a/x\.png or .*b/x\.png; list it with its folder"):
        made_of(tmp_path, images, notes)


def test_two_listed_images_that_are_one_file_are_refused(tmp_path: Path) -> None:
    images_at(tmp_path / "images", ["x.png"])
    size = {"height": HEIGHT, "width": WIDTH}
    listed = [{"id": at, "file_name": f"{part}/x.png", **size} for at, part in enumerate(["train", "val"])]
    with pytest.raises(InputError, match=r"x\.png is listed twice, as train/x\.png and val/x\.png"):
        made_of(tmp_path, listed, [annotation(0, 3, box(0, 0, 5, 5))])


def test_images_of_another_size_than_listed_are_refused(tmp_path: Path) -> None:
    images, notes = squares(tmp_path)
    images[2] |= {"height": 2 * HEIGHT, "width": 2 * WIDTH}
    with pytest.raises(InputError, match=r"1 of 4 images have another size .*2\.png has 20 x 30, listed 40 x 60"):
        made_of(tmp_path, images, notes)


def test_a_photo_that_exif_turns_may_be_listed_in_either_size(tmp_path: Path) -> None:
    images, notes = squares(tmp_path, 2)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images" / "0.png", exif=exif)
    assert made_of(tmp_path, images, notes).masks == 2
    images[0] |= {"height": WIDTH, "width": HEIGHT}
    assert made_of(tmp_path, images, notes).masks == 2
    images[1] |= {"height": WIDTH, "width": HEIGHT}
    with pytest.raises(InputError, match=r"1 of 2 images have another size"):
        made_of(tmp_path, images, notes)


@pytest.mark.parametrize("key", ["height", "width"])
@pytest.mark.parametrize("value", [-5, 0, "20", None, 20.5, True, 10**9, 10**400, float("nan"), float("inf"), [20]])
def test_sizes_that_are_none_are_refused_with_the_image(tmp_path: Path, key: str, value: Any) -> None:
    images, notes = squares(tmp_path)
    images[1][key] = value
    shown = "the text '20'" if value == "20" else ".*"
    with pytest.raises(InputError, match=rf"image 101 \(1\.png\): its '{key}' is {shown}, no number of pixels"):
        made_of(tmp_path, images, notes)


# Crowds


@pytest.mark.parametrize("flag", [1, True, "1", 1.0])
def test_if_every_outline_is_a_crowd_they_are_objects(tmp_path: Path, flag: Any) -> None:
    images, notes = squares(tmp_path, iscrowd=flag)
    notes[0]["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": counts(region(1, 1, 9, 9))}
    made = made_of(tmp_path, images, notes)
    assert np.array_equal(read(tmp_path / "out" / "0.png"), region(1, 1, 9, 9))
    assert any("all 4 outlines are marked as crowds" in note and "taken as objects" in note for note in made.notes)


def test_some_crowds_are_ignored_and_counted_and_a_category_of_crowds_is_no_class(tmp_path: Path) -> None:
    images, notes = squares(tmp_path)
    notes[1] |= {"category_id": 17, "iscrowd": 1}
    made = made_of(tmp_path, images, notes)
    assert made.classes == {0: "background", 1: "cat"}
    assert np.array_equal(read(tmp_path / "out" / "1.png"), 255 * region(2, 3, 10, 12))
    said = "\n".join(made.notes)
    assert "1 of 4 outlines are marked as crowds (iscrowd 1)" in said and "set their iscrowd to 0" in said
    assert "nothing but crowds or boxes, so no class: door: left (1)" in said


@pytest.mark.parametrize("flag", ["0", None, False, 0.0])
def test_a_flag_that_says_no_crowd_is_none(tmp_path: Path, flag: Any) -> None:
    images, notes = squares(tmp_path, iscrowd=flag)
    assert not any("crowd" in note for note in made_of(tmp_path, images, notes).notes)


def test_categories_of_images_elsewhere_are_no_classes(tmp_path: Path) -> None:
    images, notes = squares(tmp_path)
    gone = {"id": 5, "file_name": "gone.png", "height": 5, "width": 5}
    made = made_of(tmp_path, [*images, gone], [*notes, annotation(5, 17, box(0, 0, 4, 4))])
    assert made.classes == {0: "background", 1: "cat"}
    assert any("2 of 3 categories have no annotations in these images" in note for note in made.notes)


@pytest.mark.parametrize("outline", [None, [], {}, [[]], [[], []]])
def test_boxes_alone_make_no_masks(tmp_path: Path, outline: Any) -> None:
    images, notes = squares(tmp_path, segmentation=outline)
    with pytest.raises(InputError, match=r"no image in .* has an outline, only boxes or nothing \(4 annotations there"):
        made_of(tmp_path, images, notes)
    assert not (tmp_path / "out").exists()


# Numbers that cannot be right


@pytest.mark.parametrize(
    ("outline", "said"),
    [
        ([[0, 0, 4e8, 1, 8e8, 4e8, -8e8, 3e8]], "outside of its image of 20 x 30"),
        ([[0, 0, 1e300, 0, 0, 1e300]], "outside of its image"),
        ([[0, 0, 10**400, 0, 0, 5]], "not a valid outline"),
        ([[0, 0, float("nan"), 0, 0, 5]], "values that are no numbers"),
        ([[0, 0, float("-inf"), 0, 0, 5]], "values that are no numbers"),
        ([[0, 0, True, 0, 0, 5]], "not a list of numbers"),
        ([0, 0, 5, 0, 0, 5], "not a list of numbers"),
        ([[[0, 0], [5, 0], [0, 5]]], "not a list of numbers"),
        ([[0, 0, 300, 200] * 5000], "an outline of"),
        ({"size": [HEIGHT, WIDTH], "counts": [True, 599]}, "no whole numbers"),
        ({"size": [HEIGHT, WIDTH], "counts": [0.5, 599.5]}, "no whole numbers"),
        ({"size": [HEIGHT, WIDTH], "counts": [2**70, -(2**70) + 600]}, "do not sum"),
        ({"size": [HEIGHT, WIDTH], "counts": []}, "do not sum"),
        ({"size": [HEIGHT, WIDTH], "counts": ""}, "do not sum"),
        ({"size": [HEIGHT, WIDTH], "counts": None}, "no whole numbers"),
        ({"size": [HEIGHT, WIDTH], "counts": "é"}, "not a valid outline"),
        ({"size": [HEIGHT, WIDTH], "counts": "P"}, "end early"),
        ({"size": [HEIGHT, WIDTH], "counts": "o" * 2000}, "no run lengths"),
        ({"size": [WIDTH, HEIGHT], "counts": [600]}, "but its image is 20 x 30"),
        ({"size": "20", "counts": [600]}, "but its image is 20 x 30"),
        ({"counts": [600]}, "run lengths without 'size'"),
        ({"size": [HEIGHT, WIDTH]}, "run lengths without 'counts'"),
        (7, "neither polygons nor run lengths"),
    ],
)
def test_outlines_that_would_crash_a_reader_are_refused_with_their_annotation(
    tmp_path: Path, outline: Any, said: str
) -> None:
    images, notes = squares(tmp_path)
    notes[2]["segmentation"] = outline
    with pytest.raises(InputError, match=f"annotation 2: .*{re.escape(said)}"):
        made_of(tmp_path, images, notes)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32), st.sampled_from([0.05, 0.3, 0.5]))
@settings(max_examples=200, deadline=None)
def test_run_lengths_as_text_are_read_as_pycocotools_reads_them(
    height: int, width: int, seed: int, share: float
) -> None:
    mask = (np.random.default_rng(seed).random((height, width)) < share).astype(np.uint8)
    packed = rle.encode(np.asfortranarray(mask))
    found, outside = _region({"size": [height, width], "counts": packed["counts"].decode()}, height, width)
    assert np.array_equal(found, mask.astype(bool)) and not outside


@given(st.tuples(*[st.integers(-60, 90)] * 4))
@settings(max_examples=200, deadline=None)
def test_an_outline_that_reaches_outside_is_cut_off_at_the_border(ends: tuple[int, int, int, int]) -> None:
    (top, bottom), (left, right) = sorted(ends[:2]), sorted(ends[2:])
    found, outside = _region(box(top, left, bottom, right), HEIGHT, WIDTH)
    assert outside == (min(top, left) < -2 or bottom > HEIGHT + 2 or right > WIDTH + 2)
    wanted = region(max(0, top), max(0, left), max(0, bottom), max(0, right))
    if top < bottom and left < right:
        assert np.array_equal(found, wanted.astype(bool))


def test_outlines_that_show_nothing_or_reach_outside_are_counted(tmp_path: Path) -> None:
    images, notes = squares(tmp_path)
    notes[0]["segmentation"] = box(50, 50, 60, 60)
    notes[1]["segmentation"] = box(2, 3, 10, WIDTH + 9)
    made = made_of(tmp_path, images, notes)
    said = "\n".join(made.notes)
    assert "1 of 4 outlines cover no pixel of their image: annotation 0" in said
    assert "2 of 4 outlines reach more than 2 pixels outside" in said
    assert np.array_equal(read(tmp_path / "out" / "1.png"), region(2, 3, 10, WIDTH))
    shares = [one | {"segmentation": [[0.1, 0.1, 0.4, 0.1, 0.4, 0.4]]} for one in notes]  # of the sides, not pixels
    with pytest.raises(InputError, match="4 of 4 outlines cover no pixel"):
        made_of(tmp_path, images, shares)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"images": [' + "9" * 5000 + "]}", "not JSON"),
        ('{"images": [], "annotations": [], "categories": []}', "its list 'images' is empty"),
        ("\x00", "not JSON"),
    ],
)
def test_json_that_is_too_much_is_refused(tmp_path: Path, text: str, said: str) -> None:
    images_at(tmp_path / "images", ["a.jpg"])
    (tmp_path / "i.json").write_text(text)
    with pytest.raises(InputError, match=said):
        convert(tmp_path / "i.json", tmp_path / "images", tmp_path / "out")


def test_json_in_another_encoding_is_read(tmp_path: Path) -> None:
    images, notes = squares(tmp_path)
    text = json.dumps({"categories": [{"id": 3, "name": "Kätzchen"}], "images": images, "annotations": notes})
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "i.json").write_text(text, encoding=encoding)
        made = convert(tmp_path / "i.json", tmp_path / "images", tmp_path / "out", replace=True)
        assert made.classes[1] == "Kätzchen"
        assert read_classes(tmp_path / "out" / LEGEND)[1] == "Kätzchen"


# Panoptic annotations with the same faults


@pytest.fixture
def panoptic(tmp_path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    images = images_at(tmp_path / "images", ["a.jpg", "b.jpg"])
    (tmp_path / "i").mkdir()
    rgb = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    rgb[:10, :, 0], rgb[10:, :, 0] = 1, 2
    for name in ("a.png", "b.png"):
        Image.fromarray(rgb).save(tmp_path / "i" / name)
    return images, [
        {"image_id": one["id"], "file_name": f"{name}.png",
         "segments_info": [{"id": 1, "category_id": 3}, {"id": 2, "category_id": 17}]}
        for one, name in zip(images, "ab", strict=True)
    ]  # fmt: skip


def test_panoptic_ids_may_be_text(tmp_path: Path, panoptic: Any) -> None:
    images, notes = panoptic
    for one in notes:
        one["image_id"] = str(one["image_id"])
        one["segments_info"][0] |= {"id": "1", "category_id": "3"}
    assert made_of(tmp_path, images, notes).masks == 2
    assert [*np.unique(read(tmp_path / "out" / "a.png"))] == [1, 2]


def test_panoptic_crowds_are_objects_if_all_are(tmp_path: Path, panoptic: Any) -> None:
    images, notes = panoptic
    for one in notes:
        for segment in one["segments_info"]:
            segment["iscrowd"] = 1
    made = made_of(tmp_path, images, notes)
    assert any("all 4 outlines are marked as crowds" in note for note in made.notes)
    assert [*np.unique(read(tmp_path / "out" / "a.png"))] == [1, 2]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda notes: notes[0].update(image_id=7) or notes[1].update(image_id=8), "2 of 2 annotations have an image_"),
        (lambda notes: notes[1].update(image_id=100), "image 100 has several panoptic annotations"),
        (lambda notes: notes[0].update(file_name=None), "annotation 1 of its list: its 'file_name' is None"),
        (lambda notes: notes[0].update(file_name="c.png"), r"the PNG c\.png is not in its folder"),
        (lambda notes: notes[0].update(segments_info=None), "no list of objects 'segments_info'"),
        (lambda notes: notes[1].pop("segments_info"), "annotation 2 of its list: no list of objects"),
        (lambda notes: notes[0]["segments_info"][0].update(id=2), "segment 2 is listed twice"),
        (lambda notes: notes[0]["segments_info"][0].update(id=0), "no number from 1 to"),
        (lambda notes: notes[0]["segments_info"][0].update(id=2**30), "no number from 1 to"),
        (lambda notes: notes[0]["segments_info"][0].update(category_id=8), "1 annotations of categories 8"),
        (lambda notes: [one.update(segments_info=[{"id": at, "category_id": 3} for at in range(1, 9)]) for one in
                        notes], "12 of 16 outlines cover no pixel"),
    ],
)  # fmt: skip
def test_panoptic_annotations_that_are_none_are_refused(tmp_path: Path, panoptic: Any, change: Any, said: str) -> None:
    images, notes = panoptic
    change(notes)
    with pytest.raises(InputError, match=said):
        made_of(tmp_path, images, notes)


def test_a_panoptic_png_of_another_size_is_refused(tmp_path: Path, panoptic: Any) -> None:
    Image.new("RGB", (WIDTH, HEIGHT + 1), (1, 0, 0)).save(tmp_path / "i" / "a.png")
    with pytest.raises(InputError, match=r"a\.png: is 21 x 30 \(height x width\), but its image 20 x 30"):
        made_of(tmp_path, *panoptic)


# Anything at all

WORDS = st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=4),
                  st.sampled_from([100, "100", 101, 3, 17, "a.png", [], {}]))  # fmt: skip
SHAPES = st.recursive(WORDS, lambda one: st.lists(one, max_size=8), max_leaves=12)


@given(data=st.data())
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_anywhere_is_taken_or_refused_with_a_message(tmp_path: Path, data: st.DataObject) -> None:
    images = images_at(tmp_path / "images", ["a.png", "b.png"])
    notes = [annotation(100, 3, box(2, 3, 10, 12)), annotation(101, 17, {"size": [20, 30], "counts": [600]})]
    lists = {"images": images, "annotations": notes, "categories": [dict(one) for one in CATEGORIES]}
    for _ in range(data.draw(st.integers(1, 3))):
        one = data.draw(st.sampled_from([one for some in lists.values() for one in some]))
        key = data.draw(st.sampled_from(sorted(one)))
        if key == "segmentation" and data.draw(st.booleans()):
            one[key] = {"size": data.draw(st.sampled_from([[20, 30], [30, 20]])), "counts": data.draw(SHAPES)}
        else:
            one[key] = data.draw(SHAPES)
    (tmp_path / "i.json").write_text(json.dumps(lists))
    with suppress(InputError):
        made = convert(tmp_path / "i.json", tmp_path / "images", tmp_path / "out", replace=True)
        for path in (tmp_path / "out").rglob("*.png"):
            assert {*np.unique(read(path)).tolist()} <= {*made.classes, 255}
