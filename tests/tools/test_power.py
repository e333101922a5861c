"""Chances before a run, compared with noncentral t, with the decisions themselves, and with the plan's hours."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

pytest.importorskip("jsonschema")

from viny.cli import main
from viny.evidence.paper.claims import CLAIMS
from viny.evidence.paper.comparisons import Cells
from viny.evidence.paper.words import Found
from viny.evidence.power.noise import EVERY, Key, Shared
from viny.evidence.power.simulate import Simulation
from viny.evidence.power.truth import Truth, from_paper, from_runs, from_study, stand_ins, stated, weights_of
from viny.evidence.statistics.crossed import Runs
from viny.evidence.verdicts import MARGIN, decide, questions
from viny.runtime.errors import InputError
from viny.runtime.files import write_json
from viny.study.config import resolve
from viny.study.grid import Cell, cells
from viny.study.inventory import count_images
from viny.study.layout import metrics_file
from viny.study.reading import read_config
from viny.study.saved import write_study
from viny.tools.forecast.forecast import SNAKEMAKE_JOB
from viny.tools.forecast.plan import plan
from viny.tools.power import claims
from viny.tools.power.costs import NOT_KNOWN, Costs
from viny.tools.power.power import cheapest, in_words, power, show

TINY, ARMS = (Path(__file__).parents[1] / f"{name}.yaml" for name in ("tiny", "arms"))
PAPER = Path(__file__).parents[2] / "studies" / "paper.yaml"
KEYS: list[Key] = list(product((0, 9, 18), ("none", "a"), (60, 120, 240)))
SHARES = ("rightly", "wrongly", "everywhere")  # of a claim
NEVER = 1e-9  # a margin within which nothing is small


def known(keys: list[Key] = KEYS, effect: float = 0.0, of_seeds: float = 0.01, of_images: float = 0.0) -> Truth:
    """A stated effect, with noise of each cell alone."""
    noise = from_paper().with_noise(of_seeds, 1.0)
    images = Shared({EVERY: of_images**2} if of_images else {})
    noise = replace(noise, of_seeds=Shared({EVERY: of_seeds**2}), of_images=images, of_both=Shared({}))
    return stated(noise, keys, effect)


@pytest.fixture(autouse=True)
def few_studies_for_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "STUDIES", 12)


# Chances


@pytest.mark.parametrize("seeds", [3, 8])
@pytest.mark.parametrize("effect", [0.0, 0.01, 0.02])
def test_the_chance_of_one_contrast_is_that_of_the_noncentral_t(seeds: int, effect: float) -> None:
    keys: list[Key] = [(0, "none", 60), (9, "none", 60)]
    found = Simulation(known(keys, effect), keys, seeds, studies=6000).chances(questions(keys), seeds, 100, NEVER)
    centre, critical = effect * np.sqrt(seeds / 2) / 0.01, stats.t.ppf(0.975, seeds - 1)
    above, below = stats.nct.sf(critical, seeds - 1, centre), stats.nct.cdf(-critical, seeds - 1, centre)
    error = 3 * np.sqrt(0.25 / 6000)
    assert found.decided[0] == pytest.approx(above + below, abs=error)
    assert found.rightly[0] == pytest.approx(above if effect else 0.0, abs=error)


def test_with_many_seeds_the_test_images_alone_limit_the_chance() -> None:
    keys: list[Key] = [(0, "none", 60), (9, "none", 60)]
    made = Simulation(known(keys, 0.02, of_seeds=1e-4, of_images=0.2), keys, 20, studies=6000)
    for images in (100, 400):
        centre, critical = 0.02 / (0.2 * np.sqrt(2 / images)), stats.t.ppf(0.975, images - 1)
        expected = stats.norm.sf(critical - centre)
        assert made.chances(questions(keys), 20, images, NEVER).rightly[0] == pytest.approx(expected, abs=0.02)


def test_what_is_counted_is_what_the_decisions_say() -> None:
    truth = known(effect=0.01, of_images=0.1)
    made = Simulation(truth, KEYS, 3, studies=25)
    asked, values = questions(KEYS), made.values(3, 200)
    said = made.verdicts(asked, 3, 200, 0.01)
    for study in range(25):
        runs = Runs(made.keys, range(3), values[study], covariance=made.covariance(200), pictures=200)
        assert [decision.verdict for decision in decide(runs)] == list(said[study])
    assert len(set(said.ravel())) > 2


def test_a_covariance_stands_for_images_that_have_it() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(0, 0.01, (len(KEYS), 50))
    moved = np.repeat((one - one.mean(1, keepdims=True))[None], 3, axis=0)
    values = rng.normal(0.5, 0.01, (3, len(KEYS)))
    weights = rng.normal(0, 1, (4, len(KEYS)))
    whole = Runs(KEYS, range(3), values, moved)
    short = Runs(KEYS, range(3), values, covariance=moved[0] @ moved[0].T * 50 / 49, pictures=50)
    assert short.contrasts(weights).low == pytest.approx(whole.contrasts(weights).low)
    assert short.mean_of(weights).p == pytest.approx(whole.mean_of(weights).p)
    assert short.draws(4000).std(0) == pytest.approx(whole.draws(4000).std(0), rel=0.1)


def test_chances_grow_with_seeds_and_with_test_images() -> None:
    made = Simulation(known(effect=0.01, of_images=0.1), KEYS, 20)
    asked = questions(KEYS)
    by_seeds = [made.chances(asked, n, 400, NEVER).rightly for n in (2, 3, 5, 10, 20)]
    effects = np.abs(made.rows(asked) @ made.expected) > 1e-6
    assert (np.diff(by_seeds, axis=0)[:, effects] >= -0.02).all()
    assert (by_seeds[-1] - by_seeds[0])[effects].min() > 0.2
    by_images = np.array([made.chances(asked, 10, n, NEVER).rightly for n in (50, 200, 800, 3200)])
    assert (np.diff(by_images, axis=0)[:, effects] >= -0.02).all()
    assert (by_images[-1] - by_images[0])[effects].min() > 0.2


@pytest.mark.parametrize("images", [0.0, 0.2])
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_effects_that_are_not_there_are_decided_wrongly_in_one_study_of_twenty_at_most(
    seeds: int, images: float
) -> None:
    made = Simulation(known(of_images=images), KEYS, seeds, studies=3000)
    asked = questions(KEYS)
    said = made.verdicts(asked, seeds, 400, 0.01)
    for kind in {one.kind for one in asked}:
        mine = [one.kind == kind for one in asked]
        assert np.isin(said[:, mine], ["up", "down"]).any(1).mean() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 3000)


def test_one_seed_decides_nothing_and_what_is_uncertain_makes_chances_less_extreme() -> None:
    asked = questions(KEYS)
    sure = known(effect=0.02)
    assert not Simulation(sure, KEYS, 1).chances(asked, 1, 100, 0.01).decided.any()
    unsure = replace(sure, seeds=3.0, df=2.0)
    few, many = (Simulation(truth, KEYS, 5).chances(asked, 5, 100, NEVER).rightly for truth in (unsure, sure))
    there = many > 0.95
    assert there.any()
    assert (few[there] < many[there]).all()


def test_label_sizes_on_test_images_of_their_own_share_no_draw() -> None:
    truth = replace(known(), of_images=Shared({(): 0.1**2}))
    assert np.ptp(Simulation(truth, KEYS, 2).covariance(100)) == pytest.approx(0)
    moving = Simulation(truth, KEYS, 2, moving=True).covariance(100)
    assert (moving[0, 1], moving[0, 3]) == pytest.approx((0, 1e-4))


def test_a_claim_is_decided_by_the_tests_of_the_scorecard() -> None:
    paper = from_paper()
    made = Simulation(paper, paper.keys, 3, studies=12)
    config = resolve(read_config(PAPER))
    rows = claims.claim_chances(made, config, [{"seeds": 3, "test_images": 1000}], 0.01)
    values, asked = made.values(3, 1000), questions(made.keys)
    said = made.verdicts(asked, 3, 1000, 0.01)
    found = []
    for study in range(12):
        runs = Runs(made.keys, range(3), values[study])  # without test images, whose noise is small here
        decisions = [d for d in decide(runs) if d.kind in ("task", "pre-training")]
        assert [d.verdict for d in decisions] == [
            said[study, place] for place, one in enumerate(asked) if one.kind in ("task", "pre-training")
        ]
        cells = Cells.of(runs, epochs=(200, 100), decisions=decisions)
        found.append({claim.key: claim.test(cells).found for claim in CLAIMS})
    for row in rows:
        everywhere = np.mean([one[row["key"]] is Found.HOLDS for one in found])
        assert row["everywhere"][0] == pytest.approx(everywhere, abs=0.25)


# Noise


def test_components_of_a_covariance_are_found() -> None:
    whole = Shared({EVERY: 4.0, (0,): 2.0, (0, 1): 1.0, (): 9.0})
    found = Shared.fitted(whole.covariance(KEYS), KEYS)
    assert found.parts == pytest.approx(whole.parts)
    assert (found.variance, found.difference) == pytest.approx((16.0, 14.0))
    covariance = whole.covariance(KEYS)
    covariance[0, 1] = covariance[1, 0] = np.nan
    assert Shared.fitted(covariance, KEYS).parts == pytest.approx(whole.parts)


def test_factors_that_are_not_told_apart_share_least() -> None:
    keys: list[Key] = [(0, "none", 60), (9, "none", 60)]
    assert Shared.fitted(np.array([[3.0, 1], [1, 3]]), keys).parts == pytest.approx({EVERY: 2.0, (1, 2): 1.0})


def test_the_noise_of_an_earlier_study_is_found_again() -> None:
    rng = np.random.default_rng(1)
    truth = known(effect=0.02, of_seeds=0.01)
    truth = replace(truth, of_images=Shared({(): 0.1**2, (0,): 0.05**2}), of_both=Shared({EVERY: 0.04**2}))
    truth = replace(truth, of_seeds=Shared({EVERY: 0.005**2, (0,): 0.01**2}))
    seeds, images = 40, 400
    each = (
        rng.standard_normal((images, 1)) * 0.1
        + np.repeat(rng.standard_normal((images, 3)) * 0.05, 6, axis=1)
        + rng.standard_normal((seeds, images, len(KEYS))) * 0.04
    )
    values = rng.standard_normal((seeds, len(KEYS))) * 0.005
    values += np.repeat(rng.standard_normal((seeds, 3)) * 0.01, 6, axis=1) + each.mean(1)
    moved = (each - each.mean(1, keepdims=True)).transpose(0, 2, 1) / images
    found = from_runs(Runs(KEYS, range(seeds), values, moved), "it")
    assert found.of_seeds.parts.get((0,), 0) == pytest.approx(0.01**2, rel=0.4)
    assert found.of_seeds.variance == pytest.approx(0.01**2 + 0.005**2, rel=0.3)
    assert found.of_images.parts[()] == pytest.approx(0.1**2, rel=0.3)
    assert found.of_images.difference == pytest.approx(2 * 0.05**2, rel=0.3)
    assert found.of_both.variance == pytest.approx(0.04**2, rel=0.1)
    assert abs(found.slope) < 0.1
    assert 39 < found.df < 39 * len(KEYS)


def test_as_many_images_in_groups_say_no_more_than_their_groups() -> None:
    rng = np.random.default_rng(3)
    moved = rng.standard_normal((2, len(KEYS), 12)) / 100
    values = rng.standard_normal((2, len(KEYS))) / 100
    alone, grouped = (from_runs(Runs(KEYS, [0, 1], values, moved, of_each=n), "it") for n in (1.0, 8.0))
    assert (alone.pictures, grouped.pictures) == (12, 96)
    for noise in ("of_images", "of_both"):  # 96 images in groups of 8 to come are as noisy as these 12 groups
        mine, theirs = (getattr(one, noise).scaled(1 / one.pictures) for one in (grouped, alone))
        assert mine.parts == pytest.approx(theirs.parts)


def test_where_groups_are_drawn_a_grid_decides_no_more_than_with_as_many_images() -> None:
    paper = from_paper()
    assert paper.in_groups(1) is paper
    grouped = paper.in_groups(6)
    assert grouped.in_groups(6) is grouped  # as it is known of a study with groups
    assert "taken 2.4 times as large" in grouped.about_images
    few, many = Simulation(paper, KEYS, 3), Simulation(grouped, KEYS, 3)
    assert many.covariance(600) == pytest.approx(few.covariance(100))
    assert (few.drawn(100), many.drawn(600)) == (100, 100)
    asked = questions(few.keys)
    alike, fewer, more = (
        made.chances(asked, 3, tested, 0.01).rightly for made, tested in ((many, 600), (few, 100), (few, 600))
    )
    assert alike == pytest.approx(fewer, abs=0.1)
    assert alike.sum() < more.sum() - 0.1


def test_noise_that_falls_with_the_labels_falls_in_the_study_to_come() -> None:
    rng = np.random.default_rng(2)
    scale = np.array([240 / labels for *_, labels in KEYS])
    found = from_runs(Runs(KEYS, range(30), rng.standard_normal((30, len(KEYS))) * 0.01 * scale), "it")
    assert found.slope == pytest.approx(-1, abs=0.2)
    sd = np.sqrt(np.diag(found.seed_covariance([(9, "none", 60), (9, "none", 480)])))
    assert sd == pytest.approx([0.04, 0.005], rel=0.3)


def test_one_seed_and_no_matrices_take_the_paper_s_noise() -> None:
    found, paper = from_runs(Runs(KEYS, [0], np.full((1, len(KEYS)), 0.5)), "it"), from_paper()
    assert (found.of_seeds, found.of_images) == (paper.of_seeds, paper.of_images)
    assert "as it has one seed" in found.about_seeds
    assert "no confusion matrices" in found.about_images


# Truth


def read_off(truth: Truth, *keys: Key, **stand_in: str) -> np.ndarray:
    return weights_of(truth, list(keys), stand_in)[0] @ truth.mean


def test_known_cells_come_back_and_others_lie_between_them() -> None:
    paper = from_paper()
    assert read_off(paper, *paper.keys) == pytest.approx(paper.mean)
    place = {key: mean for key, mean in zip(paper.keys, paper.mean, strict=True)}
    few, between, many = read_off(paper, (45_000, "none", 250), (45_000, "none", 354), (45_000, "none", 500))
    assert between == pytest.approx((few + many) / 2, abs=1e-4)
    (middle,) = read_off(paper, (141_421, "intel", 250))
    assert middle == pytest.approx((place[100_000, "intel", 250] + place[200_000, "intel", 250]) / 2, abs=1e-4)


def test_beyond_the_known_sizes_returns_fall_and_a_gain_vanishes_without_images() -> None:
    paper = from_paper()
    _, beyond = weights_of(paper, [(45_000, "none", n) for n in (250, 6000, 12_000)], {})
    assert beyond == [(45_000, "none", 12_000)]
    labels = read_off(paper, *((0, "none", n) for n in (3000, 6000, 12_000, 24_000, 96_000)))
    steps = np.diff(labels)
    assert (steps[1:] > 0).all()
    assert steps[2] == pytest.approx(steps[1] / 2)
    assert labels[-1] - labels[1] < 2 * steps[1]
    start, *gains = read_off(paper, (0, "none", 500), *((p, "none", 500) for p in (10, 9000, 20_000, 45_000)))
    assert start < gains[0] < start + 1e-4
    assert sorted(gains) == gains
    harms = [read_off(paper, (p, "none", 500), (p, "intel", 500)) for p in (10, 9000, 45_000)]
    lost = [without - after for without, after in harms]
    assert lost == sorted(lost)
    assert 0 < lost[0] < 1e-4


def test_what_is_not_known_is_left_out_and_classifications_stand_for_the_paper_s() -> None:
    paper = from_paper()
    config = resolve({"study": "x", "grid": {"intermediates": ["none", "intel_mean", "pets_spatial"]}})
    stand_in = stand_ins(paper, config["intermediate"])
    assert stand_in == {"intel_mean": "intel"}
    mean, intel = read_off(paper, (45_000, "intel_mean", 250), (45_000, "intel", 250), **stand_in)
    assert mean == intel
    assert np.isnan(read_off(paper, (45_000, "pets_spatial", 250), (0, "intel", 250))).all()
    made = Simulation(paper, [(0, "intel", 250), (45_000, "intel", 250), (45_000, "none", 250)], 3)
    assert (made.unknown, len(made.keys)) == ([(0, "intel", 250)], 2)


# The command


@pytest.fixture
def tiny() -> dict[str, Any]:
    return resolve(read_config(TINY))


def cell_keys(config: dict[str, Any]) -> list[Key]:
    return list(dict.fromkeys((c.pretrain_size, c.intermediate, c.finetune_size) for c in cells(config)))


def results(root: Path, config: dict[str, Any], harm: float = 0.05) -> None:
    """A study's folder with made metrics."""
    write_study(root, config)
    rng = np.random.default_rng(0)

    def miou(cell: Cell) -> float:
        effect = 0.1 * (cell.pretrain_size > 0) - harm * (cell.intermediate != "none")
        return 0.4 + 0.02 * np.log2(cell.finetune_size) + effect + 0.002 * rng.standard_normal()

    for cell in cells(config):
        value = {"study": config["study"], "protocol": "sound", "note": "", "cell": cell.as_dict(), "provenance": {}}
        value |= {"metrics": {"miou": miou(cell), "pixel_accuracy": 0.7}, "miou_is": "dataset", "test_images": 10}
        write_json(metrics_file(root, cell), value | {"classes": {}})


