"""What pre-training and each intermediate task are worth: their effects on mIoU, and what is said about them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from viny.evidence.statistics.effects import LEAST_CLUSTERS
from viny.evidence.statistics.transfer import NOT_TOLD, transfer
from viny.evidence.verdicts import Effect, compare, in_points, judge, span
from viny.tools.advice.advice import Item
from viny.tools.advice.facts import Facts, interval_words, start_words, undecided

# Pre-training


def pretraining_effects(facts: Facts) -> list[Effect]:
    """The effect of each pre-train size against a random start, without a task, and its verdict.

    Args:
        facts: the study's.

    Returns:
        Effects in ascending order of size; none for a size that shares no seed with the random start.
    """
    base = facts.curve(0, "none")
    found = []
    for size in facts.sizes:
        # Treated as a task on a random start, so that clusters are seeds: each seed has its own pre-training.
        treated = facts.curve(size, "none").assign(pretrain_size=0)
        found.append(compare("pre-training", size, f"pre-training on {size:,} images", treated, base, facts.images))
    effects = [effect for effect in found if effect]
    judge(effects, facts.target)
    return effects


def pretraining_answer(facts: Facts, effects: Sequence[Effect]) -> str:
    """Is pre-training worth it? One sentence, for the largest size.

    Args:
        facts: the study's.
        effects: from `pretraining_effects`.
    """
    if not effects:
        return _pretraining_not_asked(facts)
    largest = effects[-1]
    several = f" (the largest of {len(effects)} sizes)" if len(effects) > 1 else ""
    text = f"{largest.words(facts.target).capitalize()}: {largest.name}{several} changes mIoU by "
    return f"{text}{largest.told('label size')}."


def pretraining_items(facts: Facts, effects: Sequence[Effect]) -> list[Item]:
    """What pre-training is worth: by size, by number of labels for the largest size, and for the next doubling.

    Args:
        facts: the study's.
        effects: from `pretraining_effects`.
    """
    if not effects:
        return [Item(_pretraining_not_asked(facts), {"asked": False})]
    items = []
    for effect in effects:
        text = f"{effect.name[0].upper()}{effect.name[1:]}: {effect.words(facts.target)}. {effect.told('label size')}."
        items.append(Item(text, effect.as_dict(facts.target)))
    largest = effects[-1]
    worth = transfer(facts.frame[facts.frame["intermediate"] == "none"])
    worth = worth[worth["pretrain_size"] == largest.what]
    start = sorted(facts.curve(0, "none")["finetune_size"].unique())
    for row in largest.table.to_dict("records"):
        labels = int(row["finetune_size"])
        mine = worth[worth["finetune_size"] == labels].iloc[0]
        text = f"With {labels:,} labels: {interval_words(row)}; {_in_labels(mine, labels, start, undecided(row))}."
        data = {"pretrain_size": largest.what, "finetune_size": labels}
        data |= {key: row[key] for key in ("n", "mean", "low", "high")}
        data |= {"labels_worth": mine["labels_worth"], "ratio": mine["ratio"], "censored": mine["censored"]}
        items.append(Item(text, data | {"ratio_low": mine["low"], "ratio_high": mine["high"]}))
    known = largest.table.dropna(subset="low")
    if (known["low"] > 0).any() and (known["high"] < 0).any():
        text = "It depends on the labels: intervals are clear of zero on both sides, so the average says little."
        items.append(Item(text))
    return [*items, _more_images(facts, effects)]


def _pretraining_not_asked(facts: Facts) -> str:
    if not facts.sizes:
        size = facts.pool("pretrain") or "<your unlabelled images>"
        return f"Not asked by this study; add `grid.pretrain_sizes: [0, {size}]`."
    if 0 not in facts.grid["pretrain_sizes"]:
        sizes = [0, *facts.grid["pretrain_sizes"]]
        return f"Not asked by this study: no random start to compare with; add `grid.pretrain_sizes: {sizes}`."
    if "none" not in facts.grid["intermediates"]:
        return "Not asked by this study: every cell has a task; add `none` to `grid.intermediates`."
    return "Not known yet: no seed has a cell with and one without pre-training."


def _in_labels(row: pd.Series, labels: int, start: Sequence[int], may_be_zero: bool) -> str:
    """How many labels a random start would need for the same mIoU, in words.

    Args:
        row: from `transfer`.
        labels: how many the pre-trained cell has.
        start: label sizes of the random start, in ascending order.
        may_be_zero: whether the interval of the difference in mIoU includes zero.
    """
    if len(start) < 2:
        return "what that is in labels is not known, as the random start has one label size"
    open_ended = row["n"] >= LEAST_CLUSTERS and pd.isna(row["low"]) and pd.isna(row["high"])
    if open_ended or (may_be_zero and row["censored"]):
        return NOT_TOLD
    if row["censored"] == "beyond":
        worth = f"more than {start[-1]:,}"
    elif row["censored"] == "below":
        worth = f"fewer than {start[0]:,}"
    else:
        worth = f"{row['labels_worth']:,.0f}"
    if row["n"] < LEAST_CLUSTERS:
        interval = f"fewer than {LEAST_CLUSTERS} seeds, no interval"
    else:
        low = f"fewer than {start[0]:,}" if pd.isna(row["low"]) else f"{row['low'] * labels:,.0f}"
        high = f"more than {start[-1]:,}" if pd.isna(row["high"]) else f"{row['high'] * labels:,.0f}"
        interval = f"{low} to {high}"
    return f"they do what {worth} would from a random start ({interval})"


def _more_images(facts: Facts, effects: Sequence[Effect]) -> Item:
    """What the next doubling of unlabelled images would bring, if it is like that between the two largest sizes."""
    sizes = [int(effect.what) for effect in effects]
    if len(sizes) < 2:
        text = "What the next doubling of unlabelled images would bring, one size above 0 cannot say."
        return Item(text, {"asked": False})
    small, large = sizes[-2:]
    doublings = math.log2(large / small)
    frames = (facts.curve(size, "none").assign(pretrain_size=0) for size in (large, small))
    effect = compare("pre-training", large, f"{small:,} to {large:,} images", *frames, facts.images, doublings)
    if effect is None:
        return Item(f"No seed has both {small:,} and {large:,} pre-training images.", {"asked": True})
    judge([effect], facts.target)
    text = (
        f"A doubling, from {small:,} to {large:,} unlabelled images: {effect.told('label size')}. For the next, to "
        f"{2 * large:,}, this is an extrapolation: a guess, too high where returns fall."
    )
    data = {"smaller": small, "larger": large, "extrapolated_to": 2 * large}
    return Item(text, data | effect.as_dict(facts.target))


# Intermediate tasks


def task_effects(facts: Facts) -> list[Effect]:
    """The effect of each intermediate task against the cells without one, and its verdict.

    Args:
        facts: the study's.

    Returns:
        Effects in the order of the grid; none for a task that shares no seed with the cells without one.
    """
    by_task = facts.frame.groupby("intermediate")
    if "none" not in by_task.groups:
        return []
    base = by_task.get_group("none")
    there = [task for task in facts.tasks if task in by_task.groups]
    found = [compare("task", task, task, by_task.get_group(task), base, facts.images) for task in there]
    effects = [effect for effect in found if effect]
    judge(effects, facts.target)
    return effects


def tasks_answer(facts: Facts, effects: Sequence[Effect]) -> str:
    """Will the intermediate task hurt? The tasks by verdict, with their effects.

    Args:
        facts: the study's.
        effects: from `task_effects`.
    """
    if not effects:
        return _tasks_not_asked(facts)
    said: dict[str, list[str]] = {}
    for effect in effects:
        interval = effect.why if math.isnan(effect.low) else span(effect.low, effect.high)
        number = f"{effect.name}, {in_points(effect.mean)} points ({interval})"
        said.setdefault(effect.words(facts.target), []).append(number)
    return " ".join(f"{words[0].upper()}{words[1:]}: {'; '.join(names)}." for words, names in said.items())


def task_items(facts: Facts, effects: Sequence[Effect]) -> list[Item]:
    """What each intermediate task did, and which tasks are not known yet.

    Args:
        facts: the study's.
        effects: from `task_effects`.

    Raises:
        InputError: a damaged pack manifest.
    """
    if not effects:
        return [Item(_tasks_not_asked(facts), {"asked": False})]
    items = []
    for effect in effects:
        text = f"{effect.name}: {effect.words(facts.target)}. {effect.told('cell')}."
        row = effect.table.loc[effect.table["mean"].abs().idxmax()]
        if len(effect.table) > 1:
            where = f"{start_words(int(row['pretrain_size']))}, {row['finetune_size']:,} labels"
            text += f" Furthest from zero with {where}: {interval_words(row)}."
        if _sees_masks(facts, effect.name):
            text += " It learns from masks of the segmentation's own training images: more labels by another name."
        furthest = {key: row[key] for key in ("pretrain_size", "finetune_size", "n", "mean", "low", "high")}
        items.append(Item(text, effect.as_dict(facts.target) | {"furthest": furthest}))
    if missing := [task for task in facts.tasks if task not in {effect.name for effect in effects}]:
        items.append(Item(f"Not known yet: {', '.join(missing)}; no seed has a cell with and one without."))
    return items


def _tasks_not_asked(facts: Facts) -> str:
    if not facts.tasks:
        return "Not asked by this study; add a task, as `grid.intermediates: [none, <task>]`."
    if "none" not in facts.grid["intermediates"]:
        return "Not asked by this study: no cell is without a task; add `none` to `grid.intermediates`."
    return "Not known yet: no seed has a cell with and one without a task."


def _sees_masks(facts: Facts, task: str) -> bool:
    """Whether a task learns from the masks of the segmentation's own pack."""
    if facts.config["intermediate"][task]["target"] == "image":
        return False
    segmentation = facts.manifest("segmentation")
    own = None if segmentation is None else facts.manifest(task)
    return own is not None and segmentation is not None and own.get("sha256") == segmentation.get("sha256")
