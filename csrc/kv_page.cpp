#include "kv_page.hpp"

#include <cmath>
#include <stdexcept>

#include "kernels.hpp"

namespace sixfold {
namespace {

std::uint16_t* halves(std::uint8_t* at) { return reinterpret_cast<std::uint16_t*>(at); }

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
  std::int8_t* to = reinterpret_cast<std::int8_t*>(page) + 2 * token;
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
  std::int8_t* to = reinterpret_cast<std::int8_t*>(page + layout.values()) + token / 2 * 2 * head_size + token % 2;
  for (int i = 0; i < head_size; ++i) to[2 * i] = q[i];
}

}  // namespace sixfold
