"""Sealed JSON: a file that holds a hash of everything else in it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from viny.runtime.errors import InputError
from viny.runtime.files import broken_seal, digest, json_text, read_sealed, seal_of, write_json, write_sealed

VALUE = {"a": 1, "b": {"c": [0.1, None, "x"]}, "other_sha256": "0" * 64}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_sealed(path, VALUE)
    assert read_sealed(path, "a record") == {**VALUE, "sha256": digest(VALUE)}
    write_sealed(path, read_sealed(path, "a record"))  # sealing again changes nothing
    assert path.read_text() == json_text({**VALUE, "sha256": digest(VALUE)})


def test_a_changed_value_or_seal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_sealed(path, VALUE)
    text = path.read_text()
    for before, after in (('"a": 1', '"a": 2'), ("0.1", "0.2"), ("null", "NaN"), ('"sha256": "', '"sha256": "f')):
        assert before in text
        path.write_text(text.replace(before, after, 1))
        said = (
            r"not valid JSON \(the number NaN"
            if after == "NaN"
            else r"changed since it was written \(its sha256 differs\)"
        )
        with pytest.raises(InputError, match=rf"a\.json: {said}.*; delete it"):
            read_sealed(path, "a record")


def test_a_seal_whose_name_is_damaged_is_no_older_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_sealed(path, VALUE)
    path.write_text(re.sub('"sha256"', '"sha257"', path.read_text()))
    with pytest.raises(InputError, match="changed since"):
        read_sealed(path, "a record")


def test_files_of_before_there_were_seals_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, VALUE)
    assert read_sealed(path, "a record") == VALUE


NUMBERS = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
ANY = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), ANY, max_size=5))
def test_any_mapping_survives_and_any_change_breaks_the_seal(value: dict) -> None:
    value.pop("sha256", None)
    sealed = json.loads(json_text({**value, "sha256": seal_of(value)}))
    assert not broken_seal(sealed)
    assert broken_seal({**sealed, "further": 1})
    for key in value:
        assert broken_seal({k: v for k, v in sealed.items() if k != key})
