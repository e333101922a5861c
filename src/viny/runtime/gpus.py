"""Which GPU a job takes when several jobs share a machine and nothing else hands out GPUs."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from viny.runtime.claims import Claim

GPUS, JOBS, CLAIMS = "VINY_GPUS", "VINY_JOBS_PER_GPU", "VINY_GPU_CLAIMS"  # what a driver tells its jobs
_taken: list[Claim] = []  # this process's slot, kept until it ends


def visible_gpus() -> list[str]:
    """CUDA's names for the GPUs that this process may use; none without a driver.

    Asks CUDA_VISIBLE_DEVICES, else nvidia-smi: PyTorch would know too, but takes seconds to import.
    """
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is not None:
        names = [name.strip() for name in told.split(",")]
        ends = [at for at, name in enumerate(names) if name in ("", "-1")]  # CUDA stops at the first that names no GPU
        return names[: ends[0]] if ends else names
    try:
        asked = ["nvidia-smi", "--list-gpus"]
        said = subprocess.run(asked, capture_output=True, encoding="utf-8", errors="replace", timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    lines = [line for line in said.stdout.splitlines() if line.startswith("GPU ")]  # its partitions follow, indented
    return [str(number) for number in range(len(lines))]


def job_environment(gpus: list[str], jobs_per_gpu: int, claims: Path) -> dict[str, str]:
    """Environment variables that tell `take_gpu` what there is to take."""
    return {GPUS: ",".join(gpus), JOBS: str(jobs_per_gpu), CLAIMS: str(claims)} if gpus else {}


def take_gpu(environment: Mapping[str, str] = os.environ, poll: float = 0.2) -> str | None:
    """Take a slot on the GPU with the fewest jobs, keep it until the process ends, and show CUDA only that GPU.

    Call it before PyTorch is imported. A slot is a claim, so a killed job's slot is free again. Waits while all
    slots are taken, by another study for example.

    Args:
        environment: holds what `job_environment` returns; if it does not, nothing is done.
        poll: seconds between looks.

    Returns:
        The GPU's name; None if there is none to take.
    """
    gpus = [name for name in environment.get(GPUS, "").split(",") if name]
    if not gpus:
        return None
    claims, jobs = Path(environment[CLAIMS]), int(environment[JOBS])
    said = False
    while True:
        for number in range(jobs):
            for gpu in gpus:
                claim = Claim(claims / f"gpu-{gpu.replace('/', '_')}_job-{number}")
                if claim.acquire() is None:
                    _taken.append(claim)
                    os.environ["CUDA_VISIBLE_DEVICES"] = gpu
                    return gpu
        if not said:
            print(f"waiting for one of {len(gpus)} GPUs, with {jobs} jobs each", flush=True)
            said = True
        time.sleep(poll)


def give_gpu_back() -> None:
    """Free this process's slot for another job."""
    while _taken:
        with suppress(OSError):
            _taken.pop().release()
