#include "plan.hpp"

#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

namespace sixfold {
namespace {

constexpr std::uint32_t kMaxDimension = 1u << 24;

void require(bool ok, const std::string& what) {
  if (!ok) throw std::invalid_argument("plan: " + what);
}

// [offset, offset + bytes) lies inside `size` bytes.
bool inside(std::uint64_t offset, std::uint64_t bytes, std::uint64_t size) {
  return offset <= size && bytes <= size - offset;
}

void check_dimensions(const Header& h) {
  for (std::uint32_t value : {h.hidden, h.layers, h.query_heads, h.kv_heads, h.head_size, h.intermediate, h.vocabulary})
    require(value > 0 && value < kMaxDimension, "a dimension is zero or absurd");
  require(h.layers <= 4096 && std::uint64_t{h.query_heads} * h.head_size < kMaxDimension, "a dimension is absurd");
  require(h.query_heads % h.kv_heads == 0, "query heads are not a multiple of KV heads");
  require(h.head_size % kTileColumns == 0 && h.head_size <= kMaxHeadSize,
          "head size must be a multiple of 16, at most 512");
  require(h.query_heads / h.kv_heads <= 64, "more than 64 query heads share a KV head");
  require(h.rope_tables <= 4, "more than 4 rope tables");
}

// The formats that tile_layout.hpp: choose_layout has a kernel for.
bool known_format(const MatrixRecord& r) {
  if (r.values <= Values::kBF16) return r.block == 0 && r.scale_bytes == 0;
  if (r.minimum > Minimum::kExplicit) return false;
  const bool halves = r.scale_bytes == 2 && r.block == 32;
  const bool bytes = r.scale_bytes == 1 && (r.block == 32 || r.block == 16);
  if (r.values == Values::kInt4 || r.values == Values::kInt5) return halves || bytes;
  if (r.values == Values::kInt6) return bytes && r.block == 16 && r.minimum == Minimum::kZeroPoint;
  return r.values == Values::kInt8 && halves && r.minimum == Minimum::kZeroPoint;
}

Matrix read_matrix(const MatrixRecord& record, const std::uint8_t* data, std::uint64_t data_bytes) {
  require(record.rows > 0 && record.rows < kMaxDimension && record.columns < kMaxDimension, "a matrix is absurd");
  require(record.offset % 64 == 0 && inside(record.offset, record.bytes, data_bytes), "a matrix lies outside the file");
  Matrix matrix{record, data + record.offset, 0, 0, 0};
  if (record.vector) {
    require(record.bytes == std::uint64_t{record.rows} * 4, "a vector's size is wrong");
    return matrix;
  }
  require(record.columns > 0 && known_format(record), "a matrix has an unknown format");
  require(record.scale_bytes != 1 || record.columns % 256 == 0, "a matrix's columns do not fill its superblocks");
  matrix.tile_bytes = tile_bytes(record);
  matrix.tiles = static_cast<int>(round_up(record.rows, kTileColumns) / kTileColumns);
  matrix.padded_columns = static_cast<int>(round_up(record.columns, kBlock));
  require(record.bytes == matrix.tile_bytes * static_cast<std::uint64_t>(matrix.tiles), "a matrix's size is wrong");
  return matrix;
}

// The shapes each operator expects: outputs and inputs of matrices, lengths of vectors.
class OpChecker {
 public:
  OpChecker(const Plan& plan, const OpRecord& op) : plan_(plan), h_(plan.header), op_(op) {}

  void check() const {
    require(op_.kind < OpKind::kCount, "an unknown operator");
    require(op_.section <= 1 && op_.emit <= 3 && op_.activation <= Activation::kGeluTanh, "a broken operator");
    const bool head = op_.kind == OpKind::kGatherNorm || op_.kind == OpKind::kLogits;
    require(head == (op_.section == 1), "an operator is in the wrong section");
    require(op_.layer >= 0 && op_.layer < static_cast<int>(h_.layers), "an operator's layer is out of range");
    require(op_.window >= 0, "a negative window");
    require(std::isfinite(op_.scale) && std::isfinite(op_.epsilon), "a scale is not finite");
    const std::uint32_t q = h_.query_heads * h_.head_size, kv = h_.kv_heads * h_.head_size;
    switch (op_.kind) {
      case OpKind::kRopeTable:
        rope();
        vector(op_.norm[0], 0);
        require(plan_.matrices[op_.norm[0]].record.rows * 2 <= h_.head_size, "rope is wider than a head");
        break;
      case OpKind::kEmbed:
        matrix(op_.matrix[0], h_.vocabulary, h_.hidden);
        break;
      case OpKind::kNorm:
      case OpKind::kGatherNorm:
        vector(op_.norm[0], h_.hidden);
        break;
      case OpKind::kNormAdd:
        vector(op_.norm[0], h_.hidden);
        break;
      case OpKind::kNormAddNorm:
        vector(op_.norm[0], h_.hidden);
        vector(op_.norm[1], h_.hidden);
        break;
      case OpKind::kQkv:
        rope();
        matrix(op_.matrix[0], q, h_.hidden);
        matrix(op_.matrix[1], kv, h_.hidden);
        matrix(op_.matrix[2], kv, h_.hidden);
        optional_vector(op_.bias[0], q);
        optional_vector(op_.bias[1], kv);
        optional_vector(op_.bias[2], kv);
        optional_vector(op_.norm[0], h_.head_size);
        optional_vector(op_.norm[1], h_.head_size);
        break;
      case OpKind::kAttention:
      case OpKind::kMerge:
        break;
      case OpKind::kMatmul:
      case OpKind::kMatmulAdd:
        require(op_.input <= 1, "a projection reads unknown activations");
        matrix(op_.matrix[0], h_.hidden, op_.input == 0 ? q : h_.intermediate);
        optional_vector(op_.bias[0], h_.hidden);
        break;
      case OpKind::kGateUp:
        matrix(op_.matrix[0], h_.intermediate, h_.hidden);
        matrix(op_.matrix[1], h_.intermediate, h_.hidden);
        break;
      case OpKind::kLogits:
        matrix(op_.matrix[0], h_.vocabulary, h_.hidden);
        break;
      case OpKind::kCount:
        break;
    }
  }

