"""Which GPU a job takes when several jobs share a machine and nothing else hands out GPUs."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from viny.runtime.claims import Claim

GPUS, JOBS, CLAIMS = "VINY_GPUS", "VINY_JOBS_PER_GPU", "VINY_GPU_CLAIMS"  # what a driver tells its jobs
STACK = "VINY_STACK"
# Evaluations and the like that share a GPU beside stacks of trainings, which may run for an hour. Mostly they compute
# on the CPU.
SHORT_JOBS = 4
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


def claims_folder(results: Path) -> Path:
    """Where jobs claim GPUs: per machine, since each counts its GPUs from 0, and so does each allocation of Slurm."""
    words = [platform.node(), os.environ.get("SLURM_JOB_ID", "")]
    return results / ".gpus" / "_".join(re.sub(r"[^\w.-]", "-", word).lstrip(".") for word in words if word)


def job_environment(gpus: list[str], jobs_per_gpu: int, claims: Path, stack: int = 1) -> dict[str, str]:
    """Environment variables that tell jobs what there is to take, see `Share`."""
    told = {GPUS: ",".join(gpus), JOBS: str(jobs_per_gpu), CLAIMS: str(claims), STACK: str(stack)}
    return told if gpus else {}


@dataclass(frozen=True)
class Share:
    """What a driver shares out among its jobs.

    Attributes:
        gpus: CUDA's names for them.
        jobs: processes that share a GPU.
        claims: folder of the claims on them.
        stack: trainings that one process may run at once; more than 1: short jobs have places of their own.
    """

    gpus: tuple[str, ...]
    jobs: int
    claims: Path
    stack: int

    @classmethod
    def told(cls, environment: Mapping[str, str] = os.environ) -> Share | None:
        """What this job's driver told it, by `job_environment`; None if there is nothing to take."""
        gpus = tuple(name for name in environment.get(GPUS, "").split(",") if name)
        if not gpus:
            return None
        return cls(gpus, int(environment[JOBS]), Path(environment[CLAIMS]), int(environment.get(STACK) or 1))

    def place(self, gpu: str, number: int, kind: str = "job") -> Claim:
        """The claim on a place on a GPU; not acquired."""
        return Claim(self.claims / f"gpu-{gpu.replace('/', '_')}_{kind}-{number}")

    def held(self, gpu: str) -> list[bool]:
        """Which of a GPU's places are taken."""
        return [self.place(gpu, number).holder() is not None for number in range(self.jobs)]

    def take(self, gpu: str, number: int, kind: str = "job") -> bool:
        """Try to take a place, keep it until `give_gpu_back`, and show CUDA only that GPU."""
        claim = self.place(gpu, number, kind)
        if claim.acquire() is not None:
            return False
        _taken.append(claim)
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
        return True


def take_gpu(environment: Mapping[str, str] = os.environ, poll: float = 0.2) -> str | None:
    """Take a slot on the GPU with the fewest jobs, keep it until the process ends, and show CUDA only that GPU.

    Call it before PyTorch is imported. A slot is a claim, so a killed job's slot is free again. Waits while all
    slots are taken, by another study for example. Where trainings are stacked, which have slots by
    `viny.runtime.stacks`, the slots are those for short jobs.

    Args:
        environment: holds what `job_environment` returns; if it does not, nothing is done.
        poll: seconds between looks.

    Returns:
        The GPU's name; None if there is none to take.
    """
    share = Share.told(environment)
    if share is None:
        return None
    kind, jobs = ("short", SHORT_JOBS) if share.stack > 1 else ("job", share.jobs)
    said = False
    while True:
        for number in range(jobs):
            for gpu in share.gpus:
                if share.take(gpu, number, kind):
                    return gpu
        if not said:
            print(f"waiting for one of {len(share.gpus)} GPUs, with {jobs} jobs each", flush=True)
            said = True
        time.sleep(poll)


def give_gpu_back() -> None:
    """Free this process's slot for another job."""
    while _taken:
        with suppress(OSError):
            _taken.pop().release()
