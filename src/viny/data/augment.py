"""Augmentation of whole batches on the training device; every draw comes from a generator that is passed in.

Draws are made on the CPU, a few numbers per image, so that they are the same on every device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Normalisation(NamedTuple):
    """Means and standard deviations of the channels, for images in 0 to 1."""

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


IMAGENET = Normalisation()
GREY_WEIGHTS = (0.2989, 0.587, 0.114)  # red, green and blue, as in torchvision


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a small tensor to a device without waiting for a GPU."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """[1, C, 1, 1]."""
    if torch.compiler.is_compiling():  # a compiled kernel holds them as constants
        return torch.stack([torch.full((), value, device=device) for value in values]).view(1, -1, 1, 1)
    return _kept_channels(values, device)


@cache  # since making one waits for the GPU
def _kept_channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device).view(1, -1, 1, 1)


def to_float(images: Tensor) -> Tensor:
    """Turn uint8 [B, 3, H, W] in 0 to 255 into float32 in 0 to 1."""
    return images.float().div_(255)


def normalise(images: Tensor, by: Normalisation = IMAGENET) -> Tensor:
    """Subtract the channels' means and divide by their standard deviations: float [B, 3, H, W] in 0 to 1."""
    mean, std = _channels(by.mean, images.device), _channels(by.std, images.device)
    return (images - mean) / std


def normalisation(normalised: bool | Normalisation) -> Normalisation | None:
    """By what images are normalised: True stands for ImageNet's means and deviations, False for nothing."""
    if isinstance(normalised, bool):
        return IMAGENET if normalised else None
    return normalised


def denormalise(images: Tensor, by: Normalisation = IMAGENET) -> Tensor:
    """Undo `normalise`."""
    mean, std = _channels(by.mean, images.device), _channels(by.std, images.device)
    return images * std + mean


def draw_crops(
    shapes: Tensor, scale: float, generator: torch.Generator, ratio: tuple[float, float] = (3 / 4, 4 / 3)
) -> Tensor:
    """Crop boxes as torchvision's RandomResizedCrop draws them, for a whole batch.

    Args:
        shapes: [B, 2] heights and widths of the originals, pixels.
        scale: smallest share of the area; the largest is 1.
        generator: source of the draws.
        ratio: range of width over height.

    Returns:
        float [B, 4]: top, left, height, width as shares of the image.
    """
    tries = 10
    b = len(shapes)
    height, width = shapes[:, :1].double(), shapes[:, 1:].double()  # [B, 1]
    u = torch.rand(4, b, tries, generator=generator, dtype=torch.float64)
    area = height * width * (scale + (1 - scale) * u[0])  # [B, T]
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(low + (high - low) * u[1])
    w, h = torch.sqrt(area * aspect).round(), torch.sqrt(area / aspect).round()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)  # the first try that fits, as in torchvision's loop
    # If none fits: the largest centred box whose aspect ratio is within the range.
    back_w = torch.minimum(width, (height * ratio[1]).round())
    back_h = torch.minimum(height, (width / ratio[0]).round())
    none = ~fits.any(1, keepdim=True)
    w = torch.where(none, back_w, w.gather(1, first))
    h = torch.where(none, back_h, h.gather(1, first))
    top = torch.floor(u[2].gather(1, first) * (height - h + 1)).clamp(max=height - h)
    left = torch.floor(u[3].gather(1, first) * (width - w + 1)).clamp(max=width - w)
    top = torch.where(none, ((height - h) / 2).floor(), top)
    left = torch.where(none, ((width - w) / 2).floor(), left)
    return torch.cat([top / height, left / width, h / height, w / width], dim=1).float()


def central_squares(shapes: Tensor) -> Tensor:
    """The largest square in the middle of each image.

    Args:
        shapes: [B, 2] heights and widths of the originals, pixels.

    Returns:
        float [B, 4]: top, left, height, width as shares of the image.
    """
    sides = shapes.amin(1, keepdim=True) / shapes  # [B, 2]
    return torch.cat([(1 - sides) / 2, sides], dim=1).float()


def draw_flips(count: int, generator: torch.Generator) -> Tensor:
    """bool [count], each True with probability one half."""
    return torch.rand(count, generator=generator) < 0.5


def draw_contrast(count: int, contrast: float, generator: torch.Generator) -> Tensor:
    """float [count], uniform between 1 - contrast and 1 + contrast."""
    return 1 + contrast * (2 * torch.rand(count, generator=generator) - 1)


def crop_resize_flip(images: Tensor, boxes: Tensor, flips: Tensor, size: int) -> Tensor:
    """Cut out each image's box, resize it bilinearly and mirror it if asked, all in one resampling.

    Args:
        images: float [B, 3, H, W].
        boxes: [B, 4] top, left, height, width as shares of the image.
        flips: bool [B].
        size: side of the result, pixels (S).

    Returns:
        [B, 3, S, S].
    """
    boxes = to_device(boxes, images.device)
    top, left, height, width = boxes.unbind(1)
    sign = 1 - 2 * to_device(flips, images.device).float()
    theta = images.new_zeros(len(images), 2, 3)  # output to input coordinates, both in [-1, 1]
    theta[:, 0, 0] = width * sign
    theta[:, 0, 2] = 2 * left + width - 1
    theta[:, 1, 1] = height
    theta[:, 1, 2] = 2 * top + height - 1
    grid = F.affine_grid(theta, [len(images), 3, size, size], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def flip(batch: Tensor, flips: Tensor) -> Tensor:
    """Mirror the images or masks [B, ..., H, W] where `flips` [B] is True."""
    shape = (-1,) + (1,) * (batch.dim() - 1)
    return torch.where(to_device(flips, batch.device).view(shape), batch.flip(-1), batch)


def adjust_contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Blend each image with its mean grey level, as torchvision's `adjust_contrast` does.

    Args:
        images: float [B, 3, H, W] in 0 to 1.
        factors: [B]; 1 leaves an image unchanged.

    Returns:
        [B, 3, H, W], clamped to 0 to 1.
    """
    weights = _channels(GREY_WEIGHTS, images.device)
    mean = (images * weights).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    f = to_device(factors, images.device).view(-1, 1, 1, 1)
    return torch.lerp(mean.expand_as(images), images, f).clamp_(0, 1)


@dataclass(frozen=True)
class Draws:
    """One flip and one contrast factor per image: what a labelled stage draws."""

    flips: Tensor  # bool [N]
    contrast: Tensor  # float [N]

    @classmethod
    def make(cls, count: int, contrast: float, generator: torch.Generator) -> Draws:
        return cls(draw_flips(count, generator), draw_contrast(count, contrast, generator))

    def at(self, positions: Tensor) -> Draws:
        return Draws(self.flips[positions], self.contrast[positions])


def labelled_images(images: Tensor, draws: Draws | None, normalised: bool | Normalisation) -> Tensor:
    """Flip, jitter and normalise a batch for a labelled stage.

    Args:
        images: uint8 [B, 3, H, W].
        draws: flips and contrast factors [B]; None to leave the images as they are.
        normalised: by what to normalise: True for ImageNet's means and deviations, False for nothing.

    Returns:
        float [B, 3, H, W].
    """
    x = to_float(images)
    if draws is not None:
        x = adjust_contrast(flip(x, draws.flips), draws.contrast)
    by = normalisation(normalised)
    return x if by is None else normalise(x, by)
