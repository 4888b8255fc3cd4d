// Matrix products of many rows, C = A B, for all three of a linear map: its outputs, and the
// gradients of its inputs and of its weights.
//
// B is copied into strips of 16 columns by all threads, then blocks of rows are dealt to them. While
// 256 inner rows of a strip stay in a core's first cache all rows of a block pass. Every sum is over
// the inner rows in their order, so results do not depend on the number of threads.

#pragma once

#include <cstddef>
#include <vector>

#include "native.h"

namespace process_gen {

// Floats anywhere; one of the two steps is 1.
struct View {
  const float* at;
  ptrdiff_t by_row, by_column;

  const float* to(ptrdiff_t row, ptrdiff_t column) const {
    return at + row * by_row + column * by_column;
  }
};

// An array in rows.
struct Matrix {
  int rows, columns;
  float* at;

  View plain() const { return {at, columns, 1}; }
  View turned() const { return {at, 1, columns}; }
};

template <typename Buffer>
inline Matrix matrix(const Buffer& x) {
  return {int(x.dimensions()[0]), int(x.dimensions()[1]), x.typed_data()};
}

constexpr int kTall = 6;                 // rows of a tile of a strip
constexpr int kDeep = 256;               // inner rows at a time
constexpr int kFewest = 24, kMost = 96;  // rows of a block
constexpr int kCopied = 8;               // strips that a thread copies at a time
constexpr int kRoom = 1 << 20;           // floats that are copied before a product, about

// Strips of `deep` rows from `b` on, ``[strips, deep, 16]``.
inline void copy_strips(const View& b, int strips, int deep, float* to) {
  const ptrdiff_t by_strip = ptrdiff_t(deep) * kStrip;
  if (b.by_column == 1) {
    for (int k = 0; k < deep; k++, to += kStrip) {
      const float* from = b.to(k, 0);
      for (int s = 0; s < strips; s++, from += kStrip) {
        store(to + s * by_strip, load(from));
        store(to + s * by_strip + kLanes, load(from + kLanes));
      }
    }
    return;
  }
  for (int c = 0; c < strips * kStrip; c += kLanes) {
    float* at = to + c / kStrip * by_strip + c % kStrip;
    int k = 0;
    for (; k + kLanes <= deep; k += kLanes) {
      Vec square[kLanes];
      for (int i = 0; i < kLanes; i++) square[i] = load(b.to(k, c + i));
      turn(square);
      for (int i = 0; i < kLanes; i++) store(at + (k + i) * kStrip, square[i]);
    }
    for (; k < deep; k++) {
      for (int i = 0; i < kLanes; i++) at[k * kStrip + i] = *b.to(k, c + i);
    }
  }
}

// Rows of A that lie across, six next to one another for each of `deep` inner rows,
// ``[rows / 6, deep, 6]``; two floats more are written.
inline void copy_rows(const View& a, int rows, int deep, float* to) {
  for (int m = 0; m < rows; m += kTall, to += ptrdiff_t(deep) * kTall) {
    const int width = rows - m;
    for (int k = 0; k < deep; k++) {
      if (width >= kLanes) {
        store(to + k * kTall, load(a.to(m, k)));
      } else {
        std::memcpy(to + k * kTall, a.to(m, k), sizeof(float) * std::min(kTall, width));
      }
    }
  }
}

// Columns of B, ``[count, inner, 16]``.
struct Strips {
  int inner, count;
  const float* at;
  ptrdiff_t apart;  // from strip to strip, which may be a part of deeper ones

  Strips(int inner, int columns, const float* at = nullptr)
      : inner(inner), count(columns / kStrip), at(at), apart(ptrdiff_t(inner) * kStrip) {}

  Strips some(int first, int used) const {
    Strips found = *this;
    found.at += first * apart;
    found.count = used;
    return found;
  }
  Strips part(int first, int deep) const {
    Strips found = *this;
    found.at += ptrdiff_t(first) * kStrip;
    found.inner = deep;
    return found;
  }
  size_t floats() const { return size_t(count) * inner * kStrip; }
};

// Those of a matrix that lies otherwise.
struct Copied : Strips {
  View from;

