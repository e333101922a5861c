"""The book that verify keeps on a study: its settings, its files, each read and hashed once, and what was found."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from viny.data.pack import Pack
from viny.runtime.differences import differences
from viny.runtime.errors import InputError
from viny.runtime.files import broken_seal, file_sha256, json_text, read_json
from viny.study import layout
from viny.study.grid import Cell
from viny.study.layout import Training
from viny.tools.verify.report import MISSING, NOTE, WRONG, Finding, Report

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
        lacking: classes of which no mask in a split's training part has a pixel, by part and subset.
        codes: by stage, the files and the fingerprint of the code that made each.
        unclear: metrics and geometry made by other code or with other settings, where it cannot be told which.
        faulty: files with a finding that is more than a note.
        sealed: records that hold a hash of themselves.
        unsealed: records from before records held one.
        groups: the study's cells that differ in their seed alone, by `Cell.group`.
    """

    root: Path
    config: Mapping[str, Any] | None = None
    store: Path | None = None
    report: Report = field(default_factory=Report)
    expected: set[Path] = field(default_factory=set)
    verified: set[tuple[str, str]] = field(default_factory=set)
    packs: dict[str, Pack] = field(default_factory=dict)
    index_lists: dict[tuple[str, str], dict[str, np.ndarray]] = field(default_factory=dict)
    lacking: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    codes: dict[str, list[tuple[Path, str]]] = field(default_factory=dict)
    unclear: list[Path] = field(default_factory=list)
    faulty: set[Path] = field(default_factory=set)
    sealed: list[Path] = field(default_factory=list)
    unsealed: list[Path] = field(default_factory=list)
    groups: dict[tuple[Any, ...], list[Cell]] = field(default_factory=dict)
    _hashes: dict[Path, str | None] = field(default_factory=dict, init=False, repr=False)
    _values: dict[Path, dict[str, Any] | None] = field(default_factory=dict, init=False, repr=False)

    # Findings

    def add(self, severity: str, file: Path, message: str) -> None:
        """Add a finding.

        Args:
            severity: WRONG, MISSING or NOTE.
            file: the one it is about.
            message: may start with the file and span several lines; the file and the line breaks are dropped.
        """
        if severity != NOTE:
            self.faulty.add(file)
        shown = os.path.relpath(file, self.root) if file.is_absolute() == self.root.is_absolute() else str(file)
        message = " ".join(message.removeprefix(f"{file}: ").split())
        # A name or a value from a damaged file may have characters that a terminal cannot show.
        clean = (text.encode("utf-8", "backslashreplace").decode() for text in (shown, message))
        self.report.findings.append(Finding(severity, *clean))

    @contextmanager
    def about(self, file: Path) -> Iterator[None]:
        """Turn any exception raised inside into a finding about a file, or the one that its message begins with."""
        try:
            yield
        except InputError as error:
            named, colon, said = str(error).partition(": ")
            other = bool(colon) and named != str(file) and os.path.isdir(os.path.dirname(named))
            self.add(WRONG, *((Path(named), said) if other else (file, str(error))))
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

    def agree(self, file: Path, what: str, expected: Any, found: Any, advice: str) -> bool:
        """Compare two JSON values; add a finding that names the first three differences.

        Args:
            file: the one that the finding is about.
            what: key of the values in the file; empty for the whole file.
            expected: the value that follows from the settings or from other files.
            found: the value in the file.
            advice: what to do about a difference.

        Returns:
            Whether they are equal.
        """
        found_all = list(differences(expected, found, what))
        if found_all:
            more = f" and {len(found_all) - 3} more" if len(found_all) > 3 else ""
            self.add(WRONG, file, f"{'; '.join(found_all[:3])}{more}; {advice}")
        return not found_all

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

    def there(self, path: Path, what: str, advice: str = AGAIN) -> bool:
        """Whether a file of the study is there; adds a finding if not.

        Args:
            path: the file; from now on it belongs to the study.
            what: what it holds, in words.
            advice: what to do if it were damaged, 'delete ... and ...'; the latter is what to do if it is not there.
        """
        self.expected.add(path)
        if path.is_file():
            return True
        if os.path.lexists(path):
            there = "a folder" if path.is_dir() else "a link that leads nowhere" if path.is_symlink() else "no file"
            self.add(MISSING, path, f"expected {what}, found {there} of that name; {advice}")
        else:
            self.add(MISSING, path, f"expected {what}, found no such file; {advice.rpartition(' and ')[2]}")
        return False

    def sha256(self, path: Path) -> str | None:
        """Hex sha256 of a file's content; None if there is no such file."""
        if path not in self._hashes:
            self._hashes[path] = None
            if path.is_file():
                self._hashes[path] = file_sha256(path)
                self.count(path)
        return self._hashes[path]

    def stated(self, file: Path, outputs: Any, by: Path, advice: str) -> bool:
        """Compare a file's content with the hash that a record beside it states; older records state none, and pass.

        Args:
            file: the one that is hashed.
            outputs: the record's hashes, by the file's name.
            by: the record.
            advice: what to do about a difference.
        """
        found = self.sha256(file)
        if not isinstance(outputs, Mapping) or file.name not in outputs:
            return True
        return self.same(file, f"sha256, by {by.name}", outputs[file.name], found, advice)

    def json(self, path: Path, what: str, advice: str = AGAIN) -> dict[str, Any] | None:
        """A JSON object; None, and a finding the first time, if it is missing or not as it was written.

        Args:
            path: the file.
            what: what it holds, in words.
            advice: what to do if it was changed.
        """
        if path not in self._values:
            self._values[path] = None
            if self.there(path, what, advice):
                with self.about(path):
                    self.sha256(path)
                    value = read_json(path, what)
                    if not isinstance(value, dict):
                        raise InputError(f"expected {what}, found a JSON {type(value).__name__}; {advice}")
                    if broken_seal(value):
                        raise InputError(f"changed since it was written: its own sha256 does not fit it; {advice}")
                    if path.read_bytes() != json_text(value).encode():
                        raise InputError(f"changed since it was written: other or further characters; {advice}")
                    (self.sealed if "sha256" in value else self.unsealed).append(path)
                    self._values[path] = value
        return self._values[path]

    def discard(self, path: Path) -> None:
        """Go on as if a JSON file could not be read: it is of something else, and others must not be blamed for it."""
        self._values[path] = None

    @property
    def older(self) -> bool:
        """Whether all that was read so far is from before records held a hash of themselves; manifests always did."""
        return all(path.name == Path(layout.MANIFEST).name for path in self.sealed)

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

    def same_split(
        self, file: Path, split: tuple[str, str], hashes: Any, key: str, advice: str, part: str = "train"
    ) -> None:
        """Compare the hash that a file states for one of a split's lists with the split's record.

        Args:
            file: the one that states the hash.
            split: its part and subset.
            hashes, key, advice: as for `same_pack`.
            part: the list, train or test.
        """
        if (record := self.split_record(*split)) is not None:
            self.same(file, f"split {'/'.join(split)}", record["parts"][part]["sha256"], hashes[key], advice)

    def same_parent(self, file: Path, training: Training, hashes: Any, key: str, advice: str) -> None:
        """Compare the hash that a file states for the weights a training started from with the record of those weights.

        Args:
            file: the one that states the hash.
            training: the training; one from weights that are drawn has no parent weights, and no hash.
            hashes, key, advice: as for `same_pack`.
        """
        self.same_weights(file, training.origin(self.root, "record"), "parent weights", hashes, key, advice)

    def same_weights(self, file: Path, record: Path | None, what: str, hashes: Any, key: str, advice: str) -> None:
        """Compare the hash that a file states for weights with their record, not with the weights.

        Args:
            file: the one that states the hash.
            record: of the weights; None if they are drawn.
            what: which weights they are to the file, in words.
            hashes, key, advice: as for `same_pack`.
        """
        if record is None:
            self.same(file, what, None, hashes[key], advice)
        elif (about := self.json(record, "a weights record")) is not None:
            name = record.parent.relative_to(self.root)
            self.same(file, f"{what}, of {name}", about.get("weights_sha256"), hashes[key], advice)
