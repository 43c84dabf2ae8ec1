// Attention over paged KV. A task is some neighbouring tokens of one sequence and some KV heads: their queries
// pass over the context once, a tile of positions at a time, with a running maximum and sum (as flash attention
// does). While a tile is computed the next one is fetched into the L2 cache: a head's keys are strided in memory.
#include "vectors.h"

constexpr int TILE = 32;      // positions of KV that are scored at once
constexpr int QUERIES = 128;  // about so many queries (tokens x heads of a group) share a tile
constexpr int TURNING = 8;    // so many queries and more pay for turning a tile's keys
constexpr int TOGETHER = W == 16 ? 4 : 2;  // queries of a prompt whose sums are in the registers at once

struct Scratch {
    std::vector<float> q, out, scores, wide, turned, peak, total;
};

template <int Q>
INLINE void score(const float* q, const float* const* keys, int dim, float* scores) {
    vf acc[Q][4] = {};
    int at = 0;
    for (; at + W <= dim; at += W) {
        vf qs[Q];
#pragma GCC unroll 4
        for (int g = 0; g < Q; g++) qs[g] = load(q + g * dim + at), hold(qs[g]);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            vf key = load(keys[i] + at);
            hold(key);
#pragma GCC unroll 4
            for (int g = 0; g < Q; g++) acc[g][i] += qs[g] * key;
        }
    }
#pragma GCC unroll 4
    for (int g = 0; g < Q; g++) {
        v4 s = sums(acc[g][0], acc[g][1], acc[g][2], acc[g][3]);
        for (int j = at; j < dim; j++)
            for (int i = 0; i < 4; i++) s[i] += q[g * dim + j] * keys[i][j];
        *(v4*)(scores + g * TILE) = s;
    }
}

// Where the next tile's rows of this head are: each is fetched into the L2 cache while one of this tile is used.
template <typename T>
struct Next {
    const T* pool;
    const int64_t* offsets;
    int dim;
    __attribute__((always_inline)) void fetch(int p) const {
        for (int i = 0; i < dim; i += 64 / int(sizeof(T))) __builtin_prefetch(pool + offsets[p] + i, 0, 2);
    }
};

template <typename T>
INLINE void score_tile(const float* q, const float** keys, Next<T> next, int count, int dim, float* scores,
                       int queries) {
    for (int p = count; p % 4; p++) keys[p] = keys[count - 1];  // scored, and then forgotten
    for (int p = 0; p < count; p += 4) {
        for (int i = 0; i < 4; i++) next.fetch(p + i);
        int g = 0;
        for (; g + 2 <= queries; g += 2) score<2>(q + g * dim, keys + p, dim, scores + g * TILE + p);
        if (g < queries) score<1>(q + g * dim, keys + p, dim, scores + g * TILE + p);
    }
}

// A tile's keys dimension by dimension: neighbouring positions fill a vector, so that no sum is across one. Costs as
// much as scoring some queries does, and scoring a query is then twice as fast.
template <typename T>
INLINE void turn_tile(const float** keys, Next<T> next, int count, int dim, float* turned) {
    for (int p = count; p < TILE; p++) keys[p] = keys[count - 1];  // scored, and then forgotten
    for (int p = 0; p < TILE; p += 4) {
        for (int i = 0; i < 4; i++) next.fetch(p + i);
        int at = 0;
        for (; at + 4 <= dim; at += 4) {
            v4 a = *(const v4*)(keys[p] + at), b = *(const v4*)(keys[p + 1] + at);
            v4 c = *(const v4*)(keys[p + 2] + at), d = *(const v4*)(keys[p + 3] + at);
            v4 ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), cd = __builtin_shufflevector(c, d, 0, 4, 1, 5);
            v4 ef = __builtin_shufflevector(a, b, 2, 6, 3, 7), gh = __builtin_shufflevector(c, d, 2, 6, 3, 7);
            float* to = turned + at * TILE + p;
            *(v4*)to = __builtin_shufflevector(ab, cd, 0, 1, 4, 5);
            *(v4*)(to + TILE) = __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
            *(v4*)(to + 2 * TILE) = __builtin_shufflevector(ef, gh, 0, 1, 4, 5);
            *(v4*)(to + 3 * TILE) = __builtin_shufflevector(ef, gh, 2, 3, 6, 7);
        }
        for (; at < dim; at++)
            for (int i = 0; i < 4; i++) turned[at * TILE + p + i] = keys[p + i][at];
    }
}

template <int Q>
INLINE void score_turned(const float* q, const float* turned, int dim, float* scores) {
    vf acc[Q][TILE / W] = {};
    for (int i = 0; i < dim; i++) {
        vf key[TILE / W];
        for (int v = 0; v < TILE / W; v++) key[v] = load(turned + i * TILE + v * W), hold(key[v]);
        for (int g = 0; g < Q; g++)
            for (int v = 0; v < TILE / W; v++) acc[g][v] += q[g * dim + i] * key[v];
    }
    for (int g = 0; g < Q; g++)
        for (int v = 0; v < TILE / W; v++) *(vf*)(scores + g * TILE + v * W) = acc[g][v];
}

