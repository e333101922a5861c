"""Scores brought to an image's own size, tiles, and what is counted there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.ndimage import map_coordinates
from torch import Tensor

from viny.data.decoding import inner_box, squared
from viny.data.masks import IGNORE, deflated, inflated
from viny.evidence import own_size
from viny.evidence.metrics import miou_of_images, own_size_counts, own_size_iou, own_size_summary
from viny.evidence.own_size import class_map, tiled
from viny.learning.scores import confusion_matrices, iou
from viny.runtime.text import cell_text

SIZES = ((24, 40, 60), (24, 61, 40), (7, 5, 4), (16, 16, 16), (10, 33, 8), (12, 4, 90), (32, 9, 9))


def whole(scores: np.ndarray, height: int, width: int, fit: str) -> np.ndarray:
    """Scores at an image's own size by SciPy, NaN where nothing was predicted."""
    side = scores.shape[-1]
    left, top, right, bottom = inner_box(height, width, side) if fit == "pad" else (0, 0, side, side)
    shorter = min(height, width)

    def places(length: int, start: int, stop: int) -> np.ndarray:
        at = np.arange(length) + 0.5
        if fit == "crop":
            seen = (at - (length - shorter) / 2) / shorter
            return np.where((seen < 0) | (seen >= 1), np.nan, seen * side - 0.5)
        return start + at / length * (stop - start) - 0.5

    y, x = np.meshgrid(places(height, top, bottom), places(width, left, right), indexing="ij")
    inside = scores[:, top:bottom, left:right]  # of a padded image, so that no bar is mixed in
    out = np.stack(
        [
            map_coordinates(one, [np.nan_to_num(y - top), np.nan_to_num(x - left)], order=1, mode="nearest")
            for one in inside
        ]
    )
    return np.where(np.isnan(y) | np.isnan(x), np.nan, out)


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("classes", [2, 5])
def test_the_map_is_that_of_the_interpolated_scores(fit: str, classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(classes)
    for side, height, width in SIZES:
        scores = rng.normal(size=(classes, side, side)).astype(np.float32)
        expected = whole(scores, height, width, fit)
        found = class_map(torch.from_numpy(scores), height, width, fit)
        unseen = np.isnan(expected[0])
        assert found.dtype == np.uint8 and np.array_equal(found == IGNORE, unseen)
        first, second = -np.sort(-expected, axis=0)[:2]
        clear = ~unseen & (first - second > 1e-3)  # rounding decides between equals
        assert clear.sum() > 0.9 * (~unseen).sum()
        assert np.array_equal(found[clear], expected.argmax(0)[clear])
        monkeypatch.setattr(own_size, "AT_ONCE", 3 * classes * width)
        assert np.array_equal(class_map(torch.from_numpy(scores), height, width, fit), found)
        monkeypatch.undo()


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize(("height", "width"), [(97, 131), (131, 97), (64, 64), (45, 200)])
def test_undoing_a_fit_puts_an_edge_back_where_it_was(fit: str, height: int, width: int) -> None:
    """What Pillow made square comes back within a pixel of the square, wherever a slanted edge runs."""
    y, x = np.mgrid[:height, :width] + 0.5
    distance = (x - 0.45 * width) * 0.9 + (y - 0.55 * height) * 0.4  # from the edge, pixels
    square = np.asarray(squared(Image.fromarray(distance.astype(np.float32)), 32, fit, Image.Resampling.BILINEAR, -9))
    scores = torch.from_numpy(np.stack([-square, square]))
    found = class_map(scores, height, width, fit)
    seen = found != IGNORE
    pixel = (min(height, width) if fit == "crop" else max(height, width)) / 32
    far = seen & (abs(distance) > 0.3 * pixel)
    assert np.array_equal(found[far], (distance > 0)[far])
    nearest = np.asarray(
        squared(Image.fromarray((distance > 0).astype(np.uint8)), 32, fit, Image.Resampling.NEAREST, 0)
    )
    coarse = class_map(torch.from_numpy(np.stack([nearest == 0, nearest == 1]).astype(np.float32)), height, width, fit)
    wrong = [(some[seen] != (distance > 0)[seen]).mean() for some in (found, coarse)]
    assert wrong[0] < wrong[1]  # scores say more than classes do


def test_bars_have_no_say_at_the_edge_of_a_padded_image() -> None:
    scores = torch.zeros(2, 12, 12)
    scores[1] = 100.0  # of the bars
    scores[:, 3:9] = torch.tensor([1.0, 0.0])[:, None, None]
    assert not class_map(scores, 31, 62, "pad").any()


def test_few_scores_are_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []

    def counted(scores: Tensor, *given: Any, **more: Any) -> Tensor:
        out = torch.nn.functional.grid_sample(scores, *given, **more)
        held.append(out.numel())
        return out

    monkeypatch.setattr(own_size, "F", type("Counted", (), {"grid_sample": staticmethod(counted)}))
    found = class_map(torch.randn(200, 8, 8), 500, 700, "stretch")
    assert found.shape == (500, 700) and len(held) > 10 and max(held) <= own_size.AT_ONCE


def test_tiles_of_a_model_without_context_are_what_it_says_of_each_pixel_and_of_the_whole() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 60, 60), np.uint8)
    sizes = []

    def score(some: np.ndarray) -> Tensor:
        sizes.append(some.shape)
        x = torch.from_numpy(some).float()
        return torch.stack([x[:, 0] - x[:, 1], x[:, 2].sqrt(), x.mean(1)], 1)

    found = tiled(score, images, 20)
    assert sizes == [(2, 3, 20, 20), *[(5, 3, 20, 20)] * 10]  # five by five tiles of each image, a row at a time
    small = torch.nn.functional.avg_pool2d(torch.from_numpy(images).float(), 3).round().numpy()
    whole = torch.nn.functional.interpolate(score(small), (60, 60), mode="bilinear")
    assert torch.allclose(found, (score(images) + whole) / 2, atol=1e-3)


