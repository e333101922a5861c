"""The report's table of IoU by class: the best cell beside a random start and a U-Net with as many labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from viny.evidence.report.words import percent
from viny.evidence.tables import ABSENT, GROUP, OF_CLASS


def class_table(frame: pd.DataFrame, best: Sequence[Any], references: pd.DataFrame | None = None) -> dict[str, Any]:
    """The table in the template's form: names of columns, a row for each class that the masks declare, and how many
    seeds means are over.

    A class without IoU is there too, with the reason.

    Args:
        frame: what `tables.read_metrics` returns, of one arm.
        best: pretrain_size, intermediate and finetune_size of the best cell.
        references: the U-Nets' rows of references.csv; None without them.
    """
    classes = [name.removeprefix(OF_CLASS) for name in frame if name.startswith(OF_CLASS)]
    start = (0, "none", best[2])
    keys = pd.Series([*zip(*(frame[name] for name in GROUP), strict=True)], frame.index, dtype=object)
    cells = [cell for cell in dict.fromkeys([tuple(best), start]) if cell in set(keys)]
    rows = {cell: frame[[key == cell for key in keys]] for cell in cells}
    beside = [] if references is None else references[references["finetune_size"] == best[2]].to_dict("records")
    absent = {part: set("; ".join(frame[part].dropna()).split("; ")) for part in ABSENT if part in frame}
    shown = []
    for name in classes:
        column = f"{OF_CLASS}{name}"
        spread = [rows[cell][column].agg(["mean", "min", "max"]) for cell in cells]
        spread += [[one.get(f"{of}{column}", np.nan) for of in ("", "lowest_", "highest_")] for one in beside]
        values = [_seeds(*one) for one in spread]
        if name in absent.get("not_in_test", ()):
            values = ["in no test mask"] * len(values)
        shown.append({"name": name, "values": values})
    first = rows[cells[0]]
    # The weakest first; a class without IoU last.
    shown.sort(key=lambda row: first[f"{OF_CLASS}{row['name']}"].mean())
    columns = [_title(cell, cell == tuple(best)) for cell in cells]
    columns += [{"name": "U-Net", "about": f"{best[2]:,} labels"} for _ in beside]
    return {"columns": columns, "rows": shown, "seeds": max(map(len, rows.values()))}


def _seeds(mean: float, least: float, most: float) -> dict[str, str] | str:
    """The mean over seeds, and the lowest and highest where they differ."""
    if math.isnan(mean):
        return "not defined"
    return {"mean": percent(mean), "span": f"{percent(least)} to {percent(most)}" if least < most else ""}


def _title(cell: tuple[Any, ...], best: bool) -> dict[str, str]:
    size, task, labels = cell
    start = f"{size:,} images" if size else "random start"
    task = "" if task == "none" else f", {task}"
    return {"name": "Best cell" if best else "Its start", "about": f"{start}{task}, {labels:,} labels"}
