"""Figures of geometry: panels, lines, labels and units, what is left out, and equal files for equal input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from figure_checks import assert_readable, legend, words
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from viny.evidence import token_metrics
from viny.evidence.figures import geometry, kit
from viny.evidence.statistics import representations
from viny.runtime.errors import InputError

NOTE = "Made up, with $ and _; not comparable with anything. " * 4
TASKS = ["intel", "pets_classes", "pets_spatial", "intel_shuffled_and_pooled"]
LAST = 3  # layer


def encoder(kind: str, size: int, task: str, seed: int, fine: int = 0) -> dict[str, Any]:
    return {"kind": kind, "pretrain_size": size, "intermediate": task, "finetune_size": fine, "seed": seed}


def grid(sizes: list[int], tasks: list[str], seeds: int) -> list[dict[str, Any]]:
    found = []
    for seed in range(seeds):
        for size in sizes:
            found.append(encoder("pretrained" if size else "random", size, "none", seed))
            found += [encoder("intermediate", size, task, seed) for task in tasks]
    return found


def frame_of(encoders: list[dict[str, Any]]) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for each in encoders:
        start = f"{each['pretrain_size']} {each['seed']}"
        for layer in range(LAST + 1):
            row = {name: rng.uniform(0.2, 0.8) for name in representations.METRICS}
            row |= {"effective_rank": rng.uniform(1, 90), "probe_majority": 0.6 if layer == LAST else np.nan}
            row |= {"study": "s", "protocol": "sound", "note": "", "layer": layer, "probe_paper": np.nan}
            row |= {"layer_name": "output" if layer == LAST else f"block {layer}", "reference_weights": start}
            row["weights"] = start if each["kind"] in ("random", "pretrained") else f"{start} {each['intermediate']}"
            rows.append(each | row)
    return pd.DataFrame(rows)


def pairs_of(sizes: list[int], tasks: list[str], seeds: int, labels: int = 3) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    rows = [(p, t, n + 1, s) for p in sizes for t in tasks for n in range(labels) for s in range(seeds)]
    effects = pd.DataFrame(rows, columns=["pretrain_size", "intermediate", "finetune_size", "seed"])
    effects["difference"] = rng.normal(-0.02, 0.01, len(effects))
    return representations.harm(frame_of(grid(sizes, tasks, seeds)), effects)


def arrays_of(encoders: list[dict[str, Any]], side: int = 4, examples: int = 2) -> list[dict[str, Any]]:
    images = np.random.default_rng(0).integers(0, 255, (examples, 3, 24, 24), np.uint8)
    found = []
    for i, each in enumerate(encoders):
        rng = np.random.default_rng(i)
        distance = np.arange(2 * side - 1)
        maps = rng.uniform(-0.5, 1, (2, examples, 3, side * side)).astype(np.float32)
        similarity = np.array([np.exp(-distance / (layer + 1)) + 0.01 * i for layer in range(LAST + 1)])
        found.append(
            {
                **each,
                "name": f"encoder {i}",
                "distance": distance,
                "similarity": similarity,
                "similarity_centred": similarity - 0.5,
                "heat_maps": maps[0],
                "heat_maps_centred": maps[1],
                "references": np.tile([side * side - 1, side + 1, 2], (examples, 1)),
                "example_images": images,
                "example_rows": np.arange(examples),
            }
        )
    return found


def line(axes: Axes, label: str) -> Any:
    (found,) = [each for each in axes.lines if each.get_label() == label]
    return found


def test_layers_has_a_panel_a_metric_and_a_line_a_regime() -> None:
    frame = frame_of(grid([0, 50], ["intel", "pets_spatial"], seeds=3))
    figure = geometry.layers(frame.sample(frac=1, random_state=0).sort_values("layer"), NOTE)
    assert [axes.get_title() for axes in figure.axes] == [representations.METRICS[m] for m in geometry.SHOWN]
    assert set(legend(figure)) == {
        "random start", "random start + intel", "random start + pets_spatial",
        "pre-trained 50", "pre-trained 50 + intel", "pre-trained 50 + pets_spatial",
    }  # fmt: skip
    mine = frame[(frame["kind"] == "pretrained")]
    by_layer = mine.groupby("layer")
    for metric, scale in (("within_image_variance", 1), ("within_share", 100), ("probe_accuracy", 100)):
        axes = figure.axes[geometry.SHOWN.index(metric)]
        shown = line(axes, "pre-trained 50")
        assert list(shown.get_xdata()) == [0, 1, 2, 3]
        assert list(shown.get_ydata()) == pytest.approx(list(scale * by_layer[metric].mean()))
        assert sum(each.get_label() == "_seed" for each in axes.lines) == 18
    assert list(line(figure.axes[-1], "_majority").get_ydata()) == pytest.approx([60, 60])
    ticks = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert (ticks[0], ticks[-1]) == ("in", "out")
    looks = [(each.get_color(), each.get_linestyle()) for each in figure.axes[0].lines if each.get_label()[0] != "_"]
    assert len(set(looks)) == 6
    assert NOTE.strip() in words(figure)


def test_one_seed_has_no_thin_lines() -> None:
    figure = geometry.layers(frame_of(grid([0], ["intel"], seeds=1)))
    assert all(len(axes.lines) == 2 + (axes is figure.axes[-1]) for axes in figure.axes)
    assert "one seed" in words(figure)
    assert "regimes are shown" not in words(figure)
    figure = geometry.similarity(arrays_of(grid([0], [], seeds=1)))
    assert [len(axes.lines) for axes in figure.axes] == [2, 2]  # with the zero line
    assert "one seed" in words(figure)


def test_many_regimes_are_cut_to_those_of_the_largest_pretraining_and_it_is_said() -> None:
    encoders = grid([0, 50, 100], TASKS, seeds=1) + [encoder("finetuned", 100, "none", 0, fine) for fine in (5, 6)]
    expected = ["random start", "pre-trained 100", *(f"pre-trained 100 + {task}" for task in TASKS)]
    shown = geometry.similarity(arrays_of(encoders))
    for figure in (shown, geometry.heat_maps(arrays_of(encoders, examples=1))):
        assert "6 of 17 regimes are shown" in words(figure)
    assert legend(shown) == expected


def test_similarity_shows_the_output_raw_and_centred() -> None:
    arrays = arrays_of(grid([0, 50], ["intel"], seeds=2))
    figure = geometry.similarity(arrays, NOTE)
    raw, centred = figure.axes
    mine = [each for each in arrays if each["kind"] == "pretrained"]
    for axes, key in ((raw, "similarity"), (centred, "similarity_centred")):
        shown = line(axes, "pre-trained 50")
        assert list(shown.get_xdata()) == list(range(7))
        assert list(shown.get_ydata()) == pytest.approx(list(np.mean([each[key][-1] for each in mine], axis=0)))
        assert axes.get_ylim() == (-1, 1)
    assert "Manhattan distance (patches)" in words(figure)
    assert "Cosine similarity" in words(figure)


def test_heat_maps_have_a_row_a_regime_and_a_column_a_reference() -> None:
    arrays = arrays_of(grid([0, 50], ["intel"], seeds=2))
    for centred in (False, True):
        figure = geometry.heat_maps(arrays, NOTE, centred=centred)
        panels = np.array(figure.axes[: 5 * 6]).reshape(5, 6)
        rows = [axes.get_ylabel().replace("\n", " ") for axes in panels[:, 0]]
        assert rows == ["Image", "random start", "random start + intel", "pre-trained 50", "pre-trained 50 + intel"]
        assert [axes.get_title().replace("-\n", "") for axes in panels[0]] == [*token_metrics.REFERENCES] * 2
        key = "heat_maps_centred" if centred else "heat_maps"
        (first,) = [each for each in arrays if each["kind"] == "pretrained" and each["seed"] == 0]
        shown = panels[3, 4].images[0]  # second image, inside
        assert np.array_equal(shown.get_array(), first[key][1, 1].reshape(4, 4))
        assert {axes.images[0].get_clim() for axes in panels[1:].flat} == {(-1, 1)}  # 0 in the middle of the colours
        frame = panels[3, 4].patches[0]
        assert frame.get_xy() == (0.5, 0.5)  # patch 5: row 1, column 1
        assert panels[0, 4].patches[0].get_xy() == (5.5, 5.5)  # in pixels
        assert panels[3, 5].patches[0].get_xy() == (1.5, -0.5)  # patch 2: row 0, column 2
        assert ("minus their mean" in words(figure)) == centred


def test_a_reference_that_an_image_lacks_is_said() -> None:
    arrays = arrays_of(grid([0], ["intel"], seeds=1))
    for each in arrays:
        each["references"][0, 1] = -1
        each["heat_maps"][0, 1] = np.nan
    figure = geometry.heat_maps(arrays)
    panels = np.array(figure.axes[:18]).reshape(3, 6)
    for column, axes in enumerate(panels[1]):
        assert ([text.get_text() for text in axes.texts] == ["no\nsuch\npatch"]) == (column == 1)
    assert not panels[0, 1].patches


def test_a_kind_of_reference_that_no_image_has_gets_no_column() -> None:
    arrays = arrays_of(grid([0], ["intel"], seeds=1))
    for each in arrays:
        each["references"][:, 0] = -1
    figure = geometry.heat_maps(arrays)
    titles = [axes.get_title() for axes in np.array(figure.axes[:12]).reshape(3, 4)[0]]
    assert titles == ["inside", "edge"] * 2
    for each in arrays:
        each["references"][:] = -1
    assert "No example image has" in words(geometry.heat_maps(arrays))


def test_heat_maps_of_different_images_are_refused() -> None:
    arrays = arrays_of(grid([0], ["intel"], seeds=1))
    arrays[1]["example_rows"] = np.array([0, 5])
    with pytest.raises(InputError, match=r"encoder 0 and encoder 1.*different images"):
        geometry.heat_maps(arrays)


def test_harm_shows_every_cell_and_the_correlation_of_the_table() -> None:
    pairs = pairs_of([0, 50, 100], ["a", "b"], seeds=3)
    figure = geometry.harm(pairs, NOTE)
    table = representations.harm_correlation(pairs).set_index("metric")
    means = pairs.groupby(["intermediate", "pretrain_size", "finetune_size"]).mean(numeric_only=True)
    assert len(figure.axes) == len(representations.METRICS)
    for axes, metric in zip(figure.axes, representations.METRICS, strict=True):
        points = [each for each in axes.lines if each.get_linestyle() == "None"]
        assert len(points) == 6
        x = np.concatenate([each.get_xdata() for each in points])
        y = np.concatenate([each.get_ydata() for each in points])
        scale = 100 if metric in representations.SHARES else 1
        assert sorted(x) == pytest.approx(sorted(scale * means[metric]))
        assert sorted(y) == pytest.approx(sorted(100 * means["difference"]))
        shown = axes.get_title().replace("\N{MINUS SIGN}", "-")
        assert f"{table.loc[metric, 'rho']:.2f} ({table.loc[metric, 'low']:.2f} to" in shown
        assert ("percentage points" in axes.get_xlabel()) == (scale == 100)
        assert f"Holm's p = {table.loc[metric, 'p_holm']:.2g}" in shown
    assert legend(figure) == ["random start", "50 images", "100 images", "a", "b"]
    points = [each for each in figure.axes[0].lines if each.get_linestyle() == "None"]
    assert len({each.get_color() for each in points}) == 3
    assert len({each.get_marker() for each in points}) == 2
    assert "mean over 3 seeds" in words(figure)


def test_too_little_to_show_is_said() -> None:
    assert "too few to rank" in words(geometry.harm(pairs_of([0], ["a"], seeds=1, labels=2)))
    assert "no interval" in words(geometry.harm(pairs_of([0, 50, 100], ["a", "b"], seeds=1)))
    assert "No cell was run" in words(geometry.harm(pairs_of([0], ["a"], seeds=1).head(0), NOTE))
    assert "No encoder" in words(geometry.similarity([], NOTE))
    assert "No encoder" in words(geometry.heat_maps([], NOTE))
    assert "No example" in words(geometry.heat_maps(arrays_of(grid([0], [], 1), examples=0)))


def test_arrays_are_read_in_order_and_foreign_files_are_named(tmp_path: Path) -> None:
    paths = []
    for i, each in enumerate(reversed(grid([0, 50], ["a"], seeds=2))):
        paths.append(tmp_path / f"{i}.npz")
        np.savez(paths[-1], encoder=json.dumps({**each, "name": "x"}), distance=np.arange(3))
    found = geometry.read_arrays(paths)
    assert [each["kind"] for each in found] == ["random"] * 2 + ["pretrained"] * 2 + ["intermediate"] * 4
    assert [each["seed"] for each in found] == [0, 1] * 4
    assert list(found[0]["distance"]) == [0, 1, 2]
    bad = tmp_path / "bad.npz"
    bad.write_bytes(b"no archive")
    odd = tmp_path / "odd.npz"
    np.savez(odd, x=np.arange(3))
    for path in (bad, odd, tmp_path / "missing.npz"):
        with pytest.raises(InputError, match=path.name):
            geometry.read_arrays([*paths, path])


def make_all() -> dict[str, Callable[[], Figure]]:
    many = grid([0, 50, 200000], TASKS, seeds=2)
    few = grid([0], [], seeds=1)
    return {
        "layers": lambda: geometry.layers(frame_of(many), NOTE),
        "layers of one": lambda: geometry.layers(frame_of(few), NOTE),
        "similarity": lambda: geometry.similarity(arrays_of(many), NOTE),
        "maps": lambda: geometry.heat_maps(arrays_of(many), NOTE),
        "maps of one": lambda: geometry.heat_maps(arrays_of(few, examples=1), NOTE, centred=True),
        "harm": lambda: geometry.harm(pairs_of([0, 50, 200000], TASKS, seeds=3), NOTE),
        "little harm": lambda: geometry.harm(pairs_of([0], ["a"], seeds=1), NOTE),
    }


@pytest.mark.parametrize("name", list(make_all()))
def test_figures_are_readable(name: str) -> None:
    assert_readable(make_all()[name]())


def test_equal_input_gives_equal_files_whatever_the_users_settings(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    make = make_all()["maps of one"]
    kit.save(make(), tmp_path / "a")
    with mpl.rc_context({"font.size": 20, "savefig.bbox": "tight"}):
        kit.save(make(), tmp_path / "anew")
    for kind in ("png", "pdf"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"anew.{kind}").read_bytes()
    assert dict(mpl.rcParams) == before
