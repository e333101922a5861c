"""Operating characteristics of the curves: simulated studies whose truth is known.

    python benchmarks/curves.py            # about five minutes on one core; prints the figures of docs/evidence.md

A curve has six sizes, from 250 to 6,000 labels. Each form that is fitted is the truth in turn, and so are two that are
not. Noise over seeds is 0.3 or 0.8 points, with a correlation of 0.3 between the sizes of a seed; the test images add
as much to each cell, the same in all seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import product

import numpy as np
import pandas as pd

from viny.evidence.statistics import fits, transfer
from viny.evidence.statistics.crossed import Runs
from viny.evidence.tables import to_markdown

LABELS = np.array([250.0, 500, 1000, 2000, 4000, 6000])
KEYS = [(0, "none", int(n)) for n in LABELS]
SEEDS = (3, 5, 10)
SPREADS = (0.003, 0.008)
IMAGES = 50  # test images; only their sum counts
SHARED = 0.3
TRUTHS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "log-linear": lambda n: 1.0 - 0.065 * np.log(n),
    "power law": lambda n: 1.9 * n**-0.22,
    "power law to an asymptote": lambda n: 0.25 + 6 * n**-0.55,
    "saturating": lambda n: 0.3 + 0.35 / (1 + n / 900),
    "none of them, slow": lambda n: 0.28 + 0.3 * np.exp(-((n / 1500) ** 0.6)),
    "none of them, steep": lambda n: 0.3 + 0.3 / (1 + (n / 800) ** 1.6),
}
CURVES = {
    "flat": np.zeros(6),
    "rises by 1 sd a size": np.arange(6.0),
    "falls by 1 sd at the end": np.array([0, 1, 2, 3, 4, 3.0]),
    "falls by 2 sd at the end": np.array([0, 1, 2, 3, 4, 2.0]),
    "falls by 4 sd at the end": np.array([0, 1, 2, 3, 4, 0.0]),
}


def simulate(means: np.ndarray, rng: np.random.Generator, seeds: int, spread: float) -> Runs:
    """Seeds and test images around mIoU [6]."""
    values = np.sqrt(SHARED) * rng.standard_normal((seeds, 1)) + np.sqrt(1 - SHARED) * rng.standard_normal((seeds, 6))
    own, common = rng.standard_normal((6, IMAGES)), rng.standard_normal(IMAGES)
    moved = spread * (np.sqrt(SHARED) * common + np.sqrt(1 - SHARED) * own) / np.sqrt(IMAGES)
    moved = np.broadcast_to(moved, (seeds, 6, IMAGES))
    return Runs(KEYS, range(seeds), means + spread * values + moved.sum(-1), moved - moved.mean(-1, keepdims=True))


def coverage(studies: int, seed: int) -> pd.DataFrame:
    """Shares of the intervals that hold the truth, in percent, by truth and number of seeds."""
    rows = []
    largest, step = LABELS[-1], 1e-4
    for (truth, error), seeds in product(TRUTHS.items(), SEEDS):
        rng = np.random.default_rng([seed, seeds, len(truth)])
        steep = np.log(error(largest * np.exp(-step)) / error(largest * np.exp(step))) / (2 * step)
        known = dict(zip(fits.FORETOLD, (error(largest), steep, error(largest) - error(2 * largest)), strict=True))
        hits: dict[str, list[np.ndarray]] = {name: [] for name in (truth, fits.AVERAGE)}
        weights, misses, told = [], [], []
        for study in range(studies):
            runs = simulate(1 - error(LABELS), rng, seeds, SPREADS[study % len(SPREADS)])
            table = fits.fits(runs, draws=400, seed=study).set_index("model")
            for name in hits:
                if name in table.index:
                    row = table.loc[name]
                    hits[name].append([row[f"{k}_low"] <= v <= row[f"{k}_high"] for k, v in known.items()])
            weights.append(table["weight"].get(truth, np.nan))
            misses.append(abs(table.loc[fits.AVERAGE, "gain"] - known["gain"]))
            told.append("none foretells" in table.loc[fits.AVERAGE, "verdict"])
        row = {"truth": truth, "seeds": str(seeds), "weight of the true form": f"{np.mean(weights):.2f}"}
        for name, what in ((truth, "the true form"), (fits.AVERAGE, "the average")):
            shares = 100 * np.mean(hits[name], axis=0) if hits[name] else []
            row[f"{what}: error, exponent, gain"] = ", ".join(f"{share:.1f}" for share in shares)
        row["gain off by, points"] = f"{100 * np.mean(misses):.2f}"
        rows.append(row | {"said to be of no form": f"{100 * np.mean(told):.1f}"})
    return pd.DataFrame(rows).replace({"nan": ""})


def falls(studies: int, seed: int) -> pd.DataFrame:
    """How often a curve is said to fall, in percent."""
    rows = []
    for name, shape in CURVES.items():
        row = {"curve": name}
        for seeds in SEEDS:
            rng = np.random.default_rng([seed, seeds])
            said = [
                bool(transfer.falls(simulate(0.5 + 0.005 * shape, rng, seeds, 0.005), KEYS)) for _ in range(studies)
            ]
            row[f"{seeds} seeds"] = f"{100 * np.mean(said):.1f}"
        rows.append(row)
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--studies", type=int, default=300, help="simulated studies of each kind (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="of the simulation (default: 0)")
    given = parser.parse_args()
    print(f"How often a 95 % interval holds the truth, percent of {given.studies} studies\n")
    print(to_markdown(coverage(given.studies, given.seed)))
    print(f"How often a curve is said to fall, percent of {2 * given.studies} studies\n")
    print(to_markdown(falls(2 * given.studies, given.seed)))


if __name__ == "__main__":
    main()
