"""Trainings of several jobs in one process: who leads, who hands in its training, and how they tell each other.

A training job on a machine whose GPUs the driver shares out either takes a place on a GPU and *leads*, or hands its
work to a leader of the same kind of training and waits, without PyTorch, as a *member*. Each job keeps its own process,
log, outputs, claim and exit code. If a leader ends, the members left over choose another among themselves.

They meet in a folder below the claims on the GPUs. A work handed in is a folder, whose name says its state; a rename,
which one process alone can do, takes it:

    waiting_<order>_<key>_<member>/work.json            handed in
    taken_<order>_<key>_<member>_<leader>/              taken by a leader: log, signal, outcome.json
    leader_<key>_<leader>                               a leader

`member` and `leader` name a process and one attempt of it; all are of this machine, so that dead ones are known for
certain.
"""

from __future__ import annotations

import io
import json
import math
import os
import secrets
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

from viny.runtime.claims import Claim
from viny.runtime.errors import InputError, TrainingError
from viny.runtime.files import digest, read_json, write_json, write_text
from viny.runtime.gpus import Share, give_gpu_back
from viny.runtime.processes import Owner, place, remove_leftovers, unfinished
from viny.runtime.provenance import version_of
from viny.runtime.signals import STOP_SIGNALS, Stopped, on_stop

POLL = 0.3  # seconds between a member's looks at what its leader writes
LOOK = 1.0  # seconds between looks at processes and at the GPUs' places, which cost more
PATIENCE = 30.0  # seconds for which a leader leaves other leaders their share of the works
LETTING_GO = 60.0  # seconds that a stopped member gives its leader to write a checkpoint
TRIES = 3  # attempts that end without an outcome, after which a work is led by its own process alone
ORDER = {"pretrain": 0, "intermediate": 1}  # whom a free place goes to first: what most other jobs wait for
SAME = {"InputError": InputError, "TrainingError": TrainingError}  # errors that a member raises as its leader did


@dataclass(frozen=True)
class Work:
    """A training as one process hands it to another.

    Attributes:
        spec: see `viny.study.specs.training_spec`.
        arguments: further arguments of `viny.learning.stages.train`; paths as text, absolute.
        waited: whether the training's claim was waited for, whose holder may have done the work.
        study: hash of the settings of the study that it is for, as its provenance says; None where that is not known.
    """

    spec: dict[str, Any]
    arguments: dict[str, Any]
    waited: bool = False
    study: str | None = None


def stack_key(work: Work) -> str:
    """What trainings that may run as one have in common, hashed: the spec but for the cell, the pack, this Python.

    And where the encoder starts: published weights have images normalised in their own way.
    """
    spec = {name: value for name, value in work.spec.items() if name != "cell"}
    spec["start"] = work.spec.get("cell", {}).get("start")
    here = [os.path.realpath(sys.prefix), sys.version, version_of("torch")]
    return digest({"spec": spec, "manifest": os.path.realpath(work.arguments["manifest"]), "here": here})[:16]


def _attempt() -> str:
    return f"{os.getpid()}-{secrets.token_hex(4)}"


def _owner(value: Any) -> Owner:
    return Owner.parse(json.dumps(value))


@dataclass(frozen=True, order=True)
class _Entry:
    """A work in the meeting folder, by its name."""

    order: str
    key: str
    member: str
    leader: str = ""  # that has taken it; empty while it is waiting

    @classmethod
    def parse(cls, name: str) -> _Entry | None:
        state, *parts = name.split("_")
        return cls(*parts) if (state, len(parts)) in (("waiting", 3), ("taken", 4)) else None

    @property
    def name(self) -> str:
        state = "taken" if self.leader else "waiting"
        return "_".join(filter(None, (state, self.order, self.key, self.member, self.leader)))

    @property
    def age(self) -> float:
        """Seconds since it was handed in first."""
        return time.time() - int(self.order[1:]) / 1e9


