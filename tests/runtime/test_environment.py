"""Commands and jobs do the same whatever they inherit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from viny.runtime.environment import SET, UNSET, UNSET_FOR_JOBS, of_jobs

HOSTILE = {
    "MPLBACKEND": "module://not_installed.backend",
    "MATPLOTLIBRC": "matplotlibrc",
    "SOURCE_DATE_EPOCH": "today",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1",
    "NVIDIA_TF32_OVERRIDE": "1",
    "ONEDNN_DEFAULT_FPMATH_MODE": "BF16",
    "DNNL_DEFAULT_FPMATH_MODE": "BF16",
    "PYTHONWARNINGS": "error",
    "PYTHONIOENCODING": "ascii",
    "PILLOW_BLOCK_SIZE": "1",
}


PATH = os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))


def python(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if name not in SET}  # other tests call commands, too
    command, environment = [sys.executable, *arguments], {**own, "PYTHONPATH": PATH, **environment}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=120)


def test_nothing_hostile_is_forgotten() -> None:
    assert {*SET, *UNSET} == {*HOSTILE}


def test_a_figure_is_the_same_from_a_notebook(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_bytes(b"figure.dpi: \xff")  # MATPLOTLIBRC names it
    code = (
        "import sys, warnings\n"
        "from pathlib import Path\n"
        "from viny.cli import main\n"
        "main(['check', 'nowhere.yaml'])\n"
        "from viny.evidence.figures import kit\n"
        "kit.save(kit.in_style(kit.say)('text', 'note'), Path(sys.argv[-1]))\n"
        "warnings.warn('old', DeprecationWarning)\n"
    )
    out = tmp_path / "out"
    out.mkdir()
    for name, environment in (("plain", {}), ("hostile", HOSTILE | {"MATPLOTLIBRC": str(tmp_path / "matplotlibrc")})):
        done = python(out, "-c", f"import sys; sys.argv.append({name!r})\n{code}", **environment)
        assert done.returncode == 0, done.stderr
        (out / "matplotlibrc").write_text("backend: module://none\nfont.size: 30\nfigure.dpi: 300\n", encoding="utf-8")
    for kind in ("png", "pdf"):
        plain, hostile = ((out / f"{name}.{kind}").read_bytes() for name in ("plain", "hostile"))
        assert plain == hostile


def test_float32_stays_float32(tmp_path: Path) -> None:
    code = (
        "from viny.cli import main\n"
        "main(['check', 'nowhere.yaml'])\n"
        "import torch\n"
        "assert torch.get_float32_matmul_precision() == 'highest'\n"
    )
    done = python(tmp_path, "-c", code, **HOSTILE)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("where", ["the working folder", "an empty entry"])
def test_a_job_imports_nothing_from_its_working_folder(tmp_path: Path, where: str) -> None:
    for name in ("random", "numpy", "torch", "yaml", "viny"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong one')", encoding="utf-8")
    inherited = {"PYTHONPATH": f"{os.pathsep}{PATH}{os.pathsep}" if where == "an empty entry" else PATH}
    for given, code in ((inherited, 1), (inherited | of_jobs(inherited), 0)):
        done = python(tmp_path, "-m", "viny", "pack", "--help", **given)
        assert done.returncode == code, done.stderr
        assert ("the wrong one" in done.stderr) == (code == 1)


def test_what_python_reads_as_it_starts_is_taken_from_jobs() -> None:
    assert {"PYTHONWARNINGS", "PYTHONOPTIMIZE", "PYTHONINSPECT"} <= {*UNSET_FOR_JOBS}
    assert "PYTHONPATH" not in of_jobs({})


@pytest.mark.parametrize("command", [["-m", "viny"], ["-c", "import sys; from viny.cli import main; sys.exit(main())"]])
def test_names_of_files_are_utf_8_in_any_locale(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "bü").mkdir()
    lines = "segmentation: {source: folder, images: bü, masks: bü, classes: 2}"
    (tmp_path / "study.yaml").write_text(f"study: own\n{lines}\n", encoding="utf-8")
    old = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    done = python(tmp_path, *command, "check", "study.yaml", **old)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert r"b\xfc: images and masks are in one folder" in done.stderr  # in letters that such a terminal has
