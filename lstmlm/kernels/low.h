/* Products in reduced precision: out[rows][64] = A[rows][K] x panel[K][64], summed in float32.

   HALF   float16 factors on AVX512-FP16. 64 products at a time are summed in float16, then added to the float32 sum, times the
          power of two by which those 64 values of A had been divided so that neither overflows nor vanishes.
   TILES  bfloat16 factors on AMX, summed in float32 by the hardware.
   PAIRS  bfloat16 factors on AVX512-BF16, whose instruction adds two products to each float32 sum: TILES' layout, of which a row of
          a panel's tile is an operand, and a pair of A 32 bits to broadcast.
   INTS   integers of 16 bits, for CPUs that have none of these: see `ints.h`.

   LSTMLM_EMULATE puts small functions in the place of the instructions of TILES, and of those of PAIRS and INTS on a machine that
   lacks them, so that the logic around them can be tested there.

   K is a multiple of 64. A and panel are in the kind's own layout, made by `low_store` and `low_pack`, or as `ints.h` has it. */

enum { FLOAT, HALF, TILES, PAIRS, INTS, KINDS };

#define COLUMNS 64
#define SPARE_ROWS 32 /* a tile always reads whole: A has this many rows more than are used */
#define APART 32      /* values between the rows of A: rows a power of two apart would share a few lines of the first cache */

#if defined(__AVX512FP16__)
#define HAVE_HALF 1
#else
#define HAVE_HALF 0
#endif

#if VECTOR == 16 && (defined(__AVX512BF16__) || defined(LSTMLM_EMULATE))
#define HAVE_PAIRS 1
#else
#define HAVE_PAIRS 0
#endif

#if HAVE_PAIRS && ((defined(__AMX_BF16__) && defined(__linux__)) || defined(LSTMLM_EMULATE))
#define HAVE_TILES 1
#else
#define HAVE_TILES 0
#endif

#include "ints.h"

#define HAVE_LOW (HAVE_HALF || HAVE_PAIRS || HAVE_INTS)

#if HAVE_HALF
#define HALF_ROWS 12 /* x 2 accumulators of 32 halves */

INLINE void half_tile(const int rows, const int ways, size K, const uint32_t *A, size lda, const _Float16 *panel, const float *scale,
                      size lds, const float *panel_scale, float *out, int first, const char *ahead) {
    const int chain = 64 / ways;
    for (size k = 0; k < K; k += 64, first = 0) {
        __m512h sum[4][HALF_ROWS][2];
        UNROLL for (int w = 0; w < ways; w++)
            UNROLL for (int r = 0; r < rows; r++) sum[w][r][0] = sum[w][r][1] = _mm512_setzero_ph();
        for (int j = 0; j < chain; j++) {
            __builtin_prefetch(ahead, 0, 2);
            ahead += 64;
            UNROLL for (int w = 0; w < ways; w++) {
                size at = k + w * chain + j;
                __m512h left = _mm512_load_ph(panel + at * COLUMNS), right = _mm512_load_ph(panel + at * COLUMNS + 32);
                UNROLL for (int r = 0; r < rows; r++) {
                    __m512h a = _mm512_castsi512_ph(_mm512_set1_epi32((int)A[r * lda + at]));
                    sum[w][r][0] = _mm512_fmadd_ph(a, left, sum[w][r][0]);
                    sum[w][r][1] = _mm512_fmadd_ph(a, right, sum[w][r][1]);
                }
            }
        }
        UNROLL for (int r = 0; r < rows; r++) {
            vec factor = all((scale ? scale[r * lds + k / 64] : 1.f) * (panel_scale ? panel_scale[k / 64] : 1.f));
            UNROLL for (int v = 0; v < 4; v++) {
                float *to = out + r * COLUMNS + v * VECTOR;
                vec total = first ? (vec){0} : load(to, VECTOR);
                UNROLL for (int w = 0; w < ways; w++) {
                    __m512d whole = _mm512_castph_pd(sum[w][r][v / 2]);
                    __m256d part = v % 2 ? _mm512_extractf64x4_pd(whole, 1) : _mm512_castpd512_pd256(whole);
                    total += factor * _mm512_cvtxph_ps(_mm256_castpd_ph(part));
                }
                store(to, total, VECTOR);
            }
        }
    }
}

typedef void HalfTile(size K, const uint32_t *A, size lda, const _Float16 *panel, const float *scale, size lds,
                      const float *panel_scale, float *out, int first, const char *ahead);

