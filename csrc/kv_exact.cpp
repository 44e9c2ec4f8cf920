#include "kv_exact.hpp"

#include <algorithm>
#include <stdexcept>

namespace sixfold {

ExactPages::ExactPages(const Header& header, const KvLayout& layout, int pages, int slots)
    : head_bytes_(kv_head_bytes(KvFormat::kF16, header.head_size)) {
  for (std::uint32_t layer = 0; layer < header.layers; ++layer) {
    offsets_.push_back(page_bytes_);
    if (layout.format(static_cast<int>(layer)) == KvFormat::kInt4) page_bytes_ += header.kv_heads * head_bytes_;
  }
  if (!on()) return;
  slot_of_page_.assign(pages, -1);
  slots_.resize(slots);
  for (int slot = slots; slot-- > 0;) free_.push_back(slot);
  memory_ = std::make_unique<ZeroedMemory>(page_bytes_ * slots + 64);
  pool_ = memory_->aligned();
}

void ExactPages::touch(int page) {
  const int found = slot_of_page_[page];
  if (found < 0) return;
  Slot& slot = slots_[found];
  // What a sequence has left behind says nothing of the one that has the page now. Running ones are in every step.
  if (slot.used + 1 < step_) slot.tokens = 0;
  slot.used = step_;
}

int ExactPages::use(int page, int held, int after) {
  touch(page);
  const int found = slot_of_page_[page];
  if (held > 0 && (found < 0 || slots_[found].tokens < held))
    throw std::invalid_argument("the newest tokens of a sequence, or its first ones, are no longer there in float16");
  const int index = found >= 0 ? found : take(page);
  // A sequence may run tokens again that others, under way as well, have in the same page: what is there stays.
  slots_[index].tokens = std::max({slots_[index].tokens, held, after});
  slots_[index].used = step_;
  return index;
}

void ExactPages::replace(int old, int page) {
  if (!on() || old == page || slot_of_page_[old] < 0) return;
  const int slot = slot_of_page_[old], other = slot_of_page_[page];
  if (other >= 0 && slots_[other].used == step_) return;  // another sequence that runs has it
  release(page);
  slot_of_page_[old] = -1;
  slot_of_page_[page] = slot;
  slots_[slot].page = page;
}

void ExactPages::release(int page) {
  const int slot = slot_of_page_[page];
  if (slot < 0) return;
  slot_of_page_[page] = -1;
  slots_[slot] = {};
  free_.push_back(slot);
}

int ExactPages::take(int page) {
  if (free_.empty()) {
    const auto oldest =
        std::min_element(slots_.begin(), slots_.end(), [](const Slot& a, const Slot& b) { return a.used < b.used; });
    if (oldest->used == step_) throw std::invalid_argument("more sequences than float16 pages for their newest tokens");
    release(oldest->page);
  }
  const int slot = free_.back();
  free_.pop_back();
  slots_[slot].page = page;
  slot_of_page_[page] = slot;
  return slot;
}

}  // namespace sixfold
