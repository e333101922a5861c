"""How fast this machine runs a study's steps: the jobs' own code on made images, as many side by side as will run."""

from __future__ import annotations

import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from viny.learning.settings import batch_of_masks
from viny.runtime.errors import InputError
from viny.runtime.gpus import take_gpu
from viny.runtime.load import share_of_cores, time_run
from viny.runtime.signals import end_with_parent

if TYPE_CHECKING:  # it imports PyTorch, whose start is timed
    from viny.learning.machine import Machine

LEAST = 3  # blocks of steps
LONGEST = 6.0  # seconds for one kind of step: more would not tell more
BLOCK = 0.2  # seconds; the kernel counts a thread's time in hundredths
SHORT, EPOCHS = 16, 2  # a training with so few batches per epoch is timed by that many epochs
QUEUED, GPU_STEPS = 40, 200  # batches of an epoch that is timed on a GPU at most, and of all such epochs at least
AT_ONCE = 64  # images that are packed between two looks at the clock
TOGETHER = 600.0  # seconds after which a process that the others wait for is given up on
_all: Any = None  # the barrier at which the processes that measure side by side meet
_ready = 0.0  # seconds from their start until this one could begin


@dataclass(frozen=True)
class Step:
    """What to measure.

    Attributes:
        name: of the kind of job.
        spec: of a training, see `viny.study.grid`; of a pack, see `viny.study.specs.pack_spec`.
        images: how many a job of this kind has; a batch holds no more.
        side: of a packed image, pixels.
        what: 'train', 'evaluate' or 'pack'.
        classes: number of classes of images and of masks.
    """

    name: str
    spec: Mapping[str, Any]
    images: int
    side: int
    what: str = "train"
    classes: int = 3


@dataclass(frozen=True)
class Throughput:
    """What was measured.

    Attributes:
        rates: images per second of one job on a quiet machine, by the name of its step; steps that could not be
            measured are left out.
        start: seconds from a job's start until PyTorch and the stages are imported, on a quiet machine.
        share: of the time in which the processes could have computed, how much other work left them; 1 if unknown. What
            was measured is `rates` times `share`.
    """

    rates: dict[str, float]
    start: float
    share: float


def measure(
    steps: list[Step], processes: int, threads: int, seconds: float, environment: Mapping[str, str] | None = None
) -> Throughput:
    """Time each step in several processes at once: the median over blocks of repetitions and over processes.

    Other work on the machine makes threads wait for a core. The kernel counts the wait, and it is taken off.

    Args:
        steps: what to time.
        processes: side by side, as jobs will run.
        threads: of each.
        seconds: for all steps together, besides starting the processes; each is repeated at least three times.
        environment: tells a process which GPUs there are to share, see `viny.runtime.gpus.job_environment`.

    Raises:
        InputError: the processes cannot run side by side, for example because there is too little memory.
    """
    context = multiprocessing.get_context("spawn")
    each = min(LONGEST, seconds / max(1, len(steps)))
    rates: dict[str, list[float]] = {}
    shares: list[float] = []
    bar = tqdm(total=len(steps) + 1, desc="measuring", unit="step", disable=None, leave=False)
    # The first start reads PyTorch from the disk, those of almost all jobs find it in memory.
    subprocess.run([sys.executable, "-c", "import viny.learning.stages"], check=False, capture_output=True)
    arguments = (context.Barrier(processes), time.time(), os.getpid(), dict(environment or {}))
    try:
        with bar, ProcessPoolExecutor(processes, context, _begin, arguments) as pool:
            starts = _by_all(pool, processes, _started)
            bar.update()
            for step in steps:
                for rate, share in _by_all(pool, processes, _time, step, threads, each):
                    if share is not None:
                        shares.append(share)
                    if rate is not None:
                        rates.setdefault(step.name, []).append(rate)
                bar.update()
    except BrokenProcessPool as error:
        raise InputError(
            f"a measuring process was killed; {processes} of them side by side may need more memory than there is: "
            "give a smaller number of --cores, or --rate"
        ) from error
    share = statistics.median(shares) if shares else 1.0
    medians = {name: statistics.median(found) for name, found in rates.items()}
    packs = [step.name for step in steps if step.what == "pack" and step.name in medians]
    return Throughput(medians | {name: medians[name] / share for name in packs}, statistics.median(starts), share)


