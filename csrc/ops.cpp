#include "ops.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "threads.hpp"

namespace sixfold {
namespace {

struct Range {
  int begin, end;
};

// The part of [0, total) that is `index` of `parts` nearly equal parts.
Range part(int total, int index, int parts) {
  const auto at = [&](int i) { return static_cast<int>(static_cast<long long>(total) * i / parts); };
  return {at(index), at(index + 1)};
}

int blocks_of(int rows, int size) { return (rows + size - 1) / size; }

// Rows are cheap to norm or embed: a chunk is whole groups of them, which share cache lines.
int row_chunks(int rows) { return std::min(blocks_of(rows, kGroupRows), 1024); }

Range row_part(int rows, int chunk, int chunks) {
  const Range groups = part(blocks_of(rows, kGroupRows), chunk, chunks);
  return {groups.begin * kGroupRows, std::min(groups.end * kGroupRows, rows)};
}

// Enough chunks for threads to even out, few enough that claiming costs nothing.
int column_chunks(int units, int threads) { return std::min({units, threads * 8, Team::kMaxChunks}); }

constexpr std::size_t kLineBytes = 64;
constexpr int kAheadLines = 512;  // what a product is asked to fetch ahead, at most

class Runner {
 public:
  Runner(Step& step, const OpRecord& op, int worker, Inputs& inputs)
      : s_(step),
        op_(op),
        k_(step.kernels),
        in_(inputs),
        scratch_(step.scratch[worker].data()),
        forms_(step.adapted.empty() ? op.emit : op.emit | kEmitF32) {  // adapters read floats
    if (!step.adapted.empty() && takes_adapters(op)) plan_ahead();
  }

  void rope_table(Range rows) {
    const Matrix& frequencies = s_.plan.matrices[op_.norm[0]];
    const int n = static_cast<int>(frequencies.record.rows);
    for (int row = rows.begin; row < rows.end; ++row)
      for (int i = 0; i < n; ++i) {
        const float angle = static_cast<float>(s_.positions[row]) * frequencies.vector()[i];
        s_.cosine[op_.rope].data()[static_cast<std::size_t>(row) * n + i] = std::cos(static_cast<double>(angle));
        s_.sine[op_.rope].data()[static_cast<std::size_t>(row) * n + i] = std::sin(static_cast<double>(angle));
      }
  }

  void embed(Range rows) {
    for (int row = rows.begin; row < rows.end; ++row)
      unpack_row(s_.plan.matrices[op_.matrix[0]], s_.tokens[row], op_.scale, s_.x_row(row));
  }

  void norm(Range rows) {
    for (int row = rows.begin; row < rows.end; ++row) normed(s_.x_row(row), op_.norm[0], row, in_.normed);
  }

  void norm_add(Range rows, bool then_norm) {
    const int hidden = static_cast<int>(s_.plan.header.hidden);
    for (int row = rows.begin; row < rows.end; ++row) {
      float* x = s_.x_row(row);
      k_.rms_norm(s_.y_row(row), vector(op_.norm[0]), op_.epsilon, hidden, scratch_);
      for (int i = 0; i < hidden; ++i) x[i] += scratch_[i];
      if (then_norm) normed(x, op_.norm[1], row, in_.normed);
    }
  }

  void gather_norm(Range rows) {
    for (int i = rows.begin; i < rows.end; ++i) normed(s_.x_row(s_.wanted_rows[i]), op_.norm[0], i, in_.head_input);
  }

  // One head (query, key or value) of a block of rows.
  void qkv(int head, Range rows) {
    const Header& h = s_.plan.header;
    const int d = static_cast<int>(h.head_size);
    const int queries = static_cast<int>(h.query_heads), kv = static_cast<int>(h.kv_heads);
    const int which = head < queries ? 0 : head < queries + kv ? 1 : 2;
    const int in_kind = which == 0 ? head : (head - queries) % kv;
    const KvFormat format = s_.layout.format(op_.layer);
    for (int tile = 0; tile < d / kTileColumns; ++tile)
      product(op_.matrix[which], in_kind * (d / kTileColumns) + tile, in_.normed.view(), rows,
              scratch_ + tile * kTileColumns, d);
    for (int row = rows.begin; row < rows.end; ++row) {
      float* values = scratch_ + static_cast<std::size_t>(row - rows.begin) * d;
      if (op_.bias[which] >= 0)
        for (int i = 0; i < d; ++i) values[i] += vector(op_.bias[which])[in_kind * d + i];
      if (which < 2 && op_.norm[which] >= 0) k_.rms_norm(values, vector(op_.norm[which]), op_.epsilon, d, values);
      if (which < 2) rotate(values, row);
      if (which == 0 && s_.centres.has(op_.layer)) weigh_centre(values, row, in_kind);
      if (which < 2 ? rotates_keys(format) : rotates_values(format)) k_.rotate_head(values, d);
      if (which == 0)
        store_query(values, row, in_kind);
      else
        store_key_or_value(values, row, in_kind, which == 2);
    }
  }

