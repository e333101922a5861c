"""Softmax attention over few tokens on a GPU, straight from the projection's output.

PyTorch's own kernels want q, k and v of each head in one piece, and leave their gradients so: the copies take longer
than the products. These kernels read and write the projection's layout, so that nothing is copied, and a head's scores
never leave the chip. The forward pass keeps the logarithm of each softmax's sum, one number for a token and head, and
the backward pass makes the weights from it anew without another reduction.

What bounds them: for 64 tokens and heads 64 wide in bfloat16, a program reads 24 KiB and writes 8 forward, and reads 32
and writes 24 backward. Its products are 1.0 and 2.6 MFLOP, 32 and 47 a byte, so an H100's or H200's memory binds, not
its tensor cores, as long as enough programs fit on a multiprocessor at a time. What Triton 3.9 compiles for these, in
bfloat16 for heads 64 wide, where none spills registers:

| tokens | pass | threads | registers a thread | shared memory | programs at a time | instructions a thread |
|---|---|--:|--:|--:|--:|--:|
| 64 | forward | 128 | 78 | 24 KiB | 6 | 480 |
| 64 | backward | 128 | 114 | 32 KiB | 4 | 640 |
| 65 | forward | 128 | 80 | 24 KiB | 6 | 1,160 |
| 65 | backward | 128 | 163 | 32 KiB | 3 | 2,024 |
| 128 | forward | 256 | 110 | 48 KiB | 2 | 640 |
| 128 | backward | 256 | 172 | 80 KiB | 1 | 952 |

In float32 the products take TF32's inputs where PyTorch's may (`torch.backends.cuda.matmul`). Where they may not, each
would be made of three, for which the registers do not suffice: `usable` then advises against these kernels.
"""

from __future__ import annotations

import functools
import os
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_TOKENS = 128
WIDTHS = (16, 32, 64, 128)
DTYPES = (torch.bfloat16, torch.float32)
IMAGES, RUNS = 64, 8  # of a first run: enough to fill a large GPU, and to meet threads that do not wait for each other
TRITON = find_spec("triton") is not None
SWITCH = "VINY_ATTENTION"  # "plain": not these kernels
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's own switch: kernels run on the CPU, for tests


def few_token_attention(qkv: Tensor) -> Tensor:
    """Softmax attention of all tokens to all, scores scaled by W ** -0.5: [B, N, 3, H, W] to [B, N, H, W].

    Differentiable once. Images of several models may share B. PyTorch's own attention takes what the kernels do not.
    """
    tokens, width = qkv.shape[1], qkv.shape[4]
    if not TRITON or not (qkv.is_cuda or INTERPRETED) or _unfit(tokens, width, qkv.dtype):
        return plain_attention(qkv)
    return _forward(qkv)[0]


def plain_attention(qkv: Tensor) -> Tensor:
    """What `few_token_attention` computes, by PyTorch's own attention."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [B, H, N, W]
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def usable(
    tokens: int, width: int, device: torch.device, dtype: torch.dtype = torch.bfloat16, heads: int = 1
) -> str | None:
    """Whether the kernels should be used, after a first run of both on the device.

    Args:
        tokens: N, with the class token if there is one.
        width: of a head.
        device: where q, k and v will be.
        dtype: of q, k and v.
        heads: how many; with the right number the first run compiles what is used later.

    Returns:
        None if they should, or else the reason in words.

    Raises:
        RuntimeError: the first run left the process without its GPU, so that nothing else can be used either.
    """
    if os.environ.get(SWITCH) == "plain":
        return f"{SWITCH}=plain"
    if not TRITON:
        return "Triton is not installed"
    if device.type != "cuda":
        return "no GPU"
    if unfit := _unfit(tokens, width, dtype):
        return unfit
    if dtype == torch.float32 and _precision() != "tf32":
        return "float32 products without TF32"
    return _first_run(tokens, width, device, dtype, heads)


def _unfit(tokens: int, width: int, dtype: torch.dtype) -> str | None:
    if tokens > MOST_TOKENS:
        return f"{tokens} tokens, of at most {MOST_TOKENS}"
    if width not in WIDTHS:
        return f"heads {width} wide, not {', '.join(map(str, WIDTHS[:-1]))} or {WIDTHS[-1]}"
    if dtype not in DTYPES:
        return f"{dtype}".removeprefix("torch.")
    return None


@functools.cache
def _first_run(tokens: int, width: int, device: torch.device, dtype: torch.dtype, heads: int) -> str | None:
    shape = (IMAGES, tokens, 3, heads, width)
    values = torch.arange(torch.Size(shape).numel(), device=device).sin().view(shape)  # any that differ, without draws
    qkv = values.to(dtype)
    try:
        runs = [_with_gradient(few_token_attention, qkv) for _ in range(RUNS)]
        expected = _with_gradient(_exact_attention, qkv.float())
    except torch.OutOfMemoryError:  # says nothing about the kernels
        raise
    except Exception as error:  # a missing compiler, a GPU that is too small or too old: Triton raises all sorts
        if device.type == "cuda" and _lost(device):
            said = "the project's attention kernels failed and took this process's GPU with them"
            raise RuntimeError(f"{said}; {SWITCH}=plain does without them") from error
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    for ours, theirs in zip(runs[0], expected, strict=True):
        off = float((ours - theirs).abs().max() / theirs.abs().max())
        if not off < 0.05:
            return f"results off by {off:.2g} of the largest value"
    if not all(torch.equal(a, b) for run in runs for a, b in zip(run, runs[0], strict=True)):
        return "results that differ from one time to the next"
    return None


def _lost(device: torch.device) -> bool:
    """An illegal address ends a process's use of the GPU: each later call fails with the same error."""
    try:
        torch.cuda.synchronize(device)
    except Exception:
        return True
    return False


