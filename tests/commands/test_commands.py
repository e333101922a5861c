"""The command line: what people are offered, what a slip is answered with, and how a stage's log begins."""

from __future__ import annotations

import argparse
import gc
import importlib
import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from viny.cli import BAD_INPUT, main, parser
from viny.commands import stages
from viny.commands.common import load, settings_of
from viny.runtime.errors import InputError
from viny.runtime.fingerprint import ENTRY
from viny.study.saved import write_study

ROOT = Path(__file__).parents[2]
PEOPLE = (
    "check",
    "init",
    "resize",
    "predict",
    "export",
    "plan",
    "power",
    "status",
    "advise",
    "mirror",
    "verify",
    "audit",
)


def commands() -> dict[str, argparse.ArgumentParser]:
    action = next(a for a in parser()._actions if isinstance(a.choices, dict))
    return dict(action.choices)


@pytest.mark.parametrize("name", PEOPLE)
def test_help_has_examples_that_the_command_takes(name: str) -> None:
    text = commands()[name].format_help()
    examples = [
        line.strip() for line in text.partition("examples:")[2].splitlines() if line.strip().startswith("viny ")
    ]
    assert examples
    assert "exit codes: 0 done" in text
    for line in examples:
        given = shlex.split(re.split(r" #| \|\| | && ", line)[0])[1:]
        assert parser().parse_args(given).command == name


def test_the_list_of_commands_is_for_people() -> None:
    text = parser().format_help()
    listed = re.findall(r"^    (\w+) +[A-Z]", text.partition("stages")[0], re.MULTILINE)
    assert sorted(listed) == sorted(PEOPLE)
    assert set(ENTRY) <= set(re.findall(r"\w+", text.partition("stages")[2]))


@pytest.mark.parametrize("stage", ENTRY)
def test_a_stage_takes_the_arguments_of_its_function(stage: str) -> None:
    module, name = ENTRY[stage].split(":")
    parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    flags = {action.dest: action for action in stages.parser(stage)._actions if action.dest != "help"}
    assert set(parameters) | {"threads"} == set(flags)
    for name, parameter in parameters.items():
        assert flags[name].required == (parameter.default is inspect.Parameter.empty)
        assert flags[name].help
        assert flags[name].required or flags[name].default == parameter.default


@pytest.mark.parametrize("stage", ENTRY)
def test_a_rule_names_the_files_of_its_stage(stage: str) -> None:
    """Every flag in a rule's shell line is one of its stage's, and all that the stage needs are there."""
    rules = "".join(path.read_text() for path in (ROOT / "workflow" / "rules").glob("*.smk"))
    line = re.search(rf'"exec python -m viny {stage} .*?2>&1"', rules, re.DOTALL)
    assert line is not None
    given = {flag.replace("-", "_") for flag in re.findall(r" --([\w-]+)", line[0])}
    found = [*stages.arguments(stage)[1]]
    assert given - {"spec", "threads"} <= {one.name for one in found}
    assert {one.name for one in found if one.required} <= given
    optional = {"threads", "checkpoint_minutes", *(["tuned"] if stage in ("pretrain", "intermediate") else [])}
    assert {one.name for one in found} - given <= optional


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["stauts"], "no command is called 'stauts'; did you mean 'status'?"),
        (["xyzzy"], "no command is called 'xyzzy' `viny --help` lists all"),
        (["init", "x", "--unlabeled", "y"], "unrecognized arguments: --unlabeled y; did you mean --unlabelled?"),
        (["check", "a.yaml", "--shwo"], "viny check: error: unrecognized arguments: --shwo; did you mean --show?"),
        (["status", "a", "--set", "note=x"], "unrecognized arguments: --set note=x; `viny status --help` lists"),
        (["status", "a", "--json=1", "--rate=3"], "--json"),
    ],
)
def test_a_slip_is_answered_with_what_may_be_meant(
    given: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(given)
    assert stop.value.code == BAD_INPUT
    said = capsys.readouterr().err
    assert words in said
    assert "pretrain" not in said


@pytest.mark.parametrize("name", ["advise", "verify"])
def test_changed_settings_are_those_of_named_files(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "results/none", "--set", "note=x"]) == BAD_INPUT
    assert "name these with --study" in capsys.readouterr().err


def test_check_takes_the_changes_that_plan_takes(capsys: pytest.CaptureFixture[str]) -> None:
    tiny = str(ROOT / "tests" / "tiny.yaml")
    assert main(["check", tiny, "--set", "grid.seeds=[0, 1, 2]"]) == 0
    assert "24 cells" in capsys.readouterr().out
    assert main(["check", tiny, "--set", "finetune.milestones=[3]"]) == BAD_INPUT


@pytest.mark.parametrize("name", PEOPLE)
def test_what_is_suggested_is_a_flag_of_that_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever flag of another command was given."""
    mine = set(commands()[name]._option_string_actions)
    for other in sorted({flag for one in commands().values() for flag in one._option_string_actions} - mine):
        hint = re.search(r"did you mean (--?\S+)\?", refused(name, other, capsys))
        assert hint is None or hint[1] in mine - {other}


def refused(name: str, flag: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What is said of a flag that a command does not know, after arguments that it needs."""
    needs = [one for one in commands()[name]._actions if one.required]
    given = [
        piece
        for one in needs
        for piece in [
            *one.option_strings[:1],
            *["1" for _ in range(max(1, one.nargs if isinstance(one.nargs, int) else 1))],
        ]
    ]
    with pytest.raises(SystemExit):
        parser().parse_args([name, *given, flag])
    return capsys.readouterr().err


def test_names_complete_in_a_shell(tmp_path: Path) -> None:
    line = "viny ver"
    asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    found = tmp_path / "found"
    code = (
        "import os, sys, argcomplete\n"
        f"os.dup2(os.open({str(found)!r}, os.O_CREAT | os.O_WRONLY), 8)\n"
        "from viny.cli import main\nmain([])\n"
    )
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **asked}, timeout=120)
    assert found.read_text().split() == ["verify"]


def test_garbage_is_collected_again_once_a_module_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "loaded.py").write_text("import gc\nMEANWHILE = gc.isenabled()\n", encoding="utf-8")
    (tmp_path / "faulty.py").write_text("1 / 0\n", encoding="utf-8")
    try:
        assert not load("loaded").MEANWHILE and gc.isenabled()
        with pytest.raises(ZeroDivisionError):
            load("faulty")
        assert gc.isenabled()
    finally:
        gc.unfreeze()


def test_data_that_is_not_there_yet_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    study = tmp_path / "study.yaml"
    study.write_text("study: x\ndata_root: nowhere\ngrid: {pretrain_sizes: [0], intermediates: [none, intel]}\n")
    assert main(["check", str(study)]) == 0
    said = capsys.readouterr().out
    assert "segmentation: no images at nowhere yet; sizes are not checked" in said
    assert "intel: no images at nowhere/intel yet" in said
    assert "pretrain:" not in said  # no cell is pre-trained


def test_a_folder_of_results_stands_for_its_settings(tmp_path: Path) -> None:
    """What the advice proposes has to be pasted, wherever the study's file lies."""
    file, root = ROOT / "tests" / "tiny.yaml", tmp_path / "tiny"
    root.mkdir()
    change = {"grid": {"seeds": [0, 1, 2]}, "pretrain": {"epochs": 9, "milestones": [4]}}
    write_study(root, {**settings_of([file]), "listings": {"pretrain": ""}})
    assert settings_of([root], [change]) == settings_of([file], [change])
    with pytest.raises(InputError, match=r"study\.json: no such file"):
        settings_of([tmp_path])
