"""The documentation is true: generated pages, links, commands, messages, and the worked examples."""

from __future__ import annotations

import argparse
import inspect
import json
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from tiny_study import Study

from viny.cli import main, parser
from viny.commands import stages
from viny.data.packing import build_pack
from viny.data.pairs import pair
from viny.data.synthetic import SEGMENTATION_CLASSES
from viny.evidence import duplicates, tables
from viny.evidence.paper import scorecard
from viny.evidence.statistics import costs, effects, fits, gains, representations, transfer
from viny.evidence.summary import Summary
from viny.learning.progress import ProgressReport
from viny.learning.run import CURVE_COLUMNS
from viny.runtime.fingerprint import ENTRY
from viny.study.config import resolve
from viny.study.grid import Cell
from viny.study.reading import read_config
from viny.study.reference import config_reference
from viny.study.specs import pack_spec

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
PAGES = sorted([REPOSITORY / "README.md", REPOSITORY / "results" / "README.md", *DOCS.glob("*.md")])
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language, without their indent."""
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [textwrap.dedent(text) for _, kind, text in found if kind == language]


def names(pages: list[Path]) -> list[str]:
    return [str(page.relative_to(REPOSITORY)) for page in pages]


def test_the_reference_of_settings_is_current() -> None:
    said = "run: python -m viny.study.reference docs/config.md"
    assert (DOCS / "config.md").read_text(encoding="utf-8") == config_reference(), said


def test_the_reference_has_every_key_of_the_schema() -> None:
    text = (DOCS / "config.md").read_text(encoding="utf-8")
    resolved = resolve({"study": "x", "grid": {"intermediates": ["none", "pets_spatial"]}})
    for key, value in resolved.items():
        if key == "intermediate":
            keys = [f"intermediate.<task>.{inner}" for inner in value["pets_spatial"]]
        else:
            keys = [f"{key}.{inner}" for inner in value] if isinstance(value, dict) else [key]
        for name in keys:
            assert f"| `{name}` |" in text, name


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes from a page's headings."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_links_lead_to_files_and_to_headings(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http://", "https://")):
            continue
        file, _, heading = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        if heading:
            assert heading in anchors(target), link


def test_the_index_leads_to_every_page() -> None:
    text = (DOCS / "README.md").read_text(encoding="utf-8")
    for page in DOCS.glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in text, page.name


def commands() -> dict[str, argparse.ArgumentParser]:
    action = next(a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices) | {stage: stages.parser(stage) for stage in ENTRY}


def shown(page: Path) -> Iterator[str]:
    """What follows `viny` in a page's code: a line of a block, or a piece of code in the text."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    code = [line for _, _, block in FENCE.findall(text) for line in block.splitlines()]
    code += [" ".join(piece.split()) for piece in re.findall(r"`([^`]+)`", FENCE.sub("", text))]
    for line in code:
        if match := re.match(r"\s*(?:\$ )?(?:python -m )?viny (.+)", line):
            yield re.split(r" #| \| | > | && ", match[1])[0]


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_commands_and_flags_that_are_shown_exist(page: Path) -> None:
    known = commands()
    for line in shown(page):
        name, *rest = line.split()
        if name.startswith(("-", "<")):
            assert name in ("--help", "--version", "<command>"), line
            continue
        assert name in known, line
        flags = {flag for word in rest for flag in re.findall(r"^\[?(--[\w-]+)", word)}
        assert flags <= {*known[name]._option_string_actions}, line


def test_commands_of_which_the_pages_speak_are_found() -> None:
    found = {line.split()[0] for page in PAGES for line in shown(page)}
    assert {"check", "verify"} <= found


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_studies_that_are_shown_resolve(page: Path) -> None:
    for block in blocks(page, "yaml"):
        study = yaml.safe_load(block)
        if isinstance(study, dict):
            resolve({"study": "shown", **study})


def text_of(*patterns: str, root: Path = REPOSITORY) -> str:
    """The text of programs, with strings that span several lines joined."""
    files = sorted(path for pattern in patterns for path in root.glob(pattern))
    return re.sub(r'"\s*\n\s*f?"', "", "\n".join(path.read_text(encoding="utf-8") for path in files))


