"""The surface of error: made studies whose truth is known, and exact oracles for what it computes itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy import optimize

from viny.evidence.statistics.crossed import Runs
from viny.evidence.statistics.fits import MODELS
from viny.evidence.statistics.surface import (
    IMAGES,
    POWERS,
    Form,
    Points,
    fit_surface,
    forms_for,
    points_of,
    too_few,
)

LABELS = [60, 120, 240, 480]
Error = Callable[[float, float], float]


def added(u: float, n: float) -> float:
    return 0.25 + 1.2 * n**-0.4 + 0.08 * (1 + u / 500) ** -0.6


def multiplied(u: float, n: float) -> float:
    return 0.2 + 1.5 * n**-0.35 * (0.6 + 0.4 / (1 + u / 3000))


def study(
    error: Error, images: Sequence[int], labels: Sequence[int] = LABELS, *, noise: float, seed: int = 0, seeds: int = 3
) -> Runs:
    """Seeds and test images around 1 - error, both with noise that cells share in part."""
    rng = np.random.default_rng(seed)
    keys = [(u, "none", n) for u in images for n in labels]
    mean = np.array([1 - error(u, n) for u, _, n in keys])
    over = np.sqrt(0.3) * rng.standard_normal((seeds, 1)) + np.sqrt(0.7) * rng.standard_normal((seeds, len(keys)))
    moved = np.sqrt(0.6) * rng.standard_normal(50) + np.sqrt(0.4) * rng.standard_normal((len(keys), 50))
    moved *= noise / np.sqrt(50)
    apart = np.broadcast_to(moved - moved.mean(-1, keepdims=True), (seeds, *moved.shape))
    return Runs(keys, range(seeds), mean + noise * over + moved.sum(-1), apart)


def points(*arguments, draws: int = 200, **about) -> Points:
    found = points_of(study(*arguments, **about), draws=draws)
    assert found is not None
    return found


@pytest.mark.parametrize(("error", "rate", "how"), [(added, 0.4, "added"), (multiplied, 0.35, "multiplied")])
def test_a_surface_recovers_its_form_and_its_rate(error: Error, rate: float, how: str) -> None:
    surface = fit_surface(points(error, [0, 1000, 4000, 16000], [*LABELS, 960], noise=2e-5))
    table = surface.table()
    first = table[table["form"].str.contains("to an asymptote")].iloc[0]
    assert first["form"].endswith(how) and first["label_rate"] == pytest.approx(rate, rel=0.15)
    assert table[table["form"].str.endswith(how)]["weight"].sum() > 0.9
    for u, n in ((0, 100), (8000, 700), (32000, 1900)):
        level = surface.foretold(u, n)
        assert level["mean"] == pytest.approx(1 - error(u, n), abs=0.004)
        assert level["low"] - 0.002 <= 1 - error(u, n) <= level["high"] + 0.002


def test_what_is_foretold_is_less_sure_farther_out() -> None:
    surface = fit_surface(points(added, [0, 4000], noise=0.004))
    widths = [np.ptp([(level := surface.foretold(4000, n))["low"], level["high"]]) for n in (480, 960, 1920)]
    assert widths == sorted(widths) and widths[-1] > 1.5 * widths[0]


@pytest.mark.parametrize("truth", [added, multiplied], ids=["added", "multiplied"])
def test_a_target_is_missed_about_as_often_as_stated(truth: Error) -> None:
    """If the target is the truth itself, its chance is above c in no more than a share 1 - c of studies."""
    images, labels = np.array([0.0, 4000.0, 4000.0]), np.array([700.0, 480.0, 960.0])
    chances = []
    for seed in range(120):
        surface = fit_surface(points(truth, [0, 4000], noise=0.004, seed=seed, draws=150))
        _, drawn = surface.errors(images, labels)
        reached = drawn <= np.array([truth(u, n) for u, n in zip(images, labels, strict=True)])
        chances.append(np.array([one.share for one in surface.fitted]) @ reached.mean(1))
    found = np.array(chances)  # [studies, places]
    for c in (0.7, 0.9):
        assert ((found > c).mean(0) <= 1 - c + 0.09).all()  # two standard errors
        assert ((found < 1 - c).mean(0) <= 1 - c + 0.09).all()
    assert ((found > 0.7).mean(0) > 0.05).all()  # nor is it so careful that it says nothing


def test_images_that_hurt_are_foretold_to_hurt() -> None:
    surface = fit_surface(points(lambda u, n: 0.3 + n**-0.35 - 0.02 / (1 + u / 1000), [0, 4000], noise=0.001))
    assert surface.foretold(0, 700)["low"] > surface.foretold(4000, 700)["high"]


def test_a_study_of_no_form_is_told_so() -> None:
    wild = {60: 0.6, 120: 0.5, 240: 0.56, 480: 0.45, 960: 0.52}
    assert fit_surface(points(lambda u, n: wild[int(n)], [0, 4000], list(wild), noise=0.001)).doubtful
    assert not fit_surface(points(added, [0, 4000], [*LABELS, 960], noise=0.001)).doubtful


def test_steps_are_told_from_images() -> None:
    """Once with equal epochs, once with equal steps, where only the steps matter."""
    images, steps = [0, 2000, 4000, 8000], 8000
    keys = [(u, "none", n, "study") for u in images for n in LABELS]
    keys += [(u, "none", n, "equal") for u in images[1:-1] for n in LABELS]
    taken = [float(u if variant == "study" else steps) for u, _, _, variant in keys]
    rng = np.random.default_rng(0)
    truth = np.array(
        [1 - (0.2 + n**-0.4 + 0.1 * (1 + s / 1000) ** -0.7) for (_, _, n, _), s in zip(keys, taken, strict=True)]
    )
    runs = Runs(keys, range(4), truth + 0.001 * rng.standard_normal((4, len(keys))))
    found = points_of(runs, taken, draws=200)
    assert found is not None and found.steps is not None
    surface = fit_surface(found)
    few, many = np.array([2000.0, 8000.0]), np.full(2, 480.0)
    by_images = np.diff(surface.errors(few, many, np.full(2, 8000.0))[0])[0]
    by_steps = np.diff(surface.errors(np.full(2, 8000.0), many, np.array([2000.0, 8000.0]))[0])[0]
    assert abs(by_images) < 0.004 and by_steps == pytest.approx(-0.0246, abs=0.006)
    same = points_of(runs, [float(key[0]) for key in keys], draws=20)
    assert same is not None and same.steps is None  # steps that images tell


def test_too_few_sizes_or_seeds_say_what_it_takes() -> None:
    assert "3 label sizes foretell nothing; it takes 4" in too_few(points(added, [0, 4000], LABELS[:3], noise=0.01))
    assert too_few(points(added, [0], LABELS, noise=0.01)) == ""
    alone = study(added, [0, 4000], noise=0.01, seeds=1)
    assert points_of(alone) is None and "two seeds" in too_few(None)


def test_larger_numbers_of_images_take_four_sizes_and_nothing_is_read_beyond_four_times() -> None:
    two, four = (fit_surface(points(added, images, noise=0.003)) for images in ([0, 4000], [0, 1000, 2000, 4000]))
    assert (two.most_images, four.most_images, two.most_labels) == (4000, 16000, 1920)
    assert len(forms_for(two.points)) < len(forms_for(four.points))


def test_weights_are_those_of_non_negative_least_squares() -> None:
    form = Form("", MODELS["power law to an asymptote"], POWERS, IMAGES["saturating"], True, False)
    rng = np.random.default_rng(3)
    design, errors = rng.normal(size=(7, 12, 3)), rng.normal(size=(20, 12))
    place, weights = form.solve(design, errors)
    for row in range(20):
        rss = [optimize.nnls(columns, errors[row])[1] for columns in design]
        assert place[row] == int(np.argmin(rss))
        assert weights[row] == pytest.approx(optimize.nnls(design[place[row]], errors[row])[0], abs=1e-9)


def test_the_covariance_is_that_of_the_noise() -> None:
    found = [points(added, [0, 4000], noise=0.01, seed=seed, seeds=5, draws=2).covariance for seed in range(60)]
    mean = np.mean(found, axis=0)
    assert np.diag(mean) == pytest.approx(1e-4 / 5 + 1e-4, rel=0.25)
    assert mean[0, 1:] == pytest.approx(0.3e-4 / 5 + 0.6e-4, rel=0.35)
    assert all(np.linalg.eigvalsh(one)[0] > 0 for one in found)
