"""What arms are worth against each other: where encoders start, and the variants that train them.

An arm with a number of pre-training images, a task and a number of labels is a cell here, as elsewhere; keys are
(start, variant, pretrain_size, intermediate, finetune_size). Values are fractions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from viny.evidence.statistics.crossed import ALPHA, Estimates, Runs, step
from viny.evidence.statistics.held_out import HELD_OUT, held_out_table
from viny.evidence.tables import ARM, GROUP
from viny.evidence.verdicts import MARGIN, Decision, Question, Weights, answer, bare, holm
from viny.runtime.units import counted
from viny.study import grid
from viny.study.grid import RANDOM, STUDY

KEY = [*ARM, *GROUP]
Key = tuple[str, str, int, str, int]

# What each row is compared with, by the first word of its columns.
COMPARED = {"base": "arm against base", "simmim": "arm with SimMIM", "tuning": "arm with a tuned rate"}
COMPARISON = ["", "_low", "_high", "_p", "_p_holm", "_words"]
ARMS_COLUMNS = [*KEY, "n", "miou", "low", "high", *(f"{name}{end}" for name in COMPARED for end in COMPARISON), "rate"]
ARMS_COLUMNS += ["rate_end"]
HOURS = {"pretrain": "hours_pretraining", "intermediate": "hours_task", "tune": "hours_tuning"}
HOURS |= {"finetune": "hours_finetuning"}
ARMS_COLUMNS += [*HOURS.values(), "hours", "device", "unlabelled_images"]
GAINS = [*ARM, "pretrain_size", "finetune_size", "last", "mean", "low", "high", "n"]
NAMED = 4  # arms, at most, that a sentence names
BUDGETS = "images or steps"
PARTS = ("equal epochs", "steps", "images")
# Which of the two bought the gain, by the verdicts on steps and on images.
NOT_IMAGES, NOT_STEPS = "The steps bought it, not the images.", "The images bought it, not the steps."
BOUGHT = {
    ("up", "up"): "Both bought some of it.",
    **{("up", other): NOT_IMAGES for other in ("small", "down")},
    **{(other, "up"): NOT_STEPS for other in ("small", "down")},
    ("up", "undecided"): "The steps bought some of it; whether the images did cannot be told.",
    ("undecided", "up"): "The images bought some of it; whether the steps did cannot be told.",
    ("small", "small"): "Neither bought much.",
}


@dataclass(frozen=True)
class Arms:
    """The arms of a study, and what they are called.

    Attributes:
        order: (start, variant) of each; the first is the base, with which the others are compared.
        starts: each start in words, but for `RANDOM`.
        published: the starts with weights of their own.
        tuned: variants whose rate is tuned, each with the one that is the same at the fixed rate; empty if none is.
        frozen: variants whose encoder stays as it is.
        steps: variants whose pre-training has a budget of steps, each with the one that is the same with epochs.
        shared: places of the grid whose cell is another arm's, since nothing differs there, with that cell's key.
    """

    order: Sequence[tuple[str, str]]
    starts: Mapping[str, str] = field(default_factory=dict)
    published: Sequence[str] = ()
    tuned: Mapping[str, str] = field(default_factory=dict)
    frozen: Sequence[str] = ()
    steps: Mapping[str, str] = field(default_factory=dict)
    shared: Mapping[Key, Key] = field(default_factory=dict)

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> Arms:
        """Those of a stage's settings, see `viny.study.specs.statistics_spec`."""
        order, about = [(arm.start, arm.variant) for arm in grid.arms(spec)], spec.get("arms")
        if about is None:  # there is one
            return cls(order)
        starts = {name: _start_words(name, start) for name, start in about["starts"].items()}
        published = [name for name, start in about["starts"].items() if start["published"]]
        places = {
            (arm.start, arm.variant, *keys): (cell.start, cell.variant, *keys)
            for (arm, *keys, _), cell in grid.places(spec).items()
        }
        shared = {place: key for place, key in places.items() if place != key}
        return cls(order, starts, published, about["tuned"], about["frozen"], about["steps"], shared)

    @property
    def base(self) -> tuple[str, str]:
        return self.order[0]

    def start(self, name: str) -> str:
        """A start in words."""
        return "a random start" if name == RANDOM else self.starts.get(name, f"the start {name}")

    def variant(self, name: str) -> str:
        """What a variant adds to the words for an arm; nothing for that of the base."""
        if name == self.base[1]:
            return ""
        for what, names in (("a tuned rate", self.tuned), ("a frozen encoder", self.frozen)):
            if name in names:
                return f"with {what}" + ("" if name in ("tuned", "frozen") else f" (variant {name})")
        return "as the study has it" if name == STUDY else f"in variant {name}"

    def words(self, start: str, variant: str, size: int, task: str = "none") -> str:
        """An arm with a number of pre-training images and a task, in words."""
        said = self.start(start)
        if size:
            said = f"SimMIM on {size:,} images {'on top of' if start in self.published else 'from'} {said}"
        return " ".join(filter(None, (said, "" if task == "none" else f"and the task {task}", self.variant(variant))))

    def called(self, key: Key) -> str:
        """A cell, by its key, in words; without its labels."""
        start, variant, size, task, _ = key
        return self.words(start, variant, size, task)

    def cell(self, *place: Any) -> Key:
        """The key of the cell at a place of the grid: start, variant, pre-train size, task, labels."""
        return self.shared.get(place, place)

    def sorted(self, keys: Iterable[Key]) -> list[Key]:
        """Keys by arm, then by task ('none' first), images and labels."""
        place = {arm: i for i, arm in enumerate(self.order)}
        return sorted(keys, key=lambda key: (place[key[:2]], key[3] != "none", key[3], key[2], key[4]))


