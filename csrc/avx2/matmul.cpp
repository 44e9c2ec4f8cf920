// AVX2 matmul kernels. A 256-bit register holds 8 outputs by 4 columns of int8 (or the two nibbles of two such groups);
// four activations are broadcast against it. 4 rows by 16 outputs are computed at once, nibbles unpacked in registers.
#include <immintrin.h>

#include <cstring>

#include "../kernels.hpp"
#include "math.hpp"

namespace sixfold {
namespace {

constexpr int kRows = 4;

inline __m256i broadcast4(const std::int8_t* a) {
  std::int32_t four;
  std::memcpy(&four, a, 4);
  return _mm256_set1_epi32(four);
}

template <int kScaleBytes>
inline __m256 load_scales(const std::uint8_t* p, int index) {
  if constexpr (kScaleBytes == 2) return load_f16(p + 2 * index);
  return _mm256_loadu_ps(reinterpret_cast<const float*>(p) + index);
}

// int32 dot products of one 32-block of 4-bit weights, 16 outputs, R rows. Eight products of 15 * 127 * 2 fit int16.
template <int R>
inline void dots4(const std::uint8_t* data, const std::int8_t* const* a, __m256i dot[R][2]) {
  const __m256i low_nibbles = _mm256_set1_epi8(15);
  __m256i sum[R][2];
#pragma GCC unroll 4
  for (int g = 0; g < 4; ++g) {
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const __m256i pair = _mm256_load_si256(reinterpret_cast<const __m256i*>(data + (2 * g + h) * 32));
      const __m256i low = _mm256_and_si256(pair, low_nibbles);
      const __m256i high = _mm256_and_si256(_mm256_srli_epi16(pair, 4), low_nibbles);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const __m256i first = _mm256_maddubs_epi16(low, broadcast4(a[r] + 4 * g));
        const __m256i second = _mm256_maddubs_epi16(high, broadcast4(a[r] + 16 + 4 * g));
        sum[r][h] = g == 0 ? first : _mm256_add_epi16(sum[r][h], first);
        sum[r][h] = _mm256_add_epi16(sum[r][h], second);
      }
    }
  }
  const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
    for (int h = 0; h < 2; ++h) dot[r][h] = _mm256_madd_epi16(sum[r][h], ones);
}

// int32 dot products of `kGroups` groups of 4 columns of int8 weights. |w| is unsigned, its sign moves to the
// activation; 128 * 127 * 2 fits int16 but two of them do not, so every group is widened at once.
template <int R, int kGroups>
inline void dots8(const std::uint8_t* data, const std::int8_t* const* a, int offset, __m256i dot[R][2]) {
  const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 8
  for (int g = 0; g < kGroups; ++g) {
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const __m256i w = _mm256_load_si256(reinterpret_cast<const __m256i*>(data + (2 * g + h) * 32));
      const __m256i magnitude = _mm256_abs_epi8(w);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const __m256i signed_a = _mm256_sign_epi8(broadcast4(a[r] + offset + 4 * g), w);
        const __m256i wide = _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, signed_a), ones);
        dot[r][h] = g == 0 ? wide : _mm256_add_epi32(dot[r][h], wide);
      }
    }
  }
}

template <int R, bool kFour, int kPart, int kScaleBytes, Minimum M>
void int_rows(const std::uint8_t* tile, int blocks, const Activations& x, int row, float* y, int ldy) {
  constexpr int kParts = kBlock / kPart;
  constexpr int kScales = kTileColumns * kParts * kScaleBytes;
  constexpr int kHead = kScales * (M == Minimum::kExplicit ? 2 : 1);
  constexpr int kBytes = kHead + kTileColumns * kBlock / (kFour ? 2 : 1);
  const int width_blocks = x.width / kBlock;
  const std::int8_t* a[R];
  const float* scale[R];
  const float* scaled_sum[R];
  const std::int32_t* sum8[R];
  __m256 acc[R][2];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    const std::size_t at = static_cast<std::size_t>(row + r);
    a[r] = x.q + at * x.width;
    scale[r] = x.scale + at * width_blocks;
    scaled_sum[r] = x.scaled_sum + at * width_blocks * 2;
    sum8[r] = x.sum8 + at * width_blocks;
    acc[r][0] = acc[r][1] = _mm256_setzero_ps();
  }
  for (int b = 0; b < blocks; ++b, tile += kBytes) {
    _mm_prefetch(reinterpret_cast<const char*>(tile + 2048), _MM_HINT_T0);
    if constexpr (R == 1) {
      for (int line = 64; line < kBytes; line += 64)
        _mm_prefetch(reinterpret_cast<const char*>(tile + 2048 + line), _MM_HINT_T0);
    }
#pragma GCC unroll 2
    for (int part = 0; part < kParts; ++part) {
      __m256i dot[R][2];
      if constexpr (kFour)
        dots4<R>(tile + kHead, a, dot);
      else
        dots8<R, kPart / 4>(tile + kHead + part * kPart * kTileColumns, a, part * kPart, dot);
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        const __m256 w = load_scales<kScaleBytes>(tile, part * kTileColumns + h * 8);
        __m256 minimum;
        if constexpr (M == Minimum::kExplicit)
          minimum = load_scales<kScaleBytes>(tile + kScales, part * kTileColumns + h * 8);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          __m256i d = dot[r][h];
          if constexpr (M == Minimum::kZeroPoint8) d = _mm256_sub_epi32(d, _mm256_set1_epi32(sum8[r][b]));
          acc[r][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(d), _mm256_mul_ps(w, _mm256_set1_ps(scale[r][b])), acc[r][h]);
          if constexpr (M == Minimum::kExplicit) {
            const float sum =
                kParts == 2 ? scaled_sum[r][2 * b + part] : scaled_sum[r][2 * b] + scaled_sum[r][2 * b + 1];
            acc[r][h] = _mm256_fnmadd_ps(minimum, _mm256_set1_ps(sum), acc[r][h]);
          }
        }
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) a[r] += kBlock;
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
    for (int h = 0; h < 2; ++h) _mm256_storeu_ps(y + static_cast<std::size_t>(r) * ldy + 8 * h, acc[r][h]);
}