def share_now(processes: int, seconds: float = 1.0) -> float:
    """The share of the cores that so many processes get beside the other work of this moment.

    Args:
        processes: side by side, as jobs will run.
        seconds: for which they compute.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _wait_for_all, (context.Barrier(processes), os.getpid())) as pool:
        return statistics.mean(_by_all(pool, processes, _busy, seconds))


def _wait_for_all(barrier: Any, parent: int) -> None:
    global _all
    end_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _all = barrier


def _busy(seconds: float) -> float:
    _all.wait(TOGETHER)
    before, end = time_run(), time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass
    return share_of_cores(before)


def _by_all(pool: ProcessPoolExecutor, processes: int, call: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What each process of a pool returns; each takes one call, because it waits until all have theirs."""
    return [waiting.result() for waiting in [pool.submit(call, *arguments) for _ in range(processes)]]


def _begin(barrier: Any, launched: float, parent: int, environment: Mapping[str, str]) -> None:
    """Bring a process to where a job is after its imports."""
    global _all, _ready
    end_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches all at once, and the parent says what there is to say
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, takes whatever the measured code prints
    take_gpu(environment)
    import viny.learning.stages  # noqa: F401

    _all, _ready = barrier, (time.time() - launched) * share_of_cores()


def _started() -> float:
    _all.wait(TOGETHER)
    return _ready


def _time(step: Step, threads: int, seconds: float) -> tuple[float | None, float | None]:
    """Images per second of one step on a quiet machine, and the share of the cores that it got.

    For packing, the rate as it is, None if it cannot be done here, and no share: its threads end too early to ask.
    """
    _all.wait(TOGETHER)
    if step.what == "pack":
        return _packing(step, seconds), None
    from viny.learning.machine import Machine

    machine = Machine.choose(step.spec["device"], step.spec["precision"], threads)
    run = {"train": _training, "evaluate": _evaluation}[step.what](step, machine)
    # A run on a GPU forms its stack anew, which takes half a minute, and is long enough.
    stacked = step.what == "train" and machine.device.type == "cuda"
    least, block = (1, 0.0) if stacked else (LEAST, BLOCK)
    if step.what == "evaluate" or not (stacked or _is_short(step)) or step.spec.get("encoder") == "frozen":
        run()  # for what is done once; whole trainings leave their first epoch out themselves
    rates, shares, end = [], [], time.perf_counter() + seconds
    while len(rates) < least or time.perf_counter() < end:
        before, images, spent = time_run(), 0, 0.0
        while not images or spent < block:
            done, took = run()
            images, spent = images + done, spent + took
        rates.append(images / spent)
        shares.append(share_of_cores(before))
    quiet = statistics.median(rate / share for rate, share in zip(rates, shares, strict=True))
    return quiet, statistics.mean(shares)


def _made(step: Step, count: int) -> Any:
    """A pack of random bytes, with all that any stage reads; nothing in it is compared with a hash."""
    from viny.data.pack import Pack

    draw = np.random.default_rng(0)
    words = [str(i) for i in range(step.classes)]
    about = {"source": "made", "sha256": "made", "count": count, "resolution": step.side}
    manifest = {**about, "classes": words, "mask_classes": words}
    images = draw.integers(0, 256, (count, 3, step.side, step.side), np.uint8)
    masks = draw.integers(0, len(words), (count, step.side, step.side), np.uint8)
    labels = draw.integers(0, len(words), count, np.int32)
    shapes = np.full((count, 2), (375, 500), np.int32)  # pixels, of a typical photograph
    return Pack(Path("made"), manifest, images, shapes, labels=labels, masks=masks)


Run = Callable[[], tuple[int, float]]  # does part of a job's work; returns its images, and seconds


def _timed(call: Callable[[], Any], images: int, device: Any) -> Run:
    def run() -> tuple[int, float]:
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            import torch

            torch.cuda.synchronize(device)
        return images, time.perf_counter() - began

    return run


def _is_short(step: Step) -> bool:
    return step.images <= SHORT * step.spec["train"]["batch_size"]


