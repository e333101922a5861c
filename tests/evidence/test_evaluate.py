"""What an evaluation says besides its numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("jsonschema")

from tiny_study import Study

from viny.data.pack import Pack
from viny.evidence.evaluate import predict
from viny.learning.machine import Machine
from viny.learning.objectives import Segmentation
from viny.learning.settings import ModelSettings
from viny.learning.weights import new_encoder
from viny.study.config import merge, resolve
from viny.study.grid import Cell
from viny.study.reading import read_config

TINY = Path(__file__).parents[1] / "tiny.yaml"


def test_classes_that_test_or_training_masks_lack_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    lines = []
    for at in range(20):
        test = at < 6
        mask = np.zeros((24, 24), np.uint8)
        mask[4:12, 4:12], mask[14:20, 14:20] = 1, 3 if test else 2
        Image.fromarray(np.random.default_rng(at).integers(0, 256, (24, 24, 3), np.uint8)).save(
            tmp_path / "images" / f"{at}.png"
        )
        Image.fromarray(mask).save(tmp_path / "masks" / f"{at}.png")
        lines.append(f"{at}.png,{'test' if test else 'train'}\n")
    (tmp_path / "split.csv").write_text("".join(lines))
    own = {"source": "folder", "images": str(tmp_path / "images"), "masks": str(tmp_path / "masks"),
           "classes": {"0": "ground", "1": "cat", "2": "dog", "3": "cow", "4": "yak"}, "test_size": 0,
           "split": str(tmp_path / "split.csv")}  # fmt: skip
    config = resolve(merge(read_config(TINY), {"segmentation": own, "grid": {"intermediates": ["none"]}}))
    study, cell = Study(tmp_path / "study", config), Cell(0, "none", 8, 0)
    found = study.evaluate(cell, study.finetune(cell, None))
    assert found["classes"] == {
        "averaged": ["ground", "cat", "cow"],
        "not_in_test": ["dog", "yak"],
        "not_in_training": ["cow", "yak"],
    }
    metrics = found["metrics"]
    assert metrics["iou_dog"] is metrics["iou_yak"] is None and metrics["iou_cow"] is not None
    mean = np.mean([metrics[f"iou_{name}"] for name in found["classes"]["averaged"]])
    assert metrics["miou"] == pytest.approx(mean)
    said = capsys.readouterr().out
    assert "no pixel in any test mask: dog, yak" in said and "no pixel in any training mask: cow, yak" in said


def test_of_equal_scores_the_first_class_wins_and_no_number_beats_all(
    tiny: ModelSettings, pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = torch.randint(0, 3, (12, 5, 24, 24), generator=torch.Generator().manual_seed(0)).float()
    given[0, 3, 5], given[1, 2:4, 6] = torch.nan, torch.nan
    monkeypatch.setattr(Segmentation, "forward", lambda self, images: given)
    model = Segmentation(new_encoder(vars(tiny), 0), 5)
    guess = predict(model, pack, np.arange(12), True, None, Machine(torch.device("cpu"), "float32"))[1]
    expected = given.nan_to_num(nan=9).numpy().argmax(1)  # NumPy's: the first of equals
    assert guess.dtype == torch.uint8 and np.array_equal(guess.numpy(), expected)
