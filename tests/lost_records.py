"""Results of other settings, times and images among a study's, where Snakemake's own records are lost.

What a run's start finds is `out_of_date`, which asks only the results themselves; whatever it leaves is for verify.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finished_study import TINY, finished_study, own_images

from viny.study.config import merge, resolve
from viny.study.graph import Job, Key, jobs
from viny.study.inventory import count_images, read_files, with_listings
from viny.study.reading import read_config
from viny.study.todo import out_of_date
from viny.tools.verify.report import NOTE
from viny.tools.verify.verifier import verify_study

GRID = {"pretrain_sizes": [24], "intermediates": ["none", "scenes"], "finetune_sizes": [8], "seeds": [0]}
# Other settings, of which each stage has at least one.
OTHERS: dict[str, Any] = {
    "note": "another",
    "split_seed": 7,
    "synthetic": {"seed": 7},
    "pretrain": {"mask_ratio": 0.4, "lr": 0.002},
    "intermediate": {"scenes": {"lr": 0.002}},
    "finetune": {"lr": 0.004},
    "geometry": {"images": 5},
    "figures": {"examples": 1},
    "duplicates": {"distance": 3},
}
BACKED_UP = 1e9  # seconds; a time before all that Snakemake could know
WHAT: dict[str, Callable[[Job], list[Path]]] = {
    "all of a job's files from a backup of other settings": lambda job: list(job.outputs),
    "a job's record alone from such a backup": lambda job: [job.record],
    "a job's other files alone from such a backup": lambda job: [path for path in job.outputs if path != job.record],
}


@dataclass
class Found:
    """What was mixed in, by kind, and who noticed."""

    mixed: Counter[str] = field(default_factory=Counter)
    at_start: Counter[str] = field(default_factory=Counter)
    by_verify: Counter[str] = field(default_factory=Counter)
    unnoticed: list[str] = field(default_factory=list)

    def note(self, kind: str, what: str, at_start: bool, by_verify: bool) -> None:
        self.mixed[kind] += 1
        self.at_start[kind] += at_start
        self.by_verify[kind] += by_verify and not at_start
        if not (at_start or by_verify):
            self.unnoticed.append(f"{what}: {kind}")


def start(root: Path, changes: Mapping[str, Any]) -> tuple[list[Job], dict[Key, str]]:
    """A study's jobs, and those that a run's start finds not to belong to it."""
    config = resolve(merge(read_config(TINY), changes))
    images = count_images(config, root)
    config = with_listings(config, root, read_files(config, images))
    mine = jobs(config, images)
    return mine, out_of_date(mine, root, Path(config["pack_store"]))


def leaves(mapping: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:
    """Each setting of a nested mapping on its own."""
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from leaves(value, (*above, key))
        else:
            for name in (key, *reversed(above)):
                value = {name: value}
            yield value


def mix(folder: Path) -> Found:
    """Make a study and one of other settings in a folder, mix them in all ways, and see who notices.

    The working folder becomes `folder`; nothing in it has ever known Snakemake.
    """
    os.chdir(folder)
    here = {"grid": GRID, "pack_store": "packs", **own_images(Path("data"))}
    made = finished_study(Path("."), here)
    shutil.copytree(made, "backup", symlinks=True)
    others = merge(here, OTHERS)
    other = finished_study(Path("elsewhere"), merge(others, {"pack_store": "elsewhere/packs"}))
    found = Found()
    mine, stale = start(made, here)
    assert stale == {}, stale
    for setting in leaves(OTHERS):
        _, stale = start(made, merge(here, setting))
        found.note("a setting edited", str(setting), bool(stale), False)
    for job in mine:
        for kind, files_of in WHAT.items():
            files = [path for path in files_of(job) if not _same(made / path, other / path)]
            if not files:
                continue
            for path in files:
                _put(other / path, made / path)
            stale = start(made, here)[1]
            wrong = [] if stale else [one for one in verify_study(made).findings if one.severity != NOTE]
            found.note(kind, job.label, bool(stale), bool(wrong))
            for path in files:
                _put(Path("backup") / path, made / path)
    for image in sorted(Path("data/images").iterdir()):
        data, times = image.read_bytes(), image.stat()
        image.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns))
        found.note("an image edited, its size and date kept", str(image), bool(start(made, here)[1]), False)
        image.write_bytes(data)
    assert start(made, here)[1] == {}
    return found


def _same(one: Path, other: Path) -> bool:
    return one.is_symlink() or (other.is_file() and one.read_bytes() == other.read_bytes())


def _put(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    os.utime(target, (BACKED_UP, BACKED_UP))
