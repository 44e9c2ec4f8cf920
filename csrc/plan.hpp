// A plan: a flat list of fused operators over packed weights, as one block of bytes (a memory-mapped file).
//
// Python writes it (sixfold/compile/plan.py), this reads and checks it. Nothing in it is trusted: every offset, size
// and index is verified once here, so that the executor can run without checks.
//
// File:  Header | meta (JSON, for Python only) | MatrixRecord[] | OpRecord[] | data (64-byte aligned tensors)
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace sixfold {

constexpr std::uint32_t kPlanVersion = 2;
constexpr int kPageTokens = 16;   // tokens of one KV page
constexpr int kTileColumns = 16;  // output columns of one packed weight tile
constexpr int kMaxHeadSize = 512;
constexpr int kBlock = 32;  // columns that share one activation scale

// How the numbers of a matrix are stored; tile_layout.hpp says where. Quantised: w = scale * q - minimum, exact in
// float32, with q unsigned except for int8. kZeroPoint: minimum = zero * scale, zero 8, 16, 32, 0 for int4, 5, 6, 8.
enum class Values : std::uint32_t { kF32 = 0, kF16 = 1, kBF16 = 2, kInt4 = 3, kInt8 = 4, kInt5 = 5, kInt6 = 6 };
enum class Minimum : std::uint32_t { kZeroPoint = 0, kExplicit = 1 };

struct MatrixRecord {
  std::uint64_t offset;  // from the start of data
  std::uint64_t bytes;
  std::uint32_t rows;     // outputs, N
  std::uint32_t columns;  // inputs, K
  Values values;
  std::uint32_t block;        // 16 or 32 columns a scale; 0 for float values
  std::uint32_t scale_bytes;  // 2: f16; 1: a byte times the f16 of 256 columns; 0 for float values
  Minimum minimum;
  std::uint32_t vector;  // 1: a plain float32 vector [rows], not packed in tiles
  std::uint32_t reserved[3];
};
static_assert(sizeof(MatrixRecord) == 56);

// Each operator's meaning and shapes are in ops.hpp.
enum class OpKind : std::uint32_t {
  kRopeTable = 0,
  kEmbed = 1,
  kNorm = 2,
  kNormAddNorm = 3,
  kQkv = 4,
  kAttention = 5,
  kMerge = 6,
  kMatmulAdd = 7,
  kMatmul = 8,
  kGateUp = 9,
  kNormAdd = 10,
  kLogits = 11,
  kGatherNorm = 12,
  kCount = 13,
};

enum class Activation : std::uint32_t { kSilu = 0, kGeluTanh = 1 };

constexpr std::uint32_t kEmitInt8 = 1;
constexpr std::uint32_t kEmitF32 = 2;

struct OpRecord {
  OpKind kind;
  std::uint32_t section;   // 0 body, 1 head
  std::int32_t matrix[3];  // indices of packed matrices, -1: none
  std::int32_t bias[3];    // indices of vectors, -1: none
  std::int32_t norm[2];    // indices of vectors, -1: none
  std::int32_t layer;      // KV layer
  std::int32_t rope;       // which rope table
  std::int32_t window;     // sliding window in tokens, 0: none
  std::uint32_t emit;      // forms of the activations written
  std::uint32_t input;     // which activations a projection reads: 0 attention's, 1 the gated product
  Activation activation;
  float epsilon;
  float scale;
  std::uint32_t reserved[14];
};
static_assert(sizeof(OpRecord) == 128);

struct Header {
  char magic[8];  // "SIXFPLAN"
  std::uint32_t version;
  std::uint32_t header_bytes;
  std::uint64_t meta_offset, meta_bytes;
  std::uint64_t matrices_offset, matrix_count;
  std::uint64_t ops_offset, op_count;
  std::uint64_t data_offset, data_bytes;
  std::uint32_t hidden, layers, query_heads, kv_heads, head_size, intermediate, vocabulary, context;
  std::uint32_t rope_tables;
  std::uint32_t reserved[7];
};
static_assert(sizeof(Header) == 144);

struct Matrix {
  MatrixRecord record;
  const std::uint8_t* data;
  std::size_t tile_bytes;  // bytes of one tile of 16 outputs
  int tiles;
  int padded_columns;  // K rounded up to kBlock
  const float* vector() const { return reinterpret_cast<const float*>(data); }
};

struct Plan {
  Header header;
  std::vector<Matrix> matrices;
  std::vector<OpRecord> body, head;
};

constexpr std::size_t round_up(std::size_t value, std::size_t to) { return (value + to - 1) / to * to; }

// Bytes of one packed tile: 16 outputs by `columns` inputs.
std::size_t tile_bytes(const MatrixRecord& record);

// Checks everything; throws std::invalid_argument with the reason. `bytes` must outlive the plan.
Plan read_plan(std::span<const std::uint8_t> bytes);

}  // namespace sixfold
