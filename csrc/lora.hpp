// Low-rank adapters (LoRA, Hu et al. 2021): y += scale * B (A x), for those rows of a step that have an adapter.
//
// Both factors are packed as matrices of floats are (tile_layout.hpp), so the products are those of the plan's own
// float matrices, with the same contract: a row's result depends on that row alone. The A of all matrices that read one
// input are stacked, so that A x is one product an input; its ranks [a row, all parts] are what each B begins with:
//
//   A, tiles of 16 ranks   | q q q q q q q q k k k k k k k k | v v v v v v v v 0 0 0 0 0 0 0 0 |
//   B of k                                   ^ first = 8, rank = 8
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels.hpp"

namespace sixfold {

class ZeroedMemory;

// A of the matrices that read one input: `tiles` tiles of 16 ranks, and what each rank's result is multiplied by.
struct DownMatrix {
  const std::uint8_t* data = nullptr;
  int tiles = 0;
  std::size_t tile_bytes = 0;
  const float* scale = nullptr;  // [tiles * 16]
};

// B of one matrix: [outputs, rank], applied to the ranks [first, first + rank) of its input. rank 0: there is none.
struct UpMatrix {
  const std::uint8_t* data = nullptr;
  int rank = 0, first = 0;
  std::size_t tile_bytes = 0;
};

// One part of an adapter as its maker describes it.
struct AdapterRecord {
  bool up;              // B; otherwise A
  std::int64_t matrix;  // of the plan; for A the first that the operator has
  std::int64_t offset;  // of its first tile in the data
  std::int64_t tiles;   // of 16 ranks (A) or outputs (B)
  std::int64_t width;   // inputs padded to kBlock (A) or rank (B, even)
  std::int64_t first;   // index of its first scale (A), or of its first rank among those of its input (B)
};

// An adapter in memory, immutable: made by any thread, then given to an executor.
class Adapter {
 public:
  // Copies `data`. Throws std::invalid_argument when a part is not within it.
  Adapter(Values values, std::span<const std::uint8_t> data, std::span<const float> scales,
          std::vector<AdapterRecord> records);
  ~Adapter();
  Adapter(const Adapter&) = delete;
  Adapter& operator=(const Adapter&) = delete;

  // Throws std::invalid_argument unless every part fits the plan's operators.
  void check(const Plan& plan) const;
  // By index of a plan's matrix.
  const DownMatrix& down(int matrix) const { return at(down_, matrix); }
  const UpMatrix& up(int matrix) const { return at(up_, matrix); }
  Values values() const { return values_; }
  std::size_t bytes() const { return bytes_; }
  int ranks() const { return ranks_; }  // the most that one input has, a multiple of 16

 private:
  template <typename T>
  static const T& at(const std::vector<T>& parts, int matrix) {
    static const T none;
    return static_cast<std::size_t>(matrix) < parts.size() ? parts[matrix] : none;
  }

  const Values values_;
  const std::size_t bytes_;
  int ranks_ = 0;
  std::unique_ptr<ZeroedMemory> memory_;
  std::vector<float> scales_;
  std::vector<AdapterRecord> records_;
  std::vector<DownMatrix> down_;
  std::vector<UpMatrix> up_;
};

struct RowRun {
  int begin, end;
};

constexpr int kMaxAdapters = 4096;  // slots of an executor
constexpr int kRunRows = 32;        // at most, so that threads can share a long prompt

// The rows of a step that one adapter applies to.
struct AdapterRows {
  std::shared_ptr<const Adapter> adapter;
  MatmulTile down;  // by a tile of A
  AddTile add;      // by a tile of B
  std::vector<RowRun> runs;
};

}  // namespace sixfold
