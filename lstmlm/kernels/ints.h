/* INTS: products of integers of 16 bits, summed exactly in 32, by VNNI: AVX512-VNNI, or AVX-VNNI at 256 bits.

   64 values of a row of A share a scale, as do 64 of a column of the panel. The integers of A go up to INTS_TOP, the magnitudes of a
   column's 64 add up to INTS_SUM at most: so no sum of 64 products overflows. It becomes a float, times what one integer of the column
   and one of the row are worth, and is added to the others.

   |error| <= 2^-11 |a| |w|, with the Euclidean norms of a row's and a column's 64, whatever they hold: half of what float16
   factors may be wrong by. For max |a| <= |a|, and sums of 64 magnitudes are at most 8 norms. A NaN or an infinity makes the
   worth of its 64 such. Sums are exact, so every build has the same bits. */

#if (VECTOR == 16 && defined(__AVX512VNNI__)) || (VECTOR == 8 && defined(__AVXVNNI__)) || defined(LSTMLM_EMULATE)
#define HAVE_INTS 1
#else
#define HAVE_INTS 0 /* by vpmaddwd and vpaddd whole steps are 1.3 times as fast as in float32: not worth a kind */
#endif

#if HAVE_INTS
#if VECTOR == 16
#define INTS_WIDE 4 /* vectors of a tile: 6 x 4 sums, 4 vectors of weights and a broadcast fill 29 registers of 32 */
#else
#define INTS_WIDE 2 /* 6 x 2, 2 and one or two: 16 */
#endif
#define INTS_ROWS 6
#define INTS_WIDTH (INTS_WIDE * VECTOR)
#define INTS_TOP 16383.f
#define INTS_SUM 131000.f /* 16383 (131000 + 64 / 2) < 2^31 */
#define INTS_BLOCK (INTS_WIDTH * (64 * 2 + 4)) /* bytes of a panel for 64 k: pairs of k, column by column, and each column's worth */

typedef int16_t shorts __attribute__((vector_size(VECTOR * 2)));
typedef shorts shorts_any __attribute__((aligned(2), may_alias));

/* x itself. A compiler left alone keeps copies of sums for what comes behind a loop, until it is out of registers. */
INLINE ivec in_register(ivec x) {
#if VECTOR > 4
    __asm__("" : "+v"(x));
#endif
    return x;
}

/* sum[j] += the two integers of a, in each of its lanes, times the two of column j. */
INLINE ivec add_two(ivec sum, ivec a, ivec w) {
#if VECTOR == 16 && defined(__AVX512VNNI__)
    return (ivec)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)w);
#elif VECTOR == 8 && defined(__AVXVNNI__)
    return (ivec)_mm256_dpwssd_avx_epi32((__m256i)sum, (__m256i)a, (__m256i)w);
#else
    return sum + (a << 16 >> 16) * (w << 16 >> 16) + (a >> 16) * (w >> 16);
#endif
}

INLINE void ints_tile(const int rows, size K, const int16_t *A, size lda, const char *panel, const float *scale, size lds, float *out,
                      size ldo, int first, const char *ahead) {
    for (size k = 0; k < K; k += 64, panel += INTS_BLOCK, first = 0) {
        ivec sum[INTS_ROWS][INTS_WIDE];
        UNROLL for (int r = 0; r < rows; r++)
            UNROLL for (int v = 0; v < INTS_WIDE; v++) sum[r][v] = (ivec){0};
        for (size pair = 0; pair < 32; pair++) {
            UNROLL for (int byte = 0; byte < INTS_WIDTH * 2; byte += 64) __builtin_prefetch(ahead + byte, 0, 2);
            ahead += INTS_WIDTH * 2;
            ivec weights[INTS_WIDE];
            UNROLL for (int v = 0; v < INTS_WIDE; v++) weights[v] = (ivec)load((const float *)panel + (pair * INTS_WIDE + v) * VECTOR, VECTOR);
            UNROLL for (int r = 0; r < rows; r++) {
                int32_t both;
                memcpy(&both, A + r * lda + k + pair * 2, 4);
                const ivec a = both - (ivec){0};
                UNROLL for (int v = 0; v < INTS_WIDE; v++) sum[r][v] = add_two(sum[r][v], a, weights[v]);
            }
        }
        UNROLL for (int v = 0; v < INTS_WIDE; v++) {
            const vec worth = load((const float *)panel + 32 * INTS_WIDTH + v * VECTOR, VECTOR);
            UNROLL for (int r = 0; r < rows; r++) {
                float *to = out + r * ldo + v * VECTOR;
                /* The column's worth first: the product of the two may be smaller than any number. */
                const vec total = __builtin_convertvector(in_register(sum[r][v]), vec) * worth, before = first ? (vec){0} : load(to, VECTOR);
                store(to, fused(total, all(scale[r * lds + k / 64]), before), VECTOR);
            }
        }
    }
}

