// AVX2 matmul kernels. A 256-bit register holds 8 outputs by 4 columns of weights as bytes; four activations are
// broadcast against it. 4 rows by 16 outputs are computed at once, bits unpacked in registers.
#include <immintrin.h>

#include <cstring>

#include "../kernels.hpp"
#include "../tile_layout.hpp"
#include "math.hpp"

namespace sixfold {
namespace {

constexpr int kRows = 4;
constexpr int kAhead = 2048;  // bytes that weights are prefetched ahead

SIXFOLD_INLINE __m256i broadcast4(const std::int8_t* a) {
  std::int32_t four;
  std::memcpy(&four, a, 4);
  return _mm256_set1_epi32(four);
}

template <int kShift>
SIXFOLD_INLINE __m256i shift_left(__m256i x) {
  if constexpr (kShift > 0) return _mm256_slli_epi16(x, kShift);
  if constexpr (kShift < 0) return _mm256_srli_epi16(x, -kShift);
  return x;
}

// Weights of column group G (columns 4 G .. 4 G + 3) and the outputs of half h: unsigned, int8 as they are.
template <int kBits, int G>
SIXFOLD_INLINE __m256i weights(const std::uint8_t* data, int h) {
  const auto load = [h](const std::uint8_t* at) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(at + 32 * h));
  };
  if constexpr (kBits == 8) return load(data + 64 * G);
  const __m256i nibble = _mm256_and_si256(shift_left < G<4 ? 0 : -4>(load(data + 64 * (G % 4))), _mm256_set1_epi8(15));
  if constexpr (kBits == 4) return nibble;
  // The bits above the nibble: one a group in one register (5 bits), or two a group in two registers (6 bits).
  const __m256i plane = load(data + 256 + (kBits == 5 ? 0 : 64 * (G / 4)));
  const __m256i moved = shift_left<4 - (kBits == 5 ? G : 2 * (G % 4))>(plane);
  return _mm256_or_si256(nibble, _mm256_and_si256(moved, _mm256_set1_epi8(kBits == 5 ? 16 : 48)));
}

// Scales or minimums of 8 outputs of a part: float16, or a byte times the superblock's float16.
template <int kScaleBytes, bool kSigned>
SIXFOLD_INLINE __m256 load_scales(const std::uint8_t* p, __m256 super) {
  if constexpr (kScaleBytes == 2) return load_f16(p);
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  const __m256i wide = kSigned ? _mm256_cvtepi8_epi32(bytes) : _mm256_cvtepu8_epi32(bytes);
  return _mm256_mul_ps(_mm256_cvtepi32_ps(wide), super);
}

// sum += w * a in 16-bit lanes. In assembly, so that the order stays as it is: left to itself, GCC regroups the
// additions and runs out of registers.
SIXFOLD_INLINE void add_products(__m256i& sum, __m256i w, __m256i a) {
#ifdef __GNUC__
  __m256i product;
  __asm__("vpmaddubsw %[a], %[w], %[p]\n\tvpaddw %[p], %[s], %[s]"
          : [s] "+x"(sum), [p] "=&x"(product)
          : [w] "x"(w), [a] "x"(a));
#else
  sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, a));
#endif
}

// Adds column groups [G, kEnd) to the 16-bit sums of R rows and 16 outputs.
template <int R, int G, int kEnd, int kBits>
SIXFOLD_INLINE void add_groups(const std::uint8_t* data, const std::int8_t* a, __m256i sum[R][2]) {
  if constexpr (G < kEnd) {
    const __m256i w[2] = {weights<kBits, G>(data, 0), weights<kBits, G>(data, 1)};
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const __m256i four = broadcast4(a + r * kBlock + 4 * G);
      add_products(sum[r][0], w[0], four);
      add_products(sum[r][1], w[1], four);
    }
    add_groups<R, G + 1, kEnd, kBits>(data, a, sum);
  }
}

