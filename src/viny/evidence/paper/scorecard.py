"""The scorecard: the paper's numbers and its claims in words, compared with a study.

A claim is a testable predicate over cells. It needs the structure of the paper's grid (some pre-training, an
intermediate task, several label sizes), not its sizes, so any study can test it, and so can the paper's own numbers.
What is found of claims, and in which words, is in `viny.evidence.paper.words`; the tests are
`viny.evidence.paper.comparisons.everywhere` and, for numbers, `viny.evidence.paper.numbers.told`.

Metrics are fractions in [0, 1] in frames and CSV, percent or percentage points in Markdown.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from viny.evidence.paper.claims import CLAIMS, claims_on_paper
from viny.evidence.paper.comparisons import POINT, POINTS, Cells
from viny.evidence.paper.facts import ROUNDING, SPATIAL
from viny.evidence.paper.numbers import SHARE, is_number, number_rows
from viny.evidence.paper.words import AUDIT_WORDS, CLAIM_WORDS, CLAIM_WORDS_HERE, NUMBER_WORDS, Found, estimate_in_words
from viny.evidence.statistics.crossed import read_runs
from viny.evidence.tables import KEYS, read_metrics, to_markdown, write_csv
from viny.evidence.verdicts import decide
from viny.runtime.errors import InputError
from viny.runtime.files import write_text
from viny.runtime.text import markdown

PROTOCOLS = ("paper", "sound")  # a verdict is about the first that can tell
COMPARED = ("1", "A2", "A3", "2", "sizes")  # what a study may differ in, see `viny.study.comparable`
GEOMETRY = ["within_image_variance", "across_image_variance", "probe_paper", "probe_accuracy", "local_minus_distant"]

COLUMNS = [
    *("kind", "key", "table", "what", "sentence", "value_is", "unit"),
    *("paper", "paper_spread", "paper_low", "paper_high"),
    *("ours_paper", "ours_paper_sd", "ours_paper_low", "ours_paper_high", "n_paper"),
    *("ours_sound", "ours_sound_sd", "ours_sound_low", "ours_sound_high", "n_sound"),
    *("protocol", "comparable", "difference", "difference_low", "difference_high", "standard_errors"),
    *("comparisons", "in_favour", "verdict", "chance", "reason"),
    *("under_paper", "under_sound", "paper_verdict", "paper_seeds_needed", "paper_reason"),
]


def scorecard(
    frames: Mapping[str, pd.DataFrame],
    geometry: Mapping[str, pd.DataFrame] | None = None,
    differences: Mapping[str, Mapping[str, list[str]]] | None = None,
    spatial: Collection[str] = SPATIAL,
    folders: Mapping[str, Path] | None = None,
    epochs: Mapping[str, tuple[int, int]] | None = None,
) -> pd.DataFrame:
    """Compare a study with the paper: its claims in words, then its numbers.

    Under both protocols, numbers are compared by the paper's definitions: mIoU averaged over images, if the frame has
    it, and the probe's training accuracy. Claims are tested on the protocol's main mIoU and on its own probe: held out
    under 'sound', training accuracy under 'paper'. A verdict is about protocol 'paper' if that study can tell,
    otherwise about 'sound'.

    The paper does not define its ±; it is taken as the standard deviation of 3 runs. Table 2 has one encoder and no ±;
    it is compared with the interval in which one more encoder of the study would lie, allowing for its rounding.

    Args:
        frames: what `tables.read_metrics` returns, by protocol ('paper', 'sound'); one or both.
        geometry: what `representations.read_geometry` returns, or its rows of the output layer alone, by protocol.
        differences: what sets each study apart from the paper's, by protocol, see
            `viny.study.comparable.differences_from_paper`; nothing, unless given. A table with differences has no
            verdicts on its numbers, and claims that rest on it have those of a study that is not the paper's.
        spatial: tasks whose target is each patch; they stand for version 2's spatial supervision.
        folders: of the confusion matrices beside the metrics, by protocol; without, intervals are over seeds alone.
        epochs: of pre-training and of fine-tuning, by protocol; the same unless given.

    Returns:
        `COLUMNS`, one row per claim and one per number. kind is 'claim' or 'number'; table is the paper's table or
        section; sentence is what a claim tests, in the paper's words; unit applies to all values. For a number, `paper`
        and `ours_*` are means over runs with their standard deviation (ddof = 1) and, for ours, the mean's 95 % t
        interval; `standard_errors` is the difference (ours minus the paper's) over its standard error. For a claim they
        are the estimate and its 95 % interval, positive where the claim holds; in_favour says how many of its
        comparisons are decided so. `protocol` says which of ours `verdict`, `reason` and `difference` are about;
        `under_paper` and `under_sound` are the verdicts of each, empty if not given. chance is that of twice the seeds
        to decide what is undecided. `paper_verdict` says whether the paper's own numbers support its claim, and
        `paper_seeds_needed` how many runs would have told, if they do not.

    Raises:
        InputError: no frame, an unknown protocol, a frame of another protocol, a missing column or a cell given twice.
    """
    geometry, differences, folders, epochs = geometry or {}, differences or {}, folders or {}, epochs or {}
    if not frames:
        raise InputError("no frames given for the scorecard; pass the metrics of one study at least")
    for name in (*frames, *geometry):
        if name not in PROTOCOLS:
            raise InputError(f"unknown protocol '{name}' of the scorecard; known are {', '.join(PROTOCOLS)}")
        if name not in frames:
            raise InputError(f"geometry of protocol '{name}' has no metrics beside it; pass that study's frame too")
    given = [name for name in PROTOCOLS if name in frames]
    tidy = {name: _tidy(frames[name], geometry.get(name), name) for name in given}
    nothing: dict[str, list[str]] = {table: [] for table in COMPARED}
    apart = {name: nothing | dict(differences.get(name, {})) for name in given}
    evidence = {}
    for name in given:
        miou = read_runs(frames[name], folders.get(name))
        encoders = tidy[name][~is_number(tidy[name])]
        evidence[name] = Cells.of(miou, encoders, spatial, epochs.get(name, (1, 1)), decide(miou))
    rows = [*_claim_rows(evidence, apart), *number_rows(tidy, apart)]
    table = pd.DataFrame(rows, columns=COLUMNS)
    words = ["protocol", "sentence", "under_paper", "under_sound", "paper_verdict", "paper_reason"]
    counts = dict.fromkeys(("n_paper", "n_sound", "comparisons", "in_favour"), "Int64")
    return table.astype(counts | dict.fromkeys(words, object)).fillna(dict.fromkeys(words, ""))


def _tidy(frame: pd.DataFrame, geometry: pd.DataFrame | None, protocol: str) -> pd.DataFrame:
    """A study's numbers, and the measures of its encoders, whose finetune_size is 0: measure, `KEYS`, value."""
    _need(frame, [*KEYS, "miou", "pixel_accuracy"], f"the metrics of protocol '{protocol}'", protocol)
    as_paper = "miou_per_image" if "miou_per_image" in frame else "miou"
    cells = frame[KEYS].assign(number_miou=frame[as_paper], number_accuracy=frame["pixel_accuracy"])
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
            local_minus_distant=encoders["local_minus_distant"],
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


def _claim_rows(evidence: Mapping[str, Cells], apart: Mapping[str, Mapping[str, list[str]]]) -> list[dict[str, Any]]:
    """One row per claim; protocols in the order of `PROTOCOLS`."""
    published = claims_on_paper().set_index("key")
    rows = []
    for claim in CLAIMS:
        outcomes = {name: claim.test(cells) for name, cells in evidence.items()}
        testable = (name for name, outcome in outcomes.items() if outcome.found is not Found.UNTESTABLE)
        head = next(testable, next(iter(outcomes)))
        comparable = {name: not any(apart[name][table] for table in (*claim.tables, "sizes")) for name in outcomes}
        words = {name: outcome.found.of_study(comparable[name]) for name, outcome in outcomes.items()}
        paper, found = published.loc[claim.key], outcomes[head]
        row: dict[str, Any] = {
            **{"kind": "claim", "key": claim.key, "table": claim.source, "unit": claim.unit},
            **{"what": claim.words, "sentence": claim.sentence, "value_is": claim.estimate_is},
            **{"paper": paper["estimate"], "paper_low": paper["low"], "paper_high": paper["high"]},
            **{"paper_verdict": paper["verdict"], "paper_reason": paper["reason"]},
            **{"paper_seeds_needed": paper["seeds_needed"]},
            **{"protocol": head, "comparable": comparable[head], "verdict": words[head], "reason": found.reason},
            **{"comparisons": found.comparisons, "in_favour": found.favour, "chance": found.chance},
        }
        for name, outcome in outcomes.items():
            row |= {
                f"ours_{name}": outcome.estimate,
                f"ours_{name}_low": outcome.low,
                f"ours_{name}_high": outcome.high,
            }
            row |= {f"n_{name}": outcome.n, f"under_{name}": words[name]}
        rows.append(row)
    return rows


def write_scorecard(
    metric_paths_by_protocol: Mapping[str, Iterable[str | Path]],
    geometry_by_protocol: Mapping[str, pd.DataFrame] | None,
    out_dir: str | Path,
    differences: Mapping[str, Mapping[str, list[str]]] | None = None,
    spatial: Collection[str] = SPATIAL,
    epochs: Mapping[str, tuple[int, int]] | None = None,
) -> None:
    """Write scorecard.csv and scorecard.md.

    Args:
        metric_paths_by_protocol: JSON files of one study's cells, by protocol; their confusion matrices are read where
            they lie beside them.
        geometry_by_protocol: see `scorecard`; so are the others.
        out_dir: folder for both; made if missing.

    Raises:
        InputError: as for `tables.read_metrics`, `crossed.read_runs` and `scorecard`.
    """
    paths = {name: [Path(path) for path in found] for name, found in metric_paths_by_protocol.items()}
    frames = {name: read_metrics(found) for name, found in paths.items()}
    folders = {name: found[0].parent for name, found in paths.items()}
    table = scorecard(frames, geometry_by_protocol, differences, spatial, folders, epochs)
    about = {
        f"{column}_{name}": frames[name][column].iloc[0]
        for name in PROTOCOLS
        if name in frames
        for column in ("study", "note")
    }
    write_csv(table.assign(**about), Path(out_dir) / "scorecard.csv")
    write_text(Path(out_dir) / "scorecard.md", _markdown(table, frames, differences or {}))


READING = (
    "A claim is reproduced where the 95 % interval of every comparison, over seeds and test images, is on its side (an "
    "intersection-union test); reproduced on average where that of their mean is; not everywhere where one comparison "
    "is decided against it after Bonferroni's correction; contradicted where the mean is; otherwise undecided. "
    "Estimates are the mean over comparisons, positive where the claim holds. A study that differs from the paper's "
    "does not contradict it: its words end in 'here'.\n\nA number is reproduced where the 90 % interval of its "
    f"difference from the paper's lies within {100 * POINT:.0f} point (of a variance, {100 * SHARE:.0f} %), two "
    "one-sided tests at 5 % each; contradicted where the 95 % interval lies wholly outside; otherwise undecided. ± is "
    "a standard deviation over seeds (ddof = 1). The paper does not define its own; it is taken as of 3 runs; Table 2 "
    "of v2 has none. Numbers are mIoU averaged over images, as in the paper. A verdict is about protocol paper where "
    "that study has the cells, else about sound."
)


def _markdown(
    table: pd.DataFrame, frames: Mapping[str, pd.DataFrame], differences: Mapping[str, Mapping[str, list[str]]]
) -> str:
    """The scorecard as a page: counts, differences, claims, numbers by table."""
    given = [name for name in PROTOCOLS if name in frames]
    parts = ["# Scorecard against the paper", _counts(table)]
    for name in given:
        first = frames[name].iloc[0]
        parts.append(f"Protocol {name}: study {markdown(first['study'])}. {markdown(first['note'])}".strip())
        if any(differences.get(name, {}).values()):
            parts.append(_apart(name, differences[name]))
    parts.append(READING)
    claims = table[table["kind"] == "claim"]
    parts.append("## Claims")
    words = [f"{what} {said}" for what, said in zip(claims["what"], claims["sentence"], strict=True)]
    shown = pd.DataFrame({"Claim": words, "Source": claims["table"], "Estimate is": claims["value_is"]})
    shown["Verdict"] = claims["verdict"]
    for name in given:
        shown[f"Estimate, {name}"] = _estimates(claims, f"ours_{name}")
    if len(given) > 1:
        shown["Verdict under sound"] = claims["under_sound"]
    shown["Why"] = claims["reason"]
    shown["The paper's own numbers"] = claims["paper_verdict"]
    shown["Their estimate"] = _estimates(claims, "paper")
    shown["Why them"] = claims["paper_reason"]
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
            _signed(*values) for values in _columns(rows, "difference", "difference_low", "difference_high")
        ]
        shown["Verdict"], shown["Why"] = rows["verdict"], rows["reason"]
        parts += [f"## {name}", to_markdown(shown).strip()]
    return "\n\n".join(parts) + "\n"


