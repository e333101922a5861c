"""Where a result comes from: code, versions, machine, time; and a fingerprint of the code a stage uses."""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import platform
import resource
import subprocess
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent
PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "pillow",
    "safetensors",
    "pandas",
    "matplotlib",
    "snakemake",
)

# The module whose code, with all that it imports from this package, makes each stage's output.
ENTRY = {
    "pack": "viny.data.packing",
    "split": "viny.data.splits",
    "duplicates": "viny.evidence.duplicates",
    "pretrain": "viny.learning.stages",
    "intermediate": "viny.learning.stages",
    "finetune": "viny.learning.stages",
    "evaluate": "viny.evidence.evaluate",
    "tables": "viny.evidence.tables",
    "figures": "viny.evidence.gallery",
}
# Modules that keep the books: they are used by stages, but no number depends on them.
BOOKKEEPING = {"viny.provenance", "viny.errors"}


def _module_file(module: str) -> Path | None:
    path = PACKAGE.joinpath(*module.split(".")[1:])
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _strip_docstrings(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
    return tree


@functools.cache
def _parse(module: str) -> tuple[str, tuple[str, ...]]:
    """Hash of a module's syntax tree without docstrings, and the package's modules that it imports."""
    file = _module_file(module)
    assert file is not None, module
    tree = ast.parse(file.read_text(encoding="utf-8"))
    imports = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports |= {a.name for a in node.names if a.name.startswith("viny")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("viny"):
            for alias in node.names:  # a name may be a module or something in one
                inner = f"{node.module}.{alias.name}"
                imports.add(inner if _module_file(inner) else node.module)
    return hashlib.sha256(ast.dump(_strip_docstrings(tree)).encode()).hexdigest(), tuple(sorted(imports))


@functools.cache
def code_fingerprint(stage: str) -> str:
    """Hash of the code that a stage uses: comments, docstrings and layout do not count.

    Follows imports within the package, also those inside functions, from the stage's entry module.
    """
    todo, seen = [ENTRY[stage]], {}
    while todo:
        module = todo.pop()
        if module not in seen and module not in BOOKKEEPING:
            seen[module], imports = _parse(module)
            todo += imports
    return hashlib.sha256("".join(f"{k}{v}" for k, v in sorted(seen.items())).encode()).hexdigest()[:16]


def code_version() -> dict[str, Any]:
    """The package's version in one word, and the commit and state of its checkout where it is one."""
    out: dict[str, Any] = {"code": _version("viny") or "unknown", "commit": None, "dirty": None}
    root = PACKAGE.parents[1]
    if not (root / ".git").exists():
        return out
    try:
        out["commit"] = _git(root, "rev-parse", "HEAD")
        out["dirty"] = bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return out  # a checkout without git on the machine: the version has to do
    out["code"] += f"+g{out['commit'][:12]}" + (".dirty" if out["dirty"] else "")
    return out


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, check=True, timeout=30)
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


class Record:
    """Collects the provenance of one job, from its making to `finish`."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._started = datetime.now(UTC)

    def finish(self, **more: Any) -> dict[str, Any]:
        """What, where, when, how long (seconds), and the peak of resident memory (MB)."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {
            **code_version(),
            "packages": {p: v for p in PACKAGES if (v := _version(p))},
            "python": platform.python_version(),
            "host": platform.node(),
            "system": platform.platform(),
            "processor": _processor(),
            "processors": os.cpu_count(),
            "started": self._started.isoformat(timespec="seconds"),
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self._began, 3),
            "peak_memory_mb": round(peak, 1),
            **more,
        }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()
