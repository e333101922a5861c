"""Tables of a study: every cell's metrics, their summary over seeds, paired differences, the paper's tables.

Metrics are fractions in [0, 1] in every frame and in metrics.csv, summary.csv and paired_differences.csv;
the paper's tables are in percent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from viny.runtime.errors import InputError
from viny.runtime.files import atomic_path, read_sealed, write_text
from viny.runtime.text import cell_text, markdown
from viny.runtime.units import tested_words
from viny.study.grid import RANDOM, STUDY

KEYS = ["pretrain_size", "intermediate", "finetune_size", "seed"]
GROUP = KEYS[:3]
ARM = {"start": RANDOM, "variant": STUDY}  # what tells arms apart; a result says it only where it is not as here
ORDER = [*ARM, "intermediate", "pretrain_size", "finetune_size", "seed"]
BEFORE = ["study", "protocol", "note", "cell", *KEYS]  # columns to the left of the metrics
RUN = ["device", "precision", "threads", "seconds", "code"]  # taken from the provenance
OF_CLASS = "iou_"  # how the columns of a class's IoU begin
OWN_SIZE = "own_size_"  # and those of mIoU at the images' own size
ABSENT = ["not_in_test", "not_in_training"]  # classes without a pixel in these masks, '; ' between their names
AFTER = ["miou_is", "test_images", *ABSENT, *RUN]  # columns to the right of the metrics
STATISTICS = {"mean": "mean", "std": "sd", "sem": "se"}  # pandas' names to ours; std and sem have ddof=1

PAPER_TABLES = {
    "1": ("Table 1: no pre-training, no intermediate task", ["# Fine-tune"]),
    "A2": ("Table A2: pre-training, no intermediate task", ["# Pre-train", "# Fine-tune"]),
    "A3": (
        "Table A3: an intermediate task, with and without pre-training",
        ["Intermediate", "# Pre-train", "# Fine-tune"],
    ),
}
HEADINGS = {
    "pretrain_size": "# Pre-train",
    "intermediate": "Intermediate",
    "finetune_size": "# Fine-tune",
    "n": "Runs",
}


def read_metrics(paths: Iterable[str | Path]) -> pd.DataFrame:
    """Collect the metric files of evaluated cells.

    Args:
        paths: JSON files, one per cell, in any order; a cell's name is read from its file.

    Returns:
        One row per cell: `BEFORE`, the metrics (fractions; NaN where undefined), `AFTER` (seconds in s).
        Sorted by intermediate ('none' first), pretrain_size, finetune_size, seed. `ARM` come before `KEYS`, and first
        in the order, where a cell is of another arm than a study without arms has.

    Raises:
        InputError: no files, a file with something else in it, or a cell that is in two files.
    """
    rows: list[dict[str, Any]] = []
    metrics: dict[str, None] = {}  # an ordered set
    seen: dict[tuple[Any, ...], str | Path] = {}
    for path in paths:
        row, values = _read_cell(path)
        key = tuple(row.get(k, ARM.get(k)) for k in ("study", "protocol", *ARM, *KEYS))
        if key in seen:
            raise InputError(f"{path}: holds the same cell as {seen[key]} ({row['cell']}); keep one of them")
        seen[key] = path
        metrics |= dict.fromkeys(values)
        rows.append(row | values)
    if not rows:
        raise InputError("no metric files given; evaluate at least one cell first")
    arm = ARM if any(key in row for row in rows for key in ARM) else {}
    before = [name for name in BEFORE if name not in KEYS]
    frame = pd.DataFrame([{**arm, **row} for row in rows], columns=[*before, *arm, *KEYS, *metrics, *AFTER])
    return in_order(frame.astype(dict.fromkeys(metrics, float)))


def with_arms(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with the columns of `ARM`, whether or not its study has arms."""
    return frame.assign(**{name: usual for name, usual in ARM.items() if name not in frame})


