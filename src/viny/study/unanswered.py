"""What a study as it is set cannot answer: known from its settings, before anything is paid for."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from viny.runtime.units import counted, tested_words
from viny.study.arms import is_published, schedule, settings_of
from viny.study.grid import Arm, arms, places
from viny.study.inventory import Images

FEW_IMAGES = 100  # test images; with fewer, the luck of their draw hides small effects
FEW_GROUPS = 10  # of test images; with fewer, intervals over groups are wide
LEAST_STEPS = 10_000  # of pre-training; the paper took 35,000 or more, and 1,250 to 1,750 cost points here
LEAST_FINETUNE_STEPS = (300, 600)  # on the fewest and on the most labels: docs/sizes.md
LEAST_SEEDS = 3  # for an interval
LEAST_LABEL_SIZES = 4  # for a curve with two parameters and something left to judge it by
FEW_LABELS = 8  # fewer are not worth a label size

PRETRAINING = "Is pre-training worth it?"
MORE_IMAGES = "More unlabelled images?"
TASKS = "Does a task help?"
FINETUNING = "How good can it get?"
MORE_LABELS = "Would more labels help?"
SURE = "How sure is the answer?"
SMALL = "Are small effects real?"
HEADINGS = ("What it cannot answer", "it has", "to change")  # of a table of them


@dataclass(frozen=True)
class Unanswered:
    """A question that a study leaves open, in few words: why, and the key that would answer it."""

    question: str
    why: str
    remedy: str


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
        *_pretraining(config, images, {arm: axis(0, arm) for arm in arms(config)}),
        *_tasks(axis(1)),
        *_finetuning(config, {arm: axis(2, arm) for arm in arms(config)}),
        *_labels(axis(2)),
        *_seeds(min(len(axis(3, arm)) for arm in arms(config))),
        *_tests(images, max(axis(2))),
    ]


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
    return min(_lengths(settings, sizes))[0]


def _lengths(settings: Mapping[str, Any], sizes: Collection[int]) -> list[tuple[float, int, int]]:
    """The same on the fewest and on the most labels, with these labels and the steps needed."""
    ends = zip((min(sizes), max(sizes)), LEAST_FINETUNE_STEPS, strict=True)
    return [(finetuning_steps(settings, labels) / least, labels, least) for labels, least in ends]


def _pretraining(config: Mapping[str, Any], images: Images, sizes: Mapping[Arm, list[int]]) -> list[Unanswered]:
    every = {size for some in sizes.values() for size in some}
    published = any(is_published(start) for start in config.get("starts", {}).values())
    if not max(every):
        if published:
            return []
        room = (images.unlabelled["pretrain"] or 0) - config["pretrain"].get("held_out", 0)
        remedy = f"grid.pretrain_sizes: add {room}" if room > 0 else "pretrain.source: add images"
        return [Unanswered(PRETRAINING, "no pre-training", remedy)]
    found = []
    if 0 not in every:
        found.append(Unanswered(PRETRAINING, "no cell without it", "grid.pretrain_sizes: add 0"))
    steps = {
        (arm, size): pretraining_steps(settings_of(config, arm), size) for arm in sizes for size in sizes[arm] if size
    }
    longest = {arm: max(n for (whose, _), n in steps.items() if whose == arm) for arm, _ in steps}
    if short := {arm: n for arm, n in longest.items() if n < LEAST_STEPS}:
        arm, n = min(short.items(), key=lambda one: one[1])
        section = settings_of(config, arm)["pretrain"]
        epochs = math.ceil(section["epochs"] * LEAST_STEPS / n)
        why = f"{n:,} steps{_of(short, len(longest))}, not {LEAST_STEPS:,}"
        found.append(Unanswered(PRETRAINING, why, f"{_key(arm, 'pretrain.epochs')}: {epochs}"))
    used = sorted(every - {0})
    fewer = {(arm, size): n for (arm, size), n in steps.items() if n < LEAST_STEPS and arm not in short}
    if len(used) == 1:
        found.append(
            Unanswered(MORE_IMAGES, "1 pre-train size, not 2", f"grid.pretrain_sizes: add {max(1, used[0] // 2)}")
        )
    elif fewer:
        why = f"{min(fewer.values()):,} steps, not {LEAST_STEPS:,}"
        found.append(Unanswered(MORE_IMAGES, why, "pretrain.budget: steps"))
    return found


def _tasks(tasks: list[str]) -> list[Unanswered]:
    if tasks == ["none"]:
        return [Unanswered(TASKS, "no intermediate task", "grid.intermediates: add a task")]
    if "none" not in tasks:
        return [Unanswered(TASKS, "no cell without one", "grid.intermediates: add none")]
    return []


def _finetuning(config: Mapping[str, Any], sizes: Mapping[Arm, list[int]]) -> list[Unanswered]:
    lengths = {arm: _length(settings_of(config, arm), some) for arm, some in sizes.items()}
    short = [arm for arm, length in lengths.items() if length < 1]
    if not short:
        return []
    arm = min(short, key=lengths.__getitem__)
    settings = settings_of(config, arm)
    labels, least = min(_lengths(settings, sizes[arm]))[1:]
    why = f"{finetuning_steps(settings, labels):,} steps{_of(short, len(lengths))}, not {least:,}"
    return [Unanswered(FINETUNING, why, f"{_key(arm, 'finetune.epochs')}: {finetuning_epochs(settings, sizes[arm])}")]


def _labels(sizes: list[int]) -> list[Unanswered]:
    if len(sizes) >= LEAST_LABEL_SIZES:
        return []
    why = f"{counted(len(sizes), 'label size')}, not {LEAST_LABEL_SIZES}"
    halves = [max(sizes) >> by for by in range(1, LEAST_LABEL_SIZES)]
    new = [n for n in halves if n not in sizes and n >= FEW_LABELS][: LEAST_LABEL_SIZES - len(sizes)]
    remedy = "more masks"
    if len(sizes) + len(new) == LEAST_LABEL_SIZES:
        remedy = f"grid.finetune_sizes: add {', '.join(map(str, sorted(new)))}"
    return [Unanswered(MORE_LABELS, why, remedy)]


def _seeds(count: int) -> list[Unanswered]:
    if count >= LEAST_SEEDS:
        return []
    why = f"{counted(count, 'seed')}, not {LEAST_SEEDS}"
    return [Unanswered(SURE, why, f"grid.seeds: {list(range(LEAST_SEEDS))}")]


def _tests(images: Images, labels: int) -> list[Unanswered]:
    tested, room, groups = images.tested, images.room, images.groups
    few, few_groups = tested < FEW_IMAGES, 0 < groups < FEW_GROUPS
    if few and few_groups:
        why = f"{tested} of {FEW_IMAGES} test images, {groups} of {FEW_GROUPS} groups"
    elif few:
        why = f"{tested_words([tested])}, not {FEW_IMAGES}"
    elif few_groups:
        why = f"test images of {counted(groups, 'group')}, not {FEW_GROUPS}"
    else:
        return []
    # Groups at as many images each as now.
    wanted = max(FEW_IMAGES if few else 0, math.ceil(tested * FEW_GROUPS / groups) if few_groups else 0)
    remedy = f"segmentation.test_size: {wanted}"
    if room is not None and (lacking := wanted + labels - tested - room) > 0:
        remedy = f"{counted(lacking, 'more mask')}{', of other groups' * (groups > 0)}"
    return [Unanswered(SMALL, why, remedy)]


def _of(some: Collection[Arm], count: int) -> str:
    """Which arms are meant, if not all are."""
    return f" ({'; '.join(arm.name for arm in some)})" if len(some) < count else ""


def _key(arm: Arm, key: str) -> str:
    return key if arm.variant == "study" else f"variants.{arm.variant}.{key}"
