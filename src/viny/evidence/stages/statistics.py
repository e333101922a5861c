"""The stage that works out a study's effects, returns and costs."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from viny.evidence.figures import arms, effects, kit
from viny.evidence.statistics import pages
from viny.evidence.statistics.arm_pages import write_arms, write_held_out
from viny.evidence.statistics.arms import KEY, Arms
from viny.evidence.statistics.costs import arm_costs, chain_costs
from viny.evidence.statistics.crossed import Score, crossed, read_scores
from viny.evidence.statistics.held_out import read_curves
from viny.evidence.statistics.references import cell_in_words, reference_scores, write_references
from viny.evidence.summary import Summary
from viny.evidence.tables import read_metrics, with_arms
from viny.learning.settings import ModelSettings
from viny.study.grid import base_cells, cells, has_arms, references
from viny.study.layout import (
    TUNING,
    Training,
    chain,
    held_out_curves,
    metrics_file,
    reference_file,
    summarised,
    trainings,
)


def write_statistics(spec: Mapping[str, Any], *, root: Path, out: Path, record: Path) -> None:
    """Work out effects and their uncertainty, returns and costs, as tables and figures.

    Args:
        spec: see `viny.study.specs.statistics_spec`.
        root: the study's folder.
        out: folder that holds tables/ and figures/.
        record: JSON file to write, what was read and written.
    """
    summary, base = Summary("statistics", spec, root), base_cells(spec)
    paths = [metrics_file(root, cell) for cell in base]
    summary.reads(*paths, *(path.with_suffix(".npz") for path in paths))
    summary.reads(*(training.file(root, "run") for training in trainings(base)))
    tuned = spec.get("tuned", False)
    if tuned:
        summary.reads(*(root / TUNING.format(cell=cell.name) for cell in base))
    spent = chain_costs(root, base, ModelSettings(**spec["model"]), tuned)
    tables = pages.write_statistics(paths, root / "metrics", spent, out / "tables")
    frame, note = read_metrics(paths), spec["note"]
    scores = read_scores(frame, root / "metrics")
    runs = crossed(scores)
    drawn = {
        "effects": effects.effects(runs, tables["decisions"], note),
        "returns": effects.returns(runs, tables["fits"], tables["marginal_gains"], note),
        "transfer": effects.transfer(tables["transfer"], runs, note),
        "costs": effects.cost(tables["costs"], runs, note),
    }
    compared, called = scores, cell_in_words
    if has_arms(spec) or held_out_curves(spec):
        figures, of_arms = _arms(spec, root, out, summary)
        drawn |= figures
        if has_arms(spec):
            compared, called = of_arms, Arms.of(spec).called
    if others := references(spec):
        summary.reads(*(reference_file(root, one, what) for one in others for what in ("record", "confusion")))
        write_references(frame, compared, *reference_scores(root, others), runs.groups, called, out / "tables")
    for name, figure in drawn.items():
        kit.save(figure, out / "figures" / name)
    summary.write(record, [out / made for made in summarised("statistics", spec)])


def _arms(
    spec: Mapping[str, Any], root: Path, out: Path, summary: Summary
) -> tuple[dict[str, Figure], dict[tuple[int, Hashable], Score]]:
    """Write the tables of all arms, and of the held-out loss of pre-training; returns their figures, and all scores."""
    every, about, drawn = cells(spec), Arms.of(spec), {}
    metrics = [metrics_file(root, cell) for cell in every]
    summary.reads(*metrics, *(path.with_suffix(".npz") for path in metrics))
    frame = with_arms(read_metrics(metrics))
    scores = read_scores(frame, root / "metrics", by=KEY)
    runs = crossed(scores)
    if has_arms(spec):
        tuned = [cell for cell in every if cell.variant in about.tuned]
        summary.reads(*(training.file(root, "run") for training in trainings(every)))
        summary.reads(*(chain(cell)[-1].file(root, "record") for cell in tuned))
        summary.reads(*(root / TUNING.format(cell=cell.name) for cell in tuned))
        table = write_arms(runs, about, frame, arm_costs(root, every, about.tuned), out / "tables")
        drawn["arms"] = arms.arms_figure(table, about, spec["note"])
    if held_out_curves(spec):
        files: dict[tuple[str, str], dict[tuple[int, int], Path]] = {}
        known: set[Training] = set()
        for (training, *_), cell in ((chain(cell), cell) for cell in every):
            if training.stage == "pretrain" and training not in known:  # the first arm of several that share it
                known.add(training)
                curve = training.file(root, "curve")
                files.setdefault((cell.start, cell.variant), {})[cell.pretrain_size, cell.seed] = curve
        summary.reads(*(path for mine in files.values() for path in mine.values()))
        curves = {arm: read_curves(mine) for arm, mine in files.items()}
        gains = write_held_out(runs, about, frame, curves, out / "tables")
        drawn["held_out"] = arms.held_out(curves, gains, about, spec["note"])
    return drawn, scores
