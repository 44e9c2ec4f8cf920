// float16 and bfloat16 by hand, for instruction sets that have no conversion. Everything here is internal to the file
// that includes it, so that code compiled for one instruction set never stands in for another.
#pragma once

#include <bit>
#include <cstdint>

namespace {

[[maybe_unused]] inline float f16_to_f32(std::uint16_t h) {
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000) << 16;
  const std::uint32_t magnitude = h & 0x7fff;
  if (magnitude >= 0x7c00) return std::bit_cast<float>(sign | 0x7f800000u | (magnitude & 0x3ff) << 13);
  if (magnitude >= 0x400) return std::bit_cast<float>(sign | ((magnitude << 13) + (112u << 23)));
  const float subnormal = static_cast<float>(magnitude) * 0x1p-24f;
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(subnormal));
}

[[maybe_unused]] inline std::uint16_t f32_to_f16_clamped(float value) {
  value = value > -65504.0f ? value : -65504.0f;  // NaN lands here
  value = value < 65504.0f ? value : 65504.0f;
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000;
  const float magnitude = std::bit_cast<float>(bits & 0x7fffffffu);
  if (magnitude < 0x1p-14f) {  // subnormal: the addition rounds to multiples of 2^-24, to nearest even
    const float shifted = magnitude + 0x1p-1f;
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x3f000000u));
  }
  const std::uint32_t m = bits & 0x7fffffffu;
  const std::uint32_t rounded = m + 0xfffu + ((m >> 13) & 1);
  return static_cast<std::uint16_t>(sign | ((rounded - (112u << 23)) >> 13));
}

[[maybe_unused]] inline float bf16_to_f32(std::uint16_t h) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(h) << 16);
}

}  // namespace