def _start_words(name: str, start: Mapping[str, Any]) -> str:
    if not start["published"]:
        return f"a random {start['timm']} ({name})"
    given = "file" in start or "weights" in start
    return f"{'weights from a file' if given else 'published weights'} ({name})"


def questions(runs: Runs, arms: Arms) -> list[Question]:
    """What a study asks of its arms, each a mean over label sizes of equal weight; see `verdicts.ARMS`.

    Args:
        runs: all cells, keyed by `KEY`.
        arms: what they are of.
    """
    there = set(runs.keys)
    base_start, base_variant = arms.base
    starts = list(dict.fromkeys(start for start, _ in arms.order))
    sizes = sorted({key[2] for key in there})
    tasks = sorted({key[3] for key in there}, key=lambda task: (task != "none", task))
    labels = sorted({key[4] for key in there})
    first = tasks[0]
    found: list[Question] = []
    asked: set[Any] = set()  # cells that several arms share are compared once

    def ask(
        kind: str, one: tuple[str, str, int, str], other: tuple[str, str, int, str], name: str, against: str
    ) -> None:
        pairs = {n: (arms.cell(*one, n), arms.cell(*other, n)) for n in labels}
        pairs = {n: keys for n, keys in pairs.items() if len({*keys} & there) == 2}
        if pairs and (kind, *pairs.values()) not in asked:
            asked.add((kind, *pairs.values()))
            weights = [step(two, first) for first, two in pairs.values()]
            cells = [(one[2], n) for n in pairs]
            found.append(Question(kind, " ".join(map(str, one)), name, "label size", cells, weights, against))

    def called(start: str, variant: str, size: int, task: str = first) -> str:
        return arms.words(start, variant, size, "none" if task == first else task)

    for other, one in combinations(starts, 2):
        pair = [(start, base_variant, sizes[0], first) for start in (one, other)]
        ask("start against start", *pair, *(called(*key) for key in pair))
    for start in starts:
        alone = start, base_variant, sizes[0], first
        own = RANDOM, base_variant, sizes[-1], first
        if start in arms.published and sizes[0] == 0 < sizes[-1]:
            ask("published against own pre-training", alone, own, called(*alone), called(*own))
        for size in filter(None, sizes):
            one, other = (start, base_variant, size, first), (start, base_variant, 0, first)
            if start != base_start:
                ask("SimMIM on top of a start", one, other, called(*one), f"{arms.start(start)} alone")
    for start, variant in arms.order:
        if twin := arms.tuned.get(variant):
            kind, against = "tuned against fixed", "the fixed one"
        elif variant == base_variant or arms.tuned.get(base_variant) == variant:
            continue
        elif variant in arms.frozen:
            kind, twin, against = "frozen against trained", base_variant, "a trained one"
        else:
            kind, twin = "variant against study", base_variant
            against = "the study's own settings" if twin == STUDY else f"variant {twin}"
        for size in sizes:
            for task in tasks:
                one = start, variant, size, task
                ask(kind, one, (start, twin, size, task), called(*one), against)
    return found


