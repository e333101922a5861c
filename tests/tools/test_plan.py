"""A study's forecast: jobs compared with Snakemake's, the schedule with known bounds, rates with runs."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE
from PIL import Image

pytest.importorskip("jsonschema")

from viny.cli import main
from viny.data.packing import build_pack, pack_into_store
from viny.learning.model import ViNy, count_parameters
from viny.learning.settings import ModelSettings, forward_operations, timm_model
from viny.runtime.errors import InputError
from viny.runtime.fingerprint import code_fingerprint
from viny.runtime.load import QUIET, share_of_cores, time_run
from viny.study import grid, layout, workload
from viny.study.arms import settings_of
from viny.study.config import merge, resolve
from viny.study.graph import PRIORITIES, TRAININGS, Job, jobs
from viny.study.inventory import count_images
from viny.study.reading import read_config
from viny.study.specs import pack_spec
from viny.study.todo import to_do
from viny.tools.forecast.forecast import AROUND, Forecast
from viny.tools.forecast.plan import plan, show
from viny.tools.forecast.rates import Rates, kind, rates_seen, rates_stated
from viny.tools.forecast.schedule import SNAKEMAKE, Resources, makespan
from viny.tools.forecast.throughput import Step, Throughput, measure

TINY, ARMS = (Path(__file__).parents[1] / f"{name}.yaml" for name in ("tiny", "arms"))
STUDIES = Path(__file__).parents[2] / "studies"


@pytest.fixture
def tiny() -> dict[str, Any]:
    return resolve(read_config(TINY))


def all_jobs(config: dict[str, Any], root: Path = Path("nowhere")) -> list[Job]:
    return jobs(config, count_images(config, root))


def make(job: Job, root: Path, at: float) -> None:
    """Write empty outputs of a job, as if it had ended at that time."""
    for output in job.outputs:
        (root / output).parent.mkdir(parents=True, exist_ok=True)
        (root / output).touch()
        os.utime(root / output, (at, at))


def stated(config: dict[str, Any], folder: Path, **more: Any) -> dict[str, Any]:
    return plan(config, folder / "results", folder / "packs", **{"rate": 100.0, "cores": 2, **more})


def test_jobs_and_what_is_to_do_are_snakemake_s(tmp_path: Path, tiny: dict[str, Any]) -> None:
    pytest.importorskip("snakemake")
    from test_workflow import planned, snakemake

    root = tmp_path / "results" / "tiny"
    mine = all_jobs(tiny, root)
    out = snakemake(tmp_path, "-n", "-p", "--configfile", TINY).stdout
    said = {name: set(re.findall(rf"^    {name}: (.*)$", out, re.MULTILINE)) for name in ("log", "benchmark")}
    outputs = {p for line in re.findall(r"^    output: (.*)$", out, re.MULTILINE) for p in line.split(", ")}
    relative = Path("results/tiny")
    assert {str(job.log(relative)) for job in mine} == said["log"]
    assert {str(job.benchmark(relative)) for job in mine} == said["benchmark"]
    assert {str(relative / output) for job in mine for output in job.outputs} == outputs
    trainings = [job for job in mine if job.stage in TRAININGS]
    assert {str(job.checkpoints(relative)) for job in trainings} == set(re.findall(r"--checkpoints (\S+)", out))
    assert [job.key for job in to_do(mine, root)] == [job.key for job in mine]
    assert re.search(rf"^total +{len(mine) + 1}$", out, re.MULTILINE)  # with rule all, as `show` says

    for at, job in enumerate(mine):
        make(job, root, 1e9 + at)
    assert to_do(mine, root) == []
    # An encoder, from which four cells come; a model whose metrics are there; another whose record and metrics are not.
    for lost in (
        "pretrain/size-24_seed-1/encoder.safetensors",
        "finetune/pre-24_mid-none_fine-8_seed-1/model.safetensors",
        "metrics/pre-0_mid-scenes_fine-8_seed-1.json",
        "finetune/pre-0_mid-scenes_fine-8_seed-1/model.json",
    ):
        (root / lost).unlink()
    expected = planned(tmp_path, "--configfile", TINY, "--rerun-triggers", "mtime")
    assert Counter(job.stage for job in to_do(mine, root)) == expected
    assert expected["pretrain"] == 1 and expected["finetune"] == expected["evaluate"] == 4 + 1
    # A lost split takes all that was trained on it: besides those above, a cell of a random start.
    (root / "splits/finetune/size-8_seed-1.npz").unlink()
    (root / "finetune/pre-0_mid-none_fine-8_seed-0/model.safetensors").unlink()
    expected = planned(tmp_path, "--configfile", TINY, "--rerun-triggers", "mtime")
    assert Counter(job.stage for job in to_do(mine, root)) == expected
    assert expected["split"] == 1 and expected["finetune"] == 4 + 1 + 1 + 1


@pytest.mark.parametrize("change", [{}, {"geometry": {"encoders": "none"}}, {"grid": {"pretrain_sizes": [0]}}])
def test_jobs_need_only_jobs_before_them(tiny: dict[str, Any], change: dict[str, Any]) -> None:
    changed = {**tiny, **{key: {**tiny[key], **value} for key, value in change.items()}}
    before: set[Any] = set()
    for job in all_jobs(changed):
        assert before.issuperset(job.needs), job.label
        before.add(job.key)


def test_passes_and_operations_are_those_of_the_grid(tmp_path: Path, tiny: dict[str, Any]) -> None:
    planned = stated(tiny, tmp_path)
    rows = {row["stage"]: row for row in planned["stages"]}
    forward = forward_operations(ModelSettings(**tiny["model"]))
    # 1 size x 2 seeds x 24 images x 2 epochs; 2 starts x 2 seeds x 24 of 30 images x 2; 2 x 2 x 2 x (8 + 16) x 3.
    for stage, count_, passes in (("pretrain", 2, 96), ("intermediate", 4, 192), ("finetune", 16, 576)):
        assert (rows[stage]["jobs"], rows[stage]["image_passes"]) == (count_, passes)
        # Fine-tuning's head makes 3 scores per pixel of each token; other heads are left out.
        head = 2 * 3 * tiny["model"]["image_size"] ** 2 * tiny["model"]["dim"] * (stage == "finetune")
        assert rows[stage]["flop"] == 3 * (forward + head) * passes
    assert rows["evaluate"]["image_passes"] == 16 * 10
    assert planned["total"]["to_do"] == planned["total"]["jobs"] == sum(row["jobs"] for row in planned["stages"])
    assert planned["cells"] == 16
    json.dumps(planned, allow_nan=False)


def test_a_stated_rate_is_in_the_hours(tmp_path: Path, tiny: dict[str, Any]) -> None:
    """Twice the rate takes half the time, apart from what starting jobs takes."""
    big = {**tiny, "finetune": {**tiny["finetune"], "epochs": 300_000}}
    slow, fast = (stated(big, tmp_path, rate=rate) for rate in (1.0, 2.0))
    slow_row, fast_row = (next(r for r in one["stages"] if r["stage"] == "finetune") for one in (slow, fast))
    head = 2 * 3 * tiny["model"]["image_size"] ** 2 * tiny["model"]["dim"]
    a_pass = (forward_operations(ModelSettings(**tiny["model"])) + head) / forward_operations(ModelSettings())
    assert slow_row["hours"] == pytest.approx(slow_row["image_passes"] * a_pass / 1 / 3600, rel=0.02)
    assert slow_row["hours"] / fast_row["hours"] == pytest.approx(2, rel=0.05)


def test_what_more_adds_is_what_the_larger_study_has_more(tmp_path: Path, tiny: dict[str, Any]) -> None:
    def summed(config: dict[str, Any]) -> dict[str, float]:
        planned = stated(config, tmp_path)
        rows = [row for row in planned["stages"] if row["stage"] in ("split", *TRAINED)]
        keys = ("image_passes", "jobs", "bytes")
        return {"cells": planned["cells"], **{key: sum(row[key] for row in rows) for key in keys}}

    more = {
        "a further seed": {"seeds": [0, 1, 2]},
        "48 pre-training images, the next doubling (there are 30)": {"pretrain_sizes": [0, 24, 48]},
        "32 labels, the next doubling (there are 20)": {"finetune_sizes": [8, 16, 32]},
    }
    small = {**tiny, "synthetic": {**tiny["synthetic"], "unlabelled": 99, "segmentation": 99}}
    rows = {row["what"]: row for row in stated(tiny, tmp_path)["further"]}
    for what, lists in more.items():
        with_more = summed({**small, "grid": {**tiny["grid"], **lists}})
        without = summed(tiny)
        for key in ("cells", "jobs", "image_passes", "bytes"):
            assert rows[what][key] == pytest.approx(with_more[key] - without[key]), (what, key)
    # The one task, and the one size besides 0, account for all cells except those without them.
    for what in ("a task like scenes", "a number of pre-training images, mean of the 1 here"):
        assert rows[what]["cells"] == 8
    # For each seed a split, a pre-training, a task, and the geometry after both; its cells; not its pack.
    assert rows["a number of pre-training images, mean of the 1 here"]["jobs"] == 2 * (1 + 1 + 1 + 2) + 2 * 8


TRAINED = ("pretrain", "intermediate", "finetune", "evaluate", "geometry")


def made_jobs(draw: random.Random, n: int) -> tuple[list[Job], dict[Any, float]]:
    """Jobs that need some of the ones before them, and their seconds."""
    made: list[Job] = []
    for at in range(n):
        needs = tuple(job.key for job in made if draw.random() < 2 / n)
        made.append(Job(draw.choice(["pack", "pretrain", "evaluate"]), str(at), (), needs, {}))
    return made, {job.key: draw.uniform(0.1, 10) for job in made}


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("cores", [1, 2, 5])
def test_a_schedule_keeps_to_graham_s_bounds(seed: int, cores: int) -> None:
    made, seconds = made_jobs(random.Random(seed), 30)
    ends: dict[Any, float] = {}
    for job in made:
        ends[job.key] = seconds[job.key] + max((ends[key] for key in job.needs), default=0.0)
    path, total = max(ends.values()), sum(seconds.values())
    found = makespan(made, seconds, cores, lambda job: 1)
    assert max(path, total / cores) - 1e-9 <= found <= total / cores + path * (1 - 1 / cores) + 1e-9


def test_threads_and_places_on_gpus_limit_what_runs_side_by_side(tiny: dict[str, Any]) -> None:
    amount = workload.evaluate_workload(tiny)
    eight = [Job("evaluate", str(i), (), (), {}, work=amount) for i in range(8)]
    seconds = dict.fromkeys((job.key for job in eight), 1.0)
    assert makespan(eight, seconds, 4, lambda job: 1) == 2
    assert makespan(eight, seconds, 4, lambda job: 2) == 4
    assert makespan(eight, seconds, 4, lambda job: 16) == 8  # as Snakemake does: no more than there are
    assert makespan(eight, seconds, 4, lambda job: 1, places=1) == 8
    assert makespan([], {}, 4, lambda job: 1) == 0


def test_where_trainings_are_stacked_they_take_no_cores_and_evaluations_have_places_of_their_own(
    tiny: dict[str, Any],
) -> None:
    amount = workload.evaluate_workload(tiny)
    some = [Job("finetune", str(i), (), (), {}, work=amount) for i in range(4)]
    some += [Job("evaluate", str(i), (), (), {}, work=amount) for i in range(4)]
    seconds = dict.fromkeys((job.key for job in some), 1.0)
    alone = Resources(cores=2, gpus=1, jobs_per_gpu=1, train_threads=1)
    stacked = replace(alone, stack=24)
    assert alone.hours(some, seconds, tiny) * 3600 == pytest.approx(SNAKEMAKE + 8)
    assert stacked.hours(some, seconds, tiny) * 3600 == pytest.approx(SNAKEMAKE + 4)
    assert (alone.beside, stacked.beside, replace(stacked, cores=1, gpus=3).beside) == (1, 1, 3)
    assert Resources.of({**tiny, "compute": {**tiny["compute"], "stack": 5}}, 1, 2).stack == 5
    assert Resources.of(tiny, 1, 0).stack == 1


def test_the_rate_of_a_stacked_training_is_that_of_its_share(tmp_path: Path, tiny: dict[str, Any]) -> None:
    finished_trainings(tiny, tmp_path, {"pretrain": [50, 50]}, stacked=3)
    found = rates_seen(all_jobs(tiny), tmp_path, 1, "cpu")
    assert list(found.images.values()) == [50]
    assert found.beside is None  # what such a job takes includes its wait


def test_the_longest_stage_goes_first() -> None:
    short = [Job("finetune", str(i), (), (), {}) for i in range(4)]
    long = Job("pretrain", "0", (), (), {})
    seconds = {**dict.fromkeys((job.key for job in short), 1.0), long.key: 4.0}
    assert makespan([*short, long], seconds, 2, lambda job: 1) == 4


def test_a_schedule_has_the_workflow_s_priorities() -> None:
    text = "\n".join(path.read_text() for path in (STUDIES.parent / "workflow" / "rules").glob("*.smk"))
    names, bodies = (re.split(r"^ *rule (\w+):$", text, flags=re.MULTILINE)[at::2] for at in (1, 2))
    found = {
        name: re.search(r"^ *priority: (\d+)", body, re.MULTILINE) for name, body in zip(names, bodies, strict=True)
    }
    assert {name: int(one[1]) for name, one in found.items() if one} == PRIORITIES


def finished_trainings(config: dict[str, Any], root: Path, rates: dict[str, list[float]], **run: Any) -> None:
    """Make some trainings of a stage finished, at these images per second, with 5 s besides their steps."""
    mine = all_jobs(config)
    for stage, some in rates.items():
        for job, rate in zip([job for job in mine if job.stage == stage], some, strict=False):
            make(job, root, time.time())
            seconds = job.work.passes / rate
            about = {"image_passes": job.work.passes, "training_seconds": seconds, "threads": 1, "device": "cpu"}
            (root / job.outputs[3]).write_text(json.dumps({**about, "host": "here", "earlier_attempts": [], **run}))
            (root / job.outputs[1]).write_text(json.dumps({"spec": {**job.spec, "code": "x"}}))
            job.benchmark(root).parent.mkdir(parents=True, exist_ok=True)
            job.benchmark(root).write_text(json.dumps({"s": seconds + 5}) + "\n")


def test_finished_jobs_tell_their_rate_and_nothing_is_measured(
    tmp_path: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "results" / "tiny"
    finished_trainings(tiny, root, {"pretrain": [50, 70], "intermediate": [30], "finetune": [10, 20, 90]})
    asked: list[Step] = []

    def only_note(steps: list[Step], *rest: Any) -> Throughput:
        asked.extend(steps)
        return Throughput({step.name: 40.0 for step in steps}, 1.0, 1.0)

    monkeypatch.setattr("viny.tools.forecast.throughput.measure", only_note)
    planned = plan(tiny, tmp_path / "results", tmp_path / "packs", cores=2)
    known = {one["what"]: (one["images_per_second"], one["from"]) for one in planned["rates"]}
    assert known["pretrain"] == (60, "2 finished jobs on here")
    assert known["intermediate scenes"] == (30, "1 finished job on here")
    assert known["finetune"] == (20, "3 finished jobs on here")
    assert {step.what for step in asked} == {"evaluate", "pack"}
    rows = {row["stage"]: row for row in planned["stages"]}
    assert rows["pretrain"]["hours"] * 3600 == pytest.approx(2 * (24 * 2 / 60 + 5), rel=0.02)
    assert rows["pretrain"]["took_hours"] is None  # to be done again: its split is missing
    asked.clear()
    plan(tiny, tmp_path / "results", tmp_path / "packs", cores=2, use_seen=False)
    assert {step.what for step in asked} == {"train", "evaluate", "pack"}


def test_finished_jobs_tell_the_rate_of_a_quiet_machine(tmp_path: Path, tiny: dict[str, Any]) -> None:
    """Whatever share of the cores other work left them."""
    finished_trainings(tiny, tmp_path, {"pretrain": [20, 20]}, share_of_cores=0.25)
    found = rates_seen(all_jobs(tiny), tmp_path, 1, "cpu")
    assert list(found.images.values()) == [80] and found.past == 0.25
    assert found.beside == pytest.approx(5 * 0.25)
    assert found.known[0]["from"] == "2 finished jobs on here while other work had 75 % of the cores"
    for unknown in (None, 0, 7):
        finished_trainings(tiny, tmp_path, {"pretrain": [20, 20]}, share_of_cores=unknown)
        assert list(rates_seen(all_jobs(tiny), tmp_path, 1, "cpu").images.values()) == [20]


@pytest.mark.parametrize(
    "other",
    [{"run": {"threads": 2}}, {"run": {"device": "cuda"}}, {"config": {"model": {"depth": 3}}}],
)
def test_jobs_of_other_settings_tell_nothing(tmp_path: Path, tiny: dict[str, Any], other: dict[str, Any]) -> None:
    finished_trainings(tiny, tmp_path, {"pretrain": [50]}, **other.get("run", {}))
    config = {**tiny, **{k: {**tiny[k], **v} for k, v in other.get("config", {}).items()}}
    assert rates_seen(all_jobs(config), tmp_path, 1, "cpu").images == {}
    assert len(rates_seen(all_jobs(tiny), tmp_path, other.get("run", {}).get("threads", 1), "auto").images) == 1


def test_a_whole_number_of_finished_jobs_is_forecast_as_it_was(tmp_path: Path, tiny: dict[str, Any]) -> None:
    """Half of each stage's jobs tell what the other half took, whatever that was."""
    draw = random.Random(1)
    speeds = {stage: draw.uniform(20, 200) for stage in ("pretrain", "intermediate", "finetune")}
    finished_trainings(tiny, tmp_path, {stage: [rate] * 2 for stage, rate in speeds.items()})
    images = count_images(tiny, tmp_path)
    forecast = Forecast(tiny, images, rates_seen(jobs(tiny, images), tmp_path, 1, "cpu"), tmp_path)
    for job in jobs(tiny, images):
        if job.stage in speeds:
            assert forecast.seconds(job) == pytest.approx(job.work.passes / speeds[job.stage] + 5, rel=0.05)


