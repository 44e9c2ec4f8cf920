#include "history.hpp"

#include <algorithm>
#include <cmath>
#include <unordered_map>

namespace sixfold {

namespace {

using Tokens = std::span<const std::int32_t>;

constexpr double kMaxPenalty = 1e30;  // as good as infinite, and no NaN comes of it

bool ends_with(Tokens tokens, Tokens end) {
  return tokens.size() >= end.size() && std::equal(end.begin(), end.end(), tokens.end() - std::ssize(end));
}

bool breaks(const Dry& dry, std::int32_t id) {
  return std::binary_search(dry.breaker_ids.begin(), dry.breaker_ids.end(), id);
}

// How many tokens at the end no breaker reaches into: a repeat is at most that long.
std::size_t unbroken(const Dry& dry, Tokens tokens) {
  for (std::size_t after = 0; after < tokens.size(); ++after) {
    const Tokens before = tokens.first(tokens.size() - after);
    if (breaks(dry, before.back())) return after;
    for (const TokenIds& breaker : dry.breakers)
      if (!breaker.empty() && ends_with(before, breaker)) return after;
  }
  return tokens.size();
}

// common[i]: how many tokens before `tokens.size() - i` equal those at the end, counted backwards (the Z function of
// the reversed tokens; Gusfield, Algorithms on Strings, 1997).
std::vector<std::size_t> common_ends(Tokens tokens) {
  const std::size_t count = tokens.size();
  const auto at = [&](std::size_t i) { return tokens[count - 1 - i]; };
  std::vector<std::size_t> common(count, 0);
  std::size_t left = 0, right = 0;
  for (std::size_t i = 1; i < count; ++i) {
    std::size_t length = i < right ? std::min(right - i, common[i - left]) : 0;
    while (i + length < count && at(length) == at(i + length)) ++length;
    common[i] = length;
    if (i + length > right) left = i, right = i + length;
  }
  return common;
}

double penalty_of(const Dry& dry, std::int64_t length) {
  double penalty = dry.multiplier;
  for (std::int64_t i = dry.allowed_length; i < length && penalty < kMaxPenalty && dry.base != 1.0; ++i)
    penalty *= dry.base;
  return std::min(penalty, kMaxPenalty);
}

}  // namespace

void forbid_words(const std::vector<TokenIds>& words, Tokens output, TokenIds& out) {
  for (const TokenIds& word : words)
    if (!word.empty() && ends_with(output, Tokens(word).first(word.size() - 1))) out.push_back(word.back());
}

void forbid_ngrams(std::int64_t n, Tokens tokens, TokenIds& out) {
  const std::size_t known = static_cast<std::size_t>(n) - 1;
  if (n < 1 || tokens.size() < static_cast<std::size_t>(n)) return;
  const Tokens end = tokens.last(known);
  for (std::size_t i = 0; i + known < tokens.size(); ++i)
    if (std::equal(end.begin(), end.end(), tokens.begin() + static_cast<std::ptrdiff_t>(i)))
      out.push_back(tokens[i + known]);
}

void penalise_repeats(const Dry& dry, Tokens tokens, std::span<float> logits) {
  if (dry.last_n >= 0) tokens = tokens.last(std::min(tokens.size(), static_cast<std::size_t>(dry.last_n)));
  const std::size_t limit = unbroken(dry, tokens);
  const auto allowed = static_cast<std::size_t>(dry.allowed_length);
  if (limit < std::max<std::size_t>(allowed, 1)) return;
  const std::vector<std::size_t> common = common_ends(tokens);
  std::unordered_map<std::int32_t, std::size_t> longest;
  for (std::size_t i = 1; i < tokens.size(); ++i) {
    const std::size_t length = std::min(common[i], limit);
    if (length < std::max<std::size_t>(allowed, 1)) continue;
    std::size_t& known = longest[tokens[tokens.size() - i]];  // what followed there
    known = std::max(known, length);
  }
  for (const auto& [id, length] : longest) {
    if (id < 0 || static_cast<std::size_t>(id) >= logits.size() || breaks(dry, id)) continue;
    logits[static_cast<std::size_t>(id)] -= static_cast<float>(penalty_of(dry, static_cast<std::int64_t>(length)));
  }
}

}  // namespace sixfold
