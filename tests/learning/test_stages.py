"""Stages from files to files: a whole tiny study, twice, and with damaged inputs."""

from __future__ import annotations

import copy
import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_study import Study

from viny.data import splits
from viny.data.augment import labelled_images
from viny.data.pack import Pack, open_pack
from viny.evidence.evaluate import confusion_matrices, draws_of_test_images, predict
from viny.evidence.metrics import summarise
from viny.learning.machine import Machine
from viny.learning.objectives import Classification, PatchClassification
from viny.learning.settings import ModelSettings
from viny.learning.stages import held_out_accuracy
from viny.learning.weights import (
    load_encoder,
    load_segmentation,
    load_weights,
    new_encoder,
    read_weights,
    weights_beside,
)
from viny.runtime.errors import InputError
from viny.runtime.files import digest, file_sha256
from viny.study import specs
from viny.study.grid import Cell


@dataclass
class Chain:
    """Records of one cell's stages, and its metrics."""

    study: Study
    cell: Cell
    pretrain: Path
    intermediate: Path
    finetune: Path
    metrics: dict[str, Any]

    @property
    def stages(self) -> dict[str, Path]:
        return {name: getattr(self, name) for name in ("pretrain", "intermediate", "finetune")}


def run_chain(root: Path, config: dict[str, Any], task: str = "scenes") -> Chain:
    study, cell = Study(root, config), Cell(24, task, 16, 0)
    pretrained = study.pretrain()
    middle = study.intermediate(task, pretrained)
    tuned = study.finetune(cell, middle)
    return Chain(study, cell, pretrained, middle, tuned, study.evaluate(cell, tuned))


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, made_study: Callable[[str], dict[str, Any]]) -> Chain:
    return run_chain(tmp_path_factory.mktemp("sound"), made_study("sound"))


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory, made_study: Callable[[str], dict[str, Any]]) -> Chain:
    return run_chain(tmp_path_factory.mktemp("paper"), made_study("paper"))


@pytest.fixture
def own(chain: Chain, tmp_path: Path) -> Chain:
    """A copy of the chain's files, to damage."""
    root = Path(shutil.copytree(chain.study.root, tmp_path / "copy"))
    moved = {name: root / path.relative_to(chain.study.root) for name, path in chain.stages.items()}
    return replace(chain, study=Study(root, chain.study.config), **moved)