  void attention(const AttentionTask& task) {
    const Header& h = s_.plan.header;
    const StepSequence& sequence = s_.sequences[task.sequence];
    const int d = static_cast<int>(h.head_size), group = static_cast<int>(h.query_heads / h.kv_heads);
    const int rows = task.tokens * group;
    AttentionJob job{};
    job.q = s_.q.data() + static_cast<std::size_t>(task.row) * s_.query_width + task.kv_head * group * d;
    job.q_stride = s_.query_width;
    job.tokens = task.tokens;
    job.group = group;
    job.head_size = d;
    job.position = sequence.position + task.row - sequence.first_row;
    job.window = op_.window;
    job.sum = scratch_;
    job.weight = scratch_ + static_cast<std::size_t>(rows) * d;
    job.max = job.weight + rows;
    job.scratch = scratch_ + round_up(static_cast<std::size_t>(rows) * (d + 2), 16);
    const int visible_end = job.position + task.tokens;
    const int visible_begin = op_.window > 0 ? std::max(0, job.position - op_.window + 1) : 0;
    bool exact = false;
    if (!task.slot_per_split) clear_slots(task, 0);
    for (int index = task.first_split; index < task.last_split; ++index) {
      const int slot = task.slot_per_split ? index : 0;
      if (task.slot_per_split) clear_slots(task, slot);
      const Step::Split split = s_.split(op_.layer, index, job.position, visible_end);
      job.begin = std::max(split.begin, visible_begin / kPageTokens * kPageTokens);
      job.end = split.end;
      if (job.begin >= job.end) continue;
      job.prepared = job.prepared && split.exact == exact;
      exact = split.exact;
      read_pages(job, sequence, task.kv_head, exact);
      s_.attention[static_cast<int>(exact ? KvFormat::kF16 : s_.layout.format(op_.layer))](job);
      job.prepared = true;
      for (int r = 0; r < rows; ++r) {
        const PartialSum into = this->slot(task.row + r / group, slot, task.kv_head * group + r % group);
        fold(into, {job.sum + static_cast<std::size_t>(r) * d, job.weight + r, job.max + r});
      }
    }
  }

  void merge(Range rows) {
    const Header& h = s_.plan.header;
    const int d = static_cast<int>(h.head_size);
    const bool rotated = rotates_values(s_.layout.format(op_.layer));
    std::fill_n(scratch_, s_.query_width, 0.0f);
    for (int row = rows.begin; row < rows.end; ++row) {
      for (int head = 0; head < static_cast<int>(h.query_heads); ++head) {
        float weight = 0, max = -std::numeric_limits<float>::infinity();
        const PartialSum all{scratch_ + head * d, &weight, &max};
        for (int slot = 0; slot < s_.slot_count[row]; ++slot) fold(all, this->slot(row, slot, head));
        const float inverse = 1.0f / weight;
        for (int i = 0; i < d; ++i) all.sum[i] *= inverse;
        if (rotated) k_.rotate_head(all.sum, d);
      }
      in_.attended.emit(k_, row, scratch_, forms_);
    }
  }

  void project(Range tiles, Range rows, bool add) {
    const Matrix& w = s_.plan.matrices[op_.matrix[0]];
    const Activations& input = (op_.input == 0 ? in_.attended : s_.gated).view();
    const int outputs = static_cast<int>(w.record.rows);
    for (int tile = tiles.begin; tile < tiles.end; ++tile) {
      product(op_.matrix[0], tile, input, rows, scratch_, kTileColumns);
      const int first = tile * kTileColumns, count = std::min(kTileColumns, outputs - first);
      for (int row = rows.begin; row < rows.end; ++row) {
        const float* from = scratch_ + (row - rows.begin) * kTileColumns;
        float* to = (add ? s_.x_row(row) : s_.y_row(row)) + first;
        for (int i = 0; i < count; ++i) {
          const float value = op_.bias[0] >= 0 ? from[i] + vector(op_.bias[0])[first + i] : from[i];
          to[i] = add ? to[i] + value : value;
        }
      }
    }
  }