def test_the_paper_s_grid_has_a_chance_for_each_question_and_hours_for_each_grid(tmp_path: Path) -> None:
    config = resolve(read_config(PAPER))
    found = power(config, tmp_path, rate=1400.0)
    json.dumps(found, allow_nan=False)
    assert found["grids"][0]["seeds"] == 3
    assert {row["kind"] for row in found["questions"]} == {
        *("pre-training", "images", "images fall", "labels", "labels fall", "task", "task by size"),
    }
    assert all(len(row["rightly"]) == len(found["grids"]) for row in found["questions"])
    largest = next(row for row in found["questions"] if row["what"] == 200_000 and row["kind"] == "pre-training")
    assert min(largest["rightly"]) > 0.99  # 8.5 points, with a spread of half a point
    hours = [grid["hours"] for grid in found["grids"]]
    assert hours[:3] == sorted(hours[:3])
    assert any("nothing is known of 6 cells" in note for note in found["notes"])
    told = {row["key"]: row for row in found["claims"]}
    assert told["pretraining_worth_less_with_labels"]["rightly"][:3] == [1.0] * 3
    assert {"harm_is_erasure", "spatial_raises_probe"}.isdisjoint(told)  # no cells to test them on
    for row in found["claims"]:
        assert row["rightly"][3:] == [None] * (len(found["grids"]) - 3)
        assert all(a + b <= 1 and c <= a + b for a, b, c in zip(*(row[key][:3] for key in SHARES), strict=True))


