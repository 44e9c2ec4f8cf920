// AVX2 norms, activations, rope, quantisation and the table of this instruction set.
#include <immintrin.h>

#include <climits>
#include <cmath>

#include "../kernels.hpp"
#include "math.hpp"

namespace sixfold {
namespace avx2 {

MatmulTile matmul(const MatrixRecord& record);
MatmulTile down_tile(Values values);
AddTile add_tile(Values values);
void attention(const AttentionJob& job);
void int8_attention(const AttentionJob& job);
void int4_attention(const AttentionJob& job);

namespace {

// The first `n` of 8 lanes, for tails.
inline __m256i tail_mask(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

void rms_norm(const float* x, const float* w, float epsilon, int n, float* y) {
  __m256 sum = _mm256_setzero_ps();
  const int whole = n & ~7;
  const __m256i mask = tail_mask(n - whole);
  for (int i = 0; i < whole; i += 8) {
    const __m256 v = _mm256_loadu_ps(x + i);
    sum = _mm256_fmadd_ps(v, v, sum);
  }
  if (whole < n) {
    const __m256 v = _mm256_maskload_ps(x + whole, mask);
    sum = _mm256_fmadd_ps(v, v, sum);
  }
  const float mean = horizontal_sum(sum) / static_cast<float>(n);
  const __m256 factor = _mm256_set1_ps(1.0f / std::sqrt(mean + epsilon));
  for (int i = 0; i < whole; i += 8)
    _mm256_storeu_ps(y + i, _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(x + i), factor), _mm256_loadu_ps(w + i)));
  if (whole < n) {
    const __m256 v = _mm256_mul_ps(_mm256_maskload_ps(x + whole, mask), factor);
    _mm256_maskstore_ps(y + whole, mask, _mm256_mul_ps(v, _mm256_maskload_ps(w + whole, mask)));
  }
}

void quantize(const float* x, int count, const Activations& out, int row, int block) {
  const __m256 no_sign = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  for (int b = block; b < block + count; ++b, x += kBlock) {
    __m256 v[4], largest = _mm256_setzero_ps();
    for (int i = 0; i < 4; ++i) {
      v[i] = _mm256_loadu_ps(x + 8 * i);
      largest = _mm256_max_ps(largest, _mm256_and_ps(v[i], no_sign));
    }
    const float peak = horizontal_max(largest);
    const float scale = peak / 127.0f;
    const __m256 inverse = _mm256_set1_ps(peak > 0 ? 127.0f / peak : 0.0f);
    __m256i q[4];
    for (int i = 0; i < 4; ++i) q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
    const int first = horizontal_sum_i32(_mm256_add_epi32(q[0], q[1]));
    const int second = horizontal_sum_i32(_mm256_add_epi32(q[2], q[3]));
    // packs work within 128-bit halves; the permutation puts the dwords back in order
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
    const __m256i ordered = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out.q + out.at(row, b) * kBlock), ordered);
    const int sums[2] = {first, second};
    out.describe_block(out.at(row, b), scale, sums);
  }
}

inline __m256 activate(Activation activation, __m256 g) {
  __m256 u = g;
  if (activation == Activation::kGeluTanh) {
    // gelu by tanh, as x * sigmoid(2 u) (Hendrycks & Gimpel 2016)
    const __m256 cube = _mm256_mul_ps(_mm256_mul_ps(g, g), g);
    u = _mm256_mul_ps(_mm256_set1_ps(1.5957691216057308f), _mm256_fmadd_ps(_mm256_set1_ps(0.044715f), cube, g));
  }
  const __m256 e = exp_ps(_mm256_sub_ps(_mm256_setzero_ps(), u));
  return _mm256_div_ps(g, _mm256_add_ps(_mm256_set1_ps(1.0f), e));
}

void gate(Activation activation, const float* gate, const float* up, int n, float* out) {
  const int whole = n & ~7;
  for (int i = 0; i < whole; i += 8)
    _mm256_storeu_ps(out + i, _mm256_mul_ps(activate(activation, _mm256_loadu_ps(gate + i)), _mm256_loadu_ps(up + i)));
  if (whole < n) {
    const __m256i mask = tail_mask(n - whole);
    const __m256 value = activate(activation, _mm256_maskload_ps(gate + whole, mask));
    _mm256_maskstore_ps(out + whole, mask, _mm256_mul_ps(value, _mm256_maskload_ps(up + whole, mask)));
  }
}