def of_budgets(runs: Runs, arms: Arms) -> list[Question]:
    """What more pre-training images bring, in three questions for each start and pair of budgets; see `PARTS`.

    From the fewest images to the most: the gain at equal epochs, and its two parts, that of more steps on the few
    images and that of more images at as many steps; these three share Holm's correction. With the most images both
    budgets have the same steps, so that their cells there are those of the budget of epochs.

    Args:
        runs: all cells, keyed by `KEY`.
        arms: what they are of.
    """
    there = set(runs.keys)
    labels, all_sizes = sorted({key[4] for key in there}), sorted({key[2] for key in there if key[2]})
    found = []
    for start in dict.fromkeys(start for start, _ in arms.order):
        for steps, epochs in arms.steps.items():
            sizes = [n for n in all_sizes if any(arms.cell(start, epochs, n, "none", k) in there for k in labels)]
            if len(sizes) < 2:
                continue
            few, many = sizes[0], sizes[-1]
            places = [(start, epochs, few), (start, steps, few), (start, epochs, many)]
            cells = {n: [arms.cell(*place, "none", n) for place in places] for n in labels}
            cells = {n: keys for n, keys in cells.items() if len({*keys} & there) == len(places)}
            asked = {
                "equal epochs": (0, 2, f"pre-training on {many:,} images in place of {few:,}, at equal epochs,"),
                "steps": (0, 1, f"more steps on the same {few:,} images, as many as {many:,} images take,"),
                "images": (1, 2, f"{many:,} images in place of {few:,}, at equal steps,"),
            }
            for part in PARTS if cells else ():
                one, other, name = asked[part]
                name += f" on top of {arms.start(start)}," if start in arms.published else ""
                weights: list[Weights] = [step(keys[one], keys[other]) for keys in cells.values()]
                what = f"{part} {start} {epochs} {steps}"
                found.append(
                    Question(f"{BUDGETS}: {start}", what, name, "label size", [(many, n) for n in cells], weights)
                )
    return found


def budget_words(parts: Sequence[Decision]) -> str:
    """Which of images and steps brought what, in one sentence, from the three decisions of `of_budgets`."""
    whole, steps, images = parts
    named = {"up": "bought", "down": "cost"}

    def said(part: Decision, what: str) -> str:
        if math.isnan(part.low):
            return f"{what} {bare(abs(part.mean))} points {'more' if part.mean >= 0 else 'less'} ({part.reason})"
        if part.verdict in named:
            low, high = sorted((abs(part.low), abs(part.high)))
            return f"{what} {named[part.verdict]} {bare(abs(part.mean))} points ({bare(low)} to {bare(high)})"
        size = "changed little" if part.verdict == "small" else "cannot be told to have bought anything"
        clear = part.verdict == "undecided" and (part.low > 0 or part.high < 0)
        return f"{what} {size}{f', corrected for {part.family} questions' if clear else ''}: {part.number}"

    gain = f"{whole.name[0].upper()}{whole.name[1:]} brought {whole.number}"
    verdict = BOUGHT.get((steps.verdict, images.verdict), "Which of the two bought what cannot be told.")
    return f"{gain}: {said(steps, 'more steps')}, {said(images, 'more images')}. {verdict}"


