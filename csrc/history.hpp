// What the tokens so far rule out or make less likely: bad words, repeated n-grams, DRY. Functions of the tokens alone.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace sixfold {

using TokenIds = std::vector<std::int32_t>;

// DRY ("don't repeat yourself", p-e-w, text-generation-webui pull request 5677, 2024), with llama.cpp's names.
struct Dry {
  double multiplier = 0.0;  // 0: off
  double base = 1.75;
  std::int64_t allowed_length = 2;   // repeats up to here cost nothing
  std::int64_t last_n = -1;          // tokens looked at; -1: all
  TokenIds breaker_ids{};            // tokens that no repeat goes across, sorted
  std::vector<TokenIds> breakers{};  // and sequences of tokens
};

// Adds to `out` the last token of every word of which `output` ends with all the others (vLLM's bad_words).
void forbid_words(const std::vector<TokenIds>& words, std::span<const std::int32_t> output, TokenIds& out);

// Adds to `out` every token that would repeat an n-gram of `tokens` (transformers' no_repeat_ngram_size).
void forbid_ngrams(std::int64_t n, std::span<const std::int32_t> tokens, TokenIds& out);

// Lowers logits[t] by multiplier * base^(length - allowed_length) if t would continue a repeat of `length` tokens: the
// longest end of `tokens` that t followed before. Single-token breakers are spared. Linear in the number of tokens.
void penalise_repeats(const Dry& dry, std::span<const std::int32_t> tokens, std::span<float> logits);

}  // namespace sixfold