@dataclass(frozen=True)
class _Leader:
    """A leader as others see it.

    Attributes:
        key: of the works that it takes.
        owner: its process.
        gpu: that it computes on.
        full: whether it takes no more works, for now or for good.
    """

    key: str
    owner: Owner
    gpu: str
    full: bool


class _Board:
    """The folder in which the jobs of a machine meet.

    Args:
        claims: of the GPUs.
    """

    def __init__(self, claims: Path) -> None:
        self.path = claims.absolute() / "stacks" / place()

    def entries(self) -> list[_Entry]:
        """All works, the first in line first."""
        return sorted(filter(None, map(_Entry.parse, self._names())))

    def _names(self) -> list[str]:
        try:
            return os.listdir(self.path)
        except FileNotFoundError:
            return []

    def leader_file(self, key: str, leader: str) -> Path:
        return self.path / f"leader_{key}_{leader}"

    def leader(self, file: Path) -> _Leader | None:
        """A living leader; None if there is none."""
        try:
            said = read_json(file, "a leader of trainings")
            found = _Leader(file.name.split("_")[1], _owner(said["owner"]), said["gpu"], said["full"])
        except (InputError, ValueError):
            return None
        return found if found.owner.state() != "dead" else None

    def leaders(self) -> list[_Leader]:
        files = [self.path / name for name in self._names() if name.startswith("leader_")]
        return list(filter(None, map(self.leader, files)))

    def lives(self, entry: _Entry) -> bool:
        """Whether the process that handed a work in still runs; not if that cannot be read."""
        try:
            said = read_json(self.path / entry.name / "work.json", "a training handed in")
            return _owner(said["owner"]).state() != "dead"
        except (InputError, ValueError):
            return False

    def sweep(self) -> None:
        """Remove what dead processes left, also those from before the machine's last start."""
        host, boot, _ = self.path.name.split("-")
        for other in self.path.parent.glob(f"{host}-*"):
            if not other.name.startswith(f"{host}-{boot}-"):
                shutil.rmtree(other, ignore_errors=True)
        for name in self._names():
            if name.startswith("leader_") and self.leader(self.path / name) is None:
                (self.path / name).unlink(missing_ok=True)
        for entry in self.entries():
            led = entry.leader and self.leader_file(entry.key, entry.leader).exists()
            if not led and not self.lives(entry):
                shutil.rmtree(self.path / entry.name, ignore_errors=True)
        remove_leftovers(self.path)

    def hand_in(self, entry: _Entry, work: Work) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        new = unfinished(self.path / entry.name)
        new.mkdir()
        text = json.dumps({"owner": asdict(Owner.me()), **asdict(work)})
        (new / "work.json").write_text(text, encoding="utf-8")
        os.rename(new, self.path / entry.name)

    def move(self, entry: _Entry, to: Path) -> bool:
        """Rename a work's folder; returns whether it was this process that did."""
        try:
            os.rename(self.path / entry.name, to)
        except FileNotFoundError:
            return to.exists()  # a network file system may repeat a request that succeeded
        return True

    def withdraw(self, entry: _Entry) -> bool:
        """Take a work back; returns whether that was in time, before a leader took it."""
        gone = unfinished(self.path / entry.name)
        if not self.move(entry, gone):
            return False
        shutil.rmtree(gone, ignore_errors=True)
        return True

    def find(self, entry: _Entry) -> _Entry | None:
        """A work as it is now: waiting, or taken; None if its folder was removed."""
        for pause in (0.0, 0.05, 0.2):  # a folder that is renamed while it is listed may be missing from the list
            time.sleep(pause)
            if (self.path / entry.name).is_dir():
                return entry
            found = [other for other in self.entries() if other.member == entry.member]
            if found:
                return found[0]
        return None


