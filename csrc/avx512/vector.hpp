// Operations on 16 float32 that the attentions of this width share; see paged_attention.hpp for what they are for.
#pragma once

#include <immintrin.h>

#include "math.hpp"

namespace {

struct FloatVector {
  using T = __m512;
  static constexpr int kWidth = 16;
  static constexpr int kScoreRows = 24;                // rows whose scores of a page are summed at once
  static constexpr int kSumRows = 6, kSumVectors = 4;  // rows and columns whose values are summed at once
  static constexpr int kSoftRows = 4;                  // rows whose softmax is under way at once
  static constexpr int kDirectRows = 6;                // up to these, pages are converted on the way instead of copied

  static T zero() { return _mm512_setzero_ps(); }
  static T set(float x) { return _mm512_set1_ps(x); }
  static T load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, T x) { _mm512_storeu_ps(p, x); }
  static T mul(T a, T b) { return _mm512_mul_ps(a, b); }
  static T add(T a, T b) { return _mm512_add_ps(a, b); }
  static T sub(T a, T b) { return _mm512_sub_ps(a, b); }
  static T max(T a, T b) { return _mm512_max_ps(a, b); }
  static T exp(T x) { return exp_ps(x); }
  static float exp_one(float x) { return _mm512_cvtss_f32(exp_ps(_mm512_set1_ps(x))); }
  static float horizontal_max(T x) { return ::horizontal_max(x); }
  static float horizontal_sum(T x) { return ::horizontal_sum(x); }
  // x in lanes [low, high), `other` in the rest.
  static T only(T x, int low, int high, float other) {
    const auto below = [](int n) { return n <= 0 ? 0u : n >= 16 ? 0xffffu : (1u << n) - 1; };
    return _mm512_mask_blend_ps(static_cast<__mmask16>(below(high) & ~below(low)), set(other), x);
  }
  static void prefetch(const char* p) { _mm_prefetch(p, _MM_HINT_T0); }
};

}  // namespace
