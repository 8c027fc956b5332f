// SPDX-License-Identifier: Apache-2.0
// Every method in its exact setting equals full attention; none depends on the batch, the chunks or
// the implementation of the mathematics.
#include <gtest/gtest.h>

#include <limits>

#include "hybridgen/core/error.h"
#include "support/tiny_model.h"

namespace hybridgen {
namespace {

using testing::expect_same;
using testing::generate;
using testing::Generated;
using testing::ragged_prompts;
using testing::tiny_model;

constexpr int kSteps = 12;
using Config = OptionMap;

struct Setting {
  std::string name;
  EngineOptions options;
};

void PrintTo(const Setting& setting, std::ostream* out) { *out << setting.name; }

Setting setting(const std::string& name, const std::string& method, Config config = {}) {
  Setting result{name, testing::options(method)};
  result.options.method_config = std::move(config);
  return result;
}

Setting hybrid(const std::string& name,
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

constexpr auto kPost = SelectionStrategy::kPostQkt;
constexpr auto kPre = SelectionStrategy::kPreQkt;

std::vector<Setting> exact_settings() {
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
std::vector<Setting> approximate_settings() {
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
      hybrid("hybridgen_digests", QueryMode::kSpeculative, kPre, "block_digests", few),
      hybrid("hybridgen_partial_keys", QueryMode::kRescore, kPre, "partial_keys", few)};
}

std::vector<Generated> run(const EngineOptions& options) {
  Engine engine(tiny_model(), options);
  return generate(engine, ragged_prompts(), kSteps);
}

const auto kName = [](const auto& info) { return info.param.name; };

class ExactMethods : public ::testing::TestWithParam<Setting> {};

TEST_P(ExactMethods, EqualFullAttention) {
  static const auto full = run(testing::options("full"));
  expect_same(run(GetParam().options), full);
}

TEST_P(ExactMethods, EqualFullAttentionThroughLibTorch) {
  EngineOptions options = GetParam().options;
  options.math = Math::kAten;
  static const auto full = run(testing::options("full"));
  expect_same(run(options), full);
}

INSTANTIATE_TEST_SUITE_P(Methods, ExactMethods, ::testing::ValuesIn(exact_settings()), kName);

class ApproximateMethods : public ::testing::TestWithParam<Setting> {};

TEST_P(ApproximateMethods, DifferFromFullAttention) {
  // The control of the identities above: these settings do leave something out.
  const auto outputs = run(GetParam().options);
  EXPECT_NE(outputs.front().logprobs, run(testing::options("full")).front().logprobs);
}

TEST_P(ApproximateMethods, DoNotDependOnTheBatch) {
  EngineOptions options = GetParam().options;
  const auto together = run(options);
  options.micro_batch = 2;
  EXPECT_EQ(run(options), together);
  const auto prompts = ragged_prompts();
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    Engine engine(tiny_model(), options);
    EXPECT_EQ(generate(engine, {prompts[i]}, kSteps).front(), together[i]) << "request " << i;
  }
}

TEST_P(ApproximateMethods, DoNotDependOnTheImplementationOrOnTiming) {
  EngineOptions options = GetParam().options;
  const auto kernels = run(options);
  options.test.synchronous = true;
  EXPECT_EQ(run(options), kernels);
  options.test.synchronous = false;
  options.test.random_delay_us = 50;
  EXPECT_EQ(run(options), kernels);
  options.test.random_delay_us = 0;
  options.math = Math::kAten;
  expect_same(run(options), kernels);
}

TEST_P(ApproximateMethods, LeaveTheEngineReadyForTheNextRequest) {
  Engine engine(tiny_model(), GetParam().options);
  const auto first = generate(engine, {testing::prompt(40, 8)}, kSteps);
  generate(engine, ragged_prompts(), kSteps);
  EXPECT_EQ(generate(engine, {testing::prompt(40, 8)}, kSteps), first);
  for (const TierUsage& tier : engine.memory()) {
    EXPECT_EQ(tier.used_bytes, 0) << tier.tier;
  }
}

INSTANTIATE_TEST_SUITE_P(Methods,
                         ApproximateMethods,
                         ::testing::ValuesIn(approximate_settings()),
                         kName);

// Chunks are part of what HGCA means by salience, and of the sample that partial keys are made
// from.
std::vector<Setting> settings_without_chunks() {
  std::vector<Setting> settings = approximate_settings();
  std::erase_if(settings, [](const Setting& each) {
    return each.options.method == "hgca" || each.options.method == "infinigen" ||
           (each.options.hybridgen.strategy == SelectionStrategy::kPreQkt &&
            each.options.hybridgen.pre_selector == "partial_keys");
  });
  return settings;
}

class ChunkedPrefill : public ::testing::TestWithParam<Setting> {};

TEST_P(ChunkedPrefill, ChangesNothing) {
  EngineOptions options = GetParam().options;
  const auto whole = run(options);
  options.prefill_chunk = 13;
  expect_same(run(options), whole);
}

INSTANTIATE_TEST_SUITE_P(Methods,
                         ChunkedPrefill,
                         ::testing::ValuesIn(settings_without_chunks()),
                         kName);

}  // namespace
}  // namespace hybridgen
