"""Claims, stop signals, whole-or-nothing files and exit codes, with real processes that really die."""

from __future__ import annotations

import errno
import json
import os
import platform
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from patience import PATIENCE, until
from tiny_study import Study

from viny import cli
from viny.runtime import claims, files, processes
from viny.runtime.claims import SILENCE, UNFINISHED, Claim, claimed
from viny.runtime.files import atomic_path
from viny.runtime.fingerprint import code_fingerprint
from viny.runtime.processes import Owner, place
from viny.runtime.signals import STOP_SIGNALS, Stopped, on_stop
from viny.study import specs
from viny.study.grid import Cell

Spawn = Callable[..., subprocess.Popen]


def raise_stopped(number: int) -> None:
    raise Stopped(number)


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Start Python processes; any left at the end of the test are killed."""
    started: list[subprocess.Popen] = []

    def listen() -> None:
        """A test run in the background or under nohup ignores signals, and so would its children."""
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    def start(code: str | None, *arguments: str | Path, **options: Any) -> subprocess.Popen:
        """Run code, or for None the module viny."""
        command = [sys.executable, *(("-c", code) if code else ("-m", "viny")), *map(str, arguments)]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
        process = subprocess.Popen(command, preexec_fn=listen, **options)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


HOLD = """
import sys, time
from pathlib import Path
from viny.runtime.claims import Claim
claim = Claim(Path(sys.argv[1]))
assert claim.acquire() is None
print("held", flush=True)
time.sleep(600)
"""


def holding(spawn: Spawn, path: Path) -> subprocess.Popen:
    """A live process that holds a claim."""
    process = spawn(HOLD, path)
    assert process.stdout.readline() == "held\n"
    return process


def written(path: Path, **changes: Any) -> Owner:
    """A claim of this process with some values changed."""
    owner = replace(Owner.me(), **changes)
    path.write_text(json.dumps(asdict(owner)), encoding="utf-8")
    return owner


def aged(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


# Claims


def test_a_free_claim_is_taken_and_given_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "claim"
    claim = Claim(path)
    assert claim.holder() is None
    assert claim.acquire() is None
    assert Claim(path).holder() == Owner.me()
    assert Claim(path).acquire() == Owner.me()
    claim.release()
    assert list(path.parent.iterdir()) == []
    assert claim.acquire() is None  # and again
    claim.release()


def test_a_live_process_keeps_its_claim_and_a_killed_one_loses_it(tmp_path: Path, spawn: Spawn) -> None:
    path = tmp_path / "claim"
    other = holding(spawn, path)
    before = path.read_bytes()
    holder = Claim(path).acquire()
    assert holder is not None
    assert holder.pid == other.pid
    assert str(holder) == f"process {other.pid} on {platform.node()}"
    assert path.read_bytes() == before
    other.kill()
    # Nobody has asked for its exit code, so its number is still in use.
    until(lambda: processes._process(other.pid)[0] == "Z", "the child's end")
    claim = Claim(path)
    assert claim.acquire() is None
    assert [p.name for p in tmp_path.iterdir()] == ["claim"]
    claim.release()


def test_a_claim_of_a_dead_process_is_free_once_it_is_reaped(tmp_path: Path, spawn: Spawn) -> None:
    other = holding(spawn, tmp_path / "claim")
    other.kill()
    other.wait()
    assert Claim(tmp_path / "claim").holder() is None


def test_a_reused_process_number_and_a_machine_that_started_anew_hold_nothing(tmp_path: Path) -> None:
    host, boot, namespace = place().split("-")
    path = tmp_path / "claim"
    written(path)
    assert Claim(path).holder() == Owner.me()
    written(path, started="1")
    assert Claim(path).holder() is None
    written(path, place=f"{host}-00000000-{namespace}")
    assert Claim(path).holder() is None
    assert boot != "00000000"


@pytest.mark.parametrize("part", [0, 2])  # another machine, another container of this one
def test_elsewhere_a_claim_holds_while_it_beats(part: int, tmp_path: Path) -> None:
    path = tmp_path / "claim"
    pieces = place().split("-")
    pieces[part] = "00000000"
    owner = written(path, host="faraway", place="-".join(pieces), pid=7)
    aged(path, SILENCE - 60)
    assert Claim(path).acquire() == owner
    aged(path, SILENCE + 60)
    claim = Claim(path)
    assert claim.acquire() is None
    assert Claim(path).holder() == Owner.me()


def test_a_holder_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT", 0.01)
    path = tmp_path / "claim"
    claim = Claim(path)
    claim.acquire()
    aged(path, 1000)
    until(lambda: time.time() - path.stat().st_mtime < 500, "a sign of life")
    written(path, pid=7, started="1")  # another's by now
    aged(path, 1000)
    time.sleep(0.1)
    assert time.time() - path.stat().st_mtime > 500
    claim.release()
    assert path.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\x00garbage",
        b"{}",
        b"[1, 2]",
        b'{"host": "h", "place": "a-b-c", "pid": "12", "started": "1"}',
        b'{"host": "h", "place": "nowhere", "pid": 12, "started": "1"}',
        b'{"host": "h", "place": "a-b-c", "pid": -1, "started": "1"}',
    ],
)
def test_a_claim_that_names_nobody_is_free_when_it_cannot_be_half_written(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "claim"
    path.write_bytes(content)
    assert Claim(path).acquire() is not None
    aged(path, UNFINISHED + 1)
    claim = Claim(path)
    assert claim.acquire() is None
    claim.release()
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_no_process_can_have_is_dead(tmp_path: Path) -> None:
    written(tmp_path / "claim", pid=1 << 70)
    assert Claim(tmp_path / "claim").holder() is None


def test_a_claim_that_may_not_be_read_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "claim"
    written(path, started="1")  # dead, if one could read it
    aged(path, 10 * SILENCE)

    def refused(path: Path) -> BinaryIO:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("viny.runtime.claims.open_file", refused)
    holder = Claim(path).acquire()
    assert str(holder) == "a process that its claim does not name"
    assert path.exists()


def test_a_folder_in_the_claim_s_place_is_held(tmp_path: Path) -> None:
    (tmp_path / "claim").mkdir()
    assert Claim(tmp_path / "claim").acquire() is not None


def test_a_kernel_that_hides_the_processes_of_others_leaves_them_their_claims(
    tmp_path: Path, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "claim"
    other = holding(spawn, path)
    monkeypatch.setattr(processes, "_process", lambda pid: ("", ""))
    assert Claim(path).holder().pid == other.pid
    other.kill()
    other.wait()
    assert Claim(path).holder() is None


def test_a_link_that_is_reported_as_failed_though_it_was_made_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def repeated(source: str, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", repeated)
    assert Claim(tmp_path / "claim").acquire() is None


def no_links(*_: object, **__: object) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


def test_without_hard_links_a_claim_holds_all_the_same(
    tmp_path: Path, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "claim"
    claim = Claim(path)
    assert claim.acquire() is None
    assert Claim(path).acquire() == Owner.me()
    claim.release()
    other = holding(spawn, path)
    assert Claim(path).acquire().pid == other.pid
    other.kill()
    other.wait()
    assert claim.acquire() is None
    claim.release()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_empty_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(processes.Path, "read_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        Claim(tmp_path / "claim").acquire()
    assert list(tmp_path.iterdir()) == []


# Each turn is its own process; every third one dies without a word while holding the claim.
TURNS = """
import os, sys, time
from pathlib import Path
from viny.runtime.claims import claimed
folder, links, turns = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
def refuse(*_):
    raise PermissionError(1, "Operation not permitted")