ALONE_ON_A_CORE = """
import os, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
from viny.runtime.load import share_of_cores, time_run
print(flush=True)
input()
"""
SLEEPS_AND_COMPUTES = """
began, wall, end = time_run(), time.monotonic(), time.process_time() + 0.5
time.sleep(0.5)
while time.process_time() < end:
    pass
print(share_of_cores(began), 0.5 / (time.monotonic() - wall - 0.5))
"""
COMPUTES = """
end = time.monotonic() + 20
while time.monotonic() < end:
    pass
"""


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="this kernel does not count waiting threads")
def test_waiting_for_a_core_that_others_use_is_noticed() -> None:
    core = str(min(os.sched_getaffinity(0)))
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    codes = [COMPUTES] * 3 + [SLEEPS_AND_COMPUTES]
    started = [subprocess.Popen([sys.executable, "-c", ALONE_ON_A_CORE + code, core], **pipes) for code in codes]
    try:
        for process in started:
            process.stdout.readline()  # it is ready
        for process in started:
            process.stdin.write("go\n")
            process.stdin.flush()
        share, of_the_clock = map(float, started[-1].communicate(timeout=PATIENCE)[0].split())
    finally:
        for process in started:
            process.kill()
            process.communicate()
    # The clock ran on while it had to wait, and a little for its own: what it had is no less. Sleep is no waiting.
    assert of_the_clock - 0.05 < share < QUIET
    ran, waited = time_run()
    assert share_of_cores((ran + 10**12, waited)) == 1.0  # nothing ran since: nothing is known


