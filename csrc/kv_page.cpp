#include "kv_page.hpp"

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

std::uint8_t two_codes(int low, int high) { return static_cast<std::uint8_t>(low | high << 4); }

}  // namespace

KvLayout::KvLayout(const Header& header, const std::vector<KvFormat>& formats) : head_size_(header.head_size) {
  if (formats.size() != 1 && formats.size() != header.layers)
    throw std::invalid_argument("KV formats: one, or one a layer");
  for (std::uint32_t layer = 0; layer < header.layers; ++layer) {
    const KvFormat format = formats.size() == 1 ? formats[0] : formats[layer];
    if (static_cast<std::uint32_t>(format) >= kKvFormats) throw std::invalid_argument("unknown KV format");
    formats_.push_back(format);
    offsets_.push_back(page_bytes_);
    if (format == KvFormat::kInt4 && head_size_ % kInt4Block != 0)
      throw std::invalid_argument("int4 KV needs a head size that is a multiple of 32");
    page_bytes_ += header.kv_heads * kv_head_bytes(format, head_size_);
  }
}

void write_key(const Kernels& kernels, KvFormat format, int head_size, int token, const float* key,
               std::uint8_t* page) {
  if (format == KvFormat::kF16) return kernels.to_f16(key, head_size, halves(page) + token, kPageTokens);
  std::uint16_t& scale = halves(page + IntegerPage(format, head_size).key_scales())[token];
  std::int8_t q[kMaxHeadSize];
  std::uint8_t* to = page + key_pair(token);
  if (format == KvFormat::kInt8) {
    scale = kernels.to_int8(key, head_size, q);
    for (int i = 0; i < head_size; i += 2, to += 2 * kPageTokens) {
      to[0] = static_cast<std::uint8_t>(q[i]);
      to[1] = static_cast<std::uint8_t>(q[i + 1]);
    }
    return;
  }
  scale = kernels.to_int4(key, head_size, q);
  for (int i = 0; i < head_size; i += 4, to += 2 * kPageTokens) {
    to[0] = two_codes(q[i], q[i + 2]);
    to[1] = two_codes(q[i + 1], q[i + 3]);
  }
}

void write_value(const Kernels& kernels, KvFormat format, int head_size, int token, const float* value,
                 std::uint8_t* page) {
  if (format == KvFormat::kF16)
    return kernels.to_f16(value, head_size, halves(page) + (kPageTokens + token) * head_size, 1);
  const IntegerPage layout(format, head_size);
  std::uint16_t& scale = halves(page + layout.value_scales())[token];
  std::int8_t q[kMaxHeadSize];
  const std::size_t pair_bytes = 2 * head_size * kv_bits(format) / 8;
  std::uint8_t* to = page + layout.values() + token / 2 * pair_bytes + token % 2;
  if (format == KvFormat::kInt8) {
    scale = kernels.to_int8(value, head_size, q);
    for (int i = 0; i < head_size; ++i) to[2 * i] = static_cast<std::uint8_t>(q[i]);
    return;
  }
  scale = kernels.to_int4(value, head_size, q);
  for (int i = 0; i < head_size; i += 2 * kPageTokens)
    for (int k = i; k < i + kPageTokens; ++k, to += 2) *to = two_codes(q[k], q[k + kPageTokens]);
}

void read_key(KvFormat format, int head_size, int token, const std::uint8_t* page, float* key) {
  if (format == KvFormat::kF16) {
    const std::uint16_t* from = halves(page) + token;
    for (int i = 0; i < head_size; ++i) key[i] = f16_to_f32(from[i * kPageTokens]);
    return;
  }
  const float scale = f16_to_f32(halves(page + IntegerPage(KvFormat::kInt8, head_size).key_scales())[token]);
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
  const std::size_t scales = IntegerPage(KvFormat::kInt8, head_size).key_scales();
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
  const IntegerPage layout(KvFormat::kInt8, head_size);
  halves(to_page + layout.value_scales())[to] = halves(from_page + layout.value_scales())[from];
  const std::uint8_t* source = from_page + layout.values() + value_element(from, head_size);
  std::uint8_t* target = to_page + layout.values() + value_element(to, head_size);
  for (int i = 0; i < head_size; ++i) target[2 * i] = source[2 * i];
}

}  // namespace sixfold
