"""A study whose encoder starts from published weights of timm's architecture, from the file to the exported model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_study import Study

pytest.importorskip("jsonschema", reason="the settings that a study wrote are completed by its schema")

from viny.cli import main
from viny.data.augment import IMAGENET, Normalisation, labelled_images, normalise
from viny.data.pack import open_pack
from viny.data.splits import read_split
from viny.evidence.evaluate import draws_of_test_images, predict
from viny.evidence.geometry import measure
from viny.evidence.token_metrics import within_image_variance
from viny.learning.machine import Machine
from viny.learning.objectives import SimMIM
from viny.learning.published import fetch
from viny.learning.settings import TIMM_SIZES
from viny.learning.weights import load_encoder, load_segmentation, new_encoder, read_weights
from viny.runtime.errors import InputError
from viny.runtime.files import file_sha256, read_sealed
from viny.study import layout, specs
from viny.study.grid import Arm, Cell, Encoder, cells
from viny.study.saved import saved_study, write_study

NAME = "vit_tiny_patch16_224"
OWN = Normalisation((0.5,) * 3, (0.5,) * 3)
SIZE = 32


@dataclass
class Started:
    """A tiny study with a published start, trained with and without SimMIM on top of it."""

    study: Study
    start: Path
    pretrained: Path
    cells: dict[int, Cell]  # by the number of images of their pre-training
    finetuned: dict[int, Path]

    @property
    def root(self) -> Path:
        return self.study.root


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory, made_study: Callable[[str], dict[str, Any]]) -> Started:
    root = tmp_path_factory.mktemp("published") / "results" / "tiny"
    torch.manual_seed(5)
    file = root.parents[1] / "published.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TIMM_SIZES, "tiny", {"dim": 64, "heads": 1})  # a smaller one, for the sake of time
        model = timm.create_model(NAME, embed_dim=64, num_heads=1)
        save_file(model.state_dict(), file)
        config = made_study("paper")  # which shows the fine-tuning images as they are
        config["model"] |= {"image_size": SIZE, "patch_size": 8}
        config["pretrain"]["pack_size"] = 40
        config["starts"] = {"tiny": {"timm": NAME, "weights": str(file)}}
        config["grid"] |= {"starts": ["random", "tiny"], "intermediates": ["none", "scenes"], "seeds": [0]}
        write_study(root, config)
        config = saved_study(root)
        study = Study(root, config)
        start = layout.start_file(root, "tiny", "record")
        fetch(specs.start_spec(config, "tiny"), weights=layout.start_file(root, "tiny", "weights"), record=start)
        keys = {size: next(c for c in cells(config) if c == Cell(size, "none", 8, 0, "tiny")) for size in (0, 24)}
        made = layout.chain(keys[24])[0]
        pretrained = study.pretrain(parent=start, arm=Arm("tiny"))
        moved = made.file(root, "record")
        moved.parent.mkdir(parents=True)
        for suffix in (".json", ".safetensors"):
            pretrained.with_suffix(suffix).rename(moved.with_suffix(suffix))
        parents = {0: start, 24: moved}
        tuned = {size: study.finetune(key, parents[size], f"finetune/{key.name}") for size, key in keys.items()}
        yield Started(study, start, moved, keys, tuned)


def weights_of(record: Path) -> dict[str, torch.Tensor]:
    return read_weights(record)[0]


def test_trainings_go_on_from_the_published_weights(started: Started) -> None:
    start, after = weights_of(started.start), weights_of(started.pretrained)
    moved = {name: float((after[name] - value).abs().max()) for name, value in start.items()}
    assert moved["encoder.cls_token"] == 0  # SimMIM has no use for it
    assert all(0 < change < 0.02 for name, change in moved.items() if name != "encoder.cls_token")
    records = {path: read_sealed(path, "a weights record") for path in (started.start, started.pretrained)}
    assert records[started.pretrained]["parent_sha256"] == records[started.start]["weights_sha256"]
    for size, path in started.finetuned.items():
        record = read_sealed(path, "a weights record")
        parent = started.pretrained if size else started.start
        assert record["parent_sha256"] == records[parent]["weights_sha256"]
        assert record["spec"]["model"] == {**record["spec"]["model"], "architecture": "timm", "dim": 64}
    # And every record says how its model wants its images.
    for path in (started.start, started.pretrained, *started.finetuned.values()):
        assert read_sealed(path, "a weights record")["normalisation"] == {"mean": [0.5] * 3, "std": [0.5] * 3}


def test_simmim_sees_the_images_as_the_published_model_did(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    loss = SimMIM.loss
    monkeypatch.setattr(SimMIM, "loss", lambda self, batch: (seen.append(batch[0]), loss(self, batch))[1])
    for parent, arm in ((started.start, Arm("tiny")), (None, Arm())):
        Study(started.root / f"again-{arm.start}", started.study.config).pretrain(parent=parent, arm=arm)
    own, others = torch.cat(seen[: len(seen) // 2]), torch.cat(seen[len(seen) // 2 :])
    torch.testing.assert_close(normalise(own * 0.5 + 0.5), others, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [0, 24])
def test_it_is_evaluated_with_its_own_normalisation(size: int, started: Started) -> None:
    study, cell = started.study, started.cells[size]
    metrics = study.evaluate(cell, started.finetuned[size])
    manifest, split, indices = study.finetune_inputs(cell)
    pack = open_pack(manifest)
    test = read_split(split, indices, pack)["test"]
    draws = draws_of_test_images(specs.evaluate_spec(study.config, cell), len(test))
    accuracy = {}
    for by in (OWN, IMAGENET, False):
        model, record = load_segmentation(started.finetuned[size])
        truth, guess = predict(model, pack, test, by, draws, Machine(torch.device("cpu"), "float32"))
        accuracy[by] = float((truth == guess).float().mean())
    assert record["spec"]["normalise"] is False  # which the model's own goes before
    assert metrics["metrics"]["pixel_accuracy"] == pytest.approx(accuracy[OWN])
    assert len(set(accuracy.values())) == 3


def geometry(started: Started, encoder: Encoder, out: Path, record: Path, reference: Path, **over: Any) -> Any:
    more = {"geometry": {"images": 6, "probe_images": 8}, "figures": {"examples": 1}}
    spec = specs.geometry_spec({**started.study.config, **more}, encoder)
    spec["encoder"] |= over
    files = dict(zip(("manifest", "split", "indices"), started.study.finetune_inputs(started.cells[0]), strict=True))
    measure(spec, **files, encoder=record, reference=reference, metrics=out / "g.json", arrays=out / "g.npz")
    return read_sealed(out / "g.json", "the geometry of an encoder")


def test_its_geometry_is_measured_with_its_own_normalisation(started: Started, tmp_path: Path) -> None:
    start, after = Encoder("random", 0, "none", 0, 0, "tiny"), Encoder("pretrained", 24, "none", 0, 0, "tiny")
    found = geometry(started, start, tmp_path, started.start, started.start)
    assert (found["reference"], found["normalisation"]["mean"]) == ("start", [0.5] * 3)
    assert found["output"]["linear_cka"] == pytest.approx(1)
    pack, rows = open_pack(started.study.pack("segmentation")), np.load(tmp_path / "g.npz")["held_out"]
    encoder = new_encoder(read_sealed(started.start, "a weights record")["spec"]["model"], 0)
    load_encoder(encoder, started.start)
    images = torch.from_numpy(pack.rows("images", rows))
    with torch.inference_mode():
        tokens = [encoder.encode(labelled_images(images, None, by), False).double().numpy() for by in (OWN, IMAGENET)]
    own, other = map(within_image_variance, tokens)
    assert found["output"]["within_image_variance"] == pytest.approx(own, rel=1e-4) != pytest.approx(other, rel=1e-3)
    found = geometry(started, after, tmp_path, started.pretrained, started.pretrained)
    assert found["reference"] == "pretrained"


def test_geometry_refuses_a_record_of_another_start(started: Started, tmp_path: Path) -> None:
    start, after = Encoder("random", 0, "none", 0, 0, "tiny"), Encoder("pretrained", 24, "none", 0, 0, "tiny")
    with pytest.raises(InputError, match="expected 'start'"):
        geometry(started, start, tmp_path, started.pretrained, started.start)
    with pytest.raises(InputError, match="its start is 'tiny', expected 'other'"):
        geometry(started, start, tmp_path, started.start, started.start, start="other")
    with pytest.raises(InputError, match="its start is 'tiny', expected 'other'"):
        geometry(started, after, tmp_path, started.pretrained, started.pretrained, start="other")


def test_predict_shows_it_the_images_as_its_training_did(started: Started, tmp_path: Path) -> None:
    cell = started.finetuned[24].parent
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    out = tmp_path / "out"
    options = ["--cell", str(cell), "--out", str(out), "--precision", "float32", "--device", "cpu"]
    assert main(["predict", *options, str(tmp_path / "a.png")]) == 0
    model, _ = load_segmentation(cell / "model.json")
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    with torch.inference_mode():
        maps = [model(labelled_images(images, None, by)).argmax(1)[0].numpy() for by in (OWN, IMAGENET)]
    found = np.asarray(Image.open(out / "a_mask.png"))
    assert np.array_equal(found, maps[0]) and not np.array_equal(found, maps[1])


@pytest.mark.parametrize("kind", ["timm", "onnx"])
def test_it_is_exported_as_timms_own_with_its_normalisation_and_its_origin(
    kind: str, started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    cell = started.finetuned[24].parent
    file = tmp_path / f"model.{'safetensors' if kind == 'timm' else 'onnx'}"
    assert main(["export", "--cell", str(cell), "--format", kind, "--out", str(file)]) == 0
    card = file.with_name(f"{file.name}.md").read_text()
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0], space)
    images = torch.rand(2, 3, SIZE, SIZE)
    scores = space["segment"](images if kind == "timm" else images.numpy())
    model, _ = load_segmentation(cell / "model.json")
    with torch.inference_mode():
        expected = model(normalise(images, OWN))
    torch.testing.assert_close(torch.as_tensor(scores), expected, atol=1e-5, rtol=1e-5)
    assert "transformer of timm's architecture, " in card and "start `tiny`" in card and "WideAttention" not in card
    assert "Its encoder started from published weights: published.safetensors." in card
    published = started.root.parents[1] / "published.safetensors"
    assert (
        f"| published.safetensors | `{file_sha256(published)}` |" in card and str(started.root.parents[1]) not in card
    )
    assert "SimMIM pre-training |" in card and "no record is left" not in card
    if kind == "timm":
        about = json.loads((tmp_path / "model.json").read_text())
        assert (about["mean"], about["std"]) == ([0.5] * 3, [0.5] * 3)
        assert load_file(file)["patch_embed.proj.weight"].shape == (64, 3, 16, 16)


def test_a_card_says_that_the_published_weights_are_gone(started: Started, tmp_path: Path) -> None:
    record = started.start
    content = record.read_bytes()
    try:
        record.unlink()
        cell = started.finetuned[0].parent
        assert main(["export", "--cell", str(cell), "--format", "timm", "--out", str(tmp_path / "a.safetensors")]) == 0
    finally:
        record.write_bytes(content)
    card = (tmp_path / "a.safetensors.md").read_text()
    assert "Of the start `tiny` before it no record is left" in card and "started from published" not in card
