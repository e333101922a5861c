"""How fast a GPU trains: this project's runs alone and stacked, today's usual way, and what the GPU can do.

One command, under four minutes: it prints a table and writes gpu.json, after each row anew. What does not fit into the
time is left out, and what fails is said in its row. Rates are those of the steady state, draws on the CPU included;
starts are measured by themselves. Images are random bytes of the sizes that the study packs.
"""

from __future__ import annotations

import argparse
import gc
import io
import itertools
import json
import math
import os
import platform
import queue
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from viny.data.pack import Pack
from viny.learning import engine as engine_module
from viny.learning.attention import few_token_attention, plain_attention, usable
from viny.learning.engine import Engine
from viny.learning.machine import Machine
from viny.learning.run import Run
from viny.learning.settings import TRAINING, ModelSettings, TrainSettings, forward_operations
from viny.learning.stacked import Kind, Parameters, adam
from viny.learning.stages import STAGES
from viny.learning.weights import new_encoder
from viny.runtime.provenance import processor_name
from viny.runtime.signals import end_with_parent
from viny.study.config import resolve
from viny.study.grid import cells
from viny.study.layout import trainings
from viny.study.reading import read_config
from viny.study.specs import pack_spec, training_spec
from viny.study.workload import training_workload

ROOT = Path(__file__).parents[1]
STUDY = ROOT / "studies" / "paper.yaml"
DATA_IMAGES = {"intel": 14_034}  # of the data sets whose size no setting says
CLASSES = 6  # of Intel
IMAGES = 4096  # in a pack; a stack's runs share them
JPEGS, COPIES = 256, 32  # the peer's files, and links to each
TINY = {"image_size": 32, "patch_size": 16, "dim": 16, "depth": 2, "heads": 2, "head_dim": 16, "mlp_dim": 32}
NAMES = {"pretrain": "pre-training", "intermediate": "Intel", "finetune": "fine-tuning"}
START = 60.0  # seconds until a process must have begun
GRACE = 15.0  # seconds after which a row that should have ended is given up
NO_TIME = {"left_out": "no time left"}


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        part: what --only knows it by.
        name: says what is measured.
        measure: measures it; may give several rows.
        needs: seconds that it takes, about; with less time left it is not begun.
        fresh: whether it needs a process of its own.
    """

    part: str
    name: str
    measure: Callable[[Bench], dict[str, Any] | list[dict[str, Any]]]
    needs: float
    fresh: bool = False


class Bench:
    """The machine and the sizes that all rows share.

    Args:
        device: cpu or cuda.
        tiny: toy sizes, to test the benchmark itself.
        folder: for the peer's images.
        profile: whether to say which kernels the time goes to.
        launched: when this process was started, seconds since the epoch.
    """

    def __init__(self, device: str, tiny: bool, folder: Path, profile: bool, launched: float) -> None:
        self.device = torch.device(device)
        self.tiny, self.folder, self.profile, self.launched = tiny, folder, profile, launched
        self.on_gpu = device == "cuda"
        self.seconds = 0.05 if tiny else 2.0  # of a measurement
        self.threads = 1 if tiny else min(2, os.cpu_count() or 1)  # as a training job has
        torch.set_num_threads(self.threads)
        self.config = resolve(read_config(STUDY))
        self.plan = {t.stage: t for t in trainings(cells(self.config))}  # any training of each stage

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def spec(self, stage: str) -> dict[str, Any]:
        """Of a training of the paper's grid."""
        spec = training_spec(self.config, self.plan[stage])
        return {**spec, "model": TINY} if self.tiny else spec

    @cache  # noqa: B019, of a benchmark's one object
    def pack(self, side: int) -> Pack:
        """Random bytes with all that any stage reads; nothing in it is compared with a hash."""
        count = 64 if self.tiny else IMAGES
        draw = np.random.default_rng(0)
        words = [str(number) for number in range(CLASSES)]
        about = {"source": "made", "sha256": "made", "count": count, "resolution": side}
        manifest = {**about, "classes": words, "mask_classes": words[:3]}
        images = draw.integers(0, 256, (count, 3, side, side), np.uint8)
        masks = draw.integers(0, 3, (count, side, side), np.uint8)
        labels = draw.integers(0, CLASSES, count, np.int32)
        shapes = np.full((count, 2), (375, 500), np.int32)  # pixels, of a typical photograph
        return Pack(Path("made"), manifest, images, shapes, labels=labels, masks=masks)

    def runs(self, stage: str, count: int, batch: int) -> list[Run]:
        """Runs of a stage that differ in their seeds, on the device, too long to end."""
        spec = self.spec(stage)
        side = pack_spec(self.config, {"intermediate": "intel", "finetune": "segmentation"}.get(stage, stage))["size"]
        pack = self.pack(TINY["image_size"] + 8 * (stage == "pretrain") if self.tiny else side)
        settings = replace(TrainSettings.of(spec["train"]), epochs=10**6, batch_size=batch, milestones=())
        runs = []
        for seed in range(count):
            encoder = new_encoder(spec["model"], seed)
            objective, batches = STAGES[stage](spec, encoder, pack, np.arange(len(pack)), self.device, False)
            objective.to(self.device).train()
            runs.append(Run(objective, batches, len(pack), settings, seed, stage, self.folder / "curve.csv"))
        return runs


