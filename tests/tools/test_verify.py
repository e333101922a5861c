"""Verification: an intact study has no findings, and each kind of damage has the one that names it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("jsonschema")

from finished_study import TINY, finished_study, own_images

from viny.cli import main
from viny.learning.model import ViNy
from viny.learning.progress import PROGRESS
from viny.learning.settings import ModelSettings
from viny.runtime.claims import Claim
from viny.runtime.differences import differences
from viny.runtime.files import digest, write_json, write_sealed
from viny.runtime.processes import Owner
from viny.study import layout
from viny.study.config import merge, resolve
from viny.study.graph import jobs
from viny.study.inventory import count_images
from viny.study.reading import read_config
from viny.study.saved import saved_study
from viny.tools.verify.report import Report
from viny.tools.verify.verifier import verify_study

GRID = {"pretrain_sizes": [24], "intermediates": ["none", "scenes"], "finetune_sizes": [8], "seeds": [0]}
PLAIN, ADAPTED = "pre-24_mid-none_fine-8_seed-0", "pre-24_mid-scenes_fine-8_seed-0"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study; not to be changed."""
    return finished_study(tmp_path_factory.mktemp("whole"), {"grid": GRID})


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, with its packs, to damage."""
    shutil.copytree(whole.parents[1], tmp_path / "work", symlinks=True)
    return tmp_path / "work" / "results" / "tiny"


def change(path: Path, **values: Any) -> None:
    """Replace keys of a JSON file, given as section__key or key, and seal it again, as another run would."""
    whole = json.loads(path.read_text(encoding="utf-8"))
    for name, value in values.items():
        *sections, key = name.split("__")
        place = whole
        for section in sections:
            place = place[section]
        assert key in place
        place[key] = value
    if "sha256" in values or path.name == "study.json":
        write_json(path, whole)
    else:
        write_sealed(path, whole)


def flip(path: Path) -> None:
    """Change the last byte of a file."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def lines(report: Report) -> list[str]:
    return [str(finding) for finding in report.findings]


# An untouched study


def test_a_whole_study_has_no_findings(whole: Path) -> None:
    report = verify_study(whole)
    assert lines(report) == []
    assert report.sound
    present = [path for path in whole.rglob("*") if path.is_file() and not path.is_symlink()]
    stored = [path for path in (whole.parents[1] / "packs").glob("*/*") if path.is_file()]
    assert report.files == len(present) + len(stored)  # each once
    assert report.bytes == sum(path.stat().st_size for path in [*present, *stored])


def test_each_file_is_hashed_once(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    hashed: list[str] = []
    original = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda f, kind: hashed.append(f.name) or original(f, kind))
    assert verify_study(whole).sound
    assert len(hashed) == len(set(hashed))
    kinds = {name.rpartition(".")[2] for name in hashed}
    assert kinds == {"safetensors", "json", "csv", "npz", "md", "pdf", "png", "html"}


def test_nothing_is_written(whole: Path) -> None:
    before = {path: os.lstat(path).st_mtime_ns for path in whole.parents[1].rglob("*")}
    verify_study(whole)
    assert {path: os.lstat(path).st_mtime_ns for path in whole.parents[1].rglob("*")} == before


# A study with arms

ARMS_GRID = {**GRID, "intermediates": ["none", "scenes"], "seeds": [0, 1], "variants": ["study", "tuned", "chained"]}
TUNED = "pre-24_mid-none_fine-8_seed-0_start-own_variant-tuned"


