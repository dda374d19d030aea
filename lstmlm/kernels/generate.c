/* Characters one after another, for n streams at once: the whole stack, the readout, the draw, and the next step's input.

   At n = 1 time goes into reading the weights, so they are packed once in the order in which they are read, on request as bytes
   (`bytes.h`). Float sums run over k in order with one rounding for each product, sums of bytes are exact: the bits of a stream
   depend neither on n nor on the number of threads.

   Threads share the units of a layer. Around the layers, `wide` teams share the streams; where there are too few of them, each
   thread does all of that work for itself, which is quicker than to wait for one.

   Letters as everywhere: n streams, V vocabulary, E and S widths of a layer's input and state. Gates lie side by side as f, i, o, N,
   each S wide. */

#include "simd.h"
#include "threads.h"

#include <stdlib.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#define GATES 4
#define STRIP 8 /* vectors side by side: so many sums hide the latency of an addition where there is but one row */
#define PAIR 2  /* blocks of units in a strip of gates */
#define ROWS 96 /* streams whose sums are kept at a time */
#define K_CHUNK 64 /* of a strip at a time where rows share it: 32 KB, which the first cache holds while they pass */
#define AHEAD 4096 /* bytes */
#if VECTOR == 16
#define FEW 3 /* rows that take a whole strip at a time */
#define TALL 12
#else
#define FEW 1
#define TALL 6
#endif
#define SMALL_READOUT (1 << 17) /* bytes of weights that each thread rather reads alone than wait for the others */

typedef long long size;
INLINE size least(size a, size b) { return a < b ? a : b; }
INLINE size blocks(size n, size width) { return (n + width - 1) / width; }

#include "bytes.h"
#include "draw.h"

/* ---- products ---- */

/* out[rows][vecs] += A[rows][K] x panel[K], of which `wide` vectors stand side by side and the first `vecs` are used. */
INLINE void tile(const int rows, const int vecs, const int wide, size K, const float *A, size lda, const float *panel, float *out,
                 size ldo) {
    vec sum[TALL][STRIP];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vecs; v++) sum[r][v] = load(out + r * ldo + v * VECTOR, VECTOR);
    const int line = wide * VECTOR;
    for (size k = 0; k < K; k++) {
        if (rows <= FEW && vecs == wide)
            UNROLL for (int byte = 0; byte < line * 4; byte += 64) __builtin_prefetch((const char *)(panel + k * line) + AHEAD + byte, 0, 3);
        vec a[TALL];
        UNROLL for (int r = 0; r < rows; r++) a[r] = all(A[r * lda + k]);
        UNROLL for (int v = 0; v < vecs; v++) {
            vec w = *(const vec *)(panel + (k * wide + v) * VECTOR);
            UNROLL for (int r = 0; r < rows; r++) sum[r][v] += a[r] * w;
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vecs; v++) store(out + r * ldo + v * VECTOR, sum[r][v], VECTOR);
}

typedef void Tile(size K, const float *A, size lda, const float *panel, float *out, size ldo);
#define TILE(name, rows, vecs, wide)                                                                                       \
    static void name(size K, const float *A, size lda, const float *panel, float *out, size ldo) {                         \
        tile(rows, vecs, wide, K, A, lda, panel, out, ldo);                                                                \
    }
