// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <string_view>

#include "core/philox.h"
#include "engine/softmax_sums.h"
#include "hybridgen/core/error.h"

namespace hybridgen {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::int64_t first_equal(std::span<const float> logits, float value) {
  return std::find(logits.begin(), logits.end(), value) - logits.begin();
}

/// What is reported about the logits as the model gave them.
struct RawStatistics {
  std::int64_t argmax = 0;
  double log_sum_exp = 0.0;
};

RawStatistics raw_statistics(std::span<const float> logits, std::size_t num_valid) {
  const float peak = largest_logit(logits);
  if (!(std::abs(peak) < kInfinity)) {
    std::size_t at = 0;
    while (at + 1 < logits.size() && logits[at] < kInfinity) ++at;
    throw NumericError(peak == -kInfinity
                           ? message("[sampler] all logits are -inf; allowed: at least one finite "
                                     "value; check the checkpoint")
                           : message("[sampler] logit of token ",
                                     at,
                                     " is ",
                                     logits[at],
                                     "; allowed: finite values or -inf; check the checkpoint, or "
                                     "run it in float32 if activations overflow"));
  }
  const std::span<const float> valid = logits.first(num_valid);
  const float valid_peak = num_valid == logits.size() ? peak : largest_logit(valid);
  return {first_equal(valid, valid_peak),
          static_cast<double>(peak) + std::log(sum_of_weights(logits, SoftmaxWeights(peak, 1.0F)))};
}

void check_id(std::string_view what, std::int64_t id, std::size_t vocab) {
  if (id < 0 || id >= static_cast<std::int64_t>(vocab)) {
    throw ConfigError(message("[sampler] ",
                              what,
                              " is ",
                              id,
                              "; allowed: 0 to ",
                              vocab - 1,
                              "; pass ids of this model's vocabulary"));
  }
}

/// What changes a logit may not make it infinite, which is a fault of the model's.
float at_most_finite(float logit) { return std::min(logit, std::numeric_limits<float>::max()); }

std::size_t checked_valid_vocab(std::span<const float> logits, std::int64_t valid_vocab) {
  if (logits.empty()) {
    throw ConfigError(
        "[sampler] number of logits is 0; allowed: >= 1; pass the head's whole output row");
  }
  return valid_vocab > 0 ? std::min(logits.size(), static_cast<std::size_t>(valid_vocab))
                         : logits.size();
}

/// Ranking of all choices: higher logit first, then lower id.
constexpr auto kRanksBefore = [](const auto& a, const auto& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
};

/// The `count` first by rank, as a heap whose front is the last of them.
template <typename Candidate>
void keep_largest(std::span<const float> logits,
                  std::size_t count,
                  std::vector<Candidate>& candidates) {
  candidates.clear();
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const Candidate candidate{logits[i], static_cast<std::int32_t>(i)};
    if (candidates.size() == count) {
      if (!kRanksBefore(candidate, candidates.front())) continue;
      std::pop_heap(candidates.begin(), candidates.end(), kRanksBefore);
      candidates.back() = candidate;
    } else {
      candidates.push_back(candidate);
    }
    std::push_heap(candidates.begin(), candidates.end(), kRanksBefore);
  }
}

/// The last one, by rank, of the smallest set that has `share` of the mass.
template <typename Candidate>
Candidate last_of_mass(std::span<const float> logits,
                       const SoftmaxWeights& weights,
                       float share,
                       std::vector<Candidate>& candidates) {
  const double total = sum_of_weights(logits, weights);
  const double wanted = static_cast<double>(share) * total;
  // Tokens lighter than this cannot make up the mass that may be left out, even all together.
  const double negligible = 0.5 * (total - wanted) / static_cast<double>(logits.size());
  const double floor =
      static_cast<double>(weights.peak) + std::log(negligible) / static_cast<double>(weights.scale);
  const float least = std::max(weights.cutoff, static_cast<float>(floor));
  candidates.clear();
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] >= least) candidates.push_back({logits[i], static_cast<std::int32_t>(i)});
  }
  // Halves the range that holds the place where the mass is reached; linear time altogether.
  double mass = 0.0;
  auto begin = candidates.begin();
  auto end = candidates.end();
  while (end - begin > 1) {
    const auto middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end, kRanksBefore);
    double upper = 0.0;
    for (auto it = begin; it != middle; ++it) upper += static_cast<double>(weights(it->logit));
    if (mass + upper >= wanted) {
      end = middle;
    } else {
      mass += upper;
      begin = middle;
    }
  }
  return *begin;
}

