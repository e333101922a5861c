"""Operating characteristics of the verdicts: simulated studies whose truth is known.

    python benchmarks/characteristics.py       # three minutes on one core; docs/evidence.md has its tables with 2,000

Truth is the paper's 42 means, or nothing at all: every cell alike. A cell's noise over seeds has the standard deviation
that the paper gives for it; a share of its variance is common to a seed's cells of all pre-train sizes. The test images
move each cell by a multiple of its noise over seeds, the same images for all cells of a study. Four ways to an interval
are held against each other.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import product

import numpy as np
import pandas as pd
from scipy import special, stats

from viny.evidence.paper.facts import paper_facts
from viny.evidence.statistics.crossed import Runs
from viny.evidence.tables import to_markdown
from viny.evidence.verdicts import holm, questions

IMAGES = 60  # test images of a simulated study; only their sum counts
SEEDS = (3, 5, 10)
NOISES = (0.0, 1.0, 2.0)  # of the test images, as multiples of that over seeds
SHARED = (0.0, 0.3)  # correlation of a seed's noise between pre-train sizes
KINDS = ("pre-training", "task", "task by size", "interaction")


def paper_cells() -> pd.DataFrame:
    """The paper's mIoU by cell, fractions: mean and spread. It omits the random start with the task: as without."""
    facts = paper_facts()
    cells = facts[facts["metric"] == "miou"][["pretrain_size", "intermediate", "finetune_size", "mean", "spread"]]
    omitted = cells[cells["pretrain_size"] == 0].assign(intermediate="intel")
    return pd.concat([cells, omitted], ignore_index=True)


def simulate(
    cells: pd.DataFrame, rng: np.random.Generator, seeds: int, images: float, shared: float, null: bool
) -> tuple[Runs, np.ndarray]:
    """A study and the true means of its cells."""
    keys = list(cells[["pretrain_size", "intermediate", "finetune_size"]].itertuples(index=False, name=None))
    means = np.full(len(keys), 0.6) if null else cells["mean"].to_numpy()
    sd = cells["spread"].to_numpy()
    groups = pd.factorize(cells["intermediate"] + cells["finetune_size"].astype(str))[0]
    group = rng.standard_normal((seeds, groups.max() + 1))[:, groups]
    noise = sd * (np.sqrt(1 - shared) * rng.standard_normal((seeds, len(keys))) + np.sqrt(shared) * group)
    moved = images * sd[:, None] * rng.standard_normal((len(keys), IMAGES)) / np.sqrt(IMAGES)
    own = 0.3 * sd[:, None] * rng.standard_normal((seeds, len(keys), IMAGES)) / np.sqrt(IMAGES)  # differs by seed
    every = (moved + own) if images else np.zeros_like(own)
    values = means + noise + every.sum(-1)
    return Runs(keys, range(seeds), values, every - every.mean(-1, keepdims=True)), means


Interval = tuple[np.ndarray, np.ndarray, np.ndarray]  # low, high, p


def crossed(runs: Runs, weights: np.ndarray) -> Interval:
    """Both sources, as the project does it."""
    found = runs.contrasts(weights)
    return found.low, found.high, found.p


def seeds_alone(runs: Runs, weights: np.ndarray) -> Interval:
    """Student's t over seeds."""
    return crossed(Runs(runs.keys, runs.seeds, runs.values), weights)


def encoders(runs: Runs, weights: np.ndarray) -> Interval:
    """Student's t with an encoder, (pre-train size, seed), as the unit of a sum of differences within sizes."""
    sizes = np.array([key[0] for key in runs.keys])
    parts = [np.where(sizes == size, weights, 0) for size in sorted(set(sizes))]
    within = np.all([np.abs(part.sum(1)) < 1e-12 for part in parts], axis=0)
    variance, squares = np.zeros((2, len(weights)))
    for part in parts:
        mine = runs.per_seed(part)
        variance += mine.var(0, ddof=1) / len(mine)
        squares += (mine.var(0, ddof=1) / len(mine)) ** 2 / (len(mine) - 1)
    low, high, p = seeds_alone(runs, weights)
    mean, df = (low + high) / 2, variance**2 / np.maximum(squares, 1e-300)
    reach = stats.t.ppf(0.975, df) * np.sqrt(variance)
    of_encoders = mean - reach, mean + reach, 2 * stats.t.sf(np.abs(mean) / np.sqrt(variance), df)
    return tuple(np.where(within, one, other) for one, other in zip(of_encoders, (low, high, p), strict=True))


