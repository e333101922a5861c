"""The stage that works out a study's effects, returns and costs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from viny.evidence.figures import effects, kit
from viny.evidence.statistics import pages
from viny.evidence.statistics.costs import chain_costs
from viny.evidence.statistics.crossed import read_runs
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
    tables = pages.write_statistics(paths, root / "metrics", spent, out / "tables")
    runs, note = read_runs(read_metrics(paths), root / "metrics"), spec["note"]
    drawn = {
        "effects": effects.effects(runs, tables["decisions"], note),
        "returns": effects.returns(runs, tables["fits"], tables["marginal_gains"], note),
        "transfer": effects.transfer(tables["transfer"], runs, note),
        "costs": effects.cost(tables["costs"], runs, note),
    }
    for name, figure in drawn.items():
        kit.save(figure, out / "figures" / name)
    summary.write(record, [out / made for made in summarised("statistics", spec)])
