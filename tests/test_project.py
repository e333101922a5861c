"""The project's own files: pins, rule graph, licence."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[1]


def pins(path: Path) -> list[str]:
    lines = path.read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_conda_environment_has_the_same_pins() -> None:
    conda = yaml.safe_load((REPOSITORY / "envs" / "viny.yaml").read_text())
    listed = next(d["pip"] for d in conda["dependencies"] if isinstance(d, dict))
    assert listed == pins(REPOSITORY / "envs" / "viny.txt")


@pytest.mark.parametrize("name", ["viny.txt", "test.txt"])
def test_pins_are_exact(name: str) -> None:
    for line in pins(REPOSITORY / "envs" / name):
        assert re.fullmatch(r"[a-z0-9.-]+==[0-9][\w.]*", line), line


def test_pins_cover_what_the_package_declares() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    declared = project["dependencies"] + project["optional-dependencies"]["workflow"]
    names = {re.match(r"[\w-]+", d)[0] for d in declared}
    assert names <= {line.split("==")[0] for line in pins(REPOSITORY / "envs" / "viny.txt")}


def test_library_does_not_know_snakemake() -> None:
    code = (
        "import sys, pkgutil, importlib, viny\n"
        "for m in pkgutil.walk_packages(viny.__path__, 'viny.'):\n"
        "    m.name == 'viny.__main__' or importlib.import_module(m.name)\n"
        "assert not any(m.split('.')[0] == 'snakemake' for m in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_readme_shows_the_rule_graph_of_the_workflow(tmp_path: Path) -> None:
    pytest.importorskip("snakemake", reason="drawing the graph needs Snakemake")
    command = [sys.executable, "-m", "snakemake", "-s", REPOSITORY / "Snakefile", "--rulegraph", "mermaid-js"]
    command += ["--configfile", REPOSITORY / "studies" / "paper.yaml"]
    drawn = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=120).stdout
    shown = re.search(r"```mermaid\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    assert shown is not None
    assert edges(shown[1]) == edges(drawn)


def edges(mermaid: str) -> set[tuple[str, str]]:
    """Pairs of rule names that an arrow joins."""
    names = dict(re.findall(r'(\w+)\["?(?:rule )?(\w+)"?\]', mermaid))
    found = set(re.findall(r"(\w+) --> (\w+)", mermaid))
    assert found
    return {(names.get(a, a), names.get(b, b)) for a, b in found}


def test_what_computes_no_tensor_starts_without_pytorch() -> None:
    modules = ["viny.cli", "viny.evidence.report.page"]
    modules += [f"viny.evidence.stages.{name}" for name in ("representations", "scorecard", "statistics", "tables")]
    modules += [f"viny.tools.{name}" for name in ("advice.adviser", "forecast.plan", "status.view", "verify.verifier")]
    code = (
        "import importlib, sys\n"
        f"for name in {modules}:\n"
        "    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, name\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
