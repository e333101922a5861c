"""`viny resize`: other sizes for a study file, so that it takes a given time, or as they are given."""

from __future__ import annotations

import argparse
from pathlib import Path

from viny.commands.common import RATE, People, changes, positive


def add(people: People) -> None:
    """Add the command and its arguments."""
    p = people.command(
        "resize",
        run,
        "Give a study file other sizes, those that fit a time on this machine or yours; comments and other keys stay.",
        "viny resize studies/mine.yaml --minutes 60    # the old file is kept as studies/mine.yaml.bak",
        "viny resize results/mine --set finetune.epochs=150    # in its file, studies/mine.yaml",
    )
    p.add_argument("study", type=Path, help="YAML file; or results/<study>, for the file of that study")
    sizes = p.add_mutually_exclusive_group(required=True)
    sizes.add_argument("--minutes", type=positive(float), metavar="N", help="how long the study may take")
    changes(sizes)
    p.add_argument("--rate", type=positive(float), metavar="IMAGES_PER_SECOND", help=RATE)
    p.add_argument("--results", type=Path, default=Path("results"), help="folder of all results (default results)")


def run(args: argparse.Namespace) -> None:
    from viny.runtime.units import duration
    from viny.study.config import merge
    from viny.tools.newstudy.sizing import file_of, keep_and_write, resize_file
    from viny.tools.terminal import say, show_unanswered

    study = file_of(args.study)
    found = resize_file(study, args.minutes, merge(*args.set), args.rate, args.results)
    say(f"{study}: {duration(3600 * found.before)} by forecast as it was, {duration(3600 * found.hours)} now")
    for key, (before, after) in found.changed.items():
        say(f"  {'.'.join(key)}: {before} -> {after}")
    if found.changed:
        say(f"What it held before: {keep_and_write(study, found.text)}")
        if found.begun:
            say(f"{found.begun}: what was trained with other sizes is out of date, as `viny plan {study}` shows")
    else:
        say("Its sizes stay as they are.")
    say(*found.time_alone)
    show_unanswered(found.unanswered)
