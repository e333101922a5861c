"""A study's stages run by hand below a folder, using the library alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from viny.data import splits
from viny.data.pack import open_pack
from viny.data.packing import build_pack
from viny.evidence.evaluate import evaluate
from viny.learning.stages import train
from viny.study import specs
from viny.study.grid import BASE, Arm, Cell

SPLITS = {"pretrain": splits.pretrain_split, "finetune": splits.finetune_split, "task": splits.task_split}


@dataclass
class Study:
    """Runs the stages of a tiny study below a folder, as the workflow's rules would."""

    root: Path
    config: dict[str, Any]
    checkpoint_minutes: float = 5.0

    def pack(self, name: str) -> Path:
        folder = self.root / "packs" / name
        if not folder.exists():
            folder.mkdir(parents=True)
            build_pack(specs.pack_spec(self.config, name), folder, threads=1)
        return folder / "manifest.json"

    def split(self, name: str, spec: dict[str, Any], manifest: Path) -> tuple[Path, Path]:
        pack = open_pack(manifest)
        arguments = {k: v for k, v in spec.items() if k != "kind"}
        record, indices = (self.root / "splits" / f"{name}.{suffix}" for suffix in ("json", "npz"))
        split = SPLITS[spec["kind"]](pack, **arguments)
        splits.write_split(record, indices, split, {"spec": spec, "pack_sha256": pack.sha256})
        return record, indices

    def train(self, spec: dict[str, Any], inputs: tuple[Path, Path, Path], parent: Path | None, leaf: str) -> Path:
        folder = self.root / leaf
        train(
            spec,
            **dict(zip(("manifest", "split", "indices"), inputs, strict=True)),
            parent=parent,
            weights=folder / "model.safetensors",
            record=folder / "model.json",
            curve=folder / "curve.csv",
            run=folder / "run.json",
            checkpoints=self.root / "checkpoints" / leaf,
            checkpoint_minutes=self.checkpoint_minutes,
        )
        return folder / "model.json"

    def pretrain(self, size: int = 24, seed: int = 0, parent: Path | None = None, arm: Arm = BASE) -> Path:
        manifest = self.pack("pretrain")
        split = self.split("pretrain", specs.pretrain_split_spec(self.config, size, seed), manifest)
        spec = specs.pretrain_spec(self.config, size, seed, arm)
        return self.train(spec, (manifest, *split), parent, "pretrain")

    def intermediate(self, task: str, parent: Path | None, size: int = 24, seed: int = 0) -> Path:
        manifest = self.pack(task)
        split = self.split(task, specs.task_split_spec(self.config, task), manifest)
        spec = specs.intermediate_spec(self.config, task, size, seed)
        return self.train(spec, (manifest, *split), parent, f"intermediate-{task}")

    def finetune_inputs(self, cell: Cell) -> tuple[Path, Path, Path]:
        manifest = self.pack("segmentation")
        spec = specs.finetune_split_spec(self.config, cell.finetune_size, cell.seed)
        return manifest, *self.split("finetune", spec, manifest)

    def finetune(self, cell: Cell, parent: Path | None, leaf: str = "finetune") -> Path:
        spec = specs.finetune_spec(self.config, cell)
        return self.train(spec, self.finetune_inputs(cell), parent, leaf)

    def evaluate(self, cell: Cell, record: Path) -> dict[str, Any]:
        spec, inputs = specs.evaluate_spec(self.config, cell), self.finetune_inputs(cell)
        metrics = self.root / "metrics.json"
        files = dict(zip(("manifest", "split", "indices"), inputs, strict=True))
        made = {"confusion": self.root / "confusion.npz", "scores": self.root / "scores.csv"}
        evaluate(spec, **files, model=record, metrics=metrics, **made)
        # A NaN would be read by Python and by little else.
        return json.loads(metrics.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
