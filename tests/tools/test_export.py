"""`viny export`: files that plain timm and onnxruntime load as their cards show, and what the cards say."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from patience import PATIENCE
from PIL import Image
from tiny_study import Study
from trained_cell import make_cell

pytest.importorskip("jsonschema", reason="the settings that a study wrote are completed by its schema")

from viny.cli import main
from viny.data.augment import normalise
from viny.data.decoding import decode
from viny.data.pack import open_pack
from viny.evidence.own_size import class_map
from viny.learning.machine import Machine
from viny.learning.weights import load_segmentation
from viny.runtime.files import read_json, write_json, write_sealed
from viny.study import layout
from viny.study.grid import Cell
from viny.study.saved import write_study
from viny.tools.trained.cell import load_cell
from viny.tools.trained.export import timm_arguments
from viny.tools.trained.model_card import write_card
from viny.tools.trained.predict import class_scores

CELL = Cell(0, "none", 8, 0)
ABSOLUTE = 1e-5

# Classes, class token, loss, normalised, fit, dimensions that differ. 4 does not divide 18, and 49 * (64 / 49) < 64.
CASES: dict[str, tuple[int, bool, str, bool, str, dict[str, int]]] = {
    "plain": (3, False, "class_softmax", True, "stretch", {}),
    "token": (11, True, "class_softmax", False, "crop", {"dim": 18, "heads": 4, "head_dim": 5}),
    "pixel": (2, False, "pixel_softmax", True, "pad", {"dim": 49, "mlp_dim": 64}),
}

# What a user's own program would add to the card's first block: everything of one case, compared in the test.
PROGRAM = """
import os, sys
import numpy as np
for folder in sys.argv[1:]:
    os.chdir(folder)
    space = {}
    exec(open("load.py").read(), space)
    torch = space.get("torch")
    for count in (1, 3):
        images = np.load(f"images-{count}.npy")
        scores = space["segment"](torch.from_numpy(images) if torch else images)
        np.save(f"scores-{count}.npy", np.asarray(scores))
    exec(open("prepare.py").read(), space)
    np.save("mask.npy", space["mask"])
