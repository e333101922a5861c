"""A job that leads: it trains its own work and others', file for file as each would have been trained by itself."""

from __future__ import annotations

import copy
import io
import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_study import Study

from viny.learning import engine as engine_module
from viny.learning import leader as leader_module
from viny.learning import stack as stack_module
from viny.learning.leader import Leader
from viny.learning.progress import ProgressReport, read_progress
from viny.learning.weights import load_weights, weights_beside
from viny.runtime.errors import InputError, TrainingError
from viny.runtime.files import read_sealed
from viny.runtime.processes import Owner
from viny.runtime.signals import Stopped
from viny.runtime.stacks import Work, stack_key
from viny.study import specs
from viny.study.grid import Cell

CELLS = [Cell(0, "none", 16, 0), Cell(0, "none", 8, 0), Cell(0, "none", 16, 1)]
MINE, THEIRS, OTHERS = CELLS


@dataclass
class Guest:
    """A member as a leader sees it."""

    work: Work
    signal_at: int = 0  # 1 for its first look, and so on
    gone_at: int = 0
    outcome: Any = None
    log: io.StringIO = field(default_factory=io.StringIO)
    owner: Owner = field(default_factory=lambda: Owner("elsewhere", "a-b-c", 1, "now"))
    looks: int = 0

    def here(self) -> bool:
        self.looks += 1
        return not self.gone_at or self.looks < self.gone_at

    def stop_signal(self) -> int:
        return signal.SIGTERM if self.signal_at and self.looks >= self.signal_at else 0

    def _settle(self, outcome: Any) -> None:
        assert self.outcome is None
        self.outcome = outcome

    def done(self) -> None:
        self._settle("done")

    def failed(self, error: Exception) -> None:
        self._settle(error)

    def stopped(self, number: int, where: str) -> None:
        self._settle((number, where))

    def again(self, why: str = "") -> None:
        self._settle(f"again: {why}")


@dataclass
class Table:
    """A desk at which members wait from the beginning."""

    waiting: list[Guest] = field(default_factory=list)
    size: int = 8
    alone: bool = False
    closed: bool = False
    why: str = ""

    def take(self, room: int) -> list[Guest]:
        assert not self.closed
        taken, self.waiting = self.waiting[:room], self.waiting[room:]
        return taken

    def stop_taking(self) -> None:
        self.closed = True

    def close(self, why: str = "") -> None:
        self.closed, self.why = True, why


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack_module, "POLL", -1.0)
    monkeypatch.setattr(engine_module, "AHEAD", 0.0)


@pytest.fixture
def study(tmp_path: Path, made_study: Callable[[str], dict[str, Any]]) -> Study:
    return Study(tmp_path / "study", made_study("sound"))


def work(study: Study, cell: Cell, **more: Any) -> Work:
    """A fine-tuning from random weights; its files are in a folder of the cell's."""
    root = study.root / cell.name
    split_spec = specs.finetune_split_spec(study.config, cell.finetune_size, cell.seed)
    (study.root / "splits").mkdir(parents=True, exist_ok=True)
    manifest = study.pack("segmentation")
    split, indices = study.split(cell.name, split_spec, manifest)
    files = {"manifest": manifest, "split": split, "indices": indices, "parent": None}
    files |= {"weights": root / "model.safetensors", "record": root / "model.json", "curve": root / "curve.csv"}
    files |= {"run": root / "run.json", "checkpoints": root / "checkpoints"}
    arguments = {name: path and str(path) for name, path in files.items()}
    return Work(specs.finetune_spec(study.config, cell), {**arguments, "checkpoint_minutes": 5.0, "threads": 1, **more})


def by_itself(study: Study, cell: Cell) -> Work:
    """The same work, done by `train`."""
    other = Study(study.root / "alone", study.config)
    found = work(other, cell)
    from viny.learning.stages import train

    paths = {k: Path(v) for k, v in found.arguments.items() if isinstance(v, str)}
    train(found.spec, **paths)
    return found


def outputs(given: Work) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, Any]]:
    record = Path(given.arguments["record"])
    about = read_sealed(record, "a weights record")
    run = read_sealed(Path(given.arguments["run"]), "a provenance")
    return load_weights(weights_beside(record))[0], about, run


def farthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return float(torch.cat([(a[name] - b[name]).abs().flatten() for name in a]).quantile(0.9))


