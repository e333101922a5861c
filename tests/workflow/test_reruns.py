"""What a study does again after a deletion, a failure, an edit, a move or a kill, and nothing else."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from patience import PATIENCE, until

pytest.importorskip("snakemake", reason="the workflow needs Snakemake; the library does not")
import psutil

from viny.runtime.claims import Claim
from viny.study.config import resolve
from viny.study.reading import read_config
from viny.study.saved import write_study
from viny.tools.forecast.plan import plan
from viny.tools.status.state import Watcher

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
STUDY = yaml.safe_load((REPOSITORY / "tests" / "tiny.yaml").read_text())
# Two cells, one of them pre-trained: every kind of job but an intermediate task.
STUDY["grid"] = {"pretrain_sizes": [0, 24], "intermediates": ["none"], "finetune_sizes": [8], "seeds": [0]}
STUDY["compute"]["checkpoint_minutes"] = 0
STUDY["geometry"] = {"encoders": "none"}
SUMS = dict.fromkeys(("tables", "figures", "statistics", "scorecard", "report"), 1)
WHOLE = {"pack": 2, "split": 2, "pretrain": 1, "finetune": 2, "evaluate": 2, "duplicates": 1, **SUMS}
BELOW_FINETUNE = {"finetune": 2, "evaluate": 2, **SUMS}
REFERENCES = {"reference": 1, "statistics": 1, "figures": 1, "report": 1}
BELOW_EVALUATE = {"evaluate": 2, **SUMS}
CELL = "pre-24_mid-none_fine-8_seed-0"


class Project:
    """A copy of the repository, whose own library runs a study named tiny."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "results" / "tiny"

    @classmethod
    def new(cls, folder: Path, **changes: Any) -> Project:
        folder.mkdir(exist_ok=True)
        project = cls(folder)
        for name in ("src", "workflow", "profiles", "envs"):
            shutil.copytree(REPOSITORY / name, folder / name)
        shutil.copy2(REPOSITORY / "Snakefile", folder)
        project.write(**changes)
        return project

    def copy(self, folder: Path) -> Project:
        """The same project copied, with links and times kept."""
        shutil.copytree(self.folder, folder, symlinks=True, dirs_exist_ok=True)
        return Project(folder)

    def write(self, **changes: Any) -> None:
        """Write the study with some keys replaced, given as section__key."""
        study = json.loads(json.dumps(STUDY))
        for name, value in changes.items():
            *sections, key = name.split("__")
            place = study
            for section in sections:
                place = place[section]
            place[key] = value
        (self.folder / "study.yaml").write_text(yaml.safe_dump(study))

    def edit(self, module: str, old: str, new: str) -> None:
        path = self.folder / "src" / "viny" / module
        text = path.read_text()
        assert text.count(old) == 1 or not module.endswith(".py"), f"{module} has {text.count(old)} of {old!r}"
        assert old in text
        path.write_text(text.replace(old, new, 1))

    def command(self, *arguments: str) -> list[str]:
        cores = () if "-n" in arguments else ("--cores", "2")
        return [sys.executable, "-m", "snakemake", *cores, "--configfile", "study.yaml", *arguments]

    def options(self, **environment: str) -> dict[str, Any]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("VINY_", "SNAKEMAKE_"))}
        path = str(self.folder / "src")
        return {"cwd": self.folder, "text": True, "env": {**inherited, "PYTHONPATH": path, **environment}}

    def run(self, *arguments: str, code: int = 0, **environment: str) -> str:
        """Call snakemake and check its exit code; returns all that it printed."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "timeout": 600}
        done = subprocess.run(self.command(*arguments), **options, **self.options(**environment))
        assert done.returncode == code, done.stdout[-6000:]
        return done.stdout

    def start(self, *arguments: str) -> subprocess.Popen:
        """Call snakemake in its own process group, and do not wait."""
        with open(self.folder / "said.txt", "w") as said:
            return subprocess.Popen(
                self.command(*arguments),
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # A test run in the background of a shell ignores SIGINT, and so would its children.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
                **self.options(),
            )

    @property
    def said(self) -> str:
        return (self.folder / "said.txt").read_text()

    def planned(self, *arguments: str) -> dict[str, int]:
        """Jobs by rule that a dry run lists; empty if nothing is to be done."""
        out = self.run("-n", *arguments)
        table = re.search(r"^Job stats:\n(?:.*\n){2}((?:\S+ +\d+\n)+)", out, re.MULTILINE)
        if table is None:
            assert "Nothing to be done" in out, out[-3000:]
            return {}
        counts = {name: int(count) for name, count in (line.split() for line in table[1].splitlines())}
        return {k: v for k, v in counts.items() if k not in ("total", "all")}

    def done(self, *arguments: str, code: int = 0) -> dict[str, int]:
        """Jobs by rule that a run finished or found done, as planned."""
        return finished_jobs(self.run(*arguments, code=code))

    def json(self, name: str) -> Any:
        return json.loads((self.root / name).read_text())

    def weights(self) -> dict[str, str]:
        """Hash of each fine-tuned model."""
        records = self.root.glob("finetune/*/model.json")
        return {path.parent.name: json.loads(path.read_text())["weights_sha256"] for path in records}


def finished_jobs(said: str) -> dict[str, int]:
    names = re.findall(r"^\d\d:\d\d:\d\d  \d+ of \d+  (\w+)", said, re.MULTILINE)
    return {k: v for k, v in Counter(names).items() if k != "all"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose study has run to its end; not to be changed."""
    project = Project.new(tmp_path_factory.mktemp("finished"))
    assert project.done() == WHOLE
    return project


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    """A copy of it, to be changed."""
    return finished.copy(tmp_path / "copy")


