"""The chance that a study decides what it asks, before it runs: by number of seeds and of test images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from viny.evidence.power.noise import Key
from viny.evidence.power.simulate import STUDIES, Simulation
from viny.evidence.power.truth import Truth, from_paper, from_study, stand_ins, stated
from viny.evidence.verdicts import ASSURANCE, MARGIN, Question, questions
from viny.runtime.errors import InputError
from viny.runtime.units import counted, duration, tested_words
from viny.study.arms import base_alone
from viny.study.grid import Arm, arms, cells, has_arms
from viny.study.inventory import Images, count_images
from viny.tools.power.claims import STUDIES as CLAIM_STUDIES
from viny.tools.power.claims import claim_chances
from viny.tools.power.costs import Costs
from viny.tools.terminal import console, table

SEEDS = (3, 5, 10)  # beside the study's own number
TIMES = 4  # test images beside the study's own number: so many times that, which halves their noise
MOST = 100  # seeds
CLAIMS_SAY = (
    "That a claim of the paper is shown everywhere, and that it is decided, for or against, if only on average:"
)
# Kinds of questions that a stated effect says nothing of.
NOT_STATED = ("labels", "images", "labels fall", "images fall")


def power(
    config: Mapping[str, Any],
    results: Path,
    like: Path | None = None,
    effect: float | None = None,
    noise: float | None = None,
    image_noise: float | None = None,
    seeds: Sequence[int] | None = None,
    tests: Sequence[int] | None = None,
    rate: float | None = None,
) -> dict[str, Any]:
    """Simulate a study at several numbers of seeds and of test images; of several arms, the first one alone.

    Args:
        config: resolved settings.
        results: folder of all results.
        like: the folder of an earlier study; None for the paper's numbers.
        effect: points of mIoU that each gain and each harm is taken to have; None for those of `like` or the paper.
        noise: points, the standard deviation of a cell over seeds; None for that of `like` or the paper.
        image_noise: points, the standard deviation over test images of a difference between cells, likewise.
        seeds: numbers of seeds; None for the study's own and `SEEDS`.
        tests: numbers of test images; None for the study's own and `TIMES` as many.
        rate: training images of ViNy (128 px) per second in one job; None for what finished jobs tell.

    Returns:
        Where truth and noise are from, the grids with their hours, the chances of each question on each grid and of the
        paper's claims on those with the fewest test images, the cheapest grid, and notes, ready for JSON.

    Raises:
        InputError: no such study as `like`, or one without results; or nothing is known of any question.
    """
    others, config = arms(config)[1:], base_alone(config) if has_arms(config) else config
    own = len(config["grid"]["seeds"])
    images = count_images(config, results / config["study"])
    wanted_seeds = sorted({own, *SEEDS}) if seeds is None else sorted(set(seeds))
    wanted_tests = _tests(images, config) if tests is None else sorted(set(tests))
    if max(wanted_seeds) > MOST:
        raise InputError(f"--seeds {max(wanted_seeds)}: expected at most {MOST}")
    keys = _keys(config)
    truth = from_paper() if like is None else from_study(like)
    truth = truth.in_groups(images.tested / images.groups if images.groups else 1)
    truth = truth if effect is None else stated(truth, keys, effect / 100)
    truth = truth.with_noise(*(None if one is None else one / 100 for one in (noise, image_noise)))
    stand_in = stand_ins(truth, config["intermediate"])
    moving = config["switches"]["test_set"] == "moving"
    made = Simulation(truth, keys, max(wanted_seeds), stand_in, moving)
    asked = [one for one in questions(made.keys) if not (truth.stated and one.kind in NOT_STATED)]
    if not questions(keys):
        raise InputError(
            f"study {config['study']}: its grid asks nothing; it takes `none` in grid.intermediates, and two values of "
            "grid.pretrain_sizes, grid.intermediates or grid.finetune_sizes"
        )
    if not asked:
        hint = "leave --effect out" if truth.stated else "or `--effect`"
        raise InputError(
            f"study {config['study']}: {truth.said} says nothing of its cells; give `--like results/<study>` of one "
            f"with such tasks and sizes, {hint}"
        )
    costs = Costs(config, images, results, like, rate)
    grids = [{"seeds": n, "test_images": m, "hours": costs.hours(n, m)} for m in wanted_tests for n in wanted_seeds]
    found = [made.chances(asked, grid["seeds"], grid["test_images"], MARGIN) for grid in grids]
    rows = [
        {
            **{"kind": one.kind, "what": one.what, "name": one.name.rstrip(","), "effect": float(true)},
            "rightly": [float(chance.rightly[at]) for chance in found],
            "wrongly": [float(chance.wrongly[at]) for chance in found],
        }
        for at, (one, true) in enumerate(zip(asked, made.rows(asked) @ made.expected, strict=True))
        if not _twice(made, asked, at)
    ]
    # A stated effect is no mIoU, of which most claims are.
    claims = [] if truth.stated else claim_chances(made, config, grids, MARGIN)
    return {
        "study": config["study"],
        "own": {"seeds": own, "test_images": images.tested, "test_groups": images.groups},
        "truth": truth.said,
        "studies": STUDIES,
        "margin": MARGIN,
        "rates": costs.said,
        "grids": grids,
        "questions": rows,
        "claims": claims,
        "cheapest": cheapest(grids, rows),
        "notes": [
            *_of_arms(config, others),
            *_notes(config, images, truth, made, stand_in, max(wanted_tests)),
        ],
    }


def _of_arms(config: Mapping[str, Any], others: Sequence[Arm]) -> list[str]:
    if not others:
        return []
    return [
        f"of the arm {arms(config)[0].name} alone, and its hours; {counted(len(others), 'other')} are not simulated, "
        "and `viny plan` prices them"
    ]


def _keys(config: Mapping[str, Any]) -> list[Key]:
    """The cells of a study, without its seeds."""
    return list(dict.fromkeys((c.pretrain_size, c.intermediate, c.finetune_size) for c in cells(config)))


def _tests(images: Images, config: Mapping[str, Any]) -> list[int]:
    """The study's own number of test images and, if there are more to test on, `TIMES` as many or all."""
    there = _most_tests(images, config)
    return sorted({images.tested, max(images.tested, min(TIMES * images.tested, there or TIMES * images.tested))})


