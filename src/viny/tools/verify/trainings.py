"""Checks of a study's trainings: starts, tunings, weights, their records, learning curves and provenance."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from viny.learning.rates import best_rate, content_sha256
from viny.runtime.errors import InputError
from viny.runtime.files import digest
from viny.study import layout, specs
from viny.study.grid import Cell
from viny.study.layout import Training
from viny.tools.verify.book import AGAIN, Book, require_run_keys
from viny.tools.verify.report import MISSING, NOTE

OUTSIDE = ("weights_sha256", "sha256")  # keys of a record that the copy inside the weights file cannot have


def check_start(book: Book, name: str) -> None:
    """Check published weights as the study has them: their record, their hash, and the file that they are from.

    Args:
        book: the study's.
        name: the start's.
    """
    weights, path = (layout.start_file(book.root, name, what) for what in ("weights", "record"))
    book.expected |= {weights, path}
    again = f"delete {path.parent.relative_to(book.root)}/ and rerun the workflow"
    if not weights.exists() and not path.exists():
        book.add(MISSING, path.parent, "expected published weights, found none; run the workflow")
        return
    present = book.there(weights, "the weights")
    record = book.json(path, "a weights record", again)
    if record is not None:
        own = False
        with book.about(path):
            own = book.agree(path, "", {"stage": "start", "start": name}, _name_of(record), again)
            spec = {key: value for key, value in record["spec"].items() if key != "code"}
            if own and book.config is not None:
                expected = specs.start_spec(book.config, name)
                book.agree(path, "spec", expected, spec, "rerun the workflow with the settings meant")
            book.made_by("start", path, record["spec"].get("code"))
            _check_source(book, path, spec, record)
        if not own:
            book.discard(path)
            record = None
    if present:
        with book.about(weights):
            _check_weights(book, weights, path, record, None, again)


def _name_of(record: Mapping[str, Any]) -> dict[str, Any]:
    return {"stage": record["stage"], "start": record["spec"]["start"]}


def _check_source(book: Book, path: Path, spec: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Compare the file that a start was read from with what was read, if that is a user's own and still there."""
    source = specs.source_of(spec)
    if source is None:
        return
    if source.is_file():
        again = "rerun the workflow, which reads it again"
        book.same(path, f"weights in {source}", record["source_sha256"], book.sha256(source), again)
    else:
        book.add(NOTE, path, f"what it was read from, {source}, is not there; whether that changed is not checked")


def check_tuning(book: Book, cell: Cell) -> None:
    """Check the scores of a cell's rates against the settings, its data and its parent.

    Args:
        book: the study's; the checks of splits and of the trainings before have run.
        cell: the one whose rates they are.
    """
    path, training = book.path(layout.TUNING, cell=cell.name), layout.chain(cell)[-1]
    record = book.json(path, "the scores of a cell's rates")
    if record is None:
        return
    own = False
    with book.about(path):
        own = book.agree(path, "stage", "tune", record["stage"], AGAIN)
        own = book.agree(path, "spec.cell", cell.as_dict(), record["spec"]["cell"], AGAIN) and own
        if own:
            if book.config is not None:
                spec = {key: value for key, value in record["spec"].items() if key != "code"}
                expected = specs.tune_spec(book.config, cell)
                book.agree(path, "spec", expected, spec, "rerun the workflow with the settings meant")
            book.made_by("tune", path, record["spec"].get("code"))
            book.same_pack(path, training.pack, record, "pack_sha256", AGAIN)
            book.same_split(path, training.split, record, "split_sha256", AGAIN)
            book.same_parent(path, training, record, "parent_sha256", AGAIN)
            book.agree(path, "rates.lr", record["spec"]["tune"]["lr"], [one["lr"] for one in record["rates"]], AGAIN)
            for one in record["rates"]:
                found = one["miou"]
                if (found is None) != one["diverged"] or (found is not None and not 0 <= found <= 1):
                    raise InputError(f"mIoU at rate {one['lr']:g}: expected 0 to 1, found {found}; {AGAIN}")
    if not own:
        book.discard(path)


def _check_rate(book: Book, path: Path, cell: Cell, record: Mapping[str, Any], again: str) -> None:
    """Check that a fine-tuning took the rate that its tunings, of all seeds, score best."""
    files = [book.path(layout.TUNING, cell=one.name) for one in book.groups[cell.group]]
    tunings = [book.json(file, "the scores of a cell's rates") for file in files]
    if any(one is None for one in tunings) or book.faulty.intersection(files):
        return  # these have findings of their own
    best, means = best_rate(tunings)
    said = record["tuned"]
    expected = {
        "lr": float(best),
        "rates": {str(lr): mean for lr, mean in means.items()},
        "tunings": sorted(map(content_sha256, tunings)),
    }
    found = {"lr": float(said["lr"]), "rates": said["rates"], "tunings": sorted(said["tunings"])}
    book.agree(path, "tuned", expected, found, f"as the tunings of its seeds give it; {again}")


