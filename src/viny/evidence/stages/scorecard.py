"""The stage that compares a study with the paper."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from viny.evidence.paper import scorecard
from viny.evidence.statistics import representations
from viny.evidence.summary import Summary
from viny.evidence.tables import read_metrics
from viny.runtime.errors import InputError
from viny.study.grid import cells, encoders
from viny.study.layout import geometry_file, metrics_file, summarised


def write_scorecard(spec: Mapping[str, Any], *, root: Path, out: Path, record: Path) -> None:
    """Compare a study with the paper, together with one under the other protocol if named.

    Args:
        spec: see `viny.study.specs.scorecard_spec`.
        root: the study's folder; the other study's is next to it.
        out: folder that holds tables/.
        record: JSON file to write, what was read and written.

    Raises:
        InputError: the other study has no results, or has the same protocol.
    """
    summary = Summary("scorecard", spec, root)
    metrics = {spec["protocol"]: [metrics_file(root, cell) for cell in cells(spec)]}
    measured = {spec["protocol"]: [geometry_file(root, encoder) for encoder in encoders(spec)]}
    if name := spec["other_study"]:
        other = root.parent / name
        found = sorted((other / "metrics").glob("*.json"))
        if not found:
            raise InputError(f"scorecard.other_study: {other} holds no metrics; run that study first, or leave it out")
        protocol = read_metrics(found[:1])["protocol"].iloc[0]
        if protocol == spec["protocol"]:
            raise InputError(
                f"scorecard.other_study: {name} is under protocol {protocol} too; name a study under the other one"
            )
        metrics[protocol], measured[protocol] = found, sorted((other / "geometry").glob("*.json"))
    for paths in (*metrics.values(), *measured.values()):
        summary.reads(*paths)
    frames = {protocol: representations.read_geometry(paths) for protocol, paths in measured.items() if paths}
    comparable = "; ".join(spec["differences"]) or True
    scorecard.write_scorecard(metrics, frames, out / "tables", comparable, spec["spatial_tasks"])
    summary.write(record, [out / made for made in summarised("scorecard", spec)])
