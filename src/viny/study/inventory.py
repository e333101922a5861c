"""What is here: how many images a study's data sets hold, and what has changed in a user's own folders."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from viny.data.folders import few, same_files
from viny.data.pack import TEST, TRAIN
from viny.data.sources import MissingError, list_source, listing_digest
from viny.data.synthetic import is_held_out
from viny.runtime.errors import InputError
from viny.runtime.files import canonical_json, read_json
from viny.study.layout import pack_manifest, split_record
from viny.study.specs import pack_spec, split_is_given, task_split_spec


@dataclass(frozen=True)
class Images:
    """How many images there are; None if unknown.

    Attributes:
        packed: by pack ('pretrain', 'segmentation' or a task), as in the data set on disk.
        trained: by intermediate task, those that it trains on.
        room: labelled images besides the test images.
        tested: test images.
        given: labelled images in the training and test parts, if a file or their folders give them.
        notes: what of the data is not used, or not as its folders suggest, one sentence each.
    """

    packed: dict[str, int | None]
    trained: dict[str, int | None]
    room: int | None
    tested: int
    given: tuple[int, int] | None
    notes: tuple[str, ...] = ()

    @property
    def limits(self) -> dict[str, int | None]:
        """What `viny.study.checks.check_sizes` needs to know."""
        return self.packed | (dict(zip(("train", "test"), self.given, strict=True)) if self.given else {})


def count_images(config: Mapping[str, Any], root: Path) -> Images:
    """Count a study's images, by its splits if they exist, else by the data sets on disk.

    Args:
        config: resolved settings.
        root: the study's folder, which need not exist.

    Raises:
        InputError: a data set exists, but something in it is wrong.
    """
    asked = {name: pack_spec(config, name) for name in ("pretrain", "segmentation", *config["intermediate"])}
    found, parts, notes = {}, {}, []
    for name, spec in asked.items():
        text = canonical_json(spec)
        if text not in found:
            found[text], said = _parts(json.loads(text))
            notes += [f"{name}: {line}" for line in said]
        parts[name] = found[text]
    packed = {name: sum(two) if two else None for name, two in parts.items()}
    tested, own = config["segmentation"]["test_size"], parts["segmentation"]
    given = own if split_is_given(config) else None
    if given:
        room, tested = given[0], tested or given[1]
    else:
        room = sum(own) - tested if own else None
    trained = {task: _trained(config, task, root, parts[task], room) for task in config["intermediate"]}
    return Images(packed, trained, room, tested, given, tuple(notes))


def _parts(spec: Mapping[str, Any]) -> tuple[tuple[int, int] | None, list[str]]:
    """Images in a data set's training part and in the rest, None if the data set is not there; and notes on it."""
    if spec["source"] == "synthetic":
        held_out = sum(is_held_out(i, spec["count"]) for i in range(spec["count"]))
        return (spec["count"] - held_out, held_out), []
    try:
        listing = list_source(spec)
    except MissingError:
        return None, []
    except InputError:
        if spec["source"] != "folder" or os.path.isdir(spec["path"]):
            raise
        return None, []
    training = listing.parts.count(TRAIN) if listing.parts else len(listing.images)
    return (training, len(listing.images) - training), listing.notes


def _trained(
    config: Mapping[str, Any], task: str, root: Path, parts: tuple[int, int] | None, room: int | None
) -> int | None:
    spec = task_split_spec(config, task)
    try:
        record = read_json(split_record(root, "intermediate", task), "a split record")
        if {**record["spec"], "code": None} == {**spec, "code": None}:
            return record["parts"]["train"]["count"]
    except (InputError, KeyError, TypeError):
        pass  # no split yet, or another study's
    if spec.get("pool") == "training" and spec["test_set"] == "fixed":
        return room
    return parts[0] if parts else None


def folder_report(config: Mapping[str, Any]) -> list[str]:
    """What is in the folders of a study's own data, and what in them did not match, one line each.

    Raises:
        InputError: see `viny.data.folders`.
    """
    lines, listings = [], {}
    for name in ("pretrain", "segmentation", *config["intermediate"]):
        spec = pack_spec(config, name)
        own_masks = name == "segmentation" or spec.get("holds") != "masks"  # not the segmentation's masks again
        needed = name != "pretrain" or max(config["grid"]["pretrain_sizes"]) > 0
        if spec["source"] == "synthetic" or not own_masks or not needed:
            continue
        try:
            listing = list_source(spec)
        except MissingError:
            continue
        if spec["source"] != "folder":
            lines += [f"{name}: {line}" for line in listing.report()]
            continue
        said = f"{name}: {spec['path']}: {len(listing.images)} images"
        if listing.masks:
            said += f" with masks of {len(listing.mask_classes)} classes"
        if listing.classes:
            said += f" of {len(listing.classes)} classes: {few(listing.classes)}"
        if listing.parts:
            said += f"; {listing.parts.count(TRAIN)} for training, {listing.parts.count(TEST)} held out"
        lines.append(said)
        lines += [f"{name}: {line}" for line in listing.report()]
        listings[name] = listing
    labelled = listings.pop("segmentation", None)
    for name, listing in listings.items() if labelled else ():
        if both := same_files(labelled.images, listing.images):
            tested = len(same_files(labelled.images_in(TEST), listing.images)) if labelled.parts else "some"
            lines.append(f"{name}: {len(both)} labelled images, {tested} for the test, are among its images")
    return lines


def with_listings(config: dict[str, Any], root: Path) -> dict[str, Any]:
    """Settings that also hold what is in the user's own folders now, so that packs are remade when that changes.

    Args:
        config: resolved settings, to which `listings`, by pack, are added.
        root: the study's folder, whose manifests say what was in folders that are no longer here.
    """
    found = {}
    for name in ("pretrain", "segmentation", *config["intermediate"]):
        spec = pack_spec(config, name)
        if spec["source"] != "folder":
            continue
        listing = listing_digest(spec)
        manifest = pack_manifest(root, name)
        if listing is None and manifest.is_file():
            listing = read_json(manifest, "a pack manifest").get("listing")
        found[name] = listing or ""
    return {**config, "listings": found} if found else config