void rope(float* x, const float* cosine, const float* sine, int half) {
  int i = 0;
  for (; i + 8 <= half; i += 8) {
    const __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + i + half);
    const __m256 c = _mm256_loadu_ps(cosine + i), s = _mm256_loadu_ps(sine + i);
    _mm256_storeu_ps(x + i, _mm256_sub_ps(_mm256_mul_ps(a, c), _mm256_mul_ps(b, s)));
    _mm256_storeu_ps(x + i + half, _mm256_add_ps(_mm256_mul_ps(b, c), _mm256_mul_ps(a, s)));
  }
  for (; i < half; ++i) {
    const float a = x[i], b = x[i + half];
    x[i] = a * cosine[i] - b * sine[i];
    x[i + half] = b * cosine[i] + a * sine[i];
  }
}

// Halves of 1, 2 and 4 within a register, the others between registers.
void rotate_head(float* x, int n) {
  const int block = n & -n;
  const __m256 scale = _mm256_set1_ps(1.0f / std::sqrt(static_cast<float>(block)));
  const __m256 one = _mm256_castsi256_ps(_mm256_setr_epi32(0, INT_MIN, 0, INT_MIN, 0, INT_MIN, 0, INT_MIN));
  const __m256 two = _mm256_castsi256_ps(_mm256_setr_epi32(0, 0, INT_MIN, INT_MIN, 0, 0, INT_MIN, INT_MIN));
  const __m256 four = _mm256_castsi256_ps(_mm256_setr_epi32(0, 0, 0, 0, INT_MIN, INT_MIN, INT_MIN, INT_MIN));
  for (int i = 0; i < n; i += 8) {
    __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x + i), scale);
    v = _mm256_add_ps(_mm256_permute_ps(v, 0xb1), _mm256_xor_ps(v, one));
    v = _mm256_add_ps(_mm256_permute_ps(v, 0x4e), _mm256_xor_ps(v, two));
    v = _mm256_add_ps(_mm256_permute2f128_ps(v, v, 1), _mm256_xor_ps(v, four));
    _mm256_storeu_ps(x + i, v);
  }
  for (int half = 8; half < block; half *= 2)
    for (int first = 0; first < n; first += 2 * half)
      for (int i = first; i < first + half; i += 8) {
        const __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + i + half);
        _mm256_storeu_ps(x + i, _mm256_add_ps(a, b));
        _mm256_storeu_ps(x + i + half, _mm256_sub_ps(a, b));
      }
}

void to_f16(const float* x, int n, std::uint16_t* y, int stride) {
  const __m256 top = _mm256_set1_ps(65504.0f), bottom = _mm256_set1_ps(-65504.0f);
  alignas(16) std::uint16_t halves[8];
  for (int i = 0; i < n; i += 8) {  // n is a multiple of 16 (head sizes)
    // max returns its second operand when the first is NaN
    const __m256 clamped = _mm256_min_ps(_mm256_max_ps(_mm256_loadu_ps(x + i), bottom), top);
    const __m128i packed = _mm256_cvtps_ph(clamped, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    if (stride == 1) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(y + i), packed);
      continue;
    }
    _mm_store_si128(reinterpret_cast<__m128i*>(halves), packed);
    for (int j = 0; j < 8; ++j) y[static_cast<std::size_t>(i + j) * stride] = halves[j];
  }
}

std::uint16_t to_int8(const float* x, int n, std::int8_t* q) {
  const __m256 sign = _mm256_set1_ps(-0.0f), limit = _mm256_set1_ps(127.0f), low = _mm256_set1_ps(-127.0f);
  __m256 top = _mm256_setzero_ps();
  for (int i = 0; i < n; i += 8)  // max returns its second operand when the first is NaN
    top = _mm256_max_ps(_mm256_andnot_ps(sign, _mm256_loadu_ps(x + i)), top);
  const float peak = std::min(horizontal_max(top) / 127.0f, 65504.0f);
  const auto half = static_cast<std::uint16_t>(_cvtss_sh(peak, _MM_FROUND_TO_NEAREST_INT));
  const float scale = _cvtsh_ss(half);
  const __m256 inverse = _mm256_set1_ps(scale > 0 ? 1.0f / scale : 0.0f);
  const auto integers = [&](int i) {
    const __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(x + i), inverse);
    return _mm256_cvtps_epi32(_mm256_max_ps(_mm256_min_ps(scaled, limit), low));
  };
  for (int i = 0; i < n; i += 16) {  // packs work within lanes of 128 bits: put the quarters in order
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(integers(i), integers(i + 8)), 0xd8);
    const __m128i packed = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q + i), packed);
  }
  return half;
}

