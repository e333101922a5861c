"""A fine-tuned model for plain timm, an ONNX runtime or the Hugging Face hub, with a card that says what it is."""

from __future__ import annotations

import copy
import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from viny.data.augment import IMAGENET, Normalisation, normalisation, normalise
from viny.learning.objectives import Segmentation
from viny.learning.unet import UNet
from viny.learning.weights import save_weights
from viny.runtime.errors import InputError
from viny.runtime.files import atomic_path, write_json
from viny.tools.trained.cell import TrainedCell
from viny.tools.trained.model_card import write_card
from viny.tools.trained.predict import make_room

SUFFIXES = {"timm": ".safetensors", "onnx": ".onnx", "hf": ""}  # of the file, or none for a folder
HUB = ("model.safetensors", "config.json", "preprocessor_config.json", "README.md")  # the hub's own names
OPSET = 18  # what PyTorch's exporter writes without a conversion, and onnxruntime reads since version 1.14
AGREE = 1e-5  # largest difference between the scores of a graph and its model, over the largest score


def export(cell: TrainedCell, kind: str, out: Path | None = None, overwrite: bool = False) -> list[Path]:
    """Write a cell's model, its card (`<out>.md`) and, for timm, the arguments of timm's class (`<stem>.json`).

    Args:
        cell: whose model it is; left on the CPU.
        kind: 'timm', weights that timm's own `VisionTransformer` loads, 'onnx', or 'hf', a folder of what 'timm' has
            under the names that the Hugging Face hub looks for.
        out: file to write, or folder for 'hf'; default <cell>.safetensors, <cell>.onnx or <cell> in the working folder.
        overwrite: whether existing files may be replaced.

    Returns:
        The files, weights first, the card last.

    Raises:
        InputError: the file's name has the wrong ending, a file exists already, a package is missing, or a U-Net is
            to be what timm's class loads.
    """
    if kind != "onnx" and isinstance(cell.model, UNet):
        raise InputError(f"{cell.name}: a U-Net is no vision transformer of timm's; take --format onnx")
    suffix = SUFFIXES[kind]
    out = Path(f"{cell.name}{suffix}") if out is None else Path(out)
    if kind == "hf":
        if out.is_file():
            raise InputError(f"{out}: is a file; expected a folder for format hf, such as --out {cell.name}")
    elif out.suffix != suffix:
        raise InputError(f"{out}: expected a file name that ends in {suffix} for format {kind}")
    if kind == "onnx":
        missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
        if missing:
            raise InputError(f'format onnx needs {" and ".join(missing)}; install with: pip install "viny[export]"')
    if kind == "hf":
        files = [out / name for name in HUB if name != "preprocessor_config.json" or preprocessor(cell)]
    else:
        files = [out, *([out.with_suffix(".json")] if kind == "timm" else []), out.with_name(f"{out.name}.md")]
    make_room(files, files[0].parent, overwrite)
    if kind == "onnx":
        _write_onnx(cell, out)
    else:
        save_weights(files[0], timm_weights(cell.model), about(cell))
        labels = hub_labels(cell) if kind == "hf" else {}
        write_json(files[1], about(cell) | timm_arguments(cell.model) | labels)
    if kind == "hf" and (settings := preprocessor(cell)):
        write_json(files[2], settings)
    write_card(cell, kind, files)
    return files


def about(cell: TrainedCell) -> dict[str, Any]:
    """What a program has to know about a model besides its weights."""
    mean, std = normalisation(cell.normalised) or Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return {
        "cell": cell.name,
        "study": cell.config["study"],
        "classes": cell.classes,
        "image_size": cell.size,
        "mean": list(mean),
        "std": list(std),
        "fit": cell.fit,
        "resize": cell.resize,
        "white_of_16_bits": cell.white,
        "trained_weights_sha256": cell.record["weights_sha256"],
    }


def hub_labels(cell: TrainedCell) -> dict[str, Any]:
    """A model's kind and classes under the keys that programs of the hub look for."""
    named = {str(index): name for index, name in enumerate(cell.classes)}
    return {
        "architectures": ["VisionTransformer"],
        "id2label": named,
        "label2id": {name: index for index, name in enumerate(cell.classes)},
        "num_labels": len(named),
    }


def preprocessor(cell: TrainedCell) -> dict[str, Any] | None:
    """Settings with which transformers' `ViTImageProcessor` prepares an image as the card does.

    Returns:
        None if it cannot: it neither cuts a square from an image's centre before resizing nor pads one to a square.
    """
    if cell.fit != "stretch":
        return None
    mean, std = (about(cell)[key] for key in ("mean", "std"))
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": cell.size, "width": cell.size},
        "resample": int(Image.Resampling.BILINEAR if cell.resize == "antialias" else Image.Resampling.NEAREST),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": bool(cell.normalised),
        "image_mean": mean,
        "image_std": std,
    }


