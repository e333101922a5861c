"""The settings of a study, as saved beside its results."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from viny.runtime.errors import InputError
from viny.runtime.files import digest, json_text, read_json, write_json
from viny.study.config import resolve


def study_file(root: Path) -> Path:
    return root / "study.json"


def write_study(root: Path, config: Mapping[str, Any]) -> str:
    """Write a study's resolved settings beside its results.

    Args:
        root: the study's folder, results/<study>.
        config: as `viny.study.config.resolve` returns them.

    Returns:
        Hex sha256 of the settings in canonical JSON.
    """
    sha256 = digest(dict(config))
    write_json(study_file(root), {"config": dict(config), "sha256": sha256})
    return sha256


def is_written(root: Path, config: Mapping[str, Any]) -> bool:
    """Whether a study's file holds these settings, as `write_study` writes them."""
    try:
        found = study_file(root).read_bytes()
    except OSError:
        return False
    return found == json_text({"config": dict(config), "sha256": digest(dict(config))}).encode()


def read_study(root: Path) -> dict[str, Any]:
    """Read what `write_study` wrote.

    Raises:
        InputError: missing, not JSON, or not the settings that its hash was made from.
    """
    path = study_file(root)
    if not path.is_file():
        if root.is_file():
            raise InputError(f"{root}: is a file; expected the folder of a study's results, such as results/demo")
        there = sorted(p.parent.name for p in root.parent.glob("*/study.json"))
        known = f"; in {root.parent} are {', '.join(there)}" if there else ""
        raise InputError(
            f"{path}: no such file; expected a study's settings, which its run writes once it has read the "
            f"images (if that has just begun, look again soon): "
            f"snakemake --cores all --configfile studies/<study>.yaml{known}"
        )
    try:
        value = read_json(path, "a study's settings")
        config, expected = value["config"], value["sha256"]
        found = digest(config)
    except InputError:
        raise
    except Exception as error:  # JSON of any other shape, or a file that cannot be read
        raise InputError(
            f"{path}: expected a study's settings and their sha256, found something else "
            f"({type(error).__name__}: {error}); run the workflow, which writes it again"
        ) from error
    if found != expected or not isinstance(config, dict):
        raise InputError(
            f"{path}: expected settings with sha256 {str(expected)[:12]}, found {found[:12]}; run the workflow, "
            "which writes it again"
        )
    return config


def saved_study(root: Path) -> dict[str, Any]:
    """A study's settings as its run wrote them, completed with today's defaults, since older studies have fewer keys.

    Raises:
        InputError: as `read_study`, or a setting that this version does not accept.
    """
    written = read_study(root)
    try:
        return resolve(written)
    except InputError as error:
        raise InputError(f"{study_file(root)}: {error}") from error


# A cluster job reads the study file again, perhaps after an edit; its driver's environment comes with it.


def export_settings(root: Path, config: Mapping[str, Any]) -> None:
    """Tell all processes that this one starts which settings they run under, and where these are written."""
    os.environ["VINY_STUDY_SHA256"] = digest(dict(config))
    os.environ["VINY_STUDY_ROOT"] = str(root.absolute())


def submitted_settings(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of the run that submitted this job, whatever has happened to the study file since.

    Args:
        config: what the study file says now, resolved.

    Raises:
        InputError: that run's settings are no longer anywhere.
    """
    wanted = os.environ.get("VINY_STUDY_SHA256", digest(config))
    if digest(config) == wanted:
        return config
    written = read_study(Path(os.environ.get("VINY_STUDY_ROOT", "")))
    if digest(written) != wanted:
        raise InputError("the study file was edited after this job was submitted; start snakemake again")
    return written
