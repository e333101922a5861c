"""What a study's results hold, read once, and the thresholds and wording that sections of the advice share.

Frames hold fractions; text gives percent and percentage points.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from viny.evidence.advice.trainings import Trainings, measured_on_others, on_images, read_record, trained_on_these
from viny.evidence.advice.trial import AtHand, images_at_hand, own_side
from viny.evidence.statistics.arms import KEY
from viny.evidence.statistics.crossed import Runs, Score, crossed, read_scores
from viny.evidence.tables import read_metrics, with_arms
from viny.evidence.verdicts import Decision, decide, in_points, span, start_in_words
from viny.runtime.errors import InputError
from viny.study.arms import settings_of
from viny.study.changes import changed
from viny.study.grid import Cell, Reference, arms, base_cells, cells, has_arms, references
from viny.study.layout import metrics_file, pack_manifest
from viny.study.unanswered import LEAST_STEPS, pretraining_steps

TARGET = 1.0  # points that an interval should reach on either side
FALLING = 0.05  # of the loss, from the second-last tenth of epochs to the last; a larger fall means no convergence
RARE = 0.01  # IoU below which a class counts as missed; one that half of the cells miss is hardly ever found
OFTEN = 0.25  # share of the cells; a class that this many miss is often missed
NEAR = 0.1  # of the way from a constant answer's mIoU to 1; a model within this is near the constant answer
SHOWN = 4  # names in a list, before 'and n more'
EXCESS = 1.2  # times the largest size; a new size below this tells nothing new


@dataclass(frozen=True, eq=False)  # frames have no single truth value
class Facts:
    """A study's settings and results, and what is asked of them.

    Attributes:
        root: the study's folder.
        study: its resolved settings.
        config: these as its first arm has them, which all advice is about; its grid's axes are those of this arm.
        target: points of mIoU, see `advise`.
        minutes_per_mask: minutes to label an image; None if unknown.
        cells: all cells of that arm.
        missing: cells without metrics.
        outdated: cells measured on images other than the study's current ones.
        done: all other cells.
        current: the cells of all arms that were evaluated, on these images.
        references: the U-Nets that are trained, on the study's current images.
        metrics: one row for each cell in `done`, see `read_metrics`.
        frame: the rows of `metrics` that have an mIoU.
        scores: mIoU by seed and cell, with the influence of each test image, see `crossed.read_scores`.
        arm_scores: the same of `current`, keyed by `statistics.arms.KEY`; empty in a study with one arm.
        runs: the same as arrays.
        decisions: what the study decides, at the target.
        test_images: how many there are, in ascending order; one number unless the test set moves.
        sizes: pre-train sizes above 0, in ascending order.
        tasks: intermediate tasks except `none`, in the order of the grid.
        trainings: how long they took, and how they ended.
        held_out: what the held-out loss of pre-training says, see `held_out.held_out_table`; no rows without one.
        falling: by stage and kind of training, the median fall of the loss at the end, if above `FALLING`; without
            pre-trainings whose held-out loss rises.
        steps_per_epoch: of pre-training, by size.
        short: by size, the total steps of pre-training, if fewer than `LEAST_STEPS`; likewise.
        at_hand: the images that there are.
        side: the shorter side of a labelled image, the median, pixels; 0 if unknown.
    """

    root: Path
    study: Mapping[str, Any]
    config: Mapping[str, Any]
    target: float
    minutes_per_mask: float | None
    cells: tuple[Cell, ...]
    missing: tuple[Cell, ...]
    outdated: tuple[Cell, ...]
    done: tuple[Cell, ...]
    current: tuple[Cell, ...]
    references: tuple[Reference, ...]
    metrics: pd.DataFrame
    frame: pd.DataFrame
    scores: Mapping[tuple[int, Hashable], Score]
    arm_scores: Mapping[tuple[int, Hashable], Score]
    runs: Runs
    decisions: tuple[Decision, ...]
    test_images: tuple[int, ...]
    sizes: tuple[int, ...]
    tasks: tuple[str, ...]
    trainings: Trainings
    held_out: pd.DataFrame
    falling: Mapping[tuple[str, int | str], float]
    steps_per_epoch: Mapping[int, int]
    short: Mapping[int, int]
    at_hand: AtHand
    side: int

    @property
    def grid(self) -> Mapping[str, Any]:
        return self.config["grid"]

    @property
    def called(self) -> str:
        """The study's folder as the caller names it, for commands."""
        return shlex.quote(str(self.root))

    def refused(self, change: Mapping[str, Any]) -> bool:
        """Whether `viny check` would refuse the study's settings with a change."""
        return bool(self.at_hand.refusal(self.study, change))

    def changed(self, change: Mapping[str, Any]) -> dict[str, Any]:
        """The study's settings with a change, as its first arm has them."""
        return _of_first_arm(changed(self.study, change))

    def cells_with(self, grid: Mapping[str, Sequence[Any]]) -> list[Cell]:
        """The cells of the arm under a changed grid."""
        return base_cells(changed(self.study, {"grid": grid}))

    def curve(self, size: int, task: str) -> pd.DataFrame:
        """The rows of `frame` for one pre-train size and task: all label sizes and seeds."""
        return self.frame[(self.frame["pretrain_size"] == size) & (self.frame["intermediate"] == task)]

    def decided(self, kind: str) -> list[Decision]:
        """The decisions of a kind, see `viny.evidence.verdicts`."""
        return [decision for decision in self.decisions if decision.kind == kind]

    def manifest(self, pack: str) -> Mapping[str, Any] | None:
        """A pack's manifest; None before the pack is made.

        Raises:
            InputError: the file is not a manifest.
        """
        path = pack_manifest(self.root, pack)
        return read_record(path, "a pack manifest") if path.is_file() else None

    def pool(self, pack: str) -> int | None:
        """The number of images in a pack; None before the pack is made."""
        manifest = self.manifest(pack)
        return None if manifest is None else manifest.get("count")