 private:
  void index(std::int32_t i) const {
    require(i >= 0 && i < static_cast<std::int32_t>(plan_.matrices.size()), "an operator names a missing tensor");
  }
  void packed(std::int32_t i) const {
    index(i);
    require(!plan_.matrices[i].record.vector, "an operator takes a vector for a matrix");
  }
  void matrix(std::int32_t i, std::uint32_t rows, std::uint32_t columns) const {
    packed(i);
    const MatrixRecord& r = plan_.matrices[i].record;
    require(r.rows == rows && r.columns == columns, "a matrix has the wrong shape");
  }
  void vector(std::int32_t i, std::uint32_t rows) const {
    index(i);
    const MatrixRecord& r = plan_.matrices[i].record;
    require(r.vector && (rows == 0 || r.rows == rows), "a vector has the wrong length");
  }
  void optional_vector(std::int32_t i, std::uint32_t rows) const {
    if (i != -1) vector(i, rows);
  }
  void rope() const {
    require(op_.rope >= 0 && op_.rope < static_cast<int>(h_.rope_tables), "a rope table is out of range");
  }

  const Plan& plan_;
  const Header& h_;
  const OpRecord& op_;
};

}  // namespace

std::size_t tile_bytes(const MatrixRecord& r) {
  const std::size_t k = round_up(r.columns, kBlock);
  std::size_t bits = 0;
  switch (r.values) {
    case Values::kF32:
      return k * kTileColumns * 4;
    case Values::kF16:
    case Values::kBF16:
      return k * kTileColumns * 2;
    case Values::kInt4:
    case Values::kInt5:
    case Values::kInt6:
      bits = 4 + (r.values == Values::kInt4 ? 0 : r.values == Values::kInt5 ? 1 : 2);
      break;
    case Values::kInt8:
      bits = 8;
  }
  const std::size_t kinds = r.minimum == Minimum::kExplicit ? 2 : 1;  // scales, minimums
  const std::size_t scales = kinds * kTileColumns * (kBlock / r.block) * r.scale_bytes;
  const std::size_t super = r.scale_bytes == 1 ? k / 256 * kinds * kTileColumns * 2 : 0;
  return k / kBlock * (kTileColumns * kBlock * bits / 8 + scales) + super;
}

Plan read_plan(std::span<const std::uint8_t> bytes) {
  Plan plan;
  require(bytes.size() >= sizeof(Header), "shorter than its header");
  std::memcpy(&plan.header, bytes.data(), sizeof(Header));
  const Header& h = plan.header;
  require(std::memcmp(h.magic, "SIXFPLAN", 8) == 0, "wrong magic");
  require(h.version == kPlanVersion && h.header_bytes == sizeof(Header), "written by another version");
  check_dimensions(h);
  require(h.matrix_count < (1u << 20) && h.op_count < (1u << 16), "absurd counts");
  require(inside(h.matrices_offset, h.matrix_count * sizeof(MatrixRecord), bytes.size()) &&
              inside(h.ops_offset, h.op_count * sizeof(OpRecord), bytes.size()) &&
              inside(h.data_offset, h.data_bytes, bytes.size()) && inside(h.meta_offset, h.meta_bytes, bytes.size()),
          "a section lies outside the file");
  const std::uint8_t* data = bytes.data() + h.data_offset;
  require(reinterpret_cast<std::uintptr_t>(data) % 64 == 0, "its data is not aligned to 64 bytes");
  for (std::uint64_t i = 0; i < h.matrix_count; ++i) {
    MatrixRecord record;
    std::memcpy(&record, bytes.data() + h.matrices_offset + i * sizeof(record), sizeof(record));
    plan.matrices.push_back(read_matrix(record, data, h.data_bytes));
  }
  for (std::uint64_t i = 0; i < h.op_count; ++i) {
    OpRecord op;
    std::memcpy(&op, bytes.data() + h.ops_offset + i * sizeof(op), sizeof(op));
    OpChecker(plan, op).check();
    (op.section == 0 ? plan.body : plan.head).push_back(op);
  }
  require(!plan.body.empty() && !plan.head.empty(), "no operators");
  return plan;
}

}  // namespace sixfold
