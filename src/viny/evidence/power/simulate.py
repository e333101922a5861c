"""Studies that could come, and what they decide: by Monte Carlo, with the rules that decide real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count

import numpy as np

from viny.evidence.power.noise import Key
from viny.evidence.power.truth import Truth, weights_of
from viny.evidence.statistics.crossed import Runs, estimates, square_root
from viny.evidence.verdicts import Question, families, verdicts_of

STUDIES = 400  # of each grid; a chance of a half is then known to 2.5 points (standard error)


def more_seeds(there: Sequence[int], n: int) -> list[int]:
    """So many seeds: those that there are, then the lowest others."""
    unused = (seed for seed in count() if seed not in there)
    return [*there[:n], *(next(unused) for _ in range(n - len(there)))]


@dataclass(frozen=True)
class Chances:
    """How often the simulated studies decide questions, [Q] shares of them.

    Attributes:
        rightly: with the verdict that is true of what was drawn as the truth.
        wrongly: with another.
    """

    rightly: np.ndarray
    wrongly: np.ndarray

    @property
    def decided(self) -> np.ndarray:
        return self.rightly + self.wrongly


class Simulation:
    """Studies of a grid, all from the same draws: for every number of seeds and of test images the first of them.

    Each study has a truth of its own, as uncertain as the known mIoU, and a noise over seeds of its own, as uncertain
    as the known spread (chi-square); so the chances are predictive (Spiegelhalter, Abrams and Myles 2004, section 6.5).

    Args:
        truth: what is known.
        keys: the cells of the grid.
        most: seeds that will be asked for.
        stand_in: see `weights_of`.
        moving: whether each label size has its own test images.
        studies: how many.
        seed: of the draws.
    """

    def __init__(
        self,
        truth: Truth,
        keys: Sequence[Key],
        most: int,
        stand_in: Mapping[str, str] | None = None,
        moving: bool = False,
        studies: int = STUDIES,
        seed: int = 0,
    ) -> None:
        rows, beyond = weights_of(truth, keys, stand_in or {})
        known = np.isfinite(rows).all(1)
        self.keys = [key for key, here in zip(keys, known, strict=True) if here]
        self.unknown = [key for key, here in zip(keys, known, strict=True) if not here]
        self.beyond = beyond
        self.truth, self.studies, self.moving = truth, studies, moving
        draws = np.random.default_rng(seed)
        self._spread = np.ones(studies) if np.isinf(truth.df) else truth.df / draws.chisquare(truth.df, studies)
        count, old = len(self.keys), len(truth.keys)
        errors = truth.seed_covariance(truth.keys) / truth.seeds
        of_seeds = draws.standard_normal((studies, old)) @ square_root(errors).T * np.sqrt(self._spread)[:, None]
        of_images = truth.of_images.scaled(1 / truth.pictures).covariance(truth.keys)
        of_images = draws.standard_normal((studies, old)) @ square_root(of_images).T
        self.expected = rows[known] @ truth.mean
        self.cells = (truth.mean + of_seeds + of_images) @ rows[known].T  # [M, C], each study's truth
        self._seeds, self._both = (draws.standard_normal((studies, most, count)) for _ in range(2))
        self._images = draws.standard_normal((studies, count))

    @cached_property
    def _roots(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        both = self.truth.of_both.covariance(self.keys)
        return square_root(self.truth.seed_covariance(self.keys)), square_root(both), square_root(self.covariance(1))

    def covariance(self, pictures: int) -> np.ndarray:
        """[C, C], of the cells' means over draws of so many test images."""
        found = self.truth.of_images.covariance(self.keys) / pictures
        if self.moving:
            labels = np.array([labels for *_, labels in self.keys])
            found = found * (labels[:, None] == labels)
        return found

    def drawn(self, pictures: int) -> int:
        """How many are drawn where there are so many test images: they, or their groups."""
        return round(pictures / self.truth.of_each)

    def values(self, seeds: int, pictures: int) -> np.ndarray:
        """mIoU [M, S, C] of every study."""
        of_seeds, of_both, of_images = self._roots
        noise = self._seeds[:, :seeds] @ of_seeds.T * np.sqrt(self._spread)[:, None, None]
        images = self._both[:, :seeds] @ of_both.T + (self._images @ of_images.T)[:, None]
        return self.cells[:, None] + noise + images / np.sqrt(pictures)

    def verdicts(self, asked: Sequence[Question], seeds: int, pictures: int, margin: float) -> np.ndarray:
        """The verdicts of every study on some questions, [M, Q]; see `verdicts.verdicts_of`."""
        rows = self.rows(asked)
        values = self.values(seeds, pictures) @ rows.T  # [M, S, Q]
        images = np.einsum("qc,cd,qd->q", rows, self.covariance(pictures), rows, optimize=True)
        variance = values.var(1, ddof=1) / seeds if seeds > 1 else np.full((self.studies, len(rows)), np.nan)
        found = np.full((self.studies, len(asked)), "undecided")
        drawn = np.array(self.drawn(pictures))
        for at in families(asked):
            means = estimates(values[..., at].mean(1), variance[:, at], images[at], np.array(seeds), drawn)
            found[:, at] = verdicts_of(means, margin)[1]
        return found

    def rows(self, asked: Sequence[Question]) -> np.ndarray:
        """Each question as a weighted sum of the cells, [Q, C]."""
        one = Runs(self.keys, [], np.zeros((0, len(self.keys))))
        rows = [one.weights(*question.weights).mean(0) for question in asked]
        return np.array(rows).reshape(len(asked), len(self.keys))

    def chances(self, asked: Sequence[Question], seeds: int, pictures: int, margin: float) -> Chances:
        """How often so many seeds and test images decide some questions.

        Args:
            asked: of the grid, those of a kind all together.
            seeds: of each study.
            pictures: test images of each study.
            margin: see `verdicts.answer`.
        """
        said, true = self.verdicts(asked, seeds, pictures, margin), self.cells @ self.rows(asked).T
        right = (said == "up") & (true > 0) | (said == "down") & (true < 0)
        right |= (said == "small") & (np.abs(true) <= margin)
        return Chances(right.mean(0), ((said != "undecided") & ~right).mean(0))
