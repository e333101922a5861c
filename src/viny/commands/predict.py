"""`viny predict`: masks for any images from a fine-tuned cell."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from viny.commands.common import FAILED, People, cell_and_outputs, positive


def add(people: People) -> None:
    """Add the command and its arguments."""
    p = people.command(
        "predict",
        run,
        "Predict masks for images with a fine-tuned cell, or a U-Net beside it: masks, overlays and a CSV.",
        "viny predict --cell results/demo/finetune/pre-4000_mid-none_fine-240_seed-0 photo.jpg",
        "viny predict --root results/demo --cell pre-4000_mid-none_fine-240_seed-0 photos --out masks --json",
    )
    cell_and_outputs(p)
    p.add_argument("images", type=Path, nargs="+", help="images, and folders with images at any depth")
    p.add_argument("--out", type=Path, default=Path("predictions"), help="folder for the outputs (default predictions)")
    p.add_argument(
        "--tiles",
        type=positive(int),
        help="show the model each image at so many times its size too, in overlapping tiles (default: as in the study)",
    )
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="device to use (default auto)")
    p.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="precision to use (default auto: bfloat16 if the device has it, as in evaluation)",
    )
    p.add_argument("--threads", type=positive(int), default=os.cpu_count() or 1, help="CPU threads (default: all)")
    p.add_argument("--json", action="store_true", help="print what was done as JSON")


def run(args: argparse.Namespace) -> int:
    from viny.data.folders import list_below
    from viny.learning.machine import Machine
    from viny.tools.trained.cell import load_cell
    from viny.tools.trained.predict import TRAINED_ON, predict_files

    cell = load_cell(args.cell, args.root)
    for path in args.images:
        for line in list_below(path).report() if os.path.isdir(path) else []:
            print(f"viny: {line}", file=sys.stderr)
    machine = Machine.choose(args.device, args.precision, args.threads)
    frame, refused = predict_files(cell, args.images, args.out, machine, args.threads, args.overwrite, args.tiles)
    for error in refused:
        print(f"viny: {error}", file=sys.stderr)
    means = {name: float(frame[f"share_{name}"].mean()) for name in cell.classes} if len(frame) else {}
    trained_on = int((frame["used_for"] == TRAINED_ON).sum())
    if args.json:
        bad = [{"image": str(error.path), "reason": error.reason} for error in refused]
        said = {
            "cell": cell.name,
            "out": str(args.out),
            "images": len(frame),
            "trained_on": trained_on,
            "mean_shares": means,
            "refused": bad,
        }
        print(json.dumps(said, indent=1))
    else:
        print(f"{args.out}: {len(frame)} images predicted, {len(refused)} refused")
        print("".join(f"  {name} {100 * share:.1f} % of the pixels\n" for name, share in means.items()), end="")
        if trained_on:
            print(
                f"{trained_on} of them it was trained on: other images will not do as well "
                f"(used_for in {args.out / 'predictions.csv'})"
            )
    return FAILED if refused else 0
