"""ViNy: a small vision transformer on timm's `VisionTransformer`, its heads, and its weights on disk.

ViNy's attention is wider than its tokens (8 heads of 64 on 128 dimensions), its patch embedding is
LayerNorm-Linear-LayerNorm on raw pixels, and its projections to q, k, v carry no bias.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from timm.layers import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from viny.errors import InputError
from viny.files import atomic_path
from viny.settings import ModelSettings

VINY = ModelSettings()
VINY_PARAMETERS = 4_843_138  # with a 2-way head, as the paper counts them


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut images into non-overlapping patches, row by row.

    Args:
        images: [B, C, H, W]; H and W multiples of `patch_size`.
        patch_size: side of a patch in pixels (P).

    Returns:
        [B, H/P * W/P, P * P * C], pixels of a patch row by row, channels fastest.
    """
    b, c, h, w = images.shape
    p = patch_size
    x = images.reshape(b, c, h // p, p, w // p, p)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, (h // p) * (w // p), p * p * c)


def unpatchify(patches: Tensor, patch_size: int, channels: int = 3) -> Tensor:
    """Invert `patchify` for square images.

    Args:
        patches: [B, L, P * P * C], L a square number.
        patch_size: side of a patch in pixels (P).
        channels: C.

    Returns:
        [B, C, P * sqrt(L), P * sqrt(L)].
    """
    b, count, _ = patches.shape
    side, p = math.isqrt(count), patch_size
    x = patches.reshape(b, side, side, p, p, channels)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(b, channels, side * p, side * p)


def attention_class(head_dim: int) -> type[Attention]:
    """An attention layer whose heads have a width of their own.

    timm's block constructor has no argument for the width of a head, and it asks `issubclass` of what it
    is given, so a subclass that fixes the width is the way in.
    """

    class WideAttention(Attention):
        def __init__(self, dim: int, num_heads: int = 8, **kwargs: Any) -> None:
            kwargs["attn_head_dim"] = head_dim
            super().__init__(dim, num_heads=num_heads, **kwargs)

    return WideAttention


class PatchEmbedding(nn.Module):
    """Flatten each patch, normalise, project, normalise: [B, 3, S, S] to [B, L, D]."""

    def __init__(self, img_size: int, patch_size: int, in_chans: int = 3, embed_dim: int = 128, **_: Any) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.num_patches = (img_size // patch_size) ** 2
        values = patch_size * patch_size * in_chans
        self.norm_in = nn.LayerNorm(values)
        self.proj = nn.Linear(values, embed_dim)
        self.norm_out = nn.LayerNorm(embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        patches = patchify(images, self.patch_size)  # [B, L, P*P*C]
        return self.norm_out(self.proj(self.norm_in(patches)))  # [B, L, D]


class ViNy(VisionTransformer):
    """The encoder; `encode` gives normalised tokens, with or without a class token.

    Args:
        settings: dimensions; the defaults are the paper's.
        num_classes: width of the class-token head; 0 for none.
    """

    def __init__(self, settings: ModelSettings = VINY, num_classes: int = 0) -> None:
        super().__init__(
            img_size=settings.image_size,
            patch_size=settings.patch_size,
            embed_dim=settings.dim,
            depth=settings.depth,
            num_heads=settings.heads,
            mlp_ratio=(settings.mlp_dim + 0.5) / settings.dim,  # timm rounds dim * mlp_ratio down
            qkv_bias=False,
            num_classes=num_classes,
            norm_layer=nn.LayerNorm,
            embed_layer=PatchEmbedding,
            attn_layer=attention_class(settings.head_dim),
            weight_init="skip",
        )
        self.settings = settings
        self.reset_parameters()
        # Unfused attention is the faster one on a CPU for 64 tokens, markedly so in bfloat16.
        self.set_fused_attention(torch.cuda.is_available())

    def reset_parameters(self) -> None:
        """Draw tokens from N(0, 1) and layers from PyTorch's defaults, from the global generator."""
        for module in self.modules():
            if module is not self and isinstance(module, nn.Linear | nn.LayerNorm):
                module.reset_parameters()
        nn.init.normal_(self.pos_embed)
        nn.init.normal_(self.cls_token)

    def set_fused_attention(self, fused: bool) -> None:
        for block in self.blocks:
            block.attn.fused_attn = fused

    def encode(
        self, images: Tensor, class_token: bool, mask: Tensor | None = None, mask_token: Tensor | None = None
    ) -> Tensor:
        """Normalised output tokens.

        Args:
            images: [B, 3, S, S] float.
            class_token: whether a class token stands first in the sequence.
            mask: [B, L] bool, True where the patch token is replaced before its position is added.
            mask_token: [D], what replaces it.

        Returns:
            [B, L, D], or [B, 1 + L, D] with a class token.
        """
        x = self.patch_embed(images)  # [B, L, D]
        if mask is not None:
            x = torch.where(mask.unsqueeze(-1), mask_token.to(x.dtype), x)
        x = x + self.pos_embed[:, 1:]
        if class_token:
            first = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
            x = torch.cat([first, x], dim=1)  # [B, 1 + L, D]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, images: Tensor) -> Tensor:
        """Class logits [B, num_classes] of images [B, 3, S, S], from the class token."""
        return self.head(self.encode(images, class_token=True)[:, 0])


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def assert_paper_size() -> None:
    """Raise AssertionError unless the default dimensions give the paper's parameter count."""
    with torch.device("meta"):
        count = count_parameters(ViNy(VINY, num_classes=2))
    assert count == VINY_PARAMETERS, f"ViNy has {count:,} parameters with a 2-way head, not {VINY_PARAMETERS:,}"


def save_weights(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    """Write tensors and JSON metadata as one safetensors file, whole or not at all; returns its sha256."""
    flat = {k: v.detach().to("cpu").contiguous() for k, v in tensors.items()}
    content = save(flat, {"viny": json.dumps(metadata, sort_keys=True)})
    with atomic_path(path) as tmp:
        # Written by Python, whose errors name their cause; the library's own writer wraps them all in one type.
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
            return {k: f.get_tensor(k) for k in f.keys()}, metadata  # noqa: SIM118, safe_open is no mapping
    except Exception as error:  # safetensors raises its own type for each kind of damage
        raise InputError(
            f"{path}: not a readable ViNy weights file ({error}); delete it and run the stage again"
        ) from error
