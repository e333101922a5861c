"""`viny audit`: which claims a table of published means supports."""

from __future__ import annotations

import argparse
import json
import math
import textwrap
from pathlib import Path

from viny.commands.common import People, positive

WIDTH = 100  # characters of a line
CAVEAT = (
    "A table does not say what its cells share: encoders, seeds, test images. They are taken as independent, so an "
    "interval of a mean over cells may be too narrow."
)


def add(people: People) -> None:
    """Add the command and its arguments."""
    p = people.command(
        "audit",
        run,
        "Say which claims a table of published means supports, and how many runs the others would have needed.",
        "viny audit results.csv --runs 3    # its spread taken as the standard deviation of 3 runs",
        "viny audit results.csv --runs 3 --spread se --metric accuracy --json",
    )
    p.add_argument(
        "table",
        type=Path,
        help="CSV file with columns pretrain_size, intermediate (none for no task), finetune_size, miou_mean and "
        "miou_spread (percent), and runs; docs/evidence.md has an example",
    )
    p.add_argument("--runs", type=positive(int), metavar="N", help="runs behind each mean, if no column says it")
    p.add_argument(
        "--spread",
        choices=("sd", "se"),
        default="sd",
        help="what the spread is: a standard deviation over runs, or the standard error of their mean (default sd)",
    )
    p.add_argument("--metric", default="miou", help="what the columns' names begin with (default miou)")
    p.add_argument("--spatial", nargs="+", default=[], metavar="TASK", help="tasks that predict a class for each patch")
    p.add_argument(
        "--epochs",
        nargs=2,
        type=positive(int),
        default=(1, 1),
        metavar=("PRETRAIN", "FINETUNE"),
        help="epochs of both stages, for what a cell costs (default: as many of each)",
    )
    p.add_argument("--json", action="store_true", help="print the claims as JSON")


def run(args: argparse.Namespace) -> None:
    from viny.evidence.paper.audit import audit
    from viny.evidence.paper.words import estimate_in_words

    table = audit(args.table, args.runs, args.spread, args.metric, args.spatial, tuple(args.epochs))
    rows = table.to_dict("records")
    if args.json:
        plain = [
            {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in row.items()}
            for row in rows
        ]
        print(json.dumps(plain, indent=1, allow_nan=False))
        return
    for row in rows:
        estimate = estimate_in_words(row["unit"], row["estimate"], row["low"], row["high"])
        numbers = f"{row['estimate_is']}: {estimate}; " if estimate else ""
        print(f"{row['verdict']}: {row['words']}")
        print(textwrap.fill(f"{numbers}{row['reason']}.", WIDTH, initial_indent="  ", subsequent_indent="  "))
    counts = table["verdict"].value_counts()
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    print(textwrap.fill(CAVEAT, WIDTH))
