// Portable attention over pages; see AttentionJob for layouts and the contract.
#include <algorithm>
#include <cmath>
#include <limits>

#include "../half.hpp"
#include "../kernels.hpp"
#include "../kv_centre.hpp"
#include "../kv_page.hpp"

namespace sixfold::scalar {

namespace {

// Folds the 16 keys of one page into row state (sum, weight, max). [low, high) are the visible keys of the page,
// `centre` is added to their scores, `page` its keys [head_size][16] and values [16][head_size] as float32.
void page_row(const AttentionJob& job, const float* q, float centre, const float* page, int low, int high, int row) {
  const int d = job.head_size;
  float scores[kPageTokens];
  std::fill_n(scores, kPageTokens, centre);
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

// The pages of integers, by what they hold of token t: element i of a key or of a value.
template <typename Element>
void read_integers(KvFormat format, const std::uint8_t* page, int head_size, Element element, float* floats) {
  const IntegerPage layout(format, head_size);
  const auto* key_scales = reinterpret_cast<const std::uint16_t*>(page + layout.key_scales());
  const auto* value_scales = reinterpret_cast<const std::uint16_t*>(page + layout.value_scales());
  float* value_floats = floats + kPageTokens * head_size;
  for (int token = 0; token < kPageTokens; ++token)
    for (int i = 0; i < head_size; ++i) {
      floats[i * kPageTokens + token] = f16_to_f32(key_scales[token]) * element(page, i, token, false);
      value_floats[token * head_size + i] = f16_to_f32(value_scales[token]) * element(page, i, token, true);
    }
}

void read_int8(const std::uint8_t* page, int head_size, float* floats) {
  const auto element = [&](const std::uint8_t* at, int i, int token, bool value) {
    if (value) at += IntegerPage(KvFormat::kInt8, head_size).values();
    const int index = value ? 2 * (token / 2 * head_size + i) + token % 2 : 2 * (i / 2 * kPageTokens + token) + i % 2;
    return static_cast<float>(static_cast<std::int8_t>(at[index]));
  };
  read_integers(KvFormat::kInt8, page, head_size, element, floats);
}

void read_int4(const std::uint8_t* page, int head_size, float* floats) {
  const auto element = [&](const std::uint8_t* at, int i, int token, bool value) {
    if (value) at += IntegerPage(KvFormat::kInt4, head_size).values();
    const int index = value ? token / 2 * head_size + i / kInt4Block * kInt4Block + 2 * (i % kPageTokens) + token % 2
                            : 2 * (i / 4 * kPageTokens + token) + i % 2;
    const bool high = value ? i % kInt4Block >= kPageTokens : i % 4 >= 2;
    return static_cast<float>(high ? at[index] >> 4 : at[index] & 15) - 7.5f;
  };
  read_integers(KvFormat::kInt4, page, head_size, element, floats);
}

// What all scores of a page are more by, for the query at `at`.
float centre_score(const AttentionJob& job, std::size_t at, int page) {
  if (!job.centre) return 0;
  const float* phases =
      job.phases + static_cast<std::size_t>(page / kPhasePages) * job.head_size * kPhasePages + page % kPhasePages;
  float score = 0;
  for (int i = 0; i < job.head_size; ++i) score += job.centre[at + i] * phases[i * kPhasePages];
  return score;
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
      for (int g = 0; g < job.group; ++g) {
        const std::size_t at = static_cast<std::size_t>(t) * job.q_stride + g * job.head_size;
        page_row(job, job.q + at, centre_score(job, at, start / kPageTokens), floats, low, high, t * job.group + g);
      }
    }
  }
}

}  // namespace

void attention(const AttentionJob& job) { attend(job, read_f16); }
void int8_attention(const AttentionJob& job) { attend(job, read_int8); }
void int4_attention(const AttentionJob& job) { attend(job, read_int4); }

}  // namespace sixfold::scalar
