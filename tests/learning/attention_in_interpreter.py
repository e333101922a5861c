"""The attention kernels in Triton's interpreter, on a CPU.

test_attention.py runs this file in a process of its own, with TRITON_INTERPRET=1, which has to be set before Triton is
imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime import interpreter

from viny.learning.attention import INTERPRETED, few_token_attention, plain_attention

SHAPES = [  # images, tokens, heads, width
    (2, 1, 1, 16),
    (2, 5, 3, 16),
    (1, 16, 1, 64),
    (2, 17, 2, 32),
    (1, 36, 2, 16),
    (1, 37, 1, 128),
    (2, 64, 2, 64),
    (2, 65, 2, 64),
    (3, 65, 3, 16),
    (1, 66, 1, 32),
    (1, 100, 2, 32),
    (1, 128, 1, 128),
]
# Of the largest value. The interpreter cuts bfloat16 off where a GPU rounds it, so errors are one unit, not half.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2.0**-6}

assert INTERPRETED


@pytest.fixture(autouse=True)
def products_of_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter keeps bfloat16 as its bits in integers, and would multiply those."""
    dot = interpreter.InterpreterBuilder.create_dot

    def widened(self: Any, a: Any, b: Any, *others: Any) -> Any:
        a, b = (self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return dot(self, a, b, *others)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", widened)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_gradient(attention: Callable[[Tensor], Tensor], qkv: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    qkv = qkv.detach().clone().requires_grad_()
    out = attention(qkv)
    return out.detach(), torch.autograd.grad(out, qkv, gradient)[0]


def worst(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_those_in_float64(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    images, tokens, heads, width = shape
    qkv = drawn(images, tokens, 3, heads, width).to(dtype)
    gradient = drawn(images, tokens, heads, width, seed=1).to(dtype)
    found = with_gradient(few_token_attention, qkv, gradient)
    expected = with_gradient(plain_attention, qkv.double(), gradient.double())
    assert found[0].dtype == found[1].dtype == dtype
    for part, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert worst(ours, theirs) < TOLERANCE[dtype], part


@pytest.mark.parametrize("tokens", [37, 64, 65])
def test_extreme_scores_neither_overflow_nor_vanish(tokens: int) -> None:
    qkv, gradient = 30 * drawn(2, tokens, 3, 1, 64), drawn(2, tokens, 1, 64, seed=1)
    qkv[0, :, 1] = qkv[0, :1, 1] + drawn(tokens, 1, 64, seed=2)
    qkv[0, :, 0] = -qkv[0, :1, 1]  # an image with scores around -7,000 only
    found = with_gradient(few_token_attention, qkv, gradient)
    expected = with_gradient(plain_attention, qkv.double(), gradient.double())
    for ours, theirs in zip(found, expected, strict=True):
        assert worst(ours, theirs) < 3e-3  # scores of thousands have four decimals in float32


@pytest.mark.parametrize("tokens", [36, 65])
def test_stacked_models_images_do_not_touch_each_other(tokens: int) -> None:
    qkv, gradient = drawn(4, tokens, 3, 2, 16), drawn(4, tokens, 2, 16, seed=1)
    together = with_gradient(few_token_attention, qkv, gradient)
    for at in range(4):
        alone = with_gradient(few_token_attention, qkv[at : at + 1], gradient[at : at + 1])
        for one, all_ in zip(alone, together, strict=True):
            assert torch.equal(one[0], all_[at])


def test_strides_do_not_matter() -> None:
    qkv, gradient = drawn(2, 17, 3, 2, 16), torch.ones(()).expand(2, 17, 2, 16)
    expected = with_gradient(few_token_attention, qkv, gradient.contiguous())
    permuted = qkv.transpose(1, 3).contiguous().transpose(1, 3)
    for ours, theirs in zip(with_gradient(few_token_attention, permuted, gradient), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_no_images_are_no_error() -> None:
    out, gradient = with_gradient(few_token_attention, drawn(0, 5, 3, 2, 16), drawn(0, 5, 2, 16))
    assert out.shape == (0, 5, 2, 16) and gradient.shape == (0, 5, 3, 2, 16)


@pytest.mark.parametrize("tokens", [17, 65])
def test_operators_are_registered_as_torch_compile_wants(tokens: int) -> None:
    qkv = drawn(2, tokens, 3, 2, 16)
    for given in (qkv, qkv.transpose(1, 3).contiguous().transpose(1, 3)):
        torch.library.opcheck(torch.ops.viny.few_token_attention.default, (given.requires_grad_(),))
    gradient, log_sums = drawn(2, tokens, 2, 16, seed=1), torch.zeros(2, 2, tokens)
    torch.library.opcheck(torch.ops.viny.few_token_attention_backward.default, (qkv.detach(), gradient, log_sums))


def test_torch_compile_takes_it_whole() -> None:
    qkv, gradient = drawn(2, 65, 3, 2, 16), drawn(2, 65, 2, 16, seed=1)
    compiled = torch.compile(lambda x: few_token_attention(2 * x).sin(), backend="aot_eager", fullgraph=True)
    expected = with_gradient(lambda x: few_token_attention(2 * x).sin(), qkv, gradient)
    for ours, theirs in zip(with_gradient(compiled, qkv, gradient), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
