// Single weights of a quantised tile as plain numbers, for portable code. Everything here is internal to the file that
// includes it.
#pragma once

#include <cstring>

#include "half.hpp"
#include "tile_layout.hpp"

namespace sixfold {
namespace {

// The integer (signed, zero point taken off) of column k and output c of a block.
template <typename L>
int unpack_value(const std::uint8_t* data, int k, int c) {
  const int group = k / 4, at = 4 * c + k % 4;
  if constexpr (L::kBits == 8) return static_cast<std::int8_t>(data[64 * group + at]);
  int value = data[64 * (group % 4) + at] >> (group < 4 ? 0 : 4) & 15;
  if constexpr (L::kBits == 5) value |= (data[256 + at] >> group & 1) << 4;
  if constexpr (L::kBits == 6) value |= (data[256 + 64 * (group / 4) + at] >> (2 * (group % 4)) & 3) << 4;
  return value - L::kZero;
}

inline float half_at(const std::uint8_t* p) {
  std::uint16_t half;
  std::memcpy(&half, p, 2);
  return f16_to_f32(half);
}

// The scales and minimums of a block of 32 columns.
template <typename L>
struct BlockScales {
  float scale[L::kParts][kTileColumns];
  float minimum[L::kParts][kTileColumns];
  float super[2][kTileColumns];

  // Block `index` of a tile; `tile` stands at it, and afterwards behind the superblock's head if it begins there.
  void load(const std::uint8_t*& tile, int index) {
    if (L::kScaleBytes == 1 && index % kSuperBlocks == 0) {
      for (int i = 0; i < L::kSuperHead / 2; ++i) super[i / kTileColumns][i % kTileColumns] = half_at(tile + 2 * i);
      tile += L::kSuperHead;
    }
    for (int i = 0; i < L::kParts * kTileColumns; ++i) {
      const int part = i / kTileColumns, c = i % kTileColumns;
      if constexpr (L::kScaleBytes == 2) {
        scale[part][c] = half_at(tile + 2 * i);
        if (L::kMinimum) minimum[part][c] = half_at(tile + L::kScales + 2 * i);
      } else {
        const std::uint8_t byte = tile[i];
        scale[part][c] = super[0][c] * static_cast<float>(L::kSignedScales ? static_cast<std::int8_t>(byte) : byte);
        if (L::kMinimum) minimum[part][c] = super[1][c] * static_cast<float>(tile[L::kScales + i]);
      }
    }
  }
};

}  // namespace
}  // namespace sixfold
