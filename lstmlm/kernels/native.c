/* The recurrence over T steps, forward and backward: strict float32, or (`low.h`) products of reduced precision between
   states, activations and gradients in float32.

   Every step is a product of H or m (forward) or da (backward) with weights that were packed before the call, followed, for each block
   of units while its sums are in the first cache, by the activations and the state update. The order in which a sum runs over k
   follows from the sizes, so the bits of a result depend neither on the number of threads nor on how they divide the work.

   Letters as everywhere: T steps, B rows (batch), S units. Gates lie side by side as f, i, o, N, each S wide. */

#include "simd.h"
#include "threads.h"

#define CHUNK 96    /* rows whose sums are kept at a time */
#define K_CHUNK 256 /* of a panel at a time: 32 KB, which the first cache holds while all rows pass */

/* out[rows][wide] (+)= A[rows][K] x panel[K][wide]. `ways` sums in parallel hide the latency of the addition where there
   are too few rows for that; they are part of the result's bits. */
INLINE void tile(const int rows, const int wide, const int ways, size K, const float *A, size lda, const float *panel,
                 float *out, size ldo, int first, const float *ahead) {
    vec sum[4][ROWS_MAX][4];
    UNROLL for (int w = 0; w < ways; w++)
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int v = 0; v < wide; v++) sum[w][r][v] = w || first ? (vec){0} : load(out + r * ldo + v * VECTOR, VECTOR);
    size k = 0;
    for (; k + ways <= K; k += ways) {
        __builtin_prefetch(ahead + k * VECTOR, 0, 2);
        UNROLL for (int w = 0; w < ways; w++) {
            vec weight[4];
            UNROLL for (int v = 0; v < wide; v++) weight[v] = *(const vec *)(panel + ((k + w) * wide + v) * VECTOR);
            UNROLL for (int r = 0; r < rows; r++) {
                const vec a = all(in_turn(A[r * lda + k + w]));
                UNROLL for (int v = 0; v < wide; v++) sum[w][r][v] = fused(a, weight[v], sum[w][r][v]);
            }
        }
    }
    for (; k < K; k++)
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int v = 0; v < wide; v++)
                sum[0][r][v] = fused(all(A[r * lda + k]), *(const vec *)(panel + (k * wide + v) * VECTOR), sum[0][r][v]);
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < wide; v++) {
            vec total = sum[0][r][v];
            UNROLL for (int w = 1; w < ways; w++) total += sum[w][r][v];
            store(out + r * ldo + v * VECTOR, total, VECTOR);
        }
}

typedef void Tile(size K, const float *A, size lda, const float *panel, float *out, size ldo, int first, const float *ahead);

#define TILE(rows, ways)                                                                                                   \
    static void tile_##rows##_##ways(size K, const float *A, size lda, const float *panel, float *out, size ldo, int first, \
                                     const float *ahead) {                                                                 \
        tile(rows, WIDE, ways, K, A, lda, panel, out, ldo, first, ahead);                                                  \
    }
#if WIDE == 4
#define FEW_2 tile_2_2 /* 4 would not fit the registers */
TILE(1, 4) TILE(2, 2) TILE(3, 2)
#else
#define FEW_2 tile_2_4
TILE(1, 4) TILE(2, 4) TILE(3, 2)
#endif
TILE(1, 1) TILE(2, 1) TILE(3, 1) TILE(4, 1) TILE(5, 1) TILE(6, 1)
#if ROWS_MAX == 14
TILE(7, 1) TILE(8, 1) TILE(9, 1) TILE(10, 1) TILE(11, 1) TILE(12, 1) TILE(13, 1) TILE(14, 1)
#endif

static Tile *const tiles[] = {0, tile_1_1, tile_2_1, tile_3_1, tile_4_1, tile_5_1, tile_6_1,
#if ROWS_MAX == 14
                              tile_7_1, tile_8_1, tile_9_1, tile_10_1, tile_11_1, tile_12_1, tile_13_1, tile_14_1,
#endif
};
static Tile *const few_rows[] = {0, tile_1_4, FEW_2, tile_3_2}; /* a whole batch of 1, 2, 3 rows, which `divide` leaves whole */

/* out[rows][WIDE vectors] (+)= A[rows][K] x panel, in tiles of nearly equal height. `batch` is the whole batch, whose size
   (not that of this thread's share) decides the order of summation. */
