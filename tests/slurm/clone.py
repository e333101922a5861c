"""Fresh clones of the repository, and the study that they run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]
FAULTS = Path(__file__).parent / "faults"  # on every Python's path in a clone: see its sitecustomize.py
# As often as a small cluster can be asked; with the profile's own intervals each test would take minutes.
SOON = ("--slurm-init-seconds-before-status-checks", "2", "--seconds-between-status-checks", "2")
NAME = "tiny"


def tiny_study(**grid: Any) -> dict[str, Any]:
    """The tests' tiny study, which asks for GPUs but computes without them: there are none."""
    study = yaml.safe_load((REPOSITORY / "tests" / "tiny.yaml").read_text())
    study["grid"] = {"pretrain_sizes": [0, 24], "intermediates": ["none"], "finetune_sizes": [8], "seeds": [0], **grid}
    study["compute"]["device"] = "auto"
    study["geometry"] = {"encoders": "none"}
    return study


def slow_study(seeds: Iterable[int]) -> dict[str, Any]:
    """Cells of a few seconds each, with many checkpoints: there is time to strike."""
    study = tiny_study(pretrain_sizes=[0], seeds=list(seeds))
    study["finetune"]["epochs"] = 500
    study["compute"]["checkpoint_minutes"] = 0.002
    return study


@dataclass
class Clone:
    """A clone in which a study is run.

    Attributes:
        environment: of a cluster; empty for local runs.
    """

    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def new(cls, folder: Path, study: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Clone:
        subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", REPOSITORY, folder], check=True)
        (folder / "study.yaml").write_text(yaml.safe_dump(dict(study)))
        return cls(folder, environment or {})

    @property
    def root(self) -> Path:
        return self.folder / "results" / NAME

    @property
    def said(self) -> str:
        return (self.folder / "said.txt").read_text()

    @property
    def env(self) -> dict[str, str]:
        """The environment of a call, which its Slurm jobs inherit."""
        plugin = find_spec("snakemake_executor_plugin_slurm")
        assert plugin is not None and plugin.origin is not None
        env = {k: v for k, v in os.environ.items() if not k.startswith(("VINY_", "SNAKEMAKE_", "SLURM_"))}
        env["PYTHONPATH"] = f"{FAULTS}:{self.folder / 'src'}:{Path(plugin.origin).parents[1]}"
        env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
        env["VINY_TEST_FAULTS"] = str(self.folder / "faults")
        return env | self.environment

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Call `snakemake` with some arguments, in its own process group, and do not wait."""
        soon = SOON if "slurm" in arguments else ()
        with open(self.folder / "said.txt", "w", encoding="utf-8") as said:
            return subprocess.Popen(
                ["snakemake", *arguments, *soon, "--configfile", "study.yaml"],
                cwd=self.folder,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # A test run in the background of a shell ignores SIGINT, and so would its children.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def run(self, *arguments: str, code: int = 0, seconds: float = 600) -> str:
        """Call `snakemake` and check its exit code; returns all that it printed."""
        process = self.start(*arguments)
        try:
            process.wait(seconds)
        finally:
            if process.poll() is None:
                process.kill()
        assert process.returncode == code, self.said[-6000:]
        return self.said

    def slurm(self, *arguments: str, code: int = 0) -> str:
        return self.run("--profile", "slurm", *arguments, code=code)

    def break_cell(self, cell: str, how: str) -> None:
        """Let a fine-tuning 'fail', use up its 'memory', or stand still from its first checkpoint on ('slow')."""
        (self.folder / "faults").mkdir(exist_ok=True)
        (self.folder / "faults" / cell).write_text(how)

    def mend(self, cell: str = "*") -> None:
        for path in (self.folder / "faults").glob(cell):
            path.unlink()

    def json(self, name: str) -> Any:
        return json.loads((self.root / name).read_text())

    def results(self) -> dict[str, Any]:
        """What the study has produced: hash of every model, every metric, by file."""
        found: dict[str, Any] = {}
        for path in self.root.glob("*/**/*.json"):
            value = json.loads(path.read_text())
            if "weights_sha256" in value:
                found[str(path.relative_to(self.root))] = value["weights_sha256"]
            if path.parent.name == "metrics":
                found[path.name] = value["metrics"]
        return found

    def runs(self) -> dict[str, dict[str, Any]]:
        """Provenance of each fine-tuning, by cell."""
        return {path.parent.name: json.loads(path.read_text()) for path in self.root.glob("finetune/*/run.json")}


def finished_jobs(said: str) -> dict[str, int]:
    """Jobs by rule that a run finished."""
    names = re.findall(r"^\d\d:\d\d:\d\d  \d+ of \d+  (\w+)", said, re.MULTILINE)
    return {k: v for k, v in Counter(names).items() if k != "all"}
