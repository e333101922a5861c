"""Which results are found not to belong to a study, from what they say themselves, and what a run would do."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from left_behind import change, finish

from viny.runtime import fingerprint
from viny.runtime.files import digest, seal_of
from viny.study import todo
from viny.study.config import merge, resolve
from viny.study.graph import Job, jobs, up_to
from viny.study.inventory import count_images
from viny.study.reading import read_config
from viny.study.saved import saved_study, write_study
from viny.study.todo import CODE, DAMAGED, INPUTS, SETTINGS, JsonCache, explain, out_of_date, to_do

TINY = Path(__file__).parents[1] / "tiny.yaml"
CELL = "pre-0_mid-none_fine-8_seed-0"
Found = Callable[..., dict[tuple[str, str], str]]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a finished study."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "results" / "tiny"
    write_study(folder, resolve(read_config(TINY)))
    finish(folder)
    return folder


def graph(root: Path, changes: dict[str, Any]) -> list[Job]:
    config = resolve(merge(read_config(TINY), changes))
    return jobs(config, count_images(config, root))


@pytest.fixture
def found(root: Path) -> Found:
    """What does not belong to the study, with some of its settings changed."""

    def look(**changes: Any) -> dict[tuple[str, str], str]:
        return out_of_date(graph(root, changes), root, root.parents[1] / "packs")

    return look


def stages(found: dict[tuple[str, str], str]) -> set[str]:
    return {stage for stage, _ in found}


def test_references_switched_on_in_a_finished_study_are_trained_and_nothing_else(root: Path, found: Found) -> None:
    stale = found(references=True)
    assert stages(stale) == {"statistics", "figures", "report"}
    left = Counter(job.stage for job in to_do(graph(root, {"references": True}), root, stale))
    assert left == {"reference": 4, "statistics": 1, "figures": 1, "report": 1}


def test_a_finished_study_belongs_to_itself(found: Found) -> None:
    assert found() == {}


@pytest.mark.parametrize(
    ("changes", "expected", "key"),
    [
        ({"finetune": {"epochs": 4}}, {"finetune"}, "train.epochs: expected 4, found 3"),
        ({"pretrain": {"mask_ratio": 0.4}}, {"pretrain", "figures"}, "mask_ratio"),
        ({"split_seed": 7}, {"split", "evaluate", "geometry"}, "split_seed: expected 7"),
        ({"geometry": {"images": 5}}, {"geometry", "representations", "scorecard", "report"}, ""),
        ({"synthetic": {"segmentation": 31}}, set(), ""),  # the pack's own arrays tell; see the next test
        ({"grid": {"seeds": [0]}}, {"duplicates", "tables", "figures", "statistics", "representations"}, "grid.seeds"),
    ],
)
def test_results_of_other_settings_do_not(changes: dict[str, Any], expected: set[str], key: str, found: Found) -> None:
    """Whatever Snakemake's records say, which are not asked."""
    stale = found(**changes)
    assert expected <= stages(stale)
    assert {"pretrain", "intermediate", "finetune"} & stages(stale) <= expected
    assert all(reason.startswith(SETTINGS) for reason in stale.values())
    assert any(key in reason for reason in stale.values()) or not expected


def test_a_pack_of_other_settings_does_not(root: Path, found: Found) -> None:
    link = root / "packs" / "segmentation" / "images.npy"
    link.unlink()
    for target in (f"synthetic-24-{'0' * 12}", "elsewhere"):
        link.symlink_to(f"../../../../packs/{target}/images.npy")
        manifest = root / "packs" / "segmentation" / "manifest.json"
        change(manifest, source="synthetic", resolution=24)
        assert found()["pack", "segmentation"] == f"{SETTINGS} or code"
        change(manifest, resolution=32)
        assert "size: expected 24, found 32" in found()["pack", "segmentation"]
        link.unlink()


