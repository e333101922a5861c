"""What the next doubling of labels would bring: the last as measured, the next as a fit predicts it, and its cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from viny.evidence.statistics.effects import LEAST_CLUSTERS, LEVEL, describe
from viny.evidence.statistics.fits import MODELS, fits
from viny.evidence.statistics.gains import marginal_gains, resampled
from viny.evidence.verdicts import Decision, answer, in_points, label_question, span
from viny.tools.advice.advice import Item
from viny.tools.advice.best import Best
from viny.tools.advice.facts import EXCESS, Facts, interval_words, start_words, undecided


@dataclass(frozen=True, eq=False)
class LabelAdvice:
    """What the advice says about the next doubling of labels.

    Attributes:
        items: the section.
        answer: how many more masks? In short, from the best cell's curve.
        effects: the effect of the last doubling on that curve; empty if no seed has both of its sizes.
        foreseen: whether no further label sizes need proposing: a fit of that curve says what comes next, or
            missing cells of the grid's own sizes come first.
    """

    items: list[Item]
    answer: str
    effects: list[Decision]
    foreseen: bool


@dataclass(frozen=True, eq=False)
class _Doubling:
    """The last doubling of labels along a curve, and the next.

    Attributes:
        pretrain_size, intermediate: whose curve it is.
        smaller, larger: labels at both ends of the last doubling.
        last: what it brought, a row of `marginal_gains`.
        trend: how that compares with the first doubling, in words; empty if it cannot be compared.
        fit: mean, low and high of the next doubling as a fit predicts it; None if no fit can.
        words: the same in words, or why no fit can.
    """

    pretrain_size: int
    intermediate: str
    smaller: int
    larger: int
    last: Mapping[str, Any]
    trend: str
    fit: Mapping[str, float] | None
    words: str

    @property
    def gain(self) -> Mapping[str, Any]:
        """The next doubling's gain, or the last one's if no fit predicts the next."""
        return self.fit or self.last

    @property
    def told(self) -> bool:
        """Whether it can be told that more labels change mIoU."""
        return not (undecided(self.last) or undecided(self.gain))

    @property
    def where(self) -> str:
        start = start_words(self.pretrain_size, self.intermediate)
        return f"{self.smaller:,} to {self.larger:,} labels, with {start}"

    @property
    def measured(self) -> str:
        return f"From {self.where}: {interval_words(self.last)} a doubling"

    @property
    def foretold(self) -> str:
        return f"To {2 * self.larger:,}: {self.words if self.fit else f'no fitted curve can say, as {self.words}'}."


def label_advice(facts: Facts, best: Best) -> LabelAdvice:
    """What the next doubling would bring on the curves of the best cell, of pre-training alone and of a random start.

    Args:
        facts: the study's.
        best: its best cell.

    Returns:
        The section, and what other sections use from it.

    Raises:
        InputError: a damaged pack manifest.
    """
    curves = [(best.pretrain_size, best.intermediate), (max(facts.sizes, default=0), "none"), (0, "none")]
    curves = [curve for curve in dict.fromkeys(curves) if facts.curve(*curve)["finetune_size"].nunique() > 1]
    if not curves:
        asked = len(facts.grid["finetune_sizes"]) > 1
        words = f"Not asked by this study: one number of labels; add `grid.finetune_sizes: {more_labels(facts)}`."
        if asked:
            words = "Not known yet: no curve has cells of two numbers of labels."
        return LabelAdvice([Item(words, {"asked": False})], words, [], foreseen=asked)
    items, answer, effects, foreseen = [], "", [], True
    for curve in curves:
        doubling = _last_doubling(facts, *curve)
        tail = f" {doubling.foretold}" if doubling.fit else ""
        data = _data(doubling)
        if not effects:  # the best cell's curve, or the next one if no seed has both of its sizes
            tail = f" {doubling.foretold}{_cost_words(doubling, facts.minutes_per_mask)}"
            if effect := _effect_of(facts, doubling):
                effects = [effect]
                data["verdict"] = effect.words
            foreseen = doubling.fit is not None
            short = f"{doubling.measured}."
            if not doubling.told:
                short = f"Cannot be told: from {doubling.where}, a doubling brings {interval_words(doubling.last)}."
            answer = f"{short}{tail}"
        items.append(Item(f"{doubling.measured}{doubling.trend}.{tail}", data))
    if any(item.data["next"]["from"] == "last doubling" for item in items):
        text = "Where no fitted curve says what comes next, the last doubling is a guess, too high where returns fall."
        items.append(Item(text))
    return LabelAdvice(items, answer, effects, foreseen)


def more_labels(facts: Facts) -> list[int]:
    """The grid's label sizes and further ones: as many as a fit needs, but at least one.

    A further size doubles the largest, as far as there are labelled images besides the test images; otherwise it
    halves the widest gap. If neither gives a new size, there are fewer.

    Args:
        facts: the study's.

    Returns:
        Sizes in ascending order.

    Raises:
        InputError: a damaged pack manifest.
    """
    sizes, pool = sorted(facts.grid["finetune_sizes"]), facts.pool("segmentation")
    most = np.inf if pool is None else pool - facts.test_images[-1]
    wanted = max(len(sizes) + 1, MODELS["log-linear"].parameters + 2)
    while len(sizes) < wanted:
        largest = int(min(2 * sizes[-1], most))
        gaps = [(high / low, low, high) for low, high in pairwise([sizes[0] / 2, *sizes])]
        _, low, high = max(gaps)
        further = largest if largest >= EXCESS * sizes[-1] else round(math.sqrt(low * high))
        if further < 1 or further in sizes:
            break
        sizes = sorted([*sizes, further])
    return sizes


def _last_doubling(facts: Facts, size: int, task: str) -> _Doubling:
    curve = facts.curve(size, task)
    steps = marginal_gains(curve)
    steps = steps[steps["along"] == "labels"]
    last = steps.iloc[-1].to_dict()
    small, large = int(last["smaller"]), int(last["larger"])
    return _Doubling(size, task, small, large, last, _trend(curve, steps), *_foretell(curve, large))


def _trend(curve: pd.DataFrame, steps: pd.DataFrame) -> str:
    """Whether the gain per doubling falls along a curve: the last against the first, paired within seeds."""
    if len(steps) < 2:
        return ""
    wide = curve.pivot(index="seed", columns="finetune_size", values="miou")
    first, last = (
        (wide[row.larger] - wide[row.smaller]) / np.log2(row.larger / row.smaller)
        for row in (steps.iloc[0], steps.iloc[-1])
    )
    change = (last - first).dropna()
    if len(change) < 2:
        return ""
    row = describe(change)
    falls = "less than" if row["high"] < 0 else "more than" if row["low"] > 0 else "not told from"
    return f", {falls} the first doubling (change {in_points(row['mean'])}, {span(row['low'], row['high'])})"


def _foretell(curve: pd.DataFrame, largest: int) -> tuple[dict[str, float] | None, str]:
    """What the best identified fit of a curve says about the doubling after the largest size.

    Returns:
        Mean, low and high, and the same in words; None and the reason if no fit is identified.
    """
    table = fits(curve)
    best = table[table["best"]]
    if best.empty:
        reasons = table["verdict"].str.removeprefix("not identified: ")
        return None, str(reasons.iloc[0])
    row = best.iloc[0]
    model = MODELS[row["model"]]
    wide = curve.pivot(index="seed", columns="finetune_size", values="miou")
    sizes, errors = wide.columns.to_numpy(float), 1 - wide.mean().to_numpy()
    ahead = np.array([largest, 2 * largest], float)

    def gain(fit: np.ndarray) -> float:
        now, then = model.predict(ahead, fit)
        return float(now - then)

    found = gain(model.polish(sizes, errors, model.solve(sizes, errors[None])[0]))
    low = high = np.nan
    words = "fewer than 3 seeds, no interval"
    if wide.count().min() >= LEAST_CLUSTERS:
        means, row_of_draw = resampled(wide, 1_000, 0)
        draws = np.array([gain(fit) for fit in model.solve(sizes, 1 - means)])[row_of_draw]
        low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        words = f"{span(low, high)} over seeds, the form taken for true"
    words = f"{in_points(found)} points ({words}), extrapolated by the best fit, {row['model']}"
    return {"mean": found, "low": float(low), "high": float(high)}, words


def _effect_of(facts: Facts, doubling: _Doubling) -> Decision | None:
    """What the study decides on the last doubling; None if no seed has both sizes."""
    if doubling.intermediate == "none":  # one of the study's own questions
        return next((d for d in facts.decided("labels") if d.what == doubling.pretrain_size), None)
    question = label_question(facts.runs.keys, doubling.pretrain_size, doubling.intermediate)
    return next(iter(answer(facts.runs, [question] if question else [], facts.target / 100)), None)


def _cost_words(doubling: _Doubling, minutes: float | None) -> str:
    """What the next doubling's masks cost, and what a point of mIoU costs if the gain can be told.

    Starts with a space; empty if the minutes per mask are unknown.
    """
    if not minutes:
        return ""
    labels, total = doubling.larger, doubling.larger * minutes
    text = f" At {minutes:g} minutes a mask its {labels:,} masks are {total / 60:,.1f} h"
    if not doubling.told:
        return f"{text}; what a point costs cannot be told."
    if not doubling.gain["mean"] > 0:
        return f"{text}, for no gain."
    each, least, most = (total / (100 * doubling.gain[key]) for key in ("mean", "high", "low"))
    return f"{text}, {each:,.0f} minutes a point ({least:,.0f} to {most:,.0f})."


def _data(doubling: _Doubling) -> dict[str, Any]:
    gain = {key: doubling.gain[key] for key in ("mean", "low", "high")}
    return {
        "pretrain_size": doubling.pretrain_size,
        "intermediate": doubling.intermediate,
        "smaller": doubling.smaller,
        "larger": doubling.larger,
        "measured": {key: doubling.last[key] for key in ("n", "mean", "low", "high")},
        "next": {"to": 2 * doubling.larger, "from": "fit" if doubling.fit else "last doubling"} | gain,
    }
