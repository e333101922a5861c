"""Diminishing returns: known curves, the paper's means, independent optimisers, hand-made costs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats

from viny.evidence import metrics
from viny.evidence.statistics import costs, fits, gains, pages, transfer
from viny.evidence.statistics.crossed import Runs, read_runs
from viny.evidence.tables import KEYS
from viny.runtime.errors import InputError

LABELS = np.array([250, 500, 1000, 2000, 4000, 6000])
# The mIoU in Tables 1, A2 and A3 of arXiv 2512.03862, in percent, and what it gives as ±
PAPER = {
    (0, "none"): ([43.73, 47.41, 53.28, 56.87, 62.99, 65.07], [1.02, 0.21, 0.43, 0.51, 0.16, 0.01]),
    (45000, "none"): ([52.73, 55.57, 58.68, 61.36, 64.42, 65.98], [0.25, 0.19, 0.20, 0.05, 0.19, 0.19]),
    (100000, "none"): ([55.91, 58.44, 61.59, 64.17, 66.97, 68.00], [0.32, 0.93, 0.16, 0.18, 0.25, 0.14]),
    (200000, "none"): ([57.14, 59.47, 62.37, 64.74, 67.62, 68.76], [0.42, 0.13, 0.08, 0.14, 0.12, 0.13]),
    (45000, "intel"): ([48.92, 52.72, 55.70, 59.38, 63.31, 64.76], [0.66, 0.39, 0.13, 0.88, 0.68, 0.62]),
    (100000, "intel"): ([50.20, 53.85, 57.80, 61.62, 65.29, 67.79], [0.29, 0.44, 0.10, 0.11, 0.61, 0.43]),
    (200000, "intel"): ([49.93, 54.15, 57.30, 61.75, 65.02, 67.47], [0.56, 0.77, 0.57, 0.62, 0.77, 0.15]),
}


def frame_of(curves: dict[tuple[int, str], np.ndarray], labels: np.ndarray = LABELS) -> pd.DataFrame:
    """Cells from mIoU [seeds, labels] of each (pretrain_size, intermediate)."""
    rows = [
        (size, task, n, seed, miou)
        for (size, task), values in curves.items()
        for seed, line in enumerate(np.atleast_2d(values))
        for n, miou in zip(labels, line, strict=True)
    ]
    frame = pd.DataFrame(rows, columns=[*KEYS, "miou"]).assign(pixel_accuracy=0.7)
    return frame.assign(cell=["-".join(map(str, key)) for key in frame[KEYS].itertuples(index=False)])


def paper(seeds: int = 1) -> pd.DataFrame:
    """The paper's means; with seeds, values around them with its spread."""
    rng = np.random.default_rng(0)
    curves = {}
    for key, (mean, spread) in PAPER.items():
        noise = rng.normal(size=(seeds, len(LABELS))) if seeds > 1 else np.zeros((1, len(LABELS)))
        curves[key] = (np.array(mean) + noise * np.array(spread)) / 100
    return frame_of(curves)


def runs_of(curves: dict[tuple[int, str], np.ndarray], labels: np.ndarray = LABELS) -> Runs:
    """As `frame_of`, without test images."""
    return read_runs(frame_of(curves, labels), None)


def around(errors: np.ndarray, spread: float = 0.002, seeds: int = 4) -> np.ndarray:
    """mIoU [seeds, labels] around known errors."""
    return 1 - errors + spread * np.random.default_rng(3).normal(size=(seeds, len(errors)))


def test_gains_are_paired_within_seeds() -> None:
    rng = np.random.default_rng(0)
    seeds = rng.normal(0, 0.1, (3, 1))  # large, but shared by all sizes of a seed
    values = 0.5 + seeds + np.array([0, 0.04, 0.05]) + rng.normal(0, 0.001, (3, 3))
    labels = np.array([100, 400, 600])
    table = gains.marginal_gains(runs_of({(0, "none"): values, (8, "none"): values + 0.02}, labels))
    assert list(table.columns) == gains.GAINS
    mine = table[(table["along"] == "labels") & (table["pretrain_size"] == 0)]
    assert list(mine["per"]) == ["doubling", "doubling"]
    assert mine["finetune_size"].isna().all()
    raw = (values[:, 1] - values[:, 0]) / 2  # two doublings
    first = mine.iloc[0]
    low = stats.ttest_1samp(raw, 0).confidence_interval().low
    assert (first["mean"], first["sd"], first["low"]) == pytest.approx((raw.mean(), raw.std(ddof=1), low))
    assert (first["smaller"], first["larger"], first["n"], first["why"]) == (100, 400, 3, "")
    assert mine.iloc[1]["mean"] == pytest.approx(np.mean(values[:, 2] - values[:, 1]) / np.log2(1.5))
    steps = table[table["along"] == "pre-training images"]
    assert list(steps["per"]) == ["step"] * 3  # nothing cannot be doubled
    assert list(steps["finetune_size"]) == list(labels)
    assert steps["mean"].to_numpy() == pytest.approx(0.02)


