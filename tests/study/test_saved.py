"""The settings next to a study's results: written, read back, and refused if they were changed."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

pytest.importorskip("jsonschema")

from viny.runtime.errors import InputError
from viny.runtime.files import digest
from viny.study.config import resolve
from viny.study.reading import read_config
from viny.study.saved import read_study, saved_study, study_file, write_study

TINY = Path(__file__).parents[1] / "tiny.yaml"
OLDER = Path(__file__).parents[1] / "older_study.json"  # what a run of tests/tiny.yaml wrote at commit 12ee0d7


def test_settings_are_read_back(tmp_path: Path) -> None:
    config = resolve(read_config(TINY))
    assert write_study(tmp_path / "results" / "tiny", config) == digest(config)
    assert read_study(tmp_path / "results" / "tiny") == config
    written = json.loads((tmp_path / "results" / "tiny" / "study.json").read_text())
    assert written == {"config": config, "sha256": digest(config)}


def test_changed_settings_are_refused(tmp_path: Path) -> None:
    write_study(tmp_path, resolve(read_config(TINY)))
    path = study_file(tmp_path)
    path.write_text(path.read_text().replace('"epochs": 3', '"epochs": 4'))
    with pytest.raises(InputError, match=r"study\.json: expected settings with sha256 [0-9a-f]{12}, found"):
        read_study(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "{}", '{"config": {}}', '{"config": [], "sha256": null}', "[" * 100_000]
)
def test_what_are_no_settings_is_refused(tmp_path: Path, text: str) -> None:
    study_file(tmp_path).write_text(text)
    with pytest.raises(InputError, match=r"study\.json: "):
        read_study(tmp_path)


def test_missing_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"study\.json: no such file; expected a study's settings"):
        read_study(tmp_path)


def test_a_wrong_folder_is_answered_with_what_is_there(tmp_path: Path) -> None:
    write_study(tmp_path / "results" / "mine", {"study": "mine"})
    with pytest.raises(InputError, match=r"no such file; .* --configfile studies/<study>.yaml; in .*results are mine"):
        read_study(tmp_path / "results" / "mien")
    (tmp_path / "mine.yaml").write_text("study: mine")
    with pytest.raises(InputError, match="is a file; expected the folder of a study's results"):
        read_study(tmp_path / "mine.yaml")


@pytest.mark.parametrize("lacking", [(), ("duplicates", "note"), ("compute.jobs_per_gpu", "figures.examples")])
def test_an_older_study_is_completed_with_todays_defaults(tmp_path: Path, lacking: tuple[str, ...]) -> None:
    config = json.loads(OLDER.read_text())["config"]
    for key in lacking:
        *sections, last = key.split(".")
        del functools.reduce(dict.__getitem__, sections, config)[last]
    write_study(tmp_path / "results" / "tiny", config)
    today = resolve(read_config(TINY))
    found = saved_study(tmp_path / "results" / "tiny")
    assert found["duplicates"] == today["duplicates"]
    assert found["figures"]["examples"] == (4 if "figures.examples" in lacking else today["figures"]["examples"])
    assert found == resolve(found)


def test_a_study_of_settings_that_are_no_more_is_refused_by_its_file(tmp_path: Path) -> None:
    root = tmp_path / "results" / "tiny"
    write_study(root, json.loads(OLDER.read_text())["config"] | {"gone": 1})
    with pytest.raises(InputError, match=r"study\.json: unknown key 'gone'"):
        saved_study(root)