static void product(size batch, size rows, size K, const float *A, size lda, const float *panel, float *out, size ldo) {
    if (batch <= 3) {
        few_rows[rows](K, A, lda, panel, out, ldo, 1, panel);
        return;
    }
    size count = blocks(rows, ROWS_MAX);
    for (size k = 0; k < K; k += K_CHUNK)
        for (size b = 0; b < count; b++) {
            size r = rows * b / count, height = rows * (b + 1) / count - r;
            const float *now = panel + k * WIDE * VECTOR;
            /* The first WIDE tiles of a chunk fetch the next one, a line for each k: 1.5 to 2 times faster at S = 1024. */
            const float *ahead = b < WIDE ? now + K_CHUNK * (WIDE + b) * VECTOR : now;
            tiles[height](least(K_CHUNK, K - k), A + r * lda + k, lda, now, out + r * ldo, ldo, k == 0, ahead);
        }
}

#include "low.h"

/* `low` holds, for reduced precision, the left factor of the next product and of the one under way: H, m or da, one row for each
   row of the batch, `low_K` values each, `low_step` values apart; `scales` what HALF and INTS divided 64 of them by. */
typedef struct {
    size T, B, S, low_K, low_step;
    const void *panels;
    const int64_t *ids; /* rows of `rows` take the place of what lies in gates */
    const float *rows, *bias, *H_0, *C_0, *C_in, *dH, *dC_T;
    float *gates, *C, *H, *dH_0, *dC_0, *scales;
    float *scale, *m; /* of a multiplicative layer, whose next product is with m_t = scale_t * H_{t-1}; going back scale becomes dm */
    char *low;
    Barrier barriers[THREADS_MAX];
} Job;

INLINE size low_bytes(const int kind, size count) { return count * (kind >= TILES ? 2 : 4); }

/* k of a pass: units, or (back) gates of units. */
INLINE size low_columns(int back, size S) { return back ? blocks(S, 16) * 64 : blocks(S, 64) * 64; }

/* Columns of a strip of packed weights, and its bytes. */
#define STRIP (GATES * VECTOR)
INLINE size strip_bytes(const int kind, size K) { return K * STRIP * 2 + (kind == INTS ? K / 64 * STRIP * 4 : 0); }

/* The row of `low` that belongs to step t. */
INLINE char *low_row(const int kind, const Job *job, size t, size row) {
    return job->low + low_bytes(kind, ((t & 1) * (job->B + SPARE_ROWS) + row) * job->low_step);
}
INLINE float *scale_row(const Job *job, size t, size row) {
    return job->scales + ((t & 1) * (job->B + SPARE_ROWS) + row) * (job->low_K / 64);
}

/* A thread's share: rows of the batch and blocks of units, and whom it has to meet after each step. */
typedef struct {
    size row, rows, unit, units;
    int members, idle;
    Barrier *barrier;
} Share;

/* Divides rows among groups and units among the members of a group. Rows need neither a barrier nor what other threads have
   just written, but make each thread read all weights. The estimates, in cycles of a step, tell apart what was measured on two
   threads: rows are better up to S = 512 at B = 64, units for S = 1024 and, at S = 512, for B = 16. */
INLINE Share divide(const int kind, Job *job, size width, int rank, int threads) {
    const size S = job->S, count = blocks(S, width);
    const double row = kind == FLOAT ? 2 : kind == TILES ? .25 : 1, weight = kind == FLOAT ? 4 : 2;
    int groups = 1;
    double best = 0;
    for (int g = 1; g <= threads && g <= job->B && (job->B > 3 || g == 1); g++) {
        size members = least(threads / g, count), units = blocks(count, members) * width, rows = blocks(job->B, g);
        double in_second_cache = 4. * S * units * weight < 1.5e6, line = (in_second_cache ? 2 : 9) * weight;
        double time = units / 16. * S * (rows * row > line ? rows * row : line);
        if (members > 1) time += 2000 + 2. * rows * S * (members - 1) / members;
        if (g == 1 || time < best) best = time, groups = g;
    }
    int members = (int)least(threads / groups, count), group = rank / members, member = rank % members;
    Share s = {.members = members, .idle = group >= groups, .barrier = job->barriers + (group < groups ? group : 0)};
    s.row = job->B * group / groups;
    s.rows = job->B * (group + 1) / groups - s.row;
    s.unit = count * member / members;
    s.units = count * (member + 1) / members - s.unit;
    return s;
}

