"""The job that has a GPU: it trains its own work and, beside it, what other jobs hand in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from pathlib import Path

from viny.learning.machine import Machine
from viny.learning.run import Run
from viny.learning.settings import ModelSettings
from viny.learning.stack import SharedClock, room_for, train_together
from viny.learning.stacked import stackable
from viny.learning.stages import Files, TrainingJob
from viny.runtime.signals import Stopped, on_stop
from viny.runtime.stacks import Desk, Member, Work

STAY = 60.0  # seconds for which a leader whose own work is done goes on for the others


class Leader:
    """The host of a stack; see `viny.learning.stack.Host`.

    Args:
        desk: where others hand in.
        work: its own.
    """

    def __init__(self, desk: Desk, work: Work) -> None:
        self.desk, self.work = desk, work
        spec = work.spec
        self.machine = Machine.choose(spec["device"], spec["precision"], work.arguments["threads"])
        self.signal = 0
        self.solitary = False  # whether its kind of training is done by itself
        self.own: Work | None = work  # until its run has begun
        self.done = False
        self.error: BaseException | None = None

    def train(self) -> None:
        """Train until its own work is done, and longer if the others are done soon.

        Raises:
            InputError, TrainingError, Stopped, OSError: its own work's.
        """
        spec = self.work.spec
        most = 1 if self.desk.alone else self.desk.size
        most = room_for(ModelSettings(**spec["model"]), spec["train"]["batch_size"], self.machine, most)
        with on_stop(self._stop):
            try:
                train_together(self, self.machine, most)
            except Exception as error:
                if not self.done:
                    raise
                # Its own files are written, or its own error is the one to tell.
                print(f"{spec['stage']}: {type(error).__name__} in others' trainings: {error}", flush=True)
                self.desk.close(f"its leader failed: {type(error).__name__}: {error}")
        if self.error is not None:
            raise self.error

    def _stop(self, number: int) -> None:
        self.signal = self.signal or number

    def job(self, work: Work, member: Member | None) -> TrainingJob | None:
        """A work as a job that is about to begin; None if another process has made it meanwhile."""
        given = work.arguments
        paths = {name: None if given[name] is None else Path(given[name]) for name in Files._fields if name != "tuned"}
        owner = None if member is None else member.owner
        minutes, threads = given["checkpoint_minutes"], given["threads"]
        files = Files(**paths, tuned=tuple(map(Path, given.get("tuned") or ())))
        job = TrainingJob(work.spec, files, self.machine, threads, minutes, False, owner, work.study)
        if work.waited and job.is_made():
            return None
        job.begin()
        return job

    def guests(self, room: int, clock: SharedClock) -> list[_Guest]:
        found = []
        if self.own is not None:
            work, self.own = self.own, None
            job = self.job(work, None)
            if job is None:
                self.done = True
            else:
                found.append(_Guest(self, job, job.new_run(), None))
                self.solitary = not stackable(job.objective)
        if self.solitary:
            self.desk.stop_taking()
        for member in [] if self.done or self.signal or self.solitary else self.desk.take(room - len(found)):
            try:
                with redirect_stdout(member.log):
                    job = self.job(member.work, member)
                    run = None if job is None else job.new_run()
            except Exception as error:  # the member's own, whatever it is: it will raise it or try by itself
                member.failed(error)
                continue
            if job is None or run is None:
                member.done()
            else:
                found.append(_Guest(self, job, run, member))
        for guest in found:
            guest.run.use(clock)
        return found

    def leaving(self, left: float) -> bool:
        if self.done:
            self.desk.stop_taking()
        return bool(self.signal) or (self.done and left > STAY)


class _Guest:
    """A run in the leader's stack; see `viny.learning.stack.Guest`."""

    def __init__(self, leader: Leader, job: TrainingJob, run: Run, member: Member | None) -> None:
        self.leader, self.job, self.run, self.member = leader, job, run, member

    def lines(self) -> AbstractContextManager[object]:
        return nullcontext() if self.member is None else redirect_stdout(self.member.log)

    def here(self) -> bool:
        return self.member is None or self.member.here()

    def stop_signal(self) -> int:
        return self.leader.signal if self.member is None else self.member.stop_signal()

    def ended(self, error: BaseException | None) -> None:
        try:
            if error is None:
                with self.lines():
                    self.job.finish(self.run, self.run.finish())
        except Exception as found:  # a full disk, for one; the others are trained on
            error = found
        if self.member is None:
            self.leader.done, self.leader.error = True, error
        elif error is None:
            self.member.done()
        elif isinstance(error, Stopped):
            self.member.stopped(error.signal, error.where)
        else:
            assert isinstance(error, Exception)
            self.member.failed(error)

    def sent_away(self, why: str) -> None:
        assert self.member is not None, "the leader's own run is the last to leave"
        self.member.again(why)
