"""The cheapest mix of images, labels and training that reaches a target, and the rounds to buy it in.

Mahmood et al. 2022, "Optimizing Data Collection for Machine Learning": the expected cost is minimised under a bound on
the chance of missing the target. What a later round costs counts by the chance that it is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from viny.evidence.statistics.surface import LEAST_SHAPED, Surface

ROUNDS = 3  # at most; more hardly lower the expected cost
LABEL_STEPS, IMAGE_STEPS, LENGTHS = 32, 12, 4  # sizes to look at
ROUND = 1e-3  # of the cheapest mix's cost: what a round is taken to cost, so that none is for nothing
NEAR = 1e-9  # costs that differ by less are equal


@dataclass(frozen=True)
class Prices:
    """What a label, an image and an hour of training cost, in one unit; and what is at hand, which costs nothing.

    Attributes:
        label, image, hour: prices.
        labels, images: at hand.
        pretrain, finetune: seconds for an image to go forward and backward once.
        batch: images of a step of pre-training.
        pretrain_epochs, finetune_epochs: of a training.
        least: images that fewer are shown as often as; of the largest size where all take equal steps, else 0.
    """

    label: float
    image: float
    hour: float
    labels: float
    images: float
    pretrain: float
    finetune: float
    batch: int
    pretrain_epochs: int
    finetune_epochs: int
    least: float = 0.0


@dataclass(frozen=True, eq=False)
class Mixes:
    """Mixes to choose from, [Q] each.

    Attributes:
        images, labels: numbers of them.
        steps: of pre-training; None where the images say all.
        data: cost of the images and labels that are not at hand.
        hours: of one pre-training and one fine-tuning.
        training: cost of these hours.
        chance: that the target is reached.
    """

    images: np.ndarray
    labels: np.ndarray
    steps: np.ndarray | None
    data: np.ndarray
    hours: np.ndarray
    training: np.ndarray
    chance: np.ndarray

    @property
    def cost(self) -> np.ndarray:
        return self.data + self.training


@dataclass(frozen=True)
class Mix:
    """One mix, and what is foretold of it; see `Mixes`."""

    images: int
    labels: int
    steps: int | None
    data: float
    hours: float
    training: float
    chance: float

    @property
    def cost(self) -> float:
        return self.data + self.training


def mixes(surface: Surface, prices: Prices, target: float) -> Mixes:
    """Mixes as far as the surface is read: those measured, those at hand, and others between and beyond.

    Args:
        surface: of error.
        prices: of its axes.
        target: mIoU, a fraction.
    """
    there = np.unique(surface.points.labels)
    labels = _sizes(there, prices.labels, surface.most_labels, LABEL_STEPS)
    images = surface.image_sizes
    if len(images) >= LEAST_SHAPED:
        above = images[images > 0]
        images = np.union1d(images[images == 0], _sizes(above, prices.images, surface.most_images, IMAGE_STEPS))
    taken = surface.points.steps
    lengths = np.zeros(1)
    if taken is not None:
        each = (taken / np.maximum(surface.points.images, 1))[surface.points.images > 0]
        lengths = np.geomspace(each.min(), each.max(), LENGTHS)
    u, n, length = (axis.ravel() for axis in np.meshgrid(images, labels, lengths, indexing="ij"))
    steps = None if taken is None else np.rint(u * length)
    if steps is not None:  # a random start has one length; none is longer than any that was measured
        assert taken is not None
        here = ((u > 0) | (length == lengths[0])) & (steps <= taken.max())
        u, n, steps = u[here], n[here], steps[here]
    passes = (u > 0) * np.maximum(u, prices.least) * prices.pretrain_epochs if steps is None else steps * prices.batch
    hours = (passes * prices.pretrain + n * prices.finetune_epochs * prices.finetune) / 3600
    data = prices.label * (n - prices.labels).clip(0) + prices.image * (u - prices.images).clip(0)
    return Mixes(u, n, steps, data, hours, prices.hour * hours, surface.chances(target, u, n, steps))


def _sizes(there: np.ndarray, at_hand: float, most: float, count: int) -> np.ndarray:
    between = np.geomspace(there[0], most, count)
    digits = 10.0 ** (np.floor(np.log10(between)) - 1)
    rounded = np.rint(between / digits) * digits
    near = rounded[(rounded >= there[0]) & (rounded <= most)]
    return np.unique(np.rint([*there, *near, *([at_hand] if there[0] <= at_hand <= most else [])]))


def cheapest(found: Mixes, wanted: float, here: np.ndarray | None = None) -> int | None:
    """The place of the cheapest mix that reaches the target with a chance; None if no mix does.

    Args:
        found: mixes.
        wanted: chance.
        here: which mixes may be taken, bool [Q]; None for all.
    """
    good = found.chance >= wanted
    if here is not None:
        good = good & here
    if not good.any():
        return None
    # Among mixes of equal cost the likeliest.
    cost = np.where(good, found.cost, np.inf)
    tied = cost <= cost.min() + NEAR
    return int(np.where(tied, found.chance, -1).argmax())


def mix_at(found: Mixes, place: int) -> Mix:
    """One mix as plain numbers."""
    steps = None if found.steps is None else int(found.steps[place])
    return Mix(
        int(found.images[place]), int(found.labels[place]), steps,
        *(float(values[place]) for values in (found.data, found.hours, found.training, found.chance)),
    )  # fmt: skip


def rounds(found: Mixes, wanted: float, most: int = ROUNDS) -> tuple[list[int], float]:
    """The rounds with the least expected cost that end where the target is reached with a chance.

    Each round trains anew on all there is by then. The first buys at most half of what the cheapest mix lacks: what it
    teaches is worth more than the expected cost counts.

    Args:
        found: mixes.
        wanted: chance.
        most: rounds.

    Returns:
        The place of each round's mix, and the expected cost. Nothing is bought twice: mixes only grow. Empty if no mix
        reaches the target.
    """
    end = cheapest(found, wanted)
    if end is None:
        return [], np.nan
    alone = [end], float(found.cost[end])
    if found.data[end] <= NEAR or most == 1:
        return alone
    # A round buys something; and mixes beyond the cheapest one's cost twice over end no good plan.
    kept = np.flatnonzero((found.cost <= 2 * found.cost[end] + NEAR) & (found.data > NEAR))
    data, chance = found.data[kept], found.chance[kept]
    once = found.training[kept] + ROUND * found.cost[end]
    grows = ~np.eye(len(kept), dtype=bool)
    for values in (found.images, found.labels, found.steps):
        if values is not None:
            grows &= values[kept][:, None] <= values[kept][None]
    step = np.where(grows, data[None] - data[:, None] + once[None], np.inf) * (1 - chance[:, None]).clip(NEAR)
    final = np.where(chance >= wanted, 0.0, np.inf)
    ahead, onward = [final], []  # [q]: the expected cost from mix q on, with at most so many rounds to come
    for _ in range(most - 1):
        through = step + ahead[-1][None]
        onward.append(through.argmin(1))
        ahead.append(np.minimum(final, through.min(1)))
    first = data + once + ahead[-1]
    at = int(first.argmin())
    if data[at] > found.data[end] / 2 + NEAR:
        halves = (data <= found.data[end] / 2 + NEAR) & grows[:, kept == end][:, 0]
        if not halves.any():
            return alone
        # Of those that cost about half, the one most likely to do.
        dear = halves & (data >= 0.8 * data[halves].max())
        at = int(np.where(dear, chance - NEAR * data, -np.inf).argmax())
    path = [at]
    for left in range(most - 1, 0, -1):
        if chance[path[-1]] >= wanted:
            break
        path.append(int(onward[left - 1][path[-1]]))
    return [int(kept[place]) for place in path], float(first[at])
