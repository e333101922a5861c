"""What the data that a study names hold: how many images, what of a user's own folders does not match or changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from viny.cells import pack_manifest, pack_spec
from viny.data.folders import few, pair
from viny.data.pack import TEST, TRAIN
from viny.data.sources import count_images, list_source, listing_digest
from viny.files import read_json


def images_here(config: Mapping[str, Any]) -> dict[str, int | None]:
    """Images of every pack that a study needs; None where its source is not on disk yet.

    Where a file splits the segmentation's images, 'train' and 'test' tell how many are of either part.

    Raises:
        InputError: see `count_images`.
    """
    specs = {name: pack_spec(config, name) for name in ("pretrain", "segmentation", *config["intermediate"])}
    counts = {name: count_images(spec) for name, spec in specs.items()}
    if specs["segmentation"].get("split") and counts["segmentation"] is not None:
        parts = list_source(specs["segmentation"]).parts
        counts |= {"train": parts.count(TRAIN), "test": parts.count(TEST)}
    return counts


def folder_report(config: Mapping[str, Any]) -> list[str]:
    """What stands in the folders of a study's own data, and what of it did not match, a line each.

    Raises:
        InputError: see `viny.data.folders`.
    """
    lines = []
    for name in ("pretrain", "segmentation", *config["intermediate"]):
        spec = pack_spec(config, name)
        own_masks = name == "segmentation" or spec.get("holds") != "masks"  # not those of the segmentation once more
        needed = name != "pretrain" or max(config["grid"]["pretrain_sizes"]) > 0
        if spec["source"] != "folder" or not own_masks or not needed:
            continue
        listing = list_source(spec)
        said = f"{name}: {spec['path']}: {len(listing.images)} images"
        if listing.masks:
            said += f" with masks of {len(listing.mask_classes)} classes"
        if listing.classes:
            said += f" of {len(listing.classes)} classes: {few(listing.classes)}"
        if listing.parts:
            said += f"; {listing.parts.count(TRAIN)} for training, {listing.parts.count(TEST)} held out"
        lines.append(said)
        if spec["holds"] == "masks":
            matched = pair(Path(spec["path"]), Path(spec["masks"]), spec["mask_suffix"])
            lines += [f"{name}: {line}" for line in matched.report()]
    return lines


def with_listings(config: dict[str, Any], root: Path) -> dict[str, Any]:
    """Settings that also hold what stands in the user's own folders now, so that a pack is made anew when that changes.

    Args:
        config: resolved settings; gets `listings`, by pack.
        root: the study's folder, whose manifests say what stood in folders that are not here any more.
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
