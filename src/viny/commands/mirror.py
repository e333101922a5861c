"""`viny mirror`: a study's curves and metrics for TensorBoard, Weights & Biases or MLflow."""

from __future__ import annotations

import argparse
from pathlib import Path

from viny.commands.common import People

NAMES = ("tensorboard", "wandb", "mlflow")


def add(people: People) -> None:
    """Add the command and its arguments."""
    p = people.command(
        "mirror",
        run,
        "Copy a study's learning curves and metrics to TensorBoard, Weights & Biases or MLflow.",
        "viny mirror results/demo --to tensorboard    # then: tensorboard --logdir mirror/demo/tensorboard",
        "viny mirror results/demo --to wandb    # offline runs, which `wandb sync` uploads",
        "viny mirror results/demo --to mlflow --out mlflow    # an SQLite database",
    )
    p.add_argument("root", type=Path, help="the study's folder, results/<study>")
    p.add_argument(
        "--to", choices=NAMES, required=True, help='who will show them; each needs its package, as "viny[mlflow]"'
    )
    p.add_argument(
        "--out", type=Path, metavar="FOLDER", help="written anew by each call (default mirror/<study>/<tool>)"
    )


def run(args: argparse.Namespace) -> None:
    import shlex

    from viny.tools.mirror import SHOWN, mirror
    from viny.tools.terminal import console

    out = args.out or Path("mirror", args.root.resolve().name, args.to)
    with console(errors=True).status(f"writing for {args.to}"):
        found = mirror(args.root, args.to, out)
    evaluated = sum(bool(one.metrics) for one in found)
    print(f"{out}: {len(found)} trainings, {evaluated} of them with test metrics")
    print(f"look at them with: {SHOWN[args.to].format(out=shlex.quote(str(out)))}")
