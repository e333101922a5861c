"""How fast the jobs of a study run, and how that is known."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from viny.learning.settings import TRAINING, ModelSettings, forward_operations
from viny.runtime.errors import InputError
from viny.runtime.files import canonical_json, digest, last_lines, read_json
from viny.runtime.gpus import job_environment, visible_gpus
from viny.runtime.load import QUIET, busy, share_in
from viny.runtime.shapes import NUMBERS
from viny.runtime.units import counted, duration
from viny.study.graph import TRAININGS, TRAINS, Job, Key
from viny.study.grid import BASE, Arm
from viny.study.specs import mask_class_count
from viny.study.todo import stored_pack
from viny.tools.forecast.schedule import most_beside

# Seconds, measured where docs/speed.md was, two jobs side by side; if START is measured, the others scale with it.
START = 1.0  # to start Python with PyTorch and the stages


@dataclass(frozen=True)
class Rates:
    """How fast jobs run, and how that is known.

    Attributes:
        images: images per second of one job, by kind (see `kind`): training passes, or forward passes of 'evaluate'.
        start: seconds until PyTorch is loaded.
        beside: seconds of a training besides its steps, from finished jobs; None if they do not tell.
        whole: seconds of a job of a stage, from finished jobs; such a stage needs no rate.
        known: for each kind, its name for people, its rate, and where that comes from.
        share: of the cores that a measurement got alongside other work; the rates are those of a quiet machine.
        past: the same of the finished jobs, over all their time.
        spent: seconds that these jobs took together.
        a_pass: operations for each of the images of `images`, by kind of training or evaluation.
    """

    images: dict[str, float] = field(default_factory=dict)
    start: float = START
    beside: float | None = None
    whole: dict[str, float] = field(default_factory=dict)
    known: list[dict[str, Any]] = field(default_factory=list)
    share: float = 1.0
    past: float = 1.0
    spent: float = 0.0
    a_pass: dict[str, float] = field(default_factory=dict)

    def learn(self, job: Job, images_per_second: float) -> None:
        """Note a job's rate as its kind's, unless that has one."""
        if kind(job) not in self.images:
            self.images[kind(job)] = images_per_second
            if job.work:
                self.a_pass[kind(job)] = operations_a_pass(job)

    def operations_a_second(self, job: Job) -> float | None:
        """How fast a job computes, by its kind or else by the other trainings; None if nothing is known."""
        name = kind_of_forward(job) if job.stage == "geometry" else kind(job)
        if name in self.images:
            return self.images[name] * self.a_pass.get(name, operations_a_pass(job))
        trained = [self.images[name] * a_pass for name, a_pass in self.a_pass.items() if name.startswith("{")]
        return statistics.median(trained) if trained else None


def operations_a_pass(job: Job) -> float:
    """Operations for each image pass of a job, without those that it is tested on."""
    work = job.work
    if not work.looked_at:
        return work.operations / work.passes
    # A frozen encoder's passes are of its head, those that it is tested on are whole.
    if job.spec.get("encoder") == "frozen":
        return (work.operations - work.looked_at * work.forward) / work.passes
    return work.operations / (work.passes + work.looked_at / TRAINING)


def kind(job: Job) -> str:
    """What jobs that run equally fast have in common, as text."""
    if job.stage == "pack":
        return f"pack {digest(dict(job.spec))[:12]}"
    if job.stage in TRAINS:
        return _kind_of_training(job.spec)
    return f"{job.stage} {job.work.forward}" if job.work else job.stage


def kind_of_forward(job: Job) -> str:
    """The kind of the evaluations that pass images through the same model."""
    return f"evaluate {job.work.forward}"


def _kind_of_training(spec: Mapping[str, Any]) -> str:
    keys = ("model", "device", "precision", "target", "pooling", "segmentation_loss")
    picked = {key: spec.get(key) for key in keys} | {"mixed": bool(spec.get("mixup"))}
    if spec["stage"] == "reference":  # a U-Net, whose loss a switch says
        picked |= {"model": spec["image_size"], "segmentation_loss": spec["switches"]["segmentation_loss"]}
    picked["stage"] = "finetune" if spec["stage"] == "tune" else spec["stage"]
    if spec.get("encoder") == "frozen":
        picked |= {"encoder": "frozen", "epochs": spec["train"]["epochs"]}  # over which the tokens' cost is spread
    return canonical_json(picked | {key: spec["train"][key] for key in ("batch_size", "optimizer")})


def _by_kind(all_jobs: Iterable[Job]) -> list[Job]:
    """Jobs so that a kind's first one is what it is called after: a fine-tuning, not the tuning of its rate."""
    return sorted(all_jobs, key=lambda job: job.stage == "tune")


