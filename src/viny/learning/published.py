"""Published weights as the start of a study's encoder: found, read without running code in them, checked, converted.

ViNy's architecture comes from a safetensors file of this project, or from a state dict under vit-pytorch's names; the
plain vision transformer from timm's hub, or from a state dict as timm saves it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from viny.data.augment import Normalisation
from viny.learning.model import ViNy
from viny.learning.settings import ModelSettings, timm_model
from viny.learning.weights import Undrawn, own_normalisation, save_weights
from viny.runtime.errors import InputError
from viny.runtime.files import file_sha256, write_sealed

HUB_FILE = "model.safetensors"  # by which every model of timm's on the hub is called
# Of a checkpoint that holds more than weights, in the order in which timm looks for them.
PARTS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict")
WRAPPERS = ("module.", "_orig_mod.")  # before every name of a model that was parallel or compiled
# Beside an encoder: heads, and what SimMIM adds; vit-pytorch's holds the patch embedding under a second name.
NOT_ENCODER = re.compile(r"(head|mlp_head|pre_logits|to_pixels|patch_to_emb)\..*|mask_token")
# Parts of timm's models that the model here lacks, by what their tensors are called.
UNSUPPORTED = {
    r"\.(ls[12]|gamma_[12])\b": "layer scale",
    r"\breg_token$": "register tokens",
    r"\b(dist_token|head_dist\.)": "a distillation token",
    r"\.[qk]_norm\.": "norms of queries and keys",
    r"\bnorm_pre\.": "a norm before the blocks",
    r"\bfc_norm\.": "its last norm behind the pooling",
    r"\battn_pool\.": "pooling by attention",
    r"\brope\b": "rotary positions",
}
VIT_PYTORCH = {
    "cls_token": "cls_token",
    "pos_embedding": "pos_embed",
    "to_patch_embedding.1": "patch_embed.norm_in",
    "to_patch_embedding.2": "patch_embed.proj",
    "to_patch_embedding.3": "patch_embed.norm_out",
    "transformer.norm": "norm",
}
VIT_PYTORCH_BLOCK = {
    "0.norm": "norm1",
    "0.to_qkv": "attn.qkv",
    "0.to_out.0": "attn.proj",
    "1.net.0": "norm2",
    "1.net.1": "mlp.fc1",
    "1.net.4": "mlp.fc2",
}


def fetch(spec: Mapping[str, Any], *, weights: Path, record: Path) -> None:
    """Make published weights the start of a study's encoder.

    Args:
        spec: stage, start (its name), model; timm (a model's name), with or without weights (a file); or file.
        weights: safetensors file to write.
        record: JSON file to write beside the weights.

    Raises:
        InputError: the weights cannot be had, cannot be read, or are not those of the model.
    """
    name, model = spec["start"], ModelSettings(**spec["model"])
    path, source = _found(spec)
    tensors, about = read_tensors(path)
    fitted, left_out = as_encoder(path, tensors, model)
    if left_out:
        parts = dict.fromkeys(re.sub(r"\.(weight|bias)$", "", one) for one in left_out)
        print(f"start {name}: {path}: left out, as no part of the encoder: {_few(parts, 12)}")
    made: dict[str, Any] = {"stage": "start", "spec": dict(spec), "source": source, "source_sha256": file_sha256(path)}
    made["parameters"] = sum(tensor.numel() for tensor in fitted.values())
    own = _normalisation(spec, path, model, about)
    if own is not None:
        made["normalisation"] = {"mean": list(own.mean), "std": list(own.std)}
    made["weights_sha256"] = save_weights(weights, {f"encoder.{key}": value for key, value in fitted.items()}, made)
    write_sealed(record, made)
    print(f"start {name}: {made['parameters']:,} parameters from {source}")


def _found(spec: Mapping[str, Any]) -> tuple[Path, str]:
    """The file of the published weights, and where it is from."""
    given = spec.get("file") or spec.get("weights")
    if given == "random":
        raise InputError(f"starts.{spec['start']}: random weights are drawn by each training; there is none to fetch")
    if given is not None:
        return Path(given), str(given)
    try:
        settings = _timm_settings(spec["timm"])
    except InputError as error:
        raise InputError(f"starts.{spec['start']}: {error}") from error
    return _download(settings, spec["start"])


def _timm_settings(name: str) -> Any:
    """What timm says of a model's published weights."""
    timm_model(name, 224)  # refuses a name that is not known here
    import timm

    try:
        found = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        known = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        raise InputError(f"timm: {error} Expected one of {', '.join(known)}") from error
    if found is None:
        raise InputError(f"timm: the installed version, {timm.__version__}, has no model {name}")
    return found


def _download(published: Any, start: str) -> tuple[Path, str]:
    """A model's file from the hub's cache, or else from the hub."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    hub = published.hf_hub_id
    if not hub:
        raise InputError(f"timm: {published.architecture}.{published.tag} has no weights on the hub; give a file")
    source = f"https://huggingface.co/{hub}"
    try:
        try:
            return Path(hf_hub_download(hub, HUB_FILE, local_files_only=True)), source
        except LocalEntryNotFoundError:
            return Path(hf_hub_download(hub, HUB_FILE)), source
    except Exception as error:  # of many types, by the hub's client, by what it uses for HTTP, and by the system
        raise InputError(
            f"starts.{start}: {HUB_FILE} of {source} could not be downloaded "
            f"({str(error).strip().partition(chr(10))[0] or type(error).__name__}). Without a network: run "
            f"`hf download {hub} {HUB_FILE}` where there is one, and copy its cache (HF_HOME, by default "
            f"~/.cache/huggingface); or give the file: starts.{start}.weights: <path>"
        ) from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The tensors of a file by name, and what this project wrote beside them, if it wrote the file.

    Args:
        path: safetensors, or a state dict as `torch.save` writes it, which is read without running code in it.

    Raises:
        InputError: there is no such file, it is damaged, or it holds something else.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such weights file; expected .safetensors, or a state dict as .pth, .pt or .bin")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as f:
                about = (f.metadata() or {}).get("viny")
                tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118, safe_open is not a mapping
                return tensors, None if about is None else dict(json.loads(about))
        except Exception as error:  # safetensors raises its own type for each kind of damage
            raise InputError(f"{path}: not a readable safetensors file ({error}); fetch it anew") from error
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file or a hostile one leads to
        unknown = re.search(r"GLOBAL (\S+)", str(error))
        if unknown:
            raise InputError(
                f"{path}: holds an object of {unknown[1]}, and reading that could run code; expected tensors alone: "
                "save the model's state_dict()"
            ) from error
        # What comes before it advises to read the file in the way that runs code.
        said = (str(error).rpartition("WeightsUnpickler error:")[2].strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{path}: not a readable state dict ({said}); fetch it anew") from error
    part = next((key for key in PARTS if isinstance(found, Mapping) and isinstance(found.get(key), Mapping)), None)
    found = found if part is None else found[part]
    if not isinstance(found, Mapping) or not found or not all(isinstance(key, str) for key in found):
        raise InputError(f"{path}: holds no state dict; expected tensors by name, as a model's state_dict() gives them")
    other = [key for key, value in found.items() if not isinstance(value, Tensor)]
    if other:
        raise InputError(f"{path}: {_few(other)}: no tensor; expected tensors alone, as a model's state_dict() gives")
    return dict(found), None


def as_encoder(path: Path, tensors: Mapping[str, Tensor], model: ModelSettings) -> tuple[dict[str, Tensor], list[str]]:
    """An encoder's weights under its own names, in float32, and the names of what is no part of it.

    Position embeddings of timm's architecture are resampled to the model's image size, as timm does.

    Args:
        path: where the tensors are from, for messages.
        tensors: under this project's names, vit-pytorch's or timm's.
        model: the encoder's dimensions.

    Raises:
        InputError: a tensor is missing, left over, of another shape, or not finite.
    """
    named, left_out = _renamed(path, tensors, model)
    with Undrawn(), torch.device("meta"):
        wanted = {name: tensor.shape for name, tensor in ViNy(model).state_dict().items()}
    missing, over = [name for name in wanted if name not in named], [named[n][0] for n in named if n not in wanted]
    if missing or over:
        said = [f"lacks {_few(missing)}"] if missing else []
        said += [f"has {_few(over)}, for which the model has no place"] if over else []
        raise InputError(f"{path}: {' and '.join(said)}; expected the weights of {_words(model)}")
    out = {}
    for name, shape in wanted.items():
        theirs, tensor = named[name]
        if not tensor.is_floating_point() or tensor.layout != torch.strided:
            raise InputError(f"{path}: '{theirs}' holds {tensor.dtype} as {tensor.layout}; expected plain numbers")
        tensor = tensor.float()
        if model.plain and name == "pos_embed":
            tensor = _resampled(path, theirs, tensor, shape)
        if tensor.shape == shape[1:] and shape[0] == 1:  # as newer versions of vit-pytorch have tokens and positions
            tensor = tensor.unsqueeze(0)
        if tensor.shape != shape:
            raise InputError(
                f"{path}: '{theirs}' is {_shape(tensor.shape)}, but the model's {name} is {_shape(shape)}; expected "
                f"the weights of {_words(model)}"
            )
        if not tensor.isfinite().all():
            raise InputError(f"{path}: '{theirs}' is not finite everywhere; fetch the file anew")
        out[name] = tensor.contiguous()
    return out, left_out


def _renamed(
    path: Path, tensors: Mapping[str, Tensor], model: ModelSettings
) -> tuple[dict[str, tuple[str, Tensor]], list[str]]:
    """Each tensor and what the file calls it, by the encoder's name for it; and what is no part of an encoder."""
    names = {name: name for name in tensors}  # without wrappers, to the file's own
    for wrapper in WRAPPERS * 2:  # one may be inside the other
        if all(name.startswith(wrapper) for name in names):
            names = {name.removeprefix(wrapper): own for name, own in names.items()}
    for pattern, what in UNSUPPORTED.items():
        found = [own for name, own in names.items() if re.search(pattern, name)]
        if found:
            raise InputError(f"{path}: has {what} ({_few(found)}), which the model here lacks; take other weights")
    inside = "encoder." if any(name.startswith("encoder.") for name in names) else ""
    theirs = f"{inside}pos_embedding" in names
    kernel = f"{inside}patch_embed.proj.weight"
    convolution = kernel in names and tensors[names[kernel]].dim() == 4
    if theirs and model.plain:
        raise InputError(f"{path}: ViNy's architecture under vit-pytorch's names; give it as `file` of a start")
    if convolution and not model.plain:
        raise InputError(
            f"{path}: timm's architecture, with a convolution as patch embedding; name its model as `timm` of a start, "
            "and the file as `weights`"
        )
    if model.plain and kernel in names and not convolution and not inside:
        raise InputError(f"{path}: '{names[kernel]}' is no convolution; the order of its pixels is not known")
    named, left_out = {}, []
    for name, own in names.items():
        inner, tensor = name.removeprefix(inside), tensors[own]
        if NOT_ENCODER.fullmatch(inner):
            left_out.append(own)
            continue
        if theirs:
            inner = _from_vit_pytorch(inner)
        if convolution and name == kernel:
            tensor = tensor.permute(0, 2, 3, 1).flatten(1)  # pixels row by row, channels fastest
        if inside and not name.startswith(inside):
            inner = f"beside the encoder: {name}"  # which has no place in it, whatever it is called
        named[inner] = own, tensor
    return named, left_out


def _from_vit_pytorch(name: str) -> str:
    """The encoder's name for a tensor of vit-pytorch's; a name that is not known stays as it is."""
    if name in VIT_PYTORCH:
        return VIT_PYTORCH[name]
    module, _, kind = name.rpartition(".")
    if module in VIT_PYTORCH:
        return f"{VIT_PYTORCH[module]}.{kind}"
    block = re.fullmatch(r"transformer\.layers\.(\d+)\.(.*)", module)
    if block is None or block[2] not in VIT_PYTORCH_BLOCK:
        return name
    return f"blocks.{block[1]}.{VIT_PYTORCH_BLOCK[block[2]]}.{kind}"


def _resampled(path: Path, name: str, positions: Tensor, shape: torch.Size) -> Tensor:
    """Position embeddings [1, 1 + L, D] of a square image for another number of patches, by timm's own resampling."""
    patches = positions.shape[1] - 1 if positions.dim() == 3 and len(positions) == 1 else -1
    if patches < 1 or math.isqrt(patches) ** 2 != patches:
        raise InputError(
            f"{path}: '{name}' is {_shape(positions.shape)}; expected a position for the class token and for each of a "
            "square number of patches"
        )
    from timm.layers import resample_abs_pos_embed

    side = math.isqrt(shape[1] - 1)
    return resample_abs_pos_embed(positions, new_size=[side, side], num_prefix_tokens=1)


def _normalisation(
    spec: Mapping[str, Any], path: Path, model: ModelSettings, about: Mapping[str, Any] | None
) -> Normalisation | None:
    """The normalisation that the weights were trained with; None for the study's own."""
    if about is None or "spec" not in about:  # not this project's, or a model that it exported
        if "timm" not in spec:
            return None
        published = _timm_settings(spec["timm"])
        return Normalisation(tuple(published.mean), tuple(published.std))
    try:
        made_for = ModelSettings(**about["spec"]["model"])
        own = own_normalisation(about)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: what it says of itself cannot be read ({error}); take the file as it was") from error
    if made_for != model:
        raise InputError(f"{path}: the weights of {_words(made_for)}; expected those of {_words(model)}")
    return own


def _words(model: ModelSettings) -> str:
    architecture = "timm's architecture" if model.plain else "ViNy's architecture"
    return (
        f"{architecture}, {model.image_size} px in patches of {model.patch_size}, {model.depth} blocks of "
        f"{model.dim} dimensions, {model.heads} heads of {model.head_dim}, MLP {model.mlp_dim}"
    )


def _shape(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape)) or "a single number"


def _few(names: Iterable[str], most: int = 4) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
