"""Where each result is below results/<study>, and which trainings are behind a cell.

Each path is written once, as a pattern: the workflow's rules use it as is, and the library fills it in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from viny.study.grid import (
    RANDOM,
    STAGE_OF,
    STUDY,
    VARIANT,
    Arm,
    Cell,
    Encoder,
    Reference,
    cells,
    failing_pair,
    has_arms,
    pretrain_pack,
    reconstructed,
)

MANIFEST = "packs/{pack}/manifest.json"
IMAGES = "packs/{pack}/images.npy"
SPLIT = "splits/{part}/{subset}.json"
INDICES = "splits/{part}/{subset}.npz"
SUBSET = "size-{size}_seed-{seed}"
ENCODER = f"{SUBSET}{{arm}}"  # of a start and a variant, see `grid.Arm.suffix`
FOLDERS = {
    "pretrain": f"pretrain/{ENCODER}",
    "intermediate": f"intermediate/{{task}}/{ENCODER}",
    "finetune": "finetune/{cell}",
}
TRAININGS = tuple(FOLDERS)
# The files that a training leaves in its folder, by the stage's names for them.
TRAINED = {
    stage: {
        "weights": f"{FOLDERS[stage]}/{stem}.safetensors",
        "record": f"{FOLDERS[stage]}/{stem}.json",
        "curve": f"{FOLDERS[stage]}/curve.csv",
        "run": f"{FOLDERS[stage]}/run.json",
    }
    for stage, stem in (("pretrain", "encoder"), ("intermediate", "encoder"), ("finetune", "model"))
}
START = {"weights": "starts/{start}/encoder.safetensors", "record": "starts/{start}/encoder.json"}
TUNING = "tuning/{cell}.json"
REFERENCE = {  # of a U-Net: its metrics, weights, confusion matrices and learning curve
    "record": "references/{reference}.json",
    "weights": "references/{reference}.safetensors",
    "confusion": "references/{reference}.npz",
    "curve": "references/{reference}.csv",
}
METRICS = "metrics/{cell}.json"
CONFUSION = "metrics/{cell}.npz"
SCORES = "scores/{cell}.csv"  # of each test image
GEOMETRY = "geometry/{encoder}.json"
GEOMETRY_ARRAYS = "geometry/{encoder}.npz"
TABLE = "tables/{name}"
FIGURE = "figures/{name}.{kind}"
FIGURE_KINDS = ("pdf", "png")
REPORT = "report.html"
SUMMARY = "summaries/{stage}.json"  # the record of a job that summarises the study: what it read and wrote
# Beside the results, by job: the rule, then the name of what it makes.
LOG = "logs/{job}.log"
BENCHMARK = "benchmarks/{job}.jsonl"
CHECKPOINTS = "checkpoints/{job}"  # not a rule's output: Snakemake deletes a killed job's outputs

SUMMARIES = ("duplicates", "tables", "figures", "statistics", "representations", "scorecard", "report")
# Names of the tables and figures that the rules that summarise a study write.
TABLES = (
    *("metrics.csv", "summary.csv", "paired_differences.csv"),
    *(f"{table}.{kind}" for table in ("table1", "tableA1", "tableA2", "tableA3") for kind in ("csv", "md")),
)
DUPLICATES_TABLES = ("duplicates.csv", "duplicates.md")
STATISTICS_TABLES = (
    *(f"{name}.{kind}" for name in ("decisions", "effects", "fits", "transfer") for kind in ("csv", "md")),
    *("marginal_gains.csv", "costs.csv", "next_steps.md"),
)
STATISTICS_FIGURES = ("effects", "returns", "transfer", "costs")
ARMS_TABLES = ("arms.csv", "arms.md", "arm_decisions.csv")  # where there are several
ARMS_FIGURES = ("arms",)
HELD_OUT_TABLES = ("held_out.csv", "held_out.md")  # where pre-training holds images out
HELD_OUT_FIGURES = ("held_out",)
REFERENCES_TABLES = ("references.csv", "references.md")  # where there are references
REPRESENTATIONS_TABLES = (
    *(f"{name}.{kind}" for name in ("geometry", "table2", "harm_correlation") for kind in ("csv", "md")),
    "harm.csv",
)
REPRESENTATIONS_FIGURES = ("geometry_layers", "geometry_similarity", "geometry_heat_maps", "geometry_harm")
SCORECARD_TABLES = ("scorecard.csv", "scorecard.md")


def summarised(stage: str, config: Mapping[str, Any]) -> list[Path]:
    """What a job that summarises a study makes, below the study's folder, besides its record.

    Args:
        stage: one of `SUMMARIES`.
        config: resolved settings, or the stage's own.
    """
    tables: dict[str, Any] = {
        "duplicates": DUPLICATES_TABLES,
        "tables": TABLES,
        "representations": REPRESENTATIONS_TABLES,
        "scorecard": SCORECARD_TABLES,
    }
    figures: dict[str, tuple[str, ...]] = {"representations": REPRESENTATIONS_FIGURES}
    if stage == "statistics":
        tables[stage], figures[stage] = statistics_tables(config), statistics_figures(config)
    names = figure_names(config) if stage == "figures" else figures.get(stage, ())
    made = [TABLE.format(name=name) for name in tables.get(stage, ())]
    made += [FIGURE.format(name=name, kind=kind) for name in names for kind in FIGURE_KINDS]
    return [Path(name) for name in [*made, *([REPORT] if stage == "report" else [])]]


def held_out_curves(config: Mapping[str, Any]) -> bool:
    """Whether learning curves of pre-training hold the loss on held-out images, by a study's or a stage's settings."""
    if "pretrain" not in config:
        return config.get("held_out", False)
    return config["pretrain"].get("held_out", 0) > 0 and max(config["grid"]["pretrain_sizes"]) > 0


def statistics_tables(config: Mapping[str, Any]) -> tuple[str, ...]:
    further = ARMS_TABLES * has_arms(config) + HELD_OUT_TABLES * held_out_curves(config)
    return STATISTICS_TABLES + further + REFERENCES_TABLES * bool(config.get("references"))


def statistics_figures(config: Mapping[str, Any]) -> tuple[str, ...]:
    return STATISTICS_FIGURES + ARMS_FIGURES * has_arms(config) + HELD_OUT_FIGURES * held_out_curves(config)


def figure_names(config: Mapping[str, Any]) -> list[str]:
    """The figures of the study itself, below figures/."""
    names = ["pipeline", "miou_curves", "miou_difference", "learning_curves", "segmentation", "worst"]
    names += ["failures"] if failing_pair(config) else []
    return [*names, "reconstructions"] if reconstructed(config) else names


def subset(size: int, seed: int, variant: str = STUDY) -> str:
    """Name of the subset of images that a training of that size and seed uses.

    `variant`: whose unlabelled images it is of.
    """
    return SUBSET.format(size=size, seed=seed) + Arm(variant=variant).suffix


def pack_of_split(part: str, subset: str) -> str:
    """The pack that a split chooses from; for an intermediate task the task's own."""
    if part == "pretrain":
        return pretrain_pack(parse_subset(subset)[2])
    return "segmentation" if part == "finetune" else task_of_subset(subset)[0]


