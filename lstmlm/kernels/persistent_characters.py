"""The device code of `persistent_generate`: characters one after another, from logits to an id and through the stack to logits.

Importing it needs Triton.

Each stream has programs of its own, which share the units of every layer and the columns of the readout: a program has every
so-many-th block of them. So a stream's sums do not depend on how many streams or programs there are. After every layer and after
the readout all programs of a stream wait for each other. There are as many halves of a state as steps that are under way, two,
so that is enough. The id each of them draws for itself.

While a program waits it computes what the next layer needs of its own last state, which has long been there. What only this
program reads again, cells and sums, it keeps in memory too, but it never writes what others of its threads may still read.
"""

import triton
import triton.language as tl

from lstmlm.kernels.persistent_parts import GATES, arrive, tanh, wait


@triton.jit
def gate_columns(block, S: tl.constexpr, UNITS: tl.constexpr):
    """Return the columns of a block of units, all four gates of a unit side by side, and whether there are such units."""
    c = tl.arange(0, GATES * UNITS)
    u = block * UNITS + c // GATES
    return c % GATES * S + u, u < S


@triton.jit
def times(x, weights, column, inside, S: tl.constexpr, WIDTH: tl.constexpr):
    """Return the products of x with columns of weights, of which each lies in one piece. (COLUMNS)"""
    k = tl.arange(0, WIDTH)
    w = tl.load(weights + column[:, None] * S + k[None, :], mask=inside[:, None] & (k < S)[None, :], other=0.0)
    return tl.sum(w.to(tl.float32) * x[None, :], 1)


@triton.jit
def state(H, S: tl.constexpr, WIDTH: tl.constexpr):
    """Read a row that others wrote, past the first level of cache. (WIDTH)"""
    k = tl.arange(0, WIDTH)
    return tl.load(H + k, mask=k < S, other=0.0, cache_modifier=".cg")


@triton.jit
def norm_residual(
    H, gamma, beta, below, EPS: tl.constexpr, NORM: tl.constexpr, RESIDUAL: tl.constexpr, S: tl.constexpr, WIDTH: tl.constexpr
):
    """Return the input of the layer above: norm(H), + what the layer's own input was, which is zero if that is an id. (WIDTH)"""
    k = tl.arange(0, WIDTH)
    x = state(H, S, WIDTH)
    if NORM:
        count = tl.cast(S, tl.float32)
        x = tl.where(k < S, x - tl.div_rn(tl.sum(x, 0), count), 0.0)
        x *= tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(tl.sum(x * x, 0), count) + EPS))
        x = x * tl.load(gamma + k, mask=k < S, other=0.0) + tl.load(beta + k, mask=k < S, other=0.0)
    if RESIDUAL:
        x += below
    return x


@triton.jit
def draw(logits, noise, divisor, greedy, V: tl.constexpr, WIDE: tl.constexpr):
    """Return the id that the noise falls on, and minus its log probability under the logits as they are.

    The first one whose cumulated probability exceeds the noise, of those that are possible at all: sums are made as a tree, so
    an impossible one's may be larger by a rounding than the one's before. Whatever the logits, it is below V.
    """
    v = tl.arange(0, WIDE)
    given = tl.load(logits + v, mask=v < V, other=float("-inf"), cache_modifier=".cg")
    top = tl.max(given, 0)
    best = tl.min(tl.where(given == top, v, V - 1), 0)
    z = given.to(tl.float64) - top.to(tl.float64)
    p = tl.exp(z / divisor)
    upto = tl.cumsum(p, 0)
    aim = noise.to(tl.float64) * tl.sum(p, 0)
    last = tl.max(tl.where(p > 0, v, -1), 0)
    last = tl.where(last < 0, V - 1, last)
    chosen = tl.min(tl.where((upto > aim) & (p > 0), v, last), 0)
    chosen = tl.where(greedy != 0, best, chosen)
    nats = tl.log(tl.sum(tl.exp(z), 0)) - tl.sum(tl.where(v == chosen, z, 0.0), 0)
    return chosen.to(tl.int64), nats.to(tl.float32)


@triton.jit
def recurrent(H, W, b, a, layer, S: tl.constexpr, UNITS: tl.constexpr, WIDTH: tl.constexpr):
    """Write a = H W + b of a layer for the program's units."""
    W += tl.cast(layer, tl.int64) * (GATES * S * S)
    b += layer * (GATES * S)
    x = state(H, S, WIDTH)
    for block in range(tl.program_id(0), tl.cdiv(S, UNITS), tl.num_programs(0)):
        column, inside = gate_columns(block, S, UNITS)
        y = times(x, W, column, inside, S, WIDTH) + tl.load(b + column, mask=inside, other=0.0)
        tl.store(a + column, y, mask=inside)


