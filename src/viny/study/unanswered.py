"""What a study as it is set cannot answer: known from its settings, before anything is paid for."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from viny.runtime.units import tested_words
from viny.study.arms import is_published, schedule, settings_of
from viny.study.grid import Arm, arms, places
from viny.study.inventory import Images

FEW_IMAGES = 100  # test images; with fewer, the luck of their draw hides small effects
FEW_GROUPS = 10  # of test images; with fewer, intervals over groups are wide
SPREAD = 0.08  # standard deviation of an image's mIoU, as a fraction, in the demo; photographs differ more
LEAST_STEPS = 10_000  # of pre-training; the paper took 35,000 or more, and 1,250 to 1,750 cost points here
LEAST_FINETUNE_STEPS = (300, 600)  # on the fewest and on the most labels: docs/sizes.md
LEAST_SEEDS = 3  # for an interval
LEAST_LABEL_SIZES = 4  # for a curve with two parameters and something left to judge it by

PRETRAINING = "Is pre-training worth it?"
MORE_IMAGES = "Do more unlabelled images help?"
TASKS = "Does a task in between help?"
FINETUNING = "How good does the model get?"
MORE_LABELS = "What would more labels bring?"
SURE = "How sure are the differences?"
SMALL = "Are small differences real?"


@dataclass(frozen=True)
class Unanswered:
    """A question that a study leaves open, in plain words: why, and what would answer it."""

    question: str
    why: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.question} {self.why}; {self.remedy}"


def unanswered(config: Mapping[str, Any], images: Images) -> list[Unanswered]:
    """The questions that a study cannot answer, whatever comes out.

    Args:
        config: resolved settings.
        images: from `viny.study.inventory.count_images`.
    """
    at, first = places(config), arms(config)[0]

    def axis(place: int, arm: Arm = first) -> list[Any]:
        """Values of an axis that an arm has: 0 pre-train sizes, 1 tasks, 2 label sizes, 3 seeds."""
        return list(dict.fromkeys(keys[place] for whose, *keys in at if whose == arm))

    return [
        *_pretraining(config, {arm: axis(0, arm) for arm in arms(config)}),
        *_tasks(axis(1)),
        *_finetuning(config, {arm: axis(2, arm) for arm in arms(config)}),
        *_labels(axis(2)),
        *_seeds(min(len(axis(3, arm)) for arm in arms(config))),
        *_tests(images, max(axis(2))),
    ]


def as_lines(open_questions: Iterable[Unanswered]) -> list[str]:
    """Lines to print: a heading, and one for each question; none if all are answered."""
    found = [f"  {one}" for one in open_questions]
    return ["What this study cannot answer as it is set:", *found] if found else []


def pretraining_steps(settings: Mapping[str, Any], size: int) -> int:
    """Steps of a pre-training on `size` images, by the settings of an arm."""
    return schedule(settings, size)[0] * math.ceil(size / settings["pretrain"]["batch_size"])


def finetuning_steps(settings: Mapping[str, Any], labels: int) -> int:
    """Steps of a fine-tuning on so many labelled images, by the settings of an arm."""
    section = settings["finetune"]
    return section["epochs"] * math.ceil(labels / section["batch_size"])


def finetuning_epochs(settings: Mapping[str, Any], sizes: Collection[int]) -> int:
    """The fewest epochs of fine-tuning that are long enough for these numbers of labels, by the settings of an arm."""
    return math.ceil(settings["finetune"]["epochs"] / _length(settings, sizes))


def _length(settings: Mapping[str, Any], sizes: Collection[int]) -> float:
    """Steps of fine-tuning as a share of those needed."""
    taken = (finetuning_steps(settings, labels) for labels in (min(sizes), max(sizes)))
    return min(n / least for n, least in zip(taken, LEAST_FINETUNE_STEPS, strict=True))


def _pretraining(config: Mapping[str, Any], sizes: Mapping[Arm, list[int]]) -> list[Unanswered]:
    every = {size for some in sizes.values() for size in some}
    published = any(is_published(start) for start in config.get("starts", {}).values())
    if not max(every):
        if published:
            return []
        remedy = "needs unlabelled images: pretrain.path, and grid.pretrain_sizes: [0, n]"
        return [Unanswered(PRETRAINING, "No cell is pre-trained", remedy)]
    found = []
    if 0 not in every:
        found.append(Unanswered(PRETRAINING, "No cell has a start without it", "add 0 to grid.pretrain_sizes"))
    steps = {
        (arm, size): pretraining_steps(settings_of(config, arm), size) for arm in sizes for size in sizes[arm] if size
    }
    longest = {arm: max(n for (whose, _), n in steps.items() if whose == arm) for arm, _ in steps}
    if short := {arm: n for arm, n in longest.items() if n < LEAST_STEPS}:
        arm, n = min(short.items(), key=lambda one: one[1])
        section = settings_of(config, arm)["pretrain"]
        epochs = math.ceil(section["epochs"] * LEAST_STEPS / n)
        why = (
            f"A no would not be final after {n:,} steps{_of(short, len(longest))}: fewer than "
            f"{LEAST_STEPS:,} have made results worse in some studies"
        )
        found.append(Unanswered(PRETRAINING, why, f"{_key(arm, 'pretrain.epochs')}: {epochs} or more"))
    used = sorted(every - {0})
    fewer = {(arm, size): n for (arm, size), n in steps.items() if n < LEAST_STEPS and arm not in short}
    if len(used) == 1:
        why = f"Only one number of them, {used[0]:,}"
        found.append(Unanswered(MORE_IMAGES, why, f"grid.pretrain_sizes: {[0, max(1, used[0] // 2), used[0]]}"))
    elif fewer:
        (_, size), n = min(fewer.items(), key=lambda one: one[1])
        why = f"{n:,} steps on {size:,} images are fewer than {LEAST_STEPS:,}: steps would count as images"
        found.append(Unanswered(MORE_IMAGES, why, "pretrain.budget: steps"))
    return found


def _tasks(tasks: list[str]) -> list[Unanswered]:
    if tasks == ["none"]:
        return [Unanswered(TASKS, "There is none", "needs one under intermediate, named in grid.intermediates")]
    if "none" not in tasks:
        return [Unanswered(TASKS, "No cell is without one", "add none to grid.intermediates")]
    return []


def _finetuning(config: Mapping[str, Any], sizes: Mapping[Arm, list[int]]) -> list[Unanswered]:
    lengths = {arm: _length(settings_of(config, arm), some) for arm, some in sizes.items()}
    short = [arm for arm, length in lengths.items() if length < 1]
    if not short:
        return []
    arm = min(short, key=lengths.__getitem__)
    settings = settings_of(config, arm)
    words = [f"{finetuning_steps(settings, n):,} steps on {n:,}" for n in sorted({min(sizes[arm]), max(sizes[arm])})]
    why = f"Fine-tuning{_of(short, len(lengths))} ends too early: {' and '.join(words)} labels"
    epochs = finetuning_epochs(settings, sizes[arm])
    return [Unanswered(FINETUNING, why, f"{_key(arm, 'finetune.epochs')}: {epochs} or more")]


def _labels(sizes: list[int]) -> list[Unanswered]:
    if len(sizes) >= LEAST_LABEL_SIZES:
        return []
    why = "One number of labels" if len(sizes) == 1 else f"No curve is fitted to {len(sizes)} numbers of labels"
    return [Unanswered(MORE_LABELS, why, f"{LEAST_LABEL_SIZES} in grid.finetune_sizes, each twice the one before")]


def _seeds(count: int) -> list[Unanswered]:
    if count >= LEAST_SEEDS:
        return []
    why = "One seed has no interval" if count == 1 else f"{count} seeds hardly have an interval"
    return [Unanswered(SURE, why, f"grid.seeds: {list(range(LEAST_SEEDS))}")]


def _tests(images: Images, labels: int) -> list[Unanswered]:
    tested, room, groups = images.tested, images.room, images.groups
    few = 0 < groups < FEW_GROUPS
    if tested >= FEW_IMAGES and not few:
        return []
    half = 100 * 1.96 * SPREAD / math.sqrt(max(1, tested))
    said = tested_words([tested], groups)
    why = f"The draw of {said} moves an mIoU by ±{half:.0f} points or more"
    if few:
        why += ", as intervals are over groups"
    remedy = f"{max(FEW_IMAGES, tested)} or more in segmentation.test_size"
    if few:
        remedy += f", of {FEW_GROUPS} groups or more"
    if room is not None and tested + room < FEW_IMAGES + labels:
        remedy += f", for which {FEW_IMAGES + labels} labelled images are needed and {tested + room} are here"
    return [Unanswered(SMALL, why, remedy)]


def _of(some: Collection[Arm], count: int) -> str:
    """Which arms are meant, if not all are."""
    return f" ({'; '.join(arm.name for arm in some)})" if len(some) < count else ""


def _key(arm: Arm, key: str) -> str:
    return key if arm.variant == "study" else f"variants.{arm.variant}.{key}"
