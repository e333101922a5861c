"""A study's state for people to read: once, or live on a terminal."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from viny.runtime.signals import on_stop
from viny.runtime.units import duration, short
from viny.study.graph import STAGES, SUMMARIES
from viny.tools.status.running import Running
from viny.tools.status.state import Status, Watcher
from viny.tools.terminal import console, table

SHOWN = 20  # failed jobs, or reasons for being out of date, that are listed
NARROW = 120  # characters; on a terminal narrower than this, the table of running jobs has fewer columns


def show(status: Status, width: int | None = None, columns: int | None = None) -> Group:
    """A study's state for people, for rich to print.

    Args:
        status: from `Watcher.look`.
        width: columns of the progress bar; None for no bar.
        columns: of the place where it is shown; None for those of standard output.
    """
    total, done, kept = status.passes
    share = done / total if total else 1.0
    who = (
        f"run by {status.holder}"
        if status.holder
        else "nothing runs it"
        if not status.slurm
        else "its snakemake is gone"
    )
    who += f"; Slurm: {status.slurm}" if status.slurm else ""
    left, known = "", status.seconds_left
    if status.running:
        left = ", time left not known yet" if known is None else f", {duration(known)} left (about {_clock(known)})"
    old = f", {status.outdated} out of date" if status.outdated else ""
    held = f", {100 * kept / done:.0f} % of it in checkpoints of unfinished trainings" if kept else ""
    parts: list[Any] = [
        Text(
            f"{status.study}: {status.cells[1]} of {status.cells[0]} cells done{old}; "
            f"{'all done' if status.done else who}"
        ),
        Text(f"{100 * share:.0f} % of {short(total)} image passes of training done{held}{left}"),
    ]
    if width:
        parts.append(ProgressBar(total=max(1, total), completed=done, width=width))
    counts = {stage: status.stages[stage] for stage in STAGES if stage in status.stages and stage not in SUMMARIES}
    counts["summaries"] = sum((status.stages[stage] for stage in SUMMARIES if stage in status.stages), Counter())
    some_old = any(one["out of date"] for one in counts.values())
    names = ["done", *(["out of date"] if some_old else []), "running", "failed", "waiting"]
    rows = [[stage, *(str(one[n] or "") for n in names)] for stage, one in counts.items()]
    parts += [Text(""), table(["stage", *names], rows)]
    if status.why:
        parts.append(Text("\nOut of date:"))
        parts += [Text(f"  {line}") for line in status.why[:SHOWN]]
    if status.running:
        parts += [Text("\nRunning:"), _running_table(status.running, (columns or console().width) < NARROW)]
    if status.failed:
        parts.append(Text("\nFailed:"))
        for one in status.failed[:SHOWN]:
            parts.append(Text(f"  {one.job.label}: {one.said[:300]}\n    read {one.log}", style="red"))
        if len(status.failed) > SHOWN:
            parts.append(Text(f"  and {len(status.failed) - SHOWN} more"))
    if not status.done and not status.alive:
        last = ["Not finished, and nothing runs: the same snakemake command goes on from here."]
        if status.of_other_code:
            all_there = not {"waiting", "failed"} & {name for one in counts.values() for name in +one}
            read = "`viny advise` still reads the results of other code; the same snakemake command makes them anew."
            last = [read, *([] if all_there else last)]
        parts.append(Text("\n" + "\n".join(last)))
    return Group(*parts)


def _clock(seconds: float) -> str:
    """The time of day so many seconds from now, with its day if that is another one."""
    now, then = time.localtime(), time.localtime(time.time() + seconds)
    return time.strftime("%H:%M" if now[:3] == then[:3] else "%a %H:%M" if seconds < 518_400 else "%d %b", then)


def _running_table(running: Iterable[Running], narrow: bool) -> Table:
    def optional(value: float | None, text: str) -> str:
        return "" if value is None else text.format(value)

    rows = []
    for one in running:
        epoch = "" if one.epochs is None else f"{round(one.epoch, 1):g}/{one.epochs}"
        left = "" if one.seconds_left is None else duration(one.seconds_left)
        rate = optional(one.images_per_second, "{:.0f}")
        heard = f"{duration(one.silent)} ago"
        said = one.said if one.seconds_left is None else ""
        rows.append([one.job.label, epoch, optional(one.loss, "{:.4f}"), rate, left, heard, said])
    if narrow:
        return table(["job", "epochs", "loss", "img/s", "left"], [row[:5] for row in rows])
    columns = ["job", "epochs done", "loss", "images/s", "left", "log written", "its last line"]
    return table(columns, rows, right=range(1, 6))


def watch(root: Path, seconds: float = 2.0) -> Status:
    """Show a study's state, refreshed every few seconds, until its run ends or Ctrl-C is pressed.

    Args:
        root: the study's folder.
        seconds: between refreshes.

    Returns:
        The last state.
    """
    left = threading.Event()
    watcher, out = Watcher(root), console()
    status = watcher.look()

    def shown() -> Group:
        # The terminal writes ^C after the last line; if that is full, ^C wraps and the view shifts by a line.
        hint = [Text("\nCtrl-C ends this view; the run goes on.")] if status.alive else []
        return Group(show(status, 60, out.width), *hint)

    with on_stop(lambda number: left.set()), Live(shown(), console=out, auto_refresh=False) as live:
        while status.alive and not left.wait(seconds):
            status = watcher.look()
            live.update(shown(), refresh=True)
    return status
