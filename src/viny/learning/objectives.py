"""What each stage learns: modules that hold an encoder and a head and return the loss of a batch.

Every objective has `encoder` (a ViNy) and `loss(batch)`; a batch is what `viny.learning.batches` makes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from viny.data.masks import IGNORE
from viny.learning.model import ViNy, patchify, unpatchify


def draw_patch_mask(count: int, patches: int, ratio: float, generator: torch.Generator) -> Tensor:
    """bool [count, patches] with int(ratio * patches) True in every row, at random places."""
    masked = int(ratio * patches)
    places = torch.rand(count, patches, generator=generator).argsort(1)[:, :masked]
    return torch.zeros(count, patches, dtype=torch.bool).scatter_(1, places, True)


class SimMIM(nn.Module):
    """Masked image modelling with a linear decoder (Xie et al. 2022, arXiv 2111.09886).

    Masked patch tokens are replaced by a learned one before the position embedding is added; the loss is
    the mean absolute error of the masked patches' normalised pixels.
    """

    def __init__(self, encoder: ViNy, class_token: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.class_token = class_token
        settings = encoder.settings
        self.mask_token = nn.Parameter(torch.randn(settings.dim))
        self.head = nn.Linear(settings.dim, 3 * settings.patch_size**2)

    def predict(self, images: Tensor, mask: Tensor) -> Tensor:
        """Pixels of every patch [B, L, P*P*3] from images [B, 3, S, S] with `mask` [B, L] hidden."""
        tokens = self.encoder.encode(images, self.class_token, mask, self.mask_token)
        return self.head(tokens[:, int(self.class_token) :])

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, mask = batch
        predicted, pixels = self.predict(images, mask), patchify(images, self.encoder.settings.patch_size)
        if images.is_cuda:
            return masked_l1(predicted.float(), pixels, mask)
        return F.l1_loss(predicted[mask].float(), pixels[mask])


def masked_l1(predicted: Tensor, pixels: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute error of the masked patches, in shapes that do not depend on the mask.

    Indexing by a mask makes a GPU wait for the count.

    Args:
        predicted: [B, L, V].
        pixels: [B, L, V].
        mask: bool [B, L].
    """
    errors = (predicted - pixels).abs().mean(2)  # [B, L]
    return (errors * mask).sum() / mask.sum()


