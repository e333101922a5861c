"""Fingerprints of the code behind each stage's output, so that an edit reruns what it touches and nothing else."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from viny.runtime.files import write_json
from viny.runtime.provenance import PACKAGE

# Each stage's function; its module, with everything it imports from this package, makes the stage's output.
ENTRY = {
    "pack": "viny.data.packing:pack",
    "split": "viny.data.splits:cut",
    "duplicates": "viny.evidence.duplicates:write_duplicates",
    "start": "viny.learning.published:fetch",
    "pretrain": "viny.learning.stages:train",
    "intermediate": "viny.learning.stages:train",
    "tune": "viny.learning.tuning:tune",
    "finetune": "viny.learning.stages:train",
    "evaluate": "viny.evidence.evaluate:evaluate",
    "reference": "viny.evidence.reference:train_reference",
    "geometry": "viny.evidence.geometry:measure",
    "tables": "viny.evidence.stages.tables:gather",
    "figures": "viny.evidence.stages.figures:write_figures",
    "statistics": "viny.evidence.stages.statistics:write_statistics",
    "representations": "viny.evidence.stages.representations:write_representations",
    "scorecard": "viny.evidence.stages.scorecard:write_scorecard",
    "report": "viny.evidence.report.page:write_page",
}
# Bookkeeping modules: stages use them, but no number depends on them.
BOOKKEEPING = {
    f"viny.runtime.{name}"
    for name in ("provenance", "fingerprint", "errors", "processes", "claims", "shapes", "signals", "gpus", "stacks")
} | {"viny.learning.progress"}

FILE_NAME = re.compile(r"[\w.-]{1,60}")


def _module_file(module: str) -> Path | None:
    path = PACKAGE.joinpath(*module.split(".")[1:])
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def module_tree(module: str) -> ast.Module:
    """The syntax tree of one of the package's modules."""
    file = _module_file(module)
    assert file is not None, module
    return ast.parse(file.read_text(encoding="utf-8"))


@functools.cache
def _parse(module: str) -> tuple[str, tuple[str, ...]]:
    """A module's hash, and the package's modules that it imports. The hash covers the module's syntax tree, without
    docstrings, and the data files beside it that it names."""
    file = _module_file(module)
    assert file is not None, module
    tree, names, data = _analysed(file.read_bytes())
    imports = set()
    for origin, name in names:  # a name may be a module, or something inside one
        inner = f"{origin}.{name}"
        imports.add(inner if name and _module_file(inner) else origin)
    found = hashlib.sha256(tree.encode())
    for path in _data_files(module, set(data)):
        found.update(path.read_bytes())
    return found.hexdigest(), tuple(sorted(imports))


def _analysed(source: bytes) -> list[Any]:
    """What `_analyse` finds in a source, from memory if it was seen before."""
    key = hashlib.sha256(source).hexdigest()
    if key not in _memory():
        _memory()[key] = _analyse(source)
    return _memory()[key]


def _analyse(source: bytes) -> list[Any]:
    """A hash of a source's syntax tree, the package's names that it imports, with their origins, and texts that may be
    names of files."""
    tree = ast.parse(source)
    imports, data = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or [ast.Pass()]
        elif isinstance(node, ast.Import):
            imports |= {(a.name, "") for a in node.names if a.name.startswith("viny")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("viny"):
            imports |= {(node.module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and FILE_NAME.fullmatch(node.value):
            data.add(node.value)
    sha256 = hashlib.sha256(_canonical(tree).encode()).hexdigest()
    return [sha256, [list(pair) for pair in sorted(imports)], sorted(data)]


def _memory_file() -> Path:
    """Where analyses are kept, by the hash of the source, as Python keeps its compiled modules."""
    return PACKAGE / "__pycache__" / "fingerprints.json"


def _own_sha256() -> str:
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()  # what another version of this module found is void


@functools.cache
def _memory() -> dict[str, Any]:
    try:
        kept = json.loads(_memory_file().read_text(encoding="utf-8"))
        if kept["by"] == _own_sha256() and all(len(one) == 3 for one in kept["found"].values()):
            return kept["found"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # none, or damaged: made anew
    return {}


def _data_files(module: str, names: set[str]) -> list[Path]:
    """Files beside a module, such as templates, with one of the names or in a folder with one; never code."""
    file = _module_file(module)
    assert file is not None, module
    # Compiled modules come and go, and `viny.data.folders` names their folder as one that holds no images.
    names = names - {"__pycache__"}
    beside = [path for path in sorted(file.parent.iterdir()) if path.name in names and path.suffix != ".py"]
    folders = [path for path in beside if path.is_dir() and not (path / "__init__.py").exists()]
    inside = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    return [path for path in beside if path.is_file()] + inside


def _canonical(node: Any) -> str:
    """A syntax tree as text, the same in every Python version: unlike `ast.dump`, it leaves empty fields out.

    Versions differ in which empty fields a node has, and in which of those they show.
    """
    if isinstance(node, list):
        return f"[{','.join(map(_canonical, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [(name, value) for name, value in ast.iter_fields(node) if value is not None and value != []]
    return f"{type(node).__name__}({','.join(f'{name}={_canonical(value)}' for name, value in fields)})"


def modules_of(stage: str) -> dict[str, str]:
    """The package's modules that a stage uses, except bookkeeping, each with a hash of its code.

    Starts at the stage's entry module and follows imports within the package, including those inside functions.
    """
    known = len(_memory())
    todo, seen = [ENTRY[stage].partition(":")[0]], {}
    while todo:
        module = todo.pop()
        if module not in seen and module not in BOOKKEEPING:
            seen[module], imports = _parse(module)
            todo += imports
    if len(_memory()) > known:
        # Parsing takes most of a job's start; where nothing can be kept, it takes that every time.
        with suppress(OSError):
            write_json(_memory_file(), {"by": _own_sha256(), "found": _memory()})
    return seen


@functools.cache
def code_fingerprint(stage: str) -> str:
    """Hash of the code that a stage uses: comments, docstrings and layout do not count, but templates do."""
    return hashlib.sha256("".join(f"{k}{v}" for k, v in sorted(modules_of(stage).items())).encode()).hexdigest()[:16]


def forget() -> None:
    """Read the code anew when a fingerprint is asked for next: it may have been edited since."""
    _parse.cache_clear()
    code_fingerprint.cache_clear()
