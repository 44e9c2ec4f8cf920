#include "kv_page.hpp"

#include <cmath>
#include <cstring>
#include <stdexcept>

#include "half.hpp"
#include "kernels.hpp"

namespace sixfold {
namespace {

std::uint16_t* halves(std::uint8_t* at) { return reinterpret_cast<std::uint16_t*>(at); }
const std::uint16_t* halves(const std::uint8_t* at) { return reinterpret_cast<const std::uint16_t*>(at); }

// Where a token's pairs begin in an int8 page's keys; they lie 2 * kPageTokens bytes apart.
constexpr std::size_t key_pair(int token) { return 2 * static_cast<std::size_t>(token); }
// Where its elements begin among the values; they lie 2 bytes apart.
constexpr std::size_t value_element(int token, int head_size) {
  return static_cast<std::size_t>(token / 2 * 2) * head_size + token % 2;
}

}  // namespace

KvLayout::KvLayout(const Header& header, const std::vector<KvFormat>& formats) : head_size_(header.head_size) {
  if (formats.size() != 1 && formats.size() != header.layers)
    throw std::invalid_argument("KV formats: one, or one a layer");
  for (std::uint32_t layer = 0; layer < header.layers; ++layer) {
    const KvFormat format = formats.size() == 1 ? formats[0] : formats[layer];
    if (static_cast<std::uint32_t>(format) >= kKvFormats) throw std::invalid_argument("unknown KV format");
    formats_.push_back(format);
    offsets_.push_back(page_bytes_);
    page_bytes_ += header.kv_heads * kv_head_bytes(format, head_size_);
  }
}

void rotate_head(float* values, int head_size) {
  const int block = head_size & -head_size;
  const float scale = 1.0f / std::sqrt(static_cast<float>(block));
  for (int half = 1; half < block; half *= 2)
    for (int first = 0; first < head_size; first += 2 * half)
      for (int i = first; i < first + half; ++i) {
        const float a = values[i], b = values[i + half];
        values[i] = a + b;
        values[i + half] = a - b;
      }
  for (int i = 0; i < head_size; ++i) values[i] *= scale;
}

void write_key(const Kernels& kernels, KvFormat format, int head_size, int token, const float* key,
               std::uint8_t* page) {
  if (format == KvFormat::kF16) return kernels.to_f16(key, head_size, halves(page) + token, kPageTokens);
  std::int8_t q[kMaxHeadSize];
  halves(page + Int8Page(head_size).key_scales())[token] = kernels.to_int8(key, head_size, q);
  std::int8_t* to = reinterpret_cast<std::int8_t*>(page) + key_pair(token);
  for (int i = 0; i < head_size; i += 2, to += 2 * kPageTokens) {
    to[0] = q[i];
    to[1] = q[i + 1];
  }
}

void write_value(const Kernels& kernels, KvFormat format, int head_size, int token, const float* value,
                 std::uint8_t* page) {
  if (format == KvFormat::kF16)
    return kernels.to_f16(value, head_size, halves(page) + (kPageTokens + token) * head_size, 1);
  const Int8Page layout(head_size);
  std::int8_t q[kMaxHeadSize];
  halves(page + layout.value_scales())[token] = kernels.to_int8(value, head_size, q);
  std::int8_t* to = reinterpret_cast<std::int8_t*>(page + layout.values()) + value_element(token, head_size);
  for (int i = 0; i < head_size; ++i) to[2 * i] = q[i];
}

void read_key(KvFormat format, int head_size, int token, const std::uint8_t* page, float* key) {
  if (format == KvFormat::kF16) {
    const std::uint16_t* from = halves(page) + token;
    for (int i = 0; i < head_size; ++i) key[i] = f16_to_f32(from[i * kPageTokens]);
    return;
  }
  const float scale = f16_to_f32(halves(page + Int8Page(head_size).key_scales())[token]);
  const std::int8_t* from = reinterpret_cast<const std::int8_t*>(page) + key_pair(token);
  for (int i = 0; i < head_size; i += 2, from += 2 * kPageTokens) {
    key[i] = scale * from[0];
    key[i + 1] = scale * from[1];
  }
}

void copy_key(KvFormat format, int head_size, int from, const std::uint8_t* from_page, int to, std::uint8_t* to_page) {
  if (format == KvFormat::kF16) {
    for (int i = 0; i < head_size; ++i)
      halves(to_page)[i * kPageTokens + to] = halves(from_page)[i * kPageTokens + from];
    return;
  }
  const std::size_t scales = Int8Page(head_size).key_scales();
  halves(to_page + scales)[to] = halves(from_page + scales)[from];
  for (int i = 0; i < head_size / 2; ++i)
    std::memcpy(to_page + key_pair(to) + 2 * kPageTokens * i, from_page + key_pair(from) + 2 * kPageTokens * i, 2);
}

void copy_value(KvFormat format, int head_size, int from, const std::uint8_t* from_page, int to,
                std::uint8_t* to_page) {
  if (format == KvFormat::kF16) {
    std::memmove(halves(to_page) + (kPageTokens + to) * head_size, halves(from_page) + (kPageTokens + from) * head_size,
                 sizeof(std::uint16_t) * head_size);
    return;
  }
  const Int8Page layout(head_size);
  halves(to_page + layout.value_scales())[to] = halves(from_page + layout.value_scales())[from];
  const std::uint8_t* source = from_page + layout.values() + value_element(from, head_size);
  std::uint8_t* target = to_page + layout.values() + value_element(to, head_size);
  for (int i = 0; i < head_size; ++i) target[2 * i] = source[2 * i];
}

}  // namespace sixfold
