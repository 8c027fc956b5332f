// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/core/engine_options.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

constexpr std::int64_t kMaxTokens = std::numeric_limits<std::int32_t>::max();

void require(bool holds, const char* name, const std::string& value, const char* allowed) {
  if (!holds) {
    throw ConfigError(message("[engine options] ", name, " is ", value, "; allowed: ", allowed));
  }
}

}  // namespace

TokenCount TokenCount::count(std::int64_t tokens) {
  require(tokens >= 1 && tokens <= kMaxTokens,
          "k",
          std::to_string(tokens),
          "an integer in [1, 2^31 - 1], a share in (0, 1) or \"all\"");
  TokenCount result;
  result.count_ = tokens;
  return result;
}

TokenCount TokenCount::share(double share) {
  require(share > 0.0 && share < 1.0,
          "k",
          message(share),
          "an integer >= 1, a share in (0, 1) or \"all\"");
  TokenCount result;
  result.share_ = share;
  return result;
}

TokenCount TokenCount::larger_of(std::int64_t tokens, double share) {
  TokenCount result = count(tokens);
  result.share_ = TokenCount::share(share).share_;
  return result;
}

std::int64_t TokenCount::resolve(std::int64_t available) const {
  if (available <= 0) {
    return 0;
  }
  if (is_all()) {
    return available;
  }
  std::int64_t wanted = count_.value_or(1);
  if (share_) {
    wanted = std::max(wanted, static_cast<std::int64_t>(*share_ * static_cast<double>(available)));
  }
  return std::clamp<std::int64_t>(wanted, 1, available);
}

std::optional<std::int64_t> WindowSetting::resolve(std::int64_t prompt_tokens) const {
  if (count || !share) {
    return count;
  }
  if (*share == 0.0) {
    return 0;
  }
  return std::max(kFewestOfAShare,
                  static_cast<std::int64_t>(*share * static_cast<double>(prompt_tokens)));
}

std::string TokenCount::text() const {
  if (count_ && share_) {
    return message("max(", *count_, ", ", *share_, ")");
  }
  if (count_) {
    return std::to_string(*count_);
  }
  return share_ ? message(*share_) : "all";
}

void EngineOptions::validate() const {
  if (device_tokens.count) {
    require(*device_tokens.count >= 0 && *device_tokens.count <= kMaxTokens,
            "device_tokens",
            std::to_string(*device_tokens.count),
            "an integer in [0, 2^31 - 1], a share of the prompt in [0, 1] or \"auto\"");
  }
  if (device_tokens.share) {
    require(*device_tokens.share >= 0.0 && *device_tokens.share <= 1.0,
            "device_tokens",
            message(*device_tokens.share),
            "an integer >= 0, a share of the prompt in [0, 1] or \"auto\"");
  }
  const auto at_least =
      [](const char* name, std::int64_t value, std::int64_t minimum, const char* allowed) {
        require(value >= minimum, name, std::to_string(value), allowed);
      };
  at_least("spec_first_layer", spec_first_layer, 1, "an integer >= 1");
  at_least("dram_bytes", dram_bytes, 0, "bytes > 0, or 0 for automatic");
  at_least("device_bytes", device_bytes, 0, "bytes > 0, or 0 for automatic");
  at_least("threads", threads, 0, "an integer >= 1, or 0 for automatic");
  at_least("device_threads", device_threads, 0, "an integer >= 1, or 0 for automatic");
  at_least("numa_node", numa_node, -1, "an integer >= 0, or -1 for automatic");
  require(max_model_len >= 0 && max_model_len <= kMaxTokens,
          "max_model_len",
          std::to_string(max_model_len),
          "an integer in [1, 2^31 - 1], or 0 for the model's positions");
  at_least("prefill_chunk", prefill_chunk, 1, "an integer >= 1");
  at_least("micro_batch", micro_batch, 1, "an integer >= 1");
  at_least("max_batch", max_batch, 1, "an integer >= 1");
  at_least("random_delay_us", test.random_delay_us, 0, "an integer >= 0");
  at_least("invented_nodes", test.invented_nodes, 0, "an integer >= 0");
  require(guess_norm == "next" || guess_norm == "current",
          "guess_norm",
          "'" + guess_norm + "'",
          "next, current");
  require(guess_source == "next_weights" || guess_source == "previous_query",
          "guess_source",
          "'" + guess_source + "'",
          "next_weights, previous_query");
  require(scoring == "full" || scoring == "int8" || scoring == "int4",
          "scoring",
          "'" + scoring + "'",
          "full, int8, int4");
  require(candidates_per_k == 0.0 || (candidates_per_k >= 1.0 && std::isfinite(candidates_per_k)),
          "candidates_per_k",
          message(candidates_per_k),
          "a number >= 1, or 0 for automatic");
  require(math == "auto" || math == "kernels" || math == "aten",
          "math",
          "'" + math + "'",
          "auto, kernels, aten");
}

}  // namespace hybridgen
