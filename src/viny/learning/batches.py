"""Batches: from a pack and an index list to augmented tensors on the device, without per-image Python."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from viny.data import augment
from viny.data.pack import Pack
from viny.learning.objectives import draw_patch_mask, mixup
from viny.learning.settings import IN_MEMORY

# (positions in the training list [B], generator of the step) -> what the objective's loss takes
BatchMaker = Callable[[Tensor, torch.Generator], Any]


class PackSubset:
    """Rows of a pack's array, chosen by an index list, fetched by position, and checked when first read.

    Args:
        pack: the pack.
        name: name of its array [N, ...]: 'images', 'masks' or 'labels'.
        indices: [M], rows that make up the subset.
        device: where batches are wanted; on a GPU the subset is kept there if it fits alongside the training.
    """

    def __init__(self, pack: Pack, name: str, indices: np.ndarray, device: torch.device) -> None:
        self.pack, self.name, self.indices, self.device = pack, name, indices, device
        array = getattr(pack, name)
        size = len(indices) * int(np.prod(array.shape[1:])) * array.dtype.itemsize
        limit = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else IN_MEMORY
        self.held = torch.from_numpy(pack.rows(name, indices)).to(device) if size <= limit else None

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


def simmim_batches(
    pack: Pack,
    indices: np.ndarray,
    image_size: int,
    patches: int,
    mask_ratio: float,
    crop_scale: float,
    device: torch.device,
) -> BatchMaker:
    """Random crops, flips, ImageNet normalisation, and one patch mask per image."""
    images = PackSubset(pack, "images", indices, device)
    shapes = torch.from_numpy(np.asarray(pack.shapes)[indices])

    def make(positions: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        count = len(positions)
        boxes = augment.draw_crops(shapes[positions], crop_scale, generator)
        flips = augment.draw_flips(count, generator)
        mask = draw_patch_mask(count, patches, mask_ratio, generator)
        x = augment.to_float(images[positions])
        x = augment.crop_resize_flip(x, boxes, flips, image_size)
        return augment.normalise(x), augment.to_device(mask, device)

    return make


@dataclass(frozen=True)
class LabelledAugmentation:
    """How a labelled stage sees its training images."""

    contrast: float
    normalised: bool
    frozen: augment.Draws | None = None  # drawn once for all images of the list; None: drawn at every step

    def draws(self, positions: Tensor, generator: torch.Generator) -> augment.Draws:
        if self.frozen is not None:
            return self.frozen.at(positions)
        return augment.Draws.make(len(positions), self.contrast, generator)


def class_batches(
    pack: Pack,
    indices: np.ndarray,
    classes: int,
    augmentation: LabelledAugmentation,
    alpha: float,
    device: torch.device,
    shuffle: torch.Generator | None = None,
) -> BatchMaker:
    """Flips, contrast jitter, normalisation, MixUp; targets as probabilities [B, classes].

    With `shuffle`, every image gets the class of another one at random, the same in all epochs: meaningless labels
    with the same frequencies (Zhang et al. 2017, arXiv 1611.03530).
    """
    images = PackSubset(pack, "images", indices, device)
    labels = torch.from_numpy(np.asarray(pack.labels)[indices]).long()
    if shuffle is not None:
        labels = labels[torch.randperm(len(labels), generator=shuffle)]

    def make(positions: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        draws = augmentation.draws(positions, generator)
        x = augment.labelled_images(images[positions], draws, augmentation.normalised)
        targets = augment.to_device(F.one_hot(labels[positions], classes).float(), device)
        return mixup(x, targets, alpha, generator)

    return make


def mask_batches(
    pack: Pack, indices: np.ndarray, augmentation: LabelledAugmentation, device: torch.device
) -> BatchMaker:
    """Flips of image and mask together, contrast jitter and normalisation of the image."""
    images = PackSubset(pack, "images", indices, device)
    masks = PackSubset(pack, "masks", indices, device)

    def make(positions: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        draws = augmentation.draws(positions, generator)
        x = augment.labelled_images(images[positions], draws, augmentation.normalised)
        return x, augment.flip(masks[positions], draws.flips)

    return make