assert not [name for name in sys.modules if name.split(".")[0] == "viny"]
"""


@pytest.fixture
def made(tmp_path: Path, made_study: Callable[[str], dict[str, Any]]) -> Callable[..., Path]:
    """Makes the cell of a case, in a study of its own."""

    def make(case: str, depth: int = 2) -> Path:
        count, token, loss, normalised, fit, model = CASES[case]
        config = made_study("sound")
        config["model"] |= {**model, "depth": depth}
        config["switches"] |= {
            "class_token": "always" if token else "intermediate",
            "segmentation_loss": loss,
            "normalise_finetune": normalised,
        }
        config["segmentation"]["fit"] = fit
        return make_cell(tmp_path / case / "study", config, CELL, [f"kind {i}" for i in range(count)])

    return make


def export(cell: Path, kind: str, out: Path, *more: str) -> int:
    return main(["export", "--cell", str(cell), "--format", kind, "--out", str(out), *more])


def blocks(card: Path) -> list[str]:
    """The Python that a card shows."""
    return re.findall(r"```python\n(.*?)```", card.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("kind", ["timm", "onnx", "hf"])
def test_the_card_loads_a_model_whose_scores_are_the_cells_own(
    kind: str, made: Callable[..., Path], tmp_path: Path
) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    out, card = {
        "timm": ("model.safetensors", "model.safetensors.md"),
        "onnx": ("model.onnx", "model.onnx.md"),
        "hf": ("", "README.md"),
    }[kind]
    rng = np.random.default_rng(0)
    for case in CASES:
        folder = tmp_path / case / "exported"
        assert export(made(case), kind, folder / out) == 0
        load, prepare = blocks(folder / card)
        (folder / "load.py").write_text(load)
        (folder / "prepare.py").write_text(prepare)
        for count in (1, 3):
            np.save(folder / f"images-{count}.npy", rng.random((count, 3, 24, 24), np.float32))
        Image.fromarray(rng.integers(0, 256, (31, 50, 3)).astype(np.uint8)).save(folder / "image.jpg", quality=95)
    folders = [str(tmp_path / case / "exported") for case in CASES]
    subprocess.run([sys.executable, "-c", PROGRAM, *folders], check=True, timeout=PATIENCE, cwd=tmp_path)
    for case, (_, _, loss, normalised, fit, _) in CASES.items():
        folder = tmp_path / case / "exported"
        cell = tmp_path / case / "study" / "finetune" / CELL.name
        model, _ = load_segmentation(cell / "model.json")
        for count in (1, 3):
            images = torch.from_numpy(np.load(folder / f"images-{count}.npy"))
            with torch.inference_mode():
                expected = model(normalise(images) if normalised else images).numpy()
            found = np.load(folder / f"scores-{count}.npy")
            assert found.shape == expected.shape and found.dtype == np.float32
            assert abs(found - expected).max() <= ABSOLUTE, case
            assert np.array_equal(found.argmax(1), expected.argmax(1))
            assert expected.std() > 0.1  # not a comparison of constants
            if loss == "pixel_softmax":
                assert np.exp(found).sum((2, 3)) == pytest.approx(1, abs=1e-4)
        # What the card shows for an image file is what `predict` does with it.
        out = tmp_path / case / "out"
        options = ["--cell", str(cell), "--out", str(out), "--precision", "float32", "--device", "cpu"]
        assert main(["predict", *options, str(folder / "image.jpg")]) == 0
        mask = np.asarray(Image.open(out / "image_mask.png"))
        square = np.load(folder / "mask.npy")
        one = load_cell(cell)
        pixels = decode(folder / "image.jpg", one.size, one.resize, fit=fit).pixels
        scores = class_scores(one, pixels[None].copy(), Machine.choose("cpu", "float32", 1))[0]
        assert (scores.argmax(0).numpy() == square).all()
        assert np.array_equal(mask, class_map(scores, 31, 50, fit))


def test_a_folder_for_the_hub_has_what_its_programs_look_for(evaluated: tuple[Path, Cell], tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    root, cell = evaluated
    assert export(layout.chain(cell)[-1].folder(root), "hf", tmp_path / "own") == 0
    card = hub.ModelCard.load(tmp_path / "own" / "README.md")  # of the hub's own library, which checks the metadata
    assert (card.data.pipeline_tag, card.data.library_name, card.data.license) == (
        "image-segmentation",
        "pytorch",
        None,
    )
    measured = read_json(layout.metrics_file(root, cell), "metrics")["metrics"]
    found = {one.metric_type: one.metric_value for one in card.data.eval_results}
    expected = {"mean_iou": measured["miou_dataset"], "accuracy": measured["pixel_accuracy"]}
    assert found == pytest.approx(expected, abs=1e-5)
    config = json.loads((tmp_path / "own" / "config.json").read_text())
    assert [config["id2label"][str(i)] for i in range(config["num_labels"])] == load_cell(
        layout.chain(cell)[-1].folder(root)
    ).classes
    assert config["label2id"] == {name: int(index) for index, name in config["id2label"].items()}
    (tmp_path / "file").write_text("mine")
    assert export(layout.chain(cell)[-1].folder(root), "hf", tmp_path / "file") == 2


def test_the_hubs_processor_prepares_an_image_as_the_card_does(made: Callable[..., Path], tmp_path: Path) -> None:
    for case, (_, _, _, _, fit, _) in CASES.items():
        assert export(made(case), "hf", tmp_path / case / "own") == 0
        assert (tmp_path / case / "own" / "preprocessor_config.json").exists() == (fit == "stretch")
    transformers = pytest.importorskip("transformers", reason="its processor is not installed")
    folder = tmp_path / "plain" / "own"
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (31, 50, 3), np.uint8))
    image.save(folder / "image.jpg", quality=100)
    space: dict[str, Any] = {}
    exec(blocks(folder / "README.md")[1].split("mask =")[0].replace("image.jpg", str(folder / "image.jpg")), space)
    mean, std = (np.array(values).reshape(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    processor = transformers.ViTImageProcessor.from_pretrained(folder)
    found = processor(Image.open(folder / "image.jpg"), return_tensors="np")["pixel_values"][0]
    assert abs(found - (space["images"][0] - mean) / std).max() < 0.02  # a level of 255


def test_a_graph_says_what_it_takes_and_nothing_of_where_it_was_made(made: Callable[..., Path], tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    cell = made("pixel", depth=1)
    for name in ("a.onnx", "b.onnx"):
        assert export(cell, "onnx", tmp_path / "out" / name) == 0
    content = (tmp_path / "out" / "a.onnx").read_bytes()
    assert content == (tmp_path / "out" / "b.onnx").read_bytes()
    proto = onnx.load(tmp_path / "out" / "a.onnx")
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*proto.graph.input, *proto.graph.output)
    }
    assert shapes == {"images": ["batch", 3, 24, 24], "logits": ["batch", 2, 24, 24]}
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", 18)]
    about = {item.key: item.value for item in proto.metadata_props}
    assert json.loads(about["classes"]) == ["kind 0", "kind 1"]
    assert (about["fit"], about["cell"]) == ("pad", CELL.name)
    for private in (str(Path(__file__).parents[2]), str(tmp_path), "objectives.py"):
        assert private.encode() not in content


def test_a_graph_that_is_not_the_models_is_not_written(
    made: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxscript")
    cell, exporter = made("plain", depth=1), torch.onnx.export

    def other_weights(graph: torch.nn.Module, *arguments: Any, **options: Any) -> Any:
        graph.model.head.bias.data[0] += 1e-3
        return exporter(graph, *arguments, **options)

    def one_size(*arguments: Any, dynamic_shapes: Any, **options: Any) -> Any:
        return exporter(*arguments, **options)

    for faulty, said in ((other_weights, "differ from the model's"), (one_size, "batches of 2 only")):
        monkeypatch.setattr(torch.onnx, "export", faulty)
        assert export(cell, "onnx", tmp_path / "out" / "a.onnx") == 2
        assert said in capsys.readouterr().err
        assert not list((tmp_path / "out").iterdir())


def test_without_its_packages_the_onnx_export_says_how_to_get_them(
    made: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("viny.tools.trained.export.importlib.util.find_spec", lambda name: None)
    assert export(made("plain"), "onnx", tmp_path / "a.onnx") == 2
    assert 'pip install "viny[export]"' in capsys.readouterr().err
    assert not (tmp_path / "a.onnx").exists()


def test_no_other_command_loads_what_the_onnx_export_needs() -> None:
    code = (
        "import sys, viny.tools.trained.export, viny.tools.trained.model_card, viny.tools.trained.predict\n"
        "assert not {'onnx', 'onnxscript', 'onnxruntime', 'timm'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE)


def test_files_are_replaced_only_when_told_and_end_as_they_must(
    made: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cell, out = made("plain"), tmp_path / "out"
    out.mkdir()
    (out / "a.json").write_text("mine")
    assert export(cell, "timm", out / "a.safetensors") == 2
    assert str(out / "a.json") in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["a.json"]
    assert export(cell, "timm", out / "a.safetensors", "--overwrite") == 0
    assert capsys.readouterr().out.split() == [
        str(out / f"a.{end}") for end in ("safetensors", "json", "safetensors.md")
    ]
    assert export(cell, "timm", out / "a.onnx") == 2
    assert ".safetensors" in capsys.readouterr().err


def test_arguments_give_timm_the_width_of_the_mlp(made: Callable[..., Path]) -> None:
    for case in CASES:
        model, record = load_segmentation(made(case) / "model.json")
        args = timm_arguments(model)["args"]
        assert int(args["embed_dim"] * args["mlp_ratio"]) == record["spec"]["model"]["mlp_dim"]


@pytest.fixture(scope="module")
def evaluated(
    tmp_path_factory: pytest.TempPathFactory, made_study: Callable[[str], dict[str, Any]]
) -> tuple[Path, Cell]:
    """A study's folder with two trained and evaluated seeds of a pre-trained cell with an intermediate task."""
    root = tmp_path_factory.mktemp("study") / "results" / "tiny"
    config = made_study("sound")
    write_study(root, config)
    by_hand = Study(root, config)
    for seed in (0, 1):
        cell = Cell(24, "scenes", 8, seed)
        records = {
            "pretrain/size-24_seed-{}": (record := by_hand.pretrain(seed=seed)),
            "intermediate/scenes/size-24_seed-{}": (record := by_hand.intermediate("scenes", record, seed=seed)),
        }
        finetuned = by_hand.finetune(cell, record)
        by_hand.evaluate(cell, finetuned)
        # Where the workflow has them.
        for pattern, path in records.items():
            move(path, root / pattern.format(seed), "encoder")
        move(finetuned, layout.chain(cell)[-1].folder(root), "model")
        metrics = layout.metrics_file(root, cell)
        metrics.parent.mkdir(exist_ok=True)
        (root / "metrics.json").rename(metrics)
    return root, cell


