"""Which way to make squares of long pictures scores best at the pictures' own size: stretch, pad or crop.

Strips are cut from real Pets, all lying or some standing, and one small ViNy is fine-tuned from random weights for each
way and seed, on the same images in the same order. Its scores of the test images are brought to each strip's own size,
and its classes counted there: every pixel of a picture and none of a bar. Prints a Markdown table and writes JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from speed import silence

from viny.data.masks import IGNORE, mask_coding
from viny.data.pack import open_pack
from viny.data.packing import build_pack
from viny.data.splits import finetune_split, permutation
from viny.evidence.evaluate import tested
from viny.evidence.metrics import own_size_summary
from viny.learning.batches import LabelledAugmentation, mask_batches
from viny.learning.machine import Machine
from viny.learning.model import ViNy
from viny.learning.objectives import Segmentation
from viny.learning.run import Run
from viny.learning.settings import ModelSettings, TrainSettings
from viny.learning.train import fit as train
from viny.runtime.provenance import processor_name
from viny.runtime.seeds import derive
from viny.tools.newstudy.budgets import SMALL_VINY

FITS = ("stretch", "pad", "crop")
SHAPES = {"lying": (16 / 9,), "lying and standing": (16 / 9, 9 / 16)}  # width / height, in turn
CLASSES = {"1": "pet", "2": "background", "3": "border"}
MODEL = {"image_size": 64, "patch_size": 8, **SMALL_VINY}


def strips(data: Path, folder: Path, aspects: tuple[float, ...], count: int) -> None:
    """Write strips through the middle of the pets of some images, with their masks, as PNGs."""
    notes = data / "oxford-iiit-pet" / "annotations" / "trimaps"
    names = sorted(path.stem for path in notes.glob("*.png") if not path.name.startswith("."))
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for at, row in enumerate(permutation(len(names), "strips")[:count].tolist()):
        mask = Image.open(notes / f"{names[row]}.png")
        image = Image.open(data / "oxford-iiit-pet" / "images" / f"{names[row]}.jpg").convert("RGB")
        width, height = mask.size
        aspect = aspects[at % len(aspects)]
        long = min(width, round(height * aspect)), min(height, round(width / aspect))
        ys, xs = np.nonzero(np.asarray(mask) != 2)
        middle = (xs.mean(), ys.mean()) if len(xs) else (width / 2, height / 2)
        left, top = (
            int(np.clip(m - side / 2, 0, whole - side))
            for m, side, whole in zip(middle, long, (width, height), strict=True)
        )
        box = (left, top, left + long[0], top + long[1])
        image.crop(box).save(folder / "images" / f"{names[row]}.png")
        mask.crop(box).save(folder / "masks" / f"{names[row]}.png")


def scored(folder: Path, fit: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """mIoU of one fine-tuning over all pixels of the test pictures at their own size."""
    pack = open_pack(folder / fit / "manifest.json")
    split = finetune_split(pack, args.labels, seed, 42, "per_seed", "fixed", args.tests)
    machine = Machine.choose("cpu", "auto", args.threads)
    torch.manual_seed(derive(seed, "fits"))
    objective = Segmentation(ViNy(ModelSettings(**MODEL)), len(CLASSES)).to(machine.device)
    milestones = tuple(int(share * args.epochs) for share in (0.7, 0.9))
    settings = TrainSettings(args.epochs, 16, "adamw", 0.002, 1e-4, milestones, 0.5)
    batches = mask_batches(pack, split["train"], LabelledAugmentation(0.3, True), machine.device)
    with silence():
        train(Run(objective, batches, args.labels, settings, seed, "finetune", folder / "curve.csv"), machine)
    counts = tested(objective.eval(), pack, split["test"], True, None, machine).own  # beside a centre crop: none found
    return {"fit": fit, "seed": seed, "miou": 100 * own_size_summary(counts)["own_size_miou_dataset"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder with oxford-iiit-pet (default data)")
    parser.add_argument("--labels", type=int, default=192, help="training images (default 192)")
    parser.add_argument("--tests", type=int, default=400, help="test images (default 400)")
    parser.add_argument("--epochs", type=int, default=80, help="number of epochs (default 80)")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default 3)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads (default all)")
    parser.add_argument("--out", type=Path, default=Path("results/speed/fits.json"))
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for shape, aspects in SHAPES.items():
        with tempfile.TemporaryDirectory(prefix="viny-fits-") as made:
            folder = Path(made)
            strips(args.data, folder, aspects, args.tests + 4 * args.labels)
            spec = {"source": "folder", "holds": "masks", "path": str(folder / "images"), "size": MODEL["image_size"]}
            spec |= {"masks": str(folder / "masks"), "mask_suffix": "", "split": "", "resize": "antialias"}
            spec |= {"all_background": "keep", "on_bad_image": "skip", **mask_coding(CLASSES, [IGNORE])}
            for fit in FITS:
                (folder / fit).mkdir()
                with contextlib.redirect_stdout(sys.stderr):
                    build_pack({**spec, "fit": fit}, folder / fit, args.threads)
            for seed in range(args.seeds):
                for fit in FITS:
                    rows.append({"shape": shape, **scored(folder, fit, seed, args)})
                    print(rows[-1], file=sys.stderr, flush=True)
    machine = {"processor": processor_name(), "torch": torch.__version__, "threads": args.threads}
    settings = {key: value for key, value in vars(args).items() if key not in ("data", "out")}
    args.out.write_text(json.dumps({"machine": machine, **settings, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    print("| pictures | fit | mIoU by seed, % | mean | standard deviation | less stretch, by seed |")
    print("|---|---|---|--:|--:|---|")
    for shape in SHAPES:
        found = {f: np.array([r["miou"] for r in rows if (r["shape"], r["fit"]) == (shape, f)]) for f in FITS}
        for fit in FITS:
            each = ", ".join(f"{value:.1f}" for value in found[fit])
            less = ", ".join(f"{value:+.1f}" for value in found[fit] - found["stretch"]) if fit != "stretch" else ""
            spread = found[fit].std(ddof=1) if args.seeds > 1 else float("nan")
            print(f"| {shape} | {fit} | {each} | {found[fit].mean():.1f} | {spread:.1f} | {less} |")


if __name__ == "__main__":
    main()
