/* Products with weights kept as bytes: every column of weights is a row of integers from -127 to 127 and one float that scales
   them, every row of activations likewise. Sums are exact integers, so their order is free: the same bits for any tile, any number
   of rows and threads, any machine.

   GROUP weights of one column stand side by side, as many as one instruction multiplies and adds; GROUP of the activations are
   broadcast to meet them. Knows integers and scales. It does not know gates. */

#if (VECTOR == 16 && defined(__AVX512VNNI__)) || (VECTOR == 8 && (defined(__AVXVNNI__) || (defined(__AVX512VNNI__) && defined(__AVX512VL__))))
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
#define BYTE_ROWS 6 /* rows of a tile: 6 x 4 sums, 4 vectors of weights and a broadcast fit 32 registers */
#else
#define BYTE_ROWS 2
#endif
#define PAD 64 /* rows of activations are a multiple of it long, the rest as of zero */

typedef int8_t quartet __attribute__((vector_size(VECTOR)));
typedef act avec __attribute__((vector_size(VECTOR * sizeof(act))));
typedef avec avec_any __attribute__((aligned(1), may_alias));

INLINE size padded(size n) { return (n + PAD - 1) / PAD * PAD; }

/* sum[j] += the GROUP activations at a times the GROUP weights of column j. */
INLINE ivec dot(ivec sum, const act *a, const int8_t *w) {
#if GROUP == 4
    int32_t four;
    memcpy(&four, a, 4);
#if VECTOR == 16
    return (ivec)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32(four), _mm512_load_si512(w));
#elif defined(__AVXVNNI__)
    return (ivec)_mm256_dpbusd_avx_epi32((__m256i)sum, _mm256_set1_epi32(four), _mm256_load_si256((const __m256i *)w));
#else
    return (ivec)_mm256_dpbusd_epi32((__m256i)sum, _mm256_set1_epi32(four), _mm256_load_si256((const __m256i *)w));
#endif
#elif GROUP == 2
    int32_t two;
    memcpy(&two, a, 4);
#if VECTOR == 16
    __m512i wide = _mm512_cvtepi8_epi16(_mm256_load_si256((const __m256i *)w));
    return sum + (ivec)_mm512_madd_epi16(wide, _mm512_set1_epi32(two));
#else
    __m256i wide = _mm256_cvtepi8_epi16(_mm_load_si128((const __m128i *)w));
    return sum + (ivec)_mm256_madd_epi16(wide, _mm256_set1_epi32(two));
#endif
#else
    quartet four;
    memcpy(&four, w, sizeof four);
    return sum + __builtin_convertvector(four, ivec) * (int32_t)*a;
#endif
}

/* sums[rows][vecs] = A[rows][K] x panel[K], of `vecs` vectors side by side. */
INLINE void byte_tile(const int rows, const int vecs, size K, const act *A, size lda, const int8_t *panel, ivec *sums) {
    const int chains = rows * vecs > 8 ? 1 : rows * vecs > 4 ? 2 : 4; /* so many sums hide the latency of one */
    const size line = (size)vecs * VECTOR * GROUP, groups = padded(K) / GROUP;
    ivec sum[4][BYTE_ROWS * SIDE];
    UNROLL for (int i = 0; i < chains * rows * vecs; i++) sum[i / (rows * vecs)][i % (rows * vecs)] = (ivec){0};
    for (size k = 0; k < groups; k += chains)
        UNROLL for (int c = 0; c < chains; c++) {
            const int8_t *w = panel + (k + c) * line;
            if (rows == 1)
                UNROLL for (int byte = 0; byte < (int)line; byte += 64) __builtin_prefetch(w + AHEAD + byte, 0, 3);
            UNROLL for (int v = 0; v < vecs; v++)
                UNROLL for (int r = 0; r < rows; r++)
                    sum[c][r * vecs + v] = dot(sum[c][r * vecs + v], A + r * lda + (k + c) * GROUP, w + v * VECTOR * GROUP);
        }
    UNROLL for (int i = 0; i < rows * vecs; i++) {
        ivec all_chains = sum[0][i];
        UNROLL for (int c = 1; c < chains; c++) all_chains += sum[c][i];
        sums[i] = all_chains;
    }
}

typedef void ByteTile(size K, const act *A, size lda, const int8_t *panel, ivec *sums);
#define BYTE_TILE(rows, vecs)                                                                                              \
    static void bytes_##rows##_##vecs(size K, const act *A, size lda, const int8_t *panel, ivec *sums) {                   \
        byte_tile(rows, vecs, K, A, lda, panel, sums);                                                                     \
    }
