#include "sampling.hpp"

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include "candidates.hpp"

// The loops over the vocabulary are compiled for several instruction sets and chosen by the loader. All give the same
// bits: they consist of correctly rounded single operations, elementwise, and of sums of integers. (Needs ifunc, hence
// glibc.) x86-64-v4 is AVX-512, whose converting instructions save a third of the time of the sums.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__GLIBC__) && !defined(SIXFOLD_NO_CLONES)
#if __GNUC__ >= 12
#define SIXFOLD_CLONES __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define SIXFOLD_CLONES __attribute__((target_clones("avx2", "default")))
#endif
#else
#define SIXFOLD_CLONES
#endif

namespace sixfold {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr std::size_t kBlock = 64;    // logits that share one entry of the block maxima
constexpr std::size_t kChunk = 1024;  // logits that share one entry of the chunk sums; a multiple of kBlock
constexpr std::size_t kFirstCandidates = 128;
constexpr std::size_t kBuckets = 1024;  // of log weight, from 0 down to kLowest

constexpr int kWeightBits = 44;    // the weight of the most likely token is 2^44
constexpr float kLowest = -32.0f;  // exp(kLowest) * 2^44 rounds to 0

// How logits become weights: exp((logit - max) * inverse_temperature), 0 below exp(cutoff).
struct Scale {
  float max;
  float inverse_temperature = 1.0f;
  float cutoff = kLowest;
};

constexpr double kRoundWeight = 0x1p52;  // adding it rounds to an integer, left in the low bits
constexpr std::uint64_t kRoundWeightBits = std::bit_cast<std::uint64_t>(kRoundWeight);

// exp(x) * 2^44 for x in [kLowest, 0], within 1 unit in the last place. Cody-Waite reduction to |r| <= ln(2)/2, then
// a polynomial fitted to the relative error (3e-9 before rounding).
inline float scaled_exp(float x) {
  constexpr float kRound = 0x1.8p23f;
  const float shifted = x * 0x1.715476p0f + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0x1.63p-1f) - n * -0x1.bd0106p-13f;  // ln(2) in two parts; n times the first is exact
  float p = 0.0013814461417496204f;
  p = p * r + 0.008368780836462975f;
  p = p * r + 0.04166839271783829f;
  p = p * r + 0.1666651964187622f;
  p = p * r + 0.4999999403953552f;
  p = (p * (r * r) + r) + 1.0f;
  constexpr std::uint32_t kExponent = 127u + kWeightBits - std::bit_cast<std::uint32_t>(kRound);
  return p * std::bit_cast<float>((std::bit_cast<std::uint32_t>(shifted) + kExponent) << 23);
}

// The weight of a logit, with kRoundWeightBits added.
inline std::uint64_t raw_weight_of(float logit, const Scale& scale) {
  const float x = (logit - scale.max) * scale.inverse_temperature;
  const std::uint32_t keep = x >= scale.cutoff ? ~0u : 0u;  // a mask, not a branch; NaN and -inf are dropped too
  const float weight = std::bit_cast<float>(std::bit_cast<std::uint32_t>(scaled_exp(x)) & keep);
  return std::bit_cast<std::uint64_t>(static_cast<double>(weight) + kRoundWeight);
}

SIXFOLD_CLONES std::uint64_t sum_weights(const float* logits, std::size_t count, const Scale& given) {
  const Scale scale = given;
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < count; ++i) total += raw_weight_of(logits[i], scale);
  return total - count * kRoundWeightBits;
}

SIXFOLD_CLONES void fill_weights(const float* logits, std::size_t count, const Scale& given,
                                 std::uint64_t* __restrict weights) {
  const Scale scale = given;
  for (std::size_t i = 0; i < count; ++i) weights[i] = raw_weight_of(logits[i], scale) - kRoundWeightBits;
}

SIXFOLD_CLONES std::int64_t count_greater(const float* logits, std::size_t count, float value) {
  std::int64_t total = 0;
  for (std::size_t start = 0; start < count; start += kChunk) {
    const std::size_t end = std::min(count, start + kChunk);
    std::int32_t part = 0;
    for (std::size_t i = start; i < end; ++i) part += logits[i] > value ? 1 : 0;
    total += part;
  }
  return total;
}

