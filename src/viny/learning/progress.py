"""A training's progress: a small file beside its checkpoints, for whoever is watching the run.

Nothing resumes from it and no result depends on it. Reading it needs no PyTorch.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from viny.runtime.files import open_file, write_json
from viny.runtime.processes import Owner

PROGRESS = "progress.json"  # in the folder of a training's checkpoints
MEASURED = ("loss", "images_per_second", "seconds_left")  # None until measured


@dataclass(frozen=True)
class ProgressReport:
    """How far a training had got when it last reported.

    Attributes:
        epoch: epochs done, including fractions, over all attempts.
        epochs: in total.
        step: steps done in the current epoch.
        steps: per epoch.
        loss: mean over the images seen so far in this epoch, or over the last whole epoch; None before that.
        images_per_second: measured with the loss; None until this attempt has measured it.
        seconds_left: of training, at the time of writing; None until this attempt has measured it.
        written: time of writing, in seconds since 1970 UTC.
        process: the one that is training.
    """

    epoch: float
    epochs: int
    step: int
    steps: int
    loss: float | None = None
    images_per_second: float | None = None
    seconds_left: float | None = None
    written: float = field(default_factory=time.time)
    process: Owner = field(default_factory=Owner.me)


class ProgressWriter:
    """Writes a training's progress; each report replaces the one before.

    Args:
        folder: of the training's checkpoints; created with the first report.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / PROGRESS
        self._failed = False

    def write(self, report: ProgressReport) -> None:
        """Write a report, whole or not at all.

        If the disk is full or fails, the report is lost and training continues; only the first failure is printed.
        """
        try:
            write_json(self.path, asdict(report))
        except OSError as error:
            if not self._failed:
                print(f"{self.path}: could not be written ({error.strerror}); training goes on without it", flush=True)
            self._failed = True


def read_progress(path: Path) -> ProgressReport | None:
    """A training's last report; None if there is none yet or the file is damaged.

    Args:
        path: the file.
    """
    try:
        with open_file(path) as f:
            found = json.loads(f.read())
        process = Owner.parse(json.dumps(found["process"]))
        numbers = {one.name: found[one.name] for one in fields(ProgressReport) if one.name != "process"}
        known = [value for name, value in numbers.items() if value is not None or name not in MEASURED]
        sound = all(type(value) in (int, float) and math.isfinite(value) for value in known)
        sound = sound and numbers["epochs"] > 0 and 0 <= numbers["epoch"] <= numbers["epochs"]
    except Exception:  # the file system, JSON and unexpected values all raise different types
        return None
    return ProgressReport(**numbers, process=process) if sound else None
