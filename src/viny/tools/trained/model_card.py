"""The card of an exported model: what it learnt from, how well it does, how to load it, what it cannot do."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import torch

from viny import __version__
from viny.data.decoding import BARS
from viny.evidence.figures import kit
from viny.learning.model import count_parameters
from viny.learning.unet import UNet
from viny.runtime.errors import InputError
from viny.runtime.files import load_arrays, read_json, write_text
from viny.runtime.text import markdown
from viny.runtime.units import tested_words
from viny.study.grid import Cell, Reference, cells
from viny.study.layout import CONFUSION, chain, metrics_file, pack_manifest, reference_file
from viny.tools.trained.cell import TrainedCell

TEMPLATE = Path(__file__).with_name("model_card.md.j2")
METRICS = {
    "pixel_accuracy": "pixel accuracy",
    "miou_dataset": "mIoU, from one confusion matrix over all images",
    "miou_per_image": "mIoU, mean over images, absent classes counting 0",
    "own_size_miou_dataset": "mIoU at the images' own size, from one confusion matrix",
    "own_size_miou_per_image": "mIoU at the images' own size, mean over images",
    "miou_two_class_dataset": "mIoU without the border, from one confusion matrix",
}
HUB_METRICS = {"miou_dataset": "mean_iou", "pixel_accuracy": "accuracy"}  # the hub's names of metrics
SHA256 = ("weights_sha256", "pack_sha256", "split_sha256")  # of a record
PACKAGES = ("numpy", "pillow", "torch")  # that a model's weights depend on
FITS = {
    "stretch": "stretched to a square, its aspect lost",
    "crop": "cut to its centre square; what lies outside is not seen",
    "pad": "laid whole on a square, with bars at two sides",
}


def write_card(cell: TrainedCell, kind: str, files: Sequence[Path]) -> None:
    """Write the card of an exported model: Markdown with a Hugging Face header.

    Args:
        cell: whose model it is.
        kind: 'timm', 'onnx' or 'hf'.
        files: as `viny.tools.trained.export.export` returns them: weights, arguments but for onnx, and the card last.
    """
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, finalize=_plain
    )
    environment.filters |= {"percent": _percent, "json": json.dumps}
    stages, lost, start = _stages(cell)
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        cell=cell,
        key=cell.key,
        start=start,
        unet=isinstance(cell.model, UNet),
        kind=kind,
        file=files[0].name,
        arguments=files[1].name,
        weights_sha256=hashlib.sha256(files[0].read_bytes()).hexdigest(),
        parameters=count_parameters(cell.model),
        model=cell.record["spec"].get("model", {}),
        plain=not isinstance(cell.model, UNet) and cell.model.encoder.settings.plain,
        colours=kit.class_colours(len(cell.classes)),
        values=cell.mask_values(),
        fit=FITS[cell.fit],
        bars=BARS,
        hub=HUB_METRICS,
        stages=stages,
        lost=lost,
        results=_results(cell),
        switches=cell.config["switches"],
        run=_run(cell),
        versions={"viny": __version__, "torch": torch.__version__},
    )
    write_text(files[-1], text)


def _stages(cell: TrainedCell) -> tuple[list[dict[str, Any]], list[str], dict[str, Any] | None]:
    """The trainings that the model comes from, first to last, what there is no record of, and the published start."""
    if isinstance(cell.key, Reference):
        return [_stage(cell, "segmentation", cell.record, "training")], [], None
    trained = chain(cell.key)
    found, lost = [_stage(cell, "segmentation", cell.record, "fine-tuning")], []
    parent = cell.record["parent_sha256"]
    for training in reversed(trained[:-1]):
        name = "SimMIM pre-training" if training.stage == "pretrain" else f"intermediate task `{training.pack}`"
        try:
            record = read_json(training.file(cell.root, "record"), "a weights record")
        except InputError:
            record = {}
        if record.get("weights_sha256") != parent or parent is None:
            lost.append(name)  # gone, or of another training than the one behind this model
            parent = None
            continue
        found.insert(0, _stage(cell, training.pack, record, name))
        parent = record["parent_sha256"]
    origin = trained[0].origin(cell.root, "record")
    if origin is None:
        return found, lost, None
    start = read_json(origin, "a weights record") if origin.is_file() else {}
    if start.get("weights_sha256") != parent or parent is None:
        return found, [*lost, f"start `{cell.key.start}`"], None
    # Of a file of the user's own, its name will do.
    source = start["source"] if start["source"].startswith("https://") else Path(start["source"]).name
    return found, lost, {"source": source, **{key: start[key] for key in ("source_sha256", "weights_sha256")}}


def _stage(cell: TrainedCell, pack: str, record: Mapping[str, Any], name: str) -> dict[str, Any]:
    path = pack_manifest(cell.root, pack)
    manifest = read_json(path, "a pack manifest") if path.is_file() else {}
    if manifest.get("sha256") != record["pack_sha256"]:
        manifest = {}
    shown = ("target", "labels", "pooling", "mixup", "mask_ratio", "crop_scale", "contrast", "augmentation")
    spec = record["spec"]
    said = {key: record[key] for key in ("images", "precision", "final_loss", *SHA256)}
    if "held_out_accuracy" in record:
        said["held_out_accuracy"] = record["held_out_accuracy"]
    train = spec["train"] | ({"lr": record["tuned"]["lr"]} if "tuned" in record else {})
    more = {k: spec[k] for k in (*shown, "encoder", "segmentation_loss", "normalise", "class_token") if k in spec}
    if "normalisation" in record:
        more["normalise"] = record["normalisation"]
    return {"name": name, "record": said, "train": train, "manifest": manifest, "more": more}


def _results(cell: TrainedCell) -> dict[str, Any] | None:
    """A cell's metrics as fractions, with mean and deviation over all seeds of such cells; None without metrics."""
    keys = dict.fromkeys([cell.key, *(replace(cell.key, seed=seed) for seed in cell.config["grid"]["seeds"])])
    found = [read_json(path, what) for path, what in map(partial(_measured, cell.root), keys) if path.is_file()]
    mine = found[0] if found else {}
    if mine.get("cell", {}).get("name") != cell.name:
        return None
    if mine.get("weights_sha256", mine.get("hashes", {}).get("weights")) != cell.record["weights_sha256"]:
        return None  # of an earlier training
    frame = pd.DataFrame([one["metrics"] for one in found], dtype=float)
    names = {**METRICS, **{f"iou_{name}": f"IoU of {name}" for name in cell.classes}}
    rows = [
        {"key": name, "name": said, "value": mine["metrics"][name], "mean": frame[name].mean(), "sd": frame[name].std()}
        for name, said in names.items()
        if name in mine["metrics"]
    ]
    of_class = {name: mine["metrics"].get(f"iou_{name}") for name in cell.classes}
    known = {name: value for name, value in of_class.items() if value is not None}
    return {
        "rows": rows,
        "seeds": len(frame),
        "tested": tested_words([mine["test_images"]], _groups(cell)),
        "worst": min(known, key=known.__getitem__, default=None),
        "worst_iou": min(known.values(), default=None),
        "undefined": [name for name in cell.classes if name not in known],
        "untrained": [name for name in cell.classes if name in mine.get("classes", {}).get("not_in_training", ())],
    }


