"""The book that verify keeps on a study: its settings, its files, each read and hashed once, and what was found."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from viny.data.pack import Pack
from viny.runtime.errors import InputError
from viny.runtime.files import read_json
from viny.study import layout
from viny.study.layout import Training
from viny.tools.verify.report import MISSING, WRONG, Finding, Report, differences

RUN_KEYS = ("code", "device", "precision", "threads", "seed", "started", "ended", "seconds", "packages")
AGAIN = "delete it and rerun the workflow"


def _short(sha256: Any) -> str:
    return sha256[:12] if isinstance(sha256, str) else repr(sha256)


def require_run_keys(provenance: Any, where: str = "") -> None:
    """Check that a job's provenance has every key that jobs write.

    Args:
        provenance: the job's, as read from its file.
        where: what the message starts with.

    Raises:
        InputError: it lacks a key.
    """
    lacking = [key for key in RUN_KEYS if key not in provenance]
    if lacking:
        raise InputError(f"{where}expected the key {', '.join(lacking)}, found none; {AGAIN}")


@dataclass
class Book:
    """What the checks of one study share.

    Attributes:
        root: the study's folder.
        config: resolved settings; None if unknown.
        store: folder of packs; None if the user named none.
        report: the findings so far.
        expected: files that belong to the study, whether they are there or not.
        verified: packs whose arrays were compared, by the folder of the arrays and the manifest's digest.
        packs: opened packs, by name, once they are found whole.
        index_lists: those found whole, by part and subset.
        codes: by stage, the files and the fingerprint of the code that made each.
        unclear: metrics made by other code or with other settings, where it cannot be told which.
    """

    root: Path
    config: Mapping[str, Any] | None = None
    store: Path | None = None
    report: Report = field(default_factory=Report)
    expected: set[Path] = field(default_factory=set)
    verified: set[tuple[str, str]] = field(default_factory=set)
    packs: dict[str, Pack] = field(default_factory=dict)
    index_lists: dict[tuple[str, str], dict[str, np.ndarray]] = field(default_factory=dict)
    codes: dict[str, list[tuple[Path, str]]] = field(default_factory=dict)
    unclear: list[Path] = field(default_factory=list)
    _hashes: dict[str, str | None] = field(default_factory=dict, init=False, repr=False)
    _values: dict[Path, dict[str, Any] | None] = field(default_factory=dict, init=False, repr=False)

    # Findings

    def add(self, severity: str, file: Path, message: str) -> None:
        """Add a finding.

        Args:
            severity: WRONG, MISSING or NOTE.
            file: the one it is about.
            message: may start with the file and span several lines; the file and the line breaks are dropped.
        """
        shown = os.path.relpath(file, self.root) if file.is_absolute() == self.root.is_absolute() else str(file)
        message = " ".join(message.removeprefix(f"{file}: ").split())
        # A name or a value from a damaged file may have characters that a terminal cannot show.
        clean = (text.encode("utf-8", "backslashreplace").decode() for text in (shown, message))
        self.report.findings.append(Finding(severity, *clean))

    @contextmanager
    def about(self, file: Path) -> Iterator[None]:
        """Turn any exception raised inside into a finding about a file."""
        try:
            yield
        except InputError as error:
            self.add(WRONG, file, str(error))
        except Exception as error:  # a damaged file can trip up any reader in its own way
            self.add(WRONG, file, f"not what it should be ({type(error).__name__}: {error}); {AGAIN}")

    def same(self, file: Path, what: str, expected: Any, found: Any, advice: str) -> bool:
        """Compare two hashes; add a finding if they differ.

        Args:
            file: the one that the finding is about.
            what: what is hashed, in words.
            expected: hex sha256; None for none.
            found: likewise; may be anything in a damaged file.
            advice: what to do about a difference.

        Returns:
            Whether they are equal.
        """
        if expected == found:
            return True
        self.add(WRONG, file, f"{what}: expected {_short(expected)}, found {_short(found)}; {advice}")
        return False

    def agree(self, file: Path, what: str, expected: Any, found: Any, advice: str) -> None:
        """Compare two JSON values; add a finding that names the first three differences.

        Args:
            file: the one that the finding is about.
            what: key of the values in the file; empty for the whole file.
            expected: the value that follows from the settings or from other files.
            found: the value in the file.
            advice: what to do about a difference.
        """
        found_all = list(differences(expected, found, what))
        if found_all:
            more = f" and {len(found_all) - 3} more" if len(found_all) > 3 else ""
            self.add(WRONG, file, f"{'; '.join(found_all[:3])}{more}; {advice}")

    def made_by(self, stage: str, file: Path, code: Any) -> None:
        """Note which code made a file, by its fingerprint; anything else means that the file names none."""
        if isinstance(code, str):
            self.codes.setdefault(stage, []).append((file, code))

    # Files

    def path(self, pattern: str, **names: str) -> Path:
        """The study's file for one of the patterns of `viny.study.layout`."""
        return self.root / pattern.format(**names)

    def count(self, path: Path) -> None:
        """Count a file as checked."""
        self.report.files += 1
        self.report.bytes += path.stat().st_size

    def there(self, path: Path, what: str) -> bool:
        """Whether a file of the study is there; adds a finding if not.

        Args:
            path: the file; from now on it belongs to the study.
            what: what it holds, in words.
        """
        self.expected.add(path)
        if path.is_file():
            return True
        self.add(MISSING, path, f"expected {what}, found no such file; rerun the workflow")
        return False

    def sha256(self, path: Path) -> str | None:
        """Hex sha256 of a file's content; None if there is no such file."""
        key = os.path.realpath(path)
        if key not in self._hashes:
            self._hashes[key] = None
            if path.is_file():
                with open(path, "rb") as f:
                    self._hashes[key] = hashlib.file_digest(f, "sha256").hexdigest()
                self.count(path)
        return self._hashes[key]

    def json(self, path: Path, what: str) -> dict[str, Any] | None:
        """A JSON object; None, and a finding the first time, if the file is missing or holds something else."""
        if path not in self._values:
            self._values[path] = None
            if self.there(path, what):
                with self.about(path):
                    self.count(path)
                    value = read_json(path, what)
                    if not isinstance(value, dict):
                        raise InputError(f"expected {what}, found a JSON {type(value).__name__}; {AGAIN}")
                    self._values[path] = value
        return self._values[path]

    def manifest(self, name: str) -> dict[str, Any] | None:
        """A pack's manifest, as `json` reads it."""
        return self.json(layout.pack_manifest(self.root, name), "a pack manifest")

    def split_record(self, part: str, subset: str) -> dict[str, Any] | None:
        """A split's record, as `json` reads it."""
        return self.json(layout.split_record(self.root, part, subset), "a split record")

    # What a file was made from. A missing input has a finding of its own.

    def same_pack(self, file: Path, name: str, hashes: Any, key: str, advice: str) -> None:
        """Compare the pack hash that a file states with the pack's manifest.

        Args:
            file: the one that states the hash.
            name: the pack's.
            hashes: the file's mapping that holds the hash.
            key: of the hash in that mapping.
            advice: what to do about a difference.
        """
        if (manifest := self.manifest(name)) is not None:
            self.same(file, f"pack '{name}'", manifest.get("sha256"), hashes[key], advice)

    def same_split(self, file: Path, split: tuple[str, str], hashes: Any, key: str, advice: str) -> None:
        """Compare the hash that a file states for a split's training images with the split's record.

        Args:
            file: the one that states the hash.
            split: its part and subset.
            hashes, key, advice: as for `same_pack`.
        """
        if (record := self.split_record(*split)) is not None:
            self.same(file, f"split {'/'.join(split)}", record["parts"]["train"]["sha256"], hashes[key], advice)

    def same_parent(self, file: Path, training: Training, hashes: Any, key: str, advice: str) -> None:
        """Compare the hash that a file states for the weights a training started from with those weights.

        Args:
            file: the one that states the hash.
            training: the training; one from a random start has no parent weights, and no hash.
            hashes, key, advice: as for `same_pack`.
        """
        if training.parent is None:
            self.same(file, "parent weights", None, hashes[key], advice)
        elif (weights := self.sha256(training.parent.file(self.root, "weights"))) is not None:
            self.same(file, f"weights of {training.parent.folder(Path())}", weights, hashes[key], advice)
