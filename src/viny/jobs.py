"""The jobs of a study: what the workflow would run, what each leaves behind, and which of them are done.

The workflow's rules say the same in Snakemake's words; a test holds both equal.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from viny import cells as grid
from viny import work
from viny.cells import Cell, Encoder
from viny.errors import InputError
from viny.files import canonical_json, read_json
from viny.work import Work

TRAININGS = ("pretrain", "intermediate", "finetune")
SUMS = ("duplicates", "tables", "figures", "statistics", "representations", "scorecard", "report")
STAGES = ("pack", "split", *TRAININGS, "evaluate", "geometry", *SUMS)  # each needs only those before it
PRIORITIES = {"pack": 3, "split": 3, "pretrain": 2, "intermediate": 1}  # of the workflow; 0 for all others

Key = tuple[str, str]


@dataclass(frozen=True)
class Job:
    """One job of the workflow.

    Attributes:
        stage: the rule.
        name: what its log and its benchmark are called below those of the stage; empty for a rule that runs once.
        outputs: files below the study's folder.
        needs: keys of the jobs whose outputs it reads.
        spec: its stage's settings, see `viny.cells`; empty for those that none is needed of here.
        work: of a training, an evaluation or the geometry.
        target: whether the study asks for its outputs, beside the jobs that read them.
        glances: those of its needs, trainings, of which it reads the curve and the provenance alone.
    """

    stage: str
    name: str
    outputs: tuple[Path, ...]
    needs: tuple[Key, ...]
    spec: Mapping[str, Any]
    work: Work | None = None
    target: bool = True
    glances: frozenset[Key] = frozenset()

    @property
    def key(self) -> Key:
        return self.stage, self.name

    @property
    def label(self) -> str:
        return f"{self.stage} {self.name}".strip()

    @property
    def _leaf(self) -> Path:
        return Path(self.stage, self.name)

    def log(self, root: Path) -> Path:
        return root / "logs" / self._leaf.with_name(f"{self._leaf.name}.log")

    def benchmark(self, root: Path) -> Path:
        """Snakemake's measurements of the job: a line of JSON, with its seconds as `s`."""
        return root / "benchmarks" / self._leaf.with_name(f"{self._leaf.name}.jsonl")

    def checkpoints(self, root: Path) -> Path:
        """Folder of a training's checkpoints; its claim stands beside it."""
        return root / "checkpoints" / self._leaf

    def claim(self, root: Path) -> Path:
        """What a training holds while it is at work."""
        return self.checkpoints(root).with_name(f"{self._leaf.name}.claim")

    def is_done(self, root: Path) -> bool:
        return all((root / output).exists() for output in self.outputs)


