"""Evaluation of one cell: its model on its test images, as one JSON and the per-image confusion matrices."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from viny.data.augment import Draws, Normalisation, flip, labelled_images
from viny.data.pack import Pack, open_pack
from viny.data.parts import Groups
from viny.data.splits import read_split
from viny.evidence.metrics import classes_in, classes_lacking, summarise
from viny.learning.batches import PackSubset
from viny.learning.machine import Machine
from viny.learning.model import count_parameters
from viny.learning.objectives import Segmentation
from viny.learning.scores import confusion_matrices
from viny.learning.settings import batch_of_masks
from viny.learning.weights import load_segmentation, shown_by
from viny.runtime.errors import InputError
from viny.runtime.files import atomic_path, digest, file_sha256, write_sealed
from viny.runtime.provenance import Provenance
from viny.runtime.seeds import generator


def draws_of_test_images(spec: Mapping[str, Any], count: int) -> Draws | None:
    """The paper's flips and jitters of the test images, the same for every cell; None if images stay as they are."""
    if not spec["switches"]["augment_test"]:
        return None
    return Draws.make(count, spec["contrast"], generator(spec["split_seed"], "evaluate", "frozen"))


@torch.inference_mode()
def predict(
    model: Segmentation,
    pack: Pack,
    indices: np.ndarray,
    normalised: bool | Normalisation,
    draws: Draws | None,
    machine: Machine,
) -> tuple[Tensor, Tensor]:
    """Class maps of some images of a pack.

    Args:
        model: as from `load_segmentation`.
        pack: with masks.
        indices: [N].
        normalised: whether and by what to normalise images, as in the model's training; see `labelled_images`.
        draws: from `draws_of_test_images`.
        machine: device and precision.

    Returns:
        truth and prediction, both uint8 [N, S, S] on the CPU.
    """
    model.to(machine.device)
    model.encoder.set_fused_attention(machine.fused_attention)
    images, masks = (
        PackSubset(pack, "images", indices, machine.device),
        PackSubset(pack, "masks", indices, machine.device),
    )
    truths, guesses = [], []
    for positions in torch.arange(len(indices)).split(batch_of_masks(model.classes)):
        here = draws.at(positions) if draws is not None else None
        truth = masks[positions]
        if here is not None:
            truth = flip(truth, here.flips)
        with machine.autocast():
            scores = model(labelled_images(images[positions], here, normalised))
        truths.append(truth.cpu())
        # The same as `argmax`, which takes ten times as long on a CPU.
        guesses.append(scores.max(1).indices.to(torch.uint8).cpu())
    return torch.cat(truths), torch.cat(guesses)


def _groups(spec: Mapping[str, Any], pack: Pack, test: np.ndarray) -> dict[str, np.ndarray]:
    """A number for the group of each test image, the same for all cells of a study; empty for one without groups."""
    return {"groups": Groups.read(pack.names, spec["group"]).indices[test]} if "group" in spec else {}


def evaluate(
    spec: Mapping[str, Any],
    *,
    manifest: Path,
    split: Path,
    indices: Path,
    model: Path,
    metrics: Path,
    confusion: Path,
    threads: int = 1,
) -> None:
    """Evaluate a fine-tuned model on its test images.

    Args:
        spec: see `viny.study.specs.evaluate_spec`.
        manifest: manifest of the segmentation pack.
        split: record of the cell's split.
        indices: index lists of the cell's split.
        model: record of the fine-tuned weights.
        metrics: JSON file to write.
        confusion: npz file to write: confusion [N, C, C] (true class first), indices [N] in the pack; with
            `segmentation.group`, groups [N], the number of each image's.
        threads: CPU threads.

    Raises:
        InputError: an input is missing, damaged, or of another cell.
    """
    provenance = Provenance()
    machine = Machine.choose(spec["device"], spec["precision"], threads)
    pack = open_pack(manifest, node_local=True)
    lists = read_split(split, indices, pack)
    test = lists["test"]
    fitted, record = load_segmentation(model)
    if record["spec"]["cell"] != spec["cell"]:
        raise InputError(f"{model}: is of cell {record['spec']['cell']['name']}, not {spec['cell']['name']}")
    if record["pack_sha256"] != pack.sha256:
        raise InputError(f"{model}: was trained on another pack than {manifest}; rerun its fine-tuning")
    draws = draws_of_test_images(spec, len(test))
    normalised = shown_by(record, record["spec"]["normalise"])
    truth, guess = predict(fitted, pack, test, normalised, draws, machine)
    names = pack.manifest["mask_classes"]
    at_once = batch_of_masks(len(names))
    parts = [
        confusion_matrices(t, g, len(names)).numpy().astype(np.int32)
        for t, g in zip(truth.split(at_once), guess.split(at_once), strict=True)
    ]
    matrices = np.concatenate(parts)  # [N, C, C]
    found = summarise(matrices, names, pack.manifest.get("border_class"))
    classes = classes_in(matrices, names) | {"not_in_training": classes_lacking(pack, lists["train"])}
    found["miou"] = found[f"miou_{spec['switches']['miou']}"]
    with atomic_path(confusion) as tmp, open(tmp, "wb") as f:
        np.savez_compressed(f, confusion=matrices, indices=test, **_groups(spec, pack, test))
    write_sealed(
        metrics,
        {
            "study": spec["study"],
            "protocol": spec["protocol"],
            "switches": spec["switches"],
            "note": spec["note"],
            "cell": spec["cell"],
            "metrics": found,
            "classes": classes,
            "miou_is": spec["switches"]["miou"],
            "test_images": len(test),
            "parameters": count_parameters(fitted),
            "train": record["spec"]["train"],
            "hashes": {
                "spec": digest(dict(spec)),
                "pack": pack.sha256,
                "split": record["split_sha256"],
                "weights": record["weights_sha256"],
                "parent_weights": record["parent_sha256"],
            },
            "outputs": {confusion.name: file_sha256(confusion)},
            "provenance": provenance.finish(
                device=str(machine.device),
                precision=machine.precision,
                threads=threads,
                seed=spec["cell"]["seed"],
                fingerprint=spec.get("code"),
            ),
        },
    )
    print(f"{spec['cell']['name']}: mIoU {100 * found['miou']:.2f} %, accuracy {100 * found['pixel_accuracy']:.2f} %")
    for part, key in (("test", "not_in_test"), ("training", "not_in_training")):
        if classes[key]:
            print(f"no pixel in any {part} mask: {', '.join(classes[key])}")