#define HALF_TILE(rows, ways)                                                                                              \
    static void half_##rows##_##ways(size K, const uint32_t *A, size lda, const _Float16 *panel, const float *scale, size lds, \
                                     const float *panel_scale, float *out, int first, const char *ahead) {                 \
        half_tile(rows, ways, K, A, lda, panel, scale, lds, panel_scale, out, first, ahead);                               \
    }
HALF_TILE(1, 4) HALF_TILE(2, 4) HALF_TILE(3, 2)
HALF_TILE(1, 1) HALF_TILE(2, 1) HALF_TILE(3, 1) HALF_TILE(4, 1) HALF_TILE(5, 1) HALF_TILE(6, 1)
HALF_TILE(7, 1) HALF_TILE(8, 1) HALF_TILE(9, 1) HALF_TILE(10, 1) HALF_TILE(11, 1) HALF_TILE(12, 1)

static HalfTile *const half_tiles[] = {0,        half_1_1, half_2_1, half_3_1,  half_4_1,  half_5_1, half_6_1,
                                       half_7_1, half_8_1, half_9_1, half_10_1, half_11_1, half_12_1};
static HalfTile *const half_few[] = {0, half_1_4, half_2_4, half_3_2};

static void half_product(size batch, size rows, size K, const uint32_t *A, size lda, const _Float16 *panel, const float *scale, size lds,
                         const float *panel_scale, float *out) {
    size count = batch <= 3 ? 1 : blocks(rows, HALF_ROWS);
    for (size k = 0; k < K; k += K_CHUNK)
        for (size b = 0; b < count; b++) {
            size r = rows * b / count, height = rows * (b + 1) / count - r;
            const char *now = (const char *)(panel + k * COLUMNS), *ahead = b < 2 ? now + K_CHUNK * (2 + b) * 64 : now;
            (batch <= 3 ? half_few : half_tiles)[height](least(K_CHUNK, K - k), A + r * lda + k, lda, (const _Float16 *)now,
                                                         scale ? scale + r * lds + k / 64 : 0, lds, panel_scale ? panel_scale + k / 64 : 0,
                                                         out + r * COLUMNS, k == 0, ahead);
        }
}
#endif

#if HAVE_TILES
#if defined(LSTMLM_EMULATE)
static _Thread_local float emulated[8][16][16]; /* what a tile register holds: 16 rows of 64 bytes */
static _Thread_local int begun;                 /* the machine traps without; here it shows as NaN */

static void emulated_load(int tile, const void *from, size stride) {
    for (int r = 0; r < 16; r++) memcpy(emulated[tile][r], (const char *)from + r * stride, 64);
}
static void emulated_store(int tile, void *to, size stride) {
    for (int r = 0; r < 16; r++) memcpy((char *)to + r * stride, emulated[tile][r], 64);
}
static float widened(const uint16_t *bits) {
    uint32_t whole = (uint32_t)*bits << 16;
    float x;
    memcpy(&x, &whole, 4);
    return x;
}
static void emulated_product(int sum, int left, int right) {
    const uint16_t(*a)[32] = (const void *)emulated[left], (*b)[32] = (const void *)emulated[right];
    for (int m = 0; m < 16; m++)
        for (int k = 0; k < 32; k++)
            for (int n = 0; n < 16; n++) emulated[sum][m][n] += widened(&a[m][k]) * widened(&b[k / 2][2 * n + k % 2]) + (begun ? 0 : NAN);
}
#define tile_zero(t) memset(emulated[t], 0, sizeof emulated[t])
#define tile_load emulated_load
#define tile_store emulated_store
#define tile_multiply emulated_product
static void tiles_begin(void) { begun = 1; }
static void tiles_end(void) { begun = 0; }
static int tiles_allowed(void) { return 1; }
#else
#include <sys/syscall.h>
#include <unistd.h>
#define tile_zero _tile_zero
#define tile_load(t, from, stride) _tile_loadd(t, from, stride)
#define tile_store(t, to, stride) _tile_stored(t, to, stride)
#define tile_multiply _tile_dpbf16ps

