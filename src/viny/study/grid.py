"""The grid: which cells and encoders a study expands to, and what each is called."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

RANDOM = "random"  # the start of an encoder that is drawn, not published
STUDY = "study"  # the variant that is the study itself
AXES = ("starts", "variants", "pretrain_sizes", "intermediates", "finetune_sizes", "seeds")
START = r"(?:_start-([A-Za-z0-9_]+))?"
VARIANT = r"(?:_variant-([A-Za-z0-9_]+))?"
CELL_NAME = re.compile(rf"pre-(\d+)_mid-([A-Za-z0-9_]+)_fine-(\d+)_seed-(\d+){START}{VARIANT}")

REFERENCE_NAME = re.compile(r"unet_fine-(\d+)_seed-(\d+)")


@dataclass(frozen=True, order=True)
class Arm:
    """Where encoders start, and the variant of the study that trains them."""

    start: str = RANDOM
    variant: str = STUDY

    @property
    def name(self) -> str:
        """In words: 'random', 'tiny', 'random, tuned'."""
        return self.start if self.variant == STUDY else f"{self.start}, {self.variant}"

    @property
    def suffix(self) -> str:
        """What it adds to the names of files; nothing for the study's own arm."""
        return f"_start-{self.start}" * (self.start != RANDOM) + f"_variant-{self.variant}" * (self.variant != STUDY)

    def as_dict(self) -> dict[str, str]:
        """What it adds to the keys of a result; nothing for the study's own arm."""
        start = {} if self.start == RANDOM else {"start": self.start}
        return start if self.variant == STUDY else {**start, "variant": self.variant}


BASE = Arm()


@dataclass(frozen=True)
class Lineage:
    """Which trainings a cell shares with others: variants that do not differ in a stage have one encoder.

    Attributes:
        start: the variant whose name the untrained encoder bears.
        pack: that of the unlabelled images.
        pretrain: that of the pre-trained encoder.
        tasks: tasks up to the cell's own, in order, each with the variant whose name its encoder bears, and how many
            images it trains on, None for all.
        published: whether the start has weights of its own.
    """

    start: str
    pack: str
    pretrain: str
    tasks: tuple[tuple[str, str, int | None], ...]
    published: bool


@dataclass(frozen=True, order=True)
class Cell:
    """One combination of the grid: pre-training images, intermediate task, labels, seed, start, variant."""

    pretrain_size: int
    intermediate: str
    finetune_size: int
    seed: int
    start: str = RANDOM
    variant: str = STUDY
    lineage: Lineage | None = field(default=None, compare=False, repr=False)

    @property
    def arm(self) -> Arm:
        return Arm(self.start, self.variant)

    @property
    def name(self) -> str:
        name = f"pre-{self.pretrain_size}_mid-{self.intermediate}_fine-{self.finetune_size}_seed-{self.seed}"
        return name + self.arm.suffix

    @property
    def group(self) -> tuple[Any, ...]:
        """Its keys but for the seed."""
        return self.pretrain_size, self.intermediate, self.finetune_size, self.start, self.variant

    @property
    def shared(self) -> Lineage:
        """Its lineage; one that shares nothing if it is not known."""
        if self.lineage is not None:
            return self.lineage
        tasks = () if self.intermediate == "none" else ((self.intermediate, self.variant, None),)
        return Lineage(self.variant, STUDY, self.variant, tasks, self.start != RANDOM)

    @classmethod
    def parse(cls, name: str) -> Cell | None:
        """The cell of that name, as if it shared no training; None if it is no cell's."""
        found = CELL_NAME.fullmatch(name)
        if found is None:
            return None
        size, task, labels, seed, start, variant = found.groups()
        return cls(int(size), task, int(labels), int(seed), start or RANDOM, variant or STUDY)

    @classmethod
    def of(cls, keys: Mapping[str, Any]) -> Cell:
        """The cell of a result's keys, as if it shared no training."""
        return cls(**{key: value for key, value in keys.items() if key != "name"})

    def as_dict(self) -> dict[str, Any]:
        keys = ("pretrain_size", "intermediate", "finetune_size", "seed")
        return {**{key: getattr(self, key) for key in keys}, **self.arm.as_dict(), "name": self.name}