def test_steps_are_measured_side_by_side(tiny: dict[str, Any]) -> None:
    by_stage = {job.stage: job for job in reversed(all_jobs(tiny))}
    deep = {**tiny, "model": {**tiny["model"], "depth": 24}}
    slow = {job.stage: job for job in reversed(all_jobs(deep))}["finetune"]
    steps = [
        Step("pretrain", by_stage["pretrain"].spec, 2000, 32),
        Step("finetune", by_stage["finetune"].spec, 16, 24),
        Step("deep", slow.spec, 16, 24),
        Step("evaluate", by_stage["finetune"].spec, 10, 24, "evaluate"),
        Step("pack", by_stage["pack"].spec, 1, 24, "pack"),
        Step("gone", {"source": "imagenet", "path": "nowhere", "size": 24, "resize": "antialias"}, 1, 24, "pack"),
    ]
    found = measure(steps, 2, 1, 0.1)
    assert set(found.rates) == {"pretrain", "finetune", "deep", "evaluate", "pack"}
    assert all(1 < rate < 1e6 for rate in found.rates.values())
    assert found.rates["deep"] < found.rates["finetune"] / 3  # twelve times the blocks
    assert 0 < found.share <= 1
    assert 0.1 < found.start < 60


def test_what_has_no_rate_gets_that_of_the_others(tmp_path: Path, tiny: dict[str, Any]) -> None:
    images = count_images(tiny, tmp_path)
    by_stage = {job.stage: job for job in jobs(tiny, images)}
    rates = Rates()
    rates.learn(by_stage["finetune"], 0.01)
    forecast = Forecast(tiny, images, rates, tmp_path)
    of_pass = [job.work.operations / job.work.passes for job in (by_stage["pretrain"], by_stage["finetune"])]
    a_pass = of_pass[0] / of_pass[1]  # as one has no scores for pixels
    assert forecast.seconds(by_stage["pretrain"]) == pytest.approx(24 * 2 / 0.01 * a_pass, rel=0.01)
    assert forecast.seconds(by_stage["evaluate"]) == pytest.approx(10 / 0.03, rel=0.01)  # forward passes alone


