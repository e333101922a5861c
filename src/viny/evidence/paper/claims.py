"""The paper's claims, each as a testable predicate over cells."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import pandas as pd

from viny.evidence.paper.comparisons import (
    CONTRADICTED,
    POINT,
    POINTS,
    REPRODUCED,
    UNTESTABLE,
    Comparison,
    Evidence,
    Key,
    Means,
    Outcome,
    Weights,
    everywhere,
)
from viny.evidence.paper.facts import paper_facts
from viny.evidence.tables import GROUP


@dataclass(frozen=True)
class Claim:
    """A claim of the paper in words, and its test."""

    key: str
    words: str
    source: str
    estimate_is: str  # what the estimate is, positive where the claim holds
    unit: str
    test: Callable[[Evidence], Outcome]


def _mix(*terms: tuple[float, Weights]) -> dict[Key, float]:
    """A weighted sum of weighted sums."""
    out: dict[Key, float] = {}
    for factor, weights in terms:
        for key, weight in weights.items():
            out[key] = out.get(key, 0.0) + factor * weight
    return out


def _miou(pretrain_size: int, task: str, labels: int) -> Weights:
    return {("miou", pretrain_size, task, labels): 1.0}


def _gain(size: int, labels: int, task: str = "none") -> dict[Key, float]:
    """mIoU after pre-training (and a task) minus that from a random start."""
    return _mix((1, _miou(size, task, labels)), (-1, _miou(0, "none", labels)))


def _harm(size: int, labels: int, task: str) -> dict[Key, float]:
    """What a task costs: mIoU without it minus mIoU with it."""
    return _mix((1, _miou(size, "none", labels)), (-1, _miou(size, task, labels)))


def _trend(sizes: Sequence[int], degree: int) -> np.ndarray:
    """Weights [len(sizes)] that give a least-squares polynomial's leading coefficient in log2 of the size."""
    return np.linalg.pinv(np.vander(np.log2(sizes), degree + 1))[0]


def cell_in_words(size: int, labels: int | None = None, task: str = "none", part: str = "") -> str:
    """A cell in words."""
    words = [images_in_words(size)]
    words += [task] if task != "none" else []
    words += [f"{labels:,} labels"] if labels else []
    return ", ".join([*words, *([part] if part else [])])


def images_in_words(size: int) -> str:
    return f"{size:,} pre-training images" if size else "no pre-training"


def _pretraining_helps(evidence: Evidence, last: bool = False) -> Outcome:
    """At every label size or, if `last`, at the largest one of each number of pre-training images."""
    comparisons = []
    for p in evidence.sizes(least=1):
        labels = [n for n in evidence.labels(p, "none") if n in evidence.labels(0, "none")]
        comparisons += [Comparison(cell_in_words(p, n), _gain(p, n)) for n in labels[-1 if last else 0 :]]
    return everywhere(evidence, comparisons, "cells with and without pre-training at one label size")


def _pretraining_monotone(evidence: Evidence) -> Outcome:
    comparisons = [
        Comparison(
            f"{few:,} to {many:,} pre-training images, {n:,} labels",
            _mix((1, _miou(many, "none", n)), (-1, _miou(few, "none", n))),
        )
        for few, many in pairwise(evidence.sizes(least=1))
        for n in evidence.labels(few, "none")
    ]
    return everywhere(evidence, comparisons, "two numbers of pre-training images beside none")


def _returns(sizes: Sequence[int], cell: Callable[[int], Weights], where: str, of: str, per: int) -> list[Comparison]:
    """Whether the gain per `per` images is lower above each inner size than below it, and whether there is a gain."""
    if len(sizes) < 3:
        return []

    def gain(few: int, many: int) -> dict[Key, float]:
        return _mix((per / (many - few), cell(many)), (-per / (many - few), cell(few)))

    return [
        Comparison(f"{where}, there is a gain", gain(sizes[0], sizes[-1])),
        *(
            Comparison(f"{where}, around {b:,} {of}", _mix((1, gain(a, b)), (-1, gain(b, c))))
            for a, b, c in zip(sizes, sizes[1:], sizes[2:], strict=False)
        ),
    ]


def _returns_by_doubling(sizes: Sequence[int], cell: Callable[[int], Weights], where: str) -> list[Comparison]:
    """Whether the gain per doubling falls with each further doubling, and whether there is a gain at all.

    The fall is minus twice the quadratic coefficient in log2 of the size.
    """
    if len(sizes) < 3:
        return []
    doublings = np.log2(sizes[-1] / sizes[0])
    return [
        Comparison(
            f"{where}, there is a gain", _mix((1 / doublings, cell(sizes[-1])), (-1 / doublings, cell(sizes[0])))
        ),
        Comparison(where, _mix(*zip(-2 * _trend(sizes, 2), map(cell, sizes), strict=True))),
    ]


