"""A study on a user's own folders, from odd files to the report: 11 classes, ignored pixels, nested class folders."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

pytest.importorskip("snakemake", reason="the workflow needs Snakemake; the library does not")
from test_workflow import SUMS, planned, snakemake

from viny.data.folders import few
from viny.data.synthetic import render

pytestmark = pytest.mark.slow

CLASSES, IGNORED = 11, 255
FORMATS = ("jpg", "png", "tif", "webp", "bmp")
STUDY: dict[str, Any] = {
    "study": "own",
    "grid": {"pretrain_sizes": [0, 12], "intermediates": ["none", "places"], "finetune_sizes": [10], "seeds": [0]},
    "model": {"image_size": 24, "patch_size": 4, "dim": 16, "depth": 2, "heads": 2, "head_dim": 8, "mlp_dim": 32},
    "pretrain": {"source": "folder", "path": "mine/unlabelled", "epochs": 2, "batch_size": 8, "milestones": []},
    "intermediate": {
        "places": {"source": "folder", "path": "mine/places", "epochs": 2, "batch_size": 8, "milestones": []}
    },
    "segmentation": {
        "source": "folder",
        "images": "mine/images",
        "masks": "mine/masks",
        "mask_suffix": "_mask",
        "classes": CLASSES,
        "ignore": IGNORED,
        "fit": "pad",
        "test_size": 8,
    },
    "finetune": {"epochs": 3, "batch_size": 4, "milestones": []},
    "compute": {"train_threads": 1, "device": "cpu", "precision": "float32"},
    "figures": {"examples": 2},
    "geometry": {"encoders": "none"},
}


def labelled(folder: Path, i: int) -> None:
    """One image of odd size and format, and its palette mask: the object's kind, its rim ignored."""
    pixels, trimap, _, kind = render("segmentation", i, 48, 0)
    size = (40 + 5 * (i % 7), 30 + 3 * (i % 5))
    truth = np.asarray(Image.fromarray(trimap).resize(size, Image.Resampling.NEAREST))
    classes = np.where(truth == 0, 1 + (kind + i) % (CLASSES - 1), 0).astype(np.uint8)
    classes[truth == 2] = IGNORED
    mask = Image.fromarray(classes, "P")
    mask.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    for path, image in (
        (folder / "images" / f"day {i % 2}" / f"{i}.{FORMATS[i % 5]}", Image.fromarray(pixels.transpose(1, 2, 0))),
        (folder / "masks" / f"day {i % 2}" / f"{i}_mask.png", mask),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        (image.resize(size) if image.mode == "RGB" else image).save(path)


def own_data(folder: Path) -> None:
    for i in range(20):
        labelled(folder, i)
    for i in range(14):
        pixels, *_ = render("unlabelled", i, 32, 0)
        path = folder / "unlabelled" / f"part {i % 3}" / "deeper" / f"{i}.{FORMATS[i % 5]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.transpose(1, 2, 0)).resize((50, 36 + i)).save(path)
    for i in range(24):
        pixels, _, scene, _ = render("scenes", i, 32, 0)
        path = folder / "places" / f"place {scene % 3}" / f"{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(path)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder in which the study has run."""
    folder = tmp_path_factory.mktemp("own")
    own_data(folder / "mine")
    (folder / "own.yaml").write_text(yaml.safe_dump(STUDY))
    snakemake(folder, "--cores", "2", "--configfile", "own.yaml")
    return folder


def test_every_class_is_measured_and_ignored_pixels_are_not(project: Path) -> None:
    root = project / "results" / "own"
    manifest = json.loads((root / "packs" / "segmentation" / "manifest.json").read_text())
    assert manifest["mask_classes"] == [f"class_{i}" for i in range(CLASSES)]
    store = (root / "packs" / "segmentation" / "images.npy").resolve().parent
    masks, test = np.load(store / "masks.npy"), np.load(root / "splits/finetune/size-10_seed-0.npz")["test"]
    assert set(np.unique(masks)) <= {*range(CLASSES), IGNORED}
    for name in ("pre-0_mid-none", "pre-12_mid-places"):
        path = root / "metrics" / f"{name}_fine-10_seed-0.json"
        metrics = json.loads(path.read_text())["metrics"]
        assert [key for key in metrics if key.startswith("iou_")] == sorted(f"iou_class_{i}" for i in range(CLASSES))
        confusion = np.load(path.with_suffix(".npz"))["confusion"]
        assert confusion.shape == (8, CLASSES, CLASSES)
        assert confusion.sum((1, 2)).tolist() == (masks[test] != IGNORED).sum((1, 2)).tolist()
        assert metrics["pixel_accuracy"] == pytest.approx(np.trace(confusion.sum(0)) / confusion.sum())
    assert (root / "report.html").is_file()
    page = (root / "report.html").read_text()
    assert "mine/unlabelled" in page
    stages = re.findall(r"pre-training|intermediate tasks|fine-tuning|U-Nets beside the study", page[page.index("Trainings</th>") :])
    assert stages[:4] == ["pre-training", "intermediate tasks", "fine-tuning", "U-Nets beside the study"]
    assert "Against the paper" not in page


def viny(folder: Path, *arguments: str, fails: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command as a person would; it must succeed, or fail as it should, and print no terminal colours."""
    done = subprocess.run([sys.executable, "-m", "viny", *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == fails, done.stdout[-2000:] + done.stderr[-2000:]
    assert "\x1b" not in done.stdout
    return done


def test_commands_for_people_work_on_it(project: Path, tmp_path: Path) -> None:
    root = project / "results" / "own"
    masks = np.load(root / "packs" / "segmentation" / "masks.npy")
    lists = np.load(root / "splits" / "finetune" / "size-10_seed-0.npz")
    absent = []
    for part, words in (("train", "training"), ("test", "test")):
        lacking = [f"class_{i}" for i in range(CLASSES) if i not in masks[lists[part]]]
        absent.append(f"segmentation: no pixel of {few(lacking)} in the {len(lists[part])} {words} masks as packed: ")
    said = viny(project, "check", "own.yaml").stdout.splitlines()
    left = next(at for at, line in enumerate(said) if line.startswith("What it cannot answer"))
    assert all("?  " in line for line in said[left + 1 : -1])
    assert [line[: len(start)] for line, start in zip(said[5:left], absent, strict=True)] == absent
    assert [*said[:5], said[-1]] == [
        "pretrain: mine/unlabelled: 14 images",
        "segmentation: mine/images: 20 images with masks of 11 classes",
        "segmentation: 20 masks have a palette; its indices are their values",
        "places: mine/places: 24 images of 3 classes: place 0, place 1, place 2; 18 for training, 6 held out",
        "segmentation.fit: pad, but places stretch: an encoder learns on other shapes than it is tuned for",
        f"own: 4 cells, {len(lists['test'])} test images, protocol sound; no faults found",
    ]
    plan = json.loads(viny(project, "plan", "own.yaml", "--rate", "100", "--json").stdout)
    assert plan["cells"] == 4
    status = viny(project, "status", "results/own").stdout
    assert "4 of 4 cells done" in status
    assert "0 wrong, 0 missing" in viny(project, "verify", "results/own").stdout
    advice = viny(project, "advise", "results/own").stdout
    assert "Study own: 4 of 4 cells" in advice
    assert "one seed" in advice  # which cannot tell an effect from luck
    cell = ("--root", "results/own", "--cell", "pre-12_mid-places_fine-10_seed-0")
    viny(project, "predict", *cell, "mine/images", "--out", str(tmp_path / "masks"))
    assert len(list((tmp_path / "masks").rglob("*_mask.png"))) == 20
    for mask in (tmp_path / "masks").rglob("*_mask.png"):
        name = mask.relative_to(tmp_path / "masks").as_posix().removesuffix("_mask.png")
        with Image.open(mask) as found, Image.open(next((project / "mine" / "images").glob(f"{name}.*"))) as image:
            assert found.size == image.size
            assert set(np.unique(np.asarray(found))) <= set(range(CLASSES))
    viny(project, "export", *cell, "--format", "timm", "--out", str(tmp_path / "own.safetensors"))
    assert (tmp_path / "own.safetensors.md").is_file()


def test_the_u_net_beside_the_cells_predicts_and_is_exported(project: Path, tmp_path: Path) -> None:
    cell = ("--root", "results/own", "--cell", "unet_fine-10_seed-0")
    names = (project / "results/own/packs/segmentation/images.npy").resolve().with_name("names.txt").read_text().split("\n")
    lists = np.load(project / "results/own/splits/finetune/size-10_seed-0.npz")
    images = tmp_path / "images"
    images.mkdir()
    for use, rows in (("training", lists["train"]), ("test", lists["test"])):  # known by its bytes, not by its name
        source = project / "mine" / "images" / names[rows[0]]
        shutil.copy(source, images / f"{use}{source.suffix}")
    Image.fromarray(render("segmentation", 99, 48, 0)[0].transpose(1, 2, 0)).save(images / "new.png")
    said = viny(project, "predict", *cell, str(images), "--out", str(tmp_path / "masks")).stdout
    assert "1 of them it was trained on" in said
    table = pd.read_csv(tmp_path / "masks" / "predictions.csv", keep_default_na=False)
    assert {Path(image).stem: use for image, use in zip(table["image"], table["used_for"], strict=True)} == {
        "training": "training",
        "test": "test",
        "new": "",
    }
    refused = viny(project, "export", *cell, "--format", "timm", fails=2)
    assert "--format onnx" in refused.stderr
    viny(project, "export", *cell, "--format", "onnx", "--out", str(tmp_path / "unet.onnx"))
    card = (tmp_path / "unet.onnx.md").read_text()
    assert "A small U-Net from scratch" in card and "pre-training" not in card and "8 test images" in card


def test_the_u_net_is_measured_at_the_images_own_size_too(project: Path) -> None:
    root = project / "results" / "own"
    table = pd.read_csv(root / "tables" / "references.csv").set_index("reference")
    record = json.loads((root / "references" / "unet_fine-10_seed-0.json").read_text())
    for key in ("own_size_miou_dataset", "own_size_miou_per_image"):
        assert 0 < record["metrics"][key] < 1
        columns = [key, f"lowest_{key}", f"highest_{key}"]
        assert table.loc["unet", columns].tolist() == pytest.approx([record["metrics"][key]] * 3, abs=1e-6)
        assert np.isnan(table.loc["constant", key])
    assert record["metrics"]["own_size_miou_dataset"] != record["metrics"]["miou_dataset"]


def test_other_weights_of_the_u_net_are_found(project: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(project, folder, symlinks=True)
    weights = folder / "results" / "own" / "references" / "unet_fine-10_seed-0.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    said = viny(folder, "verify", "results/own", fails=1)
    assert f"{weights.name}: sha256, by unet_fine-10_seed-0.json: expected" in said.stdout


def test_new_labels_change_what_learns_from_them_alone(project: Path, tmp_path: Path) -> None:
    assert planned(project, "--configfile", "own.yaml") == {}
    folder = tmp_path / "more"
    shutil.copytree(project, folder, symlinks=True)
    labelled(folder / "mine", 20)
    jobs = planned(folder, "--configfile", "own.yaml")
    assert jobs == {"pack": 1, "split": 1, "finetune": 4, "evaluate": 4, "reference": 1, "duplicates": 1, **_sums()}


def test_a_study_whose_folders_are_gone_stays_done(project: Path, tmp_path: Path) -> None:
    folder = tmp_path / "moved"
    shutil.copytree(project, folder, symlinks=True)
    shutil.rmtree(folder / "mine")
    assert planned(folder, "--configfile", "own.yaml") == {}


def _sums() -> dict[str, int]:
    return {name: count for name, count in SUMS.items() if name != "representations"}
