"""Weights on disk: safetensors beside a record with their hash, and the models that they fill."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from torch.overrides import TorchFunctionMode

from viny.data.augment import Normalisation
from viny.learning.model import VINY, ViNy, assert_paper_size
from viny.learning.objectives import Segmentation
from viny.learning.settings import ModelSettings
from viny.runtime.errors import InputError
from viny.runtime.files import atomic_path, file_sha256, read_sealed
from viny.runtime.seeds import derive

S = TypeVar("S", bound=Segmentation)


class Undrawn(TorchFunctionMode):
    """Modules made in this block keep their weights as they were allocated.

    To draw weights on the device 'meta', where there are none, PyTorch loads its compiler, which takes a second.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


def load_segmentation(record_path: Path) -> tuple[Segmentation, dict[str, Any]]:
    """A fine-tuned model, ready to predict, and its record.

    Raises:
        InputError: as `read_weights`, or the weights are for another model than the record describes.
    """
    tensors, record = read_weights(record_path)
    spec, classes = record["spec"], len(record["mask_classes"])
    try:
        if spec["model"]["depth"] > len(tensors):
            raise ValueError(f"{len(tensors)} tensors are too few for its {spec['model']['depth']} layers")
        # No memory is asked for before the sizes are known to be those of the file.
        with Undrawn(), torch.device("meta"):
            make_segmentation(spec, ViNy(ModelSettings(**spec["model"])), classes).load_state_dict(tensors, assign=True)
        model = make_segmentation(spec, new_encoder(spec["model"], spec["cell"]["seed"]), classes)
        model.load_state_dict(tensors)
    except InputError:
        raise
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{weights_beside(record_path)}: does not fit the model: {error}") from error
    return model.eval(), record


def save_weights(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    """Write tensors and JSON metadata as one safetensors file, whole or not at all; returns its sha256."""
    flat = {k: v.detach().to("cpu").contiguous() for k, v in tensors.items()}
    content = save(flat, {"viny": json.dumps(metadata, sort_keys=True)})
    with atomic_path(path) as tmp:
        # Written by Python, whose errors name the cause; the library's own writer wraps them all in one type.
        tmp.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_weights` wrote.

    Raises:
        InputError: the file is missing, cut short, or not ours.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such weights file; run the stage that writes it")
    try:
        with safe_open(path, framework="pt") as f:
            metadata = json.loads((f.metadata() or {})["viny"])
            return {k: f.get_tensor(k) for k in f.keys()}, metadata  # noqa: SIM118, safe_open is not a mapping
    except Exception as error:  # safetensors raises its own type for each kind of damage
        raise InputError(
            f"{path}: not a readable ViNy weights file ({error}); delete it and run the stage again"
        ) from error


def weights_beside(record: Path) -> Path:
    """The weights file that a record describes."""
    return record.with_suffix(".safetensors")


def read_weights(record_path: Path, what: str = "a weights record") -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights and their record, which is `what`, after checking the file's hash.

    Raises:
        InputError: missing, damaged, or not the file that the record describes.
    """
    record = read_sealed(record_path, what)
    path = weights_beside(record_path)
    if not path.is_file():
        raise InputError(f"{path}: no such weights file, though {record_path} describes it; delete that and rerun")
    found = file_sha256(path)
    if found != record["weights_sha256"]:
        raise InputError(
            f"{path}: content differs from {record_path} (sha256 {found[:12]}, expected "
            f"{record['weights_sha256'][:12]}); delete both and rerun"
        )
    return load_weights(path)[0], record


def own_normalisation(record: Mapping[str, Any]) -> Normalisation | None:
    """The normalisation of published weights that a model goes back to, from its record; None if it has none.

    Raises:
        InputError: the record's is none for three channels.
    """
    found = record.get("normalisation")
    if found is None:
        return None
    mean, std = (tuple(float(value) for value in found[key]) for key in ("mean", "std"))
    if not len(mean) == len(std) == 3 or min(std) <= 0:
        raise InputError(
            f"'normalisation' of a weights record: {dict(found)}; expected three means and three deviations above 0; "
            "delete the record and run again"
        )
    return Normalisation(mean, std)


def shown_by(record: Mapping[str, Any], otherwise: bool) -> bool | Normalisation:
    """How images are normalised for a model: as for the published weights that it goes back to, or as the study says.

    Args:
        record: of the model's weights.
        otherwise: whether images are normalised by ImageNet's means and deviations for a model without its own.
    """
    return own_normalisation(record) or otherwise


def new_encoder(model: Mapping[str, Any], seed: int) -> ViNy:
    """A randomly initialised encoder; the same for every cell with the same seed."""
    settings = ModelSettings(**model)
    if settings == VINY:
        with Undrawn():
            assert_paper_size()
    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, "encoder"))
        return ViNy(settings)


def load_encoder(encoder: ViNy, record_path: Path) -> dict[str, Any]:
    """Fill an encoder from another stage's weights; returns that stage's record.

    Raises:
        InputError: the weights are for a model with other dimensions.
    """
    tensors, record = read_weights(record_path)
    mine = {k.removeprefix("encoder."): v for k, v in tensors.items() if k.startswith("encoder.")}
    try:
        encoder.load_state_dict(mine)
    except RuntimeError as error:
        raise InputError(f"{weights_beside(record_path)}: does not fit the model: {error}") from error
    return record


def make_segmentation(spec: Mapping[str, Any], encoder: ViNy, classes: int, kind: type[S] = Segmentation) -> S:
    return kind(encoder, classes, spec["segmentation_loss"], spec["class_token"])
