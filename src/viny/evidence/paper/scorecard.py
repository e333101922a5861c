"""The scorecard: the paper's numbers and its claims in words, compared with a study.

A claim is a testable predicate over cells. It needs the structure of the paper's grid (some pre-training, an
intermediate task, several label sizes), not its sizes, so any study can test it, and so can the paper's own numbers.

There are three verdicts, for claims and numbers alike:

reproduced: every comparison of a claim has its 95 % t interval on the claim's side (intersection-union test, Berger
1982: no correction is needed). A number is no more than a point away, and Welch's t test does not tell the two apart.

contradicted: the mean of a claim's comparisons has its interval wholly on the other side, or one comparison does after
Bonferroni's correction over all of them; without the correction, a true claim over many comparisons would often be
contradicted by chance. A number is one that Welch's t test (two-sided, 5 %) tells from the paper's.

not testable with this study: anything else, with the reason.

Metrics are fractions in [0, 1] in frames and CSV, percent or percentage points in Markdown.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from viny.evidence.paper.claims import CLAIMS, claims_on_paper
from viny.evidence.paper.comparisons import POINT, POINTS, REPRODUCED, VERDICTS, Cells
from viny.evidence.paper.facts import ROUNDING, SPATIAL
from viny.evidence.paper.numbers import SHARE, is_number, number_rows
from viny.evidence.tables import KEYS, read_metrics, to_markdown, write_csv
from viny.runtime.errors import InputError
from viny.runtime.files import write_text
from viny.runtime.text import markdown

PROTOCOLS = ("paper", "sound")  # a verdict is about the first that can tell
GEOMETRY = ["within_image_variance", "across_image_variance", "probe_paper", "probe_accuracy", "within_share"]

COLUMNS = [
    *("kind", "key", "table", "what", "value_is", "unit", "paper", "paper_spread", "paper_low", "paper_high"),
    *("ours_paper", "ours_paper_sd", "ours_paper_low", "ours_paper_high", "n_paper"),
    *("ours_sound", "ours_sound_sd", "ours_sound_low", "ours_sound_high", "n_sound"),
    *("protocol", "difference", "standard_errors", "verdict", "reason"),
    *("under_paper", "under_sound", "paper_verdict", "paper_reason"),
]


def scorecard(
    frames: Mapping[str, pd.DataFrame],
    geometry: Mapping[str, pd.DataFrame] | None = None,
    comparable: bool | str = True,
    spatial: Collection[str] = SPATIAL,
) -> pd.DataFrame:
    """Compare a study with the paper: its claims in words, then its numbers.

    Under both protocols, numbers are compared by the paper's definitions: mIoU averaged over images, if the frame has
    it, and the probe's training accuracy. Claims are tested on the protocol's main mIoU and on its own probe: held out
    under 'sound', training accuracy under 'paper'. A verdict is about protocol 'paper' if that study can tell,
    otherwise about 'sound'.

    The paper does not define its ±; it is taken as the standard deviation of 3 runs. Table 2 has one encoder and no ±;
    it is compared with the 95 % interval in which one more encoder of the study would lie, allowing for its rounding.

    Args:
        frames: what `tables.read_metrics` returns, by protocol ('paper', 'sound'); one or both.
        geometry: what `representations.read_geometry` returns, or its rows of the output layer alone, by protocol.
        comparable: whether numbers can be compared with the paper's: False, or the reason, if model, data or lengths
            differ. Claims are tested all the same.
        spatial: tasks whose target is each patch; they stand for version 2's spatial supervision.

    Returns:
        `COLUMNS`, one row per claim and one per number. kind is 'claim' or 'number'; table is the paper's table or
        section; unit applies to all values. For a number, `paper` and `ours_*` are means over runs with their standard
        deviation (ddof = 1) and, for ours, the mean's 95 % t interval; `standard_errors` is the difference (ours minus
        the paper's) over the root of the sum of both squared standard errors. For a claim they are the estimate and its
        95 % interval, positive where the claim holds. `protocol` says which of ours `verdict`, `reason` and
        `difference` are about; `under_paper` and `under_sound` are the verdicts of each, empty if not given.
        `paper_verdict` says whether the paper's own numbers support its claim.

    Raises:
        InputError: no frame, an unknown protocol, a frame of another protocol, a missing column or a cell given twice.
    """
    geometry = geometry or {}
    if not frames:
        raise InputError("no frames given for the scorecard; pass the metrics of one study at least")
    for name in (*frames, *geometry):
        if name not in PROTOCOLS:
            raise InputError(f"unknown protocol '{name}' of the scorecard; known are {', '.join(PROTOCOLS)}")
        if name not in frames:
            raise InputError(f"geometry of protocol '{name}' has no metrics beside it; pass that study's frame too")
    given = [name for name in PROTOCOLS if name in frames]
    tidy = {name: _tidy(frames[name], geometry.get(name), name) for name in given}
    rows = [*_claim_rows(tidy, spatial), *number_rows(tidy, comparable)]
    table = pd.DataFrame(rows, columns=COLUMNS)
    words = [c for c in COLUMNS if c in ("protocol", "under_paper", "under_sound", "paper_verdict", "paper_reason")]
    counts = {name: "Int64" for name in ("n_paper", "n_sound")}
    return table.astype(counts | dict.fromkeys(words, object)).fillna(dict.fromkeys(words, ""))


def _tidy(frame: pd.DataFrame, geometry: pd.DataFrame | None, protocol: str) -> pd.DataFrame:
    """A study's measures in one tidy frame: measure, `KEYS`, value; those of encoders have finetune_size 0."""
    _need(frame, [*KEYS, "miou", "pixel_accuracy"], f"the metrics of protocol '{protocol}'", protocol)
    as_paper = "miou_per_image" if "miou_per_image" in frame else "miou"
    cells = frame[KEYS].assign(miou=frame["miou"], number_miou=frame[as_paper], number_accuracy=frame["pixel_accuracy"])
    parts = [cells.melt(KEYS, var_name="measure")]
    if geometry is not None:
        name = f"the geometry metrics of protocol '{protocol}'"
        if "layer_name" in geometry:
            geometry = geometry[geometry["layer_name"] == "output"]
        if geometry.empty:  # to treat this as 'not measured' would hide a mistake
            raise InputError(f"{name} hold no row of the output layer; pass all layers, or leave the protocol out")
        _need(geometry, ["kind", *KEYS, *GEOMETRY], name, protocol, ["kind", *KEYS])
        encoders = geometry[geometry["kind"] != "finetuned"]
        across = encoders["across_image_variance"]
        measures = encoders[KEYS].assign(
            finetune_size=0,
            log2_across=np.log2(across.where(across > 0)),
            within_share=encoders["within_share"],
            probe=encoders["probe_paper" if protocol == "paper" else "probe_accuracy"],
            **{f"number_{metric}": encoders[metric] for metric in ROUNDING},
        )
        _need(measures, KEYS, name, protocol)
        parts.append(measures.melt(KEYS, var_name="measure"))
    return pd.concat(parts, ignore_index=True).dropna(subset="value")


