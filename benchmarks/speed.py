"""How fast the stages train, compared with today's usual way and with what the machine can do.

In one run, in turn: vit-pytorch behind a DataLoader at its best number of workers; this project, from pack to
optimiser step; a large matrix product. Then where a step's time goes, memory, batch sizes, threads, two jobs at once,
packing, the start-up of a job, small jobs, and dry runs. Writes speed.json, speed.md and speed.png into a folder.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from viny.data import synthetic
from viny.data.pack import open_pack
from viny.data.packing import build_pack
from viny.learning import batches as batches_module
from viny.learning.batches import LabelledAugmentation, mask_batches, simmim_batches
from viny.learning.gradients import Gradients
from viny.learning.machine import Machine
from viny.learning.model import VINY, ViNy
from viny.learning.objectives import Segmentation, SimMIM
from viny.learning.optimizer import Adam
from viny.learning.run import Run
from viny.learning.settings import TRAINING, TrainSettings, forward_operations
from viny.learning.train import fit
from viny.runtime.provenance import processor_name
from viny.study import specs
from viny.study.config import resolve
from viny.study.grid import cells, encoders
from viny.study.layout import trainings
from viny.study.reading import read_config
from viny.study.workload import training_workload

ROOT = Path(__file__).parents[1]
STAGES = ("pretrain", "finetune")
PRECISIONS = ("float32", "bfloat16")
INTEL_TRAINING = 14_034  # images
WIDTH, HEIGHT = 500, 375  # of the JPEGs, as in Pets and ImageNet
OPERATIONS = TRAINING * forward_operations(VINY)  # per training image


def make_data(folder: Path, count: int) -> None:
    """Make JPEGs of 500 x 375 and their trimaps, in ImageNet's and in Pets' layout."""
    images, classes = folder / "oxford-iiit-pet" / "images", folder / "imagenet" / "n0"
    notes = folder / "oxford-iiit-pet" / "annotations"
    for place in (images, classes, notes / "trimaps"):
        place.mkdir(parents=True)
    for i in range(count):
        pixels, mask, *_ = synthetic.render("segmentation", i, 256, 0)
        stem = f"made_{i}"
        picture = Image.fromarray(np.moveaxis(pixels, 0, 2)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        picture.save(images / f"{stem}.jpg", quality=90)
        os.link(images / f"{stem}.jpg", classes / f"{stem}.jpg")
        trimap = Image.fromarray(mask + 1).resize((WIDTH, HEIGHT), Image.Resampling.NEAREST)
        trimap.save(notes / "trimaps" / f"{stem}.png")
    (notes / "trainval.txt").write_text("".join(f"made_{i} 1 1 1\n" for i in range(count)), encoding="utf-8")
    (notes / "test.txt").write_text("", encoding="utf-8")


def pack_spec(data: Path, stage: str, size: int = 128) -> dict[str, Any]:
    source = {"pretrain": {"source": "imagenet", "path": str(data / "imagenet")}}.get(stage)
    return {**(source or {"source": "pets", "path": str(data)}), "size": size, "resize": "antialias"}


def make_packs(data: Path, threads: int) -> None:
    for stage in STAGES:
        (data / stage).mkdir()
        build_pack(pack_spec(data, stage), data / stage, threads)


class Ours:
    """One stage in one precision, an epoch at a time, as a job trains it."""

    def __init__(self, stage: str, precision: str, data: Path, batch_size: int, device: str, threads: int) -> None:
        self.stage = stage
        self.machine = Machine.choose(device, precision, threads)
        pack = open_pack(data / stage / "manifest.json")
        self.count = len(pack)
        every = np.arange(self.count)
        if stage == "pretrain":
            self.objective: torch.nn.Module = SimMIM(ViNy())
            args = (VINY.image_size, VINY.patches, 0.5, 0.08)
            self.batches = simmim_batches(pack, every, *args, self.machine.device)
        else:
            self.objective = Segmentation(ViNy(), len(pack.manifest["mask_classes"]))
            self.batches = mask_batches(pack, every, LabelledAugmentation(0.3, True), self.machine.device)
        self.settings = TrainSettings(1, batch_size, "adamw", 1e-4, 0.0, (), 0.1)
        self.curve = data / f"{stage}-{precision}.csv"

    def epoch(self) -> int:
        with silence():
            self.objective.to(self.machine.device)
            fit(Run(self.objective, self.batches, self.count, self.settings, 0, self.stage, self.curve), self.machine)
        if self.machine.device.type == "cuda":
            torch.cuda.synchronize()
        return self.count

    def close(self) -> None:
        pass

    def parts(self, steps: int) -> dict[str, float]:
        """Where the milliseconds of a step go, medians over steps."""
        wait = torch.cuda.synchronize if self.machine.device.type == "cuda" else lambda: None
        optimizer = Adam(self.objective, self.settings)
        taken: dict[str, list[float]] = {}
        reading, forward = 0.0, [0.0]
        gather, loss = batches_module.PackSubset.__getitem__, self.objective.loss

        def timed_gather(rows: Any, positions: Any) -> Any:
            nonlocal reading
            began = time.perf_counter()
            found = gather(rows, positions)
            wait()
            reading += time.perf_counter() - began
            return found

        def timed_loss(batch: Any) -> Any:  # of one shard; shards run side by side
            began = time.perf_counter()
            found = loss(batch)
            wait()
            forward.append(time.perf_counter() - began)
            return found

        batches_module.PackSubset.__getitem__ = timed_gather  # type: ignore[method-assign]
        self.objective.loss = timed_loss  # type: ignore[method-assign]
        try:
            with Gradients(self.objective, self.machine, self.settings.batch_size) as gradients:
                for step in range(steps):
                    draws = torch.Generator().manual_seed(step)
                    positions = torch.randperm(self.count, generator=draws)[: self.settings.batch_size]
                    reading, forward = 0.0, [0.0]
                    marks = [time.perf_counter()]
                    batch = self.batches(positions, draws)
                    wait()
                    marks.append(time.perf_counter())
                    gradients.compute(batch)
                    wait()
                    marks.append(time.perf_counter())
                    optimizer.step(gradients.share)
                    wait()
                    marks.append(time.perf_counter())
                    spans = [b - a for a, b in itertools.pairwise(marks)]
                    named = {
                        "data": reading,
                        "augmentation": spans[0] - reading,
                        "forward": max(forward),
                        "backward": spans[1] - max(forward),
                        "optimiser": spans[2],
                    }
                    for name, seconds in named.items():
                        taken.setdefault(name, []).append(1000 * seconds)
        finally:
            batches_module.PackSubset.__getitem__ = gather  # type: ignore[method-assign]
            del self.objective.loss
        return {name: round(statistics.median(values[1:]), 2) for name, values in taken.items()}


@contextmanager
def silence() -> Iterator[None]:
    """No progress on standard output or error."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def product_rate(precision: str, device: torch.device, side: int) -> float:
    """FLOP/s of a product of two square matrices."""
    a, b = (torch.randn(side, side, device=device).to(getattr(torch, precision)) for _ in range(2))
    began = time.perf_counter()
    a @ b
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 2 * side**3 / (time.perf_counter() - began)


