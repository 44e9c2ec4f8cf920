// Tokens that a filter is choosing from, and the exact cut of their order, without sorting.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace sixfold {

inline constexpr std::size_t kKeyBuckets = 1024;

// A token that may be drawn. Candidates are ordered by key, largest first, then by id.
struct Candidate {
  float key;
  std::int32_t id;
  std::uint64_t weight;
};

inline bool comes_before(const Candidate& a, const Candidate& b) {
  return a.key > b.key || (a.key == b.key && a.id < b.id);
}

// What a prefix of the candidates' order is measured by.
inline constexpr auto one_each = [](const Candidate&) { return std::uint64_t{1}; };
inline constexpr auto weight_each = [](const Candidate& candidate) { return candidate.weight; };

template <class Measure>
std::uint64_t sum_of(std::span<const Candidate> candidates, Measure measure) {
  std::uint64_t total = 0;
  for (const Candidate& c : candidates) total += measure(c);
  return total;
}

// Last candidate of the shortest prefix of the order whose measure, on top of `before`, reaches `limit`. Needs no
// sort: it halves the interval in which the prefix may end until one candidate is left.
template <class Measure>
Candidate find_last(std::span<Candidate> candidates, std::uint64_t before, std::uint64_t limit, Measure measure) {
  while (candidates.size() > 1) {
    const std::size_t half = candidates.size() / 2;
    std::nth_element(candidates.begin(), candidates.begin() + static_cast<std::ptrdiff_t>(half), candidates.end(),
                     comes_before);
    const std::uint64_t part = sum_of(candidates.first(half), measure);
    const bool reached = before + part >= limit;
    if (!reached) before += part;
    candidates = reached ? candidates.first(half) : candidates.subspan(half);
  }
  return candidates.front();
}

// Keeps the shortest prefix of the candidates' order that measures at least `limit`, in order of id. Buckets of equal
// width in key, a monotone function of it, confine the search to the bucket in which the prefix ends. `ranked` is
// working memory.
template <class Measure>
void keep_prefix(std::uint64_t limit, Measure measure, std::vector<Candidate>& candidates,
                 std::vector<Candidate>& ranked) {
  if (limit >= sum_of<Measure>(candidates, measure)) return;
  const auto [least, most] = std::minmax_element(candidates.begin(), candidates.end(),
                                                 [](const Candidate& a, const Candidate& b) { return a.key < b.key; });
  const float top = most->key;
  float width = static_cast<float>(kKeyBuckets - 1) / (top - least->key);
  if (!std::isfinite(width)) width = 0.0f;
  const auto bucket_of = [=](const Candidate& c) { return static_cast<std::size_t>((top - c.key) * width); };
  std::array<std::uint64_t, kKeyBuckets> sums{};
  for (const Candidate& c : candidates) sums[bucket_of(c)] += measure(c);
  std::uint64_t before = 0;
  std::size_t bucket = 0;
  while (before + sums[bucket] < limit) before += sums[bucket++];
  ranked.clear();
  for (const Candidate& c : candidates) {
    if (bucket_of(c) == bucket) ranked.push_back(c);
  }
  const Candidate last = find_last<Measure>(ranked, before, limit, measure);
  std::erase_if(candidates, [&](const Candidate& c) { return comes_before(last, c); });
}

}  // namespace sixfold
