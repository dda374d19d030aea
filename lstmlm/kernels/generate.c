/* Characters one after another, for n streams at once: the whole stack, the readout, the draw, and the next step's input.

   At n = 1 time goes into reading the weights, so they are packed once in the order in which they are read, as floats or as bytes
   (`products.h`). The bits of a stream depend neither on n nor on the number of threads.

   Threads share the units of a layer. Around the layers, `wide` teams share the streams; where there are too few of them, each
   thread does all of that work for itself, which is quicker than to wait for one. Several networks that are read as one are
   generators in a chain: each takes the step, and the first one draws from the mean of their probabilities.

   Letters as everywhere: n streams, V vocabulary, E and S widths of a layer's input and state. Gates lie side by side as f, i, o, N,
   each S wide. A generator's N is another one: the pairs of ids that have rows of their own. */

#include "simd.h"
#include "threads.h"

#include <stdlib.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(_WIN32)
#include <malloc.h>
#define aligned_memory(alignment, bytes) _aligned_malloc(bytes, alignment)
#define free_aligned _aligned_free
#else
#define aligned_memory aligned_alloc
#define free_aligned free
#endif

#define NETWORKS_MAX 64
#define SMALL_READOUT (1 << 17) /* bytes of weights that each thread rather reads alone than wait for the others */

#include "products.h"
#include "draw.h"

/* ---- what is kept between two calls ---- */

typedef struct {
    size E, S;         /* E is 0 where the input is an id */
    Panel *panels;     /* two for each block of units, for the input and for H */
    float *table;      /* U + b: a row for each id and pair, or just b */
    float *gamma, *beta;
    float *scale;      /* 1 + M: a row for each id and pair, by which H is multiplied in front of its panels; or 0 */
    Rows H[2];         /* n rows each; H of this step and of the one before */
    float *C;          /* n rows */
} Layer;

typedef struct Piece {
    struct Piece *next;
} Piece;

/* What a stream has read that matters for what it reads next. */
typedef struct {
    long long matched; /* how much of a separator */
    long long last;    /* the id before; -1: none, or one that ended a document */
} Seen;

/* What belongs to the streams that a thread normalises, reads out and draws for: all of a team's, or one thread's. */
typedef struct {
    Rows x; /* n rows of a layer's output, normed */
    float *logits;
    long long *ids; /* rows of the tables that come next; V + N where a document ends */
    Seen *seen;
} Streams;

typedef struct Generator {
    size n, V, N, layers, widest;
    size few; /* streams that a thread has memory of its own for */
    size capacity; /* n as it was made with */
    int in_bytes, residual, direct, multiplicative, threads, fresh;
    int turn; /* which H is the last */
    float eps;
    int separators;             /* how many ids part documents; 0: none do */
    const long long *separator; /* they ... */
    const int *border;          /* ... and of the first so many of them, how many at the end are the first ones again, at most */
    long long *pairs; /* first id x V + second, ascending */
    Layer *layer;
    Panel *readout; /* of up to SIDE vectors of columns each */
    Panel *rest;    /* of the readout as bytes: what rounding left, or 0 */
    float *bias;
    Streams all;
    char *scratch; /* of each thread */
    size scratch_size;
    Barrier barrier;
    Piece *pieces;
    struct Generator *next; /* of several networks that are read as one */
} Generator;

/* Memory that goes with the generator. Whole large pages where there are some: a sweep over all weights then misses no address
   translation. */
static void *reserve(Generator *g, size bytes) {
    size whole = bytes >= 1 << 20 ? 1 << 21 : 64, rounded = blocks(bytes + 64 + AHEAD, whole) * whole;
    Piece *piece = aligned_memory(whole, rounded);
    if (!piece) return 0;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (whole > 64) madvise(piece, rounded, MADV_HUGEPAGE);
#endif
    piece->next = g->pieces;
    g->pieces = piece;
    return (char *)piece + 64;
}

/* Whether a separator ends with an id (Knuth, Morris and Pratt 1977). */
INLINE int ends_with(const Generator *g, long long *matched, long long id) {
    long long m = *matched;
    while (m && g->separator[m] != id) m = g->border[m];
    m += g->separator[m] == id;
    const int ends = m == g->separators;
    *matched = ends ? g->border[m] : m;
    return ends;
}

