// SPDX-License-Identifier: Apache-2.0
// Chooses the next token from the logits of the head. One instance per request.
//
// Order, vLLM's: logit_bias, repetition, frequency and presence penalty, min_tokens, valid_vocab;
// then, unless temperature is 0 (greedy, lowest id on ties), temperature, top_k, top_p, min_p and a
// draw. Reported log-probabilities are those of the model, log-softmax of the logits as given,
// before any of these. The draw depends on (seed, num_generated) and the logits only, never on what
// else runs in the batch.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <utility>
#include <vector>

namespace hybridgen {

struct SamplingOptions {
  float temperature = 0.0F;         ///< 0: greedy
  int top_k = 0;                    ///< 0: all; tokens tied with the k-th stay
  float top_p = 1.0F;               ///< smallest set of tokens with at least this mass, never empty
  float min_p = 0.0F;               ///< relative to the largest probability
  float repetition_penalty = 1.0F;  ///< logits of seen tokens: > 0 divided by it, < 0 multiplied
  float presence_penalty = 0.0F;    ///< off logits of generated tokens; -2 to 2
  float frequency_penalty = 0.0F;   ///< the same, times how often they were generated; -2 to 2
  std::map<std::int64_t, float> logit_bias;  ///< added to logits, by token id; each -100 to 100
  std::uint64_t seed = 0;
  int max_tokens = 16;
  int min_tokens = 0;  ///< no stop token before this many were generated
  std::vector<std::int64_t> stop_token_ids;
  int num_logprobs = -1;         ///< -1: none; n: the n most likely beside the sampled one
  int num_prompt_logprobs = -1;  ///< -1: none; n: of each prompt token but the first, likewise
  std::int64_t valid_vocab = 0;  ///< > 0: ids from here on are padding, never chosen nor listed

  /// Throws ConfigError naming the first bad option.
  void validate() const;
};

struct SampledToken {
  std::int64_t token = -1;
  float logprob = 0.0F;
  bool is_greedy = false;  ///< token is the largest logit as given (lowest id on ties)
  std::vector<std::pair<std::int64_t, float>> top_logprobs;  ///< most likely first
};

class Sampler {
 public:
  /// Throws ConfigError for bad options.
  explicit Sampler(SamplingOptions options);

  const SamplingOptions& options() const { return options_; }

  /// `logits` [vocab] are modified. `context`: prompt and generated tokens, for the penalties.
  /// `num_generated`: tokens generated before this one, the last of `context`. NumericError if a
  /// logit is NaN or +inf, or if no token is left; ConfigError for an empty vocabulary, or an id
  /// outside it in `context` or logit_bias.
  SampledToken sample(std::span<float> logits,
                      std::span<const std::int64_t> context,
                      std::int64_t num_generated);

  /// What the model thinks of `token`, whatever the options would choose, with the `num_logprobs`
  /// most likely beside it. Same errors.
  SampledToken score(std::span<const float> logits, std::int64_t token, int num_logprobs) const;

 private:
  struct Candidate {
    float logit;
    std::int32_t id;
  };

  /// The logit of a token, which is noted as it is before it is changed.
  float& changeable(std::span<float> logits, std::int64_t id);
  void apply_bias(std::span<float> logits);
  void apply_repetition_penalty(std::span<float> logits, std::span<const std::int64_t> context);
  void apply_generated_penalties(std::span<float> logits, std::span<const std::int64_t> generated);
  std::int64_t draw(std::span<const float> logits, std::int64_t num_generated);

  SamplingOptions options_;
  std::vector<Candidate> candidates_;  // scratch: those that may be chosen
  std::vector<Candidate> replaced_;    // scratch: logits before a change; a token's first is given
  std::vector<std::uint64_t> seen_ids_;  // scratch: bit set over the vocabulary, 0 between calls
  std::vector<std::int32_t> counts_;     // scratch: how often generated, by id; 0 between calls
};

}  // namespace hybridgen
