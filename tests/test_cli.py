"""The command line: what people are offered, what is said of a slip, and where a stage's log begins."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from viny.cli import BAD_INPUT, main, parser

PEOPLE = ("check", "init", "predict", "export", "plan", "status", "advise", "verify")


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
    assert set(commands()) - set(PEOPLE) <= set(re.findall(r"\w+", text.partition("stages")[2]))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["stauts"], "no command is called 'stauts'; did you mean 'status'?"),
        (["xyzzy"], "no command is called 'xyzzy' `viny --help` lists all"),
        (["init", "x", "--unlabeled", "y"], "unrecognized arguments: --unlabeled y; did you mean --unlabelled?"),
        (["check", "a.yaml", "--shwo"], "did you mean --show?"),
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
