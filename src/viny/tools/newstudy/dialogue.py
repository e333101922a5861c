"""`viny init`: what a person says about a new study, by flags or at the keyboard, and what is printed in reply."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from viny.data.coco import convert
from viny.data.folders import check_some, list_below
from viny.data.masks import IGNORE, is_void, value_name, value_number
from viny.data.survey import percent
from viny.runtime.errors import InputError
from viny.study.absent import absent_report
from viny.study.config import resolve
from viny.study.reading import read_config
from viny.study.unanswered import as_lines, unanswered
from viny.tools.newstudy.class_lists import NAME, beside, read_classes
from viny.tools.newstudy.look import Inspection, Request, inspect
from viny.tools.newstudy.sizing import for_minutes
from viny.tools.newstudy.study_file import images_of, study_text, write
from viny.tools.terminal import console, table

MINUTES = 20  # that are proposed: an answer in a quarter of an hour, with the look at it
SHOWN = 25  # mask values that are listed, or asked for
# Folder names that are offered as answers.
IMAGES = ("images", "imgs", "img")
MASKS = ("masks", "labels", "annotations")
UNLABELLED = ("unlabelled", "unlabeled")


def init(
    given: Mapping[str, Any],
    coco: Path | None = None,
    panoptic: Path | None = None,
    folder: Path = Path("studies"),
    force: bool = False,
    reply: Callable[[str], str] = input,
    minutes: float | None = None,
    rate: float | None = None,
) -> None:
    """Write a study file and a contact sheet for a user's own folders, and say what was found.

    Args:
        given: fields of `look.Request`; None if unknown. If the name or a folder is unknown, a terminal user is asked
            for it, and then for the rest too.
        coco: annotations to make the masks from first; they go to `masks`, or to data/<name>-masks if that is unknown.
        panoptic: folder of their PNGs, see `viny.data.coco.convert`.
        folder: for the study file and the contact sheet.
        force: whether these, and masks made from COCO annotations, may be replaced.
        reply: asks a question and returns the answer.
        minutes: that the study may take on this machine; None for one that has all the time it needs.
        rate: see `machine.Machine`.

    Raises:
        InputError: something needed is unknown or missing, or a file exists already.
    """
    given = {key: value for key, value in given.items() if value is not None}
    lacking = [key for key in ("name", "images", "masks") if key not in given and (key != "masks" or coco is None)]
    asking = bool(lacking) and sys.stdin.isatty()
    if lacking and not asking:
        flags = ", ".join("a NAME" if key == "name" else f"--{key}" for key in lacking)
        raise InputError(f"viny init needs {flags}; on a terminal it asks for what is not given")
    free = partial(_free_name, folder=folder, force=force)
    if asking and "name" not in given:
        given["name"] = ask(reply, "Name of the study", "mine", free)
    study, sheet = _files(free(given["name"]), folder)
    if asking:
        given = ask_for_rest(given, coco is not None, reply)
        if minutes is None:
            minutes = ask(reply, "Minutes that the study may take on this machine", str(MINUTES), _minutes)
    if coco:
        if given.get("classes") or given.get("ignore"):
            raise InputError("--coco: its categories name the classes; leave --classes and --ignore out")
        given["masks"] = given.get("masks") or Path("data", f"{given['name']}-masks")
        made = convert(coco, given["images"], given["masks"], panoptic, force)
        given |= {"classes": made.classes, "ignore": [IGNORE], "mask_suffix": ""}
        print("\n".join([f"{given['masks']}: {made.masks:,} masks of {coco}", *made.notes]))
    listed = beside(given["masks"]) if not coco and not given.get("classes") else None
    if asking and listed:
        given["classes"] = ask(reply, "File that names the mask values", str(listed), _classes_or_none)
    found = inspect(Request(**given))
    if asking and len(found.coding.classes) <= SHOWN:
        named, ignored = ask_names(found, reply, every=not given.get("classes"))
        if named != found.coding.classes or {*ignored} != {*found.coding.ignore}:
            found = inspect(replace(found.wanted, classes=named, ignore=ignored))
    if asking and found.wanted.group and (sequences := found.wanted.sequences):
        print(f"  {sequences.said}")
        text = "What images that belong together have in common, a pattern, folder or none"
        found = ask(reply, text, found.wanted.group, partial(_grouped, found))
    text = study_text(found)
    sized, more = [], []
    if listed and not found.wanted.classes:
        more.append(f"{listed} names the mask values: --classes-file {listed} takes its names")
    if minutes is not None:
        found, text, line = for_minutes(found, minutes, rate)
        sized = [line]
    write(found, study, sheet, text)
    config = resolve(read_config(study))
    more += absent_report(config)
    report(found, study, sheet, more, [*sized, *as_lines(unanswered(config, images_of(found)))])


def report(found: Inspection, study: Path, sheet: Path, more: Sequence[str] = (), about: Sequence[str] = ()) -> None:
    """Print what was found, more notes on it, lines about the study, and what comes next."""
    looked, name = found.looked, found.wanted.name
    counted = [f"{found.pairs:,} images with masks"] + [f"{found.unlabelled:,} unlabelled"] * bool(found.unlabelled)
    counted += [f"{task}: {len(one.images):,} in {len(one.classes)} classes" for task, one in found.tasks.items()]
    model = found.model
    sides = [f"{width} x {height}" for height, width in found.shapes[found.shapes.prod(1).argsort()][[0, -1]]]
    print(f"{name}: {'; '.join(counted)}")
    size, patch = model["image_size"], model["patch_size"]
    print(
        f"  images   {' to '.join(dict.fromkeys(sides))} pixels (width x height); seen at {size} x {size}, "
        f"{size // patch} x {size // patch} patches of {patch} pixels"
    )
    kinds = "colours" if found.values.colours else "values"
    print(f"  masks    {kinds} in {len(found.values.of):,} of {found.pairs:,} masks, spread evenly over all:")
    masks = found.values.masks()
    keys = {value: value_name(value, found.values.colours) for value in masks}
    known = {**found.coding.classes, **dict.fromkeys(found.coding.ignore, "ignored")}
    rows = []
    for value, count in masks.items():
        meant = known.get(keys[value], known.get(IGNORE, ""))
        share = looked.shares[found.coding.names.index(meant) if meant in found.coding.names else -1]
        rows.append((f"           {keys[value]}", meant, f"{count:,}", percent(share)))
    console().print(table(("           value", "class", "masks", "of pixels"), rows[:SHOWN], right=(2, 3)))
    if len(rows) > SHOWN:
        print(f"           and {len(rows) - SHOWN} more, in {study}")
    for line in (*found.notes, *more):
        print(f"  note     {line}")
    for line in ("", *about) if about else ():
        print(line)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"\n{sheet}: check that masks and names fit\n{study}: change names and sizes here\n\nNext:")
    for command in (
        f"viny plan {study}",
        f"snakemake --cores {cores} --configfile {study}",
        f"viny status results/{name}",
        f"viny advise results/{name}",
    ):
        print(f"  {command}")


def ask(reply: Callable[[str], str], text: str, default: str, read: Callable[[str], Any]) -> Any:
    """Ask one question until its answer can be read; Enter takes the answer in brackets.

    Raises:
        InputError: there are no more answers.
    """
    while True:
        try:
            answer = reply(f"{text} [{default}]: ").strip() or default
        except EOFError as error:
            raise InputError("no more answers; nothing was written") from error
        try:
            return read(answer)
        except InputError as error:
            print(f"  {error}")


def ask_for_rest(given: Mapping[str, Any], coco: bool, reply: Callable[[str], str]) -> dict[str, Any]:
    """Ask for the folders that are not given."""
    out = dict(given)
    if "images" not in out:
        out["images"] = ask(reply, "Folder of images that have masks", _likely(IMAGES), _folder)
    if "masks" not in out and not coco:
        out["masks"] = ask(reply, "Folder of their masks", _likely(MASKS, out["images"].parent), _folder)
    if "unlabelled" not in out:
        near = _likely(UNLABELLED, out["images"].parent) or "none"
        out["unlabelled"] = ask(reply, "Folder of unlabelled images", near, _folder_or_none)
    if not out.get("tasks"):
        out["tasks"] = {}
        text = "Folder of class folders, as an intermediate task"
        while (path := ask(reply, text, "none", _folder_or_none)) is not None:
            out["tasks"][_task_name(path)] = path
            text = "Another one"
    return out


def ask_names(
    found: Inspection, reply: Callable[[str], str], every: bool = True
) -> tuple[dict[int | str, str], list[int | str]]:
    """Ask for the name of each class, or with `every` false only of values whose names mean pixels without a class.

    Returns:
        The names, and the values without a class.
    """
    coding, masks = found.coding, found.values.masks()
    shares = dict(zip(coding.names, found.looked.shares, strict=False))
    text = "Name of mask value {}, or ignore if its pixels have no class ({})"
    asked = {value: (f"{percent(shares[name])} of pixels", name) for value, name in coding.classes.items() if every}
    for value, name in coding.void.items():
        asked[value] = f"called '{name}', in {masks.get(value_number(value), 0):,} masks", "ignore"
    while asked:
        told = {v: ask(reply, text.format(v, about), default, _class_name) for v, (about, default) in asked.items()}
        named = {value: told.get(value, name) for value, name in {**coding.classes, **told}.items()}
        kept = {value: name for value, name in named.items() if not is_void(name)}
        if len(set(kept.values())) > 1:
            ignored = [value for value in coding.ignore if value not in kept]
            return kept, ignored + [value for value in named if value not in kept and value not in ignored]
        print("  expected two classes or more besides ignored values; name them again")
    return coding.classes, coding.ignore


def _grouped(found: Inspection, text: str) -> Inspection:
    """What is found if images are split by these groups."""
    group = "" if text == "none" else text
    return found if group == found.wanted.group else inspect(replace(found.wanted, group=group))


def _class_name(text: str) -> str:
    if not (NAME.fullmatch(text) or is_void(text)):
        raise InputError(
            "expected up to 40 letters, digits, spaces and _ . ( ) / + -, the first a letter, a digit or _; or ignore"
        )
    return text


def _folder(text: str) -> Path:
    if not text:
        raise InputError("expected a folder")
    path = Path(text).expanduser()
    check_some(list_below(path))
    return path


def _folder_or_none(text: str) -> Path | None:
    return None if text == "none" else _folder(text)


def _classes_or_none(text: str) -> dict[int | str, str]:
    return {} if text == "none" else read_classes(Path(text).expanduser())


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < float("inf"):
        raise InputError("expected a number of minutes above 0")
    return minutes


def _task_name(folder: Path) -> str:
    """A valid name for a task, from that of its folder."""
    name = re.sub(r"[^A-Za-z0-9_]", "_", folder.resolve().name)[:27]
    return name if re.match(r"[A-Za-z]", name) else f"task_{name}"


def _files(name: str, folder: Path) -> tuple[Path, Path]:
    """A study's file and its contact sheet."""
    return folder / f"{name}.yaml", folder / f"{name}.png"


def _free_name(text: str, folder: Path, force: bool) -> str:
    there = [str(path) for path in _files(study_name(text), folder) if path.exists()]
    if there and not force:
        raise InputError(f"{' and '.join(there)}: there already; choose another name, or replace with --force")
    return text


def study_name(text: str) -> str:
    """A valid name for a study.

    Raises:
        InputError: it is not valid.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", text):
        raise InputError(f"{text!r}: a study's name has letters, digits, - and _, no spaces, 64 at most")
    return text


def _likely(names: Sequence[str], near: Path = Path()) -> str:
    """A folder that may be meant; empty if none has such a name."""
    places = [place / name for place in (near, Path("data"), Path()) for name in names]
    return next((str(path) for path in places if os.path.isdir(path)), "")
