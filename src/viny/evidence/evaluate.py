"""Evaluation of one cell: its model on its test images, as one JSON and the per-image confusion matrices."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from viny.data.augment import Draws, flip, labelled_images
from viny.data.pack import Pack, open_pack
from viny.data.splits import read_split
from viny.errors import InputError
from viny.evidence.metrics import confusion_matrices, summarise
from viny.files import atomic_path, digest, write_json
from viny.learning.batches import Rows
from viny.learning.model import count_parameters
from viny.learning.objectives import Segmentation
from viny.learning.stages import make_segmentation, new_encoder, read_weights
from viny.learning.train import Machine
from viny.provenance import Record
from viny.seeds import generator
from viny.settings import BATCH, batch_of_masks


def load_segmentation(record_path: Path) -> tuple[Segmentation, dict[str, Any]]:
    """A fine-tuned model, ready to predict, and its record."""
    tensors, record = read_weights(record_path)
    spec = record["spec"]
    model = make_segmentation(spec, new_encoder(spec["model"], spec["cell"]["seed"]), len(record["mask_classes"]))
    model.load_state_dict(tensors)
    return model.eval(), record


def draws_of_test_images(spec: Mapping[str, Any], count: int) -> Draws | None:
    """The paper's flips and jitters of the test images, the same for every cell; None if they stay as they are."""
    if not spec["switches"]["augment_test"]:
        return None
    return Draws.make(count, spec["contrast"], generator(spec["split_seed"], "evaluate", "frozen"))


@torch.inference_mode()
def predict(
    model: Segmentation,
    pack: Pack,
    indices: np.ndarray,
    normalised: bool,
    draws: Draws | None,
    machine: Machine,
) -> tuple[Tensor, Tensor]:
    """Class maps of some images of a pack.

    Args:
        model: as from `load_segmentation`.
        pack: with masks.
        indices: [N].
        normalised: as in the model's training.
        draws: of `draws_of_test_images`.
        machine: device and precision.

    Returns:
        truth and prediction, both uint8 [N, S, S] on the CPU.
    """
    model.to(machine.device)
    model.encoder.set_fused_attention(machine.fused_attention)
    images, masks = Rows(pack, "images", indices, machine.device), Rows(pack, "masks", indices, machine.device)
    truths, guesses = [], []
    for positions in torch.arange(len(indices)).split(batch_of_masks(model.classes)):
        here = draws.at(positions) if draws is not None else None
        truth = masks[positions]
        if here is not None:
            truth = flip(truth, here.flips)
        with machine.autocast():
            scores = model(labelled_images(images[positions], here, normalised))
        truths.append(truth.cpu())
        guesses.append(scores.argmax(1).to(torch.uint8).cpu())
    return torch.cat(truths), torch.cat(guesses)


def run_evaluate(
    spec: Mapping[str, Any],
    manifest: Path,
    split: Path,
    indices: Path,
    record_path: Path,
    metrics_path: Path,
    confusion_path: Path,
    threads: int,
) -> None:
    """Evaluate one cell.

    Args:
        spec: see `viny.cells.evaluate_spec`.
        manifest: of the segmentation pack.
        split: record of the cell's split.
        indices: index lists of the cell's split.
        record_path: record of the fine-tuned weights.
        metrics_path: JSON to write.
        confusion_path: npz to write: confusion [N, C, C] (true class first), indices [N] in the pack.
        threads: CPU threads.

    Raises:
        InputError: an input is missing, damaged, or of another cell.
    """
    provenance = Record()
    machine = Machine.choose(spec["device"], spec["precision"], threads)
    pack = open_pack(manifest, node_local=True)
    test = read_split(split, indices, pack)["test"]
    model, record = load_segmentation(record_path)
    if record["spec"]["cell"] != spec["cell"]:
        raise InputError(f"{record_path}: is of cell {record['spec']['cell']['name']}, not {spec['cell']['name']}")
    if record["pack_sha256"] != pack.sha256:
        raise InputError(f"{record_path}: was trained on another pack than {manifest}; rerun its fine-tuning")
    draws = draws_of_test_images(spec, len(test))
    truth, guess = predict(model, pack, test, record["spec"]["normalise"], draws, machine)
    names = pack.manifest["mask_classes"]
    parts = [
        confusion_matrices(t, g, len(names)).numpy().astype(np.int32)
        for t, g in zip(truth.split(BATCH), guess.split(BATCH), strict=True)
    ]
    confusion = np.concatenate(parts)  # [N, C, C]
    metrics = summarise(confusion, names, pack.manifest.get("border_class"))
    metrics["miou"] = metrics[f"miou_{spec['switches']['miou']}"]
    with atomic_path(confusion_path) as tmp, open(tmp, "wb") as f:
        np.savez_compressed(f, confusion=confusion, indices=test)
    write_json(
        metrics_path,
        {
            "study": spec["study"],
            "protocol": spec["protocol"],
            "switches": spec["switches"],
            "note": spec["note"],
            "cell": spec["cell"],
            "metrics": metrics,
            "miou_is": spec["switches"]["miou"],
            "test_images": len(test),
            "parameters": count_parameters(model),
            "train": record["spec"]["train"],
            "hashes": {
                "spec": digest(dict(spec)),
                "pack": pack.sha256,
                "split": record["split_sha256"],
                "weights": record["weights_sha256"],
                "parent_weights": record["parent_sha256"],
            },
            "provenance": provenance.finish(
                device=str(machine.device),
                precision=machine.precision,
                threads=threads,
                seed=spec["cell"]["seed"],
                fingerprint=spec.get("code"),
            ),
        },
    )
    print(
        f"{spec['cell']['name']}: mIoU {100 * metrics['miou']:.2f} %, accuracy {100 * metrics['pixel_accuracy']:.2f} %"
    )
