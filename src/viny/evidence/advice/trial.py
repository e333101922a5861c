"""Whether `viny check` would accept a proposal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from viny.data.pack import TEST, TRAIN, open_pack
from viny.data.parts import Groups
from viny.runtime.errors import InputError
from viny.runtime.files import read_json
from viny.study.arms import pretrain_packs, settings_of
from viny.study.changes import changed
from viny.study.checks import check_sizes
from viny.study.inventory import count_images
from viny.study.layout import IMAGES, pack_manifest
from viny.study.specs import pack_spec, split_is_given


@dataclass(frozen=True)
class AtHand:
    """The images of a study.

    Attributes:
        packed: how many each pack holds; None if unknown.
        given: labelled images for training and for testing, where a file, their folders or groups give them.
        names: of the labelled images, where groups give the parts, which then follow from other settings too.
        unfit: why the images that are found do not fit the study; empty if they do. No more is known of them then.
    """

    packed: Mapping[str, int | None]
    given: tuple[int, int] | None = None
    names: Sequence[str] = ()
    unfit: str = ""

    def limits(self, config: Mapping[str, Any]) -> dict[str, int | None]:
        """What `check_sizes` needs to know about some settings of the study.

        Raises:
            InputError: there are too few groups for so many test images.
        """
        section, labelled = config["segmentation"], self.packed.get("segmentation")
        room = None if labelled is None else labelled - section["test_size"]
        found, given = dict(self.packed), self.given
        if self.names:
            parts = Groups.read(self.names, section["group"]).parts(section["test_size"], config["split_seed"])
            given = parts.count(TRAIN), parts.count(TEST)
        if given:
            room, found["train"], found["test"] = given[0], *given
        for name, arm in pretrain_packs(config).items():
            if settings_of(config, arm)["pretrain"]["source"] == "segmentation":
                found[name] = room
        return found

    def room(self, config: Mapping[str, Any]) -> int | None:
        """Labelled images besides the test images; None if unknown."""
        limits = self.limits(config)
        if "train" in limits:
            return limits["train"]
        labelled = limits.get("segmentation")
        return None if labelled is None else labelled - config["segmentation"]["test_size"]

    def refusal(self, config: Mapping[str, Any], change: Mapping[str, Any]) -> str:
        """Why `viny check` would refuse settings with a change; empty if it would not.

        Args:
            config: resolved settings.
            change: of some of them, as a study file has them.
        """
        try:
            other = changed(config, change)
            check_sizes(other, self.limits(other))
        except InputError as error:
            return str(error)
        return ""


def images_at_hand(config: Mapping[str, Any], root: Path) -> AtHand:
    """The images of a study, by its packs or, where they are not there, by its data sets.

    A study that does not fit what is found now says nothing else: its data have gone or changed, or some are unusable.

    Args:
        config: resolved settings.
        root: the study's folder.
    """
    packs = ["segmentation", *pretrain_packs(config)]
    counts = {name: _count(pack_manifest(root, name)) for name in packs}
    given = _given(root) if split_is_given(config) else None
    if None in counts.values() or (given is None and split_is_given(config)):
        with suppress(InputError, OSError):
            images = count_images(config, root)
            counts = {name: images.packed.get(name) if n is None else n for name, n in counts.items()}
            given = given or images.given
    found = AtHand(counts, given, _names(root) if "group" in pack_spec(config, "segmentation") else ())
    unfit = found.refusal(config, {})
    return AtHand({}, unfit=unfit) if unfit else found


def own_side(root: Path) -> int:
    """The shorter side of a labelled image, the median over those packed, pixels; 0 before they are."""
    try:
        return int(np.median(open_pack(pack_manifest(root, "segmentation")).shapes.min(1)))
    except (InputError, OSError):
        return 0


def _count(path: Path) -> int | None:
    try:
        count = read_json(path, "a pack manifest").get("count")
    except (InputError, OSError, AttributeError):
        return None
    return count if isinstance(count, int) else None


def _given(root: Path) -> tuple[int, int] | None:
    """Images of the training and of the test part that the labelled images' pack says."""
    try:
        parts = np.load((root / IMAGES.format(pack="segmentation")).resolve().with_name("parts.npy"))
    except (OSError, ValueError):
        return None
    training = int((parts == TRAIN).sum())
    return training, len(parts) - training


def _names(root: Path) -> list[str]:
    """The labelled images by name, as their pack has them; none before it is made."""
    try:
        return open_pack(pack_manifest(root, "segmentation")).names
    except (InputError, OSError):
        return []
