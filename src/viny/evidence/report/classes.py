"""The report's table of IoU by class: the best cell beside a random start with as many labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from viny.evidence.report.words import percent
from viny.evidence.tables import ABSENT, GROUP

OF_CLASS = "iou_"  # how the columns of a class's IoU begin


def class_table(frame: pd.DataFrame, best: Sequence[Any]) -> dict[str, Any]:
    """The table in the template's form: names of columns, a row for each class that the masks declare, and how many
    seeds means are over.

    A class without IoU is there too, with the reason.

    Args:
        frame: what `tables.read_metrics` returns, of one arm.
        best: pretrain_size, intermediate and finetune_size of the best cell.
    """
    classes = [name.removeprefix(OF_CLASS) for name in frame if name.startswith(OF_CLASS)]
    start = (0, "none", best[2])
    keys = pd.Series([*zip(*(frame[name] for name in GROUP), strict=True)], frame.index, dtype=object)
    cells = [cell for cell in dict.fromkeys([tuple(best), start]) if cell in set(keys)]
    rows = {cell: frame[[key == cell for key in keys]] for cell in cells}
    absent = {part: set("; ".join(frame[part].dropna()).split("; ")) for part in ABSENT if part in frame}
    shown = []
    for name in classes:
        values = [_seeds(rows[cell][f"{OF_CLASS}{name}"].dropna()) for cell in cells]
        if name in absent.get("not_in_test", ()):
            values = ["in no test mask"] * len(cells)
        shown.append({"name": name, "values": values})
    first = rows[cells[0]]
    # The weakest first; a class without IoU last.
    shown.sort(key=lambda row: first[f"{OF_CLASS}{row['name']}"].mean())
    columns = [_title(cell, cell == tuple(best)) for cell in cells]
    return {"columns": columns, "rows": shown, "seeds": max(map(len, rows.values()))}


def _seeds(values: pd.Series) -> dict[str, str] | str:
    """The mean over seeds, and the lowest and highest of several."""
    if values.empty:
        return "not defined"
    return {
        "mean": percent(values.mean()),
        "span": f"{percent(values.min())} to {percent(values.max())}" if len(values) > 1 else "",
    }


def _title(cell: tuple[Any, ...], best: bool) -> dict[str, str]:
    size, task, labels = cell
    start = f"{size:,} images" if size else "random start"
    task = "" if task == "none" else f", {task}"
    return {"name": "Best cell" if best else "Its start", "about": f"{start}{task}, {labels:,} labels"}