# Nothing reruns


def test_every_file_touched(project: Project) -> None:
    for path in sorted(project.folder.rglob("*"), reverse=True):
        os.utime(path, follow_symlinks=False)
    assert project.planned() == {}


def test_the_whole_folder_moved(project: Project, tmp_path: Path) -> None:
    shutil.move(project.folder, tmp_path / "elsewhere")
    assert Project(tmp_path / "elsewhere").planned() == {}


def test_results_copied_into_a_new_clone(project: Project, tmp_path: Path) -> None:
    # Like cp -r: links stay links, every file is new.
    clone = Project.new(tmp_path / "clone")
    for path in clone.folder.rglob("*"):
        os.utime(path, follow_symlinks=False)
    subprocess.run(["cp", "-r", "results", "packs", ".snakemake", clone.folder], cwd=project.folder, check=True)
    assert clone.planned() == {}


def test_snakemake_s_notes_lost(project: Project) -> None:
    shutil.rmtree(project.folder / ".snakemake")
    assert project.planned() == {}


def test_comments_docstrings_and_layout_of_the_library(project: Project) -> None:
    package = project.folder / "src" / "viny"
    for path in package.rglob("*.py"):
        text = path.read_text().replace("\n\n\n", "\n\n\n# A remark.\n")
        path.write_text(re.sub(r'^((?: {4,})?)"""(?=\w)', r'\1"""Indeed. ', text, flags=re.MULTILINE))
    before = (package / "runtime" / "files.py").read_text()
    subprocess.run([sys.executable, "-m", "ruff", "format", "-q", "--line-length", "60", package], check=True)
    assert len((package / "runtime" / "files.py").read_text().splitlines()) > len(before.splitlines()) + 5
    assert "Indeed" in before
    assert project.planned() == {}


# What depends on a change, and nothing else


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"finetune__lr": 0.004}, BELOW_FINETUNE),
        (
            {"grid__seeds": [0, 1]},
            {"split": 2, "pretrain": 1, "finetune": 2, "evaluate": 2, "duplicates": 1, **SUMS},
        ),
        ({"compute__checkpoint_minutes": 3}, {}),
    ],
)
def test_a_setting(change: dict[str, Any], expected: dict[str, int], project: Project) -> None:
    project.write(**change)
    assert project.planned() == expected


