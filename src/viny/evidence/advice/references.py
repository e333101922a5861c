"""How the study's models compare with simple ones: a constant answer, and a small network from scratch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from viny.evidence.advice.advice import Item
from viny.evidence.advice.facts import Facts
from viny.evidence.tables import OF_CLASS
from viny.runtime.errors import InputError
from viny.study.grid import Reference
from viny.study.layout import TABLE

CONSTANT = "constant"  # the reference that learns nothing


def reference_items(facts: Facts) -> list[Item]:
    """What tables/references.csv says of the largest number of labels; nothing for a study without it.

    Raises:
        InputError: the table is damaged.
    """
    path = facts.root / TABLE.format(name="references.csv")
    if not facts.study.get("references") or not path.is_file():  # one that was switched off left its table behind
        return []
    try:
        table = pd.read_csv(path)
        rows = table[table["finetune_size"] == table["finetune_size"].max()]
        # What is better than a constant answer is said last: it is the harder test.
        rows = rows.sort_values("reference", key=lambda names: names != CONSTANT, kind="stable")
        seed = min(facts.grid["seeds"])
        found = []
        for row in rows.fillna({"gain_words": ""}).to_dict("records"):
            about = {"reference": row["reference"], "verdict": row["verdict"], "brief": _brief(row, seed)}
            about["gain"] = row["gain_words"]
            about["classes"] = {name: iou for name, iou in row.items() if name.startswith(OF_CLASS) and pd.notna(iou)}
            found.append(Item(f"{row['sentence']} {row['gain_words']}".rstrip(), about))
        return found
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a table of references ({error}); delete it and run the workflow") from error


def _brief(row: Mapping[str, Any], seed: int) -> str:
    """How a reference compares with the study's best cell, in few words, and its name in other commands."""
    reached, ahead = (f"{100 * abs(row[key]):.1f}" for key in ("mean", "lead"))
    labels = f"{int(row['finetune_size']):,} labels"
    if row["verdict"] != "down":
        side, answer = "less" if row["lead"] > 0 else "more", str(row["answer"])
        name = str(row["name"]).removesuffix(" from scratch")
        answer = answer[:1].upper() + answer[1:]  # first, where nothing cuts it off
        return f"{answer}: {name} has {reached} % mIoU with {labels}, {ahead} points {side}."
    said = f"{row['name']} has {reached} % mIoU with {labels}, {ahead} points more"
    if row["reference"] == CONSTANT:
        return f"Worse than none: {said}."
    name = Reference(int(row["finetune_size"]), seed).name
    return f"Do not use it: {said}: `{name}`; nnU-Net may do better still."


def better_model(references: Sequence[Item]) -> list[Item]:
    """Whether something simple does better than the study's best cell."""
    beaten = [item for item in references if item.data["verdict"] == "down"]
    text = "A simple reference does better, so this model may not be the one to use."
    return [Item(f"{text} {item.text}", item.data) for item in beaten[-1:]]
