"""A study's figures from its results: gathers what each figure shows, lets `figures` draw it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from viny.cells import (
    Cell,
    encoder_folder,
    finetune_folder,
    metrics_file,
    pack_manifest,
    split_record,
    training_folders,
)
from viny.data.augment import denormalise, labelled_images, normalise, to_float
from viny.data.pack import Pack, open_pack
from viny.data.splits import read_split
from viny.evidence import figures
from viny.evidence.evaluate import load_segmentation, predict
from viny.evidence.tables import read_metrics
from viny.learning.model import patchify, unpatchify
from viny.learning.objectives import SimMIM, draw_patch_mask
from viny.learning.stages import new_encoder, read_weights
from viny.learning.train import Machine
from viny.seeds import generator
from viny.settings import IGNORE


def write_figures(
    spec: Mapping[str, Any], cells: Iterable[Cell], root: Path, shown: Iterable[Cell], out: Path, threads: int
) -> None:
    """Draw every figure of a study.

    Args:
        spec: see `viny.cells.figures_spec`.
        cells: all of the study.
        root: the study's folder.
        shown: the cells whose predictions are shown, each over images of the last one's test set.
        out: folder for the figures.
        threads: CPU threads.
    """
    cells, shown = list(cells), list(shown)
    note = spec["note"]
    machine = Machine.choose("cpu", "float32", threads)
    frame = read_metrics([metrics_file(root, cell) for cell in cells])
    figures.save(figures.miou_curves(frame, note), out / "miou_curves")
    figures.save(figures.miou_difference(frame, note), out / "miou_difference")
    curves = [(stage, label, folder / "curve.csv") for stage, label, folder in training_folders(root, cells)]
    figures.save(figures.learning_curves(curves, note), out / "learning_curves")

    pack = open_pack(pack_manifest(root, "segmentation"))
    split = split_record(root, "finetune", f"size-{shown[-1].finetune_size}_seed-{shown[-1].seed}")
    test = read_split(split, split.with_suffix(".npz"), pack)["test"]
    # Of the images with most classes, which is all of them where these are few, evenly spaced through the test set.
    shown_of = np.array([len(np.setdiff1d(mask, [IGNORE])) for mask in pack.rows("masks", test)])
    fewest = np.sort(shown_of)[-min(spec["examples"], len(test))]
    whole = test[shown_of >= fewest]
    picked = whole[:: max(1, len(whole) // spec["examples"])][: spec["examples"]]
    figures.save(_segmentation(root, shown, pack, picked, machine, note), out / "segmentation")
    pretrained = encoder_folder(root, "none", max(c.pretrain_size for c in cells), shown[0].seed)
    if pretrained is not None:
        record = pretrained / "encoder.json"
        figures.save(_reconstructions(spec, record, pack, picked, machine, note), out / "reconstructions")


def _channels_last(images: Tensor) -> np.ndarray:
    """[N, 3, H, W] in 0 to 1 to [N, H, W, 3]."""
    return images.clamp(0, 1).permute(0, 2, 3, 1).numpy()


def _segmentation(root: Path, shown: list[Cell], pack: Pack, picked: np.ndarray, machine: Machine, note: str) -> Figure:
    """Test images, their true segmentation, and what each shown model makes of them."""
    predictions = {}
    for cell in shown:
        model, record = load_segmentation(finetune_folder(root, cell) / "model.json")
        truth, guess = predict(model, pack, picked, record["spec"]["normalise"], None, machine)
        predictions[f"Pre-train {cell.pretrain_size},\nlabels {cell.finetune_size}"] = guess.numpy()
    images = _channels_last(to_float(torch.from_numpy(pack.rows("images", picked))))
    return figures.segmentations(images, truth.numpy(), predictions, pack.manifest["mask_classes"], note)


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
    return figures.reconstructions(*map(_channels_last, views), note=note)
