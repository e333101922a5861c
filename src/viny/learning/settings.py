"""Settings as the library's functions take them: typed, without defaults that a study would miss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

IN_MEMORY = 2 << 30  # bytes of images up to which a subset is read once; beyond, batches come from the map
TRAINING = 3  # a training step's operations in forward passes: one forward, and twice that backward
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


def forward_operations(model: ModelSettings) -> int:
    """Multiplications and additions of one image's way through the encoder; 0.72e9 for ViNy.

    Linear layers and attention; norms, activations and heads are left out.
    """
    tokens, inner = model.patches, model.heads * model.head_dim
    block = 4 * tokens * model.dim * inner + 2 * tokens**2 * inner + 2 * tokens * model.dim * model.mlp_dim
    embedding = tokens * 3 * model.patch_size**2 * model.dim
    return 2 * (embedding + model.depth * block)


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