def lead_or_join(work: Work, what: str, environment: Mapping[str, str] = os.environ) -> Desk | None:
    """Take a place on a GPU, or have a process that has one do the work; waits for either.

    Call it before PyTorch is imported, while holding the training's claim.

    Args:
        work: the training.
        what: its name in messages.
        environment: holds what `viny.runtime.gpus.job_environment` returns.

    Returns:
        A desk: this process has a GPU and is to do the work, and whatever it takes from the desk. None: a leader has
        done it, and all its files are written.

    Raises:
        InputError, TrainingError, OSError: as the leader met it in this work.
        Stopped: a signal arrived here; the leader has written a checkpoint, if it could.
    """
    share = Share.told(environment)
    if share is None:
        raise ValueError("no GPUs are shared out here")
    return _Job(share, work, what).run()


class _Job:
    """A training job before it leads, and as a member."""

    def __init__(self, share: Share, work: Work, what: str) -> None:
        self.share, self.work, self.what = share, work, what
        self.board = _Board(share.claims)
        self.key, self.alone = stack_key(work), False
        self.order = f"{ORDER.get(work.spec['stage'], 2)}{time.time_ns():020d}"
        self.tries = 0
        self.signal = 0
        self._said = False

    def run(self) -> Desk | None:
        with on_stop(self._stop):
            self.board.sweep()
            while True:
                entry = _Entry(self.order, self.key, _attempt())
                self.board.hand_in(entry, self.work)
                try:
                    found = self._wait(entry)
                except BaseException:
                    self.board.withdraw(entry)
                    raise
                if isinstance(found, Desk):
                    if self.signal:
                        found.__exit__()
                        raise Stopped(self.signal, "before the training began")
                    return found
                if found is not None and self._follow(found):
                    return None
                # Whoever had it may have finished it without a word.
                self.work = replace(self.work, waited=True)

    def _stop(self, number: int) -> None:
        self.signal = self.signal or number

    def _say(self, text: str) -> None:
        print(f"{self.what}: {text}", flush=True)

    def _wait(self, entry: _Entry) -> Desk | _Entry | None:
        """Wait for a place on a GPU, or for a leader; None if the work's folder was removed."""
        looked = -LOOK
        while True:
            now = self.board.find(entry)
            if now != entry:
                return now
            if self.signal:
                if self.board.withdraw(entry):
                    raise Stopped(self.signal, "while it waited for a GPU")
                continue
            if time.monotonic() - looked >= LOOK:
                if (desk := self._lead(entry)) is not None:
                    return desk
                looked = time.monotonic()
            if not self._said:
                gpus, jobs = len(self.share.gpus), self.share.jobs
                self._say(f"waiting for one of {gpus} GPUs, with {jobs} jobs each, or for a training that takes it in")
                self._said = True
            time.sleep(POLL)

    def _lead(self, entry: _Entry) -> Desk | None:
        """Take a place on a GPU, if there is a free one and this job's turn has come."""
        if all(all(self.share.held(gpu)) for gpu in self.share.gpus):
            return None
        gate = Claim(self.board.path / "choosing")  # or two jobs of a kind could take two places of a GPU at once
        if gate.acquire() is not None:
            return None
        try:
            place = self._place(entry)
            if place is None or not self.share.take(*place):
                return None
            if not self.board.withdraw(entry):  # a leader has taken it in this moment
                give_gpu_back()
                return None
            return Desk(self.board, self.key, place[0], 1 if self.alone else self.share.stack, self.share, self.work)
        finally:
            gate.release()

    def _place(self, entry: _Entry) -> tuple[str, int] | None:
        """The place on a GPU that this job should take now: the GPU, and its number there.

        Next to an open leader of the same key, only a GPU of one's own is worth taking. Those who have no such leader
        go in order.
        """
        leaders = self.board.leaders()
        open_keys = {one.key for one in leaders if not one.full}
        for other in self.board.entries():
            if other.order >= entry.order:
                break
            if not other.leader and other.key not in open_keys and self.board.lives(other):
                return None
        held = {gpu: self.share.held(gpu) for gpu in self.share.gpus}
        best = min(self.share.gpus, key=lambda gpu: sum(held[gpu]))
        if all(held[best]) or (any(held[best]) and self.key in open_keys):
            return None
        return best, held[best].index(False)

    def _follow(self, entry: _Entry) -> bool:
        """Wait for the outcome of a work that was taken, and show what its leader says; returns whether it is done."""
        folder = self.board.path / entry.name
        file = self.board.leader_file(entry.key, entry.leader)
        leader = self.board.leader(file)
        if leader:
            self._say(f"{leader.owner} takes it in, on GPU {leader.gpu}")
        log, outcome = _Tail(folder / "log"), None
        looked, asked = -LOOK, 0.0
        try:
            while outcome is None:
                ended = False
                if time.monotonic() - looked >= LOOK:
                    looked = time.monotonic()
                    # Looked at before the outcome is, which a leader writes first.
                    ended = leader is None or not file.exists() or leader.owner.state() == "dead"
                outcome = self._outcome(folder)
                log.show()
                if ended or (asked and time.monotonic() - asked > LETTING_GO):
                    break
                if self.signal and not asked:
                    with suppress(OSError):  # the leader does not learn of it, then; all that is lost is some steps
                        write_text(folder / "signal", str(int(self.signal)))
                    asked = time.monotonic()
                if outcome is None:
                    time.sleep(POLL)
        finally:
            log.close()
            shutil.rmtree(folder, ignore_errors=True)
        return self._settle(outcome or {}, leader)

    def _outcome(self, folder: Path) -> dict[str, Any] | None:
        file = folder / "outcome.json"
        try:
            return read_json(file, "the outcome of a training") if file.exists() else None
        except InputError as error:
            return {"kind": "again", "why": str(error)}

    def _settle(self, outcome: Mapping[str, Any], leader: _Leader | None) -> bool:
        kind, why = outcome.get("kind"), outcome.get("why", "")
        if kind == "done":
            return True
        if kind == "stopped":
            number = outcome["signal"] if outcome["signal"] in STOP_SIGNALS else STOP_SIGNALS[0]
            raise Stopped(number, outcome["where"])
        if kind in SAME:
            raise SAME[kind](why)
        if kind == "OSError":
            raise OSError(outcome["errno"], why, outcome["file"])
        if self.signal:
            where = "while another process trained it; the next run goes on from its last checkpoint"
            raise Stopped(self.signal, where)
        if kind != "again":
            self.board.sweep()
            why = f"{leader.owner if leader else 'the leader'} has ended without a word about it"
        if why:
            self.tries += 1
            self._say(f"{why}; attempt {self.tries + 1}{' is its own' if self.tries == TRIES else ''}")
        else:
            self._say("its leader has let go of it; handed in again")
        if self.tries == TRIES:  # under a key that no leader takes
            self.key, self.alone = digest(f"{self.key} {_attempt()}")[:16], True
        return False