def moderated(runs: Runs, weights: np.ndarray) -> Interval:
    """Both sources, with the variances over seeds drawn together by an empirical Bayes prior (Smyth 2004)."""
    found = runs.contrasts(weights)
    df = found.n - 1
    logs = np.log(found.se_seeds**2)
    spread = max(logs.var(ddof=1) - special.polygamma(1, df[0] / 2), 1e-6)
    low, high = 1e-3, 1e6  # trigamma falls, so bisection finds where it is the spread
    for _ in range(80):
        middle = np.sqrt(low * high)
        low, high = (middle, high) if special.polygamma(1, middle / 2) > spread else (low, middle)
    prior = np.exp(
        logs.mean() - special.digamma(df[0] / 2) + np.log(df[0] / 2) + special.digamma(low / 2) - np.log(low / 2)
    )
    over_seeds = (low * prior + df * found.se_seeds**2) / (low + df)
    images = np.nan_to_num(found.se_images) ** 2
    variance = over_seeds + images
    freedom = variance**2 / (over_seeds**2 / (low + df) + images**2 / (IMAGES - 1))
    reach = stats.t.ppf(0.975, freedom) * np.sqrt(variance)
    p = 2 * stats.t.sf(np.abs(found.mean) / np.sqrt(variance), freedom)
    return found.mean - reach, found.mean + reach, p


WAYS: dict[str, Callable[[Runs, np.ndarray], Interval]] = {
    "seeds and images": crossed,
    "seeds alone": seeds_alone,
    "encoders as units": encoders,
    "variances drawn together": moderated,
}


def characteristics(studies: int, seed: int) -> pd.DataFrame:
    """A row per truth, number of seeds, noise of the images, shared noise and way to an interval.

    Returns:
        coverage, over all effects, and least, that of the worst; false_naming, the share of studies that name an effect
        of a kind that is not there, or with the wrong sign, averaged over kinds; worst, that of the worst kind; named,
        the share of the effects that are there.
    """
    cells = paper_cells()
    rows = []
    for null, seeds, images, shared in product((False, True), SEEDS, NOISES, SHARED):
        rng = np.random.default_rng([seed, null, seeds, int(images), int(10 * shared)])
        hits, wrong, right = ({way: [] for way in WAYS} for _ in range(3))
        for _ in range(studies):
            runs, means = simulate(cells, rng, seeds, images, shared, null)
            asked = [q for q in questions(runs.keys) if q.kind in KINDS]
            kinds = np.array([q.kind for q in asked])
            weights = np.array([runs.weights(*q.weights).mean(0) for q in asked])
            truth = (weights @ means).round(12)
            for way, interval in WAYS.items():
                low, high, p = interval(runs, weights)
                hits[way].append((low <= truth) & (truth <= high))
                adjusted = np.ones(len(p))
                for kind in KINDS:
                    adjusted[kinds == kind] = holm(p[kinds == kind])
                told = (adjusted <= 0.05) & ((low > 0) | (high < 0))
                falsely = told & (np.sign(low + high) != np.sign(truth))
                wrong[way].append([falsely[kinds == kind].any() for kind in KINDS])
                right[way].append((told & ~falsely).mean())
        for way in WAYS:
            share = np.mean(hits[way], axis=0)
            row = {"truth": "none" if null else "the paper's", "seeds": seeds, "images": images, "shared": shared}
            row |= {"interval": way, "coverage": share.mean(), "least": share.min()}
            named = np.nan if null else float(np.mean(right[way]))
            falsely = np.mean(wrong[way], axis=0)
            rows.append(row | {"false_naming": falsely.mean(), "worst": falsely.max(), "named": named})
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--studies", type=int, default=1000, help="simulated studies of each kind (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the simulation (default: 0)")
    parser.add_argument("--csv", help="file for all rows")
    given = parser.parse_args()
    table = characteristics(given.studies, given.seed)
    if given.csv:
        table.to_csv(given.csv, index=False)
    print(f"{given.studies} studies a row, worst of no and 0.3 shared noise; percent: coverage, false naming, named\n")
    for truth, mine in table.groupby("truth", sort=False):
        rows = []
        for (seeds, images), here in mine.groupby(["seeds", "images"]):
            row = {"seeds": str(seeds), "noise of the images": f"{images:g}"}
            for way, of in here.groupby("interval", sort=False):
                worst = of.loc[(of["coverage"] - 0.95).abs().idxmax(), "coverage"]
                words = f"{100 * worst:.1f}, {100 * of['false_naming'].max():.1f}"
                row[str(way)] = words if truth == "none" else f"{words}, {100 * of['named'].min():.0f}"
            rows.append(row)
        print(f"Truth: {truth}\n\n{to_markdown(pd.DataFrame(rows))}")


if __name__ == "__main__":
    main()
