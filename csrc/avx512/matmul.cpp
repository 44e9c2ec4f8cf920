// AVX-512 VNNI matmul kernels. A 512-bit register holds a tile's 16 outputs by 4 columns as unsigned bytes; one
// vpdpbusd multiplies it by four broadcast activations of a row and adds the products to 16 int32 sums. Weights are
// unsigned throughout: what their zero point adds is what the sums start from.
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "../kernels.hpp"
#include "../tile_layout.hpp"
#include "math.hpp"

namespace sixfold {
namespace {

constexpr int kRows = kGroupRows;
constexpr int kAhead = 4096;  // bytes that weights are prefetched ahead

SIXFOLD_INLINE __m512i broadcast4(const std::int8_t* a) {
  std::int32_t four;
  std::memcpy(&four, a, 4);
  return _mm512_set1_epi32(four);
}

// Unsigned weights of column group G (columns 4 G .. 4 G + 3) of a block.
template <int kBits, int G>
SIXFOLD_INLINE __m512i weights(const std::uint8_t* data) {
  const auto load = [](const std::uint8_t* at) { return _mm512_loadu_si512(at); };
  if constexpr (kBits == 8) return _mm512_xor_si512(load(data + 64 * G), _mm512_set1_epi8(-128));
  const __m512i pair = load(data + 64 * (G % 4));
  const __m512i nibble = _mm512_and_si512(G < 4 ? pair : _mm512_srli_epi16(pair, 4), _mm512_set1_epi8(15));
  if constexpr (kBits == 4) return nibble;
  // The bits above the nibble: one a group in one register (5 bits), or two a group in two registers (6 bits).
  constexpr int kExtra = kBits - 4;
  constexpr int kShift = 4 - (kBits == 5 ? G : 2 * (G % 4));
  const __m512i plane = load(data + 256 + (kBits == 5 ? 0 : 64 * (G / 4)));
  const __m512i moved = kShift >= 0 ? _mm512_slli_epi16(plane, kShift >= 0 ? kShift : 0)
                                    : _mm512_srli_epi16(plane, kShift >= 0 ? 0 : -kShift);
  const __m512i mask = _mm512_set1_epi8(kExtra == 1 ? 16 : 48);
  return _mm512_ternarylogic_epi32(nibble, moved, mask, 0xF8);  // nibble | (moved & mask)
}

// Scales or minimums of a part: float16, or a byte times the superblock's float16.
template <int kScaleBytes, bool kSigned>
SIXFOLD_INLINE __m512 load_scales(const std::uint8_t* p, __m512 super) {
  if constexpr (kScaleBytes == 2) return load_f16(p);
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const __m512i wide = kSigned ? _mm512_cvtepi8_epi32(bytes) : _mm512_cvtepu8_epi32(bytes);
  return _mm512_mul_ps(_mm512_cvtepi32_ps(wide), super);
}

template <int R, int G, int kEnd, int kBits>
SIXFOLD_INLINE void accumulate(const std::uint8_t* data, const std::int8_t* a, __m512i* dot) {
  if constexpr (G < kEnd) {
    const __m512i w = weights<kBits, G>(data);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) dot[r] = _mm512_dpbusd_epi32(dot[r], w, broadcast4(a + r * kBlock + 4 * G));
    accumulate<R, G + 1, kEnd, kBits>(data, a, dot);
  }
}

// R rows of one group, as far as the blocks before have brought them.
template <int R, typename L>
struct Rows {
  const std::int8_t* a;
  const float* scale;
  const float* sum;           // scaled sums of the parts
  const std::int32_t* start;  // -8 times the sums of the parts
  __m512 acc[R];

  Rows(const Activations& x, int row)
      : a(x.q + x.at(row, 0) * kBlock),
        scale(x.scale + x.at(row, 0)),
        sum(L::kParts == 2 ? x.half_sum + 2 * x.at(row, 0) : x.sum + x.at(row, 0)),
        start(L::kParts == 2 ? x.half_start + 2 * x.at(row, 0) : x.start + x.at(row, 0)) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) acc[r] = _mm512_setzero_ps();
  }

  template <int kPart>
  SIXFOLD_INLINE void part(const std::uint8_t* block, __m512 super, __m512 super_minimum) {
    __m512i dot[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
      dot[r] = L::kZero == 0 ? _mm512_setzero_si512()
                             : _mm512_slli_epi32(_mm512_set1_epi32(start[r * L::kParts + kPart]), L::kZeroShift);
    constexpr int kGroups = 8 / L::kParts;
    accumulate<R, kPart * kGroups, (kPart + 1) * kGroups, L::kBits>(block + L::kHead, a, dot);
    const __m512 w = load_scales<L::kScaleBytes, L::kSignedScales>(block + kPart * 16 * L::kScaleBytes, super);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
      acc[r] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(dot[r]), w), _mm512_set1_ps(scale[r]), acc[r]);
    if constexpr (L::kMinimum) {
      const std::uint8_t* minimums = block + L::kScales + kPart * 16 * L::kScaleBytes;
      const __m512 m = load_scales<L::kScaleBytes, false>(minimums, super_minimum);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) acc[r] = _mm512_fnmadd_ps(m, _mm512_set1_ps(sum[r * L::kParts + kPart]), acc[r]);
    }
  }

  SIXFOLD_INLINE void block(const std::uint8_t* at, __m512 super, __m512 super_minimum) {
    part<0>(at, super, super_minimum);
    if constexpr (L::kParts == 2) part<1>(at, super, super_minimum);
    a += kGroupRows * kBlock;
    scale += kGroupRows;
    sum += kGroupRows * L::kParts;
    start += kGroupRows * L::kParts;
  }
};