def jobs(config: Mapping[str, Any], images: Images) -> list[Job]:
    """Every job of a study, each once, in an order in which they could run.

    Args:
        config: resolved settings.
        images: of `count`.
    """
    found: dict[Key, Job] = {}

    def add(
        stage: str, name: str, outputs: Iterable[Path], needs: Iterable[Key] = (), spec: Any = None, **more: Any
    ) -> Key:
        key = (stage, name)
        if key not in found:
            found[key] = Job(stage, name, tuple(outputs), tuple(dict.fromkeys(needs)), spec or {}, **more)
        return key

    def pack(name: str) -> Key:
        folder = Path("packs", name)
        outputs = (folder / "manifest.json", folder / "images.npy")
        return add("pack", name, outputs, spec=grid.pack_spec(config, name), target=False)

    def split(part: str, subset: str) -> Key:
        of = {"pretrain": "pretrain", "finetune": "segmentation"}.get(part, subset)
        outputs = [Path("splits", part, f"{subset}.{kind}") for kind in ("json", "npz")]
        return add("split", f"{part}/{subset}", outputs, [pack(of)], target=False)

    def training(stage: str, name: str, of: str, subset: Key, parent: list[Key], spec: Any, amount: Work) -> Key:
        weights = "model" if stage == "finetune" else "encoder"
        outputs = [Path(stage, name, f) for f in (f"{weights}.safetensors", f"{weights}.json", "curve.csv", "run.json")]
        return add(stage, name, outputs, [pack(of), subset, *parent], spec, work=amount, target=False)

    def pretrained(size: int, seed: int) -> list[Key]:
        if not size:
            return []
        leaf = f"size-{size}_seed-{seed}"
        spec, amount = grid.pretrain_spec(config, size, seed), work.pretrain_work(config, size)
        return [training("pretrain", leaf, "pretrain", split("pretrain", leaf), [], spec, amount)]

    def encoder(size: int, task: str, seed: int) -> list[Key]:
        if task == "none":
            return pretrained(size, seed)
        name = f"{task}/size-{size}_seed-{seed}"
        spec = grid.intermediate_spec(config, task, size, seed)
        amount = work.intermediate_work(config, task, images.trained[task])
        return [training("intermediate", name, task, split("intermediate", task), pretrained(size, seed), spec, amount)]

    def subset(size: int, seed: int) -> Key:
        return split("finetune", f"size-{size}_seed-{seed}")

    def finetuned(cell: Cell) -> Key:
        parent = encoder(cell.pretrain_size, cell.intermediate, cell.seed)
        spec, amount = grid.finetune_spec(config, cell), work.finetune_work(config, cell.finetune_size)
        return training(
            "finetune", cell.name, "segmentation", subset(cell.finetune_size, cell.seed), parent, spec, amount
        )

    def both(folder: str, name: str) -> list[Path]:
        return [Path(folder, f"{name}.{kind}") for kind in ("json", "npz")]

    def measured(one: Encoder) -> Key:
        reference = pretrained(one.pretrain_size, one.seed)
        own = {
            "finetuned": lambda: [finetuned(Cell(one.pretrain_size, one.intermediate, one.finetune_size, one.seed))],
            "intermediate": lambda: encoder(one.pretrain_size, one.intermediate, one.seed),
        }.get(one.kind, lambda: reference)()
        needs = [pack("segmentation"), subset(grid.probe_size(config), one.seed), *reference, *own]
        return add("geometry", one.name, both("geometry", one.name), needs, work=work.geometry_work(config))

    all_cells = grid.cells(config)
    evaluated = []
    for cell in all_cells:
        needs = [pack("segmentation"), subset(cell.finetune_size, cell.seed), finetuned(cell)]
        amount = work.evaluate_work(config, images.tested)
        evaluated.append(add("evaluate", cell.name, both("metrics", cell.name), needs, work=amount))
    geometries = [measured(one) for one in grid.encoders(config)]
    if all_cells:
        _sums(config, add, pack, split, list(found), evaluated, geometries)
    return sorted(found.values(), key=lambda job: STAGES.index(job.stage))


def _sums(config: Any, add: Any, pack: Any, split: Any, before: list[Key], evaluated: list[Key], measured: list[Key]):
    """The jobs that sum a study up."""

    def tables(names: Iterable[str]) -> list[Path]:
        return [Path("tables", name) for name in names]

    def figures(names: Iterable[str]) -> list[Path]:
        return [Path("figures", f"{name}.{kind}") for name in names for kind in ("pdf", "png")]

    spec = grid.duplicates_spec(config)
    searched = [pack(name) for name in grid.searched_packs(spec)]
    searched += [split(*one) for one in grid.searched_splits(spec)]
    trained = [key for key in before if key[0] in TRAININGS]
    shown = grid.shown_cells(config)
    labels = split("finetune", f"size-{shown[-1].finetune_size}_seed-{shown[-1].seed}")
    drawn = {("finetune", cell.name) for cell in shown}
    drawn.add(("pretrain", f"size-{max(config['grid']['pretrain_sizes'])}_seed-{config['grid']['seeds'][0]}"))
    made = [
        add("duplicates", "", tables(grid.DUPLICATES_TABLES), searched),
        add("tables", "", tables(grid.TABLES), evaluated),
        add(
            "figures",
            "",
            figures(grid.figure_names(config)),
            [*evaluated, *trained, pack("segmentation"), labels],
            glances=frozenset(trained) - drawn,
        ),
        add(
            "statistics",
            "",
            [*tables(grid.STATISTICS_TABLES), *figures(grid.STATISTICS_FIGURES)],
            [*evaluated, *trained],
            glances=frozenset(trained),
        ),
        add("scorecard", "", tables(grid.SCORECARD_TABLES), [*evaluated, *measured]),
    ]
    if measured:
        outputs = [*tables(grid.REPRESENTATIONS_TABLES), *figures(grid.REPRESENTATIONS_FIGURES)]
        made.append(add("representations", "", outputs, [*measured, *evaluated]))
    add("report", "", [Path("report.html")], made)


