"""A surface of error over unlabelled images, labels and pre-training steps, for mixes that nobody has run.

Error = 1 - mIoU falls with labels n to a floor, by a power law or a hyperbola, or with their logarithm, and with images
u by a power law or a hyperbola. The two add up, so that images lower the floor, or multiply, so that images lower what
labels have yet to teach. The forms are averaged as those of `fits` are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations, product
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from viny.evidence.statistics.crossed import ALPHA, LEAST_SEEDS, Runs
from viny.evidence.statistics.fits import MODELS, TAILS, TINY, Fit, form_weights, noise_scale

LEAST_LABELS = min(model.parameters for model in MODELS.values()) + 2  # as `fits` asks of a curve
LEAST_SHAPED = 3  # sizes of images that a shape needs; with fewer, each size stands for itself
LEAST_BEYOND = 4  # sizes of images for words about larger ones
BEYOND = 4  # times the largest size, or as many times as long: the farthest that a surface is read
LEFT_OUT = 100  # draws for the spread of the errors at sizes left out
SINGULAR = 1e-13  # of the columns' squares: a direction this weak is not fitted
PRIOR = 4.0  # degrees of freedom by which a label size's variance is pulled to that of all


@dataclass(frozen=True, eq=False)
class Points:
    """Cells of a study without an intermediate task.

    Attributes:
        images, labels: [C].
        steps: of pre-training, [C]; None unless cells with the same images differ in them.
        errors: means [C].
        drawn: joint draws of them [D, C].
        covariance: of the means [C, C].
        df: degrees of freedom of the means.
    """

    images: np.ndarray
    labels: np.ndarray
    steps: np.ndarray | None
    errors: np.ndarray
    drawn: np.ndarray
    covariance: np.ndarray
    df: float

    def kept(self, here: np.ndarray) -> Points:
        """Some of the cells; bool [C]."""
        steps = None if self.steps is None else self.steps[here]
        return Points(
            self.images[here], self.labels[here], steps, self.errors[here], self.drawn[:, here],
            self.covariance[np.ix_(here, here)], self.df,
        )  # fmt: skip


def points_of(runs: Runs, steps: Sequence[float] | None = None, draws: int = 500, seed: int = 0) -> Points | None:
    """The cells of a study, with what is known of their noise.

    The covariance over seeds is pooled, as few seeds do not tell it cell by cell: a variance for each label size,
    pulled to that of all, and one correlation between cells. That over test images is the crossed one.

    Args:
        runs: cells with keys (pretrain_size, intermediate, finetune_size, ...); those with a task, or with fewer than
            two seeds, are left out.
        steps: of pre-training, of each key; None if the pre-train size says all.
        draws: of the cells' means, see `Runs.draws`.
        seed: of the draws.

    Returns:
        The cells; None if there are none.
    """
    n = np.isfinite(runs.values).sum(0)
    here = np.array([key[1] == "none" for key in runs.keys]) & (n >= LEAST_SEEDS)  # type: ignore[index]
    if not here.any():
        return None
    images, labels = (np.array([key[at] for key in runs.keys], float)[here] for at in (0, 2))  # type: ignore[index]
    every = runs.contrasts(np.eye(len(runs.keys))[here])
    covariance = _of_seeds(runs.values[:, here], labels)
    if (root := runs.image_root()) is not None:
        covariance = covariance + (root @ root.T)[np.ix_(here, here)]
    covariance = covariance + np.eye(here.sum()) * max(TINY**2, 1e-6 * np.diag(covariance).mean())
    taken = None if steps is None else np.asarray(steps, float)[here]
    if taken is not None and len(np.unique(np.stack([images, taken]), axis=1).T) == len(np.unique(images)):
        taken = None
    drawn = 1 - runs.draws(draws, seed)[:, here].clip(0, 1)
    return Points(images, labels, taken, 1 - every.mean, drawn, covariance, float(np.nanmin(every.df)))


def _of_seeds(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A pooled covariance [C, C] over seeds of the means of values [S, C]."""
    there = np.isfinite(values)
    n = there.sum(0)
    apart = np.where(there, values - np.nanmean(values, 0), 0.0)
    squares, freedom = (apart**2).sum(0), n - 1
    pooled = squares.sum() / freedom.sum()
    variance = np.empty(len(labels))
    for size in np.unique(labels):
        mine = labels == size
        variance[mine] = (squares[mine].sum() + PRIOR * pooled) / (freedom[mine].sum() + PRIOR)
    scaled = apart / np.sqrt(variance.clip(TINY**2))
    sums, own = (scaled.sum(1) ** 2).sum(), (scaled**2).sum()
    pairs = len(labels) - 1
    share = float(np.clip((sums / own - 1) / pairs, 0, 0.95)) if pairs and own > 0 else 0.0
    of_one = np.sqrt(np.outer(variance, variance)) * (share + (1 - share) * np.eye(len(labels)))
    return of_one / np.sqrt(np.outer(n, n))


