"""A study's state from what its jobs leave and hold: folders in every state, made by hand just as jobs leave them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from left_behind import change, finish
from patience import PATIENCE
from PIL import Image
from rich.console import Console

pytest.importorskip("jsonschema")

from viny.cli import main
from viny.learning import stages
from viny.learning.progress import PROGRESS, ProgressReport, ProgressWriter
from viny.runtime.claims import Claim
from viny.runtime.files import write_json
from viny.runtime.processes import Owner
from viny.runtime.slurm import name_file
from viny.study.config import resolve
from viny.study.graph import TRAINS, Job
from viny.study.inventory import count_images, read_files, with_listings
from viny.study.layout import pack_manifest
from viny.study.reading import read_config
from viny.study.saved import study_file, write_study
from viny.tools.forecast.plan import plan
from viny.tools.status.state import Watcher
from viny.tools.status.view import show

TINY, ARMS = (Path(__file__).parents[1] / f"{name}.yaml" for name in ("tiny", "arms"))
ALL_DONE, SOMETHING_WRONG, BAD_INPUT = 0, 1, 2
CELL = "pre-0_mid-none_fine-8_seed-0"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of a study whose run has just begun."""
    folder = tmp_path / "results" / "tiny"
    write_study(folder, resolve(read_config(TINY)))
    return folder


@pytest.fixture
def run(root: Path) -> Iterator[Claim]:
    """A run of the study that is alive."""
    claim = Claim(root / ".claim")
    assert claim.acquire() is None
    yield claim
    claim.release()


def job(root: Path, label: str) -> Job:
    return next(one for one in Watcher(root).jobs if one.label == label)


def write_log(root: Path, label: str, text: str, age: float = 0.0) -> Path:
    """A job's log, last written that many seconds ago."""
    log = job(root, label).log(root)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(f"$ python -m viny {label.split()[0]} --spec '{{}}'\n{text}\n")
    os.utime(log, (time.time() - age,) * 2)
    return log