// int32 dot products of column groups [G, kEnd) of weights below 64. Sums of 16 bits hold eight products of 15 * 127 *
// 2, four of 31 * 127 * 2 or two of 63 * 127 * 2; then they are widened.
template <int R, int G, int kEnd, int kBits>
SIXFOLD_INLINE void small_dots(const std::uint8_t* data, const std::int8_t* a, __m256i dot[R][2]) {
  constexpr int kStep = kBits == 4 ? 8 : kBits == 5 ? 4 : 2;
  constexpr int kStop = G + kStep < kEnd ? G + kStep : kEnd;
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sum[R][2];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
  add_groups<R, G, kStop, kBits>(data, a, sum);
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) dot[r][h] = _mm256_add_epi32(dot[r][h], _mm256_madd_epi16(sum[r][h], ones));
  if constexpr (kStop < kEnd) small_dots<R, kStop, kEnd, kBits>(data, a, dot);
}

// int32 dot products of signed weights. |w| is unsigned, its sign moves to the activation; 128 * 127 * 2 fits 16 bits
// but two of them do not, so every group is widened at once.
template <int R, int G, int kEnd>
SIXFOLD_INLINE void signed_dots(const std::uint8_t* data, const std::int8_t* a, __m256i dot[R][2]) {
  if constexpr (G < kEnd) {
    const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const __m256i w = weights<8, G>(data, h);
      const __m256i magnitude = _mm256_abs_epi8(w);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const __m256i signed_a = _mm256_sign_epi8(broadcast4(a + r * kBlock + 4 * G), w);
        dot[r][h] = _mm256_add_epi32(dot[r][h], _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, signed_a), ones));
      }
    }
    signed_dots<R, G + 1, kEnd>(data, a, dot);
  }
}

// R rows of one group, as far as the blocks before have brought them.
template <int R, typename L>
struct Rows {
  const std::int8_t* a;
  const float* scale;
  const float* sum;           // scaled sums of the parts
  const std::int32_t* start;  // -8 times the sums of the parts
  __m256 acc[R][2];

  Rows(const Activations& x, int row)
      : a(x.q + x.at(row, 0) * kBlock),
        scale(x.scale + x.at(row, 0)),
        sum(L::kParts == 2 ? x.half_sum + 2 * x.at(row, 0) : x.sum + x.at(row, 0)),
        start(L::kParts == 2 ? x.half_start + 2 * x.at(row, 0) : x.start + x.at(row, 0)) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = _mm256_setzero_ps();
  }

  template <int kPart>
  SIXFOLD_INLINE void part(const std::uint8_t* block, const __m256* super) {
    constexpr int kGroups = 8 / L::kParts, kFirst = kPart * kGroups;
    __m256i dot[R][2];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      constexpr bool kStarts = L::kZero != 0 && L::kBits != 8;  // int8 weights are taken signed here
      dot[r][0] = kStarts ? _mm256_slli_epi32(_mm256_set1_epi32(start[r * L::kParts + kPart]), L::kZeroShift)
                          : _mm256_setzero_si256();
      dot[r][1] = dot[r][0];
    }
    if constexpr (L::kBits == 8)
      signed_dots<R, kFirst, kFirst + kGroups>(block + L::kHead, a, dot);
    else
      small_dots<R, kFirst, kFirst + kGroups, L::kBits>(block + L::kHead, a, dot);
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const int at = (kPart * kTileColumns + h * 8) * L::kScaleBytes;
      const __m256 w = load_scales<L::kScaleBytes, L::kSignedScales>(block + at, super[h]);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r)
        acc[r][h] =
            _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(dot[r][h]), w), _mm256_set1_ps(scale[r]), acc[r][h]);
      if constexpr (L::kMinimum) {
        const __m256 m = load_scales<L::kScaleBytes, false>(block + L::kScales + at, super[2 + h]);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r)
          acc[r][h] = _mm256_fnmadd_ps(m, _mm256_set1_ps(sum[r * L::kParts + kPart]), acc[r][h]);
      }
    }
  }

  SIXFOLD_INLINE void block(const std::uint8_t* at, const __m256* super) {
    part<0>(at, super);
    if constexpr (L::kParts == 2) part<1>(at, super);
    a += kGroupRows * kBlock;
    scale += kGroupRows;
    sum += kGroupRows * L::kParts;
    start += kGroupRows * L::kParts;
  }
};

