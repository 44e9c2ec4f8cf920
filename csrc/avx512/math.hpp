// Vector helpers shared by the AVX-512 kernels. Internal linkage throughout: nothing here may be picked by the linker
// for code that runs on machines without AVX-512.
#pragma once

#include <immintrin.h>

namespace {

// e^x to 1 ulp or so: x = n ln2 + r, polynomial of degree 5 in r (Cephes expf, Moshier). Underflows to 0 by way of
// subnormals; NaN stays NaN.
[[maybe_unused]] inline __m512 exp_ps(__m512 x) {
  const __m512 clamped = _mm512_min_ps(_mm512_set1_ps(88.3762626647949f), x);  // min returns its second operand for NaN
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(clamped, _mm512_set1_ps(1.44269504088896341f)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), clamped);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
  p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
  // ordered: NaN keeps its NaN result; below it 0, also for -inf, whose polynomial is NaN
  const __mmask16 normal = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.3365478515625f), _CMP_NLT_UQ);
  return _mm512_maskz_scalef_ps(normal, p, n);
}

[[maybe_unused]] inline __m512 load_f16(const void* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
}

// Horizontal sums and maxima in one fixed order, halves first; written out, since a compiler may choose its own.
[[maybe_unused]] inline __m256 upper_half(__m512 v) { return _mm512_extractf32x8_ps(v, 1); }

[[maybe_unused]] inline float horizontal_sum(__m512 v) {
  const __m256 a = _mm256_add_ps(_mm512_castps512_ps256(v), upper_half(v));
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  s = _mm_add_ss(s, _mm_movehdup_ps(s));
  return _mm_cvtss_f32(s);
}

[[maybe_unused]] inline float horizontal_max(__m512 v) {
  const __m256 a = _mm256_max_ps(_mm512_castps512_ps256(v), upper_half(v));
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  s = _mm_max_ss(s, _mm_movehdup_ps(s));
  return _mm_cvtss_f32(s);
}

}  // namespace