def test_messages_to_be_looked_up_are_the_programs_own() -> None:
    snakemake = Path(pytest.importorskip("snakemake", reason="some of the messages are Snakemake's").__file__).parent
    ours, theirs = text_of("src/**/*.py", "workflow/rules/*.smk"), text_of("**/*.py", root=snakemake)
    found = 0
    for section in (DOCS / "troubleshooting.md").read_text(encoding="utf-8").split("\n## ")[1:]:
        if section.startswith("What the system says"):
            continue
        text = theirs if section.startswith("What Snakemake says") else ours
        for message in re.findall(r"^\| `([^`]+)`", section, re.MULTILINE):
            for piece in re.split(r"<[^>]+>", message):
                assert piece.strip() in text, f"{piece.strip()!r} of {message!r}"
            found += 1
    assert found >= 40


def documented(mark: str) -> set[str]:
    """The names in the first column of the table of docs/results.md that follows a mark."""
    text = (DOCS / "results.md").read_text(encoding="utf-8").split(f"<!-- {mark} -->\n")[1].split("\n\n")[0]
    return {name for line in text.splitlines()[2:] for name in re.findall(r"`([^`]+)`", line.split("|")[1])}


def test_files_of_a_cell_hold_the_documented_keys(tmp_path: Path) -> None:
    study = Study(tmp_path, resolve(read_config(REPOSITORY / "tests" / "tiny.yaml")))
    cell = Cell(0, "none", 8, 0)
    record = study.finetune(cell, None)
    metrics = study.evaluate(cell, record)
    run = json.loads(record.with_name("run.json").read_text())
    assert documented("keys: model.json") == set(json.loads(record.read_text()))
    assert documented("keys: run.json") == set(run)
    assert documented("keys: metrics.json") == set(metrics)
    assert set(metrics["provenance"]) < set(run)
    Summary("tables", {}, tmp_path).write(tmp_path / "summary.json", [])
    assert documented("keys: summary.json") == set(json.loads((tmp_path / "summary.json").read_text()))
    classes = {f"iou_{name}" for name in SEGMENTATION_CLASSES}
    assert documented("keys: metrics") == set(metrics["metrics"]) - classes | {"iou_<class>"}
    curve = pd.read_csv(record.with_name("curve.csv"))
    assert documented("keys: progress.json") == {field.name for field in fields(ProgressReport)}
    assert documented("columns: curve.csv") == set(curve.columns) == set(CURVE_COLUMNS)