def _training(step: Step, machine: Machine) -> Run:
    """Steps of a training, or whole epochs if these are so short that their ends matter."""
    import torch

    from viny.learning.gradients import Gradients
    from viny.learning.optimizer import Adam
    from viny.learning.run import Run as TrainingRun
    from viny.learning.settings import TrainSettings
    from viny.learning.stages import STAGES
    from viny.learning.weights import new_encoder

    if step.spec["stage"] == "reference":
        from viny.evidence.reference import fit, model_and_batches
    else:
        from viny.learning.train import fit

    spec = step.spec
    settings = TrainSettings.of(spec["train"])
    size = min(settings.batch_size, step.images)
    on_gpu, frozen = machine.device.type == "cuda", spec.get("encoder") == "frozen"
    whole = _is_short(step) or on_gpu or frozen  # a GPU's steps are queued, and cannot be timed one by one
    pack = _made(step, step.images if _is_short(step) else (QUEUED if on_gpu else 2) * size)
    epochs = max(EPOCHS, -(-GPU_STEPS * size // len(pack))) if on_gpu else EPOCHS
    settings = replace(settings, epochs=1 + epochs, milestones=())

    def made() -> tuple[Any, Any]:
        if spec["stage"] == "reference":
            return model_and_batches(spec, pack, np.arange(len(pack)), machine.device)
        make, encoder = STAGES[spec["stage"]], new_encoder(spec["model"], 0)
        return make(spec, encoder, pack, np.arange(len(pack)), machine.device)

    objective, batches = made()
    if whole:

        def run() -> tuple[int, float]:
            # A frozen encoder's tokens are made with the first batch, once.
            trained, its = made() if frozen else (objective, batches)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "curve.csv")
                trained.to(machine.device)
                curve = fit(TrainingRun(trained, its, len(pack), settings, 0, spec["stage"], path), machine).curve
            taken = curve[-1]["seconds"] - curve[0]["seconds"]
            if not frozen:
                return epochs * len(pack), taken
            others = spec["train"]["epochs"] - 1
            return (1 + others) * len(pack), curve[0]["seconds"] + others * taken / epochs

        return run
    objective.to(machine.device).train()
    objective.encoder.set_fused_attention(machine.fused_attention)
    optimizer = Adam(objective, settings)
    gradients = Gradients(objective, machine, size)
    draws = torch.Generator().manual_seed(0)

    def one() -> None:
        gradients.compute(batches(torch.randperm(len(pack), generator=draws)[:size], draws))
        optimizer.step(gradients.share)

    return _timed(one, size, machine.device)


def _evaluation(step: Step, machine: Machine) -> Run:
    """Forward passes of a fine-tuned model as an evaluation does them, with as many images at once."""
    import torch

    from viny.data.augment import labelled_images
    from viny.learning.weights import make_segmentation, new_encoder

    spec = step.spec
    model = make_segmentation(spec, new_encoder(spec["model"], 0), step.classes).to(machine.device).eval()
    model.encoder.set_fused_attention(machine.fused_attention)
    count = min(batch_of_masks(step.classes), step.images)
    pixels = torch.from_numpy(_made(step, count).images).to(machine.device)

    def one() -> None:
        with torch.inference_mode(), machine.autocast():
            model(labelled_images(pixels, None, spec["normalise"])).argmax(1).cpu()

    return _timed(one, count, machine.device)


def _packing(step: Step, seconds: float) -> float | None:
    """Images per second that one thread packs: some of the data set's own, from all over it."""
    from viny.data.packing import build_pack

    spec = dict(step.spec)
    if spec["source"] != "synthetic":
        return _packing_files(spec, seconds)
    done, began = 0, time.perf_counter()
    while done == 0 or time.perf_counter() - began < seconds:
        with tempfile.TemporaryDirectory() as folder:
            build_pack({**spec, "count": AT_ONCE}, Path(folder), 1)
        done += AT_ONCE
    return done / (time.perf_counter() - began)


def _packing_files(spec: dict[str, Any], seconds: float) -> float | None:
    from viny.data.packing import pack_files
    from viny.data.sources import list_source

    try:
        listing = list_source(spec)
        picked = np.random.default_rng(0).permutation(len(listing.images)).tolist()
        done, began = 0, time.perf_counter()
        while done < len(picked) and (done == 0 or time.perf_counter() - began < seconds):
            rows = picked[done : done + AT_ONCE]
            lists = {k: [v[i] for i in rows] for k, v in vars(listing).items() if k in ROWS and v}
            with tempfile.TemporaryDirectory() as folder:
                pack_files(replace(listing, **lists), spec, Path(folder), 1)
            done += len(rows)
    except InputError:  # missing or damaged files, which packing itself will report
        return None
    return done / (time.perf_counter() - began)


ROWS = ("images", "labels", "parts", "masks")  # of a listing, one entry per image
