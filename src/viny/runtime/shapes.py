"""What each kind of JSON file holds that others read: a file of somebody else's may hold anything at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import NoneType
from typing import Any

from viny.runtime.errors import InputError
from viny.runtime.text import Short

MAX_DEPTH = 32  # lists and mappings inside each other; a study's settings have up to 18
MAX_INTEGER = 2**64  # the largest of ours are times in nanoseconds

NUMBER = (int, float)
HASH = (str, NoneType)  # None for a random start
TEXT = (str, NoneType)  # None where it was not known
CELL = {"name": str, "pretrain_size": int, "intermediate": str, "finetune_size": int, "seed": int}
PROVENANCE = {
    "image_passes": int,
    "training_seconds": NUMBER,
    "threads": int,
    "stacked": NUMBER,
    "share_of_cores": (*NUMBER, NoneType),
    "packages": {"*": str},
    "earlier_attempts": list,
    **dict.fromkeys(("device_name", "device", "precision", "started", "ended"), str),
    **dict.fromkeys(("host", "code", "python", "processor", "study_sha256", "fingerprint"), TEXT),
}
TRAINED = {
    "stage": str,
    "spec": {
        "model": {"architecture": str, "*": int},
        "cell": CELL,
        "train": {"*": (*NUMBER, str, list)},
        "segmentation_loss": str,
        "class_token": bool,
        "normalise": bool,
    },
    "images": int,
    "parameters": int,
    "precision": str,
    "final_loss": NUMBER,
    "held_out_accuracy": (*NUMBER, NoneType),
    "held_out_loss": NUMBER,
    "held_out_images": int,
    "tuned": {"lr": NUMBER, "rates": {"*": NUMBER}, "tunings": [str]},
    "normalisation": {"mean": [NUMBER], "std": [NUMBER]},
    "mask_classes": [str],
    "parent_sha256": HASH,
    "source": str,
    **dict.fromkeys(("source_sha256", "weights_sha256", "pack_sha256", "split_sha256"), str),
}
METRICS = {"*": (*NUMBER, NoneType)}
EVALUATED = {
    **dict.fromkeys(("study", "protocol", "miou_is"), str),
    "cell": CELL,
    "metrics": METRICS,
    "classes": {"*": [str]},
    "test_images": int,
    "parameters": int,
    "note": TEXT,
    "hashes": {"*": HASH},
    "provenance": {"seconds": NUMBER, **dict.fromkeys(("code", "device", "precision"), TEXT)},
}
# By what `viny.runtime.files.read_json` is told that a file is; `*` is any other key. Which keys there must be, their
# readers know.
SHAPES: dict[str, dict[str, Any]] = {
    "a pack manifest": {"sha256": str, "source": str, "count": int, "resolution": int, "contents": TEXT},
    "a split record": {"pack_sha256": str, "parts": {"*": {"count": int, "sha256": str}}, "spec": dict},
    "a weights record": TRAINED,
    "the record of a fine-tuned model": TRAINED,
    "the provenance of a training": PROVENANCE,
    "the metrics of an evaluated cell": EVALUATED,
    "a reference": {
        **TRAINED,
        **EVALUATED,
        "spec": {"cell": CELL, "image_size": int, "switches": {"normalise_finetune": bool, "segmentation_loss": str}},
        "constant": {"class": str, "index": int, "metrics": METRICS},
    },
    "the geometry of an encoder": {"encoder": dict, "layers": [dict], "hashes": {"*": HASH}, "provenance": dict},
    "a tuning": {
        "stage": str,
        "spec": {"cell": CELL, "tune": {"lr": [NUMBER]}},
        "rates": [{"lr": NUMBER, "miou": (*NUMBER, NoneType), "diverged": bool}],
        "pack_sha256": str,
    },
    "the score of a rate": {"identity": str, "rate": dict},
    "a study's settings": {"config": dict, "sha256": str},
    "a training handed in": {
        "owner": dict,
        "spec": dict,
        "arguments": {"*": (str, *NUMBER, list, NoneType)},
        "waited": bool,
        "study": TEXT,
    },
    "a leader of trainings": {"owner": dict, "gpu": str, "full": bool},
    "the outcome of a training": {"kind": str, "why": str, "signal": int, "where": str, "errno": int, "file": TEXT},
    # Any of those above, of which no more than these keys are read.
    "a record": {
        "contents": TEXT,
        "hashes": {"*": HASH},
        "parts": {"*": {"count": int, "sha256": str}},
        "spec": dict,
        **dict.fromkeys(("sha256", "pack_sha256", "split_sha256", "parent_sha256", "weights_sha256"), HASH),
        "inputs": {"*": str},
    },
}
WORDS: dict[Any, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "a mapping",
    list: "a list",
    NoneType: "null",
}
_SHORT = Short()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 1, 60, 60, 40


class Record(dict[str, Any]):
    """A JSON object that says what it lacks.

    Args:
        about: the file and what it is not if a key is missing, for the message.
        pairs: its keys and values.
    """

    def __init__(self, about: str, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self._about = about

    def __missing__(self, key: str) -> Any:
        raise InputError(f"{self._about}: '{key}' is missing; delete it and rerun")

    def __reduce__(self) -> Any:
        return dict, (dict(self),)


def check_shape(value: Any, what: str) -> None:
    """Check that a JSON value has the shape of its kind; any value passes as a kind that has none.

    Args:
        value: as read.
        what: the kind, a key of `SHAPES`.

    Raises:
        InputError: names the key, what it holds and what was expected.
    """
    if what in SHAPES:
        _check(value, SHAPES[what], "")


def _check(value: Any, shape: Any, where: str) -> None:
    kinds = dict if isinstance(shape, Mapping) else list if isinstance(shape, list) else shape
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    # bool is an int in Python, but not a number of anything
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        expected = " or ".join(dict.fromkeys(WORDS[kind] for kind in kinds))
        raise InputError(f"'{where}' is {_SHORT.repr(value)}, expected {expected}" if where else f"expected {expected}")
    prefix = f"{where}." if where else ""
    if isinstance(shape, Mapping):
        for key, inner in shape.items():
            for name in value.keys() - shape.keys() if key == "*" else {key} & value.keys():
                _check(value[name], inner, f"{prefix}{_SHORT.repr(name)[1:-1]}")
    elif isinstance(shape, list):
        for at, item in enumerate(value):
            _check(item, shape[0], f"{prefix}{at}")


def check_plain(value: Any) -> None:
    """Refuse a JSON value that is nested absurdly deep, before anything walks through it.

    Raises:
        InputError: says so.
    """
    level = [value]
    for _ in range(MAX_DEPTH):
        inside = (item.values() if isinstance(item, dict) else item for item in level)
        level = [inner for items in inside if isinstance(items, type({}.values()) | list) for inner in items]
        level = [item for item in level if isinstance(item, dict | list)]
        if not level:
            return
    raise InputError(f"more than {MAX_DEPTH} lists and mappings inside each other")


def _refuse(text: str) -> Any:
    raise InputError(f"the number {_SHORT.repr(text)[1:-1]} is none that JSON has, or too large")


def _whole(text: str) -> int:
    return int(text) if len(text) <= 20 and abs(int(text)) <= MAX_INTEGER else _refuse(text)


def _real(text: str) -> float:
    return value if math.isfinite(value := float(text)) else _refuse(text)


# For `json.loads`: numbers that arithmetic can use.
NUMBERS: dict[str, Callable[[str], Any]] = {"parse_int": _whole, "parse_float": _real, "parse_constant": _refuse}
