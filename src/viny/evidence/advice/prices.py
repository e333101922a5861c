"""Advice at prices: the cheapest mix of images, labels and training for a target, its risk, and what to buy next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from viny.evidence.advice.advice import Item
from viny.evidence.advice.facts import Facts, start_words
from viny.evidence.advice.labels import more_labels
from viny.evidence.advice.purchase import Mix, Mixes, Prices, cheapest, mix_at, mixes, rounds
from viny.evidence.advice.trainings import measured_on_others
from viny.evidence.statistics.crossed import Runs, read_runs
from viny.evidence.statistics.surface import (
    BEYOND,
    LEAST_BEYOND,
    Surface,
    fit_surface,
    points_of,
    too_few,
)
from viny.evidence.tables import GROUP, read_metrics, with_arms
from viny.evidence.verdicts import bare, in_points
from viny.runtime.errors import InputError
from viny.runtime.units import counted, duration
from viny.study.arms import SECTIONS, settings_of
from viny.study.changes import changed
from viny.study.checks import check_sizes
from viny.study.grid import Arm, arms, cells
from viny.study.inventory import Images, count_images
from viny.study.layout import metrics_file
from viny.study.unanswered import pretraining_steps

CHANCE = 0.9  # of reaching the target, unless asked otherwise
LENGTH = ("budget", "epochs", "milestones")  # settings of the length of pre-training
EVEN = 1.5  # times as much: what brings so much more than the other limits a mix


@dataclass(frozen=True)
class Wish:
    """What is to be reached, and at what prices.

    Attributes:
        miou: a fraction.
        chance: of reaching it.
        label, image, hour: prices, in one unit.
    """

    miou: float
    chance: float = CHANCE
    label: float = 0.0
    image: float = 0.0
    hour: float = 0.0

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            InputError: names the option.
        """
        if not 0.01 < self.miou < 1:
            raise InputError(f"--reach is {100 * self.miou:g}; expected mIoU in percent, above 1 and below 100")
        if not 0.5 <= self.chance < 1:
            raise InputError(f"--chance is {100 * self.chance:g}; expected percent, from 50 to below 100")
        prices = {"label": self.label, "image": self.image, "hour": self.hour}
        for name, price in prices.items():
            if not 0 <= price < np.inf:
                raise InputError(f"--price-{name} is {price:g}; expected a number of 0 or more")
        if not any(prices.values()):
            raise InputError("--reach needs a price: give --price-label, --price-image or --price-hour")


def price_items(facts: Facts, wish: Wish) -> list[Item]:
    """The cheapest mix for a target, its rivals, what limits it, and the rounds to buy it in.

    Args:
        facts: the study's.
        wish: target and prices.

    Raises:
        InputError: a damaged file, or something in a data set is wrong.
    """
    runs, steps = _by_length(facts)
    points = points_of(runs, steps)
    if points is None or (why := too_few(points)):
        return [_not_fitted(facts, why if points is not None else too_few(None))]
    surface = fit_surface(points)
    images = count_images(facts.study, facts.root)
    prices, unknown = _prices(facts, wish, images)
    found = mixes(surface, prices, wish.miou)
    goal = f"{100 * wish.miou:g} % mIoU with a chance of {100 * wish.chance:g} %"
    place = cheapest(found, wish.chance)
    items = [_out_of_reach(surface, found, goal)] if place is None else []
    if place is not None:
        best = mix_at(found, place)
        items.append(_best(surface, best, goal, prices))
        items += _rivals(surface, found, best, wish)
        items.append(_limits(surface, best))
        items.append(_rounds(facts, found, wish, prices, images))
    return [*items, _basis(surface, prices, unknown)]