template <int R, typename L, bool kPrefetch>
void int_rows(const std::uint8_t* tile, int blocks, const Activations& x, int row, float* y, int ldy) {
  Rows<R, L> rows(x, row);
  __m512 super = _mm512_setzero_ps(), super_minimum = super;
  const int ahead_block = kPrefetch && x.ahead_lines > 0 ? (x.ahead_lines + blocks - 1) / blocks : 0;
  for (int b = 0, ahead = 0; b < blocks; ++b) {
    if constexpr (kPrefetch) {
      for (int line = 0; line < L::kBytes; line += 64)
        _mm_prefetch(reinterpret_cast<const char*>(tile + kAhead + line), _MM_HINT_T1);
      for (const int end = std::min(ahead + ahead_block, x.ahead_lines); ahead < end; ++ahead)
        _mm_prefetch(reinterpret_cast<const char*>(x.ahead[ahead]), _MM_HINT_T1);
    }
    if constexpr (L::kScaleBytes == 1) {
      if (b % kSuperBlocks == 0) {
        super = load_f16(tile);
        if constexpr (L::kMinimum) super_minimum = load_f16(tile + 32);
        tile += L::kSuperHead;
      }
    }
    rows.block(tile, super, super_minimum);
    tile += L::kBytes;
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) _mm512_storeu_ps(y + static_cast<std::size_t>(r) * ldy, rows.acc[r]);
}

template <typename L, bool kPrefetch>
void some_rows(int count, const std::uint8_t* tile, int blocks, const Activations& x, int row, float* y, int ldy) {
  switch (count) {
    case 1:
      return int_rows<1, L, kPrefetch>(tile, blocks, x, row, y, ldy);
    case 2:
      return int_rows<2, L, kPrefetch>(tile, blocks, x, row, y, ldy);
    case 3:
      return int_rows<3, L, kPrefetch>(tile, blocks, x, row, y, ldy);
    case 4:
      return int_rows<4, L, kPrefetch>(tile, blocks, x, row, y, ldy);
    case 5:
      return int_rows<5, L, kPrefetch>(tile, blocks, x, row, y, ldy);
    case 6:
      return int_rows<6, L, kPrefetch>(tile, blocks, x, row, y, ldy);
    case 7:
      return int_rows<7, L, kPrefetch>(tile, blocks, x, row, y, ldy);
    default:
      return int_rows<8, L, kPrefetch>(tile, blocks, x, row, y, ldy);
  }
}

// The first rows fetch the tile's weights ahead, the rest find them in the cache.
template <typename L>
void int_tile(const std::uint8_t* tile, int columns, const Activations& x, int row, int rows, float* y, int ldy) {
  const int blocks = columns / kBlock;
  some_rows<L, true>(rows < kRows ? rows : kRows, tile, blocks, x, row, y, ldy);
  for (int r = kRows; r < rows; r += kRows)
    some_rows<L, false>(rows - r < kRows ? rows - r : kRows, tile, blocks, x, row + r,
                        y + static_cast<std::size_t>(r) * ldy, ldy);
}

template <Values V>
SIXFOLD_INLINE __m512 load_weights(const std::uint8_t* tile, std::size_t index) {
  if constexpr (V == Values::kF32) return _mm512_loadu_ps(reinterpret_cast<const float*>(tile) + index);
  if constexpr (V == Values::kF16) return load_f16(tile + 2 * index);
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(tile + 2 * index));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

