"""The training stages, from files to files: pre-training, intermediate task, fine-tuning."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from viny.data.augment import IMAGENET, Draws, Normalisation, central_squares, labelled_images, to_device
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
from viny.learning.checkpoint import Checkpoints, Progress
from viny.learning.frozen import TokenBatches
from viny.learning.machine import Machine, keep_kernels
from viny.learning.model import ViNy, count_parameters
from viny.learning.objectives import (
    Classification,
    FrozenSegmentation,
    PatchClassification,
    SimMIM,
    draw_patch_mask,
)
from viny.learning.rates import chosen_rate
from viny.learning.run import HELD_OUT, Run
from viny.learning.settings import BATCH, TrainSettings
from viny.learning.train import fit
from viny.learning.weights import (
    load_encoder,
    make_segmentation,
    new_encoder,
    own_normalisation,
    read_weights,
    save_weights,
)
from viny.runtime.claims import claim_beside, claimed
from viny.runtime.errors import InputError
from viny.runtime.files import digest, file_sha256, read_sealed, write_sealed
from viny.runtime.processes import Owner
from viny.runtime.provenance import Provenance
from viny.runtime.seeds import derive, generator
from viny.runtime.stacks import Desk, Work

CHECKPOINT_MINUTES = 5.0


def _pretrain(
    spec: Mapping[str, Any],
    encoder: ViNy,
    pack: Pack,
    train: Any,
    device: torch.device,
    hold: bool = True,
    own: Normalisation | None = None,
) -> Any:
    size, patches = encoder.settings.image_size, encoder.settings.patches
    masked, crop, by = spec["mask_ratio"], spec["crop_scale"], own or IMAGENET
    batches = simmim_batches(pack, train, size, patches, masked, crop, device, hold, by)
    return SimMIM(encoder, spec["class_token"]), batches


def _intermediate(
    spec: Mapping[str, Any],
    encoder: ViNy,
    pack: Pack,
    train: Any,
    device: torch.device,
    hold: bool = True,
    own: Normalisation | None = None,
) -> Any:
    augmentation = LabelledAugmentation(spec["contrast"], normalised=own or True)
    if spec["target"] == "patch":
        classes = len(pack.manifest["mask_classes"])
        objective = PatchClassification(encoder, classes, spec["class_token"])
        return objective, mask_batches(pack, train, augmentation, device, hold)
    classes = len(pack.manifest["classes"])
    shuffle = generator(spec["cell"]["seed"], "intermediate", "labels") if spec["labels"] == "shuffled" else None
    batches = class_batches(pack, train, classes, augmentation, spec["mixup"], device, shuffle, hold)
    return Classification(encoder, classes, spec["pooling"], spec["class_token"]), batches


def _finetune(
    spec: Mapping[str, Any],
    encoder: ViNy,
    pack: Pack,
    train: Any,
    device: torch.device,
    hold: bool = True,
    own: Normalisation | None = None,
) -> Any:
    frozen = None
    if spec["augmentation"] == "frozen":
        draws = generator(spec["cell"]["seed"], "finetune", "frozen")
        frozen = Draws.make(len(train), spec["contrast"], draws)
    augmentation = LabelledAugmentation(spec["contrast"], own or spec["normalise"], frozen)
    classes = len(pack.manifest["mask_classes"])
    if spec.get("encoder") == "frozen":
        objective = make_segmentation(spec, encoder, classes, FrozenSegmentation)
        images = mask_batches(pack, train, augmentation, device, hold=False)  # the images are read once
        images = replace(images, subsets={**images.subsets, "masks": PackSubset(pack, "masks", train, device)})
        machine = Machine.of(device, spec["precision"])
        return objective, TokenBatches(objective, images, len(train), frozen is not None, machine)
    return make_segmentation(spec, encoder, classes), mask_batches(pack, train, augmentation, device, hold)


STAGES: dict[str, Callable[..., tuple[nn.Module, Batches]]] = {
    "pretrain": _pretrain,
    "intermediate": _intermediate,
    "finetune": _finetune,
    "tune": _finetune,
}


@torch.inference_mode()
def held_out_accuracy(
    objective: nn.Module, pack: Pack, indices: np.ndarray, machine: Machine, own: Normalisation | None = None
) -> float:
    """Share of held-out images, or of their patches, that an intermediate task's model classifies correctly.

    `own` is the model's own normalisation, if it has one.
    """
    objective.eval()
    images = PackSubset(pack, "images", indices, machine.device)
    patches = isinstance(objective, PatchClassification)
    targets = PackSubset(pack, "masks" if patches else "labels", indices, machine.device)
    hits = []
    for positions in torch.arange(len(indices)).split(BATCH):
        with machine.autocast():
            guess = objective(labelled_images(images[positions], None, normalised=own or True)).argmax(-1)
        truth = targets[positions]
        if patches:
            truth = objective.targets(truth)
            guess, truth = guess[truth != IGNORE], truth[truth != IGNORE]
        hits.append((guess == truth).float().cpu())
    return float(torch.cat(hits).mean())


@torch.no_grad()
def held_out_loss(
    objective: SimMIM, batches: Batches, pack: Pack, indices: np.ndarray, masks: Tensor, machine: Machine
) -> float:
    """Mean absolute error of SimMIM on the masked patches of images that it does not train on.

    Images are the largest square in the middle, not mirrored.

    Args:
        objective: as it is in the middle of its training.
        batches: of the training's images, which are made from pixels in the same way.
        pack: with the images.
        indices: [N], their rows.
        masks: bool [N, L], which patches are hidden.
        machine: device and precision.
    """
    images = PackSubset(pack, "images", indices, machine.device, hold=False)
    shapes = torch.from_numpy(np.asarray(pack.shapes)[indices])
    total = torch.zeros((), device=machine.device)
    for positions in torch.arange(len(indices)).split(BATCH):
        drawn = {
            "boxes": central_squares(shapes[positions]),
            "flips": torch.zeros(len(positions), dtype=torch.bool),
            "mask": to_device(masks[positions], machine.device),
        }
        batch = batches.make({"images": images[positions]}, drawn)
        with machine.autocast():
            total += objective.loss(batch) * len(positions)
    return float(total) / len(indices)


class Files(NamedTuple):
    manifest: Path
    split: Path
    indices: Path
    parent: Path | None = None
    weights: Path | None = None  # like the next three, None where only a score is wanted
    record: Path | None = None
    curve: Path | None = None
    run: Path | None = None
    checkpoints: Path | None = None
    tuned: tuple[Path, ...] = ()


def train(
    spec: Mapping[str, Any],
    *,
    manifest: Path,
    split: Path,
    indices: Path,
    parent: Path | None = None,
    tuned: Sequence[Path] | None = None,
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
        tuned: tunings of all seeds, by which a fine-tuning chooses its rate; none: it has one.
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
    files = Files(manifest, split, indices, parent, weights, record, curve, run, checkpoints, tuple(tuned or ()))
    if checkpoints is None:
        _train(spec, files, threads, checkpoint_minutes, False)
        return
    # A job whose driver died may still be running when the next driver starts the same job.
    with claimed(claim_beside(checkpoints), spec["stage"]) as waited:
        _train(spec, files, threads, checkpoint_minutes, waited)


def _train(
    spec: Mapping[str, Any], files: Files, threads: int, checkpoint_minutes: float | None, another: bool
) -> None:
    machine = Machine.choose(spec["device"], spec["precision"], threads)
    # On a GPU, the training's engine reads the images.
    training = TrainingJob(spec, files, machine, threads, checkpoint_minutes, hold=machine.device.type == "cpu")
    if another and training.is_made():
        return
    training.begin()
    run = training.new_run()
    training.finish(run, fit(run, machine))


def lead(desk: Desk, work: Work) -> None:
    """Train this process's own work, and beside it what other jobs hand in that fits.

    Args:
        desk: where others hand in.
        work: this process's own.

    Raises:
        InputError, TrainingError, Stopped: as `train`, of its own work.
    """
    from viny.learning.leader import Leader  # what it imports is needed on a GPU alone

    Leader(desk, work).train()


class TrainingJob:
    """A training between its input and its output files.

    Args:
        spec: see `train`; so are the others.
        files: what it reads and writes.
        machine: where it is computed.
        threads: CPU threads.
        checkpoint_minutes: between checkpoints.
        hold: whether the training's images are read at once, and kept; if not, whoever trains it reads them.
        owner: the process whose job it is; None: this one.
        study: hash of the settings of its study; None: as this process was told.
        rows: of the pack, the images to train on; None: the split's training list.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        files: Files,
        machine: Machine,
        threads: int,
        checkpoint_minutes: float | None,
        hold: bool = True,
        owner: Owner | None = None,
        study: str | None = None,
        rows: np.ndarray | None = None,
    ) -> None:
        self.provenance = Provenance(study)
        self.spec, self.files, self.machine, self.threads, self.owner = spec, files, machine, threads, owner
        self.stage, self.seed = spec["stage"], spec["cell"]["seed"]
        if checkpoint_minutes is None:
            checkpoint_minutes = float(os.environ.get("VINY_CHECKPOINT_MINUTES") or CHECKPOINT_MINUTES)
        keep_kernels(Path(os.path.realpath(files.manifest.parent / "images.npy")).parents[1], machine)
        self.pack = open_pack(files.manifest, node_local=True)
        self.split = read_split(files.split, files.indices, self.pack)
        encoder = new_encoder(spec["model"], self.seed)
        parent = load_encoder(encoder, files.parent) if files.parent else None
        self.own = None if parent is None else own_normalisation(parent)
        rows = self.split["train"] if rows is None else rows
        self.count = len(rows)
        with torch.random.fork_rng():
            torch.manual_seed(derive(self.seed, self.stage, "head"))
            self.objective, self.batches = STAGES[self.stage](
                spec, encoder, self.pack, rows, machine.device, hold, self.own
            )
        self.record = {
            "stage": self.stage,
            "spec": dict(spec),
            "precision": machine.precision,
            "parameters": count_parameters(self.objective),
            "images": self.count,
            "pack_sha256": self.pack.sha256,
            "split_sha256": read_sealed(files.split, "a split record")["parts"]["train"]["sha256"],
            "parent_sha256": parent["weights_sha256"] if parent else None,
            "mask_classes": self.pack.manifest["mask_classes"],
        }
        if parent is not None and "normalisation" in parent:
            self.record["normalisation"] = parent["normalisation"]
        self.settings = TrainSettings.of(spec["train"])
        if self.stage != "tune" and (tuned := chosen_rate(spec, files.tuned, self.pack.sha256)):
            self.record["tuned"] = tuned
            self.settings = replace(self.settings, lr=tuned["lr"])
        self.checkpoints: Checkpoints | None = None
        if files.checkpoints:
            identity = {**self.record, "device": machine.device.type, "torch": torch.__version__}
            attempt = {"host": platform.node(), "threads": threads, "started": self.provenance.started}
            self.checkpoints = Checkpoints(files.checkpoints, identity, checkpoint_minutes, attempt)

    def is_made(self) -> bool:
        """Whether every output exists and is what this training would make; if so, it says so."""
        assert self.files.record and self.files.curve and self.files.run
        try:
            made = read_weights(self.files.record)[1]
        except InputError:
            return False
        found = all(made.get(k) == v for k, v in self.record.items())
        found = found and self.files.curve.is_file() and self.files.run.is_file()
        if found:
            print(f"{self.stage}: {self.files.weights} already exists, made by another process meanwhile", flush=True)
        return found

    def begin(self) -> None:
        """Say what begins."""
        print(
            f"{self.stage}: {self.count} images, {self.record['parameters']:,} parameters, {self.machine.device}, "
            f"{self.machine.precision}, {self.threads} threads",
            flush=True,
        )

    def new_run(self) -> Run:
        """The training as a run, from its newest checkpoint if there is one."""
        self.objective.to(self.machine.device)
        return Run(
            self.objective,
            self.batches,
            self.count,
            self.settings,
            self.seed,
            self.stage,
            self.files.curve,
            self.checkpoints,
            self.owner,
            self._held_out(),
        )

    def _held_out(self) -> Callable[[], float] | None:
        """Measures the loss on the images that a pre-training holds out; None where it holds none out."""
        count, test = self.spec.get("held_out", 0), self.split["test"]
        if self.stage != "pretrain" or not count:
            return None
        if len(test) != count:
            raise InputError(
                f"{self.files.split}: holds out {len(test)} images, pretrain.held_out says {count}; delete it and rerun"
            )
        patches = self.objective.encoder.settings.patches
        # The same for all sizes and seeds.
        draws = generator(self.spec.get("split_seed", 0), "pretrain", "held_out")
        masks = draw_patch_mask(count, patches, self.spec["mask_ratio"], draws)
        return partial(held_out_loss, self.objective, self.batches, self.pack, test, masks, self.machine)

    def finish(self, run: Run, done: Progress) -> None:
        """Write what was trained, from the finished run and its curve, seconds and attempts."""
        record, files, stage = self.record, self.files, self.stage
        assert files.weights and files.record and files.curve and files.run
        record["final_loss"] = done.curve[-1]["loss"]
        if run.measured:
            record["held_out_images"] = len(self.split["test"])
            record["held_out_loss"] = done.curve[-1][HELD_OUT]
            print(f"{stage}: loss {record['held_out_loss']:.4f} on {record['held_out_images']} held-out images")
        if stage == "intermediate":
            test = self.split["test"]
            record["held_out_images"] = len(test)
            record["held_out_accuracy"] = held_out_accuracy(self.objective, self.pack, test, self.machine, self.own)
            print(f"{stage}: accuracy {record['held_out_accuracy']:.4f} on {len(test)} held-out images")
        record["weights_sha256"] = save_weights(files.weights, self.objective.state_dict(), record)
        write_sealed(
            files.run,
            self.provenance.finish(
                device=str(self.machine.device),
                precision=self.machine.precision,
                threads=self.threads,
                seed=self.seed,
                image_passes=self.count * self.settings.epochs,
                training_seconds=round(done.seconds, 3),
                earlier_attempts=done.attempts,
                stacked=round(run.stacked, 1),
                fingerprint=self.spec.get("code"),
                hashes={
                    "spec": digest(dict(self.spec)),
                    "pack": record["pack_sha256"],
                    "split": record["split_sha256"],
                    "weights": record["weights_sha256"],
                    "parent_weights": record["parent_sha256"],
                },
                outputs={files.curve.name: file_sha256(files.curve)},
            ),
        )
        write_sealed(files.record, record)
        if self.checkpoints:
            self.checkpoints.remove()
