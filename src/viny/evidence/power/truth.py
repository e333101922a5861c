"""What is taken for true before a run, and how noisy it is: from an earlier study, the paper, or a stated effect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from viny.evidence.paper.facts import SPATIAL, TASK, paper_facts
from viny.evidence.power.noise import EVERY, Factors, Key, Shared
from viny.evidence.statistics.crossed import LEAST_SEEDS, Runs, read_runs
from viny.evidence.tables import read_metrics
from viny.runtime.errors import InputError
from viny.runtime.units import counted
from viny.study.grid import base_cells
from viny.study.layout import metrics_file
from viny.study.saved import saved_study

PAPER_IMAGES = 1000  # that each of its models was tested on
# How noise is shared on real images: `from_runs` on studies/geometry_mini.yaml with a smaller ViNy still (48 px, 3,000
# images to pre-train on), two seeds, 500 test images of Pets. Standard deviations in points, of a cell and an image.
SIZE, TASKS, LABELS = (0,), (1,), (2,)
SHARES = {EVERY: 0.55, LABELS: 0.2, SIZE: 0.15, TASKS + LABELS: 0.1}  # of the variance over seeds
IMAGES = {EVERY: 1.0, SIZE + LABELS: 0.8, TASKS + LABELS: 0.3, SIZE: 1.4, TASKS: 1.2, LABELS: 2.7, (): 5.8}
BOTH = {EVERY: 3.0, SIZE + TASKS: 1.2, SIZE + LABELS: 1.1, SIZE: 0.7, LABELS: 1.0, (): 0.9}


@dataclass(frozen=True)
class Truth:
    """Cells' mIoU as far as it is known before a run, and the noise of a study to come; fractions.

    Attributes:
        said: where it is from.
        keys: of the C cells whose mIoU is known.
        mean: [C].
        seeds: how many seeds that is the mean of, which makes it uncertain; infinite if it is stated.
        pictures: likewise, how many test images.
        of_seeds: noise of a cell over seeds, at the label size 2 ** `centre`.
        df: degrees of freedom of `of_seeds`, which makes it uncertain; infinite if it is stated.
        slope: of log2 of the noise's standard deviation by log2 of the labels.
        centre: log2 of a label size.
        of_images: noise of one test image.
        of_both: noise of one test image that differs from seed to seed.
        about_seeds, about_images: where the noise is from, in words.
        stated: whether mIoU is that of no study, so that nothing is known but the effects.
        of_each: test images in a group, where groups are drawn; 1 where images are.
    """

    said: str
    keys: Sequence[Key]
    mean: np.ndarray
    seeds: float
    pictures: float
    of_seeds: Shared
    df: float
    of_images: Shared
    of_both: Shared
    slope: float = 0.0
    centre: float = 0.0
    about_seeds: str = ""
    about_images: str = ""
    stated: bool = False
    of_each: float = 1.0

    def seed_covariance(self, keys: Sequence[Key]) -> np.ndarray:
        """[C, C], over seeds, of any cells."""
        scale = 2.0 ** (self.slope * (np.log2([labels for _, _, labels in keys]) - self.centre))
        return self.of_seeds.covariance(keys) * np.outer(scale, scale)

    def in_groups(self, of_each: float) -> Truth:
        """The same for test images that are drawn in groups of so many, where that is not known: alike in a group."""
        if of_each <= 1 or self.of_each > 1:
            return self
        return replace(
            self,
            of_images=self.of_images.scaled(of_each),
            of_both=self.of_both.scaled(of_each),
            pictures=self.pictures * of_each,  # what is known of the means stays as sure
            about_images=f"{self.about_images}; taken {of_each**0.5:.1f} times as large, as if the images of a group, "
            f"{of_each:.3g} on average, were alike",
            of_each=of_each,
        )

    def with_noise(self, noise: float | None, image_noise: float | None) -> Truth:
        """The same with a stated noise, shared among the cells as before or, if there was none, as measured.

        Args:
            noise: standard deviation of a cell over seeds.
            image_noise: standard deviation, over test images, of a difference between two cells.
        """
        changed = self
        if noise is not None:
            of_seeds = self.of_seeds if self.of_seeds.variance else Shared(SHARES)
            of_seeds = of_seeds.scaled(noise**2 / of_seeds.variance)
            about = f"{100 * noise:g} points a cell, as stated"
            changed = replace(changed, of_seeds=of_seeds, slope=0.0, df=np.inf, about_seeds=about)
        if image_noise is not None:
            known = self.of_images.difference > 0
            of_images, of_both = (self.of_images, self.of_both) if known else (_of(IMAGES), _of(BOTH))
            factor = image_noise**2 / of_images.difference
            of_images, of_both = of_images.scaled(factor), of_both.scaled(factor)
            about = f"{_of_images_said(of_images)}, as stated"
            changed = replace(changed, of_images=of_images, of_both=of_both, about_images=about)
        return changed


# From the paper


def from_paper() -> Truth:
    """The paper's Tables 1, A2 and A3; its ± is taken as the standard deviation of its three runs."""
    facts = paper_facts()
    facts = facts[(facts["metric"] == "miou") & facts["spread"].notna()]
    keys = [(int(r.pretrain_size), str(r.intermediate), int(r.finetune_size)) for r in facts.itertuples()]
    variance, runs = facts["spread"].to_numpy(float) ** 2, int(facts["runs"].min())
    slope, centre = _by_labels(variance, keys, runs - 1)
    scale = 2.0 ** (slope * (np.log2([labels for *_, labels in keys]) - centre))
    pooled = float((variance / scale**2).mean())
    of_seeds = Shared({factors: share * pooled for factors, share in SHARES.items()})
    return Truth(
        said="the paper's Tables 1, A2 and A3",
        keys=keys,
        mean=facts["mean"].to_numpy(float),
        seeds=runs,
        pictures=PAPER_IMAGES,
        of_seeds=of_seeds,
        df=_freedom(of_seeds.covariance(keys), runs),
        of_images=_of(IMAGES),
        of_both=_of(BOTH),
        slope=slope,
        centre=centre,
        about_seeds=f"{100 * np.sqrt(pooled):.2f} points a cell on average, the paper's ±, shared among cells as "
        "this project measured",
        about_images=f"{_of_images_said(_of(IMAGES))}, as this project measured on Pets with a smaller ViNy",
    )


