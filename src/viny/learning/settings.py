"""Settings as the library's functions take them: typed, with defaults only for the paper's model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

IN_MEMORY = 2 << 30  # bytes; larger subsets are read from the memory map batch by batch, others once
TRAINING = 3  # operations of a training step, in forward passes: one forward, and twice that backward
BATCH = 64  # images per forward pass when nothing is trained; more no longer fit a processor's cache


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


def forward_operations(model: ModelSettings) -> int:
    """Multiplications and additions to pass one image through the encoder; 0.72e9 for ViNy.

    Linear layers and attention; norms, activations and heads are left out.
    """
    tokens, inner = model.patches, model.heads * model.head_dim
    block = 4 * tokens * model.dim * inner + 2 * tokens**2 * inner + 2 * tokens * model.dim * model.mlp_dim
    embedding = tokens * 3 * model.patch_size**2 * model.dim
    return 2 * (embedding + model.depth * block)


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
