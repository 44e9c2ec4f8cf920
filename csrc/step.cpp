#include "step.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>

#include "ops.hpp"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace sixfold {
namespace {

// From this many tokens on, a sequence's tokens are work enough for the threads without splitting its keys.
constexpr int kFoldingTokens = 4;
constexpr int kTileTokens = 16;

void require(bool ok, const char* what) {
  if (!ok) throw std::invalid_argument(what);
}

int pages_for(int tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

// Of each sequence its first page and its newest block, and what a step runs beyond them.
int exact_slots(int max_tokens, int max_sequences) {
  return max_sequences * (1 + kExactPages + 1) + pages_for(max_tokens);
}

// Where the block of a position begins.
int block_of(int position) { return position / kExactTokens * kExactTokens; }

int splits_of(int keys) { return (keys + kSplitKeys - 1) / kSplitKeys; }

int padded(std::uint32_t value) { return static_cast<int>(round_up(value, kBlock)); }

}  // namespace

ActivationBuffer::ActivationBuffer(int rows, int columns) {
  view_.width = padded(static_cast<std::uint32_t>(columns));
  const std::size_t values = round_up(static_cast<std::size_t>(rows), kGroupRows) * view_.width;
  q_ = Buffer<std::int8_t>(values);
  f32_ = Buffer<float>(values);
  scale_ = Buffer<float>(values / kBlock);
  sum_ = Buffer<float>(values / kBlock);
  half_sum_ = Buffer<float>(values / kBlock * 2);
  start_ = Buffer<std::int32_t>(values / kBlock);
  half_start_ = Buffer<std::int32_t>(values / kBlock * 2);
  view_.q = q_.data();
  view_.f32 = f32_.data();
  view_.scale = scale_.data();
  view_.sum = sum_.data();
  view_.half_sum = half_sum_.data();
  view_.start = start_.data();
  view_.half_start = half_start_.data();
}

void ActivationBuffer::emit(const Kernels& kernels, int row, const float* values, std::uint32_t forms) {
  if (forms & kEmitInt8) kernels.quantize(values, view_.width / kBlock, view_, row, 0);
  if (forms & kEmitF32)
    std::memcpy(view_.f32 + static_cast<std::size_t>(row) * view_.width, values, sizeof(float) * view_.width);
}

Inputs::Inputs(const Header& header, int rows)
    : normed(rows, static_cast<int>(header.hidden)),
      attended(rows, static_cast<int>(header.query_heads * header.head_size)),
      head_input(kLogitRows, static_cast<int>(header.hidden)) {}

ZeroedMemory::ZeroedMemory(std::size_t bytes) : bytes_(bytes) {
#ifdef __linux__
  // The system hands out zeroed pages as they are touched, so an unused pool costs nothing. Large ones: attention jumps
  // from KV page to KV page, and each would take an entry of the processor's address cache.
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  madvise(memory, bytes, MADV_HUGEPAGE);
#else
  void* memory = std::calloc(bytes, 1);
  if (!memory) throw std::bad_alloc();
#endif
  data_ = memory;
}

ZeroedMemory::~ZeroedMemory() {
#ifdef __linux__
  munmap(data_, bytes_);
#else
  std::free(data_);
#endif
}

Step::Step(Plan plan_, const Kernels& kernels_, int threads, int max_tokens_, int pages,
           const std::vector<KvFormat>& kv_formats, std::span<const float> key_centres, int max_sequences)
    : plan(std::move(plan_)),
      kernels(kernels_),
      max_tokens(max_tokens_),
      page_count(pages),
      hidden_width(padded(plan.header.hidden)),
      query_width(padded(plan.header.query_heads * plan.header.head_size)),
      layout(plan.header, kv_formats),
      centres(plan, layout, key_centres),
      exact(plan.header, layout, pages, exact_slots(max_tokens, max_sequences)),
      x(static_cast<std::size_t>(max_tokens) * hidden_width),
      y(static_cast<std::size_t>(max_tokens) * hidden_width),
      q(static_cast<std::size_t>(max_tokens) * query_width),
      centre(centres.any() ? static_cast<std::size_t>(max_tokens) * query_width : 0),
      shared(plan.header, max_tokens),
      gated(max_tokens, static_cast<int>(plan.header.intermediate)),
      logits_width(static_cast<int>(round_up(plan.header.vocabulary, kTileColumns))) {
  for (std::uint32_t i = 0; i < plan.header.rope_tables; ++i) {
    cosine.emplace_back(static_cast<std::size_t>(max_tokens) * plan.header.head_size / 2);
    sine.emplace_back(static_cast<std::size_t>(max_tokens) * plan.header.head_size / 2);
  }
  rope_widths_.resize(plan.header.rope_tables);
  for (const OpRecord& op : plan.body)
    if (op.kind == OpKind::kRopeTable) rope_widths_[op.rope] = static_cast<int>(plan.matrices[op.norm[0]].record.rows);
  const std::size_t group = plan.header.query_heads / plan.header.kv_heads;
  static_assert(64 * kTileTokens <= kMaxAttentionRows);
  const std::size_t queries = group * kTileTokens, d = plan.header.head_size;
  const std::size_t attending = round_up(queries * (d + 2), 16) + attention_scratch(queries, d);
  const std::size_t rows = std::max<std::size_t>(kQkvRows * plan.header.head_size, 3 * kRowBlock * kBlock);
  const std::size_t widest = std::max<std::size_t>(
      {attending, rows, static_cast<std::size_t>(hidden_width), static_cast<std::size_t>(query_width)});
  for (int i = 0; i < threads; ++i) {
    scratch.emplace_back(widest);
    own.emplace_back(plan.header, kOwnRows);
  }
  for (const Matrix& matrix : plan.matrices)
    matmuls.push_back(matrix.record.vector ? nullptr : kernels.matmul(matrix.record));
  attention[static_cast<int>(KvFormat::kF16)] = kernels.attention;
  attention[static_cast<int>(KvFormat::kInt8)] = kernels.int8_attention;
  attention[static_cast<int>(KvFormat::kInt4)] = kernels.int4_attention;
  for (const OpRecord& op : plan.body)
    if (op.kind == OpKind::kMerge && op.emit != kEmitInt8)
      attention[static_cast<int>(KvFormat::kF16)] = kernels.float_attention;
  require(layout.page_bytes() < std::numeric_limits<std::size_t>::max() / (page_count + 1ull),
          "the KV pool is larger than memory can be");
  pool_memory_ = std::make_unique<ZeroedMemory>(layout.page_bytes() * static_cast<std::size_t>(pages) + 64);
  pool = pool_memory_->aligned();
}

void Step::describe(std::span<const std::int32_t> tokens_, std::span<const std::int32_t> starts,
                    std::span<const std::int32_t> counts, std::span<const std::int32_t> pages,
                    std::span<const std::int32_t> page_offsets, std::span<const std::int32_t> adapter_slots) {
  require(starts.size() == counts.size() && page_offsets.size() == counts.size() + 1,
          "batch arrays disagree in length");
  require(!tokens_.empty() && tokens_.size() <= static_cast<std::size_t>(max_tokens), "no tokens, or more than a step");
  const auto vocabulary = static_cast<std::int32_t>(plan.header.vocabulary);
  for (std::int32_t token : tokens_) require(token >= 0 && token < vocabulary, "a token is not in the vocabulary");
  for (std::int32_t page : pages) require(page >= 0 && page < page_count, "a page is not in the pool");
  require(page_offsets.front() == 0 && page_offsets.back() == static_cast<std::int32_t>(pages.size()),
          "page offsets do not cover the pages");
  tokens.assign(tokens_.begin(), tokens_.end());
  page_table.assign(pages.begin(), pages.end());
  exact_table.assign(exact.on() ? pages.size() : 0, -1);
  exact.begin_step();
  positions.clear();
  sequence_of_row.clear();
  sequences.clear();
  tasks.clear();
  first_slot.clear();
  slot_count.clear();
  for (std::size_t i = 0; i < counts.size(); ++i) {
    require(counts[i] > 0 && starts[i] >= 0 && starts[i] <= (1 << 28), "a sequence has no tokens or a bad start");
    require(page_offsets[i] >= 0 && page_offsets[i] <= page_offsets[i + 1], "page offsets are not in order");
    const int held = (page_offsets[i + 1] - page_offsets[i]) * kPageTokens;
    centres.reach(page_offsets[i + 1] - page_offsets[i]);
    require(starts[i] + counts[i] <= held, "a sequence has fewer pages than tokens");
    if (exact.on()) keep_exact_pages(starts[i], pages.subspan(page_offsets[i]));
  }
  for (std::size_t i = 0; i < counts.size(); ++i) {
    const int first_row = static_cast<int>(positions.size());
    require(first_row + static_cast<std::size_t>(counts[i]) <= tokens.size(), "counts exceed the tokens");
    if (exact.on()) find_exact_pages(starts[i], counts[i], page_offsets[i]);
    sequences.push_back({first_row, counts[i], starts[i], page_table.data() + page_offsets[i],
                         exact_table.data() + (exact.on() ? page_offsets[i] : 0)});
    for (int t = 0; t < counts[i]; ++t) {
      positions.push_back(starts[i] + t);
      sequence_of_row.push_back(static_cast<int>(i));
    }
    plan_attention(static_cast<int>(i));
  }
  require(positions.size() == tokens.size(), "counts do not add up to the tokens");
  plan_adapters(adapter_slots);
  const std::size_t needed = first_slot.empty() ? 0 : static_cast<std::size_t>(first_slot.back() + slot_count.back());
  if (needed > slots.capacity) {
    slots.capacity = round_up(needed, 64);
    slots.sum = Buffer<float>(slots.capacity * plan.header.query_heads * plan.header.head_size);
    slots.weight = Buffer<float>(slots.capacity * plan.header.query_heads);
    slots.max = Buffer<float>(slots.capacity * plan.header.query_heads);
  }
}

// Before any page of a step takes a slot: those that its sequences hold are kept, those of past blocks given up.
void Step::keep_exact_pages(int start, std::span<const std::int32_t> pages) {
  const int block = block_of(start) / kPageTokens;
  const int before = std::max(1, block - pages_for(max_tokens) - kExactPages);
  for (int index = before; index < block; ++index) exact.release(pages[index]);
  if (block > 0) exact.touch(pages[0]);
  for (int index = block; index * kPageTokens < start; ++index) exact.touch(pages[index]);
}

// The float16 pages that `count` tokens from `start` on read and write.
void Step::find_exact_pages(int start, int count, std::size_t first_page) {
  const auto find = [&](int index) {
    const int held = std::clamp(start - index * kPageTokens, 0, kPageTokens);
    const int after = std::clamp(start + count - index * kPageTokens, 0, kPageTokens);
    exact_table[first_page + index] = exact.use(page_table[first_page + index], held, after);
  };
  const int block = block_of(start) / kPageTokens;
  if (block > 0) find(0);
  for (int index = block; index * kPageTokens < start + count; ++index) find(index);
}

Step::Split Step::split(int layer, int index, int position, int end) const {
  if (layout.format(layer) != KvFormat::kInt4)
    return {std::min(index * kSplitKeys, end), std::min((index + 1) * kSplitKeys, end), false};
  const int block = block_of(position);
  if (block == 0) return {0, end, true};
  if (index == 0) return {0, kSinkTokens, true};
  if (index > splits_of(block)) return {block, end, true};
  return {std::max((index - 1) * kSplitKeys, kSinkTokens), std::min(index * kSplitKeys, block), false};
}

void Step::set_adapter(int slot, std::shared_ptr<const Adapter> adapter) {
  require(slot >= 0 && slot < kMaxAdapters, "no such slot for an adapter");
  if (adapter) {
    adapter->check(plan);
    if (adapter->ranks() > ranks_width) {
      ranks_width = adapter->ranks();
      ranks = Buffer<float>(static_cast<std::size_t>(max_tokens) * ranks_width);
    }
  }
  if (adapters_.size() <= static_cast<std::size_t>(slot)) adapters_.resize(slot + 1);
  adapters_[slot] = std::move(adapter);
}

// Rows of one adapter stand together, so that its weights are read once; they are runs, joined where sequences of one
// adapter follow each other.
void Step::plan_adapters(std::span<const std::int32_t> adapter_slots) {
  adapted.clear();
  if (adapter_slots.empty()) return;
  require(adapter_slots.size() == sequences.size(), "there is not one adapter slot a sequence");
  std::vector<int> group_of(adapters_.size(), -1);
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    const int slot = adapter_slots[i];
    if (slot == -1) continue;
    require(slot >= 0 && static_cast<std::size_t>(slot) < adapters_.size() && adapters_[slot],
            "a sequence's adapter is not loaded");
    if (group_of[slot] < 0) {
      group_of[slot] = static_cast<int>(adapted.size());
      const Values values = adapters_[slot]->values();
      adapted.push_back({adapters_[slot], kernels.down_tile(values), kernels.add_tile(values), {}});
    }
    std::vector<RowRun>& runs = adapted[group_of[slot]].runs;
    int begin = sequences[i].first_row;
    const int end = begin + sequences[i].rows;
    while (begin < end) {
      const bool joins = !runs.empty() && runs.back().end == begin && begin - runs.back().begin < kRunRows;
      if (!joins) runs.push_back({begin, begin});
      runs.back().end = begin = std::min(end, runs.back().begin + kRunRows);
    }
  }
}

void Step::plan_attention(int index) {
  const StepSequence& s = sequences[index];
  const bool per_split = s.rows < kFoldingTokens;
  for (int row = 0, count = 0; row < s.rows; row += count) {
    const int position = s.position + row;
    count = std::min(kTileTokens, s.rows - row);
    int splits = splits_of(position + count);
    if (exact.on()) {  // the tokens of a tile are of one block; the first page and the block are splits of their own
      const int block = block_of(position);
      count = std::min(count, block + kExactTokens - position);
      splits = block == 0 ? 1 : 2 + splits_of(block);
    }
    for (int t = 0; t < count; ++t) {
      first_slot.push_back(first_slot.empty() ? 0 : first_slot.back() + slot_count.back());
      slot_count.push_back(per_split ? splits : 1);
    }
    for (int head = 0; head < static_cast<int>(plan.header.kv_heads); ++head) {
      if (!per_split) {
        tasks.push_back({index, s.first_row + row, count, head, 0, splits, false});
        continue;
      }
      for (int split = 0; split < splits; ++split)
        tasks.push_back({index, s.first_row + row, count, head, split, split + 1, true});
    }
  }
}

}  // namespace sixfold
