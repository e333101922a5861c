"""Check a study's results: recompute every hash, and compare every file with those that it belongs to.

Nothing is written. A damaged file is a finding, never an exception. Each damage is named once, at its file: what was
made from a damaged file is compared with what that file's record says. Logs, benchmarks and checkpoints are no results
and are not checked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from viny.learning.progress import PROGRESS
from viny.runtime.claims import Claim
from viny.runtime.differences import differences
from viny.runtime.errors import InputError
from viny.runtime.files import json_text, read_json
from viny.study import grid, layout, specs
from viny.study.arms import settings_of
from viny.study.grid import Cell
from viny.study.saved import saved_study, study_file
from viny.tools.verify.book import Book
from viny.tools.verify.data import check_pack, check_sources, check_split
from viny.tools.verify.evaluated import (
    check_any_geometry,
    check_codes,
    check_geometry,
    check_metrics,
    check_reference,
)
from viny.tools.verify.report import MISSING, NOTE, WRONG, Report
from viny.tools.verify.summaries import check_age, check_summary
from viny.tools.verify.trainings import check_start, check_training, check_tuning

# Names in the study's folder that are skipped, and the name of the folder of checkpoints.
UNCHECKED = {Path(pattern).parts[0] for pattern in (layout.LOG, layout.BENCHMARK)}
CHECKPOINTS = Path(layout.CHECKPOINTS).parts[0]
CLAIM = ".claim"  # of whoever runs the study


def verify_study(root: Path, config: Mapping[str, Any] | None = None, store: Path | None = None) -> Report:
    """Check a study's results.

    Args:
        root: the study's folder, wherever it is now.
        config: resolved settings; None for those in the study's own study.json, if it has one.
        store: folder of packs; None for where the study's links lead, or else the place that the settings name.

    Returns:
        Findings, in this order: settings, packs and what they were made from, splits, trainings, metrics, geometry,
        summaries, code, strays.

    Raises:
        InputError: `root` is not a folder or holds no study, or `store` is not a folder.
    """
    began = time.monotonic()
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; expected a study's, such as results/demo")
    if store is not None and not store.is_dir():
        raise InputError(f"{store}: no such folder; expected one of packs")
    book = Book(root, config, store)
    _check_settings(book)
    cells = grid.cells(book.config) if book.config is not None else cells_of_files(root)
    if not cells and not study_file(root).is_file():
        raise InputError(f"{root}: holds neither study.json nor cells; expected a study's folder, such as results/demo")
    book.groups = grid.by_group(cells)
    for file, check in tqdm(_checks(book, cells), desc="verify", unit="check", mininterval=1.0, disable=None):
        with book.about(file):
            check()
    book.report.seconds = round(time.monotonic() - began, 3)
    return book.report


def cells_of_files(root: Path) -> list[Cell]:
    """The cells that a study's files name, for a study whose settings are unknown.

    Which trainings they share, a record of what summarised them says; without one, they are taken to share what they
    have no file of their own for.
    """
    names = [path.name for path in root.glob(layout.FOLDERS["finetune"].format(cell="*"))]
    names += [path.stem for path in root.glob(layout.METRICS.format(cell="*"))]
    known = {cell.name: cell for cell in _summarised_cells(root)}
    found = {cell for name in names if (cell := known.get(name) or Cell.parse(name))}
    return sorted(cell if cell.lineage else _sharing(root, cell) for cell in found)


def _summarised_cells(root: Path) -> list[Cell]:
    """The cells of the grid that a summary's record names; none if there is no such record."""
    for stage in layout.SUMMARIES:
        try:
            grid_of = read_json(root / layout.SUMMARY.format(stage=stage), "a record")["spec"]["grid"]
            return grid.cells({"grid": grid_of})
        except (AttributeError, InputError, LookupError, TypeError, ValueError):
            continue
    return []


def _sharing(root: Path, cell: Cell) -> Cell:
    """A cell of an arm, as sharing with the study's own variant what is not there under its name."""
    if cell.variant == grid.STUDY and cell.start == grid.RANDOM:
        return cell
    plain = replace(cell, variant=grid.STUDY)
    both = {one: {made.stage: made for made in layout.chain(one)} for one in (cell, plain)}

    def owner(stage: str) -> str:
        there = [one.variant for one in (cell, plain) if stage in both[one] and both[one][stage].folder(root).exists()]
        return there[0] if there else cell.variant

    tasks = tuple((task, owner("intermediate"), images) for task, _, images in cell.shared.tasks)
    published = layout.start_file(root, cell.start, "record").parent.exists()
    return replace(cell, lineage=replace(cell.shared, pretrain=owner("pretrain"), tasks=tasks, published=published))


def _is_tuned(book: Book, cell: Cell) -> bool:
    """Whether a cell's rate is chosen, by the settings or else by its files."""
    if book.config is None:
        return book.path(layout.TUNING, cell=cell.name).exists()
    return specs.is_tuned(settings_of(book.config, cell.arm))


