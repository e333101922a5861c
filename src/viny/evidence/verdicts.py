"""What is said about an effect on mIoU, decided once and in one wording, for tables, report, scorecard and advice.

`questions` lists what a study asks, `answer` decides it. An effect is named where its 95 % interval over seeds and test
images excludes zero and so does Student's t test after Holm's (1979) correction over the questions of its kind: more
questions can only make that harder. It is small where the interval lies within a margin, the region of practical
equivalence (Benavoli et al. 2017). Otherwise it cannot be told, and a chance says whether more seeds would tell.

Numbers are fractions.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from viny.evidence.statistics.crossed import ALPHA, LEVEL, Estimates, Runs, step
from viny.runtime.units import capital, counted

MARGIN = 0.01  # an effect within it, either way, is as good as none
ASSURANCE = 0.8  # how often the advised seeds narrow an interval to the target
MOST_SEEDS = 20  # beyond this, more seeds are not advised

UNKNOWN = "cannot be told"
WORDS = {
    "up": "helps",
    "down": "hurts",
    "small": "changes mIoU by under {points} either way",
    "undecided": f"{UNKNOWN} to help or hurt",
}
OF_INTERACTION = {
    "up": "helps more or hurts less",
    "down": "hurts more or helps less",
    "small": "differs by under {points} either way",
    "undecided": f"{UNKNOWN} to differ",
}

OF_FALL = {
    "up": "brings more",
    "down": "brings less",
    "small": "brings as much, within {points}",
    "undecided": f"{UNKNOWN} to bring less or more",
}
OF_ARMS = {
    "up": "beat {against}",
    "down": "fell short of {against}",
    "small": "came within {points} of {against}",
    "undecided": f"{UNKNOWN} from {{against}}",
}
ARMS = (
    *("start against start", "published against own pre-training", "SimMIM on top of a start"),
    *("tuned against fixed", "frozen against trained", "variant against study"),
)
SAID = {"interaction": OF_INTERACTION, "images fall": OF_FALL, "labels fall": OF_FALL}
SAID |= dict.fromkeys((*ARMS, "reference"), OF_ARMS)  # all others as `WORDS`

Weights = Mapping[Hashable, float]


@dataclass(frozen=True)
class Question:
    """An effect to decide on: the mean of some differences between cells, all of equal weight.

    Attributes:
        kind: 'pre-training', 'images', 'labels', 'images fall' and 'labels fall' (the last doubling against the one
            before), 'task', 'task by size', 'interaction', or 'cell', a task's effect in one cell; or one of `ARMS`,
            which compare arms; or 'reference', a cell against a model that is not the study's. Questions of a kind
            share Holm's correction.
        what: the size, the task or the cell.
        name: the effect in words.
        over: what a difference is of: 'label size', 'cell'.
        cells: pre-train size and labels of each difference.
        weights: each difference, as a weighted sum of cells.
        against: what an arm is compared with, in words.
    """

    kind: str
    what: Any
    name: str
    over: str
    cells: Sequence[tuple[int, int]]
    weights: Sequence[Weights]
    against: str = ""


@dataclass(frozen=True, eq=False)
class Decision:
    """What a study says about a question; fractions.

    Attributes:
        kind, what, name, over: see `Question`.
        mean, low, high, se, se_seeds, se_images, df, n, p: see `crossed.Estimates`.
        p_holm: p after Holm's correction.
        family: over how many questions that is.
        verdict: 'up', 'down', 'small' or 'undecided'.
        words: the verdict in words.
        reason: what it rests on, or lacks.
        chance: that twice the seeds, on the same test images, decide it; NaN where it is decided, or nothing is known.
        lacks: 'seeds' or test 'images', whichever leaves more unknown; empty where it is decided.
        cells: a row per difference: pretrain_size, finetune_size, and its own `Estimates`.
        question: what was asked.
    """

    kind: str
    what: Any
    name: str
    over: str
    mean: float
    low: float
    high: float
    se: float
    se_seeds: float
    se_images: float
    df: float
    n: int
    p: float
    p_holm: float
    family: int
    verdict: str
    words: str
    reason: str
    chance: float
    lacks: str
    cells: pd.DataFrame
    question: Question

    @property
    def half(self) -> float:
        """Half of the interval's width."""
        return (self.high - self.low) / 2

    @property
    def half_images(self) -> float:
        """Half of a 95 % interval over test images alone; 0 where that is not known."""
        return 0.0 if math.isnan(self.se_images) else float(stats.norm.ppf((1 + LEVEL) / 2) * self.se_images)

    @property
    def number(self) -> str:
        """Mean and interval in points, or why there is no interval; it says if test images are not in it."""
        if math.isnan(self.low):
            return f"{in_points(self.mean)} points ({self.reason})"
        return f"{in_points(self.mean)} points ({span(self.low, self.high)}{self._alone})"

    @property
    def _alone(self) -> str:
        return ", over seeds alone" if math.isnan(self.se_images) else ""

    @property
    def short(self) -> str:
        """The decision without what it rests on."""
        return f"{capital(self.name)} {self.words}: {self.number}."

    @property
    def where(self) -> str:
        """What the mean is over."""
        return f"on average over {counted(len(self.cells), self.over)}" if len(self.cells) > 1 else ""

    @property
    def sentence(self) -> str:
        """The decision in one sentence, the same wherever it is told."""
        name = capital(self.name)
        number = f": {self.number}"
        if self.question.against and self.verdict in ("up", "down"):
            low, high = sorted((abs(self.low), abs(self.high)))  # both of one sign
            number = f" by {bare(abs(self.mean))} points ({bare(low)} to {bare(high)}{self._alone})"
        said = "" if math.isnan(self.low) else f"; {self.reason}"
        return f"{name} {self.words}{' '.join(filter(None, (number, self.where)))}{said}."

    def as_dict(self) -> dict[str, Any]:
        """As a row of a table, or for JSON."""
        names = (field.name for field in fields(self) if field.name not in ("cells", "question"))
        row = {name: getattr(self, name) for name in names}
        return row | {"sentence": self.sentence}


