// Portable matmul kernels: the same layouts and the same order of additions over blocks as the SIMD ones.
#include <cstring>

#include "../half.hpp"
#include "../kernels.hpp"

namespace sixfold {
namespace {

float load_scale(const std::uint8_t* p, int index, int bytes) {
  if (bytes == 2) {
    std::uint16_t half;
    std::memcpy(&half, p + 2 * index, 2);
    return f16_to_f32(half);
  }
  float value;
  std::memcpy(&value, p + 4 * index, 4);
  return value;
}

template <Values V>
void float_tile(const std::uint8_t* tile, int columns, const Activations& x, int row, int rows, float* y, int ldy) {
  for (int r = 0; r < rows; ++r) {
    const float* a = x.f32 + static_cast<std::size_t>(row + r) * x.width;
    float sum[kTileColumns] = {};
    for (int k = 0; k < columns; ++k)
      for (int c = 0; c < kTileColumns; ++c) {
        float w;
        if constexpr (V == Values::kF32) {
          std::memcpy(&w, tile + (static_cast<std::size_t>(k) * kTileColumns + c) * 4, 4);
        } else {
          std::uint16_t half;
          std::memcpy(&half, tile + (static_cast<std::size_t>(k) * kTileColumns + c) * 2, 2);
          w = V == Values::kF16 ? f16_to_f32(half) : bf16_to_f32(half);
        }
        sum[c] += w * a[k];
      }
    std::memcpy(y + static_cast<std::size_t>(r) * ldy, sum, sizeof(sum));
  }
}

// A block of weights as plain numbers, [32 columns][16 outputs], so that the loops below vectorise anywhere.
template <bool kFour>
void unpack(const std::uint8_t* data, std::int16_t (*w)[kTileColumns]) {
  for (int k = 0; k < kBlock; ++k)
    for (int c = 0; c < kTileColumns; ++c) {
      const int at = c / 8 * 32 + c % 8 * 4 + k % 4;
      if constexpr (kFour) {
        const std::uint8_t pair = data[k % 16 / 4 * 64 + at];
        w[k][c] = k < 16 ? pair & 15 : pair >> 4;
      } else {
        w[k][c] = static_cast<std::int8_t>(data[k / 4 * 64 + at]);
      }
    }
}

constexpr int kRows = 8;  // rows that share an unpacked block

template <bool kFour, int kPart, int kScaleBytes, Minimum M>
void int_rows(const std::uint8_t* tile, int blocks, const Activations& x, int row, int rows, float* y, int ldy) {
  constexpr int kParts = kBlock / kPart;
  constexpr std::size_t kScales = static_cast<std::size_t>(kTileColumns) * kParts * kScaleBytes;
  constexpr std::size_t kHead = kScales * (M == Minimum::kExplicit ? 2 : 1);
  constexpr std::size_t kBytes = kHead + kTileColumns * kBlock / (kFour ? 2 : 1);
  const std::size_t width_blocks = static_cast<std::size_t>(x.width) / kBlock;
  float acc[kRows][kTileColumns] = {};
  std::int16_t w[kBlock][kTileColumns];
  float scales[kParts][kTileColumns], minimums[kParts][kTileColumns];
  for (int b = 0; b < blocks; ++b) {
    const std::uint8_t* block = tile + b * kBytes;
    unpack<kFour>(block + kHead, w);
    for (int i = 0; i < kParts * kTileColumns; ++i) {
      scales[i / kTileColumns][i % kTileColumns] = load_scale(block, i, kScaleBytes);
      if (M == Minimum::kExplicit)
        minimums[i / kTileColumns][i % kTileColumns] = load_scale(block + kScales, i, kScaleBytes);
    }
    for (int r = 0; r < rows; ++r) {
      const std::size_t at = static_cast<std::size_t>(row + r) * width_blocks + b;
      const std::int8_t* a = x.q + at * kBlock;
      for (int part = 0; part < kParts; ++part) {
        std::int32_t dot[kTileColumns] = {};
        for (int k = part * kPart; k < (part + 1) * kPart; ++k)
          for (int c = 0; c < kTileColumns; ++c) dot[c] += w[k][c] * static_cast<std::int16_t>(a[k]);
        const float* sums = x.scaled_sum + 2 * at;
        const float sum = kParts == 2 ? sums[part] : sums[0] + sums[1];
        for (int c = 0; c < kTileColumns; ++c) {
          if (M == Minimum::kZeroPoint8) dot[c] -= x.sum8[at];
          acc[r][c] += static_cast<float>(dot[c]) * (scales[part][c] * x.scale[at]);
          if (M == Minimum::kExplicit) acc[r][c] -= minimums[part][c] * sum;
        }
      }
    }
  }
  for (int r = 0; r < rows; ++r) std::memcpy(y + static_cast<std::size_t>(r) * ldy, acc[r], sizeof(acc[r]));
}

template <bool kFour, int kPart, int kScaleBytes, Minimum M>
void int_tile(const std::uint8_t* tile, int columns, const Activations& x, int row, int rows, float* y, int ldy) {
  for (int r = 0; r < rows; r += kRows)
    int_rows<kFour, kPart, kScaleBytes, M>(tile, columns / kBlock, x, row + r, rows - r < kRows ? rows - r : kRows,
                                           y + static_cast<std::size_t>(r) * ldy, ldy);
}

template <bool kFour, int kPart, int kScaleBytes>
MatmulTile by_minimum(Minimum minimum) {
  if (minimum == Minimum::kExplicit) return int_tile<kFour, kPart, kScaleBytes, Minimum::kExplicit>;
  if constexpr (kFour) return int_tile<kFour, kPart, kScaleBytes, Minimum::kZeroPoint8>;
  return int_tile<kFour, kPart, kScaleBytes, Minimum::kNone>;
}

}  // namespace

namespace scalar {

MatmulTile matmul(const MatrixRecord& record) {
  const bool half = record.scale_bytes == 2;
  switch (record.values) {
    case Values::kF32:
      return float_tile<Values::kF32>;
    case Values::kF16:
      return float_tile<Values::kF16>;
    case Values::kBF16:
      return float_tile<Values::kBF16>;
    case Values::kInt4:
      return half ? by_minimum<true, 32, 2>(record.minimum) : by_minimum<true, 32, 4>(record.minimum);
    case Values::kInt8:
      break;
  }
  if (record.block == 16)
    return half ? by_minimum<false, 16, 2>(record.minimum) : by_minimum<false, 16, 4>(record.minimum);
  return half ? by_minimum<false, 32, 2>(record.minimum) : by_minimum<false, 32, 4>(record.minimum);
}

}  // namespace scalar
}  // namespace sixfold
