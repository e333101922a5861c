"""How much work a job is: image passes, operations, memory; and from these, the time to ask a cluster for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from viny.data.decoding import MEMORY
from viny.learning import unet_settings
from viny.learning.settings import (
    BATCH,
    IN_MEMORY,
    TRAINING,
    ModelSettings,
    batch_of_masks,
    forward_operations,
    measured_epochs,
    tuned_epochs,
)
from viny.study.arms import schedule, settings_of
from viny.study.grid import BASE, Arm, Cell, arms
from viny.study.layout import Training
from viny.study.specs import mask_class_count

START = 3.0  # minutes of a job besides its passes: imports, opening a pack on a slow file system, writing results
HEAD_ROOM = 2.0  # times what the stated rate gives; hitting a time limit costs another wait in the queue
BASE_MB = 1300  # resident with PyTorch and no data (750 measured), plus room
PACK_MB = math.ceil(MEMORY / 1e6) + 300  # decoding, whatever the number of threads, and the program
LAUNCHER_MB = 600  # what a cluster job holds besides the program: Snakemake, twice
# Training images per second of ViNy (128 px, 4.8 M parameters) if a study states no rate. Measured on two cores
# of an AMD EPYC with AVX-512 bfloat16: 60 to 105 per thread. The paper states about 1,400 on an RTX 4080.
CPU_RATE = 50.0
GPU_RATE = 1000.0
PROBE_PASSES = 200  # over its tokens, at most, to fit a linear probe
HASH = 16  # bytes of a row's hash in a pack
# Bytes of a mask at its own size in a pack: 1,100 of Pets' trimaps of 500 x 375 pixels.
OWN_MASK = 2000 + HASH + 16
STACK = 24  # trainings that one process runs at once on a GPU, at most, unless a study says how many
UNKNOWN = 20_000  # images that a labelled data set is assumed to have before it is on disk


def activation_bytes(model: ModelSettings) -> int:
    """Bytes in float32 that the forward pass of one image keeps for the backward pass."""
    inner = model.heads * model.head_dim
    token = 4 * inner + 3 * model.mlp_dim + 8 * model.dim + model.heads * model.patches
    return 4 * model.patches * (model.depth * token + 6 * model.patch_size**2)


def parameters(model: ModelSettings) -> int:
    """Parameters of the encoder, without a head."""
    pixels, dim, inner = 3 * model.patch_size**2, model.dim, model.heads * model.head_dim
    tokens = (2 + model.patches) * dim  # the class token, and a position for it and each patch
    embedding = (pixels + 1) * dim + (0 if model.plain else 2 * pixels + 2 * dim)
    block = 4 * dim + 3 * dim * inner + (inner + 1) * dim + (dim + 1) * model.mlp_dim + (model.mlp_dim + 1) * dim
    block += 3 * inner if model.plain else 0
    return tokens + embedding + model.depth * block + 2 * dim


def pack_bytes(images: int, side: int, masks: bool, own_size: bool = False, tiles: int = 1) -> int:
    """Bytes of a pack of that many square images, see `viny.data.pack`.

    Args:
        images: how many.
        side: of an image, pixels.
        masks: whether it has masks.
        own_size: whether these are kept at their own size too, as those of files are.
        tiles: images for tiles have so many times the side.
    """
    row = 3 * side**2 + 2 * HASH + 8 + 8 + 4 + 1  # pixels, two hashes, a perceptual one, shape, label, part
    row += 3 * (tiles * side) ** 2 + HASH if tiles > 1 else 0
    return images * (row + masks * (side**2 + HASH + own_size * OWN_MASK))


@dataclass(frozen=True)
class Workload:
    """What a job does.

    Attributes:
        passes: images that go forward and backward, counted once per epoch.
        operations: multiplications and additions of all of them.
        memory_mb: what the program holds at its peak, MB.
        looked_at: images that go forward alone beside them, such as those that a training is tested on.
        forward: multiplications and additions to pass one image through the encoder.
    """

    passes: int
    operations: int
    memory_mb: int
    looked_at: int = 0
    forward: int = 0

    def minutes(self, config: Mapping[str, Any], attempt: int = 1) -> int:
        """Time to ask for, whole minutes: with headroom, and more at every further attempt."""
        return math.ceil(attempt * (START + HEAD_ROOM * self.operations / operations_a_second(config) / 60))


def stack_of(config: Mapping[str, Any]) -> int:
    """How many trainings one process may run at once on a GPU."""
    said = config["compute"]["stack"]
    return STACK if said == "auto" else said


def operations_a_second(config: Mapping[str, Any]) -> float:
    """One job's, from the image rate that the study states or that its device is known to reach."""
    compute = config["compute"]
    rate = compute["images_per_second"]
    if not rate:
        rate = CPU_RATE * compute["train_threads"] if compute["device"] == "cpu" else GPU_RATE
    return rate * TRAINING * forward_operations(ModelSettings())


