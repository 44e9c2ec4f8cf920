#include "section.hpp"

#include <algorithm>

#include "ops.hpp"

namespace sixfold {
namespace {

// What one worker fetches ahead while it waits: lines a round, rounds at the most (64 KB, well inside an L2 cache).
constexpr int kLines = 8, kRounds = 128;
constexpr std::size_t kLineBytes = 64;

}  // namespace

Section::Section(Step& step, int index, int threads, Stopwatch& watch)
    : step_(step),
      ops_(index == 0 ? step.plan.body : step.plan.head),
      index_(index),
      threads_(threads),
      watch_(watch),
      next_(ops_.size()) {
  const auto& after = index == 0 ? step.plan.head : step.plan.body;
  Weights weights;
  for (std::size_t i = after.size(); i-- > 0;)
    if (const Weights own = weights_of(after[i]); own.bytes > 0) weights = own;
  for (std::size_t i = ops_.size(); i-- > 0;) {
    next_[i] = weights;
    if (const Weights own = weights_of(ops_[i]); own.bytes > 0) weights = own;
  }
}

// The plan's writer lays an operator's matrices side by side.
Section::Weights Section::weights_of(const OpRecord& op) const {
  if (op.kind == OpKind::kEmbed) return {};
  const std::uint8_t *begin = nullptr, *end = nullptr;
  for (const std::int32_t index : op.matrix) {
    if (index < 0) continue;
    const Matrix& matrix = step_.plan.matrices[index];
    begin = begin ? std::min(begin, matrix.data) : matrix.data;
    end = std::max(end, matrix.data + matrix.record.bytes);
  }
  return {begin, static_cast<std::size_t>(end - begin)};
}

int Section::chunks(int op) { return chunk_count(step_, ops_[op], threads_); }

void Section::run(int op, int chunk, int worker) {
  run_chunk(step_, ops_[op], chunk, chunk_count(step_, ops_[op], threads_), worker);
}

// Memory rests while workers wait for each other, so whoever waits fetches the beginning of its part of what is next.
void Section::idle(int op, int worker, int round) const {
#ifdef __GNUC__
  if (round >= kRounds) return;
  const Weights& weights = next_[op];
  const std::size_t part = weights.bytes / static_cast<std::size_t>(threads_);
  const std::size_t at = static_cast<std::size_t>(round) * kLines * kLineBytes;
  if (at + kLines * kLineBytes > part) return;
  const std::uint8_t* from = weights.begin + part * static_cast<std::size_t>(worker) + at;
  for (int line = 0; line < kLines; ++line) __builtin_prefetch(from + line * kLineBytes, 0, 2);
#endif
}

}  // namespace sixfold
