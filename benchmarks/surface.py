"""Operating characteristics of the advice at prices: simulated studies whose truth is known.

    python benchmarks/surface.py            # about ten minutes of processor time

Studies have four or five label sizes from 60, and two or four sizes of unlabelled images. Noise is as in
`benchmarks/curves.py`: 0.3 or 0.8 points over seeds, shared in part, and as much over test images. The target is what
the most images and 1.8 times the most labels reach.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import product

import numpy as np
import pandas as pd

from viny.evidence.advice.purchase import Prices, cheapest, mix_at, mixes
from viny.evidence.statistics.crossed import Runs
from viny.evidence.statistics.surface import fit_surface, points_of
from viny.evidence.tables import to_markdown

TRUTHS: dict[str, Callable[[float, float], float]] = {
    "added": lambda u, n: 0.25 + 1.2 * n**-0.4 + 0.08 * (1 + u / 500) ** -0.6,
    "multiplied": lambda u, n: 0.2 + 1.5 * n**-0.35 * (0.6 + 0.4 / (1 + u / 3000)),
    "log-linear": lambda u, n: 0.9 - 0.06 * np.log(n) + 0.05 * (1 + u / 1000) ** -0.5,
    "images hurt": lambda u, n: 0.3 + n**-0.35 - 0.02 / (1 + u / 1000),
    "none of them": lambda u, n: 0.3 + 0.3 * np.exp(-((n / 800) ** 0.5)) + 0.06 * np.exp(-u / 3000 - n / 1500),
}
IMAGES = ([0, 4000], [0, 1000, 4000, 16000])
LABELS = [60, 120, 240, 480, 960]
SPREADS = (0.003, 0.008)
SEEDS = (3, 5)
WANTED = (0.7, 0.9)
PICTURES, SHARED = 50, 0.3


def simulate(error: Callable[[float, float], float], images: list[int], labels: list[int], study: int) -> Runs:
    """Seeds and test images around 1 - error."""
    rng = np.random.default_rng([study, len(images), len(labels)])
    spread, seeds = SPREADS[study % 2], SEEDS[study // 2 % 2]
    keys = [(u, "none", n) for u in images for n in labels]
    mean, cells = np.array([1 - error(u, n) for u, _, n in keys]), len(keys)
    own, common = rng.standard_normal((seeds, cells)), rng.standard_normal((seeds, 1))
    values = np.sqrt(1 - SHARED) * own + np.sqrt(SHARED) * common
    own, common = rng.standard_normal((cells, PICTURES)), rng.standard_normal(PICTURES)
    moved = spread * (np.sqrt(1 - SHARED) * own + np.sqrt(SHARED) * common) / np.sqrt(PICTURES)
    apart = np.broadcast_to(moved - moved.mean(-1, keepdims=True), (seeds, *moved.shape))
    return Runs(keys, range(seeds), mean + spread * values + moved.sum(-1), apart)


def characteristics(studies: int) -> pd.DataFrame:
    """How often the cheapest mix misses its target, and how often that is stated, in percent."""
    rows = []
    for (truth, error), images, sizes in product(TRUTHS.items(), IMAGES, (4, 5)):
        labels = LABELS[:sizes]
        most = float(images[-1])
        target = 1 - error(most, 1.8 * labels[-1])
        prices = Prices(0.5, 0.001, 0.0, labels[-1], most, 1e-3, 1e-2, 64, 50, 40)
        bought: dict[float, list[tuple[bool, float]]] = {wanted: [] for wanted in WANTED}
        doubtful = 0
        for study in range(studies):
            points = points_of(simulate(error, images, labels, study), draws=300)
            assert points is not None
            surface = fit_surface(points)
            doubtful += surface.doubtful
            found = mixes(surface, prices, target)
            for wanted in WANTED:
                if (place := cheapest(found, wanted)) is not None:
                    mix = mix_at(found, place)
                    bought[wanted].append((1 - error(mix.images, mix.labels) < target, 1 - mix.chance))
        row = {"truth": truth, "sizes of images": str(len(images)), "of labels": str(sizes)}
        for wanted, mixed in bought.items():
            missed, stated = 100 * np.mean(mixed, axis=0) if mixed else (np.nan, np.nan)
            row[f"a chance of {100 * wanted:g} %: missed, stated"] = f"{missed:.0f}, {stated:.0f}"
            row[f"bought at {100 * wanted:g} %"] = f"{100 * len(mixed) / studies:.0f}"
        rows.append(row | {"said to be of no form": f"{100 * doubtful / studies:.0f}"})
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--studies", type=int, default=100, help="of each kind")
    print(to_markdown(characteristics(parser.parse_args().studies)))


if __name__ == "__main__":
    main()
