"""Curves of error against labels: forms averaged by how well they foretell sizes that were left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import special, stats

from viny.evidence.statistics.crossed import ALPHA, LEVEL, Runs
from viny.evidence.tables import in_order

CURVE = ["asymptote", "scale", "rate"]  # parameters of a fit: e_inf, a, and b or k
FORETOLD = ["error_at_largest", "exponent", "gain"]
AVERAGE = "average"  # in the column of the forms
FITS = ["intermediate", "pretrain_size", "model", "sizes", "n", "parameters", "weight"]
FITS += [f"{name}{end}" for name in CURVE for end in ("", "_low", "_high")] + ["rmse", "held_out"]
FITS += [f"{name}{end}" for name in FORETOLD for end in ("", "_low", "_high")] + ["verdict"]
GRID = 121  # values of a fit's rate to try
FINER = 15  # and then around the best of them,
ZOOMS = 3  # so many times
WIDEST = 0.5  # of an asymptote's possible range: the most that its interval may cover
TINY = 1e-6  # a value this close to its bound counts as on it
LEFT_OUT = 200  # draws for the spread of the errors at sizes left out
DIRICHLET = 1000  # draws of the Bayesian bootstrap


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
        """Least squares for many curves at once: a grid of rates, refined; given a rate, the rest is linear.

        Args:
            sizes: [S].
            errors: [R, S].

        Returns:
            [R, 3]: asymptote, scale, rate (0 if the form has none).
        """
        if not self.bounds:
            base, scale, _ = self._linear(sizes, errors, np.zeros((1, 1)))
            return np.stack([base[:, 0], scale[:, 0], np.zeros(len(errors))], axis=1)
        low, high = np.log(self.bounds(sizes.min(), sizes.max()))
        rates, step = np.linspace(low, high, GRID)[None], (high - low) / (GRID - 1)
        row = np.arange(len(errors))
        for zoom in range(ZOOMS + 1):
            base, scale, rss = self._linear(sizes, errors, np.exp(rates))
            best = rss.argmin(1)
            found = np.broadcast_to(rates, rss.shape)[row, best]
            if zoom < ZOOMS:
                rates = (found[:, None] + np.linspace(-step, step, FINER)).clip(low, high)
                step = 2 * step / (FINER - 1)
        return np.stack([base[row, best], scale[row, best], np.exp(found)], axis=1)

    def _linear(
        self, sizes: np.ndarray, errors: np.ndarray, rates: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Asymptote, scale and sum of squares [R, G] at given rates [R or 1, G], within the bounds."""
        g = self.shape(sizes, rates[..., None])  # [R or 1, G, S]
        n, g_mean, y_mean = len(sizes), g.mean(-1), errors.mean(-1, keepdims=True)
        g_apart, y_apart = g - g_mean[..., None], errors - y_mean
        gg = (g_apart**2).sum(-1)
        yg = y_apart @ g_apart[0].T if len(g) == 1 else np.einsum("rgs,rs->rg", g_apart, y_apart)

        def through(base: float) -> np.ndarray:
            """The scale if the asymptote is given."""
            return (yg + n * (y_mean - base) * g_mean) / (gg + n * g_mean**2)

        if self.asymptote is False:
            scale = through(0).clip(0)
            base = np.zeros_like(scale)
        else:
            scale = yg / gg
            base = y_mean - scale * g_mean
            if self.asymptote:  # in [0, 1], with a scale of 0 or more: on an edge if the free one is outside
                scale = np.select([base < 0, base > 1], [through(0), through(1)], scale)
                base = base.clip(0, 1)
                flat = scale < 0
                scale, base = np.where(flat, 0, scale), np.where(flat, y_mean.clip(0, 1), base)
        rss = (y_apart**2).sum(-1, keepdims=True) - 2 * scale * yg + scale**2 * gg
        return base, scale, rss.clip(0) + n * (y_mean - base - scale * g_mean) ** 2

    def predict(self, sizes: np.ndarray, fits: np.ndarray) -> np.ndarray:
        """Errors [R, S] at sizes [S], by fits [R, 3] from `solve`."""
        return fits[:, :1] + fits[:, 1:2] * self.shape(sizes, fits[:, 2:])

    def foretell(self, largest: float, fits: np.ndarray) -> dict[str, np.ndarray]:
        """By fits [R, 3]: the error at the largest size, the local exponent there, the gain of the next doubling; [R].

        The local exponent is -d ln(error) / d ln(n), which is b for a power law.
        """
        step = 1e-4
        now, then = self.predict(np.array([largest, 2 * largest]), fits).T
        before, after = self.predict(largest * np.exp([-step, step]), fits).T
        exponent = (before - after) / (2 * step) / now.clip(TINY)
        return {"error_at_largest": now, "exponent": exponent, "gain": now - then}