@dataclass
class Settings:
    data: Path
    device: torch.device
    threads: int
    batch_size: int
    rounds: int
    results: dict[str, Any] = field(default_factory=dict)

    @property
    def images(self) -> int:
        return len(os.listdir(self.data / "imagenet" / "n0"))

    @property
    def on_cpu(self) -> bool:
        return self.device.type == "cpu"

    @property
    def workers(self) -> list[int]:
        return sorted({0, 1, 2, 4, self.threads, os.cpu_count() or 1} & set(range((os.cpu_count() or 1) + 1)))

    def peer(self, stage: str, precision: str, workers: int) -> Any:
        from peer import Peer

        return Peer(stage, precision, self.data, self.batch_size, workers, self.device)

    def ours(self, stage: str, precision: str, **other: Any) -> Ours:
        chosen = {"batch_size": self.batch_size, "device": self.device.type, "threads": self.threads, **other}
        return Ours(stage, precision, self.data, **chosen)


def rate_of(trainer: Any) -> float:
    """Images a second of one epoch."""
    began = time.perf_counter()
    count = trainer.epoch()
    return count / (time.perf_counter() - began)


def summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def training(settings: Settings) -> None:
    """Peer, ours and the limit, in turn; medians over the rounds."""
    best: dict[tuple[str, str], int] = {}
    tried: dict[str, dict[int, float]] = {}
    for stage in STAGES:
        for precision in PRECISIONS:
            found = {}
            for workers in settings.workers:
                peer = settings.peer(stage, precision, workers)
                peer.epoch()
                found[workers] = round(max(rate_of(peer) for _ in range(2)), 1)
                peer.close()
            tried[f"{stage} {precision}"] = found
            best[stage, precision] = max(found, key=found.__getitem__)
            log(f"peer, {stage}, {precision}: images/s by workers {found}")
    trainers = {}
    for stage in STAGES:
        for precision in PRECISIONS:
            trainers["peer", stage, precision] = settings.peer(stage, precision, best[stage, precision])
            trainers["ours", stage, precision] = settings.ours(stage, precision)
    rates: dict[tuple[str, str, str], list[float]] = {key: [] for key in trainers}
    limits: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    side = 8192 if settings.device.type == "cuda" else 3072
    for number in range(settings.rounds + 1):
        for precision in PRECISIONS:
            limit = product_rate(precision, settings.device, side)
            if number:  # the first round warms up
                limits[precision].append(limit)
        for key, trainer in trainers.items():
            rate = rate_of(trainer)
            if number:
                rates[key].append(rate)
        log(f"round {number} of {settings.rounds}")
    for trainer in trainers.values():
        trainer.close()
    for stage in STAGES:
        peers = {p: statistics.median(rates["peer", stage, p]) for p in PRECISIONS}
        for precision in PRECISIONS:
            ours = summary(rates["ours", stage, precision])
            limit = statistics.median(limits[precision])
            settings.results.setdefault("training", []).append(
                {
                    "stage": stage,
                    "precision": precision,
                    "peer_images_per_second": summary(rates["peer", stage, precision]),
                    "peer_workers": best[stage, precision],
                    "peer_by_workers": tried[f"{stage} {precision}"],
                    "images_per_second": ours,
                    "over_peer_same_precision": ours["median"] / peers[precision],
                    "over_peer_float32": ours["median"] / peers["float32"],
                    "over_peer_best": ours["median"] / max(peers.values()),
                    "flops": ours["median"] * OPERATIONS,
                    "limit_flops": limit,
                    "share_of_limit": ours["median"] * OPERATIONS / limit,
                    "milliseconds_a_step": settings.ours(stage, precision).parts(8),
                }
            )
    grid(settings)


