"""What the evidence is made from: costs of chains, and studies that are compared with the paper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from viny.evidence.stages import scorecard
from viny.evidence.statistics import costs
from viny.learning.settings import TRAINING, ModelSettings, forward_operations
from viny.runtime.errors import InputError
from viny.study import grid, layout, specs
from viny.study.config import merge, resolve
from viny.study.grid import Cell
from viny.study.reading import read_config

ROOT = Path(__file__).parents[2]
MODEL = ModelSettings()


def write_run(folder: Path, **values: Any) -> None:
    run = {"image_passes": 1000, "training_seconds": 10.0, "device_name": "one"} | values
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(run))


def test_a_chain_costs_what_its_trainings_cost(tmp_path: Path) -> None:
    write_run(tmp_path / "pretrain" / "size-24_seed-0", image_passes=5000, training_seconds=50.0)
    for size in (0, 24):
        write_run(tmp_path / "intermediate" / "scenes" / f"size-{size}_seed-0", device_name="two")
    every = [Cell(size, task, 8, 0) for size in (0, 24) for task in ("none", "scenes")]
    for cell in every:
        write_run(layout.chain(cell)[-1].folder(tmp_path), image_passes=80, training_seconds=1.0)
    spent = costs.chain_costs(tmp_path, every, MODEL)
    found = {(cell.pretrain_size, cell.intermediate): spent[cell.name] for cell in every}
    assert {key: (cost["seconds"], cost["passes"]) for key, cost in found.items()} == {
        (0, "none"): (1.0, 80),
        (0, "scenes"): (11.0, 1080),
        (24, "none"): (51.0, 5080),
        (24, "scenes"): (61.0, 6080),
    }
    for cost in found.values():
        assert cost["operations"] == cost["passes"] * TRAINING * forward_operations(MODEL)
    assert found[0, "none"]["device"] == "one"
    assert found[24, "scenes"]["device"] == "one and two"


def test_a_training_that_does_not_say_its_cost_is_named(tmp_path: Path) -> None:
    cell = Cell(0, "none", 8, 0)
    write_run(layout.chain(cell)[-1].folder(tmp_path), training_seconds=None)
    with pytest.raises(InputError, match=r"fine-8_seed-0/run\.json: .*'training_seconds' is None, expected"):
        costs.chain_costs(tmp_path, [cell], MODEL)


def test_every_encoder_once_and_its_reference_among_them() -> None:
    config = resolve(merge(read_config(ROOT / "tests" / "tiny.yaml"), {"geometry": {"encoders": "all"}}))
    found = grid.encoders(config)
    assert len(found) == len({encoder.name for encoder in found}) == 2 + 2 + 4 + 16
    kinds = [encoder.kind for encoder in found]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "random": 2,
        "pretrained": 2,
        "intermediate": 4,
        "finetuned": 16,
    }
    config["geometry"]["encoders"] = "before_finetuning"
    assert grid.encoders(config) == [encoder for encoder in found if encoder.kind != "finetuned"]
    config["geometry"]["encoders"] = "none"
    assert grid.encoders(config) == []
    # A study without a random start gets one all the same, as the control for the probes.
    config["geometry"]["encoders"], config["grid"]["pretrain_sizes"] = "before_finetuning", [24]
    assert [encoder.kind for encoder in grid.encoders(config)].count("random") == 2


def write_metrics(folder: Path, study: str, protocol: str, cell: Cell, miou: float) -> Path:
    value = {
        "study": study,
        "protocol": protocol,
        "miou_is": "dataset",
        "cell": cell.as_dict(),
        "provenance": {},
        "test_images": 10,
        "metrics": {"miou": miou, "miou_per_image": miou, "pixel_accuracy": miou + 0.1},
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{cell.name}.json"
    path.write_text(json.dumps(value))
    return path


def folders(tmp_path: Path) -> dict[str, Path]:
    return {"root": tmp_path / "tiny", "out": tmp_path / "out", "record": tmp_path / "out" / "scorecard.json"}


def test_two_studies_under_two_protocols_stand_side_by_side(tmp_path: Path) -> None:
    settings = {"scorecard": {"other_study": "elsewhere"}, "geometry": {"encoders": "none"}}
    config = resolve(merge(read_config(ROOT / "tests" / "tiny.yaml"), settings))
    for cell in grid.cells(config):
        labels = 0.1 * (cell.finetune_size == 16) + 0.001 * cell.seed
        write_metrics(tmp_path / "tiny" / "metrics", "tiny", "sound", cell, 0.3 + labels)
        write_metrics(tmp_path / "elsewhere" / "metrics", "elsewhere", "paper", cell, 0.5 - labels)
    scorecard.write_scorecard(specs.scorecard_spec(config), **folders(tmp_path))
    unknown = pd.read_csv(tmp_path / "out" / "tables" / "scorecard.csv").set_index("key")
    assert unknown.loc["labels_help", "under_paper"] == "does not hold here"  # nobody says that it is like the paper's
    nothing = {table: [] for table in ("1", "A2", "A3", "2", "sizes")}
    spec = {"differences": nothing, "epochs": {"pretrain": 100, "finetune": 100}}
    (tmp_path / "elsewhere" / "summaries").mkdir()
    (tmp_path / "elsewhere" / "summaries" / "scorecard.json").write_text(json.dumps({"spec": spec}))
    scorecard.write_scorecard(specs.scorecard_spec(config), **folders(tmp_path))
    card = pd.read_csv(tmp_path / "out" / "tables" / "scorecard.csv").set_index("key")
    assert set(card["study_paper"]) == {"elsewhere"}
    assert set(card["study_sound"]) == {"tiny"}
    helped = card.loc["labels_help"]
    assert (helped["under_sound"], helped["under_paper"]) == ("holds here", "contradicted")
    assert (helped["protocol"], helped["verdict"]) == ("paper", "contradicted")


@pytest.mark.parametrize(
    ("protocol", "words"),
    [(None, "elsewhere holds no metrics; run that study first"), ("sound", "elsewhere is under protocol sound too")],
)
def test_another_study_has_results_and_the_other_protocol(tmp_path: Path, protocol: str | None, words: str) -> None:
    config = resolve(merge(read_config(ROOT / "tests" / "tiny.yaml"), {"scorecard": {"other_study": "elsewhere"}}))
    folder = tmp_path / "elsewhere" / "metrics"
    folder.mkdir(parents=True)
    if protocol:
        write_metrics(folder, "elsewhere", protocol, Cell(0, "none", 8, 0), 0.4)
    with pytest.raises(InputError, match=words):
        scorecard.write_scorecard(specs.scorecard_spec(config), **folders(tmp_path))