// One query's scores of a tile become weights; what was summed before is scaled to the new maximum.
INLINE void soften(float* scores, int count, float* out, int dim, float& peak, float& total) {
    vf most = vf{} - 1e30f;
    for (int p = count; p < TILE; p++) scores[p] = -1e30f;
    for (int p = 0; p < TILE; p += W) {
        vf s = load(scores + p);
        most = s > most ? s : most;
    }
    float top = peak;
    for (int i = 0; i < W; i++) top = most[i] > top ? most[i] : top;
    float scale = std::exp(peak - top);
    if (top > peak)
        for (int i = 0; i < dim; i++) out[i] *= scale;
    vf added = {};
    for (int p = 0; p < TILE; p += W) {
        vf e = exp_(load(scores + p) - top);
        *(vf*)(scores + p) = e;
        added += e;
    }
    total = total * scale + sum(added);
    peak = top;
}

template <int Q, int C, typename T>
INLINE void mix(const float* weights, const float* const* values, const Next<T>* next, int at, int count, int dim,
                float* out) {
    vf acc[Q][C];
    for (int g = 0; g < Q; g++)
        for (int c = 0; c < C; c++) acc[g][c] = load(out + g * dim + at + c * W);
    for (int p = 0; p < count; p++) {
        if (next) next->fetch(p);
        vf v[C];
        for (int c = 0; c < C; c++) v[c] = load(values[p] + at + c * W), hold(v[c]);
        for (int g = 0; g < Q; g++)
            for (int c = 0; c < C; c++) acc[g][c] += weights[g * TILE + p] * v[c];
    }
    for (int g = 0; g < Q; g++)
        for (int c = 0; c < C; c++) *(vf*)(out + g * dim + at + c * W) = acc[g][c];
}

template <int Q, typename T>
INLINE void mix_tile(const float* weights, const float* const* values, const Next<T>* next, int count, int dim,
                     float* out) {
    int at = 0;
    for (; at + 4 * W <= dim; at += 4 * W, next = nullptr)
        mix<Q, 4>(weights, values, next, at, count, dim, out);
    for (; at + W <= dim; at += W, next = nullptr) mix<Q, 1>(weights, values, next, at, count, dim, out);
    for (; at < dim; at++)
        for (int g = 0; g < Q; g++)
            for (int p = 0; p < count; p++) out[g * dim + at] += weights[g * TILE + p] * values[p][at];
}

// A tile's rows of one head as fp32, in place where they are.
template <typename T>
INLINE void point(const T* pool, const int64_t* offsets, int count, int dim, std::vector<float>& wide,
                  const float** rows) {
    if constexpr (sizeof(T) == sizeof(float)) {
        for (int p = 0; p < count; p++) rows[p] = (const float*)pool + offsets[p];
    } else {
        wide.resize(TILE * dim);
        for (int p = 0; p < count; p++) {
            float* to = wide.data() + p * dim;
            int i = 0;
            for (; i + W <= dim; i += W) *(vf*)(to + i) = load(pool + offsets[p] + i);
            for (; i < dim; i++) to[i] = get(pool[offsets[p] + i]);
            rows[p] = to;
        }
    }
}

struct Shape {
    int heads, kv_heads, dim, block;
    int64_t stride_q;  // elements between the queries of neighbouring tokens
    float scale;
};

struct Part {
    int sequence, first, tokens, head, heads;
};

INLINE void offsets_of(const int32_t* table, int start, int context, const Shape& s, int64_t* offsets) {
    for (int p = 0; p < TILE; p++) {
        int position = start + p < context ? start + p : context - 1;
        int64_t slot = int64_t(table[position / s.block]) * s.block + position % s.block;
        offsets[p] = slot * s.kv_heads * s.dim;
    }
}

