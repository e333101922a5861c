"""The stage that draws a study's figures: it gathers what each shows, and `figures` draws it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from viny.data.augment import IMAGENET, Draws, denormalise, labelled_images, normalise
from viny.data.decoding import inner_box
from viny.data.masks import IGNORE
from viny.data.pack import Pack, open_pack
from viny.data.splits import read_split
from viny.evidence.evaluate import draws_of_test_images, predict
from viny.evidence.figures import kit, pipeline, study
from viny.evidence.figures.study import Prediction
from viny.evidence.metrics import iou, miou_of_images
from viny.evidence.statistics.crossed import crossed, read_confusion, read_scores
from viny.evidence.statistics.references import reference_means, reference_scores
from viny.evidence.summary import Summary
from viny.evidence.tables import GROUP, read_metrics
from viny.learning.machine import Machine
from viny.learning.model import patchify, unpatchify
from viny.learning.objectives import SimMIM, draw_patch_mask
from viny.learning.weights import (
    load_segmentation,
    new_encoder,
    own_normalisation,
    read_weights,
    shown_by,
    weights_beside,
)
from viny.runtime.files import read_sealed
from viny.runtime.seeds import generator
from viny.runtime.units import tested_words
from viny.study.grid import Cell, base_cells, failing_pair, reconstructed, references, shown_cells
from viny.study.layout import (
    chain,
    metrics_file,
    pack_manifest,
    reference_file,
    split_record,
    summarised,
    training_of,
    trainings,
)


def write_figures(spec: Mapping[str, Any], *, root: Path, out: Path, record: Path, threads: int = 1) -> None:
    """Draw every figure of a study, of its first arm where it has several.

    Args:
        spec: see `viny.study.specs.figures_spec`.
        root: the study's folder.
        out: folder that holds figures/.
        record: JSON file to write, what was read and written.
        threads: CPU threads.
    """
    every, shown = base_cells(spec), shown_cells(spec)  # predictions use the test set of the last one shown
    note = spec["note"]
    machine = Machine.choose("cpu", "float32", threads)
    metrics, drawn = [metrics_file(root, cell) for cell in every], out / "figures"
    trained = trainings(every)
    curves = [(training.stage, training.name, training.file(root, "curve")) for training in trained]
    manifest, split = pack_manifest(root, "segmentation"), split_record(root, *chain(shown[-1])[-1].split)
    models = [chain(cell)[-1].file(root, "record") for cell in every]  # the best of which is shown too
    if most := reconstructed(spec):
        encoder = training_of(most).file(root, "record")
        models.append(encoder)
    records = [training.file(root, "record") for training in trained]
    summary = Summary("figures", spec, root)
    summary.reads(*metrics, *(path.with_suffix(".npz") for path in metrics), *(curve for *_, curve in curves))
    summary.reads(manifest, split, split.with_suffix(".npz"), *records, *map(weights_beside, models))
    compared = references(spec)
    summary.reads(*(reference_file(root, one, what) for one in compared for what in ("record", "confusion")))

    frame = read_metrics(metrics)
    scores = read_scores(frame, metrics[0].parent)
    runs = crossed(scores)
    kit.save(pipeline.pipeline(_steps(spec, root, frame, runs.groups), note), drawn / "pipeline")
    others = None
    if compared:
        reached = reference_scores(root, compared)[0]
        others = reference_means(crossed({**scores, **reached}), [key for _, key in reached])
    kit.save(study.miou_curves(runs, note, others), drawn / "miou_curves")
    kit.save(study.miou_difference(runs, note), drawn / "miou_difference")
    kit.save(study.learning_curves(curves, note), drawn / "learning_curves")
    tested = _Tested.read(spec, manifest, split, machine)
    picked = tested.varied(spec["examples"])
    kit.save(_segmentation(root, shown, tested, picked, note), drawn / "segmentation")
    kit.save(_worst(root, every, frame, tested, spec["examples"], note), drawn / "worst")
    if pair := failing_pair(spec):
        kit.save(_failures(root, pair, tested, spec["examples"], note), drawn / "failures")
    if most:
        kit.save(_reconstructions(spec, encoder, tested, picked, note), drawn / "reconstructions")
    summary.write(record, [out / made for made in summarised("figures", spec)], threads)


def _steps(spec: Mapping[str, Any], root: Path, frame: pd.DataFrame, groups: int) -> list[pipeline.Step]:
    """The study's pipeline in numbers."""
    trained = trainings(base_cells(spec))
    counts = Counter(training.stage for training in trained)
    learnt = {training.cell["intermediate"]: training for training in trained if training.stage == "intermediate"}
    images = {
        task: int(read_sealed(training.file(root, "record"), "a weights record")["images"])
        for task, training in learnt.items()
    }
    return pipeline.steps(spec, counts, images, tested_words(frame["test_images"], groups))


