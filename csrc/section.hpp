// A section of a plan (body or head) as work for the team. Lives as long as the executor.
#pragma once

#include <vector>

#include "step.hpp"
#include "stopwatch.hpp"
#include "threads.hpp"

namespace sixfold {

class Section final : public Work {
 public:
  // `index`: 0 body, 1 head. `adapted`: for steps in which rows have adapters.
  Section(Step& step, int index, int threads, Stopwatch& watch, bool adapted = false);

  // Before every run.
  void begin() { ++run_; }
  int operations() const override { return static_cast<int>(program_.size()); }
  int chunks(int at) override;
  void run(int at, int chunk, int worker) override;
  void reached(int at) override { watch_.open(index_, program_[at].op); }
  void idle(int at, int worker, int round) const override;

 private:
  struct Weights {
    const std::uint8_t* begin = nullptr;
    std::size_t bytes = 0;
  };
  Weights weights_of(const OpRecord& op) const;
  // Rows whose inputs a worker makes for itself: of the step, or of the head's wanted rows.
  int rows() const;
  bool own_inputs() const { return rows() <= kOwnRows && threads_ > 1; }

  // What the team runs: an operator of the plan, or what adapters do before it.
  struct Operation {
    int op;
    bool down;
    Weights next;  // the weights that are read next after it
  };

  // Which operator's result a worker has made for itself, and in which run.
  struct alignas(64) Made {
    int op = -1;
    std::uint64_t run = 0;
  };

  Step& step_;
  const std::vector<OpRecord>& ops_;
  const int index_, threads_;
  Stopwatch& watch_;
  std::vector<Operation> program_;
  std::vector<int> maker_;   // an operator: the one before it that makes its input and nothing else, or -1
  std::vector<bool> makes_;  // whether an operator is such a maker
  std::vector<Made> made_;   // a worker
  std::uint64_t run_ = 0;
};

}  // namespace sixfold
