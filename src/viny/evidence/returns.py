"""Diminishing returns: marginal gains, fits of error against labels, effective data transferred, cost beside benefit.

Metrics are fractions in every frame and CSV, percent and percentage points in Markdown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize

from viny.errors import InputError
from viny.evidence.statistics import (
    LEAST_CLUSTERS,
    LEVEL,
    SPREAD,
    describe,
    effects,
    noise_of_images,
    overall,
    resample_counts,
    stretch,
)
from viny.evidence.tables import GROUP, HEADINGS, _check, _sort, about_numbers, read_metrics, to_markdown, write_csv
from viny.files import atomic_path

GAINS = ["along", "intermediate", "pretrain_size", "finetune_size", "smaller", "larger", "per", *SPREAD, "verdict"]
CURVE = ["asymptote", "scale", "rate"]  # parameters of a fit: e_inf, a, and b or k
FITS = ["intermediate", "pretrain_size", "model", "sizes", "n", "parameters"]
FITS += [f"{name}{end}" for name in CURVE for end in ("", "_low", "_high")]
FITS += ["rmse", "error_at_largest", "best", "verdict"]
TRANSFER = [*GROUP, "miou", "n", "labels_worth", "ratio", "low", "high", "censored", "verdict"]
COSTS = [*GROUP, "n", "miou", "sd", "seconds", "operations", "device", "front", "front_seconds", "front_labels"]
COSTS += ["verdict"]
LABELS_STEP = 500  # labels that a gain is told for
LEAST_HOURS = 0.1  # that a step takes, below which no sentence tells what an hour of such steps would bring
RATES = ["gain_per_hour", "gain_per_500_labels"]
STEPS = [*GROUP, "miou", "move", *(f"to_{k}" for k in GROUP), "n", "gain", "low", "high"]
STEPS += ["further_labels", "further_pretrain_images", "further_hours", "further_operations"]
STEPS += [f"{rate}{end}" for rate in RATES for end in ("", "_low", "_high")] + ["words"]
GRID = 121  # values of a fit's rate that are tried
FINER = 21  # and between two of them
WIDEST = 0.5  # of the range that an asymptote can lie in, which its interval may cover
NOT_TOLD = "what that is in labels cannot be told"
TINY = 1e-6  # a fraction that counts as its bound


def marginal_gains(frame: pd.DataFrame) -> pd.DataFrame:
    """What each doubling of the labels, or of the pre-training images, adds to mIoU, paired within seeds.

    Args:
        frame: what `tables.read_metrics` returns.

    Returns:
        A row for each pair of consecutive sizes of each curve. `along` is 'labels', where finetune_size is
        empty, or 'pre-training images', where pretrain_size is empty; smaller and larger are the two sizes.
        per is 'doubling', where the difference is divided by log2(larger / smaller), or 'step', the plain
        difference, from no pre-training to some. n seeds, points, mean, sd (ddof=1), se, low and high (95 %
        t interval) are of the gain, a fraction; verdict in words.

    Raises:
        InputError: a cell given more than once, or several studies.
    """
    _check(frame)
    axes = {"finetune_size": ("labels", "pretrain_size"), "pretrain_size": ("pre-training images", "finetune_size")}
    rows = []
    for size, (along, fixed) in axes.items():
        for (task, value), curve in frame.groupby(["intermediate", fixed]):
            wide = curve.pivot(index="seed", columns=size, values="miou")
            for smaller, larger in pairwise(wide.columns):
                gains = (wide[larger] - wide[smaller]).dropna()
                if smaller:
                    gains = gains / np.log2(larger / smaller)
                row = {"along": along, "intermediate": task, fixed: value, "smaller": smaller, "larger": larger}
                row |= {"per": "doubling" if smaller else "step", "n": len(gains)}
                if len(gains):
                    row |= describe(gains)
                rows.append(row | {"verdict": _sign(row)})
    table = _sort(pd.DataFrame(rows, columns=GAINS)).sort_values("along", kind="stable", ignore_index=True)
    return table.astype(dict.fromkeys(["pretrain_size", "finetune_size", "smaller", "larger"], "Int64"))


def _sign(row: Mapping[str, Any]) -> str:
    """What an interval says of a gain's sign."""
    if row["n"] == 0:
        return "no seed has both sizes"
    if row["n"] == 1:
        return "one seed has no spread"
    if row["low"] > 0:
        return "gain"
    return "loss" if row["high"] < 0 else "sign undecided"


