"""The training stages, from files to files: pre-training, intermediate task, fine-tuning."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from viny.data.augment import Draws, labelled_images
from viny.data.pack import Pack, open_pack
from viny.data.splits import read_split
from viny.errors import InputError
from viny.files import digest, read_json, write_json
from viny.learning.batches import (
    BatchMaker,
    LabelledAugmentation,
    Rows,
    class_batches,
    mask_batches,
    simmim_batches,
)
from viny.learning.checkpoint import Checkpoints
from viny.learning.model import (
    VINY,
    ViNy,
    assert_paper_size,
    count_parameters,
    load_weights,
    save_weights,
)
from viny.learning.objectives import Classification, PatchClassification, Segmentation, SimMIM
from viny.learning.train import Machine, fit
from viny.processes import claimed
from viny.provenance import Record
from viny.seeds import derive, generator
from viny.settings import BATCH, IGNORE, ModelSettings, TrainSettings

CHECKPOINT_MINUTES = 5.0


@dataclass(frozen=True)
class StageFiles:
    """A training stage's files.

    `parent` is the record of the weights it starts from, None for none; `checkpoints` the folder that a
    stopped run goes on from, None for none.
    """

    manifest: Path
    split: Path
    indices: Path
    parent: Path | None
    weights: Path
    record: Path
    curve: Path
    run: Path
    checkpoints: Path | None = None


def file_sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def weights_beside(record: Path) -> Path:
    """The weights file that a record describes."""
    return record.with_suffix(".safetensors")


def read_weights(record_path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights and their record, after a check of the file's hash.

    Raises:
        InputError: missing, damaged, or not the file that the record describes.
    """
    record = read_json(record_path, "a weights record")
    path = weights_beside(record_path)
    if not path.is_file():
        raise InputError(f"{path}: no such weights file, though {record_path} describes it; delete that and rerun")
    found = file_sha256(path)
    if found != record["weights_sha256"]:
        raise InputError(
            f"{path}: content differs from {record_path} (sha256 {found[:12]}, expected "
            f"{record['weights_sha256'][:12]}); delete both and rerun"
        )
    return load_weights(path)[0], record


def new_encoder(model: Mapping[str, Any], seed: int) -> ViNy:
    """A randomly initialised encoder; the same for every cell of a seed."""
    settings = ModelSettings(**model)
    if settings == VINY:
        assert_paper_size()
    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, "encoder"))
        return ViNy(settings)


def load_encoder(encoder: ViNy, record_path: Path) -> dict[str, Any]:
    """Fill an encoder from another stage's weights; returns that stage's record.

    Raises:
        InputError: the weights are of a model of other dimensions.
    """
    tensors, record = read_weights(record_path)
    mine = {k.removeprefix("encoder."): v for k, v in tensors.items() if k.startswith("encoder.")}
    try:
        encoder.load_state_dict(mine)
    except RuntimeError as error:
        raise InputError(f"{weights_beside(record_path)}: does not fit the model: {error}") from error
    return record


def make_segmentation(spec: Mapping[str, Any], encoder: ViNy, classes: int) -> Segmentation:
    return Segmentation(encoder, classes, spec["segmentation_loss"], spec["class_token"])


def _pretrain(spec: Mapping[str, Any], encoder: ViNy, pack: Pack, train: Any, device: torch.device) -> Any:
    settings = encoder.settings
    batches = simmim_batches(
        pack, train, settings.image_size, settings.patches, spec["mask_ratio"], spec["crop_scale"], device
    )
    return SimMIM(encoder, spec["class_token"]), batches


def _intermediate(spec: Mapping[str, Any], encoder: ViNy, pack: Pack, train: Any, device: torch.device) -> Any:
    augmentation = LabelledAugmentation(spec["contrast"], normalised=True)
    if spec["target"] == "patch":
        classes = len(pack.manifest["mask_classes"])
        objective = PatchClassification(encoder, classes, spec["class_token"])
        return objective, mask_batches(pack, train, augmentation, device)
    classes = len(pack.manifest["classes"])
    shuffle = generator(spec["cell"]["seed"], "intermediate", "labels") if spec["labels"] == "shuffled" else None
    batches = class_batches(pack, train, classes, augmentation, spec["mixup"], device, shuffle)
    return Classification(encoder, classes, spec["pooling"], spec["class_token"]), batches


def _finetune(spec: Mapping[str, Any], encoder: ViNy, pack: Pack, train: Any, device: torch.device) -> Any:
    frozen = None
    if spec["augmentation"] == "frozen":
        draws = generator(spec["cell"]["seed"], "finetune", "frozen")
        frozen = Draws.make(len(train), spec["contrast"], draws)
    augmentation = LabelledAugmentation(spec["contrast"], spec["normalise"], frozen)
    objective = make_segmentation(spec, encoder, len(pack.manifest["mask_classes"]))
    return objective, mask_batches(pack, train, augmentation, device)


STAGES: dict[str, Callable[..., tuple[nn.Module, BatchMaker]]] = {
    "pretrain": _pretrain,
    "intermediate": _intermediate,
    "finetune": _finetune,
}