def test_each_works_files_are_those_of_a_training_by_itself(study: Study) -> None:
    mine = work(study, MINE)
    members = [Guest(work(study, THEIRS)), Guest(work(study, OTHERS))]
    Leader(Table(list(members)), mine).train()
    assert [member.outcome for member in members] == ["done", "done"]
    for given, cell in zip((mine, *(member.work for member in members)), CELLS, strict=True):
        weights, record, run = outputs(given)
        expected, record_alone, run_alone = outputs(by_itself(study, cell))
        assert farthest(weights, expected) < 1e-4
        rounding = ("weights_sha256", "final_loss", "sha256")
        assert {k: v for k, v in record.items() if k not in rounding} == {
            k: v for k, v in record_alone.items() if k not in rounding
        }
        assert record["final_loss"] == pytest.approx(record_alone["final_loss"], rel=1e-4)
        assert set(run) == set(run_alone)
        assert run["stacked"] > 1 == run_alone["stacked"]
        for key in ("image_passes", "seed", "precision", "device", "threads"):
            assert run[key] == run_alone[key]
        assert run["hashes"] | {"weights": ""} == run_alone["hashes"] | {"weights": ""}
        assert not Path(given.arguments["checkpoints"]).exists()  # the training is finished


def test_each_works_lines_come_in_its_own_log(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    member = Guest(work(study, THEIRS))
    Leader(Table([member]), work(study, MINE)).train()
    mine, theirs = capsys.readouterr().out, member.log.getvalue()
    assert mine.startswith("finetune: 16 images, ") and theirs.startswith("finetune: 8 images, ")
    assert "finetune: epoch 3/3, loss " in mine and "finetune: epoch 3/3, loss " in theirs
    assert mine.count("images, ") == theirs.count("images, ") == 1


def test_trainings_of_one_kind_fit_and_others_do_not(study: Study) -> None:
    keys = {stack_key(work(study, cell)) for cell in CELLS}
    assert len(keys) == 1
    config = copy.deepcopy(study.config)
    config["finetune"]["lr"] *= 2
    other = Study(study.root, config)
    assert stack_key(work(other, MINE)) not in keys


def test_a_member_without_its_inputs_fails_alone(study: Study) -> None:
    bad = Guest(work(study, OTHERS, split=str(study.root / "absent.json")))
    good = Guest(work(study, THEIRS))
    Leader(Table([bad, good]), work(study, MINE)).train()
    assert isinstance(bad.outcome, InputError) and "absent.json" in str(bad.outcome)
    assert good.outcome == "done"


def test_a_member_whose_disk_is_full_fails_alone(study: Study) -> None:
    blocked = study.root / "blocked"
    blocked.parent.mkdir(parents=True, exist_ok=True)
    blocked.write_text("a file where a folder should be")
    bad = Guest(work(study, OTHERS, weights=str(blocked / "model.safetensors")))
    good = Guest(work(study, THEIRS))
    Leader(Table([bad, good]), work(study, MINE)).train()
    assert isinstance(bad.outcome, OSError)
    assert good.outcome == "done"
    assert outputs(work(study, MINE))


def test_a_leader_that_fails_trains_the_others_before_it_says_so(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, member = work(study, MINE), Guest(work(study, THEIRS))
    blocked = study.root / "blocked"
    blocked.write_text("a file where a folder should be")
    mine.arguments["weights"] = str(blocked / "model.safetensors")
    with pytest.raises(OSError, match="blocked"):
        Leader(Table([member]), mine).train()
    assert member.outcome == "done"


def test_a_work_that_was_made_meanwhile_is_not_made_again(study: Study) -> None:
    made = by_itself(study, THEIRS)
    before = Path(made.arguments["record"]).stat().st_mtime_ns
    member = Guest(Work(made.spec, made.arguments, waited=True))
    own = by_itself(study, MINE)
    table = Table([member])
    Leader(table, Work(own.spec, own.arguments, waited=True)).train()
    assert table.waiting == [member]  # nothing to lead: the next one will find it made
    Leader(Table([member]), work(study, OTHERS)).train()
    assert member.outcome == "done" and "already exists" in member.log.getvalue()
    assert Path(made.arguments["record"]).stat().st_mtime_ns == before


def test_a_stopped_member_goes_on_where_it_was(study: Study) -> None:
    member = Guest(work(study, OTHERS), signal_at=3)
    Leader(Table([member]), work(study, MINE)).train()
    number, where = member.outcome
    assert number == signal.SIGTERM and "the next run goes on from" in where
    assert list(Path(member.work.arguments["checkpoints"]).glob("*.safetensors"))
    again = Guest(work(study, OTHERS))
    Leader(Table([again]), work(study, THEIRS)).train()
    assert again.outcome == "done" and "going on from " in again.log.getvalue()
    weights, _, run = outputs(again.work)
    assert farthest(weights, outputs(by_itself(study, OTHERS))[0]) < 1e-4
    assert len(run["earlier_attempts"]) == 1


def test_a_killed_member_is_dropped_and_nothing_of_it_is_written(study: Study) -> None:
    member = Guest(work(study, THEIRS), gone_at=3)
    Leader(Table([member]), work(study, MINE)).train()
    assert member.outcome == "again: "
    assert not Path(member.work.arguments["weights"]).exists()
    assert outputs(work(study, MINE))


def test_a_stopped_leader_saves_everybody(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    member = Guest(work(study, OTHERS))
    leader = Leader(Table([member]), work(study, MINE))
    collect, calls = engine_module.Engine.collect, 0

    def killing(self: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return collect(self)

    monkeypatch.setattr(engine_module.Engine, "collect", killing)
    with pytest.raises(Stopped, match="the next run goes on from"):
        leader.train()
    assert member.outcome == "again: "
    for cell in (MINE, OTHERS):
        assert list(Path(work(study, cell).arguments["checkpoints"]).glob("*.safetensors"))
    monkeypatch.undo()
    rest = Guest(work(study, MINE))
    Leader(Table([rest]), work(study, OTHERS)).train()
    for cell in (MINE, OTHERS):
        weights, _, run = outputs(work(study, cell))
        assert farthest(weights, outputs(by_itself(study, cell))[0]) < 1e-4
        assert len(run["earlier_attempts"]) == 1


def test_a_leader_that_is_done_hands_the_others_over(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leader_module, "STAY", -1.0)
    table = Table([member := Guest(work(study, MINE))])
    Leader(table, work(study, THEIRS)).train()  # with half the images
    assert member.outcome == "again: " and table.closed
    assert outputs(work(study, THEIRS))
    assert list(Path(member.work.arguments["checkpoints"]).glob("*.safetensors"))


def test_a_member_that_diverges_is_told_so(study: Study) -> None:
    bad = work(study, OTHERS)
    train = {**bad.spec["train"], "lr": 1e12}
    member = Guest(Work({**bad.spec, "train": train}, bad.arguments))
    Leader(Table([member]), work(study, MINE)).train()
    assert isinstance(member.outcome, TrainingError) and "became" in str(member.outcome)
    assert outputs(work(study, MINE))


def test_a_kind_that_does_not_stack_takes_nobody_in(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leader_module, "stackable", lambda objective: False)
    table = Table([Guest(work(study, THEIRS))])
    Leader(table, work(study, MINE)).train()
    assert len(table.waiting) == 1 and table.closed
    assert outputs(work(study, MINE))


def test_progress_names_the_members_own_process(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, ProgressReport | None] = {}
    member = Guest(work(study, THEIRS))
    take = member.here

    def here() -> bool:
        for given in (member.work, mine):
            where = Path(given.arguments["checkpoints"])
            seen[where.parent.name] = read_progress(where / "progress.json") or seen.get(where.parent.name)
        return take()

    mine = work(study, MINE)
    member.here = here  # type: ignore[method-assign]
    Leader(Table([member]), mine).train()
    theirs, own = seen[THEIRS.name], seen[MINE.name]
    assert theirs is not None and theirs.process == member.owner
    assert own is not None and own.process == Owner.me()


def test_works_are_json(study: Study) -> None:
    given = work(study, MINE)
    assert json.loads(json.dumps(given.arguments)) == given.arguments


def test_an_error_in_others_trainings_does_not_undo_its_own(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own files are written: a job that failed now would have them deleted."""
    member = Guest(work(study, MINE))
    table = Table([member])
    leader = Leader(table, work(study, THEIRS))  # with half the images
    collect = engine_module.Engine.collect

    def failing(self: Any) -> Any:
        if leader.done:
            raise RuntimeError("CUDA error: unspecified launch failure")
        return collect(self)

    monkeypatch.setattr(engine_module.Engine, "collect", failing)
    leader.train()
    assert outputs(work(study, THEIRS))
    assert table.why == "its leader failed: RuntimeError: CUDA error: unspecified launch failure"
    monkeypatch.setattr(engine_module.Engine, "collect", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Leader(Table(), work(study, OTHERS)).train()
