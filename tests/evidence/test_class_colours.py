"""Class colours can be told apart, also over pictures, and by colour-blind eyes as far as is promised."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from viny.evidence.figures import kit

# Colours as they look to eyes without one kind of cone, in linear RGB (Machado, Oliveira and Fernandes 2009).
VISION = {
    "all cones": np.eye(3),
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.119192, 0.9503041]])
WHITE = np.array([0.95047, 1, 1.08883])


def lab(rgb: np.ndarray, vision: str = "all cones") -> np.ndarray:
    """CIE L*, a*, b* [N, 3] of sRGB colours."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    share = (linear @ np.transpose(VISION[vision])).clip(0, 1) @ XYZ.T / WHITE
    f = np.where(share > 216 / 24389, np.cbrt(share), (24389 / 27 * share + 16) / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


def difference(one: np.ndarray, two: np.ndarray) -> float:
    """CIEDE2000 (Sharma, Wu and Dalal 2005)."""
    (l1, a1, b1), (l2, a2, b2) = one, two
    chroma = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    stretch = 1.5 - 0.5 * np.sqrt(chroma**7 / (chroma**7 + 25**7))
    c1, c2 = np.hypot(stretch * a1, b1), np.hypot(stretch * a2, b2)
    h1, h2 = (np.degrees(np.arctan2(b, stretch * a)) for a, b in ((a1, b1), (a2, b2)))
    turn = (h2 - h1 + 180) % 360 - 180
    light, chroma, hue = (l1 + l2) / 2, (c1 + c2) / 2, h1 + turn / 2
    cosines = [np.cos(np.radians(k * hue + by)) for k, by in ((1, -30), (2, 0), (3, 6), (4, -63))]
    t = 1 + np.dot([-0.17, 0.24, 0.32, -0.2], cosines)
    bend = np.sin(np.radians(60 * np.exp(-((((hue % 360) - 275) / 25) ** 2))))
    dl = (l2 - l1) / (1 + 0.015 * (light - 50) ** 2 / np.sqrt(20 + (light - 50) ** 2))
    dc = (c2 - c1) / (1 + 0.045 * chroma)
    dh = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2)) / (1 + 0.015 * chroma * t)
    return float(np.sqrt(dl**2 + dc**2 + dh**2 - 2 * np.sqrt(chroma**7 / (chroma**7 + 25**7)) * bend * dc * dh))


def least(colours: np.ndarray, vision: str = "all cones") -> float:
    return min(difference(one, two) for one, two in combinations(lab(colours, vision), 2))


def colours(count: int) -> np.ndarray:
    return np.array([to_rgb(colour) for colour in kit.class_colours(count)])


def test_the_difference_is_that_of_the_published_examples() -> None:
    for one, two, expected in (
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, 2.5, 0), (61, -5, 29), 22.8977),
        ((22.7233, 20.0904, -46.694), (23.0331, 14.973, -42.5619), 2.0373),
    ):
        assert difference(np.array(one), np.array(two)) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("count", "apart"), [(8, 20), (11, 18), (16, 14), (20, 13)])
def test_classes_have_colours_that_can_be_told_apart(count: int, apart: float) -> None:
    assert least(colours(count)) > apart
    assert min(difference(colour, lab(np.full((1, 3), 0xB3 / 255))[0]) for colour in lab(colours(count))) > 8
    for grey in (0.2, 0.5, 0.8):  # half as strong over a dark, a middling and a light picture
        assert least((colours(count) + grey) / 2) > apart / 3


@pytest.mark.parametrize("vision", [name for name in VISION if name != "all cones"])
def test_eight_classes_can_be_told_apart_without_one_kind_of_cone(vision: str) -> None:
    assert least(colours(8), vision) > 10
    assert least(colours(20), vision) > 6


def test_no_class_is_nearly_black_or_white() -> None:
    light = lab(colours(20))[:, 0]
    assert light.min() > 44 and light.max() < 93