def grid(settings: Settings) -> None:
    """Hours of the paper's whole grid at the measured rates, one training after the other."""
    config = resolve(read_config(ROOT / "studies" / "paper.yaml"))
    every = cells(config)
    passes = {"pretrain": 0, "intermediate": 0, "finetune": 0}
    for training in trainings(every):
        passes[training.stage] += training_workload(config, training, {"intel": INTEL_TRAINING}).passes
    fastest = {
        stage: max(r["images_per_second"]["median"] for r in settings.results["training"] if r["stage"] == stage)
        for stage in STAGES
    }
    fastest["intermediate"] = fastest["finetune"]  # the same augmentation; one token and a smaller head differ
    hours = {stage: count / fastest[stage] / 3600 for stage, count in passes.items()}
    settings.results["grid"] = {"cells": len(every), "passes": passes, "hours": hours}


def memory(settings: Settings) -> None:
    """Peak memory of each trainer, in a process of its own."""
    for stage in STAGES:
        for precision in PRECISIONS:
            row = next(r for r in settings.results["training"] if (r["stage"], r["precision"]) == (stage, precision))
            for who in ("peer", "ours"):
                workers = row["peer_workers"]
                said = alone(settings, "--only", f"{who},{stage},{precision},{settings.threads},1,{workers}")
                row[f"{who}_memory_mb"] = said["memory_mb"]
    log("memory")


