"""The embedded data set: textured objects on textured ground, seen through murk, drawn from a name and a number.

Nothing is downloaded or stored: `render` draws image `index` of a `stream` from a generator that is seeded by
that name alone, so an image never depends on how many others are made or in which order.

Objects and grounds take their textures from the same families. Objects are warm and grounds are cool, but patches of
murk as wide as a tenth of the image tint everything, so that the colour at one place often misleads. What its
surroundings have in common says more, and that can be learned without labels.

Coordinates are fractions of the image's side, x to the right and y downwards, with (0, 0) in the middle.
Images are drawn on a grid of twice the size asked for; its side is called S below.
"""

from __future__ import annotations

import colorsys
import hashlib
import math
from collections.abc import Callable

import numpy as np

SCENES: tuple[str, ...] = ("stripes", "checks", "clouds", "dots", "ripples", "cells")
KINDS: tuple[str, ...] = ("blob", "star", "polygon", "ring", "crescent", "flower", "animal")
SEGMENTATION_CLASSES = ("object", "ground", "border")
STREAMS: tuple[str, ...] = ("unlabelled", "scenes", "segmentation")

OBJECT, GROUND, BORDER = 0, 1, 2
# Hues of ground and objects, as shares of the colour circle: cool and warm, each with this standard deviation.
COOL, WARM = 0.58, 0.08
HUE_SPREAD = 0.1
# Amplitude of the murk, in the unit of the picture's 0..1, and its bumps along a side.
MURK, MURK_CELLS = 0.7, 10
# Share of the image that the object may cover, including the border band.
COVERAGE = (0.08, 0.45)
MIN_SIZE = 16

_TAU = 2 * math.pi

# Whether points belong to a shape: takes x and y (float32, broadcast against each other), returns booleans.
Shape = Callable[[np.ndarray, np.ndarray], np.ndarray]


def is_held_out(index: int, count: int) -> bool:
    """Whether an image out of `count` is held out: one in five, in one run that includes every class."""
    return index * 5 // count == 4


