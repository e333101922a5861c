"""ViNy: a small vision transformer whose weights are named as in timm's `VisionTransformer`.

ViNy's attention is wider than its tokens (8 heads of 64 on 128 dimensions), its patch embedding is
LayerNorm-Linear-LayerNorm on raw pixels, and its projections to q, k, v have no bias. With architecture 'timm' it is
the plain vision transformer of Dosovitskiy et al. 2021 (arXiv 2010.11929) as timm has it, for published weights. timm's
own class computes the same from the same weights; it is not used here because importing it takes as long as importing
PyTorch, in every job.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from viny.learning.settings import ModelSettings

VINY = ModelSettings()
VINY_PARAMETERS = 4_843_138  # with a 2-way head, as counted in the paper


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


class HeadwiseAttention(torch.autograd.Function):
    """Softmax attention, one head at a time, in buffers that stay in the cache.

    For short sequences on a CPU: there, copies that make q, k, v and their gradients contiguous for all heads at once
    cost a third as much as the products. A head's are cheap, and made once: in bfloat16 a product of views would copy
    them at each use. The same products in the same order give the same bits.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor) -> Tensor:
        """[B, N, 3, H, W] to [B, N, H, W]."""
        b, n, _, heads, width = qkv.shape
        out, scores = qkv.new_empty(b, n, heads, width), qkv.new_empty(b, n, n)
        inputs, weights = [], []
        for head in range(heads):
            inputs.append(qkv[:, :, :, head].permute(2, 0, 1, 3).contiguous())  # [3, B, N, W]
            q, k, v = inputs[-1].unbind(0)
            torch.baddbmm(scores, q, k.transpose(1, 2), beta=0, alpha=width**-0.5, out=scores)
            weights.append(scores.softmax(-1))
            torch.bmm(weights[-1], v, out=out[:, :, head])
        ctx.save_for_backward(*inputs, *weights)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        b, n, heads, width = gradient.shape
        inputs, weights = ctx.saved_tensors[:heads], ctx.saved_tensors[heads:]
        out = gradient.new_empty(b, n, 3, heads, width)
        dy, dscores = gradient.new_empty(b, n, width), gradient.new_empty(b, n, n)
        for head, weight in enumerate(weights):
            (q, k, v), (dq, dk, dv) = inputs[head].unbind(0), out[:, :, :, head].unbind(2)
            dy.copy_(gradient[:, :, head])
            torch.bmm(weight.transpose(1, 2), dy, out=dv)
            torch.bmm(dy, v.transpose(1, 2), out=dscores)
            torch._softmax_backward_data(dscores, weight, -1, weight.dtype, grad_input=dscores)
            torch.baddbmm(dq, dscores, k, beta=0, alpha=width**-0.5, out=dq)
            torch.baddbmm(dk, dscores.transpose(1, 2), q, beta=0, alpha=width**-0.5, out=dk)
        return out


class Attention(nn.Module):
    """Softmax attention of all tokens to all, with a head width of its own: [B, N, D] to [B, N, D]."""

    def __init__(self, dim: int, heads: int, head_dim: int, bias: bool = False) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.fused = True
        self.qkv = nn.Linear(dim, 3 * heads * head_dim, bias=bias)
        self.proj = nn.Linear(heads * head_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        qkv = self.qkv(x).view(b, n, 3, self.heads, self.head_dim)
        if not self.fused:
            return self.proj(HeadwiseAttention.apply(qkv).view(b, n, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [B, H, N, W]
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1))


class Mlp(nn.Module):
    """Linear, GELU, linear: [B, N, D] to [B, N, D]."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Attention and MLP, each on normalised tokens and added to the tokens: [B, N, D] to [B, N, D]."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(settings.dim, settings.epsilon)
        self.attn = Attention(settings.dim, settings.heads, settings.head_dim, bias=settings.plain)
        self.norm2 = nn.LayerNorm(settings.dim, settings.epsilon)
        self.mlp = Mlp(settings.dim, settings.mlp_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbedding(nn.Module):
    """Flatten each patch, normalise, project, normalise: [B, 3, S, S] to [B, L, D]; timm's only projects."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.patch_size = settings.patch_size
        values = 3 * self.patch_size**2
        self.norm_in = nn.Identity() if settings.plain else nn.LayerNorm(values)
        self.proj = nn.Linear(values, settings.dim)
        self.norm_out = nn.Identity() if settings.plain else nn.LayerNorm(settings.dim)

    def forward(self, images: Tensor) -> Tensor:
        patches = patchify(images, self.patch_size)  # [B, L, P*P*3]
        return self.norm_out(self.proj(self.norm_in(patches)))  # [B, L, D]


class ViNy(nn.Module):
    """The encoder; `encode` returns normalised tokens, with or without a class token.

    Args:
        settings: dimensions; the defaults are the paper's.
        num_classes: width of the class-token head; 0 for none.
    """

    def __init__(self, settings: ModelSettings = VINY, num_classes: int = 0) -> None:
        super().__init__()
        self.settings = settings
        self.cls_token = nn.Parameter(torch.empty(1, 1, settings.dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + settings.patches, settings.dim))
        self.patch_embed = PatchEmbedding(settings)
        self.blocks = nn.Sequential(*(Block(settings) for _ in range(settings.depth)))
        self.norm = nn.LayerNorm(settings.dim, settings.epsilon)
        self.head = nn.Linear(settings.dim, num_classes) if num_classes else nn.Identity()
        self.reset_parameters()
        self.set_fused_attention(torch.cuda.is_available())

    def reset_parameters(self) -> None:
        """Draw tokens from N(0, 1) and layers from PyTorch's defaults, with the global generator; timm's as timm does.

        timm cuts its normal distributions off at 100 standard deviations, which no draw reaches.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.LayerNorm):
                module.reset_parameters()
        if not self.settings.plain:
            nn.init.normal_(self.pos_embed)
            nn.init.normal_(self.cls_token)
            return
        nn.init.normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        for module in (*self.blocks.modules(), self.head):
            if isinstance(module, nn.Linear):  # not the patch embedding, which timm leaves to PyTorch
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def set_fused_attention(self, fused: bool) -> None:
        for block in self.blocks:
            block.attn.fused = fused

    def encode(
        self, images: Tensor, class_token: bool, mask: Tensor | None = None, mask_token: Tensor | None = None
    ) -> Tensor:
        """Normalised output tokens.

        Args:
            images: [B, 3, S, S] float.
            class_token: whether a class token comes first in the sequence.
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
            first = (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
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
