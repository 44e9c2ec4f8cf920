// Attention over pages for any vector width; see AttentionJob for layouts and the contract. An instruction set brings a
// `V` with its operations (avx2/attention.cpp, avx512/attention.cpp). Everything here is internal to the file that
// includes it, so that code compiled for one instruction set never stands in for another.
//
// Keys are taken in runs of kSoftmaxKeys. Rows (query heads of tokens) are taken as many at a time as registers hold
// sums for; the arithmetic of a row is the same however many there are.
//
//   scratch:  queries, a group of R rows as [head_size][R] | scores [rows][128] | K [head_size][16] | V
//   [128][head_size]
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
  using Word = typename V::Word;
  static constexpr int kStep = V::kStep;
  static constexpr int kVectors = kPageTokens / V::kWidth;  // of a page's keys

  // Where a run's keys or values come from: pages as they are, or copies in words that many rows share.
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
        queries_(reinterpret_cast<Word*>(job.scratch)),
        scores_(job.scratch + static_cast<std::size_t>(rows_) * d_),
        keys_(reinterpret_cast<Word*>(scores_ + static_cast<std::size_t>(rows_) * kSoftmaxKeys)),
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
      soften(run, factors);
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
    Word* to = queries_ + static_cast<std::size_t>(row) * (d_ / kStep);
    for (int r = 0; r < R; ++r) {
      const int t = (row + r) / job_.group, g = (row + r) % job_.group;
      const float* from = job_.q + static_cast<std::size_t>(t) * job_.q_stride + g * d_;
      for (int i = 0; i < d_ / kStep; ++i) to[i * R + r] = V::word(from + i * kStep);
    }
  }

  void score(const Run& run) {
    if (!copies_) {
      for_groups([&](int row, auto r) { direct_scores<r>(run, row); });
      return;
    }
    for (int i = 0; i < run.count; ++i) {
      copy(run.pages[i], d_, kPageTokens, keys_);
      for_groups([&](int row, auto r) { scores<r, 1>(&keys_, row, run.first + i); });
    }
  }

  // Words of `rows` rows of float16 [rows][width].
  static void copy(const std::uint16_t* from, int rows, int width, Word* to) {
    for (int row = 0; row < rows; row += kStep, from += kStep * width, to += width)
      for (int i = 0; i < width; i += V::kWidth) V::store(to + i, V::words(from + i, width));
  }

  // Words as they lie at `p`: in a copy, or in a page whose rows are `width` long.
  static T load(const Word* p, int) { return V::load_words(p); }
  static T load(const std::uint16_t* p, int width) { return V::words(p, width); }
  // How many of its elements such a row of words takes from where it lies.
  static constexpr int row_of_words(const Word*, int width) { return width; }
  static constexpr int row_of_words(const std::uint16_t*, int width) { return width * kStep; }

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

  // The pages that the next run has in the place of these, be it of this job or of the next split; pages lie apart,
  // where no hardware prefetcher follows.
  void prefetch(const Run& run, int first, int count) const {
    for (int i = first; i < first + count; ++i) {
      const int next = run.start / kPageTokens + run.first + i + kRunPages;
      if (next * kPageTokens >= job_.position + job_.tokens) return;
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
    const Word* q = queries_ + static_cast<std::size_t>(row) * (d_ / kStep);
    const int stride = row_of_words(pages[0], kPageTokens);
    for (int i = 0; i < d_ / kStep; ++i, q += R) {
#pragma GCC unroll 4
      for (int p = 0; p < kPages; ++p) {
        T k[kVectors];
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) k[v] = load(pages[p] + i * stride + v * V::kWidth, kPageTokens);
#pragma GCC unroll 24
        for (int r = 0; r < R; ++r) {
          const T one = V::broadcast(q + r);
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) acc[p][r][v] = V::multiply_add(one, k[v], acc[p][r][v]);
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

  void accumulate(const Run& run, const float* factors) {
    if (copies_)
      for (int i = 0; i < run.count; ++i)
        copy(run.pages[i] + d_ * kPageTokens, kPageTokens, d_, values_ + i * d_ * kPageTokens / kStep);
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
    const Word* p = reinterpret_cast<const Word*>(scores_ + static_cast<std::size_t>(row) * kSoftmaxKeys) +
                    run.first * kPageTokens / kStep;
    T acc[R][C];
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const T factor = V::set(factors[row + r]);
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) acc[r][c] = V::mul(V::load(sum + r * d_ + c * V::kWidth), factor);
    }
    const auto add_keys = [&](const auto* values, int count) {
      const int stride = row_of_words(values, d_);
      for (int i = 0; i < count / kStep; ++i, ++p, values += stride) {
        T v[C];
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) v[c] = load(values + c * V::kWidth, d_);
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r) {
          const T one = V::broadcast(p + r * kSoftmaxKeys);
#pragma GCC unroll 4
          for (int c = 0; c < C; ++c) acc[r][c] = V::multiply_add(one, v[c], acc[r][c]);
        }
      }
    };
    if (copies_)
      add_keys(static_cast<const Word*>(values_) + column, run.count * kPageTokens);
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
  Word* queries_;
  float* scores_;
  Word *keys_, *values_;
};

}  // namespace
}  // namespace sixfold
