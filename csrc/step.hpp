// The state of one step: what is computed (rows), where (buffers), and the KV pool. Owned by the executor, read and
// written by the operators in ops.cpp.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels.hpp"
#include "kv_centre.hpp"
#include "kv_exact.hpp"
#include "kv_page.hpp"
#include "lora.hpp"
#include "plan.hpp"

namespace sixfold {

// Keys of one attention split. Splits lie at multiples of it, whatever the batch or the threads, and their partial
// results are folded in order: that fixes the order of every addition.
constexpr int kSplitKeys = 256;

// A zeroed block of floats, int8 or int32, aligned to 64 bytes.
template <typename T>
class Buffer {
 public:
  explicit Buffer(std::size_t count = 0) : data_(count + 64 / sizeof(T)) {
    const auto address = reinterpret_cast<std::uintptr_t>(data_.data());
    skip_ = (round_up(address, 64) - address) / sizeof(T);
  }
  T* data() { return data_.data() + skip_; }

 private:
  std::vector<T> data_;
  std::size_t skip_ = 0;
};

// Activations with their memory. `view()` is what kernels take.
class ActivationBuffer {
 public:
  ActivationBuffer(int rows, int columns);
  const Activations& view() const { return view_; }
  // Writes row `row` from `width` float32 values (padding included) in the forms asked for.
  void emit(const Kernels& kernels, int row, const float* values, std::uint32_t forms);

 private:
  Buffer<std::int8_t> q_;
  Buffer<float> scale_, sum_, half_sum_, f32_;
  Buffer<std::int32_t> start_, half_start_;
  Activations view_;
};

// One sequence of a step. pages: its KV pages in order; exact: where those that are kept in float16 too are
// (kv_exact.hpp), the others mean nothing.
struct StepSequence {
  int first_row, rows, position;
  const std::int32_t* pages;
  const std::int32_t* exact;
};

// One attention job before it meets a layer: tokens of a sequence, a KV head, splits [first, last) of their keys. With
// `slot_per_split` every split leaves its own partial result (few rows, many threads); otherwise they are folded on the
// way.
struct AttentionTask {
  int sequence, row, tokens, kv_head;
  int first_split, last_split;
  bool slot_per_split;
};

// Partial attention results: a slot holds, for every query head of one row, sum[head_size], weight and max.
struct Slots {
  Buffer<float> sum, weight, max;
  std::size_t capacity = 0;
};

constexpr int kLogitRows = 64;  // rows of logits computed at once

// What products read, made by norms and merges: inputs of qkv and gate/up; of o; of the head.
struct Inputs {
  Inputs(const Header& header, int rows);
  ActivationBuffer normed, attended, head_input;
};

// Up to this many rows every worker makes the inputs of products for itself: cheaper than to wait for another worker to
// make them, and than to fetch them from its cache.
constexpr int kOwnRows = 64;

struct Step {
  Step(Plan plan, const Kernels& kernels, int threads, int max_tokens, int pages,
       const std::vector<KvFormat>& kv_formats, std::span<const float> key_centres, int max_sequences);

  // Describes the rows of the next body run; throws std::invalid_argument when it does not fit.
  void describe(std::span<const std::int32_t> tokens, std::span<const std::int32_t> starts,
                std::span<const std::int32_t> counts, std::span<const std::int32_t> pages,
                std::span<const std::int32_t> page_offsets, std::span<const std::int32_t> adapter_slots);
  // Puts an adapter into a slot, or takes it out (nullptr); throws std::invalid_argument when it does not fit the plan.
  void set_adapter(int slot, std::shared_ptr<const Adapter> adapter);

  // The keys of a split of a layer that the tokens of a tile see, and whether they are read from float16 pages that are
  // kept beside int4 ones. The first token of the tile is at `position`, its last sees keys before `end`.
  struct Split {
    int begin, end;
    bool exact;
  };
  Split split(int layer, int index, int position, int end) const;

  // The page of one layer and head.
  std::uint8_t* kv(int page, int layer, int kv_head) {
    return pool + page * layout.page_bytes() + layout.offset(layer, kv_head);
  }
  int rope_width(int table) const { return rope_widths_[table]; }  // pairs that a table rotates
  float* x_row(int row) { return x.data() + static_cast<std::size_t>(row) * hidden_width; }
  float* y_row(int row) { return y.data() + static_cast<std::size_t>(row) * hidden_width; }

  Plan plan;
  const Kernels& kernels;
  int max_tokens, page_count;
  int hidden_width, query_width;  // padded to kBlock
  KvLayout layout;
  KvCentres centres;
  ExactPages exact;

  Buffer<float> x, y;                       // [rows, hidden_width]: residual stream, projection before its norm
  Buffer<float> q;                          // [rows, query_width]
  Buffer<float> centre;                     // [rows, query_width]: z of kv_centre.hpp, if keys have centres
  std::vector<Buffer<float>> cosine, sine;  // a rope table: [rows, head_size / 2]
  Inputs shared;
  std::vector<Inputs> own;  // one a worker, for kOwnRows rows
  ActivationBuffer gated;   // input of down
  Buffer<float> ranks;      // [rows, ranks_width]: A x of adapters, scaled
  int ranks_width = 0;
  Slots slots;
  std::vector<Buffer<float>> scratch;  // one a worker

  std::vector<std::int32_t> tokens, positions;  // a row
  std::vector<int> first_slot, slot_count;      // a row
  std::vector<std::int32_t> page_table, exact_table;
  std::vector<StepSequence> sequences;
  std::vector<int> sequence_of_row;
  std::vector<AttentionTask> tasks;
  std::vector<AdapterRows> adapted;  // of this step; empty: no row has an adapter
  std::vector<MatmulTile> matmuls;   // a matrix of the plan
  void (*attention[kKvFormats])(const AttentionJob& job);

  std::span<const std::int32_t> wanted_rows;  // rows of the head run
  float* logits = nullptr;                    // [wanted rows, logits_width]
  int logits_width;

 private:
  void keep_exact_pages(int start, std::span<const std::int32_t> pages);
  void find_exact_pages(int start, int count, std::size_t first_page);
  void plan_attention(int sequence);
  void plan_adapters(std::span<const std::int32_t> adapter_slots);
  std::vector<std::shared_ptr<const Adapter>> adapters_;  // a slot
  std::unique_ptr<ZeroedMemory> pool_memory_;
  std::vector<int> rope_widths_;

 public:
  std::uint8_t* pool;
};

}  // namespace sixfold