def only(settings: Settings, what: str) -> dict[str, Any]:
    """Run some epochs of one trainer, in a process of its own."""
    who, stage, precision, threads, epochs, workers = what.split(",")
    torch.set_num_threads(int(threads))
    if who == "large":
        return stream(settings, precision)
    if who == "peer":
        trainer = settings.peer(stage, precision, int(workers))
    else:
        trainer = settings.ours(stage, precision, threads=int(threads))
    trainer.epoch()
    began = time.time()
    count = sum(trainer.epoch() for _ in range(int(epochs)))
    ended = time.time()
    trainer.close()
    gpu = torch.cuda.max_memory_allocated() / 1e6 if settings.device.type == "cuda" else None
    return {"began": began, "ended": ended, "images": count, "memory_mb": peak_mb(), "gpu_memory_mb": gpu}


def peak_mb() -> int:
    """Peak of this process's resident memory, without its workers.

    Not getrusage's, which starts from the peak of the parent process.
    """
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1.024e-3)


def start_alone(settings: Settings, *arguments: str) -> subprocess.Popen[str]:
    fixed = ["--data", str(settings.data), "--device", settings.device.type, "--batch-size", str(settings.batch_size)]
    return subprocess.Popen(
        [sys.executable, __file__, *fixed, "--threads", str(settings.threads), *arguments],
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )


def alone(settings: Settings, *arguments: str) -> dict[str, Any]:
    process = start_alone(settings, *arguments)
    said = process.communicate()[0]
    if process.returncode:
        raise SystemExit(f"a process of the benchmark failed with {process.returncode}")
    return json.loads(said)


def scaling(settings: Settings) -> None:
    """Images per second against batch size and threads, and of several jobs side by side."""
    rows = []
    for stage in STAGES:
        for precision in PRECISIONS:
            sizes = [size for size in (8, 16, 64, 256) if size <= len(os.listdir(settings.data / "imagenet/n0"))]
            threads = sorted({1, settings.threads}) if settings.device.type == "cpu" else [settings.threads]
            trainers = {
                (count, size): settings.ours(stage, precision, batch_size=size, threads=count)
                for count in threads
                for size in sizes
            }
            rates: dict[tuple[int, int], list[float]] = {key: [] for key in trainers}
            for number in range(3):
                for (count, size), trainer in trainers.items():
                    torch.set_num_threads(count)
                    rate = rate_of(trainer)
                    if number:
                        rates[count, size].append(rate)
            torch.set_num_threads(settings.threads)
            rows += [
                {"stage": stage, "precision": precision, "threads": count, "batch_size": size, **summary(values)}
                for (count, size), values in rates.items()
            ]
            log(f"batch sizes and threads, {stage}, {precision}")
    settings.results["scaling"] = rows
    jobs = []
    for stage in STAGES:
        for precision in PRECISIONS:
            shapes = (
                [(1, settings.threads), (settings.threads, 1)] if settings.device.type == "cpu" else [(1, 1), (4, 1)]
            )
            rates_of: dict[tuple[int, int], list[float]] = {shape: [] for shape in shapes}
            for _ in range(2):
                for count, threads in shapes:
                    what = f"ours,{stage},{precision},{threads},2,0"
                    processes = [start_alone(settings, "--only", what) for _ in range(count)]
                    said = [json.loads(process.communicate()[0]) for process in processes]
                    seconds = max(s["ended"] for s in said) - min(s["began"] for s in said)
                    rates_of[count, threads].append(sum(s["images"] for s in said) / seconds)
            jobs += [
                {"stage": stage, "precision": precision, "jobs": count, "threads_each": threads, **summary(values)}
                for (count, threads), values in rates_of.items()
            ]
            log(f"jobs side by side, {stage}, {precision}")
    settings.results["jobs"] = jobs


def packing(settings: Settings) -> None:
    """Images per second from JPEGs to a pack, by threads, and through a DataLoader that only decodes and resizes."""
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    resize = transforms.Compose([transforms.Resize((128, 128)), transforms.PILToTensor()])
    loader = DataLoader(datasets.ImageFolder(str(settings.data / "imagenet"), resize), 64)
    rates: dict[str, list[float]] = {"ours": [], "ours_threads": [], "peer": []}
    for number in range(settings.rounds + 1):
        for name, threads in (("ours", 1), ("ours_threads", settings.threads)):
            with tempfile.TemporaryDirectory(dir=settings.data) as folder, silence():
                began = time.perf_counter()
                made = build_pack(pack_spec(settings.data, "pretrain"), Path(folder), threads)
                if number:
                    rates[name].append(made["count"] / (time.perf_counter() - began))
        began = time.perf_counter()
        count = sum(len(batch[0]) for batch in loader)
        if number:
            rates["peer"].append(count / (time.perf_counter() - began))
    settings.results["packing"] = {name: summary(values) for name, values in rates.items()} | {
        "threads": settings.threads
    }
    log("packing")


