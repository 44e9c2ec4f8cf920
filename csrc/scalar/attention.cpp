// Portable attention over pages; see AttentionJob for layouts and the contract.
#include <algorithm>
#include <cmath>
#include <limits>

#include "../half.hpp"
#include "../kernels.hpp"
#include "../kv_page.hpp"

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

// The keys and values of a page as float32: [head_size][16], [16][head_size].
void read_f16(const std::uint8_t* page, int head_size, float* floats) {
  const auto* halves = reinterpret_cast<const std::uint16_t*>(page);
  for (int i = 0; i < 2 * kPageTokens * head_size; ++i) floats[i] = f16_to_f32(halves[i]);
}

void read_int8(const std::uint8_t* page, int head_size, float* floats) {
  const Int8Page layout(head_size);
  const auto* keys = reinterpret_cast<const std::int8_t*>(page);
  const auto* values = reinterpret_cast<const std::int8_t*>(page + layout.values());
  const auto* key_scales = reinterpret_cast<const std::uint16_t*>(page + layout.key_scales());
  const auto* value_scales = reinterpret_cast<const std::uint16_t*>(page + layout.value_scales());
  float* value_floats = floats + kPageTokens * head_size;
  for (int token = 0; token < kPageTokens; ++token)
    for (int i = 0; i < head_size; ++i) {
      const std::int8_t key = keys[2 * (i / 2 * kPageTokens + token) + i % 2];
      floats[i * kPageTokens + token] = f16_to_f32(key_scales[token]) * static_cast<float>(key);
      const std::int8_t value = values[2 * (token / 2 * head_size + i) + token % 2];
      value_floats[token * head_size + i] = f16_to_f32(value_scales[token]) * static_cast<float>(value);
    }
}

template <typename Read>
void attend(const AttentionJob& job, Read read) {
  const int rows = job.tokens * job.group;
  std::fill_n(job.sum, static_cast<std::size_t>(rows) * job.head_size, 0.0f);
  std::fill_n(job.weight, rows, 0.0f);
  std::fill_n(job.max, rows, -std::numeric_limits<float>::infinity());
  float floats[2 * kPageTokens * kMaxHeadSize];
  for (int start = job.begin; start < job.end; start += kPageTokens) {
    read(job.pool + static_cast<std::size_t>(job.pages[start / kPageTokens]) * job.page_stride, job.head_size, floats);
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

}  // namespace

void attention(const AttentionJob& job) { attend(job, read_f16); }
void int8_attention(const AttentionJob& job) { attend(job, read_int8); }

}  // namespace sixfold::scalar
