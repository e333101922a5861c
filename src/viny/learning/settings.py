"""Settings as the library's functions take them: typed, without defaults that a study would miss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

IN_MEMORY = 2 << 30  # bytes of images up to which a subset is read once; beyond, batches come from the map
BATCH = 250  # images a forward pass, where nothing is trained


def batch_of_masks(classes: int) -> int:
    """Images a forward pass that gives every pixel a score for each class: fewer where classes are many."""
    return max(1, BATCH * 8 // max(8, classes))


@dataclass(frozen=True)
class ModelSettings:
    """Dimensions of the vision transformer; pixels for sizes."""

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
    """What the training loop needs to know of a stage."""

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