def resampled(wide: pd.DataFrame, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Seed means under a bootstrap over seeds: the distinct ones, and which of them each sample is.

    As in `statistics.overall`: rescaled (Rao and Wu 1988) and stretched to Student's quantiles (Hesterberg
    2015), so that the percentiles of one mean are close to its t interval. Seeds are drawn for all cells
    together: what the cells of a seed share stays shared.

    Args:
        wide: mIoU [seeds, cells], NaN where a seed was not run.
        resamples: bootstrap samples.
        seed: of the resampling.

    Returns:
        [D, cells], NaN for a cell of fewer than 3 seeds, and [resamples] of rows in it: few seeds give few.
    """
    values = wide.to_numpy()
    n = np.isfinite(values).sum(0)
    enough = n >= LEAST_CLUSTERS
    reach = np.full(len(n), np.nan)
    reach[enough] = [np.sqrt(k / (k - 1)) * stretch(k - 1) / k for k in n[enough]]
    counts = resample_counts(len(values), resamples, np.random.default_rng(seed))
    counts, row = np.unique(counts, axis=0, return_inverse=True)
    means = wide.mean().to_numpy() + reach * (counts @ wide.sub(wide.mean()).fillna(0).to_numpy())
    return np.clip(means, 0, 1), row


@dataclass(frozen=True)
class Fit:
    """A form of error against labels n: asymptote + scale * shape(n, rate).

    Attributes:
        shape: of n [S] and rate [..., 1].
        asymptote: whether it has one, in [0, 1]; else that is 0. None for the log-linear form, where it is the
            error at n = 1 and free.
        bounds: of the rate, from the least and the largest n; None where there is no rate.
    """

    shape: Callable[[np.ndarray, np.ndarray], np.ndarray]
    asymptote: bool | None
    bounds: Callable[[float, float], tuple[float, float]] | None

    @property
    def parameters(self) -> int:
        return 1 + (self.asymptote is not False) + (self.bounds is not None)

    @property
    def places(self) -> dict[str, int]:
        """Where the parameters of the table stand in what `solve` returns."""
        if self.asymptote is None:
            return {"scale": 0, "rate": 1}
        return {name: i for i, name in enumerate(CURVE) if self.asymptote or i}

    def solve(self, sizes: np.ndarray, errors: np.ndarray) -> np.ndarray:
        """Least squares of many curves at once: for each rate of a grid, made finer twice, the rest is linear.

        Args:
            sizes: [S].
            errors: [R, S].

        Returns:
            [R, 3]: asymptote, scale, rate (NaN where the form has none).
        """
        if not self.bounds:
            base, scale, _ = self._linear(sizes, errors, np.zeros((1, 1)))
            return np.stack([base[:, 0], scale[:, 0], np.full(len(errors), np.nan)], axis=1)
        low, high = np.log(self.bounds(sizes.min(), sizes.max()))
        rates, step = np.linspace(low, high, GRID)[None], (high - low) / (GRID - 1)
        row = np.arange(len(errors))
        for last in (False, False, True):
            base, scale, rss = self._linear(sizes, errors, np.exp(rates))
            best = rss.argmin(1)
            found = np.broadcast_to(rates, rss.shape)[row, best]
            if not last:
                rates = (found[:, None] + np.linspace(-step, step, FINER)).clip(low, high)
                step = 2 * step / (FINER - 1)
        return np.stack([base[row, best], scale[row, best], np.exp(found)], axis=1)

    def _linear(
        self, sizes: np.ndarray, errors: np.ndarray, rates: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Asymptote, scale and sum of squares [R, G] at given rates [R or 1, G], within the bounds."""
        g = self.shape(sizes, rates[..., None])  # [R or 1, G, S]
        y = errors[:, None]
        through_zero = (y * g).sum(-1) / (g**2).sum(-1)
        if self.asymptote is False:
            scale = through_zero.clip(0)
            base = np.zeros_like(scale)
        else:
            g_mean, y_mean = g.mean(-1), y.mean(-1)
            centred = g - g_mean[..., None]
            scale = (y * centred).sum(-1) / (centred**2).sum(-1)
            base = y_mean - scale * g_mean
            if self.asymptote:  # in [0, 1], and a scale of 0 or more: on an edge where the free one is outside
                through_one = ((y - 1) * g).sum(-1) / (g**2).sum(-1)
                scale = np.select([base < 0, base > 1], [through_zero, through_one], scale)
                base = base.clip(0, 1)
                flat = scale < 0
                scale, base = np.where(flat, 0, scale), np.where(flat, y_mean.clip(0, 1), base)
        return base, scale, ((y - base[..., None] - scale[..., None] * g) ** 2).sum(-1)

    def polish(self, sizes: np.ndarray, errors: np.ndarray, start: np.ndarray) -> np.ndarray:
        """The fit of one curve: from the best point of the grid to the best one within the bounds."""
        if not self.bounds:
            return start  # linear, so exact
        free = slice(0 if self.asymptote else 1, 3)

        def whole(p: np.ndarray) -> np.ndarray:
            """Asymptote, scale, rate from what is free, where the rate is a logarithm."""
            return np.array([*([] if self.asymptote else [0.0]), *p[:-1], np.exp(p[-1])])

        log_low, log_high = np.log(self.bounds(sizes.min(), sizes.max()))
        low, high = np.array([0, 0, log_low])[free], np.array([1, np.inf, log_high])[free]
        found = optimize.least_squares(
            lambda p: self.predict(sizes, whole(p)) - errors,
            np.array([start[0], start[1], np.log(start[2])])[free].clip(low, high),
            bounds=(low, high), x_scale=np.array([0.1, max(start[1], 0.1), 1.0])[free],
            xtol=1e-12, ftol=1e-12, gtol=1e-12,
        )  # fmt: skip
        worse = found.fun @ found.fun > ((self.predict(sizes, start) - errors) ** 2).sum()
        return start if worse else whole(found.x)

    def predict(self, sizes: np.ndarray, fit: np.ndarray) -> np.ndarray:
        """Error [S] at sizes [S], of a fit of `solve`."""
        return fit[0] + fit[1] * self.shape(sizes, fit[2] if self.bounds else np.zeros(1))


