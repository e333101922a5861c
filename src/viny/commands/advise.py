"""`viny advise`: what a study's results advise."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from viny.commands.common import People, changes, not_negative, other_settings, positive
from viny.runtime.errors import InputError

if TYPE_CHECKING:
    from viny.evidence.advice.advice import Advice


def add(people: People) -> None:
    """Add the command and its arguments."""
    p = people.command(
        "advise",
        run,
        "Say what a study's results advise: is pre-training worth it, how many more masks, does the task hurt?",
        "viny advise results/demo",
        "viny advise results/demo --long    # with every comparison, what would settle the rest, all warnings",
        "viny advise results/demo --minutes-per-mask 2 --target 0.5    # with the price of labels, to half a point",
        "viny advise results/demo --reach 60 --price-label 0.5 --price-image 0.001 --price-hour 1.2",
        "viny advise results/demo --json    # for programs",
    )
    p.add_argument("root", type=Path, help="the study's folder, results/<study>")
    p.add_argument("--study", type=Path, nargs="+", help="YAML files of its settings (default: its study.json)")
    changes(p)
    p.add_argument(
        "--target",
        type=positive(float),
        default=1.0,
        metavar="POINTS",
        help="how far an interval of mIoU should reach to either side; a difference within it is small (default 1)",
    )
    p.add_argument("--minutes-per-mask", type=positive(float), metavar="MINUTES", help="time to label one image")
    p.add_argument(
        "--reach", type=positive(float), metavar="PERCENT", help="mIoU to reach at the prices given: the cheapest mix"
    )
    p.add_argument(
        "--chance", type=positive(float), default=90.0, metavar="PERCENT", help="of reaching it (default 90)"
    )
    for what, words in (("label", "labelled image"), ("image", "unlabelled image"), ("hour", "hour of training")):
        p.add_argument(
            f"--price-{what}", type=not_negative, default=0.0, metavar="UNITS", help=f"of a further {words} (default 0)"
        )
    p.add_argument("--long", action="store_true", help="all of it, in place of 150 words at most")
    p.add_argument("--json", action="store_true", help="print the advice as JSON")


def run(args: argparse.Namespace) -> None:
    from viny.evidence.advice.advice import as_dict
    from viny.evidence.advice.adviser import advise
    from viny.evidence.advice.prices import Wish

    prices = (args.price_label, args.price_image, args.price_hour)
    if any(prices) and args.reach is None:
        raise InputError("a price needs --reach, the mIoU in percent that is to be reached")
    wish = None if args.reach is None else Wish(args.reach / 100, args.chance / 100, *prices)
    config = other_settings(args)
    advice = advise(args.root, config, args.target, args.minutes_per_mask, wish)
    if args.json:
        print(json.dumps(as_dict(advice), indent=1, allow_nan=False))
    else:
        # What prices were given for stands in the long advice alone.
        _show(advice, args.long or wish is not None or args.minutes_per_mask is not None)


def _show(advice: Advice, long: bool) -> None:
    """Print it to standard output, with its headings in bold on a terminal."""
    from viny.evidence.advice.advice import as_text, title
    from viny.tools.terminal import console

    out = console()
    heads = {title(advice), *(section.heading for section in advice.sections)}
    for line in as_text(advice, min(100, out.width), long).splitlines():
        out.print(line, style="bold" if line in heads else None, soft_wrap=True)
