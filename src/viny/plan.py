"""What a study costs before it runs: jobs, image passes, operations, disk, memory and hours, stage by stage."""

from __future__ import annotations

import heapq
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from viny.cells import cells, mask_class_count, on_segmentation_data, pack_spec
from viny.config import check_sizes
from viny.data.pack import stored_at
from viny.errors import InputError
from viny.files import canonical_json, digest, read_json
from viny.gpus import surroundings, visible_gpus
from viny.jobs import PRIORITIES, STAGES, SUMS, TRAININGS, Images, Job, Key, count, jobs, out_of_date, to_do
from viny.listings import with_listings
from viny.provenance import code_fingerprint
from viny.settings import ModelSettings
from viny.terminal import console, duration, short, table
from viny.work import TRAINING, UNKNOWN, forward_operations, pack_bytes, parameters

# Seconds, measured where docs/speed.md was, two jobs side by side; where START was measured, the others go with it.
START = 1.2  # of Python with PyTorch and the stages
AROUND = 0.8  # of a job that has these, before and after: shell, command line, the process's end
SET_UP = 1.3  # of a training beside both: pack, model, optimiser, first step, weights
ALONE = {
    **{"pack": 0.8, "split": 0.3, "duplicates": 0.4, "tables": 0.4, "figures": 4.5},
    **{"statistics": 5.5, "representations": 6.5, "scorecard": 3.4, "report": 2.7},
}
PROBES = 2.1e-7  # for each number in the tokens of all layers, of the geometry
SNAKEMAKE = 5.0  # of a run: from the command to the first job, and after the last
SNAKEMAKE_JOB = 0.03  # of a job: to choose and to start it
PACKING = 220.0  # images a second and thread, photographs; only where no file is there to try
# Bytes of a job's results beside weights: records, curve, confusion matrices, arrays, tables, figures.
RESULTS = {"split": 13e3, **dict.fromkeys(TRAININGS, 5e3), "evaluate": 20e3, "geometry": 60e3}
RESULTS |= {"figures": 2e6, "statistics": 1e6, "representations": 1e6, "report": 2e6}
QUIET = 0.9  # of the cores: with less, other work is worth a note
CHECKPOINTS = 3 * 3  # times the weights: two that are kept and one that is written, each with Adam's two moments


@dataclass(frozen=True)
class Rates:
    """How fast jobs go, and how that is known.

    Attributes:
        images: images a second of one job, by kind (see `kind`); training passes, but forward passes of 'evaluate'.
        start: seconds until PyTorch is there.
        beside: seconds of a training beside its steps that finished jobs tell; None where they do not.
        whole: seconds of a job of a stage that finished jobs tell; such a stage needs no rate.
        known: for each kind its name for people, its rate, and where that is from.
        share: of the cores that a measurement got beside other work; the rates are those of a quiet machine.
    """

    images: dict[str, float] = field(default_factory=dict)
    start: float = START
    beside: float | None = None
    whole: dict[str, float] = field(default_factory=dict)
    known: list[dict[str, Any]] = field(default_factory=list)
    share: float = 1.0


def kind(job: Job) -> str:
    """What jobs have in common that go equally fast, as text."""
    if job.stage == "pack":
        return f"pack {digest(dict(job.spec))[:12]}"
    return _kind_of_training(job.spec) if job.stage in TRAININGS else job.stage


def _kind_of_training(spec: Mapping[str, Any]) -> str:
    keys = ("stage", "model", "device", "precision", "target", "pooling", "segmentation_loss")
    picked = {key: spec.get(key) for key in keys} | {"mixed": bool(spec.get("mixup"))}
    return canonical_json(picked | {key: spec["train"][key] for key in ("batch_size", "optimizer")})


def _title(job: Job) -> str:
    """A kind's name for people, after the first job of it."""
    name = job.name.split("/")[0] if job.stage in ("intermediate", "pack") else ""
    return f"{job.stage} {name}".strip()


