"""What a study costs before it runs: jobs, image passes, operations, disk, memory and hours, stage by stage."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from viny.runtime.errors import InputError
from viny.runtime.gpus import visible_gpus
from viny.runtime.load import QUIET, busy
from viny.runtime.units import counted, duration, short
from viny.study.arms import lineages, settings_of
from viny.study.checks import check_sizes
from viny.study.graph import STAGES, SUMMARIES, TRAININGS, TRAINS, Job, Key, jobs
from viny.study.grid import arms, cells, encoders, has_arms, places, pretrain_pack, references
from viny.study.inventory import Images, check_starts, count_images, read_files, with_listings
from viny.study.specs import pack_spec, takes_steps
from viny.study.todo import what_to_do
from viny.study.unanswered import Unanswered, unanswered
from viny.study.workload import UNKNOWN
from viny.tools.forecast.forecast import Forecast
from viny.tools.forecast.rates import Rates, loaded, rates_measured, rates_seen, rates_stated, seconds_of
from viny.tools.forecast.schedule import Resources, most_beside
from viny.tools.terminal import console, say, show_unanswered, table

CHECKPOINTS = 3 * 3  # times the weights: two kept and one being written, each with Adam's two moments


def plan(
    config: Mapping[str, Any],
    results: Path,
    store: Path,
    cores: int | None = None,
    gpus: int | None = None,
    rate: float | None = None,
    seconds: float = 30.0,
    use_seen: bool = True,
) -> dict[str, Any]:
    """Forecast a study.

    Args:
        config: resolved settings.
        results: folder of all studies' results.
        store: folder of packs.
        cores: that jobs share; None for all of this machine's.
        gpus: that jobs share, each taking one or a share of one; None for this machine's.
        rate: training images of ViNy (128 px) per second in one job; None to measure.
        seconds: that the measurement may take, besides starting its processes.
        use_seen: whether rates of finished jobs take precedence over measured ones.

    Returns:
        Stages, totals, wall-clock hours, rates, what more would cost, and notes, ready for JSON. Hours are forecasts,
        except `took_hours`, which is of the finished jobs that Snakemake measured.

    Raises:
        InputError: the study asks for more images than there are, or for GPUs that are not here without a stated rate.
    """
    root = results / config["study"]
    images = count_images(config, root)
    check_sizes(config, images.limits)
    check_starts(config, root)
    config = with_listings(dict(config), root, read_files(config, images, root))
    todo = what_to_do(config, images, root, store)
    all_jobs, stale, left = todo.jobs, todo.stale, todo.left
    place = Resources.of(config, cores, gpus)
    if gpus and rate is None and gpus > len(visible_gpus()):
        raise InputError(f"--gpus {gpus}: this machine has {len(visible_gpus())}, so say with --rate how fast one is")
    if rate is not None:
        rates = rates_stated(all_jobs, rate)
    else:
        seen = rates_seen(all_jobs, root, place.train_threads, place.device(config)) if use_seen else Rates()
        # Where more cores are asked for than are here, they are taken to be like those here.
        beside = min(place.beside, Resources.of(config, None, gpus).beside)
        packs = [job for job in all_jobs if job.stage == "pack" and job.key not in stale]
        packed = {job.key for job in packs if use_seen and job.is_done(root)}
        rates = rates_measured(config, all_jobs, beside, seconds, store, seen, packed)
    forecast = Forecast(config, images, rates, store)
    spent = forecast.spent(all_jobs)
    stages = [_row(stage, all_jobs, left, spent, forecast, root) for stage in STAGES]
    stages = [row for row in stages if row["jobs"]]
    total = {key: sum(row[key] or 0 for row in stages) for key in ("jobs", "done", "to_do", *SUMMED)}
    total["bytes"] = forecast.all_bytes(all_jobs)
    return {
        "study": config["study"],
        "cells": len(cells(config)),
        "stages": stages,
        "total": total,
        **({"arms": price_arms(config, all_jobs, spent)} if has_arms(config) else {}),
        "checkpoint_bytes": CHECKPOINTS
        * max(map(forecast.weights, all_jobs), default=0)
        * min(place.beside * place.stack, most_beside(all_jobs)),
        "wall_clock": {
            **asdict(place),
            "beside": place.beside,
            "hours": place.hours(all_jobs, spent, config),
            "hours_to_do": place.hours(left, spent, config),
        },
        "rates": rates.known,
        "job_start_seconds": rates.start,
        "share_of_cores": rates.share,
        "further": further(forecast),
        "unanswered": [asdict(one) for one in unanswered(config, images)],
        "notes": _notes(config, images, rates, sum(job.is_done(root) for job in left) if stale else 0),
    }


SUMMED = ("image_passes", "flop", "hours", "hours_to_do", "took_hours")


def _row(
    stage: str, all_jobs: list[Job], left: list[Job], spent: Mapping[Key, float], forecast: Forecast, root: Path
) -> dict[str, Any]:
    mine, mine_left = ([job for job in some if job.stage == stage] for some in (all_jobs, left))
    keys = {job.key for job in mine_left}
    took = [s for job in mine if job.key not in keys and (s := seconds_of(job, root)) is not None]
    works = [job.work for job in mine if job.work]
    return {
        "stage": stage,
        "jobs": len(mine),
        "done": len(mine) - len(mine_left),
        "to_do": len(mine_left),
        "image_passes": sum(one.passes for one in works) if stage != "geometry" else 0,
        "flop": sum(one.operations for one in works),
        "bytes": forecast.all_bytes(mine),
        "memory_mb": max((one.memory_mb for one in works), default=None),
        "hours": sum(spent[job.key] for job in mine) / 3600,
        "hours_to_do": sum(spent[job.key] for job in mine_left) / 3600,
        "took_hours": sum(took) / 3600 if took else None,
    }


def price_arms(config: Mapping[str, Any], all_jobs: list[Job], spent: Mapping[Key, float]) -> list[dict[str, Any]]:
    """What each arm of a study costs: what it shares with others is counted at the first of them.

    Args:
        config: resolved settings.
        all_jobs: the study's.
        spent: seconds of each.

    Returns:
        For each arm its cells, jobs, trainings, image passes of these, job hours and how many of them go into tuning;
        without packs and summaries, which are all arms' together.
    """
    by_key = {job.key: job for job in all_jobs}
    seen = {key for key in by_key if key[0] in ("pack", *SUMMARIES)}
    found = []
    for arm in arms(config):
        mine = list(dict.fromkeys(cell for (whose, *_), cell in places(config).items() if whose == arm))
        todo = [("evaluate", cell.name) for cell in mine]
        todo += [("geometry", one.name) for one in encoders(config, mine)]
        todo += [("reference", one.name) for one in references(config) if arm == arms(config)[0]]
        own: list[Job] = []
        while todo:
            key = todo.pop()
            if key not in seen:
                seen.add(key)
                own.append(by_key[key])
                todo += by_key[key].needs
        trained = [job for job in own if job.stage in TRAINS]
        found.append(
            {
                "arm": arm.name,
                "cells": sum(job.stage == "evaluate" for job in own),
                "jobs": len(own),
                "trainings": sum(job.stage in TRAININGS for job in own),
                "image_passes": sum(job.work.passes for job in trained),
                "hours": sum(spent[job.key] for job in own) / 3600,
                "tuning_hours": sum(spent[job.key] for job in own if job.stage == "tune") / 3600,
            }
        )
    return found


def further(forecast: Forecast) -> list[dict[str, Any]]:
    """What a further seed, size or task would add: cells, jobs, image passes, job hours, bytes; without packs."""
    config = forecast.config
    grid = config["grid"]

    def cost(**lists: list[Any]) -> tuple[float, ...]:
        changed = {**config, "grid": {**grid, **lists}}
        if "lineages" in grid:
            changed["grid"]["lineages"] = lineages(changed)
        some = [job for job in jobs(changed, forecast.images) if job.stage not in ("pack", *SUMMARIES)]
        passes = sum(job.work.passes for job in some if job.work and job.stage != "geometry")
        hours = sum(map(forecast.seconds, some)) / 3600
        return len(cells(changed)), len(some), passes, hours, forecast.all_bytes(some)

    here = cost()

    def row(what: str, costs: list[tuple[float, ...]], sign: int = 1) -> dict[str, Any]:
        names = ("cells", "jobs", "image_passes", "hours", "bytes")
        mean = [statistics.mean(sign * (one[at] - here[at]) for one in costs) for at in range(len(names))]
        return {"what": what, **dict(zip(names, mean, strict=True))}

    rows = [row("a further seed", [cost(seeds=[*grid["seeds"], max(grid["seeds"]) + 1])])]
    for key, what, there in (
        ("pretrain_sizes", "pre-training images", _to_train_on(forecast)),
        ("finetune_sizes", "labels", forecast.images.room),
    ):
        sizes = [size for size in grid[key] if size]
        if not sizes:
            continue
        more = 2 * max(sizes)
        lacking = f" (there are {there:,})" if there is not None and more > there else ""
        rows.append(row(f"{more:,} {what}, the next doubling{lacking}", [cost(**{key: [*grid[key], more]})]))
        without = [cost(**{key: [one for one in grid[key] if one != size]}) for size in sizes]
        rows.append(row(f"a number of {what}, mean of the {len(sizes)} here", without, -1))
    for task in grid["intermediates"]:
        if task == "none":
            continue
        left = [name for name in grid["intermediates"] if name != task]
        rows.append(row(f"a task like {task}", [cost(intermediates=left)], -1))
    return rows


def _to_train_on(forecast: Forecast) -> int | None:
    """How many unlabelled images every arm that pre-trains on the most could pre-train on; None if unknown."""
    most = max(forecast.config["grid"]["pretrain_sizes"])
    used = {pretrain_pack(cell.shared.pack) for cell in cells(forecast.config) if cell.pretrain_size == most}
    there = [n for name, n in forecast.images.unlabelled.items() if n is not None and name in used]
    return min(there) - forecast.config["pretrain"].get("held_out", 0) if there else None


def _notes(config: Mapping[str, Any], images: Images, rates: Rates, stale: int) -> list[str]:
    used = set(images.packed) - (set(images.unlabelled) if not max(config["grid"]["pretrain_sizes"]) else set())
    lacking = [name for name, n in images.packed.items() if n is None and name in used]
    notes = list(images.notes)
    if stale:
        notes.append(
            f"out of date: {stale} of the jobs to do, whose files exist but are of other settings, code, images or "
            "weights than those now"
        )
    for name in lacking:
        spec = pack_spec(config, name)
        trained = images.trained.get(name)
        if name not in images.trained:
            how = "the grid's sizes stand for its own"
        else:
            how = f"its split has {trained:,} training images" if trained else f"it is taken to have {UNKNOWN:,} images"
        notes.append(f"{name}: no data set at {spec['path']}; {how}")
    steps = [arm.name for arm in arms(config) if takes_steps(settings_of(config, arm))]
    if steps:
        notes.append(
            f"{'; '.join(steps)}: all sizes take as many steps as the largest, so that a larger one lengthens them all"
        )
    if rates.share < QUIET:
        notes.append(
            f"measured {busy(rates.share)}, which is allowed for; if it goes on, jobs take {1 / rates.share:.1f} times "
            "as long"
        )
    if rates.past < QUIET:
        notes.append(f"the finished jobs ran {busy(rates.past)}; forecasts are for a quiet machine all the same")
    notes.append(
        "done: the files exist and are of the settings, code, images and weights there are now, as a run sees it"
    )
    return notes


def show(planned: Mapping[str, Any]) -> None:
    """Print what `plan` returns as tables."""
    out, total, wall = console(), planned["total"], planned["wall_clock"]
    to_do = f"{total['to_do']} of them to do"
    if total["to_do"]:
        to_do += f" ({total['to_do'] + 1} as Snakemake counts, with its rule all)"
    out.print(f"{planned['study']}: {planned['cells']} cells, {total['jobs']} jobs, {to_do}")
    where = counted(wall["cores"], "core")
    where += f" and {counted(wall['gpus'], 'GPU')}" if wall["gpus"] else ""
    beside = f"up to {wall['beside']} trainings side by side" if wall["beside"] > 1 else "one training after the other"
    if wall["stack"] > 1:
        beside = f"in {counted(wall['beside'], 'stack')} of up to {wall['stack']} trainings"
    meanwhile = f"up to {short(planned['checkpoint_bytes'], 'B')} of checkpoints meanwhile"
    share = planned["share_of_cores"]

    def lasts(hours: float, what: str) -> str:
        return f"{duration(3600 * hours)} for {what}{loaded(hours, share)}"

    out.print(
        f"From start to end on {where}, {beside}: {lasts(wall['hours'], 'all')}"
        + (f", {lasts(wall['hours_to_do'], 'what is to do')}" if total["done"] else "")
        + ".\n"
        f"Disk: {short(total['bytes'], 'B')}, and {meanwhile}.\n"
    )
    columns = ["stage", "jobs", "done", "to do", "image passes", "disk", "memory a job"]
    columns += ["job time", "of those to do", "the done took"] if total["done"] else ["job time"]
    parts = [row for row in planned["stages"] if row["stage"] in SUMMARIES]
    summaries = {key: sum(row[key] or 0 for row in parts) for key in ("jobs", "done", "to_do", "bytes", *SUMMED)}
    rows = [row for row in planned["stages"] if row not in parts]
    rows += [{"stage": "summaries", **summaries}, {"stage": "in all", **total}]
    rows = [_cells_of(row)[: len(columns)] for row in rows]
    out.print(table(columns, rows))
    out.print()
    if "arms" in planned:
        _show_arms(planned)
    rates = [(one["what"], f"{one['images_per_second']:,.0f}", one["from"]) for one in planned["rates"]]
    out.print(table(["rate", "images/s a job", "known from"], rates, right=[1]))
    rows = [
        (one["what"], *(f"{one[key]:,.0f}" for key in ("cells", "jobs")), *_amounts(one)) for one in planned["further"]
    ]
    out.print("\nWhat more would add, besides packs:")
    out.print(table(["", "cells", "jobs", "image passes", "job time", "disk"], rows))
    out.print()
    if planned["unanswered"]:
        show_unanswered(Unanswered(**one) for one in planned["unanswered"])
        out.print()
    say(*(f"- {note}" for note in planned["notes"]))


def _show_arms(planned: Mapping[str, Any]) -> None:
    out, rows, tuned = console(), [], sum(one["tuning_hours"] for one in planned["arms"])
    for one in planned["arms"]:
        counts = (f"{one[key]:,}" for key in ("cells", "trainings"))
        hours = [one["hours"], *([one["tuning_hours"]] if tuned else [])]
        times = (duration(3600 * some) if some else "" for some in hours)
        rows.append([one["arm"], *counts, short(one["image_passes"]) if one["image_passes"] else "", *times])
    columns = ["arm", "cells", "trainings", "image passes", "job time", *(["of that, tuning"] if tuned else [])]
    out.print(table(columns, rows))
    said = "Shared trainings and cells count at the first arm that has them; packs and summaries at none."
    if tuned:
        whole = planned["total"]["hours"]
        said += f" Tuning takes {duration(3600 * tuned)}, {100 * tuned / whole:.0f} % of all job time."
    out.print(f"{said}\n")


def _amounts(one: Mapping[str, Any]) -> tuple[str, str, str]:
    return short(one["image_passes"]), duration(3600 * one["hours"]), short(one["bytes"], "B")


def _cells_of(row: Mapping[str, Any]) -> list[str]:
    """A row of the stages' table; what does not apply stays empty."""
    spent = [row["hours"], row["hours_to_do"], row["took_hours"] or 0.0]
    return [
        row["stage"],
        *(str(row[key]) for key in ("jobs", "done", "to_do")),
        short(row["image_passes"]) if row["image_passes"] else "",
        short(row["bytes"], "B"),
        short(1e6 * row["memory_mb"], "B") if row.get("memory_mb") else "",
        *(duration(3600 * one) if one else "" for one in spent),
    ]
