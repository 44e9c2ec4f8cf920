// Attention over float16 pages for any vector width: K [head_size][16], V [16][head_size]. An instruction set brings a
// `V` with its operations (avx2/attention.cpp, avx512/attention.cpp).
//
//   scratch:  queries, a group of R rows as [head_size][R] | scores [rows][128] | K [head_size][16] | V
//   [128][head_size]
#pragma once

#include "softmax_runs.hpp"

namespace sixfold {
namespace {

template <typename V>
class PagedAttention : SoftmaxRuns<V> {
  using Base = SoftmaxRuns<V>;
  using Base::d_;
  using Base::job_;
  using Base::kVectors;
  using Base::rows_;
  using Base::scores_;
  using typename Base::Run;
  using typename Base::T;
  using Word = typename V::Word;
  static constexpr int kStep = V::kStep;

 public:
  explicit PagedAttention(const AttentionJob& job)
      : Base(job, job.scratch + static_cast<std::size_t>(job.tokens) * job.group * job.head_size),
        copies_(rows_ > V::kDirectRows),
        queries_(reinterpret_cast<Word*>(job.scratch)),
        keys_(reinterpret_cast<Word*>(scores_ + static_cast<std::size_t>(rows_) * kSoftmaxKeys)),
        values_(keys_ + static_cast<std::size_t>(d_) * kPageTokens) {}

  void run() {
    this->clear();
    if (!job_.prepared) this->for_groups([&](int row, auto r) { this->template gather<r>(row); });
    this->for_runs([&](const Run& run) {
      score(run);
      float factors[kMaxAttentionRows];
      this->soften(run, factors);
      accumulate(run, factors);
    });
  }

 private:
  static const std::uint16_t* halves(const std::uint8_t* page) { return reinterpret_cast<const std::uint16_t*>(page); }

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
      this->for_groups([&](int row, auto r) { this->template direct_scores<r>(run, row); });
      return;
    }
    for (int i = 0; i < run.count; ++i) {
      copy(halves(run.pages[i]), d_, kPageTokens, keys_);
      this->for_groups([&](int row, auto r) { this->template scores<r, 1>(&keys_, row, run.first + i); });
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
    const std::uint16_t* pages[kRunPages];
    for (int page = 0; page < run.count; ++page) pages[page] = halves(run.pages[page]);
    for (; i + kPages <= run.count; i += kPages) {
      prefetch(run, i, kPages);
      scores<R, kPages>(pages + i, row, run.first + i);
    }
    for (; i < run.count; ++i) {
      prefetch(run, i, 1);
      scores<R, 1>(pages + i, row, run.first + i);
    }
  }

  void prefetch(const Run& run, int first, int count) const {
    for (int i = first; i < first + count; ++i) {
      const char* ahead = this->page_ahead(run, i);
      if (ahead == reinterpret_cast<const char*>(run.pages[i])) return;
      for (std::size_t byte = 0; byte < job_.page_bytes; byte += 64) V::prefetch(ahead + byte);
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

  void accumulate(const Run& run, const float* factors) {
    if (copies_)
      for (int i = 0; i < run.count; ++i)
        copy(halves(run.pages[i]) + d_ * kPageTokens, kPageTokens, d_, values_ + i * d_ * kPageTokens / kStep);
    this->for_sum_groups([&](int row, auto r) { this->template sum_rows<r>(run, row, factors); });
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
      for (int i = 0; i < run.count; ++i) add_keys(halves(run.pages[i]) + d_ * kPageTokens + column, kPageTokens);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) V::store(sum + r * d_ + c * V::kWidth, acc[r][c]);
  }

  const bool copies_;
  Word* queries_;
  Word *keys_, *values_;
};

}  // namespace
}  // namespace sixfold
