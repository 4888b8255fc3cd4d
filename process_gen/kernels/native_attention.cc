// Interval attention for CPUs, forward and backward, as two functions that XLA calls (jax.ffi).
//
// What `by_row` does in XLA's own loops: every row by itself, its queries sorted by order and its
// keys by where they begin to be seen, in blocks of 64, of which those that nobody sees are not
// visited and those that are seen whole take no mask. The keys of a KV cache come before these, in
// blocks as they lie. A block of scores stays in the core's first cache, and rows and key heads are
// dealt to the threads of XLA's pool. No sum is shared between threads, so results do not depend on
// their number.
//
// Exponentials are powers of two, and log-sum-exp is one in base 2, as in `flash_gpu_kernels`.

#include <cmath>
#include <numeric>
#include <vector>

#include "native.h"

namespace process_gen {
namespace {

constexpr int kBlock = 64;
constexpr float kFloor = -1e30f, kHidden = -1e38f;

inline IntVec load_ints(const int32_t* p) {
  IntVec x;
  std::memcpy(&x, p, sizeof x);
  return x;
}

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

// ---- who sees whom ------------------------------------------------------------------------------

enum class Seen { kNone, kPart, kWhole };

// The tokens of one row, sorted, filled up to whole blocks with what neither sees nor is seen.
struct Row {
  std::vector<int> query, key;  // where they lie
  std::vector<int32_t> order, from, to;

  Row(const int32_t* orders, int queries, const int32_t* froms, const int32_t* tos, int keys)
      : query(queries), key(keys) {
    std::iota(query.begin(), query.end(), 0);
    std::iota(key.begin(), key.end(), 0);
    auto rank = [&](int i) { return orders[i] < 0 ? INT32_MAX : orders[i]; };  // padding comes last
    std::stable_sort(query.begin(), query.end(), [&](int a, int b) { return rank(a) < rank(b); });
    std::stable_sort(key.begin(), key.end(), [&](int a, int b) { return froms[a] < froms[b]; });
    auto filled = [](int n) { return (n + kBlock - 1) / kBlock * kBlock; };
    order.assign(filled(queries), -1);
    from.assign(filled(keys), INT32_MAX);
    to.assign(filled(keys), -1);
    for (int i = 0; i < queries; i++) order[i] = orders[query[i]];
    for (int j = 0; j < keys; j++) from[j] = froms[key[j]], to[j] = tos[key[j]];
  }

  // As `block_visits.visited_blocks` and `whole_blocks`.
  Seen seen(int i, const int32_t* a, const int32_t* b) const {
    const auto o = order.begin() + i * kBlock;
    int32_t first = INT32_MAX, last = -1, least = INT32_MAX;
    for (auto x = o; x != o + kBlock; x++) {
      if (*x >= 0) first = std::min(first, *x);
      last = std::max(last, *x);
      least = std::min(least, *x);
    }
    const auto [opens, opened] = std::minmax_element(a, a + kBlock);
    const auto [closed, closes] = std::minmax_element(b, b + kBlock);
    if (*opens > last || first > *closes) return Seen::kNone;
    return *opened <= least && last <= *closed ? Seen::kWhole : Seen::kPart;
  }

  struct Visit {
    int block;
    bool masked;
  };

  // The blocks of keys with these intervals that the i-th block of queries visits.
  std::vector<Visit> visits(int i, const int32_t* froms, const int32_t* tos, int blocks) const {
    std::vector<Visit> found;
    for (int j = 0; j < blocks; j++) {
      const Seen kind = seen(i, froms + j * kBlock, tos + j * kBlock);
      if (kind != Seen::kNone) found.push_back({j, kind == Seen::kPart});
    }
    return found;
  }

  // Those of its own.
  std::vector<Visit> visits(int i) const {
    return visits(i, from.data(), to.data(), int(from.size()) / kBlock);
  }

  // `core.attention_mask.may_attend` of one query and eight keys; all bits set where it may.
  IntVec may_attend(int query, const int32_t* froms, const int32_t* tos) const {
    const IntVec o = IntVec{} + order[query];
    return (load_ints(froms) <= o) & (o <= load_ints(tos));
  }
};

// ---- shapes -------------------------------------------------------------------------------------

struct Sizes {
  int rows, queries, keys, heads, kv_heads, dim, width, group;

  Sizes(const Floats& q, const Floats& k)
      : rows(q.dimensions()[0]), queries(q.dimensions()[1]), keys(k.dimensions()[1]),
        heads(q.dimensions()[2]), kv_heads(k.dimensions()[2]), dim(q.dimensions()[3]),
        width((dim + kLanes - 1) / kLanes * kLanes), group(heads / kv_heads) {}

