"""The stage that answers whether the study's model is worth using: a small U-Net from scratch, trained and evaluated.

It has the labels, the split, the image order, the passes, the augmentation and the loss of a fine-tuning of the study's
first arm, and is evaluated on the same test images.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from viny.data.augment import Draws
from viny.data.pack import Pack, open_pack
from viny.data.splits import read_split
from viny.evidence.constant import commonest, constant_answer, with_miou
from viny.evidence.evaluate import draws_of_test_images, tested
from viny.evidence.metrics import classes_in, classes_lacking
from viny.learning.batches import Batches, LabelledAugmentation, mask_batches
from viny.learning.checkpoint import Checkpoints, Progress
from viny.learning.machine import Machine
from viny.learning.model import count_parameters
from viny.learning.run import Run, Step, epoch_order
from viny.learning.settings import TrainSettings
from viny.learning.stages import CHECKPOINT_MINUTES
from viny.learning.train import step_by_step
from viny.learning.unet import UNet
from viny.learning.weights import save_weights
from viny.runtime.claims import claim_beside, claimed
from viny.runtime.errors import TrainingError
from viny.runtime.files import atomic_path, digest, file_sha256, read_sealed, write_sealed
from viny.runtime.provenance import Provenance
from viny.runtime.seeds import derive, generator
from viny.runtime.signals import on_stop

LIKE = "finetune"  # the stage whose order of images and draws it has


class ReferenceRun(Run):
    """A training that takes its images in the order, and with the draws, of the fine-tuning with the same seed."""

    def steps(self) -> Iterator[Step]:
        done = len(self.progress.losses)
        for epoch in range(self.progress.epoch, self.settings.epochs):
            order = epoch_order(self.count, self.settings.batch_size, self.seed, LIKE, epoch)
            for number in range(done, len(order)):
                yield Step(epoch, number, order[number])
            done = 0

    def draws(self, step: Step) -> torch.Generator:
        return generator(self.seed, LIKE, step.epoch, step.number)


def model_and_batches(
    spec: Mapping[str, Any], pack: Pack, rows: np.ndarray, device: torch.device, hold: bool = True
) -> tuple[nn.Module, Batches]:
    """The U-Net with its first weights, and the batches that it learns from.

    Args:
        spec: see `viny.study.specs.reference_spec`.
        pack: the segmentation's.
        rows: [M] of the pack, the training images.
        device: where it is trained.
        hold: whether the images are read at once.
    """
    seed, frozen = spec["cell"]["seed"], None
    if spec["switches"]["augmentation"] == "frozen":
        frozen = Draws.make(len(rows), spec["contrast"], generator(seed, LIKE, "frozen"))
    augmentation = LabelledAugmentation(spec["contrast"], spec["switches"]["normalise_finetune"], frozen)
    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, "reference"))
        classes = len(pack.manifest["mask_classes"])
        model = UNet(pack.manifest["resolution"], classes, spec["switches"]["segmentation_loss"])
    return model, mask_batches(pack, rows, augmentation, device, hold)


def fit(run: Run, machine: Machine) -> Progress:
    """As `viny.learning.train.fit`, with PyTorch's own kernels on a GPU too: convolutions are not stacked."""
    torch.backends.cudnn.deterministic = True
    with on_stop(run.stop), run.report:
        step_by_step(run, machine)
    return run.finish()


def train_reference(
    spec: Mapping[str, Any],
    *,
    manifest: Path,
    split: Path,
    indices: Path,
    record: Path,
    weights: Path,
    confusion: Path,
    curve: Path,
    checkpoints: Path | None = None,
    checkpoint_minutes: float | None = None,
    threads: int = 1,
) -> None:
    """Train a small U-Net from scratch on a study's labelled images, and evaluate it on its test images.

    The record says too which class is the commonest in the training masks: the answer that
    takes no model. A stopped job goes on from its checkpoint.

    Args:
        spec: see `viny.study.specs.reference_spec`.
        manifest: manifest of the segmentation pack.
        split: the split's record.
        indices: the split's index lists.
        record: JSON file to write, the metrics.
        weights: safetensors file to write, beside the record.
        confusion: npz file to write: confusion [N, C, C] (true class first), indices [N] in the pack; own_size
            [N, 3, C] where images have a size of their own, see `own_size_counts`.
        curve: CSV file to write, the learning curve.
        checkpoints: folder for checkpoints, from which a stopped job goes on; none: no checkpoints.
        checkpoint_minutes: minutes between checkpoints; none: $VINY_CHECKPOINT_MINUTES, else 5.
        threads: CPU threads.

    Raises:
        InputError: an input is missing, damaged, or does not fit.
        TrainingError: the loss diverged.
        Stopped: a stop signal arrived.
    """
    files = (manifest, split, indices, record, weights, confusion, curve)
    if checkpoints is None:
        _train(spec, *files, None, threads)
        return
    # A job whose driver died may still be running when the next driver starts the same job.
    with claimed(claim_beside(checkpoints), "reference") as waited:
        made = all(path.is_file() for path in (record, weights, confusion, curve))
        if waited and made and read_sealed(record, "a reference")["spec"] == dict(spec):
            print(f"reference: {record} already exists, made by another process meanwhile", flush=True)
            return
        if checkpoint_minutes is None:
            checkpoint_minutes = float(os.environ.get("VINY_CHECKPOINT_MINUTES") or CHECKPOINT_MINUTES)
        _train(spec, *files, (checkpoints, checkpoint_minutes), threads)
        shutil.rmtree(checkpoints, ignore_errors=True)


