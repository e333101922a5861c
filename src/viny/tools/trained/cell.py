"""A fine-tuned cell outside the workflow: its model, its classes and its settings."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from viny.data.augment import Normalisation
from viny.data.decoding import WHITES
from viny.data.folders import few
from viny.data.masks import IGNORE, mask_coding, value_name
from viny.learning.objectives import Segmentation
from viny.learning.weights import load_segmentation, shown_by
from viny.runtime.errors import InputError
from viny.runtime.files import read_json
from viny.study.arms import settings_of
from viny.study.grid import STUDY, Cell, cells
from viny.study.layout import pack_manifest
from viny.study.saved import saved_study

LONGEST = 200  # characters of a class's name


@dataclass(frozen=True)
class TrainedCell:
    """A fine-tuned cell of a study.

    `root` is the study's folder, `key` the cell in its grid, `config` the settings of its arm, `record` that of the
    fine-tuned weights, and `manifest` the segmentation pack's, None if it is missing.
    """

    folder: Path
    root: Path
    key: Cell
    config: dict[str, Any]
    record: dict[str, Any]
    manifest: dict[str, Any] | None
    model: Segmentation

    @property
    def name(self) -> str:
        return self.key.name

    @property
    def classes(self) -> list[str]:
        return self.record["mask_classes"]

    @property
    def size(self) -> int:
        """Side of the images that the model takes, pixels."""
        return self.record["spec"]["model"]["image_size"]

    @property
    def normalised(self) -> bool | Normalisation:
        """Whether and by what the model takes images normalised, see `viny.data.augment.labelled_images`."""
        return shown_by(self.record, self.record["spec"]["normalise"])

    @property
    def resize(self) -> str:
        return self.config["switches"]["resize"]

    @property
    def fit(self) -> str:
        """How images become squares, see `viny.data.decoding.squared`."""
        return self.config["segmentation"].get("fit", "stretch")

    @property
    def tiles(self) -> int:
        """Tiles to each side of an image, see `viny.evidence.own_size.tiled`."""
        return self.config["segmentation"].get("tiles", 1)

    @property
    def white(self) -> int | None:
        """The value of 16-bit images that was white in training; None if there were none."""
        found: Any = self.manifest
        for key in ("conventions", "sixteen_bit", "white"):  # whatever the file holds
            found = found.get(key) if isinstance(found, dict) else None
        return found if found in WHITES else None

    def mask_values(self) -> list[list[int | str]] | None:
        """Values or colours that stand for each class in the study's masks; None if its settings do not say."""
        section = self.config["segmentation"]
        if not section.get("classes"):
            return None
        coding = mask_coding(section["classes"], section["ignore"])
        out: list[list[int | str]] = [[] for _ in self.classes]
        for value, index in coding["mask_values"].items():
            if index != IGNORE:
                out[index].append(value_name(int(value), coding["colours"]))
        return out


def load_cell(cell: str | Path, root: Path | None = None) -> TrainedCell:
    """Load a fine-tuned cell from the folder of its study.

    Args:
        cell: its folder, results/<study>/finetune/<cell>; with `root`, just its name.
        root: the study's folder.

    Raises:
        InputError: there is no such cell, its model is not trained yet or damaged, or the study has changed since.
    """
    folder = (Path(root) / "finetune" / cell if root is not None else Path(cell)).absolute()
    path = folder / "model.json"
    if not path.is_file():
        known = [p.parent.name for p in folder.parent.glob("*/model.json")]
        close = difflib.get_close_matches(folder.name, known, n=1)
        hint = f" Did you mean {close[0]}?" if close else f" There is {few(sorted(known))}." if known else ""
        raise InputError(
            f"{folder}: no fine-tuned model there; expected a folder results/<study>/finetune/<cell> with model.json, "
            f"or a cell's name and --root results/<study>.{hint}"
        )
    record = read_json(path, "the record of a fine-tuned model")
    if record.get("stage") != "finetune":
        raise InputError(
            f"{path}: expected the record of a fine-tuned model; delete its folder and run the study again"
        )
    key = _checked_key(path, record)
    study = folder.parents[1]
    config = saved_study(study)
    # As the grid has it, it knows which trainings it shares with other arms.
    key = next((one for one in cells(config) if one == key), key)
    known = key.variant in (STUDY, *config.get("variants", {}))
    config = settings_of(config, key.arm) if known else config
    manifest_path, manifest = pack_manifest(study, "segmentation"), None
    if manifest_path.is_file():
        manifest = read_json(manifest_path, "a pack manifest")
    packed = record["pack_sha256"] if manifest is None else manifest["sha256"]
    if not known or record["spec"]["model"] != config["model"] or record["pack_sha256"] != packed:
        raise InputError(
            f"{path}: was trained under other settings or on other images than {study} has now; run the study again"
        )
    model, record = load_segmentation(path)
    return TrainedCell(folder, study, key, config, record, manifest, model)


def _checked_key(path: Path, record: Mapping[str, Any]) -> Cell:
    """The cell of a record, whose name must be its cell's, as files are named after it; odd classes are refused too.

    Raises:
        InputError: names the key.
    """
    stated, classes = record["spec"]["cell"], record["mask_classes"]
    cell = Cell.parse(stated["name"])
    if cell is None or cell.as_dict() != stated:
        raise InputError(f"{path}: 'spec.cell' does not have the name of its cell; delete its folder and run again")
    if not 0 < len(set(classes)) == len(classes) <= IGNORE or max(map(len, classes)) > LONGEST:
        raise InputError(
            f"{path}: 'mask_classes' is not 1 to {IGNORE} different names of up to {LONGEST} characters; "
            "delete its folder and run again"
        )
    return cell
