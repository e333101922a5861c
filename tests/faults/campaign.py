"""A campaign of faults: kills at random moments, disks that fail, and files of a finished study that are corrupted.

`python tests/faults/campaign.py` prints what was injected, what was lost, what came out different and what went
unnoticed; its exit code is 0 only if that is nothing. `make faults` runs it in full, `test_faults.py` in a short form.
"""

from __future__ import annotations

import argparse
import builtins
import errno
import hashlib
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "tests"))

from corruption import corrupt_study, study_to_corrupt  # noqa: E402, found through the line above
from lost_records import mix  # noqa: E402
from tiny_study import Study  # noqa: E402

from viny.cli import Log  # noqa: E402
from viny.cli import main as viny_main  # noqa: E402
from viny.study.config import resolve  # noqa: E402
from viny.study.grid import Cell  # noqa: E402

STAGES = ("pretrain", "scenes", "spatial", "finetune")
PRECISIONS = ("float32", "bfloat16")
CELL = Cell(24, "scenes", 16, 0)
KILLS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
TRIES = 60  # attempts, after which a run that keeps being killed is let through


@dataclass
class Tally:
    """What was injected, and what did harm."""

    injected: Counter[str] = field(default_factory=Counter)
    resumed: int = 0
    lost: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    corrupted: Counter[str] = field(default_factory=Counter)  # files of a finished study, by what was done to them
    kinds: int = 0  # of files that were corrupted
    mixed: Counter[str] = field(default_factory=Counter)  # what does not belong to a study, by kind, without .snakemake
    at_start: int = 0  # of these, noticed at the start of a run
    unnoticed: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)  # broken promises of other kinds: a traceback, a half file

    def add(self, other: Tally) -> None:
        self.injected += other.injected
        self.resumed += other.resumed
        self.lost += other.lost
        self.different += other.different
        self.corrupted += other.corrupted
        self.kinds = max(self.kinds, other.kinds)
        self.mixed += other.mixed
        self.at_start += other.at_start
        self.unnoticed += other.unnoticed
        self.faults += other.faults

    @property
    def clean(self) -> bool:
        return not (self.lost or self.different or self.unnoticed or self.faults)


def tiny_config(precision: str, epochs: int = 6) -> dict[str, Any]:
    """Settings of a study whose stages each take a few tenths of a second."""
    raw = yaml.safe_load((REPOSITORY / "tests" / "tiny.yaml").read_text())
    raw["grid"]["intermediates"] = ["none", "scenes", "spatial"]
    raw["intermediate"]["spatial"] = {
        "source": "synthetic", "target": "patch", "mixup": 0.0, "epochs": epochs, "batch_size": 4, "milestones": [1]
    }  # fmt: skip
    for section in (raw["pretrain"], raw["intermediate"]["scenes"], raw["finetune"]):
        section.update(epochs=epochs, batch_size=4)
    raw["compute"]["precision"] = precision
    return resolve(raw)


class Commands(Study):
    """A study whose stages are not run but written out as command lines."""

    def train(self, spec: dict[str, Any], inputs: tuple[Path, Path, Path], parent: Path | None, leaf: str) -> Any:
        folder = self.root / leaf
        files = dict(zip(("manifest", "split", "indices"), inputs, strict=True))
        files |= {"weights": folder / "model.safetensors", "record": folder / "model.json"}
        files |= {"curve": folder / "curve.csv", "run": folder / "run.json"}
        files |= {"checkpoints": self.root / "checkpoints" / leaf}
        words = [str(word) for name, path in files.items() for word in (f"--{name}", path)]
        return [spec["stage"], "--spec", json.dumps(spec), *words]

    def command(self, stage: str) -> list[str]:
        if stage == "pretrain":
            return self.pretrain()
        return self.finetune(CELL, None) if stage == "finetune" else self.intermediate(stage, None)

    def folder(self, stage: str) -> Path:
        return self.root / (stage if stage in ("pretrain", "finetune") else f"intermediate-{stage}")


