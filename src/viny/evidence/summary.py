"""The record that each job which summarises a study leaves: what it was asked, what it read and what it wrote."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from viny.runtime.files import digest, file_sha256, write_sealed
from viny.runtime.provenance import Provenance


class Summary:
    """The record of one job, from its start to `write`.

    Args:
        stage: the rule.
        spec: the stage's settings, as the rule gives them.
        root: the study's folder.
    """

    def __init__(self, stage: str, spec: Mapping[str, Any], root: Path) -> None:
        self._stage, self._spec, self._root = stage, dict(spec), root
        self._provenance = Provenance()
        self._inputs: dict[str, str] = {}

    def reads(self, *paths: Path) -> None:
        """Note the files that the job is about to read; whoever reads one that is missing says so."""
        self._inputs |= self._hashes(path for path in paths if path.is_file())

    def write(self, record: Path, outputs: Iterable[Path], threads: int = 1) -> None:
        """Write the record.

        Args:
            record: JSON file to write.
            outputs: the files that the job wrote.
            threads: CPU threads.
        """
        provenance = self._provenance.finish(
            threads=threads, fingerprint=self._spec.get("code"), hashes={"spec": digest(self._spec)}
        )
        value = {"stage": self._stage, "spec": self._spec, "provenance": provenance}
        write_sealed(record, value | {"inputs": self._inputs, "outputs": self._hashes(outputs)})

    def _hashes(self, paths: Iterable[Path]) -> dict[str, str]:
        """sha256 by path below the study's folder."""
        return {Path(os.path.relpath(path, self._root)).as_posix(): file_sha256(path) for path in paths}