def timm_weights(model: Segmentation) -> dict[str, Tensor]:
    """A model's weights under the names of timm's `VisionTransformer`, whose head applies to every patch token.

    Args:
        model: with or without a class token in its sequence.
    """
    tensors = {name.removeprefix("encoder."): value for name, value in model.state_dict().items()}
    if not model.class_token:  # the token and its position have no part in what the model computes
        del tensors["cls_token"]
        tensors["pos_embed"] = tensors["pos_embed"][:, 1:]
    settings, kernel = model.encoder.settings, "patch_embed.proj.weight"
    if settings.plain:  # a convolution, channels first
        side = settings.patch_size
        tensors[kernel] = tensors[kernel].unflatten(1, (side, side, 3)).permute(0, 3, 1, 2)
    return tensors


def timm_arguments(model: Segmentation) -> dict[str, Any]:
    """`args` of timm's `VisionTransformer`, and `head_dim`, the width of a head, which ViNy's `Attention` takes."""
    settings = model.encoder.settings
    ratio = settings.mlp_dim / settings.dim
    if int(settings.dim * ratio) != settings.mlp_dim:  # timm rounds the product down, here to one too few
        ratio = (settings.mlp_dim + 0.5) / settings.dim
    args = {
        "img_size": settings.image_size,
        "patch_size": settings.patch_size,
        "embed_dim": settings.dim,
        "depth": settings.depth,
        "num_heads": settings.heads,
        "mlp_ratio": ratio,
        "qkv_bias": settings.plain,
        "class_token": model.class_token,
        "global_pool": "",
        "num_classes": model.head.out_features,
    }
    return {"args": args, "head_dim": settings.head_dim}


class Graph(nn.Module):
    """A model in the form a graph takes: from images in 0 to 1, which it normalises itself if need be, to scores."""

    def __init__(self, cell: TrainedCell) -> None:
        super().__init__()
        self.model = copy.deepcopy(cell.model).cpu().eval()
        # The other form of attention is a custom function, which no exporter knows.
        self.model.encoder.set_fused_attention(True)
        by = normalisation(cell.normalised)
        self.normalised = by is not None
        # Not `augment.normalise`: it would cache the tensors that it makes while the graph is traced.
        mean, std = by or IMAGENET
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Scores [B, classes, S, S] of images [B, 3, S, S]."""
        return self.model((images - self.mean) / self.std if self.normalised else images)


def _write_onnx(cell: TrainedCell, out: Path) -> None:
    """Write a graph from 'images' [batch, 3, S, S] in 0 to 1 to 'logits' [batch, classes, S, S], both float32."""
    import onnx

    graph = Graph(cell).eval()
    images = torch.rand(5, 3, cell.size, cell.size, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about its own parts
        program = torch.onnx.export(
            graph,
            (images[:2],),
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            opset_version=OPSET,
            verbose=False,
        )
    proto = program.model_proto
    _forget_origins(proto)
    for key, value in about(cell).items():
        proto.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    onnx.checker.check_model(proto, full_check=True)
    _compare(proto, cell, images[2:])
    with atomic_path(out) as tmp:
        tmp.write_bytes(proto.SerializeToString(deterministic=True))


def _forget_origins(proto: Any) -> None:
    """Remove the file and line each operation comes from: they say more about this machine than about the model."""
    graph = proto.graph
    for item in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")


def _compare(proto: Any, cell: TrainedCell, images: Tensor) -> None:
    """Refuse a graph whose scores are not the model's, or which takes only one batch size."""
    from onnx.reference import ReferenceEvaluator

    at_fault = f"torch {torch.__version__} or onnxscript is at fault; install the versions of envs/viny.txt"
    batch = proto.graph.input[0].type.tensor_type.shape.dim[0]
    if not batch.dim_param:
        raise InputError(f"format onnx: the graph takes batches of {batch.dim_value} only; {at_fault}")
    by = normalisation(cell.normalised)
    with torch.inference_mode():
        expected = cell.model(images if by is None else normalise(images, by))
    found = torch.from_numpy(ReferenceEvaluator(proto).run(["logits"], {"images": images.numpy()})[0])
    difference = float((found - expected).abs().max() / expected.abs().max())
    if not difference <= AGREE:
        raise InputError(
            f"format onnx: the graph's scores differ from the model's by {difference:.1e} of the largest; {at_fault}"
        )
