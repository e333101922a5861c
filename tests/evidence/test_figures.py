"""Figures: panels, lines, labels and units, and files that are equal for equal input."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from viny.data.masks import IGNORE
from viny.evidence.figures import kit
from viny.evidence.figures import study as figures
from viny.runtime.errors import InputError

NOTE = "Made up, with $ and _; not comparable with anything. " * 8


def study(pres: list[int], tasks: list[str], fines: list[int], seeds: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [(p, t, f, s) for p in pres for t in tasks for f in fines for s in range(seeds)]
    frame = pd.DataFrame(rows, columns=["pretrain_size", "intermediate", "finetune_size", "seed"])
    return frame.assign(miou=rng.uniform(0.3, 0.6, len(frame)), pixel_accuracy=0.7)


def words(figure: Figure) -> str:
    """Everything a figure says outside its ticks and legends."""
    texts = [*figure.texts, figure._supxlabel]
    for axes in figure.axes:
        texts += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
    return "\n".join(text.get_text() for text in texts if text)


def legend(of: Figure | Axes) -> list[str]:
    found = of.legends[0] if isinstance(of, Figure) else of.get_legend()
    return [text.get_text() for text in found.get_texts()]


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
    figure = figures.miou_curves(frame, NOTE)
    assert [axes.get_title().split()[-1] for axes in figure.axes] == ["task", "a", "b"]  # 'none' first
    assert legend(figure) == ["0", "50", "100"]
    for axes in figure.axes:
        assert bars(axes) == [True] * 3
        assert axes.get_xscale() == "log"
        assert list(axes.get_xticks()) == [250, 1000]
        assert [t.get_text() for t in axes.get_xticklabels()] == ["250", "1000"]
        assert axes.get_ylim() == figure.axes[0].get_ylim()
        solid = axes is figure.axes[0]
        assert {c.lines[0].get_linestyle() == "-" for c in axes.containers} == {solid}
    assert len({axes.containers[0].lines[0].get_marker() for axes in figure.axes}) == 3
    group = frame.query("pretrain_size == 50 and intermediate == 'none' and finetune_size == 250")["miou"]
    data, _, (bar,) = figure.axes[0].containers[1].lines
    assert data.get_ydata()[0] == pytest.approx(100 * group.mean())
    low, high = bar.get_segments()[0][:, 1]
    assert high - low == pytest.approx(2 * 100 * np.std(group, ddof=1))
    said = words(figure)
    assert "mIoU (%)" in said
    assert "standard deviation" in said
    assert NOTE.strip() in said.replace("\n", " ")  # wrapped


def test_single_seed_has_no_bars() -> None:
    frame = study([0], ["none", "a"], [250, 500], seeds=1)
    for figure in (figures.miou_curves(frame), figures.miou_difference(frame)):
        assert not any(any(bars(axes)) for axes in figure.axes)
        assert "One seed" in words(figure)


def test_only_size_zero_and_no_task() -> None:
    frame = study([0], ["none"], [250], seeds=2)
    figure = figures.miou_curves(frame)
    assert len(figure.axes) == 1
    assert len(figure.axes[0].containers) == 1
    assert "no intermediate task" in words(figures.miou_difference(frame, "Mind this."))
    assert "Mind this." in words(figures.miou_difference(frame, "Mind this."))


def test_no_common_seed() -> None:
    frame = study([0], ["none", "a"], [250], seeds=1)
    frame["seed"] = [0, 1]
    assert "No seed" in words(figures.miou_difference(frame))


def test_miou_difference() -> None:
    frame = study([0, 50, 100], ["none", "a", "b"], [250, 1000], seeds=3)
    frame = frame[(frame["pretrain_size"] > 0) | (frame["intermediate"] == "none")]
    figure = figures.miou_difference(frame.sample(frac=1, random_state=0))
    assert len(figure.axes) == 2
    assert legend(figure) == ["50", "100"]  # size 0 has no pairs
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
    said = words(figure)
    assert "percentage points" in said
    assert "standard error" in said


def test_learning_curves(tmp_path: Path) -> None:
    names = [("pretrain", f"size-2000_seed-{s}") for s in range(2)]
    names += [("intermediate", f"scenes/size-{n}_seed-{s}") for n in (0, 2000) for s in range(2)]
    curves = finetuning(tmp_path, [0, 2000], [250], seeds=2)
    curves += [(stage, name, curve(tmp_path, name, epochs=5)) for stage, name in names]
    figure = figures.learning_curves(curves)
    assert [axes.get_title() for axes in figure.axes] == ["Pre-training", "Intermediate task", "Fine-tuning"]
    assert [len(axes.lines) for axes in figure.axes] == [2, 4, 8]
    assert [len(legend(axes)) for axes in figure.axes] == [1, 2, 4]
    assert legend(figure.axes[1]) == ["scenes/size-0", "scenes/size-2000"]
    assert list(figure.axes[0].lines[0].get_xdata()) == [1, 2, 3, 4, 5]
    assert figure.axes[0].get_xlabel() == "Epoch"
    dashed = {line.get_label(): line.get_linestyle() for line in figure.axes[2].lines}
    assert dashed["pre-0_mid-none_fine-250"] == "-"
    assert dashed["pre-0_mid-a_b_fine-250"] != "-"


def test_many_learning_curves_keep_a_short_legend(tmp_path: Path) -> None:
    figure = figures.learning_curves(finetuning(tmp_path, [0, 9, 99], [250, 500, 1000], seeds=2))
    (axes,) = figure.axes
    assert len(axes.lines) == 36
    assert legend(axes) == ["250", "500", "1000", "No intermediate task", "Intermediate task: a_b"]
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
    figure = figures.segmentations(images(2), labels, {"first": 1 - labels, "second": labels}, classes)
    assert [axes.get_title() for axes in figure.axes[:4]] == ["Image", "Truth", "first", "second"]
    assert np.array_equal(figure.axes[6].images[0].get_array(), 1 - labels[1])
    assert legend(figure) == classes
    patches = [patch.get_facecolor() for patch in figure.legends[0].get_patches()]
    shown = figure.axes[1].images[0]
    for index in (0, 1):  # a class has the legend's colour on the map, whichever classes a map holds
        assert patches[index] == shown.cmap(shown.norm(index))
    with pytest.raises(ValueError, match="first holds"):
        figures.segmentations(images(2), labels, {"first": labels + 2}, classes)


def test_segmentations_of_many_classes_name_the_most_frequent_and_show_what_is_ignored() -> None:
    labels = np.zeros((2, 20, 20), int)
    labels[0, 0, :] = IGNORE
    for index in range(1, 60):
        labels[:, 1 + index // 20 :, index % 20] = index
    names = [f"class {i}" for i in range(255)]
    figure = figures.segmentations(images(2), labels, {"guess": np.zeros_like(labels)}, names)
    entries = legend(figure)
    assert len(entries) == kit.LEGEND_CLASSES + 1 and entries[-1] == "ignored"
    counts = np.bincount(labels[labels != IGNORE], minlength=255) + np.bincount([0] * labels.size, minlength=255)
    named = [names.index(entry) for entry in entries[:-1]]
    assert min(counts[named]) >= max(np.delete(counts, named))
    shown = figure.axes[1].images[0]
    patches = [patch.get_facecolor() for patch in figure.legends[0].get_patches()]
    assert patches == [shown.cmap(shown.norm(value)) for value in [*named, IGNORE]]
    assert len(set(kit.class_colours(255))) == 255


def make_all(folder: Path) -> dict[str, Callable[[], Figure]]:
    frame = study([0, 50], ["none", "a" * 32], [250, 500, 1000, 2000, 4000], seeds=2)
    labels = np.zeros((2, 8, 8), int)
    return {
        "curves": lambda: figures.miou_curves(frame, NOTE),
        "difference": lambda: figures.miou_difference(frame, NOTE),
        "words": lambda: figures.miou_difference(study([0], ["none"], [250], 1), NOTE),
        "learning": lambda: figures.learning_curves(finetuning(folder, [0, 9], [250], seeds=2), NOTE),
        "reconstructions": lambda: figures.reconstructions(images(2), images(2), images(2), NOTE),
        "triples": lambda: figures.segmentations(images(2), labels, {"one": labels}, ["a", "b"], NOTE),
    }


@pytest.mark.parametrize("name", ["curves", "difference", "words", "learning", "reconstructions", "triples"])
def test_files_are_equal_and_nothing_is_clipped(tmp_path: Path, name: str) -> None:
    before = dict(mpl.rcParams)
    make = make_all(tmp_path)[name]
    figure = make()
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
    assert figure.get_figwidth() == kit.WIDTH
    page, inside = figure.bbox, figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    assert inside.x0 >= page.x0
    assert inside.x1 <= page.x1
    assert inside.y0 >= page.y0
    assert inside.y1 <= page.y1


def test_a_legend_of_long_names_stays_within_the_figure() -> None:
    names = [f"a rather long name of class number {i}" for i in range(11)]  # 40 letters at most
    labels = np.arange(2 * 400).reshape(2, 20, 20) % 11
    figure = figures.segmentations(images(2), labels, {"guess": labels}, names)
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
