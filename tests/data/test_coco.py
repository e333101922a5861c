"""COCO annotations become masks, compared with known pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from viny.cli import main
from viny.data.coco import LEGEND, convert
from viny.data.pack import open_pack
from viny.data.packing import build_pack
from viny.runtime.errors import InputError
from viny.study.config import resolve
from viny.study.reading import read_config
from viny.study.specs import pack_spec

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
    path.write_text(json.dumps({"categories": CATEGORIES, **lists}))
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
    for part in ("1 of 3 categories have no", "gone.jpg", "1 of 3 images have no annotations", "1 annotations have a box"):
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
