/* Vectors of floats, one source for every width, and the two activations.

   Every build that has `fused` rounds each operation alike: compilers contract nothing (`-ffp-contract=off`), products that are added
   without a rounding between are written out, and a quotient is a division. So the generator has the same bits on every width, as its
   sums over lanes have LANES of them on each. Training has not: `pointwise.h` adds up as many lanes as a register has.

   VECTOR is the number of floats in a register: 16 with AVX-512, 8 with AVX2, otherwise 4 (which every compiler lowers to what
   the machine has). */

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define VECTOR 16
#define ROWS_MAX 14 /* rows of a tile: 14 x 2 accumulators, 2 vectors of weights and a broadcast fill 32 registers */
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#define VECTOR 8
#define ROWS_MAX 6
#elif defined(__aarch64__)
#include <arm_neon.h>
#define VECTOR 4
#define ROWS_MAX 6
#define WIDE 4 /* 6 x 4 accumulators, as many registers as with AVX-512 */
#else
#define VECTOR 4
#define ROWS_MAX 6
#endif
#if !defined(WIDE)
#define WIDE 2 /* vectors of a tile */
#endif

typedef float vec __attribute__((vector_size(VECTOR * 4)));
typedef float vec_any __attribute__((vector_size(VECTOR * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(VECTOR * 4)));
typedef uint32_t uvec __attribute__((vector_size(VECTOR * 4)));

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif
#define INLINE static inline __attribute__((always_inline))

#define GATES 4

typedef long long size;
INLINE size least(size a, size b) { return a < b ? a : b; }
INLINE size blocks(size n, size width) { return (n + width - 1) / width; }

/* Mixes the bits of a word, or of each word of a vector (C. Wellons's lowbias32). */
#define LOWBIAS32(x) (x ^= x >> 16, x *= 0x7feb352du, x ^= x >> 15, x *= 0x846ca68bu, x ^= x >> 16)

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 64")
#endif

INLINE vec all(float x) { return x - (vec){0}; }

/* x, read where this stands: gcc would read all of a tile's factors before the first product, and keep sums in memory for them. */
INLINE float in_turn(float x) {
#if defined(__aarch64__)
    __asm__ volatile("" : "+w"(x));
#endif
    return x;
}

INLINE vec load(const float *p, int lanes) {
    if (lanes == VECTOR) return *(const vec_any *)p;
#if VECTOR == 16
    return _mm512_maskz_loadu_ps((__mmask16)((1u << lanes) - 1), p);
#else
    vec v = {0};
    memcpy(&v, p, sizeof(float) * lanes);
    return v;
#endif
}

INLINE void store(float *p, vec v, int lanes) {
    if (lanes == VECTOR) {
        *(vec_any *)p = v;
        return;
    }
#if VECTOR == 16
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << lanes) - 1), v);
#else
    memcpy(p, &v, sizeof(float) * lanes);
#endif
}

/* a b + c with one rounding. A CPU without the instruction, older than 2013, rounds twice: to compute it would take too long. */
INLINE vec fused(vec a, vec b, vec c) {
#if VECTOR == 16
    return _mm512_fmadd_ps(a, b, c);
#elif VECTOR == 8
    return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
    return vfmaq_f32(c, a, b);
#elif defined(__FP_FAST_FMAF) || defined(__FMA__)
    for (int lane = 0; lane < VECTOR; lane++) c[lane] = __builtin_fmaf(a[lane], b[lane], c[lane]);
    return c;
#else
    return a * b + c;
#endif
}

/* Both keep NaN, so that a diverging run is seen. */
INLINE vec at_most(vec x, float limit) {
#if VECTOR == 16
    return _mm512_min_ps(all(limit), x);
#elif VECTOR == 8
    return _mm256_min_ps(all(limit), x);
#else
    ivec over = x > all(limit);
    return (vec)((over & (ivec)all(limit)) | (~over & (ivec)x));
#endif
}

INLINE vec at_least(vec x, float limit) {
#if VECTOR == 16
    return _mm512_max_ps(all(limit), x);
#elif VECTOR == 8
    return _mm256_max_ps(all(limit), x);
#else
    ivec under = x < all(limit);
    return (vec)((under & (ivec)all(limit)) | (~under & (ivec)x));
#endif
}

