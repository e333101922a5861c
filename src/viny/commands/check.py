"""`viny check`: whether study files are valid, and what they expand to."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from viny.commands.common import People, settings_of, study_files


def add(people: People) -> None:
    """Add the command and its arguments."""
    p = people.command(
        "check",
        run,
        "Check study files and say what they expand to.",
        "viny check studies/mini.yaml",
        "viny check studies/mini.yaml --show    # every default filled in",
        "viny check studies/mini.yaml --set finetune.epochs=60    # would that be valid?",
    )
    study_files(p)
    p.add_argument("--show", action="store_true", help="print the settings with every default filled in")


def run(args: argparse.Namespace) -> None:
    from viny.runtime.units import tested_words
    from viny.study.absent import absent_report
    from viny.study.checks import check_sizes
    from viny.study.grid import cells
    from viny.study.inventory import check_starts, count_images, folder_report
    from viny.study.specs import pack_spec
    from viny.study.unanswered import unanswered
    from viny.tools.terminal import say, show_unanswered

    config = settings_of(args.study, args.set)
    if args.show:
        import yaml

        print(yaml.safe_dump(config, sort_keys=False), end="")
    else:
        root = Path("results", config["study"])
        images = count_images(config, root)
        check_sizes(config, images.limits)
        check_starts(config, root)
        say(*folder_report(config, images.listings), *absent_report(config, images.listings))
        for name in _absent(config, images.packed):
            where = pack_spec(config, name)["path"]
            say(f"{name}: no images at {where} yet; sizes are not checked against them")
        say(*_starts(config, root), *_arms(config))
        show_unanswered(unanswered(config, images))
        tested = tested_words([images.tested], images.groups)
        say(f"{config['study']}: {len(cells(config))} cells, {tested}, protocol {config['protocol']}; no faults found")


def _absent(config: Mapping[str, Any], packed: Mapping[str, int | None]) -> list[str]:
    """The packs that the study's cells need and whose images are not there."""
    from viny.study.grid import cells
    from viny.study.inventory import pack_names
    from viny.study.layout import trainings

    needed = {training.pack for training in trainings(cells(config))}
    return [name for name in pack_names(config) if name in needed and packed[name] is None]


def _starts(config: Mapping[str, Any], root: Path) -> list[str]:
    """Where the weights of the starts come from, a line each."""
    from viny.study.grid import cells
    from viny.study.layout import published, start_file
    from viny.study.specs import source_of

    lines = []
    for name in published(cells(config)):
        start = config["starts"][name]
        if (path := source_of(start)) is not None:
            lines.append(f"start {name}: weights in {path}")
        elif start_file(root, name, "record").is_file():
            lines.append(f"start {name}: weights of timm's {start['timm']}, which the study has")
        else:
            lines.append(
                f"start {name}: a run downloads the weights of timm's {start['timm']}, unless they are in the cache of "
                f"huggingface.co; without a network give their file as starts.{name}.weights"
            )
    return lines


def _arms(config: Mapping[str, Any]) -> list[str]:
    """The arms of a study with several, with their numbers of cells."""
    from viny.study.grid import arms, has_arms, places

    if not has_arms(config):
        return []
    at, first = places(config), arms(config)[0]
    lines = [f"{len(arms(config))} arms; the others are compared with {first.name}:"]
    for arm in arms(config):
        mine = [cell for (whose, *_), cell in at.items() if whose == arm]
        shared = sum(cell.arm != arm for cell in mine)
        others = f", {shared} of them an earlier arm's, as nothing differs" if shared else ""
        lines.append(f"  {arm.name}: {len(mine)} cells{others}")
    return lines
