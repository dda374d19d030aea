/* Context mixing: counts of what followed each of several contexts, mixed with a network's probabilities; see `contexts.py`,
   whose `ContextMixer` computes the same with dictionaries. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "simd.h"

enum { ORDERS = 7, CONTEXTS = ORDERS + 2, INPUTS = CONTEXTS + 2, MOST = 40, SPAN = MOST + 1, SLOT_BITS = 24 };

/* How often each branch of a node was taken after a context, recent ones most; `check` tells the contexts of a slot apart, and is 0
   where there is none. */
typedef struct {
    uint16_t check;
    uint8_t n[2];
} Slot;

typedef struct {
    int64_t nodes, known;
    int32_t *child, *parent, *leaf, *path; /* child: a node, or ~id; parent, leaf: 2 x node + branch that leads here */
    uint8_t *letters;
    int32_t last[ORDERS];
    uint32_t word, word_before;
    Slot *slots;
    double maps[CONTEXTS][SPAN][SPAN], by_depth[ORDERS + 1][INPUTS], *by_node, *mass;
} Mixer;

static uint32_t mixed(uint32_t x) { return LOWBIAS32(x); }

static double within(double x, double low, double high) { return x < low ? low : x > high ? high : x; }
static double stretch(double p) { return log(p / (1 - p)); }
static double squash(double x) { return 1 / (1 + exp(-x)); }

EXPORT void lstmlm_contexts_free(Mixer *m) {
    if (!m) return;
    void *owned[] = {m->child, m->parent, m->leaf, m->path, m->letters, m->slots, m->by_node, m->mass, m};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) free(owned[i]);
}

/* Returns 0 where there is no memory. */
EXPORT Mixer *lstmlm_contexts_new(int64_t V, const int32_t *child, const uint8_t *letters, double first) {
    Mixer *m = calloc(1, sizeof *m);
    if (!m) return 0;
    m->nodes = V - 1;
    m->child = malloc(8 * V), m->parent = malloc(4 * V), m->leaf = malloc(4 * V), m->path = malloc(4 * V), m->letters = malloc(V);
    m->slots = calloc((size_t)1 << SLOT_BITS, sizeof(Slot));
    m->by_node = malloc(sizeof(double) * V * INPUTS), m->mass = malloc(sizeof(double) * V);
    if (!m->child || !m->parent || !m->leaf || !m->path || !m->letters || !m->slots || !m->by_node || !m->mass) {
        lstmlm_contexts_free(m);
        return 0;
    }
    memcpy(m->child, child, 8 * m->nodes);
    memcpy(m->letters, letters, V);
    m->parent[0] = m->leaf[0] = -1;
    for (int64_t at = 0; at < 2 * m->nodes; at++) *(child[at] < 0 ? m->leaf + ~child[at] : m->parent + child[at]) = (int32_t)at;
    for (int64_t i = 0; i < m->nodes * INPUTS; i++) m->by_node[i] = first;
    for (int depth = 0; depth <= ORDERS; depth++)
        for (int i = 0; i < INPUTS; i++) m->by_depth[depth][i] = first;
    for (int c = 0; c < CONTEXTS; c++)
        for (int a = 0; a < SPAN; a++)
            for (int b = 0; b < SPAN; b++) m->maps[c][a][b] = (b + 0.3) / (a + b + 0.6);
    return m;
}

/* Scale what the contexts weigh, and set what the network does. */
EXPORT void lstmlm_contexts_weigh(Mixer *m, double scale, double network) {
    for (int64_t row = 0; row < m->nodes + ORDERS + 1; row++) {
        double *w = row < m->nodes ? m->by_node + row * INPUTS : m->by_depth[row - m->nodes];
        for (int i = 0; i < INPUTS - 1; i++) w[i] *= scale;
        w[INPUTS - 1] = network;
    }
}

/* What the text says so far is another context after an id. */
EXPORT void lstmlm_contexts_follow(Mixer *m, int32_t id) {
    memmove(m->last + 1, m->last, sizeof m->last - sizeof *m->last);
    m->last[0] = id;
    m->known++;
    if (m->letters[id]) m->word = mixed(m->word * 29 + (uint32_t)id + 1);
    else if (m->word) m->word_before = m->word, m->word = 0;
}

/* The slot of a context and node; where it was another's, it is emptied. The check is no function of the place, so a new context is taken
   for another one in one case of 32,768 at most: two slots are looked at, and a check has 16 bits. */