/* All eight tiles are whole: 16 rows of 64 bytes. Static: compilers have been told of the first 8 bytes only that are read. */
static void tiles_begin(void) {
    static const struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1, .bytes = {64, 64, 64, 64, 64, 64, 64, 64}, .rows = {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_loadconfig(&config);
}
static void tiles_end(void) { _tile_release(); }

/* Linux gives the tile registers to a process that asks for them (ARCH_REQ_XCOMP_PERM, XTILEDATA). */
static int tiles_allowed(void) { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }
#endif

/* Two tiles of rows by two of columns at a time: each load serves two products. */
static void tiles_product(size rows, size K, const uint16_t *A, size lda, const uint16_t *panel, float *out) {
    SETTLED; /* not every compiler knows that these instructions read and write memory */
    for (size row = 0; row < rows; row += 32)
        for (int pair = 0; pair < 2; pair++) {
            const int both = rows - row > 16;
            float *to = out + row * COLUMNS + pair * 32;
            tile_zero(0);
            tile_zero(1);
            tile_zero(2);
            tile_zero(3);
            for (size k = 0; k < K; k += 32) {
                const uint16_t *a = A + row * lda + k, *b = panel + k * COLUMNS + pair * 1024;
                tile_load(4, a, lda * 2);
                tile_load(6, b, 64);
                tile_load(7, b + 512, 64);
                tile_multiply(0, 4, 6);
                tile_multiply(1, 4, 7);
                if (both) {
                    tile_load(5, a + 16 * lda, lda * 2);
                    tile_multiply(2, 5, 6);
                    tile_multiply(3, 5, 7);
                }
            }
            tile_store(0, to, COLUMNS * 4);
            tile_store(1, to + 16, COLUMNS * 4);
            if (both) {
                tile_store(2, to + 16 * COLUMNS, COLUMNS * 4);
                tile_store(3, to + 16 * COLUMNS + 16, COLUMNS * 4);
            }
        }
    SETTLED;
}
#else
static void tiles_begin(void) {}
static void tiles_end(void) {}
#endif

#if HAVE_PAIRS
#if defined(__AVX512BF16__)
#define narrowed(x) ((__m256i)_mm512_cvtneps_pbh((__m512)(x)))
#define add_pairs(sum, a, b) _mm512_dpbf16_ps(sum, (__m512bh)(a), (__m512bh)(b))
#else
/* Rounds to the nearest, to even between two; what is smaller than any normal number becomes zero, as the instruction has it. */
INLINE __m256i narrowed(vec x) {
    uint16_t bits[VECTOR];
    for (int lane = 0; lane < VECTOR; lane++) {
        uint32_t whole;
        memcpy(&whole, (const float *)&x + lane, 4);
        const int tiny = (whole >> 23 & 255) == 0, nan = (whole & 0x7fffffff) > 0x7f800000;
        bits[lane] = (uint16_t)((tiny ? whole & 0x80000000u : nan ? whole | 0x400000 : whole + 0x7fff + (whole >> 16 & 1)) >> 16);
    }
    return _mm256_loadu_si256((const __m256i *)bits);
}
INLINE __m512 add_pairs(__m512 sum, __m512i a, __m512i b) {
    const __m512i high = _mm512_set1_epi32((int)0xffff0000u);
    sum = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(a, high)), _mm512_castsi512_ps(_mm512_and_si512(b, high)), sum);
    return _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(a, 16)), _mm512_castsi512_ps(_mm512_slli_epi32(b, 16)), sum);
}
#endif

#define PAIRS_ROWS 6 /* x 4 accumulators, 4 vectors of weights and a broadcast fill 29 registers of 32 */

INLINE void pairs_tile(const int rows, size K, const uint16_t *A, size lda, const uint16_t *panel, float *out, int first, const char *ahead) {
    __m512 sum[PAIRS_ROWS][4];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < 4; v++) sum[r][v] = first ? _mm512_setzero_ps() : _mm512_loadu_ps(out + r * COLUMNS + v * 16);
    for (size k = 0; k < K; k += 32)
        for (size pair = 0; pair < 16; pair++) {
            __builtin_prefetch(ahead, 0, 2);
            __builtin_prefetch(ahead + 64, 0, 2);
            ahead += 128;
            __m512i weights[4];
            UNROLL for (int v = 0; v < 4; v++) weights[v] = _mm512_loadu_si512(panel + (k / 32 * 4 + v) * 512 + pair * 32);
            UNROLL for (int r = 0; r < rows; r++) {
                int32_t both;
                memcpy(&both, A + r * lda + k + pair * 2, 4);
                const __m512i a = _mm512_set1_epi32(both);
                UNROLL for (int v = 0; v < 4; v++) sum[r][v] = add_pairs(sum[r][v], a, weights[v]);
            }
        }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < 4; v++) _mm512_storeu_ps(out + r * COLUMNS + v * 16, sum[r][v]);
}

typedef void PairsTile(size K, const uint16_t *A, size lda, const uint16_t *panel, float *out, int first, const char *ahead);

#define PAIRS_TILE(rows)                                                                                                   \
    static void pairs_##rows(size K, const uint16_t *A, size lda, const uint16_t *panel, float *out, int first, const char *ahead) { \
        pairs_tile(rows, K, A, lda, panel, out, first, ahead);                                                             \
    }