def _pretraining_diminishes(evidence: Evidence, doubling: bool) -> Outcome:
    comparisons: list[Comparison] = []
    for n in sorted({n for p in evidence.sizes() for n in evidence.labels(p, "none")}):
        sizes = [p for p in evidence.sizes(least=int(doubling)) if n in evidence.labels(p, "none")]
        where, cell = f"{n:,} labels", partial(_miou, task="none", labels=n)
        if doubling:
            comparisons += _returns_by_doubling(sizes, cell, where)
        else:
            comparisons += _returns(sizes, cell, where, "pre-training images", 10_000)
    needs = "three numbers of pre-training images, " + ("none of them zero" if doubling else "one of which may be zero")
    return everywhere(evidence, comparisons, needs)


def _regimes(evidence: Evidence) -> list[tuple[int, str]]:
    """Pre-train sizes and tasks, each with its curve over labels."""
    return [(p, task) for task in ("none", *evidence.tasks) for p in evidence.sizes(task)]


def _labels_help(evidence: Evidence) -> Outcome:
    comparisons = [
        Comparison(
            f"{cell_in_words(p, task=task)}, {few:,} to {many:,} labels",
            _mix((1, _miou(p, task, many)), (-1, _miou(p, task, few))),
        )
        for p, task in _regimes(evidence)
        for few, many in pairwise(evidence.labels(p, task))
    ]
    return everywhere(evidence, comparisons, "two label sizes")


def _labels_diminish(evidence: Evidence, doubling: bool) -> Outcome:
    comparisons: list[Comparison] = []
    for p, task in _regimes(evidence):
        where, labels, cell = cell_in_words(p, task=task), evidence.labels(p, task), partial(_miou, p, task)
        if doubling:
            comparisons += _returns_by_doubling(labels, cell, where)
        else:
            comparisons += _returns(labels, cell, where, "labels", 1000)
    return everywhere(evidence, comparisons, "three label sizes")


def _against_labels(
    evidence: Evidence, sizes: Iterable[int], tasks: Iterable[str], what: Callable[[int, int, str], Weights]
) -> list[Comparison]:
    """Whether `what` falls with each doubling of labels, and is there at the fewest, by pre-train size and task.

    Its value at the fewest labels is divided by the number of doublings, so that both are per doubling.
    """
    comparisons = []
    for p in sizes:
        for task in tasks:
            labels = [
                n
                for n in evidence.labels(p, task)
                if all(key in evidence.keys for key in what(p, n, task))  # nothing is known about the others
            ]
            if len(labels) > 1:
                where, doublings = cell_in_words(p, task=task), np.log2(labels[-1] / labels[0])
                terms = zip(-_trend(labels, 1), (what(p, n, task) for n in labels), strict=True)
                start = _mix((1 / doublings, what(p, labels[0], task)))
                comparisons.append(Comparison(f"{where}, there is one at {labels[0]:,} labels", start))
                comparisons.append(Comparison(where, _mix(*terms)))
    return comparisons


def _worth_less_with_labels(evidence: Evidence) -> Outcome:
    comparisons = _against_labels(evidence, evidence.sizes(least=1), ["none"], _gain)
    return everywhere(evidence, comparisons, "cells with and without pre-training at two label sizes")


def _task_cells(evidence: Evidence, tasks: Iterable[str]) -> list[tuple[int, int, str]]:
    """Pre-train size (above zero), label size and task of each cell with one of the tasks."""
    return [(p, n, task) for task in tasks for p in evidence.sizes(task, least=1) for n in evidence.labels(p, task)]


NEEDS_TASK = "pre-trained cells with and without a classification task"


def _classification_hurts(evidence: Evidence) -> Outcome:
    comparisons = [Comparison(cell_in_words(*cell), _harm(*cell)) for cell in _task_cells(evidence, evidence.tasks)]
    return everywhere(evidence, comparisons, NEEDS_TASK)


def _harm_shrinks(evidence: Evidence) -> Outcome:
    comparisons = _against_labels(evidence, evidence.sizes(least=1), evidence.tasks, _harm)
    return everywhere(evidence, comparisons, f"{NEEDS_TASK} at two label sizes")


