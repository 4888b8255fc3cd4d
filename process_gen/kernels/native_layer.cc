// A layer's two halves where it only paints: what comes before the joint attention of both experts,
// and what comes after it. Weights lie in strips, and blocks of tokens pass all of a half at once.

#include "native_rows.h"
#include "native_strips.h"

namespace process_gen {
namespace {

constexpr int kHidden = 256;  // hidden columns of many tokens at a time
constexpr int kExperts = 2;

// What each expert gives for the first half, and for the second.
enum Before { kX, kScale, kQ, kK, kV, kQBias, kKBias, kVBias, kQScale, kKScale, kCos, kSin, kBefore };
enum After { kStream, kPostScale, kO, kGate, kUp, kDown, kAfter };

inline int columns(const Floats& strips) { return int(strips.dimensions()[0]) * kStrip; }

// One stream's tokens, ``[B, N]``, among those of both, ``[B, S]``, of which some come first.
struct Tokens {
  int rows, count, both, ahead;

  int all() const { return rows * count; }
  size_t among_both(int token) const {
    return size_t(token / count) * both + ahead + token % count;
  }
};

// The tokens of both experts, whose streams are each `by`-th of the arrays from the first on.
inline std::vector<Tokens> tokens(const std::vector<Floats>& given, int by) {
  std::vector<Tokens> found;
  int both = 0;
  for (int i = 0; i < kExperts; i++) {
    const auto size = given[i * by].dimensions();
    found.push_back({int(size[0]), int(size[1]), 0, both});
    both += int(size[1]);
  }
  for (Tokens& one : found) one.both = both;
  return found;
}

// Numbers of a block of tokens; a power of two apart, all would share a few lines of a cache.
struct Lines {
  int by_row;
  float* at;

  Lines(std::vector<float>& kept, int tokens, int width)
      : by_row(width + kStrip), at(room(kept, size_t(tokens) * by_row)) {}

