// How the bytes of a quantised tile lie, for every kernel that reads one. Everything here is internal to the file that
// includes it, so that code compiled for one instruction set never stands in for another.
//
// A tile is 16 outputs by all columns, a run of blocks of 32 columns:
//
//   | scales [parts][16] | minimums [parts][16], if any | values |                     parts = 32 / block
//
// int8 values: [8 groups of 4 columns][16 outputs][4 columns] signed bytes.
// int4, 5, 6: unsigned. First the nibbles, a byte holds column k (low) and k + 16 (high): [4][16][4] bytes. Then the
// bits above: of 5-bit values one byte [16][4] whose bit g belongs to group g, of 6-bit values two such bytes whose bits
// 2 i, 2 i + 1 belong to group i of the first and the last four.
// Scales and minimums are float16, or bytes (scale_bytes 1) that a float16 for every 8 blocks multiplies: such a
// superblock begins with | scales [16] | minimums [16], if any |. Bytes of scales are signed where there is no minimum.
#pragma once

#include <type_traits>

#include "kernels.hpp"

// The pieces of an inner loop: called out of line, they would pass their registers through memory.
#ifdef __GNUC__
#define SIXFOLD_INLINE [[gnu::always_inline]] inline
#else
#define SIXFOLD_INLINE inline
#endif

namespace sixfold {
namespace {

constexpr int kSuperBlocks = 8;  // blocks that share a float16 scale where scales are bytes

// What a weight's integer is too large by: -8 sum(activations) << kZeroShift takes it away again.
constexpr int zero_point(Values values, Minimum minimum) {
  if (values == Values::kInt8) return 128;  // stored signed, read as unsigned
  if (minimum != Minimum::kZeroPoint) return 0;
  return values == Values::kInt4 ? 8 : values == Values::kInt5 ? 16 : 32;
}

template <Values V, int kPart, int kScale, Minimum M>
struct Layout {
  static constexpr Values kValues = V;
  static constexpr int kBits = V == Values::kInt4 ? 4 : V == Values::kInt5 ? 5 : V == Values::kInt6 ? 6 : 8;
  static constexpr int kParts = kBlock / kPart;
  static constexpr int kScaleBytes = kScale;
  static constexpr bool kMinimum = M == Minimum::kExplicit;
  static constexpr bool kSignedScales = !kMinimum;
  static constexpr int kScales = kTileColumns * kParts * kScale;  // bytes
  static constexpr int kHead = kScales * (kMinimum ? 2 : 1);
  static constexpr int kBytes = kHead + kTileColumns * kBlock * kBits / 8;
  static constexpr int kSuperHead = kScale == 1 ? kTileColumns * 2 * (kMinimum ? 2 : 1) : 0;
  static constexpr int kZero = zero_point(V, M);
  static constexpr int kZeroShift = kZero == 128 ? 4 : kZero == 32 ? 2 : kZero == 16 ? 1 : 0;
};

template <typename Choose, Values V, int kPart, int kScale>
auto choose_minimum(Minimum minimum) {
  if (minimum == Minimum::kExplicit) return Choose::template integer<Layout<V, kPart, kScale, Minimum::kExplicit>>();
  return Choose::template integer<Layout<V, kPart, kScale, Minimum::kZeroPoint>>();
}

template <typename Choose, Values V>
auto choose_scales(const MatrixRecord& r) {
  if (r.scale_bytes == 2) return choose_minimum<Choose, V, 32, 2>(r.minimum);
  if (r.block == 32) return choose_minimum<Choose, V, 32, 1>(r.minimum);
  return choose_minimum<Choose, V, 16, 1>(r.minimum);
}

// Choose::integer<Layout>() or Choose::floating<Values>() of a matrix that read_plan has accepted.
template <typename Choose>
auto choose_layout(const MatrixRecord& record) {
  switch (record.values) {
    case Values::kF32:
      return Choose::template floating<Values::kF32>();
    case Values::kF16:
      return Choose::template floating<Values::kF16>();
    case Values::kBF16:
      return Choose::template floating<Values::kBF16>();
    case Values::kInt4:
      return choose_scales<Choose, Values::kInt4>(record);
    case Values::kInt5:
      return choose_scales<Choose, Values::kInt5>(record);
    case Values::kInt6:
      return choose_minimum<Choose, Values::kInt6, 16, 1>(Minimum::kZeroPoint);
    case Values::kInt8:
      break;
  }
  return choose_minimum<Choose, Values::kInt8, 32, 2>(Minimum::kZeroPoint);
}

}  // namespace
}  // namespace sixfold