def questions(keys: Sequence[Hashable]) -> list[Question]:
    """What a study asks: each pre-train size, each task, where a task does more, and the last doublings.

    A task's effect is over pre-trained encoders, and over the random start only where no other cell has the task: an
    encoder that has nothing to lose does not dilute what the others lose. The difference between the two is a question
    of its own.

    Args:
        keys: the cells that there are, (pretrain_size, intermediate, finetune_size).
    """
    there = set(keys)
    sizes = sorted({p for p, _, _ in keys})
    tasks = [task for task in dict.fromkeys(task for _, task, _ in keys) if task != "none"]
    labels = sorted({n for _, _, n in keys})
    found: list[Question] = []

    def ask(kind: str, what: Any, name: str, over: str, differences: Mapping[tuple[int, int], Weights]) -> None:
        whole = {cell: weights for cell, weights in differences.items() if all(key in there for key in weights)}
        if whole:
            found.append(Question(kind, what, name, over, list(whole), list(whole.values())))

    for p in filter(None, sizes):
        gains = {(p, n): {(p, "none", n): 1.0, (0, "none", n): -1.0} for n in labels}
        ask("pre-training", p, f"pre-training on {p:,} images", "label size", gains)
    steps = [*pairwise(filter(None, sizes))]
    for few, many in steps[-1:]:
        gains = {(many, n): _per_doubling((few, "none", n), (many, "none", n), few, many) for n in labels}
        name = _doubling(few, many, "pre-training images")
        ask("images", many, name, "label size", gains)
    if len(steps) > 1:
        (first, few), (_, many) = steps[-2:]
        falls = {(many, n): _fall([(p, "none", n) for p in (first, few, many)], (first, few, many)) for n in labels}
        name = f"a doubling of the pre-training images from {few:,} to {many:,}, against one from {first:,},"
        ask("images fall", many, name, "label size", falls)
    for p in sizes:
        ask("labels", p, *_last_labels(there, p, "none"))
    for p in sizes:
        three = sorted(n for size, task, n in there if (size, task) == (p, "none"))[-3:]
        if len(three) == 3:
            name = f"a doubling of the labels from {three[1]:,} to {three[2]:,}, against one from {three[0]:,},"
            name += f" with {start_in_words(p)},"
            ask("labels fall", p, name, "curve", {(p, three[2]): _fall([(p, "none", n) for n in three], three)})
    for task in tasks:
        effects = {(p, n): {(p, task, n): 1.0, (p, "none", n): -1.0} for p in sizes for n in labels}
        later = {cell: weights for cell, weights in effects.items() if cell[0]}
        pretrained = any(all(key in there for key in weights) for weights in later.values())
        ask(
            "task",
            task,
            f"the task {task}",
            "pre-trained cell" if pretrained else "cell",
            later if pretrained else effects,
        )
        for p in sizes:
            start = f"after {p:,} pre-training images" if p else "on a random start"
            ask(
                "task by size",
                f"{task} {p}",
                f"the task {task} {start}",
                "label size",
                {c: w for c, w in effects.items() if c[0] == p},
            )
        ask(
            "interaction",
            task,
            f"the task {task} after pre-training, against a random start,",
            "label size",
            _interaction(there, task, sizes, labels),
        )
    return found