def test_gains_between_pretraining_sizes_are_per_doubling() -> None:
    values = np.full((1, 6), 0.5)
    table = gains.marginal_gains(runs_of({(10, "none"): values, (80, "none"): values + 0.06}))
    steps = table[table["along"] == "pre-training images"]
    assert set(steps["per"]) == {"doubling"}
    assert steps["mean"].to_numpy() == pytest.approx(0.02)
    assert set(steps["why"]) == {"one seed has no spread"}
    assert steps[["sd", "se", "low", "high"]].isna().all(axis=None)


def test_a_gain_without_a_common_seed_is_said() -> None:
    frame = frame_of({(0, "none"): np.full((2, 6), 0.5)})
    frame = frame[(frame["finetune_size"] + frame["seed"]) % 2 == 0].assign(seed=lambda f: f["finetune_size"])
    table = gains.marginal_gains(read_runs(frame, None))
    assert set(table["n"]) == {0}
    assert set(table["why"]) == {"no seed has both sizes"}


FORMS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], dict[str, float]]] = {
    "log-linear": (lambda n: 1.1 - 0.08 * np.log(n), {"scale": 1.1, "rate": -0.08}),
    "power law": (lambda n: 2.0 * n**-0.3, {"scale": 2.0, "rate": 0.3}),
    "power law to an asymptote": (lambda n: 0.2 + 8 * n**-0.6, {"asymptote": 0.2, "scale": 8, "rate": 0.6}),
    "saturating": (lambda n: 0.3 + 0.4 / (1 + n / 700), {"asymptote": 0.3, "scale": 0.4, "rate": 700}),
}


def average_of(table: pd.DataFrame) -> pd.Series:
    return table[table["model"] == fits.AVERAGE].iloc[0]


@pytest.mark.parametrize("name", FORMS)
def test_a_known_form_is_found_with_its_parameters(name: str) -> None:
    form, truth = FORMS[name]
    n = LABELS.astype(float)
    table = fits.fits(runs_of({(0, "none"): around(form(n), 1e-4)}), draws=400)
    assert list(table.columns) == fits.FITS
    assert list(table["model"]) == [*fits.MODELS, fits.AVERAGE]
    row = table.set_index("model").loc[name]
    assert row["verdict"] == "identified"
    for key, value in truth.items():
        assert row[key] == pytest.approx(value, rel=0.05)
        assert row[f"{key}_low"] < value < row[f"{key}_high"]
    assert abs(row["held_out"]) < 0.001
    assert table["weight"].sum() == pytest.approx(1)
    assert row["weight"] == table["weight"].max() > 0.4
    at = fits.fitted_miou(row.to_dict() | {"model": name}, LABELS)
    assert at == pytest.approx(1 - form(n), abs=5e-4)
    steep = -np.log(form(6001.0) / form(5999.0)) / np.log(6001 / 5999)
    known = {"error_at_largest": form(6000.0), "gain": form(6000.0) - form(12000.0), "exponent": steep}
    for what, near in ((row, 0.05), (average_of(table), 0.15)):
        for key, value in known.items():
            assert what[key] == pytest.approx(value, rel=near)
            assert abs(what[key] - value) < what[f"{key}_high"] - what[f"{key}_low"] < 0.05


@pytest.mark.parametrize("name", list(fits.MODELS)[1:])
@pytest.mark.parametrize("curve", [(0, "none"), (100000, "none"), (200000, "intel")])
def test_no_other_optimiser_finds_a_better_fit(name: str, curve: tuple[int, str]) -> None:
    model, errors = fits.MODELS[name], 1 - np.array(PAPER[curve][0]) / 100
    sizes = LABELS.astype(float)
    ours = ((model.predict(sizes, model.solve(sizes, errors[None]))[0] - errors) ** 2).sum()
    low, high = model.bounds(sizes.min(), sizes.max())

    def rss(p: np.ndarray) -> float:
        fit = np.array([[p[0] * model.asymptote, p[1], np.exp(p[2])]])
        return ((model.predict(sizes, fit)[0] - errors) ** 2).sum()

    other = optimize.differential_evolution(
        rss, [(0, 1), (0, 20), (np.log(low), np.log(high))], rng=0, tol=1e-10, maxiter=300, popsize=10
    )
    assert ours <= other.fun * (1 + 1e-4)
    assert ours == pytest.approx(other.fun, rel=0.01)