@pytest.fixture(scope="module")
def whole_with_arms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of published weights, pre-trained on and fine-tuned at a tuned rate; not to be changed."""
    folder = tmp_path_factory.mktemp("arms")
    model = resolve(read_config(TINY))["model"]
    torch.save(ViNy(ModelSettings(**model)).state_dict(), folder / "own.pth")
    grid_of = {**ARMS_GRID, "starts": ["own", "random"]}
    return finished_study(
        folder,
        {
            "grid": grid_of,
            "starts": {"own": {"file": str(folder / "own.pth"), "grid": {"intermediates": ["none"]}}},
            "variants": {
                "tuned": {"tune": {"lr": [0.001, 0.01], "share": 0.5}, "grid": {"starts": ["own"]}},
                "chained": {
                    "intermediate": {"scenes": {"after": "spatial"}},
                    "grid": {"starts": ["random"], "intermediates": ["scenes"]},
                },
            },
            "pretrain": {"held_out": 4},
            "intermediate": {
                "spatial": {
                    **{"source": "synthetic", "target": "patch", "mixup": 0.0, "images": 10},
                    **{"epochs": 1, "batch_size": 8, "milestones": []},
                }
            },
        },
    )


@pytest.fixture
def arms_root(whole_with_arms: Path, tmp_path: Path) -> Path:
    """A copy of it to damage, which reads the same file of weights."""
    shutil.copytree(whole_with_arms.parents[1], tmp_path / "work", symlinks=True)
    return tmp_path / "work" / "results" / "tiny"


def test_a_whole_study_with_arms_has_no_findings(whole_with_arms: Path) -> None:
    assert lines(verify_study(whole_with_arms)) == []
    assert (whole_with_arms / "tuning" / f"{TUNED}.json").is_file()


def test_without_settings_shared_trainings_are_not_missed(arms_root: Path) -> None:
    """The tuned cells have no encoder of their own."""
    (arms_root / "study.json").unlink()
    assert [found.file for found in verify_study(arms_root).findings] == ["study.json"]
    # Nor if no summary says what is shared; what the tasks in a chain begin with is not known then.
    shutil.rmtree(arms_root / "summaries")
    of_cells = [found for found in verify_study(arms_root).findings if not found.file.startswith("summaries")]
    assert {found.file for found in of_cells if "chained" not in found.file and found.severity != "note"} == {
        "study.json"
    }


def swap_rates(root: Path) -> None:
    """Have the other rate score best, in sealed records."""
    for path in (root / "tuning").glob("pre-24_mid-none_*.json"):
        record = json.loads(path.read_text())
        for rate, miou in zip(record["rates"], (0.9, 0.1) if chosen(root) == 0.01 else (0.1, 0.9), strict=True):
            rate["miou"] = miou
        write_sealed(path, record)


def chosen(root: Path) -> float:
    return json.loads((root / "finetune" / TUNED / "model.json").read_text())["tuned"]["lr"]


def other_source(root: Path) -> None:
    path = root / "starts" / "own" / "encoder.json"
    change(path, source_sha256=json.loads(path.read_text())["source_sha256"][::-1])


@pytest.mark.parametrize(
    ("damage", "file", "words"),
    [
        (lambda root: flip(root / "starts" / "own" / "encoder.safetensors"), "starts/own/encoder.safetensors", ""),
        (lambda root: (root / "starts/own/encoder.safetensors").unlink(), "starts/own/encoder.safetensors", ""),
        (lambda root: shutil.rmtree(root / "starts"), "starts/own", "expected published weights"),
        (other_source, "starts/own/encoder.json", "weights in"),
        (lambda root: (root / f"tuning/{TUNED}.json").unlink(), f"tuning/{TUNED}.json", "scores of a cell's rates"),
        (
            lambda root: change(root / f"tuning/{TUNED}.json", parent_sha256="0" * 64),
            f"tuning/{TUNED}.json",
            "parent weights, of pretrain/size-24_seed-0_start-own",
        ),
        (swap_rates, f"finetune/{TUNED}/model.json", "tuned.lr"),
        (
            lambda root: change(root / "pretrain/size-24_seed-0_start-own/encoder.json", parent_sha256="0" * 64),
            "pretrain/size-24_seed-0_start-own/encoder.json",
            "parent weights, of starts/own",
        ),
        (
            lambda root: change(
                root / "intermediate/scenes/size-24_seed-0_variant-chained/encoder.json", parent_sha256="0" * 64
            ),
            "intermediate/scenes/size-24_seed-0_variant-chained/encoder.json",
            "parent weights, of intermediate/spatial/size-24_seed-0",
        ),
    ],
)
def test_damage_in_arms_is_named(arms_root: Path, damage: Callable[[Path], Any], file: str, words: str) -> None:
    damage(arms_root)
    report = verify_study(arms_root)
    assert not report.sound
    said = [finding.message for finding in report.findings if finding.file == file]
    assert said and words in said[0], lines(report)


def test_weights_that_a_start_was_read_from_may_be_gone(arms_root: Path) -> None:
    path = arms_root / "starts" / "own" / "encoder.json"
    record = json.loads(path.read_text())
    settings = saved_study(arms_root)
    settings["starts"]["own"]["file"] = "gone.pth"
    change(path, spec={**record["spec"], "file": "gone.pth"})
    found = [one for one in verify_study(arms_root, settings).findings if one.file == "starts/own/encoder.json"]
    assert [one.severity for one in found if "gone.pth, is not there" in one.message] == ["note"]


# Damage, one at a time


def array(name: str) -> Callable[[Path], None]:
    return lambda root: flip((root / "packs" / "segmentation" / "images.npy").resolve().with_name(f"{name}.npy"))


def swap_confusion(root: Path) -> None:
    with np.load(root / "metrics" / f"{PLAIN}.npz") as f:
        confusion, indices = f["confusion"], f["indices"]
    confusion[0, 0, 0] += 1
    np.savez(root / "metrics" / f"{PLAIN}.npz", confusion=confusion, indices=indices)


def other_test_images(root: Path) -> None:
    with np.load(root / "metrics" / f"{PLAIN}.npz") as f:
        np.savez(root / "metrics" / f"{PLAIN}.npz", confusion=f["confusion"], indices=f["indices"][::-1])


def other_indices(root: Path) -> None:
    path = root / "splits" / "finetune" / "size-8_seed-0.npz"
    with np.load(path) as f:
        np.savez(path, train=f["train"][::-1], test=f["test"])


def rewrite(name: str, before: str, after: str) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        path = root / name
        text = path.read_text()
        assert before in text
        path.write_text(text.replace(before, after, 1))

    return damage


def cut_curve(root: Path) -> None:
    path = root / "finetune" / PLAIN / "curve.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def no_number_in_curve(root: Path) -> None:
    path = root / "pretrain" / "size-24_seed-0" / "curve.csv"
    path.write_text(re.sub(r"^1,[^,]+,", "1,nan,", path.read_text(), flags=re.MULTILINE))


def foreign_weights(root: Path) -> None:
    """Weights and record of another cell, which fit each other."""
    for name in ("model.safetensors", "model.json", "run.json"):
        shutil.copy(root / "finetune" / ADAPTED / name, root / "finetune" / PLAIN / name)


def retrained_parent(root: Path) -> None:
    """A parent that was retrained, to other weights, after its children."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    path = root / "pretrain" / "size-24_seed-0" / "encoder.safetensors"
    with safe_open(path, framework="np") as f:
        metadata, tensors = f.metadata(), {key: f.get_tensor(key) + 1 for key in f.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata=metadata)
    import hashlib

    change(path.with_suffix(".json"), weights_sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    change(path.parent / "run.json", hashes__weights=hashlib.sha256(path.read_bytes()).hexdigest())


def edit(name: str, **values: Any) -> Callable[[Path], None]:
    return lambda root: change(root / name, **values)


def remove(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


def write(name: str, data: bytes) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        assert (root / name).exists()
        (root / name).write_bytes(data)

    return damage


MODEL, METRICS, SPLIT = f"finetune/{PLAIN}/model.json", f"metrics/{PLAIN}.json", "splits/finetune/size-8_seed-0.json"
PRETRAINED = "pretrain/size-24_seed-0/encoder"
SHA = "0" * 64


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (array("images"), r"wrong: \S*packs/synthetic-\S*/images\.npy: row 29, of image synthetic 29, is damaged"),
        (array("masks"), r"wrong: \S*packs/synthetic-\S*/masks\.npy: row 29"),
        (array("shapes"), r"wrong: \S*packs/synthetic-\S*/shapes\.npy: content differs"),
        (
            edit("packs/scenes/manifest.json", count=31),
            r"wrong: packs/scenes/manifest\.json: count: expected 30, found 31",
        ),
        (
            edit("packs/scenes/manifest.json", sha256=SHA),
            r"wrong: packs/scenes/manifest\.json: changed since it was written",
        ),
        (remove("packs/scenes/manifest.json"), r"missing: packs/scenes/manifest\.json: expected a pack manifest"),
        (other_indices, r"wrong: splits/finetune/size-8_seed-0\.npz: sha256, by size-8_seed-0\.json"),
        (remove(SPLIT.replace("json", "npz")), r"missing: splits/finetune/size-8_seed-0\.npz: expected index lists"),
        (edit(SPLIT, pack_sha256=SHA), r"wrong: splits/finetune/size-8_seed-0\.json: pack: expected"),
        (edit(SPLIT, spec__test_size=11), r"wrong: .*size-8_seed-0\.json: spec\.test_size: expected 10, found 11"),
        (edit(SPLIT, parts__test__count=9), r"wrong: .*size-8_seed-0\.json: parts\.test\.count: expected 10, found 9"),
        (lambda root: flip(root / f"{PRETRAINED}.safetensors"), r"wrong: pretrain/.*/encoder\.safetensors: sha256, by"),
        (remove(f"{PRETRAINED}.safetensors"), r"missing: pretrain/.*/encoder\.safetensors: expected the weights"),
        (
            edit(MODEL, weights_sha256=SHA),
            r"wrong: finetune/.*/model\.safetensors: sha256, by model\.json: expected 0000",
        ),
        (edit(MODEL, pack_sha256=SHA), r"wrong: finetune/.*/model\.json: pack 'segmentation': expected"),
        (edit(MODEL, split_sha256=SHA), r"wrong: finetune/.*/model\.json: split finetune/size-8_seed-0: expected"),
        (
            edit(MODEL, parent_sha256=None),
            r"wrong: finetune/.*/model\.json: parent weights, of pretrain/size-24_seed-0: expected",
        ),
        (edit(MODEL, spec__train__lr=0.5), r"wrong: .*/model\.json: spec\.train\.lr: expected 0\.002, found 0\.5"),
        (edit(MODEL, spec__cell__seed=1), r"wrong: .*/model\.json: spec\.cell\.seed: expected 0, found 1"),
        (
            edit(MODEL, parameters=7),
            r"wrong: .*/model\.json: parameters: expected 8500, found 7; as model\.safetensors",
        ),
        (foreign_weights, rf"wrong: finetune/{PLAIN}/model\.json: spec\.cell\.intermediate: expected 'none'"),
        (
            retrained_parent,
            r"wrong: intermediate/.*/encoder\.json: parent weights, of pretrain/size-24_seed-0: expected",
        ),
        (retrained_parent, rf"wrong: metrics/{PLAIN}\.json: parent weights, of pretrain/size-24_seed-0: expected"),
        (cut_curve, r"wrong: finetune/.*/curve\.csv: expected a row for each of 3 epochs, found 2"),
        (no_number_in_curve, r"wrong: pretrain/.*/curve\.csv: loss of epoch 1: expected a number, found nan"),
        (rewrite(f"finetune/{PLAIN}/curve.csv", "\n3,", "\n3,1"), r"wrong: .*curve\.csv: expected the last loss to be"),
        (edit(f"finetune/{PLAIN}/run.json", hashes__spec=SHA), r"wrong: .*/run\.json: hashes\.spec: expected"),
        (remove(f"finetune/{PLAIN}/run.json"), r"missing: finetune/.*/run\.json: expected the job's provenance"),
        (edit(METRICS, hashes__weights=SHA), r"wrong: metrics/.*json: weights of the model, of finetune/.*: expected"),
        (
            edit(METRICS, hashes__parent_weights=SHA),
            r"wrong: metrics/.*json: parent weights, of pretrain/size-24_seed-0: exp",
        ),
        (edit(METRICS, hashes__pack=SHA), r"wrong: metrics/.*json: pack 'segmentation': expected"),
        (edit(METRICS, hashes__split=SHA), r"wrong: metrics/.*json: split finetune/size-8_seed-0: expected"),
        (edit(METRICS, hashes__spec=SHA), r"wrong: metrics/.*json: spec: expected"),
        (edit(METRICS, metrics__miou=0.5), r"wrong: metrics/.*json: metrics\.miou: expected .*, found 0\.5; as pre-24"),
        (
            edit(METRICS, classes__not_in_training=["ridge"]),
            r"wrong: metrics/.*json: classes\.not_in_training: expected \[\], found \['ridge'\]",
        ),
        (edit(METRICS, metrics__iou_object=1.5), r"wrong: metrics/.*json: metric 'iou_object' is 1\.5"),
        (edit(METRICS, note="else"), r"wrong: metrics/.*json: note: expected 'Test study\.', found 'else'"),
        (edit(METRICS, switches__test_set="moving"), r"wrong: metrics/.*json: switches\.test_set: expected 'fixed'"),
        (edit(METRICS, train__epochs=9), r"wrong: metrics/.*json: train\.epochs: expected 3, found 9"),
        (swap_confusion, r"wrong: metrics/.*npz: sha256, by pre-24_mid-none_fine-8_seed-0\.json: expected"),
        (other_test_images, r"wrong: metrics/.*npz: sha256, by "),
        (write(METRICS.replace("json", "npz"), b"PK"), r"wrong: metrics/.*npz: sha256, by "),
        (remove(METRICS), r"missing: metrics/.*json: expected the metrics"),
        (rewrite("tables/metrics.csv", "tiny,sound", "tiny,paper"), r"wrong: tables/metrics\.csv: sha256, by tables"),
        (rewrite("tables/effects.md", "Percent", "percent"), r"wrong: tables/effects\.md: sha256, by statistics\.json"),
        (rewrite("report.html", "pre-training", "Pre-training"), r"wrong: report\.html: sha256, by report\.json: exp"),
        (remove("tables/summary.csv"), r"missing: tables/summary\.csv: expected what rule tables makes"),
        (
            edit("summaries/tables.json", spec__grid__seeds=[1]),
            r"wrong: summaries/tables\.json: spec\.grid\.seeds: exp",
        ),
        (
            edit("summaries/tables.json", inputs={METRICS: SHA}),
            rf"wrong: summaries/tables\.json: was made from another {METRICS}",
        ),
        (edit("summaries/tables.json", stage="figures"), r"wrong: summaries/tables\.json: stage: expected 'tables'"),
        (edit("study.json", config__split_seed=7), r"wrong: study\.json: expected settings with sha256"),
        (remove("study.json"), r"missing: study\.json: expected the study's settings"),
        *(
            (write(name, data), rf"wrong: {re.escape(name)}: ")
            for name in ("packs/scenes/manifest.json", SPLIT, MODEL, METRICS, "study.json", f"{PRETRAINED}.json")
            for data in (b"", b"[]", b'{"a": 1}', b"\xff\xfe", b"[" * 100_000)
        ),
    ],
)
def test_damage_is_named(root: Path, damage: Callable[[Path], None], expected: str) -> None:
    damage(root)
    report = verify_study(root)
    assert [line for line in lines(report) if re.match(expected, line)], lines(report)
    assert not report.sound
    assert all("\n" not in line for line in lines(report))