def _read_cell(path: str | Path) -> tuple[dict[str, Any], dict[str, float | None]]:
    """A cell's description and its metrics."""
    try:
        value = read_sealed(path, "the metrics of an evaluated cell")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error}); check the path and its permissions") from error
    return cell_row(path, value)


def cell_row(path: str | Path, value: Any) -> tuple[dict[str, Any], dict[str, float | None]]:
    """A cell's description and its metrics.

    Args:
        path: for messages.
        value: what the file of its metrics holds.

    Raises:
        InputError: that is something else.
    """

    def need(holder: Any, key: str, kind: type | tuple[type, ...], least: float = 0) -> Any:
        got = holder.get(key) if isinstance(holder, Mapping) else None
        # bool is an int in Python, but not a size, seed or metric
        wrong = not isinstance(got, kind) or isinstance(got, bool)
        if wrong or (isinstance(got, int | float) and not got >= least):
            raise InputError(
                f"{path}: not the metrics of an evaluated cell ('{key}' is missing or holds {got!r}); "
                "pass only metric files, or delete this one and evaluate its cell again"
            )
        return got

    cell = need(value, "cell", dict)
    provenance = need(value, "provenance", dict)
    row = {key: need(value, key, str) for key in ("study", "protocol", "miou_is")}
    row["note"] = " ".join(str(value.get("note") or "").split())  # one line
    row["cell"] = need(cell, "name", str)
    row |= {key: need(cell, key, str) for key in ARM if key in cell}
    row |= {key: need(cell, key, str if key == "intermediate" else int) for key in KEYS}
    row["test_images"] = need(value, "test_images", int, 1)
    classes = value.get("classes", {})  # older evaluations did not say
    row |= {key: "; ".join(classes.get(key, [])) for key in ABSENT}
    row |= {key: provenance.get(key) for key in RUN}
    metrics = need(value, "metrics", dict)
    for name in {"miou", "pixel_accuracy", *metrics}:
        # Metrics in percent must not slip in. Null means undefined; a missing metric is not null.
        if metrics.get(name, -1) is not None and need(metrics, name, (int, float)) > 1:
            raise InputError(f"{path}: metric '{name}' is {metrics[name]}; expected a fraction in [0, 1]")
    return row, metrics


def absent_classes(frame: pd.DataFrame, part: str) -> dict[str, list[str]]:
    """Classes that are declared and have no pixel in a part's masks, with the cells that this is true of.

    Args:
        frame: what `read_metrics` returns, or metrics.csv.
        part: 'test' or 'training'.
    """
    found: dict[str, list[str]] = {}
    if f"not_in_{part}" in frame:
        for cell, names in frame[["cell", f"not_in_{part}"]].dropna().itertuples(index=False):
            for name in filter(None, names.split("; ")):
                found.setdefault(name, []).append(cell)
    return found


def absent_words(frame: pd.DataFrame) -> list[str]:
    """What `absent_classes` finds, one sentence for each part."""
    lines = []
    if tested := absent_classes(frame, "test"):
        per_image = frame["miou_is"].iloc[0] == "per_image"
        then = "counts 0 in every image's mIoU" if per_image else "is not in mIoU, which is a mean over the others"
        lines.append(f"No test mask has a pixel of {', '.join(tested)}: such a class {then}.")
    if trained := absent_classes(frame, "training"):
        words = ", ".join(f"{name} ({len(cells)} of {len(frame)} cells)" for name, cells in trained.items())
        lines.append(f"No mask that a cell was fine-tuned on has a pixel of: {words}; it cannot be learnt there.")
    return lines