def _logarithm(n: np.ndarray, rate: np.ndarray) -> np.ndarray:
    return np.log(n) + 0 * rate  # of the shape that a rate would give


def _power(n: np.ndarray, b: np.ndarray) -> np.ndarray:
    return n**-b


def _hyperbola(n: np.ndarray, k: np.ndarray) -> np.ndarray:
    return 1 / (1 + n / k)


MODELS = {
    "log-linear": Fit(_logarithm, None, None),
    "power law": Fit(_power, False, lambda low, high: (1e-3, 10.0)),
    "power law to an asymptote": Fit(_power, True, lambda low, high: (1e-3, 10.0)),
    "saturating": Fit(_hyperbola, True, lambda low, high: (low / 100, 100 * high)),
}


def fits(frame: pd.DataFrame, resamples: int = 1_000, seed: int = 0) -> pd.DataFrame:
    """Error = 1 - mIoU against labels n: which form of diminishing returns do the data support?

    Least squares on seed means of 'log-linear' a + b ln(n), 'power law' a n^-b, 'power law to an asymptote'
    e_inf + a n^-b (Hestness et al. 2017) and 'saturating' e_inf + a / (1 + n / k), with e_inf in [0, 1] and a, b,
    k > 0. Each is judged by a fit without the largest size that predicts it.

    Args:
        frame: what `tables.read_metrics` returns.
        resamples: bootstrap samples over seeds.
        seed: of the resampling.

    Returns:
        A row per (intermediate, pretrain_size, model): sizes; n, the least number of seeds at a size;
        parameters, their number; asymptote (e_inf), scale (a) and rate (b or k), each with _low and _high, the
        95 % bootstrap interval, which takes 3 seeds; rmse of the fit; error_at_largest, predicted mIoU minus
        the measured one at the largest size; best, whether that is the smallest in size of the identified
        models of its curve; verdict, 'identified' or 'not identified' and why. What is not identified has no
        parameters in the table. Errors are fractions.

    Raises:
        InputError: a cell given more than once, or several studies.
    """
    _check(frame)
    rows = []
    for (task, size), curve in frame.dropna(subset="miou").groupby(["intermediate", "pretrain_size"]):
        wide = curve.pivot(index="seed", columns="finetune_size", values="miou")
        about = {"intermediate": task, "pretrain_size": size, "sizes": len(wide.columns)}
        mine = pd.DataFrame([about | row for row in _fit_curve(wide, resamples, seed)], columns=FITS)
        identified = mine["verdict"].str.startswith("identified")
        errors = mine.loc[identified, "error_at_largest"].abs()
        mine["best"] = (mine.index == errors.idxmin()) if len(errors) else False
        rows.append(mine)
    return _sort(pd.concat(rows)) if rows else pd.DataFrame(columns=FITS)