def record_of(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def same_weights(a: Path, b: Path) -> bool:
    first, second = (load_weights(weights_beside(path))[0] for path in (a, b))
    return all(torch.equal(first[k], second[k]) for k in first)


# What is written


@pytest.mark.parametrize(("stage", "epochs"), [("pretrain", 2), ("intermediate", 2), ("finetune", 3)])
def test_every_stage_writes_its_files(chain: Chain, stage: str, epochs: int) -> None:
    path = chain.stages[stage]
    names = {"model.safetensors", "model.json", "curve.csv", "run.json"}
    assert {p.name for p in path.parent.iterdir()} == names
    with open(path.parent / "curve.csv", encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == epochs
    record, run = record_of(path), record_of(path.parent / "run.json")
    assert record["stage"] == stage
    assert record["final_loss"] == float(rows[-1]["loss"])
    assert run["image_passes"] == record["images"] * epochs
    assert (run["device"], run["precision"], run["threads"], run["seed"]) == ("cpu", "float32", 1, 0)
    assert run["hashes"] == {
        "spec": digest(record["spec"]),
        "pack": record["pack_sha256"],
        "split": record["split_sha256"],
        "weights": file_sha256(weights_beside(path)),
        "parent_weights": record["parent_sha256"],
    }
    # When and where is kept apart, so that the record repeats.
    assert not {"started", "host", "seconds", "threads"} & record.keys()


def test_hashes_lead_from_metrics_to_data(chain: Chain) -> None:
    records = {name: record_of(path) for name, path in chain.stages.items()}
    for name, path in chain.stages.items():
        assert records[name]["weights_sha256"] == file_sha256(weights_beside(path))
    assert records["pretrain"]["parent_sha256"] is None
    assert records["intermediate"]["parent_sha256"] == records["pretrain"]["weights_sha256"]
    assert records["finetune"]["parent_sha256"] == records["intermediate"]["weights_sha256"]
    packs = {name: open_pack(chain.study.pack(name)).sha256 for name in ("pretrain", "scenes", "segmentation")}
    assert len(set(packs.values())) == 3
    assert [records[stage]["pack_sha256"] for stage in chain.stages] == list(packs.values())
    hashes = chain.metrics["hashes"]
    assert hashes["weights"] == records["finetune"]["weights_sha256"]
    assert hashes["parent_weights"] == records["intermediate"]["weights_sha256"]
    assert hashes["pack"] == packs["segmentation"]
    assert hashes["split"] == records["finetune"]["split_sha256"]
    assert hashes["spec"] == digest(specs.evaluate_spec(chain.study.config, chain.cell))


def test_weights_carry_their_own_description(chain: Chain) -> None:
    for path in chain.stages.values():
        metadata, record = load_weights(weights_beside(path))[1], read_weights(path)[1]
        assert record.pop("sha256") == digest(record)
        record.pop("weights_sha256")  # of the file, so it cannot be in it
        assert metadata == record


def test_stages_hand_on_the_encoder(chain: Chain) -> None:
    """A stage that does not train starts where its parent ended."""
    encoder = new_encoder(chain.study.config["model"], 0)
    start = copy.deepcopy(encoder.state_dict())
    load_encoder(encoder, chain.pretrain)
    tensors = load_weights(weights_beside(chain.pretrain))[0]
    assert all(torch.equal(v, tensors[f"encoder.{k}"]) for k, v in encoder.state_dict().items())
    assert not torch.equal(encoder.state_dict()["blocks.0.attn.qkv.weight"], start["blocks.0.attn.qkv.weight"])
    # SimMIM has no use for the class token: it is the seed's own until the intermediate task.
    assert torch.equal(encoder.cls_token, start["cls_token"])
    load_encoder(encoder, chain.intermediate)
    assert not torch.equal(encoder.cls_token, start["cls_token"])


def test_parent_matters(chain: Chain, own: Chain) -> None:
    none = own.study.finetune(own.cell, None)
    assert record_of(none)["parent_sha256"] is None
    assert not same_weights(none, chain.finetune)
    assert same_weights(own.study.finetune(own.cell, own.intermediate), chain.finetune)


# Repeatability


def test_twice_gives_the_same_files(chain: Chain, tmp_path: Path) -> None:
    torch.manual_seed(999)  # the global generator is not an input
    again = run_chain(tmp_path, chain.study.config)
    for name, path in chain.stages.items():
        other = again.stages[name]
        assert path.read_bytes() == other.read_bytes(), name
        assert weights_beside(path).read_bytes() == weights_beside(other).read_bytes(), name
    assert again.metrics["metrics"] == chain.metrics["metrics"]
    assert again.metrics["hashes"] == chain.metrics["hashes"]


def test_another_seed_gives_other_weights(chain: Chain, own: Chain) -> None:
    first = weights_beside(chain.pretrain).read_bytes()
    assert weights_beside(own.study.pretrain(seed=1)).read_bytes() != first


# Refusals


def test_tampered_weights_are_refused(own: Chain) -> None:
    path = weights_beside(own.intermediate)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"intermediate-scenes/model\.safetensors: content differs"):
        own.study.finetune(own.cell, own.intermediate)
    path.unlink()
    with pytest.raises(InputError, match=r"model\.safetensors: no such weights file"):
        own.study.finetune(own.cell, own.intermediate)
    with pytest.raises(InputError, match=r"absent\.json: no such file; expected a weights record"):
        own.study.finetune(own.cell, own.study.root / "absent.json")


@pytest.mark.parametrize("change", [{"dim": 24}, {"depth": 3}, {"head_dim": 12}, {"patch_size": 4}])
def test_weights_of_other_dimensions_are_refused(own: Chain, change: dict[str, int]) -> None:
    config = own.study.config | {"model": own.study.config["model"] | change}
    with pytest.raises(InputError, match=r"pretrain/model\.safetensors: does not fit the model"):
        Study(own.study.root, config).finetune(own.cell, own.pretrain)


def test_a_split_of_another_pack_is_refused(own: Chain) -> None:
    spec = specs.finetune_spec(own.study.config, own.cell)
    _, *split = own.study.finetune_inputs(own.cell)
    with pytest.raises(InputError, match="another pack"):
        own.study.train(spec, (own.study.pack("scenes"), *split), None, "elsewhere")
    assert not (own.study.root / "elsewhere").exists()


def test_another_cells_weights_are_refused(own: Chain) -> None:
    cell = replace(own.cell, finetune_size=8)
    with pytest.raises(InputError, match=rf"model\.json: is of cell {own.cell.name}, not {cell.name}"):
        own.study.evaluate(cell, own.finetune)


# Protocols and switches


def test_protocols_train_apart(chain: Chain, paper: Chain) -> None:
    assert not same_weights(chain.finetune, paper.finetune)
    assert paper.metrics["miou_is"] == "per_image"
    assert paper.metrics["metrics"]["miou"] == paper.metrics["metrics"]["miou_per_image"]
    assert chain.metrics["miou_is"] == "dataset"
    assert chain.metrics["metrics"]["miou"] == chain.metrics["metrics"]["miou_dataset"]
    model, _ = load_segmentation(paper.finetune)
    assert model.loss_kind == "pixel_softmax"


@pytest.mark.parametrize(
    ("switch", "value"),
    [
        ("augmentation", "frozen"),
        ("segmentation_loss", "pixel_softmax"),
        ("normalise_finetune", False),
        ("class_token", "always"),
        ("test_set", "moving"),
        ("subsets", "shared"),
    ],
)
def test_each_switch_changes_fine_tuning(own: Chain, chain: Chain, switch: str, value: Any) -> None:
    own.study.config = chain.study.config | {"switches": chain.study.config["switches"] | {switch: value}}
    tuned = own.study.finetune(own.cell, own.intermediate)
    assert not same_weights(tuned, chain.finetune)
    assert own.study.evaluate(own.cell, tuned)["switches"][switch] == value


def test_switches_of_evaluation_leave_the_weights(own: Chain, chain: Chain) -> None:
    change = {"augment_test": True, "miou": "per_image"}
    own.study.config = chain.study.config | {"switches": chain.study.config["switches"] | change}
    assert same_weights(own.study.finetune(own.cell, own.intermediate), chain.finetune)
    found = own.study.evaluate(own.cell, own.finetune)["metrics"]
    assert found["miou"] == found["miou_per_image"]
    assert found["miou_dataset"] != chain.metrics["metrics"]["miou_dataset"]  # other pixels were shown


def test_a_class_token_in_every_stage(tmp_path: Path, made_study: Callable[[str], dict[str, Any]]) -> None:
    config = made_study("sound")
    config["switches"] |= {"class_token": "always"}
    study = Study(tmp_path, config)
    pretrained = study.pretrain()
    encoder = new_encoder(config["model"], 0)
    start = encoder.cls_token.detach().clone()
    load_encoder(encoder, pretrained)
    assert not torch.equal(encoder.cls_token, start)  # SimMIM trains it now


def test_patch_task_on_the_segmentation_images(tmp_path: Path, made_study: Callable[[str], dict[str, Any]]) -> None:
    chain = run_chain(tmp_path, made_study("sound"), "spatial")
    assert specs.on_segmentation_data(chain.study.config, "spatial")
    # It learns from every image that is never tested on.
    record = record_of(chain.intermediate)
    assert record["images"] == 20
    with np.load(tmp_path / "splits" / "spatial.npz") as task, np.load(tmp_path / "confusion.npz") as tested:
        assert not set(task["train"]) & set(tested["indices"])
    tensors, _ = read_weights(chain.intermediate)
    assert tensors["head.weight"].shape == (3, 16)


def test_intermediate_without_pretraining(tmp_path: Path, made_study: Callable[[str], dict[str, Any]]) -> None:
    """The cell that the paper left out."""
    study, cell = Study(tmp_path, made_study("sound")), Cell(0, "scenes", 8, 0)
    middle = study.intermediate("scenes", None, size=0)
    metrics = study.evaluate(cell, study.finetune(cell, middle))
    assert record_of(middle)["parent_sha256"] is None
    assert metrics["hashes"]["parent_weights"] == record_of(middle)["weights_sha256"]


def test_variants_of_a_task(tmp_path: Path, made_study: Callable[[str], dict[str, Any]]) -> None:
    """Other labels or another pooling give other encoders; keeping a class token changes only the fine-tuning."""
    config = made_study("sound")
    scenes = config["intermediate"]["scenes"]
    config["intermediate"] |= {
        "shuffled": scenes | {"labels": "shuffled"},
        "mean": scenes | {"pooling": "mean"},
        "kept": scenes | {"keep_class_token": True},
    }
    study = Study(tmp_path, config)
    encoders = {task: study.intermediate(task, None) for task in ("scenes", "shuffled", "mean", "kept")}
    hashes = {task: record_of(path)["weights_sha256"] for task, path in encoders.items()}
    assert len({hashes[task] for task in ("scenes", "shuffled", "mean")}) == 3
    assert same_weights(encoders["kept"], encoders["scenes"])
    start = new_encoder(config["model"], 0).state_dict()["cls_token"]
    trained = {task: read_weights(path)[0]["encoder.cls_token"] for task, path in encoders.items()}
    assert not torch.equal(trained["scenes"], start)
    assert torch.equal(trained["mean"], start)  # it was not in the sequence
    tuned = {}
    for task in ("scenes", "kept"):
        record = study.finetune(Cell(24, task, 8, 0), encoders[task])
        tuned[task] = read_weights(record)[0]
        assert record_of(record)["spec"]["class_token"] is (task == "kept")
    assert torch.equal(tuned["scenes"]["encoder.cls_token"], trained["scenes"])
    assert not torch.equal(tuned["kept"]["encoder.cls_token"], trained["kept"])


# Evaluation


def test_metrics_file(chain: Chain) -> None:
    found = chain.metrics
    assert found["cell"] == chain.cell.as_dict()
    assert (found["study"], found["protocol"], found["note"]) == ("tiny", "sound", "Test study.")
    assert found["test_images"] == 10
    assert found["parameters"] == record_of(chain.finetune)["parameters"]
    assert found["train"]["lr"] == chain.study.config["finetune"]["lr"]
    names = {"iou_object", "iou_ground", "iou_border", "miou", "miou_dataset", "miou_per_image"}
    names |= {"pixel_accuracy", "miou_two_class_dataset", "miou_two_class_per_image"}
    assert found["metrics"].keys() == names
    assert all(0 <= v <= 1 for v in found["metrics"].values() if v is not None)
    provenance = found["provenance"]
    assert torch.__version__.startswith(provenance["packages"]["torch"])  # which may lack the build's name
    assert (provenance["device"], provenance["threads"], provenance["seed"]) == ("cpu", 1, 0)


@pytest.mark.parametrize("name", ["chain", "paper"])
def test_metrics_follow_from_the_predictions(name: str, request: pytest.FixtureRequest) -> None:
    """Model, images and masks, put together by hand, give the same confusion matrices and metrics."""
    chain: Chain = request.getfixturevalue(name)
    study = chain.study
    manifest, record, indices = study.finetune_inputs(chain.cell)
    pack = open_pack(manifest)
    test = splits.read_split(record, indices, pack)["test"]
    with np.load(study.root / "confusion.npz") as f:
        confusion, rows = f["confusion"], f["indices"]
    assert rows.tolist() == test.tolist()
    assert confusion.sum((1, 2)).tolist() == [24 * 24] * 10
    model, _ = load_segmentation(chain.finetune)
    assert not model.training
    spec = specs.evaluate_spec(study.config, chain.cell)
    draws = draws_of_test_images(spec, len(test))
    assert (draws is None) == (name == "chain")
    normalised = study.config["switches"]["normalise_finetune"]
    truth, guess = predict(model, pack, test, normalised, draws, Machine(torch.device("cpu"), "float32"))
    if draws is None:
        assert np.array_equal(truth.numpy(), pack.masks[test])
    else:
        flipped = draws.flips.numpy()
        assert 0 < flipped.sum() < len(test)
        assert np.array_equal(truth.numpy()[flipped], pack.masks[test[flipped]][:, :, ::-1])
    assert np.array_equal(confusion, confusion_matrices(truth, guess, 3).numpy())
    expected = summarise(confusion.astype(np.int64), pack.manifest["mask_classes"], 2)
    found = {k: v for k, v in chain.metrics["metrics"].items() if k != "miou"}
    assert found == expected


def test_test_draws_are_the_same_for_every_cell(made_study: Callable[[str], dict[str, Any]]) -> None:
    config = made_study("paper")
    draws = [draws_of_test_images(specs.evaluate_spec(config, Cell(0, "none", 8, seed)), 10) for seed in (0, 1)]
    assert draws[0] is not None and draws[1] is not None
    assert torch.equal(draws[0].flips, draws[1].flips)
    assert torch.equal(draws[0].contrast, draws[1].contrast)
    other = draws_of_test_images(specs.evaluate_spec(config | {"split_seed": 1}, Cell(0, "none", 8, 0)), 10)
    assert other is not None and not torch.equal(draws[0].contrast, other.contrast)


def test_prediction_does_not_depend_on_the_batch(chain: Chain, pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = load_segmentation(chain.finetune)
    machine, rows = Machine(torch.device("cpu"), "float32"), np.arange(30)
    whole = predict(model, pack, rows, True, None, machine)
    monkeypatch.setattr("viny.evidence.evaluate.batch_of_masks", lambda classes: 7)
    parts = predict(model, pack, rows, True, None, machine)
    assert torch.equal(whole[0], parts[0])
    assert (whole[1] == parts[1]).float().mean() > 0.999  # rounding may break a tie differently


def test_held_out_accuracy_counts_images_and_patches(pack: Pack, tiny: ModelSettings) -> None:
    machine = Machine.choose("cpu", "float32", threads=1)
    encoder = new_encoder(vars(tiny), seed=0)
    held_out = np.array([3, 7, 11, 20])
    images = labelled_images(torch.from_numpy(np.array(pack.images[held_out])), None, normalised=True)

    by_image = Classification(encoder, len(pack.manifest["classes"]))
    guesses = by_image(images).argmax(1).tolist()
    hits = [guess == pack.labels[i] for guess, i in zip(guesses, held_out, strict=True)]
    assert held_out_accuracy(by_image, pack, held_out, machine) == pytest.approx(np.mean(hits))

    by_patch = PatchClassification(encoder, 3)
    hits = []
    for guess, i in zip(by_patch(images).argmax(2), held_out, strict=True):
        for patch, found in enumerate(guess.tolist()):
            row, column = divmod(patch, 4)
            square = pack.masks[i][6 * row : 6 * row + 6, 6 * column : 6 * column + 6]
            hits.append(found == np.bincount(square.ravel(), minlength=3).argmax())
    assert 0 < np.mean(hits) < 1
    assert held_out_accuracy(by_patch, pack, held_out, machine) == pytest.approx(np.mean(hits))
