// Products of few rows with one or more matrices for CPUs, ``y[rows, outputs] = x[rows, inputs] w``.
//
// Pictures are painted with 64 rows or so, for which weights are read from memory about as fast as
// they can be multiplied. Columns are dealt to the threads of XLA's pool, 64 of them at a time are
// copied next to one another, and 16 of these stay in the core's first cache while all rows pass.
// Every sum is over the inputs in their order, so results do not depend on the number of threads.

#include <vector>

#include "native.h"

namespace process_gen {
namespace {

constexpr int kStrip = 2 * kLanes, kPanel = 4 * kStrip;  // columns
constexpr int kDeep = 256;                               // inputs at a time
constexpr int kTall = 6;                                 // rows of a tile

struct Product {
  int rows, inputs, outputs;
  const float *x, *w;
  float* y;
};

// Up to `kTall` rows of one strip, of inputs that were copied next to one another.
void strip(int rows, int inner, const float* x, int ldx, const float* packed, float* y, int ldy,
           bool accumulate) {
  switch (rows) {
    case 1: return tile<1, 2>(inner, x, ldx, 1, packed, kStrip, y, ldy, accumulate);
    case 2: return tile<2, 2>(inner, x, ldx, 1, packed, kStrip, y, ldy, accumulate);
    case 3: return tile<3, 2>(inner, x, ldx, 1, packed, kStrip, y, ldy, accumulate);
    case 4: return tile<4, 2>(inner, x, ldx, 1, packed, kStrip, y, ldy, accumulate);
    case 5: return tile<5, 2>(inner, x, ldx, 1, packed, kStrip, y, ldy, accumulate);
    default: return tile<kTall, 2>(inner, x, ldx, 1, packed, kStrip, y, ldy, accumulate);
  }
}

void panel(const Product& p, int first, int columns) {
  alignas(64) float packed[kDeep * kPanel];
  const int strips = columns / kStrip;
  for (int k0 = 0; k0 < p.inputs; k0 += kDeep) {
    const int deep = std::min(kDeep, p.inputs - k0);
    for (int k = 0; k < deep; k++) {
      const float* w = p.w + size_t(k0 + k) * p.outputs + first;
      for (int s = 0; s < strips; s++) {
        float* to = packed + (s * deep + k) * kStrip;
        store(to, load(w + s * kStrip));
        store(to + kLanes, load(w + s * kStrip + kLanes));
      }
    }
    for (int s = 0; s < strips; s++) {
      for (int m = 0; m < p.rows; m += kTall) {
        strip(std::min(kTall, p.rows - m), deep, p.x + size_t(m) * p.inputs + k0, p.inputs,
              packed + s * deep * kStrip, p.y + size_t(m) * p.outputs + first + s * kStrip,
              p.outputs, k0 > 0);
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

ffi::Error products(ffi::ThreadPool pool, Floats x, ffi::RemainingArgs matrices,
                    ffi::RemainingRets results) {
  std::vector<Product> all;
  int outputs = 0;
  for (size_t i = 0; i < matrices.size(); i++) {
    auto w = matrices.get<Floats>(i);
    auto y = results.get<Floats>(i);
    if (w.has_error()) return w.error();
    if (y.has_error()) return y.error();
    all.push_back({int(x.dimensions()[0]), int(x.dimensions()[1]), int(w->dimensions()[1]),
                   x.typed_data(), w->typed_data(), (*y)->typed_data()});
    outputs += all.back().outputs;
  }
  int wide = all[0].rows <= 2 ? 512 : kPanel;
  while (wide > kStrip && outputs / wide < 2 * int(pool.num_threads())) wide /= 2;
  std::vector<Piece> pieces;
  for (const Product& p : all) {
    for (int at = 0; at < p.outputs; at += wide) {
      pieces.push_back({&p, at, std::min(wide, p.outputs - at)});
    }
  }
  // A weight is copied, and multiplied with each row.
  const double nanoseconds = double(all[0].inputs) * outputs * (0.4 + all[0].rows / 45.0);
  deal(pool, pieces.size(), 1e-3 * nanoseconds, [&](int i) { pieces[i].run(); });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace process_gen

XLA_FFI_DEFINE_HANDLER_SYMBOL(few_rows_products, process_gen::products,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<process_gen::Floats>()
                                  .RemainingArgs().RemainingRets());
