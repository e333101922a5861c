"""What an intermediate task changes in each cell, paired by seed. Metrics are fractions in every frame."""

from __future__ import annotations

import pandas as pd

from viny.evidence.statistics.crossed import Runs
from viny.evidence.tables import GROUP, in_order
from viny.evidence.verdicts import MARGIN, Decision, Question, answer

ESTIMATE = ["mean", "low", "high", "se_seeds", "se_images", "se", "df", "n", "p", "p_holm"]
EFFECTS = [*GROUP, "points", "sd", *ESTIMATE, "verdict"]
DECISIONS = ["kind", "what", "name", "words", *ESTIMATE, "family", "verdict", "chance", "reason", "sentence"]

INTERVALS = (
    "Intervals are of 95 %, over seeds and test images: the two variances add up, and Student's t has Satterthwaite's "
    "degrees of freedom. Holm's correction is over the {over}."
)


def points(values: pd.Series) -> str:
    """Every value of a series that is indexed by seed, as `seed:value`."""
    return " ".join(f"{seed}:{value:.6g}" for seed, value in values.sort_index().items())


def effects(runs: Runs, margin: float = MARGIN) -> pd.DataFrame:
    """What an intermediate task changes in each cell, paired by seed.

    Args:
        runs: a study's mIoU, see `crossed.read_runs`.
        margin: see `verdicts.answer`.

    Returns:
        One row per (pretrain_size, intermediate, finetune_size) with a pair: n pairs; points, every difference
        as `seed:value`; mean, sd (ddof=1); se_seeds, se_images and se, the standard error over seeds, over test
        images (NaN where unknown), and over both, with its df; low and high of the 95 % interval; p of Student's t
        test, and p_holm, after Holm's (1979) correction over the rows of the table; verdict in words. Differences
        are fractions, with the task minus without.
    """
    there = set(runs.keys)
    cells = [key for key in runs.keys if key[1] != "none" and (key[0], "none", key[2]) in there]
    asked = [
        Question("cell", key, f"the task {key[1]}", "cell", [key[::2]], [{key: 1.0, (key[0], "none", key[2]): -1.0}])
        for key in cells
    ]
    rows = []
    for decision in answer(runs, asked, margin):
        values = runs.per_seed(runs.weights(*decision.question.weights))[:, 0]
        differences = pd.Series(values, runs.seeds).dropna()
        row = dict(zip(GROUP, decision.what, strict=True)) | decision.as_dict() | {"verdict": decision.words}
        rows.append(row | {"points": points(differences), "sd": differences.std(ddof=1)})
    return in_order(pd.DataFrame(rows, columns=EFFECTS))


def decisions_table(decisions: list[Decision]) -> pd.DataFrame:
    """All decisions of a study as a table.

    Returns:
        One row per decision, see `verdicts.Decision`: kind, what, name; words, the verdict in words; mean, low and
        high, the 95 % interval; se_seeds, se_images, se, df, n; p and p_holm, over `family` of its kind; verdict;
        chance, that twice the seeds decide it; reason; sentence, all of it in words.
    """
    table = pd.DataFrame([decision.as_dict() for decision in decisions], columns=DECISIONS)
    return table.astype({"what": str})
