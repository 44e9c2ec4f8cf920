#include "limits.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>

#include "kernels.hpp"
#include "step.hpp"
#include "threads.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
// Functions carry their instruction set themselves, so that this file needs no compiler flags.
#define SIXFOLD_TARGET_AVX2 __attribute__((target("avx2,fma")))
#define SIXFOLD_TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))
#endif

namespace sixfold {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point began) { return std::chrono::duration<double>(Clock::now() - began).count(); }

// Runs `task(piece)` for every piece, which threads claim as they come; returns how long all of it took. Like the
// executor, it loses nothing but a neighbour's share when one of the cores is taken away for a while.
template <typename Task>
double together(int threads, int pieces, const Task& task) {
  std::atomic<int> ready{0}, next{0}, done{0};
  std::atomic<bool> go{false};
  const auto work = [&] {
    for (int piece = next.fetch_add(1); piece < pieces; piece = next.fetch_add(1)) {
      task(piece);
      done.fetch_add(1);
    }
  };
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i)
    others.emplace_back([&] {
      ready.fetch_add(1);
      while (!go.load(std::memory_order_acquire)) std::this_thread::yield();
      work();
    });
  while (ready.load() < threads - 1) std::this_thread::yield();
  const auto began = Clock::now();
  go.store(true, std::memory_order_release);
  work();
  while (done.load() < pieces) std::this_thread::yield();
  const double seconds = seconds_since(began);
  for (auto& other : others) other.join();
  return seconds;
}

// --- Reading. A sum keeps the compiler from leaving the loads out. `bytes` is a multiple of 512. ---

std::uint64_t read_portable(const std::uint8_t* data, std::size_t bytes) {
  std::uint64_t sums[8] = {};
  for (std::size_t i = 0; i < bytes; i += 64)
    for (int j = 0; j < 8; ++j) {
      std::uint64_t word;
      std::memcpy(&word, data + i + 8 * j, 8);
      sums[j] += word;
    }
  std::uint64_t sum = 0;
  for (std::uint64_t one : sums) sum += one;
  return sum;
}

#if defined(__x86_64__)
// Every prefetch is of the line that will be read 4 KB later, as in the kernels.
constexpr std::size_t kAhead = 4096;

SIXFOLD_TARGET_AVX2 std::uint64_t read_avx2(const std::uint8_t* data, std::size_t bytes) {
  __m256i sums[4] = {};
  for (std::size_t i = 0; i < bytes; i += 256)
    for (int line = 0; line < 4; ++line) {
      const std::uint8_t* at = data + i + 64 * line;
      _mm_prefetch(reinterpret_cast<const char*>(at) + kAhead, _MM_HINT_T0);
      sums[line] = _mm256_add_epi64(sums[line], _mm256_load_si256(reinterpret_cast<const __m256i*>(at)));
      sums[line] = _mm256_add_epi64(sums[line], _mm256_load_si256(reinterpret_cast<const __m256i*>(at + 32)));
    }
  std::uint64_t words[4];
  const __m256i sum = _mm256_add_epi64(_mm256_add_epi64(sums[0], sums[1]), _mm256_add_epi64(sums[2], sums[3]));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(words), sum);
  return words[0] + words[1] + words[2] + words[3];
}

// --- Multiply-accumulate in registers. Assembly, so that nothing is moved out of the loop or joined. ---

constexpr int kIterations = 10000;  // of one piece, some 30 us

// Accumulators that do not wait for each other hide the latency of an instruction.
#define SIXFOLD_TWELVE(step) \
  step(0) step(1) step(2) step(3) step(4) step(5) step(6) step(7) step(8) step(9) step(10) step(11)

SIXFOLD_TARGET_AVX512 void integer_avx512() {
  __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(1), sums[12] = {};
  for (int i = 0; i < kIterations; ++i) {
#define SIXFOLD_STEP(n) asm volatile("vpdpbusd %2, %1, %0" : "+v"(sums[n]) : "v"(a), "v"(b));
    SIXFOLD_TWELVE(SIXFOLD_STEP)
#undef SIXFOLD_STEP
  }
}

