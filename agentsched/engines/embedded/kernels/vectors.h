// Vectors as wide as the machine's, in GCC's vector extensions: one source serves AVX2 and AVX-512.
// All sums are fp32, whatever the tensors hold. bf16 is the upper half of an fp32.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#ifndef VECTOR_FLOATS  // a test sets it: wider than the machine's is slow, and right
#ifdef __AVX512F__
#define VECTOR_FLOATS 16
#else
#define VECTOR_FLOATS 8
#endif
#endif
constexpr int W = VECTOR_FLOATS;

#define INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(W * 4), aligned(4)));
typedef int32_t vi __attribute__((vector_size(W * 4), aligned(4)));
typedef uint32_t vu __attribute__((vector_size(W * 4), aligned(4)));
typedef uint16_t vh __attribute__((vector_size(W * 2), aligned(2)));
typedef float v4 __attribute__((vector_size(16), aligned(4)));

struct bf16 {
    uint16_t bits;
};

INLINE float get(float x) { return x; }
INLINE float get(bf16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}
INLINE void put(float* at, float x) { *at = x; }
INLINE void put(bf16* at, float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    // To nearest, ties to even; a NaN must not round up to infinity.
    at->bits = x == x ? (bits + 0x7fff + ((bits >> 16) & 1)) >> 16 : 0x7fc0;
}
INLINE vf load(const float* at) { return *(const vf*)at; }
INLINE vf load(const bf16* at) {
#if VECTOR_FLOATS == 16 && defined(__AVX512F__)
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)at)), 16);
#elif VECTOR_FLOATS == 8 && defined(__AVX2__)
    return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)at)), 16);
#else
    return (vf)(__builtin_convertvector(*(const vh*)at, vu) << 16);
#endif
}
INLINE void store(float* at, vf x) { *(vf*)at = x; }
INLINE void store(bf16* at, vf x) {
    vu bits = (vu)x;
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    *(vh*)at = __builtin_convertvector(x == x ? bits : vu{} + 0x7fc0, vh);
}
INLINE vf rounded(vf x, float) { return x; }
INLINE vf rounded(vf x, bf16) {
    alignas(64) bf16 bits[W];
    store(bits, x);
    return load(bits);
}
// Keeps a vector in its register: GCC would rather load it again for each product.
INLINE void hold(vf& x) {
#if VECTOR_FLOATS == 16 && !defined(__AVX512F__) || !defined(__x86_64__)
    (void)x;
#else
    asm("" : "+v"(x));
#endif
}

INLINE v4 fold(vf x) {
#if VECTOR_FLOATS == 16
    typedef float v8 __attribute__((vector_size(32)));
    v8 a = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7);
    v8 b = __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
    v8 s = a + b;
    return __builtin_shufflevector(s, s, 0, 1, 2, 3) + __builtin_shufflevector(s, s, 4, 5, 6, 7);
#else
    return __builtin_shufflevector(x, x, 0, 1, 2, 3) + __builtin_shufflevector(x, x, 4, 5, 6, 7);
#endif
}
// The sums of four vectors at once: half the work of four sums.
INLINE v4 sums(vf a, vf b, vf c, vf d) {
    v4 p = fold(a), q = fold(b), r = fold(c), s = fold(d);
    v4 pq = __builtin_shufflevector(p, q, 0, 4, 1, 5) + __builtin_shufflevector(p, q, 2, 6, 3, 7);
    v4 rs = __builtin_shufflevector(r, s, 0, 4, 1, 5) + __builtin_shufflevector(r, s, 2, 6, 3, 7);
    return __builtin_shufflevector(pq, rs, 0, 1, 4, 5) + __builtin_shufflevector(pq, rs, 2, 3, 6, 7);
}
INLINE float sum(vf x) {
    v4 s = fold(x);
    return (s[0] + s[1]) + (s[2] + s[3]);
}

// e^x to about 1e-7 relative, 0 below -87; NaN stays NaN.
INLINE vf exp_(vf x) {
    vf least = vf{} - 87.0f, most = vf{} + 88.0f;
    vi under = x < least;
    x = under ? least : x;
    x = x > most ? most : x;
    const vf magic = vf{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    vf shifted = x * 1.44269504f + magic;
    vf n = shifted - magic;
    vf r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vf y = vf{} + 1.9875691500e-4f;
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    vi power = ((vi)shifted + (127 - 0x4b400000)) << 23;
    y *= (vf)power;
    return under ? vf{} : y;
}
