"""Every file of a finished study, corrupted in every way: does verify name it, and nothing else?"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from finished_study import finished_study, own_images

from viny.study import layout
from viny.tools.verify.report import NOTE
from viny.tools.verify.verifier import verify_study

GRID = {"pretrain_sizes": [24], "intermediates": ["none", "scenes"], "finetune_sizes": [8], "seeds": [0]}


def study_to_corrupt(folder: Path) -> Path:
    """A finished study whose unlabelled images are files, so that its packs have names; returns its folder."""
    return finished_study(folder, {"grid": GRID, **own_images(folder)})


# Corruptions: each takes a file's bytes, another file's and a source of chance; None for a file that is to be deleted.


def flip(data: bytes, other: bytes, draw: random.Random) -> bytes:
    out = bytearray(data)
    out[draw.randrange(len(out))] ^= 1 << draw.randrange(8)
    return bytes(out)


def change_digit(data: bytes, other: bytes, draw: random.Random) -> bytes:
    """Another digit in a text, if it has any."""
    places = [found.start() for found in re.finditer(rb"\d", data)] if b"\0" not in data else []
    if not places:
        return data
    out, at = bytearray(data), draw.choice(places)
    out[at] = ord("0") + (out[at] - ord("0") + draw.randrange(1, 10)) % 10
    return bytes(out)


CORRUPTIONS: dict[str, Callable[[bytes, bytes, random.Random], bytes | None]] = {
    "a bit flipped": flip,
    "zeroed": lambda data, other, draw: bytes(len(data)),
    "emptied": lambda data, other, draw: b"",
    "truncated": lambda data, other, draw: data[: draw.randrange(1, len(data))],
    "bytes appended": lambda data, other, draw: data + draw.choice([b"\n", b" ", b"\0", b"0", data]),
    "deleted": lambda data, other, draw: None,
    "another file of its kind": lambda data, other, draw: other,
    "a digit changed": change_digit,
}


def kind(path: Path, root: Path) -> str:
    """What sort of file of the study this is: its path without the names of cells, encoders, subsets and packs."""
    if not path.is_relative_to(root):
        return f"store/{path.name}"
    below = path.relative_to(root)
    if below.parts[0] in ("tables", "figures", "summaries", "study.json", "report.html"):
        return below.as_posix()
    if below.parts[0] in ("metrics", "scores", "geometry", "splits"):
        return f"{below.parts[0]}/*{below.suffix}"
    return f"{below.parts[0]}/*/{below.name}"


def unit(path: Path, root: Path) -> str:
    """Files of one unit vouch for each other, so that only one of them is corrupted at a time."""
    if not path.is_relative_to(root):
        links = root.glob(layout.IMAGES.format(pack="*"))
        return next(f"packs/{link.parent.name}" for link in links if link.resolve().parent == path.parent)
    below = path.relative_to(root)
    for stage in layout.SUMMARIES:
        config = {"grid": {"pretrain_sizes": [24], "intermediates": ["none", "a"], "finetune_sizes": [8], "seeds": [0]}}
        if below in (*layout.summarised(stage, config), Path(layout.SUMMARY.format(stage=stage))):
            return stage
    if below.parts[0] == "scores":
        return f"metrics/{below.stem}"
    own = below.parts[0] in ("metrics", "geometry", "splits")
    return str(below.with_suffix("") if own else below.parent if len(below.parts) > 1 else below)


@dataclass
class Outcome:
    """What was corrupted, by kind of file and corruption, and what verify said of it."""

    corrupted: Counter[tuple[str, str]] = field(default_factory=Counter)
    unnoticed: list[str] = field(default_factory=list)
    condemned: list[str] = field(default_factory=list)  # sound files that verify found at fault

    @property
    def kinds(self) -> int:
        return len({name for name, _ in self.corrupted})


def files_of(root: Path) -> list[Path]:
    """Every file of a study and of its packs; of links only that of the images, which Snakemake knows."""
    stored = [path for path in (root.parents[1] / "packs").glob("[!.]*/*") if path.is_file()]
    mine = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    return sorted([*mine, *stored])


def batches(files: list[Path], root: Path) -> Iterator[list[Path]]:
    """Files that can be corrupted at once, at most one of each unit; the settings on their own."""
    left: dict[str, list[Path]] = {}
    for path in files:
        left.setdefault(unit(path, root), []).append(path)
    yield left.pop("study.json")
    while any(left.values()):
        yield [paths.pop() for paths in left.values() if paths]


def corrupt_study(root: Path, seed: int) -> Outcome:
    """Corrupt each file of a sound study in each way, let verify look, and put it back.

    Args:
        root: the study's folder; its packs are in its working folder.
        seed: of where and how.
    """
    draw, outcome, files = random.Random(seed), Outcome(), files_of(root)
    sound = {path: path.read_bytes() for path in files}
    by_kind: dict[str, list[Path]] = {}
    for path in files:
        by_kind.setdefault(kind(path, root), []).append(path)
    for name, corrupt in CORRUPTIONS.items():
        for batch in batches(files, root):
            done = set()
            for path in batch:
                others = [o for o in by_kind[kind(path, root)] if sound[o] != sound[path]]
                others = others or [o for o in files if o.suffix == path.suffix and sound[o] != sound[path]]
                after = corrupt(sound[path], sound[draw.choice(others)] if others else sound[path], draw)
                if after == sound[path]:
                    continue
                done.add(path)
                path.unlink()
                if after is not None:
                    path.write_bytes(after)
                outcome.corrupted[kind(path, root), name] += 1
            said = [finding for finding in verify_study(root).findings if finding.severity != NOTE]
            places = [(root / finding.file).resolve() for finding in said]
            outcome.unnoticed += [f"{path}: {name}" for path in sorted(done) if path.resolve() not in places]
            if batch[0].name != "study.json":  # without settings, nothing can be compared with them
                known = {path.resolve() for path in done}
                outcome.condemned += [f"{name}: {f}" for f, at in zip(said, places, strict=True) if at not in known]
            for path in done:
                path.write_bytes(sound[path])
    return outcome
