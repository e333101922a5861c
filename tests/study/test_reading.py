"""Study files are read as plain values, YAML or JSON, by `viny` and by Snakemake alike."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path

import pytest

from viny.runtime.errors import InputError
from viny.study.reading import only_data, read_config


@pytest.mark.parametrize(
    "text",
    ["__use_yte__: true\nstudy: x", "__use_yte__: false", '{"__use_yte__": true}', "<<: {__use_yte__: 1}\nstudy: x"],
)
def test_a_file_that_asks_for_its_code_to_be_run_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"study\.yaml: __use_yte__: a study file holds settings and no code"):
        read_config(path)


def test_json_numbers_are_numbers(tmp_path: Path) -> None:
    """YAML 1.1 takes 1e-3 for text, and a tab before a key for a mistake."""
    path = tmp_path / "study.json"
    path.write_text('{\n\t"study": "x",\n\t"finetune": {"lr": 1e-3}\n}')
    assert read_config(path) == {"study": "x", "finetune": {"lr": 0.001}}


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', "a: 1\na: 2", '{"b": {"a": 1, "a": 2}}'])
def test_a_key_given_twice_is_refused_in_either(text: str, tmp_path: Path) -> None:
    path = tmp_path / "study"
    path.write_text(text)
    with pytest.raises(InputError, match="'a' is given twice; keep one of them"):
        read_config(path)


def test_a_workflow_manager_reads_study_files_as_we_do_and_all_else_as_before(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("study: x\n")

    def theirs(file: object, filetype: str = "Config") -> str:
        return filetype

    read = only_data(theirs)
    assert read(path) == read(str(path)) == {"study": "x"}
    assert read(io.StringIO("a: 1"), filetype="Schema") == "Schema"
    assert only_data(read) is read  # a profile is read twice
    path.write_text("study: x\nstudy: y\n\x1b")
    with pytest.raises(SystemExit, match="The study's settings are at fault") as stop:
        read(path)
    assert "\x1b" not in str(stop.value)


def test_a_study_file_is_a_file_of_bounded_size(tmp_path: Path) -> None:
    """Or the pipe of a shell's <(...); a named pipe may never have a writer, and a device no end."""
    os.mkfifo(tmp_path / "study.yaml")
    for path in (tmp_path / "study.yaml", Path("/dev/zero"), tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_config(path)
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * 10_000_001)
    with pytest.raises(InputError, match="more than 10,000,000 bytes"):
        read_config(large)
    large.write_bytes(b"[" * 5000)
    with pytest.raises(InputError, match="inside each other"):
        read_config(large)
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as f:
        thread = threading.Thread(target=lambda: (f.write(b"study: x\n"), f.close()))
        thread.start()
        assert read_config(f"/dev/fd/{reader}") == {"study": "x"}
        thread.join()
    os.close(reader)
