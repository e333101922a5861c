"""Checks of a study's data: packs and splits."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from viny.data.folders import few
from viny.data.pack import FILES, Pack, open_pack, verify_pack
from viny.data.parts import Groups
from viny.data.splits import LISTS, lists_of
from viny.runtime.errors import InputError
from viny.runtime.files import canonical_json, digest, read_json
from viny.runtime.fingerprint import code_fingerprint
from viny.study import layout, specs
from viny.study.inventory import changed_files, count_images, read_files
from viny.tools.verify.book import Book
from viny.tools.verify.report import MISSING, NOTE, WRONG


def check_pack(book: Book, name: str) -> None:
    """Check a pack's manifest against the settings and its source in the store, and its arrays against the manifest.

    A whole pack is opened and kept in the book.

    Args:
        book: the study's.
        name: pretrain, segmentation or a task.
    """
    path, link = layout.pack_manifest(book.root, name), book.path(layout.IMAGES, pack=name)
    book.expected.add(link)
    manifest = book.json(path, "a pack manifest", f"delete it and pack again{_how(book, name)}")
    if manifest is None:
        book.expected |= set(path.parent.glob("*"))
        return
    with book.about(path):
        book.expected |= {path.parent / file for file in (*(f"{array}.npy" for array in manifest["arrays"]), *FILES)}
        folder = _folder_of_arrays(book, name, manifest, link)
        stored = folder / path.name if folder is not None else path
        source = path
        if not stored.is_file():
            book.add(MISSING, stored, f"expected the pack's manifest; delete {folder} and pack again{_how(book, name)}")
        elif not os.path.samefile(stored, path):
            again = f"delete {stored.parent} and pack again{_how(book, name)}"
            held = book.json(stored, "a pack manifest", again)
            if held is not None and held != manifest and not _fits(path):
                again = f"delete it and pack again{_how(book, name)}"
                book.agree(path, "", held, manifest, f"as {stored} has it; {again}")
                book.discard(path)
                return
            if held is not None:
                book.agree(stored, "", manifest, held, f"as {path} has it, which fits the arrays; {again}")
                source = stored if held == manifest else path
        if book.config is not None:
            spec = specs.pack_spec(book.config, name)
            expected = {"source": spec["source"], "resolution": spec["size"]}
            if "count" in spec:
                expected["count"] = spec["count"]
            found = {key: manifest.get(key) for key in expected}
            book.agree(path, "", expected, found, "rerun the workflow with the settings that are meant")
        if folder is None:
            return
        key = (os.path.realpath(folder), digest(manifest))
        if key not in book.verified:
            book.verified.add(key)
            try:
                verify_pack(source)
            except InputError as error:
                raise InputError(f"{error}{_how(book, name)}") from error
            for file in sorted(folder.iterdir()):
                if file.suffix == ".npy" or file.name in FILES:
                    book.count(file)
        book.packs[name] = open_pack(source)


def check_sources(book: Book, names: Iterable[str]) -> None:
    """Check that the files which packs were made from are still what was packed.

    Args:
        book: the study's; `check_pack` has run on these packs.
        names: of the packs.
    """
    config = book.config
    if config is None:
        return
    images = count_images(config, book.root)
    changed = changed_files(config, book.root, read_files(config, images, book.root, remember=False))
    for name in names:
        path = layout.pack_manifest(book.root, name)
        if name in changed:
            book.add(WRONG, path, f"made from other {changed[name]}; rerun the workflow, which packs them again")
        elif specs.pack_spec(config, name)["source"] != "synthetic" and name not in images.listings:
            where = specs.pack_spec(config, name)["path"]
            book.add(NOTE, path, f"what it was made from is not in {where}; whether that changed is not checked")


def _fits(manifest: Path) -> bool:
    """Whether a study's manifest describes the arrays that are linked beside it."""
    try:
        verify_pack(manifest)
    except InputError:
        return False
    return True


def _how(book: Book, name: str) -> str:
    """How to pack again, even where the workflow has nothing else to do and so leaves packs alone."""
    log = book.path(layout.LOG, job=f"pack/{name}")
    if log.is_file():
        return f", by the command that {log} begins with"
    if book.config is None:
        return ""
    spec = canonical_json({**specs.pack_spec(book.config, name), "code": code_fingerprint("pack")})
    words = ["viny", "pack", "--spec", spec, "--store", book.config["pack_store"]]
    return f", by {shlex.join([*words, '--manifest', str(layout.pack_manifest(book.root, name))])}"


def _folder_of_arrays(book: Book, name: str, manifest: Mapping[str, Any], link: Path) -> Path | None:
    """The folder of a pack's arrays: where the study's link leads or, if the study was moved, one in a store."""

    def whole(folder: Path) -> bool:
        return all((folder / f"{array}.npy").is_file() for array in manifest["arrays"])

    folder = Path(os.path.realpath(link)).parent
    if book.store is None and link.exists() and (link.is_symlink() or whole(folder)):
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
                elif book.store is None:
                    said = "a file beside which the pack's other arrays are missing, so that no job can read the pack"
                    book.add(WRONG, link, f"{said}; delete it and pack again{_how(book, name)}")
                return other.parent
    if link.exists():
        return folder  # the reader says which array is missing
    target = os.readlink(link) if link.is_symlink() else "nothing"
    book.add(
        MISSING,
        link,
        f"expected a link to the arrays of pack '{name}', found one to {target}, where none are; name the folder "
        f"of packs with --store, or pack again{_how(book, name)}",
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
    again = f"delete {path.name} and {indices.name} and rerun the workflow"
    present = book.there(indices, "index lists")
    record = book.split_record(part, subset)
    if record is None:
        return
    with book.about(path):
        spec = {k: v for k, v in record["spec"].items() if k != "code"}
        if book.config is not None:
            expected = specs.split_spec(book.config, part, subset)
            if not book.agree(path, "spec", expected, spec, f"{again} with the settings that are meant"):
                book.discard(path)
                return
        book.made_by("split", path, record["spec"].get("code"))
        name = layout.pack_of_split(part, subset)
        manifest, pack = book.manifest(name), book.packs.get(name)
        if manifest is not None and not book.same(path, "pack", manifest["sha256"], record["pack_sha256"], again):
            return
        if present and book.stated(indices, record.get("outputs"), path, again) and pack is not None:
            lists = lists_of(record, path, indices, pack)
            for which in LISTS:
                count = record["parts"][which]["count"]
                if count != len(lists[which]):
                    raise InputError(f"parts.{which}.count: expected {len(lists[which])}, found {count}; {again}")
            book.index_lists[part, subset] = lists
            if part != "pretrain":  # whose held-out images are drawn one by one
                _check_groups(book, path, name, pack, lists)


def _check_groups(book: Book, path: Path, name: str, pack: Pack, lists: Mapping[str, np.ndarray]) -> None:
    """Check that no group of labelled images is in both lists of a split, if the pack was made by groups."""
    group = specs.pack_spec(book.config, name).get("group") if book.config is not None else None
    if group is None:
        return
    groups = np.array(Groups.read(pack.names, group["pattern"]).of)
    if both := np.intersect1d(*(groups[lists[which]] for which in LISTS)).tolist():
        again = f"delete {path.name} and its index lists and rerun the workflow"
        book.add(WRONG, path, f"groups of segmentation.group in both lists: {few(both)}; expected none; {again}")
