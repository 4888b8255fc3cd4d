// RMSNorm of tokens, or of each of their heads before it is rotated, forward and backward, for CPUs.

#include <vector>

#include "native_rows.h"

namespace process_gen {
namespace {

constexpr int kTokens = 32;  // that a thread takes at a time

// ``x[N, H, D]``, ``scale[D]``, and ``cos[N, D / 2]`` and sin; without columns nothing is rotated.
struct Norm {
  int tokens, heads, dim, half;
  const float *x, *scale, *cos, *sin;
  float eps;

  Norm(const Floats& x, const Floats& scale, const Floats& cos, const Floats& sin, float eps)
      : tokens(x.dimensions()[0]), heads(x.dimensions()[1]), dim(x.dimensions()[2]),
        half(cos.dimensions()[1]), x(x.typed_data()), scale(scale.typed_data()),
        cos(cos.typed_data()), sin(sin.typed_data()), eps(eps) {}

  int blocks() const { return (tokens + kTokens - 1) / kTokens; }
  double numbers() const { return double(tokens) * heads * dim; }
  size_t at(int token, int head) const { return (size_t(token) * heads + head) * dim; }
};

ffi::Error forward(ffi::ThreadPool pool, Floats x, Floats scale, Floats cos, Floats sin, float eps,
                   Out y) {
  const Norm n(x, scale, cos, sin, eps);
  const Scale by{n.scale, n.dim, n.eps};
  deal(pool, n.blocks(), 3e-4 * n.numbers(), [&](int block) {
    for (int i = block * kTokens; i < std::min((block + 1) * kTokens, n.tokens); i++) {
      for (int head = 0; head < n.heads; head++) {
        const float* line = n.x + n.at(i, head);
        float* to = y->typed_data() + n.at(i, head);
        if (n.half) {
          by.apply_and_turn(line, n.cos + size_t(i) * n.half, n.sin + size_t(i) * n.half, to);
        } else {
          by.apply(line, to);
        }
      }
    }
  });
  return ffi::Error::Success();
}

// Gradients of x and of the scale; what is summed over tokens is summed in blocks, in their order.
ffi::Error backward(ffi::ThreadPool pool, Floats x, Floats scale, Floats cos, Floats sin, Floats dy,
                    float eps, Out dx, Out d_scale) {
  const Norm n(x, scale, cos, sin, eps);
  std::vector<float> sums(size_t(n.blocks()) * n.dim);
  deal(pool, n.blocks(), 1e-3 * n.numbers(), [&](int block) {
    std::vector<float> turned(n.dim);
    float* sum = &sums[size_t(block) * n.dim];
    for (int i = block * kTokens; i < std::min((block + 1) * kTokens, n.tokens); i++) {
      for (int head = 0; head < n.heads; head++) {
        const float *line = n.x + n.at(i, head), *back = dy.typed_data() + n.at(i, head);
        float* to = dx->typed_data() + n.at(i, head);
        const float by = inverse(line, n.dim, eps);
        if (n.half) {
          const float *cosines = n.cos + size_t(i) * n.half, *sines = n.sin + size_t(i) * n.half;
          pairs(cosines, sines, n.half, [&](auto c, auto s, int d) {
            const auto first = read(back + d, c), second = read(back + n.half + d, c);
            write(&turned[d], first * c + second * s);
            write(&turned[n.half + d], second * c - first * s);
          });
          back = turned.data();
        }
        // y = scale x by; by' = -by^3 / dim x.
        Vec inner = splat(0.0f);
        int d = 0;
        for (; d + kLanes <= n.dim; d += kLanes) {
          const Vec along = load(back + d) * load(line + d);
          store(sum + d, load(sum + d) + along * by);
          inner += along * load(n.scale + d);
        }
        float whole = total(inner);
        for (; d < n.dim; d++) {
          sum[d] += back[d] * line[d] * by;
          whole += back[d] * line[d] * n.scale[d];
        }
        const float less = whole * by * by * by / n.dim;
        for (d = 0; d < n.dim; d++) to[d] = back[d] * n.scale[d] * by - line[d] * less;
      }
    }
  });
  float* found = d_scale->typed_data();
  std::memset(found, 0, sizeof(float) * n.dim);
  for (int block = 0; block < n.blocks(); block++) {
    for (int d = 0; d < n.dim; d++) found[d] += sums[size_t(block) * n.dim + d];
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
    norm_forward, process_gen::forward,
    made<1>(given<4>(Ffi::Bind().Ctx<ThreadPool>()).Attr<float>("eps")));

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    norm_backward, process_gen::backward,
    made<2>(given<5>(Ffi::Bind().Ctx<ThreadPool>()).Attr<float>("eps")));