def _by_length(facts: Facts) -> tuple[Runs, list[float] | None]:
    """The cells of the first arm, and of variants that change the length of its pre-training alone, with their steps.

    Returns:
        Cells, and steps of pre-training; None without such a variant.
    """
    first, *others = arms(facts.study)
    base = _but_length(facts.study, first)
    wanted = {arm for arm in others if arm.start == first.start and _but_length(facts.study, arm) == base}
    there = [c for c in cells(facts.study) if c.arm in wanted and metrics_file(facts.root, c).is_file()]
    stale = set(measured_on_others(facts.root, there))
    there = [cell for cell in there if cell not in stale and cell.intermediate == "none"]
    if not there:
        return facts.runs, None
    every = [*facts.done, *there]
    frame = with_arms(read_metrics([metrics_file(facts.root, cell) for cell in every])).dropna(subset="miou")
    runs = read_runs(frame, facts.root / "metrics", [*GROUP, "variant"])
    steps = {}
    for cell in every:
        section = settings_of(facts.study, cell.arm)
        taken = pretraining_steps(section, cell.pretrain_size) if cell.pretrain_size else 0
        steps[cell.pretrain_size, cell.intermediate, cell.finetune_size, cell.variant] = float(taken)
    return runs, [steps[key] for key in runs.keys]  # type: ignore[index]


def _but_length(study: Mapping[str, Any], arm: Arm) -> dict[str, Any]:
    """The settings of an arm but for the length of pre-training."""
    found = settings_of(study, arm)
    section = {key: value for key, value in found["pretrain"].items() if key not in LENGTH}
    return {**{key: found.get(key) for key in SECTIONS}, "pretrain": section}


def _not_fitted(facts: Facts, why: str) -> Item:
    text = f"What a target costs cannot be said: {why}."
    if "label size" in why and len(sizes := more_labels(facts)) > len(facts.grid["finetune_sizes"]):
        text += f" `grid.finetune_sizes: {sizes}` would do."
    return Item(text, {"fitted": False, "why": why})


def _prices(facts: Facts, wish: Wish, images: Images) -> tuple[Prices, list[str]]:
    """Prices with what is at hand and how fast trainings ran; and the stages whose time is not known."""
    pool, labelled = images.limits["pretrain"], images.room
    if pool is None:
        pool = facts.pool("pretrain")
    if labelled is None and (every := facts.pool("segmentation")) is not None:
        labelled = every - facts.test_images[-1]
    rates = {stage: facts.trainings.seconds_a_pass(stage) for stage in ("pretrain", "finetune")}
    unknown = [stage for stage, rate in rates.items() if math.isnan(rate) and (stage != "pretrain" or facts.sizes)]
    prices = Prices(
        label=wish.label,
        image=wish.image,
        hour=wish.hour,
        labels=max(*facts.grid["finetune_sizes"], labelled or 0),
        images=max(*facts.grid["pretrain_sizes"], pool or 0),
        pretrain=0.0 if math.isnan(rates["pretrain"]) else rates["pretrain"],
        finetune=0.0 if math.isnan(rates["finetune"]) else rates["finetune"],
        batch=facts.config["pretrain"]["batch_size"],
        pretrain_epochs=facts.config["pretrain"]["epochs"],
        finetune_epochs=facts.config["finetune"]["epochs"],
        least=max(facts.sizes, default=0) if facts.config["pretrain"].get("budget") == "steps" else 0,
    )
    return prices, unknown


def _best(surface: Surface, mix: Mix, goal: str, prices: Prices) -> Item:
    level = _level(surface, mix)
    missing = [
        f"{int(more):,} more {what}"
        for more, what in ((mix.labels - prices.labels, "labels"), (mix.images - prices.images, "images"))
        if more > 0
    ]
    text = f"The cheapest way to {goal}: {_words(mix)}"
    text += f", {' and '.join(missing)} than are at hand" if missing else ", all of it at hand"
    text += f": {_cost(mix)}. Foretold: {_span(level)}; the chance of missing is {_chance(1 - mix.chance)}."
    if beyond := _beyond(surface, mix):
        text += f" That is {beyond}."
    return Item(text, {"fitted": True, "mix": _data(mix), "miou": level})