// Eight floats in a register or two. (A loop over an array of eight is not vectorised by GCC 12.)
using Lanes = float __attribute__((vector_size(32)));
constexpr std::size_t kLanes = sizeof(Lanes) / sizeof(float);

// maxima[b] is the largest of logits[64 b .. 64 b + 63], -inf if there is none; NaN is ignored.
SIXFOLD_CLONES void find_block_maxima(const float* logits, std::size_t count, float* __restrict maxima) {
  const std::size_t whole = count / kBlock;
  for (std::size_t b = 0; b < whole; ++b) {
    Lanes even = Lanes{} - kInfinity, odd = even;
    for (std::size_t i = b * kBlock; i < (b + 1) * kBlock; i += 2 * kLanes) {
      Lanes x, y;
      std::memcpy(&x, logits + i, sizeof(x));
      std::memcpy(&y, logits + i + kLanes, sizeof(y));
      even = x > even ? x : even;
      odd = y > odd ? y : odd;
    }
    even = odd > even ? odd : even;
    float largest = even[0];
    for (std::size_t lane = 1; lane < kLanes; ++lane) largest = even[lane] > largest ? even[lane] : largest;
    maxima[b] = largest;
  }
  if (whole * kBlock < count) {
    float largest = -kInfinity;
    for (std::size_t i = whole * kBlock; i < count; ++i) largest = logits[i] > largest ? logits[i] : largest;
    maxima[whole] = largest;
  }
}

// out[i] = logits[i] where bit i of `allowed` is set, else -inf.
SIXFOLD_CLONES void keep_allowed(const float* logits, std::size_t count, const std::uint32_t* allowed,
                                 float* __restrict out) {
  constexpr std::size_t kWord = 32;
  constexpr std::uint32_t kMinusInfinity = std::bit_cast<std::uint32_t>(-kInfinity);
  for (std::size_t start = 0; start < count; start += kWord) {
    const std::uint32_t word = allowed[start / kWord];
    const std::size_t size = std::min(kWord, count - start);
    if (word == 0) {
      std::fill_n(out + start, size, -kInfinity);
    } else if (word == ~0u) {
      std::memcpy(out + start, logits + start, size * sizeof(float));
    } else {
      for (std::size_t i = 0; i < size; ++i) {
        const std::uint32_t keep = 0u - ((word >> i) & 1u);
        const std::uint32_t bits = std::bit_cast<std::uint32_t>(logits[start + i]);
        out[start + i] = std::bit_cast<float>((bits & keep) | (kMinusInfinity & ~keep));
      }
    }
  }
}

// Working memory, kept between calls so that a row costs no page faults.
struct Scratch {
  std::vector<float> logits;
  std::vector<float> masked;
  TokenIds forbidden;
  std::vector<float> maxima;
  std::vector<float> ranked_maxima;
  std::vector<std::uint64_t> chunk_sums;
  std::vector<Candidate> candidates;
  std::vector<Candidate> ranked;
  std::vector<std::uint32_t> counts;  // all 0 between rows
  std::vector<std::int32_t> touched;
};

Scratch& scratch() {
  thread_local Scratch memory;
  return memory;
}

float find_maxima(std::span<const float> logits, std::vector<float>& maxima) {
  maxima.resize((logits.size() + kBlock - 1) / kBlock);
  find_block_maxima(logits.data(), logits.size(), maxima.data());
  return *std::max_element(maxima.begin(), maxima.end());  // no NaN among them
}

std::int32_t first_of(std::span<const float> logits, const std::vector<float>& maxima, float max) {
  if (max == -kInfinity) return -1;
  std::size_t i = static_cast<std::size_t>(std::find(maxima.begin(), maxima.end(), max) - maxima.begin()) * kBlock;
  while (logits[i] != max) ++i;
  return static_cast<std::int32_t>(i);
}

