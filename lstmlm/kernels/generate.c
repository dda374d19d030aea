/* Characters one after another, for n streams at once: the whole stack, the readout, the draw, and the next step's input.

   At n = 1 time goes into reading the weights, so they are packed once in the order in which they are read, on request as
   float16, widened on load: products and sums are float32 in any case. Every sum runs over k in order with one rounding for each
   product, so the bits of a stream depend neither on n nor on the number of threads.

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
#if VECTOR == 16 || (VECTOR == 8 && defined(__F16C__))
#define HAVE_HALF 1
#else
#define HAVE_HALF 0
#endif

typedef long long size;
INLINE size least(size a, size b) { return a < b ? a : b; }
INLINE size blocks(size n, size width) { return (n + width - 1) / width; }

/* ---- products ---- */

INLINE vec widen(const uint16_t *p) {
#if VECTOR == 16
    return _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)p));
#elif HAVE_HALF
    return _mm256_cvtph_ps(_mm_load_si128((const __m128i *)p));
#else
    return (vec){0};
#endif
}
INLINE vec weight(const int half, const void *panel, size at) {
    return half ? widen((const uint16_t *)panel + at) : *(const vec *)((const float *)panel + at);
}

/* out[rows][vecs] += A[rows][K] x panel[K], of which `wide` vectors stand side by side and the first `vecs` are used. */
INLINE void tile(const int half, const int rows, const int vecs, const int wide, size K, const float *A, size lda, const void *panel,
                 float *out, size ldo) {
    vec sum[TALL][STRIP];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vecs; v++) sum[r][v] = load(out + r * ldo + v * VECTOR, VECTOR);
    const int line = wide * VECTOR * (half ? 2 : 4);
    for (size k = 0; k < K; k++) {
        if (rows <= FEW && vecs == wide)
            UNROLL for (int byte = 0; byte < line; byte += 64) __builtin_prefetch((const char *)panel + k * line + AHEAD + byte, 0, 3);
        vec a[TALL];
        UNROLL for (int r = 0; r < rows; r++) a[r] = all(A[r * lda + k]);
        UNROLL for (int v = 0; v < vecs; v++) {
            vec w = weight(half, panel, (k * wide + v) * VECTOR);
            UNROLL for (int r = 0; r < rows; r++) sum[r][v] += a[r] * w;
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vecs; v++) store(out + r * ldo + v * VECTOR, sum[r][v], VECTOR);
}

typedef void Tile(size K, const float *A, size lda, const void *panel, float *out, size ldo);
#define TILE(name, half, rows, vecs, wide)                                                                                 \
    static void name(size K, const float *A, size lda, const void *panel, float *out, size ldo) {                          \
        tile(half, rows, vecs, wide, K, A, lda, panel, out, ldo);                                                          \
    }
