#include "threads.hpp"

#include <cassert>
#include <chrono>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace sixfold {
namespace {

constexpr int kPartBits = 12;
constexpr std::uint64_t kPartMask = (1u << kPartBits) - 1;
constexpr int kNothing = -1, kLate = -2;

constexpr std::uint64_t pack(std::uint64_t sequence, int next, int end) {
  return sequence << (2 * kPartBits) | static_cast<std::uint64_t>(next) << kPartBits | static_cast<std::uint64_t>(end);
}

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#endif
}

// Spinning covers the gaps inside a step and the Python between two steps; beyond that a worker sleeps.
constexpr auto kSpin = std::chrono::microseconds(200);
// A thread that waits for others' chunks yields now and then, for one that shares its core, and naps when it waits
// long: the system moves one whose core was taken away here only when this core is idle.
constexpr int kSpinsBeforeYield = 256;
constexpr int kSpinsBeforeNap = 4000;
constexpr auto kNap = std::chrono::microseconds(10);

}  // namespace

Team::Team(int threads, int max_operations)
    : lane_count_(threads), lanes_(new Lane[threads]), operations_(max_operations) {
  assert(max_operations < 1 << 16);
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { loop(i); });
}

Team::~Team() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (auto& worker : workers_) worker.join();
}

// A chunk of the operation: the next of the worker's own part, or the last of somebody else's. kNothing: all are
// claimed. kLate: the operation is over, and this run perhaps too.
//
// A worker that was away may come back to an operation of a run that has ended, and find the tables of the next. It can
// not claim anything then: run() moves every lane on before it writes the tables, so the exchange fails.
int Team::claim(int worker, std::uint64_t sequence, int op) {
  for (int i = 0; i < lane_count_; ++i) {
    const int owner = worker + i < lane_count_ ? worker + i : worker + i - lane_count_;
    std::atomic<std::uint64_t>& lane = lanes_[owner].part;
    std::uint64_t part = lane.load(std::memory_order_acquire);
    for (;;) {
      const std::uint64_t at = part >> (2 * kPartBits);
      if (at > sequence) return kLate;
      int next = static_cast<int>(part >> kPartBits & kPartMask), end = static_cast<int>(part & kPartMask);
      if (at < sequence) {
        const int chunks = operations_[op].chunks.load(std::memory_order_acquire);
        next = chunks * owner / lane_count_;
        end = chunks * (owner + 1) / lane_count_;
      }
      if (next >= end) break;
      const int chunk = i == 0 ? next++ : --end;
      if (lane.compare_exchange_weak(part, pack(sequence, next, end), std::memory_order_acq_rel,
                                     std::memory_order_acquire))
        return chunk;
    }
  }
  return kNothing;
}

// Runs what chunks of the operation there are to claim and waits for the others'. False: the run is over.
bool Team::finish(int worker, std::uint64_t opened, int op) {
  const std::uint64_t sequence = (opened >> 16) + static_cast<std::uint64_t>(op);
  int chunk;
  while ((chunk = claim(worker, sequence, op)) >= 0) {
    // The claimed chunk keeps the run open, so work_ belongs to it until it is counted as done.
    work_.load(std::memory_order_relaxed)->run(op, chunk, worker);
    std::atomic<std::uint64_t>& done = lanes_[worker].done;
    done.store(done.load(std::memory_order_relaxed) + 1, std::memory_order_release);
  }
  if (chunk == kLate) return run_.load(std::memory_order_acquire) == opened;
  const Work* work = work_.load(std::memory_order_relaxed);
  for (int round = 0;; ++round) {
    std::uint64_t done = 0;
    for (int i = 0; i < lane_count_; ++i) done += lanes_[i].done.load(std::memory_order_acquire);
    if (done >= operations_[op].done_after.load(std::memory_order_acquire)) return true;
    if (run_.load(std::memory_order_relaxed) != opened) return false;
    if (round < kSpinsBeforeNap) {
      work->idle(op, worker, round);
      pause();
      if (round % kSpinsBeforeYield == kSpinsBeforeYield - 1) std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(kNap);
    }
  }
}

void Team::help(int worker, std::uint64_t opened) {
  const int operations = static_cast<int>(opened & 0xffff);
  for (int op = 0; op < operations; ++op) {
    if (worker == 0) work_.load(std::memory_order_relaxed)->reached(op);
    if (!finish(worker, opened, op)) return;
  }
}

void Team::loop(int worker) {
  std::uint64_t seen = 0;
  while (!stop_.load(std::memory_order_relaxed)) {
    const auto until = std::chrono::steady_clock::now() + kSpin;
    std::uint64_t opened = run_.load(std::memory_order_acquire);
    while (opened == seen && std::chrono::steady_clock::now() < until) {
      for (int i = 0; i < 64 && opened == seen; ++i) {
        pause();
        opened = run_.load(std::memory_order_acquire);
      }
    }
    if (opened == seen) {
      std::unique_lock lock(mutex_);
      sleepers_.fetch_add(1, std::memory_order_seq_cst);
      wake_.wait(lock, [&] { return stop_ || run_.load(std::memory_order_seq_cst) != seen; });
      sleepers_.fetch_sub(1, std::memory_order_relaxed);
      continue;
    }
    help(worker, opened);
    seen = opened;
  }
}

void Team::run(Work& work) {
  const int operations = work.operations();
  assert(operations <= static_cast<int>(operations_.size()));
  // First the lanes, then the tables, then the run: see claim().
  for (int i = 0; i < lane_count_; ++i) lanes_[i].part.store(pack(next_sequence_ - 1, 0, 0), std::memory_order_release);
  for (int op = 0; op < operations; ++op) {
    const int chunks = work.chunks(op);
    assert(chunks >= 0 && chunks <= kMaxChunks);
    chunks_before_ += static_cast<std::uint64_t>(chunks);
    operations_[op].chunks.store(chunks, std::memory_order_release);
    operations_[op].done_after.store(chunks_before_, std::memory_order_release);
  }
  work_.store(&work, std::memory_order_relaxed);
  const std::uint64_t opened = next_sequence_ << 16 | static_cast<std::uint64_t>(operations);
  next_sequence_ += static_cast<std::uint64_t>(operations);
  // Sequentially consistent, as the sleepers' count is: either this sees a sleeper or the sleeper sees the run.
  run_.store(opened, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) > 0) {
    {
      std::lock_guard lock(mutex_);
    }  // a worker between its last look and its sleep sees the notification
    wake_.notify_all();
  }
  help(0, opened);
}

}  // namespace sixfold