def _most_tests(images: Images, config: Mapping[str, Any]) -> int | None:
    """How many images there are to test on beside the most labels; None if unknown."""
    if images.room is None or images.given is not None:
        return None
    return images.room + images.tested - max(config["grid"]["finetune_sizes"])


def _twice(made: Simulation, asked: Sequence[Question], at: int) -> bool:
    """Whether a question is an earlier one under another name: with one pre-train size, a task after it.

    It still counts for Holm's correction over its kind.
    """
    *earlier, mine = made.rows(asked[: at + 1])
    return any(np.allclose(mine, other) for other in earlier)


def cheapest(grids: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The cheapest grid that decides each question rightly with a chance of 80 %, or as many as any grid does.

    Args:
        grids: seeds, test_images and hours of each; where hours are not known, fewer seeds are cheaper, then fewer
            test images.
        rows: questions, each with its chances on the grids.

    Returns:
        `grid`, its place, None if no grid decides any; `decided`, how many it does; `open`, the others, each with the
        best chance that it has on any grid.
    """

    def cost(at: int) -> tuple[float, ...]:
        grid = grids[at]
        hours = math.inf if grid["hours"] is None else grid["hours"]
        return hours, grid["seeds"], grid["test_images"]

    counts = [sum(row["rightly"][at] >= ASSURANCE for row in rows) for at in range(len(grids))]
    best = min((at for at in range(len(grids)) if counts[at] == max(counts)), key=cost)
    left = [row for row in rows if row["rightly"][best] < ASSURANCE]
    return {
        "grid": best if counts[best] else None,
        "decided": counts[best],
        "open": [{"name": row["name"], "chance": max(row["rightly"])} for row in left],
    }


def _notes(
    config: Mapping[str, Any],
    images: Images,
    truth: Truth,
    made: Simulation,
    stand_in: Mapping[str, str],
    most: int,
) -> list[str]:
    notes = [f"noise over seeds: {truth.about_seeds}", f"noise of the test images: {truth.about_images}"]
    for other in sorted(set(stand_in.values())):
        alike = [task for task in config["grid"]["intermediates"] if stand_in.get(task) == other]
        if alike:
            notes.append(f"{', '.join(alike)}: taken to do what {other} does, as nothing else is known")
    if made.beyond:
        notes.append(
            f"{len(made.beyond)} of {len(made.keys)} cells are beyond the known sizes, where each doubling is taken to "
            "bring half of the one before: a guess"
        )
    if made.unknown:
        which = sorted({(p, task) for p, task, _ in made.unknown})
        said = "; ".join(f"{p:,} pre-training images, task {task}" for p, task in which[:4])
        more = f" and {len(which) - 4} more" if len(which) > 4 else ""
        notes.append(f"nothing is known of {len(made.unknown)} cells, whose questions are left out: {said}{more}")
    there = _most_tests(images, config)
    if there is not None and most > there:
        notes.append(f"beside the most labels there are {there:,} labelled images to test on; more have to be made")
    errors = [f"{100 * math.sqrt(0.25 / count):.1f}" for count in (STUDIES, CLAIM_STUDIES)]
    notes.append(
        f"chances are of {STUDIES} simulated studies, ±{errors[0]} points at most (standard error), those of claims of "
        f"{CLAIM_STUDIES}, ±{errors[1]}; the studies differ in their truth as far as it is not known"
    )
    return notes


def show(found: Mapping[str, Any]) -> None:
    """Print what `power` returns as tables."""
    out, own, grids = console(), found["own"], found["grids"]
    tested = tested_words([own["test_images"]], own["test_groups"])
    here = f"{counted(own['seeds'], 'seed')}, {tested}"
    out.print(f"{found['study']}: {here}. Truth: {found['truth']}.\n")
    out.print("Chance in percent that a question is decided, in brackets that it is decided wrongly:")
    by_tests: dict[int, list[int]] = {}
    for place, grid in enumerate(grids):
        by_tests.setdefault(grid["test_images"], []).append(place)
    for tests, at in by_tests.items():
        columns = [f"{tests:,} test images", "points", *(counted(grids[place]["seeds"], "seed") for place in at)]
        rows = [
            [row["name"], f"{round(100 * row['effect'], 1) + 0:+.1f}", *(_chance(row, place) for place in at)]
            for row in found["questions"]
        ]
        if any(grids[place]["hours"] is not None for place in at):
            rows.append(["job time", "", *(_time(grids[place]["hours"]) for place in at)])
        out.print()
        out.print(table(columns, rows))
    tests, at = next(iter(by_tests.items()))
    if found["claims"]:
        out.print(f"\n{CLAIMS_SAY}\n")
        columns = [f"{tests:,} test images", *(counted(grids[place]["seeds"], "seed") for place in at)]
        rows = [
            [row["name"], *(f"{100 * row['everywhere'][place]:.0f}, {_chance(row, place)}" for place in at)]
            for row in found["claims"]
        ]
        out.print(table(columns, rows))
    out.print(f"\nJob time: {found['rates']}.")
    out.print("\n".join(f"- {note}" for note in found["notes"]))
    out.print(f"\n{in_words(found)}")


def _chance(row: Mapping[str, Any], place: int) -> str:
    right, wrong = row["rightly"][place], row["wrongly"][place]
    percent = f"{100 * (right + wrong):.0f}"
    return f"{percent} ({100 * wrong:.0f})" if wrong > 0.005 else percent


def _time(hours: float | None) -> str:
    return "" if hours is None else duration(3600 * hours)


def in_words(found: Mapping[str, Any]) -> str:
    """The cheapest grid, in a sentence."""
    best, count = found["cheapest"], len(found["questions"])
    sure = f"with a chance of {100 * ASSURANCE:.0f} % each"
    left = "; ".join(f"{one['name']} ({100 * one['chance']:.0f} % at best)" for one in best["open"])
    if best["grid"] is None:
        return f"No grid here decides any question {sure}: {left}."
    grid = found["grids"][best["grid"]]
    hours = "" if grid["hours"] is None else f", {duration(3600 * grid['hours'])} of jobs"
    what = f"{counted(grid['seeds'], 'seed')} and {grid['test_images']:,} test images{hours}"
    if not best["open"]:
        return f"The cheapest grid here that decides every question {sure}: {what}."
    most = f"The cheapest that decides as many as any, {best['decided']} of {count}: {what}."
    return f"No grid here decides every question {sure}. {most} Open: {left}."
