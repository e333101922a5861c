"""How often a true replica of the paper is told to be one: `python benchmarks/replicas.py [--studies 2000]`.

Published and own runs are drawn from one truth, so whatever a number's verdict is but 'reproduced' or 'undecided' is
wrong. The spread of a row's runs is the paper's own, or, as that is of three runs and for some rows implausibly small,
the root of the mean square over the table.
"""

from __future__ import annotations

import argparse
from types import SimpleNamespace

import numpy as np
import pandas as pd

from viny.evidence.paper.comparisons import POINT
from viny.evidence.paper.facts import paper_facts
from viny.evidence.paper.numbers import told


def rates(spreads: np.ndarray, seeds: int, studies: int, runs: int = 3, apart: float = 0.0) -> dict[str, float]:
    """Shares of rows that are reproduced and contradicted, over simulated studies.

    Args:
        spreads: true standard deviation of each row's runs.
        seeds: of the replica.
        studies: to simulate.
        runs: behind a published number.
        apart: how far the truth of the replica is from that of the paper.
    """
    rng = np.random.default_rng(0)
    counts = np.zeros(2)
    for spread in spreads:
        published = rng.normal(0, spread, (studies, runs))
        own = rng.normal(apart, spread, (studies, seeds))
        theirs = published.std(1, ddof=1)
        for difference, sd, said in zip(own.mean(1) - published.mean(1), own.std(1, ddof=1), theirs, strict=True):
            fact = SimpleNamespace(metric="miou", spread=said, runs=runs)
            counts += [float(value) for value in told(fact, difference, sd, seeds, POINT)]
    return dict(zip(("reproduced", "contradicted"), counts / (len(spreads) * studies), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=200)
    studies = parser.parse_args().studies
    facts = paper_facts().query("metric == 'miou'")
    own = facts["spread"].to_numpy()
    pooled = facts.groupby("table")["spread"].transform(lambda s: np.sqrt((s**2).mean())).to_numpy()
    rows = []
    for name, spreads in (("the paper's own", own), ("that of its table", pooled)):
        for apart in (0.0, 0.03):
            for seeds in (3, 5, 10):
                found = rates(spreads, seeds, studies, apart=apart)
                rows.append({"spread": name, "truth apart, points": 100 * apart, "seeds": seeds, **found})
    print(pd.DataFrame(rows).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