@pytest.fixture
def with_arms() -> dict[str, Any]:
    return resolve(read_config(ARMS))


def test_arms_share_out_all_that_a_study_costs(tmp_path: Path, with_arms: dict[str, Any]) -> None:
    planned = stated(with_arms, tmp_path)
    rows = {row["stage"]: row for row in planned["stages"]}
    arms = {one["arm"]: one for one in planned["arms"]}
    assert list(arms)[:3] == ["random", "random, tuned", "random, equal_steps"]
    trained = ("pretrain", "intermediate", "tune", "finetune")
    assert sum(one["cells"] for one in arms.values()) == planned["cells"] == rows["evaluate"]["jobs"]
    passes = sum(rows[stage]["image_passes"] for stage in trained)
    assert sum(one["image_passes"] for one in arms.values()) == passes
    apart = sum(row["hours"] for stage, row in rows.items() if stage in ("pack", *layout.SUMMARIES))
    assert sum(one["hours"] for one in arms.values()) == pytest.approx(planned["total"]["hours"] - apart)
    assert sum(one["tuning_hours"] for one in arms.values()) == pytest.approx(rows["tune"]["hours"])
    # The same encoders, of which only the fine-tuning differs; and equal steps, which change the smaller size alone.
    assert arms["random, tuned"]["trainings"] == arms["random, tuned"]["cells"] == arms["random"]["cells"] == 24
    assert arms["random, equal_steps"]["cells"] == 8
    assert all((one["tuning_hours"] > 0) == ("tuned" in name) for name, one in arms.items())


