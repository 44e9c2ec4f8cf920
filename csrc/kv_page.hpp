// What lies where in the KV pages: the layers and KV heads of a page, and the 16 keys and values of one of them.
//
//   page      [ layer 0: head 0 | head 1 | ... | layer 1: head 0 | ... ]     each head in its layer's format
//
//   float16   K [head_size][16] | V [16][head_size]
//   int8      K [head_size / 2][16][2] | V [8][head_size][2] | scales of K [16] and V [16], float16
//   int4      K [head_size / 4][16][2] | V [8][head_size / 32][16][2] | scales as for int8; two codes a byte
//
// A register holds the same element of several keys, or several elements of a value; integers in pairs, which one
// instruction multiplies and adds. A key or value of int8 is scale * q with |q| <= 127, one of int4 is
// scale * (code - 7.5) with codes of 0 to 15; one scale a token: it depends on its token alone, whatever came with it.
//
// A byte of int4 holds two codes of one token, so that no two tokens, which two workers may write, share one. K's row
// j of pairs has the elements 4j and 4j + 1 in its low halves, 4j + 2 and 4j + 3 in its high ones; V's block of 32 has
// the first 16 elements in low halves and the others in high ones.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "plan.hpp"

namespace sixfold {

struct Kernels;

enum class KvFormat : std::uint32_t { kF16 = 0, kInt8 = 1, kInt4 = 2 };
constexpr int kKvFormats = 3;
constexpr int kInt4Block = 32;  // elements of an int4 value that lie together

// Of float16 values 0, the bits of an integer.
constexpr std::size_t kv_bits(KvFormat format) {
  return format == KvFormat::kInt8 ? 8 : format == KvFormat::kInt4 ? 4 : 0;
}

// Where the parts of an int8 or int4 page of one layer and head lie, in bytes from its start; the keys are first.
class IntegerPage {
 public:
  IntegerPage(KvFormat format, int head_size)
      : half_(static_cast<std::size_t>(kPageTokens) * head_size * kv_bits(format) / 8) {}
  std::size_t values() const { return half_; }
  std::size_t key_scales() const { return 2 * half_; }
  std::size_t value_scales() const { return 2 * half_ + kPageTokens * sizeof(std::uint16_t); }

 private:
  std::size_t half_;  // bytes of the keys
};

// Bytes of the page of one layer and head; a multiple of 64.
constexpr std::size_t kv_head_bytes(KvFormat format, std::size_t head_size) {
  const std::size_t values = 2 * kPageTokens * head_size;
  if (format == KvFormat::kF16) return 2 * values;
  return values * kv_bits(format) / 8 + 2 * kPageTokens * sizeof(std::uint16_t);
}

// Where the layers lie in a page. `formats`: one a layer, or one for all.
class KvLayout {
 public:
  KvLayout(const Header& header, const std::vector<KvFormat>& formats);
  std::size_t page_bytes() const { return page_bytes_; }
  KvFormat format(int layer) const { return formats_[layer]; }
  std::size_t offset(int layer, int head) const { return offsets_[layer] + head * head_bytes(layer); }
  std::size_t head_bytes(int layer) const { return kv_head_bytes(formats_[layer], head_size_); }

 private:
  std::size_t head_size_, page_bytes_ = 0;
  std::vector<KvFormat> formats_;
  std::vector<std::size_t> offsets_;
};

// Whether queries and keys of this format, or values, are rotated (Kernels::rotate_head). Rotated values give a rotated
// sum, which is rotated back.
constexpr bool rotates_keys(KvFormat format) { return format != KvFormat::kF16; }
constexpr bool rotates_values(KvFormat format) { return format == KvFormat::kInt4; }

// Writes the key or the value [head_size] of token `token` of the page of one layer and head.
void write_key(const Kernels& kernels, KvFormat format, int head_size, int token, const float* key, std::uint8_t* page);
void write_value(const Kernels& kernels, KvFormat format, int head_size, int token, const float* value,
                 std::uint8_t* page);

// The following are for float16 and int8 pages.

// Reads the key of token `token` as attention sees it: [head_size], rotated by `rotate_head` if the format is.
void read_key(KvFormat format, int head_size, int token, const std::uint8_t* page, float* key);

// Copies a key or a value, bit for bit, to another token of another page (or the same one) of the same format.
void copy_key(KvFormat format, int head_size, int from, const std::uint8_t* from_page, int to, std::uint8_t* to_page);
void copy_value(KvFormat format, int head_size, int from, const std::uint8_t* from_page, int to, std::uint8_t* to_page);

}  // namespace sixfold
