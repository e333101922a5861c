"""The rates of a fine-tuning, each scored by a short training on a part of the training images."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from viny.data.augment import to_device
from viny.data.pack import open_pack
from viny.data.parts import Groups
from viny.data.splits import permutation, read_split
from viny.learning.batches import PackSubset
from viny.learning.machine import Machine
from viny.learning.run import Run
from viny.learning.scores import confusion_matrices, mean_iou_dataset
from viny.learning.settings import batch_of_masks, moved_milestones, tuned_epochs
from viny.learning.stages import Files, TrainingJob
from viny.learning.train import fit
from viny.runtime.claims import claim_beside, claimed
from viny.runtime.errors import InputError, TrainingError
from viny.runtime.files import digest, read_sealed, write_sealed
from viny.runtime.provenance import Provenance


def tune(
    spec: Mapping[str, Any],
    *,
    manifest: Path,
    split: Path,
    indices: Path,
    parent: Path | None = None,
    record: Path,
    checkpoints: Path | None = None,
    checkpoint_minutes: float | None = None,
    threads: int = 1,
) -> None:
    """Score the rates of a cell's fine-tuning by short trainings on a part of its labelled images.

    The images are the cell's own training images. A share of them, drawn by the seed, is kept from training, and each
    rate is scored by the mIoU (of dataset kind) on these. All rates see the same images with the same draws. A stopped
    job goes on with the rate, and at the step, where it was.

    Args:
        spec: see `viny.study.specs.tune_spec`.
        manifest: the pack's manifest.
        split: the split's record.
        indices: the split's index lists.
        parent: record of the weights to start from; none: random weights.
        record: JSON file to write, the score of each rate.
        checkpoints: folder for checkpoints, from which a stopped job goes on; none: no checkpoints.
        checkpoint_minutes: minutes between checkpoints; none: $VINY_CHECKPOINT_MINUTES, else 5.
        threads: CPU threads.

    Raises:
        InputError: an input is missing, damaged, or does not fit.
        TrainingError: the loss diverged at every rate.
        Stopped: a stop signal arrived.
    """
    inputs = Files(manifest, split, indices, parent)
    if checkpoints is None:
        _tune(spec, inputs, record, None, checkpoint_minutes, threads)
        return
    # A job whose driver died may still be running when the next driver starts the same job.
    with claimed(claim_beside(checkpoints), "tune") as waited:
        if waited and record.is_file() and read_sealed(record, "a tuning")["spec"] == dict(spec):
            print(f"tune: {record} already exists, made by another process meanwhile", flush=True)
            return
        _tune(spec, inputs, record, checkpoints, checkpoint_minutes, threads)
        shutil.rmtree(checkpoints, ignore_errors=True)


def _tune(
    spec: Mapping[str, Any],
    inputs: Files,
    record: Path,
    checkpoints: Path | None,
    minutes: float | None,
    threads: int,
) -> None:
    provenance = Provenance()
    machine = Machine.choose(spec["device"], spec["precision"], threads)
    pack = open_pack(inputs.manifest, node_local=True)
    images = read_split(inputs.split, inputs.indices, pack)["train"]
    groups = Groups.read(pack.names, spec["tune"]["group"]).indices[images] if "group" in spec["tune"] else None
    train, validation = divided(images, spec["tune"]["validation"], spec["cell"]["seed"], groups)
    rates, about = [], {}
    for lr in spec["tune"]["lr"]:
        folder = checkpoints / f"lr-{lr}" if checkpoints else None
        given = {**spec, "train": shortened(spec["train"], spec["tune"]["share"], lr)}
        hold = machine.device.type == "cpu"  # on a GPU, the training's engine reads the images
        job = TrainingJob(given, inputs._replace(checkpoints=folder), machine, threads, minutes, hold, rows=train)
        about = {key: job.record[key] for key in ("pack_sha256", "split_sha256", "parent_sha256")}
        rates.append(_scored(job, lr, validation))
    if all(rate["diverged"] for rate in rates):
        raise TrainingError(
            f"tune: the loss diverged at every rate, {', '.join(f'{lr:g}' for lr in spec['tune']['lr'])}; put lower "
            "ones into tune.lr or check the images"
        )
    done = provenance.finish(
        device=str(machine.device),
        precision=machine.precision,
        threads=threads,
        seed=spec["cell"]["seed"],
        fingerprint=spec.get("code"),
    )
    write_sealed(record, {"stage": "tune", "spec": dict(spec), "rates": rates, **about, "provenance": done})


def divided(
    images: np.ndarray, share: float, seed: int, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Divide a training list into images to train on and a share to validate by, at random, at least one of each.

    Args:
        images: int64 [N], rows of a pack.
        share: of the images, to validate by.
        seed: of the division.
        groups: int64 [N], the group of each image. Whole groups are then kept to validate by, until they have the
            share; images of a single group are divided one by one.

    Raises:
        InputError: there are not two images.
    """
    count = len(images)
    if count < 2:
        raise InputError(f"grid.finetune_sizes: {count} labelled images are too few to tune a rate; expected 2 or more")
    kept = min(count - 1, max(1, math.ceil(share * count)))
    order = permutation(count, "tune", seed)
    if groups is not None and len(np.unique(groups)) > 1:
        places = [np.flatnonzero(groups == group) for group in dict.fromkeys(groups[order].tolist())]
        sizes = np.cumsum([len(place) for place in places[:-1]])  # the last one is always for training
        enough = min(int(np.searchsorted(sizes, kept)), len(sizes) - 1) + 1
        return images[np.sort(np.concatenate(places[enough:]))], images[np.sort(np.concatenate(places[:enough]))]
    return images[np.sort(order[kept:])], images[np.sort(order[:kept])]


