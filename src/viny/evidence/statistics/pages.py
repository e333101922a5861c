"""The tables of effects, returns and costs, as CSV and as Markdown pages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from viny.evidence.statistics.costs import COSTS, costs, next_step
from viny.evidence.statistics.crossed import read_runs
from viny.evidence.statistics.effects import INTERVALS, decisions_table, effects
from viny.evidence.statistics.fits import fits
from viny.evidence.statistics.gains import marginal_gains
from viny.evidence.statistics.transfer import transfer
from viny.evidence.tables import (
    HEADINGS,
    about_numbers,
    read_metrics,
    to_markdown,
    write_csv,
)
from viny.evidence.verdicts import decide
from viny.runtime.files import write_text


def write_statistics(
    metric_paths: Iterable[str | Path],
    confusion_dir: str | Path,
    chain: Mapping[str, Mapping[str, Any]] | None,
    out_dir: str | Path,
) -> dict[str, pd.DataFrame]:
    """Write the tables of effects, returns and costs.

    decisions, effects, fits and transfer as .csv and .md; marginal_gains and costs as .csv; next_steps.md. Every file
    names the study, its protocol and its note, the CSVs in columns of their own.

    Args:
        metric_paths: JSON files of one study, one per cell.
        confusion_dir: folder with the confusion matrices of each cell, <cell>.npz.
        chain: as in `costs`; None if no costs are known, which the files then say.
        out_dir: folder for the tables; made if missing.

    Returns:
        The tables by name: decisions, effects, marginal_gains, fits, transfer, costs.

    Raises:
        InputError: as for `read_metrics`, `read_runs` and `costs`, or cells of several studies.
    """
    frame = read_metrics(metric_paths)
    runs = read_runs(frame, Path(confusion_dir))
    decisions = decide(runs)
    tables = {
        "decisions": decisions_table(decisions),
        "effects": effects(runs),
        "marginal_gains": marginal_gains(runs),
        "fits": fits(runs),
        "transfer": transfer(runs, decisions=decisions),
        "costs": costs(frame, chain) if chain is not None else pd.DataFrame(columns=COSTS),
    }
    about, heading = dict(frame.iloc[0][["study", "protocol", "note"]]), about_numbers(frame, groups=runs.groups)
    for name, table in tables.items():
        write_csv(table.assign(**about), Path(out_dir) / f"{name}.csv")
    pages = {
        "decisions": _decisions_page(tables["decisions"]),
        "effects": _effects_page(tables["effects"]),
        "fits": _fits_page(tables["fits"]),
        "transfer": _transfer_page(tables["transfer"]),
        "next_steps": _steps_page(None if chain is None else next_step(frame, runs, chain, decisions)),
    }
    for name, (title, words, body) in pages.items():
        write_text(Path(out_dir) / f"{name}.md", f"# {title}\n\n{heading}\n\n{words}\n\n{body}")
    return tables


def _body(table: pd.DataFrame, empty: str) -> str:
    return to_markdown(table.rename(columns=HEADINGS)) + (f"\n{empty}\n" if table.empty else "")


def _points(values: pd.Series) -> pd.Series:
    """Fractions as percentage points with their sign; empty where undefined."""
    return pd.Series(["" if pd.isna(v) else f"{100 * v:+.2f}" for v in values], values.index, dtype=str)


def _bare(values: pd.Series) -> pd.Series:
    """Fractions as percentage points without a sign, for spreads; empty where undefined."""
    return _points(values).str.lstrip("+")


def _between(low: pd.Series, high: pd.Series) -> pd.Series:
    both = zip(_points(low), _points(high), strict=True)
    return pd.Series([f"{a} to {b}" if a and b else "" for a, b in both], low.index, dtype=str)


def _p(values: pd.Series) -> pd.Series:
    return pd.Series(["" if pd.isna(v) else f"{v:.3g}" for v in values], values.index, dtype=str)


def _decisions_page(table: pd.DataFrame) -> tuple[str, str, str]:
    shown = table[["kind"]].assign(
        question=table["name"],
        mean=_points(table["mean"]),
        **{"95 % interval": _between(table["low"], table["high"])},
        **{"se, seeds": _bare(table["se_seeds"]), "se, images": _bare(table["se_images"])},
        n=table["n"],
        p=_p(table["p"]),
        **{"Holm's p": _p(table["p_holm"])},
        answer=table["words"],
        **{"more seeds": ["" if pd.isna(c) else f"{100 * c:.0f} %" for c in table["chance"]]},
    )
    words = (
        "Percentage points of mIoU, paired by seed, the mean over cells of equal weight. A task's effect is over "
        f"pre-trained encoders. {INTERVALS.format(over='questions of a kind')} more seeds: the chance that twice as "
        "many, on the same test images, decide what is open."
    )
    return "What the study decides", words, _body(shown, "The study has no two cells to compare.")


def _effects_page(table: pd.DataFrame) -> tuple[str, str, str]:
    shown = table[["intermediate", "pretrain_size", "finetune_size", "n"]].assign(
        mean=_points(table["mean"]),
        sd=_bare(table["sd"]),
        **{"se, seeds": _bare(table["se_seeds"]), "se, images": _bare(table["se_images"])},
        **{"95 % interval": _between(table["low"], table["high"])},
        p=_p(table["p"]),
        **{"Holm's p": _p(table["p_holm"])},
        verdict=table["verdict"],
    )
    words = (
        "Percentage points of mIoU with the intermediate task minus without, paired by seed: mean, sd (standard "
        "deviation over seeds, ddof = 1), se (standard error of the mean over seeds, and over draws of the test "
        f"images). {INTERVALS.format(over='rows')}"
    )
    return (
        "What an intermediate task changes, cell by cell",
        words,
        _body(shown, "No seed has a cell with and without."),
    )


def _fits_page(table: pd.DataFrame) -> tuple[str, str, str]:
    identified = table["verdict"].astype(str).str.startswith("identified")

    def number(name: str, scale: float = 1, digits: str = ".3g", shown: pd.Series | None = None) -> list[str]:
        rows = zip(*(scale * table[f"{name}{end}"].astype(float) for end in ("", "_low", "_high")), strict=True)
        words = [
            "" if pd.isna(v) else f"{v:{digits}}" + ("" if pd.isna(a) else f" ({a:{digits}} to {b:{digits}})")
            for v, a, b in rows
        ]
        return words if shown is None else [word if there else "" for word, there in zip(words, shown, strict=True)]

    shown = table[["intermediate", "pretrain_size", "model", "sizes", "n"]].assign(
        weight=["" if pd.isna(v) else f"{v:.2f}" for v in table["weight"]],
        **{"e_inf": number("asymptote", shown=identified), "a": number("scale", shown=identified)},
        **{"b or k": number("rate", shown=identified), "held out": _points(table["held_out"])},
        **{"error at largest, %": number("error_at_largest", 100, ".2f"), "exponent": number("exponent", digits=".2f")},
        **{"next doubling": number("gain", 100, "+.2f")},
        verdict=table["verdict"],
    )
    words = (
        "Forms of error = 1 - mIoU, a fraction, against labels n, fitted to seed means: log-linear a + b ln(n); "
        "power law a n^-b; power law to an asymptote e_inf + a n^-b; saturating e_inf + a / (1 + n / k). The average "
        "weighs them by how likely their errors are at each size but the smallest, left out and foretold from the "
        "others (pseudo-BMA+, Yao et al. 2018). Held out: points of mIoU that a fit without the largest size predicts "
        "too many there. Exponent: the local one at the largest size, -d ln(error) / d ln(n) (Hoiem et al. 2021). Next "
        "doubling: gain in points from twice the labels. In brackets: 95 % interval over seeds and test images, that "
        "of the average over the forms too. Runs: the least number of seeds at a size."
    )
    return "Forms of diminishing returns", words, _body(shown, "The study has no cells with mIoU.")


def _transfer_page(table: pd.DataFrame) -> tuple[str, str, str]:
    marks = table["censored"].map({"beyond": "≥ ", "below": "≤ "}).fillna("").astype(str)

    def ratio(values: pd.Series) -> pd.Series:
        return pd.Series(["" if pd.isna(v) else f"{v:.2f}" for v in values], values.index, dtype=str)

    ends = zip(ratio(table["low"]).replace("", "open"), ratio(table["high"]).replace("", "open"), strict=True)
    shown = table[["intermediate", "pretrain_size", "finetune_size", "n"]].assign(
        miou=_bare(table["miou"]),
        labels=marks + pd.Series(["" if pd.isna(v) else f"{v:.0f}" for v in table["labels_worth"]], dtype=str),
        ratio=marks + ratio(table["ratio"]),
        interval=["" if a == b == "open" else f"{a} to {b}" for a, b in ends],
        verdict=table["verdict"],
    )
    shown = shown.rename(columns={"miou": "mIoU, %", "labels": "labels worth", "interval": "95 % interval"})
    words = (
        "How many labels a random start needs for the mIoU that pre-training gives (effective data transferred, "
        "Hernandez et al. 2021), from the random start's monotone curve, and their ratio to the labels used. Below 1, "
        "pre-training costs labels. The interval of the ratio is over seeds and test images; an end outside of the "
        "curve is open. If the random start's curve falls by more than its noise, nothing is told."
    )
    return "What pre-training is worth in labels", words, _body(shown, "The study has no random start to compare with.")


def _steps_page(table: pd.DataFrame | None) -> tuple[str, str, str]:
    words = (
        "From each cell of the Pareto front of mIoU against operations: what the next step adds, in percentage points "
        "of mIoU, paired within seeds, with the 95 % interval over seeds and test images in brackets. An hour is one "
        "of the study's own devices."
    )
    if table is None:
        body = "No costs are known of this study's cells.\n"
    else:
        body = (
            "".join(f"- {sentence}\n" for sentence in table["words"]) or "The study has no further step to tell of.\n"
        )
    return "Where the next hour or the next labels could go", words, body
