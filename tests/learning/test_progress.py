"""Progress: a training reports how far it is in a file beside its checkpoints, at no cost to the training."""

from __future__ import annotations

import csv
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from patience import until
from tiny_study import Study

from viny.learning import progress, run, stages, train
from viny.learning.progress import PROGRESS, ProgressReport, ProgressWriter, read_progress
from viny.runtime.processes import Owner
from viny.runtime.signals import Stopped
from viny.study import specs
from viny.study.grid import Cell

CELL = Cell(0, "none", 16, 0)  # 3 epochs of 2 steps


@pytest.fixture
def study(tmp_path: Path, made_study: Callable[[str], dict[str, Any]]) -> Study:
    return Study(tmp_path, made_study("sound"))


@pytest.fixture
def file(study: Study) -> Path:
    return study.root / "checkpoints" / "finetune" / PROGRESS


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[ProgressReport]:
    """What the file holds after each write, in a training that reports after every step."""
    found: list[ProgressReport] = []
    write = ProgressWriter.write

    def noted(self: ProgressWriter, report: ProgressReport) -> None:
        write(self, report)
        assert read_progress(self.path) == report
        found.append(report)

    monkeypatch.setattr(ProgressWriter, "write", noted)
    monkeypatch.setattr(run, "LOOK", -1.0)
    return found


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Send SIGTERM during a given step, counted from 1 over all attempts."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    step, count, last = train._step, 0, 0

    def counting(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == last:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    monkeypatch.setattr(train, "_step", counting)

    def set_up(number: int) -> None:
        nonlocal last
        last = number

    yield set_up
    signal.signal(signal.SIGTERM, before)


def weights_of(record: Path) -> str:
    return json.loads(record.read_text(encoding="utf-8"))["weights_sha256"]


def curve_of(record: Path) -> list[dict[str, float]]:
    with open(record.with_name("curve.csv"), encoding="utf-8", newline="") as f:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(f)]


def places(written: list[ProgressReport]) -> list[tuple[float, int]]:
    return [(one.epoch, one.step) for one in written]