// Two sums a row, of even and of odd columns: one chain of additions would wait for itself.
template <int R, Values V>
void float_rows(const std::uint8_t* tile, int columns, const Activations& x, int row, float* y, int ldy) {
  const float* a[R];
  __m512 acc[R][2];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    a[r] = x.f32 + static_cast<std::size_t>(row + r) * x.width;
    acc[r][0] = acc[r][1] = _mm512_setzero_ps();
  }
  constexpr int kBytes = V == Values::kF32 ? 64 : 32;
  for (int k = 0; k < columns; k += 2) {
    _mm_prefetch(reinterpret_cast<const char*>(tile + kAhead + k * kBytes), _MM_HINT_T0);
    if constexpr (kBytes == 64)
      _mm_prefetch(reinterpret_cast<const char*>(tile + kAhead + k * kBytes + 64), _MM_HINT_T0);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const __m512 w = load_weights<V>(tile, static_cast<std::size_t>(k + i) * kTileColumns);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) acc[r][i] = _mm512_fmadd_ps(w, _mm512_set1_ps(a[r][k + i]), acc[r][i]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
    _mm512_storeu_ps(y + static_cast<std::size_t>(r) * ldy, _mm512_add_ps(acc[r][0], acc[r][1]));
}

template <Values V>
void float_tile(const std::uint8_t* tile, int columns, const Activations& x, int row, int rows, float* y, int ldy) {
  int r = 0;
  for (; r + kRows <= rows; r += kRows)
    float_rows<kRows, V>(tile, columns, x, row + r, y + static_cast<std::size_t>(r) * ldy, ldy);
  for (; r + 4 <= rows; r += 4) float_rows<4, V>(tile, columns, x, row + r, y + static_cast<std::size_t>(r) * ldy, ldy);
  for (; r < rows; ++r) float_rows<1, V>(tile, columns, x, row + r, y + static_cast<std::size_t>(r) * ldy, ldy);
}

// Four sums a row, of every fourth column, so that a single row does not wait for its own additions.
template <int R, Values V>
void down_rows(const std::uint8_t* tile, int columns, const float* x, int stride, float* y, int ldy) {
  __m512 acc[R][4];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < 4; ++i) acc[r][i] = _mm512_setzero_ps();
  constexpr int kBytes = V == Values::kF32 ? 64 : 32;
  for (int k = 0; k < columns; k += 4) {
#pragma GCC unroll 4
    for (int line = 0; line < 4 * kBytes; line += 64)
      _mm_prefetch(reinterpret_cast<const char*>(tile + kAhead + k * kBytes + line), _MM_HINT_T0);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m512 w = load_weights<V>(tile, static_cast<std::size_t>(k + i) * kTileColumns);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r)
        acc[r][i] = _mm512_fmadd_ps(w, _mm512_set1_ps(x[static_cast<std::size_t>(r) * stride + k + i]), acc[r][i]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
    _mm512_storeu_ps(y + static_cast<std::size_t>(r) * ldy,
                     _mm512_add_ps(_mm512_add_ps(acc[r][0], acc[r][1]), _mm512_add_ps(acc[r][2], acc[r][3])));
}

template <Values V>
void down_float_tile(const std::uint8_t* tile, int columns, const Activations& x, int row, int rows, float* y,
                     int ldy) {
  const float* from = x.f32 + static_cast<std::size_t>(row) * x.width;
  int r = 0;
  for (; r + 4 <= rows; r += 4)
    down_rows<4, V>(tile, columns, from + static_cast<std::size_t>(r) * x.width, x.width,
                    y + static_cast<std::size_t>(r) * ldy, ldy);
  for (; r < rows; ++r)
    down_rows<1, V>(tile, columns, from + static_cast<std::size_t>(r) * x.width, x.width,
                    y + static_cast<std::size_t>(r) * ldy, ldy);
}

// Sums of even and of odd ranks, as above; the tile is in the cache (small, and fetched ahead).
template <int R, Values V>
void add_rows(const std::uint8_t* tile, int rank, const float* t, int stride, float* out, int ldy) {
  __m512 acc[R][2];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = _mm512_setzero_ps();
  for (int k = 0; k < rank; k += 2) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const __m512 w = load_weights<V>(tile, static_cast<std::size_t>(k + i) * kTileColumns);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r)
        acc[r][i] = _mm512_fmadd_ps(w, _mm512_set1_ps(t[static_cast<std::size_t>(r) * stride + k + i]), acc[r][i]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    float* y = out + static_cast<std::size_t>(r) * ldy;
    _mm512_storeu_ps(y, _mm512_add_ps(_mm512_loadu_ps(y), _mm512_add_ps(acc[r][0], acc[r][1])));
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

namespace avx512 {

MatmulTile matmul(const MatrixRecord& record) { return choose_layout<Choose>(record); }

MatmulTile down_tile(Values values) {
  if (values == Values::kF32) return down_float_tile<Values::kF32>;
  return values == Values::kF16 ? down_float_tile<Values::kF16> : down_float_tile<Values::kBF16>;
}

AddTile add_tile(Values values) {
  if (values == Values::kF32) return add_float_tile<Values::kF32>;
  return values == Values::kF16 ? add_float_tile<Values::kF16> : add_float_tile<Values::kBF16>;
}

}  // namespace avx512
}  // namespace sixfold