def _interaction(there: set, task: str, sizes: Sequence[int], labels: Sequence[int]) -> dict[tuple[int, int], Weights]:
    """A task's mean effect on pre-trained encoders minus that on a random start, by labels."""
    found: dict[tuple[int, int], Weights] = {}
    for n in labels:
        both = [p for p in sizes if p and {(p, task, n), (p, "none", n)} <= there]
        if both:
            weights: dict[Hashable, float] = {(0, task, n): -1.0, (0, "none", n): 1.0}
            for p in both:
                weights |= {(p, task, n): 1 / len(both), (p, "none", n): -1 / len(both)}
            found[0, n] = weights
    return found


def _per_doubling(cell: Hashable, other: Hashable, few: int, many: int) -> dict[Hashable, float]:
    """The gain per doubling from one cell to another, as a weighted sum."""
    return step(cell, other, math.log2(many / few))


def _fall(cells: Sequence[Hashable], sizes: Sequence[int]) -> dict[Hashable, float]:
    """The gain per doubling from the second of three cells to the third, minus that from the first to the second."""
    first, last = (_per_doubling(*cells[i : i + 2], *sizes[i : i + 2]) for i in (0, 1))
    return {cell: last.get(cell, 0.0) - first.get(cell, 0.0) for cell in cells}


def _doubling(few: int, many: int, what: str) -> str:
    """A doubling as a question's name; one between sizes that are not twice each other is what a doubling adds."""
    exact = f"doubling {few:,} {what} to {many:,}"
    return exact if many == 2 * few else f"a doubling between {few:,} and {many:,} {what}"


def doubling_name(few: int, many: int, model: str) -> str:
    """A doubling of the labels of a model, as a question's name."""
    return f"{_doubling(few, many, 'labels')} with {model}"


def _last_labels(there: set, size: int, task: str) -> tuple[str, str, dict[tuple[int, int], Weights]]:
    """The last doubling of labels on a curve: its name, what it is of, and the difference."""
    labels = sorted(n for p, t, n in there if (p, t) == (size, task))
    if len(labels) < 2:
        return "", "", {}
    few, many = labels[-2:]
    start = start_in_words(size) + ("" if task == "none" else f" and the task {task}")
    return (
        doubling_name(few, many, start),
        "curve",
        {(size, many): _per_doubling((size, task, few), (size, task, many), few, many)},
    )


def label_question(keys: Sequence[Hashable], size: int, task: str) -> Question | None:
    """The question about the last doubling of labels on a curve; None if the curve has one size."""
    name, over, differences = _last_labels(set(keys), size, task)
    what = size if task == "none" else f"{size} {task}"
    return Question("labels", what, name, over, list(differences), list(differences.values())) if differences else None


def decide(runs: Runs, margin: float = MARGIN) -> list[Decision]:
    """All that a study decides, and what it leaves open: `answer` to `questions`.

    Args:
        runs: its cells, keys (pretrain_size, intermediate, finetune_size).
        margin: see `answer`.
    """
    return answer(runs, questions(runs.keys), margin)


def answer(runs: Runs, asked: Sequence[Question], margin: float = MARGIN) -> list[Decision]:
    """Decide on effects, with Holm's correction over those of a kind.

    Args:
        runs: the study's cells.
        asked: the questions, those of a kind beside each other or not.
        margin: an effect whose interval lies within it, either way, is small.

    Returns:
        A decision for each question that any seed can speak to, in their order.
    """
    found: list[Decision | None] = [None] * len(asked)
    for places in families(asked):
        for place, decision in _family(runs, {i: asked[i] for i in places}, margin).items():
            found[place] = decision
    return [decision for decision in found if decision]


def families(asked: Sequence[Question]) -> list[list[int]]:
    """The places of the questions of each kind, which share Holm's correction."""
    order = sorted(range(len(asked)), key=lambda i: asked[i].kind)
    return [list(places) for _, places in groupby(order, key=lambda i: asked[i].kind)]


