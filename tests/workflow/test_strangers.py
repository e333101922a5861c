"""A study file of somebody else's runs nothing, however Snakemake is given it, and its text stays text in reports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("snakemake")

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "tests" / "tiny.yaml").read_text(encoding="utf-8")
CODE = "__import__('pathlib').Path('PWNED').touch()"


def snakemake(folder: Path, *arguments: str) -> str:
    """A dry run that is refused; returns what it said."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "1", "-n"]
    done = subprocess.run([*command, *arguments], cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    path = tmp_path / "evil.yaml"
    note = TEXT.replace('note: "Test study."', f'note: "?{CODE}"')
    path.write_text(f"{note}\n__use_yte__: true\n__definitions__:\n  - {json.dumps(CODE)}\n")
    assert CODE in note
    return path


@pytest.mark.parametrize("given", [["evil.yaml"], ["good.yaml", "evil.yaml"], ["evil.json"], ["merged.yaml"], []])
def test_code_in_a_study_file_is_refused_and_not_run(tmp_path: Path, evil: Path, given: list[str]) -> None:
    (tmp_path / "good.yaml").write_text(TEXT)
    (tmp_path / "evil.json").write_text(json.dumps({"__use_yte__": True, "study": f"?{CODE}"}))
    (tmp_path / "merged.yaml").write_text(f"<<: {{__use_yte__: true}}\nstudy: \"?{CODE}\"\n")
    if not given:
        evil.rename(tmp_path / "config.yaml")
    said = snakemake(tmp_path, *(["--configfile", *given] if given else []))
    assert "__use_yte__: a study file holds settings and no code; take it out" in said
    assert not (tmp_path / "PWNED").exists()


def test_without_the_profile_it_is_refused_too_if_late(tmp_path: Path, evil: Path) -> None:
    """Snakemake has evaluated it then, as SECURITY.md says."""
    said = snakemake(tmp_path, "--workflow-profile", "none", "--configfile", evil.name)
    assert "__use_yte__: a study file holds settings and no code; take it out" in said


def test_what_check_refuses_snakemake_refuses_with_the_same_words(tmp_path: Path) -> None:
    (tmp_path / "twice.yaml").write_text(f"{TEXT}\nstudy: other\n")
    said = snakemake(tmp_path, "--configfile", "twice.yaml")
    assert "the key 'study' is given twice; keep one of them" in said