def test_a_damaged_parent_is_one_finding_and_its_children_none(root: Path) -> None:
    flip(root / f"{PRETRAINED}.safetensors")
    (found,) = lines(verify_study(root))
    assert found.startswith(f"wrong: {PRETRAINED}.safetensors: sha256, by encoder.json: expected ")
    assert found.endswith("; delete pretrain/size-24_seed-0/ and rerun the workflow")
    # So it is if the record cannot be read: what says how the training came about has the hash as well.
    (root / f"{PRETRAINED}.json").write_text("{}")
    first, second = lines(verify_study(root))
    assert first.startswith(f"wrong: {PRETRAINED}.json: ")
    assert second.startswith(f"wrong: {PRETRAINED}.safetensors: sha256, by run.json: expected ")


def test_a_study_of_before_there_were_seals_is_sound_and_says_so_once(root: Path) -> None:
    shutil.rmtree(root / "summaries")
    for path in root.rglob("*.json"):
        value = json.loads(path.read_text())
        if path.name not in ("manifest.json", "study.json"):
            write_json(path, {key: said for key, said in value.items() if key not in ("sha256", "outputs")})
    (found,) = lines(verify_study(root))
    assert found.startswith("note: splits/")
    assert "and 15 more are from a version that did not seal its records" in found
    # What the files say of each other is compared as before.
    write(f"metrics/{PLAIN}.npz", b"PK")(root)
    (root / "tables" / "effects.csv").unlink()
    assert {f.file for f in verify_study(root).findings} >= {f"metrics/{PLAIN}.npz", "tables/effects.csv"}


