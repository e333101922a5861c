"""What a driver asks Slurm itself: which jobs of a dead driver are still there, and why a job ended."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

from viny.runtime.files import last_lines

POLL = 10.0  # seconds between looks at the queue
NAME = re.compile(r"[\w.][\w.-]{0,255}", re.ASCII)


def name_file(root: Path) -> Path:
    """The file with the name that all Slurm jobs of a study's last run share."""
    return root / ".slurm-jobs"


def job_name(root: Path) -> str:
    """What `name_file` holds; OSError if it cannot be read."""
    return "".join(last_lines(name_file(root))).strip()


def active_jobs(name: str) -> list[str]:
    """Numbers and states of the waiting or running jobs with that name; none if there is no Slurm to ask.

    A name that no run of ours has, as somebody else's files may hold, is not asked for, and none is shown.
    """
    if not NAME.fullmatch(name):
        return []
    command = ["squeue", "--noheader", "--name", name, "--format", "%i %T"]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return []  # if Slurm is there but faulty, the first submission will say why
    return done.stdout.splitlines()


def wait_for_jobs(root: Path, poll: float = POLL) -> bool:
    """Wait for the Slurm jobs of the study's last run; returns whether there were any.

    That run's driver is dead, or the study would still be claimed. Without the wait, its jobs would be submitted twice.
    """
    try:
        name = job_name(root)
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
    """Why Slurm ended a job, in its own words, from the newest log in a folder; empty if it does not say."""
    try:
        logs = sorted(folder.glob("*.log"), key=lambda path: path.stat().st_mtime)
        said = last_lines(logs[-1]) if logs else []
    except OSError:
        said = []
    for line in said:
        if line.startswith("slurmstepd") and "error: " in line:
            return line.partition("error: ")[2].strip()
    return ""
