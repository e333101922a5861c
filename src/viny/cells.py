"""Cells: what a study's grid expands to, what each is called, and what each stage of it depends on."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from viny.settings import IGNORE, TRAIN_KEYS, value_number

# What the rules that sum a study up write below tables/ and, as PDF and PNG, below figures/.
TABLES = (
    *("metrics.csv", "summary.csv", "paired_differences.csv"),
    *(f"{table}.{kind}" for table in ("table1", "tableA2", "tableA3") for kind in ("csv", "md")),
)
DUPLICATES_TABLES = ("duplicates.csv", "duplicates.md")
STATISTICS_TABLES = (
    *(f"{name}.{kind}" for name in ("effects", "effects_overall", "fits", "transfer") for kind in ("csv", "md")),
    *("image_noise.csv", "marginal_gains.csv", "costs.csv", "next_steps.md"),
)
STATISTICS_FIGURES = ("effects", "returns", "transfer", "costs")
REPRESENTATIONS_TABLES = (
    *(f"{name}.{kind}" for name in ("geometry", "table2", "harm_correlation") for kind in ("csv", "md")),
    "harm.csv",
)
REPRESENTATIONS_FIGURES = ("geometry_layers", "geometry_similarity", "geometry_heat_maps", "geometry_harm")
SCORECARD_TABLES = ("scorecard.csv", "scorecard.md")


@dataclass(frozen=True, order=True)
class Cell:
    """One combination of the grid: images to pre-train on, intermediate task, labels, seed."""

    pretrain_size: int
    intermediate: str
    finetune_size: int
    seed: int

    @property
    def name(self) -> str:
        return f"pre-{self.pretrain_size}_mid-{self.intermediate}_fine-{self.finetune_size}_seed-{self.seed}"

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "name": self.name}


@dataclass(frozen=True)
class Encoder:
    """Whose representation is measured: a random start, one that a stage left, or one within a fine-tuned model."""

    kind: str  # random, pretrained, intermediate or finetuned
    pretrain_size: int
    intermediate: str
    finetune_size: int  # 0 before fine-tuning
    seed: int

    @property
    def name(self) -> str:
        if self.kind == "finetuned":
            return f"finetuned_{Cell(self.pretrain_size, self.intermediate, self.finetune_size, self.seed).name}"
        return f"{self.kind}_pre-{self.pretrain_size}_mid-{self.intermediate}_seed-{self.seed}"

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "name": self.name}


def encoders(config: Mapping[str, Any]) -> list[Encoder]:
    """The encoders whose geometry a study measures, each once; the reference of each is among them."""
    wanted, found = config["geometry"]["encoders"], []
    if wanted == "none":
        return []
    for cell in cells(config):
        size, task, seed = cell.pretrain_size, cell.intermediate, cell.seed
        found.append(Encoder("random", 0, "none", 0, seed))
        found.append(Encoder("pretrained" if size else "random", size, "none", 0, seed))
        if task != "none":
            found.append(Encoder("intermediate", size, task, 0, seed))
        if wanted == "all":
            found.append(Encoder("finetuned", size, task, cell.finetune_size, seed))
    return list(dict.fromkeys(found))


def cells(config: Mapping[str, Any]) -> list[Cell]:
    """Every cell of a resolved study, in the grid's order."""
    grid = config["grid"]
    return [
        Cell(*values)
        for values in itertools.product(
            grid["pretrain_sizes"], grid["intermediates"], grid["finetune_sizes"], grid["seeds"]
        )
    ]


def _train(section: Mapping[str, Any]) -> dict[str, Any]:
    return {key: section[key] for key in TRAIN_KEYS}


def _compute(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: config["compute"][key] for key in ("device", "precision")}


