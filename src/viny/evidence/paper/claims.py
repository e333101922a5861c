"""The paper's claims, each as a testable predicate over cells, with the sentence that it tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import combinations, pairwise

import numpy as np
import pandas as pd

from viny.evidence.paper.comparisons import (
    ONE,
    POINT,
    POINTS,
    Comparison,
    Evidence,
    Key,
    Means,
    Outcome,
    Weights,
    everywhere,
    root,
    single,
    untestable,
)
from viny.evidence.paper.facts import paper_facts
from viny.evidence.paper.words import Found
from viny.evidence.tables import GROUP

AHEAD = 10.0  # how many times the most labels an advantage is extrapolated to
BEYOND = np.linspace(-1, 10, 441)  # doublings of the most labels, to search where curves meet
SHARES = np.arange(-1, 3, 0.005)  # of a gain, to search an interval in
BASELINE, PRETRAINED, AFTER_TASK, GEOMETRY = "1", "A2", "A3", "2"  # the paper's tables


@dataclass(frozen=True)
class Claim:
    """A claim of the paper in words, and its test.

    Attributes:
        key: its name.
        words: what is tested.
        sentence: the paper's own words, in quotation marks, or what its table shows.
        source: where they are.
        tables: the paper's tables that it rests on.
        estimate_is: what the estimate is, positive where the claim holds.
        unit: of the estimate.
        test: takes the cells.
    """

    key: str
    words: str
    sentence: str
    source: str
    tables: Sequence[str]
    estimate_is: str
    unit: str
    test: Callable[[Evidence], Outcome]


def _mix(*terms: tuple[float, Weights]) -> dict[Key, float]:
    """A weighted sum of weighted sums."""
    out: dict[Key, float] = {}
    for factor, weights in terms:
        for key, weight in weights.items():
            out[key] = out.get(key, 0.0) + factor * weight
    return out


def _mean(sums: Iterable[Weights]) -> dict[Key, float]:
    sums = list(sums)
    return _mix(*((1 / len(sums), weights) for weights in sums))


def _miou(pretrain_size: int, task: str, labels: int) -> Weights:
    return {("miou", pretrain_size, task, labels): 1.0}


def _step(few: Weights, many: Weights, per: float = 1.0) -> dict[Key, float]:
    return _mix((per, many), (-per, few))


def _gain(size: int, labels: int, task: str = "none") -> dict[Key, float]:
    """mIoU after pre-training (and a task) minus that from a random start."""
    return _step(_miou(0, "none", labels), _miou(size, task, labels))


def _harm(size: int, labels: int, task: str) -> dict[Key, float]:
    """What a task costs: mIoU without it minus mIoU with it."""
    return _step(_miou(size, task, labels), _miou(size, "none", labels))


def _line_at(labels: Sequence[int], doublings: float) -> np.ndarray:
    """Weights [len(labels)] of a least-squares line in log2 of the labels, read off so far beyond the most of them."""
    x = np.log2(labels)
    return np.array([1.0, x[-1] + doublings]) @ np.linalg.pinv(np.column_stack([np.ones_like(x), x]))


def _slope(labels: Sequence[int]) -> np.ndarray:
    """Weights [len(labels)] that give the slope of a least-squares line in log2 of the labels."""
    return _line_at(labels, 1) - _line_at(labels, 0)


def cell_in_words(size: int, labels: int | None = None, task: str = "none", part: str = "") -> str:
    """A cell in words."""
    words = [images_in_words(size)]
    words += [task] if task != "none" else []
    words += [f"{labels:,} labels"] if labels else []
    return ", ".join([*words, *([part] if part else [])])


def images_in_words(size: int) -> str:
    return f"{size:,} pre-training images" if size else "no pre-training"


# Pre-training


def _pretraining_helps(evidence: Evidence, last: bool = False) -> Outcome:
    """At every label size or, if `last`, at the largest one of each number of pre-training images."""
    comparisons, sizes = [], []
    for p in evidence.sizes(least=1):
        labels = [n for n in evidence.labels(p, "none") if n in evidence.labels(0, "none")]
        comparisons += [Comparison(cell_in_words(p, n), _gain(p, n)) for n in labels[-1 if last else 0 :]]
        sizes += [p] * bool(labels)
    decided = None if last else evidence.decided("pre-training", sizes, "up")
    return everywhere(evidence, comparisons, "cells with and without pre-training at one label size", decided=decided)


def _pretraining_monotone(evidence: Evidence) -> Outcome:
    comparisons = [
        Comparison(
            f"{few:,} to {many:,} pre-training images, {n:,} labels",
            _step(_miou(few, "none", n), _miou(many, "none", n)),
        )
        for few, many in pairwise(evidence.sizes(least=1))
        for n in evidence.labels(few, "none")
    ]
    return everywhere(evidence, comparisons, "two numbers of pre-training images beside none")


def _pretraining_diminishes(evidence: Evidence) -> Outcome:
    """By equal steps of images, as the paper compares 0 to 100,000 with 100,000 to 200,000."""
    comparisons, given = [], []
    sizes = evidence.sizes()
    for few, middle, many in combinations(sizes, 3):
        if middle - few == many - middle:
            for n in evidence.labels(middle, "none"):
                first, second, last = (_miou(p, "none", n) for p in (few, middle, many))
                where = f"{few:,} to {middle:,} against {middle:,} to {many:,} images, {n:,} labels"
                comparisons.append(Comparison(where, _mix((1, _step(first, second)), (-1, _step(second, last)))))
                given.append(Comparison(f"a gain from {few:,} to {many:,} images, {n:,} labels", _step(first, last)))
    needs = "three numbers of pre-training images at equal steps, such as 0, 100,000 and 200,000"
    return everywhere(evidence, comparisons, needs, given)


# Labels


def _curves(evidence: Evidence) -> list[tuple[str, list[int], Callable[[int], Weights]]]:
    """The learning curves over labels: of what, at which labels, and the cell there."""
    return [
        (cell_in_words(p, task=task), evidence.labels(p, task), partial(_miou, p, task))
        for task in ("none", *evidence.tasks)
        for p in evidence.sizes(task)
    ]


def _labels_help(evidence: Evidence) -> Outcome:
    comparisons = [
        Comparison(f"{where}, {few:,} to {many:,} labels", _step(cell(few), cell(many)))
        for where, labels, cell in _curves(evidence)
        for few, many in pairwise(labels)
    ]
    return everywhere(evidence, comparisons, "two label sizes")


def _labels_diminish(evidence: Evidence) -> Outcome:
    comparisons, given = [], []
    for where, labels, cell in _curves(evidence):
        for a, b, c in zip(labels, labels[1:], labels[2:], strict=False):
            below, above = (_step(cell(x), cell(y), 1000 / (y - x)) for x, y in ((a, b), (b, c)))
            comparisons.append(Comparison(f"{where}, around {b:,} labels", _mix((1, below), (-1, above))))
        if len(labels) > 2:
            given.append(Comparison(f"{where}, there is a gain", _step(cell(labels[0]), cell(labels[-1]))))
    return everywhere(evidence, comparisons, "three label sizes", given)


def _labels_plateau(evidence: Evidence) -> Outcome:
    comparisons = []
    for where, labels, cell in _curves(evidence):
        for few, many in [*pairwise(labels)][-1:]:
            doubling = _step(cell(few), cell(many), 1 / np.log2(many / few))
            comparisons.append(
                Comparison(f"{where}, {few:,} to {many:,} labels", _mix((POINT, {ONE: 1}), (-1, doubling)))
            )
    return everywhere(evidence, comparisons, "two label sizes")


def _against_labels(
    evidence: Evidence, sizes: Iterable[int], tasks: Iterable[str], what: Callable[[int, int, str], Weights]
) -> tuple[list[Comparison], list[Comparison]]:
    """Whether `what` falls with each doubling of labels, by pre-train size and task; and is there at the fewest."""
    comparisons, given = [], []
    for p in sizes:
        for task in tasks:
            labels = [n for n in evidence.labels(p, task) if evidence.has(what(p, n, task))]
            if len(labels) > 1:
                where = cell_in_words(p, task=task)
                terms = zip(-_slope(labels), (what(p, n, task) for n in labels), strict=True)
                comparisons.append(Comparison(where, _mix(*terms)))
                given.append(Comparison(f"{where}, there is one at {labels[0]:,} labels", what(p, labels[0], task)))
    return comparisons, given


def _worth_less_with_labels(evidence: Evidence) -> Outcome:
    comparisons, given = _against_labels(evidence, evidence.sizes(least=1), ["none"], _gain)
    return everywhere(evidence, comparisons, "cells with and without pre-training at two label sizes", given)


def _advantage_stays(evidence: Evidence) -> Outcome:
    """Extrapolated on a line in log labels: the advantage may shrink, but is not gone at `AHEAD` times the most."""
    comparisons, words = [], []
    for p in evidence.sizes(least=1):
        labels = [n for n in evidence.labels(p, "none") if n in evidence.labels(0, "none")]
        if len(labels) < 3:
            continue

        gains = [_gain(p, n) for n in labels]
        level, slope = (_mix(*zip(weights, gains, strict=True)) for weights in (_line_at(labels, 0), _slope(labels)))
        comparisons.append(Comparison(images_in_words(p), _mix((1, level), (np.log2(AHEAD), slope))))
        found = root(evidence, level, slope, BEYOND)
        if np.isfinite(found[0]):
            at, high = (_rounded(labels[-1] * 2.0**x) for x in (found[0], found[2]))
            low = f"{'' if np.isfinite(found[1]) else 'under '}{_rounded(labels[-1] * 2.0 ** max(found[1], BEYOND[0]))}"
            words.append(f"{at} ({low} to {high}) after {p:,} images")
    out = everywhere(evidence, comparisons, "cells with and without pre-training at three label sizes")
    if not words:
        return out
    caught = f"on a line in log labels, extrapolated, a random start catches up at {', '.join(words)}"
    return Outcome(**{**vars(out), "reason": f"{out.reason}; {caught}"})


def _rounded(labels: float) -> str:
    """A number of labels to two digits."""
    return f"{float(f'{labels:.2g}'):,.0f}" if np.isfinite(labels) else "no end"


def _labels_first(evidence: Evidence) -> Outcome:
    """At no more compute, counted in images that are trained on: the most labels from a random start against the least
    pre-training with fewer labels."""
    least, comparisons = evidence.sizes(least=1)[:1], []
    for p in least:
        for n in evidence.labels(p, "none"):
            compute = evidence.epochs[0] * p + evidence.epochs[1] * n
            affordable = [m for m in evidence.labels(0, "none") if m > n and evidence.epochs[1] * m <= compute]
            if affordable:
                most = affordable[-1]
                where = f"{most:,} labels alone against {cell_in_words(p, n)}"
                comparisons.append(Comparison(where, _step(_miou(p, "none", n), _miou(0, "none", most))))
    needs = "a pre-trained cell, and one without pre-training, with more labels at no more compute"
    return everywhere(evidence, comparisons, needs)


# Intermediate tasks

NEEDS_TASK = "pre-trained cells with and without a classification task"


def _task_cells(evidence: Evidence, tasks: Iterable[str]) -> list[tuple[int, int, str]]:
    """Pre-train size (above zero), label size and task of each cell with one of the tasks."""
    return [(p, n, task) for task in tasks for p in evidence.sizes(task, least=1) for n in evidence.labels(p, task)]


def _classification_hurts(evidence: Evidence) -> Outcome:
    comparisons = [Comparison(cell_in_words(*cell), _harm(*cell)) for cell in _task_cells(evidence, evidence.tasks)]
    return everywhere(evidence, comparisons, NEEDS_TASK, decided=evidence.decided("task", evidence.tasks, "down"))


def _harm_shrinks(evidence: Evidence) -> Outcome:
    comparisons, given = _against_labels(evidence, evidence.sizes(least=1), evidence.tasks, _harm)
    return everywhere(evidence, comparisons, f"{NEEDS_TASK} at two label sizes", given)


def _harms_and_gains(evidence: Evidence) -> list[tuple[tuple[int, int, str], Comparison, Comparison]]:
    """Pre-trained cells with a task: each with what the task costs, and what the pre-training had gained."""
    found = [
        (cell, Comparison(cell_in_words(*cell), _harm(*cell)), Comparison(cell_in_words(*cell), _gain(*cell[:2])))
        for cell in _task_cells(evidence, evidence.tasks)
    ]
    return [(cell, x, y) for cell, x, y in found if evidence.has(x.weights) and evidence.has(y.weights)]


def _harm_follows_gain(evidence: Evidence) -> Outcome:
    """Within label sizes: over them, both fall with labels, whatever the one has to do with the other."""
    cells = _harms_and_gains(evidence)
    groups = [(n, task) for (_, n, task), _, _ in cells]
    inner = [groups.count(group) > 1 for group in groups]
    kept = [cell for cell, several in zip(cells, inner, strict=True) if several]
    if len(kept) < 3:
        return untestable(f"{NEEDS_TASK} and cells without pre-training, at two pre-train sizes beside it or more")
    order = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    places = [order[n, task] for (_, n, task), _, _ in kept]
    slope = evidence.slope([gain for _, _, gain in kept], [harm for _, harm, _ in kept], places)
    return single(evidence, slope, f"slope over {len(kept)} cells, within label sizes")


def _gain_is_negated(evidence: Evidence) -> Outcome:
    cells = _harms_and_gains(evidence)
    if not cells:
        return untestable(f"{NEEDS_TASK}, and cells without pre-training")
    harm, gain = (_mean(cell[i].weights for cell in cells) for i in (1, 2))
    base = evidence.intervals([Comparison("", gain)]).at()
    count = f"over {len(cells)} cells" if len(cells) > 1 else "in one cell"
    if not base["low"] > 0:
        known = np.isfinite(base["low"])
        why = "no gain is seen, of which the task could take some" if known else evidence.without
        return Outcome(Found.UNDECIDED if known else evidence.spreadless, f"{count}; {why}", n=base["n"], comparisons=1)
    share, low, high = root(evidence, harm, _mix((-1, gain)), SHARES)
    interval = ""
    if np.isfinite(low) and np.isfinite(high):
        interval = f" ({100 * low:.0f} to {100 * high:.0f})"
    else:  # no numbers to show
        low = high = np.nan
    out = single(evidence, evidence.mean([Comparison("", harm)]), "", [Comparison("", harm)])
    reason = "; ".join(
        filter(None, [f"the task erases {100 * share:.0f} %{interval} of the mean gain {count}", out.reason])
    )
    return Outcome(**{**vars(out), "estimate": share, "low": low, "high": high, "reason": reason})


def _harm_is_erasure(evidence: Evidence) -> Outcome:
    comparisons, given = [], []
    for p, n, task in _task_cells(evidence, evidence.tasks):
        more = _mix((1, _harm(p, n, task)), (-1, _harm(0, n, task)))
        if evidence.has(more):
            comparisons.append(Comparison(cell_in_words(p, n, task), more))
            given.append(Comparison(cell_in_words(p, n, task, "there is a loss"), _harm(p, n, task)))
    needs = "cells with the task and without pre-training"
    return everywhere(evidence, comparisons, needs, given)


# Geometry


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
    comparisons, given = [], []
    for p, n, task in _task_cells(evidence, evidence.spatial):
        keeps = _mix((-1, _harm(p, n, task)), (POINT, {ONE: 1}))
        given.append(Comparison(cell_in_words(p, n, task, "loss below 1 point"), keeps))
        for other in evidence.classification:
            better = _step(_miou(p, other, n), _miou(p, task, n))
            comparisons.append(Comparison(cell_in_words(p, n, task, f"better than {other}"), better))
    return everywhere(
        evidence, comparisons, "pre-trained cells with a spatial task, with a classification task and with none", given
    )


CLAIMS = [
    Claim(
        "pretraining_helps",
        "Pre-training helps at every label size.",
        "“pre-training and fine-tuning always help our model”",
        "abstract",
        (BASELINE, PRETRAINED),
        "mIoU with pre-training minus without",
        POINTS,
        _pretraining_helps,
    ),
    Claim(
        "pretraining_monotone",
        "More pre-training images help more.",
        "“increasing the amount of pre-training and fine-tuning data improves test accuracy and mIoU”",
        "section 4",
        (PRETRAINED,),
        "mIoU with more images minus with fewer",
        POINTS,
        _pretraining_monotone,
    ),
    Claim(
        "pretraining_diminishes",
        "The returns of pre-training images diminish: a second step of as many images buys less.",
        "“both pre-training and fine-tuning have diminishing returns: for pre-training, the gap between the baseline "
        "and 100k-PT models is 8.31% and 3.98% […], while the gap between the 100k and 200k pre-trained models […] are "
        "0.78% and 0.65%”",
        "section 4",
        (BASELINE, PRETRAINED),
        "gain of a step of images minus that of the next, equal step",
        POINTS,
        _pretraining_diminishes,
    ),
    Claim(
        "labels_help",
        "More labels always help.",
        "“pre-training and fine-tuning always help our model”",
        "abstract",
        (BASELINE, PRETRAINED, AFTER_TASK),
        "mIoU with more labels minus with fewer",
        POINTS,
        _labels_help,
    ),
    Claim(
        "labels_diminish",
        "The returns of labels diminish: each further label buys less.",
        "“both pre-training and fine-tuning have diminishing returns”",
        "section 4",
        (BASELINE, PRETRAINED, AFTER_TASK),
        "gain per 1,000 labels below a size minus that above it",
        "fraction per 1,000 labels",
        _labels_diminish,
    ),
    Claim(
        "labels_plateau",
        "Labels reach a plateau: at the most of them, a doubling adds less than 1 point.",
        "“fine-tuning also plateaus in all the models (see Figure 1)”",
        "section 4",
        (BASELINE, PRETRAINED, AFTER_TASK),
        "1 point minus the last step's gain per doubling",
        POINTS,
        _labels_plateau,
    ),
    Claim(
        "pretraining_worth_less_with_labels",
        "Pre-training is worth less the more labels there are.",
        "“The benefits of pre-training are particularly pronounced with low fine-tuning size”",
        "section 4",
        (BASELINE, PRETRAINED),
        "fall of pre-training's gain per doubling of labels",
        "fraction per doubling",
        _worth_less_with_labels,
    ),
    Claim(
        "pretraining_leads_at_most_labels",
        "Pre-training still leads at the most labels.",
        "“With 6000 fine-tuning examples, this gap closes, and the 45k and 200K pre-trained models get an increase of "
        "0.92% and 3.69%”",
        "section 4",
        (BASELINE, PRETRAINED),
        "mIoU with pre-training minus without, at the largest label size",
        POINTS,
        partial(_pretraining_helps, last=True),
    ),
    Claim(
        "advantage_stays",
        f"Labels cannot make up for pre-training: extrapolated to {AHEAD:.0f} times the most labels, it still leads.",
        "“the pre-trained models plateau at higher mIoU than the baseline, indicating that pre-training gives the "
        "model an advantage that fine-tuning can’t make up”",
        "section 4",
        (BASELINE, PRETRAINED),
        f"pre-training's gain at {AHEAD:.0f} times the most labels, on a line in log labels",
        POINTS,
        _advantage_stays,
    ),
    Claim(
        "labels_before_pretraining",
        "At no more compute, labels alone do more than the least pre-training with fewer labels.",
        "“use as much pre-training and fine-tuning data as you can, prioritizing the latter in a low-compute regime”",
        "section 6",
        (BASELINE, PRETRAINED),
        "mIoU of the most labels alone minus that of the least pre-training",
        POINTS,
        _labels_first,
    ),
    Claim(
        "classification_hurts_everywhere",
        "The intermediate classification hurts at every pre-train and label size.",
        "“In every pre-trained model and at every downstream fine-tuning size, the additional of intermediate "
        "fine-tuning worsens the mIoU”",
        "section 3",
        (PRETRAINED, AFTER_TASK),
        "mIoU without the task minus with it",
        POINTS,
        _classification_hurts,
    ),
    Claim(
        "harm_shrinks_with_labels",
        "Its harm shrinks with labels.",
        "“increasing the amount of fine-tuning data lessens the negative impact of intermediate fine-tuning”",
        "section 4",
        (PRETRAINED, AFTER_TASK),
        "fall of the harm per doubling of labels",
        "fraction per doubling",
        _harm_shrinks,
    ),
    Claim(
        "harm_follows_gain",
        "At equal labels, its harm is larger where pre-training helps more.",
        "“this effect is also more pronounced on models that receive bigger benefits from pre-training”",
        "section 4; v2: “with the largest drops occurring precisely where pre-training is most effective”",
        (BASELINE, PRETRAINED, AFTER_TASK),
        "slope of the harm against pre-training's gain, within label sizes",
        "points of harm per point of gain",
        _harm_follows_gain,
    ),
    Claim(
        "gain_is_negated",
        "It takes away some of what pre-training gained.",
        "“indicating that it may be negating the gains from pre-training”",
        "section 4",
        (BASELINE, PRETRAINED, AFTER_TASK),
        "share of the gain that the task erases",
        "of the gain",
        _gain_is_negated,
    ),
    Claim(
        "harm_is_erasure",
        "It costs more after pre-training than from a random start: it erases, and is not just a bad start.",
        "“classification-based training may be pushing the model to contain and aggregate semantic information within "
        "the [CLS] token […], making it orthogonal (or even opposed) to the aims of semantic segmentation”",
        "section 5",
        (BASELINE, PRETRAINED, AFTER_TASK),
        "harm after pre-training minus that after none",
        POINTS,
        _harm_is_erasure,
    ),
    Claim(
        "classification_raises_across_variance",
        "Classification raises the variance across images.",
        "across-image variance 0.02 pre-trained, 0.11 after CLS-Intel, 0.29 after CLS-Pets",
        "Table 2 of v2",
        (GEOMETRY,),
        "log2 of the variance with the task over that without",
        "log2 of a ratio",
        partial(_geometry_changes, measure="log2_across", sign=1),
    ),
    Claim(
        "classification_flattens_similarity",
        "Classification collapses spatial structure: patches that are far apart become as alike as neighbours.",
        "cosine similarity of patch tokens against their Manhattan distance",
        "a figure of v2, without numbers",
        (GEOMETRY,),
        "similarity of neighbours minus that of distant patches, without the task minus with it",
        "cosine similarity",
        partial(_geometry_changes, measure="local_minus_distant", sign=-1),
    ),
    Claim(
        "classification_lowers_probe",
        "Classification lowers the patch probe.",
        "patch probe 79.5 % pre-trained, 76.1 after CLS-Intel, 78.6 after CLS-Pets",
        "Table 2 of v2",
        (GEOMETRY,),
        "probe accuracy without the task minus with it",
        POINTS,
        partial(_geometry_changes, measure="probe", sign=-1),
    ),
    Claim(
        "spatial_raises_probe",
        "Spatial supervision raises the patch probe.",
        "patch probe 79.5 % pre-trained, 93.3 after Spatial",
        "Table 2 of v2",
        (GEOMETRY,),
        "probe accuracy with the task minus without it",
        POINTS,
        partial(_geometry_changes, measure="probe", sign=1, spatial=True),
    ),
    Claim(
        "spatial_does_not_hurt",
        "Spatial supervision does not hurt downstream where classification does.",
        "the regimes of Table 2, each fine-tuned for segmentation",
        "v2",
        (GEOMETRY, BASELINE),
        "mIoU with spatial supervision minus with classification",
        POINTS,
        _spatial_does_not_hurt,
    ),
]
OF_MEANS = [claim for claim in CLAIMS if GEOMETRY not in claim.tables]  # that a table of mIoU can speak to


def _paper_evidence() -> Means:
    """The paper's numbers as evidence to test claims on."""
    facts = paper_facts().rename(columns={"metric": "measure"})
    facts["measure"] = facts["measure"].replace({"probe_paper": "probe"})
    encoders = facts[facts["table"] == GEOMETRY].pivot(index=GROUP, columns="measure", values="mean").reset_index()
    derived = encoders.assign(measure="log2_across", mean=np.log2(encoders["across_image_variance"]))
    return Means.of(pd.concat([facts, derived[[*GROUP, "measure", "mean"]]], ignore_index=True), epochs=(100, 100))