// `before` positions of the context precede the task's first token; `q` and `to` are that token's heads.
template <typename T>
static void task(const Part& part, const T* q, const T* keys, const T* values, const int32_t* table, int before,
                 const Shape& s, T* to, Scratch& own) {
    const int group = s.heads / s.kv_heads, dim = s.dim, queries = part.tokens * group, all = queries * part.heads;
    own.q.resize(all * dim), own.out.assign(all * dim, 0.0f), own.scores.resize(queries * TILE);
    if (queries >= TURNING) own.turned.resize(TILE * dim);
    own.peak.assign(all, -1e30f), own.total.assign(all, 0.0f);
    auto place = [&](int g, int64_t stride) {  // of query g, counted head by head, token by token
        int head = part.head + g / queries, token = g % queries / group;
        return token * stride + (int64_t(head) * group + g % group) * dim;
    };
    for (int g = 0; g < all; g++)
        for (int i = 0; i < dim; i++) own.q[g * dim + i] = get(q[place(g, s.stride_q) + i]) * s.scale;
    const int context = before + part.tokens;
    int64_t offsets[2][TILE];
    offsets_of(table, 0, context, s, offsets[0]);
    for (int start = 0, turn = 0; start < context; start += TILE, turn ^= 1) {
        const int count = context - start < TILE ? context - start : TILE;
        const int64_t *now = offsets[turn], *next = offsets[turn ^ 1];
        offsets_of(table, start + TILE, context, s, offsets[turn ^ 1]);
        for (int h = 0; h < part.heads; h++) {
            const int64_t head = int64_t(part.head + h) * dim;
            const float* rows[TILE];
            float *scores = own.scores.data(), *out = own.out.data() + h * queries * dim;
            const Next<T> keys_next{keys + head, next, dim}, values_next{values + head, next, dim};
            point(keys + head, now, count, dim, own.wide, rows);
            const float* own_q = own.q.data() + h * queries * dim;
            if (queries >= TURNING) {
                turn_tile(rows, keys_next, count, dim, own.turned.data());
                int g = 0;
                for (; g + TOGETHER <= queries; g += TOGETHER)
                    score_turned<TOGETHER>(own_q + g * dim, own.turned.data(), dim, scores + g * TILE);
                for (; g < queries; g++)
                    score_turned<1>(own_q + g * dim, own.turned.data(), dim, scores + g * TILE);
            } else {
                score_tile(own_q, rows, keys_next, count, dim, scores, queries);
            }
            for (int g = 0; g < queries; g++) {
                int seen = before + g / group + 1 - start;  // what this query may see of the tile
                if (seen > 0)
                    soften(scores + g * TILE, seen < count ? seen : count, out + g * dim, dim,
                           own.peak[h * queries + g], own.total[h * queries + g]);
                else
                    memset(scores + g * TILE, 0, TILE * sizeof(float));
            }
            point(values + head, now, count, dim, own.wide, rows);
            int g = 0;
            if (queries >= TURNING)
                for (; g + TOGETHER <= queries; g += TOGETHER)
                    mix_tile<TOGETHER>(scores + g * TILE, rows, g ? nullptr : &values_next, count, dim,
                                       out + g * dim);
            for (; g + 2 <= queries; g += 2)
                mix_tile<2>(scores + g * TILE, rows, g ? nullptr : &values_next, count, dim, out + g * dim);
            if (g < queries)
                mix_tile<1>(scores + g * TILE, rows, g ? nullptr : &values_next, count, dim, out + g * dim);
        }
    }
    for (int g = 0; g < all; g++)
        for (int i = 0; i < dim; i++)
            put(to + place(g, int64_t(s.heads) * dim) + i, own.out[g * dim + i] / own.total[g]);
}

// Sequence `i` of the batch has the tokens [ends[i-1], ends[i]) and `starts[i]` positions before them.
template <typename T>
static void attend(const T* q, const T* keys, const T* values, const int32_t* tables, int64_t table_width,
                   const int64_t* starts, const int64_t* ends, int sequences, const Shape& s, T* out,
                   int threads) {
    const int group = s.heads / s.kv_heads, most = QUERIES / group > 1 ? QUERIES / group : 1;
    std::vector<Part> parts;
    for (int i = 0; i < sequences; i++) {
        const int n = ends[i] - (i ? ends[i - 1] : 0);
        // All heads at once read the pool in order; many queries, or few sequences, are better cut by head.
        const int heads = n == 1 && sequences >= 4 * threads ? s.kv_heads : 1;
        for (int first = 0; first < n; first += most)
            for (int head = 0; head < s.kv_heads; head += heads)
                parts.push_back({i, first, n - first < most ? n - first : most, head, heads});
    }
#pragma omp parallel num_threads(threads) if (threads > 1 && parts.size() > 1)
    {
        Scratch own;
#pragma omp for schedule(dynamic)
        for (size_t i = 0; i < parts.size(); i++) {
            const Part& part = parts[i];
            const int64_t token = (part.sequence ? ends[part.sequence - 1] : 0) + part.first;
            task(part, q + token * s.stride_q, keys, values, tables + part.sequence * table_width,
                 int(starts[part.sequence]) + part.first, s, out + token * s.heads * s.dim, own);
        }
    }
}

#define EXPORT(T, NAME)                                                                                        \
    extern "C" void attend_##NAME(const T* q, int64_t stride_q, const T* keys, const T* values,                  \
                                  const int32_t* tables, int64_t table_width, const int64_t* starts,           \
                                  const int64_t* ends, int sequences, int heads, int kv_heads, int dim,        \
                                  int block, float scale, T* out, int threads) {                               \
        attend(q, keys, values, tables, table_width, starts, ends, sequences,                                  \
               Shape{heads, kv_heads, dim, block, stride_q, scale}, out, threads);                             \
    }
EXPORT(float, fp32)
EXPORT(bf16, bf16)