def test_a_training_says_how_far_it_is(study: Study, written: list[ProgressReport], file: Path) -> None:
    before = time.time()
    record = study.finetune(CELL, None)
    start, *rest = written
    assert places([start]) == [(0, 0)]
    assert (start.loss, start.images_per_second, start.seconds_left) == (None, None, None)
    assert places(rest) == [(0.5, 1), (1, 2), (1, 0), (1.5, 1), (2, 2), (2, 0), (2.5, 1), (3, 2), (3, 0)]
    curve = curve_of(record)
    for epoch, (half, full, whole) in enumerate(zip(rest[::3], rest[1::3], rest[2::3], strict=True)):
        assert full.loss == pytest.approx(curve[epoch]["loss"])
        assert half.loss == pytest.approx(full.loss, rel=0.5) and half.loss != full.loss
        assert (whole.loss, whole.images_per_second) == (curve[epoch]["loss"], curve[epoch]["images_per_second"])
    assert {(one.epochs, one.steps, one.process) for one in written} == {(3, 2, Owner.me())}
    times = [before, *(one.written for one in written), time.time()]
    assert times == sorted(times)
    assert all(one.images_per_second > 0 for one in rest)
    assert all(0 <= one.seconds_left <= 10 * (times[-1] - before) for one in rest)
    assert rest[-1].seconds_left == 0
    assert not file.parent.exists()  # a finished training leaves nothing behind


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (1.0, []),
        (6.0, [(1, 2), (2, 2), (3, 2)]),  # after every second step
        (11.0, [(0.5, 1), (1, 2), (1.5, 1), (2, 2), (2.5, 1), (3, 2)]),
    ],
)
def test_it_says_so_no_more_often_than_its_log(
    seconds: float,
    expected: list[tuple[float, int]],
    study: Study,
    written: list[ProgressReport],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With a clock that only the steps advance."""
    step, now = train._step, 0.0

    def slow(*arguments: Any) -> Any:
        nonlocal now
        now += seconds
        return step(*arguments)

    monkeypatch.setattr(train, "_step", slow)
    monkeypatch.setattr(run, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(run, "LOOK", 10.0)
    study.finetune(CELL, None)
    assert places(written) == [(0, 0), *expected, (3, 0)]
    for one in written[1:]:
        assert one.images_per_second == pytest.approx(8 / seconds)
        assert one.seconds_left == pytest.approx((3 - one.epoch) * 2 * seconds)
    assert capsys.readouterr().out.count(" images/s, ") == len(expected) + 1


def test_it_says_so_on_a_terminal_too(
    study: Study, written: list[ProgressReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    study.finetune(CELL, None)
    assert len(written) == 10


@pytest.mark.parametrize("look", [-1.0, 1000.0])
def test_a_stopped_training_leaves_it_beside_its_checkpoint(
    look: float,
    study: Study,
    written: list[ProgressReport],
    file: Path,
    stop_at: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "LOOK", look)
    stop_at(3)
    with pytest.raises(Stopped):
        study.finetune(CELL, None)
    left = read_progress(file)
    assert left is not None
    assert (left.epoch, left.step) == (1.5, 1)
    (checkpoint,) = file.parent.glob("*.safetensors")
    assert checkpoint.name.endswith("epoch-000002_step-00000001.safetensors")
    # The next attempt first reports where it resumes, without the last attempt's rate.
    written.clear()
    record = study.finetune(CELL, None)
    first = written[0]
    assert first.written > left.written
    assert (first.epoch, first.step, first.images_per_second, first.seconds_left) == (1.5, 1, None, None)
    assert first.loss == curve_of(record)[0]["loss"]
    assert places(written)[-1] == (3, 0)
    assert not file.parent.exists()


def test_after_the_last_step_of_all_nothing_is_left_to_do(
    study: Study, written: list[ProgressReport], stop_at: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    stop_at(6)
    with pytest.raises(Stopped):
        study.finetune(CELL, None)
    assert places(written)[-1] == (3, 2)
    written.clear()
    capsys.readouterr()
    loss = curve_of(study.finetune(CELL, None))[-1]["loss"]
    assert places(written) == [(3, 2), (3, 0)]
    assert (written[-1].images_per_second, written[-1].seconds_left) == (0, 0)
    assert f"finetune: epoch 3/3, loss {loss:.4f}, 0 images/s, 0 s left\n" in capsys.readouterr().out


def test_a_disk_that_fails_does_not_stop_a_training(
    study: Study, tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Study(tmp_path / "other", study.config).finetune(CELL, None)
    monkeypatch.setattr(run, "LOOK", -1.0)
    attempts = []

    def full(path: Path, value: Any) -> None:
        attempts.append(path)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(progress, "write_json", full)
    record = study.finetune(CELL, None)
    assert attempts == [file] * 10  # it keeps trying: the disk may have room again
    said = f"{file}: could not be written (No space left on device); training goes on without it\n"
    assert capsys.readouterr().out.count(said) == 1
    assert weights_of(record) == weights_of(whole)


def test_what_stands_in_its_place_does_not_stop_a_training(
    study: Study, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.mkdir(parents=True)
    study.finetune(CELL, None)
    assert capsys.readouterr().out.count(f"{file}: could not be written (Is a directory)") == 1
    assert not file.parent.exists()


def test_the_weights_are_the_same_with_it_and_without(
    study: Study, tmp_path: Path, written: list[ProgressReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = study.finetune(CELL, None)
    assert len(written) == 10
    monkeypatch.setattr(ProgressWriter, "write", lambda *_: None)
    untold = Study(tmp_path / "other", study.config).finetune(CELL, None)
    assert weights_of(told) == weights_of(untold)
    assert [row["loss"] for row in curve_of(told)] == [row["loss"] for row in curve_of(untold)]


def test_without_a_folder_for_checkpoints_nothing_is_written(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProgressWriter, "write", lambda *_: pytest.fail("a report"))
    inputs = dict(zip(("manifest", "split", "indices"), study.finetune_inputs(CELL), strict=True))
    outputs = {what: study.root / what for what in ("weights", "record", "curve", "run")}
    stages.train(specs.finetune_spec(study.config, CELL), **inputs, **outputs)
    assert outputs["record"].is_file()


def test_a_reader_finds_it_whole_while_it_is_written(tmp_path: Path) -> None:
    writer = ProgressWriter(tmp_path)
    writer.write(ProgressReport(0.0, 1, 0, 200))
    found: set[float | None] = set()
    ended = threading.Event()

    def read() -> None:
        while not ended.is_set():
            report = read_progress(writer.path)
            found.add(report.epoch if report else None)

    reader = threading.Thread(target=read)
    reader.start()
    steps = itertools.count(1)

    def write() -> bool:
        step = next(steps)
        values = {"loss": 0.1, "images_per_second": 1 / 3, "seconds_left": 1e-9}
        writer.write(ProgressReport(step / 10**6, 1, step, 10**6, **values))
        return step >= 200 and len(found) > 10

    until(write, "reads of many different reports", every=0)
    ended.set()
    reader.join()
    assert None not in found
    assert [path.name for path in tmp_path.iterdir()] == [PROGRESS]


def test_a_later_versions_report_is_read(tmp_path: Path) -> None:
    writer = ProgressWriter(tmp_path)
    report = ProgressReport(1.5, 3, 1, 2, loss=0.5)
    writer.write(report)
    writer.path.write_text(json.dumps({**json.loads(writer.path.read_text()), "learning_rate": 0.1}))
    assert read_progress(writer.path) == report