  float* of(int token) const { return at + ptrdiff_t(token) * by_row; }
};

// ``q[B, S, H Dh]``, k and v of the normed streams ``[B, N, D]``; heads of q and k are normed, and
// turned by ``cos[B, N, Dh / 2]`` and sin. Biases may be empty.
ffi::Error before(ffi::ThreadPool pool, const std::vector<Floats>& given, float eps, float* q,
                  float* k, float* v) {
  const std::vector<Tokens> streams = tokens(given, kBefore);
  const int width = given[kX].dimensions()[2], half = given[kCos].dimensions()[2];
  const int outs[] = {columns(given[kQ]), columns(given[kK]), columns(given[kV])};
  float* const to[] = {q, k, v};
  const int whole = outs[0] + outs[1] + outs[2];
  const int all = streams[0].all() + streams[1].all();
  const std::vector<int> groups{streams[0].all(), streams[1].all()};
  in_blocks(pool, groups, double(all) * width * whole, [&](int e, int first, int used, auto multiply) {
    const Floats* own = &given[e * kBefore];
    const Scale scale{own[kScale].typed_data(), width, eps};
    static thread_local std::vector<float> kept, kept_made;
    const Lines normed(kept, used, width), made(kept_made, used, whole);
    for (int m = 0; m < used; m++) {
      scale.apply(own[kX].typed_data() + size_t(first + m) * width, normed.of(m));
    }
    std::vector<Product> products;
    for (int i = 0, at = 0; i < 3; at += outs[i++]) {
      const Floats& bias = own[kQBias + i];
      const bool biased = bias.element_count() > 0;
      for (int m = 0; biased && m < used; m++) {
        std::memcpy(made.of(m) + at, bias.typed_data(), sizeof(float) * outs[i]);
      }
      products.push_back({strips(own[kQ + i]), made.at + at, made.by_row, biased});
    }
    multiply(used, normed.at, normed.by_row, products);
    for (int m = 0; m < used; m++) {
      const size_t angle = size_t(first + m) * half, place = streams[e].among_both(first + m);
      const float *cos = own[kCos].typed_data() + angle, *sin = own[kSin].typed_data() + angle;
      const float* from = made.of(m);
      for (int i = 0; i < 2; from += outs[i++]) {
        const Scale heads{own[kQScale + i].typed_data(), 2 * half, eps};
        for (int h = 0; h < outs[i]; h += 2 * half) {
          heads.apply_and_turn(from + h, cos, sin, to[i] + place * outs[i] + h);
        }
      }
      std::memcpy(v + place * outs[2], from, sizeof(float) * outs[2]);
    }
  });
  return ffi::Error::Success();
}

// The streams with what was ``attended[B, S, H Dh]`` and their gated MLPs added.
ffi::Error after(ffi::ThreadPool pool, const std::vector<Floats>& given, const Floats& attended,
                 float eps, float* const* to) {
  const std::vector<Tokens> streams = tokens(given, kAfter);
  const int width = given[kStream].dimensions()[2], heads = attended.dimensions()[2];
  const int hidden = columns(given[kGate]), all = streams[0].all() + streams[1].all();
  const std::vector<int> groups{streams[0].all(), streams[1].all()};
  const double products = double(all) * width * (heads + 3.0 * hidden);
  in_blocks(pool, groups, products, [&](int e, int first, int used, auto multiply) {
    const Floats* own = &given[e * kAfter];
    const Scale scale{own[kPostScale].typed_data(), width, eps};
    static thread_local std::vector<float> kept, kept_hidden;
    const Lines seen(kept_hidden, used, heads), normed(kept, used, width);
    for (int m = 0; m < used; m++) {
      const float* from = attended.typed_data() + streams[e].among_both(first + m) * heads;
      std::memcpy(seen.of(m), from, sizeof(float) * heads);
    }
    float* y = to[e] + size_t(first) * width;
    std::memcpy(y, own[kStream].typed_data() + size_t(first) * width, sizeof(float) * used * width);
    multiply(used, seen.at, seen.by_row, {{strips(own[kO]), y, width, true}});
    for (int m = 0; m < used; m++) scale.apply(y + size_t(m) * width, normed.of(m));
    const int most = used <= kFewRows ? hidden : std::min(kHidden, hidden);
    const Lines gate(kept_hidden, 2 * used, most);
    float* up = gate.of(used);
    for (int at = 0; at < hidden; at += most) {
      const int part = std::min(most, hidden - at), strip = at / kStrip, count = part / kStrip;
      multiply(used, normed.at, normed.by_row,
               {{strips(own[kGate]).some(strip, count), gate.at, gate.by_row, false},
                {strips(own[kUp]).some(strip, count), up, gate.by_row, false}});
      for (int m = 0; m < used; m++) {
        gated(part, gate.of(m), gate.of(used + m), gate.of(m));
      }
      multiply(used, gate.at, gate.by_row,
               {{strips(own[kDown]).part(at, part), y, width, true}});
    }
  });
  return ffi::Error::Success();
}

// ---- what XLA calls -----------------------------------------------------------------------------

// All arrays that are given, or an error.
template <typename Call>
ffi::Error with_all(ffi::RemainingArgs& args, const Call& call) {
  std::vector<Floats> given;
  for (size_t i = 0; i < args.size(); i++) {
    auto found = args.get<Floats>(i);
    if (found.has_error()) return found.error();
    given.push_back(*found);
  }
  return call(given);
}

ffi::Error layer_before(ffi::ThreadPool pool, ffi::RemainingArgs args, float eps, Out q, Out k,
                        Out v) {
  return with_all(args, [&](const std::vector<Floats>& given) {
    return before(pool, given, eps, q->typed_data(), k->typed_data(), v->typed_data());
  });
}

ffi::Error layer_after(ffi::ThreadPool pool, Floats attended, ffi::RemainingArgs args, float eps,
                       Out und, Out gen) {
  return with_all(args, [&](const std::vector<Floats>& given) {
    float* const to[] = {und->typed_data(), gen->typed_data()};
    return after(pool, given, attended, eps, to);
  });
}

}  // namespace
}  // namespace process_gen

using xla::ffi::Ffi;
using xla::ffi::ThreadPool;

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    layer_before, process_gen::layer_before,
    process_gen::made<3>(Ffi::Bind().Ctx<ThreadPool>().RemainingArgs().Attr<float>("eps")));

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    layer_after, process_gen::layer_after,
    process_gen::made<2>(process_gen::given<1>(Ffi::Bind().Ctx<ThreadPool>())
                             .RemainingArgs()
                             .Attr<float>("eps")));
