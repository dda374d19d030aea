/* Rows of activations times panels of weights, as floats or as bytes.

   As bytes every column of weights is integers from -127 to 127 and one float that says what an integer is worth, every row of
   activations likewise. Sums are exact integers, so their order is free: the same bits for any tile, any number of rows and threads,
   any machine. Sums of floats run over k in order, with one rounding for each product.

   GROUP weights of one column stand side by side, as many as one instruction multiplies and adds; GROUP of the activations are
   broadcast to meet them. */

#if (VECTOR == 16 && defined(__AVX512VNNI__)) || (VECTOR == 8 && defined(__AVXVNNI__))
#define GROUP 4
#define OFFSET 128 /* the instruction takes activations without a sign */
typedef uint8_t act;
#elif (VECTOR == 16 && defined(__AVX512BW__)) || VECTOR == 8
#define GROUP 2
#define OFFSET 0
typedef int16_t act;
#else
#define GROUP 1
#define OFFSET 0
typedef int16_t act;
#endif

#define SIDE 4 /* vectors side by side in a panel, as many as there are gates */
#if VECTOR == 16
#define TILE_ROWS 6 /* 6 x 4 sums, 4 vectors of weights and a broadcast fit 32 registers */
#else
#define TILE_ROWS 2
#endif
#define PAD 64     /* rows of bytes are a multiple of it long, the rest as of zero */
#define AHEAD 4096 /* bytes that are asked for before they are needed, where each is used but once */

typedef int8_t quartet __attribute__((vector_size(VECTOR)));
#if GROUP == 4
typedef ivec group; /* GROUP bytes in each lane */
#elif GROUP == 2
typedef int16_t group __attribute__((vector_size(VECTOR * 2)));
#else
typedef quartet group;
#endif
typedef act avec __attribute__((vector_size(VECTOR * sizeof(act))));
typedef avec avec_any __attribute__((aligned(1), may_alias));

INLINE size padded(size n) { return blocks(n, PAD) * PAD; }

/* Rows of activations, K wide. As bytes they are padded(K) wide, and `worth` says for each row what one of its integers is. */
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

/* sum[j] += the GROUP activations at a times the GROUP weights of column j. */
INLINE ivec dot(ivec sum, const act *a, const int8_t *w) {
#if GROUP == 4
    int32_t four;
    memcpy(&four, a, 4);
#if VECTOR == 16
    return (ivec)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32(four), _mm512_load_si512(w));
#else
    return (ivec)_mm256_dpbusd_avx_epi32((__m256i)sum, _mm256_set1_epi32(four), _mm256_load_si256((const __m256i *)w));
#endif
#elif GROUP == 2
    int32_t two;
    memcpy(&two, a, 4);
#if VECTOR == 16
    return sum + (ivec)_mm512_madd_epi16(_mm512_cvtepi8_epi16(_mm256_load_si256((const __m256i *)w)), _mm512_set1_epi32(two));
#else
    return sum + (ivec)_mm256_madd_epi16(_mm256_cvtepi8_epi16(_mm_load_si128((const __m128i *)w)), _mm256_set1_epi32(two));
#endif
#else
    quartet four;
    memcpy(&four, w, sizeof four);
    return sum + __builtin_convertvector(four, ivec) * (int32_t)*a;
#endif
}

/* The nearest integers, where |x| < 2^22. */
INLINE ivec nearest(vec x) { return (ivec)(x + 12582912.f) - 0x4B400000; }

/* to = x * scale as integers, `lanes` of them. */
INLINE void put_bytes(act *to, vec x, float scale, int lanes) {
    avec q = __builtin_convertvector(nearest(x * scale) + OFFSET, avec);
    if (lanes == VECTOR) *(avec_any *)to = q;
    else memcpy(to, &q, lanes * sizeof(act));
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
    const float scale = top > 1e-30f ? 127.f / top : 0.f;
    for (size k = 0; k < n; k += VECTOR) {
        int lanes = (int)least(VECTOR, n - k);
        put_bytes(to + k, load(x + k, lanes), scale, lanes);
    }
    return top / 127.f;
}

INLINE void byte_tile(const int rows, const int vecs, size K, const Rows *x, size row, const Panel *panel, vec *out) {
    const int chains = rows * vecs > 8 ? 1 : rows * vecs > 4 ? 2 : 4; /* so many sums hide the latency of one */
    const size line = (size)vecs * VECTOR * GROUP, groups = padded(K) / GROUP, lda = padded(K);
    const act *A = x->bytes + row * lda;
    ivec sum[4][TILE_ROWS * SIDE];
    UNROLL for (int c = 0; c < chains; c++)
        UNROLL for (int i = 0; i < rows * vecs; i++) sum[c][i] = (ivec){0};
    for (size k = 0; k < groups; k += chains)
        UNROLL for (int c = 0; c < chains; c++) {
            const int8_t *w = (const int8_t *)panel->weights + (k + c) * line;
            if (rows == 1)
                UNROLL for (int byte = 0; byte < (int)line; byte += 64) __builtin_prefetch(w + AHEAD + byte, 0, 3);
            UNROLL for (int v = 0; v < vecs; v++)
                UNROLL for (int r = 0; r < rows; r++)
                    sum[c][r * vecs + v] = dot(sum[c][r * vecs + v], A + r * lda + (k + c) * GROUP, w + v * VECTOR * GROUP);
        }
    UNROLL for (int v = 0; v < vecs; v++)
        UNROLL for (int r = 0; r < rows; r++) {
            ivec exact = sum[0][r * vecs + v] + *(const ivec *)(panel->shift + v * VECTOR);
            UNROLL for (int c = 1; c < chains; c++) exact += sum[c][r * vecs + v];
            vec worth = *(const vec *)(panel->worth + v * VECTOR) * x->worth[row + r];
            out[r * vecs + v] = __builtin_convertvector(exact, vec) * worth;
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
        UNROLL for (int v = 0; v < vecs; v++)
            UNROLL for (int r = 0; r < rows; r++) sum[r * vecs + v] += A[r * K + k] * *(const vec *)(w + v * VECTOR);
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
#define TILES(kind, rows) TILE(kind, rows, 1) TILE(kind, rows, 2) TILE(kind, rows, 3) TILE(kind, rows, 4)
#define NAMES(kind, rows) {kind##_##rows##_1, kind##_##rows##_2, kind##_##rows##_3, kind##_##rows##_4}
#if TILE_ROWS == 6
#define ALL(kind) TILES(kind, 1) TILES(kind, 2) TILES(kind, 3) TILES(kind, 4) TILES(kind, 5) TILES(kind, 6)
#define ALL_NAMES(kind) {NAMES(kind, 1), NAMES(kind, 2), NAMES(kind, 3), NAMES(kind, 4), NAMES(kind, 5), NAMES(kind, 6)}
#else
#define ALL(kind) TILES(kind, 1) TILES(kind, 2)
#define ALL_NAMES(kind) {NAMES(kind, 1), NAMES(kind, 2)}
#endif
ALL(float)
ALL(byte)
static Tile *const tiles[2][TILE_ROWS][SIDE] = {ALL_NAMES(float), ALL_NAMES(byte)};

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
            group bytes = __builtin_convertvector(side_by_side, group);
            memcpy(at, &bytes, sizeof bytes);
        }
        store(to.worth + v * VECTOR, top / 127.f, VECTOR);
        *(ivec *)(to.shift + v * VECTOR) = total * -OFFSET;
    }
}