// A bound that at least `count` logits reach and few others do: `count` blocks have their maximum there or above.
float bound_for(std::size_t count, const std::vector<float>& maxima, Scratch& memory) {
  if (count > maxima.size()) return -kInfinity;
  std::vector<float>& ranked = memory.ranked_maxima;
  ranked = maxima;
  const auto nth = ranked.begin() + static_cast<std::ptrdiff_t>(count - 1);
  std::nth_element(ranked.begin(), nth, ranked.end(), std::greater<float>());
  return *nth;
}

// Collects the tokens with a logit of at least `bound` and a weight, in order of id.
void gather(std::span<const float> logits, const Scale& scale, float bound, Scratch& memory) {
  memory.candidates.clear();
  std::uint64_t weights[kBlock];
  for (std::size_t b = 0; b < memory.maxima.size(); ++b) {
    if (!(memory.maxima[b] >= bound)) continue;
    const std::size_t start = b * kBlock;
    const std::size_t count = std::min(kBlock, logits.size() - start);
    fill_weights(logits.data() + start, count, scale, weights);
    for (std::size_t i = 0; i < count; ++i) {
      if (logits[start + i] >= bound && weights[i] != 0) {
        memory.candidates.push_back({logits[start + i], static_cast<std::int32_t>(start + i), weights[i]});
      }
    }
  }
}

bool limits_count(const SamplingSettings& settings, std::size_t vocabulary) {
  return settings.top_k > 0 && static_cast<std::uint64_t>(settings.top_k) < vocabulary;
}

std::uint64_t fraction_of(std::uint64_t total, double fraction) {
  const double mass = std::ceil(static_cast<double>(total) * fraction);
  return mass >= static_cast<double>(total) ? total : static_cast<std::uint64_t>(mass);
}

// Locally typical sampling (Meister, Pimentel, Wiher, Cotterell, TACL 2023): keep the tokens whose surprise is nearest
// to the entropy. The normaliser cancels in |-log p - entropy|, which leaves |x - mean of x| for x = log weight.
void keep_typical(double fraction, const Scale& scale, Scratch& memory) {
  const std::uint64_t total = sum_of(memory.candidates, weight_each);
  double mean = 0.0;
  for (const Candidate& c : memory.candidates) {
    const float x = (c.key - scale.max) * scale.inverse_temperature;
    mean += static_cast<double>(c.weight) / static_cast<double>(total) * x;
  }
  for (Candidate& c : memory.candidates) {
    const float x = (c.key - scale.max) * scale.inverse_temperature;
    c.key = static_cast<float>(-std::abs(x - mean));
  }
  keep_prefix(fraction_of(total, fraction), weight_each, memory.candidates, memory.ranked);
}

std::int32_t draw_from(const std::vector<Candidate>& candidates, std::uint64_t bits) {
  std::uint64_t target = multiply_high(bits, sum_of(candidates, weight_each));
  std::size_t i = 0;
  while (target >= candidates[i].weight) target -= candidates[i++].weight;
  return candidates[i].id;
}

// Whether any of these logits reaches the cutoff; `start` is a multiple of kBlock. What min_p leaves is little.
bool weighs_something(std::size_t start, std::size_t count, const Scale& scale, const Scratch& memory) {
  const auto first = memory.maxima.begin() + static_cast<std::ptrdiff_t>(start / kBlock);
  const float max = *std::max_element(first, first + static_cast<std::ptrdiff_t>((count + kBlock - 1) / kBlock));
  return (max - scale.max) * scale.inverse_temperature >= scale.cutoff;
}

std::int32_t draw_unfiltered(std::span<const float> logits, const Scale& scale, std::uint64_t bits, Scratch& memory) {
  memory.chunk_sums.clear();
  std::uint64_t total = 0;
  for (std::size_t start = 0; start < logits.size(); start += kChunk) {
    const std::size_t count = std::min(kChunk, logits.size() - start);
    const bool weighs = weighs_something(start, count, scale, memory);
    memory.chunk_sums.push_back(weighs ? sum_weights(logits.data() + start, count, scale) : 0);
    total += memory.chunk_sums.back();
  }
  std::uint64_t target = multiply_high(bits, total);
  std::size_t chunk = 0;
  while (target >= memory.chunk_sums[chunk]) target -= memory.chunk_sums[chunk++];
  std::uint64_t weights[kChunk];
  const std::size_t start = chunk * kChunk;
  fill_weights(logits.data() + start, std::min(kChunk, logits.size() - start), scale, weights);
  std::size_t i = 0;
  while (target >= weights[i]) target -= weights[i++];
  return static_cast<std::int32_t>(start + i);
}

