"""The paper's numbers, compared with a study's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from viny.evidence.paper.claims import cell_in_words, images_in_words
from viny.evidence.paper.comparisons import CONTRADICTED, LEVEL, ONE_SEED, POINT, POINTS, REPRODUCED, UNTESTABLE
from viny.evidence.paper.facts import NAMES, REGIMES, ROUNDING, paper_facts
from viny.evidence.tables import GROUP

SHARE = 0.1  # what `POINT` is for other numbers, for a variance: a share of the paper's value
INCOMPARABLE = "the study's model, data or lengths differ from the paper's"


def is_number(tidy: pd.DataFrame) -> pd.Series:
    return tidy["measure"].str.startswith("number_")


def number_rows(tidy: Mapping[str, pd.DataFrame], comparable: bool | str) -> list[dict[str, Any]]:
    """One row per number of the paper; protocols in the order of `PROTOCOLS`."""
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
            name: _judge(fact, ours, comparable, "" if ours else _absent(numbers[name], fact))
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


def _judge(fact: Any, ours: Mapping[str, float] | None, comparable: bool | str, absent: str) -> dict[str, Any]:
    """Difference, standard errors, verdict and reason for a number.

    Args:
        fact: a row of `paper_facts`.
        ours: mean, std (ddof = 1; NaN for one seed), count; None if the study has no such cell.
        comparable: as for `scorecard`.
        absent: why `ours` is None.
    """
    if comparable is not True:
        return {"verdict": UNTESTABLE, "reason": comparable or INCOMPARABLE}
    if ours is None:
        return {"verdict": UNTESTABLE, "reason": absent}
    mean, sd, n = ours["mean"], ours["std"], int(ours["count"])
    difference = mean - fact.mean
    if n < 2:
        return {"difference": difference, "verdict": UNTESTABLE, "reason": ONE_SEED}
    allowed, beyond = POINT, difference
    if np.isnan(fact.spread):  # one encoder, whose spread is taken to be ours
        error = sd * np.sqrt(1 / n + 1)
        # The paper prints few digits: a difference that rounding explains does not count.
        beyond = np.sign(difference) * max(abs(difference) - ROUNDING[fact.metric], 0.0)
        p = 2 * stats.t.sf(abs(beyond) / error, n - 1) if error else float(not beyond)
        if fact.metric.endswith("variance"):
            allowed = SHARE * fact.mean
    else:
        error = np.hypot(sd / np.sqrt(n), fact.spread / np.sqrt(fact.runs))
        p = stats.ttest_ind_from_stats(mean, sd, n, fact.mean, fact.spread, fact.runs, equal_var=False).pvalue
    variance = fact.metric.endswith("variance")
    apart = f"{abs(difference):.2g}" if variance else f"{100 * abs(difference):.2f} points"
    margin = f"{100 * SHARE:.0f} % of it" if variance else "1 point"
    side = "above" if difference > 0 else "below"
    if p < 1 - LEVEL:
        verdict, reason = CONTRADICTED, f"{apart} {side}, more than noise explains (p = {p:.2g})"
    elif abs(beyond) <= allowed:
        verdict, reason = REPRODUCED, f"{apart} {side}: no more than {margin}, and noise explains it (p = {p:.2g})"
    else:
        verdict, reason = UNTESTABLE, f"{apart} {side}: more than {margin}, but noise may explain it (p = {p:.2g})"
    errors = difference / error if error else np.nan
    return {"difference": difference, "standard_errors": errors, "verdict": verdict, "reason": reason}