  int blocks(int tokens) const { return (tokens + kBlock - 1) / kBlock; }
  // One core's, if so many pairs were seen by each head.
  double microseconds(int64_t pairs) const { return 1e-4 * pairs * heads * width; }
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

Row sorted(const Sizes& n, int r, const Ints& order, const Ints& from, const Ints& to) {
  return Row(order.typed_data() + size_t(r) * n.queries, n.queries,
             from.typed_data() + size_t(r) * n.keys, to.typed_data() + size_t(r) * n.keys, n.keys);
}

// Keys or values of one row and key head, block by block with features as rows, ``[J, width, 64]``.
std::vector<float> turned(const Sizes& n, const Row& row, int r, int head, const float* x) {
  std::vector<float> found(size_t(n.blocks(n.keys)) * n.width * kBlock);
  for (int j = 0; j < n.keys; j++) {
    const float* from = x + n.key(r, row.key[j], head);
    float* to = &found[size_t(j / kBlock) * n.width * kBlock + j % kBlock];
    for (int d = 0; d < n.dim; d++) to[d * kBlock] = from[d];
  }
  return found;
}

// The same, sorted and filled up, ``[J * 64, width]``.
std::vector<float> laid_out(const Sizes& n, const Row& row, int r, int head, const float* x) {
  std::vector<float> found(size_t(n.blocks(n.keys)) * kBlock * n.width);
  for (int j = 0; j < n.keys; j++) {
    std::memcpy(&found[size_t(j) * n.width], x + n.key(r, row.key[j], head), 4 * n.dim);
  }
  return found;
}

using Block = std::vector<float>;  // 64 queries by features, or by 64 keys

void fetch(const Sizes& n, const Row& row, int r, int head, int i, const float* x, float scale,
           Block& block) {
  std::fill(block.begin(), block.end(), 0.0f);
  for (int s = 0; s < kBlock && i * kBlock + s < n.queries; s++) {
    const float* from = x + n.query(r, row.query[i * kBlock + s], head);
    for (int d = 0; d < n.dim; d++) block[s * n.width + d] = from[d] * scale;
  }
}

// ---- the two functions --------------------------------------------------------------------------

// What a block of queries of one head has seen so far.
struct Seeing {
  Block queries, sum, scores;
  float highest[kBlock], total[kBlock];

  explicit Seeing(int width) : queries(kBlock * width), sum(kBlock * width), scores(kBlock * kBlock) {}