// Raises the cutoff so far that what stays still measures at least `limit`, and little more.
template <class Measure>
Scale narrow(std::span<const float> logits, Scale scale, std::uint64_t limit, Measure measure) {
  constexpr float kPerUnit = kBuckets / -kLowest;
  std::array<std::uint64_t, kBuckets + 1> sums{};
  std::uint64_t weights[kChunk];
  for (std::size_t start = 0; start < logits.size(); start += kChunk) {
    const std::size_t count = std::min(kChunk, logits.size() - start);
    fill_weights(logits.data() + start, count, scale, weights);
    for (std::size_t i = 0; i < count; ++i) {
      if (weights[i] == 0) continue;
      const float x = (logits[start + i] - scale.max) * scale.inverse_temperature;
      sums[static_cast<std::size_t>(x * -kPerUnit)] += measure(Candidate{x, 0, weights[i]});
    }
  }
  std::size_t bucket = 0;
  for (std::uint64_t total = sums[0]; bucket < kBuckets && total < limit; total += sums[bucket]) ++bucket;
  scale.cutoff = std::max(scale.cutoff, static_cast<float>(bucket + 1) / -kPerUnit);
  return scale;
}

// Gathers the most likely tokens, enough of them to measure `limit`. Tries few at first: a model is mostly sure.
template <class Measure>
void gather_most_likely(std::span<const float> logits, const Scale& scale, std::size_t wanted, std::uint64_t limit,
                        Measure measure, Scratch& memory) {
  for (; wanted <= memory.maxima.size(); wanted *= 4) {
    const float bound = bound_for(wanted, memory.maxima, memory);
    gather(logits, scale, bound, memory);
    if (sum_of<Measure>(memory.candidates, measure) >= limit) return;
    if ((bound - scale.max) * scale.inverse_temperature < scale.cutoff) return;  // all that have a weight
  }
  gather(logits, narrow(logits, scale, limit, measure), -kInfinity, memory);
}

std::int32_t draw_filtered(std::span<const float> logits, const SamplingSettings& settings, const Scale& scale,
                           std::uint64_t bits, Scratch& memory) {
  const bool limits_mass = settings.top_p < 1.0;
  if (limits_count(settings, logits.size())) {
    const std::size_t top_k = static_cast<std::size_t>(settings.top_k);
    gather_most_likely(logits, scale, top_k, top_k, one_each, memory);
    keep_prefix(top_k, one_each, memory.candidates, memory.ranked);
    if (limits_mass) {
      const std::uint64_t total = sum_of(memory.candidates, weight_each);
      keep_prefix(fraction_of(total, settings.top_p), weight_each, memory.candidates, memory.ranked);
    }
  } else if (limits_mass) {
    const std::uint64_t total = sum_weights(logits.data(), logits.size(), scale);
    const std::uint64_t needed = fraction_of(total, settings.top_p);
    gather_most_likely(logits, scale, kFirstCandidates, needed, weight_each, memory);
    keep_prefix(needed, weight_each, memory.candidates, memory.ranked);
  } else {
    gather(logits, scale, -kInfinity, memory);
  }
  if (settings.typical_p < 1.0) keep_typical(settings.typical_p, scale, memory);
  return draw_from(memory.candidates, bits);
}

