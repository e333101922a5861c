"""What the jobs of a study leave behind, written by hand: records that fit each other, without images and weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from viny.learning.rates import content_sha256
from viny.runtime.files import digest, file_sha256, seal_of
from viny.study.graph import TRAININGS, TRAINS, Job
from viny.study.specs import source_of
from viny.tools.status.state import Watcher


def finish(root: Path, *stages: str) -> None:
    """Leave what the jobs of these stages, or of all, leave: each record names what it was made from."""
    packs = [root / one.record for one in Watcher(root).jobs if one.stage == "pack"]
    for manifest in packs if not stages or "pack" in stages else ():
        manifest.parent.mkdir(parents=True, exist_ok=True)
        manifest.touch()  # what is packed is compared with its files
    watcher = Watcher(root)
    by_key = {one.key: one for one in watcher.jobs}
    for one in watcher.jobs:
        if stages and one.stage not in stages:
            continue
        for output in one.outputs:
            (root / output).parent.mkdir(parents=True, exist_ok=True)
            (root / output).touch()
        read = {key: records_of(root, by_key[key]) for key in one.needs}
        pack = next((of.get("sha256") for key, of in read.items() if key[0] == "pack"), None)
        made = (*TRAININGS, "start")
        parent = next((read[key].get("weights_sha256") for key in reversed(one.needs) if key[0] in made), None)
        if one.stage == "pack":
            record: dict[str, Any] = {"name": one.name, "contents": one.spec.get("listing")}
            record["sha256"] = seal_of(record)
        elif one.stage == "start":
            record = {"weights_sha256": f"weights {one.label}", "source_sha256": None}
            if (source := source_of(one.spec)) is not None:
                record["source_sha256"] = file_sha256(source)
        elif one.stage in TRAINS:
            record = {"pack_sha256": pack, "parent_sha256": parent, "weights_sha256": f"weights {one.label}"}
            if one.stage == "tune":
                record["rates"] = [{"lr": lr, "miou": lr} for lr in one.spec["tune"]["lr"]]
            if tunings := [of for key, of in read.items() if key[0] == "tune"]:
                record["tuned"] = {"tunings": list(map(content_sha256, tunings))}
        elif one.stage in ("evaluate", "geometry"):
            asked = {"spec": digest(dict(one.spec)), "pack": pack, "weights": parent}
            record = {"hashes": asked, "provenance": {}}
        else:
            record = {"pack_sha256": pack, "inputs": {}}
        if one.stage not in ("pack", "evaluate", "geometry"):
            record["spec"] = one.spec
        leave(root / one.record, record)


def records_of(root: Path, one: Job) -> dict[str, Any]:
    path = root / one.record
    return json.loads(path.read_text()) if path.is_file() and path.stat().st_size else {}


def leave(path: Path, record: dict[str, Any]) -> None:
    """A record, and beside that of a training the header of weights that hold it."""
    path.write_text(json.dumps(record), encoding="utf-8")
    weights = path.with_suffix(".safetensors")
    if weights.exists():
        inner = {key: value for key, value in record.items() if key != "weights_sha256"}
        header = json.dumps({"__metadata__": {"viny": json.dumps(inner)}}).encode()
        weights.write_bytes(len(header).to_bytes(8, "little") + header)


def change(path: Path, **values: Any) -> None:
    """Rewrite a record as another job would have written it."""
    record = {**json.loads(path.read_text(encoding="utf-8")), **values}
    leave(path, {**record, "sha256": seal_of(record)} if "sha256" in record else record)
