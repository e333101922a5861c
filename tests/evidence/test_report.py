"""The report: the words of the table of decisions and no others, and every number with its uncertainty."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

pytest.importorskip("jsonschema")

from viny.evidence.figures import kit
from viny.evidence.report import page
from viny.evidence.report.classes import class_table
from viny.evidence.report.means import means, miou_table
from viny.evidence.report.words import code, images_of, percent, points, words
from viny.evidence.statistics.crossed import Runs
from viny.runtime.errors import InputError
from viny.runtime.files import write_json
from viny.runtime.units import listed
from viny.study.config import merge, resolve
from viny.study.grid import cells
from viny.study.layout import metrics_file, trainings
from viny.study.reading import read_config
from viny.study.specs import report_spec

KEYS = [(0, "none", 8), (0, "none", 16), (0, "none", 32), (24, "none", 8), (24, "scenes", 8)]
VALUES = np.array([[0.20, 0.30, 0.35, 0.40, 0.50], [0.22, 0.31, 0.35, 0.44, np.nan], [0.24, 0.32, 0.35, 0.42, np.nan]])
RUNS = Runs(KEYS, [0, 1, 2], VALUES)
RUN = {
    **{"training_seconds": 60.0, "image_passes": 5000, "device_name": "a CPU", "precision": "float32", "code": "0.1"},
    **{"python": "3.11", "packages": {"torch": "2"}, "processor": "a CPU", "study_sha256": "ab"},
    **{"started": "2026-01-01T00:00:00", "ended": "2026-01-01T00:01:00"},
}


def decision(
    kind: str, what: Any, said: str = "does something", mean: float = -0.0123, known: bool = True
) -> dict[str, Any]:
    low, high = (mean - 0.01, mean + 0.01) if known else (np.nan, np.nan)
    row = {"kind": kind, "what": str(what), "name": f"the {kind} {what}", "words": said, "mean": mean}
    return row | {"low": low, "high": high, "sentence": f"The {kind} {what} {said}: {100 * mean:+.2f} points."}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("-2.36 (-4.22 to -0.54)", "−2.36 (−4.22 to −0.54)"),
        ("p 1e-06", "p 1e−06"),
        ("pre-0_mid-none, 3-5, 2024-01-02, x-1", "pre-0_mid-none, 3-5, 2024-01-02, x-1"),
        ("[-.5, 1]", "[−.5, 1]"),
        ("a\u202eb", "a\\u202eb"),
    ],
)
def test_hyphens_of_numbers_are_minus_signs(text: str, shown: str) -> None:
    assert words(text) == shown


def test_numbers_and_names_in_words() -> None:
    assert percent(0.1234) == "12.3"
    assert points(-0.0051) == "−0.51"
    assert listed([0, 45000, 100000]) == "0, 45,000 or 100,000"
    assert listed(["none"]) == "none"
    assert images_of({"source": "synthetic"}) == "synthetic images"
    assert images_of({"source": "folder", "path": "mine"}) == "images of mine"
    assert images_of({"source": "folder", "path": "data", "images": "photos"}) == "images of photos"


def test_a_table_knows_its_numbers_and_shows_no_nan() -> None:
    made = page.table(pd.DataFrame({"name": ["a", None], "hours": [1.5, -2.0]}))
    assert [column["number"] for column in made["columns"]] == [False, True]
    assert made["rows"] == [["a", "1.5"], ["", "−2.0"]]


def test_every_class_has_a_row_for_the_best_cell_and_its_start() -> None:
    rows = [(24, "none", 8, 0.5, 0.2), (24, "none", 8, 0.7, 0.4), (0, "none", 8, 0.1, None), (0, "none", 16, 0.9, 0.9)]
    frame = pd.DataFrame(rows, columns=["pretrain_size", "intermediate", "finetune_size", "iou_cat", "iou_dog"])
    frame = frame.assign(iou_yak=np.nan, not_in_test="yak", not_in_training="")
    made = class_table(frame, (24, "none", 8))
    assert [column["about"] for column in made["columns"]] == ["24 images, 8 labels", "random start, 8 labels"]
    assert {row["name"]: row["values"] for row in made["rows"]} == {
        "cat": [{"mean": "60.0", "span": "50.0 to 70.0"}, {"mean": "10.0", "span": ""}],
        "dog": [{"mean": "30.0", "span": "20.0 to 40.0"}, "not defined"],
        "yak": ["in no test mask"] * 2,
    }
    assert len(class_table(frame, (0, "none", 16))["columns"]) == 1
    unets = pd.DataFrame({"finetune_size": [8, 16], "iou_cat": [0.5, 0.9], "lowest_iou_cat": [0.4, 0.9]})
    unets = unets.assign(highest_iou_cat=[0.6, 0.9], iou_dog=np.nan, lowest_iou_dog=np.nan, highest_iou_dog=np.nan)
    made = class_table(frame, (24, "none", 8), unets)
    assert made["columns"][2] == {"name": "U-Net", "about": "8 labels"}
    assert {row["name"]: row["values"][2] for row in made["rows"]} == {
        "cat": {"mean": "50.0", "span": "40.0 to 60.0"},
        "dog": "not defined",
        "yak": "in no test mask",
    }


def test_code_is_marked_and_all_else_escaped() -> None:
    assert str(code("set `a: [-1]` <b>, -2")) == "set <code><i>a:</i> <i>[-1]</i></code> &lt;b&gt;, −2"


def test_means_have_three_intervals() -> None:
    table = means(RUNS).set_index(["pretrain_size", "intermediate", "finetune_size"])
    row = table.loc[(0, "none", 8)]
    assert (row["mean"], row["n"]) == (pytest.approx(0.22), 3)
    assert row["high_error"] - row["mean"] == pytest.approx(0.02 / np.sqrt(3))
    assert row["high_seeds"] - row["mean"] == pytest.approx(4.302653 * 0.02 / np.sqrt(3))
    assert row["low_both"] == row["low_seeds"] and not row["images"]  # nothing is known of the test images
    images = np.random.default_rng(0).normal(0, 0.01, 20)
    moved = np.broadcast_to(images - images.mean(), (3, len(KEYS), 20)) / 2
    both = means(Runs(KEYS, [0, 1, 2], VALUES, moved)).set_index(["pretrain_size", "intermediate", "finetune_size"])
    assert both["images"].loc[(0, "none", 32)]
    # The seeds agree, so that the images are all the noise that there is.
    assert both.loc[(0, "none", 32), "high_both"] > both.loc[(0, "none", 32), "high_seeds"] == pytest.approx(0.35)


def test_the_table_of_miou_shows_seeds_with_their_files() -> None:
    made = miou_table(RUNS)
    assert made["labels"] == ["8", "16", "32"] and not made["images"]
    titles = [(row["start"], row["task"]) for row in made["rows"]]
    assert titles == [("random start", "no task"), ("24 images", "no task"), ("24 images", "scenes")]
    assert made["rows"][1]["cells"][1:] == [None, None]
    alone = made["rows"][2]["cells"][0]
    assert set(alone["intervals"].values()) == {"one seed"}
    assert alone["seeds"] == [
        {
            "seed": 0,
            "value": "50.00",
            "metrics": "metrics/pre-24_mid-scenes_fine-8_seed-0.json",
            "weights": "finetune/pre-24_mid-scenes_fine-8_seed-0/",
        }
    ]


@pytest.fixture
def study(tmp_path: Path) -> tuple[dict[str, Any], Path]:
    """Settings and folder of a study with what its report needs, and no figures."""
    note = "Synthetic </p><script>alert(-1)</script>"
    config = resolve(merge(read_config(Path(__file__).parents[1] / "tiny.yaml"), {"note": note}))
    every, root = cells(config), tmp_path / "tiny"
    for i, cell in enumerate(every):
        value = {"study": "tiny", "protocol": "sound", "cell": cell.as_dict(), "miou_is": "dataset", "test_images": 9,
                 "parameters": 7, "metrics": {"miou": 0.5 + i / 100, "pixel_accuracy": 0.7, "iou_yak": 0.5},
                 "provenance": {},
                 "classes": {"not_in_test": ["<dog>"], "not_in_training": ["yak"]}}  # fmt: skip
        write_json(metrics_file(root, cell), value)
    for training in trainings(every):
        write_json(training.file(root, "run"), RUN)
    tables = root / "tables"
    tables.mkdir()
    rows = [decision(kind, 24) for kind in ("pre-training", "images", "labels")] + [decision("task", "scenes")]
    pd.DataFrame(rows).to_csv(tables / "decisions.csv", index=False)
    card = {"kind": "claim", "what": "It <helps>", "verdict": "does not hold here", "reason": "r", "paper_verdict": "v",
            "sentence": "“it helps”", "unit": "fraction per doubling", "protocol": "sound", "paper_seeds_needed": 39,
            "ours_sound": -0.02, "ours_sound_low": -0.03, "ours_sound_high": -0.01,
            "ours_paper": None, "ours_paper_low": None, "ours_paper_high": None}  # fmt: skip
    numbers = card | {"kind": "number"}
    pd.DataFrame([card, numbers, numbers]).to_csv(tables / "scorecard.csv", index=False)
    (tables / "tableA1.csv").write_text("stage,setting,this_study,the_paper\nPre-training,Epochs,2,100\n")
    (tables / "duplicates.csv").write_text("role,image,test_image,kind,distance\n")
    (tables / "next_steps.md").write_text("# Steps\n\n- From here (36.9 %), more labels: -1.04 (-2.61 to +0.52).\n")
    return report_spec(config), root


def written(study: tuple[dict[str, Any], Path]) -> str:
    spec, root = study
    page.write_page(spec, root=root, out=root / "report.html", record=root / "report.json")
    return (root / "report.html").read_text(encoding="utf-8")


def shown(text: str) -> str:
    """The text of a page, without its tags and its style."""
    return html.unescape(re.sub(r"(?s)<style>.*?</style>|<[^>]*>", " ", text))


def test_the_page_says_what_the_tables_say(study: tuple[dict[str, Any], Path]) -> None:
    text = written(study)
    said = " ".join(shown(text).split())
    parts = [
        "Pre-training",
        "mIoU in percent",
        "IoU of each class",
        "Warnings",
        "Next steps",
        "It <helps>",
    ]
    assert [said.index(part) for part in parts] == sorted(said.index(part) for part in parts)
    assert said.count("Synthetic </p>") == 1  # the note
    assert "The pre-training 24 does something" in said
    assert "The task scenes does something: −1.23 points." in said
    assert "−1.04 (−2.61 to +0.52)" in said
    assert "Of the paper's 2 numbers: 2 does not hold here." in said
    assert "“it helps” does not hold here −2.00 (−3.00 to −1.00) points per doubling r v 39" in said
    assert "8 or 16 labelled synthetic images" in said
    assert "No test mask has a pixel of <dog>: such a class is not in mIoU" in said
    assert "has a pixel of: yak (16 of 16 cells)" in said
    assert not re.search(r"(?<![\w.])-\d", said.replace("alert(-1)", ""))
    assert not re.search(r"\bnan\b|\bNone\b|images of synthetic", said)


def test_one_figure_is_open_and_those_that_show_nothing_are_left_out(study: tuple[dict[str, Any], Path]) -> None:
    _, root = study
    kit.save(kit.new_figure(2), root / "figures" / "miou_curves")
    kit.save(kit.new_figure(2), root / "figures" / "costs")
    kit.save(kit.say("Two sizes are <needed>.", ""), root / "figures" / "returns")
    text = written(study)
    unfolded = re.sub(r"(?s)<details.*</details>", "", text)
    assert re.findall(r'<figure id="(\w+)"', unfolded) == ["miou_curves"]
    assert sorted(re.findall(r'<figure id="(\w+)"', text)) == ["costs", "miou_curves"]
    assert "Figure returns is left out. Two sizes are <needed>." in shown(text)
    assert text.index('id="answers"') < text.index('id="miou_curves"') < text.index('id="miou"')


def test_text_from_files_runs_nothing(study: tuple[dict[str, Any], Path]) -> None:
    text = written(study)
    assert "<script" not in text
    assert "Synthetic </p><script>" in shown(text)
    assert re.search(r"Content-Security-Policy\" content=\"default-src 'none'; img-src data:;", text)


def test_a_damaged_table_or_figure_is_named(study: tuple[dict[str, Any], Path]) -> None:
    _, root = study
    (root / "figures").mkdir()
    figure = root / "figures" / "returns.png"
    Image.new("RGB", (920, 400)).save(figure, dpi=(200, 200))
    assert 'alt="Left, curves of mIoU against labels' in written(study)
    assert '--inches: 4.60" width="920" height="400"' in written(study)
    figure.write_bytes(figure.read_bytes()[:20])
    with pytest.raises(InputError, match=r"returns\.png: not a figure that the workflow draws"):
        written(study)
    (root / "tables" / "decisions.csv").write_text("kind\ntask\n")
    with pytest.raises(InputError, match=r"decisions\.csv: not the table that the workflow writes"):
        written(study)
    (root / "tables" / "decisions.csv").unlink()
    with pytest.raises(InputError, match=r"decisions\.csv: no such table; run the workflow"):
        written(study)
