"""Studies on a real Slurm: the same results, one GPU per job, faults, dead drivers, requests as rules state them."""

from __future__ import annotations

import os
import re
import signal
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip(
    "snakemake_executor_plugin_slurm", reason="Snakemake's Slurm executor is not installed; 'make test-slurm' does that"
)
from clone import NAME, Clone, finished_jobs, slow_study, tiny_study
from cluster import Cluster, Job, until

pytestmark = pytest.mark.slow

SUMS = ("tables", "figures", "statistics", "scorecard", "report")  # what is summed up after the last cell


def cell(seed: int, size: int = 0, task: str = "none") -> str:
    return f"pre-{size}_mid-{task}_fine-8_seed-{seed}"


def jobs_of(cluster: Cluster, clone: Clone) -> list[Job]:
    return [job for job in cluster.jobs() if job.fields["WorkDir"] == str(clone.folder)]


def job_of(cluster: Cluster, clone: Clone, name: str) -> Job:
    """The newest job of a cell."""
    return [job for job in jobs_of(cluster, clone) if f"_{name}_" in job.comment][-1]


def checkpoints(clone: Clone, name: str) -> list[Path]:
    return list((clone.root / "checkpoints" / "finetune" / name).glob("*.safetensors"))


def minutes(text: str) -> int:
    days, _, rest = text.rpartition("-")
    hours, mins, seconds = map(int, rest.split(":"))
    assert seconds == 0
    return (int(days or 0) * 24 + hours) * 60 + mins


# An undisturbed study with every kind of job


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    clone = Clone.new(tmp_path_factory.mktemp("local") / "clone", tiny_study(intermediates=["none", "scenes"]))
    clone.run("--cores", "2")
    return clone


