"""Checks of a study's data: packs and splits."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from viny.data.pack import open_pack, verify_pack
from viny.data.splits import LISTS, read_split
from viny.runtime.errors import InputError
from viny.runtime.files import digest, read_json
from viny.study import layout, specs
from viny.tools.verify.book import AGAIN, Book
from viny.tools.verify.report import MISSING, NOTE


def check_pack(book: Book, name: str) -> None:
    """Check a pack's manifest against the settings and its source in the store, and its arrays against the manifest.

    A whole pack is opened and kept in the book.

    Args:
        book: the study's.
        name: pretrain, segmentation or a task.
    """
    path, link = layout.pack_manifest(book.root, name), book.path(layout.IMAGES, pack=name)
    book.expected.add(link)
    manifest = book.manifest(name)
    if manifest is None:
        return
    with book.about(path):
        if book.config is not None:
            spec = specs.pack_spec(book.config, name)
            expected = {"source": spec["source"], "resolution": spec["size"]}
            if "count" in spec:
                expected["count"] = spec["count"]
            found = {key: manifest.get(key) for key in expected}
            book.agree(path, "", expected, found, "rerun the workflow with the settings that are meant")
        folder = _folder_of_arrays(book, name, manifest, link)
        if folder is None:
            return
        stored = folder / path.name
        if stored.is_file() and not os.path.samefile(stored, path):
            book.agree(path, "", read_json(stored, "a pack manifest"), manifest, f"as {stored} has it; {AGAIN}")
        linked = link.exists() and os.path.realpath(link) == os.path.realpath(folder / link.name)
        source = path if linked else stored
        key = (os.path.realpath(folder), digest(manifest))
        if key not in book.verified:
            book.verified.add(key)
            verify_pack(source)
            for file in (*folder.glob("*.npy"), *folder.glob("names.txt")):
                book.count(file)
        book.packs[name] = open_pack(source)


def _folder_of_arrays(book: Book, name: str, manifest: Mapping[str, Any], link: Path) -> Path | None:
    """The folder of a pack's arrays: where the study's link leads or, if the study was moved, one in a store."""

    def whole(folder: Path) -> bool:
        return all((folder / f"{array}.npy").is_file() for array in manifest["arrays"])

    folder = Path(os.path.realpath(link)).parent
    if book.store is None and link.exists() and whole(folder):
        return folder
    for store in _stores(book):
        for other in sorted(store.glob("*/manifest.json")):
            try:
                same = read_json(other, "a pack manifest")["sha256"] == manifest["sha256"]
            except Exception:  # another pack in the store, which does not concern this study
                continue
            if same and whole(other.parent):
                if not link.exists():
                    book.add(NOTE, link, f"leads to no arrays here; those of {other.parent} were checked instead")
                return other.parent
    if link.exists():
        return folder  # the reader says which array is missing
    target = os.readlink(link) if link.is_symlink() else "nothing"
    book.add(
        MISSING,
        link,
        f"expected a link to the arrays of pack '{name}', found one to {target}, where none are; name the folder "
        "of packs with --store, or rerun the workflow to pack again",
    )
    return None


def _stores(book: Book) -> list[Path]:
    """Where to look for packs: in the store that the user named, else in the one that the settings name."""
    if book.store is not None:
        return [book.store]
    named = book.config.get("pack_store", "packs") if book.config is not None else "packs"
    # Below the working folder, and below the folder that results/<study> is in.
    return [Path(named), Path(os.path.abspath(book.root)).parents[1] / named] if isinstance(named, str) else []


def check_split(book: Book, part: str, subset: str) -> None:
    """Check a split's record against the settings, its index lists and its pack.

    Whole index lists are kept in the book.

    Args:
        book: the study's; `check_pack` has run on the split's pack.
        part: pretrain, finetune or intermediate.
        subset: name of the subset, or of the task.
    """
    path = layout.split_record(book.root, part, subset)
    indices = book.path(layout.INDICES, part=part, subset=subset)
    present = book.there(indices, "index lists")
    record = book.split_record(part, subset)
    if record is None:
        return
    name = layout.pack_of_split(part, subset)
    with book.about(path):
        spec = {k: v for k, v in record["spec"].items() if k != "code"}
        if book.config is not None:
            expected = specs.split_spec(book.config, part, subset)
            book.agree(path, "spec", expected, spec, "rerun the workflow with the settings that are meant")
        book.made_by("split", path, record["spec"].get("code"))
        manifest, pack = book.manifest(name), book.packs.get(name)
        if manifest is not None and pack is None:  # the lists cannot be read without their pack
            book.same(path, "pack", manifest.get("sha256"), record["pack_sha256"], AGAIN)
        if pack is not None and present:
            book.count(indices)
            lists = read_split(path, indices, pack)
            for which in LISTS:
                count, last = record["parts"][which]["count"], max(lists[which], default=-1)
                if count != len(lists[which]):
                    raise InputError(f"parts.{which}.count: expected {len(lists[which])}, found {count}; {AGAIN}")
                if last >= len(pack) or min(lists[which], default=0) < 0:
                    raise InputError(f"{which}: expected indices of {len(pack)} images, found {last}; {AGAIN}")
            book.index_lists[part, subset] = lists