def pack_spec(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What the pack `name` ('pretrain', 'segmentation' or a task) is made from."""
    if name == "pretrain":
        section, size, stream = config["pretrain"], config["pretrain"]["pack_size"], "unlabelled"
        resize = "antialias"
    elif name == "segmentation":
        section, size, stream = config["segmentation"], config["model"]["image_size"], "segmentation"
        resize = config["switches"]["resize"]
    else:
        section, size = config["intermediate"][name], config["model"]["image_size"]
        stream = "scenes" if section["target"] == "image" else "segmentation"
        resize = config["switches"]["resize"]
    if section["source"] == "segmentation":  # a task on the very images that are segmented
        return pack_spec(config, "segmentation")
    spec = {"source": section["source"], "size": size, "resize": resize}
    if section["source"] == "synthetic":
        made = config["synthetic"]
        return {**spec, "seed": made["seed"], "stream": stream, "count": made[stream]}
    spec |= {"path": section["path"], "on_bad_image": config["on_bad_image"]}
    if name != "pretrain" and section["fit"] != "stretch":
        spec["fit"] = section["fit"]
    if section["source"] == "folder":
        return spec | _folder_spec(config, name, section)
    if section["source"] == "pets":
        # For all packs of Pets alike, so that a task and the segmentation share theirs.
        spec |= {key: config["segmentation"][key] for key in ("download", "all_background")}
    return spec


def _folder_spec(config: Mapping[str, Any], name: str, section: Mapping[str, Any]) -> dict[str, Any]:
    """What the pack of a user's own folder is made from beside what all packs are."""
    spec: dict[str, Any] = {"holds": "images"}
    if name == "segmentation":
        spec = {"holds": "masks", **{key: section[key] for key in ("masks", "mask_suffix", "all_background")}}
        spec |= mask_coding(section["classes"], section["ignore"])
    elif name != "pretrain":
        spec = {"holds": "classes", "held_out": section["held_out"]}
    if name != "pretrain":
        spec["split"] = section.get("split", "")
    if listing := config.get("listings", {}).get(name):
        spec["listing"] = listing
    return spec


def mask_coding(classes: int | Mapping[str, str], ignore: Sequence[int | str]) -> dict[str, Any]:
    """How mask files tell classes.

    Args:
        classes: how many there are, being the values from 0; or the name of each value, or of each colour '#rrggbb'.
            Values of one name are one class. Classes are counted in the order of their least values.
        ignore: values or colours without a class.

    Returns:
        mask_classes: their names. mask_values: the index of each value, IGNORE for those without a class, by the value
        as text. colours: whether values are colours, written as the numbers that their digits are.
    """
    if isinstance(classes, int):
        classes = {str(value): f"class_{value}" for value in range(classes)}
    colours = any(key.startswith("#") for key in classes)

    named = {value_number(key): name for key, name in classes.items()}
    names = list(dict.fromkeys(named[value] for value in sorted(named)))
    values = {str(value): names.index(named[value]) for value in sorted(named)}
    values |= {str(value_number(value)): IGNORE for value in ignore}
    return {"mask_classes": names, "mask_values": values, "colours": colours}


def mask_class_count(config: Mapping[str, Any]) -> int:
    """How many classes the masks of a study have; 3 in the sources that are not a user's own."""
    return len(pack_spec(config, "segmentation").get("mask_classes", ())) or 3


def on_segmentation_data(config: Mapping[str, Any], task: str) -> bool:
    """Whether an intermediate task learns from the very images that are segmented."""
    mine, target = pack_spec(config, task), pack_spec(config, "segmentation")
    return mine == target


def pretrain_split_spec(config: Mapping[str, Any], size: int, seed: int) -> dict[str, Any]:
    return {
        "kind": "pretrain",
        "size": size,
        "seed": seed,
        "split_seed": config["split_seed"],
        "subsets": config["switches"]["subsets"],
    }


def finetune_split_spec(config: Mapping[str, Any], size: int, seed: int) -> dict[str, Any]:
    return {
        "kind": "finetune",
        "size": size,
        "seed": seed,
        "split_seed": config["split_seed"],
        "subsets": config["switches"]["subsets"],
        "test_set": config["switches"]["test_set"],
        "test_size": config["segmentation"]["test_size"],
        "given": split_is_given(config),
    }


def split_is_given(config: Mapping[str, Any]) -> bool:
    """Whether a file says which of the labelled images are for training and which for test."""
    return bool(config["segmentation"].get("split"))


def task_split_spec(config: Mapping[str, Any], task: str) -> dict[str, Any]:
    if not on_segmentation_data(config, task):
        return {"kind": "task", "on_segmentation_data": False}
    return {
        "kind": "task",
        "on_segmentation_data": True,
        "pool": config["switches"]["pets_pool"],
        "test_set": config["switches"]["test_set"],
        "split_seed": config["split_seed"],
        "test_size": config["segmentation"]["test_size"],
        "given": split_is_given(config),
    }


def pretrain_spec(config: Mapping[str, Any], size: int, seed: int) -> dict[str, Any]:
    """Everything that a pre-training's weights depend on, but its data."""
    section = config["pretrain"]
    return {
        "stage": "pretrain",
        "cell": {"pretrain_size": size, "seed": seed},
        "model": config["model"],
        "train": _train(section),
        "mask_ratio": section["mask_ratio"],
        "crop_scale": section["crop_scale"],
        "class_token": config["switches"]["class_token"] == "always",
        **_compute(config),
    }


def intermediate_spec(config: Mapping[str, Any], task: str, size: int, seed: int) -> dict[str, Any]:
    """Everything that an intermediate encoder depends on, but its data and its parent's weights."""
    section = config["intermediate"][task]
    return {
        "stage": "intermediate",
        "cell": {"intermediate": task, "pretrain_size": size, "seed": seed},
        "model": config["model"],
        "train": _train(section),
        "target": section["target"],
        "labels": section["labels"],
        "pooling": section["pooling"],
        "mixup": section["mixup"],
        "contrast": section["contrast"],
        "class_token": config["switches"]["class_token"] == "always",
        **_compute(config),
    }


def _class_token_after(config: Mapping[str, Any], task: str) -> bool:
    """Whether a class token stands in the sequence of the fine-tuning that follows a task, or 'none'."""
    kept = task != "none" and config["intermediate"][task]["keep_class_token"]
    return config["switches"]["class_token"] == "always" or kept


def finetune_spec(config: Mapping[str, Any], cell: Cell) -> dict[str, Any]:
    """Everything that a fine-tuned model depends on, but its data and its parent's weights."""
    section, switches = config["finetune"], config["switches"]
    return {
        "stage": "finetune",
        "cell": cell.as_dict(),
        "model": config["model"],
        "train": _train(section),
        "contrast": section["contrast"],
        "segmentation_loss": switches["segmentation_loss"],
        "augmentation": switches["augmentation"],
        "normalise": switches["normalise_finetune"],
        "class_token": _class_token_after(config, cell.intermediate),
        **_compute(config),
    }


def evaluate_spec(config: Mapping[str, Any], cell: Cell) -> dict[str, Any]:
    """Everything that a cell's metrics depend on, but its weights and its data."""
    switches = config["switches"]
    return {
        "stage": "evaluate",
        "study": config["study"],
        "note": config["note"],
        "protocol": config["protocol"],
        "switches": dict(switches),
        "cell": cell.as_dict(),
        "contrast": config["finetune"]["contrast"],
        "split_seed": config["split_seed"],
        **_compute(config),
    }


def geometry_spec(config: Mapping[str, Any], encoder: Encoder) -> dict[str, Any]:
    """Everything that an encoder's geometry depends on, but its weights and its data."""
    switches, section = config["switches"], config["geometry"]
    return {
        "stage": "geometry",
        "study": config["study"],
        "note": config["note"],
        "protocol": config["protocol"],
        "encoder": encoder.as_dict(),
        "model": config["model"],
        # As the stage that left the encoder saw its images; the class token as the fine-tuning after it has it.
        "normalise": switches["normalise_finetune"] if encoder.kind == "finetuned" else True,
        "class_token": _class_token_after(config, encoder.intermediate),
        "images": section["images"],
        "probe_images": section["probe_images"],
        "examples": config["figures"]["examples"],
        "split_seed": config["split_seed"],
        **_compute(config),
    }


def statistics_spec(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the statistics depend on beside the results."""
    return {key: config[key] for key in ("grid", "model", "note")}


def representations_spec(config: Mapping[str, Any]) -> dict[str, Any]:
    """What tables and figures of the geometry depend on beside the results."""
    return {key: config[key] for key in ("grid", "note", "geometry")}


def scorecard_spec(config: Mapping[str, Any], differences: list[str]) -> dict[str, Any]:
    """What the comparison with the paper depends on beside the results.

    Args:
        config: resolved settings.
        differences: see `viny.config.differences_from_paper`.
    """
    return {
        **{key: config[key] for key in ("grid", "geometry", "protocol")},
        "other_study": config["scorecard"]["other_study"],
        "spatial_tasks": [name for name, task in config["intermediate"].items() if task["target"] == "patch"],
        "differences": differences,
    }


def report_spec(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the report depends on beside the results."""
    keys = ("study", "note", "protocol", "grid", "model", "geometry", "pretrain", "segmentation")
    return {key: config[key] for key in keys}


def tables_spec(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the tables depend on beside the results."""
    return {"grid": config["grid"]}


def figures_spec(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the figures depend on beside the results."""
    return {
        "grid": config["grid"],
        "note": config["note"],
        "examples": config["figures"]["examples"],
        "mask_ratio": config["pretrain"]["mask_ratio"],
    }


def duplicates_spec(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the search for duplicates depends on beside packs and splits."""
    grid = config["grid"]
    return {
        "study": config["study"],
        "pretrain": max(grid["pretrain_sizes"]) > 0,
        "tasks": [name for name in grid["intermediates"] if name != "none"],
        "finetune_sizes": grid["finetune_sizes"],
        "seeds": grid["seeds"],
        "distance": config["duplicates"]["distance"],
    }


def searched_packs(spec: Mapping[str, Any]) -> list[str]:
    """Packs that are searched for duplicates (see `duplicates_spec`), that of the test images first."""
    return ["segmentation", *(["pretrain"] if spec["pretrain"] else []), *spec["tasks"]]


def searched_splits(spec: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Part and subset of the splits that say which images of those packs are trained or tested on."""
    found = [("finetune", f"size-{size}_seed-{seed}") for size in spec["finetune_sizes"] for seed in spec["seeds"]]
    return found + [("intermediate", task) for task in spec["tasks"]]


def figure_names(config: Mapping[str, Any]) -> list[str]:
    """The figures of the study itself, below figures/."""
    names = ["miou_curves", "miou_difference", "learning_curves", "segmentation"]
    return [*names, "reconstructions"] if max(config["grid"]["pretrain_sizes"]) > 0 else names


def probe_size(config: Mapping[str, Any]) -> int:
    """The label size whose split the probes learn from: the least with images enough, so that more change nothing."""
    sizes, wanted = config["grid"]["finetune_sizes"], config["geometry"]["probe_images"]
    return min([size for size in sizes if size >= wanted], default=max(sizes))


def shown_cells(config: Mapping[str, Any]) -> list[Cell]:
    """The cells whose predictions are shown: fewest and most labels, least and most pre-training, first seed."""
    grid = config["grid"]
    sizes, labels = grid["pretrain_sizes"], grid["finetune_sizes"]
    picked = [
        Cell(size, grid["intermediates"][0], label, grid["seeds"][0])
        for label in (min(labels), max(labels))
        for size in (min(sizes), max(sizes))
    ]
    return list(dict.fromkeys(picked))


# Where results stand below results/<study>; the workflow's path patterns say the same, and a test holds them equal.


def encoder_folder(root: Path, task: str, size: int, seed: int) -> Path | None:
    """Folder of the encoder that fine-tuning starts from; None for a random start."""
    leaf = f"size-{size}_seed-{seed}"
    if task != "none":
        return root / "intermediate" / task / leaf
    return root / "pretrain" / leaf if size else None


def pack_manifest(root: Path, name: str) -> Path:
    return root / "packs" / name / "manifest.json"


def split_record(root: Path, part: str, subset: str) -> Path:
    """Record of a split; its index lists stand beside it as npz."""
    return root / "splits" / part / f"{subset}.json"


def finetune_folder(root: Path, cell: Cell) -> Path:
    return root / "finetune" / cell.name


def metrics_file(root: Path, cell: Cell) -> Path:
    return root / "metrics" / f"{cell.name}.json"


def encoder_record(root: Path, encoder: Encoder) -> Path | None:
    """Record of an encoder's weights; None for a random start."""
    size, task, seed = encoder.pretrain_size, encoder.intermediate, encoder.seed
    if encoder.kind == "finetuned":
        return finetune_folder(root, Cell(size, task, encoder.finetune_size, seed)) / "model.json"
    folder = encoder_folder(root, task, size, seed)
    return folder / "encoder.json" if folder else None


def geometry_file(root: Path, encoder: Encoder) -> Path:
    """An encoder's geometry as numbers; arrays for figures stand beside it as npz."""
    return root / "geometry" / f"{encoder.name}.json"


def training_folders(root: Path, all_cells: Iterable[Cell]) -> list[tuple[str, str, Path]]:
    """Stage, label and folder of every training job that the cells need, each once."""
    found: dict[Path, tuple[str, str]] = {}
    for cell in all_cells:
        leaf = f"size-{cell.pretrain_size}_seed-{cell.seed}"
        if folder := encoder_folder(root, "none", cell.pretrain_size, cell.seed):
            found[folder] = ("pretrain", leaf)
        if cell.intermediate != "none":
            folder = encoder_folder(root, cell.intermediate, cell.pretrain_size, cell.seed)
            found[folder] = ("intermediate", f"{cell.intermediate}/{leaf}")
        found[finetune_folder(root, cell)] = ("finetune", cell.name)
    return [(stage, label, folder) for folder, (stage, label) in found.items()]