def _fit_curve(wide: pd.DataFrame, resamples: int, seed: int) -> list[dict[str, Any]]:
    """A row a model for one curve, mIoU [seeds, sizes]."""
    sizes, errors = wide.columns.to_numpy(float), 1 - wide.mean().to_numpy()
    n = int(wide.count().min())
    means, row_of_draw = resampled(wide, resamples, seed)
    rows: list[dict[str, Any]] = []
    for name, model in MODELS.items():
        row: dict[str, Any] = {"model": name, "n": n, "parameters": model.parameters}
        if len(sizes) <= model.parameters + 1:
            words = f"{len(sizes)} sizes are too few for {model.parameters} parameters"
            rows.append(row | {"verdict": f"not identified: {words}"})
            continue
        fit = model.polish(sizes, errors, model.solve(sizes, errors[None])[0])
        before = model.polish(sizes[:-1], errors[:-1], model.solve(sizes[:-1], errors[None, :-1])[0])
        row["rmse"] = float(np.sqrt(((model.predict(sizes, fit) - errors) ** 2).mean()))
        row["error_at_largest"] = float(errors[-1] - model.predict(sizes[-1:], before)[0])
        ends = np.full((2, 3), np.nan)
        if n >= LEAST_CLUSTERS:
            found = model.solve(sizes, 1 - means)[row_of_draw]
            ends = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        rivals = [abs(r["error_at_largest"]) for r in rows if MODELS[r["model"]].asymptote is not True and "rmse" in r]
        why = _unidentified(model, fit, ends, sizes, errors, n, abs(row["error_at_largest"]), rivals)
        if not why:
            for parameter, i in model.places.items():
                row |= {parameter: fit[i], f"{parameter}_low": ends[0, i], f"{parameter}_high": ends[1, i]}
        few = "" if n >= LEAST_CLUSTERS else f"; {_seeds(n)} no interval"
        rows.append(row | {"verdict": f"not identified: {why}" if why else f"identified{few}"})
    return rows


def fitted_miou(row: Mapping[str, Any], labels: np.ndarray) -> np.ndarray:
    """mIoU [S], a fraction, that an identified row of `fits` gives at numbers of labels [S]."""
    model = MODELS[row["model"]]
    fit = np.zeros(3)
    for parameter, place in model.places.items():
        fit[place] = row[parameter]
    return 1 - model.predict(np.asarray(labels, float), fit)


def _seeds(n: int) -> str:
    return "one seed gives" if n == 1 else f"{n} seeds give"


