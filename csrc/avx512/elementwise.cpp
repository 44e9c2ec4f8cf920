// AVX-512 norms, activations, quantisation and the table of this instruction set.
#include <immintrin.h>

#include <cmath>

#include "../kernels.hpp"
#include "math.hpp"

namespace sixfold {
namespace avx512 {

MatmulTile matmul(const MatrixRecord& record);
MatmulTile down_tile(Values values);
AddTile add_tile(Values values);
void attention(const AttentionJob& job);
void int8_attention(const AttentionJob& job);
void int4_attention(const AttentionJob& job);

namespace {

inline __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1); }

void rms_norm(const float* x, const float* w, float epsilon, int n, float* y) {
  __m512 sums[4] = {};
  const int whole = n & ~15;
  const __mmask16 tail = first(n - whole);
  int i = 0;
  for (; i + 64 <= whole; i += 64)
    for (int j = 0; j < 4; ++j) {
      const __m512 v = _mm512_loadu_ps(x + i + 16 * j);
      sums[j] = _mm512_fmadd_ps(v, v, sums[j]);
    }
  for (; i < whole; i += 16) {
    const __m512 v = _mm512_loadu_ps(x + i);
    sums[0] = _mm512_fmadd_ps(v, v, sums[0]);
  }
  const __m512 rest = _mm512_maskz_loadu_ps(tail, x + whole);
  sums[1] = _mm512_fmadd_ps(rest, rest, sums[1]);
  const float sum = horizontal_sum(_mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
  const __m512 factor = _mm512_set1_ps(1.0f / std::sqrt(sum / static_cast<float>(n) + epsilon));
  for (i = 0; i < whole; i += 16)
    _mm512_storeu_ps(y + i, _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(x + i), factor), _mm512_loadu_ps(w + i)));
  const __m512 scaled = _mm512_mul_ps(rest, factor);
  _mm512_mask_storeu_ps(y + whole, tail, _mm512_mul_ps(scaled, _mm512_maskz_loadu_ps(tail, w + whole)));
}

void quantize(const float* x, int count, const Activations& out, int row, int block) {
  for (int b = block; b < block + count; ++b, x += kBlock) {
    const __m512 v0 = _mm512_loadu_ps(x), v1 = _mm512_loadu_ps(x + 16);
    const float peak = horizontal_max(_mm512_max_ps(_mm512_abs_ps(v0), _mm512_abs_ps(v1)));
    const float scale = peak / 127.0f;
    const __m512 inverse = _mm512_set1_ps(peak > 0 ? 127.0f / peak : 0.0f);
    const __m512i q0 = _mm512_cvtps_epi32(_mm512_mul_ps(v0, inverse));
    const __m512i q1 = _mm512_cvtps_epi32(_mm512_mul_ps(v1, inverse));
    const int sums[2] = {_mm512_reduce_add_epi32(q0), _mm512_reduce_add_epi32(q1)};  // integers: any order
    std::int8_t* q = out.q + out.at(row, b) * kBlock;
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q), _mm512_cvtepi32_epi8(q0));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q + 16), _mm512_cvtepi32_epi8(q1));
    out.describe_block(out.at(row, b), scale, sums);
  }
}

inline __m512 activate(Activation activation, __m512 g) {
  __m512 u = g;
  if (activation == Activation::kGeluTanh) {
    // gelu by tanh, as x * sigmoid(2 u) (Hendrycks & Gimpel 2016)
    const __m512 cube = _mm512_mul_ps(_mm512_mul_ps(g, g), g);
    u = _mm512_mul_ps(_mm512_set1_ps(1.5957691216057308f), _mm512_fmadd_ps(_mm512_set1_ps(0.044715f), cube, g));
  }
  const __m512 e = exp_ps(_mm512_sub_ps(_mm512_setzero_ps(), u));
  return _mm512_div_ps(g, _mm512_add_ps(_mm512_set1_ps(1.0f), e));
}

void gate(Activation activation, const float* gate, const float* up, int n, float* out) {
  for (int i = 0; i < n; i += 16) {
    const __mmask16 some = first(n - i < 16 ? n - i : 16);
    const __m512 value = activate(activation, _mm512_maskz_loadu_ps(some, gate + i));
    _mm512_mask_storeu_ps(out + i, some, _mm512_mul_ps(value, _mm512_maskz_loadu_ps(some, up + i)));
  }
}

void fold(const PartialSum& into, const PartialSum& other, int n) {
  const float max = *into.max > *other.max ? *into.max : *other.max;
  // both factors by one exp: lane 0 and lane 1
  const __m512 shifts = _mm512_mask_blend_ps(2, _mm512_set1_ps(*into.max - max), _mm512_set1_ps(*other.max - max));
  alignas(64) float factors[16];
  _mm512_store_ps(factors, exp_ps(shifts));
  const __m512 a = _mm512_set1_ps(factors[0]), b = _mm512_set1_ps(factors[1]);
  for (int i = 0; i < n; i += 16) {
    const __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(other.sum + i), b);
    _mm512_storeu_ps(into.sum + i, _mm512_fmadd_ps(_mm512_loadu_ps(into.sum + i), a, scaled));
  }
  *into.weight = *into.weight * factors[0] + *other.weight * factors[1];
  *into.max = max;
}

}  // namespace
}  // namespace avx512

const Kernels& avx512_kernels() {
  static const Kernels table = [] {
    Kernels kernels = avx2_kernels();  // what is not worth a wider twin: rope, to_f16, to_int8, to_int4
    kernels.name = "avx512";
    kernels.matmul = avx512::matmul;
    kernels.rms_norm = avx512::rms_norm;
    kernels.quantize = avx512::quantize;
    kernels.gate = avx512::gate;
    kernels.attention = kernels.float_attention = avx512::attention;
    kernels.int8_attention = avx512::int8_attention;
    kernels.int4_attention = avx512::int4_attention;
    kernels.fold = avx512::fold;
    kernels.down_tile = avx512::down_tile;
    kernels.add_tile = avx512::add_tile;
    return kernels;
  }();
  return table;
}

}  // namespace sixfold
