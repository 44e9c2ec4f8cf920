// AVX2 attention over pages: the operations that paged_attention.hpp and integer_attention.hpp are written in.
#include <immintrin.h>

#include "../integer_attention.hpp"
#include "../paged_attention.hpp"
#include "math.hpp"

namespace sixfold::avx2 {
namespace {

struct Vector {
  using T = __m256;
  using Word = float;
  static constexpr int kStep = 1;
  static constexpr int kWidth = 8;
  static constexpr int kScoreRows = 6;                 // rows whose scores of a page are summed at once
  static constexpr int kSumRows = 6, kSumVectors = 2;  // rows and columns whose values are summed at once
  static constexpr int kSoftRows = 2;                  // rows whose softmax is under way at once
  static constexpr int kDirectRows = 6;                // up to these, pages are converted on the way instead of copied

  static T zero() { return _mm256_setzero_ps(); }
  static T set(float x) { return _mm256_set1_ps(x); }
  static T broadcast(const float* p) { return _mm256_broadcast_ss(p); }
  static T load(const float* p) { return _mm256_loadu_ps(p); }
  static float word(const float* p) { return *p; }
  static T load_words(const float* p) { return load(p); }
  static T words(const std::uint16_t* p, int) { return load_f16(p); }
  static void store(float* p, T x) { _mm256_storeu_ps(p, x); }
  static T multiply_add(T a, T b, T c) { return _mm256_fmadd_ps(a, b, c); }
  static T mul(T a, T b) { return _mm256_mul_ps(a, b); }
  static T add(T a, T b) { return _mm256_add_ps(a, b); }
  static T sub(T a, T b) { return _mm256_sub_ps(a, b); }
  static T max(T a, T b) { return _mm256_max_ps(a, b); }
  static T exp(T x) { return exp_ps(x); }
  static float exp_one(float x) { return _mm256_cvtss_f32(exp_ps(_mm256_set1_ps(x))); }
  static float horizontal_max(T x) { return ::horizontal_max(x); }
  static float horizontal_sum(T x) { return ::horizontal_sum(x); }
  // x in lanes [low, high), `other` in the rest.
  static T only(T x, int low, int high, float other) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i from = _mm256_cmpgt_epi32(lanes, _mm256_set1_epi32(low - 1));
    const __m256i seen = _mm256_and_si256(from, _mm256_cmpgt_epi32(_mm256_set1_epi32(high), lanes));
    return _mm256_blendv_ps(set(other), x, _mm256_castsi256_ps(seen));
  }
  static void store_probabilities(float* row, int key, T x) { store(row + key, x); }
  static void prefetch(const char* p) { _mm_prefetch(p, _MM_HINT_T0); }
};

struct IntVector : Vector {
  using I = __m256i;
  static T load_f16(const std::uint16_t* p) { return ::load_f16(p); }
  static I no_sum() { return _mm256_setzero_si256(); }
  static I extend(const std::uint8_t* p) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static void halves(const std::uint8_t* p, I& low, I& high) {
    const I words = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    low = _mm256_and_si256(words, _mm256_set1_epi16(15));
    high = _mm256_srli_epi16(words, 4);
  }
  static I pair(const std::uint32_t* p) { return _mm256_set1_epi32(static_cast<int>(*p)); }
  static void add_products(I& sum, I a, I b) { sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }
  static T to_float(I sum) { return _mm256_cvtepi32_ps(sum); }
  static void store_int16(std::int16_t* p, T x) {
    const __m256i integers = _mm256_cvtps_epi32(x);
    const __m128i low = _mm256_castsi256_si128(integers), high = _mm256_extracti128_si256(integers, 1);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packs_epi32(low, high));
  }
};

}  // namespace

void attention(const AttentionJob& job) { PagedAttention<Vector>(job).run(); }
void int8_attention(const AttentionJob& job) { Int8Attention<IntVector>(job).run(); }
void int4_attention(const AttentionJob& job) { Int4Attention<IntVector>(job).run(); }

}  // namespace sixfold::avx2
