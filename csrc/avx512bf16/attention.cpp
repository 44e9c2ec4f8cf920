// Attention in bfloat16 products with float32 sums (AVX512-BF16), twice the rate of float32 ones, and the table of this
// instruction set. Queries, keys, values and probabilities are rounded to nearest even on the way in; KV pages stay
// float16. Everything else is AVX-512's.
#include <bit>
#include <cstring>

#include "../avx512/vector.hpp"
#include "../paged_attention.hpp"

namespace sixfold {
namespace avx512bf16 {
namespace {

inline std::uint32_t to_bf16(float x) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
  return (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;  // a NaN may become infinite: the row is lost either way
}

struct Vector : FloatVector {
  using Word = std::uint32_t;
  static constexpr int kStep = 2;
  using FloatVector::store;

  static T broadcast(const Word* p) { return _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(*p))); }
  static T load_words(const Word* p) { return _mm512_castsi512_ps(_mm512_loadu_si512(p)); }
  static Word word(const float* p) { return to_bf16(p[0]) | to_bf16(p[1]) << 16; }
  // Of two rows, `stride` apart, the elements in one column: neighbours of a sum.
  static T words(const std::uint16_t* p, int stride) {
    const __m512i halves = bits(_mm512_cvtne2ps_pbh(load_f16(p + stride), load_f16(p)));
    const __m512i low =
        _mm512_setr_epi32(0x100000, 0x110001, 0x120002, 0x130003, 0x140004, 0x150005, 0x160006, 0x170007, 0x180008,
                          0x190009, 0x1a000a, 0x1b000b, 0x1c000c, 0x1d000d, 0x1e000e, 0x1f000f);
    return _mm512_castsi512_ps(_mm512_permutexvar_epi16(low, halves));
  }
  static void store(Word* p, T x) { _mm512_storeu_ps(p, x); }
  static void store_probabilities(float* row, int key, T x) {
    const __m256bh halves = _mm512_cvtneps_pbh(x);
    std::memcpy(reinterpret_cast<char*>(row) + 2 * key, &halves, sizeof(halves));
  }
  static T multiply_add(T a, T b, T sum) { return _mm512_dpbf16_ps(sum, halves(a), halves(b)); }

 private:
  static __m512i bits(__m512bh x) { return std::bit_cast<__m512i>(x); }
  static __m512bh halves(T x) { return std::bit_cast<__m512bh>(x); }
};

void attention(const AttentionJob& job) { PagedAttention<Vector>(job).run(); }

}  // namespace
}  // namespace avx512bf16

const Kernels& avx512bf16_kernels() {
  static const Kernels table = [] {
    Kernels kernels = avx512_kernels();
    kernels.name = "avx512bf16";
    kernels.attention = avx512bf16::attention;
    return kernels;
  }();
  return table;
}

}  // namespace sixfold
