"""Settings as the library's functions take them: typed, with defaults only for the paper's model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

IN_MEMORY = 2 << 30  # bytes; larger subsets are read from the memory map batch by batch, others once
BATCH = 250  # images per forward pass when nothing is trained


def batch_of_masks(classes: int) -> int:
    """Images per forward pass that gives every pixel a score for each class: fewer if there are many classes."""
    return max(1, BATCH * 8 // max(8, classes))


@dataclass(frozen=True)
class ModelSettings:
    """Dimensions of the vision transformer; sizes in pixels."""

    image_size: int = 128
    patch_size: int = 16
    dim: int = 128
    depth: int = 12
    heads: int = 8
    head_dim: int = 64
    mlp_dim: int = 512

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class TrainSettings:
    """What the training loop needs to know about a stage."""

    epochs: int
    batch_size: int
    optimizer: str
    lr: float
    weight_decay: float
    milestones: tuple[int, ...]
    gamma: float

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> TrainSettings:
        picked = {f.name: values[f.name] for f in fields(cls)}
        picked["milestones"] = tuple(picked["milestones"])
        return cls(**picked)


TRAIN_KEYS = tuple(f.name for f in fields(TrainSettings))
