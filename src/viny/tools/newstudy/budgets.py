"""How large a new study is that has all the time it needs: model, trainings and sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from viny.study.unanswered import FEW_IMAGES

TEST_SHARE, TEST_LEAST, TEST_MOST = 0.2, FEW_IMAGES, 1000  # held-out images
TINY_VINY = {"dim": 64, "depth": 4, "heads": 4, "head_dim": 16, "mlp_dim": 256}
SMALL_VINY = {"dim": 96, "depth": 6, "heads": 6, "head_dim": 32, "mlp_dim": 384}
MOST_EPOCHS = 10_000  # few images need many


@dataclass(frozen=True)
class Budget:
    """How large the model and its trainings are.

    Attributes:
        said: the model in words.
        model: its dimensions; empty for ViNy's.
        image_size: pixels.
        pretrain, task, finetune: steps, with all images, and images per step.
        lr: of pre-training.
        unlabelled, labelled: the most images that are used.
    """

    said: str
    model: Mapping[str, int]
    image_size: int
    pretrain: tuple[int, int]
    task: tuple[int, int]
    finetune: tuple[int, int]
    lr: float
    unlabelled: int
    labelled: int


# The largest first. Steps: the smaller ViNy's pre-training helped after 11,000 of 32 images (README); the paper's took
# 35,000 of 128. The tiny one is the demo's, but for a block more.
BUDGETS = {
    "medium": Budget("ViNy", {}, 128, (16_000, 64), (2_000, 64), (2_500, 32), 0.001, 100_000, 8_000),
    "small": Budget("a smaller ViNy", SMALL_VINY, 64, (10_000, 32), (1_000, 32), (1_500, 16), 0.001, 20_000, 2_000),
    "tiny": Budget("a tiny ViNy", TINY_VINY, 48, (10_000, 32), (1_000, 32), (1_500, 16), 0.0005, 20_000, 2_000),
}


def ladder(count: int, steps: int) -> list[int]:
    """Sizes up to about `count`, each twice the one before, with few digits."""
    base = count >> (steps - 1)
    unit = max(1, 5 * 10 ** (len(str(base)) - 3)) if base >= 100 else 1
    return [base // unit * unit << step for step in range(steps)]


def held_out_of(count: int) -> int:
    """Held-out images of `count` labelled ones: a fifth, but at least 100 unless that is more than two fifths."""
    wanted = max(round(TEST_SHARE * count), min(TEST_LEAST, 2 * count // 5))
    return min(TEST_MOST, wanted if wanted < 100 else wanted // 10 * 10)


def _tidy(number: int) -> int:
    """A number rounded up to two digits and noughts."""
    unit = 10 ** max(0, len(str(number)) - 2)
    return -(-number // unit) * unit


def training_lines(steps: int, batch: int, images: int, least: int, *falls: float) -> list[tuple[str, Any, str]]:
    """Lines for at least `least` epochs, about `steps` steps with all images; the rate falls after shares of them."""
    a_pass = math.ceil(images / batch)
    epochs = max(least, min(MOST_EPOCHS, _tidy(math.ceil(steps / a_pass))))
    return [
        ("epochs", epochs, f"{epochs * a_pass:,} steps with {images:,} images"),
        ("batch_size", batch, "images a step"),
        ("milestones", sorted({int(share * epochs) for share in falls} - {0, epochs}), "epochs, then the rate falls"),
    ]