def test_tables_have_the_documented_columns() -> None:
    known = {
        "metrics.csv": {*tables.BEFORE, *tables.AFTER},
        "summary.csv": {*tables.GROUP, "n"},
        "paired_differences.csv": {*tables.KEYS, "difference"},
        "effects.csv": set(effects.EFFECTS),
        "decisions.csv": set(effects.DECISIONS),
        "marginal_gains.csv": set(gains.GAINS),
        "fits.csv": set(fits.FITS),
        "transfer.csv": set(transfer.TRANSFER),
        "costs.csv": set(costs.COSTS),
        "harm.csv": set(re.findall(r'"(\w+)"', inspect.getsource(representations))),
        "scorecard.csv": set(scorecard.COLUMNS),
        "duplicates.csv": set(duplicates.COLUMNS),
    }
    text = (DOCS / "results.md").read_text(encoding="utf-8").split("## `tables/`")[1]
    for name, columns in known.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}`"))
        said = {column for column in re.findall(r"`([^`]+)`", row.split("|")[3]) if column.strip("_*").isidentifier()}
        said = {column for column in said if not column.startswith("_") and not column.endswith("*")}
        assert said, name
        assert said <= columns, (name, said - columns)


def test_pages_for_newcomers_are_short() -> None:
    assert len((DOCS / "own-data.md").read_text(encoding="utf-8").split()) <= 900
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 75
    before = readme.split("](docs/figures/")[0]
    assert before != readme and len(before.splitlines()) <= 20, "the first result and its picture on the first screen"
    assert {"snakemake", "workflow"} <= {
        *readme.lower().split()
    }  # without them the workflow catalogue does not list it


SHOWN = re.compile(r"^```\n(viny [^\n]+(?:\n[^\n]+)*?)\n```\n\n```\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def outputs(page: Path) -> dict[str, list[str]]:
    """The commands of a page, each alone in a block, and the lines of output that the next block shows of it."""
    found = SHOWN.findall(page.read_text(encoding="utf-8"))
    return {command: [line for line in text.splitlines() if line.strip("., ")] for command, text in found}


def said(command: str, capsys: pytest.CaptureFixture[str], *more: str) -> list[str]:
    capsys.readouterr()
    assert main([*shlex.split(command)[1:], *more]) == 0, command
    return capsys.readouterr().out.splitlines()


def test_chances_are_shown_as_the_command_prints_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    (command, lines), *_ = [item for item in outputs(DOCS / "sizes.md").items() if item[0].startswith("viny power")]
    assert len(lines) >= 6
    printed = said(command, capsys)
    for line in lines:  # a processor's rounding decides a simulated study or two otherwise
        assert any(
            shape(line) == shape(other) and numbers(line) == pytest.approx(numbers(other), abs=1) for other in printed
        )


def numbers(line: str) -> list[float]:
    return [float(text.replace(",", "")) for text in re.findall(r"\d[\d,.]*", line)]


def shape(line: str) -> str:
    """A line but for its numbers and spaces, which the machine and the images make."""
    return re.sub(r"[\d.,]+|\s+", "", re.sub(r"\b(min|h|s|kB|MB|GB|k|M|G|T)\b", "", line))


@pytest.mark.slow
def test_the_worked_example_is_shown_as_its_commands_print_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    script = [sys.executable, REPOSITORY / "examples" / "own_data.py", "data/own"]
    subprocess.run([*script, "--unlabelled", "20", "--scenes", "6"], check=True, timeout=300)
    compared = 0
    for command, lines in outputs(DOCS / "own-data.md").items():
        if command.split()[1] not in ("init", "plan"):
            continue  # needs a study that has run, as benchmarks/worked_example.py has
        printed = {shape(line) for line in said(command, capsys, "--rate", "200")}
        for line in lines:
            if re.match(r"[A-Z][^?]+\?  |Only time is lacking", line):
                continue  # with fewer images and at another rate other questions stay open
            assert shape(line) in printed, line
            compared += 1
    assert compared >= 10


def edited(root: Path, diff: str) -> None:
    """Apply a diff block whose first line is a path; its text is there once, or once without indent within a line."""
    path, *lines = diff.splitlines()
    old, new = ("\n".join(line[1:] for line in lines if line[0] == sign) for sign in "-+")
    file = root / path.strip()
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{path.strip()} holds this {text.count(old)} times:\n{old}"
    file.write_text(text.replace(old, new), encoding="utf-8")


def test_the_worked_examples_of_extending_run(tmp_path: Path) -> None:
    page = DOCS / "extending.md"
    for folder in ("src/viny",):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    tests = tmp_path / "tests"
    tests.mkdir()
    for name in ("conftest.py", "tiny_study.py", "tiny.yaml"):
        shutil.copy(REPOSITORY / "tests" / name, tests)
    for diff in blocks(page, "diff"):
        edited(tmp_path, diff)
    written = []
    for block in blocks(page, "python"):
        match = re.match(r"# (tests/\w+/\w+\.py)\n", block)
        assert match is not None, block
        (tmp_path / match[1]).parent.mkdir(exist_ok=True)
        (tmp_path / match[1]).write_text(block.removeprefix(match[0]), encoding="utf-8")
        written.append(match[1])
    assert len(written) == 2
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *written]
    env = {"PATH": "", "PYTHONPATH": str(tmp_path / "src"), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "4 passed" in done.stdout


@pytest.mark.parametrize(("classes", "values"), [(2, {0, 255}), (11, {*range(11), 255})])
def test_the_example_of_own_data_writes_pairs_that_its_study_reads(
    tmp_path: Path, classes: int, values: set[int]
) -> None:
    folder = tmp_path / "own"
    script = [sys.executable, REPOSITORY / "examples" / "own_data.py", folder, "--classes", str(classes)]
    script += ["--images", "60", "--unlabelled", "4", "--scenes", "12"]
    subprocess.run(script, check=True, timeout=120)
    found = pair(folder / "images", folder / "masks")
    assert (len(found.images), found.report()) == (60, [])
    assert len({Image.open(path).size for path in found.images}) > 2
    seen = {int(value) for path in found.masks for value in np.unique(np.asarray(Image.open(path)))}
    assert seen == values
    again = subprocess.run(script, capture_output=True, text=True, timeout=120)
    assert (again.returncode, "there already" in again.stderr) == (2, True)
    study = read_config(REPOSITORY / "examples" / "own_data.yaml")
    own = study["segmentation"] | {"images": str(folder / "images"), "masks": str(folder / "masks")}
    if classes == 11:
        own |= {"classes": 11, "ignore": 255}
    spec = pack_spec(resolve(study | {"segmentation": own}), "segmentation")
    masks = folder / "pack"
    masks.mkdir()
    manifest = build_pack({**spec, "size": 24}, masks, threads=1)
    assert (manifest["count"], len(manifest["mask_classes"])) == (60, classes)