@dataclass(frozen=True)
class Shape:
    """How error falls with images or steps: from 1 at none of them towards 0.

    Attributes:
        value: function of the number [Q] and rate [..., 1].
        rates: to try.
    """

    value: Callable[[np.ndarray, np.ndarray], np.ndarray]
    rates: np.ndarray


def _apart(u: np.ndarray, rate: np.ndarray) -> np.ndarray:
    return 1.0 * (u == 0) + 0 * rate


def _power(u: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.exp(-b * np.log1p(u))


def _hyperbola(u: np.ndarray, k: np.ndarray) -> np.ndarray:
    return 1 / (1 + u / k)


NONE = np.zeros(1)
IMAGES = {
    "power law": Shape(_power, np.geomspace(0.03, 3, 17)),
    "saturating": Shape(_hyperbola, np.geomspace(0.3, 300, 17)),
}
STEPS = Shape(_power, np.geomspace(0.05, 2, 7))
LABEL_RATES = {"log-linear": NONE, "saturating": np.geomspace(0.1, 300, 41)}  # others: of a power law
POWERS = np.geomspace(0.03, 4, 41)


@dataclass(frozen=True, eq=False)
class Form:
    """A form of the surface; given its rates, error is a weighted sum of `columns`.

    Attributes:
        name: in words.
        labels: of n over the smallest number of labels.
        label_rates: to try.
        images: of u over the smallest number of images above 0; None if there is one size.
        multiplied: whether images act on what labels have yet to learn, else on the floor.
        by_steps: whether there is a term of the steps.
    """

    name: str
    labels: Fit
    label_rates: np.ndarray
    images: Shape | None
    multiplied: bool
    by_steps: bool

    @property
    def rates(self) -> np.ndarray:
        """All to try, [G, 3]: of labels, images, steps."""
        images = NONE if self.images is None else self.images.rates
        if self.by_steps:  # every second, so that it takes seconds
            return np.array([*product(self.label_rates[::2], images[::2], STEPS.rates)])
        return np.array([*product(self.label_rates, images, NONE)])

    @property
    def free(self) -> np.ndarray:
        """Whether a column's weight may be below 0, [K]."""
        floor = self.labels.asymptote is None  # what stands for one is the error at the fewest labels then
        floors, falls = (2, 1) if self.images is not None and not self.multiplied else (1, 1 + self.multiplied)
        return np.array([floor] * floors + [False] * falls + [True] * self.by_steps)

    def columns(self, u: np.ndarray, n: np.ndarray, s: np.ndarray | None, rates: np.ndarray) -> np.ndarray:
        """[R, Q, K] at mixes [Q], relative to the smallest, for rates [R, 3]."""
        g = self.labels.shape(n, rates[:, :1])
        if self.labels.asymptote is None:
            g = -g
        if self.images is None:
            found = [np.ones_like(g), g]
        else:
            h = self.images.value(u, rates[:, 1:2])
            found = [np.ones_like(g), g * (1 - h), g * h] if self.multiplied else [1 - h, h, g]
        if self.by_steps and s is not None:
            found.append(STEPS.value(s, rates[:, 2:]))
        return np.stack(found, axis=-1)

    def solve(self, design: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weighted least squares for many curves at once, with weights of 0 or more where they are not free.

        The best subset of columns whose own least squares keep to that is the solution. Given rates it is exact.

        Args:
            design: whitened columns [G, C, K] of the rates to try.
            errors: whitened, [R, C].

        Returns:
            Places of the best rates [R], and weights [R, K].
        """
        free, kinds = self.free, len(self.free)
        bound = [i for i in range(kinds) if not free[i]]
        every = range(len(errors))
        total = (errors**2).sum(1)
        least, place = np.full(len(errors), np.inf), np.zeros(len(errors), int)
        found = np.zeros((len(errors), kinds))
        gram = np.swapaxes(design, 1, 2) @ design  # [G, K, K]
        gram = gram + SINGULAR * np.trace(gram, axis1=1, axis2=2)[:, None, None] * np.eye(kinds)
        along = np.swapaxes(design, 1, 2) @ errors.T  # [G, K, R]
        rows = np.arange(len(design))
        for out in chain.from_iterable(combinations(bound, k) for k in range(len(bound))):
            kept = [i for i in range(kinds) if i not in out]
            here = along[rows][:, kept]
            weights = np.linalg.inv(gram[np.ix_(rows, kept, kept)]) @ here
            rss = total - (here * weights).sum(1)  # [rows, R]
            held = [j for j, i in enumerate(kept) if not free[i]]
            fits = (weights[:, held] >= 0).all(1)
            allowed = np.where(fits, rss, np.inf)
            best = allowed.argmin(0)
            better = allowed[best, every] < least
            least = np.where(better, allowed[best, every], least)
            place = np.where(better, rows[best], place)
            whole = np.zeros_like(found)
            whole[:, kept] = weights[best, :, every]
            found = np.where(better[:, None], whole, found)
            if not out:  # fewer columns fit no better, so only these rates can still win
                rows = rows[(~fits & (rss < least)).any(1)]
                if not len(rows):
                    break
        return place, found


def forms_for(points: Points) -> list[Form]:
    """The forms that there are enough sizes for; none with fewer than four label sizes."""
    image_sizes = np.unique(points.images)
    if len(np.unique(points.labels)) < LEAST_LABELS:
        return []
    if len(image_sizes) == 1:
        shapes: dict[str, Shape | None] = {"": None}
    elif len(image_sizes) < LEAST_SHAPED:
        shapes = {"each its own": Shape(_apart, NONE)}
    else:
        shapes = dict(IMAGES)
    found = []
    # A power law without an asymptote is one whose asymptote is 0; beside it, it makes the average too hopeful.
    models = {name: labels for name, labels in MODELS.items() if labels.asymptote is not False}
    for (name, labels), (word, shape) in product(models.items(), shapes.items()):
        for multiplied, by_steps in product((False, True), (False, True)):
            # The logarithm has no level that images could scale.
            if multiplied and (shape is None or labels.asymptote is None):
                continue
            if by_steps and points.steps is None:
                continue
            said = f"labels: {name}" + (f"; images: {word}, {'multiplied' if multiplied else 'added'}" if word else "")
            said += "; steps added" if by_steps else ""
            rates = LABEL_RATES.get(name, POWERS)
            form = Form(said, labels, rates, shape, multiplied, by_steps)
            if len(points.errors) >= len(form.free) + (len(rates) > 1) + (shape is not None and len(shape.rates) > 1):
                found.append(form)
    return found


@dataclass(frozen=True, eq=False)
class Fitted:
    """A form that was fitted.

    Attributes:
        form: which.
        rates: [1 + D, 3]; the first is of the means, the others of the draws.
        weights: of its columns, [1 + D, K].
        share: in the average.
        excess: how far it missed the largest number of labels, and of images, left out, beyond noise.
    """

    form: Form
    rates: np.ndarray
    weights: np.ndarray
    share: float = 1.0
    excess: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, eq=False)
class Surface:
    """Averaged forms of error over mixes.

    Attributes:
        points: what it was fitted to.
        fitted: the forms.
        misfit: p of the errors at sizes left out, if all were noise.
        seed: of all that is drawn.
    """

    points: Points
    fitted: list[Fitted]
    misfit: float
    seed: int

    @property
    def doubtful(self) -> bool:
        """Whether no form foretells the sizes left out."""
        return self.misfit < ALPHA

    @property
    def image_sizes(self) -> np.ndarray:
        return np.unique(self.points.images)

    @property
    def most_images(self) -> float:
        """The most images that the surface is read at."""
        most = self.image_sizes[-1]
        return float(most * BEYOND if len(self.image_sizes) >= LEAST_BEYOND else most)

    @property
    def most_labels(self) -> float:
        """The most labels that the surface is read at."""
        return float(self.points.labels.max() * BEYOND)

    def errors(
        self, images: np.ndarray, labels: np.ndarray, steps: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Errors at mixes [Q]: of the means [Q], averaged over the forms, and of each form's draws [K, D, Q].

        To a form's draws beyond the largest sizes a normal error is added: as large as the one that it made at the
        largest size, left out, beyond noise, and growing with the logarithm of the size.
        """
        beyond = np.stack(
            [_steps_beyond(images, self.image_sizes), _steps_beyond(labels, np.unique(self.points.labels))]
        )
        rng = np.random.default_rng(self.seed)
        means, drawn = np.zeros(len(labels)), []
        for one in self.fitted:
            values = _predict(one, self.points, images, labels, steps)
            means += one.share * values[0]
            noise = rng.standard_normal((2, len(values) - 1, 1))
            extra = noise[0] * one.excess[1] * beyond[0] + noise[1] * one.excess[0] * beyond[1]
            drawn.append((values[1:] + extra).clip(0, 1))
        return means.clip(0, 1), np.stack(drawn)

    def chances(
        self, target: float, images: np.ndarray, labels: np.ndarray, steps: np.ndarray | None = None
    ) -> np.ndarray:
        """The chance that mIoU, a mean over seeds and test images like the study's, reaches a target, [Q]."""
        _, drawn = self.errors(images, labels, steps)
        return np.array([one.share for one in self.fitted]) @ (drawn <= 1 - target).mean(1)

    def foretold(self, images: float, labels: float, steps: float | None = None) -> dict[str, float]:
        """mIoU at a mix: mean, low and high, its 95 % interval."""
        taken = None if steps is None else np.array([steps], float)
        mean, drawn = self.errors(np.array([images], float), np.array([labels], float), taken)
        shares = np.repeat([one.share / drawn.shape[1] for one in self.fitted], drawn.shape[1])
        low, high = np.quantile(1 - drawn.ravel(), TAILS, weights=shares, method="inverted_cdf")
        return {"mean": float(1 - mean[0]), "low": float(low), "high": float(high)}

    def table(self) -> pd.DataFrame:
        """The forms: name, weight in the average, and rates of labels and images."""
        rows: list[dict[str, Any]] = []
        for one in sorted(self.fitted, key=lambda fit: -fit.share):
            rows.append({"form": one.form.name, "weight": one.share, "label_rate": one.rates[0, 0]})
            rows[-1] |= {"image_rate": one.rates[0, 1], "step_rate": one.rates[0, 2]}
        return pd.DataFrame(rows)


def too_few(points: Points | None) -> str:
    """Why no surface can be fitted, in words; empty if one can."""
    if points is None:
        return "no cell without a task has two seeds"
    sizes = len(np.unique(points.labels))
    if sizes < LEAST_LABELS:
        return f"{sizes} label size{'s foretell' if sizes > 1 else ' foretells'} nothing; it takes {LEAST_LABELS}"
    return "" if forms_for(points) else f"{len(points.errors)} cells are too few for any form"


def fit_surface(points: Points, seed: int = 0) -> Surface:
    """Fit a surface of error by weighted least squares, to the means and to their draws.

    Each label size but the smallest, and with four sizes of images each of these but the smallest, is left out in turn
    and foretold from the others; the forms are averaged by how likely their errors there are, given the noise.

    Args:
        points: cells, of which `too_few` says nothing.
        seed: of what is drawn for the average.
    """
    forms = forms_for(points)
    left = list(_left_out(points))
    fitted = [_fit(form, points, points) for form in forms]
    errors, around, owners = _foretell(forms, points, [out for _, out in left])
    scale = noise_scale(around, points.df)
    density = stats.t.logpdf(errors / scale, points.df) - np.log(scale)
    by_group = np.stack([density[:, owners == i].mean(1) for i in range(len(left))], axis=1)
    shares = form_weights(by_group, seed)
    squares = shares @ ((errors / scale) ** 2).mean(1)
    by_noise = shares @ ((around / scale[:, None]) ** 2).mean(2)
    misfit = float((1 + (by_noise >= squares).sum()) / (1 + len(by_noise)))
    beyond = (errors**2 - scale**2).clip(0)
    ends = {kind: i for i, (kind, _) in enumerate(left)}  # the last of each kind is the largest
    excess = [
        [float(np.sqrt(row[owners == ends[kind]].mean())) if kind in ends else 0.0 for kind in ("labels", "images")]
        for row in beyond
    ]
    done = [
        replace(one, share=float(share), excess=(of_labels, of_images))
        for one, share, (of_labels, of_images) in zip(fitted, shares, excess, strict=True)
    ]
    return Surface(points, done, misfit, seed)


def _left_out(points: Points) -> Iterator[tuple[str, np.ndarray]]:
    """Which cells are left out together, and along which axis; in ascending order."""
    for size in np.unique(points.labels)[1:]:
        yield "labels", points.labels == size
    sizes = np.unique(points.images)
    if len(sizes) >= LEAST_BEYOND:
        for size in sizes[1:]:
            yield "images", points.images == size


def _foretell(
    forms: Sequence[Form], points: Points, outs: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Errors [K, P] at cells left out, draws of them around 0 [K, D, P], and each cell's place among the groups [P]."""
    few = replace(points, drawn=points.drawn[:LEFT_OUT])
    rows = []
    for form in forms:
        missed = []
        for out in outs:
            fit = _fit(form, few.kept(~out), points)
            there = few.kept(out)
            measured = np.vstack([there.errors, there.drawn])
            missed.append(measured - _predict(fit, points, there.images, there.labels, there.steps))
        rows.append(np.concatenate(missed, axis=1))
    every = np.stack(rows)
    owners = np.repeat(range(len(outs)), [int(out.sum()) for out in outs])
    return every[:, 0], every[:, 1:] - every[:, :1], owners


def _fit(form: Form, points: Points, whole: Points) -> Fitted:
    """A form's fits to the means and the draws; `whole` gives the units."""
    root = np.linalg.cholesky(points.covariance)
    rates = form.rates
    design = form.columns(*_relative(whole, points.images, points.labels, points.steps), rates)
    curves = np.vstack([points.errors, points.drawn])
    place, weights = form.solve(np.linalg.solve(root[None], design), np.linalg.solve(root, curves.T).T)
    return Fitted(form, rates[place], weights)


def _predict(
    fit: Fitted, whole: Points, images: np.ndarray, labels: np.ndarray, steps: np.ndarray | None
) -> np.ndarray:
    """Errors [1 + D, Q] at mixes [Q]."""
    columns = fit.form.columns(*_relative(whole, images, labels, steps), fit.rates)
    return np.einsum("rqk,rk->rq", columns, fit.weights)


def _relative(
    whole: Points, images: np.ndarray, labels: np.ndarray, steps: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Mixes in units of the smallest of each above 0."""

    def unit(values: np.ndarray) -> float:
        return float(values[values > 0].min(initial=np.inf)) if (values > 0).any() else 1.0

    taken = None if steps is None or whole.steps is None else steps / unit(whole.steps)
    return images / unit(whole.images), labels / unit(whole.labels), taken


def _steps_beyond(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """How far beyond the largest size, in steps as wide as the last between two sizes, [Q]; 0 within."""
    above = sizes[sizes > 0]
    if len(above) < 2:
        return np.zeros(len(values))
    ratio = np.maximum(values, 1) / above[-1]
    return np.log(ratio).clip(0) / np.log(above[-1] / above[-2])