#define LANES 16 /* of a sum over a row, in so many VECTORs as they fill */

/* Over LANES, halves first. */
INLINE float sum_lanes(const vec *x) {
    float lane[LANES];
    memcpy(lane, x, sizeof lane);
    UNROLL for (int half = LANES / 2; half; half /= 2)
        UNROLL for (int i = 0; i < half; i++) lane[i] += lane[i + half];
    return lane[0];
}

/* No lane is NaN. */
INLINE float largest_lane(vec x) {
#if VECTOR == 16
    return _mm512_reduce_max_ps(x);
#else
    float most = x[0];
    for (int lane = 1; lane < VECTOR; lane++) most = x[lane] > most ? x[lane] : most;
    return most;
#endif
}

INLINE int32_t largest_integer(ivec x) {
#if VECTOR == 16
    return _mm512_reduce_max_epi32((__m512i)x);
#else
    int32_t most = x[0];
    for (int lane = 1; lane < VECTOR; lane++) most = x[lane] > most ? x[lane] : most;
    return most;
#endif
}

#if VECTOR == 16
/* Rows become columns: pairs of floats, then pairs of those, then quarters of a register, then halves of it. */
INLINE void turn(__m512 x[16]) {
    __m512 y[16];
    UNROLL for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
    }
    UNROLL for (int i = 0; i < 16; i += 4) UNROLL for (int j = 0; j < 2; j++) {
        __m512d even = _mm512_castps_pd(y[i + j]), odd = _mm512_castps_pd(y[i + 2 + j]);
        x[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(even, odd));
        x[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(even, odd));
    }
    UNROLL for (int i = 0; i < 16; i += 8) UNROLL for (int j = 0; j < 4; j++) {
        y[i + j] = _mm512_shuffle_f32x4(x[i + j], x[i + 4 + j], 0x88);
        y[i + 4 + j] = _mm512_shuffle_f32x4(x[i + j], x[i + 4 + j], 0xdd);
    }
    UNROLL for (int j = 0; j < 8; j++) {
        x[j] = _mm512_shuffle_f32x4(y[j], y[8 + j], 0x88);
        x[8 + j] = _mm512_shuffle_f32x4(y[j], y[8 + j], 0xdd);
    }
}
#endif

/* e^x = 2^n (1 + p): returns p = e^r - 1 with |r| <= ln 2 / 2 and sets 2^n. |x| <= 87.
   p = r + r^2 q(r); q interpolates (e^r - 1 - r) / r^2 at the five Chebyshev points of |r| <= 0.3466 (relative error of p 2.5e-8). */
INLINE vec exp_parts(vec x, vec *two_n) {
    const float round = 12582912.f; /* 1.5 x 2^23: adding it leaves the nearest integer in the low bits */
    vec shifted = fused(x, all(1.44269504f), all(round));
    vec n = shifted - round;
    vec r = fused(n, all(2.12194440e-4f), fused(n, all(-0.693359375f), x)); /* ln 2 in two parts, the first exact in few bits */
    vec q = fused(r, all(0.0013926181810489343f), all(0.008363177629994445f));
    q = fused(q, r, all(0.041666554627878084f));
    q = fused(q, r, all(0.16666576998242924f));
    q = fused(q, r, all(0.5f));
    *two_n = (vec)(((ivec)shifted << 23) + 0x3f800000);
    return fused(q, r * r, r);
}

/* 1 / (1 + e^-x) */
INLINE vec sigmoid(vec x) {
    vec two_n, p = exp_parts(at_least(at_most(-x, 87.f), -87.f), &two_n);
    return 1.f / (1.f + fused(two_n, p, two_n));
}

/* (e^2x - 1) / (e^2x + 1); e^2x - 1 without cancellation near 0. |tanh| rounds to 1 from 9.02 on. */
INLINE vec hyperbolic(vec x) {
    vec two_n, p = exp_parts(2.f * at_least(at_most(x, 9.1f), -9.1f), &two_n);
    vec e = fused(two_n, p, two_n - 1.f);
    return e / (e + 2.f);
}