def startup(settings: Settings) -> None:
    """Seconds until a stage's modules are imported, compared with PyTorch alone."""
    commands = {
        "python": "pass",
        "import torch": "import torch",
        "a training job": "import viny.learning.stages, viny.runtime.provenance",
        "an evaluation": "import viny.evidence.evaluate",
        "timm and torchvision": "import timm, torchvision",
    }
    settings.results["startup"] = interleaved(
        {name: [sys.executable, "-c", code] for name, code in commands.items()}, settings.rounds
    )
    log("start-up")


UNLABELLED, LABELLED, DRAWN = 50_000, 7_349, 500  # images in the packs of the small jobs, and how many are drawn anew


def small_jobs(settings: Settings) -> None:
    """Processor seconds of the jobs around the trainings, each as the workflow runs it, at the paper's sizes."""
    root = settings.data / "jobs"
    given = {"study": "jobs", "grid": {"pretrain_sizes": [0, 45_000], "finetune_sizes": [250], "seeds": [0]}}
    given |= {"segmentation": {"source": "synthetic"}, "finetune": {"epochs": 2, "milestones": []}}
    given |= {"pretrain": {"source": "synthetic"}, "compute": {"device": settings.device.type, "precision": "auto"}}
    given |= {"synthetic": {"unlabelled": UNLABELLED, "segmentation": LABELLED}}
    given["grid"]["intermediates"] = ["none"]
    study, moving = (resolve(given | {"protocol": protocol}) for protocol in ("sound", "paper"))
    kept, drawn = synthetic.render, functools.cache(synthetic.render)

    def shifted(stream: str, index: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray, int, int]:
        image, mask, scene, kind = drawn(stream, index % DRAWN, size, seed)
        return np.roll(image, index // DRAWN, 2), np.roll(mask, index // DRAWN, 1), scene, kind

    synthetic.render = shifted
    try:
        for name, size in (("pretrain", 16), ("segmentation", 128)):  # no job here reads a picture of the first
            (root / "packs" / name).mkdir(parents=True)
            with silence():
                build_pack({**specs.pack_spec(study, name), "size": size}, root / "packs" / name, settings.threads)
    finally:
        synthetic.render = kept

    def split(name: str) -> dict[str, Path]:
        return {"split": root / f"splits/{name}.json", "indices": root / f"splits/{name}.npz"}

    cell, encoder = cells(study)[0], encoders(study)[0]
    packs = {name: {"manifest": root / "packs" / name / "manifest.json"} for name in ("pretrain", "segmentation")}
    cut, model = "finetune/size-250_seed-0", root / "finetune" / "model.json"
    wanted: dict[str, tuple[str, dict[str, Any], dict[str, Path]]] = {}
    for name, pack, file, spec in (
        ("split, fixed test set", "segmentation", cut, specs.finetune_split_spec(study, 250, 0)),
        ("split, moving test set", "segmentation", "moving", specs.finetune_split_spec(moving, 250, 0)),
        ("split of 45,000 for pre-training", "pretrain", "pretrain", specs.pretrain_split_spec(study, 45_000, 0)),
    ):
        made = split(file)
        wanted[name] = ("split", spec, packs[pack] | {"record": made["split"], "indices": made["indices"]})
    inputs = packs["segmentation"] | split(cut)
    trained = {name: model.with_name(name) for name in ("model.json", "model.safetensors", "curve.csv", "run.json")}
    files = inputs | dict(zip(("record", "weights", "curve", "run"), trained.values(), strict=True))
    wanted["fine-tuning, 250 labels, 2 epochs"] = ("finetune", specs.finetune_spec(study, cell), files)
    files = inputs | {"model": model, "metrics": root / "metrics.json", "confusion": root / "metrics.npz"}
    wanted["evaluation, 1,000 images"] = ("evaluate", specs.evaluate_spec(study, cell), files)
    files = inputs | {"metrics": root / "geometry.json", "arrays": root / "geometry.npz"}
    wanted["geometry of a random start"] = ("geometry", specs.geometry_spec(study, encoder), files)
    spec = specs.duplicates_spec(study)
    files = {"root": root, "out": root, "record": root / "summaries/duplicates.json"}
    wanted["duplicates"] = ("duplicates", spec, files)
    taken: dict[str, list[float]] = {name: [] for name in wanted}
    for number in range(settings.rounds + 1):
        for name, (stage, spec, files) in wanted.items():
            flags = [text for key, path in files.items() for text in (f"--{key}", str(path))]
            command = [sys.executable, "-m", "viny", stage, "--spec", json.dumps(spec), *flags, "--threads", "1"]
            with open(root / "log.txt", "w", encoding="utf-8") as said:
                process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said)
                _, status, used = os.wait4(process.pid, 0)
            if status:
                raise SystemExit(f"{name}: {(root / 'log.txt').read_text(encoding='utf-8')[-2000:]}")
            if number:
                taken[name].append(used.ru_utime + used.ru_stime)
    settings.results["small_jobs"] = {name: summary(values) for name, values in taken.items()}
    log("small jobs")