def test_references_switched_on_in_a_finished_study(project: Project) -> None:
    before = project.weights()
    project.write(references=True)
    assert project.done() == REFERENCES
    assert project.planned() == {} and project.weights() == before
    table = pd.read_csv(project.root / "tables" / "references.csv")
    assert len(table) == 2 and table["sentence"].str.startswith("With 8 labels").all()
    (record,) = (json.loads(path.read_text()) for path in project.root.glob("references/*.json"))
    of_class = {name: value for name, value in record["metrics"].items() if name.startswith("iou_")}
    unet = table.set_index("reference").loc["unet"]
    assert of_class and {name: unet[name] for name in of_class} == pytest.approx(of_class, abs=1e-5)
    verified = [sys.executable, "-m", "viny", "verify", project.root]
    done = subprocess.run(verified, stdout=subprocess.PIPE, **project.options())
    assert done.returncode == 0 and ": 0 wrong, 0 missing, 0 notes" in done.stdout, done.stdout
    confusion = next(project.root.glob("references/*.npz"))
    confusion.write_bytes(confusion.read_bytes()[:-1])
    done = subprocess.run(verified, stdout=subprocess.PIPE, **project.options())
    assert done.returncode != 0 and confusion.name in done.stdout


@pytest.mark.parametrize(
    ("module", "old", "new", "expected"),
    [
        (
            "learning/objectives.py",
            "return F.l1_loss(predicted",
            "return 2 * F.l1_loss(predicted",
            {"pretrain": 1, **BELOW_FINETUNE},
        ),
        (
            "evidence/figures/kit.py",
            "def save(",
            "NEW = 1\n\n\ndef save(",
            {key: SUMS[key] for key in ("figures", "statistics", "report")},
        ),
        (
            "evidence/paper/scorecard.py",
            "def write_scorecard(",
            "NEW = 1\n\n\ndef write_scorecard(",
            {key: SUMS[key] for key in ("scorecard", "report")},
        ),
        ("evidence/report/page.html.j2", "<body>", "<body >", {"report": 1}),
        (
            "evidence/metrics.py",
            "return float(np.nan_to_num(iou(",
            "return 0.5 * float(np.nan_to_num(iou(",
            BELOW_EVALUATE,
        ),
    ],
)
def test_code(module: str, old: str, new: str, expected: dict[str, int], project: Project) -> None:
    project.edit(module, old, new)
    assert project.planned() == expected


def test_snakemake_s_notes_lost_before_an_edit(project: Project) -> None:
    """What results say of themselves is enough."""
    shutil.rmtree(project.folder / ".snakemake")
    project.write(finetune__lr=0.004)
    said = project.run("-n")
    assert re.search(r"a run makes it again:\n  finetune .* and 1 more: made with other settings \(train.lr: ", said)
    assert project.planned() == BELOW_FINETUNE
    assert project.planned("--until", "finetune") == {"finetune": 2}
    assert project.planned(f"results/tiny/finetune/{CELL}/model.json") == {"finetune": 1}
    assert project.planned("--rerun-triggers", "mtime") == {}  # as asked, but said
    assert "but kept" in project.run("-n", "--rerun-triggers", "mtime")
    assert project.done() == BELOW_FINETUNE
    assert project.planned() == {}
    assert "Not of the study" not in project.run("-n")
    shutil.rmtree(project.folder / ".snakemake")
    project.edit("evidence/metrics.py", "return float(np.nan_to_num(", "return 0.5 * float(np.nan_to_num(")
    assert project.planned() == BELOW_EVALUATE


