"""What the next doubling of labels would bring: the last as measured, the next as fits foretell it, and its cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from viny.evidence.advice.advice import Item
from viny.evidence.advice.best import Best
from viny.evidence.advice.facts import EXCESS, Facts, interval_words, start_words, undecided
from viny.evidence.statistics.fits import AVERAGE, MODELS, fits
from viny.evidence.statistics.gains import marginal_gains
from viny.evidence.verdicts import Decision, answer, label_question, span


@dataclass(frozen=True, eq=False)
class LabelAdvice:
    """What the advice says about the next doubling of labels.

    Attributes:
        items: the section.
        answer: how many more masks? In short, from the best cell's curve.
        effects: the effect of the last doubling on that curve; empty if no seed has both of its sizes.
        foreseen: whether no further label sizes need proposing: fits of that curve say what comes next, or
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
        trend: how that compares with the doubling before, in words; empty if it cannot be compared.
        fit: mean, low and high of the next doubling as the averaged fits foretell it; None if there are too few sizes.
        words: the same in words, or why not.
        room: labelled images that there are besides the test images; None if unknown.
    """

    pretrain_size: int
    intermediate: str
    smaller: int
    larger: int
    last: Mapping[str, Any]
    trend: str
    fit: Mapping[str, float] | None
    words: str
    room: int | None

    @property
    def gain(self) -> Mapping[str, Any]:
        """The next doubling's gain, or the last one's if no fit predicts the next."""
        return self.fit or self.last

    @property
    def where(self) -> str:
        start = start_words(self.pretrain_size, self.intermediate)
        return f"{self.smaller:,} to {self.larger:,} labels, with {start}"

    @property
    def measured(self) -> str:
        return f"From {self.where}: {interval_words(self.last)}" + (" a doubling" if self.last["n"] else "")

    @property
    def foretold(self) -> str:
        there = "" if self.room is None or self.room >= 2 * self.larger else f" ({self.room:,} are there)"
        return (
            f"To {2 * self.larger:,}{there}: {self.words if self.fit else f'no fitted curve can say, as {self.words}'}."
        )


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
        words = f"Not asked by this study: one number of labels{_other_labels(facts)}."
        if asked:
            words = "Not known yet: no curve has cells of two numbers of labels."
        return LabelAdvice([Item(words, {"asked": False})], words, [], foreseen=asked)
    items, answer, effects, foreseen = [], "", [], True
    gains, forms = marginal_gains(facts.runs), fits(facts.runs)
    for curve in curves:
        doubling = _last_doubling(facts, gains, forms, *curve)
        tail = f" {doubling.foretold}" if doubling.fit else ""
        data = _data(doubling)
        if not effects:  # the best cell's curve, or the next one if no seed has both of its sizes
            effect = _effect_of(facts, doubling)
            tail = f" {doubling.foretold}{_cost_words(doubling, effect, facts.minutes_per_mask)}"
            if effect:
                effects = [effect]
                data["verdict"] = effect.words
            foreseen = doubling.fit is not None
            answer = f"{effect.sentence if effect else f'{doubling.measured}.'}{tail}"
        items.append(Item(f"{doubling.measured}{doubling.trend}.{tail}", data))
    if any(item.data["next"]["from"] == "last doubling" for item in items):
        text = "Where no fitted curve says what comes next, the last doubling is a guess, too high where returns fall."
        items.append(Item(text))
    return LabelAdvice(items, answer, effects, foreseen)


def more_labels(facts: Facts) -> list[int]:
    """The grid's label sizes and further ones: as many as a fit needs, but at least one.

    A further size doubles the largest, as far as there are labelled images besides the test images; otherwise it
    halves the widest gap. If neither gives a new size, there are fewer; and none if `viny check` would refuse them.

    Args:
        facts: the study's.

    Returns:
        Sizes in ascending order.

    Raises:
        InputError: a damaged pack manifest.
    """
    sizes, room = sorted(facts.grid["finetune_sizes"]), facts.at_hand.room(facts.study)
    most = np.inf if room is None else room
    wanted = max(len(sizes) + 1, MODELS["log-linear"].parameters + 2)
    while len(sizes) < wanted:
        largest = int(min(2 * sizes[-1], most))
        gaps = [(high / low, low, high) for low, high in pairwise([sizes[0] / 2, *sizes])]
        _, low, high = max(gaps)
        further = largest if largest >= EXCESS * sizes[-1] else round(math.sqrt(low * high))
        if further < 1 or further in sizes:
            break
        sizes = sorted([*sizes, further])
    return sorted(facts.grid["finetune_sizes"]) if facts.refused({"grid": {"finetune_sizes": sizes}}) else sizes


def _other_labels(facts: Facts) -> str:
    sizes, there = more_labels(facts), facts.grid["finetune_sizes"]
    if len(sizes) == len(there):
        return ""
    less = "" if max(sizes) > max(there) else ", fewer ones, as no more labelled images are left"
    return f"; add `grid.finetune_sizes: {sizes}`{less}"


def _last_doubling(facts: Facts, gains: pd.DataFrame, forms: pd.DataFrame, size: int, task: str) -> _Doubling:
    """The last doubling of a curve, from the tables of all curves."""
    steps = gains[(gains["along"] == "labels") & (gains["intermediate"] == task) & (gains["pretrain_size"] == size)]
    forms = forms[(forms["intermediate"] == task) & (forms["pretrain_size"] == size)]
    last = steps.iloc[-1].to_dict()
    small, large = int(last["smaller"]), int(last["larger"])
    average = forms.set_index("model").loc[AVERAGE]
    trend, room = _trend(facts, size, task), facts.at_hand.room(facts.study)
    return _Doubling(size, task, small, large, last, trend, *_foretell(average), room)


def _trend(facts: Facts, size: int, task: str) -> str:
    """Whether the gain per doubling falls along a curve, as the study decides it; empty if that is not asked."""
    for found in facts.decided("labels fall"):
        if task == "none" and found.what == size and not math.isnan(found.low):
            return f"; against the doubling before, it {found.words} ({span(found.low, found.high)})"
    return ""


def _foretell(average: Mapping[str, Any]) -> tuple[dict[str, float] | None, str]:
    """What the averaged forms of a curve, a row of `fits`, say about the doubling after the largest size.

    Returns:
        Mean, low and high, and the same in words; None and the reason if there are too few sizes.
    """
    if math.isnan(average["gain"]):
        return None, str(average["verdict"]).removeprefix("no form: ")
    gain = {"mean": average["gain"], "low": average["gain_low"], "high": average["gain_high"]}
    return gain, f"{interval_words(gain)}, foretold by the average of {average['verdict']}"


def _effect_of(facts: Facts, doubling: _Doubling) -> Decision | None:
    """What the study decides on the last doubling; None if no seed has both sizes."""
    if doubling.intermediate == "none":  # one of the study's own questions
        return next((d for d in facts.decided("labels") if d.what == doubling.pretrain_size), None)
    question = label_question(facts.runs.keys, doubling.pretrain_size, doubling.intermediate)
    return next(iter(answer(facts.runs, [question] if question else [], facts.target / 100)), None)


def _cost_words(doubling: _Doubling, effect: Decision | None, minutes: float | None) -> str:
    """What the next doubling's masks cost, and what a point of mIoU costs if the gain can be told.

    Starts with a space; empty if the minutes per mask are unknown.
    """
    if not minutes:
        return ""
    labels, total = doubling.larger, doubling.larger * minutes
    text = f" At {minutes:g} minutes a mask its {labels:,} masks are {total / 60:,.1f} h"
    if effect is None or effect.verdict not in ("up", "down") or undecided(doubling.gain):
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
