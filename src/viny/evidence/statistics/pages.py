"""The tables of effects, returns and costs, as CSV and as Markdown pages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from viny.evidence.statistics.costs import COSTS, costs, next_step
from viny.evidence.statistics.effects import (
    effects,
    noise_of_images,
    overall,
)
from viny.evidence.statistics.fits import fits
from viny.evidence.statistics.gains import marginal_gains
from viny.evidence.statistics.transfer import transfer
from viny.evidence.tables import (
    GROUP,
    HEADINGS,
    about_numbers,
    read_metrics,
    to_markdown,
    write_csv,
)
from viny.runtime.files import write_text


def write_statistics(
    metric_paths: Iterable[str | Path],
    confusion_dir: str | Path,
    chain: Mapping[str, Mapping[str, Any]] | None,
    out_dir: str | Path,
) -> None:
    """Write the tables of effects, returns and costs.

    effects, effects_overall, fits and transfer as .csv and .md; image_noise, marginal_gains and costs as .csv;
    next_steps.md. Every file names the study, its protocol and its note, the CSVs in columns of their own.

    Args:
        metric_paths: JSON files of one study, one per cell.
        confusion_dir: folder with the confusion matrices of each cell, <cell>.npz.
        chain: as in `costs`; None if no costs are known, which the files then say.
        out_dir: folder for the tables; made if missing.

    Raises:
        InputError: as for `read_metrics`, `noise_of_images` and `costs`, or cells of several studies.
    """
    frame = read_metrics(metric_paths)
    tables = {
        "effects": effects(frame),
        "effects_overall": overall(frame),
        "image_noise": noise_of_images(confusion_dir, frame),
        "marginal_gains": marginal_gains(frame),
        "fits": fits(frame),
        "transfer": transfer(frame),
        "costs": costs(frame, chain) if chain is not None else pd.DataFrame(columns=COSTS),
    }
    about = dict(frame.iloc[0][["study", "protocol", "note"]])
    for name, table in tables.items():
        write_csv(table.assign(**about), Path(out_dir) / f"{name}.csv")
    pages = {
        "effects": _effects_page(tables["effects"], tables["image_noise"]),
        "effects_overall": _overall_page(tables["effects_overall"]),
        "fits": _fits_page(tables["fits"]),
        "transfer": _transfer_page(tables["transfer"]),
        "next_steps": _steps_page(None if chain is None else next_step(frame, chain)),
    }
    for name, (title, words, body) in pages.items():
        write_text(Path(out_dir) / f"{name}.md", f"# {title}\n\n{about_numbers(frame)}\n\n{words}\n\n{body}")


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


def _effects_page(table: pd.DataFrame, noise: pd.DataFrame) -> tuple[str, str, str]:
    images = noise.groupby(GROUP)["se_images"].mean().rename("images").reset_index()
    table = table.merge(images, on=GROUP, how="left") if len(table) else table.assign(images=pd.Series(dtype=float))
    shown = table[["intermediate", "pretrain_size", "finetune_size", "n"]].assign(
        mean=_points(table["mean"]),
        sd=_bare(table["sd"]),
        se=_bare(table["se"]),
        **{"95 % interval": _between(table["low"], table["high"]), "se of images": _bare(table["images"])},
        p=_p(table["p_sign_flip"]),
        **{"least p": _p(table["p_least"]), "Holm's p": _p(table["p_holm"])},
        verdict=table["verdict"],
    )
    words = (
        "Percentage points of mIoU with the intermediate task minus without, paired by seed: mean, sd (standard "
        "deviation over seeds, ddof = 1), se (standard error of the mean over seeds), 95 % t interval; se of "
        "images: the standard error of one pair over draws of the test images, averaged over seeds. "
        "p: exact sign-flip test; least p: the least that so many seeds can give; Holm's correction is over the rows."
    )
    return (
        "What an intermediate task changes, cell by cell",
        words,
        _body(shown, "No seed has a cell with and without."),
    )


def _overall_page(table: pd.DataFrame) -> tuple[str, str, str]:
    size = table["pretrain_size"].astype(str).where(table["pretrain_size"].notna(), "all")
    shown = table[["intermediate"]].assign(pretrain_size=size).join(table[["cells", "pairs", "clusters"]])
    shown = shown.assign(
        mean=_points(table["mean"]),
        se=_bare(table["se"]),
        **{"95 % interval": _between(table["low"], table["high"])},
        p=_p(table["p_sign_flip"]),
        **{"least p": _p(table["p_least"])},
        verdict=table["verdict"],
    )
    words = (
        "Percentage points of mIoU with the intermediate task minus without: the mean over cells, each of the same "
        "weight. Clusters are encoders, which all their cells share. se: cluster-robust standard error; interval: "
        "rescaled bootstrap of encoders within their pre-train size (Rao and Wu 1988), stretched to Student's "
        "quantiles; p: sign-flip test of whole encoders; least p: the least that so many encoders can give."
    )
    return "What an intermediate task changes on average", words, _body(shown, "No seed has a cell with and without.")


def _fits_page(table: pd.DataFrame) -> tuple[str, str, str]:
    def parameter(name: str) -> list[str]:
        rows = zip(table[name], table[f"{name}_low"], table[f"{name}_high"], strict=True)
        return ["" if pd.isna(v) else f"{v:.3g}" + ("" if pd.isna(a) else f" ({a:.3g} to {b:.3g})") for v, a, b in rows]

    shown = table[["intermediate", "pretrain_size", "model", "sizes", "n"]].assign(
        **{"e_inf": parameter("asymptote"), "a": parameter("scale"), "b or k": parameter("rate")},
        rmse=_bare(table["rmse"]),
        **{"error at largest": _points(table["error_at_largest"])},
        best=table["best"].map({True: "yes"}).fillna("").astype(str),
        verdict=table["verdict"],
    )
    words = (
        "Forms of error = 1 - mIoU, a fraction, against labels n, fitted to seed means: log-linear a + b ln(n); "
        "power law a n^-b; power law to an asymptote e_inf + a n^-b; saturating "
        "e_inf + a / (1 + n / k). In brackets: 95 % interval, bootstrap over seeds. rmse in points; error at largest: "
        "points of mIoU that a fit without the largest size predicts too many there. best: the least of these errors "
        "among the identified. Runs: the least number of seeds at a size."
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
        "pre-training costs labels. The interval of the ratio is a bootstrap over seeds; "
        "an end outside of the curve is open."
    )
    return "What pre-training is worth in labels", words, _body(shown, "The study has no random start to compare with.")


def _steps_page(table: pd.DataFrame | None) -> tuple[str, str, str]:
    words = (
        "From each cell of the Pareto front of mIoU against operations: what the next step adds, in percentage points "
        "of mIoU, paired within seeds, with the 95 % t interval in brackets. An hour is one of the study's own devices."
    )
    if table is None:
        body = "No costs are known of this study's cells.\n"
    else:
        body = (
            "".join(f"- {sentence}\n" for sentence in table["words"]) or "The study has no further step to tell of.\n"
        )
    return "Where the next hour or the next labels could go", words, body
