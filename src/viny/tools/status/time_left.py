"""How long what is left of a run will take, from all that it has done so far: no job's last minutes decide."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from viny.study.graph import TRAINS, Job, Key
from viny.study.inventory import Images
from viny.tools.forecast.forecast import Forecast
from viny.tools.forecast.rates import Rates, kind, operations_a_pass, rates_seen, seconds_of
from viny.tools.status.running import Running, share_done

# What a forecast weighs beside what a training has shown by now, as a share of the training: its first steps are slow.
FORECAST = 0.1


def seconds_left(
    config: Mapping[str, Any],
    images: Images,
    root: Path,
    jobs: list[Job],
    left: Iterable[Job],
    running: list[Running],
    kept: Mapping[Key, float],
    begun: float,
) -> float | None:
    """Seconds until a run's end, by the rates of the study's own jobs; None before there are any.

    Args:
        config: resolved settings.
        images: from `viny.study.inventory.count_images`.
        root: the study's folder.
        jobs: the study's.
        left: those that are not done.
        running: those of them that run.
        kept: shares done of trainings that do not run and will go on from a checkpoint.
        begun: when the run began, in seconds since 1970 UTC.
    """
    seen = rates_seen(jobs, root, config["compute"]["train_threads"], "auto")
    share = _share_so_far(seen, running)
    _learn(seen, running, share)
    if not seen.images:
        return None
    forecast = Forecast(config, images, seen, Path(config["pack_store"]))
    now = {one.job.key: one for one in running}
    total = 0.0
    for job in left:
        whole = forecast.seconds(job) / share  # other work is taken to go on
        done, one = kept.get(job.key, 0.0), now.get(job.key)
        if one is not None and job.stage in TRAINS:
            done = share_done(one)
            if one.pace:
                whole = (FORECAST * whole + done * job.work.passes / one.pace) / (FORECAST + done)
        total += (1 - done) * whole
    longest = max((one.seconds_left or 0.0 for one in running), default=0.0)
    return max(longest, total / _beside(jobs, root, running, begun))


def _share_so_far(seen: Rates, running: Iterable[Running]) -> float:
    """The share of the cores that jobs had besides other work: over all the time of those that are done or run."""
    had, spent = seen.past * seen.spent, seen.spent
    for one in running:
        quiet = seen.images.get(kind(one.job))
        if one.pace and quiet:
            had, spent = had + one.age * min(1.0, one.pace / quiet), spent + one.age
    return had / spent if had > 0 else 1.0


def _learn(seen: Rates, running: Iterable[Running], share: float) -> None:
    """Note the rates of kinds of which no job is done, by how far those are that run."""
    kinds: dict[str, list[Running]] = {}
    for one in running:
        if one.pace and kind(one.job) not in seen.images:
            kinds.setdefault(kind(one.job), []).append(one)
    found = []
    for some in kinds.values():
        job, others = some[0].job, seen.operations_a_second(some[0].job)
        shown = [(max(share_done(one), 1e-3), 1 / one.pace) for one in some]  # weights, and seconds a pass
        if others:
            shown.append((FORECAST, operations_a_pass(job) / others / share))
        found.append((job, sum(weight for weight, _ in shown) / sum(weight * each for weight, each in shown)))
    for job, rate in found:
        seen.learn(job, rate / share)


def _beside(jobs: Iterable[Job], root: Path, running: list[Running], begun: float) -> float:
    """How many jobs run side by side: now, or on average in this run so far, whichever is more."""
    lasted = max(1.0, time.time() - begun)
    files = ((job, job.benchmark(root)) for job in jobs if job.is_done(root))
    recent = [job for job, file in files if file.is_file() and file.stat().st_mtime >= begun]
    spent = sum(seconds_of(job, root) or 0.0 for job in recent) + sum(min(lasted, one.age) for one in running)
    return max(len(running), spent / lasted)