def _apart(protocol: str, differences: Mapping[str, list[str]]) -> str:
    """What sets a study apart from the paper's, in a list: each difference once, with the tables that it is about."""
    tables: dict[str, list[str]] = {}
    for table, found in differences.items():
        for phrase in found:
            tables.setdefault(phrase, []).append(table)
    lines = [f"What cannot be compared with the paper, under protocol {protocol}:", ""]
    for phrase, where in tables.items():
        about = "claims" if where == ["sizes"] else f"Table{'s' * (len(where) > 1)} {', '.join(where)}"
        lines.append(f"- {markdown(phrase)} ({about})")
    return "\n".join(lines)


def _counts(table: pd.DataFrame) -> str:
    """The opening line: how many of each verdict."""

    def counted(what: str, found: pd.Series, verdicts: Sequence[str]) -> str:
        counts = found.value_counts()
        said = [f"{verdict} {counts[verdict]}" for verdict in dict.fromkeys(verdicts) if verdict in counts]
        return f"{what}: {', '.join(said)}."

    claims, numbers = (table[table["kind"] == kind] for kind in ("claim", "number"))
    return " ".join(
        [
            counted(f"{len(claims)} claims", claims["verdict"], [*CLAIM_WORDS, *CLAIM_WORDS_HERE]),
            counted("By the paper's own numbers", claims["paper_verdict"], AUDIT_WORDS),
            counted(f"{len(numbers)} numbers", numbers["verdict"], NUMBER_WORDS),
        ]
    )


def _columns(table: pd.DataFrame, *names: str) -> Iterable[tuple]:
    """The unit and some columns, row by row."""
    return table[["unit", *names]].itertuples(index=False, name=None)


def _estimates(claims: pd.DataFrame, name: str) -> list[str]:
    return [estimate_in_words(*values) for values in _columns(claims, name, f"{name}_low", f"{name}_high")]


def _value(unit: str, mean: float, sd: float) -> str:
    """Mean and standard deviation in percent; a variance as it is."""
    if pd.isna(mean):
        return ""
    factor, digits = (100, 2) if unit == POINTS else (1, 3)
    spread = "" if pd.isna(sd) else f" ± {factor * sd:.{digits}f}"
    return f"{factor * mean:.{digits}f}{spread}{' %' if unit == POINTS else ''}"


def _signed(unit: str, value: float, low: float, high: float) -> str:
    """A difference with its 95 % interval."""
    if pd.isna(value):
        return ""
    factor, digits = (100, 2) if unit == POINTS else (1, 3)
    interval = "" if pd.isna(low) else f" [{factor * low:+.{digits}f}, {factor * high:+.{digits}f}]"
    return f"{factor * value:+.{digits}f}{interval}{' points' if unit == POINTS else ''}"
