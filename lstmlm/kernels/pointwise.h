/* What lies around the recurrence and is no product: layer norm, dropout and residual; the loss and its gradient; the rows of a
   table by id; AdamW. Each is one pass over its memory.

   Sums over rows or over a whole tensor run in PARTS fixed parts, added in order, or (`scatter`) row by row: their bits do not depend
   on the threads. */

#define PARTS 16

INLINE size part(size n, int index) { return n * index / PARTS; }

INLINE float total(vec x) {
    float sum = 0;
    for (int lane = 0; lane < VECTOR; lane++) sum += x[lane];
    return sum;
}

/* Zero in the lanes that are not there. */
INLINE vec only(vec x, int lanes) {
    if (lanes == VECTOR) return x;
    float copy[VECTOR];
    store(copy, x, VECTOR);
    return load(copy, lanes);
}

INLINE vec root(vec x) {
#if VECTOR == 16
    return _mm512_sqrt_ps(x);
#elif VECTOR == 8
    return _mm256_sqrt_ps(x);
#else
    for (int lane = 0; lane < VECTOR; lane++) x[lane] = sqrtf(x[lane]);
    return x;
#endif
}

/* What dropout multiplies the values `at` .. `at` + VECTOR - 1 by: a hash of key and position, so that there is nothing to draw in
   order, to keep for the backward pass, or to save. */
INLINE vec kept(uint32_t key, uint32_t at, uint32_t threshold, float scale) {
    uvec x;
    for (int lane = 0; lane < VECTOR; lane++) x[lane] = lane;
    x = (x + at) * 0x9e3779b9u + key;
    LOWBIAS32(x);
    return (vec)((ivec)(x >= threshold) & (ivec)all(scale));
}

typedef struct {
    size T, B, S, streams, first;
    const float *y, *x, *gamma, *beta, *dx;
    float *out, *stats, *dgamma, *dbeta, *scratch;
    uint32_t key, threshold;
    float scale;
    Barrier barrier;
} NormJob;

/* The row of the global batch that row `row` of this one is, times S: where dropout's positions begin. */
INLINE uint32_t position(const NormJob *job, size row) {
    return (uint32_t)((row / job->B * job->streams + job->first + row % job->B) * job->S);
}

#define EACH(s, S) for (size s = 0, lanes; s < S && (lanes = least(VECTOR, S - s), 1); s += VECTOR)

/* out = dropout(norm(y)) + x; stats holds mean and 1 / deviation of each row. */
static void norm_dropout_residual(void *argument, int rank, int threads) {
    NormJob *job = argument;
    const size S = job->S, rows = job->T * job->B;
    for (size row = rows * rank / threads; row < rows * (rank + 1) / threads; row++) {
        const float *y = job->y + row * S, *x = job->x ? job->x + row * S : 0;
        float *out = job->out + row * S, mean = 0, rstd = 1;
        if (job->gamma) {
            vec sum = {0}, squares = {0};
            EACH(s, S) sum += load(y + s, lanes);
            mean = total(sum) / S;
            EACH(s, S) {
                vec d = only(load(y + s, lanes) - mean, lanes);
                squares += d * d;
            }
            rstd = 1.f / sqrtf(total(squares) / S + 1e-5f);
            job->stats[2 * row] = mean, job->stats[2 * row + 1] = rstd;
        }
        const uint32_t at = position(job, row);
        EACH(s, S) {
            vec value = load(y + s, lanes);
            if (job->gamma) value = (value - mean) * rstd * load(job->gamma + s, lanes) + load(job->beta + s, lanes);
            if (job->threshold) value *= kept(job->key, at + (uint32_t)s, job->threshold, job->scale);
            if (x) value += load(x + s, lanes);
            store(out + s, value, lanes);
        }
    }
}

