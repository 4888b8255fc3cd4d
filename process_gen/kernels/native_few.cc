// Interval attention of few queries over caches, each of which is read as it lies.
//
// A text that is being written has one query a row: nothing to sort, and every key is read once. So
// each row and key head looks at the strips of eight keys of which any is seen, at all of them before
// any value, and sums once. No sum is shared between threads.

#include <cmath>
#include <vector>

#include "native_visits.h"

namespace process_gen {
namespace {

constexpr float kFloor = -1e30f, kHidden = -1e38f;

// C[rows, width] = (accumulate ? C : 0) + A[rows, inner] B[inner, width], width a multiple of 8, in
// tiles for few rows.
void product(int rows, int width, int inner, const float* a, int lda, const float* b, int ldb,
             float* c, int ldc, bool accumulate) {
  for (int n = 0; n < width;) {
    const int left = (width - n) / kLanes;
    if (left == 3) {
      tiles<4, 3>(rows, inner, a, lda, 1, 4 * ptrdiff_t(lda), b + n, ldb, c + n, ldc, accumulate);
      n += 3 * kLanes;
    } else if (left >= 4) {
      tiles<2, 4>(rows, inner, a, lda, 1, 2 * ptrdiff_t(lda), b + n, ldb, c + n, ldc, accumulate);
      n += 4 * kLanes;
    } else if (left == 2) {
      tiles<6, 2>(rows, inner, a, lda, 1, 6 * ptrdiff_t(lda), b + n, ldb, c + n, ldc, accumulate);
      n += 2 * kLanes;
    } else {
      tiles<8, 1>(rows, inner, a, lda, 1, 8 * ptrdiff_t(lda), b + n, ldb, c + n, ldc, accumulate);
      n += kLanes;
    }
  }
}

// The first `slots` keys, ``[R, K, Dh, stride]``, and values, ``[R, K, stride, Dh]``, of some rows.
struct Cache {
  const float *k, *v;
  const int32_t *row, *from, *to;
  int last_row, stride, slots;
};

// Keys of one row and key head next to each other, with features as rows, of which each strip of
// eight has one that some query sees.
struct Run {
  const float* keys;
  int stride;
  const float* values;
  const int32_t *from, *to;
  int count;
};

struct Sizes {
  int rows, queries, heads, dim, own, kv_heads, group;
  int lines;  // of scores of a key head, those of a query's heads side by side
  int first;  // columns of scores that the own keys take; those of runs come after
};

int round_up(int count) { return (count + kLanes - 1) / kLanes * kLanes; }

// Adds the runs of a cache.
void find(const Sizes& n, const Cache& cache, const int32_t* orders, int r, int kv,
          std::vector<Run>& runs) {
  // As where jax takes rows out of an array.
  const size_t row = std::clamp(cache.row[r], 0, cache.last_row);
  const size_t place = (row * n.kv_heads + kv) * n.dim * cache.stride;
  const int32_t *from = cache.from + size_t(r) * cache.slots, *to = cache.to + size_t(r) * cache.slots;
  int end = -1;  // of the last run here
  for (int j = 0; j < cache.slots; j += kLanes) {
    IntVec seen{};
    for (int s = 0; s < n.queries; s++) seen |= may_attend(orders[s], from + j, to + j);
    if (!folded(seen, [](IntVec x, IntVec y) { return x | y; })) continue;
    if (end != j) {
      const float *keys = cache.k + place + j, *values = cache.v + place + size_t(j) * n.dim;
      runs.push_back({keys, cache.stride, values, from + j, to + j, 0});
    }
    runs.back().count += kLanes;
    end = j + kLanes;
  }
}

// Scores of the own keys, ``[own, K, Dh]``, filled up with hidden ones.
void look_at_own(const Sizes& n, const float* queries, const int32_t* orders, const float* k,
                 const int32_t* from, const int32_t* to, float* scores, int wide) {
  for (int line = 0; line < n.lines; line++, queries += n.dim, scores += wide) {
    const int32_t order = orders[line / n.group];
    std::fill_n(scores, n.first, kHidden);
    for (int j = 0; j < n.own; j++) {
      if (order < from[j] || order > to[j]) continue;
      Vec products = splat(0.0f);
      for (int d = 0; d < n.dim; d += kLanes) {
        products += load(queries + d) * load(k + size_t(j) * n.kv_heads * n.dim + d);
      }
      scores[j] = total(products);
    }
  }
}

void look(const Sizes& n, const float* queries, const int32_t* orders, const Run& run,
          float* scores, int wide) {
  product(n.lines, run.count, n.dim, queries, n.dim, run.keys, run.stride, scores, wide, false);
  for (int line = 0; line < n.lines; line++, scores += wide) {
    for (int t = 0; t < run.count; t += kLanes) {
      const IntVec may = may_attend(orders[line / n.group], run.from + t, run.to + t);
      store(scores + t, may ? load(scores + t) : splat(kHidden));
    }
  }
}

// Makes weights of a line's scores and returns their sum; 0 where nothing is seen.
float weigh(float* scores, int wide) {
  Vec most = splat(kFloor), sum = splat(0.0f);
  for (int t = 0; t < wide; t += kLanes) {
    const Vec x = load(scores + t);
    most = most > x ? most : x;
  }
  float top = most[0];
  for (int i = 1; i < kLanes; i++) top = std::max(top, most[i]);
  for (int t = 0; t < wide; t += kLanes) {
    const Vec weight = exp2(load(scores + t) - splat(top));
    store(scores + t, weight);
    sum += weight;
  }
  return total(sum);
}

// Tokens of all rows: queries, ``[R, S, H, Dh]``, and their own keys and values, ``[R, N, K, Dh]``.
struct NewTokens {
  const float *q, *k, *v;
  const int32_t *order, *from, *to;
};

// What a thread keeps.
struct Room {
  std::vector<Run> runs;
  std::vector<float> scores, queries, sum;
};

// All that the queries of a row and key head attend to, into the same places of ``y[R, S, H, Dh]``.
void attend(const Sizes& n, const NewTokens& tokens, const std::vector<Cache>& caches, int r,
            int kv, Room& kept, float* y) {
  const int32_t* orders = tokens.order + size_t(r) * n.queries;
  kept.runs.clear();
  for (const Cache& cache : caches) find(n, cache, orders, r, kv, kept.runs);
  int wide = n.first;
  for (const Run& run : kept.runs) wide += run.count;
  float* scores = room(kept.scores, size_t(n.lines) * wide);
  float* queries = room(kept.queries, size_t(n.lines) * n.dim);
  float* sum = room(kept.sum, size_t(n.lines) * n.dim);
  std::fill_n(sum, size_t(n.lines) * n.dim, 0.0f);
  // Heads that share keys lie side by side.
  const size_t a_head = size_t(n.group) * n.dim, a_query = size_t(n.heads) * n.dim;
  const size_t first = size_t(r) * n.queries * a_query + kv * a_head;
  const float scale = kLog2e / std::sqrt(float(n.dim));
  for (int s = 0; s < n.queries; s++) {
    const float* x = tokens.q + first + s * a_query;
    for (size_t d = 0; d < a_head; d += kLanes) {
      store(queries + s * a_head + d, load(x + d) * scale);
    }
  }
  const size_t row = size_t(r) * n.own, own = (row * n.kv_heads + kv) * n.dim;
  look_at_own(n, queries, orders, tokens.k + own, tokens.from + row, tokens.to + row, scores, wide);
  int column = n.first;
  for (const Run& run : kept.runs) {
    look(n, queries, orders, run, scores + column, wide);
    column += run.count;
  }
  // The weights of all lines first, since the values serve all of them.
  float* shares = queries;  // which are not wanted any more
  for (int line = 0; line < n.lines; line++) {
    const float weights = weigh(scores + size_t(line) * wide, wide);
    shares[line] = weights == 0.0f ? 1.0f : 1.0f / weights;
  }
  product(n.lines, n.dim, n.own, scores, wide, tokens.v + own, n.kv_heads * n.dim, sum, n.dim,
          true);
  column = n.first;
  for (const Run& run : kept.runs) {
    product(n.lines, n.dim, run.count, scores + column, wide, run.values, n.dim, sum, n.dim, true);
    column += run.count;
  }
  for (int line = 0; line < n.lines; line++) {
    float* to = y + first + line / n.group * a_query + size_t(line % n.group) * n.dim;
    for (int d = 0; d < n.dim; d += kLanes) {
      store(to + d, load(sum + size_t(line) * n.dim + d) * shares[line]);
    }
  }
}

// The caches among the arguments, five arrays each: keys, values, rows, and the ends of intervals.
ffi::Error read(const ffi::RemainingArgs& given, std::vector<Cache>& caches) {
  for (size_t i = 0; i < given.size(); i += 5) {
    const auto keys = given.get<Floats>(i), values = given.get<Floats>(i + 1);
    const auto row = given.get<Ints>(i + 2), opens = given.get<Ints>(i + 3);
    const auto closes = given.get<Ints>(i + 4);
    for (const auto* x : {&keys, &values}) {
      if (x->has_error()) return x->error();
    }
    for (const auto* x : {&row, &opens, &closes}) {
      if (x->has_error()) return x->error();
    }
    const auto shape = keys->dimensions();
    caches.push_back({keys->typed_data(), values->typed_data(), row->typed_data(),
                      opens->typed_data(), closes->typed_data(), int(shape[0]) - 1, int(shape[3]),
                      int(closes->dimensions()[1])});
  }
  return ffi::Error::Success();
}

ffi::Error forward(ffi::ThreadPool pool, Floats q, Floats k, Floats v, Ints order, Ints from,
                   Ints to, ffi::RemainingArgs given, Out out) {
  Sizes n{};
  n.rows = q.dimensions()[0], n.queries = q.dimensions()[1], n.heads = q.dimensions()[2];
  n.dim = q.dimensions()[3], n.own = k.dimensions()[1], n.kv_heads = k.dimensions()[2];
  n.group = n.heads / n.kv_heads, n.lines = n.queries * n.group, n.first = round_up(n.own);
  std::vector<Cache> caches;
  if (ffi::Error error = read(given, caches); error.failure()) return error;
  int slots = n.own;
  for (const Cache& cache : caches) slots += cache.slots;
  const NewTokens tokens{q.typed_data(),     k.typed_data(),    v.typed_data(),
                         order.typed_data(), from.typed_data(), to.typed_data()};
  const double microseconds = 1e-4 * n.rows * n.queries * slots * n.heads * n.dim;
  deal(pool, n.rows * n.kv_heads, microseconds, [&](int item) {
    static thread_local Room kept;
    attend(n, tokens, caches, item / n.kv_heads, item % n.kv_heads, kept, out->typed_data());
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace process_gen

using process_gen::Ints;
using xla::ffi::Ffi;
using xla::ffi::ThreadPool;

XLA_FFI_DEFINE_HANDLER_SYMBOL(few_queries_forward, process_gen::forward,
                              process_gen::given<3>(Ffi::Bind().Ctx<ThreadPool>())
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .RemainingArgs()
                                  .Ret<process_gen::Floats>());
