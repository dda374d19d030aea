/* What `scripts/dev/check_builds.sh` links with the sources of each build: it prints a text that must be the same for all of them, and
   fails where the recurrence or a product is wrong. Letters as in `native.c`. */

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef long long size;
typedef struct Generator Generator;
Generator *lstmlm_generator_new(int in_bytes, int threads, size n, size V, size layers, const size *widths, int direct, int residual,
                                int multiplicative, size pairs, float eps);
int lstmlm_generator_pairs(Generator *g, const float *ids);
int lstmlm_generator_layer(Generator *g, size index, const float *U, const float *W, const float *b, const float *gamma, const float *beta,
                           const float *M);
int lstmlm_generator_readout(Generator *g, const float *R, const float *r);
void lstmlm_generator_read(Generator *g, int threads, size K, const long long *ids, int anew);
void lstmlm_generator_run(Generator *g, int threads, size K, const float *noise, double divisor, size keep, double share, int greedy,
                          long long *ids, float *nats);
void lstmlm_generator_logits(Generator *g, int out, float *logits);
void lstmlm_generator_free(Generator *g);
int lstmlm_vector(void);
int lstmlm_has(int kind);
size lstmlm_packed_size(int kind, int back, size S);
size lstmlm_scratch_size(int kind, int back, size B, size S);
void lstmlm_pack(int kind, int back, int threads, size S, const float *W, void *packed);
void lstmlm_forward(int kind, int threads, size T, size B, size S, const void *packed, void *scratch, const int64_t *ids, const float *rows,
                    const float *bias, const float *H_0, const float *C_0, float *gates, float *C, float *H, float *scale, float *m);
size lstmlm_multiply_size(int threads, size N);
void lstmlm_multiply(int kind, int threads, size M, size N, size K, int turned_A, int turned_B, int add, const float *A, const float *B,
                     float *C, void *scratch);

static uint32_t state;

static float uniform(void) { /* [0, 1), 24 bits */
    state = state * 1664525u + 1013904223u;
    return (float)(state >> 8) * 0x1p-24f;
}

static float *drawn(size count, float scale) {
    float *x = aligned_alloc(64, (count * 4 + 127) / 64 * 64);
    for (size i = 0; i < count; i++) x[i] = (2 * uniform() - 1) * scale;
    return x;
}

static uint64_t hash(const void *from, size bytes, uint64_t seed) {
    for (size i = 0; i < bytes; i++) seed = (seed ^ ((const uint8_t *)from)[i]) * 0x100000001b3u;
    return seed;
}

static void require(int right, const char *what) {
    if (right) return;
    fprintf(stderr, "%s\n", what);
    exit(1);
}

enum { V = 37, S = 70, LAYERS = 3, PROMPT = 20, STEPS = 200, PAIRS = 90 };

/* The first stream of n: its ids in `text`; returns a hash of ids, nats and the last logits. */
static uint64_t sample(int in_bytes, int multiplicative, int n, int threads, size block, double divisor, size keep, double share, char *text) {
    state = 1;
    const size widths[LAYERS] = {S, S, S};
    const size N = multiplicative ? PAIRS : 0;
    Generator *g = lstmlm_generator_new(in_bytes, threads, n, V, LAYERS, widths, 0, 1, multiplicative, N, 1e-5f);
    float pairs[2 * PAIRS];
    for (int k = 0; k < PAIRS; k++) pairs[2 * k] = k * 15 / V, pairs[2 * k + 1] = k * 15 % V;
    if (N) require(lstmlm_generator_pairs(g, pairs), "no memory for pairs");
    for (int l = 0; l < LAYERS; l++) {
        const size E = l ? S : V + N;
        /* One after another: compilers differ in the order of arguments. */
        const float *U = drawn(E * 4 * S, l ? .3f : 1), *W = drawn(S * 4 * S, .3f), *b = drawn(4 * S, .5f);
        const float *gamma = drawn(S, 2), *beta = drawn(S, .2f);
        lstmlm_generator_layer(g, l, U, W, b, gamma, beta, l || !multiplicative ? 0 : drawn((V + N) * S, .5f));
    }
    const float *R = drawn(V * S, .3f), *r = drawn(V, .5f);
    lstmlm_generator_readout(g, R, r);
    long long prompt[PROMPT], *ids = malloc(STEPS * n * sizeof *ids);
    for (int i = 0; i < PROMPT; i++) prompt[i] = (long long)(uniform() * V);
    float *noise = malloc(STEPS * n * 4), *nats = malloc(STEPS * n * 4), *logits = malloc(n * V * 4);
    for (size i = 0; i < STEPS; i++) {
        for (int r = 0; r < n; r++) noise[i * n + r] = r ? .5f : uniform();
    }
    lstmlm_generator_read(g, threads, PROMPT, prompt, 1);
    for (size at = 0; at < STEPS; at += block) {
        const size count = at + block < STEPS ? block : STEPS - at;
        lstmlm_generator_run(g, threads, count, noise + at * n, divisor, keep, share, 0, ids + at * n, nats + at * n);
    }
    lstmlm_generator_logits(g, 1, logits);
    uint64_t all = 0xcbf29ce484222325u;
    for (size i = 0; i < STEPS; i++) {
        all = hash(nats + i * n, 4, hash(ids + i * n, sizeof *ids, all));
        if (i < 48) text[i] = "abcdefghijklmnopqrstuvwxyz0123456789_."[ids[i * n]], text[i + 1] = 0;
    }
    lstmlm_generator_free(g);
    return hash(logits, V * 4, all);
}

