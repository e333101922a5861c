"""Jobs that hand their trainings to each other, with real processes that really die; nothing is trained."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE, until

from viny.runtime import stacks
from viny.runtime.claims import Claim
from viny.runtime.gpus import Share, job_environment
from viny.runtime.processes import place
from viny.runtime.stacks import Work, stack_key

# A job's process: the command line, with stand-ins for the training. A work takes so many `steps`, which it counts in
# its checkpoint; its files are one, to which each completion adds a line. What a work is to do wrong, its spec says.
JOB = """
import errno, os, signal, sys, time, types
from pathlib import Path
from viny import cli
from viny.runtime import stacks
from viny.runtime.claims import Claim
from viny.runtime.errors import InputError, TrainingError
from viny.runtime.signals import Stopped, on_stop

assert "torch" not in sys.modules
stacks.POLL, stacks.LOOK = 0.02, 0.05
if os.environ.get("LETTING_GO"):
    stacks.LETTING_GO = float(os.environ["LETTING_GO"])
PAUSE = float(os.environ.get("PAUSE", 0.01))

class Run:
    def __init__(self, work, log, member=None):
        self.work, self.log, self.member = work, log, member
        self.name, self.how = work.spec["cell"]["name"], work.spec["cell"].get("how", "")
        self.out, self.kept = Path(work.arguments["weights"]), Path(work.arguments["checkpoints"])
        self.kept.mkdir(parents=True, exist_ok=True)
        self.step = int((self.kept / "step").read_text()) if (self.kept / "step").exists() else 0
        print(f"{self.name}: from step {self.step} in {os.getpid()}, on {os.environ['CUDA_VISIBLE_DEVICES']}", file=log)

    def go(self):
        if self.step == 2 and self.how:
            error = {"input": InputError("bad.png: bad"), "training": TrainingError("loss is no number"),
                     "disk": OSError(errno.ENOSPC, "No space left on device", "w"), "odd": ZeroDivisionError("odd")}
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise error[self.how]
        self.step += 1
        (self.kept / "going").touch()
        if self.step >= self.work.spec["cell"]["steps"]:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            with open(self.out, "a") as f:
                f.write(f"{self.name} by {os.getpid()}\\n")
            print(f"{self.name}: done", file=self.log)
            return True
        return False

    def save(self):
        (self.kept / "new").write_text(str(self.step))
        os.replace(self.kept / "new", self.kept / "step")

def lead(desk, work):
    got, runs, own = [], [Run(work, sys.stdout)], False
    error = None
    with on_stop(got.append):
        while runs:
            if not own:
                taken = desk.take(desk.size - len(runs))
                runs += [Run(one.work, one.log, one) for one in taken]
            for run in list(runs):
                if got:
                    break
                if run.member and not run.member.here():
                    runs.remove(run)
                    run.member.again()
                elif run.member and run.member.stop_signal():
                    runs.remove(run)
                    run.save()
                    run.member.stopped(run.member.stop_signal(), f"in step {run.step}")
                else:
                    try:
                        ended = run.go()
                    except Exception as fault:
                        if run.member is None and not isinstance(fault, (InputError, TrainingError, OSError)):
                            raise
                        runs.remove(run)
                        if run.member:
                            run.member.failed(fault)
                        else:
                            own, error = True, fault
                            desk.stop_taking()
                        continue
                    if ended:
                        runs.remove(run)
                        if run.member:
                            run.member.done()
                        else:
                            own = True
                            desk.stop_taking()
            time.sleep(PAUSE)
            if got:
                for run in runs:
                    run.save()
                raise Stopped(got[0], f"in step {runs[0].step}")
    if error:
        raise error

