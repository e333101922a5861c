"""What commands share: exit codes, kinds of arguments, the settings of study files."""

from __future__ import annotations

import argparse
import gc
import importlib
import textwrap
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from viny.runtime.errors import InputError

# 0 done, 1 the job failed or results are not sound, 2 the input is at fault, 128 + n stopped by signal n.
FAILED, BAD_INPUT, SIGNALLED = 1, 2, 128
EXIT_CODES = (
    "exit codes: 0 done; 1 the job failed or results are not sound; 2 the input is at fault; "
    "128 + n stopped by signal n"
)

RATE = "training images of ViNy (128 px) per second in one job, as compute.images_per_second; nothing is measured"


def load(module: str) -> ModuleType:
    """Import a module and all that it imports, without a search for garbage, of which imports leave hardly any.

    Else Python goes through the growing heap again and again: a fifth of the time that PyTorch takes to load. What is
    loaded by then stays to the end, so later searches leave it out as well.
    """
    gc.disable()
    try:
        return importlib.import_module(module)
    finally:
        gc.freeze()
        gc.enable()


class People:
    """The commands for people, as they are added to the command line."""

    def __init__(self, commands: Any) -> None:
        self._commands = commands

    def command(self, name: str, run: Callable[..., int | None], text: str, *examples: str) -> argparse.ArgumentParser:
        """Add a command.

        Args:
            name: of the command.
            run: takes the arguments; returns the exit code, None for 0.
            text: what it does, a sentence.
            examples: command lines.
        """
        epilog = "\n  ".join(["examples:", *examples]) + f"\n\n{textwrap.fill(EXIT_CODES, 100)}"
        p = self._commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        p.set_defaults(run_command=run, command=name)
        return p


def positive(kind: type[int] | type[float]) -> Callable[[str], Any]:
    """Reads a number above zero."""

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r}: expected a number") from error
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text}: expected a number above 0")
        return value

    return read


def not_negative(text: str) -> float:
    """Reads a number of zero or more."""
    try:
        value = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number") from error
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: expected a number of 0 or more")
    return value


def change(text: str) -> dict[str, Any]:
    """The settings that 'section.key=value' changes."""
    import yaml

    name, equals, value = text.partition("=")
    if not equals or not all(name.split(".")):
        raise argparse.ArgumentTypeError(f"{text!r}: expected key=value, such as data_root=data or finetune.epochs=5")
    try:
        change: Any = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"{name}: {value!r} is not YAML") from error
    for key in reversed(name.split(".")):
        change = {key: change}
    return change


def settings_of(paths: Sequence[Path], changes: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """The resolved settings of study files; later ones override earlier ones, and changes override all.

    A folder of results stands for the settings that its run wrote there.
    """
    from viny.study.changes import as_written
    from viny.study.config import merge, resolve
    from viny.study.reading import read_config
    from viny.study.saved import read_study

    read = (as_written(read_study(path)) if path.is_dir() else read_config(path) for path in paths)
    return resolve(merge(*read, *changes))


def study_files(p: argparse.ArgumentParser) -> None:
    """Add the arguments of a command on study files: these, and changes to them."""
    p.add_argument(
        "study",
        type=Path,
        nargs="+",
        help="YAML files; later ones override earlier ones; or results/<study>, for the settings of its run",
    )
    changes(p)


def changes(p: Any) -> None:
    """Add the argument that changes settings of study files to a parser or a group of its arguments."""
    p.add_argument(
        "--set",
        type=change,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting, such as data_root=data or 'grid.finetune_sizes=[60, 120]'; may be repeated",
    )


def study_and_changes(p: argparse.ArgumentParser) -> None:
    """Add the arguments of a command on a study that may have run in part: its files, changes to them, its results."""
    study_files(p)
    p.add_argument("--results", type=Path, default=Path("results"), help="folder of all results (default results)")


def other_settings(args: argparse.Namespace) -> dict[str, Any] | None:
    """The settings that --study and --set give a command on results; None for those of the results themselves.

    Raises:
        InputError: settings that are no study's, or another's than that of the results.
    """
    if args.study:
        from viny.study.saved import read_study

        given = settings_of(args.study, args.set)
        ran = given["study"]
        with suppress(InputError):  # what --study may be given for: settings that are lost
            ran = read_study(args.root)["study"]
        if given["study"] != ran:
            files = ", ".join(map(str, args.study))
            raise InputError(
                f"--study {files}: is study {given['study']}, but the results in {args.root} are of study {ran}; "
                "give that study's file, or leave --study out"
            )
        return given
    if args.set:
        raise InputError("--set changes what a study's files say; name these with --study")
    return None


def cell_and_outputs(p: argparse.ArgumentParser) -> None:
    """Arguments of a command that takes a fine-tuned cell."""
    cell: Any = p.add_argument(
        "--cell",
        required=True,
        help="results/<study>/finetune/<cell>, or just its name, or that of a U-Net, with --root",
    )
    cell.completer = cell_names
    p.add_argument("--root", type=Path, help="the study's folder, results/<study>")
    p.add_argument("--overwrite", action="store_true", help="replace existing outputs")


def cell_names(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """Completions for --cell: names if --root gives the study, otherwise folders of cells."""
    if parsed_args.root is not None:
        from viny.study.layout import trained_models

        return trained_models(parsed_args.root)
    from argcomplete.completers import DirectoriesCompleter

    found = sorted(str(path.parent) for path in Path("results").glob("*/finetune/*/model.json"))
    return [name for name in found if name.startswith(prefix)] or list(DirectoriesCompleter()(prefix))