def _of(points: Mapping[Factors, float]) -> Shared:
    """Components from standard deviations in points."""
    return Shared({factors: (deviation / 100) ** 2 for factors, deviation in points.items()})


def _of_images_said(noise: Shared) -> str:
    return f"{100 * np.sqrt(noise.difference):.1f} points per image of a difference between cells"


# Stated


def stated(noise: Truth, keys: Sequence[Key], effect: float) -> Truth:
    """Every gain from pre-training, and every harm of a task after it, are of one size.

    Args:
        noise: whose noise the study has.
        keys: of the study's cells.
        effect: fraction of mIoU.
    """
    mean = np.array([effect * (p > 0) - effect * (task != "none" and p > 0) for p, task, _ in keys])
    said = f"{100 * effect:g} points gained by pre-training, and lost by each task after it, as stated"
    return replace(noise, said=said, keys=list(keys), mean=mean, seeds=np.inf, pictures=np.inf, stated=True)


# From an earlier study


def from_study(root: Path) -> Truth:
    """An earlier study's cells, its spread over seeds, and what its test images did.

    Args:
        root: its folder, results/<study>.

    Raises:
        InputError: no such study, none of its cells is evaluated, or a damaged file.
    """
    config = saved_study(root)
    files = [path for cell in base_cells(config) if (path := metrics_file(root, cell)).is_file()]
    frame = read_metrics(files).dropna(subset="miou") if files else None
    if frame is None or frame.empty:
        raise InputError(
            f"--like {root}: none of its {len(base_cells(config))} cells is evaluated; run that study first, or leave "
            "--like out for the paper's numbers"
        )
    return from_runs(read_runs(frame, root / "metrics"), str(root))


def from_runs(runs: Runs, said: str) -> Truth:
    """What a study's cells say of another like it.

    Args:
        runs: with keys (pretrain_size, intermediate, finetune_size).
        said: its name.
    """
    keys: Sequence[Key] = list(runs.keys)  # type: ignore[arg-type]
    seeds, paper = len(runs.seeds), from_paper()
    of_images, of_both, pictures = _of_images(runs, keys)
    if of_images is None or of_both is None:
        of_images, of_both = paper.of_images, paper.of_both
        about_images = f"{paper.about_images}, as it has no confusion matrices"
    else:
        about_images = f"{_of_images_said(of_images)}, of {pictures:,.0f} images"
    here = np.isfinite(runs.values)
    mean = np.where(here, runs.values, 0).sum(0) / here.sum(0)
    covariance = _covariance(np.where(here, runs.values - mean, np.nan))
    if not np.isfinite(covariance).any():
        of_seeds, df, slope, centre = paper.of_seeds, paper.df, paper.slope, paper.centre
        about_seeds = f"{paper.about_seeds}, as it has one seed"
    else:
        slope, centre = _by_labels(np.diag(covariance), keys, seeds - 1)
        scale = 2.0 ** (slope * (np.log2([labels for *_, labels in keys]) - centre))
        alone = covariance - of_both.covariance(keys) / pictures
        of_seeds = Shared.fitted(alone / np.outer(scale, scale), keys)
        df = _freedom(of_seeds.covariance(keys), seeds)
        about_seeds = f"{100 * np.sqrt(of_seeds.variance):.2f} points a cell, of {counted(seeds, 'seed')}"
    return Truth(
        said, keys, mean, float(here.sum(0).mean()), pictures, of_seeds, df, of_images, of_both, slope, centre,
        about_seeds, about_images, of_each=runs.of_each,
    )  # fmt: skip


