// Portable matmul kernels: the same layouts and the same order of additions over blocks as the SIMD ones.
#include <cstring>

#include "../half.hpp"
#include "../kernels.hpp"
#include "../tile_unpack.hpp"

namespace sixfold {
namespace {

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

template <Values V>
void add_float_tile(const std::uint8_t* tile, int rank, const float* t, int stride, int rows, float* out, int ldy) {
  Activations ranks;
  ranks.width = stride;
  ranks.f32 = const_cast<float*>(t);  // only read
  float sum[kTileColumns];
  for (int r = 0; r < rows; ++r) {
    float_tile<V>(tile, rank, ranks, r, 1, sum, kTileColumns);
    for (int c = 0; c < kTileColumns; ++c) out[static_cast<std::size_t>(r) * ldy + c] += sum[c];
  }
}

// A block of weights as plain numbers, [32 columns][16 outputs], so that the loops below vectorise anywhere.
template <typename L>
void unpack(const std::uint8_t* data, std::int16_t (*w)[kTileColumns]) {
  for (int k = 0; k < kBlock; ++k)
    for (int c = 0; c < kTileColumns; ++c) w[k][c] = static_cast<std::int16_t>(unpack_value<L>(data, k, c));
}

constexpr int kRows = 8;  // rows that share an unpacked block

template <typename L>
void int_rows(const std::uint8_t* tile, int blocks, const Activations& x, int row, int rows, float* y, int ldy) {
  constexpr int kParts = L::kParts, kPart = kBlock / kParts;
  float acc[kRows][kTileColumns] = {};
  std::int16_t w[kBlock][kTileColumns];
  BlockScales<L> scales;
  for (int b = 0; b < blocks; ++b) {
    scales.load(tile, b);
    unpack<L>(tile + L::kHead, w);
    tile += L::kBytes;
    for (int r = 0; r < rows; ++r) {
      const std::size_t at = x.at(row + r, b);
      const std::int8_t* a = x.q + at * kBlock;
      for (int part = 0; part < kParts; ++part) {
        const float sum = kParts == 2 ? x.half_sum[2 * at + part] : x.sum[at];
        std::int32_t dot[kTileColumns] = {};
        for (int k = part * kPart; k < (part + 1) * kPart; ++k)
          for (int c = 0; c < kTileColumns; ++c) dot[c] += w[k][c] * static_cast<std::int16_t>(a[k]);
        for (int c = 0; c < kTileColumns; ++c) {
          acc[r][c] += static_cast<float>(dot[c]) * scales.scale[part][c] * x.scale[at];
          if (L::kMinimum) acc[r][c] -= scales.minimum[part][c] * sum;
        }
      }
    }
  }
  for (int r = 0; r < rows; ++r) std::memcpy(y + static_cast<std::size_t>(r) * ldy, acc[r], sizeof(acc[r]));
}

template <typename L>
void int_tile(const std::uint8_t* tile, int columns, const Activations& x, int row, int rows, float* y, int ldy) {
  for (int r = 0; r < rows; r += kRows)
    int_rows<L>(tile, columns / kBlock, x, row + r, rows - r < kRows ? rows - r : kRows,
                y + static_cast<std::size_t>(r) * ldy, ldy);
}

struct Choose {
  template <typename L>
  static MatmulTile integer() {
    return int_tile<L>;
  }
  template <Values V>
  static MatmulTile floating() {
    return float_tile<V>;
  }
};

}  // namespace

namespace scalar {

MatmulTile matmul(const MatrixRecord& record) { return choose_layout<Choose>(record); }

MatmulTile down_tile(Values values) {
  if (values == Values::kF32) return float_tile<Values::kF32>;
  return values == Values::kF16 ? float_tile<Values::kF16> : float_tile<Values::kBF16>;
}

AddTile add_tile(Values values) {
  if (values == Values::kF32) return add_float_tile<Values::kF32>;
  return values == Values::kF16 ? add_float_tile<Values::kF16> : add_float_tile<Values::kBF16>;
}

}  // namespace scalar
}  // namespace sixfold