def _need(
    frame: pd.DataFrame, columns: Sequence[str], name: str, protocol: str, keys: Sequence[str] = tuple(KEYS)
) -> None:
    """Refuse a frame that lacks columns, is of another protocol or of several studies, or holds a row twice."""
    missing = [column for column in columns if column not in frame]
    if missing:
        raise InputError(f"{name} lack column '{missing[0]}'; pass the frame as it was read, with all of its columns")
    if "protocol" in frame and (frame["protocol"] != protocol).any():
        found = ", ".join(sorted(set(frame["protocol"])))
        raise InputError(f"{name} are of protocol {found}; pass each study's frame under its own protocol")
    if "study" in frame and frame["study"].nunique() > 1:
        found = ", ".join(sorted(set(frame["study"])))
        raise InputError(f"{name} are of several studies ({found}); pass one study a protocol")
    twice = frame.duplicated(list(keys))
    if twice.any():
        key = ", ".join(f"{name} {value}" for name, value in frame.loc[twice, list(keys)].iloc[0].items())
        raise InputError(f"{name} hold a row more than once: {key}; keep one of each")


def _claim_rows(tidy: Mapping[str, pd.DataFrame], spatial: Collection[str]) -> list[dict[str, Any]]:
    """One row per claim; protocols in the order of `PROTOCOLS`."""
    evidence = {name: Cells.of(frame[~is_number(frame)], spatial) for name, frame in tidy.items()}
    published = claims_on_paper().set_index("key")
    rows = []
    for claim in CLAIMS:
        outcomes = {name: claim.test(cells) for name, cells in evidence.items()}
        head = next((name for name, outcome in outcomes.items() if outcome.comparisons), next(iter(outcomes)))
        paper = published.loc[claim.key]
        row: dict[str, Any] = {
            **{"kind": "claim", "key": claim.key, "table": claim.source, "unit": claim.unit},
            **{"what": claim.words, "value_is": claim.estimate_is},
            **{"paper": paper["estimate"], "paper_low": paper["low"], "paper_high": paper["high"]},
            **{"paper_verdict": paper["verdict"], "paper_reason": paper["reason"]},
            **{"protocol": head, "verdict": outcomes[head].verdict, "reason": outcomes[head].reason},
        }
        for name, outcome in outcomes.items():
            row |= {
                f"ours_{name}": outcome.estimate,
                f"ours_{name}_low": outcome.low,
                f"ours_{name}_high": outcome.high,
            }
            row |= {f"n_{name}": outcome.n, f"under_{name}": outcome.verdict}
        rows.append(row)
    return rows


