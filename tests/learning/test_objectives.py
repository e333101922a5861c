"""Objectives: losses compared with plain formulas, layouts, masks, MixUp, and whether each can be learned."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from viny.data.augment import normalise, to_float
from viny.data.pack import Pack
from viny.learning.model import ViNy, patchify, unpatchify
from viny.learning.objectives import (
    Classification,
    PatchClassification,
    Segmentation,
    SimMIM,
    draw_mixup,
    draw_patch_mask,
    majority_class,
    masked_l1,
    mixup,
)
from viny.learning.settings import ModelSettings


def gen(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def encoder(tiny: ModelSettings) -> ViNy:
    torch.manual_seed(0)
    return ViNy(tiny)


@pytest.fixture(scope="module")
def four(pack: Pack) -> dict[str, Tensor]:
    """Four images of the pack, normalised, with masks and labels."""
    images = normalise(to_float(torch.from_numpy(pack.images[:4].copy())))
    return {"images": images, "masks": torch.from_numpy(pack.masks[:4].copy()).long()}


# Patch masks


@pytest.mark.parametrize(("patches", "ratio"), [(64, 0.5), (16, 0.5), (64, 0.75), (49, 0.6), (16, 0.07)])
def test_patch_mask_hides_the_same_number_everywhere(patches: int, ratio: float) -> None:
    mask = draw_patch_mask(50, patches, ratio, gen(0))
    assert mask.shape == (50, patches)
    assert mask.dtype == torch.bool
    assert set(mask.sum(1).tolist()) == {int(ratio * patches)}


def test_patch_masks_follow_the_generator() -> None:
    first = draw_patch_mask(8, 64, 0.5, gen(1))
    assert torch.equal(first, draw_patch_mask(8, 64, 0.5, gen(1)))
    assert not torch.equal(first, draw_patch_mask(8, 64, 0.5, gen(2)))
    assert len({tuple(row.tolist()) for row in first}) == 8  # rows are drawn independently


def test_every_patch_is_hidden_equally_often() -> None:
    share = draw_patch_mask(4000, 16, 0.25, gen(3)).float().mean(0)
    assert (share - 0.25).abs().max() < 0.03  # more than four standard deviations of a fair draw


# SimMIM


@pytest.mark.parametrize("class_token", [False, True])
def test_simmim_loss_by_hand(encoder: ViNy, four: dict[str, Tensor], class_token: bool) -> None:
    objective = SimMIM(encoder, class_token)
    images = four["images"]
    mask = draw_patch_mask(4, 16, 0.5, gen(0))
    tokens = encoder.encode(images, class_token, mask, objective.mask_token)
    tokens = tokens[:, 1:] if class_token else tokens
    errors = []
    for image in range(4):
        for patch in range(16):
            if mask[image, patch]:
                top, left = 6 * (patch // 4), 6 * (patch % 4)
                pixels = images[image, :, top : top + 6, left : left + 6].permute(1, 2, 0).flatten()
                guess = objective.head.weight @ tokens[image, patch] + objective.head.bias
                errors += (guess - pixels).abs().tolist()
    assert len(errors) == 4 * 8 * 108
    assert float(objective.loss((images, mask)).detach()) == pytest.approx(sum(errors) / len(errors), rel=1e-5)


def test_simmim_asks_for_masked_patches_only(encoder: ViNy, four: dict[str, Tensor]) -> None:
    objective = SimMIM(encoder)
    images = four["images"]
    mask = draw_patch_mask(4, 16, 0.5, gen(0))
    predicted = objective.predict(images, mask)
    # Perfect on the masked patches, absurd on the others: no loss is left.
    ideal = torch.where(mask.unsqueeze(-1), patchify(images, 6), torch.full_like(predicted, 1e6))
    objective.predict = lambda *_: ideal
    assert float(objective.loss((images, mask))) == 0
    objective.predict = lambda *_: ideal + mask.unsqueeze(-1)  # one unit off where it counts
    assert float(objective.loss((images, mask))) == pytest.approx(1, rel=1e-5)


def test_simmim_learns_its_mask_token(encoder: ViNy, four: dict[str, Tensor]) -> None:
    objective = SimMIM(encoder)
    objective.loss((four["images"], draw_patch_mask(4, 16, 0.5, gen(0)))).backward()
    assert objective.mask_token.grad.abs().max() > 0
    # The class token plays no part, as in the paper.
    assert encoder.cls_token.grad is None


# Patch classes


def test_majority_class_by_counting() -> None:
    masks = torch.randint(0, 3, (4, 12, 12), generator=gen(0))
    masks[0, :2, :2] = torch.tensor([[2, 1], [1, 2]])  # a tie goes to the class listed first
    found = majority_class(masks, 2, 3)
    assert found.shape == (4, 36)
    assert found[0, 0] == 1
    for image in range(4):
        for patch in range(36):
            top, left = 2 * (patch // 6), 2 * (patch % 6)
            pixels = masks[image, top : top + 2, left : left + 2].flatten().tolist()
            counts = [pixels.count(c) for c in range(3)]
            assert int(found[image, patch]) == counts.index(max(counts))


def test_patch_classification_loss_by_hand(encoder: ViNy, four: dict[str, Tensor]) -> None:
    objective = PatchClassification(encoder, 3)
    logits = objective(four["images"])
    assert logits.shape == (4, 16, 3)
    targets = majority_class(four["masks"], 6, 3)
    chosen = [-float(logits[i, p].log_softmax(0)[targets[i, p]].detach()) for i in range(4) for p in range(16)]
    expected = sum(chosen) / 64
    loss = objective.loss((four["images"], four["masks"]))
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


# Classification


def test_classification_reads_the_class_token(encoder: ViNy, four: dict[str, Tensor]) -> None:
    objective = Classification(encoder, 6)
    logits = objective(four["images"])
    first = encoder.encode(four["images"], class_token=True)[:, 0]
    torch.testing.assert_close(logits, objective.head(first))
    targets = torch.rand(4, 6, generator=gen(0)).softmax(1)  # mixed targets, as MixUp makes them
    by_hand = -(targets * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(objective.loss((four["images"], targets)), by_hand)


@pytest.mark.parametrize("class_token", [False, True])
def test_classification_by_the_mean_of_the_patch_tokens(
    encoder: ViNy, four: dict[str, Tensor], class_token: bool
) -> None:
    objective = Classification(encoder, 6, "mean", class_token)
    tokens = encoder.encode(four["images"], class_token)
    patches = tokens[:, 1:] if class_token else tokens
    assert patches.shape[1] == encoder.settings.patches
    torch.testing.assert_close(objective(four["images"]), objective.head(patches).mean(1))


# Segmentation


@pytest.mark.parametrize(("kind", "class_token"), [("class_softmax", False), ("pixel_softmax", True)])
def test_segmentation_bias_lights_one_place(
    encoder: ViNy, four: dict[str, Tensor], kind: str, class_token: bool
) -> None:
    objective = Segmentation(encoder, 3, kind, class_token)
    row, column, class_ = 4, 1, 2  # of a patch
    with torch.no_grad():
        objective.head.weight.zero_()
        objective.head.bias.zero_()
        objective.head.bias[(row * 6 + column) * 3 + class_] = 10
    scores = objective(four["images"])
    assert scores.shape == (4, 3, 24, 24)
    lit = scores > scores.mean((2, 3), keepdim=True) + 1  # a softmax over pixels shifts a map as a whole
    expected = torch.zeros_like(lit)
    expected[:, class_, row::6, column::6] = True
    assert torch.equal(lit, expected)


def test_segmentation_scores_belong_to_their_patch(encoder: ViNy, four: dict[str, Tensor]) -> None:
    objective = Segmentation(encoder, 3)
    scores = objective(four["images"])
    tokens = encoder.encode(four["images"], class_token=False)
    for patch in (0, 3, 4, 15):
        top, left = 6 * (patch // 4), 6 * (patch % 4)
        here = objective.head(tokens[:, patch]).view(4, 6, 6, 3).permute(0, 3, 1, 2)
        torch.testing.assert_close(scores[:, :, top : top + 6, left : left + 6], here)


def test_class_softmax_loss_by_hand(encoder: ViNy, four: dict[str, Tensor]) -> None:
    objective = Segmentation(encoder, 3)
    scores, masks = objective(four["images"]).detach(), four["masks"]
    likelihood = scores.exp() / scores.exp().sum(1, keepdim=True)
    expected = -likelihood.gather(1, masks.unsqueeze(1)).log().mean()
    torch.testing.assert_close(objective.loss((four["images"], masks)).detach(), expected)


def test_pixel_softmax_loss_by_hand(encoder: ViNy, four: dict[str, Tensor]) -> None:
    """The paper's code: a log-softmax over a class map's pixels, then cross-entropy over classes."""
    plain, quirk = Segmentation(encoder, 3), Segmentation(encoder, 3, "pixel_softmax")
    quirk.load_state_dict(plain.state_dict())
    raw, masks = plain(four["images"]).detach().double(), four["masks"]
    total = 0.0
    for image in range(4):
        over_pixels = [raw[image, c] - math.log(float(raw[image, c].exp().sum())) for c in range(3)]
        maps = torch.stack(over_pixels)
        for row in range(24):
            for column in range(24):
                values = maps[:, row, column]
                total -= float(values[masks[image, row, column]] - values.exp().sum().log())
    images = four["images"]
    assert float(quirk.loss((images, masks)).detach()) == pytest.approx(total / (4 * 24 * 24), rel=1e-4)
    # A class map shifts as a whole, so the prediction can differ from the plain head's: it is taken afterwards.
    torch.testing.assert_close(quirk(images).exp().sum((2, 3)), torch.ones(4, 3), atol=1e-4, rtol=0)


# MixUp


def one_hot(count: int) -> tuple[Tensor, Tensor]:
    """Images that are each one colour, and targets that name them."""
    return torch.arange(count).float().view(-1, 1, 1, 1).expand(-1, 3, 4, 4), torch.eye(count)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("alpha", [1e-4, 0.1, 1.0])
def test_mixup_is_one_convex_blend(alpha: float, seed: int) -> None:
    images, targets = one_hot(6)
    mixed, labels = mixup(images, targets, *draw_mixup(6, alpha, gen(seed)))
    torch.testing.assert_close(labels.sum(1), torch.ones(6))
    assert labels.min() >= 0
    # Images and targets are mixed with the same weights: a colour is the mean number of its targets.
    torch.testing.assert_close(mixed[:, 0, 0, 0], labels @ torch.arange(6.0), atol=1e-5, rtol=1e-5)
    # One shuffled copy: every image has the same total weight.
    torch.testing.assert_close(labels.sum(0), torch.ones(6))


def test_mixup_weights_are_beta_distributed() -> None:
    generator, (images, targets) = gen(0), one_hot(8)
    # An image's own share, seen where the shuffle moved it; all eight stay put in one draw of 40,000.
    weights = [float(mixup(images, targets, *draw_mixup(8, 0.5, generator))[1].diag().min()) for _ in range(400)]
    assert stats.kstest(weights, stats.beta(0.5, 0.5).cdf).pvalue > 0.01
    # The test distinguishes neighbouring settings.
    assert stats.kstest(weights, stats.beta(1, 1).cdf).pvalue < 1e-4


# Learning


def objectives(encoder: ViNy, four: dict[str, Tensor]) -> dict[str, tuple[Any, Any]]:
    images, masks = four["images"], four["masks"]
    targets = F.one_hot(torch.arange(4) % 3, 3).float()
    return {
        "simmim": (SimMIM(encoder), (images, draw_patch_mask(4, 16, 0.5, gen(0)))),
        "classes": (Classification(encoder, 3), (images, targets)),
        "mean": (Classification(encoder, 3, "mean"), (images, targets)),
        "patches": (PatchClassification(encoder, 3), (images, masks)),
        "segmentation": (Segmentation(encoder, 3), (images, masks)),
        "pixel_softmax": (Segmentation(encoder, 3, "pixel_softmax"), (images, masks)),
    }


@pytest.mark.parametrize(
    ("name", "factor"),
    [("simmim", 2), ("classes", 20), ("mean", 20), ("patches", 5), ("segmentation", 3), ("pixel_softmax", 3)],
)
def test_four_images_can_be_learned_by_heart(encoder: ViNy, four: dict[str, Tensor], name: str, factor: float) -> None:
    objective, batch = objectives(encoder, four)[name]
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-2, weight_decay=0)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = objective.loss(batch)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert min(losses[-5:]) * factor < losses[0], (losses[0], losses[-1])


def test_unpatchify_places_each_class_map() -> None:
    # What the segmentation head relies on: the classes are the fastest axis of a patch's values.
    values = torch.arange(3.0).repeat(16 * 36).view(1, 16, 108)
    maps = unpatchify(values, 6, 3)
    assert torch.equal(maps, torch.arange(3.0).view(1, 3, 1, 1).expand(1, 3, 24, 24))


def test_masked_error_without_an_index_is_the_same() -> None:
    draws = torch.Generator().manual_seed(0)
    predicted, pixels = torch.randn(2, 5, 16, 12, generator=draws)
    predicted.requires_grad_()
    mask = draw_patch_mask(5, 16, 0.5, draws)
    losses = [F.l1_loss(predicted[mask], pixels[mask]), masked_l1(predicted, pixels, mask)]
    torch.testing.assert_close(losses[1], losses[0])
    expected, found = (torch.autograd.grad(loss, predicted)[0] for loss in losses)
    torch.testing.assert_close(found, expected)
