"""Study files sized for a time on this machine: new ones, whose model is chosen too, and those that are there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from viny.runtime.errors import InputError
from viny.runtime.files import write_text
from viny.runtime.units import duration
from viny.study.changes import keys
from viny.study.checks import check_sizes
from viny.study.config import merge, resolve
from viny.study.inventory import Images, check_starts, count_images
from viny.study.reading import parse_config, read_config
from viny.study.saved import read_study, study_file
from viny.study.unanswered import Unanswered, unanswered
from viny.tools.forecast.rates import loaded
from viny.tools.newstudy.budgets import BUDGETS
from viny.tools.newstudy.edit import KeyPath, edited
from viny.tools.newstudy.look import Inspection, inspect, model_for
from viny.tools.newstudy.machine import Machine
from viny.tools.newstudy.resize import Fit, fitted, least_hours, resized, time_alone, too_short
from viny.tools.newstudy.study_file import about, cells_in_words, images_of, steps_in_words, study_text

MADE = re.compile(r"^# Made by viny init.*$", re.MULTILINE)


def for_minutes(
    found: Inspection, minutes: float, rate: float | None, study: Path
) -> tuple[Inspection, str, list[str]]:
    """A new study that takes about so many minutes, with the largest model that leaves time for answers.

    Args:
        found: what is in the folders.
        minutes: from start to end.
        rate: see `Machine`.
        study: the file that it will be.

    Returns:
        What was found, as the chosen model sees it; the text of the study; and lines on how long it takes.

    Raises:
        InputError: it is too short a time for any study.
    """
    images = images_of(found)
    machine = Machine(images, rate)
    models = {name: _with_model(found, name) for name in BUDGETS}
    texts = {name: study_text(one) for name, one in models.items()}
    raws = {name: parse_config(text) for name, text in texts.items()}
    measured: set[str] = set()
    while True:
        # By what such a machine does, or what was measured of another model, until the chosen one is measured.
        for name, raw in raws.items():
            fit = fitted(raw, images, machine.hours, minutes, answers=name != [*raws][-1])
            if fit is not None:
                break
        if name in measured:
            break
        machine.learn(resolve(raws[name]))
        measured.add(name)
    if fit is None:
        raise InputError(too_short(minutes, 60 * least_hours(raws[name], images, machine.hours)))
    text = _retold(edited(texts[name], fit.changes), texts[name], images, fit.changes)
    text = MADE.sub(f"# Made by viny init for {minutes:g} minutes; viny plan tells the hours.", text)
    chosen = models[name]
    if chosen.model != found.model:
        chosen = inspect(chosen.wanted)
    said = f"Sized for {minutes:g} minutes: about {duration(3600 * fit.hours)} by forecast"
    said += f"{loaded(fit.hours, machine.rates.share)}, with {BUDGETS[name].said}."
    return chosen, text, [said, *time_alone(parse_config(text), images, machine.hours, study)]


def _with_model(found: Inspection, budget: str) -> Inspection:
    """What was found, with another model."""
    wanted = replace(found.wanted, budget=budget)
    return replace(found, wanted=wanted, model=model_for(wanted, found.shapes))


@dataclass(frozen=True)
class Resized:
    """A study file with other sizes.

    Attributes:
        text: of the file.
        changed: by path, the value before and after; the one before is the default where the file has none.
        before, hours: what the study took and takes, by forecast.
        unanswered: the questions that it leaves open.
        time_alone: a line on those that only take time, if there are any.
        begun: the folder of what the study has run already; None if it has not.
    """

    text: str
    changed: dict[KeyPath, tuple[Any, Any]]
    before: float
    hours: float
    unanswered: list[Unanswered]
    time_alone: list[str]
    begun: Path | None


def file_of(study: Path) -> Path:
    """A study file as it is, or that of the study whose folder of results is given: config.yaml, or one in studies/.

    Raises:
        InputError: none of them, or several, have the study's name.
    """
    if not study.is_dir():
        return study
    name = read_study(study)["study"]
    found = [path for path in (Path("config.yaml"), *sorted(Path("studies").glob("*.yaml"))) if _name_in(path) == name]
    if len(found) != 1:
        said = " and ".join(map(str, found)) or "no file"
        raise InputError(
            f"{study}: {said} of config.yaml and studies/*.yaml says 'study: {name}'; name the file itself"
        )
    return found[0]


def _name_in(path: Path) -> str | None:
    try:
        return resolve(read_config(path))["study"]
    except (InputError, OSError):
        return None


def resize_file(
    path: Path, minutes: float | None, change: Mapping[str, Any], rate: float | None, results: Path
) -> Resized:
    """The text of a study file with sizes for another time, or with a change.

    Args:
        path: of the study file, which stays as it is.
        minutes: from start to end, with nothing of the study done yet; None for the change.
        change: settings as a study file has them.
        rate: see `Machine`.
        results: folder of all results.

    Raises:
        InputError: the file is at fault, cannot be edited, or no sizes fit.
    """
    raw = read_config(path)
    config, text = resolve(raw), _read(path)
    root = results / config["study"]
    images = count_images(config, root)
    asked = resolve(merge(raw, change))
    check_sizes(asked, images.limits)
    check_starts(asked, root)
    machine = Machine(images, rate, results)
    machine.learn(config)
    if minutes is not None:
        before, fit = resized(raw, images, machine.hours, minutes)
    else:
        machine.learn(asked)
        values = {tuple(key.split(".")): value for key, value in keys(change).items()}
        fit = Fit({key: value for key, value in values.items() if value != _at(config, key)}, machine.hours(asked))
        before = machine.hours(config)
    try:
        new = _retold(edited(text, fit.changes), text, images, fit.changes)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if fit.changes and minutes is not None:
        new = MADE.sub(f"# Made by viny init, resized for {minutes:g} minutes; viny plan tells the hours.", new)
    after = resolve(parse_config(new))
    check_sizes(after, images.limits)
    changed = {key: (_at(config, key), value) for key, value in fit.changes.items()}
    begun = root if study_file(root).exists() else None
    more = time_alone(parse_config(new), images, machine.hours, path)
    return Resized(new, changed, before, fit.hours, unanswered(after, images), more, begun)


def keep_and_write(path: Path, text: str) -> Path:
    """Write a study file; what it held before is kept beside it, in a file that was not there."""
    n, kept = 1, path.with_name(f"{path.name}.bak")
    while kept.exists():
        n, kept = n + 1, path.with_name(f"{path.name}.bak{n + 1}")
    kept.write_bytes(path.read_bytes())
    old = path.read_bytes()
    if b"\r\n" in old:
        text = text.replace("\n", "\r\n")
    write_text(path, "\ufeff" * old.startswith(b"\xef\xbb\xbf") + text)
    return kept


def _read(path: Path) -> str:
    return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")


def _at(config: Any, path: KeyPath) -> Any:
    """A value by its path; None where a study has no such key, as it may not have a task or a variant."""
    for key in path:
        config = config.get(key) if isinstance(config, Mapping) else None
    return config


def _retold(text: str, old: str, images: Images, changes: Mapping[KeyPath, Any]) -> str:
    """A study's text with the comments of `viny init` that say what its sizes come to; others stay as they are."""
    if not changes:
        return text
    before, after = (resolve(parse_config(one)) for one in (old, text))
    text = text.replace("\n".join(about(before, images)), "\n".join(about(after, images)), 1)
    axes = ("pretrain_sizes", "intermediates", "finetune_sizes", "seeds")
    was, now = (cells_in_words([len(config["grid"][axis]) for axis in axes]) for config in (before, after))
    text = text.replace(f"grid: # {was}", f"grid: # {now}", 1)
    trained = {("pretrain",): "pretrain_sizes", ("finetune",): "finetune_sizes"}
    trained |= {("intermediate", task): "" for task in after["intermediate"]}
    for path, axis in trained.items():
        was, now = (
            steps_in_words(_at(config, path), max(config["grid"][axis]) if axis else images.trained[path[-1]] or 0)
            for config in (before, after)
        )
        epochs = f"epochs: {_at(after, path)['epochs']} # "
        text = text.replace(f"{epochs}{was}", f"{epochs}{now}", 1)
    return text