def test_many_curves_at_once_are_fitted_as_each_alone() -> None:
    sizes, curves = LABELS.astype(float), 1 - np.array([mean for mean, _ in PAPER.values()]) / 100
    for model in fits.MODELS.values():
        together = model.solve(sizes, curves)
        for curve, fit in zip(curves, together, strict=True):
            assert model.solve(sizes, curve[None])[0] == pytest.approx(fit)


@pytest.mark.parametrize("seeds", [1, 3])
def test_on_the_papers_means_no_asymptote_is_identified(seeds: int) -> None:
    table = fits.fits(read_runs(paper(seeds), None), draws=300)
    assert len(table) == 7 * 5
    assert table[["asymptote_low", "asymptote_high"]].isna().all(axis=None)
    bounded = table[table["model"] == "power law to an asymptote"]
    assert set(bounded["verdict"]) == {"not identified: the asymptote runs to its bound of 0 %"}
    saturating = table[table["model"] == "saturating"]
    assert saturating["verdict"].str.startswith("not identified: ").all()
    assert table.groupby(["intermediate", "pretrain_size"])["weight"].sum().to_numpy() == pytest.approx(1)
    zero = table[(table["pretrain_size"] == 0) & (table["model"] == "log-linear")].iloc[0]
    slope, level = np.polyfit(
        np.log(LABELS[:-1]),
        1 - paper(seeds).query("pretrain_size == 0").groupby("finetune_size")["miou"].mean().to_numpy()[:-1],
        1,
    )
    largest = paper(seeds).query("pretrain_size == 0 and finetune_size == 6000")["miou"].mean()
    assert zero["held_out"] == pytest.approx(1 - level - slope * np.log(6000) - largest)
    if seeds == 1:
        assert zero["verdict"] == "identified; one seed gives no interval"
        assert table[["scale_low", "gain_low", "exponent_high"]].isna().all(axis=None)
        assert average_of(table)["verdict"] == "4 forms; one seed gives no interval"


@pytest.mark.parametrize(("sizes", "fitted"), [(3, 0), (4, 2), (5, 4)])
def test_too_few_sizes_foretell_nothing(sizes: int, fitted: int) -> None:
    errors = 0.2 + 0.4 / (1 + LABELS[:sizes] / 700)
    table = fits.fits(runs_of({(0, "none"): around(errors, 1e-5)}, LABELS[:sizes]), draws=100)
    forms = table[table["model"] != fits.AVERAGE]
    few = forms["verdict"].str.contains("sizes are too few")
    assert (~few).sum() == fitted
    assert forms.loc[few, [*fits.CURVE, "rmse", "held_out", "gain"]].isna().all(axis=None)
    assert not (forms.loc[few, "weight"] > 0).any()
    average = average_of(table)
    assert np.isfinite(average["gain"]) == (fitted > 0)
    assert average["verdict"].startswith(f"{fitted} forms" if fitted else "no form: 3 sizes are too few for 2")


def test_what_the_seeds_cannot_tell_is_not_identified() -> None:
    errors = FORMS["saturating"][0](LABELS.astype(float))
    table = fits.fits(runs_of({(0, "none"): around(errors, 0.02)}), draws=300).set_index("model")
    for name in ("power law to an asymptote", "saturating"):
        assert re.search("covers more than half|predicts the largest size better", table.loc[name, "verdict"])
    flat = fits.fits(runs_of({(0, "none"): around(0.5 + 0.01 * np.log(LABELS), 1e-4)}), 100).set_index("model")
    assert flat.loc["power law", "verdict"] == "not identified: the rate runs to its bound"
    assert flat.loc["saturating", "verdict"] == "not identified: the error does not fall"


