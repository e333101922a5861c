"""Small models, small packs, and the place of the real images, for all library tests."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from viny.data.pack import Pack, open_pack
from viny.data.packing import build_pack
from viny.learning.settings import ModelSettings
from viny.study.protocols import PROTOCOLS

ROOT = Path(__file__).parents[1]
SIZE = 24  # pixels

# Whoever starts the tests in the background may have signals ignored; all programs that tests stop would inherit that.
for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(stop) is signal.SIG_IGN:
        signal.signal(stop, signal.default_int_handler if stop is signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tensors here are too small for several threads, and results are compared bit for bit."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny() -> ModelSettings:
    """16 patches of 6 pixels; the heads' width (2 x 8) equals the tokens' only by chance, and tests vary it."""
    return ModelSettings(image_size=SIZE, patch_size=6, dim=16, depth=2, heads=2, head_dim=8, mlp_dim=32)


@pytest.fixture(scope="session")
def synthetic_pack(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Pack]:
    """Opened packs of synthetic images, each made once per session."""
    made: dict[tuple[str, int, int], Pack] = {}

    def make(stream: str = "segmentation", count: int = 30, size: int = SIZE) -> Pack:
        key = (stream, count, size)
        if key not in made:
            folder = tmp_path_factory.mktemp(f"pack-{stream}")
            spec = {"source": "synthetic", "size": size, "resize": "antialias"}
            build_pack({**spec, "seed": 0, "stream": stream, "count": count}, folder, threads=1)
            made[key] = open_pack(folder / "manifest.json")
        return made[key]

    return make


@pytest.fixture(scope="session")
def pack(synthetic_pack: Callable[..., Pack]) -> Pack:
    """30 images with masks, labels and parts."""
    return synthetic_pack()


@pytest.fixture(scope="session")
def made_study() -> Callable[[str], dict[str, Any]]:
    """The settings of a tiny study as `resolve` would complete them, for a protocol; needs no jsonschema."""

    def make(protocol: str) -> dict[str, Any]:
        train = {"batch_size": 8, "optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.01, "gamma": 0.5}
        task = {"source": "synthetic", "contrast": 0.3, "epochs": 2, "milestones": [], **train}
        task |= {"labels": "own", "pooling": "class_token", "keep_class_token": False}
        model = {"image_size": SIZE, "patch_size": 6, "dim": 16, "depth": 2}
        value = {
            "study": "tiny",
            "note": "Test study.",
            "protocol": protocol,
            "switches": PROTOCOLS[protocol],
            "split_seed": 42,
            "grid": {
                "pretrain_sizes": [0, 24],
                "intermediates": ["none", "scenes", "spatial"],
                "finetune_sizes": [8, 16],
                "seeds": [0, 1],
            },
            "model": {**model, "heads": 2, "head_dim": 8, "mlp_dim": 32},
            "pretrain": {
                **train,
                "source": "synthetic",
                "pack_size": 32,
                "mask_ratio": 0.5,
                "crop_scale": 0.67,
                "epochs": 2,
                "milestones": [1],
            },
            "intermediate": {
                "scenes": {**task, "target": "image", "mixup": 0.1},
                "spatial": {**task, "target": "patch", "mixup": 0.0},
            },
            "segmentation": {"source": "synthetic", "test_size": 10, "download": False},
            "finetune": {**train, "contrast": 0.3, "epochs": 3, "milestones": [2]},
            "synthetic": {"seed": 0, "unlabelled": 30, "scenes": 30, "segmentation": 30},
            "compute": {"device": "cpu", "precision": "float32"},
        }
        return copy.deepcopy(value)

    return make


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real images: VINY_DATA, or ../shared/data, or data, as seen from the repository."""
    named = os.environ.get("VINY_DATA")
    places = [Path(named)] if named else [ROOT / ".." / "shared" / "data", ROOT / "data"]
    for place in places:
        if (place / "oxford-iiit-pet").is_dir():
            return place
    pytest.skip(f"no real images at {' or '.join(map(str, places))}; set VINY_DATA to their folder")