def move(record: Path, folder: Path, name: str) -> None:
    folder.mkdir(parents=True)
    record.with_suffix(".safetensors").rename(folder / f"{name}.safetensors")
    record.rename(folder / f"{name}.json")
    (record.parent / "run.json").rename(folder / "run.json")


def card_of(root: Path, cell: Cell, out: Path) -> str:
    assert export(layout.chain(cell)[-1].folder(root), "timm", out / "a.safetensors", "--overwrite") == 0
    return (out / "a.safetensors.md").read_text()


def test_a_card_tells_data_settings_results_and_hashes(evaluated: tuple[Path, Cell], tmp_path: Path) -> None:
    root, cell = evaluated
    card = card_of(root, cell, tmp_path)
    _, front, body = card.split("---\n", 2)
    heading = yaml.safe_load(front)
    assert heading["pipeline_tag"] == "image-segmentation"
    assert "license" not in heading  # that is for the user to choose
    assert {"simmim", "timm"} <= set(heading["tags"])
    assert "> Test study." in body
    mine, other = (read_json(root / "metrics" / f"{Cell(24, 'scenes', 8, s).name}.json", "metrics") for s in (1, 0))
    for name, said in (("pixel_accuracy", "pixel accuracy"), ("iou_ground", "IoU of ground")):
        both = 100 * np.array([mine["metrics"][name], other["metrics"][name]])
        assert f"| {said} | {both[0]:.2f} | {both.mean():.2f} ± {both.std(ddof=1):.2f} |" in body
    assert f"on {mine['test_images']} test images" in body
    for stage, folder in (
        ("SimMIM pre-training", "pretrain/size-24_seed-1"),
        ("intermediate task `scenes`", "intermediate/scenes/size-24_seed-1"),
        ("fine-tuning", f"finetune/{cell.name}"),
    ):
        record = read_json(next((root / folder).glob("*r.json" if "fine" not in folder else "model.json")), "a record")
        assert f"| weights after {stage} | `{record['weights_sha256']}` |" in body
        assert f"`{record['pack_sha256']}`" in body
        train = record["spec"]["train"]
        assert f"| {stage} | {train['epochs']} | {train['batch_size']} | {train['optimizer']} |" in body
    count = len(open_pack(root / "packs" / "segmentation" / "manifest.json"))
    assert f"| fine-tuning | synthetic | 8 | {count} | 24 |" in body
    shown = re.sub(r"```.*?```", "", body, flags=re.DOTALL)
    assert not re.search(r"\bnan\b|None|\{\{|undefined", shown)
    assert str(root.parents[1]) not in card and "/tmp" not in card  # nothing about this machine
    assert "It had no images of 16 bits a channel" in body
    trained = load_cell(layout.chain(cell)[-1].folder(root))
    deep = {**trained.manifest, "conventions": {"sixteen_bit": {"white": 4095}}}
    files = [tmp_path / name for name in ("a.safetensors", "a.json", "a.safetensors.md")]
    write_card(replace(trained, manifest=deep), "timm", files)
    assert "from 0 and 4095 to 0 and 255" in files[-1].read_text()


