/* Rows of activations times panels of weights, as floats or as bytes.

   As bytes every column of weights is integers from -127 to 127 and one float that says what an integer is worth. A row of
   activations is integers likewise, of up to 16 bits: with 8 the text that is drawn differs visibly from the network's own. Sums are
   exact integers, so their order is free: the same bits for any tile, any number of rows and threads, any machine. Sums of floats run
   over k in order, with one rounding for each product.

   GROUP weights of one column stand side by side, as many as one instruction multiplies and adds; GROUP of the activations are
   broadcast to meet them. */

#if (VECTOR == 16 && defined(__AVX512VNNI__)) || (VECTOR == 8 && defined(__AVXVNNI__))
#define GROUP 4
#define PLANES 2 /* the instruction takes bytes: the high ones of a row of activations, then the low ones */
#define OFFSET 32768 /* without a sign */
#define LOWEST 0
typedef uint8_t act;
#elif defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
#define GROUP 4
#define PLANES 2
#define OFFSET (-128) /* with one: x is 256 h + l + 128, and both of them are -128 to 127 */
#define LOWEST (-128)
#define TOGETHER 4
typedef int8_t act;
#elif (VECTOR == 16 && defined(__AVX512BW__)) || VECTOR == 8
#define GROUP 2
#define PLANES 1
#define OFFSET 0
#define LOWEST 0
typedef int16_t act;
#else
#define GROUP 1
#define PLANES 1
#define OFFSET 0
#define LOWEST 0
typedef int16_t act;
#endif

#if !defined(TOGETHER)
#define TOGETHER 1 /* groups of a row of activations that one load brings */
#endif
#if defined(__x86_64__) && PLANES == 2
#define FETCH 0 /* asking for bytes ahead takes loads from the two products of each: 1 to 40 % slower on a busy Zen 4 */
#else
#define FETCH 1
#endif
#define SIDE 4 /* vectors side by side in a panel, as many as there are gates */
#if VECTOR == 16 || defined(__aarch64__)
#define TILE_ROWS 6 /* 6 x 4 sums, 4 vectors of weights and a broadcast fit 32 registers */
#define BYTE_ROWS (TILE_ROWS / PLANES)
#else
#define TILE_ROWS 2
#define BYTE_ROWS 2
#endif
#define PAD 64     /* rows of bytes are a multiple of it long, the rest as of zero */
#define AHEAD 4096 /* bytes that are asked for before they are needed, where each is used but once */

/* GROUP bytes in each lane. */
#if GROUP == 4
typedef ivec group_vec;
#elif GROUP == 2
typedef int16_t group_vec __attribute__((vector_size(VECTOR * 2)));
#else
typedef int8_t group_vec __attribute__((vector_size(VECTOR)));
#endif
typedef act avec __attribute__((vector_size(VECTOR * sizeof(act))));
typedef avec avec_any __attribute__((aligned(1), may_alias));

INLINE size padded(size n) { return blocks(n, PAD) * PAD; }

/* So long is a row of activations as integers. */
INLINE size row_of(size K) { return padded(K) * PLANES; }

/* The largest integer of an activation: no sum over K overflows 32 bits. */
INLINE float top_of(size K) { return (float)least(32767, INT32_MAX / (127 * K)); }

/* Rows of activations, K wide. As bytes they are row_of(K) wide, and `worth` says for each row what one of its integers is. */
typedef struct {
    float *x;
    act *bytes;
    float *worth;
} Rows;

/* Weights of up to SIDE vectors of columns: for each k, or each GROUP of them as bytes, all vectors side by side. `worth` says for
   each column what one of its integers is, `shift` takes the activations' OFFSET out again. */
typedef struct {
    void *weights;
    float *worth;
    int32_t *shift;
} Panel;

/* ---- bytes ---- */

/* The activations from a on as `dot` takes them: a group in all lanes, or TOGETHER groups side by side. */
INLINE ivec activations_at(const act *a) {
#if TOGETHER > 1
    int8x16_t x = vld1q_s8(a);
    __asm__("" : "+w"(x)); /* else clang reads each group once more */
    return (ivec)x;
#elif GROUP > 1
    int32_t group;
    memcpy(&group, a, 4);
    return group - (ivec){0};
#else
    return (int32_t)*a - (ivec){0};
#endif
}

