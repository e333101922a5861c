"""`viny check`: whether study files are valid, and what they expand to."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from viny.commands.common import People, settings_of


def add(people: People) -> None:
    """Add the command and its arguments."""
    p = people.command(
        "check",
        run,
        "Check study files and say what they expand to.",
        "viny check studies/mini.yaml",
        "viny check studies/mini.yaml --show    # every default filled in",
    )
    p.add_argument("study", type=Path, nargs="+", help="YAML files; later ones override earlier ones")
    p.add_argument("--show", action="store_true", help="print the settings with every default filled in")


def run(args: argparse.Namespace) -> None:
    from viny.study.absent import absent_report
    from viny.study.checks import check_sizes
    from viny.study.grid import cells
    from viny.study.inventory import count_images, folder_report
    from viny.study.specs import pack_spec

    config = settings_of(args.study)
    if args.show:
        import yaml

        print(yaml.safe_dump(config, sort_keys=False), end="")
    else:
        images = count_images(config, Path("results", config["study"]))
        check_sizes(config, images.limits)
        for line in folder_report(config, images.listings) + absent_report(config, images.listings):
            print(line)
        for name in _absent(config, images.packed):
            where = pack_spec(config, name)["path"]
            print(f"{name}: no images at {where} yet; sizes are not checked against them")
        print(f"{config['study']}: {len(cells(config))} cells, protocol {config['protocol']}; no faults found")


def _absent(config: Mapping[str, Any], packed: Mapping[str, int | None]) -> list[str]:
    """The packs that the study's cells need and whose images are not there."""
    grid = config["grid"]
    needed = ["pretrain"] if any(grid["pretrain_sizes"]) else []
    needed += ["segmentation", *(task for task in grid["intermediates"] if task != "none")]
    return [name for name in needed if packed[name] is None]