def arms_table(
    runs: Runs,
    arms: Arms,
    spent: Mapping[Key, Mapping[str, Any]] | None = None,
    margin: float = MARGIN,
) -> pd.DataFrame:
    """Every arm beside the others, cell by cell.

    Args:
        runs: all cells, keyed by `KEY`.
        arms: what they are of.
        spent: what `costs.arm_costs` returns; None if no costs are known.
        margin: see `verdicts.answer`.

    Returns:
        One row per start, variant, pretrain_size, intermediate and finetune_size: n seeds; miou with low and high, its
        95 % interval over seeds and test images; three differences, each with _low, _high, _p, _p_holm (Holm's
        correction over the rows) and _words: base, from the base arm with the same images, task and labels; simmim,
        from the same arm without pre-training; tuning, from the same arm at the fixed rate. Then rate, the one chosen,
        and rate_end, whether it is the 'lowest' or the 'highest' tried; hours of each stage and in all; device;
        unlabelled_images. Fractions; empty where there is nothing to tell.
    """
    keys = arms.sorted(runs.keys)
    found = runs.contrasts(runs.weights(*({key: 1.0} for key in keys)))
    table = pd.DataFrame(keys, columns=KEY).assign(n=found.n, miou=found.mean, low=found.low, high=found.high)
    at = {key: place for place, key in enumerate(keys)}
    there, asked = set(keys), []
    for key in keys:
        start, variant, size, *rest = key
        others = {
            "base": arms.cell(*arms.base, size, *rest),
            "simmim": arms.cell(start, variant, 0, *rest),
            "tuning": arms.cell(start, arms.tuned.get(variant), size, *rest),
        }
        for name, other in others.items():
            if other in there and other != key:
                cell = [(size, key[4])]
                asked.append(Question(COMPARED[name], key, COMPARED[name], "cell", cell, [step(other, key)]))
    columns = {kind: name for name, kind in COMPARED.items()}
    table = table.reindex(columns=ARMS_COLUMNS)
    words = [f"{name}_words" for name in COMPARED]
    table = table.astype(dict.fromkeys([*words, "device", "rate_end"], object))
    for decision in answer(runs, asked, margin):
        name = columns[decision.kind]
        numbers = (decision.mean, decision.low, decision.high, decision.p, decision.p_holm, decision.words)
        table.loc[at[decision.what], [f"{name}{end}" for end in COMPARISON]] = numbers
    texts = [*words, "device", "rate_end"]
    table[texts] = table[texts].fillna("")
    for key, cost in (spent or {}).items():
        hours = {column: cost.get(stage, 0.0) for stage, column in HOURS.items()}
        if "finetune" in cost:  # on one device
            table.loc[at[key], [*hours, "hours"]] = [*hours.values(), sum(hours.values())]
        table.loc[at[key], "device"] = cost["device"]
        table.loc[at[key], ["rate", "rate_end"]] = cost["rate"], cost["rate_end"]
    table["unlabelled_images"] = table["pretrain_size"]
    return table


