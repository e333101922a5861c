"""The stage that draws a study's figures: it gathers what each shows, and `figures` draws it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from viny.data.augment import denormalise, labelled_images, normalise, to_float
from viny.data.masks import IGNORE
from viny.data.pack import Pack, open_pack
from viny.data.splits import read_split
from viny.evidence.evaluate import predict
from viny.evidence.figures import kit, study
from viny.evidence.summary import Summary
from viny.evidence.tables import read_metrics
from viny.learning.machine import Machine
from viny.learning.model import patchify, unpatchify
from viny.learning.objectives import SimMIM, draw_patch_mask
from viny.learning.weights import load_segmentation, new_encoder, read_weights, weights_beside
from viny.runtime.seeds import generator
from viny.study.grid import Cell, Encoder, cells, shown_cells
from viny.study.layout import chain, metrics_file, pack_manifest, split_record, summarised, training_of, trainings


def write_figures(spec: Mapping[str, Any], *, root: Path, out: Path, record: Path, threads: int = 1) -> None:
    """Draw every figure of a study.

    Args:
        spec: see `viny.study.specs.figures_spec`.
        root: the study's folder.
        out: folder that holds figures/.
        record: JSON file to write, what was read and written.
        threads: CPU threads.
    """
    every, shown = cells(spec), shown_cells(spec)  # predictions use the test set of the last one shown
    note = spec["note"]
    machine = Machine.choose("cpu", "float32", threads)
    metrics, drawn = [metrics_file(root, cell) for cell in every], out / "figures"
    curves = [(training.stage, training.name, training.file(root, "curve")) for training in trainings(every)]
    manifest, split = pack_manifest(root, "segmentation"), split_record(root, *chain(shown[-1])[-1].split)
    models = [chain(cell)[-1].file(root, "record") for cell in shown]
    if largest := max(cell.pretrain_size for cell in every):
        encoder = training_of(Encoder("pretrained", largest, "none", 0, shown[0].seed)).file(root, "record")
        models.append(encoder)
    summary = Summary("figures", spec, root)
    summary.reads(*metrics, *(curve for *_, curve in curves), manifest, split, split.with_suffix(".npz"))
    summary.reads(*models, *map(weights_beside, models))

    frame = read_metrics(metrics)
    kit.save(study.miou_curves(frame, note), drawn / "miou_curves")
    kit.save(study.miou_difference(frame, note), drawn / "miou_difference")
    kit.save(study.learning_curves(curves, note), drawn / "learning_curves")
    pack = open_pack(manifest)
    test = read_split(split, split.with_suffix(".npz"), pack)["test"]
    # Evenly spaced through the test set, among the images with the most classes; if there are few, many have all.
    shown_of = np.array([len(np.setdiff1d(mask, [IGNORE])) for mask in pack.rows("masks", test)])
    fewest = np.sort(shown_of)[-min(spec["examples"], len(test))]
    whole = test[shown_of >= fewest]
    picked = whole[:: max(1, len(whole) // spec["examples"])][: spec["examples"]]
    kit.save(_segmentation(root, shown, pack, picked, machine, note), drawn / "segmentation")
    if largest:
        kit.save(_reconstructions(spec, encoder, pack, picked, machine, note), drawn / "reconstructions")
    summary.write(record, [out / made for made in summarised("figures", spec)], threads)


def _channels_last(images: Tensor) -> np.ndarray:
    """[N, 3, H, W] in 0 to 1 to [N, H, W, 3]."""
    return images.clamp(0, 1).permute(0, 2, 3, 1).numpy()


def _segmentation(root: Path, shown: list[Cell], pack: Pack, picked: np.ndarray, machine: Machine, note: str) -> Figure:
    """Test images, their true segmentation, and what each shown model predicts."""
    predictions = {}
    for cell in shown:
        model, record = load_segmentation(chain(cell)[-1].file(root, "record"))
        truth, guess = predict(model, pack, picked, record["spec"]["normalise"], None, machine)
        predictions[f"Pre-train {cell.pretrain_size},\nlabels {cell.finetune_size}"] = guess.numpy()
    images = _channels_last(to_float(torch.from_numpy(pack.rows("images", picked))))
    return study.segmentations(images, truth.numpy(), predictions, pack.manifest["mask_classes"], note)


@torch.inference_mode()
def _reconstructions(
    spec: Mapping[str, Any], record_path: Path, pack: Pack, picked: np.ndarray, machine: Machine, note: str
) -> Figure:
    """What SimMIM paints into the masked patches of images that it was not trained on."""
    tensors, record = read_weights(record_path)
    encoder = new_encoder(record["spec"]["model"], record["spec"]["cell"]["seed"])
    objective = SimMIM(encoder, record["spec"]["class_token"]).eval()
    objective.load_state_dict(tensors)
    encoder.set_fused_attention(machine.fused_attention)
    settings = encoder.settings
    draws = generator(record["spec"]["cell"]["seed"], "figures", "masks")
    mask = draw_patch_mask(len(picked), settings.patches, spec["mask_ratio"], draws)
    images = labelled_images(torch.from_numpy(pack.rows("images", picked)), None, normalised=True)
    patches = patchify(images, settings.patch_size)
    painted = torch.where(mask.unsqueeze(-1), objective.predict(images, mask), patches)
    grey = patchify(normalise(torch.full_like(images, 0.5)), settings.patch_size)
    hidden = torch.where(mask.unsqueeze(-1), grey, patches)
    views = [denormalise(unpatchify(p, settings.patch_size)) for p in (patches, hidden, painted)]
    return study.reconstructions(*map(_channels_last, views), note=note)