def test_forms_are_weighted_by_how_well_they_foretell_sizes_left_out() -> None:
    """Against a loop with scipy's own fits, one size left out at a time."""
    n, rng = LABELS.astype(float), np.random.default_rng(5)
    values = 1 - FORMS["log-linear"][0](n) + 0.004 * rng.normal(size=(5, 6))
    table = fits.fits(runs_of({(0, "none"): values})).set_index("model")
    errors = 1 - values.mean(0)
    squares = {}
    for name, law, start in (
        ("log-linear", lambda x, a, b: a + b * np.log(x), (1, -0.1)),
        ("power law", lambda x, a, b: a * x**-b, (1, 0.2)),
    ):
        left = []
        for i in range(1, 6):
            others = np.arange(6) != i
            found, _ = optimize.curve_fit(law, n[others], errors[others], p0=start, maxfev=10_000)
            left.append(errors[i] - law(n[i], *found))
        assert table.loc[name, "held_out"] == pytest.approx(left[-1], abs=1e-5)
        squares[name] = np.square(left).sum()
    assert squares["log-linear"] < squares["power law"]
    assert table.loc["log-linear", "weight"] > 2 * table.loc["power law", "weight"]
    forms = table.drop(fits.AVERAGE)
    for name in fits.FORETOLD:
        assert table.loc[fits.AVERAGE, name] == pytest.approx((forms["weight"] * forms[name]).sum())
    widths = table["gain_high"] - table["gain_low"]
    assert widths[fits.AVERAGE] > widths["log-linear"]  # the forms disagree


def test_a_curve_of_no_known_form_is_said_and_its_interval_is_wide() -> None:
    n = LABELS.astype(float)
    steep = 0.3 + 0.3 / (1 + (n / 800) ** 3)  # falls later and faster than any form
    average = average_of(fits.fits(runs_of({(0, "none"): around(steep, 0.001, seeds=5)})))
    assert average["verdict"] == "4 forms; none foretells the sizes left out (p 0.005)"
    assert average["gain_low"] < steep[-1] - (0.3 + 0.3 / (1 + 15**3)) < average["gain_high"]
    known = average_of(fits.fits(runs_of({(0, "none"): around(0.3 + 0.35 / (1 + n / 900), 0.001, seeds=5)})))
    assert known["verdict"] == "4 forms"


def test_intervals_of_fits_follow_the_test_images_too() -> None:
    values, rng = around(FORMS["log-linear"][0](LABELS.astype(float)), 0.002), np.random.default_rng(0)
    alone = runs_of({(0, "none"): values})
    moved = 0.03 * rng.normal(size=(6, 400)) / np.sqrt(400) / 1
    moved -= moved.mean(1, keepdims=True)
    both = Runs(alone.keys, alone.seeds, alone.values, np.broadcast_to(moved, (4, 6, 400)))
    widths = [average_of(fits.fits(runs)) for runs in (alone, both)]
    widths = [row["gain_high"] - row["gain_low"] for row in widths]
    assert widths[1] > 1.5 * widths[0]


@pytest.mark.parametrize("seeds", [3, 10])
def test_intervals_of_a_true_form_cover_the_truth(seeds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fits, "MODELS", {name: fits.MODELS[name] for name in ("log-linear", "power law")})
    n, rng, studies = LABELS.astype(float), np.random.default_rng(seeds), 60
    form = FORMS["power law"][0]
    keys = [(0, "none", size) for size in LABELS.tolist()]
    covered = []
    for _ in range(studies):
        values = 1 - form(n) + 0.004 * (rng.normal(size=(seeds, 1)) + rng.normal(size=(seeds, 6)))
        row = fits.fits(Runs(keys, list(range(seeds)), values), draws=300).set_index("model").loc["power law"]
        covered.append(row["gain_low"] <= form(6000.0) - form(12000.0) <= row["gain_high"])
        covered.append(row["exponent_low"] <= 0.3 <= row["exponent_high"])
    least, most = stats.binom.ppf([0.001, 0.999], studies, 0.95) / studies
    assert least <= np.mean(covered[::2]) <= most
    assert least <= np.mean(covered[1::2]) <= most