if links == "no":
    os.link = refuse
counter = folder / "counter"
for turn in range(turns):
    pid = os.fork()
    if pid == 0:
        with claimed(folder / "claim", "turn", poll=0.002):
            count = int(counter.read_text())
            time.sleep(0.001)
            counter.write_text(str(count + 1))
            if turn % 3 == 0:
                os._exit(0)
        os._exit(0)
    os.waitpid(pid, 0)
"""


@pytest.mark.parametrize("links", ["yes", "no"])
def test_one_of_many_holds_a_claim_at_a_time(links: str, tmp_path: Path, spawn: Spawn) -> None:
    (tmp_path / "counter").write_text("0")
    workers = [spawn(TURNS, tmp_path, links, 20, stdout=subprocess.DEVNULL) for _ in range(6)]
    for worker in workers:
        assert worker.communicate(timeout=PATIENCE)[1] == ""
    assert (tmp_path / "counter").read_text() == "120"
    claim = Claim(tmp_path / "claim")
    assert claim.acquire() is None
    claim.release()
    assert [p.name for p in tmp_path.iterdir()] == ["counter"]


def end_when_waited_for(process: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch) -> None:
    sleep = time.sleep

    def killing(seconds: float) -> None:
        process.kill()
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", killing)


def test_waiting_says_for_whom_and_ends_when_the_holder_does(
    tmp_path: Path, spawn: Spawn, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "claim"
    other = holding(spawn, path)
    end_when_waited_for(other, monkeypatch)
    with claimed(path, "finetune", poll=0.01) as waited:
        assert waited
        assert Claim(path).holder() == Owner.me()
    said = f"finetune: waiting for process {other.pid} on {platform.node()}, which is working on it\n"
    assert capsys.readouterr().out == said
    assert not path.exists()
    with pytest.raises(ZeroDivisionError), claimed(path, "finetune") as waited:
        assert not waited
        raise ZeroDivisionError
    assert not path.exists()
    assert capsys.readouterr().out == ""


def test_a_claim_within_a_claim_is_the_same(tmp_path: Path, spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    end_when_waited_for(holding(spawn, tmp_path / "claim"), monkeypatch)
    with claimed(Path("claim"), "finetune", poll=0.01) as waited, claimed(tmp_path / "claim", "finetune") as again:
        assert waited and again
        with claimed(tmp_path / "other", "finetune") as apart:
            assert not apart
        assert Claim(tmp_path / "other").holder() is None
        assert Claim(tmp_path / "claim").holder() == Owner.me()
    assert Claim(tmp_path / "claim").holder() is None
    with claimed(tmp_path / "claim", "finetune") as waited:
        assert not waited
        held = threading.Thread(target=lambda: claimed(tmp_path / "claim", "finetune", 0.01).__enter__(), daemon=True)
        held.start()
        held.join(0.2)
        assert held.is_alive()  # another thread waits, as another process does
    held.join(PATIENCE)


def test_a_claim_ends_with_its_process_s_orderly_end(tmp_path: Path, spawn: Spawn) -> None:
    code = HOLD.replace("time.sleep(600)", "import atexit; atexit.register(claim.release); sys.exit(3)")
    process = spawn(code, tmp_path / "claim")
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 3
    assert list(tmp_path.iterdir()) == []


# Signals


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_stop_signal_is_handled_in_the_block_and_as_before_after_it(number: int) -> None:
    got: list[int] = []
    before = {n: signal.signal(n, lambda *_: None) for n in STOP_SIGNALS}
    try:
        mine = {n: signal.getsignal(n) for n in STOP_SIGNALS}
        with on_stop(got.append):
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
        assert got == [number, number]
        with pytest.raises(Stopped, match=signal.Signals(number).name), on_stop(raise_stopped):
            os.kill(os.getpid(), number)
            time.sleep(10)
        assert {n: signal.getsignal(n) for n in STOP_SIGNALS} == mine
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    got: list[int] = []
    try:
        with on_stop(got.append):
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert got == []
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_the_main_thread_the_block_runs_as_it_is() -> None:
    before = {n: signal.getsignal(n) for n in STOP_SIGNALS}
    ran: list[dict[int, Any]] = []

    def work() -> None:
        with on_stop(raise_stopped):
            ran.append({n: signal.getsignal(n) for n in STOP_SIGNALS})

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ran == [before]


def test_an_error_is_no_stop_and_a_stop_no_error() -> None:
    assert not issubclass(Stopped, Exception)
    assert str(Stopped(signal.SIGTERM, "in epoch 2")) == "stopped by SIGTERM in epoch 2"


CHILD = """
import os, sys, time
from pathlib import Path
from viny.runtime.signals import Stopped, end_with_parent, on_stop
def raise_stopped(number):
    raise Stopped(number)
