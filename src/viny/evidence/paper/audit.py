"""The claims on pre-training, labels and tasks, tested on any table of published means and spreads."""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pandas as pd

from viny.evidence.paper.claims import CLAIMS, OF_MEANS, on_means
from viny.evidence.paper.comparisons import Means
from viny.evidence.tables import GROUP
from viny.runtime.errors import InputError
from viny.runtime.files import open_file

SPREADS = ("sd", "se")
MOST_BYTES = 10_000_000
PERCENT = 100.0


def audit(
    path: Path,
    runs: int | None = None,
    spread: str = "sd",
    metric: str = "miou",
    spatial: Collection[str] = (),
    epochs: tuple[int, int] = (1, 1),
) -> pd.DataFrame:
    """Which claims a table of published means supports.

    Args:
        path: CSV file, see `read_means`; so are runs, spread and metric.
        spatial: tasks whose target is each patch; all others count as classification.
        epochs: of pre-training and of fine-tuning, which say what compute a cell takes.

    Returns:
        See `claims.on_means`; claims about encoders, which no such table has, are left out.

    Raises:
        InputError: names the line and the column that are at fault.
    """
    frame = read_means(path, runs, spread, metric)
    tasks = sorted(set(frame["intermediate"]) - {"none"})
    if unknown := sorted(set(spatial) - set(tasks)):
        raise InputError(f"{path}: no task is called '{unknown[0]}'; found {', '.join(tasks) or 'none'}")
    classification = [task for task in tasks if task not in spatial]
    evidence = Means.of(
        frame, tasks=classification, classification=classification, spatial=tuple(spatial), epochs=epochs
    )
    claims = OF_MEANS + [claim for claim in CLAIMS if spatial and claim.key == "spatial_does_not_hurt"]
    return on_means(evidence, claims)


def read_means(path: Path, runs: int | None, spread: str, metric: str = "miou") -> pd.DataFrame:
    """Read a table of published means.

    Args:
        path: CSV file with a row for each cell: pretrain_size, intermediate ('none' for no task), finetune_size,
            <metric>_mean and <metric>_spread in percent, and runs; other columns are passed over. A spread may be
            empty; such cells have no interval.
        runs: number of runs behind each mean, for a table without a column runs.
        spread: what its spread is: 'sd', a standard deviation over runs, or 'se', the standard error of their mean.
        metric: 'miou', 'accuracy' or whatever the columns begin with.

    Returns:
        measure ('miou', whatever the metric), `GROUP`, mean, spread (fractions; a standard deviation), runs.

    Raises:
        InputError: names the line and the column that are at fault.
    """
    if spread not in SPREADS:
        raise InputError(f"spread: expected one of {', '.join(SPREADS)}, got '{spread}'")
    rows, header = _rows(path)
    columns = [*GROUP, f"{metric}_mean", f"{metric}_spread"]
    if missing := [column for column in columns if column not in header]:
        others = sorted(name.removesuffix("_mean") for name in header if name.endswith("_mean"))
        hint = f"; metrics in it: {', '.join(others)}" if missing[0].startswith(metric) and others else ""
        raise InputError(f"{path}: no column '{missing[0]}'; expected {', '.join(columns)} and, if known, runs{hint}")
    if runs is None and "runs" not in header:
        raise InputError(f"{path}: no column 'runs'; say with --runs how many runs each mean is over")
    if runs is not None and "runs" in header:
        raise InputError(f"{path}: has a column 'runs' of its own; leave --runs out")
    seen: dict[tuple[int, str, int], int] = {}
    found = []
    for line, row in rows:
        cell = (
            int(_number(path, line, row, "pretrain_size", 0, whole=True)),
            _task(path, line, row),
            int(_number(path, line, row, "finetune_size", 1, whole=True)),
        )
        if cell in seen:
            raise InputError(f"{path}, line {line}: the cell of line {seen[cell]} again; keep one of them")
        seen[cell] = line
        mean = _number(path, line, row, f"{metric}_mean", 0, PERCENT)
        over = _number(path, line, row, f"{metric}_spread", 0, PERCENT, empty=True)
        count = runs if runs is not None else _number(path, line, row, "runs", 1, whole=True)
        sd = over * math.sqrt(count) if spread == "se" else over
        found.append(("miou", *cell, mean / PERCENT, sd / PERCENT, count))
    frame = pd.DataFrame(found, columns=["measure", *GROUP, "mean", "spread", "runs"])
    low = [line for (line, _), mean in zip(rows, frame["mean"], strict=True) if mean <= 1 / PERCENT]
    if len(low) == len(frame):
        raise InputError(f"{path}: all of {metric}_mean are 1 or less; expected percent, such as 43.73")
    if low:
        raise InputError(
            f"{path}, line {low[0]}: column '{metric}_mean' holds 1 or less beside larger numbers; expected percent, "
            "such as 43.73"
        )
    if (frame["spread"] == 0).all():
        raise InputError(f"{path}: all of {metric}_spread are 0; leave them empty if they are not known")
    frame.loc[frame["runs"] < 2, "spread"] = math.nan  # one run has no spread, whatever stands there
    return frame


def _rows(path: Path) -> tuple[list[tuple[int, Mapping[str, str]]], Sequence[str]]:
    """A CSV file's lines, each with its number, and its columns."""
    try:
        with open_file(path) as f:
            text = f.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise InputError(f"{path}: more than {MOST_BYTES:,} bytes; expected a table of published means")
        lines = text.decode("utf-8-sig").splitlines()
        reader = csv.DictReader(lines)
        rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a table ({error}); expected a CSV file") from error
    if not rows:
        raise InputError(f"{path}: no rows; expected a CSV file with a header and a row for each cell")
    header = list(reader.fieldnames or ())
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise InputError(f"{path}: column '{twice[0]}' stands there twice; keep one of them")
    if len(header) == 1 and ";" in header[0]:
        raise InputError(f"{path}: its columns are set apart by semicolons; expected commas, and decimal points")
    for line, row in rows:
        if None in row or None in row.values():
            raise InputError(f"{path}, line {line}: expected {len(header)} values, as in its header")
    return rows, header


def _task(path: Path, line: int, row: Mapping[str, str]) -> str:
    task = row["intermediate"].strip()
    if not task:
        raise InputError(f"{path}, line {line}: column 'intermediate' is empty; write none for no task")
    return "none" if task.lower() == "none" else task


def _number(
    path: Path,
    line: int,
    row: Mapping[str, str],
    column: str,
    least: float,
    most: float = math.inf,
    whole: bool = False,
    empty: bool = False,
) -> float:
    text = row[column].strip()
    if empty and not text:
        return math.nan
    bounds = f"{least:g} or more" if most == math.inf else f"{least:g} to {most:g}"
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most or math.isinf(value) or (whole and value != int(value)):
        kind = "whole number" if whole else "number"
        raise InputError(f"{path}, line {line}: column '{column}' holds {text!r}; expected a {kind}, {bounds}")
    return value
