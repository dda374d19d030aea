"""The device code of `persistent`: a program runs its units of its rows through the time steps, forward or back.

Importing it needs Triton.

A program owns `UNITS` units, all four gates of them, of `TURNS` times `ROWS` rows of the batch, which it goes through one after
another with the same weights. What another program needs of it, H_t or da_t, it puts into `X` in the type of the products, which
has two halves: a step reads one and writes the other, so one barrier per step is enough. Programs of other rows never need
anything of it: those of the same rows have a barrier of their own. Nor do those of another recurrence: several of one size run
side by side, M x L of them. From step to step it keeps nothing but weights.

A product is split over its inner dimension, `WARPS` ways, one warp each: the tile that a program computes is too small to be
split otherwise without every warp holding the same weights.
"""

import triton
import triton.language as tl

from lstmlm.kernels.persistent_parts import GATES, above, arrive, dot, factor, given, inner, place, tanh, wait, weights


@triton.jit(do_not_specialize=["L", "begin", "end", "B"])
def forward(
    gates,
    ids,
    table,
    bias,
    W,
    X,
    C_0,
    C,
    H,
    counters,
    strides,
    L,
    begin,
    end,
    B,
    S,
    TABLE: tl.constexpr,
    BIAS: tl.constexpr,
    KEPT: tl.constexpr,
    OTHERS: tl.constexpr,
    EMULATE: tl.constexpr,
    TURNS: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    DEPTH: tl.constexpr,
    WARPS: tl.constexpr,
    CHUNKS: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """Run steps `begin` to `end`.

    `gates` holds what is added before the activation unless that is in `table`, X[begin % 2] the hidden state before, and C the
    cell states before, the first of which is in C_0. The `strides` are of gates, bias, W, C_0, C and H; X holds one recurrence
    after another, and ids and a table are those of a single one.
    """
    gates, bias, W = place(gates, strides[0], L), place(bias, strides[1], L), place(W, strides[2], L)
    C_0, C, H = place(C_0, strides[3], L), place(C, strides[4], L), place(H, strides[5], L)
    r = tl.cast(tl.program_id(2), tl.int64)
    X += r * B * S
    half = tl.cast(tl.num_programs(2), tl.int64) * B * S
    u = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    counter = counters + r * tl.num_programs(1) + tl.program_id(1)
    held = ()
    if KEPT:
        for chunk in tl.static_range(CHUNKS):
            k = inner(chunk, WARPS, DEPTH)
            for gate in tl.static_range(GATES):
                held = held + (weights(W + gate * S, k, u, S, S, GATES * S, 1),)
    block = tl.program_id(1) * TURNS
    b = block * ROWS + tl.arange(0, ROWS)
    a_f, a_i, a_o, a_N = given(gates, ids, table, bias, begin, b, u, B, S, TABLE, BIAS)
    # Loads of a step must not be moved before the stores of the step before: one stage.
    for turn in tl.range(begin * TURNS, end * TURNS, num_stages=1):
        t = turn // TURNS
        before = X + (t % 2) * half
        after = X + ((t + 1) % 2) * half
        b = (block + turn % TURNS) * ROWS + tl.arange(0, ROWS)
        row = tl.cast(t, tl.int64) * B + b
        inside = (b < B)[:, None] & (u < S)[None, :]
        here = b[:, None] * S + u[None, :]
        now = row[:, None] * S + u[None, :]
        there = gates + row[:, None] * (GATES * S) + u[None, :]
        if turn % TURNS == 0:
            wait(counter, t * tl.num_programs(0), OTHERS)
        c = tl.load(C_0 + here, mask=inside & (row < B)[:, None], other=0.0)
        c += tl.load(C + now - B * S, mask=inside & (row >= B)[:, None], other=0.0)
        total_f = tl.zeros((WARPS, ROWS, UNITS), tl.float32)
        total_i = tl.zeros((WARPS, ROWS, UNITS), tl.float32)
        total_o = tl.zeros((WARPS, ROWS, UNITS), tl.float32)
        total_N = tl.zeros((WARPS, ROWS, UNITS), tl.float32)
        if KEPT:
            xs = ()
            for chunk in tl.static_range(CHUNKS + AHEAD):
                if chunk < CHUNKS:
                    xs = xs + (factor(before, b, inner(chunk, WARPS, DEPTH), B, S),)
                if chunk >= AHEAD:
                    x = xs[chunk - AHEAD]
                    total_f = dot(x, held[GATES * (chunk - AHEAD)], total_f, EMULATE)
                    total_i = dot(x, held[GATES * (chunk - AHEAD) + 1], total_i, EMULATE)
                    total_o = dot(x, held[GATES * (chunk - AHEAD) + 2], total_o, EMULATE)
                    total_N = dot(x, held[GATES * (chunk - AHEAD) + 3], total_N, EMULATE)
        else:
            for chunk in range(CHUNKS):
                k = inner(chunk, WARPS, DEPTH)
                x = factor(before, b, k, B, S)
                total_f = dot(x, weights(W, k, u, S, S, GATES * S, 1), total_f, EMULATE)
                total_i = dot(x, weights(W + S, k, u, S, S, GATES * S, 1), total_i, EMULATE)
                total_o = dot(x, weights(W + 2 * S, k, u, S, S, GATES * S, 1), total_o, EMULATE)
                total_N = dot(x, weights(W + 3 * S, k, u, S, S, GATES * S, 1), total_N, EMULATE)
        f, i, o, N = a_f, a_i, a_o, a_N
        # The next ones are under way while this turn ends. Here, after the products: the compiler lets the layout of the last
        # thing read decide, and that of a sum over warps would have every warp compute the same.
        following = turn + 1
        if following < end * TURNS:
            b_next = (block + following % TURNS) * ROWS + tl.arange(0, ROWS)
            a_f, a_i, a_o, a_N = given(gates, ids, table, bias, following // TURNS, b_next, u, B, S, TABLE, BIAS)
        f = tl.sigmoid(f + tl.sum(total_f, 0))
        i = tl.sigmoid(i + tl.sum(total_i, 0))
        o = tl.sigmoid(o + tl.sum(total_o, 0))
        N = tanh(N + tl.sum(total_N, 0))
        c = f * c + i * N
        h = o * tanh(c)
        tl.store(after + here, h.to(X.dtype.element_ty), mask=inside)
        tl.store(C + now, c, mask=inside)
        if turn % TURNS == TURNS - 1:
            arrive(counter, OTHERS)
        # Nobody waits for these.
        tl.store(there, f, mask=inside)
        tl.store(there + S, i, mask=inside)
        tl.store(there + 2 * S, o, mask=inside)
        tl.store(there + 3 * S, N, mask=inside)
        tl.store(H + now, h, mask=inside)


@triton.jit(do_not_specialize=["L", "begin", "end", "T", "B"])
def backward(
    dH,
    gates,
    C,
    C_0,
    W,
    X,
    dC,
    dH_0,
    counters,
    strides,
    L,
    begin,
    end,
    T,
    B,
    S,
    KEPT: tl.constexpr,
    OTHERS: tl.constexpr,
    EMULATE: tl.constexpr,
    TURNS: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    DEPTH: tl.constexpr,
    WARPS: tl.constexpr,
    CHUNKS: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """Run rounds `begin` to `end` of T + 1: round n is step T - 1 - n, and in the last one only dH_0 is left.

    X[begin % 2] holds da of the step behind, and `dC` the cell's gradient from there: zero and dC_T in round 0. The `strides` are
    of dH, gates, C, C_0 and W; X, dC and dH_0 hold one recurrence after another.
    """
    dH, gates, C = place(dH, strides[0], L), place(gates, strides[1], L), place(C, strides[2], L)
    C_0, W = place(C_0, strides[3], L), place(W, strides[4], L)
    K = GATES * S
    r = tl.cast(tl.program_id(2), tl.int64)
    X += r * B * K
    dC += r * B * S
    dH_0 += r * B * S
    half = tl.cast(tl.num_programs(2), tl.int64) * B * K
    u = tl.program_id(0) * UNITS + tl.arange(0, UNITS)
    counter = counters + r * tl.num_programs(1) + tl.program_id(1)
    held = ()
    if KEPT:
        for chunk in tl.static_range(CHUNKS):
            held = held + (weights(W, inner(chunk, WARPS, DEPTH), u, K, S, 1, K),)
    block = tl.program_id(1) * TURNS
    b = block * ROWS + tl.arange(0, ROWS)
    from_above = above(dH, T - 1 - begin, b, u, B, S)
    # One stage: see `forward`.
    for turn in tl.range(begin * TURNS, end * TURNS, num_stages=1):
        n = turn // TURNS
        t = T - 1 - n
        behind = X + (n % 2) * half
        after = X + ((n + 1) % 2) * half
        b = (block + turn % TURNS) * ROWS + tl.arange(0, ROWS)
        row = tl.cast(t, tl.int64) * B + b
        inside = (b < B)[:, None] & (u < S)[None, :]
        live = inside & (row >= 0)[:, None]
        here = b[:, None] * S + u[None, :]
        now = row[:, None] * S + u[None, :]
        there = gates + row[:, None] * K + u[None, :]
        f = tl.load(there, mask=live, other=0.0)
        i = tl.load(there + S, mask=live, other=0.0)
        o = tl.load(there + 2 * S, mask=live, other=0.0)
        N = tl.load(there + 3 * S, mask=live, other=0.0)
        c = tl.load(C + now, mask=live, other=0.0)
        c_before = tl.load(C + now - B * S, mask=inside & (row >= B)[:, None], other=0.0)
        c_before += tl.load(C_0 + here, mask=live & (row < B)[:, None], other=0.0)
        if turn % TURNS == 0:
            wait(counter, n * tl.num_programs(0), OTHERS)
        dc = tl.load(dC + here, mask=live, other=0.0)
        total = tl.zeros((WARPS, ROWS, UNITS), tl.float32)
        if KEPT:
            xs = ()
            for chunk in tl.static_range(CHUNKS + AHEAD):
                if chunk < CHUNKS:
                    xs = xs + (factor(behind, b, inner(chunk, WARPS, DEPTH), B, K),)
                if chunk >= AHEAD:
                    total = dot(xs[chunk - AHEAD], held[chunk - AHEAD], total, EMULATE)
        else:
            for chunk in range(CHUNKS):
                k = inner(chunk, WARPS, DEPTH)
                total = dot(factor(behind, b, k, B, K), weights(W, k, u, K, S, 1, K), total, EMULATE)
        dh = from_above
        # As in `forward`.
        following = turn + 1
        if following < end * TURNS:
            b_next = (block + following % TURNS) * ROWS + tl.arange(0, ROWS)
            from_above = above(dH, T - 1 - following // TURNS, b_next, u, B, S)
        dh += tl.sum(total, 0)
        tanh_c = tanh(c)
        dc += dh * o * (1.0 - tanh_c * tanh_c)
        df = dc * c_before * f * (1.0 - f)
        di = dc * N * i * (1.0 - i)
        do = dh * tanh_c * o * (1.0 - o)
        dN = dc * i * (1.0 - N * N)
        own = after + b[:, None] * K + u[None, :]
        tl.store(own, df.to(X.dtype.element_ty), mask=live)
        tl.store(own + S, di.to(X.dtype.element_ty), mask=live)
        tl.store(own + 2 * S, do.to(X.dtype.element_ty), mask=live)
        tl.store(own + 3 * S, dN.to(X.dtype.element_ty), mask=live)
        tl.store(dC + here, dc * f, mask=live)
        if turn % TURNS == TURNS - 1:
            arrive(counter, OTHERS)
        # Nobody waits for these.
        tl.store(there, df, mask=live)
        tl.store(there + S, di, mask=live)
        tl.store(there + 2 * S, do, mask=live)
        tl.store(there + 3 * S, dN, mask=live)
        tl.store(dH_0 + here, dh, mask=inside & (row < 0)[:, None])