def _rivals(surface: Surface, found: Mixes, best: Mix, wish: Wish) -> list[Item]:
    """The cheapest mixes without pre-training and with the most of it."""
    said, data = [], {}
    for key, name, images in (
        ("without", "without pre-training", 0.0),
        ("most", f"with the most images that can be spoken of, {surface.most_images:,.0f},", surface.most_images),
    ):
        here = found.images == images
        if not here.any() or len(surface.image_sizes) == 1 or best.images == images:
            continue
        place = cheapest(found, wish.chance, here)
        if place is None:
            likeliest = float(found.chance[here].max())
            said.append(f"{name} none does (at best with a chance of {_chance(likeliest)})")
        else:
            mix = mix_at(found, place)
            said.append(f"{name} {mix.labels:,} labels for {_units(mix.cost)}")
        data[key] = None if place is None else _data(mix_at(found, place))
    return [Item(f"In place of it, {'; '.join(said)}.", data)] if said else []


def _limits(surface: Surface, mix: Mix) -> Item:
    """What would bring most at a mix: twice the labels, or twice the images."""
    gains = {"labels": _doubled(surface, mix, 1, 2)}
    if mix.images and len(surface.image_sizes) >= LEAST_BEYOND:
        gains["images"] = _doubled(surface, mix, 2, 1)
    said = [f"twice the {what} would bring {in_points(gain)} points" for what, gain in gains.items()]
    text = f"There, {' and '.join(said)}"
    if len(gains) > 1:
        most, least = sorted(gains, key=lambda what: -gains[what])
        if gains[most] > EVEN * max(gains[least], 0.0):
            text += f": {most} limit it"
        else:
            text += ": both limit it alike"
    return Item(f"{text}.", {"gains": gains})


def _doubled(surface: Surface, mix: Mix, images: int, labels: int) -> float:
    u, n = np.array([1, images]) * float(mix.images), np.array([1, labels]) * float(mix.labels)
    steps = None if mix.steps is None else np.full(2, float(mix.steps))
    before, after = surface.errors(u, n, steps)[0]
    return float(before - after)


def _rounds(facts: Facts, found: Mixes, wish: Wish, prices: Prices, images: Images) -> Item:
    """What to buy first, with the chance of having reached the target after each round."""
    path, expected = rounds(found, wish.chance)
    plan = [mix_at(found, place) for place in path]
    data: dict[str, Any] = {"rounds": [_data(mix) for mix in plan], "expected_cost": expected}
    first = plan[0]
    if first.data <= 0 and len(plan) == 1:
        return Item(f"Nothing is to be bought: {_next(facts, first, images, data)}", data)
    said = []
    had = (prices.labels, prices.images)
    for number, mix in enumerate(plan, 1):
        more = [(mix.labels - had[0], "labels"), (mix.images - had[1], "images")]
        buys = " and ".join(f"{int(n):,} more {what}" for n, what in more if n > 0)
        had = (max(had[0], mix.labels), max(had[1], mix.images))
        said.append(f"{number}. {buys}, to {_words(mix)} (reached by then with a chance of {_chance(mix.chance)})")
    text = f"Buy in rounds, and advise again after each: {'; '.join(said)}. "
    if len(plan) == 1:
        text = f"Buy at once: {said[0].removeprefix('1. ')}. "
    else:
        text += f"Expected cost {_units(expected)}, as later rounds may not be needed. "
    return Item(text + _next(facts, first, images, data), data)


def _next(facts: Facts, mix: Mix, images: Images, data: dict[str, Any]) -> str:
    """The grid that measures a mix, checked as `viny check` does."""
    grid: dict[str, Sequence[int]] = {}
    for key, size in (("finetune_sizes", mix.labels), ("pretrain_sizes", mix.images)):
        if size not in facts.grid[key]:
            grid[key] = sorted({*facts.grid[key], size})
    data["grid"] = grid
    text = ""
    if mix.steps is not None and mix.images:
        epochs = round(mix.steps * facts.config["pretrain"]["batch_size"] / mix.images)
        data["epochs"] = epochs
        text = f" Its steps are `pretrain.epochs: {epochs}`, which a variant can set."
    if not grid:
        return f"The study's own grid measures it.{text}"
    config = changed(facts.study, {"grid": grid})
    changes = " ".join(f"--set 'grid.{key}={list(sizes)}'" for key, sizes in grid.items())
    inner = ", ".join(f"{key}: {list(sizes)}" for key, sizes in grid.items())
    text = f"Measure it with `viny plan <study.yaml> {changes}` and `snakemake --config 'grid={{{inner}}}'`.{text}"
    data["set"] = changes
    try:
        check_sizes(config, images.limits)
    except InputError as error:
        text += f" First add the images: `viny check` would say now that {error}."
        data["check"] = str(error)
    return text


