"""Files are read without waiting and written whole, as UTF-8."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from viny.runtime.errors import InputError
from viny.runtime.files import TAIL, last_lines, open_file, read_json, write_json, write_text
from viny.runtime.slurm import complaint, job_name, name_file, wait_for_jobs


def pipe(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


ODD = [pipe, folder, link_to_a_device, link_to_itself]


@pytest.mark.parametrize("make", ODD)
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, make: object) -> None:
    path = tmp_path / "odd"
    make(path)
    for read in (open_file, last_lines):
        with pytest.raises(OSError, match="odd"):
            read(path)
    with pytest.raises(InputError, match=r"odd: cannot be read .*expected a record"):
        read_json(path, "a record")


@pytest.mark.parametrize("make", ODD)
def test_an_odd_note_or_log_of_slurm_s_is_passed_over(tmp_path: Path, make: object) -> None:
    make(name_file(tmp_path))
    assert not wait_for_jobs(tmp_path)
    (tmp_path / "logs").mkdir()
    make(tmp_path / "logs" / "1.log")
    assert complaint(tmp_path / "logs") == ""


def test_a_name_is_read_as_it_was_written(tmp_path: Path) -> None:
    name_file(tmp_path).write_text("run_study_1\n", encoding="utf-8")
    assert job_name(tmp_path) == "run_study_1"


def test_only_the_end_of_a_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with open(log, "wb") as f:
        f.seek(1 << 40)  # a hole: reading it all would take a terabyte
        f.write(b"\nthe last \xff word\n")
    lines = last_lines(log)
    assert lines[-1] == "the last \ufffd word"
    assert sum(map(len, lines)) <= TAIL


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, "\udcff", "", "{"])
def test_json_that_makes_its_reader_fail_is_a_message(tmp_path: Path, text: str) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"record\.json: not valid JSON .*expected a record"):
        read_json(path, "a record")


def test_text_is_utf_8_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a" / "text.md"
    write_text(path, "± 1\n")
    assert path.read_bytes() == b"\xc2\xb1 1\n"
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half \ud800")
    assert path.read_bytes() == b"\xc2\xb1 1\n"
    assert [*path.parent.iterdir()] == [path]
    write_json(path, {"a": "é"})
    assert json.loads(path.read_bytes()) == {"a": "é"}
