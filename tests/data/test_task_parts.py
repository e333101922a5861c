"""Every intermediate task has images to train on and others to be tested on, or is refused before it trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_study import Study

from viny.data.pack import TEST, TRAIN, open_pack
from viny.data.packing import build_pack
from viny.data.sources import list_source
from viny.data.splits import task_split
from viny.runtime.errors import InputError
from viny.study import specs
from viny.study.checks import check_sizes
from viny.study.config import merge, resolve
from viny.study.inventory import count_images
from viny.study.reading import read_config

TINY = read_config(Path(__file__).parents[1] / "tiny.yaml")


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (30, 40, 3), np.uint8)).save(path)


def classes_at(folder: Path, **counts: int) -> None:
    for label, (name, count) in enumerate(counts.items()):
        for i in range(count):
            picture(folder / name / f"{i}.png", 100 * label + i + len(folder.name))


def study_of(path: Path, **changes: Any) -> dict[str, Any]:
    """A tiny study whose pre-training and task have the same ImageNet-like folder."""
    task = {"source": "imagenet", "path": str(path), "epochs": 1, "batch_size": 4, "milestones": []}
    grid = {"pretrain_sizes": [0, 6], "intermediates": ["none", "classes"]}
    pretrain = {"source": "imagenet", "path": str(path), "epochs": 1, "milestones": []}
    study = merge(TINY, {"grid": grid, "pretrain": pretrain, "pack_store": str(path.parent / "packs")})
    study["intermediate"] = {"classes": task}
    return resolve(merge(study, changes))


def train_to_the_end(config: dict[str, Any], root: Path) -> dict[str, Any]:
    study = Study(root, config)
    return json.loads(study.intermediate("classes", study.pretrain(6), size=6).read_text())


def test_a_task_on_the_pretraining_images_trains_to_the_end(tmp_path: Path) -> None:
    classes_at(tmp_path / "images" / "train", n01=5, n02=10)
    config = study_of(tmp_path / "images", intermediate={"classes": {"held_out": 0.4}})
    images = count_images(config, tmp_path / "none")
    check_sizes(config, images.limits)
    assert (images.packed["pretrain"], images.trained, images.held_out) == (15, {"classes": 9}, {"classes": 6})
    assert any("40% of each class" in note for note in images.notes)
    record = train_to_the_end(config, tmp_path / "run")
    assert (record["images"], record["held_out_images"]) == (9, 6)
    assert 0 <= record["held_out_accuracy"] <= 1


def test_pretraining_still_has_every_training_image_and_no_parts(tmp_path: Path) -> None:
    classes_at(tmp_path / "images" / "train", n01=5, n02=10)
    classes_at(tmp_path / "images" / "val", n01=3)
    listing = list_source(specs.pack_spec(study_of(tmp_path / "images"), "pretrain"))
    assert (len(listing.images), set(listing.parts)) == (15, {TRAIN})


def test_the_authors_validation_images_are_held_out(tmp_path: Path) -> None:
    classes_at(tmp_path / "images" / "train", n01=1, n02=4, n03=2)
    classes_at(tmp_path / "images" / "val", n02=3, n03=1)
    listing = list_source(specs.pack_spec(study_of(tmp_path / "images"), "classes"))
    held_out = [(path.parent.name, listing.labels[at]) for at, path in enumerate(listing.images) if listing.parts[at]]
    assert listing.classes == ["n01", "n02", "n03"]
    assert held_out == [("n02", 1)] * 3 + [("n03", 2)]
    assert {path.parent.parent.name for path in listing.images_in(TRAIN)} == {"train"}
    assert {path.parent.parent.name for path in listing.images_in(TEST)} == {"val"}


def test_a_validation_folder_without_classes_is_not_used(tmp_path: Path) -> None:
    classes_at(tmp_path / "images" / "train", n01=5, n02=5)
    picture(tmp_path / "images" / "val" / "ILSVRC2012_val_00000001.png", 1)
    listing = list_source(specs.pack_spec(study_of(tmp_path / "images"), "classes"))
    assert [listing.parts.count(part) for part in (TRAIN, TEST)] == [8, 2]


def test_which_images_are_held_out_depends_on_their_names_alone(tmp_path: Path) -> None:
    classes_at(tmp_path / "a", n01=20, n02=20)
    classes_at(tmp_path / "b", n01=20, n02=20, n03=20)
    held_out = []
    for name in ("a", "b"):
        listing = list_source(specs.pack_spec(study_of(tmp_path / name), "classes"))
        held_out.append({path.relative_to(tmp_path / name).as_posix() for path in listing.images_in(TEST)})
    assert len(held_out[0]) == 8
    assert held_out[0] < held_out[1]


@pytest.mark.parametrize(
    ("val", "said"),
    [({}, "the only image of its class"), ({"n01": 1, "n09": 1}, "val: classes that .*train does not have: n09")],
)
def test_classes_that_cannot_be_held_out_are_refused_with_the_reason(
    tmp_path: Path, val: dict[str, int], said: str
) -> None:
    classes_at(tmp_path / "images" / "train", n01=1, n02=4)
    classes_at(tmp_path / "images" / "val", **val)
    with pytest.raises(InputError, match=said):
        count_images(study_of(tmp_path / "images"), tmp_path / "none")


def pets_without_test(root: Path) -> None:
    notes = root / "oxford-iiit-pet" / "annotations"
    for i in range(30):
        picture(root / "oxford-iiit-pet" / "images" / f"Cat_{i}.jpg", i)
        (notes / "trimaps").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((30, 40), 2, np.uint8)).save(notes / "trimaps" / f"Cat_{i}.png")
    (notes / "trainval.txt").write_text("".join(f"Cat_{i} {1 + i % 2}\n" for i in range(30)))
    (notes / "test.txt").write_text("")


def test_a_source_without_held_out_images_is_refused_before_it_trains(tmp_path: Path) -> None:
    pets_without_test(tmp_path)
    task = {"source": "pets", "target": "image", "path": str(tmp_path), "epochs": 1, "milestones": []}
    changes = {"grid": {"intermediates": ["none", "breeds"]}, "intermediate": {"breeds": task}}
    config = resolve(merge(TINY, changes))  # the segmentation's images are others, so the official parts count
    with pytest.raises(InputError, match=r"intermediate\.breeds\.source: no held-out images in .* \(pets\)"):
        check_sizes(config, count_images(config, tmp_path / "none").limits)
    (tmp_path / "pack").mkdir()
    build_pack(specs.pack_spec(config, "breeds"), tmp_path / "pack", threads=1)
    with pytest.raises(InputError, match="no image of the test part"):
        task_split(open_pack(tmp_path / "pack" / "manifest.json"), False)
    # The same images as both task and segmentation: the study's own test images are held out.
    own = {"segmentation": {"source": "pets", "path": str(tmp_path)}}
    config = resolve(merge(TINY, merge(changes, own)))
    images = count_images(config, tmp_path / "none")
    check_sizes(config, images.limits)
    assert (images.trained, images.held_out) == ({"breeds": 20}, {"breeds": 10})


def test_few_made_images_leave_none_held_out() -> None:
    task = {"source": "segmentation", "target": "patch", "mixup": 0.0, "milestones": []}
    changes: dict[str, Any] = {"intermediate": {"scenes": task}, "switches": {"pets_pool": "official"}}
    changes |= {"synthetic": {"segmentation": 3}, "segmentation": {"test_size": 1}}
    config = resolve(merge(TINY, merge(changes, {"grid": {"finetune_sizes": [2]}})))
    with pytest.raises(InputError, match=r"intermediate\.scenes\.source: no held-out images"):
        check_sizes(config, count_images(config, Path("none")).limits)


@pytest.mark.parametrize("protocol", ["paper", "sound"])
def test_own_masks_without_a_split_have_no_official_part(tmp_path: Path, protocol: str) -> None:
    own = {"source": "folder", "images": str(tmp_path), "masks": str(tmp_path), "classes": 2}
    task = {"source": "segmentation", "target": "patch", "mixup": 0.0, "milestones": []}
    changes = {"protocol": protocol, "segmentation": own, "intermediate": {"scenes": task}}
    changes["switches"] = {"pets_pool": "official"}
    with pytest.raises(InputError, match=r"intermediate\.scenes\.source: 'segmentation'.*pets_pool: training"):
        resolve(merge(TINY, changes))


def test_real_imagenet_classification_trains_to_the_end(real_data: Path, tmp_path: Path) -> None:
    source = real_data / "imagenet"
    if not (source / "val").is_dir():
        pytest.skip(f"no {source / 'val'}")
    names = sorted(path.name for path in (source / "val").iterdir())[:3]
    for part, name in ((part, name) for part in ("train", "val") for name in names):
        folder = tmp_path / "images" / part / name
        folder.mkdir(parents=True)
        for image in sorted((source / part / name).iterdir())[:8]:
            (folder / image.name).symlink_to(image.resolve())
    config = study_of(tmp_path / "images")
    check_sizes(config, count_images(config, tmp_path / "none").limits)
    record = train_to_the_end(config, tmp_path / "run")
    assert (record["images"], record["held_out_images"]) == (24, 24)
