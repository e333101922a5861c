"""How the study's models compare with simple ones: a constant answer, and a small network from scratch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import pandas as pd

from viny.evidence.advice.advice import Item
from viny.evidence.advice.best import Best
from viny.evidence.advice.facts import Facts
from viny.evidence.statistics.arms import Arms
from viny.evidence.statistics.crossed import Score
from viny.evidence.statistics.references import CONSTANT, apart_by, cell_in_words, reference_scores, references_table
from viny.evidence.tables import OF_CLASS
from viny.runtime.units import capital
from viny.study.grid import Reference, has_arms
from viny.study.specs import statistics_spec

LOST = 0.05  # IoU below which a class counts as lost


def reference_items(facts: Facts) -> list[Item]:
    """What tables/references.csv says, or will say, of the largest number of labels with a U-Net; nothing without one.

    An item's data name the model to `viny predict`, and hold the IoU of its classes, means over seeds.

    Raises:
        InputError: a damaged file.
    """
    scores, about, others = reference_scores(facts.root, facts.references)
    models, called = _compared(facts)
    table = references_table(models, scores, about, called=called)
    found = []
    # What is better than a constant answer is said last: it is the harder test.
    for row in table[table["finetune_size"] == table["finetune_size"].max()].to_dict("records"):
        key, gain = (row["reference"], row["finetune_size"]), row["gain_words"]
        gain = gain if isinstance(gain, str) else ""
        data = {"reference": row["reference"], "verdict": row["verdict"], "gain": gain, "lead": row["lead"]}
        if key in others:
            seed = min(one.seed for one in facts.references if one.finetune_size == row["finetune_size"])
            data["model"] = Reference(row["finetune_size"], seed).name
            means = others[key].mean().dropna()
            data["classes"] = means[[name for name in means.index if name.startswith(OF_CLASS)]].to_dict()
        found.append(Item(f"{row['sentence']} {gain}".rstrip(), data, _brief(row)))
    return found


def _compared(facts: Facts) -> tuple[Mapping[tuple[int, Hashable], Score], Callable[[Any], str]]:
    """The mIoU of the cells of all arms, see `references_table`, and what a cell is called."""
    if not has_arms(facts.study):
        return facts.scores, cell_in_words
    return facts.arm_scores, Arms.of(statistics_spec(facts.study)).called


def class_means(best: Best, beaten: Sequence[Item]) -> pd.Series:
    """The IoU of each class, mean over seeds, of the model to use.

    Args:
        best: the study's best cell.
        beaten: the reference that does better, if one does.
    """
    of_cell = best.rows[[name for name in best.rows if name.startswith(OF_CLASS)]].mean()
    means = pd.Series(beaten[0].data.get("classes", {}), dtype=float) if beaten else of_cell
    return means.rename(lambda name: name.removeprefix(OF_CLASS)).dropna()


def lost_classes(means: pd.Series) -> list[str]:
    """The classes that are as good as not found, the worst first, where there are more than two.

    Args:
        means: from `class_means`.
    """
    return [] if len(means) <= 2 else list(means[means < LOST].sort_values(kind="stable").index)


def _brief(row: Mapping[str, Any]) -> tuple[str, ...]:
    """How a reference compares with the study's best cell, in few words and in fewer."""
    reached, ahead = (f"{100 * abs(row[key]):.1f}" for key in ("mean", "lead"))
    name, side = str(row["name"]).removesuffix(" from scratch"), "less" if row["lead"] > 0 else "more"
    answer = str(row["answer"])
    if row["verdict"] == "down":
        answer = "worse than none" if row["reference"] == CONSTANT else "do not use it"
    apart = f"{ahead} points {side}{apart_by(row['lead'], row['lead_low'], row['lead_high'])}"
    return (
        f"{capital(answer)}: {name} has {reached} % mIoU with {row['finetune_size']:,} labels, {apart}.",
        f"{capital(name)} has {reached} %, {apart}; {answer}.",
    )


def better_model(references: Sequence[Item]) -> list[Item]:
    """The simple reference that does better than the study's best cell, the hardest to beat; empty if none does."""
    return [item for item in references if item.data["verdict"] == "down"][-1:]


def better_model_warnings(beaten: Sequence[Item]) -> list[Item]:
    """That something simple does better than the study's best cell, from `better_model`."""
    text = "A simple reference does better, so this model may not be the one to use."
    return [Item(f"{text} {item.text}", item.data) for item in beaten]
