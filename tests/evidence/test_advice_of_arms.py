"""The advice on a study with arms: which is best, in the words of its tables, and what the rest is about."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from arms_study import ARMS, summarise, write_arms_study

from viny.evidence.advice.facts import TARGET, gather_facts
from viny.evidence.advice.starts import arm_items
from viny.evidence.statistics.crossed import read_scores
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
    facts = gather_facts(root, config, TARGET, None)
    assert list(facts.current) == cells(config)
    said = [item.text for item in arm_items(facts)]
    told = pd.read_csv(root / "tables" / "arm_decisions.csv")
    assert said[:-1] == list(told.loc[told["kind"].isin(["best arm", "what bought the gain"]), "sentence"])
    assert "about one arm alone, a random start," in said[-1]


def test_the_first_arm_reads_its_own_scores(root: Path) -> None:
    facts = gather_facts(root, resolve(merge(read_config(TINY), ARMS)), TARGET, None)
    alone = read_scores(facts.frame, root / "metrics")
    assert list(facts.scores) == list(alone) and set(facts.arm_scores) > {
        (seed, ("random", "study", *key)) for seed, key in alone
    }
    for key, score in alone.items():
        np.testing.assert_equal(vars(facts.scores[key]), vars(score))
