"""Checks of what was measured on a study's models: metrics, confusion matrices, geometry and the tables of metrics."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from viny.evidence.metrics import classes_in, classes_lacking, summarise
from viny.evidence.tables import read_metrics, write_tables
from viny.runtime.errors import InputError
from viny.runtime.files import digest
from viny.runtime.fingerprint import code_fingerprint
from viny.study import layout, specs
from viny.study.grid import Cell, Encoder
from viny.study.layout import Training
from viny.tools.verify.book import AGAIN, Book, require_run_keys
from viny.tools.verify.report import MISSING, NOTE, SHORT

# Made from more than metrics, and not recomputed.
OTHER_TABLES = (
    *layout.DUPLICATES_TABLES,
    *layout.STATISTICS_TABLES,
    *layout.REPRESENTATIONS_TABLES,
    *layout.SCORECARD_TABLES,
)


def check_metrics(book: Book, cell: Cell) -> None:
    """Check a cell's metrics against the settings, its model, its data and its confusion matrices.

    Args:
        book: the study's; `check_split` has run on the split of the cell's fine-tuning.
        cell: the one whose metrics are checked.
    """
    training = layout.chain(cell)[-1]
    path, confusion = layout.metrics_file(book.root, cell), book.path(layout.CONFUSION, cell=cell.name)
    book.expected |= {path, confusion}
    if not path.exists() and not confusion.exists():
        book.add(MISSING, path, "expected the cell's metrics, found no such file; run the workflow")
        return
    present = book.there(confusion, "confusion matrices")
    value = book.json(path, "the metrics of an evaluated cell")
    if value is None:
        return
    with book.about(path):
        read_metrics([path])
        book.agree(path, "cell", cell.as_dict(), value["cell"], AGAIN)
        hashes, record = value["hashes"], book.json(training.file(book.root, "record"), "a weights record")
        weights = book.sha256(training.file(book.root, "weights"))
        if weights is not None:
            book.same(path, "weights of the model", weights, hashes["weights"], AGAIN)
        book.same_parent(path, training, hashes, "parent_weights", AGAIN)
        book.same_pack(path, training.pack, hashes, "pack", AGAIN)
        book.same_split(path, training.split, hashes, "split", AGAIN)
        if record is not None:
            expected = {"train": record["spec"]["train"], "parameters": record["parameters"]}
            book.agree(path, "", expected, {key: value[key] for key in expected}, f"as the model's record; {AGAIN}")
        require_run_keys(value["provenance"], "provenance: ")
        _check_evaluation(book, path, cell, value)
    if present:
        with book.about(confusion):
            book.count(confusion)
            _check_confusion(book, confusion, path, training, value)


def _check_evaluation(book: Book, path: Path, cell: Cell, value: Mapping[str, Any]) -> None:
    """Check what a cell's evaluation was asked to do against the settings."""
    made_by = value["provenance"].get("fingerprint")
    book.made_by("evaluate", path, made_by)
    if book.config is None:
        return
    spec = specs.evaluate_spec(book.config, cell)
    meant = "rerun the workflow with the settings that are meant"
    expected = {key: spec[key] for key in ("study", "note", "protocol", "switches")}
    found = {key: value[key] for key in expected}
    if expected != found:
        book.agree(path, "", expected, found, meant)
        return  # the hash of the settings cannot match either
    stated = value["hashes"]["spec"]
    code = code_fingerprint("evaluate")
    # Metrics without a fingerprint come from a tool that gives none, or from before fingerprints were recorded.
    candidates = [made_by] if made_by else [code, None]
    if stated in [digest({**spec, "code": c} if c else spec) for c in candidates]:
        return
    if made_by:
        book.same(path, "spec", digest({**spec, "code": made_by}), stated, meant)
    else:
        book.unclear.append(path)


def _check_confusion(book: Book, path: Path, metrics: Path, training: Training, value: Mapping[str, Any]) -> None:
    """Check confusion matrices against the metrics that follow from them and against the split's test images.

    Raises:
        InputError: the matrices are not those of the test images.
    """
    with np.load(path, allow_pickle=False) as f:
        confusion, indices = f["confusion"].astype(np.int64), f["indices"]
    if len(confusion) != len(indices) or len(indices) != value["test_images"]:
        raise InputError(
            f"expected matrices of {value['test_images']} images, found {len(confusion)} for {len(indices)} "
            f"indices; {AGAIN}"
        )
    lists = book.index_lists.get(training.split)
    if lists is not None and not np.array_equal(indices, lists["test"]):
        raise InputError(f"expected the test images of split {'/'.join(training.split)}, found others; {AGAIN}")
    manifest = book.manifest(training.pack)
    if manifest is None:
        return
    expected = summarise(confusion, manifest["mask_classes"], manifest.get("border_class"))
    expected["miou"] = expected[f"miou_{value['miou_is']}"]
    classes = classes_in(confusion, manifest["mask_classes"])
    if lists is not None and training.pack in book.packs:
        classes["not_in_training"] = classes_lacking(book.packs[training.pack], lists["train"])
    book.agree(metrics, "classes", classes, {key: value["classes"][key] for key in classes}, AGAIN)
    book.agree(metrics, "metrics", expected, value["metrics"], f"as {path.name} gives them; {AGAIN}")
    book.agree(metrics, "miou_is", value["switches"]["miou"], value["miou_is"], AGAIN)