  Copied(View from, int inner, int columns) : Strips(inner, columns), from(from) {}
};

inline void copy(ffi::ThreadPool& pool, const std::vector<Copied*>& all) {
  struct Piece {
    const Copied* strips;
    float* to;
    int first;
  };
  static thread_local std::vector<float> kept;
  std::vector<Piece> pieces;
  size_t floats = 0;
  for (const Copied* b : all) floats += b->floats();
  float* at = room(kept, floats);
  for (Copied* b : all) {
    b->at = at;
    for (int s = 0; s < b->count; s += kCopied) pieces.push_back({b, at + s * b->apart, s});
    at += b->floats();
  }
  deal(pool, pieces.size(), 1e-3 * floats, [&](int i) {
    const Copied& b = *pieces[i].strips;
    const int s = pieces[i].first, strips = std::min(kCopied, b.count - s);
    const View from{b.from.to(0, s * kStrip), b.from.by_row, b.from.by_column};
    copy_strips(from, strips, b.inner, pieces[i].to);
  });
}

// Rows for one thread at a time.
inline int block_of(const ffi::ThreadPool& pool, int rows) {
  const int share = (rows / (2 * int(pool.num_threads())) + kTall - 1) / kTall * kTall;
  return std::clamp(share, kFewest, kMost);
}

// C[rows, columns] = A B (+ C) of one block on this thread; `by_tile`: from six rows to the next.
inline void block_product(int rows, const View& a, ptrdiff_t by_tile, const Strips& b, float* c,
                          int ldc, bool accumulate) {
  for (int s = 0; s < b.count; s++) {
    const float* strip = b.at + s * b.apart;
    for (int k = 0; k < b.inner; k += kDeep) {
      tiles<kTall, 2>(rows, std::min(kDeep, b.inner - k), a.at + k * a.by_column, a.by_row,
                      a.by_column, by_tile, strip + k * kStrip, kStrip, c + s * kStrip, ldc,
                      accumulate || k > 0);
    }
  }
}

// The same of rows that lie one after the other.
inline void block_product(int rows, const float* a, int lda, const Strips& b, float* c, int ldc,
                          bool accumulate) {
  block_product(rows, {a, lda, 1}, ptrdiff_t(kTall) * lda, b, c, ldc, accumulate);
}

// Nanoseconds of one thread for so many products of numbers.
inline double nanoseconds(double products) { return products / 45.0; }

struct Target {
  View b;  // [inner, columns]
  int columns;
  float* c;  // [rows, columns]
};

// C_i = A B_i (+ C_i) of ``A[rows, inner]`` on all threads.
inline void multiply(ffi::ThreadPool& pool, int rows, int inner, const View& a,
                     const std::vector<Target>& targets, bool accumulate = false) {
  const int block = block_of(pool, rows);
  int columns = 0;
  for (const Target& t : targets) columns += t.columns;
  // Rows of A that lie across are copied by each block (into a 16th of the room, which its core's
  // second cache can hold), and B's are copied in slabs.
  const bool across = a.by_column != 1;
  const int fit = std::min(kRoom / columns, across ? kRoom / (16 * block) : kRoom);
  const int slab = std::min(inner, std::max(fit / kDeep, 1) * kDeep);
  for (int k0 = 0; k0 < inner; k0 += slab) {
    const int deep = std::min(slab, inner - k0);
    std::vector<Copied> strips;
    for (const Target& t : targets) {
      strips.push_back({{t.b.to(k0, 0), t.b.by_row, t.b.by_column}, deep, t.columns});
    }
    std::vector<Copied*> all;
    for (Copied& b : strips) all.push_back(&b);
    copy(pool, all);
    const double work = nanoseconds(double(rows) * deep * columns);
    deal(pool, (rows + block - 1) / block, 1e-3 * work, [&](int i) {
      const int first = i * block, used = std::min(block, rows - first);
      View own{a.to(first, k0), a.by_row, a.by_column};
      ptrdiff_t by_tile = kTall * a.by_row;
      if (across) {
        static thread_local std::vector<float> kept;
        float* here = room(kept, size_t(block) * deep + kLanes);
        copy_rows(own, used, deep, here);
        own = {here, 1, kTall};
        by_tile = ptrdiff_t(kTall) * deep;
      }
      for (size_t t = 0; t < strips.size(); t++) {
        float* c = targets[t].c + ptrdiff_t(first) * targets[t].columns;
        block_product(used, own, by_tile, strips[t], c, targets[t].columns, accumulate || k0 > 0);
      }
    });
  }
}

}  // namespace process_gen
