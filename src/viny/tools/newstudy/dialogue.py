"""`viny init`: what a person says about a new study, by flags or at the keyboard, and what is printed in reply."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from viny.data.coco import convert
from viny.data.folders import check_some, list_below
from viny.data.masks import IGNORE, is_void, value_name, value_number
from viny.data.survey import UnnamedError, percent
from viny.runtime.errors import InputError
from viny.runtime.signals import leave, on_stop
from viny.study.absent import absent_report
from viny.study.config import resolve
from viny.study.reading import read_config
from viny.study.unanswered import unanswered
from viny.tools.newstudy.class_lists import NAME, beside, read_classes
from viny.tools.newstudy.look import Inspection, Request, inspect
from viny.tools.newstudy.sizing import for_minutes
from viny.tools.newstudy.study_file import images_of, study_text, write
from viny.tools.terminal import console, say, show_unanswered, table, wrapped

T = TypeVar("T")

MINUTES = 20  # that are proposed: an answer in a quarter of an hour, with the look at it
SAME = "same"  # instead of a folder to pre-train on: that of the images with masks
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
    ask_all: bool = False,
) -> None:
    """Write a study file and a contact sheet for a user's own folders, and say what was found.

    Args:
        given: fields of `look.Request` that are known. If the name or a folder is not, a terminal user is asked for
            it, and then for the rest too.
        coco: annotations to make the masks from first; they go to `masks`, or to data/<name>-masks if that is unknown.
        panoptic: folder of their PNGs, see `viny.data.coco.convert`.
        folder: for the study file and the contact sheet.
        force: whether these, and masks made from COCO annotations, may be replaced.
        reply: asks a question and returns the answer.
        minutes: that the study may take on this machine; None for one that has all the time it needs.
        rate: see `machine.Machine`.
        ask_all: whether a terminal user is asked for all that is not given, even where nothing is lacking.

    Raises:
        InputError: something needed is unknown or missing, or a file exists already.
    """
    lacking = [key for key in ("name", "images", "masks") if key not in given and (key != "masks" or coco is None)]
    asking = bool(lacking or ask_all) and sys.stdin.isatty()
    if lacking and not asking:
        flags = ", ".join("a NAME" if key == "name" else f"--{key}" for key in lacking)
        raise InputError(f"viny init needs {flags}; on a terminal it asks for what is not given")
    said = _Said(dict(given), coco, panoptic, folder, force, minutes, rate)

    def stop(number: int) -> None:
        os.write(2, f"\n{said.to_go_on()}\n".encode())
        leave(number)

    with on_stop(stop if asking else leave):
        try:
            found, *written = _written(said, reply if asking else None)
        except InputError as error:
            raise InputError(f"{error}\n{said.to_go_on()}" if asking else str(error)) from error
    report(found, *written)


@dataclass
class _Said:
    """What a user has said so far, by flags and answers; see `init`."""

    given: dict[str, Any]
    coco: Path | None
    panoptic: Path | None
    folder: Path
    force: bool
    minutes: float | None
    rate: float | None

    def to_go_on(self) -> str:
        """The command that asks only for what has not been said."""
        one = {key: value for key, value in self.given.items() if key not in ("name", "tasks", "classes", "ignore")}
        one |= {key: value for key, value in vars(self).items() if key != "given" and value is not None}
        if one["folder"] == Path("studies"):
            del one["folder"]
        words = ["viny", "init", "--ask", *([self.given["name"]] if "name" in self.given else [])]
        for key, value in one.items():
            flag = f"--{key.replace('_', '-')}"
            if isinstance(value, bool):
                words += [flag] * value
            else:
                text = f"{value:g}" if isinstance(value, float) else str(value)
                text = "none" if value is None or (key, value) == ("group", "") else text
                words += [f"{flag}={text}"] if text.startswith("-") else [flag, text]
        if "tasks" in self.given:
            for task in [f"{name}={path}" for name, path in self.given["tasks"].items()] or ["none"]:
                words += ["--task", task]
        if names := self.given.get("classes"):
            words += ["--classes", ",".join(f"{value}={name}" for value, name in names.items())]
        for value in self.given.get("ignore", ()):
            words += ["--ignore", str(value)]
        return f"No study was written. To go on with these answers:\n{shlex.join(words)}"


def _written(
    said: _Said, reply: Callable[[str], str] | None
) -> tuple[Inspection, Path, Path, Sequence[str], Sequence[str]]:
    """Write what `init` writes, asking with `reply` for what is not said; None: nothing is asked.

    Returns:
        What was found, the study file, the contact sheet, further notes, and lines on how the study was sized.
    """
    given, coco, folder = said.given, said.coco, said.folder
    free = partial(_free_name, folder=folder, force=said.force)
    if "name" not in given:
        given["name"] = ask(reply, "Name of the study", "mine", free)
    study, sheet = _files(free(given["name"]), folder)
    if reply:
        ask_folders(given, coco is not None, reply)
    if given.get("unlabelled") == Path(SAME):
        given["unlabelled"] = given["images"]
    if coco:
        if given.get("classes") or given.get("ignore"):
            raise InputError("--coco: its categories name the classes; leave --classes and --ignore out")
        masks = given.get("masks") or Path("data", f"{given['name']}-masks")
        made = convert(coco, given["images"], masks, said.panoptic, said.force)
        given |= {"masks": masks, "classes": made.classes, "ignore": [IGNORE], "mask_suffix": ""}
        said.coco = said.panoptic = None
        say(f"{masks}: {made.masks:,} masks of {coco}", *made.notes)
    listed = beside(given["masks"]) if not coco and not given.get("classes") else None
    if reply and listed:
        text = "File with the names of the mask values, or none to be asked for each"
        given["classes"] = ask(reply, text, str(listed), _classes_or_none)
    found = ask_names(given, reply) if reply else inspect(Request(**given))
    more = [found.about_groups] if found.about_groups else []
    if reply and found.wanted.group and found.wanted.sequences:
        found, more = ask_group(found, reply), []
        given["group"] = found.wanted.group
    if reply and said.minutes is None:
        said.minutes = ask(reply, "Minutes that the study may take on this machine", str(MINUTES), _minutes)
    text = study_text(found)
    sized = []
    if listed and not reply:
        more.append(f"{listed} names the mask values: --classes-file {listed} takes its names")
    if said.minutes is not None:
        found, text, sized = for_minutes(found, said.minutes, said.rate, study)
    write(found, study, sheet, text)
    return found, study, sheet, more, sized


def report(found: Inspection, study: Path, sheet: Path, more: Sequence[str] = (), sized: Sequence[str] = ()) -> None:
    """Print what was found, more notes on it, how the study was sized, what it cannot answer, and what comes next."""
    config = resolve(read_config(study))
    looked, name = found.looked, found.wanted.name
    kind = "of them to pre-train on" if found.on_labelled else "unlabelled"
    counted = [f"{found.pairs:,} images with masks"] + [f"{found.unlabelled:,} {kind}"] * bool(found.unlabelled)
    counted += [f"{task}: {len(one.images):,} in {len(one.classes)} classes" for task, one in found.tasks.items()]
    size = found.model["image_size"]
    say(f"{name}: {'; '.join(counted)}")
    say(f"  images   {sides_in_words(found.shapes)}; the model sees {size} x {size}", hang=11)
    kinds = "colours" if found.values.colours else "values"
    of = "all" if len(found.values.of) == found.pairs else f"{len(found.values.of):,} of {found.pairs:,}"
    sampled = "" if found.sampled >= len(found.values.of) else f" in {found.sampled:,}"
    say(f"  masks    {kinds} in {of} masks; shares of pixels{sampled} as the model sees them:", hang=11)
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
        say(f"           and {len(rows) - SHOWN} more, in {study}", hang=11)
    say(*(f"  note     {line}" for line in (*found.notes, *more, *absent_report(config))), hang=11)
    print()
    left = unanswered(config, images_of(found))
    if sized or left:
        say(*sized)
        show_unanswered(left)
        print()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    say(f"Look at {sheet}: do masks lie on their images, are the names right?", f"Names and sizes: {study}")
    print("\nNext:")
    plan = [] if sized else [f"viny plan {study}"]  # else it is known what it takes
    for command in (
        *plan,
        f"snakemake --cores {cores} --configfile {study}",
        f"viny advise results/{name}",
    ):
        print(f"  {command}")


def sides_in_words(shapes: np.ndarray) -> str:
    """The sizes of images in words: '240 x 160 pixels', or, if they differ, '240 to 256 pixels wide, 160 to 256 high'.

    Args:
        shapes: heights and widths, int [N, 2], pixels.
    """
    least, most = shapes.min(0), shapes.max(0)
    if (least == most).all():
        return f"{least[1]} x {least[0]} pixels"
    high, wide = (f"{low} to {top}" if low < top else str(low) for low, top in zip(least, most, strict=True))
    return f"{wide} pixels wide, {high} high"


def ask(reply: Callable[[str], str], text: str, default: str, read: Callable[[str], T]) -> T:
    """Ask one question until its answer can be read; Enter takes the answer in brackets.

    Raises:
        InputError: there are no more answers.
    """
    while True:
        try:
            shown = f" [{default}]" if default else ""
            answer = reply(f"{wrapped(f'{text}{shown}:')} ").strip() or default
        except EOFError as error:
            raise InputError("no more answers") from error
        try:
            return read(answer)
        except InputError as error:
            say(f"  {error}")


def ask_folders(given: dict[str, Any], coco: bool, reply: Callable[[str], str]) -> None:
    """Ask for the folders that are not given, and add them."""
    if "images" not in given:
        given["images"] = ask(reply, "Folder of the images that have masks", _likely(IMAGES), _folder)
    if "masks" not in given and not coco:
        given["masks"] = ask(reply, "Folder of their masks", _likely(MASKS, given["images"].parent), _folder)
    if "unlabelled" not in given:
        text = "Folder of images without masks, to pre-train on; same: those with masks, less the test images; or none"
        near = _likely(UNLABELLED, given["images"].parent) or "none"
        given["unlabelled"] = ask(reply, text, near, _folder_same_or_none)
    if "tasks" not in given:
        text = (
            "Folder of another task to train on before the masks, with one sub-folder of images per class; usually none"
        )
        tasks: dict[str, Path] = {}
        while (path := ask(reply, text, "none", _folder_or_none)) is not None:
            tasks[_task_name(path)] = path
            given["tasks"] = tasks
            text = "A further folder of that kind"
        given["tasks"] = tasks


def ask_names(given: dict[str, Any], reply: Callable[[str], str]) -> Inspection:
    """Look at the folders, and ask for the name of each mask value that has none, and of those called 'void' or so.

    Args:
        given: fields of `Request`, whose names and ignored values are filled in with each answer.
        reply: asks a question and returns the answer.
    """
    told: dict[int | str, str] = dict(given.get("classes") or {})
    try:
        found = inspect(Request(**given))
        void = found.coding.void
    except UnnamedError as error:
        say(f"  {str(error).rpartition('; ')[0]}")
        found = inspect(Request(**given | {"classes": {}}))
        void = {value: name for value, name in told.items() if is_void(name)}
        if len(found.coding.classes.keys() - told.keys()) > SHOWN:
            raise
    coding, masks = found.coding, found.values.masks()
    shares = dict(zip(coding.names, found.looked.shares, strict=False))
    new = {value: name for value, name in coding.classes.items() if value not in told}
    asked = {value: (f"{percent(shares[name])} of pixels", name) for value, name in new.items()}
    for value, name in void.items():
        asked[value] = f"called '{name}', in {masks.get(value_number(value), 0):,} masks", "ignore"
    if not asked or len(new) > SHOWN:
        return found
    ignored = [value for value in coding.ignore if value not in asked]
    text = "Name of mask value {}, or ignore if its pixels have no class ({})"
    while True:
        named = {value: name for value, name in told.items() if value not in asked}
        for value, (about, default) in asked.items():
            named[value] = ask(reply, text.format(value, about), default, _class_name)
            kept = {value: name for value, name in named.items() if not is_void(name)}
            later = {value: name for value, name in void.items() if value not in named}
            given |= {"classes": kept | later, "ignore": [*ignored, *(value for value in named if value not in kept)]}
        if len(set(kept.values())) > 1:
            break
        say("  expected two classes or more besides ignored values; name them again")
    if (kept, {*given["ignore"]}) != (coding.classes, {*coding.ignore}):
        found = inspect(replace(found.wanted, classes=kept, ignore=given["ignore"]))
    return found


def ask_group(found: Inspection, reply: Callable[[str], str]) -> Inspection:
    """Ask whether images that belong together by their names are kept together; what is found if so, or if not."""
    sequences = found.wanted.sequences
    text = (
        f"{sequences.said[0].upper()}{sequences.said[1:]}. Keep each group together, all for training or all for the "
        "test (yes, no, folder or a regular expression)"
    )

    def grouped(answer: str) -> Inspection:
        group = {"yes": sequences.pattern, "y": sequences.pattern, "no": "", "n": "", "none": ""}.get(
            answer.lower(), answer
        )
        return found if group == found.wanted.group else inspect(replace(found.wanted, group=group))

    return ask(reply, text, "yes", grouped)


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


def _folder_same_or_none(text: str) -> Path | None:
    return Path(SAME) if text == SAME else _folder_or_none(text)


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
