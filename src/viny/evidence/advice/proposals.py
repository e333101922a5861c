"""What would settle the rest: changes to the grid, what they cost, and the seeds that each open question takes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from viny.evidence.advice.advice import Item
from viny.evidence.advice.best import Best
from viny.evidence.advice.facts import EXCESS, Facts, listed
from viny.evidence.advice.labels import LabelAdvice, more_labels
from viny.evidence.advice.trainings import epochs_key
from viny.evidence.power.simulate import Simulation, more_seeds
from viny.evidence.power.truth import from_runs
from viny.evidence.verdicts import ASSURANCE, MOST_SEEDS, Decision, bare, chance_with, seeds_needed, spread_interval
from viny.learning.settings import moved_milestones
from viny.runtime.units import capital, counted, duration
from viny.study.changes import as_flags, as_keys, keys
from viny.study.config import merge
from viny.study.unanswered import LEAST_STEPS, finetuning_epochs

ENOUGH_SEEDS = 3  # for a spread to plan with
LEAST_CHANCE = 0.01  # of a proposal, so that none has no price


def proposal_items(
    facts: Facts,
    best: Best,
    pretraining: Sequence[Decision],
    labels: LabelAdvice,
    tasks: Sequence[Decision],
    lost: Sequence[str],
    beaten: bool,
) -> list[Item]:
    """What would settle the rest: proposals by rank, then a remark on each open question.

    Args:
        facts: the study's.
        best: its best cell.
        pretraining: effects of pre-training.
        labels: the advice on the next doubling of labels.
        tasks: effects of the intermediate tasks.
        lost: classes that are as good as not found.
        beaten: whether a simple reference does better, which larger images help too and longer pre-training does not.

    Raises:
        InputError: a damaged pack manifest.
    """
    first, remarks = [], []
    if facts.missing or facts.outdated:
        change = "finish the grid (run the workflow again)"
        if facts.at_hand.unfit:
            change = f"make the grid fit its images, as it cannot be finished: {facts.at_hand.unfit}"
        first.append(_proposal(facts, change, ["the gaps of this grid"], facts.grid["intermediates"]))
    still_open = [effect for effect in (*pretraining, *labels.effects, *tasks) if effect.verdict == "undecided"]
    needs: dict[int, list[Decision]] = {}
    for effect in still_open:
        seeds, remark = _seeds(facts, effect)
        if seeds is not None:
            needs.setdefault(max(seeds, len(facts.grid["seeds"]) + 1), []).append(effect)
        remarks.append(remark)
    # The fewest seeds that settle something, and as many as settle all that seeds can.
    seeds_for = []
    for n in sorted({min(needs), max(needs)}) if needs else []:
        settled = [effect for seeds, effects in needs.items() if seeds <= n for effect in effects]
        seeds_for.append(_more_seeds(facts, best, n, settled))
    further = (
        *seeds_for,
        _further_labels(facts, best, labels.foreseen),
        _further_images(facts, pretraining),
        _further_tests(facts, still_open),
    )

    def price(item: Item) -> float:
        """Seconds per question that is to be expected; a first interval comes first, an unknown time last."""
        if any(effect.name in item.data["settles"] and math.isnan(effect.low) for effect in still_open):
            return -1.0
        seconds = item.data["seconds"]
        return np.inf if seconds is None else max(seconds, 1.0) / max(LEAST_CHANCE, expected(item.data))

    longer, larger = _longer(facts), _larger_images(facts, lost)
    before = [*larger, *longer] if beaten else [*longer, *larger]
    proposals = [*first, *before, *sorted(filter(None, further), key=price)]
    numbered = [Item(f"{i}. {item.text}", {"rank": i} | item.data) for i, item in enumerate(proposals, 1)]
    return [*numbered, *remarks] or [Item("Nothing that this study asks is open at this target.")]


def expected(proposal: Mapping[str, Any]) -> float:
    """How many questions a proposal is expected to settle: one whose chance is not known counts whole."""
    chances = proposal.get("chances") or [None] * len(proposal["settles"])
    return sum(1.0 if chance is None else chance for chance in chances)


def _with_chances(names: Sequence[str], chances: Sequence[float]) -> tuple[str, list[float | None]]:
    """Questions in words, each with its chance to be decided, and the chances; None where not known."""
    known = [None if math.isnan(chance) else chance for chance in chances]
    names = [name.rstrip(",") for name in names]  # a name may be a clause of a sentence
    said = [
        name if chance is None else f"{name} (decided with a chance of {100 * chance:.0f} %)"
        for name, chance in zip(names, known, strict=True)
    ]
    return ", ".join(said), known


def _takes(seconds: float | None) -> str:
    return "time not known" if seconds is None else f"about {duration(seconds)} of training, one after another"


def _proposal(
    facts: Facts,
    change: str,
    settles: Sequence[str],
    tasks: Iterable[str],
    chances: Sequence[float] = (),
    **grid: Sequence[Any],
) -> Item | None:
    """A change to the grid, its new cells and trainings, and what they cost; None if `viny check` would refuse it.

    Args:
        facts: the study's.
        change: the change, in words; empty for that of `grid`.
        settles: the questions that it settles.
        tasks: the intermediate tasks that these questions need.
        chances: that each question is decided then; NaN where not known. None are said if empty.
        grid: what changes in the grid.
    """
    setting = {"grid": {axis: list(values) for axis, values in grid.items()}} if grid else {}
    if setting and facts.refused(setting):
        return None
    change = change or as_keys(setting)
    every = facts.grid["intermediates"]
    alone = [task for task in every if task in set(tasks)]
    new, trainings, seconds = _cost(facts, grid)
    text = f"{change}: {counted(new, 'new cell')}, {counted(trainings, 'training')}, {_takes(seconds)}. For: "
    said, known = _with_chances(settles, chances or [np.nan] * len(settles))
    text += f"{said}."
    data = {"change": change, "settles": list(settles), "new_cells": new, "trainings": trainings, "seconds": seconds}
    data |= {"chances": known} if chances else {}
    if len(alone) < len(every):
        less, trainings, seconds = _cost(facts, {**grid, "intermediates": alone})
        text += f" With `grid.intermediates: [{', '.join(alone)}]`, whose tables then show no other, {less} cells and "
        text += f"{_takes(seconds)}."
        data["alone"] = {"intermediates": alone, "new_cells": less, "trainings": trainings, "seconds": seconds}
    return _with_command(facts, Item(text, data), setting)


def _with_command(facts: Facts, item: Item, setting: Mapping[str, Any]) -> Item:
    """A proposal with its settings, the command that tries them, and what it takes in words."""
    data = item.data | {"takes": _takes(item.data["seconds"])}
    if not setting:
        return Item(item.text, data)
    command = f"viny plan {facts.called} {as_flags(setting)}"
    return Item(f"{item.text} Try: `{command}`.", data | {"set": keys(setting), "command": command})


def _cost(facts: Facts, grid: Mapping[str, Sequence[Any]]) -> tuple[int, int, float | None]:
    """New cells, trainings and seconds that a changed grid takes."""
    done = set(facts.done)
    new = [cell for cell in facts.cells_with(grid) if cell not in done]
    return len(new), *facts.trainings.cost(new)


def _more_seeds(facts: Facts, best: Best, n: int, settled: Sequence[Decision]) -> Item | None:
    seeds = more_seeds(facts.grid["seeds"], n)
    tasks = ["none", *(str(effect.what) for effect in settled if effect.kind == "task")]
    tasks += [best.intermediate for effect in settled if effect.kind == "labels"]
    chances = [chance_with(facts.runs, effect, n, facts.target / 100) for effect in settled]
    names = [effect.name for effect in settled]
    return _proposal(facts, "", names, tasks, chances, seeds=seeds)


def _seeds(facts: Facts, effect: Decision) -> tuple[int | None, Item]:
    """The fewest seeds that would decide an effect or narrow it to the target, None if none would, and a remark."""
    name, half, images, goal = effect.name.rstrip(","), effect.half, effect.half_images, facts.target / 100
    if math.isnan(effect.low):
        seeds = ENOUGH_SEEDS if len(facts.grid["seeds"]) < ENOUGH_SEEDS else None
        text = f"{name}: {effect.reason}; {ENOUGH_SEEDS} seeds in every cell give one, and a spread to plan with."
        return seeds, Item(text, {"question": name, "seeds": seeds})
    data: dict[str, Any] = {"question": name, "half_width": half, "half_width_images": images}
    deciding, decide = _deciding(facts, effect)
    data |= {"seeds_to_decide": deciding}
    if effect.lacks == "images":
        text = f"{name}: ±{bare(half)} points, of which ±{bare(images)} are the draw of the {facts.runs.drawn}. "
        text += f"It takes more of those{f' to narrow it{decide}' if decide else ', not more seeds'}."
        return deciding, Item(text, data | {"goal": goal, "seeds": None})
    text = f"{name}: ±{bare(half)} points with {counted(effect.n, 'seed')}"
    if half <= goal:
        goal = half / 2
        text += " and still undecided; half of that"
    else:
        text += f"; ±{bare(goal)}"
    low, high = spread_interval(effect.n)
    seeds, *ends = (seeds_needed(goal, effect.se_seeds, effect.se_images, effect.n, times) for times in (1, low, high))
    if seeds is not None:
        seeds = max(seeds, len(facts.grid["seeds"]) + 1)
    said = [f"more than {MOST_SEEDS}" if n is None else str(n) for n in (seeds, *ends)]
    text += f" takes {'about ' * (seeds is not None)}{said[0]} seeds"
    if ends[0] is not None:  # a smaller spread would need fewer
        text += f" ({said[1]} to {said[2]}, as the true spread is {low:.2g} to {high:.2g} times the one seen)"
    text += f"{decide}."
    if seeds is None and deciding is None:
        text += " Seeds are not the way: take this width, or train so that the effect is larger."
    if images > facts.target / 100:
        text += f" The draw of the {facts.runs.drawn} is another ±{bare(images)}: more of those too."
    data |= {"goal": goal, "seeds": seeds, "seeds_low": ends[0], "seeds_high": ends[1]}
    fewest = min((n for n in (seeds, deciding) if n is not None), default=None)
    return fewest, Item(text, data | {"spread_low": low, "spread_high": high})


def _deciding(facts: Facts, effect: Decision) -> tuple[int | None, str]:
    """The fewest seeds that are likely to decide an effect, and a clause that says so; neither beyond `MOST_SEEDS`."""
    for n in range(len(facts.grid["seeds"]) + 1, MOST_SEEDS + 1):
        chance = chance_with(facts.runs, effect, n, facts.target / 100)
        if chance >= ASSURANCE:
            return n, f"; {n} seeds would decide it with a chance of {100 * chance:.0f} %"
    return None, ""


def _further_labels(facts: Facts, best: Best, foreseen: bool) -> Item | None:
    sizes = more_labels(facts)
    if foreseen or len(sizes) == len(facts.grid["finetune_sizes"]):
        return None
    more = sizes[-1] > max(facts.grid["finetune_sizes"])
    settles = ["what further labels bring" if more else "how mIoU grows with labels"]
    item = _proposal(facts, "", settles, ["none", best.intermediate], finetune_sizes=sizes)
    if more or item is None:
        return item
    text = " These are fewer: besides the test images too few labelled ones are left to go beyond; label more for that."
    return Item(f"{item.text}{text}", item.data)


def _further_images(facts: Facts, pretraining: Sequence[Decision]) -> Item | None:
    """A second pre-train size, if there is only one and it does not cost mIoU."""
    if len(facts.sizes) != 1 or not pretraining or pretraining[0].verdict == "down":
        return None
    pool, size = facts.at_hand.limits(facts.study).get("pretrain"), 2 * facts.sizes[0]
    size = min(size, pool - facts.config["pretrain"].get("held_out", 0)) if pool else size
    more = size >= EXCESS * facts.sizes[0]
    size = size if more else facts.sizes[0] // 2
    if not size:
        return None
    sizes = sorted({*facts.grid["pretrain_sizes"], size})
    item = _proposal(facts, "", ["what a doubling of unlabelled images brings"], ["none"], pretrain_sizes=sizes)
    if more or item is None:
        return item
    return Item(f"{item.text} That is fewer images: there are no more of them.", item.data)


def _further_tests(facts: Facts, still_open: Sequence[Decision]) -> Item | None:
    """More test images, if their draw leaves effects open."""
    goal = facts.target / 100
    noisy = [effect for effect in still_open if effect.lacks == "images" or effect.half_images > goal]
    if not noisy:
        return None
    tests = facts.test_images[-1]
    # The noise falls with the square root of the number of images, or of groups of as many images as here.
    wanted = math.ceil(max(tests * (e.half_images / min(goal, e.half_images / 2)) ** 2 for e in noisy))
    trainings, seconds = facts.trainings.anew(facts.cells)
    fits = _most_tests(facts, wanted)
    names, others = [effect.name for effect in noisy], _of_other_groups(facts, wanted / tests)
    if fits < EXCESS * tests:  # which the images at hand cannot settle, but labelling can
        change = f"label {wanted - tests:,} more test images{others}, for {wanted:,} in all"
        setting, fits = {}, wanted
    else:
        setting = {"segmentation": {"test_size": fits}}
        change = as_keys(setting)
    said, chances = _with_chances(names, _chances(facts, noisy, fits))
    text = f"{capital(change)}: all {len(facts.cells)} cells are fine-tuned anew, {_takes(seconds)}. For: {said}."
    if setting and fits < wanted:
        text += f" It would take {wanted:,}; no more labelled images are left, so label more{others}."
    data = {"change": change, "settles": names, "new_cells": len(facts.cells), "trainings": trainings}
    return _with_command(facts, Item(text, data | {"seconds": seconds, "chances": chances}), setting)


def _of_other_groups(facts: Facts, times: float) -> str:
    """Of how many groups more test images have to be, for so many times as many; nothing in a study without groups."""
    groups = facts.runs.groups
    return f" of {counted(math.ceil(groups * times) - groups, 'other group')}" if groups else ""


def _most_tests(facts: Facts, wanted: int) -> int:
    """As many test images as `viny check` would accept, up to so many."""

    def fits(tests: int) -> bool:
        return not facts.refused({"segmentation": {"test_size": tests}})

    low, high = facts.test_images[-1], wanted
    if fits(high):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _chances(facts: Facts, effects: Sequence[Decision], tests: int) -> list[float]:
    """The chance that each effect is decided by a study like this one on so many test images."""
    asked = [decision.question for decision in facts.decisions]
    asked += [effect.question for effect in effects if effect.question not in asked]
    moving = facts.config["switches"]["test_set"] == "moving"
    seeds = len(facts.runs.seeds)
    made = Simulation(from_runs(facts.runs, facts.config["study"]), facts.runs.keys, seeds, moving=moving)
    found = made.chances(asked, seeds, tests, facts.target / 100).decided
    return [float(found[asked.index(effect.question)]) for effect in effects]


def _longer(facts: Facts) -> list[Item]:
    """Longer trainings, if some have not converged or pre-training is short: the other verdicts wait for them."""
    epochs: dict[str, int] = {}
    for stage, what in facts.falling:
        key = epochs_key(stage, what)
        epochs[key] = 2 * _section(facts, key)["epochs"]
    if facts.short:
        wanted = max(math.ceil(LEAST_STEPS / facts.steps_per_epoch[size]) for size in facts.short)
        epochs["pretrain.epochs"] = max(wanted, epochs.get("pretrain.epochs", 0))
    if "finetune.epochs" in epochs:
        epochs["finetune.epochs"] = max(
            epochs["finetune.epochs"], finetuning_epochs(facts.config, facts.grid["finetune_sizes"])
        )
    if not epochs:
        return []
    times = {key: n / _section(facts, key)["epochs"] for key, n in epochs.items()}
    anew, trainings, seconds = facts.trainings.longer(facts.cells, times)
    setting: dict[str, Any] = {}
    for key, n in epochs.items():
        section = _section(facts, key)
        inner: dict[str, Any] = {"epochs": n}
        if section["milestones"]:
            inner["milestones"] = moved_milestones(section["milestones"], section["epochs"], n)
        for name in reversed(key.split(".")[:-1]):
            inner = {name: inner}
        setting = merge(setting, inner)
    if facts.refused(setting):
        return []
    change = as_keys(setting)
    text = f"Train longer, as verdicts may turn, with {change}: {counted(anew, 'cell')} anew, "
    text += f"{counted(trainings, 'training')}, {_takes(seconds)}. For: all that follows."
    data = {"change": change, "settles": ["all that follows"], "new_cells": anew, "trainings": trainings}
    return [_with_command(facts, Item(text, data | {"seconds": seconds, "epochs": epochs}), setting)]


def _larger_images(facts: Facts, lost: Sequence[str]) -> list[Item]:
    """Images twice as large, where classes are lost that the labelled images may show then."""
    seen, tiles = facts.config["model"]["image_size"], facts.config["segmentation"].get("tiles", 1)
    setting = {"model": {"image_size": 2 * seen}}
    if not lost or facts.side < 2 * seen * tiles or facts.refused(setting):
        return []
    changed = facts.changed(setting)
    if changed["model"]["image_size"] == seen:  # the first arm has a size of its own
        return []
    trainings, seconds = facts.trainings.enlarged(facts.cells, changed)
    change, settles = as_keys(setting), [f"classes lost at {seen} x {seen} pixels"]
    text = f"{change}: all {len(facts.cells)} cells anew, {counted(trainings, 'training')}, {_takes(seconds)}. "
    text += f"For: {settles[0]}: {listed(lost)}."
    data = {"change": change, "settles": settles, "new_cells": len(facts.cells), "trainings": trainings}
    return [_with_command(facts, Item(text, data | {"seconds": seconds, "image_size": 2 * seen}), setting)]


def _section(facts: Facts, key: str) -> Mapping[str, Any]:
    """The settings of the stage or task whose epochs a key from `epochs_key` names."""
    stage, rest = key.split(".", 1)
    section = facts.config[stage]
    return section if rest == "epochs" else section[rest.removesuffix(".epochs")]
