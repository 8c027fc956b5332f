// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/engine/sampler.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <limits>
#include <string_view>

#include "core/philox.h"
#include "hybridgen/core/error.h"

namespace hybridgen {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr std::size_t kLanes = 16;    // independent partial results, so that loops vectorise
constexpr std::size_t kBlock = 1024;  // a multiple of kLanes

template <typename T>
[[noreturn]] void reject(std::string_view option, T value, std::string_view allowed) {
  throw ConfigError(message("[sampling] ",
                            option,
                            " is ",
                            value,
                            "; allowed: ",
                            allowed,
                            "; correct the sampling options"));
}

/// `value` or 0, by a mask: where compilers see a branch they do not vectorise.
inline float value_if(bool condition, float value) {
  const std::uint32_t mask = 0U - static_cast<std::uint32_t>(condition);
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) & mask);
}

/// exp(x) for x <= 0, relative error below 3e-7, 0 below -87. Plain arithmetic without branches:
/// compilers vectorise it, and a vocabulary has 100000 of them in every step.
inline float exp_nonpositive(float x) {
  constexpr float kLog2E = 1.44269504F;
  constexpr float kLn2High = 0.693359375F;
  constexpr float kLn2Low = -2.12194440e-4F;
  constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer
  const float shifted = x * kLog2E + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * kLn2High) - n * kLn2Low;
  float p = 1.98756915e-4F;
  p = p * r + 1.39819994e-3F;
  p = p * r + 8.33345190e-3F;
  p = p * r + 4.16657962e-2F;
  p = p * r + 1.66666655e-1F;
  p = p * r + 5.00000012e-1F;
  p = p * r * r + r + 1.0F;
  const std::uint32_t exponent = std::bit_cast<std::uint32_t>(shifted) << 23;  // n * 2^23, mod 2^32
  const float result = std::bit_cast<float>(std::bit_cast<std::uint32_t>(p) + exponent);
  return value_if(x > -87.0F, result);  // below, `result` is garbage
}

/// exp((logit - peak) / temperature) of every logit that may be chosen.
struct Weights {
  Weights(float largest_logit, float temperature)
      : peak(largest_logit),
        // A tiny temperature must not make 0 * inf of the largest logit.
        scale(std::min(1.0F / temperature, std::numeric_limits<float>::max())) {}

  float operator()(float logit) const {
    const float weight = exp_nonpositive((logit - peak) * scale);
    const bool kept = (logit > cutoff) | ((logit == cutoff) & ties);
    return value_if(kept & (weight >= least), weight);
  }

  float peak;
  float scale;
  float cutoff = -kInfinity;  ///< lower logits weigh nothing
  bool ties = true;           ///< whether logits equal to the cutoff weigh anything
  float least = 0.0F;         ///< nor do lower weights; the peak's is 1
};

/// Sum over at most kBlock logits. In float: of so few, the error stays below 1e-5 of their sum.
double block_sum(std::span<const float> block, const Weights& weights) {
  std::array<float, kBlock> values;
  const Weights local = weights;  // nothing else can refer to it, so it stays in registers
  const float* const logits = block.data();
  for (std::size_t i = 0; i < block.size(); ++i) values[i] = local(logits[i]);
  const std::size_t padded = (block.size() + kLanes - 1) / kLanes * kLanes;
  std::fill(values.begin() + static_cast<std::ptrdiff_t>(block.size()),
            values.begin() + static_cast<std::ptrdiff_t>(padded),
            0.0F);
  std::array<float, kLanes> lanes{};
  for (std::size_t i = 0; i < padded; i += kLanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) lanes[lane] += values[i + lane];
  }
  double total = 0.0;
  for (const float lane : lanes) total += static_cast<double>(lane);
  return total;
}

std::span<const float> block_at(std::span<const float> logits, std::size_t begin) {
  return logits.subspan(begin, std::min(kBlock, logits.size() - begin));
}

double sum(std::span<const float> logits, const Weights& weights) {
  double total = 0.0;
  for (std::size_t begin = 0; begin < logits.size(); begin += kBlock) {
    total += block_sum(block_at(logits, begin), weights);
  }
  return total;
}

