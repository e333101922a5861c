"""One Slurm cluster for all tests here, and clones of the repository that run studies on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from clone import Clone, slow_study
from cluster import Cluster, NoSlurmError, install


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes of two CPUs and two fake GPUs each."""
    try:
        install()
    except NoSlurmError as error:
        pytest.skip(str(error))
    with Cluster() as running:
        yield running


@pytest.fixture(scope="session")
def slow_local(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """Six cells of a few seconds each, run to the end without Slurm."""
    clone = Clone.new(tmp_path_factory.mktemp("local") / "clone", slow_study(range(6)))
    clone.run("--cores", "2")
    return clone


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "clone"