def _measured(root: Path, key: Cell | Reference) -> tuple[Path, str]:
    """The file that has a model's metrics, and what it is."""
    if isinstance(key, Reference):
        return reference_file(root, key, "record"), "a reference"
    return metrics_file(root, key), "the metrics of an evaluated cell"


def _groups(cell: TrainedCell) -> int:
    """How many groups the test images are of, by the matrices of a cell on the same images; 0 without groups."""
    named = [cell.key] if isinstance(cell.key, Cell) else cells(cell.config)
    of = next((one for one in named if chain(one)[-1].split == cell.split), None)
    path = of and cell.root / CONFUSION.format(cell=of.name)
    if path is None or not path.is_file():
        return 0
    found = load_arrays(path, "confusion matrices", ("indices",), ("groups",))
    return len(np.unique(found["groups"])) if "groups" in found else 0


def _plain(value: Any) -> Any:
    """A value as the card shows it: text is text, except what the template itself made."""
    is_ours = hasattr(value, "__html__") or isinstance(value, jinja2.Undefined)
    return value if is_ours else markdown(str(value))


def _percent(fraction: float | None) -> str:
    return "undefined" if fraction is None or math.isnan(fraction) else f"{100 * fraction:.2f}"


def _run(cell: TrainedCell) -> dict[str, Any]:
    """When and with what the model was trained, as far as is recorded."""
    if isinstance(cell.key, Reference):
        run: Mapping[str, Any] = cell.record["provenance"]
    else:
        path = chain(cell.key)[-1].file(cell.root, "run")
        run = read_json(path, "the provenance of a training") if path.is_file() else {}
    return {
        "code": run.get("code", "unknown"),
        "ended": str(run.get("ended", "unknown"))[:10],
        "device": run.get("device_name", "unknown"),
        "packages": {name: version for name, version in run.get("packages", {}).items() if name in PACKAGES},
    }