/* One row, one vector of units: H_t and C_t from the recurrent sums, the input's part of the pre-activations and the bias. */
INLINE vec update(const float *sums, const float *input, const float *bias, float *gates, size S, const float *C_prev, float *C,
                  float *H, int lanes) {
    vec a[GATES];
    for (int gate = 0; gate < GATES; gate++) {
        a[gate] = load(input + gate * S, lanes) + load(sums + gate * VECTOR, VECTOR);
        if (bias) a[gate] += load(bias + gate * S, lanes);
    }
    vec f = sigmoid(a[0]), i = sigmoid(a[1]), o = sigmoid(a[2]), N = hyperbolic(a[3]);
    vec cell = fused(f, load(C_prev, lanes), i * N), hidden = o * hyperbolic(cell);
    store(gates, f, lanes), store(gates + S, i, lanes), store(gates + 2 * S, o, lanes), store(gates + 3 * S, N, lanes);
    store(C, cell, lanes);
    store(H, hidden, lanes);
    return hidden;
}

#if HAVE_INTS
/* H, or m, of a step's rows and of the units that are a thread's own, for the next product. */
static void ints_state(const Job *job, size t, const float *H, const Share *share) {
    const size S = job->S, end = least(S, (share->unit + share->units) * VECTOR);
    for (size row = share->row; row < share->row + share->rows; row++)
        for (size unit = share->unit * VECTOR; unit < end; unit += 64) {
            vec x[64 / VECTOR];
            for (int v = 0; v < 64 / VECTOR; v++) {
                const size lanes = S - unit - v * VECTOR;
                x[v] = lanes >= VECTOR ? load(H + row * S + unit + v * VECTOR, VECTOR)
                       : lanes > 0     ? load(H + row * S + unit + v * VECTOR, (int)lanes)
                                       : (vec){0};
            }
            scale_row(job, t, row)[unit / 64] = ints_store(x, (int16_t *)low_row(INTS, job, t, row) + unit);
        }
}
#endif

/* m_t of one row and a vector of units from H_{t-1}; without a scale it is that. Behind the last step there is none. */
INLINE vec multiplied(const Job *job, size t, size state, vec H, int lanes) {
    if (!job->m || t == job->T) return H;
    const size at = t * job->B * job->S + state;
    const vec m = load(job->scale + at, lanes) * H;
    store(job->m + at, m, lanes);
    return m;
}

INLINE void forward(const int kind, Job *job, int rank, int threads) {
    const size S = job->S, B = job->B;
    Share share = divide(kind, job, kind == INTS ? 64 : VECTOR, rank, threads);
    if (share.idle) return;
    if (kind == INTS) { /* 64 units share a scale, so they are one thread's */
        share.unit *= 64 / VECTOR;
        share.units = least(share.units * (64 / VECTOR), blocks(S, VECTOR) - share.unit);
    }
    _Alignas(64) float sums[CHUNK * GATES * VECTOR];
    const float *H_prev = job->H_0, *C_prev = job->C_0;
    if (job->m && (kind == FLOAT || kind == INTS)) {
        for (size row = share.row; row < share.row + share.rows; row++)
            for (size unit = share.unit * VECTOR; unit < least(S, (share.unit + share.units) * VECTOR); unit += VECTOR) {
                const int lanes = (int)least(VECTOR, S - unit);
                multiplied(job, 0, row * S + unit, load(H_prev + row * S + unit, lanes), lanes);
            }
        H_prev = job->m;
        if (kind == FLOAT) meet(share.barrier, share.members);
    }
#if HAVE_INTS
    if (kind == INTS) {
        ints_state(job, 0, H_prev, &share);
        meet(share.barrier, share.members);
    }
#endif
#if HAVE_HALF || HAVE_PAIRS
    if (kind != FLOAT && kind != INTS) {
        for (size row = share.row; row < share.row + share.rows; row++) {
            for (size block = share.unit; block < share.unit + share.units; block++) {
                const size state = row * S + block * VECTOR;
                const int lanes = (int)least(VECTOR, S - block * VECTOR);
                low_store(kind, low_row(kind, job, 0, row), block * VECTOR, multiplied(job, 0, state, load(H_prev + state, lanes), lanes));
            }
            /* Beyond the last unit: zero for good, by one of those who share the rows. */
            for (size k = blocks(S, VECTOR) * VECTOR; share.unit == 0 && k < job->low_K; k += VECTOR)
                for (int t = 0; t < 2; t++) low_store(kind, low_row(kind, job, t, row), k, (vec){0});
        }
        if (kind == TILES) tiles_begin();
        meet(share.barrier, share.members);
    }
#endif
    for (size t = 0; t < job->T; t++) {
        float *gates = job->gates + t * B * GATES * S, *C = job->C + t * B * S, *H = job->H + t * B * S;
        for (size block = share.unit; block < share.unit + share.units; block++)
            for (size row = share.row; row < share.row + share.rows; row += CHUNK) {
                size rows = least(CHUNK, share.row + share.rows - row), unit = block * VECTOR;
                if (kind == FLOAT) {
                    const float *panel = (const float *)job->panels + block * S * GATES * VECTOR;
                    for (int half = 0; half < GATES / WIDE; half++)
                        product(B, rows, S, H_prev + row * S, S, panel + half * S * WIDE * VECTOR, sums + half * WIDE * VECTOR,
                                GATES * VECTOR);
                }
#if HAVE_LOW
                else
                    low_product(kind, B, rows, STRIP, job->low_K, low_row(kind, job, t, row), job->low_step,
                                (const char *)job->panels + block * strip_bytes(kind, job->low_K),
                                kind == INTS ? scale_row(job, t, row) : 0, job->low_K / 64, 0, sums);
#endif
                int lanes = (int)least(VECTOR, S - unit);
                for (size r = row; r < row + rows; r++) {
                    const float *sum = sums + (r - row) * GATES * VECTOR;
                    float *at = gates + r * GATES * S + unit;
                    const float *input = job->ids ? job->rows + job->ids[t * B + r] * GATES * S + unit : at;
                    const float *bias = job->bias ? job->bias + unit : 0;
                    size state = r * S + unit;
                    vec hidden = lanes == VECTOR ? update(sum, input, bias, at, S, C_prev + state, C + state, H + state, VECTOR)
                                                 : update(sum, input, bias, at, S, C_prev + state, C + state, H + state, lanes);
                    hidden = multiplied(job, t + 1, state, hidden, lanes);
                    (void)hidden;
#if HAVE_HALF || HAVE_PAIRS
                    if (kind != FLOAT && kind != INTS) low_store(kind, low_row(kind, job, t + 1, r), unit, hidden);
#endif
                }
            }
#if HAVE_INTS
        if (kind == INTS && t + 1 < job->T) ints_state(job, t + 1, job->m ? job->m + (t + 1) * B * S : H, &share);
#endif
        H_prev = job->m ? job->m + (t + 1) * B * S : H, C_prev = C;
        meet(share.barrier, share.members);
    }
    if (kind == TILES) tiles_end();
}

