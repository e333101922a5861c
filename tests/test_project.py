"""The project's own files: pins, rule graph, licence."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[1]
SCRIPTS = sorted(path for folder in ("benchmarks", "examples") for path in (REPOSITORY / folder).glob("*.py"))


def pins(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
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


def test_the_version_is_the_same_everywhere() -> None:
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    cited = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(cited["version"]) == version
    assert f'__version__ = "{version}"' in (REPOSITORY / "src" / "viny" / "__init__.py").read_text(encoding="utf-8")
    assert f"\n## {version}" in (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## {version}" in (REPOSITORY / "docs" / "releases.md").read_text(encoding="utf-8")
    assert f"\n    Version {version}\n" in section("labels")


def section(name: str) -> str:
    """A section of the Apptainer definition."""
    text = (REPOSITORY / "envs" / "viny.def").read_text(encoding="utf-8")
    found = re.search(rf"^%{name}(\n.*?)(?=^%|\Z)", text, re.MULTILINE | re.DOTALL)
    assert found is not None, name
    return found[1]


def test_the_containers_definition_copies_what_it_installs() -> None:
    copied = dict(line.split() for line in section("files").strip().splitlines())
    assert all((REPOSITORY / source).exists() for source in copied)
    installed = re.findall(r"/opt/viny\S*", section("post"))
    assert {*installed} <= {*copied.values(), "/opt/viny"}
    needed = re.findall(
        r'^(?:readme = |license-files = \[)"(\S+?)"', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE
    )
    assert len(needed) == 2 and {*needed} <= {*copied}


def test_library_does_not_know_snakemake() -> None:
    code = (
        "import sys, pkgutil, importlib, viny\n"
        "for m in pkgutil.walk_packages(viny.__path__, 'viny.'):\n"
        "    m.name == 'viny.__main__' or importlib.import_module(m.name)\n"
        "assert not any(m.split('.')[0] == 'snakemake' for m in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_docs_show_the_rule_graph_of_the_workflow(tmp_path: Path) -> None:
    pytest.importorskip("snakemake", reason="drawing the graph needs Snakemake")
    command = [sys.executable, "-m", "snakemake", "-s", REPOSITORY / "Snakefile", "--rulegraph", "mermaid-js"]
    command += ["--configfile", REPOSITORY / "studies" / "paper.yaml"]
    drawn = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=120).stdout
    page = (REPOSITORY / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    shown = re.search(r"```mermaid\n(.*?)```", page, re.DOTALL)
    assert shown is not None
    assert edges(shown[1]) == edges(drawn)


def edges(mermaid: str) -> set[tuple[str, str]]:
    """Pairs of rule names that an arrow joins."""
    names = dict(re.findall(r'(\w+)\["?(?:rule )?(\w+)"?\]', mermaid))
    found = set(re.findall(r"(\w+) --> (\w+)", mermaid))
    assert found
    return {(names.get(a, a), names.get(b, b)) for a, b in found}


def test_what_computes_no_tensor_starts_without_pytorch() -> None:
    modules = ["viny.cli", "viny.data.splits", "viny.evidence.duplicates", "viny.evidence.report.page"]
    modules += ["viny.evidence.advice.adviser"]
    modules += [f"viny.evidence.stages.{name}" for name in ("representations", "scorecard", "statistics", "tables")]
    modules += [f"viny.tools.{name}" for name in ("forecast.plan", "status.view", "verify.verifier")]
    code = (
        "import importlib, sys\n"
        f"for name in {modules}:\n"
        "    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, name\n"
        "from viny.data.splits import torch_permutation\n"
        "torch_permutation(10, 42)\n"
        "assert 'torch' not in sys.modules, 'a moving test set'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_model_is_made_and_read_without_pytorchs_compiler(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
import viny.evidence.evaluate, viny.evidence.geometry
from viny.learning.weights import load_segmentation, make_segmentation, new_encoder, save_weights
from viny.runtime.files import write_sealed
path = Path({str(tmp_path / "model.json")!r})
spec = {{"model": {{"depth": 12}}, "cell": {{"seed": 0}}, "segmentation_loss": "class_softmax", "class_token": False}}
model = make_segmentation(spec, new_encoder(spec["model"], 0), 3)
sha256 = save_weights(path.with_suffix(".safetensors"), model.state_dict(), {{}})
write_sealed(path, {{"spec": spec, "mask_classes": ["a", "b", "c"], "weights_sha256": sha256}})
found = load_segmentation(path)[0].state_dict()
assert all(found[name].equal(value) for name, value in model.state_dict().items())
assert not {{"torch._dynamo", "sympy"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def without_encoding(text: str) -> list[int]:
    """Lines of calls that read or write text in whatever encoding the machine's locale names."""
    lines = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call) or any(word.arg in ("encoding", None) for word in node.keywords):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        of_path = isinstance(node.func, ast.Attribute)
        if name in ("run", "Popen", "check_output"):
            found = any(word.arg in ("text", "universal_newlines") for word in node.keywords)
        elif name in ("open", "fdopen"):
            if of_path and ast.unparse(node.func.value) in ("Image", "os") and name == "open":
                continue  # a picture's file, or a number without any text
            given = [*node.args[0 if of_path and name == "open" else 1 :][:1]]
            given += [word.value for word in node.keywords if word.arg == "mode"]
            found = not given or "b" not in ast.literal_eval(given[0])
        else:
            found = name in ("read_text", "write_text") and of_path
        lines += [node.lineno] if found else []
    return lines


@pytest.mark.parametrize(
    ("call", "faulty"),
    [
        ("open(p)", True),
        ("open(p, 'w', newline='')", True),
        ("p.open()", True),
        ("open(p, 'rb')", False),
        ("p.open('wb')", False),
        ("open(p, encoding='utf-8')", False),
        ("p.read_text()", True),
        ("p.write_text(t, encoding='utf-8')", False),
        ("subprocess.run(c, text=True)", True),
        ("subprocess.run(c, capture_output=True)", False),
        ("Image.open(p)", False),
    ],
)
def test_a_call_without_an_encoding_is_found(call: str, faulty: bool) -> None:
    assert without_encoding(call) == ([1] if faulty else [])


def test_text_is_read_and_written_as_utf_8() -> None:
    for folder in ("src", "benchmarks", "examples"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            assert without_encoding(path.read_text(encoding="utf-8")) == [], path
    for path in (REPOSITORY / "workflow").rglob("*.smk"):  # no Python for `ast`
        for line in path.read_text(encoding="utf-8").splitlines():
            called = re.search(r"\b(open|read_text|write_text)\(", line)
            assert not called or "encoding=" in line, (path, line)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_scripts_import_what_the_library_has(script: Path) -> None:
    """No test runs benchmarks, which take minutes."""
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "viny":
            module = importlib.import_module(node.module)
            for name in (one.name for one in node.names):
                assert hasattr(module, name) or importlib.util.find_spec(f"{node.module}.{name}"), (node.module, name)


def test_make_alone_lists_every_target() -> None:
    said = subprocess.run(["make"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    listed = re.findall(r"^  make ([a-z-]+) +\S+ ", said, re.MULTILINE)
    phony = re.search(r"^\.PHONY: (.*)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert listed and sorted(listed) == sorted(phony[1].split())
