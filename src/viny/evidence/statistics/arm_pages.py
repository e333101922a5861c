"""The tables of arms and of the held-out loss, as CSV and as Markdown pages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from viny.evidence.statistics.arms import (
    COMPARED,
    PARTS,
    Arms,
    arms_table,
    best_arm,
    budget_words,
    held_out_tables,
    of_budgets,
    questions,
    time_in_words,
)
from viny.evidence.statistics.crossed import Runs
from viny.evidence.statistics.effects import INTERVALS, decisions_table
from viny.evidence.tables import about_numbers, to_markdown, write_csv
from viny.evidence.verdicts import answer, bare, in_points
from viny.runtime.files import write_text
from viny.runtime.text import markdown
from viny.runtime.units import counted

BEST, BOUGHT = "best arm", "what bought the gain"  # kinds of rows of arm_decisions.csv besides those of decisions
HEADINGS = {BEST: "Which arm is best", BOUGHT: "Images or steps", "": "What was compared"}

COMPARED_AS = {"base": "To the first arm", "simmim": "SimMIM on top", "tuning": "Tuned"}


def arm_decisions(runs: Runs, arms: Arms, table: pd.DataFrame) -> pd.DataFrame:
    """All that a study says of its arms in words.

    Args:
        runs: all cells, keyed by `arms.KEY`.
        arms: what they are of.
        table: what `arms.arms_table` returns.

    Returns:
        The columns of `effects.decisions_table`. First a row of kind `BEST` for the most labels and one for the fewest:
        what, that number; name, the best arm; its mIoU; reason, how far the others are. Then the questions of arms;
        then those of images or steps, after a row of kind `BOUGHT` for each three of them.
    """
    decided = decisions_table(answer(runs, questions(runs, arms)))
    heads = []
    for labels in sorted({table["finetune_size"].max(), table["finetune_size"].min()}, reverse=True):
        best = best_arm(runs, arms, table, labels)
        numbers = {"mean": best.best["miou"], **{name: best.best[name] for name in ("low", "high", "n")}}
        name = arms.words(*(best.best[key] for key in ("start", "variant", "pretrain_size", "intermediate")))
        said = {"sentence": f"{best.first} {best.further}".strip(), "reason": best.further}
        heads.append({"kind": BEST, "what": str(labels), "name": name, **numbers, **said})
    parts = answer(runs, of_budgets(runs, arms))
    bought = []
    for first in range(0, len(parts), len(PARTS)):
        three = parts[first : first + len(PARTS)]
        sentence = budget_words(three)
        bought.append(pd.DataFrame([{"kind": BOUGHT, "what": three[0].what, "sentence": sentence}]))
        bought.append(decisions_table(three))
    rows = [pd.DataFrame(heads), decided, *bought]
    return pd.DataFrame([row for part in rows for row in part.to_dict("records")], columns=decided.columns)


def write_arms(
    runs: Runs, arms: Arms, frame: pd.DataFrame, spent: Mapping[Any, Mapping[str, Any]] | None, out_dir: Path
) -> pd.DataFrame:
    """Write arms.csv, arm_decisions.csv and arms.md.

    Args:
        runs: all cells, keyed by `arms.KEY`.
        arms: what they are of.
        frame: what `tables.read_metrics` returns of them.
        spent: what `costs.arm_costs` returns; None if no costs are known.
        out_dir: folder for the tables; made if missing.

    Returns:
        What `arms.arms_table` returns.
    """
    table = arms_table(runs, arms, spent)
    decisions = arm_decisions(runs, arms, table)
    about = dict(frame.iloc[0][["study", "protocol", "note"]])
    write_csv(table.assign(**about), out_dir / "arms.csv")
    write_csv(decisions.assign(**about), out_dir / "arm_decisions.csv")
    parts = [f"# Arms\n\n{about_numbers(frame, groups=runs.groups)}\n"]
    for kind, heading in HEADINGS.items():
        mine = decisions[decisions["kind"] == kind] if kind else decisions[~decisions["kind"].isin([BEST, BOUGHT])]
        if len(mine):
            lines = "".join(f"- {markdown(sentence)}\n" for sentence in mine["sentence"])
            parts.append(f"## {heading}\n\n{lines}")
    if ends := (table["rate_end"] != "").sum():
        tuned = table["rate"].notna().sum()
        parts[-1] += (
            f"\nIn {ends} of {counted(tuned, 'tuned row')} the rate is the lowest or the highest that was tried, so "
            "one beyond it may be better: try further rates before trusting such an arm's rank.\n"
        )
    parts.append(f"## Cell by cell\n\n{_WORDS}\n\n{to_markdown(readable(table, arms))}")
    write_text(out_dir / "arms.md", "\n".join(parts))
    return table


_WORDS = (
    "mIoU in percent, differences in percentage points, paired by seed, each with its 95 % interval. To the first arm: "
    "with the same pre-training images, task and labels. SimMIM on top: against the same arm without. Tuned: against "
    f"the same arm at the fixed rate. {INTERVALS.format(over='rows')} Times are those of one model, an encoder that "
    "several share counted in full. A variant that changes nothing for a cell has no row there: it is the other's."
)


def readable(table: pd.DataFrame, arms: Arms) -> pd.DataFrame:
    """The table of arms in words and points."""
    rows = []
    for row in table.to_dict("records"):
        shown = {
            "Arm": arms.words(row["start"], row["variant"], row["pretrain_size"], row["intermediate"]),
            "Labels": row["finetune_size"],
            "Runs": row["n"],
            "mIoU": bare(row["miou"]) + _interval(row["low"], row["high"], bare),
        }
        for name in COMPARED:
            shown[COMPARED_AS[name]] = difference(row, name)
        shown["Rate"] = rate_in_words(row)
        shown["Time"] = "" if pd.isna(row["hours"]) else time_in_words(row["hours"])
        rows.append(shown)
    return pd.DataFrame(rows)


def rate_in_words(row: Mapping[str, Any]) -> str:
    """The tuned rate of a row of the table of arms; empty where none is."""
    if pd.isna(row["rate"]):
        return ""
    return f"{row['rate']:g}" + (f", the {end} tried" if isinstance(end := row["rate_end"], str) and end else "")


def difference(row: Mapping[str, Any], name: str) -> str:
    """A difference of a row of the table of arms, with its interval and in words; empty where there is none."""
    if pd.isna(row[name]):
        return ""
    interval = _interval(row[f"{name}_low"], row[f"{name}_high"], in_points)
    return f"{in_points(row[name])}{interval}: {row[f'{name}_words']}"


def _interval(low: float, high: float, shown: Any) -> str:
    return "" if pd.isna(low) else f" ({shown(low)} to {shown(high)})"


def write_held_out(
    runs: Runs,
    arms: Arms,
    frame: pd.DataFrame,
    curves: Mapping[tuple[str, str], Mapping[tuple[int, int], pd.DataFrame]],
    out_dir: Path,
) -> pd.DataFrame:
    """Write held_out.csv and held_out.md.

    Args:
        runs: all cells, keyed by `arms.KEY`.
        arms: what they are of.
        frame: what `tables.read_metrics` returns of them.
        curves: see `arms.held_out_tables`.
        out_dir: folder for the tables; made if missing.

    Returns:
        The second table of `arms.held_out_tables`.
    """
    table, gains = held_out_tables(runs, arms, curves)
    write_csv(table.assign(**dict(frame.iloc[0][["study", "protocol", "note"]])), out_dir / "held_out.csv")
    lines = "".join(f"- {markdown(sentence)}\n" for sentence in held_out_words(table, arms)) or "None was measured.\n"
    shown = gains.assign(
        **{"arm": [arms.words(*key) for key in gains[["start", "variant", "pretrain_size"]].itertuples(index=False)]},
        **{"gain": [in_points(row.mean) + _interval(row.low, row.high, in_points) for row in gains.itertuples()]},
    )[["arm", "finetune_size", "last", "gain", "n"]]
    shown = shown.rename(columns={"arm": "Arm", "finetune_size": "Labels", "last": "Last held-out loss", "n": "Runs"})
    shown = shown.rename(columns={"gain": "Gain"})
    about = about_numbers(frame, groups=runs.groups)
    text = f"# The loss on held-out images\n\n{about}\n\n{lines}\n{_GAINS}\n\n{to_markdown(shown)}"
    write_text(out_dir / "held_out.md", text)
    return gains


_GAINS = (
    "Beside it, what the encoder brings: points of mIoU over the same arm without pre-training, no task in between, "
    "paired by seed, with the 95 % interval over seeds and test images."
)


def held_out_words(table: pd.DataFrame, arms: Arms) -> list[str]:
    """What the held-out loss says of each pre-training, with its arm where there are several."""
    said = []
    for row in table.to_dict("records"):
        said.append(row["words"])
        if len(arms.order) > 1:
            arm = arms.words(row["start"], row["variant"], row["pretrain_size"])
            said[-1] = f"{arm}:{row['words'].partition(':')[2]}"
    return said
