"""Held-out loss of pre-training: whether it was still falling at the end, rose again, or was flat."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from viny.evidence.statistics.crossed import LEAST_SEEDS, LEVEL
from viny.evidence.verdicts import UNKNOWN
from viny.runtime.errors import InputError
from viny.runtime.units import counted

LOSS = "held_out_loss"  # a column of a learning curve, empty at most epochs
HELD_OUT = ["pretrain_size", "n", "epochs", "epoch_lowest", "lowest", "last"]
HELD_OUT += [f"{name}{end}" for name in ("slope", "rise") for end in ("", "_low", "_high")] + ["verdict", "words"]
FLAT = 0.005  # of the loss: a change within it, either way, is as good as none


def held_out_table(curves: Mapping[tuple[int, int], pd.DataFrame]) -> pd.DataFrame:
    """What the held-out loss says of the length of pre-training.

    The slope is that of a line through the last third of the epochs, since the learning rate last changed if that
    leaves two points. The rise is from the lowest epoch to the last; each seed's lowest epoch is chosen by the other
    seeds, as a minimum that is chosen and measured on the same curve is too low. Intervals are Student's over seeds.

    Args:
        curves: learning curves by (pretrain_size, seed), with the columns epoch and lr, and held_out_loss where it was
            measured, empty at epochs where it was not. Curves without any are left out.

    Returns:
        One row per pre-train size: n seeds; epochs, of a training; epoch_lowest and lowest, of the mean over seeds at
        the epochs that all of them have; last, that mean at the last such epoch; slope, the change per further tenth
        of the epochs, and rise, the change since the lowest epoch, both as fractions of the loss, each with _low and
        _high, its 95 % interval, empty for one seed; verdict, 'rising', 'falling', 'flat' or 'undecided'; words, a
        sentence.

    Raises:
        InputError: a held-out loss that is no number above 0.
    """
    groups: dict[int, dict[int, pd.DataFrame]] = {}
    for (size, seed), curve in curves.items():
        if LOSS in curve and curve[LOSS].notna().any():
            groups.setdefault(size, {})[seed] = _measured(curve, size, seed)
    rows = [_row(size, groups[size]) for size in sorted(groups)]
    return pd.DataFrame([row for row in rows if row], columns=HELD_OUT)


def read_curves(files: Mapping[tuple[int, int], Path]) -> dict[tuple[int, int], pd.DataFrame]:
    """Learning curves from their files, as `held_out_table` takes them; files that are not there are left out.

    Raises:
        InputError: a file that is no table.
    """
    found = {}
    for key, path in files.items():
        if path.is_file():
            try:
                found[key] = pd.read_csv(path)
            except ValueError as error:  # of pandas' parser too
                raise InputError(f"{path}: not a learning curve ({error}); run its training again") from error
    return found


def _measured(curve: pd.DataFrame, size: int, seed: int) -> pd.DataFrame:
    """The whole curve, indexed by epoch, with a checked held-out loss."""
    loss = pd.to_numeric(curve[LOSS], errors="coerce")
    wrong = curve[LOSS].notna() & ~((loss > 0) & np.isfinite(loss))
    if wrong.any():
        value = curve[LOSS][wrong].iloc[0]
        raise InputError(
            f"the curve of pre-training on {size:,} images with seed {seed}: {LOSS} is {value!r}, expected a number "
            "above 0; run its training again"
        )
    return curve.assign(**{LOSS: loss}).set_index("epoch")


def _row(size: int, seeds: Mapping[int, pd.DataFrame]) -> dict[str, Any]:
    """A row of the table; empty if the seeds share no epoch."""
    losses = pd.concat([curve[LOSS].dropna() for curve in seeds.values()], axis=1, join="inner").sort_index()
    if losses.empty:
        return {}
    epochs = max(int(curve.index.max()) for curve in seeds.values())
    mean = losses.mean(axis=1)
    row: dict[str, Any] = {"pretrain_size": size, "n": losses.shape[1], "epochs": epochs}
    row |= {"epoch_lowest": int(mean.idxmin()), "lowest": mean.min(), "last": mean.iloc[-1]}
    slopes, rises = _slopes(losses, next(iter(seeds.values())), epochs), _rises(losses)
    for name, values in (("slope", slopes), ("rise", rises)):
        row[name], row[f"{name}_low"], row[f"{name}_high"] = _interval(values)
    row["verdict"] = _verdict(row)
    return row | {"words": _words(row)}


def _slopes(losses: pd.DataFrame, curve: pd.DataFrame, epochs: int) -> np.ndarray:
    """Of each seed [S], per tenth of the epochs, as a fraction of its last loss; NaN if there is one point."""
    tail = losses[losses.index > 2 * epochs / 3]
    if len(tail) < 2:
        tail = losses.iloc[-2:]
    if "lr" in curve:
        rate = curve["lr"].reindex(tail.index)
        steady = tail[(rate == rate.iloc[-1]).to_numpy()]
        tail = steady if len(steady) > 1 else tail
    if len(tail) < 2:
        return np.full(losses.shape[1], np.nan)
    at = tail.index.to_numpy(float)
    apart = at - at.mean()
    return apart @ tail.to_numpy() / (apart**2).sum() * epochs / 10 / tail.iloc[-1].to_numpy()


def _rises(losses: pd.DataFrame) -> np.ndarray:
    """Of each seed [S], from the epoch at which the others are lowest to the last, as a fraction of its loss there."""
    values = losses.to_numpy()
    if values.shape[1] == 1:
        return values[-1] / values.min(0) - 1
    others = values.sum(1, keepdims=True) - values
    lowest = np.take_along_axis(values, others.argmin(0)[None], 0)[0]
    return values[-1] / lowest - 1


def _interval(values: np.ndarray) -> tuple[float, float, float]:
    mean = float(values.mean())
    if len(values) < LEAST_SEEDS:
        return mean, np.nan, np.nan
    half = stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return mean, mean - half, mean + half


def _verdict(row: Mapping[str, Any]) -> str:
    if row["rise_low"] > 0 and row["rise_high"] > FLAT:
        return "rising"
    if max(abs(row["slope_low"]), abs(row["slope_high"])) <= FLAT:
        return "flat"
    return "falling" if row["slope_high"] < 0 else "rising" if row["slope_low"] > 0 else "undecided"


def _words(row: Mapping[str, Any]) -> str:
    """A row in a sentence."""

    def span(name: str, sign: int = 1) -> str:
        low, high = sorted((sign * row[f"{name}_low"], sign * row[f"{name}_high"]))
        if np.isnan(low):
            return f"{100 * sign * row[name]:.1f} % (one seed, no interval)"
        return f"{100 * sign * row[name]:.1f} % ({100 * low:.1f} to {100 * high:.1f}, {counted(row['n'], 'seed')})"

    text = f"Pre-training on {row['pretrain_size']:,} images: the held-out loss "
    lowest = f"lowest at epoch {row['epoch_lowest']:,} of {row['epochs']:,}"
    if row["verdict"] == "rising":
        if row["rise_low"] > 0:
            return f"{text}rose by {span('rise')} since it was {lowest}; stop there."
        return f"{text}was rising at the end, by {span('slope')} per tenth of the epochs, and {lowest}; stop there."
    if np.isnan(row["slope"]):
        return f"{text}was measured once, which says nothing of its course."
    per = f"{span('slope', -1)} per further tenth of the epochs"
    if row["verdict"] == "falling":
        return f"{text}was still falling at the end, by {per}; go on longer."
    if row["verdict"] == "flat":
        return f"{text}was flat at the end, falling by {per}; its length is enough."
    return f"{text}{UNKNOWN} to fall or rise at the end: it fell by {per}; {lowest}."
