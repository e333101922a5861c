"""The stage that works out a study's effects, returns and costs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from viny.evidence.figures import effects, kit
from viny.evidence.statistics import costs, pages
from viny.evidence.statistics.costs import chain_costs
from viny.evidence.statistics.crossed import read_runs
from viny.evidence.statistics.fits import fits
from viny.evidence.statistics.gains import marginal_gains
from viny.evidence.statistics.transfer import transfer
from viny.evidence.summary import Summary
from viny.evidence.tables import read_metrics
from viny.learning.settings import ModelSettings
from viny.study.grid import cells
from viny.study.layout import metrics_file, summarised, trainings


def write_statistics(spec: Mapping[str, Any], *, root: Path, out: Path, record: Path) -> None:
    """Work out effects and their uncertainty, returns and costs, as tables and figures.

    Args:
        spec: see `viny.study.specs.statistics_spec`.
        root: the study's folder.
        out: folder that holds tables/ and figures/.
        record: JSON file to write, what was read and written.
    """
    summary, every = Summary("statistics", spec, root), cells(spec)
    paths = [metrics_file(root, cell) for cell in every]
    summary.reads(*paths, *(path.with_suffix(".npz") for path in paths))
    summary.reads(*(training.file(root, "run") for training in trainings(every)))
    spent = chain_costs(root, every, ModelSettings(**spec["model"]))
    pages.write_statistics(paths, root / "metrics", spent, out / "tables")
    frame, note = read_metrics(paths), spec["note"]
    runs = read_runs(frame, root / "metrics")
    drawn = {
        "effects": effects.effects(runs, note),
        "returns": effects.returns(runs, fits(frame), marginal_gains(frame), note),
        "transfer": effects.transfer(transfer(frame), runs, note),
        "costs": effects.cost(costs.costs(frame, spent), runs, note),
    }
    for name, figure in drawn.items():
        kit.save(figure, out / "figures" / name)
    summary.write(record, [out / made for made in summarised("statistics", spec)])