def _harm_follows_gain(evidence: Evidence) -> Outcome:
    pairs = [
        (Comparison(cell_in_words(*cell), _gain(*cell[:2])), Comparison(cell_in_words(*cell), _harm(*cell)))
        for cell in _task_cells(evidence, evidence.tasks)
    ]
    pairs = [(x, y) for x, y in pairs if evidence.has(x) and evidence.has(y)]
    count = len(pairs)
    if count < 3:
        reason = f"needs {NEEDS_TASK} and cells without pre-training, at three sizes or more"
        return Outcome(np.nan, np.nan, np.nan, 0, UNTESTABLE, reason, 0)
    estimate, low, high, n = evidence.slope([x for x, _ in pairs], [y for _, y in pairs])
    over = f"slope over {count} cells"
    if low > 0:
        return Outcome(estimate, low, high, n, REPRODUCED, f"{over} is above zero", count)
    if high < 0:
        return Outcome(estimate, low, high, n, CONTRADICTED, f"{over} is below zero", count)
    reason = f"{over} is undecided with {evidence.noise}" if np.isfinite(low) else evidence.without
    return Outcome(estimate, low, high, n, UNTESTABLE, reason, count)


def _gain_survives(evidence: Evidence) -> Outcome:
    comparisons = [Comparison(cell_in_words(*cell), _gain(*cell)) for cell in _task_cells(evidence, evidence.tasks)]
    return everywhere(evidence, comparisons, f"{NEEDS_TASK}, and cells with neither")


def _geometry_changes(evidence: Evidence, measure: str, sign: int, spatial: bool = False) -> Outcome:
    """Whether each task moves a measure of the pre-trained encoder up (sign 1) or down (-1)."""
    comparisons = [
        Comparison(cell_in_words(p, task=task), {(measure, p, task, 0): sign, (measure, p, "none", 0): -sign})
        for task in (evidence.spatial if spatial else evidence.classification)
        for p in sorted({p for m, p, *_ in evidence.keys if m == measure and p})
    ]
    kind = "spatial" if spatial else "classification"
    return everywhere(evidence, comparisons, f"the geometry of pre-trained encoders with and without a {kind} task")


def _spatial_does_not_hurt(evidence: Evidence) -> Outcome:
    comparisons = []
    for p, n, task in _task_cells(evidence, evidence.spatial):
        keeps = _mix((-1, _harm(p, n, task)))
        comparisons.append(Comparison(cell_in_words(p, n, task, "loss below 1 point"), keeps, POINT))
        for other in evidence.classification:
            better = _mix((1, _miou(p, task, n)), (-1, _miou(p, other, n)))
            comparisons.append(Comparison(cell_in_words(p, n, task, f"better than {other}"), better))
    both = any(c.offset == 0 and evidence.has(c) for c in comparisons)
    needs = "pre-trained cells with a spatial task, with a classification task and with none"
    return everywhere(evidence, comparisons if both else [], needs)


def _harm_is_erasure(evidence: Evidence) -> Outcome:
    comparisons = []
    for p, n, task in _task_cells(evidence, evidence.tasks):
        halved = _mix((1, _harm(p, n, task)), (-2, _harm(0, n, task)))
        if all(key in evidence.keys for key in halved):
            comparisons.append(Comparison(cell_in_words(p, n, task, "there is a loss"), _harm(p, n, task)))
            comparisons.append(
                Comparison(cell_in_words(p, n, task, "loss more than twice that of a random start"), halved)
            )
    return everywhere(evidence, comparisons, "cells with the task and without pre-training, which the paper omits")


