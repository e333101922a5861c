"""Segmentation metrics compared with torchmetrics and with plain loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from viny.data.masks import mask_coding
from viny.data.pack import open_pack
from viny.data.packing import build_pack
from viny.evidence import metrics
from viny.evidence.evaluate import confusion_matrices
from viny.evidence.metrics import (
    classes_in,
    classes_lacking,
    iou,
    mean_iou_dataset,
    mean_iou_per_image,
    summarise,
    without_border,
)
from viny.evidence.statistics import crossed

NAMES = ["pet", "background", "border"]
BORDER = 2


@pytest.fixture
def maps() -> tuple[Tensor, Tensor]:
    """Truth and prediction of six images that agree in part; classes are missing from some."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 3, (6, 10, 10), generator=generator, dtype=torch.uint8)
    noise = torch.randint(0, 3, (6, 10, 10), generator=generator, dtype=torch.uint8)
    keep = torch.rand(6, 10, 10, generator=generator) < 0.7
    predicted = torch.where(keep, truth, noise)
    truth[1][truth[1] == 0] = 1  # no pet, though some is predicted
    truth[2], predicted[2] = 1, 1  # all background, rightly
    truth[3], predicted[3] = 1, 0  # all background, taken for pet
    return truth, predicted


def confusion(maps: tuple[Tensor, Tensor]) -> np.ndarray:
    return confusion_matrices(*maps, 3).numpy()


def test_confusion_matrices(maps: tuple[Tensor, Tensor]) -> None:
    torchmetrics = pytest.importorskip("torchmetrics.functional.classification")
    found = confusion_matrices(*maps, 3)
    assert found.shape == (6, 3, 3)
    assert found.sum((1, 2)).tolist() == [100] * 6
    for t, p, matrix in zip(*maps, found, strict=True):
        expected = torchmetrics.multiclass_confusion_matrix(p.long(), t.long(), num_classes=3)
        assert torch.equal(matrix, expected)
    # Rows are the truth: class 1 taken for class 0.
    assert found[3].tolist() == [[0, 0, 0], [100, 0, 0], [0, 0, 0]]


def test_many_images_do_not_spill_into_each_other() -> None:
    truth = torch.arange(5).view(5, 1, 1).expand(5, 2, 2)
    found = confusion_matrices(truth, torch.zeros_like(truth), 5)
    for image in range(5):
        expected = torch.zeros(5, 5, dtype=torch.int64)
        expected[image, 0] = 4
        assert torch.equal(found[image], expected)


def test_dataset_metrics_are_torchmetrics(maps: tuple[Tensor, Tensor]) -> None:
    torchmetrics = pytest.importorskip("torchmetrics.functional.classification")
    truth, predicted = (m.long() for m in maps)
    found = summarise(confusion(maps), NAMES, BORDER)
    jaccard, accuracy = torchmetrics.multiclass_jaccard_index, torchmetrics.multiclass_accuracy
    assert found["miou_dataset"] == pytest.approx(float(jaccard(predicted, truth, num_classes=3)), abs=1e-6)
    overall = float(accuracy(predicted, truth, num_classes=3, average="micro"))
    assert found["pixel_accuracy"] == pytest.approx(overall, abs=1e-6)
    each = jaccard(predicted, truth, num_classes=3, average="none").tolist()
    assert [found[f"iou_{name}"] for name in NAMES] == pytest.approx(each, abs=1e-6)
    two = float(jaccard(predicted, truth, num_classes=3, ignore_index=BORDER))
    assert found["miou_two_class_dataset"] == pytest.approx(two, abs=1e-6)
    assert found["miou_two_class_dataset"] != pytest.approx(found["miou_dataset"], abs=1e-3)


def naive_per_image(truth: Tensor, predicted: Tensor, classes: list[int], ignored: int | None) -> float:
    """Sets of pixels, image by image; a class in neither map counts 0, as in the paper's code."""
    images = []
    for t, p in zip(truth.flatten(1).tolist(), predicted.flatten(1).tolist(), strict=True):
        pairs = [(a, b) for a, b in zip(t, p, strict=True) if a != ignored]
        total = 0.0
        for c in classes:
            union = sum(a == c or b == c for a, b in pairs)
            total += sum(a == c and b == c for a, b in pairs) / union if union else 0.0
        images.append(total / len(classes))
    return sum(images) / len(images)