@triton.jit
def layer_step(x, row, U, a, C, C_after, H_after, first, S: tl.constexpr, UNITS: tl.constexpr, WIDTH: tl.constexpr):
    """Take a step of the program's units: `first` is whether the input is a row of the table, else it is x."""
    for block in range(tl.program_id(0), tl.cdiv(S, UNITS), tl.num_programs(0)):
        column, inside = gate_columns(block, S, UNITS)
        y = tl.load(a + column, mask=inside, other=0.0)
        if first:
            y += tl.load(row + column, mask=inside, other=0.0)
        else:
            y += times(x, U, column, inside, S, WIDTH)
        even, odd = tl.split(tl.reshape(y, (UNITS, 2, 2)))
        f, o = tl.split(even)
        i, N = tl.split(odd)
        u = block * UNITS + tl.arange(0, UNITS)
        c = tl.load(C + u, mask=u < S, other=0.0)
        c = tl.sigmoid(f) * c + tl.sigmoid(i) * tanh(N)
        tl.store(C_after + u, c, mask=u < S)
        tl.store(H_after + u, tl.sigmoid(o) * tanh(c), mask=u < S)


@triton.jit(do_not_specialize=["greedy", "turn", "K", "L"])
def characters(
    table,
    U,
    W,
    b,
    gamma,
    beta,
    R,
    r,
    H,
    C,
    a,
    logits,
    noise,
    divisor,
    ids,
    nats,
    counters,
    greedy,
    turn,
    K,
    L,
    S: tl.constexpr,
    V: tl.constexpr,
    EPS: tl.constexpr,
    NORM: tl.constexpr,
    RESIDUAL: tl.constexpr,
    OTHERS: tl.constexpr,
    UNITS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Draw K times, with a step of the network after each draw; the grid is programs x n streams.

    Weights lie column after column: U (L - 1, 4S, S), W (L, 4S, S), R (V, S); the table is (V, 4S), b (L, 4S). H and C are
    (2, L, n, S), of which character t reads half (turn + t) % 2 and writes the other; a is (n, 4S).
    """
    n = tl.cast(tl.num_programs(1), tl.int64)
    stream = tl.cast(tl.program_id(1), tl.int64)
    H += stream * S
    C += stream * S
    a += stream * (GATES * S)
    logits += stream * V
    counter = counters + stream
    arrivals = 0
    recurrent(H + turn * L * n * S, W, b, a, 0, S, UNITS, WIDTH)
    tl.debug_barrier()
    for t in tl.range(0, K, num_stages=1):
        before = (turn + t) % 2 * L * n * S
        after = (turn + t + 1) % 2 * L * n * S
        now = t * n + stream
        id_, cost = draw(logits, tl.load(noise + now), tl.load(divisor), greedy, V, WIDE)
        tl.store(ids + now, id_, mask=tl.program_id(0) == 0)
        tl.store(nats + now, cost, mask=tl.program_id(0) == 0)
        x = tl.zeros((WIDTH,), tl.float32)
        for layer in tl.range(0, L + 1, num_stages=1):  # the last is the readout
            at = layer * n * S
            if layer > 0:
                below = layer - 1
                x = norm_residual(
                    H + after + below * n * S, gamma + below * S, beta + below * S, x, EPS, NORM, RESIDUAL, S, WIDTH
                )
            if layer < L:
                own = U + tl.cast(layer - 1, tl.int64) * (GATES * S * S)
                row = table + id_ * (GATES * S)
                layer_step(x, row, own, a, C + before + at, C + after + at, H + after + at, layer == 0, S, UNITS, WIDTH)
            else:
                for block in range(tl.program_id(0), tl.cdiv(V, COLUMNS), tl.num_programs(0)):
                    v = block * COLUMNS + tl.arange(0, COLUMNS)
                    y = times(x, R, v, v < V, S, WIDTH) + tl.load(r + v, mask=v < V, other=0.0)
                    tl.store(logits + v, y, mask=v < V)
            arrive(counter, OTHERS)
            arrivals += tl.num_programs(0)
            # Of the layer that comes next, the first one after the readout: its last state has been there for a character.
            following = tl.where(layer == L, 0, layer + 1)
            if following < L:
                last = tl.where(layer == L, after, before) + following * n * S
                recurrent(H + last, W, b, a, following, S, UNITS, WIDTH)
            wait(counter, arrivals, OTHERS)