def _covariance(apart: np.ndarray) -> np.ndarray:
    """[C, C] over seeds, from deviations [S, C]; NaN where fewer than two seeds have both cells."""
    here = np.isfinite(apart).astype(float)
    n = here.T @ here
    filled = np.nan_to_num(apart)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(n >= LEAST_SEEDS, filled.T @ filled / (n - 1), np.nan)


def _of_images(runs: Runs, keys: Sequence[Key]) -> tuple[Shared | None, Shared | None, float]:
    """Noise of one test image, the part that differs from seed to seed, and how many images there are.

    Where images belong to groups, whose sums `Runs` holds, so many images of a study to come are taken to have groups
    as large: the noise of one is then that of a group, shared among its images as if they were alike.
    """
    if runs.moved is None:
        return None, None, PAPER_IMAGES
    known = np.isfinite(runs.moved[..., 0]) & np.isfinite(runs.values)  # [S, C]
    whole = known.all(0)
    if not whole.any():
        return None, None, PAPER_IMAGES
    tested = np.ones((len(keys), runs.moved.shape[-1]), bool) if runs.tested is None else runs.tested
    tested, mine = tested[whole].astype(float), [key for key, take in zip(keys, whole, strict=True) if take]
    # [S, C, N]; a group's sum is of as many images, and the variance over images is that over groups times these.
    scores = runs.moved[:, whole] * tested.sum(1)[:, None] * np.sqrt(runs.of_each)
    mean, common = scores.mean(0), tested @ tested.T
    with np.errstate(divide="ignore", invalid="ignore"):
        both = np.full(common.shape, np.nan)
        if len(scores) >= LEAST_SEEDS:
            apart = scores - mean
            both = np.einsum("scn,sdn->cd", apart, apart, optimize=True) / ((len(scores) - 1) * common)
        over_images = mean @ mean.T / common
    of_both = Shared.fitted(np.where(common > 1, both, np.nan), mine) if len(scores) >= LEAST_SEEDS else Shared({})
    over_images = np.where(common > 1, over_images - np.nan_to_num(both) / len(scores), np.nan)
    return Shared.fitted(over_images, mine), of_both, runs.of_each * float(tested.sum(1).mean())


def _by_labels(variance: np.ndarray, keys: Sequence[Key], freedom: int) -> tuple[float, float]:
    """How the noise over seeds falls with the labels: the slope of log2 of its standard deviation, and the centre.

    The slope is shrunk by as much as its own error explains (James and Stein 1961, one coefficient).

    Args:
        variance: [C], over seeds.
        keys: of the cells.
        freedom: degrees of freedom of each variance.
    """
    labels = np.log2([n for *_, n in keys])
    sizes = [size for size in np.unique(labels) if np.nanmax(variance[labels == size], initial=0) > 0]
    weights = np.array([np.isfinite(variance[labels == size]).sum() for size in sizes], float)
    centre = float(weights @ sizes / weights.sum()) if sizes else float(labels.mean())
    if len(sizes) < 2:
        return 0.0, centre
    pooled = np.log2([np.nanmean(variance[labels == size]) for size in sizes]) / 2
    x = np.array(sizes) - centre
    spread = weights @ x**2
    slope = float(weights @ (x * pooled) / spread)
    # A variance's logarithm has a variance of 2 over its degrees of freedom.
    error = 2 / freedom / spread / (2 * np.log(2)) ** 2
    return slope * max(0.0, 1 - error / slope**2) if slope else 0.0, centre