class _Tail:
    """Shows a growing file on standard output, line by line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: io.BufferedReader | None = None
        self._rest = b""

    def show(self) -> None:
        if self._file is None:
            try:
                self._file = open(self.path, "rb")  # noqa: SIM115, read on until `close`
            except FileNotFoundError:
                return
        whole, end, self._rest = (self._rest + self._file.read()).rpartition(b"\n")
        self._write(whole + end)

    def _write(self, said: bytes) -> None:
        if said:
            sys.stdout.write(said.decode(errors="replace"))
            sys.stdout.flush()

    def close(self) -> None:
        if self._file is not None:
            self.show()
            self._write(self._rest)
            self._file.close()


class _MemberLog(io.TextIOBase):
    """What a leader says about a member; as in `viny.cli.Log`, a full disk ends no training."""

    def __init__(self, path: Path) -> None:
        self._file: TextIO | None = None
        with suppress(OSError):
            self._file = open(  # noqa: SIM115, written to until `close`
                path, "a", buffering=1, encoding="utf-8", errors="backslashreplace"
            )

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            if self._file is not None:
                self._file.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            if self._file is not None:
                self._file.flush()

    def close(self) -> None:
        with suppress(OSError):
            if self._file is not None:
                self._file.close()


class Desk:
    """Where a leader takes works from; others know of it until it is closed.

    Attributes:
        key: of the works, see `stack_key`.
        gpu: CUDA's name for this process's GPU.
        size: trainings that may run at once, the leader's own included.
        work: the leader's own.
    """

    def __init__(self, board: _Board, key: str, gpu: str, size: int, share: Share, work: Work) -> None:
        self.key, self.gpu, self.size, self.work = key, gpu, size, work
        self._board, self._id, self._gpus = board, _attempt(), share
        self._file = board.leader_file(key, self._id)
        self._members: list[Member] = []
        self._full: bool | None = None
        self._taking = True
        self._publish(full=self.alone)

    @property
    def alone(self) -> bool:
        """Whether the leader's own work is the only one, for example since it has failed in stacks."""
        return self.size == 1

    def _publish(self, full: bool) -> None:
        if full != self._full:
            write_json(self._file, {"owner": asdict(Owner.me()), "gpu": self.gpu, "full": full})
            self._full = full

    def _unsettled(self) -> list[Member]:
        self._members = [member for member in self._members if not member.try_to_tell()]
        return [member for member in self._members if not member.settled]

    def take(self, room: int) -> list[Member]:
        """Take works that wait, the oldest first; each goes to one leader alone.

        Of works that have not waited for long, other leaders of the same key are left their share.

        Args:
            room: how many more this process can take now. 0 tells the waiting so.
        """
        room = min(room, self.size - 1 - len(self._unsettled())) if self._taking else 0
        taken: list[Member] = []
        if room > 0:
            waiting = [one for one in self._board.entries() if one.key == self.key and not one.leader]
            mine = self._share(waiting)
            for entry in waiting:
                if len(taken) == room or (len(taken) >= mine and entry.age < PATIENCE):
                    break
                to = _Entry(entry.order, entry.key, entry.member, self._id)
                if self._board.move(entry, self._board.path / to.name):
                    member = Member.read(self._board.path / to.name)
                    taken += [member] if member else []
            self._members += taken
        with suppress(OSError):  # then the waiting go by what was said last
            self._publish(full=len(taken) >= room)
        return taken

    def _share(self, waiting: list[_Entry]) -> int:
        """How many of the waiting works are this leader's, if all leaders of the key are to have as many.

        Whoever waits will soon lead on a GPU that is free.
        """
        leaders = sum(one.key == self.key and not one.full for one in self._board.leaders())
        leaders = max(1, leaders + bool(self._full))
        taken = sum(one.key == self.key and one.leader != "" for one in self._board.entries())
        free = sum(not any(self._gpus.held(gpu)) for gpu in self._gpus.gpus)
        return math.ceil((leaders + taken + len(waiting)) / (leaders + free)) - 1 - len(self._unsettled())

    def stop_taking(self) -> None:
        """Take no works any more, and say so."""
        self._taking = False
        with suppress(OSError):
            self._publish(full=True)

    def close(self, why: str = "") -> None:
        """Take no works any more, and give back those that are not settled.

        Args:
            why: see `Member.again`.
        """
        self._taking = False
        for member in self._unsettled():
            member.again(why)
        self._unsettled()
        self._file.unlink(missing_ok=True)

    def __enter__(self) -> Desk:
        return self

    def __exit__(self, kind: type[BaseException] | None = None, error: BaseException | None = None, *_: Any) -> None:
        try:
            self.close(_told(error) if isinstance(error, Exception) else "")
        finally:
            give_gpu_back()


