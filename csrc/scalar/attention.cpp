// Portable attention over pages; see AttentionJob for layouts and the contract.
#include <algorithm>
#include <cmath>
#include <limits>

#include "../half.hpp"
#include "../kernels.hpp"

namespace sixfold::scalar {

namespace {

// Folds the 16 keys of one page into row state (sum, weight, max). [low, high) are the visible keys of the page,
// `page` its keys [head_size][16] and values [16][head_size] as float32.
void page_row(const AttentionJob& job, const float* q, const float* page, int low, int high, int row) {
  const int d = job.head_size;
  float scores[kPageTokens] = {};
  for (int i = 0; i < d; ++i)
    for (int key = 0; key < kPageTokens; ++key) scores[key] += q[i] * page[i * kPageTokens + key];
  float largest = job.max[row];
  for (int key = low; key < high; ++key) largest = std::max(largest, scores[key]);
  const float correction = job.weight[row] > 0 ? std::exp(job.max[row] - largest) : 0.0f;
  float weight = 0;
  for (int key = 0; key < kPageTokens; ++key) {
    scores[key] = key >= low && key < high ? std::exp(scores[key] - largest) : 0.0f;
    weight += scores[key];
  }
  job.max[row] = largest;
  job.weight[row] = job.weight[row] * correction + weight;
  float* sum = job.sum + static_cast<std::size_t>(row) * d;
  const float* v = page + static_cast<std::size_t>(d) * kPageTokens;
  for (int i = 0; i < d; ++i) sum[i] *= correction;
  for (int key = 0; key < kPageTokens; ++key)
    for (int i = 0; i < d; ++i) sum[i] += scores[key] * v[key * d + i];
}

}  // namespace

void attention(const AttentionJob& job) {
  const int rows = job.tokens * job.group;
  std::fill_n(job.sum, static_cast<std::size_t>(rows) * job.head_size, 0.0f);
  std::fill_n(job.weight, rows, 0.0f);
  std::fill_n(job.max, rows, -std::numeric_limits<float>::infinity());
  const int values = 2 * kPageTokens * job.head_size;
  float floats[2 * kPageTokens * kMaxHeadSize];
  for (int start = job.begin; start < job.end; start += kPageTokens) {
    const std::uint16_t* page = job.pool + static_cast<std::size_t>(job.pages[start / kPageTokens]) * job.page_stride;
    for (int i = 0; i < values; ++i) floats[i] = f16_to_f32(page[i]);
    for (int t = 0; t < job.tokens; ++t) {
      const int position = job.position + t;
      const int first = job.window > 0 ? std::max(0, position - job.window + 1) : 0;
      const int low = std::max(0, first - start), high = std::min(kPageTokens, position + 1 - start);
      if (low >= high) continue;
      for (int g = 0; g < job.group; ++g)
        page_row(job, job.q + static_cast<std::size_t>(t) * job.q_stride + g * job.head_size, floats, low, high,
                 t * job.group + g);
    }
  }
}

}  // namespace sixfold::scalar