class Classification(nn.Module):
    """Cross-entropy of an image's class logits; targets are probabilities (MixUp mixes them).

    Args:
        encoder: the transformer.
        classes: how many there are.
        pooling: what the logits are made from: 'class_token', or 'mean', the mean of the patch tokens.
        class_token: whether a class token is in the sequence under pooling 'mean'; under 'class_token' it always is.
    """

    def __init__(self, encoder: ViNy, classes: int, pooling: str = "class_token", class_token: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        self.class_token = class_token or pooling == "class_token"
        self.head = nn.Linear(encoder.settings.dim, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, 3, S, S]."""
        tokens = self.encoder.encode(images, self.class_token)
        if self.pooling == "mean":
            return self.head(tokens[:, int(self.class_token) :].mean(1))
        return self.head(tokens[:, 0])

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, targets = batch
        return F.cross_entropy(self(images).float(), targets)


def draw_mixup(count: int, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What a batch is blended with, and how much of it stays: int64 [count] and float [count], one weight for all.

    Args:
        count: images in the batch.
        alpha: of the Beta distribution that the weight comes from; above 0.
        generator: source of the draws.
    """
    # A Beta draw is a ratio of two Gamma draws; torch's sampler takes the generator, its Beta class does not.
    gammas = torch._standard_gamma(torch.full((2,), alpha, dtype=torch.float64), generator=generator)
    weight = float(gammas[0] / gammas.sum()) if float(gammas.sum()) > 0 else 1.0
    return torch.randperm(count, generator=generator), torch.full((count,), weight)


def mixup(images: Tensor, targets: Tensor, order: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Blend a batch with a shuffled copy of itself (Zhang et al. 2018, arXiv 1710.09412).

    Args:
        images: [B, 3, S, S].
        targets: [B, classes], probabilities.
        order: int64 [B], which image each is blended with.
        weights: float [B], each image's own share.
    """
    w = weights.view(-1, 1)
    return torch.lerp(images[order], images, w.view(-1, 1, 1, 1)), torch.lerp(targets[order], targets, w)


def labelled_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy summed over the targets that have a class, divided by the number of all targets.

    A mean over only those with a class would weight a pixel by how many others in its batch have none, and would not
    be a mean over images, which the loop's shards need.

    Args:
        logits: [B, C, ...].
        targets: integer [B, ...]; IGNORE has no class.
    """
    total = F.cross_entropy(logits, targets.long(), ignore_index=IGNORE, reduction="sum")
    return total / targets.numel()


class PatchClassification(nn.Module):
    """Cross-entropy of each patch token's logits against the patch's majority mask class."""

    def __init__(self, encoder: ViNy, classes: int, class_token: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.class_token = class_token
        self.classes = classes
        self.head = nn.Linear(encoder.settings.dim, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, L, classes] of images [B, 3, S, S]."""
        return self.head(self.encoder.encode(images, self.class_token)[:, int(self.class_token) :])

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, masks = batch
        return labelled_cross_entropy(self(images).float().transpose(1, 2), self.targets(masks))

    def targets(self, masks: Tensor) -> Tensor:
        """Class of each patch [B, L] in masks [B, S, S]; IGNORE where it has none."""
        return majority_class(masks, self.encoder.settings.patch_size, self.classes)


def majority_class(masks: Tensor, patch_size: int, classes: int) -> Tensor:
    """The most frequent class of each patch; in a tie, the one listed first.

    Args:
        masks: integer [B, S, S]; IGNORE pixels count for no class.
        patch_size: P.
        classes: how many there are.

    Returns:
        int64 [B, L], patches row by row; IGNORE where no pixel has a class.
    """
    patches = patchify(masks.unsqueeze(1), patch_size)  # [B, L, P*P]
    counts = torch.stack([(patches == c).sum(2) for c in range(classes)], dim=2)
    return torch.where(counts.sum(2) > 0, counts.argmax(2), IGNORE)


class Segmentation(nn.Module):
    """A linear head on each patch token that gives every pixel of the patch its class logits.

    Args:
        encoder: the transformer.
        classes: mask classes.
        loss: 'class_softmax', cross-entropy over classes; 'pixel_softmax', the paper's code, which takes a
            log-softmax over all pixels of a class map before the cross-entropy over classes.
        class_token: whether a class token is in the sequence.
    """

    def __init__(self, encoder: ViNy, classes: int, loss: str = "class_softmax", class_token: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.classes = classes
        self.loss_kind = loss
        self.class_token = class_token
        self.head = nn.Linear(encoder.settings.dim, classes * encoder.settings.patch_size**2)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores [B, classes, S, S] of images [B, 3, S, S]; their argmax is the prediction."""
        return self.scores(self.tokens(images))

    def tokens(self, images: Tensor) -> Tensor:
        """Patch tokens [B, L, D] of images [B, 3, S, S]."""
        return self.encoder.encode(images, self.class_token)[:, int(self.class_token) :]

    def scores(self, tokens: Tensor) -> Tensor:
        """What `forward` gives, from patch tokens [B, L, D]."""
        logits = unpatchify(self.head(tokens).float(), self.encoder.settings.patch_size, self.classes)
        if self.loss_kind == "pixel_softmax":
            logits = F.log_softmax(logits.flatten(2), dim=2).view_as(logits)
        return logits

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, masks = batch
        return labelled_cross_entropy(self(images), masks)


class FrozenSegmentation(Segmentation):
    """Segmentation whose head alone is trained, on tokens that its encoder has made before.

    The encoder takes no part in the loss, so that no optimiser moves it; the weights are the whole model's.
    """

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        tokens, masks = batch
        return labelled_cross_entropy(self.scores(tokens), masks)