  // Block `block` of 32 intermediate columns: gate and up, the activation, and the quantised product.
  void gate_up(int block, Range rows) {
    const Activations& out = s_.gated.view();
    const int count = rows.end - rows.begin;
    float* gate = scratch_;
    float* up = gate + kRowBlock * kBlock;
    float* product = up + kRowBlock * kBlock;
    for (int half = 0; half < 2; ++half) {  // in this order their tiles lie side by side
      columns(op_.matrix[0], 2 * block + half, rows, gate + half * kTileColumns);
      columns(op_.matrix[1], 2 * block + half, rows, up + half * kTileColumns);
    }
    k_.gate(op_.activation, gate, up, count * kBlock, product);
    for (int i = 0; i < count; ++i) {
      if (forms_ & kEmitInt8) k_.quantize(product + i * kBlock, 1, out, rows.begin + i, block);
      if (forms_ & kEmitF32)
        std::memcpy(out.f32 + static_cast<std::size_t>(rows.begin + i) * out.width + block * kBlock,
                    product + i * kBlock, sizeof(float) * kBlock);
    }
  }

  void logits(Range tiles) {
    const Matrix& w = s_.plan.matrices[op_.matrix[0]];
    const int rows = static_cast<int>(s_.wanted_rows.size());
    for (int tile = tiles.begin; tile < tiles.end; ++tile)
      matmul(op_.matrix[0])(w.tile(tile), w.padded_columns, in_.head_input.view(), 0, rows,
                            s_.logits + static_cast<std::size_t>(tile) * kTileColumns, s_.logits_width);
  }

 private:
  const float* vector(int index) const { return s_.plan.matrices[index].vector(); }
  MatmulTile matmul(int index) const { return s_.matmuls[index]; }

  void normed(const float* x, int weights, int row, ActivationBuffer& out) {
    const int hidden = static_cast<int>(s_.plan.header.hidden);
    k_.rms_norm(x, vector(weights), op_.epsilon, hidden, scratch_);
    std::fill(scratch_ + hidden, scratch_ + s_.hidden_width, 0.0f);
    out.emit(k_, row, scratch_, forms_);
  }

  void rotate(float* values, int row) {
    const int n = s_.rope_width(op_.rope);
    const std::size_t at = static_cast<std::size_t>(row) * n;
    k_.rope(values, s_.cosine[op_.rope].data() + at, s_.sine[op_.rope].data() + at, n);
  }

  // What gives a query's scores back what keys are short of by their centre.
  void weigh_centre(const float* values, int row, int head) {
    const Header& h = s_.plan.header;
    const int d = static_cast<int>(h.head_size), group = static_cast<int>(h.query_heads / h.kv_heads);
    float* z = s_.centre.data() + static_cast<std::size_t>(row) * s_.query_width + head * d;
    s_.centres.weigh(op_.layer, head / group, values, z);
    for (int i = 0; i < d; ++i) z[i] *= op_.scale;
  }

  void store_query(const float* values, int row, int head) {
    const int d = static_cast<int>(s_.plan.header.head_size);
    float* to = s_.q.data() + static_cast<std::size_t>(row) * s_.query_width + head * d;
    for (int i = 0; i < d; ++i) to[i] = values[i] * op_.scale;
  }

  void store_key_or_value(float* values, int row, int head, bool value) {
    const int d = static_cast<int>(s_.plan.header.head_size);
    const int position = s_.positions[row], token = position % kPageTokens, index = position / kPageTokens;
    const StepSequence& sequence = s_.sequences[s_.sequence_of_row[row]];
    const KvFormat format = s_.layout.format(op_.layer);
    const auto write = value ? write_value : write_key;  // both rotated, if the format is
    if (format == KvFormat::kInt4)
      write(k_, KvFormat::kF16, d, token, values, s_.exact.at(sequence.exact[index], op_.layer, head));
    if (!value && s_.centres.has(op_.layer)) {
      float centre[kMaxHeadSize];
      s_.centres.centre(op_.layer, head, index, centre);
      k_.rotate_head(centre, d);
      for (int i = 0; i < d; ++i) values[i] -= centre[i];
    }
    write(k_, format, d, token, values, s_.kv(sequence.pages[index], op_.layer, head));
  }

