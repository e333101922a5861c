"""How the study's models compare with simple ones: a constant answer, and a small network from scratch."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from viny.evidence.advice.advice import Item
from viny.evidence.advice.facts import Facts
from viny.runtime.errors import InputError
from viny.study.layout import TABLE

CONSTANT = "constant"  # the reference that learns nothing


def reference_items(facts: Facts) -> list[Item]:
    """What tables/references.csv says of the largest number of labels; nothing for a study without it.

    Raises:
        InputError: the table is damaged.
    """
    path = facts.root / TABLE.format(name="references.csv")
    if not path.is_file():
        return []
    try:
        table = pd.read_csv(path)
        rows = table[table["finetune_size"] == table["finetune_size"].max()]
        # What is better than a constant answer is said last: it is the harder test.
        rows = rows.sort_values("reference", key=lambda names: names != CONSTANT, kind="stable")
        return [
            Item(str(row["sentence"]), {"reference": row["reference"], "verdict": row["verdict"]})
            for row in rows.to_dict("records")
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a table of references ({error}); delete it and run the workflow") from error


def better_model(references: Sequence[Item]) -> list[Item]:
    """Whether something simple does better than the study's best cell."""
    beaten = [item for item in references if item.data["verdict"] == "down"]
    text = "A simple reference does better, so this model may not be the one to use."
    return [Item(f"{text} {item.text}", item.data) for item in beaten[-1:]]
