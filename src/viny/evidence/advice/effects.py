"""What pre-training and each intermediate task are worth: what the study decides on them, and where."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from viny.evidence.advice.advice import Item
from viny.evidence.advice.facts import Facts, interval_words, start_words
from viny.evidence.statistics.transfer import NOT_TOLD, transfer
from viny.evidence.verdicts import UNKNOWN, Question, answer, in_points, span
from viny.runtime.units import capital, counted
from viny.study.changes import as_keys

# Pre-training


def pretraining_answer(facts: Facts) -> str:
    """Is pre-training worth it? One sentence, for the largest size."""
    decisions = facts.decided("pre-training")
    return decisions[-1].sentence if decisions else _pretraining_not_asked(facts)


def pretraining_brief(facts: Facts) -> tuple[str, ...]:
    """The same in few words, with what it is worth with the most labels, and in fewer; empty if it is not asked."""
    decisions = facts.decided("pre-training")
    if not decisions:
        return ()
    decision, most = decisions[-1], decisions[-1].cells.nlargest(1, "finetune_size").iloc[0]
    subject = "It" if len(facts.sizes) == 1 else capital(decision.name)
    fewest = f"{subject} {decision.words}: {decision.number}."
    if len(decision.cells) == 1:
        return decision.short, fewest
    over = f"{subject} {decision.words}: {decision.number} over {counted(len(decision.cells), decision.over)}"
    if math.isnan(most["low"]):
        return f"{over}.", fewest
    unclear = f" it {UNKNOWN}:" if most["low"] <= 0 <= most["high"] and decision.verdict in ("up", "down") else ""
    here = f"{in_points(most['mean'])} ({span(most['low'], most['high'])})"
    return f"{over}; with {int(most['finetune_size']):,} labels{unclear} {here}.", f"{over}.", fewest


def pretraining_items(facts: Facts) -> list[Item]:
    """What pre-training is worth: by size, by number of labels for the largest size, and for the next doubling."""
    decisions = facts.decided("pre-training")
    if not decisions:
        return [Item(_pretraining_not_asked(facts), {"asked": False})]
    items = [Item(decision.sentence, decision.as_dict()) for decision in decisions]
    largest = decisions[-1]
    worth = transfer(facts.runs, decisions=facts.decisions)
    worth = worth[(worth["pretrain_size"] == largest.what) & (worth["intermediate"] == "none")]
    start = sorted(facts.curve(0, "none")["finetune_size"].unique())
    for row in largest.cells.to_dict("records"):
        labels = int(row["finetune_size"])
        mine = worth[worth["finetune_size"] == labels].iloc[0]
        text = f"With {labels:,} labels: {interval_words(row)}; {_in_labels(mine, labels, start)}."
        data = {"pretrain_size": largest.what, "finetune_size": labels}
        data |= {key: row[key] for key in ("n", "mean", "low", "high")}
        data |= {"labels_worth": mine["labels_worth"], "ratio": mine["ratio"], "censored": mine["censored"]}
        items.append(Item(text, data | {"ratio_low": mine["low"], "ratio_high": mine["high"]}))
    cells = zip(largest.question.cells, largest.question.weights, strict=True)
    alone = [Question("cell", cell, "", "cell", [cell], [weights]) for cell, weights in cells]
    if {"up", "down"} <= {one.verdict for one in answer(facts.runs, alone, facts.target / 100)}:
        text = "It depends on the labels: it helps with some numbers of them and hurts with others, after Holm's "
        items.append(Item(f"{text}correction over {len(alone)}, so the average says little."))
    return [*items, _more_images(facts), *_lengths(facts)]


def _pretraining_not_asked(facts: Facts) -> str:
    if not facts.sizes:
        size = facts.at_hand.limits(facts.study).get("pretrain")
        size = size and size - facts.config["pretrain"].get("held_out", 0)
        return f"Not asked by this study{_add(facts, 'pretrain_sizes', [0, size] if size else [])}."
    if 0 not in facts.grid["pretrain_sizes"]:
        sizes = [0, *facts.grid["pretrain_sizes"]]
        return f"Not asked by this study: no random start to compare with{_add(facts, 'pretrain_sizes', sizes)}."
    if "none" not in facts.grid["intermediates"]:
        tasks = ["none", *facts.grid["intermediates"]]
        return f"Not asked by this study: every cell has a task{_add(facts, 'intermediates', tasks)}."
    return "Not known yet: no seed has a cell with and one without pre-training."


def _add(facts: Facts, axis: str, values: Sequence[Any]) -> str:
    """What to add to the grid, after a semicolon; without values that `viny check` would accept, only where."""
    change = {"grid": {axis: list(values)}}
    if not values or facts.refused(change):
        return f"; add to `grid.{axis}`"
    return f"; add {as_keys(change)}"


def _in_labels(row: pd.Series, labels: int, start: Sequence[int]) -> str:
    """How many labels a random start would need for the same mIoU, in words.

    Args:
        row: from `transfer`.
        labels: how many the pre-trained cell has.
        start: label sizes of the random start, in ascending order.
    """
    if len(start) < 2:
        return "what that is in labels is not known, as the random start has one label size"
    if str(row["verdict"]).startswith(NOT_TOLD):
        return str(row["verdict"])
    if row["censored"] == "beyond":
        worth = f"more than {start[-1]:,}"
    elif row["censored"] == "below":
        worth = f"fewer than {start[0]:,}"
    else:
        worth = f"{row['labels_worth']:,.0f}"
    low = f"fewer than {start[0]:,}" if pd.isna(row["low"]) else f"{row['low'] * labels:,.0f}"
    high = f"more than {start[-1]:,}" if pd.isna(row["high"]) else f"{row['high'] * labels:,.0f}"
    return f"they do what {worth} would from a random start ({low} to {high})"


def _more_images(facts: Facts) -> Item:
    """What the next doubling of unlabelled images would bring, if it is like that between the two largest sizes."""
    if not facts.decided("images"):
        text = "What the next doubling of unlabelled images would bring, one size above 0 cannot say."
        if len(facts.sizes) > 1:
            text = (
                "What a doubling of unlabelled images brings is not known yet: no seed has both of the largest sizes."
            )
        return Item(text, {"asked": len(facts.sizes) > 1})
    (decision,) = facts.decided("images")
    text = f"{decision.sentence} For the next, to {2 * decision.what:,}, this is a guess, too high where returns fall."
    return Item(text, {"extrapolated_to": 2 * decision.what} | decision.as_dict())


def _lengths(facts: Facts) -> list[Item]:
    """What the held-out loss says of the length of each pre-training; empty if none was held out."""
    return [Item(row["words"], {"held_out": row}) for row in facts.held_out.to_dict("records")]


# Intermediate tasks


def tasks_answer(facts: Facts) -> str:
    """Will the intermediate task hurt? A sentence for each task."""
    return " ".join(decision.sentence for decision in facts.decided("task")) or _tasks_not_asked(facts)


def task_items(facts: Facts) -> list[Item]:
    """What each intermediate task did, and which tasks are not known yet.

    Args:
        facts: the study's.

    Raises:
        InputError: a damaged pack manifest.
    """
    decisions = facts.decided("task")
    if not decisions:
        return [Item(_tasks_not_asked(facts), {"asked": False})]
    apart = {decision.what: decision for decision in facts.decided("interaction")}
    items = []
    for decision in decisions:
        text = decision.sentence
        row = decision.cells.loc[decision.cells["mean"].abs().idxmax()]
        if len(decision.cells) > 1:
            where = f"{start_words(int(row['pretrain_size']))}, {row['finetune_size']:,.0f} labels"
            text += f" Furthest from zero with {where}: {interval_words(row)}."
        if other := apart.get(decision.what):
            text += f" {other.sentence}"
        if _sees_masks(facts, str(decision.what)):
            text += " It learns from masks of the segmentation's own training images: more labels by another name."
        furthest = {key: row[key] for key in ("pretrain_size", "finetune_size", "n", "mean", "low", "high")}
        items.append(Item(text, decision.as_dict() | {"furthest": furthest}))
    if missing := [task for task in facts.tasks if task not in {decision.what for decision in decisions}]:
        items.append(Item(f"Not known yet: {', '.join(missing)}; no seed has a cell with and one without."))
    return items


def _tasks_not_asked(facts: Facts) -> str:
    if not facts.tasks:
        return "Not asked by this study; add a task, as `grid.intermediates: [none, <task>]`."
    if "none" not in facts.grid["intermediates"]:
        tasks = ["none", *facts.grid["intermediates"]]
        return f"Not asked by this study: no cell is without a task{_add(facts, 'intermediates', tasks)}."
    return "Not known yet: no seed has a cell with and one without a task."


def _sees_masks(facts: Facts, task: str) -> bool:
    """Whether a task learns from the masks of the segmentation's own pack."""
    if facts.config["intermediate"][task]["target"] == "image":
        return False
    segmentation = facts.manifest("segmentation")
    own = None if segmentation is None else facts.manifest(task)
    return own is not None and segmentation is not None and own.get("sha256") == segmentation.get("sha256")