def _logarithm(n: np.ndarray, rate: np.ndarray) -> np.ndarray:
    return np.log(n) + 0 * rate  # gives it the shape that a rate would


def _power(n: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.exp(-b * np.log(n))


def _hyperbola(n: np.ndarray, k: np.ndarray) -> np.ndarray:
    return 1 / (1 + n / k)


MODELS = {
    "log-linear": Fit(_logarithm, None, None),
    "power law": Fit(_power, False, lambda low, high: (1e-3, 10.0)),
    "power law to an asymptote": Fit(_power, True, lambda low, high: (1e-3, 10.0)),
    "saturating": Fit(_hyperbola, True, lambda low, high: (low / 100, 100 * high)),
}


def fits(runs: Runs, draws: int = 1_000, seed: int = 0) -> pd.DataFrame:
    """Error = 1 - mIoU against labels n: several forms of diminishing returns, and their average.

    Least squares on seed means of 'log-linear' a + b ln(n), 'power law' a n^-b, 'power law to an asymptote'
    e_inf + a n^-b (Hestness et al. 2017) and 'saturating' e_inf + a / (1 + n / k), with e_inf in [0, 1] and a, b,
    k > 0. Each size but the smallest is left out in turn and foretold from the others. The forms are averaged by how
    likely their errors there are, given the noise (pseudo-BMA+, Yao et al. 2018). Intervals are quantiles of
    `Runs.draws`, over seeds and test images. Those of the average are over the forms too, and to what a form says of
    larger sizes they add a normal error as large as the one that it made at the largest size, left out, beyond noise.

    Args:
        runs: a study's mIoU, see `crossed.read_runs`.
        draws: of the cells' means.
        seed: of the draws.

    Returns:
        One row per (intermediate, pretrain_size, model), and one with model 'average': sizes; n, the smallest number
        of seeds at a size; parameters, their number; weight in the average, empty for the average itself; asymptote
        (e_inf), scale (a) and rate (b or k), each with _low and _high, the 95 % interval, if the form is identified;
        rmse of the fit; held_out, predicted minus measured mIoU at the largest size by a fit without it;
        error_at_largest, exponent, the local one there (Hoiem et al. 2021, whose data reliance is 2 error exponent),
        and gain in mIoU by the next doubling, each with _low and _high; verdict, 'identified' or 'not identified' and
        why, or what the average rests on. Errors and gains are fractions.
    """
    every = runs.contrasts(np.eye(len(runs.keys)))
    drawn = runs.draws(draws, seed).clip(0, 1)
    rows = []
    for task, size in dict.fromkeys((key[1], key[0]) for key in runs.keys):
        labels = sorted(key[2] for key in runs.keys if (key[1], key[0]) == (task, size))
        cells = [runs.place[size, task, n] for n in labels]
        about = {"intermediate": task, "pretrain_size": size, "sizes": len(labels), "n": int(every.n[cells].min())}
        df = np.nanmin(every.df[cells]) if np.isfinite(every.df[cells]).all() else np.nan
        curve = _Curve(np.array(labels, float), 1 - every.mean[cells], 1 - drawn[:, cells], df, seed)
        rows += [about | row for row in curve.rows()]
    return in_order(pd.DataFrame(rows, columns=FITS))


def fitted_miou(row: Mapping[str, Any], labels: np.ndarray) -> np.ndarray:
    """mIoU [S], a fraction, that a form's row of `fits` predicts at numbers of labels [S]."""
    model = MODELS[row["model"]]
    fit = np.zeros((1, 3))
    for parameter, place in model.places.items():
        fit[0, place] = row[parameter]
    return 1 - model.predict(np.asarray(labels, float), fit)[0]


@dataclass(frozen=True, eq=False)
class _Curve:
    """A curve to fit.

    Attributes:
        sizes: numbers of labels [S], in ascending order.
        errors: means [S].
        drawn: draws of them [D, S]; NaN if the spread is unknown.
        df: degrees of freedom of the means; NaN if the spread is unknown.
        seed: of all else that is drawn.
    """

    sizes: np.ndarray
    errors: np.ndarray
    drawn: np.ndarray
    df: float
    seed: int

    def rows(self) -> list[dict[str, Any]]:
        """Of the table: one per form, and one of their average."""
        enough = {name: model for name, model in MODELS.items() if len(self.sizes) > model.parameters + 1}
        found = [self._fit(model) for model in enough.values()]
        if not found:
            fewest = min(model.parameters for model in MODELS.values())
            return [
                *({"model": name, "parameters": m.parameters, "verdict": self._few(m)} for name, m in MODELS.items()),
                {"model": AVERAGE, "verdict": f"no form: {len(self.sizes)} sizes are too few for {fewest} parameters"},
            ]
        weights, misfit, excess = self._average(found)
        by_name = dict(zip(enough, found, strict=True))
        rows: list[dict[str, Any]] = []
        for name, model in MODELS.items():
            row: dict[str, Any] = {"model": name, "parameters": model.parameters}
            if name not in by_name:
                rows.append(row | {"weight": 0.0, "verdict": self._few(model)})
                continue
            fit, errors = by_name[name], by_name[name].left_out[0]
            row |= {"weight": weights[list(enough).index(name)], "held_out": errors[-1]}
            row["rmse"] = np.sqrt(((model.predict(self.sizes, fit.parameters[:1])[0] - self.errors) ** 2).mean())
            low, high = np.quantile(fit.parameters[1:], TAILS, axis=0) if self.known else np.full((2, 3), np.nan)
            plain = [f for m, f in zip(enough.values(), found, strict=True) if m.asymptote is not True]
            why = self._unidentified(model, fit, low, high, min(abs(f.left_out[0, -1]) for f in plain))
            for parameter, i in model.places.items():
                row[parameter] = fit.parameters[0, i]
                if not why:
                    row |= {f"{parameter}_low": low[i], f"{parameter}_high": high[i]}
            row |= self._summary([fit], np.ones(1), np.zeros(1))  # the form taken for true
            few = "" if self.known else "; one seed gives no interval"
            rows.append(row | {"verdict": f"not identified: {why}" if why else f"identified{few}"})
        words = f"{len(found)} forms" + ("" if self.known else "; one seed gives no interval")
        if misfit < ALPHA:
            words += f"; none foretells the sizes left out (p {misfit:.2g})"
        return [*rows, {"model": AVERAGE, "verdict": words} | self._summary(found, weights, excess)]

    @property
    def known(self) -> bool:
        """Whether there is a spread."""
        return bool(np.isfinite(self.drawn).all())

    def _few(self, model: Fit) -> str:
        return f"not identified: {len(self.sizes)} sizes are too few for {model.parameters} parameters"

    def _fit(self, model: Fit) -> _Fitted:
        """Fits to the means and to the draws, and how they foretell each size but the smallest from the others."""
        curves = np.vstack([self.errors, self.drawn]) if self.known else self.errors[None]
        parameters = model.solve(self.sizes, curves)
        some, left_out = curves[: 1 + LEFT_OUT], []
        for i in range(1, len(self.sizes)):
            others = np.arange(len(self.sizes)) != i
            before = model.solve(self.sizes[others], some[:, others])
            left_out.append(some[:, i] - model.predict(self.sizes[i : i + 1], before)[:, 0])
        return _Fitted(parameters, model.foretell(self.sizes[-1], parameters), np.stack(left_out, axis=1))

    def _average(self, found: list[_Fitted]) -> tuple[np.ndarray, float, np.ndarray]:
        """Weights of the forms [K]; p of the errors at sizes left out, if all were noise; what the largest has beyond.

        The last is the root of its squared error less that of the noise, for each form [K].
        """
        errors = np.stack([fit.left_out[0] for fit in found])  # [K, S - 1]
        if self.known:
            around = np.stack([fit.left_out[1:] - fit.left_out[0] for fit in found])  # [K, D, S - 1]
            scale = noise_scale(around, self.df)
            density = stats.t.logpdf(errors / scale, self.df) - np.log(scale)
        else:  # the best of the forms stands for the noise
            scale = np.sqrt((errors**2).mean(1).min()).clip(TINY)
            density = stats.norm.logpdf(errors / scale)
        weights = form_weights(density, self.seed)
        if not self.known:
            return weights, np.nan, np.zeros(len(found))
        squares = weights @ ((errors / scale) ** 2).mean(1)
        by_noise = weights @ ((around / scale[:, None]) ** 2).mean(2)
        misfit = float((1 + (by_noise >= squares).sum()) / (1 + len(by_noise)))
        beyond = np.sqrt((errors[:, -1] ** 2 - scale[:, -1] ** 2).clip(0))
        return weights, misfit, beyond

    def _summary(self, found: list[_Fitted], weights: np.ndarray, excess: np.ndarray) -> dict[str, float]:
        """What forms foretell together, with intervals; the gain has further normal errors of size `excess` [K]."""
        row: dict[str, float] = {}
        doubling = np.random.default_rng(self.seed).standard_normal((len(found), len(self.drawn))) * excess[:, None]
        for name in FORETOLD:
            values = np.stack([fit.foretold[name] for fit in found])  # [K, 1 + D]
            row[name] = float(weights @ values[:, 0])
            if self.known:
                values = values[:, 1:]
                if name == "gain":
                    values = values + doubling
                if name == "exponent":  # what such a gain makes of it
                    values = values + doubling / (np.log(2) * self.errors[-1].clip(TINY))
                shares = np.repeat(weights / values.shape[1], values.shape[1])
                ends = np.quantile(values.ravel(), TAILS, weights=shares, method="inverted_cdf")
                row |= {f"{name}_low": float(ends[0]), f"{name}_high": float(ends[1])}
        return row

    def _unidentified(self, model: Fit, fit: _Fitted, low: np.ndarray, high: np.ndarray, rival: float) -> str:
        """Why a fit's parameters are not identified; empty if they are.

        Args:
            model: its form.
            fit: what was fitted.
            low, high: intervals of its parameters [3].
            rival: the least error at the largest size, left out, among the forms without an asymptote.
        """
        asymptote, scale, rate = fit.parameters[0]
        if model.bounds:
            least, most = model.bounds(self.sizes.min(), self.sizes.max())
            if scale <= TINY:
                return "the error does not fall"
            if not least * (1 + TINY) < rate < most * (1 - TINY):
                return "the rate runs to its bound"
        if not model.asymptote:
            return ""
        if asymptote <= TINY or asymptote >= 1 - TINY:
            return f"the asymptote runs to its bound of {100 * round(asymptote)} %"
        if not self.known:
            return "one seed gives no interval for the asymptote"
        if high[0] - low[0] > WIDEST * self.errors.min():
            return (
                f"the asymptote's interval, {100 * low[0]:.1f} to {100 * high[0]:.1f} %, "
                f"covers more than half of the range up to the least error, {100 * self.errors.min():.1f} %"
            )
        if rival <= abs(fit.left_out[0, -1]):
            return "a form without an asymptote predicts the largest size better"
        return ""


TAILS = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]


