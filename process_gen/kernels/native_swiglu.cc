// ``y = (silu(x gate) * (x up)) down`` for CPUs and what goes back through it.
//
// Hidden numbers of a block of rows are made, gated and multiplied on while they are in a core's
// cache, some of their columns at a time. Only what gating took is kept for the way back.

#include "native_matmul.h"
#include "native_rows.h"

namespace process_gen {
namespace {

// `gated` once more, and both gradients, which replace that of `hidden` and what lies behind it.
struct Ungated {
  float *hidden, *d_gate, *d_up;  // results

  void run(int n, const float* gate, const float* up, float* d_hidden, float* behind) const {
    for (int i = 0; i < n; i += kLanes) {
      const Vec g = load(gate + i), u = load(up + i), d = load(d_hidden + i), s = sigmoid(g);
      const Vec by_gate = d * u * s * (1.0f + g * (1.0f - s)), by_up = d * g * s;
      store(hidden + i, g * s * u);
      store(d_gate + i, by_gate);
      store(d_up + i, by_up);
      store(d_hidden + i, by_gate);
      store(behind + i, by_up);
    }
  }
};

struct Sizes {
  int rows, width, hidden, block;

  Sizes(const ffi::ThreadPool& pool, const Matrix& x, const Matrix& gate)
      : rows(x.rows), width(x.columns), hidden(gate.columns), block(block_of(pool, rows)) {}

  // Hidden columns at a time, whose weights are copied first.
  int part() const {
    return std::min(std::max(kRoom / (3 * width) / kStrip, 4) * kStrip, hidden);
  }

  // Three products of all rows with so many hidden columns.
  double microseconds(int columns) const {
    return 3e-3 * nanoseconds(double(rows) * width * columns);
  }

  // From row to row of a block: a power of two would have all rows share a few lines of a cache.
  int stride() const { return part() + kStrip; }

  int blocks() const { return (rows + block - 1) / block; }
};

// With two more results these are ``x gate`` and ``x up``.
ffi::Error forward(ffi::ThreadPool pool, Floats given_x, Floats given_gate, Floats given_up,
                   Floats given_down, Out result, ffi::RemainingRets saved) {
  const Matrix x = matrix(given_x), w_gate = matrix(given_gate), w_up = matrix(given_up);
  const Matrix w_down = matrix(given_down);
  const Sizes n(pool, x, w_gate);
  float *y = result->typed_data(), *gate = nullptr, *up = nullptr;
  if (saved.size()) {
    auto first = saved.get<Floats>(0), second = saved.get<Floats>(1);
    if (first.has_error()) return first.error();
    if (second.has_error()) return second.error();
    gate = (*first)->typed_data(), up = (*second)->typed_data();
  }
  for (int at = 0; at < n.hidden; at += n.part()) {
    const int part = std::min(n.part(), n.hidden - at);
    Copied to_gate({w_gate.at + at, n.hidden, 1}, n.width, part);
    Copied to_up({w_up.at + at, n.hidden, 1}, n.width, part);
    Copied to_down({w_down.plain().to(at, 0), n.width, 1}, part, n.width);
    copy(pool, {&to_gate, &to_up, &to_down});
    deal(pool, n.blocks(), n.microseconds(part), [&](int i) {
      const int first = i * n.block, used = std::min(n.block, n.rows - first);
      static thread_local std::vector<float> kept;
      const size_t all = size_t(n.block) * n.stride();
      float* hidden = room(kept, 3 * all);
      const int by_row = gate ? n.hidden : n.stride();
      float* g = gate ? gate + size_t(first) * n.hidden + at : hidden + all;
      float* u = gate ? up + size_t(first) * n.hidden + at : hidden + 2 * all;
      block_product(used, x.plain().to(first, 0), n.width, to_gate, g, by_row, false);
      block_product(used, x.plain().to(first, 0), n.width, to_up, u, by_row, false);
      for (int m = 0; m < used; m++) {
        gated(part, g + ptrdiff_t(m) * by_row, u + ptrdiff_t(m) * by_row, hidden + m * n.stride());
      }
      block_product(used, hidden, n.stride(), to_down, y + size_t(first) * n.width, n.width, at > 0);
    });
  }
  return ffi::Error::Success();
}

// Gradients of x and of what gating took, and the hidden numbers once more, for those of weights.
ffi::Error backward(ffi::ThreadPool pool, Floats given_dy, Floats given_gate, Floats given_up,
                    Floats gate_weights, Floats up_weights, Floats down_weights, Out result_dx,
                    Out result_gate, Out result_up, Out result_hidden) {
  const Matrix dy = matrix(given_dy), gate = matrix(given_gate), up = matrix(given_up);
  const Matrix w_gate = matrix(gate_weights), w_up = matrix(up_weights);
  const Matrix w_down = matrix(down_weights);
  const Sizes n(pool, dy, w_gate);
  float *dx = result_dx->typed_data(), *hidden = result_hidden->typed_data();
  float *d_gate = result_gate->typed_data(), *d_up = result_up->typed_data();
  for (int at = 0; at < n.hidden; at += n.part()) {
    const int part = std::min(n.part(), n.hidden - at);
    Copied to_hidden({w_down.turned().to(0, at), 1, n.width}, n.width, part);
    Copied from_gate({w_gate.turned().to(at, 0), 1, n.hidden}, part, n.width);
    Copied from_up({w_up.turned().to(at, 0), 1, n.hidden}, part, n.width);
    copy(pool, {&to_hidden, &from_gate, &from_up});
    deal(pool, n.blocks(), n.microseconds(part), [&](int i) {
      const int first = i * n.block, used = std::min(n.block, n.rows - first);
      static thread_local std::vector<float> kept;
      const int by_row = n.stride();
      float* d_hidden = room(kept, 2 * size_t(n.block) * by_row);
      float* behind = d_hidden + size_t(n.block) * by_row;
      block_product(used, dy.plain().to(first, 0), n.width, to_hidden, d_hidden, by_row, false);
      for (int m = 0; m < used; m++) {
        const size_t row = size_t(first + m) * n.hidden + at;
        const Ungated rest{hidden + row, d_gate + row, d_up + row};
        rest.run(part, gate.at + row, up.at + row, d_hidden + m * by_row, behind + m * by_row);
      }
      float* d_x = dx + size_t(first) * n.width;
      block_product(used, d_hidden, by_row, from_gate, d_x, n.width, at > 0);
      block_product(used, behind, by_row, from_up, d_x, n.width, true);
    });
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace process_gen

using process_gen::given;
using process_gen::made;
using xla::ffi::Ffi;
using xla::ffi::ThreadPool;

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    swiglu_forward, process_gen::forward,
    made<1>(given<4>(Ffi::Bind().Ctx<ThreadPool>())).RemainingRets());

XLA_FFI_DEFINE_HANDLER_SYMBOL(swiglu_backward, process_gen::backward,
                              made<4>(given<6>(Ffi::Bind().Ctx<ThreadPool>())));
