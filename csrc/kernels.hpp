// The table of kernels: one per instruction set, same functions, filled in scalar/ and avx2/.
//
// Contract of every kernel: the result of a row depends on that row alone, with a fixed order of every float
// reduction, so that it is bit-identical in any batch, chunk or thread.
#pragma once

#include <cstdint>

#include "plan.hpp"

namespace sixfold {

constexpr int kGroupRows = 8;  // rows whose int8 activations lie together, so that a kernel reads them by one address

// Activations of a step, `width` (a multiple of kBlock) per row, padding zero; f32 is row-major.
// int8 form: x ~= scale[block] * q, |q| <= 127, as [rows / 8][width / 32][8 rows][32]. Minimums need the sums of q
// times the scale, zero points -8 times the sums of q (times 1, 2, 4 or 16), both for blocks of 32 and of 16 columns.
struct Activations {
  int width = 0;
  std::int8_t* q = nullptr;            // [groups][blocks][8][32]
  float* scale = nullptr;              // [groups][blocks][8]
  float* sum = nullptr;                // [groups][blocks][8]
  float* half_sum = nullptr;           // [groups][blocks][8][2]
  std::int32_t* start = nullptr;       // [groups][blocks][8]
  std::int32_t* half_start = nullptr;  // [groups][blocks][8][2]
  float* f32 = nullptr;                // [rows, width]
  // Lines of memory that will be read next: a product may fetch them between its own, which is when memory has time.
  const std::uint8_t* const* ahead = nullptr;
  int ahead_lines = 0;

