#include <cstring>
#include <stdexcept>
#include <string>

#include "half.hpp"
#include "kernels.hpp"

namespace sixfold {
namespace {

#ifdef SIXFOLD_AVX2
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
#endif

float scale_at(const std::uint8_t* p, int index, std::uint32_t scale_bytes) {
  if (scale_bytes == 2) {
    std::uint16_t half;
    std::memcpy(&half, p + 2 * index, 2);
    return f16_to_f32(half);
  }
  float value;
  std::memcpy(&value, p + 4 * index, 4);
  return value;
}

void unpack_float_row(const Matrix& matrix, const std::uint8_t* tile, int lane, float scale, float* out) {
  for (std::uint32_t k = 0; k < matrix.record.columns; ++k) {
    const std::size_t index = static_cast<std::size_t>(k) * kTileColumns + lane;
    float value;
    if (matrix.record.values == Values::kF32) {
      std::memcpy(&value, tile + 4 * index, 4);
    } else {
      std::uint16_t half;
      std::memcpy(&half, tile + 2 * index, 2);
      value = matrix.record.values == Values::kF16 ? f16_to_f32(half) : bf16_to_f32(half);
    }
    out[k] = value * scale;
  }
}

}  // namespace

const Kernels& choose_kernels(const char* isa) {
  const std::string name = isa;
#ifdef SIXFOLD_AVX2
  if (name == "avx2" || name == "auto") {
    if (has_avx2()) return avx2_kernels();
    if (name == "avx2") throw std::invalid_argument("this processor has no AVX2, FMA and F16C");
  }
#else
  if (name == "avx2") throw std::invalid_argument("this build has no AVX2 kernels");
#endif
  if (name == "scalar" || name == "auto") return scalar_kernels();
  throw std::invalid_argument("unknown instruction set: " + name);
}

void unpack_row(const Matrix& matrix, int row, float scale, float* out) {
  const MatrixRecord& record = matrix.record;
  const std::uint8_t* tile = matrix.data + matrix.tile_bytes * (row / kTileColumns);
  const int lane = row % kTileColumns;
  if (record.block == 0) return unpack_float_row(matrix, tile, lane, scale, out);
  const int parts = kBlock / static_cast<int>(record.block);
  const std::size_t scales = static_cast<std::size_t>(kTileColumns) * parts * record.scale_bytes;
  const bool explicit_minimum = record.minimum == Minimum::kExplicit;
  const std::size_t values = kTileColumns * kBlock / (record.values == Values::kInt4 ? 2 : 1);
  const std::size_t block_bytes = scales * (explicit_minimum ? 2 : 1) + values;
  for (std::uint32_t k = 0; k < record.columns; ++k) {
    const std::uint8_t* block = tile + k / kBlock * block_bytes;
    const std::uint8_t* data = block + block_bytes - values;
    const int in_block = k % kBlock;
    const int index = in_block / static_cast<int>(record.block) * kTileColumns + lane;
    const float d = scale_at(block, index, record.scale_bytes);
    // Vectors of 32 bytes: 8 outputs by 4 columns; two vectors (16 outputs) a group of 4 columns.
    const int byte_in_group = lane / 8 * 32 + lane % 8 * 4 + in_block % 4;
    float value;
    if (record.values == Values::kInt4) {
      const std::uint8_t pair = data[in_block % 16 / 4 * 64 + byte_in_group];
      value = static_cast<float>(in_block < 16 ? pair & 15 : pair >> 4);
      if (record.minimum == Minimum::kZeroPoint8) value -= 8.0f;
    } else {
      value = static_cast<float>(static_cast<std::int8_t>(data[in_block / 4 * 64 + byte_in_group]));
    }
    value *= d;
    if (explicit_minimum) value -= scale_at(block + scales, index, record.scale_bytes);
    out[k] = value * scale;
  }
}

}  // namespace sixfold
