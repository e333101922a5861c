"""The grid: which cells and encoders a study expands to, and what each is called."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

CELL_NAME = re.compile(r"pre-(\d+)_mid-([A-Za-z0-9_]+)_fine-(\d+)_seed-(\d+)")


@dataclass(frozen=True, order=True)
class Cell:
    """One combination of the grid: number of pre-training images, intermediate task, number of labels, seed."""

    pretrain_size: int
    intermediate: str
    finetune_size: int
    seed: int

    @property
    def name(self) -> str:
        return f"pre-{self.pretrain_size}_mid-{self.intermediate}_fine-{self.finetune_size}_seed-{self.seed}"

    @classmethod
    def parse(cls, name: str) -> Cell | None:
        """The cell of that name; None if it is no cell's."""
        found = CELL_NAME.fullmatch(name)
        return cls(int(found[1]), found[2], int(found[3]), int(found[4])) if found else None

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "name": self.name}


@dataclass(frozen=True)
class Encoder:
    """An encoder to be measured: a random start, one that a stage produced, or the one in a fine-tuned model."""

    kind: str  # random, pretrained, intermediate or finetuned
    pretrain_size: int
    intermediate: str
    finetune_size: int  # 0 before fine-tuning
    seed: int

    @property
    def name(self) -> str:
        if self.kind == "finetuned":
            return f"finetuned_{Cell(self.pretrain_size, self.intermediate, self.finetune_size, self.seed).name}"
        return f"{self.kind}_pre-{self.pretrain_size}_mid-{self.intermediate}_seed-{self.seed}"

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "name": self.name}


def encoders(config: Mapping[str, Any]) -> list[Encoder]:
    """The encoders whose geometry a study measures, each once; the reference of each is among them."""
    wanted, found = config["geometry"]["encoders"], []
    if wanted == "none":
        return []
    for cell in cells(config):
        size, task, seed = cell.pretrain_size, cell.intermediate, cell.seed
        found.append(Encoder("random", 0, "none", 0, seed))
        found.append(Encoder("pretrained" if size else "random", size, "none", 0, seed))
        if task != "none":
            found.append(Encoder("intermediate", size, task, 0, seed))
        if wanted == "all":
            found.append(Encoder("finetuned", size, task, cell.finetune_size, seed))
    return list(dict.fromkeys(found))


def cells(config: Mapping[str, Any]) -> list[Cell]:
    """Every cell of a resolved study, in the grid's order."""
    grid = config["grid"]
    return [
        Cell(*values)
        for values in itertools.product(
            grid["pretrain_sizes"], grid["intermediates"], grid["finetune_sizes"], grid["seeds"]
        )
    ]


def probe_size(config: Mapping[str, Any]) -> int:
    """The label size whose split the probes learn from: the smallest with enough images, so more change nothing."""
    sizes, wanted = config["grid"]["finetune_sizes"], config["geometry"]["probe_images"]
    return min([size for size in sizes if size >= wanted], default=max(sizes))


def shown_cells(config: Mapping[str, Any]) -> list[Cell]:
    """The cells whose predictions are shown: fewest and most labels, least and most pre-training, first seed.

    Those with the most pre-training are shown after the first intermediate task too. The last has the most labels.
    """
    grid = config["grid"]
    sizes, labels, seed = grid["pretrain_sizes"], grid["finetune_sizes"], grid["seeds"][0]
    start, *tasks = sorted(grid["intermediates"], key=lambda task: task != "none")
    trained = [(min(sizes), start), (max(sizes), start), *((max(sizes), task) for task in tasks[:1])]
    picked = [Cell(size, task, n, seed) for n in (min(labels), max(labels)) for size, task in trained]
    return list(dict.fromkeys(picked))


def failing_pair(config: Mapping[str, Any]) -> tuple[Cell, Cell] | None:
    """Two of `shown_cells`, with the most pre-training and labels: without a task, and after the first one."""
    grid = config["grid"]
    tasks = [task for task in grid["intermediates"] if task != "none"]
    if not tasks or len(tasks) == len(grid["intermediates"]):
        return None
    size, labels, seed = max(grid["pretrain_sizes"]), max(grid["finetune_sizes"]), grid["seeds"][0]
    return Cell(size, "none", labels, seed), Cell(size, tasks[0], labels, seed)


STAGE_OF = {"pretrained": "pretrain", "intermediate": "intermediate", "finetuned": "finetune"}  # random has none
KINDS = ("random", *STAGE_OF)
