"""What each stage's fingerprint covers: the code that makes its output, and no more."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from viny.commands import stages as commands
from viny.runtime import fingerprint
from viny.runtime.errors import InputError
from viny.runtime.fingerprint import ENTRY, code_fingerprint, modules_of
from viny.runtime.gpus import job_environment

TRAININGS = {"pretrain", "intermediate", "finetune"}
TRAINING = TRAININGS | {"tune", "reference"}
WITH_MODEL = TRAINING | {"evaluate", "geometry", "figures"}
SUMMARIES = {"tables", "figures", "statistics", "representations", "scorecard", "report"}
COVERED = {stage: set(modules_of(stage)) for stage in ENTRY}


@pytest.mark.parametrize(
    ("module", "stages"),
    [
        ("data.packing", {"pack"}),
        ("data.synthetic", {"pack", "report"}),  # whose advice counts the images at hand
        ("learning.train", TRAINING),
        ("learning.stages", TRAINING),
        ("learning.gradients", TRAINING),
        ("learning.checkpoint", TRAINING),
        ("learning.published", {"start"}),
        ("learning.weights", WITH_MODEL | {"start"}),
        ("learning.model", WITH_MODEL | {"start"}),
        ("evidence.evaluate", {"evaluate", "figures", "reference"}),
        ("evidence.reference", {"reference"}),
        ("learning.unet", {"reference"}),
        ("evidence.statistics.references", {"statistics", "figures", "report"}),
        ("evidence.geometry", {"geometry"}),
        ("evidence.token_metrics", {"geometry"}),
        ("evidence.figures.kit", {"figures", "statistics", "representations"}),
        ("evidence.figures.effects", {"statistics"}),
        ("evidence.statistics.fits", {"statistics", "report"}),
        ("evidence.statistics.representations", {"representations", "report", "scorecard"}),
        ("evidence.paper.claims", {"scorecard"}),
        ("evidence.paper.scorecard", {"scorecard"}),
        ("evidence.report.page", {"report"}),
        ("runtime.units", SUMMARIES),  # words of tables and pages, which no training has
    ],
)
def test_an_edit_touches_what_uses_the_module(module: str, stages: set[str]) -> None:
    assert {stage for stage, modules in COVERED.items() if f"viny.{module}" in modules} == stages


@pytest.mark.parametrize(
    "room",
    ["tools", "commands", "cli", *(f"study.{name}" for name in ("config", "specs", "graph", "workload", "todo"))],
)
def test_no_result_depends_on_what_plans_or_shows_it(room: str) -> None:
    found = {stage for stage, modules in COVERED.items() if any(name.startswith(f"viny.{room}") for name in modules)}
    # The report advises, and tries what it proposes against the settings as `viny check` does.
    assert found <= ({"report"} if room in ("study.config", "study.specs") else set())


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
        ("study/schema.yaml", {"report"}),
        ("tools/trained/model_card.md.j2", set()),
        ("learning/train.py", set()),  # the line is a comment
    ],
)
def test_an_edited_data_file_touches_what_reads_it(
    file: str, stages: set[str], touched: Callable[[str], set[str]]
) -> None:
    assert touched(file) == stages


def test_compiled_modules_touch_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "viny"
    shutil.copytree(fingerprint.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(fingerprint, "PACKAGE", copy)
    found = []
    for _ in range(2):
        fingerprint._parse.cache_clear()
        found.append({stage: modules_of(stage) for stage in ENTRY})
        for folder in {path.parent for path in copy.rglob("*.py")}:
            (folder / "__pycache__").mkdir(exist_ok=True)
            (folder / "__pycache__" / "made.cpython-311.pyc").write_bytes(b"compiled")
    fingerprint._parse.cache_clear()
    assert found[0] == found[1]


@pytest.mark.parametrize("damage", ["none", "cut", "list", "other code's", "no folder"])
def test_what_is_remembered_of_sources_changes_no_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    copy = tmp_path / "viny"
    shutil.copytree(fingerprint.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(fingerprint, "PACKAGE", copy)
    parsed: list[bytes] = []
    analyse = fingerprint._analyse

    def counted(source: bytes) -> list[Any]:
        parsed.append(source)
        return analyse(source)

    monkeypatch.setattr(fingerprint, "_analyse", counted)

    def now() -> dict[str, str]:
        fingerprint._parse.cache_clear()
        fingerprint._memory.cache_clear()
        parsed.clear()
        return modules_of("split")

    memory = copy / "__pycache__" / "fingerprints.json"
    if damage == "no folder":
        memory.parent.write_text("in the way")
    first = now()
    assert len(parsed) == len(first) and memory.is_file() == (damage != "no folder")
    if damage == "cut":
        memory.write_text(memory.read_text()[:1000])
    elif damage == "list":
        memory.write_text("[]")
    elif damage == "other code's":
        memory.write_text(json.dumps({"by": "another", "found": {}}))
    assert now() == first
    assert len(parsed) == (0 if damage == "none" else len(first))
    (copy / "data" / "parts.py").write_text((copy / "data" / "parts.py").read_text() + "\nNEW = 1\n")
    assert {name for name, found in now().items() if found != first[name]} == {"viny.data.parts"}
    fingerprint._parse.cache_clear()
    fingerprint._memory.cache_clear()


@pytest.mark.parametrize("stack", ["1", "8"])
def test_code_that_is_edited_while_a_job_waits_for_a_gpu_is_not_run(
    stack: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What is loaded after the wait would be filed under the name of what was there before."""
    codes = iter(["before", "after"])
    monkeypatch.setattr(commands, "code_fingerprint", lambda stage: next(codes))
    monkeypatch.setattr(commands, "lead_or_join", lambda work, what: contextlib.nullcontext())
    monkeypatch.setattr(commands, "load", lambda module: pytest.fail("loaded"))
    for name, value in job_environment(["0"], 1, tmp_path, int(stack)).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    given = {"spec": {"code": "before", "device": "cuda"}, "checkpoints": None, "checkpoint_minutes": 5.0}
    with pytest.raises(InputError, match="was edited after this run began"):
        commands.run("finetune", given)


def test_an_edit_is_seen_once_the_code_is_to_be_read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_fingerprint("finetune")
    analysed = fingerprint._analysed
    monkeypatch.setattr(fingerprint, "_analysed", lambda source: ["edited", *analysed(source)[1:]])
    assert code_fingerprint("finetune") == before
    fingerprint.forget()
    assert code_fingerprint("finetune") != before
    monkeypatch.undo()
    fingerprint.forget()
    assert code_fingerprint("finetune") == before
