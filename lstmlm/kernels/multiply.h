/* Large products, for what lies outside the recurrence: C[M][N] (+)= A[M][K] x B[K][N], summed in float32.

   K is taken in pieces, and of each as many strips of N as scratch is kept for. The team packs them; then each thread packs a few of
   its rows of A at a time and runs them past all of their panels. HALF divides 64 values of a row of A, and 64 x 64 values of B, by a
   power of two of their own.

   Every value of C is its own sum over k in order, a piece at a time: its bits depend neither on the threads, nor on M and N, nor on
   where a matrix lies in memory. */

#define K_PIECE 1024     /* of 16 bits; of floats half as many */
#define PANEL_BYTES (K_PIECE * COLUMNS * 2 + K_PIECE / 64 * COLUMNS * 4) /* of one strip, and its scales */
#define STRIPS 128 /* at a time: 17 MB of panels for any N. Each value of A is packed anew for more of them, once for 8192 products */
#define SHARE_BYTES ((CHUNK + SPARE_ROWS) * (K_PIECE + APART) * 4 + CHUNK * (K_PIECE / 64) * 4)

typedef struct {
    size M, N, K;
    int turned_A, turned_B, add;
    const float *A, *B;
    float *C;
    char *scratch;
    Barrier barrier;
} Multiplication;

/* square[i][j] = from[row + i][column + j], or with turned [column + j][row + i]; zero beyond the matrix of `rows` x `columns`. */
INLINE void copy_square(float (*square)[64], const float *from, size rows, size columns, size row, size column, int turned) {
    const size high = least(64, rows - row), wide = least(64, columns - column);
    if (high < 64 || wide < 64) memset(square, 0, sizeof(float) * 64 * 64);
    if (!turned) {
        for (size i = 0; i < high; i++) memcpy(square[i], from + (row + i) * columns + column, sizeof(float) * wide);
        return;
    }
#if VECTOR == 16
    for (size i = 0; i < high; i += VECTOR)
        for (size j = 0; j < wide; j += VECTOR) {
            __m512 block[VECTOR];
            const int lanes = (int)least(VECTOR, high - i);
            for (size k = 0; k < VECTOR; k++)
                block[k] = j + k < wide ? (__m512)load(from + (column + j + k) * rows + row + i, lanes) : _mm512_setzero_ps();
            turn(block);
            for (size k = 0; k < VECTOR; k++) store(square[i + k] + j, (vec)block[k], VECTOR);
        }
#else
    for (size j = 0; j < wide; j++)
        for (size i = 0; i < high; i++) square[i][j] = from[(column + j) * rows + row + i];
#endif
}

/* Puts 64 k of 64 columns of B into a strip's panel, `at` k behind its beginning; `K` are in the panel. */
INLINE void pack_right(const int kind, float (*square)[COLUMNS], char *panel, size at, size K) {
    if (kind == FLOAT) {
        const size width = WIDE * VECTOR;
        for (size n = 0; n < COLUMNS; n += width)
            for (size k = 0; k < least(64, K - at); k++)
                memcpy((float *)panel + n * K + (at + k) * width, square[k] + n, sizeof(float) * width);
        return;
    }
#if HAVE_INTS
    if (kind == INTS) {
        ints_pack((const float(*)[64])square, COLUMNS, panel, at, K);
        return;
    }
#endif
#if HAVE_HALF || HAVE_PAIRS
    if (kind == HALF) {
        vec magnitudes = {0};
        for (int i = 0; i < 64 * 64; i += VECTOR) magnitudes = larger(magnitudes, load(&square[0][0] + i, VECTOR));
        const float scale = low_scale(magnitudes);
        for (int i = 0; i < 64 * 64; i += VECTOR) store(&square[0][0] + i, scale * load(&square[0][0] + i, VECTOR), VECTOR);
        ((float *)(panel + K_PIECE * COLUMNS * 2))[at / 64] = 1.f / scale;
    }
    low_pack(kind, (const float(*)[COLUMNS])square, (uint16_t *)panel + at * COLUMNS);
#endif
}

