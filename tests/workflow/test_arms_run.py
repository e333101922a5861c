"""A tiny study with arms, from images to report: starts, tuned rates, a frozen encoder, equal steps."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from test_workflow import REPOSITORY, TINY, planned, snakemake

from viny.learning.weights import read_weights

pytestmark = pytest.mark.slow

RATES = [0.0005, 0.002, 0.008]
ARMS: dict[str, Any] = {
    "study": "arms",
    "grid": {
        "starts": ["random", "mine", "timm_random"],
        "variants": ["study", "tuned", "frozen", "equal_steps", "target"],
        "pretrain_sizes": [0, 8, 14],
        "intermediates": ["none"],
        "finetune_sizes": [8],
        "seeds": [0, 1],
    },
    "starts": {
        "mine": {
            "file": "weights/mine.pth",
            "grid": {"variants": ["study", "tuned", "frozen"], "pretrain_sizes": [0, 14]},
        },
        "timm_random": {
            "timm": "vit_tiny_patch16_224",
            "weights": "random",
            "grid": {"variants": ["study"], "pretrain_sizes": [0]},
        },
    },
    "variants": {
        "tuned": {"tune": {"lr": RATES, "share": 0.5}, "grid": {"pretrain_sizes": [0]}},
        "frozen": {"grid": {"starts": ["mine"], "pretrain_sizes": [0]}},
        "target": {"pretrain": {"source": "segmentation"}, "grid": {"pretrain_sizes": [0, 14]}},
    },
    "model": {"image_size": 32, "patch_size": 8},
    "pretrain": {"held_out": 6, "milestones": [1]},
}
TRAINED = {
    *("pre-0_mid-none_fine-8_seed-{}", "pre-8_mid-none_fine-8_seed-{}", "pre-14_mid-none_fine-8_seed-{}"),
    "pre-0_mid-none_fine-8_seed-{}_variant-tuned",
    "pre-8_mid-none_fine-8_seed-{}_variant-equal_steps",  # at 0 and 14 images it is the study's own
    "pre-14_mid-none_fine-8_seed-{}_variant-target",
    *("pre-0_mid-none_fine-8_seed-{}_start-mine", "pre-14_mid-none_fine-8_seed-{}_start-mine"),
    "pre-0_mid-none_fine-8_seed-{}_start-mine_variant-tuned",
    "pre-0_mid-none_fine-8_seed-{}_start-mine_variant-frozen",
    "pre-0_mid-none_fine-8_seed-{}_start-timm_random",
}


def viny(folder: Path, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "viny", *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the study was run; its published weights are a vit-pytorch model's."""
    vit_pytorch = pytest.importorskip("vit_pytorch")
    folder = tmp_path_factory.mktemp("arms")
    torch.manual_seed(0)
    sizes = {"image_size": 32, "patch_size": 8, "dim": 16, "depth": 2, "heads": 2, "dim_head": 8, "mlp_dim": 32}
    (folder / "weights").mkdir()
    torch.save(vit_pytorch.ViT(**sizes, num_classes=2).state_dict(), folder / "weights" / "mine.pth")
    (folder / "arms.yaml").write_text(yaml.safe_dump(ARMS))
    snakemake(folder, "--cores", "2", *study(folder))
    return folder


def study(folder: Path) -> tuple[str | Path, ...]:
    return "--configfile", TINY, folder / "arms.yaml"


def record(folder: Path, cell: str, stage: str = "finetune", file: str = "model") -> dict[str, Any]:
    return json.loads((folder / "results" / "arms" / stage / cell / f"{file}.json").read_text())


def test_every_cell_is_trained_once(folder: Path) -> None:
    root = folder / "results" / "arms"
    cells = {name.format(seed) for name in TRAINED for seed in (0, 1)}
    assert {path.name for path in (root / "finetune").iterdir()} == cells
    assert {path.stem for path in (root / "metrics").glob("*.json")} == cells
    assert {path.name for path in (root / "pretrain").iterdir()} == {
        f"size-{size}_seed-{seed}{arm}"
        for size, arm in ((8, ""), (14, ""), (8, "_variant-equal_steps"), (14, "_variant-target"), (14, "_start-mine"))
        for seed in (0, 1)
    }
    assert planned(folder, *study(folder)) == {}


def test_starts_are_what_trainings_begin_with(folder: Path) -> None:
    root = folder / "results" / "arms"
    start = json.loads((root / "starts" / "mine" / "encoder.json").read_text())
    plain, simmim = "pre-0_mid-none_fine-8_seed-0_start-mine", "size-14_seed-0_start-mine"
    assert record(folder, plain)["parent_sha256"] == start["weights_sha256"]
    assert record(folder, simmim, "pretrain", "encoder")["parent_sha256"] == start["weights_sha256"]
    # A linear head on fixed tokens: the encoder is the start's, bit for bit.
    theirs, _ = read_weights(root / "starts" / "mine" / "encoder.json")
    ours, _ = read_weights(root / "finetune" / f"{plain}_variant-frozen" / "model.json")
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    timm = record(folder, "pre-0_mid-none_fine-8_seed-0_start-timm_random")
    assert (timm["parent_sha256"], timm["spec"]["model"]["architecture"]) == (None, "timm")