def in_order(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows sorted by arm, intermediate ('none' first), then sizes, then seed, as far as the frame has these."""
    first = {"intermediate": "none", **ARM}

    def key(column: pd.Series) -> pd.Series:
        return column.replace(first[column.name], "") if column.name in first else column

    return frame.sort_values([k for k in ORDER if k in frame], key=key, ignore_index=True)


def check_cells(frame: pd.DataFrame, keys: Sequence[str] = KEYS) -> None:
    """Refuse what statistics over seeds would pool silently: several studies or arms, or a cell twice.

    Args:
        frame: what `read_metrics` returns.
        keys: what tells cells apart; with those of `ARM` among them, several arms are fine.
    """
    for column in ("study", "protocol", "miou_is", *(name for name in ARM if name not in keys)):
        if column in frame and frame[column].nunique() > 1:
            found = ", ".join(sorted(frame[column].unique()))
            raise InputError(f"cells differ in '{column}' ({found}); make the tables of each on its own")
    twice = frame.duplicated([*keys])
    if twice.any():
        key = dict(frame.loc[twice, [*keys]].iloc[0])
        cell = ", ".join(f"{name} {value}" for name, value in key.items())
        raise InputError(f"cell given more than once: {cell}; keep one row of each")


def summarise(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean, spread and standard error over seeds.

    Args:
        frame: what `read_metrics` returns.

    Returns:
        One row per (pretrain_size, intermediate, finetune_size) with n, the number of seeds, and for each
        metric <metric>_mean, _sd (ddof=1; NaN for one seed) and _se = sd / sqrt(n), all fractions. A seed
        whose metric is undefined (NaN) does not count towards that metric's three values.
    """
    check_cells(frame)
    metrics = [c for c in frame.columns if c not in (*BEFORE, *ARM, *AFTER)]
    groups = frame.groupby(GROUP)
    table = groups[metrics].agg(list(STATISTICS))
    table.columns = [f"{metric}_{STATISTICS[name]}" for metric, name in table.columns]
    table.insert(0, "n", groups.size())
    return in_order(table.reset_index())


def paired_differences(frame: pd.DataFrame, metric: str = "miou") -> pd.DataFrame:
    """What an intermediate task changes, seed by seed.

    Args:
        frame: what `read_metrics` returns.
        metric: the metric to compare.

    Returns:
        `KEYS` and difference, the fraction with the task minus that without; one row for each task and each
        (pretrain_size, finetune_size, seed) for which both exist.
    """
    check_cells(frame)
    cells = frame[[*KEYS, metric]].dropna(subset=metric)
    is_none = cells["intermediate"] == "none"
    pairs = cells[~is_none].merge(
        cells[is_none].drop(columns="intermediate"),
        on=[k for k in KEYS if k != "intermediate"],
        suffixes=("", "_none"),
        validate="many_to_one",
    )
    return in_order(pairs[KEYS].assign(difference=pairs[metric] - pairs[f"{metric}_none"]))


def paper_table(frame: pd.DataFrame, which: str) -> pd.DataFrame:
    """One of the paper's tables, in percent.

    Args:
        frame: what `read_metrics` returns.
        which: '1' (no pre-training, no intermediate task), 'A2' (pre-training, no intermediate task) or
            'A3' (an intermediate task; unlike the paper's, it has the rows without pre-training too).

    Returns:
        The paper's columns and Runs, the number of seeds. Accuracy (of pixels) and mIoU are strings: mean
        ± standard deviation over seeds (ddof=1), the mean alone for one seed, 'n/a' where undefined.
    """
    _, keys = PAPER_TABLES[which]
    table = summarise(frame)
    is_none, is_scratch = table["intermediate"] == "none", table["pretrain_size"] == 0
    chosen = {"1": is_none & is_scratch, "A2": is_none & ~is_scratch, "A3": ~is_none}[which]
    table = table[chosen].reset_index(drop=True).rename(columns=HEADINGS)
    for heading, metric in (("Accuracy", "pixel_accuracy"), ("mIoU", "miou")):
        both = zip(table[f"{metric}_mean"], table[f"{metric}_sd"], strict=True)
        table[heading] = pd.Series([_percent(mean, sd) for mean, sd in both], dtype=str)
    return table[[*keys, "Accuracy", "mIoU", "Runs"]]


def _percent(mean: float, sd: float) -> str:
    if pd.isna(mean):
        return "n/a"
    return f"{100 * mean:.2f}" + ("" if pd.isna(sd) else f" ± {100 * sd:.2f}")


def to_markdown(frame: pd.DataFrame) -> str:
    """A frame as a Markdown table without its index; numbers right-aligned, NaN empty."""

    def text(value: Any) -> str:
        if pd.isna(value):
            return ""
        shown = f"{value:.6g}" if isinstance(value, float) else str(value)
        return markdown(shown)

    rules = ["--:" if pd.api.types.is_numeric_dtype(dtype) else ":--" for dtype in frame.dtypes]
    rows = [map(text, frame.columns), rules]
    rows += [map(text, row) for row in frame.itertuples(index=False)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def write_tables(
    metric_paths: Iterable[str | Path], out_dir: str | Path, base: Iterable[str | Path] | None = None
) -> None:
    """Write metrics.csv, summary.csv, paired_differences.csv and the paper's tables as .csv and .md.

    Every file names the study, its protocol and its note, the CSVs in columns of their own.

    Args:
        metric_paths: JSON files of one study, one per cell.
        out_dir: folder for the tables; made if missing.
        base: those of the arm that all tables but metrics.csv are about; None: there is one arm.

    Raises:
        InputError: as for `read_metrics`, or cells of several studies.
    """
    every = read_metrics(metric_paths)
    frame = every if base is None else read_metrics(base)
    tables = {f"table{which}": paper_table(frame, which) for which in PAPER_TABLES}
    frames = {
        "metrics": every,
        "summary": summarise(frame),
        "paired_differences": paired_differences(frame),
    }
    about = dict(frame.iloc[0][["study", "protocol", "note"]])
    for name, table in (frames | tables).items():
        if name != "metrics":  # it has them already; every file says whose numbers it holds
            table = table.assign(**about)
        write_csv(table, Path(out_dir) / f"{name}.csv")
    heading = about_numbers(
        frame, "Percent: mean ± standard deviation over seeds (ddof = 1), the mean alone for one run."
    )
    for which, (title, _) in PAPER_TABLES.items():
        table = tables[f"table{which}"]
        body = to_markdown(table)
        if table.empty:
            body += "\nThe study has no such cells.\n"
        write_text(Path(out_dir) / f"table{which}.md", f"# {title}\n\n{heading}\n\n{body}")


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table without its index, whole or not at all; equal tables give equal files.

    Text that a spreadsheet would take for a formula gets an apostrophe.
    """
    words = {name for name, kind in table.dtypes.items() if not pd.api.types.is_numeric_dtype(kind)}
    safe = {name: table[name].map(lambda v: cell_text(v) if isinstance(v, str) else v) for name in words}
    table = table.assign(**safe).rename(columns=cell_text)
    with atomic_path(path) as tmp:
        table.to_csv(tmp, index=False, float_format="%.6g", lineterminator="\n", encoding="utf-8")


def about_numbers(frame: pd.DataFrame, units: str = "", groups: int = 0) -> str:
    """One line on whose numbers a table holds and what they are.

    Args:
        frame: what `read_metrics` returns, of one study.
        units: a sentence on the numbers' unit and spread, if the table itself does not give them.
        groups: `Runs.groups`, for a table with intervals.
    """
    first = frame.iloc[0]
    tested = f"Tested on {tested_words(frame['test_images'], groups)}"
    tested += "; intervals over test images are over these groups" if groups else ""
    averaged = {"dataset": "from one confusion matrix over all images", "per_image": "averaged over images"}
    return " ".join(
        [
            f"Study {markdown(first['study'])}, protocol {markdown(first['protocol'])}.",
            *filter(None, [units]),
            f"mIoU is {averaged.get(first['miou_is'], markdown(first['miou_is']))}.",
            f"{tested}.",
            *map(markdown, absent_words(frame)),
            *map(markdown, frame["note"].unique()),
        ]
    ).strip()
