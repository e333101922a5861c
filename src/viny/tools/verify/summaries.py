"""Checks of what summarises a study: tables, figures and the report, by the records of the jobs that wrote them."""

from __future__ import annotations

import json
from pathlib import Path

from viny.runtime.files import canonical_json
from viny.study import layout, specs
from viny.tools.verify.book import AGAIN, Book
from viny.tools.verify.evaluated import MEANT
from viny.tools.verify.report import MISSING, NOTE, WRONG


def check_summary(book: Book, stage: str) -> None:
    """Check a summarising job's record against the settings, what it read and what it wrote.

    Args:
        book: the study's; all other checks of files have run, so that a damaged input is not blamed on its readers.
        stage: the job's rule.
    """
    path = book.path(layout.SUMMARY, stage=stage)
    of = {"grid": {"pretrain_sizes": [0], "intermediates": ["none"]}} if book.config is None else book.config
    files = [book.root / made for made in layout.summarised(stage, of)]
    if not any(file.exists() for file in (path, *files)):
        book.expected |= {path, *files}
        book.add(MISSING, path, f"expected a record of rule {stage} and what it makes, found none; run the workflow")
        return
    value = None
    if path.is_file() or not book.older:
        value = book.json(path, "a record of what was read and written")
    book.expected.add(path)
    if value is not None:
        own = False
        with book.about(path):
            own = book.agree(path, "stage", stage, value["stage"], AGAIN)
            if own:
                _check_record(book, path, stage, value)
                of = value["spec"] if stage in ("figures", "statistics") else of  # these depend on the grid
        value = value if own else None
    for made in layout.summarised(stage, of):
        file = book.root / made
        if book.there(file, f"what rule {stage} makes"):
            with book.about(file):
                found = book.sha256(file)
                if value is not None:
                    book.same(file, f"sha256, by {path.name}", value["outputs"].get(made.as_posix()), found, AGAIN)


def _check_record(book: Book, path: Path, stage: str, value: dict) -> None:
    """Check what a summarising job was asked, and that what it read is what is there now."""
    spec = {k: v for k, v in value["spec"].items() if k != "code"}
    book.made_by(stage, path, value["spec"].get("code"))
    if book.config is not None:
        expected = json.loads(canonical_json(specs.summary_spec(book.config, stage)))  # tuples become lists
        if not book.agree(path, "spec", expected, spec, MEANT):
            return
    others = []
    for name, was in value["inputs"].items():
        file = book.root / name
        if file in book.faulty:
            continue  # it has a finding of its own
        found = book.sha256(file)
        if found is not None and found != was:
            others.append(name)
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        book.add(WRONG, path, f"was made from another {others[0]}{more} than is there now; {AGAIN}")


def check_age(book: Book) -> None:
    """Note, once, that a study is from before its records were sealed.

    Args:
        book: the study's, after all checks of files.
    """
    if book.unsealed:
        more = f" and {len(book.unsealed) - 1} more" if len(book.unsealed) > 1 else ""
        book.add(
            NOTE,
            book.unsealed[0],
            f"this{more} are from a version that did not seal its records, so a change of a number in them, or of what "
            "was made from them, may go unnoticed; the workflow would make them anew",
        )
