"""What is here: how many images a study's data sets hold, and which of their files have changed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from viny.data.contents import Contents, differences, read_contents
from viny.data.conventions import LOOKED_AT, Heads, decide, scales
from viny.data.conventions import said as decided
from viny.data.folders import few, name_below, same_files
from viny.data.masks import is_void
from viny.data.pack import CONTENTS, TEST, TRAIN, stored_at
from viny.data.parts import Groups
from viny.data.sources import Listing, MissingError, list_source
from viny.data.synthetic import is_held_out
from viny.data.unusable import Unusable, unusable
from viny.runtime.errors import InputError
from viny.runtime.files import canonical_json, read_json
from viny.runtime.fingerprint import code_fingerprint
from viny.study.arms import pretrain_packs, settings_of
from viny.study.grid import cells
from viny.study.layout import IMAGES, pack_manifest, published, split_record, start_file
from viny.study.specs import pack_spec, source_of, source_spec, split_is_given, taken_of_test_part, task_split_spec


@dataclass(frozen=True)
class Images:
    """How many images there are; None if unknown.

    Attributes:
        packed: by pack ('pretrain', a variant's, 'segmentation' or a task), as in the data set on disk.
        unlabelled: by pack of unlabelled images, those that may be trained on.
        trained: by intermediate task, those that it trains on.
        held_out: by intermediate task, those that it is tested on.
        room: labelled images besides the test images.
        tested: test images.
        groups: of the test images, by `segmentation.group`; 0 without groups, or if unknown.
        given: labelled images in the training and test parts, if a file or their folders give them.
        notes: what of the data is not used, or not as its folders suggest, one sentence each.
        listings: what the data sets on disk hold, by pack; those that are made, or not here, are left out.
    """

    packed: dict[str, int | None]
    unlabelled: dict[str, int | None]
    trained: dict[str, int | None]
    held_out: dict[str, int | None]
    room: int | None
    tested: int
    given: tuple[int, int] | None
    notes: tuple[str, ...] = ()
    groups: int = 0
    listings: Mapping[str, Listing] = field(default_factory=dict, repr=False, compare=False)

    @property
    def limits(self) -> dict[str, int | None]:
        """What `viny.study.checks.check_sizes` needs to know."""
        given = dict(zip(("train", "test"), self.given, strict=True)) if self.given else {}
        tasks = {f"{task} {part}": n for part in ("trained", "held_out") for task, n in getattr(self, part).items()}
        return self.packed | self.unlabelled | given | tasks


def count_images(config: Mapping[str, Any], root: Path) -> Images:
    """Count a study's images, by its splits if they exist, else by the data sets on disk.

    Args:
        config: resolved settings.
        root: the study's folder, which need not exist.

    Raises:
        InputError: a data set exists, but something in it is wrong.
    """
    asked = {name: pack_spec(config, name) for name in pack_names(config)}
    found: dict[str, tuple[tuple[int, int] | None, Listing | None]] = {}
    notes: list[str] = []
    for name, spec in asked.items():
        text = canonical_json(spec)
        if text not in found:
            found[text] = _parts(spec)
            listing = found[text][1]
            notes += [f"{name}: {line}" for line in (listing.notes if listing else ())]
    parts, listings = ({name: found[canonical_json(spec)][at] for name, spec in asked.items()} for at in (0, 1))
    packed = {name: sum(two) if two else None for name, two in parts.items()}
    tested, own = config["segmentation"]["test_size"], parts["segmentation"]
    given = own if split_is_given(config) else None
    if given:
        room, tested = given[0], taken_of_test_part(config) or given[1]
    else:
        room = sum(own) - tested if own else None
    unlabelled = {
        name: room if settings_of(config, arm)["pretrain"]["source"] == "segmentation" else packed[name]
        for name, arm in pretrain_packs(config).items()
    }
    trained = {task: _trained(config, task, root, parts[task], room) for task in config["intermediate"]}
    held_out = {task: _held_out(config, task, parts[task], tested) for task in config["intermediate"]}
    here = {name: listing for name, listing in listings.items() if listing is not None}
    labelled = here.get("segmentation")
    groups = _groups_of(config, labelled) if labelled and labelled.parts.count(TEST) == tested else None
    tested_groups = len(groups.within(labelled.parts, TEST)) if labelled and groups else 0
    return Images(packed, unlabelled, trained, held_out, room, tested, given, tuple(notes), tested_groups, here)


def pack_names(config: Mapping[str, Any]) -> list[str]:
    """The packs that a study may need."""
    first, *others = pretrain_packs(config)
    return [first, "segmentation", *config["intermediate"], *others]


def _parts(spec: Mapping[str, Any]) -> tuple[tuple[int, int] | None, Listing | None]:
    """Images in a data set's training part and in the rest, and its listing; None if it is not there."""
    if spec["source"] == "synthetic":
        held_out = sum(is_held_out(i, spec["count"]) for i in range(spec["count"]))
        return (spec["count"] - held_out, held_out), None
    try:
        listing = list_source(spec)
    except MissingError:
        return None, None
    except InputError:
        if spec["source"] != "folder" or os.path.isdir(spec["path"]):
            raise
        return None, None
    training = listing.parts.count(TRAIN) if listing.parts else len(listing.images)
    return (training, len(listing.images) - training), listing


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
    if _spares_test_images(spec):
        return room
    return parts[0] if parts else None


def _held_out(config: Mapping[str, Any], task: str, parts: tuple[int, int] | None, tested: int) -> int | None:
    if _spares_test_images(task_split_spec(config, task)):
        return tested
    return parts[1] if parts else None


def _spares_test_images(spec: Mapping[str, Any]) -> bool:
    """Whether a task learns from all labelled images but the study's test images, see `splits.task_split`."""
    return spec.get("pool") == "training" and spec["test_set"] == "fixed"


def folder_report(config: Mapping[str, Any], listed: Mapping[str, Listing] | None = None) -> list[str]:
    """What is in the folders of a study's own data, and what in them did not match, one line each.

    Files are opened for their headers, and some for their pixels.

    Args:
        config: resolved settings.
        listed: data sets that were listed already, see `Images.listings`.

    Raises:
        InputError: see `viny.data.folders`; or, by their headers, packing would stop at some files.
    """
    lines, whites, listings, fits = [], {}, {}, {}
    for name in pack_names(config):
        spec = pack_spec(config, name)
        own_masks = name == "segmentation" or spec.get("holds") != "masks"  # not the segmentation's masks again
        needed = name not in pretrain_packs(config) or max(config["grid"]["pretrain_sizes"]) > 0
        if name in pretrain_packs(config) and needed and not own_masks:
            lines.append(f"{name}: the labelled images besides the test images, without their masks")
        if spec["source"] == "synthetic" or not own_masks or not needed:
            continue
        try:
            listing = (listed or {}).get(name) or list_source(spec)
        except MissingError:
            continue
        if name not in pretrain_packs(config):  # whose crops have the shapes of the originals
            fits[name] = spec.get("fit", "stretch")
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
        if name == "segmentation":
            lines += _groups(config, listing)
            lines += void_classes(config["segmentation"]["classes"])
        heads = Heads.read(listing.images, listing.masks)
        read = decide(heads, listing.mask_values, listing.colours, LOOKED_AT)
        lines += _left_out(name, spec, unusable(heads, read.turns))
        lines += [f"{name}: {line}" for line in decided(read.about)]
        listings[name], whites[name] = listing, read.white
    labelled = listings.pop("segmentation", None)
    for name, listing in listings.items() if labelled else ():
        if both := same_files(labelled.images, listing.images):
            tested = len(same_files(labelled.images_in(TEST), listing.images)) if labelled.parts else "some"
            lines.append(f"{name}: {len(both)} labelled images, {tested} for the test, are among its images")
    return lines + scales(whites) + _fits(fits)


def _groups(config: Mapping[str, Any], listing: Listing) -> list[str]:
    """Lines on a study's groups where a split is given, which need not keep them."""
    groups = _groups_of(config, listing)
    if groups is None or not config["segmentation"].get("split"):
        return []
    lines = [f"segmentation: {groups.said()}"]
    if both := sorted(groups.within(listing.parts, TRAIN) & groups.within(listing.parts, TEST)):
        lines.append(
            f"segmentation: {len(both)} groups are in both parts of segmentation.split: {few(both)}; a model "
            "scores too well on images of a group that it was trained on"
        )
    return lines


def _groups_of(config: Mapping[str, Any], listing: Listing) -> Groups | None:
    """Which labelled images belong together; None in a study without groups."""
    section = config["segmentation"]
    if "group" not in section:
        return None
    groups = Groups.read([name_below(path, Path(section["images"])) for path in listing.images], section["group"])
    groups.check(section["group"])
    return groups


def _fits(fits: Mapping[str, str]) -> list[str]:
    """A line if the images of an encoder become squares in another way than the labelled ones; `fits` by pack."""
    usual = fits.get("segmentation")
    if not (others := [f"{name} {fit}" for name, fit in fits.items() if usual and fit != usual]):
        return []
    return [f"segmentation.fit: {usual}, but {few(others)}: an encoder learns on other shapes than it is tuned for"]


def void_classes(classes: int | Mapping[str, str]) -> list[str]:
    """A line if a study's classes have names that mean pixels without a class, which it learns and counts all the same.

    Args:
        classes: `segmentation.classes`.
    """
    void = {} if isinstance(classes, int) else {value: name for value, name in classes.items() if is_void(name)}
    if not void:
        return []
    shown = few(f"{value} '{name}'" for value, name in void.items())
    return [
        f"segmentation.classes: {shown}: looks like pixels without a class, but is learnt and counted as one; if it is "
        f"none, move it to segmentation.ignore: [{', '.join(map(_quoted, void))}]"
    ]


def _quoted(value: str) -> str:
    return f"'{value}'" if value.startswith("#") else value


def _left_out(name: str, spec: Mapping[str, Any], found: Unusable) -> list[str]:
    """What packing will leave out of the files whose headers were read, in a line.

    Raises:
        InputError: packing will stop at them.
    """
    skips = spec.get("on_bad_image") == "skip"
    if not found.said:
        return []
    if skips and 2 * found.pairs <= found.of:
        more = "only headers were read here, so it may find more. Numbers and sizes here count them all"
        return [f"{name}: {found.said}. Packing leaves them out; {more}"]
    way_out = "more than half, which on_bad_image: skip does not leave out"
    if not skips:
        way_out = "mend or remove them, or set on_bad_image: skip to leave them out"
    raise InputError(f"{name}: {spec['path']}: by their headers, {found.said}; {way_out}")


def read_files(
    config: Mapping[str, Any], images: Images, packed: Path | None = None, remember: bool = True
) -> dict[str, Contents]:
    """The files of a study's data sets as they are now, by pack; those that are not here are left out.

    Args:
        config: resolved settings.
        images: what `count_images` returns.
        packed: the study's folder, to leave out what neither it nor the store has packed; None to read all.
        remember: whether to write down what was read, in the study's store of packs; somebody else's study is not to
            say where files are written.
    """
    found: dict[str, Contents] = {}
    read: dict[str, Contents] = {}  # a task may learn from another pack's images
    for name, listing in images.listings.items():
        spec = source_spec(config, name)
        key, store = canonical_json(spec), Path(config["pack_store"])
        stored = any(store.glob(f"{spec['source']}-{spec['size']}-*"))
        if packed is not None and not stored and not pack_manifest(packed, name).is_file():
            continue
        if key not in read:
            read[key] = read_contents(listing, spec, store, remember)
        found[name] = read[key]
    return found


def with_listings(config: dict[str, Any], root: Path, files: Mapping[str, Contents]) -> dict[str, Any]:
    """Settings that also say what is in the data sets' files now, so that packs are remade when that changes.

    Args:
        config: resolved settings, to which `listings`, by pack, are added.
        root: the study's folder, whose manifests say what was in data sets that are no longer here.
        files: what `read_files` returns.
    """
    uses: dict[str, list[str]] = {}  # a task may learn from another pack's images
    for name in pack_names(config):
        uses.setdefault(canonical_json(source_spec(config, name)), []).append(name)
    found = {}
    for text, names in uses.items():
        spec = json.loads(text)
        if spec["source"] == "synthetic":
            continue
        packed = next((said for name in names if (said := _packed_listing(root, name))), "")
        listing = next((files[name].sha256 for name in names if name in files), packed)
        if spec.get("download") and listing == packed and _made_of(root, names, spec, config["pack_store"]):
            listing = ""  # the pack's own job fetched the images, so nobody could know them beforehand
        found |= dict.fromkeys(names, listing)
    return {**config, "listings": found} if found else config


def _packed_listing(root: Path, name: str) -> str | None:
    """What a pack's manifest says of the files that it was made from; None if it cannot be read."""
    try:
        listing = read_json(pack_manifest(root, name), "a pack manifest").get("contents")
    except (InputError, AttributeError):
        return None
    return listing if isinstance(listing, str) else None


def _made_of(root: Path, names: list[str], spec: Mapping[str, Any], store: str) -> bool:
    """Whether one of these packs of a study is the one that the store holds for these settings."""
    folders = [Path(os.path.realpath(root / IMAGES.format(pack=name))).parent.name for name in names]
    return stored_at({**spec, "code": code_fingerprint("pack")}, Path(store)).name in folders


def check_starts(config: Mapping[str, Any], root: Path) -> None:
    """Refuse starts whose files of weights are not there, unless the study has read them already.

    Args:
        config: resolved settings.
        root: the study's folder, which need not exist.

    Raises:
        InputError: names the key and the file.
    """
    for name in published(cells(config)):
        start = config["starts"][name]
        path = source_of(start)
        if path is not None and not path.is_file() and not start_file(root, name, "record").is_file():
            key = "file" if "file" in start else "weights"
            raise InputError(f"starts.{name}.{key}: {path}: no such file; expected .safetensors, .pth or .bin")


def changed_files(config: Mapping[str, Any], root: Path, files: Mapping[str, Contents]) -> dict[str, str]:
    """How the files of data sets differ from those that the study's packs were made from, in words, by pack.

    Args:
        config: resolved settings.
        root: the study's folder.
        files: what `read_files` returns.
    """
    said = {}
    for name, now in files.items():
        packed = _packed_listing(root, name)
        if packed is None or packed == now.sha256:
            continue
        folder = Path(os.path.realpath(root / IMAGES.format(pack=name))).parent
        try:
            what = differences((folder / CONTENTS).read_text(encoding="utf-8"), now)
        except (OSError, UnicodeDecodeError):
            what = "some changed; which, cannot be told without the pack"
        said[name] = f"files of {pack_spec(config, name)['path']} since they were packed: {what or 'in another order'}"
    return said