  // Index of a row's block among all blocks.
  std::size_t at(int row, int block) const {
    return (static_cast<std::size_t>(row / kGroupRows) * (width / kBlock) + block) * kGroupRows + row % kGroupRows;
  }
  // What goes with the q of a block, given the integer sums of its halves.
  void describe_block(std::size_t index, float block_scale, const int* sums) const {
    scale[index] = block_scale;
    sum[index] = block_scale * static_cast<float>(sums[0] + sums[1]);
    start[index] = -8 * (sums[0] + sums[1]);
    for (int i = 0; i < 2; ++i) {
      half_sum[2 * index + i] = block_scale * static_cast<float>(sums[i]);
      half_start[2 * index + i] = -8 * sums[i];
    }
  }
};

// y[r * ldy + c] = sum_k w[c, k] * x[row + r, k] for the 16 outputs c of one tile and `rows` rows; `row` is a multiple
// of kGroupRows.
using MatmulTile = void (*)(const std::uint8_t* tile, int padded_columns, const Activations& x, int row, int rows,
                            float* y, int ldy);

// out[r * ldy + c] += sum_k tile[k][c] * t[r * stride + k] for the 16 outputs of a float tile of `rank` (even) columns.
using AddTile = void (*)(const std::uint8_t* tile, int rank, const float* t, int stride, int rows, float* out, int ldy);

// What kernels try when they quantise to 4 bits: the largest code as parts of the largest value.
constexpr float kInt4Ranges[] = {1.0f, 0.93f, 0.86f, 0.8f, 0.74f, 0.68f, 0.62f};

constexpr int kSoftmaxKeys = 128;  // keys of one run of the online softmax; runs lie at multiples of it
constexpr int kMaxAttentionRows = 1024;

// One attention job: the query rows of some tokens of one sequence that share a KV head, against keys
// [begin, end) (begin a multiple of kPageTokens). Online softmax run by run, in order (Milakov & Gimelshein 2018).
// What a page of a layer and head holds depends on the KV format (kv_page.hpp).
struct AttentionJob {
  const float* q;  // query of token t and head g: q + t * q_stride + g * head_size, already scaled
  int q_stride;
  int tokens, group, head_size;
  const std::uint8_t* pool;  // at this layer and head of page 0
  std::size_t page_stride;   // bytes from page to page
  std::size_t page_bytes;    // of this layer and head in one page
  const std::int32_t* pages;
  int position;  // of token 0; token t sees keys (position + t - window, position + t]
  int window;    // 0: all
  int begin, end;
  // Out, row r = t * group + g: sum [r][head_size] of exp(s - max) v, its weight, its max. weight 0: no key was seen.
  float* sum;
  float* weight;
  float* max;
  float* scratch;  // attention_scratch() floats
  // Scores are more by centre . phases for all keys of a page (kv_centre.hpp); null: they are not. Laid out as `q` is;
  // phases of page p: [p / 16][head_size][16].
  const float* centre;
  const float* phases;
  // Whether `scratch` is as a job of the same queries left it, whose preparation need not be repeated then.
  bool prepared;
};

// Floats of working memory that an attention job of `rows` query rows needs.
constexpr std::size_t attention_scratch(std::size_t rows, std::size_t head_size) {
  return rows * (head_size + kSoftmaxKeys + 2 + kPageTokens) + head_size * (kPageTokens + kSoftmaxKeys);
}

// A softmax sum that may be one of several: sum [n] of exp(s - max) v, weight of exp(s - max).
struct PartialSum {
  float *sum, *weight, *max;
};

struct Kernels {
  const char* name;
  MatmulTile (*matmul)(const MatrixRecord& record);
  // y = x / rms(x) * w over n values; n need not be a multiple of anything (Zhang & Sennrich 2019).
  void (*rms_norm)(const float* x, const float* w, float epsilon, int n, float* y);
  // Quantises `count` blocks of 32 values into row `row` of `out`, from block `block` on.
  void (*quantize)(const float* x, int count, const Activations& out, int row, int block);
  // out = act(gate) * up
  void (*gate)(Activation activation, const float* gate, const float* up, int n, float* out);
  // Rotates pairs (i, i + half) of x by cos[i], sin[i] (RoFormer, in the "rotate half" order).
  void (*rope)(float* x, const float* cosine, const float* sine, int half);
  // Multiplies n values, a multiple of 16, by a Hadamard matrix, scaled to keep lengths, in blocks of the largest power
  // of two that divides n; twice gives the values back. Products of queries with keys stay what they are, but what a
  // few large elements of a key held is spread over all, so that one scale fits them (QuaRot, Ashkboos et al. 2024).
  void (*rotate_head)(float* x, int n);
  // Rounds to nearest even; values beyond float16 (and NaN) become the largest finite one, so that no stale or broken
  // row can turn a masked product into NaN. y[i * stride].
  void (*to_f16)(const float* x, int n, std::uint16_t* y, int stride);
  // Quantises n values to |q| <= 127 and returns the float16 scale, which is finite whatever x holds.
  std::uint16_t (*to_int8)(const float* x, int n, std::int8_t* q);
  // Quantises n values to codes of 0 to 15, which stand for scale * (code - 7.5), and returns the float16 scale, finite
  // as well. Of several ranges, which clip more or less, the one of the least squared error.
  std::uint16_t (*to_int4)(const float* x, int n, std::int8_t* codes);
  // Over float16 pages.
  void (*attention)(const AttentionJob& job);
  // The same in float32 throughout, for models whose weights are floats: those do not round activations either.
  void (*float_attention)(const AttentionJob& job);
  // Over pages of integers.
  void (*int8_attention)(const AttentionJob& job);
  void (*int4_attention)(const AttentionJob& job);
  // Joins two partial sums over n values, n a multiple of 16; both have seen a key.
  void (*fold)(const PartialSum& into, const PartialSum& other, int n);
  // For float tiles of these values: as matmul, but quick for single rows too, and row may be any; and AddTile.
  MatmulTile (*down_tile)(Values values);
  AddTile (*add_tile)(Values values);
};

const Kernels& scalar_kernels();
#ifdef SIXFOLD_AVX2
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
const Kernels& avx512bf16_kernels();
#endif

// The best table this machine can run, or the one named; throws std::invalid_argument if it can not run here.
const Kernels& choose_kernels(const char* isa);

// Decodes output row `row` of a packed matrix (an embedding) to float32 times `scale`. out: [columns].
void unpack_row(const Matrix& matrix, int row, float scale, float* out);

}  // namespace sixfold
