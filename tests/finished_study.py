"""A whole tiny study, made by the command lines that the workflow's rules give."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from viny.cli import main
from viny.runtime.fingerprint import code_fingerprint
from viny.study import grid, layout, specs
from viny.study.config import merge, resolve
from viny.study.inventory import count_images, read_files, with_listings
from viny.study.reading import read_config
from viny.study.saved import write_study

TINY = Path(__file__).with_name("tiny.yaml")


def own_images(folder: Path) -> dict[str, Any]:
    """Make 30 images below a folder; returns the settings that pre-train on them."""
    images, noise = folder / "images", np.random.default_rng(0)
    images.mkdir(parents=True)
    for i in range(30):
        Image.fromarray(noise.integers(0, 256, (32, 32, 3), np.uint8)).save(images / f"{i:02d}.png")
    return {"pretrain": {"source": "folder", "path": str(images)}}


def run(command: str, spec: dict[str, Any], **files: Path | None) -> None:
    """One job, as the workflow's rule gives it."""
    arguments = [piece for name, path in files.items() if path is not None for piece in (f"--{name}", str(path))]
    code = code_fingerprint(command)
    assert main([command, "--spec", json.dumps({**spec, "code": code}), *arguments]) == 0


def finished_study(folder: Path, settings: Mapping[str, Any]) -> Path:
    """A study with every file where the workflow puts it but logs and benchmarks.

    Args:
        folder: the working folder; packs go below it.
        settings: those that differ from tests/tiny.yaml.

    Returns:
        The study's folder.
    """
    config = resolve(merge(read_config(TINY), settings))
    root = folder / "results" / "tiny"
    config = with_listings(config, root, read_files(config, count_images(config, root)))
    write_study(root, config)
    for name in ("pretrain", "segmentation", *config["intermediate"]):
        manifest = root / "packs" / name / "manifest.json"
        run("pack", specs.pack_spec(config, name), store=folder / "packs", manifest=manifest)
    jobs = layout.trainings(grid.cells(config))
    inputs = {}
    for job in jobs:
        part, subset = job.split
        record = root / "splits" / part / f"{subset}.json"
        files = {"manifest": root / "packs" / job.pack / "manifest.json"}
        run("split", specs.split_spec(config, part, subset), **files, record=record, indices=record.with_suffix(".npz"))
        inputs[job] = files | {"split": record, "indices": record.with_suffix(".npz")}
        parent = job.parent.file(root, "record") if job.parent else None
        outputs = {what: job.file(root, what) for what in layout.TRAINED[job.stage]}
        run(job.stage, specs.training_spec(config, job), **inputs[job], parent=parent, **outputs)
    for cell in grid.cells(config):
        tuned, metrics = layout.chain(cell)[-1], layout.metrics_file(root, cell)
        outputs = {"model": tuned.file(root, "record"), "metrics": metrics, "confusion": metrics.with_suffix(".npz")}
        run("evaluate", specs.evaluate_spec(config, cell), **inputs[tuned], **outputs)
    for encoder in grid.encoders(config):
        metrics = layout.geometry_file(root, encoder)
        own, reference = layout.training_of(encoder), layout.reference_of(encoder)
        run(
            "geometry",
            specs.geometry_spec(config, encoder),
            **inputs[layout.chain(grid.cells(config)[0])[-1]],
            encoder=own.file(root, "record") if own else None,
            reference=reference.file(root, "record") if reference else None,
            metrics=metrics,
            arrays=metrics.with_suffix(".npz"),
        )
    for stage in layout.SUMMARIES:
        record = root / layout.SUMMARY.format(stage=stage)
        out = root / layout.REPORT if stage == "report" else root
        run(stage, specs.summary_spec(config, stage), root=root, out=out, record=record)
    return root
