"""The paper's numbers, compared with a study's by equivalence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from viny.evidence.paper.claims import cell_in_words, images_in_words
from viny.evidence.paper.comparisons import POINT, POINTS
from viny.evidence.paper.facts import NAMES, REGIMES, ROUNDING, paper_facts
from viny.evidence.paper.words import CONTRADICTED, INCOMPARABLE, REPRODUCED, UNDECIDED, UNTESTABLE
from viny.evidence.statistics.crossed import LEVEL, Estimates, estimates
from viny.evidence.tables import GROUP

SHARE = 0.1  # what `POINT` is for other numbers, for a variance: a share of the paper's value
TWO_ONE_SIDED = 0.90  # level of the interval that has to lie within the margin: two tests at 5 % each
DRAWS = 1000  # of further seeds
SHOWN = 3  # differences that a reason lists
ONE_SEED = "one seed has no spread"


def is_number(tidy: pd.DataFrame) -> pd.Series:
    return tidy["measure"].str.startswith("number_")


def number_rows(
    tidy: Mapping[str, pd.DataFrame], differences: Mapping[str, Mapping[str, list[str]]]
) -> list[dict[str, Any]]:
    """One row per number of the paper; protocols in the order of `tidy`.

    Args:
        tidy: a study's measures, by protocol.
        differences: see `scorecard`.
    """
    numbers = {name: frame[is_number(frame)] for name, frame in tidy.items()}
    observed = {
        name: frame.groupby(["measure", *GROUP])["value"].agg(["mean", "std", "count"]).to_dict("index")
        for name, frame in numbers.items()
    }
    rows = []
    for fact in paper_facts().itertuples(index=False):
        cell = (int(fact.pretrain_size), str(fact.intermediate), int(fact.finetune_size))
        found = {name: table.get((f"number_{fact.metric}", *cell)) for name, table in observed.items()}
        head = next((name for name, ours in found.items() if ours), next(iter(found)))
        judged = {
            name: _judge(fact, ours, differences[name][fact.table], "" if ours else _absent(numbers[name], fact))
            for name, ours in found.items()
        }
        variance = fact.metric.endswith("variance")
        row: dict[str, Any] = {
            **{"kind": "number", "table": f"Table {fact.table}{' of v2' if fact.table == '2' else ''}"},
            "key": "/".join(map(str, (fact.table, *cell, fact.metric))),
            **{"what": _number_words(fact), "value_is": "mean over runs"},
            **{"unit": "variance" if variance else POINTS, "paper": fact.mean, "paper_spread": fact.spread},
            **{"protocol": head, **judged[head]},
        }
        for name, ours in found.items():
            row[f"under_{name}"] = judged[name]["verdict"]
            if ours:
                mean, sd, n = ours["mean"], ours["std"], int(ours["count"])
                half = stats.t.ppf((1 + LEVEL) / 2, n - 1) * sd / np.sqrt(n)
                row |= {f"ours_{name}": mean, f"ours_{name}_sd": sd, f"n_{name}": n}
                row |= {f"ours_{name}_low": mean - half, f"ours_{name}_high": mean + half}
        rows.append(row)
    return rows


def _number_words(fact: Any) -> str:
    name = NAMES.get(fact.metric, fact.metric.replace("_image_variance", "-image variance"))
    if fact.table == "2":
        return f"{name}, {REGIMES[fact.intermediate]}"
    return f"{name}, {cell_in_words(fact.pretrain_size, fact.finetune_size, fact.intermediate)}"


def _absent(numbers: pd.DataFrame, fact: Any) -> str:
    """Which of a fact's keys the study does not have."""
    mine = numbers[numbers["measure"] == f"number_{fact.metric}"]
    if fact.table == "2" and mine.empty:
        return "the geometry was not measured"
    kind = "encoder" if fact.table == "2" else "cell"
    parts = [
        (
            "pretrain_size",
            f"{kind} of {images_in_words(fact.pretrain_size)}" if fact.pretrain_size else f"{kind} without any",
        ),
        ("intermediate", f"{kind} with task {fact.intermediate}"),
        ("finetune_size", f"{kind} of {fact.finetune_size:,} labels"),
    ]
    for key, words in parts:
        if not (mine[key] == getattr(fact, key)).any():
            return f"no {words}"
    return f"no {kind} with all of {cell_in_words(fact.pretrain_size, fact.finetune_size, fact.intermediate)}"