/// Fills the report of `token`, whose logit as given is `logit`.
SampledToken report(std::int64_t token, float logit, const RawStatistics& raw) {
  SampledToken sampled;
  sampled.token = token;
  sampled.logprob = static_cast<float>(static_cast<double>(logit) - raw.log_sum_exp);
  sampled.is_greedy = token == raw.argmax;
  return sampled;
}

std::vector<std::pair<std::int64_t, float>> top_logprobs(std::span<const float> logits,
                                                         int num_logprobs,
                                                         const RawStatistics& raw) {
  struct Entry {
    float logit;
    std::int32_t id;
  };
  std::vector<std::pair<std::int64_t, float>> top;
  if (num_logprobs <= 0) return top;
  const std::size_t count = std::min(logits.size(), static_cast<std::size_t>(num_logprobs));
  std::vector<Entry> entries;
  entries.reserve(count);
  keep_largest(logits, count, entries);
  std::sort(entries.begin(), entries.end(), kRanksBefore);
  top.reserve(count);
  for (const Entry& entry : entries) {
    top.emplace_back(entry.id,
                     static_cast<float>(static_cast<double>(entry.logit) - raw.log_sum_exp));
  }
  return top;
}

}  // namespace

Sampler::Sampler(SamplingOptions options) : options_(std::move(options)) { options_.validate(); }

SampledToken Sampler::sample(std::span<float> logits,
                             std::span<const std::int64_t> context,
                             std::int64_t num_generated) {
  const std::size_t num_valid = checked_valid_vocab(logits, options_.valid_vocab);
  const RawStatistics raw = raw_statistics(logits, num_valid);
  const std::span<float> valid = logits.first(num_valid);
  std::vector<std::pair<std::int64_t, float>> top = top_logprobs(valid, options_.num_logprobs, raw);

  replaced_.clear();
  if (!options_.logit_bias.empty()) apply_bias(logits);
  if (options_.repetition_penalty != 1.0F) apply_repetition_penalty(logits, context);
  if (options_.presence_penalty != 0.0F || options_.frequency_penalty != 0.0F) {
    const auto count = std::min(static_cast<std::size_t>(num_generated), context.size());
    apply_generated_penalties(logits, context.last(count));
  }
  if (num_generated < options_.min_tokens) {
    for (const std::int64_t id : options_.stop_token_ids) {
      if (id < 0 || id >= static_cast<std::int64_t>(logits.size())) continue;
      logits[static_cast<std::size_t>(id)] = -kInfinity;
    }
  }
  std::fill(logits.begin() + static_cast<std::ptrdiff_t>(num_valid), logits.end(), -kInfinity);

  const std::int64_t token = draw(valid, num_generated);
  float logit = logits[static_cast<std::size_t>(token)];
  const auto given = std::ranges::find(replaced_, token, &Candidate::id);  // the first is as given
  if (given != replaced_.end()) logit = given->logit;
  SampledToken sampled = report(token, logit, raw);
  sampled.top_logprobs = std::move(top);
  return sampled;
}

SampledToken Sampler::score(std::span<const float> logits,
                            std::int64_t token,
                            int num_logprobs) const {
  const std::size_t num_valid = checked_valid_vocab(logits, options_.valid_vocab);
  check_id("token to score", token, logits.size());
  const RawStatistics raw = raw_statistics(logits, num_valid);
  SampledToken sampled = report(token, logits[static_cast<std::size_t>(token)], raw);
  sampled.top_logprobs = top_logprobs(logits.first(num_valid), num_logprobs, raw);
  return sampled;
}

float& Sampler::changeable(std::span<float> logits, std::int64_t id) {
  float& logit = logits[static_cast<std::size_t>(id)];
  replaced_.push_back({logit, static_cast<std::int32_t>(id)});
  return logit;
}

void Sampler::apply_bias(std::span<float> logits) {
  for (const auto& [id, bias] : options_.logit_bias) {
    check_id("biased token", id, logits.size());
    float& logit = changeable(logits, id);
    logit = at_most_finite(logit + bias);
  }
}