def _title(job: Job) -> str:
    """A kind's name for people, from its first job."""
    name = job.name.split("/")[0] if job.stage in ("intermediate", "pack") else ""
    keys = job.spec.get("cell", {})
    arm = Arm(keys.get("start", BASE.start), keys.get("variant", BASE.variant))
    said = f", {arm.name}" if arm != BASE else ""
    return f"{job.stage} {name}".strip() + said


def is_stored(job: Job, store: Path) -> bool:
    """Whether a pack is in the store."""
    return (stored_pack(job, store) / "manifest.json").exists()


def seconds_of(job: Job, root: Path) -> float | None:
    """What a finished job took, as Snakemake measured it; None if it did not."""
    try:
        took = json.loads(last_lines(job.benchmark(root))[-1], **NUMBERS)["s"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return float(took) if type(took) in (int, float) and took >= 0 else None


def _share_of(job: Job, root: Path) -> float:
    """The share of the cores that a finished job had besides other work, by its record."""
    try:
        return share_in(read_json(root / job.record, "a record")["provenance"])
    except (AttributeError, InputError, LookupError, TypeError):
        return 1.0


def loaded(hours: float, share: float) -> str:
    """What hours become with the other work that runs now, in words; empty on a quiet machine.

    Args:
        hours: on a quiet machine.
        share: see `Rates`.
    """
    return f" ({duration(3600 * hours / share)} with the other work that runs now)" if share < QUIET else ""


def rates_seen(all_jobs: Iterable[Job], root: Path, threads: int, device: str) -> Rates:
    """What a study's finished jobs tell about its speed on a quiet machine: medians over the jobs of a kind.

    The seconds of each are taken times the share of the cores that other work left it, which its provenance says.

    Args:
        all_jobs: see `viny.study.graph.jobs`; a training counts if it had the same model, batch, precision and threads.
        root: the study's folder.
        threads: of a job.
        device: 'cpu' or 'cuda' to leave out what ran elsewhere; 'auto' takes all.
    """
    seen, beside, whole, shares = {}, [], {}, []
    first: dict[str, Job] = {}  # of each kind
    for job in _by_kind(all_jobs):
        if not job.is_done(root):
            continue
        took = seconds_of(job, root)
        if job.stage in ("tune", "reference"):
            rate = _rate_in_record(job, root, threads, device)
            if rate is not None:
                shares.append((took or 0.0, rate[2]))
                first.setdefault(kind(job), job)
                seen.setdefault(kind(job), []).append(rate)
            continue
        if job.stage not in TRAININGS:
            if took is not None and job.stage != "pack":  # a pack may have been in the store already
                shares.append((took, _share_of(job, root)))
                whole.setdefault(kind(job), []).append(took * shares[-1][1])
            continue
        try:
            run = read_json(root / job.outputs[3], "the provenance of a training")
            spec = read_json(root / job.outputs[1], "a weights record")["spec"]
            same = _kind_of_training(spec) == kind(job) and run["threads"] == threads
            if same and (device == "auto" or run["device"].startswith(device)):
                share = share_in(run)
                rate = run["image_passes"] / (run["training_seconds"] * share)
                if rate <= 0:
                    continue
                first.setdefault(kind(job), job)
                seen.setdefault(kind(job), []).append((rate, run.get("host"), share))
                shares.append((took or run["training_seconds"], share))
                # A stacked training's seconds are its share, and its job waited for the others.
                if took is not None and run.get("stacked", 1) == 1 and not run["earlier_attempts"]:
                    beside.append(max(0.0, took - run["training_seconds"]) * share)
        except (InputError, LookupError, TypeError, ZeroDivisionError):
            continue  # no evidence; what is wrong there is for `viny verify` to say
    known = [_known(_title(first[name]), found) for name, found in seen.items()]
    medians = {name: statistics.median(found) for name, found in whole.items()}
    spent = sum(took for took, _ in shares)
    rates = Rates(
        beside=statistics.median(beside) if beside else None,
        whole=medians,
        known=known,
        past=sum(took * share for took, share in shares) / spent if spent else 1.0,
        spent=spent,
    )
    for name, one in zip(seen, known, strict=True):
        rates.learn(first[name], one["images_per_second"])
    return rates


def _rate_in_record(job: Job, root: Path, threads: int, device: str) -> tuple[float, str | None, float] | None:
    """Images per second of a finished tuning or reference, where, and its share of the cores; None if unknown."""
    if job.spec.get("encoder") == "frozen":
        return None  # its tokens are spread over fewer epochs than a fine-tuning's
    try:
        record = read_json(root / job.record, "a record")
        run = record["provenance"]
        if _kind_of_training(record["spec"]) != kind(job) or run["threads"] != threads:
            return None
        if device != "auto" and not run["device"].startswith(device):
            return None
        passes, seconds = run.get("image_passes"), run.get("training_seconds")
        if job.stage == "tune":
            passes, seconds = (sum(one[key] for one in record["rates"]) for key in ("image_passes", "seconds"))
        share = share_in(run)
        return (passes / (seconds * share), run.get("host"), share) if passes > 0 else None
    except (AttributeError, InputError, LookupError, TypeError, ZeroDivisionError):
        return None


def _known(title: str, found: list[tuple[float, str | None, float]]) -> dict[str, Any]:
    hosts = sorted({host for _, host, _ in found if host})
    where = f" on {hosts[0]}" if len(hosts) == 1 else f" on {len(hosts)} machines" if hosts else ""
    jobs_done = f"{counted(len(found), 'finished job')}{where}"
    rate, share = (statistics.median(one[at] for one in found) for at in (0, 2))
    return {"what": title, "images_per_second": rate, "from": f"{jobs_done} {busy(share)}".rstrip()}


def rates_stated(all_jobs: Iterable[Job], rate: float) -> Rates:
    """Rates from that of ViNy's training, in proportion to operations.

    Args:
        all_jobs: see `viny.study.graph.jobs`.
        rate: images of 128 px per second in one training job of ViNy.
    """
    operations = rate * TRAINING * forward_operations(ModelSettings())
    rates = Rates()
    for job in _by_kind(all_jobs):
        if job.work and job.stage != "geometry" and kind(job) not in rates.images:
            a_second = operations / operations_a_pass(job)
            rates.learn(job, a_second)
            rates.known.append({"what": _title(job), "images_per_second": a_second, "from": f"{rate:g} ViNy images/s"})
    return rates


def rates_measured(
    config: Mapping[str, Any],
    all_jobs: list[Job],
    beside: int,
    seconds: float,
    store: Path,
    seen: Rates,
    packed: Collection[Key] = (),
) -> Rates:
    """Measure what finished jobs do not tell, with as many jobs side by side as will run.

    Args:
        config: resolved settings.
        all_jobs: those that the rates are for.
        beside: most processes side by side.
        seconds: for all measurements together.
        store: folder of packs; some images of those that are still to be made are packed as a trial.
        seen: from `rates_seen`, which takes precedence.
        packed: keys of jobs whose packs are there, whatever the store holds.

    Returns:
        The rates, and how much of the cores other work leaves so many processes now.
    """
    from viny.tools.forecast.throughput import Step, measure, share_now

    beside = min(beside, most_beside(all_jobs))
    steps: dict[str, Step] = {}
    first: dict[str, Job] = {}  # of each kind
    by_key = {job.key: job for job in all_jobs}
    labels = round(statistics.mean(config["grid"]["finetune_sizes"]))
    side, classes = config["model"]["image_size"], mask_class_count(config)
    for job in _by_kind(all_jobs):
        name = kind(job)
        if name in steps or name in seen.images or name in seen.whole:
            continue
        if job.stage in TRAINS:
            tunes = job.stage in ("finetune", "tune")
            images = labels if tunes or job.stage == "reference" else job.work.passes // job.spec["train"]["epochs"]
            pixels = next(by_key[key].spec["size"] for key in job.needs if key[0] == "pack")
            spec = {**job.spec, "stage": "finetune"} if tunes else job.spec
            steps[name] = Step(name, spec, max(1, images), pixels, classes=classes)
        elif job.stage == "evaluate":
            of = next(by_key[key] for key in job.needs if key[0] == "finetune")
            steps[name] = Step(name, of.spec, job.work.passes, side, "evaluate", classes)
        elif job.stage == "pack" and job.key not in packed and not is_stored(job, store):
            steps[name] = Step(name, job.spec, 1, job.spec["size"], "pack")
        first[name] = job
    gpus = [] if config["compute"]["device"] == "cpu" else visible_gpus()
    if not steps:
        return seen if gpus else replace(seen, share=share_now(beside))
    with tempfile.TemporaryDirectory() as claims:
        environment = job_environment(gpus, config["compute"]["jobs_per_gpu"], Path(claims))
        threads = config["compute"]["train_threads"]
        found = measure(list(steps.values()), beside, threads, seconds, environment)
    how = f"measured, {beside} side by side" if beside > 1 else "measured"
    known = [{"what": _title(first[k]), "images_per_second": rate, "from": how} for k, rate in found.rates.items()]
    rates = replace(seen, start=found.start, known=[*seen.known, *known], share=found.share)
    for name, rate in found.rates.items():
        rates.learn(first[name], rate)
    return rates