typedef void IntsTile(size K, const int16_t *A, size lda, const char *panel, const float *scale, size lds, float *out, size ldo,
                      int first, const char *ahead);

#define INTS_TILE(rows)                                                                                                    \
    static void ints_##rows(size K, const int16_t *A, size lda, const char *panel, const float *scale, size lds, float *out, \
                            size ldo, int first, const char *ahead) {                                                      \
        ints_tile(rows, K, A, lda, panel, scale, lds, out, ldo, first, ahead);                                             \
    }
INTS_TILE(1) INTS_TILE(2) INTS_TILE(3) INTS_TILE(4) INTS_TILE(5) INTS_TILE(6)
static IntsTile *const ints_tiles[] = {0, ints_1, ints_2, ints_3, ints_4, ints_5, ints_6};

/* out[rows][columns] = A x panel, whose strips of INTS_WIDTH columns lie one after another. */
static void ints_product(size rows, size columns, size K, const int16_t *A, size lda, const char *panel, const float *scale, size lds,
                         float *out) {
    const size count = blocks(rows, INTS_ROWS);
    for (size n = 0; n < columns; n += INTS_WIDTH, panel += K / 64 * INTS_BLOCK)
        for (size k = 0; k < K; k += K_CHUNK)
            for (size b = 0; b < count; b++) {
                const size r = rows * b / count, height = rows * (b + 1) / count - r;
                const char *now = panel + k / 64 * INTS_BLOCK;
                const char *ahead = now + (b < 2 ? K_CHUNK / 64 * INTS_BLOCK + b * K_CHUNK * INTS_WIDTH : 0); /* the next chunk, half by each of two */
                ints_tiles[height](least(K_CHUNK, K - k), A + r * lda + k, lda, now, scale + r * lds + k / 64, lds, out + r * columns + n,
                                   columns, k == 0, ahead);
            }
}

INLINE vec inverse(vec worth) {
    const ivec there = worth > 1.2e-38f; /* not NaN, nor too small for an inverse */
    return (vec)(there & (ivec)(1.f / worth));
}

/* The nearest integer to |x scale| <= 32767 in the low 16 bits. */
INLINE ivec ints_bits(vec x, vec scale) { return (ivec)fused(x, scale, all(12582912.f)); }

/* Puts 64 values into a row of A; returns what one of its integers is worth. As integers the magnitudes of floats are in the same
   order, and NaN is above all of them. */
INLINE float ints_store(const vec x[64 / VECTOR], int16_t *to) {
    ivec most = {0};
    UNROLL for (int v = 0; v < 64 / VECTOR; v++) {
        const ivec magnitude = (ivec)x[v] & 0x7fffffff, larger = magnitude > most;
        most = (larger & magnitude) | (~larger & most);
    }
    const vec worth = (vec)(largest_integer(most) - (ivec){0}) / INTS_TOP, scale = inverse(worth);
    UNROLL for (int v = 0; v < 64 / VECTOR; v++) *(shorts_any *)(to + v * VECTOR) = __builtin_convertvector(ints_bits(x[v], scale), shorts);
    return worth[0];
}

/* Puts 64 k of some columns, a multiple of INTS_WIDTH, into their strips, `at` k behind the beginning of each. */
INLINE void ints_pack(const float (*from)[64], size columns, char *panel, size at, size K) {
    for (size n = 0; n < columns; n += INTS_WIDTH) {
        float *to = (float *)(panel + n / INTS_WIDTH * (K / 64) * INTS_BLOCK + at / 64 * INTS_BLOCK);
        for (int v = 0; v < INTS_WIDE; v++) {
            const float *column = from[0] + n + v * VECTOR;
            vec total = {0}, most = {0};
            for (int k = 0; k < 64; k++) {
                const vec magnitude = (vec)((ivec)load(column + k * 64, VECTOR) & 0x7fffffff);
                const ivec larger = magnitude > most;
                total += magnitude;
                most = (vec)((larger & (ivec)magnitude) | (~larger & (ivec)most));
            }
            vec worth = total / INTS_SUM, least_worth = most / 32767.f;
            const ivec larger = least_worth > worth;
            worth = (vec)((larger & (ivec)least_worth) | (~larger & (ivec)worth));
            const vec scale = inverse(worth);
            for (int k = 0; k < 64; k += 2) {
                const ivec even = ints_bits(load(column + k * 64, VECTOR), scale), odd = ints_bits(load(column + k * 64 + 64, VECTOR), scale);
                store(to + (k / 2 * INTS_WIDE + v) * VECTOR, (vec)((even & 0xffff) | odd << 16), VECTOR);
            }
            store(to + 32 * INTS_WIDTH + v * VECTOR, worth, VECTOR);
        }
    }
}
#endif
