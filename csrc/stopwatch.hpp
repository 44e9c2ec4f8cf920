// Time per operator of a plan. A stamp is taken by worker 0 when it comes to an operator, all earlier ones being done;
// so an operator's time is all that passed on the wall until the next one could begin.
#pragma once

#include <chrono>
#include <cstddef>
#include <vector>

namespace sixfold {

struct OpTime {
  int section, op;  // 0 body, 1 head; index within it
  long long calls;
  double seconds;
};

class Stopwatch {
 public:
  // `body` and `head`: operators of the two sections.
  Stopwatch(std::size_t body, std::size_t head) {
    for (std::size_t i = 0; i < body; ++i) times_.push_back({0, static_cast<int>(i), 0, 0.0});
    for (std::size_t i = 0; i < head; ++i) times_.push_back({1, static_cast<int>(i), 0, 0.0});
    head_ = body;
  }

  void turn(bool on) { on_ = on; }
  // The operator `op` of a section begins, and the one before it in this run, if any, has ended.
  void open(int section, int op) {
    if (!on_) return;
    const auto now = Clock::now();
    close(now);
    current_ = &times_[(section == 1 ? head_ : 0) + op];
    since_ = now;
  }
  // The run has ended.
  void stop() {
    if (on_) close(Clock::now());
    current_ = nullptr;
  }
  // What was collected since the last call.
  std::vector<OpTime> take() {
    std::vector<OpTime> taken = times_;
    for (OpTime& time : times_) time.calls = 0, time.seconds = 0;
    return taken;
  }

 private:
  using Clock = std::chrono::steady_clock;

  void close(Clock::time_point now) {
    if (!current_) return;
    ++current_->calls;
    current_->seconds += std::chrono::duration<double>(now - since_).count();
  }

  bool on_ = false;
  std::vector<OpTime> times_;
  std::size_t head_;
  OpTime* current_ = nullptr;
  Clock::time_point since_;
};

}  // namespace sixfold
