"""Geometry of all of a study's encoders: tables, version 2's Table 2, and which geometry goes with a task's harm."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata, t

from viny.evidence.paper.facts import REGIMES, paper_facts
from viny.evidence.statistics.crossed import ALPHA, LEAST_SEEDS, Runs, read_runs
from viny.evidence.tables import KEYS as CELL_KEYS
from viny.evidence.tables import paired_differences, read_metrics, to_markdown, write_csv
from viny.evidence.verdicts import holm, p_in_words
from viny.runtime.errors import InputError
from viny.runtime.files import read_sealed, write_text
from viny.runtime.text import markdown
from viny.runtime.units import counted
from viny.study.grid import KINDS

# Metrics of a layer, each with its heading and unit; readers see shares in percent.
METRICS = {
    "within_image_variance": "Within-image variance",
    "across_image_variance": "Across-image variance",
    "within_share": "Within share of variance (%)",
    "local_minus_distant": "Local minus distant similarity",
    "local_minus_distant_centred": "Local minus distant, centred",
    "morans_i": "Moran's I",
    "effective_rank": "Effective rank",
    "linear_cka": "Linear CKA to the reference",
    "probe_accuracy": "Patch probe, held out (%)",
    "probe_balanced_accuracy": "Patch probe, balanced (%)",
}
AT_OUTPUT = {"probe_paper": "Patch probe, on its own training images (%)", "probe_majority": "Majority class (%)"}
ALL_METRICS = METRICS | AT_OUTPUT
SHARES = {"within_share", "probe_accuracy", "probe_balanced_accuracy", "probe_paper", "probe_majority"}
GROUP = ["kind", "pretrain_size", "intermediate", "finetune_size"]
KEYS = [*GROUP, "seed"]
ABOUT = ["study", "protocol", "note", "name"]
RUN = ["device", "precision", "threads", "seconds", "code"]

PAPER = {regime: task for task, regime in REGIMES.items()}  # of Table 2 of the paper's version 2
DRAWS = 2000  # of the means of cells
PERMUTATIONS = 10_000  # up to this many, all are tried; beyond, this many are drawn
LEAST_VALUES = 5  # distinct ones; with fewer, a rank correlation says nothing


# Tables over encoders


def read_geometry(paths: Iterable[str | Path]) -> pd.DataFrame:
    """Collect what `geometry.measure` wrote for several encoders.

    Args:
        paths: its JSON files, in any order; an encoder's name is read from its file.

    Returns:
        One row per (encoder, layer): study, protocol, note, name, `KEYS`, layer, layer_name, `METRICS`, those of
        `AT_OUTPUT` (NaN before the output), layer_note, images, probe_images, weights, reference_weights ('random' for
        a random start), device, precision, threads, seconds, code. Shares are fractions; NaN where undefined, and
        layer_note says why. Sorted by kind in the order of `KINDS`, sizes, task, seed, layer.

    Raises:
        InputError: no files, a file with something else in it, or an encoder that is in two files.
    """
    rows: list[dict[str, Any]] = []
    seen: dict[tuple[Any, ...], str | Path] = {}
    for path in paths:
        about, layers = _read_encoder(path)
        key = tuple(about[k] for k in ("study", "protocol", *KEYS))
        if key in seen:
            raise InputError(f"{path}: holds the same encoder as {seen[key]} ({about['name']}); keep one of them")
        seen[key] = path
        rows += [about | layer for layer in layers]
    if not rows:
        raise InputError("no geometry files given; measure at least one encoder first")
    after = ["layer_note", "images", "probe_images", "weights", "reference_weights", *RUN]
    frame = pd.DataFrame(rows, columns=[*ABOUT, *KEYS, "layer", "layer_name", *ALL_METRICS, *after])
    frame = frame.astype(dict.fromkeys(ALL_METRICS, float))
    return frame.sort_values(
        ["kind", "pretrain_size", "intermediate", "finetune_size", "seed", "layer"],
        key=lambda column: column.map(KINDS.index) if column.name == "kind" else column,
        ignore_index=True,
    )


def _read_encoder(path: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """An encoder's description and its layers."""
    try:
        value = read_sealed(path, "the geometry of an encoder")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error}); check the path and its permissions") from error

    def need(holder: Any, key: str, kind: type | tuple[type, ...]) -> Any:
        got = holder.get(key) if isinstance(holder, Mapping) else None
        if not isinstance(got, kind) or isinstance(got, bool):
            raise InputError(
                f"{path}: not the geometry of an encoder ('{key}' is missing or holds {got!r}); "
                "pass only geometry files, or delete this one and measure its encoder again"
            )
        return got

    encoder = need(value, "encoder", dict)
    hashes, provenance = need(value, "hashes", dict), need(value, "provenance", dict)
    about = {key: need(value, key, str) for key in ("study", "protocol")}
    about["note"] = " ".join(str(value.get("note") or "").split())  # one line
    about["name"] = need(encoder, "name", str)
    about |= {key: need(encoder, key, str if key in ("kind", "intermediate") else int) for key in KEYS}
    if about["kind"] not in KINDS:
        raise InputError(f"{path}: encoder.kind is '{about['kind']}'; expected one of {', '.join(KINDS)}")
    about |= {key: need(value, key, int) for key in ("images", "probe_images")}
    about |= {key: hashes.get(key) or "random" for key in ("weights", "reference_weights")}
    about |= {key: provenance.get(key) for key in RUN}
    layers = []
    every = need(value, "layers", list)
    output = need(value, "output", dict)
    if output.get("layer") != len(every) - 1:
        raise InputError(f"{path}: its output is not the last of its layers; delete it and measure its encoder again")
    for layer in [*every[:-1], output]:
        row = {"layer": need(layer, "layer", int), "layer_name": need(layer, "name", str)}
        for name in METRICS:
            if not isinstance(layer, dict) or layer.get(name, "") is not None:  # null means undefined
                need(layer, name, (int, float))
        layers.append({**row, **{m: layer.get(m) for m in ALL_METRICS}, "layer_note": layer.get("note", "")})
    return about, layers


