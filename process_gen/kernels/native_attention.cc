// Interval attention for CPUs, forward and backward, as two functions that XLA calls (jax.ffi).
//
// Every row by itself, its queries and keys sorted, so that what is not seen is hardly computed
// (`native_visits.h`). The keys of a KV cache come before these, as they lie. Scores of a visit stay
// in the core's first cache, and rows and key heads are dealt to the threads of XLA's pool. No sum is
// shared between threads, so results do not depend on their number.
//
// Exponentials are powers of two, and log-sum-exp is one in base 2, as in `flash_gpu_kernels`.

#include <cmath>
#include <mutex>
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
  tiles<kRows, kVecs>(rows, inner, a.at, a.by_row, a.by_column, ptrdiff_t(kRows) * a.by_row, b, ldb,
                      c, ldc, accumulate);
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

// Rows, each sorted by the first that wants it. The calling thread keeps them: the layers of a model
// and the steps of a painting see the same.
class Rows {
 public:
  // `slots` keys of a cache and so many own ones of each row are seen at most.
  Rows(const Sizes& n, const Ints& order, const Ints& from, const Ints& to,
       const int32_t* cached_from, const int32_t* cached_to, int slots)
      : n_(n), orders_(order.typed_data()), from_(from.typed_data()), to_(to.typed_data()),
        cached_from_(cached_from), cached_to_(cached_to), slots_(slots), rows_(kept()),
        once_(new std::once_flag[n.rows]) {
    if (int(rows_.size()) < n.rows) rows_.resize(n.rows);
  }

  const Row& at(int r) {
    std::call_once(once_[r], [&] {
      const size_t c = size_t(r) * slots_, q = size_t(r) * n_.queries, k = size_t(r) * n_.keys;
      const Tokens tokens{orders_ + q,       n_.queries,       n_.group, from_ + k, to_ + k, n_.keys,
                          cached_from_ + c, cached_to_ + c, slots_};
      if (!rows_[r] || !rows_[r]->is_of(tokens)) rows_[r].reset(new Row(tokens));
    });
    return *rows_[r];
  }

  // One core's, about, were half of the keys seen.
  double microseconds() const {
    return 5e-5 * n_.rows * n_.queries * (slots_ + n_.keys) * n_.heads * n_.width;
  }

 private:
  static std::vector<std::unique_ptr<Row>>& kept() {
    static thread_local std::vector<std::unique_ptr<Row>> rows;
    return rows;
  }

  const Sizes& n_;
  const int32_t *orders_, *from_, *to_, *cached_from_, *cached_to_;
  const int slots_;
  std::vector<std::unique_ptr<Row>>& rows_;
  std::unique_ptr<std::once_flag[]> once_;
};

using Kept = std::vector<float>;

// Keys or values of one row and key head, block by block with features as rows, ``[J, width, 64]``;
// strips that have any are filled up with zeros.
const float* turned(const Sizes& n, const Row& row, int r, int head, const float* x, Kept& kept) {
  const size_t block = size_t(n.width) * kKeys;
  float* found = room(kept, n.blocks() * block);
  for (int j = 0; j < n.keys || j % kStrip; j += kLanes) {
    float* to = &found[j / kKeys * block + j % kKeys];
    const int used = std::clamp(n.keys - j, 0, kLanes);
    const float* from[kLanes];
    for (int i = 0; i < used; i++) from[i] = x + n.key(r, row.key[j + i], head);
    for (int d = 0; d < n.dim; d += kLanes) {
      const int features = std::min(kLanes, n.dim - d);
      Vec square[kLanes];
      for (int i = 0; i < kLanes; i++) {
        square[i] = splat(0.0f);
        if (i < used && features == kLanes) square[i] = load(from[i] + d);
        if (i < used && features < kLanes) std::memcpy(&square[i], from[i] + d, 4 * features);
      }
      turn(square);
      for (int i = 0; i < features; i++) store(to + (d + i) * kKeys, square[i]);
    }
  }
  return found;
}

