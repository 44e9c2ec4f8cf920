// AVX-512 attention over pages, in float32 and in integers (VNNI): the operations that paged_attention.hpp and
// integer_attention.hpp are written in.
#include "../integer_attention.hpp"
#include "../paged_attention.hpp"
#include "vector.hpp"

namespace sixfold::avx512 {
namespace {

struct Vector : FloatVector {
  using Word = float;
  static constexpr int kStep = 1;

  static T broadcast(const float* p) { return _mm512_set1_ps(*p); }
  static float word(const float* p) { return *p; }
  static T load_words(const float* p) { return load(p); }
  static T words(const std::uint16_t* p, int) { return load_f16(p); }
  static void store_probabilities(float* row, int key, T x) { store(row + key, x); }
  static T multiply_add(T a, T b, T c) { return _mm512_fmadd_ps(a, b, c); }
};

struct IntVector : FloatVector {
  using I = __m512i;
  static void store_probabilities(float* row, int key, T x) { store(row + key, x); }
  static T load_f16(const std::uint16_t* p) { return ::load_f16(p); }
  static T multiply_add(T a, T b, T c) { return _mm512_fmadd_ps(a, b, c); }
  static I no_sum() { return _mm512_setzero_si512(); }
  static I extend(const std::uint8_t* p) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void halves(const std::uint8_t* p, I& low, I& high) {
    const I words = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    low = _mm512_and_si512(words, _mm512_set1_epi16(15));
    high = _mm512_srli_epi16(words, 4);
  }
  // Assembly, since GCC 12 passes sums of this builtin through memory.
  static const std::uint32_t* pair(const std::uint32_t* p) { return p; }
  static void add_products(I& sum, const std::uint32_t* a, I b) {
    asm("vpdpwssd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(b), "m"(*a));
  }
  static T to_float(I sum) { return _mm512_cvtepi32_ps(sum); }
  static void store_int16(std::int16_t* p, T x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(x)));
  }
};

}  // namespace

void attention(const AttentionJob& job) { PagedAttention<Vector>(job).run(); }
void int8_attention(const AttentionJob& job) { Int8Attention<IntVector>(job).run(); }
void int4_attention(const AttentionJob& job) { Int4Attention<IntVector>(job).run(); }

}  // namespace sixfold::avx512
