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
from viny.runtime.files import read_json
from viny.study.grid import base_cells, encoders
from viny.study.layout import SUMMARY, geometry_file, metrics_file, summarised


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
    own = spec["protocol"]
    metrics = {own: [metrics_file(root, cell) for cell in base_cells(spec)]}
    measured = {own: [geometry_file(root, encoder) for encoder in encoders(spec, base_cells(spec))]}
    differences, epochs = {own: spec["differences"]}, {own: spec["epochs"]}
    if name := spec["other_study"]:
        other = root.parent / name
        found, theirs = sorted((other / "metrics").glob("*.json")), sorted((other / "geometry").glob("*.json"))
        found, theirs = _of_first_arm(other / SUMMARY.format(stage="scorecard"), found, theirs)
        if not found:
            raise InputError(f"scorecard.other_study: {other} holds no metrics; run that study first, or leave it out")
        protocol = read_metrics(found[:1])["protocol"].iloc[0]
        if protocol == own:
            raise InputError(
                f"scorecard.other_study: {name} is under protocol {protocol} too; name a study under the other one"
            )
        metrics[protocol], measured[protocol] = found, theirs
        differences[protocol], epochs[protocol] = _said_by(other / SUMMARY.format(stage="scorecard"))
    for paths in metrics.values():
        summary.reads(*paths, *(path.with_suffix(".npz") for path in paths))
    summary.reads(*(path for paths in measured.values() for path in paths))
    frames = {protocol: representations.read_geometry(paths) for protocol, paths in measured.items() if paths}
    both = {protocol: (said["pretrain"], said["finetune"]) for protocol, said in epochs.items()}
    scorecard.write_scorecard(metrics, frames, out / "tables", differences, spec["spatial_tasks"], both)
    summary.write(record, [out / made for made in summarised("scorecard", spec)])


def _of_first_arm(record: Path, metrics: list[Path], geometry: list[Path]) -> tuple[list[Path], list[Path]]:
    """Of another study's results those of its first arm, by the record of its own scorecard."""
    try:
        spec = read_json(record, "a record")["spec"]
        base = base_cells(spec)
        cells, measured = {cell.name for cell in base}, {encoder.name for encoder in encoders(spec, base)}
    except (InputError, LookupError, TypeError, ValueError, AttributeError):  # none, or one of an older version
        return metrics, geometry
    return [path for path in metrics if path.stem in cells], [path for path in geometry if path.stem in measured]


def _said_by(record: Path) -> tuple[Mapping[str, list[str]], Mapping[str, int]]:
    """What sets another study apart from the paper's, and its epochs, by the record of its own scorecard."""
    try:
        spec = read_json(record, "a record")["spec"]
        differences = {table: [str(phrase) for phrase in spec["differences"][table]] for table in scorecard.COMPARED}
        return differences, {stage: int(spec["epochs"][stage]) for stage in ("pretrain", "finetune")}
    except (InputError, LookupError, TypeError, ValueError):  # none, or one of an older version
        unknown = [f"{record}: does not say what sets its study apart; run that study's scorecard again"]
        return dict.fromkeys(scorecard.COMPARED, unknown), {"pretrain": 1, "finetune": 1}
