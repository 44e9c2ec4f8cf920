// Runs plans: the body over the tokens of a step (writing KV, leaving the residual stream), the head over wanted rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <span>
#include <vector>

#include "kv_move.hpp"
#include "section.hpp"
#include "step.hpp"
#include "stopwatch.hpp"
#include "threads.hpp"

namespace sixfold {

// A task for each of some rows, as work of one operation.
class EachRow final : public Work {
 public:
  // Before every run; `task` must live until it is over.
  void begin(int count, const std::function<void(int)>& task) {
    count_ = count;
    task_ = &task;
    failure_ = nullptr;
  }
  int operations() const override { return 1; }
  int chunks(int) override { return std::min(count_, Team::kMaxChunks); }
  void run(int op, int chunk, int worker) override;
  // What a call of the task has thrown, if one has.
  void rethrow() const {
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  int count_ = 0;
  const std::function<void(int)>* task_ = nullptr;
  std::mutex mutex_;
  std::exception_ptr failure_;
};

class Executor {
 public:
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;
  // `bytes` is the plan file and must outlive the executor. `kv_formats`: one for all layers, or one a layer.
  // `key_centres`: [layers][kv_heads][head_size] for int4 (kv_centre.hpp), or empty. `max_sequences`: how many may be
  // under way if layers are int4 (kv_exact.hpp). Throws std::invalid_argument.
  Executor(std::span<const std::uint8_t> bytes, const char* isa, int threads, int max_tokens, int pages,
           const std::vector<KvFormat>& kv_formats, std::span<const float> key_centres, int max_sequences);

  // tokens [T] of all sequences; starts, counts [S]; pages, page_offsets [S + 1]: each sequence's KV pages;
  // adapter_slots [S], -1: none, or empty.
  void forward(std::span<const std::int32_t> tokens, std::span<const std::int32_t> starts,
               std::span<const std::int32_t> counts, std::span<const std::int32_t> pages,
               std::span<const std::int32_t> page_offsets, std::span<const std::int32_t> adapter_slots);
  // Between steps; nullptr empties the slot.
  void set_adapter(int slot, std::shared_ptr<const Adapter> adapter) { step_.set_adapter(slot, std::move(adapter)); }
  // Logits of rows of the last forward: out [rows, logits_width()]; the columns past the vocabulary mean nothing.
  void logits(std::span<const std::int32_t> rows, float* out);
  // The bytes of a page, in this build's layout.
  std::span<std::uint8_t> page(int index);
  void copy_pages(std::span<const std::int32_t> sources, std::span<const std::int32_t> targets);
  // A sequence that has had page `old` goes on with another one of the same tokens.
  void replace_page(std::int32_t old, std::int32_t page);
  void move_tokens(std::span<const KvMove> moves);

  // The means of the keys at positions [1, tokens) of the sequence that has these pages, without rope:
  // out [layers][kv_heads][head_size]. All pages must be float16. The first token is left out: its keys are like no
  // others (attention sinks, Xiao et al. 2024).
  void key_means(std::span<const std::int32_t> pages, int tokens, std::span<float> out);

  // Calls task(i) for i in [0, count), on all threads; rethrows what one of the calls throws.
  void each(int count, const std::function<void(int)>& task);

  // While on, every operator of every step is timed; `profiled` hands out the times since it was last asked.
  void profile(bool on) { watch_.turn(on); }
  std::vector<OpTime> profiled() { return watch_.take(); }

  const Header& header() const { return step_.plan.header; }
  int logits_width() const { return step_.logits_width; }
  int pages() const { return step_.page_count; }
  std::size_t page_bytes() const { return step_.layout.page_bytes(); }
  int threads() const { return team_.threads(); }
  const char* isa() const { return step_.kernels.name; }

 private:
  Step step_;
  Stopwatch watch_;
  Section body_, adapted_body_, head_;
  EachRow rows_;
  Team team_;
};

}  // namespace sixfold
