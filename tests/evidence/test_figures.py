"""Figures: panels, lines, labels and units, and files that are equal for equal input."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from figure_checks import assert_readable, contrast, legend, words
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from viny.data.masks import IGNORE
from viny.evidence.figures import kit, pipeline
from viny.evidence.figures import study as figures
from viny.evidence.figures.study import Prediction
from viny.evidence.report import CAPTIONS, page
from viny.evidence.stages.figures import _miou_of_images
from viny.evidence.statistics.crossed import Runs, read_runs
from viny.runtime.errors import InputError
from viny.study.layout import REPRESENTATIONS_FIGURES, STATISTICS_FIGURES, figure_names

NOTE = "Made up, with $ and _; not comparable with anything. " * 8


def study(pres: list[int], tasks: list[str], fines: list[int], seeds: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [(p, t, f, s) for p in pres for t in tasks for f in fines for s in range(seeds)]
    frame = pd.DataFrame(rows, columns=["pretrain_size", "intermediate", "finetune_size", "seed"])
    return frame.assign(miou=rng.uniform(0.3, 0.6, len(frame)))


def runs_of(frame: pd.DataFrame) -> Runs:
    return read_runs(frame, None)


def bars(axes: Axes) -> list[bool]:
    return [container.has_yerr for container in axes.containers]


def curve(folder: Path, name: str, epochs: int = 3) -> Path:
    path = folder / f"{name.replace('/', '-')}.csv"
    epoch = np.arange(1, epochs + 1)
    pd.DataFrame({"epoch": epoch, "loss": 1 / epoch, "lr": 0.1, "seconds": 1.0}).to_csv(path, index=False)
    return path


def finetuning(folder: Path, pres: list[int], fines: list[int], seeds: int) -> list[tuple[str, str, Path]]:
    names = [
        f"pre-{p}_mid-{t}_fine-{f}_seed-{s}" for p in pres for t in ("none", "a_b") for f in fines for s in range(seeds)
    ]
    return [("finetune", name, curve(folder, name)) for name in names]


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).random((count, 8, 8, 3))


def test_miou_curves() -> None:
    frame = study([0, 50, 100], ["none", "b", "a"], [250, 1000], seeds=3)
    runs = runs_of(frame)
    figure = figures.miou_curves(runs, NOTE)
    assert [axes.get_title().split()[-1] for axes in figure.axes] == ["task", "a", "b"]  # 'none' first
    assert legend(figure) == ["random start", "50 images", "100 images"]
    for axes in figure.axes:
        assert bars(axes) == [True] * 3
        assert axes.get_xscale() == "log"
        assert list(axes.get_xticks()) == [250, 1000]
        assert [t.get_text() for t in axes.get_xticklabels()] == ["250", "1000"]
        assert axes.get_ylim() == figure.axes[0].get_ylim()
        lines = [container.lines[0] for container in axes.containers]
        assert len({line.get_color() for line in lines}) == len({line.get_marker() for line in lines}) == 3
    data, _, (bar,) = figure.axes[0].containers[1].lines
    expected = runs.contrasts(runs.weights({(50, "none", 250): 1.0}))
    assert data.get_ydata()[0] == pytest.approx(100 * expected.mean[0])
    assert list(bar.get_segments()[0][:, 1]) == pytest.approx([100 * expected.low[0], 100 * expected.high[0]])
    said = words(figure)
    assert "mIoU (%)" in said
    assert "bars: 95 % interval" in said
    assert NOTE.strip() in said  # wrapped


def references_at(constant: float) -> pd.DataFrame:
    rows = [("unet", n, 0.5, 0.45, 0.55) for n in (1000, 250)] + [
        ("constant", n, constant, 0.0, 1.0) for n in (250, 1000)
    ]
    return pd.DataFrame(rows, columns=["reference", "finetune_size", "mean", "low", "high"])


def test_references_are_grey_lines_with_intervals_beside_the_arms() -> None:
    runs = runs_of(study([0, 50], ["none"], [250, 1000], seeds=3))
    figure = figures.miou_curves(runs, references=references_at(0.4))
    (axes,) = figure.axes
    assert legend(figure)[2:] == ["U-Net", "one class everywhere"]
    *arms, constant, unet = sorted(axes.containers, key=lambda one: one.lines[0].get_linestyle() == "-.")
    assert list(unet.lines[0].get_xdata()) == sorted(unet.lines[0].get_xdata())
    assert [list(bar[:, 1]) for bar in unet.lines[2][0].get_segments()] == [pytest.approx([45, 55])] * 2
    at_250 = [one.lines[0].get_xdata()[0] for one in (*arms, unet)]
    assert len(set(at_250)) == 3
    assert list(constant.lines[0].get_ydata()) == pytest.approx([40, 40])
    assert unet.lines[0].get_zorder() < min(one.lines[0].get_zorder() for one in arms)
    assert_readable(figure)


def test_a_constant_answer_far_below_does_not_squeeze_the_curves() -> None:
    runs = runs_of(study([0, 50], ["none"], [250, 1000], seeds=3).assign(miou=lambda frame: 0.5 + frame["seed"] / 1000))
    low, near = references_at(0.025), references_at(0.498)
    low.loc[low["finetune_size"] == 1000, "mean"] += 0.002 * (low["reference"] == "constant")
    figure = figures.miou_curves(runs, references=low)
    (axes,) = figure.axes
    assert legend(figure)[2:] == ["U-Net", "one class everywhere: 2.5 to 2.7 %"]
    assert axes.get_ylim()[0] > 40
    assert len(axes.containers) == 3
    assert legend(figures.miou_curves(runs, references=near))[3:] == ["one class everywhere"]
    assert_readable(figure)


def test_a_wide_interval_of_the_u_net_does_not_squeeze_the_curves() -> None:
    runs = runs_of(study([0, 50], ["none"], [250, 1000], seeds=3).assign(miou=lambda frame: 0.5 + frame["seed"] / 1000))
    others = references_at(0.025)
    others.loc[0, ["low", "high"]] = 0.1, 0.9
    (axes,) = figures.miou_curves(runs, references=others).axes
    low, high = axes.get_ylim()
    assert 45 < low < 50 < high < 55  # all that the cells and the U-Net's means need


@pytest.mark.parametrize(("sizes", "columns"), [([12, 24, 48, 96, 110], 1), ([250, 500, 1000, 2000, 4000, 6000], 2)])
def test_numbers_of_labels_do_not_touch(sizes: list[int], columns: int) -> None:
    tasks = ["a", "b"][:columns]
    figure = figures.miou_difference(runs_of(study([0], ["none", *tasks], sizes, seeds=2)))
    for axes in figure.axes:
        labels = axes.get_xticklabels()
        assert [label.get_text().strip() for label in labels] == [str(size) for size in sizes]
        boxes = [label.get_window_extent() for label in labels]
        on_lines = [[box for box, label in zip(boxes, labels, strict=True) if label.get_text()[0] == "\n"]]
        on_lines.append([box for box in boxes if box not in on_lines[0]])
        assert all(on_lines)
        assert all(left.x1 < right.x0 for line in on_lines for left, right in pairwise(line))


def test_labels_without_room_are_left_out() -> None:
    assert kit.lined_up([1, 2, 3, 4], [0, 0.1, 0.2, 2], [0.13] * 4) == ["1", "", "3", "4"]


def test_a_legend_has_as_few_rows_as_fit_its_width() -> None:
    def columns(*letters: int) -> int:
        return kit.legend_columns([Patch(label="x" * count) for count in letters], most=8)

    assert columns(12, 5, 35) == 3
    assert columns(12, 12, 5, 30) == 2  # not three, of which the last two would have one entry
    assert columns(80, 80) == 1


def test_single_seed_has_no_bars() -> None:
    runs = runs_of(study([0], ["none", "a"], [250, 500], seeds=1))
    for figure in (figures.miou_curves(runs), figures.miou_difference(runs)):
        assert not any(any(bars(axes)) for axes in figure.axes)
        assert "one seed, no bars" in words(figure)


def test_only_size_zero_and_no_task() -> None:
    runs = runs_of(study([0], ["none"], [250], seeds=2))
    figure = figures.miou_curves(runs)
    assert len(figure.axes) == 1
    assert len(figure.axes[0].containers) == 1
    assert legend(figure) == ["random start"]
    assert "Pre-training" not in words(figure)
    assert "no intermediate task" in words(figures.miou_difference(runs, "Mind this."))
    assert "Mind this." in words(figures.miou_difference(runs, "Mind this."))


def test_no_common_seed() -> None:
    frame = study([0], ["none", "a"], [250], seeds=1)
    frame["seed"] = [0, 1]
    assert "No seed" in words(figures.miou_difference(runs_of(frame)))


def test_miou_difference_has_the_papers_own_spread_and_says_so() -> None:
    frame = study([0, 50, 100], ["none", "a", "b"], [250, 1000], seeds=3)
    frame = frame[(frame["pretrain_size"] > 0) | (frame["intermediate"] == "none")]
    figure = figures.miou_difference(runs_of(frame.sample(frac=1, random_state=0)))
    assert len(figure.axes) == 2
    assert legend(figure) == ["50 images", "100 images"]  # size 0 has no pairs
    wide = frame.pivot(index=["pretrain_size", "finetune_size", "seed"], columns="intermediate", values="miou")
    raw = 100 * (wide["a"] - wide["none"]).loc[50, 250]
    axes = figure.axes[0]
    data, _, (bar,) = axes.containers[0].lines
    assert data.get_ydata()[0] == pytest.approx(raw.mean())
    low, high = bar.get_segments()[0][:, 1]
    assert high - low == pytest.approx(2 * raw.std(ddof=1) / np.sqrt(3))
    points = [line for line in axes.lines if line.get_label() == "_seeds"]
    assert len(points) == 2
    assert sorted(points[0].get_ydata()[points[0].get_xdata() < 500]) == pytest.approx(sorted(raw))
    assert any(set(line.get_ydata()) == {0} for line in axes.lines)
    assert "standard error" in axes.get_ylabel()
    assert "95 %" not in words(figure)


def test_learning_curves(tmp_path: Path) -> None:
    names = [("pretrain", f"size-2000_seed-{s}") for s in range(2)]
    names += [("intermediate", f"scenes/size-{n}_seed-{s}") for n in (0, 2000) for s in range(2)]
    curves = finetuning(tmp_path, [0, 2000], [250], seeds=2)
    curves += [(stage, name, curve(tmp_path, name, epochs=5)) for stage, name in names]
    figure = figures.learning_curves(curves)
    assert [axes.get_title() for axes in figure.axes] == ["Pre-training", "Intermediate task", "Fine-tuning"]
    assert [len(axes.lines) for axes in figure.axes] == [2, 4, 8]
    assert [legend(axes) for axes in figure.axes] == [
        ["2,000 images"],
        ["0 images", "2,000 images", "scenes"],
        ["250 labels", "no task", "a_b"],
    ]
    assert list(figure.axes[0].lines[0].get_xdata()) == [1, 2, 3, 4, 5]
    assert figure.axes[0].get_xlabel() == "Epoch"
    dashed = {line.get_label(): line.get_linestyle() for line in figure.axes[2].lines}
    assert dashed["_none 250"] == "-"
    assert dashed["_a_b 250"] != "-"


def test_many_learning_curves_keep_a_short_legend(tmp_path: Path) -> None:
    figure = figures.learning_curves(finetuning(tmp_path, [0, 9, 99], [250, 500, 1000], seeds=2))
    (axes,) = figure.axes
    assert len(axes.lines) == 36
    assert legend(axes) == ["250 labels", "500 labels", "1,000 labels", "no task", "a_b"]
    assert len({line.get_color() for line in axes.lines}) == 3


def test_single_epoch_is_seen(tmp_path: Path) -> None:
    figure = figures.learning_curves([("pretrain", "size-1_seed-0", curve(tmp_path, "a", epochs=1))])
    assert figure.axes[0].lines[0].get_marker() == "."


def test_learning_curves_refuse(tmp_path: Path) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("epoch,lr\n1,2\n")
    empty = tmp_path / "empty.csv"
    empty.touch()
    for path in (bad, empty, tmp_path / "missing.csv"):
        with pytest.raises(InputError, match=path.name):
            figures.learning_curves([("pretrain", "size-1_seed-0", path)])
    with pytest.raises(InputError, match="baking"):
        figures.learning_curves([("baking", "size-1_seed-0", curve(tmp_path, "a"))])
    assert "no learning curves" in words(figures.learning_curves([]))


@pytest.mark.parametrize("count", [1, 3, 16])
def test_reconstructions(count: int) -> None:
    figure = figures.reconstructions(images(count), images(count), images(count) + 0.5, NOTE)
    assert len(figure.axes) == 3 * count
    assert [axes.get_title() for axes in figure.axes[:3]] == ["Original", "Masked", "Reconstruction"]
    assert all(axes.images[0].get_array().max() <= 1 for axes in figure.axes)
    boxes = [axes.title.get_window_extent() for axes in figure.axes[:3]]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
    with pytest.raises(ValueError, match="zip"):
        figures.reconstructions(images(count), images(count), images(count + 1))


def test_segmentations() -> None:
    labels = np.zeros((2, 8, 8), int)
    labels[:, 2:4] = 1
    classes = ["pet", "background", "border"]
    models = [Prediction("first", 1 - labels), Prediction("second", labels, np.array([0.25, 0.5]))]
    figure = figures.segmentations(images(2), labels, models, classes, title="Two of them")
    panels = np.array(figure.axes).reshape(4, 2)
    assert [axes.get_ylabel() for axes in panels[:, 0]] == ["Image", "Truth", "first", "second"]
    assert [axes.get_xlabel() for axes in panels.flat] == [""] * 6 + ["25 %", "50 %"]
    assert np.array_equal(panels[2, 1].images[0].get_array(), 1 - labels[1])
    assert legend(figure) == classes[:2]  # no mask shows a border
    assert "Two of them" in words(figure)
    patches = [patch.get_facecolor() for patch in figure.legends[0].get_patches()]
    shown = panels[1, 0].images[0]
    for index in (0, 1):  # a class has the legend's colour on the map, whichever classes a map holds
        assert patches[index] == shown.cmap(shown.norm(index))
    with pytest.raises(ValueError, match="first holds"):
        figures.segmentations(images(2), labels, [Prediction("first", labels + 2)], classes)


@pytest.mark.parametrize("count", [1, 5, 6, 16])
def test_more_images_than_fit_beside_each_other_go_below(count: int) -> None:
    labels = np.arange(count)[:, None, None] * np.ones((1, 8, 8), int) % 2
    figure = figures.segmentations(images(count), labels, [Prediction("one", 1 - labels)], ["a", "b"])
    assert len(figure.axes) == 3 * count
    truth = [axes.images[0].get_array() for axes in figure.axes]
    assert sum(np.array_equal(each, labels[0]) for each in truth if each.ndim == 2) == count
    assert sum(axes.get_ylabel() == "Image" for axes in figure.axes) == -(-count // figures.COLUMNS)


def test_mious_of_images_are_over_the_classes_that_they_have(tmp_path: Path) -> None:
    confusion = np.zeros((3, 3, 3), int)
    confusion[0] = np.diag([4, 4, 0])
    confusion[1, 0] = [2, 2, 0]  # one class, half of it found
    np.savez(tmp_path / "a.npz", confusion=confusion, indices=np.array([7, 5, 6]))
    found = _miou_of_images(tmp_path / "a.npz", np.array([5, 6, 7, 8]))
    assert found == pytest.approx([0.5, np.nan, 1.0, np.nan], nan_ok=True)


def test_segmentations_of_many_classes_name_the_most_frequent_and_show_what_is_ignored() -> None:
    labels = np.zeros((2, 20, 20), int)
    labels[0, 0, :] = IGNORE
    for index in range(1, 60):
        labels[:, 1 + index // 20 :, index % 20] = index
    names = [f"class {i}" for i in range(255)]
    figure = figures.segmentations(images(2), labels, [Prediction("guess", np.zeros_like(labels))], names)
    entries = legend(figure)
    assert len(entries) == kit.LEGEND_CLASSES + 1 and entries[-1] == "ignored"
    counts = np.bincount(labels[labels != IGNORE], minlength=255) + np.bincount([0] * labels.size, minlength=255)
    named = [names.index(entry) for entry in entries[:-1]]
    assert min(counts[named]) >= max(np.delete(counts, named))
    shown = figure.axes[2].images[0]
    patches = [patch.get_facecolor() for patch in figure.legends[0].get_patches()]
    assert patches == [shown.cmap(shown.norm(value)) for value in [*named, IGNORE]]
    assert len(set(kit.class_colours(255))) == 255


STEPS = [
    pipeline.Step("Data", ["4,000 images and " + "words " * 20]),
    pipeline.Step("Pre-training", ["25 epochs"], optional=True),
    pipeline.Step("Intermediate task", ["none, or a task"], optional=True),
    pipeline.Step("Fine-tuning", ["36 trainings", "of $ and _"]),
]


def test_the_pipeline_says_what_is_trained_on_what() -> None:
    spec = {
        "grid": {"pretrain_sizes": [0, 4000, 50], "intermediates": ["none", "scenes"], "finetune_sizes": [9, 5],
                 "seeds": [0, 1]},
        "mask_ratio": 0.5,
        "pipeline": {
            "pretrain": {"source": "imagenet", "epochs": 3},
            "tasks": {"scenes": {"source": "synthetic", "epochs": 1}},
            "segmentation": {"source": "folder"},
            "finetune": {"epochs": 7},
        },
    }  # fmt: skip
    trained = {"pretrain": 4, "intermediate": 6, "finetune": 24}
    steps = pipeline.steps(spec, trained, {"scenes": 80}, "1,000 test images")
    assert [step.optional for step in steps] == [False, True, True, False, False]
    said = words(pipeline.pipeline(steps, NOTE))
    for part in (
        "4,000 images of ImageNet", "80 synthetic images", "9 images of one's own, and 1,000 test images", NOTE.strip(),
        "50 or 4,000 images, 3 epochs, 50 % of the patches masked", "4 trainings", "scenes: 1 epoch", "6 trainings",
        "5 or 9 labels, 7 epochs", "24 trainings: every cell with 2 seeds", "mIoU of 24 models on 1,000 test images",
    ):  # fmt: skip
        assert part in said, part
    spec["grid"] |= {"pretrain_sizes": [0], "intermediates": ["none"]}
    steps = pipeline.steps(spec, {"finetune": 4}, {}, "1,000 test images")
    assert [step.heading for step in steps] == ["Data", "Fine-tuning", "Evaluation"]


def make_all(folder: Path) -> dict[str, Callable[[], Figure]]:
    runs = runs_of(study([0, 50], ["none", "a" * 32], [250, 500, 1000, 2000, 4000], seeds=2))
    labels = np.zeros((2, 8, 8), int)
    models = [Prediction("after\na_long_name_of_a_task\n4,000 labels", labels, np.array([0.2, 0.3]))]
    return {
        "curves": lambda: figures.miou_curves(runs, NOTE),
        "paper's curves": lambda: figures.miou_curves(
            runs_of(study([0, 45000, 100000, 200000], ["none", "intel"], [250, 500, 1000, 2000, 4000, 6000], 3))
        ),
        "difference": lambda: figures.miou_difference(runs, NOTE),
        "words": lambda: figures.miou_difference(runs_of(study([0], ["none"], [250], 1)), NOTE),
        "learning": lambda: figures.learning_curves(finetuning(folder, [0, 9], [250, 500], seeds=2), NOTE),
        "reconstructions": lambda: figures.reconstructions(images(2), images(2), images(2), NOTE),
        "triples": lambda: figures.segmentations(images(2), labels, models, ["a", "b"], NOTE, "Worst of all"),
        "pipeline": lambda: pipeline.pipeline(STEPS, NOTE),
    }


@pytest.mark.parametrize("name", list(make_all(Path())))
def test_files_are_equal_and_readable(tmp_path: Path, name: str) -> None:
    before = dict(mpl.rcParams)
    make = make_all(tmp_path)[name]
    figure = make()
    assert_readable(figure)
    kit.save(figure, tmp_path / "a.b")
    kit.save(figure, tmp_path / "again")
    with mpl.rc_context({"font.size": 20, "savefig.bbox": "tight"}):  # a user's own settings do not matter
        kit.save(make(), tmp_path / "anew")
    for kind, start in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
        first = (tmp_path / f"a.b.{kind}").read_bytes()
        assert first.startswith(start)
        assert b"CreationDate" not in first
        assert first == (tmp_path / f"again.{kind}").read_bytes()
        assert first == (tmp_path / f"anew.{kind}").read_bytes()
    assert dict(mpl.rcParams) == before


def test_a_legend_of_long_names_stays_within_the_figure() -> None:
    names = [f"a rather long name of class number {i}" for i in range(11)]  # 40 letters at most
    labels = np.arange(2 * 400).reshape(2, 20, 20) % 11
    assert_readable(figures.segmentations(images(2), labels, [Prediction("guess", labels)], names))


def test_colours_stand_out_and_are_told_apart() -> None:
    sizes = [0, 45000, 100000, 200000]
    styles = kit.size_styles(sizes)
    for key in ("color", "marker"):
        assert len({style[key] for style in styles.values()}) == len(sizes)
    for count in range(1, 12):
        assert min(map(contrast, kit.ramp(count))) >= 3
    assert min(map(contrast, kit.LINE_COLOURS)) >= 3
    assert contrast("#C2DF23") < 2  # the lime of the end of viridis


@pytest.mark.parametrize("labels", [[100], [60, 120, 240], [250, 500, 1000, 2000, 4000, 6000]])
def test_points_of_several_sizes_stand_beside_each_other_and_at_their_labels(labels: list[int]) -> None:
    sizes = [0, 45, 100, 200]
    shifts = [kit.aside(size, sizes, labels) for size in sizes]
    assert shifts == sorted(shifts) and len(set(shifts)) == 4
    assert shifts[0] * shifts[-1] == pytest.approx(1)
    if len(labels) > 1:
        assert shifts[-1] ** 2 < min(b / a for a, b in pairwise(labels))
    assert kit.aside(7, [7], labels) == 1


def test_every_figure_has_a_caption_and_words_for_those_who_cannot_see_it() -> None:
    grid = {"pretrain_sizes": [0, 9], "intermediates": ["none", "a"], "finetune_sizes": [5], "seeds": [0]}
    names = {*figure_names({"grid": grid}), *STATISTICS_FIGURES, *REPRESENTATIONS_FIGURES}
    shown = {name: alt for part in (*page.PICTURES.values(), page.COSTS, page.TRAINING) for name, alt in part.items()}
    assert set(shown) == names
    for name in names:
        caption = (CAPTIONS / f"{name}.rst").read_text(encoding="utf-8").strip()
        assert caption and caption != shown[name]
    assert "failures" not in figure_names({"grid": grid | {"intermediates": ["none"]}})


def test_worst_images_carry_their_names_and_scores_and_ignored_pixels_are_no_errors() -> None:
    rng = np.random.default_rng(0)
    images, truth = rng.random((7, 8, 8, 3)), rng.integers(0, 3, (7, 8, 8))
    truth[:, :2] = IGNORE
    guess = np.where(truth == IGNORE, IGNORE, 1)
    names = ["a.png", "$x^2$.png", "b" * 90 + "end.jpg", *(f"{i}.png" for i in range(4))]
    rows = [Prediction("Predicted", guess, np.linspace(0.1, 0.7, 7))]
    figure = figures.segmentations(images, truth, rows, ["a", "b", "c"], names=names)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert [title.replace("\n", "") for title in titles if "b" not in title] == [
        name for name in names if "b" not in name
    ]
    assert any(title.endswith("end.jpg") and title.startswith("…") for title in titles)
    scores = [axes.get_xlabel() for axes in figure.axes if axes.get_xlabel()]
    assert sorted(scores) == [f"{10 * i} %" for i in range(1, 8)]
    assert "ignored" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_only_the_pdf_has_the_study_s_note(tmp_path: Path) -> None:
    """The report, which shows the PNGs, says the note once."""

    @kit.in_style
    def noted(*lines: str) -> Figure:
        figure = kit.new_figure(1.0)
        kit.add_note(figure, *lines)
        return figure

    for others in ([], ["Lines are cut."]):
        figure = noted(*others, "Not comparable.")
        height = figure.get_figheight()
        kit.save(figure, tmp_path / "with")
        assert figure.get_figheight() == height
        kit.save(noted(*others, ""), tmp_path / "plain")
        assert (tmp_path / "with.png").read_bytes() == (tmp_path / "plain.png").read_bytes()
        assert (tmp_path / "with.pdf").read_bytes() != (tmp_path / "plain.pdf").read_bytes()
