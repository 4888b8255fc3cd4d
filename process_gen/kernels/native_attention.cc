// Interval attention for CPUs, forward and backward, as two functions that XLA calls (jax.ffi).
//
// Every row by itself, its queries and keys sorted, so that what is not seen is hardly computed
// (`native_visits.h`). The keys of a KV cache come before these, as they lie. Scores of a visit stay
// in the core's first cache, and rows and key heads are dealt to the threads of XLA's pool. No sum is
// shared between threads, so results do not depend on their number.
//
// Exponentials are powers of two, and log-sum-exp is one in base 2, as in `flash_gpu_kernels`.

#include <cmath>
#include <vector>

#include "native_visits.h"

namespace process_gen {
namespace {

constexpr float kFloor = -1e30f, kHidden = -1e38f;

// ---- small matrix products ----------------------------------------------------------------------

struct Matrix {
  const float* at;
  int by_row, by_column;
};

template <int kVecs, int kRows>
void columns(int rows, int inner, Matrix a, const float* b, int ldb, float* c, int ldc,
             bool accumulate) {
  for (int i = 0; i < rows; i += kRows) {
    up_to<kRows, kVecs>(std::min(kRows, rows - i), inner, a.at + i * a.by_row, a.by_row,
                        a.by_column, b, ldb, c + i * ldc, ldc, accumulate);
  }
}

// C[rows, width] = (accumulate ? C : 0) + A[rows, inner] B[inner, width], width a multiple of 8.
void product(int rows, int width, int inner, Matrix a, const float* b, int ldb, float* c, int ldc,
             bool accumulate) {
  for (int n = 0; n < width;) {
    const int left = (width - n) / kLanes;
    if (left == 3) {
      columns<3, 4>(rows, inner, a, b + n, ldb, c + n, ldc, accumulate);
      n += 3 * kLanes;
    } else if (left >= 2) {
      columns<2, 6>(rows, inner, a, b + n, ldb, c + n, ldc, accumulate);
      n += 2 * kLanes;
    } else {
      columns<1, 8>(rows, inner, a, b + n, ldb, c + n, ldc, accumulate);
      n += kLanes;
    }
  }
}

// ---- shapes -------------------------------------------------------------------------------------

struct Sizes {
  int rows, queries, keys, heads, kv_heads, dim, width, group;

  Sizes(const Floats& q, const Floats& k)
      : rows(q.dimensions()[0]), queries(q.dimensions()[1]), keys(k.dimensions()[1]),
        heads(q.dimensions()[2]), kv_heads(k.dimensions()[2]), dim(q.dimensions()[3]),
        width((dim + kLanes - 1) / kLanes * kLanes), group(heads / kv_heads) {}

  int blocks() const { return (keys + kKeys - 1) / kKeys; }
  size_t query(int row, int token, int head) const {
    return ((size_t(row) * queries + token) * heads + head) * dim;
  }
  size_t key(int row, int token, int head) const {
    return ((size_t(row) * keys + token) * kv_heads + head) * dim;
  }
  size_t statistic(int row, int head, int token) const {
    return (size_t(row) * heads + head) * queries + token;
  }
};

// All rows, sorted, and what they visit.
struct Rows {
  std::vector<std::unique_ptr<Row>> at;
  double microseconds;  // one core's, for the pairs that are visited

  Rows(ffi::ThreadPool& pool, const Sizes& n, const Ints& order, const Ints& from, const Ints& to,
       const int32_t* cached_from, const int32_t* cached_to, int slots)
      : at(n.rows) {
    deal(pool, n.rows, 0.05 * n.rows * (n.queries + n.keys), [&](int r) {
      const Intervals cache(cached_from + size_t(r) * slots, cached_to + size_t(r) * slots, slots);
      const size_t q = size_t(r) * n.queries, k = size_t(r) * n.keys;
      at[r].reset(new Row(order.typed_data() + q, n.queries, from.typed_data() + k,
                          to.typed_data() + k, n.keys, cache));
    });
    int64_t pairs = 0;
    for (const auto& row : at) {
      for (const auto* all : {&row->own, &row->cached}) {
        for (const auto& visits : *all) {
          for (const Visit& v : visits) pairs += int64_t(v.keys) * (v.last - v.first);
        }
      }
    }
    microseconds = 1e-4 * pairs * n.heads * n.width;
  }
};

// Keys or values of one row and key head, block by block with features as rows, ``[J, width, 64]``.
std::vector<float> turned(const Sizes& n, const Row& row, int r, int head, const float* x) {
  std::vector<float> found(size_t(n.blocks()) * n.width * kKeys);
  for (int j = 0; j < n.keys; j++) {
    const float* from = x + n.key(r, row.key[j], head);
    float* to = &found[size_t(j / kKeys) * n.width * kKeys + j % kKeys];
    for (int d = 0; d < n.dim; d++) to[d * kKeys] = from[d];
  }
  return found;
}

// The same, sorted and filled up, ``[J * 64, width]``.
std::vector<float> laid_out(const Sizes& n, const Row& row, int r, int head, const float* x) {
  std::vector<float> found(size_t(n.blocks()) * kKeys * n.width);
  for (int j = 0; j < n.keys; j++) {
    std::memcpy(&found[size_t(j) * n.width], x + n.key(r, row.key[j], head), 4 * n.dim);
  }
  return found;
}

inline void scaled(int n, const float* from, float scale, float* to) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, load(from + i) * scale);
  for (; i < n; i++) to[i] = from[i] * scale;
}

