# PYTHON_ARGCOMPLETE_OK
"""`viny <command>` or `python -m viny <command>`: commands for people, and the stages that the workflow's rules call.

Heavy imports are inside the commands, so that each job loads only what it needs.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import os
import re
import shlex
import signal
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

from viny import __version__
from viny.commands import (
    advise,
    audit,
    check,
    export,
    init,
    mirror,
    plan,
    power,
    predict,
    resize,
    stages,
    status,
    verify,
)
from viny.commands.common import BAD_INPUT, EXIT_CODES, FAILED, SIGNALLED, People
from viny.runtime.environment import settle, take_names_for_utf8
from viny.runtime.errors import InputError, TrainingError
from viny.runtime.files import NOT_WRITABLE
from viny.runtime.fingerprint import ENTRY
from viny.runtime.signals import Stopped, end_with_parent, leave, on_stop
from viny.runtime.text import visible

DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG)


def parser() -> argparse.ArgumentParser:
    """The command line for people; each command's function is in its `run_command`."""
    top = _Parser(
        prog="viny",
        description="What do pre-training, an intermediate task and labels buy a small vision transformer?",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"viny {__version__}")
    people = People(top.add_subparsers(required=True, metavar="command", title="commands"))
    for command in (check, init, resize, plan, power, status, advise, predict, export, mirror, verify, audit):
        command.add(people)
    said = [
        f"stages, which the workflow calls: {', '.join(ENTRY)}",
        f"`viny <command> --help` has examples; {EXIT_CODES}.",
        'Tab completes names in a shell that has run: eval "$(register-python-argcomplete viny)"',
    ]
    top.epilog = "\n\n".join(textwrap.fill(line, 100) for line in said)
    return top


class _Parser(argparse.ArgumentParser):
    """Says what may have been meant, and does not list the stages to a person who mistyped a command."""

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"invalid choice: '([^']*)'", message)
        if wrong and "command" in message:
            known = [*ENTRY, *(name for action in self._actions for name in action.choices or ())]
            close = difflib.get_close_matches(wrong[1], known, n=1)
            message = f"no command is called '{wrong[1]}'" + (f"; did you mean '{close[0]}'?" if close else "")
            message += " `viny --help` lists all"
        super().error(message)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse what the command does not know, with what it does know."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            commands = [action.choices for action in self._actions if isinstance(action.choices, dict)]
            command = commands[0][found.command] if commands else self
            wrong = next((one for one in unknown if one.startswith("-")), unknown[0]).partition("=")[0]
            close = difflib.get_close_matches(wrong, sorted(command._option_string_actions), n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; `{command.prog} --help` lists what it takes"
            command.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return found


class Log:
    """Standard output or error, on which text from files is only text: what a terminal would obey is written out.

    What the stream's encoding lacks is written out as well, since a name must not end a command.

    Args:
        stream: to write to.
        lossy: whether what does not fit on a full disk is lost, rather than an error that ends a training.
    """

    def __init__(self, stream: Any, lossy: bool = True) -> None:
        self._stream, self._lossy = stream, lossy
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def controls(self) -> Any:
        """The stream for what moves the cursor itself, and sees to it that text does not; see `tools.terminal`."""
        return self._stream

    def write(self, text: str) -> int:
        bar = text[:1] == "\r"  # of progress, which is drawn over itself
        self._try(self._stream.write, "\r" * bar + visible(text[bar:]))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, call: Any, *arguments: Any) -> None:
        try:
            call(*arguments)
        except OSError as error:
            if not self._lossy or error.errno not in DISK_FAULTS:
                raise


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    if arguments is None:
        take_names_for_utf8()
    given = list(sys.argv[1:] if arguments is None else arguments)
    stage = given[0] if given and given[0] in ENTRY else None
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, Log):
            setattr(sys, name, Log(stream, lossy=stage is not None))
    try:
        try:
            return _run(given, stage)
        finally:
            _flush()
    except BrokenPipeError:  # whoever read this has seen enough, as `head` does
        _let_go()
        return SIGNALLED + signal.SIGPIPE


def _flush() -> None:
    try:
        print(end="", flush=True)
    except BrokenPipeError:
        raise
    except OSError:  # said already, to standard error
        _let_go()


def _let_go() -> None:
    """Let the last flush, at the interpreter's end, go nowhere: it would complain once more."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # of a stream that is no file, or closed
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _run(given: list[str], stage: str | None) -> int:
    """Run one command or stage; returns the exit code."""
    try:
        with on_stop(leave):
            settle()
            commands = stages.parser(stage) if stage else parser()
            if "_ARGCOMPLETE" in os.environ:  # a shell asks for completions
                import argcomplete

                argcomplete.autocomplete(commands)
            args = commands.parse_args(given[1:] if stage else given)
            parent = os.environ.get("VINY_PARENT", "")
            if parent.isdecimal():
                end_with_parent(int(parent))
            if stage:
                # A stage's log begins with how to run it by hand.
                print(f"$ {shlex.join(['python', '-m', 'viny', *given])}", flush=True)
                stages.run(stage, vars(args))
                return 0
            code = args.run_command(args) or 0
            print(end="", flush=True)
            return code
    except InputError as error:
        print(f"viny: {error}", file=sys.stderr)
        return BAD_INPUT
    except Stopped as stop:
        print(f"viny: {stop}", file=sys.stderr)
        return SIGNALLED + stop.signal
    except OSError as error:
        if error.errno not in (*DISK_FAULTS, *NOT_WRITABLE):
            raise
        way_out = "free space or mend the disk and run again, what is done stays"
        if error.errno in NOT_WRITABLE:
            way_out = "change its permissions, or use another folder; what is done stays"
        print(f"viny: {error.filename or 'output'}: {error.strerror}; {way_out}", file=sys.stderr)
        return FAILED
    except TrainingError as error:
        print(f"viny: {error}", file=sys.stderr)
        return FAILED