@torch.inference_mode()
def held_out_accuracy(objective: nn.Module, pack: Pack, indices: np.ndarray, machine: Machine) -> float:
    """Share of held-out images, or of their patches, whose class an intermediate task's model finds."""
    objective.eval()
    images = Rows(pack, "images", indices, machine.device)
    patches = isinstance(objective, PatchClassification)
    targets = Rows(pack, "masks" if patches else "labels", indices, machine.device)
    hits = []
    for positions in torch.arange(len(indices)).split(BATCH):
        with machine.autocast():
            guess = objective(labelled_images(images[positions], None, normalised=True)).argmax(-1)
        truth = targets[positions]
        if patches:
            truth = objective.targets(truth)
            guess, truth = guess[truth != IGNORE], truth[truth != IGNORE]
        hits.append((guess == truth).float().cpu())
    return float(torch.cat(hits).mean())


def run_stage(
    spec: Mapping[str, Any], files: StageFiles, threads: int, checkpoint_minutes: float = CHECKPOINT_MINUTES
) -> None:
    """Train one stage and write its weights, their record, its learning curve and its provenance.

    Weights, record and split depend on the settings, the data and the machine's arithmetic alone; when and
    where the job ran stands in the provenance, apart. A run that was stopped goes on from its checkpoint.

    Args:
        spec: see `viny.cells.pretrain_spec`, `intermediate_spec`, `finetune_spec`.
        files: inputs and outputs.
        threads: CPU threads.
        checkpoint_minutes: between two checkpoints.

    Raises:
        InputError: an input is missing, damaged, or does not fit.
        TrainingError: the loss diverged.
        Stopped: a signal came.
    """
    if files.checkpoints is None:
        _run_stage(spec, files, threads, checkpoint_minutes, False)
        return
    # A job whose driver died may still be at work when the next driver starts the same job.
    with claimed(files.checkpoints.with_name(f"{files.checkpoints.name}.claim"), spec["stage"]) as waited:
        _run_stage(spec, files, threads, checkpoint_minutes, waited)


def _run_stage(
    spec: Mapping[str, Any], files: StageFiles, threads: int, checkpoint_minutes: float, another: bool
) -> None:
    provenance = Record()
    machine = Machine.choose(spec["device"], spec["precision"], threads)
    pack = open_pack(files.manifest, node_local=True)
    split = read_split(files.split, files.indices, pack)
    train = split["train"]
    stage, seed = spec["stage"], spec["cell"]["seed"]
    encoder = new_encoder(spec["model"], seed)
    parent = load_encoder(encoder, files.parent) if files.parent else None
    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, stage, "head"))
        objective, batches = STAGES[stage](spec, encoder, pack, train, machine.device)
    record = {
        "stage": stage,
        "spec": dict(spec),
        "precision": machine.precision,
        "parameters": count_parameters(objective),
        "images": len(train),
        "pack_sha256": pack.sha256,
        "split_sha256": read_json(files.split, "a split record")["parts"]["train"]["sha256"],
        "parent_sha256": parent["weights_sha256"] if parent else None,
        "mask_classes": pack.manifest["mask_classes"],
    }
    if another and _is_made(files, record):
        print(f"{stage}: {files.weights} is there, made by another process meanwhile", flush=True)
        return
    print(
        f"{stage}: {len(train)} images, {count_parameters(objective):,} parameters, {machine.device}, "
        f"{machine.precision}, {threads} threads",
        flush=True,
    )
    checkpoints = None
    if files.checkpoints:
        identity = {**record, "device": machine.device.type, "torch": torch.__version__}
        attempt = {"host": platform.node(), "threads": threads, "started": provenance.started}
        checkpoints = Checkpoints(files.checkpoints, identity, checkpoint_minutes, attempt)
    train_settings = TrainSettings.of(spec["train"])
    done = fit(objective, batches, len(train), train_settings, machine, seed, stage, files.curve, checkpoints)
    record["final_loss"] = done.curve[-1]["loss"]
    if stage == "intermediate":
        record["held_out_images"] = len(split["test"])
        record["held_out_accuracy"] = held_out_accuracy(objective, pack, split["test"], machine)
        print(f"{stage}: accuracy {record['held_out_accuracy']:.4f} on {len(split['test'])} held-out images")
    record["weights_sha256"] = save_weights(files.weights, objective.state_dict(), record)
    write_json(
        files.run,
        provenance.finish(
            device=str(machine.device),
            precision=machine.precision,
            threads=threads,
            seed=seed,
            image_passes=len(train) * train_settings.epochs,
            training_seconds=round(done.seconds, 3),
            earlier_attempts=done.attempts,
            fingerprint=spec.get("code"),
            hashes={
                "spec": digest(dict(spec)),
                "pack": record["pack_sha256"],
                "split": record["split_sha256"],
                "weights": record["weights_sha256"],
                "parent_weights": record["parent_sha256"],
            },
        ),
    )
    write_json(files.record, record)
    if checkpoints:
        checkpoints.remove()


def _is_made(files: StageFiles, record: Mapping[str, Any]) -> bool:
    """Whether every output is there and is what this run would make."""
    try:
        made = read_weights(files.record)[1]
    except InputError:
        return False
    return all(made.get(k) == v for k, v in record.items()) and files.curve.is_file() and files.run.is_file()
