// Products of few rows with matrices, ``y[rows, outputs] = x[rows, inputs] w``.
//
// Pictures are painted with 64 rows or so, for which weights are read from memory about as fast as
// they can be multiplied. Columns are dealt to the threads of XLA's pool, 64 of them at a time are
// copied next to one another, and 16 of these stay in the core's first cache while all rows pass.

#pragma once

#include "native_matmul.h"

namespace process_gen {

constexpr int kFewRows = 256;  // at most
constexpr int kPanel = 4 * kStrip;  // columns

struct Product {
  int rows, inputs, outputs;
  const float *x, *w;
  float* y;
};

inline void panel(const Product& p, int first, int columns) {
  alignas(64) float packed[kDeep * kPanel];
  const int strips = columns / kStrip;
  for (int k0 = 0; k0 < p.inputs; k0 += kDeep) {
    const int deep = std::min(kDeep, p.inputs - k0);
    copy_strips({p.w + size_t(k0) * p.outputs + first, p.outputs, 1}, strips, deep, packed);
    for (int s = 0; s < strips; s++) {
      for (int m = 0; m < p.rows; m += kTall) {
        up_to<kTall, 2>(std::min(kTall, p.rows - m), deep, p.x + size_t(m) * p.inputs + k0,
                        p.inputs, 1, packed + s * deep * kStrip, kStrip,
                        p.y + size_t(m) * p.outputs + first + s * kStrip, p.outputs, k0 > 0);
      }
    }
  }
}

// A few rows do not pay for a copy: all columns of `kDeepest` inputs pass at a time.
template <int kRows, int kDeepest>
void stream(const Product& p, int first, int columns) {
  float* y = p.y + first;
  for (int m = 0; m < kRows; m++) std::memset(y + size_t(m) * p.outputs, 0, 4 * columns);
  auto pass = [&](int k, int deep) __attribute__((always_inline)) {
    const float* w = p.w + size_t(k) * p.outputs + first;
    Vec x[kRows][kDeepest];
    for (int m = 0; m < kRows; m++) {
      for (int i = 0; i < deep; i++) x[m][i] = splat(p.x[size_t(m) * p.inputs + k + i]);
    }
    for (int c = 0; c < columns; c += kLanes) {
      Vec sum[kRows];
      for (int m = 0; m < kRows; m++) sum[m] = load(y + size_t(m) * p.outputs + c);
      for (int i = 0; i < deep; i++) {
        const Vec part = load(w + size_t(i) * p.outputs + c);
        for (int m = 0; m < kRows; m++) sum[m] += x[m][i] * part;
      }
      for (int m = 0; m < kRows; m++) store(y + size_t(m) * p.outputs + c, sum[m]);
    }
  };
  int k = 0;
  for (; k + kDeepest <= p.inputs; k += kDeepest) pass(k, kDeepest);
  for (; k < p.inputs; k++) pass(k, 1);
}

// Columns of one product that a thread takes at a time.
struct Piece {
  const Product* product;
  int first, columns;

  void run() const {
    const Product& p = *product;
    if (p.rows == 1) return stream<1, 8>(p, first, columns);
    if (p.rows == 2) return stream<2, 4>(p, first, columns);
    panel(p, first, columns);
  }
};

inline void few_rows(ffi::ThreadPool& pool, const std::vector<Product>& all) {
  int outputs = 0;
  for (const Product& p : all) outputs += p.outputs;
  int wide = all[0].rows <= 2 ? 512 : kPanel;
  while (wide > kStrip && outputs / wide < 2 * int(pool.num_threads())) wide /= 2;
  std::vector<Piece> pieces;
  for (const Product& p : all) {
    for (int at = 0; at < p.outputs; at += wide) {
      pieces.push_back({&p, at, std::min(wide, p.outputs - at)});
    }
  }
  // A weight is copied, and multiplied with each row.
  const double weights = double(all[0].inputs) * outputs;
  const double work = 0.4 * weights + nanoseconds(weights * all[0].rows);
  deal(pool, pieces.size(), 1e-3 * work, [&](int i) { pieces[i].run(); });
}

}  // namespace process_gen