def seconds_of(job: Job, root: Path) -> float | None:
    """What a finished job took, as Snakemake measured it; None where it did not."""
    try:
        return float(json.loads(job.benchmark(root).read_text().splitlines()[-1])["s"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def rates_seen(all_jobs: Iterable[Job], root: Path, threads: int, device: str) -> Rates:
    """What a study's finished jobs tell of its speed: medians over the jobs of a kind.

    Args:
        all_jobs: of `viny.jobs.jobs`; a training counts if it had the same model, batch, precision and threads.
        root: the study's folder.
        threads: of a job.
        device: 'cpu' or 'cuda' to leave out what ran elsewhere; 'auto' takes all.
    """
    seen, beside, whole = {}, [], {}
    titles = {}
    for job in all_jobs:
        if not job.is_done(root):
            continue
        took = seconds_of(job, root)
        if job.stage not in TRAININGS:
            if took is not None and job.stage != "pack":  # a pack may have been in the store already
                whole.setdefault(job.stage, []).append(took)
            continue
        try:
            run = read_json(root / job.outputs[3], "provenance")
            spec = read_json(root / job.outputs[1], "a weights record")["spec"]
            same = _kind_of_training(spec) == kind(job) and run["threads"] == threads
            if same and (device == "auto" or run["device"].startswith(device)):
                titles.setdefault(kind(job), _title(job))
                seen.setdefault(kind(job), []).append((run["image_passes"] / run["training_seconds"], run["host"]))
                if took is not None and not run["earlier_attempts"]:
                    beside.append(max(0.0, took - run["training_seconds"]))
        except (InputError, LookupError, TypeError, ZeroDivisionError):
            continue  # no evidence; what is wrong there is for `viny verify` to say
    known = [_known(titles[k], found) for k, found in seen.items()]
    images = {k: one["images_per_second"] for k, one in zip(seen, known, strict=True)}
    medians = {stage: statistics.median(found) for stage, found in whole.items()}
    return Rates(images, beside=statistics.median(beside) if beside else None, whole=medians, known=known)


def _known(title: str, found: list[tuple[float, str]]) -> dict[str, Any]:
    hosts = sorted({host for _, host in found if host})
    where = f" on {hosts[0]}" if len(hosts) == 1 else f" on {len(hosts)} machines" if hosts else ""
    jobs_done = f"{len(found)} finished job{'s' * (len(found) > 1)}{where}"
    return {"what": title, "images_per_second": statistics.median(rate for rate, _ in found), "from": jobs_done}


def rates_stated(all_jobs: Iterable[Job], rate: float) -> Rates:
    """Rates from that of ViNy's training, by operations.

    Args:
        all_jobs: of `viny.jobs.jobs`.
        rate: images of 128 px a second that a training job of ViNy does.
    """
    operations = rate * TRAINING * forward_operations(ModelSettings())
    found, known = {}, []
    for job in all_jobs:
        if job.work and job.stage != "geometry" and kind(job) not in found:
            a_second = found[kind(job)] = operations / (job.work.operations / job.work.passes)
            known.append({"what": _title(job), "images_per_second": a_second, "from": f"{rate:g} ViNy images/s"})
    return Rates(found, known=known)


def rates_measured(
    config: Mapping[str, Any], all_jobs: list[Job], beside: int, seconds: float, unpacked: set[Key], seen: Rates
) -> Rates:
    """Measure what finished jobs do not tell, as many jobs beside each other as will run.

    Args:
        config: resolved settings.
        all_jobs: those that the rates are for.
        beside: processes.
        seconds: for all measurements together.
        unpacked: keys of the packs that are still to be made; some of their images are packed for a trial.
        seen: of `rates_seen`, which goes first.
    """
    from viny.measure import Step, measure

    steps, titles = {}, {}
    labels = round(statistics.mean(config["grid"]["finetune_sizes"]))
    side, classes = config["model"]["image_size"], mask_class_count(config)
    for job in all_jobs:
        name = kind(job)
        if name in steps or name in seen.images or job.stage in seen.whole:
            continue
        if job.stage in TRAININGS:
            images = labels if job.stage == "finetune" else job.work.passes // job.spec["train"]["epochs"]
            pixels = config["pretrain"]["pack_size"] if job.stage == "pretrain" else side
            steps[name] = Step(name, job.spec, max(1, images), pixels, classes=classes)
        elif job.stage == "evaluate":
            of = next(one for one in all_jobs if one.stage == "finetune")
            steps[name] = Step(name, of.spec, job.work.passes, side, "evaluate", classes)
        elif job.key in unpacked:
            steps[name] = Step(name, job.spec, 1, job.spec["size"], "pack")
        titles[name] = _title(job)
    if not steps:
        return seen
    gpus = [] if config["compute"]["device"] == "cpu" else visible_gpus()
    with tempfile.TemporaryDirectory() as claims:
        environment = surroundings(gpus, config["compute"]["jobs_per_gpu"], Path(claims))
        threads = config["compute"]["train_threads"]
        found = measure(list(steps.values()), beside, threads, seconds, environment)
    how = f"measured, {beside} side by side" if beside > 1 else "measured"
    known = [{"what": titles[k], "images_per_second": rate, "from": how} for k, rate in found.rates.items()]
    both = {**found.rates, **seen.images}
    return Rates(both, found.start, seen.beside, seen.whole, [*seen.known, *known], found.share)


def _stored(job: Job, store: Path) -> Path:
    """A pack's manifest in the store, where the workflow's job puts it."""
    return stored_at({**job.spec, "code": code_fingerprint("pack")}, store) / "manifest.json"


class Forecast:
    """Seconds and bytes of a study's jobs.

    Args:
        config: resolved settings.
        images: of `viny.jobs.count`.
        rates: how fast jobs go.
        store: folder of packs.
    """

    def __init__(self, config: Mapping[str, Any], images: Images, rates: Rates, store: Path) -> None:
        self.config, self.images, self.rates, self.store = config, images, rates, store
        self.weights = 4 * parameters(ModelSettings(**config["model"]))

    def packed(self, job: Job) -> int:
        """Images of a pack."""
        found = self.images.packed[job.name]
        if found is not None:
            return found
        wanted = {"pretrain": max(self.config["grid"]["pretrain_sizes"])}
        wanted["segmentation"] = max(self.config["grid"]["finetune_sizes"]) + self.images.tested
        return wanted.get(job.name, UNKNOWN)

    def seconds(self, job: Job) -> float:
        """Seconds of one job, from its start to its end."""
        rates, pace = self.rates, self.rates.start / START
        if job.stage in rates.whole:
            return rates.whole[job.stage]
        if job.stage in TRAININGS:
            beside = pace * (START + AROUND + SET_UP) if rates.beside is None else rates.beside
            return beside + (job.work.passes + self._held_out(job) / TRAINING) / self._rate(job)
        if job.stage in ("evaluate", "geometry"):
            probes = self._tokens() * PROBES if job.stage == "geometry" else 0.0
            return pace * (START + AROUND + probes) + job.work.passes / self._rate(job)
        if job.stage == "pack" and not _stored(job, self.store).exists():
            a_second = rates.images.get(kind(job), PACKING) * self.config["compute"]["pack_threads"]
            return ALONE["pack"] + self.packed(job) / a_second
        return pace * ALONE[job.stage]

    def _held_out(self, job: Job) -> int:
        """Images that an intermediate task is tested on at its end."""
        if job.stage != "intermediate":
            return 0
        task = job.name.split("/")[0]
        return max(0, (self.images.packed[task] or 0) - (self.images.trained[task] or 0))

    def _tokens(self) -> int:
        """Numbers in the tokens of all layers that the geometry looks at."""
        model, section = ModelSettings(**self.config["model"]), self.config["geometry"]
        return (section["images"] + section["probe_images"]) * (model.depth + 2) * model.patches * model.dim

    def _rate(self, job: Job) -> float:
        """Images a second; from the others' operations where its own kind has none."""
        found = self.rates.images.get("evaluate" if job.stage == "geometry" else kind(job))
        if found:
            return found
        trained = [rate for name, rate in self.rates.images.items() if name.startswith("{")]
        if trained:
            return statistics.median(trained) * (1 if job.stage in TRAININGS else TRAINING)
        raise InputError(f"no rate is known for {job.label}; say one by --rate")

    def bytes(self, job: Job) -> float:
        """Bytes that a job leaves on the disk."""
        if job.stage == "pack":
            task = self.config["intermediate"].get(job.name)
            masks = job.spec["source"] == "synthetic" or job.name == "segmentation"
            masks |= task is not None and (task["target"] != "image" or on_segmentation_data(self.config, job.name))
            return pack_bytes(self.packed(job), job.spec["size"], masks)
        return RESULTS.get(job.stage, 5e4) + (self.weights if job.stage in TRAININGS else 0)

    def all_bytes(self, some: Iterable[Job]) -> float:
        """Bytes of several jobs; a pack that two of them share counts once."""
        each = {kind(job) if job.stage == "pack" else job.key: self.bytes(job) for job in some}
        return sum(each.values())


def makespan(
    some: list[Job], seconds: Mapping[Key, float], cores: int, threads: Callable[[Job], int], places: int | None = None
) -> float:
    """Seconds from the first job's start to the last one's end, as a greedy scheduler runs them.

    Whenever a job ends, those whose inputs are there start in the order of their priority while cores are free
    (list scheduling, Graham 1969, doi 10.1137/0117039).

    Args:
        some: in an order in which they could run; what they need beside each other is there.
        seconds: of each.
        cores: to share out.
        threads: cores that a job takes; no more than there are.
        places: on GPUs, one for each job that computes on one; None where there are none.
    """
    order = {job.key: (-PRIORITIES.get(job.stage, 0), at) for at, job in enumerate(some)}
    by_key = {job.key: job for job in some}
    waits = {job.key: sum(key in by_key for key in job.needs) for job in some}
    readers: dict[Key, list[Key]] = {}
    for job in some:
        for key in job.needs:
            readers.setdefault(key, []).append(job.key)
    ready = [(order[key], key) for key, n in waits.items() if n == 0]
    heapq.heapify(ready)
    running: list[tuple[float, Key]] = []
    free = [cores, cores if places is None else places]
    now = 0.0

    def takes(key: Key) -> tuple[int, int]:
        job = by_key[key]
        return min(cores, threads(job)), int(job.work is not None)

    while ready or running:
        put_off = []
        while ready and free[0] > 0:
            entry = heapq.heappop(ready)
            n, gpu = takes(entry[1])
            if n > free[0] or gpu > free[1]:
                put_off.append(entry)
                continue
            free[0], free[1] = free[0] - n, free[1] - gpu
            heapq.heappush(running, (now + seconds[entry[1]], entry[1]))
        for entry in put_off:
            heapq.heappush(ready, entry)
        now, done = heapq.heappop(running)
        n, gpu = takes(done)
        free[0], free[1] = free[0] + n, free[1] + gpu
        for key in readers.get(done, []):
            waits[key] -= 1
            if waits[key] == 0:
                heapq.heappush(ready, (order[key], key))
    return now


@dataclass(frozen=True)
class Place:
    """Where a study is to run: cores, and GPUs, of which a training takes one or a share of one."""

    cores: int
    gpus: int
    jobs_per_gpu: int
    train_threads: int

    @classmethod
    def of(cls, config: Mapping[str, Any], cores: int | None, gpus: int | None) -> Place:
        """This machine, but for what is said.

        Args:
            config: resolved settings.
            cores: None for all that this process may use.
            gpus: None for those of this machine; none where the study computes on CPUs.
        """
        compute = config["compute"]
        found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if gpus is None:
            gpus = 0 if compute["device"] == "cpu" else len(visible_gpus())
        return cls(cores or found, gpus, compute["jobs_per_gpu"], compute["train_threads"])

    @property
    def places(self) -> int | None:
        return self.gpus * self.jobs_per_gpu if self.gpus else None

    @property
    def beside(self) -> int:
        """Trainings that run side by side, if there are as many."""
        by_cores = max(1, self.cores // self.train_threads)
        return by_cores if self.places is None else min(by_cores, self.places)

    def threads(self, job: Job, config: Mapping[str, Any]) -> int:
        return config["compute"]["pack_threads"] if job.stage == "pack" else self.train_threads if job.work else 1

    def hours(self, some: list[Job], seconds: Mapping[Key, float], config: Mapping[str, Any]) -> float:
        """Wall-clock hours of some jobs; zero for none."""
        spent = makespan(some, seconds, self.cores, lambda job: self.threads(job, config), self.places)
        return (spent + SNAKEMAKE) / 3600 if some else 0.0


def most_beside(all_jobs: Iterable[Job]) -> int:
    """Trainings that could run side by side: as many as the widest stage has."""
    widths: dict[str, int] = {}
    for job in all_jobs:
        if job.stage in TRAININGS:
            widths[job.stage] = widths.get(job.stage, 0) + 1
    return max(widths.values(), default=1)


def plan(
    config: Mapping[str, Any],
    results: Path,
    store: Path,
    cores: int | None = None,
    gpus: int | None = None,
    rate: float | None = None,
    seconds: float = 30.0,
    use_seen: bool = True,
) -> dict[str, Any]:
    """Forecast a study.

    Args:
        config: resolved settings.
        results: folder of all studies' results.
        store: folder of packs.
        cores: that jobs share; None for all of this machine.
        gpus: that jobs share, one each or a share of one; None for those of this machine.
        rate: training images of ViNy (128 px) a second of one job; None to measure.
        seconds: that the measurement may take, beside the start of its processes.
        use_seen: whether rates of finished jobs go before measured ones.

    Returns:
        Stages, totals, wall-clock hours, rates, what more would cost, and notes, as JSON takes them. Hours are
        forecasts, but `took_hours`, which is of the finished jobs that Snakemake measured.

    Raises:
        InputError: the study asks for more images than there are, or GPUs that are not here have no stated rate.
    """
    root = results / config["study"]
    config = with_listings(dict(config), root)
    images = count(config, root)
    check_sizes(config, images.limits)
    all_jobs = jobs(config, images)
    stale = out_of_date(all_jobs, root)
    place = Place.of(config, cores, gpus)
    if gpus and rate is None and gpus > len(visible_gpus()):
        raise InputError(f"--gpus {gpus}: this machine has {len(visible_gpus())}, so say by --rate how fast one is")
    device = "cuda" if place.gpus else config["compute"]["device"]
    if rate is not None:
        rates = rates_stated(all_jobs, rate)
    else:
        seen = rates_seen(all_jobs, root, place.train_threads, device) if use_seen else Rates()
        beside = min(place.beside, most_beside(all_jobs))
        packs = [job for job in all_jobs if job.stage == "pack" and not _stored(job, store).exists()]
        unpacked = {job.key for job in packs if job.key in stale or not (use_seen and job.is_done(root))}
        rates = rates_measured(config, all_jobs, beside, seconds, unpacked, seen)
    forecast = Forecast(config, images, rates, store)
    spent = {job.key: forecast.seconds(job) + SNAKEMAKE_JOB for job in all_jobs}
    left = to_do(all_jobs, root, stale)
    stages = [_row(stage, all_jobs, left, spent, forecast, root) for stage in STAGES]
    stages = [row for row in stages if row["jobs"]]
    total = {key: sum(row[key] or 0 for row in stages) for key in ("jobs", "done", "to_do", *SUMMED)}
    total["bytes"] = forecast.all_bytes(all_jobs)
    return {
        "study": config["study"],
        "cells": len(cells(config)),
        "stages": stages,
        "total": total,
        "checkpoint_bytes": CHECKPOINTS * forecast.weights * min(place.beside, most_beside(all_jobs)),
        "wall_clock": {
            **asdict(place),
            "beside": place.beside,
            "hours": place.hours(all_jobs, spent, config),
            "hours_to_do": place.hours(left, spent, config),
        },
        "rates": rates.known,
        "job_start_seconds": rates.start,
        "share_of_cores": rates.share,
        "further": further(forecast),
        "notes": _notes(config, images, rates, sum(job.is_done(root) for job in left) if stale else 0),
    }


SUMMED = ("image_passes", "flop", "hours", "hours_to_do", "took_hours")


def _row(
    stage: str, all_jobs: list[Job], left: list[Job], spent: Mapping[Key, float], forecast: Forecast, root: Path
) -> dict[str, Any]:
    mine, mine_left = ([job for job in some if job.stage == stage] for some in (all_jobs, left))
    keys = {job.key for job in mine_left}
    took = [s for job in mine if job.key not in keys and (s := seconds_of(job, root)) is not None]
    works = [job.work for job in mine if job.work]
    return {
        "stage": stage,
        "jobs": len(mine),
        "done": len(mine) - len(mine_left),
        "to_do": len(mine_left),
        "image_passes": sum(one.passes for one in works) if stage != "geometry" else 0,
        "flop": sum(one.operations for one in works),
        "bytes": forecast.all_bytes(mine),
        "memory_mb": max((one.memory_mb for one in works), default=None),
        "hours": sum(spent[job.key] for job in mine) / 3600,
        "hours_to_do": sum(spent[job.key] for job in mine_left) / 3600,
        "took_hours": sum(took) / 3600 if took else None,
    }


def further(forecast: Forecast) -> list[dict[str, Any]]:
    """What a further seed, size or task would add: cells, jobs, image passes, job hours, bytes; without packs."""
    config = forecast.config
    grid = config["grid"]

    def cost(**lists: list[Any]) -> tuple[float, ...]:
        changed = {**config, "grid": {**grid, **lists}}
        some = [job for job in jobs(changed, forecast.images) if job.stage not in ("pack", *SUMS)]
        passes = sum(job.work.passes for job in some if job.work and job.stage != "geometry")
        hours = sum(map(forecast.seconds, some)) / 3600
        return len(cells(changed)), len(some), passes, hours, forecast.all_bytes(some)

    here = cost()

    def row(what: str, costs: list[tuple[float, ...]], sign: int = 1) -> dict[str, Any]:
        names = ("cells", "jobs", "image_passes", "hours", "bytes")
        mean = [statistics.mean(sign * (one[at] - here[at]) for one in costs) for at in range(len(names))]
        return {"what": what, **dict(zip(names, mean, strict=True))}

    rows = [row("a further seed", [cost(seeds=[*grid["seeds"], max(grid["seeds"]) + 1])])]
    for key, what, there in (
        ("pretrain_sizes", "pre-training images", forecast.images.packed["pretrain"]),
        ("finetune_sizes", "labels", forecast.images.room),
    ):
        sizes = [size for size in grid[key] if size]
        if not sizes:
            continue
        more = 2 * max(sizes)
        lacking = f" (there are {there:,})" if there is not None and more > there else ""
        rows.append(row(f"{more:,} {what}, the next doubling{lacking}", [cost(**{key: [*grid[key], more]})]))
        without = [cost(**{key: [one for one in grid[key] if one != size]}) for size in sizes]
        rows.append(row(f"a number of {what}, mean of the {len(sizes)} here", without, -1))
    for task in config["intermediate"]:
        left = [name for name in grid["intermediates"] if name != task]
        rows.append(row(f"a task like {task}", [cost(intermediates=left)], -1))
    return rows


def _notes(config: Mapping[str, Any], images: Images, rates: Rates, stale: int) -> list[str]:
    used = set(images.packed) - ({"pretrain"} if not max(config["grid"]["pretrain_sizes"]) else set())
    lacking = [name for name, n in images.packed.items() if n is None and name in used]
    notes = []
    if stale:
        notes.append(
            f"out of date: {stale} of the jobs to do, whose files are there but made from other images or weights than "
            "those there now"
        )
    for name in lacking:
        spec = pack_spec(config, name)
        trained = images.trained.get(name)
        if name not in images.trained:
            how = "the grid's sizes stand for its own"
        else:
            how = f"its split has {trained:,} training images" if trained else f"it is taken to have {UNKNOWN:,} images"
        notes.append(f"{name}: no data set at {spec['path']}; {how}")
    if rates.share < QUIET:
        notes.append(
            f"other work had {100 * (1 - rates.share):.0f} % of the cores while this was measured, which is taken off; "
            f"if it stays, what was measured takes {1 / rates.share:.1f} times as long"
        )
    notes.append(
        "done: the files are there, made from the images and weights that are; after changed settings or code "
        "Snakemake may do more: `snakemake -n` decides"
    )
    return notes


def show(planned: Mapping[str, Any]) -> None:
    """Print what `plan` returns as tables."""
    out, total, wall = console(), planned["total"], planned["wall_clock"]
    out.print(f"{planned['study']}: {planned['cells']} cells, {total['jobs']} jobs, {total['to_do']} of them to do\n")
    columns = ["stage", "jobs", "done", "to do", "image passes", "FLOP", "disk", "memory a job"]
    columns += ["job time", "of those to do", "the done took"] if total["done"] else ["job time"]
    rows = [_cells_of(row)[: len(columns)] for row in [*planned["stages"], {"stage": "in all", **total}]]
    out.print(table(columns, rows))
    where = f"{wall['cores']} core{'s' * (wall['cores'] > 1)}"
    where += f" and {wall['gpus']} GPU{'s' * (wall['gpus'] > 1)}" if wall["gpus"] else ""
    beside = f"up to {wall['beside']} trainings side by side" if wall["beside"] > 1 else "one training after the other"
    meanwhile = f"up to {short(planned['checkpoint_bytes'], 'B')} of checkpoints meanwhile"
    share = planned["share_of_cores"]

    def lasts(hours: float, what: str) -> str:
        loaded = f" ({duration(3600 * hours / share)} with the other work that runs now)" if share < QUIET else ""
        return f"{duration(3600 * hours)} for {what}{loaded}"

    out.print(
        f"\nFrom start to end on {where}, {beside}: {lasts(wall['hours'], 'all')}"
        + (f", {lasts(wall['hours_to_do'], 'what is to do')}" if total["done"] else "")
        + ".\n"
        f"Disk: {short(total['bytes'], 'B')}, and {meanwhile}.\n"
    )
    rates = [(one["what"], f"{one['images_per_second']:,.0f}", one["from"]) for one in planned["rates"]]
    out.print(table(["rate", "images/s a job", "known from"], rates, right=[1]))
    rows = [
        (one["what"], *(f"{one[key]:,.0f}" for key in ("cells", "jobs")), *_amounts(one)) for one in planned["further"]
    ]
    out.print("\nWhat more adds, beside packs:")
    out.print(table(["", "cells", "jobs", "image passes", "job time", "disk"], rows))
    out.print("\n" + "\n".join(f"- {note}" for note in planned["notes"]))


def _amounts(one: Mapping[str, Any]) -> tuple[str, str, str]:
    return short(one["image_passes"]), duration(3600 * one["hours"]), short(one["bytes"], "B")


def _cells_of(row: Mapping[str, Any]) -> list[str]:
    """A row of the stages' table; what does not apply stays empty."""
    spent = [row["hours"], row["hours_to_do"], row["took_hours"] or 0.0]
    return [
        row["stage"],
        *(str(row[key]) for key in ("jobs", "done", "to_do")),
        *(short(row[key]) if row[key] else "" for key in ("image_passes", "flop")),
        short(row["bytes"], "B"),
        short(1e6 * row["memory_mb"], "B") if row.get("memory_mb") else "",
        *(duration(3600 * one) if one else "" for one in spent),
    ]
