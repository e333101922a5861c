"""The fault campaign in a short form; `make faults` is the long one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from campaign import PRECISIONS, Bench, Tally, fail_writes, fill_disks, kill_stages, kill_workflow

SEED = 0


def report(tally: Tally) -> str:
    return "\n".join([*tally.lost, *tally.different, *tally.faults])


@pytest.fixture(scope="module", params=PRECISIONS)
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp(request.param), request.param)


@pytest.mark.slow
def test_killed_stages_end_as_undisturbed_ones(bench: Bench) -> None:
    tally = kill_stages(bench, 30, random.Random(SEED))
    assert tally.clean, report(tally)
    assert sum(tally.injected.values()) >= 30
    assert tally.resumed > 0


@pytest.mark.slow
def test_failing_writes_lose_nothing(bench: Bench) -> None:
    tally = fail_writes(bench, 12, random.Random(SEED))
    assert tally.clean, report(tally)
    assert sum(tally.injected.values()) > 0


@pytest.mark.slow
def test_a_disk_that_runs_full_loses_nothing(bench: Bench) -> None:
    tally = fill_disks(bench, 4, random.Random(SEED))
    if not tally.injected:
        pytest.skip("mounting a small file system needs root")
    assert tally.clean, report(tally)


@pytest.mark.slow
def test_a_killed_workflow_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    pytest.importorskip("snakemake", reason="the workflow needs Snakemake; the library does not")
    tally = kill_workflow(tmp_path, 1, random.Random(SEED))
    assert tally.clean, report(tally)
    assert sum(tally.injected.values()) > 0