/* One row, one vector of units: da from the gradients of H_t and C_t; dC becomes that of C_{t-1}. */
INLINE void update_back(vec dh, float *gates, size S, const float *C_prev, const float *C, float *dC_state, int lanes, vec da[GATES]) {
    vec f = load(gates, lanes), i = load(gates + S, lanes), o = load(gates + 2 * S, lanes), N = load(gates + 3 * S, lanes);
    vec squashed = hyperbolic(load(C, lanes));
    vec dC = load(dC_state, lanes) + dh * o * (1.f - squashed * squashed);
    da[0] = dC * load(C_prev, lanes) * f * (1.f - f);
    da[1] = dC * N * i * (1.f - i);
    da[2] = dh * squashed * o * (1.f - o);
    da[3] = dC * i * (1.f - N * N);
    for (int gate = 0; gate < GATES; gate++) store(gates + gate * S, da[gate], lanes);
    store(dC_state, dC * f, lanes);
}

#if HAVE_INTS
/* da of a row and 16 units, for the next product. */
INLINE void ints_gradient(const Job *job, size t, size row, size block) {
    const size S = job->S;
    vec x[64 / VECTOR];
    for (int gate = 0; gate < GATES; gate++)
        for (int v = 0; v < 16 / VECTOR; v++) {
            const size unit = block * 16 + v * VECTOR;
            const float *da = job->gates + ((t * job->B + row) * GATES + gate) * S + unit;
            x[gate * (16 / VECTOR) + v] = S >= unit + VECTOR ? load(da, VECTOR) : S > unit ? load(da, (int)(S - unit)) : (vec){0};
        }
    scale_row(job, t, row)[block] = ints_store(x, (int16_t *)low_row(INTS, job, t, row) + block * 64);
}
#endif