def gather_facts(root: Path, config: Mapping[str, Any], target: float, minutes_per_mask: float | None) -> Facts:
    """Read a study's results.

    Args:
        root: the study's folder.
        config: its resolved settings.
        target: points of mIoU, see `advise`.
        minutes_per_mask: minutes to label an image; None if unknown.

    Returns:
        The facts from the evaluated cells.

    Raises:
        InputError: no evaluated cell, none measured on the current images, none with an mIoU, or a damaged file.
    """
    study, config = config, _of_first_arm(config)
    every = base_cells(study)
    evaluated = [cell for cell in cells(study) if metrics_file(root, cell).is_file()]
    stale = set(measured_on_others(root, evaluated))
    current = [cell for cell in evaluated if cell not in stale]
    known = set(evaluated)
    missing = [cell for cell in every if cell not in known]
    there = [cell for cell in every if cell in known]
    outdated = [cell for cell in there if cell in stale]
    done = [cell for cell in there if cell not in stale]
    if there and not done:
        raise InputError(
            f"{root}: nothing current to advise on: all {len(there)} evaluated cells were measured on other images "
            f"than {pack_manifest(root, 'segmentation')} lists; run the study again"
        )
    if not done:
        raise InputError(
            f"{root}: none of the {len(every)} cells of study {config['study']} is evaluated; run the "
            "workflow first (`viny status` says how far it is)"
        )
    metrics = read_metrics([metrics_file(root, cell) for cell in done])
    frame = metrics.dropna(subset="miou").reset_index(drop=True)
    if frame.empty:
        raise InputError(f"{root}: no evaluated cell has an mIoU; look at its masks with `viny verify`")
    scores: Mapping[tuple[int, Hashable], Score]
    arm_scores: Mapping[tuple[int, Hashable], Score] = {}
    if has_arms(study):
        of_all = with_arms(read_metrics([metrics_file(root, cell) for cell in current]))
        arm_scores = read_scores(of_all, root / "metrics", by=KEY)
        first = arms(study)[0].start, arms(study)[0].variant
        scores = {(seed, key[2:]): score for (seed, key), score in arm_scores.items() if key[:2] == first}
    else:
        scores = read_scores(frame, root / "metrics")
    runs = crossed(scores)
    trainings = Trainings(root, config, there, outdated)
    held_out = trainings.held_out()
    rising = set(held_out["pretrain_size"][held_out["verdict"] == "rising"])
    falls = {key: float(np.median(drops)) for key, drops in trainings.drops().items()}
    sizes = sorted(size for size in config["grid"]["pretrain_sizes"] if size)
    steps_per_epoch = {size: math.ceil(size / config["pretrain"]["batch_size"]) for size in sizes}
    steps = {size: pretraining_steps(config, size) for size in sizes}
    return Facts(
        root=root,
        study=study,
        config=config,
        target=target,
        minutes_per_mask=minutes_per_mask,
        cells=tuple(every),
        missing=tuple(missing),
        outdated=tuple(outdated),
        done=tuple(done),
        current=tuple(current),
        references=tuple(trained_on_these(root, references(study))),
        metrics=metrics,
        frame=frame,
        scores=scores,
        arm_scores=arm_scores,
        runs=runs,
        decisions=tuple(decide(runs, target / 100)),
        test_images=tuple(sorted({int(n) for n in metrics["test_images"]})),
        sizes=tuple(sizes),
        tasks=tuple(task for task in config["grid"]["intermediates"] if task != "none"),
        trainings=trainings,
        held_out=held_out,
        falling={
            (stage, what): fall
            for (stage, what), fall in falls.items()
            if fall > FALLING and not (stage == "pretrain" and what in {on_images(size) for size in rising})
        },
        steps_per_epoch=steps_per_epoch,
        short={size: n for size, n in steps.items() if n < LEAST_STEPS and size not in rising},
        at_hand=images_at_hand(study, root),
        side=own_side(root),
    )


def _of_first_arm(config: Mapping[str, Any]) -> dict[str, Any]:
    """A study's settings as its first arm has them, with the axes that this arm has."""
    found = settings_of(config, arms(config)[0])
    keys = {"pretrain_sizes": "pretrain_size", "intermediates": "intermediate", "finetune_sizes": "finetune_size"}
    every = base_cells(config)
    axes = {
        axis: [value for value in config["grid"][axis] if value in {getattr(cell, key) for cell in every}]
        for axis, key in (keys | {"seeds": "seed"}).items()
    }
    return found | {"grid": {**config["grid"], **axes}}


def undecided(row: Mapping[str, Any]) -> bool:
    """Whether the interval from `low` to `high` includes zero, or there is no interval."""
    return not (row["low"] > 0 or row["high"] < 0)


def interval_words(row: Mapping[str, Any]) -> str:
    """A difference in points with its interval, or why there is none.

    Args:
        row: mean, low and high, NaN where undefined.
    """
    if pd.isna(row["mean"]):
        return "no seed has both cells"
    words = "one seed, no interval" if pd.isna(row["low"]) else span(row["low"], row["high"])
    return f"{in_points(row['mean'])} points ({words})"


def start_words(size: int, task: str = "none") -> str:
    """What fine-tuning starts from, in words."""
    words = start_in_words(size)
    return words if task == "none" else f"{words} and task {task}"


def listed(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return "; ".join(names[:SHOWN]) + more
