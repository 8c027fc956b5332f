// SPDX-License-Identifier: Apache-2.0
// A request from add() to release(): its tokens, how it is sampled and what is known about it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "hybridgen/core/model_config.h"
#include "hybridgen/engine/engine.h"
#include "hybridgen/engine/sampler.h"
#include "pipeline/request_state.h"

namespace hybridgen {

struct Request {
  explicit Request(SamplingOptions options) : sampler(options), sampling(std::move(options)) {}

  std::int64_t id = 0;
  std::vector<std::int64_t> tokens;  ///< prompt, then generated
  std::int64_t prompt_tokens = 0;
  std::int64_t max_tokens = 0;  ///< prompt plus generated, at most
  std::uint64_t content = 0;    ///< content_of the prompt
  std::vector<std::int64_t> forced;
  std::int64_t prefill_tokens = 0;  ///< of the prompt; the rest passes through decode steps
  Sampler sampler;
  SamplingOptions sampling;
  std::vector<std::vector<std::pair<std::int64_t, float>>>
      prompt_logprobs;  ///< until the first token
  RequestHome home;
  std::unique_ptr<RequestState> state;  ///< while it runs
  std::int64_t added_ns = 0;
  RequestStatistics statistics;

  std::int64_t generated() const {
    return static_cast<std::int64_t>(tokens.size()) - prompt_tokens;
  }
  RequestShape shape() const { return {id, prompt_tokens, max_tokens, content}; }
  bool finished() const { return statistics.finish_reason != FinishReason::kNone; }

  /// Notes what the model thinks of the prompt token at `position`, if that was asked for.
  void score_prompt_token(std::span<const float> logits, std::int64_t position);
};

/// What Engine::add is given; see there.
struct RequestInput {
  std::vector<std::int64_t> prompt{};
  SamplingOptions sampling{};
  std::vector<std::int64_t> forced{};
  std::int64_t decode_prompt_tokens = 0;
};

/// ConfigError for a prompt of so many tokens that has no room for `forced` ones, or for one.
void check_length(std::int64_t prompt, std::int64_t forced, std::int64_t max_model_len);

/// A request without an id. ConfigError for what Engine::add refuses about an input by itself.
std::unique_ptr<Request> make_request(RequestInput input,
                                      const ModelConfig& config,
                                      std::int64_t max_model_len);

/// Statistics of a request at this moment.
RequestStatistics statistics_of(const Request& request, const Method& method);

}  // namespace hybridgen