INLINE void backward(const int kind, Job *job, int rank, int threads) {
    const int wide = kind == FLOAT ? WIDE : GATES; /* vectors of a strip */
    const size S = job->S, B = job->B, K = GATES * S;
    const Share share = divide(kind, job, wide * VECTOR, rank, threads);
    if (share.idle) return;
    _Alignas(64) float sums[CHUNK * COLUMNS];
    if (kind == TILES) tiles_begin();
    for (size t = job->T - 1; t >= -1; t--) {
        const float *C_prev = t > 0 ? job->C_in + (t - 1) * B * S : job->C_0;
        for (size strip = share.unit; strip < share.unit + share.units; strip++)
            for (size row = share.row; row < share.row + share.rows; row += CHUNK) {
                size rows = least(CHUNK, share.row + share.rows - row);
                if (kind == FLOAT && t < job->T - 1)
                    product(B, rows, K, job->gates + ((t + 1) * B + row) * K, K,
                            (const float *)job->panels + strip * K * WIDE * VECTOR, sums, WIDE * VECTOR);
#if HAVE_LOW
                else if (t < job->T - 1)
                    low_product(kind, B, rows, STRIP, job->low_K, low_row(kind, job, t + 1, row), job->low_step,
                                (const char *)job->panels + strip * strip_bytes(kind, job->low_K),
                                kind == HALF || kind == INTS ? scale_row(job, t + 1, row) : 0, job->low_K / 64, 0, sums);
#endif
                for (int v = 0; v < wide; v++) {
                    size unit = (strip * wide + v) * VECTOR;
                    int lanes = (int)least(VECTOR, S - unit);
                    for (size r = row; r < row + rows && lanes > 0; r++) {
                        vec sum = t < job->T - 1 ? load(sums + ((r - row) * wide + v) * VECTOR, VECTOR) : (vec){0}, da[GATES];
                        size at = r * S + unit;
                        if (job->scale && t < job->T - 1) { /* dm_{t+1}, and from it what reaches H_t */
                            float *const place = job->scale + (t + 1) * B * S + at;
                            const vec scale = load(place, lanes);
                            store(place, sum, lanes);
                            sum *= scale;
                        }
                        if (t < 0) {
                            store(job->dH_0 + at, sum, lanes);
                            continue;
                        }
                        if (t == job->T - 1) store(job->dC_0 + at, load(job->dC_T + at, lanes), lanes);
                        sum += load(job->dH + t * B * S + at, lanes);
                        float *gates = job->gates + (t * B + r) * K + unit;
                        if (lanes == VECTOR)
                            update_back(sum, gates, S, C_prev + at, job->C_in + t * B * S + at, job->dC_0 + at, VECTOR, da);
                        else
                            update_back(sum, gates, S, C_prev + at, job->C_in + t * B * S + at, job->dC_0 + at, lanes, da);
#if HAVE_INTS
                        if (kind == INTS && ((unit + VECTOR) % 16 == 0 || unit + VECTOR >= S)) ints_gradient(job, t, r, unit / 16);
#endif
#if HAVE_HALF || HAVE_PAIRS
                        if (kind != FLOAT && kind != INTS) {
                            float scale = kind == HALF ? low_scale(larger(larger(larger(larger((vec){0}, da[0]), da[1]), da[2]), da[3])) : 1.f;
                            for (int gate = 0; gate < GATES; gate++)
                                low_store(kind, low_row(kind, job, t, r), unit * GATES + gate * VECTOR, scale * da[gate]);
                            if (kind == HALF) scale_row(job, t, r)[unit / VECTOR] = 1.f / scale;
                        }
#endif
                    }
                }
            }
        meet(share.barrier, share.members);
    }
    if (kind == TILES) tiles_end();
}

#define BODY(pass, kind)                                                                                                   \
    static void pass##_##kind(void *job, int rank, int threads) { pass(kind, job, rank, threads); }
BODY(forward, FLOAT) BODY(backward, FLOAT)
#if HAVE_HALF
BODY(forward, HALF) BODY(backward, HALF)
#else
#define forward_HALF 0
#define backward_HALF 0
#endif
#if HAVE_TILES
BODY(forward, TILES) BODY(backward, TILES)
#else
#define forward_TILES 0
#define backward_TILES 0
#endif
#if HAVE_PAIRS
BODY(forward, PAIRS) BODY(backward, PAIRS)
#else
#define forward_PAIRS 0
#define backward_PAIRS 0
#endif
#if HAVE_INTS
BODY(forward, INTS) BODY(backward, INTS)
#else
#define forward_INTS 0
#define backward_INTS 0
#endif
static void (*const bodies[2][KINDS])(void *, int, int) = {
    {forward_FLOAT, forward_HALF, forward_TILES, forward_PAIRS, forward_INTS},
    {backward_FLOAT, backward_HALF, backward_TILES, backward_PAIRS, backward_INTS}};

typedef struct {
    size S;
    const float *W;
    void *packed;
} Packing;