def _family(runs: Runs, asked: Mapping[int, Question], margin: float) -> dict[int, Decision]:
    weights = {place: runs.weights(*question.weights) for place, question in asked.items()}
    each = {place: runs.contrasts(rows) for place, rows in weights.items()}
    here = {place: each[place].n > 0 for place in asked}  # a difference that no seed has says nothing
    weights = {place: rows[here[place]] for place, rows in weights.items() if here[place].any()}
    if not weights:
        return {}
    found = [runs.mean_of(rows) for rows in weights.values()]
    joined = Estimates(*(np.concatenate([getattr(one, field.name) for one in found]) for field in fields(Estimates)))
    adjusted, verdicts = verdicts_of(joined, margin)
    family = int(np.isfinite(adjusted).sum())
    decisions = {}
    for at, (place, rows) in enumerate(weights.items()):
        question, mean, p_holm, verdict = asked[place], joined.at(at), float(adjusted[at]), str(verdicts[at])
        cells = pd.DataFrame(question.cells, columns=["pretrain_size", "finetune_size"]).join(_frame(each[place]))
        undecided = verdict == "undecided" and not math.isnan(p_holm)
        chance = _chance(runs, rows, 2 * mean["n"], family, margin) if undecided else np.nan
        lacks = "" if verdict != "undecided" else _lacks(mean)
        decisions[place] = Decision(
            question.kind, question.what, question.name, question.over, **mean,
            p_holm=p_holm, family=family, verdict=verdict,
            words=_words(question, verdict, mean, family, margin),
            reason=_reason(mean, p_holm, family, verdict, chance, runs.drawn if lacks == "images" else ""),
            chance=chance, lacks=lacks, cells=cells[here[place]].reset_index(drop=True), question=question,
        )  # fmt: skip
    return decisions


def _chance(runs: Runs, rows: np.ndarray, seeds: int, family: int, margin: float) -> float:
    level = 1 - (1 - LEVEL) / max(1, family)
    return runs.chance(rows.mean(0)[None], seeds, level, margin=margin)


def told(here: Decision, over_all: Decision | None) -> str:
    """What may be said of one cell, so that it never speaks against what is decided over all of them.

    As in a gatekeeping procedure (Dmitrienko and Tamhane 2007), a direction is named where it is decided in the cell
    and, alike, over all cells.

    Args:
        here: on the cell alone.
        over_all: on the mean over cells; None if that is no question of the study.

    Returns:
        The cell's verdict; 'undecided' where the other differs.
    """
    return here.verdict if over_all is None or over_all.verdict == here.verdict else "undecided"


def chance_with(runs: Runs, decision: Decision, seeds: int, margin: float = MARGIN) -> float:
    """The chance that so many seeds in all, on the same test images, decide an effect; NaN if nothing is known.

    Args:
        runs: what the decision rests on.
        decision: one that `answer` made of them.
        seeds: in all.
        margin: see `answer`.
    """
    rows = runs.weights(*decision.question.weights)
    return _chance(runs, rows[runs.contrasts(rows).n > 0], seeds, decision.family, margin)


def _frame(found: Estimates) -> pd.DataFrame:
    return pd.DataFrame({field.name: getattr(found, field.name) for field in fields(found)})


def verdicts_of(found: Estimates, margin: float = MARGIN) -> tuple[np.ndarray, np.ndarray]:
    """What is said of the questions of a kind, in one study or in many.

    Args:
        found: their estimates, [K] or [M, K].
        margin: see `answer`.

    Returns:
        p after Holm's correction over the last axis, NaN where there is none; and the verdicts: 'up', 'down', 'small'
        or 'undecided'.
    """
    p_holm = holm(found.p)
    named = (p_holm <= ALPHA) & ~((found.low <= 0) & (found.high >= 0))
    small = np.maximum(np.abs(found.low), np.abs(found.high)) <= margin
    verdicts = np.select([named & (found.mean > 0), named, small], ["up", "down", "small"], "undecided")
    return p_holm, np.where(np.isnan(found.low), "undecided", verdicts)


def _lacks(mean: Mapping[str, float]) -> str:
    """Whether seeds or test images leave more unknown."""
    if math.isnan(mean["low"]) or math.isnan(mean["se_images"]):
        return "seeds"
    seeds = stats.t.ppf((1 + LEVEL) / 2, mean["n"] - 1) * mean["se_seeds"]
    return "images" if stats.norm.ppf((1 + LEVEL) / 2) * mean["se_images"] > seeds else "seeds"


