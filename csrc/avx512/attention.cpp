// AVX-512 attention over pages in float32: the operations that paged_attention.hpp is written in.
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

}  // namespace

void attention(const AttentionJob& job) { PagedAttention<Vector>(job).run(); }

}  // namespace sixfold::avx512