def _unidentified(
    model: Fit,
    fit: np.ndarray,
    ends: np.ndarray,
    sizes: np.ndarray,
    errors: np.ndarray,
    n: int,
    error: float,
    rivals: list[float],
) -> str:
    """Why a fit's parameters mean nothing; empty where they do."""
    if model.bounds:
        low, high = model.bounds(sizes.min(), sizes.max())
        if fit[1] <= TINY:
            return "the error does not fall"
        if not low * (1 + TINY) < fit[2] < high * (1 - TINY):
            return "the rate runs to its bound"
    if not model.asymptote:
        return ""
    if fit[0] <= TINY or fit[0] >= 1 - TINY:
        return f"the asymptote runs to its bound of {100 * round(fit[0])} %"
    if np.isnan(ends).any():
        return f"{_seeds(n)} no interval for the asymptote"
    if ends[1, 0] - ends[0, 0] > WIDEST * errors.min():
        return (
            f"the asymptote's interval, {100 * ends[0, 0]:.1f} to {100 * ends[1, 0]:.1f} %, "
            f"covers more than half of the range up to the least error, {100 * errors.min():.1f} %"
        )
    if rivals and min(rivals) <= error:
        return "a form without an asymptote predicts the largest size better"
    return ""


def transfer(frame: pd.DataFrame, resamples: int = 2_000, seed: int = 0) -> pd.DataFrame:
    """Effective data transferred (Hernandez et al. 2021): how many labels is pre-training worth?

    The labels that a random start (no pre-training, no intermediate task) needs for the same mIoU, from the curve
    of its seed means, made monotone (isotonic regression) and piecewise linear in log(labels).

    Args:
        frame: what `tables.read_metrics` returns.
        resamples: bootstrap samples over seeds.
        seed: of the resampling.

    Returns:
        A row per cell that is no random start: miou, its mean; n seeds; labels_worth, the labels of a random
        start with that mIoU; ratio, labels_worth / finetune_size, below 1 where pre-training hurts; low and high,
        its 95 % bootstrap interval over 3 or more seeds, an end that lies outside of the curve empty; censored,
        'beyond' where mIoU exceeds the whole curve, so that labels_worth and ratio are lower bounds, 'below'
        where it is less, so that they are upper bounds, else empty; verdict in words. Empty without a random
        start.

    Raises:
        InputError: a cell given more than once, or several studies.
    """
    _check(frame)
    columns = ["pretrain_size", "intermediate", "finetune_size"]
    wide = frame.dropna(subset="miou").pivot(index="seed", columns=columns, values="miou")
    is_random = [key[:2] == (0, "none") for key in wide.columns]
    curve, others = wide.loc[:, is_random], wide.loc[:, np.logical_not(is_random)]
    if curve.empty or others.empty:
        return pd.DataFrame(columns=TRANSFER)
    start = np.array([key[2] for key in curve.columns], float)
    order = np.argsort(start)
    start, curve = start[order], curve.iloc[:, order]
    counts = curve.count().to_numpy()
    worth, beyond, below = _labels_worth(start, curve.mean().to_numpy(), others.mean().to_numpy(), counts)
    draws, row_of_draw = resampled(pd.concat([curve, others], axis=1), resamples, seed)
    drawn = [_labels_worth(start, row[: len(start)], row[len(start) :], counts) for row in draws]
    worths = np.array([found[0] for found in drawn])[row_of_draw]
    over, under = (np.array([found[i] for found in drawn])[row_of_draw].mean(0) for i in (1, 2))
    tail = (1 - LEVEL) / 2
    rows = []
    for i, key in enumerate(others.columns):
        row: dict[str, Any] = dict(zip(GROUP, (key[0], key[1], key[2]), strict=True))
        row |= {"miou": others[key].mean(), "n": others[key].count(), "labels_worth": worth[i]}
        row |= {"ratio": worth[i] / key[2], "censored": "beyond" if beyond[i] else "below" if below[i] else ""}
        supported = len(start) > 1 and np.isfinite(draws[:, [*range(len(start)), len(start) + i]]).all()
        low = high = np.nan
        if supported:
            low, high = np.quantile(worths[:, i], [tail, 1 - tail]) / key[2]
            # An end that the curve's own end holds back is no end, unless it is the near one.
            low, high = np.nan if under[i] > tail else low, np.nan if over[i] > tail else high
        row |= {"low": low, "high": high}
        # The paired difference is what the cell's own interval is of; at a censored end the ratio says less.
        same = (0, "none", key[2])
        gain = describe((others[key] - wide[same]).dropna()) if same in wide else {"low": np.nan, "high": np.nan}
        undecided = not (gain["low"] > 0 or gain["high"] < 0)
        rows.append(row | {"verdict": _worth(row, bool(supported), len(start), undecided)})
    return _sort(pd.DataFrame(rows, columns=TRANSFER))