def test_hashes_need_no_settings(root: Path) -> None:
    (root / "study.json").unlink()
    flip(root / f"{MEASURED}.npz")
    flip(root / "figures" / "returns.png")
    assert {f.file for f in verify_study(root).findings} == {"study.json", f"{MEASURED}.npz", "figures/returns.png"}


def test_a_file_that_changed_since_it_was_packed_is_named(tmp_path: Path) -> None:
    root = finished_study(tmp_path, {"grid": {**GRID, "intermediates": ["none"]}, **own_images(tmp_path)})
    assert lines(verify_study(root)) == []
    before = {path: os.lstat(path).st_mtime_ns for path in tmp_path.rglob("*")}
    image = tmp_path / "images" / "03.png"
    about = image.stat()
    flip(image)
    os.utime(image, ns=(about.st_atime_ns, about.st_mtime_ns))  # as a bit that rots leaves it
    (found,) = lines(verify_study(root))
    assert found.startswith("wrong: packs/pretrain/manifest.json: made from other files of ")
    assert "1 changed (03.png); rerun the workflow" in found
    assert {path: os.lstat(path).st_mtime_ns for path in tmp_path.rglob("*")} == before
    shutil.rmtree(tmp_path / "images")
    (found,) = lines(verify_study(root))
    assert found.startswith("note: packs/pretrain/manifest.json: what it was made from is not in ")


