// Memory of the executor's pools.
#pragma once

#include <cstddef>
#include <cstdint>

#include "plan.hpp"

namespace sixfold {

// Zeroed memory that is taken from the system as it is touched.
class ZeroedMemory {
 public:
  explicit ZeroedMemory(std::size_t bytes);
  ~ZeroedMemory();
  ZeroedMemory(const ZeroedMemory&) = delete;
  ZeroedMemory& operator=(const ZeroedMemory&) = delete;
  // The first address that is a multiple of 64, for which `bytes` must leave room.
  std::uint8_t* aligned() const {
    return reinterpret_cast<std::uint8_t*>(round_up(reinterpret_cast<std::uintptr_t>(data_), 64));
  }

 private:
  void* data_;
  std::size_t bytes_;
};

}  // namespace sixfold
