// What is done to rows of numbers between products: norms, rotations of heads, gates.

#pragma once

#include <cmath>

#include "native.h"

namespace process_gen {

// 1 / rms of a line's numbers.
inline float inverse(const float* line, int dim, float eps) {
  Vec squares = splat(0.0f);
  int d = 0;
  for (; d + kLanes <= dim; d += kLanes) squares += load(line + d) * load(line + d);
  float sum = total(squares);
  for (; d < dim; d++) sum += line[d] * line[d];
  return 1.0f / std::sqrt(sum / dim + eps);
}

// Calls pair(cos, sin, d) for eight of each half from the d-th on, or for one where there are fewer;
// some come twice where eight do not divide them.
template <typename Pair>
inline void pairs(const float* cos, const float* sin, int half, const Pair& pair) {
  if (half < kLanes) {
    for (int d = 0; d < half; d++) pair(cos[d], sin[d], d);
    return;
  }
  for (int d = 0; d < half; d += kLanes) {
    const int at = std::min(d, half - kLanes);
    pair(load(cos + at), load(sin + at), at);
  }
}

// What `pairs` hands out is a vector or a number.
inline Vec read(const float* p, const Vec&) { return load(p); }
inline float read(const float* p, float) { return *p; }
inline void write(float* p, Vec x) { store(p, x); }
inline void write(float* p, float x) { *p = x; }

// A norm of lines.
struct Scale {
  const float* at;
  int dim;
  float eps;

  // scale * line / rms(line).
  void apply(const float* line, float* to) const {
    const float by = inverse(line, dim, eps);
    for (int d = 0; d < dim; d++) to[d] = line[d] * by * at[d];
  }

  // The same with its halves rotated.
  void apply_and_turn(const float* line, const float* cos, const float* sin, float* to) const {
    const int half = dim / 2;
    const float by = inverse(line, dim, eps);
    pairs(cos, sin, half, [&](auto c, auto s, int d) {
      const auto first = read(line + d, c) * by * read(at + d, c);
      const auto second = read(line + half + d, c) * by * read(at + half + d, c);
      write(to + d, first * c - second * s);
      write(to + half + d, second * c + first * s);
    });
  }
};

// 1 / (1 + e^-x).
inline Vec sigmoid(Vec x) {
  const Vec most = splat(126.0f), power = -kLog2e * x;
  return 1.0f / (1.0f + exp2(power < most ? power : most));
}

// hidden = silu(gate) * up, `n` numbers of it, a multiple of 8; `hidden` may be either.
inline void gated(int n, const float* gate, const float* up, float* hidden) {
  for (int i = 0; i < n; i += kLanes) {
    const Vec g = load(gate + i);
    store(hidden + i, g * sigmoid(g) * load(up + i));
  }
}

}  // namespace process_gen
