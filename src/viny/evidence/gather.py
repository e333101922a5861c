"""What the evidence is made from: gathered from a study's folder, for the modules that know no folders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from viny.cells import Cell, cells, encoder_folder, encoders, finetune_folder, geometry_file, metrics_file
from viny.errors import InputError
from viny.evidence import effect_figures, figures, geometry_figures, representations, returns, scorecard
from viny.evidence.tables import paired_differences, read_metrics
from viny.files import read_json
from viny.settings import ModelSettings
from viny.work import TRAINING, forward_operations


def chain_costs(root: Path, every: Iterable[Cell], model: ModelSettings) -> dict[str, dict[str, Any]]:
    """What the chain of trainings behind each cell cost: pre-training, intermediate task and fine-tuning in sum.

    An encoder that several cells share counts whole for each: it is what one would pay for that cell alone.

    Args:
        root: the study's folder.
        every: the cells.
        model: of the study.

    Returns:
        By the cell's name: seconds of training, operations (multiplications and additions), device, and passes,
        the images that went forward and backward.

    Raises:
        InputError: a training has not said what it cost.
    """
    operations = TRAINING * forward_operations(model)
    costs = {}
    for cell in every:
        size, task, seed = cell.pretrain_size, cell.intermediate, cell.seed
        pretrained = encoder_folder(root, "none", size, seed)
        adapted = encoder_folder(root, task, size, seed) if task != "none" else None
        folders = [folder for folder in (pretrained, adapted, finetune_folder(root, cell)) if folder is not None]
        runs = [_run(folder / "run.json") for folder in folders]
        passes = sum(run["image_passes"] for run in runs)
        costs[cell.name] = {
            "seconds": sum(run["training_seconds"] for run in runs),
            "operations": passes * operations,
            "passes": passes,
            "device": " and ".join(sorted({run["device_name"] for run in runs})),
        }
    return costs


def _run(path: Path) -> Mapping[str, Any]:
    value = read_json(path, "the provenance of a training")
    wanted = {"image_passes": int, "training_seconds": (int, float), "device_name": str}
    for key, kind in wanted.items():
        if not isinstance(value.get(key), kind):
            raise InputError(f"{path}: '{key}' is missing or holds {value.get(key)!r}; run its training again")
    return value


def write_statistics(spec: Mapping[str, Any], root: Path, out: Path) -> None:
    """Effects with their uncertainty, returns and costs of a study, as tables and figures.

    Args:
        spec: see `viny.cells.statistics_spec`.
        root: the study's folder.
        out: folder below which tables/ and figures/ stand.
    """
    every = cells(spec)
    costs = chain_costs(root, every, ModelSettings(**spec["model"]))
    paths = [metrics_file(root, cell) for cell in every]
    returns.write_statistics(paths, root / "metrics", costs, out / "tables")
    frame, note = read_metrics(paths), spec["note"]
    drawn = {
        "effects": effect_figures.effects(frame, note),
        "returns": effect_figures.returns(frame, note),
        "transfer": effect_figures.transfer(frame, note),
        "costs": effect_figures.cost(returns.costs(frame, costs), note),
    }
    for name, figure in drawn.items():
        figures.save(figure, out / "figures" / name)


def write_representations(spec: Mapping[str, Any], root: Path, out: Path) -> None:
    """The geometry of a study's encoders, as tables and figures.

    Args:
        spec: see `viny.cells.representations_spec`.
        root: the study's folder.
        out: folder below which tables/ and figures/ stand.
    """
    metrics = [metrics_file(root, cell) for cell in cells(spec)]
    every = encoders(spec)
    paths = [geometry_file(root, encoder) for encoder in every]
    representations.write_geometry(paths, metrics, out / "tables")
    frame, note = representations.read_geometry(paths), spec["note"]
    arrays = geometry_figures.read_arrays([path.with_suffix(".npz") for path in paths])
    harm = representations.harm(frame, paired_differences(read_metrics(metrics)))
    drawn = {
        "layers": geometry_figures.layers(frame, note),
        "similarity": geometry_figures.similarity(arrays, note),
        "heat_maps": geometry_figures.heat_maps(arrays, note),
        "harm": geometry_figures.harm(harm, note),
    }
    for name, figure in drawn.items():
        figures.save(figure, out / "figures" / f"geometry_{name}")


def write_scorecard(spec: Mapping[str, Any], root: Path, out: Path) -> None:
    """A study, and one under the other protocol where it is named, against the paper.

    Args:
        spec: see `viny.cells.scorecard_spec`.
        root: the study's folder; the other study's stands beside it.
        out: folder below which tables/ stand.

    Raises:
        InputError: the other study has no results, or the same protocol.
    """
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
    frames = {protocol: representations.read_geometry(paths) for protocol, paths in measured.items() if paths}
    comparable = "; ".join(spec["differences"]) or True
    scorecard.write_scorecard(metrics, frames, out / "tables", comparable, spec["spatial_tasks"])
