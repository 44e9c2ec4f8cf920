#include "lora.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "memory.hpp"

namespace sixfold {
namespace {

constexpr std::int64_t kMaxMatrices = 1 << 20, kMaxWidth = 1 << 24, kMaxTiles = 1 << 24;

void require(bool ok, const char* what) {
  if (!ok) throw std::invalid_argument(what);
}

std::size_t value_bytes(Values values) { return values == Values::kF32 ? 4 : 2; }

template <typename T>
T& place(std::vector<T>& parts, std::int64_t matrix) {
  if (parts.size() <= static_cast<std::size_t>(matrix)) parts.resize(static_cast<std::size_t>(matrix) + 1);
  return parts[static_cast<std::size_t>(matrix)];
}

// Which matrices a body operator multiplies the same input by.
int factors(const OpRecord& op) {
  switch (op.kind) {
    case OpKind::kQkv:
      return 3;
    case OpKind::kGateUp:
      return 2;
    case OpKind::kMatmul:
    case OpKind::kMatmulAdd:
      return 1;
    default:
      return 0;
  }
}

}  // namespace

Adapter::Adapter(Values values, std::span<const std::uint8_t> data, std::span<const float> scales,
                 std::vector<AdapterRecord> records)
    : values_(values),
      bytes_(data.size()),
      memory_(std::make_unique<ZeroedMemory>(data.size() + 64)),
      scales_(scales.begin(), scales.end()),
      records_(std::move(records)) {
  require(values == Values::kF32 || values == Values::kF16 || values == Values::kBF16, "an adapter holds floats");
  std::uint8_t* bytes = memory_->aligned();
  std::memcpy(bytes, data.data(), data.size());
  for (const AdapterRecord& r : records_) {
    require(r.matrix >= 0 && r.matrix < kMaxMatrices && r.offset >= 0 && r.first >= 0, "an index is out of range");
    require(r.tiles >= 1 && r.tiles <= kMaxTiles && r.width >= 1 && r.width <= kMaxWidth, "a side is out of range");
    const std::size_t tile = static_cast<std::size_t>(r.width) * kTileColumns * value_bytes(values);
    const std::size_t offset = static_cast<std::size_t>(r.offset), tiles = static_cast<std::size_t>(r.tiles);
    require(offset <= bytes_ && tiles <= (bytes_ - offset) / tile, "a part ends beyond the data");
    if (r.up) {
      require(r.width % 2 == 0 && r.first < kMaxWidth, "a rank is odd, or begins too late");
      place(up_, r.matrix) = {bytes + offset, static_cast<int>(r.width), static_cast<int>(r.first), tile};
    } else {
      const auto first = static_cast<std::size_t>(r.first), ranks = tiles * kTileColumns;
      require(first <= scales_.size() && ranks <= scales_.size() - first && r.width % kBlock == 0,
              "an A has too few scales, or a width of no whole blocks");
      place(down_, r.matrix) = {bytes + offset, static_cast<int>(tiles), tile, scales_.data() + first};
      ranks_ = std::max(ranks_, static_cast<int>(ranks));
    }
  }
}

Adapter::~Adapter() = default;

void Adapter::check(const Plan& plan) const {
  std::vector<const OpRecord*> user(plan.matrices.size(), nullptr);
  for (const OpRecord& op : plan.body)
    for (int i = 0; i < factors(op); ++i)
      if (op.matrix[i] >= 0) user[op.matrix[i]] = &op;
  for (const AdapterRecord& r : records_) {
    const auto matrix = static_cast<std::size_t>(r.matrix);
    require(matrix < user.size() && user[matrix] != nullptr,
            "an adapter changes a matrix that no operator multiplies by");
    const OpRecord& op = *user[matrix];
    if (r.up) {
      const DownMatrix& down = this->down(op.matrix[0]);
      require(down.data != nullptr && r.first + r.width <= down.tiles * kTileColumns, "a B has no A for its ranks");
      require(r.tiles == plan.matrices[matrix].tiles, "a B has another number of outputs than its matrix");
    } else {
      require(op.matrix[0] == static_cast<std::int32_t>(r.matrix),
              "an A does not stand at its operator's first matrix");
      require(r.width == plan.matrices[matrix].padded_columns, "an A has another number of inputs than its matrix");
    }
  }
}

}  // namespace sixfold
