# PYTHON_ARGCOMPLETE_OK
"""`viny <command>` or `python -m viny <command>`: commands for people, and the stages that the workflow's rules call.

Heavy imports are inside the commands, so that each job loads only what it needs.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

from viny import __version__
from viny.commands import advise, check, export, init, plan, predict, stages, status, verify
from viny.commands.common import BAD_INPUT, EXIT_CODES, FAILED, SIGNALLED, People
from viny.runtime.environment import settle, take_names_for_utf8
from viny.runtime.errors import InputError, TrainingError
from viny.runtime.files import NOT_WRITABLE
from viny.runtime.fingerprint import ENTRY
from viny.runtime.signals import Stopped, end_with_parent, leave, on_stop

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
    for command in (check, init, plan, status, advise, predict, export, verify):
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
        elif unknown := re.search(r"unrecognized arguments: (--[\w-]+)", message):
            close = difflib.get_close_matches(unknown[1], self.flags, n=1)
            message += f"; did you mean {close[0]}?" if close else ""
        super().error(message)

    @property
    def flags(self) -> list[str]:
        """Those of all commands: when an unknown argument is refused, argparse has forgotten the command."""
        commands = [p for action in self._actions if isinstance(action.choices, dict) for p in action.choices.values()]
        return sorted({flag for p in (self, *commands) for flag in p._option_string_actions})


class Log:
    """Standard output or error on which a full disk cannot end a training: what does not fit is lost."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, call: Any, *arguments: Any) -> None:
        try:
            call(*arguments)
        except OSError as error:
            if error.errno not in DISK_FAULTS:
                raise


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    if arguments is None:
        take_names_for_utf8()
    try:
        with on_stop(leave):
            settle()
            given = list(sys.argv[1:] if arguments is None else arguments)
            stage = given[0] if given and given[0] in ENTRY else None
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
            return args.run_command(args) or 0
    except InputError as error:
        print(f"viny: {error}", file=sys.stderr)
        return BAD_INPUT
    except Stopped as stop:
        print(f"viny: {stop}", file=sys.stderr)
        return SIGNALLED + stop.signal
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            return FAILED
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
