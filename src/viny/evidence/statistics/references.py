"""Should one use the study's model at all? Its best cells against a small U-Net from scratch and a constant answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from viny.evidence.constant import constant_answer
from viny.evidence.statistics.crossed import Runs, Score, crossed, influence, read_confusion, step
from viny.evidence.statistics.effects import INTERVALS
from viny.evidence.tables import OF_CLASS, OWN_SIZE, about_numbers, to_markdown, write_csv
from viny.evidence.verdicts import (
    MARGIN,
    UNKNOWN,
    Decision,
    Question,
    answer,
    bare,
    doubling_name,
    in_points,
    span,
    start_in_words,
    target_words,
)
from viny.runtime.files import read_sealed, write_text
from viny.runtime.text import markdown
from viny.runtime.units import counted
from viny.study.grid import Reference
from viny.study.layout import reference_file

CONSTANT, UNET = "constant", "unet"
COLUMNS = [
    *("reference", "name", "finetune_size", "n", "mean", "low", "high", "parameters", "best", "cells"),
    *("lead", "lead_low", "lead_high", "p_holm", "verdict", "words", "answer", "sentence"),
    *("gain", "gain_low", "gain_high", "gain_words"),
]

MEANS = ["n", "mean", "low", "high"]
SPREAD = {"": "mean", "lowest_": "min", "highest_": "max"}  # before the name of a further column: what over seeds
GAIN = {"": "mean", "_low": "low", "_high": "high", "_words": "short"}  # of a decision

Key = tuple[str, int]  # of a reference: CONSTANT or UNET, labels


def reference_scores(
    root: Path, some: Iterable[Reference]
) -> tuple[dict[tuple[int, Key], Score], dict[Key, Any], dict[Key, pd.DataFrame]]:
    """The mIoU of references, and what else is to be said of them.

    Args:
        root: the study's folder.
        some: the references.

    Returns:
        The scores by seed and `Key`. For each key a set: the classes that are the commonest in the training masks of
        any seed, or the U-Net's number of parameters. And of U-Nets the IoU of each class and, where images have a size
        of their own, the mIoU at it, a row for each seed.

    Raises:
        InputError: a missing or damaged file.
    """
    scores: dict[tuple[int, Key], Score] = {}
    about: dict[Key, set[Any]] = {}
    others: dict[Key, list[dict[str, float]]] = {}
    for one in some:
        record = read_sealed(reference_file(root, one, "record"), "a reference")
        confusion, indices = read_confusion(reference_file(root, one, "confusion"))
        constant, kind = record["constant"], record["miou_is"]
        everywhere = constant_answer(confusion, constant["index"])
        found = {
            CONSTANT: (constant["metrics"]["miou"], everywhere, constant["class"]),
            UNET: (record["metrics"]["miou"], confusion, record["parameters"]),
        }
        for name, (miou, matrices, said) in found.items():
            if miou is not None:
                key = name, one.finetune_size
                scores[one.seed, key] = Score(miou, influence(matrices, kind), indices)
                about.setdefault(key, set()).add(said)
        further = {name: value for name, value in record["metrics"].items() if name.startswith((OF_CLASS, OWN_SIZE))}
        others.setdefault((UNET, one.finetune_size), []).append(further)
    return scores, about, {key: pd.DataFrame(rows, dtype=float) for key, rows in others.items()}


def reference_means(runs: Runs, keys: Iterable[Key]) -> pd.DataFrame:
    """The mean mIoU of references: reference, finetune_size, n, mean, low and high, as in `references_table`.

    Args:
        runs: of references and cells together, since both share what images do to mIoU.
        keys: of the references, in any order.
    """
    keys = list(dict.fromkeys(keys))
    found = runs.contrasts(runs.weights(*({key: 1.0} for key in keys)))
    table = pd.DataFrame(keys, columns=["reference", "finetune_size"])
    return table.assign(**{name: getattr(found, name) for name in MEANS})


def cell_in_words(key: tuple[int, str, int]) -> str:
    """The best cell of a number of labels, in words."""
    size, task, _ = key
    return start_in_words(size) + ("" if task == "none" else f", the task {task}")


def references_table(
    cells: Mapping[tuple[int, Hashable], Score],
    scores: Mapping[tuple[int, Key], Score],
    about: Mapping[Key, Any],
    margin: float = MARGIN,
    called: Callable[[Any], str] = cell_in_words,
) -> pd.DataFrame:
    """References beside the best cell with as many labels.

    The best cell has the highest mean of its label size, so it looks better than it is. All cells of that size are
    compared with the reference, with Holm's (1979) correction over them: that the best one is better has to be clear
    for one that was picked among so many; that it is worse, only for itself.

    Args:
        cells: of all arms, by seed and (pretrain_size, intermediate, finetune_size), see `crossed.read_scores`; in a
            study with arms their keys begin with start and variant.
        scores, about: from `reference_scores`.
        margin: see `verdicts.answer`.
        called: a cell's key, without labels, in words.

    Returns:
        One row per reference and label size, the constant answer first: reference ('constant' or 'unet'), name,
        finetune_size; n seeds, mean with low and high, its 95 % interval over seeds and test images; parameters, of the
        U-Net; best, the best cell in words, of so many cells; lead, how far it is ahead of the reference, paired by
        seed, with lead_low and lead_high; p_holm, verdict ('up', 'down', 'small' or 'undecided') and words of that;
        answer, what to do; sentence, all of it; gain, what a doubling of its labels up to these brought, with gain_low
        and gain_high, and gain_words, that in a sentence, for the U-Net's largest size alone. Fractions.
    """
    runs, rows = crossed({**cells, **scores}), []
    reached = reference_means(runs, about).set_index(["reference", "finetune_size"]).to_dict("index")
    gains = _gains(runs, sorted(labels for kind, labels in about if kind == UNET), margin)
    every = list(dict.fromkeys(key for _, key in cells))
    for key in sorted(about, key=lambda key: (key[0] != CONSTANT, key[1])):
        kind, labels = key
        mine = [cell for cell in every if cell[-1] == labels]
        asked = [
            Question("reference", cell, "", "cell", [cell[-3::2]], [{cell: 1.0, key: -1.0}], kind) for cell in mine
        ]
        decisions = answer(runs, asked, margin)
        if not decisions:
            continue
        means = runs.contrasts(runs.weights(*({decision.what: 1.0} for decision in decisions))).mean
        at = int(means.argmax())
        (alone,) = answer(runs, [decisions[at].question], margin)
        lead = alone if alone.verdict == "down" else decisions[at]
        row = {"reference": kind, "name": _name(kind, about[key]), "finetune_size": labels}
        row |= reached[key]
        row |= {
            "parameters": max(about[key]) if kind == UNET else 0,
            "best": called(lead.what),
            "cells": len(decisions),
        }
        row |= {"lead": lead.mean, "lead_low": lead.low, "lead_high": lead.high, "p_holm": lead.p_holm}
        row |= {"verdict": lead.verdict, "words": lead.words.replace(kind, row["name"])}
        row["answer"] = ADVICE[kind, lead.verdict]
        rows.append(row | {"sentence": _sentence(row, lead, margin)} | gains.get(key, {}))
    return pd.DataFrame(rows, columns=COLUMNS)


def _gains(runs: Runs, labels: Sequence[int], margin: float) -> dict[Key, dict[str, Any]]:
    """What the U-Net gained by the last doubling of its labels, by key; empty if it has one size."""
    if len(labels) < 2:
        return {}
    few, many = ((UNET, n) for n in labels[-2:])
    name = doubling_name(*labels[-2:], "the U-Net")
    weights = step(few, many, math.log2(many[1] / few[1]))
    asked = Question("labels", many, name, "curve", [(0, many[1])], [weights])
    found = answer(runs, [asked], margin)
    if not found:
        return {}
    return {many: {f"gain{end}": getattr(found[0], of) for end, of in GAIN.items()}}


def _name(kind: str, about: set[Any]) -> str:
    if kind == UNET:
        return "a small U-Net from scratch"
    return f"every pixel called {' or '.join(sorted(about))}"


ADVICE = {
    (UNET, "up"): "this model is worth its while",
    (UNET, "down"): "a U-Net, such as nnU-Net's, is the one to use",
    (UNET, "small"): "use whichever costs less",
    (UNET, "undecided"): f"which one to use {UNKNOWN}",
    (CONSTANT, "up"): "the model has learnt from its labels",
    (CONSTANT, "down"): "the model is worse than none; look at the masks and the rates",
    (CONSTANT, "small"): "the model has learnt next to nothing",
    (CONSTANT, "undecided"): f"whether the model has learnt anything {UNKNOWN}",
}


def _sentence(row: Mapping[str, Any], lead: Decision, margin: float) -> str:
    """A row in words."""
    size = f" ({row['parameters'] / 1e6:.2f} M parameters)" if row["reference"] == UNET else ""
    reached = f"{100 * row['mean']:.1f} %{_between(row['low'], row['high'])}"
    best = f"the best of {counted(row['cells'], 'cell')}" if row["cells"] > 1 else "the study's cell"
    gap, side = f"{100 * abs(lead.mean):.1f} points", "below" if lead.mean > 0 else "above"
    apart = f"{gap} {side} {best}{apart_by(lead.mean, lead.low, lead.high)}"
    if lead.verdict == "small":
        apart = f"within {target_words(100 * margin)} of {best}"
    verb = "reaches" if row["reference"] == UNET else "gives"
    said = f"With {row['finetune_size']:,} labels {row['name']}{size} {verb} {reached}, {apart}"
    why = ""
    if lead.verdict == "undecided" and lead.low > 0:
        why = f", as the best of {row['cells']} looks better than it is"
    elif math.isnan(lead.low):
        why = f" ({lead.reason})"
    return f"{said}: {row['answer']}{why}."


def apart_by(lead: float, low: float, high: float) -> str:
    """The interval of a lead in points, in its own direction: of a loss that by which it is behind; empty for none."""
    return _between(low, high) if lead > 0 else _between(-high, -low)


def _between(low: float, high: float) -> str:
    return "" if math.isnan(low) else f" ({100 * low:.1f} to {100 * high:.1f})"


def write_references(
    frame: pd.DataFrame,
    cells: Mapping[tuple[int, Hashable], Score],
    scores: Mapping[tuple[int, Key], Score],
    models: Mapping[Key, Any],
    others: Mapping[Key, pd.DataFrame],
    groups: int,
    called: Callable[[Any], str],
    out_dir: Path,
) -> pd.DataFrame:
    """Write references.csv and references.md; returns what `references_table` does.

    Args:
        frame: what `tables.read_metrics` returns of the cells.
        cells, scores, models, called: see `references_table`, of which models is `about`.
        others: from `reference_scores`; of each column the table gets the mean, the lowest and the highest.
        groups: see `Runs.groups`.
        out_dir: folder for the tables; made if missing.
    """
    table = references_table(cells, scores, models, called=called)
    keys = [*zip(table["reference"], table["finetune_size"], strict=True)]
    further = pd.DataFrame([_over_seeds(others[key]) if key in others else {} for key in keys], table.index)
    table = table.join(further)
    write_csv(table.assign(**dict(frame.iloc[0][["study", "protocol", "note"]])), out_dir / "references.csv")
    rows = [
        {
            "Reference": row["name"],
            "Labels": row["finetune_size"],
            "Runs": row["n"],
            "mIoU, %": bare(row["mean"]) + _between(row["low"], row["high"]),
            "Best cell": row["best"],
            "Best cell minus reference": in_points(row["lead"])
            + ("" if math.isnan(row["lead_low"]) else f" ({span(row['lead_low'], row['lead_high'])})"),
        }
        for row in table.to_dict("records")
    ]
    sentences = [*reversed(table["sentence"].tolist()), *table["gain_words"].dropna()]
    lines = "".join(f"- {markdown(sentence)}\n" for sentence in sentences)
    body = to_markdown(pd.DataFrame(rows)) if rows else ""
    about = about_numbers(frame, groups=groups)
    text = f"# Should one use this model at all?\n\n{about}\n\n{lines}\n{_WORDS}\n\n{body}"
    write_text(out_dir / "references.md", text)
    return table


def _over_seeds(values: pd.DataFrame) -> dict[str, float]:
    """Mean, lowest and highest of columns over rows, see `SPREAD`."""
    found = {how: values.agg(how) for how in SPREAD.values()}
    return {f"{prefix}{name}": found[how][name] for name in values for prefix, how in SPREAD.items()}


_WORDS = (
    "The U-Net has the same labels, splits, image order, passes, augmentation and loss as the fine-tunings, and its "
    "own learning rate; it has seen no other image. mIoU in percent, differences in percentage points, paired by seed. "
    f"{INTERVALS.format(over='cells of a label size, of which the best was picked')}"
)
