// What keys have in common: a centre for each layer and KV head, found before rope on other text. Int4 pages hold how
// far a key is from it, which is most often little, so that 4 bits go further; what was taken away comes back exactly,
// since scores are linear in keys:
//
//   q . k = q . (k - c) + q . c                     c = R(first position of the page) b
//
// R(p) is rope's rotation to position p (RoFormer) and b the mean over 16 positions of the rotated centre, so all
// tokens of a page share one c. With z made from q and b once a query, q . c costs as much as one more key of the page:
//
//   q . c = z . e        e = cos and sin of the angles of the page's first position, the same for all layers and heads
#pragma once

#include <span>
#include <vector>

#include "kv_page.hpp"
#include "plan.hpp"

namespace sixfold {

constexpr int kPhasePages = 16;  // whose angles lie together

class KvCentres {
 public:
  // `centres`: [layers][kv_heads][head_size] before rope; empty: there are none. Throws std::invalid_argument.
  KvCentres(const Plan& plan, const KvLayout& layout, std::span<const float> centres);

  // Whether keys of this layer are kept as differences.
  bool has(int layer) const { return !means_.empty() && layout_.format(layer) == KvFormat::kInt4; }
  bool any() const { return any_; }

  // Before keys or queries of a page up to `pages` are handled; not from several threads.
  void reach(int pages);
  // e of kPhasePages pages: [head_size][kPhasePages].
  const float* phases(int layer, int group) const {
    return tables_[rope_[layer]].phases.data() + static_cast<std::size_t>(group) * kPhasePages * head_size_;
  }

  // c [head_size] of page `page` of any sequence.
  void centre(int layer, int kv_head, int page, float* c) const;
  // z [head_size] of a query after rope.
  void weigh(int layer, int kv_head, const float* query, float* z) const;

  // Adds a key [head_size] at a position, without its rope, to `sum`: for finding centres.
  void add_unrotated(int layer, int position, const float* key, float* sum) const;

 private:
  // A rope table: it rotates pairs (i, i + width).
  struct Table {
    int width = 0;
    const float* frequencies = nullptr;
    std::vector<float> phases;
  };
  const float* mean(int layer, int kv_head) const {
    return means_.data() + (static_cast<std::size_t>(layer) * kv_heads_ + kv_head) * head_size_;
  }

  const KvLayout& layout_;
  int head_size_, kv_heads_;
  bool any_ = false;
  int groups_ = 0;
  std::vector<Table> tables_;
  std::vector<int> rope_;     // a layer: its table
  std::vector<float> means_;  // [layers][kv_heads][head_size]: b
};

}  // namespace sixfold