SIXFOLD_TARGET_AVX512 void float_avx512() {
  __m512 a = _mm512_set1_ps(0.5f), b = _mm512_set1_ps(1.0f), sums[12] = {};
  for (int i = 0; i < kIterations; ++i) {
#define SIXFOLD_STEP(n) asm volatile("vfmadd231ps %2, %1, %0" : "+v"(sums[n]) : "v"(a), "v"(b));
    SIXFOLD_TWELVE(SIXFOLD_STEP)
#undef SIXFOLD_STEP
  }
}

SIXFOLD_TARGET_AVX2 void integer_avx2() {
  __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(1), sums[12] = {}, product;
  for (int i = 0; i < kIterations; ++i) {
#define SIXFOLD_STEP(n) \
  asm volatile("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(sums[n]), "=&x"(product) : "x"(a), "x"(b));
    SIXFOLD_TWELVE(SIXFOLD_STEP)
#undef SIXFOLD_STEP
  }
}

SIXFOLD_TARGET_AVX2 void float_avx2() {
  __m256 a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(1.0f), sums[12] = {};
  for (int i = 0; i < kIterations; ++i) {
#define SIXFOLD_STEP(n) asm volatile("vfmadd231ps %2, %1, %0" : "+x"(sums[n]) : "x"(a), "x"(b));
    SIXFOLD_TWELVE(SIXFOLD_STEP)
#undef SIXFOLD_STEP
  }
}

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}
#else
constexpr int kIterations = 10000;  // of one piece, some 30 us
#endif

// What the compiler makes of a dot product in plain C++, with both vectors in the L1 cache.
constexpr int kLength = 2048, kLanes = 32;

template <typename Value, typename Sum>
void portable() {
  static const std::vector<Value> a(kLength, Value(3)), b(kLength, Value(1));
  Sum sums[kLanes] = {};
  for (int i = 0; i < kIterations * kLanes / kLength; ++i) {
    for (int k = 0; k < kLength; k += kLanes)
      for (int j = 0; j < kLanes; ++j) sums[j] += static_cast<Sum>(a[k + j]) * static_cast<Sum>(b[k + j]);
    asm volatile("" : : "r"(sums) : "memory");
  }
}

struct Loop {
  void (*run)();
  double macs;  // of one call
};

double macs_per_second(const Loop& loop, int threads) {
  // Some 10 ms: longer than a core is usually taken away for. The first pieces count for nothing: a processor's clock
  // rises when it has work, and wide registers are switched on.
  const int pieces = 300 * threads;
  together(threads, pieces / 10, [&](int) { loop.run(); });
  return pieces * loop.macs / together(threads, pieces, [&](int) { loop.run(); });
}

Loop loop_of(const char* isa, bool integer) {
  const std::string name = isa;
  const double times = kIterations;
#if defined(__x86_64__)
  if (name == "avx512") {
    if (!has_avx512()) throw std::invalid_argument("this processor has no AVX-512 with VNNI");
    return integer ? Loop{integer_avx512, times * 12 * 64} : Loop{float_avx512, times * 12 * 16};
  }
  if (name == "avx2") {
    if (!has_avx2()) throw std::invalid_argument("this processor has no AVX2 and FMA");
    return integer ? Loop{integer_avx2, times * 12 * 32} : Loop{float_avx2, times * 12 * 8};
  }
#endif
  if (name != "scalar") throw std::invalid_argument("no loop of multiply-accumulates for instruction set " + name);
  return {integer ? portable<std::int8_t, std::int32_t> : portable<float, float>, times * kLanes};
}

}  // namespace

std::vector<double> read_bandwidth(std::size_t bytes, int threads, int repeats) {
  // A piece of a large buffer is a megabyte; a small one has a piece for every thread.
  const std::size_t piece = round_up(std::clamp<std::size_t>(bytes / threads, 512, std::size_t{1} << 20), 512);
  const int pieces = static_cast<int>(std::max<std::size_t>(bytes / piece, 1));
  const std::size_t total = piece * pieces;
  Buffer<std::uint8_t> buffer(total + 8192);
  std::memset(buffer.data(), 1, total + 8192);  // untouched pages are all the same page of zeros
  std::atomic<std::uint64_t> sum{0};
  auto read = read_portable;
#if defined(__x86_64__)
  if (has_avx2()) read = read_avx2;
#endif
  // A small buffer is read many times before the next piece is claimed, so that claiming does not count.
  const int rounds = static_cast<int>(std::max<std::size_t>(1, (std::size_t{64} << 20) / total));
  std::vector<double> rates;
  for (int i = 0; i < repeats; ++i) {
    const double seconds = together(threads, pieces, [&](int index) {
      std::uint64_t mine = 0;
      for (int round = 0; round < rounds; ++round) mine += read(buffer.data() + piece * index, piece);
      sum.fetch_add(mine);
    });
    rates.push_back(static_cast<double>(total) * rounds / seconds);
  }
  return rates;
}

