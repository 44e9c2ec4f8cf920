// Attention over int8 pages for any vector width, in integers: 16-bit words of queries and probabilities times the
// 8-bit ones of keys and values, summed in 32 bits, so that the order of additions is free and nothing is converted but
// by sign extension. Scales (kv_page.hpp) come in once a score and once a probability.
//
//   score[r][key] = q_scale[r] * k_scale[key] * sum_i q[r][i] k[i][key]              |q| <= 32767, |k| <= 127
//   sum[r][i]    += p_scale[r] * sum_key p[r][key] v[key][i]                         p ~ exp(score - max) *
//   v_scale[key]
//
// No sum leaves 32 bits: head sizes and runs of keys are at most 512, and 512 * 32767 * 127 < 2^31.
//
//   scratch:  queries, a group of R rows as [head_size / 2][R][2] | scores [rows][128] | q_scale [rows]
#pragma once

#include "kv_page.hpp"
#include "softmax_runs.hpp"

namespace sixfold {
namespace {

template <typename V>
class Int8Attention : SoftmaxRuns<V> {
  using Base = SoftmaxRuns<V>;
  using Base::d_;
  using Base::job_;
  using Base::kVectors;
  using Base::rows_;
  using Base::scores_;
  using typename Base::Run;
  using typename Base::T;
  using I = typename V::I;
  using Word = std::uint32_t;  // a pair of int16

 public:
  explicit Int8Attention(const AttentionJob& job)
      : Base(job, job.scratch + static_cast<std::size_t>(job.tokens) * job.group * job.head_size),
        page_(job.head_size),
        queries_(reinterpret_cast<Word*>(job.scratch)),
        query_scales_(scores_ + static_cast<std::size_t>(rows_) * kSoftmaxKeys) {}

  void run() {
    this->clear();
    if (!job_.prepared) this->for_groups([&](int row, auto r) { this->template gather<r>(row); });
    this->for_runs([&](const Run& run) {
      this->for_groups([&](int row, auto r) { this->template score<r>(run, row); });
      float factors[kMaxAttentionRows], scales[kMaxAttentionRows];
      this->soften(run, factors);
      weigh(run, scales);
      accumulate(run, factors, scales);
    });
  }

 private:
  static const std::int8_t* bytes(const std::uint8_t* at) { return reinterpret_cast<const std::int8_t*>(at); }
  static const std::uint16_t* halves(const std::uint8_t* at) { return reinterpret_cast<const std::uint16_t*>(at); }
  static Word pair(int low, int high) { return (static_cast<Word>(low) & 0xffff) | static_cast<Word>(high) << 16; }

  template <int R>
  void gather(int row) {
    Word* to = queries_ + static_cast<std::size_t>(row) * (d_ / 2);
    for (int r = 0; r < R; ++r) {
      const int t = (row + r) / job_.group, g = (row + r) % job_.group;
      const float* from = job_.q + static_cast<std::size_t>(t) * job_.q_stride + g * d_;
      T top = V::zero();
      for (int i = 0; i < d_; i += V::kWidth) {
        const T value = V::load(from + i);
        top = V::max(top, V::max(value, V::sub(V::zero(), value)));
      }
      const float peak = V::horizontal_max(top);
      const float inverse = peak > 0 ? 32767.0f / peak : 0.0f;
      query_scales_[row + r] = peak / 32767.0f;
      alignas(64) std::int16_t q[kMaxHeadSize];
      for (int i = 0; i < d_; i += V::kWidth) V::store_int16(q + i, V::mul(V::load(from + i), V::set(inverse)));
      for (int i = 0; i < d_ / 2; ++i) to[i * R + r] = pair(q[2 * i], q[2 * i + 1]);
    }
  }

  // Few rows: several pages at once, so that enough sums are under way to hide the latency of an addition.
  template <int R>
  void score(const Run& run, int row) {
    constexpr int kPages = R <= 3 ? V::kScoreRows / 6 : 1;
    int i = 0;
    for (; i + kPages <= run.count; i += kPages) scores<R, kPages>(run, i, row);
    for (; i < run.count; ++i) scores<R, 1>(run, i, row);
  }