def test_every_file_that_verify_could_miss_is_made_again_by_a_run(whole: Path) -> None:
    config = saved_study(whole)
    asked = {path for job in jobs(config, count_images(config, whole)) if job.target for path in job.outputs}
    present = {path.relative_to(whole) for path in whole.rglob("*") if path.is_file()}
    assert asked == {path for path in present if path.parts[0] not in ("packs", "study.json")}


def test_a_study_that_has_only_begun_is_a_line_a_job(root: Path) -> None:
    for name in ("finetune", "metrics", "geometry", "tables", "figures", "summaries"):
        shutil.rmtree(root / name)
    (root / "report.html").unlink()
    found = verify_study(root)
    assert {f.severity for f in found.findings} == {"missing"}
    assert len(found.findings) == 2 + 2 + 3 + len(layout.SUMMARIES)  # trainings, metrics, geometry, summaries
    assert all("run the workflow" in f.message for f in found.findings)


def test_a_missing_cell_is_one_line_a_job(root: Path) -> None:
    shutil.rmtree(root / "finetune" / PLAIN)
    for suffix in ("json", "npz"):
        (root / "metrics" / f"{PLAIN}.{suffix}").unlink()
    found = lines(verify_study(root))
    assert [line.split(": expected")[0] for line in found if not line.startswith("note")] == [
        f"missing: finetune/{PLAIN}",
        f"missing: metrics/{PLAIN}.json",
    ]