def write_progress(root: Path, label: str, epoch: float, age: float = 0.0, **values: Any) -> Path:
    """A training's progress as this process writes it, written that many seconds ago."""
    one = job(root, label)
    steps = -(-one.work.passes // one.spec["train"]["epochs"] // one.spec["train"]["batch_size"])
    values = {"epochs": one.spec["train"]["epochs"], "step": round(epoch % 1 * steps), "steps": steps, **values}
    ProgressWriter(one.checkpoints(root)).write(ProgressReport(epoch, written=time.time() - age, **values))
    return one.progress(root)


def state(root: Path, label: str) -> str:
    """What a look finds of one job."""
    watcher = Watcher(root)
    status = watcher.look()
    for name in ("running", "failed"):
        if any(one.job.label == label for one in getattr(status, name)):
            return name
    return "done" if job(root, label).is_done(root) else "waiting"


def test_a_folder_without_a_study_is_refused(tmp_path: Path, capsys: Any) -> None:
    assert main(["status", str(tmp_path)]) == BAD_INPUT
    said = capsys.readouterr().err
    assert f"{tmp_path}/study.json: no such file" in said
    assert "snakemake --cores" in said


def test_a_study_that_nothing_runs_is_not_well(root: Path, capsys: Any) -> None:
    assert main(["status", str(root)]) == SOMETHING_WRONG
    out = capsys.readouterr().out
    assert "tiny: 0 of 16 cells done; nothing runs it" in out
    assert re.search(r"finetune +16\n", out)
    assert "the same snakemake command goes on from here" in out


def test_all_done_is_well(root: Path, capsys: Any) -> None:
    finish(root)
    assert main(["status", str(root)]) == ALL_DONE
    out = capsys.readouterr().out
    assert "tiny: 16 of 16 cells done; all done" in out
    assert "100 % of" in out
    assert "Running" not in out and "Failed" not in out


def test_a_training_that_runs_says_how_far_it_is(root: Path, run: Claim, capsys: Any) -> None:
    finish(root, "pack", "split")
    one = job(root, "pretrain size-24_seed-0")
    claim = Claim(one.claim(root))
    assert claim.acquire() is None
    log = write_log(root, one.label, "pretrain: 24 images", age=30)
    write_progress(root, one.label, 1, age=30, loss=0.6553, images_per_second=1068.4, seconds_left=100.0)
    try:
        assert main(["status", str(root)]) == ALL_DONE
        text = capsys.readouterr().out
        assert main(["status", str(root), "--json"]) == ALL_DONE
        said = json.loads(capsys.readouterr().out)
    finally:
        claim.release()
    assert re.search(r"pretrain size-24_seed-0 +1/2 +0\.6553 +1068 +70 s +30 s ago", text)
    assert f"run by process {os.getpid()}" in text
    assert re.search(r"% of 864 image passes of training done, .* left \(about (\w{3} )?\d\d:\d\d\)\n", text)
    assert "\x1b" not in text
    (running,) = said["running"]
    assert running["seconds_left"] == pytest.approx(70, abs=5)
    assert said["stages"]["pretrain"] == {"running": 1, "waiting": 1}
    # Half of one pre-training's 48 passes; in all 96 of pre-training, 192 of the task and 576 of fine-tuning.
    assert (said["image_passes_done"], said["image_passes"]) == (24, 96 + 192 + 576)
    assert said["seconds_left"] > 70
    assert log.is_file()


def test_a_tuning_that_runs_is_told_of_over_all_its_rates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "results" / "arms"
    write_study(root, resolve(read_config(ARMS)))
    one = job(root, f"tune {CELL}_variant-tuned")  # 3 rates of 2 epochs on 6 of 8 images
    finish(root, "pack", "split")
    run, claim = Claim(root / ".claim"), Claim(one.claim(root))
    assert run.acquire() is None and claim.acquire() is None
    try:
        write_log(root, one.label, "tune: rate 0.002, scored on 2 images")
        folder = one.checkpoints(root)
        (folder / "lr-0.002").mkdir(parents=True)
        write_json(folder / "lr-0.001.json", {})  # its first rate is scored
        (folder / "lr-0.002" / "0123abcd_epoch-000002_step-00000000.safetensors").touch()
        assert (found := Watcher(root).look().running[0]).epoch == 2 + 1 and found.epochs == 6
        report = ProgressReport(1.5, 2, 0, 1, loss=0.7, images_per_second=0.1, seconds_left=100.0)
        ProgressWriter(folder / "lr-0.002").write(report)
        status = Watcher(root).look()
        assert main(["status", str(root), "--no-watch"]) == ALL_DONE
    finally:
        claim.release()
        run.release()
    (running,) = status.running
    assert (running.epoch, running.epochs, running.loss) == (3.5, 6, 0.7)
    # What is left of this rate, and two epochs of six images at the last one.
    assert running.seconds_left == pytest.approx(100 + 2 * 6 / 0.1, abs=30)
    assert status.stages["tune"] == {"running": 1, "waiting": 47} and status.stages["start"] == {"waiting": 1}
    assert status.passes[1] == round(3.5 * 6)
    out = capsys.readouterr().out
    assert re.search(r"^start +1$", out, re.MULTILINE) and re.search(r"^tune +1 +47$", out, re.MULTILINE)
    assert re.search(r"tune \S+_variant-tuned +3\.5/6 ", out)


def test_a_tuning_that_was_stopped_is_kept_in_its_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "results" / "arms"
    write_study(root, resolve(read_config(ARMS)))
    finish(root, "pack", "split")
    one = job(root, f"tune {CELL}_variant-tuned")
    one.checkpoints(root).mkdir(parents=True)
    write_json(one.checkpoints(root) / "lr-0.001.json", {})
    total, done, kept = Watcher(root).look().passes
    assert done == kept == 2 * 6
    assert total == sum(job.work.passes for job in Watcher(root).jobs if job.stage in TRAINS)


def test_a_training_claims_its_work_where_status_looks(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = job(root, f"finetune {CELL}")
    claims: list[Path] = []

    def note(path: Path, what: str) -> Any:
        claims.append(path)
        return contextlib.nullcontext(False)

    monkeypatch.setattr(stages, "claimed", note)
    monkeypatch.setattr(stages, "_train", lambda *rest: None)
    files = dict.fromkeys(("manifest", "split", "indices", "weights", "record", "curve", "run"), root)
    stages.train(one.spec, **files, checkpoints=one.checkpoints(root))
    assert claims == [one.claim(root)]


def test_time_left_is_shared_out_among_jobs_side_by_side(
    root: Path, run: Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Owner, "age", lambda self: 100.0)
    finish(root, "pack", "split", "pretrain", "intermediate")
    os.utime(study_file(root), (time.time() - 100,) * 2)
    one = job(root, f"finetune {CELL}")
    claim = Claim(one.claim(root))
    assert claim.acquire() is None
    write_progress(root, one.label, 2, loss=0.6, images_per_second=1.0, seconds_left=8.0)
    try:
        alone = Watcher(root).look().seconds_left
        for done in [done for done in Watcher(root).jobs if done.stage == "intermediate"]:
            done.benchmark(root).parent.mkdir(parents=True, exist_ok=True)
            done.benchmark(root).write_text('{"s": 100}\n')  # four at once, and the one that still runs
        beside = Watcher(root).look().seconds_left
    finally:
        claim.release()
    assert alone is not None and beside is not None
    assert alone > 576 - 24  # passes that are left, at one per second, and what comes around them
    assert beside == pytest.approx(alone / 5, rel=0.05)


def test_before_its_first_epoch_a_training_is_as_far_as_its_checkpoint(root: Path, run: Claim) -> None:
    one = job(root, "pretrain size-24_seed-0")
    claim = Claim(one.claim(root))
    assert claim.acquire() is None
    try:
        write_log(root, one.label, "pretrain: 24 images")
        assert Watcher(root).look().running[0].epoch == 0
        one.checkpoints(root).mkdir()
        (one.checkpoints(root) / "0123abcd_epoch-000002_step-00000003.safetensors").touch()
        assert Watcher(root).look().running[0].epoch == 1
        write_log(
            root, one.label, "going on from 0123abcd_epoch-000002_step-00000003.safetensors: epoch 2, 3 steps done"
        )
        assert Watcher(root).look().running[0].epoch == 1
        write_progress(root, one.label, 1, loss=0.7)  # as it goes on
        assert Watcher(root).look().running[0].epoch == 1
        assert Watcher(root).look().seconds_left is None
    finally:
        claim.release()


def test_a_training_that_goes_on_shows_its_loss_and_its_last_line(root: Path, run: Claim, capsys: Any) -> None:
    one = job(root, "pretrain size-24_seed-0")
    claim = Claim(one.claim(root))
    assert claim.acquire() is None
    write_log(root, one.label, "going on from x.safetensors: epoch 2, 0 steps done")
    write_progress(root, one.label, 1, loss=0.7)
    try:
        main(["status", str(root)])
    finally:
        claim.release()
    out = capsys.readouterr().out
    assert re.search(r"pretrain size-24_seed-0 +1/2 +0\.7000 +\d+ s ago +going on from x\.safetensors: epoch 2,", out)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:40]),
        lambda path: path.write_bytes(bytes(len(path.read_bytes()))),
        lambda path: path.write_bytes(b"[" * 100_000),
        lambda path: path.write_text("[]"),
        lambda path: path.write_text("{}"),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: change(path, epoch=None),
        lambda path: change(path, epoch="2"),
        lambda path: change(path, epoch=-1),
        lambda path: change(path, epoch=3),  # of two
        lambda path: change(path, epochs=0),
        lambda path: change(path, epochs=True),
        lambda path: change(path, epoch=10**400, epochs=10**400),
        lambda path: change(path, loss=float("nan")),
        lambda path: change(path, seconds_left=[]),
        lambda path: change(path, written="yesterday"),
        lambda path: change(path, process=None),
        lambda path: change(path, process={**vars(Owner.me()), "pid": 0}),
        lambda path: change(path, process={**vars(Owner.me()), "pid": os.getpid() + 1}),  # of an earlier attempt
        lambda path: change(path, process={**vars(Owner.me()), "started": "1"}),
    ],
)
def test_progress_that_is_missing_damaged_or_an_earlier_attempts_is_not_believed(
    damage: Any, root: Path, run: Claim, capsys: Any
) -> None:
    one = job(root, "pretrain size-24_seed-0")
    claim = Claim(one.claim(root))
    assert claim.acquire() is None
    path = write_progress(root, one.label, 1.5, loss=0.5, images_per_second=10.0, seconds_left=60.0)
    try:
        assert Watcher(root).look().running[0].epoch == 1.5
        damage(path)
        (one.checkpoints(root) / "0123abcd_epoch-000002_step-00000000.safetensors").touch()
        running = Watcher(root).look().running[0]
        assert main(["status", str(root)]) == ALL_DONE
    finally:
        claim.release()
    assert (running.epoch, running.epochs) == (1, 2)
    assert (running.loss, running.images_per_second, running.seconds_left) == (None, None, None)
    assert re.search(r"pretrain size-24_seed-0 +1/2 .*starting", capsys.readouterr().out)