def test_the_papers_pretraining_is_worth_what_the_paper_implies() -> None:
    table = transfer.transfer(read_runs(paper(), None)).set_index(["pretrain_size", "intermediate", "finetune_size"])
    assert len(table) == 36
    for size, ratio in ((45000, 3.7), (100000, 6.6), (200000, 8.2)):
        assert table.loc[(size, "none", 250), "ratio"] == pytest.approx(ratio, abs=0.06)
        ratios = table.loc[size].loc["none"]["ratio"]
        assert (np.diff(ratios) < 0).all()  # worth less, the more labels there are
        last = table.loc[(size, "none", 6000)]
        assert (last["censored"], last["labels_worth"], last["ratio"]) == ("beyond", 6000, 1)
    hurt = table.loc[(45000, "intel", 6000)]
    assert hurt["ratio"] == pytest.approx(0.94, abs=0.01)
    assert table[["low", "high"]].isna().all(axis=None)  # the means are one value per cell
    assert table["verdict"].str.endswith("one seed gives no interval").all()


def test_a_curve_moved_by_a_factor_is_worth_that_factor() -> None:
    labels = np.array([100, 200, 400, 800, 1600])
    level = 0.3 + 0.05 * np.log2(labels / 100)
    noise = 0.001 * np.random.default_rng(0).normal(size=(4, 5))
    curves = {(0, "none"): level, (9, "none"): level + 0.05, (9, "bad"): level - 0.05}
    table = transfer.transfer(runs_of({k: v + noise for k, v in curves.items()}, labels))
    good, bad = (table[table["intermediate"] == task].reset_index(drop=True) for task in ("none", "bad"))
    assert good["ratio"][:3].to_numpy() == pytest.approx(2, rel=0.03)
    assert bad["ratio"][2:].to_numpy() == pytest.approx(0.5, rel=0.03)
    assert list(good["censored"][[0, 1, 2, 4]]) == ["", "", "", "beyond"]
    assert list(bad["censored"][[0, 2, 3, 4]]) == ["below", "", "", ""]
    assert ((good["low"] <= 2) & ~(good["high"] < 2))[:3].all()
    assert good["verdict"][0].startswith("helps, worth 2 times")
    assert bad["verdict"][4] == "worth 0.5 times its labels, pre-training and task together"
    assert bad["verdict"][0].startswith("worth at most 1 times its labels, below")
    assert np.isnan(bad["low"][0])
    assert np.isnan(good["high"][4])


def test_what_cannot_be_told_from_no_effect_is_undecided() -> None:
    level, rng = 0.3 + 0.02 * np.log2(LABELS / 250), np.random.default_rng(2)
    curves = {key: level + 0.02 * rng.normal(size=(3, 6)) for key in ((0, "none"), (9, "none"))}
    table = transfer.transfer(runs_of(curves))
    untold = table["verdict"] == "what that is in labels cannot be told"
    assert untold.sum() >= 4
    open_ended = table["low"].isna() & table["high"].isna()
    assert (untold >= open_ended).all()
    assert not table["verdict"].str.contains("below the curve to beyond the curve").any()
    assert not table["verdict"].str.contains(":").any()


def test_a_censored_worth_whose_difference_may_be_zero_is_not_told() -> None:
    labels, lean = np.array([100, 200, 400]), np.array([[-1.0], [0.0], [1.0]])
    level = np.array([0.3, 0.4, 0.5])
    for gain, told in ((0.02, False), (0.06, True)):
        curves = {(0, "none"): level + 0 * lean, (9, "none"): level + gain + 0.01 * lean}
        last = transfer.transfer(runs_of(curves, labels)).iloc[2]
        assert last["censored"] == "beyond"  # its t interval is ±0.025
        assert last["verdict"].startswith("helps, worth at least 1 times") == told
        assert (last["verdict"] == "what that is in labels cannot be told") != told


def test_the_random_starts_curve_is_made_monotone() -> None:
    labels = np.array([100, 200, 400, 800])
    curves = {(0, "none"): np.array([[0.3, 0.5, 0.4, 0.6]]), (9, "none"): np.array([[0.3, 0.44, 0.46, 0.6]])}
    table = transfer.transfer(runs_of(curves, labels))
    worth = table["labels_worth"].to_numpy()
    assert worth[0] == 100
    assert 100 < worth[1] < 200  # the dip becomes a level of 0.45 from 200 to 400
    assert 400 < worth[2] < 800
    assert worth[3] == pytest.approx(800)


def test_isotonic_curves_are_scipys() -> None:
    rng = np.random.default_rng(0)
    curves, weights = rng.normal(size=(50, 6)).cumsum(1), rng.integers(1, 5, 6)
    ours = transfer._isotonic(curves, weights)
    for curve, mine in zip(curves, ours, strict=True):
        assert mine == pytest.approx(optimize.isotonic_regression(curve, weights=weights).x)


