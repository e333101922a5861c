"""Settings as the library's functions take them: typed, with defaults only for the paper's model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from viny.runtime.errors import InputError

IN_MEMORY = 2 << 30  # bytes; larger subsets are read from the memory map batch by batch, others once
TRAINING = 3  # operations of a training step, in forward passes: one forward, and twice that backward
TENTHS = 10  # of a training's epochs, after each of which the loss on held-out images is measured
ARCHITECTURES = ("viny", "timm")
BATCH = 64  # images per forward pass when nothing is trained; more no longer fit a processor's cache


def batch_of_masks(classes: int) -> int:
    """Images per forward pass that gives every pixel a score for each class: fewer if there are many classes."""
    return max(1, BATCH * 8 // max(8, classes))


@dataclass(frozen=True)
class ModelSettings:
    """Dimensions of the vision transformer; sizes in pixels.

    `architecture` is 'viny', or 'timm' for the plain vision transformer as timm has it: a linear patch embedding
    without norms, biases of q, k and v, heads as wide together as the tokens.

    Raises:
        ValueError: there is no such architecture, or timm has none of these dimensions.
    """

    image_size: int = 128
    patch_size: int = 16
    dim: int = 128
    depth: int = 12
    heads: int = 8
    head_dim: int = 64
    mlp_dim: int = 512
    architecture: str = "viny"

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"architecture '{self.architecture}'; expected {' or '.join(ARCHITECTURES)}")
        if self.plain and self.heads * self.head_dim != self.dim:
            raise ValueError(
                f"{self.heads} heads of {self.head_dim} are not the {self.dim} dimensions of timm's tokens"
            )

    @property
    def plain(self) -> bool:
        """Whether it is timm's architecture."""
        return self.architecture == "timm"

    @property
    def epsilon(self) -> float:
        """What layer norms add to a variance."""
        return 1e-6 if self.plain else 1e-5

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


TIMM_SIZES = {"tiny": {"dim": 192, "heads": 3}, "small": {"dim": 384, "heads": 6}}
TIMM_MODELS = {
    **{f"vit_{size}_patch16_{side}": size for size in TIMM_SIZES for side in (224, 384)},
    **{f"deit_{size}_patch16_224": size for size in TIMM_SIZES},
}


def timm_model(name: str, image_size: int) -> dict[str, Any]:
    """The `model` settings of one of timm's vision transformers, by its name, for images of another size too.

    Args:
        name: as timm has it, such as vit_tiny_patch16_224, with or without the name of its weights after a dot.
        image_size: side of the images, pixels.

    Raises:
        InputError: no such model is known here, or its patches do not fill the image.
    """
    size = TIMM_MODELS.get(name.partition(".")[0])
    if size is None:
        raise InputError(
            f"timm: '{name}' is not known here; expected one of {', '.join(TIMM_MODELS)}, with or without the name of "
            "its weights after a dot, as in vit_tiny_patch16_224.augreg_in21k"
        )
    if image_size % 16:
        raise InputError(
            f"model.image_size: {image_size}; expected a multiple of 16, the side of the patches of timm's {name}"
        )
    dim = TIMM_SIZES[size]["dim"]
    model = {"architecture": "timm", "image_size": image_size, "patch_size": 16, "dim": dim, "depth": 12}
    return {**model, "heads": TIMM_SIZES[size]["heads"], "head_dim": 64, "mlp_dim": 4 * dim}


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


def measured_epochs(epochs: int, milestones: Iterable[int]) -> set[int]:
    """After how many epochs the loss on held-out images is measured: at milestones, tenths of the way and the end."""
    tenths = {round(epochs * tenth / TENTHS) for tenth in range(1, TENTHS + 1)}
    return {epoch for epoch in tenths | set(milestones) if 0 < epoch <= epochs}


def tuned_epochs(epochs: int, share: float) -> int:
    """Epochs that a rate is tried for: a share of a fine-tuning's, at least one."""
    return max(1, round(share * epochs))


def moved_milestones(milestones: Iterable[int], epochs: int, others: int) -> list[int]:
    """Milestones of a training of `epochs` at the same shares of the way of `others`; those at its ends are dropped."""
    moved = {round(others * milestone / epochs) for milestone in milestones}
    return sorted(milestone for milestone in moved if 0 < milestone < others)


TRAIN_KEYS = tuple(f.name for f in fields(TrainSettings))