class Records:
    """The JSON files of a study's folder; each is read again only when it was written anew."""

    def __init__(self) -> None:
        self._read: dict[Path, tuple[tuple[int, int], dict[str, Any]]] = {}

    def __call__(self, path: Path) -> dict[str, Any]:
        """What a file holds; nothing where it is missing or damaged, which is for `viny verify` to say."""
        try:
            about = path.stat()
            version = (about.st_mtime_ns, about.st_size)
            if path not in self._read or self._read[path][0] != version:
                found = read_json(path, "a record")
                self._read[path] = version, found if isinstance(found, dict) else {}
            return self._read[path][1]
        except (OSError, InputError):
            return {}


def out_of_date(all_jobs: Iterable[Job], root: Path, records: Records | None = None) -> set[Key]:
    """Keys of the jobs whose outputs tell that they were made from something else than what is there now.

    A pack from another listing of its folder than its job has; a split, a training, an evaluation or a geometry from
    another pack, split or weights than those in the study's folder. What depends on these is not in it.

    Args:
        all_jobs: of `jobs`, from settings with `listings`, see `viny.listings.with_listings`.
        root: the study's folder.
        records: those read before, where this is asked again and again.
    """
    records = records or Records()
    by_key = {job.key: job for job in all_jobs}
    return {
        key
        for key, job in by_key.items()
        if any(None not in (was, now) and was != now for was, now in _sources(job, by_key, root, records))
    }


def _sources(
    job: Job, by_key: Mapping[Key, Job], root: Path, records: Records
) -> Iterable[tuple[str | None, str | None]]:
    """What a job's outputs say that they were made from, and what is there now; None for unknown."""
    if job.stage in SUMS:
        return
    mine = records(root / job.outputs[1 if job.stage in TRAININGS else 0])
    if job.stage == "pack":
        if mine and "listing" in job.spec:
            yield mine.get("listing", ""), job.spec["listing"]
        return
    hashes = mine.get("hashes", {})  # of metrics and geometry
    for key in job.needs:
        of = records(root / by_key[key].outputs[1 if key[0] in TRAININGS else 0])
        if key[0] == "pack":
            yield mine.get("pack_sha256", hashes.get("pack")), of.get("sha256")
        elif key[0] == "split":
            yield mine.get("split_sha256"), of.get("parts", {}).get("train", {}).get("sha256")
        else:
            # The geometry names its encoder, the last of those that it needs, and that one's reference.
            name = "weights" if key == job.needs[-1] else "reference_weights"
            yield mine.get("parent_sha256", hashes.get(name)), of.get("weights_sha256")


