// What the C++ kernels for CPUs share: vectors, tiles of matrix products, and threads.

#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace process_gen {

namespace ffi = xla::ffi;
using Floats = ffi::Buffer<ffi::F32>;
using Ints = ffi::Buffer<ffi::S32>;
using Out = ffi::Result<ffi::Buffer<ffi::F32>>;

// A function's binding with so many more arrays of floats that it is given, or that it makes.
template <int kCount, typename Binding>
auto given(Binding binding) {
  if constexpr (kCount == 1) {
    return std::move(binding).template Arg<Floats>();
  } else {
    return given<kCount - 1>(std::move(binding).template Arg<Floats>());
  }
}

template <int kCount, typename Binding>
auto made(Binding binding) {
  if constexpr (kCount == 1) {
    return std::move(binding).template Ret<Floats>();
  } else {
    return made<kCount - 1>(std::move(binding).template Ret<Floats>());
  }
}

// ---- eight numbers at a time --------------------------------------------------------------------

using Vec = float __attribute__((vector_size(32)));
using Loose = float __attribute__((vector_size(32), aligned(4)));
using IntVec = int32_t __attribute__((vector_size(32)));
constexpr int kLanes = 8;
constexpr int kStrip = 2 * kLanes;  // columns of a tile: matrices have whole strips of them
constexpr float kLog2e = 1.44269504088896341f;

inline Vec load(const float* p) { return *reinterpret_cast<const Loose*>(p); }
inline void store(float* p, Vec x) { *reinterpret_cast<Loose*>(p) = x; }
inline Vec splat(float x) { return Vec{x, x, x, x, x, x, x, x}; }

// Numbers of both vectors by their places, those of the second from 8 on.
#ifdef __clang__
#define PROCESS_GEN_PICK __builtin_shufflevector
#else
#define PROCESS_GEN_PICK(a, b, ...) __builtin_shuffle(a, b, IntVec{__VA_ARGS__})
#endif