def _train(
    spec: Mapping[str, Any],
    manifest: Path,
    split: Path,
    indices: Path,
    record: Path,
    weights: Path,
    confusion: Path,
    curve: Path,
    checkpoints: tuple[Path, float] | None,
    threads: int,
) -> None:
    provenance = Provenance()
    machine = Machine.choose(spec["device"], spec["precision"], threads)
    pack = open_pack(manifest, node_local=True)
    lists = read_split(split, indices, pack)
    train, test, seed = lists["train"], lists["test"], spec["cell"]["seed"]
    model, batches = model_and_batches(spec, pack, train, machine.device)
    names, border = pack.manifest["mask_classes"], pack.manifest.get("border_class")
    about = {
        "spec": dict(spec),
        "precision": machine.precision,
        "parameters": count_parameters(model),
        "mask_classes": names,
        "pack_sha256": pack.sha256,
        "split_sha256": read_sealed(split, "a split record")["parts"]["train"]["sha256"],
    }
    kept = None
    if checkpoints:
        identity = {**about, "device": machine.device.type, "torch": torch.__version__}
        attempt = {"host": platform.node(), "threads": threads, "started": provenance.started}
        kept = Checkpoints(checkpoints[0], identity, checkpoints[1], attempt)
    print(
        f"reference: {len(train)} images, {about['parameters']:,} parameters, {machine.device}, {machine.precision}, "
        f"{threads} threads",
        flush=True,
    )
    settings = TrainSettings.of(spec["train"])
    run = ReferenceRun(model.to(machine.device), batches, len(train), settings, seed, "reference", curve, kept)
    try:
        done = fit(run, machine)
    except TrainingError as error:
        raise TrainingError(
            f"reference: the U-Net beside the study diverged ({str(error).partition(';')[0]}); check the images, or "
            "leave it out with 'references: false'"
        ) from error
    draws, normalised = draws_of_test_images(spec, len(test)), spec["switches"]["normalise_finetune"]
    counts = tested(model.eval(), pack, test, normalised, draws, machine)
    matrices = counts.confusion
    with atomic_path(confusion) as tmp, open(tmp, "wb") as f:
        np.savez_compressed(f, **counts.arrays, indices=test)
    kind, common = spec["switches"]["miou"], commonest(pack, train)
    found, constant = (with_miou(one, names, border, kind) for one in (matrices, constant_answer(matrices, common)))
    write_sealed(
        record,
        {
            "stage": "reference",
            "study": spec["study"],
            "protocol": spec["protocol"],
            "switches": spec["switches"],
            "note": spec["note"],
            "cell": spec["cell"],
            **about,
            "weights_sha256": save_weights(weights, model.state_dict(), about),
            "metrics": found | counts.own_size,
            "constant": {"class": names[common], "index": common, "metrics": constant},
            "classes": classes_in(matrices, names) | {"not_in_training": classes_lacking(pack, train)},
            "miou_is": kind,
            "test_images": len(test),
            "images": len(train),
            "final_loss": done.curve[-1]["loss"],
            "train": spec["train"],
            "hashes": {"spec": digest(dict(spec))},
            "outputs": {path.name: file_sha256(path) for path in (confusion, curve)},
            "provenance": provenance.finish(
                device=str(machine.device),
                precision=machine.precision,
                threads=threads,
                seed=seed,
                image_passes=len(train) * settings.epochs,
                training_seconds=round(done.seconds, 3),
                earlier_attempts=done.attempts,
                fingerprint=spec.get("code"),
            ),
        },
    )
    print(
        f"{spec['cell']['name']}: mIoU {100 * found['miou']:.2f} %; all pixels {names[common]}: "
        f"{100 * constant['miou']:.2f} %"
    )
