"""The device code of `triton_kernel`: gates and state of one time step, forward and back; the products are cuBLAS's.

A program has `BLOCK` units of one row of the batch. Nothing is shared between programs and nobody waits for another: a launch
begins when the one before has ended. Importing it needs Triton.
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
def forward(
    product,
    gates,
    ids,
    table,
    bias,
    C_before,
    C,
    H,
    X,
    S,
    TABLE: tl.constexpr,
    BIAS: tl.constexpr,
    ROUNDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute f, i, o, N, C_t and H_t of a time step.

    `product` is H_{t-1} W, of a multiplicative layer m_t W, and what is added to it lies in `gates`, or in the rows of `table`
    that `ids` name. `X` takes H_t as the next product's factor where that is rounded.
    """
    b = tl.cast(tl.program_id(0), tl.int64)
    u = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = u < S
    there = gates + b * GATES * S + u
    given = there
    if TABLE:
        given = table + tl.load(ids + b) * GATES * S + u
    product += b * GATES * S + u
    f = tl.load(given, mask=inside, other=0.0) + tl.load(product, mask=inside, other=0.0)
    i = tl.load(given + S, mask=inside, other=0.0) + tl.load(product + S, mask=inside, other=0.0)
    o = tl.load(given + 2 * S, mask=inside, other=0.0) + tl.load(product + 2 * S, mask=inside, other=0.0)
    N = tl.load(given + 3 * S, mask=inside, other=0.0) + tl.load(product + 3 * S, mask=inside, other=0.0)
    if BIAS:
        f += tl.load(bias + u, mask=inside, other=0.0)
        i += tl.load(bias + S + u, mask=inside, other=0.0)
        o += tl.load(bias + 2 * S + u, mask=inside, other=0.0)
        N += tl.load(bias + 3 * S + u, mask=inside, other=0.0)
    here = b * S + u
    f = tl.sigmoid(f)
    i = tl.sigmoid(i)
    o = tl.sigmoid(o)
    N = tanh(N)
    c = f * tl.load(C_before + here, mask=inside, other=0.0) + i * N
    h = o * tanh(c)
    if ROUNDED:
        tl.store(X + here, h.to(X.dtype.element_ty), mask=inside)
    tl.store(there, f, mask=inside)
    tl.store(there + S, i, mask=inside)
    tl.store(there + 2 * S, o, mask=inside)
    tl.store(there + 3 * S, N, mask=inside)
    tl.store(C + here, c, mask=inside)
    tl.store(H + here, h, mask=inside)


@triton.jit
def backward(
    product,
    dH,
    gates,
    C_before,
    C,
    dC,
    X,
    S,
    LAST: tl.constexpr,
    ROUNDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Turn the gates of a time step into the gradient of their pre-activations, da_t, and dC_t into dC_{t-1}.

    `product` is da_{t+1} W^T, which the `LAST` step lacks, and `dH` what reaches H_t from outside. `X` takes da_t as the next
    product's factor where that is rounded.
    """
    b = tl.cast(tl.program_id(0), tl.int64)
    u = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = u < S
    here = b * S + u
    there = b * GATES * S + u
    dh = tl.load(dH + here, mask=inside, other=0.0)
    if not LAST:
        dh += tl.load(product + here, mask=inside, other=0.0)
    f = tl.load(gates + there, mask=inside, other=0.0)
    i = tl.load(gates + there + S, mask=inside, other=0.0)
    o = tl.load(gates + there + 2 * S, mask=inside, other=0.0)
    N = tl.load(gates + there + 3 * S, mask=inside, other=0.0)
    tanh_c = tanh(tl.load(C + here, mask=inside, other=0.0))
    dc = tl.load(dC + here, mask=inside, other=0.0) + dh * o * (1.0 - tanh_c * tanh_c)
    df = dc * tl.load(C_before + here, mask=inside, other=0.0) * f * (1.0 - f)
    di = dc * N * i * (1.0 - i)
    do = dh * tanh_c * o * (1.0 - o)
    dN = dc * i * (1.0 - N * N)
    if ROUNDED:
        tl.store(X + there, df.to(X.dtype.element_ty), mask=inside)
        tl.store(X + there + S, di.to(X.dtype.element_ty), mask=inside)
        tl.store(X + there + 2 * S, do.to(X.dtype.element_ty), mask=inside)
        tl.store(X + there + 3 * S, dN.to(X.dtype.element_ty), mask=inside)
    tl.store(dC + here, dc * f, mask=inside)
    tl.store(gates + there, df, mask=inside)
    tl.store(gates + there + S, di, mask=inside)
    tl.store(gates + there + 2 * S, do, mask=inside)
    tl.store(gates + there + 3 * S, dN, mask=inside)