// Numbers of a block of queries, features filled up with zeros.
struct Block {
  std::vector<float> at;

  explicit Block(int width) : at(kQueries * width) {}

  void fetch(const Sizes& n, const Row& row, int r, int head, int first, int used, const float* x,
             float scale) {
    for (int s = 0; s < used; s++) {
      scaled(n.dim, x + n.query(r, row.query[first + s], head), scale, &at[s * n.width]);
    }
  }
};

// ---- the two functions --------------------------------------------------------------------------

// What a block of queries of one head has seen so far.
struct Seeing {
  Block queries, sum;
  alignas(64) float scores[kQueries * kKeys];
  Vec total[kQueries];  // by lanes
  float highest[kQueries + kLanes], rescale[kQueries + kLanes];

  explicit Seeing(int width) : queries(width), sum(width) {}

  void begin() {
    std::fill(sum.at.begin(), sum.at.end(), 0.0f);
    std::fill_n(highest, kQueries + kLanes, kFloor);
    std::fill_n(total, kQueries, splat(0.0f));
  }
};

// Keys of a visit with features as rows, `stride` apart, and their values, ``[keys, width]``.
struct Keys {
  const float* keys;
  int stride;
  const float* values;
};

// Who sees what of a visit.
struct Seen {
  const int32_t *order, *from, *to;
  bool masked;
};

// Hides the scores, `8 kVecs` a query, of keys that it may not attend to.
template <int kVecs>
void hide(int queries, const Seen& seen, float* scores) {
  for (int s = 0; s < queries; s++, scores += kKeys) {
#pragma GCC unroll 8
    for (int t = 0; t < kVecs * kLanes; t += kLanes) {
      const IntVec may = may_attend(seen.order[s], seen.from + t, seen.to + t);
      store(scores + t, may ? load(scores + t) : splat(kHidden));
    }
  }
}

// Makes weights of the scores, in units of the highest that each query has seen.
template <int kVecs>
void weigh(const Visit& v, int width, Seeing& seeing) {
  for (int first = v.first; first < v.last; first += kLanes) {
    const int count = std::min(kLanes, v.last - first);
    Vec most[kLanes];
    for (int i = 0; i < count; i++) {
      const float* line = seeing.scores + (first + i) * kKeys;
      Vec own = load(line);
#pragma GCC unroll 8
      for (int t = kLanes; t < kVecs * kLanes; t += kLanes) {
        const Vec x = load(line + t);
        own = own > x ? own : x;
      }
      most[i] = own;
    }
    for (int i = count; i < kLanes; i++) most[i] = splat(kHidden);
    turn(most);
    const Vec before = load(seeing.highest + first);
    Vec top = before;
    for (int i = 0; i < kLanes; i++) top = top > most[i] ? top : most[i];
    store(seeing.highest + first, top);
    store(seeing.rescale + first, exp2(before - top));
  }
  for (int s = v.first; s < v.last; s++) {
    float* line = seeing.scores + s * kKeys;
    const Vec top = splat(seeing.highest[s]), rescale = splat(seeing.rescale[s]);
    Vec added = splat(0.0f);
#pragma GCC unroll 8
    for (int t = 0; t < kVecs * kLanes; t += kLanes) {
      const Vec weight = exp2(load(line + t) - top);
      store(line + t, weight);
      added += weight;
    }
    seeing.total[s] = seeing.total[s] * rescale + added;
    float* sum = seeing.sum.at.data() + s * width;
    for (int d = 0; d < width; d += kLanes) store(sum + d, load(sum + d) * rescale);
  }
}