def shortened(settings: Mapping[str, Any], share: float, lr: float) -> dict[str, Any]:
    """Settings of a training for a share of the epochs, at least one, with milestones at the same shares of the way."""
    epochs = tuned_epochs(settings["epochs"], share)
    milestones = moved_milestones(settings["milestones"], settings["epochs"], epochs)
    return {**settings, "epochs": epochs, "lr": lr, "milestones": milestones}


def _scored(job: TrainingJob, lr: float, validation: np.ndarray) -> dict[str, Any]:
    """What the record says about a rate; from memory if an earlier attempt of this job scored it."""
    folder = job.checkpoints.folder if job.checkpoints else None
    kept = folder.with_name(f"{folder.name}.json") if folder else None
    if kept is not None and kept.is_file():
        try:
            known = read_sealed(kept, "the score of a rate")
            if known["identity"] == digest(job.checkpoints.identity):
                print(f"tune: rate {lr:g} was scored before", flush=True)
                return known["rate"]
        except InputError as error:
            print(error, flush=True)
    print(f"tune: rate {lr:g}, scored on {len(validation)} images", flush=True)
    job.begin()
    run, miou = job.new_run(), None
    try:
        fit(run, job.machine)
        miou = validation_miou(job, validation)
        print(f"tune: rate {lr:g}: mIoU {100 * miou:.2f} %", flush=True)
    except TrainingError as error:
        print(error, flush=True)
    rate = {
        "lr": lr,
        "miou": miou,
        "validation_images": len(validation),
        "epochs": run.settings.epochs,
        "seconds": round(run.seconds, 3),
        "image_passes": _passes(run),
        "diverged": miou is None,
    }
    if kept is not None:
        write_sealed(kept, {"identity": digest(job.checkpoints.identity), "rate": rate})
        job.checkpoints.remove()
    return rate


def _passes(run: Run) -> int:
    begun = min(len(run.progress.losses) * run.settings.batch_size, run.count)
    return run.progress.epoch * run.count + begun


@torch.inference_mode()
def validation_miou(job: TrainingJob, rows: np.ndarray) -> float:
    """Mean IoU over the classes that the masks of some images have, from one confusion matrix over all of them.

    Args:
        job: whose model was trained.
        rows: of the pack, shown without augmentation.

    Raises:
        InputError: no pixel of these masks has a class.
    """
    model, device = job.objective.eval(), job.machine.device
    model.encoder.set_fused_attention(job.machine.fused_attention)
    subsets = {name: PackSubset(job.pack, name, rows, device, hold=False) for name in ("images", "masks")}
    total = torch.zeros(model.classes, model.classes, dtype=torch.int64)
    for positions in torch.arange(len(rows)).split(batch_of_masks(model.classes)):
        still = {"flips": torch.zeros(len(positions), dtype=torch.bool), "contrast": torch.ones(len(positions))}
        read = {name: subset[positions] for name, subset in subsets.items()}
        images, masks = job.batches.make(read, {name: to_device(x, device) for name, x in still.items()})
        with job.machine.autocast():
            guess = model(images).argmax(1)
        total += confusion_matrices(masks, guess, model.classes).sum(0).cpu()
    found = mean_iou_dataset(total[None].numpy(), list(range(model.classes)))
    if math.isnan(found):
        raise InputError(f"{job.pack.folder}: no pixel of {len(rows)} validation masks has a class; check the masks")
    return found
