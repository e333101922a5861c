"""Decisions on effects: what is named, in simulated studies of known truth, and how it is said."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from viny.evidence.statistics.crossed import Runs
from viny.evidence.statistics.effects import DECISIONS, EFFECTS, decisions_table, effects
from viny.evidence.verdicts import Decision, answer, chance_with, decide, holm, label_question, p_in_words, questions

SIZES, LABELS = (0, 9, 18), (60, 120, 240)


def study(
    rng: np.random.Generator,
    seeds: int = 3,
    tasks: Sequence[str] = ("none", "a"),
    sizes: Sequence[int] = SIZES,
    gain: float = 0.0,
    harm: float = 0.0,
    harm_random: float | None = None,
    spread: float = 0.003,
    shared: float = 0.0,
    images: float = 0.0,
) -> Runs:
    """A study with a gain from pre-training and a harm from tasks.

    Args:
        spread: standard deviation over seeds of a cell.
        shared: correlation of a seed's noise between pre-train sizes.
        images: the noise of the test images in a cell, as a multiple of `spread`.
    """
    keys = list(product(sizes, tasks, LABELS))
    lost = harm if harm_random is None else harm_random
    means = np.array(
        [0.4 + 0.02 * np.log2(n) + gain * (p > 0) - (harm if p else lost) * (t != "none") for p, t, n in keys]
    )
    own = rng.standard_normal((seeds, len(keys)))
    of_seed = np.stack([rng.standard_normal((seeds, len(tasks), len(LABELS)))] * len(sizes), axis=1).reshape(seeds, -1)
    noise = spread * (np.sqrt(1 - shared) * own + np.sqrt(shared) * of_seed)
    moved = spread * images * rng.standard_normal((len(keys), 40)) / np.sqrt(40)
    values = means + noise + moved.sum(1)
    return Runs(keys, range(seeds), values, np.stack([moved - moved.mean(1, keepdims=True)] * seeds))


def of(decisions: Sequence[Decision], kind: str, what: Any = None) -> Decision:
    (found,) = [d for d in decisions if d.kind == kind and what in (None, d.what)]
    return found


@pytest.mark.parametrize(("shared", "images"), [(0.0, 0.0), (0.3, 0.0), (0.0, 2.0), (0.3, 1.0)])
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_effects_that_are_not_there_are_named_in_one_study_of_twenty_at_most(
    seeds: int, shared: float, images: float
) -> None:
    rng = np.random.default_rng(1)
    studies, named = 120, {"pre-training": 0, "task": 0}
    for _ in range(studies):
        runs = study(rng, seeds, ("none", "a", "b"), shared=shared, images=images)
        decisions = answer(runs, [question for question in questions(runs.keys) if question.kind in named], margin=1.0)
        for kind in named:
            named[kind] += any(d.verdict in ("up", "down") for d in decisions if d.kind == kind)
    assert max(named.values()) <= 12  # of 120, where 6 are to be expected; more has a chance of 1 %


def test_seeds_that_differ_between_cells_are_said_in_words() -> None:
    keys = list(product((0, 9), ("none",), (60, 120)))
    values = np.random.default_rng(3).normal(0.5, 0.01, (4, 4))
    apart, alone = values.copy(), values.copy()
    for labels, seeds in ((0, slice(2, 4)), (1, slice(0, 2))):  # no seed has cells of both label sizes
        apart[seeds, labels::2] = np.nan
    (gain,) = decide(Runs(keys, range(4), apart))
    assert gain.n == 4
    assert gain.verdict == "undecided"
    assert "nan" not in gain.sentence
    alone[1:, 3] = np.nan  # one seed has the largest cell, four have the others
    gain = of(decide(Runs(keys, range(4), alone)), "pre-training")
    assert (gain.n, gain.reason) == (4, "a difference with one seed, no interval")


def test_a_cell_whose_images_are_not_known_leaves_its_interval_over_seeds_alone_and_this_is_said() -> None:
    runs = study(np.random.default_rng(4), images=1.0)
    assert runs.moved is not None
    assert "over seeds alone" not in of(decide(runs), "task").sentence
    runs.moved[0, runs.place[9, "a", 60]] = np.nan
    decisions = decide(runs)
    assert ", over seeds alone) on average" in of(decisions, "task").sentence
    assert "over seeds alone" not in of(decisions, "pre-training", 9).sentence


def test_effects_that_are_there_are_named_with_their_sign() -> None:
    decisions = decide(study(np.random.default_rng(2), gain=0.05, harm=0.03))
    assert of(decisions, "pre-training", 9).verdict == of(decisions, "pre-training", 18).verdict == "up"
    assert of(decisions, "task").verdict == "down"
    assert of(decisions, "labels", 18).mean == pytest.approx(0.02, abs=0.01)  # of a doubling
    assert of(decisions, "images").mean == pytest.approx(0.0, abs=0.01)


def test_random_starts_are_not_pooled_with_pretrained_encoders() -> None:
    runs = study(np.random.default_rng(3), harm=0.03, harm_random=-0.03)
    decisions = decide(runs)
    task, apart = of(decisions, "task"), of(decisions, "interaction")
    assert set(task.cells["pretrain_size"]) == {9, 18}
    assert task.mean == pytest.approx(-0.03, abs=0.005)
    assert apart.mean == pytest.approx(-0.06, abs=0.01)
    assert (apart.verdict, of(decisions, "task by size", "a 0").verdict) == ("down", "up")
    assert apart.sentence.startswith("The task a after pre-training, against a random start, hurts more or helps less:")
    alone = decide(study(np.random.default_rng(3), sizes=[0], harm=0.03))
    assert of(alone, "task").verdict == "down"  # nothing else has the task
    assert not any(d.kind == "interaction" for d in alone)


def test_the_interval_of_a_mean_over_the_grid_is_students_over_seeds() -> None:
    runs = study(np.random.default_rng(4), images=0.0)
    found = of(decide(Runs(runs.keys, runs.seeds, runs.values)), "task")
    pairs = [(runs.place[p, "a", n], runs.place[p, "none", n]) for p in SIZES[1:] for n in LABELS]
    each = np.mean([runs.values[:, one] - runs.values[:, other] for one, other in pairs], axis=0)
    half = 4.302653 * each.std(ddof=1) / np.sqrt(3)
    assert (found.low, found.high) == pytest.approx((each.mean() - half, each.mean() + half), rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 0.02))
def test_further_tasks_never_name_what_was_open_without_them(seed: int, harm: float) -> None:
    runs = study(np.random.default_rng(seed), tasks=("none", "a", "b", "c"), harm=harm, spread=0.01)
    few = [i for i, key in enumerate(runs.keys) if key[1] in ("none", "a")]
    alone = of(decide(Runs([runs.keys[i] for i in few], runs.seeds, runs.values[:, few])), "task")
    among = of(decide(Runs(runs.keys, runs.seeds, runs.values)), "task", "a")
    assert among.p == pytest.approx(alone.p)
    assert among.p_holm >= alone.p_holm - 1e-12
    if alone.verdict in ("undecided", "small"):
        assert among.verdict == alone.verdict


def test_holms_correction_is_that_of_statsmodels() -> None:
    p = np.random.default_rng(6).uniform(0, 0.3, 9)
    p[3] = p[5]
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert len(holm([])) == 0
    several = np.vstack([p, np.where(np.arange(9) == 4, np.nan, p)])
    assert holm(several)[0] == pytest.approx(holm(p))
    assert holm(several)[1, 4] != holm(several)[1, 4]
    assert np.delete(holm(several)[1], 4) == pytest.approx(holm(np.delete(p, 4)))


def test_the_chance_with_more_seeds_is_the_decision_s_own_for_twice_as_many() -> None:
    runs = study(np.random.default_rng(8), tasks=("none", "a", "b"), harm=0.03, spread=0.05)
    task = of(decide(runs), "task", "a")
    assert chance_with(runs, task, 6) == task.chance
    assert chance_with(runs, task, 30) > task.chance


def test_what_is_small_is_said_and_what_is_open_has_a_chance() -> None:
    small = of(decide(study(np.random.default_rng(7), spread=0.001)), "task")
    assert (small.verdict, small.words) == ("small", "changes mIoU by under 1 point either way")
    assert np.isnan(small.chance)
    wide = of(decide(study(np.random.default_rng(8), harm=0.03, spread=0.05)), "task")
    assert wide.verdict == "undecided"
    assert 0 <= wide.chance <= 1
    assert wide.chance < 0.005
    assert "6 seeds would decide it with a chance of under 1 %" in wide.sentence
    assert wide.lacks == "seeds"
    noisy = of(decide(study(np.random.default_rng(8), harm=0.01, images=20, spread=0.001)), "task")
    assert (noisy.verdict, noisy.lacks) == ("undecided", "images")
    assert "the draw of the test images leaves more unknown" in noisy.sentence


def test_one_seed_decides_nothing() -> None:
    found = decide(study(np.random.default_rng(9), seeds=1, gain=0.2))
    assert {d.verdict for d in found} == {"undecided"}
    assert np.isnan([(d.low, d.p, d.p_holm, d.chance) for d in found]).all()
    assert all("one seed, no interval" in d.sentence for d in found)


def test_a_sentence_holds_the_name_the_words_and_the_numbers() -> None:
    found = of(decide(study(np.random.default_rng(2), gain=0.05, harm=0.03)), "task")
    interval = f"({100 * found.low:+.2f} to {100 * found.high:+.2f})"
    assert found.sentence.startswith(f"The task a hurts: {100 * found.mean:+.2f} points {interval} on average over 6 ")
    assert found.sentence.count(".") == found.sentence.count(".", 0, -1) + 1


def test_tables_hold_every_decision_and_every_cell() -> None:
    runs = study(np.random.default_rng(10), tasks=("none", "a", "b"), harm=0.03)
    decisions = decide(runs)
    table = decisions_table(decisions)
    assert list(table.columns) == DECISIONS
    assert list(table["sentence"]) == [d.sentence for d in decisions]
    cells = effects(runs)
    assert list(cells.columns) == EFFECTS
    assert len(cells) == 2 * len(SIZES) * len(LABELS)
    assert cells["p_holm"].to_numpy() == pytest.approx(multipletests(cells["p"], method="holm")[1])
    row = cells.iloc[0]
    mine = runs.per_seed(runs.weights({(0, "a", 60): 1.0, (0, "none", 60): -1.0}))[:, 0]
    told = dict(point.split(":") for point in row["points"].split())
    assert [float(told[str(seed)]) for seed in range(3)] == pytest.approx(mine, rel=1e-4)
    assert (row["mean"], row["sd"]) == pytest.approx((mine.mean(), mine.std(ddof=1)))


def test_studies_without_a_question_have_empty_tables_with_all_columns() -> None:
    runs = study(np.random.default_rng(11), tasks=("none",), sizes=(0,))
    assert effects(runs).empty
    assert list(effects(runs).columns) == EFFECTS
    assert {d.kind for d in decide(runs)} == {"labels", "labels fall"}
    one = Runs([(0, "none", 8)], [0, 1], np.zeros((2, 1)))
    assert decide(one) == []
    assert list(decisions_table([]).columns) == DECISIONS
    assert label_question(one.keys, 0, "none") is None


def test_an_interval_clear_of_zero_that_is_one_of_several_says_why_it_names_nothing() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        for d in decide(study(rng, tasks=("none", "a", "b", "c"), harm=0.004)):
            clear = d.low > 0 or d.high < 0
            assert ("corrected for" in d.words) == (clear and d.verdict == "undecided")
            if clear and d.verdict == "undecided":
                assert d.family > 1
                assert f"but {p_in_words(d.p_holm)} after Holm's correction over {d.family}" in d.sentence
                return
    raise AssertionError("no such case in 200 studies")


def test_returns_that_diminish_are_told_from_those_that_do_not() -> None:
    rng = np.random.default_rng(12)
    keys = [(p, "none", n) for p in (0, 10, 20, 40) for n in (50, 100, 200)]
    of_images, of_labels = {0: 0.0, 10: 0.02, 20: 0.06, 40: 0.065}, {50: 0.0, 100: 0.05, 200: 0.06}
    means = np.array([0.3 + of_images[p] + of_labels[n] for p, _, n in keys])
    decisions = decide(Runs(keys, range(4), means + 0.001 * rng.standard_normal((4, len(keys)))))
    labels, images = of(decisions, "labels fall", 40), of(decisions, "images fall")
    assert (labels.verdict, labels.mean) == ("down", pytest.approx(-0.04, abs=0.003))
    assert (images.verdict, images.mean) == ("down", pytest.approx(-0.035, abs=0.003))
    assert labels.sentence.startswith(
        "A doubling of the labels from 100 to 200, against one from 50, with 40 pre-training images, brings less: -"
    )
    assert not any(d.kind == "labels fall" for d in decide(Runs(keys[:2], range(2), np.zeros((2, 2)))))