try:
    with on_stop(raise_stopped):
        end_with_parent(os.getppid() if sys.argv[2] == "mine" else 1)
        Path(sys.argv[1], "pid").write_text(str(os.getpid()))
        time.sleep(600)
except Stopped as stop:
    Path(sys.argv[1], "told").write_text(f"{stop} ")
"""
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}, *sys.argv[1:]])"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
@pytest.mark.parametrize("parent", ["mine", "another"])
def test_a_job_is_told_when_its_driver_is_killed(parent: str, tmp_path: Path, spawn: Spawn) -> None:
    driver = spawn(PARENT, tmp_path, parent)
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), "the child's start")
    pid = int((tmp_path / "pid").read_text())
    driver.kill()
    driver.wait()
    told = tmp_path / "told"
    try:
        if parent == "mine":
            until(lambda: told.exists() and told.read_text(), "the child's end")
            assert told.read_text() == "stopped by SIGTERM "
        else:
            time.sleep(0.3)
            assert not told.exists()
            os.kill(pid, 0)  # lives on
    finally:
        if not told.exists():
            os.kill(pid, signal.SIGKILL)


# Whole-or-nothing files


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), Stopped(signal.SIGTERM)])
def test_a_file_stays_as_it_was_after_an_exception(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for old in (None, "old"):
        with pytest.raises(type(error)), atomic_path(path) as tmp:
            tmp.write_text("half of the n")
            raise error
        assert [p.name for p in tmp_path.iterdir()] == ([] if old is None else ["a.json"])
        path.write_text("old")
    assert path.read_text() == "old"


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_leaves_the_old_file_and_is_named(
    call: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")

    def fail(first: Any, *_: Any) -> None:
        raise OSError(code, os.strerror(code), *([str(first)] if call != "fsync" else []))

    with pytest.raises(OSError, match=os.strerror(code)) as caught, atomic_path(path) as tmp:
        if call == "open":
            fail(tmp)
        tmp.write_text("new")
        monkeypatch.setattr(os, call, fail)
    monkeypatch.undo()
    assert (caught.value.errno, caught.value.filename, caught.value.filename2) == (code, str(path), None)
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert path.read_text() == "old"


def test_an_error_about_another_file_keeps_that_file_s_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, atomic_path(tmp_path / "a"):
        (tmp_path / "other").read_text()
    assert caught.value.filename == str(tmp_path / "other")


WRITE = """
import sys, time
from viny.runtime.files import atomic_path
with atomic_path(sys.argv[1]) as tmp:
    tmp.write_text("half")
    print("under way", flush=True)
    time.sleep(600)
