#include "section.hpp"

#include <algorithm>

#include "ops.hpp"

namespace sixfold {
namespace {

// What one worker fetches ahead while it waits: lines a round, rounds at the most (64 KB, well inside an L2 cache).
constexpr int kLines = 8, kRounds = 128;
constexpr std::size_t kLineBytes = 64;

}  // namespace

Section::Section(Step& step, int index, int threads, Stopwatch& watch, bool adapted)
    : step_(step),
      ops_(index == 0 ? step.plan.body : step.plan.head),
      index_(index),
      threads_(threads),
      watch_(watch),
      maker_(ops_.size(), -1),
      makes_(ops_.size(), false),
      made_(threads) {
  int normed = -1, attended = -1;  // who made them last; a norm that also changes the residual can not be repeated
  std::vector<int> readers(ops_.size(), 0);
  for (std::size_t i = 0; i < ops_.size(); ++i) {
    const int op = static_cast<int>(i);
    switch (ops_[i].kind) {
      case OpKind::kNorm:
      case OpKind::kGatherNorm:
        normed = op;
        break;
      case OpKind::kNormAddNorm:
        normed = -1;
        break;
      case OpKind::kMerge:
        attended = op;
        break;
      case OpKind::kQkv:
      case OpKind::kGateUp:
      case OpKind::kLogits:
        maker_[i] = normed;
        break;
      case OpKind::kMatmul:
      case OpKind::kMatmulAdd:
        maker_[i] = ops_[i].input == 0 ? attended : -1;
        break;
      default:
        break;
    }
    if (maker_[i] >= 0) ++readers[maker_[i]];
  }
  // A maker is left to its reader only if that comes next and is the only one: what it makes from may change later.
  for (std::size_t i = 0; i < ops_.size(); ++i) {
    const int maker = maker_[i];
    if (maker < 0) continue;
    if (maker + 1 == static_cast<int>(i) && readers[maker] == 1)
      makes_[maker] = true;
    else
      maker_[i] = -1;
  }
  const auto& after = index == 0 ? step.plan.head : step.plan.body;
  Weights weights;
  for (std::size_t i = after.size(); i-- > 0;)
    if (const Weights own = weights_of(after[i]); own.bytes > 0) weights = own;
  for (std::size_t i = ops_.size(); i-- > 0;) {
    program_.push_back({static_cast<int>(i), false, weights});
    if (const Weights own = weights_of(ops_[i]); own.bytes > 0) weights = own;
    if (adapted && takes_adapters(ops_[i])) program_.push_back({static_cast<int>(i), true, weights});
  }
  std::reverse(program_.begin(), program_.end());
}

// The plan's writer lays an operator's matrices side by side.
Section::Weights Section::weights_of(const OpRecord& op) const {
  if (op.kind == OpKind::kEmbed) return {};
  const std::uint8_t *begin = nullptr, *end = nullptr;
  for (const std::int32_t index : op.matrix) {
    if (index < 0) continue;
    const Matrix& matrix = step_.plan.matrices[index];
    begin = begin ? std::min(begin, matrix.data) : matrix.data;
    end = std::max(end, matrix.tile(matrix.tiles - 1) + matrix.tile_bytes);
  }
  return {begin, static_cast<std::size_t>(end - begin)};
}

int Section::rows() const { return static_cast<int>(index_ == 0 ? step_.tokens.size() : step_.wanted_rows.size()); }

int Section::chunks(int at) {
  const auto [op, down, next] = program_[at];
  if (down) return down_chunk_count(step_, ops_[op], threads_);
  return makes_[op] && own_inputs() ? 0 : chunk_count(step_, ops_[op], threads_);
}

void Section::run(int at, int chunk, int worker) {
  const int op = program_[at].op;
  const int maker = own_inputs() ? maker_[op] : -1;
  if (maker >= 0) {
    Made& made = made_[worker];
    if (made.op != maker || made.run != run_) run_chunk(step_, ops_[maker], 0, 1, worker, step_.own[worker]);
    made = {maker, run_};
  }
  Inputs& inputs = maker >= 0 ? step_.own[worker] : step_.shared;
  if (program_[at].down)
    run_down_chunk(step_, ops_[op], chunk, down_chunk_count(step_, ops_[op], threads_), inputs);
  else
    run_chunk(step_, ops_[op], chunk, chunk_count(step_, ops_[op], threads_), worker, inputs);
}

// Memory rests while workers wait for each other, so whoever waits fetches the beginning of its part of what is next.
void Section::idle(int at, int worker, int round) const {
#ifdef __GNUC__
  if (round >= kRounds) return;
  const Weights& weights = program_[at].next;
  const std::size_t part = weights.bytes / static_cast<std::size_t>(threads_);
  const std::size_t done = static_cast<std::size_t>(round) * kLines * kLineBytes;
  if (done + kLines * kLineBytes > part) return;
  const std::uint8_t* from = weights.begin + part * static_cast<std::size_t>(worker) + done;
  for (int line = 0; line < kLines; ++line) __builtin_prefetch(from + line * kLineBytes, 0, 2);
#endif
}

}  // namespace sixfold
