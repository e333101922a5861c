"""Checkpoints: what a stopped training goes on from, bit for bit, and nothing that it may not go on from."""

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

from viny.runtime.files import atomic_path, canonical_json, digest

KEPT = 2  # checkpoints of a run; the older one stands in if the newer one is damaged


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        epoch: counted from 0; the one that is under way.
        losses: summed loss of each batch of that epoch that is done, scalars.
        curve: a row for each epoch before it.
        seconds: spent on training, in all attempts.
        attempts: where and how each earlier attempt ran, for the provenance.
    """

    epoch: int = 0
    losses: list[Tensor] = field(default_factory=list)
    curve: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    attempts: list[dict[str, Any]] = field(default_factory=list)


class Checkpoints:
    """The checkpoints of one run, in a folder of its own that no workflow manager deletes.

    Args:
        folder: where they are; made when the first is written.
        identity: everything that the run's weights depend on. A checkpoint with any other is not used.
        minutes: between two checkpoints; 0 writes one after every step.
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

    def save(self, objective: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> Path | None:
        """Write a checkpoint, whole or not at all, and drop all but the last two.

        A disk that is full or fails costs this checkpoint, not the training: it is reported, and those
        before it stay. Returns the file, or None where it could not be written.
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

    def load(self, objective: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
        """Fill model and optimiser from the newest checkpoint that is whole and of this run.

        Every other one that is met is reported. Returns a fresh start where there is none.
        """
        for path in sorted(self.folder.glob("[!.]*.safetensors"), key=_position, reverse=True):
            try:
                about, tensors = _read(path)
            except Exception as error:  # safetensors, JSON and the file system each raise types of their own
                print(f"{path}: damaged, not used ({error})", flush=True)
                continue
            if about["identity"] != self.identity:
                differs = ", ".join(_differences(about["identity"], self.identity))
                print(f"{path}: of another run, not used; differs in {differs}", flush=True)
                continue
            _restore(tensors, objective, optimizer)
            losses = list(tensors["losses"].to(next(objective.parameters()).device)) if about["step"] else []
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
        """The newest file of this run."""
        mine = self._mine()
        return mine[-1] if mine else None

    def remove(self) -> None:
        """Drop the folder: the run has come to its end."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _position(path: Path) -> str:
    return path.name.partition("_")[2]


def _state(objective: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Weights and optimiser state under flat names, on the CPU."""
    for name, tensor in objective.state_dict().items():
        yield f"model/{name}", tensor.detach().cpu().contiguous()
    for index, values in optimizer.state_dict()["state"].items():
        for key, value in values.items():
            yield f"optimizer/{index}/{key}", torch.as_tensor(value).detach().cpu().contiguous()


def _restore(tensors: Mapping[str, Tensor], objective: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model = {k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")}
    objective.load_state_dict(model)
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            _, index, key = name.split("/")
            # A copy of its own: what is read lies where the file's layout put it.
            state.setdefault(int(index), {})[key] = tensor.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _checksum(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """sha256 over the description and every tensor's name, type, shape and bytes."""
    h = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        h.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        h.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return h.hexdigest()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and tensors of a checkpoint whose checksum holds; raises whatever the damage raises."""
    with safe_open(path, framework="pt") as f:
        metadata = f.metadata() or {}
        about = json.loads(metadata["viny"])
        tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118, safe_open is no mapping
    if _checksum(about, tensors) != metadata["sha256"]:
        raise ValueError("its content does not have the checksum that it carries")
    return about, tensors


def _differences(theirs: Any, mine: Any, key: str = "") -> list[str]:
    """Keys, dotted, under which two values differ."""
    if isinstance(theirs, dict) and isinstance(mine, dict):
        pairs = [(k, theirs.get(k), mine.get(k)) for k in sorted({*theirs, *mine})]
        return [line for k, a, b in pairs for line in _differences(a, b, f"{key}.{k}" if key else k)]
    return [] if theirs == mine else [f"{key} ({theirs} there, {mine} here)"]
