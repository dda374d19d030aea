/* Large products in reduced precision, for what lies outside the recurrence: C[M][N] (+)= A[M][K] x B[K][N], summed in float32.

   K is taken in pieces. The team packs a piece of B; then each thread packs a few of its rows of A at a time and runs them past
   all of B's panels. HALF divides 64 values of a row of A, and 64 x 64 values of B, by a power of two of their own. */

#define K_PIECE 1024
#define PANEL_BYTES (K_PIECE * COLUMNS * 2 + K_PIECE / 64 * 64) /* of one strip, and its scales */
#define SHARE_BYTES ((CHUNK + SPARE_ROWS) * (K_PIECE + APART) * 4 + CHUNK * (K_PIECE / 64) * 4)

typedef struct {
    size M, N, K;
    int turned_A, turned_B, add;
    const float *A, *B;
    float *C;
    char *scratch;
    Barrier barrier;
} Multiplication;

#if HAVE_HALF || HAVE_TILES
/* square[i][j] = from[row + i][column + j], or with turned [column + j][row + i]; zero beyond the matrix of `rows` x `columns`. */
INLINE void cut(float (*square)[64], const float *from, size rows, size columns, size row, size column, int turned) {
    size high = least(64, rows - row), wide = least(64, columns - column);
    if (!turned) {
        if (high < 64 || wide < 64) memset(square, 0, sizeof(float) * 64 * 64);
        for (size i = 0; i < high; i++) memcpy(square[i], from + (row + i) * columns + column, sizeof(float) * wide);
        return;
    }
    for (size i = 0; i < 64; i += VECTOR)
        for (size j = 0; j < 64; j += VECTOR) {
            __m512 block[VECTOR];
            int lanes = (int)least(VECTOR, high > i ? high - i : 0);
            for (size k = 0; k < VECTOR; k++)
                block[k] = lanes > 0 && j + k < wide ? (__m512)load(from + (column + j + k) * rows + row + i, lanes) : _mm512_setzero_ps();
            turn(block);
            for (size k = 0; k < VECTOR; k++) store(square[i + k] + j, (vec)block[k], VECTOR);
        }
}

INLINE void multiply(const int kind, Multiplication *job, int rank, int threads) {
    const size M = job->M, N = job->N, strips = blocks(N, COLUMNS);
    char *const own = job->scratch + strips * PANEL_BYTES + (size)rank * SHARE_BYTES;
    float *const scales = (float *)(own + (CHUNK + SPARE_ROWS) * (K_PIECE + APART) * 4);
    _Alignas(64) float square[64][64], sums[CHUNK * COLUMNS];
    if (kind == TILES) tiles_begin();
    for (size start = 0; start < job->K; start += K_PIECE) {
        const size K = blocks(least(K_PIECE, job->K - start), 64) * 64;
        for (size strip = strips * rank / threads; strip < strips * (rank + 1) / threads; strip++) {
            uint16_t *panel = (uint16_t *)(job->scratch + strip * PANEL_BYTES);
            for (size k = 0; k < K; k += 64) {
                cut(square, job->B, job->K, N, start + k, strip * COLUMNS, job->turned_B);
                if (kind == HALF) {
                    vec magnitudes = {0};
                    for (int i = 0; i < 64 * 64; i += VECTOR) magnitudes = larger(magnitudes, load(&square[0][0] + i, VECTOR));
                    float scale = low_scale(magnitudes);
                    for (int i = 0; i < 64 * 64; i += VECTOR)
                        store(&square[0][0] + i, scale * load(&square[0][0] + i, VECTOR), VECTOR);
                    ((float *)(panel + K_PIECE * COLUMNS))[k / 64] = 1.f / scale;
                }
                low_pack(kind, (const float(*)[COLUMNS])square, panel + k * COLUMNS);
            }
        }
        meet(&job->barrier, threads);
        const size end = M * (rank + 1) / threads;
        for (size row = M * rank / threads; row < end; row += CHUNK) {
            const size rows = least(CHUNK, end - row);
            for (size r = 0; r < rows; r += 64)
                for (size k = 0; k < K; k += 64) {
                    cut(square, job->A, M, job->K, row + r, start + k, job->turned_A);
                    for (size i = 0; i < least(64, rows - r); i++) {
                        vec magnitudes = {0};
                        for (int v = 0; v < 4; v++) magnitudes = larger(magnitudes, load(square[i] + v * VECTOR, VECTOR));
                        float scale = kind == HALF ? low_scale(magnitudes) : 1.f;
                        for (int v = 0; v < 4; v++)
                            low_store(kind, own + low_bytes(kind, (r + i) * (K + APART)), k + v * VECTOR,
                                      scale * load(square[i] + v * VECTOR, VECTOR));
                        scales[(r + i) * (K / 64) + k / 64] = 1.f / scale;
                    }
                }
            for (size strip = 0; strip < strips; strip++) {
                const uint16_t *panel = (const uint16_t *)(job->scratch + strip * PANEL_BYTES);
                low_product(kind, M > 3 ? M : 4, rows, K, own, K + APART, panel, scales, K / 64, (const float *)(panel + K_PIECE * COLUMNS), sums);
                for (size r = 0; r < rows; r++)
                    for (size n = strip * COLUMNS, v = 0; v < 4 && n + v * VECTOR < N; v++) {
                        int lanes = (int)least(VECTOR, N - n - v * VECTOR);
                        float *to = job->C + (row + r) * N + n + v * VECTOR;
                        vec sum = load(sums + r * COLUMNS + v * VECTOR, VECTOR);
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
#endif
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
static void (*const multipliers[3])(void *, int, int) = {0, multiply_HALF, multiply_TILES};