def held_out_tables(
    runs: Runs, arms: Arms, curves: Mapping[tuple[str, str], Mapping[tuple[int, int], pd.DataFrame]]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The held-out loss of pre-training, and what the encoders bring over their start.

    Args:
        runs: all cells, keyed by `KEY`.
        arms: what they are of.
        curves: learning curves by arm, then by pretrain_size and seed, as `held_out.held_out_table` takes them.

    Returns:
        What `held_out.held_out_table` returns of each arm, after start and variant. And a row for each of these and
        each number of labels: start, variant, pretrain_size, finetune_size; last, the last held-out loss; mean, low,
        high and n of the gain in mIoU over the same arm without pre-training, no task in between, paired by seed.
    """
    tables = [
        held_out_table(mine).assign(start=start, variant=variant)[[*ARM, *HELD_OUT]]
        for (start, variant), mine in curves.items()
    ]
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=[*ARM, *HELD_OUT])
    there, rows = set(runs.keys), []
    for row in table.to_dict("records"):
        start, variant, size = (row[name] for name in KEY[:3])
        for labels in sorted({key[4] for key in there}):
            one, other = (arms.cell(start, variant, images, "none", labels) for images in (size, 0))
            if {one, other} <= there:
                found = runs.contrasts(runs.weights(step(other, one))).at()
                numbers = {name: found[name] for name in ("mean", "low", "high", "n")}
                cell = {"pretrain_size": size, "finetune_size": labels, "last": row["last"]}
                rows.append({"start": start, "variant": variant, **cell, **numbers})
    return table, pd.DataFrame(rows, columns=GAINS)


@dataclass(frozen=True, eq=False)
class Best:
    """Which arm is best with some number of labels.

    Attributes:
        labels: that number.
        best: the arm with the highest mean, as a row of `arms_table`.
        even: rows of the arms that cannot be told from it, the highest mean first.
        behind: rows of the others, the highest mean first.
        gaps: how far the best is ahead of each of these, by key.
        first: the best in a sentence.
        further: sentences on the others.
    """

    labels: int
    best: dict[str, Any]
    even: list[dict[str, Any]]
    behind: list[dict[str, Any]]
    gaps: Mapping[Key, dict[str, float]]
    first: str
    further: str


def best_arm(runs: Runs, arms: Arms, table: pd.DataFrame, labels: int) -> Best:
    """The arm with the highest mean, and which ones cannot be told from it.

    All differences to it are tested at once, with Holm's correction, so that the chance of calling any arm worse that
    is not is 5 % at most for a best arm that is named beforehand, and near it for one that is chosen for its mean.

    Args:
        runs: all cells, keyed by `KEY`.
        arms: what they are of.
        table: what `arms_table` returns.
        labels: the number of labels.
    """
    rows = table[table["finetune_size"] == labels].sort_values("miou", ascending=False, kind="stable")
    best, *others = rows.to_dict("records")
    keys = [tuple(row[name] for name in KEY) for row in others]
    found = runs.contrasts(runs.weights(*(step(key, tuple(best[name] for name in KEY)) for key in keys)))
    worse = (holm(found.p) <= ALPHA) & (found.low > 0)
    gaps = {key: found.at(i) for i, key in enumerate(keys)}
    even = [row for row, told in zip(others, worse, strict=True) if not told]
    behind = [row for row, told in zip(others, worse, strict=True) if told]
    return Best(labels, best, even, behind, gaps, *_best_words(arms, labels, best, even, behind, found, worse))


def _best_words(
    arms: Arms,
    labels: int,
    best: Mapping[str, Any],
    even: Sequence[Mapping[str, Any]],
    behind: Sequence[Mapping[str, Any]],
    gaps: Estimates,
    worse: np.ndarray,
) -> tuple[str, str]:
    def called(row: Mapping[str, Any]) -> str:
        return arms.words(*(row[name] for name in KEY[:4]))

    interval = "" if math.isnan(best["low"]) else f" ({bare(best['low'])} to {bare(best['high'])})"
    first = f"With {labels:,} labels, the highest mIoU is that of {called(best)}: {bare(best['miou'])} %{interval}."
    said = []
    if even and np.isnan(gaps.low).all():
        return first, "With one seed, no arm can be told from another."
    if even:
        names = "; ".join(called(row) for row in even[:NAMED])
        names += f"; and {counted(len(even) - NAMED, 'other')}" if len(even) > NAMED else ""
        said.append(f"{counted(len(even), 'arm')} cannot be told from it: {names}.")
        cheapest = min([best, *even], key=lambda row: (_known(row["hours"]), row["unlabelled_images"]))
        devices = {row["device"] for row in [best, *even]}
        if cheapest is not best and len(devices) == 1 and not math.isnan(cheapest["hours"]):
            said.append(
                f"Of these, {called(cheapest)} takes the least time, {time_in_words(cheapest['hours'])} a model."
            )
    if behind:
        ahead, low, high = (getattr(gaps, name)[worse] for name in ("mean", "low", "high"))
        least = int(np.argmin(ahead))
        near = f"{bare(ahead[least])} points ({bare(low[least])} to {bare(high[least])})"
        number = "The other arm is" if len(behind) == 1 else f"The other {len(behind)} arms are"
        said.append(f"{number} behind by {near}{'' if len(behind) == 1 else ' or more'}.")
    return first, " ".join(said)


def time_in_words(hours: float) -> str:
    """A time to two digits, in hours, minutes or seconds, whichever reads best."""
    unit, long = next((one for one in (("h", 1), ("min", 60)) if hours * one[1] >= 0.5), ("s", 3600))
    return f"{hours * long:.2g} {unit}" if hours * long < 100 else f"{hours * long:,.0f} {unit}"


def _known(value: float) -> float:
    return math.inf if math.isnan(value) else value