def test_hours_are_those_of_the_plan(tmp_path: Path, tiny: dict[str, Any]) -> None:
    costs = Costs(tiny, count_images(tiny, tmp_path / "tiny"), tmp_path, None, 100.0)
    planned = plan(tiny, tmp_path, Path(tiny["pack_store"]), rate=100.0)["total"]
    own = costs.hours(2, tiny["segmentation"]["test_size"])
    assert own == pytest.approx(planned["hours"] - planned["jobs"] * SNAKEMAKE_JOB / 3600)
    assert costs.hours(4, 10) > own
    assert costs.hours(2, 1000) > own


def test_without_a_rate_hours_are_not_known(tmp_path: Path, tiny: dict[str, Any]) -> None:
    found = power(tiny, tmp_path)
    assert {grid["hours"] for grid in found["grids"]} == {None}
    assert found["rates"] == NOT_KNOWN
    tiny["compute"]["images_per_second"] = 100
    stated_there = power(tiny, tmp_path)
    assert all(grid["hours"] > 0 for grid in stated_there["grids"])
    assert "compute.images_per_second" in stated_there["rates"]


def test_an_earlier_study_is_the_truth(tmp_path: Path, tiny: dict[str, Any]) -> None:
    results(tmp_path / "tiny", tiny)
    found = power(tiny, tmp_path, like=tmp_path / "tiny", seeds=[3, 6])
    effects = {(row["kind"], row["what"]): row["effect"] for row in found["questions"]}
    assert effects["pre-training", 24] == pytest.approx(0.1, abs=0.005)
    assert effects["task", "scenes"] == pytest.approx(-0.05, abs=0.005)
    assert [grid["seeds"] for grid in found["grids"]] == [3, 6] * 2
    assert from_study(tmp_path / "tiny").seeds == 2


