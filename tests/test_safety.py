"""No code is run from data: nothing unpickles, evaluates text or hands it to a shell unquoted."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from viny.runtime.shapes import SHAPES
from viny.study import reading

REPOSITORY = Path(__file__).parents[1]
MODULES = sorted((REPOSITORY / "src").rglob("*.py"))
RULES = [REPOSITORY / "Snakefile", *sorted((REPOSITORY / "workflow").rglob("*.smk"))]

FORBIDDEN_MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "__import__",
    "os.system",
    "os.popen",
    "torch.load",  # unless it is told to read tensors alone
    "torch.save",
    "yaml.unsafe_load",
}
SAFE_LOADERS = {"_StudyLoader": reading._StudyLoader, "yaml.SafeLoader": yaml.SafeLoader}
# Placeholders that hold the workflow's own numbers, never text that a study can choose.
NUMBERS = {"threads"}


def unsafe(source: str) -> Iterator[str]:
    """What in a module could run code that is in data."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"import of {name}" for name in names if name.split(".")[0] in FORBIDDEN_MODULES)
            if isinstance(node, ast.ImportFrom):  # 'from os import system' would hide what is called
                named = {f"{node.module}.{a.name}" for a in node.names}
                yield from (f"import of {name}" for name in named & (FORBIDDEN_CALLS | {"yaml.load", "numpy.load"}))
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if called in FORBIDDEN_CALLS and (called, keywords.get("weights_only")) != ("torch.load", "True"):
            yield f"call of {called}"
        if called in ("yaml.load", "yaml.load_all") and keywords.get("Loader") not in SAFE_LOADERS:
            yield f"{called} without a safe loader"
        if keywords.get("allow_pickle", "False") != "False":
            yield f"{called} with allow_pickle"
        if keywords.get("shell", "False") != "False":
            yield f"{called} with a shell"


def unsafe_in_rules(source: str) -> Iterator[str]:
    """The same for Snakemake's files, which are not quite Python, and for what they hand to a shell."""
    for pattern in (
        r"\b(?:pickle|cloudpickle|joblib|marshal)\b",
        r"(?<![\w.])(?:eval|exec)\(",
        r"os\.(?:system|popen)",
    ):
        yield from re.findall(pattern, source)
    for pattern in (r"torch\.load", r"yaml\.(?:unsafe_)?load\(", r"shell *= *True", r"allow_pickle *= *True"):
        yield from re.findall(pattern, source)
    for command in re.findall(r"^    shell:\n((?:        .*\n)+)", source, re.MULTILINE):
        for placeholder in re.findall(r"(?<!\{)\{([^{}]+)\}", command):
            if not placeholder.endswith(":q") and placeholder not in NUMBERS:
                yield f"{{{placeholder}}} unquoted"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_modules_run_no_code_from_data(path: Path) -> None:
    assert list(unsafe(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.name)
def test_rules_run_no_code_from_data(path: Path) -> None:
    assert list(unsafe_in_rules(path.read_text(encoding="utf-8"))) == []


def test_every_rule_with_a_command_was_looked_at() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in RULES)
    commands = [found[1] for found in re.findall(r"^( +)shell:\n((?:\1    .*\n)+)", text, re.MULTILINE)]
    assert len(commands) == len(re.findall(r"\bshell:", text)) >= 8
    assert all(re.search(r"\{[^{}]+:q\}", command) for command in commands)


@pytest.mark.parametrize("loader", SAFE_LOADERS.values(), ids=SAFE_LOADERS)
def test_the_loaders_that_count_as_safe_are(loader: type[yaml.SafeLoader]) -> None:
    assert issubclass(loader, yaml.SafeLoader)
    with pytest.raises(yaml.YAMLError):
        yaml.load("!!python/object/apply:os.getcwd []", Loader=loader)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "from os import system",
        "from numpy import load",
        "torch.load(path)",
        "torch.load(path, weights_only=flag)",
        "yaml.load(text)",
        "yaml.load(text, Loader=yaml.Loader)",
        "np.load(path, allow_pickle=True)",
        "np.savez(path, allow_pickle=flag)",
        "eval(text)",
        "subprocess.run(command, shell=True)",
    ],
)
def test_what_is_looked_for_is_found(source: str) -> None:
    assert list(unsafe(source))


@pytest.mark.parametrize(
    "source",
    [
        'rule a:\n    shell:\n        "cat {input}"\n',
        'rule a:\n    shell:\n        "cat {input:q}"\n        " > {output.x} 2> {log:q}"\n',
        "import pickle\n",
        "x = eval(config['x'])\n",
        "shell(command, shell=True)\n",
    ],
)
def test_what_is_looked_for_in_rules_is_found(source: str) -> None:
    assert list(unsafe_in_rules(source))


def test_every_kind_of_record_that_is_read_has_a_shape() -> None:
    calls = [
        node
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("read_json", "read_sealed")
    ]
    kinds = {node.args[1].value for node in calls if isinstance(node.args[1], ast.Constant)}
    assert len(kinds) > 5
    assert kinds <= set(SHAPES)
