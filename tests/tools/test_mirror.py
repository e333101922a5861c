"""`viny mirror`: what other tools' own readers find after it, and that a further call adds nothing."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE

pytest.importorskip("jsonschema", reason="the settings that a study wrote are completed by its schema")

from viny.cli import main
from viny.learning.run import CURVE_COLUMNS
from viny.runtime.files import write_json
from viny.study.config import resolve
from viny.study.grid import Reference, cells, references
from viny.study.layout import Training, metrics_file, reference_file, trainings
from viny.study.reading import read_config
from viny.study.saved import write_study
from viny.study.specs import training_spec
from viny.tools.mirror import TOOLS, Mirrored, mirror

TINY = Path(__file__).parents[1] / "tiny.yaml"
METRICS = {"miou": 0.25, "iou_a/b (left)": 0.5, "iou_c": None}
EPOCHS = 3


def finish(root: Path, training: Training, config: dict[str, Any], loss: float = 1.0) -> None:
    """Leave what a finished training does, without weights; and the metrics of its cell."""
    record = {"stage": training.stage, "spec": training_spec(config, training), "images": 8, "precision": "float32"}
    write_json(training.file(root, "record"), record | {"weights_sha256": "1" * 64})
    write_json(training.file(root, "run"), {"started": "2026-11-27T00:00:00+00:00"})
    with open(training.file(root, "curve"), "w", newline="", encoding="utf-8") as f:
        rows = csv.writer(f)
        rows.writerow(CURVE_COLUMNS)
        rows.writerows((epoch, loss / epoch, 0.1, 100.0, 2.0 * epoch) for epoch in range(1, EPOCHS + 1))
    if training.stage == "finetune":
        write_json(metrics_file(root, training.key), {"metrics": METRICS, "hashes": {"weights": "1" * 64}})


@pytest.fixture
def study(tmp_path: Path) -> tuple[Path, dict[str, Any], list[Training]]:
    """A study of which a pre-training, a task and a cell are done."""
    config, root = resolve(read_config(TINY)), tmp_path / "results" / "tiny"
    write_study(root, config)
    every = trainings(cells(config))
    some = [next(one for one in every if one.stage == stage) for stage in ("pretrain", "intermediate", "finetune")]
    for one in some:
        finish(root, one, config)
    return root, config, some


def finish_reference(root: Path, reference: Reference) -> None:
    """Leave what a U-Net's job does, without weights and matrices."""
    record = {"stage": "reference", "spec": {"cell": reference.as_dict(), "train": {"lr": 0.001}}, "metrics": METRICS}
    record |= {"images": 8, "precision": "float32", "provenance": {"started": "2026-11-27T00:00:00+00:00"}}
    write_json(reference_file(root, reference, "record"), record)
    reference_file(root, reference, "curve").write_text("epoch,loss,lr,images_per_second,seconds\n1,0.5,0.001,9,2\n")


