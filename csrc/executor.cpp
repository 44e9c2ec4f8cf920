#include "executor.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "ops.hpp"

namespace sixfold {
namespace {

// A section of the plan as work for the team.
class Section final : public Work {
 public:
  Section(Step& step, const std::vector<OpRecord>& ops, int threads, Stopwatch& watch, int index)
      : step_(step), ops_(ops), threads_(threads), watch_(watch), index_(index) {}
  int operations() const override { return static_cast<int>(ops_.size()); }
  int chunks(int op) override { return chunk_count(step_, ops_[op], threads_); }
  void run(int op, int chunk, int worker) override {
    run_chunk(step_, ops_[op], chunk, chunk_count(step_, ops_[op], threads_), worker);
  }
  void reached(int op) override { watch_.open(index_, op); }

 private:
  Step& step_;
  const std::vector<OpRecord>& ops_;
  int threads_;
  Stopwatch& watch_;
  int index_;  // 0 body, 1 head
};

}  // namespace

Executor::Executor(std::span<const std::uint8_t> bytes, const char* isa, int threads, int max_tokens, int pages)
    : step_(read_plan(bytes), choose_kernels(isa), threads, max_tokens, pages),
      watch_(step_.plan.body.size(), step_.plan.head.size()),
      team_(threads, static_cast<int>(std::max(step_.plan.body.size(), step_.plan.head.size()))) {}

void Executor::forward(std::span<const std::int32_t> tokens, std::span<const std::int32_t> starts,
                       std::span<const std::int32_t> counts, std::span<const std::int32_t> pages,
                       std::span<const std::int32_t> page_offsets) {
  step_.describe(tokens, starts, counts, pages, page_offsets);
  Section body(step_, step_.plan.body, team_.threads(), watch_, 0);
  team_.run(body);
  watch_.stop();
}

void Executor::logits(std::span<const std::int32_t> rows, float* out) {
  for (std::int32_t row : rows)
    if (row < 0 || row >= static_cast<std::int32_t>(step_.tokens.size()))
      throw std::invalid_argument("logits of a row that the last step did not compute");
  for (std::size_t first = 0; first < rows.size(); first += kLogitRows) {
    step_.wanted_rows = rows.subspan(first, std::min<std::size_t>(kLogitRows, rows.size() - first));
    step_.logits = out + first * step_.logits_width;
    Section head(step_, step_.plan.head, team_.threads(), watch_, 1);
    team_.run(head);
    watch_.stop();
  }
}

void Executor::copy_pages(std::span<const std::int32_t> sources, std::span<const std::int32_t> targets) {
  if (sources.size() != targets.size()) throw std::invalid_argument("copy_pages: sources and targets differ in length");
  for (std::size_t i = 0; i < sources.size(); ++i) {
    for (std::int32_t page : {sources[i], targets[i]})
      if (page < 0 || page >= step_.page_count) throw std::invalid_argument("copy_pages: a page is not in the pool");
    std::memcpy(step_.pool + targets[i] * step_.page_stride, step_.pool + sources[i] * step_.page_stride, page_bytes());
  }
}

}  // namespace sixfold