def test_what_does_not_belong_is_a_note(root: Path) -> None:
    other = "pre-0_mid-none_fine-8_seed-9"
    shutil.copytree(root / "finetune" / PLAIN, root / "finetune" / other)
    shutil.copy(root / METRICS, root / "metrics" / f"{other}.json")
    checkpoint = root / "checkpoints" / "finetune" / PLAIN / "state.safetensors"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"x")
    (root / "tables" / ".metrics.csv.ab12.tmp.csv").write_text("half")
    for name in ("logs", "benchmarks"):
        (root / name).mkdir()
    for name in ("figures", "logs", "benchmarks"):
        (root / name / "any").write_text("")
    report = verify_study(root)
    assert report.sound
    assert [(f.severity, f.file) for f in report.findings] == [
        ("note", f"checkpoints/finetune/{PLAIN}/state.safetensors"),
        ("note", "figures/any"),
        ("note", f"finetune/{other}"),
        ("note", f"metrics/{other}.json"),
        ("note", "tables/.metrics.csv.ab12.tmp.csv"),
    ]
    assert "a job was interrupted; the next run goes on from it" in lines(report)[0]


def test_what_a_run_is_at_is_not_judged(root: Path) -> None:
    checkpoint = root / "checkpoints" / "finetune" / PLAIN / "state.safetensors"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"x")
    claim = Claim(root / ".claim")
    assert claim.acquire() is None
    (finding,) = verify_study(root).findings
    assert (finding.severity, finding.file) == ("note", ".claim")
    assert f"held by {Owner.me()}, which is running the study" in finding.message
    claim.release()
    assert [one.file for one in verify_study(root).findings] == [f"checkpoints/finetune/{PLAIN}/state.safetensors"]


def test_progress_is_no_checkpoint(root: Path) -> None:
    """A training that was killed before its first checkpoint has no more to go on from than none."""
    folder = root / "checkpoints" / "finetune" / PLAIN
    folder.mkdir(parents=True)
    (folder / PROGRESS).write_text("{}")
    assert lines(verify_study(root)) == []
    (folder / "state.safetensors").touch()
    (finding,) = verify_study(root).findings
    assert finding.file == f"checkpoints/finetune/{PLAIN}/state.safetensors"