# What the machine can do


def timed(bench: Bench, call: Callable[[], Any]) -> float:
    """Seconds of a call, from as many in a row as fill the time."""
    for _ in range(1 if bench.tiny else 3):
        call()
    count = 1
    while True:
        bench.wait()
        began = time.perf_counter()
        for _ in range(count):
            call()
        bench.wait()
        taken = time.perf_counter() - began
        if taken > bench.seconds / 4:
            return taken / count
        count = max(2 * count, math.ceil(count * bench.seconds / 3 / max(taken, 1e-6)))


def product(bench: Bench, precision: str) -> dict[str, Any]:
    """The product of two square matrices; float32 with TF32."""
    side = 256 if bench.tiny else 8192
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, b = (torch.randn(side, side, device=bench.device).to(dtype) for _ in range(2))
    with tf32(True):
        seconds = timed(bench, lambda: a @ b)
    return {"precision": precision, "flops": 2 * side**3 / seconds}


def copy(bench: Bench) -> dict[str, Any]:
    """Bytes read and written by a copy."""
    source = torch.zeros(1 << (16 if bench.tiny else 31), dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    return {"bandwidth": 2 * source.numel() / timed(bench, lambda: target.copy_(source))}


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Whether float32 products may round their inputs to TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if on else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


# Ours


@dataclass(frozen=True)
class Way:
    """How the engine computes, besides what it chooses by itself."""

    precision: str = "bfloat16"
    compiled: bool = True
    attention: bool = True  # the project's kernels, where they can be used
    residual: torch.dtype | None = None


def started(bench: Bench, stage: str, runs: int, batch: int, way: Way) -> tuple[Engine, float, str]:
    """An engine that has queued its first step, the seconds that it took to get there, and what it said."""
    machine = Machine.choose(bench.device.type, way.precision, bench.threads)
    made, said = bench.runs(stage, runs, batch), io.StringIO()
    off = nullcontext() if way.attention else mock.patch.object(engine_module, "usable", lambda *_: "switched off")
    began = time.perf_counter()
    with redirect_stdout(said), off:
        engine = Engine(made, machine, compiled=way.compiled and bench.on_gpu, residual=way.residual)
        engine.start()
    bench.wait()
    lines = [line for line in said.getvalue().splitlines() if "switched off" not in line]
    return engine, time.perf_counter() - began, "; ".join(lines)


def ours(bench: Bench, stage: str, runs: int, batch: int, way: Way = Way(), profiled: bool = False) -> dict[str, Any]:
    """Steady rate of a stack, from the draws on the CPU to the losses there; memory, start, and what a step takes."""
    if bench.tiny:
        runs, batch = min(runs, 2), 8
    if bench.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    engine, seconds, said = started(bench, stage, runs, batch, way)
    _train(engine, bench.seconds / 2)
    rates = _train(engine, bench.seconds)
    found = {
        **{"stage": stage, "runs": runs, "batch": batch, "precision": way.precision},
        **{"compiled": engine.compiled, "own_attention": engine.attend is few_token_attention},
        **{"graph": engine.graph is not None, "start_seconds": seconds, "said": said},
        **{"images_per_second": rates[0], "least": min(rates[1:]), "most": max(rates[1:])},
    }
    found["finite"] = all(engine.parameters.sound())
    while engine.pending:
        engine.collect()
    draws, step = _draws(engine), _step_seconds(bench, engine)
    # Of one core: the device waits for the draws where this comes near 1.
    found |= {"step_seconds": step, "draw_seconds": draws, "draws_share": draws / step}
    found["launch_seconds"] = _launch_seconds(bench, engine)
    found["busy_share"] = found["images_per_second"] * step / (runs * batch)
    if bench.on_gpu:
        found["memory_bytes"] = torch.cuda.max_memory_allocated()
    if bench.profile and profiled:
        found["kernels"] = kernels_of(bench, engine)
    return found


def _train(engine: Engine, seconds: float) -> list[float]:
    """Images a second while an engine always has work, and those of each batch of steps between two looks at it."""
    marks: list[tuple[float, int]] = []
    while len(marks) < 2 or marks[-1][0] - marks[0][0] < seconds:
        engine.queue()
        while len(engine.pending) > 1:  # as the training loop does: one batch of steps at work, one behind it
            taken = engine.collect()
            marks.append((time.perf_counter(), sum(len(step.positions) for _, step, _ in taken)))
    each = [images / (now - before) for (before, _), (now, images) in itertools.pairwise(marks)]
    return [sum(images for _, images in marks[1:]) / (marks[-1][0] - marks[0][0]), *each]


def _draws(engine: Engine, steps: int = 8) -> float:
    """Processor seconds on the host that a step's draws take, all runs' together."""
    taken, steps = [], min(steps, engine.most)
    for _ in range(3):
        began = time.process_time()
        engine._draw([engine._next() for _ in range(steps)])
        taken.append((time.process_time() - began) / steps)
    return statistics.median(taken)


def _replay(engine: Engine, steps: int) -> None:
    """Compute the steps whose draws are on the device, from the first one on."""
    engine.cursor.zero_()
    for _ in range(steps):
        if engine.graph is None:
            engine._step()
        else:
            engine.graph.replay()


def _step_seconds(bench: Bench, engine: Engine, steps: int = 8) -> float:
    """Seconds of a step whose draws are on the device."""
    steps = min(steps, engine.most)
    engine._draw([engine._next() for _ in range(steps)])
    return timed(bench, lambda: _replay(engine, steps)) / steps


def _launch_seconds(bench: Bench, engine: Engine, steps: int = 4) -> float:
    """Seconds that a step takes the host to launch, the device idle before."""
    taken = []
    for _ in range(5):
        bench.wait()
        began = time.perf_counter()
        _replay(engine, steps)
        taken.append((time.perf_counter() - began) / steps)
    bench.wait()
    return statistics.median(taken)


def kernels_of(bench: Bench, engine: Engine, steps: int = 4) -> dict[str, Any]:
    """Shares of the kernels' time by what they are for, those that take longest, and how many a step has."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA if bench.on_gpu else ProfilerActivity.CPU]) as recorded:
        _replay(engine, steps)
        bench.wait()
    taken: Counter[str] = Counter()
    launches: Counter[str] = Counter()
    for event in recorded.events():
        if not bench.on_gpu:
            taken[event.name] += event.self_cpu_time_total
        elif event.device_type == DeviceType.CUDA:
            taken[event.name] += event.time_range.elapsed_us()
            launches[event.name] += 1
    total = sum(taken.values()) or 1.0
    groups: Counter[str] = Counter()
    for name, seconds in taken.items():
        groups[group_of(name)] += seconds / total
    longest = [
        {
            "name": name[:160],
            "share": time / total,
            "milliseconds": time / 1000 / steps,
            "launches": launches[name] / steps,
        }
        for name, time in taken.most_common(40)
    ]
    return {
        "shares": dict(groups.most_common()),
        "longest": longest,
        "milliseconds_a_step": total / 1000 / steps,
        "kernels_a_step": launches.total() / steps,
    }


GROUPS = (  # the first whose pattern is found in a kernel's name
    ("optimiser", r"addcmul|lerp.*sqrt|adam|multi_tensor"),
    ("attention", r"^(forward|backward)$|fmha|flash|attention|sdpa"),
    ("products", r"gemm|nvjet|cutlass|xmma|splitk|bmm|cublas|triton_tem"),
    ("copies", r"^Memcpy|^Memset|direct_copy|CatArray|FillFunctor"),
)


def group_of(kernel: str) -> str:
    return next((group for group, pattern in GROUPS if re.search(pattern, kernel, re.IGNORECASE)), "rest")


def started_again(bench: Bench, stage: str, runs: int, batch: int) -> dict[str, Any]:
    """A start in a process of its own, with the kernels that an earlier one has left."""
    if bench.tiny:
        runs, batch = min(runs, 2), 8
    imported = time.time() - bench.launched
    torch.zeros(1, device=bench.device)  # makes the driver's context
    bench.wait()
    _, seconds, said = started(bench, stage, runs, batch, Way())
    return {
        "stage": stage,
        "runs": runs,
        "batch": batch,
        "start_seconds": seconds,
        "import_seconds": imported,
        "said": said,
    }


# Kernels by themselves, whose bytes are known


def graph_of(bench: Bench, call: Callable[[], Any]) -> Callable[[], None]:
    """A call as a CUDA graph, since Python launches it more slowly than it runs."""
    if not bench.on_gpu:
        return call
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
    bench.wait()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def attention_alone(bench: Bench, tokens: int, own: bool) -> dict[str, Any]:
    """Forward and backward of 24 x 64 images' attention in bfloat16; bytes that must be read and written."""
    images, heads, width = (4, 2, 16) if bench.tiny else (24 * 64, 8, 64)
    if own and bench.on_gpu and (why := usable(tokens, width, bench.device, heads=heads)):
        raise RuntimeError(why)
    qkv = torch.randn(images, tokens, 3, heads, width, device=bench.device).bfloat16().requires_grad_()
    attend = few_token_attention if own else plain_attention
    gradient = torch.randn(images, tokens, heads, width, device=bench.device).bfloat16()
    seconds = timed(bench, graph_of(bench, lambda: torch.autograd.grad(attend(qkv), qkv, gradient)))
    values = images * tokens * heads * width
    # q, k, v read twice and their gradients written, output written, its gradient read; logarithms of sums, float32.
    moved = 2 * values * (3 + 3 + 3 + 1 + 1) + 2 * 4 * images * tokens * heads
    return {"step_seconds": seconds, "bandwidth": moved / seconds}


def optimiser_alone(bench: Bench, runs: int) -> dict[str, Any]:
    """Adam's update of a stack whose products are in bfloat16, from the gradients of each parameter on."""
    runs = 2 if bench.tiny else runs
    objective = bench.runs("finetune", 1, 8)[0].objective
    parameters = Parameters(objective, Kind.of(objective), runs, bench.device, torch.bfloat16)
    gradients = {name: torch.zeros_like(leaf) for name, leaf in parameters.leaves().items()}
    scalars = torch.tensor([[1.0, 0.0, 1e-4, 1.0]], device=bench.device).repeat(runs, 1)
    update = engine_module._compiled(adam) if bench.on_gpu else adam
    seconds = timed(bench, graph_of(bench, lambda: parameters.update(gradients, scalars, update)))
    moved = 0
    for group, values in parameters.values.items():
        # Gradients are read, gathered and read again; values and both means are read and written.
        each = 3 * (2 if group else values.element_size()) + 6 * values.element_size()
        moved += values.numel() * (each + 2 * group)  # and a copy for the products is written
    return {"step_seconds": seconds, "bandwidth": moved / seconds, "runs": runs}


# The peer


@cache
def peer_data(bench: Bench) -> Path:
    """JPEGs and trimaps, each under many names, so that an epoch is long enough for many workers."""
    from speed import make_data

    folder = bench.folder / "peer"
    if folder.exists():  # made, or begun, by a process that died since
        shutil.rmtree(folder)
    folder.mkdir()
    make_data(folder, 16 if bench.tiny else JPEGS)
    pets = folder / "oxford-iiit-pet"
    for place in (folder / "imagenet" / "n0", pets / "images", pets / "annotations" / "trimaps"):
        for file in list(place.iterdir()):
            for number in range(0 if bench.tiny else COPIES - 1):
                os.link(file, file.with_stem(f"{file.stem}_{number}"))
    return folder


@cache
def peer_loader(bench: Bench, stage: str, batch: int) -> tuple[Any, int, dict[int, float]]:
    """A DataLoader at its best number of workers, that number, and images/s by number, without any training."""
    from peer import make_loader

    cores = os.cpu_count() or 1
    tried: dict[int, float] = {}
    loaders = {}
    for workers in [0] if bench.tiny else sorted({min(4, cores), max(1, cores // 2), cores}):
        loaders[workers] = make_loader(stage, peer_data(bench), batch, workers, bench.on_gpu)
        source = forever(partial(iter, loaders[workers]))
        for _ in range(1 + 2 * workers if not bench.tiny else 1):  # what was made ahead while they started
            next(source)
        began, count = time.perf_counter(), 0
        while count == 0 or time.perf_counter() - began < bench.seconds:
            count += len(next(source)[0])
        tried[workers] = count / (time.perf_counter() - began)
    best = max(tried, key=tried.__getitem__)
    chosen = loaders.pop(best)
    loaders.clear()  # which ends the other loaders' workers
    gc.collect()
    return chosen, best, tried


def forever(epoch: Callable[[], Iterable[Any]]) -> Iterator[Any]:
    while True:
        yield from epoch()


def peer(bench: Bench, stage: str, batch: int, precision: str, mode: str | None) -> list[dict[str, Any]]:
    """Rates behind its loader, and with one batch that stays on the GPU, which no loader could exceed."""
    from peer import Peer

    batch = 4 if bench.tiny else batch
    loader, workers, tried = peer_loader(bench, stage, batch)
    with tf32(precision == "float32"):
        peer = Peer(stage, precision, peer_data(bench), batch, workers, bench.device, mode)
        peer.loader = loader
        batches = forever(peer.batches)
        if bench.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        held = next(batches)
        with torch.no_grad():  # einops notes what it meets first, which would have torch.compile begin anew
            peer.model.loss(*held)
        began = time.perf_counter()
        for _ in range(1 if bench.tiny else 5):
            peer.step(*held)
        bench.wait()
        started = time.perf_counter() - began
        said = {"stage": stage, "runs": 1, "batch": batch, "precision": precision, "mode": mode or "eager"}
        alone = {**said, "loader": False, "images_per_second": batch / timed(bench, lambda: peer.step(*held))}
        count, began = 0, time.perf_counter()
        while count == 0 or time.perf_counter() - began < bench.seconds:
            images, targets = next(batches)
            if len(images) == batch:  # a shorter one would be compiled anew
                peer.step(images, targets)
                count += len(images)
        bench.wait()
        rate = count / (time.perf_counter() - began)
    if mode is not None:
        torch.compiler.reset()  # which frees its graphs' memory
    behind = {**said, "loader": True, "workers": workers, "loader_alone": tried, "images_per_second": rate}
    if bench.on_gpu:
        behind["memory_bytes"] = torch.cuda.max_memory_allocated()  # a peak, so it may be asked for late
    return [{**behind, "start_seconds": started}, alone]


# The table


def rows() -> list[Row]:
    """All that is measured, the most wanted first."""
    stacks = [("finetune", 24, 64), ("pretrain", 3, 128), ("intermediate", 12, 64), ("pretrain", 1, 128)]
    found = [
        Row("limits", "product, bfloat16", partial(product, precision="bfloat16"), 2),
        Row("limits", "product, float32 with TF32", partial(product, precision="float32"), 2),
        Row("limits", "copy", copy, 2),
    ]
    for stage, runs, batch in stacks:
        measure = partial(ours, stage=stage, runs=runs, batch=batch, profiled=True)
        found.append(Row("ours", f"{NAMES[stage]}, {runs} x {batch}", measure, 16))

    # It ends the process before it, and each process looks for the peer's best loader anew: so it is not among these.
    found.append(
        Row(
            "start",
            "fine-tuning, 24 x 64, again",
            partial(started_again, stage="finetune", runs=24, batch=64),
            16,
            True,
        )
    )

    def of_peer(stage: str, batch: int, precision: str, mode: str | None, needs: float) -> Row:
        name = f"peer, {NAMES[stage]}, {batch}, {precision}, {mode or 'eager'}"
        return Row("peer", name, partial(peer, stage=stage, batch=batch, precision=precision, mode=mode), needs)

    found += [
        of_peer("pretrain", 128, "bfloat16", None, 20),
        of_peer("pretrain", 128, "bfloat16", "reduce-overhead", 30),
        of_peer("pretrain", 128, "float32", None, 8),
        Row("kernels", "own attention, 64 tokens", partial(attention_alone, tokens=64, own=True), 2),
        Row("kernels", "own attention, 65 tokens", partial(attention_alone, tokens=65, own=True), 2),
        Row("kernels", "PyTorch's attention, 64 tokens", partial(attention_alone, tokens=64, own=False), 2),
        Row("kernels", "optimiser, 24 runs", partial(optimiser_alone, runs=24), 4),
    ]
    fine = partial(ours, stage="finetune", runs=24, batch=64)
    one = partial(ours, stage="pretrain", runs=1, batch=128)
    found += [
        Row("without", "fine-tuning, 24 x 64, PyTorch's attention", partial(fine, way=Way(attention=False)), 16),
        Row("without", "fine-tuning, 24 x 64, not compiled", partial(fine, way=Way(compiled=False)), 8),
        Row("without", "pre-training, 1 x 128, float32", partial(one, way=Way("float32")), 14),
        Row(
            "without",
            "fine-tuning, 24 x 64, float32 between blocks",
            partial(fine, way=Way(residual=torch.float32)),
            16,
        ),
        of_peer("pretrain", 128, "float32", "reduce-overhead", 30),
        of_peer("pretrain", 128, "bfloat16", "default", 30),
        of_peer("finetune", 64, "bfloat16", None, 12),
        of_peer("finetune", 64, "bfloat16", "reduce-overhead", 30),
        of_peer("finetune", 64, "float32", None, 8),
    ]
    return found


PARTS = tuple(dict.fromkeys(row.part for row in rows()))


def work(chosen: list[int], bench: Bench, end: float) -> None:
    """Measure some rows in this process; a line of JSON to standard output as each begins and ends."""
    end_with_parent(os.getppid())
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    every = rows()

    def tell(**what: Any) -> None:
        print(json.dumps(what), file=told, flush=True)

    for number in chosen:
        row = every[number]
        tell(begun=number)
        if time.time() + (0 if bench.tiny else row.needs) > end:
            tell(row=number, found=[NO_TIME])
            continue
        failed = None
        try:
            found = row.measure(bench)
        except Exception as error:  # whatever it is, the other rows can do without this one
            failed = error
            found = {"failed": one_line(error)}
        tell(row=number, found=found if isinstance(found, list) else [found])
        if re.search(r"CUDA error|\[CUDA\]", str(failed)):
            sys.exit(3)  # nothing works in this process any more
        failed = None
        gc.collect()
        if bench.on_gpu:
            torch.cuda.empty_cache()


def one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]


class Measured:
    """What was measured so far, kept in a file."""

    def __init__(self, path: Path, machine: dict[str, Any], every: list[Row]) -> None:
        self.path, self.every = path, every
        self.results: dict[str, Any] = {"machine": machine, "rows": []}

    def add(self, number: int, found: list[dict[str, Any]]) -> None:
        row = self.every[number]
        self.results["rows"] += [{"part": row.part, "name": row.name, **one} for one in found]
        complete(self.results)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.results, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, self.path)


def measure(measured: Measured, chosen: list[int], arguments: list[str], end: float, log: Any) -> None:
    """Have rows measured in child processes; one that dies or hangs costs the row that it was at."""
    left = list(chosen)
    while left:
        if time.time() > end:
            measured.add(left.pop(0), [NO_TIME])
            continue
        fresh = measured.every[left[0]].fresh
        some = left[:1] if fresh else list(itertools.takewhile(lambda n: not measured.every[n].fresh, left))
        command = [sys.executable, __file__, "--child", ",".join(map(str, some)), "--launched", str(time.time())]
        child = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=log, start_new_session=True)
        lines: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=_read, args=(child, lines), daemon=True).start()
        at, limit, why = some[0], time.time() + START, ""
        try:
            while some and not why:
                try:
                    line = lines.get(timeout=max(0.1, limit - time.time()))
                except queue.Empty:
                    why = "it took too long"
                    continue
                said = json.loads(line) if line else {}
                if not said:
                    why = f"its process ended with {child.wait()}"
                elif "begun" in said:
                    at = said["begun"]
                    limit = min(time.time() + 8 * measured.every[at].needs, end) + GRACE
                else:
                    measured.add(said["row"], said["found"])
                    some.remove(said["row"])
                    left.remove(said["row"])
                    print(time.strftime("%H:%M:%S"), measured.every[said["row"]].name, file=sys.stderr, flush=True)
                    limit = time.time() + GRACE
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # and the workers of compilers and loaders
            child.wait()
        if why and at in left:
            measured.add(at, [{"failed": why}])
            left.remove(at)


