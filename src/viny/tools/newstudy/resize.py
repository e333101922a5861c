"""Sizes of a study that fit a time: what its questions need, and what is cut first when time is short.

From the most to the least, as long as it does not fit (docs/sizes.md says the same):

1. Seeds beyond three, then trainings longer than answers take.
2. Label sizes beyond four, then pre-train sizes between the smallest and the largest.
3. A smaller model on smaller images, in a new study only.
4. Steps of pre-training, down to 2,000; then those of tasks and of fine-tuning, down to 200 on the most images.
5. Label sizes, down to three and two; then unlabelled images, halved up to four times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from viny.learning.settings import moved_milestones
from viny.runtime.errors import InputError
from viny.runtime.units import listed
from viny.study.config import merge, resolve
from viny.study.inventory import Images
from viny.study.protocols import BUILT_IN_TASKS
from viny.study.unanswered import (
    FEW_LABELS,
    LEAST_FINETUNE_STEPS,
    LEAST_LABEL_SIZES,
    LEAST_SEEDS,
    LEAST_STEPS,
    unanswered,
)
from viny.study.workload import UNKNOWN
from viny.tools.newstudy.edit import KeyPath, nested

TASK_STEPS = 1000  # of an intermediate task
# The fewest steps that are worth running, on the fewest and the most images: answers are then open, and said to be.
SHORT_PRETRAIN, SHORT_TASK, SHORT_FINETUNE = 2000, 200, (100, 200)
LONGER = 5  # times the steps that answers take: beyond, time goes into seeds
MOST_SEEDS = 10
LEAST_UNLABELLED = 400  # to be halved for a further pre-train size
HALVINGS = 4  # of the unlabelled images
BISECTIONS = 7
MARGIN = 1.1  # of a time that is proposed: the next measurement may find a slower machine
FULL = 0.9  # of the time; a study that takes this much of it stays as it is

# Lengths of trainings: 0 the shortest, 0.5 as long as answers take but for pre-training, 1 for all, 2 the longest.
HALF, ENOUGH, LONG, MOST = 0.5, 1.0, 1.7, 2.0  # from LONG on, further seeds are worth more


@dataclass(frozen=True)
class Fit:
    """Sizes that fit a time.

    Attributes:
        changes: values by path; none if the study fits as it is.
        hours: what it then takes, by forecast.
    """

    changes: dict[KeyPath, Any]
    hours: float


@dataclass(frozen=True)
class Rung:
    """Lists of a grid, and between which lengths its trainings may be."""

    lists: Mapping[str, list[int]]
    least: float
    most: float


Price = Callable[[Mapping[str, Any]], float]  # hours of resolved settings


def fitted(raw: Mapping[str, Any], images: Images, price: Price, minutes: float, answers: bool = False) -> Fit | None:
    """Sizes with which a study takes about so many minutes, never more.

    Args:
        raw: what its file says.
        images: from `count_images`.
        price: hours that a study takes, see `machine.Machine`.
        minutes: from start to end.
        answers: whether only sizes count whose trainings are as long as answers take.

    Returns:
        The sizes, and what they take; None if nothing fits.
    """
    config, limit = resolve(raw), minutes / 60

    def priced(rung: Rung, length: float) -> Fit:
        changes = sizes(raw, config, images, rung.lists, length)
        return Fit(changes, price(resolve(merge(raw, nested(changes)))))

    rungs = list(_rungs(config, images, answers))
    plain = [rung for rung in rungs if rung.least < LONG]
    if priced(plain[0], LONG).hours > limit:
        rungs = plain
    for rung in rungs:
        best = priced(rung, rung.least)
        if best.hours > limit:
            continue
        low, high = rung.least, rung.most
        whole = priced(rung, high)
        if whole.hours <= limit:
            return whole
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            tried = priced(rung, middle)
            low, high, best = (middle, high, tried) if tried.hours <= limit else (low, middle, best)
        return best
    return None


def resized(raw: Mapping[str, Any], images: Images, price: Price, minutes: float) -> tuple[float, Fit]:
    """What a study takes as it is, and sizes with which it takes about so many minutes.

    Args, see `fitted`. Sizes stay as they are if the study fits and uses the time.

    Raises:
        InputError: no sizes fit.
    """
    before = price(resolve(raw))
    if FULL * minutes <= 60 * before <= minutes:
        return before, Fit({}, before)
    found = fitted(raw, images, price, minutes)
    if found is None and 60 * before <= minutes:
        return before, Fit({}, before)
    if found is None:
        raise InputError(too_short(minutes, 60 * least_hours(raw, images, price)))
    return before, found


def least_hours(raw: Mapping[str, Any], images: Images, price: Price) -> float:
    """What the smallest study takes that is worth running."""
    config = resolve(raw)
    changes = (sizes(raw, config, images, rung.lists, rung.least) for rung in _rungs(config, images, False))
    *_, last = changes
    return price(resolve(merge(raw, nested(last))))


def time_alone(raw: Mapping[str, Any], images: Images, price: Price, study: Path) -> list[str]:
    """A line on which of a study's open questions take only time, and how much by forecast; none if no one does."""
    config = resolve(raw)
    longer = [
        resolve(merge(raw, nested(sizes(raw, config, images, rung.lists, ENOUGH))))
        for rung in _rungs(config, images, True)
        if rung.least == ENOUGH
    ]
    tried = ((price(one), {each.question for each in unanswered(one, images)}) for one in longer)
    hours, left = min(tried, key=lambda one: (len(one[1]), one[0]))
    now = [one.question for one in unanswered(config, images)]
    settled = [place for place, question in enumerate(now, 1) if question not in left]
    if not settled:
        return []
    minutes = _tidy(math.ceil(MARGIN * 60 * hours))
    which = f"question{'s' * (len(settled) > 1)} {listed(settled, 'and')} of these {len(now)}"
    if len(settled) == len(now):
        which = f"all of these {len(now)}" if len(now) > 1 else "this question"
    return [f"Only time is lacking for {which}: viny resize {study} --minutes {minutes}"]


