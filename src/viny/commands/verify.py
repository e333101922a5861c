"""`viny verify`: whether a study's files fit together."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from viny.commands.common import FAILED, People, changes, other_settings


def add(people: People) -> None:
    """Add the command and its arguments."""
    p = people.command(
        "verify",
        run,
        "Recompute a study's hashes and say what does not fit.",
        "viny verify results/demo",
        "viny verify copy/of/demo --store packs --json    # of a study that was moved, for programs",
    )
    p.add_argument("root", type=Path, help="the study's folder, results/<study>")
    p.add_argument("--study", type=Path, nargs="+", help="YAML files to check it against (default: its study.json)")
    changes(p)
    p.add_argument("--store", type=Path, help="folder of packs, for a study that was moved (default: as it is linked)")
    p.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> int:
    from viny.tools.verify.verifier import verify_study

    report = verify_study(args.root, other_settings(args), args.store)
    if args.json:
        print(json.dumps(report.as_dict(), indent=1))
    else:
        for finding in report.findings:
            print(finding)
        print(report.summary())
    return 0 if report.sound else FAILED