def test_other_code_is_a_note_a_stage(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("viny.tools.verify.evaluated.code_fingerprint", lambda stage: "f" * 16)
    report = verify_study(whole)
    assert report.sound
    found = lines(report)
    stages = ["split", "pretrain", "intermediate", "finetune", "evaluate", "geometry", *layout.SUMMARIES]
    assert sorted(line.split(": ")[2] for line in found) == sorted(stages)
    assert all("made by another version of the code" in line for line in found)


def keys(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*path, key)
        yield from keys(value[key], (*path, key))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["packs/scenes/manifest.json", SPLIT, MODEL, f"finetune/{PLAIN}/run.json", METRICS, "study.json"]
)
def test_every_key_that_is_lost_or_of_another_type_is_noticed(root: Path, name: str) -> None:
    """No change of a key ends in an exception or goes unnoticed."""
    path = root / name
    text = path.read_text()
    odd = [None, -1, "x", [], {}, 1e300, True, [[]], {"a": {}}, "\ud800"]
    for n, place in enumerate(keys(json.loads(text))):
        mutated = json.loads(text)
        holder = mutated
        for key in place[:-1]:
            holder = holder[key]
        if n % 2:
            del holder[place[-1]]
        else:
            holder[place[-1]] = odd[n // 2 % len(odd)]
        path.write_text(json.dumps(mutated, indent=1, sort_keys=True) + "\n")
        found = verify_study(root)
        if mutated != json.loads(text):
            assert not found.sound, (place, mutated)
    path.write_text(text)
    assert lines(verify_study(root)) == []


def test_a_study_in_which_everything_is_noise(root: Path) -> None:
    noise = np.random.default_rng(0)
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink():
            path.write_bytes(noise.bytes(300))
    report = verify_study(root)
    assert report.count("wrong") > 10


# Elsewhere


def test_a_moved_study_takes_its_packs_from_where_they_are_named(root: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "renamed"
    shutil.copytree(root, moved, symlinks=True)
    lost = verify_study(moved)
    assert lost.count("missing") == 3
    assert all("name the folder of packs with --store" in f.message for f in lost.findings if f.severity == "missing")
    found = verify_study(moved, store=root.parents[1] / "packs")
    assert found.sound
    assert {f.file for f in found.findings} == {f"packs/{n}/images.npy" for n in ("pretrain", "scenes", "segmentation")}
    # Copied together with its packs, it is as it was.
    shutil.copytree(root.parents[1], tmp_path / "both", symlinks=True)
    assert lines(verify_study(tmp_path / "both" / "results" / "tiny")) == []
    # Damage in the store that is named is damage.
    flip((root / "packs" / "scenes" / "images.npy").resolve())
    assert not verify_study(moved, store=root.parents[1] / "packs").sound


def test_a_shared_pack_is_verified_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from viny.data.pack import verify_pack

    for name in ("manifest.json", "images.npy"):
        target = root / "packs" / "scenes" / name
        target.unlink()
        shutil.copy(root / "packs" / "segmentation" / name, target, follow_symlinks=False)
    verified: list[Path] = []
    note = lambda path: verified.append(path) or verify_pack(path)  # noqa: E731
    monkeypatch.setattr("viny.tools.verify.data.verify_pack", note)
    verify_study(root)
    assert len(verified) == 2  # of three packs, two the same


# Geometry


MEASURED = "geometry/intermediate_pre-24_mid-scenes_seed-0"


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("hashes__weights", "weights, of "),
        ("hashes__reference_weights", "reference weights, of "),
        ("hashes__pack", "pack 'segmentation': expected"),
        ("encoder__seed", "encoder.seed: expected 0"),
    ],
)
def test_geometry_of_something_else(key: str, words: str, root: Path) -> None:
    change(root / f"{MEASURED}.json", **{key: 3 if key == "encoder__seed" else "0" * 64})
    found = lines(verify_study(root))
    assert len(found) == 1
    assert found[0].startswith(f"wrong: {MEASURED}.json: {words}")


def test_geometry_that_is_not_there(root: Path) -> None:
    (root / f"{MEASURED}.npz").unlink()
    assert [(f.severity, f.file) for f in verify_study(root).findings] == [("missing", f"{MEASURED}.npz")]
    (root / f"{MEASURED}.json").unlink()
    assert [(f.severity, f.file) for f in verify_study(root).findings] == [("missing", f"{MEASURED}.json")]