// Queries look at the keys of a visit.
template <int kVecs>
void look(const Sizes& n, const Visit& v, const Seen& seen, const Keys& block, Seeing& seeing) {
  if constexpr (kVecs > 2) {
    if (v.keys < kVecs * kLanes) return look<kVecs - 2>(n, v, seen, block, seeing);
  }
  const int queries = v.last - v.first, top = v.first * n.width;
  float* scores = seeing.scores + v.first * kKeys;
  product(queries, v.keys, n.dim, {&seeing.queries.at[top], n.width, 1}, block.keys, block.stride,
          scores, kKeys, false);
  if (seen.masked) hide<kVecs>(queries, seen, scores);
  weigh<kVecs>(v, n.width, seeing);
  product(queries, n.width, v.keys, {scores, kKeys, 1}, block.values, n.width,
          &seeing.sum.at[top], n.width, true);
}

// On the way back: scores become weights once more, and the weights' gradients those of scores.
template <int kVecs>
void weigh_again(int queries, int keys, const Seen& seen, const float* log_sum, const float* inner,
                 float* weights, float* d_scores) {
  if constexpr (kVecs > 2) {
    if (keys < kVecs * kLanes) {
      return weigh_again<kVecs - 2>(queries, keys, seen, log_sum, inner, weights, d_scores);
    }
  }
  if (seen.masked) hide<kVecs>(queries, seen, weights);
  for (int s = 0; s < queries; s++, weights += kKeys, d_scores += kKeys) {
    const Vec by = splat(log_sum[s]), own = splat(inner[s]);
#pragma GCC unroll 8
    for (int t = 0; t < kVecs * kLanes; t += kLanes) {
      const Vec weight = exp2(load(weights + t) * kLog2e - by);
      store(weights + t, weight);
      store(d_scores + t, weight * (load(d_scores + t) - own));
    }
  }
}

// A cache has whole strips of keys, and heads whose features are whole vectors.
ffi::Error forward(ffi::ThreadPool pool, Floats q, Floats k, Floats v, Ints order, Ints from,
                   Ints to, Floats cached_k, Floats cached_v, Ints cached_from, Ints cached_to,
                   Out out, Out lse) {
  const Sizes n(q, k);
  const int slots = cached_k.dimensions()[3];
  const float scale = kLog2e / std::sqrt(float(n.dim));
  const int32_t *all_from = cached_from.typed_data(), *all_to = cached_to.typed_data();
  const Rows rows(pool, n, order, from, to, all_from, all_to, slots);
  deal(pool, n.rows * n.kv_heads, rows.microseconds, [&](int item) {
    const int r = item / n.kv_heads, kv = item % n.kv_heads;
    const Row& row = *rows.at[r];
    const auto keys = turned(n, row, r, kv, k.typed_data());
    const auto values = laid_out(n, row, r, kv, v.typed_data());
    const float* cache_k = cached_k.typed_data() + size_t(item) * n.dim * slots;
    const float* cache_v = cached_v.typed_data() + size_t(item) * n.dim * slots;
    const int32_t *froms = all_from + size_t(r) * slots, *tos = all_to + size_t(r) * slots;
    Seeing seeing(n.width);
    for (int first = 0; first < n.queries; first += kQueries) {
      const int used = std::min(kQueries, n.queries - first);
      const int32_t* orders = &row.order[first];
      for (int head = kv * n.group; head < (kv + 1) * n.group; head++) {
        seeing.queries.fetch(n, row, r, head, first, used, q.typed_data(), scale);
        seeing.begin();
        for (const Visit& v : row.cached[first / kQueries]) {
          const Seen seen{orders + v.first, froms + v.key, tos + v.key, v.masked};
          const Keys block{cache_k + v.key, slots, cache_v + size_t(v.key) * n.dim};
          look<kKeys / kLanes>(n, v, seen, block, seeing);
        }
        for (const Visit& v : row.own[first / kQueries]) {
          const size_t block = size_t(v.key / kKeys) * kKeys * n.width;
          const Seen seen{orders + v.first, &row.from[v.key], &row.to[v.key], v.masked};
          const Keys own{&keys[block + v.key % kKeys], kKeys, &values[size_t(v.key) * n.width]};
          look<kKeys / kLanes>(n, v, seen, own, seeing);
        }
        for (int s = 0; s < used; s++) {
          const int token = row.query[first + s];
          const float sum = total(seeing.total[s]);
          const float whole = sum == 0.0f ? 1.0f : sum;  // of one that sees nothing
          scaled(n.dim, &seeing.sum.at[s * n.width], 1.0f / whole,
                 out->typed_data() + n.query(r, token, head));
          lse->typed_data()[n.statistic(r, head, token)] = seeing.highest[s] + std::log2(whole);
        }
      }
    }
  });
  return ffi::Error::Success();
}

