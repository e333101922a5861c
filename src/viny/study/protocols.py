"""The two protocols, and the tasks that a grid may name without describing them."""

from __future__ import annotations

from typing import Any

# What each protocol sets; a study's `switches` override single entries.
PROTOCOLS: dict[str, dict[str, Any]] = {
    "paper": {
        "segmentation_loss": "pixel_softmax",
        "test_set": "moving",
        "augmentation": "frozen",
        "augment_test": True,
        "resize": "nearest",
        "normalise_finetune": False,
        "miou": "per_image",
        "pets_pool": "official",
        "subsets": "shared",
        "class_token": "intermediate",
    },
    "sound": {
        "segmentation_loss": "class_softmax",
        "test_set": "fixed",
        "augmentation": "fresh",
        "augment_test": False,
        "resize": "antialias",
        "normalise_finetune": True,
        "miou": "dataset",
        "pets_pool": "training",
        "subsets": "per_seed",
        "class_token": "intermediate",
    },
}

# Tasks that a grid may name without describing them. The two on Pets follow version 2 of the paper; the three after
# intel each differ from it in one thing.
BUILT_IN_TASKS: dict[str, dict[str, Any]] = {
    "intel": {"source": "intel"},
    "intel_mean": {"like": "intel", "pooling": "mean"},
    "intel_kept": {"like": "intel", "keep_class_token": True},
    "intel_shuffled": {"like": "intel", "labels": "shuffled"},
    "scenes": {"source": "synthetic"},
    "pets_classes": {
        "source": "pets",
        "target": "image",
        "mixup": 0.0,
        "epochs": 20,
        "optimizer": "adamw",
        "lr": 1e-3,
        "milestones": [],
    },
    "pets_spatial": {
        "source": "pets",
        "target": "patch",
        "mixup": 0.0,
        "epochs": 20,
        "optimizer": "adam",
        "lr": 5e-4,
        "milestones": [],
    },
}

# Names that a task may not have: 'none' means no task, the others are packs of other stages.
RESERVED = ("none", "pretrain", "segmentation")