def test_the_rate_is_the_best_over_seeds(folder: Path) -> None:
    for start in ("", "_start-mine"):
        cells = [f"pre-0_mid-none_fine-8_seed-{seed}{start}_variant-tuned" for seed in (0, 1)]
        tunings = [json.loads((folder / "results" / "arms" / "tuning" / f"{cell}.json").read_text()) for cell in cells]
        scores = {rate: sum(one["rates"][i]["miou"] for one in tunings) for i, rate in enumerate(RATES)}
        assert {record(folder, cell)["tuned"]["lr"] for cell in cells} == {max(scores, key=lambda rate: scores[rate])}
    # Two of the eight labelled images are scored on; no test image is.
    assert {row["validation_images"] for one in tunings for row in one["rates"]} == {2}


def test_budgets_and_held_out_images(folder: Path) -> None:
    root = folder / "results" / "arms"
    usual, equal = (root / "pretrain" / f"size-8_seed-0{arm}" / "curve.csv" for arm in ("", "_variant-equal_steps"))
    assert (len(pd.read_csv(usual)), len(pd.read_csv(equal))) == (2, 4)  # epochs: as many steps as 14 images take in 2
    assert pd.read_csv(equal)["held_out_loss"].iloc[-1] > 0
    held_out = {
        tuple(split["parts"]["test"].values())
        for split in map(read, (root / "splits" / "pretrain").glob("size-*[01].json"))
    }
    assert len(held_out) == 1  # the same images for all sizes and seeds


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_what_people_see(folder: Path) -> None:
    root = folder / "results" / "arms"
    arms = pd.read_csv(root / "tables" / "arms.csv", keep_default_na=False)
    assert {("random", "study"), ("mine", "tuned"), ("timm_random", "study")} <= {
        *zip(arms["start"], arms["variant"], strict=True)
    }
    assert {"start", "variant"} <= {*pd.read_csv(root / "tables" / "metrics.csv").columns}
    assert len(pd.read_csv(root / "tables" / "summary.csv")) == 3  # of the first arm alone
    page = (root / "report.html").read_text()
    assert "SimMIM on 14 images" in page and "nan" not in pd.read_csv(root / "tables" / "arms.csv").columns
    assert "0 wrong" in viny(folder, "verify", "results/arms")
    status = viny(folder, "status", "results/arms")
    assert "tune" in status and "start" in status
    said = viny(folder, "plan", str(TINY), "arms.yaml")
    assert "mine, tuned" in said
    assert viny(folder, "advise", "results/arms")
    cell = "pre-14_mid-none_fine-8_seed-0_start-mine"
    viny(folder, "export", "--cell", f"results/arms/finetune/{cell}", "--format", "timm", "--out", "exported.safetensors")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        # Further rates are tried anew, for the tuned cells alone.
        ({"variants": {"tuned": {"tune": {"lr": [0.001, 0.004]}}}}, {"tune": 4, "finetune": 4, "evaluate": 4}),
        # A further variant of the fine-tuning shares every encoder.
        (
            {
                "grid": {"variants": [*ARMS["grid"]["variants"], "longer"]},
                "variants": {
                    "longer": {"finetune": {"epochs": 4}, "grid": {"starts": ["random"], "pretrain_sizes": [14]}}
                },
            },
            {"finetune": 2, "evaluate": 2},
        ),
    ],
)
def test_a_change_reruns_what_it_touches(folder: Path, tmp_path: Path, change: Any, expected: dict[str, int]) -> None:
    (tmp_path / "change.yaml").write_text(yaml.safe_dump(change))
    summaries = dict.fromkeys(("tables", "figures", "statistics", "representations", "scorecard", "report"), 1)
    found = planned(folder, *study(folder), tmp_path / "change.yaml")
    assert {stage: n for stage, n in found.items() if stage not in summaries} == expected


def test_the_worked_example_runs(folder: Path) -> None:
    """examples/starts.yaml over a tiny study, with an encoder of this project where the demo's would be."""
    demo = folder / "results" / "demo" / "pretrain" / "size-4000_seed-0"
    demo.mkdir(parents=True)
    made = folder / "results" / "arms" / "pretrain" / "size-14_seed-0" / "encoder.safetensors"
    shutil.copy(made, demo)
    small = {"model": ARMS["model"], "grid": {"finetune_sizes": [8], "seeds": [0]}}
    (folder / "small.yaml").write_text(yaml.safe_dump(small))
    example = REPOSITORY / "examples" / "starts.yaml"
    snakemake(folder, "--cores", "2", "--configfile", TINY, example, folder / "small.yaml")
    arms = pd.read_csv(folder / "results" / "demo_starts" / "tables" / "arms.csv", keep_default_na=False)
    assert {*zip(arms["start"], arms["variant"], strict=True)} == {
        *((start, variant) for start in ("random", "demo") for variant in ("study", "tuned")),
        ("demo", "frozen"),
    }


def test_a_file_that_changed_is_read_again(folder: Path) -> None:
    path = folder / "weights" / "mine.pth"
    before = path.read_bytes()
    try:
        tensors = torch.load(path, weights_only=True)
        torch.save({name: tensor + 1 for name, tensor in tensors.items()}, path)
        assert planned(folder, *study(folder))["start"] == 1
    finally:
        path.write_bytes(before)
