"""What people read: aligned tables and lines broken at words, plain when piped."""

from __future__ import annotations

import io
import sys
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table

from viny.runtime.text import visible
from viny.study.unanswered import HEADINGS, Unanswered

PIPED = 200  # width of a table that goes to a file or another program: nothing is wrapped


class _Trimmed:
    """A file without the blanks that rich pads the ends of a table's lines with."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        self._file.write("\n".join(line.rstrip(" ") for line in text.split("\n")))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _Shown(Console):
    """A console on which text is only text: brackets are no markup, and what a terminal would obey is written out."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible(text), style, control)

    def on_broken_pipe(self) -> NoReturn:
        """What the command line makes of it, rather than rich."""
        raise BrokenPipeError


def console(errors: bool = False) -> Console:
    """Standard output or error; rich leaves colours out if it is not a terminal or NO_COLOR is set."""
    stream = sys.stderr if errors else sys.stdout
    stream = getattr(stream, "controls", stream)
    if stream.isatty():
        return _Shown(file=stream)
    return _Shown(width=PIPED, file=_Trimmed(stream))


def wrapped(line: str, hang: int = 2) -> str:
    """A line as a terminal shows it whole: broken at words, what follows `hang` columns to the right; else as it is."""
    out = console()
    if not out.is_terminal:
        return line
    width = max(40, out.width)
    return textwrap.fill(
        line, width, subsequent_indent=" " * hang, break_long_words=False, break_on_hyphens=False, expand_tabs=False
    )


def say(*lines: str, hang: int = 2) -> None:
    """Print lines, each as `wrapped` gives it."""
    for line in lines:
        print(wrapped(line, hang))


def show_unanswered(found: Iterable[Unanswered], out: Console | None = None) -> None:
    """Print what a study as it is set cannot answer; nothing if it answers all."""
    if rows := [(one.question, one.why, one.remedy) for one in found]:
        (out or console()).print(table(HEADINGS, rows, right=()))


def unanswered_lines(found: Iterable[Unanswered]) -> list[str]:
    """The same as lines for a file."""
    text = io.StringIO()
    show_unanswered(found, _Shown(width=PIPED, file=_Trimmed(text)))
    return text.getvalue().splitlines()


def table(columns: Iterable[str], rows: Iterable[Iterable[str]], right: Iterable[int] | None = None) -> Table:
    """A table without lines.

    Args:
        columns: their headings.
        rows: texts, as many as columns.
        right: columns of numbers, which are right-aligned; None for all but the first.
    """
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    columns = list(columns)
    numbers = set(range(1, len(columns)) if right is None else right)
    for at, name in enumerate(columns):
        made.add_column(name, justify="right" if at in numbers else "left", no_wrap=at in numbers, overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made
