#include "threads.hpp"

#include <cassert>
#include <chrono>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace sixfold {
namespace {

constexpr int kNextBits = 12;
constexpr std::uint64_t kNextMask = (1u << kNextBits) - 1;

constexpr std::uint64_t pack(std::uint64_t sequence, std::uint64_t chunks, std::uint64_t next) {
  return (sequence << (2 * kNextBits)) | (chunks << kNextBits) | next;
}
constexpr std::uint64_t sequence_of(std::uint64_t ticket) { return ticket >> (2 * kNextBits); }
constexpr std::uint64_t chunks_of(std::uint64_t ticket) { return (ticket >> kNextBits) & kNextMask; }
constexpr std::uint64_t next_of(std::uint64_t ticket) { return ticket & kNextMask; }

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#endif
}

// Spinning covers the gaps inside a step and the Python between two steps; beyond that a worker sleeps.
constexpr auto kSpin = std::chrono::microseconds(200);
// A thread with nothing to claim yields now and then: the one that holds the last chunk may need this very core.
constexpr int kSpinsBeforeYield = 2000;

}  // namespace

Team::Team(int threads) {
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

void Team::open(int op) {
  Work* work = work_.load(std::memory_order_relaxed);
  int chunks = 0;
  const int operations = work->operations();
  while (op < operations && (chunks = work->chunks(op)) == 0) ++op;
  assert(chunks <= kMaxChunks);
  current_.store(op, std::memory_order_relaxed);
  done_.store(0, std::memory_order_relaxed);
  const std::uint64_t sequence = sequence_of(ticket_.load(std::memory_order_relaxed)) + 1;
  if (op >= operations) {
    work_.store(nullptr, std::memory_order_relaxed);
    chunks = 0;
  }
  // Sequentially consistent, as the sleepers' count is: either run() sees a sleeper or the sleeper sees this ticket.
  ticket_.store(pack(sequence, chunks, 0), std::memory_order_seq_cst);
}

void Team::help(int worker) {
  int idle = 0;
  for (;;) {
    std::uint64_t ticket = ticket_.load(std::memory_order_acquire);
    const std::uint64_t chunks = chunks_of(ticket);
    if (chunks == 0) return;
    if (next_of(ticket) >= chunks) {
      pause();
      if (++idle % kSpinsBeforeYield == 0) std::this_thread::yield();
      continue;
    }
    if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) continue;
    idle = 0;
    // The claimed chunk keeps the run open, so work_ and current_ belong to this ticket until it is counted as done.
    const int op = current_.load(std::memory_order_relaxed);
    work_.load(std::memory_order_relaxed)->run(op, static_cast<int>(next_of(ticket)), worker);
    if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == static_cast<int>(chunks)) open(op + 1);
  }
}

void Team::loop(int worker) {
  while (!stop_.load(std::memory_order_relaxed)) {
    help(worker);
    const std::uint64_t closed = ticket_.load(std::memory_order_acquire);
    if (chunks_of(closed) != 0) continue;
    const auto until = std::chrono::steady_clock::now() + kSpin;
    bool opened = false;
    while (!opened && std::chrono::steady_clock::now() < until) {
      for (int i = 0; i < 64 && !opened; ++i) {
        pause();
        opened = ticket_.load(std::memory_order_acquire) != closed;
      }
    }
    if (opened) continue;
    std::unique_lock lock(mutex_);
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    wake_.wait(lock, [&] { return stop_ || ticket_.load(std::memory_order_seq_cst) != closed; });
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
  }
}

void Team::run(Work& work) {
  work_.store(&work, std::memory_order_relaxed);
  open(0);
  if (sleepers_.load(std::memory_order_seq_cst) > 0) {
    {
      std::lock_guard lock(mutex_);
    }  // a worker between its last look and its sleep sees the notification
    wake_.notify_all();
  }
  help(0);
}

}  // namespace sixfold
