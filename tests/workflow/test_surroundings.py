"""Runs in the world as it is: odd paths, an inherited environment, read-only folders, settings on the command line."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_workflow import REPOSITORY, TINY, planned, snakemake, write_study

pytest.importorskip("snakemake", reason="the workflow needs Snakemake; the library does not")

ONE = ("--until", "split", "--cores", "1")  # packs and splits: seconds, and no training


def said(done: subprocess.CompletedProcess[str]) -> str:
    text = done.stdout + done.stderr
    assert "Traceback" not in text, text[-3000:]
    return text


@pytest.mark.parametrize("name", ["study {2026} of x", "{'$d\" äöü*[x]?#"])
def test_a_clone_may_have_an_odd_path(tmp_path: Path, name: str) -> None:
    clone = tmp_path / name
    for part in ("workflow", "profiles", "envs"):
        shutil.copytree(REPOSITORY / part, clone / part)
    shutil.copy(REPOSITORY / "Snakefile", clone)
    command = [sys.executable, "-m", "snakemake", "-s", clone / "Snakefile", "-n", "--configfile", TINY]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, said(done)


def test_braces_in_the_working_folder_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "study {2026}"
    folder.mkdir()
    done = snakemake(folder, "-n", "--configfile", TINY, check=False)
    assert done.returncode == 1
    assert f"{folder}: Snakemake takes braces in a path for wildcards" in said(done)


def test_a_study_runs_in_a_folder_with_an_odd_name_and_hostile_surroundings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a'b \"c\" $HOME `id` *[x] %s #1"
    folder.mkdir()
    for name in ("torch", "numpy", "viny"):
        (folder / f"{name}.py").write_text("raise SystemExit('the wrong one')", encoding="utf-8")
    for name, value in (("MPLBACKEND", "module://none"), ("SOURCE_DATE_EPOCH", "x"), ("PYTHONOPTIMIZE", "2")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # for Snakemake itself, which is started as a module here
    study = write_study(folder, pack_store="packs {of} all")
    snakemake(folder, *ONE, "--configfile", study)
    packs = {path.parent for path in (folder / "results" / "tiny" / "packs").rglob("images.npy") if path.is_file()}
    assert len(packs) == len(list((folder / "packs {of} all").iterdir())) == 3
    log = (folder / "results" / "tiny" / "logs" / "pack" / "pretrain.log").read_text(encoding="utf-8")
    assert "--store='packs {of} all'" in log or "'--store=packs {of} all'" in log


def test_what_is_nested_on_the_command_line_keeps_its_kind(tmp_path: Path) -> None:
    given = "grid={pretrain_sizes: [0], intermediates: [none], finetune_sizes: [8], seeds: [3]}"
    jobs = planned(tmp_path, "--configfile", TINY, "--config", given, "finetune={lr: 0.5}")
    assert jobs["finetune"] == 1
    done = snakemake(tmp_path, "-n", "--configfile", TINY, "--config", "grid={seeds: [x]}", check=False)
    assert "grid.seeds.0: expected integer, got 'x'" in said(done)


def test_results_and_packs_may_be_links_to_another_disk(tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    for name in ("results", "packs"):
        (tmp_path / "disk" / "deeper" / name).mkdir(parents=True)
        (folder / name).symlink_to(tmp_path / "disk" / "deeper" / name)
    snakemake(folder, *ONE, "--configfile", TINY)
    assert planned(folder, *ONE, "--configfile", TINY) == {}
    assert (folder / "results" / "tiny" / "packs" / "pretrain" / "images.npy").is_file()


@pytest.mark.parametrize("where", ["", "results"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, where: str) -> None:
    folder, site = tmp_path / "here", tmp_path / "site"
    folder.mkdir()
    site.mkdir()
    if where:
        (folder / where).symlink_to(tmp_path / "nowhere")
    else:  # as on a read-only disk; permissions would not stop root
        (site / "sitecustomize.py").write_text("import os\nos.access = lambda *_: False\n", encoding="utf-8")
    done = snakemake(folder, "-n", "--configfile", TINY, check=False, path=site)
    assert done.returncode == 1
    assert f"{folder / where}: cannot be written" in said(done)


def test_a_store_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "packs").symlink_to(tmp_path / "nowhere")
    done = snakemake(tmp_path, *ONE, "--configfile", TINY, check=False)
    assert done.returncode == 1
    assert "packs: no folder can be made there (File exists); set pack_store" in said(done)
