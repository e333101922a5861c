"""Augmentation compared with torchvision, and what must move together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as reference

from viny.data import augment
from viny.data.augment import Draws


def gen(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(4, 3, 40, 40, generator=gen(0))


def boxes_of(boxes: list[tuple[int, int, int, int]], side: int) -> Tensor:
    return torch.tensor(boxes).float() / side


def resized_crop(image: Tensor, box: tuple[int, int, int, int], size: int) -> Tensor:
    mode = InterpolationMode.BILINEAR
    return reference.resized_crop(image, *box, [size, size], interpolation=mode, antialias=False)


# Boxes no smaller than the result: top, left, height, width.
SHRINKING = [(0, 0, 40, 40), (3, 5, 30, 24), (16, 0, 24, 40), (7, 11, 29, 27)]


@pytest.mark.parametrize("flipped", [False, True])
def test_crop_is_torchvisions(images: Tensor, flipped: bool) -> None:
    flips = torch.full((4,), flipped)
    found = augment.crop_resize_flip(images, boxes_of(SHRINKING, 40), flips, 24)
    assert found.shape == (4, 3, 24, 24)
    for i, box in enumerate(SHRINKING):
        expected = resized_crop(images[i], box, 24)
        if flipped:
            expected = expected.flip(-1)
        torch.testing.assert_close(found[i], expected, atol=1e-4, rtol=0)


def test_enlarging_crop_is_torchvisions_but_for_its_rim(images: Tensor) -> None:
    """An enlarged box's outermost half pixels look past the box, where torchvision repeats the box's rim."""
    box, size = (9, 6, 12, 16), 24
    found = augment.crop_resize_flip(images[:1], boxes_of([box], 40), torch.tensor([False]), size)[0]
    expected = resized_crop(images[0], box, size)
    inner = (slice(None), slice(1, -1), slice(1, -1))
    torch.testing.assert_close(found[inner], expected[inner], atol=1e-4, rtol=0)
    whole = augment.crop_resize_flip(images[:1], boxes_of([(0, 0, 40, 40)], 40), torch.tensor([False]), 60)[0]
    torch.testing.assert_close(whole, resized_crop(images[0], (0, 0, 40, 40), 60), atol=1e-4, rtol=0)


def test_flips_choose_single_images(images: Tensor) -> None:
    boxes = boxes_of(SHRINKING, 40)
    flips = torch.tensor([True, False, False, True])
    plain = augment.crop_resize_flip(images, boxes, torch.zeros(4, dtype=torch.bool), 24)
    mixed = augment.crop_resize_flip(images, boxes, flips, 24)
    expected = torch.where(flips.view(4, 1, 1, 1), plain.flip(-1), plain)
    torch.testing.assert_close(mixed, expected, atol=1e-5, rtol=0)


def drawn_pixels(shape: tuple[int, int], count: int, scale: float, seed: int) -> np.ndarray:
    """Top, left, height and width in pixels: [count, 4]."""
    shapes = torch.tensor([shape]).expand(count, 2)
    boxes = augment.draw_crops(shapes, scale, gen(seed)).double()
    pixels = boxes * torch.tensor([shape[0], shape[1]] * 2)
    # Boxes are whole pixels of the original.
    torch.testing.assert_close(pixels, pixels.round(), atol=1e-3, rtol=0)
    return pixels.round().numpy()


@pytest.mark.parametrize("shape", [(200, 200), (333, 500), (500, 333), (144, 180)])
@pytest.mark.parametrize("scale", [0.67, 0.2])
def test_crops_keep_their_promises(shape: tuple[int, int], scale: float) -> None:
    top, left, height, width = drawn_pixels(shape, 3000, scale, 1).T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= shape[0]).all() and (left + width <= shape[1]).all()
    # Rounding a side to whole pixels changes area and aspect by at most that much.
    slack = 1 / min(height.min(), width.min())
    area, aspect = height * width / (shape[0] * shape[1]), width / height
    assert area.min() > scale * (1 - slack) and area.max() <= 1
    assert aspect.min() > 3 / 4 * (1 - slack) and aspect.max() < 4 / 3 * (1 + slack)
    # The ranges are used, not just respected.
    assert area.min() < scale + 0.05
    assert aspect.max() / aspect.min() > 1.3


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        # Too wide or too tall for any try to fit: the middle box of the nearest aspect.
        ((30, 300), (0, 130, 30, 40)),
        ((300, 30), (130, 0, 40, 30)),
    ],
)
def test_extreme_shapes_fall_back(shape: tuple[int, int], expected: tuple[int, ...]) -> None:
    boxes = drawn_pixels(shape, 20, 0.67, 2)
    assert (boxes == np.array(expected)).all()
    image = torch.empty(3, *shape)
    assert RandomResizedCrop.get_params(image, [0.67, 1.0], [3 / 4, 4 / 3]) == expected


@pytest.mark.parametrize("shape", [(300, 450), (260, 200)])
def test_crops_are_distributed_as_torchvisions(shape: tuple[int, int]) -> None:
    ours = drawn_pixels(shape, 3000, 0.67, 3)
    image = torch.empty(3, *shape)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        pairs = [RandomResizedCrop.get_params(image, [0.67, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)]
    theirs = np.array(pairs, dtype=float)
    for name, of in {
        "top": lambda b: b[:, 0],
        "left": lambda b: b[:, 1],
        "area": lambda b: b[:, 2] * b[:, 3],
        "aspect": lambda b: b[:, 3] / b[:, 2],
    }.items():
        assert stats.ks_2samp(of(ours), of(theirs)).pvalue > 0.01, name
    # The same test sees a scale that is a little off.
    off = drawn_pixels(shape, 3000, 0.62, 3)
    assert stats.ks_2samp(off[:, 2] * off[:, 3], theirs[:, 2] * theirs[:, 3]).pvalue < 1e-3


def test_crops_use_each_images_own_shape() -> None:
    shapes = torch.tensor([[100, 100], [30, 300], [100, 100]])
    boxes = augment.draw_crops(shapes, 0.67, gen(5))
    assert (boxes[[0, 2], 2] > 0.7).all()
    assert boxes[1].tolist() == pytest.approx([0, 130 / 300, 1, 40 / 300])
    assert not torch.equal(boxes[0], boxes[2])
    assert torch.equal(boxes, augment.draw_crops(shapes, 0.67, gen(5)))
    assert not torch.equal(boxes, augment.draw_crops(shapes, 0.67, gen(6)))


def test_contrast_is_torchvisions(images: Tensor) -> None:
    factors = torch.tensor([0.7, 1.0, 1.3, 0.0])
    found = augment.adjust_contrast(images, factors)
    for image, factor, result in zip(images, factors, found, strict=True):
        expected = reference.adjust_contrast(image, float(factor))
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found[1], images[1])
    # Values that would leave the range are cut off.
    strong = augment.adjust_contrast(images, torch.full((4,), 5.0))
    assert (strong.min(), strong.max()) == (0, 1)


def test_contrast_factors_fill_their_range() -> None:
    factors = augment.draw_contrast(2000, 0.3, gen(7)).numpy()
    assert stats.kstest(factors, stats.uniform(0.7, 0.6).cdf).pvalue > 0.01
    assert torch.equal(augment.draw_contrast(5, 0.0, gen(7)), torch.ones(5))


def test_half_of_the_images_are_flipped() -> None:
    assert abs(float(augment.draw_flips(4000, gen(8)).float().mean()) - 0.5) < 0.03


def test_image_and_mask_flip_together() -> None:
    masks = torch.randint(0, 3, (6, 8, 8), generator=gen(9), dtype=torch.uint8)
    images = masks.unsqueeze(1).expand(6, 3, 8, 8)  # an image that shows its mask
    flips = torch.tensor([True, False, True, True, False, False])
    moved, seen = augment.flip(masks, flips), augment.flip(images, flips)
    assert torch.equal(seen[:, 0], moved)
    assert torch.equal(moved[flips], masks[flips].flip(2))
    assert torch.equal(moved[~flips], masks[~flips])
    assert torch.equal(augment.flip(moved, flips), masks)
    assert moved.dtype == masks.dtype


def test_normalisation_and_back(images: Tensor) -> None:
    mean, std = list(augment.IMAGENET_MEAN), list(augment.IMAGENET_STD)
    found = augment.normalise(images)
    torch.testing.assert_close(found, reference.normalize(images, mean, std))
    torch.testing.assert_close(augment.denormalise(found), images)


def test_bytes_become_shares() -> None:
    raw = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    assert augment.to_float(raw).flatten().tolist() == pytest.approx([0, 0.2, 1])
    assert raw.flatten().tolist() == [0, 51, 255]  # the pack's memory is not written to


def test_labelled_images_do_each_step_in_turn() -> None:
    raw = torch.randint(0, 256, (5, 3, 8, 8), generator=gen(10), dtype=torch.uint8)
    draws = Draws.make(5, 0.3, gen(11))
    expected = augment.adjust_contrast(augment.flip(raw.float() / 255, draws.flips), draws.contrast)
    torch.testing.assert_close(augment.labelled_images(raw, draws, normalised=False), expected)
    torch.testing.assert_close(augment.labelled_images(raw, draws, normalised=True), augment.normalise(expected))
    torch.testing.assert_close(augment.labelled_images(raw, None, normalised=False), raw.float() / 255)


def test_draws_are_picked_by_position() -> None:
    draws = Draws.make(10, 0.3, gen(12))
    picked = draws.at(torch.tensor([7, 2]))
    assert picked.flips.tolist() == [bool(draws.flips[7]), bool(draws.flips[2])]
    assert torch.equal(picked.contrast, draws.contrast[[7, 2]])


def test_whole_image_at_its_own_size_is_left_alone(images: Tensor) -> None:
    box = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(4, 4)
    same = augment.crop_resize_flip(images, box, torch.zeros(4, dtype=torch.bool), 40)
    torch.testing.assert_close(same, images, atol=1e-4, rtol=0)
    half = augment.crop_resize_flip(images, box, torch.zeros(4, dtype=torch.bool), 20)
    torch.testing.assert_close(half, F.avg_pool2d(images, 2), atol=1e-4, rtol=0)