PAIRS_TILE(1) PAIRS_TILE(2) PAIRS_TILE(3) PAIRS_TILE(4) PAIRS_TILE(5) PAIRS_TILE(6)
static PairsTile *const pairs_tiles[] = {0, pairs_1, pairs_2, pairs_3, pairs_4, pairs_5, pairs_6};

static void pairs_product(size rows, size K, const uint16_t *A, size lda, const uint16_t *panel, float *out) {
    const size count = blocks(rows, PAIRS_ROWS);
    for (size k = 0; k < K; k += K_CHUNK)
        for (size b = 0; b < count; b++) {
            const size r = rows * b / count, height = rows * (b + 1) / count - r;
            const uint16_t *now = panel + k * COLUMNS;
            const char *ahead = (const char *)now + (b < 2 ? K_CHUNK * (2 + b) * 64 : 0); /* the next chunk, half by each of two */
            pairs_tiles[height](least(K_CHUNK, K - k), A + r * lda + k, lda, now, out + r * COLUMNS, k == 0, ahead);
        }
}
#endif

#if HAVE_HALF || HAVE_PAIRS
INLINE __m256i low_bits(const int kind, vec x) {
#if HAVE_HALF
    if (kind == HALF) return _mm256_castph_si256(_mm512_cvtxps_ph(x));
#endif
#if HAVE_PAIRS
    if (kind >= TILES) return narrowed(x);
#endif
    return _mm256_setzero_si256();
}

/* Puts 16 values into a row of A. HALF keeps each twice, side by side: 32 bits are what a load can spread over a register. */
INLINE void low_store(const int kind, void *row, size k, vec x) {
    __m256i bits = low_bits(kind, x);
    if (kind != HALF) {
        _mm256_storeu_si256((__m256i *)((uint16_t *)row + k), bits);
        return;
    }
    __m512i wide = _mm512_cvtepu16_epi32(bits);
    _mm512_storeu_si512((uint32_t *)row + k, _mm512_or_si512(wide, _mm512_slli_epi32(wide, 16)));
}

/* Puts 64 x 64 weights into a panel. TILES and PAIRS: for each 32 k and 16 columns a tile, whose rows hold pairs of k. */
INLINE void low_pack(const int kind, const float (*from)[COLUMNS], uint16_t *panel) {
    for (int k = 0; k < 64; k += 2)
        for (int v = 0; v < 4; v++) {
            __m256i even = low_bits(kind, load(from[k] + v * 16, 16)), odd = low_bits(kind, load(from[k + 1] + v * 16, 16));
            if (kind == HALF) {
                _mm256_storeu_si256((__m256i *)(panel + k * COLUMNS + v * 16), even);
                _mm256_storeu_si256((__m256i *)(panel + (k + 1) * COLUMNS + v * 16), odd);
            } else {
                __m512i pairs = _mm512_or_si512(_mm512_cvtepu16_epi32(even), _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
                _mm512_storeu_si512(panel + (k / 32 * 4 + v) * 512 + k % 32 / 2 * 32, pairs);
            }
        }
}

/* The power of two, at most 2^100 either way, that brings the largest of some magnitudes to between 1 and 2. */
INLINE float low_scale(vec magnitudes) {
    int exponent = (int)(((union { float f; uint32_t u; }){_mm512_reduce_max_ps(magnitudes)}).u >> 23 & 255) - 127;
    if (exponent > 100 || exponent < -100) exponent = exponent > 100 ? 100 : -100;
    return ((union { uint32_t u; float f; }){(uint32_t)(127 - exponent) << 23}).f;
}

INLINE vec larger(vec magnitudes, vec x) { return _mm512_max_ps(magnitudes, _mm512_abs_ps(x)); }
#endif

#if HAVE_LOW
/* `columns` are COLUMNS; of INTS any multiple of INTS_WIDTH. */
INLINE void low_product(const int kind, size batch, size rows, size columns, size K, const void *A, size lda, const void *panel,
                        const float *scale, size lds, const float *panel_scale, float *out) {
    (void)batch, (void)columns, (void)scale, (void)lds, (void)panel_scale;
#if HAVE_HALF
    if (kind == HALF) half_product(batch, rows, K, A, lda, panel, scale, lds, panel_scale, out);
#endif
#if HAVE_TILES
    if (kind == TILES) tiles_product(rows, K, A, lda, panel, out);
#endif
#if HAVE_PAIRS
    if (kind == PAIRS) pairs_product(rows, K, A, lda, panel, out);
#endif
#if HAVE_INTS
    if (kind == INTS) ints_product(rows, columns, K, A, lda, panel, scale, lds, out);
#endif
}
#endif
