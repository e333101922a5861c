"""`viny export`: a fine-tuned cell for other programs."""

from __future__ import annotations

import argparse
from pathlib import Path

from viny.commands.common import People, cell_and_outputs


def add(people: People) -> None:
    """Add the command and its arguments."""
    p = people.command(
        "export",
        run,
        "Export a fine-tuned cell for plain timm, an ONNX runtime or the Hugging Face hub, with a model card.",
        "viny export --cell results/demo/finetune/pre-4000_mid-none_fine-240_seed-0 --format timm",
        "viny export --root results/demo --cell pre-4000_mid-none_fine-240_seed-0 --format onnx --out demo.onnx",
        "viny export --cell results/demo/finetune/pre-4000_mid-none_fine-240_seed-0 --format hf --out demo-model",
    )
    cell_and_outputs(p)
    p.add_argument(
        "--format", choices=("timm", "onnx", "hf"), required=True, help='what will load it; onnx needs "viny[export]"'
    )
    p.add_argument(
        "--out", type=Path, help="file to write, for hf a folder (default <cell>.safetensors, <cell>.onnx or <cell>)"
    )


def run(args: argparse.Namespace) -> None:
    from viny.tools.terminal import console
    from viny.tools.trained.cell import load_cell
    from viny.tools.trained.export import export

    cell = load_cell(args.cell, args.root)
    with console(errors=True).status(f"writing {args.format}"):  # takes some seconds; seen on a terminal only
        files = export(cell, args.format, args.out, args.overwrite)
    for file in files:
        print(file)
    if args.format == "hf":
        said = f"choose a license in {files[-1]} before you upload: hf upload <owner>/<name> {files[0].parent}"
        console(errors=True).print(said)