// Repetition penalty (Keskar et al., CTRL, 2019) on prompt and output; OpenAI's frequency and presence penalties on
// the output.
void apply_penalties(const SamplingRow& row, std::span<float> logits, Scratch& memory) {
  constexpr std::uint32_t kSeen = 1u << 31;  // the bits below count occurrences in the output
  if (memory.counts.size() < logits.size()) memory.counts.resize(logits.size(), 0);
  memory.touched.clear();
  for (std::size_t i = 0; i < row.tokens.size(); ++i) {
    const std::int32_t id = row.tokens[i];
    if (id < 0 || static_cast<std::size_t>(id) >= logits.size()) continue;  // a placeholder, not a token
    std::uint32_t& count = memory.counts[static_cast<std::size_t>(id)];
    if (count == 0) memory.touched.push_back(id);
    count = (count | kSeen) + (i >= row.prompt_length ? 1 : 0);
  }
  const float repetition = static_cast<float>(row.settings->repetition_penalty);
  const float frequency = static_cast<float>(row.settings->frequency_penalty);
  const float presence = static_cast<float>(row.settings->presence_penalty);
  for (const std::int32_t id : memory.touched) {
    std::uint32_t& count = memory.counts[static_cast<std::size_t>(id)];
    const std::uint32_t outputs = count & ~kSeen;
    float& logit = logits[static_cast<std::size_t>(id)];
    logit = logit > 0.0f ? logit / repetition : logit * repetition;
    if (outputs > 0) {
      logit -= frequency * static_cast<float>(outputs);
      logit -= presence;
    }
    count = 0;
  }
}

SamplingStatus apply_bias(const SamplingSettings& settings, std::span<float> logits) {
  for (const Bias& bias : settings.bias) {
    if (bias.id < 0 || static_cast<std::size_t>(bias.id) >= logits.size()) return SamplingStatus::kUnknownBiasId;
    logits[static_cast<std::size_t>(bias.id)] += bias.value;
  }
  return SamplingStatus::kOk;
}

void suppress(std::span<const std::int32_t> ids, std::span<float> logits) {
  for (const std::int32_t id : ids)
    if (id >= 0 && static_cast<std::size_t>(id) < logits.size()) logits[static_cast<std::size_t>(id)] = -kInfinity;
}

// Leaves in memory.logits what the settings and the tokens so far make of the row's logits.
SamplingStatus edit(const SamplingRow& row, Scratch& memory) {
  const SamplingSettings& settings = *row.settings;
  std::vector<float>& logits = memory.logits;
  if (settings.allowed.empty()) {
    logits.assign(row.logits.begin(), row.logits.end());
  } else {
    logits.resize(row.logits.size());
    keep_allowed(row.logits.data(), row.logits.size(), settings.allowed.data(), logits.data());
  }
  const SamplingStatus status = apply_bias(settings, logits);
  if (status != SamplingStatus::kOk) return status;
  suppress(row.suppressed, logits);
  if (settings.looks_back()) {
    memory.forbidden.clear();
    forbid_words(settings.bad_words, row.tokens.subspan(row.prompt_length), memory.forbidden);
    if (settings.no_repeat_ngram > 0) forbid_ngrams(settings.no_repeat_ngram, row.tokens, memory.forbidden);
    suppress(memory.forbidden, logits);
  }
  if (settings.penalises()) apply_penalties(row, logits, memory);
  if (settings.dry.multiplier != 0.0) penalise_repeats(settings.dry, row.tokens, logits);
  return status;
}

// Only the +inf are possible: give them one finite value and take away the others.
std::span<const float> keep_infinite(std::span<const float> logits, Scratch& memory) {
  if (logits.data() != memory.logits.data()) memory.logits.assign(logits.begin(), logits.end());
  for (float& logit : memory.logits) logit = logit == kInfinity ? 0.0f : -kInfinity;
  find_maxima(memory.logits, memory.maxima);
  return memory.logits;
}

}  // namespace

std::span<const float> masked(std::span<const float> logits, std::span<const std::uint32_t> allowed) {
  std::vector<float>& kept = scratch().masked;
  kept.resize(logits.size());
  keep_allowed(logits.data(), logits.size(), allowed.data(), kept.data());
  return kept;
}

std::int32_t argmax(std::span<const float> logits) {
  std::vector<float>& maxima = scratch().maxima;
  const float max = find_maxima(logits, maxima);
  return first_of(logits, maxima, max);
}