def to_do(all_jobs: Iterable[Job], root: Path, stale: Iterable[Key] = ()) -> list[Job]:
    """The jobs that a run would do, as far as the files that are there tell.

    A job is done again where an output is missing that the study or another job wants, where it is out of date, or
    where a job that it needs is done. Changed settings, code or file times may want more; `snakemake -n` knows them.

    Args:
        all_jobs: of `jobs`.
        root: the study's folder, results/<study>.
        stale: keys of jobs that are out of date, of `out_of_date`.
    """
    in_order = list(all_jobs)
    missing = {job.key for job in in_order if not job.is_done(root)}
    unseen = {job.key for job in in_order if not all((root / output).exists() for output in job.outputs[2:])}
    wanted = {job.key for job in in_order if job.target and job.key in missing} | set(stale)
    while True:
        before = len(wanted)
        for job in reversed(in_order):
            if job.key in wanted:
                wanted |= missing.intersection(job.needs) - (job.glances - unseen)
        for job in in_order:
            # A file that is made anew is newer than what was made from it.
            if wanted.intersection(job.needs):
                wanted.add(job.key)
        if len(wanted) == before:
            return [job for job in in_order if job.key in wanted]


@dataclass(frozen=True)
class Images:
    """How many images there are; None where that is not known.

    Attributes:
        packed: by pack ('pretrain', 'segmentation' or a task), as the data set on disk has them.
        trained: by intermediate task, those that it trains on.
        room: labelled images beside the test images.
        tested: test images.
        given: labelled images of the training and of the test part that a file gives.
    """

    packed: dict[str, int | None]
    trained: dict[str, int | None]
    room: int | None
    tested: int
    given: tuple[int, int] | None

    @property
    def limits(self) -> dict[str, int | None]:
        """What `viny.config.check_sizes` wants to know."""
        return self.packed | (dict(zip(("train", "test"), self.given, strict=True)) if self.given else {})


def count(config: Mapping[str, Any], root: Path) -> Images:
    """Count a study's images: as its splits say, else as the data sets on disk do.

    Args:
        config: resolved settings.
        root: the study's folder, which need not be there.

    Raises:
        InputError: a folder of the user's own is there, and something in it is not as it must be.
    """
    specs = {name: grid.pack_spec(config, name) for name in ("pretrain", "segmentation", *config["intermediate"])}
    found = {text: _parts(json.loads(text)) for text in {canonical_json(spec) for spec in specs.values()}}
    parts = {name: found[canonical_json(spec)] for name, spec in specs.items()}
    packed = {name: sum(two) if two else None for name, two in parts.items()}
    tested, own = config["segmentation"]["test_size"], parts["segmentation"]
    given = own if grid.split_is_given(config) else None
    if given:
        room, tested = given[0], tested or given[1]
    else:
        room = sum(own) - tested if own else None
    trained = {task: _trained(config, task, root, parts[task], room) for task in config["intermediate"]}
    return Images(packed, trained, room, tested, given)


def _parts(spec: Mapping[str, Any]) -> tuple[int, int] | None:
    """Images of a data set's training part and of the others; None where it is not there."""
    if spec["source"] == "synthetic":
        held_out = sum(i * 5 // spec["count"] == 4 for i in range(spec["count"]))  # as `viny.data.packing` has it
        return spec["count"] - held_out, held_out
    from viny.data.pack import TRAIN
    from viny.data.sources import list_source

    try:
        listing = list_source(spec)
    except InputError:
        if spec["source"] == "folder" and Path(spec["path"]).is_dir():
            raise
        return None
    training = listing.parts.count(TRAIN) if listing.parts else len(listing.images)
    return training, len(listing.images) - training


def _trained(
    config: Mapping[str, Any], task: str, root: Path, parts: tuple[int, int] | None, room: int | None
) -> int | None:
    spec = grid.task_split_spec(config, task)
    try:
        record = read_json(grid.split_record(root, "intermediate", task), "a split record")
        if {**record["spec"], "code": None} == {**spec, "code": None}:
            return record["parts"]["train"]["count"]
    except (InputError, KeyError, TypeError):
        pass  # no split yet, or another study's
    if spec.get("pool") == "training" and spec["test_set"] == "fixed":
        return room
    return parts[0] if parts else None
