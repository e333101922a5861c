"""The training stages, from files to files: pre-training, intermediate task, fine-tuning."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from viny.data.augment import Draws, labelled_images
from viny.data.masks import IGNORE
from viny.data.pack import Pack, open_pack
from viny.data.splits import read_split
from viny.learning.batches import (
    Batches,
    LabelledAugmentation,
    PackSubset,
    class_batches,
    mask_batches,
    simmim_batches,
)
from viny.learning.checkpoint import Checkpoints
from viny.learning.machine import Machine
from viny.learning.model import ViNy, count_parameters
from viny.learning.objectives import Classification, PatchClassification, SimMIM
from viny.learning.settings import BATCH, TrainSettings
from viny.learning.train import fit
from viny.learning.weights import load_encoder, make_segmentation, new_encoder, read_weights, save_weights
from viny.runtime.claims import claim_beside, claimed
from viny.runtime.errors import InputError
from viny.runtime.files import digest, file_sha256, read_sealed, write_sealed
from viny.runtime.provenance import Provenance
from viny.runtime.seeds import derive, generator

CHECKPOINT_MINUTES = 5.0


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


STAGES: dict[str, Callable[..., tuple[nn.Module, Batches]]] = {
    "pretrain": _pretrain,
    "intermediate": _intermediate,
    "finetune": _finetune,
}


@torch.inference_mode()
def held_out_accuracy(objective: nn.Module, pack: Pack, indices: np.ndarray, machine: Machine) -> float:
    """Share of held-out images, or of their patches, that an intermediate task's model classifies correctly."""
    objective.eval()
    images = PackSubset(pack, "images", indices, machine.device)
    patches = isinstance(objective, PatchClassification)
    targets = PackSubset(pack, "masks" if patches else "labels", indices, machine.device)
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


class _Files(NamedTuple):
    manifest: Path
    split: Path
    indices: Path
    parent: Path | None
    weights: Path
    record: Path
    curve: Path
    run: Path
    checkpoints: Path | None


def train(
    spec: Mapping[str, Any],
    *,
    manifest: Path,
    split: Path,
    indices: Path,
    parent: Path | None = None,
    weights: Path,
    record: Path,
    curve: Path,
    run: Path,
    checkpoints: Path | None = None,
    checkpoint_minutes: float | None = None,
    threads: int = 1,
) -> None:
    """Pre-train an encoder, train it on an intermediate task, or fine-tune it for segmentation, as the spec says.

    Weights, record and split depend only on the settings, the data and the machine's arithmetic; when and
    where the job ran is kept apart, in the provenance. A stopped run goes on from its checkpoint.

    Args:
        spec: see `viny.study.specs.training_spec`.
        manifest: the pack's manifest.
        split: the split's record.
        indices: the split's index lists.
        parent: record of the weights to start from; none: random weights.
        weights: safetensors file to write.
        record: JSON file to write beside the weights.
        curve: CSV file to write, the learning curve.
        run: JSON file to write, the provenance.
        checkpoints: folder for checkpoints, from which a stopped run goes on; none: no checkpoints.
        checkpoint_minutes: minutes between checkpoints; none: $VINY_CHECKPOINT_MINUTES, else 5.
        threads: CPU threads.

    Raises:
        InputError: an input is missing, damaged, or does not fit.
        TrainingError: the loss diverged.
        Stopped: a stop signal arrived.
    """
    files = _Files(manifest, split, indices, parent, weights, record, curve, run, checkpoints)
    if checkpoint_minutes is None:
        checkpoint_minutes = float(os.environ.get("VINY_CHECKPOINT_MINUTES") or CHECKPOINT_MINUTES)
    if checkpoints is None:
        _train(spec, files, threads, checkpoint_minutes, False)
        return
    # A job whose driver died may still be running when the next driver starts the same job.
    with claimed(claim_beside(checkpoints), spec["stage"]) as waited:
        _train(spec, files, threads, checkpoint_minutes, waited)


def _train(spec: Mapping[str, Any], files: _Files, threads: int, checkpoint_minutes: float, another: bool) -> None:
    provenance = Provenance()
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
        "split_sha256": read_sealed(files.split, "a split record")["parts"]["train"]["sha256"],
        "parent_sha256": parent["weights_sha256"] if parent else None,
        "mask_classes": pack.manifest["mask_classes"],
    }
    if another and _is_made(files, record):
        print(f"{stage}: {files.weights} already exists, made by another process meanwhile", flush=True)
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
    write_sealed(
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
            outputs={files.curve.name: file_sha256(files.curve)},
        ),
    )
    write_sealed(files.record, record)
    if checkpoints:
        checkpoints.remove()


def _is_made(files: _Files, record: Mapping[str, Any]) -> bool:
    """Whether every output exists and is what this run would make."""
    try:
        made = read_weights(files.record)[1]
    except InputError:
        return False
    return all(made.get(k) == v for k, v in record.items()) and files.curve.is_file() and files.run.is_file()