/* The row of an id after another one: that of the pair, or else of the id alone. */
INLINE long long row_of_pair(const Generator *g, long long last, long long id) {
    const long long wanted = last * g->V + id;
    size low = 0, high = g->N;
    while (low < high) {
        const size middle = (low + high) / 2;
        if (g->pairs[middle] < wanted) low = middle + 1;
        else high = middle;
    }
    return low < g->N && g->pairs[low] == wanted ? g->V + low : id;
}

/* Which row of the tables a stream reads where the next id is `id`; V + N where a separator ends with it. */
INLINE long long row_read(const Generator *g, Seen *seen, long long id) {
    const int ends = g->separators && ends_with(g, &seen->matched, id);
    const long long row = ends ? g->V + g->N : g->N ? row_of_pair(g, seen->last, id) : id;
    seen->last = ends ? -1 : id;
    return row;
}

/* The same for K ids of each of n streams, (K, n), in their place. */
static void find_rows(Generator *g, size K, size n, long long *ids) {
    for (size k = 0; k < K && (g->separators || g->N); k++)
        for (size r = 0; r < n; r++) ids[k * n + r] = row_read(g, g->all.seen + r, ids[k * n + r]);
}

/* ---- packing ---- */

typedef struct {
    int in_bytes;
    size rows[2], columns;
    const float *from[2];
    Panel *panels;
} Packing;

/* Of each block of units a panel of U's rows and one of W's, the four gates side by side. */
static void pack_gates(void *argument, int rank, int threads) {
    const Packing *p = argument;
    const size S = p->columns, count = blocks(S, VECTOR);
    for (size block = count * rank / threads; block < count * (rank + 1) / threads; block++)
        for (int part = 0; part < 2; part++) {
            const int lanes = (int)least(VECTOR, S - block * VECTOR), each[GATES] = {lanes, lanes, lanes, lanes};
            pack(p->in_bytes, p->from[part] + block * VECTOR, p->rows[part], GATES * S, S, 1, GATES, each, p->panels[2 * block + part]);
        }
}

