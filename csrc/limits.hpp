// What this machine can do at most, and how fast the matrix products are: one measurement a call, in loops that do
// nothing else. Whoever calls takes medians and mixes the measurements, since a neighbour can slow any of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "plan.hpp"

namespace sixfold {

// Bytes a second of `threads` threads that each read their part of `bytes` bytes, for each of `repeats` passes.
std::vector<double> read_bandwidth(std::size_t bytes, int threads, int repeats);

// Multiply-accumulates a second in registers, all threads together: int8 by int8 into int32 (avx512: vpdpbusd; avx2:
// vpmaddubsw and vpaddw, eight of which fit into int16), and float32. Throws std::invalid_argument if `isa` (avx512,
// avx2, scalar) can not run here.
double integer_macs(const char* isa, int threads);
double float_macs(const char* isa, int threads);

// A packed matrix of any format with made-up contents, and products with it.
class Product {
 public:
  // `record` gives format and shape; `rows` is the most activation rows of a product.
  Product(const MatrixRecord& record, const char* isa, int rows, int threads);
  ~Product();
  int tiles() const;
  int rows() const;           // the most that `run` takes
  std::size_t bytes() const;  // of one tile
  // Seconds that `rows` rows by `tiles` tiles take. It goes on where the last call ended, so that a matrix larger than
  // the caches is read from memory, as weights are.
  double run(int rows, int tiles);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace sixfold