def test_labels_worth_inverts_the_curve() -> None:
    sizes, curve = np.array([100.0, 200, 400, 800]), np.array([[0.3, 0.45, 0.45, 0.6]])
    asked = np.array([[0.2, 0.3, 0.375, 0.45, 0.525, 0.6, 0.7]])
    worth, beyond, below = transfer._labels_worth(sizes, curve, asked, np.ones(4))
    inside = np.exp(np.interp([0.375, 0.525], [0.3, 0.45, 0.4500001, 0.6], np.log(sizes)))
    assert worth[0] == pytest.approx([100, 100, inside[0], 200, inside[1], 800, 800], rel=1e-4)
    assert beyond[0].tolist() == [False] * 6 + [True]
    assert below[0].tolist() == [True] + [False] * 6


def test_a_curve_that_falls_tells_no_labels_worth() -> None:
    rng = np.random.default_rng(0)
    noise = 0.002 * rng.normal(size=(5, 4))
    rising, falling = np.array([0.3, 0.4, 0.5, 0.6]), np.array([0.3, 0.4, 0.34, 0.6])
    labels = np.array([100, 200, 400, 800])
    for start, told in ((rising, True), (falling, False)):
        table = transfer.transfer(runs_of({(0, "none"): start + noise, (9, "none"): rising + 0.05}, labels))
        assert table["labels_worth"].notna().all() == told
        words = (
            "what that is in labels cannot be told: the random start's curve is not monotone, from 200 to 400 labels"
        )
        assert table["verdict"].str.startswith(words).all() != told
    assert table[["ratio", "low", "high"]].isna().all(axis=None)
    assert table["miou"].notna().all()


def test_flat_curves_are_seldom_said_to_fall_and_falling_ones_often() -> None:
    rng, labels = np.random.default_rng(1), LABELS.tolist()
    keys = [(0, "none", n) for n in labels]

    def share(curve: np.ndarray, seeds: int, studies: int = 400) -> float:
        values = curve + 0.01 * (rng.normal(size=(studies, seeds, 1)) + rng.normal(size=(studies, seeds, 6)))
        return np.mean([bool(transfer.falls(Runs(keys, list(range(seeds)), v), keys)) for v in values])

    flat, dip = np.full(6, 0.5), 0.5 + np.array([0, 0.01, 0.02, 0.03, 0.04, 0.01])
    assert share(flat, 3) <= stats.binom.ppf(0.999, 400, 0.05) / 400
    assert share(flat + np.linspace(0, 0.05, 6), 5) <= 0.01
    assert share(dip, 3) < share(dip, 5) < share(dip, 10)
    assert share(dip, 10) > 0.8
    assert not transfer.falls(Runs(keys, [0], dip[None]), keys)  # one seed has no spread


def test_without_a_random_start_or_with_one_size_nothing_is_invented() -> None:
    frame = paper()
    assert transfer.transfer(read_runs(frame[frame["pretrain_size"] > 0], None)).empty
    one = transfer.transfer(read_runs(frame[frame["finetune_size"] == 250], None))
    assert set(one["verdict"]) == {"the random start was run at one size, so there is no curve to compare with"}


def chain_of(frame: pd.DataFrame) -> dict[str, dict[str, Any]]:
    rows = frame[["cell", *KEYS]].itertuples(index=False, name=None)
    return {
        name: {
            "seconds": 36.0 * n + 3600 * (size > 0) + 0.5 * seed,
            "operations": 1e9 * (n + 3 * size + 50 * (task != "none")),
            "device": "cuda",
        }
        for name, size, task, n, seed in rows
    }


def dominated(cost: float, benefit: float, others: list[tuple[float, float]]) -> bool:
    return any((c <= cost and b >= benefit) and (c < cost or b > benefit) for c, b in others)


def test_fronts_hold_what_no_other_cell_dominates() -> None:
    frame = paper(3)
    chain = chain_of(frame)
    table = costs.costs(frame, chain)
    assert list(table.columns) == costs.COSTS
    pairs = list(zip(table["operations"], table["miou"], strict=True))
    assert list(table["front"]) == [not dominated(c, b, pairs) for c, b in pairs]
    times = list(zip(table["seconds"], table["miou"], strict=True))
    assert list(table["front_seconds"]) == [not dominated(c, b, times) for c, b in times]
    for _, part in table.groupby("finetune_size"):
        pairs = list(zip(part["operations"], part["miou"], strict=True))
        assert list(part["front_labels"]) == [not dominated(c, b, pairs) for c, b in pairs]
    assert 1 < table["front"].sum() < len(table)
    group = frame.query("pretrain_size == 0 and finetune_size == 250")["miou"]
    assert (table["miou"][0], table["sd"][0]) == pytest.approx((group.mean(), group.std(ddof=1)))
    assert table["seconds"][0] == pytest.approx(36 * 250 + 0.5)


