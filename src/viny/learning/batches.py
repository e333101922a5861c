"""Batches: from a pack and an index list to augmented tensors on the device, without per-image Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from viny.data import augment
from viny.data.pack import Pack
from viny.learning.objectives import draw_mixup, draw_patch_mask, mixup
from viny.learning.settings import IN_MEMORY

Tensors = Mapping[str, Tensor]


class PackSubset:
    """Rows of a pack's array, chosen by an index list, fetched by position, and checked when first read.

    Args:
        pack: the pack.
        name: name of its array [N, ...]: 'images', 'masks' or 'labels'.
        indices: [M], rows that make up the subset.
        device: where batches are wanted.
        hold: whether to read the subset at once and keep it there, if it fits alongside the training.
    """

    def __init__(self, pack: Pack, name: str, indices: np.ndarray, device: torch.device, hold: bool = True) -> None:
        self.pack, self.name, self.indices, self.device = pack, name, indices, device
        self.held: Tensor | None = None
        if not hold:
            return
        if len(indices) * self.bytes_each <= self.room:
            self.held = torch.from_numpy(pack.rows(name, indices)).to(device)

    @property
    def room(self) -> int:
        """Bytes that may be kept where batches are wanted."""
        return torch.cuda.mem_get_info(self.device)[0] // 2 if self.device.type == "cuda" else IN_MEMORY

    @property
    def bytes_each(self) -> int:
        """Of a row."""
        array = getattr(self.pack, self.name)
        return int(np.prod(array.shape[1:])) * array.dtype.itemsize

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, positions: Tensor) -> Tensor:
        """[B, ...] on the device, for positions [B] in the subset."""
        if self.held is not None:
            return self.held[augment.to_device(positions, self.held.device)]
        batch = torch.from_numpy(self.pack.rows(self.name, self.indices[positions.numpy()]))
        if self.device.type == "cuda":
            return batch.pin_memory().to(self.device, non_blocking=True)
        return batch


@dataclass(frozen=True)
class Batches:
    """A stage's batches. What is drawn is kept apart from what is computed, so that it can be drawn ahead.

    Attributes:
        subsets: what is read of each image: 'images', and 'masks' where the stage needs them.
        draw: from positions [B] in the training list and the step's generator to all that is drawn or looked up on
            the CPU, a row for each image.
        make: from what was read and drawn to what the objective's loss takes, on the device of what was read.
    """

    subsets: Mapping[str, PackSubset]
    draw: Callable[[Tensor, torch.Generator], dict[str, Tensor]]
    make: Callable[[Tensors, Tensors], tuple[Tensor, ...]]

    def __call__(self, positions: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        return self.of(positions, self.draw(positions, generator))

    def of(self, positions: Tensor, drawn: Tensors) -> tuple[Tensor, ...]:
        """The batch that given draws make."""
        read = {name: subset[positions] for name, subset in self.subsets.items()}
        device = read["images"].device
        return self.make(read, {name: augment.to_device(values, device) for name, values in drawn.items()})


def simmim_batches(
    pack: Pack,
    indices: np.ndarray,
    image_size: int,
    patches: int,
    mask_ratio: float,
    crop_scale: float,
    device: torch.device,
    hold: bool = True,
    normalisation: augment.Normalisation = augment.IMAGENET,
) -> Batches:
    """Random crops, flips, normalisation, and one patch mask per image."""
    shapes = torch.from_numpy(np.asarray(pack.shapes)[indices])

    def draw(positions: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        count = len(positions)
        boxes = augment.draw_crops(shapes[positions], crop_scale, generator)
        flips = augment.draw_flips(count, generator)
        return {"boxes": boxes, "flips": flips, "mask": draw_patch_mask(count, patches, mask_ratio, generator)}

    def make(read: Tensors, drawn: Tensors) -> tuple[Tensor, Tensor]:
        x = augment.to_float(read["images"])
        x = augment.crop_resize_flip(x, drawn["boxes"], drawn["flips"], image_size)
        return augment.normalise(x, normalisation), drawn["mask"]

    return Batches({"images": PackSubset(pack, "images", indices, device, hold)}, draw, make)


@dataclass(frozen=True)
class LabelledAugmentation:
    """How a labelled stage sees its training images."""

    contrast: float
    normalised: bool | augment.Normalisation
    frozen: augment.Draws | None = None  # drawn once for all images of the list; None: drawn at every step

    def draw(self, positions: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        if self.frozen is None:
            draws = augment.Draws.make(len(positions), self.contrast, generator)
        else:
            draws = self.frozen.at(positions)
        return {"flips": draws.flips, "contrast": draws.contrast}

    def images(self, read: Tensors, drawn: Tensors) -> Tensor:
        draws = augment.Draws(drawn["flips"], drawn["contrast"])
        return augment.labelled_images(read["images"], draws, self.normalised)


def class_batches(
    pack: Pack,
    indices: np.ndarray,
    classes: int,
    augmentation: LabelledAugmentation,
    alpha: float,
    device: torch.device,
    shuffle: torch.Generator | None = None,
    hold: bool = True,
) -> Batches:
    """Flips, contrast jitter, normalisation, MixUp if `alpha` is not 0; targets as probabilities [B, classes].

    With `shuffle`, every image gets the class of another one at random, the same in all epochs: meaningless labels
    with the same frequencies (Zhang et al. 2017, arXiv 1611.03530).
    """
    labels = torch.from_numpy(np.asarray(pack.labels)[indices]).long()
    if shuffle is not None:
        labels = labels[torch.randperm(len(labels), generator=shuffle)]

    def draw(positions: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        drawn = augmentation.draw(positions, generator) | {"labels": labels[positions]}
        if alpha:
            drawn["order"], drawn["blend"] = draw_mixup(len(positions), alpha, generator)
        return drawn

    def make(read: Tensors, drawn: Tensors) -> tuple[Tensor, Tensor]:
        x, labels = augmentation.images(read, drawn), drawn["labels"]
        targets = (labels.unsqueeze(1) == torch.arange(classes, device=labels.device)).float()
        return mixup(x, targets, drawn["order"], drawn["blend"]) if alpha else (x, targets)

    return Batches({"images": PackSubset(pack, "images", indices, device, hold)}, draw, make)


def mask_batches(
    pack: Pack, indices: np.ndarray, augmentation: LabelledAugmentation, device: torch.device, hold: bool = True
) -> Batches:
    """Flips of image and mask together, contrast jitter and normalisation of the image."""
    subsets = {name: PackSubset(pack, name, indices, device, hold) for name in ("images", "masks")}

    def make(read: Tensors, drawn: Tensors) -> tuple[Tensor, Tensor]:
        return augmentation.images(read, drawn), augment.flip(read["masks"], drawn["flips"])

    return Batches(subsets, augmentation.draw, make)