def test_what_a_killed_training_said_is_not_its_progress(root: Path, run: Claim) -> None:
    """Without a claim there is nobody whose progress it could be."""
    one = job(root, "pretrain size-24_seed-0")
    write_progress(root, one.label, 1.5, loss=0.5, images_per_second=10.0, seconds_left=60.0)
    assert Watcher(root).look().running == []
    write_log(root, one.label, "pretrain: 24 images")  # the next attempt, before it claims its work
    (running,) = Watcher(root).look().running
    assert (running.epoch, running.loss, running.seconds_left, running.said) == (0, None, None, "pretrain: 24 images")


def test_a_clock_that_is_ahead_leaves_no_more_than_was_said(root: Path, run: Claim) -> None:
    one = job(root, "pretrain size-24_seed-0")
    claim = Claim(one.claim(root))
    assert claim.acquire() is None
    try:
        for age, left in ((-1000, 60.0), (1000, 0.0)):
            write_progress(root, one.label, 1, age=age, loss=0.5, images_per_second=10.0, seconds_left=60.0)
            assert Watcher(root).look().running[0].seconds_left == left
    finally:
        claim.release()


def test_status_needs_no_pytorch(root: Path) -> None:
    text = "import sys; from viny.cli import main; main(sys.argv[1:]); assert not {'torch', 'timm'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", text, "status", str(root)], check=True)


