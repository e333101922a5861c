"""Triton kernels of `viny.learning.attention`: one program takes one head of one image.

A tile of 16, 32, 64 or 128 rows holds all tokens; where there are fewer, the rest is masked. A tile of 64 also has room
for one token more, such as a class token beside 64 patches, for which the tile would double and the scores quadruple.
That last token gets two narrow tiles of scores, of 16 columns since tensor cores take no fewer, of which the first is
used: one of its key with the tile's queries, one of its query with the tile's keys. The latter is transposed, so that a
whole warp group can work on every product. Its score with itself is a product of two vectors.

In names, 12 is the tile's queries with the last token's key, 21 the last token's query with the tile's keys, 22 the
last token's with its own.
"""

from __future__ import annotations

import triton
import triton.language as tl

NARROW = tl.constexpr(16)
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
    scores = tl.dot(q, tl.trans(k), input_precision=precision)
    if tile > tokens:
        scores = tl.where(rows[None, :] < tokens, scores, float("-inf"))
    top = tl.max(scores, 1)

    if tile < tokens:
        narrow = tile + tl.arange(0, NARROW)
        in_row, in_column = narrow[:, None] < tokens, narrow[None, :] < tokens
        at = narrow[:, None] * (3 * token) + columns[None, :]
        q2 = _load(qkv + at, in_row)
        k2 = _load(qkv + token + at, in_row)
        v2 = _load(qkv + 2 * token + at, in_row)
        scores12 = tl.dot(q, tl.trans(k2), input_precision=precision)
        scores12 = tl.where(in_column, scores12, float("-inf"))
        scores21 = tl.dot(k, tl.trans(q2), input_precision=precision)  # [keys, query]
        scores21 = tl.where(in_column, scores21, float("-inf"))
        last = qkv + tile * (3 * token) + columns
        scores22 = tl.sum(_vector(last) * _vector(last + token))
        top = tl.maximum(top, tl.max(scores12, 1))

    top *= scale
    p = tl.exp2(scores * scale - top[:, None])
    total = tl.sum(p, 1)
    y = tl.dot(p.to(q.dtype), v, input_precision=precision)

    if tile < tokens:
        p12 = tl.exp2(scores12 * scale - top[:, None])
        total += tl.sum(p12, 1)
        y = tl.dot(p12.to(q.dtype), v2, y, input_precision=precision)
        top2 = tl.maximum(tl.max(scores21), scores22) * scale
        p21 = tl.exp2(scores21 * scale - top2)
        p22 = tl.exp2(scores22 * scale - top2)
        total2 = tl.sum(p21) + p22
        y2 = tl.sum(tl.dot(tl.trans(v), p21.to(q.dtype), input_precision=precision), 1)
        y2 = (y2 + _vector(last + 2 * token) * p22) * (1 / total2)
        _store(out + tile * token + columns, y2, None)
        tl.store(log_sums + tile, top2 + tl.log2(total2))

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
    # The order of the products keeps few of them in registers at a time.
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
    p = tl.exp2(tl.dot(q, tl.trans(k), input_precision=precision) * (scale * LOG2_E) - log_sum[:, None])
    if tile > tokens:
        p = tl.where(rows[None, :] < tokens, p, 0.0)
    dv = tl.dot(tl.trans(p.to(q.dtype)), g, input_precision=precision)

    if tile < tokens:
        narrow = tile + tl.arange(0, NARROW)
        in_row, in_column = narrow[:, None] < tokens, narrow[None, :] < tokens
        at2 = narrow[:, None] * (3 * token) + columns[None, :]
        q2 = _load(qkv + at2, in_row)
        k2 = _load(qkv + token + at2, in_row)
        v2 = _load(qkv + 2 * token + at2, in_row)
        g2 = _load(gradient + narrow[:, None] * token + columns[None, :], in_row)
        log_sum2 = tl.load(log_sums + tile)
        last = qkv + tile * (3 * token) + columns
        last_q, last_k, last_g = _vector(last), _vector(last + token), _vector(gradient + tile * token + columns)
        p12 = tl.exp2(tl.dot(q, tl.trans(k2), input_precision=precision) * (scale * LOG2_E) - log_sum[:, None])
        p12 = tl.where(in_column, p12, 0.0)
        p21 = tl.exp2(tl.dot(k, tl.trans(q2), input_precision=precision) * (scale * LOG2_E) - log_sum2)
        p21 = tl.where(in_column, p21, 0.0)
        p22 = tl.exp2(tl.sum(last_q * last_k) * (scale * LOG2_E) - log_sum2)
        dv = tl.dot(p21.to(q.dtype), g2, dv, input_precision=precision)
        dv2 = tl.sum(tl.dot(tl.trans(g), p12.to(q.dtype), input_precision=precision), 1) + last_g * p22
        _store(out + tile * (3 * token) + 2 * token + columns, dv2, None)
    _store(out + 2 * token + at, dv, inside)

    if tile < tokens:
        dp21 = tl.dot(v, tl.trans(g2), input_precision=precision)
        dp22 = tl.sum(last_g * _vector(last + 2 * token))
        mean2 = tl.sum(p21 * dp21) + p22 * dp22
        ds21 = (p21 * (dp21 - mean2) * scale).to(q.dtype)
        ds22 = p22 * (dp22 - mean2) * scale
        dq2 = tl.sum(tl.dot(tl.trans(k), ds21, input_precision=precision), 1) + last_k * ds22
        _store(out + tile * (3 * token) + columns, dq2, None)
    dp = tl.dot(g, tl.trans(v), input_precision=precision)
    mean = tl.sum(p * dp, 1)
    if tile < tokens:
        dp12 = tl.dot(g, tl.trans(v2), input_precision=precision)
        mean += tl.sum(p12 * dp12, 1)
        ds12 = (p12 * (dp12 - mean[:, None]) * scale).to(q.dtype)
    ds = (p * (dp - mean[:, None]) * scale).to(q.dtype)

    dq = tl.dot(ds, k, input_precision=precision)
    if tile < tokens:
        dq = tl.dot(ds12, k2, dq, input_precision=precision)
    _store(out + at, dq, inside)

    dk = tl.dot(tl.trans(ds), q, input_precision=precision)
    if tile < tokens:
        dk = tl.dot(ds21, q2, dk, input_precision=precision)
        dk2 = tl.sum(tl.dot(tl.trans(q), ds12, input_precision=precision), 1) + last_q * ds22
        _store(out + tile * (3 * token) + token + columns, dk2, None)
    _store(out + token + at, dk, inside)
