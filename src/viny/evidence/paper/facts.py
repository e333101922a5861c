"""What the paper says: its numbers and its tasks."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pandas as pd

PAPER = Path(__file__).with_name("paper.csv")
TASK = "intel"  # version 1 has no other task
CLASSIFICATION = ("intel", "pets_classes")  # of version 2
SPATIAL = ("pets_spatial",)
REGIMES = {"none": "pre-trained", "intel": "CLS-Intel", "pets_classes": "CLS-Pets", "pets_spatial": "Spatial"}
ROUNDING = {"within_image_variance": 0.005, "across_image_variance": 0.005, "probe_paper": 0.0005}  # of Table 2
NAMES = {"accuracy": "pixel accuracy", "miou": "mIoU", "probe_paper": "patch probe, training accuracy"}


@cache
def _paper() -> pd.DataFrame:
    return pd.read_csv(PAPER, dtype={"table": str})


def paper_facts() -> pd.DataFrame:
    """The paper's numbers.

    Returns:
        One row per number: table ('1', 'A2', 'A3'; '2' of version 2), pretrain_size, intermediate, finetune_size (0 in
        Table 2, whose encoders are not fine-tuned), metric (accuracy, miou; within_image_variance,
        across_image_variance, probe_paper), mean and spread (fractions; variances as they are), runs. Table 2 has no
        spread and no runs.
    """
    return _paper().copy()