sys.modules["viny.learning.stages"] = types.SimpleNamespace(lead=lead)
sys.exit(cli.main(sys.argv[1:]))
"""


class Jobs:
    """Starts jobs in one folder, and looks at what becomes of them."""

    def __init__(self, folder: Path, gpus: int = 1, jobs_per_gpu: int = 1, stack: int = 24) -> None:
        self.folder, self.claims = folder, folder / "results" / ".gpus"
        names = [str(number) for number in range(gpus)]
        self.environment = job_environment(names, jobs_per_gpu, self.claims, stack)
        self.started: list[subprocess.Popen[bytes]] = []

    def start(
        self, name: str, steps: int = 20, how: str = "", kind: str = "a", stage: str = "finetune", **environment: str
    ) -> subprocess.Popen[bytes]:
        cell = {"name": name, "how": how, "steps": steps}
        spec = {"stage": stage, "device": "auto", "cell": cell, "kind": kind}
        files = {
            **{key: self.folder / "made" / f"{name}.{key}" for key in ("record", "curve", "run")},
            **{key: self.folder / "in" / key for key in ("manifest", "split", "indices")},
            "weights": self.out(name),
            "checkpoints": self.kept(name),
        }
        flags = [f"--{key}={path}" for key, path in files.items()]
        command = [sys.executable, "-c", JOB, stage, "--spec", json.dumps(spec), "--threads", "0", *flags]
        log = self.log(name)
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "wb") as out:
            one = subprocess.Popen(
                command,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment, **environment},
                cwd=self.folder,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
            )
        self.started.append(one)
        return one

    def out(self, name: str) -> Path:
        return self.folder / "made" / name

    def kept(self, name: str) -> Path:
        return self.folder / "checkpoints" / name

    def log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    def said(self, name: str) -> str:
        return self.log(name).read_text()

    def leader_of(self, name: str) -> int:
        """The process that trained it last."""
        return int(self.said(name).rpartition(" in ")[2].split(",")[0])

    def made(self) -> Counter[str]:
        return Counter(path.name for path in (self.folder / "made").iterdir() for _ in path.read_text().splitlines())

    def left(self) -> list[str]:
        """What is in the folder where jobs meet."""
        folder = self.claims / "stacks" / place()
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def places(self) -> list[str]:
        """Those that somebody has; what a killed process leaves of its own is void."""
        return sorted(path.name for path in self.claims.glob("gpu-*") if Claim(path).holder() is not None)


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Callable[..., Jobs]]:
    made: list[Jobs] = []

    def make(**options: Any) -> Jobs:
        made.append(Jobs(tmp_path, **options))
        return made[-1]

    yield make
    for one in made:
        for process in one.started:
            process.kill()
            process.wait()


def taken(all_jobs: Jobs, *names: str) -> Callable[[], bool]:
    return lambda: all("from step" in all_jobs.said(name) for name in names)


def going(all_jobs: Jobs, *names: str) -> Callable[[], bool]:
    """Each has taken a step."""
    return lambda: all((all_jobs.kept(name) / "going").exists() for name in names)


def test_a_key_is_of_what_must_be_equal(tmp_path: Path) -> None:
    spec = {"stage": "finetune", "model": {"dim": 8}, "cell": {"seed": 1}}
    work = Work(spec, {"manifest": str(tmp_path / "m"), "weights": "/a"})
    (tmp_path / "link").symlink_to(tmp_path / "m")
    same = Work({**spec, "cell": {"seed": 2}}, {"manifest": str(tmp_path / "link"), "weights": "/b"}, waited=True)
    assert stack_key(work) == stack_key(same)
    for other in (
        Work({**spec, "stage": "pretrain"}, work.arguments),
        Work({**spec, "model": {"dim": 9}}, work.arguments),
        Work(spec, {"manifest": str(tmp_path / "other")}),
    ):
        assert stack_key(other) != stack_key(work)


def test_one_job_leads_and_the_others_are_trained_by_it(jobs: Callable[..., Jobs]) -> None:
    all_jobs = jobs()
    first = all_jobs.start("first", steps=100000)
    until(taken(all_jobs, "first"), "a leader")
    others = [all_jobs.start(f"m{number}") for number in range(4)]
    assert [one.wait(PATIENCE) for one in others] == [0] * 4
    assert first.poll() is None
    for number in range(4):
        said = all_jobs.said(f"m{number}").splitlines()
        assert said[0].startswith("$ python -m viny finetune")
        assert said[-2:] == [f"m{number}: from step 0 in {first.pid}, on 0", f"m{number}: done"]
        assert all_jobs.out(f"m{number}").read_text() == f"m{number} by {first.pid}\n"
        assert not all_jobs.kept(f"m{number}").with_name(f"m{number}.claim").exists()
    assert "m0" not in all_jobs.said("first")
    first.send_signal(signal.SIGTERM)
    assert first.wait(PATIENCE) == 128 + signal.SIGTERM
    assert (all_jobs.left(), all_jobs.places()) == ([], [])


def test_a_stack_holds_as_many_as_it_is_told(jobs: Callable[..., Jobs]) -> None:
    all_jobs = jobs(stack=3)
    first = all_jobs.start("first", steps=100000)
    until(taken(all_jobs, "first"), "a leader")
    for number in range(4):
        all_jobs.start(f"m{number}", steps=100000)
    names = [f"m{number}" for number in range(4)]
    until(lambda: sum(taken(all_jobs, name)() for name in names) == 2, "two members")
    time.sleep(0.5)
    assert sum(taken(all_jobs, name)() for name in names) == 2
    assert sum("waiting for one of 1 GPUs, with 1 jobs each" in all_jobs.said(name) for name in names) >= 2
    first.send_signal(signal.SIGTERM)
    assert first.wait(PATIENCE) == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("input", 2, "viny: bad.png: bad"),
        ("training", 1, "viny: loss is no number"),
        ("disk", 1, "viny: w: No space left on device; free space or mend the disk and run again, what is done stays"),
    ],
)
def test_a_work_that_fails_fails_in_its_own_job_as_it_would_alone(
    how: str, code: int, said: str, jobs: Callable[..., Jobs]
) -> None:
    all_jobs = jobs()
    alone = all_jobs.start("alone", how=how)
    assert alone.wait(PATIENCE) == code
    first = all_jobs.start("first", steps=100000)
    until(taken(all_jobs, "first"), "a leader")
    member, sound = all_jobs.start("member", how=how), all_jobs.start("sound")
    assert (member.wait(PATIENCE), sound.wait(PATIENCE), first.poll()) == (code, 0, None)
    assert all_jobs.said("alone").splitlines()[-1] == all_jobs.said("member").splitlines()[-1] == said
    assert f" in {first.pid}," in all_jobs.said("member")


@pytest.mark.parametrize("how", ["odd", "kill"])
def test_a_work_with_an_unknown_fault_ends_up_alone(how: str, jobs: Callable[..., Jobs]) -> None:
    """Even if it takes its leader with it each time."""
    all_jobs = jobs(gpus=2)
    bad = all_jobs.start("bad", how=how)
    sound = [all_jobs.start(f"m{number}", steps=250 if how == "odd" else 40) for number in range(5)]
    code = bad.wait(PATIENCE)
    log = all_jobs.said("bad")
    assert code == (1 if how == "odd" else -signal.SIGKILL)
    assert f" in {bad.pid}," in log.rpartition("from step")[2]
    assert "attempt" not in log or "attempt 4 is its own" in log
    if how == "odd":
        assert "Traceback" in log and log.splitlines()[-1] == "ZeroDivisionError: odd"
    codes = [one.wait(PATIENCE) for one in sound]
    assert set(codes) <= {0, -signal.SIGKILL} and codes.count(-signal.SIGKILL) <= (0 if how == "odd" else 3)
    assert all(count == 1 for count in all_jobs.made().values())


def test_a_member_that_is_stopped_while_it_waits_takes_its_work_back(jobs: Callable[..., Jobs]) -> None:
    all_jobs = jobs()
    first = all_jobs.start("first", steps=100000, kind="other")
    until(taken(all_jobs, "first"), "a leader of other works")
    waiting = all_jobs.start("waiting")
    until(lambda: "waiting for one of" in all_jobs.said("waiting"), "a job that waits")
    waiting.send_signal(signal.SIGTERM)
    assert waiting.wait(PATIENCE) == 128 + signal.SIGTERM
    assert all_jobs.said("waiting").splitlines()[-1] == "viny: stopped by SIGTERM while it waited for a GPU"
    assert not [name for name in all_jobs.left() if not name.startswith("leader")]
    first.kill()


def test_a_member_that_is_stopped_ends_after_a_checkpoint_and_goes_on_from_it(jobs: Callable[..., Jobs]) -> None:
    all_jobs = jobs()
    first = all_jobs.start("first", steps=100000)
    until(taken(all_jobs, "first"), "a leader")
    member = all_jobs.start("member", steps=100000)
    until(going(all_jobs, "member"), "a member")
    member.send_signal(signal.SIGINT)
    assert member.wait(PATIENCE) == 128 + signal.SIGINT
    step = int((all_jobs.kept("member") / "step").read_text())
    assert all_jobs.said("member").splitlines()[-1] == f"viny: stopped by SIGINT in step {step}"
    assert step > 0 and first.poll() is None
    again = all_jobs.start("member", steps=step + 5)
    assert again.wait(PATIENCE) == 0
    assert f"member: from step {step} in {first.pid}, on 0" in all_jobs.said("member")
    assert all_jobs.made() == {"member": 1}


def test_a_member_that_is_killed_is_dropped_and_not_mistaken_for_its_next_job(jobs: Callable[..., Jobs]) -> None:
    all_jobs = jobs()
    first = all_jobs.start("first", steps=100000)
    until(taken(all_jobs, "first"), "a leader")
    member = all_jobs.start("member", steps=100000)
    until(taken(all_jobs, "member"), "a member")
    member.kill()
    member.wait()
    again = all_jobs.start("member", steps=10)  # the first one's work would not end
    assert again.wait(PATIENCE) == 0
    until(lambda: all(name.startswith("leader") for name in all_jobs.left()), "a clean folder")
    assert first.poll() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_if_the_leader_ends_a_member_leads_the_rest(number: int, jobs: Callable[..., Jobs]) -> None:
    all_jobs = jobs()
    first = all_jobs.start("first", steps=100000)
    until(taken(all_jobs, "first"), "a leader")
    names = ["a", "b", "c"]
    members = [all_jobs.start(name, steps=100) for name in names]
    until(going(all_jobs, *names), "members")
    first.send_signal(number)
    code = first.wait(PATIENCE)
    assert code == (128 + number if number == signal.SIGTERM else -number)
    assert [one.wait(PATIENCE) for one in members] == [0] * 3
    leaders = {all_jobs.leader_of(name) for name in names}
    assert len(leaders) == 1 and leaders < {one.pid for one in members}
    assert all_jobs.made() == dict.fromkeys(names, 1)
    if number == signal.SIGTERM:  # it has written checkpoints
        assert all("from step 0" not in all_jobs.said(name).rpartition("from ")[1:] for name in names)
        assert all(int(all_jobs.said(name).rpartition("from step ")[2].split()[0]) > 0 for name in names)
        assert all("attempt" not in all_jobs.said(name) for name in names)
    else:
        assert all("has ended without a word about it; attempt 2" in all_jobs.said(name) for name in names)
    assert (all_jobs.left(), all_jobs.places()) == ([], [])


def test_a_leader_that_does_not_answer_is_waited_for_no_longer_than_that(jobs: Callable[..., Jobs]) -> None:
    all_jobs = jobs()
    first = all_jobs.start("first", steps=100000)
    until(taken(all_jobs, "first"), "a leader")
    member = all_jobs.start("member", steps=100000, LETTING_GO="0.5")
    until(taken(all_jobs, "member"), "a member")
    first.send_signal(signal.SIGSTOP)
    try:
        member.send_signal(signal.SIGTERM)
        assert member.wait(PATIENCE) == 128 + signal.SIGTERM
    finally:
        first.send_signal(signal.SIGCONT)
    assert "stopped by SIGTERM while another process trained it" in all_jobs.said("member").splitlines()[-1]
    until(lambda: all(name.startswith("leader") for name in all_jobs.left()), "a clean folder")


def test_all_end_with_a_signal_to_all(jobs: Callable[..., Jobs]) -> None:
    all_jobs = jobs(gpus=2)
    names = [f"m{number}" for number in range(8)]
    members = [all_jobs.start(name, steps=100000) for name in names]
    until(taken(all_jobs, *names), "all at work")
    for one in members:
        one.send_signal(signal.SIGTERM)
    assert {one.wait(PATIENCE) for one in members} == {128 + signal.SIGTERM}
    assert all("viny: stopped by SIGTERM" in all_jobs.said(name).splitlines()[-1] for name in names)
    assert all((all_jobs.kept(name) / "step").is_file() for name in names)
    assert (all_jobs.left(), all_jobs.places()) == ([], [])


def test_members_spread_over_the_gpus(jobs: Callable[..., Jobs]) -> None:
    all_jobs = jobs(gpus=3, jobs_per_gpu=2)
    names = [f"m{number}" for number in range(12)]
    for name in names:
        all_jobs.start(name, steps=100000)
    until(taken(all_jobs, *names), "all at work")
    leaders = Counter(all_jobs.leader_of(name) for name in names)
    assert len(leaders) == 3 and min(leaders.values()) >= 2  # not all are there when the first are taken
    assert all_jobs.places() == [f"gpu-{gpu}_job-0" for gpu in range(3)]
    # Of another kind: a second process on one of the GPUs.
    all_jobs.start("other", kind="b", steps=100000)
    until(taken(all_jobs, "other"), "another leader")
    assert len(all_jobs.places()) == 4


def test_a_free_place_goes_to_the_first_in_line(jobs: Callable[..., Jobs]) -> None:
    all_jobs = jobs()
    first = all_jobs.start("first", kind="a", steps=100000)
    until(taken(all_jobs, "first"), "a leader")
    for name, stage in (("late", "finetune"), ("later", "finetune"), ("early", "pretrain")):
        all_jobs.start(name, kind=name, stage=stage, steps=100000)
        until(lambda: "waiting for one of" in all_jobs.said(name), "a job that waits")  # noqa: B023
    for name, others in (("early", ["late", "later"]), ("late", ["later"]), ("later", [])):
        first.kill()
        first.wait()
        until(taken(all_jobs, name), name)
        assert not any(taken(all_jobs, other)() for other in others)
        first = next(one for one in all_jobs.started if one.pid == all_jobs.leader_of(name))


def test_what_dead_processes_left_is_swept(jobs: Callable[..., Jobs]) -> None:
    all_jobs = jobs()
    folder = all_jobs.claims / "stacks" / place()
    host, boot, space = place().split("-")
    earlier = folder.with_name(f"{host}-{boot[::-1]}x-{space}")
    (earlier / "waiting_1_a_b").mkdir(parents=True)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    owner = {"host": "x", "place": place(), "pid": dead.pid, "started": "1"}
    for name in ("waiting_200_ab_1-a", "taken_200_ab_1-a_2-b", "taken_201_ab_1-c_2-b"):
        (folder / name).mkdir(parents=True)
    handed = {"owner": owner, "spec": {}, "arguments": {}, "waited": False}
    (folder / "waiting_200_ab_1-a" / "work.json").write_text(json.dumps(handed))
    (folder / "taken_200_ab_1-a_2-b" / "work.json").write_text("{" + "[" * 50)
    (folder / "leader_ab_2-b").write_text(json.dumps({"owner": owner, "gpu": "0", "full": False}))
    (folder / "leader_ab_3-b").write_text("half")
    (folder / f".waiting_2.{place()}-{dead.pid}-0.tmp").mkdir()
    (folder / "unknown").touch()
    assert all_jobs.start("one").wait(PATIENCE) == 0
    assert all_jobs.left() == ["unknown"]
    assert not earlier.exists()


def test_a_work_whose_folder_is_lost_or_damaged_is_handed_in_again(jobs: Callable[..., Jobs]) -> None:
    all_jobs = jobs()
    first = all_jobs.start("first", kind="b", steps=100000)
    until(taken(all_jobs, "first"), "a leader")
    one = all_jobs.start("one")
    folder = all_jobs.claims / "stacks" / place()
    until(lambda: list(folder.glob("waiting_*")), "a work that waits")
    (waiting,) = folder.glob("waiting_*")
    waiting.rename(all_jobs.folder / "elsewhere")
    until(lambda: list(folder.glob("waiting_*")), "the work again")
    (again,) = folder.glob("waiting_*")
    assert again.name != waiting.name
    leader = all_jobs.start("leader", steps=100)
    (again / "work.json").write_text("{}")
    first.kill()
    assert (one.wait(PATIENCE), leader.wait(PATIENCE)) == (0, 0)
    assert all_jobs.made() == {"one": 1, "leader": 1}


def test_a_member_that_is_settled_twice_is_a_mistake_of_the_program(tmp_path: Path) -> None:
    share = Share(("0",), 1, tmp_path, 3)
    board = stacks._Board(tmp_path)
    work = Work({"stage": "finetune"}, {"manifest": str(tmp_path)})
    entry = stacks._Entry("20", stack_key(work), "1-a")
    board.hand_in(entry, work)
    with stacks.Desk(board, stack_key(work), "0", 3, share, work) as desk:
        (member,) = desk.take(2)
        member.log.write("said\n")
        member.done()
        with pytest.raises(RuntimeError, match="before"):
            member.again()
        folder = board.path / f"taken_20_{stack_key(work)}_1-a_{desk._id}"
        assert json.loads((folder / "outcome.json").read_text()) == {"kind": "done"}
        assert (folder / "log").read_text() == "said\n"


def test_an_outcome_that_the_disk_refuses_is_told_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    share = Share(("0",), 1, tmp_path, 3)
    board = stacks._Board(tmp_path)
    work = Work({"stage": "finetune"}, {"manifest": str(tmp_path)})
    board.hand_in(stacks._Entry("20", stack_key(work), "1-a"), work)
    with stacks.Desk(board, stack_key(work), "0", 3, share, work) as desk:
        (member,) = desk.take(2)

        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as here:
            here.setattr(stacks, "write_json", full)
            member.done()
            assert not (member.folder / "outcome.json").exists()
        desk.take(0)
        assert (member.folder / "outcome.json").exists()


def stress(all_jobs: Jobs, works: int, seconds: float, draws: random.Random) -> Counter[str]:
    """Start works, kill jobs at random, restart those that ended badly; returns how jobs ended."""
    ended: Counter[str] = Counter()
    running: dict[str, subprocess.Popen[bytes]] = {}
    open_works = {f"w{number}": f"k{draws.randrange(2)}" for number in range(works)}
    end = last = time.monotonic()
    end += seconds
    while open_works:
        for name, kind in open_works.items():
            if name not in running and len(running) < 12:
                running[name] = all_jobs.start(name, kind=kind, steps=draws.choice([5, 100, 300]))
        time.sleep(draws.uniform(0, 0.3))
        assert time.monotonic() < last + 120, (open_works, all_jobs.left())
        for victim in draws.sample(list(running.values()), min(len(running), draws.randrange(5))):
            if time.monotonic() < end:
                victim.send_signal(draws.choice([signal.SIGTERM, signal.SIGKILL, signal.SIGINT]))
        for name, one in list(running.items()):
            code = one.poll()
            if code is None:
                continue
            del running[name]
            last = time.monotonic()
            ended[str(code)] += 1
            if code == 0:
                del open_works[name]
            else:
                assert code in (-signal.SIGKILL, 128 + signal.SIGTERM, 128 + signal.SIGINT, -signal.SIGINT, -15), (
                    all_jobs.said(name)
                )
    return ended


@pytest.mark.slow
def test_with_jobs_killed_at_random_each_work_is_done_and_nothing_is_left(jobs: Callable[..., Jobs]) -> None:
    seed, seconds = int(os.environ.get("VINY_STRESS_SEED", 0)), float(os.environ.get("VINY_STRESS_SECONDS", 6))
    all_jobs = jobs(gpus=2, jobs_per_gpu=2, stack=6)
    ended = stress(all_jobs, int(14 * max(1, seconds / 30)), seconds, random.Random(seed))
    print(dict(ended))
    made = all_jobs.made()
    # A job may be killed in the moment between its last step and its end, and then its work is done once more.
    assert all(count <= 1 + ended.total() - ended["0"] for count in made.values())
    last = all_jobs.start("last")
    assert last.wait(PATIENCE) == 0
    assert (all_jobs.left(), all_jobs.places()) == ([], [])


def test_each_of_many_works_is_done_once_by_several_leaders(jobs: Callable[..., Jobs]) -> None:
    all_jobs = jobs(gpus=3, stack=5)
    names = [f"m{number}" for number in range(20)]
    members = [all_jobs.start(name, steps=15) for name in names]
    assert [one.wait(PATIENCE) for one in members] == [0] * 20
    assert all_jobs.made() == dict.fromkeys(names, 1)
    assert (all_jobs.left(), all_jobs.places()) == ([], [])