def test_a_frozen_encoder_is_cheap_and_a_larger_model_is_not(tmp_path: Path, with_arms: dict[str, Any]) -> None:
    work = {job.name: job.work for job in all_jobs(with_arms) if job.stage == "finetune"}
    cell = "pre-0_mid-none_fine-16_seed-0"
    usual, tiny, frozen = (work[cell + suffix] for suffix in ("", "_start-tiny", "_start-tiny_variant-frozen"))
    assert frozen.passes == tiny.passes == usual.passes
    # Two forward passes for each image, as it is and mirrored, instead of three for each of four epochs; and its head.
    assert frozen.operations < 0.2 * tiny.operations
    by_arm = {"": with_arms["model"], "_start-tiny": timm_model("vit_tiny_patch16_224", 32)}
    usual_of, tiny_of = (forward_operations(ModelSettings(**model)) for model in by_arm.values())
    assert tiny.operations / usual.operations == pytest.approx(tiny_of / usual_of, rel=0.6)
    forecast = Forecast(
        with_arms,
        count_images(with_arms, tmp_path),
        plan_rates := rates_stated(all_jobs(with_arms), 1.0),
        tmp_path,
    )
    jobs_of = {job.name: job for job in all_jobs(with_arms) if job.stage == "finetune"}
    seconds = [forecast.seconds(jobs_of[cell + suffix]) for suffix in ("_start-tiny", "_start-tiny_variant-frozen")]
    beside = plan_rates.start + AROUND
    assert (seconds[1] - beside) / (seconds[0] - beside) == pytest.approx(frozen.operations / tiny.operations)


