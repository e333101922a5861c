"""What sets a study apart from the paper's, table by table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from viny.study.comparable import TABLES, differences_from_paper
from viny.study.config import merge, resolve
from viny.study.protocols import PROTOCOLS
from viny.study.reading import read_config

STUDIES = Path(__file__).parents[2] / "studies"
QUIRKS = {"protocol": "paper"}


def found(name: str, **changes: Any) -> dict[str, list[str]]:
    return differences_from_paper(resolve(merge(read_config(STUDIES / name), changes)))


def test_each_study_of_the_paper_is_like_its_own_tables_alone() -> None:
    version1 = found("paper.yaml", **QUIRKS)
    assert not any(version1[table] for table in ("1", "A2", "A3", "sizes"))
    assert [phrase.split(" is ")[0] for phrase in version1["2"]] == [
        f"intermediate.intel.{key}" for key in ("mixup", "epochs", "milestones")
    ]
    version2 = found("geometry.yaml", **QUIRKS)
    assert not any(version2[table] for table in ("1", "A2", "2", "sizes"))
    assert "intermediate.intel.epochs is 20, the paper's 200" in version2["A3"]
    baseline = found("paper_baseline.yaml")
    assert not any(baseline.values())


def test_under_protocol_sound_only_the_switches_differ() -> None:
    for name, like in (("paper.yaml", ("1", "A2", "A3")), ("geometry.yaml", ("1", "A2", "2"))):
        differences = found(name)
        for table in like:
            assert differences[table]
            assert all(phrase.startswith("switches.") for phrase in differences[table]), (name, table)
    # Encoders are not fine-tuned in Table 2, so what only the fine-tuning uses is no difference.
    assert not any("segmentation_loss" in phrase or "miou" in phrase for phrase in found("geometry.yaml")["2"])


@pytest.mark.parametrize("switch", sorted(PROTOCOLS["paper"]))
def test_every_switch_counts(switch: str) -> None:
    others = {"subsets": "per_seed", "class_token": "always"}
    other = others.get(switch, PROTOCOLS["sound"][switch])
    changes = {switch: other}
    if switch in ("subsets", "pets_pool"):
        changes["test_set"] = "fixed"  # what these need
    differences = found("paper.yaml", protocol="paper", switches=changes)
    for table in ("1", "A2", "A3"):
        assert any(phrase.startswith(f"switches.{switch} is {other}") for phrase in differences[table]), table


@pytest.mark.parametrize(
    ("changes", "tables"),
    [
        ({"model": {"depth": 6}}, {"1", "A2", "A3", "2"}),
        ({"finetune": {"lr": 0.001}}, {"1", "A2", "A3"}),
        ({"pretrain": {"epochs": 3, "milestones": []}}, {"A2", "A3", "2"}),
        ({"pretrain": {"epochs": 3, "milestones": []}, "grid": {"pretrain_sizes": [0]}}, set()),
        ({"segmentation": {"test_size": 500}}, {"1", "A2", "A3"}),
        ({"split_seed": 7}, {"1", "A2", "A3"}),
        ({"intermediate": {"intel": {"pooling": "mean"}}}, {"A3", "2"}),
        ({"grid": {"intermediates": ["none"]}}, set()),
        ({"grid": {"intermediates": ["none", "scenes"]}}, {"A3", "2"}),
        ({"grid": {"finetune_sizes": [100, 250]}}, {"sizes"}),
        ({"grid": {"pretrain_sizes": [0, 8800]}}, {"sizes"}),
        ({"grid": {"finetune_sizes": [300, 5000]}}, set()),
    ],
)
def test_a_difference_is_one_of_the_tables_that_it_changes(changes: dict[str, Any], tables: set[str]) -> None:
    like = found("paper.yaml", **QUIRKS)
    differences = found("paper.yaml", **QUIRKS, **changes)
    changed = {table for table in (*TABLES, "sizes") if set(differences[table]) - set(like[table])}
    assert changed == tables


def test_a_gamma_without_milestones_changes_nothing() -> None:
    intel = {"intermediate": {"intel": {"gamma": 0.5}}}
    assert found("geometry.yaml", **QUIRKS, **intel)["2"] == []
    assert any("gamma" in phrase for phrase in found("paper.yaml", **QUIRKS, **intel)["A3"])