template <int R, typename L>
void int_rows(const std::uint8_t* tile, int blocks, const Activations& x, int row, float* y, int ldy) {
  Rows<R, L> rows(x, row);
  __m256 super[4] = {};  // of scales and of minimums, two halves each
  for (int b = 0; b < blocks; ++b) {
    for (int line = 0; line < (R == 1 ? L::kBytes : 64); line += 64)
      _mm_prefetch(reinterpret_cast<const char*>(tile + kAhead + line), _MM_HINT_T0);
    if constexpr (L::kScaleBytes == 1) {
      if (b % kSuperBlocks == 0) {
        for (int i = 0; i < L::kSuperHead / 16; ++i) super[i] = load_f16(tile + 16 * i);
        tile += L::kSuperHead;
      }
    }
    rows.block(tile, super);
    tile += L::kBytes;
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
    for (int h = 0; h < 2; ++h) _mm256_storeu_ps(y + static_cast<std::size_t>(r) * ldy + 8 * h, rows.acc[r][h]);
}

template <typename L>
void int_tile(const std::uint8_t* tile, int columns, const Activations& x, int row, int rows, float* y, int ldy) {
  const int blocks = columns / kBlock;
  int r = 0;
  for (; r + kRows <= rows; r += kRows)
    int_rows<kRows, L>(tile, blocks, x, row + r, y + static_cast<std::size_t>(r) * ldy, ldy);
  float* rest = y + static_cast<std::size_t>(r) * ldy;
  switch (rows - r) {
    case 3:
      return int_rows<3, L>(tile, blocks, x, row + r, rest, ldy);
    case 2:
      return int_rows<2, L>(tile, blocks, x, row + r, rest, ldy);
    case 1:
      return int_rows<1, L>(tile, blocks, x, row + r, rest, ldy);
    default:
      return;
  }
}

template <Values V>
SIXFOLD_INLINE __m256 load_weights(const std::uint8_t* tile, std::size_t index) {
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

template <int R, Values V>
void add_rows(const std::uint8_t* tile, int rank, const float* t, int stride, float* out, int ldy) {
  __m256 acc[R][2];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = _mm256_setzero_ps();
  for (int k = 0; k < rank; ++k) {
    const __m256 w0 = load_weights<V>(tile, static_cast<std::size_t>(k) * kTileColumns);
    const __m256 w1 = load_weights<V>(tile, static_cast<std::size_t>(k) * kTileColumns + 8);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const __m256 value = _mm256_broadcast_ss(t + static_cast<std::size_t>(r) * stride + k);
      acc[r][0] = _mm256_fmadd_ps(value, w0, acc[r][0]);
      acc[r][1] = _mm256_fmadd_ps(value, w1, acc[r][1]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
    for (int h = 0; h < 2; ++h) {
      float* y = out + static_cast<std::size_t>(r) * ldy + 8 * h;
      _mm256_storeu_ps(y, _mm256_add_ps(_mm256_loadu_ps(y), acc[r][h]));
    }
}

template <Values V>
void add_float_tile(const std::uint8_t* tile, int rank, const float* t, int stride, int rows, float* out, int ldy) {
  int r = 0;
  for (; r + 4 <= rows; r += 4)
    add_rows<4, V>(tile, rank, t + static_cast<std::size_t>(r) * stride, stride,
                   out + static_cast<std::size_t>(r) * ldy, ldy);
  for (; r < rows; ++r)
    add_rows<1, V>(tile, rank, t + static_cast<std::size_t>(r) * stride, stride,
                   out + static_cast<std::size_t>(r) * ldy, ldy);
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

namespace avx2 {

MatmulTile matmul(const MatrixRecord& record) { return choose_layout<Choose>(record); }

MatmulTile down_tile(Values values) {
  if (values == Values::kF32) return float_tile<Values::kF32>;
  return values == Values::kF16 ? float_tile<Values::kF16> : float_tile<Values::kBF16>;
}

AddTile add_tile(Values values) {
  if (values == Values::kF32) return add_float_tile<Values::kF32>;
  return values == Values::kF16 ? add_float_tile<Values::kF16> : add_float_tile<Values::kBF16>;
}

}  // namespace avx2
}  // namespace sixfold