def _judge(fact: Any, ours: Mapping[str, float] | None, differences: list[str], absent: str) -> dict[str, Any]:
    """Difference, its interval, verdict and reason for a number.

    Args:
        fact: a row of `paper_facts`.
        ours: mean, std (ddof = 1; NaN for one seed), count; None if the study has no such cell.
        differences: what sets the study apart from the paper's.
        absent: why `ours` is None.
    """
    if ours is None:
        return {"verdict": UNTESTABLE, "reason": absent}
    mean, sd, n = ours["mean"], ours["std"], int(ours["count"])
    difference = mean - fact.mean
    if differences:
        return {"difference": difference, "verdict": INCOMPARABLE, "reason": shortened(differences)}
    if n < 2:
        return {"difference": difference, "verdict": UNDECIDED, "reason": ONE_SEED}
    variance = fact.metric.endswith("variance")
    # The paper prints few digits of Table 2: a difference that rounding explains does not count.
    margin = (SHARE * fact.mean if variance else POINT) + ROUNDING.get(fact.metric, 0.0)
    found = _difference(fact, difference, sd, n)
    same, apart = (bool(value[()]) for value in told(fact, difference, sd, n, margin))
    within = f"{100 * SHARE:.0f} % of it" if variance else f"{100 * POINT:.0f} point"
    within += ", allowing for rounding" if fact.metric in ROUNDING else ""
    low, high = float(found.low), float(found.high)
    out = {"difference": difference, "difference_low": low, "difference_high": high}
    out["standard_errors"] = difference / float(found.se) if found.se else np.nan
    if same:
        return out | {"verdict": REPRODUCED, "reason": f"the same within {within}"}
    if apart:
        return out | {"verdict": CONTRADICTED, "reason": f"more than {within} apart"}
    chance = _chance(fact, mean, sd, n, margin)
    more = f"{2 * n} seeds would decide it with a chance of {100 * chance:.0f} %"
    return out | {
        "verdict": UNDECIDED,
        "reason": f"whether within {within}: {n} seeds leave it open; {more}",
        "chance": chance,
    }


def shortened(differences: list[str]) -> str:
    more = f" and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
    return "; ".join(differences[:SHOWN]) + more


def told(fact: Any, difference: Any, sd: Any, n: int, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """Whether a number is shown to be the paper's within a margin, and whether it is shown not to be.

    The first are two one-sided tests at 5 % each (Schuirmann 1987): the 90 % interval of the difference lies within the
    margin. The second: its 95 % interval lies wholly outside. Standard errors are Welch's (1947).

    Args:
        fact: a row of `paper_facts`: metric, spread, runs.
        difference: ours minus the paper's; one or several.
        sd: standard deviation of our seeds (ddof = 1); as many.
        n: number of seeds.
        margin: in the number's unit.
    """
    narrow, wide = (_difference(fact, difference, sd, n, level) for level in (TWO_ONE_SIDED, LEVEL))
    same = (narrow.low > -margin) & (narrow.high < margin)
    return same, (wide.low > margin) | (wide.high < -margin)


def _difference(fact: Any, difference: Any, sd: Any, n: int, level: float = LEVEL) -> Estimates:
    """The difference from the paper's with Welch's interval.

    The paper's ± is the standard deviation of its runs. Table 2 has one encoder and no ±; its spread is taken to be
    ours.
    """
    ours, difference = np.square(np.asarray(sd, float)), np.asarray(difference, float)
    if np.isnan(fact.spread):
        return estimates(difference, ours * (1 / n + 1), np.zeros(()), np.array(n), np.array(2), level)
    theirs = np.array(fact.spread**2 / fact.runs)
    return estimates(difference, ours / n, theirs, np.array(n), np.array(int(fact.runs)), level)


def _chance(fact: Any, mean: float, sd: float, n: int, margin: float) -> float:
    """The chance that twice the seeds decide a number either way, given ours (a predictive probability)."""
    rng = np.random.default_rng(0)
    spread = sd * np.sqrt((n - 1) / rng.chisquare(n - 1, DRAWS))
    truth = mean + rng.standard_normal(DRAWS) * spread / np.sqrt(n)
    later = truth[:, None] + rng.standard_normal((DRAWS, n)) * spread[:, None]
    both = (mean + later.mean(1)) / 2
    squares = (n - 1) * sd**2 + n * (mean - both) ** 2 + ((later - both[:, None]) ** 2).sum(1)
    same, apart = told(fact, both - fact.mean, np.sqrt(squares / (2 * n - 1)), 2 * n, margin)
    return float((same | apart).mean())
