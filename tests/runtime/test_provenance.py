"""Provenance: complete, from the right checkout, and no reason for a job to fail."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from viny.cli import main
from viny.runtime import provenance
from viny.runtime.files import digest
from viny.runtime.provenance import Provenance, code_version


def git(folder: Path, *arguments: str) -> str:
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *who, *arguments], cwd=folder, env=env, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def repository(folder: Path, package: str = "src/viny", name: str = "viny") -> Path:
    """A repository with one commit that holds a package; returns the package's folder."""
    inner = folder / package
    inner.mkdir(parents=True)
    (inner / "__init__.py").write_text("")
    (folder / "pyproject.toml").write_text(f'[project]\nname = "{name}"\n')
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "first")
    return inner


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Root of a checkout that the package believes it is in."""
    monkeypatch.setattr(provenance, "PACKAGE", repository(tmp_path / "own"))
    return tmp_path / "own"


# The code's version


def test_a_checkout_is_named_with_its_state(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    clean = code_version()
    assert (clean["commit"], clean["dirty"]) == (commit, False)
    assert clean["code"].endswith(f"+g{commit[:12]}")
    (checkout / "src" / "viny" / "__init__.py").write_text("x = 1\n")
    changed = code_version()
    assert (changed["commit"], changed["dirty"]) == (commit, True)
    assert changed["code"].endswith(f"+g{commit[:12]}.dirty")


@pytest.mark.parametrize(("package", "name"), [("lib/viny", "viny"), ("src/viny", "theirs")])
def test_a_foreign_repository_around_a_copy_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, name: str
) -> None:
    monkeypatch.setattr(provenance, "PACKAGE", repository(tmp_path, package, name))
    found = code_version()
    assert (found["commit"], found["dirty"]) == (None, None)
    assert "+g" not in found["code"]


def test_a_damaged_checkout_does_not_take_the_one_around_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository(tmp_path, "lib/else")
    inner = repository(tmp_path / "clone")
    (tmp_path / "clone" / ".git" / "HEAD").unlink()
    monkeypatch.setattr(provenance, "PACKAGE", inner)
    assert code_version()["commit"] is None


def test_a_hooks_variables_do_not_lead_to_another_repository(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository(tmp_path / "other", "lib/else")
    git(tmp_path / "other", "commit", "--quiet", "--allow-empty", "-m", "second")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    assert code_version()["commit"] == git(checkout, "rev-parse", "HEAD")


def test_no_git_is_no_fault(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    found = Provenance().finish()
    assert (found["commit"], found["dirty"]) == (None, None)
    assert found["code"]


def test_a_git_that_hangs_is_left_behind(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "bin" / "git"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\nexec sleep 60\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(provenance, "GIT_SECONDS", 0.2)
    began = time.monotonic()
    assert code_version()["commit"] is None
    assert time.monotonic() - began < 10


def test_the_version_is_that_of_the_start(checkout: Path) -> None:
    record = Provenance()
    before = git(checkout, "rev-parse", "HEAD")
    git(checkout, "commit", "--quiet", "--allow-empty", "-m", "meanwhile")
    assert record.finish()["commit"] == before


# What a record holds


def test_a_record_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VINY_STUDY_SHA256", "ab" * 32)
    found = Provenance().finish(device="cpu", precision="float32", threads=1, seed=3)
    assert json.loads(json.dumps(found)) == found
    assert found["study_sha256"] == "ab" * 32
    assert found["python"] == platform.python_version()
    assert {"torch", "numpy", "timm"} <= found["packages"].keys()
    assert (found["device"], found["precision"], found["threads"], found["seed"]) == ("cpu", "float32", 1, 3)
    assert found["started"] <= found["ended"]
    assert found["seconds"] >= 0
    assert 5 < found["peak_memory_mb"] < 1e6  # an interpreter needs some; a wrong unit would show
    assert found["peak_gpu_memory_mb"] is None
    assert found["device_name"] == found["processor"]


def test_without_a_study_the_hash_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VINY_STUDY_SHA256", raising=False)
    assert Provenance().finish()["study_sha256"] is None


def test_a_slurm_job_is_named_with_its_node_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_JOB_ID": "17", "SLURMD_NODENAME": "n2", "CUDA_VISIBLE_DEVICES": "1"}.items():
        monkeypatch.setenv(name, value)
    found = Provenance().finish()
    assert (found["slurm_job_id"], found["slurm_node"], found["cuda_visible_devices"]) == ("17", "n2", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # no GPU at all, which is not the same as all of them
    assert Provenance().finish()["cuda_visible_devices"] == ""
    for name in ("SLURM_JOB_ID", "SLURMD_NODENAME", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name)
    found = Provenance().finish()
    assert (found["slurm_job_id"], found["slurm_node"], found["cuda_visible_devices"]) == (None, None, None)


def test_a_gpu_is_named_with_its_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = SimpleNamespace(max_memory_allocated=lambda device: 3 << 20, get_device_name=lambda device: f"GPU {device}")
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    found = Provenance().finish(device="cuda:1")
    assert (found["device_name"], found["peak_gpu_memory_mb"]) == ("GPU cuda:1", 3.0)
    assert Provenance().finish(device="cpu")["peak_gpu_memory_mb"] is None


def test_what_cannot_be_known_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("no")

    cuda = SimpleNamespace(max_memory_allocated=refuse, get_device_name=refuse)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(Path, "read_text", refuse)  # /proc/cpuinfo, and the pyproject.toml beside the package
    monkeypatch.setattr(provenance.resource, "getrusage", refuse)
    monkeypatch.setattr(provenance.metadata, "version", refuse)
    monkeypatch.setattr(platform, "platform", refuse)
    found = Provenance().finish(device="cuda")
    assert found["code"] == "unknown"
    assert found["packages"] == {}
    names = ("commit", "system", "peak_memory_mb", "peak_gpu_memory_mb")
    assert [found[name] for name in names] == [None] * 4


# Jobs whose files must not differ from run to run give it in their log


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_packing_and_splitting_say_their_provenance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = {"source": "synthetic", "size": 24, "resize": "antialias", "seed": 0, "stream": "scenes", "count": 10}
    manifest = tmp_path / "study" / "manifest.json"
    arguments = ["--store", str(tmp_path / "store"), "--manifest", str(manifest)]
    assert main(["pack", "--spec", json.dumps(spec), *arguments]) == 0
    sha256 = json.loads(manifest.read_text())["sha256"]
    said = last_line(capsys)
    assert said["hashes"] == {"spec": digest(spec), "pack": sha256}
    assert said["code"]

    cut = {"kind": "pretrain", "size": 4, "seed": 7, "split_seed": 42, "subsets": "shared"}
    files = ["--record", str(tmp_path / "s.json"), "--indices", str(tmp_path / "s.npz")]
    assert main(["split", "--spec", json.dumps(cut), "--manifest", str(manifest), *files]) == 0
    said = last_line(capsys)
    assert said["hashes"] == {"spec": digest(cut), "pack": sha256}
    assert said["seed"] == 7