// The same, sorted and filled up, ``[J * 64, width]``.
const float* laid_out(const Sizes& n, const Row& row, int r, int head, const float* x, Kept& kept) {
  const size_t whole = size_t(n.blocks()) * kKeys * n.width;
  float* found = room(kept, whole);
  const size_t used = n.width == n.dim ? size_t(n.keys) * n.width : 0;
  std::fill_n(found + used, whole - used, 0.0f);
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

// A block of queries of all heads that share a key head, and where their numbers lie.
struct Queries {
  const Sizes& n;
  int used;
  size_t at[kQueries], statistic[kQueries];

  Queries(const Sizes& n, const Row& row, int r, int kv, int first)
      : n(n), used(std::min(kQueries, n.queries * n.group - first)) {
    int token = first / n.group, head = first % n.group;
    for (int s = 0; s < used; s++) {
      at[s] = n.query(r, row.query[token], kv * n.group + head);
      statistic[s] = n.statistic(r, kv * n.group + head, row.query[token]);
      if (++head == n.group) head = 0, token++;
    }
  }

  void fetch(const float* x, float scale, float* to) const {
    for (int s = 0; s < used; s++) scaled(n.dim, x + at[s], scale, to + s * n.width);
  }
};

// ---- the two functions --------------------------------------------------------------------------

// What a block of queries has seen so far.
struct Seeing {
  Kept kept_queries, kept_sum;
  float *queries, *sum;
  alignas(64) float scores[kQueries * kKeys];
  Vec total[kQueries];  // by lanes
  float highest[kQueries + kLanes], rescale[kQueries + kLanes];

  void begin(int width) {
    queries = room(kept_queries, kQueries * width);
    sum = room(kept_sum, kQueries * width);
    std::fill_n(sum, kQueries * width, 0.0f);
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
    float* sum = seeing.sum + s * width;
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
  product(queries, v.keys, n.dim, {&seeing.queries[top], n.width, 1}, block.keys, block.stride,
          scores, kKeys, false);
  if (seen.masked) hide<kVecs>(queries, seen, scores);
  weigh<kVecs>(v, n.width, seeing);
  product(queries, n.width, v.keys, {scores, kKeys, 1}, block.values, n.width,
          &seeing.sum[top], n.width, true);
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

// Rows of a cache, ``[R, K, Dh, C]``, are seen in whole strips of keys from the first on; features of
// its heads are whole vectors. A second result is the log-sum-exp of each query's scores.
ffi::Error forward(ffi::ThreadPool pool, Floats q, Floats k, Floats v, Ints order, Ints from,
                   Ints to, Floats cached_k, Floats cached_v, Ints cached_row, Ints cached_from,
                   Ints cached_to, Out out, ffi::RemainingRets saved) {
  const Sizes n(q, k);
  float* lse = nullptr;
  if (saved.size()) {
    auto found = saved.get<Floats>(0);
    if (found.has_error()) return found.error();
    lse = (*found)->typed_data();
  }
  const int slots = cached_to.dimensions()[1], stride = cached_k.dimensions()[3];
  const float scale = kLog2e / std::sqrt(float(n.dim));
  const int32_t *all_from = cached_from.typed_data(), *all_to = cached_to.typed_data();
  Rows rows(n, order, from, to, all_from, all_to, slots);
  deal(pool, n.rows * n.kv_heads, rows.microseconds(), [&](int item) {
    const int r = item % n.rows, kv = item / n.rows;
    const Row& row = rows.at(r);
    static thread_local Kept kept_keys, kept_values;
    static thread_local Seeing seeing;
    const float* keys = turned(n, row, r, kv, k.typed_data(), kept_keys);
    const float* values = laid_out(n, row, r, kv, v.typed_data(), kept_values);
    // As where jax takes rows out of an array.
    const int last = int(cached_k.dimensions()[0]) - 1;
    const int from_row = std::clamp(cached_row.typed_data()[r], 0, last);
    const size_t place = size_t(from_row) * n.kv_heads + kv;
    const size_t cached = place * n.dim * stride;
    const float *cache_k = cached_k.typed_data() + cached, *cache_v = cached_v.typed_data() + cached;
    const int32_t *froms = all_from + size_t(r) * slots, *tos = all_to + size_t(r) * slots;
    for (int first = 0; first < n.queries * n.group; first += kQueries) {
      const Queries queries(n, row, r, kv, first);
      const int32_t* orders = &row.order[first];
      seeing.begin(n.width);
      queries.fetch(q.typed_data(), scale, seeing.queries);
      for (const Visit& v : row.cached[first / kQueries]) {
        const Seen seen{orders + v.first, froms + v.key, tos + v.key, v.masked};
        const Keys block{cache_k + v.key, stride, cache_v + size_t(v.key) * n.dim};
        look<kKeys / kLanes>(n, v, seen, block, seeing);
      }
      for (const Visit& v : row.own[first / kQueries]) {
        const size_t block = size_t(v.key / kKeys) * kKeys * n.width;
        const Seen seen{orders + v.first, &row.from[v.key], &row.to[v.key], v.masked};
        const Keys own{keys + block + v.key % kKeys, kKeys, values + size_t(v.key) * n.width};
        look<kKeys / kLanes>(n, v, seen, own, seeing);
      }
      for (int s = 0; s < queries.used; s++) {
        const float sum = total(seeing.total[s]);
        const float whole = sum == 0.0f ? 1.0f : sum;  // of one that sees nothing
        scaled(n.dim, &seeing.sum[s * n.width], 1.0f / whole, out->typed_data() + queries.at[s]);
        if (lse) lse[queries.statistic[s]] = seeing.highest[s] + std::log2(whole);
      }
    }
  });
  return ffi::Error::Success();
}

ffi::Error backward(ffi::ThreadPool pool, Floats q, Floats k, Floats v, Ints order, Ints from,
                    Ints to, Floats lse, Floats delta, Floats d_out, Out dq, Out dk, Out dv) {
  const Sizes n(q, k);
  const float scale = 1.0f / std::sqrt(float(n.dim));
  Rows rows(n, order, from, to, nullptr, nullptr, 0);
  deal(pool, n.rows * n.kv_heads, 2.5 * rows.microseconds(), [&](int item) {
    const int r = item % n.rows, kv = item / n.rows;
    const Row& row = rows.at(r);
    static thread_local Kept kept[8];
    const float* keys = turned(n, row, r, kv, k.typed_data(), kept[0]);
    const float* values = turned(n, row, r, kv, v.typed_data(), kept[1]);
    const float* plain_keys = laid_out(n, row, r, kv, k.typed_data(), kept[2]);
    const size_t all = size_t(n.blocks()) * kKeys * n.width, some = size_t(kQueries) * n.width;
    float *by_key = room(kept[3], all), *by_value = room(kept[4], all);
    std::fill_n(by_key, all, 0.0f);
    std::fill_n(by_value, all, 0.0f);
    float *here = room(kept[5], some), *d_outs = room(kept[6], some);
    float* by_query = room(kept[7], some);
    alignas(64) float weights[kQueries * kKeys], d_scores[kQueries * kKeys];
    float log_sum[kQueries], inner[kQueries];
    for (int first = 0; first < n.queries * n.group; first += kQueries) {
      const Queries queries(n, row, r, kv, first);
      const int32_t* orders = &row.order[first];
      queries.fetch(q.typed_data(), scale, here);
      queries.fetch(d_out.typed_data(), 1.0f, d_outs);
      std::fill_n(by_query, some, 0.0f);
      for (int s = 0; s < queries.used; s++) {
        const size_t at = queries.statistic[s];
        log_sum[s] = lse.typed_data()[at], inner[s] = delta.typed_data()[at];
      }
      for (const Visit& v : row.own[first / kQueries]) {
        const int count = v.last - v.first, top = v.first * n.width;
        const size_t block = size_t(v.key / kKeys) * kKeys * n.width + v.key % kKeys;
        const size_t plain = size_t(v.key) * n.width;
        product(count, v.keys, n.dim, {here + top, n.width, 1}, keys + block, kKeys, weights, kKeys,
                false);
        product(count, v.keys, n.dim, {d_outs + top, n.width, 1}, values + block, kKeys, d_scores,
                kKeys, false);
        const Seen seen{orders + v.first, &row.from[v.key], &row.to[v.key], v.masked};
        weigh_again<kKeys / kLanes>(count, v.keys, seen, log_sum + v.first, inner + v.first,
                                    weights, d_scores);
        product(count, n.width, v.keys, {d_scores, kKeys, 1}, plain_keys + plain, n.width,
                by_query + top, n.width, true);
        product(v.keys, n.width, count, {d_scores, 1, kKeys}, here + top, n.width, by_key + plain,
                n.width, true);
        product(v.keys, n.width, count, {weights, 1, kKeys}, d_outs + top, n.width,
                by_value + plain, n.width, true);
      }
      for (int s = 0; s < queries.used; s++) {
        scaled(n.dim, by_query + s * n.width, scale, dq->typed_data() + queries.at[s]);
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

using process_gen::given;
using process_gen::Ints;
using process_gen::made;
using xla::ffi::Ffi;
using xla::ffi::ThreadPool;

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    interval_attention_forward, process_gen::forward,
    made<1>(given<2>(given<3>(Ffi::Bind().Ctx<ThreadPool>()).Arg<Ints>().Arg<Ints>().Arg<Ints>())
                .Arg<Ints>()
                .Arg<Ints>()
                .Arg<Ints>())
        .RemainingRets());

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    interval_attention_backward, process_gen::backward,
    made<3>(given<3>(
        given<3>(Ffi::Bind().Ctx<ThreadPool>()).Arg<Ints>().Arg<Ints>().Arg<Ints>())));