def _out_of_reach(surface: Surface, found: Mixes, goal: str) -> Item:
    best = mix_at(found, int(found.chance.argmax()))
    level = _level(surface, best)
    text = (
        f"No mix as far as can be foretold (up to {surface.most_labels:,.0f} labels and {surface.most_images:,.0f} "
        f"images) reaches {goal}. The likeliest is {_words(best)}, with a chance of {_chance(best.chance)}: "
        f"{_span(level)} foretold."
    )
    return Item(text, {"fitted": True, "mix": None, "likeliest": _data(best), "miou": level})


def _basis(surface: Surface, prices: Prices, unknown: Sequence[str]) -> Item:
    """What the advice at prices rests on, and what it leaves out."""
    forms = counted(len(surface.fitted), "form")
    at_hand = f"{prices.labels:,.0f} labels"
    if surface.most_images:
        at_hand += f" and {prices.images:,.0f} images"
    text = (
        f"From a surface of error over {len(surface.points.errors)} cells without a task, the average of {forms}. "
        "A chance is that of mIoU as a mean over seeds and over test images like these. At hand, and free: "
        f"{at_hand}. Hours are of one pre-training and one "
        f"fine-tuning, as fast as they ran here. Nothing is said beyond {BEYOND} times the largest number of labels"
    )
    if surface.most_images and len(surface.image_sizes) < LEAST_BEYOND:
        text += f", or beyond the largest of images, which takes {LEAST_BEYOND} sizes"
    text += "."
    if surface.doubtful:
        text += f" No form foretells the sizes left out (p {surface.misfit:.2g}): chances are too sure."
    if unknown:
        text += f" The time of {' and '.join(unknown)} is not known and is left out."
    forms_data = surface.table().to_dict("records")
    return Item(text, {"forms": forms_data, "misfit": surface.misfit, "prices": asdict(prices)})


def _level(surface: Surface, mix: Mix) -> dict[str, float]:
    return surface.foretold(mix.images, mix.labels, mix.steps)


def _beyond(surface: Surface, mix: Mix) -> str:
    """By how many times a mix is beyond what was measured; empty if it is not."""
    said = [
        f"{size / largest:.2f} times the {what} that were measured"
        for size, largest, what in (
            (mix.labels, surface.points.labels.max(), "most labels"),
            (mix.images, surface.points.images.max(), "most images"),
        )
        if size > largest
    ]
    return " and ".join(said)


def _words(mix: Mix) -> str:
    words = f"{start_words(mix.images)} and {mix.labels:,} labels"
    return words if mix.steps is None or not mix.images else f"{words}, {mix.steps:,} steps of pre-training"


def _cost(mix: Mix) -> str:
    trained = f"{duration(3600 * mix.hours)} of training"
    return f"{_units(mix.cost)}, {_units(mix.training)} of them for {trained}" if mix.training else _units(mix.cost)


def _units(cost: float) -> str:
    return f"{cost:,.0f} units" if cost >= 100 else f"{cost:.3g} units"


def _chance(share: float) -> str:
    return "under 1 %" if share < 0.01 else "over 99 %" if share > 0.99 else f"{100 * share:.0f} %"


def _span(level: Mapping[str, float]) -> str:
    return f"{bare(level['mean'])} % mIoU ({bare(level['low'])} to {bare(level['high'])})"


def _data(mix: Mix) -> dict[str, Any]:
    return asdict(mix) | {"cost": mix.cost}
