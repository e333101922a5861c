"""What the trainings behind each cell cost, and what a next step would gain for its cost."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from viny.evidence.statistics.crossed import Runs, step
from viny.evidence.tables import (
    GROUP,
    check_cells,
    in_order,
)
from viny.evidence.verdicts import UNKNOWN, Decision, Question, answer, decide, in_points, span, told
from viny.learning.settings import TRAINING, ModelSettings, forward_operations
from viny.runtime.errors import InputError
from viny.runtime.files import read_sealed
from viny.runtime.units import duration
from viny.study.grid import Cell
from viny.study.layout import TUNING, chain


def chain_costs(
    root: Path, every: Iterable[Cell], model: ModelSettings, tuned: bool = False
) -> dict[str, dict[str, Any]]:
    """What the chain of trainings behind each cell cost in all: pre-training, intermediate task and fine-tuning.

    An encoder that several cells share counts in full for each: this is what that cell would cost alone.

    Args:
        root: the study's folder.
        every: the cells.
        model: the study's.
        tuned: whether their rates were chosen; the short trainings for that count too.

    Returns:
        By the cell's name: seconds of training, operations (multiplications and additions), device, and passes,
        the number of images that went forward and backward.

    Raises:
        InputError: a training left no record of what it cost.
    """
    operations = TRAINING * forward_operations(model)
    costs = {}
    for cell in every:
        runs = [_run(training.file(root, "run")) for training in chain(cell)]
        rates = read_sealed(root / TUNING.format(cell=cell.name), "a tuning")["rates"] if tuned else []
        passes = sum(one["image_passes"] for one in (*runs, *rates))
        costs[cell.name] = {
            "seconds": sum(run["training_seconds"] for run in runs) + sum(rate["seconds"] for rate in rates),
            "operations": passes * operations,
            "passes": passes,
            "device": " and ".join(sorted({run["device_name"] for run in runs})),
        }
    return costs


def arm_costs(root: Path, every: Iterable[Cell], tuned: Collection[str]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """What a cell of each arm takes: hours of each stage, means over seeds.

    As in `chain_costs`, an encoder that several cells share counts in full for each. The rate of a cell is chosen from
    the tunings of all seeds, each of which counts for its own seed; weights that were fetched cost nothing.

    Args:
        root: the study's folder.
        every: the cells.
        tuned: variants whose rate is tuned.

    Returns:
        By start, variant, pretrain_size, intermediate and finetune_size: hours of 'pretrain', 'intermediate', 'tune'
        and 'finetune', none where the trainings of its seeds ran on several devices; device; rate, the tuned one,
        and rate_end, whether it is the 'lowest' or the 'highest' that was tried.

    Raises:
        InputError: a training left no record of what it cost, or a model none of its tuned rate.
    """
    read = cache(_run)
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for cell in every:
        seconds: dict[str, float] = {}
        devices, trained = set(), chain(cell)
        for training in trained:
            run = read(training.file(root, "run"))
            seconds[training.stage] = seconds.get(training.stage, 0.0) + run["training_seconds"]
            devices.add(run["device_name"])
        cost: dict[str, Any] = {"devices": devices, "rate": None, "rate_end": ""}
        if cell.variant in tuned:
            rates = read_sealed(root / TUNING.format(cell=cell.name), "a tuning")["rates"]
            tried = [rate["lr"] for rate in rates]
            seconds["tune"] = sum(rate["seconds"] for rate in rates)
            cost["rate"] = read_sealed(trained[-1].file(root, "record"), "a weights record")["tuned"]["lr"]
            cost["rate_end"] = {min(tried): "lowest", max(tried): "highest"}.get(cost["rate"], "")
        key = cell.start, cell.variant, cell.pretrain_size, cell.intermediate, cell.finetune_size
        found.setdefault(key, []).append(cost | {"seconds": seconds})
    return {key: _mean_cost(costs) for key, costs in found.items()}


def _mean_cost(costs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A row of `arm_costs` from those of its seeds."""
    devices = sorted(set().union(*(cost["devices"] for cost in costs)))
    stages = costs[0]["seconds"] if len(devices) == 1 else ()
    hours = {stage: float(np.mean([cost["seconds"][stage] for cost in costs])) / 3600 for stage in stages}
    return {**hours, "device": " and ".join(devices), **{key: costs[0][key] for key in ("rate", "rate_end")}}


