"""Table A1: the study's training settings beside the paper's."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("jsonschema")

from viny.evidence.training_settings import training_settings, write_training_settings
from viny.study.config import resolve
from viny.study.specs import tables_spec

TASKS = ["none", "intel", "intel_mean", "scenes", "pets_spatial", "own"]
OWN = {"source": "segmentation", "target": "patch", "mixup": 0, "epochs": 3, "milestones": []}


def table_of(settings: dict) -> pd.DataFrame:
    spec = tables_spec(resolve({"study": "x", "note": "Mind | this.", **settings}))
    return training_settings(spec["training"], spec["paper"])


def test_the_papers_study_has_the_papers_settings() -> None:
    table = table_of({"protocol": "paper", "grid": {"intermediates": ["none", "intel", "pets_classes"]}})
    assert (table["This study"] == table["The paper"]).all()
    epochs = table[table["Setting"] == "Epochs"].set_index("Stage")["The paper"]
    assert dict(epochs) == {"Pre-training": "100", "Task intel": "200", "Task pets_classes": "20", "Fine-tuning": "100"}
    schedules = table[table["Setting"] == "Schedule"].set_index("Stage")["The paper"]
    assert schedules["Pre-training"] == "times 0.1 after epochs 50, 85"
    assert schedules["Task pets_classes"] == "constant"


def test_what_differs_is_seen_and_tasks_stand_beside_the_nearest_of_the_paper() -> None:
    table = table_of(
        {"grid": {"intermediates": TASKS}, "intermediate": {"own": OWN}, "finetune": {"lr": 1e-5, "contrast": 0.0}}
    )
    stages = list(dict.fromkeys(table["Stage"]))
    assert stages == [
        "Pre-training", "Task intel", "Task intel_mean (paper: intel)", "Task scenes",
        "Task pets_spatial", "Task own (paper: pets_spatial)", "Fine-tuning",
    ]  # fmt: skip
    assert set(table[table["Stage"] == "Task scenes"]["The paper"]) == {"no such task"}
    mine = table[table["Stage"] == "Fine-tuning"].set_index("Setting")
    assert tuple(mine.loc["Learning rate"])[1:] == ("1e−05", "0.002")
    assert tuple(mine.loc["Augmentation"])[1:] == (
        "flip, drawn anew each epoch",
        "flip, contrast ±30 %, drawn once for all epochs, not normalised",
    )
    assert table.groupby("Stage", sort=False).size().nunique() == 1


@pytest.mark.parametrize("name", ["spatial", "pets_spatial", "intel"])
def test_a_task_on_other_images_stands_beside_none_of_the_paper_s(name: str) -> None:
    masks = {"images": "mine", "masks": "masks", "classes": {0: "ground", 255: "sky"}}
    task = {name: OWN if name != "intel" else {"source": "folder", "path": "mine", "target": "image"}}
    grid = {"intermediates": ["none", name]}
    table = table_of({"grid": grid, "intermediate": task, "segmentation": {"source": "folder", **masks}})
    mine = table[table["Stage"].str.startswith("Task")]
    assert set(mine["Stage"]) == {f"Task {name}"} and set(mine["The paper"]) == {"no such task"}
    assert set(table[table["Stage"] == "Fine-tuning"]["The paper"]).isdisjoint({"no such task"})


def test_files_say_whose_settings_they_hold(tmp_path: Path) -> None:
    spec = tables_spec(resolve({"study": "x", "note": "Mind | this."}))
    write_training_settings(spec, tmp_path)
    table = pd.read_csv(tmp_path / "tableA1.csv")
    assert list(table.columns) == ["stage", "setting", "this_study", "the_paper", "study", "protocol", "note"]
    text = (tmp_path / "tableA1.md").read_text()
    assert text.startswith("# Table A1: training settings\n")
    assert "Study x, protocol sound." in text and "Mind" in text