# What a study may be told to be, each with a file that may be lost, cut short or left by another study.
EDITS: list[dict[str, Any]] = [
    {"finetune__epochs": 4},
    {"finetune__batch_size": 4, "note": "Another note."},
    {"pretrain__epochs": 3},
    {"grid__seeds": [0, 1]},
    {"grid__seeds": [1]},
    {"grid__finetune_sizes": [8, 12]},
    {"grid__pretrain_sizes": [0]},
    {"grid__intermediates": ["none", "scenes"]},
    {"segmentation__test_size": 9},
    {"geometry": {"encoders": "all", "images": 5, "probe_images": 6}},
    {"protocol": "paper"},
    {"switches": {"class_token": "always"}},
    {"compute": {**STUDY["compute"], "train_threads": 2}},
    {"compute": {**STUDY["compute"], "precision": "bfloat16"}},
    {"synthetic__segmentation": 29},
    {"figures__examples": 1},
    {"model__depth": 3},
    {"pack_store": "elsewhere"},
    {"split_seed": 5},
    {},
]


def test_plan_and_status_say_what_a_run_does(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over edits of settings and of files, whatever Snakemake has noted of the jobs."""
    monkeypatch.chdir(project.folder)
    draw = random.Random(0)
    files = sorted(path for path in project.root.rglob("*") if path.is_file() and path.suffix != ".log")
    files = [path for path in files if not {"benchmarks", "logs", "packs"}.intersection(path.parts)]
    notes = [path for path in (project.folder / ".snakemake" / "metadata").rglob("*") if path.is_file()]
    draw.shuffle(EDITS)
    for at, edit in enumerate(EDITS[:12]):
        project.write(**edit)
        path = draw.choice(files)
        kept = path.read_bytes()
        damage = draw.choice(["none", "lost", "cut"] if path.suffix == ".json" else ["none", "lost"])
        if damage == "lost":
            path.unlink()
        elif damage == "cut":
            path.write_bytes(kept[: len(kept) // 2])
        if at == 6:  # those of the jobs before ones that a kill cut off
            for note in draw.sample(notes, len(notes) // 2):
                note.write_text(json.dumps({**json.loads(note.read_text()), "params": ["'of another time'"]}))
                cut_off = project.folder / ".snakemake" / "incomplete" / note.relative_to(notes[0].parent)
                cut_off.touch()
        config = resolve(read_config(Path("study.yaml")))
        rows = plan(config, Path("results"), Path(config["pack_store"]), cores=2, rate=1e3)["stages"]
        said = {row["stage"]: row["to_do"] for row in rows if row["to_do"]}
        assert said == project.planned(), (edit, path, damage)
        if set(edit) <= {"note"} or not edit:
            counts = Watcher(project.root).look().stages
            assert {stage: n for stage, one in counts.items() if (n := one.total() - one["done"])} == said
        path.write_bytes(kept)


def test_results_restored_from_a_backup(project: Project) -> None:
    """Whose files are older than all that Snakemake knows."""
    cell = f"finetune/{CELL}"
    kept = {path.name: path.read_bytes() for path in (project.root / cell).iterdir()}
    metrics = (project.root / "metrics" / f"{CELL}.json").read_bytes()
    project.write(finetune__lr=0.004)
    assert project.done() == BELOW_FINETUNE

    def restore(name: str, data: bytes) -> None:
        path = project.root / name
        path.write_bytes(data)
        os.utime(path, (1e9, 1e9))

    restore(f"metrics/{CELL}.json", metrics)  # of the other model
    assert project.planned() == {"evaluate": 1, **SUMS}
    assert project.done() == {"evaluate": 1, **SUMS}
    restore(f"{cell}/model.json", kept["model.json"])  # beside the other weights
    assert project.planned() == {"finetune": 1, "evaluate": 1, **SUMS}
    for name, data in kept.items():
        restore(f"{cell}/{name}", data)
    assert project.planned() == {"finetune": 1, "evaluate": 1, **SUMS}


def test_what_was_deleted_is_made_again_and_is_the_same(project: Project) -> None:
    weights, pretrained = project.weights(), "pretrain/size-24_seed-0/encoder.json"
    before = project.json(pretrained)["weights_sha256"]
    shutil.rmtree(project.root / "pretrain")
    shutil.rmtree(project.root / "splits")
    project.run()
    assert project.json(pretrained)["weights_sha256"] == before
    assert project.weights() == weights
    assert project.planned() == {}


def test_a_deleted_result_costs_one_evaluation(project: Project) -> None:
    metrics = project.root / "metrics" / f"{CELL}.json"
    before, weights = json.loads(metrics.read_text())["metrics"], project.weights()
    metrics.unlink()
    expected = {"evaluate": 1, **SUMS}
    assert project.planned() == expected
    assert project.done() == expected
    assert json.loads(metrics.read_text())["metrics"] == before
    assert project.weights() == weights
    assert project.planned() == {}


def test_a_failed_cell_costs_itself_alone(tmp_path: Path) -> None:
    project = Project.new(tmp_path / "project", grid__pretrain_sizes=[0], grid__finetune_sizes=[8, 16])
    project.run("--until", "split")
    indices = project.root / "splits" / "finetune" / "size-16_seed-0.npz"
    sound = indices.read_bytes()
    indices.write_bytes(sound[: len(sound) // 2])
    said = project.run(code=1)
    assert finished_jobs(said) == {"finetune": 1, "evaluate": 1}
    assert "Error in rule finetune" in said
    assert "size-16_seed-0.npz: no readable index lists" in said  # the failed job's log
    assert "size-8_seed-0.npz: not readable" not in said
    indices.write_bytes(sound)
    expected = {"finetune": 1, "evaluate": 1, "duplicates": 1, **SUMS}
    assert project.planned() == expected
    assert project.done() == expected
    assert project.planned() == {}


# What a run says


def test_a_run_says_a_line_for_each_job_and_its_log_has_the_rest(tmp_path: Path) -> None:
    project = Project.new(tmp_path / "project")
    short = project.run("--until", "split")
    jobs = re.findall(r"^\d\d:\d\d:\d\d  (\d+) of \d+  (\w+) \S+$", short, re.MULTILINE)
    assert [int(at) for at, _ in jobs] == list(range(1, len(jobs) + 1)) and len(jobs) >= 4
    whole = max((project.folder / ".snakemake" / "log").iterdir()).read_text()
    assert whole.count("    jobid: ") == len(jobs) and "    jobid: " not in short
    assert "    reason: " in project.run("-n")
    shutil.rmtree(project.root / "splits")
    again = project.run("--until", "split", "--printshellcmds")
    assert again.count("    reason: ") == again.count("Finished jobid: ") == sum(job == "split" for _, job in jobs)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_stop_of_the_run_says_where_each_training_was_stopped(tmp_path: Path, name: str) -> None:
    project = Project.new(tmp_path / "project", grid__pretrain_sizes=[0], finetune__epochs=100_000)
    run = project.start()
    until(lambda: list(project.root.glob("checkpoints/finetune/*/progress.json")), "a fine-tuning")
    os.killpg(run.pid, signal.Signals[name])
    assert run.wait(timeout=PATIENCE) == 1
    assert re.search(rf"^\d\d:\d\d:\d\d  finetune \S+: stopped by {name} in epoch \d+ of 100000", project.said, re.M)
    assert "Will exit after" not in project.said
    assert project.said.count("no more jobs start; those that run end first") == (name == "SIGTERM")
    assert "Error" not in project.said  # nothing that sounds like a fault
    assert "Not done.\nThe same command goes on from here." in project.said
    assert list(project.root.glob("checkpoints/finetune/*/*.safetensors"))


# Edits while a run is under way


def test_edits_of_study_and_library_during_a_run(project: Project) -> None:
    project.write(finetune__lr=0.004)
    run = project.start()
    until(lambda: list(project.root.glob("checkpoints/finetune/*/*.safetensors")), "a fine-tuning")
    os.killpg(run.pid, signal.SIGSTOP)  # or it might be over before the second one has started
    project.write(finetune__lr=0.008)
    project.edit("evidence/metrics.py", "return float(np.nan_to_num(iou(", "return 0.5 * float(np.nan_to_num(iou(")
    second = project.run(code=1)
    os.killpg(run.pid, signal.SIGCONT)
    assert f"The study 'tiny' is being run by process {run.pid} on " in second
    assert finished_jobs(second) == {}
    assert run.wait(timeout=300) == 1
    assert finished_jobs(project.said) == {"finetune": 2}
    assert "viny: the code of stage 'evaluate' was edited after this run began; start the run again" in project.said
    rates = [json.loads(p.read_text())["spec"]["train"]["lr"] for p in project.root.glob("finetune/*/model.json")]
    assert rates == [0.004, 0.004]
    assert project.json("study.json")["config"]["finetune"]["lr"] == 0.004
    assert project.planned() == BELOW_FINETUNE
    project.write(finetune__lr=0.004)
    assert project.planned() == BELOW_EVALUATE
    assert project.done() == BELOW_EVALUATE
    assert project.planned() == {}


def test_a_job_that_reads_the_study_anew_uses_the_settings_as_submitted(project: Project) -> None:
    submitted = project.json("study.json")
    environment = {
        "VINY_STUDY_SHA256": submitted["sha256"],
        "VINY_STUDY_ROOT": str(project.root),
    }
    project.write(finetune__lr=0.004)
    # Snakemake's own call of itself on a cluster, except for the executor.
    job = ["--mode", "remote", "--no-hooks", "--nolock", "--force", "--allowed-rules", "finetune"]
    job += ["--target-jobs", f"finetune:cell={CELL}"]
    rate, weights = submitted["config"]["finetune"]["lr"], project.weights()
    assert rate not in (0.004, 0.008)
    record = project.root / "finetune" / CELL / "model.json"
    before = record.stat().st_mtime_ns
    project.run(*job, **environment)
    assert record.stat().st_mtime_ns > before
    assert json.loads(record.read_text())["spec"]["train"]["lr"] == rate
    assert project.weights() == weights
    # Settings that no longer exist anywhere.
    submitted["config"]["finetune"]["lr"] = 0.008
    write_study(project.root, submitted["config"])
    said = project.run(*job, code=1, **environment)
    assert "the study file was edited after this job was submitted; start snakemake again" in said
    assert "Traceback" not in said


# Two at once


def test_a_second_run_of_the_same_study_is_refused(project: Project) -> None:
    (project.root / "metrics" / f"{CELL}.json").unlink()
    claim = Claim(project.root / ".claim")
    assert claim.acquire() is None
    before = {p: p.lstat().st_mtime_ns for p in project.root.rglob("*")}
    said = project.run(code=1)
    assert f"is being run by process {os.getpid()} on " in said
    assert "Nothing was started." in said
    assert "Traceback" not in said
    assert {p: p.lstat().st_mtime_ns for p in project.root.rglob("*")} == before
    assert project.planned() != {}  # looking is free
    claim.release()


def test_two_studies_share_a_pack_that_both_make_at_once(tmp_path: Path) -> None:
    project = Project.new(tmp_path / "project", synthetic__unlabelled=2500)
    names = ["one", "two"]
    study = yaml.safe_load((project.folder / "study.yaml").read_text())
    runs = []
    for name in names:
        (project.folder / f"{name}.yaml").write_text(yaml.safe_dump({**study, "study": name}))
        command = [name + ".yaml" if piece == "study.yaml" else piece for piece in project.command("--until", "split")]
        runs.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **project.options()))
    store, half, making = project.folder / "packs", set(), 0
    while any(run.poll() is None for run in runs):
        made = list(store.glob("*"))
        making = max(making, len(list(store.glob(".*-32-*"))))
        half |= {p for p in made if not p.name.startswith(".") and not (p / "manifest.json").exists()}
        time.sleep(0.002)
    errors = [run.communicate()[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], errors
    assert half == set()
    assert making == 2  # both were at it
    assert len(list(store.iterdir())) == 2  # unlabelled and segmentation
    links = [os.path.realpath(project.folder / "results" / n / "packs" / "pretrain" / "images.npy") for n in names]
    assert links[0] == links[1]


# Kills

LONG: dict[str, Any] = {"grid__pretrain_sizes": [0], "grid__finetune_sizes": [8, 20], "finetune__epochs": 150}
DONE, KILLED = (f"pre-0_mid-none_fine-{labels}_seed-0" for labels in LONG["grid__finetune_sizes"])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Two longer fine-tunings that were never stopped; not to be changed."""
    project = Project.new(tmp_path_factory.mktemp("undisturbed"), **LONG)
    project.run("--until", "finetune")
    assert set(project.weights()) == {DONE, KILLED}
    return project


def is_over(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def under_way(
    undisturbed: Project, tmp_path: Path
) -> Iterator[tuple[Project, subprocess.Popen, list[psutil.Process]]]:
    """A run with one of its fine-tunings done and the other at its beginning, and its jobs' processes."""
    project = undisturbed.copy(tmp_path / "project")
    shutil.rmtree(project.root / "finetune" / KILLED)
    run = project.start("--until", "finetune")
    jobs: list[psutil.Process] = []
    try:
        until(lambda: list(project.root.glob(f"checkpoints/finetune/{KILLED}/*.safetensors")), "a checkpoint")
        jobs += psutil.Process(run.pid).children(recursive=True)
        yield project, run, jobs
    finally:
        for process in jobs:
            if not is_over(process):
                process.kill()
        run.kill()
        run.wait()


@pytest.mark.parametrize("kill", ["driver", "group", "terminate", "interrupt"])
def test_after_a_kill_the_same_command_ends_the_same(
    kill: str,
    under_way: tuple[Project, subprocess.Popen, list[psutil.Process]],
    undisturbed: Project,
) -> None:
    project, run, jobs = under_way
    assert jobs
    began = time.monotonic()
    match kill:
        case "driver":
            run.kill()
        case "group":
            os.killpg(run.pid, signal.SIGKILL)
        case "terminate":
            run.terminate()
        case "interrupt":
            os.killpg(run.pid, signal.SIGINT)
    run.wait(timeout=PATIENCE)
    until(lambda: all(map(is_over, jobs)), "the end of all jobs")
    print(f"{kill}: all over after {time.monotonic() - began:.2f} s")
    kept = list((project.root / "checkpoints" / "finetune" / KILLED).glob("*.safetensors"))
    if kill == "terminate":  # Snakemake lets running jobs finish
        assert set(project.weights()) == {DONE, KILLED}
    else:
        assert set(project.weights()) == {DONE}
        assert kept
    if kill in ("driver", "interrupt"):  # an orderly end of the jobs
        assert not list((project.root / "checkpoints").rglob("*.claim"))
    assert "unlock" not in project.said
    again = project.done("--until", "finetune")
    assert again == ({} if kill == "terminate" else {"finetune": 1})
    assert project.weights() == undisturbed.weights()
    first = f"finetune/{DONE}/run.json"
    assert (project.root / first).read_bytes() == (undisturbed.root / first).read_bytes()
    attempts = project.json(f"finetune/{KILLED}/run.json")["earlier_attempts"]
    print(f"{kill}: earlier attempts {attempts}, {len(kept)} checkpoints")
    assert len(attempts) == (kill != "terminate")
    assert not (project.root / "checkpoints" / "finetune" / KILLED).exists()
    assert project.planned("--until", "finetune") == {}