def interleaved(commands: dict[str, list[str]], rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of each command, medians over rounds after a warm-up."""
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            began = time.perf_counter()
            done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
            if done.returncode:
                raise SystemExit(f"{' '.join(command)}: {done.stderr[-2000:]}")
            if number:
                taken[name].append(time.perf_counter() - began)
    return {name: summary(values) for name, values in taken.items()}


def large(settings: Settings) -> None:
    """Peak memory of pre-training steps from a pack of 200,000 images (9.8 GB), which are read batch by batch."""
    (settings.data / "large").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (3, 128, 128), np.uint8)
    kept = synthetic.render
    synthetic.render = lambda stream, index, *_: (
        np.roll(noise, index, 2),
        noise[0] % 3,
        0,
        0,
    )  # drawing would take hours
    try:
        with silence():
            spec = {"source": "synthetic", "size": 128, "resize": "antialias", "stream": "unlabelled", "seed": 0}
            build_pack({**spec, "count": LARGE}, settings.data / "large", settings.threads)
    finally:
        synthetic.render = kept
    log("200,000 images packed")
    settings.results["large"] = alone(settings, "--only", f"large,pretrain,auto,{settings.threads},0,0")
    log("memory of streaming")


def stream(settings: Settings, precision: str, steps: int = 60) -> dict[str, Any]:
    """Run some steps from the large pack, in a process of its own."""
    machine = Machine.choose(settings.device.type, precision, settings.threads)
    pack = open_pack(settings.data / "large" / "manifest.json")
    batches = simmim_batches(pack, np.arange(len(pack)), VINY.image_size, VINY.patches, 0.5, 0.67, machine.device)
    objective = SimMIM(ViNy()).to(machine.device)
    optimizer = Adam(objective, TrainSettings(1, 64, "adamw", 1e-4, 0.0, (), 0.1))
    draws = torch.Generator().manual_seed(0)
    began = time.perf_counter()
    with Gradients(objective, machine, 64) as gradients:
        for _ in range(steps):
            gradients.compute(batches(torch.randperm(len(pack), generator=draws)[:64], draws))
            optimizer.step(gradients.share)
    rate = 64 * steps / (time.perf_counter() - began)
    return {"images": len(pack), "steps": steps, "images_per_second": rate, "memory_mb": peak_mb()}


LARGE = 200_000
GRIDS = {144: (3, 6), 1000: (25, 5), 5000: (125, 5)}  # cells: seeds, fine-tune sizes; times 4 pre-train sizes, 2 tasks


def workflow(settings: Settings) -> None:
    """Seconds of a dry run, by number of cells, and of a job besides its own work."""
    import yaml

    commands = {}
    with tempfile.TemporaryDirectory() as folder:
        for cells, (seeds, sizes) in GRIDS.items():
            tiny = yaml.safe_load((ROOT / "tests" / "tiny.yaml").read_text(encoding="utf-8"))
            tiny["study"] = f"bench{cells}"
            tiny["grid"] = {
                "pretrain_sizes": [0, 8, 16, 24],
                "intermediates": ["none", "scenes"],
                "finetune_sizes": [2, 4, 8, 12, 16, 20][:sizes],
                "seeds": list(range(seeds)),
            }
            path = Path(folder) / f"{cells}.yaml"
            path.write_text(yaml.safe_dump(tiny), encoding="utf-8")
            start = [str(Path(sys.executable).parent / "snakemake"), "--cores", "1", "-n", "--quiet", "all"]
            commands[str(cells)] = [*start, "--configfile", str(path)]
        settings.results["dry_run"] = interleaved(commands, 2)
        log("dry runs")
        settings.results["overhead"] = job_overhead(Path(folder))
        log("overhead a job")


def job_overhead(folder: Path, jobs: int = 60) -> dict[str, float]:
    """Seconds per job that Snakemake adds to the job's own process, for jobs that do nothing, one after the other."""
    (folder / "Snakefile").write_text(
        f"rule all:\n    input: expand('{{n}}.txt', n=range({jobs}))\n\n"
        "rule job:\n    output: '{n}.txt'\n    log: '{n}.log'\n    benchmark: '{n}.jsonl'\n"
        "    shell: 'echo {wildcards.n} > {output}'\n",
        encoding="utf-8",
    )
    snakemake = str(Path(sys.executable).parent / "snakemake")
    profile = ["--workflow-profile", str(ROOT / "profiles" / "default")]
    taken = {}
    for name, extra in (("planned", ["-n", "--quiet", "all"]), ("run", ["--quiet", "all"])):
        began = time.perf_counter()
        subprocess.run(
            [snakemake, "--cores", "1", *profile, *extra, "-s", str(folder / "Snakefile")],
            cwd=folder,
            check=True,
            capture_output=True,
        )
        taken[name] = time.perf_counter() - began
    return {"jobs": jobs, "seconds_a_job": (taken["run"] - taken["planned"]) / (jobs + 1)}


PARTS: dict[str, Callable[[Settings], None]] = {
    "training": training,
    "memory": memory,
    "scaling": scaling,
    "packing": packing,
    "startup": startup,
    "jobs": small_jobs,
    "workflow": workflow,
    "large": large,
}
USUAL = [part for part in PARTS if part != "large"]  # which needs 10 GB of disk and some minutes


def log(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=USUAL, help=f"some of {', '.join(PARTS)} (default all but large)")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "speed", help="folder (default results/speed)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds after a warm-up (default 5)")
    parser.add_argument("--images", type=int, default=256, help="images per epoch (default 256)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads (default all)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)  # made by the process that starts this one
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    unknown = set(args.parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}; known are {', '.join(PARTS)}")
    machine = Machine.choose(args.device, "auto", args.threads)
    if args.only:
        settings = Settings(args.data, machine.device, args.threads, args.batch_size, args.rounds)
        print(json.dumps(only(settings, args.only)))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="viny-speed-") as folder:
        settings = Settings(Path(folder), machine.device, args.threads, args.batch_size, args.rounds)
        with silence():
            make_data(settings.data, args.images)
            make_packs(settings.data, args.threads)
        log(f"{args.images} JPEGs of {WIDTH} x {HEIGHT} made and packed")
        settings.results["machine"] = {
            "processor": processor_name(),
            "processors": os.cpu_count(),
            "device": torch.cuda.get_device_name() if machine.device.type == "cuda" else "cpu",
            "threads": args.threads,
            "batch_size": args.batch_size,
            "rounds": args.rounds,
            "images_an_epoch": args.images,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "torchvision", "vit-pytorch")},
            "snakemake": version("snakemake") if "workflow" in args.parts else None,
        }
        for part in PARTS:
            if part in args.parts:
                PARTS[part](settings)
    from report import write_report

    write_report(settings.results, args.out)
    print(args.out / "speed.md")


if __name__ == "__main__":
    main()