def _read(child: subprocess.Popen[bytes], lines: queue.Queue[bytes]) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        lines.put(line)
    lines.put(b"")


def complete(results: dict[str, Any]) -> None:
    """Add what follows from several rows: shares of the limits, the lead over the peer, the grid's minutes."""
    found = results["rows"]
    limits = {row["precision"]: row["flops"] for row in found if "flops" in row and row["part"] == "limits"}
    bandwidth = next((row["bandwidth"] for row in found if row["name"] == "copy" and "bandwidth" in row), None)
    best: dict[str, float] = {}
    for row in found:
        if row["part"] == "peer" and row.get("loader"):
            best[row["stage"]] = max(best.get(row["stage"], 0.0), row["images_per_second"])
    for row in found:
        if rate := row.get("images_per_second"):
            row["flops"] = rate * TRAINING * forward_operations(ModelSettings())
            if row["precision"] in limits:
                row["share_of_product"] = row["flops"] / limits[row["precision"]]
            if row["stage"] in best and row["part"] != "peer":
                row["over_best_peer"] = rate / best[row["stage"]]
        if row["part"] == "kernels" and "bandwidth" in row and bandwidth:
            row["share_of_copy"] = row["bandwidth"] / bandwidth
    results["grid"] = grid(found)


def grid(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Minutes of the paper's trainings at the stacks' rates, whole batches counted; starts are not."""
    config = resolve(read_config(STUDY))
    stacks: Counter[tuple[str, int]] = Counter()
    for training in trainings(cells(config)):
        stacks[training.stage, training_workload(config, training, DATA_IMAGES).passes] += 1
    passes: Counter[str] = Counter()
    counted: Counter[str] = Counter()
    for (stage, one), count in stacks.items():
        section = config["intermediate"]["intel"] if stage == "intermediate" else config[stage]
        epochs, batch = section["epochs"], section["batch_size"]
        passes[stage] += count * one
        counted[stage] += count * epochs * batch * math.ceil(one / epochs / batch)
    # The stacks that are measured are those of this plan; the first row of a stage is its stack's.
    rates: dict[str, float] = {}
    for row in found:
        if row["part"] == "ours" and "images_per_second" in row:
            rates.setdefault(row["stage"], row["images_per_second"])
    minutes = {stage: counted[stage] / rates[stage] / 60 for stage in passes if stage in rates}
    total = sum(minutes.values()) if len(minutes) == len(passes) else None
    sizes = {stage: sorted({count for (other, _), count in stacks.items() if other == stage}) for stage in passes}
    return {"passes": dict(passes), "runs_a_stack": sizes, "minutes": minutes, "total_minutes": total}


COLUMNS = (
    *("part", "what", "images/s", "ms a step", "TFLOP/s", "of the product", "over the best peer"),
    *("GB/s", "of the copy", "memory, GB", "start, s", "draws, of a core", "remarks"),
)


def table(results: dict[str, Any]) -> str:
    """All rows as a Markdown table, and the grid's minutes."""

    def number(value: float | None, digits: int = 0) -> str:
        return "" if value is None else f"{value:,.{digits}f}"

    lines = [f"| {' | '.join(COLUMNS)} |", f"|---|---|{'--:|' * (len(COLUMNS) - 3)}---|"]
    for row in results["rows"]:
        rate = row.get("images_per_second")
        step = row.get("step_seconds") or (rate and row["batch"] / rate)
        remarks = [f"failed: {row['failed']}"] if "failed" in row else []
        remarks += [f"left out: {row['left_out']}"] if "left_out" in row else []
        remarks += [row["said"]] if row.get("said") else []
        if row["part"] in ("ours", "without") and "graph" in row and not row["graph"]:
            remarks.append("no CUDA graph")
        if not row.get("finite", True):
            remarks.append("weights are no numbers any more")
        if "loader" in row:
            remarks.append(
                f"DataLoader, {row['workers']} workers" if row["loader"] else "one batch on the device, no loader"
            )
        if "kernels" in row:
            remarks.append(", ".join(f"{name} {share:.2f}" for name, share in row["kernels"]["shares"].items()))
        if "import_seconds" in row:
            remarks.append(f"after {row['import_seconds']:.1f} s of imports")
        cells_of_row = [
            row["part"],
            row["name"],
            number(rate) + (f" ({number(row['least'])} to {number(row['most'])})" if "least" in row else ""),
            number(step and 1000 * step, 2),
            number(row.get("flops") and row["flops"] / 1e12, 1),
            number(row.get("share_of_product"), 3),
            number(row.get("over_best_peer"), 1),
            number(row.get("bandwidth") and row["bandwidth"] / 1e9),
            number(row.get("share_of_copy"), 2),
            number(row.get("memory_bytes") and row["memory_bytes"] / 1e9, 2),
            number(row.get("start_seconds"), 1),
            number(row.get("draws_share"), 2),
            "; ".join(remarks).replace("|", "/"),
        ]
        lines.append(f"| {' | '.join(cells_of_row)} |")
    for stage in NAMES:
        peers = [row for row in results["rows"] if row["part"] == "peer" and row.get("stage") == stage]
        for loader, where in ((True, "behind its DataLoader"), (False, "with one batch held on the device")):
            if rates := [row["images_per_second"] for row in peers if row.get("loader") == loader]:
                lines += ["", f"Best peer, {NAMES[stage]}, {where}: {max(rates):,.0f} images/s."]
    found = results["grid"]
    said = ", ".join(f"{NAMES[stage]} {minutes:.1f}" for stage, minutes in found["minutes"].items())
    total = "" if found["total_minutes"] is None else f", together {found['total_minutes']:.1f}"
    lines += ["", f"Minutes of training in the paper's grid at these rates: {said or 'unknown'}{total}.", ""]
    return "\n".join(lines)


def describe(device: str) -> dict[str, Any]:
    """The machine, in words and numbers."""
    found = {
        "processor": processor_name(),
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "device": device,
    }
    for name in ("triton", "vit-pytorch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    if device == "cuda":
        about = torch.cuda.get_device_properties(0)
        found |= {
            "device": about.name,
            "memory_bytes": about.total_memory,
            "multiprocessors": about.multi_processor_count,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)} (default all)")
    parser.add_argument("--match", default="", help="only rows whose name matches this regular expression")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "speed" / "gpu.json", help="JSON file to write")
    parser.add_argument("--seconds", type=float, default=215, help="for all rows together (default 215)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to test this program itself")
    parser.add_argument("--profile", action="store_true", help="say which kernels the time of each stack goes to")
    parser.add_argument("--compile-mode", help="mode of torch.compile for this project's kernels")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--launched", type=float, default=time.time(), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--end", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        engine_module.MODE = args.compile_mode
        bench = Bench(args.device, args.tiny, args.folder, args.profile, args.launched)
        work([int(number) for number in args.child.split(",")], bench, args.end)
        return
    if unknown := set(args.only or ()) - set(PARTS):
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}; known are {', '.join(PARTS)}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU here; --device cpu --tiny tests the program itself")
    every, end = rows(), args.launched + args.seconds
    wanted = set(args.only or PARTS)
    chosen = [n for n, row in enumerate(every) if row.part in wanted and re.search(args.match, row.name)]
    if args.tiny:  # compilers take longer than all the rest
        chosen = [n for n in chosen if "reduce-overhead" not in every[n].name and "default" not in every[n].name]
    if not chosen:
        parser.error(f"no row's name matches {args.match}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    measured = Measured(args.out, describe(args.device), every)
    with tempfile.TemporaryDirectory(prefix="viny-gpu-") as folder, open(args.out.with_suffix(".log"), "wb") as log:
        # Kernels of its own, so that a first start is a first start.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{folder}/kernels"
        os.environ["TRITON_CACHE_DIR"] = f"{folder}/kernels/triton"
        passed = ["--device", args.device, "--folder", folder, "--end", str(end)]
        passed += ["--tiny"] * args.tiny + ["--profile"] * args.profile
        passed += ["--compile-mode", args.compile_mode] if args.compile_mode else []
        measure(measured, chosen, passed, end, log)
    print(table(measured.results))
    print(
        f"{args.out}; {time.time() - args.launched:.0f} s; what was said meanwhile is in {args.out.with_suffix('.log')}"
    )


if __name__ == "__main__":
    main()