def check_training(book: Book, training: Training) -> None:
    """Check a training's record against the settings, its weights, curve and provenance, its data and its parent.

    Args:
        book: the study's; the parent's check has run.
        training: the one whose files are checked; if it has none, that is one finding.
    """
    folder = training.folder(book.root)
    weights, path, curve, run = (training.file(book.root, what) for what in ("weights", "record", "curve", "run"))
    files = {weights, path, curve, run}
    book.expected |= files
    if not any(file.exists() for file in files):
        book.add(MISSING, folder, f"expected {training.stage} weights, found none; run the workflow")
        return
    again = f"delete {training.folder(Path())}/ and rerun the workflow"
    weights_present = book.there(weights, "the weights")
    curve_present = book.there(curve, "a learning curve")
    record, provenance = book.json(path, "a weights record", again), book.json(run, "the job's provenance", again)
    if record is not None and not _is_its_own(book, path, training, record, again):
        book.discard(path)
        record = None
    if record is not None and provenance is not None:
        fits = False
        with book.about(run):
            fits = _check_provenance(book, run, provenance, record)
        if not fits:
            book.discard(run)
            provenance = None
    if weights_present:
        with book.about(weights):
            _check_weights(book, weights, path, record, provenance, again)
    if curve_present:
        with book.about(curve):
            if record is not None:
                _check_curve(curve, record)
            book.stated(curve, (provenance or {}).get("outputs"), run, again)


def _is_its_own(book: Book, path: Path, training: Training, record: Mapping[str, Any], again: str) -> bool:
    """Check a training's record against the settings, its data and its parent; whether it is this training's."""
    own = False
    with book.about(path):
        own = book.agree(path, "stage", training.stage, record["stage"], again)
        own = book.agree(path, "spec.cell", training.cell, record["spec"]["cell"], again) and own
        if not own:
            return False
        if book.config is not None:
            spec = {k: v for k, v in record["spec"].items() if k != "code"}
            expected = specs.training_spec(book.config, training)
            book.agree(path, "spec", expected, spec, "rerun the workflow with the settings meant")
        book.made_by(training.stage, path, record["spec"].get("code"))
        book.same_pack(path, training.pack, record, "pack_sha256", again)
        book.same_split(path, training.split, record, "split_sha256", again)
        if (split := book.split_record(*training.split)) is not None:
            book.agree(path, "images", split["parts"]["train"]["count"], record["images"], again)
        book.same_parent(path, training, record, "parent_sha256", again)
        if isinstance(training.key, Cell) and "tune" in record["spec"]:
            _check_rate(book, path, training.key, record, again)
    return own


def _check_weights(
    book: Book, path: Path, beside: Path, record: Mapping[str, Any] | None, run: Mapping[str, Any] | None, again: str
) -> None:
    """Check a weights file against its record or, if that is damaged, against the provenance."""
    found = book.sha256(path)
    if record is None:
        if run is not None and "hashes" in run:
            book.same(path, "sha256, by run.json", run["hashes"]["weights"], found, again)
        return
    if book.same(path, f"sha256, by {beside.name}", record["weights_sha256"], found, again):
        with safe_open(path, framework="np") as f:
            inner = json.loads((f.metadata() or {})["viny"])
        outer = {k: v for k, v in record.items() if k not in OUTSIDE}
        book.agree(beside, "", inner, outer, f"as {path.name} has it inside; {again}")


def _check_curve(path: Path, record: Mapping[str, Any]) -> None:
    """Check a learning curve against the epochs and the last loss in its training's record.

    Raises:
        InputError: rows are missing, a value is not finite, or the last loss differs.
    """
    with open(path, newline="", encoding="utf-8") as f:
        rows = [
            {key: float(value) for key, value in row.items() if value != "" or key != "held_out_loss"}
            for row in csv.DictReader(f, strict=True)
        ]
    epochs = record["spec"]["train"]["epochs"]
    if len(rows) != epochs or any(row["epoch"] != i for i, row in enumerate(rows, 1)):
        raise InputError(f"expected a row for each of {epochs} epochs, found {len(rows)} rows; {AGAIN}")
    for row in rows:
        for key, value in row.items():
            if not math.isfinite(value):
                raise InputError(f"{key} of epoch {row['epoch']:.0f}: expected a number, found {value}; {AGAIN}")
    rate = record["tuned"]["lr"] if "tuned" in record else record["spec"]["train"]["lr"]
    if rows[0]["lr"] != rate:
        raise InputError(f"expected the first rate to be {rate}, as the record has it, found {rows[0]['lr']}; {AGAIN}")
    last = rows[-1]["loss"], rows[-1].get("held_out_loss")
    for what, found, expected in zip(
        ("loss", "loss on held-out images"), last, (record["final_loss"], record.get("held_out_loss")), strict=True
    ):
        if found != expected:
            raise InputError(f"expected the last {what} to be {expected}, as the record has it, found {found}; {AGAIN}")


def _check_provenance(book: Book, path: Path, provenance: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
    """Check a run's provenance against its training's record; whether they are of the same run.

    Raises:
        InputError: a key is missing.
    """
    require_run_keys(provenance)
    if "hashes" not in provenance:  # runs of the first version have none
        return True
    expected = {
        "spec": digest(record["spec"]),
        "pack": record["pack_sha256"],
        "split": record["split_sha256"],
        "weights": record["weights_sha256"],
        "parent_weights": record["parent_sha256"],
    }
    return book.agree(path, "hashes", expected, provenance["hashes"], f"as the record beside it has them; {AGAIN}")
