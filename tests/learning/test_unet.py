"""The U-Net that a study's model is compared with: its shapes, what it costs, and that it learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from viny.learning import unet_settings
from viny.learning.unet import UNet


def made(side: int, classes: int = 3, loss: str = "class_softmax") -> UNet:
    torch.manual_seed(0)
    return UNet(side, classes, loss)


@pytest.mark.parametrize(("side", "levels"), [(4, 2), (5, 3), (7, 3), (24, 4), (33, 4), (64, 4)])
def test_every_pixel_of_an_image_of_any_size_gets_a_score_for_each_class(side: int, levels: int) -> None:
    model = made(side, 5)
    assert model(torch.randn(2, 3, side, side)).shape == (2, 5, side, side)
    assert [one.shape[-1] for one in model.encoder(torch.randn(1, 3, side, side))] == unet_settings.sides(side)
    assert len(unet_settings.sides(side)) == levels


@pytest.mark.parametrize(("side", "classes"), [(5, 2), (24, 3), (64, 3), (128, 20)])
def test_its_stated_size_and_cost_are_its_own(side: int, classes: int) -> None:
    model = made(side, classes)
    assert sum(one.numel() for one in model.parameters()) == unet_settings.parameters(side, classes)
    counted: list[int] = []

    def count(layer: nn.Conv2d, _: Any, maps: Tensor) -> None:
        counted.append(2 * maps.numel() * layer.weight[0].numel())

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(count)
    model(torch.randn(1, 3, side, side))
    assert sum(counted) == unet_settings.forward_operations(side, classes)


def test_it_has_half_a_million_parameters_at_the_usual_sizes() -> None:
    assert 0.45e6 < unet_settings.parameters(64, 3) == unet_settings.parameters(128, 3) < 0.5e6


@pytest.mark.parametrize("loss", ["class_softmax", "pixel_softmax"])
def test_every_parameter_learns_and_the_loss_falls(loss: str) -> None:
    model, images = made(16, loss=loss), torch.randn(6, 3, 16, 16)
    masks = (images[:, 0] > 0).long() + (images[:, 1] > 0.5)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    first = model.loss((images, masks))
    first.backward()
    assert all(one.grad is not None and float(one.grad.abs().max()) > 0 for one in model.parameters())
    for _ in range(30):
        optimizer.zero_grad()
        last = model.loss((images, masks))
        last.backward()
        optimizer.step()
    assert last.item() < 0.7 * first.item()


def test_an_image_s_scores_do_not_depend_on_its_batch() -> None:
    """So that a last, smaller batch, and a batch divided among threads, teach the same."""
    model, images = made(12).double(), torch.randn(5, 3, 12, 12, dtype=torch.float64)
    torch.testing.assert_close(model(images), torch.cat([model(one[None]) for one in images]))
