// AVX-512 attention over pages: the operations that paged_attention.hpp is written in.
#include <immintrin.h>

#include "../paged_attention.hpp"
#include "math.hpp"

namespace sixfold::avx512 {
namespace {

struct Vector {
  using T = __m512;
  using Word = float;
  static constexpr int kStep = 1;
  static constexpr int kWidth = 16;
  static constexpr int kScoreRows = 24;                // rows whose scores of a page are summed at once
  static constexpr int kSumRows = 6, kSumVectors = 4;  // rows and columns whose values are summed at once
  static constexpr int kSoftRows = 4;                  // rows whose softmax is under way at once
  static constexpr int kDirectRows = 6;                // up to these, pages are converted on the way instead of copied

  static T zero() { return _mm512_setzero_ps(); }
  static T set(float x) { return _mm512_set1_ps(x); }
  static T broadcast(const float* p) { return _mm512_set1_ps(*p); }
  static T load(const float* p) { return _mm512_loadu_ps(p); }
  static float word(const float* p) { return *p; }
  static T load_words(const float* p) { return load(p); }
  static T words(const std::uint16_t* p, int) { return load_f16(p); }
  static void store(float* p, T x) { _mm512_storeu_ps(p, x); }
  static T multiply_add(T a, T b, T c) { return _mm512_fmadd_ps(a, b, c); }
  static T mul(T a, T b) { return _mm512_mul_ps(a, b); }
  static T add(T a, T b) { return _mm512_add_ps(a, b); }
  static T sub(T a, T b) { return _mm512_sub_ps(a, b); }
  static T max(T a, T b) { return _mm512_max_ps(a, b); }
  static T exp(T x) { return exp_ps(x); }
  static float exp_one(float x) { return _mm512_cvtss_f32(exp_ps(_mm512_set1_ps(x))); }
  static float horizontal_max(T x) { return ::horizontal_max(x); }
  static float horizontal_sum(T x) { return ::horizontal_sum(x); }
  static T only(T x, int low, int high, float other) { return only_lanes(x, low, high, other); }
  static void store_probabilities(float* row, int key, T x) { store(row + key, x); }
  static void prefetch(const char* p) { _mm_prefetch(p, _MM_HINT_T0); }
};

}  // namespace

void attention(const AttentionJob& job) { PagedAttention<Vector>(job).run(); }

}  // namespace sixfold::avx512
