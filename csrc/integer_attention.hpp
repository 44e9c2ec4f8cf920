// Attention over pages of integers for any vector width: 16-bit words of queries and probabilities times those that the
// 8 or 4 bits of keys and values become, summed in 32 bits, so that the order of additions is free. Scales
// (kv_page.hpp) come in once a score and once a probability.
//
//   score[r][key] = q_scale[r] * k_scale[key] * (sum_i q[r][i] k[i][key] + start)      |q| <= 32767, |k| <= 127
//   sum[r][i]    += p_scale[r] * (sum_key p[r][key] v[key][i] + start)                 p ~ exp(score - max) *
//   v_scale[key]
//
// Codes of int4 stand for code - 7.5: `start` is -7.5 times the sum of what they are multiplied with, 0 for int8.
// No sum leaves 32 bits: head sizes and runs of keys are at most 512, and 512 * 32767 * 127 < 2^31.
//
//   scratch:  queries, a group of R rows as [head_size / 2][R][2] | scores [rows][128] | q_scale, q_start [rows]
#pragma once

#include "kv_centre.hpp"
#include "kv_page.hpp"
#include "softmax_runs.hpp"

namespace sixfold {
namespace {

// How the words of a page are read. `kRows`: pairs of elements of a key, or vectors of elements of a value, that are
// read at once.
template <typename V>
struct Int8Words {
  using I = typename V::I;
  static constexpr KvFormat kFormat = KvFormat::kInt8;
  static constexpr float kZero = 0;
  static constexpr int kRows = 1;
  // Vector v of the keys' pairs i.
  static void keys(const std::uint8_t* page, int i, int v, I* words) {
    words[0] = V::extend(page + 2 * (i * kPageTokens + v * V::kWidth));
  }
  // Elements `column` and those after it of a pair of values.
  static void values(const std::uint8_t* pair, int column, I* words) { words[0] = V::extend(pair + 2 * column); }
  // Vectors of columns are summed in tiles: the fewest of one, where the c-th lies from the first, and how many tiles
  // lie in between.
  static constexpr int kFewest = kPageTokens / V::kWidth, kParts = 1;
  static constexpr int column(int c) { return c * V::kWidth; }
};

template <typename V>
struct Int4Words {
  using I = typename V::I;
  static constexpr KvFormat kFormat = KvFormat::kInt4;
  static constexpr float kZero = 7.5f;
  static constexpr int kRows = 2;
  static void keys(const std::uint8_t* page, int i, int v, I* words) {
    V::halves(page + i * kPageTokens + 2 * v * V::kWidth, words[0], words[1]);
  }
  static void values(const std::uint8_t* pair, int column, I* words) {
    V::halves(pair + column / kInt4Block * kInt4Block + 2 * (column % kInt4Block), words[0], words[1]);
  }
  static constexpr int kFewest = 2, kParts = kInt4Block / 2 / V::kWidth;
  static constexpr int column(int c) { return c / 2 * kInt4Block + c % 2 * (kInt4Block / 2); }
};

template <typename V, template <typename> typename Words>
class IntegerAttention : SoftmaxRuns<V> {
  using W = Words<V>;
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
  explicit IntegerAttention(const AttentionJob& job)
      : Base(job, job.scratch + static_cast<std::size_t>(job.tokens) * job.group * job.head_size),
        page_(W::kFormat, job.head_size),
        queries_(reinterpret_cast<Word*>(job.scratch)),
        query_scales_(scores_ + static_cast<std::size_t>(rows_) * kSoftmaxKeys),
        query_starts_(query_scales_ + rows_),
        centre_scores_(query_starts_ + rows_) {}

  void run() {
    this->clear();
    if (!job_.prepared) this->for_groups([&](int row, auto r) { this->template gather<r>(row); });
    this->for_runs([&](const Run& run) {
      if (job_.centre) score_centres(run);
      this->for_groups([&](int row, auto r) { this->template score<r>(run, row); });
      Weights weights;
      this->soften(run, weights.factors);
      weigh(run, weights);
      this->for_sum_groups([&](int row, auto r) { this->template sum_rows<r>(run, row, weights); });
    });
  }

 private:
  // Of each row in a run: what its sum so far is multiplied by; the scale of its probabilities; their correction.
  struct Weights {
    float factors[kMaxAttentionRows], scales[kMaxAttentionRows], starts[kMaxAttentionRows];
  };

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
      query_starts_[row + r] = start(q, d_);
    }
  }

  static T corrected(I sum, T start) {
    if constexpr (W::kZero == 0) return V::to_float(sum);
    return V::add(V::to_float(sum), start);
  }

  // What codes are to be corrected by when they are multiplied with `words`.
  static float start(const std::int16_t* words, int count) {
    if constexpr (W::kZero == 0) return 0;
    int sum = 0;
    for (int i = 0; i < count; ++i) sum += words[i];
    return -W::kZero * static_cast<float>(sum);
  }

  // Scores of the centres of the group of pages that the run is in.
  void score_centres(const Run& run) {
    const int group = run.start / (kPhasePages * kPageTokens);
    if (group == centred_) return;
    centred_ = group;
    const float* phases = job_.phases + static_cast<std::size_t>(group) * d_ * kPhasePages;
    this->for_groups([&](int row, auto r) { this->template group_centres<r>(phases, row); });
  }

