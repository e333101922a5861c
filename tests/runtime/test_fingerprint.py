"""What each stage's fingerprint covers: the code that makes its output, and no more."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from viny.runtime import fingerprint
from viny.runtime.fingerprint import ENTRY, code_fingerprint, modules_of

TRAININGS = {"pretrain", "intermediate", "finetune"}
WITH_MODEL = TRAININGS | {"evaluate", "geometry", "figures"}
COVERED = {stage: set(modules_of(stage)) for stage in ENTRY}


@pytest.mark.parametrize(
    ("module", "stages"),
    [
        ("data.packing", {"pack"}),
        ("data.synthetic", {"pack"}),
        ("learning.train", TRAININGS),
        ("learning.stages", TRAININGS),
        ("learning.gradients", TRAININGS),
        ("learning.checkpoint", TRAININGS),
        ("learning.weights", WITH_MODEL),
        ("learning.model", WITH_MODEL),
        ("evidence.evaluate", {"evaluate", "figures"}),
        ("evidence.geometry", {"geometry"}),
        ("evidence.token_metrics", {"geometry", "representations"}),
        ("evidence.figures.kit", {"figures", "statistics", "representations"}),
        ("evidence.figures.effects", {"statistics"}),
        ("evidence.statistics.fits", {"statistics"}),
        ("evidence.statistics.representations", {"representations", "scorecard"}),
        ("evidence.paper.claims", {"scorecard"}),
        ("evidence.paper.scorecard", {"scorecard"}),
        ("evidence.report.page", {"report"}),
    ],
)
def test_an_edit_touches_what_uses_the_module(module: str, stages: set[str]) -> None:
    assert {stage for stage, modules in COVERED.items() if f"viny.{module}" in modules} == stages


@pytest.mark.parametrize(
    "room",
    ["tools", "commands", "cli", *(f"study.{name}" for name in ("config", "specs", "graph", "workload", "todo"))],
)
def test_no_result_depends_on_what_plans_or_shows_it(room: str) -> None:
    assert not {name for modules in COVERED.values() for name in modules if name.startswith(f"viny.{room}")}


def test_stages_of_one_function_have_one_fingerprint() -> None:
    assert len({code_fingerprint(stage) for stage in TRAININGS}) == 1
    assert len({code_fingerprint(stage) for stage in ENTRY}) == len(ENTRY) - len(TRAININGS) + 1


@pytest.fixture
def touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], set[str]]:
    """Stages whose fingerprint changes when a line is added to a file of a copy of the package."""
    copy = tmp_path / "viny"
    shutil.copytree(fingerprint.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(fingerprint, "PACKAGE", copy)

    def now() -> dict[str, str]:
        fingerprint._parse.cache_clear()
        return {stage: "".join(modules_of(stage).values()) for stage in ENTRY}

    def touch(file: str) -> set[str]:
        before = now()
        path = copy / file
        path.write_text(path.read_text(encoding="utf-8") + "\n# One more line.\n", encoding="utf-8")
        after = now()
        fingerprint._parse.cache_clear()
        return {stage for stage in ENTRY if before[stage] != after[stage]}

    return touch


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("evidence/paper/paper.csv", {"representations", "scorecard", "report"}),
        ("evidence/report/page.html.j2", {"report"}),
        ("evidence/report/captions/effects.rst", {"report"}),
        ("evidence/figures/viny.mplstyle", {"figures", "statistics", "representations"}),
        ("study/schema.yaml", set()),
        ("tools/trained/model_card.md.j2", set()),
        ("learning/train.py", set()),  # the line is a comment
    ],
)
def test_an_edited_data_file_touches_what_reads_it(
    file: str, stages: set[str], touched: Callable[[str], set[str]]
) -> None:
    assert touched(file) == stages