def _run(path: Path) -> Mapping[str, Any]:
    value = read_sealed(path, "the provenance of a training")
    for key in ("image_passes", "training_seconds"):
        if value[key] <= 0:
            raise InputError(f"{path}: '{key}' is {value[key]}, expected a number above 0; run its training again")
    return value


COSTS = [*GROUP, "n", "miou", "sd", "seconds", "operations", "device", "front", "front_seconds", "front_labels"]
COSTS += ["verdict"]
LABELS_STEP = 500  # labels that a gain is given for
LEAST_LABELS = 250  # if a step takes fewer, no gain per 500 labels is given
LEAST_HOURS = 0.5  # if a step takes less, no gain per hour is given
RATES = ["gain_per_hour", "gain_per_500_labels"]
STEPS = [*GROUP, "miou", "move", *(f"to_{k}" for k in GROUP), "n", "gain", "low", "high"]
STEPS += ["further_labels", "further_pretrain_images", "further_hours", "further_operations"]
STEPS += [f"{rate}{end}" for rate in RATES for end in ("", "_low", "_high")] + ["words"]


def costs(frame: pd.DataFrame, chain: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Cost and benefit: mIoU against operations, seconds and labels, with the Pareto fronts of the means.

    Seconds on different devices are never averaged or compared: a cell whose seeds ran on several devices has no
    seconds, and front_seconds has a separate front for each device.

    Args:
        frame: what `tables.read_metrics` returns.
        chain: by cell name, 'seconds' (s), 'operations' (FLOP) and 'device', summed over the cell's own chain:
            pre-training, intermediate task and fine-tuning.

    Returns:
        One row per (pretrain_size, intermediate, finetune_size): n seeds; miou, the mean, and its sd (ddof=1);
        mean seconds and operations; device; front, true if no cell has the same mIoU for fewer operations or a
        higher one for as many; front_seconds, the same for seconds; front_labels, the same for operations among
        cells with equal labels; verdict, which says why there are no seconds.

    Raises:
        InputError: the chain lacks a cell, or a cost is not valid.
    """
    check_cells(frame)
    cells = frame.dropna(subset="miou")
    cells = cells.assign(**_chain_columns(cells["cell"], chain))
    rows = []
    for key, cell in cells.groupby(GROUP):
        devices = sorted(cell["device"].unique())
        mixed = len(devices) > 1
        row = dict(zip(GROUP, key, strict=True)) | {"n": len(cell), "miou": cell["miou"].mean()}
        row |= {"sd": cell["miou"].std(ddof=1), "operations": cell["operations"].mean()}
        row |= {"seconds": np.nan if mixed else cell["seconds"].mean(), "device": " and ".join(devices)}
        row["verdict"] = f"no seconds: its seeds ran on {row['device']}" if mixed else ""
        rows.append(row)
    table = in_order(pd.DataFrame(rows, columns=COSTS))
    table["front"] = _front(table["operations"], table["miou"])
    table["front_seconds"], table["front_labels"] = False, False
    for by, cost, name in (("device", "seconds", "front_seconds"), ("finetune_size", "operations", "front_labels")):
        for _, part in table.groupby(by):
            table.loc[part.index, name] = _front(part[cost], part["miou"])
    return table


def _chain_columns(names: pd.Series, chain: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Any]]:
    """seconds, operations and device of each cell."""
    columns: dict[str, list[Any]] = {"seconds": [], "operations": [], "device": []}
    for name in names:
        cost = chain.get(name)
        if not isinstance(cost, Mapping):
            raise InputError(f"no costs of cell {name}; give seconds, operations and device of every evaluated cell")
        for key, values in columns.items():
            value = cost.get(key)
            number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < np.inf
            if not (isinstance(value, str) if key == "device" else number):
                kind = "a device's name" if key == "device" else "a finite number, 0 or more"
                raise InputError(f"costs of cell {name}: '{key}' is {value!r}; expected {kind}")
            values.append(value)
    return columns


def _front(cost: pd.Series, benefit: pd.Series) -> np.ndarray:
    """Which points no other point dominates; a point without a cost is on no front."""
    c, b = cost.to_numpy(float), benefit.to_numpy(float)
    no_worse = (c[None] <= c[:, None]) & (b[None] >= b[:, None])
    better = (c[None] < c[:, None]) | (b[None] > b[:, None])
    return ~(no_worse & better).any(1) & np.isfinite(c)


def next_step(
    frame: pd.DataFrame,
    runs: Runs,
    chain: Mapping[str, Mapping[str, Any]],
    decisions: Sequence[Decision] | None = None,
) -> pd.DataFrame:
    """Where should the next hour, or the next 500 labels, go from each point of the front?

    The moves from a point go to the next number of labels, to the next number of pre-training images and, if it has
    no intermediate task, to each task; nothing else changes. Gains are paired within seeds.

    Args:
        frame: what `tables.read_metrics` returns.
        runs: its mIoU, see `crossed.read_runs`.
        chain: as in `costs`.
        decisions: what the study decides; None to decide it here.

    Returns:
        One row per move from a point of the Pareto front of mIoU against operations: the point and its
        miou; move; the point it leads to (to_ columns); n seeds; gain in mIoU with low and high, its 95 % interval
        over seeds and test images (empty for one seed); further_labels, further_pretrain_images, further_hours
        (empty unless both ran on one device), further_operations (FLOP); gain_per_hour and gain_per_500_labels,
        each with _low and _high, empty if nothing more is spent; words, which give a rate only where the gain is told
        (Holm's correction over the table), and what the study decides over all cells is the same (`verdicts.told`).
        Gains are fractions.

    Raises:
        InputError: as for `costs`.
    """
    table = costs(frame, chain)
    spent = table.set_index(GROUP)
    moves = [
        (here, there, move)
        for here in table[table["front"]].sort_values("operations")[GROUP].itertuples(index=False, name=None)
        for move, there in _moves(here, list(spent.index))
    ]
    if not moves:
        return pd.DataFrame(columns=STEPS)
    gains = runs.contrasts(runs.weights(*(step(here, there) for here, there, _ in moves)))
    each = [
        {"n": int(n), "gain": mean, "low": low, "high": high}
        for n, mean, low, high in zip(gains.n, gains.mean, gains.low, gains.high, strict=True)
    ]
    verdicts = _verdicts(runs, moves, decide(runs) if decisions is None else decisions)
    rows = [
        _step(*move, gain, spent, verdicts.get(move[:2], "undecided"))
        for move, gain in zip(moves, each, strict=True)
        if gain["n"]
    ]
    return pd.DataFrame(rows, columns=STEPS)


def _verdicts(
    runs: Runs, moves: Sequence[tuple[Any, Any, str]], decisions: Sequence[Decision]
) -> dict[tuple[Any, Any], str]:
    """What may be said of moves from one cell to another."""
    asked = [Question("cell", (here, there), "", "cell", [there[::2]], [step(here, there)]) for here, there, _ in moves]
    over_all = {(decision.kind, decision.what): decision for decision in decisions}
    return {one.what: told(one, over_all.get(_asked_over_all(*one.what, decisions))) for one in answer(runs, asked)}


def _asked_over_all(here: Any, there: Any, decisions: Sequence[Decision]) -> tuple[str, Any] | None:
    """The kind and subject of the study's question that a move is a part of; None if it is none."""
    if here[1] != there[1]:
        return "task", there[1]
    if here[0] != there[0]:
        return ("images", there[0]) if here[0] else ("pre-training", there[0])
    weights = {(*here[:2], here[2]), (*there[:2], there[2])}
    part = any(d.kind == "labels" and d.what == here[0] and set(d.question.weights[0]) == weights for d in decisions)
    return ("labels", here[0]) if part else None


def _moves(here: tuple[int, str, int], cells: list[tuple[int, str, int]]) -> list[tuple[str, tuple[int, str, int]]]:
    size, task, labels = here
    further = sorted(cell for cell in cells if cell[:2] == (size, task) and cell[2] > labels)[:1]
    moves = [("more labels", cell) for cell in further]
    larger = sorted(cell for cell in cells if cell[1:] == (task, labels) and cell[0] > size)[:1]
    moves += [("more pre-training images", cell) for cell in larger]
    if task == "none":
        tasks = sorted(cell for cell in cells if (cell[0], cell[2]) == (size, labels) and cell[1] != "none")
        moves += [(f"intermediate task {cell[1]}", cell) for cell in tasks]
    return moves


def _step(
    here: tuple[int, str, int],
    there: tuple[int, str, int],
    move: str,
    gain: Mapping[str, float],
    spent: pd.DataFrame,
    verdict: str,
) -> dict[str, Any]:
    """A row of `next_step`."""
    before, after = spent.loc[here], spent.loc[there]
    one_device = before["device"] == after["device"]
    hours = (after["seconds"] - before["seconds"]) / 3600 if one_device else np.nan
    row = dict(zip(GROUP, here, strict=True)) | {"miou": before["miou"], "move": move}
    row |= dict(zip((f"to_{k}" for k in GROUP), there, strict=True)) | dict(gain)
    row |= {"further_labels": there[2] - here[2], "further_pretrain_images": there[0] - here[0]}
    row |= {"further_hours": hours, "further_operations": after["operations"] - before["operations"]}
    units = {"gain_per_hour": hours, "gain_per_500_labels": row["further_labels"] / LABELS_STEP}
    for name, spend in units.items():
        for end, value in (("", row["gain"]), ("_low", row["low"]), ("_high", row["high"])):
            row[name + end] = value / spend if spend > 0 else np.nan
    return row | {"words": _step_in_words(row, one_device, verdict)}


def _step_in_words(row: Mapping[str, Any], one_device: bool, verdict: str) -> str:
    def rate(name: str, unit: str) -> str:
        return f"{in_points(row[name])} ({span(row[f'{name}_low'], row[f'{name}_high'])}) {unit}"

    interval = "one seed, no interval" if np.isnan(row["low"]) else span(row["low"], row["high"])
    said = [f"{in_points(row['gain'])} points ({interval})"]
    known = verdict in ("up", "down")  # of a gain that cannot be told there is no rate either
    if verdict == "small":
        said.append("as good as nothing")
    elif not known:
        clear = row["low"] > 0 or row["high"] < 0  # which the correction, or the mean over cells, does not bear out
        said.append("clear of zero here, but not among all that is compared" if clear else f"what it brings {UNKNOWN}")
    if known and row["further_labels"] >= LEAST_LABELS:
        said.append(rate("gain_per_500_labels", f"a further {LABELS_STEP} labels"))
    if row["further_hours"] >= LEAST_HOURS:
        hours = f"{row['further_hours']:.2g} hours"
        here = f"a further hour, at the rate of these {hours}"
        said.append(rate("gain_per_hour", here) if known else f"it takes {hours} more")
    elif row["further_hours"] > 0:
        said.append(f"it takes {duration(3600 * row['further_hours'])} more, too little to tell of an hour")
    elif one_device and row["further_hours"] == row["further_hours"]:
        said.append("no further time was measured")
    else:
        said.append("its seconds are of other devices, so no gain an hour")
    where = _cell_in_words(row["pretrain_size"], row["intermediate"], row["finetune_size"])
    return f"From {where} ({100 * row['miou']:.1f} %), {row['move']}: {'; '.join(said)}."


def _cell_in_words(size: int, task: str, labels: int) -> str:
    return f"{size:,} pre-training images, {'no task' if task == 'none' else task}, {labels:,} labels"