def _workload(
    config: Mapping[str, Any], images: int, epochs: int, batch_size: int, side: int, channels: int
) -> Workload:
    model = ModelSettings(**config["model"])
    passes = images * epochs
    held = 1.5 * min(images * side**2 * channels, IN_MEMORY)  # what is kept is copied on the way, in parts
    memory = BASE_MB + math.ceil((held + batch_size * activation_bytes(model)) / 1e6)
    forward = forward_operations(model)
    return Workload(passes, passes * TRAINING * forward, memory, forward=forward)


def _looking_at(work: Workload, images: int) -> Workload:
    """Work that also passes so many images forward."""
    a_pass = max(work.forward, work.operations // work.passes // TRAINING)
    return replace(work, operations=work.operations + a_pass * images, looked_at=work.looked_at + images)


def pretrain_workload(config: Mapping[str, Any], size: int, arm: Arm = BASE) -> Workload:
    """One pre-training on `size` images, and the passes over held-out images for their loss."""
    settings = settings_of(config, arm)
    section, (epochs, milestones) = settings["pretrain"], schedule(settings, size)
    work = _workload(settings, size, epochs, section["batch_size"], section["pack_size"], 3)
    held_out = section.get("held_out", 0)
    return _looking_at(work, held_out * len(measured_epochs(epochs, milestones))) if held_out else work


def intermediate_workload(config: Mapping[str, Any], task: str, images: int | None, arm: Arm = BASE) -> Workload:
    """One training on an intermediate task whose data set has `images` images, training and test; None if unknown."""
    settings = settings_of(config, arm)
    section, side = settings["intermediate"][task], settings["model"]["image_size"]
    images = section.get("images") or (UNKNOWN if images is None else images)
    channels = 3 if section["target"] == "image" else 4
    return _workload(settings, images, section["epochs"], section["batch_size"], side, channels)


def _with_scores(
    config: Mapping[str, Any], work: Workload, at_once: int, training: bool, passes: int = TRAINING
) -> Workload:
    """Work that also computes a score of each class for each pixel, `at_once` images at a time.

    `passes` are those of a training step through the head, in forward passes.
    """
    classes, side = mask_class_count(config), config["model"]["image_size"]
    forward = 2 * classes * side**2 * config["model"]["dim"]
    scores = 4 * classes * side**2 * (4 if training else 2)  # bytes; with their logarithms and gradients, or rearranged
    return replace(
        work,
        operations=work.operations + work.passes * forward * (passes if training else 1),
        memory_mb=work.memory_mb + math.ceil(at_once * scores / 1e6),
    )


def finetune_workload(config: Mapping[str, Any], size: int, arm: Arm = BASE) -> Workload:
    """One fine-tuning on `size` labelled images."""
    settings = settings_of(config, arm)
    return _tuning(settings, size, settings["finetune"]["epochs"])


def tune_workload(config: Mapping[str, Any], labels: int, arm: Arm) -> Workload:
    """The short trainings that score the rates of a cell with so many labelled images."""
    settings = settings_of(config, arm)
    tune, rates = settings["tune"], len(settings["tune"]["lr"])
    scored = math.ceil(tune["validation"] * labels)
    epochs = rates * tuned_epochs(settings["finetune"]["epochs"], tune["share"])
    return _looking_at(_tuning(settings, max(1, labels - scored), epochs, rates), rates * scored)


def _tuning(settings: Mapping[str, Any], images: int, epochs: int, trainings: int = 1) -> Workload:
    batch, side = settings["finetune"]["batch_size"], settings["model"]["image_size"]
    if settings["finetune"].get("encoder") != "frozen":
        work = _workload(settings, images, epochs, batch, side, 4)
        return _with_scores(settings, work, min(batch, images), training=True)
    # In each training, tokens of an image and its mirror image are computed once; then only the head is trained.
    model = ModelSettings(**settings["model"])
    tokens = _workload(settings, 2 * images, trainings, min(batch, BATCH), side, 4)
    kept = math.ceil(8 * images * model.patches * model.dim / 1e6)
    head = replace(tokens, passes=images * epochs, operations=0, memory_mb=tokens.memory_mb + kept)
    # The tokens take no gradient.
    trained = _with_scores(settings, head, min(batch, images), training=True, passes=TRAINING - 1)
    return replace(trained, operations=trained.operations + tokens.operations // TRAINING)


def _tested(config: Mapping[str, Any], images: int | None) -> int:
    """Forward passes that so many test images take; None for as many as `segmentation.test_size`."""
    images = images or config["segmentation"]["test_size"]
    tiles = config["segmentation"].get("tiles", 1)
    # The whole image as it is and as small as a tile, and the tiles, see `own_size.tiled`.
    return images * (2 + (2 * tiles - 1) ** 2) if tiles > 1 else images


def reference_workload(config: Mapping[str, Any], labels: int, tested: int | None = None) -> Workload:
    """The U-Net beside the cells of a label size: its training, and its evaluation on the test images.

    Args:
        config: resolved settings.
        labels: labelled images.
        tested: test images, if `segmentation.test_size` does not say how many.
    """
    settings = settings_of(config, arms(config)[0])
    section, side, classes = settings["finetune"], settings["model"]["image_size"], mask_class_count(config)
    passes = labels * section["epochs"]
    held = 1.5 * min(labels * side**2 * 4, IN_MEMORY)
    shown = max(min(section["batch_size"], labels), batch_of_masks(classes) // TRAINING)
    memory = BASE_MB + math.ceil((held + shown * (unet_settings.activation_bytes(side) + 16 * classes * side**2)) / 1e6)
    forward = unet_settings.forward_operations(side, classes)
    work = Workload(passes, passes * TRAINING * forward, memory, forward=forward)
    return _looking_at(work, _tested(settings, tested))


def training_workload(config: Mapping[str, Any], training: Training, images: Mapping[str, int | None]) -> Workload:
    """Any training; `images` are those of each intermediate task, None if unknown."""
    if isinstance(training.key, Cell):
        return finetune_workload(config, training.key.finetune_size, training.arm)
    if training.stage == "pretrain":
        return pretrain_workload(config, training.cell["pretrain_size"], training.arm)
    return intermediate_workload(config, training.pack, images[training.pack], training.arm)


def evaluate_workload(config: Mapping[str, Any], images: int | None = None, arm: Arm = BASE) -> Workload:
    """The evaluation of one cell: a forward pass of the test images is a third of a training pass.

    Args:
        config: resolved settings.
        images: test images, if `segmentation.test_size` does not say how many.
        arm: the cell's.
    """
    config = settings_of(config, arm)
    images = _tested(config, images)
    # BATCH images go through at once, but only one layer's activations are kept.
    at_once = math.ceil(2 * BATCH / config["model"]["depth"])
    trained = _workload(config, images, 1, at_once, config["model"]["image_size"], 4)
    forward = replace(trained, operations=trained.operations // TRAINING)
    return _with_scores(config, forward, batch_of_masks(mask_class_count(config)), training=False)


def geometry_workload(config: Mapping[str, Any], arm: Arm = BASE) -> Workload:
    """The geometry of one encoder: forward passes, and probes fitted to the tokens of every layer."""
    config = settings_of(config, arm)
    model, section = ModelSettings(**config["model"]), config["geometry"]
    images = section["images"] + section["probe_images"]
    trained = _workload(config, images, 1, math.ceil(2 * BATCH / model.depth), model.image_size, 4)
    tokens = images * (model.depth + 2) * model.patches * model.dim
    # As many operations as the training passes: fitting a probe goes through its tokens some hundred times.
    fits = 2 * PROBE_PASSES * tokens * 3
    held = trained.memory_mb + math.ceil(4 * 4 * tokens / 1e6)
    return replace(trained, operations=trained.operations // TRAINING + fits, memory_mb=held)


def pack_minutes(images: int | None, threads: int, attempt: int = 1) -> int:
    """Time to ask for to pack a data set, in minutes; `images` is None if its size is not known yet.

    Measured: 220 images of 500 x 375 pixels per second and thread; a slow file system may halve that twice.
    """
    return math.ceil(attempt * (START + (images or 1_300_000) / (50 * threads) / 60))
