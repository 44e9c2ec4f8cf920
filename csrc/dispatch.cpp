#include <cstring>
#include <stdexcept>
#include <string>

#include "half.hpp"
#include "kernels.hpp"
#include "tile_unpack.hpp"

namespace sixfold {
namespace {

#ifdef SIXFOLD_AVX2
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}
#endif

using UnpackLane = void (*)(const std::uint8_t* tile, int columns, int lane, float* out);

// One output of a tile, all columns.
template <Values V>
void unpack_float_lane(const std::uint8_t* tile, int columns, int lane, float* out) {
  for (int k = 0; k < columns; ++k) {
    const std::size_t index = static_cast<std::size_t>(k) * kTileColumns + lane;
    if constexpr (V == Values::kF32) {
      std::memcpy(out + k, tile + 4 * index, 4);
    } else {
      std::uint16_t half;
      std::memcpy(&half, tile + 2 * index, 2);
      out[k] = V == Values::kF16 ? f16_to_f32(half) : bf16_to_f32(half);
    }
  }
}

template <typename L>
void unpack_lane(const std::uint8_t* tile, int columns, int lane, float* out) {
  constexpr int kPart = kBlock / L::kParts;
  BlockScales<L> scales;
  for (int k = 0; k < columns; ++k) {
    if (k % kBlock == 0) scales.load(tile, k / kBlock);
    const int part = k % kBlock / kPart;
    float value = static_cast<float>(unpack_value<L>(tile + L::kHead, k % kBlock, lane)) * scales.scale[part][lane];
    if (L::kMinimum) value -= scales.minimum[part][lane];
    out[k] = value;
    if (k % kBlock == kBlock - 1) tile += L::kBytes;
  }
}

struct Choose {
  template <typename L>
  static UnpackLane integer() {
    return unpack_lane<L>;
  }
  template <Values V>
  static UnpackLane floating() {
    return unpack_float_lane<V>;
  }
};

}  // namespace

const Kernels& choose_kernels(const char* isa) {
  const std::string name = isa;
#ifdef SIXFOLD_AVX2
  if (name == "avx512bf16" || name == "auto") {
    if (has_avx512() && __builtin_cpu_supports("avx512bf16")) return avx512bf16_kernels();
    if (name == "avx512bf16") throw std::invalid_argument("this processor has no AVX-512 with VNNI and BF16");
  }
  if (name == "avx512" || name == "auto") {
    if (has_avx512()) return avx512_kernels();
    if (name == "avx512") throw std::invalid_argument("this processor has no AVX-512 with VNNI");
  }
  if (name == "avx2" || name == "auto") {
    if (has_avx2()) return avx2_kernels();
    if (name == "avx2") throw std::invalid_argument("this processor has no AVX2, FMA and F16C");
  }
#else
  if (name.starts_with("avx")) throw std::invalid_argument("this build has no " + name + " kernels");
#endif
  if (name == "scalar" || name == "auto") return scalar_kernels();
  throw std::invalid_argument("unknown instruction set: " + name);
}

void unpack_row(const Matrix& matrix, int row, float scale, float* out) {
  const std::uint8_t* tile = matrix.tile(row / kTileColumns);
  const int columns = static_cast<int>(matrix.record.columns);
  choose_layout<Choose>(matrix.record)(tile, columns, row % kTileColumns, out);
  for (int k = 0; k < columns; ++k) out[k] *= scale;
}

}  // namespace sixfold
