"""What each stage of a cell depends on: the settings that make its output, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from viny.data.masks import mask_coding
from viny.learning.settings import TRAIN_KEYS
from viny.learning.unet_settings import RATE
from viny.study.arms import SECTIONS, is_published, pretrain_packs, schedule, settings_of
from viny.study.comparable import differences_from_paper
from viny.study.config import resolve
from viny.study.grid import BASE, RANDOM, STUDY, Arm, Cell, Encoder, Reference, arms, has_arms
from viny.study.layout import Training, held_out_curves, parse_subset, task_of_subset


def _train(section: Mapping[str, Any]) -> dict[str, Any]:
    return {key: section[key] for key in TRAIN_KEYS}


def _compute(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: config["compute"][key] for key in ("device", "precision")}


def pack_spec(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What the pack `name` ('pretrain', that of a variant, 'segmentation' or a task) is made from."""
    unlabelled = pretrain_packs(config).get(name)
    if unlabelled is not None:
        config = settings_of(config, unlabelled)
        section, size, stream = config["pretrain"], config["pretrain"]["pack_size"], "unlabelled"
        resize = "antialias"
    elif name == "segmentation":
        section, size, stream = config["segmentation"], config["model"]["image_size"], "segmentation"
        resize = config["switches"]["resize"]
    else:
        section, size = config["intermediate"][name], config["model"]["image_size"]
        stream = "scenes" if section["target"] == "image" else "segmentation"
        resize = config["switches"]["resize"]
    if section["source"] == "segmentation":  # a task on the same images that are segmented
        same = pack_spec(config, "segmentation")
        if unlabelled is None:
            return same
        # The same images in the same order, so that the test images can be left out, and with room for crops.
        judged = {"size": same["size"], "fit": same.get("fit", "stretch")}
        masks = {} if same["source"] == "synthetic" else {"masks_judged": judged}
        plain = {key: value for key, value in same.items() if key not in ("fit", "tiles")}
        return plain | {"size": size, "resize": resize, **masks}
    spec = {"source": section["source"], "size": size, "resize": resize}
    if section["source"] == "synthetic":
        made = config["synthetic"]
        return {**spec, "seed": made["seed"], "stream": stream, "count": made[stream]}
    spec |= {"path": section["path"], "on_bad_image": config["on_bad_image"]}
    if listing := config.get("listings", {}).get(name):
        spec["listing"] = listing
    if unlabelled is None and section["fit"] != "stretch":
        spec["fit"] = section["fit"]
    if name == "segmentation" and section.get("tiles", 1) > 1:
        spec["tiles"] = section["tiles"]
    if section["source"] == "folder":
        return spec | _folder_spec(config, "pretrain" if unlabelled else name, section)
    if section["source"] == "imagenet" and unlabelled is None:
        spec["held_out"] = section["held_out"]
    if section["source"] == "pets":
        # The same for all Pets packs, so that a task and the segmentation share one.
        spec |= {key: config["segmentation"][key] for key in ("download", "all_background")}
    return spec