@pytest.fixture(scope="module")
def clone(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    study = tiny_study(intermediates=["none", "scenes"])
    clone = Clone.new(tmp_path_factory.mktemp("slurm") / "clone", study, cluster.environment)
    (clone.folder / "first.txt").write_text(clone.slurm("--printshellcmds"))  # with what each job asks for
    return clone


def test_results_are_those_of_a_local_run(clone: Clone, local: Clone) -> None:
    assert len(list((clone.root / "metrics").glob("*.json"))) == 4
    assert clone.results() == local.results()
    assert sorted(p.name for p in (clone.root / "tables").iterdir()) == sorted(
        p.name for p in (local.root / "tables").iterdir()
    )


def test_a_cell_is_one_job_that_a_person_can_tell(cluster: Cluster, clone: Clone) -> None:
    jobs = jobs_of(cluster, clone)
    assert [job.state for job in jobs] == ["COMPLETED"] * 7  # pretrain, 2 intermediates, 4 cells
    assert {job.fields["JobName"].rpartition("_")[0] for job in jobs} == {f"viny_{NAME}"}
    cells = {job.comment for job in jobs if "finetune" in job.comment}
    assert cells == {f"rule_{cell(0, size, task)}_evaluate_finetune" for size in (0, 24) for task in ("none", "scenes")}
    others = {job.comment for job in jobs} - cells
    assert others == {  # at the end the arm, which has no name here
        "rule_pretrain_wildcards_24_0_",
        *(f"rule_intermediate_wildcards_scenes_{n}_0_" for n in (0, 24)),
    }


def test_every_job_saw_one_gpu_and_no_two_the_same_at_a_time(cluster: Cluster, clone: Clone) -> None:
    held: dict[tuple[str, str], list[tuple[datetime, datetime]]] = {}
    by_id = {job.id: job for job in jobs_of(cluster, clone)}
    records = [clone.json(p.relative_to(clone.root)) for p in clone.root.glob("**/run.json")]
    metrics = [clone.json(p.relative_to(clone.root))["provenance"] for p in clone.root.glob("metrics/*.json")]
    assert len(records) == 7 and len(metrics) == 4
    for record in records + metrics:
        assert re.fullmatch(r"[01]", record["cuda_visible_devices"])
        job = by_id[record["slurm_job_id"]]
        assert job.node == record["slurm_node"] == record["host"]
        times = [datetime.fromisoformat(job.fields[key]) for key in ("StartTime", "EndTime")]
        held.setdefault((record["slurm_node"], record["cuda_visible_devices"]), []).append((times[0], times[1]))
    assert len(held) > 1
    for spans in held.values():
        spans = sorted(set(spans))
        assert all(a[1] <= b[0] for a, b in pairwise(spans)), held


def test_requests_are_what_the_rules_state(cluster: Cluster, clone: Clone) -> None:
    stated: dict[str, dict[str, int]] = {}  # by what a job's comment would be if it held only the rule's job
    for block in re.split(r"^ *rule (?=\w+:$)", (clone.folder / "first.txt").read_text(), flags=re.MULTILINE)[1:]:
        rule, _, block = block.partition(":")
        values = re.search(r"^ *wildcards: (.*)$", block, re.MULTILINE)
        resources = re.search(r"^ *resources: (.*)$", block, re.MULTILINE)
        threads = re.search(r"^ *threads: (\d+)", block, re.MULTILINE)
        assert values and resources
        named = "_".join(pair.split("=")[1] for pair in values[1].split(", "))
        found = {k: int(v) for k, v in re.findall(r"\b(mem_mb|runtime|gpu)=(\d+)", resources[1])}
        stated[f"rule_{rule}_wildcards_{named}"] = {**found, "cpu": int(threads[1]) if threads else 1}
    assert len(stated) == 3 + 2 * 4
    assert all(asked["gpu"] == 1 for asked in stated.values())
    for job in jobs_of(cluster, clone):
        name = job.comment.removeprefix("rule_").removesuffix("_evaluate_finetune")
        parts = [f"rule_{rule}_wildcards_{name}" for rule in ("finetune", "evaluate")]
        asked = [stated[part] for part in (parts if parts[0] in stated else [job.comment])]
        assert minutes(job.fields["TimeLimit"]) == sum(part["runtime"] for part in asked)
        assert job.tres["mem"] == f"{max(part['mem_mb'] for part in asked)}M"
        assert job.tres["cpu"] == str(max(part["cpu"] for part in asked))
        assert job.fields["TresPerJob"] == "gres:gpu:1"


def test_a_second_call_does_nothing(cluster: Cluster, clone: Clone) -> None:
    before = len(cluster.jobs())
    assert "Nothing to be done" in clone.slurm()
    assert len(cluster.jobs()) == before


def test_an_allocation_of_a_node_shares_its_gpus_among_stacks(cluster: Cluster, folder: Path) -> None:
    """`snakemake --cores N` inside a job, without the profile: Slurm knows of one job, which has both GPUs."""
    clone = Clone.new(folder, tiny_study(pretrain_sizes=[0], seeds=list(range(6))), cluster.environment)
    run = "snakemake --cores 2 --until evaluate --configfile study.yaml"
    command = f"srun --cpus-per-task=2 {run} > said.txt 2>&1"
    asked = ("--gpus=2", "--nodes=1", "--cpus-per-task=2", "--mem=5000", f"--chdir={folder}", "--output=/dev/null")
    number = cluster.run("sbatch", "--parsable", *asked, "--wrap", command, env=clone.env).strip()
    until(lambda: not cluster.active(), "the end of the job", 300)
    job = next(job for job in cluster.jobs() if job.id == number)
    assert job.state == "COMPLETED", clone.said[-3000:]
    assert len(list((clone.root / "metrics").glob("*.json"))) == 6
    runs = clone.runs().values()
    assert {run["slurm_job_id"] for run in runs} == {number}
    assert {run["cuda_visible_devices"] for run in runs} == {"0", "1"}
    logs = [path.read_text() for path in (clone.root / "logs" / "finetune").glob("*.log")]
    taken = [re.findall(r"^finetune: process \d+ on \S+ takes it in, on GPU [01]$", log, re.MULTILINE) for log in logs]
    assert sum(map(bool, taken)) in range(1, 5)  # the others led
    (claims,) = (clone.root.parent / ".gpus").glob(f"*_{number}")
    assert [path.name for path in claims.iterdir()] == ["stacks"]


def test_faults_cost_their_cells_alone(cluster: Cluster, folder: Path, slow_local: Clone) -> None:
    clone = Clone.new(folder, slow_study(range(6)), cluster.environment)
    cancelled, late, greedy, failing, unplugged, sound = map(cell, range(6))
    for name, how in {greedy: "memory", failing: "fail", cancelled: "slow", late: "slow", unplugged: "slow"}.items():
        clone.break_cell(name, how)
    small = ("--set-resources", "finetune:mem_mb=2000", "evaluate:mem_mb=2000")
    driver = clone.start("--profile", "slurm", "--retries", "0", *small)
    try:
        until(lambda: checkpoints(clone, late), "a checkpoint")
        cluster.run("scontrol", "update", f"JobId={job_of(cluster, clone, late).id}", "TimeLimit=1")
        until(lambda: checkpoints(clone, cancelled), "a checkpoint")
        cluster.run("scancel", job_of(cluster, clone, cancelled).id)
        until(
            lambda: [job.comment for job in cluster.active()] == [job_of(cluster, clone, unplugged).comment], "the rest"
        )
        until(lambda: checkpoints(clone, unplugged), "a checkpoint")  # it may have started last
        node = job_of(cluster, clone, unplugged).node
        cluster.kill_node(node)
        clone.mend(unplugged)
        until(lambda: cluster.node_states()[node].startswith("down"), "a node that is down")
        cluster.start_node(node)
        driver.wait(400)
    finally:
        driver.kill()
    said = clone.said
    assert driver.returncode == 1
    # The end says what is not done and why, with the log.
    end = said[said.index("Not done:") :]
    for name, word in (
        (cancelled, "stopped by SIGTERM"),
        (late, "stopped by SIGTERM"),
        (failing, "a test has ordered"),
    ):
        assert re.search(rf"finetune {name}: .*{word}.*\(log: results/{NAME}/logs/finetune/{name}.log", end), end
    # Slurm says it twice, and which of its lines comes first is chance.
    assert re.search(rf"finetune {greedy}: .*; Slurm: .*exceeded (job )?memory limit", end, re.IGNORECASE), end
    assert "evaluate" not in end[: end.index("The same command")]
    assert unplugged not in end and sound not in end
    assert {path.stem for path in clone.root.glob("metrics/*.json")} == {unplugged, sound}
    # The node's job resumed by itself, from its checkpoint.
    assert job_of(cluster, clone, unplugged).fields["Restarts"] == "1"
    assert len(clone.runs()[unplugged]["earlier_attempts"]) == 1

    first = {name: (clone.root / "finetune" / name / "run.json").read_bytes() for name in (unplugged, sound)}
    kept = {name for name in (cancelled, late) if checkpoints(clone, name)}
    assert kept == {cancelled, late}
    clone.mend()
    done = finished_jobs(clone.slurm())
    assert done == {"finetune": 4, "evaluate": 4, **dict.fromkeys(SUMS, 1)} | (
        {"duplicates": 1} if "duplicates" in done else {}
    )
    assert {name: (clone.root / "finetune" / name / "run.json").read_bytes() for name in first} == first
    attempts = {name: len(run["earlier_attempts"]) for name, run in clone.runs().items()}
    assert attempts == {cancelled: 1, late: 1, greedy: 0, failing: 0, unplugged: 1, sound: 0}
    assert clone.results() == slow_local.results()


def test_a_driver_that_is_killed_leaves_jobs_that_the_next_one_waits_for(
    cluster: Cluster, folder: Path, slow_local: Clone
) -> None:
    clone = Clone.new(folder, slow_study(range(2)), cluster.environment)
    clone.break_cell(cell(0), "slow")
    clone.break_cell(cell(1), "slow")
    driver = clone.start("--profile", "slurm")
    until(lambda: checkpoints(clone, cell(0)) and checkpoints(clone, cell(1)), "two fine-tunings under way")
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    assert len(cluster.active()) == 2
    clone.mend()
    said = clone.slurm()
    assert "2 Slurm jobs of an earlier run of this study, whose snakemake died" in said
    assert "unlock" not in said
    assert finished_jobs(said).keys() <= {"duplicates", *SUMS}
    assert [job.state for job in jobs_of(cluster, clone)] == ["COMPLETED"] * 2
    assert all(run["earlier_attempts"] == [] for run in clone.runs().values())
    assert clone.results() == {k: v for k, v in slow_local.results().items() if "seed-0" in k or "seed-1" in k}


def test_ctrl_c_ends_the_jobs_after_a_checkpoint(cluster: Cluster, folder: Path, slow_local: Clone) -> None:
    clone = Clone.new(folder, slow_study(range(2)), cluster.environment)
    clone.break_cell(cell(0), "slow")
    clone.break_cell(cell(1), "slow")
    driver = clone.start("--profile", "slurm")
    until(lambda: checkpoints(clone, cell(0)) and checkpoints(clone, cell(1)), "two fine-tunings under way")
    os.killpg(driver.pid, signal.SIGINT)
    driver.wait(300)
    assert driver.returncode == 1
    until(lambda: not cluster.active(), "the end of the jobs")
    assert clone.runs() == {}
    clone.mend()
    done = finished_jobs(clone.slurm())
    assert (done["finetune"], done["evaluate"]) == (2, 2)
    assert [len(run["earlier_attempts"]) for run in clone.runs().values()] == [1, 1]
    assert clone.results() == {k: v for k, v in slow_local.results().items() if "seed-0" in k or "seed-1" in k}


def test_a_job_that_is_preempted_goes_on(cluster: Cluster, folder: Path, slow_local: Clone) -> None:
    clone = Clone.new(folder, slow_study([0]), cluster.environment)
    clone.break_cell(cell(0), "slow")
    asked = [f"{rule}:slurm_{key}" for rule in ("finetune", "evaluate") for key in ("partition=main", "account=lab")]
    driver = clone.start("--profile", "slurm", "--retries", "0", "--set-resources", *asked)
    try:
        until(lambda: checkpoints(clone, cell(0)), "a checkpoint")
        job = job_of(cluster, clone, cell(0))
        assert (job.fields["Partition"], job.fields["Account"]) == ("main", "lab")
        whole = (f"--nodelist={job.node}", f"--cpus-per-task={cluster.cpus}", "--mem=100")
        urgent = cluster.run("sbatch", "--parsable", "--partition=urgent", *whole, "--wrap", "sleep 3").strip()
        until(lambda: job_of(cluster, clone, cell(0)).fields["Restarts"] == "1", "the end of its first attempt")
        clone.mend()
        assert driver.wait(300) == 0, clone.said[-3000:]
    finally:
        driver.kill()
    assert {job.id: job.state for job in cluster.jobs()}[urgent] == "COMPLETED"
    assert [job.state for job in jobs_of(cluster, clone)] == ["COMPLETED"]
    assert len(clone.runs()[cell(0)]["earlier_attempts"]) == 1
    assert clone.results() == {k: v for k, v in slow_local.results().items() if "seed-0" in k}


def test_a_job_keeps_to_what_was_submitted_and_to_its_driver(cluster: Cluster, folder: Path, slow_local: Clone) -> None:
    clone = Clone.new(folder, slow_study([0]), cluster.environment)
    study = clone.folder / "study.yaml"
    submitted = study.read_text()
    clone.break_cell(cell(0), "slow")
    cluster.run("scontrol", "update", "PartitionName=main", "State=DOWN")
    driver = clone.start("--profile", "slurm")
    try:
        until(cluster.active, "a job that waits")
        # The study is edited between submission and start.
        assert "epochs: 500" in submitted
        study.write_text(submitted.replace("epochs: 500", "epochs: 400"))
        cluster.run("scontrol", "update", "PartitionName=main", "State=UP")
        until(lambda: checkpoints(clone, cell(0)), "a checkpoint")
        study.write_text(submitted)
        # The snakemake inside the job dies, and the training ends with it; the driver submits the job again.
        first = job_of(cluster, clone, cell(0))
        trainings = cluster.job_processes(first, "viny")
        parents = {
            int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
            for pid in trainings
        }
        assert len(trainings) == 1 and len(parents) == 1
        os.kill(parents.pop(), signal.SIGKILL)
        until(lambda: not cluster.job_processes(first, "viny"), "the end of the training")
        until(lambda: job_of(cluster, clone, cell(0)).id != first.id, "another attempt")
        until(lambda: cluster.job_processes(job_of(cluster, clone, cell(0)), "viny"), "its training")
        # The same job a second time, as after a driver's death: it waits, and takes the first one's result.
        second = job_of(cluster, clone, cell(0))
        script = folder / "again.sh"
        script.write_text(cluster.run("scontrol", "write", "batch_script", second.id, "-"))
        other = next(name for name in cluster.names if name != second.node)
        asked = ("--gpus=1", "--cpus-per-task=1", "--mem=3000", f"--nodelist={other}", f"--chdir={folder}")
        again = cluster.run("sbatch", "--parsable", *asked, str(script), env=clone.env).strip()
        log = clone.root / "logs" / "finetune" / f"{cell(0)}.log"
        until(
            lambda: (
                log.exists()
                and f"waiting for process {cluster.job_processes(second, 'viny')[0]} on " in log.read_text()
            ),
            "a job that waits",
        )
        clone.mend()
        assert driver.wait(300) == 0
        until(lambda: not cluster.active(), "the end of the other job")
    finally:
        driver.kill()
        cluster.run("scontrol", "update", "PartitionName=main", "State=UP")
    assert "made by another process meanwhile" in log.read_text()
    assert {job.id: job.state for job in cluster.jobs()}[again] == "COMPLETED"
    run = clone.runs()[cell(0)]
    assert run["slurm_job_id"] == second.id
    assert len(run["earlier_attempts"]) == 1
    assert clone.results() == {k: v for k, v in slow_local.results().items() if "seed-0" in k}
