// Attention over pages for any vector width; see AttentionJob for layouts and the contract. An instruction set brings a
// `V` with its operations (avx2/attention.cpp, avx512/attention.cpp). Everything here is internal to the file that
// includes it, so that code compiled for one instruction set never stands in for another.
//
// Keys are taken in runs of kSoftmaxKeys. Rows (query heads of tokens) are taken as many at a time as registers hold
// sums for; the arithmetic of a row is the same however many there are.
//
//   scratch:  queries, a group of R rows as [head_size][R] | scores [rows][64] | K [head_size][16] | V [64][head_size]
#pragma once

#include <algorithm>
#include <limits>

#include "kernels.hpp"

namespace sixfold {
namespace {

constexpr int kRunPages = kSoftmaxKeys / kPageTokens;
constexpr float kNone = -std::numeric_limits<float>::infinity();

template <typename V>
class PagedAttention {
  using T = typename V::T;
  static constexpr int kVectors = kPageTokens / V::kWidth;  // of a page's keys

  // Where a run's keys or values come from: pages as they are, or float32 copies that many rows share.
  struct Run {
    const std::uint16_t* pages[kRunPages];
    int first, count;  // pages of the run that some row sees
    int start;         // position of the run's first key
  };

 public:
  explicit PagedAttention(const AttentionJob& job)
      : job_(job),
        d_(job.head_size),
        rows_(job.tokens * job.group),
        copies_(rows_ > V::kDirectRows),
        queries_(job.scratch),
        scores_(queries_ + static_cast<std::size_t>(rows_) * d_),
        keys_(scores_ + static_cast<std::size_t>(rows_) * kSoftmaxKeys),
        values_(keys_ + static_cast<std::size_t>(d_) * kPageTokens) {}

  void run() {
    std::fill_n(job_.sum, static_cast<std::size_t>(rows_) * d_, 0.0f);
    std::fill_n(job_.weight, rows_, 0.0f);
    std::fill_n(job_.max, rows_, kNone);
    for_groups([&](int row, auto r) { gather<r>(row); });
    for (int start = job_.begin / kSoftmaxKeys * kSoftmaxKeys; start < job_.end; start += kSoftmaxKeys) {
      const Run run = pages_of(start);
      score(run);
      float factors[kMaxAttentionRows];
      for (int row = 0; row < rows_; ++row) factors[row] = soften(run, row);
      accumulate(run, factors);
    }
  }

 private:
  template <int N>
  struct Count {
    constexpr operator int() const { return N; }
  };

  // Calls f(first row, Count<R>) for groups of rows that fill the registers as well as they can.
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

  Run pages_of(int start) const {
    Run run{};
    run.start = start;
    run.first = std::max(0, job_.begin - start) / kPageTokens;
    const int last = std::min(kSoftmaxKeys, job_.end - start);
    run.count = (last + kPageTokens - 1) / kPageTokens - run.first;
    for (int i = 0; i < run.count; ++i) run.pages[i] = page(start / kPageTokens + run.first + i);
    return run;
  }

  const std::uint16_t* page(int index) const {
    return job_.pool + static_cast<std::size_t>(job_.pages[index]) * job_.page_stride;
  }

  template <int R>
  void gather(int row) {
    float* to = queries_ + static_cast<std::size_t>(row) * d_;
    for (int r = 0; r < R; ++r) {
      const int t = (row + r) / job_.group, g = (row + r) % job_.group;
      const float* from = job_.q + static_cast<std::size_t>(t) * job_.q_stride + g * d_;
      for (int i = 0; i < d_; ++i) to[i * R + r] = from[i];
    }
  }

  void score(const Run& run) {
    if (!copies_) {
      for_groups([&](int row, auto r) { direct_scores<r>(run, row); });
      return;
    }
    for (int i = 0; i < run.count; ++i) {
      V::widen(run.pages[i], d_ * kPageTokens, keys_);
      for_groups([&](int row, auto r) { scores<r, 1>(&keys_, row, run.first + i); });
    }
  }

  // Few rows: several pages at once, so that enough sums are under way to hide the latency of an addition.
  template <int R>
  void direct_scores(const Run& run, int row) {
    constexpr int kPages = R <= 3 ? V::kScoreRows / 6 : 1;
    int i = 0;
    for (; i + kPages <= run.count; i += kPages) {
      prefetch(run, i, kPages);
      scores<R, kPages>(run.pages + i, row, run.first + i);
    }
    for (; i < run.count; ++i) {
      prefetch(run, i, 1);
      scores<R, 1>(run.pages + i, row, run.first + i);
    }
  }

  // The pages that the next run has in the place of these; pages lie apart, where no hardware prefetcher follows.
  void prefetch(const Run& run, int first, int count) const {
    for (int i = first; i < first + count; ++i) {
      const int next = run.start / kPageTokens + run.first + i + kRunPages;
      if (next * kPageTokens >= job_.end) return;
      const char* at = reinterpret_cast<const char*>(page(next));
      for (int byte = 0; byte < 4 * kPageTokens * d_; byte += 64) V::prefetch(at + byte);
    }
  }