// Eight vectors as the rows of a square, which is turned round.
inline void turn(Vec* x) {
  Vec pairs[8], fours[8];
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = PROCESS_GEN_PICK(x[i], x[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    pairs[i + 1] = PROCESS_GEN_PICK(x[i], x[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int j = 0; j < 2; j++) {
      const Vec a = pairs[i + j], b = pairs[i + j + 2];
      fours[i + 2 * j] = PROCESS_GEN_PICK(a, b, 0, 1, 8, 9, 4, 5, 12, 13);
      fours[i + 2 * j + 1] = PROCESS_GEN_PICK(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
    }
  }
  for (int i = 0; i < 4; i++) {
    x[i] = PROCESS_GEN_PICK(fours[i], fours[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    x[i + 4] = PROCESS_GEN_PICK(fours[i], fours[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

// The sum of eight numbers.
inline float total(Vec x) {
  x += PROCESS_GEN_PICK(x, x, 4, 5, 6, 7, 0, 1, 2, 3);
  x += PROCESS_GEN_PICK(x, x, 2, 3, 0, 1, 6, 7, 4, 5);
  x += PROCESS_GEN_PICK(x, x, 1, 0, 3, 2, 5, 4, 7, 6);
  return x[0];
}

// The same for any way to fold two vectors of integers into one.
template <typename Fold>
inline int32_t folded(IntVec x, const Fold& fold) {
  x = fold(x, PROCESS_GEN_PICK(x, x, 4, 5, 6, 7, 0, 1, 2, 3));
  x = fold(x, PROCESS_GEN_PICK(x, x, 2, 3, 0, 1, 6, 7, 4, 5));
  x = fold(x, PROCESS_GEN_PICK(x, x, 1, 0, 3, 2, 5, 4, 7, 6));
  return x[0];
}

#undef PROCESS_GEN_PICK

// 2^x, to 2e-7 of it, and 0 for all x up to -127: the fraction by a polynomial (Cephes, exp2f), the
// rest into the exponent.
inline Vec exp2(Vec x) {
  const Vec least = splat(-127.0f), shift = splat(12582912.0f);  // 1.5 * 2^23 rounds to integers
  x = least > x ? least : x;
  const Vec rounded = x + shift;
  const IntVec whole = (IntVec)rounded - (IntVec)shift;
  const Vec part = x - (rounded - shift);
  Vec p = splat(1.535336188319500e-4f);
  for (float c : {1.339887440266574e-3f, 9.618437357674640e-3f, 5.550332471162809e-2f,
                  2.402264791363012e-1f, 6.931472028550421e-1f, 1.0f}) {
    p = p * part + splat(c);
  }
  return (Vec)((IntVec)p + (whole << 23));
}

// C[kRows, 8 kVecs] = (accumulate ? C : 0) + A B; element (i, k) of A lies at a[i * ai + k * ak].
// Everything is unrolled, or the sums would not stay in registers.
template <int kRows, int kVecs>
inline __attribute__((always_inline)) void tile(int inner, const float* a, int ai, int ak,
                                                const float* b, int ldb, float* c, int ldc,
                                                bool accumulate) {
  Vec sum[kRows][kVecs];
  const float* row[kRows];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; i++) {
    row[i] = a + i * ai;
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; j++) {
      sum[i][j] = accumulate ? load(c + i * ldc + kLanes * j) : splat(0.0f);
    }
  }
#pragma GCC unroll 4
  for (int k = 0; k < inner; k++, b += ldb) {
    Vec columns[kVecs];
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; j++) columns[j] = load(b + kLanes * j);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; i++) {
      const Vec x = splat(*row[i]);
      row[i] += ak;
#pragma GCC unroll 4
      for (int j = 0; j < kVecs; j++) sum[i][j] += x * columns[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; i++) {
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; j++) store(c + i * ldc + kLanes * j, sum[i][j]);
  }
}

// The same of any number of rows, in tiles; `by_tile` is the way from one to the next in A.
template <int kRows, int kVecs>
void tiles(int rows, int inner, const float* a, int ai, int ak, ptrdiff_t by_tile, const float* b,
           int ldb, float* c, int ldc, bool accumulate) {
  for (; rows >= kRows; rows -= kRows, a += by_tile, c += ptrdiff_t(kRows) * ldc) {
    tile<kRows, kVecs>(inner, a, ai, ak, b, ldb, c, ldc, accumulate);
  }
  if constexpr (kRows > 1) {
    if (rows > 0) tiles<kRows - 1, kVecs>(rows, inner, a, ai, ak, 0, b, ldb, c, ldc, accumulate);
  }
}

// Room that a thread keeps, on a boundary of a cache's line.
inline float* room(std::vector<float>& kept, size_t floats) {
  constexpr size_t kLine = 16;
  if (kept.size() < floats + kLine) kept = std::vector<float>(floats + kLine);
  const auto at = reinterpret_cast<uintptr_t>(kept.data());
  return kept.data() + (kLine - at / 4 % kLine) % kLine;
}

// ---- threads ------------------------------------------------------------------------------------

constexpr double kWake = 20.0;  // microseconds until another thread begins, about
constexpr int kPatience = 50;   // microseconds that are waited without going to sleep

// Calls work(0) .. work(count - 1) on the pool and on this thread; on this one alone where all of it
// takes no longer than to wake another. It waits for work that somebody has begun, never for a
// thread to come free: all of them may be waiting here.
inline void deal(ffi::ThreadPool& pool, int count, double microseconds,
                 const std::function<void(int)>& work) {
  struct State {
    std::atomic<int> next{0}, done{0};
    std::mutex mutex;
    std::condition_variable changed;
  };
  auto state = std::make_shared<State>();
  auto take = [state, count, &work] {
    for (int i; (i = state->next.fetch_add(1)) < count;) {
      work(i);
      if (state->done.fetch_add(1) + 1 < count) continue;
      std::lock_guard<std::mutex> lock(state->mutex);
      state->changed.notify_one();
    }
  };
  const double most = std::min<double>(std::min<int64_t>(count, pool.num_threads()),
                                       1.0 + microseconds / (2.0 * kWake));
  for (int i = 1; i < int(most); i++) pool.Schedule([take] { take(); });
  take();
  auto ready = [&] { return state->done.load() == count; };
  // The last piece is often done before a thread could go to sleep and be woken again.
  const auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(kPatience);
  while (!ready() && std::chrono::steady_clock::now() < until) {
  }
  std::unique_lock<std::mutex> lock(state->mutex);
  state->changed.wait(lock, ready);
}

}  // namespace process_gen
