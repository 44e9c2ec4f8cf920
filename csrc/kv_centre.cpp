#include "kv_centre.hpp"

#include <cmath>
#include <stdexcept>

namespace sixfold {
namespace {

// (a, b) turned by an angle.
struct Turn {
  float cosine, sine;
  explicit Turn(float angle)
      : cosine(static_cast<float>(std::cos(static_cast<double>(angle)))),
        sine(static_cast<float>(std::sin(static_cast<double>(angle)))) {}
};

}  // namespace

KvCentres::KvCentres(const Plan& plan, const KvLayout& layout, std::span<const float> centres)
    : layout_(layout),
      head_size_(static_cast<int>(plan.header.head_size)),
      kv_heads_(static_cast<int>(plan.header.kv_heads)),
      tables_(plan.header.rope_tables),
      rope_(plan.header.layers) {
  for (const OpRecord& op : plan.body) {
    if (op.kind == OpKind::kRopeTable) {
      const Matrix& frequencies = plan.matrices[op.norm[0]];
      tables_[op.rope] = {static_cast<int>(frequencies.record.rows), frequencies.vector(), {}};
    }
    if (op.kind == OpKind::kQkv) rope_[op.layer] = op.rope;
  }
  if (centres.empty()) return;
  if (centres.size() != std::size_t{plan.header.layers} * plan.header.kv_heads * plan.header.head_size)
    throw std::invalid_argument("key centres: one for each layer, KV head and element");
  for (float value : centres)
    if (!std::isfinite(value)) throw std::invalid_argument("key centres must be finite");
  means_.assign(centres.begin(), centres.end());
  for (int layer = 0; layer < static_cast<int>(plan.header.layers); ++layer) {
    any_ = any_ || has(layer);
    const Table& table = tables_[rope_[layer]];
    for (int i = 0; i < table.width; ++i) {
      float cosine = 0, sine = 0;
      for (int token = 0; token < kPageTokens; ++token) {
        const Turn turn(static_cast<float>(token) * table.frequencies[i]);
        cosine += turn.cosine / kPageTokens;
        sine += turn.sine / kPageTokens;
      }
      for (int head = 0; head < kv_heads_; ++head) {
        float* b = means_.data() + (static_cast<std::size_t>(layer) * kv_heads_ + head) * head_size_;
        const float first = b[i], second = b[i + table.width];
        b[i] = first * cosine - second * sine;
        b[i + table.width] = second * cosine + first * sine;
      }
    }
  }
}

void KvCentres::reach(int pages) {
  if (!any_) return;
  const int groups = (pages + kPhasePages - 1) / kPhasePages;
  for (; groups_ < groups; ++groups_)
    for (Table& table : tables_) {
      const std::size_t at = table.phases.size();
      table.phases.resize(at + static_cast<std::size_t>(kPhasePages) * head_size_, 1.0f);
      for (int i = 0; i < table.width; ++i)
        for (int page = 0; page < kPhasePages; ++page) {
          const float position = static_cast<float>((groups_ * kPhasePages + page) * kPageTokens);
          const Turn turn(position * table.frequencies[i]);
          table.phases[at + i * kPhasePages + page] = turn.cosine;
          table.phases[at + (i + table.width) * kPhasePages + page] = turn.sine;
        }
    }
}

void KvCentres::centre(int layer, int kv_head, int page, float* c) const {
  const float* b = mean(layer, kv_head);
  const float* e = phases(layer, page / kPhasePages) + page % kPhasePages;
  const int n = tables_[rope_[layer]].width;
  for (int i = 0; i < n; ++i) {
    const float cosine = e[i * kPhasePages], sine = e[(i + n) * kPhasePages];
    c[i] = b[i] * cosine - b[i + n] * sine;
    c[i + n] = b[i + n] * cosine + b[i] * sine;
  }
  for (int i = 2 * n; i < head_size_; ++i) c[i] = b[i];
}

void KvCentres::weigh(int layer, int kv_head, const float* query, float* z) const {
  const float* b = mean(layer, kv_head);
  const int n = tables_[rope_[layer]].width;
  for (int i = 0; i < n; ++i) {
    z[i] = query[i] * b[i] + query[i + n] * b[i + n];
    z[i + n] = query[i + n] * b[i] - query[i] * b[i + n];
  }
  for (int i = 2 * n; i < head_size_; ++i) z[i] = query[i] * b[i];
}

void KvCentres::add_unrotated(int layer, int position, const float* key, float* sum) const {
  const Table& table = tables_[rope_[layer]];
  const int n = table.width;
  for (int i = 0; i < n; ++i) {
    const Turn turn(static_cast<float>(position) * table.frequencies[i]);
    sum[i] += key[i] * turn.cosine + key[i + n] * turn.sine;
    sum[i + n] += key[i + n] * turn.cosine - key[i] * turn.sine;
  }
  for (int i = 2 * n; i < head_size_; ++i) sum[i] += key[i];
}

}  // namespace sixfold
