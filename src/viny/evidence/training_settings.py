"""Table A1: how each stage is trained, the study's settings beside the paper's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from viny.evidence.tables import to_markdown, write_csv
from viny.runtime.files import write_text
from viny.runtime.text import markdown

OPTIMISERS = {"adam": "Adam", "adamw": "AdamW"}
NO_TASK = "no such task"  # in the paper
TITLE = "Table A1: training settings"
ABOUT = (
    "The paper's are those of its Table A1 and, for the tasks on Pets, of its version 2; optimisers, batch sizes and "
    "augmentation are those of its code. A task stands beside the paper's of the same images and kind of target."
)


def training_settings(study: Mapping[str, Any], paper: Mapping[str, Any]) -> pd.DataFrame:
    """One row per stage and setting: stage, setting, this study, the paper, in words.

    Args:
        study: settings by stage, with tasks by name; see `viny.study.specs.tables_spec`.
        paper: likewise.
    """
    rows = []
    for stage, mine in study.items():
        name = _of_paper(stage, mine, paper)
        heading = {"pretrain": "Pre-training", "finetune": "Fine-tuning"}.get(stage, f"Task {stage}")
        heading += "" if name in (stage, None) else f" (paper: {name})"
        theirs = _in_words(paper[name]) if name else {}
        for setting, ours in _in_words(mine).items():
            row = {"Stage": heading, "Setting": setting, "This study": ours}
            rows.append({**row, "The paper": theirs.get(setting, NO_TASK)})
    return pd.DataFrame(rows)


def _of_paper(stage: str, mine: Mapping[str, Any], paper: Mapping[str, Any]) -> str | None:
    """The stage of the paper's that a stage stands beside; of a task the one of the same images and kind of target,
    whatever its name, or None."""

    def kind(section: Mapping[str, Any]) -> tuple[Any, ...]:
        return section.get("source"), section.get("target")  # neither, but of tasks

    names = [stage, *paper]
    return next((name for name in names if name in paper and kind(paper[name]) == kind(mine)), None)


def _in_words(section: Mapping[str, Any]) -> dict[str, str]:
    after = ", ".join(map(str, section["milestones"]))
    return {
        "Epochs": str(section["epochs"]),
        "Optimiser": OPTIMISERS[section["optimizer"]],
        "Learning rate": _number(section["lr"]),
        "Weight decay": _number(section["weight_decay"]),
        "Schedule": f"times {_number(section['gamma'])} after epochs {after}" if after else "constant",
        "Batch size": str(section["batch_size"]),
        "Augmentation": _augmentation(section),
    }


def _augmentation(section: Mapping[str, Any]) -> str:
    words = ["flip"]
    if "crop_scale" in section:
        words.insert(0, f"crop of {section['crop_scale']:.0%} to 100% of the area")
    if section.get("contrast"):
        words.append(f"contrast ±{section['contrast']:.0%}")
    if section.get("mixup"):
        words.append(f"MixUp {_number(section['mixup'])}")
    if "augmentation" in section:
        words.append("drawn anew each epoch" if section["augmentation"] == "fresh" else "drawn once for all epochs")
        words += [] if section["normalise_finetune"] else ["not normalised"]
    return ", ".join(words).replace("%", " %")


def _number(value: float) -> str:
    return f"{value:g}".replace("-", "−")


def write_training_settings(spec: Mapping[str, Any], out_dir: Path) -> None:
    """Write tableA1.csv and .md.

    Args:
        spec: see `viny.study.specs.tables_spec`.
        out_dir: folder for the tables.
    """
    table = training_settings(spec["training"], spec["paper"])
    about = {key: spec[key] for key in ("study", "protocol", "note")}
    write_csv(
        table.rename(columns=lambda name: name.lower().replace(" ", "_")).assign(**about), out_dir / "tableA1.csv"
    )
    lines = [f"Study {spec['study']}, protocol {spec['protocol']}.", ABOUT, spec["note"]]
    heading = " ".join(markdown(line) for line in lines if line)
    write_text(out_dir / "tableA1.md", f"# {TITLE}\n\n{heading}\n\n{to_markdown(table)}")