Drawn sample(const SamplingRow& row) {
  const SamplingSettings& settings = *row.settings;
  Scratch& memory = scratch();
  std::span<const float> logits = row.logits;
  if (settings.edits() || !row.suppressed.empty()) {
    const SamplingStatus status = edit(row, memory);
    if (status != SamplingStatus::kOk) return {-1, status};
    logits = memory.logits;
  }
  float max = find_maxima(logits, memory.maxima);
  if (max == -kInfinity) return {-1, SamplingStatus::kNothingPossible};
  if (settings.temperature == 0.0) return {first_of(logits, memory.maxima, max), SamplingStatus::kOk};
  if (max == kInfinity) {
    logits = keep_infinite(logits, memory);
    max = 0.0f;
  }
  const float temperature = std::max(static_cast<float>(settings.temperature), FLT_MIN);
  const float cutoff = std::max(static_cast<float>(std::log(settings.min_p)), kLowest);
  const Scale scale{max, 1.0f / temperature, cutoff};
  const std::uint64_t bits = random_bits(row.key);
  if (limits_count(settings, logits.size()) || settings.top_p < 1.0 || settings.typical_p < 1.0) {
    return {draw_filtered(logits, settings, scale, bits, memory), SamplingStatus::kOk};
  }
  return {draw_unfiltered(logits, scale, bits, memory), SamplingStatus::kOk};
}

LogProbabilities::LogProbabilities(std::span<const float> logits) : logits_(logits), log_sum_(0.0) {
  max_ = find_maxima(logits, maxima_);
  if (max_ == kInfinity) {
    log_sum_ = std::log(static_cast<double>(std::count(logits.begin(), logits.end(), kInfinity)));
  } else if (max_ != -kInfinity) {
    const std::uint64_t total = sum_weights(logits.data(), logits.size(), Scale{max_});
    log_sum_ = std::log(std::ldexp(static_cast<double>(total), -kWeightBits));
  }
}

double LogProbabilities::logprob(float logit) const {
  if (max_ == -kInfinity) return std::numeric_limits<double>::quiet_NaN();
  if (std::isnan(logit)) return -kInfinity;
  if (max_ == kInfinity) return logit == kInfinity ? -log_sum_ : -kInfinity;
  return static_cast<double>(logit) - static_cast<double>(max_) - log_sum_;
}

double LogProbabilities::log_sum_exp() const {
  if (max_ == -kInfinity) return std::numeric_limits<double>::quiet_NaN();
  return static_cast<double>(max_) + log_sum_;
}

double LogProbabilities::of(std::int32_t id) const { return logprob(logits_[static_cast<std::size_t>(id)]); }

Likelihood LogProbabilities::likelihood(std::int32_t id) const {
  const float logit = logits_[static_cast<std::size_t>(id)];
  if (max_ == -kInfinity) return {logprob(logit), 0};
  const float counted = std::isnan(logit) ? -kInfinity : logit;
  return {logprob(logit), 1 + count_greater(logits_.data(), logits_.size(), counted)};
}

std::vector<Alternative> LogProbabilities::top(std::size_t count) const {
  std::vector<Alternative> result;
  count = std::min(count, logits_.size());
  if (count == 0 || max_ == -kInfinity) return result;
  Scratch& memory = scratch();
  const float bound = max_ == kInfinity ? kInfinity : std::max(bound_for(count, maxima_, memory), -FLT_MAX);
  memory.candidates.clear();
  for (std::size_t b = 0; b < maxima_.size(); ++b) {
    if (!(maxima_[b] >= bound)) continue;
    const std::size_t end = std::min((b + 1) * kBlock, logits_.size());
    for (std::size_t i = b * kBlock; i < end; ++i) {
      if (logits_[i] >= bound) memory.candidates.push_back({logits_[i], static_cast<std::int32_t>(i), 0});
    }
  }
  count = std::min(count, memory.candidates.size());
  const auto last = memory.candidates.begin() + static_cast<std::ptrdiff_t>(count);
  std::partial_sort(memory.candidates.begin(), last, memory.candidates.end(), comes_before);
  for (auto c = memory.candidates.begin(); c != last; ++c) result.push_back({c->id, logprob(c->key)});
  return result;
}

}  // namespace sixfold
