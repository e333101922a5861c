"""The stage that gathers the metrics of a study's cells into tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from viny.evidence.tables import write_tables
from viny.study.grid import cells
from viny.study.layout import metrics_file


def gather(spec: Mapping[str, Any], *, root: Path, out: Path) -> None:
    """Gather every cell's metrics into tables.

    Args:
        spec: see `viny.study.specs.tables_spec`.
        root: the study's folder.
        out: folder for the tables.

    Raises:
        InputError: as for `write_tables`.
    """
    write_tables([metrics_file(root, cell) for cell in cells(spec)], out)