// See the scalar one.
std::uint16_t to_int4(const float* x, int n, std::int8_t* codes) {
  const __m256 limit = _mm256_set1_ps(65504.0f), low = _mm256_set1_ps(-65504.0f);
  const auto value = [&](int i) { return _mm256_max_ps(_mm256_min_ps(_mm256_loadu_ps(x + i), limit), low); };
  __m256 top = _mm256_setzero_ps();
  for (int i = 0; i < n; i += 8) top = _mm256_max_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), value(i)), top);
  const float peak = horizontal_max(top);
  const auto code = [&](int i, __m256 inverse) {
    const __m256 scaled = _mm256_fmadd_ps(value(i), inverse, _mm256_set1_ps(8.0f));
    const __m256 clipped = _mm256_max_ps(_mm256_min_ps(scaled, _mm256_set1_ps(15.0f)), _mm256_setzero_ps());
    return _mm256_cvttps_epi32(clipped);
  };
  float best = -1, scale = 0, inverse = 0;
  for (const float range : kInt4Ranges) {
    const float tried = peak > 0 ? 7.5f / (peak * range) : 0.0f;
    __m256 xq = _mm256_setzero_ps(), qq = _mm256_setzero_ps();
    for (int i = 0; i < n; i += 8) {
      const __m256 q = _mm256_sub_ps(_mm256_cvtepi32_ps(code(i, _mm256_set1_ps(tried))), _mm256_set1_ps(7.5f));
      xq = _mm256_fmadd_ps(value(i), q, xq);
      qq = _mm256_fmadd_ps(q, q, qq);
    }
    const float along = horizontal_sum(xq), square = horizontal_sum(qq);
    if (along * along / square <= best) continue;
    best = along * along / square;
    scale = along / square;
    inverse = tried;
  }
  for (int i = 0; i < n; i += 16) {  // packs work within lanes of 128 bits: put the quarters in order
    const __m256 by = _mm256_set1_ps(inverse);
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(code(i, by), code(i + 8, by)), 0xd8);
    const __m128i packed = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + i), packed);
  }
  return static_cast<std::uint16_t>(_cvtss_sh(scale, _MM_FROUND_TO_NEAREST_INT));
}

void fold(const PartialSum& into, const PartialSum& other, int n) {
  const float max = *into.max > *other.max ? *into.max : *other.max;
  // both factors by one exp: lane 0 and lane 1
  const __m256 shifts = _mm256_blend_ps(_mm256_set1_ps(*into.max - max), _mm256_set1_ps(*other.max - max), 2);
  alignas(32) float factors[8];
  _mm256_store_ps(factors, exp_ps(shifts));
  const __m256 a = _mm256_set1_ps(factors[0]), b = _mm256_set1_ps(factors[1]);
  for (int i = 0; i < n; i += 8) {
    const __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(other.sum + i), b);
    _mm256_storeu_ps(into.sum + i, _mm256_fmadd_ps(_mm256_loadu_ps(into.sum + i), a, scaled));
  }
  *into.weight = *into.weight * factors[0] + *other.weight * factors[1];
  *into.max = max;
}

}  // namespace
}  // namespace avx2

const Kernels& avx2_kernels() {
  static const Kernels table{
      "avx2",          avx2::matmul,      avx2::rms_norm,       avx2::quantize,       avx2::gate,
      avx2::rope,      avx2::rotate_head, avx2::to_f16,         avx2::to_int8,        avx2::to_int4,
      avx2::attention, avx2::attention,   avx2::int8_attention, avx2::int4_attention, avx2::fold,
      avx2::down_tile, avx2::add_tile};
  return table;
}

}  // namespace sixfold
