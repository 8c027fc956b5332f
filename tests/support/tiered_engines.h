// SPDX-License-Identifier: Apache-2.0
// Engines whose keys and values lie in several tiers of host memory, on invented nodes, and
// requests of several blocks for them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "hybridgen/core/error.h"
#include "support/invented_nodes.h"
#include "support/method_settings.h"
#include "support/tier_use.h"

namespace hybridgen::testing {

inline constexpr std::int64_t kMiB = std::int64_t{1} << 20;
inline constexpr std::int64_t kBlockBytes = 64 << 10;  // of 256 tokens of keys, and of values
inline constexpr int kTierSteps = 6;
inline constexpr int kDramNode = 0;
inline constexpr int kCxlNode = 1;

inline bool tries_more() { return std::getenv("HYBRIDGEN_LONG") != nullptr; }

inline std::shared_ptr<DecoderModel> long_model(const std::string& device = "cpu") {
  static std::map<std::string, std::shared_ptr<DecoderModel>> models;
  std::shared_ptr<DecoderModel>& model = models[device];
  if (model == nullptr) {
    ModelConfig config = tiny_config();
    config.num_layers = 2;
    config.max_positions = 2048;
    model = tiny_model(device, config);
  }
  return model;
}

/// Of several blocks each, but for one.
inline const std::vector<std::vector<std::int64_t>>& long_prompts() {
  static const std::vector<std::vector<std::int64_t>> prompts{
      prompt(600, 1), prompt(300, 2), prompt(30, 3)};
  return prompts;
}

inline EngineOptions in_tiers(EngineOptions options,
                              std::int64_t dram,
                              std::int64_t cxl,
                              KvPlacement placement = KvPlacement::kSemantic) {
  options.dram_bytes = dram;
  options.tiers.cxl_bytes = cxl;
  options.tiers.placement = placement;
  options.test.invented_cxl_node = kCxlNode;
  options.prefill_chunk = 300;
  return options;
}

inline EngineOptions in_dram(EngineOptions options) {
  options.prefill_chunk = 300;
  return options;
}

/// All that keep tokens on the host.
inline std::vector<Setting> settings_on_host() {
  std::vector<Setting> settings = approximate_settings();
  for (Setting& each : settings) each.name += "_approximate";
  for (Setting& each : exact_settings()) settings.push_back(std::move(each));
  std::erase_if(settings, [](const Setting& each) {
    return each.options.method.starts_with("streaming_llm") &&
           each.name.find("host") == std::string::npos;  // nothing on the host
  });
  return settings;
}

/// Scans all keys, and sends values of a few tokens.
inline EngineOptions scanning() {
  EngineOptions result =
      hybrid("all", QueryMode::kExact, kPost, "topk", TokenCount::count(20)).options;
  result.device_tokens.count = 9;
  return result;
}

struct RequestEnd {
  Generated generated;
  std::string error;
};

/// Runs to the end whatever fails, and what each request came to.
inline std::vector<RequestEnd> run_all(Engine& engine) {
  SamplingOptions sampling;
  sampling.max_tokens = kTierSteps;
  std::map<std::int64_t, std::size_t> index;
  std::vector<RequestEnd> ended(long_prompts().size());
  for (std::size_t i = 0; i < long_prompts().size(); ++i) {
    index[engine.add(long_prompts()[i], sampling)] = i;
  }
  while (engine.has_work()) {
    for (const TokenEvent& event : engine.step()) {
      RequestEnd& one = ended[index.at(event.request_id)];
      if (event.error != nullptr) {
        try {
          std::rethrow_exception(event.error);
        } catch (const OutOfMemoryError& error) {
          one.error = error.what();
        }
        continue;
      }
      one.generated.tokens.push_back(event.token_id);
      one.generated.logprobs.push_back(event.logprob);
    }
  }
  return ended;
}

inline std::int64_t used_of_host(const Engine& engine) {
  std::int64_t used = 0;
  for (const TierUsage& tier : engine.memory()) {
    if (tier.tier != "device") used += tier.used_bytes;
  }
  return used;
}

/// What DRAM has to have for the longest prompt when there is as much as can be used of CXL memory,
/// as the refusal of less says.
inline std::int64_t least_dram(const EngineOptions& asked, const std::string& device = "cpu") {
  return least_dram(
      long_model(device), in_tiers(asked, 1, 256 * kMiB), long_prompts().front(), kTierSteps);
}

inline bool takes(const EngineOptions& options) {
  try {
    const Engine engine(long_model("cpu"), options);
  } catch (const ConfigError&) {
    return false;
  }
  return true;
}

}  // namespace hybridgen::testing