def _labels_worth(
    sizes: np.ndarray, curve: np.ndarray, mious: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels at which a curve [S] reaches mIoUs [M], held within its sizes; and which lie beyond or below it."""
    if not np.isfinite(curve).all():
        return (np.full(len(mious), np.nan), *np.zeros((2, len(mious)), bool))
    fitted = optimize.isotonic_regression(curve, weights=weights).x
    rising = fitted + 1e-12 * np.arange(len(fitted))  # so that a flat part has an inverse: its fewest labels
    worth = np.exp(np.interp(mious, rising, np.log(sizes)))
    ends = [mious <= fitted[0] + 1e-9, mious >= fitted[-1] - 1e-9]
    worth = np.select(ends, [sizes[0], sizes[-1]], worth)  # the sizes themselves, free of rounding
    return worth, mious > fitted[-1] + 1e-9, mious < fitted[0] - 1e-9


def _worth(row: Mapping[str, Any], supported: bool, sizes: int, undecided: bool) -> str:
    """A row of `transfer` in words; undecided where its paired difference from a random start may be zero."""
    ratio = f"{row['ratio']:.2g}"
    if sizes < 2:
        return "the random start was run at one size, so there is no curve to compare with"
    if row["censored"] == "beyond":
        words = f"worth at least {ratio} times its labels, beyond the random start's curve"
    elif row["censored"] == "below":
        words = f"worth at most {ratio} times its labels, below the random start's curve"
    else:
        words = f"worth {ratio} times its labels"
    if not supported:
        return f"{words}; fewer than {LEAST_CLUSTERS} seeds give no interval"
    low, high = row["low"], row["high"]
    if (np.isnan(low) and np.isnan(high)) or (undecided and row["censored"]):
        return NOT_TOLD
    # At an end of the curve the held-back interval touches 1, and all of it is on that side.
    if high < 1 or (high < 1 + TINY and row["censored"] == "below"):
        return f"hurts, {words}"
    if low > 1 or (low > 1 - TINY and row["censored"] == "beyond"):
        return f"helps, {words}"
    ends = f"{low:.2g}" if low == low else "below the curve", f"{high:.2g}" if high == high else "beyond the curve"
    return f"{words} ({ends[0]} to {ends[1]}), help or harm undecided"


def costs(frame: pd.DataFrame, chain: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Cost beside benefit: mIoU against operations, seconds and labels, with the Pareto fronts of the means.

    Seconds of different devices are never averaged or compared: a cell whose seeds ran on several has no seconds,
    and front_seconds is a front for each device.

    Args:
        frame: what `tables.read_metrics` returns.
        chain: for the name of each cell 'seconds' (s), 'operations' (FLOP) and 'device', summed over its own
            chain: pre-training, intermediate task and fine-tuning.

    Returns:
        A row per (pretrain_size, intermediate, finetune_size): n seeds; miou, the mean, and its sd (ddof=1);
        seconds and operations, means; device; front, whether no cell has as much mIoU for fewer operations or
        more for as many; front_seconds, the same for seconds; front_labels, the same for operations among cells
        of equal labels; verdict, which says why there are no seconds.

    Raises:
        InputError: a cell that the chain lacks, or a cost that is none.
    """
    _check(frame)
    cells = frame.dropna(subset="miou")
    cells = cells.assign(**_chain_columns(cells["cell"], chain))
    rows = []
    for key, cell in cells.groupby(GROUP):
        devices = sorted(cell["device"].unique())
        mixed = len(devices) > 1
        row = dict(zip(GROUP, key, strict=True)) | {"n": len(cell), "miou": cell["miou"].mean()}
        row |= {"sd": cell["miou"].std(ddof=1), "operations": cell["operations"].mean()}
        row |= {"seconds": np.nan if mixed else cell["seconds"].mean(), "device": " and ".join(devices)}
        row["verdict"] = f"no seconds: its seeds ran on {row['device']}" if mixed else ""
        rows.append(row)
    table = _sort(pd.DataFrame(rows, columns=COSTS))
    table["front"] = _front(table["operations"], table["miou"])
    table["front_seconds"], table["front_labels"] = False, False
    for by, cost, name in (("device", "seconds", "front_seconds"), ("finetune_size", "operations", "front_labels")):
        for _, part in table.groupby(by):
            table.loc[part.index, name] = _front(part[cost], part["miou"])
    return table


def _chain_columns(names: pd.Series, chain: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Any]]:
    """seconds, operations and device of each cell."""
    columns: dict[str, list[Any]] = {"seconds": [], "operations": [], "device": []}
    for name in names:
        cost = chain.get(name)
        if not isinstance(cost, Mapping):
            raise InputError(f"no costs of cell {name}; give seconds, operations and device of every evaluated cell")
        for key, values in columns.items():
            value = cost.get(key)
            number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < np.inf
            if not (isinstance(value, str) if key == "device" else number):
                kind = "a device's name" if key == "device" else "a finite number, 0 or more"
                raise InputError(f"costs of cell {name}: '{key}' is {value!r}; expected {kind}")
            values.append(value)
    return columns


