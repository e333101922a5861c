"""The record of a job that summarises a study."""

from __future__ import annotations

import json
from pathlib import Path

from viny.evidence.summary import Summary
from viny.runtime.files import digest, file_sha256, json_text


def test_a_record_says_what_was_asked_read_and_written(tmp_path: Path) -> None:
    root, other = tmp_path / "study", tmp_path / "other" / "metrics.json"
    for path in (root / "metrics" / "a.json", other):
        path.parent.mkdir(parents=True)
        path.write_text(path.parent.name)
    spec = {"grid": {"seeds": [0]}, "code": "abc"}
    summary = Summary("tables", spec, root)
    summary.reads(root / "metrics" / "a.json", other, root / "missing.json")
    before = file_sha256(other)
    other.write_text("changed while the job ran")
    made = root / "tables" / "metrics.csv"
    made.parent.mkdir()
    made.write_text("x")
    summary.write(root / "summaries" / "tables.json", [made], threads=2)
    text = (root / "summaries" / "tables.json").read_text()
    value = json.loads(text)
    assert text == json_text(value)
    assert (value["stage"], value["spec"]) == ("tables", spec)
    assert value["inputs"] == {
        "metrics/a.json": file_sha256(root / "metrics" / "a.json"),
        "../other/metrics.json": before,
    }
    assert value["outputs"] == {"tables/metrics.csv": file_sha256(made)}
    about = value["provenance"]
    assert (about["threads"], about["fingerprint"], about["hashes"]) == (2, "abc", {"spec": digest(spec)})
    assert value.pop("sha256") == digest(value)
