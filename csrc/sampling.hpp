// From one row of logits to one token, and how likely that token was.
//
// A result depends on the row, its settings and its (seed, choice, position) only: never on the batch, on threads or
// on the instruction set. Probabilities are held as integers on a grid of 2^-44 of the most likely token's, so every
// sum over the vocabulary is exact and its order does not matter.
//
// Order of one draw, as vLLM has it: allowed ids and logit_bias; suppressed ids (min_tokens, bad words, repeated
// n-grams); repetition, frequency and presence penalties; DRY; temperature (0: the largest logit, the lowest id among
// equals); min_p; top_k; top_p; typical_p; then the inverse of the cumulative distribution in order of token id.
// Filters break ties in favour of the lower id, and each works on the renormalised survivors of the one before. A
// grammar's mask comes before all of it (`masked`), and before log-probabilities are taken.
//
// Hostile logits: NaN counts as -inf. Where +inf occurs, only the tokens that have it are possible.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "history.hpp"
#include "random.hpp"

namespace sixfold {

// Sums of at most this many weights fit into 64 bits.
inline constexpr std::size_t kMaxVocabulary = (std::size_t{1} << 20) - 1;

struct Bias {
  std::int32_t id;
  float value;
};

// One request's way of choosing, with SamplingParams' names and meanings. Values are in range already.
struct SamplingSettings {
  double temperature = 1.0;
  std::int64_t top_k = 0;  // 0 or less: off
  double top_p = 1.0;
  double min_p = 0.0;
  double typical_p = 1.0;
  double repetition_penalty = 1.0;
  double frequency_penalty = 0.0;
  double presence_penalty = 0.0;
  std::vector<Bias> bias;
  std::vector<std::uint32_t> allowed;  // a bit an id, as in `masked`; empty: all
  std::vector<TokenIds> bad_words;
  std::int64_t no_repeat_ngram = 0;  // 0: off
  Dry dry;

  bool penalises() const { return repetition_penalty != 1.0 || frequency_penalty != 0.0 || presence_penalty != 0.0; }
  bool looks_back() const { return !bad_words.empty() || no_repeat_ngram > 0 || dry.multiplier != 0.0; }
  bool edits() const { return penalises() || looks_back() || !bias.empty() || !allowed.empty(); }
};

struct SamplingRow {
  std::span<const float> logits;  // [vocabulary]
  const SamplingSettings* settings = nullptr;
  DrawKey key;
  std::span<const std::int32_t> tokens;  // prompt and output so far; read only if the settings penalise or look back
  std::size_t prompt_length = 0;         // how many of `tokens` are the prompt's
  std::span<const std::int32_t> suppressed;  // ids that must not be drawn now
};

enum class SamplingStatus : std::int32_t {
  kOk = 0,
  kNothingPossible = 1,  // every logit is NaN or -inf, or was masked or suppressed
  kUnknownBiasId = 2,    // logit_bias names an id outside the vocabulary
};

struct Drawn {
  std::int32_t id = -1;  // -1 unless status is kOk
  SamplingStatus status = SamplingStatus::kNothingPossible;
};

struct Likelihood {
  double logprob;
  std::int64_t rank;  // 1 + the number of tokens with a strictly larger logit
};

struct Alternative {
  std::int32_t id;
  double logprob;
};

// The logits of the ids whose bit is set in `allowed` (id i: bit i % 32 of word i / 32), -inf for the others. Lives in
// working memory of this thread, until its next call. Needs a word for every 32 logits.
std::span<const float> masked(std::span<const float> logits, std::span<const std::uint32_t> allowed);

// Id of the largest logit, the lowest among equals; -1 if nothing is possible.
std::int32_t argmax(std::span<const float> logits);

// Chooses a token. Does not touch the logits. Needs 1 to kMaxVocabulary of them.
Drawn sample(const SamplingRow& row);

// The distribution of unmodified logits. The logits must outlive it.
class LogProbabilities {
 public:
  explicit LogProbabilities(std::span<const float> logits);

  // log(sum(exp(logits))), absolute error below 1e-6; NaN if nothing is possible, +inf where +inf occurs.
  double log_sum_exp() const;
  // NaN if nothing is possible in this row.
  double of(std::int32_t id) const;
  // Rank 0 if nothing is possible in this row.
  Likelihood likelihood(std::int32_t id) const;
  // The most likely tokens, best first, the lower id among equals; impossible tokens are left out.
  std::vector<Alternative> top(std::size_t count) const;

 private:
  double logprob(float logit) const;

  std::span<const float> logits_;
  std::vector<float> maxima_;  // of blocks of logits
  float max_;
  double log_sum_;  // log of the sum of exp(logit - max), or of the number of +inf
};

}  // namespace sixfold
