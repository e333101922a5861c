"""Where each result is below results/<study>, and which trainings are behind a cell.

Each path is written once, as a pattern: the workflow's rules use it as is, and the library fills it in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from viny.study.grid import STAGE_OF, Cell, Encoder, cells, failing_pair

MANIFEST = "packs/{pack}/manifest.json"
IMAGES = "packs/{pack}/images.npy"
SPLIT = "splits/{part}/{subset}.json"
INDICES = "splits/{part}/{subset}.npz"
SUBSET = "size-{size}_seed-{seed}"
FOLDERS = {
    "pretrain": f"pretrain/{SUBSET}",
    "intermediate": f"intermediate/{{task}}/{SUBSET}",
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
METRICS = "metrics/{cell}.json"
CONFUSION = "metrics/{cell}.npz"
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
        config: resolved settings, or the stage's own; only that of the figures is looked at.
    """
    tables = {
        "duplicates": DUPLICATES_TABLES,
        "tables": TABLES,
        "statistics": STATISTICS_TABLES,
        "representations": REPRESENTATIONS_TABLES,
        "scorecard": SCORECARD_TABLES,
    }
    figures = {"statistics": STATISTICS_FIGURES, "representations": REPRESENTATIONS_FIGURES}
    names = figure_names(config) if stage == "figures" else figures.get(stage, ())
    made = [TABLE.format(name=name) for name in tables.get(stage, ())]
    made += [FIGURE.format(name=name, kind=kind) for name in names for kind in FIGURE_KINDS]
    return [Path(name) for name in [*made, *([REPORT] if stage == "report" else [])]]


def figure_names(config: Mapping[str, Any]) -> list[str]:
    """The figures of the study itself, below figures/."""
    names = ["pipeline", "miou_curves", "miou_difference", "learning_curves", "segmentation"]
    names += ["failures"] if failing_pair(config) else []
    return [*names, "reconstructions"] if max(config["grid"]["pretrain_sizes"]) > 0 else names


def subset(size: int, seed: int) -> str:
    """Name of the subset of images that a training of that size and seed uses."""
    return SUBSET.format(size=size, seed=seed)


def pack_of_split(part: str, subset: str) -> str:
    """The pack that a split chooses from; for an intermediate task, which has one split, the task's own."""
    return {"pretrain": "pretrain", "finetune": "segmentation"}.get(part, subset)


def searched_packs(spec: Mapping[str, Any]) -> list[str]:
    """Packs to search for duplicates, by `specs.duplicates_spec`; the test images' pack first."""
    return ["segmentation", *(["pretrain"] if spec["pretrain"] else []), *spec["tasks"]]


def searched_splits(spec: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Part and subset of the splits that say which images in those packs are trained or tested on."""
    found = [("finetune", subset(size, seed)) for size in spec["finetune_sizes"] for seed in spec["seeds"]]
    return found + [("intermediate", task) for task in spec["tasks"]]


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
        parent: the training whose weights it starts from; None for a random start.
    """

    stage: str
    key: Cell | tuple[tuple[str, Any], ...]
    pack: str
    split: tuple[str, str]
    parent: Training | None = None

    @property
    def cell(self) -> dict[str, Any]:
        """`key` as in the training's record."""
        return self.key.as_dict() if isinstance(self.key, Cell) else dict(self.key)

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

    def _fill(self, pattern: str) -> str:
        cell = self.cell
        return pattern.format(
            cell=cell.get("name"), task=cell.get("intermediate"), size=cell["pretrain_size"], seed=cell["seed"]
        )


def chain(cell: Cell) -> list[Training]:
    """The trainings behind a cell, parents first: pre-training, intermediate task, fine-tuning."""
    size, task, seed = cell.pretrain_size, cell.intermediate, cell.seed
    made: list[Training] = []

    def add(stage: str, key: Any, pack: str, split: tuple[str, str]) -> None:
        made.append(Training(stage, key, pack, split, made[-1] if made else None))

    if size:
        add("pretrain", (("pretrain_size", size), ("seed", seed)), "pretrain", ("pretrain", subset(size, seed)))
    if task != "none":
        key = (("intermediate", task), ("pretrain_size", size), ("seed", seed))
        add("intermediate", key, task, ("intermediate", task))
    add("finetune", cell, "segmentation", ("finetune", subset(cell.finetune_size, seed)))
    return made


def trainings(cells: Iterable[Cell]) -> list[Training]:
    """Every training that the given cells need, each once, parents before children."""
    return list(dict.fromkeys(training for cell in cells for training in chain(cell)))


def training_of(encoder: Encoder) -> Training | None:
    """The training that produced an encoder; None for a random start."""
    cell = Cell(encoder.pretrain_size, encoder.intermediate, encoder.finetune_size, encoder.seed)
    stage = STAGE_OF.get(encoder.kind)
    return next((training for training in chain(cell) if training.stage == stage), None)


def reference_of(encoder: Encoder) -> Training | None:
    """The pre-training that an encoder goes back to; None for a random start."""
    return training_of(Encoder("pretrained", encoder.pretrain_size, "none", 0, encoder.seed))