/// Largest value; NaN if there is any NaN. Written so that it becomes vector maxima.
float largest(std::span<const float> logits) {
  std::array<float, kLanes> lanes;
  lanes.fill(-kInfinity);
  std::array<std::uint32_t, kLanes> unordered{};
  std::size_t i = 0;
  for (; i + kLanes <= logits.size(); i += kLanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) {
      const float x = logits[i + lane];
      lanes[lane] = x > lanes[lane] ? x : lanes[lane];
      unordered[lane] |= static_cast<std::uint32_t>(x != x);
    }
  }
  for (std::size_t lane = 0; i < logits.size(); ++i, ++lane) {
    lanes[lane] = std::max(lanes[lane], logits[i]);
    unordered[lane] |= std::isnan(logits[i]) ? 1U : 0U;
  }
  for (const std::uint32_t bad : unordered) {
    if (bad != 0) return std::numeric_limits<float>::quiet_NaN();
  }
  return *std::max_element(lanes.begin(), lanes.end());
}

std::int64_t first_equal(std::span<const float> logits, float value) {
  return std::find(logits.begin(), logits.end(), value) - logits.begin();
}

/// What is reported about the logits as the model gave them.
struct RawStatistics {
  std::int64_t argmax = 0;
  double log_sum_exp = 0.0;
};

