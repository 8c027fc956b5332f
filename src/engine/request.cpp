// SPDX-License-Identifier: Apache-2.0
#include "engine/request.h"

#include <algorithm>
#include <string>
#include <utility>

#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

void check_ids(const std::vector<std::int64_t>& ids, std::int64_t vocab_size) {
  for (const std::int64_t id : ids) {
    if (id < 0 || id >= vocab_size) {
      throw ConfigError(message("[add request] token id ",
                                id,
                                " is out of range; allowed: 0 to ",
                                vocab_size - 1,
                                "; check that the tokenizer belongs to the model"));
    }
  }
}

}  // namespace

void check_length(std::int64_t prompt, std::int64_t forced, std::int64_t max_model_len) {
  if (prompt == 0) {
    throw ConfigError("[add request] the prompt is empty; allowed: at least one token");
  }
  if (prompt + std::max<std::int64_t>(forced, 1) > max_model_len) {
    throw ConfigError(message("[add request] the prompt has ",
                              prompt + forced,
                              " tokens",
                              forced > 0 ? " with its continuation" : " and needs one more",
                              "; allowed: at most ",
                              max_model_len,
                              " prompt and new tokens (max_model_len); shorten it"));
  }
}

void Request::score_prompt_token(std::span<const float> logits, std::int64_t position) {
  const int count = sampling.num_prompt_logprobs;
  if (count < 0) {
    return;
  }
  SampledToken scored = sampler.score(logits, tokens[static_cast<std::size_t>(position)], count);
  auto& noted = prompt_logprobs.emplace_back();
  noted.emplace_back(scored.token, scored.logprob);
  noted.insert(noted.end(), scored.top_logprobs.begin(), scored.top_logprobs.end());
}

std::unique_ptr<Request> make_request(RequestInput input,
                                      const ModelConfig& config,
                                      std::int64_t max_model_len) {
  const auto length = static_cast<std::int64_t>(input.prompt.size());
  const auto num_forced = static_cast<std::int64_t>(input.forced.size());
  check_ids(input.prompt, config.vocab_size);
  check_ids(input.forced, config.vocab_size);
  check_length(length, num_forced, max_model_len);
  if (input.decode_prompt_tokens < 0) {
    throw ConfigError(message(
        "[add request] decode_prompt_tokens is ", input.decode_prompt_tokens, "; allowed: >= 0"));
  }
  if (num_forced > 0) {
    input.sampling.max_tokens = static_cast<int>(num_forced);
    input.sampling.min_tokens = 0;
  }
  input.sampling.validate();
  auto request = std::make_unique<Request>(std::move(input.sampling));
  request->prompt_tokens = length;
  request->prefill_tokens = length - std::min(input.decode_prompt_tokens, length);
  request->content = content_of(input.prompt);
  request->max_tokens = std::min(length + request->sampling.max_tokens, max_model_len);
  request->tokens = std::move(input.prompt);
  request->forced = std::move(input.forced);
  request->statistics.prompt_tokens = length;
  return request;
}

RequestStatistics statistics_of(const Request& request, const Method& method) {
  RequestStatistics statistics = request.statistics;
  statistics.generated_tokens = request.generated();
  if (request.state == nullptr) {
    return statistics;
  }
  const RequestState& state = *request.state;
  statistics.offloaded_tokens = state.tokens.num_offloaded();
  statistics.resident_tokens = state.tokens.num_resident();
  statistics.dropped_tokens = state.tokens.num_dropped();
  statistics.k = state.num_attended(method);
  if (statistics.strategy != "none") {
    statistics.strategy = std::string(name_of(state.steering.strategy()));
  }
  if (const auto& scheduler = state.steering.scheduler()) {
    statistics.scheduler_decisions = scheduler->num_decisions();
    statistics.last_decision = std::string(name_of(scheduler->last_decision()));
  }
  if (state.attended.available > 0) {
    statistics.attended_offloaded_share = static_cast<double>(state.attended.attended) /
                                          static_cast<double>(state.attended.available);
  }
  if (const std::int64_t steps = state.loss.steps(); steps > 0) {
    statistics.lost_mass = state.loss.sum / static_cast<double>(steps);
    statistics.largest_lost_mass = state.loss.largest;
    statistics.lost_mass_kind = state.loss.is_estimated ? "estimated" : "exact";
    statistics.lost_mass_steps = steps;
  }
  return statistics;
}

std::string_view name_of(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kAbort:
      return "abort";
    case FinishReason::kError:
      return "error";
    case FinishReason::kNone:
      break;
  }
  return "";
}

}  // namespace hybridgen
