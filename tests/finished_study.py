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
from viny.study.arms import settings_of
from viny.study.config import merge, resolve
from viny.study.inventory import count_images, pack_names, read_files, with_listings
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


def run(command: str, spec: dict[str, Any], **files: Path | list[Path] | None) -> None:
    """One job, as the workflow's rule gives it."""
    given = {name: paths if isinstance(paths, list) else [paths] for name, paths in files.items() if paths}
    arguments = [piece for name, paths in given.items() for piece in (f"--{name}", *map(str, paths))]
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
    all_cells = grid.cells(config)
    groups = grid.by_group(all_cells)
    for name in pack_names(config):
        manifest = root / "packs" / name / "manifest.json"
        run("pack", specs.pack_spec(config, name), store=folder / "packs", manifest=manifest)
    for start in layout.published(all_cells):
        files = {what: layout.start_file(root, start, what) for what in layout.START}
        run("start", specs.start_spec(config, start), **files)
    # Encoders first; then the rates of every cell, of which a model needs those of all seeds.
    jobs = sorted(layout.trainings(all_cells), key=lambda job: job.stage == "finetune")
    inputs, tunings = {}, {}
    for job in jobs:
        part, subset = job.split
        record = root / "splits" / part / f"{subset}.json"
        files = {"manifest": root / "packs" / job.pack / "manifest.json"}
        run("split", specs.split_spec(config, part, subset), **files, record=record, indices=record.with_suffix(".npz"))
        inputs[job] = files | {"split": record, "indices": record.with_suffix(".npz")}
    for job in jobs:
        parent = job.origin(root, "record")
        if job.stage == "finetune" and specs.is_tuned(settings_of(config, job.arm)):
            for cell in groups[job.key.group]:
                made = layout.chain(cell)[-1]
                tunings[cell] = root / layout.TUNING.format(cell=cell.name)
                if not tunings[cell].exists():
                    files = {**inputs[made], "parent": made.origin(root, "record"), "record": tunings[cell]}
                    run("tune", specs.tune_spec(config, cell), **files)
        tuned = [tunings[cell] for cell in groups[job.key.group]] if job.key in tunings else []
        outputs = {what: job.file(root, what) for what in layout.TRAINED[job.stage]}
        run(job.stage, specs.training_spec(config, job), **inputs[job], parent=parent, tuned=tuned, **outputs)
    for cell in all_cells:
        tuned, metrics = layout.chain(cell)[-1], layout.metrics_file(root, cell)
        outputs = {"model": tuned.file(root, "record"), "metrics": metrics, "confusion": metrics.with_suffix(".npz")}
        outputs["scores"] = root / layout.SCORES.format(cell=cell.name)
        run("evaluate", specs.evaluate_spec(config, cell), **inputs[tuned], **outputs)
    for encoder in grid.encoders(config):
        metrics = layout.geometry_file(root, encoder)
        own, reference = (
            layout.made_of(encoder, of(encoder), root, "record") for of in (layout.training_of, layout.reference_of)
        )
        run(
            "geometry",
            specs.geometry_spec(config, encoder),
            **inputs[layout.chain(grid.cells(config)[0])[-1]],
            encoder=own,
            reference=reference,
            metrics=metrics,
            arrays=metrics.with_suffix(".npz"),
        )
    for stage in layout.SUMMARIES:
        record = root / layout.SUMMARY.format(stage=stage)
        out = root / layout.REPORT if stage == "report" else root
        run(stage, specs.summary_spec(config, stage), root=root, out=out, record=record)
    return root
