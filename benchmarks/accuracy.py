"""Whether the fast path costs accuracy: fine-tuning on real Pets by the fast path and by plain float32 PyTorch.

All ways start from the same weights and see the same batches in the same order, so that they differ by rounding alone;
weights and batches differ between seeds. Prints a Markdown table and writes JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from speed import silence
from torch import nn

from viny.data.pack import Pack, open_pack
from viny.data.packing import build_pack
from viny.data.splits import finetune_split
from viny.evidence.evaluate import confusion_matrices, predict
from viny.evidence.metrics import mean_iou_dataset
from viny.learning.batches import Batches, LabelledAugmentation, mask_batches
from viny.learning.machine import Machine
from viny.learning.model import ViNy
from viny.learning.objectives import Segmentation
from viny.learning.run import Run, epoch_order, rate
from viny.learning.settings import TrainSettings
from viny.learning.stack import train_runs
from viny.learning.train import fit
from viny.runtime.provenance import processor_name
from viny.runtime.seeds import derive, generator

STAGE = "finetune"
WAYS = {
    "bfloat16": "fast path, bfloat16",
    "float32": "fast path, float32",
    "stack": "all seeds in one stack, bfloat16",
    "eager": "plain PyTorch, float32",
}


def plainly(objective: nn.Module, batches: Batches, count: int, settings: TrainSettings, seed: int) -> None:
    """Train in plain PyTorch: the whole batch at once, its own attention, AdamW without fused kernels."""
    objective.train()
    objective.encoder.set_fused_attention(True)
    optimizer = torch.optim.AdamW(objective.parameters(), settings.lr, weight_decay=settings.weight_decay, fused=False)
    for epoch in range(settings.epochs):
        for group in optimizer.param_groups:
            group["lr"] = rate(settings, epoch)
        for step, positions in enumerate(epoch_order(count, settings.batch_size, seed, STAGE, epoch)):
            optimizer.zero_grad()
            objective.loss(batches(positions, generator(seed, STAGE, epoch, step))).backward()
            optimizer.step()


def train(way: str, seeds: Sequence[int], pack: Pack, labels: int, settings: TrainSettings, threads: int) -> list[Any]:
    """mIoU on the 1,000 test images after one fine-tuning a seed from random weights, and its seconds."""
    machine = Machine.choose("auto", "bfloat16" if way in ("bfloat16", "stack") else "float32", threads)
    objectives, runs, splits = [], [], []
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            torch.manual_seed(derive(seed, "accuracy"))
            objectives.append(Segmentation(ViNy(), len(pack.manifest["mask_classes"])).to(machine.device))
            splits.append(finetune_split(pack, labels, seed, 42, "shared", "fixed", 1000))
            batches = mask_batches(pack, splits[-1]["train"], LabelledAugmentation(0.3, True), machine.device)
            curve = Path(folder) / f"{seed}.csv"
            runs.append(Run(objectives[-1], batches, labels, settings, seed, STAGE, curve))
        with silence():
            if way == "stack":
                train_runs(runs, machine)
            for run in runs if way != "stack" else ():
                if way == "eager":
                    plainly(run.objective, run.batches, labels, settings, run.seed)
                else:
                    fit(run, machine)
    seconds = (time.perf_counter() - began) / len(seeds)
    rows = []
    for seed, objective, split in zip(seeds, objectives, splits, strict=True):
        truth, guess = predict(objective.eval(), pack, split["test"], True, None, machine)
        classes = list(range(objective.classes))
        miou = 100 * mean_iou_dataset(confusion_matrices(truth, guess, len(classes)).numpy(), classes)
        rows.append({"way": way, "seed": seed, "miou": miou, "seconds": seconds})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with oxford-iiit-pet (default data)")
    parser.add_argument("--labels", type=int, default=250, help="training images (default 250)")
    parser.add_argument("--epochs", type=int, default=20, help="number of epochs (default 20)")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default 3)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads (default all)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="some of the ways (default all)")
    parser.add_argument("--out", type=Path, default=Path("results/speed/accuracy.json"))
    args = parser.parse_args()
    milestones = tuple(int(share * args.epochs) for share in (0.7, 0.9))
    settings = TrainSettings(args.epochs, 32, "adamw", 0.002, 1e-4, milestones, 0.5)
    rows = []
    with tempfile.TemporaryDirectory(prefix="viny-accuracy-") as folder:
        spec = {"source": "pets", "path": str(args.data), "size": 128, "resize": "antialias"}
        with contextlib.redirect_stdout(sys.stderr):
            build_pack(spec, Path(folder), args.threads)
        pack = open_pack(Path(folder) / "manifest.json")
        for way in args.ways:
            rows += train(way, range(args.seeds), pack, args.labels, settings, args.threads)
            print(rows[-args.seeds :], file=sys.stderr, flush=True)
    machine = {"processor": processor_name(), "torch": torch.__version__, "threads": args.threads}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(
        json.dumps({"machine": machine, "labels": args.labels, "rows": rows}, indent=1) + "\n", encoding="utf-8"
    )
    found = {way: np.array([row["miou"] for row in rows if row["way"] == way]) for way in args.ways}
    print("| way | mIoU by seed, % | mean | standard deviation | less plain PyTorch, by seed |")
    print("|---|---|--:|--:|---|")
    for way in args.ways:
        each = ", ".join(f"{value:.2f}" for value in found[way])
        less = (
            ", ".join(f"{value:+.2f}" for value in found[way] - found["eager"])
            if {way, "eager"} <= {*args.ways} and way != "eager"
            else ""
        )
        spread = found[way].std(ddof=1) if args.seeds > 1 else float("nan")
        print(f"| {WAYS[way]} | {each} | {found[way].mean():.2f} | {spread:.2f} | {less} |")


if __name__ == "__main__":
    main()