def test_seconds_of_different_devices_are_not_mixed() -> None:
    frame = paper(2)
    chain = chain_of(frame)
    for name, cost in chain.items():
        if name.startswith("0-none-250-0"):
            cost["device"] = "cpu"
        if name.startswith("200000-none"):
            cost |= {"device": "cpu", "seconds": 1.0}
    table = costs.costs(frame, chain)
    mixed = table.iloc[0]
    assert np.isnan(mixed["seconds"])
    assert mixed["device"] == "cpu and cuda"
    assert mixed["verdict"] == "no seconds: its seeds ran on cpu and cuda"
    assert not mixed["front_seconds"]
    assert mixed["front"]  # operations do not depend on the device
    slow = table.query("device == 'cuda' and intermediate == 'none'")
    assert slow["front_seconds"].any()  # though the other device is faster than all of them
    steps = costs.next_step(frame, read_runs(frame, None), chain)
    across = steps[(steps["finetune_size"] == 250) & (steps["pretrain_size"] == 0)]
    assert across["further_hours"].isna().all()
    assert across["words"].str.contains("no gain an hour").all()


@pytest.mark.parametrize(
    ("cost", "words"),
    [
        (None, "no costs of cell"),
        ({"seconds": 1.0, "operations": 1.0}, "'device' is None"),
        ({"seconds": -1.0, "operations": 1.0, "device": "cpu"}, "'seconds' is -1.0"),
        ({"seconds": 1.0, "operations": float("nan"), "device": "cpu"}, "'operations' is nan"),
    ],
)
def test_a_cost_that_is_none_is_refused(cost: Any, words: str) -> None:
    frame = paper()
    chain = chain_of(frame) | {"45000-none-500-0": cost}
    with pytest.raises(InputError, match=rf"45000-none-500-0.*{words}|{words}.*45000-none-500-0"):
        costs.costs(frame, chain)


def test_next_steps_are_gains_over_what_they_cost() -> None:
    labels = np.array([500, 1500])
    curves = {(0, "none"): [0.40, 0.50], (10, "none"): [0.46, 0.55], (0, "a"): [0.38, 0.49]}
    spread = 0.01 * np.array([[-1], [0], [1]])
    frame = frame_of({k: np.array(v) + spread * (1 + k[0]) for k, v in curves.items()}, labels)
    table = costs.next_step(frame, read_runs(frame, None), chain_of(frame))
    assert list(table.columns) == costs.STEPS
    start = table[(table["pretrain_size"] == 0) & (table["finetune_size"] == 500)].set_index("move")
    assert set(start.index) == {"more labels", "more pre-training images", "intermediate task a"}
    more = start.loc["more labels"]
    assert (more["gain"], more["further_labels"]) == (pytest.approx(0.10), 1000)
    assert more["further_hours"] == pytest.approx(10)
    assert more["gain_per_hour"] == pytest.approx(0.01)
    assert more["gain_per_500_labels"] == pytest.approx(0.05)
    assert (more["low"], more["high"]) == pytest.approx((0.1, 0.1))  # paired: the seeds' spread cancels
    images = start.loc["more pre-training images"]
    low = stats.ttest_1samp(0.06 + 10 * spread[:, 0], 0).confidence_interval().low
    assert (images["gain_per_hour"], images["gain_per_hour_low"]) == pytest.approx((0.06, low))
    assert np.isnan(images["gain_per_500_labels"])
    assert start.loc["intermediate task a", "gain"] < 0
    assert "no further time was measured" in start.loc["intermediate task a", "words"]
    assert more["words"].startswith("From 0 pre-training images, no task, 500 labels (40.0 %), more labels: +10.00")
    assert "+5.00 (+5.00 to +5.00) a further 500 labels" in more["words"]
    one = frame[frame["seed"] == 1]
    alone = costs.next_step(one, read_runs(one, None), chain_of(frame))
    assert alone["words"].str.contains("one seed, no interval); what it brings cannot be told", regex=False).all()
    assert not alone["words"].str.contains("a further").any()