def test_evaluations_of_another_model_are_of_another_kind(with_arms: dict[str, Any]) -> None:
    kinds = {kind(job) for job in all_jobs(with_arms) if job.stage == "evaluate"}
    models = {str(settings_of(with_arms, arm)["model"]) for arm in grid.arms(with_arms)}
    assert len(kinds) == len(models) == 3  # the study's, timm's, the small one


@pytest.mark.parametrize("what", ["seeds", "pretrain_sizes", "finetune_sizes"])
def test_what_more_adds_is_right_with_arms(tmp_path: Path, what: str) -> None:
    raw = read_config(ARMS)
    raw["synthetic"] = {"unlabelled": 99, "scenes": 40, "segmentation": 99}
    larger = {"seeds": [0, 1, 2], "pretrain_sizes": [0, 12, 24, 48], "finetune_sizes": [8, 16, 32]}[what]
    here, there = (stated(resolve(merge(raw, changes)), tmp_path) for changes in ({}, {"grid": {what: larger}}))
    row = next(
        one
        for one in here["further"]
        if one["what"].startswith({"seeds": "a further", "pretrain_sizes": "48", "finetune_sizes": "32"}[what])
    )
    assert row["cells"] == there["cells"] - here["cells"]
    passes = [
        sum(one["image_passes"] for one in planned["stages"] if one["stage"] != "geometry") for planned in (here, there)
    ]
    assert row["image_passes"] == passes[1] - passes[0]