/* The readout is stored (V, S): its transpose. */
static void pack_readout(void *argument, int rank, int threads) {
    const Packing *p = argument;
    const size V = p->columns, S = p->rows[0], count = blocks(V, SIDE * VECTOR);
    for (size index = count * rank / threads; index < count * (rank + 1) / threads; index++) {
        const size first = index * SIDE * VECTOR, vecs = least(SIDE, blocks(V - first, VECTOR));
        int lanes[SIDE];
        for (size v = 0; v < vecs; v++) lanes[v] = (int)least(VECTOR, V - first - v * VECTOR);
        pack(p->in_bytes, p->from[0] + first * S, S, 1, VECTOR * S, S, (int)vecs, lanes, p->panels[index]);
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
} Request;

/* A thread's own memory, and the streams that it cares for. */
typedef struct {
    Streams at;
    int wide; /* whether `at` is everybody's */
    size first, last;
    double *p;
    int32_t *heap;
    float *mean;
    Rows m; /* what a multiplicative layer reads, of all streams */
    int turn; /* as in the generator, which is told at the end */
} Own;

/* x = norm(H) (+ x) for the thread's streams; returns where the layer's output now stands. */
static Rows norm_residual(const Generator *g, size index, const Own *own) {
    const Layer *layer = g->layer + index;
    const size S = layer->S;
    const int add = g->residual && index, alike = !layer->gamma && !g->residual;
    Rows normed = own->at.x;
    if (alike) normed.x = layer->H[!own->turn].x;
    for (size r = own->first; r < own->last; r++) {
        const float *H = layer->H[!own->turn].x + r * S;
        float *x = own->at.x.x + r * S;
        vec shift = (vec){0}, scale = all(1.f);
        if (layer->gamma) {
            vec total[LANES / VECTOR] = {0}, squares[LANES / VECTOR] = {0};
            for (size u = 0; u < S; u += VECTOR) total[u % LANES / VECTOR] += load(H + u, (int)least(VECTOR, S - u));
            const float mean = sum_lanes(total) / (float)S;
            for (size u = 0; u < S; u += VECTOR) {
                int lanes = (int)least(VECTOR, S - u);
                vec d = load(H + u, lanes) - mean;
                if (lanes < VECTOR)
                    for (int lane = lanes; lane < VECTOR; lane++) d[lane] = 0;
                squares[u % LANES / VECTOR] = fused(d, d, squares[u % LANES / VECTOR]);
            }
            const float variance = sum_lanes(squares);
            shift = all(mean), scale = all(1.f / sqrtf(variance / (float)S + g->eps));
        }
        for (size u = 0; u < S && !alike; u += VECTOR) {
            int lanes = (int)least(VECTOR, S - u);
            vec y = load(H + u, lanes);
            if (layer->gamma) y = fused((y - shift) * scale, load(layer->gamma + u, lanes), load(layer->beta + u, lanes));
            if (add) y += load(x + u, lanes);
            store(x + u, y, lanes);
        }
        if (g->in_bytes) normed.worth[r] = quantise(normed.x + r * S, S, normed.bytes + r * row_of(S));
    }
    return normed;
}

/* One step of a unit from its four pre-activations; returns H. */
INLINE vec update(vec f, vec i, vec o, vec N, float *C, int lanes) {
    vec cell = fused(sigmoid(f), load(C, lanes), sigmoid(i) * hyperbolic(N));
    store(C, cell, lanes);
    return sigmoid(o) * hyperbolic(cell);
}

/* Rows of H, each multiplied by what its id has. Every thread does so for all of them: it is S of the 4 S S products of a stream. */
static const Rows *multiplied(const Generator *g, const Layer *layer, const Rows *H, const long long *ids, const Rows *m) {
    const size S = layer->S;
    for (size r = 0; r < g->n; r++) {
        const float *scale = layer->scale + (ids[r] == g->V + g->N ? 0 : ids[r]) * S; /* at an end nothing that is read counts */
        for (size u = 0; u < S; u += VECTOR) {
            const int lanes = (int)least(VECTOR, S - u);
            store(m->x + r * S + u, load(scale + u, lanes) * load(H->x + r * S + u, lanes), lanes);
        }
        if (g->in_bytes) m->worth[r] = quantise(m->x + r * S, S, m->bytes + r * row_of(S));
    }
    return m;
}

static void run_layer(const Generator *g, const Layer *layer, const Rows *x, const long long *ids, const Own *own, int rank, int threads) {
    const size S = layer->S, E = layer->E, count = blocks(S, VECTOR), heights = blocks(g->n, tile_rows[g->in_bytes]);
    const Rows *before = layer->H + own->turn, *after = layer->H + !own->turn;
    if (layer->scale) before = multiplied(g, layer, before, ids, &own->m);
    for (size block = count * rank / threads; block < count * (rank + 1) / threads; block++) {
        const Panel *of_x = layer->panels + 2 * block, *of_H = of_x + 1;
        const size unit = block * VECTOR;
        const int lanes = (int)least(VECTOR, S - unit);
        for (size b = 0; b < heights; b++) {
            const size row = g->n * b / heights, rows = g->n * (b + 1) / heights - row;
            vec from_x[TILE_ROWS * GATES], from_H[TILE_ROWS * GATES];
            if (E) tiles[g->in_bytes][rows - 1][GATES - 1](E, x, row, of_x, from_x);
            tiles[g->in_bytes][rows - 1][GATES - 1](S, before, row, of_H, from_H);
            for (size r = row; r < row + rows; r++) {
                const int ends = ids[r] == g->V + g->N; /* a document: the state after it is empty, whatever is read */
                const float *a = layer->table + (E || ends ? 0 : ids[r] * GATES * S) + unit;
                vec gate[GATES];
                UNROLL for (int v = 0; v < GATES; v++) {
                    gate[v] = load(a + v * S, lanes) + from_H[(r - row) * GATES + v];
                    if (E) gate[v] += from_x[(r - row) * GATES + v];
                }
                vec H = update(gate[0], gate[1], gate[2], gate[3], layer->C + r * S + unit, lanes);
                if (ends) H = (vec){0}, store(layer->C + r * S + unit, H, lanes);
                store(after->x + r * S + unit, H, lanes);
                if (g->in_bytes) put_bytes(after->bytes + r * row_of(S) + unit, S, H, top_of(S), lanes);
            }
        }
    }
}

/* The logits of the thread's streams; of `parts` of their columns one. */
static void run_readout(const Generator *g, const Rows *x, const Own *own, float *logits, int part, int parts) {
    const size V = g->V, S = g->layer[g->layers - 1].S, count = blocks(V, SIDE * VECTOR), streams = own->last - own->first;
    const size heights = blocks(streams, tile_rows[g->in_bytes]);
    for (size index = count * part / parts; index < count * (part + 1) / parts; index++) {
        const int vecs = (int)least(SIDE, blocks(V - index * SIDE * VECTOR, VECTOR));
        for (size b = 0; b < heights; b++) {
            const size row = own->first + streams * b / heights, rows = own->first + streams * (b + 1) / heights - row;
            vec y[TILE_ROWS * SIDE];
            tiles[g->in_bytes][rows - 1][vecs - 1](S, x, row, g->readout + index, y);
            if (g->rest) {
                vec more[TILE_ROWS * SIDE];
                tiles[1][rows - 1][vecs - 1](S, x, row, g->rest + index, more);
                for (int i = 0; i < rows * vecs; i++) y[i] += more[i];
            }
            for (size r = row; r < row + rows; r++)
                for (int v = 0; v < vecs; v++) {
                    const size column = (index * SIDE + v) * VECTOR;
                    const int lanes = (int)least(VECTOR, V - column);
                    store(logits + r * V + column, y[(r - row) * vecs + v] + load(g->bias + column, lanes), lanes);
                }
        }
    }
}

/* Whether each thread that shares no streams reads out all logits for itself. */
static int reads_alone(const Generator *g) {
    return !g->direct && panel_size(g->in_bytes, g->layer[g->layers - 1].S, blocks(g->V, VECTOR)) <= SMALL_READOUT;
}

/* The stack and, if they are asked for, the logits. */
static const float *step(Generator *g, const long long *ids, Own *own, int rank, int threads, int to_logits) {
    Rows x = {0};
    for (size l = 0; l < g->layers; l++) {
        run_layer(g, g->layer + l, &x, ids, own, rank, threads);
        meet(&g->barrier, threads);
        const int last = l == g->layers - 1;
        if (last && (g->direct || !to_logits)) break;
        x = norm_residual(g, l, own);
        if (own->wide && !last) meet(&g->barrier, threads);
    }
    own->turn = !own->turn;
    const Layer *last = g->layer + g->layers - 1;
    if (!to_logits) return 0;
    if (g->direct) return last->H[own->turn].x;
    const int share = !own->wide && !reads_alone(g);
    float *logits = own->wide || share ? g->all.logits : own->at.logits;
    run_readout(g, &x, own, logits, share ? rank : 0, share ? threads : 1);
    if (share) meet(&g->barrier, threads);
    return logits;
}

/* Says where in a thread's scratch what lies; returns how many bytes that is. All is written before it is read, but for the ends of rows
   of bytes, which meet weights of 0. */
static size lay_out(const Generator *g, char *scratch, Own *own) {
    char *at = scratch;
    own->p = (double *)at, at += blocks(g->V + VECTOR, 8) * 64;
    own->heap = (int32_t *)at, at += blocks(g->V, 16) * 64;
    own->mean = (float *)at, at += blocks(g->V, 16) * 64;
    own->at.x.x = (float *)at, at += blocks(g->few * g->widest, 16) * 64;
    own->at.x.bytes = (act *)at, at += g->few * row_of(g->widest) * sizeof(act);
    own->at.x.worth = (float *)at, at += blocks(g->few, 16) * 64;
    own->at.logits = (float *)at, at += reads_alone(g) ? blocks(g->few * g->V, 16) * 64 : 0;
    own->at.ids = (long long *)at, at += blocks(g->few, 8) * 64;
    own->at.seen = (Seen *)at, at += blocks(g->few, 4) * 64;
    const size S = g->multiplicative ? g->layer->S : 0;
    own->m.x = (float *)at, at += blocks(g->capacity * S, 16) * 64;
    own->m.worth = (float *)at, at += blocks(g->capacity, 16) * 64;
    own->m.bytes = (act *)at, at += S ? g->capacity * row_of(S) * sizeof(act) : 0;
    return at - scratch;
}

static Own own_of(const Generator *g, int rank, int threads) {
    Own own = {.wide = threads == 1 || g->n >= 2 * threads, .last = g->n, .turn = g->turn};
    lay_out(g, g->scratch + rank * g->scratch_size, &own);
    if (own.wide) {
        own.at = g->all;
        own.first = g->n * rank / threads, own.last = g->n * (rank + 1) / threads;
        return own;
    }
    memcpy(own.at.ids, g->all.ids, g->n * sizeof *own.at.ids);
    memcpy(own.at.seen, g->all.seen, g->n * sizeof *own.at.seen);
    return own;
}

static void generate(void *argument, int rank, int threads) {
    const Request *request = argument;
    Generator *g = request->g;
    const size n = g->n, V = g->V;
    Own each[NETWORKS_MAX], *own = each;
    const float *logits[NETWORKS_MAX];
    int networks = 0;
    for (const Generator *one = g; one; one = one->next, networks++)
        each[networks] = own_of(one, rank, threads), logits[networks] = one->all.logits;
    const int fresh = g->fresh;
    meet(&g->barrier, threads); /* nobody changes what another one is still copying */
    for (size k = 0; k < request->K; k++) {
        int network = 0;
        for (Generator *one = g; one && (k || !fresh); one = one->next, network++)
            logits[network] = step(one, own->at.ids, each + network, rank, threads, 1);
        for (size r = own->first; r < own->last; r++) {
            const float *row = networks > 1 ? average(logits, networks, r, V, own->p, own->mean) : logits[0] + r * V;
            float nats;
            const long long id = draw(&request->how, row, V, request->noise[k * n + r], own->p, own->heap, &nats);
            own->at.ids[r] = row_read(g, own->at.seen + r, id);
            if (own->wide || rank == 0) request->ids[k * n + r] = id, request->nats[k * n + r] = nats;
        }
        if (own->wide) meet(&g->barrier, threads);
    }
    meet(&g->barrier, threads);
    if (rank == 0) {
        int network = 0;
        for (Generator *one = g; one; one = one->next, network++) {
            one->fresh = 0, one->turn = each[network].turn;
            if (logits[network] != one->all.logits) memcpy(one->all.logits, logits[network], n * V * 4);
        }
        if (own->at.ids != g->all.ids) {
            memcpy(g->all.ids, own->at.ids, n * sizeof *own->at.ids);
            memcpy(g->all.seen, own->at.seen, n * sizeof *own->at.seen);
        }
    }
}

/* ---- entry points ---- */

/* Whether products of bytes are quick here. */
EXPORT int lstmlm_generator_bytes(void) { return GROUP > 1; }

EXPORT void lstmlm_generator_free(Generator *g) {
    for (Piece *piece = g->pieces, *next; piece; piece = next) {
        next = piece->next;
        free_aligned(piece);
    }
    free_aligned(g);
}

static void H_to_bytes(const Generator *g, const Layer *layer) {
    const size S = layer->S;
    const Rows *H = layer->H + g->turn;
    for (size r = 0; r < g->n && g->in_bytes; r++)
        for (size u = 0; u < S; u += VECTOR) {
            int lanes = (int)least(VECTOR, S - u);
            put_bytes(H->bytes + r * row_of(S) + u, S, load(H->x + r * S + u, lanes), top_of(S), lanes);
        }
}

static void *copied(Generator *g, const float *from, size count) {
    float *to = reserve(g, count * 4);
    if (to && from) memcpy(to, from, count * 4);
    if (to && !from) memset(to, 0, count * 4);
    return to;
}

/* Memory for `count` panels of up to SIDE vectors, `vectors` in all; the K of those at even and odd places. All weights are in one
   piece, so that it is of large pages. */
static Panel *reserve_panels(Generator *g, size count, size vectors, size even, size odd) {
    const size each = blocks(panel_size(g->in_bytes, even > odd ? even : odd, SIDE), 64) * 64, width = SIDE * VECTOR;
    Panel *panels = reserve(g, count * sizeof *panels);
    char *weights = reserve(g, vectors * (each / SIDE));
    float *worth = reserve(g, count * width * 4);
    int32_t *shift = reserve(g, count * width * 4);
    if (!panels || !weights || !worth || !shift) return 0;
    for (size i = 0; i < count; i++) {
        panels[i] = (Panel){weights, worth + i * width, shift + i * width};
        weights += panel_size(g->in_bytes, i % 2 ? odd : even, least(SIDE, vectors - i * SIDE));
    }
    return panels;
}

static int reserve_rows(Generator *g, Rows *rows, size K) {
    const size bytes = g->n * row_of(K) * sizeof(act);
    rows->x = reserve(g, g->n * K * 4), rows->bytes = reserve(g, bytes), rows->worth = reserve(g, g->n * 4);
    if (!rows->x || !rows->bytes || !rows->worth) return 0;
    memset(rows->bytes, 0, bytes);
    for (size r = 0; r < g->n; r++) rows->worth[r] = 1 / top_of(K); /* of a state: it is below 1 */
    return 1;
}

static int reserve_streams(Generator *g) {
    Streams *s = &g->all;
    s->logits = reserve(g, g->n * g->V * 4), s->ids = reserve(g, g->n * sizeof *s->ids);
    s->seen = reserve(g, g->n * sizeof *s->seen);
    if (!s->logits || !s->ids || !s->seen || !reserve_rows(g, &s->x, g->widest)) return 0;
    memset(s->ids, 0, g->n * sizeof *s->ids);
    for (size r = 0; r < g->n; r++) s->seen[r] = (Seen){0, -1};
    return 1;
}

static int reserve_layer(Generator *g, Layer *layer) {
    const size S = layer->S, count = 2 * blocks(S, VECTOR);
    layer->panels = reserve_panels(g, count, count * GATES, layer->E, S);
    layer->table = reserve(g, (layer->E ? 1 : g->V + g->N) * GATES * S * 4);
    layer->C = reserve(g, g->n * S * 4);
    return layer->panels && layer->table && layer->C && reserve_rows(g, layer->H, S) && reserve_rows(g, layer->H + 1, S);
}

/* Makes a generator that owns copies of nothing yet; 0 if there is no memory. */
EXPORT Generator *lstmlm_generator_new(int in_bytes, int threads, size n, size V, size layers, const size *widths, int direct, int residual,
                                       int multiplicative, size pairs, float eps) {
    Generator *g = aligned_memory(64, blocks(sizeof *g, 64) * 64);
    if (!g) return 0;
    memset(g, 0, sizeof *g);
    g->n = g->capacity = n, g->multiplicative = multiplicative, g->N = pairs;
    g->V = V, g->layers = layers, g->in_bytes = in_bytes, g->direct = direct, g->residual = residual, g->eps = eps, g->fresh = 1;
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
    g->few = least(n, 2 * g->threads);
    if (whole) {
        g->scratch_size = blocks(lay_out(g, (char *)g, &(Own){0}), 4096) * 4096;
        g->scratch = reserve(g, g->threads * g->scratch_size);
        if (g->scratch && reserve_streams(g)) return g;
    }
    lstmlm_generator_free(g);
    return 0;
}

/* Packs a layer: U (E or V + N, 4S), W (S, 4S), b (4S) or 0, gamma and beta (S) or 0, M (V + N, S) or 0. Returns whether there was memory. */
EXPORT int lstmlm_generator_layer(Generator *g, size index, const float *U, const float *W, const float *b, const float *gamma,
                                  const float *beta, const float *M) {
    Layer *layer = g->layer + index;
    const size S4 = GATES * layer->S;
    for (size row = 0; row < (layer->E ? 1 : g->V + g->N); row++)
        for (size k = 0; k < S4; k++) layer->table[row * S4 + k] = (layer->E ? 0.f : U[row * S4 + k]) + (b ? b[k] : 0.f);
    Packing p = {g->in_bytes, {layer->E, layer->S}, layer->S, {U, W}, layer->panels};
    run_team(pack_gates, &p, g->threads);
    if (M) {
        const size values = (g->V + g->N) * layer->S;
        layer->scale = copied(g, M, values);
        for (size k = 0; layer->scale && k < values; k++) layer->scale[k] += 1.f;
        if (!layer->scale) return 0;
    }
    if (!gamma) return 1;
    layer->gamma = copied(g, gamma, layer->S);
    layer->beta = copied(g, beta, layer->S);
    return layer->gamma && layer->beta;
}

/* Packs R (V, S); returns 0 if there was no memory. */
static Panel *readout_panels(Generator *g, const float *R) {
    const size V = g->V, S = g->layer[g->layers - 1].S;
    Packing p = {g->in_bytes, {S}, V, {R}, reserve_panels(g, blocks(V, SIDE * VECTOR), blocks(V, VECTOR), S, S)};
    if (p.panels) run_team(pack_readout, &p, g->threads);
    return p.panels;
}

/* Packs the readout: R (V, S), r (V) or 0. Returns whether there was memory. Of no other weight does rounding reach the logits so
   directly. So what is left of it is packed too, unless the vocabulary is so large that it would take longer than it is worth. */
EXPORT int lstmlm_generator_readout(Generator *g, const float *R, const float *r) {
    const size V = g->V, S = g->layer[g->layers - 1].S;
    g->bias = copied(g, r, V), g->readout = readout_panels(g, R);
    if (!g->bias || !g->readout) return 0;
    if (!g->in_bytes || V > S) return 1;
    float *left = malloc(V * S * 4);
    for (size v = 0; v < V && left; v++) { /* as `pack` rounds */
        float top = 0;
        for (size k = 0; k < S; k++) top = fabsf(R[v * S + k]) > top ? fabsf(R[v * S + k]) : top;
        const float scale = top > 1e-30f ? 127.f / top : 0.f;
        for (size k = 0; k < S; k++) left[v * S + k] = R[v * S + k] - (R[v * S + k] * scale + 12582912.f - 12582912.f) * (top / 127.f);
    }
    g->rest = left ? readout_panels(g, left) : 0;
    free(left);
    return g->rest != 0;
}

/* Sets what parts documents: after these ids, at least one, a stream's state is empty. Returns whether there was memory. */
EXPORT int lstmlm_generator_separator(Generator *g, size count, const long long *ids) {
    long long *separator = reserve(g, count * sizeof *separator);
    int *border = reserve(g, (count + 1) * sizeof *border);
    if (!separator || !border) return 0;
    memcpy(separator, ids, count * sizeof *separator);
    border[0] = border[1] = 0;
    for (size k = 1; k < count; k++) {
        int m = border[k];
        while (m && ids[m] != ids[k]) m = border[m];
        border[k + 1] = m + (ids[m] == ids[k]);
    }
    g->separator = separator, g->border = border, g->separators = (int)count;
    return 1;
}

/* Sets which pairs have rows of their own: N times two ids, ascending. Returns whether there was memory. */
EXPORT int lstmlm_generator_pairs(Generator *g, const float *ids) {
    g->pairs = reserve(g, g->N * sizeof *g->pairs);
    for (size k = 0; g->pairs && k < g->N; k++) g->pairs[k] = (long long)ids[2 * k] * g->V + (long long)ids[2 * k + 1];
    return g->pairs != 0;
}

/* Copies what each of the first streams has seen, two numbers, in (`out` 0) or out. */
EXPORT void lstmlm_generator_seen(Generator *g, int out, size count, Seen *seen) {
    memcpy(out ? seen : g->all.seen, out ? g->all.seen : seen, count * sizeof *seen);
}

/* Puts another chain of generators, all of as many streams and ids, behind the last one of a chain. Returns whether they are not too
   many. */
EXPORT int lstmlm_generator_join(Generator *g, Generator *other) {
    int networks = 1;
    Generator *last = g;
    for (; last->next; last = last->next) networks++;
    for (const Generator *one = other; one; one = one->next) networks++;
    if (networks > NETWORKS_MAX) return 0;
    if (other->threads < g->threads) g->threads = other->threads; /* it has scratch for no more */
    last->next = other;
    return 1;
}

/* Copies the state of a layer, (n, S) each, in (`out` 0) or out. */
EXPORT void lstmlm_generator_state(Generator *g, size index, int out, float *H, float *C) {
    const Layer *layer = g->layer + index;
    float *ours[2] = {layer->H[g->turn].x, layer->C}, *theirs[2] = {H, C};
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
} Reading;

static void read_ids(void *argument, int rank, int threads) {
    const Reading *reading = argument;
    Generator *g = reading->g;
    Own own = own_of(g, rank, threads);
    const float *logits = 0;
    for (size k = 0; k < reading->K; k++) logits = step(g, reading->ids + k, &own, rank, threads, k == reading->K - 1);
    meet(&g->barrier, threads);
    if (rank == 0) {
        g->turn = own.turn, g->fresh = 1;
        if (logits != g->all.logits) memcpy(g->all.logits, logits, g->V * 4);
    }
}

static void repeat(void *rows, size each, size n) {
    for (size r = 1; r < n; r++) memcpy((char *)rows + r * each, rows, each);
}

/* All streams read K ids, from the empty state (`anew`) or after those that all of them have read: one reads them for all. The
   ids become rows of the tables. */
EXPORT void lstmlm_generator_read(Generator *g, int threads, size K, long long *ids, int anew) {
    const size n = g->n;
    g->n = 1;
    if (anew) g->all.seen[0] = (Seen){0, -1};
    find_rows(g, K, 1, ids);
    for (size l = 0; l < g->layers && anew; l++) {
        memset(g->layer[l].H[g->turn].x, 0, g->layer[l].S * 4);
        memset(g->layer[l].C, 0, g->layer[l].S * 4);
        H_to_bytes(g, g->layer + l);
    }
    Reading reading = {g, K, ids};
    run_team(read_ids, &reading, threads < g->threads ? threads : g->threads);
    g->n = n;
    repeat(g->all.logits, g->V * 4, n);
    repeat(g->all.seen, sizeof *g->all.seen, n);
    for (size l = 0; l < g->layers; l++) {
        const Layer *layer = g->layer + l;
        repeat(layer->H[g->turn].x, layer->S * 4, n);
        repeat(layer->H[g->turn].bytes, row_of(layer->S) * sizeof(act), n);
        repeat(layer->C, layer->S * 4, n);
    }
}

/* Whether all numbers are at most so large; NaN is not. */
EXPORT int lstmlm_within(const float *x, size count, float limit) {
    int beyond = 0;
    for (size i = 0; i < count; i++) beyond |= !(fabsf(x[i]) <= limit);
    return !beyond;
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
        uint64_t whole = 1;
        for (; at < end; at++) whole = whole * 0x100000001B3u + (uint8_t)m->from[at];
        for (int i = 0; i < 64; i++) whole = (whole ^ whole >> 29) * 0xD6E8FEB86659FD93u + lanes[i];
        m->marks[piece] = whole;
    }
}

/* A number that changes with the bytes; `seed` is that of the bytes before, `scratch` has one word for each 256 KB. */
EXPORT unsigned long long lstmlm_fingerprint(const void *from, size bytes, int threads, unsigned long long seed, uint64_t *scratch) {
    Marking marking = {from, bytes, scratch};
    run_team(mark, &marking, threads);
    for (size piece = 0; piece < blocks(bytes, PIECE_BYTES); piece++) seed = (seed ^ seed >> 29) * 0xD6E8FEB86659FD93u + scratch[piece];
    return seed;
}

/* Draws K times for each stream, with a step of the network before each draw but the first after logits were given.
   At most as many threads as the generator was made for. noise (K, n) in [0, 1), ids (K, n), nats (K, n). `keep` 0 and `share` 1 cut nothing. */
EXPORT void lstmlm_generator_run(Generator *g, int threads, size K, const float *noise, double divisor, size keep, double share,
                                 int greedy, long long *ids, float *nats) {
    Request request = {g, K, noise, {divisor, share, keep, greedy}, ids, nats};
    run_team(generate, &request, threads < g->threads ? threads : g->threads);
}

#include "score.h"