  // Points the job to the pages of the layer and head, or to those that are kept in float16 beside them.
  void read_pages(AttentionJob& job, const StepSequence& sequence, int head, bool exact) {
    job.pages = exact ? sequence.exact : sequence.pages;
    job.pool = exact ? s_.exact.at(0, op_.layer, head) : s_.kv(0, op_.layer, head);
    job.page_stride = exact ? s_.exact.page_bytes() : s_.layout.page_bytes();
    job.page_bytes = exact ? kv_head_bytes(KvFormat::kF16, job.head_size) : s_.layout.head_bytes(op_.layer);
    const bool centred = !exact && s_.centres.has(op_.layer);
    job.centre = centred ? s_.centre.data() + (job.q - s_.q.data()) : nullptr;
    job.phases = centred ? s_.centres.phases(op_.layer, 0) : nullptr;
  }

  PartialSum slot(int row, int index, int head) {
    const Header& h = s_.plan.header;
    const std::size_t at = static_cast<std::size_t>(s_.first_slot[row] + index) * h.query_heads + head;
    return {s_.slots.sum.data() + at * h.head_size, s_.slots.weight.data() + at, s_.slots.max.data() + at};
  }

  void clear_slots(const AttentionTask& task, int index) {
    const int group = static_cast<int>(s_.plan.header.query_heads / s_.plan.header.kv_heads);
    for (int r = 0; r < task.tokens * group; ++r)
      *slot(task.row + r / group, index, task.kv_head * group + r % group).weight = 0;
  }

  // Joins two partial softmax sums; the first is kept as it is when the other saw no key.
  void fold(const PartialSum& into, const PartialSum& other) {
    const int d = static_cast<int>(s_.plan.header.head_size);
    if (*other.weight == 0) return;
    if (*into.weight == 0) {
      std::memcpy(into.sum, other.sum, sizeof(float) * d);
      *into.weight = *other.weight;
      *into.max = *other.max;
      return;
    }
    k_.fold(into, other, d);
  }

  // Outputs of one tile of a matrix for some rows, ldy apart, with what adapters add.
  void product(int index, int tile, Activations x, Range rows, float* out, int ldy) {
    const Matrix& w = s_.plan.matrices[index];
    if (ahead_total_ >= 0 && rows.begin == 0) {
      x.ahead_lines = list_ahead(index, tile);
      x.ahead = ahead_;
    }
    matmul(index)(w.tile(tile), w.padded_columns, x, rows.begin, rows.end - rows.begin, out, ldy);
    adapt(index, tile, rows, out, ldy);
  }

  // The operator whose A come next, their size, and the tiles of this operator that can fetch them meanwhile.
  void plan_ahead() {
    ahead_total_ = 0;
    for (const std::int32_t index : op_.matrix)
      if (index >= 0) ahead_tiles_ += s_.plan.matrices[index].tiles;
    for (next_ = &op_ + 1; next_ != s_.plan.body.data() + s_.plan.body.size(); ++next_)
      if (takes_adapters(*next_)) {
        for (const AdapterRows& group : s_.adapted)
          ahead_total_ += static_cast<long long>(lines(group.adapter->down(next_->matrix[0])));
        return;
      }
  }

  static std::size_t lines(const DownMatrix& down) { return down.tile_bytes * down.tiles / kLineBytes; }

  // Different adapters are much memory to read for few rows. A product with the plan's weights computes more than it
  // reads; so while it does, it fetches this tile's B, and this tile's share of the A that come next.
  int list_ahead(int index, int tile) {
    int count = 0;
    const auto add = [&](const std::uint8_t* line) {
      if (count < kAheadLines) ahead_[count++] = line;
    };
    for (const AdapterRows& group : s_.adapted) {
      const UpMatrix& up = group.adapter->up(index);
      for (std::size_t at = 0; up.rank > 0 && at < up.tile_bytes; at += kLineBytes)
        add(up.data + up.tile_bytes * tile + at);
    }
    int place = tile;
    for (const std::int32_t before : op_.matrix) {
      if (before == index) break;
      place += s_.plan.matrices[before].tiles;
    }
    std::size_t first = static_cast<std::size_t>(ahead_total_ * place / ahead_tiles_);
    const std::size_t last = static_cast<std::size_t>(ahead_total_ * (place + 1) / ahead_tiles_);
    for (std::size_t group = 0, base = 0; first < last && group < s_.adapted.size(); ++group) {
      const DownMatrix& down = s_.adapted[group].adapter->down(next_->matrix[0]);
      const std::size_t end = base + lines(down);
      for (; first < std::min(last, end); ++first) add(down.data + (first - base) * kLineBytes);
      base = end;
    }
    return count;
  }

