// The worker team: runs a list of operations, each cut into chunks.
//
// Every worker begins with its own contiguous part of an operation's chunks (so it reads weights as one stream, and
// claims touch no line that another core holds) and steals from the end of others' parts when its own is used up. No
// worker is waited for that holds no chunk: what a worker whose core was taken away has not claimed, others take. (A
// static split with a barrier was measured to lose nine tenths of its speed to one busy neighbour.) An operation ends
// when the chunks that workers say they have done add up; nobody leads, so passing on costs one trip between cores.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace sixfold {

// What a team runs. `chunks(op)` is asked for all operations when the run begins; `run` is called for each chunk, from
// any thread, after all chunks of earlier operations, with `worker` in [0, threads).
class Work {
 public:
  virtual ~Work() = default;
  virtual int operations() const = 0;
  virtual int chunks(int op) = 0;  // 0..kMaxChunks
  virtual void run(int op, int chunk, int worker) = 0;
  // Worker 0 comes to operation `op`.
  virtual void reached(int op) { (void)op; }
};

class Team {
 public:
  static constexpr int kMaxChunks = 4095;

  // `max_operations`: the most that one run has, below 65536.
  Team(int threads, int max_operations);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int threads() const { return lane_count_; }
  // Runs all of `work`; returns when it is done. One caller at a time.
  void run(Work& work);

 private:
  // A worker's part of the current operation, and how many chunks it has ever done. A lane whose sequence is older than
  // an operation's has not been touched for it: it still holds its whole part, which anybody can work out.
  struct Lane {
    alignas(64) std::atomic<std::uint64_t> part{0};  // [sequence:40 | next:12 | end:12]
    alignas(64) std::atomic<std::uint64_t> done{0};
  };
  struct Operation {
    std::atomic<int> chunks{0};
    std::atomic<std::uint64_t> done_after{0};  // chunks done since the team exists when this operation is over
  };

  void loop(int worker);
  // Takes part in the run `opened` until it is over, or until it turns out that a later one has begun.
  void help(int worker, std::uint64_t opened);
  bool finish(int worker, std::uint64_t opened, int op);
  int claim(int worker, std::uint64_t sequence, int op);

  const int lane_count_;
  std::unique_ptr<Lane[]> lanes_;
  std::vector<Operation> operations_;
  alignas(64) std::atomic<std::uint64_t> run_{0};  // [sequence of its first operation:48 | operations:16]
  std::atomic<Work*> work_{nullptr};
  std::atomic<bool> stop_{false};
  std::atomic<int> sleepers_{0};
  std::uint64_t next_sequence_ = 1;
  std::uint64_t chunks_before_ = 0;  // done since the team exists when the next run begins
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
};

}  // namespace sixfold