def on_means(evidence: Means, claims: Sequence[Claim]) -> pd.DataFrame:
    """Which claims published means support.

    Returns:
        One row per claim: key, words, sentence, source, estimate_is, unit, verdict, estimate, low, high, n,
        comparisons, favour, seeds_needed (NaN where it is decided, or no number of seeds would decide it), reason.
    """
    rows: list[Mapping[str, object]] = []
    for claim in claims:
        outcome = claim.test(evidence)
        reason = outcome.reason
        if np.isfinite(outcome.needed):
            told = "show it everywhere" if outcome.found is Found.AVERAGE else "tell"
            reason += f"; {outcome.needed:.0f} runs would {told}, if these means are the truth"
        numbers = {name: getattr(outcome, name) for name in ("estimate", "low", "high", "n", "comparisons", "favour")}
        rows.append(
            {name: getattr(claim, name) for name in ("key", "words", "sentence", "source", "estimate_is", "unit")}
            | {"verdict": outcome.found.of_table, **numbers, "seeds_needed": outcome.needed, "reason": reason}
        )
    return pd.DataFrame(rows)


@cache
def _on_paper() -> pd.DataFrame:
    return on_means(_paper_evidence(), CLAIMS)


def claims_on_paper() -> pd.DataFrame:
    """Which of the paper's claims its own numbers support, see `on_means`.

    The paper does not define its ±; it is taken as the standard deviation of 3 independent runs.
    """
    return _on_paper().copy()