def write_scorecard(
    metric_paths_by_protocol: Mapping[str, Iterable[str | Path]],
    geometry_by_protocol: Mapping[str, pd.DataFrame] | None,
    out_dir: str | Path,
    comparable: bool | str = True,
    spatial: Collection[str] = SPATIAL,
) -> None:
    """Write scorecard.csv and scorecard.md.

    Args:
        metric_paths_by_protocol: JSON files of one study's cells, by protocol.
        geometry_by_protocol: see `scorecard`.
        out_dir: folder for both; made if missing.
        comparable: see `scorecard`.
        spatial: see `scorecard`.

    Raises:
        InputError: as for `tables.read_metrics` and `scorecard`.
    """
    frames = {name: read_metrics(paths) for name, paths in metric_paths_by_protocol.items()}
    table = scorecard(frames, geometry_by_protocol, comparable, spatial)
    about = {
        f"{column}_{name}": frames[name][column].iloc[0]
        for name in PROTOCOLS
        if name in frames
        for column in ("study", "note")
    }
    write_csv(table.assign(**about), Path(out_dir) / "scorecard.csv")
    write_text(Path(out_dir) / "scorecard.md", _markdown(table, frames))


READING = (
    "A claim is reproduced where the 95 % t interval over seeds of every comparison is on its side (an intersection-"
    "union test), contradicted where that of their mean, or of one after Bonferroni's correction, is on the other. "
    "Estimates are of the comparison that decides, positive where the claim holds.\n\nA number is reproduced where it "
    f"is no more than {100 * POINT:.0f} point (of a variance, {100 * SHARE:.0f} %) from the paper's and Welch's t test "
    "does not tell the two apart (5 %), contradicted where it does: by chance, about one in 20 true numbers at most. ± "
    "is a standard deviation over seeds (ddof = 1). The paper does not define its own; it is taken as of 3 runs; "
    "Table 2 of v2 has none. Numbers are mIoU averaged over images, as in the paper. A verdict is about protocol paper "
    "where that study has the cells, else about sound."
)


