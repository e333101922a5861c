"""The jobs of a study: what the workflow runs, what each job needs and what it leaves behind.

The workflow's rules say the same in Snakemake's terms; a test keeps the two equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from viny.learning.progress import PROGRESS
from viny.runtime.claims import claim_beside
from viny.study import grid, layout, specs
from viny.study.arms import settings_of
from viny.study.grid import Cell, Encoder
from viny.study.inventory import Images
from viny.study.layout import SUMMARIES, TRAININGS, Training
from viny.study.specs import training_spec
from viny.study.workload import (
    Workload,
    evaluate_workload,
    geometry_workload,
    reference_workload,
    training_workload,
    tune_workload,
)

# Each needs only those before it.
STAGES = (
    *("pack", "split", "start", *TRAININGS[:-1], "tune", TRAININGS[-1]),
    *("evaluate", "reference", "geometry", *SUMMARIES),
)
TRAINS = (*TRAININGS, "tune", "reference")  # stages whose time goes into training steps
# In the workflow; 0 for all others.
PRIORITIES = dict.fromkeys(("pack", "split", "start", "evaluate"), 3) | {"pretrain": 2, "intermediate": 1}

Key = tuple[str, str]


@dataclass(frozen=True)
class Job:
    """One job of the workflow.

    Attributes:
        stage: the rule.
        name: what its log and its benchmark are called below the stage's; empty for a rule that runs once.
        outputs: files below the study's folder.
        needs: keys of the jobs whose outputs it reads.
        spec: its stage's settings, see `viny.study.specs`, without the fingerprint of its code.
        work: how much work it is, for a training, an evaluation or the geometry.
        target: whether the study itself asks for its outputs, not only the jobs that read them: all but the packs'.
    """

    stage: str
    name: str
    outputs: tuple[Path, ...]
    needs: tuple[Key, ...]
    spec: Mapping[str, Any]
    work: Workload | None = None
    target: bool = True

    @property
    def key(self) -> Key:
        return self.stage, self.name

    @property
    def label(self) -> str:
        return f"{self.stage} {self.name}".strip()

    @property
    def record(self) -> Path:
        """The output that says what the job was asked and what it was made from, in JSON."""
        return self.outputs[1 if self.stage in (*TRAININGS, "start") else -1 if self.stage in SUMMARIES else 0]

    def log(self, root: Path) -> Path:
        return self._beside(root, layout.LOG)

    def benchmark(self, root: Path) -> Path:
        """Snakemake's measurements of the job: a line of JSON, with its seconds as `s`."""
        return self._beside(root, layout.BENCHMARK)

    def checkpoints(self, root: Path) -> Path:
        """Folder of a training's checkpoints; its claim is beside it."""
        return self._beside(root, layout.CHECKPOINTS)

    def progress(self, root: Path) -> Path:
        """What a training says of how far it is, see `viny.learning.progress`."""
        return self.checkpoints(root) / PROGRESS

    def claim(self, root: Path) -> Path:
        """The claim that a training holds while it runs."""
        return claim_beside(self.checkpoints(root))

    def _beside(self, root: Path, pattern: str) -> Path:
        return root / pattern.format(job=f"{self.stage}/{self.name}".rstrip("/"))

    def is_done(self, root: Path) -> bool:
        return all((root / output).exists() for output in self.outputs)


