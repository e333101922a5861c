"""The workflow: which jobs a study expands to, what reruns after a change, and a tiny study from images to figures."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import yaml

from viny.evidence.report import CAPTIONS
from viny.study import grid, layout, specs

pytest.importorskip("snakemake", reason="the workflow needs Snakemake; the library does not")

REPOSITORY = Path(__file__).parents[2]
TINY = REPOSITORY / "tests" / "tiny.yaml"
# What is summed up again after any cell's metrics have changed.
SUMS = dict.fromkeys(("tables", "figures", "statistics", "representations", "scorecard", "report"), 1)


def snakemake(
    folder: Path, *arguments: str | Path, check: bool = True, path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the repository's workflow in its own working folder; Python looks in `path` before anywhere else."""
    command = [sys.executable, "-m", "snakemake", "-s", REPOSITORY / "Snakefile", *arguments]
    before = [str(path)] if path else []
    env = os.environ | {"PYTHONPATH": os.pathsep.join([*before, os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1200, env=env)
    if check:
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done


def planned(folder: Path, *arguments: str | Path) -> dict[str, int]:
    """Jobs by rule that a dry run lists; empty if nothing is to be done."""
    out = snakemake(folder, "-n", *arguments).stdout
    table = re.search(r"^Job stats:\n(?:.*\n){2}((?:\S+ +\d+\n)+)", out, re.MULTILINE)
    if table is None:
        assert "Nothing to be done" in out, out[-3000:]
        return {}
    counts = {name: int(count) for name, count in (line.split() for line in table[1].splitlines())}
    total = counts.pop("total")
    counts.pop("all", None)
    assert total in (sum(counts.values()), sum(counts.values()) + 1)
    return counts


def write_study(folder: Path, **changes: object) -> Path:
    """A copy of the tiny study with some keys replaced, given as section__key or key."""
    study = yaml.safe_load(TINY.read_text())
    for name, value in changes.items():
        *sections, key = name.split("__")
        place = study
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


def test_paper_grid_shares_its_stages(tmp_path: Path) -> None:
    jobs = planned(tmp_path, "--configfile", REPOSITORY / "studies" / "paper.yaml")
    assert jobs == {
        "pack": 3,
        "split": 9 + 18 + 1,
        "pretrain": 9,
        "intermediate": 12,
        "finetune": 144,
        "evaluate": 144,
        "reference": 18,
        "duplicates": 1,
        "geometry": 3 + 9 + 12,
        **SUMS,
    }


def test_default_study_is_the_demo(tmp_path: Path) -> None:
    # The default study is read from the working folder, so it is run from the repository's root.
    jobs = planned(tmp_path, "--configfile", REPOSITORY / "config.yaml")
    study = yaml.safe_load((REPOSITORY / "config.yaml").read_text())
    lists = study["grid"].values()
    cells = 1
    for values in lists:
        cells *= len(values)
    assert study["study"] == "demo"
    assert jobs["finetune"] == jobs["evaluate"] == cells


def test_a_given_study_does_not_inherit_from_the_default_one(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("study: demo\nmodel: {dim: 7}\nnote: wrong\n")
    out = snakemake(tmp_path, "-n", "-p", "--configfile", REPOSITORY / "studies" / "paper.yaml").stdout
    assert '"dim":128' in out
    assert '"dim":7' not in out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"finetune__milestones": [3]}, ["finetune.milestones", "3", "from 1 to 2"]),
        ({"finetune__epoch": 3}, ["finetune", "'epoch'", "did you mean 'epochs'"]),
        ({"finetune__epochs": "many"}, ["finetune.epochs", "integer", "many"]),
        ({"grid__finetune_sizes": [8, 21]}, ["grid.finetune_sizes", "21", "30 labelled images", "leave 20"]),
        ({"grid__pretrain_sizes": [0, 31]}, ["grid.pretrain_sizes", "31", "30 images"]),
        ({"grid__intermediates": ["none", "scense"]}, ["grid.intermediates", "did you mean 'scenes'"]),
        ({"study": "../elsewhere"}, ["study", "../elsewhere"]),
    ],
)
def test_faults_in_a_study_stop_at_once_with_the_key(tmp_path: Path, change: dict, words: list[str]) -> None:
    done = snakemake(tmp_path, "--cores", "1", "--configfile", write_study(tmp_path, **change), check=False)
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert all(word in said for word in words), said
    assert "Traceback" not in said
    assert not (tmp_path / "results").exists()


