"""Run a study of many tiny cells on a Slurm of two nodes while jobs, nodes and the driver are struck; compare.

Numbers go to standard output as JSON: what was struck, what was lost, what differs from a local run, how long it took.
The exit code is 0 if nothing is lost or different.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from clone import Clone, tiny_study
from cluster import Cluster, Job, NoSlurmError, install, until

PER_SEED = 24  # cells
KINDS = ("scancel", "kill -9 of the training", "node down and up", "past the time limit")


def study(cells: int) -> dict[str, Any]:
    """A study of this many cells, a few seconds each, with pre-trainings and intermediate tasks."""
    value = tiny_study(
        pretrain_sizes=[0, 12, 24],
        intermediates=["none", "scenes"],
        finetune_sizes=[4, 8, 12, 16],
        seeds=list(range(cells // PER_SEED)),
    )
    for section in (value["pretrain"], value["intermediate"]["scenes"], value["finetune"]):
        section["epochs"] = 150
    value["compute"]["checkpoint_minutes"] = 0.005
    return value


def log(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


class Campaign:
    """A study on a cluster, and what is done to it."""

    def __init__(self, cluster: Cluster, clone: Clone, draw: random.Random) -> None:
        self.cluster, self.clone, self.draw = cluster, clone, draw
        self.struck: set[str] = set()  # jobs, by comment
        self.faults: Counter[str] = Counter()
        self.kinds = itertools.cycle(KINDS)

    def finished(self) -> int:
        return len(list(self.clone.root.glob("metrics/*.json")))

    def running(self) -> list[Job]:
        """Running jobs that were not struck before: a job that fails three times is not tried again."""
        return [job for job in self.cluster.jobs() if job.state == "RUNNING" and job.comment not in self.struck]

    def hurt(self) -> int:
        """Jobs that failed, and restarts by Slurm; a fault that came too late for its job does not count."""
        jobs = self.cluster.jobs()
        ill = sum(job.over and job.state != "COMPLETED" for job in jobs)
        return ill + sum(int(job.fields["Restarts"]) for job in jobs)

    def strike(self) -> None:
        """Strike one job, or all of one node."""
        until(self.running, "a job that runs", 300)
        job = self.draw.choice(self.running())
        kind = next(self.kinds)
        node = job.node
        time.sleep(self.draw.uniform(0, 8))
        hit = [job]
        match kind:
            case "scancel":
                self.cluster.run("scancel", job.id)
            case "past the time limit":
                self.cluster.run("scontrol", "update", f"JobId={job.id}", "TimeLimit=1", check=False)
            case "kill -9 of the training":
                pids = self.cluster.job_processes(job, "viny")
                if not pids:
                    return  # it is over, or has not begun
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
            case "node down and up":
                hit = [other for other in self.cluster.jobs() if other.state == "RUNNING" and node == other.node]
                self.cluster.kill_node(node)
                until(lambda: self.cluster.node_states()[node].startswith("down"), "a node that is down")
                self.cluster.start_node(node)
        self.faults[kind] += 1
        self.struck |= {other.comment for other in hit}
        log(f"{kind}: {', '.join(other.comment for other in hit)}")

    def run(self, cells: int, share: float) -> None:
        """One call with faults, ended by the last of them, which kills the driver, and one further call."""
        jobs = cells + cells // PER_SEED * 5  # 2 pre-trainings and 3 intermediate tasks per seed
        wanted = math.ceil(share * jobs)
        driver = self.clone.start("--profile", "slurm")
        while self.hurt() < wanted and driver.poll() is None:
            due = 0.7 * cells * self.hurt() / wanted
            while self.finished() < due and driver.poll() is None:
                time.sleep(0.5)
            self.strike()
        until(lambda: self.finished() >= 0.85 * cells or driver.poll() is not None, "most cells", 7200)
        if driver.poll() is None:
            driver.kill()
            driver.wait()
            self.faults["kill -9 of the driver"] += 1
            log(f"kill -9 of the driver, beside {len(self.cluster.active())} jobs")
        (self.clone.folder / "said.txt").rename(self.clone.folder / "said-1.txt")
        further = self.clone.start("--profile", "slurm")
        log(f"the further call ended with {further.wait()}")


def overheads(clone: Clone, jobs: list[Job]) -> list[float]:
    """Seconds that each undisturbed job took besides its commands, from Slurm's and Snakemake's own clocks."""
    found = []
    for job in jobs:
        cell = job.comment.removeprefix("rule_").removesuffix("_evaluate_finetune")
        files = [clone.root / "benchmarks" / stage / f"{cell}.jsonl" for stage in ("finetune", "evaluate")]
        if job.state == "COMPLETED" and job.fields["Restarts"] == "0" and all(map(Path.is_file, files)):
            hours, minutes, seconds = map(int, job.fields["RunTime"].split(":"))
            work = sum(json.loads(file.read_text().splitlines()[-1])["s"] for file in files)
            found.append(3600 * hours + 60 * minutes + seconds - work)
    return found


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # not before the cluster is stopped
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=144, help=f"a multiple of {PER_SEED} (default 144)")
    parser.add_argument("--share", type=float, default=0.05, help="of the jobs that are struck (default 0.05)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and jobs (default 0)")
    args = parser.parse_args()
    if args.cells < PER_SEED or args.cells % PER_SEED:
        parser.error(f"--cells: a multiple of {PER_SEED} expected, found {args.cells}")
    try:
        install()
    except NoSlurmError as error:
        print(error, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="viny-campaign-") as name, Cluster() as cluster:
        clone = Clone.new(Path(name) / "slurm", study(args.cells), cluster.environment)
        campaign = Campaign(cluster, clone, random.Random(args.seed))
        began = time.monotonic()
        campaign.run(args.cells, args.share)
        seconds = time.monotonic() - began
        jobs = cluster.jobs()
        log(f"{seconds:.0f} s on Slurm; now the same without")
        local = Clone.new(Path(name) / "local", study(args.cells))
        began = time.monotonic()
        local.run("--cores", str(os.cpu_count()), seconds=4 * 3600)
        local_seconds = time.monotonic() - began
        expected, found = local.results(), clone.results()
        lost = sorted(set(expected) - set(found))
        different = sorted(key for key in expected if key in found and found[key] != expected[key])
        spent = overheads(clone, jobs)
        runs = [json.loads(path.read_text()) for path in clone.root.glob("**/run.json")]
        planned = args.cells + args.cells // PER_SEED * 5
        figures = {
            "cells": args.cells,
            "slurm_jobs_without_faults": planned,
            "slurm_jobs": len(jobs),
            "restarts_by_slurm": sum(int(job.fields["Restarts"]) for job in jobs),
            "states": dict(Counter(job.state for job in jobs)),
            "faults": dict(campaign.faults),
            "jobs_hurt": campaign.hurt(),
            "share_hurt": round(campaign.hurt() / planned, 3),
            "trainings_that_went_on": sum(bool(run["earlier_attempts"]) for run in runs),
            "lost": lost,
            "different": different,
            "seconds_slurm": round(seconds),
            "seconds_local": round(local_seconds),
            "overhead_a_cell_job": {
                "median": round(statistics.median(spent), 1) if spent else None,
                "most": round(max(spent), 1) if spent else None,
            },
            "seed": args.seed,
            "machine": f"{platform.platform()}, {os.cpu_count()} processors, load {os.getloadavg()[1]:.1f}",
        }
    print(json.dumps(figures, indent=2))
    return 1 if lost or different else 0


if __name__ == "__main__":
    sys.exit(main())