def sha256(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


# A stage in a process of its own. It is forked, so that hundreds of starts do not each import PyTorch.


def start(command: list[str], log: Path, prepare: Callable[[], None] = lambda: None) -> int:
    """Run a command line in a new process; returns its process id.

    Args:
        command: words after `python -m viny`.
        log: file that takes its output.
        prepare: called in the new process first.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout = Log(open(1, "w", encoding="utf-8", closefd=False))  # noqa: SIM115, it lives as long as the process
        sys.stderr = Log(open(2, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
        signal.signal(signal.SIGINT, signal.default_int_handler)
        tqdm.set_lock(threading.RLock())  # tqdm's own is shared with forked siblings, and a killed sibling may hold it
        prepare()
        code = viny_main(command)
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT  # it came before the program began
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int, seconds: float) -> int | None:
    """Exit code of a process (negative for a signal), or None if it is still at work after that time."""
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            return None
        time.sleep(0.002)


def last(command: list[str], study: Commands) -> None:
    """Run a stage undisturbed; a stage that hangs is ended and counts as lost."""
    pid = start(command, study.root / "log")
    if wait(pid, 120) is None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@dataclass
class Bench:
    """The stages of one precision: inputs made once, the undisturbed weights, and how long they take."""

    root: Path
    precision: str
    hashes: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.config = tiny_config(self.precision)
        for stage in STAGES:
            study = self.fresh(f"reference-{stage}")
            began = time.monotonic()
            code = wait(start(study.command(stage), study.root / "log"), 120)
            assert code == 0, (study.root / "log").read_text()
            self.seconds[stage] = time.monotonic() - began
            self.hashes[stage] = sha256(study.folder(stage) / "model.safetensors")

    def fresh(self, name: str, minutes: float = 0.0) -> Commands:
        """A study without results, over inputs that all studies share."""
        root = self.root / name
        root.mkdir(parents=True)
        for kind in ("packs", "splits"):
            (self.root / kind).mkdir(exist_ok=True)
            (root / kind).symlink_to(self.root / kind)
        return Commands(root, self.config, minutes)


def check_end(bench: Bench, study: Commands, stage: str, what: str, tally: Tally) -> None:
    """After the last, undisturbed attempt: the result exists, is the same, and nothing else is left."""
    folder = study.folder(stage)
    found = sha256(folder / "model.safetensors")
    said = (study.root / "log").read_text()
    if found is None or not (folder / "model.json").is_file():
        tally.lost.append(f"{what}: no result\n{said[-2000:]}")
    elif found != bench.hashes[stage]:
        tally.different.append(what)
    if "Traceback" in said:
        tally.faults.append(f"{what}: a traceback\n{said[-3000:]}")
    # A process killed in its last moments leaves a temporary file until the next one writes the same file.
    left = [p for p in study.root.glob("checkpoints/**/*") if p.is_file()]
    expected = ("model.safetensors", "model.json", "curve.csv", "run.json")
    left += [p for p in folder.glob("*") if p.name not in expected]
    if found and left:
        tally.faults.append(f"{what}: left behind {', '.join(p.name for p in left)}")
    tally.resumed += said.count("going on from ")


def whole(folder: Path) -> str | None:
    """What is wrong with the files that a stage shows under their final names, if anything."""
    record = folder / "model.json"
    try:
        weights = sha256(folder / "model.safetensors")
        if record.is_file() and json.loads(record.read_text())["weights_sha256"] != weights:
            return "a record that does not fit its weights"
        for name in ("run.json", "model.json"):
            if (folder / name).is_file():
                json.loads((folder / name).read_text())
    except (ValueError, KeyError) as error:
        return f"a half-written file: {error}"
    return None


def kill_stages(bench: Bench, kills: int, draw: random.Random) -> Tally:
    """Kill stages at random moments, again and again, until each has finished."""
    tally = Tally()
    runs = 0
    while sum(tally.injected.values()) < kills:
        stage = STAGES[runs % len(STAGES)]
        minutes = draw.choice([0.0, 0.0, 0.002, 1000.0])  # every step, some steps, only at a signal
        study = bench.fresh(f"kill-{runs}", minutes)
        command = [*study.command(stage), "--checkpoint-minutes", str(minutes)]
        runs += 1
        for _ in range(TRIES):
            pid = start(command, study.root / "log")
            code = wait(pid, draw.uniform(0, 1.1 * bench.seconds[stage]))
            if code is None:
                number = draw.choice(KILLS)
                os.kill(pid, number)
                code = wait(pid, 60)
                if code is None:
                    tally.faults.append(f"{stage}: did not end within a minute of {number.name}")
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                tally.injected[f"{number.name} in {bench.precision} {stage}"] += 1
                if number != signal.SIGKILL and code not in (0, 128 + number, -number):
                    tally.faults.append(f"{stage}: exit code {code} after {number.name}")
            if fault := whole(study.folder(stage)):
                tally.faults.append(f"{stage}: {fault}")
            if code == 0:
                break
        else:
            last(command, study)
        check_end(bench, study, stage, f"{bench.precision} {stage}, killed (run {runs - 1})", tally)
        shutil.rmtree(study.root)
    return tally


# Disks that fail


@dataclass
class FailingDisk:
    """A file layer that lets some writing calls pass and then fails one, or all from then on."""

    passes: int
    number: int
    forever: bool

    def install(self) -> None:
        for module, name in ((os, "fsync"), (os, "replace"), (os, "write")):
            setattr(module, name, self._wrap(getattr(module, name), lambda *_: True))
        for name in ("write_bytes", "write_text"):
            setattr(Path, name, self._wrap(getattr(Path, name), lambda *_: True))
        opened = self._wrap(builtins.open, lambda _, mode="r", *__: bool(set(mode) & set("wax+")))
        builtins.open = opened

    def _wrap(self, call: Callable[..., Any], counts: Callable[..., bool]) -> Callable[..., Any]:
        def failing(*arguments: Any, **more: Any) -> Any:
            if counts(*arguments, **{k: v for k, v in more.items() if k == "mode"}):
                self.passes -= 1
                if self.passes == -1 or (self.forever and self.passes < 0):
                    raise OSError(self.number, os.strerror(self.number))
            return call(*arguments, **more)

        return failing


def fail_writes(bench: Bench, faults: int, draw: random.Random) -> Tally:
    """Let writing calls fail with ENOSPC and EIO, once or for good; then run again on a sound disk."""
    tally = Tally()
    for number in range(faults):
        stage = STAGES[number % len(STAGES)]
        code_name = draw.choice(["ENOSPC", "EIO"])
        disk = FailingDisk(draw.randrange(40), getattr(errno, code_name), draw.random() < 0.5)
        study = bench.fresh(f"disk-{number}")
        command = [*study.command(stage), "--checkpoint-minutes", str(draw.choice([0.0, 0.002]))]
        code = wait(start(command, study.root / "log", disk.install), 120)
        said = (study.root / "log").read_text()
        what = f"{bench.precision} {stage}, {code_name} (fault {number})"
        if disk_failed := code != 0 or "could not be written" in said:
            tally.injected[f"{code_name} in {bench.precision} {stage}"] += 1
        if code not in (0, 1) or (code == 1 and os.strerror(disk.number) not in said):
            tally.faults.append(f"{what}: exit code {code}\n{said[-2000:]}")
        if fault := whole(study.folder(stage)):
            tally.faults.append(f"{what}: {fault}")
        if code and disk_failed:
            last(command, study)
        check_end(bench, study, stage, what, tally)
        shutil.rmtree(study.root)
    return tally


@contextmanager
def small_disk(root: Path, kilobytes: int) -> Iterator[Path | None]:
    """A file system of a few kilobytes in memory; None where this process may not mount one."""
    place = root / "small-disk"
    place.mkdir()
    size = f"size={kilobytes}k"
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "viny-faults", place], capture_output=True)
    try:
        yield place if done.returncode == 0 else None
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", place], check=True)
        place.rmdir()


def fill_disks(bench: Bench, faults: int, draw: random.Random) -> Tally:
    """Run stages on a real file system that fills up at a random moment, then again with room."""
    tally = Tally()
    with small_disk(bench.root, 8192) as place:
        if place is None:
            print("a full file system: not tried, mounting one needs root", flush=True)
            return tally
        for number in range(faults):
            stage = STAGES[number % len(STAGES)]
            study = bench.fresh(f"full-{number}")
            for name in ("outputs", "checkpoints"):
                (place / name).mkdir()
            study.folder(stage).symlink_to(place / "outputs")
            (study.root / "checkpoints").symlink_to(place / "checkpoints")
            (study.root / "log").symlink_to(place / "log")
            command = [*study.command(stage), "--checkpoint-minutes", "0"]
            free = shutil.disk_usage(place).free
            ballast = place / "ballast"
            with open(ballast, "wb") as f:
                f.write(bytes(max(0, free - 4096 * draw.randrange(1, 70))))
            code = wait(start(command, study.root / "log"), 120)
            said = (study.root / "log").read_text()
            what = f"{bench.precision} {stage}, full disk (fault {number})"
            if "No space left on device" in said:
                tally.injected[f"full file system in {bench.precision} {stage}"] += 1
            if code not in (0, 1):
                tally.faults.append(f"{what}: exit code {code}\n{said[-2000:]}")
            if fault := whole(study.folder(stage)):
                tally.faults.append(f"{what}: {fault}")
            ballast.unlink()
            if code:
                last(command, study)
            check_end(bench, study, stage, what, tally)
            shutil.rmtree(study.root)
            for name in ("outputs", "checkpoints"):
                shutil.rmtree(place / name)
    return tally


# The workflow itself


def snakemake(folder: Path, study: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "snakemake", "-s", REPOSITORY / "Snakefile", "--cores", "2"]
    log = open(folder / "snakemake.out", "ab")  # noqa: SIM115, closed with the process
    return subprocess.Popen(
        [*command, "--configfile", study], cwd=folder, stdout=log, stderr=log, start_new_session=True
    )


def results(root: Path) -> dict[str, Any]:
    """What a study has produced: its weights' hashes and its metrics, by file."""
    found: dict[str, Any] = {str(p.relative_to(root)): sha256(p) for p in root.rglob("*.safetensors")}
    for path in (root / "metrics").glob("*.json"):
        found[path.name] = json.loads(path.read_text())["metrics"]
    return found


def kill_workflow(root: Path, rounds: int, draw: random.Random) -> Tally:
    """Kill Snakemake, alone or with all its jobs, at random moments; then let it end, and compare."""
    tally = Tally()
    raw = yaml.safe_load((REPOSITORY / "tests" / "tiny.yaml").read_text())
    raw["grid"] = {"pretrain_sizes": [0, 24], "intermediates": ["none", "scenes"], "finetune_sizes": [8], "seeds": [0]}
    for section in (raw["pretrain"], raw["intermediate"]["scenes"], raw["finetune"]):
        section["epochs"] = 150
    raw["compute"]["checkpoint_minutes"] = 0.01
    raw["geometry"] = {"encoders": "none"}
    study = root / "study.yaml"
    study.write_text(yaml.safe_dump(raw))

    def run(folder: Path) -> float:
        began = time.monotonic()
        assert snakemake(folder, study).wait(900) == 0, (folder / "snakemake.out").read_text()[-4000:]
        return time.monotonic() - began

    (root / "undisturbed").mkdir()
    seconds = run(root / "undisturbed")
    expected = results(root / "undisturbed" / "results" / "tiny")
    kinds = [("SIGKILL to Snakemake", False, signal.SIGKILL), ("SIGKILL to all", True, signal.SIGKILL)]
    kinds += [("SIGTERM to Snakemake", False, signal.SIGTERM), ("SIGINT to all", True, signal.SIGINT)]
    for number in range(rounds):
        folder = root / f"workflow-{number}"
        folder.mkdir()
        for _ in range(4):
            driver = snakemake(folder, study)
            try:
                driver.wait(draw.uniform(1, seconds / 2))  # even on a busier machine, most get killed
                break
            except subprocess.TimeoutExpired:
                name, everyone, kind = kinds[sum(tally.injected.values()) % len(kinds)]
                (os.killpg if everyone else os.kill)(driver.pid, kind)
                tally.injected[name] += 1
                driver.wait(300)
        try:
            run(folder)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            tally.lost.append(f"workflow {number}: {error}")
            continue
        found = results(folder / "results" / "tiny")
        tally.lost += [f"workflow {number}: {name}" for name in expected if name not in found]
        tally.different += [f"workflow {number}: {n}" for n, v in expected.items() if n in found and found[n] != v]
        tally.resumed += sum(p.read_text().count("going on from ") for p in folder.glob("results/tiny/logs/**/*.log"))
        shutil.rmtree(folder)
    return tally


# Files that rot, or are edited


def corrupt_files(folder: Path, rounds: int, seed: int) -> Tally:
    """Corrupt every file of a finished study in every way, with other bits, lengths and digits in each round."""
    tally = Tally()
    with open(folder / "corruption.out", "w", encoding="utf-8") as log, redirect_stdout(log):
        root = study_to_corrupt(folder / "corruption")
    for number in range(rounds):
        outcome = corrupt_study(root, seed + number)
        for (_, what), count in outcome.corrupted.items():
            tally.corrupted[what] += count
        tally.kinds = max(tally.kinds, outcome.kinds)
        tally.unnoticed += outcome.unnoticed
        tally.faults += [f"sound, but found at fault: {one}" for one in outcome.condemned]
    return tally


def lose_records(folder: Path) -> Tally:
    """Mix results of other settings and edited images into a study that Snakemake has no records of."""
    with open(folder / "lost.out", "w", encoding="utf-8") as log, redirect_stdout(log):
        (folder / "lost").mkdir()
        found = mix(folder / "lost")
    return Tally(mixed=found.mixed, at_start=found.at_start.total(), unnoticed=found.unnoticed)


def campaign(folder: Path, kills: int, writes: int, full: int, workflows: int, corruptions: int, seed: int) -> Tally:
    """Run all of it; see the command line's help for the arguments."""
    draw = random.Random(seed)
    total = Tally()
    for precision in PRECISIONS:
        bench = Bench(folder / precision, precision)
        total.add(kill_stages(bench, kills // len(PRECISIONS), draw))
        total.add(fail_writes(bench, writes // len(PRECISIONS), draw))
        total.add(fill_disks(bench, full // len(PRECISIONS), draw))
    if workflows:
        total.add(kill_workflow(folder, workflows, draw))
    if corruptions:
        total.add(corrupt_files(folder, corruptions, seed))
        total.add(lose_records(folder))
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=300, help="of stages (default 300)")
    parser.add_argument("--writes", type=int, default=120, help="stages whose writing calls fail (default 120)")
    parser.add_argument("--full", type=int, default=40, help="stages on a disk that runs full (default 40)")
    parser.add_argument("--workflows", type=int, default=6, help="studies whose Snakemake is killed (default 6)")
    parser.add_argument(
        "--corruptions",
        type=int,
        default=5,
        help="rounds over all files and ways; 0 leaves lost records out, too (default 5)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments and kinds (default 0)")
    args = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="viny-faults-") as name:
        tally = campaign(Path(name), args.kills, args.writes, args.full, args.workflows, args.corruptions, args.seed)
    by_kind: Counter[str] = Counter()
    for kind, count in tally.injected.items():
        by_kind[kind.split(" in ")[0]] += count
    for kind, count in sorted(tally.injected.items()):
        print(f"{count:5d}  {kind}")
    print(f"\n{sum(by_kind.values())} faults: {', '.join(f'{n} {k}' for k, n in by_kind.most_common())}")
    print(f"runs that went on from a checkpoint: {tally.resumed}")
    print(f"results lost: {len(tally.lost)}, different: {len(tally.different)}, other faults: {len(tally.faults)}")
    if tally.corrupted:
        ways = ", ".join(f"{n} {way}" for way, n in tally.corrupted.most_common())
        print(f"files of {tally.kinds} kinds corrupted: {tally.corrupted.total()} ({ways})")
        ways = ", ".join(f"{n} {way}" for way, n in tally.mixed.most_common())
        print(f"without Snakemake's records: {tally.mixed.total()} ({ways}), {tally.at_start} noticed at a run's start")
        every = tally.corrupted.total() + tally.mixed.total()
        print(f"noticed: {every - len(tally.unnoticed)}, silently used: {len(tally.unnoticed)}")
    for line in [*tally.lost, *tally.different, *tally.unnoticed, *tally.faults]:
        print(f"- {line}")
    print(
        f"{time.monotonic() - began:.0f} s, seed {args.seed}, {platform.platform()}, Python {platform.python_version()}"
    )
    return 0 if tally.clean else 1


if __name__ == "__main__":
    sys.exit(main())