def test_the_u_nets_beside_a_study_are_mirrored_too(
    study: tuple[Path, dict[str, Any], list[Training]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, config, some = study
    found: list[Mirrored] = []
    monkeypatch.setitem(TOOLS, "mlflow", (lambda runs, *_: found.extend(runs), "json"))
    first, second = references({**config, "references": True})[:2]
    finish_reference(root, first)
    mirror(root, "mlflow", tmp_path)
    assert sorted(one.name for one in found) == names(some)  # the study has none
    found.clear()
    write_study(root, config | {"references": True})
    reference_file(root, second, "curve").write_text("epoch,loss,seconds\n1,0.5,2\n")  # of one that still runs
    mirror(root, "mlflow", tmp_path)
    assert sorted(one.name for one in found) == sorted([*names(some), f"reference/{first.name}"])
    one = next(one for one in found if one.stage == "reference")
    assert one.metrics == {"test/miou": 0.25, "test/iou_a/b (left)": 0.5}
    expected = {"finetune_size": first.finetune_size, "lr": 0.001, "images": 8}
    assert expected.items() <= one.settings.items() and one.last == (1, one.started + 2)


def names(some: list[Training]) -> list[str]:
    return sorted(f"{one.stage}/{one.name}" for one in some)


def test_tensorboard_finds_every_epoch_once(study: tuple[Path, dict[str, Any], list[Training]], tmp_path: Path) -> None:
    read = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    root, config, some = study
    out = tmp_path / "mirror"
    kept = out / "mine" / "events.out.tfevents.1"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"")
    for loss in (1.0, 2.0):  # as after a training that was run again
        for one in some:
            finish(root, one, config, loss)
        assert main(["mirror", str(root), "--to", "tensorboard", "--out", str(out)]) == 0
    assert sorted(str(path.parent.relative_to(out)) for path in out.rglob("events*") if path != kept) == names(some)
    for one in some:
        found = read.EventAccumulator(str(out / one.stage / one.name)).Reload()
        losses = [(event.step, event.value, event.wall_time) for event in found.Scalars("loss")]
        began = 1795737600.0
        assert losses == [(1, 2, began + 2), (2, 1, began + 4), (3, pytest.approx(2 / 3), began + 6)]
        measured = {tag: found.Scalars(tag)[-1] for tag in found.Tags()["scalars"] if tag.startswith("test/")}
        expected = {"test/miou": 0.25, "test/iou_a/b (left)": 0.5} if one.stage == "finetune" else {}
        assert {tag: (event.value, event.step) for tag, event in measured.items()} == {
            tag: (value, EPOCHS) for tag, value in expected.items()
        }
    assert kept.is_file()


def test_mlflow_has_one_run_a_training(study: tuple[Path, dict[str, Any], list[Training]], tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    root, config, some = study
    ids = []
    for loss in (1.0, 1.0, 2.0):
        finish(root, some[-1], config, loss)
        assert main(["mirror", str(root), "--to", "mlflow", "--out", str(tmp_path)]) == 0
        client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
        runs = {
            run.info.run_name: run for run in client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
        }
        assert sorted(runs) == names(some)
        ids.append([runs[name].info.run_id for name in names(some)])
    assert ids[0] == ids[1]
    assert sum(a != b for a, b in zip(ids[1], ids[2], strict=True)) == 1  # only the training that changed
    run = runs[f"finetune/{some[-1].name}"]
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(1, 2.0), (2, 1.0), (3, 2 / 3)]
    assert {key: value for key, value in run.data.metrics.items() if key.startswith("test/")} == {
        "test/miou": 0.25,
        "test/iou_a_b _left_": 0.5,
    }
    assert run.data.params["optimizer"] == config["finetune"]["optimizer"]


def test_wandb_gets_one_offline_run_a_training(
    study: tuple[Path, dict[str, Any], list[Training]], tmp_path: Path
) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    root, _, some = study
    command = [sys.executable, "-m", "viny", "mirror", str(root), "--to", "wandb", "--out", str(tmp_path / "out")]
    found = []
    for _ in range(2):
        subprocess.run(command, check=True, timeout=PATIENCE, env={**os.environ, "HTTPS_PROXY": "http://127.0.0.1:9"})
        found.append(sorted(path.name for path in (tmp_path / "out" / "wandb").rglob("run-*.wandb")))
    assert found[0] == found[1] and len(found[0]) == len(some)


def test_what_cannot_be_mirrored_is_said(
    study: tuple[Path, dict[str, Any], list[Training]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, _, some = study
    with monkeypatch.context() as patched:
        patched.setattr("viny.tools.mirror.importlib.util.find_spec", lambda name: None)
        assert main(["mirror", str(root), "--to", "mlflow"]) == 2
    assert 'pip install "viny[mlflow]"' in capsys.readouterr().err
    monkeypatch.setattr("viny.tools.mirror.importlib.util.find_spec", lambda name: True)
    curve = some[0].file(root, "curve")
    curve.write_text("epoch,lr\n1,0.1\n")
    assert main(["mirror", str(root), "--to", "mlflow"]) == 2
    assert f"{curve}: no column 'loss'" in capsys.readouterr().err
    for one in some:
        one.file(root, "record").unlink()
    assert main(["mirror", str(root), "--to", "mlflow"]) == 2
    assert "no training has finished yet" in capsys.readouterr().err


def test_no_command_loads_the_tools_before_it_mirrors() -> None:
    code = "import json, sys, viny.cli, viny.tools.mirror; print(json.dumps(list(sys.modules)))"
    said = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=PATIENCE, capture_output=True, text=True
    ).stdout
    assert not {"torch", "tensorboard", "wandb", "mlflow"} & set(json.loads(said))
