// AVX2 attention over pages; see AttentionJob for layouts and the contract. Rows (query heads of tokens) are taken up
// to 6 at a time, so that a page's keys and values are converted to float32 once for all of them.
#include <immintrin.h>

#include <algorithm>
#include <limits>

#include "../kernels.hpp"
#include "math.hpp"

namespace sixfold::avx2 {
namespace {

constexpr int kMaxRows = 6;

struct Row {
  const float* q;
  float* sum;
  int index;      // row of the job
  int low, high;  // visible keys of the page
};

// scores[r][key] = q_r . k_key for the 16 keys of a page; K is [head_size][16].
template <int R>
void score(const Row* rows, const std::uint16_t* k, int head_size, float scores[][kPageTokens]) {
  __m256 acc[R][2];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = _mm256_setzero_ps();
  for (int i = 0; i < head_size; ++i, k += kPageTokens) {
    const __m256 k0 = load_f16(k), k1 = load_f16(k + 8);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const __m256 q = _mm256_broadcast_ss(rows[r].q + i);
      acc[r][0] = _mm256_fmadd_ps(q, k0, acc[r][0]);
      acc[r][1] = _mm256_fmadd_ps(q, k1, acc[r][1]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
    for (int h = 0; h < 2; ++h) _mm256_storeu_ps(scores[r] + 8 * h, acc[r][h]);
}

// Turns scores into exp(score - max), zero where not visible; updates weight and max; returns the factor for the sum.
float soften(const AttentionJob& job, const Row& row, float* scores) {
  const __m256 none = _mm256_set1_ps(-std::numeric_limits<float>::infinity());
  const __m256i low = _mm256_set1_epi32(row.low - 1), high = _mm256_set1_epi32(row.high);
  const __m256i keys = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  __m256 s[2];
  for (int h = 0; h < 2; ++h) {
    const __m256i key = _mm256_add_epi32(keys, _mm256_set1_epi32(8 * h));
    const __m256i seen = _mm256_and_si256(_mm256_cmpgt_epi32(key, low), _mm256_cmpgt_epi32(high, key));
    s[h] = _mm256_blendv_ps(none, _mm256_loadu_ps(scores + 8 * h), _mm256_castsi256_ps(seen));
  }
  const float before = job.max[row.index];
  const float largest = std::max(before, horizontal_max(_mm256_max_ps(s[0], s[1])));
  const __m256 shift = _mm256_set1_ps(largest);
  __m256 total = _mm256_setzero_ps();
  for (int h = 0; h < 2; ++h) {
    const __m256 e = exp_ps(_mm256_sub_ps(s[h], shift));  // exp(-inf) is 0
    _mm256_storeu_ps(scores + 8 * h, e);
    total = _mm256_add_ps(total, e);
  }
  const float factor = job.weight[row.index] > 0 ? _mm256_cvtss_f32(exp_ps(_mm256_set1_ps(before - largest))) : 0.0f;
  job.max[row.index] = largest;
  job.weight[row.index] = job.weight[row.index] * factor + horizontal_sum(total);
  return factor;
}

// sum_r = sum_r * factor_r + sum over keys of p_r[key] v_key; V is [16][head_size].
template <int R>
void accumulate(const Row* rows, const float* factors, float scores[][kPageTokens], const std::uint16_t* v,
                int head_size) {
  for (int i = 0; i < head_size; i += 16) {
    __m256 acc[R][2];
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
      for (int h = 0; h < 2; ++h)
        acc[r][h] = _mm256_mul_ps(_mm256_loadu_ps(rows[r].sum + i + 8 * h), _mm256_set1_ps(factors[r]));
    for (int key = 0; key < kPageTokens; ++key) {
      const std::uint16_t* at = v + static_cast<std::size_t>(key) * head_size + i;
      const __m256 v0 = load_f16(at), v1 = load_f16(at + 8);
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) {
        const __m256 p = _mm256_broadcast_ss(scores[r] + key);
        acc[r][0] = _mm256_fmadd_ps(p, v0, acc[r][0]);
        acc[r][1] = _mm256_fmadd_ps(p, v1, acc[r][1]);
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
      for (int h = 0; h < 2; ++h) _mm256_storeu_ps(rows[r].sum + i + 8 * h, acc[r][h]);
  }
}

template <int R>
void page_rows(const AttentionJob& job, const Row* rows, const std::uint16_t* page) {
  float scores[R][kPageTokens];
  float factors[R];
  score<R>(rows, page, job.head_size, scores);
  for (int r = 0; r < R; ++r) factors[r] = soften(job, rows[r], scores[r]);
  accumulate<R>(rows, factors, scores, page + static_cast<std::size_t>(job.head_size) * kPageTokens, job.head_size);
}

void page_some(const AttentionJob& job, const Row* rows, int count, const std::uint16_t* page) {
  switch (count) {
    case 1:
      return page_rows<1>(job, rows, page);
    case 2:
      return page_rows<2>(job, rows, page);
    case 3:
      return page_rows<3>(job, rows, page);
    case 4:
      return page_rows<4>(job, rows, page);
    case 5:
      return page_rows<5>(job, rows, page);
    default:
      return page_rows<6>(job, rows, page);
  }
}

}  // namespace

void attention(const AttentionJob& job) {
  const int all = job.tokens * job.group;
  std::fill_n(job.sum, static_cast<std::size_t>(all) * job.head_size, 0.0f);
  std::fill_n(job.weight, all, 0.0f);
  std::fill_n(job.max, all, -std::numeric_limits<float>::infinity());
  for (int start = job.begin; start < job.end; start += kPageTokens) {
    const std::uint16_t* page = job.pool + static_cast<std::size_t>(job.pages[start / kPageTokens]) * job.page_stride;
    Row rows[kMaxRows];
    int count = 0;
    for (int t = 0; t < job.tokens; ++t) {
      const int position = job.position + t;
      const int first = job.window > 0 ? std::max(0, position - job.window + 1) : 0;
      const int low = std::max(0, first - start), high = std::min(kPageTokens, position + 1 - start);
      if (low >= high) continue;
      for (int g = 0; g < job.group; ++g) {
        const int index = t * job.group + g;
        rows[count++] = {job.q + static_cast<std::size_t>(t) * job.q_stride + g * job.head_size,
                         job.sum + static_cast<std::size_t>(index) * job.head_size, index, low, high};
        if (count == kMaxRows) {
          page_some(job, rows, count, page);
          count = 0;
        }
      }
    }
    if (count > 0) page_some(job, rows, count, page);
  }
}

}  // namespace sixfold::avx2
