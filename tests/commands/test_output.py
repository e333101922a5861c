"""What commands print reaches any terminal, and nothing in it moves that terminal's cursor."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.text import Text

from viny.cli import Log, main
from viny.commands.common import BAD_INPUT, SIGNALLED
from viny.tools import terminal

TINY = Path(__file__).parents[1] / "tiny.yaml"
EVIL = "\x1b]0;title\x07\x1b[2J\x9b1m"


def viny(*arguments: str, tail: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A command in a process of its own, perhaps with more of a shell's line after it."""
    line = f'"$0" -m viny "$@" {tail}'
    env = {**os.environ, **environment}
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}", sys.executable, *arguments],
        capture_output=True,
        env=env,
        timeout=120,
    )


def test_names_from_files_are_written_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"{EVIL}.yaml"
    path.write_text('"a\\e[2Jb": 1\nstudy: {"\\u202e": 1}\n')
    assert main(["check", str(path)]) == BAD_INPUT
    assert main(["check", str(path.with_suffix(".yml"))]) == BAD_INPUT
    said = capsys.readouterr().err
    assert r"\x1b]0;title\x07\x1b[2J\x9b1m.yml" in said
    assert r"a\x1b[2Jb" in said
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", said)


class Terminal(io.StringIO):
    """A terminal of its own colours."""

    def isatty(self) -> bool:
        return True


def test_a_console_writes_text_out_and_keeps_its_own_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", Log(screen))
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = terminal.console()
    out.print(Text(EVIL, style="red"))
    out.print(terminal.table(["[bold]name", "n"], [[f"[link=x]{EVIL}[/]", "1"], ["[/nothing]", ":smile:"]]))
    out.print(f"[red]{EVIL}")
    said = screen.getvalue()
    without = re.sub(r"\x1b\[[\d;]*m", "", said)
    assert "\x1b[31m" in said
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", without)
    assert without.count(r"\x1b") == 6
    assert all(word in without for word in ("[bold]name", "[link=x]", "[/nothing]", ":smile:", "[red]"))


def test_a_bar_of_progress_is_still_drawn_over_itself() -> None:
    screen = Terminal()
    Log(screen).write("\r 50 %|\r\x1b[2J")
    assert screen.getvalue() == "\r 50 %|\\r\\x1b[2J"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_an_encoding_lacks_is_written_out(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "ü✓.yaml"
    path.write_bytes(TINY.read_bytes())
    done = viny("check", str(path), str(tmp_path / "none✓.yaml"), PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert done.returncode == BAD_INPUT
    assert rb"none\u2713.yaml" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_reader_that_has_seen_enough_ends_a_command_quietly() -> None:
    """A pipe that is closed before the first word."""
    for arguments in (["check", str(TINY), "--show"], ["--help"], ["check", "none.yaml"]):
        done = viny(*arguments, tail="2>&1 | true" if "none.yaml" in arguments else "| true")
        assert done.returncode in (SIGNALLED + 13, 0), arguments
        assert done.stderr == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_output_that_a_full_disk_does_not_take_is_no_success() -> None:
    done = viny("check", str(TINY), tail="> /dev/full")
    assert done.returncode == 1
    assert b"No space left" in done.stderr
    assert b"Traceback" not in done.stderr
