"""The device code of `fused`: layer norm, dropout and residual of whole rows, and their gradients.

Importing it needs Triton.

A tile is `ROWS` rows of `COLUMNS` columns in registers: what is computed from a value never goes through memory. Rows are those
of (T, B, S), counted through. Nothing is added by atomics: every sum has one order.
"""

import triton
import triton.language as tl


@triton.jit
def word(given, POINTED: tl.constexpr):
    """Return 32 bits that are given as a number, or by where they are."""
    if POINTED:
        given = tl.load(given)
    return tl.cast(given, tl.uint32)


@triton.jit
def kept(row, s, B, S, skip, first, key, threshold, scale):
    """Return what dropout multiplies by: 0 or `scale`, by the hash of `Dropout.mask`. All in 32 bits. (ROWS, COLUMNS)

    Args:
        row: Here. (ROWS)
        s: (COLUMNS)
        B: Rows of a time step here.
        S: Units.
        skip: Rows of a time step in the whole batch that are not here.
        first: The first row that is here.
        key: Of step and layer.
        threshold: Below which hash a value is dropped, of 2^32.
        scale: Of what stays.
    """
    row = row.to(tl.uint32) + (row // B).to(tl.uint32) * skip + first
    x = row[:, None] * tl.cast(S, tl.uint32) + s.to(tl.uint32)[None, :]
    x = x * 0x9E3779B9 + key
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    x = x ^ (x >> 16)
    return tl.where(x >= threshold, scale, 0.0)


@triton.jit(do_not_specialize=["rows", "B", "skip", "first", "key", "threshold"])
def norm_dropout_residual(
    y,
    x,
    gamma,
    beta,
    out,
    stats,
    rows,
    B,
    S,
    skip,
    first,
    key,
    threshold,
    scale,
    NORM: tl.constexpr,
    EPS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    DROP: tl.constexpr,
    FIRST: tl.constexpr,
    KEY: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Compute a tile of out = dropout(norm(y)) + x; with a norm the tile has whole rows."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    s = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (s < S)[None, :]
    at = tl.cast(row, tl.int64)[:, None] * S + s[None, :]
    value = tl.load(y + at, mask=inside, other=0.0)
    if NORM:
        count = tl.cast(S, tl.float32)
        mean = tl.div_rn(tl.sum(value, 1), count)
        value = tl.where(inside, value - mean[:, None], 0.0)
        rstd = tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(tl.sum(value * value, 1), count) + EPS))
        tl.store(stats + tl.cast(row, tl.int64) * 2, mean, mask=row < rows)
        tl.store(stats + tl.cast(row, tl.int64) * 2 + 1, rstd, mask=row < rows)
        value = value * rstd[:, None] * tl.load(gamma + s, mask=s < S, other=0.0)[None, :]
        value += tl.load(beta + s, mask=s < S, other=0.0)[None, :]
    if DROP:
        # A product, not a choice: what is not finite shows where it is dropped, too.
        words = tl.cast(skip, tl.uint32), word(first, FIRST), word(key, KEY), tl.cast(threshold, tl.uint32)
        value *= kept(row, s, B, S, words[0], words[1], words[2], words[3], scale)
    if RESIDUAL:
        value += tl.load(x + at, mask=inside, other=0.0)
    tl.store(out + at, value, mask=inside)


@triton.jit(do_not_specialize=["rows", "B", "skip", "first", "key", "threshold"])
def norm_dropout_residual_backward(
    dx,
    y,
    gamma,
    stats,
    dy,
    partial,
    rows,
    B,
    S,
    skip,
    first,
    key,
    threshold,
    scale,
    DROP: tl.constexpr,
    FIRST: tl.constexpr,
    KEY: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Compute dy of every so-many-th tile of whole rows, and what they add to the norm's gradients. partial: (programs, 2, S)"""
    s = tl.arange(0, COLUMNS)
    weights = tl.load(gamma + s, mask=s < S, other=0.0)[None, :]
    count = tl.cast(S, tl.float32)
    if DROP:
        words = tl.cast(skip, tl.uint32), word(first, FIRST), word(key, KEY), tl.cast(threshold, tl.uint32)
    dgamma = tl.zeros((ROWS, COLUMNS), tl.float32)
    dbeta = tl.zeros((ROWS, COLUMNS), tl.float32)
    for tile in tl.range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = tile * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (s < S)[None, :]
        at = tl.cast(row, tl.int64)[:, None] * S + s[None, :]
        d = tl.load(dx + at, mask=inside, other=0.0)
        hat = tl.load(y + at, mask=inside, other=0.0)
        mean = tl.load(stats + tl.cast(row, tl.int64) * 2, mask=row < rows, other=0.0)[:, None]
        rstd = tl.load(stats + tl.cast(row, tl.int64) * 2 + 1, mask=row < rows, other=0.0)[:, None]
        hat = (hat - mean) * rstd
        if DROP:
            d *= kept(row, s, B, S, words[0], words[1], words[2], words[3], scale)
        dgamma += d * hat
        dbeta += d
        d *= weights  # zero beyond S: what hat is there does not count
        plain = tl.div_rn(tl.sum(d, 1), count)[:, None]
        along = tl.div_rn(tl.sum(d * hat, 1), count)[:, None]
        tl.store(dy + at, rstd * (d - plain - hat * along), mask=inside)
    to = partial + tl.program_id(0) * 2 * S + s
    tl.store(to, tl.sum(dgamma, 0), mask=s < S)
    tl.store(to + S, tl.sum(dbeta, 0), mask=s < S)


@triton.jit(do_not_specialize=["parts"])
def gather(partial, dgamma, dbeta, parts, S, PARTS: tl.constexpr, COLUMNS: tl.constexpr):
    """Add the parts of `norm_dropout_residual_backward` to the gradients, `PARTS` at a time, in the same order each time."""
    s = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    along = tl.zeros((PARTS, COLUMNS), tl.float32)
    plain = tl.zeros((PARTS, COLUMNS), tl.float32)
    for begin in tl.range(0, parts, PARTS):
        part = begin + tl.arange(0, PARTS)
        inside = (part < parts)[:, None] & (s < S)[None, :]
        at = partial + part[:, None] * 2 * S + s[None, :]
        along += tl.load(at, mask=inside, other=0.0)
        plain += tl.load(at + S, mask=inside, other=0.0)
    tl.store(dgamma + s, tl.load(dgamma + s, mask=s < S, other=0.0) + tl.sum(along, 0), mask=s < S)
    tl.store(dbeta + s, tl.load(dbeta + s, mask=s < S, other=0.0) + tl.sum(plain, 0), mask=s < S)