  template <int R>
  void group_centres(const float* phases, int row) {
    constexpr int kVectors = kPhasePages / V::kWidth;
    const float* centre[R];
    T acc[R][kVectors];
#pragma GCC unroll 24
    for (int r = 0; r < R; ++r) {
      const int t = (row + r) / job_.group, g = (row + r) % job_.group;
      centre[r] = job_.centre + static_cast<std::size_t>(t) * job_.q_stride + g * d_;
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) acc[r][v] = V::zero();
    }
    for (int i = 0; i < d_; ++i, phases += kPhasePages)
#pragma GCC unroll 24
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v)
          acc[r][v] = V::multiply_add(V::set(centre[r][i]), V::load(phases + v * V::kWidth), acc[r][v]);
#pragma GCC unroll 24
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) V::store(centre_scores_ + (row + r) * kPhasePages + v * V::kWidth, acc[r][v]);
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
    for (int i = 0; i < d_ / 2; i += W::kRows, q += W::kRows * R) {
#pragma GCC unroll 4
      for (int p = 0; p < kPages; ++p) {
        V::prefetch(ahead[p] + 64 * (i / W::kRows));  // evenly, so that requests to memory never pile up
        I k[kVectors][W::kRows];
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) W::keys(pages[p], i, v, k[v]);
#pragma GCC unroll 2
        for (int w = 0; w < W::kRows; ++w)
#pragma GCC unroll 24
          for (int r = 0; r < R; ++r) {
            const auto one = V::pair(q + w * R + r);
#pragma GCC unroll 2
            for (int v = 0; v < kVectors; ++v) V::add_products(acc[p][r][v], one, k[v][w]);
          }
      }
    }
    float* out = scores_ + static_cast<std::size_t>(row) * kSoftmaxKeys + (run.first + first) * kPageTokens;
    const int page = (run.start / kPageTokens + run.first + first) % kPhasePages;
#pragma GCC unroll 4
    for (int p = 0; p < kPages; ++p) {
      V::prefetch(ahead[p] + page_.key_scales());
      T scale[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) scale[v] = V::load_f16(halves(pages[p] + page_.key_scales()) + v * V::kWidth);
#pragma GCC unroll 24
      for (int r = 0; r < R; ++r) {
        const T own = V::set(query_scales_[row + r]), start = V::set(query_starts_[row + r]);
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
          T score = V::mul(corrected(acc[p][r][v], start), V::mul(scale[v], own));
          if constexpr (W::kZero != 0)
            if (job_.centre) score = V::add(score, V::set(centre_scores_[(row + r) * kPhasePages + page + p]));
          V::store(out + r * kSoftmaxKeys + p * kPageTokens + v * V::kWidth, score);
        }
      }
    }
  }

  // Probabilities times the scales of their values become int16, in the first half of their row, and a scale a row.
  void weigh(const Run& run, Weights& weights) {
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
      weights.scales[row] = peak / 32767.0f;
      std::int16_t* words = reinterpret_cast<std::int16_t*>(p);
      for (int key = from; key < to; key += V::kWidth) V::store_int16(words + key, V::mul(V::load(p + key), inverse));
      weights.starts[row] = start(words + from, to - from);
    }
  }

  template <int R>
  void sum_rows(const Run& run, int row, const Weights& weights) {
    int column = 0;
    sum_columns<R, V::kSumVectors>(run, row, column, weights);
    sum_columns<R, W::kFewest>(run, row, column, weights);  // head sizes are multiples of what that spans
  }

  template <int R, int C>
  void sum_columns(const Run& run, int row, int& column, const Weights& weights) {
    constexpr int kSpan = C * V::kWidth * W::kParts;
    for (; column + kSpan <= d_; column += kSpan)
      for (int part = 0; part < W::kParts; ++part) sums<R, C>(run, row, column + part * V::kWidth, weights);
  }

  template <int R, int C>
  void sums(const Run& run, int row, int column, const Weights& weights) {
    I acc[R][C];
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) acc[r][c] = V::no_sum();
    const Word* p = reinterpret_cast<const Word*>(scores_ + static_cast<std::size_t>(row) * kSoftmaxKeys) +
                    run.first * kPageTokens / 2;
    const std::size_t pair_bytes = 2 * d_ * kv_bits(W::kFormat) / 8;
    for (int page = 0; page < run.count; ++page) {
      const std::uint8_t* values = run.pages[page] + page_.values();
      for (int pair = 0; pair < kPageTokens / 2; ++pair, ++p, values += pair_bytes) {
        I v[C];
#pragma GCC unroll 4
        for (int c = 0; c < C; c += W::kRows) W::values(values, column + W::column(c), v + c);
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
      const T factor = V::set(weights.factors[row + r]), scale = V::set(weights.scales[row + r]);
      const T start = V::set(weights.starts[row + r]);
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) {
        float* at = sum + r * d_ + W::column(c);
        V::store(at, V::add(V::mul(V::load(at), factor), V::mul(corrected(acc[r][c], start), scale)));
      }
    }
  }

  const IntegerPage page_;
  Word* queries_;
  float *query_scales_, *query_starts_, *centre_scores_;
  int centred_ = -1;  // the group of pages that centre_scores_ [rows][kPhasePages] is of
};

template <typename V>
using Int8Attention = IntegerAttention<V, Int8Words>;
template <typename V>
using Int4Attention = IntegerAttention<V, Int4Words>;

}  // namespace
}  // namespace sixfold