/* sum[j] += a group of activations, of those in `a` the one at `place`, times the GROUP weights of column j. */
INLINE ivec dot(ivec sum, ivec a, int place, ivec w) {
#if TOGETHER > 1
    switch (place) { /* compilers want it written out */
    case 0: return vdotq_laneq_s32(sum, (int8x16_t)w, (int8x16_t)a, 0);
    case 1: return vdotq_laneq_s32(sum, (int8x16_t)w, (int8x16_t)a, 1);
    case 2: return vdotq_laneq_s32(sum, (int8x16_t)w, (int8x16_t)a, 2);
    default: return vdotq_laneq_s32(sum, (int8x16_t)w, (int8x16_t)a, 3);
    }
#elif GROUP == 4 && VECTOR == 16
    return (ivec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)w);
#elif GROUP == 4
    return (ivec)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)a, (__m256i)w);
#elif GROUP == 2 && VECTOR == 16
    return sum + (ivec)_mm512_madd_epi16((__m512i)w, (__m512i)a);
#elif GROUP == 2
    return sum + (ivec)_mm256_madd_epi16((__m256i)w, (__m256i)a);
#else
    return sum + w * a;
#endif
}

/* The GROUP weights of each column as `dot` takes them, read once for all rows: a compiler left alone reads them for each. */
INLINE ivec weights_at(const int8_t *w) {
#if GROUP == 4
    ivec x = *(const ivec *)w;
#elif VECTOR == 16
    ivec x = (ivec)_mm512_cvtepi8_epi16(_mm256_load_si256((const __m256i *)w));
#elif GROUP == 2
    ivec x = (ivec)_mm256_cvtepi8_epi16(_mm_load_si128((const __m128i *)w));
#else
    group_vec bytes;
    memcpy(&bytes, w, sizeof bytes);
    ivec x = __builtin_convertvector(bytes, ivec);
#endif
#if defined(__x86_64__)
    __asm__("" : "+v"(x));
#elif defined(__aarch64__)
    __asm__ volatile("" : "+w"(x)); /* as `in_turn` */
#endif
    return x;
}

/* The nearest integers, where |x| < 2^22. */
INLINE ivec nearest(vec x) { return (ivec)(x + 12582912.f) - 0x4B400000; }

/* to = x * scale as integers, `lanes` of them, in a row of K. */
INLINE void put_bytes(act *to, size K, vec x, float scale, int lanes) {
    const ivec q = nearest(x * scale) + OFFSET;
    for (int plane = 0; plane < PLANES; plane++, to += padded(K)) {
        const avec part = __builtin_convertvector(plane == PLANES - 1 ? q : (q - LOWEST) >> 8, avec); /* of q its low bits */
        if (lanes == VECTOR) *(avec_any *)to = part;
        else memcpy(to, &part, lanes * sizeof(act));
    }
}

/* A row whose largest is not known before; returns what one of its integers is worth: NaN if there is one in the row. As integers
   the magnitudes of floats are in the same order, and NaN is above all of them. */
static float quantise(const float *x, size n, act *to) {
    ivec most = (ivec){0};
    for (size k = 0; k < n; k += VECTOR) {
        ivec magnitude = (ivec)load(x + k, (int)least(VECTOR, n - k)) & 0x7fffffff, larger = magnitude > most;
        most = (larger & magnitude) | (~larger & most);
    }
    float top;
    memcpy(&top, &(int32_t){largest_integer(most)}, sizeof top);
    const float scale = top > 1e-30f ? top_of(n) / top : 0.f;
    for (size k = 0; k < n; k += VECTOR) {
        int lanes = (int)least(VECTOR, n - k);
        put_bytes(to + k, n, load(x + k, lanes), scale, lanes);
    }
    return top / top_of(n);
}