def _front(cost: pd.Series, benefit: pd.Series) -> np.ndarray:
    """Which points no other one dominates; one without a cost is on no front."""
    c, b = cost.to_numpy(float), benefit.to_numpy(float)
    no_worse = (c[None] <= c[:, None]) & (b[None] >= b[:, None])
    better = (c[None] < c[:, None]) | (b[None] > b[:, None])
    return ~(no_worse & better).any(1) & np.isfinite(c)


def next_step(frame: pd.DataFrame, chain: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Where should the next hour, or the next 500 labels, go from each point of the front?

    The moves from a point are to the next number of labels, to the next number of pre-training images, and, from
    none, to each intermediate task; everything else stays. Gains are paired within seeds.

    Args:
        frame: what `tables.read_metrics` returns.
        chain: as in `costs`.

    Returns:
        A row for each move from a point of the Pareto front of mIoU against operations: the point and its
        miou; move; the point it leads to (to_ columns); n seeds; gain in mIoU with low and high, its 95 % t
        interval (empty for one seed); further_labels, further_pretrain_images, further_hours (of one device,
        else empty), further_operations (FLOP); gain_per_hour and gain_per_500_labels, each with _low and _high,
        empty where nothing further is spent; words. Gains are fractions.

    Raises:
        InputError: as `costs`.
    """
    table = costs(frame, chain)
    spent = table.set_index(GROUP)
    wide = frame.dropna(subset="miou").pivot(index="seed", columns=GROUP, values="miou")
    rows = []
    for point in table[table["front"]].sort_values("operations").to_dict("records"):
        here = tuple(point[k] for k in GROUP)
        for move, there in _moves(here, list(spent.index)):
            gains = (wide[there] - wide[here]).dropna()
            if len(gains):
                rows.append(_step(here, there, move, gains, spent))
    return pd.DataFrame(rows, columns=STEPS).reset_index(drop=True)


def _moves(here: tuple[int, str, int], cells: list[tuple[int, str, int]]) -> list[tuple[str, tuple[int, str, int]]]:
    size, task, labels = here
    further = sorted(cell for cell in cells if cell[:2] == (size, task) and cell[2] > labels)[:1]
    moves = [("more labels", cell) for cell in further]
    larger = sorted(cell for cell in cells if cell[1:] == (task, labels) and cell[0] > size)[:1]
    moves += [("more pre-training images", cell) for cell in larger]
    if task == "none":
        tasks = sorted(cell for cell in cells if (cell[0], cell[2]) == (size, labels) and cell[1] != "none")
        moves += [(f"intermediate task {cell[1]}", cell) for cell in tasks]
    return moves


def _step(
    here: tuple[int, str, int], there: tuple[int, str, int], move: str, gains: pd.Series, spent: pd.DataFrame
) -> dict[str, Any]:
    """A row of `next_step`."""
    before, after = spent.loc[here], spent.loc[there]
    one_device = before["device"] == after["device"]
    gain = {k: v for k, v in describe(gains).items() if k in ("n", "low", "high")} | {"gain": gains.mean()}
    hours = (after["seconds"] - before["seconds"]) / 3600 if one_device else np.nan
    row = dict(zip(GROUP, here, strict=True)) | {"miou": before["miou"], "move": move}
    row |= dict(zip((f"to_{k}" for k in GROUP), there, strict=True)) | gain
    row |= {"further_labels": there[2] - here[2], "further_pretrain_images": there[0] - here[0]}
    row |= {"further_hours": hours, "further_operations": after["operations"] - before["operations"]}
    units = {"gain_per_hour": hours, "gain_per_500_labels": row["further_labels"] / LABELS_STEP}
    for name, spend in units.items():
        for end, value in (("", row["gain"]), ("_low", row["low"]), ("_high", row["high"])):
            row[name + end] = value / spend if spend > 0 else np.nan
    return row | {"words": _step_in_words(row, one_device)}


def _step_in_words(row: Mapping[str, Any], one_device: bool) -> str:
    def span(name: str, unit: str) -> str:
        low, high = row["low" if name == "gain" else f"{name}_low"], row["high" if name == "gain" else f"{name}_high"]
        interval = f" ({100 * low:+.2f} to {100 * high:+.2f})" if low == low else " (one seed, no interval)"
        return f"{100 * row[name]:+.2f}{interval} {unit}"

    said = [span("gain", "points")]
    if row["further_labels"]:
        said.append(span("gain_per_500_labels", f"a further {LABELS_STEP} labels"))
    if row["further_hours"] >= LEAST_HOURS:
        said.append(span("gain_per_hour", f"a further hour, at the rate of these {row['further_hours']:.2g} hours"))
    elif row["further_hours"] > 0:
        said.append(f"it takes {3600 * row['further_hours']:.0f} s more, too few to tell of an hour")
    elif one_device and row["further_hours"] == row["further_hours"]:
        said.append("no further time was measured")
    else:
        said.append("its seconds are of other devices, so no gain an hour")
    where = _cell_in_words(row["pretrain_size"], row["intermediate"], row["finetune_size"])
    return f"From {where} ({100 * row['miou']:.1f} %), {row['move']}: {'; '.join(said)}."


def _cell_in_words(size: int, task: str, labels: int) -> str:
    return f"{size:,} pre-training images, {'no task' if task == 'none' else task}, {labels:,} labels"


def write_statistics(
    metric_paths: Iterable[str | Path],
    confusion_dir: str | Path,
    chain: Mapping[str, Mapping[str, Any]] | None,
    out_dir: str | Path,
) -> None:
    """Write the tables of this module and of `statistics`.

    effects, effects_overall, fits and transfer as .csv and .md; image_noise, marginal_gains and costs as .csv;
    next_steps.md. Every file says the study, its protocol and its note, the CSVs in columns of their own.

    Args:
        metric_paths: JSON files of one study, one a cell.
        confusion_dir: folder with the confusion matrices of each cell, <cell>.npz.
        chain: as in `costs`; None where no costs are known, which the files say.
        out_dir: folder for the tables; made where it is not there.

    Raises:
        InputError: as `read_metrics`, `noise_of_images` and `costs`, or cells of several studies.
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
        with atomic_path(Path(out_dir) / f"{name}.md") as tmp:
            tmp.write_text(f"# {title}\n\n{about_numbers(frame)}\n\n{words}\n\n{body}", encoding="utf-8")


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
