"""Classes that a user's own data are said to have and that a study's training or test images lack."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from viny.data.decoding import BadFileError, decode_mask
from viny.data.folders import few
from viny.data.masks import IGNORE
from viny.data.pack import TEST, TRAIN, Pack
from viny.data.sources import Listing, list_source
from viny.data.splits import finetune_split
from viny.study.specs import finetune_split_spec, pack_spec

AT_ONCE = 64  # masks read before it is asked whether every class is found


def absent_report(config: Mapping[str, Any], listed: Mapping[str, Listing] | None = None) -> list[str]:
    """Classes of which no training or no test mask of a study has a pixel once it is packed, a line for each part.

    So are classes of which a task's training or test part has no image. Masks are read, as packing reads them, until
    each part has every class: few, unless a class is rare or absent. Those that cannot be read show none; packing
    says which they are.

    Args:
        config: resolved settings.
        listed: data sets that were listed already, see `viny.study.inventory.Images.listings`.

    Returns:
        The lines; none if no class is absent, or the data are not a user's own.

    Raises:
        InputError: see `viny.data.folders`, or sizes that do not fit the data.
    """
    listed = listed or {}
    spec = pack_spec(config, "segmentation")
    lines = []
    if spec.get("holds") == "masks":
        lines += _of_masks(config, spec, listed.get("segmentation") or list_source(spec))
    for task in config["grid"]["intermediates"]:
        spec = pack_spec(config, task) if task != "none" else {}
        if spec.get("holds") == "classes":
            listing = listed.get(task) or list_source(spec)
            for part, code in (("training", TRAIN), ("test", TEST)):
                there = {label for label, one in zip(listing.labels, listing.parts, strict=True) if one == code}
                if lacking := [name for at, name in enumerate(listing.classes) if at not in there]:
                    lines.append(f"{task}: no image of {few(lacking)} in the {part} part; move some there")
    return lines


def _of_masks(config: Mapping[str, Any], spec: Mapping[str, Any], listing: Listing) -> list[str]:
    parts = {part: [listing.masks[row] for row in rows] for part, rows in _rows_of_parts(config, listing).items()}
    found = _found(parts, spec, listing)
    per_image = config["switches"]["miou"] == "per_image"
    counted = "it counts 0 in every image's mIoU" if per_image else "mIoU is a mean over the other classes"
    then = {"training": "it cannot be learnt", "test": f"nothing will be known of it, and {counted}"}
    lines = []
    for part, there in found.items():
        lacking = [name for name, one in zip(listing.mask_classes, there, strict=True) if not one]
        if lacking:
            lines.append(
                f"segmentation: no pixel of {few(lacking)} in the {len(parts[part]):,} {part} masks as packed: "
                f"{then[part]}; give that part masks with it, or leave it out of the classes"
            )
    return lines


def _rows_of_parts(config: Mapping[str, Any], listing: Listing) -> dict[str, list[int]]:
    """Which listed images any cell is fine-tuned on, and which are for testing, if packing leaves none out."""
    folder, count = pack_spec(config, "segmentation")["path"], len(listing.images)
    names = "".join(f"{os.path.relpath(path, folder)}\n" for path in listing.images)
    # What a split needs to know of the pack to come.
    pack = Pack(
        Path(folder),
        {"source": "folder"},
        np.empty((count, 0), np.uint8),
        np.empty((count, 2), np.int32),
        parts=np.array(listing.parts) if listing.parts else None,
        name_lines=names.encode(),
    )
    grid, switches = config["grid"], config["switches"]
    # Smaller subsets are part of larger ones; a moving test set is another for each size.
    sizes = grid["finetune_sizes"] if switches["test_set"] == "moving" else [max(grid["finetune_sizes"])]
    seeds = grid["seeds"] if switches["subsets"] == "per_seed" else grid["seeds"][:1]
    rows: dict[str, dict[int, None]] = {"training": {}, "test": {}}  # ordered sets
    for size in sizes:
        for seed in seeds:
            wanted = {key: value for key, value in finetune_split_spec(config, size, seed).items() if key != "kind"}
            split = finetune_split(pack, **wanted)
            rows["training"] |= dict.fromkeys(split["train"].tolist())
            rows["test"] |= dict.fromkeys(split["test"].tolist())
    return {part: list(some) for part, some in rows.items()}


def _found(parts: Mapping[str, Sequence[Path]], spec: Mapping[str, Any], listing: Listing) -> dict[str, np.ndarray]:
    """Whether each part's masks have each class, bool [C]."""
    count = len(listing.mask_classes)

    def classes_of(path: Path) -> np.ndarray:
        try:
            mask = decode_mask(path, spec["size"], listing.mask_values, listing.colours, spec.get("fit", "stretch"))
        except BadFileError:
            return np.zeros(count, bool)
        return np.bincount(mask.pixels.ravel(), minlength=IGNORE + 1)[:count] > 0

    found = {part: np.zeros(count, bool) for part in parts}
    turns = zip_longest(*parts.values())
    waiting = [(part, path) for turn in turns for part, path in zip(parts, turn, strict=True) if path]
    bar = tqdm(total=len(waiting), desc="look for classes", unit="mask", delay=1, disable=None, leave=False)
    with ThreadPoolExecutor() as pool, bar:
        while waiting := [(part, path) for part, path in waiting if not found[part].all()]:
            now, waiting = waiting[:AT_ONCE], waiting[AT_ONCE:]
            for (part, _), there in zip(now, pool.map(classes_of, [path for _, path in now]), strict=True):
                found[part] |= there
            bar.update(len(now))
    return found