def at_output(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of `read_geometry` for the output, one per encoder.

    Raises:
        InputError: encoders of several studies or protocols, or one given twice.
    """
    for column in ("study", "protocol"):
        if column in frame and frame[column].nunique() > 1:
            found = ", ".join(sorted(frame[column].unique()))
            raise InputError(f"encoders differ in '{column}' ({found}); make the tables of each on its own")
    last = frame[frame["layer_name"] == "output"]
    twice = last.duplicated(KEYS)
    if twice.any():
        key = ", ".join(f"{name} {value}" for name, value in last.loc[twice, KEYS].iloc[0].items())
        raise InputError(f"encoder given more than once: {key}; keep one of each")
    return last.reset_index(drop=True)


def regimes(frame: pd.DataFrame) -> pd.Series:
    """A readable name for the regime of each row: all but its seed."""

    def name(row: Any) -> str:
        start = f"pre-trained {row.pretrain_size}" if row.pretrain_size else "random start"
        task = "" if row.intermediate == "none" else f" + {row.intermediate}"
        return start + task + (f", {row.finetune_size} labels" if row.finetune_size else "")

    return pd.Series([name(row) for row in frame.itertuples()], index=frame.index, dtype=str)


def geometry_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Geometry of the output tokens, over seeds.

    Args:
        frame: what `read_geometry` returns.

    Returns:
        One row per (kind, pretrain_size, intermediate, finetune_size) with n, the number of seeds, and for each metric
        <metric>_mean and <metric>_sd (standard deviation, ddof = 1; NaN for one seed).
    """
    groups = at_output(frame).groupby(GROUP, sort=False)
    table = groups[list(ALL_METRICS)].agg(["mean", "std"])
    table.columns = [f"{metric}_{'sd' if name == 'std' else name}" for metric, name in table.columns]
    table.insert(0, "n", groups.size())
    return table.reset_index()


def paper_table2(frame: pd.DataFrame) -> pd.DataFrame:
    """Table 2 of the paper's version 2: its four regimes by its own definitions, with the sound ones alongside.

    The encoders are those of the study's largest pre-train size; the paper's is 200,000.

    Args:
        frame: what `read_geometry` returns.

    Returns:
        One row per regime, and one for the random start as a control. Regime, # Pre-train, Runs; for each of the
        paper's three columns, ours as mean ± standard deviation over seeds (ddof = 1), the mean alone for one seed, and
        the paper's value; the held-out probe, its majority baseline and the within share. Probes and shares are in
        percent. 'not run' if the study has no such encoder; empty if the paper gives no value.
    """
    table = geometry_table(frame)
    sizes = table.loc[(table["kind"] == "pretrained"), "pretrain_size"]
    size = int(sizes.max()) if len(sizes) else 0

    facts = paper_facts()
    values = facts[facts["table"] == "2"].set_index(["intermediate", "metric"])["mean"]

    def row(regime: str, kind: str, task: str, pretrained: int) -> dict[str, Any]:
        mine = table[
            (table["kind"] == kind) & (table["intermediate"] == task) & (table["pretrain_size"] == pretrained)
        ]  # fmt: skip
        there = len(mine) == 1 and (kind == "random" or size > 0)

        def ours(metric: str) -> str:
            if not there:
                return "not run"
            return _plus_minus(metric, mine.iloc[0][f"{metric}_mean"], mine.iloc[0][f"{metric}_sd"])

        def theirs(metric: str, scale: int, digits: int) -> str:
            return f"{scale * values[task, metric]:.{digits}f}" if regime in PAPER else ""

        return {
            "Regime": regime,
            "# Pre-train": pretrained,
            "Runs": int(mine.iloc[0]["n"]) if there else 0,
            "Within-image variance": ours("within_image_variance"),
            "Within-image variance, paper": theirs("within_image_variance", 1, 2),
            "Across-image variance": ours("across_image_variance"),
            "Across-image variance, paper": theirs("across_image_variance", 1, 2),
            "Probe on its training images (%)": ours("probe_paper"),
            "Probe on its training images (%), paper": theirs("probe_paper", 100, 1),
            "Probe on held-out images (%)": ours("probe_accuracy"),
            "Majority class (%)": ours("probe_majority"),
            "Within share (%)": ours("within_share"),
        }

    rows = [row("random start", "random", "none", 0)]
    rows += [
        row(regime, "pretrained" if task == "none" else "intermediate", task, size) for regime, task in PAPER.items()
    ]
    return pd.DataFrame(rows)


def _plus_minus(metric: str, mean: float, sd: float) -> str:
    """A metric's mean ± standard deviation for readers: shares in percent, the mean alone for one seed."""
    if pd.isna(mean):
        return "undefined"
    scale, digits = (100, 1) if metric in SHARES else (1, 1 if metric == "effective_rank" else 3)
    return f"{scale * mean:.{digits}f}" + ("" if pd.isna(sd) else f" ± {scale * sd:.{digits}f}")


# Which geometry goes with the harm


def harm(frame: pd.DataFrame, effects: pd.DataFrame) -> pd.DataFrame:
    """What a task changes in an encoder's output geometry, and what it changes in mIoU after fine-tuning.

    Args:
        frame: what `read_geometry` returns.
        effects: what `tables.paired_differences` returns for mIoU.

    Returns:
        One row per (pretrain_size, intermediate, finetune_size, seed) for which both exist: these keys, difference
        (mIoU with the task minus without, a fraction) and, for each of `METRICS`, its value after the task minus that
        of the encoder that the task started from: the pre-trained one, or the random start of the same seed. CKA of an
        encoder with itself is 1, so the change of linear_cka is the CKA to the start minus 1; it is NaN if CKA was not
        computed against the start.
    """
    last = at_output(frame)
    after = last[last["kind"] == "intermediate"]
    before = last[last["kind"] == np.where(last["pretrain_size"] > 0, "pretrained", "random")]
    both = after.merge(before, on=["pretrain_size", "seed"], suffixes=("", "_before"), validate="many_to_one")
    changes = {name: both[name] - both[f"{name}_before"] for name in METRICS}
    to_start = both["reference_weights"] == both["weights_before"]
    changes["linear_cka"] = (both["linear_cka"] - 1).where(to_start)
    known = both[["pretrain_size", "intermediate", "seed"]].assign(**changes)
    out = effects[[*CELL_KEYS, "difference"]].merge(known, on=["pretrain_size", "intermediate", "seed"])
    return out.sort_values(["intermediate", "pretrain_size", "finetune_size", "seed"], ignore_index=True)


def harm_correlation(pairs: pd.DataFrame, runs: Runs | None = None, draws: int = DRAWS, seed: int = 0) -> pd.DataFrame:
    """Spearman's rank correlation of each metric's change with the mIoU difference, over cell means.

    A cell is a (task, pre-train size, label size); its values are means over seeds. Cells are not independent: those of
    one task and pre-train size share the change, and those of one seed share their draws. So the interval comes from
    joint draws of all means, by seeds and, for mIoU, by test images: rho plus and minus the root mean square of what
    the draws change in it, times the quantile of Student's t with (seeds - 1) degrees of freedom, cut at -1 and 1. (The
    draws' own quantiles will not do: noise pulls a rank correlation towards 0.) It is about other seeds and test
    images, for these tasks and sizes, and is approximate. The permutation test shuffles whole tasks and whole pre-train
    sizes, keeping all cells of one together, in every way that maps the study's grid onto itself (after Mantel 1967,
    with tasks and sizes in place of rows and columns); it is two-sided.

    Args:
        pairs: what `harm` returns.
        runs: the study's mIoU; None: the interval is over seeds alone.
        draws: of the means.
        seed: for the draws, and for the permutations if there are more than `PERMUTATIONS`.

    Returns:
        One row per metric: metric, n (cells), seeds, rho, se (what the draws change), low and high (95 %), p, p_least
        (the smallest that the grid's permutations allow), p_holm (Holm over the metrics), verdict in words. Empty where
        the study cannot say; verdict says why.
    """
    rows = [_correlation(pairs.dropna(subset=[name]), name, runs, draws, seed) for name in METRICS]
    table = pd.DataFrame(rows)
    tested = table["p"].notna()
    table["p_holm"] = np.nan
    if tested.any():
        table.loc[tested, "p_holm"] = holm(table.loc[tested, "p"])
    table["verdict"] = [_verdict(row, int(tested.sum())) for row in table.itertuples()]
    columns = ["metric", "n", "seeds", "rho", "se", "low", "high", "p", "p_least", "p_holm", "verdict"]
    return table[columns]


def harm_sentence(table: pd.DataFrame) -> str:
    """Which changes of the patch tokens go with the effect on mIoU, in words.

    Args:
        table: what `harm_correlation` returns, or its CSV.
    """
    whether = "Whether a change of the patch tokens goes with the effect on mIoU, this study cannot say"
    tested = table.dropna(subset="p")
    if tested.empty:
        return f"{whether}: {', or '.join(dict.fromkeys(table['verdict']))}."
    reached = tested[tested["p_least"] * len(tested) <= ALPHA]
    if reached.empty:
        return (
            f"{whether}: the least p that its grid allows is {tested['p_least'].min():.2g} for one property, and "
            f"{min(1, tested['p_least'].min() * len(tested)):.2g} after Holm's correction over {len(tested)}."
        )
    found = tested[tested["p_holm"] <= ALPHA]
    over = f"over {tested['n'].max()} cells, after Holm's correction over {len(tested)} properties"
    if found.empty:
        return (
            f"No change of a property of the patch tokens is shown to go with the effect on mIoU ({over}: least p "
            f"{tested['p_holm'].min():.2g})."
        )
    names = [f"{METRICS[row.metric].removesuffix(' (%)')} ({_rho(row)})" for row in found.itertuples()]
    listed = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    return f"Changes of the patch tokens that go with the effect on mIoU ({over}): {listed}."


def _rho(row: Any) -> str:
    interval = "" if pd.isna(row.low) else f", {row.low:+.2f} to {row.high:+.2f}"
    return f"rank correlation {row.rho:+.2f}{interval}, {p_in_words(row.p_holm)}"


def _correlation(pairs: pd.DataFrame, metric: str, runs: Runs | None, draws: int, seed: int) -> dict[str, Any]:
    """One row of `harm_correlation`, without Holm's correction; `problem` says what could not be computed, and why."""
    cells = pairs.groupby(["intermediate", "pretrain_size", "finetune_size"]).size().index
    seeds = sorted(pairs["seed"].unique())
    row: dict[str, Any] = {"metric": metric, "n": len(cells), "seeds": len(seeds), "problem": ""}
    row |= dict.fromkeys(("rho", "se", "low", "high", "p", "p_least"), math.nan)
    if not len(cells):
        return row | {"problem": "no pairs"}
    units = cells.droplevel("finetune_size").unique()  # (task, pre-train size), which share a change
    unit_of = units.get_indexer(cells.droplevel("finetune_size"))  # [cells]
    harms = pairs.pivot_table("difference", "seed", cells.names).reindex(index=seeds, columns=cells).to_numpy()
    changes = pairs.pivot_table(metric, "seed", units.names).reindex(index=seeds, columns=units).to_numpy()
    x, y = np.nanmean(changes, axis=0), np.nanmean(harms, axis=0)
    for values, what in ((x, "change"), (y, "mIoU difference")):
        if (distinct := len(np.unique(np.round(values, 12)))) < LEAST_VALUES:
            few = f"{counted(distinct, 'distinct value')} of the {what}"
            return row | {"problem": f"too few to rank: {few}, at least {LEAST_VALUES} needed"}
    row["rho"] = float(_spearman(x[unit_of][None], y[None])[0])
    row["p"], row["p_least"] = _permutation_p(x, y, unit_of, units, seed)
    fewest = int(min(np.isfinite(changes).sum(0).min(), np.isfinite(harms).sum(0).min()))
    if fewest < LEAST_SEEDS:
        return row | {"problem": "no interval from one seed"}
    both = Runs(
        [*(("change", *unit) for unit in units), *cells],
        seeds,
        np.hstack([changes, harms]),
        _moved_differences(cells, len(units), seeds, runs),
    )
    drawn = both.draws(draws, seed, student=False)
    rho = _spearman(drawn[:, : len(units)][:, unit_of], drawn[:, len(units) :])
    row["se"] = float(np.sqrt(((rho - row["rho"]) ** 2).mean()))
    half = t.ppf(0.975, fewest - 1) * row["se"]
    row["low"], row["high"] = max(-1.0, row["rho"] - half), min(1.0, row["rho"] + half)
    return row


def _moved_differences(cells: pd.MultiIndex, units: int, seeds: list[int], runs: Runs | None) -> np.ndarray | None:
    """How far each test image moves the mIoU differences, [S, units + cells, N]; it moves no change of tokens."""
    if runs is None or runs.moved is None:
        return None
    rows = [list(runs.seeds).index(seed) for seed in seeds]
    moved = [
        runs.moved[rows, runs.place[p, task, n]] - runs.moved[rows, runs.place[p, "none", n]] for task, p, n in cells
    ]
    return np.stack([*np.zeros((units, *moved[0].shape)), *moved], axis=1)


def _spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Rank correlation of each pair of rows of [B, n]; pairs with a NaN are left out, NaN if one side is constant.

    `scipy.stats.spearmanr` takes one pair of rows at a time.
    """
    either = np.isnan(x) | np.isnan(y)
    policy = "omit" if either.any() else "propagate"  # 'omit' is slow, 'propagate' fast
    ranks = [rankdata(np.where(either, np.nan, v), axis=1, nan_policy=policy) for v in (x, y)]
    a, b = (r - np.nanmean(r, axis=1, keepdims=True) for r in ranks)
    scale = np.sqrt(np.nansum(a**2, axis=1) * np.nansum(b**2, axis=1))
    return np.divide(np.nansum(a * b, axis=1), scale, out=np.full(len(a), np.nan), where=scale > 0)


def _permutation_p(
    x: np.ndarray, y: np.ndarray, unit_of: np.ndarray, units: pd.MultiIndex, seed: int
) -> tuple[float, float]:
    """Two-sided p of the rank correlation, and the smallest possible p.

    `x` [units] is permuted by tasks and by pre-train sizes, `y` [cells] stays as it is; `unit_of` [cells] links them.
    """
    tasks, sizes = (sorted(set(units.get_level_values(k))) for k in range(2))
    place = np.full((len(tasks), len(sizes)), -1)
    for i, (task, size) in enumerate(units):
        place[tasks.index(task), sizes.index(size)] = i
    exact = math.factorial(len(tasks)) * math.factorial(len(sizes)) <= PERMUTATIONS
    if exact:
        orders = itertools.product(*(itertools.permutations(range(k)) for k in place.shape))
    else:
        rng = np.random.default_rng(seed)
        orders = ((rng.permutation(place.shape[0]), rng.permutation(place.shape[1])) for _ in range(PERMUTATIONS))
    permuted = [] if exact else [x[unit_of]]  # the identity is added to drawn permutations
    for by_task, by_size in orders:
        moved = place[np.ix_(by_task, by_size)]
        if ((moved < 0) == (place < 0)).all():  # a task not run at a size has no value to move
            there = place >= 0
            order = np.empty(len(units), int)
            order[place[there]] = moved[there]
            permuted.append(x[order][unit_of])
    rho = np.abs(_spearman(np.array(permuted), np.broadcast_to(y, (len(permuted), len(y)))))
    observed = abs(_spearman(x[unit_of][None], y[None])[0])
    return int((rho >= observed - 1e-9).sum()) / len(rho), 1 / len(rho)


def _verdict(row: Any, tested: int) -> str:
    """What a correlation shows, in words; `tested` is the number of metrics that have a p."""
    if math.isnan(row.p):
        return row.problem
    if row.p_least * tested > ALPHA:
        words = f"this grid cannot reach p < 0.05 for {tested} metrics (least p of one {row.p_least:.2g})"
    elif row.p_holm <= ALPHA:
        words = f"where it grows more, a task {'costs less or gains more' if row.rho > 0 else 'costs more'} mIoU"
    else:
        words = "no association shown"
    return "; ".join(filter(None, [words, row.problem]))


# Files


def write_geometry(
    geometry_paths: Iterable[str | Path], metric_paths: Iterable[str | Path], out_dir: str | Path
) -> None:
    """Write geometry.csv and .md, table2.csv and .md, harm.csv, harm_correlation.csv and .md.

    Every file names the study, its protocol and its note, the CSVs in columns of their own.

    Args:
        geometry_paths: JSON files of one study, one per encoder.
        metric_paths: JSON files of the same study, one per cell, and beside them the cells' confusion matrices.
        out_dir: folder for the tables; made if missing.

    Raises:
        InputError: as for `read_geometry` and `tables.read_metrics`, or files of several studies.
    """
    metric_paths = list(metric_paths)
    frame, cells = read_geometry(geometry_paths), read_metrics(metric_paths)
    about = dict(frame.iloc[0][["study", "protocol", "note"]])
    for key in ("study", "protocol"):
        if cells[key].iloc[0] != about[key]:
            raise InputError(
                f"geometry is of {key} '{about[key]}', metrics are of '{cells[key].iloc[0]}'; give those of one study"
            )
    about["note"] = about["note"] or cells["note"].iloc[0]
    summary, table2 = geometry_table(frame), paper_table2(frame)
    pairs = harm(frame, paired_differences(cells))
    correlation = harm_correlation(pairs, read_runs(cells, Path(metric_paths[0]).parent))
    csvs = {"table2": table2, "harm": pairs, "harm_correlation": correlation}
    for name, table in ({"geometry": frame.drop(columns=list(about))} | csvs).items():
        write_csv(table.assign(**about), Path(out_dir) / f"{name}.csv")
    who = f"Study {about['study']}, protocol {about['protocol']}."
    images = " or ".join(str(n) for n in sorted(frame["images"].unique()))
    trained = " or ".join(str(n) for n in sorted(frame["probe_images"].unique()))
    over_seeds = "Mean ± standard deviation over seeds (ddof = 1), the mean alone for one run."
    where = (
        f"Patch tokens after the final LayerNorm, {images} held-out images; the probe is trained on {trained} others."
    )
    _write_markdown(
        Path(out_dir) / "geometry.md", "Geometry of the output tokens",
        [who, over_seeds, where, _CKA, about["note"]], _readable(summary), "",
    )  # fmt: skip
    _write_markdown(
        Path(out_dir) / "table2.md", "Table 2 (version 2): patch geometry of four regimes",
        [who, over_seeds, where, _TABLE2, about["note"]], table2, "",
    )  # fmt: skip
    _write_markdown(
        Path(out_dir) / "harm_correlation.md", "Which geometry goes with the harm of a task",
        [who, harm_sentence(correlation), _HARM, about["note"]], _readable_correlation(correlation),
        "" if len(pairs) else "The study has no pairs of cells with and without a task whose encoders were measured.",
    )  # fmt: skip


_CKA = "The reference of CKA is the pre-trained encoder or, where there is none, the random start of the seed."
_TABLE2 = (
    "Variances are population variances of tokens: within an image, averaged over images and dimensions; over images, "
    "of the mean token, averaged over dimensions. The paper's probe is scored on the images that it is fitted on; that "
    "on held-out images is not. The paper's values are of one encoder pre-trained on 200,000 images."
)
_HARM = (
    "Spearman's rank correlation, over cells, of what a task changes in the output tokens with what it changes in "
    "mIoU; a positive one says that cells whose metric grows more lose less, or gain. 95 % interval, approximate: "
    "Student's t times the root mean square of what joint draws of seeds and test images change in it. p: two-sided "
    "permutations of tasks and of pre-train sizes; least: the smallest that this grid allows; Holm: corrected for the "
    "number of metrics."
)


def _readable(summary: pd.DataFrame) -> pd.DataFrame:
    """`geometry_table` for readers: a row per regime, a column per metric."""
    columns = {"Regime": regimes(summary), "Runs": summary["n"]}
    for metric, heading in ALL_METRICS.items():
        both = zip(summary[f"{metric}_mean"], summary[f"{metric}_sd"], strict=True)
        columns[heading] = pd.Series([_plus_minus(metric, mean, sd) for mean, sd in both], dtype=str)
    return pd.DataFrame(columns)


def _readable_correlation(table: pd.DataFrame) -> pd.DataFrame:
    def number(values: pd.Series, form: str) -> pd.Series:
        return pd.Series(["" if pd.isna(v) else format(v, form) for v in values], dtype=str)

    interval = [
        "" if pd.isna(low) else f"{low:.2f} to {high:.2f}"
        for low, high in zip(table["low"], table["high"], strict=True)
    ]
    return pd.DataFrame(
        {
            "Metric": table["metric"].map(METRICS).str.removesuffix(" (%)"),
            "Cells": table["n"],
            "Seeds": table["seeds"],
            "Rank correlation": number(table["rho"], ".2f"),
            "95 % interval": pd.Series(interval, dtype=str),
            "p": number(table["p"], ".3f"),
            "Least p": number(table["p_least"], ".2g"),
            "Holm p": number(table["p_holm"], ".3f"),
            "Verdict": table["verdict"],
        }
    )


def _write_markdown(path: Path, title: str, lines: list[str], table: pd.DataFrame, last: str) -> None:
    heading = " ".join(markdown(line) for line in lines if line)
    body = to_markdown(table) + (f"\n{last}\n" if last else "")
    write_text(path, f"# {title}\n\n{heading}\n\n{body}")