"""


def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_kept(tmp_path: Path, spawn: Spawn) -> None:
    path = tmp_path / "a [1].json"
    neighbour = tmp_path / ".b.json.tmp.json"
    neighbour.write_text("not ours")
    writers = [spawn(WRITE, path) for _ in range(2)]
    for writer in writers:
        assert writer.stdout.readline() == "under way\n"
    dead, alive = (next(tmp_path.glob(f".a*-{writer.pid}-*.tmp.json")) for writer in writers)
    with atomic_path(path) as tmp:
        tmp.write_text("new")
    assert dead.exists()  # not yet
    writers[0].kill()
    writers[0].wait()
    with atomic_path(path) as tmp:
        tmp.write_text("newer")
    assert set(tmp_path.iterdir()) == {path, alive, neighbour}
    assert path.read_text() == "newer"


OVERWRITE = """
import itertools, sys
from viny.runtime.files import atomic_path
for i in itertools.count():
    with atomic_path(sys.argv[1]) as tmp:
        tmp.write_text("ab"[i % 2] * 300_000)
    if i == 0:
        print("going", flush=True)
"""


def test_a_kill_at_any_moment_leaves_one_whole_version(tmp_path: Path, spawn: Spawn) -> None:
    path, draw = tmp_path / "a", random.Random(0)
    for _ in range(10):
        process = spawn(OVERWRITE, path)
        assert process.stdout.readline() == "going\n"
        time.sleep(draw.random() / 50)
        process.kill()
        process.wait()
        assert path.read_text() in ("a" * 300_000, "b" * 300_000)
    assert len(list(tmp_path.iterdir())) <= 2  # it and one leftover


# One stage, two processes


@pytest.fixture
def twice(tmp_path: Path, made_study: Callable[[str], dict[str, Any]], spawn: Spawn) -> Callable[[], subprocess.Popen]:
    """Starts the same fine-tuning below tmp_path, with a checkpoint after each of its 200 steps."""
    config = made_study("sound")
    config["finetune"]["epochs"] = 100
    study, cell = Study(tmp_path, config), Cell(0, "none", 16, 0)
    inputs = dict(zip(("manifest", "split", "indices"), study.finetune_inputs(cell), strict=True))
    outputs = {k: f"out/model.{k}" for k in ("weights", "record", "curve", "run")}
    outputs |= {"weights": "out/model.safetensors", "record": "out/model.json", "checkpoints": "checkpoints/finetune"}
    arguments = ["finetune", "--spec", json.dumps(specs.finetune_spec(config, cell)), "--checkpoint-minutes", "0"]
    for key, value in {**inputs, **outputs}.items():
        arguments += [f"--{key}", str(tmp_path / value)]
    return lambda: spawn(None, *arguments)


@pytest.mark.slow
@pytest.mark.parametrize("fate", ["goes on", "is killed"])
def test_of_two_processes_at_one_stage_the_second_waits(
    fate: str, tmp_path: Path, twice: Callable[[], subprocess.Popen]
) -> None:
    first = twice()
    until(lambda: list(tmp_path.glob("checkpoints/finetune/[!.]*.safetensors")), "a checkpoint of the first")
    first.send_signal(signal.SIGSTOP)  # alive, and under way for as long as needed
    second = twice()
    command, said = second.stdout.readline(), second.stdout.readline()
    assert command.startswith("$ python -m viny finetune --spec ")
    assert said == f"finetune: waiting for process {first.pid} on {platform.node()}, which is working on it\n"
    assert not (tmp_path / "out" / "model.json").exists()
    first.send_signal(signal.SIGCONT if fate == "goes on" else signal.SIGKILL)
    first.communicate(timeout=PATIENCE)
    rest, errors = second.communicate(timeout=PATIENCE)
    assert (second.returncode, errors) == (0, "")
    run = json.loads((tmp_path / "out" / "model.run").read_text())
    if fate == "goes on":
        assert first.returncode == 0
        assert rest == f"finetune: {tmp_path}/out/model.safetensors already exists, made by another process meanwhile\n"
        assert run["earlier_attempts"] == []
    else:
        assert "going on from" in rest
        assert len(run["earlier_attempts"]) == 1
    assert len((tmp_path / "out" / "model.curve").read_text().splitlines()) == 101
    assert not (tmp_path / "checkpoints" / "finetune.claim").exists()


# Exit codes


def pack_arguments(folder: Path, count: int = 5, **more: Any) -> list[str]:
    spec = {"source": "synthetic", "size": 24, "resize": "antialias", "seed": 0, "stream": "scenes", "count": count}
    store, manifest = folder / "store", folder / "manifest.json"
    return ["pack", "--spec", json.dumps({**spec, **more}), "--store", str(store), "--manifest", str(manifest)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stopped_command_ends_with_one_line_and_the_signal_s_code(number: int, tmp_path: Path, spawn: Spawn) -> None:
    process = spawn(None, *pack_arguments(tmp_path, count=1_000_000))
    until(lambda: list(tmp_path.glob("store/.*/labels.npy")), "the pack's start")
    process.send_signal(number)
    errors = process.communicate(timeout=PATIENCE)[1]
    assert (process.returncode, errors) == (128 + number, f"viny: stopped by {signal.Signals(number).name}\n")
    assert list((tmp_path / "store").iterdir()) == []


@pytest.mark.parametrize(
    ("code", "way_out"),
    [
        (errno.EIO, "free space or mend the disk"),
        (errno.EROFS, "change its permissions, or use another folder"),
        (errno.EACCES, "change its permissions, or use another folder"),
    ],
)
def test_a_disk_fault_ends_with_the_file_s_name(
    code: int, way_out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, "fsync", fail)
    assert cli.main(pack_arguments(tmp_path)) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"viny: {tmp_path}/store/.synthetic-24-")
    assert f"/manifest.json: {os.strerror(code)}; {way_out}" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["posix_fallocate", "fsync"])
def test_a_disk_without_room_for_a_pack_is_an_error_and_no_crash(
    call: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, full)
    assert cli.main(pack_arguments(tmp_path)) == 2
    said = capsys.readouterr().err
    assert f"{os.strerror(code)} while packing; free some space, or set pack_store" in said
    assert said.count("\n") == 1
    assert list((tmp_path / "store").iterdir()) == []


def test_a_training_error_ends_with_its_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from viny.learning import stages
    from viny.runtime.errors import TrainingError

    def diverge(*_: Any, **files: Any) -> None:
        raise TrainingError("finetune: the loss became inf")

    monkeypatch.setattr(stages, "train", diverge)
    names = ("manifest", "split", "indices", "weights", "record", "curve", "run")
    arguments = [piece for name in names for piece in (f"--{name}", name)]
    assert cli.main(["finetune", "--spec", "{}", *arguments]) == 1
    assert capsys.readouterr().err == "viny: finetune: the loss became inf\n"


def test_bad_input_ends_with_the_file_s_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "manifest.json")
    arguments = ["--spec", "{}", "--manifest", missing, "--record", "r", "--indices", "i"]
    assert cli.main(["split", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("viny: ")
    assert missing in said


def test_settings_that_were_made_for_other_code_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(pack_arguments(tmp_path, code="0123456789abcdef")) == 2
    said = capsys.readouterr().err
    assert said.startswith("viny: the code of stage 'pack' was edited after this run began; start the run again")
    assert list(tmp_path.iterdir()) == []
    assert cli.main(pack_arguments(tmp_path, code=code_fingerprint("pack"))) == 0
    assert (tmp_path / "manifest.json").exists()


def test_a_fault_of_the_program_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("not foreseen")

    monkeypatch.setattr("viny.data.packing.pack_into_store", broken)
    with pytest.raises(RuntimeError, match="not foreseen"):
        cli.main(pack_arguments(tmp_path))


def test_a_claim_in_a_folder_that_may_not_be_written_is_judged_by_this_machine_s_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "claim"
    written(path, place="00000000-00000000-00000000")  # on another machine
    aged(path, 10 * SILENCE)

    def refused(**_: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(claims.tempfile, "TemporaryFile", refused)
    assert Claim(path).holder() is None


END = """
import atexit, sys, threading, time
from viny.runtime.signals import end
class Alive:
    def __del__(self):
        print("taken apart")
