"""Advice from a study's results: what pre-training, labels and tasks are worth, and which cells would settle the rest.

Numbers are fractions in every frame and in `as_dict`, percent and percentage points in words.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from viny.evidence.metrics import mean_iou_dataset, mean_iou_per_image
from viny.evidence.statistics.effects import ALPHA, LEAST_CLUSTERS, LEVEL, counted, describe, read_confusion
from viny.evidence.statistics.fits import MODELS, fits
from viny.evidence.statistics.gains import marginal_gains, resampled
from viny.evidence.statistics.transfer import NOT_TOLD, transfer
from viny.evidence.tables import GROUP, read_metrics
from viny.evidence.verdicts import (
    ASSURANCE,
    MOST_SEEDS,
    UNKNOWN,
    Effect,
    TestImages,
    bare,
    compare,
    in_points,
    judge,
    seeds_needed,
    span,
    spread_interval,
    target_words,
)
from viny.runtime.errors import InputError
from viny.study.grid import cells
from viny.study.layout import metrics_file, pack_manifest
from viny.study.saved import saved_study
from viny.tools.advice.advice import Advice, Item, Section
from viny.tools.advice.runs import Runs, epochs_key, measured_on_others, read_record
from viny.tools.terminal import duration

TARGET = 1.0  # points: what an interval should reach to either side
FEW_IMAGES = 100  # test images
LEAST_STEPS = 10_000  # of pre-training; the paper took 35,000 or more, and 1,250 to 1,750 cost points here
FALLING = 0.05  # of the loss, from the tenth of epochs before the last to the last tenth
RARE = 0.01  # IoU below which a class counts as missed; hardly ever found where half of the cells miss it,
OFTEN = 0.25  # often missed where this share of them does
NEAR = 0.1  # of the way from a constant answer's mIoU to 1, below which a model is near that answer
SHOWN = 4  # names in a list, before 'and n more'
EXCESS = 1.2  # of the largest number of labels, or of images, below which a larger one tells nothing new


def _interval(row: Mapping[str, Any]) -> str:
    """A difference in points with its interval, or why there is none; of a row with n, mean, low and high."""
    if pd.isna(row["mean"]):
        return "no seed has both cells"
    words = "one seed, no interval" if pd.isna(row["low"]) else span(row["low"], row["high"])
    return f"{in_points(row['mean'])} points ({words})"


def _undecided(row: Mapping[str, Any]) -> bool:
    """Whether an interval holds zero, or there is none."""
    return not (row["low"] > 0 or row["high"] < 0)


def _start(size: int, task: str = "none") -> str:
    words = f"{size:,} pre-training images" if size else "a random start"
    return words if task == "none" else f"{words} and task {task}"


def _cell(size: int, task: str, labels: int) -> str:
    return f"{_start(size, task)}, {labels:,} labels"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return "; ".join(names[:SHOWN]) + more


def _takes(seconds: float | None) -> str:
    return "time not known" if seconds is None else f"about {duration(seconds)} of training"


def advise(
    root: Path, config: Mapping[str, Any] | None = None, target: float = TARGET, minutes_per_mask: float | None = None
) -> Advice:
    """What a study's results say to someone who has to decide, and what would settle the rest.

    Args:
        root: the study's folder.
        config: its settings, resolved; None for those in its study.json.
        target: points of mIoU that an interval should reach to either side, and below which a difference is small.
        minutes_per_mask: what a labelled image costs; None for not known.

    Returns:
        The advice, of the cells that are there.

    Raises:
        InputError: no settings, no evaluated cell, none of the images that are there now, or a damaged file.
    """
    for name, value in (("--target", target), ("--minutes-per-mask", minutes_per_mask)):
        if value is not None and not 0 < value < np.inf:
            raise InputError(f"{name} is {value:g}; expected a number above 0")
    config = saved_study(root) if config is None else dict(config)
    return _Adviser(root, config, target, minutes_per_mask).advice()


class _Adviser:
    def __init__(self, root: Path, config: dict[str, Any], target: float, minutes: float | None) -> None:
        self.root, self.config, self.target, self.minutes = root, config, target, minutes
        self.grid = config["grid"]
        self.cells = cells(config)
        self.missing = [cell for cell in self.cells if not metrics_file(root, cell).is_file()]
        there = [cell for cell in self.cells if cell not in set(self.missing)]
        self.outdated = measured_on_others(root, there)
        gone = {*self.missing, *self.outdated}
        self.done = [cell for cell in self.cells if cell not in gone]
        self.known = set(self.done)
        if there and not self.done:
            raise InputError(
                f"{root}: nothing current to advise on: all {len(there)} evaluated cells were measured on other images "
                f"than {pack_manifest(root, 'segmentation')} lists; run the study again"
            )
        if not self.done:
            raise InputError(
                f"{root}: none of the {len(self.cells)} cells of study {config['study']} is evaluated; run the "
                "workflow first (`viny status` says how far it is)"
            )
        frame = read_metrics([metrics_file(root, cell) for cell in self.done])
        self.every = frame
        self.frame = frame.dropna(subset="miou").reset_index(drop=True)
        if self.frame.empty:
            raise InputError(f"{root}: no evaluated cell has an mIoU; look at its masks with `viny verify`")
        self.images = TestImages(root / "metrics", frame)
        self.tests = sorted({int(n) for n in frame["test_images"]})
        self.sizes = sorted(size for size in self.grid["pretrain_sizes"] if size)
        self.tasks = [task for task in self.grid["intermediates"] if task != "none"]
        self.runs = Runs(root, config, there, self.outdated)
        self.drops = {key: float(np.median(drops)) for key, drops in self.runs.drops().items()}
        section = config["pretrain"]
        self.a_epoch = {size: max(1, size // section["batch_size"]) for size in self.sizes}  # steps
        steps = {size: section["epochs"] * n for size, n in self.a_epoch.items()}
        self.short = {size: n for size, n in steps.items() if n < LEAST_STEPS}

    def advice(self) -> Advice:
        self.pretraining = self._pretraining_effects()
        self.task_effects = self._task_effects()
        for found in (self.pretraining, self.task_effects):
            judge(found, self.target)
        best = self._best()  # which knows the curve of the best cell
        labels = self._labels()
        sections = [
            Section("pretraining", "What pre-training is worth", self._pretraining()),
            Section("labels", "What the next doubling of labels would bring", labels),
            Section("tasks", "What each intermediate task did", self._tasks()),
            Section("next", "What would settle the rest", self._next()),
            Section("warnings", "Warnings", self._warnings()),
            Section("reading", "How to read this", self._reading()),
        ]
        summary = Section("summary", "In short", [*self._outdated(), *best, *self._constant(), *self._short()])
        note = str(self.config.get("note", ""))
        return Advice(
            self.config["study"], note, len(self.cells), len(self.done), len(self.grid["seeds"]), self.tests,
            self.target, [summary, *sections],
        )  # fmt: skip

    def _curve(self, size: int, task: str) -> pd.DataFrame:
        frame = self.frame
        return frame[(frame["pretrain_size"] == size) & (frame["intermediate"] == task)]

    def _pretraining_effects(self) -> list[Effect]:
        start = self._curve(0, "none")
        found = []
        for size in self.sizes:
            # As if it were a task of random starts: then seeds are the clusters, as each has its own pre-training.
            mine = self._curve(size, "none").assign(pretrain_size=0)
            found.append(compare("pre-training", size, f"pre-training on {size:,} images", mine, start, self.images))
        return [effect for effect in found if effect]

    def _task_effects(self) -> list[Effect]:
        by_task = self.frame.groupby("intermediate")
        there = [task for task in ("none", *self.tasks) if task in by_task.groups]
        if "none" not in there:
            return []
        base = by_task.get_group("none")
        found = [compare("task", task, task, by_task.get_group(task), base, self.images) for task in there[1:]]
        return [effect for effect in found if effect]

    # The summary

    def _best(self) -> list[Item]:
        means = self.frame.groupby(GROUP)["miou"].mean().sort_values(ascending=False, kind="stable")
        self.best = here = tuple(means.index[0])
        wide = self.frame.pivot(index="seed", columns=GROUP, values="miou")
        level = describe(wide[here].dropna())
        self._level = level
        rest = {cell: describe((wide[here] - wide[cell]).dropna()) for cell in means.index[1:]}
        # One seed tells nothing from anything.
        alike = [_cell(*cell) for cell, row in rest.items() if not (row["n"] > 1 and row["low"] > 0)]
        interval = "one seed, no interval" if level["n"] < 2 else f"{bare(level['low'])} to {bare(level['high'])}"
        text = f"Best on the test images: {_cell(*here)}, with {bare(level['mean'])} % mIoU ({interval})."
        if level["n"] < 2 and rest:
            text += f" One seed tells none of the {len(rest)} other cells from it."
        elif alike:
            text += f" Of the {len(rest)} other cells {len(alike)} cannot be told from it: {_some(alike)}."
        elif rest:
            text += f" It is above each of the {len(rest)} other cells."
        if rest:
            text += " (Not corrected for so many comparisons, and the best of many looks better than it is.)"
        mine = self.frame.set_index(GROUP).loc[[here]].sort_values("seed")
        name, seeds = mine["cell"].iloc[0], [int(seed) for seed in mine["seed"]]
        text += f" `viny predict` and `viny export` take it as `{name}` (its seeds: {', '.join(map(str, seeds))})."
        data = dict(zip(GROUP, here, strict=True)) | {key: level[key] for key in ("n", "mean", "low", "high")}
        data |= {"cell": name, "seeds": seeds, "not_told_from_it": alike, "others": len(rest)}
        return [Item(text, data)]

    def _outdated(self) -> list[Item]:
        if not self.outdated:
            return []
        evaluated = len(self.outdated) + len(self.done)
        text = f"{len(self.outdated)} of {evaluated} cells were measured on other images and are left out; "
        return [Item(f"{text}run the study again.", {"outdated": [cell.name for cell in self.outdated]})]

    def _constant(self) -> list[Item]:
        """Whether even the best cell is near what the most frequent class everywhere would get."""
        mine = self.frame.set_index(GROUP).loc[[self.best]].sort_values("seed").iloc[0]
        path = self.root / "metrics" / f"{mine['cell']}.npz"
        if not path.is_file():
            return []
        confusion, _ = read_confusion(path)
        pixels = confusion.sum(2)  # [N, C] of each true class
        most = int(pixels.sum(0).argmax())
        constant = np.zeros_like(confusion)
        constant[:, :, most] = pixels
        mean = mean_iou_per_image if mine["miou_is"] == "per_image" else mean_iou_dataset
        level, best = mean(constant, list(range(pixels.shape[1]))), self._level
        if best["mean"] - level < NEAR * (1 - level):
            words = "is near"
        elif best["n"] >= LEAST_CLUSTERS and best["low"] <= level:
            words = "cannot be told from"
        else:
            return []
        manifest = pack_manifest(self.root, "segmentation")
        names = read_record(manifest, "a pack manifest").get("mask_classes", ()) if manifest.is_file() else ()
        name = names[most] if len(names) == pixels.shape[1] else "the most frequent class"
        text = f"Even the best model {words} what always answering {name} would get ({100 * level:.1f} %)."
        return [Item(text, {"constant": name, "miou": level})]

    def _short(self) -> list[Item]:
        effect = next((effect for effect in reversed(self.pretraining)), None)
        if effect:
            several = f" (the largest of {len(self.pretraining)} sizes)" if len(self.pretraining) > 1 else ""
            pretraining = f"{effect.words(self.target).capitalize()}: {effect.name}{several} changes mIoU by "
            pretraining += f"{effect.told('label size')}."
        else:
            pretraining = self._not_asked_pretraining()
        said: dict[str, list[str]] = {}
        for effect in self.task_effects:
            interval = effect.why if math.isnan(effect.low) else span(effect.low, effect.high)
            number = f"{effect.name}, {in_points(effect.mean)} points ({interval})"
            said.setdefault(effect.words(self.target), []).append(number)
        groups = [f"{words[0].upper()}{words[1:]}: {'; '.join(names)}" for words, names in said.items()]
        tasks = ". ".join(groups) or self._not_asked_tasks()
        return [
            Item(f"Is pre-training worth it? {pretraining}", {"question": "pre-training"}),
            Item(f"How many more masks? {self.labels_short}", {"question": "labels"}),
            Item(f"Will the intermediate task hurt? {tasks[0].upper()}{tasks[1:].rstrip('.')}.", {"question": "task"}),
        ]

    # What pre-training is worth

    def _not_asked_pretraining(self) -> str:
        if not self.sizes:
            pool = self._pool("pretrain")
            size = f"{pool:,}".replace(",", "") if pool else "<your unlabelled images>"
            return f"Not asked by this study; add `grid.pretrain_sizes: [0, {size}]`."
        if 0 not in self.grid["pretrain_sizes"]:
            sizes = [0, *self.grid["pretrain_sizes"]]
            return f"Not asked by this study: no random start to compare with; add `grid.pretrain_sizes: {sizes}`."
        if "none" not in self.grid["intermediates"]:
            return "Not asked by this study: every cell has a task; add `none` to `grid.intermediates`."
        return "Not known yet: no seed has a cell with and one without pre-training."

    def _pretraining(self) -> list[Item]:
        if not self.pretraining:
            return [Item(self._not_asked_pretraining(), {"asked": False})]
        items = []
        worth = transfer(self.frame[self.frame["intermediate"] == "none"])
        for effect in self.pretraining:
            text = (
                f"{effect.name[0].upper()}{effect.name[1:]}: {effect.words(self.target)}. {effect.told('label size')}."
            )
            items.append(Item(text, effect.as_dict(self.target)))
        largest = self.pretraining[-1]
        start = sorted(self._curve(0, "none")["finetune_size"].unique())
        for row in largest.table.to_dict("records"):
            mine = worth[
                (worth["pretrain_size"] == largest.what) & (worth["finetune_size"] == row["finetune_size"])
            ].iloc[0]
            labels = int(row["finetune_size"])
            text = f"With {labels:,} labels: {_interval(row)}; {_in_labels(mine, labels, start, _undecided(row))}."
            data = {"pretrain_size": largest.what, "finetune_size": labels}
            data |= {key: row[key] for key in ("n", "mean", "low", "high")}
            data |= {"labels_worth": mine["labels_worth"], "ratio": mine["ratio"], "censored": mine["censored"]}
            items.append(Item(text, data | {"ratio_low": mine["low"], "ratio_high": mine["high"]}))
        ends = largest.table.dropna(subset="low")
        if (ends["low"] > 0).any() and (ends["high"] < 0).any():
            text = "It depends on the labels: intervals are clear of zero on both sides, so the average says little."
            items.append(Item(text))
        return [*items, self._more_images()]

    def _more_images(self) -> Item:
        sizes = [effect.what for effect in self.pretraining]
        if len(sizes) < 2:
            text = "What the next doubling of unlabelled images would bring, one size above 0 cannot say."
            return Item(text, {"asked": False})
        small, large = sizes[-2:]
        doublings = math.log2(large / small)
        frames = (self._curve(size, "none").assign(pretrain_size=0) for size in (large, small))
        effect = compare("pre-training", large, f"{small:,} to {large:,} images", *frames, self.images, doublings)
        if effect is None:
            return Item(f"No seed has both {small:,} and {large:,} pre-training images.", {"asked": True})
        judge([effect], self.target)
        text = (
            f"A doubling, from {small:,} to {large:,} unlabelled images: {effect.told('label size')}. For the next, to "
            f"{2 * large:,}, this is an extrapolation: a guess, too high where returns fall."
        )
        data = {"smaller": small, "larger": large, "extrapolated_to": 2 * large}
        return Item(text, data | effect.as_dict(self.target))

    # The next doubling of labels

    def _labels(self) -> list[Item]:
        size, task, _ = self.best
        curves = [(size, task), (max(self.sizes, default=0), "none"), (0, "none")]
        curves = [curve for curve in dict.fromkeys(curves) if self._curve(*curve)["finetune_size"].nunique() > 1]
        self.labelling: list[Effect] = []
        self.foreseen = True  # whether a form of the first curve says what comes next
        if not curves:
            self.foreseen = len(self.grid["finetune_sizes"]) > 1  # whose own cells come first
            words = f"Not asked by this study: one number of labels; add `grid.finetune_sizes: {self._more_labels()}`."
            if self.foreseen:
                words = "Not known yet: no curve has cells of two numbers of labels."
            self.labels_short = words
            return [Item(words, {"asked": False})]
        items = [self._next_labels(*curve) for curve in curves]
        if any(item.data["next"]["from"] == "last doubling" for item in items):
            text = (
                "Where no fitted curve says what comes next, the last doubling is a guess, too high where returns fall."
            )
            items.append(Item(text))
        return items

    def _next_labels(self, size: int, task: str) -> Item:
        curve = self._curve(size, task)
        steps = marginal_gains(curve)
        steps = steps[steps["along"] == "labels"]
        last = steps.iloc[-1].to_dict()
        small, large = int(last["smaller"]), int(last["larger"])
        measured = f"From {small:,} to {large:,} labels, with {_start(size, task)}: {_interval(last)} a doubling"
        foretold, words = _foretell(curve, large)
        gain = foretold or last
        told = not (_undecided(last) or _undecided(gain))
        first = not self.labelling  # the curve of the best cell where that has one
        beyond = f" To {2 * large:,}: {words if foretold else f'no fitted curve can say, as {words}'}."
        beyond = beyond if foretold or first else ""
        cost = f" {_labelling_cost(gain, large, self.minutes, told)}" if self.minutes and first else ""
        data = {"pretrain_size": size, "intermediate": task, "smaller": small, "larger": large}
        data |= {"measured": {key: last[key] for key in ("n", "mean", "low", "high")}}
        kind = "fit" if foretold else "last doubling"
        data |= {"next": {"to": 2 * large, "from": kind} | {key: gain[key] for key in ("mean", "low", "high")}}
        if first:
            ends = (curve[curve["finetune_size"] == n].assign(finetune_size=0) for n in (large, small))
            name = f"{small:,} to {large:,} labels"
            effect = compare("labels", name, name, *ends, self.images, math.log2(large / small))
            if effect:
                judge([effect], self.target)
                self.labelling.append(effect)
                data["verdict"] = effect.words(self.target)
            self.foreseen = foretold is not None
            short = f"{measured}."
            if not told:
                short = f"Cannot be told: from {small:,} to {large:,} labels, with {_start(size, task)}, a doubling "
                short += f"brings {_interval(last)}."
            self.labels_short = f"{short}{beyond}{cost}"
        return Item(f"{measured}{self._trend(curve, steps)}.{beyond}{cost}", data)

    def _trend(self, curve: pd.DataFrame, steps: pd.DataFrame) -> str:
        """Whether the gain of a doubling falls along a curve; the last against the first, paired within seeds."""
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

    # Intermediate tasks

    def _not_asked_tasks(self) -> str:
        if not self.tasks:
            return "not asked by this study; add a task, as `grid.intermediates: [none, <task>]`."
        if "none" not in self.grid["intermediates"]:
            return "not asked by this study: no cell is without a task; add `none` to `grid.intermediates`."
        return "not known yet: no seed has a cell with and one without a task."

    def _tasks(self) -> list[Item]:
        if not self.task_effects:
            text = self._not_asked_tasks()
            return [Item(text[0].upper() + text[1:], {"asked": False})]
        items = []
        for effect in self.task_effects:
            text = f"{effect.name}: {effect.words(self.target)}. {effect.told('cell')}."
            row = effect.table.loc[effect.table["mean"].abs().idxmax()]
            if len(effect.table) > 1:
                where = f"{_start(int(row['pretrain_size']))}, {row['finetune_size']:,} labels"
                text += f" Furthest from zero with {where}: {_interval(row)}."
            if self._sees_masks(effect.name):
                text += " It learns from masks of the segmentation's own training images: more labels by another name."
            furthest = {key: row[key] for key in ("pretrain_size", "finetune_size", "n", "mean", "low", "high")}
            items.append(Item(text, effect.as_dict(self.target) | {"furthest": furthest}))
        if missing := [task for task in self.tasks if task not in {effect.name for effect in self.task_effects}]:
            items.append(Item(f"Not known yet: {', '.join(missing)}; no seed has a cell with and one without."))
        return items

    def _sees_masks(self, task: str) -> bool:
        paths = [pack_manifest(self.root, name) for name in (task, "segmentation")]
        if self.config["intermediate"][task]["target"] == "image" or not all(path.is_file() for path in paths):
            return False
        own, target = (read_record(path, "a pack manifest").get("sha256") for path in paths)
        return own == target

    # What would settle the rest

    def _next(self) -> list[Item]:
        proposals, remarks = [], []
        if self.missing or self.outdated:
            change = "finish the grid (run the workflow again)"
            proposals.append(self._proposal(change, ["the gaps of this grid"], self.grid["intermediates"]))
        open_effects = [e for e in (*self.pretraining, *self.labelling, *self.task_effects) if e.verdict == "unknown"]
        needs: dict[int, list[Effect]] = {}
        seen = len(self.grid["seeds"])
        for effect in open_effects:
            seeds, remark, data = self._seeds(effect)
            if seeds is not None:
                needs.setdefault(max(seeds, seen + 1), []).append(effect)
            remarks.append(Item(remark, data))
        # The fewest seeds that settle something, and those that settle all that seeds can.
        for n in sorted({min(needs), max(needs)}) if needs else []:
            proposals.append(self._more_seeds(n, [effect for k, found in needs.items() if k <= n for effect in found]))
        further = (self._further_labels(), self._further_images(), self._further_tests(open_effects))
        proposals += [proposal for proposal in further if proposal]

        def price(item: Item) -> float:
            """Seconds a question; missing cells and a first interval come first, what costs an unknown time last."""
            if item.data["change"].startswith("finish"):
                return -np.inf
            if any(effect.name in item.data["settles"] and math.isnan(effect.low) for effect in open_effects):
                return -1.0
            seconds = item.data["seconds"]
            return np.inf if seconds is None else max(seconds, 1.0) / len(item.data["settles"])

        proposals = [*self._longer(), *sorted(proposals, key=price)]
        numbered = [Item(f"{i}. {item.text}", {"rank": i} | item.data) for i, item in enumerate(proposals, 1)]
        return [*numbered, *remarks] or [Item("Nothing that this study asks is open at this target.")]

    def _longer(self) -> list[Item]:
        """Longer trainings, where some are not converged or pre-training is short: other verdicts wait for them."""
        epochs: dict[str, int] = {}
        for (stage, what), drop in self.drops.items():
            if drop > FALLING:
                key = epochs_key(stage, what)
                epochs[key] = 2 * self._section(key)["epochs"]
        if self.short:
            wanted = max(math.ceil(LEAST_STEPS / self.a_epoch[size]) for size in self.short)
            epochs["pretrain.epochs"] = max(wanted, epochs.get("pretrain.epochs", 0))
        if not epochs:
            return []
        times = {key: n / self._section(key)["epochs"] for key, n in epochs.items()}
        anew, trainings, seconds = self.runs.longer(self.cells, times)
        keys = ", ".join(f"`{key}: {n}`" for key, n in epochs.items())
        moved = any(self._section(key)["milestones"] for key in epochs)
        along = " and milestones moved along" if moved else ""
        text = f"Train longer first, as verdicts may turn, with {keys}{along}: {counted(anew, 'cell')} anew, "
        text += f"{counted(trainings, 'training')}, {_takes(seconds)}. For: all that follows."
        data = {"change": keys, "settles": ["all that follows"], "new_cells": anew, "trainings": trainings}
        return [Item(text, data | {"seconds": seconds, "epochs": epochs})]

    def _section(self, key: str) -> Mapping[str, Any]:
        """The settings of the stage, or task, of a key of `_epochs_key`."""
        stage, rest = key.split(".", 1)
        return self.config[stage] if rest == "epochs" else self.config[stage][rest.removesuffix(".epochs")]

    def _seeds(self, effect: Effect) -> tuple[int | None, str, dict[str, Any]]:
        """Seeds that would settle an effect; None where they would not; in words; and as data."""
        name, half, images, goal = effect.name, effect.half, effect.half_images, self.target / 100
        if math.isnan(effect.low):
            seeds = LEAST_CLUSTERS if len(self.grid["seeds"]) < LEAST_CLUSTERS else None
            text = f"{name}: {effect.why}; {LEAST_CLUSTERS} seeds in every cell give one, and a spread to plan with."
            return seeds, text, {"question": name, "seeds": seeds}
        data: dict[str, Any] = {"question": name, "half_width": half, "half_width_images": images}
        if effect.lacks == "images":
            text = f"{name}: ±{bare(half)} points over seeds, ±{bare(images)} over draws of the test images. It takes "
            return None, f"{text}more of those, not more seeds.", data | {"goal": goal, "seeds": None}
        text = f"{name}: ±{bare(half)} points over {effect.seeds:.3g} seeds"
        if half <= goal:
            goal = half / 2
            text += " and still undecided; half of that"
        else:
            text += f"; ±{bare(goal)}"
        low, high = spread_interval(effect.df)
        seeds, *ends = (seeds_needed(goal, effect.se, effect.seeds, effect.df, times) for times in (1, low, high))
        if seeds is not None:
            seeds = max(seeds, len(self.grid["seeds"]) + 1)
        said = [f"more than {MOST_SEEDS}" if n is None else str(n) for n in (seeds, *ends)]
        text += f" takes about {said[0]} seeds ({said[1]} to {said[2]}, as the true spread is {low:.2g} to {high:.2g} "
        text += "times the one seen)."
        if seeds is None:
            text += " Seeds are not the way: take this width, or train so that the effect is larger."
        if images > self.target / 100:
            text += f" The draw of the test images is another ±{bare(images)}: more of those too."
        data |= {"goal": goal, "seeds": seeds, "seeds_low": ends[0], "seeds_high": ends[1]}
        return seeds, text, data | {"spread_low": low, "spread_high": high}

    def _proposal(self, change: str, settles: Sequence[str], tasks: Iterable[str], **grid: Sequence[Any]) -> Item:
        """A change of the grid, its new cells and trainings, and what they cost.

        Args:
            change: in words.
            settles: questions.
            tasks: that these questions need.
            grid: what is other than now.
        """
        every = self.grid["intermediates"]
        alone = [task for task in every if task in set(tasks)]
        new, trainings, seconds = self._further(**grid)
        text = f"{change}: {counted(new, 'new cell')}, {counted(trainings, 'training')}, {_takes(seconds)}. For: "
        text += f"{', '.join(settles)}."
        data = {"change": change, "settles": list(settles), "new_cells": new, "trainings": trainings}
        data["seconds"] = seconds
        if len(alone) < len(every):
            less, trainings, seconds = self._further(**grid, intermediates=alone)
            text += (
                f" With `grid.intermediates: [{', '.join(alone)}]`, whose tables then show no other, {less} cells and "
            )
            text += f"{_takes(seconds)}."
            data["alone"] = {"intermediates": alone, "new_cells": less, "trainings": trainings, "seconds": seconds}
        return Item(text, data)

    def _further(self, **grid: Sequence[Any]) -> tuple[int, int, float | None]:
        """New cells, trainings and seconds of a changed grid."""
        new = [cell for cell in cells({"grid": {**self.grid, **grid}}) if cell not in self.known]
        return len(new), *self.runs.cost(new)

    def _more_seeds(self, n: int, found: Sequence[Effect]) -> Item:
        unused = (seed for seed in count() if seed not in self.grid["seeds"])
        seeds = [*self.grid["seeds"], *(next(unused) for _ in range(n - len(self.grid["seeds"])))]
        tasks = ["none", *(str(effect.what) for effect in found if effect.kind == "task")]
        tasks += [self.best[1] for effect in found if effect.kind == "labels"]
        return self._proposal(f"`grid.seeds: {seeds}`", [effect.name for effect in found], tasks, seeds=seeds)

    def _pool(self, name: str) -> int | None:
        """Images of a pack; None before it is made."""
        path = pack_manifest(self.root, name)
        if not path.is_file():
            return None
        return read_record(path, "a pack manifest").get("count")

    def _more_labels(self) -> list[int]:
        """The label sizes and further ones, as many as a fit takes, or one: doublings of the largest, as far as there
        are images, else in the middle of the widest gap."""
        sizes, pool = sorted(self.grid["finetune_sizes"]), self._pool("segmentation")
        most = np.inf if pool is None else pool - self.tests[-1]
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

    def _further_labels(self) -> Item | None:
        sizes = self._more_labels()
        if self.foreseen or len(sizes) == len(self.grid["finetune_sizes"]):
            return None
        change = f"`grid.finetune_sizes: {sizes}`"
        item = self._proposal(change, ["what further labels bring"], ["none", self.best[1]], finetune_sizes=sizes)
        text = item.text
        if sizes[-1] == max(self.grid["finetune_sizes"]):
            text += " Beside the test images too few labelled ones are left to go beyond; label more for that."
        return Item(text, item.data)

    def _further_images(self) -> Item | None:
        if len(self.sizes) != 1 or not self.pretraining or self.pretraining[0].verdict == "down":
            return None
        pool, size = self._pool("pretrain"), 2 * self.sizes[0]
        size = min(size, pool) if pool else size
        if size < EXCESS * self.sizes[0]:
            size = self.sizes[0] // 2
        sizes = sorted({*self.grid["pretrain_sizes"], size})
        change = f"`grid.pretrain_sizes: {sizes}`"
        settles = ["what a doubling of unlabelled images brings"]
        return self._proposal(change, settles, ["none"], pretrain_sizes=sizes)

    def _further_tests(self, open_effects: Sequence[Effect]) -> Item | None:
        goal = self.target / 100
        noisy = [e for e in open_effects if e.lacks == "images" or e.half_images > goal]
        if not noisy:
            return None
        tests = self.tests[-1]
        # Noise falls with the root of the images.
        wanted = math.ceil(max(tests * (e.half_images / min(goal, e.half_images / 2)) ** 2 for e in noisy))
        trainings, seconds = self.runs.anew(self.cells)
        pool = self._pool("segmentation")
        change = f"`segmentation.test_size: {wanted}`"
        names = [effect.name for effect in noisy]
        text = f"{change}: all {len(self.cells)} cells are fine-tuned anew, {_takes(seconds)}. For: {', '.join(names)}."
        if pool is not None and wanted + max(self.grid["finetune_sizes"]) > pool:
            text += f" There are {pool:,} labelled images in all, too few; label more test images."
        data = {"change": change, "settles": names, "new_cells": len(self.cells), "trainings": trainings}
        return Item(text, data | {"seconds": seconds})

    # Warnings

    def _warnings(self) -> list[Item]:
        items = self._outdated()
        if self.missing:
            names = _some([cell.name for cell in self.missing])
            text = f"{len(self.missing)} of {len(self.cells)} cells are missing, so averages are over fewer: {names}."
            items.append(Item(text, {"missing": [cell.name for cell in self.missing]}))
        seeds = self.frame["seed"].nunique()
        if seeds == 1:
            items.append(Item("One seed: no interval anywhere, and any difference may be chance.", {"seeds": 1}))
        elif seeds == 2:
            text = "Two seeds: their spread is hardly known, so intervals are very wide, and some are left out."
            items.append(Item(text, {"seeds": 2}))
        items += self._small_test_set()
        switches = self.config["switches"]
        if switches["test_set"] == "moving":
            items.append(
                Item("Each label size has test images of its own, so that curves mix test sets.", {"moving": True})
            )
        if switches["subsets"] == "shared":
            text = (
                "All seeds learn from the same labelled images of a size: intervals leave out the luck of which images "
                "were labelled (`switches.subsets: per_seed` has it in)."
            )
            items.append(Item(text, {"subsets": "shared"}))
        items += [*self._duplicates(), *self._classes(), *self._short_pretraining(), *self._falling()]
        if note := self.config.get("note"):
            items.append(Item(f"The study's own note: {note}", {"note": note}))
        return items

    def _small_test_set(self) -> list[Item]:
        if self.tests[0] >= FEW_IMAGES:
            return []
        names = self.frame.set_index(GROUP).loc[[self.best], "cell"]
        half = stats.norm.ppf((1 + LEVEL) / 2) * self.images.se(dict.fromkeys(names, 1 / len(names)))
        text = f"Only {self.tests[0]} test images"
        if not math.isnan(half):
            text += f": their draw alone moves the best cell's mIoU by ±{bare(half)} points (95 %)"
        return [Item(f"{text}; seeds do not mend that.", {"test_images": self.tests[0], "half_width": half})]

    def _duplicates(self) -> list[Item]:
        path = self.root / "tables" / "duplicates.csv"
        if not path.is_file():
            return []
        try:
            pairs = pd.read_csv(path, keep_default_na=False)
            found = pairs.groupby(["kind", "role"])["test_image"].nunique()
        except (ValueError, KeyError) as error:
            raise InputError(f"{path}: not a table of duplicates ({error}); delete it and run the workflow") from error
        if found.empty:
            return []
        words = [f"{n} {'in' if kind == 'exact' else 'by their look in'} {role}" for (kind, role), n in found.items()]
        text = f"Test images that are also among training images: {'; '.join(words)}. tables/duplicates.csv names them."
        return [Item(text, {f"{role}, {kind}": int(n) for (kind, role), n in found.items()})]

    def _classes(self) -> list[Item]:
        """The classes that are hardly ever found, in one line, and those that do not occur, in another."""
        ious = self.every[[column for column in self.every if column.startswith("iou_")]]
        ious = ious.rename(columns=lambda column: column.removeprefix("iou_"))
        nowhere = [name for name in ious if ious[name].isna().all()]
        ious = ious.drop(columns=nowhere)
        missed = (ious < RARE).sum().sort_values(ascending=False, kind="stable")
        hardly, often = missed[2 * missed >= len(ious)], missed[missed >= OFTEN * len(ious)]
        often = often.drop(hardly.index)
        texts = []
        kinds = (("hardly ever found", hardly, "half"), ("often missed", often, "a quarter"))
        for words, some, share in kinds:
            if len(some):
                names = [f"{name} ({n}, at best {100 * ious[name].max():.1f} %)" for name, n in some.items()]
                texts.append(
                    f"{len(some)} of {len(missed)} classes {'is' if len(some) == 1 else 'are'} {words} (IoU below "
                    f"{100 * RARE:g} % in {share} of the {len(ious)} cells or more): {_some(names)}."
                )
        items = []
        if texts:
            text = f"{' '.join(texts)} Such classes hold mIoU down, and their luck moves it."
            items.append(Item(text, {"hardly_ever_found": hardly.to_dict(), "often_missed": often.to_dict()}))
        if nowhere:
            text = f"Neither in the test images nor predicted, so not counted in mIoU: {_some(nowhere)}."
            items.append(Item(text, {"nowhere": nowhere}))
        return items

    def _short_pretraining(self) -> list[Item]:
        if not self.short:
            return []
        words = ", ".join(f"{n:,} steps on {size:,} images" for size, n in self.short.items())
        text = (
            f"Short pre-training: {words}. Fewer than {LEAST_STEPS:,} have cost points in this project's own studies; "
        )
        text += "the paper took 35,000 or more. A longer one may turn the verdict."
        return [Item(text, {"steps": self.short})]

    def _falling(self) -> list[Item]:
        words, data = [], []
        for (stage, what), drop in self.drops.items():
            if drop > FALLING:
                name = {"pretrain": f"pre-training {what}", "finetune": f"fine-tuning on {what} labels"}.get(stage)
                words.append(f"{name or what} by {100 * drop:.0f} %")
                data.append({"stage": stage, "what": what, "drop": drop})
        if not words:
            return []
        text = (
            f"The loss was still falling at the end: {'; '.join(words)} (median; from the tenth of epochs before the "
        )
        text += f"last to the last tenth; the limit is {100 * FALLING:g} %). Train longer."
        return [Item(text, {"falling": data})]

    def _reading(self) -> list[Item]:
        words = [
            f"""Points are percentage points of mIoU. Brackets hold {100 * LEVEL:g} % intervals over seeds, paired
            within seeds. They do not hold the draw of the test images, which is weighed beside them. About one in
            {1 / (1 - LEVEL):.0f} misses the truth; those of single cells and label sizes are not corrected for that,
            and a cell that is picked as the furthest looks further than it is.""",
            f"""An average effect is named where its interval is clear of zero, p is {ALPHA:g} or less after Holm's
            correction over the effects of its kind (t test; sign flips too where there are encoders enough), and the
            draw of the test images does not reach zero. One within ±{target_words(self.target)} by both intervals is
            small, on average. Else it {UNKNOWN}.""",
            f"""Seeds: so many that {100 * ASSURANCE:g} % of such studies reach ±{target_words(self.target)} (Kupper and
            Hafner 1989), from the spread seen; more than {MOST_SEEDS} are no advice. After longer trainings, proposals
            stand in the order of questions settled for the time, which is that of trainings one after another, as
            measured here. `--target` sets another target.""",
        ]
        return [Item(" ".join(text.split())) for text in words]


def _in_labels(row: pd.Series, labels: int, start: Sequence[int], undecided: bool) -> str:
    """A row of `returns.transfer` as 'they do what m labels would'; undecided where the difference may be zero."""
    if len(start) < 2:
        return "what that is in labels is not known, as the random start has one label size"
    open_ended = row["n"] >= LEAST_CLUSTERS and pd.isna(row["low"]) and pd.isna(row["high"])
    if open_ended or (undecided and row["censored"]):
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


def _foretell(curve: pd.DataFrame, largest: int) -> tuple[dict[str, float] | None, str]:
    """What the best identified fit of a curve says of the next doubling; None and why where there is none."""
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


def _labelling_cost(gain: Mapping[str, float], labels: int, minutes: float, told: bool) -> str:
    """What the next doubling costs in labelling, at minutes a mask; a point's price only of a gain that can be told."""
    total = labels * minutes
    text = f"At {minutes:g} minutes a mask its {labels:,} masks are {total / 60:,.1f} h"
    if not told:
        return f"{text}; what a point costs cannot be told."
    if not gain["mean"] > 0:
        return f"{text}, for no gain."
    each, least, most = (total / (100 * gain[key]) for key in ("mean", "high", "low"))
    return f"{text}, {each:,.0f} minutes a point ({least:,.0f} to {most:,.0f})."
