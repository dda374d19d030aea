/* The draw of an id from logits and noise, by the rules of `torch_sampler.distribution` and `torch_sampler.draw`. */

#define DOUBLES 8 /* whatever the register: the lanes of a sum are part of its bits */
typedef double dvec __attribute__((vector_size(DOUBLES * 8)));
typedef double dvec_any __attribute__((vector_size(DOUBLES * 8), aligned(8), may_alias));
typedef int64_t lvec __attribute__((vector_size(DOUBLES * 8)));
typedef float half_vec __attribute__((vector_size(DOUBLES * 4)));
typedef half_vec half_any __attribute__((aligned(4), may_alias));

typedef struct {
    double divisor, share;
    size keep;
    int greedy;
} Choice;

/* e^x for x <= 0, to 2e-16 of it; 0 below -708. NaN becomes 0. */
INLINE dvec exp_double(dvec x) {
    const double round = 6755399441055744.; /* 1.5 x 2^52 */
    lvec possible = x >= -708.;
    x = (dvec)((lvec)x & possible);
    dvec shifted = x * 1.4426950408889634 + round, n = shifted - round;
    dvec r = x - n * 0.693147180369123816490 - n * 1.90821492927058770002e-10;
    dvec p = r * (1. / 6227020800.) + 1. / 479001600.; /* 1/13!, 1/12! ... : |r|^14 / 14! is 4e-18 */
    static const double inverse_factorial[] = {1. / 39916800., 1. / 3628800., 1. / 362880., 1. / 40320., 1. / 5040., 1. / 720.,
                                               1. / 120., 1. / 24., 1. / 6., 0.5, 1., 1.};
    UNROLL for (int i = 0; i < 12; i++) p = p * r + inverse_factorial[i];
    dvec two_n = (dvec)(((lvec)shifted << 52) + 0x3ff0000000000000);
    return (dvec)((lvec)(p * two_n) & possible);
}

INLINE dvec all_doubles(double x) { return x - (dvec){0}; }

INLINE double sum_of(const void *lanes) {
    const double *x = lanes;
    double sum = x[0];
    UNROLL for (int lane = 1; lane < DOUBLES; lane++) sum += x[lane];
    return sum;
}

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

/* The largest, and the first id that has it. NaN is never larger. */
INLINE size largest(const float *logits, size V, float *top) {
    *top = logits[0];
    if (logits[0] == logits[0]) {
        vec most = all(logits[0]);
        for (size v = 0; v < V; v += VECTOR) {
            int lanes = (int)least(VECTOR, V - v);
            vec x = load(logits + v, lanes);
            for (int lane = lanes; lane < VECTOR; lane++) x[lane] = logits[0];
            ivec larger = x > most;
            most = (vec)((larger & (ivec)x) | (~larger & (ivec)most));
        }
        *top = largest_lane(most);
    }
    for (size v = 0; v < V; v++)
        if (logits[v] == *top) return v;
    return 0;
}

/* The logits of a block less the largest one; -inf behind the last. */
INLINE dvec below(const float *logits, size V, size block, float top) {
    const size left = V - block * DOUBLES;
    if (left >= DOUBLES) return __builtin_convertvector(*(const half_any *)(logits + block * DOUBLES), dvec) - (double)top;
    dvec x = all_doubles(-INFINITY);
    for (size lane = 0; lane < left; lane++) x[lane] = (double)logits[block * DOUBLES + lane] - top;
    return x;
}

/* The logarithm of the mean of some probabilities, each given as its own; at most 0. */
static double log_mean(const double *logs, int count) {
    double top = -INFINITY, sum = 0;
    for (int i = 0; i < count; i++) top = logs[i] > top ? logs[i] : top;
    if (top == -INFINITY) return top;
    for (int i = 0; i < count; i++) sum += exp(logs[i] - top);
    return top + log(sum / count);
}

/* What several networks say together: the logarithm of the mean of the probabilities that row `r` of their logits stands for, NaN
   where any of those is. `p` is scratch as for `draw`, `mean` for V. */
static const float *average(const float *const *logits, int networks, size r, size V, double *p, float *mean) {
    const size whole = blocks(V, DOUBLES);
    double norms[NETWORKS_MAX], logs[NETWORKS_MAX];
    memset(p, 0, whole * sizeof(dvec));
    for (int network = 0; network < networks; network++) {
        const float *own = logits[network] + r * V;
        float top;
        largest(own, V, &top);
        dvec sums = (dvec){0};
        for (size block = 0; block < whole; block++) sums += exp_double(below(own, V, block, top));
        const double share = 1 / (sum_of(&sums) * networks);
        norms[network] = log(sum_of(&sums)) + top;
        for (size block = 0; block < whole; block++) {
            const dvec x = below(own, V, block, top);
            const lvec none = x != x;
            *(dvec_any *)(p + block * DOUBLES) += share * exp_double(x) + (dvec)(none & (lvec)x);
        }
    }
    for (size v = 0; v < V; v++) {
        if (p[v] < 1e-300) { /* or next to nothing in all networks: as `exp_double` has it, 0 */
            for (int network = 0; network < networks; network++) logs[network] = logits[network][r * V + v] - norms[network];
            mean[v] = (float)log_mean(logs, networks);
        } else {
            mean[v] = (float)log(p[v]);
        }
    }
    return mean;
}

/* Returns the id that the noise in [0, 1) falls on. `p` and `heap` are scratch of V each, a vector more for p; `nats` is set to minus
   the log probability of the id under the uncut distribution. */
static long long draw(const Choice *how, const float *logits, size V, double noise, double *p, int32_t *heap, float *nats) {
    float top;
    long long id = (long long)largest(logits, V, &top);
    double sum = 0;
    const size whole = blocks(V, DOUBLES);
    if (!how->greedy) {
        dvec sums = (dvec){0};
        for (size block = 0; block < whole; block++) {
            dvec x = below(logits, V, block, top);
            x = exp_double(how->divisor == 1 ? x : x / how->divisor);
            *(dvec_any *)(p + block * DOUBLES) = x;
            sums += x;
        }
        sum = sum_of(&sums);
        double upto = sum;
        if ((how->keep && how->keep < V) || how->share < 1) {
            for (size v = 0; v < V; v++) p[v] /= sum;
            cut(p, heap, V, how->keep, how->share);
            upto = 0;
            for (size block = 0; block < whole; block++) upto += sum_of(p + block * DOUBLES);
        }
        const double aim = noise * upto;
        size block = 0;
        for (upto = 0; block < whole; block++) {
            double more = sum_of(p + block * DOUBLES);
            if (upto + more > aim) break;
            upto += more;
        }
        id = (long long)(block * DOUBLES);
        while (id < V && !((upto += p[id]) > aim)) id++;
        if (id >= V) { /* rounding may leave the aim above all: then the last that is possible */
            id = V - 1;
            while (id > 0 && !(p[id] > 0)) id--;
            if (!(p[id] > 0)) id = V - 1;
        }
    }
    if (how->greedy || how->divisor != 1) {
        dvec sums = (dvec){0};
        for (size block = 0; block < whole; block++) sums += exp_double(below(logits, V, block, top));
        sum = sum_of(&sums);
    }
    *nats = (float)(log(sum) - ((double)logits[id] - top));
    return id;
}