# Settings


def test_other_settings_do_not_fit(whole: Path) -> None:
    config = resolve(merge(read_config(TINY), {"grid": GRID, "finetune": {"lr": 0.004}}))
    report = verify_study(whole, config)
    wrong = [line for line in lines(report) if line.startswith("wrong: finetune")]
    # and the scorecard and Table A1, which have differences from the paper, and the report, whose advice has all
    assert len(wrong) == report.count("wrong") - 3 == 2
    assert all("spec.train.lr: expected 0.004, found 0.002" in line for line in wrong)
    assert any(line.startswith("note: study.json: holds other settings than those given") for line in lines(report))


def test_a_larger_grid_is_missing(whole: Path) -> None:
    config = resolve(merge(read_config(TINY), {"grid": {**GRID, "finetune_sizes": [8, 16]}}))
    report = verify_study(whole, config)
    assert {f.file for f in report.findings if f.severity == "missing"} == {
        "splits/finetune/size-16_seed-0.json",
        "splits/finetune/size-16_seed-0.npz",
        *(f"finetune/{name.replace('fine-8', 'fine-16')}" for name in (PLAIN, ADAPTED)),
        *(f"metrics/{name.replace('fine-8', 'fine-16')}.json" for name in (PLAIN, ADAPTED)),
    }
    assert {f.file for f in report.findings if f.severity == "wrong"} == {
        layout.SUMMARY.format(stage=stage) for stage in layout.SUMMARIES
    }


def test_without_settings_the_rest_is_checked(root: Path) -> None:
    (root / "study.json").unlink()
    assert [f.file for f in verify_study(root).findings] == ["study.json"]
    flip(root / f"{PRETRAINED}.safetensors")
    assert verify_study(root).count("wrong") >= 1


def test_settings_that_a_study_file_no_longer_allows_are_a_finding(root: Path) -> None:
    config = json.loads((root / "study.json").read_text())["config"]
    config["grid"]["intermediates"] = [3, "../../etc"]
    (root / "study.json").write_text(json.dumps({"config": config, "sha256": digest(config)}))
    assert any(line.startswith("wrong: study.json: grid.intermediates") for line in lines(verify_study(root)))


# The command


def test_exit_codes_and_words(root: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["verify", str(root)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 1
    assert re.fullmatch(r"\d+ files, [\d,]+ bytes checked in [\d.]+ s: 0 wrong, 0 missing, 0 notes", out[0])

    flip(root / f"{PRETRAINED}.safetensors")
    assert main(["verify", str(root)]) == 1
    assert capsys.readouterr().out.startswith("wrong: pretrain/size-24_seed-0/encoder.safetensors: ")
    assert main(["verify", str(root), "--json"]) == 1
    value = json.loads(capsys.readouterr().out)
    assert value["findings"][0]["severity"] == "wrong"
    assert value["findings"][0]["file"] == f"{PRETRAINED}.safetensors"
    assert value["wrong"] == sum(f["severity"] == "wrong" for f in value["findings"]) >= 1

    for arguments in ([str(tmp_path / "none")], [str(tmp_path)], [str(root), "--study", "none.yaml"]):
        assert main(["verify", *arguments]) == 2
        assert capsys.readouterr().err.startswith("viny: ")
    assert main(["verify", str(root), "--store", str(tmp_path / "none")]) == 2
    with pytest.raises(SystemExit) as usage:
        main(["verify"])
    assert usage.value.code == 2


def test_study_files_stand_in_for_the_studys_own(root: Path, tmp_path: Path) -> None:
    (root / "study.json").unlink()
    over = tmp_path / "over.yaml"
    over.write_text(yaml.safe_dump({"grid": GRID}))
    assert main(["verify", str(root)]) == 1
    assert main(["verify", str(root), "--study", str(TINY), str(over)]) == 0


def test_differences_are_told_by_key() -> None:
    assert list(differences({"a": {"b": 1}, "c": [1]}, {"a": {"b": 2}, "c": [1]})) == ["a.b: expected 1, found 2"]
    assert list(differences({"a": 1}, {"b": 1})) == [
        "a: expected 1, found no such key",
        "b: expected no such key, found 1",
    ]
    assert list(differences(1, True)) == ["expected 1, found True"]
    assert list(differences(0, 0.0)) == []
