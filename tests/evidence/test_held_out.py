"""The held-out loss of pre-training: made curves get the verdict that they were made for."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from viny.evidence.statistics.held_out import HELD_OUT, held_out_table, read_curves
from viny.runtime.errors import InputError

EPOCHS = np.arange(1, 101)


def made(shape, seeds=3, noise=0.0005, every=5, size=4000, seed=0, lr=None):
    rng = np.random.default_rng(seed)
    curves = {}
    for number in range(seeds):
        loss = shape(EPOCHS) + rng.normal(0, noise, len(EPOCHS)) + rng.normal(0, 0.01)
        curve = pd.DataFrame({"epoch": EPOCHS, "loss": loss, "lr": 1e-3 if lr is None else lr})
        curves[size, number] = curve.assign(held_out_loss=np.where(EPOCHS % every == 0, loss, np.nan))
    return curves


def only(curves):
    (row,) = held_out_table(curves).to_dict("records")
    return row


def test_a_falling_loss_asks_for_more_epochs_and_says_how_much_a_tenth_brings():
    row = only(made(lambda e: 0.8 - 0.002 * e))
    assert (row["verdict"], row["epoch_lowest"], row["n"]) == ("falling", 100, 3)
    assert row["slope_low"] < -0.002 * 10 / 0.6 < row["slope_high"]
    assert "still falling" in row["words"] and "go on longer" in row["words"]


def test_a_loss_that_rose_says_where_to_stop():
    row = only(made(lambda e: 0.6 + 0.00003 * (e - 50) ** 2))
    assert row["verdict"] == "rising"
    assert abs(row["epoch_lowest"] - 50) <= 10
    assert f"epoch {row['epoch_lowest']} of 100" in row["words"]


def test_a_loss_that_rose_and_stayed_up_rose():
    row = only(made(lambda e: np.where(e < 40, 0.6, 0.65)))
    assert row["verdict"] == "rising" and row["epoch_lowest"] < 40
    assert row["rise_low"] < 0.05 / 0.6 < row["rise_high"]


def test_a_level_loss_is_flat_and_a_noisy_one_cannot_be_told():
    assert only(made(lambda e: 0.6 + 0 * e))["verdict"] == "flat"
    row = only(made(lambda e: 0.6 + 0 * e, noise=0.1))
    assert row["verdict"] == "undecided" and "cannot be told" in row["words"]


def test_level_curves_are_seldom_said_to_rise_or_fall():
    """A minimum that is chosen and measured on the same curve would always be lower than the last value."""
    verdicts = [only(made(lambda e: 0.6 + 0 * e, noise=0.02, seed=seed))["verdict"] for seed in range(200)]
    assert verdicts.count("rising") <= 0.08 * 200
    assert verdicts.count("falling") <= 0.06 * 200


def test_a_fall_by_the_learning_rate_is_not_taken_for_one_that_goes_on():
    dropped = EPOCHS > 80
    row = only(made(lambda e: np.where(e > 80, 0.55, 0.6), lr=np.where(dropped, 1e-4, 1e-3)))
    assert row["verdict"] == "flat"


def test_one_seed_has_no_interval_and_no_verdict():
    row = only(made(lambda e: 0.8 - 0.002 * e, seeds=1))
    assert row["verdict"] == "undecided" and np.isnan(row["slope_low"]) and "no interval" in row["words"]


def test_sizes_stand_in_order_and_curves_without_the_column_are_left_out():
    falling = {**made(lambda e: 0.8 - 0.002 * e, size=8000), **made(lambda e: 0.7 + 0 * e, size=2000)}
    bare = {(500, 0): pd.DataFrame({"epoch": EPOCHS, "loss": 1.0})}
    assert list(held_out_table({**falling, **bare})["pretrain_size"]) == [2000, 8000]
    empty = held_out_table(bare)
    assert empty.empty and list(empty) == HELD_OUT


def test_a_loss_that_is_no_number_names_its_training(tmp_path):
    curves = made(lambda e: 0.7 + 0 * e)
    curves[4000, 1].loc[9, "held_out_loss"] = -1.0
    with pytest.raises(InputError, match="4,000 images with seed 1"):
        held_out_table(curves)
    (tmp_path / "curve.csv").write_bytes(b"")
    with pytest.raises(InputError, match=r"curve\.csv"):
        read_curves({(4000, 0): tmp_path / "curve.csv"})
    assert read_curves({(4000, 0): tmp_path / "none.csv"}) == {}
