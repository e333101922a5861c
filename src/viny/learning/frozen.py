"""Fine-tuning of a head on tokens of an encoder that stays as it is: the tokens are computed once."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from viny.data import augment
from viny.learning.batches import Batches
from viny.learning.machine import Machine
from viny.learning.objectives import FrozenSegmentation
from viny.learning.settings import BATCH


class TokenBatches:
    """Batches of tokens and masks, for `FrozenSegmentation`.

    Augmentation is what can be computed once: each image as it is and mirrored, of which a step draws one; contrast
    stays as it is. Where an image's flip and contrast are drawn once for all epochs, its tokens are those of that draw.
    The tokens are made with the first batch and kept where the head is trained, in bfloat16 where products are computed
    in it. If they do not fit into what a subset may take there, each batch's are computed when it is wanted.

    Args:
        objective: its encoder has its weights, and is on the machine's device when the first batch is asked for.
        images: batches of the images and masks.
        count: images in the training list (N).
        once: whether `images` draws the same for an image in every epoch.
        machine: device and precision.
    """

    def __init__(
        self, objective: FrozenSegmentation, images: Batches, count: int, once: bool, machine: Machine
    ) -> None:
        self.objective, self.images, self.count, self.once, self.machine = objective, images, count, once, machine
        self.subsets, self.make = images.subsets, images.make

    def __call__(self, positions: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Tokens [B, L, D] and masks [B, S, S]."""
        drawn = self.images.draw(positions, generator)
        masks = self.subsets["masks"][positions]
        if self._kept is None:
            tokens = self._encode(positions, drawn)
        else:
            version = torch.zeros_like(positions) if self.once else drawn["flips"].long()
            version, at = (augment.to_device(x, self.machine.device) for x in (version, positions))
            tokens = self._kept[version, at]
        return tokens, augment.flip(masks, drawn["flips"])

    @property
    def _type(self) -> torch.dtype:
        return torch.bfloat16 if self.machine.precision == "bfloat16" else torch.float32

    @cached_property
    def _kept(self) -> Tensor | None:
        """Tokens [V, N, L, D] of each version of each image; None if they do not fit."""
        settings, versions = self.objective.encoder.settings, 1 if self.once else 2
        shape = (versions, self.count, settings.patches, settings.dim)
        size = versions * self.count * settings.patches * settings.dim * self._type.itemsize
        if size > self.subsets["masks"].room:
            return None
        kept = torch.empty(shape, dtype=self._type, device=self.machine.device)
        unused = torch.Generator()  # without `once`, what it draws is replaced
        for positions in torch.arange(self.count).split(BATCH):
            drawn = self.images.draw(positions, unused)
            for version in range(versions):
                flips = drawn["flips"] if self.once else torch.full_like(drawn["flips"], bool(version))
                kept[version, positions] = self._encode(positions, {**drawn, "flips": flips})
        return kept

    @torch.no_grad()
    def _encode(self, positions: Tensor, drawn: Mapping[str, Tensor]) -> Tensor:
        if not self.once:
            drawn = {**drawn, "contrast": torch.ones_like(drawn["contrast"])}
        images, _ = self.images.of(positions, drawn)
        with self.machine.autocast():
            return self.objective.tokens(images).to(self._type)