  // Adds what adapters change in one tile of a matrix: out[(row - rows.begin) * ldy + output].
  void adapt(int matrix, int tile, Range rows, float* out, int ldy) {
    for (const AdapterRows& group : s_.adapted) {
      const UpMatrix& up = group.adapter->up(matrix);
      if (up.rank == 0) continue;
      for (const RowRun& run : group.runs) {
        const int begin = std::max(run.begin, rows.begin), end = std::min(run.end, rows.end);
        if (begin >= end) continue;
        group.add(up.data + up.tile_bytes * tile, up.rank,
                  s_.ranks.data() + static_cast<std::size_t>(begin) * s_.ranks_width + up.first, s_.ranks_width,
                  end - begin, out + static_cast<std::size_t>(begin - rows.begin) * ldy, ldy);
      }
    }
  }

  // Outputs of one tile of a matrix for some rows, kBlock apart; zero beyond its last tile.
  void columns(int index, int tile, Range rows, float* out) {
    const Matrix& w = s_.plan.matrices[index];
    const int count = rows.end - rows.begin;
    if (tile < w.tiles) {
      product(index, tile, in_.normed.view(), rows, out, kBlock);
      return;
    }
    for (int i = 0; i < count; ++i) std::fill_n(out + i * kBlock, kTileColumns, 0.0f);
  }