def jobs(config: Mapping[str, Any], images: Images) -> list[Job]:
    """Every job of a study, each once, in an order in which they could run.

    Args:
        config: resolved settings.
        images: what `count_images` returns.
    """
    found: dict[Key, Job] = {}

    def add(
        stage: str, name: str, outputs: Iterable[Path], needs: Iterable[Key], spec: Mapping[str, Any], **more: Any
    ) -> Key:
        key = (stage, name)
        if key not in found:
            found[key] = Job(stage, name, tuple(outputs), tuple(dict.fromkeys(needs)), spec, **more)
        return key

    def pack(name: str) -> Key:
        outputs = (Path(pattern.format(pack=name)) for pattern in (layout.MANIFEST, layout.IMAGES))
        return add("pack", name, outputs, [], specs.pack_spec(config, name), target=False)

    def split(part: str, subset: str) -> Key:
        outputs = (Path(pattern.format(part=part, subset=subset)) for pattern in (layout.SPLIT, layout.INDICES))
        needs, spec = [pack(layout.pack_of_split(part, subset))], specs.split_spec(config, part, subset)
        return add("split", f"{part}/{subset}", outputs, needs, spec)

    def start(name: str) -> Key:
        outputs = [layout.start_file(Path(), name, what) for what in layout.START]
        return add("start", name, outputs, [], specs.start_spec(config, name))

    def origin(training: Training) -> list[Key]:
        """The job that a training's first weights come from; none if they are drawn."""
        if training.parent is not None:
            return trained(training.parent)
        return [start(training.arm.start)] if training.published else []

    def tunings(cell: Cell) -> list[Key]:
        """The jobs that score the rates of a cell and of its other seeds; none if it takes the study's rate."""
        if not specs.is_tuned(settings_of(config, cell.arm)):
            return []
        return [tuned(one) for one in by_group[cell.group]]

    def tuned(cell: Cell) -> Key:
        needs, work = read_by(layout.chain(cell)[-1]), tune_workload(config, cell.finetune_size, cell.arm)
        return add("tune", cell.name, both(cell.name, layout.TUNING), needs, specs.tune_spec(config, cell), work=work)

    def read_by(training: Training) -> list[Key]:
        return [pack(training.pack), split(*training.split), *origin(training)]

    def trained(training: Training | None) -> list[Key]:
        """A training's job and, before it, its parent's; none for a random start."""
        if training is None:
            return []
        needs = read_by(training)
        if isinstance(training.key, Cell):
            needs += tunings(training.key)
        spec, work = training_spec(config, training), training_workload(config, training, images.trained)
        return [add(training.stage, training.name, training.files(), needs, spec, work=work)]

    def brought(one: Encoder, training: Training | None) -> list[Key]:
        """The job that made an encoder, or brought its start; none if that is drawn."""
        if training is not None:
            return trained(training)
        return [start(one.start)] if one.cell.shared.published else []

    def subset(size: int, seed: int) -> Key:
        return split("finetune", layout.subset(size, seed))

    def both(name: str, *patterns: str) -> list[Path]:
        return [Path(pattern.format(cell=name, encoder=name)) for pattern in patterns]

    def measured(one: Encoder) -> Key:
        reference, own = (brought(one, of(one)) for of in (layout.reference_of, layout.training_of))
        needs = [pack("segmentation"), subset(grid.probe_size(config), one.seed), *reference, *own]
        outputs = both(one.name, layout.GEOMETRY, layout.GEOMETRY_ARRAYS)
        spec = specs.geometry_spec(config, one)
        return add("geometry", one.name, outputs, needs, spec, work=geometry_workload(config, one.cell.arm))

    def referred(one: grid.Reference) -> Key:
        outputs = [layout.reference_file(Path(), one, what) for what in layout.REFERENCE]
        needs, spec = [pack("segmentation"), split(*layout.reference_split(one))], specs.reference_spec(config, one)
        work = reference_workload(config, one.finetune_size, images.tested)
        return add("reference", one.name, outputs, needs, spec, work=work)

    all_cells = grid.cells(config)
    by_group = grid.by_group(all_cells)
    evaluated = []
    for cell in all_cells:
        needs = [pack("segmentation"), subset(cell.finetune_size, cell.seed), *trained(layout.chain(cell)[-1])]
        outputs = both(cell.name, layout.METRICS, layout.CONFUSION, layout.SCORES)
        work = evaluate_workload(config, images.tested, cell.arm)
        evaluated.append(add("evaluate", cell.name, outputs, needs, specs.evaluate_spec(config, cell), work=work))
    references = [referred(one) for one in grid.references(config)]
    geometries = [measured(one) for one in grid.encoders(config)]
    if all_cells:
        _summaries(config, add, pack, split, list(found), evaluated, references, geometries)
    return sorted(found.values(), key=lambda job: STAGES.index(job.stage))


def _summaries(
    config: Any,
    add: Any,
    pack: Any,
    split: Any,
    before: list[Key],
    evaluated: list[Key],
    references: list[Key],
    measured: list[Key],
):
    """The jobs that summarise a study."""

    def summary(stage: str, needs: Iterable[Key]) -> Key:
        outputs = [*layout.summarised(stage, config), Path(layout.SUMMARY.format(stage=stage))]
        return add(stage, "", outputs, needs, specs.summary_spec(config, stage))

    spec = specs.duplicates_spec(config)
    searched = [pack(name) for name in layout.searched_packs(spec)]
    searched += [split(*one) for one in layout.searched_splits(spec)]
    trained = [key for key in before if key[0] in TRAININGS]
    tunings = [key for key in before if key[0] == "tune"]
    shown = grid.shown_cells(config)
    labels = split("finetune", layout.subset(shown[-1].finetune_size, shown[-1].seed))
    made = [
        summary("duplicates", searched),
        summary("tables", evaluated),
        summary("figures", [*evaluated, *references, *trained, pack("segmentation"), labels]),
        summary("statistics", [*evaluated, *references, *trained, *tunings]),
        summary("scorecard", [*evaluated, *measured]),
    ]
    if measured:
        made.append(summary("representations", [*measured, *evaluated]))
    summary("report", [*made, *evaluated, *trained, *tunings, pack("segmentation")])


def up_to(all_jobs: Iterable[Job], targets: Iterable[str]) -> set[Key]:
    """Keys of the jobs that a run of some targets may do: those that make them, and all that these need.

    Args:
        all_jobs: what `jobs` returns.
        targets: stages, files below the study's folder, or 'all'.
    """
    names = set(targets)
    by_key = {job.key: job for job in all_jobs}
    todo = [job.key for job in by_key.values() if {"all", job.stage, *map(str, job.outputs)} & names]
    found: set[Key] = set()
    while todo:
        key = todo.pop()
        if key not in found:
            found.add(key)
            todo += by_key[key].needs
    return found
