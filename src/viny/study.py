"""The settings of a study, as they stand beside its results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from viny.errors import InputError
from viny.files import digest, read_json, write_json


def study_file(root: Path) -> Path:
    return root / "study.json"


def write_study(root: Path, config: Mapping[str, Any]) -> str:
    """Write a study's resolved settings beside its results.

    Args:
        root: the study's folder, results/<study>.
        config: as `viny.config.resolve` returns them.

    Returns:
        Hex sha256 of the settings in canonical JSON.
    """
    sha256 = digest(dict(config))
    write_json(study_file(root), {"config": dict(config), "sha256": sha256})
    return sha256


def read_study(root: Path) -> dict[str, Any]:
    """Read what `write_study` wrote.

    Raises:
        InputError: missing, not JSON, or not the settings that its hash says.
    """
    path = study_file(root)
    try:
        value = read_json(path, "a study's settings")
        config, expected = value["config"], value["sha256"]
        found = digest(config)
    except InputError:
        raise
    except Exception as error:  # JSON of any other shape, or a file that cannot be read
        raise InputError(
            f"{path}: expected a study's settings and their sha256, found something else "
            f"({type(error).__name__}: {error}); run the workflow, which writes it anew"
        ) from error
    if found != expected or not isinstance(config, dict):
        raise InputError(
            f"{path}: settings of sha256 {str(expected)[:12]} expected, found {found[:12]}; run the workflow, "
            "which writes it anew"
        )
    return config