static double squashed(double x) { return 1 / (1 + exp(-x)); }

static void check_recurrence(int kind, int multiplicative) {
    enum { T = 4, B = 5, U = 37 };
    const double within = kind ? 5e-2 : 1e-5;
    state = 2;
    float *a = drawn(T * B * 4 * U, 1), *W = drawn(U * 4 * U, .3f), *H_0 = drawn(B * U, 1), *C_0 = drawn(B * U, 1);
    float *gates = drawn(T * B * 4 * U, 0), *C = drawn(T * B * U, 0), *H = drawn(T * B * U, 0);
    float *scale = multiplicative ? drawn(T * B * U, 1.5f) : 0, *m = multiplicative ? drawn(T * B * U, 0) : 0;
    void *packed = drawn(lstmlm_packed_size(kind, 0, U) / 4 + 16, 0), *scratch = drawn(lstmlm_scratch_size(kind, 0, B, U) / 4 + 16, 0);
    memcpy(gates, a, sizeof(float) * T * B * 4 * U);
    lstmlm_pack(kind, 0, 2, U, W, packed);
    lstmlm_forward(kind, 2, T, B, U, packed, scratch, 0, 0, 0, H_0, C_0, gates, C, H, scale, m);
    for (int t = 0; t < T; t++)
        for (int r = 0; r < B; r++)
            for (int u = 0; u < U; u++) {
                const float *before = t ? H + ((t - 1) * B + r) * U : H_0 + r * U, c = t ? C[((t - 1) * B + r) * U + u] : C_0[r * U + u];
                double sum[4];
                for (int gate = 0; gate < 4; gate++) {
                    sum[gate] = a[(t * B + r) * 4 * U + gate * U + u];
                    for (int k = 0; k < U; k++) sum[gate] += (double)before[k] * (scale ? scale[(t * B + r) * U + k] : 1) * W[k * 4 * U + gate * U + u];
                }
                const double cell = squashed(sum[0]) * c + squashed(sum[1]) * tanh(sum[3]);
                require(fabs(C[(t * B + r) * U + u] - cell) < within, "the recurrence: C is wrong");
                require(fabs(H[(t * B + r) * U + u] - squashed(sum[2]) * tanh(cell)) < within, "the recurrence: H is wrong");
            }
}

static void check_product(int kind) {
    enum { M = 7, N = 65, K = 130 };
    state = 3;
    float *A = drawn(M * K, 1), *B = drawn(K * N, 1), *C = drawn(M * N, 0);
    lstmlm_multiply(kind, 2, M, N, K, 0, 0, 0, A, B, C, drawn(lstmlm_multiply_size(2, N) / 4 + 16, 0));
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) {
            double sum = 0;
            for (int k = 0; k < K; k++) sum += (double)A[m * K + k] * B[k * N + n];
            require(fabs(C[m * N + n] - sum) < (kind ? .3 : 1e-4), "a product is wrong");
        }
}

int main(void) {
    for (int kind = 0; kind < 5; kind++)
        if (lstmlm_has(kind)) check_recurrence(kind, 0), check_recurrence(kind, 1), check_product(kind);
    for (int in_bytes = 0; in_bytes < 2; in_bytes++)
        for (int how = 0; how < 2; how++) {
            const int multiplicative = !how;
            char text[64], other[64];
            const double divisor = how ? .7 : 1, share = how ? .9 : 1;
            const size keep = how ? 12 : 0;
            const uint64_t alone = sample(in_bytes, multiplicative, 1, 1, STEPS, divisor, keep, share, text);
            require(sample(in_bytes, multiplicative, 1, 3, 7, divisor, keep, share, other) == alone, "threads or blocks change the text");
            require(sample(in_bytes, multiplicative, 9, 2, 31, divisor, keep, share, other) == alone, "company changes the text");
            printf("%s %s %016llx\n", in_bytes ? "bytes" : "float", text, (unsigned long long)alone);
        }
    fprintf(stderr, "%d floats in a vector\n", lstmlm_vector());
    return 0;
}
