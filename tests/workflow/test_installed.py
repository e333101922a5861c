"""The package installed from its wheel, away from the clone: it finds all that it reads, and runs a study."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("jsonschema")
pytest.importorskip(
    "setuptools", minversion="77", reason="building the wheel needs setuptools 77, as envs/viny.txt has it"
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel is installed, without its dependencies."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src" / "viny", source / "src" / "viny", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder / "dist", source]
    subprocess.run(wheel, check=True, timeout=300)
    (made,) = (folder / "dist").glob("viny-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", made], check=True, timeout=300)
    shutil.rmtree(source)
    return folder / "site"


def python(site: Path, *arguments: Any, cwd: Path, timeout: float = 120) -> str:
    """What Python prints with the installed package before any other on its path."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("VINY_", "SNAKEMAKE_"))}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**inherited, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
    return done.stdout


def test_a_study_is_resolved(site: Path, tmp_path: Path) -> None:
    shutil.copy(ROOT / "config.yaml", tmp_path)
    code = "import viny; print(viny.__file__); from viny.cli import main; main(['check', 'config.yaml', '--show'])"
    place, _, shown = python(site, "-c", code, cwd=tmp_path).partition("\n")
    assert Path(place).is_relative_to(site)
    assert yaml.safe_load(shown)["study"] == "demo"


@pytest.mark.parametrize("command", ["status", "finetune"])
def test_a_command_prints_its_help(site: Path, tmp_path: Path, command: str) -> None:
    said = python(site, site / "bin" / "viny", command, "--help", cwd=tmp_path)
    assert f"usage: viny {command}" in said


@pytest.mark.slow
def test_a_study_runs_to_its_report(site: Path, tmp_path: Path) -> None:
    pytest.importorskip("snakemake", reason="the workflow needs Snakemake; the library does not")
    for name in ("workflow", "profiles", "envs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "Snakefile", tmp_path)
    study = yaml.safe_load((ROOT / "tests" / "tiny.yaml").read_text(encoding="utf-8"))
    study["grid"] = {"pretrain_sizes": [0, 24], "intermediates": ["none"], "finetune_sizes": [8], "seeds": [0]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    python(site, "-m", "snakemake", "--cores", "2", "--configfile", "study.yaml", cwd=tmp_path, timeout=600)
    page = (tmp_path / "results" / "tiny" / "report.html").read_text(encoding="utf-8")
    caption = (site / "viny" / "evidence" / "report" / "captions" / "miou_curves.rst").read_text(encoding="utf-8")
    assert caption.split(".")[0] in page
    said = (tmp_path / "results" / "tiny" / "finetune" / "pre-24_mid-none_fine-8_seed-0" / "run.json").read_text()
    assert '"commit": null' in said  # of no checkout