def test_missing_data_say_what_is_expected_and_how_to_get_it(tmp_path: Path) -> None:
    study = write_study(tmp_path, segmentation={"source": "pets", "test_size": 10, "path": "nowhere"})
    done = snakemake(tmp_path, "--cores", "1", "--until", "pack", "--configfile", study, check=False)
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert "nowhere/oxford-iiit-pet/annotations/trainval.txt: not found" in said
    assert "segmentation.download" in said


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the tiny study has run to its end."""
    folder = tmp_path_factory.mktemp("tiny")
    snakemake(folder, "--cores", "2", "--configfile", TINY)
    return folder


@pytest.mark.slow
def test_tiny_study_leaves_every_result(finished: Path) -> None:
    root = finished / "results" / "tiny"
    frame = pd.read_csv(root / "tables" / "metrics.csv")
    assert len(frame) == 16
    assert set(frame["note"]) == {"Test study."}
    drawn = ["miou_curves", "miou_difference", "learning_curves", "segmentation", "reconstructions"]
    for name in (*drawn, *layout.STATISTICS_FIGURES, *layout.REPRESENTATIONS_FIGURES):
        assert (root / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (root / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    counts = (root / "tables" / "duplicates.md").read_text().splitlines()[-3:]
    assert [line.split(" | ")[0] for line in counts] == ["| pretrain", "| scenes", "| finetune"]
    assert (root / "tables" / "duplicates.csv").read_text().startswith("role,image,test_image,kind,distance\n")
    metrics = json.loads((root / "metrics" / "pre-24_mid-scenes_fine-8_seed-1.json").read_text())
    assert metrics["cell"] == {
        "name": "pre-24_mid-scenes_fine-8_seed-1",
        "pretrain_size": 24,
        "intermediate": "scenes",
        "finetune_size": 8,
        "seed": 1,
    }
    assert 0 <= metrics["metrics"]["miou"] <= 1
    adapted = json.loads((root / "intermediate" / "scenes" / "size-24_seed-1" / "encoder.json").read_text())
    pretrained = json.loads((root / "pretrain" / "size-24_seed-1" / "encoder.json").read_text())
    assert metrics["hashes"]["parent_weights"] == adapted["weights_sha256"]
    assert adapted["parent_sha256"] == pretrained["weights_sha256"]
    assert len((root / "pretrain" / "size-24_seed-1" / "curve.csv").read_text().splitlines()) == 3


class Page(HTMLParser):
    """What a page opens and does not close, what it would load from elsewhere, and what it links to."""

    VOID = ("meta", "img", "br", "link", "input", "hr")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.linked: set[str] = set()
        self.pictures: list[bytes] = []
        self.headings: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "action"):
                if (value or "").startswith("data:image/png;base64,"):
                    self.pictures.append(base64.b64decode(str(value).partition(",")[2], validate=True))
                elif tag == "a":
                    self.linked.add(str(value))
                else:
                    self.loaded.append(str(value))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append(data)


@pytest.mark.slow
def test_the_report_is_one_whole_page_that_loads_nothing(finished: Path) -> None:
    root = finished / "results" / "tiny"
    text = (root / "report.html").read_text()
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    assert page.loaded == []
    assert not re.search(r"<script|@import|url\(|https?://", text)
    assert set(page.pictures) == {path.read_bytes() for path in (root / "figures").glob("*.png")}
    cells = [path.stem for path in (root / "metrics").glob("*.json")]
    assert {name for cell in cells for name in (f"metrics/{cell}.json", f"scores/{cell}.csv")} <= page.linked
    assert {f"figures/{path.name}" for path in (root / "figures").glob("*.pdf")} <= page.linked
    assert all((root / name).exists() for name in page.linked)
    for heading in ("mIoU in percent", "Warnings", "Next steps", "Cost", "Against the paper"):
        assert heading in page.headings
    assert "Test study." in text
    card = pd.read_csv(root / "tables" / "scorecard.csv")
    for words in card.loc[card["kind"] == "claim", "what"]:
        assert words in html.unescape(text)
    assert not re.search(r"\bnan\b|None|\{\{", re.sub(r"base64,[^\"]*", "", text))


@pytest.mark.slow
def test_snakemakes_own_report_has_figures_and_tables_with_captions(finished: Path, tmp_path: Path) -> None:
    snakemake(finished, "--configfile", TINY, "--report", tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    captions = {path.stem for path in CAPTIONS.glob("*.rst")}
    assert len(captions) > 15
    for name in captions - {*layout.ARMS_FIGURES, *layout.HELD_OUT_FIGURES}:  # this study has neither
        assert f"{name}.png" in text or f"{name}.csv" in text, name
    assert (CAPTIONS / "effects.rst").read_text().split(",")[0] in text


@pytest.mark.slow
def test_a_finished_study_fits_together(finished: Path) -> None:
    command = [sys.executable, "-m", "viny", "verify", "results/tiny", "--study", TINY, "--json"]
    done = subprocess.run(command, cwd=finished, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["findings"] == []
    # 22 trainings of 4 files, 16 metrics of 2; packs, splits and tables besides.
    assert report["files"] > 22 * 4 + 16 * 2


@pytest.mark.slow
def test_a_finished_study_reruns_nothing(finished: Path) -> None:
    assert planned(finished, "--configfile", TINY) == {}
    # Nor is a touched file with unchanged content a reason, however large it is.
    for path in (finished / "results" / "tiny").rglob("*"):
        if path.suffix in (".safetensors", ".json", ".npz") and "metrics" not in path.parts:
            os.utime(path)
    assert planned(finished, "--configfile", TINY) == {}


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["lost", "edited"])
def test_a_run_with_nothing_to_do_writes_the_settings_again(finished: Path, damage: str) -> None:
    path = finished / "results" / "tiny" / "study.json"
    snakemake(finished, "--cores", "1", "--configfile", TINY)
    whole = path.read_text()
    path.unlink() if damage == "lost" else path.write_text(whole + " ")
    said = snakemake(finished, "--cores", "1", "--configfile", TINY, "-n")
    assert not path.exists() if damage == "lost" else path.read_text() == whole + " "
    said = snakemake(finished, "--cores", "1", "--configfile", TINY)
    assert "Nothing to be done" in said.stdout + said.stderr
    assert path.read_text() == whole


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"finetune__lr": 0.004}, {"finetune": 16, "evaluate": 16, **SUMS}),
        (
            {"grid__seeds": [0, 1, 2]},
            {
                "split": 3,
                "pretrain": 1,
                "intermediate": 2,
                "finetune": 8,
                "evaluate": 8,
                "duplicates": 1,
                "geometry": 4,
                **SUMS,
            },
        ),
        (
            {"grid__finetune_sizes": [8, 12, 16]},
            {"split": 2, "finetune": 8, "evaluate": 8, "duplicates": 1, **SUMS},
        ),
        ({"intermediate__scenes__mixup": 0.2}, {"intermediate": 4, "finetune": 8, "evaluate": 8, "geometry": 4}),
        ({"note": "Another note."}, {"evaluate": 16, "geometry": 8, **SUMS}),
        ({"compute__pack_threads": 2}, {}),
        ({"duplicates__distance": 2}, {"duplicates": 1, "report": 1}),
        ({"on_bad_image": "skip", "segmentation__all_background": "skip"}, {}),  # there are no files
    ],
)
def test_a_changed_setting_reruns_what_depends_on_it(finished: Path, change: dict, expected: dict) -> None:
    jobs = planned(finished, "--configfile", write_study(finished, **change))
    assert {rule: jobs.get(rule, 0) for rule in expected} == expected
    assert set(jobs) <= {*expected, *SUMS}


@pytest.mark.slow
def test_a_deleted_result_is_made_again_the_same(finished: Path) -> None:
    root = finished / "results" / "tiny"
    cell = "pre-24_mid-none_fine-16_seed-0"
    metrics = root / "metrics" / f"{cell}.json"
    weights = root / "finetune" / cell / "model.safetensors"
    before = json.loads(metrics.read_text())["metrics"], hashlib.sha256(weights.read_bytes()).hexdigest()
    metrics.unlink()
    assert planned(finished, "--configfile", TINY) == {"evaluate": 1, **SUMS}
    weights.unlink()
    assert planned(finished, "--configfile", TINY) == {"finetune": 1, "evaluate": 1, **SUMS}
    snakemake(finished, "--cores", "2", "--configfile", TINY)
    after = json.loads(metrics.read_text())["metrics"], hashlib.sha256(weights.read_bytes()).hexdigest()
    assert after == before


@pytest.mark.parametrize("lost", ["the pack", "the store"])
def test_a_lost_pack_is_packed_again(tmp_path: Path, lost: str) -> None:
    """A link that leads nowhere is a missing file to Snakemake."""
    arguments = ("--configfile", TINY, "--until", "duplicates")
    snakemake(tmp_path, "--cores", "1", *arguments)
    assert planned(tmp_path, *arguments) == {}
    link = tmp_path / "results" / "tiny" / "packs" / "segmentation" / "images.npy"
    shutil.rmtree(link.resolve().parent if lost == "the pack" else tmp_path / "packs")
    assert planned(tmp_path, *arguments)["pack"] == (1 if lost == "the pack" else 3)
    snakemake(tmp_path, "--cores", "1", *arguments)
    assert link.is_file()


def test_a_damaged_pack_stops_its_jobs_and_is_packed_again_once_deleted(tmp_path: Path) -> None:
    snakemake(tmp_path, "--cores", "1", "--configfile", TINY, "--until", "split")
    sums = (
        tmp_path / "results" / "tiny" / "packs" / "segmentation" / "images.npy"
    ).resolve().parent / "images.sums.npy"
    data = bytearray(sums.read_bytes())
    data[-1] ^= 1
    sums.write_bytes(data)
    arguments = ("--cores", "1", "--configfile", TINY, "--until", "duplicates")
    done = snakemake(tmp_path, *arguments, check=False)
    said = done.stdout + done.stderr
    assert done.returncode != 0
    named = re.search(r"images\.sums\.npy: content differs from .*; delete (\S+) and run again to repack it", said)
    assert named is not None, said[-3000:]
    shutil.rmtree(named[1])
    snakemake(tmp_path, *arguments)


def test_paths_of_workflow_and_library_agree(tmp_path: Path) -> None:
    from viny.study.config import resolve
    from viny.study.reading import read_config

    config = resolve(read_config(TINY))
    root = Path("results/tiny")
    out = snakemake(tmp_path, "-n", "--configfile", TINY).stdout
    for cell in grid.cells(config):
        assert str(layout.metrics_file(root, cell)) in out
    for training in layout.trainings(grid.cells(config)):
        assert str(training.file(root, "curve")) in out
    spec = specs.duplicates_spec(config)
    for name in layout.searched_packs(spec):
        assert str(layout.pack_manifest(root, name)) in out
    for split in layout.searched_splits(spec):
        assert str(layout.split_record(root, *split)) in out
    for encoder in grid.encoders(config):
        assert str(layout.geometry_file(root, encoder)) in out


@pytest.fixture
def altered(tmp_path: Path) -> Callable[[str], Path]:
    """A folder whose code Python runs first in every process that is Snakemake's own."""

    def write(code: str) -> Path:
        folder = tmp_path / "altered"
        folder.mkdir()
        text = "import sys\nif 'snakemake' in sys.orig_argv:\n" + textwrap.indent(code, "    ")
        (folder / "sitecustomize.py").write_text(text)
        return folder

    return write