def _freedom(covariance: np.ndarray, seeds: int) -> float:
    """Degrees of freedom of a variance that is pooled over correlated cells (Satterthwaite 1946)."""
    squares = float((covariance**2).sum())
    return (seeds - 1) * float(np.trace(covariance)) ** 2 / squares if squares else np.inf


# A grid that nobody has run


def weights_of(truth: Truth, keys: Sequence[Key], stand_in: Mapping[str, str]) -> tuple[np.ndarray, list[Key]]:
    """How the mIoU of cells follows from that of the known ones.

    It is linear in the logarithm of labels and of pre-training images. Beyond the known sizes each doubling brings half
    of the one before; below the smallest known number of pre-training images the gain falls as the logarithm does.

    Args:
        truth: the known cells.
        keys: of the cells.
        stand_in: by task, the known task whose effect is taken for its own.

    Returns:
        Weights [cells, known cells], NaN for a cell of which nothing is known; and the cells beyond the known sizes.
    """
    place = {key: at for at, key in enumerate(truth.keys)}
    rows, beyond = np.full((len(keys), len(place)), np.nan), []
    for row, (size, task, labels) in zip(rows, keys, strict=True):
        found = _cell(truth.keys, size, stand_in.get(task, task), labels)
        if found is None:
            continue
        known, outside = found
        row[:] = 0
        for key, weight in known.items():
            row[place[key]] = weight
        if outside:
            beyond.append((size, task, labels))
    return rows, beyond


def _cell(known: Sequence[Key], size: int, task: str, labels: int) -> tuple[dict[Key, float], bool] | None:
    """One cell as a weighted sum of known ones, and whether it is beyond them."""

    def curve(p: int, task: str) -> tuple[dict[Key, float], bool]:
        at, outside = _along([n for q, t, n in known if (q, t) == (p, task)], labels)
        return {(p, task, n): weight for n, weight in at.items()}, outside

    start = any((p, t) == (0, task) for p, t, _ in known)
    sizes = sorted({p for p, t, _ in known if t == task and p})
    if not size:
        return curve(0, task) if start else None
    if not sizes:
        return None
    if size < sizes[0]:  # what pre-training brings, or a task erases, is 0 with no images, and known with the fewest
        share = float(np.log2(1 + size / sizes[0]))
        if start:
            at, outside = {(0, task): 1 - share, (sizes[0], task): share}, True
        elif task == "none" or (base := _cell(known, size, "none", labels)) is None:
            at, outside = {(sizes[0], task): 1.0}, True
        else:
            more, _ = curve(sizes[0], task)
            less, _ = curve(sizes[0], "none")
            return _summed([(1.0, base[0]), (share, more), (-share, less)]), True
    else:
        along, outside = _along(sizes, size)
        at = {(p, task): weight for p, weight in along.items()}
    curves = [(weight, curve(*where)) for where, weight in at.items()]
    return _summed([(weight, mine) for weight, (mine, _) in curves]), outside or any(out for _, (_, out) in curves)


def _summed(sums: Sequence[tuple[float, Mapping[Key, float]]]) -> dict[Key, float]:
    found: dict[Key, float] = {}
    for factor, weights in sums:
        for key, weight in weights.items():
            found[key] = found.get(key, 0.0) + factor * weight
    return found


def _along(sizes: Sequence[int], size: int) -> tuple[dict[int, float], bool]:
    """A value at a size, as a weighted sum of those at known sizes, and whether it is beyond them."""
    sizes = sorted(set(sizes))
    if size in sizes or len(sizes) == 1:
        return {min(sizes, key=lambda one: abs(one - size)): 1.0}, size not in sizes
    above = int(np.clip(np.searchsorted(sizes, size), 1, len(sizes) - 1))
    low, high = sizes[above - 1], sizes[above]
    per_doubling = 1 / np.log2(high / low)
    if low <= size <= high:
        share = float(np.log2(size / low) * per_doubling)
        return {low: 1 - share, high: share}, False
    end, step = (high, 1.0) if size > high else (low, -1.0)
    more = float((1 - 2 ** -abs(np.log2(size / end))) * per_doubling * step)
    return {low: (end == low) - more, high: (end == high) + more}, True


def stand_ins(truth: Truth, tasks: Mapping[str, Any]) -> dict[str, str]:
    """Tasks of a study that the paper's one stands for, as for its claims: all of its classification tasks.

    Args:
        truth: the known cells.
        tasks: settings by task.
    """
    known = {task for _, task, _ in truth.keys}
    return {
        name: TASK
        for name, task in tasks.items()
        if name not in known and TASK in known and task["target"] != "patch" and name not in SPATIAL
    }
