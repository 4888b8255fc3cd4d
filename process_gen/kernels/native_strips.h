// Products with weights that lie in strips from the start, ``[outputs / 16, inputs, 16]``.
//
// Nothing is copied then. Blocks of rows are dealt to the threads of XLA's pool; of a few rows, as
// where text is written, weights are read as fast as they are multiplied, and columns are dealt.

#pragma once

#include "native_matmul.h"

namespace process_gen {

constexpr int kFewRows = 15;  // whose columns are dealt, at most
constexpr int kPanel = 32;    // strips that a thread takes of them at a time, at most

inline Strips strips(const Floats& w) {
  return {int(w.dimensions()[1]), int(w.dimensions()[0]) * kStrip, w.typed_data()};
}

// y[rows, columns] = (added ? y : 0) + x w.
struct Product {
  Strips w;
  float* y;
  int by_row;
  bool added;

  Product some(int first, int used) const {
    return {w.some(first, used), y + first * kStrip, by_row, added};
  }
};

// Products of the same rows on this thread.
struct Alone {
  void operator()(int rows, const float* x, int by_row, const std::vector<Product>& all) const {
    for (const Product& p : all) {
      block_product(rows, x, by_row, p.w, p.y, p.by_row, p.added);
    }
  }
};

// The same on all threads.
struct Together {
  ffi::ThreadPool& pool;

  void operator()(int rows, const float* x, int by_row, const std::vector<Product>& all) const {
    int count = 0;
    for (const Product& p : all) count += p.w.count;
    int wide = kPanel;
    while (wide > 1 && count / wide < 2 * int(pool.num_threads())) wide /= 2;
    std::vector<Product> pieces;
    for (const Product& p : all) {
      for (int s = 0; s < p.w.count; s += wide) {
        pieces.push_back(p.some(s, std::min(wide, p.w.count - s)));
      }
    }
    // A weight is read, and multiplied with each row.
    const double weights = double(count) * kStrip * all[0].w.inner;
    const double work = 0.4 * weights + nanoseconds(weights * rows);
    deal(pool, pieces.size(), 1e-3 * work, [&](int i) { Alone()(rows, x, by_row, {pieces[i]}); });
  }
};

// Calls half(i, first, used, multiply) for blocks of the i-th of several groups of rows; for all of a
// group of few.
template <typename Half>
void in_blocks(ffi::ThreadPool& pool, const std::vector<int>& groups, double products,
               const Half& half) {
  struct Block {
    int group, first, used;
  };
  const int threads = pool.num_threads();
  std::vector<Block> all;
  for (int i = 0; i < int(groups.size()); i++) {
    const int rows = groups[i];
    if (rows <= kFewRows) {
      if (rows > 0) half(i, 0, rows, Together{pool});
      continue;
    }
    const int blocks = threads * ((rows + threads * kMost - 1) / (threads * kMost));
    const int tiles = ((rows + blocks - 1) / blocks + kTall - 1) / kTall, block = tiles * kTall;
    for (int m = 0; m < rows; m += block) all.push_back({i, m, std::min(block, rows - m)});
  }
  if (all.empty()) return;
  // Small ones last: a thread that is late leaves them to the others.
  const auto larger = [](const Block& a, const Block& b) { return a.used > b.used; };
  std::stable_sort(all.begin(), all.end(), larger);
  deal(pool, all.size(), 1e-3 * nanoseconds(products), [&](int i) {
    half(all[i].group, all[i].first, all[i].used, Alone());
  });
}

}  // namespace process_gen
