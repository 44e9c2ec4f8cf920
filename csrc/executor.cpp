#include "executor.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace sixfold {
Executor::Executor(std::span<const std::uint8_t> bytes, const char* isa, int threads, int max_tokens, int pages,
                   const std::vector<KvFormat>& kv_formats, std::span<const float> key_centres, int max_sequences)
    : step_(read_plan(bytes), choose_kernels(isa), threads, max_tokens, pages, kv_formats, key_centres, max_sequences),
      watch_(step_.plan.body.size(), step_.plan.head.size()),
      body_(step_, 0, threads, watch_),
      adapted_body_(step_, 0, threads, watch_, true),
      head_(step_, 1, threads, watch_),
      team_(threads, std::max(adapted_body_.operations(), head_.operations())) {}

void Executor::forward(std::span<const std::int32_t> tokens, std::span<const std::int32_t> starts,
                       std::span<const std::int32_t> counts, std::span<const std::int32_t> pages,
                       std::span<const std::int32_t> page_offsets, std::span<const std::int32_t> adapter_slots) {
  step_.describe(tokens, starts, counts, pages, page_offsets, adapter_slots);
  Section& body = step_.adapted.empty() ? body_ : adapted_body_;
  body.begin();
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

void Executor::key_means(std::span<const std::int32_t> pages, int tokens, std::span<float> out) {
  const Header& h = header();
  const int d = static_cast<int>(h.head_size);
  if (tokens < 2 || static_cast<std::size_t>(tokens) > pages.size() * kPageTokens)
    throw std::invalid_argument("key means need at least two tokens, and pages for all");
  if (out.size() != std::size_t{h.layers} * h.kv_heads * h.head_size)
    throw std::invalid_argument("key means: the output has the wrong size");
  for (std::int32_t page : pages) this->page(page);  // throws if it is not in the pool
  std::fill(out.begin(), out.end(), 0.0f);
  std::vector<float> key(d);
  for (const OpRecord& op : step_.plan.body) {
    if (op.kind != OpKind::kQkv) continue;
    if (step_.layout.format(op.layer) != KvFormat::kF16) throw std::invalid_argument("key means need float16 pages");
    for (int head = 0; head < static_cast<int>(h.kv_heads); ++head) {
      float* mean = out.data() + (static_cast<std::size_t>(op.layer) * h.kv_heads + head) * d;
      for (int token = 1; token < tokens; ++token) {
        read_key(KvFormat::kF16, d, token % kPageTokens, step_.kv(pages[token / kPageTokens], op.layer, head),
                 key.data());
        step_.centres.add_unrotated(op.layer, token, key.data(), mean);
      }
      for (int i = 0; i < d; ++i) mean[i] /= static_cast<float>(tokens - 1);
    }
  }
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

void Executor::replace_page(std::int32_t old, std::int32_t page) {
  this->page(old);  // both throw if they are not in the pool
  this->page(page);
  step_.exact.replace(old, page);
}

void Executor::move_tokens(std::span<const KvMove> moves) {
  sixfold::move_tokens(step_, moves, [this](int count, const auto& task) { each(count, task); });
}

}  // namespace sixfold
