"""One effect of one study is told alike by the tables, the report, the scorecard and the advice."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from viny.evidence.advice.advice import as_dict
from viny.evidence.advice.adviser import advise
from viny.evidence.paper.claims import CLAIMS
from viny.evidence.paper.comparisons import Cells
from viny.evidence.paper.scorecard import COMPARED, write_scorecard
from viny.evidence.paper.words import Found
from viny.evidence.statistics.crossed import Runs
from viny.evidence.statistics.pages import write_statistics
from viny.evidence.verdicts import MARGIN, decide
from viny.runtime.files import write_json
from viny.study.config import merge, resolve
from viny.study.grid import cells
from viny.study.layout import metrics_file
from viny.study.reading import read_config
from viny.study.saved import write_study

STUDIES = 1000
ABOUT = {"pretraining_helps": ("pre-training", "up"), "classification_hurts_everywhere": ("task", "down")}
TELLING = {claim.key: claim for claim in CLAIMS if claim.key in ABOUT}
SAID = dict.fromkeys(Found) | {Found.HOLDS: True, Found.AVERAGE: True, Found.AGAINST: False}


def study(rng: np.random.Generator) -> Runs:
    """A study whose gain, harm and noise are drawn too: some effects are there, some are not."""
    keys = list(product((0, 9, 18), ("none", "intel"), (60, 120, 240)))
    gain, harm = rng.normal(0, 0.02, 2) * rng.integers(0, 2, 2)
    means = np.array([0.4 + gain * (p > 0) - harm * (task != "none") * (p > 0) for p, task, _ in keys])
    noise = rng.uniform(0.002, 0.01) * rng.standard_normal((3, len(keys)))
    moved = rng.uniform(0, 0.01) * rng.standard_normal((len(keys), 30)) / np.sqrt(30)
    moved = np.stack([moved - moved.mean(1, keepdims=True)] * 3)
    return Runs(keys, range(3), means + noise + moved.sum(-1), moved)


@pytest.mark.slow
def test_the_scorecard_agrees_with_what_is_decided_in_a_thousand_studies() -> None:
    rng = np.random.default_rng(0)
    seen = dict.fromkeys(Found, 0)
    for number in range(STUDIES):
        runs = study(rng)
        decisions = decide(runs, margin=1.0 if number % 4 else MARGIN)  # so that little is left open, which takes time
        evidence = Cells.of(runs, decisions=decisions)
        for key, (kind, wanted) in ABOUT.items():
            verdicts = {d.verdict for d in decisions if d.kind == kind}
            found = TELLING[key].test(evidence).found
            seen[found] += 1
            if found in (Found.HOLDS, Found.AVERAGE):
                assert verdicts == {wanted}
            elif found is Found.AGAINST:
                assert verdicts & ({"up", "down"} - {wanted})
            elif verdicts == {wanted}:
                assert found is Found.PARTLY  # on average, though not in each cell
            elif verdicts == {"small"}:
                assert found in (Found.SMALL, Found.PARTLY)
            else:
                assert found in (Found.UNDECIDED, Found.PARTLY)
                assert not verdicts & ({"up", "down"} - {wanted})
    of_all = (Found.HOLDS, Found.AVERAGE, Found.AGAINST, Found.SMALL, Found.UNDECIDED)
    assert min(seen[found] for found in of_all) > 20


def files(root: Path, rng: np.random.Generator) -> tuple[dict[str, Any], list[Path]]:
    """A study's metrics and confusion matrices, with effects that are drawn."""
    config = resolve(merge(read_config(Path(__file__).parents[1] / "tiny.yaml"), {"grid": {"seeds": [0, 1, 2]}}))
    write_study(root, config)
    gain, harm, spread = *rng.normal(0, 0.03, 2), rng.uniform(0.002, 0.02)
    paths = []
    for cell in cells(config):
        score = 0.5 + gain * (cell.pretrain_size > 0) - harm * (cell.intermediate != "none") + spread * rng.normal()
        right = np.clip(rng.normal(score, 0.05, (40, 2)), 0, 1) * 50
        confusion = np.empty((40, 2, 2))
        confusion[:, [0, 1], [0, 1]], confusion[:, [0, 1], [1, 0]] = right, 50 - right
        confusion = confusion.round().astype(np.int32)
        total = confusion.sum(0)
        hit = np.diag(total)
        miou = float((hit / (total.sum(0) + total.sum(1) - hit)).mean())
        path = metrics_file(root, cell)
        value = {"study": config["study"], "protocol": "sound", "note": "", "cell": cell.as_dict(), "provenance": {}}
        value |= {"metrics": {"miou": miou, "pixel_accuracy": 0.7}, "miou_is": "dataset", "test_images": 40}
        write_json(path, value | {"classes": {}})
        np.savez(path.with_suffix(".npz"), confusion=confusion, indices=np.arange(40))
        paths.append(path)
    return config, paths


@pytest.mark.parametrize("seed", range(6))
def test_tables_report_scorecard_and_advice_use_the_same_words(tmp_path: Path, seed: int) -> None:
    _, paths = files(tmp_path, np.random.default_rng(seed))
    tables = tmp_path / "tables"
    write_statistics(paths, tmp_path / "metrics", None, tables)
    decisions = pd.read_csv(tables / "decisions.csv", dtype={"what": str})
    told = {(row["kind"], row["what"]): row for row in decisions.to_dict("records")}
    advised = as_dict(advise(tmp_path))
    on_page = {line["key"]: line["text"] for line in advised["short"]}
    sections = {section["key"]: section["items"] for section in advised["sections"]}
    summary = " ".join(item["text"] for item in sections["summary"])
    for key, section in (("pre-training", "pretraining"), ("task", "tasks")):
        row = told[key, "24" if key == "pre-training" else "scenes"]
        name = row["name"][0].upper() + row["name"][1:]
        assert on_page[key].startswith((f"{name} {row['words']}: ", f"It {row['words']}: "))
        assert row["sentence"] in summary
        advised = sections[section][0]
        assert (advised["words"], advised["sentence"]) == (row["words"], row["sentence"])
        assert advised["low"] == pytest.approx(row["low"], rel=1e-4)
    curve = sections["labels"][0]
    if (curve["pretrain_size"], curve["intermediate"]) in ((0, "none"), (24, "none")):  # else it is no row of the table
        row = told["labels", str(curve["pretrain_size"])]
        assert curve["verdict"] == row["words"]
        assert row["sentence"] in summary
    nothing: dict[str, list[str]] = {name: [] for name in COMPARED}
    write_scorecard({"sound": paths}, None, tables, {"sound": nothing})
    card = pd.read_csv(tables / "scorecard.csv").set_index("key")
    for key, (kind, wanted) in ABOUT.items():
        verdict = card.loc[key, "verdict"]
        found = next(found for found in Found if found.of_study(comparable=True) == verdict)
        mine = {row["verdict"] for (k, _), row in told.items() if k == kind}
        assert SAID[found] in ({True, None} if mine == {wanted} else {None} if not mine & {"up", "down"} else {False})
