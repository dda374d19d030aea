"""What the device code of `persistent` is made of: the barrier, the factors of a product, what is added to it.

Importing it needs Triton.
"""

import triton
import triton.language as tl

GATES = tl.constexpr(4)


@triton.jit
def tanh(x):
    """Return tanh, to some 1e-7."""
    e = tl.exp(-2.0 * tl.abs(x))
    y = (1.0 - e) / (1.0 + e)
    return tl.where(x < 0, -y, y)


@triton.jit
def place(pointer, strides, L):
    """Return where the program's recurrence lies in memory, of M x L that lie `strides` apart along M and along L."""
    r = tl.cast(tl.program_id(2), tl.int64)
    return pointer + r // L * strides[0] + r % L * strides[1]


@triton.jit
def arrive(counter, OTHERS: tl.constexpr):
    """Say that everything this program wrote before is there."""
    tl.debug_barrier()  # all of its threads have come here
    if OTHERS:
        tl.atomic_add(counter, 1, sem="release", scope="gpu")


@triton.jit
def wait(counter, arrivals, OTHERS: tl.constexpr):
    """Go on when so many have arrived, and see what they wrote."""
    if OTHERS:
        while tl.atomic_add(counter, 0, sem="acquire", scope="gpu") < arrivals:
            pass
    tl.debug_barrier()  # none of its threads goes on before


@triton.jit
def inner(chunk, WARPS: tl.constexpr, DEPTH: tl.constexpr):
    """Return the numbers along the inner dimension of a chunk of a product. (WARPS, DEPTH)"""
    return (chunk * WARPS + tl.arange(0, WARPS))[:, None] * DEPTH + tl.arange(0, DEPTH)[None, :]


@triton.jit
def factor(X, b, k, B, K):
    """Read rows b of X, (B, K), as the left factor, past the first level of cache: others wrote them. (WARPS, ROWS, DEPTH)"""
    inside = (b < B)[None, :, None] & (k < K)[:, None, :]
    return tl.load(X + b[None, :, None] * K + k[:, None, :], mask=inside, other=0.0, cache_modifier=".cg")


@triton.jit
def weights(W, k, u, K, S, along_k, along_u):
    """Read units u of weights with given strides as the right factor. (WARPS, DEPTH, UNITS)"""
    inside = (k < K)[:, :, None] & (u < S)[None, None, :]
    return tl.load(W + k[:, :, None] * along_k + u[None, None, :] * along_u, mask=inside, other=0.0)


@triton.jit
def dot(x, w, total, EMULATE: tl.constexpr):
    """Return total + x w, with float32 sums; the interpreter has no products of bfloat16."""
    if EMULATE:
        return tl.dot(x.to(tl.float32), w.to(tl.float32), total)
    return tl.dot(x, w, total, input_precision="ieee")


@triton.jit
def given(gates, ids, table, bias, t, b, u, B, S, TABLE: tl.constexpr, BIAS: tl.constexpr):
    """Read what is added to the product of step t before the activation. Four of (ROWS, UNITS)"""
    inside = (b < B)[:, None] & (u < S)[None, :]
    row = tl.cast(t, tl.int64) * B + b
    source = gates
    if TABLE:
        row = tl.load(ids + row, mask=b < B, other=0)
        source = table
    source += row[:, None] * (GATES * S) + u[None, :]
    f = tl.load(source, mask=inside, other=0.0)
    i = tl.load(source + S, mask=inside, other=0.0)
    o = tl.load(source + 2 * S, mask=inside, other=0.0)
    N = tl.load(source + 3 * S, mask=inside, other=0.0)
    if BIAS:
        f += tl.load(bias + u, mask=u < S, other=0.0)[None, :]
        i += tl.load(bias + S + u, mask=u < S, other=0.0)[None, :]
        o += tl.load(bias + 2 * S + u, mask=u < S, other=0.0)[None, :]
        N += tl.load(bias + 3 * S + u, mask=u < S, other=0.0)[None, :]
    return f, i, o, N


@triton.jit
def above(dH, t, b, u, B, S):
    """Read the gradient that reaches H_t from outside; zero where t is -1. (ROWS, UNITS)"""
    row = tl.cast(t, tl.int64) * B + b
    inside = ((b < B) & (row >= 0))[:, None] & (u < S)[None, :]
    return tl.load(dH + row[:, None] * S + u[None, :], mask=inside, other=0.0)
