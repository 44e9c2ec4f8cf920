// What attention over pages has in common for every KV format and vector width: taking keys in runs of kSoftmaxKeys,
// hiding those that a row does not see, and the online softmax. See AttentionJob for the contract. An instruction set
// brings a `V` with its operations. Everything here is internal to the file that includes it, so that code compiled for
// one instruction set never stands in for another.
#pragma once

#include <algorithm>
#include <limits>

#include "kernels.hpp"

namespace sixfold {
namespace {

constexpr int kRunPages = kSoftmaxKeys / kPageTokens;
constexpr float kNone = -std::numeric_limits<float>::infinity();

template <typename V>
class SoftmaxRuns {
 protected:
  using T = typename V::T;
  static constexpr int kVectors = kPageTokens / V::kWidth;  // of a page's keys

  // Up to kSoftmaxKeys keys, by page.
  struct Run {
    const std::uint8_t* pages[kRunPages];
    int first, count;  // pages of the run that some row sees
    int start;         // position of the run's first key
  };

  template <int N>
  struct Count {
    constexpr operator int() const { return N; }
  };

  // `scores`: [rows][kSoftmaxKeys]
  SoftmaxRuns(const AttentionJob& job, float* scores)
      : job_(job), d_(job.head_size), rows_(job.tokens * job.group), scores_(scores) {}

  void clear() {
    std::fill_n(job_.sum, static_cast<std::size_t>(rows_) * d_, 0.0f);
    std::fill_n(job_.weight, rows_, 0.0f);
    std::fill_n(job_.max, rows_, kNone);
  }

  // Calls f(run) for the runs of the job's keys, in order.
  template <typename F>
  void for_runs(F f) {
    for (int start = job_.begin / kSoftmaxKeys * kSoftmaxKeys; start < job_.end; start += kSoftmaxKeys)
      f(pages_of(start));
  }

  // Calls f(first row, Count<R>) for groups of rows that fill the registers as well as they can. The arithmetic of a
  // row is the same in a group of any size.
  template <typename F>
  void for_groups(F f) const {
    int row = 0;
    const auto take = [&](auto size) {
      for (; row + size <= rows_; row += size) f(row, size);
    };
    if constexpr (V::kScoreRows >= 24) take(Count<24>{});
    if constexpr (V::kScoreRows >= 12) take(Count<12>{});
    take(Count<6>{});
    take(Count<4>{});
    take(Count<3>{});
    take(Count<2>{});
    take(Count<1>{});
  }

  // The same for groups whose values are summed at once.
  template <typename F>
  void for_sum_groups(F f) const {
    static_assert(V::kSumRows == 6);
    int row = 0;
    for (; row + 6 <= rows_; row += 6) f(row, Count<6>{});
    switch (rows_ - row) {
      case 5:
        return f(row, Count<5>{});
      case 4:
        return f(row, Count<4>{});
      case 3:
        return f(row, Count<3>{});
      case 2:
        return f(row, Count<2>{});
      case 1:
        return f(row, Count<1>{});
      default:
        return;
    }
  }

  Run pages_of(int start) const {
    Run run{};
    run.start = start;
    run.first = std::max(0, job_.begin - start) / kPageTokens;
    const int last = std::min(kSoftmaxKeys, job_.end - start);
    run.count = (last + kPageTokens - 1) / kPageTokens - run.first;
    for (int i = 0; i < run.count; ++i) run.pages[i] = page(start / kPageTokens + run.first + i);
    return run;
  }

  const std::uint8_t* page(int index) const {
    return job_.pool + static_cast<std::size_t>(job_.pages[index]) * job_.page_stride;
  }

  // The page that the next run has in the place of the i-th of this one, be it of this job or of the next split; the
  // same page if there is none. To be prefetched: pages lie apart, where no hardware prefetcher follows.
  const char* page_ahead(const Run& run, int i) const {
    const int next = run.start / kPageTokens + run.first + i + kRunPages;
    const bool is_there = next * kPageTokens < job_.position + job_.tokens;
    return reinterpret_cast<const char*>(is_there ? page(next) : run.pages[i]);
  }

  // Turns scores into exp(score - max), zero where not visible, updates weights and maxima, and gives the factors that
  // what was summed before is to be multiplied by. A row that sees nothing keeps what it has.
  void soften(const Run& run, float* factors) {
    float totals[kMaxAttentionRows];
    for (int row = 0; row < rows_; ++row) hide(run, row);
    int row = 0;
    for (; row + V::kSoftRows <= rows_; row += V::kSoftRows) soften_rows<V::kSoftRows>(run, row, factors, totals);
    for (; row < rows_; ++row) soften_rows<1>(run, row, factors, totals);
    const int whole = rows_ / V::kWidth * V::kWidth;
    for (row = 0; row < whole; row += V::kWidth) V::store(factors + row, V::exp(V::load(factors + row)));
    for (; row < rows_; ++row) factors[row] = V::exp_one(factors[row]);
    for (row = 0; row < rows_; ++row) job_.weight[row] = job_.weight[row] * factors[row] + totals[row];
  }

  // Scores of keys that a row does not see become -inf.
  void hide(const Run& run, int row) {
    float* scores = scores_ + static_cast<std::size_t>(row) * kSoftmaxKeys;
    const int position = job_.position + row / job_.group;
    const int begin = std::max(job_.begin, job_.window > 0 ? std::max(0, position - job_.window + 1) : 0);
    const int low = begin - run.start, high = std::min(position + 1, job_.end) - run.start;
    const int from = run.first * kPageTokens, to = from + run.count * kPageTokens;
    if (low <= from && high >= to) return;
    for (int key = from; key < to; key += V::kWidth)
      V::store(scores + key, V::only(V::load(scores + key), low - key, high - key, kNone));
  }

  // Several rows at once, since each is one long chain of operations. `deltas`: old less new maximum.
  template <int N>
  void soften_rows(const Run& run, int row, float* deltas, float* totals) {
    float* scores = scores_ + static_cast<std::size_t>(row) * kSoftmaxKeys;
    const int from = run.first * kPageTokens, to = from + run.count * kPageTokens;
    T top[N], shift[N], total[N];
#pragma GCC unroll 4
    for (int r = 0; r < N; ++r) top[r] = V::set(kNone);
    for (int key = from; key < to; key += V::kWidth)
#pragma GCC unroll 4
      for (int r = 0; r < N; ++r) top[r] = V::max(top[r], V::load(scores + r * kSoftmaxKeys + key));
#pragma GCC unroll 4
    for (int r = 0; r < N; ++r) {
      float& max = job_.max[row + r];
      const float largest = std::max(max, V::horizontal_max(top[r]));
      const float finite = largest == kNone ? 0.0f : largest;  // exp(-inf - finite) is 0
      deltas[row + r] = max - finite;
      max = largest;
      shift[r] = V::set(finite);
      total[r] = V::zero();
    }
    for (int key = from; key < to; key += V::kWidth)
#pragma GCC unroll 4
      for (int r = 0; r < N; ++r) {
        float* at = scores + r * kSoftmaxKeys;
        const T e = V::exp(V::sub(V::load(at + key), shift[r]));
        V::store_probabilities(at, key, e);
        total[r] = V::add(total[r], e);
      }
#pragma GCC unroll 4
    for (int r = 0; r < N; ++r) totals[row + r] = V::horizontal_sum(total[r]);
  }

  const AttentionJob& job_;
  const int d_, rows_;
  float* scores_;
};

}  // namespace
}  // namespace sixfold