/* forward: for each block of units and half of the gates, S rows of WIDE vectors, one for each gate. */
static void pack_forward(void *argument, int rank, int threads) {
    Packing *p = argument;
    const size S = p->S, count = blocks(S, VECTOR);
    for (size block = count * rank / threads; block < count * (rank + 1) / threads; block++) {
        size unit = block * VECTOR;
        int lanes = (int)least(VECTOR, S - unit);
        float *to = (float *)p->packed + block * S * GATES * VECTOR;
        for (int gate = 0; gate < GATES; gate++)
            for (size k = 0; k < S; k++)
                store(to + ((gate / WIDE * S + k) * WIDE + gate % WIDE) * VECTOR, load(p->W + k * GATES * S + gate * S + unit, lanes),
                      VECTOR);
    }
}

/* backward: for each strip of WIDE x VECTOR units, 4S rows: the transpose of W. */
static void pack_backward(void *argument, int rank, int threads) {
    Packing *p = argument;
    const size S = p->S, width = WIDE * VECTOR, count = blocks(S, width), K = GATES * S;
    for (size strip = count * rank / threads; strip < count * (rank + 1) / threads; strip++)
        for (size k = 0; k < K; k += 64) /* short pieces: their target stays in the first cache */
            for (size lane = 0; lane < width; lane++) {
                size unit = strip * width + lane;
                float *to = (float *)p->packed + strip * K * width + lane;
                for (size j = k; j < least(k + 64, K); j++) to[j * width] = unit < S ? p->W[unit * K + j] : 0.f;
            }
}

#if HAVE_LOW
/* Both forms are strips of STRIP columns: for each block of units its four gates, or (back) units, whose k then counts
   blocks of 16 units, gates and units of the block, in this order: 64 k share a scale. */
INLINE void pack_low(const int kind, const int back, Packing *p, int rank, int threads) {
    const size S = p->S, count = blocks(S, back ? STRIP : VECTOR), K = low_columns(back, S);
    float square[64][COLUMNS];
    for (size strip = count * rank / threads; strip < count * (rank + 1) / threads; strip++)
        for (size k = 0; k < K; k += 64) {
            memset(square, 0, sizeof square);
#if VECTOR == 16
            for (size j = 0; j < 64; j += VECTOR)
                for (int gate = 0; gate < GATES; gate++) {
                    const size unit = back ? strip * COLUMNS + j : strip * VECTOR, from = back ? k / GATES : unit, row = back ? unit : k + j;
                    if (row >= S || from >= S) continue;
                    const int lanes = (int)least(VECTOR, S - from);
                    __m512 block[VECTOR];
                    for (size l = 0; l < VECTOR; l++) {
                        const float *weights = p->W + (row + l) * GATES * S + gate * S + from;
                        __builtin_prefetch(weights + (back ? 4 * VECTOR : 64 * GATES * S)); /* of the next square */
                        block[l] = row + l < S ? (__m512)load(weights, lanes) : _mm512_setzero_ps();
                    }
                    if (back) turn(block);
                    for (size l = 0; l < VECTOR; l++)
                        store(back ? square[gate * VECTOR + l] + j : square[j + l] + gate * VECTOR, (vec)block[l], VECTOR);
                }
#else
            for (int gate = 0; gate < GATES; gate++) {
                const size from = back ? k / GATES : strip * VECTOR, row = back ? strip * STRIP : k, width = back ? 16 : VECTOR;
                for (size i = 0; i < least(back ? STRIP : 64, S - row); i++)
                    for (size j = 0; j < least(width, S - from); j++) {
                        const float weight = p->W[((row + i) * GATES + gate) * S + from + j];
                        if (back) square[gate * width + j][i] = weight;
                        else square[i][gate * width + j] = weight;
                    }
            }
#endif
            char *const panel = (char *)p->packed + strip * strip_bytes(kind, K);
#if HAVE_INTS
            if (kind == INTS) ints_pack((const float(*)[64])square, STRIP, panel, k, K);
#endif
#if HAVE_HALF || HAVE_PAIRS
            if (kind != INTS) low_pack(kind, (const float(*)[COLUMNS])square, (uint16_t *)panel + k * COLUMNS);
#endif
        }
}
#define PACK(kind)                                                                                                         \
    static void pack_forward_##kind(void *p, int rank, int threads) { pack_low(kind, 0, p, rank, threads); }               \
    static void pack_backward_##kind(void *p, int rank, int threads) { pack_low(kind, 1, p, rank, threads); }