def _told(error: BaseException) -> str:
    return f"its leader failed: {type(error).__name__}: {error}"


@dataclass(eq=False)
class Member:
    """A work that a leader has taken, to be settled once, by `done`, `failed`, `stopped` or `again`.

    Attributes:
        work: the training.
        owner: the process that handed it in, and waits.
        log: each line written to it soon reaches that process's output.
        settled: whether it has been settled.
    """

    work: Work
    owner: Owner
    folder: Path
    log: TextIO
    settled: bool = False
    _outcome: dict[str, Any] = field(default_factory=dict)
    _looked: float = -LOOK
    _here: bool = True
    _signal: int = 0

    @classmethod
    def read(cls, folder: Path) -> Member | None:
        """A work that was just taken; None if it cannot be read, or nobody waits for it any more."""
        try:
            said = read_json(folder / "work.json", "a training handed in")
            owner = _owner(said["owner"])
            work = Work(dict(said["spec"]), dict(said["arguments"]), said["waited"], said.get("study"))
        except (InputError, ValueError) as error:
            with suppress(OSError):
                write_json(folder / "outcome.json", {"kind": "again", "why": str(error)})
            return None
        if owner.state() == "dead":
            shutil.rmtree(folder, ignore_errors=True)
            return None
        return cls(work, owner, folder, _MemberLog(folder / "log"))  # type: ignore[arg-type]

    def _look(self) -> None:
        if time.monotonic() - self._looked < LOOK:
            return
        self._looked = time.monotonic()
        self._here = self.folder.is_dir() and self.owner.state() != "dead"
        with suppress(OSError, ValueError):
            said = int((self.folder / "signal").read_text(encoding="utf-8"))
            self._signal = said if said in STOP_SIGNALS else STOP_SIGNALS[0]

    def here(self) -> bool:
        """Whether the process that handed the work in still waits for it; at most `LOOK` seconds old."""
        self._look()
        return self._here

    def stop_signal(self) -> int:
        """Number of the signal that asked that process to stop; 0 for none. At most `LOOK` seconds old."""
        self._look()
        return self._signal

    def done(self) -> None:
        """All files of the work are written."""
        self._settle(kind="done")

    def failed(self, error: Exception) -> None:
        """The work failed by itself; its process raises the same error, or tries again if it is none that it knows."""
        kind = next((name for name, one in SAME.items() if type(error) is one), None)
        if kind:
            self._settle(kind=kind, why=str(error))
        elif isinstance(error, OSError) and error.errno is not None:
            file = None if error.filename is None else str(error.filename)
            self._settle(kind="OSError", why=error.strerror or "", errno=error.errno, file=file)
        else:
            self.again(_told(error))

    def stopped(self, signal: int, where: str) -> None:
        """The work was stopped by a signal, after a checkpoint; see `viny.runtime.signals.Stopped`."""
        self._settle(kind="stopped", signal=int(signal), where=where)

    def again(self, why: str = "") -> None:
        """The work is given back, to go on from its checkpoint elsewhere.

        Args:
            why: what went wrong, if it may be this work's fault; after `TRIES` of these it is done alone.
        """
        self._settle(kind="again", why=why)

    def _settle(self, **outcome: Any) -> None:
        if self.settled:
            raise RuntimeError("the work was settled before")
        self.settled, self._outcome = True, outcome
        self.log.close()
        self.try_to_tell()

    def try_to_tell(self) -> bool:
        """Let the process know how its work was settled; returns whether it does, or is gone."""
        if not self.settled:
            return False
        if self.owner.state() == "dead":
            shutil.rmtree(self.folder, ignore_errors=True)
        elif self._outcome and self.folder.is_dir():
            try:
                write_json(self.folder / "outcome.json", self._outcome)
            except OSError:
                return not self.folder.is_dir()  # a full disk, for example: tried again with the next look
        self._outcome = {}
        return True