void Sampler::apply_repetition_penalty(std::span<float> logits,
                                       std::span<const std::int64_t> context) {
  for (const std::int64_t id : context) check_id("context token", id, logits.size());
  seen_ids_.resize((logits.size() + 63) / 64);
  for (const std::int64_t id : context) {
    const auto index = static_cast<std::size_t>(id);
    const std::uint64_t bit = std::uint64_t{1} << (index % 64);
    if ((seen_ids_[index / 64] & bit) != 0) continue;
    seen_ids_[index / 64] |= bit;
    float& logit = changeable(logits, id);
    logit = at_most_finite(logit > 0 ? logit / options_.repetition_penalty
                                     : logit * options_.repetition_penalty);
  }
  for (const std::int64_t id : context) seen_ids_[static_cast<std::size_t>(id) / 64] = 0;
}

void Sampler::apply_generated_penalties(std::span<float> logits,
                                        std::span<const std::int64_t> generated) {
  for (const std::int64_t id : generated) check_id("context token", id, logits.size());
  counts_.resize(logits.size());
  for (const std::int64_t id : generated) ++counts_[static_cast<std::size_t>(id)];
  for (const std::int64_t id : generated) {
    std::int32_t& count = counts_[static_cast<std::size_t>(id)];
    if (count == 0) continue;  // it was here before
    float& logit = changeable(logits, id);
    logit -= options_.frequency_penalty * static_cast<float>(count);
    logit = at_most_finite(logit - options_.presence_penalty);
    count = 0;
  }
}

std::int64_t Sampler::draw(std::span<const float> logits, std::int64_t num_generated) {
  const float peak = largest_logit(logits);
  if (peak == -kInfinity) {
    throw NumericError(
        "[sampler] no token is left; allowed: at least one id that is below valid_vocab and no "
        "stop token with a logit above -inf; lower min_tokens or check the checkpoint");
  }
  const float temperature = options_.temperature;
  if (temperature == 0.0F) return first_equal(logits, peak);

  // Every filter keeps a prefix of the ranking, so that all of them together are one last place,
  // and the draw runs in the order of ids however the filters ranked.
  SoftmaxWeights weights(peak, temperature);
  weights.cutoff = std::numeric_limits<float>::lowest();
  if (options_.top_k > 0 && static_cast<std::size_t>(options_.top_k) < logits.size()) {
    keep_largest(logits, static_cast<std::size_t>(options_.top_k), candidates_);
    weights.cutoff = std::max(weights.cutoff, candidates_.front().logit);
  }
  std::size_t end_of_ties = logits.size();  // ids from here on with the logit `cutoff` are out
  if (options_.top_p < 1.0F) {
    const Candidate last = last_of_mass(logits, weights, options_.top_p, candidates_);
    weights.cutoff = last.logit;
    end_of_ties = static_cast<std::size_t>(last.id) + 1;
  }
  weights.least = options_.min_p;

  SoftmaxWeights without_ties = weights;
  without_ties.ties = false;
  const auto sum_at = [&](std::size_t begin) {
    const std::span<const float> block = block_at(logits, begin);
    const std::size_t split = std::clamp(end_of_ties, begin, begin + block.size()) - begin;
    return block_sum(block.first(split), weights) + block_sum(block.subspan(split), without_ties);
  };
  double total = 0.0;
  for (std::size_t begin = 0; begin < logits.size(); begin += kLogitBlock) total += sum_at(begin);
  double place = philox_uniform(options_.seed, static_cast<std::uint64_t>(num_generated)) * total;

  std::size_t chosen = 0;  // the block that holds `place`; after rounding, the last with any mass
  double before = 0.0;     // mass of all blocks before it
  double mass = 0.0;       // its own
  for (std::size_t begin = 0; begin < logits.size() && before + mass <= place;
       begin += kLogitBlock) {
    const double next = sum_at(begin);
    if (next == 0.0) continue;
    before += mass;
    mass = next;
    chosen = begin;
  }
  place -= before;
  std::int64_t token = -1;
  for (std::size_t id = chosen; id < std::min(chosen + kLogitBlock, logits.size()); ++id) {
    const double weight =
        static_cast<double>(id < end_of_ties ? weights(logits[id]) : without_ties(logits[id]));
    if (weight == 0.0) continue;
    token = static_cast<std::int64_t>(id);
    if (place < weight) break;
    place -= weight;
  }
  return token;
}

}  // namespace hybridgen
