"""The advice on a study with arms: which is best, in the words of its tables, and what the rest is about."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from arms_study import ARMS, summarise, write_arms_study

from viny.evidence.advice.starts import arm_items, evaluated_cells
from viny.study.config import merge, resolve
from viny.study.grid import cells
from viny.study.reading import read_config

TINY = Path(__file__).parents[1] / "tiny.yaml"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made") / "tiny"
    summarise(root, write_arms_study(root))
    return root


def test_the_best_arm_is_named_as_in_the_tables(root: Path) -> None:
    config = resolve(merge(read_config(TINY), ARMS))
    every, there = evaluated_cells(root, config)
    assert every == there == cells(config)
    said = [item.text for item in arm_items(root, config)]
    told = pd.read_csv(root / "tables" / "arm_decisions.csv")
    assert said[:-1] == list(told.loc[told["kind"].isin(["best arm", "what bought the gain"]), "sentence"])
    assert "about one arm alone, a random start," in said[-1]
    assert arm_items(root, resolve(read_config(TINY))) == []
