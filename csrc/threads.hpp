// The worker team: runs a list of operations, each cut into chunks that threads claim from a shared counter.
//
// No thread owns a share of the work and none leads: whoever finishes the last chunk of an operation opens the next.
// A thread whose core is taken away between two chunks delays nobody (a static split with a barrier was measured to
// lose nine tenths of its speed to one busy neighbour).
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace sixfold {

// What a team runs. `chunks(op)` is asked once an operation, by one thread, after all earlier operations are done;
// `run` is called for each chunk, from any thread, `worker` in [0, threads).
class Work {
 public:
  virtual ~Work() = default;
  virtual int operations() const = 0;
  virtual int chunks(int op) = 0;  // 0..kMaxChunks
  virtual void run(int op, int chunk, int worker) = 0;
};

class Team {
 public:
  static constexpr int kMaxChunks = 4095;

  explicit Team(int threads);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }
  // Runs all of `work`; returns when it is done. One caller at a time.
  void run(Work& work);

 private:
  void loop(int worker);
  // Claims and runs chunks until the current run is over; false if it found nothing to do before it was over.
  void help(int worker);
  void open(int op);  // publishes the first operation at or after `op` that has chunks, or the end of the run

  // One word, so that a claim is one compare-and-swap: [sequence:40 | chunks:12 | next:12]. The sequence never
  // repeats, so a stale claim can not succeed. chunks = 0 means: no run is open.
  std::atomic<std::uint64_t> ticket_{0};
  std::atomic<int> done_{0};
  std::atomic<int> current_{0};  // the operation that `ticket_` stands for
  std::atomic<Work*> work_{nullptr};
  std::atomic<bool> stop_{false};
  std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
};

}  // namespace sixfold
