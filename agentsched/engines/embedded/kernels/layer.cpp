// The element-wise parts of a layer, each in one pass over memory.
#include "vectors.h"

constexpr int FEW = 32;  // with fewer tokens a second thread costs more than it brings

template <typename T>
INLINE void norm_row(const T* x, const T* weight, T* out, int dim, float eps) {
    vf squares = {};
    int i = 0;
    for (; i + W <= dim; i += W) squares += load(x + i) * load(x + i);
    float total = sum(squares);
    for (; i < dim; i++) total += get(x[i]) * get(x[i]);
    const float scale = 1.0f / std::sqrt(total / dim + eps);
    // Rounded before the weight comes, as the models were trained.
    for (i = 0; i + W <= dim; i += W) store(out + i, rounded(load(x + i) * scale, T{}) * load(weight + i));
    for (; i < dim; i++) {
        put(out + i, get(x[i]) * scale);
        put(out + i, get(out[i]) * get(weight[i]));
    }
}

// x += add, if there is any; out = norm of x.
template <typename T>
static void add_norm(T* x, const T* add, const T* weight, T* out, int n, int dim, float eps, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && n >= FEW)
    for (int r = 0; r < n; r++) {
        T* row = x + int64_t(r) * dim;
        if (add) {
            const T* plus = add + int64_t(r) * dim;
            int i = 0;
            for (; i + W <= dim; i += W) store(row + i, load(row + i) + load(plus + i));
            for (; i < dim; i++) put(row + i, get(row[i]) + get(plus[i]));
        }
        norm_row(row, weight, out + int64_t(r) * dim, dim, eps);
    }
}

// out = silu(the first half of a row) * its second half.
template <typename T>
static void gate(const T* gate_up, T* out, int n, int inner, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && n >= FEW)
    for (int r = 0; r < n; r++) {
        const T *g = gate_up + int64_t(r) * 2 * inner, *u = g + inner;
        T* to = out + int64_t(r) * inner;
        int i = 0;
        for (; i + W <= inner; i += W) {
            vf x = load(g + i);
            store(to + i, rounded(x / (1.0f + exp_(-x)), T{}) * load(u + i));
        }
        for (; i < inner; i++) {
            put(to + i, get(g[i]) / (1.0f + std::exp(-get(g[i]))));
            put(to + i, get(to[i]) * get(u[i]));
        }
    }
}

// Norms (if there is a weight: one for each head) and rotates queries and keys in place; writes keys and values
// to their slots of the pools.
template <typename T>
static void rotate_store(T* qkv, T* keys, T* values, const int64_t* positions, const int64_t* slots,
                         const float* cos, const float* sin, const T* qk_norm, int n, int heads,
                         int kv_heads, int dim, float eps, int threads) {
    const int half = dim / 2, width = (heads + 2 * kv_heads) * dim, stored = kv_heads * dim;
#pragma omp parallel for num_threads(threads) if (threads > 1 && n >= FEW)
    for (int r = 0; r < n; r++) {
        T* row = qkv + int64_t(r) * width;
        const float *c = cos + positions[r] * half, *s = sin + positions[r] * half;
        for (int h = 0; h < heads + kv_heads; h++) {
            T* x = row + h * dim;
            if (qk_norm) norm_row(x, qk_norm + h * dim, x, dim, eps);
#pragma omp simd
            for (int i = 0; i < half; i++) {
                float a = get(x[i]), b = get(x[i + half]);
                put(x + i, a * c[i] - b * s[i]);
                put(x + i + half, b * c[i] + a * s[i]);
            }
        }
        memcpy(keys + slots[r] * stored, row + heads * dim, stored * sizeof(T));
        memcpy(values + slots[r] * stored, row + (heads + kv_heads) * dim, stored * sizeof(T));
    }
}

#define EXPORT(T, NAME)                                                                                        \
    extern "C" void add_norm_##NAME(T* x, const T* add, const T* weight, T* out, int n, int dim, float eps,      \
                                    int threads) {                                                             \
        add_norm(x, add, weight, out, n, dim, eps, threads);                                                   \
    }                                                                                                          \
    extern "C" void gate_##NAME(const T* gate_up, T* out, int n, int inner, int threads) {                       \
        gate(gate_up, out, n, inner, threads);                                                                 \
    }                                                                                                          \
    extern "C" void rotate_store_##NAME(T* qkv, T* keys, T* values, const int64_t* positions,                    \
                                        const int64_t* slots, const float* cos, const float* sin,              \
                                        const T* qk_norm, int n, int heads, int kv_heads, int dim, float eps,    \
                                        int threads) {                                                         \
        rotate_store(qkv, keys, values, positions, slots, cos, sin, qk_norm, n, heads, kv_heads, dim, eps,     \
                     threads);                                                                                 \
    }
EXPORT(float, fp32)
EXPORT(bf16, bf16)
