"""Checks of what was measured on a study's models: metrics, confusion matrices and geometry."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from viny.data.parts import Groups
from viny.evidence.constant import constant_answer, with_miou
from viny.evidence.metrics import classes_in, classes_lacking, image_scores, own_size_summary, scores_text
from viny.evidence.tables import cell_row
from viny.runtime.errors import InputError
from viny.runtime.files import digest
from viny.runtime.fingerprint import code_fingerprint
from viny.study import layout, specs
from viny.study.grid import Cell, Encoder, Reference, encoders, probe_size
from viny.tools.verify.book import AGAIN, Book, require_run_keys
from viny.tools.verify.report import MISSING, NOTE, WRONG

MEANT = "rerun the workflow with the settings that are meant"
ASKED = ("study", "note", "protocol", "switches", "class_token", "normalise")  # settings that results repeat


def check_metrics(book: Book, cell: Cell) -> None:
    """Check a cell's metrics against the settings, its model, its data and its confusion matrices.

    Args:
        book: the study's; the checks of the cell's fine-tuning and of its split have run.
        cell: the one whose metrics are checked.
    """
    training = layout.chain(cell)[-1]
    path, confusion = layout.metrics_file(book.root, cell), book.path(layout.CONFUSION, cell=cell.name)
    scores = book.path(layout.SCORES, cell=cell.name)
    book.expected |= {path, confusion, scores}
    if not path.exists() and not confusion.exists():
        book.add(MISSING, path, "expected the cell's metrics, found no such file; run the workflow")
        return
    present = book.there(confusion, "confusion matrices")
    value = book.json(path, "the metrics of an evaluated cell")
    if value is None:
        return
    own = False
    with book.about(path):
        cell_row(path, value)
        own = book.agree(path, "cell", cell.as_dict(), value["cell"], AGAIN)
        if not own:
            return
        hashes, record = value["hashes"], book.json(training.file(book.root, "record"), "a weights record")
        book.same_weights(path, training.file(book.root, "record"), "weights of the model", hashes, "weights", AGAIN)
        book.same_parent(path, training, hashes, "parent_weights", AGAIN)
        book.same_pack(path, training.pack, hashes, "pack", AGAIN)
        book.same_split(path, training.split, hashes, "split", AGAIN)
        if record is not None:
            expected = {"train": record["spec"]["train"], "parameters": record["parameters"]}
            book.agree(path, "", expected, {key: value[key] for key in expected}, f"as the model's record; {AGAIN}")
        require_run_keys(value["provenance"], "provenance: ")
        if book.config is not None:
            _check_asked(book, "evaluate", path, specs.evaluate_spec(book.config, cell), value)
    # Evaluations of before 2026-11-27 left no scores, and do not state them.
    if scores.name not in value.get("outputs", {}):
        scores = None
    elif own and book.there(scores, "the test images' scores"):
        with book.about(scores):
            scores = scores if book.stated(scores, value["outputs"], path, AGAIN) else None
    if present and own:
        with book.about(confusion):
            if book.stated(confusion, value.get("outputs"), path, AGAIN):
                _check_confusion(book, confusion, path, scores, training.pack, training.split, value)


def check_reference(book: Book, reference: Reference) -> None:
    """Check a reference against the settings, its data and its confusion matrices.

    Args:
        book: the study's; the check of its split has run.
        reference: the one whose record is checked.
    """
    files = [layout.reference_file(book.root, reference, what) for what in layout.REFERENCE]
    path, weights, confusion, curve = files
    book.expected |= {*files}
    if not any(one.exists() for one in files):
        book.add(MISSING, path, "expected the reference's metrics, found no such file; run the workflow")
        return
    present = book.there(confusion, "confusion matrices")
    drawn = book.there(curve, "the learning curve of a reference")
    kept = book.there(weights, "the weights of a reference")
    value = book.json(path, "a reference")
    if value is None:
        return
    own, split = False, layout.reference_split(reference)
    with book.about(path):
        own = book.agree(path, "cell", reference.as_dict(), value["cell"], AGAIN)
        if not own:
            return
        book.same_pack(path, "segmentation", value, "pack_sha256", AGAIN)
        book.same_split(path, split, value, "split_sha256", AGAIN)
        book.agree(path, "train", value["spec"]["train"], value["train"], AGAIN)
        if book.config is not None:
            _check_asked(book, "reference", path, specs.reference_spec(book.config, reference), value)
    if kept and own:
        with book.about(weights):
            book.same(weights, f"sha256, by {path.name}", value["weights_sha256"], book.sha256(weights), AGAIN)
    if drawn and own:
        with book.about(curve):
            book.stated(curve, value.get("outputs"), path, AGAIN)
    if present and own:
        with book.about(confusion):
            if book.stated(confusion, value.get("outputs"), path, AGAIN):
                _check_confusion(book, confusion, path, None, "segmentation", split, value)


def _check_asked(book: Book, stage: str, path: Path, spec: Mapping[str, Any], value: Mapping[str, Any]) -> None:
    """Check what an evaluation or a geometry was asked to do, by its keys and by the hash of its settings."""
    made_by = value["provenance"].get("fingerprint")
    book.made_by(stage, path, made_by)
    expected = {key: said for key, said in spec.items() if key in ASKED}
    found = {key: value[key] for key in expected}
    if not book.agree(path, "", expected, found, MEANT):
        return  # the hash of the settings cannot match either
    stated = value["hashes"]["spec"]
    # Those without a fingerprint come from a tool that gives none, or from before fingerprints were recorded.
    candidates = [made_by] if made_by else [code_fingerprint(stage), None]
    if stated in [digest({**spec, "code": c} if c else spec) for c in candidates]:
        return
    if made_by:
        book.same(path, "spec", digest({**spec, "code": made_by}), stated, MEANT)
    else:
        book.unclear.append(path)


def _check_confusion(
    book: Book,
    path: Path,
    metrics: Path,
    scores: Path | None,
    pack: str,
    split: tuple[str, str],
    value: Mapping[str, Any],
) -> None:
    """Check confusion matrices against the metrics and scores that follow from them, and the split's test images.

    Raises:
        InputError: the matrices are not those of the test images.
    """
    with np.load(path, allow_pickle=False) as f:
        confusion, indices = f["confusion"].astype(np.int64), f["indices"]
        counts = f["own_size"] if "own_size" in f.files else None  # not of made images
        groups = f["groups"] if "groups" in f.files else None
    if len(confusion) != len(indices) or len(indices) != value["test_images"]:
        raise InputError(
            f"expected matrices of {value['test_images']} images, found {len(confusion)} for {len(indices)} "
            f"indices; {AGAIN}"
        )
    lists = book.index_lists.get(split)
    if lists is not None and not np.array_equal(indices, lists["test"]):
        raise InputError(f"expected the test images of split {'/'.join(split)}, found others; {AGAIN}")
    group = (book.config or {}).get("segmentation", {}).get("group")
    if group and scores is not None and pack in book.packs:  # references go by those of the cells
        expected_groups = Groups.read(book.packs[pack].names, group).indices[indices]
        if groups is None or not np.array_equal(groups, expected_groups):
            raise InputError(f"expected the groups of the test images by segmentation.group, found others; {AGAIN}")
    manifest = book.manifest(pack)
    if manifest is None:
        return
    names, border = manifest["mask_classes"], manifest.get("border_class")
    expected = with_miou(confusion, names, border, value["miou_is"])
    if "constant" in value:
        answer = names.index(value["constant"]["class"])
        constant = with_miou(constant_answer(confusion, answer), names, border, value["miou_is"])
        expected_answer = {"class": names[answer], "index": answer, "metrics": constant}
        book.agree(metrics, "constant", expected_answer, value["constant"], f"as {path.name} gives them; {AGAIN}")
    if counts is not None:
        expected |= own_size_summary(counts)
    if "classes" in value:  # metrics of before 2026-11-26 do not say
        classes = classes_in(confusion, names)
        if lists is not None and pack in book.packs:
            if split not in book.lacking:  # the cells of a split share it
                book.lacking[split] = classes_lacking(book.packs[pack], lists["train"])
            classes["not_in_training"] = book.lacking[split]
        book.agree(metrics, "classes", classes, {key: value["classes"][key] for key in classes}, AGAIN)
    book.agree(metrics, "metrics", expected, value["metrics"], f"as {path.name} gives them; {AGAIN}")
    book.agree(metrics, "miou_is", value["switches"]["miou"], value["miou_is"], AGAIN)
    if scores is not None and scores.is_file() and pack in book.packs:
        rows = scores_text(image_scores(book.packs[pack], indices, confusion, counts)).splitlines()
        found = scores.read_text(encoding="utf-8").splitlines()
        line = next((at for at, both in enumerate(zip_longest(rows, found)) if both[0] != both[1]), None)
        if line is not None:
            book.add(WRONG, scores, f"line {line + 1}: not what {path.name} gives; {AGAIN}")


def check_geometry(book: Book, encoder: Encoder) -> None:
    """Check an encoder's geometry against the settings, and the weights and images that it was measured on.

    Args:
        book: the study's; the checks of trainings and splits have run.
        encoder: the one whose geometry is checked.
    """
    path, arrays = layout.geometry_file(book.root, encoder), book.path(layout.GEOMETRY_ARRAYS, encoder=encoder.name)
    book.expected |= {path, arrays}
    if not path.exists() and not arrays.exists():
        book.add(MISSING, path, "expected the encoder's geometry, found no such file; run the workflow")
        return
    present = book.there(arrays, "arrays of the encoder's geometry")
    value = book.json(path, "an encoder's geometry")
    if value is None:
        return
    own = False
    with book.about(path):
        own = book.agree(path, "encoder", encoder.as_dict(), value["encoder"], AGAIN)
        if not own:
            return
        hashes = value["hashes"]
        made, reference = (
            layout.made_of(encoder, of(encoder), book.root, "record")
            for of in (layout.training_of, layout.reference_of)
        )
        book.same_weights(path, made, "weights", hashes, "weights", AGAIN)
        book.same_weights(path, reference, "reference weights", hashes, "reference_weights", AGAIN)
        book.same_pack(path, "segmentation", hashes, "pack", AGAIN)
        if book.config is not None:
            subset = layout.subset(probe_size(book.config), encoder.seed)
            book.same_split(path, ("finetune", subset), hashes, "split", AGAIN, "test")
            _check_asked(book, "geometry", path, specs.geometry_spec(book.config, encoder), value)
    if present and own:
        with book.about(arrays):
            book.stated(arrays, value.get("outputs"), path, AGAIN)


def check_any_geometry(book: Book, name: str) -> None:
    """Check a geometry of an encoder that no settings name, by what its file says of it.

    Args:
        book: the study's.
        name: the encoder's, as its files are called.
    """
    path = book.root / layout.GEOMETRY.format(encoder=name)
    book.expected |= {path, book.path(layout.GEOMETRY_ARRAYS, encoder=name)}
    value = book.json(path, "an encoder's geometry")
    if value is not None:
        with book.about(path):
            encoder = Encoder.of(value["encoder"])
            if book.agree(path, "encoder.name", name, encoder.name, AGAIN):
                cells = [cell for group in book.groups.values() for cell in group]
                known = {one.name: one for one in encoders({"geometry": {"encoders": "all"}}, cells)}
                check_geometry(book, known.get(name, encoder))  # which trainings it shares, if that is known


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
            f"spec: {len(book.unclear)} files were made by another version of the code or with other "
            "settings, and do not say which; rerun the workflow to be sure",
        )