#define WIDTHS(rows)                                                                                                       \
    TILE(few_##rows##_1, rows, 1, 1) TILE(few_##rows##_2, rows, 2, 2)                                                      \
    TILE(few_##rows##_4, rows, 4, 4) TILE(few_##rows##_8, rows, 8, 8)
#define NAMES(rows) {few_##rows##_1, few_##rows##_2, few_##rows##_4, few_##rows##_8}
WIDTHS(1)
#if FEW == 3
WIDTHS(2) WIDTHS(3)
static Tile *const few[FEW][4] = {NAMES(1), NAMES(2), NAMES(3)};
#else
static Tile *const few[FEW][4] = {NAMES(1)};
#endif

#define MANY(rows)                                                                                                         \
    TILE(many_##rows##_1, rows, 1, 1) TILE(many_##rows##_2, rows, 2, 2)                                                    \
    TILE(many_##rows##_4, rows, 2, 4) TILE(many_##rows##_8, rows, 2, 8)
#define MANY_NAMES(rows) {many_##rows##_1, many_##rows##_2, many_##rows##_4, many_##rows##_8}
MANY(1) MANY(2) MANY(3) MANY(4) MANY(5) MANY(6)
#if TALL == 12
MANY(7) MANY(8) MANY(9) MANY(10) MANY(11) MANY(12)
#endif
static Tile *const many[TALL][4] = {MANY_NAMES(1), MANY_NAMES(2), MANY_NAMES(3), MANY_NAMES(4), MANY_NAMES(5), MANY_NAMES(6),
#if TALL == 12
                                    MANY_NAMES(7), MANY_NAMES(8), MANY_NAMES(9), MANY_NAMES(10), MANY_NAMES(11), MANY_NAMES(12),
#endif
};

static int power(int wide) { return wide == 8 ? 3 : wide == 4 ? 2 : wide - 1; }

/* out[rows][wide vectors] += A[rows][K] x strip. */
static void product(size rows, int wide, size K, const float *A, size lda, const float *strip, float *out, size ldo) {
    if (rows <= FEW) {
        few[rows - 1][power(wide)](K, A, lda, strip, out, ldo);
        return;
    }
    size count = blocks(rows, TALL), line = wide * VECTOR;
    for (size k = 0; k < K; k += K_CHUNK) {
        size depth = least(K_CHUNK, K - k);
        for (size b = 0; b < count; b++) {
            size r = rows * b / count, height = rows * (b + 1) / count - r;
            for (int v = 0; v < wide; v += 2)
                many[height - 1][power(wide)](depth, A + r * lda + k, lda, strip + k * line + v * VECTOR, out + r * ldo + v * VECTOR, ldo);
        }
    }
}

/* ---- what is kept between two calls ---- */

typedef struct {
    size E, S;         /* E is 0 where the input is an id */
    float *panels;     /* for each PAIR of blocks of units: E + S rows of PAIR x GATES vectors */
    Bytes *bytes;      /* in their place: two for each block of units, for the input and for H */
    float *table;      /* U + b: a row for each id, or just b */
    float *gamma, *beta;
    float *H[2], *C;   /* n rows each; H of this step and of the one before */
    act *H_bytes[2];   /* n rows of padded(S) */
} Layer;

typedef struct Piece {
    struct Piece *next;
} Piece;

/* Of the streams that a thread dresses, reads out and draws for: all of a team's, or one thread's. */
typedef struct {
    float *x;     /* n rows of a layer's output, dressed */
    act *x_bytes; /* the same, and what one of its integers is worth */
    float *x_worth;
    float *logits;
    long long *ids; /* chosen last */
} Streams;

typedef struct {
    size n, V, layers, widest;
    int in_bytes, residual, direct, threads, fresh;
    int turn; /* which H is the last */
    float eps;
    Layer *layer;
    float *readout; /* strips of columns, each as wide as the rest allows */
    Bytes *readout_bytes;
    float *bias;
    Streams all;
    char *scratch; /* of each thread */
    size scratch_size;
    Barrier barrier;
    Piece *pieces;
} Generator;

/* Memory that goes with the generator. Whole large pages where there are some: a sweep over all weights then misses no address
   translation. */
static void *reserve(Generator *g, size bytes) {
    size whole = bytes >= 1 << 20 ? 1 << 21 : 64, rounded = blocks(bytes + 64 + AHEAD, whole) * whole;
    Piece *piece = aligned_alloc(whole, rounded);
    if (!piece) return 0;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (whole > 64) madvise(piece, rounded, MADV_HUGEPAGE);
#endif
    piece->next = g->pieces;
    g->pieces = piece;
    return (char *)piece + 64;
}

/* ---- packing ---- */

typedef struct {
    size rows[2], columns;
    const float *from[2];
    float *to;
    Bytes *bytes;
} Packing;

/* Rows of U, then rows of W: four gates of PAIR blocks of units side by side. */
static void pack_gates(void *argument, int rank, int threads) {
    const Packing *p = argument;
    const size S = p->columns, K = p->rows[0] + p->rows[1], count = blocks(S, PAIR * VECTOR);
    for (size strip = count * rank / threads; strip < count * (rank + 1) / threads; strip++)
        for (size k = 0; k < K; k++) {
            const float *row = k < p->rows[0] ? p->from[0] + k * GATES * S : p->from[1] + (k - p->rows[0]) * GATES * S;
            for (int v = 0; v < STRIP; v++) {
                size unit = (strip * PAIR + v / GATES) * VECTOR;
                vec x = unit < S ? load(row + v % GATES * S + unit, (int)least(VECTOR, S - unit)) : (vec){0};
                *(vec *)(p->to + ((strip * K + k) * STRIP + v) * VECTOR) = x;
            }
        }
}

/* The same as bytes: of each block of units a panel of U's rows and one of W's, the four gates side by side. */
static void pack_gate_bytes(void *argument, int rank, int threads) {
    const Packing *p = argument;
    const size S = p->columns, count = blocks(S, VECTOR);
    for (size block = count * rank / threads; block < count * (rank + 1) / threads; block++)
        for (int part = 0; part < 2; part++) {
            const size lanes = least(VECTOR, S - block * VECTOR), each[GATES] = {lanes, lanes, lanes, lanes};
            pack_bytes(p->from[part] + block * VECTOR, p->rows[part], GATES * S, S, 1, GATES, each, p->bytes[2 * block + part]);
        }
}

static int strip_width(size vectors_left) { return vectors_left >= 8 ? 8 : vectors_left >= 4 ? 4 : vectors_left >= 2 ? 2 : 1; }

/* The readout is stored (V, S): its transpose, in strips of columns. */
static void pack_readout(void *argument, int rank, int threads) {
    const Packing *p = argument;
    const size V = p->columns, S = p->rows[0], vectors = blocks(V, VECTOR);
    int index = 0;
    for (size first = 0; first < vectors; index++) {
        int wide = strip_width(vectors - first);
        if (index % threads == rank)
            for (size k = 0; k < S; k++)
                for (int v = 0; v < wide; v++)
                    for (int lane = 0; lane < VECTOR; lane++) {
                        size column = (first + v) * VECTOR + lane;
                        p->to[(first * S + k * wide + v) * VECTOR + lane] = column < V ? p->from[0][column * S + k] : 0.f;
                    }
        first += wide;
    }
}

/* The same as bytes, in panels of up to SIDE vectors. */
static void pack_readout_bytes(void *argument, int rank, int threads) {
    const Packing *p = argument;
    const size V = p->columns, S = p->rows[0], count = blocks(V, SIDE * VECTOR);
    for (size index = count * rank / threads; index < count * (rank + 1) / threads; index++) {
        const size first = index * SIDE * VECTOR, vecs = least(SIDE, blocks(V - first, VECTOR));
        size lanes[SIDE];
        for (size v = 0; v < vecs; v++) lanes[v] = least(VECTOR, V - first - v * VECTOR);
        pack_bytes(p->from[0] + first * S, S, 1, VECTOR * S, S, (int)vecs, lanes, p->bytes[index]);
    }
}

/* ---- one step ---- */

typedef struct {
    Generator *g;
    size K;
    const float *noise;
    Choice how;
    long long *ids;
    float *nats;
} Wish;

/* A thread's own memory, and the streams that it cares for. */
typedef struct {
    Streams at;
    int wide; /* whether `at` is everybody's */
    size first, last;
    float *sums;
    double *p;
    int32_t *heap;
    int turn; /* as in the generator, which is told at the end */
} Own;

/* x = norm(H) (+ x) for the thread's streams, as bytes too if wanted; returns where the layer's output now stands. */
static const float *dress(const Generator *g, size index, const Own *own) {
    const Layer *layer = g->layer + index;
    const size S = layer->S;
    const int add = g->residual && index, alike = !layer->gamma && !g->residual;
    const float *whole = layer->H[!own->turn];
    for (size r = own->first; r < own->last; r++) {
        const float *H = whole + r * S;
        float *x = own->at.x + r * S;
        vec shift = (vec){0}, scale = all(1.f);
        if (layer->gamma) {
            vec total = (vec){0}, squares = (vec){0};
            float mean = 0, variance = 0;
            for (size u = 0; u < S; u += VECTOR) total += load(H + u, (int)least(VECTOR, S - u));
            for (int lane = 0; lane < VECTOR; lane++) mean += total[lane];
            mean /= (float)S;
            for (size u = 0; u < S; u += VECTOR) {
                int lanes = (int)least(VECTOR, S - u);
                float gap[VECTOR];
                for (int lane = 0; lane < VECTOR; lane++) gap[lane] = lane < lanes ? mean : 0.f;
                vec d = load(H + u, lanes) - load(gap, VECTOR);
                squares += d * d;
            }
            for (int lane = 0; lane < VECTOR; lane++) variance += squares[lane];
            shift = all(mean), scale = all(1.f / sqrtf(variance / (float)S + g->eps));
        }
        for (size u = 0; u < S && !alike; u += VECTOR) {
            int lanes = (int)least(VECTOR, S - u);
            vec y = load(H + u, lanes);
            if (layer->gamma) y = (y - shift) * scale * load(layer->gamma + u, lanes) + load(layer->beta + u, lanes);
            if (add) y += load(x + u, lanes);
            store(x + u, y, lanes);
        }
        if (g->in_bytes) own->at.x_worth[r] = quantise(alike ? H : x, S, own->at.x_bytes + r * padded(S));
    }
    return alike ? whole : own->at.x;
}

/* One step of a unit from its four pre-activations; returns H. */
INLINE vec update(vec f, vec i, vec o, vec N, float *C, int lanes) {
    vec cell = sigmoid(f) * load(C, lanes) + sigmoid(i) * hyperbolic(N);
    store(C, cell, lanes);
    return sigmoid(o) * hyperbolic(cell);
}

static void run_layer(const Generator *g, const Layer *layer, const float *x, const long long *ids, const Own *own, int rank, int threads) {
    const size S = layer->S, E = layer->E, K = E + S, count = blocks(S, PAIR * VECTOR);
    const float *before = layer->H[own->turn];
    float *H = layer->H[!own->turn];
    for (size strip = count * rank / threads; strip < count * (rank + 1) / threads; strip++)
        for (size row = 0; row < g->n; row += ROWS) {
            size rows = least(ROWS, g->n - row);
            const float *panel = layer->panels + strip * K * STRIP * VECTOR;
            memset(own->sums, 0, rows * STRIP * VECTOR * 4);
            if (E) product(rows, STRIP, E, x + row * E, E, panel, own->sums, STRIP * VECTOR);
            product(rows, STRIP, S, before + row * S, S, panel + E * STRIP * VECTOR, own->sums, STRIP * VECTOR);
            for (int block = 0; block < PAIR; block++) {
                size unit = (strip * PAIR + block) * VECTOR;
                if (unit >= S) continue;
                int lanes = (int)least(VECTOR, S - unit);
                for (size r = row; r < row + rows; r++) {
                    const float *a = layer->table + (E ? 0 : ids[r] * GATES * S) + unit;
                    const float *sums = own->sums + ((r - row) * STRIP + block * GATES) * VECTOR;
                    vec gate[GATES];
                    UNROLL for (int v = 0; v < GATES; v++) gate[v] = load(sums + v * VECTOR, VECTOR) + load(a + v * S, lanes);
                    store(H + r * S + unit, update(gate[0], gate[1], gate[2], gate[3], layer->C + r * S + unit, lanes), lanes);
                }
            }
        }
}

static void run_layer_bytes(const Generator *g, const Layer *layer, const long long *ids, const Own *own, int rank, int threads) {
    const size S = layer->S, E = layer->E, S_line = padded(S), count = blocks(S, VECTOR), heights = blocks(g->n, BYTE_ROWS);
    const act *before = layer->H_bytes[own->turn];
    for (size block = count * rank / threads; block < count * (rank + 1) / threads; block++) {
        const Bytes *of_x = layer->bytes + 2 * block, *of_H = of_x + 1;
        const size unit = block * VECTOR;
        const int lanes = (int)least(VECTOR, S - unit);
        for (size b = 0; b < heights; b++) {
            const size row = g->n * b / heights, rows = g->n * (b + 1) / heights - row;
            ivec sums[2][BYTE_ROWS * GATES];
            if (E) byte_tiles[rows - 1][GATES - 1](E, own->at.x_bytes + row * padded(E), padded(E), of_x->panel, sums[0]);
            byte_tiles[rows - 1][GATES - 1](S, before + row * S_line, S_line, of_H->panel, sums[1]);
            for (size r = row; r < row + rows; r++) {
                const float *a = layer->table + (E ? 0 : ids[r] * GATES * S) + unit;
                vec gate[GATES];
                UNROLL for (int v = 0; v < GATES; v++) {
                    const size at = (r - row) * GATES + v;
                    gate[v] = load(a + v * S, lanes) + worth(sums[1][at], *of_H, v, 1 / 127.f);
                    if (E) gate[v] += worth(sums[0][at], *of_x, v, own->at.x_worth[r]);
                }
                vec H = update(gate[0], gate[1], gate[2], gate[3], layer->C + r * S + unit, lanes);
                store(layer->H[!own->turn] + r * S + unit, H, lanes);
                put_bytes(layer->H_bytes[!own->turn] + r * S_line + unit, H, 127.f, lanes);
            }
        }
    }
}

/* The logits of the thread's streams; with `part` of `parts` some of their columns. */
static void run_readout(const Generator *g, const float *x, const Own *own, float *logits, int part, int parts) {
    const size V = g->V, S = g->layer[g->layers - 1].S, vectors = blocks(V, VECTOR);
    int index = 0;
    for (size first = 0; first < vectors; index++) {
        int wide = strip_width(vectors - first);
        for (size row = own->first; row < own->last && index % parts == part; row += ROWS) {
            size rows = least(ROWS, own->last - row);
            memset(own->sums, 0, rows * wide * VECTOR * 4);
            product(rows, wide, S, x + row * S, S, g->readout + first * S * VECTOR, own->sums, wide * VECTOR);
            for (size r = 0; r < rows; r++)
                for (int v = 0; v < wide; v++) {
                    size column = (first + v) * VECTOR;
                    int lanes = (int)least(VECTOR, V - column);
                    store(logits + (row + r) * V + column, load(own->sums + (r * wide + v) * VECTOR, VECTOR) + load(g->bias + column, lanes),
                          lanes);
                }
        }
        first += wide;
    }
}

static void run_readout_bytes(const Generator *g, const Own *own, float *logits, int part, int parts) {
    const size V = g->V, S = g->layer[g->layers - 1].S, count = blocks(V, SIDE * VECTOR), line = padded(S);
    const size heights = blocks(own->last - own->first, BYTE_ROWS);
    for (size index = count * part / parts; index < count * (part + 1) / parts; index++) {
        const int vecs = (int)least(SIDE, blocks(V - index * SIDE * VECTOR, VECTOR));
        for (size b = 0; b < heights; b++) {
            const size row = own->first + (own->last - own->first) * b / heights;
            const size rows = own->first + (own->last - own->first) * (b + 1) / heights - row;
            ivec sums[BYTE_ROWS * SIDE];
            byte_tiles[rows - 1][vecs - 1](S, own->at.x_bytes + row * line, line, g->readout_bytes[index].panel, sums);
            for (size r = row; r < row + rows; r++)
                for (int v = 0; v < vecs; v++) {
                    const size column = (index * SIDE + v) * VECTOR;
                    const int lanes = (int)least(VECTOR, V - column);
                    vec y = worth(sums[(r - row) * vecs + v], g->readout_bytes[index], v, own->at.x_worth[r]);
                    store(logits + r * V + column, y + load(g->bias + column, lanes), lanes);
                }
        }
    }
}

/* The stack and the readout, from ids to logits. */
static const float *step(Generator *g, const long long *ids, Own *own, int rank, int threads) {
    const float *x = 0;
    for (size l = 0; l < g->layers; l++) {
        if (g->in_bytes) run_layer_bytes(g, g->layer + l, ids, own, rank, threads);
        else run_layer(g, g->layer + l, x, ids, own, rank, threads);
        meet(&g->barrier, threads);
        const int last = l == g->layers - 1;
        if (g->direct && last) break;
        x = dress(g, l, own);
        if (own->wide && !last) meet(&g->barrier, threads);
    }
    own->turn = !own->turn;
    const Layer *last = g->layer + g->layers - 1;
    if (g->direct) return last->H[own->turn];
    const int share = !own->wide && threads > 1 && g->V * last->S * (g->in_bytes ? 1 : 4) > SMALL_READOUT;
    float *logits = own->wide || share ? g->all.logits : own->at.logits;
    if (g->in_bytes) run_readout_bytes(g, own, logits, share ? rank : 0, share ? threads : 1);
    else run_readout(g, x, own, logits, share ? rank : 0, share ? threads : 1);
    if (share) meet(&g->barrier, threads);
    return logits;
}

static Own own_of(const Generator *g, int rank, int threads) {
    char *room = g->scratch + rank * g->scratch_size;
    Own own = {.wide = threads == 1 || g->n >= 2 * threads, .last = g->n, .turn = g->turn};
    own.sums = (float *)room, room += ROWS * STRIP * VECTOR * 4;
    own.p = (double *)room, room += blocks(g->V + VECTOR, 8) * 64;
    own.heap = (int32_t *)room, room += blocks(g->V, 16) * 64;
    if (own.wide) {
        own.at = g->all;
        own.first = g->n * rank / threads, own.last = g->n * (rank + 1) / threads;
        return own;
    }
    own.at.x = (float *)room, room += blocks(g->n * g->widest, 16) * 64;
    own.at.x_bytes = (act *)room, room += g->n * padded(g->widest) * sizeof(act);
    own.at.x_worth = (float *)room, room += blocks(g->n, 16) * 64;
    own.at.logits = (float *)room, room += blocks(g->n * g->V, 16) * 64;
    own.at.ids = (long long *)room;
    memcpy(own.at.ids, g->all.ids, g->n * sizeof *own.at.ids);
    return own;
}

static void generate(void *argument, int rank, int threads) {
    const Wish *wish = argument;
    Generator *g = wish->g;
    const size n = g->n, V = g->V;
    Own own = own_of(g, rank, threads);
    const int fresh = g->fresh;
    const float *logits = g->all.logits;
    meet(&g->barrier, threads); /* nobody changes what another one is still copying */
    for (size k = 0; k < wish->K; k++) {
        if (k || !fresh) logits = step(g, own.at.ids, &own, rank, threads);
        for (size r = own.first; r < own.last; r++) {
            float nats;
            long long id = own.at.ids[r] = draw(&wish->how, logits + r * V, V, wish->noise[k * n + r], own.p, own.heap, &nats);
            if (own.wide || rank == 0) wish->ids[k * n + r] = id, wish->nats[k * n + r] = nats;
        }
        if (own.wide) meet(&g->barrier, threads);
    }
    meet(&g->barrier, threads);
    if (rank == 0) {
        g->fresh = 0, g->turn = own.turn;
        if (logits != g->all.logits) memcpy(g->all.logits, logits, n * V * 4);
        if (own.at.ids != g->all.ids) memcpy(g->all.ids, own.at.ids, n * sizeof *own.at.ids);
    }
}

/* ---- entry points ---- */

#define EXPORT __attribute__((visibility("default")))

EXPORT void lstmlm_generator_team(void *run, void *rank, void *number) {
    team_run = (void (*)(void (*)(void *), void *, unsigned, unsigned))run;
    team_rank = (int (*)(void))rank;
    team_size = (int (*)(void))number;
}

/* Whether products of bytes are quick here. */
EXPORT int lstmlm_generator_bytes(void) { return GROUP > 1; }

EXPORT void lstmlm_generator_free(Generator *g) {
    for (Piece *piece = g->pieces, *next; piece; piece = next) {
        next = piece->next;
        free(piece);
    }
    free(g);
}

static void H_to_bytes(const Generator *g, const Layer *layer) {
    const size S = layer->S, line = padded(S);
    for (size r = 0; r < g->n; r++)
        for (size u = 0; u < S; u += VECTOR) {
            int lanes = (int)least(VECTOR, S - u);
            put_bytes(layer->H_bytes[g->turn] + r * line + u, load(layer->H[g->turn] + r * S + u, lanes), 127.f, lanes);
        }
}

static void *copied(Generator *g, const float *from, size count) {
    float *to = reserve(g, count * 4);
    if (to && from) memcpy(to, from, count * 4);
    if (to && !from) memset(to, 0, count * 4);
    return to;
}

/* Room for a panel of K rows and `vecs` vectors side by side. */
static int reserve_bytes(Generator *g, Bytes *bytes, size K, int vecs) {
    const size width = (size)vecs * VECTOR;
    bytes->panel = reserve(g, padded(K) * width);
    bytes->worth = reserve(g, width * 4), bytes->shift = reserve(g, width * 4);
    return bytes->panel && bytes->worth && bytes->shift;
}

static int reserve_streams(Generator *g) {
    Streams *s = &g->all;
    s->x = reserve(g, g->n * g->widest * 4);
    s->x_bytes = reserve(g, g->n * padded(g->widest) * sizeof(act)), s->x_worth = reserve(g, g->n * 4);
    s->logits = reserve(g, g->n * g->V * 4), s->ids = reserve(g, g->n * sizeof *s->ids);
    if (!s->x || !s->x_bytes || !s->x_worth || !s->logits || !s->ids) return 0;
    memset(s->x_bytes, 0, g->n * padded(g->widest) * sizeof(act));
    memset(s->ids, 0, g->n * sizeof *s->ids);
    return 1;
}

static int reserve_layer(Generator *g, Layer *layer) {
    const size n = g->n, S = layer->S, count = blocks(S, VECTOR), line = padded(S) * sizeof(act);
    int whole = 1;
    if (g->in_bytes) {
        layer->bytes = reserve(g, 2 * count * sizeof *layer->bytes);
        for (size i = 0; layer->bytes && whole && i < 2 * count; i++)
            whole = reserve_bytes(g, layer->bytes + i, i % 2 ? S : layer->E, GATES);
    } else
        layer->panels = reserve(g, blocks(S, PAIR * VECTOR) * (layer->E + S) * STRIP * VECTOR * 4);
    layer->table = reserve(g, (layer->E ? 1 : g->V) * GATES * S * 4);
    for (int turn = 0; turn < 2 && whole; turn++) {
        layer->H[turn] = reserve(g, n * S * 4), layer->H_bytes[turn] = reserve(g, n * line);
        whole = layer->H[turn] && layer->H_bytes[turn];
        if (whole) memset(layer->H_bytes[turn], 0, n * line);
    }
    layer->C = reserve(g, n * S * 4);
    return whole && (layer->panels || layer->bytes) && layer->table && layer->C;
}

/* Makes a generator that owns copies of nothing yet; 0 if there is no memory. */
EXPORT Generator *lstmlm_generator_new(int in_bytes, int threads, size n, size V, size layers, const size *widths, int direct, int residual,
                                       float eps) {
    Generator *g = aligned_alloc(64, blocks(sizeof *g, 64) * 64);
    if (!g) return 0;
    memset(g, 0, sizeof *g);
    g->n = n, g->V = V, g->layers = layers, g->in_bytes = in_bytes, g->direct = direct, g->residual = residual, g->eps = eps, g->fresh = 1;
    g->threads = threads > THREADS_MAX ? THREADS_MAX : threads;
    g->layer = reserve(g, layers * sizeof(Layer));
    if (g->layer) memset(g->layer, 0, layers * sizeof(Layer));
    int whole = g->layer != 0;
    for (size l = 0; l < layers && whole; l++) {
        Layer *layer = g->layer + l;
        layer->S = widths[l], layer->E = l ? widths[l - 1] : 0;
        g->widest = layer->S > g->widest ? layer->S : g->widest;
        whole = reserve_layer(g, layer);
    }
    const size few = least(n, 2 * g->threads); /* that a thread has for itself */
    g->scratch_size = ROWS * STRIP * VECTOR * 4 + blocks(V + VECTOR, 8) * 64 + blocks(V, 16) * 64 + blocks(few * g->widest, 16) * 64 +
                      few * padded(g->widest) * sizeof(act) + blocks(few, 16) * 64 + blocks(few * V, 16) * 64 + few * sizeof(long long);
    g->scratch_size = blocks(g->scratch_size, 4096) * 4096;
    g->scratch = reserve(g, g->threads * g->scratch_size);
    if (whole && g->scratch && reserve_streams(g)) {
        memset(g->scratch, 0, g->threads * g->scratch_size);
        return g;
    }
    lstmlm_generator_free(g);
    return 0;
}

/* Packs a layer: U (E or V, 4S), W (S, 4S), b (4S) or 0, gamma and beta (S) or 0. Returns whether there was memory. */
EXPORT int lstmlm_generator_layer(Generator *g, size index, const float *U, const float *W, const float *b, const float *gamma,
                                  const float *beta) {
    Layer *layer = g->layer + index;
    const size S4 = GATES * layer->S;
    for (size row = 0; row < (layer->E ? 1 : g->V); row++)
        for (size k = 0; k < S4; k++) layer->table[row * S4 + k] = (layer->E ? 0.f : U[row * S4 + k]) + (b ? b[k] : 0.f);
    Packing p = {.rows = {layer->E, layer->S}, .columns = layer->S, .from = {U, W}, .to = layer->panels, .bytes = layer->bytes};
    run_team(g->in_bytes ? pack_gate_bytes : pack_gates, &p, g->threads);
    if (!gamma) return 1;
    layer->gamma = copied(g, gamma, layer->S);
    layer->beta = copied(g, beta, layer->S);
    return layer->gamma && layer->beta;
}

/* Packs the readout: R (V, S), r (V) or 0. Returns whether there was memory. */
EXPORT int lstmlm_generator_readout(Generator *g, const float *R, const float *r) {
    const size V = g->V, S = g->layer[g->layers - 1].S, count = blocks(V, SIDE * VECTOR);
    int whole = 1;
    g->bias = copied(g, r, V);
    if (g->in_bytes) {
        g->readout_bytes = reserve(g, count * sizeof *g->readout_bytes);
        for (size i = 0; g->readout_bytes && whole && i < count; i++)
            whole = reserve_bytes(g, g->readout_bytes + i, S, (int)least(SIDE, blocks(V - i * SIDE * VECTOR, VECTOR)));
    } else
        g->readout = reserve(g, blocks(V, VECTOR) * VECTOR * S * 4);
    if (!whole || !(g->readout || g->readout_bytes) || !g->bias) return 0;
    Packing p = {.rows = {S}, .columns = V, .from = {R}, .to = g->readout, .bytes = g->readout_bytes};
    run_team(g->in_bytes ? pack_readout_bytes : pack_readout, &p, g->threads);
    return 1;
}

/* Copies the state of a layer, (n, S) each, in (`out` 0) or out. */
EXPORT void lstmlm_generator_state(Generator *g, size index, int out, float *H, float *C) {
    const Layer *layer = g->layer + index;
    float *ours[2] = {layer->H[g->turn], layer->C}, *theirs[2] = {H, C};
    for (int part = 0; part < 2; part++)
        memcpy(out ? theirs[part] : ours[part], out ? ours[part] : theirs[part], g->n * layer->S * 4);
    if (!out) H_to_bytes(g, layer);
}

/* Copies the logits that the next draw (`out` 0) is from, or that the last one was from, (n, V). */
EXPORT void lstmlm_generator_logits(Generator *g, int out, float *logits) {
    memcpy(out ? logits : g->all.logits, out ? g->all.logits : logits, g->n * g->V * 4);
    if (!out) g->fresh = 1;
}

typedef struct {
    Generator *g;
    size K;
    const long long *ids;
    long long *same; /* (n) for each thread */
} Reading;

static void read_ids(void *argument, int rank, int threads) {
    const Reading *reading = argument;
    Generator *g = reading->g;
    Own own = own_of(g, rank, threads);
    long long *ids = reading->same + rank * g->n;
    const float *logits = g->all.logits;
    for (size k = 0; k < reading->K; k++) {
        for (size r = 0; r < g->n; r++) ids[r] = reading->ids[k];
        logits = step(g, ids, &own, rank, threads);
    }
    meet(&g->barrier, threads);
    if (rank == 0) {
        g->turn = own.turn, g->fresh = 1;
        if (logits != g->all.logits) memcpy(g->all.logits, logits, g->n * g->V * 4);
    }
}

/* Begins anew: all streams read K ids from the empty state. Returns whether there was memory. */
EXPORT int lstmlm_generator_read(Generator *g, size K, const long long *ids) {
    for (size l = 0; l < g->layers; l++) {
        memset(g->layer[l].H[g->turn], 0, g->n * g->layer[l].S * 4);
        memset(g->layer[l].C, 0, g->n * g->layer[l].S * 4);
        H_to_bytes(g, g->layer + l);
    }
    Reading reading = {g, K, ids, malloc(g->threads * g->n * sizeof *ids)};
    if (!reading.same) return 0;
    run_team(read_ids, &reading, g->threads);
    free(reading.same);
    return 1;
}

#define PIECE_BYTES (1 << 18)

typedef struct {
    const char *from;
    size bytes;
    uint64_t *marks;
} Marking;

/* Each lane is a polynomial with an odd factor: no change of a single word can pass unseen. */
static void mark(void *argument, int rank, int threads) {
    const Marking *m = argument;
    const size count = blocks(m->bytes, PIECE_BYTES);
    for (size piece = count * rank / threads; piece < count * (rank + 1) / threads; piece++) {
        const size begin = piece * PIECE_BYTES, end = least(m->bytes, begin + PIECE_BYTES);
        uint32_t lanes[64] = {0};
        size at = begin;
        for (; at + 256 <= end; at += 256) {
            uint32_t words[64];
            memcpy(words, m->from + at, 256);
            UNROLL for (int i = 0; i < 64; i++) lanes[i] = lanes[i] * 0x9E3779B1u + words[i];
        }
        uint64_t all = 1;
        for (; at < end; at++) all = all * 0x100000001B3u + (uint8_t)m->from[at];
        for (int i = 0; i < 64; i++) all = (all ^ all >> 29) * 0xD6E8FEB86659FD93u + lanes[i];
        m->marks[piece] = all;
    }
}

/* A number that changes with the bytes; `seed` is that of the bytes before, `room` has one word for each 256 KB. */
EXPORT unsigned long long lstmlm_fingerprint(const void *from, size bytes, int threads, unsigned long long seed, uint64_t *room) {
    Marking marking = {from, bytes, room};
    run_team(mark, &marking, threads);
    for (size piece = 0; piece < blocks(bytes, PIECE_BYTES); piece++) seed = (seed ^ seed >> 29) * 0xD6E8FEB86659FD93u + room[piece];
    return seed;
}

/* Draws K times for each stream, with a step of the network before each draw but the first after logits were given.
   At most as many threads as the generator was made for. noise (K, n) in [0, 1), ids (K, n), nats (K, n). `keep` 0 and `share` 1 cut nothing. */
EXPORT void lstmlm_generator_run(Generator *g, int threads, size K, const float *noise, double divisor, size keep, double share,
                                 int greedy, long long *ids, float *nats) {
    Wish wish = {g, K, noise, {divisor, share, keep, greedy}, ids, nats};
    run_team(generate, &wish, threads < g->threads ? threads : g->threads);
}
