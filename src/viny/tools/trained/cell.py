"""A trained model outside the workflow, of a cell or a U-Net: its weights, its classes and its settings."""

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
from viny.learning.unet import UNet, load_unet
from viny.learning.weights import load_segmentation, shown_by
from viny.runtime.errors import InputError
from viny.runtime.files import read_json
from viny.study.arms import settings_of
from viny.study.grid import STUDY, Cell, Reference, arms, cells
from viny.study.layout import REFERENCE, TRAINED, chain, pack_manifest, reference_split, trained_models
from viny.study.saved import saved_study

LONGEST = 200  # characters of a class's name


@dataclass(frozen=True)
class TrainedCell:
    """A fine-tuned cell of a study, or a U-Net beside its cells.

    Attributes:
        root: the study's folder.
        key: which one it is.
        config: the settings of its arm.
        record: that of its weights.
        manifest: the segmentation pack's; None if it is missing.
        model: ready to predict.
        size: side of the images that the model takes, pixels.
        normalised: whether and by what it takes images normalised, see `viny.data.augment.labelled_images`.
    """

    root: Path
    key: Cell | Reference
    config: dict[str, Any]
    record: dict[str, Any]
    manifest: dict[str, Any] | None
    model: Segmentation | UNet
    size: int
    normalised: bool | Normalisation

    @property
    def name(self) -> str:
        return self.key.name

    @property
    def classes(self) -> list[str]:
        return self.record["mask_classes"]

    @property
    def split(self) -> tuple[str, str]:
        """Part and subset of the images that it learnt from and was tested on."""
        return reference_split(self.key) if isinstance(self.key, Reference) else chain(self.key)[-1].split

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
    """Load a fine-tuned cell, or a U-Net beside the cells, from the folder of its study.

    Args:
        cell: results/<study>/finetune/<cell> or results/<study>/references/<U-Net>; with `root`, just its name.
        root: the study's folder.

    Raises:
        InputError: there is no such model, it is not trained yet or damaged, or the study has changed since.
    """
    given = Path(cell).absolute()
    study = given.parent.parent if root is None else Path(root).absolute()
    of_reference = Reference.parse(given.name) is not None
    pattern = REFERENCE["record"] if of_reference else TRAINED["finetune"]["record"]
    path = study / pattern.format(reference=given.name, cell=given.name)
    if not path.is_file():
        known = trained_models(study)
        close = difflib.get_close_matches(given.name, known, n=1)
        hint = f" Did you mean {close[0]}?" if close else f" There is {few(known)}." if known else ""
        raise InputError(
            f"{path}: no trained model there; expected a folder results/<study>/finetune/<cell> with model.json, "
            f"or a cell's name and --root results/<study>.{hint}"
        )
    what = "a reference" if of_reference else "the record of a fine-tuned model"
    record = read_json(path, what)
    if record.get("stage") != ("reference" if of_reference else "finetune"):
        raise InputError(f"{path}: expected {what}; delete it and run the study again")
    key, config = _checked_key(path, record), saved_study(study)
    # As the grid has it, a cell knows which trainings it shares with other arms.
    key = next((one for one in cells(config) if one == key), key)
    arm = key.arm if isinstance(key, Cell) else arms(config)[0]
    known_arm = arm.variant in (STUDY, *config.get("variants", {}))
    config = settings_of(config, arm) if known_arm else config
    manifest_path, manifest = pack_manifest(study, "segmentation"), None
    if manifest_path.is_file():
        manifest = read_json(manifest_path, "a pack manifest")
    packed = record["pack_sha256"] if manifest is None else manifest["sha256"]
    spec, now = record["spec"], config["model"]
    same_model = spec["image_size"] == now["image_size"] if of_reference else spec["model"] == now
    if not known_arm or not same_model or record["pack_sha256"] != packed:
        raise InputError(
            f"{path}: was trained under other settings or on other images than {study} has now; run the study again"
        )
    model: Segmentation | UNet
    if of_reference:
        model, record = load_unet(path)
        size, normalised = spec["image_size"], spec["switches"]["normalise_finetune"]
    else:
        model, record = load_segmentation(path)
        size, normalised = spec["model"]["image_size"], shown_by(record, spec["normalise"])
    return TrainedCell(study, key, config, record, manifest, model, size, normalised)


def _checked_key(path: Path, record: Mapping[str, Any]) -> Cell | Reference:
    """The cell or U-Net of a record, whose name must be its own, as files are named after it; odd classes are refused
    too.

    Raises:
        InputError: names the key.
    """
    stated, classes = record["spec"]["cell"], record["mask_classes"]
    key = Cell.parse(stated["name"]) or Reference.parse(stated["name"])
    if key is None or key.as_dict() != stated:
        raise InputError(f"{path}: 'spec.cell' does not have the name of its cell; delete its folder and run again")
    if not 0 < len(set(classes)) == len(classes) <= IGNORE or max(map(len, classes)) > LONGEST:
        raise InputError(
            f"{path}: 'mask_classes' is not 1 to {IGNORE} different names of up to {LONGEST} characters; "
            "delete its folder and run again"
        )
    return key
