"""The best cell, which cells cannot be told from it, and whether it is better than a constant answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from viny.evidence.advice.advice import Item
from viny.evidence.advice.facts import NEAR, Facts, listed, start_words
from viny.evidence.constant import constant_answer
from viny.evidence.metrics import mean_iou_dataset, mean_iou_per_image
from viny.evidence.statistics.crossed import ALPHA, LEAST_SEEDS, read_confusion
from viny.evidence.tables import GROUP
from viny.evidence.verdicts import bare, holm


@dataclass(frozen=True, eq=False)
class Best:
    """The cell with the highest mean mIoU over its seeds.

    Attributes:
        pretrain_size, intermediate, finetune_size: which cell it is.
        level: its mIoU, see `crossed.Estimates`.
        rows: its rows of `Facts.frame`, one for each seed.
        leads: its lead over each other cell, paired within seeds, likewise; keyed by the three attributes that
            identify a cell, the highest mean first.
        alike: the cells that it cannot be told from, after Holm's correction over all others.
    """

    pretrain_size: int
    intermediate: str
    finetune_size: int
    level: Mapping[str, Any]
    rows: pd.DataFrame
    leads: Mapping[tuple[int, str, int], Mapping[str, Any]]
    alike: Sequence[tuple[int, str, int]]

    @property
    def key(self) -> tuple[int, str, int]:
        return self.pretrain_size, self.intermediate, self.finetune_size

    @property
    def name(self) -> str:
        """Its first seed, as other commands take it."""
        return str(self.rows.sort_values("seed")["cell"].iloc[0])

    @property
    def words(self) -> str:
        """Which cell it is, and its mIoU."""
        level = self.level
        interval = "one seed, no interval" if level["n"] < 2 else f"{bare(level['low'])} to {bare(level['high'])}"
        return f"{_cell_words(*self.key)}, with {bare(level['mean'])} % mIoU ({interval})"


def find_best(facts: Facts) -> Best:
    """The best of the evaluated cells."""
    means = facts.frame.groupby(GROUP)["miou"].mean().sort_values(ascending=False, kind="stable")
    here, *others = (tuple(cell) for cell in means.index)
    leads = facts.runs.contrasts(facts.runs.weights(*({here: 1.0, cell: -1.0} for cell in others)))
    ahead = (holm(leads.p) <= ALPHA) & (leads.low > 0)
    return Best(
        *here,
        level=facts.runs.contrasts(facts.runs.weights({here: 1.0})).at(),
        rows=facts.frame.set_index(GROUP).loc[[here]],
        leads={cell: leads.at(place) for place, cell in enumerate(others)},
        alike=[cell for cell, told in zip(others, ahead, strict=True) if not told],
    )


def best_items(best: Best) -> list[Item]:
    """The best cell, its mIoU, the cells that cannot be told from it, and its name in other commands."""
    level, others = best.level, len(best.leads)
    alike = [_cell_words(*cell) for cell in best.alike]
    text = f"Best on the test images: {best.words}."
    if level["n"] < 2 and others:
        text += f" One seed tells none of the {others} other cells from it."
    elif alike:
        text += f" Of the {others} other cells {len(alike)} cannot be told from it: {listed(alike)}."
    elif others:
        text += f" It is above each of the {others} other cells."
    if others:
        text += " (After Holm's correction; and the best of many looks better than it is.)"
    rows = best.rows.sort_values("seed")
    name, seeds = rows["cell"].iloc[0], [int(seed) for seed in rows["seed"]]
    text += f" `viny predict` and `viny export` take it as `{name}` (its seeds: {', '.join(map(str, seeds))})."
    data = dict(zip(GROUP, best.key, strict=True)) | {key: level[key] for key in ("n", "mean", "low", "high")}
    return [Item(text, data | {"cell": name, "seeds": seeds, "not_told_from_it": alike, "others": others})]


def constant_items(facts: Facts, best: Best) -> list[Item]:
    """Whether even the best cell is hardly better than always answering the most frequent class.

    Args:
        facts: the study's.
        best: its best cell.

    Returns:
        An item; none if the cell is better, or has no confusion matrices.

    Raises:
        InputError: a damaged file.
    """
    row = best.rows.sort_values("seed").iloc[0]
    path = facts.root / "metrics" / f"{row['cell']}.npz"
    if not path.is_file():
        return []
    confusion, _ = read_confusion(path)
    pixels = confusion.sum(2)  # [N, C], of each true class
    most = int(pixels.sum(0).argmax())
    mean_iou = mean_iou_per_image if row["miou_is"] == "per_image" else mean_iou_dataset
    miou = mean_iou(constant_answer(confusion, most), list(range(pixels.shape[1])))
    if best.level["mean"] - miou < NEAR * (1 - miou):
        words = "is near" if best.level["mean"] > miou else "is no better than"
    elif best.level["n"] >= LEAST_SEEDS and best.level["low"] <= miou:
        words = "cannot be told from"
    else:
        return []
    names = (facts.manifest("segmentation") or {}).get("mask_classes", ())
    name = names[most] if len(names) == pixels.shape[1] else "the most frequent class"
    text = f"Even the best model {words} what always answering {name} would get ({100 * miou:.1f} %)."
    short = f"The best model {words} always answering {name} ({100 * miou:.1f} %)."
    return [Item(text, {"constant": name, "miou": miou}, (text, short))]


def _cell_words(size: int, task: str, labels: int) -> str:
    return f"{start_words(size, task)}, {labels:,} labels"