/* dy from dx, the gradient of what `norm_dropout_residual` put out; dgamma and dbeta are added to. */
static void norm_dropout_residual_backward(void *argument, int rank, int threads) {
    NormJob *job = argument;
    const size S = job->S, rows = job->T * job->B;
    for (int p = PARTS * rank / threads; p < PARTS * (rank + 1) / threads; p++) {
        float *dgamma = job->scratch + p * 2 * S, *dbeta = dgamma + S;
        if (job->gamma) memset(dgamma, 0, sizeof(float) * 2 * S);
        for (size row = part(rows, p); row < part(rows, p + 1); row++) {
            const float *y = job->y + row * S, *dx = job->dx + row * S;
            float *dy = job->out + row * S;
            const uint32_t at = position(job, row);
            if (!job->gamma) {
                EACH(s, S) store(dy + s, load(dx + s, lanes) * kept(job->key, at + (uint32_t)s, job->threshold, job->scale), lanes);
                continue;
            }
            const float mean = job->stats[2 * row], rstd = job->stats[2 * row + 1];
            vec plain = {0}, along = {0};
            EACH(s, S) {
                vec d = load(dx + s, lanes), hat = only((load(y + s, lanes) - mean) * rstd, lanes);
                if (job->threshold) d *= kept(job->key, at + (uint32_t)s, job->threshold, job->scale);
                store(dgamma + s, load(dgamma + s, lanes) + d * hat, lanes);
                store(dbeta + s, load(dbeta + s, lanes) + d, lanes);
                d *= load(job->gamma + s, lanes);
                plain += d;
                along += d * hat;
                store(dy + s, d, lanes);
            }
            const float a = total(plain) / S, b = total(along) / S;
            EACH(s, S) store(dy + s, rstd * (load(dy + s, lanes) - a - (load(y + s, lanes) - mean) * (rstd * b)), lanes);
        }
    }
    if (!job->gamma) return;
    meet(&job->barrier, threads);
    for (size s = S * rank / threads; s < S * (rank + 1) / threads; s++)
        for (int p = 0; p < PARTS; p++) {
            job->dgamma[s] += job->scratch[p * 2 * S + s];
            job->dbeta[s] += job->scratch[(p * 2 + 1) * S + s];
        }
}

typedef struct {
    size rows, V;
    float *logits, *dbias, *scratch;
    const float *bias, *soft;
    const int64_t *targets;
    float scale, weight;
    double nats[PARTS];
    Barrier barrier;
} Loss;

/* The logits, to which `bias` is added first, become the gradient of scale x the summed nats; dbias is added to. With `soft`, a
   teacher's probabilities, `weight` of each target's probability is spread as they are. */
static void loss(void *argument, int rank, int threads) {
    Loss *job = argument;
    const size V = job->V;
    for (int p = PARTS * rank / threads; p < PARTS * (rank + 1) / threads; p++) {
        float *sums = job->scratch + p * V;
        if (job->bias) memset(sums, 0, sizeof(float) * V);
        double nats = 0;
        for (size row = part(job->rows, p); row < part(job->rows, p + 1); row++) {
            float *at = job->logits + row * V, highest = -INFINITY;
            const size target = job->targets[row];
            for (size v = 0; v < V; v++) {
                if (job->bias) at[v] += job->bias[v];
                highest = at[v] > highest ? at[v] : highest;
            }
            const float wanted = at[target] - highest;
            vec sum = {0};
            EACH(v, V) {
                vec two_n, grown = exp_parts(at_least(at_most(load(at + v, lanes) - highest, 87.f), -87.f), &two_n);
                vec e = only(two_n + two_n * grown, lanes);
                sum += e;
                store(at + v, e, lanes);
            }
            const float whole = total(sum), share = job->scale / whole;
            nats += log(whole) - wanted;
            EACH(v, V) store(at + v, load(at + v, lanes) * share, lanes);
            if (job->soft) {
                const float *q = job->soft + row * V, taught = job->scale * job->weight;
                EACH(v, V) store(at + v, load(at + v, lanes) - load(q + v, lanes) * taught, lanes);
            }
            at[target] -= job->soft ? job->scale * (1 - job->weight) : job->scale;
            if (job->bias) EACH(v, V) store(sums + v, load(sums + v, lanes) + load(at + v, lanes), lanes);
        }
        job->nats[p] = nats;
    }
    if (!job->bias) return;
    meet(&job->barrier, threads);
    for (size v = V * rank / threads; v < V * (rank + 1) / threads; v++)
        for (int p = 0; p < PARTS; p++) job->dbias[v] += job->scratch[p * V + v];
}