def test_per_image_miou_by_loop(maps: tuple[Tensor, Tensor]) -> None:
    found = summarise(confusion(maps), NAMES, BORDER)
    assert found["miou_per_image"] == pytest.approx(naive_per_image(*maps, [0, 1, 2], None))
    assert found["miou_two_class_per_image"] == pytest.approx(naive_per_image(*maps, [0, 1], BORDER))
    # On its own, a perfect all-background image gets a third: the quirk is kept.
    assert mean_iou_per_image(confusion(maps)[2:3], [0, 1, 2]) == pytest.approx(1 / 3)
    assert mean_iou_per_image(confusion(maps)[3:4], [0, 1, 2]) == 0


def test_border_pixels_are_ignored_but_predicting_border_is_not(maps: tuple[Tensor, Tensor]) -> None:
    truth, predicted = maps
    before = summarise(confusion(maps), NAMES, BORDER)
    changed = predicted.clone()
    changed[truth == BORDER] = (predicted[truth == BORDER] + 1) % 3  # other guesses on border pixels
    after = summarise(confusion((truth, changed)), NAMES, BORDER)
    for key in ("miou_two_class_dataset", "miou_two_class_per_image"):
        assert after[key] == before[key]
    assert after["miou_dataset"] != before["miou_dataset"]
    missed = predicted.clone()
    missed[(truth == 0) & (predicted == 0)] = BORDER
    worse = summarise(confusion((truth, missed)), NAMES, BORDER)
    assert worse["miou_two_class_dataset"] < before["miou_two_class_dataset"]


def test_the_input_of_without_border_is_kept(maps: tuple[Tensor, Tensor]) -> None:
    matrix = confusion(maps)
    copy = matrix.copy()
    reduced = without_border(matrix, BORDER)
    assert (matrix == copy).all()
    assert reduced[:, BORDER].sum() == 0
    assert (reduced[:, :BORDER] == copy[:, :BORDER]).all()


def test_perfect_prediction() -> None:
    truth = torch.randint(0, 3, (3, 6, 6), generator=torch.Generator().manual_seed(1))
    found = summarise(confusion((truth, truth)), NAMES, BORDER)
    assert set(found.values()) == {1.0}


def test_images_of_one_class() -> None:
    truth = torch.ones(4, 5, 5, dtype=torch.uint8)
    found = summarise(confusion((truth, truth)), NAMES, BORDER)
    assert found["pixel_accuracy"] == 1
    assert found["miou_dataset"] == 1  # classes that never occur are left out
    assert found["miou_per_image"] == pytest.approx(1 / 3)  # and here they count 0
    assert found["iou_background"] == 1
    assert found["iou_pet"] is None and found["iou_border"] is None


def test_undefined_is_none() -> None:
    truth = torch.full((2, 4, 4), BORDER)
    found = summarise(confusion((truth, truth)), NAMES, BORDER)
    # Nothing is left when the border is ignored.
    assert found["miou_two_class_dataset"] is None
    assert found["miou_dataset"] == 1
    assert np.isnan(iou(np.zeros((3, 3)))).all()
    assert np.isnan(mean_iou_dataset(np.zeros((2, 3, 3)), [0, 1, 2]))


def test_without_a_border_there_are_no_two_class_metrics(maps: tuple[Tensor, Tensor]) -> None:
    found = summarise(confusion(maps), NAMES, None)
    assert not any("two_class" in key for key in found)
    assert all(value is None or type(value) is float for value in found.values())


# Means over classes: those that the true masks have


def with_absent(seed: int, classes: int, lacking: list[int], size: int = 12) -> tuple[Tensor, Tensor]:
    """Truth without some classes, and a prediction that is half right and has every class."""
    generator = torch.Generator().manual_seed(seed)
    there = torch.tensor([c for c in range(classes) if c not in lacking])
    truth = there[torch.randint(0, len(there), (5, size, size), generator=generator)]
    noise = torch.randint(0, classes, truth.shape, generator=generator)
    return truth, torch.where(torch.rand(truth.shape, generator=generator) < 0.5, truth, noise)


@pytest.mark.parametrize("lacking", [[], [2], [0, 3]])
def test_the_mean_is_over_the_classes_of_the_truth_as_torchmetrics_has_them(lacking: list[int]) -> None:
    torchmetrics = pytest.importorskip("torchmetrics.functional.classification")
    truth, predicted = with_absent(0, 5, lacking)
    names = [f"c{c}" for c in range(5)]
    confusion = confusion_matrices(truth, predicted, 5).numpy()
    found = summarise(confusion, names, None)
    each = torchmetrics.multiclass_jaccard_index(predicted, truth, num_classes=5, average="none").numpy()
    there = [c for c in range(5) if c not in lacking]
    assert found["miou_dataset"] == pytest.approx(each[there].mean(), abs=1e-6)
    assert [name for name in names if found[f"iou_{name}"] is None] == [f"c{c}" for c in lacking]
    classes = classes_in(confusion, names)
    assert classes == {"averaged": [f"c{c}" for c in there], "not_in_test": [f"c{c}" for c in lacking]}


