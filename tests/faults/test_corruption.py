"""Every file of a finished study, corrupted in every way, is named by verify, and nothing sound is.

What does not belong to a study is noticed without Snakemake's records.
"""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("jsonschema")

from corruption import CORRUPTIONS, corrupt_study, study_to_corrupt
from lost_records import WHAT, mix

from viny.tools.verify.verifier import verify_study


@pytest.mark.slow
def test_every_corruption_of_every_file_is_named_once_at_its_file(tmp_path: Path) -> None:
    root = study_to_corrupt(tmp_path)
    assert [str(finding) for finding in verify_study(root).findings] == []
    outcome = corrupt_study(root, seed=0)
    assert outcome.unnoticed == []
    assert outcome.condemned == []
    assert {name for _, name in outcome.corrupted} == set(CORRUPTIONS)
    assert outcome.kinds > 37
    assert [str(finding) for finding in verify_study(root).findings] == []  # all was put back


@pytest.mark.slow
def test_what_is_of_other_settings_or_images_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = mix(tmp_path)
    assert found.unnoticed == []
    assert set(WHAT) < set(found.mixed) and min(found.mixed.values()) >= 9
    # Only arrays beside a sound record are left for verify, which reads them.
    assert found.by_verify.keys() - {kind for kind, n in found.by_verify.items() if not n} <= {list(WHAT)[2]}
