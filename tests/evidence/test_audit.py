"""`viny audit`: claims tested on a table of published means."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from viny.cli import main
from viny.evidence.paper.audit import audit, read_means
from viny.evidence.paper.claims import OF_MEANS, claims_on_paper
from viny.evidence.paper.facts import paper_facts
from viny.evidence.paper.words import AUDIT_WORDS, Found
from viny.runtime.errors import InputError

HEADER = "pretrain_size,intermediate,finetune_size,miou_mean,miou_spread\n"
UNDERPOWERED = Found.UNDECIDED.of_table


def results(path: Path, **columns: object) -> Path:
    """The paper's 42 rows, as it prints them: percent."""
    facts = paper_facts().query("table != '2'")
    wide = facts.pivot(
        index=["table", "pretrain_size", "intermediate", "finetune_size"], columns="metric", values=["mean", "spread"]
    )
    wide.columns = [f"{metric}_{kind}" for kind, metric in wide.columns]
    (100 * wide).round(2).reset_index().assign(**columns).to_csv(path, index=False)
    return path


def test_the_papers_own_table_gives_what_the_scorecard_says_of_it(tmp_path: Path) -> None:
    found = audit(results(tmp_path / "results.csv"), runs=3, epochs=(100, 100)).set_index("key")
    own = claims_on_paper().set_index("key")
    assert list(found.index) == [claim.key for claim in OF_MEANS]
    for key, row in found.iterrows():
        assert row["verdict"] == own["verdict"][key], key
        assert row["estimate"] == pytest.approx(own["estimate"][key], nan_ok=True, abs=1e-9)
        assert row["seeds_needed"] == pytest.approx(own["seeds_needed"][key], nan_ok=True)


def test_a_standard_error_is_a_standard_deviation_over_the_root_of_the_runs(tmp_path: Path) -> None:
    path = results(tmp_path / "results.csv")
    sd, se = (read_means(path, 3, spread)["spread"] for spread in ("sd", "se"))
    assert se.to_numpy() == pytest.approx(np.sqrt(3) * sd.to_numpy())
    own = results(tmp_path / "runs.csv", runs=5)
    assert set(read_means(own, None, "sd")["runs"]) == {5}
    assert (read_means(path, 1, "sd")["spread"].isna()).all()
    accuracy = read_means(path, 3, "sd", "accuracy")
    assert accuracy.query("pretrain_size == 0 and finetune_size == 250")["mean"].item() == pytest.approx(0.7033)


def test_underpowered_says_how_many_runs_would_have_told(tmp_path: Path) -> None:
    """One comparison, by hand: 2 points with a spread of 1.5 each over 3 runs."""
    path = tmp_path / "table.csv"
    path.write_text(HEADER + "0,none,100,50,1.5\n9,none,100,52,1.5\n")
    row = audit(path, runs=3).set_index("key").loc["pretraining_helps"]
    assert row["verdict"] == UNDERPOWERED
    n = int(row["seeds_needed"])

    def power(runs: int) -> float:
        freedom = 2 * (runs - 1)
        return float(stats.nct.sf(stats.t.ppf(0.975, freedom), freedom, 2 / (1.5 * np.sqrt(2 / runs))))

    assert power(n) >= 0.8 > power(n - 1)
    assert f"{n} runs would tell" in row["reason"]
    rng = np.random.default_rng(0)  # and by simulation
    a, b = rng.normal(50, 1.5, (2000, n)), rng.normal(52, 1.5, (2000, n))
    assert np.mean(stats.ttest_ind(b, a, axis=1).pvalue < 0.05) == pytest.approx(power(n), abs=0.03)


def test_the_verdicts_of_plain_tables(tmp_path: Path) -> None:
    def verdict(rows: str, key: str) -> str:
        path = tmp_path / "table.csv"
        path.write_text(HEADER + rows)
        found = audit(path, runs=3).set_index("key")["verdict"]
        assert set(found) <= set(AUDIT_WORDS)
        return found[key]

    base = "0,none,100,50,0.1\n0,none,200,55,0.1\n"
    assert verdict(base + "9,none,100,60,0.1\n9,none,200,65,0.1\n", "pretraining_helps") == "supported"
    assert verdict(base + "9,none,100,60,0.1\n9,none,200,55.1,0.1\n", "pretraining_helps") == "supported on average"
    assert verdict(base + "9,none,100,60,0.1\n9,none,200,50,0.1\n", "pretraining_helps") == "contradicted"
    assert verdict(base + "9,none,100,50.1,1\n9,none,200,55,1\n", "pretraining_helps") == "underpowered"
    assert verdict(base, "pretraining_helps") == "not in the table"
    assert verdict(base + "9,none,100,60,\n9,none,200,65,\n", "pretraining_helps") == "no spread given"
    task = "9,none,100,60,0.1\n9,jigsaw,100,50,0.1\n"
    assert verdict(base + task, "classification_hurts_everywhere") == "supported"


