"""Numbers as people would write them."""

from __future__ import annotations

import numpy as np

from viny.runtime import units


def test_counts_have_their_noun_and_separators() -> None:
    assert [units.counted(n, "seed") for n in (0, 1, 2000)] == ["0 seeds", "1 seed", "2,000 seeds"]
    assert units.counted(np.int64(3), "seed") == "3 seeds"


def test_test_images_are_named_with_their_groups() -> None:
    assert units.tested_words([51, 51], 9) == "51 test images of 9 groups"
    assert units.tested_words([1051, 51]) == "51 or 1,051 test images"
