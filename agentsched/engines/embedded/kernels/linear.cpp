// Linear layers of few rows: y[n, o] = x[n, k] . w[o, k] + bias[o]. The weights are read once, in the order
// in which they lie, by as many dot products at once as there are registers for.
#include "vectors.h"

// Accumulators of a tile, ROWS x COLUMNS, as registers allow.
constexpr int ROWS = W == 16 ? 8 : 4;
constexpr int COLUMNS = 3;
constexpr int64_t SMALL = 1 << 19;  // products that one thread does sooner than two can meet

template <int R, int C, typename T>
INLINE void dots(const float* x, const T* w, int k, float* y, int64_t ldy, const T* bias) {
    vf acc[R][C] = {};
    int at = 0;
    for (; at + W <= k; at += W) {
        vf ws[C];
        for (int c = 0; c < C; c++) {
            // The next rows, into the L2 cache: the hardware guesses well for one stream, not for three.
            if (C > 1) __builtin_prefetch(w + int64_t(c + C) * k + at, 0, 2);
            ws[c] = load(w + int64_t(c) * k + at);
            hold(ws[c]);
        }
        for (int r = 0; r < R; r++) {
            vf xs = load(x + int64_t(r) * k + at);
            hold(xs);
            for (int c = 0; c < C; c++) acc[r][c] += xs * ws[c];
        }
    }
    for (int c = 0; c < C; c++) {
        float column[R];
        if constexpr (R % 4 == 0) {
            for (int r = 0; r < R; r += 4)
                *(v4*)(column + r) = sums(acc[r][c], acc[r + 1][c], acc[r + 2][c], acc[r + 3][c]);
        } else {
            for (int r = 0; r < R; r++) column[r] = sum(acc[r][c]);
        }
        for (int r = 0; r < R; r++) {
            float rest = bias ? get(bias[c]) : 0.0f;
            for (int i = at; i < k; i++) rest += x[int64_t(r) * k + i] * get(w[int64_t(c) * k + i]);
            y[r * ldy + c] = column[r] + rest;
        }
    }
}

template <int C, typename T>
INLINE void columns(const float* x, const T* w, int n, int k, float* y, int64_t ldy, const T* bias) {
    int r = 0;
    for (; r + ROWS <= n; r += ROWS) dots<ROWS, C>(x + int64_t(r) * k, w, k, y + r * ldy, ldy, bias);
    if (ROWS > 4 && r + 4 <= n) {
        dots<4, C>(x + int64_t(r) * k, w, k, y + r * ldy, ldy, bias);
        r += 4;
    }
    if (r + 2 <= n) {
        dots<2, C>(x + int64_t(r) * k, w, k, y + r * ldy, ldy, bias);
        r += 2;
    }
    if (r < n) dots<1, C>(x + int64_t(r) * k, w, k, y + r * ldy, ldy, bias);
}

template <typename T>
static void linear(const T* x, const T* w, const T* bias, T* y, int n, int k, int o, int threads) {
    std::vector<float> wide(int64_t(n) * k);
    for (int64_t i = 0; i < int64_t(n) * k; i++) wide[i] = get(x[i]);
    const int step = 16 * COLUMNS;
#pragma omp parallel num_threads(threads) if (threads > 1 && int64_t(n) * k * o >= SMALL)
    {
        std::vector<float> part(int64_t(n) * step);
#pragma omp for schedule(static)
        for (int begin = 0; begin < o; begin += step) {
            int end = begin + step < o ? begin + step : o, c = begin;
            for (; n > 1 && c + COLUMNS <= end; c += COLUMNS)
                columns<COLUMNS>(wide.data(), w + int64_t(c) * k, n, k, part.data() + (c - begin), step,
                                 bias ? bias + c : nullptr);
            for (; c < end; c++)
                columns<1>(wide.data(), w + int64_t(c) * k, n, k, part.data() + (c - begin), step,
                           bias ? bias + c : nullptr);
            for (int r = 0; r < n; r++)
                for (int i = begin; i < end; i++) put(y + int64_t(r) * o + i, part[r * step + i - begin]);
        }
    }
}

#define EXPORT(T, NAME)                                                                                        \
    extern "C" void linear_##NAME(const T* x, const T* w, const T* bias, T* y, int n, int k, int o, int threads) { \
        linear(x, w, bias, y, n, k, o, threads);                                                               \
    }
EXPORT(float, fp32)
EXPORT(bf16, bf16)