def parse_subset(name: str) -> tuple[int, int, str]:
    """Size and seed of a subset, and the variant whose unlabelled images it is of."""
    found = re.fullmatch(rf"size-(\d+)_seed-(\d+){VARIANT}", name)
    assert found is not None, name
    return int(found[1]), int(found[2]), found[3] or STUDY


def task_subset(task: str, images: int | None) -> str:
    """Name of the subset of a task's images that it trains on; None for all."""
    return task if images is None else f"{task}-{images}"


def task_of_subset(subset: str) -> tuple[str, int | None]:
    """A task and how many images it trains on, by the name of its subset; None for all."""
    task, _, images = subset.partition("-")
    return task, int(images) if images else None


def searched_packs(spec: Mapping[str, Any]) -> list[str]:
    """Packs to search for duplicates, by `specs.duplicates_spec`; the test images' pack first."""
    unlabelled = ["pretrain"] if spec["pretrain"] else []
    return ["segmentation", *unlabelled, *spec.get("further", []), *spec["tasks"]]


def searched_splits(spec: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Part and subset of the splits that say which images in those packs are trained or tested on."""
    found = [("finetune", subset(size, seed)) for size in spec["finetune_sizes"] for seed in spec["seeds"]]
    return found + [("intermediate", task) for task in spec["tasks"]]  # all images of a task, whatever it trains on


def pack_manifest(root: Path, name: str) -> Path:
    return root / MANIFEST.format(pack=name)


def split_record(root: Path, part: str, subset: str) -> Path:
    """Record of a split; its index lists are beside it as npz."""
    return root / SPLIT.format(part=part, subset=subset)


def split_files(config: Mapping[str, Any]) -> list[Path]:
    """Records and index lists of a study's splits, below its folder."""
    splits = dict.fromkeys(training.split for training in trainings(cells(config)))
    patterns = (SPLIT, INDICES)
    return [Path(pattern.format(part=part, subset=one)) for part, one in splits for pattern in patterns]


def metrics_file(root: Path, cell: Cell) -> Path:
    """A cell's metrics; its confusion matrices are beside them as npz."""
    return root / METRICS.format(cell=cell.name)


def reference_file(root: Path, reference: Reference, what: str) -> Path:
    """The record, the weights, the confusion matrices or the curve of a reference."""
    return root / REFERENCE[what].format(reference=reference.name)


def trained_models(root: Path) -> list[str]:
    """Names of the cells and references whose models are there."""
    found = [path.parent.name for path in root.glob(TRAINED["finetune"]["record"].format(cell="*"))]
    return sorted(found) + sorted(path.stem for path in root.glob(REFERENCE["weights"].format(reference="*")))


def reference_split(reference: Reference) -> tuple[str, str]:
    """Part and subset of a reference's images, which are those of the cells beside it."""
    return "finetune", subset(reference.finetune_size, reference.seed)


def geometry_file(root: Path, encoder: Encoder) -> Path:
    """An encoder's geometry as numbers; arrays for figures are beside it as npz."""
    return root / GEOMETRY.format(encoder=encoder.name)


@dataclass(frozen=True)
class Training:
    """One training job.

    Attributes:
        stage: pretrain, intermediate or finetune.
        key: what tells it apart from the others of its stage, as in its record's `cell`.
        pack: the pack it learns from.
        split: part and subset of its images.
        parent: the training whose weights it starts from; None for a start.
        published: whether that start has weights of its own, see `START`; they are its parent's then.
    """

    stage: str
    key: Cell | tuple[tuple[str, Any], ...]
    pack: str
    split: tuple[str, str]
    parent: Training | None = None
    published: bool = False

    @property
    def cell(self) -> dict[str, Any]:
        """`key` as in the training's record."""
        return self.key.as_dict() if isinstance(self.key, Cell) else dict(self.key)

    @property
    def arm(self) -> Arm:
        cell = self.cell
        return Arm(cell.get("start", RANDOM), cell.get("variant", STUDY))

    @property
    def name(self) -> str:
        """Its folder's name below the stage's."""
        return self._fill(FOLDERS[self.stage]).partition("/")[2]

    def folder(self, root: Path) -> Path:
        return root / self._fill(FOLDERS[self.stage])

    def file(self, root: Path, what: str) -> Path:
        """Its weights, record, curve or run."""
        return root / self._fill(TRAINED[self.stage][what])

    def files(self) -> tuple[Path, ...]:
        """Its weights, record, curve and run, in this order, relative to the study's folder."""
        return tuple(self.file(Path(), what) for what in TRAINED[self.stage])

    def origin(self, root: Path, what: str) -> Path | None:
        """Weights or record that it starts from, of its parent or its start; None if these are drawn."""
        if self.parent is not None:
            return self.parent.file(root, what)
        return start_file(root, self.arm.start, what) if self.published else None

    def _fill(self, pattern: str) -> str:
        cell = self.cell
        return pattern.format(
            cell=cell.get("name"),
            task=cell.get("intermediate"),
            size=cell["pretrain_size"],
            seed=cell["seed"],
            arm=self.arm.suffix,
        )


def start_file(root: Path, start: str, what: str) -> Path:
    """The weights or the record of a published start."""
    return root / START[what].format(start=start)


def chain(cell: Cell) -> list[Training]:
    """The trainings behind a cell, parents first: pre-training, intermediate tasks, fine-tuning."""
    size, seed, shared = cell.pretrain_size, cell.seed, cell.shared
    made: list[Training] = []

    def add(stage: str, key: Any, pack: str, split: tuple[str, str]) -> None:
        made.append(Training(stage, key, pack, split, made[-1] if made else None, shared.published and not made))

    def key(variant: str, **first: Any) -> tuple[tuple[str, Any], ...]:
        return tuple({**first, "pretrain_size": size, "seed": seed, **Arm(cell.start, variant).as_dict()}.items())

    if size:
        images = pretrain_pack(shared.pack), ("pretrain", subset(size, seed, shared.pack))
        add("pretrain", key(shared.pretrain), *images)
    for task, variant, count in shared.tasks:
        add("intermediate", key(variant, intermediate=task), task, ("intermediate", task_subset(task, count)))
    add("finetune", cell, "segmentation", ("finetune", subset(cell.finetune_size, seed)))
    return made


def trainings(cells: Iterable[Cell]) -> list[Training]:
    """Every training that the given cells need, each once, parents before children."""
    return list(dict.fromkeys(training for cell in cells for training in chain(cell)))


def training_of(encoder: Encoder) -> Training | None:
    """The training that produced an encoder; None for a start."""
    stage = STAGE_OF.get(encoder.kind)
    found = [training for training in chain(encoder.cell) if training.stage == stage]
    return found[-1] if found else None


def reference_of(encoder: Encoder) -> Training | None:
    """The pre-training that an encoder goes back to; None for a start."""
    found = [training for training in chain(encoder.cell) if training.stage == "pretrain"]
    return found[0] if found else None


def made_of(encoder: Encoder, training: Training | None, root: Path, what: str) -> Path | None:
    """Weights or record of an encoder that a training, or its start, brought; None if these are drawn."""
    if training is not None:
        return training.file(root, what)
    return start_file(root, encoder.start, what) if encoder.cell.shared.published else None


def published(cells: Iterable[Cell]) -> list[str]:
    """The starts with weights of their own that the given cells need."""
    return list(dict.fromkeys(cell.start for cell in cells if cell.shared.published))