def _words(question: Question, verdict: str, mean: Mapping[str, float], family: int, margin: float) -> str:
    points = target_words(100 * margin)
    words = SAID.get(question.kind, WORDS)[verdict].format(points=points, against=question.against)
    if question.against and verdict in ("up", "down"):  # its sentence says by how much
        return words
    if verdict in ("up", "down") and max(abs(mean["low"]), abs(mean["high"])) <= margin:
        return f"{words}, by under {points}"
    if verdict == "undecided" and (mean["low"] > 0 or mean["high"] < 0):  # which its interval alone would not say
        return f"{words}, corrected for {family} questions"
    return words


def _reason(mean: Mapping[str, float], p: float, family: int, verdict: str, chance: float, drawn: str) -> str:
    """What a verdict rests on, or lacks; `drawn` says what to draw more of, if that is not seeds."""
    if math.isnan(p):
        return "one seed, no interval" if mean["n"] < 2 else "a difference with one seed, no interval"
    over = f" after Holm's correction over {family}" if family > 1 else ""
    if verdict != "undecided":
        return f"{counted(mean['n'], 'seed')}, {p_in_words(p)}{over}"
    clear = not mean["low"] <= 0 <= mean["high"]
    why = f"the interval is clear of zero, but {p_in_words(p)}{over}" if clear else "the interval holds zero"
    if not math.isnan(chance):
        share = f"{100 * chance:.0f} %" if chance >= 0.005 else "under 1 %"
        why += f"; {2 * mean['n']} seeds would decide it with a chance of {share}"
    return f"{why}, as the draw of the {drawn} leaves more unknown" if drawn else why


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's (1979) correction of p values [..., N] over the last axis; those that are NaN count for nothing.

    Statsmodels' own collects garbage at each call, which takes 0.1 s.
    """
    values = np.asarray(p, float)
    order = np.argsort(values)  # NaN last
    left = np.isfinite(values).sum(-1, keepdims=True) - np.arange(values.shape[-1])
    steps = np.maximum.accumulate(left * np.take_along_axis(values, order, -1), -1).clip(max=1)
    return np.take_along_axis(steps, np.argsort(order), -1)


def seeds_needed(half_width: float, se_seeds: float, se_images: float, seeds: int, times: float = 1.0) -> int | None:
    """The fewest seeds that keep an interval within a half-width in 4 of 5 studies (Kupper and Hafner 1989).

    If the observed spread alone were used, half of all studies would get a wider interval, so the spread's own
    chi-square quantile is included. The test images stay as they are.

    Args:
        half_width: the target, in the unit of the standard errors.
        se_seeds: standard error over seeds, observed with `seeds` of them.
        se_images: standard error over test images; NaN counts as 0.
        seeds: how many gave `se_seeds`.
        times: the true spread to assume, as a multiple of the observed one.

    Returns:
        Seeds in all; None for more than `MOST_SEEDS`.
    """
    for n in range(2, MOST_SEEDS + 1):
        unlucky = stats.chi2.ppf(ASSURANCE, n - 1) / (n - 1)
        over_seeds = (times * se_seeds) ** 2 * seeds / n * unlucky
        variance = over_seeds + np.nan_to_num(se_images) ** 2
        df = (n - 1) * (variance / over_seeds) ** 2 if over_seeds else np.inf
        if stats.t.ppf((1 + LEVEL) / 2, df) * np.sqrt(variance) <= half_width:
            return n
    return None


def spread_interval(seeds: int) -> tuple[float, float]:
    """The 95 % chi-square interval of the true spread over seeds, as multiples of the observed one."""
    tails = stats.chi2.ppf([(1 + LEVEL) / 2, (1 - LEVEL) / 2], seeds - 1)
    return float(np.sqrt((seeds - 1) / tails[0])), float(np.sqrt((seeds - 1) / tails[1]))


def start_in_words(size: int) -> str:
    """What fine-tuning starts from, in words."""
    return f"{size:,} pre-training images" if size else "a random start"


def target_words(points: float) -> str:
    """A target in words."""
    return f"{points:g} point{'' if points == 1 else 's'}"


def p_in_words(p: float) -> str:
    """A p value; how far below 0.0001 one is says nothing."""
    return "p below 0.0001" if p < 1e-4 else f"p {p:.2g}"


def in_points(value: float) -> str:
    """A fraction as signed percentage points."""
    return f"{100 * value:+.2f}"


def bare(value: float) -> str:
    """A fraction as percentage points without a sign, for values that have none."""
    return f"{100 * value:.2f}"


def span(low: float, high: float) -> str:
    """An interval of fractions in points."""
    return f"{in_points(low)} to {in_points(high)}"
