"""`viny power`: the chance that a study decides what it asks, before it runs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from viny.commands.common import People, not_negative, positive, settings_of, study_and_changes


def add(people: People) -> None:
    """Add the command and its arguments."""
    p = people.command(
        "power",
        run,
        "Say before a run how likely it decides each question, by seeds, test images and hours.",
        "viny power studies/paper.yaml    # truth and noise: the paper's numbers",
        "viny power studies/own.yaml --like results/own    # those of an earlier study like it",
        "viny power studies/own.yaml --effect 2 --noise 0.5 --seeds 3 6 --test-images 200    # stated, in points",
    )
    study_and_changes(p)
    p.add_argument(
        "--like", type=Path, metavar="RESULTS/STUDY", help="an earlier study's folder (default: the paper's numbers)"
    )
    points = {"metavar": "POINTS", "type": not_negative}
    p.add_argument("--effect", **points, help="what pre-training is taken to gain, and a task after it to cost")
    p.add_argument("--noise", **points, help="standard deviation of a cell's mIoU over seeds")
    p.add_argument(
        "--image-noise", **points, help="standard deviation over test images of the difference between two cells"
    )
    p.add_argument(
        "--seeds", type=positive(int), nargs="+", metavar="N", help="numbers of seeds (default: the study's, 3, 5, 10)"
    )
    p.add_argument(
        "--test-images",
        type=positive(int),
        nargs="+",
        metavar="N",
        help="numbers of test images (default: the study's, and four times that)",
    )
    p.add_argument(
        "--rate",
        type=positive(float),
        metavar="IMAGES_PER_SECOND",
        help="training images of ViNy (128 px) per second in one job, for the hours (default: of finished jobs)",
    )
    p.add_argument("--json", action="store_true", help="print the chances as JSON")


def run(args: argparse.Namespace) -> None:
    from viny.tools.power.power import power, show

    config = settings_of(args.study, args.set)
    found = power(
        config,
        args.results,
        args.like,
        args.effect,
        args.noise,
        args.image_noise,
        args.seeds,
        args.test_images,
        args.rate,
    )
    if args.json:
        print(json.dumps(found, indent=1, allow_nan=False))
    else:
        show(found)