typedef struct {
    size rows, V, width;
    const int64_t *ids;
    const float *da;
    float *dU, *db;
} Scatter;

/* dU[id] += da, row by row, and db += each row. The columns are divided among the threads, so the order of rows is kept. */
static void scatter(void *argument, int rank, int threads) {
    Scatter *job = argument;
    const size width = job->width, count = blocks(width, VECTOR);
    /* Blocks of columns of the table that stay in the second cache while all rows pass. */
    const size step = least(count, 512 * 1024 / 64 / (job->ids ? job->V : 1) + 1);
    const size first = count * rank / threads, last = count * (rank + 1) / threads;
    for (size from = first; from < last; from += step) {
        const size begin = from * VECTOR, end = least(width, least(last, from + step) * VECTOR);
        for (size row = 0; row < job->rows; row++)
            for (size c = begin; c < end; c += VECTOR) {
                int lanes = (int)least(VECTOR, end - c);
                vec add = load(job->da + row * width + c, lanes);
                if (job->ids) {
                    float *to = job->dU + job->ids[row] * width + c;
                    store(to, load(to, lanes) + add, lanes);
                }
                if (job->db) store(job->db + c, load(job->db + c, lanes) + add, lanes);
            }
    }
}

typedef struct {
    size n;
    float *weights, *gradients, *means, *squares, *average;
    float rate, beta1, beta2, eps, shrink, scale, second, pull;
    double norms[PARTS];
    int finite[PARTS];
} Adam;

/* The squares of the gradient, summed. */
static void square(void *argument, int rank, int threads) {
    Adam *job = argument;
    for (int p = PARTS * rank / threads; p < PARTS * (rank + 1) / threads; p++) {
        const size end = part(job->n, p + 1);
        double sum = 0;
        for (size from = part(job->n, p); from < end; from += 4096) {
            vec some = {0};
            for (size i = from; i < least(end, from + 4096); i += VECTOR) {
                vec g = load(job->gradients + i, (int)least(VECTOR, least(end, from + 4096) - i));
                some += g * g;
            }
            sum += total(some);
        }
        job->norms[p] = sum;
    }
}

/* Loshchilov and Hutter (2019), with the gradient scaled first, and set to zero after; the average, if any, is pulled along. */
static void adam(void *argument, int rank, int threads) {
    Adam *job = argument;
    const float up1 = 1.f - job->beta1, up2 = 1.f - job->beta2;
    for (int p = PARTS * rank / threads; p < PARTS * (rank + 1) / threads; p++) {
        const size end = part(job->n, p + 1);
        vec bad = {0}; /* 0 as long as every weight is finite */
        for (size i = part(job->n, p); i < end; i += VECTOR) {
            const int lanes = (int)least(VECTOR, end - i);
            vec g = load(job->gradients + i, lanes) * job->scale;
            vec m = load(job->means + i, lanes), v = load(job->squares + i, lanes), w = load(job->weights + i, lanes);
            m += (g - m) * up1;
            v = v * job->beta2 + g * g * up2;
            w = w * job->shrink - job->rate * m / (root(v) * job->second + job->eps);
            store(job->means + i, m, lanes), store(job->squares + i, v, lanes), store(job->weights + i, w, lanes);
            store(job->gradients + i, (vec){0}, lanes);
            if (job->average) {
                vec average = load(job->average + i, lanes);
                store(job->average + i, average + (w - average) * job->pull, lanes);
            }
            bad += only(w * 0.f, lanes);
        }
        job->finite[p] = total(bad) == 0;
    }
}
