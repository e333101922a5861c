"""Statistics of paired effects, compared with scipy, loops over all flips, and simulated studies of known truth."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from viny.evidence import metrics
from viny.evidence.statistics import effects
from viny.evidence.tables import KEYS
from viny.runtime.errors import InputError

SIZES, LABELS = (0, 9), (250, 500)


def study(differences: dict[tuple[int, int, int], float], task: str = "a") -> pd.DataFrame:
    """Cells whose paired differences are given by (pretrain_size, finetune_size, seed)."""
    rng = np.random.default_rng(1)
    rows = []
    for (size, labels, seed), difference in differences.items():
        base = rng.uniform(0.4, 0.6)
        rows += [(size, "none", labels, seed, base), (size, task, labels, seed, base + difference)]
    return pd.DataFrame(rows, columns=[*KEYS, "miou"]).assign(pixel_accuracy=0.7)


def draws(seeds: int, sizes: tuple[int, ...] = SIZES, seed: int = 0) -> dict[tuple[int, int, int], float]:
    rng = np.random.default_rng(seed)
    return {key: rng.normal(0.02, 0.01) for key in product(sizes, LABELS, range(seeds))}


def flips(values: np.ndarray) -> float:
    """Two-sided sign-flip p, one flip after the other."""
    sums = [abs(np.dot(signs, values)) for signs in product((1, -1), repeat=len(values))]
    return float(np.mean(np.array(sums) >= abs(values.sum()) - 1e-12))


@pytest.mark.parametrize("seeds", [2, 3, 7])
def test_a_cell_agrees_with_scipy_and_with_every_flip(seeds: int) -> None:
    raw = draws(seeds)
    table = effects.effects(study(raw).sample(frac=1, random_state=0))
    assert list(table.columns) == effects.EFFECTS
    assert len(table) == 4
    for row in table.itertuples():
        mine = np.array([raw[row.pretrain_size, row.finetune_size, seed] for seed in range(seeds)])
        interval = stats.ttest_1samp(mine, 0).confidence_interval(0.95)
        assert (row.low, row.high) == pytest.approx((interval.low, interval.high))
        assert (row.mean, row.sd, row.se) == pytest.approx((mine.mean(), np.std(mine, ddof=1), stats.sem(mine)))
        assert row.p_sign_flip == pytest.approx(flips(mine))
        assert row.p_least == 2 / 2**seeds
        told = dict(point.split(":") for point in row.points.split())
        assert [float(told[str(seed)]) for seed in range(seeds)] == pytest.approx(mine, abs=1e-6)


def test_holm_is_over_all_cells_of_the_table() -> None:
    raw = draws(6)
    table = effects.effects(pd.concat([study(raw), study(draws(6, seed=5), "b").query("intermediate == 'b'")]))
    order = np.argsort(table["p_sign_flip"].to_numpy(), kind="stable")
    assert len(order) == 8
    running = 0.0
    for rank, place in enumerate(order):  # Holm's steps by hand
        running = max(running, min(1.0, (8 - rank) * table["p_sign_flip"][place]))
        assert table["p_holm"][place] == pytest.approx(running)


def test_three_seeds_are_told_that_they_cannot_reach_a_level() -> None:
    table = effects.effects(study({key: -0.1 - 0.001 * key[2] for key in draws(3)}))
    assert set(table["p_sign_flip"]) == {0.25}
    assert set(table["verdict"]) == {"lower in 3 of 3 seeds; 3 seeds cannot reach p < 0.05 (least 0.25)"}


def test_what_many_seeds_show_is_said_and_what_holm_forbids_too() -> None:
    raw = {(size, 250, seed): -0.1 - 0.001 * seed for size in range(2) for seed in range(7)}
    assert all(v.startswith("lowers the metric (Holm's p 0.03") for v in effects.effects(study(raw))["verdict"])
    raw = {(size, 250, seed): 0.1 for size in range(4) for seed in range(7)}
    words = "higher in 7 of 7 seeds; 7 seeds cannot reach p < 0.05 in one of 4 cells after Holm (least 0.062)"
    assert set(effects.effects(study(raw))["verdict"]) == {words}
    raw = {(0, 250, seed): 0.1 * (-1) ** seed for seed in range(8)}
    assert "no effect shown" in effects.effects(study(raw))["verdict"][0]


def test_one_seed_has_no_spread_and_missing_seeds_do_not_count() -> None:
    frame = study({(0, 250, 0): 0.1, (9, 250, 0): 0.1, (9, 250, 1): 0.3, (9, 250, 2): 0.2})
    frame = frame.drop(frame.query("pretrain_size == 9 and seed == 1 and intermediate == 'none'").index)
    one, two = effects.effects(frame).to_dict("records")
    assert (one["n"], one["verdict"]) == (1, "one seed has no spread")
    assert np.isnan([one[k] for k in ("sd", "se", "low", "high")]).all()
    assert (two["n"], two["points"]) == (2, "0:0.1 2:0.2")
    assert two["mean"] == pytest.approx(0.15)


def test_a_study_without_pairs_has_empty_tables_with_all_columns() -> None:
    frame = study(draws(3)).query("intermediate == 'none'")
    for make, columns in ((effects.effects, effects.EFFECTS), (effects.overall, effects.OVERALL)):
        table = make(frame)
        assert table.empty
        assert list(table.columns) == columns
        with pytest.raises(InputError, match="no_such"):
            make(frame, "no_such")


@pytest.mark.parametrize("n", [3, 6, 9])
def test_the_sign_flip_test_holds_its_level_exactly(n: int) -> None:
    sizes = np.random.default_rng(n).uniform(0.5, 2, n)
    ps = np.array([effects.sign_flip(np.array(signs) * sizes)[0] for signs in product((1, -1), repeat=n)])
    for level in np.unique(ps):  # over all signs, which are equally likely if there is no effect
        assert np.mean(ps <= level + 1e-12) == pytest.approx(level)
    assert ps.min() == pytest.approx(effects.sign_flip(sizes)[1])


def test_drawn_flips_agree_with_all_of_them() -> None:
    values = np.random.default_rng(2).normal(0.4, 1, 17)
    signs = 1 - 2 * ((np.arange(2**17)[:, None] >> np.arange(17)) & 1)
    exact = np.mean(np.abs(signs @ values) >= abs(values.sum()) - 1e-12)
    p, least = effects.sign_flip(values)
    assert p == pytest.approx(exact, abs=0.01)
    assert p != exact
    assert effects.sign_flip(values) == (p, least)
    strong, least = effects.sign_flip(np.ones(20))
    assert strong == pytest.approx(least)
    assert least > 0


def test_the_average_weighs_cells_equally_and_flips_whole_encoders() -> None:
    raw = draws(3, seed=3)
    del raw[9, 500, 1], raw[0, 250, 2]
    table = effects.overall(study(raw).sample(frac=1, random_state=1), resamples=200)
    assert list(table["over"]) == ["one size", "one size", "all sizes"]
    assert table["pretrain_size"].isna().tolist() == [False, False, True]
    series = pd.Series(raw)
    cells = series.groupby(level=[0, 1]).mean()
    assert table["mean"][2] == pytest.approx(cells.mean())
    assert list(table["mean"][:2]) == pytest.approx(list(cells.groupby(level=0).mean()))
    weights = 1 / series.groupby(level=[0, 1]).transform("size") / 4
    clusters = (series * weights).groupby(level=[0, 2]).sum()
    assert table["p_sign_flip"][2] == pytest.approx(flips(clusters.to_numpy()))
    assert (table["cells"][2], table["pairs"][2], table["clusters"][2]) == (4, 10, 6)
    assert table["p_least"][2] == 2 / 2**6
    assert "cannot reach p < 0.05 (least 0.25)" in table["verdict"][0]


def test_the_interval_of_the_average_is_that_of_its_encoders_means() -> None:
    raw = draws(3, sizes=(0, 9, 90), seed=4)
    row = effects.overall(study(raw), resamples=500, seed=7).iloc[-1]
    means = pd.Series(raw).groupby(level=[0, 2]).mean().unstack()
    deviations = means.sub(means.mean(axis=1), axis=0).to_numpy() * np.sqrt(3 / 2) / 9
    expected = effects.cluster_interval(list(deviations), means.to_numpy().mean(), 500, 7)
    assert [row[k] for k in ("se", "low", "high")] == pytest.approx([expected[k] for k in ("se", "low", "high")])
    assert row["se"] == pytest.approx(np.sqrt((means.var(axis=1, ddof=1) / 3).sum()) / 3)


def test_many_clusters_give_the_t_interval() -> None:
    values = np.random.default_rng(5).normal(size=80)
    scores = (values - values.mean()) * np.sqrt(80 / 79) / 80
    found = effects.cluster_interval([scores], values.mean(), 20_000, 0)
    interval = stats.ttest_1samp(values, 0).confidence_interval()
    assert found["se"] == pytest.approx(stats.sem(values))
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high), abs=0.02)


@pytest.mark.parametrize(
    ("sizes", "labels", "spreads"),
    [(4, 6, (1, 1, 1, 1)), (4, 6, (0.3, 1, 1, 3)), (2, 2, (1, 1)), (2, 2, (0.5, 1.5)), (1, 6, (1,))],
    ids=["paper's grid", "paper's grid, unequal spreads", "small grid", "small grid, unequal spreads", "one size"],
)
def test_the_interval_covers_the_truth_in_95_of_100_studies(
    sizes: int, labels: int, spreads: tuple[float, ...]
) -> None:
    studies, seeds = 1000, 3
    rng = np.random.default_rng(11)
    truth = rng.normal(size=(sizes, labels))
    encoders = rng.normal(size=(studies, sizes, 1, seeds))  # what all cells of an encoder share
    noise = rng.normal(size=(studies, sizes, labels, seeds))
    values = truth[..., None] + np.array(spreads)[:, None, None] * (encoders + noise)
    means = values.mean(2)  # [studies, sizes, seeds]
    deviations = means - means.mean(2, keepdims=True)
    covered = plain = 0
    for mine, of_study in zip(deviations, values.mean((1, 2, 3)), strict=True):
        scores = list(mine * np.sqrt(seeds / (seeds - 1)) / seeds / sizes)
        found = effects.cluster_interval(scores, of_study, 1000, 3)
        covered += found["low"] <= truth.mean() <= found["high"]
        drawn = sum(effects.resample_counts(seeds, 200, rng) @ d for d in mine) / seeds / sizes
        low, high = of_study + np.quantile(drawn, [0.025, 0.975])
        plain += low <= truth.mean() <= high
    assert 0.93 <= covered / studies <= 0.97
    assert plain / studies < 0.91  # what the plain percentile interval from so few encoders would do


@pytest.mark.parametrize(
    ("drop", "words"),
    [
        ([(9, 500, 0), (9, 500, 1)], "no interval: 1 cell with one seed"),
        ([(9, labels, seed) for labels in LABELS for seed in (0, 1)], "no interval: 1 pre-train size with one encoder"),
    ],
)
def test_a_design_that_supports_no_interval_gets_words(drop: list[tuple[int, int, int]], words: str) -> None:
    raw = {key: value for key, value in draws(3).items() if key not in drop}
    row = effects.overall(study(raw), resamples=100).iloc[-1]
    assert row["verdict"].startswith(words)
    assert row[["se", "low", "high"]].isna().all()
    assert np.isfinite(row["mean"])


def test_two_encoders_support_no_interval_and_four_do() -> None:
    one, _, both = effects.overall(study(draws(2)), resamples=100).to_dict("records")
    assert "2 encoders do not support one" in one["verdict"]
    assert np.isnan(one["low"])
    assert both["low"] < both["mean"] < both["high"]


def matrices(n: int, seed: int, accuracy: float, classes: int = 3) -> np.ndarray:
    """Confusion matrices of n images, some without the last class."""
    rng = np.random.default_rng(seed)
    truth = rng.multinomial(400, [0.5, 0.4, 0.1][:classes], size=n)
    truth[: n // 4, -1] = 0
    sure = rng.binomial(truth, accuracy)
    out = np.zeros((n, classes, classes), np.int64)
    for c in range(classes):
        out[:, c, c] += sure[:, c]
        out[:, c, (c + 1) % classes] += truth[:, c] - sure[:, c]
    return out


def test_image_noise_agrees_with_scipy_and_the_delta_method() -> None:
    one, other = matrices(80, 0, 0.8), matrices(80, 1, 0.7)
    table = effects.image_noise([(one, other), (other, other)], resamples=4000)
    whole, of_images = table.iloc[0], table.iloc[1]
    every = [0, 1, 2]
    assert whole["difference"] == pytest.approx(
        metrics.mean_iou_dataset(one, every) - metrics.mean_iou_dataset(other, every)
    )
    assert of_images["difference"] == pytest.approx(
        metrics.mean_iou_per_image(one, every) - metrics.mean_iou_per_image(other, every)
    )

    def difference(images: np.ndarray, axis: int = -1) -> float:
        at = images.astype(int)
        return metrics.mean_iou_dataset(one[at], every) - metrics.mean_iou_dataset(other[at], every)

    oracle = stats.bootstrap(
        (np.arange(80),), difference, n_resamples=1500, method="percentile", vectorized=False, rng=3
    )
    assert whole["se_images"] == pytest.approx(oracle.standard_error, rel=0.07)
    interval = oracle.confidence_interval
    assert (whole["low_images"], whole["high_images"]) == pytest.approx((interval.low, interval.high), abs=0.002)
    per_image = (np.nan_to_num(metrics.iou(one)) - np.nan_to_num(metrics.iou(other))).mean(1)
    assert of_images["se_images"] == pytest.approx(per_image.std() / np.sqrt(80), rel=0.05)
    same = table[table["pair"] == 1]  # a model against itself: no noise, as the images are drawn in pairs
    assert (same[effects.NOISE] == 0).all(axis=None)


def test_image_noise_leaves_out_classes_that_never_occur() -> None:
    one, other = matrices(30, 0, 0.8, 2), matrices(30, 1, 0.7, 2)
    padded = [np.pad(m, ((0, 0), (0, 1), (0, 1))) for m in (one, other)]
    small, large = (effects.image_noise([p], 100).iloc[0] for p in ((one, other), tuple(padded)))
    assert list(small[effects.NOISE]) == pytest.approx(list(large[effects.NOISE]))


@pytest.mark.parametrize("shape", [(5, 3, 3), (4, 3, 2), (3, 3), (0, 3, 3)])
def test_image_noise_refuses_what_is_no_pair(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="pair 0"):
        effects.image_noise([(np.zeros(shape, int), np.zeros((4, 3, 3), int))])
    if shape != (5, 3, 3):
        with pytest.raises(InputError, match="pair 0"):
            effects.image_noise([(np.zeros(shape, int), np.zeros(shape, int))])


def evaluated(folder: Path, kind: str = "dataset") -> pd.DataFrame:
    """Cells with files of confusion matrices."""
    rows = []
    mean = {"dataset": metrics.mean_iou_dataset, "per_image": metrics.mean_iou_per_image}[kind]
    for i, (size, task, seed) in enumerate(product(SIZES, ("none", "a", "b"), range(2))):
        confusion = matrices(20, i, 0.6 + 0.01 * i)
        name = f"pre-{size}_mid-{task}_fine-250_seed-{seed}"
        np.savez_compressed(folder / f"{name}.npz", confusion=confusion.astype(np.int32), indices=np.arange(20))
        rows.append((size, task, 250, seed, mean(confusion, [0, 1, 2]), name))
    return pd.DataFrame(rows, columns=[*KEYS, "miou", "cell"]).assign(miou_is=kind)


@pytest.mark.parametrize("kind", ["dataset", "per_image"])
def test_noise_of_a_study_is_that_of_each_pair(tmp_path: Path, kind: str) -> None:
    frame = evaluated(tmp_path, kind)
    table = effects.noise_of_images(tmp_path, frame.sample(frac=1, random_state=0), resamples=200)
    assert list(table.columns) == [*KEYS, "miou_is", *effects.NOISE]
    assert len(table) == 8
    row = table.query("pretrain_size == 9 and intermediate == 'b' and seed == 1").iloc[0]
    pair = tuple(np.load(tmp_path / f"pre-9_mid-{t}_fine-250_seed-1.npz")["confusion"] for t in ("b", "none"))
    expected = effects.image_noise([pair], 200).set_index("miou_is").loc[kind]
    assert list(row[effects.NOISE]) == pytest.approx(list(expected[effects.NOISE]))
    pd.testing.assert_frame_equal(table, effects.noise_of_images(tmp_path, frame, resamples=200))


def other_images(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return arrays | {"indices": arrays["indices"] + 1}


def other_numbers(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return arrays | {"confusion": arrays["confusion"] + 5}


def no_indices(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"confusion": arrays["confusion"]}


def not_square(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return arrays | {"confusion": arrays["confusion"][:, :2]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_images, "other test images"),
        (other_numbers, "another mIoU than the table"),
        (no_indices, "no readable confusion matrices"),
        (not_square, "expected"),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path: Path, change: Callable[..., Any], words: str) -> None:
    frame = evaluated(tmp_path)
    path = tmp_path / "pre-0_mid-a_fine-250_seed-1.npz"
    np.savez(path, **change(dict(np.load(path))))
    with pytest.raises(InputError, match=rf"{path.name}.*{words}"):
        effects.noise_of_images(tmp_path, frame, resamples=10)


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    frame = evaluated(tmp_path)
    path = tmp_path / "pre-0_mid-none_fine-250_seed-1.npz"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=path.name):
        effects.noise_of_images(tmp_path, frame, resamples=10)
    path.unlink()
    with pytest.raises(InputError, match=path.name):
        effects.noise_of_images(tmp_path, frame, resamples=10)