def test_a_training_writes_its_progress_where_status_looks(root: Path) -> None:
    one = job(root, f"finetune {CELL}")
    assert ProgressWriter(one.checkpoints(root)).path == one.progress(root) == one.checkpoints(root) / PROGRESS


def test_a_long_epoch_is_told_of_in_parts(root: Path, run: Claim) -> None:
    one = job(root, "pretrain size-24_seed-0")
    claim = Claim(one.claim(root))
    assert claim.acquire() is None
    try:
        told = {"step": 30, "steps": 120, "loss": 0.5, "images_per_second": 10.0, "seconds_left": 60.0}
        write_progress(root, one.label, 1.25, **told)
        running = Watcher(root).look().running[0]
    finally:
        claim.release()
    assert (running.epoch, running.loss, running.images_per_second) == (1.25, 0.5, 10.0)
    assert running.seconds_left == pytest.approx(60, abs=5)


def test_a_failed_job_is_shown_with_its_last_line_and_its_log(root: Path, run: Claim, capsys: Any) -> None:
    words = "viny: finetune: the loss became nan in epoch 2 of 3; lower finetune.lr or check the images"
    log = write_log(root, f"finetune {CELL}", f"finetune: 8 images\n{words}")
    assert main(["status", str(root)]) == SOMETHING_WRONG
    out = capsys.readouterr().out
    assert f"finetune {CELL}: {words}" in out
    assert f"read {log}" in out.replace("\n", "")
    assert main(["status", str(root), "--json"]) == SOMETHING_WRONG
    assert json.loads(capsys.readouterr().out)["failed"] == [
        {"stage": "finetune", "job": CELL, "said": words, "log": str(log)}
    ]


def test_a_traceback_is_a_failure(root: Path, run: Claim) -> None:
    write_log(root, "tables", "Traceback (most recent call last):\n  File x\nKeyError: 'miou'")
    (failed,) = Watcher(root).look().failed
    assert failed.said == "KeyError: 'miou'"


def test_jobs_are_told_apart_by_log_claim_and_run(root: Path, run: Claim) -> None:
    training, other = f"finetune {CELL}", f"evaluate {CELL}"
    begun = "finetune: 8 images, 4,000 parameters, cpu, float32, 1 threads"
    stopped = "viny: stopped by SIGTERM in epoch 2 of 3, step 1; the next run goes on from x.safetensors"
    error = "viny: packs/x: damaged; delete it"
    cases = [
        (training, stopped, 0, "waiting"),
        (training, begun, 0, "running"),  # it has a moment to claim its work
        (training, begun, 600, "waiting"),  # from the run before this one
        (training, error, 600, "waiting"),
        (other, "", 0, "running"),
        (other, "", 600, "waiting"),
        (other, error, 0, "failed"),
    ]
    for label, text, age, expected in cases:
        log = write_log(root, label, text, age)
        assert state(root, label) == expected, (label, text, age)
        log.unlink()
    # A training that was killed without a word holds no claim, though the run is alive.
    os.utime(study_file(root), (time.time() - 3600,) * 2)
    log = write_log(root, training, begun, 600)
    assert state(root, training) == "failed"
    log.unlink()
    finish(root)
    write_log(root, training, error)
    assert state(root, training) == "done"  # whatever its log says