def source_spec(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What the pack `name` is made from, whatever its files hold now."""
    return pack_spec({**config, "listings": {}}, name)


def _folder_spec(config: Mapping[str, Any], name: str, section: Mapping[str, Any]) -> dict[str, Any]:
    """What the pack of a user's own folder is made from, besides what all packs are made from."""
    spec: dict[str, Any] = {"holds": "images"}
    if name == "segmentation":
        spec = {"holds": "masks", **{key: section[key] for key in ("masks", "mask_suffix", "all_background")}}
        spec |= mask_coding(section["classes"], section["ignore"])
    elif name != "pretrain":
        spec = {"holds": "classes", "held_out": section["held_out"]}
    if name != "pretrain":
        spec["split"] = section.get("split", "")
    if name == "segmentation" and "group" in section and not spec["split"]:
        spec["group"] = {"pattern": section["group"], "test_size": section["test_size"]}
        spec["group"]["split_seed"] = config["split_seed"]
    return spec


def mask_class_count(config: Mapping[str, Any]) -> int:
    """How many classes a study's masks have; 3 unless the source is a user's own folder."""
    return len(pack_spec(config, "segmentation").get("mask_classes", ())) or 3


def on_segmentation_data(config: Mapping[str, Any], task: str) -> bool:
    """Whether an intermediate task learns from the same images that are segmented."""
    return source_spec(config, task) == source_spec(config, "segmentation")


def pretrain_split_spec(config: Mapping[str, Any], size: int, seed: int, variant: str = STUDY) -> dict[str, Any]:
    section = settings_of(config, Arm(variant=variant))["pretrain"]
    held_out = section.get("held_out", 0)
    # Of a test part that is given, nobody pre-trains on what the test leaves out either, as in all other stages.
    given = split_is_given(config)
    spared = {"spared": 0 if given else config["segmentation"]["test_size"], "given": given}
    return {
        "kind": "pretrain",
        "size": size,
        "seed": seed,
        "split_seed": config["split_seed"],
        "subsets": config["switches"]["subsets"],
        **({"held_out": held_out} if held_out else {}),
        **(spared if section["source"] == "segmentation" else {}),
    }


def finetune_split_spec(config: Mapping[str, Any], size: int, seed: int) -> dict[str, Any]:
    return {
        "kind": "finetune",
        "size": size,
        "seed": seed,
        "split_seed": config["split_seed"],
        "subsets": config["switches"]["subsets"],
        "test_set": config["switches"]["test_set"],
        "test_size": taken_of_test_part(config),
        "given": split_is_given(config),
    }


def split_is_given(config: Mapping[str, Any]) -> bool:
    """Whether a file, their folders or groups say which labelled images are for training and which for testing."""
    return any(config["segmentation"].get(key) for key in ("split", "group"))


def taken_of_test_part(config: Mapping[str, Any]) -> int:
    """How many test images splits take; 0 for all of the test part that is given, as whole groups are."""
    section = config["segmentation"]
    return 0 if "group" in section and not section.get("split") else section["test_size"]


def group_spec(config: Mapping[str, Any]) -> dict[str, str]:
    """The study's `segmentation.group`, if it has one, for the stages that must know it besides the pack."""
    return {key: config["segmentation"][key] for key in ("group",) if key in config["segmentation"]}


def task_split_spec(config: Mapping[str, Any], task: str, images: int | None = None) -> dict[str, Any]:
    """What the split of a task depends on; `images`: those that it trains on, None for all."""
    size = {} if images is None else {"size": images, "split_seed": config["split_seed"]}
    if not on_segmentation_data(config, task):
        return {"kind": "task", "on_segmentation_data": False, **size}
    return {
        **size,
        "kind": "task",
        "on_segmentation_data": True,
        "pool": config["switches"]["pets_pool"],
        "test_set": config["switches"]["test_set"],
        "split_seed": config["split_seed"],
        "test_size": taken_of_test_part(config),
        "given": split_is_given(config),
    }


def split_spec(config: Mapping[str, Any], part: str, name: str) -> dict[str, Any]:
    """What a split depends on besides its pack.

    Args:
        config: resolved settings.
        part: pretrain, finetune or intermediate.
        name: name of the subset, see `layout.subset`, or of the task.
    """
    if part == "intermediate":
        return task_split_spec(config, *task_of_subset(name))
    size, seed, variant = parse_subset(name)
    if part == "pretrain":
        return pretrain_split_spec(config, size, seed, variant)
    return finetune_split_spec(config, size, seed)


def pretrain_spec(config: Mapping[str, Any], size: int, seed: int, arm: Arm = BASE) -> dict[str, Any]:
    """Everything that a pre-training's weights depend on, except its data and its start's weights."""
    settings = settings_of(config, arm)
    section, held_out = settings["pretrain"], settings["pretrain"].get("held_out", 0)
    epochs, milestones = schedule(settings, size)
    return {
        "stage": "pretrain",
        "cell": {"pretrain_size": size, "seed": seed, **arm.as_dict()},
        "model": settings["model"],
        "train": _train(section) | {"epochs": epochs, "milestones": milestones},
        "mask_ratio": section["mask_ratio"],
        "crop_scale": section["crop_scale"],
        "class_token": settings["switches"]["class_token"] == "always",
        **({"held_out": held_out, "split_seed": config["split_seed"]} if held_out else {}),
        **_compute(config),
    }


def intermediate_spec(config: Mapping[str, Any], task: str, size: int, seed: int, arm: Arm = BASE) -> dict[str, Any]:
    """Everything that an intermediate encoder depends on, except its data and its parent's weights."""
    settings = settings_of(config, arm)
    section = settings["intermediate"][task]
    return {
        "stage": "intermediate",
        "cell": {"intermediate": task, "pretrain_size": size, "seed": seed, **arm.as_dict()},
        "model": settings["model"],
        "train": _train(section),
        "target": section["target"],
        "labels": section["labels"],
        "pooling": section["pooling"],
        "mixup": section["mixup"],
        "contrast": section["contrast"],
        "class_token": settings["switches"]["class_token"] == "always",
        **_compute(config),
    }


def _class_token_after(config: Mapping[str, Any], task: str) -> bool:
    """Whether a class token is in the sequence of the fine-tuning that follows a task, or 'none'."""
    kept = task != "none" and config["intermediate"][task]["keep_class_token"]
    return config["switches"]["class_token"] == "always" or kept


def finetune_spec(config: Mapping[str, Any], cell: Cell) -> dict[str, Any]:
    """Everything that a fine-tuned model depends on, except its data, its parent's weights and its tuned rate."""
    settings = settings_of(config, cell.arm)
    section, switches = settings["finetune"], settings["switches"]
    return {
        "stage": "finetune",
        "cell": cell.as_dict(),
        "model": settings["model"],
        "train": _train(section),
        "contrast": section["contrast"],
        "segmentation_loss": switches["segmentation_loss"],
        "augmentation": switches["augmentation"],
        "normalise": switches["normalise_finetune"],
        "class_token": _class_token_after(settings, cell.intermediate),
        **({"encoder": "frozen"} if section.get("encoder") == "frozen" else {}),
        **({"tune": dict(settings["tune"]) | group_spec(config)} if is_tuned(settings) else {}),
        **_compute(config),
    }


def is_tuned(settings: Mapping[str, Any]) -> bool:
    """Whether the rate of the fine-tuning is chosen, by the settings of an arm."""
    return bool(settings.get("tune", {}).get("lr"))


def tune_spec(config: Mapping[str, Any], cell: Cell) -> dict[str, Any]:
    """Everything that the scores of a cell's rates depend on, except its data and its parent's weights."""
    return {**finetune_spec(config, cell), "stage": "tune"}


def training_spec(config: Mapping[str, Any], training: Training) -> dict[str, Any]:
    """`pretrain_spec`, `intermediate_spec` or `finetune_spec` of a training."""
    if isinstance(training.key, Cell):
        return finetune_spec(config, training.key)
    key = training.cell
    size, seed = key["pretrain_size"], key["seed"]
    if training.stage == "pretrain":
        return pretrain_spec(config, size, seed, training.arm)
    return intermediate_spec(config, key["intermediate"], size, seed, training.arm)


def start_spec(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What the weights of a published start depend on besides the files that hold them."""
    start = {key: value for key, value in config["starts"][name].items() if key != "grid"}
    return {"stage": "start", "start": name, "model": settings_of(config, Arm(name))["model"], **start}


def source_of(spec: Mapping[str, Any]) -> Path | None:
    """The user's file of a start's weights, by `start_spec` or the start's settings; None for those that timm has."""
    given = spec.get("file", spec.get("weights", RANDOM))
    return None if given == RANDOM else Path(given)


def evaluate_spec(config: Mapping[str, Any], cell: Cell) -> dict[str, Any]:
    """Everything that a cell's metrics depend on, except its weights and its data."""
    settings = settings_of(config, cell.arm)
    switches = settings["switches"]
    return {
        "stage": "evaluate",
        "study": config["study"],
        "note": config["note"],
        "protocol": config["protocol"],
        "switches": dict(switches),
        "cell": cell.as_dict(),
        "contrast": settings["finetune"]["contrast"],
        "split_seed": config["split_seed"],
        **group_spec(config),
        **_compute(config),
    }


def reference_spec(config: Mapping[str, Any], reference: Reference) -> dict[str, Any]:
    """Everything that a reference depends on, except its data: as the first arm's fine-tunings, but for the rate."""
    settings = settings_of(config, arms(config)[0])
    return {
        "stage": "reference",
        "study": config["study"],
        "note": config["note"],
        "protocol": config["protocol"],
        "switches": dict(settings["switches"]),
        "cell": reference.as_dict(),
        "image_size": settings["model"]["image_size"],
        "train": _train(settings["finetune"]) | {"lr": RATE},
        "contrast": settings["finetune"]["contrast"],
        "split_seed": config["split_seed"],
        **_compute(config),
    }


def geometry_spec(config: Mapping[str, Any], encoder: Encoder) -> dict[str, Any]:
    """Everything that an encoder's geometry depends on, except its weights and its data."""
    settings, section = settings_of(config, encoder.cell.arm), config["geometry"]
    switches = settings["switches"]
    return {
        "stage": "geometry",
        "study": config["study"],
        "note": config["note"],
        "protocol": config["protocol"],
        "encoder": encoder.as_dict(),
        "model": settings["model"],
        # As the stage that produced the encoder saw its images; the class token as in the fine-tuning after it.
        "normalise": switches["normalise_finetune"] if encoder.kind == "finetuned" else True,
        "class_token": _class_token_after(settings, encoder.intermediate),
        "images": section["images"],
        "probe_images": section["probe_images"],
        "examples": config["figures"]["examples"],
        "split_seed": config["split_seed"],
        **_compute(config),
    }


def statistics_spec(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the statistics depend on besides the results."""
    first = settings_of(config, arms(config)[0])
    found = {"grid": config["grid"], "model": first["model"], "note": config["note"], **_arms(config)}
    found |= {"tuned": True} if is_tuned(first) else {}
    found |= _references(config)
    return found | ({"held_out": True} if held_out_curves(config) else {})


def _references(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"references": True} if config.get("references") else {}


def _arms(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the comparison of arms depends on; empty for a study without."""
    if not has_arms(config):
        return {}
    variants = config["grid"].get("variants", [STUDY])
    settings = {name: settings_of(config, Arm(variant=name)) for name in variants}
    return {
        "arms": {
            "starts": {
                name: {**start, "published": is_published(start)} for name, start in config.get("starts", {}).items()
            },
            "tuned": _twins({name: ({**one, "tune": {}}, is_tuned(one)) for name, one in settings.items()}),
            "steps": _twins({name: (_by_epochs(one), takes_steps(one)) for name, one in settings.items()}),
            "frozen": [name for name, one in settings.items() if one["finetune"].get("encoder") == "frozen"],
        }
    }


def _twins(variants: Mapping[str, tuple[Mapping[str, Any], bool]]) -> dict[str, str]:
    """Variants with something, each with one that is the same but without it; empty if there is none.

    Args:
        variants: the settings of each, as they are without it, and whether it has it.
    """

    def alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
        return all(one.get(section) == other.get(section) for section in SECTIONS)

    plain = {name: settings for name, (settings, has) in variants.items() if not has}
    return {
        name: next((other for other, theirs in plain.items() if alike(settings, theirs)), "")
        for name, (settings, has) in variants.items()
        if has
    }


def takes_steps(settings: Mapping[str, Any]) -> bool:
    """Whether all sizes of pre-training take the same number of steps, by the settings of an arm."""
    return settings["pretrain"].get("budget") == "steps"


def _by_epochs(settings: Mapping[str, Any]) -> dict[str, Any]:
    section = {key: value for key, value in settings["pretrain"].items() if key != "budget"}
    return {**settings, "pretrain": section}


def representations_spec(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the geometry's tables and figures depend on besides the results."""
    return {key: config[key] for key in ("grid", "note", "geometry")}


def scorecard_spec(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the comparison with the paper depends on besides the results."""
    config = settings_of(config, arms(config)[0])
    return {
        **{key: config[key] for key in ("grid", "geometry", "protocol")},
        "other_study": config["scorecard"]["other_study"],
        "epochs": {stage: config[stage]["epochs"] for stage in ("pretrain", "finetune")},
        "spatial_tasks": [name for name, task in config["intermediate"].items() if task["target"] == "patch"],
        "differences": differences_from_paper(config),
    }


def report_spec(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the report depends on besides the results: what it advises may need any setting but those of the machine."""
    machine = ("compute", "pack_store", "listings")
    return {**{key: value for key, value in config.items() if key not in machine}, **_arms(config)}


def tables_spec(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the tables depend on besides the results."""
    config = settings_of(config, arms(config)[0])
    tasks = ["none", "intel", "pets_classes", "pets_spatial"]
    paper = resolve({"study": "paper", "protocol": "paper", "grid": {"intermediates": tasks}})
    return {
        **{key: config[key] for key in ("grid", "study", "protocol", "note")},
        "training": _trainings(config),
        "paper": _trainings(paper),
    }


def _trainings(config: Mapping[str, Any]) -> dict[str, Any]:
    """How each stage is trained: its optimiser, schedule and augmentation."""
    found = {"pretrain": _train(config["pretrain"]) | {"crop_scale": config["pretrain"]["crop_scale"]}}
    for task, section in config["intermediate"].items():
        found[task] = _train(section) | {key: section[key] for key in ("contrast", "mixup", "target")}
        found[task]["source"] = source_spec(config, task)["source"]
    switches = {key: config["switches"][key] for key in ("augmentation", "normalise_finetune")}
    found["finetune"] = _train(config["finetune"]) | {"contrast": config["finetune"]["contrast"]} | switches
    return found


def figures_spec(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the figures depend on besides the results."""
    config = settings_of(config, arms(config)[0])
    return {
        "grid": config["grid"],
        "note": config["note"],
        **_references(config),
        "examples": config["figures"]["examples"],
        "mask_ratio": config["pretrain"]["mask_ratio"],
        "pipeline": {
            "pretrain": {key: config["pretrain"][key] for key in ("source", "epochs")},
            "tasks": {
                name: {key: task[key] for key in ("source", "epochs")} for name, task in config["intermediate"].items()
            },
            "segmentation": {"source": config["segmentation"]["source"]},
            "finetune": {"epochs": config["finetune"]["epochs"]},
        },
        "tested": {
            "switches": {"augment_test": config["switches"]["augment_test"]},
            "contrast": config["finetune"]["contrast"],
            "split_seed": config["split_seed"],
        },
    }


def duplicates_spec(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the search for duplicates depends on besides packs and splits."""
    grid = config["grid"]
    # Pre-training on the labelled images leaves out the test images; the others are searched with the labels.
    packs = [
        name
        for name, arm in pretrain_packs(config).items()
        if max(grid["pretrain_sizes"]) > 0 and settings_of(config, arm)["pretrain"]["source"] != "segmentation"
    ]
    further = [name for name in packs if name != "pretrain"]
    return {
        "study": config["study"],
        "pretrain": "pretrain" in packs,
        "tasks": [name for name in grid["intermediates"] if name != "none"],
        "finetune_sizes": grid["finetune_sizes"],
        "seeds": grid["seeds"],
        "distance": config["duplicates"]["distance"],
        **({"further": further} if further else {}),
    }


def summary_spec(config: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """What a job that summarises the study depends on besides the results; `stage` is its rule."""
    make = {
        "duplicates": duplicates_spec,
        "tables": tables_spec,
        "figures": figures_spec,
        "statistics": statistics_spec,
        "representations": representations_spec,
        "scorecard": scorecard_spec,
        "report": report_spec,
    }
    return make[stage](config)