def test_a_card_tells_of_how_many_groups_the_test_images_are(evaluated: tuple[Path, Cell], tmp_path: Path) -> None:
    root, cell = tmp_path / "results" / "tiny", evaluated[1]
    shutil.copytree(evaluated[0], root)
    images = read_json(layout.metrics_file(root, cell), "metrics")["test_images"]
    assert f"Tested on {images} test images, held out" in card_of(root, cell, tmp_path)
    number = np.arange(images)
    np.savez(root / layout.CONFUSION.format(cell=cell.name), indices=number, groups=number // 2)
    body = card_of(root, cell, tmp_path)
    said = f"{images} test images of {(images + 1) // 2} groups"
    assert f"Tested on {said}, held out" in body and f"Percent, on {said}" in body


def test_a_card_says_what_it_cannot_know(evaluated: tuple[Path, Cell], tmp_path: Path) -> None:
    root, cell = evaluated
    record_path = root / "pretrain" / "size-24_seed-1" / "encoder.json"
    metrics_path, other_path = (root / "metrics" / f"{Cell(24, 'scenes', 8, seed).name}.json" for seed in (1, 0))
    record, metrics = read_json(record_path, "a record"), read_json(metrics_path, "metrics")
    try:
        write_sealed(record_path, {**record, "weights_sha256": "2" * 64})  # another pre-training than this model's
        card = card_of(root, cell, tmp_path)
        assert "Of the SimMIM pre-training before it no record is left" in card
        assert "| weights after SimMIM" not in card
        assert "| weights after intermediate task" in card
        changed = {**metrics, "hashes": {**metrics["hashes"], "weights": "3" * 64}}  # from weights that are gone
        write_sealed(metrics_path, changed)
        card = card_of(root, cell, tmp_path)
        assert "was not evaluated" in card and "It was not tested" in card
        assert "pixel accuracy" not in card
        write_sealed(metrics_path, {**metrics, "metrics": {**metrics["metrics"], "iou_border": None}})
        assert re.search(r"\| IoU of border \| undefined \| [\d.]+ ± undefined \|", card_of(root, cell, tmp_path))
        other_path.rename(tmp_path / "other.json")
        card = card_of(root, cell, tmp_path)
        assert "| IoU of border | undefined |" in card
        assert "border is in no test mask: nothing is known of it" in card and "is in no mask that" not in card
        absent = {"averaged": ["pet"], "not_in_test": [], "not_in_training": ["border"]}
        write_sealed(metrics_path, {**metrics, "classes": absent})
        assert "border is in no mask that it was fine-tuned on" in card_of(root, cell, tmp_path)
        assert "One seed" in card
    finally:
        write_json(record_path, record)
        write_json(metrics_path, metrics)
        if not other_path.exists():
            (tmp_path / "other.json").rename(other_path)
