"""Intervals over seeds and test images, compared with scipy, statsmodels, a bootstrap, and simulated studies."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from viny.evidence.metrics import iou
from viny.evidence.statistics.crossed import Runs, influence, read_confusion, read_runs
from viny.evidence.tables import KEYS
from viny.runtime.errors import InputError

ONE = np.ones((1, 1))


def one_cell(
    rng: np.random.Generator, seeds: int, images: int, of_seeds: float, of_images: float, of_both: float
) -> Runs:
    """A cell whose value is a mean over images; its seeds, images and their crossing have the given spreads."""
    parts = of_seeds * rng.standard_normal((seeds, 1)), of_images * rng.standard_normal((1, images))
    scores = sum(parts) + of_both * rng.standard_normal((seeds, images))
    values = scores.mean(1, keepdims=True)
    return Runs([0], range(seeds), values, ((scores - values) / images)[:, None])


@pytest.mark.parametrize("seeds", [2, 3, 7])
def test_without_test_images_an_interval_is_students(seeds: int) -> None:
    values = np.random.default_rng(0).normal(0.02, 0.01, (seeds, 2))
    found = Runs(["a", "b"], range(seeds), values).contrasts(np.array([[1.0, -1.0], [1.0, 0.0]]))
    for place, mine in enumerate((values[:, 0] - values[:, 1], values[:, 0])):
        expected = stats.ttest_1samp(mine, 0)
        interval = expected.confidence_interval(0.95)
        assert (found.low[place], found.high[place]) == pytest.approx((interval.low, interval.high))
        assert (found.p[place], found.df[place]) == pytest.approx((expected.pvalue, seeds - 1))
    assert np.isnan(found.se_images).all()


def test_the_variance_is_that_of_a_crossed_analysis_of_variance() -> None:
    runs = one_cell(np.random.default_rng(1), 4, 30, 0.5, 2.0, 1.0)
    assert runs.moved is not None
    scores = runs.moved[:, 0] * 30 + runs.values
    frame = pd.DataFrame(
        [(s, i, scores[s, i]) for s, i in product(range(4), range(30))], columns=["seed", "image", "score"]
    )
    squares = anova_lm(ols("score ~ C(seed) + C(image)", frame).fit())["mean_sq"]
    found = runs.contrasts(ONE).at()
    # The variance of the grand mean under random effects of both; Searle, Casella and McCulloch 1992, section 4.3.
    assert found["se"] ** 2 == pytest.approx((squares["C(seed)"] + squares["C(image)"] - squares["Residual"]) / 120)
    assert found["se_seeds"] ** 2 == pytest.approx(squares["C(seed)"] / 120)


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("noise", [0.0, 1.0, 2.0])
def test_intervals_cover_the_truth_whatever_the_noise_of_the_images(seeds: int, noise: float) -> None:
    rng = np.random.default_rng(2)
    studies, images = 1500, 100
    hit = 0
    for _ in range(studies):
        found = one_cell(rng, seeds, images, 1.0, noise * np.sqrt(images), 5.0).contrasts(ONE)
        hit += bool(found.low[0] <= 0 <= found.high[0])
    assert 0.93 - 0.012 < hit / studies < 0.97 + 0.012  # two standard errors of such a share


def test_the_mean_of_contrasts_is_the_contrast_of_means() -> None:
    rng = np.random.default_rng(3)
    runs = Runs(range(4), range(5), rng.normal(0.5, 0.02, (5, 4)), rng.normal(0, 0.001, (5, 4, 40)))
    weights = np.array([[1, -1, 0, 0], [0, 0, 1, -1.0]])
    one, other = runs.mean_of(weights).at(), runs.contrasts(weights.mean(0, keepdims=True)).at()
    assert one == pytest.approx(other)
    shares = runs.mean_of(weights, np.array([2.0, -1.0])).at()
    assert shares == pytest.approx(runs.contrasts(np.array([[2, -2, -1, 1.0]])).at())


def test_a_seed_that_lacks_a_cell_counts_where_it_has_both() -> None:
    values = np.array([[0.5, 0.4, 0.6, 0.5], [0.6, 0.4, np.nan, 0.5], [0.7, 0.4, 0.7, 0.5]])
    runs = Runs(range(4), range(3), values)
    weights = np.array([[1, -1, 0, 0], [0, 0, 1, -1.0]])
    found = runs.contrasts(weights)
    assert list(found.n) == [3, 2]
    assert found.mean == pytest.approx([0.2, 0.15])
    mean = runs.mean_of(weights).at()
    assert (mean["mean"], mean["n"]) == (pytest.approx(0.175), 3)
    alone = Runs(range(4), range(3), np.where(np.arange(3)[:, None] > 0, np.array([1, 1, np.nan, 1]), 1) * values)
    assert list(alone.contrasts(weights).n) == [3, 1]
    assert np.isnan(alone.mean_of(weights).low[0])  # one of the contrasts has no spread


@pytest.mark.parametrize(("seeds", "df"), [([4, 4], 3), ([10, 2], 1.28), ([2] * 9 + [10], 1)])
def test_a_mean_has_the_freedom_of_those_with_few_seeds(seeds: list[int], df: float) -> None:
    rng = np.random.default_rng(10)
    cells, studies, hit = len(seeds), 1000, 0
    for _ in range(studies):
        values = rng.standard_normal((max(seeds), cells))
        values[np.arange(len(values))[:, None] >= seeds] = np.nan
        found = Runs(range(cells), range(len(values)), values).mean_of(np.eye(cells)).at()
        hit += found["low"] <= 0 <= found["high"]
    assert found["df"] == pytest.approx(df, abs=0.05)
    assert found["n"] == max(seeds)
    assert hit / studies > 0.93


def test_draws_of_a_cell_are_as_wide_as_its_own_seeds_allow() -> None:
    values = np.random.default_rng(11).standard_normal((10, 2))
    values[2:, 0] = np.nan
    runs = Runs("ab", range(10), values)
    found, drawn = runs.contrasts(np.eye(2)), runs.draws(100_000)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    assert (high - low) / (found.high - found.low) == pytest.approx(1, rel=0.05)


def test_seeds_that_happen_to_agree_do_not_hide_the_noise_of_the_images() -> None:
    rng = np.random.default_rng(11)
    narrower, wider = 0, []
    for _ in range(300):
        runs = one_cell(rng, 3, 60, 0.0, 0.0, 1.0)
        found = runs.contrasts(ONE).at()
        assert runs.moved is not None
        images = np.sqrt(60 / 59 * (runs.moved[:, 0].mean(0) ** 2).sum())
        narrower += found["high"] - found["low"] < 2 * 1.96 * images * (1 - 1e-9)
        wider.append(found["low"] <= 0 <= found["high"])
    assert not narrower
    assert np.mean(wider) > 0.93


def test_nothing_is_asked_of_nothing() -> None:
    runs = one_cell(np.random.default_rng(1), 3, 10, 1.0, 1.0, 1.0)
    assert len(runs.contrasts(np.zeros((0, 1))).mean) == 0
    assert len(Runs(runs.keys, runs.seeds, runs.values).contrasts(np.zeros((0, 1))).low) == 0


def test_identical_runs_have_no_spread_and_no_division_by_it() -> None:
    found = Runs(["a"], range(3), np.full((3, 1), 0.5)).contrasts(np.array([[1.0], [0.0]]))
    assert (found.low == found.high).all()
    assert list(found.p) == [0.0, 1.0]


@pytest.mark.parametrize("kind", ["dataset", "per_image"])
def test_the_influence_of_images_agrees_with_a_bootstrap(kind: str) -> None:
    rng = np.random.default_rng(4)
    one = (rng.integers(0, 60, (300, 4, 4)) * rng.uniform(0, 1, (300, 1, 1))).astype(int)
    one[:, 3] = one[:, :, 3] = 0  # a class that occurs nowhere
    other = one + rng.integers(0, 20, one.shape) * (one > 0)

    def miou(confusion: np.ndarray) -> float:
        return (
            float(np.nanmean(iou(confusion.sum(0))))
            if kind == "dataset"
            else float(np.nan_to_num(iou(confusion)).mean())
        )

    drawn = []
    for _ in range(1500):
        rows = rng.integers(0, 300, 300)
        drawn.append(miou(one[rows]) - miou(other[rows]))
    moved = np.stack([influence(one, kind), influence(other, kind)])[None]
    runs = Runs(["one", "other"], [0, 1], np.zeros((2, 2)), np.repeat(moved, 2, axis=0))
    assert runs.contrasts(np.array([[1.0, -1.0]])).se_images[0] == pytest.approx(np.std(drawn), rel=0.06)
    with pytest.raises(InputError, match="expected dataset or per_image"):
        influence(one, "other")


def test_models_on_the_same_images_share_their_draw_and_those_on_others_do_not() -> None:
    moved = np.zeros((2, 3, 40))
    moved[:, 0, :20] = moved[:, 1, :20] = np.linspace(-1, 1, 20) / 100
    moved[:, 2, 20:] = np.linspace(-1, 1, 20) / 100
    tested = np.zeros((3, 40), bool)
    tested[:2, :20] = tested[2, 20:] = True
    found = Runs(range(3), range(2), np.full((2, 3), 0.5), moved, tested).contrasts(
        np.array([[1, -1, 0], [1, 0, -1], [1, 0, 0.0]])
    )
    alone = found.se_images[2]
    assert found.se_images[0] == 0
    assert alone == pytest.approx(np.sqrt(20 / 19 * (moved[0, 0] ** 2).sum()))
    assert found.se_images[1] == pytest.approx(np.sqrt(2) * alone, rel=0.02)


@pytest.mark.parametrize(("images", "wider"), [(0, 1.0), (50, 1.15)])
def test_quantiles_of_draws_are_the_ends_of_the_interval_or_a_little_wider(images: int, wider: float) -> None:
    rng = np.random.default_rng(5)
    moved = rng.normal(0, 0.001, (1, 3, images)) + rng.normal(0, 0.0003, (4, 3, images)) if images else None
    runs = Runs(range(3), range(4), rng.normal(0.5, 0.02, (4, 3)), moved)
    weights = np.array([[1, -1, 0], [0.5, 0.5, -1.0]])
    found, drawn = runs.contrasts(weights), runs.draws(200_000) @ weights.T
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    assert drawn.mean(0) == pytest.approx(found.mean, abs=1e-3)
    ratio = (high - low) / (found.high - found.low)
    assert ((ratio > 0.97) & (ratio < 1.03 * wider)).all()
    assert np.array_equal(runs.draws(5, seed=1), runs.draws(5, seed=1))


def test_the_chance_of_a_decision_is_that_of_the_normal_distribution_where_much_is_known() -> None:
    values = np.random.default_rng(6).standard_normal((80, 1))
    values += 0.1 - values.mean()
    runs = Runs(["a"], range(80), values)
    se, later = values.std(ddof=1) / np.sqrt(80), values.std(ddof=1) / np.sqrt(160)
    # Of the mean of 160, given that of 80: half of its deviation comes from the truth, half from the noise to come.
    spread = np.sqrt(se**2 / 4 + se**2 / 4)
    expected = stats.norm.sf(1.97 * later, 0.1, spread) + stats.norm.cdf(-1.97 * later, 0.1, spread)
    assert runs.chance(ONE, 160, count=4000) == pytest.approx(expected, abs=0.04)


def test_the_chance_of_a_decision_grows_with_the_effect_and_needs_a_spread() -> None:
    rng = np.random.default_rng(7)
    noise = rng.normal(0, 0.01, (3, 2))
    noise -= noise.mean(0)
    found = [Runs("ab", range(3), noise + mean).chance(np.eye(2)[:1], 6) for mean in (0.0, 0.01, 0.1)]
    assert found == sorted(found)
    assert found[0] < 0.3 < 0.9 < found[2]
    both = Runs("ab", range(3), noise + np.array([0.1, 0.0])).chance(np.eye(2), 6)
    assert both < 0.3  # all contrasts have to be above zero
    assert np.isnan(Runs("a", range(1), np.zeros((1, 1))).chance(ONE, 6))
    assert Runs("a", range(3), noise[:, :1] / 10).chance(ONE, 6, margin=0.01) > 0.9


def test_a_seed_with_half_of_a_pair_tells_nothing_of_the_images_in_a_chance() -> None:
    rng = np.random.default_rng(12)
    values, moved = rng.normal((0.01, 0.0), 0.001, (6, 2)), np.tile(rng.normal(0, 0.01, (1, 1, 50)), (6, 2, 1))
    values[3:, 1], moved[3:, 1] = np.nan, 0  # the first three have both, and the images move both alike
    whole, part = (Runs("ab", range(n), values[:n], moved[:n]) for n in (3, 6))
    weights = np.array([[1.0, -1.0]])
    assert part.chance(weights, 6) == whole.chance(weights, 6) > 0.9


def test_many_images_leave_seeds_alone_unable_to_decide() -> None:
    rng = np.random.default_rng(8)
    runs = one_cell(rng, 5, 50, 0.001, 1.0, 0.0)
    far = Runs(runs.keys, runs.seeds, runs.values - runs.values.mean() + 0.1, runs.moved)
    assert far.contrasts(ONE).low[0] < 0
    assert far.chance(ONE, 100) < 0.05


# Reading


def cells(tmp_path: Path, lacking: str = "") -> pd.DataFrame:
    rng, rows = np.random.default_rng(9), []
    for seed, labels in product((3, 5), (8, 16)):
        confusion = rng.integers(1, 50, (12, 2, 2))
        name = f"{labels}-{seed}"
        if name != lacking:
            np.savez(tmp_path / f"{name}.npz", confusion=confusion, indices=np.arange(12) + labels)
        rows.append((0, "none", labels, seed, name, float(np.nanmean(iou(confusion.sum(0))))))
    return pd.DataFrame(rows, columns=[*KEYS, "cell", "miou"]).assign(miou_is="dataset")


def test_a_study_is_read_with_each_cells_own_images(tmp_path: Path) -> None:
    runs = read_runs(cells(tmp_path), tmp_path)
    assert (list(runs.keys), list(runs.seeds)) == ([(0, "none", 8), (0, "none", 16)], [3, 5])
    assert runs.moved is not None
    assert runs.tested is not None
    assert runs.moved.shape == (2, 2, 20)
    assert list(runs.tested.sum(1)) == [12, 12]
    assert np.isfinite(runs.contrasts(np.array([[1.0, -1.0]])).se_images).all()


def test_groups_stand_for_images_so_that_copies_of_an_image_bring_no_certainty(tmp_path: Path) -> None:
    rng, rows = np.random.default_rng(10), []
    images = rng.integers(5, 500, (8, 2, 2))
    for seed in range(3):
        once = images + rng.integers(0, 4, (8, 2, 2))
        for kind, copies in (("once", 1), ("copied", 5), ("grouped", 5)):
            arrays = {"confusion": once.repeat(copies, 0), "indices": np.arange(8 * copies)}
            if kind == "grouped":
                arrays["groups"] = np.arange(8).repeat(copies) + 100
            (tmp_path / kind).mkdir(exist_ok=True)
            np.savez(tmp_path / kind / f"{seed}.npz", **arrays)
        rows.append((0, "none", 8, seed, str(seed), float(np.nanmean(iou(once.sum(0)))), "dataset"))
    frame = pd.DataFrame(rows, columns=[*KEYS, "cell", "miou", "miou_is"])
    runs = {kind: read_runs(frame, tmp_path / kind) for kind in ("once", "copied", "grouped")}
    assert [one.groups for one in runs.values()] == [0, 0, 8]
    assert [one.drawn for one in runs.values()] == ["test images", "test images", "groups of test images"]
    found = {kind: one.contrasts(np.eye(1)).at() for kind, one in runs.items()}
    assert found["grouped"] == pytest.approx(found["once"])
    assert found["copied"]["se_images"] < 0.6 * found["once"]["se_images"]


def test_cells_without_confusion_matrices_have_intervals_over_seeds_alone(tmp_path: Path) -> None:
    frame = cells(tmp_path, lacking="16-5")
    found = read_runs(frame, tmp_path).contrasts(np.eye(2))
    assert list(np.isnan(found.se_images)) == [False, True]
    assert found.se[1] == found.se_seeds[1]
    assert read_runs(frame, None).moved is None


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"confusion": np.ones((4, 2, 2)), "indices": np.arange(4)}, "not whole numbers"),
        ({"confusion": np.ones((4, 2, 3), int), "indices": np.arange(4)}, r"expected \[N, C, C\]"),
        ({"confusion": np.ones((4, 2, 2), int), "indices": np.arange(3)}, r"expected \[N, C, C\]"),
        ({"confusion": np.ones((4, 2, 2), int)}, "indices"),
        ({"confusion": np.ones((4, 2, 2), int), "indices": np.arange(4), "groups": np.arange(3)}, "groups"),
    ],
)
def test_damaged_matrices_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], words: str) -> None:
    np.savez(tmp_path / "cell.npz", **arrays)
    with pytest.raises(InputError, match=words) as caught:
        read_confusion(tmp_path / "cell.npz")
    assert "cell.npz" in str(caught.value)
