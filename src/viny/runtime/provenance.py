"""Where a result comes from: code, versions, machine and time."""

from __future__ import annotations

import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from viny.runtime.load import share_of_cores

PACKAGE = Path(__file__).parents[1]
PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "pillow",
    "safetensors",
    "pandas",
    "matplotlib",
    "scipy",
    "statsmodels",
    "scikit-learn",
    "snakemake",
)

GIT_SECONDS = 10  # the longest that a job waits for each of its two git commands


def _checkout() -> Path | None:
    """The repository that this package is developed in; None for an installed copy.

    A copy may lie inside somebody else's repository, whose commits say nothing about it. So the package must be
    where it is in its own repository: at src/viny, beside its pyproject.toml.
    """
    source, root = PACKAGE.parent, PACKAGE.parents[1]
    if source.name != "src" or not (root / ".git").exists():
        return None
    try:
        described = (root / "pyproject.toml").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return root if re.search(r'^name = "viny"$', described, re.MULTILINE) else None


def code_version() -> dict[str, Any]:
    """The package's version as one word, and the commit and state of its checkout if it has one."""
    out: dict[str, Any] = {"code": version_of("viny") or "unknown", "commit": None, "dirty": None}
    root = _checkout()
    if root is None:
        return out
    try:
        out["commit"] = _git(root, "rev-parse", "--verify", "HEAD")
        out["code"] += f"+g{out['commit'][:12]}"
        out["dirty"] = bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return out  # git is missing, fails or hangs: what is known has to do
    if out["dirty"]:
        out["code"] += ".dirty"
    return out


def _git(root: Path, *arguments: str) -> str:
    # Variables such as GIT_DIR, which hooks set, would point to another repository; the ceiling keeps git from
    # taking an outer repository when .git is damaged.
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    env |= {"GIT_CEILING_DIRECTORIES": str(root.parent), "GIT_OPTIONAL_LOCKS": "0"}
    done = subprocess.run(
        ["git", "-C", root, *arguments],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        encoding="utf-8",
        errors="replace",
        check=True,
        timeout=GIT_SECONDS,
        env=env,
    )
    return done.stdout.strip()


def version_of(package: str) -> str | None:
    """An installed package's version; None if it is not known."""
    try:
        return metadata.version(package)
    except Exception:  # not installed, or its metadata are damaged in any of many ways
        return None


class Provenance:
    """Collects the provenance of one job, from construction to `finish`.

    It never makes a job fail: what cannot be found out is None.

    Args:
        study: hash of the study's settings; None: as this process was told.
    """

    def __init__(self, study: str | None = None) -> None:
        self._study = study or os.environ.get("VINY_STUDY_SHA256") or None
        self._began = time.monotonic()
        self._started = datetime.now(UTC)
        self._code = code_version()  # now, since the checkout may move on while the job runs

    @property
    def started(self) -> str:
        return self._started.isoformat(timespec="seconds")

    def finish(self, *, device: str = "cpu", **more: Any) -> dict[str, Any]:
        """What, where, when, how long (seconds), the share of the cores, and peak resident and GPU memory (MB).

        Args:
            device: where the job computed, as PyTorch names it.
            more: what the job itself knows, such as precision, threads, seed and hashes.
        """
        gpu_name, gpu_peak = _gpu(device)
        processor = _known(processor_name)
        return {
            **self._code,
            "study_sha256": self._study,
            "packages": {p: v for p in PACKAGES if (v := version_of(p))},
            "python": platform.python_version(),
            "host": _known(platform.node),
            "system": _known(platform.platform),
            "processor": processor,
            "processors": os.cpu_count(),
            "slurm_job_id": os.environ.get("SLURM_JOB_ID") or None,
            "slurm_node": os.environ.get("SLURMD_NODENAME") or None,
            "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "started": self.started,
            "device": device,
            "device_name": gpu_name or processor,
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self._began, 3),
            # Where a GPU computes, the threads' time says nothing.
            "share_of_cores": None if device.startswith("cuda") else _known(lambda: round(share_of_cores(), 3)),
            "peak_memory_mb": _known(_peak_memory),
            "peak_gpu_memory_mb": gpu_peak,
            **more,
        }


def _known(find: Callable[[], Any]) -> Any:
    """What `find` returns, or None if it fails."""
    try:
        return find()
    except Exception:  # an unreadable /proc, a sandbox, an odd platform: each raises its own error
        return None


def _peak_memory() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def _gpu(device: str) -> tuple[str | None, float | None]:
    """The GPU's name and the peak memory (MB) that tensors held on it; both None for other devices."""
    torch = sys.modules.get("torch")  # any job that computes on a GPU has loaded it; too slow to load just for this
    if torch is None or not device.startswith("cuda"):
        return None, None
    peak = _known(lambda: round(torch.cuda.max_memory_allocated(device) / 2**20, 1))
    return _known(lambda: torch.cuda.get_device_name(device)), peak


def processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()
