"""Where compiled kernels are kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from viny.learning import machine as machine_module
from viny.learning.machine import KERNELS, Machine, keep_kernels

NAMES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TORCH_WARM_POOL")
GPU = Machine(torch.device("cuda"), "bfloat16")


@pytest.fixture(autouse=True)
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """One by name; nothing is computed on it."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that the test's end takes back what was set
        monkeypatch.delenv(name)


def test_a_gpus_kernels_are_kept_in_the_pack_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_kernels(tmp_path, GPU)
    first = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert first.is_dir() and first.parent == tmp_path / KERNELS
    assert Path(os.environ["TRITON_CACHE_DIR"]).parent == first
    for change in (lambda device: "another card", None):  # of another GPU, of another PyTorch
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
        if change is not None:
            monkeypatch.setattr(torch.cuda, "get_device_name", change)
        else:
            monkeypatch.setattr(machine_module.torch, "__version__", "0.0")
        keep_kernels(tmp_path, GPU)
        assert Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]) != first


def test_a_folder_that_others_may_write_to_is_not_trusted(tmp_path: Path) -> None:
    keep_kernels(tmp_path, GPU)
    folder = Path(os.environ.pop("TORCHINDUCTOR_CACHE_DIR"))
    for open_to_others in (folder, folder.parent):
        open_to_others.chmod(0o777)
        keep_kernels(tmp_path, GPU)
        assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
        open_to_others.chmod(0o755)
    keep_kernels(tmp_path, GPU)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder)


def test_a_users_own_choice_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    keep_kernels(tmp_path, GPU)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "elsewhere" and not (tmp_path / KERNELS).exists()


def test_a_store_that_cannot_be_written_costs_nothing_else(tmp_path: Path) -> None:
    (tmp_path / KERNELS).write_text("a file")
    keep_kernels(tmp_path, GPU)
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ


def test_a_cpu_keeps_none(tmp_path: Path) -> None:
    keep_kernels(tmp_path, Machine(torch.device("cpu"), "float32"))
    assert not list(tmp_path.iterdir())
