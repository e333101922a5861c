"""Waiting for the Slurm jobs of a dead run, with a stand-in for squeue; tests/slurm uses the real one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from viny.runtime.slurm import active_jobs, complaint, name_file, wait_for_jobs


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file whose lines a stand-in for squeue shows, one fewer per call; its arguments go to 'asked'."""
    program = tmp_path / "bin" / "squeue"
    program.parent.mkdir()
    lines = tmp_path / "queue"
    lines.write_text("")
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\ncat {lines}\nsed -i 1d {lines}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return lines


def test_waits_until_no_job_is_left(queue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    queue.write_text("17 RUNNING\n18 PENDING\n", encoding="utf-8")
    name_file(tmp_path).write_text("viny_demo_1\n")
    assert wait_for_jobs(tmp_path, poll=0)
    assert "2 Slurm jobs of an earlier run" in capsys.readouterr().out
    assert (tmp_path / "asked").read_text().splitlines() == ["--noheader --name viny_demo_1 --format %i %T"] * 3


@pytest.mark.parametrize("text", ["viny_demo_1\n", "", None])
def test_nothing_to_wait_for(text: str | None, queue: Path, tmp_path: Path) -> None:
    if text is not None:
        name_file(tmp_path).write_text(text)
    assert not wait_for_jobs(tmp_path)


def test_without_squeue_there_are_no_jobs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert active_jobs("viny_demo_1") == []


def test_slurm_s_own_word_for_the_end_of_a_job(tmp_path: Path) -> None:
    assert complaint(tmp_path / "nowhere") == ""
    (tmp_path / "3.log").write_text(
        "Building DAG\nslurmstepd-n1: error: *** STEP 3.0 CANCELLED ***\nslurmstepd: error: x\n"
    )
    os.utime(tmp_path / "3.log", (1, 1))
    assert complaint(tmp_path) == "*** STEP 3.0 CANCELLED ***"
    (tmp_path / "12.log").write_text("Building DAG\n")  # the newest attempt
    assert complaint(tmp_path) == ""


@pytest.mark.parametrize("name", ["", "-x", "a b", "a;rm -r .", "a\n", "a\0", "\x1b[2J", "x" * 300])
def test_a_name_that_no_run_has_is_not_asked_for(name: str, queue: Path, tmp_path: Path) -> None:
    queue.write_text("17 RUNNING\n", encoding="utf-8")
    assert active_jobs(name) == []
    assert not (tmp_path / "asked").exists()
