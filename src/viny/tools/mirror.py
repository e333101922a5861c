"""A study's learning curves and metrics, copied to a tool that other trainings are looked at with.

The study's own files stay what counts: each call writes what they hold now in place of what an earlier call wrote.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from viny.evidence.statistics.held_out import read_curves
from viny.runtime.errors import InputError
from viny.runtime.files import digest, read_json
from viny.study.grid import Cell, Reference, cells, references
from viny.study.layout import Training, metrics_file, reference_file, trainings
from viny.study.saved import saved_study

Setting = int | float | str
BATCH = 1000  # metrics that MLflow takes at once


@dataclass(frozen=True)
class Mirrored:
    """A finished training as such tools have it: a run.

    Attributes:
        name: stage and folder, such as 'pretrain/size-4000_seed-0'.
        stage: pretrain, intermediate, finetune or reference.
        settings: its cell and how it was trained, by name.
        curve: a row an epoch: 'epoch', 'loss', 'lr' and so on; 'seconds' since it began.
        started: seconds since 1970 UTC.
        metrics: of the evaluated cell or U-Net, fractions; empty for other trainings, and for cells not yet evaluated.
    """

    name: str
    stage: str
    settings: dict[str, Setting]
    curve: pd.DataFrame
    started: float
    metrics: dict[str, float]

    def points(self) -> Iterator[tuple[int, float, dict[str, float]]]:
        """Each epoch, the time of its end in seconds since 1970 UTC, and what was measured by then."""
        for row in self.curve.to_dict("records"):
            measured = {str(k): float(v) for k, v in row.items() if k not in ("epoch", "seconds") and pd.notna(v)}
            yield int(row["epoch"]), self.started + row["seconds"], measured

    @property
    def last(self) -> tuple[int, float]:
        """Number of the last epoch, and the time of its end."""
        return int(self.curve["epoch"].iloc[-1]), self.started + float(self.curve["seconds"].iloc[-1])


def mirror(root: Path, to: str, out: Path) -> list[Mirrored]:
    """Write every finished training of a study for another tool.

    Args:
        root: the study's folder.
        to: one of `TOOLS`.
        out: folder that the tool will look at; runs of the same names in it are replaced, others stay.

    Returns:
        The trainings.

    Raises:
        InputError: the tool is not installed, nothing is finished yet, or a file of the study is damaged.
    """
    write, package = TOOLS[to]
    if importlib.util.find_spec(package) is None:
        raise InputError(f'mirroring to {to} needs the package {package}; install it with: pip install "viny[{to}]"')
    config = saved_study(root)
    found = [_mirrored(root, training) for training in trainings(cells(config)) if _is_finished(root, training)]
    found += [
        _mirrored_reference(root, one) for one in references(config) if reference_file(root, one, "record").is_file()
    ]
    if not found:
        raise InputError(f"{root}: no training has finished yet, so there is nothing to mirror; run the study first")
    # Neither says anywhere that it was used, unless a person has set these otherwise.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    out.mkdir(parents=True, exist_ok=True)
    write(found, config["study"], out)
    return found


def _is_finished(root: Path, training: Training) -> bool:
    return all(training.file(root, what).is_file() for what in ("record", "run", "curve"))


def _mirrored(root: Path, training: Training) -> Mirrored:
    record = read_json(training.file(root, "record"), "a weights record")
    run = read_json(training.file(root, "run"), "the provenance of a training")
    metrics = _metrics(root, training.key, record) if isinstance(training.key, Cell) else {}
    name = f"{training.stage}/{training.name}"
    return _of_record(name, training.cell, record, run, training.file(root, "curve"), metrics)


def _mirrored_reference(root: Path, reference: Reference) -> Mirrored:
    record = read_json(reference_file(root, reference, "record"), "a reference")
    curve, name = reference_file(root, reference, "curve"), f"reference/{reference.name}"
    return _of_record(name, reference.as_dict(), record, record["provenance"], curve, _tested(record))


def _of_record(
    name: str,
    cell: Mapping[str, Any],
    record: Mapping[str, Any],
    run: Mapping[str, Any],
    path: Path,
    metrics: dict[str, float],
) -> Mirrored:
    curve = read_curves({(0, 0): path})[0, 0]
    if missing := {"epoch", "loss", "seconds"} - set(curve.columns):
        raise InputError(f"{path}: no column '{min(missing)}', so no learning curve; run its training again")
    if curve.empty:
        raise InputError(f"{path}: no epochs, so no learning curve; run its training again")
    settings = {key: value for key, value in cell.items() if key != "name"}
    settings |= record["spec"]["train"] | {"images": record["images"], "precision": record["precision"]}
    settings |= {"lr": record["tuned"]["lr"]} if "tuned" in record else {}
    simple = {key: value if isinstance(value, int | float) else str(value) for key, value in settings.items()}
    started = datetime.fromisoformat(run["started"]).timestamp()
    return Mirrored(name, name.partition("/")[0], simple, curve, started, metrics)


def _metrics(root: Path, cell: Cell, record: Mapping[str, Any]) -> dict[str, float]:
    """Metrics of a cell, if they are of these weights."""
    path = metrics_file(root, cell)
    if not path.is_file():
        return {}
    found = read_json(path, "the metrics of an evaluated cell")
    if found.get("hashes", {}).get("weights") != record["weights_sha256"]:
        return {}
    return _tested(found)


def _tested(found: Mapping[str, Any]) -> dict[str, float]:
    return {f"test/{name}": value for name, value in found["metrics"].items() if value is not None}


def to_tensorboard(runs: list[Mirrored], study: str, out: Path) -> None:
    """A folder a training below `out`; settings and metrics are also in the tab for hyperparameters."""
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    for run in runs:
        folder = out / run.name
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        with SummaryWriter(str(folder)) as writer:
            for part in hparams(run.settings, run.metrics):
                writer.file_writer.add_summary(part, walltime=run.started)
            for epoch, time, measured in run.points():
                for name, value in measured.items():
                    writer.add_scalar(name, value, epoch, walltime=time)
            epoch, time = run.last
            for name, value in run.metrics.items():
                writer.add_scalar(name, value, epoch, walltime=time)


def to_wandb(runs: list[Mirrored], study: str, out: Path) -> None:
    """An offline run a training below `out`/wandb, which `wandb sync` uploads; nothing is sent from here."""
    import wandb

    quiet = wandb.Settings(
        silent=True, console="off", disable_git=True, x_disable_stats=True, x_disable_meta=True, save_code=False
    )
    for run in runs:
        key = digest([study, run.name])[:16]
        for old in out.glob(f"wandb/offline-run-*-{key}"):
            shutil.rmtree(old)
        with wandb.init(
            mode="offline",
            dir=str(out),
            project=study,
            id=key,
            name=run.name,
            group=run.stage,
            config=run.settings,
            settings=quiet,
        ) as written:
            for epoch, time, measured in run.points():
                written.log({**measured, "seconds": time - run.started}, step=epoch)
            written.summary.update(run.metrics)


def to_mlflow(runs: list[Mirrored], study: str, out: Path) -> None:
    """An experiment with a run a training, in the SQLite database `out`/mlflow.db.

    A training that has not changed since keeps its run; the old run of one that has is deleted.
    """
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, ViewType

    client = MlflowClient(tracking_uri=f"sqlite:///{(out / 'mlflow.db').absolute()}")
    experiment = client.get_experiment_by_name(study)
    number = client.create_experiment(study) if experiment is None else experiment.experiment_id
    found = client.search_runs([number], run_view_type=ViewType.ACTIVE_ONLY, max_results=50_000)
    known = {one.info.run_name: one for one in found}
    for run in runs:
        content = digest([run.settings, run.curve.to_csv(index=False), run.metrics, run.started])
        old = known.get(run.name)
        if old is not None and old.data.tags.get("viny.content") == content:
            continue
        if old is not None:
            client.delete_run(old.info.run_id)
        tags = {"viny.stage": run.stage, "viny.content": content}
        made = client.create_run(number, int(run.started * 1000), run_name=run.name, tags=tags).info.run_id
        points = [
            Metric(name, value, int(time * 1000), epoch)
            for epoch, time, measured in run.points()
            for name, value in measured.items()
        ]
        epoch, time = run.last
        # MLflow takes no other signs in a name, and a class may have any.
        plain = {re.sub(r"[^\w.\- ]", "_", name.removeprefix("test/")): value for name, value in run.metrics.items()}
        points += [Metric(f"test/{name}", value, int(time * 1000), epoch) for name, value in plain.items()]
        client.log_batch(made, params=[Param(key, str(value)) for key, value in run.settings.items()])
        for at in range(0, len(points), BATCH):
            client.log_batch(made, metrics=points[at : at + BATCH])
        client.set_terminated(made, end_time=int(time * 1000))


# By the names that a person gives them: what writes them, and the package that it needs.
TOOLS: dict[str, tuple[Callable[[list[Mirrored], str, Path], None], str]] = {
    "tensorboard": (to_tensorboard, "tensorboard"),
    "wandb": (to_wandb, "wandb"),
    "mlflow": (to_mlflow, "mlflow"),
}
# How to look at what was written; {out} is its folder.
SHOWN = {
    "tensorboard": "tensorboard --logdir {out}",
    "wandb": "wandb sync {out}/wandb/offline-run-*",
    "mlflow": "mlflow ui --backend-store-uri sqlite:///{out}/mlflow.db",
}
