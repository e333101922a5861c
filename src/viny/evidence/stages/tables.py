"""The stage that gathers the metrics of a study's cells into tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from viny.evidence.summary import Summary
from viny.evidence.tables import write_tables
from viny.evidence.training_settings import write_training_settings
from viny.study.grid import base_cells, cells, has_arms
from viny.study.layout import metrics_file, summarised


def gather(spec: Mapping[str, Any], *, root: Path, out: Path, record: Path) -> None:
    """Gather every cell's metrics into tables.

    Args:
        spec: see `viny.study.specs.tables_spec`.
        root: the study's folder.
        out: folder that holds tables/.
        record: JSON file to write, what was read and written.

    Raises:
        InputError: as for `write_tables`.
    """
    summary, metrics = Summary("tables", spec, root), [metrics_file(root, cell) for cell in cells(spec)]
    summary.reads(*metrics)
    base = [metrics_file(root, cell) for cell in base_cells(spec)] if has_arms(spec) else None
    write_tables(metrics, out / "tables", base)
    write_training_settings(spec, out / "tables")
    summary.write(record, [out / made for made in summarised("tables", spec)])