double integer_macs(const char* isa, int threads) { return macs_per_second(loop_of(isa, true), threads); }
double float_macs(const char* isa, int threads) { return macs_per_second(loop_of(isa, false), threads); }

// Chunks are like those of a projection (ops.cpp): blocks of rows, each over all tiles in a few parts.
struct Product::State final : Work {
  State(const MatrixRecord& record, const char* isa, int rows, int threads)
      : kernels(choose_kernels(isa)),
        matmul(kernels.matmul(record)),
        columns(static_cast<int>(round_up(record.columns, kBlock))),
        bytes(tile_bytes(record)),
        most_rows(rows),
        count(static_cast<int>(round_up(record.rows, kTileColumns) / kTileColumns)),
        activations(rows, columns),
        data(bytes * count),
        out(threads, std::vector<float>(static_cast<std::size_t>(kRows) * kTileColumns)),
        team(threads, 1) {
    // Bytes 0x20 to 0x3b: whatever they belong to (float16, bfloat16 and float32 values and scales, integers), the
    // numbers are finite and normal, in any layout.
    std::uint64_t state = 1;
    std::uint8_t page[4096];
    for (std::uint8_t& byte : page) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      byte = static_cast<std::uint8_t>(0x20 + (state >> 40) % 28);
    }
    for (std::size_t at = 0; at < bytes * count; at += sizeof(page))
      std::memcpy(data.data() + at, page, std::min(sizeof(page), bytes * count - at));
    std::vector<float> row(columns);
    for (int r = 0; r < rows; ++r) {
      for (int i = 0; i < columns; ++i) row[i] = static_cast<float>((i * 7 + r) % 15 - 7);
      activations.emit(kernels, r, row.data(), kEmitInt8 | kEmitF32);
    }
  }

  int operations() const override { return 1; }
  int chunks(int) override { return parts * blocks(); }
  void run(int, int chunk, int worker) override {
    const int block = chunk / parts, part = chunk % parts;
    const int first_row = block * kRows, block_rows = std::min(kRows, rows - first_row);
    for (int i = wanted * part / parts; i < wanted * (part + 1) / parts; ++i)
      matmul(data.data() + bytes * ((cursor + i) % count), columns, activations.view(), first_row, block_rows,
             out[worker].data(), kTileColumns);
  }
  int blocks() const { return (rows + kRows - 1) / kRows; }

  static constexpr int kRows = 128;
  const Kernels& kernels;
  MatmulTile matmul;
  int columns;
  std::size_t bytes;
  int most_rows, count;
  ActivationBuffer activations;
  Buffer<std::uint8_t> data;
  std::vector<std::vector<float>> out;
  int rows = 0, wanted = 0, parts = 1, cursor = 0;
  Team team;  // last: its threads end first
};

Product::Product(const MatrixRecord& record, const char* isa, int rows, int threads)
    : state_(std::make_unique<State>(record, isa, rows, threads)) {}

Product::~Product() = default;
int Product::tiles() const { return state_->count; }
int Product::rows() const { return state_->most_rows; }
std::size_t Product::bytes() const { return state_->bytes; }

double Product::run(int rows, int tiles) {
  State& s = *state_;
  s.rows = rows;
  s.wanted = tiles;
  s.parts = std::max(1, std::min({tiles, 16 * s.team.threads(), Team::kMaxChunks / s.blocks()}));
  const auto began = Clock::now();
  s.team.run(s);
  const double seconds = seconds_since(began);
  s.cursor = (s.cursor + tiles) % s.count;
  return seconds;
}

}  // namespace sixfold