INLINE void byte_tile(const int rows, const int vecs, size K, const Rows *x, size row, const Panel *panel, vec *out) {
    const int each = rows * vecs * PLANES, chains = each > 8 ? 1 : each > 4 ? 2 : 4; /* so many sums hide the latency of one */
    const int step = chains > TOGETHER ? chains : TOGETHER;
    const size line = (size)vecs * VECTOR * GROUP, groups = padded(K) / GROUP, lda = row_of(K);
    const act *A = x->bytes + row * lda;
    ivec sum[4][TILE_ROWS * SIDE][PLANES], a[TILE_ROWS][PLANES];
    UNROLL for (int c = 0; c < chains; c++)
        UNROLL for (int i = 0; i < rows * vecs; i++)
            UNROLL for (int p = 0; p < PLANES; p++) sum[c][i][p] = (ivec){0};
    for (size k = 0; k < groups; k += step)
        UNROLL for (int c = 0; c < step; c++) {
            const int8_t *w = (const int8_t *)panel->weights + (k + c) * line;
            if (rows == 1 && FETCH)
                UNROLL for (int byte = 0; byte < (int)line; byte += 64) __builtin_prefetch(w + AHEAD + byte, 0, 3);
            UNROLL for (int r = 0; r < rows; r++)
                UNROLL for (int p = 0; p < PLANES && c % TOGETHER == 0; p++)
                    a[r][p] = activations_at(A + r * lda + p * padded(K) + (k + c) * GROUP);
            UNROLL for (int v = 0; v < vecs; v++) {
                const ivec weights = weights_at(w + v * VECTOR * GROUP);
                UNROLL for (int r = 0; r < rows; r++)
                    UNROLL for (int p = 0; p < PLANES; p++)
                        sum[c % chains][r * vecs + v][p] = dot(sum[c % chains][r * vecs + v][p], a[r][p], c % TOGETHER, weights);
            }
        }
    UNROLL for (int v = 0; v < vecs; v++)
        UNROLL for (int r = 0; r < rows; r++) {
            uvec exact = *(const uvec *)(panel->shift + v * VECTOR); /* modulo 2^32: parts may be beyond it, the whole is not */
            UNROLL for (int c = 0; c < chains; c++)
                UNROLL for (int p = 0; p < PLANES; p++) exact += (uvec)sum[c][r * vecs + v][p] << (p == PLANES - 1 ? 0 : 8);
            vec worth = *(const vec *)(panel->worth + v * VECTOR) * x->worth[row + r];
            out[r * vecs + v] = __builtin_convertvector((ivec)exact, vec) * worth;
        }
}

/* ---- floats ---- */

INLINE void float_tile(const int rows, const int vecs, size K, const Rows *x, size row, const Panel *panel, vec *out) {
    const float *A = x->x + row * K, *w = panel->weights;
    vec sum[TILE_ROWS * SIDE];
    UNROLL for (int i = 0; i < rows * vecs; i++) sum[i] = (vec){0};
    for (size k = 0; k < K; k++, w += vecs * VECTOR) {
        if (rows == 1)
            UNROLL for (int at = 0; at < vecs * VECTOR; at += 16) __builtin_prefetch((const char *)(w + at) + AHEAD, 0, 3);
        vec weights[SIDE];
        UNROLL for (int v = 0; v < vecs; v++) weights[v] = *(const vec *)(w + v * VECTOR);
        UNROLL for (int r = 0; r < rows; r++) {
            const vec a = all(in_turn(A[r * K + k]));
            UNROLL for (int v = 0; v < vecs; v++) sum[r * vecs + v] = fused(a, weights[v], sum[r * vecs + v]);
        }
    }
    UNROLL for (int i = 0; i < rows * vecs; i++) out[i] = sum[i];
}

/* ---- both ---- */

/* out[rows][vecs] = some rows of x from `row` on, times a panel of K rows. */
typedef void Tile(size K, const Rows *x, size row, const Panel *panel, vec *out);
#define TILE(kind, rows, vecs)                                                                                             \
    static void kind##_##rows##_##vecs(size K, const Rows *x, size row, const Panel *panel, vec *out) {                    \
        kind##_tile(rows, vecs, K, x, row, panel, out);                                                                    \
    }