def test_a_stray_pixel_of_an_absent_class_costs_what_it_covers_and_no_more() -> None:
    truth = torch.zeros(2, 48, 48, dtype=torch.long)
    truth[:, 4:24, 4:24] = 1
    stray = truth.clone()
    stray[0, 40, 40] = 2
    perfect, one_off = (summarise(confusion_matrices(truth, p, 3).numpy(), NAMES, None) for p in (truth, stray))
    assert perfect["miou_dataset"] == 1
    assert 1 - 1 / truth[truth == 0].numel() < one_off["miou_dataset"] < 1
    assert perfect["iou_border"] is one_off["iou_border"] is None


def test_a_constant_answer_and_a_model_are_averaged_over_the_same_classes() -> None:
    truth, predicted = with_absent(1, 4, [2])
    constant = torch.full_like(truth, 2)  # of the class that is in no mask
    for guess in (predicted, constant, truth):
        confusion = confusion_matrices(truth, guess, 4).numpy()
        assert np.isfinite(iou(confusion.sum(0))).tolist() == [True, True, False, True]
    assert mean_iou_dataset(confusion_matrices(truth, constant, 4).numpy(), [0, 1, 2, 3]) == 0


def iou_of_any(confusion: np.ndarray) -> np.ndarray:
    """IoU where a class is present or predicted: the same where every class is present."""
    hit = np.diagonal(confusion, axis1=-2, axis2=-1).astype(float)
    union = confusion.sum(-1) + confusion.sum(-2) - hit
    return np.divide(hit, union, out=np.full(hit.shape, np.nan), where=union > 0)


@pytest.mark.parametrize("classes", [2, 3, 11])
def test_where_every_class_is_in_the_test_masks_no_bit_depends_on_the_rule(
    classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth, predicted = with_absent(2, classes, [])
    truth[1][truth[1] == 0] = 1  # one image lacks a class that is predicted there
    matrices = confusion_matrices(truth, predicted, classes).numpy()
    assert (matrices.sum((0, 2)) > 0).all() and (matrices[1].sum(1) == 0).any()
    names = [f"c{c}" for c in range(classes)]

    def everything() -> list[Any]:
        return [
            summarise(matrices, names, classes - 1),
            *(crossed.influence(matrices, kind).tolist() for kind in ("dataset", "per_image")),
        ]

    here = everything()
    for module in (metrics, crossed):
        monkeypatch.setattr(module, "iou", iou_of_any)
    assert everything() == here


def test_the_influence_of_images_is_over_the_same_classes() -> None:
    truth, predicted = with_absent(3, 4, [2])
    confusion = confusion_matrices(truth, predicted, 4).numpy()
    changes = []
    for at in range(len(confusion)):
        weights = np.ones(len(confusion))
        weights[at] += 1e-6
        changed = iou((confusion * weights[:, None, None]).sum(0))
        changes.append((np.nanmean(changed) - np.nanmean(iou(confusion.sum(0)))) / 1e-6)
    assert crossed.influence(confusion, "dataset") == pytest.approx(changes, abs=1e-5)


def test_classes_that_masks_of_a_pack_lack(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for at in range(300):
        mask = np.zeros((8, 8), np.uint8)
        mask[2:5, 2:5], mask[6, 6] = at % 2, 255
        if at == 299:
            mask[0, 0] = 2
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "images" / f"{at:03d}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{at:03d}.png")
    spec = {"source": "folder", "holds": "masks", "path": str(tmp_path / "images"), "masks": str(tmp_path / "masks"),
            "mask_suffix": "", "split": "", "size": 8, "resize": "nearest", **mask_coding(4, [255])}  # fmt: skip
    (tmp_path / "pack").mkdir()
    build_pack(spec, tmp_path / "pack", threads=1)
    pack = open_pack(tmp_path / "pack" / "manifest.json")
    assert classes_lacking(pack, np.arange(300)) == ["class_3"]
    assert classes_lacking(pack, np.arange(299)) == ["class_2", "class_3"]
    assert classes_lacking(pack, np.array([299])) == ["class_3"]  # an odd one
    assert classes_lacking(pack, np.array([0])) == ["class_1", "class_2", "class_3"]
    assert classes_lacking(pack, np.empty(0, np.int64)) == pack.manifest["mask_classes"]