def _markdown(table: pd.DataFrame, frames: Mapping[str, pd.DataFrame]) -> str:
    """The scorecard as a page: counts, claims, numbers by table."""
    given = [name for name in PROTOCOLS if name in frames]
    parts = ["# Scorecard against the paper", _counts(table)]
    for name in given:
        first = frames[name].iloc[0]
        parts.append(f"Protocol {name}: study {markdown(first['study'])}. {markdown(first['note'])}".strip())
    parts.append(READING)
    claims = table[table["kind"] == "claim"]
    parts.append("## Claims")
    words = [f"{what} ({value_is})" for what, value_is in zip(claims["what"], claims["value_is"], strict=True)]
    shown = pd.DataFrame({"Claim (estimate)": words, "Source": claims["table"], "Verdict": claims["verdict"]})
    for name in given:
        shown[f"Estimate, {name}"] = [
            _estimate(*values) for values in _columns(claims, f"ours_{name}", f"ours_{name}_low", f"ours_{name}_high")
        ]
    if len(given) > 1:
        shown["Verdict under sound"] = claims["under_sound"]
    shown["Why"] = claims["reason"]
    shown["The paper's own numbers"] = claims["paper_verdict"]
    shown["Their estimate"] = [_estimate(*values) for values in _columns(claims, "paper", "paper_low", "paper_high")]
    parts.append(to_markdown(shown).strip())
    numbers = table[table["kind"] == "number"]
    for name, rows in numbers.groupby("table", sort=False):
        shown = pd.DataFrame({"What": rows["what"]})
        shown["Paper"] = [_value(*values) for values in _columns(rows, "paper", "paper_spread")]
        for protocol in given:
            values = _columns(rows, f"ours_{protocol}", f"ours_{protocol}_sd")
            shown[f"Ours, {protocol}"] = [_value(*v) for v in values]
            shown[f"Seeds, {protocol}"] = ["" if pd.isna(n) else str(n) for n in rows[f"n_{protocol}"]]
        if len(given) > 1:
            shown["Compared"] = rows["protocol"]
        shown["Difference"] = [
            _signed(unit, value) for unit, value in zip(rows["unit"], rows["difference"], strict=True)
        ]
        shown["Standard errors"] = ["" if pd.isna(x) else f"{x:+.1f}" for x in rows["standard_errors"]]
        shown["Verdict"], shown["Why"] = rows["verdict"], rows["reason"]
        parts += [f"## {name}", to_markdown(shown).strip()]
    return "\n\n".join(parts) + "\n"


def _counts(table: pd.DataFrame) -> str:
    """The opening line: how many of each verdict."""

    def counted(kind: str, words: str) -> str:
        found = table.loc[table["kind"] == kind, "verdict"]
        counts = ", ".join(f"{(found == verdict).sum()} {verdict}" for verdict in VERDICTS)
        return f"{len(found)} {words}: {counts}."

    own = (table["paper_verdict"] == REPRODUCED).sum()
    return f"{counted('claim', 'claims')} The paper's own numbers support {own}. {counted('number', 'numbers')}"


def _columns(table: pd.DataFrame, *names: str) -> Iterable[tuple]:
    """The unit and some columns, row by row."""
    return table[["unit", *names]].itertuples(index=False, name=None)


def _value(unit: str, mean: float, sd: float) -> str:
    """Mean and standard deviation in percent; a variance as it is."""
    if pd.isna(mean):
        return ""
    factor, digits = (100, 2) if unit == POINTS else (1, 3)
    spread = "" if pd.isna(sd) else f" ± {factor * sd:.{digits}f}"
    return f"{factor * mean:.{digits}f}{spread}{' %' if unit == POINTS else ''}"


def _signed(unit: str, value: float) -> str:
    if pd.isna(value):
        return ""
    return f"{100 * value:+.2f} points" if unit == POINTS else f"{value:+.3f}"


def _estimate(unit: str, estimate: float, low: float, high: float) -> str:
    """An estimate with its 95 % interval and its unit; fractions as percentage points."""
    if pd.isna(estimate):
        return ""
    factor = 100 if unit.startswith(POINTS) else 1
    interval = "" if pd.isna(low) else f" [{factor * low:+.2f}, {factor * high:+.2f}]"
    return f"{factor * estimate:+.2f}{interval} {unit.replace(POINTS, 'points', 1)}"