#define BYTE_TILES(rows) BYTE_TILE(rows, 1) BYTE_TILE(rows, 2) BYTE_TILE(rows, 3) BYTE_TILE(rows, 4)
#define BYTE_NAMES(rows) {bytes_##rows##_1, bytes_##rows##_2, bytes_##rows##_3, bytes_##rows##_4}
BYTE_TILES(1) BYTE_TILES(2)
#if BYTE_ROWS == 6
BYTE_TILES(3) BYTE_TILES(4) BYTE_TILES(5) BYTE_TILES(6)
#endif
static ByteTile *const byte_tiles[BYTE_ROWS][SIDE] = {BYTE_NAMES(1), BYTE_NAMES(2),
#if BYTE_ROWS == 6
                                                      BYTE_NAMES(3), BYTE_NAMES(4), BYTE_NAMES(5), BYTE_NAMES(6),
#endif
};

/* The nearest integers, where |x| < 2^22. */
INLINE ivec nearest(vec x) { return (ivec)(x + 12582912.f) - 0x4B400000; }

/* to = x * scale as integers; `lanes` of them. */
INLINE void put_bytes(act *to, vec x, float scale, int lanes) {
    avec q = __builtin_convertvector(nearest(x * scale) + OFFSET, avec);
    if (lanes == VECTOR) *(avec_any *)to = q;
    else memcpy(to, &q, lanes * sizeof(act));
}

/* A row whose largest is not known before; returns what one of its integers is worth. */
static float quantise(const float *x, size n, act *to) {
    vec most = (vec){0};
    for (size k = 0; k < n; k += VECTOR) {
        vec v = load(x + k, (int)least(VECTOR, n - k));
        ivec size_only = (ivec)v & 0x7fffffff;
        ivec larger = (vec)size_only > most;
        most = (vec)((larger & size_only) | (~larger & (ivec)most));
    }
    float top = 0;
    for (int lane = 0; lane < VECTOR; lane++) top = most[lane] > top ? most[lane] : top;
    const float scale = top > 1e-30f ? 127.f / top : 0.f;
    for (size k = 0; k < n; k += VECTOR) {
        int lanes = (int)least(VECTOR, n - k);
        put_bytes(to + k, load(x + k, lanes), scale, lanes);
    }
    return top / 127.f;
}

/* A panel of bytes, and for each of its columns what one integer is worth and what takes the activations' offset out again. */
typedef struct {
    int8_t *panel;
    float *worth;
    int32_t *shift;
} Bytes;

/* A panel of `vecs` vectors from K rows: lane l of vector v in row k is from[k * down + v * aside + l * right], and 0 where
   `lanes` says that there is no such lane. */
static void pack_bytes(const float *from, size K, size down, size aside, size right, int vecs, const size *lanes, Bytes to) {
    const size width = (size)vecs * VECTOR;
    memset(to.panel, 0, padded(K) * width);
    for (int v = 0; v < vecs; v++) {
        float top[VECTOR] = {0}, scale[VECTOR];
        int32_t total[VECTOR] = {0};
        const float *part = from + v * aside;
        for (size k = 0; k < K; k++)
            for (size l = 0; l < lanes[v]; l++) {
                float each = fabsf(part[k * down + l * right]);
                top[l] = each > top[l] ? each : top[l];
            }
        for (size l = 0; l < VECTOR; l++) scale[l] = top[l] > 1e-30f ? 127.f / top[l] : 0.f;
        for (size k = 0; k < K; k++) {
            vec x = (vec){0};
            for (size l = 0; l < lanes[v]; l++) x[l] = part[k * down + l * right] * scale[l];
            ivec q = nearest(x);
            int8_t *line = to.panel + (k / GROUP * width + v * VECTOR) * GROUP + k % GROUP;
            for (size l = 0; l < VECTOR; l++) line[l * GROUP] = (int8_t)q[l], total[l] += q[l];
        }
        for (size l = 0; l < VECTOR; l++) to.worth[v * VECTOR + l] = top[l] / 127.f, to.shift[v * VECTOR + l] = -OFFSET * total[l];
    }
}

/* What the sums of vector v of a panel are worth. */
INLINE vec worth(ivec sum, Bytes panel, int v, float scale) {
    ivec exact = sum + *(const ivec *)(panel.shift + v * VECTOR);
    return __builtin_convertvector(exact, vec) * (*(const vec *)(panel.worth + v * VECTOR) * scale);
}
