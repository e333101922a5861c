"""The paper's claims on simulated studies: how often each is decided, rightly or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from tqdm import tqdm

from viny.evidence.paper.claims import CLAIMS
from viny.evidence.paper.comparisons import ONE, Cells, Comparison
from viny.evidence.paper.words import Found
from viny.evidence.power.noise import Key
from viny.evidence.power.simulate import Simulation
from viny.evidence.statistics.crossed import Runs
from viny.evidence.verdicts import Question, questions

STUDIES = 200  # of each grid; a claim takes longer to test than a question
# What may be found of a claim that is true everywhere, on average or not at all.
RIGHT = {
    Found.HOLDS: (Found.HOLDS, Found.AVERAGE),
    Found.AVERAGE: (Found.AVERAGE, Found.PARTLY),
    Found.PARTLY: (Found.AVERAGE, Found.PARTLY),
    Found.AGAINST: (Found.PARTLY, Found.AGAINST),
}


@dataclass(frozen=True)
class Made(Cells):
    """Cells of a simulated study, of which nobody asks what more seeds would do."""

    def chance(self, comparisons: Sequence[Comparison]) -> float:
        return np.nan

    def needed(self, found: Mapping[str, Any]) -> float:
        return np.nan


def claim_chances(
    made: Simulation, config: Mapping[str, Any], grids: Sequence[Mapping[str, Any]], margin: float
) -> list[dict[str, Any]]:
    """How often simulated studies decide the paper's claims.

    Args:
        made: the studies.
        config: resolved settings.
        grids: seeds and test_images of each; those on other test images than the first are left out.
        margin: see `verdicts.answer`.

    Returns:
        One row per claim that cells with mIoU can speak to: key, name; and, as lists over the grids, null where left
        out: rightly, wrongly, and everywhere, how often it is found to hold in each comparison.
    """
    studies = min(STUDIES, made.studies)
    spatial = [name for name, task in config["intermediate"].items() if task["target"] == "patch"]
    epochs = (config["pretrain"]["epochs"], config["finetune"]["epochs"])
    like = Cells.of(Runs(made.keys, [0], np.zeros((1, len(made.keys)))), spatial=spatial, epochs=epochs)
    asked = questions(made.keys)
    signs = np.where(made.cells @ made.rows(asked).T > 0, "up", "down")
    nothing = np.zeros((len(made.keys),) * 2)
    true = [
        _found(_cells(made.keys, np.stack([made.cells[m]] * 2), nothing, 2, _decided(asked, signs[m]), like))
        for m in range(studies)
    ]
    names = ("rightly", "wrongly", "everywhere")
    rows: dict[str, dict[str, Any]] = {
        claim.key: {"key": claim.key, "name": claim.words, **{name: [None] * len(grids) for name in names}}
        for claim in CLAIMS
        if true[0][claim.key] is not Found.UNTESTABLE
    }
    for at, grid in enumerate(grids):
        seeds, tests = grid["seeds"], grid["test_images"]
        if tests != grids[0]["test_images"]:
            continue
        values, covariance = made.values(seeds, tests), made.covariance(tests)
        said = made.verdicts(asked, seeds, tests, margin)
        found = [
            _found(_cells(made.keys, values[m], covariance, made.drawn(tests), _decided(asked, said[m]), like))
            for m in tqdm(range(studies), f"claims, {seeds} seeds", leave=False, disable=None, delay=2)
        ]
        for key, row in rows.items():
            decided = [(is_[key], of[key]) for is_, of in zip(true, found, strict=True) if of[key] in RIGHT]
            right = sum(of in RIGHT.get(is_, ()) for is_, of in decided)
            row["rightly"][at], row["wrongly"][at] = right / studies, (len(decided) - right) / studies
            row["everywhere"][at] = sum(of is Found.HOLDS for _, of in decided) / studies
    return list(rows.values())


def _found(cells: Cells) -> dict[str, Found]:
    return {claim.key: claim.test(cells).found for claim in CLAIMS}


def _decided(asked: Sequence[Question], verdicts: np.ndarray) -> list[Any]:
    """What a claim reads of decisions."""
    return [
        SimpleNamespace(kind=one.kind, what=one.what, verdict=str(verdict), chance=np.nan)
        for one, verdict in zip(asked, verdicts, strict=True)
    ]


def _cells(
    keys: Sequence[Key], values: np.ndarray, covariance: np.ndarray, pictures: int, decisions: list[Any], like: Cells
) -> Made:
    """A study of mIoU [S, C] as evidence, with the tasks and the epochs of another."""
    named = [*(("miou", *key) for key in keys), ONE]
    whole = np.column_stack([values, np.ones(len(values))])
    runs = Runs(named, range(len(values)), whole, covariance=np.pad(covariance, (0, 1)), pictures=pictures)
    return Made(runs, like.tasks, like.classification, like.spatial, like.epochs, decisions)
