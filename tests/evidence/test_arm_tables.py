"""Arms: their differences against a direct computation, the best one, images or steps, and what is said of them."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

pytest.importorskip("jsonschema")

from arms_study import ARMS, RATE, summarise, write_arms_study

from viny.evidence.figures.arms import arms_figure, held_out
from viny.evidence.report.arms import arms_answer, cell_words
from viny.evidence.statistics.arm_pages import BEST, BOUGHT, arm_decisions, held_out_words
from viny.evidence.statistics.arms import (
    ARMS_COLUMNS,
    KEY,
    Arms,
    arms_table,
    best_arm,
    budget_words,
    held_out_tables,
    of_budgets,
    questions,
    time_in_words,
)
from viny.evidence.statistics.costs import arm_costs
from viny.evidence.statistics.crossed import Runs, read_runs
from viny.evidence.statistics.effects import DECISIONS
from viny.evidence.tables import read_metrics, with_arms
from viny.evidence.verdicts import ARMS as KINDS
from viny.evidence.verdicts import Decision, answer
from viny.study.config import merge
from viny.study.grid import base_cells, cells
from viny.study.layout import summarised
from viny.study.specs import statistics_spec

SIZES, LABELS = (0, 10, 40), (50, 200)
VARIANTS = ("study", "tuned", "frozen", "equal_steps")
ORDER = list(product(("random", "tiny"), VARIANTS))
SHARED = {
    (start, "equal_steps", p, "none", n): (start, "study", p, "none", n)
    for start, p, n in product(("random", "tiny"), (0, 40), LABELS)
}
ABOUT = Arms(
    ORDER,
    starts={"tiny": "published weights (tiny)"},
    published=["tiny"],
    tuned={"tuned": "study"},
    frozen=["frozen"],
    steps={"equal_steps": "study"},
    shared=SHARED,
)


def study(seed: int = 0, spread: float = 0.003, seeds: int = 3, noise: float = 0.0, **gains: float) -> Runs:
    """All cells of `ABOUT`, with a gain of `tiny`, `tuned`, `frozen`, `steps` and `images` where given."""
    rng = np.random.default_rng(seed)
    keys = [(*arm, p, "none", n) for arm in ORDER for p in SIZES for n in LABELS]
    keys = [key for key in keys if key not in SHARED]
    truth = [
        0.4 + gains.get("tiny", 0) * (s == "tiny") + gains.get(v, 0)
        + gains.get("steps", 0) * (p == 40 or v == "equal_steps") + gains.get("images", 0) * (p == 40)
        for s, v, p, _, _ in keys
    ]  # fmt: skip
    moved = noise * rng.standard_normal((len(keys), 40)) / np.sqrt(40)
    values = np.array(truth) + spread * rng.standard_normal((seeds, len(keys))) + moved.sum(1)
    centred = np.stack([moved - moved.mean(1, keepdims=True)] * seeds)
    return Runs(keys, range(seeds), values, centred if noise else None)


def of(decisions: list[Decision], kind: str, what: str) -> Decision:
    (found,) = [d for d in decisions if d.kind == kind and d.what == what]
    return found


def test_differences_and_intervals_are_those_of_paired_seeds() -> None:
    runs = study(tiny=0.1, tuned=0.02, steps=0.03)
    table = arms_table(runs, ABOUT).set_index(KEY)
    for name, one, other in (
        ("base", ("tiny", "tuned", 10, "none", 50), ("random", "study", 10, "none", 50)),
        ("simmim", ("tiny", "tuned", 10, "none", 50), ("tiny", "tuned", 0, "none", 50)),
        ("tuning", ("tiny", "tuned", 10, "none", 50), ("tiny", "study", 10, "none", 50)),
        ("simmim", ("tiny", "equal_steps", 10, "none", 50), ("tiny", "study", 0, "none", 50)),  # the same start
    ):
        apart = runs.values[:, runs.place[one]] - runs.values[:, runs.place[other]]
        told = stats.ttest_1samp(apart, 0)
        interval = told.confidence_interval()
        row = table.loc[one]
        assert row[name] == pytest.approx(apart.mean())
        assert (row[f"{name}_low"], row[f"{name}_high"]) == pytest.approx((interval.low, interval.high))
        assert row[f"{name}_p"] == pytest.approx(told.pvalue)
    for name in ("base", "simmim", "tuning"):
        rows = table.dropna(subset=name)
        assert rows[f"{name}_p_holm"].to_numpy() == pytest.approx(multipletests(rows[f"{name}_p"], method="holm")[1])
    mean = runs.values[:, runs.place["tiny", "frozen", 0, "none", 200]]
    assert table.loc[("tiny", "frozen", 0, "none", 200), "miou"] == pytest.approx(mean.mean())


def test_intervals_hold_the_test_images_too() -> None:
    key, other = ("tiny", "study", 10, "none", 50), ("random", "study", 10, "none", 50)
    runs = study(noise=0.02)
    row = arms_table(runs, ABOUT).set_index(KEY).loc[key]
    direct = runs.contrasts(runs.weights({key: 1.0, other: -1.0})).at()
    assert (row["base_low"], row["base_high"]) == pytest.approx((direct["low"], direct["high"]))
    alone = Runs(runs.keys, runs.seeds, runs.values).contrasts(runs.weights({key: 1.0, other: -1.0})).at()
    assert direct["high"] - direct["low"] > alone["high"] - alone["low"]


def test_nothing_is_compared_with_itself() -> None:
    table = arms_table(study(), ABOUT)
    assert not set(SHARED) & set(table[KEY].itertuples(index=False, name=None))
    first = table[(table["start"] == "random") & (table["variant"] == "study")]
    assert first[["base", "tuning"]].isna().all(axis=None)
    assert list(first["base_words"]) == [""] * len(first)
    assert table.loc[table["pretrain_size"] == 0, "simmim"].isna().all()
    asked = questions(study(), ABOUT)
    assert all(len(weights) == 2 for question in asked for weights in question.weights)
    assert [q.what for q in asked if q.kind == "variant against study"] == [
        f"{start} equal_steps 10 none" for start in ("random", "tiny")
    ]


def test_each_kind_of_question_is_asked_and_answered_in_one_sentence() -> None:
    runs = study(tiny=0.1, tuned=0.03, frozen=-0.05, steps=0.02)
    decisions = answer(runs, questions(runs, ABOUT))
    assert {d.kind for d in decisions} == set(KINDS)
    start = of(decisions, "start against start", "tiny study 0 none")
    each = [runs.values[:, runs.place["tiny", "study", 0, "none", n]] for n in LABELS]
    each = [v - runs.values[:, runs.place["random", "study", 0, "none", n]] for v, n in zip(each, LABELS, strict=True)]
    interval = stats.ttest_1samp(np.mean(each, axis=0), 0).confidence_interval()
    assert (start.low, start.high) == pytest.approx((interval.low, interval.high))
    said = f"Published weights (tiny) beat a random start by {100 * start.mean:.2f} points ({100 * start.low:.2f} to "
    assert start.sentence.startswith(
        f"{said}{100 * start.high:.2f}, over seeds alone) on average over 2 label sizes; 3 seeds"
    )
    frozen = of(decisions, "frozen against trained", "tiny frozen 0 none")
    assert frozen.sentence.startswith("Published weights (tiny) with a frozen encoder fell short of a trained one by ")
    tuned = of(decisions, "tuned against fixed", "random tuned 10 none")
    assert tuned.name == "SimMIM on 10 images from a random start with a tuned rate"
    top = of(decisions, "SimMIM on top of a start", "tiny study 10 none")
    assert top.name == "SimMIM on 10 images on top of published weights (tiny)"
    assert "published weights (tiny) alone" in top.words


def test_what_cannot_be_told_or_is_small_is_said_so() -> None:
    small = answer(study(spread=0.0005), questions(study(), ABOUT))
    assert "came within 1 point of a random start: " in of(small, "start against start", "tiny study 0 none").sentence
    wide = answer(study(spread=0.05), questions(study(), ABOUT))
    assert " cannot be told from a random start" in of(wide, "start against start", "tiny study 0 none").sentence
    alone = answer(study(seeds=1), questions(study(), ABOUT))
    assert all("one seed, no interval" in d.sentence and "nan" not in d.sentence for d in alone)


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ({"steps": 0.05}, "The steps bought it, not the images."),
        ({"images": 0.05}, "The images bought it, not the steps."),
        ({"steps": 0.05, "images": 0.05}, "Both bought some of it."),
        ({}, "Neither bought much."),
    ],
)
def test_a_gain_is_told_apart_into_that_of_steps_and_that_of_images(gains: dict[str, float], verdict: str) -> None:
    runs = study(spread=0.0005, **gains)
    for start in (0, 3):
        whole, steps, images = parts = answer(runs, of_budgets(runs, ABOUT))[start : start + 3]
        assert whole.mean == pytest.approx(steps.mean + images.mean, abs=1e-12)
        assert (steps.mean, images.mean) == pytest.approx((gains.get("steps", 0), gains.get("images", 0)), abs=2e-3)
        assert budget_words(parts).endswith(verdict)
    assert budget_words(parts).count("on top of published weights (tiny)") == 1


def test_without_two_budgets_or_two_sizes_there_is_nothing_to_tell_apart() -> None:
    assert of_budgets(study(), Arms(ORDER)) == []
    runs = study()
    few = [i for i, key in enumerate(runs.keys) if key[2] != 40]
    assert of_budgets(Runs([runs.keys[i] for i in few], runs.seeds, runs.values[:, few]), ABOUT) == []


def test_the_best_arm_is_told_from_those_that_are_worse() -> None:
    runs = study(spread=0.001, seeds=5, tiny=0.1, tuned=0.03, frozen=-0.05)
    table = arms_table(runs, ABOUT)
    best = best_arm(runs, ABOUT, table, 200)
    assert (best.best["start"], best.best["variant"]) == ("tiny", "tuned")
    assert {(row["start"], row["variant"]) for row in best.even} == {
        ("tiny", "tuned")
    }  # images and steps bring nothing
    assert len(best.even) + len(best.behind) + 1 == (table["finetune_size"] == 200).sum()
    assert best.first.startswith("With 200 labels, the highest mIoU is that of ")
    assert f"The other {len(best.behind)} arms are behind by " in best.further
    gaps = {key: found["mean"] for key, found in best.gaps.items()}
    nearest = min(gaps[tuple(row[name] for name in KEY)] for row in best.behind)
    assert f"behind by {100 * nearest:.2f} points" in best.further


def test_arms_alike_are_told_from_the_best_of_them_in_few_studies() -> None:
    wrong, keys = 0, study().keys
    for seed in range(200):
        runs = study(seed)
        found = runs.contrasts(np.eye(len(keys)))
        table = pd.DataFrame(keys, columns=KEY).assign(miou=found.mean, low=found.low, high=found.high)
        table = table.assign(hours=np.nan, device="", unlabelled_images=0)
        wrong += bool(best_arm(runs, ABOUT, table, 50).behind)
    assert wrong <= 30  # of 200; the best is chosen for its mean, so that more than 5 % are to be expected


def test_one_seed_tells_no_arm_from_another() -> None:
    runs = study(seeds=1, tiny=0.2)
    best = best_arm(runs, ABOUT, arms_table(runs, ABOUT), 50)
    assert best.behind == []
    assert best.further == "With one seed, no arm can be told from another."


def test_times_have_the_unit_that_reads_best() -> None:
    said = [time_in_words(hours) for hours in (0.00014, 0.00011, 0.01, 0.7, 12, 340)]
    assert said == ["0.5 s", "0.4 s", "0.6 min", "0.7 h", "12 h", "340 h"]


def test_the_cheapest_of_the_best_is_named() -> None:
    runs = study(tiny=0.1, frozen=-0.2)
    best = best_arm(runs, ABOUT, arms_table(runs, ABOUT), 50)
    cheap = tuple(best.even[-1][name] for name in KEY)
    hours = {
        key: {"pretrain": 0.2, "finetune": 1.5 - (key == cheap), "device": "a CPU", "rate": None, "rate_end": ""}
        for key in runs.keys
    }
    table = arms_table(runs, ABOUT, hours)
    assert set(table["hours"].round(9)) == {0.7, 1.7}
    said = f"Of these, {ABOUT.words(*cheap[:4])} takes the least time, 0.7 h a model."
    assert said in best_arm(runs, ABOUT, table, 50).further
    several = {key: {"device": "a CPU and a GPU", "rate": None, "rate_end": ""} for key in runs.keys}
    assert arms_table(runs, ABOUT, several)["hours"].isna().all()


def test_arms_without_words_are_called_by_their_names() -> None:
    arms = Arms([("random", "study"), ("mine", "deep"), ("mine", "tuned_well")], tuned={"tuned_well": "study"})
    assert arms.words("mine", "deep", 10) == "SimMIM on 10 images from the start mine in variant deep"
    assert arms.words("random", "tuned_well", 0, "scenes") == (
        "a random start and the task scenes with a tuned rate (variant tuned_well)"
    )


# Files


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("made") / "tiny"
    config = write_arms_study(root)
    summarise(root, config)
    return root, config


def read(root: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(root / "tables" / f"{name}.csv", keep_default_na=False, na_values=[""])


def test_every_file_that_the_layout_lists_is_written(made: tuple[Path, dict[str, Any]]) -> None:
    root, config = made
    wanted = summarised("statistics", statistics_spec(config))
    assert [name for name in wanted if not (root / name).is_file()] == []
    assert {"tables/arms.csv", "tables/held_out.md", "figures/arms.png", "figures/held_out.pdf"} <= {
        name.as_posix() for name in wanted
    }


def test_metrics_hold_all_arms_and_the_other_tables_the_first(made: tuple[Path, dict[str, Any]]) -> None:
    root, config = made
    metrics, summary = read(root, "metrics"), read(root, "summary")
    assert list(metrics["cell"]) != [] and set(metrics["cell"]) == {cell.name for cell in cells(config)}
    assert list(metrics.columns[3:8]) == ["cell", "start", "variant", "pretrain_size", "intermediate"]
    assert "start" not in summary
    base = {cell.name for cell in base_cells(config)}
    mine = metrics[metrics["cell"].isin(base)]
    assert (summary["n"].sum(), summary["n"].max()) == (len(mine), 3)
    assert len(read(root, "costs")) == len(summary)


def test_the_table_has_rates_hours_and_images(made: tuple[Path, dict[str, Any]]) -> None:
    root, _ = made
    table = read(root, "arms")
    assert list(table.columns) == [*ARMS_COLUMNS, "study", "protocol", "note"]
    tuned = table["variant"] == "tuned"
    assert set(table.loc[tuned, "rate"]) == {RATE}
    assert table.loc[~tuned, "rate"].isna().all()
    pretrained = table["pretrain_size"] > 0
    assert table["hours"].to_numpy() == pytest.approx(0.1 + 0.1 * pretrained + 0.05 * tuned)
    assert (table["unlabelled_images"] == table["pretrain_size"]).all()


def test_table_report_and_words_agree(made: tuple[Path, dict[str, Any]]) -> None:
    root, config = made
    about = Arms.of(statistics_spec(config))
    runs = read_runs(with_arms(read_metrics(sorted((root / "metrics").glob("*.json")))), root / "metrics", by=KEY)
    table = arms_table(runs, about, arm_costs(root, cells(config), about.tuned))
    decisions, told = arm_decisions(runs, about, table), read(root, "arm_decisions")
    assert list(told.columns) == [*DECISIONS, "study", "protocol", "note"]
    assert list(told["sentence"]) == list(decisions["sentence"])
    page = (root / "report.html").read_text(encoding="utf-8").replace("−", "-")
    text = (root / "tables" / "arms.md").read_text(encoding="utf-8").replace("\\", "")
    for row in told.to_dict("records"):
        assert row["sentence"] in text
        if row["kind"] != BEST:
            assert row["sentence"].replace("'", "&#39;") in page
    shown = arms_answer(told, about)
    assert [best["labels"] for best in shown["best"]] == ["16", "8"]
    assert shown["best"][0]["name"] in page and shown["best"][0]["further"] in page
    assert len(told[told["kind"] == BOUGHT]) == 2
    row = read(root, "arms").set_index(KEY).loc[("tiny", "tuned", 24, "none", 16)]
    cell = dict(cell_words(row))
    assert cell["Tuned rate"] == "0.004, the highest tried"
    assert all(words in page for words in cell.values())
    assert page.index("Should I pre-train, or take published weights?") < page.index("All that was compared")


def test_the_page_links_the_files_of_every_arm(made: tuple[Path, dict[str, Any]]) -> None:
    root, config = made
    page = (root / "report.html").read_text(encoding="utf-8")
    assert all(f'href="metrics/{cell.name}.json"' in page for cell in cells(config))
    assert all(f'href="finetune/{cell.name}/"' in page for cell in cells(config))


def test_the_loss_on_held_out_images_stands_beside_what_it_brings(made: tuple[Path, dict[str, Any]]) -> None:
    root, config = made
    table = read(root, "held_out")
    arms = [("random", "study", 8), ("random", "study", 24), ("random", "equal_steps", 8)]
    assert list(table[["start", "variant", "pretrain_size"]].itertuples(index=False, name=None))[:3] == arms
    page = (root / "report.html").read_text(encoding="utf-8").replace("−", "-")
    lines = held_out_words(table, Arms.of(statistics_spec(config)))
    assert lines[2].startswith("SimMIM on 8 images from a random start in variant equal_steps: the held-out loss ")
    assert all(line in page for line in lines)
    runs, curves = study(noise=0.02), {}
    for arm in (("random", "study"), ("random", "equal_steps")):
        curve = pd.DataFrame({"epoch": [1, 2, 3], "lr": 0.1, "loss": [3, 2, 1], "held_out_loss": [3.5, np.nan, 1.5]})
        curves[arm] = {(10, seed): curve for seed in range(3)}
    _, gains = held_out_tables(runs, ABOUT, curves)
    row = gains[(gains["variant"] == "equal_steps") & (gains["finetune_size"] == 50)].iloc[0]
    one, start = ("random", "equal_steps", 10, "none", 50), ("random", "study", 0, "none", 50)
    direct = runs.contrasts(runs.weights({one: 1.0, start: -1.0})).at()
    assert (row["last"], row["mean"], row["low"]) == pytest.approx((1.5, direct["mean"], direct["low"]))
    drawn = held_out(curves, gains, ABOUT)
    assert len([line for line in drawn.axes[0].lines if line.get_label() == "_held out"]) == 2


def test_the_figure_has_a_line_for_each_arm_in_the_panel_of_its_images() -> None:
    runs = study(tiny=0.1)
    table = arms_table(runs, ABOUT)
    figure = arms_figure(table, ABOUT)
    assert [axes.get_title() for axes in figure.axes] == [
        "Without SimMIM",
        "SimMIM on 10 images",
        "SimMIM on 40 images",
    ]
    for axes, size in zip(figure.axes, SIZES, strict=True):
        lines = {box.get_label(): box.lines[0] for box in axes.containers}
        assert set(lines) == {f"{s} {v}" for s, v in ORDER if (s, v, size, "none", 50) not in SHARED}
        for name, line in lines.items():
            start, variant = name.split()
            rows = table[(table["start"] == start) & (table["variant"] == variant) & (table["pretrain_size"] == size)]
            assert line.get_ydata() == pytest.approx(100 * rows["miou"].to_numpy())
            assert (
                np.abs(np.log(line.get_xdata() / rows["finetune_size"])).max() < 0.2
            )  # nearer to its labels than to others


def test_a_study_with_variants_alone_asks_which_arm_is_best(tmp_path: Path) -> None:
    settings = merge(
        ARMS, {"grid": {"starts": ["random"], "variants": ["study", "frozen"]}, "pretrain": {"held_out": 0}}
    )
    del settings["starts"], settings["variants"]
    root = tmp_path / "tiny"
    summarise(root, write_arms_study(root, settings))
    page = (root / "report.html").read_text(encoding="utf-8")
    assert "Which arm is best?" in page and "published weights" not in page
    assert "Images or steps" not in page and not (root / "tables" / "held_out.csv").exists()


def test_a_study_without_arms_has_none_of_it(tmp_path: Path) -> None:
    settings = merge(ARMS, {"grid": {"starts": ["random"], "variants": ["study"]}})
    del settings["starts"], settings["variants"]
    root = tmp_path / "tiny"
    config = write_arms_study(root, settings)
    summarise(root, config)
    assert not (root / "tables" / "arms.csv").exists()
    assert "start" not in read(root, "metrics")
    page = (root / "report.html").read_text(encoding="utf-8")
    assert "The loss on held-out images" in page  # which needs no arms
    assert 'id="best"' not in page and "One arm alone" not in page


def test_a_study_whose_first_arm_is_tuned_counts_that_and_tells_what_its_encoders_bring(tmp_path: Path) -> None:
    grid = {"starts": ["random"], "variants": ["tuned", "frozen"], "pretrain_sizes": [0, 24]}  # none as the study is
    config = write_arms_study(tmp_path, merge(ARMS, {"grid": grid}))
    summarise(tmp_path, config)
    gains = (tmp_path / "tables" / "held_out.md").read_text()
    assert "| SimMIM on 24 images from a random start | 8 |" in gains
    assert len(read(tmp_path, "held_out")) == 1
    spent, arms = read(tmp_path, "costs"), read(tmp_path, "arms")
    hours = arms[arms["variant"] == "tuned"].set_index(["pretrain_size", "finetune_size"])["hours"]
    costs = spent.set_index(["pretrain_size", "finetune_size"])["seconds"]
    assert np.allclose(costs / 3600, hours[costs.index])