def too_short(minutes: float, least: float) -> str:
    """What is said if no sizes fit."""
    return (
        f"--minutes {minutes:g}: too short for a study that says anything: the least takes about {math.ceil(least)} "
        "minutes on this machine; give more, or leave out a task or an arm"
    )


def _rungs(config: Mapping[str, Any], images: Images, answers: bool) -> Iterator[Rung]:
    """Shapes of a study, from the most to the least."""
    grid = config["grid"]
    kept = _limited(config)
    most = {
        "pretrain_sizes": _with_middle(grid["pretrain_sizes"]),
        "finetune_sizes": _to_four(grid["finetune_sizes"], _fewest_labels(config), images.room),
        "seeds": _seeds(grid["seeds"], max(len(grid["seeds"]), LEAST_SEEDS)),
    }
    for n in range(MOST_SEEDS, len(most["seeds"]), -1):
        yield Rung({**most, "seeds": _seeds(most["seeds"], n)}, LONG, MOST)
    now = dict(most)
    shapes = [dict(now)]

    def cut(axis: str, values: Sequence[int]) -> None:
        now[axis] = [value for value in now[axis] if value in values or value in kept[axis]]
        if now != shapes[-1]:
            shapes.append(dict(now))

    cut("seeds", now["seeds"][:LEAST_SEEDS])
    cut("finetune_sizes", _spread(now["finetune_sizes"], LEAST_LABEL_SIZES))
    used = sorted(size for size in now["pretrain_sizes"] if size)
    cut("pretrain_sizes", [0, *used[-1:], *(used[:1] if 0 not in now["pretrain_sizes"] else ())])
    yield from (Rung(shape, ENOUGH, MOST) for shape in shapes)
    if answers:
        return
    shapes = [dict(now)]
    labels = sorted(now["finetune_sizes"])
    cut("finetune_sizes", labels[-3:])
    cut("finetune_sizes", [labels[-3:][0], labels[-1]])
    cut("seeds", grid["seeds"])
    for _ in range(HALVINGS if not kept["pretrain_sizes"] else 0):
        if max(now["pretrain_sizes"]) >= LEAST_UNLABELLED:
            now["pretrain_sizes"] = sorted({size if size == 0 else size // 2 for size in now["pretrain_sizes"]})
            shapes.append(dict(now))
    yield from (Rung(shape, 0.0, ENOUGH) for shape in shapes)


def _limited(config: Mapping[str, Any]) -> dict[str, set[int]]:
    """Values of axes that starts and variants are limited to, which must stay."""
    kept: dict[str, set[int]] = {"pretrain_sizes": set(), "finetune_sizes": set(), "seeds": set()}
    for one in (*config.get("starts", {}).values(), *config.get("variants", {}).values()):
        for axis, values in one.get("grid", {}).items():
            if axis in kept:
                kept[axis] |= {*values}
    return kept


def _with_middle(sizes_: Sequence[int]) -> list[int]:
    """Pre-train sizes with half of the largest, if it is the only one."""
    used = [size for size in sizes_ if size]
    return [0, used[0] // 2, used[0]] if len(used) == 1 and used[0] >= LEAST_UNLABELLED and 0 in sizes_ else [*sizes_]


def _fewest_labels(config: Mapping[str, Any]) -> int:
    """The fewest that a size may be: where rates are tuned, some of them must be left to score these on."""
    tunes = [one.get("tune", {}) for one in (config, *config.get("variants", {}).values())]
    return max([FEW_LABELS, *(math.ceil(1 / tune["validation"]) for tune in tunes if tune.get("lr"))])


def _to_four(labels: Sequence[int], fewest: int, room: int | None) -> list[int]:
    """Label sizes, at least four if halves of the largest and doubles of it can be had."""
    found, half = sorted(labels), max(labels) // 2
    while len(found) < LEAST_LABEL_SIZES and half >= fewest:
        found, half = sorted({*found, half}), half // 2
    while len(found) < LEAST_LABEL_SIZES and room is not None and 2 * found[-1] <= room:
        found.append(2 * found[-1])
    return found if len(found) > len(labels) else [*labels]


def _seeds(there: Sequence[int], n: int) -> list[int]:
    unused = (seed for seed in count() if seed not in there)
    return [*there, *(next(unused) for _ in range(n - len(there)))]


def _spread(values: Sequence[int], n: int) -> list[int]:
    """So many of some values at most, evenly by rank, both ends among them."""
    if len(values) <= n:
        return [*values]
    ranked = sorted(values)
    return [ranked[round(at * (len(values) - 1) / (n - 1))] for at in range(n)]


def sizes(
    raw: Mapping[str, Any], config: Mapping[str, Any], images: Images, lists: Mapping[str, list[int]], length: float
) -> dict[KeyPath, Any]:
    """What changes in a study with other lists in its grid and trainings of another length.

    Args:
        raw: what its file says.
        config: the same, resolved.
        images: from `count_images`.
        lists: by axis of the grid.
        length: of trainings, 0 to 2, see `HALF`.
    """
    changes: dict[KeyPath, Any] = {("grid", axis): some for axis, some in lists.items() if some != config["grid"][axis]}
    for path, section, ends in _trainings(raw, config, images, lists):
        epochs = _length(ends, section["epochs"], length, path == ("pretrain",))
        changes |= _scaled(path, section, section["epochs"], epochs)
        for name, variant in raw.get("variants", {}).items():
            own = variant
            for key in path:
                own = own.get(key, {}) if isinstance(own, Mapping) else {}
            if not {"epochs", "milestones"} & {*own} or name not in config.get("variants", {}):
                continue
            theirs = config["variants"][name]
            for key in path:
                theirs = theirs[key]
            scaled = max(1, round(theirs["epochs"] * epochs / section["epochs"]))
            more = _scaled(("variants", name, *path), theirs, theirs["epochs"], scaled)
            changes |= {key: value for key, value in more.items() if key[-1] in own or key[-1] == "milestones"}
    return changes


def _scaled(path: KeyPath, section: Mapping[str, Any], epochs: int, others: int) -> dict[KeyPath, Any]:
    """Other epochs of a training, with milestones at the same shares of the way."""
    milestones = moved_milestones(section["milestones"], epochs, others)
    found = {"epochs": others, "milestones": milestones}
    return {(*path, key): value for key, value in found.items() if value != section[key]}


def _length(ends: tuple[int, int], epochs: int, length: float, pretraining: bool) -> int:
    """Epochs of a training that takes from `ends[0]` epochs, the shortest, to `ends[1]`, as many as answers take."""
    low, high = ends
    if length > ENOUGH:
        low, high, part = high, max(LONGER * high, epochs), length - ENOUGH
    else:  # pre-training is cut first: short of its steps it answers nothing, and more of them would not mend that
        low, part = min(low, epochs, high), min(1.0, max(0.0, (length - HALF * pretraining) / HALF))
    return max(1, _tidy(round(low * (high / low) ** part)))


def _tidy(epochs: int) -> int:
    """Epochs rounded up to two digits and noughts."""
    unit = 10 ** max(0, len(str(epochs)) - 2)
    return -(-epochs // unit) * unit


def _trainings(
    raw: Mapping[str, Any], config: Mapping[str, Any], images: Images, lists: Mapping[str, list[int]]
) -> Iterator[tuple[KeyPath, Mapping[str, Any], tuple[int, int]]]:
    """Each kind of training: where its settings are, these, and the fewest epochs and those that answers take."""

    def epochs(section: Mapping[str, Any], *wanted: tuple[int, int]) -> int:
        """For so many steps with so many images, for each pair."""
        return max(math.ceil(steps / math.ceil(n / section["batch_size"])) for steps, n in wanted)

    used = sorted(size for size in lists["pretrain_sizes"] if size)
    if used:
        section = config["pretrain"]
        judged = used[-1] if section.get("budget") == "steps" else used[0]
        ends = epochs(section, (SHORT_PRETRAIN, used[-1])), epochs(section, (LEAST_STEPS, judged))
        yield ("pretrain",), section, ends
    owners: dict[str, list[str]] = {}
    for task in config["intermediate"]:
        owners.setdefault(_owner(raw, task), []).append(task)
    for owner, tasks in owners.items():
        section = config["intermediate"][tasks[0]]
        n = max(config["intermediate"][task].get("images") or images.trained.get(task) or UNKNOWN for task in tasks)
        yield ("intermediate", owner), section, (epochs(section, (SHORT_TASK, n)), epochs(section, (TASK_STEPS, n)))
    section, labels = config["finetune"], (min(lists["finetune_sizes"]), max(lists["finetune_sizes"]))
    short, enough = (
        epochs(section, *zip(steps, labels, strict=True)) for steps in (SHORT_FINETUNE, LEAST_FINETUNE_STEPS)
    )
    yield ("finetune",), section, (short, enough)


def _owner(raw: Mapping[str, Any], task: str) -> str:
    """The task that a task has its epochs from: one that it is like, unless it has its own."""
    own = merge(BUILT_IN_TASKS.get(task, {}), raw.get("intermediate", {}).get(task, {}))
    return task if {"epochs", "milestones"} & {*own} or "like" not in own else _owner(raw, own["like"])