/* Puts 64 k of a row of A where the product reads them; returns what they are to be multiplied by. */
INLINE float pack_left(const int kind, const float *from, char *row, size at) {
    if (kind == FLOAT) {
        memcpy((float *)row + at, from, sizeof(float) * 64);
        return 1.f;
    }
#if HAVE_INTS
    if (kind == INTS) {
        vec x[64 / VECTOR];
        UNROLL for (int v = 0; v < 64 / VECTOR; v++) x[v] = load(from + v * VECTOR, VECTOR);
        return ints_store(x, (int16_t *)row + at);
    }
#endif
    float scale = 1.f;
#if HAVE_HALF || HAVE_PAIRS
    vec magnitudes = {0};
    for (int v = 0; v < 4; v++) magnitudes = larger(magnitudes, load(from + v * VECTOR, VECTOR));
    if (kind == HALF) scale = low_scale(magnitudes);
    for (int v = 0; v < 4; v++) low_store(kind, row, at + v * VECTOR, scale * load(from + v * VECTOR, VECTOR));
#endif
    return 1.f / scale;
}

INLINE void multiply(const int kind, Multiplication *job, int rank, int threads) {
    const size M = job->M, N = job->N, strips = blocks(N, COLUMNS), piece = kind == FLOAT ? K_PIECE / 2 : K_PIECE;
    char *const own = job->scratch + least(strips, STRIPS) * PANEL_BYTES + (size)rank * SHARE_BYTES;
    float *const scales = (float *)(own + (CHUNK + SPARE_ROWS) * (K_PIECE + APART) * 4);
    _Alignas(64) float square[64][64], sums[CHUNK * COLUMNS];
    if (kind == TILES) tiles_begin();
    for (size start = 0; start < job->K; start += piece)
        for (size first = 0; first < strips; first += STRIPS) {
            const size there = least(piece, job->K - start), whole = blocks(there, 64) * 64, count = least(STRIPS, strips - first);
            const size K = kind == FLOAT ? there : whole, step = whole + APART;
            for (size strip = count * rank / threads; strip < count * (rank + 1) / threads; strip++)
                for (size k = 0; k < K; k += 64) {
                    copy_square(square, job->B, job->K, N, start + k, (first + strip) * COLUMNS, job->turned_B);
                    pack_right(kind, square, job->scratch + strip * PANEL_BYTES, k, K);
                }
            meet(&job->barrier, threads);
            const size end = M * (rank + 1) / threads;
            for (size row = M * rank / threads; row < end; row += CHUNK) {
                const size rows = least(CHUNK, end - row);
                for (size r = 0; r < rows; r += 64)
                    for (size k = 0; k < K; k += 64) {
                        copy_square(square, job->A, M, job->K, row + r, start + k, job->turned_A);
                        for (size i = 0; i < least(64, rows - r); i++)
                            scales[(r + i) * (whole / 64) + k / 64] = pack_left(kind, square[i], own + low_bytes(kind, (r + i) * step), k);
                    }
                for (size strip = 0; strip < count; strip++) {
                    const char *panel = job->scratch + strip * PANEL_BYTES;
                    const size column = (first + strip) * COLUMNS, columns = least(COLUMNS, N - column);
                    if (kind == FLOAT)
                        for (size n = 0; n < columns; n += WIDE * VECTOR)
                            product(4, rows, K, (const float *)own, step, (const float *)panel + n * K, sums + n, COLUMNS);
#if HAVE_LOW
                    else
                        low_product(kind, 4, rows, COLUMNS, K, own, step, panel, scales, K / 64,
                                    (const float *)(panel + K_PIECE * COLUMNS * 2), sums);
#endif
                    for (size r = 0; r < rows; r++)
                        for (size n = 0; n < columns; n += VECTOR) {
                            const int lanes = (int)least(VECTOR, columns - n);
                            float *to = job->C + (row + r) * N + column + n;
                            vec sum = load(sums + r * COLUMNS + n, VECTOR);
                            store(to, job->add || start ? load(to, lanes) + sum : sum, lanes);
                        }
                }
            }
            meet(&job->barrier, threads);
        }
    if (kind == TILES) tiles_end();
}

#define MULTIPLY(kind)                                                                                                     \
    static void multiply_##kind(void *job, int rank, int threads) { multiply(kind, job, rank, threads); }
MULTIPLY(FLOAT)
#if HAVE_HALF
MULTIPLY(HALF)
#else
#define multiply_HALF 0
#endif
#if HAVE_TILES
MULTIPLY(TILES)
#else
#define multiply_TILES 0
#endif
#if HAVE_PAIRS
MULTIPLY(PAIRS)
#else
#define multiply_PAIRS 0
#endif
#if HAVE_INTS
MULTIPLY(INTS)
#else
#define multiply_INTS 0
#endif
static void (*const multipliers[KINDS])(void *, int, int) = {multiply_FLOAT, multiply_HALF, multiply_TILES, multiply_PAIRS, multiply_INTS};