def _references(book: Book) -> list[grid.Reference]:
    """The references of a study, by the settings or else by the files that are there."""
    if book.config is not None:
        return grid.references(book.config)
    names = sorted({path.stem for path in (book.root / layout.REFERENCE["record"]).parent.glob("*.*")})
    return [found for name in names if (found := grid.Reference.parse(name))]


def _check_settings(book: Book) -> None:
    """Take the study's own settings if the user gave none, or else compare them with those given."""
    path = study_file(book.root)
    book.expected.add(path)
    if not path.is_file():
        if book.config is None:
            book.add(
                MISSING,
                path,
                "expected the study's settings, found no such file; whether the results are those of the "
                "settings, and all of them, is not checked; name the study's file with --study, or rerun the "
                "workflow",
            )
        return
    with book.about(path):
        book.sha256(path)
        config = saved_study(book.root)
        if book.config is None:
            book.config = config
        # The run noted what was in the user's folders, which a study file does not say.
        elif found := list(differences(book.config, {k: v for k, v in config.items() if k != "listings"})):
            book.add(NOTE, path, f"holds other settings than those given, which were used ({'; '.join(found[:3])})")
        value = read_json(path, "a study's settings")
        if set(value) != {"config", "sha256"} or path.read_bytes() != json_text(value).encode():
            book.add(
                WRONG,
                path,
                "changed since it was written: other or further characters; run the workflow, which writes it again",
            )


def _checks(book: Book, cells: list[Cell]) -> list[tuple[Path, Callable[[], None]]]:
    """All checks in order, each with the file under which a fault in the check itself is reported.

    Inputs come before what is made from them, so that a check finds in the book what earlier ones left there.
    """
    root, trainings = book.root, layout.trainings(cells)
    checks: list[tuple[Path, Callable[[], None]]] = []
    packs = list(dict.fromkeys(training.pack for training in trainings))
    for name in packs:
        checks.append((layout.pack_manifest(root, name), partial(check_pack, book, name)))
    checks.append((study_file(root), partial(check_sources, book, packs)))
    for split in dict.fromkeys(training.split for training in trainings):
        checks.append((layout.split_record(root, *split), partial(check_split, book, *split)))
    for start in layout.published(cells):
        checks.append((layout.start_file(root, start, "record"), partial(check_start, book, start)))
    encoders, models = ([one for one in trainings if isinstance(one.key, Cell) == kind] for kind in (False, True))
    for training in encoders:
        checks.append((training.file(root, "record"), partial(check_training, book, training)))
    for cell in cells:
        if _is_tuned(book, cell):
            checks.append((book.path(layout.TUNING, cell=cell.name), partial(check_tuning, book, cell)))
    for training in models:
        checks.append((training.file(root, "record"), partial(check_training, book, training)))
    for cell in cells:
        checks.append((layout.metrics_file(root, cell), partial(check_metrics, book, cell)))
    for reference in _references(book):
        checks.append((layout.reference_file(root, reference, "record"), partial(check_reference, book, reference)))
    if book.config is not None:
        for encoder in grid.encoders(book.config):
            checks.append((layout.geometry_file(root, encoder), partial(check_geometry, book, encoder)))
    else:  # only the settings say which encoders are measured
        for name in sorted({path.stem for path in (root / layout.GEOMETRY).parent.glob("*.*")}):
            checks.append((root / layout.GEOMETRY.format(encoder=name), partial(check_any_geometry, book, name)))
    for stage in layout.SUMMARIES:
        if stage != "representations" or book.config is None or grid.encoders(book.config):
            checks.append((book.path(layout.SUMMARY, stage=stage), partial(check_summary, book, stage)))
    checks += [(root, partial(check, book)) for check in (check_codes, check_age, _check_strays)]
    return checks


def _check_strays(book: Book) -> None:
    """Note what does not belong to the study; a folder with nothing of the study's is one note."""
    passed = set(UNCHECKED)
    if (holder := Claim(book.root / CLAIM).holder()) is not None:
        book.add(
            NOTE, book.root / CLAIM, f"held by {holder}, which is running the study: what is under way is not judged"
        )
        passed |= {CLAIM, CHECKPOINTS}
    _stray_in(book, book.root, {parent for path in book.expected for parent in path.parents}, passed)


def _stray_in(book: Book, folder: Path, wanted: set[Path], passed: set[str]) -> None:
    of_study = folder == book.root
    for path in sorted(folder.iterdir()):
        if path in book.expected or (of_study and path.name in passed):
            continue
        if path.is_dir() and not path.is_symlink() and path in wanted:
            _stray_in(book, path, wanted, passed)
        elif of_study and path.name == CHECKPOINTS:
            for file in sorted(p for p in path.rglob("*") if not p.is_dir() and p.name != PROGRESS):
                book.add(NOTE, file, "a checkpoint: a job was interrupted; the next run goes on from it")
        elif path.name.startswith(".") and ".tmp" in path.name:
            book.add(NOTE, path, "left by a write that was interrupted; may be deleted")
        elif not path.is_dir() or any(path.iterdir()):
            book.add(NOTE, path, "not of the study's grid; nothing here uses it")
