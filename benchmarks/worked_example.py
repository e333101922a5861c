"""Run the worked example of docs/own-data.md as it stands there, and print what each of its commands printed.

    python benchmarks/worked_example.py [--folder FOLDER]

It takes the minutes that the page gives the study, and some more.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs" / "own-data.md"
COPIED = ("src", "workflow", "profiles", "envs", "examples", "Snakefile", "config.yaml")
BLOCK = re.compile(r"^```\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HALF = 0.5  # of the training done when the page asks for the state


def commands(page: str) -> list[list[str]]:
    """The page's blocks of commands, in order, without comments."""
    found = []
    for block in BLOCK.findall(page):
        lines = [re.split(r"\s{2,}#", line)[0].strip() for line in block.splitlines()]
        if all(line.split(" ")[0] in ("viny", "snakemake") for line in lines if line):
            found.append([line for line in lines if line])
    return found


def run(line: str, folder: Path) -> str:
    """What a command prints, errors too."""
    print(f"$ {line}", flush=True)
    done = subprocess.run(
        shell(line),
        cwd=folder,
        env=surroundings(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    print(done.stdout, flush=True)
    if done.returncode not in (0, 1):
        sys.exit(f"{line}: exit code {done.returncode}")
    return done.stdout


def shell(line: str) -> list[str]:
    return ["bash", "-c", re.sub(r"^(viny|snakemake) ", rf"{sys.executable} -m \1 ", line)]


def surroundings(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(folder / "src")}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--folder", type=Path, help="to run it in, new or empty (default: a temporary one)")
    args = p.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="worked-example-"))
    for name in COPIED:
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    subprocess.run([sys.executable, "examples/own_data.py", "data/own"], cwd=folder, check=True)
    best = "CELL"
    for block in commands(PAGE.read_text(encoding="utf-8")):
        began = time.time()
        if block[0].startswith("snakemake"):
            study = subprocess.Popen(
                shell(block[0]),
                cwd=folder,
                env=surroundings(folder),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            while study.poll() is None and progress(folder) < HALF:
                time.sleep(5)
            run(f"{block[1]} --no-watch", folder)
            code = study.wait()
            print(f"{block[0]}: exit code {code} after {(time.time() - began) / 60:.1f} minutes\n", flush=True)
            continue
        for line in block:
            run(line.replace("CELL", best), folder)
            if line.startswith("viny advise"):
                said = run(f"{line} --long", folder)
                best = next(iter(re.findall(r"`(pre-\S+_seed-\d+)`", said)), best)


def progress(folder: Path) -> float:
    """The share of a run's training that is done."""
    said = subprocess.run(
        shell("viny status results/mine --json"),
        cwd=folder,
        env=surroundings(folder),
        capture_output=True,
        encoding="utf-8",
    ).stdout
    try:
        state = json.loads(said)
        return state["image_passes_done"] / state["image_passes"]
    except (ValueError, KeyError, TypeError, ZeroDivisionError):
        return 0.0


if __name__ == "__main__":
    main()