  template <int R, int kPages>
  void scores(const Run& run, int first, int row) {
    const std::uint8_t* const* pages = run.pages + first;
    const char* ahead[kPages];
#pragma GCC unroll 4
    for (int p = 0; p < kPages; ++p) ahead[p] = this->page_ahead(run, first + p);
    I acc[kPages][R][kVectors];
#pragma GCC unroll 24
    for (int p = 0; p < kPages; ++p)
#pragma GCC unroll 24
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) acc[p][r][v] = V::no_sum();
    const Word* q = queries_ + static_cast<std::size_t>(row) * (d_ / 2);
    for (int i = 0; i < d_ / 2; ++i, q += R) {
#pragma GCC unroll 4
      for (int p = 0; p < kPages; ++p) {
        V::prefetch(ahead[p] + 64 * i);  // evenly, so that requests to memory never pile up
        I k[kVectors];
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) k[v] = V::extend(bytes(pages[p]) + 2 * (i * kPageTokens + v * V::kWidth));
#pragma GCC unroll 24
        for (int r = 0; r < R; ++r) {
          const auto one = V::pair(q + r);
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) V::add_products(acc[p][r][v], one, k[v]);
        }
      }
    }
    float* out = scores_ + static_cast<std::size_t>(row) * kSoftmaxKeys + (run.first + first) * kPageTokens;
#pragma GCC unroll 4
    for (int p = 0; p < kPages; ++p) {
      V::prefetch(ahead[p] + 32 * d_);  // scales
      T scale[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) scale[v] = V::load_f16(halves(pages[p] + page_.key_scales()) + v * V::kWidth);
#pragma GCC unroll 24
      for (int r = 0; r < R; ++r) {
        const T own = V::set(query_scales_[row + r]);
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v)
          V::store(out + r * kSoftmaxKeys + p * kPageTokens + v * V::kWidth,
                   V::mul(V::to_float(acc[p][r][v]), V::mul(scale[v], own)));
      }
    }
  }

  // Probabilities times the scales of their values become int16, in the first half of their row, and a scale a row.
  void weigh(const Run& run, float* scales) {
    const int from = run.first * kPageTokens, to = from + run.count * kPageTokens;
    float value_scales[kSoftmaxKeys];
    for (int i = 0; i < run.count; ++i)
      for (int v = 0; v < kVectors; ++v)
        V::store(value_scales + from + i * kPageTokens + v * V::kWidth,
                 V::load_f16(halves(run.pages[i] + page_.value_scales()) + v * V::kWidth));
    for (int row = 0; row < rows_; ++row) {
      float* p = scores_ + static_cast<std::size_t>(row) * kSoftmaxKeys;
      T top = V::zero();
      for (int key = from; key < to; key += V::kWidth) {
        const T weight = V::mul(V::load(p + key), V::load(value_scales + key));
        V::store(p + key, weight);
        top = V::max(top, weight);
      }
      const float peak = V::horizontal_max(top);
      const T inverse = V::set(peak > 0 ? 32767.0f / peak : 0.0f);
      scales[row] = peak / 32767.0f;
      std::int16_t* words = reinterpret_cast<std::int16_t*>(p);
      for (int key = from; key < to; key += V::kWidth) V::store_int16(words + key, V::mul(V::load(p + key), inverse));
    }
  }

  void accumulate(const Run& run, const float* factors, const float* scales) {
    int row = 0;
    for (; row + V::kSumRows <= rows_; row += V::kSumRows) sum_rows<V::kSumRows>(run, row, factors, scales);
    switch (rows_ - row) {
      case 5:
        return sum_rows<5>(run, row, factors, scales);
      case 4:
        return sum_rows<4>(run, row, factors, scales);
      case 3:
        return sum_rows<3>(run, row, factors, scales);
      case 2:
        return sum_rows<2>(run, row, factors, scales);
      case 1:
        return sum_rows<1>(run, row, factors, scales);
      default:
        return;
    }
  }

  template <int R>
  void sum_rows(const Run& run, int row, const float* factors, const float* scales) {
    constexpr int kColumns = V::kSumVectors * V::kWidth;
    int column = 0;
    for (; column + kColumns <= d_; column += kColumns) sums<R, V::kSumVectors>(run, row, column, factors, scales);
    if constexpr (V::kSumVectors > 1)  // head sizes are multiples of 16
      for (; column < d_; column += kPageTokens) sums<R, kVectors>(run, row, column, factors, scales);
  }

  template <int R, int C>
  void sums(const Run& run, int row, int column, const float* factors, const float* scales) {
    I acc[R][C];
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) acc[r][c] = V::no_sum();
    const Word* p = reinterpret_cast<const Word*>(scores_ + static_cast<std::size_t>(row) * kSoftmaxKeys) +
                    run.first * kPageTokens / 2;
    for (int page = 0; page < run.count; ++page) {
      const std::int8_t* values = bytes(run.pages[page] + page_.values()) + 2 * column;
      for (int pair = 0; pair < kPageTokens / 2; ++pair, ++p, values += 2 * d_) {
        I v[C];
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) v[c] = V::extend(values + 2 * c * V::kWidth);
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r) {
          const auto one = V::pair(p + r * kSoftmaxKeys);
#pragma GCC unroll 4
          for (int c = 0; c < C; ++c) V::add_products(acc[r][c], one, v[c]);
        }
      }
    }
    float* sum = job_.sum + static_cast<std::size_t>(row) * d_ + column;
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const T factor = V::set(factors[row + r]), scale = V::set(scales[row + r]);
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) {
        float* at = sum + r * d_ + c * V::kWidth;
        V::store(at, V::add(V::mul(V::load(at), factor), V::mul(V::to_float(acc[r][c]), scale)));
      }
    }
  }

  const Int8Page page_;
  Word* queries_;
  float* query_scales_;
};

}  // namespace
}  // namespace sixfold