def noise_scale(around: np.ndarray, df: float) -> np.ndarray:
    """Scale [K, P] of Student's t with df degrees of freedom, from the middle 68 % of draws [K, D, P] around 0."""
    ends = np.quantile(around, stats.norm.cdf([-1, 1]), axis=1)
    return ((ends[1] - ends[0]) / 2).clip(TINY) / stats.t.ppf(stats.norm.cdf(1), df)


def form_weights(density: np.ndarray, seed: int) -> np.ndarray:
    """Weights [K] of forms from their log densities [K, P] of what was left out: pseudo-BMA+ (Yao et al. 2018)."""
    shares = np.random.default_rng(seed).dirichlet(np.ones(density.shape[1]), DIRICHLET) * density.shape[1]
    return special.softmax(shares @ density.T, axis=1).mean(0)


@dataclass(frozen=True, eq=False)
class _Fitted:
    """A form's fits to a curve; the first is to the means, the others are to the draws.

    Attributes:
        parameters: [1 + D, 3].
        foretold: what `Fit.foretell` says, [1 + D] each.
        left_out: predicted minus measured mIoU at each size but the smallest, left out, [1 + fewer draws, S - 1].
    """

    parameters: np.ndarray
    foretold: dict[str, np.ndarray]
    left_out: np.ndarray