kept = Alive()
kept.itself = kept
atexit.register(print, "at exit")
print("done", end=" ")
if sys.argv[1] == "thread":
    threading.Thread(target=lambda: time.sleep(0.3) or print("thread", end=" ")).start()
end(3)
"""


@pytest.mark.parametrize("case", ["alone", "thread"])
def test_a_process_ends_with_its_code_and_output_but_its_memory_is_not_taken_apart(case: str) -> None:
    done = subprocess.run([sys.executable, "-c", END, case], capture_output=True, encoding="utf-8", timeout=PATIENCE)
    assert done.returncode == 3 and not done.stderr
    assert done.stdout == {"alone": "done at exit\n", "thread": "done thread at exit\ntaken apart\n"}[case]


def test_a_profiler_gets_its_result(tmp_path: Path) -> None:
    script, found = tmp_path / "script.py", tmp_path / "found"
    script.write_text(END, encoding="utf-8")
    subprocess.run(
        [sys.executable, "-m", "cProfile", "-o", found, script, "alone"], capture_output=True, timeout=PATIENCE
    )
    assert found.stat().st_size


@pytest.mark.skipif(not Path("/proc/uptime").exists(), reason="only Linux tells when a process began")
def test_a_process_s_age_is_the_time_since_it_began(spawn: Spawn) -> None:
    before = time.monotonic()
    process = spawn("import time; from viny.runtime.processes import Owner; print(Owner.me().age()); time.sleep(60)")
    said = float(process.stdout.readline())
    assert 0 < said <= time.monotonic() - before + 0.05
    me = Owner.me()
    assert me.age() > said
    assert replace(me, place="0-0-0").age() == replace(me, started="").age() == 0
