"""`viny status`: how far a study's run has got."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from viny.commands.common import FAILED, People, positive


def add(people: People) -> None:
    """Add the command and its arguments."""
    p = people.command(
        "status",
        run,
        "Say how far a study's run has got: done, running, failed, waiting, and the time left.",
        "viny status results/demo    # on a terminal a live table, until the run ends or Ctrl-C",
        "viny status results/demo --no-watch || echo 'failed, or stopped before its end'",
        "viny status results/demo --json",
    )
    p.add_argument("root", type=Path, help="the study's folder, results/<study>")
    p.add_argument(
        "--watch",
        action=argparse.BooleanOptionalAction,
        help="keep looking, or look once (default: keep looking on a terminal)",
    )
    p.add_argument(
        "--every", type=positive(float), default=2.0, metavar="SECONDS", help="time between looks (default 2)"
    )
    p.add_argument("--json", action="store_true", help="print the state once, as JSON")


def run(args: argparse.Namespace) -> int:
    from viny.tools.status.state import Watcher
    from viny.tools.status.view import show, watch
    from viny.tools.terminal import console

    live = sys.stdout.isatty() if args.watch is None else args.watch
    if live and not args.json:
        status = watch(args.root, args.every)
        return 0 if status.well or status.alive else FAILED
    status = Watcher(args.root).look()
    if args.json:
        print(json.dumps(status.as_dict(), indent=1))
    else:
        console().print(show(status))
    return 0 if status.well else FAILED
