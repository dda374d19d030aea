/* What given characters cost: the steps of the generator with every next id known, for texts that are scored. Floats throughout. */

typedef struct {
    Generator *g;
    size K;
    const long long *inputs, *targets;
    double *nats;
    unsigned char *correct;
} Scoring;

/* Returns minus the log probability of an id, NaN where any logit is; `correct` is set to whether the id is the likeliest. */
static double cost(const float *logits, size V, long long id, unsigned char *correct) {
    float top;
    *correct = (long long)largest(logits, V, &top) == id;
    dvec sums = (dvec){0}, none = (dvec){0};
    for (size block = 0; block < blocks(V, DOUBLES); block++) {
        const dvec x = below(logits, V, block, top);
        sums += exp_double(x);
        if ((block + 1) * DOUBLES <= V) none += x * 0;
        else for (size lane = 0; lane < V - block * DOUBLES; lane++) none[lane] += x[lane] * 0;
    }
    return log(sum_of(&sums)) - ((double)logits[id] - top) + sum_of(&none);
}

static void score(void *argument, int rank, int threads) {
    const Scoring *s = argument;
    Generator *g = s->g;
    const size n = g->n, V = g->V;
    Own each[NETWORKS_MAX], *own = each;
    const float *logits[NETWORKS_MAX];
    int networks = 0;
    for (const Generator *one = g; one; one = one->next, networks++) each[networks] = own_of(one, rank, threads);
    meet(&g->barrier, threads); /* nobody changes what another one is still copying */
    for (size k = 0; k < s->K; k++) {
        int network = 0;
        for (Generator *one = g; one; one = one->next, network++)
            logits[network] = step(one, s->inputs + k * n, each + network, rank, threads, 1);
        for (size r = own->first; r < own->last; r++) {
            if (!own->wide && r % threads != rank) continue; /* all have all logits */
            const float *row = networks > 1 ? average(logits, networks, r, V, own->p, own->mean) : logits[0] + r * V;
            const size at = k * n + r;
            s->nats[at] = cost(row, V, s->targets[at], s->correct + at);
        }
    }
    meet(&g->barrier, threads);
    if (rank == 0) {
        int network = 0;
        for (Generator *one = g; one; one = one->next, network++) one->turn = each[network].turn, one->fresh = 0;
    }
}

/* The first `active` streams read K ids each, and what comes after each of them is scored: inputs, targets, nats and correct are
   (K, active). The other streams stay where they are. The inputs become rows of the tables. */
EXPORT void lstmlm_generator_score(Generator *g, int threads, size active, size K, long long *inputs, const long long *targets,
                                   double *nats, unsigned char *correct) {
    const size n = g->n;
    find_rows(g, K, active, inputs);
    Scoring scoring = {g, K, inputs, targets, nats, correct};
    for (Generator *one = g; one; one = one->next) one->n = active;
    run_team(score, &scoring, threads < g->threads ? threads : g->threads);
    for (Generator *one = g; one; one = one->next) {
        one->n = n;
        for (size l = 0; l < one->layers && K % 2; l++) {
            Layer *layer = one->layer + l;
            const size S = layer->S, done = active * S;
            memcpy(layer->H[one->turn].x + done, layer->H[!one->turn].x + done, (n - active) * S * 4);
        }
    }
}

/* How many floats the state of one stream is: H and C of each layer of each network, and what it has seen of separators and pairs. */
EXPORT size lstmlm_generator_state_size(const Generator *g) {
    size count = (g->separators > 0) + (g->N > 0);
    for (; g; g = g->next)
        for (size l = 0; l < g->layers; l++) count += 2 * g->layer[l].S;
    return count;
}

/* Copies the states of the first `count` streams, one stream after another, in (`out` 0) or out. */
EXPORT void lstmlm_generator_states(Generator *g, int out, size count, float *states) {
    for (size r = 0; r < count; r++) {
        for (Generator *one = g; one; one = one->next)
            for (size l = 0; l < one->layers; l++) {
                const Layer *layer = one->layer + l;
                const size S = layer->S;
                float *ours[2] = {layer->H[one->turn].x + r * S, layer->C + r * S};
                for (int part = 0; part < 2; part++, states += S) memcpy(out ? states : ours[part], out ? ours[part] : states, S * 4);
            }
        Seen *seen = g->all.seen + r;
        if (g->separators) {
            if (out) *states = (float)seen->matched;
            else seen->matched = (long long)*states;
            states++;
        }
        if (g->N) { /* so that the empty state is zeros */
            if (out) *states = (float)(seen->last + 1);
            else seen->last = (long long)*states - 1;
            states++;
        }
    }
}

/* By how many roundings, of 1 or of its own size, the number that differs most does so; NaN where one is. */
EXPORT float lstmlm_roundings(const float *one, const float *other, size count) {
    vec most = (vec){0};
    for (size i = 0; i < count; i += VECTOR) {
        const int lanes = (int)least(VECTOR, count - i);
        const vec a = load(one + i, lanes), b = load(other + i, lanes);
        const vec far = (vec)((ivec)(a - b) & 0x7fffffff) / (1.f + (vec)((ivec)b & 0x7fffffff));
        for (int lane = 0; lane < lanes; lane++)
            if (most[lane] == most[lane] && !(far[lane] <= most[lane])) most[lane] = far[lane];
    }
    float top = 0;
    for (int lane = 0; lane < VECTOR; lane++)
        if (top == top && !(most[lane] <= top)) top = most[lane];
    return top / 1.1920929e-7f;
}
