"""Metrics of patch tokens [N, L, D]: N images, L patches row by row on a square grid, D dimensions."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import minimize
from scipy.stats import entropy
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from viny.data.masks import IGNORE

if TYPE_CHECKING:  # what only reads these metrics loads no PyTorch
    import torch

REFERENCES = ("background", "inside", "edge")  # kinds of reference patch, in the order of the arrays
ITERATIONS = 500  # at most, of a probe's optimiser
TOLERANCE = 1e-3  # of its gradient; a tenth of this takes three times as long and moves accuracies by less than 0.1 %
TINY = 1e-12  # a variance below this share of the mean square is rounding


def within_image_variance(tokens: np.ndarray) -> float:
    """Variance over an image's patch tokens, averaged over images and dimensions (the paper's definition).

    Args:
        tokens: [N, L, D].

    Returns:
        The population variance (ddof = 0), in squared units of the tokens.
    """
    return float(np.asarray(tokens, np.float64).var(axis=1).mean())


def across_image_variance(tokens: np.ndarray) -> float:
    """Variance over images of the mean patch token, averaged over dimensions (the paper's definition).

    Args:
        tokens: [N, L, D].

    Returns:
        The population variance (ddof = 0); it and the within-image variance add up to the variance of all tokens.
    """
    return float(np.asarray(tokens, np.float64).mean(axis=1).var(axis=0).mean())


def within_share(tokens: np.ndarray) -> float:
    """Share of the tokens' variance that lies within images.

    Args:
        tokens: [N, L, D].

    Returns:
        A fraction; NaN if tokens do not vary.
    """
    return share_within(within_image_variance(tokens), across_image_variance(tokens), centred(tokens))


def share_within(within: float, across: float, centred: np.ndarray) -> float:
    return within / (within + across) if centred.any() else math.nan


def _varies(tokens: np.ndarray) -> bool:
    """Whether tokens [N, L, D] differ by more than rounding does."""
    x = np.asarray(tokens, np.float64)
    return bool(x.var(axis=(0, 1)).mean() > TINY * (x**2).mean())


def centred(tokens: np.ndarray) -> np.ndarray:
    """Tokens minus the mean token over all images and patches: [N, L, D] in float64, zero if none differs."""
    x = np.asarray(tokens, np.float64)
    return x - x.mean(axis=(0, 1)) if _varies(x) else np.zeros_like(x)


def patch_similarity(tokens: np.ndarray) -> np.ndarray:
    """Cosine similarity of every pair of patch tokens of the same image.

    Args:
        tokens: [N, L, D].

    Returns:
        [N, L, L] in -1 to 1; NaN where a token is zero.
    """
    x = np.asarray(tokens, np.float64)
    norm = np.linalg.norm(x, axis=2, keepdims=True)
    unit = np.divide(x, norm, out=np.full_like(x, np.nan), where=norm > 0)
    return (unit @ unit.transpose(0, 2, 1)).clip(-1, 1)


def manhattan(patches: int) -> np.ndarray:
    """Manhattan distance between every two patches of a square grid, in patches: int [L, L].

    Raises:
        ValueError: `patches` is not a square number.
    """
    side = math.isqrt(patches)
    if side**2 != patches:
        raise ValueError(f"{patches} patches make no square grid")
    row, column = np.divmod(np.arange(patches), side)
    return abs(row[:, None] - row) + abs(column[:, None] - column)


def similarity_by_distance(tokens: np.ndarray) -> np.ndarray:
    """Mean cosine similarity of patch tokens of the same image at each Manhattan distance (the paper's figure).

    Args:
        tokens: [N, L, D]; pass `centred(tokens)` for the similarity beyond a common direction.

    Returns:
        [2 * sqrt(L) - 1], for the distances 0, 1, ... in patches; NaN where no pair is defined.
    """
    return mean_by_distance(patch_similarity(tokens))


def mean_by_distance(similarity: np.ndarray) -> np.ndarray:
    """Mean over images and pairs of [N, L, L] at each distance."""
    distance = manhattan(similarity.shape[1]).ravel()
    defined = np.isfinite(similarity).sum(axis=0).ravel()
    total = np.bincount(distance, np.nansum(similarity, axis=0).ravel())
    count = np.bincount(distance, defined)
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)


def local_minus_distant(tokens: np.ndarray) -> float:
    """How much more alike neighbouring patches of an image are than distant ones.

    Args:
        tokens: [N, L, D].

    Returns:
        Mean cosine similarity of pairs at Manhattan distance 1 minus that of pairs at least as far apart as the grid is
        wide; NaN if the grid or the tokens have no such pairs.
    """
    return near_minus_far(patch_similarity(tokens))


def near_minus_far(similarity: np.ndarray) -> float:
    patches = similarity.shape[1]
    distance = manhattan(patches)
    near, far = similarity[:, distance == 1], similarity[:, distance >= math.isqrt(patches)]
    if not (np.isfinite(near).any() and np.isfinite(far).any()):
        return math.nan
    return float(np.nanmean(near) - np.nanmean(far))


def morans_i(tokens: np.ndarray) -> float:
    """Spatial autocorrelation of tokens on the patch grid: Moran's I (Moran 1950) with rook neighbours.

    For values z, centred within the image, I = L / W * sum of w_ij z_i z_j / sum of z_i^2, with w_ij = 1 for patches
    that share an edge and W the sum of all w_ij. Without autocorrelation its expectation is -1 / (L - 1).

    Args:
        tokens: [N, L, D].

    Returns:
        The mean over those images and dimensions that vary within the image; NaN if none does.
    """
    x = np.asarray(tokens, np.float64)
    n, patches, dims = x.shape
    side = math.isqrt(patches)
    if side**2 != patches:
        raise ValueError(f"{patches} patches make no square grid")
    z = (x - x.mean(axis=1, keepdims=True)).reshape(n, side, side, dims)
    squares = (z**2).sum(axis=(1, 2))  # [N, D]
    right = (z[:, :, 1:] * z[:, :, :-1]).sum(axis=(1, 2))
    down = (z[:, 1:] * z[:, :-1]).sum(axis=(1, 2))
    weights = 4 * side * (side - 1)  # each of the 2 * side * (side - 1) edges counts from both ends
    defined = squares > TINY * (x**2).sum(axis=1)
    if side < 2 or not defined.any():
        return math.nan
    return float((patches / weights * 2 * (right + down)[defined] / squares[defined]).mean())


def effective_rank(tokens: np.ndarray) -> float:
    """Effective rank of the centred patch tokens (Roy and Vetterli 2007): exp of the entropy of their singular values.

    Args:
        tokens: [N, L, D]; taken as one matrix [N * L, D].

    Returns:
        Between 1 and D; NaN if tokens do not vary.
    """
    return rank_of(centred(tokens))


def rank_of(centred: np.ndarray) -> float:
    if not centred.any():
        return math.nan
    values = np.linalg.svd(centred.reshape(-1, centred.shape[2]), compute_uv=False)
    return float(np.exp(entropy(values)))


def linear_cka(tokens: np.ndarray, reference: np.ndarray) -> float:
    """Linear centred kernel alignment of two encoders' tokens (Kornblith et al. 2019, arXiv 1905.00414).

    In its feature-space form, |Y'X|^2 / (|X'X| |Y'Y|) with Frobenius norms of column-centred matrices; every patch of
    every image is an example.

    Args:
        tokens: [N, L, D].
        reference: [N, L, E], of the same patches.

    Returns:
        Between 0 and 1; NaN if the tokens of either do not vary.
    """
    return alignment(centred(tokens), centred(reference))


def alignment(centred: np.ndarray, reference: np.ndarray) -> float:
    if not (centred.any() and reference.any()):
        return math.nan
    x, y = centred.reshape(-1, centred.shape[2]), reference.reshape(-1, reference.shape[2])
    return float(np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


@dataclass(frozen=True)
class Probe:
    """The result of a linear probe of patch tokens: fractions, and whether its optimiser converged."""

    accuracy: float
    balanced_accuracy: float
    converged: bool


def linear_probe(
    tokens: np.ndarray,
    classes: np.ndarray,
    held_out: np.ndarray,
    held_out_classes: np.ndarray,
    device: torch.device | None = None,
) -> Probe:
    """Train a linear classifier of patch tokens (Alain and Bengio 2016, arXiv 1610.01644) and score it on other ones.

    Multinomial logistic regression on standardised tokens, with an L2 penalty of C = 1.

    Args:
        tokens: [N, L, D], to train on.
        classes: int [N, L], of those patches; patches of IGNORE are left out.
        held_out: [M, L, D], to score.
        held_out_classes: int [M, L].
        device: a GPU to fit on, which moves a patch in some thousand; none: fit with scikit-learn.

    Returns:
        Accuracy, and balanced accuracy: the mean recall of the classes that the scored patches have. If there is only
        one class to train on, it is the guess for every patch.
    """
    has_class = np.ravel(classes) != IGNORE, np.ravel(held_out_classes) != IGNORE
    x, y = tokens.reshape(-1, tokens.shape[2])[has_class[0]], np.ravel(classes)[has_class[0]]
    to_score, truth = held_out.reshape(-1, held_out.shape[2])[has_class[1]], np.ravel(held_out_classes)[has_class[1]]
    converged = True
    if len(np.unique(y)) == 1:
        guess = np.full_like(truth, y[0])
    elif device is not None:
        scaler, (known, y) = StandardScaler().fit(x.astype(np.float64)), np.unique(y, return_inverse=True)
        weights, iterations = logistic_weights(scaler.transform(x.astype(np.float64)), y, device)
        converged = iterations < ITERATIONS
        guess = known[(scaler.transform(to_score.astype(np.float64)) @ weights[:, :-1].T + weights[:, -1]).argmax(1)]
    else:
        model = make_pipeline(StandardScaler(), LogisticRegression(tol=TOLERANCE, max_iter=ITERATIONS))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the result reports it
            model.fit(x.astype(np.float64), y)
        converged = int(model[-1].n_iter_.max()) < ITERATIONS
        guess = model.predict(to_score.astype(np.float64))
    recall = recall_score(truth, guess, labels=np.unique(truth), average="macro")
    return Probe(float((truth == guess).mean()), float(recall), converged)


def logistic_weights(x: np.ndarray, y: np.ndarray, device: torch.device) -> tuple[np.ndarray, int]:
    """Logistic regression as scikit-learn's `LogisticRegression` fits it, with the passes through the data on a device.

    Args:
        x: float64 [N, D].
        y: int [N], classes from 0 to K - 1, each of them at least once; K is 2 or more.
        device: to compute on.

    Returns:
        Weights and, last, intercept of each class [K, D + 1]; how many iterations it took.
    """
    import torch

    count, classes = len(x), int(y.max()) + 1
    free = classes if classes > 2 else 1  # of two classes, the score of the first is 0
    data = torch.from_numpy(np.column_stack([x, np.ones(count)])).to(device)
    truth = torch.nn.functional.one_hot(torch.from_numpy(y), classes).double().to(device)

    def loss_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = torch.from_numpy(flat.reshape(free, -1)).to(device)
        scores = torch.nn.functional.pad(data @ weights.T, (classes - free, 0))
        logs = scores.log_softmax(1)
        weights = torch.nn.functional.pad(weights[:, :-1], (0, 1))  # the intercept is not penalised
        loss = (weights.square().sum() / 2 - (logs * truth).sum()) / count
        gradient = ((logs.exp() - truth)[:, classes - free :].T @ data + weights) / count
        found = torch.cat([loss.view(1), gradient.flatten()]).cpu().numpy()  # the only wait for the device
        return float(found[0]), found[1:]

    settings = {"maxiter": ITERATIONS, "maxls": 50, "gtol": TOLERANCE, "ftol": 64 * np.finfo(float).eps}
    start = np.zeros(free * data.shape[1])
    found = minimize(loss_and_gradient, start, method="L-BFGS-B", jac=True, options=settings)
    return np.pad(found.x.reshape(free, -1), ((classes - free, 0), (0, 0))), int(found.nit)


def layer_names(depth: int) -> list[str]:
    """The names of an encoder's layers, first to last."""
    return ["embedding", *(f"block {i + 1}" for i in range(depth)), "output"]
