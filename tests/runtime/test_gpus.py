"""GPUs shared out among local jobs; only their names are shared out, so no GPU is needed here."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest

from viny.runtime import gpus
from viny.runtime.gpus import (
    SHORT_JOBS,
    Share,
    claims_folder,
    give_gpu_back,
    job_environment,
    take_gpu,
    visible_gpus,
)

HOLD = "from viny.runtime.gpus import take_gpu; print(take_gpu(), flush=True); input()"


@pytest.mark.parametrize(
    ("told", "names"),
    [("0", ["0"]), ("2, 0", ["2", "0"]), ("", []), ("1,-1,0", ["1"]), ("GPU-8a,MIG-1/2/0", ["GPU-8a", "MIG-1/2/0"])],
)
def test_gpus_that_cuda_shows(told: str, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", told)
    assert visible_gpus() == names


def test_gpus_that_the_driver_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: A (UUID: GPU-1)\n  MIG 1g: x\nGPU 1: B (UUID: GPU-2)'\n")
    program.chmod(0o755)
    assert visible_gpus() == ["0", "1"]
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert visible_gpus() == []
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert visible_gpus() == []


def holder(environment: dict[str, str]) -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", HOLD], env={**os.environ, **environment}, **pipes)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_jobs_spread_over_gpus_and_wait_for_a_place(tmp_path: Path) -> None:
    environment = job_environment(["0", "7"], 2, tmp_path)
    jobs = []
    try:
        for gpu in ("0", "7", "0", "7"):
            jobs.append(holder(environment))
            assert said(jobs[-1]) == gpu
        jobs.append(holder(environment))
        assert said(jobs[-1]) == "waiting for one of 2 GPUs, with 2 jobs each"
        # A killed job's place is free again.
        jobs[1].send_signal(signal.SIGKILL)
        jobs[1].wait()
        assert said(jobs[-1]) == "7"
    finally:
        for job in jobs:
            job.kill()
            job.communicate()


def test_cuda_sees_the_taken_gpu_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    environment = job_environment(visible_gpus(), 1, tmp_path)
    assert take_gpu(environment) == "3"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    assert take_gpu(environment) == "5"  # the first place is taken
    give_gpu_back()
    assert list(tmp_path.iterdir()) == []
    assert take_gpu(environment) == "3"
    give_gpu_back()


def test_short_jobs_have_places_of_their_own_beside_stacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    environment = job_environment(["0", "1"], 1, tmp_path, stack=24)
    share = Share.told(environment)
    assert share == Share(("0", "1"), 1, tmp_path, 24)
    assert share.take("0", 0)
    assert [share.held(gpu) for gpu in share.gpus] == [[True], [False]]
    assert [take_gpu(environment) for _ in range(2 * SHORT_JOBS)] == ["0", "1"] * SHORT_JOBS
    give_gpu_back()
    assert list(tmp_path.iterdir()) == []


def test_claims_are_of_a_host_and_an_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "node", lambda: "node-1.lab/x")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert claims_folder(Path("results")) == Path("results/.gpus/node-1.lab-x")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert claims_folder(Path("results")) == Path("results/.gpus/node-1.lab-x_77")


def test_nothing_is_taken_where_nothing_is_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert job_environment([], 4, Path("claims")) == {}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "9")
    assert take_gpu({}) is None
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "9"
    assert gpus._taken == []


@pytest.mark.slow
def test_local_jobs_get_a_gpu_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("snakemake")
    from test_workflow import snakemake, write_study

    if Path("/dev/nvidiactl").exists():
        pytest.skip("shares out GPUs that are not there, which a real driver would refuse")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    study = write_study(
        tmp_path,
        compute__device="auto",
        compute__stack=1,
        grid__pretrain_sizes=[0],
        grid__intermediates=["none"],
        grid__seeds=[0, 1],
    )
    began = time.time()
    snakemake(tmp_path, "--cores", "3", "--configfile", study)
    held: dict[str, list[tuple[datetime, datetime]]] = {}
    records = [json.loads(path.read_text()) for path in tmp_path.glob("results/tiny/finetune/*/run.json")]
    records += [json.loads(path.read_text())["provenance"] for path in tmp_path.glob("results/tiny/metrics/*.json")]
    assert len(records) == 8
    for record in records:
        times = [datetime.fromisoformat(record[key]) for key in ("started", "ended")]
        assert times[0].timestamp() >= began - 1
        held.setdefault(record["cuda_visible_devices"], []).append((times[0], times[1]))
    assert held.keys() == {"4", "6"}
    for spans in held.values():
        assert all(a[1] <= b[0] for a, b in pairwise(sorted(spans))), held
