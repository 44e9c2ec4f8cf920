// Moves the KV of tokens from page to page and to other positions, as context that is reused elsewhere needs it.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "step.hpp"

namespace sixfold {

// `count` tokens, from slot `source_slot` of a page on, go to slot `target_slot` of another page on; their positions
// grow by `shift`, by which their keys are rotated on. A shift of 0 copies bits.
struct KvMove {
  std::int32_t source, source_slot, target, target_slot, count, shift;
};
static_assert(sizeof(KvMove) == 6 * sizeof(std::int32_t));

// Calls task(i) for i in [0, count), in any order, on any threads.
using Each = std::function<void(int count, const std::function<void(int)>& task)>;

// Executes the moves in their order: a later one may read what an earlier one wrote, or overwrite what it read. Throws
// std::invalid_argument, before anything is written, when one of them leaves a page or the pool.
void move_tokens(Step& step, std::span<const KvMove> moves, const Each& each);

}  // namespace sixfold
