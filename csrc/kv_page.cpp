#include "kv_page.hpp"

#include <stdexcept>

#include "half.hpp"
#include "kernels.hpp"

namespace sixfold {
namespace {

std::uint16_t* halves(std::uint8_t* at) { return reinterpret_cast<std::uint16_t*>(at); }

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

void read_f16_key(const std::uint8_t* page, int head_size, int token, float* key) {
  const auto* keys = reinterpret_cast<const std::uint16_t*>(page);
  for (int i = 0; i < head_size; ++i) key[i] = f16_to_f32(keys[i * kPageTokens + token]);
}

void write_key(const Kernels& kernels, KvFormat format, int head_size, int token, const float* key,
               std::uint8_t* page) {
  if (format == KvFormat::kF16) return kernels.to_f16(key, head_size, halves(page) + token, kPageTokens);
  std::uint16_t& scale = halves(page + IntegerPage(format, head_size).key_scales())[token];
  std::int8_t q[kMaxHeadSize];
  std::uint8_t* to = page + 2 * token;
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

}  // namespace sixfold