def test_arms_are_shown_and_tuning_is_named(with_arms: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    show(stated(with_arms, tmp_path))
    said = capsys.readouterr().out
    assert re.search(r"^random, tuned +24 +24 ", said, re.MULTILINE) and "of that, tuning" in said
    assert "Shared trainings and cells count at the first arm" in said
    assert re.search(r"Tuning takes .*, \d+ % of all job time", said)
    assert re.search(r"^start +1 ", said, re.MULTILINE) and re.search(r"^tune +48 ", said, re.MULTILINE)
    assert "random, equal_steps: all sizes take as many steps as the largest" in said


def test_a_frozen_encoder_s_speed_is_measured_with_its_tokens(with_arms: dict[str, Any]) -> None:
    """Spread over the epochs: what the first takes besides its head's steps counts once."""
    jobs_of = {job.name: job for job in all_jobs(with_arms) if job.stage == "finetune"}
    spec = jobs_of["pre-0_mid-none_fine-16_seed-0_start-tiny_variant-frozen"].spec
    few, many = ({**spec, "train": {**spec["train"], "epochs": epochs}} for epochs in (1, 400))
    found = measure([Step("few", few, 16, 32), Step("many", many, 16, 32)], 1, 1, 0.1)
    assert found.rates["many"] > 2 * found.rates["few"]


def test_a_pack_that_two_tasks_share_counts_once(tmp_path: Path, tiny: dict[str, Any]) -> None:
    raw = read_config(TINY)
    raw["intermediate"]["parts"] = {"source": "segmentation", "target": "patch", "mixup": 0, "epochs": 2}
    raw["intermediate"]["parts"]["milestones"] = []
    raw["grid"]["intermediates"] = ["none", "scenes", "parts"]
    more = resolve(raw)
    with_parts, without = (stated(one, tmp_path)["stages"][0] for one in (more, tiny))
    assert (with_parts["stage"], with_parts["jobs"], without["jobs"]) == ("pack", 4, 3)
    assert with_parts["bytes"] == without["bytes"]
    assert count_images(more, tmp_path).trained["parts"] == 30 - 10


def test_a_split_file_says_how_many_images_are_tested(tmp_path: Path, tiny: dict[str, Any]) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
        for i in range(12):
            Image.new("L", (30, 30), i % 2).save(tmp_path / name / f"{i}.png")
    (tmp_path / "split.csv").write_text("".join(f"{i}.png,{'test' if i < 3 else 'train'}\n" for i in range(12)))
    raw = read_config(TINY)
    own = {name: str(tmp_path / name) for name in ("images", "masks")}
    raw["segmentation"] = {"source": "folder", **own, "classes": 2, "split": str(tmp_path / "split.csv")}
    raw["segmentation"]["test_size"] = 0
    raw["grid"]["finetune_sizes"] = [9]
    rows = {row["stage"]: row for row in stated(resolve(raw), tmp_path)["stages"]}
    assert rows["evaluate"]["image_passes"] == 8 * 3
    raw["grid"]["finetune_sizes"] = [10]
    with pytest.raises(InputError, match=r"grid\.finetune_sizes: 10 is larger than the train part"):
        stated(resolve(raw), tmp_path)


def test_a_pack_s_bytes_are_those_on_disk(tmp_path: Path, tiny: dict[str, Any]) -> None:
    images = count_images(tiny, tmp_path)
    forecast = Forecast(tiny, images, Rates(), tmp_path)
    job = next(job for job in jobs(tiny, images) if job.stage == "pack")
    build_pack(job.spec, tmp_path, 1)
    headers = 11 * 128 + 4000
    on_disk = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert on_disk - headers <= forecast.bytes(job) <= on_disk


@pytest.mark.parametrize(
    "settings",
    [
        ModelSettings(),
        ModelSettings(24, 6, 16, 2, 2, 8, 32),
        ModelSettings(depth=1),
        ModelSettings(**timm_model("vit_tiny_patch16_224", 64)),
    ],
)
def test_parameters_are_the_model_s(settings: ModelSettings) -> None:
    assert workload.parameters(settings) == count_parameters(ViNy(settings))


def test_a_study_without_its_data_is_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", str(STUDIES / "paper.yaml"), "--rate", "1400", "--gpus", "4", "--cores", "32"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "paper: 144 cells, 389 jobs, 389 of them to do (390 as Snakemake counts, with its rule all)\n" in out
    assert "intel: no data set at data/intel; it is taken to have 20,000 images" in out
    assert "32 cores and 4 GPUs, in 4 stacks of up to 24 trainings" in out
    assert list(tmp_path.iterdir()) == []


def test_hours_beside_other_work_are_said(tmp_path: Path, tiny: dict[str, Any], capsys: Any) -> None:
    planned = stated(tiny, tmp_path)
    planned["wall_clock"]["hours"] = 0.15
    show(planned)
    said = capsys.readouterr().out
    assert ": 9 min for all.\n" in said
    counts = re.findall(r"^(\S+|in all) +(\d+) +0 +\d+ ", said, re.MULTILINE)  # a row each
    assert counts[-2] == ("summaries", "7") and counts[-1] == ("in all", str(sum(int(n) for _, n in counts[:-1])))
    assert "63 jobs, 63 of them to do (64 as Snakemake counts, with its rule all)\n" in said
    show({**planned, "share_of_cores": 0.5})
    assert ": 9 min for all (18 min with the other work that runs now).\n" in capsys.readouterr().out
    show({**planned, "total": {**planned["total"], "to_do": 0}})
    assert "63 jobs, 0 of them to do\n" in capsys.readouterr().out


def test_json_is_for_programs_and_settings_can_be_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    change = ["--set", "grid.seeds=[0, 1, 2]", "--set", "finetune.epochs=30"]
    assert main(["plan", str(TINY), "--rate", "10", "--json", *change]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["cells"] == 24
    assert next(r for r in planned["stages"] if r["stage"] == "finetune")["image_passes"] == 3 * 4 * (8 + 16) * 30


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpus", "3"], "say with --rate how fast one is"),
        (["--rate", "10", "--set", "grid.finetune_sizes=[21]"], "grid.finetune_sizes: 21 is larger"),
        (["--rate", "10", "--set", "grid.finetune_size=[21]"], "did you mean 'finetune_sizes'"),
    ],
)
def test_what_cannot_be_planned_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", str(TINY), *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--set", "seeds"], ["--set", "a=["], ["--rate", "0"], ["--cores", "two"]])
def test_arguments_at_fault_are_refused(arguments: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit) as left:
        main(["plan", str(TINY), *arguments])
    assert left.value.code == 2