RawStatistics raw_statistics(std::span<const float> logits, std::size_t num_valid) {
  const float peak = largest(logits);
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
  const float valid_peak = num_valid == logits.size() ? peak : largest(valid);
  return {first_equal(valid, valid_peak),
          static_cast<double>(peak) + std::log(sum(logits, Weights(peak, 1.0F)))};
}

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
                       const Weights& weights,
                       float share,
                       std::vector<Candidate>& candidates) {
  const double total = sum(logits, weights);
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

void SamplingOptions::validate() const {
  if (!(temperature >= 0.0F && temperature < kInfinity)) {
    reject("temperature", temperature, "finite and >= 0 (0 is greedy)");
  }
  if (top_k < 0) reject("top_k", top_k, ">= 0 (0 keeps all)");
  if (!(top_p > 0.0F && top_p <= 1.0F)) reject("top_p", top_p, "0 < top_p <= 1");
  if (!(min_p >= 0.0F && min_p <= 1.0F)) reject("min_p", min_p, "0 <= min_p <= 1");
  if (!(repetition_penalty > 0.0F && repetition_penalty < kInfinity)) {
    reject("repetition_penalty", repetition_penalty, "finite and > 0 (1 changes nothing)");
  }
  if (max_tokens < 1) reject("max_tokens", max_tokens, ">= 1");
  if (min_tokens < 0 || min_tokens > max_tokens) {
    reject("min_tokens", min_tokens, message("0 to max_tokens (max_tokens is ", max_tokens, ")"));
  }
  if (num_logprobs < -1) reject("num_logprobs", num_logprobs, ">= -1 (-1 reports none)");
  if (valid_vocab < 0) reject("valid_vocab", valid_vocab, ">= 0 (0: the whole vocabulary)");
}

Sampler::Sampler(SamplingOptions options) : options_(std::move(options)) { options_.validate(); }

SampledToken Sampler::sample(std::span<float> logits,
                             std::span<const std::int64_t> context,
                             std::int64_t num_generated) {
  const std::size_t num_valid = checked_valid_vocab(logits, options_.valid_vocab);
  const RawStatistics raw = raw_statistics(logits, num_valid);
  const std::span<float> valid = logits.first(num_valid);
  std::vector<std::pair<std::int64_t, float>> top = top_logprobs(valid, options_.num_logprobs, raw);

  replaced_.clear();
  if (options_.repetition_penalty != 1.0F) apply_penalty(logits, context);
  if (num_generated < options_.min_tokens) {
    for (const std::int64_t id : options_.stop_token_ids) {
      if (id < 0 || id >= static_cast<std::int64_t>(logits.size())) continue;
      logits[static_cast<std::size_t>(id)] = -kInfinity;
    }
  }
  std::fill(logits.begin() + static_cast<std::ptrdiff_t>(num_valid), logits.end(), -kInfinity);

  const std::int64_t token = draw(valid, num_generated);
  float logit = logits[static_cast<std::size_t>(token)];
  for (const Candidate& replaced : replaced_) {
    if (replaced.id == token) logit = replaced.logit;
  }
  SampledToken sampled = report(token, logit, raw);
  sampled.top_logprobs = std::move(top);
  return sampled;
}

SampledToken Sampler::score(std::span<const float> logits, std::int64_t token) const {
  const std::size_t num_valid = checked_valid_vocab(logits, options_.valid_vocab);
  if (token < 0 || token >= static_cast<std::int64_t>(logits.size())) {
    throw ConfigError(message("[sampler] token to score is ",
                              token,
                              "; allowed: 0 to ",
                              logits.size() - 1,
                              "; pass ids of this model's vocabulary"));
  }
  const RawStatistics raw = raw_statistics(logits, num_valid);
  SampledToken sampled = report(token, logits[static_cast<std::size_t>(token)], raw);
  sampled.top_logprobs = top_logprobs(logits.first(num_valid), options_.num_logprobs, raw);
  return sampled;
}

void Sampler::apply_penalty(std::span<float> logits, std::span<const std::int64_t> context) {
  for (const std::int64_t id : context) {
    if (id < 0 || id >= static_cast<std::int64_t>(logits.size())) {
      throw ConfigError(message("[sampler] context token is ",
                                id,
                                "; allowed: 0 to ",
                                logits.size() - 1,
                                "; pass ids of this model's vocabulary"));
    }
  }
  seen_ids_.resize((logits.size() + 63) / 64);
  for (const std::int64_t id : context) {
    const auto index = static_cast<std::size_t>(id);
    const std::uint64_t bit = std::uint64_t{1} << (index % 64);
    if ((seen_ids_[index / 64] & bit) != 0) continue;
    seen_ids_[index / 64] |= bit;
    float& logit = logits[index];
    replaced_.push_back({logit, static_cast<std::int32_t>(id)});
    const float penalised =
        logit > 0 ? logit / options_.repetition_penalty : logit * options_.repetition_penalty;
    logit = std::min(penalised, std::numeric_limits<float>::max());  // a tiny penalty overflows
  }
  for (const Candidate& replaced : replaced_) {
    seen_ids_[static_cast<std::size_t>(replaced.id) / 64] = 0;
  }
}

std::int64_t Sampler::draw(std::span<const float> logits, std::int64_t num_generated) {
  const float peak = largest(logits);
  if (peak == -kInfinity) {
    throw NumericError(
        "[sampler] no token is left; allowed: at least one id that is below valid_vocab and no "
        "stop token with a logit above -inf; lower min_tokens or check the checkpoint");
  }
  const float temperature = options_.temperature;
  if (temperature == 0.0F) return first_equal(logits, peak);

  // Every filter keeps a prefix of the ranking, so that all of them together are one last place,
  // and the draw runs in the order of ids however the filters ranked.
  Weights weights(peak, temperature);
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

  Weights without_ties = weights;
  without_ties.ties = false;
  const auto sum_at = [&](std::size_t begin) {
    const std::span<const float> block = block_at(logits, begin);
    const std::size_t split = std::clamp(end_of_ties, begin, begin + block.size()) - begin;
    return block_sum(block.first(split), weights) + block_sum(block.subspan(split), without_ties);
  };
  double total = 0.0;
  for (std::size_t begin = 0; begin < logits.size(); begin += kBlock) total += sum_at(begin);
  double place = philox_uniform(options_.seed, static_cast<std::uint64_t>(num_generated)) * total;

  std::size_t chosen = 0;  // the block that holds `place`; after rounding, the last with any mass
  double before = 0.0;     // mass of all blocks before it
  double mass = 0.0;       // its own
  for (std::size_t begin = 0; begin < logits.size() && before + mass <= place; begin += kBlock) {
    const double next = sum_at(begin);
    if (next == 0.0) continue;
    before += mass;
    mass = next;
    chosen = begin;
  }
  place -= before;
  std::int64_t token = -1;
  for (std::size_t id = chosen; id < std::min(chosen + kBlock, logits.size()); ++id) {
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
