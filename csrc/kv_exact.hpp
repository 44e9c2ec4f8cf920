// What int4 layers keep in float16 as well: the first page of each running sequence and its newest block. The first
// tokens draw much of all attention (attention sinks, Xiao et al. 2024), and what was said last is looked at most
// sharply; there 4 bits cost most.
//
//   position   0 ... 15 | 16 ............... | 64 b ....... p |
//   read from  float16  | int4               | float16        |        by a query at p; b = p / 64
//
// Which one is read depends on the two positions alone, so it does not matter how a sequence was cut into steps. Int4
// pages are written for every token, so that a block needs no conversion when it is full, and other sequences may share
// it then. The float16 pages belong to their sequence: one that begins with known pages begins at a block, and runs its
// first 16 tokens again (they need nothing but each other).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kv_page.hpp"
#include "memory.hpp"

namespace sixfold {

constexpr int kSinkTokens = kPageTokens;
constexpr int kExactTokens = 64;  // of a block
constexpr int kExactPages = kExactTokens / kPageTokens;

class ExactPages {
 public:
  // `slots`: how many pages can be kept. No memory is taken if no layer is int4.
  ExactPages(const Header& header, const KvLayout& layout, int pages, int slots);

  bool on() const { return page_bytes_ > 0; }
  std::size_t page_bytes() const { return page_bytes_; }
  // The page of one layer, which is int4, and head.
  std::uint8_t* at(int slot, int layer, int head) {
    return pool_ + slot * page_bytes_ + offsets_[layer] + head * head_bytes_;
  }

  // Before a step is described.
  void begin_step() { ++step_; }
  // The page is read in this step: nothing else takes its slot. For all pages of a step, before any is used.
  void touch(int page);
  // The slot of a page of the pool that holds its first `held` tokens and will hold `after` of them; throws
  // std::invalid_argument if they are not here from the step before. What has not been used for longest makes room.
  int use(int page, int held, int after);
  // The sequence that has had page `old` has `page` from now on, which holds the same tokens.
  void replace(int old, int page);
  // The page's block is over.
  void release(int page);

 private:
  struct Slot {
    int page = -1, tokens = 0;
    std::uint64_t used = 0;  // the last step that has read or written it
  };
  int take(int page);

  std::size_t page_bytes_ = 0, head_bytes_;
  std::vector<std::size_t> offsets_;  // a layer
  std::vector<int> slot_of_page_;     // -1: none
  std::vector<Slot> slots_;
  std::vector<int> free_;  // the last one is taken first, so that memory is used again before more is touched
  std::uint64_t step_ = 1;
  std::unique_ptr<ZeroedMemory> memory_;
  std::uint8_t* pool_ = nullptr;
};

}  // namespace sixfold
