"""Triton kernels of `viny.learning.attention`: one program takes one head of one image.

A tile of 16, 32, 64 or 128 rows holds all tokens; where there are fewer, the rest is masked. A tile of 64 also has room
for one token more, such as a class token beside 64 patches, for which the tile would double and the scores quadruple.
That last token's row and column of scores are vectors, of which sums and products in float32 make its results: no
product of tensor cores is as narrow. (It had products of 16 columns. The ptxas 12.8 that comes with Triton 3.6 made of
them a shared-memory address in a register that nothing had written: wrong results, or an illegal memory access.)

In names, 12 is the tile's queries with the last token's key, 21 the last token's query with the tile's keys, 22 the
last token's with its own.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _load(at, inside):
    if inside is None:
        return tl.load(at)
    else:
        return tl.load(at, mask=inside, other=0.0)


@triton.jit
def _store(at, values, inside):
    values = values.to(at.dtype.element_ty)
    if inside is None:
        tl.store(at, values)
    else:
        tl.store(at, values, mask=inside)


@triton.jit
def _vector(at):
    return tl.load(at).to(tl.float32)


@triton.jit
def _rows(matrix, vector):
    return tl.sum(matrix.to(tl.float32) * vector[None, :], 1)


@triton.jit
def _columns(vector, matrix):
    return tl.sum(vector[:, None] * matrix.to(tl.float32), 0)


@triton.jit
def forward(
    qkv,  # [B, N, 3, H, W]
    out,  # [B, N, H, W]
    log_sums,  # [B, H, N], base 2
    scale,
    tokens: tl.constexpr,
    heads: tl.constexpr,
    width: tl.constexpr,
    tile: tl.constexpr,
    precision: tl.constexpr,
):
    program = tl.program_id(0)
    image, head = (program // heads).to(tl.int64), program % heads
    token: tl.constexpr = heads * width  # values of a token in q, k, v or the output
    qkv += image * (3 * tokens * token) + head * width
    out += image * (tokens * token) + head * width
    log_sums += program.to(tl.int64) * tokens
    scale *= LOG2_E

    rows, columns = tl.arange(0, tile), tl.arange(0, width)
    inside: tl.constexpr = None
    if tile > tokens:
        inside = rows[:, None] < tokens
    at = rows[:, None] * (3 * token) + columns[None, :]
    q = _load(qkv + at, inside)
    k = _load(qkv + token + at, inside)
    v = _load(qkv + 2 * token + at, inside)

    if tile < tokens:
        last = qkv + tile * (3 * token) + columns
        last_q, last_k, last_v = _vector(last), _vector(last + token), _vector(last + 2 * token)
        scores12, scores21, scores22 = _rows(q, last_k), _rows(k, last_q), tl.sum(last_q * last_k)
        top2 = tl.maximum(tl.max(scores21, 0), scores22) * scale
        p21, p22 = tl.exp2(scores21 * scale - top2), tl.exp2(scores22 * scale - top2)
        total2 = tl.sum(p21, 0) + p22
        y2 = (_columns(p21, v) + p22 * last_v) * (1 / total2)
        _store(out + tile * token + columns, y2, None)
        tl.store(log_sums + tile, top2 + tl.log2(total2))

    scores = tl.dot(q, tl.trans(k), input_precision=precision)
    if tile > tokens:
        scores = tl.where(rows[None, :] < tokens, scores, float("-inf"))
    top = tl.max(scores, 1)
    if tile < tokens:
        top = tl.maximum(top, scores12)
    top *= scale
    p = tl.exp2(scores * scale - top[:, None])
    total = tl.sum(p, 1)
    y = tl.dot(p.to(q.dtype), v, input_precision=precision)
    if tile < tokens:
        p12 = tl.exp2(scores12 * scale - top)
        total += p12
        y += p12[:, None] * _vector(last + 2 * token)[None, :]
    y *= (1 / total)[:, None]
    _store(out + rows[:, None] * token + columns[None, :], y, inside)
    if tile > tokens:
        tl.store(log_sums + rows, top + tl.log2(total), mask=rows < tokens)
    else:
        tl.store(log_sums + rows, top + tl.log2(total))


@triton.jit
def backward(
    qkv,  # [B, N, 3, H, W]
    gradient,  # [B, N, H, W]
    log_sums,  # [B, H, N], base 2
    out,  # [B, N, 3, H, W]
    scale,
    tokens: tl.constexpr,
    heads: tl.constexpr,
    width: tl.constexpr,
    tile: tl.constexpr,
    precision: tl.constexpr,
):
    # The order of the products keeps few of them in registers at a time. What is loaded anew, q and vectors of the last
    # token, would take 70 more with Triton 3.6: 2 programs at a time, not 3.
    program = tl.program_id(0)
    image, head = (program // heads).to(tl.int64), program % heads
    token: tl.constexpr = heads * width
    qkv += image * (3 * tokens * token) + head * width
    gradient += image * (tokens * token) + head * width
    log_sums += program.to(tl.int64) * tokens
    out += image * (3 * tokens * token) + head * width

    rows, columns = tl.arange(0, tile), tl.arange(0, width)
    inside: tl.constexpr = None
    inside_row: tl.constexpr = None
    if tile > tokens:
        inside, inside_row = rows[:, None] < tokens, rows < tokens
    at = rows[:, None] * (3 * token) + columns[None, :]
    q = _load(qkv + at, inside)
    k = _load(qkv + token + at, inside)
    v = _load(qkv + 2 * token + at, inside)
    g = _load(gradient + rows[:, None] * token + columns[None, :], inside)
    log_sum = _load(log_sums + rows, inside_row)

    if tile < tokens:
        last, last_gradient = qkv + tile * (3 * token) + columns, gradient + tile * token + columns
        last_out = out + tile * (3 * token) + columns
        last_q, last_k, last_v = _vector(last), _vector(last + token), _vector(last + 2 * token)
        last_g, log_sum2 = _vector(last_gradient), tl.load(log_sums + tile)
        p12 = tl.exp2(_rows(q, last_k) * (scale * LOG2_E) - log_sum)
        p22 = tl.exp2(tl.sum(last_q * last_k) * (scale * LOG2_E) - log_sum2)
        _store(last_out + 2 * token, _columns(p12, g) + p22 * last_g, None)
        dp12, dp21, dp22 = _rows(g, last_v), _rows(v, last_g), tl.sum(last_g * last_v)
        p21 = tl.exp2(_rows(k, last_q) * (scale * LOG2_E) - log_sum2)
        mean2 = tl.sum(p21 * dp21, 0) + p22 * dp22
        ds21, ds22 = p21 * (dp21 - mean2) * scale, p22 * (dp22 - mean2) * scale
        _store(last_out, _columns(ds21, k) + ds22 * last_k, None)

    p = tl.exp2(tl.dot(q, tl.trans(k), input_precision=precision) * (scale * LOG2_E) - log_sum[:, None])
    if tile > tokens:
        p = tl.where(rows[None, :] < tokens, p, 0.0)
    dv = tl.dot(tl.trans(p.to(q.dtype)), g, input_precision=precision)
    if tile < tokens:
        dv += p21[:, None] * _vector(last_gradient)[None, :]
    _store(out + 2 * token + at, dv, inside)

    dp = tl.dot(g, tl.trans(v), input_precision=precision)
    mean = tl.sum(p * dp, 1)
    if tile < tokens:
        mean += p12 * dp12
        ds12 = p12 * (dp12 - mean) * scale
    ds = (p * (dp - mean[:, None]) * scale).to(q.dtype)

    dq = tl.dot(ds, k, input_precision=precision)
    if tile < tokens:
        dq += ds12[:, None] * _vector(last + token)[None, :]
    _store(out + at, dq, inside)

    dk = tl.dot(tl.trans(ds), q, input_precision=precision)
    if tile < tokens:
        dk += ds21[:, None] * _vector(last)[None, :]
    _store(out + token + at, dk, inside)
    if tile < tokens:
        _store(last_out + token, _columns(ds12, _load(qkv + at, inside)) + ds22 * _vector(last), None)
