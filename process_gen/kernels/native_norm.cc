// RMSNorm of tokens, or of each of their heads before it is rotated, forward and backward, for CPUs.

#include <cmath>
#include <vector>

#include "native.h"

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

  // 1 / rms of a head's numbers.
  float inverse(const float* line) const {
    Vec squares = splat(0.0f);
    int d = 0;
    for (; d + kLanes <= dim; d += kLanes) squares += load(line + d) * load(line + d);
    float sum = total(squares);
    for (; d < dim; d++) sum += line[d] * line[d];
    return 1.0f / std::sqrt(sum / dim + eps);
  }

  // Calls pair(cos, sin, d) for the d-th of each half, or eight of them at a time.
  template <typename Pair>
  void pairs(int token, const Pair& pair) const {
    const float *c = cos + size_t(token) * half, *s = sin + size_t(token) * half;
    int d = 0;
    for (; d + kLanes <= half; d += kLanes) pair(load(c + d), load(s + d), d);
    for (; d < half; d++) pair(c[d], s[d], d);
  }
};

// What `pairs` hands out is a vector or a number.
inline Vec read(const float* p, const Vec&) { return load(p); }
inline float read(const float* p, float) { return *p; }
inline void write(float* p, Vec x) { store(p, x); }
inline void write(float* p, float x) { *p = x; }

ffi::Error forward(ffi::ThreadPool pool, Floats x, Floats scale, Floats cos, Floats sin, float eps,
                   Out y) {
  const Norm n(x, scale, cos, sin, eps);
  deal(pool, n.blocks(), 3e-4 * n.numbers(), [&](int block) {
    for (int i = block * kTokens; i < std::min((block + 1) * kTokens, n.tokens); i++) {
      for (int head = 0; head < n.heads; head++) {
        const float* line = n.x + n.at(i, head);
        float* to = y->typed_data() + n.at(i, head);
        const float by = n.inverse(line);
        if (!n.half) {
          for (int d = 0; d < n.dim; d++) to[d] = line[d] * by * n.scale[d];
          continue;
        }
        n.pairs(i, [&](auto c, auto s, int d) {
          const auto first = read(line + d, c) * by * read(n.scale + d, c);
          const auto second = read(line + n.half + d, c) * by * read(n.scale + n.half + d, c);
          write(to + d, first * c - second * s);
          write(to + n.half + d, second * c + first * s);
        });
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
        const float by = n.inverse(line);
        if (n.half) {
          n.pairs(i, [&](auto c, auto s, int d) {
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