def test_where_tiles_overlap_the_middle_of_one_counts_most() -> None:
    image = np.zeros((1, 3, 16, 16), np.uint8)
    image[:, :, :, 8:] = 1
    scores = tiled(
        lambda tiles: torch.from_numpy(tiles).float().mean((2, 3), keepdim=True).expand(-1, 3, 8, 8), image, 8
    )
    across = scores[0, 0, 5]
    # Of the whole it says a half everywhere: its left half is 0, its right half 1.
    assert across[0] == 0.25 and across[-1] == 0.75 and (across.diff() >= 0).all()
    assert across.diff().max() < 0.1  # no seam


def test_counts_agree_with_confusion_matrices_and_nothing_predicted_is_missed() -> None:
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 4, (6, 31, 17)).astype(np.uint8)
    guess = rng.integers(0, 5, (6, 31, 17)).astype(np.uint8)
    truth[rng.random(truth.shape) < 0.2] = IGNORE
    truth[0][truth[0] == 2] = 1  # a class that an image lacks, and one that no mask has
    matrices = confusion_matrices(torch.from_numpy(truth), torch.from_numpy(guess), 5).numpy()
    counts = np.stack([own_size_counts(*both, 5) for both in zip(truth, guess, strict=True)])
    values = own_size_iou(counts)
    assert np.array_equal(values, iou(matrices), equal_nan=True)
    assert np.isnan(values[0, 2]) and np.isnan(values[:, 4]).all()
    found = own_size_summary(counts)
    assert found["own_size_miou_dataset"] == pytest.approx(np.nanmean(iou(matrices.sum(0))))
    assert found["own_size_miou_per_image"] == pytest.approx(np.nan_to_num(iou(matrices)).mean())
    assert miou_of_images(values) == pytest.approx(np.nanmean(values, axis=1))
    unseen = guess[0].copy()
    unseen[:, :8] = IGNORE
    other = guess[0].copy()
    other[:, :8] = np.where(truth[0, :, :8] == 0, 1, 0)  # wrong everywhere, yet somewhere in a class
    assert (own_size_counts(truth[0], unseen, 5)[1] == counts[0, 1]).all()
    assert (own_size_counts(truth[0], unseen, 5)[0] == own_size_counts(truth[0], other, 5)[0]).all()


def test_jaccard_scores_of_another_library() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(5)
    truth, guess = (rng.integers(0, 3, (40, 50)).astype(np.uint8) for _ in range(2))
    expected = metrics.jaccard_score(truth.ravel(), guess.ravel(), average=None)
    assert own_size_iou(own_size_counts(truth, guess, 3)) == pytest.approx(expected)


def test_masks_come_back_from_few_bytes_and_no_other_bytes_do() -> None:
    y, x = np.mgrid[:375, :500]
    mask = ((x - 250) ** 2 + (y - 180) ** 2 < 150**2).astype(np.uint8) * 254
    mask[:3] = IGNORE
    data = deflated(mask)
    assert len(data) < 2500 and np.array_equal(inflated(data, 375, 500), mask)
    for wrong, shape in ((data[:-9], (375, 500)), (data, (375, 499)), (data, (1, 1)), (b"nothing", (375, 500))):
        with pytest.raises(ValueError):
            inflated(wrong, *shape)