def render(stream: str, index: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Image `index` of `stream`: what it shows, where the object is, on which ground, and of which kind.

    Returns the image (uint8 [3, size, size], RGB), the mask (uint8 [size, size] with 0 object, 1 ground,
    2 border band), the scene class (an index into SCENES) and the kind of the front object (an index into
    KINDS).
    """
    image, inside, scene, kind = draw(stream, index, size, seed)
    return image, trimap(inside), scene, kind


def draw(stream: str, index: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray, int, int]:
    """As `render`, but with the object's silhouette (bool [size, size], no band) in place of the mask."""
    if stream not in STREAMS:
        raise ValueError(f"unknown stream {stream!r}: expected one of {', '.join(STREAMS)}")
    if size < MIN_SIZE:
        raise ValueError(f"size {size} is too small to show an object: at least {MIN_SIZE} pixels are needed")
    if index < 0:
        raise ValueError(f"index {index} is negative")
    rng = _generator(stream, index, seed)
    scene = int(rng.integers(len(SCENES)))
    if stream == "scenes":
        # Equal shares of the classes in every run of six, however many images a caller takes.
        scene = index % len(SCENES)
    kind = int(rng.integers(len(KINDS)))

    side = 2 * size
    axis = ((np.arange(side, dtype=np.float32) + 0.5) / side - 0.5).astype(np.float32)
    x, y = axis[None, :], axis[:, None]

    silhouettes, cover = _arrangement(rng, KINDS[kind], axis)
    ground_colours = _palette(rng, COOL)
    picture = _paint(_texture(rng, SCENES[scene], x, y), ground_colours)
    # A smooth stain over the ground makes its mean colour vary within an image.
    picture *= 1 + np.float32(rng.uniform(0.0, 0.35)) * (_value_noise(rng, side, 3) - 0.5)

    coats = []
    for silhouette in silhouettes:
        family = int(rng.integers(len(SCENES)))
        coats.append((silhouette, _texture(rng, SCENES[family], x, y), _palette(rng, WARM)))

    _scatter_specks(rng, picture, axis, coats[-1][2])
    if rng.random() < 0.4:
        _cast_shadow(rng, picture, silhouettes[-1])
    for silhouette, field, colours in coats:
        coat = _paint(field, colours)
        # Objects are lit on their own, more strongly than the ground, as rounded bodies are.
        coat *= _light(rng, x, y, 0.3)
        np.copyto(picture, coat, where=silhouette)
    if cover is not None:
        blade = _palette(rng, COOL)
        np.copyto(picture, blade[int(rng.integers(2))][:, None, None], where=cover)
        silhouettes = [silhouette & ~cover for silhouette in silhouettes]

    picture = _halve(picture) * _light(rng, _halve_axis(x, 1), _halve_axis(y, 0), 0.25)
    picture += np.float32(2 * MURK) * (np.stack([_value_noise(rng, size, MURK_CELLS) for _ in range(3)]) - 0.5)
    picture += np.float32(0.1) * rng.standard_normal(picture.shape, dtype=np.float32)
    # Less contrast, so that the murk seldom leaves the range.
    picture = (picture - np.float32(0.5)) / np.float32(1 + MURK) + np.float32(0.5)
    image = (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
    inside = _halve(np.logical_or.reduce(silhouettes)[None].astype(np.float32))[0] >= 0.5
    return image, inside, scene, kind


def trimap(inside: np.ndarray) -> np.ndarray:
    """The mask (uint8 [size, size]: 0 object, 1 ground, 2 border band) of a silhouette (bool, same shape)."""
    mask = np.where(inside, OBJECT, GROUND).astype(np.uint8)
    mask[_near(inside, ~inside) | _near(~inside, inside)] = BORDER
    return mask


def band_radius(size: int) -> float:
    """The largest distance from a border pixel to the outline's other side, in pixels between centres."""
    return max(1.0, size / 40)


def _near(here: np.ndarray, there: np.ndarray) -> np.ndarray:
    """The pixels of `here` that have a pixel of `there` within the band's radius (all bool [size, size])."""
    size = here.shape[0]
    radius = band_radius(size)
    reach = int(radius)
    padded = np.zeros((size + 2 * reach, size + 2 * reach), dtype=bool)
    padded[reach : reach + size, reach : reach + size] = there
    grown = np.zeros_like(here)
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            if dx * dx + dy * dy <= radius * radius:
                grown |= padded[reach + dy : reach + dy + size, reach + dx : reach + dx + size]
    return here & grown


def _generator(stream: str, index: int, seed: int) -> np.random.Generator:
    """The generator of one image: its name's digest is its seed, so no two images share their draws."""
    digest = hashlib.sha256(f"{seed}:{stream}:{index}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))


# Shapes. Each maker draws its parameters from the generator and returns a test for points, in its own units;
# `_placed` measures the shape and sets it into the image.


def _ellipse(x: np.ndarray, y: np.ndarray, cx: float, cy: float, rx: float, ry: float, turn: float = 0.0) -> np.ndarray:
    """The points in an ellipse at (cx, cy) with semi-axes rx and ry, the first turned by `turn` radians."""
    c, s = math.cos(turn), math.sin(turn)
    dx, dy = x - cx, y - cy
    return ((c * dx + s * dy) / rx) ** 2 + ((c * dy - s * dx) / ry) ** 2 <= 1


def _blob(rng: np.random.Generator) -> Shape:
    """A disc whose radius swells and shrinks along its edge."""
    waves = [(k, rng.uniform(0.0, 0.5) / k, rng.uniform(0, _TAU)) for k in range(2, 6)]

    def shape(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        angle = np.arctan2(y, x)
        radius = sum(a * np.cos(k * angle + phase) for k, a, phase in waves) + 1
        return x * x + y * y <= radius * radius

    return shape


def _star(rng: np.random.Generator) -> Shape:
    """Four to seven straight-edged tips."""
    tips = int(rng.integers(4, 8))
    half = math.pi / tips
    notch = rng.uniform(0.4, 0.65)
    # The edge runs from the tip (1, 0) to the notch; folding the plane into half a tip leaves that one edge.
    nx, ny = notch * math.sin(half), 1 - notch * math.cos(half)

    def shape(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        folded = half - np.abs((np.arctan2(y, x) % (2 * half)) - half)
        return np.hypot(x, y) * (nx * np.cos(folded) + ny * np.sin(folded)) <= nx

    return shape


def _polygon(rng: np.random.Generator) -> Shape:
    """Three to six uneven straight sides."""
    sides = int(rng.integers(3, 7))
    turns = (np.arange(sides) + rng.uniform(-0.22, 0.22, sides)) * (_TAU / sides)
    lines = [(math.cos(t), math.sin(t), d) for t, d in zip(turns, rng.uniform(0.6, 0.9, sides), strict=True)]

    def shape(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.logical_and.reduce([c * x + s * y <= d for c, s, d in lines])

    return shape


def _ring(rng: np.random.Generator) -> Shape:
    """A disc with a round hole, not always in its middle."""
    hole = rng.uniform(0.4, 0.6)
    slip = rng.uniform(0, 0.15)

    def shape(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x * x + y * y <= 1) & ((x - slip) ** 2 + y * y > hole * hole)

    return shape


def _crescent(rng: np.random.Generator) -> Shape:
    """A disc that another disc takes a bite out of."""
    bite = rng.uniform(0.6, 0.9)
    slip = rng.uniform(0.6, 0.8)

    def shape(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x * x + y * y <= 1) & ((x - slip) ** 2 + y * y > bite * bite)

    return shape


def _flower(rng: np.random.Generator) -> Shape:
    """Round petals around a round heart."""
    petals = int(rng.integers(4, 8))
    width = rng.uniform(0.85, 1.15) * math.sin(math.pi / petals) * 0.62
    length = rng.uniform(0.36, 0.5)
    turns = [_TAU * i / petals for i in range(petals)]

    def shape(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        parts = [_ellipse(x, y, 0.62 * math.cos(t), 0.62 * math.sin(t), length, width, t) for t in turns]
        return np.logical_or.reduce([*parts, _ellipse(x, y, 0, 0, 0.4, 0.4)])

    return shape


def _animal(rng: np.random.Generator) -> Shape:
    """A standing animal seen from the side: body, legs, head with two ears, tail."""
    tall = rng.uniform(0.42, 0.62)
    head_x, head_y, head = rng.uniform(0.8, 1.1), -rng.uniform(0.3, 0.7), rng.uniform(0.34, 0.46)
    # Each part is an ellipse: its middle, its semi-axes and its turn.
    parts = [(0.0, 0.0, 1.0, tall, 0.0)]
    parts.append((head_x, head_y, head * rng.uniform(1.0, 1.3), head, rng.uniform(-0.3, 0.4)))
    ear, lean, thick = rng.uniform(0.6, 1.3) * head, rng.uniform(-0.3, 0.3), rng.uniform(0.1, 0.16)
    for way in (-0.5, 0.5):
        turn = lean + way
        # An ear sits on the head's rim and leans with it.
        ear_x, ear_y = head_x + head * 1.1 * math.sin(turn), head_y - head * 1.1 * math.cos(turn)
        parts.append((ear_x, ear_y, thick, ear * 0.6, turn))
    leg = rng.uniform(0.3, 0.5)
    for leg_x in (-0.7, -0.4, 0.4, 0.7) if rng.random() < 0.5 else (-0.55, 0.55):
        leg_x += rng.uniform(-0.06, 0.06)
        parts.append((leg_x, tall * 0.6 + leg / 2, rng.uniform(0.12, 0.17), leg, 0.0))
    tail, rise = rng.uniform(0.3, 0.55), rng.uniform(-0.5, 1.0)
    tail_x, tail_y = -0.9 - tail * 0.8 * math.cos(rise), -tail * 0.8 * math.sin(rise)
    parts.append((tail_x, tail_y, tail, rng.uniform(0.1, 0.15), rise))

    def shape(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.logical_or.reduce([_ellipse(x, y, *part) for part in parts])

    return shape


_MAKERS: dict[str, Callable[[np.random.Generator], Shape]] = {
    "blob": _blob,
    "star": _star,
    "polygon": _polygon,
    "ring": _ring,
    "crescent": _crescent,
    "flower": _flower,
    "animal": _animal,
}

# The area where a shape is measured before it is placed, in its own units; no shape reaches further.
_PROBE_REACH = 2.6
_PROBE_STEPS = 64


def _posed(rng: np.random.Generator, kind: str) -> Shape:
    """A shape of that kind, squeezed, turned and perhaps mirrored (an animal is never stood on its head)."""
    shape = _MAKERS[kind](rng)
    squeeze = math.exp(rng.uniform(-0.22, 0.22))
    turn = rng.uniform(-0.5, 0.5) if kind == "animal" else rng.uniform(0, _TAU)
    mirror = -1 if rng.random() < 0.5 else 1
    c, s = math.cos(turn), math.sin(turn)

    def posed(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return shape((c * x + s * y) * (squeeze * mirror), (c * y - s * x) / squeeze)

    return posed


def _placed(
    rng: np.random.Generator,
    kind: str,
    axis: np.ndarray,
    share: float,
    about: tuple[float, float] | None = None,
) -> tuple[np.ndarray, tuple[float, float]]:
    """A silhouette (bool [S, S]) that covers about `share` of the image, and the middle (x, y) of its box.

    It lies anywhere in the image, or near the point `about` if one is given. A shape with outstretched parts
    is made smaller than asked if it would not fit.
    """
    shape = _posed(rng, kind)
    probe = np.linspace(-_PROBE_REACH, _PROBE_REACH, _PROBE_STEPS, dtype=np.float32)
    step = 2 * _PROBE_REACH / (_PROBE_STEPS - 1)
    hits = shape(probe[None, :], probe[:, None])
    columns, rows = probe[hits.any(axis=0)], probe[hits.any(axis=1)]
    left, right, top, bottom = columns[0], columns[-1], rows[0], rows[-1]
    width, height = float(right - left) + step, float(bottom - top) + step
    # Up to an eighth of the box may stick out of the image, as in photographs.
    scale = min(math.sqrt(share / (np.count_nonzero(hits) * step * step)), 1.05 / width, 1.05 / height)
    middle = []
    for i, extent in enumerate((width * scale, height * scale)):
        room = max(0.0, 0.5 - 0.42 * extent)
        at = rng.uniform(-room, room)
        if about is not None:
            at = min(max(about[i] + rng.uniform(-0.22, 0.22), -room), room)
        middle.append(at)
    cx = middle[0] - scale * float(left + right) / 2
    cy = middle[1] - scale * float(top + bottom) / 2

    # Only the shape's box is worth testing, and a little around it, as the probe is coarse.
    wide, high = width * scale / 2 + 0.02, height * scale / 2 + 0.02
    x0, x1 = np.searchsorted(axis, [middle[0] - wide, middle[0] + wide])
    y0, y1 = np.searchsorted(axis, [middle[1] - high, middle[1] + high])
    silhouette = np.zeros((len(axis), len(axis)), dtype=bool)
    silhouette[y0:y1, x0:x1] = shape((axis[None, x0:x1] - cx) / scale, (axis[y0:y1, None] - cy) / scale)
    return silhouette, (middle[0], middle[1])


def _arrangement(rng: np.random.Generator, kind: str, axis: np.ndarray) -> tuple[list[np.ndarray], np.ndarray | None]:
    """The objects' silhouettes, back to front, the last one of the given kind, and what lies over them all.

    Each is bool [S, S]; what lies over them, often nothing (None), counts as ground.
    """
    # One draw in some hundreds covers too little or too much and is repeated; only chance ends the loop.
    while True:
        pair = rng.random() < 0.2
        share = rng.uniform(0.12, 0.43)
        front, middle = _placed(rng, kind, axis, share * 0.6 if pair else share)
        silhouettes = [front]
        if pair:
            other = KINDS[int(rng.integers(len(KINDS)))]
            silhouettes.insert(0, _placed(rng, other, axis, share * 0.6, middle)[0])
        cover = _cover(rng, axis, middle) if rng.random() < 0.3 else None
        seen = np.logical_or.reduce(silhouettes)
        if cover is not None:
            seen &= ~cover
        if COVERAGE[0] <= np.count_nonzero(seen) / seen.size <= COVERAGE[1]:
            return silhouettes, cover


def _cover(rng: np.random.Generator, axis: np.ndarray, middle: tuple[float, float]) -> np.ndarray:
    """A bent blade of grass that crosses the image near the object's middle (bool [S, S])."""
    u, v = _turned(axis[None, :] - middle[0], axis[:, None] - middle[1], rng.uniform(0, _TAU))
    return np.abs(u - rng.uniform(-0.15, 0.15) - rng.uniform(-0.5, 0.5) * v * v) < rng.uniform(0.018, 0.035)


# Textures. Each returns a field of values in 0..1 (float32 [S, S]) that `_paint` turns into a mixture of two
# colours.


def _turned(x: np.ndarray, y: np.ndarray, turn: float) -> tuple[np.ndarray, np.ndarray]:
    """Both coordinates (float32 [S, S]) in axes turned by `turn` radians."""
    c, s = np.float32(math.cos(turn)), np.float32(math.sin(turn))
    return c * x + s * y, c * y - s * x


def _step(field: np.ndarray, slope: float) -> np.ndarray:
    """Map a field around 0 to 0..1; the larger the slope, the sharper the step at 0."""
    return np.clip(field * np.float32(slope) + np.float32(0.5), 0, 1)


def _value_noise(rng: np.random.Generator, side: int, cells: float) -> np.ndarray:
    """Smooth noise in 0..1 with about that many bumps along a side (float32 [side, side])."""
    count = math.ceil(cells) + 2
    lattice = rng.random((count, count), dtype=np.float32)
    for _ in range(2):
        # Once along each axis, as a plain weighted sum of rows: how a matrix product rounds is up to its library
        # and differs between machines.
        at = np.arange(side, dtype=np.float32) * np.float32(cells / side) + np.float32(rng.random())
        low = at.astype(np.int64)
        part = at - low
        part = (part * part * (3 - 2 * part))[:, None]
        lattice = np.ascontiguousarray((lattice[low] * (1 - part) + lattice[low + 1] * part).T)
    return lattice


def _stripes(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Straight bars, sometimes wavy."""
    u, v = _turned(x, y, rng.uniform(0, _TAU))
    waver = rng.uniform(0, 0.35) * np.sin(_phase(rng, v, rng.uniform(0.5, 1.5)))
    bars = np.sin(_phase(rng, u, rng.uniform(3.5, 9)) + waver)
    return _step(bars + np.float32(rng.uniform(-0.4, 0.4)), rng.uniform(0.4, 2.5))


def _checks(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A chequerboard, more or less stretched."""
    u, v = _turned(x, y, rng.uniform(0, _TAU))
    cycles, stretch = rng.uniform(2.2, 5.5), math.exp(rng.uniform(-0.25, 0.25))
    across = np.sin(_phase(rng, u, cycles * stretch))
    return _step(across * np.sin(_phase(rng, v, cycles / stretch)), rng.uniform(1.0, 4.0))


def _clouds(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Value noise in three octaves."""
    side = x.shape[1]
    cells, field = rng.uniform(3, 8), np.float32(-0.5)
    for octave, weight in enumerate((0.57, 0.28, 0.15)):
        field = field + np.float32(weight) * _value_noise(rng, side, cells * 2**octave)
    return _step(field, rng.uniform(1.6, 4.5))


def _dots(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Round dots, jittered around a lattice."""
    u, v = _lattice_coordinates(rng, x, y, rng.uniform(4.5, 10))
    column, row = u.astype(np.int64), v.astype(np.int64)
    radius, jitter = rng.uniform(0.2, 0.36), rng.random((2, 32, 32), dtype=np.float32) - np.float32(0.5)
    # A dot stays in its own cell, so a point need not look at any other cell.
    jitter *= np.float32(1 - 2 * radius) * np.float32(rng.uniform(0, 1))
    cell = (row << 5) + column
    du, dv = u - column - 0.5 - jitter[0].ravel()[cell], v - row - 0.5 - jitter[1].ravel()[cell]
    return _step(np.float32(radius) - np.sqrt(du * du + dv * dv), rng.uniform(3, 9))


def _ripples(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Rings around a point in or near the image, bent by a slow wave."""
    dx, dy = x - np.float32(rng.uniform(-0.55, 0.55)), y - np.float32(rng.uniform(-0.55, 0.55))
    distance = np.sqrt(dx * dx + dy * dy * np.float32(rng.uniform(0.6, 1.6)))
    bend = rng.uniform(0, 0.9) * np.sin(_phase(rng, dx + dy, rng.uniform(0.7, 2)))
    rings = np.sin(_phase(rng, distance, rng.uniform(4, 10)) + bend.astype(np.float32))
    return _step(rings + np.float32(rng.uniform(-0.3, 0.3)), rng.uniform(0.4, 2.0))


def _cells(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A mosaic: the Voronoi cells of jittered points, each in its own shade, with dark seams."""
    u, v = _lattice_coordinates(rng, x, y, rng.uniform(3.5, 8))
    column, row = u.astype(np.int32), v.astype(np.int32)
    jitter = (rng.random((2, 1024), dtype=np.float32) - np.float32(0.5)) * np.float32(rng.uniform(0.4, 0.8))
    points_u = (jitter[0] + np.tile(np.arange(32, dtype=np.float32), 32)) + np.float32(0.5)
    points_v = (jitter[1] + np.repeat(np.arange(32, dtype=np.float32), 32)) + np.float32(0.5)
    first = np.full(u.shape, 99, dtype=np.float32)
    second = first.copy()
    owner = np.zeros(u.shape, dtype=np.int32)
    home = (row << 5) + column
    for shift in (0, -33, -32, -31, -1, 1, 31, 32, 33):
        cell = home + shift
        du, dv = u - points_u.take(cell), v - points_v.take(cell)
        gap = du * du + dv * dv
        np.minimum(second, np.maximum(first, gap), out=second)
        np.copyto(owner, cell, where=gap < first)
        np.minimum(first, gap, out=first)
    shades = rng.random(1024, dtype=np.float32) * np.float32(0.7) + np.float32(0.3)
    seam = np.clip((np.sqrt(second) - np.sqrt(first)) * np.float32(rng.uniform(4, 10)), 0, 1)
    return shades.take(owner) * seam


def _phase(rng: np.random.Generator, along: np.ndarray, cycles: float) -> np.ndarray:
    """A coordinate as an angle in radians, with that many cycles along the image's side and a random start."""
    return along * np.float32(_TAU * cycles) + np.float32(rng.uniform(0, _TAU))


def _lattice_coordinates(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, cells: float
) -> tuple[np.ndarray, np.ndarray]:
    """Turned coordinates in units of lattice cells, with `cells` of them along the image's side.

    Both stay between 1 and 31 for up to 20 cells, so that cells and their neighbours index tables of 32 by 32.
    """
    u, v = _turned(x, y, rng.uniform(0, _TAU))
    return (
        u * np.float32(cells) + np.float32(15.5 + rng.random()),
        v * np.float32(cells) + np.float32(15.5 + rng.random()),
    )


_TEXTURES: dict[str, Callable[[np.random.Generator, np.ndarray, np.ndarray], np.ndarray]] = {
    "stripes": _stripes,
    "checks": _checks,
    "clouds": _clouds,
    "dots": _dots,
    "ripples": _ripples,
    "cells": _cells,
}


def _texture(rng: np.random.Generator, family: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A field of that family (float32 [S, S], 0..1), as it is or inverted."""
    field = _TEXTURES[family](rng, x, y).astype(np.float32, copy=False)
    return 1 - field if rng.random() < 0.5 else field


# Colours and light. Pictures are float32 [3, S, S] of RGB in 0..1.


def _palette(rng: np.random.Generator, hue: float) -> np.ndarray:
    """Two colours (float32 [2, 3]) near a hue, which is a share of the colour circle."""
    first = hue + rng.normal(0, HUE_SPREAD)
    hues = (first, first + rng.uniform(-0.1, 0.1))
    colours = [colorsys.hsv_to_rgb(h % 1, rng.uniform(0.4, 0.7), rng.uniform(0.6, 0.85)) for h in hues]
    return np.array(colours, dtype=np.float32)


def _paint(field: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """A field in 0..1 as a mixture of two colours: a picture."""
    return colours[0][:, None, None] + (colours[1] - colours[0])[:, None, None] * field


def _light(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, most: float) -> np.ndarray:
    """A brightness around 1 that rises across the image by up to `most` (float32, x and y broadcast)."""
    turn, rise = rng.uniform(0, _TAU), rng.uniform(0, most)
    return 1 + np.float32(rise * math.cos(turn)) * x + np.float32(rise * math.sin(turn)) * y


def _scatter_specks(
    rng: np.random.Generator, picture: np.ndarray, axis: np.ndarray, object_colours: np.ndarray
) -> None:
    """Draw a few specks, too small to be objects, on a picture's ground, half of them in object colours."""
    for _ in range(int(rng.integers(2, 10))):
        cx, cy = rng.uniform(-0.5, 0.5, 2)
        rx, ry, turn = rng.uniform(0.015, 0.05), rng.uniform(0.012, 0.03), rng.uniform(0, _TAU)
        own = rng.uniform(0.05, 0.95, 3).astype(np.float32)
        colour = object_colours[int(rng.integers(2))] if rng.random() < 0.5 else own
        reach = max(rx, ry)
        x0, x1 = np.searchsorted(axis, [cx - reach, cx + reach])
        y0, y1 = np.searchsorted(axis, [cy - reach, cy + reach])
        speck = _ellipse(axis[None, x0:x1], axis[y0:y1, None], cx, cy, rx, ry, turn)
        np.copyto(picture[:, y0:y1, x0:x1], colour[:, None, None], where=speck)


def _cast_shadow(rng: np.random.Generator, picture: np.ndarray, silhouette: np.ndarray) -> None:
    """Darken a picture's ground beside a silhouette: a bright-dark edge that is not the object's outline."""
    side = silhouette.shape[0]
    dx, dy = (round(shift * side) for shift in rng.uniform(-0.07, 0.07, 2))
    shadow = np.zeros_like(silhouette)
    shadow[max(dy, 0) : side + min(dy, 0), max(dx, 0) : side + min(dx, 0)] = silhouette[
        max(-dy, 0) : side + min(-dy, 0), max(-dx, 0) : side + min(-dx, 0)
    ]
    picture *= 1 - np.float32(rng.uniform(0.15, 0.4)) * shadow


def _halve(picture: np.ndarray) -> np.ndarray:
    """A picture (float32 [n, 2m, 2m]) at half its side, each pixel the mean of four."""
    rows = picture[:, 0::2] + picture[:, 1::2]
    return (rows[:, :, 0::2] + rows[:, :, 1::2]) * np.float32(0.25)


def _halve_axis(coordinates: np.ndarray, along: int) -> np.ndarray:
    """Turn coordinates of the doubled grid's points into those of the image's pixels, along one array axis."""
    pairs = coordinates[:, 0::2] + coordinates[:, 1::2] if along else coordinates[0::2] + coordinates[1::2]
    return pairs * np.float32(0.5)
