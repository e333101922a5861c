"""Tables: what is read, refused, averaged, paired and written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from viny.evidence import tables
from viny.runtime.errors import InputError

MIOU = [0.41, 0.43, 0.48]


def cell(pre: int, mid: str, fine: int, seed: int, miou: float | None = 0.5, **over: Any) -> dict[str, Any]:
    return {
        "study": "made-up",
        "protocol": "sound",
        "note": "Made up\nfor tests.",
        "cell": {
            "name": f"pre-{pre}_mid-{mid}_fine-{fine}_seed-{seed}",
            "pretrain_size": pre,
            "intermediate": mid,
            "finetune_size": fine,
            "seed": seed,
        },
        "metrics": {"miou": miou, "pixel_accuracy": 0.7, "iou_border": None},
        "test_images": 1000,
        "miou_is": "dataset",
        "parameters": 5,
        "provenance": {"device": "cpu", "precision": "float32", "threads": 1, "seconds": 1.5, "code": "abc"},
    } | over


def write(folder: Path, cells: list[dict[str, Any]]) -> list[Path]:
    """Files whose names say nothing about their cells."""
    paths = [folder / f"{i}.json" for i in range(len(cells))]
    for path, value in zip(paths, cells, strict=True):
        path.write_text(json.dumps(value))
    return paths


def frame_of(rows: list[tuple[int, str, int, int, float]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=[*tables.KEYS, "miou"])
    return frame.assign(pixel_accuracy=frame["miou"] + 0.2)


def test_read_sorts_and_keeps_every_field(tmp_path: Path) -> None:
    order = [(0, "none", 250, 0), (0, "none", 1000, 0), (9, "none", 250, 0), (9, "none", 250, 1)]
    order += [(0, "Alpha", 250, 0), (0, "zeta", 250, 0)]
    frame = tables.read_metrics(write(tmp_path, [cell(*key) for key in reversed(order)]))
    assert list(frame[tables.KEYS].itertuples(index=False, name=None)) == order
    assert frame["cell"][0] == "pre-0_mid-none_fine-250_seed-0"
    first = frame.iloc[0]
    assert (first["study"], first["protocol"], first["test_images"]) == ("made-up", "sound", 1000)
    assert [first[k] for k in tables.RUN] == ["cpu", "float32", 1, 1.5, "abc"]
    assert frame["iou_border"].isna().all()
    assert frame["iou_border"].dtype == float


def test_arms_of_a_cell_are_no_duplicates_and_are_not_pooled(tmp_path: Path) -> None:
    one, other = cell(0, "none", 250, 0), cell(0, "none", 250, 0)
    other["cell"] |= {"start": "tiny", "name": "other"}
    frame = tables.read_metrics(write(tmp_path, [other, one]))
    assert list(frame["start"]) == ["random", "tiny"] and list(frame["variant"]) == ["study", "study"]
    with pytest.raises(InputError, match=r"cells differ in 'start' \(random, tiny\)"):
        tables.summarise(frame)
    assert list(tables.summarise(frame[:1]).columns[:4]) == [*tables.GROUP, "n"]
    with pytest.raises(InputError, match="keep one"):
        tables.read_metrics(write(tmp_path, [other, other]))
    other["cell"]["start"] = 5
    with pytest.raises(InputError, match="'start'"):
        tables.read_metrics(write(tmp_path, [other]))


def test_duplicate_cell_names_both_files(tmp_path: Path) -> None:
    paths = write(tmp_path, [cell(0, "none", 250, 0), cell(0, "none", 250, 1), cell(0, "none", 250, 0)])
    with pytest.raises(InputError, match=r"2\.json.*0\.json.*keep one"):
        tables.read_metrics(paths)


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        "[]",
        "{}",
        json.dumps(cell(0, "none", 250, 0, 43.0)),
        json.dumps(cell(0, "none", 250, 0, float("nan"))),
        json.dumps(cell(0, "none", 250, True)),
        json.dumps(cell(-1, "none", 250, 0)),
        json.dumps(cell(0, "none", 250, 0, metrics={"miou": 0.5})),
        json.dumps(cell(0, "none", 250, 0, provenance=None)),
        json.dumps(cell(0, "none", 250, 0, cell="a")),
    ],
)
def test_foreign_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "odd.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"odd\.json"):
        tables.read_metrics([path])


def test_unreadable_or_no_files(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.json"):
        with pytest.raises(InputError, match=path.name):
            tables.read_metrics([path])
    with pytest.raises(InputError, match="no metric files"):
        tables.read_metrics([])


def test_summary_agrees_with_numpy_and_scipy() -> None:
    rows = [(0, "none", 250, seed, miou) for seed, miou in enumerate(MIOU)]
    frame = frame_of([*rows, (0, "a", 250, 0, 0.3), (0, "none", 500, 0, 0.6)])
    table = tables.summarise(frame.sample(frac=1, random_state=0))
    assert list(table["intermediate"]) == ["none", "none", "a"]
    assert list(table["n"]) == [3, 1, 1]
    first = table.iloc[0]
    assert first["miou_mean"] == pytest.approx(np.mean(MIOU))
    assert first["miou_sd"] == pytest.approx(np.std(MIOU, ddof=1))
    assert first["miou_se"] == pytest.approx(stats.sem(MIOU))
    assert first["pixel_accuracy_sd"] == pytest.approx(first["miou_sd"])
    assert table.loc[1:, ["miou_sd", "miou_se"]].isna().all(axis=None)


def test_undefined_metric_does_not_count() -> None:
    frame = frame_of([(0, "none", 250, 0, 0.4), (0, "none", 250, 1, 0.6), (0, "none", 250, 2, float("nan"))])
    first = tables.summarise(frame).iloc[0]
    assert first["n"] == 3
    assert first["miou_mean"] == pytest.approx(0.5)
    assert first["miou_se"] == pytest.approx(stats.sem([0.4, 0.6]))


def test_pooling_what_differs_is_refused() -> None:
    frame = frame_of([(0, "none", 250, 0, 0.4), (0, "none", 250, 1, 0.6)])
    with pytest.raises(InputError, match="protocol"):
        tables.summarise(frame.assign(protocol=["paper", "sound"]))
    for use in (tables.summarise, tables.paired_differences):
        with pytest.raises(InputError, match="more than once"):
            use(pd.concat([frame, frame]))


def test_pairs_by_seed_whatever_the_order() -> None:
    rows = [(9, "none", 250, s, m) for s, m in ((0, 0.5), (1, 0.6), (3, 0.1))]
    rows += [(9, "a", 250, s, m) for s, m in ((1, 0.65), (0, 0.45), (2, 0.9))]
    rows += [(0, "a", 250, 0, 0.2), (9, "a", 500, 0, 0.2)]  # without a partner, as are seeds 2 and 3
    expected = pd.DataFrame([(9, "a", 250, 0, -0.05), (9, "a", 250, 1, 0.05)], columns=[*tables.KEYS, "difference"])
    for state in range(5):
        shuffled = frame_of(rows).sample(frac=1, random_state=state)
        pd.testing.assert_frame_equal(tables.paired_differences(shuffled), expected)
        other = tables.paired_differences(shuffled, "pixel_accuracy")
        pd.testing.assert_frame_equal(other, expected)


def test_pair_with_undefined_metric_is_no_pair() -> None:
    frame = frame_of([(0, "none", 250, 0, float("nan")), (0, "a", 250, 0, 0.5)])
    assert tables.paired_differences(frame).empty


def test_paper_tables() -> None:
    rows = [(0, "none", 250, seed, miou) for seed, miou in enumerate((0.40, 0.42, 0.44))]
    rows += [(9, "none", 250, 0, 0.5), (0, "a", 250, 0, 0.3), (9, "a", 250, 0, float("nan"))]
    frame = frame_of(rows)
    one, a2, a3 = (tables.paper_table(frame, which) for which in ("1", "A2", "A3"))
    assert one.to_dict("list") == {
        "# Fine-tune": [250],
        "Accuracy": ["62.00 ± 2.00"],
        "mIoU": ["42.00 ± 2.00"],
        "Runs": [3],
    }
    assert list(a2.columns) == ["# Pre-train", "# Fine-tune", "Accuracy", "mIoU", "Runs"]
    assert a2.to_numpy().tolist() == [[9, 250, "70.00", "50.00", 1]]
    assert set(a3.columns) == {"Intermediate", *a2.columns}
    assert list(a3["# Pre-train"]) == [0, 9]  # the paper omits 0
    assert list(a3["mIoU"]) == ["30.00", "n/a"]


def test_markdown() -> None:
    frame = pd.DataFrame({"Task": ["a|b", "c\nd"], "x": [1 / 3, float("nan")], "n": [200000, 2]})
    assert tables.to_markdown(frame) == (
        "| Task | x | n |\n| :-- | --: | --: |\n| a\\|b | 0.333333 | 200000 |\n| c d |  | 2 |\n"
    )


def test_files(tmp_path: Path) -> None:
    paths = write(tmp_path, [cell(0, "none", 250, seed, miou) for seed, miou in enumerate(MIOU)])
    out = tmp_path / "new" / "tables"
    tables.write_tables(iter(paths), out)
    names = {"metrics.csv", "summary.csv", "paired_differences.csv"}
    names |= {f"table{which}.{kind}" for which in ("1", "A2", "A3") for kind in ("csv", "md")}
    assert {p.name for p in out.iterdir()} == names
    summary = pd.read_csv(out / "summary.csv", dtype=str)
    assert summary["miou_sd"][0] == f"{np.std(MIOU, ddof=1):.6g}"
    whose = "study,protocol,note"  # every file says whose numbers it holds
    assert (out / "table1.csv").read_text() == (
        f"# Fine-tune,Accuracy,mIoU,Runs,{whose}\n250,70.00 ± 0.00,44.00 ± 3.61,3,made-up,sound,Made up for tests.\n"
    )
    assert (out / "paired_differences.csv").read_text() == ",".join([*tables.KEYS, "difference", whose]) + "\n"
    assert (out / "tableA2.csv").read_text() == f"# Pre-train,# Fine-tune,Accuracy,mIoU,Runs,{whose}\n"
    text = (out / "table1.md").read_text()
    for said in ("made-up", "sound", "± standard deviation over seeds", "1,000 test images", "Made up for tests."):
        assert said in text
    assert "no such cells" not in text
    for which in ("A2", "A3"):
        text = (out / f"table{which}.md").read_text()
        assert "The study has no such cells." in text
        assert "| # Pre-train |" in text
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    tables.write_tables(reversed(paths), out)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_classes_without_a_pixel_are_said_in_every_table(tmp_path: Path) -> None:
    def classes(untrained: list[str]) -> dict[str, Any]:
        return {"classes": {"averaged": ["cat"], "not_in_test": ["dog", "low road"], "not_in_training": untrained}}

    few = cell(0, "none", 8, 0) | classes(["dog"])
    paths = write(tmp_path, [few, cell(0, "none", 16, 0) | classes([]), cell(0, "none", 32, 0)])
    frame = tables.read_metrics(paths)
    assert list(frame["not_in_test"]) == ["dog; low road", "dog; low road", ""]
    assert tables.absent_classes(frame, "training") == {"dog": ["pre-0_mid-none_fine-8_seed-0"]}
    tables.write_tables(paths, tmp_path / "out")
    again = pd.read_csv(tmp_path / "out" / "metrics.csv", keep_default_na=False, na_values=[""])
    for found in (frame, again):
        assert tables.absent_words(found) == [
            "No test mask has a pixel of dog, low road: such a class is not in mIoU, which is a mean over the others.",
            "No mask that a cell was fine-tuned on has a pixel of: dog (1 of 3 cells); it cannot be learnt there.",
        ]
    assert "No test mask has a pixel of dog, low road:" in (tmp_path / "out" / "table1.md").read_text()
    assert "not_in_test" not in (tmp_path / "out" / "summary.csv").read_text()
    of_images = tables.absent_words(frame.assign(miou_is="per_image"))
    assert of_images[0].endswith("such a class counts 0 in every image's mIoU.")
    assert tables.absent_words(tables.read_metrics(paths[2:])) == []


@pytest.mark.parametrize("classes", [None, [], {"not_in_test": "dog"}, {"not_in_training": [1]}, {"not_in_test": None}])
def test_classes_of_another_type_are_refused(tmp_path: Path, classes: Any) -> None:
    with pytest.raises(InputError, match=r"0\.json: not the metrics of an evaluated cell.*'classes"):
        tables.read_metrics(write(tmp_path, [cell(0, "none", 8, 0) | {"classes": classes}]))