def test_images_of_a_task_are_those_of_its_split(tmp_path: Path, tiny: dict[str, Any]) -> None:
    assert count_images(tiny, tmp_path).trained == {"scenes": 24}
    record = tmp_path / "splits" / "intermediate" / "scenes.json"
    record.parent.mkdir(parents=True)
    written = {"spec": {"kind": "task", "on_segmentation_data": False}, "parts": {"train": {"count": 7}}}
    record.write_text(json.dumps(written))
    assert count_images(tiny, tmp_path).trained == {"scenes": 7}
    record.write_text(json.dumps({**written, "spec": {"kind": "task", "on_segmentation_data": True}}))
    assert count_images(tiny, tmp_path).trained == {"scenes": 24}


def test_a_pack_that_the_workflow_stored_is_not_packed_again(tmp_path: Path, tiny: dict[str, Any]) -> None:
    def packing() -> float:
        planned = plan(tiny, tmp_path / "results", tmp_path / "packs", 2, 0, 1.0)
        return next(row["hours"] for row in planned["stages"] if row["stage"] == "pack")

    tiny = {**tiny, "synthetic": {**tiny["synthetic"], "unlabelled": 2000}}
    before = packing()
    spec = {**pack_spec(tiny, "pretrain"), "code": code_fingerprint("pack")}  # as a rule's param
    pack_into_store(spec, tmp_path / "packs", tmp_path / "manifest.json", 1)
    assert packing() < 0.5 * before
