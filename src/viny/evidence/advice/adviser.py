"""Advice from a study's results: what pre-training, labels and tasks are worth, and which cells would settle the rest.

Each section is a function of the facts; what one section finds for another is passed as an argument.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from viny.evidence.advice.advice import Advice, Item, Section, room
from viny.evidence.advice.best import best_items, constant_items, find_best
from viny.evidence.advice.brief import brief_lines
from viny.evidence.advice.effects import (
    pretraining_answer,
    pretraining_items,
    task_items,
    tasks_answer,
)
from viny.evidence.advice.facts import TARGET, gather_facts
from viny.evidence.advice.labels import label_advice
from viny.evidence.advice.prices import Wish, price_items
from viny.evidence.advice.proposals import proposal_items
from viny.evidence.advice.references import (
    better_model,
    better_model_warnings,
    class_means,
    lost_classes,
    reference_items,
)
from viny.evidence.advice.starts import arm_items
from viny.evidence.advice.warnings import outdated_items, warning_items
from viny.evidence.statistics.crossed import ALPHA, LEVEL
from viny.evidence.verdicts import ASSURANCE, MOST_SEEDS, UNKNOWN, target_words
from viny.runtime.errors import InputError
from viny.runtime.load import busy
from viny.study.arms import pretrain_packs, settings_of
from viny.study.grid import cells, references
from viny.study.layout import TABLE, TUNING, chain, metrics_file, pack_manifest, reference_file, trainings
from viny.study.saved import saved_study
from viny.study.specs import is_tuned


def advise(
    root: Path,
    config: Mapping[str, Any] | None = None,
    target: float = TARGET,
    minutes_per_mask: float | None = None,
    wish: Wish | None = None,
) -> Advice:
    """What a study's results tell someone who has to decide, and what would settle the rest.

    Args:
        root: the study's folder.
        config: its resolved settings; None for those in its study.json.
        target: points of mIoU that an interval should reach on either side; a difference within them is small.
        minutes_per_mask: minutes to label an image; None if unknown.
        wish: what mIoU is to be reached at what prices; None if that is not asked.

    Returns:
        The advice, from the evaluated cells.

    Raises:
        InputError: no settings, no evaluated cell, none measured on the current images, or a damaged file.
    """
    for name, value in (("--target", target), ("--minutes-per-mask", minutes_per_mask)):
        if value is not None and not 0 < value < np.inf:
            raise InputError(f"{name} is {value:g}; expected a number above 0")
    if wish:
        wish.check()
    config = saved_study(root) if config is None else dict(config)
    facts = gather_facts(root, config, target, minutes_per_mask)
    pretraining, tasks = facts.decided("pre-training"), facts.decided("task")
    best = find_best(facts)
    labels = label_advice(facts, best)
    references = reference_items(facts)
    constant = constant_items(facts, best)
    beaten = better_model(references)
    means = class_means(best, beaten)
    proposals = proposal_items(facts, best, pretraining, labels, tasks, lost_classes(means), bool(beaten))
    # Models that stand for other images come before what they are worth.
    stale = outdated_items(facts)
    warnings = [*stale, *better_model_warnings(beaten), *warning_items(facts, best)[len(stale) :]]
    sections = [
        Section("pretraining", "What pre-training is worth", pretraining_items(facts)),
        Section("labels", "What the next doubling of labels would bring", labels.items),
        *([Section("prices", "What the target costs", price_items(facts, wish))] if wish else []),
        Section("tasks", "What each intermediate task did", task_items(facts)),
        Section("next", "What would settle the rest", proposals),
        Section("warnings", "Warnings", warnings),
        Section("reading", "How to read this", _reading(target, facts.trainings.share, facts.runs.drawn)),
    ]
    answers = [
        Item(f"Is pre-training worth it? {pretraining_answer(facts)}", {"question": "pre-training"}),
        Item(f"How many more masks? {labels.answer}", {"question": "labels"}),
        Item(f"Will the intermediate task hurt? {tasks_answer(facts)}", {"question": "task"}),
    ]
    arms = arm_items(facts)
    summary = [*stale, *arms, *best_items(best), *references, *constant, *answers]
    advice = Advice(
        study=config["study"],
        note=str(config.get("note", "")),
        cells=len(cells(config)),
        evaluated=len(facts.current),
        seeds=len(facts.grid["seeds"]),
        test_images=list(facts.test_images),
        test_groups=facts.runs.groups,
        image_size=facts.config["model"]["image_size"],
        target=target,
        short=[],
        sections=[Section("summary", "In short", summary), *sections],
    )
    about = (facts, best, labels, arms, references, means, proposals, _by_weight(constant, warnings))
    return replace(advice, short=brief_lines(*about, most=room(advice)))


def sources(root: Path, config: Mapping[str, Any]) -> list[Path]:
    """The files in a study's folder that `advise` may read; not all of them need be there.

    Args:
        root: the study's folder.
        config: its resolved settings.
    """
    every = cells(config)
    metrics = [metrics_file(root, cell) for cell in every]
    trained = trainings(every)
    tunings = [root / TUNING.format(cell=cell.name) for cell in every]
    return [
        *metrics,
        *(path.with_suffix(".npz") for path in metrics),
        *(training.file(root, what) for training in trained for what in ("run", "curve")),
        *(path for path in tunings if path.is_file()),
        *(chain(cell)[-1].file(root, "record") for cell in every if is_tuned(settings_of(config, cell.arm))),
        *(pack_manifest(root, name) for name in ("segmentation", *pretrain_packs(config), *config["intermediate"])),
        *(reference_file(root, one, what) for one in references(config) for what in ("record", "confusion")),
        root / TABLE.format(name="duplicates.csv"),
    ]


def _by_weight(constant: list[Item], warnings: list[Item]) -> list[Item]:
    """Warnings, the most important first, with that of a constant answer after those that it follows from."""
    first = [item for item in warnings if {"outdated", "reference"} & item.data.keys()]
    return [*first, *constant, *(item for item in warnings if item not in first)]


def _reading(target: float, share: float, drawn: str) -> list[Item]:
    load = f", on a quiet machine (they ran {said})" if (said := busy(share)) else ""
    words = [
        f"""Points are percentage points of mIoU. Brackets hold {100 * LEVEL:g} % intervals over seeds and {drawn},
        paired within seeds. About one in {1 / (1 - LEVEL):.0f} misses the truth; those of single cells and
        label sizes are not corrected for that, and a cell that is picked as the furthest looks further than it is.""",
        f"""An average effect is named where its interval is clear of zero and p is {ALPHA:g} or less after Holm's
        correction over the effects of its kind. One whose interval lies within ±{target_words(target)} is small, on
        average. Else it {UNKNOWN}. The report and the tables say the same, in the same words, for ±1 point.""",
        f"""Seeds: the fewest with which {100 * ASSURANCE:g} % of such studies decide the question, or reach
        ±{target_words(target)} (Kupper and Hafner 1989), from the spread seen; more than {MOST_SEEDS} are no advice.
        After longer trainings, proposals stand in the order of questions that they can be expected to settle for the
        time, which is that of trainings one after another, as measured here{load}; chances are of the noise seen.
        `--target` sets another target.""",
    ]
    return [Item(" ".join(text.split())) for text in words]