static Slot *find(Mixer *m, uint32_t context, uint32_t node) {
    const uint32_t hash = mixed(context + 0x9e3779b1u * (node + 1)), bits = mixed(context ^ 0x85ebca6bu * (node + 1)) >> 16;
    const uint16_t check = bits ? bits : 1;
    Slot *one = m->slots + (hash & ((1u << SLOT_BITS) - 1)), *other = m->slots + ((hash & ((1u << SLOT_BITS) - 1)) ^ 1);
    if (one->check == check) return one;
    if (other->check == check) return other;
    if (other->n[0] + other->n[1] < one->n[0] + one->n[1]) one = other;
    *one = (Slot){check, {0, 0}};
    return one;
}

/* Read n ids, with the logarithms of a network's probabilities of each (n x V) or without; nats: what each takes. */
EXPORT void lstmlm_contexts_read(Mixer *m, int64_t n, const int32_t *ids, const float *network, double slow, double fast, double *nats) {
    for (int64_t t = 0; t < n; t++) {
        const int32_t id = ids[t];
        uint32_t contexts[CONTEXTS], hash = 0;
        for (int k = 0; k < ORDERS; k++) {
            contexts[k] = mixed(hash + 0x9e3779b9u * (k + 1));
            hash = mixed(hash * 31 + (k < m->known ? (uint32_t)m->last[k] + 1 : 0) + 7919 * (k + 1));
        }
        contexts[ORDERS] = mixed(m->word * 0x2c1b3c6du + 77);
        contexts[ORDERS + 1] = mixed(m->word * 0x2c1b3c6du + m->word_before * 0x297a2d39u + 78);
        if (network)
            for (int64_t node = m->nodes - 1; node >= 0; node--) { /* children come after their parents */
                m->mass[node] = 0;
                for (int side = 0; side < 2; side++) {
                    const int32_t c = m->child[2 * node + side];
                    m->mass[node] += c < 0 ? exp((double)network[t * (m->nodes + 1) + ~c]) : m->mass[c];
                }
            }
        int length = 0;
        for (int32_t at = m->leaf[id]; at >= 0; at = m->parent[at / 2]) m->path[length++] = at;
        double cost = 0;
        while (length--) {
            const int32_t node = m->path[length] / 2, side = m->path[length] % 2;
            Slot *slots[CONTEXTS];
            double x[INPUTS], *maps[CONTEXTS];
            int depth = 0;
            for (int c = 0; c < CONTEXTS; c++) {
                Slot *slot = slots[c] = find(m, contexts[c], (uint32_t)node);
                maps[c] = &m->maps[c][slot->n[0]][slot->n[1]];
                const int seen = slot->n[0] + slot->n[1];
                x[c] = seen ? stretch(within(*maps[c], 1e-4, 1 - 1e-4)) : 0;
                if (seen && c < ORDERS) depth = c + 1;
            }
            x[CONTEXTS] = 0.3;
            x[CONTEXTS + 1] = 0;
            if (network) {
                const int32_t c = m->child[2 * node + 1];
                const double mass = c < 0 ? exp((double)network[t * (m->nodes + 1) + ~c]) : m->mass[c];
                x[CONTEXTS + 1] = m->mass[node] == 0 ? 0 : stretch(within(mass / m->mass[node], 1e-6, 1 - 1e-6)); /* 0: too small to tell */
            }
            double *weights[2] = {m->by_depth[depth], m->by_node + node * INPUTS}, sums[2] = {0, 0};
            for (int s = 0; s < 2; s++) {
                for (int i = 0; i < INPUTS; i++) sums[s] += weights[s][i] * x[i];
                sums[s] = within(sums[s], -12, 12);
            }
            const double p = squash((sums[0] + sums[1]) / 2);
            cost -= log(side ? p : 1 - p);
            for (int s = 0; s < 2; s++) {
                const double error = fast * (side - squash(sums[s]));
                for (int i = 0; i < INPUTS; i++) weights[s][i] += error * x[i];
            }
            for (int c = 0; c < CONTEXTS; c++) {
                *maps[c] += slow * (side - *maps[c]);
                uint8_t *taken = slots[c]->n + side, *other = slots[c]->n + !side;
                if (*taken < MOST) ++*taken;
                if (*other > 2) *other = (*other + 2) / 2;
            }
        }
        nats[t] = cost;
        lstmlm_contexts_follow(m, id);
    }
}