def test_without_a_run_what_began_and_did_not_end_has_failed(root: Path) -> None:
    write_log(root, f"evaluate {CELL}", "")
    write_log(root, f"finetune {CELL}", "finetune: epoch 2/3, loss 0.4, 80 images/s, 1 s left")
    write_log(
        root, "pretrain size-24_seed-0", "viny: stopped by SIGINT in epoch 1 of 2; no checkpoint could be written"
    )
    failed = Watcher(root).look().failed
    assert [one.job.label for one in failed] == [f"finetune {CELL}", f"evaluate {CELL}"]
    assert "it ended without a further word" in failed[0].said


@pytest.mark.parametrize("during", [False, True])
def test_images_added_to_a_folder_make_what_learned_from_it_out_of_date(
    root: Path, tmp_path: Path, during: bool, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
        for i in range(30):
            Image.new("L", (30, 30), i % 2).save(tmp_path / name / f"{i}.png")
    raw = read_config(TINY)
    own = {name: str(tmp_path / name) for name in ("images", "masks")}
    raw["segmentation"] = {**raw["segmentation"], "source": "folder", **own, "classes": 2}
    config = resolve(raw)

    def listed() -> dict[str, Any]:
        return with_listings(config, root, read_files(config, count_images(config, root)))

    monkeypatch.chdir(tmp_path)
    write_study(root, listed())
    finish(root)
    write_log(root, f"evaluate {CELL}", "evaluated")  # of the run before, which did not fail
    assert main(["status", str(root)]) == ALL_DONE
    capsys.readouterr()
    watcher = Watcher(root)
    for name in own:
        Image.new("L", (30, 30), 1).save(tmp_path / name / "more.png")
    now = listed()
    write_study(root, now)
    os.utime(study_file(root), (time.time() + 1,) * 2)
    if during:  # the pack is made; what learns from it is still to come
        change(pack_manifest(root, "segmentation"), contents=now["listings"]["segmentation"])
    assert main(["status", str(root)]) == SOMETHING_WRONG
    out = capsys.readouterr().out
    assert "tiny: 0 of 16 cells done, 16 out of date; nothing runs it" in out
    assert re.search(r"^stage +done +out of date +running", out, re.MULTILINE)
    assert re.search(r"^pretrain +2$", out, re.MULTILINE)  # its images are different
    status = watcher.look()  # one that looked before sees it, too
    assert (status.cells, status.outdated, status.failed) == ((16, 0), 16, [])
    assert status.stages["pack"] == ({"done": 3} if during else {"done": 2, "out of date": 1})
    assert status.stages["report"] == {"out of date": 1}
    planned = plan(config, root.parent, tmp_path / "packs", cores=1, rate=100.0)
    rows = {row["stage"]: row for row in planned["stages"]}
    assert rows["finetune"]["to_do"] == rows["evaluate"]["to_do"] == 16
    assert (rows["pack"]["to_do"], rows["pretrain"]["to_do"]) == (0 if during else 1, 0)
    assert f"out of date: {planned['total']['to_do']} of the jobs to do" in " ".join(planned["notes"])


def test_results_of_other_code_are_said_to_be_readable(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said() -> str:
        assert main(["status", str(root)]) == SOMETHING_WRONG
        return " ".join(capsys.readouterr().out.split())

    readable = "`viny advise` still reads the results of other code; the same snakemake command makes them anew."
    unfinished = "Not finished, and nothing runs: the same snakemake command goes on from here."
    finish(root)
    for record in root.glob("finetune/*/model.json"):
        change(record, spec={**json.loads(record.read_text())["spec"], "code": "of before"})
    now = said()
    assert "0 of 16 cells done, 16 out of date" in now and readable in now and unfinished not in now
    metrics = root / f"metrics/{CELL}.json"
    before = metrics.read_text()
    metrics.unlink()
    assert f"{readable} {unfinished}" in said()
    metrics.write_text(before)
    change(metrics, hashes={**json.loads(before)["hashes"], "pack": "another"})  # such cells are left out of the advice
    now = said()
    assert unfinished in now and readable not in now


def test_what_was_made_from_other_weights_is_out_of_date(root: Path) -> None:
    finish(root)
    watcher = Watcher(root)
    assert watcher.look().done
    geometry = watcher.look().stages["geometry"]["done"]
    change(root / f"finetune/{CELL}/model.json", weights_sha256="other")
    status = watcher.look()
    assert (status.cells[1], status.outdated) == (15, 1)
    assert status.stages["finetune"] == {"done": 16}
    path = root / f"metrics/{CELL}.json"
    change(path, hashes={**json.loads(path.read_text())["hashes"], "weights": "other"})
    assert watcher.look().outdated == 0
    change(root / "pretrain/size-24_seed-1/encoder.json", weights_sha256="another")
    status = watcher.look()
    # Two cells of that seed start from it, and two from the task's encoder, which starts from it.
    assert (status.outdated, status.stages["finetune"]["out of date"]) == (4, 4)
    assert status.stages["intermediate"] == {"done": 3, "out of date": 1}
    assert 0 < status.stages["geometry"]["done"] < geometry
    path = root / "metrics/pre-0_mid-scenes_fine-8_seed-0.json"
    change(path, hashes={**json.loads(path.read_text())["hashes"], "pack": "another"})
    assert watcher.look().outdated == 5


def test_sums_of_before_wait_for_a_run_that_does_what_they_sum_up(root: Path, run: Claim) -> None:
    finish(root)
    for path in [path for path in root.rglob("*") if path.is_file() and path.name != ".claim"]:
        os.utime(path, (time.time() - 100,) * 2)
    os.utime(study_file(root), (time.time() - 50,) * 2)
    assert Watcher(root).look().done
    os.utime(root / f"metrics/{CELL}.json")
    status = Watcher(root).look()
    assert status.cells[1] == 16 and not status.done
    assert status.stages["tables"] == status.stages["report"] == {"out of date": 1}
    assert status.stages["duplicates"] == {"done": 1}


def test_what_checkpoints_hold_is_done(root: Path, capsys: Any) -> None:
    finish(root, "pack", "split")
    one = job(root, "pretrain size-24_seed-0")
    steps = -(-24 // one.spec["train"]["batch_size"])
    one.checkpoints(root).mkdir(parents=True)
    for name in ("epoch-000001_step-00000001", f"epoch-000002_step-{steps:08d}"):
        (one.checkpoints(root) / f"0123abcd_{name}.safetensors").touch()
    later = job(root, f"finetune {CELL.replace('pre-0', 'pre-24')}")  # its encoder is still to come
    later.checkpoints(root).mkdir(parents=True)
    (later.checkpoints(root) / "0123abcd_epoch-000002_step-00000000.safetensors").touch()
    assert Watcher(root).look().passes == (864, 48, 48)
    assert main(["status", str(root)]) == SOMETHING_WRONG
    kept = "6 % of 864 image passes of training done, 100 % of it in checkpoints of unfinished trainings"
    assert kept in capsys.readouterr().out


def test_an_error_of_several_lines_has_its_word(root: Path) -> None:
    error = "viny: 2 of 9 images that were looked at are bad; fix these first:\n  a.png: no image\n  b.png: no image"
    log = write_log(root, "pack segmentation", f"packing\n{error}")
    (failed,) = Watcher(root).look().failed
    assert failed.said.startswith("viny: 2 of 9 images") and failed.said.endswith("b.png: no image")
    log.write_text(log.read_text() + "and on\n  it goes\n")
    (failed,) = Watcher(root).look().failed
    assert "it ended without a further word" in failed.said


def test_a_narrow_terminal_keeps_every_job_on_its_line(root: Path, run: Claim) -> None:
    one = job(root, "finetune pre-24_mid-scenes_fine-16_seed-1")
    claim = Claim(one.claim(root))
    assert claim.acquire() is None
    write_log(root, one.label, "finetune: 16 images")
    write_progress(root, one.label, 2, loss=0.4567, images_per_second=812.3, seconds_left=61.0)
    try:
        status = Watcher(root).look()
    finally:
        claim.release()
    shown = {}
    for columns in (80, 160):
        out = Console(width=columns, file=io.StringIO())
        out.print(show(status, columns=columns))
        shown[columns] = out.file.getvalue()
    assert re.search(
        r"^finetune pre-24_mid-scenes_fine-16_seed-1 +2/3 +0\.4567 +812 +\d+ s *$", shown[80], re.MULTILINE
    )
    assert "log written" in shown[160] and "log written" not in shown[80]
    assert re.search(r"^summaries +7 *$", shown[80], re.MULTILINE)  # seven rules in one row
    assert "scorecard" not in shown[80]


def test_piped_lines_end_with_their_text(root: Path, run: Claim, capsys: Any) -> None:
    write_log(root, f"evaluate {CELL}", "evaluating")
    write_log(root, f"evaluate {CELL.replace('seed-0', 'seed-1')}", "a much longer last line than that of the other")
    main(["status", str(root)])
    lines = capsys.readouterr().out.split("\n")
    assert [line for line in lines if line != line.rstrip()] == []
    assert any("evaluating" in line for line in lines)


def test_the_claim_of_a_dead_run_is_none(root: Path) -> None:
    text = "import pathlib, sys; from viny.runtime.claims import Claim; Claim(pathlib.Path(sys.argv[1])).acquire()"
    subprocess.run([sys.executable, "-c", text, str(root / ".claim")], check=True)
    assert (root / ".claim").is_file()
    assert not Watcher(root).look().alive


def test_jobs_on_a_cluster_keep_a_study_alive(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    squeue = tmp_path / "bin" / "squeue"
    squeue.parent.mkdir()
    squeue.write_text("#!/bin/sh\necho '11 RUNNING'; echo '12 PENDING'; echo '13 PENDING'\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{squeue.parent}:{os.environ['PATH']}")
    (root / ".slurm-jobs").write_text("viny_tiny_1\n")
    os.utime(study_file(root), (time.time() - 3600,) * 2)
    write_log(root, f"finetune {CELL}", "finetune: 8 images", 600)
    status = Watcher(root).look()
    assert status.slurm == "2 pending, 1 running"
    assert status.well  # the training may have been put back into the queue
    squeue.write_text("#!/bin/sh\n")
    assert not Watcher(root).look().well


def test_settings_that_were_changed_are_refused(root: Path, capsys: Any) -> None:
    path = study_file(root)
    path.write_text(path.read_text().replace('"epochs": 3', '"epochs": 4'))
    assert main(["status", str(root)]) == BAD_INPUT
    assert "run the workflow, which writes it again" in capsys.readouterr().err


def test_on_a_terminal_it_stays_until_it_is_interrupted(root: Path, run: Claim) -> None:
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "viny", "status", str(root), "--every", "0.1"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "60"}
    shown = b""
    with subprocess.Popen(command, stdout=follower, stderr=follower, env=environment) as process:
        os.close(follower)
        end = time.monotonic() + PATIENCE
        while shown.count(b"0 of 16 cells") < 3 and time.monotonic() < end:
            shown += os.read(leader, 4096)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        with open(leader, "rb", buffering=0) as rest:
            try:
                while more := rest.read(4096):
                    shown += more
            except OSError:
                pass  # the terminal is gone with its last process
    assert process.returncode == 0
    assert shown.count(b"0 of 16 cells") >= 3
    assert b"\x1b[?25h" in shown  # the cursor is back
    assert b"Traceback" not in shown
    assert b"Ctrl-C ends this view; the run goes on." in shown  # a short last line, behind which ^C has room


def test_it_ends_with_the_run_that_it_watches(root: Path, run: Claim, capsys: Any) -> None:
    finish(root)
    run.release()
    assert main(["status", str(root), "--watch"]) == ALL_DONE
    assert "all done" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["log", "progress", "claim", "note", "record", "time"])
def test_a_pipe_among_the_results_does_not_stop_the_look(root: Path, what: str) -> None:
    one = job(root, "pretrain size-24_seed-0")
    record = root / one.outputs[1]
    places = {"log": one.log(root), "progress": one.progress(root), "claim": one.claim(root), "note": name_file(root)}
    path = (places | {"record": record, "time": one.benchmark(root)})[what]
    if what in ("record", "time"):
        finish(root)
        path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    assert Watcher(root).look().cells[0] == 16