  void begin() {
    std::fill(sum.begin(), sum.end(), 0.0f);
    std::fill_n(highest, kBlock, kFloor);
    std::fill_n(total, kBlock, 0.0f);
  }
};

// 64 keys with features as rows, `stride` apart, and their values, ``[64, width]``.
struct Keys {
  const float* keys;
  int stride;
  const float* values;
  const int32_t *from, *to;
};

// The i-th block of queries looks at a block of keys.
void look(const Sizes& n, const Row& row, int i, int used, const Keys& block, bool masked,
          Seeing& seeing) {
  float *scores = seeing.scores.data(), *sum = seeing.sum.data();
  product(used, kBlock, n.dim, {seeing.queries.data(), n.width, 1}, block.keys, block.stride,
          scores, kBlock, false);
  for (int s = 0; s < used; s++) {
    float* line = scores + s * kBlock;
    Vec most = splat(kHidden);
    for (int t = 0; t < kBlock; t += kLanes) {
      Vec x = load(line + t);
      if (masked) {
        x = row.may_attend(i * kBlock + s, block.from + t, block.to + t) ? x : splat(kHidden);
        store(line + t, x);
      }
      most = most > x ? most : x;
    }
    const float before = seeing.highest[s];
    for (int t = 0; t < kLanes; t++) seeing.highest[s] = std::max(seeing.highest[s], most[t]);
    const Vec top = splat(seeing.highest[s]);
    Vec added = splat(0.0f);
    for (int t = 0; t < kBlock; t += kLanes) {
      const Vec x = load(line + t);
      Vec weight = exp2(x - top);
      if (masked) weight = x > splat(0.1f * kHidden) ? weight : splat(0.0f);
      store(line + t, weight);
      added += weight;
    }
    const float rescale = std::exp2(before - seeing.highest[s]);
    seeing.total[s] *= rescale;
    for (int t = 0; t < kLanes; t++) seeing.total[s] += added[t];
    if (rescale == 1.0f) continue;
    for (int d = 0; d < n.width; d++) sum[s * n.width + d] *= rescale;
  }
  product(used, n.width, kBlock, {scores, kBlock, 1}, block.values, n.width, sum, n.width, true);
}

// A cache has whole blocks of keys, and heads whose features are whole vectors.
ffi::Error forward(ffi::ThreadPool pool, Floats q, Floats k, Floats v, Ints order, Ints from,
                   Ints to, Floats cached_k, Floats cached_v, Ints cached_from, Ints cached_to,
                   Out out, Out lse) {
  const Sizes n(q, k);
  const int slots = cached_k.dimensions()[3];
  const float scale = kLog2e / std::sqrt(float(n.dim));
  const int64_t pairs = int64_t(n.rows) * n.queries * (n.keys + slots);
  deal(pool, n.rows * n.kv_heads, n.microseconds(pairs), [&](int item) {
    const int r = item / n.kv_heads, kv = item % n.kv_heads;
    const Row row = sorted(n, r, order, from, to);
    const auto keys = turned(n, row, r, kv, k.typed_data());
    const auto values = laid_out(n, row, r, kv, v.typed_data());
    const size_t cache = size_t(item) * n.dim * slots;
    const int32_t* froms = cached_from.typed_data() + size_t(r) * slots;
    const int32_t* tos = cached_to.typed_data() + size_t(r) * slots;
    Seeing seeing(n.width);
    for (int i = 0; i < n.blocks(n.queries); i++) {
      const int used = std::min(kBlock, n.queries - i * kBlock);
      const auto visits = row.visits(i), before = row.visits(i, froms, tos, slots / kBlock);
      for (int head = kv * n.group; head < (kv + 1) * n.group; head++) {
        fetch(n, row, r, head, i, q.typed_data(), scale, seeing.queries);
        seeing.begin();
        for (const auto [j, masked] : before) {
          const int at = j * kBlock;
          const Keys block{cached_k.typed_data() + cache + at, slots,
                           cached_v.typed_data() + cache + size_t(at) * n.dim, froms + at, tos + at};
          look(n, row, i, used, block, masked, seeing);
        }
        for (const auto [j, masked] : visits) {
          const size_t at = size_t(j) * kBlock;
          const Keys block{&keys[at * n.width], kBlock, &values[at * n.width], &row.from[at],
                           &row.to[at]};
          look(n, row, i, used, block, masked, seeing);
        }
        for (int s = 0; s < used; s++) {
          const int token = row.query[i * kBlock + s];
          const float total = seeing.total[s];
          const float whole = total == 0.0f ? 1.0f : total;  // of one that sees nothing
          float* to_out = out->typed_data() + n.query(r, token, head);
          for (int d = 0; d < n.dim; d++) to_out[d] = seeing.sum[s * n.width + d] / whole;
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
  const int64_t pairs = int64_t(n.rows) * n.queries * n.keys;
  deal(pool, n.rows * n.kv_heads, n.microseconds(pairs), [&](int item) {
    const int r = item / n.kv_heads, kv = item % n.kv_heads;
    const Row row = sorted(n, r, order, from, to);
    const auto keys = turned(n, row, r, kv, k.typed_data());
    const auto values = turned(n, row, r, kv, v.typed_data());
    const auto plain_keys = laid_out(n, row, r, kv, k.typed_data());
    std::vector<float> by_key(plain_keys.size()), by_value(plain_keys.size());
    Block queries(kBlock * n.width), d_outs(kBlock * n.width), by_query(kBlock * n.width);
    Block weights(kBlock * kBlock), d_scores(kBlock * kBlock);
    for (int i = 0; i < n.blocks(n.queries); i++) {
      const int used = std::min(kBlock, n.queries - i * kBlock);
      const auto visits = row.visits(i);
      for (int head = kv * n.group; head < (kv + 1) * n.group; head++) {
        fetch(n, row, r, head, i, q.typed_data(), scale, queries);
        fetch(n, row, r, head, i, d_out.typed_data(), 1.0f, d_outs);
        std::fill(by_query.begin(), by_query.end(), 0.0f);
        for (const auto [j, masked] : visits) {
          const size_t block = size_t(j) * n.width * kBlock;
          product(used, kBlock, n.dim, {queries.data(), n.width, 1}, &keys[block], kBlock,
                  weights.data(), kBlock, false);
          product(used, kBlock, n.dim, {d_outs.data(), n.width, 1}, &values[block], kBlock,
                  d_scores.data(), kBlock, false);
          for (int s = 0; s < used; s++) {
            const size_t at = n.statistic(r, head, row.query[i * kBlock + s]);
            const Vec log_sum = splat(lse.typed_data()[at]), own = splat(delta.typed_data()[at]);
            for (int t = 0; t < kBlock; t += kLanes) {
              float *weight = &weights[s * kBlock + t], *d_score = &d_scores[s * kBlock + t];
              Vec x = exp2(load(weight) * splat(kLog2e) - log_sum);
              if (masked) {
                const int key = j * kBlock + t;
                x = row.may_attend(i * kBlock + s, &row.from[key], &row.to[key]) ? x : splat(0.0f);
              }
              store(weight, x);
              store(d_score, x * (load(d_score) - own));
            }
          }
          product(used, n.width, kBlock, {d_scores.data(), kBlock, 1}, &plain_keys[block], n.width,
                  by_query.data(), n.width, true);
          product(kBlock, n.width, used, {d_scores.data(), 1, kBlock}, queries.data(), n.width,
                  &by_key[block], n.width, true);
          product(kBlock, n.width, used, {weights.data(), 1, kBlock}, d_outs.data(), n.width,
                  &by_value[block], n.width, true);
        }
        for (int s = 0; s < used; s++) {
          float* to_q = dq->typed_data() + n.query(r, row.query[i * kBlock + s], head);
          for (int d = 0; d < n.dim; d++) to_q[d] = by_query[s * n.width + d] * scale;
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
