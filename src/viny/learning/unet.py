"""A plain U-Net (Ronneberger et al. 2015, arXiv 1505.04597): what a study's model is to be compared with.

Norms are over groups of channels of one image (Wu and He 2018, arXiv 1803.08494), not over a batch: batches are small
and the last is smaller, and a batch is divided among threads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viny.learning.objectives import labelled_cross_entropy
from viny.learning.unet_settings import convolutions, width
from viny.learning.weights import read_weights, weights_beside
from viny.runtime.errors import InputError

GROUP = 8  # channels that are normalised together


class Block(nn.Sequential):
    """Two 3 x 3 convolutions, each followed by a norm and a ReLU: [B, I, S, S] to [B, O, S, S]."""

    def __init__(self, *channels: tuple[int, int]) -> None:
        layers: list[nn.Module] = []
        for into, out in channels:
            layers += [nn.Conv2d(into, out, 3, padding=1, bias=False), nn.GroupNorm(out // GROUP, out), nn.ReLU()]
        super().__init__(*layers)


class Contracting(nn.Module):
    """The way down: a block at each size, each a half of the one before.

    Args:
        channels: into and out of the two convolutions of each block.
    """

    def __init__(self, channels: list[tuple[tuple[int, int], tuple[int, int]]]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(*pair) for pair in channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps [B, width, side, side] of images [B, 3, S, S], the largest first."""
        maps = [self.blocks[0](images)]
        for block in list(self.blocks)[1:]:
            maps.append(block(F.max_pool2d(maps[-1], 2, ceil_mode=True)))
        return maps

    def set_fused_attention(self, on: bool) -> None:
        """Nothing, as it has no attention; the training loop says so to every encoder."""


class UNet(nn.Module):
    """A U-Net that gives every pixel its class scores, with the loss of the fine-tunings beside it.

    Args:
        image_size: S, side of the images in pixels; 4 or more.
        classes: C, mask classes.
        loss: as of `viny.learning.objectives.Segmentation`.
    """

    def __init__(self, image_size: int, classes: int, loss: str = "class_softmax") -> None:
        super().__init__()
        self.classes, self.loss_kind = classes, loss
        channels = [one[1:] for one in convolutions(image_size)]
        pairs = list(zip(channels[::2], channels[1::2], strict=True))
        levels = (len(pairs) + 1) // 2
        self.encoder = Contracting(pairs[:levels])
        self.expanding = nn.ModuleList(Block(*pair) for pair in pairs[levels:])
        self.head = nn.Conv2d(width(image_size), classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")  # as in the source

    def forward(self, images: Tensor) -> Tensor:
        """Class scores [B, C, S, S] of images [B, 3, S, S]; their argmax is the prediction."""
        *skipped, x = self.encoder(images)
        for block in self.expanding:
            beside = skipped.pop()
            # Nearest neighbours, whose gradient a GPU sums in the same order every time.
            larger = F.interpolate(x, size=beside.shape[-2:], mode="nearest")
            x = block(torch.cat([larger, beside], 1))
        scores = self.head(x).float()
        if self.loss_kind == "pixel_softmax":
            scores = F.log_softmax(scores.flatten(2), dim=2).view_as(scores)
        return scores

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross-entropy over the pixels of a batch: images [B, 3, S, S], masks [B, S, S]."""
        images, masks = batch
        return labelled_cross_entropy(self(images), masks)


def load_unet(record_path: Path) -> tuple[UNet, dict[str, Any]]:
    """The U-Net of a reference, ready to predict, and its record.

    Raises:
        InputError: as `read_weights`, or the weights are for another network than the record describes.
    """
    tensors, record = read_weights(record_path, "a reference")
    spec = record["spec"]
    try:
        model = UNet(spec["image_size"], len(record["mask_classes"]), spec["switches"]["segmentation_loss"])
        model.load_state_dict(tensors)
    except (ArithmeticError, RuntimeError, ValueError) as error:
        raise InputError(f"{weights_beside(record_path)}: does not fit the model: {error}") from error
    return model.eval(), record
