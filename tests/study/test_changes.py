"""Changes of resolved settings, and what follows from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from viny.runtime.errors import InputError
from viny.study.changes import as_written, changed
from viny.study.config import merge, resolve
from viny.study.reading import read_config

HOME = Path(__file__).parents[2]
STUDIES = [HOME / "config.yaml", *sorted(HOME.glob("studies/*.yaml")), *sorted(HOME.glob("examples/*.yaml"))]
STUDIES += [HOME / "tests" / "tiny.yaml", HOME / "tests" / "arms.yaml"]
CHANGES: list[dict[str, Any]] = [
    {"protocol": "paper"},
    {"data_root": "elsewhere"},
    {"pretrain": {"crop_scale": 0.3}},
    {"grid": {"seeds": [5, 6]}},
    {"finetune": {"epochs": 500}},
]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_saved_study_takes_a_change_as_its_file_does(path: Path) -> None:
    """Settings that were derived, such as sizes of packs, follow those that they were derived from."""
    raw = read_config(path)
    config = resolve(raw)
    assert resolve(as_written(config)) == config
    for change in [*CHANGES, {"model": {"image_size": 2 * config["model"]["image_size"]}}]:
        try:
            wanted = resolve(merge(raw, change))
        except InputError as error:
            with pytest.raises(InputError) as refused:
                changed(config, change)
            assert str(refused.value) == str(error)
        else:
            assert changed(config, change) == wanted


def test_what_a_file_says_itself_stays() -> None:
    """A value that nothing was derived from is the user's own."""
    config = resolve(merge(read_config(HOME / "tests" / "tiny.yaml"), {"pretrain": {"pack_size": 80}}))
    assert changed(config, {"model": {"image_size": 48}})["pretrain"]["pack_size"] == 80
    own = resolve(merge(read_config(HOME / "tests" / "tiny.yaml"), {"switches": {"miou": "per_image"}}))
    assert changed(own, {"protocol": "sound"})["switches"]["miou"] == "per_image"
