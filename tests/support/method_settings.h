// SPDX-License-Identifier: Apache-2.0
// Settings of every method: those in which it is exact, and those in which it leaves something out.
#pragma once

#include <limits>
#include <ostream>
#include <string>
#include <vector>

#include "support/tiny_model.h"

namespace hybridgen::testing {

struct Setting {
  std::string name;
  EngineOptions options;
};

inline void PrintTo(const Setting& setting, std::ostream* out) { *out << setting.name; }

inline Setting setting(const std::string& name, const std::string& method, OptionMap config = {}) {
  Setting result{name, options(method)};
  result.options.method_config = std::move(config);
  return result;
}

inline Setting hybrid(const std::string& name,
                      QueryMode query,
                      SelectionStrategy strategy,
                      const std::string& selector,
                      TokenCount k) {
  Setting result = setting(name, "hybridgen");
  result.options.hybridgen.query.mode = query;
  result.options.hybridgen.strategy = strategy;
  (strategy == SelectionStrategy::kPostQkt ? result.options.hybridgen.selector
                                           : result.options.hybridgen.pre_selector) = selector;
  result.options.hybridgen.k = k;
  result.options.device_tokens.count = 9;
  return result;
}

inline Setting hybrid_by_mass(const std::string& name, QueryMode query, double mass) {
  Setting result = setting(name, "hybridgen");
  result.options.hybridgen.query.mode = query;
  result.options.hybridgen.mass = mass;
  result.options.device_tokens.count = 9;
  return result;
}

inline constexpr auto kPost = SelectionStrategy::kPostQkt;
inline constexpr auto kPre = SelectionStrategy::kPreQkt;

inline std::vector<Setting> exact_settings() {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const auto all = TokenCount::all();
  return {
      setting("flexgen", "flexgen"),
      setting("flexgen_partly_resident", "flexgen", {{"gpu_share", 0.4}}),
      setting("moe_lightning", "moe_lightning"),
      setting("moe_lightning_one_batch", "moe_lightning", {{"micro_batches", std::int64_t{1}}}),
      setting("moe_lightning_many_batches",
              "moe_lightning",
              {{"micro_batches", std::int64_t{5}}, {"lookahead", std::int64_t{3}}}),
      setting("streaming_llm", "streaming_llm"),
      setting("streaming_llm_shifted", "streaming_llm", {{"positions", std::string("shift")}}),
      setting("streaming_llm_on_host", "streaming_llm", {{"home", std::string("host")}}),
      setting("h2o", "h2o", {{"heavy", std::int64_t{60}}, {"recent", std::int64_t{60}}}),
      setting("h2o_shifted",
              "h2o",
              {{"heavy", std::int64_t{60}},
               {"recent", std::int64_t{60}},
               {"positions", std::string("shift")}}),
      setting("h2o_on_host",
              "h2o",
              {{"heavy", std::int64_t{60}},
               {"recent", std::int64_t{60}},
               {"home", std::string("host")}}),
      setting("keyformer", "keyformer", {{"kv_cache", std::int64_t{120}}}),
      setting("keyformer_on_host",
              "keyformer",
              {{"kv_cache", std::int64_t{120}}, {"home", std::string("host")}}),
      setting("infinigen", "infinigen", {{"alpha", kInfinity}, {"max_fetch", 1.0}}),
      setting(
          "hgca", "hgca", {{"beta", 0.0}, {"block", std::int64_t{4}}, {"blocks", std::int64_t{3}}}),
      setting("hgca_single_tokens",
              "hgca",
              {{"beta", 0.0}, {"block", std::int64_t{1}}, {"blocks", std::int64_t{1}}}),
      hybrid("hybridgen_h2o", QueryMode::kExact, kPost, "h2o", all),
      hybrid("hybridgen_keyformer", QueryMode::kRescore, kPost, "keyformer", all),
      hybrid("hybridgen_digests", QueryMode::kExact, kPre, "block_digests", all),
      hybrid("hybridgen_digests_rescored", QueryMode::kRescore, kPre, "block_digests", all),
      hybrid("hybridgen_partial_keys", QueryMode::kExact, kPre, "partial_keys", all),
      hybrid("hybridgen_partial_keys_rescored", QueryMode::kRescore, kPre, "partial_keys", all)};
}

// Settings in which something is left out.
inline std::vector<Setting> approximate_settings() {
  const auto few = TokenCount::count(6);
  return {
      setting("streaming_llm",
              "streaming_llm",
              {{"sinks", std::int64_t{2}}, {"window", std::int64_t{7}}}),
      setting("streaming_llm_shifted",
              "streaming_llm",
              {{"sinks", std::int64_t{2}},
               {"window", std::int64_t{7}},
               {"positions", std::string("shift")}}),
      setting(
          "streaming_llm_on_host",
          "streaming_llm",
          {{"sinks", std::int64_t{2}}, {"window", std::int64_t{7}}, {"home", std::string("host")}}),
      setting("h2o", "h2o"),
      setting("h2o_shifted", "h2o", {{"positions", std::string("shift")}}),
      setting("h2o_on_host", "h2o", {{"home", std::string("host")}}),
      setting("keyformer", "keyformer", {{"kv_cache", 0.3}}),
      setting("keyformer_quiet", "keyformer", {{"kv_cache", 0.3}, {"noise", false}}),
      setting("keyformer_on_host", "keyformer", {{"kv_cache", 0.3}, {"home", std::string("host")}}),
      // Two columns: a prompt of one token determines no more.
      setting(
          "infinigen", "infinigen", {{"alpha", 1.0}, {"max_fetch", 0.3}, {"column_share", 0.125}}),
      setting("infinigen_small_pool",
              "infinigen",
              {{"alpha", 1.0},
               {"max_fetch", 0.3},
               {"column_share", 0.125},
               {"capacity", 0.9},
               {"policy", std::string("lru")}}),
      setting("flexgen_sparse", "flexgen", {{"attn_sparsity", 0.4}}),
      setting("flexgen_sparse_partly_resident",
              "flexgen",
              {{"attn_sparsity", 0.4}, {"gpu_share", 0.3}}),
      setting("hgca",
              "hgca",
              {{"beta", 1.0},
               {"block", std::int64_t{4}},
               {"blocks", std::int64_t{3}},
               {"keep_min", std::int64_t{1}}}),
      hybrid("hybridgen_h2o", QueryMode::kSpeculative, kPost, "h2o", few),
      hybrid("hybridgen_keyformer", QueryMode::kExact, kPost, "keyformer", few),
      hybrid_by_mass("hybridgen_mass", QueryMode::kSpeculative, 0.6),
      hybrid_by_mass("hybridgen_mass_exact", QueryMode::kExact, 0.6),
      hybrid_by_mass("hybridgen_mass_rescored", QueryMode::kRescore, 0.6),
      hybrid("hybridgen_digests", QueryMode::kSpeculative, kPre, "block_digests", few),
      hybrid("hybridgen_partial_keys", QueryMode::kRescore, kPre, "partial_keys", few)};
}

/// Of full attention and of all of them, the exact ones named so.
inline std::vector<Setting> all_settings() {
  std::vector<Setting> settings = {{"full", options("full")}};
  for (Setting& each : exact_settings()) {
    each.name = "exact_" + each.name;
    settings.push_back(std::move(each));
  }
  for (Setting& each : approximate_settings()) {
    settings.push_back(std::move(each));
  }
  return settings;
}

/// Those of `settings` that a timed device runs: without logits no mass is known.
inline std::vector<Setting> timed_settings(std::vector<Setting> settings) {
  std::erase_if(settings, [](const Setting& each) { return each.options.hybridgen.mass > 0.0; });
  return settings;
}

}  // namespace hybridgen::testing
