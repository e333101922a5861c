"""Fits of error against labels, and which of them the cells identify."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize

from viny.evidence.statistics.effects import (
    LEAST_CLUSTERS,
    LEVEL,
)
from viny.evidence.statistics.gains import resampled
from viny.evidence.tables import (
    check_cells,
    in_order,
)

CURVE = ["asymptote", "scale", "rate"]  # parameters of a fit: e_inf, a, and b or k
FITS = ["intermediate", "pretrain_size", "model", "sizes", "n", "parameters"]
FITS += [f"{name}{end}" for name in CURVE for end in ("", "_low", "_high")]
FITS += ["rmse", "error_at_largest", "best", "verdict"]
GRID = 121  # values of a fit's rate to try
FINER = 21  # and then around the best of them
WIDEST = 0.5  # of an asymptote's possible range: the most that its interval may cover
TINY = 1e-6  # a value this close to its bound counts as on it


@dataclass(frozen=True)
class Fit:
    """A form of error against labels n: asymptote + scale * shape(n, rate).

    Attributes:
        shape: function of n [S] and rate [..., 1].
        asymptote: whether the form has one, in [0, 1]; if not, it is 0. None for the log-linear form, where it is
            the error at n = 1 and unbounded.
        bounds: of the rate, from the smallest and the largest n; None if there is no rate.
    """

    shape: Callable[[np.ndarray, np.ndarray], np.ndarray]
    asymptote: bool | None
    bounds: Callable[[float, float], tuple[float, float]] | None

    @property
    def parameters(self) -> int:
        return 1 + (self.asymptote is not False) + (self.bounds is not None)

    @property
    def places(self) -> dict[str, int]:
        """Positions of the table's parameters in what `solve` returns."""
        if self.asymptote is None:
            return {"scale": 0, "rate": 1}
        return {name: i for i, name in enumerate(CURVE) if self.asymptote or i}

    def solve(self, sizes: np.ndarray, errors: np.ndarray) -> np.ndarray:
        """Least squares for many curves at once: a grid of rates, refined twice; given a rate, the rest is linear.

        Args:
            sizes: [S].
            errors: [R, S].

        Returns:
            [R, 3]: asymptote, scale, rate (NaN if the form has none).
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
            if self.asymptote:  # in [0, 1], with a scale of 0 or more: on an edge if the free one is outside
                through_one = ((y - 1) * g).sum(-1) / (g**2).sum(-1)
                scale = np.select([base < 0, base > 1], [through_zero, through_one], scale)
                base = base.clip(0, 1)
                flat = scale < 0
                scale, base = np.where(flat, 0, scale), np.where(flat, y_mean.clip(0, 1), base)
        return base, scale, ((y - base[..., None] - scale[..., None] * g) ** 2).sum(-1)

    def polish(self, sizes: np.ndarray, errors: np.ndarray, start: np.ndarray) -> np.ndarray:
        """The fit of one curve: moves from the best point of the grid to the best one within the bounds."""
        if not self.bounds:
            return start  # linear, so exact
        free = slice(0 if self.asymptote else 1, 3)

        def whole(p: np.ndarray) -> np.ndarray:
            """Asymptote, scale, rate from the free parameters, whose rate is a logarithm."""
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
        """Error [S] at sizes [S], by a fit from `solve`."""
        return fit[0] + fit[1] * self.shape(sizes, fit[2] if self.bounds else np.zeros(1))


def _logarithm(n: np.ndarray, rate: np.ndarray) -> np.ndarray:
    return np.log(n) + 0 * rate  # gives it the shape that a rate would


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
    k > 0. Each form is judged by how well a fit without the largest size predicts that size.

    Args:
        frame: what `tables.read_metrics` returns.
        resamples: bootstrap samples over seeds.
        seed: of the resampling.

    Returns:
        One row per (intermediate, pretrain_size, model): sizes; n, the smallest number of seeds at a size;
        parameters, their number; asymptote (e_inf), scale (a) and rate (b or k), each with _low and _high, the
        95 % bootstrap interval, which needs 3 seeds; rmse of the fit; error_at_largest, predicted minus measured
        mIoU at the largest size; best, whether its magnitude is the smallest among the curve's identified models;
        verdict, 'identified' or 'not identified' and why. A model that is not identified has no parameters in the
        table. Errors are fractions.

    Raises:
        InputError: a cell given more than once, or several studies.
    """
    check_cells(frame)
    rows = []
    for (task, size), curve in frame.dropna(subset="miou").groupby(["intermediate", "pretrain_size"]):
        wide = curve.pivot(index="seed", columns="finetune_size", values="miou")
        about = {"intermediate": task, "pretrain_size": size, "sizes": len(wide.columns)}
        mine = pd.DataFrame([about | row for row in _fit_curve(wide, resamples, seed)], columns=FITS)
        identified = mine["verdict"].str.startswith("identified")
        errors = mine.loc[identified, "error_at_largest"].abs()
        mine["best"] = (mine.index == errors.idxmin()) if len(errors) else False
        rows.append(mine)
    return in_order(pd.concat(rows)) if rows else pd.DataFrame(columns=FITS)


def _fit_curve(wide: pd.DataFrame, resamples: int, seed: int) -> list[dict[str, Any]]:
    """One row per model for one curve, mIoU [seeds, sizes]."""
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
    """mIoU [S], a fraction, that an identified row of `fits` predicts at numbers of labels [S]."""
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
    """Why a fit's parameters are not identified; empty if they are."""
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
