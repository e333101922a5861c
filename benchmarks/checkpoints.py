"""What checkpoints cost: the share of a training's time that goes into writing them.

Trains ViNy (4.8 M parameters) on synthetic images and writes a checkpoint every so often, in one run; prints the
seconds of a checkpoint (median, range), its size, and the share at the interval used and at the default one.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch

from viny.data.pack import open_pack
from viny.data.packing import build_pack
from viny.learning.batches import LabelledAugmentation, mask_batches
from viny.learning.checkpoint import Checkpoints
from viny.learning.machine import Machine
from viny.learning.model import ViNy
from viny.learning.objectives import Segmentation
from viny.learning.run import Run
from viny.learning.settings import TrainSettings
from viny.learning.stages import CHECKPOINT_MINUTES
from viny.learning.train import fit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=0.2, help="minutes between two checkpoints (default 0.2)")
    parser.add_argument("--epochs", type=int, default=24, help="epochs of 256 images (default 24)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    args = parser.parse_args()
    machine = Machine.choose("auto", "auto", args.threads)
    saves: list[float] = []
    sizes: list[int] = []

    class Timed(Checkpoints):
        def save(self, *arguments: object) -> Path | None:
            began = time.perf_counter()
            path = super().save(*arguments)
            saves.append(time.perf_counter() - began)
            sizes.append(path.stat().st_size if path else 0)
            return path

    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name)
        spec = {"source": "synthetic", "size": 128, "resize": "antialias", "stream": "segmentation", "seed": 0}
        build_pack({**spec, "count": 256}, folder, args.threads)
        pack = open_pack(folder / "manifest.json")
        images = torch.arange(256).numpy()
        batches = mask_batches(pack, images, LabelledAugmentation(0.3, True), machine.device)
        objective = Segmentation(ViNy(), 3).to(machine.device)
        settings = TrainSettings(args.epochs, 64, "adamw", 1e-3, 0.0, (), 0.1)
        checkpoints = Timed(folder / "checkpoints", {"benchmark": True}, args.minutes)
        began = time.perf_counter()
        fit(Run(objective, batches, 256, settings, 0, "finetune", folder / "curve.csv", checkpoints), machine)
        seconds = time.perf_counter() - began
    median = statistics.median(saves)
    print(
        json.dumps(
            {
                "training_seconds": round(seconds, 1),
                "checkpoints": len(saves),
                "checkpoint_megabytes": round(max(sizes) / 1e6, 1),
                "checkpoint_seconds_median": round(median, 3),
                "checkpoint_seconds_range": [round(min(saves), 3), round(max(saves), 3)],
                "interval_minutes": args.minutes,
                "share_percent": round(100 * sum(saves) / seconds, 2),
                "share_percent_at_default_interval": round(100 * median / (60 * CHECKPOINT_MINUTES), 3),
                "device": str(machine.device),
                "precision": machine.precision,
                "threads": args.threads,
                "torch": torch.__version__,
                "system": platform.platform(),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