  // scores[row + r][key] = q . k of kPages pages, the first of which is page `first` of the run; K is [head_size][16].
  template <int R, int kPages, typename K>
  void scores(const K* const* pages, int row, int first) {
    T acc[kPages][R][kVectors];
#pragma GCC unroll 24
    for (int p = 0; p < kPages; ++p)
#pragma GCC unroll 24
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) acc[p][r][v] = V::zero();
    const float* q = queries_ + static_cast<std::size_t>(row) * d_;
    for (int i = 0; i < d_; ++i, q += R) {
#pragma GCC unroll 4
      for (int p = 0; p < kPages; ++p) {
        T k[kVectors];
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) k[v] = V::load(pages[p] + i * kPageTokens + v * V::kWidth);
#pragma GCC unroll 24
        for (int r = 0; r < R; ++r) {
          const T one = V::broadcast(q + r);
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) acc[p][r][v] = V::fma(one, k[v], acc[p][r][v]);
        }
      }
    }
    float* out = scores_ + static_cast<std::size_t>(row) * kSoftmaxKeys + first * kPageTokens;
#pragma GCC unroll 24
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int p = 0; p < kPages; ++p)
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v)
          V::store(out + r * kSoftmaxKeys + p * kPageTokens + v * V::kWidth, acc[p][r][v]);
  }

  // Turns a row's scores into exp(score - max), zero where not visible; updates weight and max; returns the factor that
  // what was summed before is to be multiplied by.
  float soften(const Run& run, int row) {
    float* scores = scores_ + static_cast<std::size_t>(row) * kSoftmaxKeys;
    const int position = job_.position + row / job_.group;
    const int begin = std::max(job_.begin, job_.window > 0 ? std::max(0, position - job_.window + 1) : 0);
    const int low = std::max(0, begin - run.start);
    const int high = std::min({run.start + kSoftmaxKeys, position + 1, job_.end}) - run.start;
    const int from = run.first * kPageTokens, to = from + run.count * kPageTokens;
    if (low >= high) {
      std::fill(scores + from, scores + to, 0.0f);
      return 1.0f;
    }
    T top = V::set(kNone);
    for (int key = from; key < to; key += V::kWidth) {
      T s = V::load(scores + key);
      if (key < low || key + V::kWidth > high) {
        s = V::only(s, low - key, high - key, kNone);
        V::store(scores + key, s);
      }
      top = V::max(top, s);
    }
    const float before = job_.max[row];
    const float largest = std::max(before, V::horizontal_max(top));
    const T shift = V::set(largest);
    T total = V::zero();
    for (int key = from; key < to; key += V::kWidth) {
      const T e = V::exp(V::sub(V::load(scores + key), shift));  // exp(-inf) is 0
      V::store(scores + key, e);
      total = V::add(total, e);
    }
    const float factor = job_.weight[row] > 0 ? V::exp_one(before - largest) : 0.0f;
    job_.max[row] = largest;
    job_.weight[row] = job_.weight[row] * factor + V::horizontal_sum(total);
    return factor;
  }

  void accumulate(const Run& run, const float* factors) {
    if (copies_)
      for (int i = 0; i < run.count; ++i)
        V::widen(run.pages[i] + d_ * kPageTokens, d_ * kPageTokens, values_ + i * d_ * kPageTokens);
    int row = 0;
    for (; row + V::kSumRows <= rows_; row += V::kSumRows) sum_rows<V::kSumRows>(run, row, factors);
    switch (rows_ - row) {
      case 5:
        return sum_rows<5>(run, row, factors);
      case 4:
        return sum_rows<4>(run, row, factors);
      case 3:
        return sum_rows<3>(run, row, factors);
      case 2:
        return sum_rows<2>(run, row, factors);
      case 1:
        return sum_rows<1>(run, row, factors);
      default:
        return;
    }
  }

  template <int R>
  void sum_rows(const Run& run, int row, const float* factors) {
    constexpr int kColumns = V::kSumVectors * V::kWidth;
    int column = 0;
    for (; column + kColumns <= d_; column += kColumns) sums<R, V::kSumVectors>(run, row, column, factors);
    if constexpr (V::kSumVectors > 1)  // head sizes are multiples of 16
      for (; column < d_; column += kPageTokens) sums<R, kVectors>(run, row, column, factors);
  }

  // sum_r[column ...] = sum_r * factor_r + sum over keys of p_r[key] v_key, in order of keys; V is [key][head_size].
  template <int R, int C>
  void sums(const Run& run, int row, int column, const float* factors) {
    float* sum = job_.sum + static_cast<std::size_t>(row) * d_ + column;
    const float* p = scores_ + static_cast<std::size_t>(row) * kSoftmaxKeys + run.first * kPageTokens;
    T acc[R][C];
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const T factor = V::set(factors[row + r]);
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) acc[r][c] = V::mul(V::load(sum + r * d_ + c * V::kWidth), factor);
    }
    const auto add_keys = [&](const auto* values, int count) {
      for (int key = 0; key < count; ++key, ++p, values += d_) {
        T v[C];
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) v[c] = V::load(values + c * V::kWidth);
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r) {
          const T one = V::broadcast(p + r * kSoftmaxKeys);
#pragma GCC unroll 4
          for (int c = 0; c < C; ++c) acc[r][c] = V::fma(one, v[c], acc[r][c]);
        }
      }
    };
    if (copies_)
      add_keys(values_ + column, run.count * kPageTokens);
    else
      for (int i = 0; i < run.count; ++i) add_keys(run.pages[i] + d_ * kPageTokens + column, kPageTokens);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) V::store(sum + r * d_ + c * V::kWidth, acc[r][c]);
  }

  const AttentionJob& job_;
  const int d_, rows_;
  const bool copies_;
  float *queries_, *scores_, *keys_, *values_;
};

}  // namespace
}  // namespace sixfold
