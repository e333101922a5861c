"""`viny plan`: what a study will cost, before it runs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from viny.commands.common import RATE, People, positive, settings_of, study_and_changes


def add(people: People) -> None:
    """Add the command and its arguments."""
    p = people.command(
        "plan",
        run,
        "Forecast a study: jobs, image passes, disk, memory and hours, and what more would add.",
        "viny plan studies/mini.yaml    # measures for 30 seconds, as many jobs side by side as will run",
        "viny plan studies/paper.yaml --rate 1400 --gpus 4 --cores 32    # at a stated rate: nothing is measured",
        "viny plan studies/mini.yaml --set data_root=/data --set 'grid.seeds=[0, 1, 2]' --json",
    )
    study_and_changes(p)
    p.add_argument("--store", type=Path, help="folder of packs (default: the study's pack_store)")
    p.add_argument("--cores", type=positive(int), help="cores that jobs share (default: all of this machine's)")
    p.add_argument("--gpus", type=positive(int), help="GPUs that jobs share (default: those of this machine)")
    p.add_argument(
        "--rate",
        type=positive(float),
        metavar="IMAGES_PER_SECOND",
        help=RATE,
    )
    p.add_argument("--seconds", type=positive(float), default=30.0, help="length of the measurement (default 30)")
    p.add_argument("--measure", action="store_true", help="measure even what the study's finished jobs tell")
    p.add_argument("--json", action="store_true", help="print the forecast as JSON")


def run(args: argparse.Namespace) -> None:
    from viny.study.changes import as_flags
    from viny.study.config import merge
    from viny.tools.forecast.plan import plan, show

    config = settings_of(args.study, args.set)
    store = args.store or Path(config["pack_store"])
    planned = plan(
        config, args.results, store, args.cores, args.gpus, args.rate, args.seconds, use_seen=not args.measure
    )
    if args.json:
        print(json.dumps(planned, indent=1))
    else:
        show(planned)
        if args.set and len(args.study) == 1:
            print(f"\nTo write this into its file: viny resize {args.study[0]} {as_flags(merge(*args.set))}")
