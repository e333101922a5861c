"""What a driver asks Slurm itself: which jobs of a dead driver are still there, and why a job was ended."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

POLL = 10.0  # seconds between two looks at the queue


def name_file(root: Path) -> Path:
    """Where the name stands that all Slurm jobs of a study's last run have."""
    return root / ".slurm-jobs"


def active_jobs(name: str) -> list[str]:
    """Numbers and states of the jobs of a name that wait or run; none where there is no Slurm to ask."""
    command = ["squeue", "--noheader", "--name", name, "--format", "%i %T"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return []  # if there is one, the first submission will say what it lacks
    return done.stdout.splitlines()


def wait_for_jobs(root: Path, poll: float = POLL) -> bool:
    """Wait for the Slurm jobs of the study's last run; returns whether there were any.

    That run's driver is dead, or the study would still be claimed. Its jobs would else be submitted a second time.
    """
    try:
        name = name_file(root).read_text(encoding="utf-8").strip()
    except OSError:
        return False
    waited, said = False, 0.0
    while jobs := active_jobs(name) if name else []:
        if not waited or time.monotonic() - said > 600:
            print(
                f"viny: {len(jobs)} Slurm jobs of an earlier run of this study, whose snakemake died, are still there. "
                f"Waiting for them; 'squeue --name {name}' shows them, 'scancel --name {name}' ends them, each after "
                "a checkpoint.",
                flush=True,
            )
            said = time.monotonic()
        waited = True
        time.sleep(poll)
    return waited


def complaint(folder: Path) -> str:
    """Why Slurm ended a job, in its own words, from the newest log in a folder; empty where it does not say."""
    logs = sorted(folder.glob("*.log"), key=lambda path: path.stat().st_mtime)
    for line in logs[-1].read_text(errors="replace").splitlines() if logs else []:
        if line.startswith("slurmstepd") and "error: " in line:
            return line.partition("error: ")[2].strip()
    return ""
