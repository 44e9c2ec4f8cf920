#include "executor.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace sixfold {
Executor::Executor(std::span<const std::uint8_t> bytes, const char* isa, int threads, int max_tokens, int pages,
                   const std::vector<KvFormat>& kv_formats)
    : step_(read_plan(bytes), choose_kernels(isa), threads, max_tokens, pages, kv_formats),
      watch_(step_.plan.body.size(), step_.plan.head.size()),
      body_(step_, 0, threads, watch_),
      head_(step_, 1, threads, watch_),
      team_(threads, static_cast<int>(std::max(step_.plan.body.size(), step_.plan.head.size()))) {}

void Executor::forward(std::span<const std::int32_t> tokens, std::span<const std::int32_t> starts,
                       std::span<const std::int32_t> counts, std::span<const std::int32_t> pages,
                       std::span<const std::int32_t> page_offsets) {
  step_.describe(tokens, starts, counts, pages, page_offsets);
  body_.begin();
  team_.run(body_);
  watch_.stop();
}

void Executor::logits(std::span<const std::int32_t> rows, float* out) {
  for (std::int32_t row : rows)
    if (row < 0 || row >= static_cast<std::int32_t>(step_.tokens.size()))
      throw std::invalid_argument("logits of a row that the last step did not compute");
  for (std::size_t first = 0; first < rows.size(); first += kLogitRows) {
    step_.wanted_rows = rows.subspan(first, std::min<std::size_t>(kLogitRows, rows.size() - first));
    step_.logits = out + first * step_.logits_width;
    head_.begin();
    team_.run(head_);
    watch_.stop();
  }
}

void EachRow::run(int, int chunk, int) {
  try {
    for (int i = chunk; i < count_; i += Team::kMaxChunks) (*task_)(i);
  } catch (...) {
    const std::lock_guard lock(mutex_);
    failure_ = std::current_exception();
  }
}

void Executor::each(int count, const std::function<void(int)>& task) {
  if (count == 1 || threads() == 1) {
    for (int i = 0; i < count; ++i) task(i);
    return;
  }
  rows_.begin(count, task);
  team_.run(rows_);
  rows_.rethrow();
}

std::span<std::uint8_t> Executor::page(int index) {
  if (index < 0 || index >= step_.page_count) throw std::invalid_argument("a page is not in the pool");
  return {step_.pool + index * page_bytes(), page_bytes()};
}

void Executor::copy_pages(std::span<const std::int32_t> sources, std::span<const std::int32_t> targets) {
  if (sources.size() != targets.size()) throw std::invalid_argument("copy_pages: sources and targets differ in length");
  for (std::size_t i = 0; i < sources.size(); ++i)
    std::memcpy(page(targets[i]).data(), page(sources[i]).data(), page_bytes());
}

void Executor::move_tokens(std::span<const KvMove> moves) {
  sixfold::move_tokens(step_, moves, [this](int count, const auto& task) { each(count, task); });
}

}  // namespace sixfold
