"""A study whose trainings share processes on GPUs; only the GPUs' names are shared out, so none is needed here."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

pytest.importorskip("snakemake", reason="the workflow needs Snakemake; the library does not")
from test_workflow import REPOSITORY, planned, snakemake, write_study

CELLS = {"grid__pretrain_sizes": [0], "grid__intermediates": ["none"], "grid__finetune_sizes": [8]}


@pytest.fixture(autouse=True)
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("shares out GPUs that are not there, which a real driver would refuse")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")


def requests(folder: Path, *arguments: str | Path) -> dict[str, dict[str, int]]:
    """Threads and resources of a job of each rule, as a dry run shows them."""
    said = snakemake(folder, "-n", *arguments).stdout
    found: dict[str, dict[str, int]] = {}
    for block in re.split(r"^ *(?:local)?rule (?=\w+:$)", said, flags=re.MULTILINE)[1:]:
        rule, _, block = block.partition(":")
        block = block.partition("\n\n")[0]
        pairs = re.findall(r"\b(threads|gpu|stacked|short)[=:] ?(\d+)", block)
        found[rule] = {name: int(value) for name, value in pairs}
    return found


def test_trainings_take_no_cores_only_where_they_are_stacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = write_study(tmp_path, compute__device="auto", compute__train_threads=2)
    stacked = requests(tmp_path, "--cores", "4", "--configfile", study)
    for rule in ("pretrain", "intermediate", "finetune"):
        assert stacked[rule] == {"threads": 0, "gpu": 1, "stacked": 1} or stacked[rule] == {"gpu": 1, "stacked": 1}
    for rule in ("evaluate", "geometry"):
        assert stacked[rule] == {"threads": 2, "gpu": 1, "short": 1}
    alone = {"threads": 2, "gpu": 1}
    apart = write_study(tmp_path, compute__device="auto", compute__train_threads=2, compute__stack=1)
    computing = ("pretrain", "intermediate", "finetune", "evaluate", "geometry")
    assert [requests(tmp_path, "--cores", "4", "--configfile", apart)[rule] for rule in computing] == [alone] * 5
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    study = write_study(tmp_path, compute__device="auto", compute__train_threads=2)
    assert [requests(tmp_path, "--cores", "4", "--configfile", study)[rule] for rule in computing] == [alone] * 5


def test_nothing_changes_on_a_cluster(tmp_path: Path) -> None:
    pytest.importorskip("snakemake_executor_plugin_slurm")
    study = write_study(tmp_path, compute__device="auto", compute__train_threads=2)
    found = requests(tmp_path, "--profile", REPOSITORY / "slurm", "--configfile", study)
    for rule in ("pretrain", "intermediate", "finetune", "evaluate", "geometry"):
        assert found[rule] == {"threads": 2, "gpu": 1}


@pytest.mark.slow
def test_a_study_with_stacks_has_the_results_of_one_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # all but one have to wait
    changes: dict[str, Any] = {**CELLS, "compute__device": "auto", "grid__seeds": [0, 1, 2, 3, 4]}
    for name, more in (("stacked", {}), ("apart", {"compute__stack": 1})):
        (tmp_path / name).mkdir()
        study = write_study(tmp_path / name, **changes, **more)
        snakemake(tmp_path / name, "--cores", "2", "--configfile", study, "--until", "evaluate")
    weights = {path.parent.name: path for path in tmp_path.glob("apart/results/tiny/finetune/*/model.safetensors")}
    assert len(weights) == 5
    root = tmp_path / "stacked" / "results" / "tiny"
    for cell, path in weights.items():
        mine, theirs = load_file(root / "finetune" / cell / "model.safetensors"), load_file(path)
        assert mine.keys() == theirs.keys()
        assert all(np.allclose(mine[key], theirs[key], atol=1e-4) for key in mine)
        log = (root / "logs" / "finetune" / f"{cell}.log").read_text()
        assert log.startswith("$ python -m viny finetune ")
        assert "finetune: 8 images" in log and "loss" in log
    # At least one was handed to another's process.
    logs = [(root / "logs" / "finetune" / f"{cell}.log").read_text() for cell in weights]
    taken = [re.findall(r"^finetune: process (\d+) on \S+ takes it in, on GPU (\d)$", log, re.MULTILINE) for log in logs]
    assert any(taken) and not all(taken)
    assert not list((root / "checkpoints").glob("*/*"))
    assert [path.name for path in (root.parent / ".gpus").glob("*/*")] == ["stacks"]


@pytest.mark.slow
def test_a_leader_that_is_killed_costs_its_own_cell_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    changes = {"compute__device": "auto", "compute__checkpoint_minutes": 0.001, "finetune__epochs": 1500}
    study = write_study(tmp_path, **CELLS, **changes, grid__seeds=[0, 1, 2])
    command = [sys.executable, "-m", "snakemake", "-s", REPOSITORY / "Snakefile", "--cores", "2", "--configfile", study]
    with open(tmp_path / "said.txt", "w") as out:
        driver = subprocess.Popen(command, cwd=tmp_path, stdout=out, stderr=out, env=os.environ)
    root = tmp_path / "results" / "tiny"
    try:
        end = time.monotonic() + 240
        while not (found := [m[1] for m in map(_leader, root.glob("logs/finetune/*.log")) if m]):
            assert time.monotonic() < end and driver.poll() is None, (tmp_path / "said.txt").read_text()[-3000:]
            time.sleep(0.1)
        os.kill(int(found[0]), signal.SIGKILL)
        assert driver.wait(400) == 1
    finally:
        driver.kill()
        driver.wait()
    said = (tmp_path / "said.txt").read_text()
    lost = re.findall(r"^finetune (\S+): ", said[said.index("Not done:") :], re.MULTILINE)
    assert len(lost) == 1
    done = {path.parent.name for path in root.glob("finetune/*/run.json")}
    assert len(done) == 2 and lost[0] not in done
    assert planned(tmp_path, "--configfile", study, "--until", "finetune") == {"finetune": 1}
    snakemake(tmp_path, "--cores", "2", "--configfile", study, "--until", "finetune")
    runs = {path.parent.name: json.loads(path.read_text()) for path in root.glob("finetune/*/run.json")}
    assert len(runs) == 3 and runs[lost[0]]["cuda_visible_devices"] == "0"


def _leader(log: Path) -> re.Match[str] | None:
    return re.search(r"^finetune: process (\d+) on \S+ takes it in", log.read_text(), re.MULTILINE)
