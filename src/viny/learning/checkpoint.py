"""Checkpoints: a stopped training resumes from its own, bit for bit, and never from a damaged one or another run's."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from viny.learning.optimizer import Adam
from viny.runtime.files import atomic_path, canonical_json, digest

KEPT = 2  # checkpoints per run; the older one is used if the newer one is damaged


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        epoch: the current one, counted from 0.
        losses: summed loss of each finished batch of that epoch, scalars.
        curve: a row for each epoch before it.
        seconds: spent training, over all attempts.
        attempts: where and how each earlier attempt ran, for the provenance.
    """

    epoch: int = 0
    losses: list[Tensor] = field(default_factory=list)
    curve: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    attempts: list[dict[str, Any]] = field(default_factory=list)


class Checkpoints:
    """The checkpoints of one run, in a folder of their own that no workflow manager deletes.

    Args:
        folder: where they are; created when the first is written.
        identity: everything that the run's weights depend on. A checkpoint with a different one is not used.
        minutes: between checkpoints; 0 writes one after every step.
        attempt: where and how this attempt runs.
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, Any], minutes: float, attempt: Mapping[str, Any] | None = None
    ) -> None:
        self.folder = folder
        self.identity = json.loads(canonical_json(identity))
        self.minutes = minutes
        self.attempt = dict(attempt or {})
        self._last = time.monotonic()

    @property
    def due(self) -> bool:
        return time.monotonic() - self._last >= 60 * self.minutes

    def save(self, objective: nn.Module, optimizer: Adam, progress: Progress) -> Path | None:
        """Write a checkpoint, whole or not at all, and delete all but the last two.

        If the disk is full or fails, this checkpoint is lost and training continues: the failure is printed, and
        earlier checkpoints stay. Returns the file, or None if it could not be written.
        """
        self._last = time.monotonic()
        step = len(progress.losses)
        here = {**self.attempt, "to_epoch": progress.epoch + 1, "to_step": step}
        tensors = dict(_state(objective, optimizer))
        if step:
            tensors["losses"] = torch.stack(progress.losses).cpu()
        about = {
            "identity": self.identity,
            "epoch": progress.epoch,
            "step": step,
            "curve": progress.curve,
            "seconds": progress.seconds,
            "attempts": [*progress.attempts, here],
        }
        name = f"{digest(self.identity)[:8]}_epoch-{progress.epoch + 1:06d}_step-{step:08d}.safetensors"
        path = self.folder / name
        try:
            metadata = {"viny": json.dumps(about), "sha256": _checksum(about, tensors)}
            with atomic_path(path) as tmp:
                tmp.write_bytes(save(tensors, metadata))
            for old in self._mine()[:-KEPT]:
                old.unlink(missing_ok=True)
        except OSError as error:
            print(f"{path}: could not be written ({error.strerror}); training goes on without it", flush=True)
            return None
        return path

    def load(self, objective: nn.Module, optimizer: Adam) -> Progress:
        """Restore the model and optimiser from this run's newest undamaged checkpoint.

        Any other checkpoint met on the way is reported. Returns a fresh start if none can be used.
        """
        for path in sorted(self.folder.glob("[!.]*.safetensors"), key=_position, reverse=True):
            try:
                about, tensors = _read(path)
            except Exception as error:  # safetensors, JSON and the file system all raise different types
                print(f"{path}: damaged, not used ({error})", flush=True)
                continue
            if about["identity"] != self.identity:
                differs = ", ".join(_differences(about["identity"], self.identity))
                print(f"{path}: of another run, not used; differs in {differs}", flush=True)
                continue
            _restore(tensors, objective, optimizer)
            losses = list(tensors["losses"]) if about["step"] else []
            self._report(path, about)
            return Progress(about["epoch"], losses, about["curve"], about["seconds"], about["attempts"])
        return Progress()

    def _report(self, path: Path, about: Mapping[str, Any]) -> None:
        last = about["attempts"][-1]
        print(f"going on from {path.name}: epoch {about['epoch'] + 1}, {about['step']} steps done", flush=True)
        for key in sorted(set(self.attempt) & set(last) - {"started"}):
            if self.attempt[key] != last[key]:
                print(
                    f"{key} was {last[key]} and is {self.attempt[key]} now: the last bits of the weights may "
                    "differ from those of a run that was not stopped",
                    flush=True,
                )

    def _mine(self) -> list[Path]:
        return sorted(self.folder.glob(f"{digest(self.identity)[:8]}_*.safetensors"), key=_position)

    def newest(self) -> Path | None:
        """This run's newest checkpoint file."""
        mine = self._mine()
        return mine[-1] if mine else None

    def remove(self) -> None:
        """Delete the folder: the run is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _position(path: Path) -> str:
    return path.name.partition("_")[2]


def _state(objective: nn.Module, optimizer: Adam) -> Iterator[tuple[str, Tensor]]:
    """Weights and optimiser state under flat names, on the CPU."""
    for name, tensor in objective.state_dict().items():
        yield f"model/{name}", tensor.detach().cpu().contiguous()
    for index, values in optimizer.state.items():
        for key, value in values.items():
            yield f"optimizer/{index}/{key}", torch.as_tensor(value).detach().cpu().contiguous()


def _restore(tensors: Mapping[str, Tensor], objective: nn.Module, optimizer: Adam) -> None:
    model = {k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")}
    objective.load_state_dict(model)
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            _, index, key = name.split("/")
            # Copied, since a tensor that was read lies where the file's layout put it.
            state.setdefault(int(index), {})[key] = tensor.clone()
    optimizer.load(state)


def _checksum(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """sha256 over the description and every tensor's name, type, shape and bytes."""
    h = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        h.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        h.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return h.hexdigest()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A checkpoint's description and tensors, if its checksum matches; raises whatever the damage raises."""
    with safe_open(path, framework="pt") as f:
        metadata = f.metadata() or {}
        about = json.loads(metadata["viny"])
        tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118, safe_open is not a mapping
    if _checksum(about, tensors) != metadata["sha256"]:
        raise ValueError("its content does not have the checksum that it carries")
    return about, tensors


def _differences(theirs: Any, mine: Any, key: str = "") -> list[str]:
    """The dotted keys at which two values differ, with both values."""
    if isinstance(theirs, dict) and isinstance(mine, dict):
        pairs = [(k, theirs.get(k), mine.get(k)) for k in sorted({*theirs, *mine})]
        return [line for k, a, b in pairs for line in _differences(a, b, f"{key}.{k}" if key else k)]
    return [] if theirs == mine else [f"{key} ({theirs} there, {mine} here)"]