#endif
#if HAVE_HALF
PACK(HALF)
#else
#define pack_forward_HALF 0
#define pack_backward_HALF 0
#endif
#if HAVE_PAIRS
PACK(PAIRS)
#else
#define pack_forward_PAIRS 0
#define pack_backward_PAIRS 0
#endif
#if HAVE_INTS
PACK(INTS)
#else
#define pack_forward_INTS 0
#define pack_backward_INTS 0
#endif
static void (*const packers[2][KINDS])(void *, int, int) = { /* TILES reads what PAIRS reads */
    {pack_forward, pack_forward_HALF, pack_forward_PAIRS, pack_forward_PAIRS, pack_forward_INTS},
    {pack_backward, pack_backward_HALF, pack_backward_PAIRS, pack_backward_PAIRS, pack_backward_INTS}};

#include "multiply.h"
#include "pointwise.h"

void (*lstmlm_team_run)(void (*)(void *), void *, unsigned, unsigned);
int (*lstmlm_team_rank)(void), (*lstmlm_team_size)(void);

static int forked;

EXPORT void lstmlm_team(void *run, void *rank, void *number) {
    if (forked) return;
    lstmlm_team_run = (void (*)(void (*)(void *), void *, unsigned, unsigned))run;
    lstmlm_team_rank = (int (*)(void))rank;
    lstmlm_team_size = (int (*)(void))number;
}

#if !defined(_WIN32)
/* In a forked process the runtime would wait for threads that stayed in the other one, for good: it is not taken again. */
static void forget_team(void) { lstmlm_team_run = 0, forked = 1; }

__attribute__((constructor)) static void at_fork(void) { pthread_atfork(0, 0, forget_team); }
#endif

/* Floats in a register: 16, 8, or 4 where nothing better is known. */
EXPORT int lstmlm_vector(void) { return VECTOR; }

/* Whether this machine has a kind of products. */
EXPORT int lstmlm_has(int kind) {
#if HAVE_TILES
    if (kind == TILES) return tiles_allowed();
#endif
    return kind == FLOAT || (kind == HALF && HAVE_HALF) || (kind == PAIRS && HAVE_PAIRS) || (kind == INTS && HAVE_INTS);
}

/* Bytes that a packed form of W needs. */
EXPORT size lstmlm_packed_size(int kind, int back, size S) {
    if (kind == FLOAT) return blocks(S, WIDE * VECTOR) * WIDE * VECTOR * GATES * S * 4;
    return blocks(S, back ? STRIP : VECTOR) * strip_bytes(kind, low_columns(back, S));
}

/* Bytes of scratch that a pass needs. */
EXPORT size lstmlm_scratch_size(int kind, int back, size B, size S) {
    return kind == FLOAT ? 0 : 2 * (B + SPARE_ROWS) * (low_columns(back, S) / 64 * 65 + APART) * 4;
}

EXPORT void lstmlm_pack(int kind, int back, int threads, size S, const float *W, void *packed) {
    Packing p = {S, W, packed};
    run_team(packers[back][kind], &p, threads);
}

static void run(int kind, int back, int threads, Job *job, void *scratch) {
    job->low_K = low_columns(back, job->S);
    job->low_step = job->low_K + APART;
    job->scales = scratch; /* first: their size is a multiple of 8 bytes, `low` needs no alignment */
    job->low = (char *)scratch + 2 * (job->B + SPARE_ROWS) * (job->low_K / 64) * 4;
    run_team(bodies[back][kind], job, threads);
}

/* The input's part of the pre-activations is in `gates`, or in `rows` at `ids`; the bias may be missing, and so may scale and m. */
EXPORT void lstmlm_forward(int kind, int threads, size T, size B, size S, const void *packed, void *scratch, const int64_t *ids,
                           const float *rows, const float *bias, const float *H_0, const float *C_0, float *gates, float *C, float *H,
                           float *scale, float *m) {
    Job job = {.T = T, .B = B, .S = S, .panels = packed, .ids = ids, .rows = rows, .bias = bias, .H_0 = H_0, .C_0 = C_0,
               .gates = gates, .C = C, .H = H, .scale = scale, .m = m};
    run(kind, 0, threads, &job, scratch);
}

EXPORT void lstmlm_backward(int kind, int threads, size T, size B, size S, const void *packed, void *scratch, const float *dH,
                            const float *dC_T, float *gates, const float *C, const float *C_0, float *dH_0, float *dC_0,
                            float *scale) {
    Job job = {.T = T, .B = B, .S = S, .panels = packed, .dH = dH, .dC_T = dC_T, .gates = gates, .C_in = C, .C_0 = C_0,
               .dH_0 = dH_0, .dC_0 = dC_0, .scale = scale};
    run(kind, 1, threads, &job, scratch);
}