def test_own_size_is_that_of_the_masks_as_people_see_them(tmp_path: Path) -> None:
    """Evaluations of a cell and of a U-Net count what `viny predict` would have written, against the mask files turned
    upright.
    """
    pytest.importorskip("jsonschema")
    from tiny_study import Study

    from viny.data.pack import open_pack
    from viny.evidence.reference import train_reference
    from viny.learning.machine import Machine
    from viny.study.config import merge, resolve
    from viny.study.grid import Cell, Reference
    from viny.study.layout import REFERENCE, reference_file
    from viny.study.reading import read_config
    from viny.study.saved import write_study
    from viny.study.specs import reference_spec
    from viny.tools.trained.cell import load_cell
    from viny.tools.trained.predict import predict_files

    def name_of(at: int) -> str:
        return "=3.png" if at == 3 else f"{at}.png"

    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir(), masks.mkdir()
    rng, lines, upright = np.random.default_rng(0), [], {}
    exif = Image.Exif()
    exif[0x0112] = 6
    for at in range(20):
        height, width = 30 + at, 61 - at
        mask = np.full((height, width), 1, np.uint8)
        mask[5 : 12 + at, 7:20], mask[:4], mask[9:13, 9:13] = 2, 7, 7
        picture = Image.fromarray(rng.integers(0, 80, (height, width, 3), np.uint8) + (80 * mask[..., None] % 170))
        turned, shown = at % 3 == 0, Image.fromarray(mask)
        if turned:
            picture.transpose(Image.Transpose.ROTATE_90).save(images / name_of(at), exif=exif)
        else:
            picture.save(images / name_of(at))
        (shown.transpose(Image.Transpose.ROTATE_90) if turned else shown).save(masks / name_of(at))
        upright[name_of(at)] = np.select([mask == 1, mask == 2], [0, 1], IGNORE).astype(np.uint8)
        lines.append(f"{name_of(at)},{'test' if at < 8 else 'train'}\n")
    (tmp_path / "split.csv").write_text("".join(lines))
    for fit, tiles in (("stretch", 1), ("crop", 1), ("pad", 2)):
        own = {"source": "folder", "images": str(images), "masks": str(masks), "ignore": [7],
               "fit": fit, "tiles": tiles, "classes": {"1": "ground", "2": "box"}, "test_size": 0,
               "split": str(tmp_path / "split.csv")}  # fmt: skip
        tiny = read_config(Path(__file__).parents[1] / "tiny.yaml")
        config = resolve(merge(tiny, {"segmentation": own, "grid": {"intermediates": ["none"]}}))
        study, cell = Study(tmp_path / fit, config), Cell(0, "none", 8, 0)
        write_study(study.root, config)
        record = study.finetune(cell, None, f"finetune/{cell.name}")
        metrics = study.evaluate(cell, record)["metrics"]
        unet = Reference(cell.finetune_size, cell.seed)
        inputs = dict(zip(("manifest", "split", "indices"), study.finetune_inputs(cell), strict=True))
        train_reference(
            reference_spec(config, unet), **inputs, **{key: reference_file(study.root, unet, key) for key in REFERENCE}
        )
        beside = json.loads(reference_file(study.root, unet, "record").read_text())["metrics"]
        test = [images / name_of(at) for at in range(8)]
        for name, found in ((unet.name, beside), (cell.name, metrics)):
            trained = load_cell(name, study.root)
            out = tmp_path / fit / f"out_{name}"
            predict_files(trained, test, out, Machine.choose("cpu", "float32", 1), 1)
            counts = []
            for image in test:
                guess = np.asarray(Image.open(out / f"{image.stem}_mask.png"))
                assert guess.shape == upright[image.name].shape and (fit == "crop") == (IGNORE in guess)
                counts.append(own_size_counts(upright[image.name], guess, 2))
            assert found["own_size_miou_dataset"] == pytest.approx(own_size_iou(np.sum(counts, 0)).mean(), abs=1e-6)
            assert found["own_size_miou_per_image"] == pytest.approx(own_size_iou(np.array(counts)).mean(), abs=1e-6)
        pack = open_pack(study.pack("segmentation"))
        assert (pack.large is None) == (tiles == 1)
        assert tiles == 1 or pack.large.shape == (20, 3, 48, 48)
        scores = pd.read_csv(study.root / "scores.csv")
        names = ["image", "index", "height", "width", "miou", "own_size_miou", "iou_ground", "iou_box"]
        assert list(scores.columns) == names
        assert sorted(scores["image"]) == sorted(map(cell_text, (path.name for path in test)))
        by_name = scores.set_index("image")
        assert by_name.loc["'=3.png", ["height", "width"]].tolist() == [33, 58]
        expected = miou_of_images(own_size_iou(np.array(counts)))
        assert by_name.loc[[cell_text(path.name) for path in test], "own_size_miou"].to_numpy() == pytest.approx(
            expected, rel=1e-5
        )