def test_a_newer_snakemake_than_the_workflow_knows_is_refused(tmp_path: Path, altered: Callable[[str], Path]) -> None:
    path = altered("import snakemake.common\nsnakemake.common.__version__ = '10.0.0'")
    done = snakemake(tmp_path, "-n", "--configfile", TINY, check=False, path=path)
    assert done.returncode != 0
    assert "Snakemake 10.0.0 is newer than this workflow knows; pip install 'snakemake<10'" in done.stdout + done.stderr


@pytest.mark.slow
def test_a_snakemake_without_what_it_does_not_promise_runs_the_study_all_the_same(
    tmp_path: Path, altered: Callable[[str], Path]
) -> None:
    rules = "".join(path.read_text() for path in (REPOSITORY / "workflow" / "rules").iterdir())
    hidden = sorted({name.split(".")[0] for name in re.findall(r'inside\("([\w.]+)"', rules)})
    assert {"is_main_process", "configfiles", "local_exec", "scheduler", "deployment_settings", "dag"} <= set(hidden)
    path = altered(
        "import snakemake.cli\n"  # first, or one of the two imports the other half made
        "from snakemake.workflow import Workflow\n"
        "real = Workflow.__getattribute__\n"
        "def hiding(self, name):\n"
        f"    if name in {hidden} and sys._getframe(1).f_code.co_filename.endswith('.smk'):\n"
        "        raise AttributeError(name)\n"
        "    return real(self, name)\n"
        "Workflow.__getattribute__ = hiding\n"
    )
    study = write_study(
        tmp_path, grid={"pretrain_sizes": [0], "intermediates": ["none"], "finetune_sizes": [8], "seeds": [0]}
    )
    arguments = ("--cores", "2", "--configfile", study)
    snakemake(tmp_path, *arguments, path=path)
    assert (tmp_path / "results" / "tiny" / "report.html").is_file()
    indices = tmp_path / "results" / "tiny" / "splits" / "finetune" / "size-8_seed-0.npz"
    indices.write_bytes(indices.read_bytes()[:100])
    failed = snakemake(tmp_path, *arguments, "--forcerun", "finetune", check=False, path=path)
    assert failed.returncode == 1
    assert "Not done.\nThe same command goes on from here." in failed.stderr
    # Nor can it be told to make again what is of other settings, so that is said.
    other = tmp_path / "other.yaml"
    other.write_text(study.read_text().replace("epochs: 3", "epochs: 4"))
    shutil.rmtree(tmp_path / ".snakemake")
    kept = snakemake(tmp_path, "-n", "--configfile", other, path=path).stderr
    assert "but kept; delete what is to be made again:\n" in kept
    assert re.search(r"^  scorecard: made with other settings \(differences\S*: ", kept, re.M)


def test_workflow_passes_its_linter(tmp_path: Path) -> None:
    assert "good condition" in "".join(snakemake(tmp_path, "--lint", "--configfile", TINY).stderr)