#define EVERY_WIDTH(kind, rows) TILE(kind, rows, 1) TILE(kind, rows, 2) TILE(kind, rows, 3) TILE(kind, rows, 4)
#define NAMES(kind, rows) {kind##_##rows##_1, kind##_##rows##_2, kind##_##rows##_3, kind##_##rows##_4}
#define ROWS_2(kind) EVERY_WIDTH(kind, 1) EVERY_WIDTH(kind, 2)
#define ROWS_3(kind) ROWS_2(kind) EVERY_WIDTH(kind, 3)
#define ROWS_6(kind) ROWS_3(kind) EVERY_WIDTH(kind, 4) EVERY_WIDTH(kind, 5) EVERY_WIDTH(kind, 6)
#define NAMES_2(kind) NAMES(kind, 1), NAMES(kind, 2)
#define NAMES_3(kind) NAMES_2(kind), NAMES(kind, 3)
#define NAMES_6(kind) NAMES_3(kind), NAMES(kind, 4), NAMES(kind, 5), NAMES(kind, 6)
#if TILE_ROWS == 6
ROWS_6(float)
#define FLOAT_NAMES NAMES_6(float)
#else
ROWS_2(float)
#define FLOAT_NAMES NAMES_2(float)
#endif
#if BYTE_ROWS == 6
ROWS_6(byte)
#define BYTE_NAMES NAMES_6(byte)
#elif BYTE_ROWS == 3
ROWS_3(byte)
#define BYTE_NAMES NAMES_3(byte)
#else
ROWS_2(byte)
#define BYTE_NAMES NAMES_2(byte)
#endif
static Tile *const tiles[2][TILE_ROWS][SIDE] = {{FLOAT_NAMES}, {BYTE_NAMES}};
static const int tile_rows[2] = {TILE_ROWS, BYTE_ROWS};

/* Bytes of memory for a panel's weights. */
INLINE size panel_size(int in_bytes, size K, size vecs) { return in_bytes ? padded(K) * vecs * VECTOR : K * vecs * VECTOR * 4; }

INLINE vec fetch(const float *from, size right, int lanes) {
    if (right == 1) return load(from, lanes);
    vec x = (vec){0};
    for (int l = 0; l < lanes; l++) x[l] = from[l * right];
    return x;
}

/* A panel of `vecs` vectors from K rows: lane l of vector v in row k is from[k * down + v * aside + l * right], and 0 where
   `lanes` says that there is no such lane. */
static void pack(int in_bytes, const float *from, size K, size down, size aside, size right, int vecs, const int *lanes, Panel to) {
    const size width = (size)vecs * VECTOR;
    memset(to.weights, 0, panel_size(in_bytes, K, vecs));
    for (int v = 0; v < vecs; v++) {
        const float *part = from + v * aside;
        if (!in_bytes) {
            float *at = (float *)to.weights + v * VECTOR;
            for (size k = 0; k < K; k++, at += width) store(at, fetch(part + k * down, right, lanes[v]), VECTOR);
            continue;
        }
        vec top = {0}, scale = {0};
        ivec total = {0};
        for (size k = 0; k < K; k++) {
            vec x = fetch(part + k * down, right, lanes[v]), magnitude = (vec)((ivec)x & 0x7fffffff);
            ivec larger = magnitude > top;
            top = (vec)((larger & (ivec)magnitude) | (~larger & (ivec)top));
        }
        for (int l = 0; l < VECTOR; l++) scale[l] = top[l] > 1e-30f ? 127.f / top[l] : 0.f;
        int8_t *at = (int8_t *)to.weights + v * VECTOR * GROUP;
        for (size k = 0; k < K; at += width * GROUP) {
            ivec side_by_side = {0};
            for (int g = 0; g < GROUP && k < K; g++, k++) {
                ivec q = nearest(fetch(part + k * down, right, lanes[v]) * scale);
                side_by_side |= (q & 255) << 8 * g;
                total += q;
            }
            group_vec bytes = __builtin_convertvector(side_by_side, group_vec);
            memcpy(at, &bytes, sizeof bytes);
        }
        store(to.worth + v * VECTOR, top / 127.f, VECTOR);
        *(uvec *)(to.shift + v * VECTOR) = (uvec)total * -(uint32_t)OFFSET; /* modulo 2^32, as the sums are until the end */
    }
}