ffi::Error backward(ffi::ThreadPool pool, Floats q, Floats k, Floats v, Ints order, Ints from,
                    Ints to, Floats lse, Floats delta, Floats d_out, Out dq, Out dk, Out dv) {
  const Sizes n(q, k);
  const float scale = 1.0f / std::sqrt(float(n.dim));
  const Rows rows(pool, n, order, from, to, nullptr, nullptr, 0);
  deal(pool, n.rows * n.kv_heads, 2.5 * rows.microseconds, [&](int item) {
    const int r = item / n.kv_heads, kv = item % n.kv_heads;
    const Row& row = *rows.at[r];
    const auto keys = turned(n, row, r, kv, k.typed_data());
    const auto values = turned(n, row, r, kv, v.typed_data());
    const auto plain_keys = laid_out(n, row, r, kv, k.typed_data());
    std::vector<float> by_key(plain_keys.size()), by_value(plain_keys.size());
    Block queries(n.width), d_outs(n.width), by_query(n.width);
    alignas(64) float weights[kQueries * kKeys], d_scores[kQueries * kKeys];
    float log_sum[kQueries], inner[kQueries];
    for (int first = 0; first < n.queries; first += kQueries) {
      const int used = std::min(kQueries, n.queries - first);
      const int32_t* orders = &row.order[first];
      for (int head = kv * n.group; head < (kv + 1) * n.group; head++) {
        queries.fetch(n, row, r, head, first, used, q.typed_data(), scale);
        d_outs.fetch(n, row, r, head, first, used, d_out.typed_data(), 1.0f);
        std::fill(by_query.at.begin(), by_query.at.end(), 0.0f);
        for (int s = 0; s < used; s++) {
          const size_t at = n.statistic(r, head, row.query[first + s]);
          log_sum[s] = lse.typed_data()[at], inner[s] = delta.typed_data()[at];
        }
        for (const Visit& v : row.own[first / kQueries]) {
          const int count = v.last - v.first, top = v.first * n.width;
          const size_t block = size_t(v.key / kKeys) * kKeys * n.width + v.key % kKeys;
          const size_t plain = size_t(v.key) * n.width;
          product(count, v.keys, n.dim, {&queries.at[top], n.width, 1}, &keys[block], kKeys,
                  weights, kKeys, false);
          product(count, v.keys, n.dim, {&d_outs.at[top], n.width, 1}, &values[block], kKeys,
                  d_scores, kKeys, false);
          const Seen seen{orders + v.first, &row.from[v.key], &row.to[v.key], v.masked};
          weigh_again<kKeys / kLanes>(count, v.keys, seen, log_sum + v.first, inner + v.first,
                                      weights, d_scores);
          product(count, n.width, v.keys, {d_scores, kKeys, 1}, &plain_keys[plain], n.width,
                  &by_query.at[top], n.width, true);
          product(v.keys, n.width, count, {d_scores, 1, kKeys}, &queries.at[top], n.width,
                  &by_key[plain], n.width, true);
          product(v.keys, n.width, count, {weights, 1, kKeys}, &d_outs.at[top], n.width,
                  &by_value[plain], n.width, true);
        }
        for (int s = 0; s < used; s++) {
          scaled(n.dim, &by_query.at[s * n.width], scale,
                 dq->typed_data() + n.query(r, row.query[first + s], head));
        }
      }
    }
    for (int j = 0; j < n.keys; j++) {
      const size_t at = n.key(r, row.key[j], kv);
      std::memcpy(dk->typed_data() + at, &by_key[size_t(j) * n.width], 4 * n.dim);
      std::memcpy(dv->typed_data() + at, &by_value[size_t(j) * n.width], 4 * n.dim);
    }
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace process_gen

XLA_FFI_DEFINE_HANDLER_SYMBOL(interval_attention_forward, process_gen::forward,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<process_gen::Floats>().Arg<process_gen::Floats>()
                                  .Arg<process_gen::Floats>().Arg<process_gen::Ints>()
                                  .Arg<process_gen::Ints>().Arg<process_gen::Ints>()
                                  .Arg<process_gen::Floats>().Arg<process_gen::Floats>()
                                  .Arg<process_gen::Ints>().Arg<process_gen::Ints>()
                                  .Ret<process_gen::Floats>().Ret<process_gen::Floats>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(interval_attention_backward, process_gen::backward,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<process_gen::Floats>().Arg<process_gen::Floats>()
                                  .Arg<process_gen::Floats>().Arg<process_gen::Ints>()
                                  .Arg<process_gen::Ints>().Arg<process_gen::Ints>()
                                  .Arg<process_gen::Floats>().Arg<process_gen::Floats>()
                                  .Arg<process_gen::Floats>()
                                  .Ret<process_gen::Floats>().Ret<process_gen::Floats>()
                                  .Ret<process_gen::Floats>());
