"""The files of a study with arms, as if it had been run: numbers are made, of a known truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from viny.evidence.report.page import READ, write_page
from viny.evidence.stages.statistics import write_statistics
from viny.evidence.stages.tables import gather
from viny.runtime.files import write_json
from viny.study.arms import settings_of
from viny.study.config import merge, resolve
from viny.study.grid import Cell, cells
from viny.study.layout import TUNING, chain, metrics_file, trainings
from viny.study.reading import read_config
from viny.study.specs import is_tuned, summary_spec

ARMS: dict[str, Any] = {
    "grid": {
        **{"starts": ["random", "tiny"], "variants": ["study", "tuned", "frozen", "equal_steps"]},
        **{"pretrain_sizes": [0, 8, 24], "intermediates": ["none"], "finetune_sizes": [8, 16], "seeds": [0, 1, 2]},
    },
    "starts": {"tiny": {"timm": "vit_tiny_patch16_224"}},
    "variants": {"tuned": {"tune": {"lr": [0.001, 0.004]}}},
    "model": {"image_size": 32, "patch_size": 8},
    "pretrain": {"held_out": 4, "epochs": 9, "milestones": []},
    "synthetic": {"unlabelled": 40},
}
RATE = 0.004  # that tuning chose
GAIN = {"tiny": 0.2, "tuned": 0.03, "frozen": -0.1}  # in mIoU
IMAGES = 60  # of the test set
RUN = {
    **{"training_seconds": 360.0, "image_passes": 5000, "device_name": "a CPU", "precision": "float32", "code": "0.1"},
    **{"python": "3.11", "packages": {"torch": "2"}, "processor": "a CPU", "study_sha256": "ab"},
    **{"started": "2026-01-01T00:00:00", "ended": "2026-01-01T00:01:00"},
}


def score(cell: Cell) -> float:
    """The true mIoU of a cell: of pre-training, steps count and images do not; published weights gain less from it."""
    steps = 24 if cell.variant == "equal_steps" and cell.pretrain_size else cell.pretrain_size
    simmim = 0.02 * np.log2(1 + steps / 2) * (0.5 if cell.start == "tiny" else 1)
    gains = GAIN.get(cell.start, 0) + GAIN.get(cell.variant, 0)
    return 0.35 + simmim + gains + 0.05 * (cell.finetune_size == 16)


def write_arms_study(
    root: Path, settings: Mapping[str, Any] = ARMS, truth: Callable[[Cell], float] = score, spread: float = 0.004
) -> dict[str, Any]:
    """Write metrics, confusion matrices, runs, records, curves and tunings of a study below its folder.

    Args:
        root: the study's folder.
        settings: those that differ from tests/tiny.yaml.
        truth: the mIoU of a cell without its noise.
        spread: standard deviation over seeds.

    Returns:
        Its resolved settings.
    """
    config = resolve(merge(read_config(Path(__file__).with_name("tiny.yaml")), settings))
    rng = np.random.default_rng(0)
    every = cells(config)
    for cell in every:
        right = np.clip(truth(cell) + spread * rng.normal() + 0.03 * rng.normal(size=(IMAGES, 2)), 0, 1)
        confusion = np.empty((IMAGES, 2, 2))
        hit = 2 * right / (1 + right)  # of 2 equal classes, so that IoU is `right`
        confusion[:, [0, 1], [0, 1]], confusion[:, [0, 1], [1, 0]] = 500 * hit, 500 * (1 - hit)
        confusion = confusion.round().astype(np.int32)
        total = confusion.sum(0)
        diagonal = np.diag(total)
        miou = float((diagonal / (total.sum(0) + total.sum(1) - diagonal)).mean())
        path = metrics_file(root, cell)
        value = {"study": config["study"], "protocol": "sound", "note": "", "cell": cell.as_dict(), "classes": {}}
        value |= {"metrics": {"miou": miou, "pixel_accuracy": 0.7}, "miou_is": "dataset", "test_images": IMAGES}
        write_json(path, value | {"parameters": 7, "provenance": {}})
        np.savez(path.with_suffix(".npz"), confusion=confusion, indices=np.arange(IMAGES))
        if is_tuned(settings_of(config, cell.arm)):
            scores = [{"lr": lr, "miou": lr, "seconds": 90.0, "image_passes": 100} for lr in (0.001, RATE)]
            write_json(root / TUNING.format(cell=cell.name), {"stage": "tune", "rates": scores})
            write_json(chain(cell)[-1].file(root, "record"), {"stage": "finetune", "tuned": {"lr": RATE}})
    for training in trainings(every):
        write_json(training.file(root, "run"), RUN)
        if training.stage == "pretrain":
            epoch = np.arange(1, 10)
            loss = (1 + 0.01 * training.cell["seed"]) / epoch**0.2
            held_out = np.where(epoch % 3 == 0, loss + 0.5 * epoch / 9 / training.cell["pretrain_size"], np.nan)
            curve = pd.DataFrame({"epoch": epoch, "lr": 0.001, "loss": loss, "held_out_loss": held_out})
            curve.to_csv(training.file(root, "curve"), index=False)
    return config


def summarise(root: Path, config: Mapping[str, Any]) -> None:
    """Write its tables, its statistics with their figures, and its report, with what that needs besides."""
    for stage, make in (("tables", gather), ("statistics", write_statistics)):
        make(summary_spec(config, stage), root=root, out=root, record=root / "summaries" / f"{stage}.json")
    (root / "tables" / "duplicates.csv").write_text("role,image,test_image,kind,distance\n")
    (root / "tables" / "scorecard.csv").write_text(",".join(READ["scorecard"]) + "\n")
    record = root / "summaries" / "report.json"
    write_page(summary_spec(config, "report"), root=root, out=root / "report.html", record=record)
