// Which keys the queries of a row visit under the interval rule (`core.attention_mask`).
//
// Queries are sorted by order and taken 48 at a time, those of all heads that share keys next to one
// another. Keys are sorted by where they begin to be seen
// and taken in strips of 16, each of which is visited by those queries of a block, from the first to
// the last, that see any of it. Strips that are seen by the same queries are visited together.

#pragma once

#include <numeric>
#include <vector>

#include "native.h"

namespace process_gen {

constexpr int kQueries = 48;  // of a block: eight tiles of six
constexpr int kKeys = 64;     // of a block as keys are laid out, which no visit goes beyond

// Keys from `key` on, and the queries [first, last) of a block, some of which see each strip's.
struct Visit {
  int key, keys, first, last;
  bool masked;  // not all see all
};

inline IntVec load_ints(const int32_t* p) {
  IntVec x;
  std::memcpy(&x, p, sizeof x);
  return x;
}

// `core.attention_mask.may_attend` of one query and eight keys; all bits set where it may.
inline IntVec may_attend(int32_t order, const int32_t* from, const int32_t* to) {
  const IntVec o = IntVec{} + order;
  return (load_ints(from) <= o) & (o <= load_ints(to));
}

// The intervals of keys, whole strips of them.
class Intervals {
 public:
  Intervals(const int32_t* from, const int32_t* to, int keys) : from_(from), to_(to) {
    strips_.reserve(keys / kStrip);
    for (int j = 0; j < keys; j += kStrip) {
      const auto [opens, opened] = ends(from + j);
      const auto [closed, closes] = ends(to + j);
      strips_.push_back({opens, opened, closed, closes});
    }
  }

  // Visits of queries with these orders, which ascend.
  std::vector<Visit> visits(const int32_t* order, int queries) const {
    std::vector<Visit> found;
    found.reserve(strips_.size());
    for (int j = 0; j < int(strips_.size()) * kStrip; j += kStrip) {
      const Strip& strip = strips_[j / kStrip];
      int first = std::lower_bound(order, order + queries, strip.opens) - order;
      int last = std::upper_bound(order, order + queries, strip.closes) - order;
      while (first < last && !any(order[first], j)) first++;
      while (first < last && !any(order[last - 1], j)) last--;
      if (first >= last) continue;
      const bool masked = order[first] < strip.opened || order[last - 1] > strip.closed;
      const bool same = !found.empty() && j % kKeys && found.back().key + found.back().keys == j &&
                        found.back().first == first && found.back().last == last;
      if (!same) found.push_back({j, 0, first, last, false});
      found.back().keys += kStrip;
      found.back().masked |= masked;
    }
    return found;
  }

 private:
  struct Strip {
    int32_t opens, opened, closed, closes;
  };

  // The least and the largest of a strip's.
  static std::pair<int32_t, int32_t> ends(const int32_t* p) {
    const IntVec a = load_ints(p), b = load_ints(p + kLanes);
    const auto least = [](IntVec x, IntVec y) { return x < y ? x : y; };
    const auto most = [](IntVec x, IntVec y) { return x > y ? x : y; };
    return {folded(least(a, b), least), folded(most(a, b), most)};
  }

  bool any(int32_t order, int j) const {
    const IntVec seen = may_attend(order, from_ + j, to_ + j) |
                        may_attend(order, from_ + j + kLanes, to_ + j + kLanes);
    return folded(seen, [](IntVec x, IntVec y) { return x | y; });
  }

  const int32_t *from_, *to_;
  std::vector<Strip> strips_;
};

// Orders of a row's queries, and intervals of its keys and of the slots of its cache.
struct Tokens {
  const int32_t* order;
  int queries, group;  // group: heads that share keys
  const int32_t *from, *to;
  int keys;
  const int32_t *cached_from, *cached_to;
  int slots;

  // All that is known of them, in one line.
  std::vector<int32_t> listed() const {
    std::vector<int32_t> found{queries, group, keys, slots};
    found.reserve(4 + queries + 2 * (keys + slots));
    found.insert(found.end(), order, order + queries);
    for (const int32_t* x : {from, to}) found.insert(found.end(), x, x + keys);
    for (const int32_t* x : {cached_from, cached_to}) found.insert(found.end(), x, x + slots);
    return found;
  }
};

// The tokens of one row, sorted; keys are filled up to whole blocks with what nobody sees.
struct Row {
  std::vector<int> query, key;  // where they lie
  std::vector<int32_t> order;   // of queries, each for all heads of a group
  std::vector<int32_t> from, to;
  std::vector<std::vector<Visit>> own, cached;  // of each block of queries

  explicit Row(const Tokens& x)
      : query(sorted(x.order, x.queries)), key(sorted(x.from, x.keys)), listed_(x.listed()) {
    const int whole = (x.keys + kKeys - 1) / kKeys * kKeys;
    from.assign(whole, INT32_MAX);
    to.assign(whole, -1);
    order.reserve(x.queries * x.group);
    for (int i : query) order.insert(order.end(), x.group, x.order[i]);
    for (int j = 0; j < x.keys; j++) from[j] = x.from[key[j]], to[j] = x.to[key[j]];
    const Intervals intervals(from.data(), to.data(), whole);
    const Intervals cache(x.cached_from, x.cached_to, x.slots);
    for (int i = 0; i < x.queries * x.group; i += kQueries) {
      const int used = std::min(kQueries, x.queries * x.group - i);
      own.push_back(intervals.visits(&order[i], used));
      cached.push_back(cache.visits(&order[i], used));
    }
  }

  bool is_of(const Tokens& x) const { return x.listed() == listed_; }

 private:
  static std::vector<int> sorted(const int32_t* by, int count) {
    std::vector<int> found(count);
    std::iota(found.begin(), found.end(), 0);
    if (!std::is_sorted(by, by + count)) {
      std::stable_sort(found.begin(), found.end(), [&](int a, int b) { return by[a] < by[b]; });
    }
    return found;
  }

  std::vector<int32_t> listed_;
};

}  // namespace process_gen
