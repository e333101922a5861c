"""The stage that gathers the geometry of a study's encoders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from viny.evidence.figures import geometry, kit
from viny.evidence.statistics import representations
from viny.evidence.statistics.crossed import read_runs
from viny.evidence.summary import Summary
from viny.evidence.tables import paired_differences, read_metrics
from viny.study.grid import base_cells, encoders
from viny.study.layout import geometry_file, metrics_file, summarised


def write_representations(spec: Mapping[str, Any], *, root: Path, out: Path, record: Path) -> None:
    """Gather the geometry of the encoders into tables and figures.

    Args:
        spec: see `viny.study.specs.representations_spec`.
        root: the study's folder.
        out: folder that holds tables/ and figures/.
        record: JSON file to write, what was read and written.
    """
    metrics = [metrics_file(root, cell) for cell in base_cells(spec)]
    paths = [geometry_file(root, encoder) for encoder in encoders(spec, base_cells(spec))]
    summary = Summary("representations", spec, root)
    summary.reads(*metrics, *paths, *(path.with_suffix(".npz") for path in [*metrics, *paths]))
    representations.write_geometry(paths, metrics, out / "tables")
    frame, note = representations.read_geometry(paths), spec["note"]
    arrays = geometry.read_arrays([path.with_suffix(".npz") for path in paths])
    cells_frame = read_metrics(metrics)
    harm = representations.harm(frame, paired_differences(cells_frame))
    drawn = {
        "layers": geometry.layers(frame, note),
        "similarity": geometry.similarity(arrays, note),
        "heat_maps": geometry.heat_maps(arrays, note),
        "harm": geometry.harm(harm, note, read_runs(cells_frame, root / "metrics")),
    }
    for name, figure in drawn.items():
        kit.save(figure, out / "figures" / f"geometry_{name}")
    summary.write(record, [out / made for made in summarised("representations", spec)])
