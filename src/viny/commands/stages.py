"""The stages that the workflow's rules call; each takes the arguments of its function.

Arguments are read from the function's source: importing a stage may take seconds, and a job that has to wait for a
GPU should do so first.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from viny.commands.common import EXIT_CODES, load
from viny.runtime.claims import claim_beside, claimed
from viny.runtime.errors import InputError
from viny.runtime.fingerprint import ENTRY, code_fingerprint, forget, module_tree
from viny.runtime.gpus import Share, give_gpu_back, take_gpu
from viny.runtime.stacks import Work, lead_or_join

TRAININGS = ("pretrain", "intermediate", "finetune")
# What Snakemake sets to a rule's threads, which are 0 where trainings wait for a place in a stack.
OF_THREADS = ("OMP_NUM_THREADS", "GOTO_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
KINDS = {"Path": Path, "Sequence[Path]": Path, "int": int, "float": float}
ARGUMENT = re.compile(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)  # an entry of a docstring's Args section


@dataclass(frozen=True)
class Argument:
    """An argument of a stage's function."""

    name: str
    kind: Any
    required: bool
    default: Any
    text: str
    several: bool  # whether it takes one or more


@functools.cache
def arguments(stage: str) -> tuple[str, tuple[Argument, ...]]:
    """What a stage does, in a sentence, and the arguments of its function except `spec`.

    An argument whose annotation allows None is optional.
    """
    module, name = ENTRY[stage].split(":")
    functions = {node.name: node for node in module_tree(module).body if isinstance(node, ast.FunctionDef)}
    function = functions[name]
    doc = ast.get_docstring(function) or ""
    texts = {found[1]: " ".join(found[2].split()) for found in ARGUMENT.finditer(doc.partition("Args:\n")[2])}
    found = []
    for node, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
        kind = ast.unparse(node.annotation).removesuffix(" | None") if node.annotation else ""
        value = None if default is None else ast.literal_eval(default)
        several = kind.startswith("Sequence")
        found.append(Argument(node.arg, KINDS[kind], default is None, value, texts[node.arg], several))
    return doc.partition("\n")[0], tuple(found)


def parser(stage: str) -> argparse.ArgumentParser:
    """The command line of a stage."""
    text, found = arguments(stage)
    epilog = (
        "A stage of the workflow: each log in results/<study>/logs begins with its job's command, which can be run "
        f"by hand; {EXIT_CODES}."
    )
    p = argparse.ArgumentParser(prog=f"viny {stage}", description=text, epilog=epilog)
    p.add_argument("--spec", type=_spec, required=True, help="the stage's settings, as JSON")
    for one in found:
        flag = f"--{one.name.replace('_', '-')}"
        count = "+" if one.several else None
        p.add_argument(flag, type=one.kind, nargs=count, required=one.required, default=one.default, help=one.text)
    if "threads" not in {one.name for one in found}:
        p.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    return p


def _spec(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("expected a JSON object")
    return value


def run(stage: str, given: dict[str, Any]) -> None:
    """Run a stage.

    Args:
        stage: its name.
        given: what `parser` read.

    Raises:
        InputError: the settings were made for different code, or the stage's function raises it.
    """
    spec = given.pop("spec")
    _check_code(stage, spec)
    if given.get("threads") == 0:
        given["threads"] = int(os.environ.get("VINY_TRAIN_THREADS") or 1)
        os.environ.update(dict.fromkeys(OF_THREADS, str(given["threads"])))
    on_gpu = spec.get("device", "cpu") != "cpu"
    share = Share.told() if on_gpu else None
    if stage in TRAININGS and share is not None and share.stack > 1:
        _train_in_a_stack(stage, spec, given)
        return
    with _gpu() if on_gpu else contextlib.nullcontext():
        if share is not None:
            _check_code(stage, spec)  # it may have waited
        module, name = ENTRY[stage].split(":")
        function = getattr(load(module), name)
        if "threads" in {one.name for one in arguments(stage)[1]}:
            function(spec, **given)
            return
        from threadpoolctl import threadpool_limits

        # Otherwise each of NumPy's libraries starts one thread per processor, and parallel jobs wait for each other.
        with threadpool_limits(given.pop("threads")):
            function(spec, **given)


def _check_code(stage: str, spec: dict[str, Any]) -> None:
    """Raise InputError if the code of a stage is not, or no longer, what its settings were made for."""
    code = spec.get("code")
    forget()
    if code is not None and code != code_fingerprint(stage):
        raise InputError(
            f"the code of stage '{stage}' was edited after this run began; start the run again, so that no "
            "result is filed under another version's name"
        )


@contextlib.contextmanager
def _gpu() -> Any:
    """Hold a GPU, if the driver has any to share out."""
    take_gpu()
    try:
        yield
    finally:
        give_gpu_back()


def _train_in_a_stack(stage: str, spec: dict[str, Any], given: dict[str, Any]) -> None:
    """Lead a stack of trainings on a GPU, or have a process that does so do this one."""
    arguments = {k: _plain(v) for k, v in given.items()}
    if arguments["checkpoint_minutes"] is None and os.environ.get("VINY_CHECKPOINT_MINUTES"):
        arguments["checkpoint_minutes"] = float(os.environ["VINY_CHECKPOINT_MINUTES"])
    folder = given["checkpoints"]
    # A job whose driver died may still be running when the next driver starts the same job.
    with claimed(claim_beside(folder), stage) if folder else contextlib.nullcontext(False) as waited:
        work = Work(spec, arguments, waited, os.environ.get("VINY_STUDY_SHA256") or None)
        desk = lead_or_join(work, stage)
        if desk is not None:
            with desk:
                _check_code(stage, spec)
                load("viny.learning.stages").lead(desk, desk.work)


def _plain(value: Any) -> Any:
    """An argument as JSON has it, with absolute paths."""
    if isinstance(value, list):
        return list(map(_plain, value))
    return str(value.absolute()) if isinstance(value, Path) else value