def test_tasks_for_each_patch_are_no_classification(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(HEADER + "9,none,100,60,0.1\n9,patches,100,63,0.1\n9,classes,100,50,0.1\n")
    found = audit(path, runs=3, spatial=["patches"]).set_index("key")
    assert found["verdict"]["spatial_does_not_hurt"] == "supported"
    assert found["verdict"]["classification_hurts_everywhere"] == "supported"
    assert found["comparisons"]["classification_hurts_everywhere"] == 1
    with pytest.raises(InputError, match="no task is called 'others'; found classes, patches"):
        audit(path, runs=3, spatial=["others"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no rows"),
        (HEADER, "no rows"),
        ("a,b\n1,2\n", "no column 'pretrain_size'; expected pretrain_size, intermediate"),
        (
            "pretrain_size,intermediate,finetune_size,dice_mean,dice_spread\n0,none,9,5,1\n",
            "no column 'miou_mean'.*metrics in it: dice",
        ),
        (HEADER + "0,none,9,50,1\n0,none,9,51,1\n", "line 3: the cell of line 2 again"),
        (HEADER + "0,none,9,fifty,1\n", "line 2: column 'miou_mean' holds 'fifty'; expected a number, 0 to 100"),
        (HEADER + "0,none,9,150,1\n", "line 2: column 'miou_mean' holds '150'; expected a number, 0 to 100"),
        (HEADER + "0,none,9,50,-1\n", "line 2: column 'miou_spread' holds '-1'"),
        (HEADER + "0,none,9,nan,1\n", "column 'miou_mean' holds 'nan'"),
        (
            HEADER + "45k,none,9,50,1\n",
            "line 2: column 'pretrain_size' holds '45k'; expected a whole number",
        ),
        (HEADER + "0,none,1.5,50,1\n", "column 'finetune_size' holds '1.5'; expected a whole number, 1 or more"),
        (HEADER + "0,,9,50,1\n", "line 2: column 'intermediate' is empty"),
        (HEADER + "0,none,9,50\n", "line 2: expected 5 values"),
        (HEADER + "0,none,9,50,1,2\n", "line 2: expected 5 values"),
        (HEADER + "0,none,9,0.5,0.01\n", "expected percent"),
        (HEADER + "0,none,9,50,1\n0,none,18,0.55,1\n", "line 3: column 'miou_mean' holds 1 or less beside larger"),
        (HEADER + "0,none,9,50,0\n0,None,18,55,0\n", "all of miou_spread are 0; leave them empty"),
        (HEADER.strip() + ",miou_mean\n0,none,9,50,1,50\n", "column 'miou_mean' stands there twice"),
        (HEADER.replace(",", ";") + "0;none;9;50,1;1,0\n", "set apart by semicolons; expected commas"),
    ],
)
def test_faults_are_named_by_line_and_column(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        read_means(path, 3, "sd")


def test_runs_are_said_once(tmp_path: Path) -> None:
    path = results(tmp_path / "results.csv")
    with pytest.raises(InputError, match="no column 'runs'; say with --runs"):
        read_means(path, None, "sd")
    with pytest.raises(InputError, match="has a column 'runs' of its own; leave --runs out"):
        read_means(results(tmp_path / "runs.csv", runs=5), 3, "sd")
    with pytest.raises(InputError, match="cannot be read as a table"):
        read_means(tmp_path / "missing.csv", 3, "sd")


def test_the_command_says_it_in_words_and_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = results(tmp_path / "results.csv")
    assert main(["audit", str(path), "--runs", "3"]) == 0
    text = capsys.readouterr().out
    assert "supported on average: The intermediate classification hurts at every pre-train and label size." in text
    assert "14 of 18 in favour" in text
    assert "8 supported, 4 supported on average, 2 contradicted" in text
    assert main(["audit", str(path), "--runs", "3", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["key"] for row in rows] == [claim.key for claim in OF_MEANS]
    assert all(row["sentence"] for row in rows)
    assert pd.DataFrame(rows).set_index("key")["favour"]["pretraining_helps"] == 18
    assert main(["audit", str(path)]) == 2