def test_results_of_other_code_do_not(root: Path, found: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = {stage: f"{stage} as it was" for stage in fingerprint.ENTRY}
    for job in graph(root, {}):
        path = root / job.record
        record = json.loads(path.read_text())
        if "spec" in record:
            change(path, spec={**record["spec"], "code": codes[job.stage]})
        elif "hashes" in record:
            hashes = {**record["hashes"], "spec": digest({**job.spec, "code": codes[job.stage]})}
            change(path, hashes=hashes, provenance={"fingerprint": codes[job.stage]})
    monkeypatch.setattr(todo, "code_fingerprint", codes.__getitem__)
    assert found() == {}
    codes["evaluate"] = codes["tables"] = "as it is"
    assert stages(found()) == {"evaluate", "tables"} and set(found().values()) == {CODE}
    assert found(note="another")["evaluate", CELL] == SETTINGS


def test_what_was_made_from_other_inputs_does_not(root: Path, found: Found) -> None:
    change(root / "packs" / "segmentation" / "manifest.json", count=7)
    assert stages(found()) == {"split", "finetune", "evaluate", "geometry"}
    assert ("split", "pretrain/size-24_seed-0") not in found()
    assert set(found().values()) == {INPUTS}


def test_a_summary_of_other_results_does_not(root: Path, found: Found) -> None:
    table = root / "tables" / "metrics.csv"
    table.write_text("as it was read")
    name = str(table.relative_to(root))
    change(root / "summaries" / "report.json", inputs={name: JsonCache().sha256(table), "gone.csv": "abc"})
    assert found() == {}
    table.write_text("as it is now")
    assert found() == {("report", ""): INPUTS}


def with_arms(folder: Path) -> dict[str, Any]:
    """The settings of a study that begins from a file of weights and tunes its rate."""
    weights = folder / "own.pth"
    weights.write_bytes(b"weights" * 200_000)  # more than is hashed of a table
    changes = {
        "grid": {"starts": ["own", "random"], "variants": ["study", "tuned"], "intermediates": ["none"]},
        "starts": {"own": {"file": str(weights)}},
        "variants": {"tuned": {"tune": {"lr": [0.001, 0.01]}}},
    }
    return resolve(merge(read_config(TINY), changes))


@pytest.fixture
def arms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of such a study, finished."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "results" / "tiny"
    write_study(folder, with_arms(tmp_path))
    finish(folder)
    return folder


def stale_of(root: Path) -> dict[tuple[str, str], str]:
    config = saved_study(root)
    return out_of_date(jobs(config, count_images(config, root)), root, root.parents[1] / "packs")


def test_a_finished_study_with_arms_belongs_to_itself(arms: Path) -> None:
    assert stale_of(arms) == {}
    config = saved_study(arms)
    assert to_do(jobs(config, count_images(config, arms)), arms) == []


def test_a_start_from_a_file_that_changed_does_not_belong(arms: Path) -> None:
    weights = arms.parents[1] / "own.pth"
    weights.write_bytes(b"others" * 200_000)
    assert stale_of(arms) == {("start", "own"): INPUTS}
    config = saved_study(arms)
    left = {job.key for job in to_do(jobs(config, count_images(config, arms)), arms, stale_of(arms))}
    assert ("pretrain", "size-24_seed-0_start-own") in left and ("pretrain", "size-24_seed-0") not in left
    assert ("tune", "pre-0_mid-none_fine-8_seed-0_start-own_variant-tuned") in left
    weights.unlink()  # what is not there cannot have changed
    assert stale_of(arms) == {}


def test_trainings_from_other_published_weights_do_not_belong(arms: Path) -> None:
    change(arms / "starts" / "own" / "encoder.json", weights_sha256="others")
    found = stale_of(arms)
    assert set(found.values()) == {INPUTS} and stages(found) == {"pretrain", "tune", "finetune", "geometry"}
    assert all("start-own" in name for _, name in found)
    assert not any("pre-24" in name for stage, name in found if stage in ("tune", "finetune"))  # not its children


def test_a_fine_tuning_of_other_scores_does_not_belong(arms: Path) -> None:
    """Those of any of its seeds."""
    cell = "pre-0_mid-none_fine-8_seed-{}_variant-tuned"
    path = arms / "tuning" / f"{cell.format(1)}.json"
    change(path, rates=[{"lr": 0.001, "miou": 0.5}, {"lr": 0.01, "miou": 0.2}])
    assert stale_of(arms) == {("finetune", cell.format(seed)): INPUTS for seed in (0, 1)}
    finish(arms)
    for seconds in (3, 4):  # how long it took changes nothing
        rates = [{**rate, "seconds": seconds} for rate in json.loads(path.read_text())["rates"]]
        change(path, rates=rates)
        assert stale_of(arms) == {}


def test_other_rates_are_other_settings(arms: Path) -> None:
    config = with_arms(arms.parents[1])
    config["variants"]["tuned"]["tune"]["lr"] = [0.001, 0.02]
    write_study(arms, config)
    assert stages(stale_of(arms)) >= {"tune", "finetune"}
    assert all(name.endswith("_variant-tuned") for stage, name in stale_of(arms) if stage in ("tune", "finetune"))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", "\x00\x01", '{"spec": 3}', '{"hashes": []}', "[" * 5000])
def test_a_record_that_is_none_does_not(root: Path, text: str, found: Found) -> None:
    paths = {job.key: root / job.record for job in graph(root, {}) if job.stage != "pack"}
    some = {stage: key for stage, *_ in paths for key in paths if key[0] == stage}
    for stage, key in some.items():
        before = paths[key].read_text()
        paths[key].write_text(text)
        assert found().get(key, "").startswith(DAMAGED), stage
        paths[key].write_text(before)


def test_a_sealed_record_that_was_edited_does_not(root: Path, found: Found) -> None:
    path = root / "metrics" / f"{CELL}.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "sha256": seal_of(record)}))
    assert found() == {}
    path.write_text(json.dumps({**record, "metrics": 9, "sha256": seal_of(record)}))
    assert found() == {("evaluate", CELL): DAMAGED}


@pytest.mark.parametrize("damage", ["older", "cut", "empty", "text"])
def test_weights_that_differ_from_their_record_do_not(root: Path, damage: str, found: Found) -> None:
    """As when one of the two is restored from a backup."""
    weights, record = (root / "finetune" / CELL / f"model.{kind}" for kind in ("safetensors", "json"))
    if damage == "older":
        kept = weights.read_bytes()
        change(record, seconds=3)
        weights.write_bytes(kept)
    else:
        weights.write_bytes({"cut": weights.read_bytes()[:40], "empty": b"", "text": b"not weights at all"}[damage])
    assert found() == {("finetune", CELL): f"{DAMAGED} or weights"}


def test_a_result_that_is_not_there_is_only_missing(root: Path, found: Found) -> None:
    for name in ("model.json", "model.safetensors", "curve.csv", "run.json"):
        (root / "finetune" / CELL / name).unlink()
    assert found() == {}
    mine = graph(root, {})
    left = [job.key for job in to_do(mine, root)]
    assert ("finetune", CELL) in left and ("evaluate", CELL) in left and ("pack", "segmentation") not in left


def test_every_training_and_split_is_wanted(root: Path) -> None:
    """What verify says to delete must be made again, though nothing else asks for it."""
    mine = graph(root, {})
    assert to_do(mine, root) == []
    for job in mine:
        if job.stage not in ("pack", "report"):
            gone = {output: (root / output).read_bytes() for output in job.outputs}
            for output in gone:
                (root / output).unlink()
            assert job.key in {one.key for one in to_do(mine, root)}
            for output, data in gone.items():
                (root / output).write_bytes(data)


def test_reasons_are_told_once_for_each_stage() -> None:
    stale = {("finetune", "a"): INPUTS, ("finetune", "b"): INPUTS, ("finetune", "c"): CODE, ("report", ""): CODE}
    assert explain(stale) == [
        "finetune a and 1 more: made with other images or weights",
        "finetune c: made with other code",
        "report: made with other code",
    ]


def test_a_run_of_some_targets_concerns_what_they_need(root: Path) -> None:
    mine = graph(root, {})
    everything = {job.key for job in mine}
    assert up_to(mine, {"all"}) == everything
    of_metrics = up_to(mine, {f"metrics/{CELL}.json"})
    assert {stage for stage, _ in of_metrics} == {"pack", "split", "finetune", "evaluate"}
    assert ("finetune", CELL) in of_metrics and ("finetune", CELL.replace("seed-0", "seed-1")) not in of_metrics
    assert {stage for stage, _ in up_to(mine, {"tables"})} >= {"tables", "evaluate", "pretrain"}
    assert up_to(mine, {"nothing/of.it"}) == set()