def _exact_attention(qkv: Tensor) -> Tensor:
    """By products of its own: cuDNN's attention, which PyTorch's may be, has been wrong for some numbers of tokens."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return ((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v).transpose(1, 2)


def _with_gradient(attention: Any, qkv: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        qkv = qkv.clone().requires_grad_()
        out = attention(qkv)
        (gradient,) = torch.autograd.grad(out, qkv, out.detach().cos())
    return out.detach().float(), gradient.float()


def _precision() -> str:
    """How tensor cores multiply float32."""
    # `allow_tf32` raises an error where the newer name was set. PyTorch before 2.9 lacks that, and so counts as strict.
    return "tf32" if getattr(torch.backends.cuda.matmul, "fp32_precision", None) == "tf32" else "tf32x3"


def launch_options(tokens: int, heads: int, width: int) -> dict[str, Any]:
    """Compile-time arguments of the kernels and their number of warps."""
    # One token more than 64 has its own path; by their instructions, other tiles are cheaper doubled.
    tile = 64 if tokens == 65 else max(16, 1 << (tokens - 1).bit_length())
    sizes = {"tokens": tokens, "heads": heads, "width": width, "tile": tile, "precision": _precision()}
    # A warp for 16 rows: fewer spill registers at 128 tokens, and more repeat each other's work on small tiles.
    # Fused multiply-add is told, since Triton is about to change its default.
    return {**sizes, "num_warps": tile // 16, "enable_fp_fusion": True}


# Opaque operators rather than `triton_op`: torch.compile has nothing to fuse with these kernels, a CUDA graph makes the
# cost of a call from Python nothing, and Triton, not each version's inductor anew, compiles and caches them.
@torch.library.custom_op("viny::few_token_attention", mutates_args=())
def _forward(qkv: Tensor) -> tuple[Tensor, Tensor]:
    out, log_sums = _forward_outputs(qkv)
    _launch("forward", qkv, qkv.contiguous(), out, log_sums)
    return out, log_sums


@_forward.register_fake
def _forward_outputs(qkv: Tensor) -> tuple[Tensor, Tensor]:
    images, tokens, _, heads, width = qkv.shape
    out = qkv.new_empty(images, tokens, heads, width)
    return out, qkv.new_empty(images, heads, tokens, dtype=torch.float32)


@torch.library.custom_op("viny::few_token_attention_backward", mutates_args=())
def _backward(qkv: Tensor, gradient: Tensor, log_sums: Tensor) -> Tensor:
    out = _backward_output(qkv, gradient, log_sums)
    _launch("backward", qkv, qkv.contiguous(), gradient.contiguous(), log_sums, out)
    return out


@_backward.register_fake
def _backward_output(qkv: Tensor, gradient: Tensor, log_sums: Tensor) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _launch(kernel: str, qkv: Tensor, *tensors: Tensor) -> None:
    from viny.learning import attention_kernels  # imports Triton, which jobs on a CPU need not wait for

    images, tokens, _, heads, width = qkv.shape
    if qkv.numel():
        with torch.cuda.device_of(qkv):
            programs = getattr(attention_kernels, kernel)[(images * heads,)]
            programs(*tensors, width**-0.5, **launch_options(tokens, heads, width))


def _keep(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # zeros for the logarithms would be a kernel of their own


def _gradient(ctx: Any, gradient: Tensor, _: None) -> Tensor:
    qkv, log_sums = ctx.saved_tensors
    return _backward(qkv, gradient, log_sums)


_forward.register_autograd(_gradient, setup_context=_keep)