#define WIDTHS(half, rows)                                                                                                 \
    TILE(few_##half##_##rows##_1, half, rows, 1, 1)                                                                        \
    TILE(few_##half##_##rows##_2, half, rows, 2, 2) TILE(few_##half##_##rows##_4, half, rows, 4, 4)                        \
    TILE(few_##half##_##rows##_8, half, rows, 8, 8)
#define NAMES(half, rows) {few_##half##_##rows##_1, few_##half##_##rows##_2, few_##half##_##rows##_4, few_##half##_##rows##_8}
WIDTHS(0, 1) WIDTHS(1, 1)
#if FEW == 3
WIDTHS(0, 2) WIDTHS(0, 3) WIDTHS(1, 2) WIDTHS(1, 3)
static Tile *const few[2][FEW][4] = {{NAMES(0, 1), NAMES(0, 2), NAMES(0, 3)}, {NAMES(1, 1), NAMES(1, 2), NAMES(1, 3)}};
#else
static Tile *const few[2][FEW][4] = {{NAMES(0, 1)}, {NAMES(1, 1)}};
#endif

#define MANY(rows)                                                                                                         \
    TILE(many_##rows##_1, 0, rows, 1, 1) TILE(many_##rows##_2, 0, rows, 2, 2)                                              \
    TILE(many_##rows##_4, 0, rows, 2, 4) TILE(many_##rows##_8, 0, rows, 2, 8)
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

/* out[rows][wide vectors] += A[rows][K] x strip. `chunk` holds K_CHUNK widened rows of the strip. */
static void product(int half, size rows, int wide, size K, const float *A, size lda, const void *strip, float *out, size ldo,
                    float *chunk) {
    if (rows <= FEW) {
        few[half][rows - 1][power(wide)](K, A, lda, strip, out, ldo);
        return;
    }
    size count = blocks(rows, TALL), line = wide * VECTOR;
    for (size k = 0; k < K; k += K_CHUNK) {
        size depth = least(K_CHUNK, K - k);
        const float *now = (const float *)strip + k * line;
        if (half) {
            for (size at = 0; at < depth * line; at += VECTOR) store(chunk + at, widen((const uint16_t *)strip + k * line + at), VECTOR);
            now = chunk;
        }
        for (size b = 0; b < count; b++) {
            size r = rows * b / count, height = rows * (b + 1) / count - r;
            for (int v = 0; v < wide; v += 2)
                many[height - 1][power(wide)](depth, A + r * lda + k, lda, now + v * VECTOR, out + r * ldo + v * VECTOR, ldo);
        }
    }
}

/* ---- what is kept between two calls ---- */

typedef struct {
    size E, S;         /* E is 0 where the input is an id */
    void *panels;      /* for each PAIR of blocks of units: E + S rows of PAIR x GATES vectors */
    float *table;      /* U + b: a row for each id, or just b */
    float *gamma, *beta;
    float *H[2], *C;   /* n rows each; H of this step and of the one before */
} Layer;

typedef struct Piece {
    struct Piece *next;
} Piece;

typedef struct {
    size n, V, layers, widest;
    int half, residual, direct, threads, fresh;
    int turn; /* which H is the last */
    float eps;
    Layer *layer;
    void *readout; /* strips of columns, each as wide as the rest allows */
    float *bias, *logits;
    long long *ids; /* chosen last; n */
    char *scratch;  /* of each thread */
    size scratch_size;
    Barrier barrier;
    Piece *pieces;
} Generator;

/* Memory that goes with the generator. Whole large pages where there are some: a sweep over all weights then misses no address
   translation. */
static void *reserve(Generator *g, size bytes) {
    size whole = bytes >= 1 << 20 ? 1 << 21 : 64, padded = blocks(bytes + 64 + AHEAD, whole) * whole;
    Piece *piece = aligned_alloc(whole, padded);
    if (!piece) return 0;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (whole > 64) madvise(piece, padded, MADV_HUGEPAGE);
#endif
    piece->next = g->pieces;
    g->pieces = piece;
    return (char *)piece + 64;
}

/* ---- packing ---- */

typedef struct {
    int half;
    size rows[2], columns;
    const float *from[2];
    char *to;
} Packing;

INLINE void put(int half, char *to, size at, vec x) {
#if VECTOR == 16
    if (half) {
        _mm256_store_si256((__m256i *)((uint16_t *)to + at), _mm512_cvtps_ph(x, 0));
        return;
    }
#elif HAVE_HALF
    if (half) {
        _mm_store_si128((__m128i *)((uint16_t *)to + at), _mm256_cvtps_ph(x, 0));
        return;
    }
#endif
    *(vec *)((float *)to + at) = x;
}

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
                put(p->half, p->to, ((strip * K + k) * STRIP + v) * VECTOR, x);
            }
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
                for (int v = 0; v < wide; v++) {
                    float lanes[VECTOR];
                    for (int lane = 0; lane < VECTOR; lane++) {
                        size column = (first + v) * VECTOR + lane;
                        lanes[lane] = column < V ? p->from[0][column * S + k] : 0.f;
                    }
                    put(p->half, p->to, (first * S + k * wide + v) * VECTOR, load(lanes, VECTOR));
                }
        first += wide;
    }
}

/* ---- one step ---- */

typedef struct {
    Generator *g;
    size K;
    const float *noise;
    double divisor, share;
    size keep;
    int greedy;
    long long *ids;
    float *nats;
} Wish;

/* A thread's own memory. */
typedef struct {
    float *x, *sums, *chunk;
    double *p;
    int32_t *heap;
    long long id;
    int turn; /* as in the generator, which is told at the end */
} Own;

/* x = norm(H) (+ x), a row for each stream; returns where the layer's output now stands. */
static const float *norm(const Generator *g, size index, const float *H, float *x) {
    const Layer *layer = g->layer + index;
    const size S = layer->S;
    const int add = g->residual && index;
    if (!layer->gamma && !g->residual) return H;
    for (size r = 0; r < g->n; r++, H += S, x += S) {
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
        for (size u = 0; u < S; u += VECTOR) {
            int lanes = (int)least(VECTOR, S - u);
            vec y = load(H + u, lanes);
            if (layer->gamma) y = (y - shift) * scale * load(layer->gamma + u, lanes) + load(layer->beta + u, lanes);
            if (add) y += load(x + u, lanes);
            store(x + u, y, lanes);
        }
    }
    return x - g->n * S;
}

INLINE void update(const float *sums, const float *a, size S, float *C, float *H, int lanes) {
    vec f = sigmoid(load(sums, VECTOR) + load(a, lanes));
    vec i = sigmoid(load(sums + VECTOR, VECTOR) + load(a + S, lanes));
    vec o = sigmoid(load(sums + 2 * VECTOR, VECTOR) + load(a + 2 * S, lanes));
    vec N = hyperbolic(load(sums + 3 * VECTOR, VECTOR) + load(a + 3 * S, lanes));
    vec cell = f * load(C, lanes) + i * N;
    store(C, cell, lanes);
    store(H, o * hyperbolic(cell), lanes);
}

static void run_layer(const Generator *g, const Layer *layer, const float *x, const long long *ids, Own *own, int rank, int threads) {
    const size S = layer->S, E = layer->E, K = E + S, count = blocks(S, PAIR * VECTOR), bytes = g->half ? 2 : 4;
    const float *before = layer->H[own->turn];
    float *H = layer->H[!own->turn];
    for (size strip = count * rank / threads; strip < count * (rank + 1) / threads; strip++)
        for (size row = 0; row < g->n; row += ROWS) {
            size rows = least(ROWS, g->n - row);
            const char *panel = (const char *)layer->panels + strip * K * STRIP * VECTOR * bytes;
            memset(own->sums, 0, rows * STRIP * VECTOR * 4);
            if (E) product(g->half, rows, STRIP, E, x + row * E, E, panel, own->sums, STRIP * VECTOR, own->chunk);
            product(g->half, rows, STRIP, S, before + row * S, S, panel + E * STRIP * VECTOR * bytes, own->sums, STRIP * VECTOR, own->chunk);
            for (int block = 0; block < PAIR; block++) {
                size unit = (strip * PAIR + block) * VECTOR;
                if (unit >= S) continue;
                int lanes = (int)least(VECTOR, S - unit);
                for (size r = row; r < row + rows; r++) {
                    const float *a = layer->table + (E ? 0 : ids[r] * GATES * S) + unit;
                    const float *sums = own->sums + ((r - row) * STRIP + block * GATES) * VECTOR;
                    if (lanes == VECTOR) update(sums, a, S, layer->C + r * S + unit, H + r * S + unit, VECTOR);
                    else update(sums, a, S, layer->C + r * S + unit, H + r * S + unit, lanes);
                }
            }
        }
}

static void run_readout(const Generator *g, const float *x, Own *own, int rank, int threads) {
    const size V = g->V, S = g->layer[g->layers - 1].S, vectors = blocks(V, VECTOR), bytes = g->half ? 2 : 4;
    int index = 0;
    for (size first = 0; first < vectors; index++) {
        int wide = strip_width(vectors - first);
        for (size row = 0; row < g->n && index % threads == rank; row += ROWS) {
            size rows = least(ROWS, g->n - row);
            memset(own->sums, 0, rows * wide * VECTOR * 4);
            product(g->half, rows, wide, S, x + row * S, S, (const char *)g->readout + first * S * VECTOR * bytes, own->sums,
                    wide * VECTOR, own->chunk);
            for (size r = 0; r < rows; r++)
                for (int v = 0; v < wide; v++) {
                    size column = (first + v) * VECTOR;
                    int lanes = (int)least(VECTOR, V - column);
                    store(g->logits + (row + r) * V + column, load(own->sums + (r * wide + v) * VECTOR, VECTOR) + load(g->bias + column, lanes),
                          lanes);
                }
        }
        first += wide;
    }
}

/* The stack and the readout, from ids to logits; all threads meet after each layer. */
static void step(Generator *g, const long long *ids, Own *own, int rank, int threads) {
    const float *x = 0;
    for (size l = 0; l < g->layers; l++) {
        run_layer(g, g->layer + l, x, ids, own, rank, threads);
        meet(&g->barrier, threads);
        if (!g->direct || l < g->layers - 1) x = norm(g, l, g->layer[l].H[!own->turn], own->x);
    }
    if (!g->direct)
        run_readout(g, x, own, rank, threads);
    else if (rank == 0)
        memcpy(g->logits, g->layer[g->layers - 1].H[!own->turn], g->n * g->V * 4);
    meet(&g->barrier, threads);
    own->turn = !own->turn;
}

/* ---- the draw: the rules of `sampler.distribution` and `sampler.draw` ---- */

/* Whether a is taken before b: it is likelier, or as likely and its id is smaller. */
INLINE int before(const double *p, int32_t a, int32_t b) { return p[a] > p[b] || (p[a] == p[b] && a < b); }

static void sink(const double *p, int32_t *heap, size count, size at) {
    int32_t moving = heap[at];
    for (size child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && before(p, heap[child + 1], heap[child])) child++;
        if (!before(p, heap[child], moving)) break;
        heap[at] = heap[child];
    }
    heap[at] = moving;
}

/* Sets to 0 what is cut. */
static void cut(double *p, int32_t *heap, size V, size keep, double share) {
    if (!keep || keep > V) keep = V;
    for (size v = 0; v < V; v++) heap[v] = (int32_t)v;
    for (size at = V / 2; at-- > 0;) sink(p, heap, V, at);
    /* The taken ones gather at the end of the heap's memory, the likeliest last. */
    size left = V;
    double taken = 0;
    while (left > V - keep) {
        int32_t likeliest = heap[0];
        if (keep == V && left < V && taken >= share) break; /* without top k the shares are of all */
        taken += p[likeliest];
        heap[0] = heap[--left];
        sink(p, heap, left, 0);
        heap[left] = likeliest;
    }
    if (keep < V && share < 1) {
        double upto = p[heap[V - 1]] / taken;
        size stay = 1;
        while (stay < keep && upto < share) upto += p[heap[V - 1 - stay++]] / taken;
        for (size at = V - keep; at < V - stay; at++) p[heap[at]] = 0;
    }
    for (size at = 0; at < left; at++) p[heap[at]] = 0;
}

static long long draw(const Wish *wish, const float *logits, double noise, Own *own, float *nats) {
    const size V = wish->g->V;
    size best = 0;
    for (size v = 1; v < V; v++)
        if (logits[v] > logits[best]) best = v;
    const float top = logits[best];
    long long id = (long long)best;
    double sum = 0;
    if (!wish->greedy) {
        double *p = own->p, upto = 0;
        for (size v = 0; v < V; v++) sum += p[v] = exp(((double)logits[v] - top) / wish->divisor);
        for (size v = 0; v < V; v++) p[v] /= sum;
        if ((wish->keep && wish->keep < V) || wish->share < 1) cut(p, own->heap, V, wish->keep, wish->share);
        for (size v = 0; v < V; v++) upto += p[v];
        const double aim = noise * upto;
        id = V - 1;
        while (id > 0 && !(p[id] > 0)) id--; /* rounding may leave the aim above all: then the last that is possible */
        if (!(p[id] > 0)) id = V - 1;
        upto = 0;
        for (size v = 0; v < id; v++)
            if ((upto += p[v]) > aim) {
                id = v;
                break;
            }
    }
    if (wish->greedy || wish->divisor != 1) {
        vec total = (vec){0};
        for (size v = 0; v < V; v += VECTOR) {
            int lanes = (int)least(VECTOR, V - v);
            vec two_n, part = exp_parts(at_least(load(logits + v, lanes) - top, -87.f), &two_n), e = two_n + two_n * part;
            if (lanes == VECTOR) total += e;
            else for (int lane = 0; lane < lanes; lane++) total[lane] += e[lane];
        }
        sum = 0;
        for (int lane = 0; lane < VECTOR; lane++) sum += total[lane];
    }
    *nats = (float)(log(sum) - ((double)logits[id] - top));
    return id;
}

static Own own_of(const Generator *g, int rank) {
    Own own = {.x = (float *)(g->scratch + rank * g->scratch_size), .id = g->ids[0], .turn = g->turn};
    own.sums = own.x + blocks(g->n * g->widest, 16) * 16; /* all parts begin at a line of the cache */
    own.chunk = own.sums + ROWS * STRIP * VECTOR;
    own.p = (double *)(own.chunk + K_CHUNK * STRIP * VECTOR);
    own.heap = (int32_t *)(own.p + g->V);
    return own;
}

static void generate(void *argument, int rank, int threads) {
    const Wish *wish = argument;
    Generator *g = wish->g;
    const size n = g->n;
    Own own = own_of(g, rank);
    const int fresh = g->fresh;
    for (size k = 0; k < wish->K; k++) {
        if (k || !fresh) step(g, n == 1 ? &own.id : g->ids, &own, rank, threads);
        float nats;
        if (n == 1) { /* every thread for itself: quicker than to wait for one */
            own.id = draw(wish, g->logits, wish->noise[k], &own, &nats);
            if (rank == 0) wish->ids[k] = own.id, wish->nats[k] = nats;
            continue;
        }
        for (size r = n * rank / threads; r < n * (rank + 1) / threads; r++) {
            wish->ids[k * n + r] = g->ids[r] = draw(wish, g->logits + r * g->V, wish->noise[k * n + r], &own, &nats);
            wish->nats[k * n + r] = nats;
        }
        meet(&g->barrier, threads);
    }
    meet(&g->barrier, threads);
    if (rank == 0) {
        g->fresh = 0, g->turn = own.turn;
        if (n == 1) g->ids[0] = own.id;
    }
}

/* ---- entry points ---- */

#define EXPORT __attribute__((visibility("default")))

EXPORT void lstmlm_generator_team(void *run, void *rank, void *number) {
    team_run = (void (*)(void (*)(void *), void *, unsigned, unsigned))run;
    team_rank = (int (*)(void))rank;
    team_size = (int (*)(void))number;
}

/* Whether weights can be kept as float16. */
EXPORT int lstmlm_generator_half(void) { return HAVE_HALF; }

EXPORT void lstmlm_generator_free(Generator *g) {
    for (Piece *piece = g->pieces, *next; piece; piece = next) {
        next = piece->next;
        free(piece);
    }
    free(g);
}

static void *copied(Generator *g, const float *from, size count) {
    float *to = reserve(g, count * 4);
    if (to && from) memcpy(to, from, count * 4);
    if (to && !from) memset(to, 0, count * 4);
    return to;
}

/* Makes a generator that owns copies of nothing yet; 0 if there is no memory. */
EXPORT Generator *lstmlm_generator_new(int half, int threads, size n, size V, size layers, const size *widths, int direct, int residual,
                                       float eps) {
    Generator *g = aligned_alloc(64, blocks(sizeof *g, 64) * 64);
    if (!g) return 0;
    memset(g, 0, sizeof *g);
    g->n = n, g->V = V, g->layers = layers, g->half = half, g->direct = direct, g->residual = residual, g->eps = eps, g->fresh = 1;
    g->threads = threads > THREADS_MAX ? THREADS_MAX : threads;
    g->layer = reserve(g, layers * sizeof(Layer));
    if (g->layer) memset(g->layer, 0, layers * sizeof(Layer));
    int whole = g->layer != 0;
    for (size l = 0; l < layers && whole; l++) {
        Layer *layer = g->layer + l;
        layer->S = widths[l], layer->E = l ? widths[l - 1] : 0;
        g->widest = layer->S > g->widest ? layer->S : g->widest;
        layer->panels = reserve(g, blocks(layer->S, PAIR * VECTOR) * (layer->E + layer->S) * STRIP * VECTOR * (half ? 2 : 4));
        layer->table = reserve(g, (l ? 1 : V) * GATES * layer->S * 4);
        layer->H[0] = reserve(g, n * layer->S * 4), layer->H[1] = reserve(g, n * layer->S * 4), layer->C = reserve(g, n * layer->S * 4);
        whole = layer->panels && layer->table && layer->H[0] && layer->H[1] && layer->C;
    }
    size floats = blocks(n * g->widest, 16) * 16 + ROWS * STRIP * VECTOR + K_CHUNK * STRIP * VECTOR;
    g->scratch_size = blocks(floats * 4 + V * 12, 4096) * 4096;
    g->scratch = reserve(g, g->threads * g->scratch_size);
    g->ids = reserve(g, n * sizeof *g->ids);
    g->logits = reserve(g, n * V * 4);
    if (whole && g->scratch && g->ids && g->logits) {
        memset(g->ids, 0, n * sizeof *g->ids);
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
    Packing p = {.half = g->half, .rows = {layer->E, layer->S}, .columns = layer->S, .from = {U, W}, .to = layer->panels};
    run_team(pack_gates, &p, g->threads);
    if (!gamma) return 1;
    layer->gamma = copied(g, gamma, layer->S);
    layer->beta = copied(g, beta, layer->S);
    return layer->gamma && layer->beta;
}

/* Packs the readout: R (V, S), r (V) or 0. Returns whether there was memory. */
EXPORT int lstmlm_generator_readout(Generator *g, const float *R, const float *r) {
    const size S = g->layer[g->layers - 1].S;
    g->readout = reserve(g, blocks(g->V, VECTOR) * VECTOR * S * (g->half ? 2 : 4));
    g->bias = copied(g, r, g->V);
    if (!g->readout || !g->bias) return 0;
    Packing p = {.half = g->half, .rows = {S}, .columns = g->V, .from = {R}, .to = g->readout};
    run_team(pack_readout, &p, g->threads);
    return 1;
}

/* Copies the state of a layer, (n, S) each, in (`out` 0) or out. */
EXPORT void lstmlm_generator_state(Generator *g, size index, int out, float *H, float *C) {
    const Layer *layer = g->layer + index;
    float *ours[2] = {layer->H[g->turn], layer->C}, *theirs[2] = {H, C};
    for (int part = 0; part < 2; part++)
        memcpy(out ? theirs[part] : ours[part], out ? ours[part] : theirs[part], g->n * layer->S * 4);
}

/* Copies the logits that the next draw (`out` 0) is from, or that the last one was from, (n, V). */
EXPORT void lstmlm_generator_logits(Generator *g, int out, float *logits) {
    memcpy(out ? logits : g->logits, out ? g->logits : logits, g->n * g->V * 4);
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
    Own own = own_of(g, rank);
    long long *ids = reading->same + rank * g->n;
    for (size k = 0; k < reading->K; k++) {
        for (size r = 0; r < g->n; r++) ids[r] = reading->ids[k];
        step(g, ids, &own, rank, threads);
    }
    meet(&g->barrier, threads);
    if (rank == 0) g->turn = own.turn, g->fresh = 1;
}

/* Begins anew: all streams read K ids from the empty state. Returns whether there was memory. */
EXPORT int lstmlm_generator_read(Generator *g, size K, const long long *ids) {
    for (size l = 0; l < g->layers; l++) {
        memset(g->layer[l].H[g->turn], 0, g->n * g->layer[l].S * 4);
        memset(g->layer[l].C, 0, g->n * g->layer[l].S * 4);
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
    Wish wish = {g, K, noise, divisor, share, keep, greedy, ids, nats};
    run_team(generate, &wish, threads < g->threads ? threads : g->threads);
}