  Step& s_;
  const OpRecord& op_;
  const Kernels& k_;
  Inputs& in_;
  float* scratch_;
  const std::uint32_t forms_;  // in which activations are written
  const OpRecord* next_ = nullptr;
  long long ahead_total_ = -1, ahead_tiles_ = 0;  // lines; -1: no adapters here
  const std::uint8_t* ahead_[kAheadLines];
};

int matrix_tiles(const Step& step, const OpRecord& op) { return step.plan.matrices[op.matrix[0]].tiles; }

int heads(const Step& step) { return static_cast<int>(step.plan.header.query_heads + 2 * step.plan.header.kv_heads); }

// Chunks of a matrix product run over [row block][columns]: all columns of one row block, then the next.
int per_row_block(const Step& step, const OpRecord& op, int threads) {
  const int blocks = blocks_of(static_cast<int>(step.tokens.size()), kRowBlock);
  const int units = op.kind == OpKind::kGateUp ? (matrix_tiles(step, op) + 1) / 2 : matrix_tiles(step, op);
  return std::max(1, std::min(column_chunks(units, threads), Team::kMaxChunks / blocks));
}

}  // namespace

int chunk_count(const Step& step, const OpRecord& op, int threads) {
  const int rows = static_cast<int>(step.tokens.size());
  switch (op.kind) {
    case OpKind::kQkv:
      return std::min(heads(step) * blocks_of(rows, kQkvRows), Team::kMaxChunks);
    case OpKind::kAttention:
      return std::min(static_cast<int>(step.tasks.size()), Team::kMaxChunks);
    case OpKind::kMatmul:
    case OpKind::kMatmulAdd:
    case OpKind::kGateUp:
      return per_row_block(step, op, threads) * blocks_of(rows, kRowBlock);
    case OpKind::kGatherNorm:
      return row_chunks(static_cast<int>(step.wanted_rows.size()));
    case OpKind::kLogits:
      return column_chunks(matrix_tiles(step, op), threads);
    default:
      return row_chunks(rows);
  }
}

void run_chunk(Step& step, const OpRecord& op, int chunk, int chunks, int worker, Inputs& inputs) {
  Runner runner(step, op, worker, inputs);
  const int rows = static_cast<int>(step.tokens.size());
  const Range row_range = row_part(rows, chunk, chunks);
  switch (op.kind) {
    case OpKind::kRopeTable:
      return runner.rope_table(row_range);
    case OpKind::kEmbed:
      return runner.embed(row_range);
    case OpKind::kNorm:
      return runner.norm(row_range);
    case OpKind::kNormAddNorm:
      return runner.norm_add(row_range, true);
    case OpKind::kNormAdd:
      return runner.norm_add(row_range, false);
    case OpKind::kMerge:
      return runner.merge(row_range);
    case OpKind::kGatherNorm:
      return runner.gather_norm(row_part(static_cast<int>(step.wanted_rows.size()), chunk, chunks));
    case OpKind::kLogits:
      return runner.logits(part(matrix_tiles(step, op), chunk, chunks));
    case OpKind::kQkv: {
      const Range units = part(heads(step) * blocks_of(rows, kQkvRows), chunk, chunks);
      for (int unit = units.begin; unit < units.end; ++unit) {
        const int first = unit / heads(step) * kQkvRows;
        runner.qkv(unit % heads(step), {first, std::min(first + kQkvRows, rows)});
      }
      return;
    }
    case OpKind::kAttention: {
      const Range tasks = part(static_cast<int>(step.tasks.size()), chunk, chunks);
      for (int task = tasks.begin; task < tasks.end; ++task) runner.attention(step.tasks[task]);
      return;
    }
    case OpKind::kMatmul:
    case OpKind::kMatmulAdd:
    case OpKind::kGateUp: {
      const int blocks = blocks_of(rows, kRowBlock), per_block = chunks / blocks;
      const int first = chunk / per_block * kRowBlock;
      const Range block_rows{first, std::min(first + kRowBlock, rows)};
      const bool gate = op.kind == OpKind::kGateUp;
      const int units = gate ? (matrix_tiles(step, op) + 1) / 2 : matrix_tiles(step, op);
      const Range columns = part(units, chunk % per_block, per_block);
      if (!gate) return runner.project(columns, block_rows, op.kind == OpKind::kMatmulAdd);
      for (int block = columns.begin; block < columns.end; ++block) runner.gate_up(block, block_rows);
      return;
    }
    case OpKind::kCount:
      return;
  }
}

bool takes_adapters(const OpRecord& op) {
  return op.kind == OpKind::kQkv || op.kind == OpKind::kGateUp || op.kind == OpKind::kMatmul ||
         op.kind == OpKind::kMatmulAdd;
}

int down_chunk_count(const Step& step, const OpRecord& op, int threads) {
  std::size_t units = 0;
  for (const AdapterRows& group : step.adapted) units += group.adapter->down(op.matrix[0]).tiles * group.runs.size();
  return column_chunks(static_cast<int>(std::min<std::size_t>(units, 1 << 20)), threads);
}

// Units are [adapter][tile of its A][run of its rows]: a tile is read once and then found in the cache.
void run_down_chunk(Step& step, const OpRecord& op, int chunk, int chunks, Inputs& inputs) {
  std::size_t units = 0;
  for (const AdapterRows& group : step.adapted) units += group.adapter->down(op.matrix[0]).tiles * group.runs.size();
  const std::size_t first = units * chunk / chunks, last = units * (chunk + 1) / chunks;
  const bool projects = op.kind == OpKind::kMatmul || op.kind == OpKind::kMatmulAdd;
  const Activations& input = (!projects ? inputs.normed : op.input == 0 ? inputs.attended : step.gated).view();
  std::size_t unit = 0;
  for (const AdapterRows& group : step.adapted) {
    const DownMatrix& down = group.adapter->down(op.matrix[0]);
    const std::size_t runs = group.runs.size(), count = down.tiles * runs;
    for (std::size_t i = std::max(first, unit); i < std::min(last, unit + count); ++i) {
      const int tile = static_cast<int>((i - unit) / runs);
      const RowRun& run = group.runs[(i - unit) % runs];
      float* out = step.ranks.data() + static_cast<std::size_t>(run.begin) * step.ranks_width + tile * kTileColumns;
      group.down(down.data + down.tile_bytes * tile, input.width, input, run.begin, run.end - run.begin, out,
                 step.ranks_width);
      for (int row = run.begin; row < run.end; ++row, out += step.ranks_width)
        for (int rank = 0; rank < kTileColumns; ++rank) out[rank] *= down.scale[tile * kTileColumns + rank];
    }
    unit += count;
  }
}

}  // namespace sixfold