def check_geometry(book: Book, encoder: Encoder) -> None:
    """Check an encoder's geometry against the weights and the images that it was measured on.

    Args:
        book: the study's.
        encoder: the one whose geometry is checked.
    """
    path, arrays = layout.geometry_file(book.root, encoder), book.path(layout.GEOMETRY_ARRAYS, encoder=encoder.name)
    book.expected |= {path, arrays}
    if not path.exists() and not arrays.exists():
        book.add(MISSING, path, "expected the encoder's geometry, found no such file; run the workflow")
        return
    if book.there(arrays, "arrays of the encoder's geometry"):
        book.count(arrays)
    value = book.json(path, "an encoder's geometry")
    if value is None:
        return
    with book.about(path):
        book.agree(path, "encoder", encoder.as_dict(), value["encoder"], AGAIN)
        hashes = value["hashes"]
        of = {"weights": layout.training_of(encoder), "reference_weights": layout.reference_of(encoder)}
        for key, training in of.items():
            weights = book.sha256(training.file(book.root, "weights")) if training else None
            if training is None or weights is not None:
                book.same(path, key.replace("_", " "), weights, hashes[key], AGAIN)
        book.same_pack(path, "segmentation", hashes, "pack", AGAIN)
        book.made_by("geometry", path, value["provenance"].get("fingerprint"))


def check_tables(book: Book, cells: Iterable[Cell]) -> None:
    """Check the tables that are made from metrics alone against what the metrics give now.

    Args:
        book: the study's.
        cells: the study's.
    """
    folder = (book.root / layout.TABLE).parent
    book.expected |= {book.path(layout.TABLE, name=name) for name in OTHER_TABLES}
    book.expected |= {book.path(layout.SUMMARY, stage=stage) for stage in layout.SUMMARIES}
    paths = [layout.metrics_file(book.root, cell) for cell in cells]
    with tempfile.TemporaryDirectory() as made:
        try:
            write_tables(paths, made)
        except Exception as error:  # the metrics are at fault, and have findings of their own
            book.expected |= set(folder.glob("*"))
            reason = str(error).replace(f"{book.root}{os.sep}", "")
            book.add(NOTE, folder, f"not compared with the metrics, which are not whole ({reason})")
            return
        for fresh in sorted(Path(made).iterdir()):
            path = book.path(layout.TABLE, name=fresh.name)
            if not book.there(path, "a table of the metrics"):
                continue
            with book.about(path):
                book.count(path)
                _check_table(fresh, path)


def _check_table(fresh: Path, path: Path) -> None:
    """Check a table against the one that the metrics give.

    Raises:
        InputError: they differ; it names the first line that does.
    """
    expected, found = fresh.read_bytes().splitlines(), path.read_bytes().splitlines()
    if expected != found:
        pairs = zip([*expected, b""], [*found, b""], strict=False)
        line, (want, got) = next((i, p) for i, p in enumerate(pairs, 1) if p[0] != p[1])
        raise InputError(
            f"line {line}: expected {SHORT.repr(want.decode())}, as the metrics have it, found "
            f"{SHORT.repr(got.decode(errors='replace'))}; {AGAIN}"
        )


def check_codes(book: Book) -> None:
    """Note, once per stage, files made by code other than today's: they may be sound, but would be made again.

    Args:
        book: the study's, after all checks of files.
    """
    for stage, made in book.codes.items():
        now = code_fingerprint(stage)
        others = [(file, code) for file, code in made if code != now]
        if others:
            file, code = others[0]
            which = "this file was" if len(made) == 1 else f"this and {len(others) - 1} more of {len(made)} were"
            book.add(
                NOTE,
                file,
                f"{stage}: {which} made by another version of the code (fingerprint {code}, here {now}); the "
                "workflow would make it anew",
            )
    if book.unclear:
        book.add(
            NOTE,
            book.unclear[0],
            f"spec: {len(book.unclear)} metrics files were made by another version of the code or with other "
            "settings of evaluation, and do not say which; rerun the workflow to be sure",
        )
