"""Where a job computes, and in which precision."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from viny.runtime.errors import InputError
from viny.runtime.files import digest, file_sha256
from viny.runtime.provenance import version_of

KERNELS = ".kernels"  # in the pack store


@dataclass(frozen=True)
class Machine:
    """Where a job computes, and in which precision."""

    device: torch.device
    precision: str  # float32 or bfloat16

    @classmethod
    def choose(cls, device: str, precision: str, threads: int) -> Machine:
        """Turn 'auto' into what this machine does best, and set PyTorch's thread count.

        Raises:
            InputError: a GPU is asked for but there is none.
        """
        torch.set_num_threads(threads)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        elif device == "cuda" and not torch.cuda.is_available():
            raise InputError("compute.device: 'cuda', but PyTorch finds no GPU here; use auto or cpu")
        return cls.of(torch.device(device), precision)

    @classmethod
    def of(cls, device: torch.device, precision: str) -> Machine:
        """A device with a precision, or with what 'auto' means on it."""
        if precision == "auto":
            precision = "bfloat16" if computes_in_bfloat16(device.type) else "float32"
        return cls(device, precision)

    @contextmanager
    def autocast(self) -> Iterator[None]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            yield

    @property
    def fused_attention(self) -> bool:
        # Measured for 64 tokens on a CPU: one head at a time is a tenth faster than PyTorch's fused kernel in
        # float32, and twice as fast in bfloat16.
        return self.device.type == "cuda"


def keep_kernels(store: Path, machine: Machine) -> None:
    """Keep compiled kernels in a pack store, so that the next job starts fast, unless the user says another place.

    They are code, so a folder that others may write to is not used: PyTorch then keeps them where it does by itself.

    Args:
        store: the pack store.
        machine: whose GPU they are for; on a CPU nothing is compiled.
    """
    if machine.device.type != "cuda" or "TORCHINDUCTOR_CACHE_DIR" in os.environ:
        return
    # PyTorch's cache does not see an edit inside the project's own kernels.
    own = file_sha256(Path(__file__).with_name("attention_kernels.py"))
    about = [
        torch.__version__,
        torch.cuda.get_device_name(machine.device),
        platform.python_version(),
        version_of("triton"),
        own,
    ]
    folder = store / KERNELS / digest(about)[:12]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        places = [folder.stat(), folder.parent.stat()]
    except OSError:
        return
    if all(place.st_uid == os.geteuid() and not place.st_mode & 0o022 for place in places):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder.absolute())
        os.environ.setdefault("TRITON_CACHE_DIR", str(folder.absolute() / "triton"))
        # Processes that compile are started when something is to be compiled, not in every job.
        os.environ.setdefault("TORCH_WARM_POOL", "0")


def computes_in_bfloat16(device: str) -> bool:
    """Whether matrix products in bfloat16 are native, not emulated."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return any(flag is not None and flag() for flag in flags)