def test_a_stated_effect_is_the_truth(tmp_path: Path, tiny: dict[str, Any]) -> None:
    found = power(tiny, tmp_path, effect=3.0, noise=0.1, image_noise=0.0, seeds=[5])
    assert {row["kind"] for row in found["questions"]} == {"pre-training", "task", "task by size", "interaction"}
    for row in found["questions"]:
        zero = row["name"].endswith("on a random start") and row["kind"] == "task by size"
        assert abs(row["effect"]) == pytest.approx(0.0 if zero else 0.03)
        assert min(row["rightly"]) > 0.9
    assert found["notes"][0].endswith("0.1 points a cell, as stated")


def test_a_stated_noise_needs_none_in_the_earlier_study() -> None:
    still = from_runs(Runs([(0, "none", 8), (24, "none", 8)], [0, 1], np.full((2, 2), 0.5)), "still")
    still = replace(still, of_seeds=Shared({}), of_images=Shared({}), of_both=Shared({}))
    noisy = still.with_noise(0.02, 0.3)
    assert noisy.of_seeds.variance == pytest.approx(0.02**2)
    assert noisy.of_images.difference == pytest.approx(0.3**2)
    assert still.with_noise(0.0, 0.0).of_seeds.variance == 0


def test_holms_correction_is_that_of_the_study_to_come(tmp_path: Path, tiny: dict[str, Any]) -> None:
    """A question that is shown once under two names counts in the families of both."""
    found = power(tiny, tmp_path, effect=1.0, noise=0.5, image_noise=0.0, seeds=[3], tests=[10])
    truth = stated(from_paper(), cell_keys(tiny), 0.01).with_noise(0.005, 0.0)
    made = Simulation(truth, cell_keys(tiny), 3)
    asked = [one for one in questions(made.keys) if one.kind == "task by size"]
    rightly = made.chances(asked, 3, 10, MARGIN).rightly
    shown = [row["rightly"][0] for row in found["questions"] if row["kind"] == "task by size"]
    assert len(asked) == 2
    assert shown == [rightly[0]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--like", "nowhere/study"], "nowhere/study/study.json: no such file"),
        (["--like", "empty"], "none of its 16 cells is evaluated"),
        (["--noise", "-1"], "argument --noise: -1: expected a number of 0 or more"),
        (["--effect", "much"], "argument --effect: 'much': expected a number"),
        (["--image-noise", "inf"], "argument --image-noise: inf: expected a number of 0 or more"),
        (["--seeds", "0"], "argument --seeds: 0: expected a number above 0"),
        (["--test-images", "-5"], "argument --test-images: -5: expected a number above 0"),
        (["--seeds", "1000"], "--seeds 1000: expected at most 100"),
        (["--set", "grid.intermediates=[scenes]"], "its grid asks nothing"),
        (["--set", "grid={pretrain_sizes: [24], intermediates: [none], finetune_sizes: [8]}"], "its grid asks nothing"),
        (
            ["--set", "grid={pretrain_sizes: [0], intermediates: [none, pets_spatial], finetune_sizes: [8]}"],
            "says nothing of its cells",
        ),
        (["--effect", "2", "--set", "grid={pretrain_sizes: [0], intermediates: [none]}"], "leave --effect out"),
    ],
)
def test_bad_input_is_refused_with_its_name(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    tiny: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_study(tmp_path / "empty", tiny)
    try:
        code = main(["power", str(TINY), *arguments])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert words in capsys.readouterr().err


def test_a_study_without_miou_is_no_truth(tmp_path: Path, tiny: dict[str, Any]) -> None:
    results(tmp_path / "tiny", tiny)
    for cell in cells(tiny):
        path = metrics_file(tmp_path / "tiny", cell)
        value = json.loads(path.read_text())
        write_json(path, value | {"metrics": {"miou": None, "pixel_accuracy": 0.7}})
    with pytest.raises(InputError, match="--like"):
        from_study(tmp_path / "tiny")


def grid(seeds: int, tests: int, hours: float | None) -> dict[str, Any]:
    return {"seeds": seeds, "test_images": tests, "hours": hours}


def row(name: str, *rightly: float) -> dict[str, Any]:
    return {"name": name, "rightly": list(rightly), "wrongly": [0.0] * len(rightly)}


def test_the_cheapest_grid_decides_all_or_as_many_as_any() -> None:
    grids = [grid(3, 100, 9.0), grid(5, 100, 15.0), grid(3, 400, 10.0)]
    both = [row("a", 0.9, 1.0, 0.95), row("b", 0.5, 0.85, 0.8)]
    assert cheapest(grids, both) == {"grid": 2, "decided": 2, "open": []}
    unpriced = [one | {"hours": None} for one in grids]
    assert cheapest(unpriced, both)["grid"] == 2  # fewest seeds
    found = cheapest(grids, [*both[:1], row("c", 0.1, 0.7, 0.2)])
    assert found == {"grid": 0, "decided": 1, "open": [{"name": "c", "chance": 0.7}]}
    said = in_words({"cheapest": found, "grids": grids, "questions": both})
    assert "3 seeds and 100 test images, 9.0 h of jobs" in said
    assert said.endswith("Open: c (70 % at best).")
    none = cheapest(grids, [row("c", 0.1, 0.7, 0.2)])
    assert none["grid"] is None
    assert in_words({"cheapest": none, "grids": grids, "questions": [0]}).startswith("No grid here decides any")


def test_the_tables_hold_every_chance_and_end_with_the_cheapest_grid(
    tmp_path: Path, tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    found = power(tiny, tmp_path, rate=100.0)
    show(found)
    said = capsys.readouterr().out
    for question in found["questions"]:
        assert said.count(f"\n{question['name']}  ") == len({one["test_images"] for one in found["grids"]})
    assert said.count("\njob time") == len({one["test_images"] for one in found["grids"]})
    assert " ".join(said.split()).endswith(in_words(found))
    assert main(["power", str(TINY), "--results", str(tmp_path), "--rate", "100", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(found))


def test_a_study_with_arms_is_asked_about_its_first(tmp_path: Path) -> None:
    """As the study of that arm alone would be, hours included."""
    raw = read_config(ARMS)
    axes = {key: value for key, value in raw["grid"].items() if key not in ("starts", "variants")}
    alone = {key: value for key, value in raw.items() if key not in ("starts", "variants")} | {"grid": axes}
    found, expected = (power(resolve(one), tmp_path, rate=100.0, seeds=[2], tests=[20]) for one in (raw, alone))
    note, *others = found["notes"]
    assert note.startswith("of the arm random alone, and its hours; 9 others are not simulated")
    assert others == expected["notes"]
    for key in ("grids", "questions", "claims", "cheapest"):
        assert found[key] == expected[key]
