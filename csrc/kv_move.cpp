#include "kv_move.hpp"

#include <cmath>
#include <cstring>
#include <stdexcept>

namespace sixfold {
namespace {

// The rotations of one rope table by the shifts of all moves.
struct Rotations {
  int pairs = 0;                    // that the table rotates
  std::vector<float> cosine, sine;  // [shifts, pairs]
};

// What all layers and heads share: which rotation a move takes, and the rotations of each table.
struct Shifts {
  std::vector<int> of_move;
  std::vector<Rotations> tables;
};

Shifts shifts_of(const Step& step, std::span<const KvMove> moves) {
  Shifts shifts;
  std::vector<std::int32_t> different;  // neighbours mostly have the same
  for (const KvMove& move : moves) {
    if (different.empty() || different.back() != move.shift) different.push_back(move.shift);
    shifts.of_move.push_back(static_cast<int>(different.size()) - 1);
  }
  shifts.tables.resize(step.plan.header.rope_tables);
  for (const OpRecord& op : step.plan.body) {
    if (op.kind != OpKind::kRopeTable) continue;
    const Matrix& frequencies = step.plan.matrices[op.norm[0]];
    Rotations& table = shifts.tables[op.rope];
    table.pairs = static_cast<int>(frequencies.record.rows);
    for (const std::int32_t shift : different)
      for (int i = 0; i < table.pairs; ++i) {
        const double angle = static_cast<double>(shift) * static_cast<double>(frequencies.vector()[i]);
        table.cosine.push_back(static_cast<float>(std::cos(angle)));
        table.sine.push_back(static_cast<float>(std::sin(angle)));
      }
  }
  return shifts;
}

// The moves of one layer and KV head.
class Mover {
 public:
  Mover(Step& step, const Rotations& rotations, int layer, int head)
      : s_(step),
        rotations_(rotations),
        layer_(layer),
        head_(head),
        format_(step.layout.format(layer)),
        d_(static_cast<int>(step.plan.header.head_size)) {}

  void run(const KvMove& move, int rotation) const {
    const std::uint8_t* from = s_.kv(move.source, layer_, head_);
    std::uint8_t* to = s_.kv(move.target, layer_, head_);
    if (move.shift == 0 && move.count == kPageTokens) {
      std::memmove(to, from, s_.layout.head_bytes(layer_));
      return;
    }
    for (int t = 0; t < move.count; ++t) {
      const int source = move.source_slot + t, target = move.target_slot + t;
      copy_value(format_, d_, source, from, target, to);
      if (move.shift == 0)
        copy_key(format_, d_, source, from, target, to);
      else
        rotate_key(source, from, target, to, rotation);
    }
  }

 private:
  void rotate_key(int source, const std::uint8_t* from, int target, std::uint8_t* to, int rotation) const {
    float key[kMaxHeadSize];
    const std::size_t at = static_cast<std::size_t>(rotation) * rotations_.pairs;
    read_key(format_, d_, source, from, key);
    if (rotates_keys(format_)) s_.kernels.rotate_head(key, d_);  // it is its own inverse
    s_.kernels.rope(key, rotations_.cosine.data() + at, rotations_.sine.data() + at, rotations_.pairs);
    if (rotates_keys(format_)) s_.kernels.rotate_head(key, d_);
    write_key(s_.kernels, format_, d_, target, key, to);
  }

  Step& s_;
  const Rotations& rotations_;
  int layer_, head_;
  KvFormat format_;
  int d_;
};

void check(const Step& step, const KvMove& move) {
  if (step.exact.on()) throw std::invalid_argument("tokens of int4 layers are not moved");
  const auto inside = [&](std::int32_t page, std::int32_t slot) {
    return page >= 0 && page < step.page_count && slot >= 0 && move.count >= 1 && slot <= kPageTokens - move.count;
  };
  if (move.count > kPageTokens || !inside(move.source, move.source_slot) || !inside(move.target, move.target_slot))
    throw std::invalid_argument("a move of tokens leaves a page or the pool");
  if (move.source == move.target) throw std::invalid_argument("a move of tokens stays in its page");
}

}  // namespace

void move_tokens(Step& step, std::span<const KvMove> moves, const Each& each) {
  for (const KvMove& move : moves) check(step, move);
  const Shifts shifts = shifts_of(step, moves);
  std::vector<const OpRecord*> layers;
  for (const OpRecord& op : step.plan.body)
    if (op.kind == OpKind::kQkv) layers.push_back(&op);
  const int heads = static_cast<int>(step.plan.header.kv_heads);
  each(static_cast<int>(layers.size()) * heads, [&](int index) {
    const OpRecord& qkv = *layers[index / heads];
    const Mover mover(step, shifts.tables[qkv.rope], qkv.layer, index % heads);
    for (std::size_t i = 0; i < moves.size(); ++i) mover.run(moves[i], shifts.of_move[i]);
  });
}

}  // namespace sixfold