template <bool kFour, int kPart, int kScaleBytes, Minimum M>
void int_tile(const std::uint8_t* tile, int columns, const Activations& x, int row, int rows, float* y, int ldy) {
  const int blocks = columns / kBlock;
  int r = 0;
  for (; r + kRows <= rows; r += kRows)
    int_rows<kRows, kFour, kPart, kScaleBytes, M>(tile, blocks, x, row + r, y + static_cast<std::size_t>(r) * ldy, ldy);
  float* rest = y + static_cast<std::size_t>(r) * ldy;
  switch (rows - r) {
    case 3:
      return int_rows<3, kFour, kPart, kScaleBytes, M>(tile, blocks, x, row + r, rest, ldy);
    case 2:
      return int_rows<2, kFour, kPart, kScaleBytes, M>(tile, blocks, x, row + r, rest, ldy);
    case 1:
      return int_rows<1, kFour, kPart, kScaleBytes, M>(tile, blocks, x, row + r, rest, ldy);
    default:
      return;
  }
}

template <Values V>
inline __m256 load_weights(const std::uint8_t* tile, std::size_t index) {
  if constexpr (V == Values::kF32) return _mm256_loadu_ps(reinterpret_cast<const float*>(tile) + index);
  if constexpr (V == Values::kF16) return load_f16(tile + 2 * index);
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(tile + 2 * index));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

template <int R, Values V>
void float_rows(const std::uint8_t* tile, int columns, const Activations& x, int row, float* y, int ldy) {
  const float* a[R];
  __m256 acc[R][2];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    a[r] = x.f32 + static_cast<std::size_t>(row + r) * x.width;
    acc[r][0] = acc[r][1] = _mm256_setzero_ps();
  }
  for (int k = 0; k < columns; ++k) {
    const __m256 w0 = load_weights<V>(tile, static_cast<std::size_t>(k) * kTileColumns);
    const __m256 w1 = load_weights<V>(tile, static_cast<std::size_t>(k) * kTileColumns + 8);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const __m256 value = _mm256_broadcast_ss(a[r] + k);
      acc[r][0] = _mm256_fmadd_ps(value, w0, acc[r][0]);
      acc[r][1] = _mm256_fmadd_ps(value, w1, acc[r][1]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
    for (int h = 0; h < 2; ++h) _mm256_storeu_ps(y + static_cast<std::size_t>(r) * ldy + 8 * h, acc[r][h]);
}

template <Values V>
void float_tile(const std::uint8_t* tile, int columns, const Activations& x, int row, int rows, float* y, int ldy) {
  int r = 0;
  for (; r + kRows <= rows; r += kRows)
    float_rows<kRows, V>(tile, columns, x, row + r, y + static_cast<std::size_t>(r) * ldy, ldy);
  for (; r < rows; ++r) float_rows<1, V>(tile, columns, x, row + r, y + static_cast<std::size_t>(r) * ldy, ldy);
}

template <bool kFour, int kPart, int kScaleBytes>
MatmulTile by_minimum(Minimum minimum) {
  if (minimum == Minimum::kExplicit) return int_tile<kFour, kPart, kScaleBytes, Minimum::kExplicit>;
  if constexpr (kFour) return int_tile<kFour, kPart, kScaleBytes, Minimum::kZeroPoint8>;
  return int_tile<kFour, kPart, kScaleBytes, Minimum::kNone>;
}

}  // namespace

namespace avx2 {

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

}  // namespace avx2
}  // namespace sixfold
