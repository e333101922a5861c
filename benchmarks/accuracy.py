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
from viny.learning.train import fit
from viny.runtime.provenance import processor_name
from viny.runtime.seeds import derive, generator

STAGE = "finetune"
WAYS = {
    "bfloat16": "fast path, bfloat16",
    "float32": "fast path, float32",
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


def train(way: str, seed: int, pack: Pack, labels: int, settings: TrainSettings, threads: int) -> dict[str, Any]:
    """mIoU on the 1,000 test images after one fine-tuning from random weights, and its seconds."""
    machine = Machine.choose("auto", "bfloat16" if way == "bfloat16" else "float32", threads)
    torch.manual_seed(derive(seed, "accuracy"))
    objective = Segmentation(ViNy(), len(pack.manifest["mask_classes"])).to(machine.device)
    split = finetune_split(pack, labels, seed, 42, "shared", "fixed", 1000)
    batches = mask_batches(pack, split["train"], LabelledAugmentation(0.3, True), machine.device)
    began = time.perf_counter()
    if way == "eager":
        plainly(objective, batches, labels, settings, seed)
    else:
        with tempfile.TemporaryDirectory() as folder, silence():
            fit(Run(objective, batches, labels, settings, seed, STAGE, Path(folder) / "curve.csv"), machine)
    seconds = time.perf_counter() - began
    truth, guess = predict(objective.eval(), pack, split["test"], True, None, machine)
    classes = list(range(objective.classes))
    return {
        "way": way,
        "seed": seed,
        "miou": 100 * mean_iou_dataset(confusion_matrices(truth, guess, len(classes)).numpy(), classes),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with oxford-iiit-pet (default data)")
    parser.add_argument("--labels", type=int, default=250, help="training images (default 250)")
    parser.add_argument("--epochs", type=int, default=20, help="number of epochs (default 20)")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default 3)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads (default all)")
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
        for seed in range(args.seeds):
            for way in WAYS:
                rows.append(train(way, seed, pack, args.labels, settings, args.threads))
                print(rows[-1], file=sys.stderr, flush=True)
    machine = {"processor": processor_name(), "torch": torch.__version__, "threads": args.threads}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(
        json.dumps({"machine": machine, "labels": args.labels, "rows": rows}, indent=1) + "\n", encoding="utf-8"
    )
    found = {way: np.array([row["miou"] for row in rows if row["way"] == way]) for way in WAYS}
    print("| way | mIoU by seed, % | mean | standard deviation | less plain PyTorch, by seed |")
    print("|---|---|--:|--:|---|")
    for way, name in WAYS.items():
        each = ", ".join(f"{value:.2f}" for value in found[way])
        less = ", ".join(f"{value:+.2f}" for value in found[way] - found["eager"]) if way != "eager" else ""
        spread = found[way].std(ddof=1) if args.seeds > 1 else float("nan")
        print(f"| {name} | {each} | {found[way].mean():.2f} | {spread:.2f} | {less} |")


if __name__ == "__main__":
    main()
