"""The workflow of a study with arms: the jobs that it lists are the library's, and a large grid is listed fast."""

from __future__ import annotations

import re
import resource
from pathlib import Path

import pytest
import yaml
from test_workflow import REPOSITORY, snakemake

from viny.study.config import resolve
from viny.study.graph import TRAINS, jobs
from viny.study.inventory import count_images
from viny.study.reading import read_config

ARMS = REPOSITORY / "tests" / "arms.yaml"
FIELDS = ("input", "output", "log", "benchmark")


def blocks(said: str) -> list[dict[str, list[str]]]:
    """Each job that a dry run prints, but the one that asks for all: its rule and its files by kind."""
    found = []
    for text in re.split(r"^(?=(?:local)?rule )", said, flags=re.MULTILINE)[1:]:
        rule = re.match(r"(?:local)?rule (\w+):", text)[1]
        files = {kind: re.search(rf"^    {kind}: (.*)$", text, re.MULTILINE) for kind in FIELDS}
        if rule != "all":
            found.append({"rule": [rule], **{kind: m[1].split(", ") if m else [] for kind, m in files.items()}})
    return found


def test_jobs_of_arms_are_the_library_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what each reads: the files of the jobs that it needs, and of no others."""
    monkeypatch.chdir(tmp_path)
    config = resolve(read_config(ARMS))
    root = Path("results/arms")
    mine = jobs(config, count_images(config, root))
    out = snakemake(tmp_path, "-n", "-p", "--configfile", ARMS).stdout
    listed = {block["log"][0]: block for block in blocks(out)}
    assert set(listed) == {str(job.log(root)) for job in mine} and len(mine) == len(listed)
    made_by = {str(root / output): job.key for job in mine for output in job.outputs}
    for job in mine:
        block = listed[str(job.log(root))]
        assert block["rule"] == [job.stage]
        assert set(block["output"]) == {str(root / output) for output in job.outputs}
        assert block["benchmark"] == [str(job.benchmark(root))]
        needs = {made_by[path] for path in block["input"] if path}
        if job.stage in (*TRAINS, "start", "split", "evaluate", "geometry"):
            assert needs == set(job.needs), job.label
        else:
            assert needs <= set(job.needs) | {job.key}, job.label
    said = set(re.findall(r"--checkpoints (\S+)", out))
    assert said == {str(job.checkpoints(root)) for job in mine if job.stage in TRAINS}


def test_five_arms_of_the_paper_s_grid_are_listed_fast(tmp_path: Path) -> None:
    """Three of them tuned; a loose bound, of processor time."""
    study = {
        "study": "large",
        "grid": {"starts": ["random", "tiny"], "variants": ["study", "tuned", "tuned_frozen"]},
        "starts": {"tiny": {"timm": "vit_tiny_patch16_224.augreg_in21k"}},
        "variants": {
            "tuned": {"tune": {"lr": [0.0005, 0.001, 0.002, 0.004]}},
            "tuned_frozen": {
                "tune": {"lr": [0.001, 0.002, 0.004]},
                "finetune": {"encoder": "frozen"},
                "grid": {"starts": ["tiny"]},
            },
        },
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    out = snakemake(tmp_path, "-n", "--configfile", path).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    listed = int(re.search(r"^total +(\d+)$", out, re.MULTILINE)[1])
    assert re.search(r"^tune +432$", out, re.MULTILINE) and listed == 2020
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 20