/* Bytes of scratch that `lstmlm_multiply` needs. */
EXPORT size lstmlm_multiply_size(int threads, size N) {
    return least(blocks(N, COLUMNS), STRIPS) * PANEL_BYTES + least(threads, THREADS_MAX) * SHARE_BYTES;
}

/* C[M][N] (+)= A[M][K] x B[K][N]; a turned factor lies in memory as [K][M] or [N][K]. */
EXPORT void lstmlm_multiply(int kind, int threads, size M, size N, size K, int turned_A, int turned_B, int add, const float *A,
                            const float *B, float *C, void *scratch) {
    Multiplication job = {.M = M, .N = N, .K = K, .turned_A = turned_A, .turned_B = turned_B, .add = add, .A = A, .B = B, .C = C,
                          .scratch = scratch};
    run_team(multipliers[kind], &job, threads);
}

/* How many parts the scratch below is for. */
EXPORT int lstmlm_parts(void) { return PARTS; }

/* out = dropout(norm(y)) + x; gamma and x may be missing, and a threshold of 0 drops nothing. */
EXPORT void lstmlm_norm_dropout_residual(int threads, size T, size B, size S, size streams, size first, uint32_t key, uint32_t threshold, float scale,
                         const float *y, const float *x, const float *gamma, const float *beta, float *stats, float *out) {
    NormJob job = {.T = T, .B = B, .S = S, .streams = streams, .first = first, .key = key, .threshold = threshold, .scale = scale,
                 .y = y, .x = x, .gamma = gamma, .beta = beta, .stats = stats, .out = out};
    run_team(norm_dropout_residual, &job, threads);
}

/* The way back; `scratch` holds PARTS x 2S floats. */
EXPORT void lstmlm_norm_dropout_residual_backward(int threads, size T, size B, size S, size streams, size first, uint32_t key, uint32_t threshold, float scale,
                           const float *dx, const float *y, const float *gamma, const float *stats, float *dy, float *dgamma,
                           float *dbeta, float *scratch) {
    NormJob job = {.T = T, .B = B, .S = S, .streams = streams, .first = first, .key = key, .threshold = threshold, .scale = scale,
                 .dx = dx, .y = y, .gamma = gamma, .stats = (float *)stats, .out = dy, .dgamma = dgamma, .dbeta = dbeta,
                 .scratch = scratch};
    run_team(norm_dropout_residual_backward, &job, threads);
}

/* Returns the summed nats; `scratch` holds PARTS x V floats; `soft` may be 0. */
EXPORT double lstmlm_loss(int threads, size rows, size V, float scale, float *logits, const float *bias, const int64_t *targets,
                          float *dbias, float *scratch, const float *soft, float weight) {
    Loss job = {.rows = rows, .V = V, .scale = scale, .logits = logits, .bias = bias, .targets = targets, .dbias = dbias,
                .scratch = scratch, .soft = soft, .weight = weight};
    run_team(loss, &job, threads);
    double nats = 0;
    for (int p = 0; p < PARTS; p++) nats += job.nats[p];
    return nats;
}

/* Without ids only db is made. */
EXPORT void lstmlm_scatter(int threads, size rows, size V, size width, const int64_t *ids, const float *da, float *dU, float *db) {
    Scatter job = {rows, V, width, ids, da, dU, db};
    run_team(scatter, &job, threads);
}

EXPORT double lstmlm_square(int threads, size n, float *gradients) {
    Adam job = {.n = n, .gradients = gradients};
    run_team(square, &job, threads);
    double sum = 0;
    for (int p = 0; p < PARTS; p++) sum += job.norms[p];
    return sum;
}

/* One step; returns whether all weights are finite after it. */
EXPORT int lstmlm_adam(int threads, size n, float rate, float beta1, float beta2, float eps, float shrink, float scale, float second,
                       float pull, float *weights, float *gradients, float *means, float *squares, float *average) {
    Adam job = {.n = n, .weights = weights, .gradients = gradients, .means = means, .squares = squares, .rate = rate, .beta1 = beta1,
                .beta2 = beta2, .eps = eps, .shrink = shrink, .scale = scale, .second = second, .pull = pull, .average = average};
    run_team(adam, &job, threads);
    int finite = 1;
    for (int p = 0; p < PARTS; p++) finite &= job.finite[p];
    return finite;
}