@dataclass(frozen=True)
class _Tested:
    """The test images of the cells that are shown.

    Attributes:
        pack: the segmentation's.
        test: [N], their rows in it.
        draws: their flips and jitters in evaluations; None if they stay as they are.
        machine: for predictions.
    """

    pack: Pack
    test: np.ndarray
    draws: Draws | None
    machine: Machine

    @classmethod
    def read(cls, spec: Mapping[str, Any], manifest: Path, split: Path, machine: Machine) -> _Tested:
        pack = open_pack(manifest)
        test = read_split(split, split.with_suffix(".npz"), pack)["test"]
        return cls(pack, test, draws_of_test_images(spec["tested"], len(test)), machine)

    @property
    def classes(self) -> list[str]:
        return self.pack.manifest["mask_classes"]

    def varied(self, count: int) -> np.ndarray:
        """Places of images evenly spaced through the test set, among those with the most classes."""
        shown_of = np.array([len(np.setdiff1d(mask, [IGNORE])) for mask in self.pack.rows("masks", self.test)])
        fewest = np.sort(shown_of)[-min(count, len(self.test))]  # if there are few, many have all
        whole = np.flatnonzero(shown_of >= fewest)
        return whole[:: max(1, len(whole) // count)][:count]

    def images(self, places: np.ndarray) -> np.ndarray:
        """Images as evaluations see them, [n, H, W, 3] in 0 to 1."""
        images = torch.from_numpy(self.pack.rows("images", self.test[places]))
        return _channels_last(labelled_images(images, self._draws(places), normalised=False))

    def predicted(self, root: Path, cell: Cell, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """True and predicted classes, [n, H, W] each."""
        model, record = load_segmentation(chain(cell)[-1].file(root, "record"))
        normalised = shown_by(record, record["spec"]["normalise"])
        rows = self.test[places]
        truth, guess = (
            a.numpy() for a in predict(model, self.pack, rows, normalised, self._draws(places), self.machine)
        )
        if self.pack.manifest.get("fit") == "pad":  # what a model says of bars is no prediction
            for labels, shape in zip(guess, self.pack.shapes[rows], strict=True):
                left, top, right, bottom = inner_box(*shape.tolist(), len(labels))
                inside = labels[top:bottom, left:right].copy()
                labels[:] = IGNORE
                labels[top:bottom, left:right] = inside
        return truth, guess

    def _draws(self, places: np.ndarray) -> Draws | None:
        return None if self.draws is None else self.draws.at(torch.from_numpy(places))


def _channels_last(images: Tensor) -> np.ndarray:
    """[N, 3, H, W] in 0 to 1 to [N, H, W, 3]."""
    return images.clamp(0, 1).permute(0, 2, 3, 1).numpy()


def _segmentation(root: Path, shown: Sequence[Cell], tested: _Tested, picked: np.ndarray, note: str) -> Figure:
    """Test images, their true segmentation, and what each shown model predicts."""
    rows = []
    for cell in shown:
        truth, guess = tested.predicted(root, cell, picked)
        task = "" if cell.intermediate == "none" else f"\n{cell.intermediate}"
        rows.append(Prediction(f"{kit.start_title(cell.pretrain_size)}{task}\n{cell.finetune_size:,} labels", guess))
    return study.segmentations(tested.images(picked), truth, rows, tested.classes, note)


def _failures(root: Path, pair: tuple[Cell, Cell], tested: _Tested, count: int, note: str) -> Figure:
    """The test images on which an intermediate task lowers mIoU most, with what both models predict."""
    mious = [_miou_of_images(metrics_file(root, cell).with_suffix(".npz"), tested.test) for cell in pair]
    harm = mious[0] - mious[1]
    known = np.flatnonzero(np.isfinite(harm))
    worst = known[np.argsort(-harm[known], kind="stable")][:count]
    names = "without\ntask", f"after\n{pair[1].intermediate}"
    rows = []
    for cell, miou, name in zip(pair, mious, names, strict=True):
        truth, guess = tested.predicted(root, cell, worst)
        rows.append(Prediction(name, guess, miou[worst]))
    size, labels = pair[0].pretrain_size, pair[0].finetune_size
    start = f"{size:,} pre-training images" if size else "random start"
    lower = f"{100 * (harm[known] > 0).mean():.0f} %" if len(known) else "none"
    title = f"{start}, {labels:,} labels, seed {pair[0].seed}: {pair[1].intermediate}\n"
    title += f"lowers mIoU on {lower} of {len(known):,} test images; the worst"
    return study.segmentations(tested.images(worst), truth, rows, tested.classes, note, title)


def _worst(root: Path, every: Sequence[Cell], frame: pd.DataFrame, tested: _Tested, count: int, note: str) -> Figure:
    """The test images on which the best cell scores lowest, over its seeds, and what its first seed predicts."""
    best = frame.groupby(GROUP, sort=False)["miou"].mean().idxmax()
    cells = [cell for cell in every if (cell.pretrain_size, cell.intermediate, cell.finetune_size) == best]
    by_seed = [_miou_of_images(metrics_file(root, cell).with_suffix(".npz"), tested.test) for cell in cells]
    miou = pd.DataFrame(by_seed).mean().to_numpy()
    worst = np.argsort(miou, kind="stable")[: min(count, np.isfinite(miou).sum())]  # NaN comes last
    if not len(worst):
        return kit.say("No test image has a pixel with a class.", note)
    truth, guess = tested.predicted(root, cells[0], worst)
    rows = [Prediction(f"Predicted\n(seed {cells[0].seed})", np.where(truth == IGNORE, IGNORE, guess), miou[worst])]
    size, task = cells[0].pretrain_size, cells[0].intermediate
    start = f"{size:,} pre-training images" if size else "random start"
    task = "" if task == "none" else f", {task}"
    title = f"{start}{task}, {cells[0].finetune_size:,} labels: the worst\nof {np.isfinite(miou).sum():,} test images"
    names = [tested.pack.name(row) for row in tested.test[worst].tolist()]
    folder = os.path.commonpath([os.path.dirname(name) for name in names])  # says nothing about any of them
    names = [os.path.relpath(name, folder or ".") for name in names]
    return study.segmentations(tested.images(worst), truth, rows, tested.classes, note, title, names)


def _miou_of_images(path: Path, test: np.ndarray) -> np.ndarray:
    """Mean IoU of each test image over the classes that it has, [N]; NaN where it has none or was not tested."""
    confusion, indices = read_confusion(path)
    return pd.Series(miou_of_images(iou(confusion)), indices).reindex(test).to_numpy()


@torch.inference_mode()
def _reconstructions(
    spec: Mapping[str, Any], record_path: Path, tested: _Tested, picked: np.ndarray, note: str
) -> Figure:
    """What SimMIM paints into the masked patches of images that it was not trained on."""
    tensors, record = read_weights(record_path)
    encoder = new_encoder(record["spec"]["model"], record["spec"]["cell"]["seed"])
    objective = SimMIM(encoder, record["spec"]["class_token"]).eval()
    objective.load_state_dict(tensors)
    encoder.set_fused_attention(tested.machine.fused_attention)
    settings = encoder.settings
    draws = generator(record["spec"]["cell"]["seed"], "figures", "masks")
    mask = draw_patch_mask(len(picked), settings.patches, spec["mask_ratio"], draws)
    rows = torch.from_numpy(tested.pack.rows("images", tested.test[picked]))
    by = own_normalisation(record) or IMAGENET
    images = labelled_images(rows, None, normalised=by)
    patches = patchify(images, settings.patch_size)
    painted = torch.where(mask.unsqueeze(-1), objective.predict(images, mask), patches)
    grey = patchify(normalise(torch.full_like(images, 0.5), by), settings.patch_size)
    hidden = torch.where(mask.unsqueeze(-1), grey, patches)
    views = [denormalise(unpatchify(p, settings.patch_size), by) for p in (patches, hidden, painted)]
    return study.reconstructions(*map(_channels_last, views), note=note)