@dataclass(frozen=True, order=True)
class Reference:
    """What the cells of a label size and a seed are compared with: a U-Net from scratch on the same labels."""

    finetune_size: int
    seed: int

    @property
    def name(self) -> str:
        return f"unet_fine-{self.finetune_size}_seed-{self.seed}"

    @classmethod
    def parse(cls, name: str) -> Reference | None:
        """The reference of that name; None if it is no reference's."""
        found = REFERENCE_NAME.fullmatch(name)
        return cls(int(found[1]), int(found[2])) if found else None

    def as_dict(self) -> dict[str, Any]:
        return {"reference": "unet", "finetune_size": self.finetune_size, "seed": self.seed, "name": self.name}


@dataclass(frozen=True)
class Encoder:
    """An encoder to be measured: a start, one that a stage produced, or the one in a fine-tuned model."""

    kind: str  # random (a start as it is), pretrained, intermediate or finetuned
    pretrain_size: int
    intermediate: str
    finetune_size: int  # 0 before fine-tuning
    seed: int
    start: str = RANDOM
    variant: str = STUDY
    lineage: Lineage | None = field(default=None, compare=False, repr=False)

    @property
    def cell(self) -> Cell:
        """A cell whose trainings it is among."""
        keys = (self.pretrain_size, self.intermediate, self.finetune_size, self.seed)
        return Cell(*keys, self.start, self.variant, self.lineage)

    @property
    def name(self) -> str:
        if self.kind == "finetuned":
            return f"finetuned_{self.cell.name}"
        name = f"{self.kind}_pre-{self.pretrain_size}_mid-{self.intermediate}_seed-{self.seed}"
        return name + self.cell.arm.suffix

    @classmethod
    def of(cls, keys: Mapping[str, Any]) -> Encoder:
        """The encoder of a result's keys, as if it shared no training."""
        return cls(**{key: value for key, value in keys.items() if key != "name"})

    def as_dict(self) -> dict[str, Any]:
        keys = ("kind", "pretrain_size", "intermediate", "finetune_size", "seed")
        return {**{key: getattr(self, key) for key in keys}, **self.cell.arm.as_dict(), "name": self.name}


def encoders(config: Mapping[str, Any], among: Iterable[Cell] | None = None) -> list[Encoder]:
    """The encoders whose geometry a study measures, each once; the reference of each is among them.

    Args:
        config: resolved settings, or a stage's own.
        among: the cells whose encoders they are; all of the study's unless given.
    """
    wanted, found = config["geometry"]["encoders"], []
    if wanted == "none":
        return []
    for cell in cells(config) if among is None else among:
        size, task, seed, shared = cell.pretrain_size, cell.intermediate, cell.seed, cell.shared
        start = Encoder("random", 0, "none", 0, seed, cell.start, shared.start, shared)
        found.append(start)
        found.append(
            Encoder("pretrained", size, "none", 0, seed, cell.start, shared.pretrain, shared) if size else start
        )
        if task != "none":
            found.append(Encoder("intermediate", size, task, 0, seed, cell.start, shared.tasks[-1][1], shared))
        if wanted == "all":
            found.append(Encoder("finetuned", size, task, cell.finetune_size, seed, cell.start, cell.variant, shared))
    return list(dict.fromkeys(found))


def cells(config: Mapping[str, Any]) -> list[Cell]:
    """Every cell of a resolved study, in the grid's order, arm by arm; none is trained twice, see `places`."""
    return list(dict.fromkeys(places(config).values()))


def places(config: Mapping[str, Any]) -> dict[tuple[Arm, int, str, int, int], Cell]:
    """The cell at each place of the grid: arm, pre-train size, task, label size, seed.

    Where a variant changes nothing, such as the pre-training of a cell that has none, the cell is an earlier arm's.
    """
    grid = config["grid"]
    lineages = grid.get("lineages", {})
    found: dict[tuple[Arm, int, str, int, int], Cell] = {}
    first: dict[tuple[Any, ...], Cell] = {}
    for arm in arms(config):
        for values in itertools.product(*(_axis(grid, arm, axis) for axis in AXES[2:])):
            cell = Cell(*values, arm.start, arm.variant, _lineage(lineages, arm, values) if lineages else None)
            same = lineages["owners"][arm.variant]["cells"][values[1]][str(values[0])] if lineages else arm.variant
            found[arm, *values] = first.setdefault((arm.start, same, *values), cell)
    return found


def base_cells(config: Mapping[str, Any]) -> list[Cell]:
    """The cells of the first start and the first variant, with which the others are compared."""
    base = arms(config)[0]
    return [cell for cell in cells(config) if cell.arm == base]


