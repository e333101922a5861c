"""The trainings of a study: how long the finished ones took, and how long others would take."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from viny.evidence.statistics.held_out import held_out_table, read_curves
from viny.learning import unet_settings
from viny.learning.settings import ModelSettings
from viny.runtime.errors import InputError
from viny.runtime.files import read_json
from viny.runtime.load import share_in
from viny.study.arms import schedule
from viny.study.grid import Cell, Reference
from viny.study.layout import chain, metrics_file, pack_manifest, reference_file

REFERENCE = "reference"  # the stage of a U-Net
RUN = "run.json"  # beside a cell's training: its provenance
LITTLE = 0.01  # of the loss of the first epoch: a fall at the end that is as good as none


def measured_on_others(root: Path, some: Iterable[Cell]) -> list[Cell]:
    """The cells that were measured on a segmentation pack other than the current one.

    Args:
        root: the study's folder.
        some: evaluated cells.

    Returns:
        Those with metrics from another pack; none if there is no pack to compare with.

    Raises:
        InputError: a damaged file.
    """
    current = _current_pack(root)
    if current is None:
        return []
    found = []
    for cell in some:
        hashes = read_record(metrics_file(root, cell), "the metrics of an evaluated cell").get("hashes")
        if isinstance(hashes, Mapping) and hashes.get("pack") not in (None, current):
            found.append(cell)
    return found


def trained_on_these(root: Path, some: Iterable[Reference]) -> list[Reference]:
    """The references that are trained, and measured on the current segmentation pack.

    Args:
        root: the study's folder.
        some: a study's references.

    Raises:
        InputError: a damaged file.
    """
    current, found = _current_pack(root), []
    for one in some:
        record, confusion = (reference_file(root, one, what) for what in ("record", "confusion"))
        if record.is_file() and confusion.is_file():
            pack = read_record(record, "the record of a reference").get("pack_sha256")
            found += [one] if current in (None, pack) else []
    return found


def _current_pack(root: Path) -> str | None:
    """The hash of the segmentation pack; None if there is none to compare with."""
    path = pack_manifest(root, "segmentation")
    return read_record(path, "a pack manifest").get("sha256") if path.is_file() else None


def read_record(path: Path, what: str) -> Mapping[str, Any]:
    """Read a JSON object that the workflow wrote.

    Args:
        path: the file.
        what: what it should be, in words, for the error.

    Returns:
        The object.

    Raises:
        InputError: it is not JSON, or not an object.
    """
    value = read_json(path, what)
    if not isinstance(value, Mapping):
        raise InputError(f"{path}: not {what}; run the workflow, which writes it anew")
    return value


def epochs_key(stage: str, what: int | str) -> str:
    """The settings' key for the epochs of a stage's trainings; `what` is the task of an intermediate one."""
    if stage == REFERENCE:
        stage = "finetune"  # whose epochs it has
    return f"{stage}.{what}.epochs" if stage == "intermediate" else f"{stage}.epochs"


def on_images(size: int) -> str:
    """The kind of a pre-training."""
    return f"on {size:,} images"


class Trainings:
    """The trainings of a study and of the U-Nets beside it: how long the finished ones took, and others would take.

    Seconds are those of a quiet machine: each training's times the share of the cores that other work left it.

    Args:
        root: the study's folder.
        config: its resolved settings.
        there: the evaluated cells, whose trainings are read.
        outdated: those of them that were measured on images other than the study's current ones.

    Raises:
        InputError: a damaged record of a training.
    """

    def __init__(self, root: Path, config: Mapping[str, Any], there: Sequence[Cell], outdated: Sequence[Cell]) -> None:
        self.root, self.config = root, config
        self.records = self._trainings(there)
        self.outdated = {chain(cell)[-1].folder(root) / RUN for cell in outdated}
        self.outdated |= {self._beside(cell) for cell in outdated}
        self.curves = {
            (training.cell["pretrain_size"], training.cell["seed"]): training.file(root, "curve")
            for cell in there
            for training in chain(cell)
            if training.stage == "pretrain"
        }
        rows = []
        for path, (stage, what, _) in self.records.items():
            if path.is_file():
                run = read_record(path, "the provenance of a training")
                run = run.get("provenance", {}) if stage == REFERENCE else run
                spent = [run.get(key) for key in ("training_seconds", "image_passes")]
                if not all(isinstance(value, int | float) and 0 < value < np.inf for value in spent):
                    raise InputError(f"{path}: no training_seconds and image_passes above 0; run its training again")
                share = share_in(run)
                rows.append((stage, what, spent[0] * share, spent[1], share))
        self.known = pd.DataFrame(rows, columns=["stage", "what", "seconds", "passes", "share"])
        self.share = float(self.known["share"].median()) if rows else 1.0  # of the cores that they had
        self.like = self.known.groupby(["stage", "what"])["seconds"].mean().to_dict()

    def _trainings(self, some: Iterable[Cell]) -> dict[Path, tuple[str, int | str, int]]:
        """The trainings that cells need, and the U-Nets that they are compared with.

        Returns:
            By the file that says how long each took: stage, what tells its trainings apart, and pre-train size.
        """
        found: dict[Path, tuple[str, int | str, int]] = {}
        for cell in some:
            for training in chain(cell):
                what = {"pretrain": on_images(cell.pretrain_size), "intermediate": training.pack}
                kind = what.get(training.stage, cell.finetune_size)
                found[training.folder(self.root) / RUN] = (training.stage, kind, cell.pretrain_size)
            if self.config.get("references"):
                found[self._beside(cell)] = (REFERENCE, cell.finetune_size, 0)
        return found

    def _beside(self, cell: Cell) -> Path:
        """The record of the U-Net that a cell is compared with."""
        return reference_file(self.root, Reference(cell.finetune_size, cell.seed), "record")

    def _seconds(self, stage: str, what: int | str, size: int) -> float:
        """Seconds of one training: the mean over its like, else by its stage's image passes; NaN if unknown."""
        if (stage, what) in self.like:
            return self.like[stage, what]
        mine = self.known[self.known["stage"] == stage]
        images = {"pretrain": size, "finetune": what, REFERENCE: what}.get(stage)
        if images is None or mine.empty:
            return np.nan
        epochs = schedule(self.config, size)[0] if stage == "pretrain" else self.config["finetune"]["epochs"]
        return float(images * epochs * self.seconds_a_pass(stage))

    def seconds_a_pass(self, stage: str) -> float:
        """Seconds for an image to go forward and backward once, over a stage's finished trainings; NaN if there are
        none.
        """
        mine = self.known[self.known["stage"] == stage]
        return float(mine["seconds"].sum() / mine["passes"].sum()) if len(mine) else np.nan

    def _sum(self, trainings: Iterable[tuple[str, int | str, int]]) -> float | None:
        total = sum(self._seconds(*training) for training in trainings)
        return None if math.isnan(total) else float(total)

    def cost(self, new: Sequence[Cell]) -> tuple[int, float | None]:
        """What new cells cost.

        Args:
            new: the cells.

        Returns:
            How many trainings they need beyond the finished ones, and the seconds these take, None if unknown.
        """
        wanted = self._trainings(new)
        missing = [wanted[path] for path in wanted if path in self.outdated or not path.is_file()]
        return len(missing), self._sum(missing)

    def anew(self, every: Iterable[Cell]) -> tuple[int, float | None]:
        """What it costs to fine-tune cells again.

        Args:
            every: the cells.

        Returns:
            How many trainings that takes, U-Nets among them, and their seconds, None if unknown.
        """
        tuned = [training for training in self._trainings(every).values() if training[0] in ("finetune", REFERENCE)]
        return len(tuned), self._sum(tuned)

    def longer(self, every: Iterable[Cell], times: Mapping[str, float]) -> tuple[int, int, float | None]:
        """What it costs to train longer.

        Args:
            every: the cells.
            times: by key from `epochs_key`, the factor by which its epochs grow.

        Returns:
            How many cells and trainings are redone, and the seconds these trainings take, None if unknown.
        """
        found: dict[Path, float] = {}
        touched = 0
        for cell in every:
            anew = False  # once a training is redone, so is all that follows in the chain
            for path, training in self._trainings([cell]).items():
                key = epochs_key(*training[:2])
                own = key in times
                anew |= own
                if own or (anew and training[0] != REFERENCE):  # which nothing comes before
                    found[path] = self._seconds(*training) * times.get(key, 1.0)
            touched += anew
        total = sum(found.values())
        return touched, len(found), None if math.isnan(total) else float(total)

    def enlarged(self, every: Iterable[Cell], changed: Mapping[str, Any]) -> tuple[int, float | None]:
        """What it costs to do all trainings with larger images.

        Args:
            every: the cells.
            changed: the resolved settings with these.

        Returns:
            How many trainings that takes, and their seconds, None if unknown: by the patches of an image, and by what
            its activations take in the U-Net, which waits for memory more than for arithmetic.
        """
        now, then = (ModelSettings(**config["model"]) for config in (self.config, changed))
        model = then.patches / now.patches
        unet = unet_settings.activation_bytes(then.image_size) / unet_settings.activation_bytes(now.image_size)
        wanted = self._trainings(every).values()
        total = sum(self._seconds(*training) * (unet if training[0] == REFERENCE else model) for training in wanted)
        return len(wanted), None if math.isnan(total) else float(total)

    def held_out(self) -> pd.DataFrame:
        """What the held-out loss says of each length of pre-training, see `held_out.held_out_table`."""
        return held_out_table(read_curves(self.curves))

    def drops(self) -> dict[tuple[str, int | str], list[float]]:
        """How much the loss was still falling at the end of the trainings.

        Returns:
            By stage and kind, for each training: the fall from the mean over the second-last tenth of epochs to the
            mean over the last tenth, as a fraction of the former; none where that is less than `LITTLE` of the first
            epoch's loss: what is hardly there can fall by any share.

        Raises:
            InputError: a learning curve without losses.
        """
        found: dict[tuple[str, int | str], list[float]] = {}
        for record, (stage, what, _) in self.records.items():
            path = record.with_name("curve.csv")
            if stage == REFERENCE or not path.is_file():
                continue
            try:
                loss = pd.read_csv(path)["loss"].to_numpy(float)
            except (ValueError, KeyError) as error:
                raise InputError(f"{path}: no column 'loss' of numbers ({error}); run its training again") from error
            tenth = max(1, len(loss) // 10)
            before = loss[-2 * tenth : -tenth]
            if len(before) and before.mean() > 0:
                fall = before.mean() - loss[-tenth:].mean()
                drop = 0.0 if 0 < fall < LITTLE * loss[0] else fall / before.mean()
                found.setdefault((stage, what), []).append(float(drop))
        return found
