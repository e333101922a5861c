"""`viny resize`: another size for a study file, so that it takes a given time."""

from __future__ import annotations

import argparse
from pathlib import Path

from viny.commands.common import RATE, People, positive


def add(people: People) -> None:
    """Add the command and its arguments."""
    p = people.command(
        "resize",
        run,
        "Give a study file the sizes that fit a time on this machine; comments and all other keys stay.",
        "viny resize studies/mine.yaml --minutes 60    # the old file is kept as studies/mine.yaml.bak",
    )
    p.add_argument("study", type=Path, help="YAML file")
    p.add_argument("--minutes", type=positive(float), required=True, metavar="N", help="how long the study may take")
    p.add_argument("--rate", type=positive(float), metavar="IMAGES_PER_SECOND", help=RATE)
    p.add_argument("--results", type=Path, default=Path("results"), help="folder of all results (default results)")


def run(args: argparse.Namespace) -> None:
    from viny.runtime.units import duration
    from viny.tools.newstudy.sizing import keep_and_write, resize_file
    from viny.tools.terminal import say, show_unanswered

    found = resize_file(args.study, args.minutes, args.rate, args.results)
    say(f"{args.study}: {duration(3600 * found.before)} by forecast as it was, {duration(3600 * found.hours)} now")
    for key, (before, after) in found.changed.items():
        say(f"  {'.'.join(key)}: {before} -> {after}")
    if found.changed:
        say(f"What it held before: {keep_and_write(args.study, found.text)}")
        if found.begun:
            say(f"{found.begun}: what was trained with other sizes is out of date, as `viny plan {args.study}` shows")
    else:
        say("Its sizes stay as they are.")
    say(*found.time_alone)
    show_unanswered(found.unanswered)
