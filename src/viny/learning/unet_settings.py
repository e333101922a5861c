"""The dimensions and the learning rate of the U-Net that a study is compared with, and what it costs."""

from __future__ import annotations

LEVELS = 4  # sizes of the image that are looked at, where the image is large enough
RATE = 1e-3  # of 3e-4, 1e-3 and 3e-3 the last two did alike on Oxford-IIIT Pet, see docs/measured.md


def width(image_size: int) -> int:
    """Channels at full size, which each level doubles; fewer for images so small that their models cost little."""
    return 16 if image_size >= 64 else 8


def sides(image_size: int) -> list[int]:
    """Sides of the feature maps, pixels, from the full size down; halves of odd ones are rounded up."""
    found = [image_size]
    while len(found) < LEVELS and found[-1] > 2:
        found.append(-(-found[-1] // 2))
    return found


def convolutions(image_size: int) -> list[tuple[int, int, int]]:
    """Side of its output, channels in and channels out of each 3 x 3 convolution, in their order."""
    down, widths = sides(image_size), [width(image_size) * 2**level for level in range(LEVELS)]
    found, channels = [], 3
    for side, wide in zip(down, widths, strict=False):
        found += [(side, channels, wide), (side, wide, wide)]
        channels = wide
    for side, wide in reversed([*zip(down[:-1], widths, strict=False)]):
        found += [(side, channels + wide, wide), (side, wide, wide)]
        channels = wide
    return found


def parameters(image_size: int, classes: int) -> int:
    """Numbers that are trained: convolutions without biases, norms, and the head."""
    norms_and_weights = sum(9 * into * out + 2 * out for _, into, out in convolutions(image_size))
    return norms_and_weights + (width(image_size) + 1) * classes


def forward_operations(image_size: int, classes: int) -> int:
    """Multiplications and additions of the convolutions and the head for one image."""
    inner = sum(side**2 * 9 * into * out for side, into, out in convolutions(image_size))
    return 2 * (inner + image_size**2 * width(image_size) * classes)


def activation_bytes(image_size: int) -> int:
    """Bytes in float32 that the forward pass of one image keeps for the backward pass."""
    # A convolution's input, what it gives, and that after the norm; the joined maps of the way up are inputs.
    return 4 * sum(side**2 * (into + 2 * out) for side, into, out in convolutions(image_size))
