"""A study's folder with fine-tuned cells of random weights, for tests of what comes after training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from viny.learning.weights import make_segmentation, new_encoder, save_weights
from viny.runtime.files import write_json
from viny.study.grid import Cell
from viny.study.layout import chain
from viny.study.saved import write_study
from viny.study.specs import finetune_spec


def make_cell(root: Path, config: dict[str, Any], cell: Cell, classes: list[str], pack_sha256: str = "0" * 64) -> Path:
    """Write a cell's model, with every weight random, and its study; returns the cell's folder.

    Fresh norms and biases are all alike and would hide a mix-up, so every weight is moved.
    """
    write_study(root, config)
    spec = finetune_spec(config, cell)
    torch.manual_seed(cell.seed)
    model = make_segmentation(spec, new_encoder(spec["model"], cell.seed), len(classes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        model.head.weight.mul_(4)  # large enough for scores that distinguish pixels
    record = {
        "stage": "finetune",
        "spec": spec,
        "precision": "float32",
        "images": cell.finetune_size,
        "pack_sha256": pack_sha256,
        "split_sha256": "1" * 64,
        "parent_sha256": None,
        "mask_classes": classes,
        "final_loss": 0.5,
    }
    folder = chain(cell)[-1].folder(root)
    record["weights_sha256"] = save_weights(folder / "model.safetensors", model.state_dict(), record)
    write_json(folder / "model.json", record)
    return folder
