// Random numbers without a state: each is a function of what it is for.
#pragma once

#include <array>
#include <cstdint>

namespace sixfold {

// Names one random number: the same key always draws the same one.
struct DrawKey {
  std::uint64_t seed = 0;
  std::uint32_t choice = 0;    // which of the n choices of a request
  std::uint64_t position = 0;  // index in its sequence of the token being drawn
};

// Philox4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
inline std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53u} * counter[0];
    const std::uint64_t b = std::uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<std::uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(b),
               static_cast<std::uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(a)};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return counter;
}

// The 64 random bits of a key.
inline std::uint64_t random_bits(const DrawKey& key) {
  const auto low = [](std::uint64_t value) { return static_cast<std::uint32_t>(value); };
  const auto words =
      philox({low(key.position), low(key.position >> 32), key.choice, 0}, {low(key.seed), low(key.seed >> 32)});
  return std::uint64_t{words[1]} << 32 | words[0];
}

// High 64 bits of a * b: a number below b, if the bits of a are random.
inline std::uint64_t multiply_high(std::uint64_t a, std::uint64_t b) {
  const std::uint64_t a_low = a & 0xffffffffu, a_high = a >> 32, b_low = b & 0xffffffffu, b_high = b >> 32;
  const std::uint64_t middle = a_high * b_low + ((a_low * b_low) >> 32);
  const std::uint64_t carry = (a_low * b_high) + (middle & 0xffffffffu);
  return a_high * b_high + (middle >> 32) + (carry >> 32);
}

}  // namespace sixfold