def references(config: Mapping[str, Any]) -> list[Reference]:
    """The references of a study, one for each label size and seed of its first arm; none if it has them off.

    Args:
        config: resolved settings, or a stage's own.
    """
    if not config.get("references"):
        return []
    return list(dict.fromkeys(Reference(cell.finetune_size, cell.seed) for cell in base_cells(config)))


def by_group(cells: Iterable[Cell]) -> dict[tuple[Any, ...], list[Cell]]:
    """Cells that differ in their seed alone, by `Cell.group`."""
    found: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell.group, []).append(cell)
    return found


def arms(config: Mapping[str, Any]) -> list[Arm]:
    """The arms of a study: every start with every variant, unless either is limited to others."""
    grid = config["grid"]
    found = [Arm(*both) for both in itertools.product(grid.get("starts", [RANDOM]), grid.get("variants", [STUDY]))]
    return [
        one for one in found if one.start in _axis(grid, one, "starts") and one.variant in _axis(grid, one, "variants")
    ]


def has_arms(config: Mapping[str, Any]) -> bool:
    """Whether a study has more than one arm."""
    return len(arms(config)) > 1


def _axis(grid: Mapping[str, Any], arm: Arm, axis: str) -> list[Any]:
    """An axis of the grid for an arm, whose start and variant may shorten it."""
    values = grid.get(axis, [RANDOM] if axis == "starts" else [STUDY])
    limits = grid.get("lineages", {}).get("limits", {})
    for limit in (limits.get("starts", {}).get(arm.start, {}), limits.get("variants", {}).get(arm.variant, {})):
        values = [value for value in values if value in limit.get(axis, values)]
    return values


def _lineage(lineages: Mapping[str, Any], arm: Arm, values: tuple[Any, ...]) -> Lineage:
    size, task, _, _ = values
    owners = lineages["owners"][arm.variant]
    chain = owners["chains"][task] if task != "none" else []
    return Lineage(
        owners["start"],
        owners["pack"],
        owners["pretrain"][str(size)],
        tuple((one, owners["tasks"][one][str(size)], owners["images"].get(one)) for one in chain),
        arm.start in lineages["published"],
    )


def pretrain_pack(variant: str) -> str:
    """Name of the pack of unlabelled images that a variant has, if no other has the same."""
    return "pretrain" + Arm(variant=variant).suffix


def probe_size(config: Mapping[str, Any]) -> int:
    """The label size whose split the probes learn from: the smallest with enough images, so more change nothing."""
    sizes, wanted = config["grid"]["finetune_sizes"], config["geometry"]["probe_images"]
    return min([size for size in sizes if size >= wanted], default=max(sizes))


def shown_cells(config: Mapping[str, Any]) -> list[Cell]:
    """The cells whose predictions are shown: fewest and most labels, least and most pre-training, first seed and arm.

    Those with the most pre-training are shown after the first intermediate task too. The last has the most labels.
    """
    base = {(c.pretrain_size, c.intermediate, c.finetune_size): c for c in reversed(base_cells(config))}
    sizes, tasks, labels = ([key[place] for key in base] for place in range(3))
    start, *others = sorted(dict.fromkeys(reversed(tasks)), key=lambda task: task != "none")
    trained = [(min(sizes), start), (max(sizes), start), *((max(sizes), task) for task in others[:1])]
    picked = [base[size, task, n] for n in (min(labels), max(labels)) for size, task in trained]
    return list(dict.fromkeys(picked))


def failing_pair(config: Mapping[str, Any]) -> tuple[Cell, Cell] | None:
    """Two of `shown_cells`, with the most pre-training and labels: without a task, and after the first one."""
    shown = shown_cells(config)
    last = [cell for cell in shown if cell.finetune_size == shown[-1].finetune_size]
    without, task = last[-2:] if len(last) > 1 else (last[0], last[0])
    if without.intermediate != "none" or task.intermediate == "none":
        return None
    return without, task


def reconstructed(config: Mapping[str, Any]) -> Encoder | None:
    """The encoder whose reconstructions are shown: of the first arm, most images, first seed; None without any."""
    cell = max(base_cells(config), key=lambda cell: cell.pretrain_size)  # the first of those with most
    if cell.pretrain_size == 0:
        return None
    owner = cell.shared.pretrain
    return Encoder("pretrained", cell.pretrain_size, "none", 0, cell.seed, cell.start, owner, cell.shared)


STAGE_OF = {"pretrained": "pretrain", "intermediate": "intermediate", "finetuned": "finetune"}  # random has none
KINDS = ("random", *STAGE_OF)