CLAIMS = [
    Claim(
        "pretraining_helps",
        "Pre-training helps at every label size.",
        "abstract and section 4",
        "mIoU with pre-training minus without",
        POINTS,
        _pretraining_helps,
    ),
    Claim(
        "pretraining_monotone",
        "More pre-training images help more.",
        "section 4",
        "mIoU with more images minus with fewer",
        POINTS,
        _pretraining_monotone,
    ),
    Claim(
        "pretraining_diminishes",
        "The returns of pre-training images diminish: each further image buys less.",
        "abstract and section 4",
        "gain per 10,000 images below a size minus that above it",
        "fraction per 10,000 images",
        partial(_pretraining_diminishes, doubling=False),
    ),
    Claim(
        "pretraining_diminishes_by_doubling",
        "The returns of pre-training images diminish even by doublings (a stronger reading).",
        "abstract and section 4",
        "fall of the gain per doubling with each further doubling",
        "fraction per doubling",
        partial(_pretraining_diminishes, doubling=True),
    ),
    Claim(
        "labels_help",
        "More labels always help.",
        "abstract and section 4",
        "mIoU with more labels minus with fewer",
        POINTS,
        _labels_help,
    ),
    Claim(
        "labels_diminish",
        "The returns of labels diminish: each further label buys less.",
        "abstract and section 4",
        "gain per 1,000 labels below a size minus that above it",
        "fraction per 1,000 labels",
        partial(_labels_diminish, doubling=False),
    ),
    Claim(
        "labels_diminish_by_doubling",
        "The returns of labels diminish even by doublings (a stronger reading).",
        "abstract and section 4",
        "fall of the gain per doubling with each further doubling",
        "fraction per doubling",
        partial(_labels_diminish, doubling=True),
    ),
    Claim(
        "pretraining_worth_less_with_labels",
        "Pre-training is worth less the more labels there are.",
        "section 4",
        "fall of pre-training's gain per doubling of labels",
        "fraction per doubling",
        _worth_less_with_labels,
    ),
    Claim(
        "pretraining_leads_at_most_labels",
        "Labels cannot make up for pre-training: it leads at the most labels too.",
        "section 4",
        "mIoU with pre-training minus without, at the largest label size",
        POINTS,
        partial(_pretraining_helps, last=True),
    ),
    Claim(
        "classification_hurts_everywhere",
        "The intermediate classification hurts at every pre-train and label size.",
        "sections 3 and 4",
        "mIoU without the task minus with it",
        POINTS,
        _classification_hurts,
    ),
    Claim(
        "harm_shrinks_with_labels",
        "Its harm shrinks with labels.",
        "section 4",
        "fall of the harm per doubling of labels",
        "fraction per doubling",
        _harm_shrinks,
    ),
    Claim(
        "harm_follows_gain",
        "Its harm is larger where pre-training helps more.",
        "section 4 and abstract v2",
        "slope of the harm against pre-training's gain over cells",
        "points of harm per point of gain",
        _harm_follows_gain,
    ),
    Claim(
        "gain_survives_classification",
        "Even after the intermediate classification, pre-training leaves a gain.",
        "Tables 1 and A3",
        "mIoU with pre-training and the task minus with neither",
        POINTS,
        _gain_survives,
    ),
    Claim(
        "classification_raises_across_variance",
        "Classification raises the variance across images.",
        "Table 2 of v2",
        "log2 of the variance with the task over that without",
        "log2 of a ratio",
        partial(_geometry_changes, measure="log2_across", sign=1),
    ),
    Claim(
        "classification_lowers_within_share",
        "Classification collapses spatial structure: the within-image share of variance falls.",
        "abstract and Table 2 of v2",
        "within share without the task minus with it",
        POINTS,
        partial(_geometry_changes, measure="within_share", sign=-1),
    ),
    Claim(
        "classification_lowers_probe",
        "Classification lowers the patch probe.",
        "Table 2 of v2",
        "probe accuracy without the task minus with it",
        POINTS,
        partial(_geometry_changes, measure="probe", sign=-1),
    ),
    Claim(
        "spatial_raises_probe",
        "Spatial supervision raises the patch probe.",
        "Table 2 of v2",
        "probe accuracy with the task minus without it",
        POINTS,
        partial(_geometry_changes, measure="probe", sign=1, spatial=True),
    ),
    Claim(
        "spatial_does_not_hurt",
        "Spatial supervision does not hurt downstream where classification does.",
        "v2, the regimes of Table 2",
        "mIoU with spatial supervision minus with classification; or minus without any task, plus 1 point",
        POINTS,
        _spatial_does_not_hurt,
    ),
    Claim(
        "harm_is_erasure",
        "The loss comes from erasing pre-training and not from a bad start.",
        "section 4 and abstract v2",
        "harm after pre-training; or harm after pre-training minus twice that after none",
        POINTS,
        _harm_is_erasure,
    ),
]


def _paper_evidence() -> Means:
    """The paper's numbers as evidence to test claims on."""
    facts = paper_facts().rename(columns={"metric": "measure"})
    facts["measure"] = facts["measure"].replace({"probe_paper": "probe"})
    encoders = facts[facts["table"] == "2"].pivot(index=GROUP, columns="measure", values="mean").reset_index()
    within, across = encoders["within_image_variance"], encoders["across_image_variance"]
    encoders = encoders.assign(log2_across=np.log2(across), within_share=within / (within + across))
    derived = encoders.melt(GROUP, ["log2_across", "within_share"], "measure", "mean")
    facts = pd.concat([facts, derived], ignore_index=True)
    keys = [(r.measure, r.pretrain_size, r.intermediate, r.finetune_size) for r in facts.itertuples()]
    return Means(keys, *(facts[name].to_numpy(float) for name in ("mean", "spread", "runs")))


def claims_on_paper() -> pd.DataFrame:
    """Which of the paper's claims its own numbers support.

    The paper does not define its ±; it is taken as the standard deviation of 3 independent runs.

    Returns:
        One row per claim: key, words, source, estimate_is, unit, estimate, low, high, verdict, reason.
    """
    evidence = _paper_evidence()
    rows = []
    for claim in CLAIMS:
        outcome = claim.test(evidence)
        rows.append(
            {name: getattr(claim, name) for name in ("key", "words", "source", "estimate_is", "unit")}
            | {name: getattr(outcome, name) for name in ("estimate", "low", "high", "verdict", "reason")}
        )
    return pd.DataFrame(rows)