def write_study(folder: Path, tasks: tuple[str, ...], seeds: int = 3, images: int = 12) -> list[Path]:
    """A study's metric files and confusion matrices."""
    rng = np.random.default_rng(0)
    paths = []
    for size, task, n, seed in product((0, 90), tasks, (8, 16, 32, 64, 128), range(seeds)):
        name = f"pre-{size}_mid-{task}_fine-{n}_seed-{seed}"
        right = rng.binomial(100, 0.5 + 0.05 * np.log2(n / 8), size=(images, 2))
        confusion = np.empty((images, 2, 2), int)
        confusion[:, [0, 1], [0, 1]], confusion[:, [0, 1], [1, 0]] = right, 100 - right
        value = {
            "study": "made-up",
            "protocol": "sound",
            "note": "Made up.",
            "cell": {"name": name, **dict(zip(KEYS, (size, task, n, seed), strict=True))},
            "metrics": {"miou": metrics.mean_iou_dataset(confusion, [0, 1]), "pixel_accuracy": 0.7},
            "test_images": images,
            "miou_is": "dataset",
            "provenance": {"device": "cpu", "precision": "float32", "threads": 1, "seconds": 1.5, "code": "abc"},
        }
        np.savez(folder / f"{name}.npz", confusion=confusion, indices=np.arange(images))
        paths.append(folder / f"{name}.json")
        paths[-1].write_text(json.dumps(value))
    return paths


NAMES = {f"{name}.{kind}" for name in ("decisions", "effects", "fits", "transfer") for kind in ("csv", "md")}
NAMES |= {"marginal_gains.csv", "costs.csv", "next_steps.md"}


def test_files_say_whose_they_are_and_do_not_change(tmp_path: Path) -> None:
    paths, out = write_study(tmp_path, ("none", "a")), tmp_path / "tables"
    chain = {p.stem: {"seconds": 60.0 * i, "operations": 1e9 * i, "device": "cpu"} for i, p in enumerate(paths)}
    pages.write_statistics(iter(paths), tmp_path, chain, out)
    assert {p.name for p in out.iterdir()} == NAMES
    for path in out.iterdir():
        if path.suffix == ".csv":
            table = pd.read_csv(path)
            assert set(table["study"]) == {"made-up"}
            assert list(table.columns[-3:]) == ["study", "protocol", "note"]
        else:
            text = path.read_text()
            for said in (
                "Study made-up, protocol sound.",
                "one confusion matrix",
                "Tested on 12 test images. Made up.",
            ):
                assert said in text
            assert not re.search(r"\bnan\b", text, re.IGNORECASE)
            assert "significant" not in text
    assert pd.read_csv(out / "effects.csv")["n"].tolist() == [3] * 10
    assert "sd (standard deviation over seeds" in (out / "effects.md").read_text()
    fitted = pd.read_csv(out / "fits.csv")
    assert (fitted["model"] == fits.AVERAGE).sum() == 4
    assert "pseudo-BMA+" in (out / "fits.md").read_text()
    assert (out / "next_steps.md").read_text().count("- From ") > 1
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    pages.write_statistics(reversed(paths), tmp_path, chain, out)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_a_study_without_tasks_or_costs_says_so(tmp_path: Path) -> None:
    paths, out = write_study(tmp_path, ("none",), seeds=1), tmp_path / "tables"
    pages.write_statistics(paths, tmp_path, None, out)
    assert {p.name for p in out.iterdir()} == NAMES
    assert "No seed has a cell with and without." in (out / "effects.md").read_text()
    assert "No costs are known" in (out / "next_steps.md").read_text()
    assert (out / "costs.csv").read_text() == ",".join([*costs.COSTS, "study", "protocol", "note"]) + "\n"


def test_labels_worth_names_no_help_or_harm_more_often_than_other_tables() -> None:
    rng = np.random.default_rng(20)
    keys = list(product((0, 9, 18, 27), ("none",), (60, 120, 240, 480)))
    mean = np.array([0.4 + 0.02 * np.log2(labels) for *_, labels in keys])
    studies, wrong = 60, 0
    for _ in range(studies):
        table = transfer.transfer(Runs(keys, range(3), mean + 0.004 * rng.standard_normal((3, len(keys)))), draws=400)
        wrong += table["verdict"].str.match("helps|hurts").any()
    assert wrong <= 8  # of 60, where 3 are to be expected at most; without a correction it is half of them
